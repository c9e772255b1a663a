"""`restore --replace`, `undo` and `restore --resume`: the live name always leads to one whole, open database."""

import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_postgres import DatabaseFactory, PostgresServer
from fix_restore import RestoreClients, client_of, definitions, exists, restore_to, state
from fix_tools import Site, Wire, wait_until
from psycopg import sql

from backupd import archive, facts, marks, obstacles, postgres, swap, target
from backupd.errors import BackupdError
from backupd.manifest import Backup

MakeSite = Callable[..., Site]
NewRole = Callable[..., str]

pytestmark = pytest.mark.slow

SHOP = """
CREATE TABLE goods AS SELECT n AS id, 'thing ' || n AS name FROM generate_series(1, 100) n;
CREATE SEQUENCE counter;
SELECT nextval('counter');
"""
DAMAGE = "DELETE FROM goods WHERE id > 3; CREATE TABLE later AS SELECT 1 AS one"


def sold(server: PostgresServer, name: str, user: str | None = None) -> int:
    """How many goods the database has, asked by a new session."""
    with server.connect(name, **({"user": user} if user else {})) as connection:
        row = connection.execute("SELECT count(*) FROM goods").fetchone()
    assert row is not None
    return int(row[0])


def family(server: PostgresServer, live: str) -> list[str]:
    """The databases whose names begin with the live one's, sorted; itself first."""
    with server.connect() as connection:
        query = "SELECT datname FROM pg_database WHERE starts_with(datname, left(%s, 30)) ORDER BY 1"
        return [row[0] for row in connection.execute(query, [live]).fetchall()]


@dataclass(frozen=True)
class Damaged:
    """A live database that lost rows after its backup."""

    here: Site
    server: PostgresServer
    live: str
    backup: Backup

    def restore(self, **job: Any) -> Any:
        return restore_to(self.here, self.backup, self.live, live=self.live, **job)

    def run(self, *arguments: str, **settings: str) -> Any:
        return self.here.run(*arguments, **settings)

    def assert_as_it_was(self, *, remains: bool = False) -> None:
        """The live database is the damaged one, open to all; nothing is beside it."""
        assert sold(self.server, self.live) == 3
        assert state(self.server, self.live)[:2] == (None, True)
        assert remains or family(self.server, self.live) == [self.live]
        self.here.assert_clean()


@pytest.fixture
def damaged(site: MakeSite, database: DatabaseFactory) -> Callable[..., Damaged]:
    def make(server: PostgresServer, prefix: str = "live", **settings: str) -> Damaged:
        live = database(server, prefix)
        with server.connect(live) as connection:
            connection.execute(SHOP)
        here = site(server, **settings)
        backup = here.take(live)
        here.remember()
        with server.connect(live) as connection:
            connection.execute(DAMAGE)
        return Damaged(here, server, live, backup)

    return make


# --- good weather


def test_a_replaced_database_holds_the_backup_and_the_old_one_is_kept_and_undone(
    any_postgres: PostgresServer, damaged: Callable[..., Damaged]
) -> None:
    given = damaged(any_postgres)
    restored = given.restore()

    assert restored.database == given.live
    assert restored.kept is not None
    assert 0 < restored.gap_seconds < 5
    assert list(restored.seconds) == ["preflight", "fetch", "restore", "compare", "analyze", "swap"]
    assert family(any_postgres, given.live) == [given.live, restored.kept]
    assert sold(any_postgres, given.live) == 100
    assert sold(any_postgres, restored.kept) == 3
    assert state(any_postgres, given.live)[:2] == (None, True)

    with given.here.reached() as access:
        undone = swap.undo(access, "postgres", given.live)
    assert sold(any_postgres, given.live) == 3
    assert sold(any_postgres, undone.kept) == 100
    assert state(any_postgres, given.live)[:2] == (None, True)
    assert family(any_postgres, given.live) == [given.live, undone.kept]
    given.here.assert_untouched()


def test_the_command_line_replaces_undoes_and_forgets(
    postgres17: PostgresServer, damaged: Callable[..., Damaged]
) -> None:
    given = damaged(postgres17)
    ended = given.run("restore", given.backup.id, "--replace", given.live)
    assert ended.code == 0, ended.stderr
    assert f"it is {given.live} now; nobody could connect for 0." in ended.stdout
    kept = family(postgres17, given.live)[1]
    assert f"kept as {kept}" in ended.stdout

    ended = given.run("undo", given.live, "--json")
    assert ended.code == 0, ended.stderr
    kept = json.loads(ended.stdout)["kept"]
    assert sold(postgres17, given.live) == 3

    ended = given.run("undo", given.live, "--drop")
    assert ended.code == 2
    assert f"would drop {kept} (" in ended.error["message"]
    assert exists(postgres17, kept)
    ended = given.run("undo", given.live, "--drop", "--yes")
    assert ended.code == 0, ended.stderr
    assert family(postgres17, given.live) == [given.live]
    ended = given.run("undo", given.live)
    assert ended.code == 2
    assert "no database is kept" in ended.error["message"]


def test_what_does_not_follow_a_rename_comes_from_the_live_database_and_goes_back_with_it(
    any_postgres: PostgresServer, damaged: Callable[..., Damaged], new_role: NewRole
) -> None:
    given = damaged(any_postgres)
    owner, guest = new_role(any_postgres, name=f'own"er {{}} {given.live}'), new_role(any_postgres)
    target = sql.Identifier(given.live)
    with any_postgres.connect() as connection:
        for statement in (
            "ALTER DATABASE {} SET work_mem TO '7MB'",
            'ALTER DATABASE {} SET search_path TO public, "a,b"',
            f"ALTER ROLE {guest} IN DATABASE {{}} SET app.x TO 'one, two'",
            "COMMENT ON DATABASE {} IS E'two\\nlines'",
            "ALTER DATABASE {} CONNECTION LIMIT 7",
            "REVOKE ALL ON DATABASE {} FROM PUBLIC",
            f"GRANT CONNECT ON DATABASE {{}} TO {guest} WITH GRANT OPTION",
        ):
            connection.execute(sql.SQL(statement).format(target))
        connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(target, sql.Identifier(owner)))

    def described() -> list[str]:
        return [line for line in definitions(any_postgres, given.live) if "DATABASE" in line]

    before = described()
    assert len(before) > 8
    restored = given.restore()
    assert restored.refused == ()
    assert described() == before
    with given.here.reached() as access:
        swap.undo(access, "postgres", given.live)
    assert described() == before


def test_the_default_tablespace_is_that_of_the_live_database(
    postgres17: PostgresServer, damaged: Callable[..., Damaged], tmp_path: Path
) -> None:
    given = damaged(postgres17)
    space = sql.Identifier(f"space_{given.live}")
    folder = Path(postgres17.data_directory).parent / f"space_{given.live}"
    with postgres17.connect() as connection:
        connection.execute("SET allow_in_place_tablespaces = on")
        connection.execute(sql.SQL("CREATE TABLESPACE {} LOCATION ''").format(space))
        connection.execute(sql.SQL("ALTER DATABASE {} SET TABLESPACE {}").format(sql.Identifier(given.live), space))
    try:
        given.restore()
        query = "SELECT spcname FROM pg_database d JOIN pg_tablespace t ON t.oid = dattablespace WHERE datname = %s"
        with postgres17.connect() as connection:
            assert connection.execute(query, [given.live]).fetchone() == (f"space_{given.live}",)
    finally:
        with postgres17.connect() as connection:
            for name in family(postgres17, given.live):
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
            connection.execute(sql.SQL("DROP TABLESPACE {}").format(space))
    assert not folder.exists()


NAMES = ['we"ird; DROP DATABASE postgres; --', "new\nline\t\\", "ü" * 27, "x" * 54]


@pytest.mark.parametrize("prefix", NAMES)
def test_a_live_name_may_be_hostile_and_have_63_bytes(
    prefix: str, postgres17: PostgresServer, damaged: Callable[..., Damaged]
) -> None:
    given = damaged(postgres17, prefix)
    restored = given.restore()
    assert restored.kept is not None
    assert len(restored.kept.encode()) <= 62
    assert sold(postgres17, given.live) == 100
    with given.here.reached() as access:
        undone = swap.undo(access, "postgres", given.live)
        assert sold(postgres17, given.live) == 3
        assert swap.forget(access, "postgres", given.live) == [undone.kept]


def test_patterns_of_databases_never_mean_what_backupd_made(
    postgres17: PostgresServer, damaged: Callable[..., Damaged], restore_clients: RestoreClients
) -> None:
    given = damaged(postgres17)
    given.restore()
    failing = client_of(postgres17, restore_clients(postgres17, "exit 0"))
    with suppress(BackupdError):
        given.restore(clients=[failing], keep=True)
    assert len(family(postgres17, given.live)) == 3
    ended = given.run("backup", f"{given.live[:-2]}*", "--json")
    assert ended.code == 0, ended.stderr
    assert [json.loads(line)["source"]["database"] for line in ended.stdout.splitlines()] == [given.live]


def test_what_is_restored_from_a_backup_of_a_kept_database_is_not_taken_for_a_kept_one(
    postgres17: PostgresServer, damaged: Callable[..., Damaged]
) -> None:
    given = damaged(postgres17)
    live, recovered = sql.Identifier(given.live), f"{given.live}_recovered"
    with postgres17.connect() as connection:
        connection.execute(sql.SQL("COMMENT ON DATABASE {} IS 'the shop'").format(live))
    kept = given.restore().kept
    assert (state(postgres17, kept)[0] or "").startswith("backupd kept this database")
    of_kept = given.here.take(kept)
    restore_to(given.here, of_kept, recovered)

    ended = given.run("undo", given.live, "--drop", "--yes")
    assert ended.code == 0, ended.stderr
    assert family(postgres17, given.live) == [given.live, recovered]
    assert sold(postgres17, recovered) == 3
    assert state(postgres17, recovered)[:2] == ("the shop", True)
    assert archive.read_index(given.here.catalog.archive(of_kept)).contract.database.comment == "the shop"


@pytest.mark.parametrize("mark", ["kept", "ready"])
def test_a_mark_in_an_archive_is_not_restored(
    mark: marks.State, postgres17: PostgresServer, damaged: Callable[..., Damaged]
) -> None:
    """Backups of kept databases, taken before their contract left the mark out."""
    given = damaged(postgres17)
    comment = marks.Mark(mark, given.backup.id, given.live, "20261126030007" if mark == "kept" else "", "two\nlines")
    other = f"{given.live}_other"
    with given.here.reached() as access, postgres.connect(access, "postgres") as session:
        like = replace(facts.properties(session, given.live), comment=comment.text())
        session.execute("CREATE DATABASE {}", [other])
        assert target.open_new(session, other, like) == []
        assert obstacles.made_for(session, given.live) == []
    assert state(postgres17, other)[:2] == ("two\nlines", True)


# --- an ordinary owner, as on a managed service


def test_an_owner_who_is_no_superuser_replaces_and_undoes(
    any_postgres: PostgresServer, site: MakeSite, new_role: NewRole
) -> None:
    role = new_role(any_postgres, "CREATEDB")
    live = f"{role}_live"
    with any_postgres.connect() as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(live), sql.Identifier(role)))
    with any_postgres.connect(live, user=role) as connection:
        connection.execute(SHOP)
    here = site(any_postgres)
    backup = here.take(live)
    with any_postgres.connect(live, user=role) as connection:
        connection.execute(DAMAGE)
        connection.execute(sql.SQL("ALTER DATABASE {} SET work_mem TO '7MB'").format(sql.Identifier(live)))
    settings = {"BACKUPD_TARGET__USER": role, "BACKUPD_TARGET__PASSWORD": any_postgres.password}
    with clients(any_postgres, live, 3, user=role) as busy:
        ended = here.run("restore", backup.id, "--replace", live, "--json", **settings)
        assert ended.code == 0, ended.stderr
        assert json.loads(ended.stdout)["refused"] == []
        assert state(any_postgres, live) == (None, True, role)
        wait_until(lambda: busy.seen(100), "no client came back")
        ended = here.run("undo", live, **settings)
        assert ended.code == 0, ended.stderr
        wait_until(lambda: busy.last == 3, "no client came back")
    assert state(any_postgres, live) == (None, True, role)


# --- clients that come back


@dataclass
class Clients:
    """Sessions that reconnect as fast as they are ended, and what they saw."""

    counts: list[tuple[float, int]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def last(self) -> int:
        return self.counts[-1][1]

    def seen(self, count: int) -> bool:
        return any(found == count for _, found in self.counts)

    def longest_gap(self) -> float:
        """The longest time in which no client got an answer."""
        moments = sorted(moment for moment, _ in self.counts)
        return max(after - before for before, after in pairwise(moments))

    def run(self, server: PostgresServer, database: str, keywords: dict[str, str]) -> None:
        while not self.done.is_set():
            try:
                with server.connect(database, **keywords) as connection:
                    while not self.done.is_set():
                        row = connection.execute("SELECT count(*) FROM goods").fetchone()
                        assert row is not None
                        self.counts.append((time.monotonic(), row[0]))
                        time.sleep(0.01)
            except psycopg.Error as exc:
                self.failures.append(str(exc))


@contextmanager
def clients(server: PostgresServer, database: str, number: int, **keywords: str) -> Iterator[Clients]:
    busy = Clients()
    threads = [threading.Thread(target=busy.run, args=(server, database, keywords)) for _ in range(number)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(busy.counts) > number, "no client got in")
        yield busy
    finally:
        busy.done.set()
        for thread in threads:
            thread.join()


def test_sessions_that_reconnect_faster_than_they_are_ended_do_not_stop_a_swap(
    postgres17: PostgresServer, damaged: Callable[..., Damaged]
) -> None:
    given = damaged(postgres17)
    with clients(postgres17, given.live, 20) as busy:
        restored = given.restore()
        wait_until(lambda: busy.last == 100, "no client came back")
        before = [count for _, count in busy.counts]
    assert restored.gap_seconds < 2
    assert busy.longest_gap() < 3
    assert set(before) == {3, 100}  # nobody ever saw anything else
    assert not [text for text in busy.failures if "not currently accepting" in text]


# --- killed at every step


class Stepwise(Wire):
    """A wire that acts at the n-th statement that changes a database or a transaction, and breaks.

    At a `question` the server never gets it, at an answer it has obeyed, and its client never hears.
    """

    def __init__(
        self, port: int, at: int = 0, act: Callable[[], None] = lambda: None, *, question: bool = True
    ) -> None:
        self.questions: list[bytes] = []
        self.answers: list[bytes] = []
        self._at, self._act, self._question = at, act, question
        super().__init__(port)

    def _ask(self, data: bytes, passed: int) -> bytes:
        if re.search(rb"\b(DATABASE|BEGIN|COMMIT|SET LOCAL)\b", data):
            self.questions.append(data)
            self._break_at(self.questions, self._question)
        return data

    def _answer(self, data: bytes, passed: int) -> bytes:
        if re.search(rb"C....(ALTER DATABASE|COMMENT|COMMIT|CREATE DATABASE)\0", data, re.DOTALL):
            self.answers.append(data)
            self._break_at(self.answers, not self._question)
        return data

    def _break_at(self, seen: list[bytes], wanted: bool) -> None:
        if wanted and len(seen) == self._at:
            self._act()
            raise OSError("cut")


def kill(running: list[Any]) -> None:
    running[0].send(signal.SIGKILL)


def whole(given: Damaged) -> int:
    """The live database is open to all, and exactly the old or exactly the restored one."""
    assert exists(given.server, given.live), family(given.server, given.live)
    assert state(given.server, given.live)[:2] == (None, True)
    found = sold(given.server, given.live)
    assert found in (3, 100)
    with given.server.connect(given.live) as connection:
        later = connection.execute("SELECT to_regclass('later') IS NOT NULL").fetchone()
    assert later == (found == 3,)
    return found


def test_killed_at_any_step_the_live_name_leads_to_one_whole_open_database_and_resume_ends_it(
    postgres17: PostgresServer, damaged: Callable[..., Damaged]
) -> None:
    """SIGKILL before and after each statement that changes something, from CREATE DATABASE to the last COMMIT."""
    given = damaged(postgres17)
    with Stepwise(postgres17.port) as wire:
        restore_through(given, wire, [])
        steps = [(True, at) for at in range(1, len(wire.questions) + 1)]
        steps += [(False, at) for at in range(1, len(wire.answers) + 1)]
    assert len(steps) > 20
    put_back(given)
    outcomes = {}
    for question, at in steps:
        running: list[Any] = []
        with Stepwise(postgres17.port, at, partial(kill, running), question=question) as wire:
            assert restore_through(given, wire, running) == -signal.SIGKILL
        found = whole(given)
        with given.here.reached() as access:
            swap.resume(access, "postgres", given.live)
        outcomes[question, at] = found, whole(given)
        assert not [name for name in family(postgres17, given.live) if "_beside_" in name]
        put_back(given)
    assert outcomes[True, 1] == (3, 3)  # nothing was made
    assert outcomes[False, 1] == (3, 3)  # made, and not even marked
    assert outcomes[True, max(at for question, at in steps if question)] == (3, 100)  # ready, and not committed
    assert outcomes[False, max(at for question, at in steps if not question)] == (100, 100)  # committed, and not heard
    given.here.run("list")


def restore_through(given: Damaged, wire: Stepwise, running: list[Any]) -> int:
    """Runs the command line over that wire, and returns how it ended."""
    arguments = "restore", given.backup.id, "--replace", given.live
    running.append(given.here.start(*arguments, BACKUPD_TARGET__PORT=str(wire.port)))
    code: int = running[0].end().code
    return code


def put_back(given: Damaged) -> None:
    """The live database is the damaged one again, and nothing is kept."""
    with given.here.reached() as access:
        if whole(given) == 100:
            swap.undo(access, "postgres", given.live)
        swap.forget(access, "postgres", given.live)
    assert whole(given) == 3
