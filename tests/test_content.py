"""A database's content against a dump of it: every difference is found, and what may differ is no difference."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest
from fix_postgres import DatabaseFactory, PostgresServer
from fix_restore import NewName, flip
from fix_tools import Site, access_server
from psycopg import sql

from backupd import content, postgres
from backupd.content import Compared, Content
from backupd.errors import VerificationFailed
from backupd.manifest import Backup
from backupd.progress import Progress

pytestmark = pytest.mark.slow

MakeSite = Callable[..., Site]


def compare(here: Site, backup: Backup, database: str, *, user: str = "") -> Content:
    """The database against the backup; by another role, if one is named."""
    made = access_server(here)
    server = type(made)({**made.keywords, **({"user": user} if user else {})}, made.password, None, made.environment)
    dump = content.Dump(here.catalog.archive(backup), here.index(backup))
    with postgres.reach(server, database, here.temporary, "backupd test") as access:
        return content.compare(access, database, dump, 2, Progress())


def outcomes(found: Content) -> dict[str, str]:
    """What became of each table."""
    return {each.name: each.outcome for each in found.tables}


@contextmanager
def dumped(
    here: Site, database: str, *statements: str, encoding: str = "UTF8"
) -> Iterator[tuple[Backup, psycopg.Connection[object]]]:
    """A backup of the database after those statements, and a session to change it then."""
    with here.server.connect(database) as connection:
        for statement in statements:
            connection.execute(statement.encode(encoding))
        yield here.take(database), connection


@pytest.fixture
def here(postgres17: PostgresServer, site: MakeSite) -> Site:
    """An installation of PostgreSQL 17."""
    return site(postgres17)


def test_a_database_is_identical_to_its_own_dump(
    any_postgres: PostgresServer, site: MakeSite, shop_of: Callable[[PostgresServer], str]
) -> None:
    here, database = site(any_postgres), shop_of(any_postgres)
    backup = here.take(database)
    found = compare(here, backup, database)

    assert found.identical
    assert found.different == ()
    assert {each.outcome for each in found.tables} == {"identical", "other order"}
    assert outcomes(found)["shop.events"] == "other order"  # through its root, so never in order
    assert sum(found.counts.values()) == backup.manifest.totals.tables
    assert [each.outcome for each in found.large_objects] == ["identical"] * 4


def test_a_changed_value_is_found_where_the_number_of_rows_agrees(here: Site, database: DatabaseFactory) -> None:
    name = database(here.server)
    with dumped(here, name, "CREATE TABLE t AS SELECT n, n % 7 AS m FROM generate_series(1, 1000) n") as (backup, link):
        link.execute("UPDATE t SET m = m + 1 WHERE n = 500")
        found = compare(here, backup, name)

    assert found.different == (Compared("public.t", "different", 1, "1000 rows, but not the same ones"),)
    assert not found.identical


def test_a_row_too_many_and_a_row_too_few_are_found(here: Site, database: DatabaseFactory) -> None:
    name = database(here.server)
    tables = ("CREATE TABLE more AS SELECT 1 AS n", "CREATE TABLE less AS SELECT 1 AS n")
    with dumped(here, name, *tables) as (backup, link):
        link.execute("INSERT INTO more VALUES (1)")
        link.execute("DELETE FROM less")
        found = compare(here, backup, name)

    assert {each.name: each.why for each in found.different} == {
        "public.more": "1 rows promised, 2 found",
        "public.less": "1 rows promised, 0 found",
    }


def test_rows_in_another_order_are_the_same_rows(here: Site, database: DatabaseFactory) -> None:
    name = database(here.server)
    with dumped(here, name, "CREATE TABLE t AS SELECT n, E'\\t\\\\\\n' AS x FROM generate_series(1, 1000) n") as made:
        backup, link = made
        link.execute("UPDATE t SET n = n WHERE n % 3 = 0")
        found = compare(here, backup, name)

    assert outcomes(found) == {"public.t": "other order"}
    assert found.identical


def test_large_objects_are_compared_to_their_last_byte(here: Site, database: DatabaseFactory) -> None:
    name = database(here.server)
    fill = (
        "SELECT lo_from_bytea(n, convert_to(repeat(md5(n::text), 70000), 'UTF8')) FROM generate_series(20001, 20004) n"
    )
    with dumped(here, name, fill) as (backup, link):
        link.execute("SELECT lo_put(20002, 2239999, '\\x00')")
        link.execute("SELECT lo_put(20003, 2240000, '\\x00')")
        link.execute("SELECT lo_unlink(20004)")
        found = compare(here, backup, name)

    assert [(each.outcome, each.why) for each in found.large_objects] == [
        ("identical", ""),
        ("different", "2240000 bytes promised, 2240000 others found"),
        ("different", "2240000 bytes promised, 2240001 others found"),
        ("different", "it is not there"),
    ]


def test_a_large_object_of_exactly_one_chunk_is_read_to_its_end(here: Site, database: DatabaseFactory) -> None:
    name = database(here.server)
    fill = f"SELECT lo_from_bytea(20001, convert_to(repeat('x', {content.CHUNK_BYTES}), 'UTF8'))"
    with dumped(here, name, fill) as (backup, link):
        same = compare(here, backup, name)
        link.execute("SELECT lo_put(20001, %s, '\\x00')", [content.CHUNK_BYTES])
        longer = compare(here, backup, name)

    assert [each.outcome for each in (*same.large_objects, *longer.large_objects)] == ["identical", "different"]


def test_partitions_with_other_orders_of_columns_are_compared_at_their_root(
    here: Site, database: DatabaseFactory
) -> None:
    name = database(here.server)
    statements = (
        "CREATE TYPE status AS ENUM ('new', 'paid', 'sent')",
        "CREATE TABLE events (status status, n int, note text) PARTITION BY HASH (status)",
        "CREATE TABLE events_0 PARTITION OF events FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
        "CREATE TABLE events_1 (note text, dropped int, status status, n int)",
        "ALTER TABLE events_1 DROP dropped",
        "ALTER TABLE events ATTACH PARTITION events_1 FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
        "INSERT INTO events SELECT (enum_range(null::status))[1 + n % 3], n, 'note' || n FROM generate_series(1, 99) n",
    )
    with dumped(here, name, *statements) as (backup, link):
        same = compare(here, backup, name)
        link.execute("UPDATE events SET note = 'another' WHERE n = 50")
        other = compare(here, backup, name)

    assert (outcomes(same), same.counts["other order"]) == ({"public.events": "other order"}, 2)
    assert outcomes(other) == {"public.events": "different"}


def test_an_extensions_own_table_may_hold_more_but_not_less(here: Site, database: DatabaseFactory) -> None:
    name = database(here.server)
    statements = (
        "CREATE EXTENSION hstore",
        "CREATE TABLE settings AS SELECT n FROM generate_series(1, 10) n",
        "ALTER EXTENSION hstore ADD TABLE settings",
        # what pg_extension_config_dump does in an extension's script
        "UPDATE pg_extension SET extconfig = ARRAY['settings'::regclass::oid], extcondition = ARRAY['WHERE n > 5']"
        " WHERE extname = 'hstore'",
    )
    with dumped(here, name, *statements) as (backup, link):
        more = compare(here, backup, name)
        link.execute("UPDATE settings SET n = 60 WHERE n = 6")
        other = compare(here, backup, name)

    assert outcomes(more) == {"public.settings": "contained"}
    assert more.identical
    assert [each.why for each in other.different] == ["1 of the dumped rows are not there"]


def test_no_setting_of_the_database_makes_equal_rows_differ(here: Site, database: DatabaseFactory) -> None:
    name = database(here.server)
    statements = (
        "CREATE TABLE t (t timestamptz, b bytea, m money, f float8, i interval, d date, c regclass)",
        "INSERT INTO t VALUES (now(), '\\x00ff', '1234.5', 0.1::float8 / 3, '1 day 02:03', '2026-02-01', 'public.t')",
    )
    with dumped(here, name, *statements) as (backup, link):
        settings = {
            "TimeZone": "Asia/Tokyo",
            "bytea_output": "escape",
            "DateStyle": "German",
            "IntervalStyle": "sql_standard",
            "extra_float_digits": "-5",
            "search_path": "public",
        }
        for setting, value in settings.items():
            statement = sql.SQL("ALTER DATABASE {} SET {} TO {}")
            link.execute(statement.format(sql.Identifier(name), sql.Identifier(setting), sql.Literal(value)))
        found = compare(here, backup, name)

    assert outcomes(found) == {"public.t": "identical"}


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_text_of_any_encoding_is_compared_as_it_was_dumped(
    here: Site, database: DatabaseFactory, encoding: str
) -> None:
    name = database(here.server, options=f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'")
    with here.server.connect(name, client_encoding=encoding) as link:
        link.execute(b"CREATE TABLE t AS SELECT '\xfc\xe4'::text AS x")
        if encoding == "LATIN1":
            link.execute('ALTER TABLE t ADD "größe" int DEFAULT 1'.encode("latin1"))
        backup = here.take(name)
        same = compare(here, backup, name)
        link.execute(b"UPDATE t SET x = '\xfc\xe5'")
        other = compare(here, backup, name)

    assert outcomes(same) == {"public.t": "identical"}
    assert outcomes(other) == {"public.t": "different"}


def test_what_row_security_hides_is_not_comparable_and_never_called_equal(
    here: Site, database: DatabaseFactory, new_role: Callable[..., str]
) -> None:
    name, role = database(here.server), new_role(here.server)
    statements = (
        f"GRANT CREATE ON SCHEMA public TO {role}",
        f"SET ROLE {role}",
        "CREATE TABLE plain AS SELECT 1 AS n",
        "CREATE TABLE hidden AS SELECT 1 AS n",
        "ALTER TABLE hidden ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE hidden FORCE ROW LEVEL SECURITY",
        "RESET ROLE",
    )
    with dumped(here, name, *statements) as (backup, link):
        found = compare(here, backup, name, user=role)
        link.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))

    assert outcomes(found) == {"public.plain": "identical", "public.hidden": "not comparable"}
    assert "row-level security" in next(each.why for each in found.tables if each.name == "public.hidden")
    assert not found.identical
    assert found.different == ()


def test_a_damaged_member_is_no_difference_of_the_database(here: Site, database: DatabaseFactory) -> None:
    name = database(here.server)
    with dumped(here, name, "CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n") as (backup, link):
        link.execute("UPDATE t SET n = n WHERE n = 1")  # so that the member is read
        index = here.index(backup)
        member = next(each for each in index.members if each.name == index.contract.tables[0].member)
        flip(here, backup, member.offset + member.size_bytes // 2)
        with pytest.raises(VerificationFailed, match="is damaged"):
            compare(here, backup, name)


def test_a_table_that_is_gone_is_named(here: Site, database: DatabaseFactory, new_name: NewName) -> None:
    name = database(here.server)
    with dumped(here, name, "CREATE TABLE t AS SELECT 1 AS n", "CREATE TABLE u ()") as (backup, link):
        link.execute("DROP TABLE t")
        found = compare(here, backup, name)

    assert outcomes(found) == {"public.t": "not comparable", "public.u": "identical"}
    assert not found.identical
