"""The command line: every verb under one name, errors as people or programs read them, and exit codes.

stdout is the result, stderr the log. Each verb (in `backupd.commands`) loads the settings, builds values, calls one
function and prints what it returned; configuration ends there. What a verb needs is imported in it: `backupd list` on
a directory imports neither psycopg nor boto3.
"""

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Annotated, TextIO

import typer

from backupd import __version__, log, render, settings, signals
from backupd.commands import backup, drill, keep, look, report, restore, serve, shared
from backupd.errors import BackupdError, Interrupted, UsageError

app = typer.Typer(
    name="backupd",
    help="PostgreSQL backups that are proven to restore. Settings are BACKUPD_ variables: see the README.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (backup, restore, drill, look, keep, report, serve):
    app.add_typer(group.app)


class LogFormat(StrEnum):
    """What --log-format takes."""

    json = "json"
    console = "console"


_TERMINATION_LOG = Path("/dev/termination-log")  # where Kubernetes takes a container's last words from
_log = log.get_logger()


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code; errors are printed as people or programs read them."""
    shared.begin()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that this terminal cannot show is no failure
    try:
        code = _run_app(list(arguments) or _command())
        if _undelivered(sys.stdout):
            raise UsageError("could not write the result to stdout", detail="The rest of the run went well.")
    except (BackupdError, Interrupted) as exc:
        if isinstance(exc, Interrupted):
            signals.ignore()
        _print_error(exc)
        _leave_message(exc)
        code = exc.exit_code
    _undelivered(sys.stderr)
    return code


def _run_app(arguments: list[str]) -> int:
    try:
        app(arguments)
    except SystemExit as exc:  # typer has printed what was wrong with the arguments
        return exc.code if isinstance(exc.code, int) else 2
    return 0


def _undelivered(stream: TextIO) -> bool:
    """Whether what was printed is lost, as on a full disk; not where a reader, such as `head`, has had enough.

    What is left of it then goes nowhere: at its end Python would try again, and put 120 in place of the exit code.
    """
    try:
        stream.flush()
    except OSError as exc:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return not isinstance(exc, BrokenPipeError)
    return False


def _command() -> list[str]:
    """The verb that a Job's environment names, where no arguments are given."""
    command = shared.installation().settings.environment.get("BACKUPD_COMMAND")
    return [command] if command else []


def _print_error(exc: BackupdError | Interrupted) -> None:
    error = BackupdError(str(exc)) if isinstance(exc, Interrupted) else exc
    loaded = shared.installation().settings if shared.installation.cache_info().currsize else None
    if loaded is None:  # it is they that are wrong, so nothing has set up the log
        log.configure("info", "auto", (), sys.stderr)
    if log.is_json(loaded.log.format if loaded else "auto", sys.stderr):
        fields = {"message": error.message, "detail": error.detail, "hint": error.hint}
        _log.error("run.failed", exit_code=exc.exit_code, reason=exc.reason, **fields)
    else:
        with contextlib.suppress(OSError):  # the exit code is left
            print(log.scrub(render.error(error), settings.secrets(loaded) if loaded else ()), file=sys.stderr)


def _leave_message(exc: BackupdError | Interrupted) -> None:
    """Leaves the reason where `kubectl describe` shows it, when this is a container of Kubernetes."""
    if not _TERMINATION_LOG.is_file():
        return
    secrets = settings.secrets(shared.installation().settings) if shared.installation.cache_info().currsize else ()
    text = render.error(exc) if isinstance(exc, BackupdError) else str(exc)
    with contextlib.suppress(OSError):
        _TERMINATION_LOG.write_text(log.scrub(f"{exc.reason} ({exc.exit_code})\n{text}", secrets)[:4000])


def _print_versions(wanted: bool) -> None:
    if not wanted:
        return
    from backupd import postgres
    from backupd.clients import describe

    shared.say(f"backupd {__version__}")
    try:
        for client in shared.installation().clients():
            shared.say(f"pg_dump and pg_restore {describe(client)}")
    except BackupdError as exc:  # wrong settings are no reason to hide a version
        shared.say(f"pg_dump and pg_restore were not looked for: {exc.message}")
    shared.say(f"psycopg {metadata.version('psycopg')} with libpq {postgres.libpq_version()}")
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
    log_format: Annotated[
        LogFormat | None, typer.Option(help="How to log to stderr, instead of BACKUPD_LOG__FORMAT.")
    ] = None,
) -> None:
    """PostgreSQL backups that are proven to restore. Settings are BACKUPD_ variables: see the README."""
    if log_format is not None:
        shared.set_flag("BACKUPD_LOG__FORMAT", log_format)
