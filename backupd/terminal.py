"""Progress for whoever watches: a bar on a terminal, an event every 30 seconds elsewhere; the same numbers."""

import contextlib
import sys
import time
from collections.abc import Iterator

from backupd import log, render
from backupd.progress import Progress

EVENT_SECONDS = 30.0

_log = log.get_logger()


@contextlib.contextmanager
def shown() -> Iterator[Progress]:
    """A Progress that is shown on stderr while the block runs."""
    if sys.stderr.isatty():
        with _bar() as progress:
            yield progress
    else:
        yield Progress(_Events())


class _Events:
    """Logs where a long run is, every 30 seconds."""

    def __init__(self) -> None:
        self._next = time.monotonic() + EVENT_SECONDS

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVENT_SECONDS
        _log.info(
            "run.progress",
            stage=progress.stage,
            subject=progress.subject,
            done_members=progress.done_members,
            total_members=progress.total_members,
            done_bytes=progress.done_bytes,
            total_bytes=progress.total_bytes,
            done_rows=progress.done_rows,
            copying_bytes=progress.copying_bytes,
            copying_rows=progress.copying_rows,
        )


@contextlib.contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    described = TextColumn("{task.description}", markup=False)  # a database may be called [/red]
    columns = (described, BarColumn(), TextColumn("{task.fields[counts]}"), TransferSpeedColumn())
    with Bar(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", counts="", total=None)

        def show(progress: Progress) -> None:
            done_bytes = progress.done_bytes + progress.copying_bytes
            counts = f"{progress.done_members}/{progress.total_members} members, {progress.done_rows} rows"
            text = render.printable(f"{progress.stage} {progress.subject}")
            bar.update(task, description=text, completed=done_bytes, total=progress.total_bytes or None, counts=counts)

        yield Progress(show)
