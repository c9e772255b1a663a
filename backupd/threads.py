"""Work in threads that a signal can interrupt: a pool that gives up what is left, a wait that is not put off, a pipe.

`concurrent.futures`' own waits hold locks in Python code, in which a signal is put off (`signals`): a main thread that
waits there for a slow store would not hear SIGTERM. The queue here is C.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

from backupd.errors import UsageError

_Result = TypeVar("_Result")
_Value = TypeVar("_Value")

MADE_BYTES = 256 * 1024
"""How much is handed on at once by `through`."""

WORTH_SECONDS = 0.0005
"""From how long a wait on, by the mean, threads are worth their trouble; a small file of a local disk takes less."""


def start(work: Callable[..., object], *arguments: object) -> threading.Thread:
    """A thread that nobody waits for at the end of the process. Raises UsageError where the system gives none."""
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    with _refused():
        thread.start()
    return thread


@contextlib.contextmanager
def pool(threads: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """That many threads; all have ended after the block. When it raises, what has not begun never begins.

    Raises UsageError where the system gives no thread.
    """
    executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
    try:
        with _refused():
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


def each(
    work: Callable[[_Value], _Result], values: Iterable[_Value], most: int, name: str
) -> Generator[_Result, None, None]:
    """What `work` makes of each value, in no order: made here while that hardly waits, then in that many threads.

    Threads that all compute take Python's lock from each other all the time: for 10,000 small files of a directory
    eight took 3.1 s, and one 0.9 s. From a service that answers after 30 ms eight get eight times as much.
    """
    left, waited_seconds, patience_seconds = deque(values), 0.0, 0.0
    while left and waited_seconds <= patience_seconds:
        began, computed = time.perf_counter(), time.thread_time()
        made = work(left.popleft())
        waited_seconds += time.perf_counter() - began - (time.thread_time() - computed)
        patience_seconds += WORTH_SECONDS
        yield made
    with pool(most, name) as executor:
        for future in completed([executor.submit(work, value) for value in left]):
            yield future.result()


def completed(futures: Iterable[Future[_Result]]) -> Iterator[Future[_Result]]:
    """The futures as they end, like `as_completed`; a signal can interrupt the wait."""
    ended: SimpleQueue[Future[_Result]] = SimpleQueue()
    waited_for = list(futures)
    for future in waited_for:
        future.add_done_callback(ended.put)
    for _ in waited_for:
        yield ended.get()


def through(work: Callable[["Given", "Made"], object], chunks: Iterable[bytes]) -> Generator[bytes, None, None]:
    """What `work` makes of the chunks, as they come: it reads a file and writes one, in a thread of its own.

    For libraries that want to drive. The chunks are asked for in the caller's thread, one at a time and when `work` has
    read the one before, so that what they raise is raised here, as itself, and memory stays flat. What `work` raises is
    raised here too. When this is closed early, `work` is told so by an error of its file.
    """
    given, said = SimpleQueue[bytes | None](), SimpleQueue[bytes | Future[object] | None]()
    ended = Future[object]()

    def run() -> None:
        made = Made(said)
        try:
            work(Given(given, said), made)
            made.finish()
        except BaseException as exc:  # noqa: BLE001 - raised where the result is waited for
            ended.set_exception(exc)
        else:
            ended.set_result(None)
        said.put(ended)

    source = (chunk for chunk in chunks if chunk)
    # a daemon, because one that was never told to end must not hold up the end of the process
    thread = start(run)
    try:
        while not isinstance(message := said.get(), Future):
            if message is None:
                given.put(next(source, b""))
            else:
                yield message
        ended.result()
    finally:
        given.put(None)
        thread.join()


class Given:
    """The file that the work of `through` reads: what was given, and an error once nobody waits for the result."""

    def __init__(self, given: "SimpleQueue[bytes | None]", said: "SimpleQueue[bytes | Future[object] | None]") -> None:
        self._given = given
        self._said = said
        self._chunk = memoryview(b"")
        self._ended = False

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, at most `size`; none at the end."""
        if not self._chunk and not self._ended:
            self._said.put(None)
            chunk = self._given.get()
            if chunk is None:
                raise OSError("nobody waits for the result any more")
            self._chunk, self._ended = memoryview(chunk), not chunk
        end = len(self._chunk) if size < 0 else size
        taken, self._chunk = self._chunk[:end], self._chunk[end:]
        return bytes(taken)


class Made:
    """The file that the work of `through` writes, in pieces of any size; they are handed on in larger ones."""

    def __init__(self, said: "SimpleQueue[bytes | Future[object] | None]") -> None:
        self._said = said
        self._pieces = bytearray()

    def write(self, data: bytes, /) -> int:
        """Takes all of it."""
        self._pieces += data
        if len(self._pieces) >= MADE_BYTES:
            self.finish()
        return len(data)

    def flush(self) -> None:
        """Does nothing: what is held back is little."""

    def finish(self) -> None:
        """Hands on what was held back."""
        if self._pieces:
            self._said.put(bytes(self._pieces))
            self._pieces = bytearray()


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """Translates what Python says where a thread cannot be started; it has no class of its own."""
    try:
        yield
    except RuntimeError as exc:
        if "can't start new thread" not in str(exc):
            raise
        hint = "Raise the limit on processes and threads: the container's pids limit, or `ulimit -u`."
        raise UsageError("the system refused to start a thread", hint=hint) from exc
