"""`restore`, `undo` and `fetch`: what brings a backup back, and takes that back."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backupd import render, terminal
from backupd.commands import shared
from backupd.commands.run import reported
from backupd.errors import BackupdError, UsageError
from backupd.installation import Installation
from backupd.selection import Wanted
from backupd.selector import name_of

if TYPE_CHECKING:
    from backupd import preflight, target

app = typer.Typer()


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
    json_: shared.Json = False,
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
    here = shared.installation()
    wanted = _wanted(here, tables or (), schemas or ())
    if wanted and replace_:
        hint = "A part never takes a whole database's place: restore it with --as, and put its rows back from there."
        raise UsageError("--replace and --table or --schema are both given", hint=hint)
    if create_roles and (no_owner or role):
        hint = "Either the source's roles are made, or what they own belongs to another role."
        raise UsageError("--create-roles and --no-owner or --role are both given", hint=hint)
    loaded, found = here.settings, here.catalog()
    chosen = shared.find(found, backup)
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
    with (
        reported("restore", tells=False) as run,
        here.target("restore", into or loaded.target.database) as access,
        terminal.shown() as progress,
    ):
        if plan:
            _print_plan(*verb.plan(access, found, here.clients(), chosen, job), json_)
            return
        restored = verb.restore(access, found, here.clients(), chosen, job, progress)
        run.note(restored.database, "restore", chosen, sum(restored.seconds.values()))
    if json_:
        shared.print_json({"message_type": "summary", "backup": str(name_of(chosen)), **asdict(restored)})
        return
    shared.say(render.comparison(restored))
    if job.wanted:
        shared.say(render.left_out(restored))
    for line in restored.roles:
        shared.say(line)
    seconds = ", ".join(f"{stage} {render.duration(spent)}" for stage, spent in restored.seconds.items())
    promised = "the chosen part of" if job.wanted else "what"
    shared.say(f"database {name} holds {promised} backup {chosen.id} promises ({seconds})")
    if restored.kept is not None and restored.gap_seconds is not None:
        _print_swapped(name, restored.kept, restored.gap_seconds)


def _wanted(here: Installation, tables: Sequence[str], schemas: Sequence[str]) -> Wanted | None:
    """What is to be restored, by flags, else by a Job's variables; None is all."""
    of_job = here.selection_of_job()
    wanted = Wanted(tuple(tables) or of_job.tables, tuple(schemas) or of_job.schemas)
    return wanted if wanted.tables or wanted.schemas else None


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
    shared.print_json(plan) if as_json else shared.say(render.restore_plan(plan))
    if errors:
        raise typer.Exit(errors[0].exit_code)


def _print_swapped(live: str, kept: str, gap_seconds: float) -> None:
    shared.say(f"it is {live} now; nobody could connect for {gap_seconds:.3f} s; the old one is kept as {kept}")
    shared.say(f"`backupd undo {live}` swaps back; `backupd undo {live} --drop --yes` forgets the old one")


def _resume(live: str, other: str | None, as_json: bool) -> None:
    from backupd import restore as verb
    from backupd import swap

    if other is not None:
        raise UsageError("--resume takes no backup and no other target", hint="What is to be done stands in the names.")
    here = shared.installation()
    maintenance = here.settings.target.database
    with here.target("restore", maintenance) as access:
        resumed = swap.resume(access, maintenance, live)
    if resumed.swapped is not None:
        verb.log_refused(live, resumed.swapped.refused)
    if as_json:
        shared.print_json(resumed)
        return
    for name in resumed.dropped:
        shared.say(f"dropped {name}, which had not proved equal: restore again")
    for name in resumed.left:
        shared.say(f"could not drop {name}, which had not proved equal: the log says why")
    if resumed.swapped is not None:
        shared.say(f"database {live} holds what was restored and compared")
        _print_swapped(live, resumed.swapped.kept, resumed.swapped.gap_seconds)
    elif not (resumed.dropped or resumed.left):
        shared.say(f"nothing is left to do: no restore beside {live} was cut off")


@app.command()
def undo(
    database: Annotated[str, typer.Argument(metavar="DATABASE", help="The live name.", envvar="BACKUPD_UNDO_DATABASE")],
    drop: Annotated[bool, typer.Option("--drop", help="Drop what was kept instead of swapping back.")] = False,
    yes: shared.Yes = False,
    json_: shared.Json = False,
) -> None:
    """Swap a database that `restore --replace` replaced back under its name; the restored one is kept in its turn."""
    from backupd import obstacles, postgres, swap

    here = shared.installation()
    maintenance = here.settings.target.database
    with here.target("undo", maintenance) as access:
        if not drop:
            swapped = swap.undo(access, maintenance, database)
        elif yes:
            names = swap.forget(access, maintenance, database)
            shared.print_json({"dropped": names}) if json_ else shared.say(
                f"dropped: {', '.join(names) or 'nothing was kept'}"
            )
            return
        else:
            with postgres.connect(access, maintenance) as session:
                kept = obstacles.kept(session, database)
    if drop:
        _refuse_to_drop(database, [(ours.name, ours.size_bytes) for ours in kept])
    if json_:
        shared.print_json(swapped)
        return
    shared.say(f"database {database} is again what it was before")
    shared.say(f"nobody could connect for {swapped.gap_seconds:.3f} s; the other one is kept as {swapped.kept}")


def _refuse_to_drop(live: str, kept: Sequence[tuple[str, int]]) -> None:
    """Without --yes only says what would go; with nothing kept that is all there is to say."""
    if not kept:
        shared.say(f"no database is kept that was {live} before")
        return
    names = ", ".join(f"{name} ({render.size(size_bytes)})" for name, size_bytes in kept)
    raise UsageError(f"would drop {names}", hint="Give --yes to drop it for good.")


@app.command()
def fetch(
    backup: shared.BackupName, directory: Annotated[Path, typer.Argument(help="A folder to make, for pg_restore.")]
) -> None:
    """Write the members of a backup, each checked, into a new folder that pg_restore takes as it is."""
    from backupd import archive, scratch
    from backupd import fetch as verb

    found = shared.installation().catalog()
    chosen = shared.find(found, backup)
    index = archive.read_index(found.archive(chosen))
    with scratch.errors(directory):
        directory.mkdir(mode=0o700)
    with terminal.shown() as progress:
        verb.members(found, chosen, index, directory, progress)
    shared.say(f"pg_restore --exit-on-error --jobs=4 --dbname=NAME {shlex.quote(str(directory))}")
