"""Work in threads that a signal can interrupt: a pool that gives up what is left, and a wait that is not put off.

`concurrent.futures`' own waits hold locks in Python code, in which a signal is put off (`signals`): a main thread that
waits there for a slow store would not hear SIGTERM. The queue here is C.
"""

import contextlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

_Result = TypeVar("_Result")


@contextlib.contextmanager
def pool(threads: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """That many threads; all have ended after the block. When it raises, what has not begun never begins."""
    executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
    try:
        yield executor
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    finally:
        executor.shutdown(wait=True)


def completed(futures: Iterable[Future[_Result]]) -> Iterator[Future[_Result]]:
    """The futures as they end, like `as_completed`; a signal can interrupt the wait."""
    ended: SimpleQueue[Future[_Result]] = SimpleQueue()
    waited_for = list(futures)
    for future in waited_for:
        future.add_done_callback(ended.put)
    for _ in waited_for:
        yield ended.get()
