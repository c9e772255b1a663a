"""Work in threads that a signal can interrupt: a pool that gives up what is left, and a wait that is not put off.

`concurrent.futures`' own waits hold locks in Python code, in which a signal is put off (`signals`): a main thread that
waits there for a slow store would not hear SIGTERM. The queue here is C.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

_Result = TypeVar("_Result")
_Value = TypeVar("_Value")


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


@contextlib.contextmanager
def beside(work: Callable[[_Value], object], most: int) -> Iterator[Callable[[_Value], None]]:
    """Yields what hands values to `work`, which runs in a thread of its own, in their order and at most `most` behind.

    All is done after the block. What `work` raises is raised at a later value or at the end.
    """
    under_way: deque[Future[object]] = deque()

    def hand(value: _Value) -> None:
        if len(under_way) == most:
            under_way.popleft().result()
        under_way.append(executor.submit(work, value))

    with pool(1, "beside") as executor:
        yield hand
        for future in under_way:
            future.result()


def completed(futures: Iterable[Future[_Result]]) -> Iterator[Future[_Result]]:
    """The futures as they end, like `as_completed`; a signal can interrupt the wait."""
    ended: SimpleQueue[Future[_Result]] = SimpleQueue()
    waited_for = list(futures)
    for future in waited_for:
        future.add_done_callback(ended.put)
    for _ in waited_for:
        yield ended.get()
