"""The shapes of the small charts: where their marks lie, as the data of SVG paths. Pure.

Shapes only: the templates write the markup, so that nothing here needs escaping. Every chart stretches to its place,
whatever the screen: marks are strokes that keep their width, and words stand beside the drawing, not in it. A mark's
height and place say what its colour says, and `text` says it to those who do not see it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from backupd import words
from backupd.history import PROOFS, Gap, level
from backupd.manifest import Backup
from backupd.status import Database

STRIP_DAYS = 30
TIMELINE_DAYS = 90
_LEAST_DAYS = 14
WIDTH = 1000
_POINTS = 240
"""The most points of a line: two to a pixel of a phone are enough."""

_BASE = 20.0
"""Where proofs stand: what was proven rises from here, and what failed hangs below."""

_STEP = 4.5


@dataclass(frozen=True)
class Chart:
    """Paths by kind, in a box of `width` and `height`; the same in words; and labels in equal distances below it."""

    width: int
    height: int
    paths: Mapping[str, str]
    text: str
    labels: tuple[datetime, ...] = ()


@dataclass(frozen=True)
class Trend:
    """A line and the area below it, by time and from zero; its greatest and its latest value."""

    line: str
    area: str
    greatest: float
    latest: float
    since: datetime
    until: datetime


def strip(database: Database, now: datetime) -> Chart:
    """The last thirty days of a database, a column a day: the best proof of it, what failed, and where none is."""
    today = _day(now)
    first = today - timedelta(days=STRIP_DAYS - 1)
    best = _best_of_days(database.backups)
    failed = {_day(failure.at) for failure in database.failures}
    lacking = set(_days_without([gap for gap in database.gaps if not gap.thinned], now)) - best.keys()
    marks: dict[str, list[str]] = defaultdict(list)
    for number in range(STRIP_DAYS):
        day = first + timedelta(days=number)
        if day in best:
            marks[PROOFS[best[day]]].append(_tally(number + 0.5, best[day]))
        elif day in lacking:
            marks["gap"].append(f"M{number + 0.5} {_BASE - 1}h0")
        if day in failed:
            marks["failed"].append(f"M{number + 0.5} {_BASE + 3}v4")
    shown = {day: each for day, each in best.items() if day >= first}
    return Chart(STRIP_DAYS, 28, _joined(marks), _strip_text(shown, lacking, failed, first))


def _strip_text(best: Mapping[date, int], lacking: set[date], failed: set[date], first: date) -> str:
    drilled = sum(each >= PROOFS.index("restored") for each in best.values())
    counts = (
        (sum(each > 0 for each in best.values()), "with a good backup"),
        (drilled, "with one that a drill restored"),
        (sum(each == 0 for each in best.values()), "with a suspect one only"),
        (sum(day >= first for day in lacking), "without one"),
        (sum(day >= first for day in failed), "with a run that failed"),
    )
    said = [f"{count} {what}" for number, (count, what) in enumerate(counts) if count or number == 0]
    return f"Days of the last {STRIP_DAYS}: {', '.join(said)}"


def timeline(database: Database, now: datetime) -> Chart:
    """Every backup, failure and gap of the last ninety days, or as far as they go back, at its time."""
    oldest = min((backup.manifest.started_at for backup in database.backups), default=now)
    earliest, latest = now - timedelta(days=TIMELINE_DAYS), now - timedelta(days=_LEAST_DAYS)
    since = max(earliest, min(oldest, latest))
    scale = _Scale(since, now)
    marks: dict[str, dict[str, None]] = defaultdict(dict)  # each place once, in order
    for backup in reversed(database.backups):
        if backup.manifest.started_at >= since:
            found = level(backup)
            marks[PROOFS[found]][_tally(scale.x(backup.manifest.started_at), found)] = None
    for failure in reversed(database.failures):
        if failure.at >= since:
            marks["failed"][f"M{scale.x(failure.at)} {_BASE + 3}v4"] = None
    for gap in database.gaps:
        if not gap.thinned and (gap.until or now) > since:
            left, right = scale.x(max(gap.since, since)), scale.x(gap.until or now)
            marks["gap"][f"M{left} 0H{right}V{_BASE}H{left}z"] = None
    labels = tuple(since + (now - since) * part / 3 for part in range(4))
    return Chart(WIDTH, 28, _joined(marks), _timeline_text(database, since, now), labels)


def _timeline_text(database: Database, since: datetime, now: datetime) -> str:
    levels = [level(backup) for backup in database.backups if backup.manifest.started_at >= since]
    counted = [f"{levels.count(number)} {PROOFS[number]}" for number in range(4, -1, -1) if number in levels]
    failed = sum(failure.at >= since for failure in database.failures)
    open_gaps = sum(not gap.thinned and (gap.until or now) > since for gap in database.gaps)
    return (
        f"Since {since:%d %B}: {len(levels)} backups, of which {', '.join(counted) or 'none'};"
        f" {failed} runs that failed; {open_gaps} gaps without a backup that is new enough"
    )


def trend(points: Iterable[tuple[datetime, float]]) -> Trend | None:
    """The line through values at their times, oldest first; None where there are not two times to compare."""
    known = sorted((moment, max(0.0, value)) for moment, value in points)
    if len(known) < 2 or known[0][0] == known[-1][0]:
        return None
    since, until = known[0][0], known[-1][0]
    greatest = max(value for _, value in known)
    scale = _Scale(since, until)
    placed = _thinned([(scale.x(moment), round(100 - 96 * value / (greatest or 1), 1)) for moment, value in known])
    line = "M" + "L".join(f"{x:g} {y:g}" for x, y in placed)
    return Trend(line, f"{line}V100H0z", greatest, known[-1][1], since, until)


def _thinned(placed: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The highest point of each small stretch, and the last."""
    highest: dict[int, tuple[float, float]] = {}
    for x, y in placed:
        stretch = int(x * _POINTS / WIDTH)
        if stretch not in highest or y < highest[stretch][1]:
            highest[stretch] = (x, y)
    return [placed[0], *(point for point in highest.values() if placed[0][0] < point[0] < placed[-1][0]), placed[-1]]


def share(part: timedelta, whole: timedelta) -> str:
    """The path of a bar, ten units long, of which `part` is filled."""
    return f"M0 1H{max(0.2, min(10.0, 10 * (part / whole))):.2f}"


@dataclass(frozen=True)
class _Scale:
    """Times to places between 0 and WIDTH."""

    since: datetime
    until: datetime

    def x(self, moment: datetime) -> float:
        """The place of a moment; what lies beyond the ends is put at them."""
        return round(WIDTH * min(1.0, max(0.0, (moment - self.since) / (self.until - self.since))), 1)


def _tally(x: float, found: int) -> str:
    """A mark that rises with the proof; a suspect one is drawn dashed, which a short one would not show."""
    return f"M{x:g} {_BASE:g}v{-_STEP * (found or 2):g}"


def _joined(marks: Mapping[str, Iterable[str]]) -> Mapping[str, str]:
    return {kind: "".join(marks[kind]) for kind in ("gap", *PROOFS, "failed") if marks.get(kind)}


def _best_of_days(backups: Iterable[Backup]) -> dict[date, int]:
    best: dict[date, int] = {}
    for backup in backups:
        day = _day(backup.manifest.started_at)
        best[day] = max(best.get(day, 0), level(backup))
    return best


def _days_without(gaps: Iterable[Gap], now: datetime) -> Iterator[date]:
    """The days of the strip that lie wholly in a gap, as far as days go."""
    tomorrow = _day(now) + timedelta(days=1)
    for gap in gaps:
        last = min(_day(gap.until), tomorrow) if gap.until is not None else tomorrow
        for ago in range(STRIP_DAYS + 1):
            if _day(gap.since) < (day := tomorrow - timedelta(days=ago)) < last:
                yield day


def _day(moment: datetime) -> date:
    return words.utc(moment).date()
