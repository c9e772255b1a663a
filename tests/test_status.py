"""Whether a database is safe, and why: made-up catalogs, and what is said of them."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from made_backups import made_backup, made_manifest, made_note
from made_fleet import failed

from backupd.catalog import Listing
from backupd.errors import StoreError, VerificationFailed
from backupd.failure import Failure
from backupd.manifest import Backup, Filter, Note
from backupd.reader import Broken
from backupd.retention import Policy
from backupd.selector import Label, Name
from backupd.status import Database, Expected, Reading, Status, status
from backupd.words import span

NOW = datetime(2026, 11, 26, 9, 0, tzinfo=UTC)
APP = Label("prod", "app")
EXPECTED = Expected("prod")
READING = Reading("file:///backups", NOW)


def aged(age: timedelta, *, notes: Sequence[Note] = (), **facts: object) -> Backup:
    """A backup that ended that long ago."""
    manifest = made_manifest(NOW - age - timedelta(minutes=10), **facts)  # type: ignore[arg-type]
    return made_backup(manifest, notes=notes)


def daily(days: int, **facts: object) -> tuple[Backup, ...]:
    """A backup a day, the newest an hour old."""
    return tuple(aged(timedelta(hours=1, days=day), **facts) for day in range(days))  # type: ignore[arg-type]


def seen(backups: Sequence[Backup], expected: Expected = EXPECTED) -> Status:
    return status(Listing(tuple(backups)), expected, READING, NOW)


def app(backups: Sequence[Backup], expected: Expected = EXPECTED) -> Database:
    found = seen(backups, expected).find(APP)
    assert found is not None
    return found


def texts(database: Database) -> str:
    return "; ".join(concern.text for concern in database.concerns)


def test_a_database_with_a_fresh_good_backup_is_safe() -> None:
    database = app(daily(3))

    assert (database.state, database.concerns) == ("safe", ())
    assert seen(daily(3)).state == "safe"


def test_an_empty_store_is_not_safe() -> None:
    assert seen(()).state != "safe"


def test_an_expected_database_without_a_backup_is_in_danger() -> None:
    database = app((), replace(EXPECTED, labels=(APP,)))

    assert database.state == "danger"
    assert database.concerns[0].command == ("backup", "app")


def test_a_backup_older_than_expected_is_danger_and_says_both_times() -> None:
    database = app([aged(timedelta(hours=27))])

    assert database.state == "danger"
    assert "27 h" in texts(database)
    assert "26 h" in texts(database)


def test_a_suspect_backup_is_no_fresh_one() -> None:
    database = app([aged(timedelta(hours=1), suspect="few rows"), aged(timedelta(hours=30))])

    assert database.state == "danger"
    assert database.newest is not None
    assert database.newest.suspect is None


def test_a_suspect_newest_beside_a_fresh_good_one_is_a_warning_until_it_is_confirmed() -> None:
    doubtful, good = aged(timedelta(hours=1), suspect="few rows"), aged(timedelta(hours=25))
    confirmed = replace(doubtful, notes=(made_note("confirmed", NOW),))

    assert app([doubtful, good]).state == "warning"
    assert app([doubtful, good]).concerns[0].command == ("confirm", f"prod/app@{doubtful.id}")
    assert app([confirmed, good]).state == "safe"


def test_a_failed_drill_of_the_newest_is_danger_though_an_older_one_is_fresh() -> None:
    bad = aged(timedelta(hours=1), notes=[made_note("drilled", NOW, ok=False, error="does not restore: no function f")])
    database = app([bad, aged(timedelta(hours=25))])

    assert database.state == "danger"
    assert "no function f" in texts(database)


def test_a_clock_in_the_future_is_danger() -> None:
    assert "clock" in texts(app([aged(timedelta(days=-2))]))


def test_only_filtered_backups_are_no_backups_of_a_whole_database() -> None:
    database = app([aged(timedelta(hours=1), patterns=Filter(include=("public.*",)))])

    assert database.state == "danger"
    assert "its good backups have another filter than is set here" in texts(database)


def test_filtered_backups_are_what_an_installation_with_that_filter_expects() -> None:
    patterns = Filter(include=("public.*",))

    assert app([aged(timedelta(hours=1), patterns=patterns)], replace(EXPECTED, filter=patterns)).state == "safe"


def test_backups_of_another_server_are_measured_without_our_filter_and_policy() -> None:
    expected = replace(EXPECTED, server="here", filter=Filter(include=("public.*",)), policy=Policy(last=1, floor=1))
    database = app(daily(4), expected)

    assert database.state == "safe"
    assert database.removals == ()
    assert not database.decisions


def test_the_newest_proofs_are_of_good_backups() -> None:
    first, second, third, fourth = (
        aged(timedelta(hours=1)),
        aged(timedelta(days=1), notes=[made_note("verified", NOW)]),
        aged(timedelta(days=2), notes=[made_note("drilled", NOW)]),
        aged(timedelta(days=3), notes=[made_note("drilled", NOW)]),
    )
    database = app([first, second, third, fourth])

    assert (database.newest, database.newest_verified, database.newest_drilled) == (first, second, third)
    assert app([first, third]).newest_verified == third


def test_a_bad_verify_is_no_proof() -> None:
    bad = aged(timedelta(hours=1), notes=[made_note("verified", NOW, ok=False), made_note("drilled", NOW)])

    assert app([bad]).newest_verified is None


@pytest.mark.parametrize(
    ("age_days", "state"), [(1, "safe"), (7, "safe"), (9, "warning")], ids=["new", "within", "overdue"]
)
def test_a_drill_that_is_expected_is_missed_when_it_is_overdue(age_days: int, state: str) -> None:
    drilled = aged(timedelta(days=age_days), notes=[made_note("drilled", NOW)])

    assert app([aged(timedelta(hours=1)), drilled], replace(EXPECTED, drilled_within=timedelta(days=8))).state == state


def test_a_database_is_not_late_with_a_drill_that_could_not_be_due_yet() -> None:
    expected = replace(EXPECTED, drilled_within=timedelta(days=8), verified_within=timedelta(days=8))

    assert app(daily(3), expected).state == "safe"
    assert "restored in a drill yet" in texts(app(daily(12), expected))
    assert "read back yet" in texts(app(daily(12), expected))


def test_a_retired_database_is_neither_safe_nor_in_danger() -> None:
    old = aged(timedelta(days=40), notes=[made_note("retired", NOW)])

    assert app([old]).state == "retired"
    assert seen([old, *daily(1, database="other")]).state == "safe"


def test_a_database_that_is_not_expected_any_more_is_named_with_the_way_out() -> None:
    database = app([aged(timedelta(days=3))], replace(EXPECTED, labels=(Label("prod", "other"),)))

    assert database.state == "warning"
    assert database.concerns[0].command == ("retire", "prod/app")


def test_a_label_of_two_clusters_freezes_retention_and_is_a_warning() -> None:
    backups = [aged(timedelta(hours=1)), aged(timedelta(days=1), identity="7000000000000000002")]
    database = app(backups, replace(EXPECTED, policy=Policy(last=1, floor=1)))

    assert database.state == "warning"
    assert "adopt" in texts(database)
    assert database.removals == ()


def test_what_retention_removes_next_is_what_one_more_backup_pushes_out() -> None:
    backups = daily(3)
    database = app(backups, replace(EXPECTED, policy=Policy(last=3, floor=1)))

    assert [(each.backup, each.now) for each in database.removals] == [(backups[2], False)]
    assert database.removals[0].reasons == ("last: beyond the newest 3",)


def test_what_retention_removes_now_is_told_from_what_it_removes_after_the_next_backup() -> None:
    backups = daily(4)
    database = app(backups, replace(EXPECTED, policy=Policy(last=3, floor=1)))

    assert {(each.backup.id, each.now) for each in database.removals} == {(backups[3].id, True), (backups[2].id, False)}


def test_without_a_policy_nothing_is_removed_next() -> None:
    assert app(daily(4)).removals == ()


def test_a_run_that_failed_since_the_newest_backup_is_a_warning_with_its_words_and_hint() -> None:
    (concern,) = app_with_failure(timedelta(minutes=30)).concerns

    assert concern.state == "warning"
    assert "3 times in a row" in concern.text
    assert "connection refused (exit code 18, database)" in concern.text
    assert concern.hint == "Look at the server."
    assert concern.runbook == "backup-is-failing"


def test_a_run_that_failed_before_the_newest_backup_is_over() -> None:
    database = app_with_failure(timedelta(hours=3))

    assert database.state == "safe"
    assert len(database.failures) == 1


def test_a_database_that_only_ever_failed_is_known_and_in_danger() -> None:
    listing = Listing((), failures=(a_failure(timedelta(hours=1)),))
    (database,) = status(listing, EXPECTED, READING, NOW).databases

    assert (database.label, database.state) == (APP, "danger")
    assert "it has no backup" in texts(database)
    assert "connection refused" in texts(database)


def a_failure(ago: timedelta) -> Failure:
    facts = {"exit_code": 18, "reason": "database", "message": "connection refused", "hint": "Look at the server."}
    return failed("app", NOW - ago, NOW - timedelta(days=2), 3, **facts)


def app_with_failure(ago: timedelta) -> Database:
    (database,) = status(Listing(daily(2), failures=(a_failure(ago),)), EXPECTED, READING, NOW).databases
    return database


def test_how_long_a_restore_takes_comes_from_the_newest_drill() -> None:
    drilled = replace(aged(timedelta(days=1)), notes=(Note("drilled", 1, NOW, True, {"seconds": 30.0}),))

    assert app([aged(timedelta(hours=1)), drilled]).restore == (30.0, f"the drill of {drilled.id}")


def test_the_worst_database_comes_first() -> None:
    backups = [*daily(1), aged(timedelta(days=3), database="stale"), *daily(1, database="another")]

    assert [each.label.database for each in seen(backups).databases] == ["stale", "another", "app"]


def test_a_store_that_does_not_answer_is_danger_and_shows_what_it_held() -> None:
    failed = replace(READING, error=StoreError("bucket is gone", hint="Look for it."))
    found = status(Listing(daily(1)), EXPECTED, failed, NOW)

    assert found.state == "danger"
    assert "bucket is gone" in found.concerns[0].text
    assert found.databases[0].state == "safe"


def test_a_broken_manifest_is_a_warning_and_its_database_is_known() -> None:
    name = Name(Label("prod", "lost"), "20200101T000000Z-00000000")
    broken = Broken("prod/lost/20200101T000000Z-00000000.json", name, VerificationFailed("it is damaged"))
    found = status(Listing(daily(1), (broken,)), EXPECTED, READING, NOW)

    assert found.concerns[0].state == "warning"
    assert found.find(name.label) is not None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (0.4, "0 s"),
        (42, "42 s"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (3661, "1 h 1 min"),
        (93600, "26 h"),
        (187200, "2 d 4 h"),
        (86400 * 41 + 7200, "41 d"),
        (1e300, "999999999 d"),
        (float("inf"), "unknown"),
        (float("nan"), "unknown"),
    ],
)
def test_a_span_has_the_one_or_two_units_that_matter(seconds: float, text: str) -> None:
    assert span(seconds) == text
