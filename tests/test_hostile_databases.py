"""Databases whose owners are hostile: nothing that they made runs with our rights in a query of ours."""

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from fix_postgres import DatabaseFactory, PostgresServer
from fix_restore import NewName
from fix_tools import Site
from psycopg import sql
from traps import SPRUNG, fill_traps

from backupd import facts, postgres

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
        assert facts.read(it).properties.settings[0].name == "search_path"
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
        for setting in ("standard_conforming_strings = off", "DateStyle = 'German'", "statement_timeout = '1ms'"):
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
