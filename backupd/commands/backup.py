"""`backup`, `copy` and `rekey`: what is taken, pruned after, copied, and how several databases' failures end."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from backupd import catalog, hook, log, render, retention, terminal
from backupd.commands import shared
from backupd.commands.run import Run, reported
from backupd.errors import BackupdError, StoreError, UsageError
from backupd.manifest import Backup, superseded
from backupd.progress import Place, places
from backupd.selector import name_of

if TYPE_CHECKING:
    from backupd import clients, postgres
    from backupd import copy as copy_verb

app = typer.Typer()

_log = log.get_logger()


@app.command()
def backup(
    databases: Annotated[list[str] | None, typer.Argument(help="Databases or patterns; else the setting's.")] = None,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long to wait for another run.", envvar="BACKUPD_BACKUP_WAIT")
    ] = 0.0,
    with_role_passwords: Annotated[
        bool,
        typer.Option(
            "--with-role-passwords",
            help="Record by what the server checks roles' passwords; needs encryption.",
            envvar="BACKUPD_BACKUP_WITH_ROLE_PASSWORDS",
        ),
    ] = False,
    unless_since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Take none of a database that has one begun since, for schedulers."),
    ] = None,
    json_: shared.Json = False,
) -> None:
    """Take a proven backup of each database, then apply the retention policy, if one is set.

    Exit codes: 0 ok, 3 some databases failed for different reasons, 11 another run is busy, 12 access refused,
    13 no client new enough, 14 the dump is not whole, 17 no room, 18 the server failed; all in the README.
    """
    with reported("backup", pings=True) as run:
        if with_role_passwords and not run.here.settings.recipients():
            hint = "Set BACKUPD_ENCRYPTION__RECIPIENTS: what passwords are checked by never lies in a store in clear."
            raise UsageError("--with-role-passwords is given, and backups are not encrypted", hint=hint)
        chosen = _Chosen(databases or run.here.databases_of_job(), wait, with_role_passwords, _moment(unless_since))
        taken = _take_each(run, chosen)
        for each in taken:
            _print_taken(each, json_)
            _prune_after(run, run.found, each, run.here.settings.retention.policy())
        _copy_after(run, taken)
        run.look_back(taken)
        run.raise_failures()


@dataclass(frozen=True)
class _Chosen:
    """What the flags say; see `backup.Job`."""

    names: list[str]
    wait_seconds: float
    role_passwords: bool
    unless_since: datetime | None


def _moment(text: str | None) -> datetime | None:
    """A time with its zone. Raises UsageError."""
    try:
        moment = None if text is None else datetime.fromisoformat(text)
    except ValueError:
        moment = datetime.min  # noqa: DTZ901  # which has no zone either
    if moment is not None and moment.tzinfo is None:
        raise UsageError("--unless-since should be a time with its zone, such as 2026-11-26T02:30:00Z")
    return moment


def _take_each(run: Run, chosen: _Chosen) -> list[Backup]:
    """The backups that were taken; what failed is in the run."""
    from backupd import backup as verb
    from backupd import clients

    here, taken = run.here, []
    settings_ = here.settings
    reached = here.source("backup", settings_.dump.max_seconds)
    with run.beginning(chosen.names), reached as access, terminal.shown() as progress:
        client = clients.choose_for_dump(here.clients(), access.major)
        _warn_of_client(client, access.major)
        run.databases = here.databases(access, chosen.names)
        for database, progress.place in zip(run.databases, _places(access, run.databases), strict=True):
            job = verb.Job(
                server=settings_.server_label,
                database=database,
                options=here.dump_options(),
                scratch=settings_.scratch.directory,
                scratch_limit_bytes=settings_.scratch.limit,
                wait_seconds=chosen.wait_seconds,
                recipients=settings_.recipients(),
                role_passwords=chosen.role_passwords,
                unless_since=chosen.unless_since,
            )
            with run.step(database, "backup") as made:
                run.run_hook("before", database, {})
                made.append(verb.take(access, run.found, client, job, shared.now, progress))
            for each in made:
                run.run_late_hook("after", database, hook.facts_of(each))
            taken += made
    return taken


def _places(access: "postgres.Access", databases: Sequence[str]) -> list[Place]:
    """Which share of the run each database is, by its size, if the server says it."""
    from backupd import facts, postgres

    sizes = [0] * len(databases)
    with contextlib.suppress(BackupdError):
        if len(databases) > 1:
            with postgres.connect(access, access.database) as session:
                sizes = facts.sizes(session, databases)
    return places(sizes)


@contextlib.contextmanager
def _although_taken(taken: Backup, what: str, then: str = "") -> Iterator[None]:
    """Makes of a failure one that says that the backup stands: it is the store's, and has its exit code."""
    try:
        yield
    except BackupdError as exc:
        raise StoreError(
            f"backup {name_of(taken)} was taken, but {what}",
            detail=f"{exc.message}: {exc.detail}" if exc.detail else f"{exc.message}.",
            hint=" ".join(filter(None, (exc.hint, then))) or None,
        ) from exc


def _warn_of_client(client: "clients.Client", server_major: int) -> None:
    if client.major != server_major:
        _log.warning(
            "client.newer", client=client.version, server=server_major, action="install the server's own major"
        )
    if not client.safe:
        _log.warning("client.vulnerable", client=client.version, action="update it; `backupd doctor` has the floor")


def _print_taken(taken: Backup, as_json: bool) -> None:
    if as_json:
        shared.print_json({"message_type": "summary", **shared.backup_json(taken)})
        return
    manifest, totals = taken.manifest, taken.manifest.totals
    seconds = (manifest.finished_at - manifest.started_at).total_seconds()
    shared.say(
        f"{name_of(taken)}: {totals.rows} rows in {totals.tables} tables, {render.size(manifest.archive_bytes)},"
        f" {render.duration(seconds)}"
    )


def _prune_after(run: Run, found: catalog.Catalog, taken: Backup, policy: retention.Policy | None) -> None:
    what = f"retention failed in {found.store.url}"
    with run.step(taken.source.database, "retention", taken), _although_taken(taken, what):
        shared.prune_after(found, taken, policy)


def _copy_after(run: Run, taken: Sequence[Backup]) -> None:
    """Copies what was taken to the second store, if one is set, and prunes there."""
    if (second := run.here.second_catalog()) is None or not taken:
        return
    from backupd import copy as verb

    with terminal.shown() as progress:
        for each in taken:
            what, then = f"not copied to {second.store.url}", f"Run `backupd copy {name_of(each)}` to copy it."
            with run.step(each.source.database, "copy", each), _although_taken(each, what, then):
                _log_copied(second, verb.copy(run.found, each, second, shared.now(), progress))
                _prune_after(run, second, each, run.here.settings.copy_retention.policy())


def _log_copied(second: catalog.Catalog, copied: "copy_verb.Copied") -> None:
    event = "backup.copied" if copied.new else "backup.copied_before"
    _log.info(event, backup=str(name_of(copied.backup)), store=second.store.url)


@app.command()
def copy(
    backup: shared.BackupName,
    store_url: Annotated[
        str | None, typer.Argument(metavar="STORE_URL", help="The second store, else BACKUPD_COPY__URL.")
    ] = None,
    json_: shared.Json = False,
) -> None:
    """Copy a backup to a second store, every hash checked on the way; one that is there already is fine."""
    from backupd import copy as verb

    here = shared.installation()
    second = here.second_catalog(store_url)
    if second is None:
        raise UsageError("no second store is named", hint="Give its URL, or set BACKUPD_COPY__URL.")
    found = here.catalog()
    chosen = shared.find(found, backup)
    with terminal.shown() as progress:
        copied = verb.copy(found, chosen, second, shared.now(), progress)
    if json_:
        shared.print_json({"store": second.store.url, "new": copied.new, **shared.backup_json(copied.backup)})
        return
    said = "is now" if copied.new else "is already"
    shared.say(f"{name_of(chosen)}: {said} in {second.store.url}, {render.size(chosen.manifest.archive_bytes)}")


@app.command()
def rekey(
    backups: Annotated[
        list[str],
        typer.Argument(metavar="ID...|all", help="Backups, or all that need it.", envvar="BACKUPD_REKEY_BACKUPS"),
    ],
    json_: shared.Json = False,
) -> None:
    """Encrypt backups anew, to the recipients of today: a new backup of each; the old one stays until it is deleted.

    From clear to encrypted too. Each is read to its end and decoded on the way; what is encrypted needs identities.
    """
    from backupd import rekey as verb

    here = shared.installation()
    found, recipients = here.catalog(), here.settings.recipients()
    chosen = _to_rekey(found, recipients) if backups == ["all"] else [found.find(text) for text in backups]
    failures = []
    with terminal.shown() as progress:
        for each in chosen:
            try:
                rekeyed = verb.rekey(found, each, recipients, shared.now, progress)
            except BackupdError as exc:
                failures.append((each.id, exc))
                _log.error("rekey.failed", backup=str(name_of(each)), message=exc.message, detail=exc.detail)
                continue
            said = "is now" if rekeyed.new else "is already"
            shared.print_json({"rekeyed_from": each.id, **shared.backup_json(rekeyed.backup)}) if json_ else shared.say(
                f"{name_of(each)}: {said} {rekeyed.backup.id}"
            )
    if not chosen and not json_:
        shared.say("nothing to rekey: every backup is encrypted to these recipients, or was rekeyed to them")
    shared.raise_failures(failures, len(chosen), "backups were not rekeyed")


def _to_rekey(found: catalog.Catalog, recipients: tuple[str, ...]) -> list[Backup]:
    """What is not encrypted to exactly these recipients, and was not rekeyed yet; oldest first."""
    backups = found.backups().backups
    rekeyed = superseded(backups)
    return [
        each
        for each in reversed(backups)
        if each.id not in rekeyed and each.untrusted is None and set(each.manifest.recipients) != set(recipients)
    ]
