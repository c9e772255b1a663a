"""Whether each database has a good backup that is new enough, and what failed since: `check`'s answer. Pure."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from backupd import failure
from backupd.catalog import Listing
from backupd.manifest import Backup, Filter
from backupd.selector import Label, name_of


@dataclass(frozen=True)
class Freshness:
    """How an expected database fares: when its newest good backup ended, whether that is too long ago, in words."""

    label: Label
    finished_at: datetime | None
    stale: bool
    reason: str


def check(
    listing: Listing,
    expected: Sequence[Label] | None,
    max_age: timedelta,
    now: datetime,
    patterns: Filter | None = None,
) -> tuple[Freshness, ...]:
    """Whether each expected database has a good backup that ended within `max_age`; a pure function.

    Expected are the labels that are given, or all that the listing knows, but for those retired since their newest
    backup. `patterns` is the installation's own filter: a backup with another filter, or without, is no substitute.
    """
    found: dict[Label, list[Backup]] = defaultdict(list)
    for backup in listing.backups:
        found[name_of(backup).label].append(backup)
    known = {*found, *(broken.name.label for broken in listing.broken), *(each.label for each in listing.failures)}
    labels = known if expected is None else {*expected}
    return tuple(
        _after_failures(
            _freshness(label, found[label], good(found[label], patterns), max_age, now),
            listing.failures,
        )
        for label in sorted(labels)
        if not is_retired(found[label])
    )


def good(backups: Sequence[Backup], patterns: Filter | None) -> tuple[Backup, ...]:
    """Those that nothing speaks against, and that were filtered alike: another filter is no substitute."""
    return tuple(each for each in backups if each.suspect is None and each.manifest.filter == patterns)


def why_none(backups: Sequence[Backup]) -> str:
    """Why none of these, which are all of a database, is a good one, in words."""
    if any(each.suspect is None for each in backups):
        return "its good backups have another filter than is set here"
    return "all its backups are suspect" if backups else "it has no backup"


def is_retired(backups: Sequence[Backup]) -> bool:
    """Whether a database was retired, and no backup of it has begun since."""
    notes = [note for backup in backups if (note := backup.note("retired"))]
    newest = max(notes, key=lambda note: note.at, default=None)
    taken = [backup.manifest.started_at for backup in backups if backup.untrusted is None]
    return newest is not None and newest.ok and all(started_at <= newest.at for started_at in taken)


def _after_failures(freshness: Freshness, failures: Sequence[failure.Failure]) -> Freshness:
    """The same, with what failed since in its reason."""
    newest = next((each for each in failures if each.label == freshness.label), None)
    if newest is None or not failure.is_current(newest, freshness.finished_at):
        return freshness
    text = f"{freshness.reason}; {newest.step} failed {newest.count} times since, at last with {newest.reason}"
    return replace(freshness, reason=text)


def _freshness(
    label: Label, backups: Sequence[Backup], counting: Sequence[Backup], max_age: timedelta, now: datetime
) -> Freshness:
    if not counting:
        return Freshness(label, None, True, why_none(backups))
    newest = counting[0].manifest
    age = now - newest.finished_at
    if newest.started_at > now:
        return Freshness(label, newest.finished_at, True, f"backup {newest.id} lies in the future: a clock is wrong")
    reason = f"the newest good backup {newest.id} ended {age / timedelta(hours=1):.1f} h ago"
    return Freshness(label, newest.finished_at, age > max_age, reason)
