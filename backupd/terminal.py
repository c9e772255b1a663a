"""Progress for whoever watches: a bar on a terminal, an event every 30 seconds elsewhere; the same numbers."""

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from backupd import log, render, words
from backupd.progress import Progress, seconds_left

EVENT_SECONDS = 30.0

_log = log.get_logger()


@contextlib.contextmanager
def shown() -> Iterator[Progress]:
    """A Progress that is shown on stderr while the block runs."""
    if sys.stderr.isatty():
        with _bar() as progress:
            yield progress
    else:
        yield Progress(Events(EVENT_SECONDS))


@dataclass(frozen=True)
class Pace:
    """How fast a stage goes, and about how many seconds are left, of it and of all databases; None is not known."""

    bytes_per_second: float
    left_seconds: float | None
    left_seconds_in_all: float | None


@dataclass
class Stopwatch:
    """Since when the run and its present stage go on."""

    began: float = field(default_factory=time.monotonic)
    stage_began: float = field(default_factory=time.monotonic)
    _stage: tuple[str, str] = ("", "")

    def pace(self, progress: Progress) -> Pace:
        """The pace now; a stage begins when another one is seen."""
        now = time.monotonic()
        if self._stage != (progress.stage, progress.subject):
            self._stage, self.stage_began = (progress.stage, progress.subject), now
        in_stage = now - self.stage_began
        done = progress.done_bytes + progress.copying_bytes
        return Pace(
            bytes_per_second=done / in_stage if in_stage > 0 else 0.0,
            left_seconds=seconds_left(in_stage, progress.share),
            left_seconds_in_all=seconds_left(now - self.began, progress.whole_share),
        )


class Events:
    """Logs where a long run is, every so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._stopwatch = Stopwatch()
        self._next = time.monotonic() + seconds

    def __call__(self, progress: Progress) -> None:
        """Logs the numbers, if it is time."""
        pace = self._stopwatch.pace(progress)
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._seconds
        _log.info("run.progress", **numbers(progress, pace))


def numbers(progress: Progress, pace: Pace) -> dict[str, str | int | None]:
    """All that is known of a run on its way, for the log."""
    place, left, left_in_all = progress.place, pace.left_seconds, pace.left_seconds_in_all
    return {
        "stage": progress.stage,
        "subject": progress.subject,
        "number": place.number,
        "total": place.total,
        "done_members": progress.done_members,
        "total_members": progress.total_members,
        "done_bytes": progress.done_bytes,
        "total_bytes": progress.total_bytes,
        "done_rows": progress.done_rows,
        "copying_bytes": progress.copying_bytes,
        "copying_rows": progress.copying_rows,
        "bytes_per_second": round(pace.bytes_per_second),
        "left_seconds": None if left is None else round(left),
        "left_seconds_in_all": None if left_in_all is None else round(left_in_all),
    }


@contextlib.contextmanager
def _bar() -> Iterator[Progress]:
    """A bar for the stage, and below it one for all databases where there are several."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),  # a database may be called [/red]
        BarColumn(),
        TextColumn("{task.fields[said]}", markup=False),
    )
    with Bar(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        stage, whole = bar.add_task("", said="", total=None), bar.add_task("", said="", total=None, visible=False)
        stopwatch = Stopwatch()

        def show(progress: Progress) -> None:
            pace, place = stopwatch.pace(progress), progress.place
            text = render.printable(f"{progress.stage} {progress.subject}")
            bar.update(stage, description=text, completed=progress.share or 0, said=said(progress, pace))
            bar.update(stage, total=None if progress.share is None else 1)
            in_all = "" if pace.left_seconds_in_all is None else f"{words.span(pace.left_seconds_in_all)} left in all"
            name = f"database {place.number} of {place.total}"
            bar.update(whole, description=name, completed=progress.whole_share or 0, total=1, said=in_all)
            bar.update(whole, visible=place.total > 1)

        yield Progress(show)


def said(progress: Progress, pace: Pace) -> str:
    """What stands beside a bar: members, rows, rate and what is left, as far as they are known."""
    members = f"{progress.done_members}/{progress.total_members} members" if progress.total_members else ""
    rows = f"{progress.done_rows + progress.copying_rows} rows" if progress.done_rows + progress.copying_rows else ""
    rate = f"{render.size(round(pace.bytes_per_second))}/s" if pace.bytes_per_second else ""
    left = "" if pace.left_seconds is None else f"{words.span(pace.left_seconds)} left"
    return ", ".join(filter(None, (members, rows, rate, left)))
