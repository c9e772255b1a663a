"""The command line: one short function a verb, the only printing, and exit codes.

stdout is the result, stderr the log. Each verb loads the settings, builds values, calls one function and prints what
it returned; configuration ends here. What a verb needs is imported in it: `backupd list` on a directory imports
neither psycopg nor boto3.
"""

import contextlib
import io
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backupd import __version__, catalog, log, notation, render, retention, settings, signals, terminal
from backupd.errors import BackupdError, Interrupted, Partial, Stale, StoreError, UsageError
from backupd.installation import Installation
from backupd.manifest import Backup, to_json
from backupd.selection import Wanted
from backupd.selector import name_of

if TYPE_CHECKING:
    from backupd import copy as copy_verb
    from backupd import demo as demo_verb
    from backupd import doctor as doctor_verb
    from backupd import dump, preflight, target

app = typer.Typer(
    name="backupd",
    help="PostgreSQL backups that are proven to restore. Settings are BACKUPD_ variables: see the README.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do it; without this only say what would be done.")]
BackupName = Annotated[
    str, typer.Argument(metavar="ID", help="An id or its first characters, latest, app@latest, app@before:TIME.")
]

_TERMINATION_LOG = Path("/dev/termination-log")  # where Kubernetes takes a container's last words from
_log = log.get_logger()


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code; errors are printed as people or programs read them."""
    _installation.cache_clear()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that this terminal cannot show is no failure
    try:
        app(list(arguments) or _command())
    except SystemExit as exc:  # typer has printed what was wrong with the arguments
        return exc.code if isinstance(exc.code, int) else 2
    except (BackupdError, Interrupted) as exc:
        if isinstance(exc, Interrupted):
            signals.ignore()
        _print_error(exc)
        _leave_message(exc)
        return exc.exit_code
    return 0


@cache
def _installation() -> Installation:
    """The settings, when a verb first asks: help needs none, and must not fail for a wrong one."""
    loaded = settings.from_process()
    log.configure(loaded.log.level, loaded.log.format, settings.secrets(loaded), sys.stderr, loaded.color)
    return Installation(loaded)


def _command() -> list[str]:
    """The verb that a Job's environment names, where no arguments are given."""
    command = _installation().settings.environment.get("BACKUPD_COMMAND")
    return [command] if command else []


def _print_error(exc: BackupdError | Interrupted) -> None:
    error = BackupdError(str(exc)) if isinstance(exc, Interrupted) else exc
    loaded = _installation().settings if _installation.cache_info().currsize else None
    if loaded is None:  # it is they that are wrong, so nothing has set up the log
        log.configure("info", "auto", (), sys.stderr)
    if log.is_json(loaded.log.format if loaded else "auto", sys.stderr):
        fields = {"message": error.message, "detail": error.detail, "hint": error.hint}
        _log.error("run.failed", exit_code=exc.exit_code, reason=exc.reason, **fields)
    else:
        print(log.scrub(render.error(error), settings.secrets(loaded) if loaded else ()), file=sys.stderr)


def _leave_message(exc: BackupdError | Interrupted) -> None:
    """Leaves the reason where `kubectl describe` shows it, when this is a container of Kubernetes."""
    if not _TERMINATION_LOG.is_file():
        return
    secrets = settings.secrets(_installation().settings) if _installation.cache_info().currsize else ()
    text = render.error(exc) if isinstance(exc, BackupdError) else str(exc)
    with contextlib.suppress(OSError):
        _TERMINATION_LOG.write_text(log.scrub(f"{exc.reason} ({exc.exit_code})\n{text}", secrets)[:4000])


def _now() -> datetime:
    return datetime.now(UTC)


def _print_json(value: object) -> None:
    print(json.dumps(value, default=_plain, ensure_ascii=True))


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _backup_json(backup: Backup) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(to_json(backup.manifest))
    notes = [json.loads(to_json(note)) for note in backup.notes]
    return document | {"name": str(name_of(backup)), "suspect": backup.suspect, "pinned": backup.pinned, "notes": notes}


# --- taking and bringing back


@app.command()
def backup(
    databases: Annotated[list[str] | None, typer.Argument(help="Databases or patterns; else the setting's.")] = None,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long to wait for another run.", envvar="BACKUPD_BACKUP_WAIT")
    ] = 0.0,
    json_: Json = False,
) -> None:
    """Take a proven backup of each database, then apply the retention policy, if one is set.

    Exit codes: 0 ok, 3 some databases failed for different reasons, 11 another run is busy, 12 access refused,
    13 no client new enough, 14 the dump is not whole, 17 no room, 18 the server failed; all in the README.
    """
    from backupd import backup as verb
    from backupd import dump

    here = _installation()
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
            outcomes.append(_outcome(database, partial(verb.take, access, found, client, job, _now, progress)))
    taken = [outcome for _, outcome in outcomes if isinstance(outcome, Backup)]
    for each in taken:
        _print_taken(each, json_)
        _prune_after(found, each, settings_.retention.policy())
    failures = [(name, outcome) for name, outcome in outcomes if isinstance(outcome, BackupdError)]
    uncopied = _copy_after(found, taken)
    what = (
        "have no new backup" if not uncopied else "have no new copy" if not failures else "have no new backup or copy"
    )
    _raise_failures([*failures, *uncopied], len(outcomes), f"databases {what}")


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
        _print_json({"message_type": "summary", **_backup_json(taken)})
        return
    manifest, totals = taken.manifest, taken.manifest.totals
    seconds = (manifest.finished_at - manifest.started_at).total_seconds()
    print(
        f"{name_of(taken)}: {totals.rows} rows in {totals.tables} tables, {render.size(manifest.archive_bytes)},"
        f" {render.duration(seconds)}"
    )


def _copy_after(found: catalog.Catalog, taken: Sequence[Backup]) -> list[tuple[str, BackupdError]]:
    """Copies what was taken to the second store, if one is set; the failures are the store's, for the backups stand."""
    here = _installation()
    if (second := here.second_catalog()) is None or not taken:
        return []
    from backupd import copy as verb

    failures: list[tuple[str, BackupdError]] = []
    with terminal.shown() as progress:
        for each in taken:
            try:
                _log_copied(second, verb.copy(found, each, second, _now(), progress))
                _prune_after(second, each, here.settings.copy_retention.policy())
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


def _prune_after(found: catalog.Catalog, taken: Backup, policy: retention.Policy | None) -> None:
    if policy is None:
        return
    listing = found.backups(taken.source.server, taken.source.database)
    _carry_out(found, retention.plan(listing.backups, policy, _now()))


def _carry_out(found: catalog.Catalog, plan: retention.Plan) -> None:
    for frozen in plan.frozen:
        _log.warning("retention.frozen", database=frozen.scope.database, reason=frozen.reason, action="backupd prune")
    for decision in plan.decisions:
        if not decision.keep:
            found.delete(decision.backup)
            _log.info("backup.pruned", backup=str(name_of(decision.backup)), reasons=list(decision.reasons))


@app.command()
def restore(
    backup: Annotated[
        str | None,
        typer.Argument(metavar="ID", help="Which backup: app@latest, an id...", envvar="BACKUPD_RESTORE_BACKUP"),
    ] = None,
    as_: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Into a new database.", envvar="BACKUPD_RESTORE_AS")
    ] = None,
    into: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Into an existing, empty database.", envvar="BACKUPD_RESTORE_INTO"),
    ] = None,
    tables: Annotated[
        list[str] | None,
        typer.Option("--table", metavar="SCHEMA.TABLE", help="Only this table and what it needs; * and ? match."),
    ] = None,
    schemas: Annotated[
        list[str] | None,
        typer.Option("--schema", metavar="SCHEMA", help="Only this schema and what it needs; * and ? match."),
    ] = None,
    replace_: Annotated[
        str | None,
        typer.Option(
            "--replace",
            metavar="DATABASE",
            help="Beside a live database, then under its name; the old one is kept.",
            envvar="BACKUPD_RESTORE_REPLACE",
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="DATABASE",
            help="End what a killed --replace left: swap what had proved equal, drop what had not.",
            envvar="BACKUPD_RESTORE_RESUME",
        ),
    ] = None,
    yes_replace: Annotated[
        str | None,
        typer.Option(
            metavar="DATABASE",
            help="Replace it although it does not look like the one that was backed up.",
            envvar="BACKUPD_RESTORE_YES_REPLACE",
        ),
    ] = None,
    sql: Annotated[
        Path | None,
        typer.Option(
            "--sql",
            metavar="FILE",
            help="SQL to run in what was restored and compared, before anybody may connect.",
            envvar="BACKUPD_RESTORE_SQL",
        ),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Only check everything and say what would be done.", envvar="BACKUPD_RESTORE_PLAN"),
    ] = False,
    keep: Annotated[
        bool, typer.Option(help="Keep what was restored even if it is not equal.", envvar="BACKUPD_RESTORE_KEEP")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Connections of pg_restore.", envvar="BACKUPD_RESTORE_JOBS")
    ] = None,
    create_roles: Annotated[
        bool,
        typer.Option(
            "--create-roles",
            help="Make the roles that are missing, without LOGIN.",
            envvar="BACKUPD_RESTORE_CREATE_ROLES",
        ),
    ] = False,
    no_owner: Annotated[
        bool, typer.Option("--no-owner", help="Leave owners and grants out.", envvar="BACKUPD_RESTORE_NO_OWNER")
    ] = False,
    role: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="As --no-owner; all belongs to it.", envvar="BACKUPD_RESTORE_ROLE"),
    ] = None,
    json_: Json = False,
) -> None:
    """Restore a backup and compare it, table by table, before anybody may connect to it.

    With --table or --schema, each as often as needed, only those come back, with what they need and what belongs to
    them, and what stays behind is listed; only their part of the archive is read. A partition root brings its
    partitions; a foreign key comes when both its tables do. What a function's body names cannot be known: if a
    trigger, an index or a view fails for want of it, name that too.

    Exit codes: 0 ok, 2 no such backup or table, 14 what was restored is not what was backed up, 15 the target is not
    empty or lacks roles, 17 no room (with the bytes that are needed), 20 pg_restore failed; all in the README.
    """
    from backupd import restore as verb

    if resume is not None:
        _resume(resume, backup or as_ or into or replace_, json_)
        return
    if not backup:
        raise UsageError("no backup is named", hint="Give its ID; in a Job set BACKUPD_RESTORE_BACKUP.")
    name = _one_target(as_, into, replace_)
    here = _installation()
    wanted = _wanted(here, tables or (), schemas or ())
    if wanted and replace_:
        hint = "A part never takes a whole database's place: restore it with --as, and put its rows back from there."
        raise UsageError("--replace and --table or --schema are both given", hint=hint)
    if create_roles and (no_owner or role):
        hint = "Either the source's roles are made, or what they own belongs to another role."
        raise UsageError("--create-roles and --no-owner or --role are both given", hint=hint)
    loaded, found = here.settings, here.catalog()
    chosen = _find(found, backup)
    job = verb.Job(
        database=name,
        create=into is None,
        live=replace_,
        yes_replace=yes_replace,
        script=_script(sql),
        maintenance=loaded.target.database,
        jobs=jobs or loaded.dump.job_count,
        keep=keep,
        scratch=loaded.scratch.directory,
        scratch_limit_bytes=loaded.scratch.limit,
        wanted=wanted,
        create_roles=create_roles,
        owners=not (no_owner or role),
        role=role,
    )
    with here.target("restore", into or loaded.target.database) as access, terminal.shown() as progress:
        if plan:
            _print_plan(*verb.plan(access, found, here.clients(), chosen, job), json_)
            return
        restored = verb.restore(access, found, here.clients(), chosen, job, progress)
    if json_:
        _print_json({"message_type": "summary", "backup": str(name_of(chosen)), **asdict(restored)})
        return
    print(render.comparison(restored))
    if job.wanted:
        print(render.left_out(restored))
    for line in restored.roles:
        print(render.printable(line))
    seconds = ", ".join(f"{stage} {render.duration(spent)}" for stage, spent in restored.seconds.items())
    promised = "the chosen part of" if job.wanted else "what"
    print(f"database {name} holds {promised} backup {chosen.id} promises ({seconds})")
    if restored.kept is not None and restored.gap_seconds is not None:
        _print_swapped(name, restored.kept, restored.gap_seconds)


def _wanted(here: Installation, tables: Sequence[str], schemas: Sequence[str]) -> Wanted | None:
    """What is to be restored, by flags, else by a Job's variables; None is all."""
    of_job = here.selection_of_job()
    wanted = Wanted(tuple(tables) or of_job.tables, tuple(schemas) or of_job.schemas)
    return wanted if wanted.tables or wanted.schemas else None


@app.command()
def drill(
    backup: Annotated[
        str | None,
        typer.Argument(metavar="ID", help="Which backup; else latest.", envvar="BACKUPD_DRILL_BACKUP"),
    ] = None,
    newest_undrilled: Annotated[
        bool,
        typer.Option(
            "--newest-undrilled",
            help="By turns the newest of each database, if undrilled: for a schedule.",
            envvar="BACKUPD_DRILL_NEWEST_UNDRILLED",
        ),
    ] = False,
    json_: Json = False,
) -> None:
    """Restore a backup into a server that nobody needs, compare every row, time it, and note the result.

    The server is that of BACKUPD_DRILL__URL, or one that is started for it where PostgreSQL's server is installed.
    Exit codes: 0 ok, 14 it does not restore, or comes back as something else; 15 the server is not fit for it, 18 it
    is unreachable, 20 pg_restore failed for a reason that is not the backup's; all in the README.
    """
    from backupd import drill as verb

    if newest_undrilled and backup:
        raise UsageError("drill takes either an ID or --newest-undrilled")
    here = _installation()
    loaded, found = here.settings, here.catalog()
    chosen = _undrilled(found) if newest_undrilled else found.find(backup or "latest")
    if chosen is None:
        _print_json(None) if json_ else print("nothing to drill: the newest backup of each database was drilled")
        return
    if loaded.drill.url is None:  # libpq in this process reads its variables itself, and they are meant for the source
        settings.forget_libpq_variables()
    major = chosen.manifest.server_version_num // 10000
    with here.drill_server(major) as access, terminal.shown() as progress:
        job = verb.Job(access.database, loaded.dump.job_count, loaded.scratch.directory, loaded.scratch.limit)
        drilled = verb.drill(access, found, here.clients(), chosen, job, _now, progress)
    if json_:
        _print_json({**asdict(drilled), "message_type": "summary", "backup": _backup_json(drilled.backup)})
    else:
        print(render.drilled(drilled))


def _undrilled(found: catalog.Catalog) -> Backup | None:
    """The backup whose drill is due, of this installation's server where it has a name."""
    from backupd import drill as verb

    return verb.next_undrilled(found.backups(_installation().settings.source.server).backups)


def _one_target(as_: str | None, into: str | None, replace_: str | None) -> str:
    given = [name for name in (as_, into, replace_) if name is not None]
    if len(given) != 1:
        hint = (
            "--as (BACKUPD_RESTORE_AS) makes a new database, --into (BACKUPD_RESTORE_INTO) fills an empty one,"
            " --replace (BACKUPD_RESTORE_REPLACE) takes the place of a live one."
        )
        raise UsageError("restore needs one of --as NAME, --into NAME and --replace DATABASE", hint=hint)
    return given[0]


def _script(path: Path | None) -> "target.Script | None":
    from backupd import target

    if path is None:
        return None
    try:
        return target.Script(str(path), path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise UsageError(f"--sql: could not read {path}: {exc.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"--sql: file {path} is not UTF-8 text") from None


def _print_plan(plan: "preflight.Plan", errors: Sequence[BackupdError], as_json: bool) -> None:
    """Prints what would be done, and ends with the first failure's exit code, as `doctor` does."""
    _print_json(plan) if as_json else print(render.restore_plan(plan))
    if errors:
        raise typer.Exit(errors[0].exit_code)


def _print_swapped(live: str, kept: str, gap_seconds: float) -> None:
    print(f"it is {live} now; nobody could connect for {gap_seconds:.3f} s; the old one is kept as {kept}")
    print(f"`backupd undo {live}` swaps back; `backupd undo {live} --drop --yes` forgets the old one")


def _resume(live: str, other: str | None, as_json: bool) -> None:
    from backupd import restore as verb
    from backupd import swap

    if other is not None:
        raise UsageError("--resume takes no backup and no other target", hint="What is to be done stands in the names.")
    here = _installation()
    maintenance = here.settings.target.database
    with here.target("restore", maintenance) as access:
        resumed = swap.resume(access, maintenance, live)
    if resumed.swapped is not None:
        verb.log_refused(live, resumed.swapped.refused)
    if as_json:
        _print_json(resumed)
        return
    for name in resumed.dropped:
        print(f"dropped {name}, which had not proved equal: restore again")
    if resumed.swapped is not None:
        print(f"database {live} holds what was restored and compared")
        _print_swapped(live, resumed.swapped.kept, resumed.swapped.gap_seconds)
    elif not resumed.dropped:
        print(f"nothing is left to do: no restore beside {live} was cut off")


@app.command()
def undo(
    database: Annotated[str, typer.Argument(metavar="DATABASE", help="The live name.", envvar="BACKUPD_UNDO_DATABASE")],
    drop: Annotated[bool, typer.Option("--drop", help="Drop what was kept instead of swapping back.")] = False,
    yes: Yes = False,
    json_: Json = False,
) -> None:
    """Swap a database that `restore --replace` replaced back under its name; the restored one is kept in its turn."""
    from backupd import postgres, swap

    here = _installation()
    maintenance = here.settings.target.database
    with here.target("undo", maintenance) as access:
        if not drop:
            swapped = swap.undo(access, maintenance, database)
        elif yes:
            names = swap.forget(access, maintenance, database)
            _print_json({"dropped": names}) if json_ else print(f"dropped: {', '.join(names) or 'nothing was kept'}")
            return
        else:
            with postgres.connect(access, maintenance) as session:
                kept = swap.kept(session, database)
    if drop:
        _refuse_to_drop(database, [(ours.name, ours.size_bytes) for ours in kept])
    if json_:
        _print_json(swapped)
        return
    print(f"database {database} is again what it was before")
    print(f"nobody could connect for {swapped.gap_seconds:.3f} s; the other one is kept as {swapped.kept}")


def _refuse_to_drop(live: str, kept: Sequence[tuple[str, int]]) -> None:
    """Without --yes only says what would go; with nothing kept that is all there is to say."""
    if not kept:
        print(f"no database is kept that was {render.printable(live)} before")
        return
    names = ", ".join(f"{name} ({render.size(size_bytes)})" for name, size_bytes in kept)
    raise UsageError(f"would drop {names}", hint="Give --yes to drop it for good.")


@app.command()
def fetch(
    backup: BackupName, directory: Annotated[Path, typer.Argument(help="A folder to make, for pg_restore.")]
) -> None:
    """Write the members of a backup, each checked, into a new folder that pg_restore takes as it is."""
    from backupd import archive, scratch
    from backupd import restore as verb

    found = _installation().catalog()
    chosen = _find(found, backup)
    index = archive.read_index(found.store, catalog.archive_key(name_of(chosen)), chosen.manifest)
    with scratch.errors(directory):
        directory.mkdir(mode=0o700)
    with terminal.shown() as progress:
        verb.fetch(found, chosen, index, directory, progress)
    print(f"pg_restore --exit-on-error --jobs=4 --dbname=NAME {shlex.quote(str(directory))}")


# --- looking


@app.command("list")
def list_(
    database: Annotated[str | None, typer.Argument(help="Only of this DATABASE, or SERVER/DATABASE.")] = None,
    orphans: Annotated[bool, typer.Option("--orphans", help="Show remains of backups that failed instead.")] = False,
    json_: Json = False,
) -> None:
    """List the backups: each is complete, and was decoded to its last byte when it was taken."""
    listing = _listing(database)
    if orphans:
        rows = [(entry.key, entry.size_bytes, f"{entry.modified_at:%Y-%m-%d %H:%M}") for entry in listing.orphans]
        _print_json([asdict(entry) for entry in listing.orphans]) if json_ else print(
            render.table(("ORPHAN", "BYTES", "MODIFIED"), rows) if rows else "no orphans"
        )
    elif json_:
        _print_json([_backup_json(each) for each in listing.backups])
    else:
        print(render.listing(listing, _now()))
    for broken in listing.broken:
        _log.warning("backup.broken", key=broken.key, message=broken.error.message, action="backupd list --json")


@app.command()
def show(backup: BackupName, json_: Json = False) -> None:
    """Show what one backup holds and what was proven of it."""
    chosen = _installation().catalog().find(backup)
    _print_json(_backup_json(chosen)) if json_ else print(render.show(chosen))


@app.command()
def tables(backup: BackupName, json_: Json = False) -> None:
    """List the tables of a backup: rows, bytes and content fingerprint of each."""
    from backupd import archive

    found = _installation().catalog()
    chosen = found.find(backup)
    index = archive.read_index(found.store, catalog.archive_key(name_of(chosen)), chosen.manifest)
    _print_json(asdict(index.contract)) if json_ else print(render.tables(index))


@app.command()
def verify(
    backups: Annotated[list[str], typer.Argument(metavar="ID...|all", help="Backups, or all of them.")],
    json_: Json = False,
) -> None:
    """Read backups back: hash and decode every byte, and note the result. Exit code 14 if one is damaged."""
    from backupd import verify as verb

    found = _installation().catalog()
    chosen = found.backups().backups if backups == ["all"] else tuple(found.find(text) for text in backups)
    failures = []
    with terminal.shown() as progress:
        for each in chosen:
            try:
                verified = verb.verify(found, each, _now(), progress)
            except BackupdError as exc:
                failures.append((each.id, exc))
                _log.error("backup.unverified", backup=str(name_of(each)), message=exc.message, detail=exc.detail)
                continue
            _print_json(_backup_json(verified)) if json_ else print(f"{name_of(each)}: {render.proof(verified)}")
    _raise_failures(failures, len(chosen), "backups are not good")


@app.command()
def check(
    max_age: Annotated[
        str,
        typer.Option(
            "--max-age", metavar="26h", help="How old the newest good backup may be.", envvar="BACKUPD_CHECK_MAX_AGE"
        ),
    ],
    json_: Json = False,
) -> None:
    """One line and an exit code for any probe or monitor: 0 where every database is fresh, 19 where one is not."""
    here, allowed = _installation(), _duration(max_age, "--max-age")
    found = catalog.check(here.catalog().backups(), here.expected(), allowed, _now(), here.filter())
    if json_:
        _print_json([asdict(each) for each in found])
    stale = [each for each in found if each.stale]
    text = "; ".join(f"{each.label}: {each.reason}" for each in stale or found)
    if stale:
        hint = "Run `backupd backup`, or `backupd retire DATABASE` where it is gone for good."
        raise Stale(f"{len(stale)} of {len(found)} databases have no fresh backup", detail=f"{text}.", hint=hint)
    if not found:
        raise Stale("no database is expected and none is backed up", hint="Set BACKUPD_SOURCE__DATABASES.")
    if not json_:
        print(f"ok: {render.printable(text)}")


@app.command()
def doctor(json_: Json = False) -> None:
    """Try every permission and assumption once, and say what to do about each that fails."""
    from backupd import doctor as verb

    here = _installation()
    hidden = settings.secrets(here.settings)
    findings = [
        replace(each, text=log.scrub(each.text, hidden), hint=log.scrub(each.hint, hidden) if each.hint else None)
        for each in verb.examine(_doctor_subject(here), _now)
    ]
    if json_:
        _print_json(findings)
    else:
        for finding in findings:
            print(render.finding(finding))
    failed = next((finding for finding in findings if finding.status == "fail"), None)
    raise typer.Exit(failed.exit_code if failed else 0)


def _doctor_subject(here: Installation) -> "doctor_verb.Subject":
    from backupd import doctor as verb

    loaded, environment = here.settings, here.settings.environment
    server_names = ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE")
    has_source = loaded.source.model_fields_set - {"server"} or any(map(environment.get, server_names))
    password_names = ("BACKUPD_SOURCE__PASSWORD", "BACKUPD_SOURCE__PASSWORD_FILE", "PGPASSWORD", "PGPASSFILE")
    return verb.Subject(
        source=partial(here.source, "doctor") if has_source else None,
        databases=lambda access: here.databases(access, ()),
        password_from=next(filter(environment.get, password_names), None),
        passfile=Path(environment.get("PGPASSFILE") or Path.home() / ".pgpass"),
        clients=here.clients(),
        client_folders=loaded.dump.clients,
        options=here.dump_options(),
        scratch=loaded.scratch.directory,
        scratch_limit_bytes=loaded.scratch.limit,
        store_url=loaded.store.url,
        s3_options=loaded.s3_options(),
        policy=loaded.retention.policy(),
        second=(loaded.copy.url, loaded.copy_s3_options()) if loaded.copy.url else None,
    )


# --- keeping and removing


@app.command()
def copy(
    backup: BackupName,
    store_url: Annotated[
        str | None, typer.Argument(metavar="STORE_URL", help="The second store, else BACKUPD_COPY__URL.")
    ] = None,
    json_: Json = False,
) -> None:
    """Copy a backup to a second store, every hash checked on the way; one that is there already is fine."""
    from backupd import copy as verb

    here = _installation()
    second = here.second_catalog(store_url)
    if second is None:
        raise UsageError("no second store is named", hint="Give its URL, or set BACKUPD_COPY__URL.")
    found = here.catalog()
    chosen = _find(found, backup)
    with terminal.shown() as progress:
        copied = verb.copy(found, chosen, second, _now(), progress)
    if json_:
        _print_json({"store": second.store.url, "new": copied.new, **_backup_json(copied.backup)})
        return
    said = "is now" if copied.new else "is already"
    print(f"{name_of(chosen)}: {said} in {second.store.url}, {render.size(chosen.manifest.archive_bytes)}")


@app.command()
def prune(yes: Yes = False, json_: Json = False) -> None:
    """Show which of this server's backups the retention policy removes, and why; with --yes remove them."""
    loaded, found = _installation().settings, _installation().catalog()
    listing = found.backups(loaded.server_label)
    plan = retention.plan(listing.backups, loaded.retention.policy(), _now())
    if json_:
        _print_json(
            {"decisions": [_decision_json(each) for each in plan.decisions], "frozen": list(plan.frozen), "done": yes}
        )
    else:
        print(render.plan(plan))
    if yes:
        _carry_out(found, plan)
    elif plan.removed and not json_:
        print(f"{len(plan.removed)} to remove: nothing was removed, --yes removes them")


def _decision_json(decision: retention.Decision) -> dict[str, object]:
    return {"backup": str(name_of(decision.backup)), "keep": decision.keep, "reasons": decision.reasons}


@app.command()
def delete(backup: BackupName, yes: Yes = False) -> None:
    """Delete one backup, whatever the policy says."""
    found = _installation().catalog()
    chosen = found.find(backup)
    if chosen.pinned:
        raise UsageError(f"backup {chosen.id} is pinned", hint=f"Run `backupd unpin {chosen.id}` first.")
    if not yes:
        raise UsageError(f"would delete {name_of(chosen)}", hint="Give --yes to delete it.")
    found.delete(chosen)
    print(f"deleted {name_of(chosen)}")


@app.command()
def pin(backup: BackupName) -> None:
    """Keep a backup whatever the retention policy says."""
    _note_pin(backup, pinned=True)


@app.command()
def unpin(backup: BackupName) -> None:
    """Leave a pinned backup to the retention policy again."""
    _note_pin(backup, pinned=False)


def _note_pin(text: str, *, pinned: bool) -> None:
    found = _installation().catalog()
    chosen = found.find(text)
    found.note(chosen, "pinned", pinned, {}, _now())
    print(f"{'pinned' if pinned else 'unpinned'} {name_of(chosen)}")


@app.command()
def confirm(backup: BackupName) -> None:
    """Say that a backup is right although it looked wrong beside earlier ones: retention goes on from it."""
    found = _installation().catalog()
    chosen = found.find(backup)
    why = chosen.manifest.suspect
    if why is None:
        hint = "What verify or drill found wrong, only a better verify or drill takes back." if chosen.suspect else None
        raise UsageError(f"backup {chosen.id} did not look wrong when it was taken", hint=hint)
    found.note(chosen, "confirmed", True, {"why": why}, _now())
    print(f"confirmed {name_of(chosen)}: {render.printable(why)}")


@app.command()
def adopt(
    database: Annotated[str, typer.Argument(metavar="SERVER/DATABASE", help="The label that has a new identity.")],
    yes: Yes = False,
) -> None:
    """Take over a label's backups under its newest identity, after pg_upgrade: retention is frozen until then."""
    found = _installation().catalog()
    backups = _readable(found.database(database))
    identity = backups[0].source.system_identifier
    older = [each for each in backups if each.source.system_identifier != identity]
    for each in older:
        print(f"{'adopted' if yes else 'would adopt'} {name_of(each)} (was {each.source.system_identifier})")
        if yes:
            found.note(each, "adopted", True, {"system_identifier": identity}, _now())
    if not older:
        print(f"nothing to adopt: all {len(backups)} backups are of cluster {identity}")


@app.command()
def retire(
    database: Annotated[str, typer.Argument(metavar="SERVER/DATABASE", help="A database that is gone.")],
) -> None:
    """Stop expecting backups of a dropped database; its backups stay."""
    found = _installation().catalog()
    newest = _readable(found.database(database))[0]
    found.note(newest, "retired", True, {}, _now())
    print(f"retired {newest.source.database}: `backupd check` expects no new backup of it")


@app.command()
def demo() -> None:
    """Show the whole promise on a throw-away PostgreSQL, in under a minute: back up, destroy, restore, compare."""
    from backupd import demo as verb

    loaded = _installation().settings
    if "level" not in loaded.log.model_fields_set:  # events would drown the steps
        log.configure("warning", loaded.log.format, settings.secrets(loaded), sys.stderr, loaded.color)
    settings.forget_libpq_variables()
    verb.run(_show_step, _now, loaded.environment.get("PATH"))


def _show_step(shown: "demo_verb.Shown") -> None:
    """Prints what the demo shows, as the verbs print it, at once: somebody is watching."""
    text = str(shown)
    match shown:
        case catalog.Listing():
            text = render.listing(shown, _now())
        case Backup():
            text = render.show(shown)
        case tuple():
            text = render.table(("", "BEFORE", "BY HAND"), [(each.name, each.before, each.after) for each in shown])
        case str():
            pass
        case _:
            text = render.comparison(shown)
    print(text, flush=True)


# --- shared by the verbs


def _print_versions(wanted: bool) -> None:
    if not wanted:
        return
    from backupd import postgres
    from backupd.doctor import describe_client

    print(f"backupd {__version__}")
    try:
        for client in _installation().clients():
            print(f"pg_dump and pg_restore {describe_client(client)}")
    except BackupdError as exc:  # wrong settings are no reason to hide a version
        print(f"pg_dump and pg_restore were not looked for: {exc.message}")
    print(f"psycopg {metadata.version('psycopg')} with libpq {postgres.libpq_version()}")
    raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Show the versions of backupd and its clients.",
            callback=_print_versions,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """PostgreSQL backups that are proven to restore. Settings are BACKUPD_ variables: see the README."""


def _find(found: catalog.Catalog, text: str) -> Backup:
    chosen = found.find(text)
    if chosen.suspect:
        _log.warning("backup.suspect", backup=str(name_of(chosen)), why=chosen.suspect, action="choose another backup")
    return chosen


def _listing(text: str | None) -> catalog.Listing:
    """The store's backups, all or those of one database."""
    found = _installation().catalog()
    return found.backups() if text is None else found.database(text)


def _readable(listing: catalog.Listing) -> Sequence[Backup]:
    """The listing's backups, newest first, of which there is at least one; else what is wrong with them."""
    if not listing.backups:
        raise listing.broken[0].error if listing.broken else UsageError("only orphans are there")
    return listing.backups


def _duration(text: str, flag: str) -> timedelta:
    try:
        return notation.parse_duration(text)
    except ValueError as exc:
        raise UsageError(f"{flag} {exc}") from None


def _raise_failures(failures: Sequence[tuple[str, BackupdError]], total: int, what: str) -> None:
    """Raises the one failure, the failures' one class, or Partial, naming the losers."""
    if not failures:
        return
    first = failures[0][1]
    if total == 1:
        raise first
    kinds = {type(exc) for _, exc in failures}
    losers = ", ".join(name for name, _ in failures)
    detail = " ".join(f"{name}: {exc.message}." for name, exc in failures)
    kind = kinds.pop() if len(kinds) == 1 else Partial
    raise kind(f"{len(failures)} of {total} {what}: {losers}", detail=detail, hint=first.hint)
