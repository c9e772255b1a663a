"""Threads: work beside, in order and bounded; a pool that gives up what has not begun."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from backupd import process, threads
from backupd.errors import UsageError


def test_work_beside_is_done_in_order_and_all_of_it_after_the_block() -> None:
    done: list[int] = []
    with threads.beside(done.append, 3) as hand:
        for number in range(50):
            hand(number)

    assert done == list(range(50))


def test_work_beside_falls_behind_no_further_than_allowed() -> None:
    go, taken = threading.Event(), list[int]()

    def work(number: int) -> None:
        go.wait(10)
        taken.append(number)

    handed: list[int] = []

    def hand_all() -> None:
        with threads.beside(work, 3) as hand:
            for number in range(10):
                hand(number)
                handed.append(number)

    other = threading.Thread(target=hand_all)
    other.start()
    time.sleep(0.2)

    assert handed == [0, 1, 2]
    go.set()
    other.join(10)
    assert taken == list(range(10))


@pytest.mark.parametrize("values", [1, 100])
def test_what_work_beside_raises_is_raised(values: int) -> None:
    def work(number: int) -> None:
        raise ValueError(f"no {number}")

    with pytest.raises(ValueError, match="no 0"), threads.beside(work, 3) as hand:  # noqa: PT012
        for number in range(values):
            hand(number)


def test_a_pool_whose_block_raises_begins_nothing_more_and_has_ended() -> None:
    begun: list[int] = []
    go = threading.Event()

    def work(number: int) -> None:
        begun.append(number)
        go.wait(10)

    with pytest.raises(KeyError), threads.pool(1, "test") as pool:  # noqa: PT012
        for number in range(5):
            pool.submit(work, number)
        while not begun:
            time.sleep(0.001)
        threading.Timer(0.1, go.set).start()
        raise KeyError

    assert begun == [0]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test")]


@pytest.mark.parametrize(("waits_seconds", "threads_used"), [(0.0, 1), (0.02, 5)])
def test_each_is_done_here_where_that_hardly_waits_and_in_threads_where_it_does(
    waits_seconds: float, threads_used: int
) -> None:
    def used() -> int:
        by: list[int] = []

        def work(number: int) -> int:
            time.sleep(waits_seconds) if waits_seconds else None
            by.append(threading.get_ident())
            return number

        assert sorted(threads.each(work, range(40), 4, "test")) == list(range(40))
        assert by[0] == threading.get_ident()
        return len(set(by))

    assert min(used() for _ in range(5)) == threads_used  # a busy machine may make any of it wait


def test_of_each_nothing_more_is_begun_once_nobody_asks() -> None:
    begun: list[int] = []
    made = threads.each(begun.append, range(40), 4, "test")
    next(made)
    made.close()
    assert begun == [0]


def test_what_the_work_on_one_raises_is_raised_and_ends_the_others() -> None:
    def work(number: int) -> int:
        time.sleep(0.01)
        if number == 5:
            raise UsageError("five")
        return number

    with pytest.raises(UsageError, match="five"):
        list(threads.each(work, range(1000), 4, "test"))


def test_futures_come_as_they_end() -> None:
    waits: dict[str, threading.Event] = {name: threading.Event() for name in "ab"}

    def work(name: str) -> str:
        assert waits[name].wait(10)
        return name

    with threads.pool(2, "test") as pool:
        futures: list[Future[str]] = [pool.submit(work, name) for name in "ab"]
        ended = threads.completed(futures)
        waits["b"].set()
        first = next(ended).result()
        waits["a"].set()
        assert [first, *(future.result() for future in ended)] == ["b", "a"]


# --- through


def copied(given: threads.Given, made: threads.Made) -> None:
    """Writes what it reads, in small pieces."""
    while piece := given.read(1000):
        made.write(piece)


def test_what_goes_through_comes_out_in_order_and_in_larger_pieces() -> None:
    chunks = [bytes([number]) * 70_001 for number in range(20)]
    out = list(threads.through(copied, [b"", *chunks, b""]))

    assert b"".join(out) == b"".join(chunks)
    assert all(len(piece) >= threads.MADE_BYTES for piece in out[:-1])


def test_nothing_goes_through_as_nothing() -> None:
    assert list(threads.through(copied, [])) == []


def test_chunks_are_asked_for_in_the_callers_thread_when_the_last_one_was_read() -> None:
    asked: list[threading.Thread] = []

    def chunks() -> Iterator[bytes]:
        for _ in range(5):
            asked.append(threading.current_thread())
            yield bytes(2 * threads.MADE_BYTES)

    for number, _ in enumerate(threads.through(copied, chunks()), 1):
        assert len(asked) <= number // 2 + 1
    assert set(asked) == {threading.current_thread()}


def test_what_the_work_raises_is_raised_as_itself() -> None:
    def failing(given: threads.Given, made: threads.Made) -> None:
        made.write(given.read(3))
        made.finish()
        raise KeyError("of the work")

    out = threads.through(failing, [b"abc", b"def"])
    assert next(out) == b"abc"
    with pytest.raises(KeyError, match="of the work"):
        next(out)


def test_work_that_nobody_waits_for_is_told_so_and_ends() -> None:
    told: list[BaseException] = []

    def stubborn(given: threads.Given, made: threads.Made) -> None:
        try:
            copied(given, made)
        except OSError as exc:
            told.append(exc)

    before = threading.active_count()
    out = threads.through(stubborn, [bytes(threads.MADE_BYTES)] * 10)
    next(out)
    out.close()

    assert threading.active_count() == before
    assert len(told) == 1


@pytest.fixture
def no_threads() -> Iterator[None]:
    """A system that gives no thread: none has room for such a stack."""
    threading.stack_size(1 << 48)
    yield
    threading.stack_size(0)


@pytest.mark.usefixtures("no_threads")
def test_a_system_that_gives_no_thread_is_an_error_with_a_way_out() -> None:
    with pytest.raises(UsageError, match="refused to start a thread") as raised, threads.pool(1, "test") as pool:
        pool.submit(int)
    assert "pids limit" in str(raised.value)
    with pytest.raises(UsageError, match="refused to start a thread"):
        threads.start(int)


@pytest.mark.usefixtures("no_threads")
def test_a_child_whose_stderr_nobody_can_read_is_ended(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    argv = ["sh", "-c", f"echo $$ > {pid}; exec sleep 60"]
    with pytest.raises(UsageError, match="refused to start a thread"), process.start(argv, {"PATH": os.defpath}):
        pass
    told = (
        pid.read_text().strip() if pid.exists() else ""
    )  # else it was ended before it began, or before it had written
    assert not told or not Path(f"/proc/{told}").exists()
