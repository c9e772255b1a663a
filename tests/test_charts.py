"""Marks where they belong: what the small charts draw, and what they say to those who do not see them."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from made_backups import made_backup, made_manifest, made_note
from made_fleet import EXPECTED, NOW, failed

from backupd.catalog import Listing
from backupd.failure import Failure
from backupd.history import PROOFS, Gap, gaps, level
from backupd.manifest import Backup, Note
from backupd.retention import Policy, plan
from backupd.status import Database, Reading, status
from backupd.web import charts


def on_day(ago: int, *notes: Note, suspect: str | None = None) -> Backup:
    manifest = made_manifest(NOW - timedelta(days=ago, hours=2), suspect=suspect)
    return made_backup(manifest, notes=notes)


def database(*backups: Backup, failures: tuple[Failure, ...] = (), policy: Policy | None = None) -> Database:
    newest_first = tuple(sorted(backups, key=lambda each: each.id, reverse=True))
    listing = Listing(newest_first, failures=failures)
    (found,) = status(listing, replace(EXPECTED, policy=policy), Reading("file:///b", NOW), NOW).databases
    return found


def columns(path: str) -> list[float]:
    return [float(x) for x in re.findall(r"M([0-9.]+) ", path)]


DRILLED = Note("drilled", 1, NOW, True, {"level": "identical"})


@pytest.mark.parametrize(
    ("notes", "suspect", "word"),
    [
        ([], None, "stored"),
        ([made_note("verified", NOW)], None, "verified"),
        ([made_note("drilled", NOW, level="restored")], None, "restored"),
        ([DRILLED], None, "identical"),
        ([DRILLED], "few rows", "suspect"),
        ([made_note("drilled", NOW, ok=False)], None, "suspect"),
        ([made_note("verified", NOW, ok=False), DRILLED], None, "suspect"),
    ],
)
def test_a_backup_is_as_proven_as_its_notes_say(notes: list[Note], suspect: str | None, word: str) -> None:
    assert PROOFS[level(on_day(0, *notes, suspect=suspect))] == word


def test_a_strip_has_a_mark_in_the_column_of_each_day() -> None:
    strip = charts.strip(database(on_day(0), on_day(1, DRILLED), on_day(29)), NOW)

    assert columns(strip.paths["stored"]) == [0.5, 29.5]
    assert columns(strip.paths["identical"]) == [28.5]
    assert "2 with" not in strip.text
    assert "3 with a good backup, 1 with one that a drill restored" in strip.text


def test_a_day_shows_the_best_of_its_backups() -> None:
    earlier = made_backup(made_manifest(NOW - timedelta(hours=5)), notes=[DRILLED])

    assert set(charts.strip(database(on_day(0), earlier), NOW).paths) == {"identical"}


def test_a_strip_marks_days_without_a_backup_only_where_retention_did_not_thin() -> None:
    backups = (on_day(0), on_day(1), on_day(5), on_day(6))

    kept = charts.strip(database(*backups), NOW)
    thinned = charts.strip(database(*backups, policy=Policy(daily=2, weekly=9, floor=1)), NOW)

    assert columns(kept.paths["gap"]) == [25.5, 26.5, 27.5]
    assert "3 without one" in kept.text
    assert "gap" not in thinned.paths


def test_a_strip_of_a_database_without_a_backup_is_empty_and_says_so() -> None:
    strip = charts.strip(database(failures=(failed("app", NOW, NOW, 1, exit_code=1, reason="x", message="x"),)), NOW)

    assert set(strip.paths) == {"failed"}
    assert "0 with a good backup, 1 with a run that failed" in strip.text


def test_a_timeline_ends_now_and_starts_with_the_oldest_backup() -> None:
    timeline = charts.timeline(database(on_day(0), on_day(40)), NOW)

    assert columns(timeline.paths["stored"]) == [0, pytest.approx(998, abs=1)]
    assert timeline.labels[-1] == NOW
    assert "2 backups, of which 2 stored" in timeline.text


def test_a_timeline_goes_back_ninety_days_at_most_and_fourteen_at_least() -> None:
    assert charts.timeline(database(on_day(0), on_day(400)), NOW).labels[0] == NOW - timedelta(days=90)
    assert charts.timeline(database(on_day(0)), NOW).labels[0] == NOW - timedelta(days=14)


def test_a_gap_is_a_band_from_the_backup_before_it_to_the_one_after_it_or_to_now() -> None:
    timeline = charts.timeline(database(on_day(7), on_day(14)), NOW)

    bands = re.findall(r"M([0-9.]+) 0H([0-9.]+)", timeline.paths["gap"])
    assert [(round(float(left)), round(float(right))) for left, right in bands] == [(498, 1000), (0, 498)]
    assert "2 gaps" in timeline.text


def test_many_backups_make_no_more_marks_than_there_are_places() -> None:
    backups = [made_backup(made_manifest(NOW - timedelta(minutes=5 * number))) for number in range(5000)]

    assert len(columns(charts.timeline(database(*backups), NOW).paths["stored"])) <= 10 * charts.WIDTH


def test_a_clock_that_was_wrong_draws_nothing_outside() -> None:
    ahead = database(on_day(-400), on_day(0))

    assert max(columns(charts.timeline(ahead, NOW).paths["stored"])) <= charts.WIDTH
    assert columns(charts.strip(ahead, NOW).paths["stored"]) == [29.5]


def test_a_trend_goes_from_the_first_value_to_the_last_and_is_measured_from_zero() -> None:
    trend = charts.trend([(NOW - timedelta(days=2), 50.0), (NOW, 100.0), (NOW - timedelta(days=1), 0.0)])

    assert trend is not None
    assert trend.line == "M0 52L500 100L1000 4"
    assert (trend.greatest, trend.latest) == (100.0, 100.0)


def test_a_trend_of_ten_thousand_values_keeps_its_peak_and_its_ends() -> None:
    values = [(NOW + timedelta(minutes=number), 1000.0 if number == 5000 else 1.0) for number in range(10_000)]
    trend = charts.trend(values)

    assert trend is not None
    assert trend.line.count("L") < 300
    assert " 4L" in trend.line
    assert trend.line.endswith("L1000 99.9")


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0]], ids=["none", "one", "at one time"])
def test_without_two_times_there_is_no_trend(values: list[float]) -> None:
    assert charts.trend((NOW, value) for value in values) is None


def test_what_is_less_than_nothing_is_drawn_as_nothing() -> None:
    trend = charts.trend([(NOW, -5.0), (NOW + timedelta(days=1), 1.0)])

    assert trend is not None
    assert trend.line == "M0 100L1000 4"


def test_a_trend_of_nothing_but_zeros_lies_at_the_bottom() -> None:
    trend = charts.trend([(NOW, 0.0), (NOW + timedelta(days=1), 0.0)])

    assert trend is not None
    assert trend.line == "M0 100L1000 100"


def test_a_bar_is_never_longer_than_its_place() -> None:
    assert charts.share(timedelta(days=9), timedelta(days=1)) == "M0 1H10.00"
    assert charts.share(timedelta(), timedelta(days=1)) == "M0 1H0.20"


def test_gaps_are_between_good_backups_and_after_the_newest() -> None:
    good = [on_day(3), on_day(4), on_day(9)]
    decisions = {each.backup.id: each for each in plan(good, None, NOW).decisions}

    found = gaps(good, decisions, timedelta(hours=26), NOW)

    assert found == (
        Gap(good[0].manifest.finished_at, None, thinned=False),
        Gap(good[2].manifest.finished_at, good[1].manifest.finished_at, thinned=False),
    )


def test_a_gap_of_another_installation_may_be_its_retentions() -> None:
    found = gaps([on_day(0), on_day(9)], {}, timedelta(hours=26), NOW)

    assert [gap.thinned for gap in found] == [True]


def test_without_a_backup_there_is_no_gap_to_measure() -> None:
    assert gaps([], {}, timedelta(hours=26), datetime(2026, 1, 1, tzinfo=UTC)) == ()
