"""What an auditor gets: true of the period, one file that needs no other, and values for programs."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import made_fleet
import pytest
from made_backups import ARCHIVE, made_manifest
from made_fleet import NOW, POLICY, Kind, backups_of, seen
from read_html import Page, faults

from backupd import cli
from backupd.catalog import Catalog
from backupd.commands.report import period
from backupd.commands.shared import json_text
from backupd.errors import UsageError
from backupd.layout import archive_key
from backupd.manifest import Backup
from backupd.report import Line, Report, report
from backupd.selector import Label, name_of
from backupd.status import Status
from backupd.store import S3Options, open_store

pytest.importorskip("jinja2")

from backupd.web import pages
from backupd.words import span

MONTH = NOW - timedelta(days=30)


def line(made: Report, database: str, server: str = "prod") -> Line:
    return next(each for each in made.databases if (each.server, each.database) == (server, database))


@pytest.fixture(scope="module")
def quarter() -> Report:
    return report(made_fleet.small(), NOW - timedelta(days=90), NOW)


def test_only_backups_and_drills_of_the_period_are_counted() -> None:
    status = seen(backups_of(Kind(Label("prod", "app"), 1, 2), None))
    made = line(report(status, MONTH, NOW - timedelta(days=10)), "app")

    assert len(made.backups) == 20
    assert all(MONTH <= each.started_at < NOW - timedelta(days=10) for each in made.backups)
    assert all(MONTH <= each.at < NOW - timedelta(days=10) for each in made.drills)
    assert {drill.level for drill in made.drills} == {"identical"}


def test_how_often_and_the_longest_time_are_between_good_backups() -> None:
    kind = Kind(Label("prod", "app"), 1, 2)
    whole = line(report(seen(backups_of(kind, None)), MONTH, NOW), "app")
    holey = line(report(seen(backups_of(kind, None, missing=(4, 5))), MONTH, NOW), "app")
    few = [replace(each, manifest=replace(each.manifest, suspect="few")) for each in backups_of(kind, None)[4:6]]
    others = [each for number, each in enumerate(backups_of(kind, None)) if number not in (4, 5)]
    doubtful = line(report(seen([*few, *others]), MONTH, NOW), "app")

    assert (whole.usual_hours, whole.longest_hours) == (24.0, 24.0)
    assert (holey.usual_hours, holey.longest_hours) == (24.0, 72.0)
    assert doubtful.longest_hours == 72.0
    assert len(doubtful.backups) == len(whole.backups)


def test_a_gap_is_in_the_report_of_each_period_that_it_reaches_into() -> None:
    status = made_fleet.small()
    now = line(report(status, MONTH, NOW), "events")
    before = line(report(status, MONTH, NOW - timedelta(days=5)), "events")

    assert [gap.until for gap in now.gaps if not gap.thinned] == [None]
    assert not [gap for gap in before.gaps if not gap.thinned]


def test_what_retention_thinned_is_not_called_a_gap(quarter: Report) -> None:
    app = line(quarter, "app")

    assert app.gaps
    assert all(gap.thinned for gap in app.gaps)
    assert app.longest_hours is not None
    assert app.longest_hours < 26


def test_each_backup_says_how_far_it_was_proven_and_why_it_is_kept(quarter: Report) -> None:
    app, billing = line(quarter, "app"), line(quarter, "billing")

    assert {each.proof for each in app.backups} == {"stored", "verified", "identical"}
    assert "identical" not in {each.proof for each in billing.backups}
    assert app.backups[0].kept_because[0] == "day 2026-11-26 (1 of 14)"


def test_a_failed_drill_and_a_failed_run_are_told_with_their_words(quarter: Report) -> None:
    (failed,) = (drill for drill in line(quarter, "search", "staging").drills if not drill.ok)

    assert failed.level == "failed"
    assert "does not exist" in str(failed.error)
    assert [each.exit_code for each in line(quarter, "events").failures] == [18, 18, 18]


def test_an_expected_database_without_any_backup_is_in_the_report() -> None:
    from backupd.catalog import Listing
    from backupd.status import status

    expected = replace(made_fleet.EXPECTED, labels=(Label("prod", "lost"),))
    made = report(status(Listing(()), expected, made_fleet.READING, NOW), MONTH, NOW)

    assert line(made, "lost").state == "danger"
    assert "The store holds no backup of the period." in Page(pages.audit(made)).text


@pytest.mark.parametrize(
    ("since", "until"),
    [(NOW, NOW), (NOW, MONTH), (MONTH, NOW + timedelta(days=1))],
    ids=["none", "backwards", "future"],
)
def test_what_is_no_period_of_the_past_is_refused(since: datetime, until: datetime) -> None:
    with pytest.raises(UsageError, match="period"):
        report(seen([]), since, until)


@pytest.mark.parametrize(
    "make",
    [made_fleet.small, made_fleet.hostile, made_fleet.absurd, lambda: seen([])],
    ids=["fleet", "hostile", "absurd", "empty"],
)
def test_the_file_needs_no_other_and_can_be_read_by_all(make: Callable[[], Status]) -> None:
    made = report(make(), MONTH, NOW)
    page = Page(pages.audit(made))

    assert json.loads(json_text(made), parse_constant=pytest.fail)
    assert [fault for fault in faults(page) if fault != "a style"] == []
    assert not [*page.all("script", "link", "img")]
    assert all(link.startswith("#") for link in page.links())
    assert {link[1:] for link in page.links()} <= {each.attributes.get("id") for each in page.elements}


def test_the_file_says_what_its_words_mean_and_what_it_cannot_know(quarter: Report) -> None:
    text = Page(pages.audit(quarter)).text

    assert "Identical: and the content of every table compared" in text
    assert "Backups that were removed since, by retention or by hand, are not in it" in text
    assert f"one of each of {POLICY.daily} days" in text
    assert all(f"identical {span(drill.seconds or 0)}" in text for drill in line(quarter, "app").drills)


@pytest.mark.slow
def test_a_year_of_three_hundred_databases_is_a_bounded_file() -> None:
    assert len(pages.audit(report(made_fleet.large(), NOW - timedelta(days=365), NOW))) < 10_000_000


@pytest.mark.parametrize(
    ("since", "until", "want"),
    [
        ("90d", None, (NOW - timedelta(days=90), NOW)),
        ("7d", "2026-11-01", (datetime(2026, 10, 25, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC))),
        ("2026-10-01", None, (datetime(2026, 10, 1, tzinfo=UTC), NOW)),
    ],
)
def test_a_period_is_a_length_or_two_times(since: str, until: str | None, want: tuple[datetime, datetime]) -> None:
    assert period(since, until, NOW) == want


@pytest.mark.parametrize("since", ["yesterday", "", "-3d", "999999w", "2026-13-01"])
def test_what_is_no_time_is_refused(since: str) -> None:
    with pytest.raises(UsageError):
        period(since, None, NOW)


# --- the verb


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backup:
    """A store with one backup, which the command line uses."""
    for name in ("BACKUPD_SOURCE__DATABASES", "PGDATABASE", "PGHOST"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "store").mkdir()
    monkeypatch.setenv("BACKUPD_STORE__URL", f"file://{tmp_path}/store")
    monkeypatch.setenv("BACKUPD_SOURCE__SERVER", "prod")
    monkeypatch.setenv("BACKUPD_RETENTION__KEEP_WITHIN", "7d")
    catalog = Catalog(open_store(f"file://{tmp_path}/store", S3Options()))
    manifest = made_manifest(datetime.now(UTC) - timedelta(hours=1))
    with catalog.store.create(archive_key(name_of(Backup(manifest)))) as stream:
        stream.write(ARCHIVE)
    return catalog.commit(manifest)


def test_the_report_is_a_page_on_stdout_or_in_a_file(
    store: Backup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report.html"
    assert cli.run(["report"]) == 0
    shown = capsys.readouterr().out
    assert cli.run(["report", "--output", str(file)]) == 0

    assert Page(shown.rstrip()).one("h1")
    assert "prod/app" in Page(file.read_text(encoding="utf-8")).text
    assert capsys.readouterr().out == ""
    assert {each.name for each in tmp_path.iterdir()} == {"store", "report.html"}


def test_the_report_as_json_has_the_same_values(store: Backup, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["report", "--json", "--since", "30d"]) == 0
    document = json.loads(capsys.readouterr().out)

    assert document["databases"][0]["backups"][0]["id"] == store.id
    assert document["expected"]["retention"]["within"] == 7 * 86400
    assert document["databases"][0]["backups"][0]["proof"] == "stored"


def test_a_report_that_cannot_be_written_leaves_nothing_and_says_where(
    store: Backup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["report", "--output", str(tmp_path / "nowhere" / "report.html")]) == 2
    assert "nowhere" in capsys.readouterr().err

    (tmp_path / "folder").mkdir()
    assert cli.run(["report", "--output", str(tmp_path / "folder")]) == 2
    assert {each.name for each in tmp_path.iterdir()} == {"store", "folder"}


def test_a_period_that_is_none_ends_with_2(store: Backup) -> None:
    assert cli.run(["report", "--until", "2999-01-01"]) == 2
    assert cli.run(["report", "--since", "soon"]) == 2
