"""What a backup leaves to others: the line, VACUUM, processor time."""

import json
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from fix_postgres import DatabaseFactory, PostgresServer
from fix_tools import Running, Site, Wire, locked_table, wait_until
from store_memory import MemoryStore

from backupd.errors import UsageError
from backupd.settings import load
from backupd.store.paced import Paced

MakeSite = Callable[..., Site]


def test_what_is_sent_takes_its_time() -> None:
    store = MemoryStore()
    began = time.monotonic()

    with Paced(store, 200_000).create("db/x") as stream:
        assert stream.write(bytes(50_000)) == 50_000
        stream.write(b"the end")

    assert time.monotonic() - began >= 0.25
    assert store.objects["db/x"][0] == bytes(50_000) + b"the end"


@pytest.mark.parametrize(("text", "size"), [("1024", 1024), ("1K", 1024), ("10M", 10 << 20), ("2G", 2 << 30)])
def test_a_rate_is_a_number_of_bytes(text: str, size: int) -> None:
    assert load({"BACKUPD_STORE__LIMIT_RATE": text}).store.limit_rate == size


@pytest.mark.parametrize("text", ["0", "1023", "10MB", "1.5M", "-1", "fast", "1K/s"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="BACKUPD_STORE__LIMIT_RATE should be a number of bytes from 1K on"):
        load({"BACKUPD_STORE__LIMIT_RATE": text})


@pytest.fixture
def table(postgres17: PostgresServer, database: DatabaseFactory) -> str:
    """A database with a table of 6 MB that nothing compresses."""
    name = database(postgres17)
    with postgres17.connect(name) as connection:
        connection.execute("CREATE TABLE t AS SELECT gen_random_uuid() || '' AS text FROM generate_series(1, 250000)")
    return name


@pytest.mark.slow
def test_a_snapshot_that_is_held_for_too_long_ends_the_dump_and_leaves_nothing(
    postgres17: PostgresServer, site: MakeSite, table: str
) -> None:
    here = site(postgres17)
    here.remember()
    with locked_table(postgres17, table, "t"):
        ended = here.run("backup", table, BACKUPD_DUMP__MAX_SECONDS="1")

    here.assert_failed(ended, 18, "database")
    assert "held its snapshot for more than 1 s" in ended.error["message"]
    assert "BACKUPD_DUMP__MAX_SECONDS" in ended.error["detail"]


class Muted(Wire):
    """A wire over which the server says nothing any more, once it was asked that; its connections stay."""

    def __init__(self, port: int, question: bytes) -> None:
        self._question = question
        super().__init__(port)

    def _ask(self, data: bytes, passed: int) -> bytes:
        if self._question in data:
            self.held.set()
        return data

    def _answer(self, data: bytes, passed: int) -> bytes:
        if self.held.is_set():
            self._go.wait()
        return data


@pytest.mark.slow
@pytest.mark.parametrize(
    "question", ["search_path", "pg_try_advisory_lock", "pg_export_snapshot", "pg_stat_progress_copy"]
)
def test_a_server_that_falls_silent_ends_a_dump_after_its_longest_time(
    postgres17: PostgresServer, site: MakeSite, table: str, question: str
) -> None:
    here = site(postgres17)
    here.remember()
    with Muted(postgres17.port, question.encode()) as muted, locked_table(postgres17, table, "t"):
        server = {"BACKUPD_SOURCE__HOST": "127.0.0.1", "BACKUPD_SOURCE__PORT": str(muted.port)}
        ended = here.run("backup", table, BACKUPD_DUMP__MAX_SECONDS="1", **server)

    assert muted.held.is_set()
    here.assert_failed(ended, 18, "database")
    assert "has not answered for 1 s" in ended.error["message"] + (ended.error["detail"] or "")


@pytest.mark.slow
def test_a_dump_that_holds_vacuum_back_is_warned_of(postgres17: PostgresServer, site: MakeSite, table: str) -> None:
    here = site(postgres17, BACKUPD_DUMP__VACUUM_AGE="5")
    with locked_table(postgres17, table, "t"):
        run = here.start("backup", table)
        here.pg_dump(run)
        with postgres17.connect(table) as connection:
            for _ in range(10):
                connection.execute("SELECT pg_current_xact_id()")
        event = next_event(run, "vacuum.held_back")

    assert run.end().code == 0
    assert (event["database"], event["transactions"] >= 5) == (table, True)


def next_event(run: Running, name: str) -> dict[str, Any]:
    """The next event of that name, as soon as it is logged."""
    assert run._popen.stderr is not None
    for line in run._popen.stderr:
        if json.loads(line)["event"] == name:
            found: dict[str, Any] = json.loads(line)
            return found
    pytest.fail(f"there was no {name}")


@pytest.mark.slow
def test_a_snapshot_is_let_go_while_what_was_dumped_is_still_sent(
    postgres17: PostgresServer, site: MakeSite, table: str
) -> None:
    here = site(postgres17, BACKUPD_STORE__LIMIT_RATE="1M", BACKUPD_DUMP__JOBS="1")
    run = here.start("backup", table)
    here.pg_dump(run)
    query = "SELECT FROM pg_stat_activity WHERE datname = %s AND backend_xmin IS NOT NULL AND pid <> pg_backend_pid()"

    def is_free() -> bool:
        with postgres17.connect() as connection:
            return not connection.execute(query, [table]).fetchall()

    wait_until(is_free, "the snapshot is still held")
    assert run.alive()
    assert run.end().code == 0
    assert len(here.listed()) == 1


@pytest.mark.slow
def test_pg_dump_is_as_nice_as_it_is_asked_to_be(postgres17: PostgresServer, site: MakeSite, table: str) -> None:
    here = site(postgres17, BACKUPD_DUMP__NICE="7")
    with locked_table(postgres17, table, "t"):
        run = here.start("backup", table)
        niceness = os.getpriority(os.PRIO_PROCESS, here.pg_dump(run))

    assert run.end().code == 0
    assert niceness == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 7)


@pytest.mark.slow
def test_a_dump_has_three_sessions_of_the_server_before_its_workers(
    postgres17: PostgresServer, site: MakeSite, table: str
) -> None:
    here = site(postgres17)
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'backupd backup'"
    with locked_table(postgres17, table, "t"), postgres17.connect() as connection:
        run = here.start("backup", table)
        waits = f"{query} AND wait_event_type = 'Lock'".encode()
        wait_until(lambda: connection.execute(waits).fetchone() == (1,), "pg_dump does not wait for the table")
        sessions = connection.execute(query).fetchone()

    assert run.end().code == 0
    assert sessions == (3,)
    assert len(here.listed()) == 1
