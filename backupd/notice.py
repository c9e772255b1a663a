"""What of a run is worth telling, when again, and in which words. Pure: all of it follows from what the store holds.

A failure that repeats is told when it begins, when its reason changes, and then after 1, 2, 4, 8... days; so is a
backup that looks wrong. No record of what was told is kept: whether one of those days has come since the failure
before follows from the times of both, whoever looks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from backupd import failure, retention, words
from backupd.failure import Failure
from backupd.manifest import Backup
from backupd.retention import Policy
from backupd.selector import name_of
from backupd.status import Concern, Database, Status

FIRST_REPEAT = timedelta(days=1)
"""How long after its beginning a failure that goes on is told again; then after twice that, and so on."""

Kind = Literal["failed", "recovered", "succeeded for the first time", "needs a look", "was drilled"]

_URGENT: tuple[Kind, ...] = ("failed", "needs a look")


@dataclass(frozen=True)
class Notice:
    """One thing to tell about one database, in whole sentences."""

    kind: Kind
    database: str
    text: str


def is_repeated_in_time(first_at: datetime, previous_at: datetime, now: datetime) -> bool:
    """Whether one of the days on which something that began at `first_at` is told again lies since `previous_at`."""
    span = FIRST_REPEAT
    while first_at + span <= previous_at:
        span *= 2
    return first_at + span <= now


def of_failure(failed: Failure, before: Failure | None) -> Notice | None:
    """The failure, unless it only goes on; `before` is the one before it in its row."""
    if before and before.reason == failed.reason and not is_repeated_in_time(failed.first_at, before.at, failed.at):
        return None
    row = f" That is {failed.count} times in a row, since {failed.first_at:%Y-%m-%d %H:%M} UTC." if before else ""
    words_ = " ".join(filter(None, (f"{failed.message}.", failed.detail, failed.hint)))
    what = "" if failed.step == "backup" else f"{failed.step}: "
    return Notice("failed", failed.database, f"{what}{failed.reason} ({failed.exit_code}): {words_}{row}")


def of_error(verb: str, exc: BaseException) -> Notice:
    """That a run failed of which no database is known, or that a drill did."""
    return Notice("failed", verb, str(exc) or type(exc).__name__)


def of_success(taken: Backup, earlier: Sequence[Backup], failures: Sequence[Failure]) -> Notice | None:
    """That a database has its first backup, or one again after failures; `earlier` are its other backups."""
    succeeded_at = max((each.manifest.finished_at for each in earlier), default=None)
    over = [each for each in failures if failure.is_current(each, succeeded_at)]
    totals = taken.manifest.totals
    proof = f"Backup {taken.id} has {totals.rows} rows in {totals.tables} tables."
    if over:
        newest = max(over, key=lambda each: each.at)
        text = f"{proof} Before it {newest.count} in a row failed since {newest.first_at:%Y-%m-%d %H:%M} UTC."
        return Notice("recovered", taken.source.database, text)
    return None if earlier else Notice("succeeded for the first time", taken.source.database, proof)


def of_doubt(backups: Sequence[Backup], policy: Policy | None) -> Notice | None:
    """That the newest of a database's backups (newest first) is suspect, or that retention is frozen, if it is time."""
    row = list(_doubts(backups, policy))
    if not row:
        return None
    ended = [each.manifest.finished_at for each in backups[: len(row)]]
    same = len(row) > 1 and row[0][0] == row[1][0]
    if same and not is_repeated_in_time(ended[-1], ended[1], ended[0]):
        return None
    what, why = row[0]
    action = f"See `backupd show {name_of(backups[0])}` and `backupd prune`."
    return Notice("needs a look", backups[0].source.database, f"{what}: {why}. {action}")


def _doubts(backups: Sequence[Backup], policy: Policy | None) -> Iterator[tuple[str, str]]:
    """What was doubtful, and why, after the newest backup, after the one before it, and so on until all was well."""
    for place, newest in enumerate(backups):
        frozen = retention.plan(backups[place:], policy, newest.manifest.finished_at).frozen
        if newest.suspect is not None:
            yield "The newest backup looks wrong", newest.suspect
        elif frozen:
            yield "Retention is frozen", frozen[0].reason
        else:
            return


def of_drill(drilled: Backup) -> Notice:
    """How a drill ended that was noted."""
    note = drilled.note("drilled")
    facts = note.facts if note else {}
    seconds = facts.get("seconds")
    took = f" in {words.span(seconds)}" if isinstance(seconds, int | float) else ""
    text = f"Backup {drilled.id} was restored{took}: {facts.get('level', 'restored')}."
    return Notice("was drilled", drilled.source.database, text)


def message(server: str | None, notices: Sequence[Notice]) -> tuple[str, str]:
    """Title and body of one message for all of them, what is urgent first; no `server` where it is of several."""
    first = sorted(notices, key=lambda each: each.kind not in _URGENT)
    kinds = list(dict.fromkeys(each.kind for each in first))
    said = "; ".join(f"{_names(first, kind)} {kind}" for kind in kinds)
    whose = " ".join(filter(None, ("backupd", server)))
    return f"{whose}: {said}", "\n\n".join(f"{each.database} {each.kind}. {each.text}" for each in first)


def digest(status: Status) -> tuple[str, str]:
    """Title and body of a message on how every database fares, the worst first."""
    bad = status.count("danger") + status.count("warning")
    known = len(status.databases)
    how = f"of {known} databases {bad} need a look" if bad else f"every database is safe ({known})"
    title = f"backupd {status.expected.server}: {how if known else 'no database is known'}"
    parts = [
        *("\n".join(_concern(each)) for each in status.concerns),
        *("\n".join(_lines(each, status.now)) for each in status.databases),
    ]
    return title, "\n\n".join(parts)


def _lines(database: Database, now: datetime) -> Iterator[str]:
    yield f"{database.label}: {database.state}"
    if newest := database.newest:
        manifest = newest.manifest
        age = words.span((now - manifest.finished_at).total_seconds())
        yield f"newest good backup {newest.id}, {age} old, {manifest.totals.rows} rows; {len(database.backups)} in all"
    if drilled := database.newest_drilled:
        yield of_drill(drilled).text
    for concern in database.concerns:
        yield from _concern(concern)


def _concern(concern: Concern) -> Iterator[str]:
    yield f"- {concern.text}. {concern.hint}".strip()


def _names(notices: Sequence[Notice], kind: Kind) -> str:
    names = list(dict.fromkeys(each.database for each in notices if each.kind == kind))
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} databases"
