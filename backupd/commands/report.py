"""`report`: what an auditor asks for, as one HTML file or as JSON."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backupd import notation
from backupd.commands import shared
from backupd.errors import UsageError
from backupd.selector import parse_time

if TYPE_CHECKING:
    from backupd.report import Report

app = typer.Typer()


@app.command()
def report(
    since: Annotated[
        str, typer.Option("--since", metavar="90d|TIME", help="Where the period begins, or how long it is.")
    ] = "90d",
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Where it ends; else now.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write it there instead of to stdout.")
    ] = None,
    json_: shared.Json = False,
) -> None:
    """Prove to an auditor what was backed up, how often, with which gaps, and what drills restored: one HTML file."""
    from backupd import report as verb
    from backupd import status

    now = shared.now()
    begin, end = period(since, until, now)
    here = shared.installation()
    found = here.catalog()
    listing = found.backups()
    expected = here.expectations(here.expected(), now)
    seen = status.status(listing, expected, status.Reading(found.store.url, now), now)
    made = verb.report(seen, begin, end)
    text = shared.json_text(made) if json_ else _html(made)
    if output is None:
        shared.put(text)
    else:
        _write(output, text)


def period(since: str, until: str | None, now: datetime) -> tuple[datetime, datetime]:
    """The times that the two options mean. Raises UsageError."""
    end = now if until is None else parse_time(until)
    try:
        length: timedelta | None = notation.parse_duration(since)
    except ValueError:
        length = None
    try:
        return (parse_time(since) if length is None else end - length), end
    except OverflowError:
        raise UsageError(f"--since {since} lies before all time") from None


def _html(made: "Report") -> str:
    try:
        from backupd.web import pages
    except ModuleNotFoundError as exc:
        hint = "Run: pip install 'backupd[serve]', or give --json."
        raise UsageError(f"a page needs {exc.name}, which is not installed", hint=hint) from None
    return pages.audit(made)


def _write(path: Path, text: str) -> None:
    """Writes the file whole or not at all: a report that is cut would still look like one."""
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_text(f"{text}\n", encoding="utf-8")
        beside.replace(path)
    except OSError as exc:
        beside.unlink(missing_ok=True)
        raise UsageError(f"could not write {path}", detail=f"{exc.strerror}.") from None
