"""Several sessions: how work is divided among them."""

import pytest

from backupd.sessions import in_lots


@pytest.mark.parametrize("count", [0, 1, 100, 101, 150, 3_000, 10_000, 100_000])
@pytest.mark.parametrize("jobs", [1, 2, 8])
def test_every_task_is_in_one_lot_and_the_largest_are_alone(count: int, jobs: int) -> None:
    lots = in_lots(range(count), jobs)

    assert [task for lot in lots for task in lot] == list(range(count))
    assert all(len(lot) == 1 for lot in lots[:100])
    assert max(map(len, lots), default=0) <= 100


def test_thousands_of_tasks_are_few_lots_and_hundreds_are_shared_evenly() -> None:
    assert len(in_lots(range(10_000), 2)) == 199
    assert {len(lot) for lot in in_lots(range(420), 2)} == {1, 10}
