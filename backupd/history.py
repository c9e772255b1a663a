"""What became of a database over time: how far each backup was proven, and for how long there was none. Pure.

A store remembers only what retention left, so that an old hole in the row of backups may be one that retention made. A
gap says which it is: where retention keeps every backup, or one of every hour or day, it is true that none was taken.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from backupd.manifest import Backup
from backupd.retention import Decision

PROOFS = ("suspect", "stored", "verified", "restored", "identical")
"""How far a backup was proven, by its level; each includes those before it."""

_DENSE = ("last ", "hour ", "day ", "within ", "no policy")
"""How the reasons begin of which retention keeps backups as dense as they were taken."""


@dataclass(frozen=True)
class Gap:
    """From when a backup ended until the next one did, more time than is expected; `until` is None where none came.

    `thinned` says that retention may have removed backups that were taken in between.
    """

    since: datetime
    until: datetime | None
    thinned: bool


def level(backup: Backup) -> int:
    """How far the backup was proven, as an index of PROOFS."""
    if backup.suspect is not None:
        return 0
    drilled, verified = backup.note("drilled"), backup.note("verified")
    if drilled is not None and drilled.ok:
        return 4 if drilled.facts.get("level") == "identical" else 3
    return 2 if verified is not None and verified.ok else 1


def gaps(
    good: Sequence[Backup], decisions: Mapping[str, Decision], max_age: timedelta, now: datetime
) -> tuple[Gap, ...]:
    """The gaps between good backups, which are newest first, and after the newest; the newest gap first.

    Without `decisions`, as for another installation's databases, each but the last may be retention's.
    """
    return tuple(_gaps(good, decisions, max_age, now))


def _gaps(
    good: Sequence[Backup], decisions: Mapping[str, Decision], max_age: timedelta, now: datetime
) -> Iterator[Gap]:
    if good and now - good[0].manifest.finished_at > max_age:
        yield Gap(good[0].manifest.finished_at, None, thinned=False)
    for later, earlier in pairwise(good):
        since, until = earlier.manifest.finished_at, later.manifest.finished_at
        if until - since > max_age:
            yield Gap(since, until, thinned=not _is_dense(decisions.get(earlier.id)))


def _is_dense(decision: Decision | None) -> bool:
    return decision is not None and any(reason.startswith(_DENSE) for reason in decision.reasons)
