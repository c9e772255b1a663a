"""`backup` and `copy`: what is taken, pruned after, copied, and how several databases' failures end."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from backupd import catalog, log, render, terminal
from backupd.commands import shared
from backupd.errors import BackupdError, StoreError, UsageError
from backupd.manifest import Backup
from backupd.selector import name_of

if TYPE_CHECKING:
    from backupd import copy as copy_verb
    from backupd import dump

app = typer.Typer()

_log = log.get_logger()


@app.command()
def backup(
    databases: Annotated[list[str] | None, typer.Argument(help="Databases or patterns; else the setting's.")] = None,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long to wait for another run.", envvar="BACKUPD_BACKUP_WAIT")
    ] = 0.0,
    json_: shared.Json = False,
) -> None:
    """Take a proven backup of each database, then apply the retention policy, if one is set.

    Exit codes: 0 ok, 3 some databases failed for different reasons, 11 another run is busy, 12 access refused,
    13 no client new enough, 14 the dump is not whole, 17 no room, 18 the server failed; all in the README.
    """
    from backupd import backup as verb
    from backupd import dump

    here = shared.installation()
    found, settings_ = here.catalog(), here.settings
    names = databases or here.databases_of_job()
    with here.source("backup") as access, terminal.shown() as progress:
        client = dump.choose_for_dump(here.clients(), access.major)
        _warn_of_client(client, access.major)
        outcomes = []
        for database in here.databases(access, names):
            job = verb.Job(
                server=settings_.server_label,
                database=database,
                options=here.dump_options(),
                scratch=settings_.scratch.directory,
                scratch_limit_bytes=settings_.scratch.limit,
                wait_seconds=wait,
            )
            outcomes.append(_outcome(database, partial(verb.take, access, found, client, job, shared.now, progress)))
    taken = [outcome for _, outcome in outcomes if isinstance(outcome, Backup)]
    for each in taken:
        _print_taken(each, json_)
        shared.prune_after(found, each, settings_.retention.policy())
    failures = [(name, outcome) for name, outcome in outcomes if isinstance(outcome, BackupdError)]
    uncopied = _copy_after(found, taken)
    what = (
        "have no new backup" if not uncopied else "have no new copy" if not failures else "have no new backup or copy"
    )
    shared.raise_failures([*failures, *uncopied], len(outcomes), f"databases {what}")


def _outcome(database: str, take: Callable[[], Backup]) -> tuple[str, Backup | BackupdError]:
    """The backup, or why there is none: one database's failure does not stop the others."""
    try:
        return database, take()
    except BackupdError as exc:
        _log.error(
            "backup.failed", database=database, reason=exc.reason, message=exc.message, detail=exc.detail, hint=exc.hint
        )
        return database, exc


def _warn_of_client(client: "dump.Client", server_major: int) -> None:
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
    print(
        f"{name_of(taken)}: {totals.rows} rows in {totals.tables} tables, {render.size(manifest.archive_bytes)},"
        f" {render.duration(seconds)}"
    )


def _copy_after(found: catalog.Catalog, taken: Sequence[Backup]) -> list[tuple[str, BackupdError]]:
    """Copies what was taken to the second store, if one is set; the failures are the store's, for the backups stand."""
    here = shared.installation()
    if (second := here.second_catalog()) is None or not taken:
        return []
    from backupd import copy as verb

    failures: list[tuple[str, BackupdError]] = []
    with terminal.shown() as progress:
        for each in taken:
            try:
                _log_copied(second, verb.copy(found, each, second, shared.now(), progress))
                shared.prune_after(second, each, here.settings.copy_retention.policy())
            except BackupdError as exc:
                reason = f"{exc.message}: {exc.detail}" if exc.detail else f"{exc.message}."
                message = f"backup {name_of(each)} was taken, but not copied to {second.store.url}"
                hint = " ".join(filter(None, (exc.hint, f"Run `backupd copy {name_of(each)}` to copy it.")))
                _log.error("copy.failed", backup=str(name_of(each)), reason=exc.reason, message=exc.message, hint=hint)
                failures.append((each.source.database, StoreError(message, detail=reason, hint=hint)))
    return failures


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
    print(f"{name_of(chosen)}: {said} in {second.store.url}, {render.size(chosen.manifest.archive_bytes)}")
