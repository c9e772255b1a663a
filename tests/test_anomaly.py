"""What looks wrong beside its predecessors, and what must not: an alarm a week would be ignored."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from made_backups import made_backup, made_manifest, made_note

from backupd import anomaly
from backupd.manifest import Backup, Filter, Manifest, Table, Totals

NOW = datetime(2026, 11, 26, 3, tzinfo=UTC)
DAY = timedelta(days=1)


def table(name: str, rows: int, *, oid: int | None = None, row_bytes: int = 100) -> Table:
    """A table; its OID comes of its name."""
    number = oid if oid is not None else 20000 + sum(map(ord, name))
    return Table("public", name, number, f"{number}.dat", rows, rows * row_bytes, "0" * 32, "")


def suspicions(tables: Sequence[Table], *earlier: Sequence[Table]) -> list[str]:
    """Why single tables are suspect; earlier ones newest first."""
    return list(anomaly.of_tables(tables, earlier))


def totals(tables: int, rows: int, raw_bytes: int) -> Totals:
    """Totals that the test is about."""
    return Totals(tables=tables, rows=rows, raw_bytes=raw_bytes, large_objects=0, members=tables)


# --- in all


@pytest.mark.parametrize(
    ("now", "earlier", "reasons"),
    [
        ((10, 1000, 10**6), [], []),
        ((10, 1000, 10**6), [(10, 1000, 10**6)], []),
        ((5, 500, 500_000), [(10, 1000, 10**6)], []),
        ((4, 1000, 10**6), [(10, 1000, 10**6)], ["4 tables in all, and at least 10 in the earlier backup"]),
        (
            (10, 499, 10**6),
            [(10, 1000, 10**6)] * 3,
            ["499 rows in all, and at least 1000 in each of 3 earlier backups"],
        ),
        ((10, 1000, 10**5), [(10, 1000, 10**6)], ["100000 bytes in all, and at least 1000000 in the earlier backup"]),
        ((10, 300, 10**6), [(10, 1000, 10**6), (10, 500, 10**6)], []),
        ((10, 0, 0), [(10, 99, 100_000)], []),
        ((0, 0, 0), [(1, 5, 50)], ["0 tables in all, and at least 1 in the earlier backup"]),
        ((100, 10**6, 10**9), [(10, 1000, 10**6)], []),
    ],
)
def test_less_than_half_of_the_smallest_predecessor_is_suspect(
    now: tuple[int, int, int], earlier: list[tuple[int, int, int]], reasons: list[str]
) -> None:
    assert list(anomaly.in_all(totals(*now), [totals(*each) for each in earlier])) == reasons


# --- of one table


def test_a_table_that_was_emptied_is_named_however_large_the_others_are() -> None:
    full = [table("users", 50_000), table("events", 10**9)]
    reason = "table public.users has 0 rows, and at least 50000 in each of 3 earlier backups"

    assert suspicions([table("users", 0), table("events", 10**9)], full, full, full) == [reason]


def test_a_column_that_was_emptied_is_named_though_every_row_is_there() -> None:
    full, hollow = [table("users", 50_000)], [table("users", 50_000, row_bytes=5)]
    reason = "table public.users has 250000 bytes, and at least 5000000 in each of 3 earlier backups"

    assert suspicions(hollow, full, full, full) == [reason]


def test_a_table_that_was_made_anew_is_the_same_table() -> None:
    full = [table("users", 50_000, oid=1)]

    assert len(suspicions([table("users", 10, oid=2)], full, full, full)) == 1


def test_a_table_that_was_renamed_is_the_same_table() -> None:
    full = [table("users", 50_000, oid=1)]

    assert len(suspicions([table("people", 10, oid=1)], full, full, full)) == 1


def test_many_tables_make_no_endless_reason() -> None:
    full, empty = [table(f"t{n}", 5000, oid=n) for n in range(9)], [table(f"t{n}", 0, oid=n) for n in range(9)]

    assert suspicions(empty, full, full, full)[3:] == ["6 more tables like these"]


# --- what is no alarm


def test_a_table_that_is_truncated_every_day_is_none() -> None:
    def staging(day: int) -> list[Table]:
        return [table("staging", 0 if day % 2 else 100_000), table("users", 50_000)]

    for day in range(10, 40):
        assert suspicions(staging(day), *map(staging, range(day - 1, day - 8, -1))) == []


def test_a_table_that_starts_anew_every_month_is_none() -> None:
    started = datetime(2026, 1, 1, 3, tzinfo=UTC)
    days = [made_backup(made_manifest(started + n * DAY)) for n in range(120)]
    rows = {backup.id: 10_000 * (backup.manifest.started_at.day - 1) for backup in days}
    for number in range(40, 120):
        earlier = anomaly.predecessors(days[number].manifest, days[:number])
        known = [[table("this_month", rows[backup.id])] for backup in earlier]

        assert suspicions([table("this_month", rows[days[number].id])], *known) == [], days[number].id


def test_partitions_that_are_dropped_are_none() -> None:
    def months(first: int) -> list[Table]:
        return [table(f"p{n}", 10**6, oid=n) for n in range(first, first + 12)] + [table("users", 50_000)]

    assert suspicions(months(2), months(1), months(1), months(1)) == []
    now, then = (totals(13, 12 * 10**6, 10**9),) * 2
    assert list(anomaly.in_all(now, [then] * 3)) == []


def test_a_partition_per_weekday_is_none() -> None:
    started = datetime(2026, 1, 1, 3, tzinfo=UTC)
    days = [made_backup(made_manifest(started + n * DAY)) for n in range(60)]

    def week(backup: Backup) -> list[Table]:
        today = backup.manifest.started_at.weekday()
        return [table(f"d{n}", 0 if n == today else 10**5, oid=n) for n in range(7)]

    for number in range(20, 60):
        earlier = anomaly.predecessors(days[number].manifest, days[:number])
        assert suspicions(week(days[number]), *map(week, earlier)) == []


def test_an_old_table_that_gave_its_name_to_a_new_one_is_none() -> None:
    then = [table("orders", 10**6, oid=1)]
    now = [table("orders_2025", 10**6, oid=1), table("orders", 0, oid=2)]

    assert suspicions(now, then, then, then) == []


def test_oids_of_another_cluster_do_not_confuse_tables() -> None:
    """After a restore into a new cluster and `adopt`, each table may have an OID that was another's."""
    then = [table("large", 10**6, oid=1), table("small", 5, oid=2)]
    now = [table("small", 5, oid=1), table("large", 10**6, oid=2)]

    assert suspicions(now, then, then, then) == []


def test_small_and_new_tables_are_none() -> None:
    queue, empty = [table("queue", 999)], [table("queue", 0)]

    assert suspicions(empty, queue, queue, queue) == []
    assert suspicions([table("new", 0)], [], [], []) == []
    assert suspicions([], queue, queue, queue) == []


def test_a_table_of_which_little_is_known_is_none() -> None:
    full, empty = [table("t", 10**6)], [table("t", 0)]

    assert suspicions(empty) == []
    assert suspicions(empty, full, full) == []
    assert suspicions(empty, full, full, []) == []
    assert suspicions(empty, full, full, [], full) != []


def test_no_more_is_read_than_is_needed() -> None:
    read: list[int] = []

    def earlier() -> Iterable[Sequence[Table]]:
        for number in range(7):
            read.append(number)
            yield [table("t", 10**6)]

    assert list(anomaly.of_tables([table("t", 10**6)], earlier())) == []
    assert read == [0]


# --- predecessors


def picked(now: Manifest, backups: Sequence[Backup]) -> list[int]:
    """The numbers of those that are chosen."""
    return [backups.index(each) for each in anomaly.predecessors(now, backups)]


def test_predecessors_are_one_a_day_for_longer_than_a_month() -> None:
    hourly = [made_backup(made_manifest(NOW - timedelta(hours=n))) for n in range(1, 24 * 60)]
    days = [(NOW - each.manifest.started_at) / DAY for each in anomaly.predecessors(made_manifest(NOW), hourly)]

    assert [round(day, 1) for day in days] == [0.0, *map(float, range(1, 36))]


def test_of_a_short_history_the_newest_are_taken() -> None:
    backups = [made_backup(made_manifest(NOW - timedelta(hours=n))) for n in range(1, 10)]

    assert picked(made_manifest(NOW), backups) == [0, 1, 2, 3, 4, 5, 6]


def test_only_good_backups_of_the_same_scope_are_predecessors() -> None:
    suspect = made_manifest(NOW - 2 * DAY, suspect="few rows")
    failed = made_note("drilled", NOW, ok=False)
    backups = [
        made_backup(made_manifest(NOW - DAY)),
        made_backup(suspect),
        made_backup(replace(suspect, id=made_manifest(NOW - 3 * DAY).id), "confirmed"),
        made_backup(made_manifest(NOW - 4 * DAY), notes=[failed]),
        made_backup(made_manifest(NOW - 5 * DAY, patterns=Filter(include=("a.*",)))),
        made_backup(made_manifest(NOW - 6 * DAY, database="other")),
        made_backup(made_manifest(NOW - 7 * DAY, server="other")),
        made_backup(made_manifest(NOW - 8 * DAY, identity="7000000000000000002")),
        made_backup(made_manifest(NOW + DAY)),
    ]

    assert picked(made_manifest(NOW), backups) == [0, 2]
