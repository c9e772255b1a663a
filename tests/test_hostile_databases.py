"""Databases whose owners are hostile: nothing that they made runs with our rights in a query of ours."""

import glob
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from attack import arena, peers
from attack.archives import assert_quiet
from fix_postgres import DatabaseFactory, PostgresServer
from fix_restore import NewName
from fix_tools import Site
from psycopg import sql
from traps import SPRUNG, fill_traps

from backupd import facts, marks, postgres, swap
from backupd.errors import DatabaseError, UsageError

MakeSite = Callable[..., Site]
NewRole = Callable[..., str]


@pytest.fixture
def trapped(new_role: NewRole, database: DatabaseFactory) -> Callable[[PostgresServer], str]:
    """The name of a database full of traps."""

    def make(server: PostgresServer) -> str:
        owner, name = new_role(server), database(server, "trapped")
        with server.connect(name) as connection:
            fill_traps(connection, owner)
        return name

    return make


def test_no_session_of_ours_springs_a_trap(
    postgres17: PostgresServer, trapped: Callable[[PostgresServer], str], tmp_path: Path
) -> None:
    name = trapped(postgres17)
    for query in ("SELECT pg_backend_pid()", "SELECT 1 = 1", "SELECT count(*) FROM pg_database"):
        with postgres17.connect(name) as connection, pytest.raises(psycopg.errors.RaiseException, match=SPRUNG):
            connection.execute(query)

    with postgres.reach(postgres17.as_server(), name, tmp_path, "test") as access, postgres.connect(access, name) as it:
        assert facts.read(it, ()).properties.settings[0].name == "search_path"
        assert it.row("SELECT count(*) FROM pg_database WHERE datname = current_database()") == (1,)


@pytest.mark.slow
def test_nothing_that_a_database_s_owner_put_first_in_its_search_path_runs(
    any_postgres: PostgresServer, trapped: Callable[[PostgresServer], str], site: MakeSite, new_name: NewName
) -> None:
    source, name = trapped(any_postgres), new_name(any_postgres)
    here = site(any_postgres, BACKUPD_SOURCE__DATABASES=source, BACKUPD_TARGET__DATABASE=source)
    for arguments in (
        ["doctor"],
        ["backup"],
        ["check", "--max-age=1h"],
        ["restore", "latest", f"--as={name}", "--plan"],
        ["restore", "latest", f"--as={name}"],
        ["restore", "latest", f"--replace={name}", f"--yes-replace={name}"],
        ["undo", name],
        ["undo", name, "--drop", "--yes"],
    ):
        ended = here.run(*arguments)
        assert SPRUNG not in ended.stdout + ended.stderr, arguments
        assert ended.code == 0, (arguments, ended.stderr)


@pytest.mark.slow
def test_settings_that_a_database_s_owner_gave_it_change_no_query_of_ours(
    postgres17: PostgresServer, database: DatabaseFactory, site: MakeSite, new_name: NewName
) -> None:
    name = new_name(postgres17)
    source = database(postgres17, "strange")
    with postgres17.connect(source) as connection:
        connection.execute("CREATE SCHEMA pgapp")
        connection.execute("CREATE TABLE pgapp.rows AS SELECT n FROM generate_series(1, 10) n")
        for setting in ("standard_conforming_strings = off", "DateStyle = 'German'", "statement_timeout = '3ms'"):
            statement = sql.SQL("ALTER DATABASE {} SET " + setting)
            connection.execute(statement.format(sql.Identifier(source)))
    here = site(postgres17, BACKUPD_TARGET__DATABASE=source)
    taken = here.take(source)
    index = here.index(taken)
    assert [(table.schema, table.name) for table in index.contract.tables] == [("pgapp", "rows")]
    for arguments in (
        ["restore", "latest", f"--as={name}"],
        ["restore", "latest", f"--replace={name}", f"--yes-replace={name}"],
        ["undo", name],
    ):
        ended = here.run(*arguments)
        assert ended.code == 0, (arguments, ended.stderr)


def test_undo_takes_no_database_whose_owner_only_says_that_it_was_the_live_one(
    postgres17: PostgresServer, database: DatabaseFactory, new_role: NewRole, tmp_path: Path
) -> None:
    planter, live = new_role(postgres17, "CREATEDB"), database(postgres17, "live")
    planted = database(postgres17, f"{live}_before")
    mark = marks.Mark("kept", "undo", live, "29991231235959").text()
    with postgres17.connect() as connection:
        name = sql.Identifier(planted)
        connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(name, sql.Identifier(planter)))
        connection.execute(sql.SQL("SET SESSION AUTHORIZATION {}").format(sql.Identifier(planter)))
        connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(name, mark))
    with postgres.reach(postgres17.as_server(), "postgres", tmp_path, "test") as access:
        with pytest.raises(UsageError, match="no database is kept"):
            swap.undo(access, "postgres", live)
        assert swap.forget(access, "postgres", live) == []
        with postgres17.connect() as connection:
            connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(name, sql.Identifier(postgres17.user)))
        assert swap.undo(access, "postgres", live).database == live


@pytest.mark.slow
def test_a_server_that_falls_silent_can_be_given_up(postgres17: PostgresServer, site: MakeSite) -> None:
    asked = threading.Event()

    def fall_silent(client: socket.socket, start: bytes) -> None:
        client.sendall(peers.GREETING)
        for _ in range(2):
            peers._asked(client)
            client.sendall(peers.SET)
        peers._asked(client)
        asked.set()
        client.recv(1)

    peer = peers.Peer(fall_silent)
    here = site(postgres17, BACKUPD_SOURCE__PORT=str(peer.port))
    run = here.start("backup", "postgres")
    assert asked.wait(30)
    run.send(signal.SIGTERM)
    ended = run.end()
    peer.close()
    assert ended.code == 143
    here.assert_clean()


@pytest.mark.slow
@pytest.mark.parametrize(("required", "given"), [("", True), ("scram-sha-256", False)])
def test_a_password_is_given_in_clear_only_where_nobody_forbids_it(
    required: str, given: bool, postgres17: PostgresServer, site: MakeSite
) -> None:
    heard: list[bytes] = []

    def ask(client: socket.socket, start: bytes) -> None:
        client.sendall(peers.message(b"R", b"\0\0\0\3"))
        heard.append(peers._asked(client))

    peer = peers.Peer(ask)
    here = site(
        postgres17, BACKUPD_SOURCE__PORT=str(peer.port), PGREQUIREAUTH=required, BACKUPD_SOURCE__SSLMODE="prefer"
    )
    assert here.run("backup", "postgres").code in (12, 18)
    peer.close()
    assert any(postgres17.password.encode() in data for data in heard) == given


@pytest.mark.parametrize("answer", ["an empty result", "JSON that is none", "NULL"])
def test_a_server_that_does_not_answer_as_postgresql_does_is_said_to_be_none(
    answer: str, postgres17: PostgresServer, tmp_path: Path
) -> None:
    peer = peers.Peer(peers._TALKS[f"answers {answer} to statement {peers._AFTER_SETS}"])
    server = postgres17.as_server(host="127.0.0.1", port=str(peer.port))
    with pytest.raises(DatabaseError), postgres.reach(server, "postgres", tmp_path, "test"):
        pytest.fail("it was reached")
    peer.close()


@pytest.mark.slow
def test_a_database_s_name_is_no_markup_and_no_command_to_the_terminal(
    postgres17: PostgresServer, database: DatabaseFactory, site: MakeSite
) -> None:
    name, here = database(postgres17, "[/red][bold]\x1bPWN\x07PWN"), site(postgres17)
    with arena.opened() as pit:
        for arguments in (["backup", glob.escape(name)], ["list"], ["show", "latest"]):
            ended = pit.run(arguments, here.environment(TERM="xterm"))
            assert ended.code == 0, ended.terminal
            assert "[/red]" in ended.terminal or "%5B%2Fred%5D" in ended.terminal
            assert_quiet(ended)
