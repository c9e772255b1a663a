"""A restore in good weather: what comes back is what was backed up, and nobody sees it before that is known."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from fix_postgres import DatabaseFactory, PostgresServer
from fix_restore import (
    LOGS_DDL,
    LOGS_LOGINS,
    MARK,
    NewName,
    RestoreClients,
    Stocked,
    client_of,
    contents,
    definitions,
    event_triggers,
    exists,
    restore_to,
    state,
    values,
)
from fix_tools import Site, wait_until
from psycopg import sql

from backupd.errors import RestoreFailed, VerificationFailed
from backupd.restore import SMALL_TABLE_BYTES

MakeSite = Callable[..., Site]
NewRole = Callable[..., str]

pytestmark = pytest.mark.slow


def server_of(request: pytest.FixtureRequest, major: int) -> PostgresServer:
    """The server of that major version."""
    server: PostgresServer = request.getfixturevalue(f"postgres{major}")
    return server


# --- what comes back


def test_a_restored_shop_equals_its_source(any_postgres: PostgresServer, stocked: Stocked, new_name: NewName) -> None:
    here, backup = stocked(any_postgres)
    source, name = backup.source.database, new_name(any_postgres)
    restored = restore_to(here, backup, name)

    assert contents(any_postgres, name) == contents(any_postgres, source)
    assert values(any_postgres, name) == values(any_postgres, source)
    assert definitions(any_postgres, name) == definitions(any_postgres, source)
    assert state(any_postgres, name) == (None, True, "postgres")
    assert restored.refused == ()
    assert list(restored.seconds) == ["preflight", "fetch", "restore", "compare", "analyze"]
    here.assert_untouched()


@pytest.mark.parametrize(("old", "new"), [(15, 17), (17, 18)])
def test_a_shop_restores_into_the_next_major_version(
    old: int, new: int, request: pytest.FixtureRequest, stocked: Stocked, new_name: NewName, new_role: NewRole
) -> None:
    before, after = server_of(request, old), server_of(request, new)
    here, backup = stocked(before)
    source, name = backup.source.database, new_name(after)
    for role in ("shop owner", "shop_reader"):
        if not has_role(after, role):
            new_role(after, name=role)
    # 18's own pg_restore here cannot read zstd; 17's, which wrote the archive, can
    restore_to(here, backup, name, on=after, clients=[client_of(before), client_of(after)])

    assert contents(after, name) == contents(before, source)
    found, expected = values(after, name), values(before, source)
    assert found["sequences"] == expected["sequences"]
    assert [row[3] for row in found["large objects"]] == [row[3] for row in expected["large objects"]]
    # what differs between versions is how they spell it: the objects are the same
    titles = [line for line in definitions(before, source, client=after) if line.startswith("-- Name: ")]
    assert [line for line in definitions(after, name) if line.startswith("-- Name: ")] == titles
    assert len(titles) > 50


def has_role(server: PostgresServer, role: str) -> bool:
    with server.connect() as connection:
        return connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).fetchone() is not None


def test_a_backup_without_some_tables_restores_all_others(
    postgres17: PostgresServer, site: MakeSite, shop_of: Callable[[PostgresServer], str], new_name: NewName
) -> None:
    here, source, name = site(postgres17), shop_of(postgres17), new_name(postgres17)
    restore_to(here, here.take(source, exclude=("shop.documents", "we*")), name)
    expected = contents(postgres17, source)
    assert expected.pop("shop.documents")
    assert contents(postgres17, name) == expected


@pytest.mark.parametrize(
    ("major", "filling", "trigger"),
    [(17, LOGS_LOGINS, ("at_login", "A", "who was here")), (15, LOGS_DDL, ("audit", "O", "what was changed"))],
    ids=["logins on postgres17", "ddl on postgres15"],
)
def test_event_triggers_come_back_and_write_nothing_into_what_is_compared(
    major: int,
    filling: str,
    trigger: tuple[str, str, str],
    request: pytest.FixtureRequest,
    site: MakeSite,
    database: DatabaseFactory,
    new_name: NewName,
) -> None:
    server = server_of(request, major)
    here, source, name = site(server), database(server), new_name(server)
    with server.connect(source) as connection:
        connection.execute(filling.encode())
    restored = restore_to(here, here.take(source), name)

    assert all(each.equal and not each.at_least for each in restored.comparisons)
    assert event_triggers(server, name) == [trigger]
    assert list(restored.seconds) == ["preflight", "fetch", "restore", "compare", "event triggers", "analyze"]
    here.assert_clean()


def test_without_its_event_triggers_nothing_takes_the_live_name(
    postgres15: PostgresServer, site: MakeSite, database: DatabaseFactory, restore_clients: RestoreClients
) -> None:
    here, live = site(postgres15), database(postgres15)
    with postgres15.connect(live) as connection:
        connection.execute(LOGS_DDL.encode())
    backup = here.take(live)
    script = 'case "$*" in *event-triggers*) exit 1;; *) exec "$real" "$@";; esac'
    failing = client_of(postgres15, restore_clients(postgres15, script))
    with pytest.raises(RestoreFailed):
        restore_to(here, backup, live, live=live, clients=[failing])

    with postgres15.connect() as connection:
        query = "SELECT count(*) FROM pg_database WHERE starts_with(datname, %s)"
        assert connection.execute(query, [live]).fetchone() == (1,)
    assert state(postgres15, live)[0] is None


def test_an_empty_database_comes_back_empty(
    postgres17: PostgresServer, site: MakeSite, database: DatabaseFactory, new_name: NewName
) -> None:
    here, name = site(postgres17), new_name(postgres17)
    restored = restore_to(here, here.take(database(postgres17)), name)
    assert [item.name for item in restored.comparisons] == ["large objects", "invalid indexes"]
    assert contents(postgres17, name) == {}


def test_a_restored_database_has_statistics_of_every_table(
    any_postgres: PostgresServer, stocked: Stocked, new_name: NewName
) -> None:
    here, backup = stocked(any_postgres)
    name = new_name(any_postgres)
    restore_to(here, backup, name)
    with any_postgres.connect(name) as connection:
        counts = dict(
            connection.execute(
                "SELECT relname::text, reltuples::int FROM pg_class"
                " WHERE relnamespace = 'shop'::regnamespace AND relkind IN ('r', 'p', 'm')"
            ).fetchall()
        )
        known = {row[0] for row in connection.execute("SELECT DISTINCT tablename::text FROM pg_stats").fetchall()}
        extended = connection.execute("SELECT count(*) FROM pg_statistic_ext_data").fetchone()
    assert -1 not in counts.values()  # never looked at
    assert counts["orders"] == counts["orders_2025"] + counts["orders_2026"] + counts["orders_rest"] == 500
    assert counts["events_0"] + counts["events_1"] == 100
    assert {"customers", "orders", "orders_2025", "animals", "carts", "totals", "pg_class"} <= known
    assert {"events_0", "events_1"} & known  # by the hash of an enum's OID: one of them may be empty
    assert extended == (1,)


def test_rows_of_a_hash_partition_on_an_enum_are_compared_at_the_root(
    postgres17: PostgresServer, stocked: Stocked, new_name: NewName
) -> None:
    here, backup = stocked(postgres17)
    name = new_name(postgres17)
    restored = restore_to(here, backup, name)
    found = {item.name: (item.promised, item.found) for item in restored.comparisons}
    assert found["shop.events"] == (100, 100)
    assert "shop.events_0" not in found
    assert "shop.orders_2025" in found


def test_the_next_backup_of_a_restored_database_promises_the_same(
    postgres17: PostgresServer, stocked: Stocked, new_name: NewName
) -> None:
    here, backup = stocked(postgres17)
    name = new_name(postgres17)
    restore_to(here, backup, name, jobs=2)
    again = here.index(here.take(name)).contract
    first = here.index(backup).contract
    assert {(each.name, each.rows, each.raw_bytes) for each in again.tables if "events" not in each.name} == {
        (each.name, each.rows, each.raw_bytes) for each in first.tables if "events" not in each.name
    }
    assert again.sequences == first.sequences
    assert again.large_objects == first.large_objects
    assert again.roles == first.roles


def test_a_configuration_table_of_an_extension_holds_the_dumped_rows_and_may_hold_more(
    postgres18: PostgresServer,
    tiny_extension: str,
    site: MakeSite,
    database: DatabaseFactory,
    new_name: NewName,
    restore_clients: RestoreClients,
) -> None:
    here, source, name = site(postgres18), database(postgres18), new_name(postgres18)
    with postgres18.connect(source) as connection:
        connection.execute(f"CREATE EXTENSION {tiny_extension}")
        connection.execute("INSERT INTO setting VALUES ('a'), ('b'), ('c')")
    backup = here.take(source)
    restored = restore_to(here, backup, name)

    config = next(item for item in restored.comparisons if item.name == "public.setting")
    assert (config.promised, config.found, config.at_least) == (3, 5, True)
    assert contents(postgres18, name) == contents(postgres18, source)
    losing = restore_clients(postgres18, '"$real" "$@" && psql "TRUNCATE public.setting"')
    with pytest.raises(VerificationFailed, match="differs") as raised:
        restore_to(here, backup, new_name(postgres18), clients=[client_of(postgres18, losing)])
    assert raised.value.detail == "public.setting: 3 promised, 0 found."


@pytest.mark.usefixtures("tiny_extension")
def test_a_configuration_table_in_pg_catalog_comes_back_with_its_rows(
    postgres18: PostgresServer, site: MakeSite, database: DatabaseFactory, new_name: NewName
) -> None:
    here, source, name = site(postgres18), database(postgres18), new_name(postgres18)
    with postgres18.connect(source) as connection:
        connection.execute("CREATE EXTENSION in_catalog")
        connection.execute("INSERT INTO setting VALUES ('a'), ('b')")
    restored = restore_to(here, here.take(source), name)

    config = next(item for item in restored.comparisons if item.name == "pg_catalog.setting")
    assert (config.promised, config.found, config.at_least) == (2, 3, True)
    with postgres18.connect(name) as connection:
        assert connection.execute("SELECT name FROM setting ORDER BY 1").fetchall() == [("a",), ("b",), ("standard",)]


# --- the database itself


HOSTILE_COMMENT = 'it\'s "ours" \\ %s {}\nüñ'


def test_settings_grants_comment_limit_and_owner_come_with_the_database(
    any_postgres: PostgresServer, site: MakeSite, database: DatabaseFactory, new_name: NewName, new_role: NewRole
) -> None:
    here, source, name = site(any_postgres), database(any_postgres), new_name(any_postgres)
    owner, guest = new_role(any_postgres, name='own"er {}'), new_role(any_postgres)
    settings: list[tuple[str, sql.Composable]] = [
        ("search_path", sql.SQL('"$user", "a,b", "qu""ote", public')),
        ("session_preload_libraries", sql.SQL("'plpgsql', '$libdir/plpgsql'")),
        ("app.x", sql.Literal('one, "two" {} \\ %s')),
        ("DateStyle", sql.SQL("German, DMY")),
        ("TimeZone", sql.Literal("America/New_York")),
        ("work_mem", sql.Literal("12345kB")),
        ("default_transaction_read_only", sql.SQL("on")),
    ]
    target = sql.Identifier(source)
    with any_postgres.connect() as connection:
        for setting, value in settings:
            named = sql.SQL(setting)
            connection.execute(sql.SQL("ALTER DATABASE {} SET {} TO {}").format(target, named, value))
        in_database = sql.SQL("ALTER ROLE {} IN DATABASE {} SET search_path TO app, {}")
        connection.execute(in_database.format(sql.Identifier(guest), target, sql.Identifier("x, y")))
        connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(target, HOSTILE_COMMENT))
        connection.execute(sql.SQL("ALTER DATABASE {} CONNECTION LIMIT 7").format(target))
        connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(target))
        grants = sql.SQL("GRANT CONNECT, TEMPORARY ON DATABASE {} TO {} WITH GRANT OPTION")
        connection.execute(grants.format(target, sql.Identifier(guest)))
        connection.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(target, sql.Identifier(guest)))
        connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(target, sql.Identifier(owner)))
    restored = restore_to(here, here.take(source), name)

    assert restored.refused == ()
    assert state(any_postgres, name) == (HOSTILE_COMMENT, False, owner)
    assert definitions(any_postgres, name) == definitions(any_postgres, source)
    assert sum(line.startswith("ALTER DATABASE") for line in definitions(any_postgres, name)) == 9
    with any_postgres.connect(source) as one, any_postgres.connect(name) as two:
        for setting, _ in settings:
            show = sql.SQL("SHOW {}").format(sql.SQL(setting))
            assert two.execute(show).fetchone() == one.execute(show).fetchone()


def test_a_setting_that_is_an_empty_list_comes_back_as_one(
    any_postgres: PostgresServer, site: MakeSite, database: DatabaseFactory, new_name: NewName, new_role: NewRole
) -> None:
    here, source, name, role = (
        site(any_postgres),
        database(any_postgres),
        new_name(any_postgres),
        new_role(any_postgres),
    )
    lists = ("local_preload_libraries", "search_path", "session_preload_libraries", "temp_tablespaces")
    with any_postgres.connect() as connection:
        for setting in lists:
            connection.execute("SELECT set_config(%s, '', false)", [setting])
            for whose in ("DATABASE {0}", "ROLE {1} IN DATABASE {0}"):
                statement = sql.SQL(f"ALTER {whose} SET {{2}} FROM CURRENT")
                connection.execute(statement.format(*map(sql.Identifier, (source, role, setting))))
    restored = restore_to(here, here.take(source), name)

    query = (
        "SELECT setrole, unnest(setconfig) FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase"
        " WHERE datname = %s ORDER BY 1, 2"
    )
    with any_postgres.connect() as connection:
        found = [connection.execute(query, [each]).fetchall() for each in (source, name)]
    assert restored.refused == ()
    assert [setting for _, setting in found[0]] == [f"{each}=" for each in lists] * 2
    assert found[1] == found[0]


def test_a_database_open_to_all_is_open_again_and_one_closed_to_public_stays_closed(
    postgres17: PostgresServer, site: MakeSite, database: DatabaseFactory, new_name: NewName, new_role: NewRole
) -> None:
    here, anybody = site(postgres17), new_role(postgres17)
    names = []
    for statement in ("SELECT {}", "REVOKE CONNECT ON DATABASE {} FROM PUBLIC"):
        source = database(postgres17)
        with postgres17.connect() as connection:
            connection.execute(sql.SQL(statement).format(sql.Identifier(source)) if "REVOKE" in statement else "SELECT")
        names.append(new_name(postgres17))
        restore_to(here, here.take(source), names[-1])
    with postgres17.connect(names[0], user=anybody) as connection:
        assert connection.execute("CREATE TEMP TABLE allowed ()").statusmessage == "CREATE TABLE"
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        postgres17.connect(names[1], user=anybody)


LOCALES = [
    (15, "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"),
    (17, "ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'"),
    (15, "ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' LOCALE_PROVIDER icu ICU_LOCALE 'de-DE-u-co-phonebk'"),
    (17, "ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C.UTF-8' LOCALE_PROVIDER icu ICU_LOCALE 'en' ICU_RULES '&a < g'"),
    (17, "ENCODING 'UTF8' LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' LC_COLLATE 'C' LC_CTYPE 'C'"),
    (18, "ENCODING 'UTF8' LOCALE_PROVIDER builtin BUILTIN_LOCALE 'PG_UNICODE_FAST' LC_COLLATE 'C' LC_CTYPE 'C'"),
]


@pytest.mark.parametrize(("major", "options"), LOCALES)
def test_encoding_and_locale_come_with_the_database(
    major: int,
    options: str,
    request: pytest.FixtureRequest,
    site: MakeSite,
    database: DatabaseFactory,
    new_name: NewName,
) -> None:
    server = server_of(request, major)
    try:
        source = database(server, options=options)
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this PostgreSQL was built without that")
    here, name = site(server), new_name(server)
    with server.connect(source) as connection:
        text = "'äß'" if "SQL_ASCII" not in options else "convert_from('\\xe4ff'::bytea, 'SQL_ASCII')"
        connection.execute(f"CREATE TABLE words AS SELECT {text} AS word, n FROM generate_series(1, 3) n".encode())
    restore_to(here, here.take(source), name)

    assert locale(server, name) == locale(server, source)
    assert contents(server, name) == contents(server, source)
    assert definitions(server, name) == definitions(server, source)


def locale(server: PostgresServer, database: str) -> object:
    with server.connect() as connection:
        return connection.execute(
            "SELECT encoding, datcollate, datctype, to_jsonb(d) ->> 'datlocprovider', to_jsonb(d) ->> 'daticurules',"
            " coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale')"
            " FROM pg_database d WHERE datname = %s",
            [database],
        ).fetchone()


def test_what_the_target_refuses_of_the_database_s_properties_is_named_and_the_rest_is_there(
    postgres17: PostgresServer, site: MakeSite, database: DatabaseFactory, new_name: NewName, new_role: NewRole
) -> None:
    here, source, name = site(postgres17), database(postgres17), new_name(postgres17)
    role, other = new_role(postgres17, "CREATEDB"), new_role(postgres17)
    with postgres17.connect() as connection:
        target = sql.Identifier(source)
        for statement in (
            "ALTER DATABASE {} SET session_preload_libraries TO plpgsql",
            "ALTER DATABASE {} SET work_mem TO '1MB'",
            f"ALTER ROLE {other} IN DATABASE {{}} SET app.secret = 'never shown'",
            "COMMENT ON DATABASE {} IS 'kept'",
        ):
            connection.execute(sql.SQL(statement).format(target))
    restored = restore_to(here, here.take(source), name, keywords={"user": role})

    assert [text.partition(": ")[0] for text in restored.refused if not text.startswith("ANALYZE")] == [
        f"ALTER DATABASE {name} SET session_preload_libraries TO ...",
        f"ALTER ROLE {other} IN DATABASE {name} SET app.secret TO ...",
        f"ALTER DATABASE {name} OWNER TO postgres",
    ]
    assert all("denied" in text or "must be" in text for text in restored.refused)
    assert "never shown" not in "".join(restored.refused)
    assert state(postgres17, name) == ("kept", True, role)
    with postgres17.connect(name) as connection:
        assert connection.execute("SHOW work_mem").fetchone() == ("1MB",)


ONLY_HERE = (
    "CREATE FUNCTION only_here(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $body$ BEGIN"
    " IF current_database() <> '{}' THEN RAISE 'not here'; END IF; RETURN n; END $body$"
)
"""Works in the database of that name, and in none that is restored from it."""


def test_of_hundreds_of_tables_each_is_counted_and_analyzed_but_for_the_one_that_fails(
    postgres17: PostgresServer, site: MakeSite, database: DatabaseFactory, new_name: NewName
) -> None:
    here, source, name = site(postgres17), database(postgres17), new_name(postgres17)
    with postgres17.connect(source) as connection:
        connection.execute(
            "DO $$ BEGIN FOR i IN 1..240 LOOP"
            " EXECUTE format('CREATE TABLE t%s AS SELECT n, -n AS m FROM generate_series(1, %s) n', i, i);"
            " END LOOP; END $$"
        )
        connection.execute(ONLY_HERE.format(source).encode())
        connection.execute("CREATE STATISTICS odd ON (public.only_here(n)), m FROM t7")
    restored = restore_to(here, here.take(source), name)

    found = {each.name: each.found for each in restored.comparisons if each.name.startswith("public.t")}
    assert found == {f"public.t{number}": number for number in range(1, 241)}
    assert [text.partition(": ")[0] for text in restored.refused] == ["ANALYZE public.t7"]
    query = "SELECT count(DISTINCT tablename) FROM pg_stats WHERE schemaname = 'public' AND tablename <> 't7'"
    with postgres17.connect(name) as connection:
        assert connection.execute(query).fetchone() == (239,)


def test_partitions_have_statistics_although_one_of_their_root_s_is_on_a_server_that_cannot_be_reached(
    any_postgres: PostgresServer, site: MakeSite, database: DatabaseFactory, new_name: NewName
) -> None:
    here, source, name = site(any_postgres), database(any_postgres), new_name(any_postgres)
    with any_postgres.connect(source) as connection:
        connection.execute(FAR)
    restored = restore_to(here, here.take(source), name)

    assert [text.partition(": ")[0] for text in restored.refused] == ["ANALYZE public.ev"]
    assert "far" in restored.refused[0]
    with any_postgres.connect(name) as connection:
        leaves = "SELECT relname, reltuples::int FROM pg_class WHERE relispartition AND relkind = 'r' ORDER BY 1"
        assert connection.execute(leaves).fetchall() == [("ev_new", 5), ("ev_old", 10)]
        columns = connection.execute("SELECT tablename FROM pg_stats WHERE schemaname = 'public' ORDER BY 1").fetchall()
        assert columns == [("ev_new",), ("ev_old",)]


FAR = """
CREATE EXTENSION postgres_fdw;
CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '1');
CREATE USER MAPPING FOR CURRENT_USER SERVER far;
CREATE TABLE ev (n int) PARTITION BY RANGE (n);
CREATE TABLE ev_old PARTITION OF ev FOR VALUES FROM (0) TO (10);
CREATE FOREIGN TABLE ev_far PARTITION OF ev FOR VALUES FROM (10) TO (20) SERVER far;
CREATE TABLE ev_rest PARTITION OF ev DEFAULT PARTITION BY LIST (n);
CREATE TABLE ev_new PARTITION OF ev_rest DEFAULT;
INSERT INTO ev SELECT generate_series(0, 9);
INSERT INTO ev SELECT generate_series(20, 24);
"""


def test_a_failing_analyze_is_named_and_the_database_is_there(
    postgres17: PostgresServer, site: MakeSite, database: DatabaseFactory, new_name: NewName
) -> None:
    here, source, name = site(postgres17), database(postgres17), new_name(postgres17)
    with postgres17.connect(source) as connection:
        connection.execute(ONLY_HERE.format(source).encode())
        connection.execute("CREATE TABLE numbers AS SELECT n, -n AS m FROM generate_series(1, 9) n")
        connection.execute("CREATE STATISTICS odd ON (public.only_here(n)), m FROM numbers")
    restored = restore_to(here, here.take(source), name)
    assert len(restored.refused) == 1
    assert restored.refused[0].startswith("ANALYZE public.numbers: ")
    assert contents(postgres17, name) == contents(postgres17, source)
    assert state(postgres17, name) == (None, True, "postgres")


# --- names


NAMES = [
    'we"ird; DROP DATABASE postgres; --',
    "new\nline\ttab",
    "ü" * 31 + "x",
    "host=/nowhere dbname=postgres user='x'",
    "postgresql://nobody@127.0.0.1:1/postgres?sslmode=require",
    " --jobs=7 %s {} \\",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_name_is_the_name_of_the_restored_database(
    name: str, postgres17: PostgresServer, stocked: Stocked, new_name: NewName
) -> None:
    here, backup = stocked(postgres17)
    restored = restore_to(here, backup, new_name(postgres17, name))
    assert restored.database == name
    assert contents(postgres17, name) == contents(postgres17, backup.source.database)
    assert exists(postgres17, "postgres")
    here.assert_untouched()


# --- closed until equal


def test_nobody_else_may_connect_until_the_restored_database_has_proved_equal(
    postgres17: PostgresServer,
    stocked: Stocked,
    new_name: NewName,
    new_role: NewRole,
    restore_clients: RestoreClients,
    tmp_path: Path,
) -> None:
    reached, go = tmp_path / "reached", tmp_path / "go"
    script = f': > {shlex.quote(str(reached))}; while [ ! -e {go} ]; do sleep 0.02; done; exec "$real" "$@"'
    folder = restore_clients(postgres17, script)
    here, backup = stocked(postgres17, BACKUPD_DUMP__CLIENTS=str(folder))
    name, anybody = new_name(postgres17), new_role(postgres17)
    run = here.start("restore", backup.id, "--as", name)
    wait_until(reached.exists, "pg_restore was not started")

    assert state(postgres17, name) == (MARK.format(backup.id), False, "postgres")
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        postgres17.connect(name, user=anybody)
    go.touch()
    ended = run.end()
    assert ended.code == 0, ended.stderr
    assert state(postgres17, name) == (None, True, "postgres")
    with postgres17.connect(name, user=anybody) as connection:
        assert connection.execute("SELECT").rowcount == 1
    here.assert_untouched()


def test_tiny_tables_are_restored_by_one_job_and_larger_ones_by_as_many_as_allowed(
    postgres17: PostgresServer,
    site: MakeSite,
    database: DatabaseFactory,
    new_name: NewName,
    restore_clients: RestoreClients,
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    folder = restore_clients(postgres17, f'echo "$*" >> {log}; exec "$real" "$@"')
    here = site(postgres17)
    for width, jobs in ((10, 3), (SMALL_TABLE_BYTES, 3)):
        source = database(postgres17)
        with postgres17.connect(source) as connection:
            connection.execute("CREATE TABLE one AS SELECT repeat('x', %s) AS text", [width])
        restore_to(here, here.take(source), new_name(postgres17), clients=[client_of(postgres17, folder)], jobs=jobs)
    assert re.findall("--jobs=([0-9]+)", log.read_text()) == ["1", "3"]


# --- into an existing database


SMALL = """
CREATE EXTENSION hstore;
CREATE SCHEMA app;
CREATE TABLE app.numbers AS SELECT n FROM generate_series(1, 100) n;
CREATE TABLE labelled (labels hstore);
INSERT INTO labelled VALUES ('a => 1');
CREATE SEQUENCE app.counter;
SELECT nextval('app.counter');
SELECT lo_from_bytea(0, '\\x0102');
GRANT CREATE ON SCHEMA public TO PUBLIC;
COMMENT ON SCHEMA public IS 'ours';
"""


def test_a_role_that_may_create_no_database_restores_into_its_own_empty_one(
    postgres17: PostgresServer, site: MakeSite, new_role: NewRole
) -> None:
    role = new_role(postgres17)
    source, name = f"{role}_source", f"{role}_target"
    with postgres17.connect() as connection:
        for each in (source, name):
            target = sql.Identifier(each)
            made = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0")
            connection.execute(made.format(target, sql.Identifier(role)))
            connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(target, f"of {each}"))
        connection.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO pg_monitor").format(target))
        connection.execute(sql.SQL("ALTER DATABASE {} SET work_mem TO '1MB'").format(target))
        connection.execute(sql.SQL("ALTER ROLE postgres IN DATABASE {} SET work_mem TO '2MB'").format(target))
    with postgres17.connect(source, user=role) as connection:
        connection.execute(SMALL)
    with postgres17.connect(name, user=role) as connection:
        connection.execute("CREATE EXTENSION hstore")  # an extension's own objects do not count
        connection.execute("COMMENT ON SCHEMA public IS 'altered'; REVOKE USAGE ON SCHEMA public FROM PUBLIC")
    here = site(postgres17)
    backup = here.take(source)
    here.remember()
    before = [line for line in definitions(postgres17, name) if "THE_DATABASE" in line]
    settings = {"BACKUPD_TARGET__USER": role, "BACKUPD_TARGET__PASSWORD": postgres17.password}
    ended = here.run("restore", backup.id, "--into", name, "--json", **settings)

    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout)["refused"] == []
    assert contents(postgres17, name) == contents(postgres17, source)
    assert values(postgres17, name)["sequences"] == values(postgres17, source)["sequences"]
    assert state(postgres17, name) == (f"of {name}", True, role)
    after = [line for line in definitions(postgres17, name) if "THE_DATABASE" in line]
    assert after == before
    here.assert_untouched()


@pytest.mark.parametrize("public", [True, False])
def test_what_an_existing_database_was_survives_a_restore_that_failed(
    public: bool,
    postgres17: PostgresServer,
    stocked: Stocked,
    database: DatabaseFactory,
    restore_clients: RestoreClients,
) -> None:
    here, backup = stocked(postgres17)
    name = database(postgres17)
    comment = "two\nlines"
    with postgres17.connect() as connection:
        connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), comment))
        if not public:
            connection.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))
    failing = client_of(postgres17, restore_clients(postgres17, 'psql "CREATE TABLE half ()"; exit 1'))
    for _ in range(2):
        with pytest.raises(RestoreFailed):
            restore_to(here, backup, name, create=False, clients=[failing])
        left, open_to_all, _ = state(postgres17, name)
        assert left is not None
        assert left.startswith(MARK.format(backup.id))
        assert not open_to_all
        with postgres17.connect(name) as connection:
            connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    restore_to(here, backup, name, create=False)

    assert state(postgres17, name) == (comment, public, "postgres")
    assert contents(postgres17, name) == contents(postgres17, backup.source.database)
    here.assert_untouched()
