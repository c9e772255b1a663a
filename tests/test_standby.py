"""A dump of a standby whose replay is against it: tried again in a new snapshot, given up with its own exit code."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest
from fix_postgres import PostgresServer, standby_of, wait_for
from fix_tools import Site, wait_until

from backupd import backup, render
from backupd.manifest import Backup

pytestmark = pytest.mark.slow

MakeSite = Callable[..., Site]


@dataclass(frozen=True)
class Cluster:
    """A primary and its standby, which never waits for queries, and a site that backs the standby up."""

    primary: PostgresServer
    standby: PostgresServer
    here: Site


@pytest.fixture
def cluster(
    own_postgres: Callable[..., tuple[PostgresServer, Callable[[], None]]], site: MakeSite
) -> Iterator[Cluster]:
    primary, _ = own_postgres(autovacuum="off")  # its snapshots would keep rows that a VACUUM here shall remove
    with primary.connect() as connection:
        connection.execute(
            "CREATE TABLE rows_of_old AS SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, 40000) n"
        )
        connection.execute("CREATE UNLOGGED TABLE forgotten AS SELECT n FROM generate_series(1, 10) n")
        connection.execute("CREATE TABLE churned AS SELECT n FROM generate_series(1, 10) n")
    with standby_of(primary) as standby:
        wait_for(standby, "SELECT FROM pg_class WHERE relname = %s", "churned")
        # the strongest compression, so that a dump takes long enough to be cancelled
        yield Cluster(primary, standby, site(standby, BACKUPD_DUMP__COMPRESSION="zstd:19"))


def set_on(server: PostgresServer, name: str, value: str) -> None:
    """Sets a setting of the server, and waits until it is so."""
    with server.connect() as connection:
        connection.execute(f"ALTER SYSTEM SET {name} = '{value}'".encode())
        connection.execute("SELECT pg_reload_conf()")
    wait_for(server, f"SELECT WHERE current_setting('{name}') = %s", value)


def remove_rows(primary: psycopg.Connection) -> None:
    """Replay of this cancels every query on the standby that began before it."""
    primary.execute("UPDATE churned SET n = n + 1")
    primary.execute("VACUUM churned")
    primary.execute("UPDATE churned SET n = n - 1")  # its commit sends what VACUUM wrote at once


@contextlib.contextmanager
def churn(cluster: Cluster) -> Iterator[None]:
    """Removes rows again and again."""
    stop = threading.Event()

    def remove() -> None:
        with cluster.primary.connect() as connection:
            while not stop.wait(0.01):
                remove_rows(connection)

    thread = threading.Thread(target=remove)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_backup_of_a_standby_says_how_it_stood_and_which_tables_it_lacks(cluster: Cluster) -> None:
    set_on(cluster.standby, "hot_standby_feedback", "on")
    ended = cluster.here.run("backup", "postgres")

    assert ended.code == 0, ended.stderr
    manifest = cluster.here.catalog.find("latest").manifest
    assert manifest.standby
    assert manifest.recovery is not None
    assert manifest.recovery.hot_standby_feedback
    assert manifest.recovery.max_standby_streaming_delay == "30s"
    assert manifest.recovery.replay_lag_seconds is not None
    assert 0 <= manifest.recovery.replay_lag_seconds < 30
    assert manifest.jobs == 1  # this minor version may not dump a standby in parallel
    said = next(event for event in ended.events if event["event"] == "tables.unlogged")
    assert said["tables"] == ["public.forgotten"]
    shown = cluster.here.run("show", "latest").stdout
    assert "a standby: replay lag" in shown
    assert "hot_standby_feedback on, max_standby_streaming_delay 30s" in shown
    assert "without rows: public.forgotten: unlogged" in cluster.here.run("tables", "latest").stdout


def test_a_backup_of_a_primary_says_nothing_of_recovery(cluster: Cluster) -> None:
    manifest = (
        replace(cluster.here, server=cluster.primary, folder=cluster.here.folder / "primary").take("postgres").manifest
    )

    assert manifest.recovery is None
    assert "replay lag" not in render.show(Backup(manifest))


def test_a_dump_that_replay_cancelled_is_made_again_in_a_new_snapshot(
    cluster: Cluster, shell_clients: Callable[[PostgresServer, str], Path], tmp_path: Path
) -> None:
    set_on(cluster.standby, "max_standby_streaming_delay", "0")
    begun = tmp_path / "begun"
    telling = str(shell_clients(cluster.standby, f'touch {begun}; exec "$real" "$@"'))
    running = cluster.here.start("backup", "postgres", BACKUPD_DUMP__CLIENTS=telling)
    wait_until(begun.exists, "the first dump begins")
    with cluster.primary.connect() as connection:
        remove_rows(connection)
    ended = running.end()

    assert ended.code == 0, ended.stderr
    retried = [event["reason"] for event in ended.events if event["event"] == "backup.retried"]
    assert "replica_conflict" in retried
    assert len(cluster.here.listed()) == 1
    assert cluster.here.orphans() == []
    cluster.here.assert_clean()


def test_a_standby_that_cancels_every_dump_is_given_up_and_said_with_what_helps(cluster: Cluster) -> None:
    set_on(cluster.standby, "max_standby_streaming_delay", "0")
    cluster.here.remember()
    with churn(cluster):
        ended = cluster.here.run("backup", "postgres")

    cluster.here.assert_failed(ended, 16, "replica_conflict")
    assert "hot_standby_feedback" in ended.error["hint"]
    assert f"{backup.CONFLICT_ATTEMPTS} times" in ended.error["message"]
    assert [event["event"] for event in ended.events].count("backup.retried") == backup.CONFLICT_ATTEMPTS
    assert cluster.here.listed() == []


def test_a_conflict_is_known_by_the_servers_count_where_its_words_are_not(
    cluster: Cluster, shell_clients: Callable[[PostgresServer, str], Path]
) -> None:
    set_on(cluster.standby, "max_standby_streaming_delay", "0")
    translated = """"$real" "$@" 2>/dev/null && exit; echo "pg_dump: error: Abbruch" >&2; exit 1"""
    cluster.here.settings["BACKUPD_DUMP__CLIENTS"] = str(shell_clients(cluster.standby, translated))
    with churn(cluster):
        ended = cluster.here.run("backup", "postgres")

    assert (ended.code, ended.error["reason"]) == (16, "replica_conflict"), ended.stderr
    said = ended.error["detail"]
    assert "Abbruch" in said or "SQLSTATE 40001" in said  # pg_dump, or our own session


def test_another_failure_on_a_standby_is_not_tried_again(
    cluster: Cluster, shell_clients: Callable[[PostgresServer, str], Path]
) -> None:
    failing = str(shell_clients(cluster.standby, 'echo "pg_dump: error: permission denied" >&2; exit 1'))
    ended = cluster.here.run("backup", "postgres", BACKUPD_DUMP__CLIENTS=failing)

    assert ended.code == 12, ended.stderr
    assert "backup.retried" not in {event["event"] for event in ended.events}
