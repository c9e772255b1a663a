"""Signals: a run that is ended leaves nothing, and one that is killed nothing that the next does not put right."""

import contextlib
import hashlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest
from fix_postgres import PostgresServer
from fix_store import FaultProxy, S3Server
from fix_tools import LABEL, Running, Site, Wire, locked_table, s3_site, wait_until

from backupd.catalog import new_id
from backupd.failure import ENDING
from backupd.layout import archive_key
from backupd.selector import Label, Name

MakeSite = Callable[..., Site]
Shop = Callable[[PostgresServer], str]
MakeWire = Callable[..., Wire]

pytestmark = pytest.mark.slow

COPY_BYTES = 3_000_000
"""More than pg_dump reads before its first COPY, and less than the large table's."""

EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


class Stage(Protocol):
    """Gives a run that is at a certain stage, after an earlier backup."""

    def __call__(self, name: str) -> contextlib.AbstractContextManager[tuple[Site, Running]]: ...


@pytest.fixture
def stage(postgres17: PostgresServer, site: MakeSite, shop_of: Shop, large_of: Shop, wire: MakeWire) -> Stage:
    """The stages of `STAGES`."""

    @contextlib.contextmanager
    def at(name: str) -> Iterator[tuple[Site, Running]]:
        here = site(postgres17)
        if name == "waiting for locks":
            here.earlier(shop_of(postgres17))
            with locked_table(postgres17, shop_of(postgres17), "shop.customers"):
                run = here.start("backup", shop_of(postgres17))
                _wait_for_lock(here, run, shop_of(postgres17))
                yield here, run
            return
        here.earlier(large_of(postgres17))
        slow = wire(postgres17, hold_after=COPY_BYTES)
        patterns = {"BACKUPD_DUMP__INCLUDE": "public.big"} if name == "in the first member" else {}
        run = here.start("backup", large_of(postgres17), BACKUPD_SOURCE__PORT=str(slow.port), **patterns)
        assert slow.held.wait(30), run.end()
        wait_until(lambda: [path for path in here.store.rglob(".*.tmp") if path.stat().st_size], "no archive was begun")
        yield here, run

    return at


STAGES = ["waiting for locks", "in the first member", "among members"]


def _wait_for_lock(here: Site, run: Running, database: str) -> None:
    here.pg_dump(run)
    query = "SELECT FROM pg_locks JOIN pg_database d ON d.oid = database WHERE NOT granted AND datname = %s"
    with here.server.connect() as connection:
        wait_until(lambda: connection.execute(query, [database]).fetchall(), "pg_dump does not wait for a lock")


@pytest.mark.parametrize("number", EXIT_CODES, ids=lambda number: number.name)
@pytest.mark.parametrize("name", STAGES)
def test_an_interrupted_run_leaves_no_process_no_file_and_no_backup(
    name: str, number: signal.Signals, stage: Stage
) -> None:
    with stage(name) as (here, run):
        began = time.monotonic()
        run.send(number)
        ended = run.end()
        assert time.monotonic() - began < 5
        here.assert_failed(ended, EXIT_CODES[number], "interrupted")


def test_a_second_signal_does_not_disturb_the_clean_up_of_the_first(stage: Stage) -> None:
    with stage("among members") as (here, run):
        run.send(signal.SIGTERM)
        for _ in range(20):
            with contextlib.suppress(ProcessLookupError):
                run.send(signal.SIGINT)
            time.sleep(0.005)
        ended = run.end()
        here.assert_failed(ended, ended.code, "interrupted")
        assert ended.code in EXIT_CODES.values()  # of two signals at once Python handles the lower number first


def test_a_run_that_waits_for_another_can_be_interrupted(stage: Stage, shop_of: Shop) -> None:
    with stage("waiting for locks") as (here, first):
        database = shop_of(here.server)
        query = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'SELECT pg_try_advisory_lock%%' AND datname = %s"
        with here.server.connect() as connection:
            firsts = set(connection.execute(query, [database]).fetchall())
            second = here.start("backup", database, "--wait", "60")
            wait_until(
                lambda: set(connection.execute(query, [database]).fetchall()) - firsts, "the second does not wait"
            )
        second.send(signal.SIGTERM)
        assert second.end().code == 143
        assert first.alive()
        first.send(signal.SIGTERM)
        here.assert_failed(first.end(), 143, "interrupted")


@pytest.mark.parametrize("name", STAGES)
def test_after_a_killed_run_the_clients_end_by_themselves_and_the_next_run_sweeps_and_succeeds(
    name: str, stage: Stage
) -> None:
    with stage(name) as (here, run):
        (earlier,) = here.catalog.backups().backups
        workers = here.children(run.pid)
        assert len(workers) == (1 if name == "waiting for locks" else 3)
        run.send(signal.SIGKILL)
        assert run.end().code == -signal.SIGKILL
        wait_until(lambda: not here.children(), "pg_dump runs on", 5)
    assert here.listed() == [earlier.id]
    planted = archive_key(Name(Label(LABEL, earlier.source.database), new_id(earlier.manifest.started_at, "0" * 8)))
    (here.store / planted).write_bytes(here.archive_file(earlier).read_bytes())
    assert here.orphans() == [planted]
    ended = here.run("backup", earlier.source.database, "--wait", "20")
    assert ended.code == 0, ended.stderr
    assert [event["key"] for event in ended.events if event["event"] == "orphan.swept"] == [planted]
    assert len(here.listed()) == 2
    assert here.listed()[1] == earlier.id
    assert here.orphans() == []


def test_the_next_run_removes_the_scratch_and_the_password_of_a_killed_one(stage: Stage) -> None:
    with stage("among members") as (here, run):
        (earlier,) = here.catalog.backups().backups
        run.send(signal.SIGKILL)
        run.end()
        wait_until(lambda: not here.children(), "pg_dump runs on", 5)
    assert here.run("backup", earlier.source.database, "--wait", "20").code == 0
    assert sorted(here.scratch.rglob("*")) == []
    assert sorted(here.temporary.rglob("*")) == []


# --- at any moment


def test_a_run_that_is_interrupted_at_any_moment_leaves_a_whole_backup_or_none(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop
) -> None:
    here, database = site(postgres17), shop_of(postgres17)
    here.earlier(database)
    began = time.monotonic()
    assert here.run("backup", database).code == 0
    whole = time.monotonic() - began
    codes = set()
    for moment in range(2, 10):
        run = here.start("backup", database)
        time.sleep(whole * moment / 9)
        run.send(signal.SIGTERM)
        codes.add(run.end().code)
        here.assert_clean()
        _assert_listed_are_whole(here)
    assert here.run("backup", database).code == 0
    assert here.orphans() == []  # one between archive and manifest is swept
    assert 143 in codes
    assert codes <= {0, 143, -signal.SIGTERM}  # the last: before Python had installed a handler


def test_a_run_that_is_killed_at_any_moment_leaves_a_whole_backup_or_none(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop
) -> None:
    here, database = site(postgres17), shop_of(postgres17)
    began = time.monotonic()
    assert here.run("backup", database).code == 0
    whole = time.monotonic() - began
    for moment in range(6, 10):
        run = here.start("backup", database)
        time.sleep(whole * moment / 9)
        run.send(signal.SIGKILL)
        run.end()
        wait_until(lambda: not here.children(), "children run on", 5)
        _assert_listed_are_whole(here)
    assert here.run("backup", database, "--wait", "20").code == 0
    assert here.orphans() == []


def _assert_listed_are_whole(here: Site) -> None:
    for each in here.catalog.backups().backups:
        digest = hashlib.sha256(here.archive_file(each).read_bytes()).hexdigest()
        assert digest == each.manifest.archive_sha256


# --- while an archive is on its way to S3


@pytest.fixture
def uploading(
    postgres17: PostgresServer,
    site: MakeSite,
    huge_of: Shop,
    moto_s3: S3Server,
    fault_proxy: Callable[[S3Server], tuple[FaultProxy, S3Server]],
) -> Iterator[tuple[Site, Running, threading.Event]]:
    """A run whose first part was sent and is not answered until the event is set."""
    proxy, slow = fault_proxy(moto_s3)
    answer, sent = threading.Event(), threading.Event()

    def hold(method: str, path: str, number: int) -> None:
        if "partNumber" in path:
            sent.set()
            answer.wait(60)

    proxy.rule = hold
    here = s3_site(site, postgres17, slow)
    here.remember()
    run = here.start("backup", huge_of(postgres17))
    assert sent.wait(60), run.end()
    yield here, run, answer
    answer.set()


def test_an_upload_that_is_interrupted_leaves_no_object_and_no_open_upload(
    uploading: tuple[Site, Running, threading.Event], moto_s3: S3Server
) -> None:
    here, run, answer = uploading
    assert len(moto_s3.uploads()) == 1
    run.send(signal.SIGTERM)
    threading.Timer(1, answer.set).start()
    ended = run.end()
    here.assert_failed(ended, 143, "interrupted")
    assert [key for key in sorted(moto_s3.keys()) if not key.endswith(ENDING)] == []
    assert moto_s3.uploads() == []


def test_an_upload_that_is_killed_is_not_listed_and_the_next_run_succeeds(
    uploading: tuple[Site, Running, threading.Event], moto_s3: S3Server, huge_of: Shop
) -> None:
    here, run, answer = uploading
    run.send(signal.SIGKILL)
    run.end()
    answer.set()
    wait_until(lambda: not here.children(), "pg_dump runs on", 5)
    assert here.listed() == []
    ended = here.run("backup", huge_of(here.server), "--wait", "20")
    assert ended.code == 0, ended.stderr
    assert len(here.listed()) == 1
    assert here.orphans() == []
