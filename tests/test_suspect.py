"""A backup that lost most of what earlier ones had: published, said, and nothing older goes before somebody looked."""

from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import psycopg
import pytest
from fix_postgres import DatabaseFactory, PostgresServer
from fix_restore import flip
from fix_tools import Ended, Site
from made_archives import WatchedStore

from backupd.catalog import Catalog
from backupd.errors import DatabaseError
from backupd.selector import name_of

pytestmark = pytest.mark.slow

MakeSite = Callable[..., Site]


def warnings(ended: Ended) -> list[dict[str, Any]]:
    """What a run warned of, but for the age of this machine's clients."""
    return [each for each in ended.events if each["level"] == "warning" and each["event"] != "client.vulnerable"]


@pytest.fixture
def here(postgres17: PostgresServer, site: MakeSite) -> Site:
    """An installation that keeps one backup."""
    return site(postgres17, BACKUPD_RETENTION__KEEP_LAST="1", BACKUPD_RETENTION__FLOOR="1")


@pytest.fixture
def link(here: Site, database: DatabaseFactory) -> Iterator[psycopg.Connection[object]]:
    """A session in a database with users and, by far more, events."""
    with here.server.connect(database(here.server)) as connection:
        connection.execute("CREATE TABLE users AS SELECT n FROM generate_series(1, 2000) n")
        connection.execute("CREATE TABLE events AS SELECT n FROM generate_series(1, 20000) n")
        yield connection


def test_a_backup_of_an_emptied_database_is_suspect_and_said_with_exit_code_0(
    here: Site, link: psycopg.Connection[object]
) -> None:
    name = link.info.dbname
    good = here.take(name)
    link.execute("DELETE FROM events")
    ended = here.run("backup", name)
    said = warnings(ended)
    newest = here.catalog.find("latest")
    reason = "2000 rows in all, and at least 22000 in the earlier backup"

    assert ended.code == 0
    assert newest.manifest.suspect is not None
    assert newest.manifest.suspect.startswith(reason)
    assert [each["event"] for each in said] == ["backup.suspect", "retention.frozen"]
    assert said[0]["backup"] == str(name_of(newest))
    assert set(here.listed()) == {good.id, newest.id}
    assert f"SUSPECT: {reason}" in here.run("list").stdout


def test_the_alarm_stays_until_the_rows_are_back_or_it_is_confirmed(
    here: Site, link: psycopg.Connection[object]
) -> None:
    name = link.info.dbname
    here.take(name)
    link.execute("DELETE FROM events")
    assert here.take(name).suspect
    assert here.take(name).suspect  # a suspect one is no predecessor
    link.execute("INSERT INTO events SELECT n FROM generate_series(1, 20000) n")
    assert here.take(name).suspect is None
    link.execute("DELETE FROM events")
    suspect = here.take(name)
    assert suspect.suspect
    ended = here.run("confirm", suspect.id)

    assert (ended.code, here.catalog.find(suspect.id).suspect) == (0, None)
    assert ended.stdout.startswith(f"confirmed {name_of(suspect)}: 2000 rows in all")
    assert here.take(name).suspect is None
    assert here.run("prune", "--yes").code == 0
    assert len(here.listed()) == 1


def test_a_small_table_that_was_emptied_among_large_ones_is_named(here: Site, link: psycopg.Connection[object]) -> None:
    name = link.info.dbname
    for _ in range(3):
        here.take(name)
    link.execute("TRUNCATE users")

    assert here.take(name).suspect == "table public.users has 0 rows, and at least 2000 in each of 3 earlier backups"


def test_a_pin_on_the_suspect_backup_lets_retention_go_on(here: Site, link: psycopg.Connection[object]) -> None:
    name = link.info.dbname
    older, good = here.take(name), here.take(name)
    link.execute("DELETE FROM events")
    suspect = here.take(name)
    here.run("prune", "--yes")
    assert len(here.listed()) == 3
    here.run("pin", suspect.id)
    here.run("prune", "--yes")

    assert set(here.listed()) == {good.id, suspect.id}
    assert older.id not in here.listed()


def test_a_predecessor_that_cannot_be_read_stops_no_backup(here: Site, link: psycopg.Connection[object]) -> None:
    name = link.info.dbname
    damaged = here.take(name)
    flip(here, damaged, damaged.manifest.index_offset)
    ended = here.run("backup", name)

    assert ended.code == 0
    assert [each["event"] for each in warnings(ended)] == ["anomaly.unknown"]


def test_a_lock_that_is_lost_while_predecessors_are_read_keeps_the_backup_from_being_listed(
    here: Site, link: psycopg.Connection[object]
) -> None:
    """A slow store makes that long, and who has the lock then sweeps an archive that has no manifest yet."""
    good = here.take(link.info.dbname)

    def end_the_holder(start: int, stream: BinaryIO) -> BinaryIO:
        if start:  # the index of an archive: manifests are read before the dump
            link.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
        return stream

    watched = WatchedStore(here.catalog.store, replace_stream=end_the_holder)
    with pytest.raises(DatabaseError, match="lock on the source was lost"):
        here.take(link.info.dbname, catalog=Catalog(watched))

    assert watched.opened
    assert here.listed() == [good.id]


def test_only_what_looked_wrong_can_be_confirmed(here: Site, link: psycopg.Connection[object]) -> None:
    taken = here.take(link.info.dbname)
    here.remember()
    ended = here.run("confirm", taken.id)

    assert "did not look wrong" in ended.error["message"]
    here.assert_failed(ended, 2, "usage")
