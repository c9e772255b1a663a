"""Threads: work beside, in order and bounded; a pool that gives up what has not begun."""

import threading
import time
from concurrent.futures import Future

import pytest

from backupd import threads


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
