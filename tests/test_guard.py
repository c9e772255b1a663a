"""The guard against the wrong target: what makes a live database look like another than the one that was backed up."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from backupd.errors import TargetRefused, UsageError
from backupd.guard import Identity, differences, require_same

GIB = 1 << 30
ARCHIVED = Identity("7577000000000000001", "app", GIB, datetime(2026, 11, 25, 1, 0, tzinfo=UTC))
LIVE = replace(ARCHIVED, at=ARCHIVED.at + timedelta(hours=26))

CASES = {
    "the same a day later": ({}, []),
    "of unknown size": ({"size_bytes": None}, []),
    "grown by half": ({"size_bytes": GIB * 3 // 2}, []),
    "empty": ({"size_bytes": 8 << 20}, []),
    "of another cluster": ({"system_identifier": "1"}, ["it is in another cluster"]),
    "of another name": ({"database": "staging"}, ["it has another name"]),
    "much larger": ({"size_bytes": 40 * GIB}, ["it is 40.0 times as large"]),
    "much newer": ({"at": ARCHIVED.at + timedelta(days=9)}, ["the backup is 9 days old"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_live_database_is(case: str) -> None:
    changes, expected = CASES[case]

    assert list(differences(ARCHIVED, replace(LIVE, **changes))) == expected  # type: ignore[arg-type]


def test_small_databases_may_differ_in_size_as_they_like() -> None:
    small = replace(ARCHIVED, size_bytes=8 << 20)

    assert not list(differences(small, replace(LIVE, size_bytes=60 << 20)))
    assert list(differences(small, replace(LIVE, size_bytes=90 << 20)))


def test_the_refusal_shows_both_identities_side_by_side_and_the_way_on() -> None:
    live = replace(LIVE, system_identifier="1", database="staging")
    with pytest.raises(TargetRefused) as raised:
        require_same(ARCHIVED, live, None)

    archived, found = str(raised.value.detail).splitlines()
    assert archived == (
        "In the archive: database app of cluster 7577000000000000001, 1024.0 MiB, at 2026-11-25 01:00 UTC."
    )
    assert found == "On the target:  database staging of cluster 1, 1024.0 MiB, at 2026-11-26 03:00 UTC."
    assert "--yes-replace staging" in str(raised.value.hint)


def test_a_named_one_is_let_pass_and_what_is_different_is_told() -> None:
    live = replace(LIVE, database="staging")

    assert require_same(ARCHIVED, live, "staging") == "it has another name"
    assert require_same(ARCHIVED, LIVE, "app") == ""


def test_another_name_lets_nothing_pass() -> None:
    with pytest.raises(UsageError, match="--yes-replace names app, and --replace staging"):
        require_same(ARCHIVED, replace(LIVE, database="staging"), "app")
