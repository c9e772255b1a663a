"""Several sessions in one database that work at the same time: a server gives each of them one process."""

import contextlib
import queue
from collections.abc import Callable, Sequence
from typing import TypeVar

from backupd import threads
from backupd.postgres import Access, Session, connect

_Task = TypeVar("_Task")
_Answer = TypeVar("_Answer")

ALONE = 100
"""How many tasks, the largest, are given out one at a time."""

LOTS_PER_SESSION = 16
"""Into about as many lots a session the others are divided, so that none is left with many while others idle."""

MOST_IN_LOT = 100
"""A statement about tables holds their locks and their indexes', of which a server has some thousands for all."""


def in_lots(tasks: Sequence[_Task], jobs: int) -> list[list[_Task]]:
    """The tasks, the largest of which come first, divided: thousands of small ones cost more by a statement each."""
    rest = tasks[ALONE:]
    size = max(1, min(MOST_IN_LOT, len(rest) // (LOTS_PER_SESSION * jobs)))
    return [[task] for task in tasks[:ALONE]] + [list(rest[at : at + size]) for at in range(0, len(rest), size)]


def in_parallel(
    access: Access, database: str, jobs: int, tasks: Sequence[_Task], work: Callable[[Session, _Task], _Answer]
) -> list[_Answer]:
    """The answers, in order, of `work` done by `jobs` sessions. What they run is cancelled when one fails.

    Their commits wait for no disk, like pg_restore's (`connection.CHILD_OPTIONS`).
    """
    idle: queue.SimpleQueue[Session] = queue.SimpleQueue()

    def run(task: _Task) -> _Answer:
        session = idle.get()
        try:
            return work(session, task)
        finally:
            idle.put(session)

    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(connect(access, database)) for _ in range(jobs)]
        for session in sessions:
            session.execute("SET synchronous_commit = off")
            idle.put(session)
        pool = stack.enter_context(threads.pool(jobs, "compare"))
        futures = [pool.submit(run, task) for task in tasks]
        try:
            for future in threads.completed(futures):
                future.result()
            return [future.result() for future in futures]
        except BaseException:
            for session in sessions:
                session.cancel()
            raise
