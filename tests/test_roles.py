"""Roles that a dump needs: recorded without passwords, made where they are missing, or done without."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fix_postgres import PostgresServer
from fix_restore import NewName, RestoreClients, client_of, contents, definitions, exists, restore_to
from fix_tools import Site
from psycopg import sql

from backupd.errors import AccessRefused, RestoreFailed, TargetRefused, UsageError
from backupd.manifest import Backup

pytestmark = pytest.mark.slow

MakeSite = Callable[..., Site]
NewRole = Callable[..., str]

OWNER, GROUP, READER, BOSS = "gone owner", "gone_group", "gone_reader", "gone_boss"
ROLES = (OWNER, GROUP, READER, BOSS)

SOURCE = f"""
CREATE ROLE {GROUP} NOLOGIN CONNECTION LIMIT 3;
CREATE ROLE {BOSS} SUPERUSER LOGIN PASSWORD 'never recorded' BYPASSRLS;
CREATE ROLE "gone owner" LOGIN NOINHERIT CREATEDB CREATEROLE PASSWORD 'never recorded';
CREATE ROLE {READER} LOGIN;
GRANT {GROUP} TO "gone owner" WITH ADMIN OPTION;
GRANT pg_read_all_data TO {READER};
"""
OBJECTS = f"""
CREATE SCHEMA private AUTHORIZATION "gone owner";
SET ROLE "gone owner";
CREATE TABLE private.rows AS SELECT n FROM generate_series(1, 10) n;
CREATE INDEX ON private.rows (n);
GRANT SELECT ON private.rows TO {READER};
ALTER DEFAULT PRIVILEGES IN SCHEMA private GRANT SELECT ON TABLES TO {READER};
RESET ROLE;
CREATE SCHEMA of_boss AUTHORIZATION {BOSS};
CREATE VIEW of_boss.seen AS SELECT 1 AS n;
ALTER VIEW of_boss.seen OWNER TO {BOSS};
"""


@dataclass(frozen=True)
class Case:
    """A backup of a database whose owner and roles are gone since; what its source looked like."""

    server: PostgresServer
    here: Site
    backup: Backup
    contents: dict[str, list[bytes]]
    definitions: list[str]

    def roles(self) -> dict[str, dict[str, Any]]:
        """Those of the roles that the server has."""
        with self.server.connect() as connection:
            query = "SELECT rolname, to_jsonb(r) - 'oid' - 'rolpassword' FROM pg_roles r WHERE rolname = ANY(%s)"
            return dict(connection.execute(query, [list(ROLES)]).fetchall())

    def assert_untouched(self, name: str) -> None:
        """No role is there, nor the database, and the store is as it was."""
        assert self.roles() == {}
        assert not exists(self.server, name)
        self.here.assert_untouched()


def drop_roles(server: PostgresServer) -> None:
    with server.connect() as connection:
        for role in ROLES:
            if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).fetchone() is not None:
                connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
                connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


@pytest.fixture
def roles_gone(any_postgres: PostgresServer) -> Iterator[None]:
    """Afterwards, when the restored databases are gone, so are the roles."""
    yield
    drop_roles(any_postgres)


@pytest.fixture
def case(any_postgres: PostgresServer, new_role: NewRole, roles_gone: None, new_name: NewName, site: MakeSite) -> Case:
    server, source = any_postgres, new_name(any_postgres, "")
    with server.connect() as connection:
        connection.execute(SOURCE.encode())
        made = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0")
        connection.execute(made.format(sql.Identifier(source), sql.Identifier(OWNER)))
    with server.connect(source) as connection:
        connection.execute(OBJECTS.encode())
    here = site(server)
    backup = here.take(source)
    here.remember()
    found = Case(server, here, backup, contents(server, source), definitions(server, source))
    with server.connect() as connection:
        connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(source)))
    drop_roles(server)
    return found


def test_roles_are_recorded_with_attributes_and_memberships_and_without_passwords(case: Case) -> None:
    contract = case.here.index(case.backup).contract
    known = {role.name: role for role in contract.role_definitions}

    assert set(ROLES) <= set(known)
    assert (known[OWNER].login, known[OWNER].inherit, known[OWNER].create_database) == (True, False, True)
    assert [(each.role, each.admin) for each in known[OWNER].member_of] == [(GROUP, True)]
    assert (known[BOSS].superuser, known[BOSS].bypass_row_security) == (True, True)
    assert known[GROUP].connection_limit == 3
    assert [each.role for each in known[READER].member_of] == ["pg_read_all_data"]
    assert b"never recorded" not in case.here.archive_file(case.backup).read_bytes()


def test_missing_roles_are_made_without_login_and_everything_belongs_to_them_again(
    case: Case, new_name: NewName
) -> None:
    name = new_name(case.server)
    ended = case.here.run("restore", case.backup.id, "--as", name, BACKUPD_RESTORE_CREATE_ROLES="true")

    assert ended.code == 0, ended.stderr
    assert contents(case.server, name) == case.contents
    assert definitions(case.server, name) == case.definitions
    roles = case.roles()
    assert set(roles) == set(ROLES)
    assert not any(role["rolcanlogin"] or role["rolsuper"] for role in roles.values())
    assert roles[OWNER]["rolcreatedb"]
    assert roles[OWNER]["rolcreaterole"]
    assert not roles[OWNER]["rolinherit"]
    assert roles[GROUP]["rolconnlimit"] == 3
    with case.server.connect() as connection:
        query = "SELECT admin_option FROM pg_auth_members WHERE member = %s::regrole AND roleid = %s::regrole"
        assert connection.execute(query, ['"gone owner"', GROUP]).fetchall() == [(True,)]
        member = connection.execute("SELECT pg_has_role(%s, 'pg_read_all_data', 'MEMBER')", [READER]).fetchone()
    assert member == (False,)
    shown = [event["event"] for event in ended.events if event["event"].startswith("role.")]
    assert shown == ["role.planned"] * 4 + ["role.created"] * 4
    assert f'role "{BOSS}" is new: NOLOGIN BYPASSRLS; left to you: ALTER ROLE "{BOSS}" LOGIN SUPERUSER;' in ended.stdout
    assert f'GRANT "pg_read_all_data" TO "{READER}";' in ended.stdout


def test_a_role_that_is_there_is_not_touched(case: Case, new_name: NewName) -> None:
    with case.server.connect() as connection:
        connection.execute('CREATE ROLE "gone owner" LOGIN CONNECTION LIMIT 9')
    before = case.roles()
    restore_to(case.here, case.backup, name := new_name(case.server), create_roles=True)

    assert case.roles()[OWNER] == before[OWNER]
    with case.server.connect() as connection:
        assert connection.execute("SELECT pg_has_role(%s, %s, 'MEMBER')", [OWNER, GROUP]).fetchone() == (False,)
    assert contents(case.server, name) == case.contents


def test_without_a_word_about_missing_roles_nothing_is_written_and_the_ways_out_are_named(
    case: Case, new_name: NewName
) -> None:
    name = new_name(case.server)
    with pytest.raises(TargetRefused) as raised:
        restore_to(case.here, case.backup, name)

    assert {"--create-roles", "--no-owner", "--role"} <= set((raised.value.hint or "").replace(",", "").split())
    case.assert_untouched(name)


def test_a_restore_that_fails_leaves_no_roles(case: Case, new_name: NewName, restore_clients: RestoreClients) -> None:
    name = new_name(case.server)
    failing = client_of(case.server, restore_clients(case.server, '"$real" "$@"; exit 1'))
    with pytest.raises(RestoreFailed):
        restore_to(case.here, case.backup, name, clients=[failing], create_roles=True)

    case.assert_untouched(name)


def test_an_ordinary_role_that_may_create_roles_makes_them_without_any_power(
    case: Case, new_name: NewName, new_role: NewRole
) -> None:
    role, name = new_role(case.server, "CREATEDB CREATEROLE"), new_name(case.server)
    restored = restore_to(case.here, case.backup, name, create_roles=True, keywords={"user": role})

    assert contents(case.server, name) == case.contents
    assert not any(each["rolcreatedb"] or each["rolcreaterole"] for each in case.roles().values())
    left = f'ALTER ROLE "{BOSS}" LOGIN SUPERUSER BYPASSRLS;'
    assert f'role "{BOSS}" is new: NOLOGIN; left to you: {left}' in restored.roles
    with case.server.connect(name) as connection:
        owners = dict(connection.execute("SELECT relname::text, relowner::regrole::text FROM pg_class").fetchall())
    assert (owners["rows"], owners["seen"]) == ('"gone owner"', BOSS)


def test_a_role_that_may_create_none_is_told_before_anything_is_written(
    case: Case, new_name: NewName, new_role: NewRole
) -> None:
    role, name = new_role(case.server, "CREATEDB"), new_name(case.server)
    with pytest.raises(AccessRefused, match="may not create the missing roles") as raised:
        restore_to(case.here, case.backup, name, create_roles=True, keywords={"user": role})

    assert "--no-owner" in (raised.value.hint or "")
    case.assert_untouched(name)


def test_without_owners_no_roles_are_needed_and_everything_belongs_to_who_restores(
    case: Case, new_name: NewName, new_role: NewRole
) -> None:
    role, name = new_role(case.server, "CREATEDB"), new_name(case.server)
    restored = restore_to(case.here, case.backup, name, owners=False, keywords={"user": role})

    assert contents(case.server, name) == case.contents
    assert owners_of(case.server, name) == {role}
    assert [what for what in restored.refused if not what.startswith("ANALYZE")] == []
    assert case.roles() == {}


def test_another_role_owns_everything_where_it_is_named(case: Case, new_name: NewName, new_role: NewRole) -> None:
    role, name = new_role(case.server), new_name(case.server)
    ended = case.here.run("restore", case.backup.id, "--as", name, "--role", role)

    assert ended.code == 0, ended.stderr
    assert contents(case.server, name) == case.contents
    assert owners_of(case.server, name) == {role}
    assert case.roles() == {}


def owners_of(server: PostgresServer, name: str) -> set[str]:
    """Who owns the database, the schema and what is in it."""
    with server.connect(name) as connection:
        query = (
            "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()"
            " UNION SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname IN ('private', 'of_boss')"
            " UNION SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname IN ('rows', 'seen')"
        )
        return {row[0] for row in connection.execute(query).fetchall()}


def test_a_role_that_is_not_there_or_not_ours_is_refused_before_anything_is_written(
    case: Case, new_name: NewName, new_role: NewRole
) -> None:
    role, other, name = new_role(case.server, "CREATEDB"), new_role(case.server), new_name(case.server)
    with pytest.raises(TargetRefused, match="does not exist"):
        restore_to(case.here, case.backup, name, owners=False, role="nobody_at_all")
    with pytest.raises(AccessRefused, match="may not become"):
        restore_to(case.here, case.backup, name, owners=False, role=other, keywords={"user": role})
    case.assert_untouched(name)


def test_roles_that_policies_name_are_needed_even_without_owners(
    postgres17: PostgresServer, site: MakeSite, new_role: NewRole, new_name: NewName
) -> None:
    here, source = site(postgres17), new_name(postgres17)
    with postgres17.connect() as connection:
        connection.execute(f"CREATE ROLE {READER}".encode())
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(source)))
    with postgres17.connect(source) as connection:
        connection.execute(f"CREATE TABLE t (n int); CREATE POLICY p ON t TO {READER} USING (n > 0)".encode())
    backup = here.take(source)
    with postgres17.connect() as connection:
        connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(source)))
        connection.execute(f"DROP ROLE {READER}".encode())
    with pytest.raises(TargetRefused, match=READER):
        restore_to(here, backup, new_name(postgres17), owners=False)


def test_making_roles_and_doing_without_owners_exclude_each_other(case: Case) -> None:
    ended = case.here.run("restore", case.backup.id, "--as", "x", "--create-roles", "--no-owner")

    assert (ended.code, ended.error["reason"]) == (2, UsageError.reason)
    assert json.dumps(ended.error).count("--create-roles") == 1
