"""Records of failed runs: what they say, what they never count as, how few stay, and that they hide no first error."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fix_postgres import DatabaseFactory, PostgresServer
from fix_store import FaultProxy, S3Server
from fix_tools import Site, locked_table, s3_site
from made_backups import ARCHIVE, made_manifest
from store_memory import MemoryStore

from backupd import cli, failure
from backupd.catalog import Catalog
from backupd.failure import Failure, Step
from backupd.layout import archive_key
from backupd.manifest import Backup
from backupd.selector import Label, name_of
from backupd.store.local import LocalStore

MakeSite = Callable[..., Site]

START = datetime(2026, 11, 1, 22, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def made_failure(at: datetime, database: str = "app", step: Step = "backup", message: str = "it broke") -> Failure:
    identifier = f"{at:%Y%m%dT%H%M%SZ}-00000000"
    return Failure(identifier, "prod", database, step, at, at, 1, 18, "database", message, "Why.", "What to do.")


def written(store: MemoryStore, *failures: Failure) -> Catalog:
    """The catalog of a store with these records, each written when it failed."""
    for each in failures:
        store.now = each.at
        failure.write(store, each)
    return Catalog(store)


def take(catalog: Catalog, started_at: datetime) -> Backup:
    manifest = made_manifest(started_at)
    with catalog.store.create(archive_key(name_of(Backup(manifest)))) as stream:
        stream.write(ARCHIVE)
    return catalog.commit(manifest)


# --- in a row


def test_failures_of_a_step_are_counted_until_something_ended_well() -> None:
    first, second, third, last = (made_failure(START + hours * HOUR) for hours in (0, 1, 2, 4))

    second = failure.following(second, failure.before(second, [first], None))
    third = failure.following(third, failure.before(third, [second, first], START - HOUR))

    assert (second.count, second.first_at) == (2, START)
    assert (third.count, third.first_at) == (3, START)
    assert failure.before(last, [third], START + 3 * HOUR) is None


def test_each_step_is_counted_for_itself() -> None:
    copies = made_failure(START, step="copy"), made_failure(START + 2 * HOUR, step="copy")
    between = made_failure(START + HOUR)

    assert failure.before(between, [copies[0]], None) is None
    assert failure.before(copies[1], [between, copies[0]], None) == copies[0]


def test_a_run_that_was_refused_while_another_worked_is_over_when_that_one_ended() -> None:
    refused = made_failure(START + timedelta(minutes=15))

    assert failure.is_current(refused, START - DAY)
    assert not failure.is_current(refused, START + timedelta(minutes=30))


# --- in the store


def test_a_record_is_read_as_it_was_written_and_is_neither_backup_nor_orphan() -> None:
    failed = made_failure(START + DAY)
    catalog = written(MemoryStore(), failed)
    backup = take(catalog, START)

    listing = catalog.backups()

    assert listing.failures == (failed,)
    assert (listing.backups, listing.broken, listing.orphans) == ((backup,), (), ())
    assert [entry.key for entry in catalog.store.list() if entry.key.endswith(failure.ENDING)] == [
        "prod/app/20261102T220000Z-00000000.failed-1.json"
    ]
    assert catalog.sweep("prod", "app", START + 2 * DAY) == []
    assert catalog.backups("prod", "app").failures == (failed,)
    assert catalog.backups("prod", "ap").failures == ()
    catalog.delete(backup)
    assert catalog.backups().failures == (failed,)


def test_the_newest_few_of_each_database_are_read(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    store = LocalStore(tmp_path / "store")
    all_of_them = [made_failure(START + n * HOUR, database) for n in range(7) for database in ("app", "crm")]
    for each in all_of_them:
        failure.write(store, each)

    found = Catalog(store).backups().failures

    assert len(found) == 10
    assert {each.at for each in found} == {START + n * HOUR for n in range(2, 7)}
    assert [each.at for each in found] == sorted((each.at for each in found), reverse=True)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 200_000,
        json.dumps({"id": "20261101T220000Z-00000000", "server": "prod"}).encode(),
        failure._FAILURE.dump_json(made_failure(START, "other")),
        failure._FAILURE.dump_json(replace(made_failure(START), id="../../etc")),
        failure._FAILURE.dump_json(made_failure(START)) + b" " * failure.LIMIT_BYTES,
    ],
    ids=["empty", "cut", "binary", "deep", "fields", "another's", "hostile", "large"],
)
def test_a_record_that_cannot_be_read_is_a_failure_all_the_same_and_stops_nothing(data: bytes) -> None:
    store = MemoryStore(START)
    store.objects["prod/app/20261101T220000Z-00000000.failed-1.json"] = (data, START)
    backup = take(Catalog(store), START - DAY)

    listing = Catalog(store).backups()

    (found,) = listing.failures
    assert (found.label, found.id, found.at) == (Label("prod", "app"), "20261101T220000Z-00000000", START)
    assert len(found.message) < 200
    assert (listing.backups, listing.broken) == ((backup,), ())


def test_the_words_of_a_record_are_cut_to_a_bearable_length() -> None:
    long = replace(made_failure(START, message="\udcff" + "é\x00" * 10_000), detail="\x01" * 10_000, hint="h" * 10_000)
    catalog = written(MemoryStore(), long)

    (entry,) = catalog.store.list()
    (found,) = catalog.backups().failures

    assert entry.size_bytes < failure.LIMIT_BYTES
    assert (len(found.message), len(found.detail or ""), len(found.hint or "")) == (500, 2000, 500)
    assert found.message.startswith("?é")


def test_records_that_are_too_many_or_too_old_are_forgotten_and_no_other() -> None:
    now = START + 60 * DAY
    many = [made_failure(now - n * HOUR) for n in range(25)]
    old = [made_failure(now - n * DAY, "crm") for n in (29, 31)]
    catalog = written(MemoryStore(), *reversed(many), *old)
    backup = take(catalog, START)

    catalog.forget_old_failures("staging", now)
    assert len(list(catalog.store.list())) == 29
    catalog.forget_old_failures("prod", now)

    kept = [entry.key for entry in catalog.store.list() if entry.key.endswith(failure.ENDING)]
    assert sorted(kept) == sorted(f"prod/{one.database}/{one.id}{failure.ENDING}" for one in [*many[:20], old[0]])
    assert catalog.backups("prod", "app").backups == (backup,)


# --- written by runs


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """The empty catalog of a command line whose source does not answer."""
    for name in [name for name in os.environ if name.startswith(("BACKUPD_", "PG"))]:
        monkeypatch.delenv(name)
    settings = {"SOURCE__HOST": "127.0.0.1", "SOURCE__PORT": "1", "SOURCE__SERVER": "prod", "STORE__URL": "file://"}
    for name, value in (settings | {"STORE__URL": tmp_path.as_uri()}).items():
        monkeypatch.setenv(f"BACKUPD_{name}", value)
    return Catalog(LocalStore(tmp_path))


def test_a_source_that_does_not_answer_is_a_failure_of_each_database_that_is_meant(here: Catalog) -> None:
    take(here, START)

    assert cli.run(["backup", "crm", "ap*"]) == 18
    assert cli.run(["backup", "crm", "ap*"]) == 18

    found = here.backups().failures
    assert {(each.database, each.count, each.exit_code, each.reason) for each in found} == {
        (database, count, 18, "database") for database in ("app", "crm") for count in (1, 2)
    }
    assert all("127.0.0.1" in each.message + (each.detail or "") for each in found)


def test_a_run_forgets_what_failed_long_ago_of_any_database(here: Catalog, tmp_path: Path) -> None:
    failure.write(here.store, made_failure(START, "dropped"))
    (record,) = tmp_path.rglob("*.json")
    month_ago = time.time() - 31 * 86400
    os.utime(record, (month_ago, month_ago))

    assert cli.run(["backup", "app"]) == 18

    assert [each.database for each in here.backups().failures] == ["app"]


def test_check_says_what_failed_since_the_newest_backup(here: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    take(here, datetime.now(UTC) - 2 * HOUR)
    for _ in range(2):
        cli.run(["backup", "app", "crm"])
    capsys.readouterr()

    assert cli.run(["check", "--max-age", "26h"]) == 19

    error = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert error["detail"] == ("prod/crm: it has no backup; backup failed 2 times since, at last with database.")
    assert cli.run(["check", "--max-age", "1h", "--json"]) == 19
    app, _ = json.loads(capsys.readouterr().out)
    assert app["reason"].endswith("ended 1.8 h ago; backup failed 2 times since, at last with database")


def test_a_store_that_takes_no_record_hides_no_first_error(
    here: Catalog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prod").write_text("a file where a folder belongs")

    assert cli.run(["backup", "app", "crm"]) == 18

    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [event["event"] for event in events] == ["failure.unrecorded", "run.finished", "run.failed"]
    assert here.backups().failures == ()


def test_no_secret_is_in_a_record(here: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKUPD_SOURCE__PASSWORD", "127.0.0.1")  # which the error names as the host

    assert cli.run(["backup", "app"]) == 18

    (entry,) = here.store.list()
    with here.store.open(entry.key) as stream:
        text = stream.read().decode()
    assert "127.0.0.1" not in text
    assert "***" in text


def test_what_is_known_of_a_database_that_never_was_is_forgotten_by_retire(
    here: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.run(["backup", "typo"])

    assert cli.run(["retire", "prod/typo"]) == 0

    assert here.backups().failures == ()
    assert "retired prod/typo" in capsys.readouterr().out


@pytest.mark.slow
def test_a_database_that_fails_leaves_a_record_and_those_that_do_not_leave_none(
    postgres17: PostgresServer, site: MakeSite, database: DatabaseFactory
) -> None:
    here, good, locked = site(postgres17), database(postgres17), database(postgres17)
    with postgres17.connect(locked) as connection:
        connection.execute("CREATE TABLE t ()")
    with locked_table(postgres17, locked, "t"):
        assert here.run("backup", locked, good, BACKUPD_DUMP__LOCK_WAIT="1s").code == 18

    assert here.failures() == [(locked, "database", 1)]
    assert here.orphans() == []
    assert here.run("backup", locked, good).code == 0
    (failed,) = here.catalog.backups().failures
    newest = here.catalog.find(f"{locked}@latest")
    assert not failure.is_current(failed, newest.manifest.finished_at)
    here.assert_clean()


@pytest.mark.slow
def test_an_interrupted_run_leaves_a_record(
    postgres17: PostgresServer, site: MakeSite, shop_of: Callable[[PostgresServer], str]
) -> None:
    here, database = site(postgres17), shop_of(postgres17)
    with locked_table(postgres17, database, "shop.customers"):
        run = here.start("backup", database)
        here.pg_dump(run)
        run.send(signal.SIGTERM)
        assert run.end().code == 143

    (failed,) = here.catalog.backups().failures
    assert (failed.database, failed.reason, failed.exit_code) == (database, "interrupted", 143)
    here.assert_clean()


@pytest.mark.slow
def test_retention_that_fails_for_one_database_stops_neither_the_others_nor_copies(
    postgres17: PostgresServer,
    site: MakeSite,
    database: DatabaseFactory,
    rclone_s3: S3Server,
    fault_proxy: Callable[[S3Server], tuple[FaultProxy, S3Server]],
    tmp_path: Path,
) -> None:
    proxy, s3 = fault_proxy(rclone_s3)
    first, last = database(postgres17), database(postgres17)
    here, second = s3_site(site, postgres17, s3), tmp_path / "second"
    second.mkdir()
    here.settings |= {"BACKUPD_RETENTION__KEEP_LAST": "1", "BACKUPD_RETENTION__FLOOR": "1"}
    assert here.run("backup", first, last).code == 0
    older = {each.id: each.source.database for each in here.catalog.backups().backups}
    proxy.rule = lambda method, path, number: (
        "400 InvalidArgument" if method == "DELETE" and f"/{first}/" in path else None
    )

    ended = here.run("backup", first, last, "--json", BACKUPD_COPY__URL=second.as_uri())

    assert (ended.code, ended.error["reason"]) == (10, "store"), ended.stderr
    assert f"1 of 2 databases were not pruned: {first}" in ended.error["message"]
    taken = {each["id"]: each["source"]["database"] for each in map(json.loads, ended.stdout.splitlines())}
    assert list(taken.values()) == [first, last]
    assert set(here.listed()) == {*taken, *(one for one, name in older.items() if name == first)}
    assert {each.id for each in Catalog(LocalStore(second)).backups().backups} == set(taken)
    assert here.failures() == [(first, "store", 1)]
    here.assert_clean()
