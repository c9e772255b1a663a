"""What an auditor asks for, of a stretch of time: which databases, how often, with which gaps, proven how, kept why.

Pure: `report(status, since, until)` makes values that are JSON as they stand, without any object of another module.
Everything is what the store holds now: a backup that retention removed since is not in it, and where that thins a row
the report says so instead of guessing. What is claimed of a backup are the words that its notes allow.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from backupd import __version__, history
from backupd.errors import UsageError
from backupd.manifest import Backup
from backupd.retention import Policy
from backupd.status import Database, State, Status


@dataclass(frozen=True)
class Taken:
    """One backup of the period: how far it was proven, and why it is still there."""

    id: str
    started_at: datetime
    seconds: float
    archive_bytes: int
    tables: int
    rows: int
    proof: str
    suspect: str | None
    pinned: bool
    encrypted: bool
    sha256: str
    kept_because: tuple[str, ...]


@dataclass(frozen=True)
class Drill:
    """A drill of the period: what came back, how long it took, and from which backup."""

    at: datetime
    backup: str
    ok: bool
    level: str
    seconds: float | None
    rows: int | None
    server_version: str
    error: str | None


@dataclass(frozen=True)
class Hole:
    """Longer without a new good backup than is expected; `until` is None where none came.

    `thinned` says that retention keeps fewer there than were taken, so that it may not have been one.
    """

    since: datetime
    until: datetime | None
    hours: float
    thinned: bool


@dataclass(frozen=True)
class Failed:
    """A run that failed; those before it in a row are counted, not listed."""

    at: datetime
    step: str
    count: int
    exit_code: int
    reason: str
    message: str


@dataclass(frozen=True)
class Line:
    """One database: what is in the store of the period, the usual and the longest time between two good backups.

    These two only where retention left what was taken; where a gap may be retention's, nothing is known of it.
    """

    server: str
    database: str
    system_identifiers: tuple[str, ...]
    state: State
    concerns: tuple[str, ...]
    usual_hours: float | None
    longest_hours: float | None
    gaps: tuple[Hole, ...]
    drills: tuple[Drill, ...]
    failures: tuple[Failed, ...]
    backups: tuple[Taken, ...]


@dataclass(frozen=True)
class Expectation:
    """What is expected of each database, in hours, and what retention keeps; None where nothing is asked for."""

    backup_hours: float
    verified_hours: float | None
    drilled_hours: float | None
    retention: Policy | None


@dataclass(frozen=True)
class Report:
    """The whole report; times are UTC. Problems of the store itself are in `concerns`."""

    since: datetime
    until: datetime
    made_at: datetime
    made_by: str
    store_url: str
    server: str
    expected: Expectation
    concerns: tuple[str, ...]
    databases: tuple[Line, ...]


def report(status: Status, since: datetime, until: datetime) -> Report:
    """The report of a period, which may not lie in the future. Raises UsageError where it is none."""
    if until > status.now:
        raise UsageError(f"the period ends in the future: {until:%Y-%m-%d %H:%M} UTC")
    if since >= until:
        raise UsageError(f"the period begins {since:%Y-%m-%d %H:%M}, and ends {until:%Y-%m-%d %H:%M} UTC")
    expected = status.expected
    return Report(
        since=since,
        until=until,
        made_at=status.now,
        made_by=f"backupd {__version__}",
        store_url=status.reading.store_url,
        server=expected.server,
        expected=Expectation(
            backup_hours=_hours(expected.max_age),
            verified_hours=None if expected.verified_within is None else _hours(expected.verified_within),
            drilled_hours=None if expected.drilled_within is None else _hours(expected.drilled_within),
            retention=expected.policy,
        ),
        concerns=tuple(concern.text for concern in status.concerns),
        databases=tuple(
            _line(each, since, until, status.now) for each in sorted(status.databases, key=lambda each: each.label)
        ),
    )


def _line(database: Database, since: datetime, until: datetime, now: datetime) -> Line:
    backups = [each for each in database.backups if since <= each.manifest.started_at < until]
    between = sorted(_hours(length) for length in _between(database, since, until))
    return Line(
        server=database.label.server,
        database=database.label.database,
        system_identifiers=tuple(sorted({each.manifest.source.system_identifier for each in backups})),
        state=database.state,
        concerns=tuple(concern.text for concern in database.concerns),
        usual_hours=between[len(between) // 2] if between else None,
        longest_hours=between[-1] if between else None,
        gaps=tuple(_holes(database, since, until, now)),
        drills=tuple(_drills(database.backups, since, until)),
        failures=tuple(
            Failed(each.at, each.step, each.count, each.exit_code, each.reason, each.message)
            for each in database.failures
            if since <= each.at < until
        ),
        backups=tuple(_taken(each, database) for each in backups),
    )


def _between(database: Database, since: datetime, until: datetime) -> Iterator[timedelta]:
    """From one good backup of the period to the next, but for where retention may have removed those in between."""
    thinned = {gap.until for gap in database.gaps if gap.thinned}
    finished = [each.manifest.finished_at for each in database.good if since <= each.manifest.started_at < until]
    return (later - earlier for later, earlier in pairwise(finished) if later not in thinned)


def _holes(database: Database, since: datetime, until: datetime, now: datetime) -> Iterator[Hole]:
    for gap in database.gaps:
        if gap.since < until and (gap.until or now) > since:
            yield Hole(gap.since, gap.until, _hours((gap.until or now) - gap.since), gap.thinned)


def _drills(backups: Sequence[Backup], since: datetime, until: datetime) -> Iterator[Drill]:
    """The newest drill of each backup, where it was in the period; the newest drill first."""
    notes = [(note, backup) for backup in backups if (note := backup.note("drilled")) is not None]
    for note, backup in sorted(notes, key=lambda pair: pair[0].at, reverse=True):
        if since <= note.at < until:
            seconds, rows = note.facts.get("seconds"), note.facts.get("rows")
            error = note.facts.get("error")
            yield Drill(
                at=note.at,
                backup=backup.id,
                ok=note.ok,
                level=str(note.facts.get("level", "restored")) if note.ok else "failed",
                seconds=float(seconds) if isinstance(seconds, int | float) and math.isfinite(seconds) else None,
                rows=rows if isinstance(rows, int) else None,
                server_version=str(note.facts.get("server_version", "")),
                error=None if error is None else str(error),
            )


def _taken(backup: Backup, database: Database) -> Taken:
    manifest, decision = backup.manifest, database.decisions.get(backup.id)
    return Taken(
        id=backup.id,
        started_at=manifest.started_at,
        seconds=(manifest.finished_at - manifest.started_at).total_seconds(),
        archive_bytes=manifest.archive_bytes,
        tables=manifest.totals.tables,
        rows=manifest.totals.rows,
        proof=history.PROOFS[history.level(backup)],
        suspect=backup.suspect,
        pinned=backup.pinned,
        encrypted=bool(manifest.recipients),
        sha256=manifest.archive_sha256,
        kept_because=() if decision is None or not decision.keep else decision.reasons,
    )


def _hours(length: timedelta) -> float:
    return round(length / timedelta(hours=1), 1)
