"""`drill` and `demo`: restores that nobody needs, to see that they work."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from backupd import catalog, log, notice, render, settings, terminal
from backupd.commands import shared
from backupd.commands.run import reported
from backupd.errors import UsageError
from backupd.installation import Installation
from backupd.manifest import Backup

if TYPE_CHECKING:
    from backupd import demo as demo_verb
    from backupd import drill as drill_verb

app = typer.Typer()


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
    json_: shared.Json = False,
) -> None:
    """Restore a backup into a server that nobody needs, compare every row, time it, and note the result.

    The server is that of BACKUPD_DRILL__URL, or one that is started for it where PostgreSQL's server is installed.
    Exit codes: 0 ok, 14 it does not restore, or comes back as something else; 15 the server is not fit for it, 18 it
    is unreachable, 20 pg_restore failed for a reason that is not the backup's; all in the README.
    """
    if newest_undrilled and backup:
        raise UsageError("drill takes either an ID or --newest-undrilled")
    with reported("drill") as run:
        chosen = _undrilled(run.found) if newest_undrilled else run.found.find(backup or "latest")
        if chosen is None:
            nothing = "nothing to drill: the newest backup of each database was drilled"
            shared.print_json(None) if json_ else shared.say(nothing)
            return
        run.server = chosen.source.server
        drilled = _drill(run.here, run.found, chosen)
        run.note(chosen.source.database, "drill", chosen, drilled.seconds)
        run.notices.append(notice.of_drill(drilled.backup))
        if json_:
            whole = {**asdict(drilled), "message_type": "summary", "backup": shared.backup_json(drilled.backup)}
            shared.print_json(whole)
        else:
            shared.say(render.drilled(drilled))


def _drill(here: Installation, found: catalog.Catalog, chosen: Backup) -> "drill_verb.Drilled":
    from backupd import drill as verb

    loaded = here.settings
    if loaded.drill.url is None:  # libpq in this process reads its variables itself, and they are meant for the source
        settings.forget_libpq_variables()
    with here.drill_server(chosen.manifest.server_major) as access, terminal.shown() as progress:
        job = verb.Job(access.database, loaded.dump.job_count, loaded.scratch.directory, loaded.scratch.limit)
        return verb.drill(access, found, here.clients(), chosen, job, shared.now, progress)


def _undrilled(found: catalog.Catalog) -> Backup | None:
    """The backup whose drill is due, of this installation's server where it has a name."""
    from backupd import drill as verb

    return verb.next_undrilled(found.backups(shared.installation().settings.source.server).backups)


@app.command()
def demo() -> None:
    """Show the whole promise on a throw-away PostgreSQL, in under a minute: back up, destroy, restore, compare."""
    from backupd import demo as verb

    loaded = shared.installation().settings
    if "level" not in loaded.log.model_fields_set:  # events would drown the steps
        log.configure("warning", loaded.log.format, settings.secrets(loaded), sys.stderr, loaded.color)
    settings.forget_libpq_variables()
    verb.run(_show_step, shared.now, loaded.environment.get("PATH"))


def _show_step(shown: "demo_verb.Shown") -> None:
    """Prints what the demo shows, as the verbs print it, at once: somebody is watching."""
    text = str(shown)
    match shown:
        case catalog.Listing():
            text = render.listing(shown, shared.now())
        case Backup():
            text = render.show(shown)
        case tuple():
            text = render.table(("", "BEFORE", "BY HAND"), [(each.name, each.before, each.after) for each in shown])
        case str():
            pass
        case _:
            text = render.comparison(shown)
    shared.say(text, flush=True)
