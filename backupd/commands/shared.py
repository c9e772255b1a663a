"""What the verbs' functions share: the settings once, the clock, what goes to stdout, and failures of several as one.

A module of its own, since the verbs stand in several and cli.py imports them all.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from backupd import log, render, retention, settings
from backupd.catalog import Catalog
from backupd.errors import BackupdError, Partial, Retained
from backupd.installation import Installation
from backupd.manifest import Backup, to_json
from backupd.selector import name_of

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do it; without this only say what would be done.")]
BackupName = Annotated[
    str, typer.Argument(metavar="ID", help="An id or its first characters, latest, app@latest, app@before:TIME.")
]

_log = log.get_logger()

_flags: dict[str, str] = {}


@cache
def installation() -> Installation:
    """The settings, when a verb first asks: help needs none, and must not fail for a wrong one."""
    loaded = settings.from_process(_flags)
    log.configure(loaded.log.level, loaded.log.format, settings.secrets(loaded), sys.stderr, loaded.color)
    return Installation(loaded)


def begin() -> None:
    """Forgets the settings and flags of an earlier command line of this process."""
    installation.cache_clear()
    _flags.clear()


def set_flag(variable: str, value: str) -> None:
    """Lets a flag before the verb win over the setting of that variable."""
    _flags[variable] = value


def now() -> datetime:
    """The only clock of the program: all else gets it as an argument."""
    return datetime.now(UTC)


def say(text: str, *, flush: bool = False) -> None:
    """Prints text for people. What is not printable in it is escaped: whoever names a database commands no terminal."""
    print(render.printable_lines(text), flush=flush)


def put(text: str) -> None:
    """Prints text for programs, as it is."""
    print(text)


def print_json(value: object) -> None:
    """Prints one line of JSON."""
    put(json_text(value))


def json_text(value: object) -> str:
    """One line of JSON: dataclasses as objects, times as ISO 8601, spans of time in seconds, all in ASCII."""
    return json.dumps(value, default=_plain, ensure_ascii=True)


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def backup_json(backup: Backup) -> dict[str, Any]:
    """A backup as `--json` shows it: its manifest, and what is known of it since."""
    document: dict[str, Any] = json.loads(to_json(backup.manifest))
    notes = [json.loads(to_json(note)) for note in backup.notes]
    known = {"untrusted": backup.untrusted, "suspect": backup.suspect, "pinned": backup.pinned, "notes": notes}
    return document | {"name": str(name_of(backup)), **known}


def find(found: Catalog, text: str) -> Backup:
    """The backup that an ID names, with a warning where it is suspect: somebody is about to rely on it."""
    chosen = found.find(text)
    if chosen.suspect:
        _log.warning("backup.suspect", backup=str(name_of(chosen)), why=chosen.suspect, action="choose another backup")
    return chosen


def raise_failures(failures: Sequence[tuple[str, BackupdError]], total: int, what: str) -> None:
    """Raises the one failure, the failures' one class, or Partial, naming the losers."""
    if not failures:
        return
    first = failures[0][1]
    if total == 1:
        raise first
    kinds = {type(exc) for _, exc in failures}
    losers = list(dict.fromkeys(name for name, _ in failures))
    detail = " ".join(f"{name}: {exc.message}." for name, exc in failures)
    kind = kinds.pop() if len(kinds) == 1 else Partial
    raise kind(f"{len(losers)} of {total} {what}: {', '.join(losers)}", detail=detail, hint=first.hint)


def prune_after(found: Catalog, taken: Backup, policy: retention.Policy | None) -> None:
    """Applies the policy, if there is one, to the backups of that database."""
    if policy is None:
        return
    listing = found.backups(taken.source.server, taken.source.database)
    carry_out(found, retention.plan(listing.backups, policy, now()))


def carry_out(found: Catalog, plan: retention.Plan) -> list[tuple[Backup, Retained]]:
    """Deletes what a plan removes, oldest first; says what is frozen. Returns what the store keeps, and why.

    After the first that these credentials may not delete the newer ones are not tried: they may not either.
    """
    for frozen in plan.frozen:
        _log.warning("retention.frozen", database=frozen.scope.database, reason=frozen.reason, action="backupd prune")
    retained: list[tuple[Backup, Retained]] = []
    refused: Retained | None = None
    for decision in reversed(plan.decisions):
        if decision.keep:
            continue
        kept = refused or _delete(found, decision.backup)
        if kept is not None:
            refused = kept if kept.until is None else None
            retained.append((decision.backup, kept))
        else:
            _log.info("backup.pruned", backup=str(name_of(decision.backup)), reasons=list(decision.reasons))
    _say_retained(retained)
    return retained


def _delete(found: Catalog, backup: Backup) -> Retained | None:
    """Deletes it, or returns why the store keeps it."""
    try:
        found.delete(backup)
    except Retained as exc:
        return exc
    return None


def _say_retained(retained: Sequence[tuple[Backup, Retained]]) -> None:
    """A lock that holds is what was wanted; rights that lack let the store drift from the policy."""
    for backup, exc in retained:
        if exc.until is not None:
            _log.info("backup.retained", backup=str(name_of(backup)), until=exc.until.isoformat())
    drifted = [exc for _, exc in retained if exc.until is None]
    if drifted:
        action = "leave it to a lifecycle rule: `backupd doctor --print-lifecycle` prints one"
        _log.warning("retention.drift", backups=len(drifted), message=drifted[0].message, action=action)
