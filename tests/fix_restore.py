"""Restoring in tests: backups that are taken once, names that are gone afterwards, databases compared without backupd.

What a restore promises is looked at from outside: content by sorted COPY of both sides, everything else by the text
of `pg_dump --schema-only --create` of both sides, so that no code of ours compares itself with itself.
"""

import contextlib
import os
import re
import secrets
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_postgres import PostgresServer
from fix_store import ACCESS_KEY, SECRET_KEY, FaultProxy, S3Server
from fix_tools import Site, _once, access_server, wait_until
from psycopg import sql

from backupd import postgres, restore
from backupd.clients import Client, client_in
from backupd.connection import Server
from backupd.manifest import Backup
from backupd.progress import Progress

MARK = "backupd is restoring this database from {}; not compared yet"

Stocked = Callable[..., tuple[Site, Backup]]
NewName = Callable[..., str]
Subscribe = Callable[[PostgresServer, str], None]
RestoreClients = Callable[..., Path]
InS3 = Callable[[PostgresServer, str], tuple[Site, Backup, FaultProxy]]


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Callable[[PostgresServer, str], tuple[Path, Backup]]:
    """A store with one backup of that database, taken once; it is copied, never used."""
    taken: dict[tuple[int, str], tuple[Path, Backup]] = {}

    def take(server: PostgresServer, database: str) -> tuple[Path, Backup]:
        key = server.port, database
        if key not in taken:
            folder = Site(server, tmp_path_factory.mktemp("stock"))
            taken[key] = folder.store, folder.take(database)
        return taken[key]

    return take


@pytest.fixture
def stocked(
    site: Callable[..., Site],
    shop_of: Callable[[PostgresServer], str],
    stock: Callable[[PostgresServer, str], tuple[Path, Backup]],
) -> Stocked:
    """A site whose store holds one backup, of a shop or of `database`, and that backup; the store is remembered."""

    def make(server: PostgresServer, database: str | None = None, **settings: str) -> tuple[Site, Backup]:
        store, backup = stock(server, database or shop_of(server))
        here = site(server, **settings)
        shutil.copytree(store, here.store, dirs_exist_ok=True)
        here.remember()
        return here, backup

    return make


@pytest.fixture
def new_name(new_role: object) -> Iterator[NewName]:
    """A name that no database has: `new_name(server)`. Afterwards, and before roles go, none has it."""
    given: list[tuple[PostgresServer, str]] = []

    def give(server: PostgresServer, name: str = "") -> str:
        given.append((server, name or f"restored_{secrets.token_hex(4)}"))
        return given[-1][1]

    yield give
    for server, name in given:
        with contextlib.suppress(psycopg.OperationalError), server.connect() as connection:  # it may be stopped
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def new_role() -> Iterator[Callable[..., str]]:
    """A role with a password: `new_role(server, "CREATEDB")`. Afterwards it is gone, with all that it owned."""
    made: list[tuple[PostgresServer, str]] = []

    def make(server: PostgresServer, options: str = "", name: str = "") -> str:
        name = name or f"role_{secrets.token_hex(4)}"
        with server.connect() as connection:
            statement = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} " + options)
            connection.execute(statement.format(sql.Identifier(name), server.password))
        made.append((server, name))
        return name

    yield make
    for server, name in made:
        role = sql.Identifier(name)
        with server.connect() as connection:
            owned = "SELECT datname FROM pg_database WHERE pg_get_userbyid(datdba) = %s AND NOT datistemplate"
            for (database,) in connection.execute(owned, [name]).fetchall():
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database)))
            connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
            connection.execute(sql.SQL("DROP ROLE {}").format(role))


@pytest.fixture
def restore_clients(tmp_path: Path) -> RestoreClients:
    """Clients whose pg_restore runs a shell script: `$real` is the real one, `$target` its database, `psql` works."""

    def make(server: PostgresServer, script: str) -> Path:
        folder = tmp_path / f"clients-{secrets.token_hex(4)}"
        folder.mkdir()
        (folder / "pg_dump").symlink_to(server.bin_directory / "pg_dump")
        psql = shlex.quote(str(server.bin_directory / "psql"))
        (folder / "pg_restore").write_text(
            f"""#!/bin/sh
real={shlex.quote(str(server.bin_directory / "pg_restore"))}
for argument; do case "$argument" in --dbname=*) target="${{argument#--dbname=}}";; esac; done
psql() {{ {psql} -X -q -v ON_ERROR_STOP=1 -d "$target" -c "$1"; }}
{script}
"""
        )
        (folder / "pg_restore").chmod(0o755)
        return folder

    return make


def client_of(server: PostgresServer, folder: Path | None = None) -> Client:
    """The clients of that server, or those in `folder`."""
    found = client_in(folder or server.bin_directory, {"PATH": os.environ["PATH"]})
    assert found is not None
    return found


def restore_to(
    here: Site,
    backup: Backup,
    name: str,
    *,
    on: PostgresServer | None = None,
    clients: list[Client] | None = None,
    progress: Progress | None = None,
    keywords: dict[str, str] | None = None,
    **job: Any,
) -> restore.Restored:
    """Restores in process, with --as unless `create=False`; `on` is another server, `keywords` are libpq's."""
    server = on or here.server
    job = {"create": True, "scratch": here.scratch, **job}
    with postgres.reach(_server(here, server, keywords or {}), "postgres", here.temporary, "backupd test") as access:
        found = [client_of(server)] if clients is None else clients
        return restore.restore(access, here.catalog, found, backup, restore.Job(name, **job), progress or Progress())


def _server(here: Site, server: PostgresServer, keywords: dict[str, str]) -> Server:
    made = access_server(here)
    merged = {**made.keywords, "port": str(server.port), "user": server.user, **keywords}
    return replace(made, keywords=merged, password=server.password)


# --- what databases hold, asked without backupd


def exists(server: PostgresServer, name: str) -> bool:
    """Whether a database has that name."""
    with server.connect() as connection:
        return connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchone() is not None


def state(server: PostgresServer, name: str) -> tuple[str | None, bool, str]:
    """A database's comment, whether everybody may connect, and its owner."""
    query = (
        "SELECT shobj_description(oid, 'pg_database'), has_database_privilege('public', oid, 'CONNECT'),"
        " pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s"
    )
    with server.connect() as connection:
        row = connection.execute(query, [name]).fetchone()
    assert row is not None, f"there is no database {name}"
    comment, public, owner = row
    return comment, public, owner


def contents(server: PostgresServer, database: str) -> dict[str, list[bytes]]:
    """The rows of every table as COPY writes them, sorted; leaves of a hash partitioned table at its root.

    Columns in the order of their names, generated ones too: a child's inherited columns come first after pg_dump.
    """
    query = (
        "SELECT format('%I.%I', n.nspname, c.relname), c.relkind = 'p', (SELECT coalesce(string_agg("
        " quote_ident(attname), ', ' ORDER BY attname), '') FROM pg_attribute a"
        " WHERE a.attrelid = c.oid AND attnum > 0 AND NOT attisdropped) FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_inherits i ON i.inhrelid = c.oid"
        " LEFT JOIN pg_partitioned_table p ON p.partrelid = i.inhparent"
        " WHERE c.relkind IN ('r', 'p') AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'"
        " AND p.partstrat IS DISTINCT FROM 'h' ORDER BY 1"
    )
    options = "-c TimeZone=UTC -c bytea_output=hex -c search_path="
    found = {}
    with server.connect(database, options=options, client_encoding="SQL_ASCII") as connection:
        for table, root, columns in connection.execute(query.encode()).fetchall():
            statement = b"COPY (SELECT %b FROM %b %b) TO STDOUT" % (columns, b"" if root else b"ONLY", table)
            with connection.cursor() as cursor, cursor.copy(statement) as copy:
                found[table.decode("utf-8", "backslashreplace")] = sorted(
                    b"".join(bytes(chunk) for chunk in copy).splitlines()
                )
    return found


def values(server: PostgresServer, database: str) -> dict[str, Any]:
    """What is not in tables: sequences, large objects with owner, grants and comment, materialised views' rows."""
    queries = {
        "sequences": "SELECT * FROM pg_sequences ORDER BY schemaname, sequencename",
        "large objects": "SELECT oid, pg_get_userbyid(lomowner), lomacl::text, md5(lo_get(oid)),"
        " obj_description(oid, 'pg_largeobject') FROM pg_largeobject_metadata ORDER BY oid",
        "extensions": "SELECT extname, extnamespace::regnamespace::text FROM pg_extension ORDER BY 1",
    }
    with server.connect(database) as connection:
        return {name: connection.execute(query).fetchall() for name, query in queries.items()}


def definitions(server: PostgresServer, database: str, *, client: PostgresServer | None = None) -> list[str]:
    """The lines of everything but rows, as pg_dump (of `client`) writes it, the database's own name replaced.

    Sorted: a child's inherited columns come first after pg_dump.
    """
    argv = [str((client or server).bin_directory / "pg_dump"), "--schema-only", "--create", "--format=plain"]
    target = psycopg.conninfo.make_conninfo(host=server.host, port=server.port, user=server.user, dbname=database)
    finished = subprocess.run([*argv, f"--dbname={target}"], capture_output=True, check=True)
    text = finished.stdout.decode("utf-8", "surrogateescape")
    for written in (f'"{database}"', database):
        text = text.replace(written, "THE_DATABASE")
    text = re.sub(r"(?m)^(\\(un)?restrict .*|-- Dumped .*)$", "", text)
    return sorted(line.rstrip(",") for line in text.splitlines() if line)


# --- an extension with a table of its own


EXTENSION = """
CREATE TABLE setting (name text, given bool DEFAULT true);
SELECT pg_catalog.pg_extension_config_dump('setting', 'WHERE given');
INSERT INTO setting VALUES ('standard', false), ('usual', false);
CREATE TABLE own (n int);
INSERT INTO own SELECT generate_series(1, 7);
"""
IN_CATALOG = """
CREATE SCHEMA hidden;
CREATE TABLE hidden.setting (name text, given bool DEFAULT true);
SELECT pg_catalog.pg_extension_config_dump('hidden.setting', 'WHERE given');
INSERT INTO hidden.setting VALUES ('standard', false);
ALTER TABLE hidden.setting SET SCHEMA pg_catalog;
"""
"""As pg_ivm does it: no table may be made in pg_catalog, but moved there."""


@pytest.fixture
def tiny_extension(postgres18: PostgresServer) -> Iterator[str]:
    """An extension with a configuration table; only PostgreSQL 18 finds one outside its installation.

    Beside it there is `in_catalog`, whose table is in pg_catalog.
    """
    with tempfile.TemporaryDirectory() as name:  # and not below pytest's own folder, which is closed to the server
        yield from _tiny_extension(postgres18, Path(name))


def _tiny_extension(postgres18: PostgresServer, share: Path) -> Iterator[str]:
    folder = share / "extension"
    folder.mkdir()
    for each in (share, folder):
        each.chmod(0o755)
    for extension, script in (("tiny", EXTENSION), ("in_catalog", IN_CATALOG)):
        (folder / f"{extension}.control").write_text("default_version = '1'\nrelocatable = true\n")
        (folder / f"{extension}--1.sql").write_text(script)
    with postgres18.connect() as connection:
        path = f"{folder.parent}:$system"
        connection.execute(sql.SQL("ALTER SYSTEM SET extension_control_path = {}").format(path))
        connection.execute("SELECT pg_reload_conf()")
        yield "tiny"
        connection.execute("ALTER SYSTEM RESET extension_control_path")
        connection.execute("SELECT pg_reload_conf()")


LOGS_LOGINS = """
CREATE TABLE logins (who text);
CREATE FUNCTION note_login() RETURNS event_trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO public.logins VALUES (session_user); END $$;
CREATE EVENT TRIGGER at_login ON login EXECUTE FUNCTION note_login();
ALTER EVENT TRIGGER at_login ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER at_login IS 'who was here';
"""
"""For PostgreSQL 17: each session adds a row."""

LOGS_DDL = """
CREATE TABLE changes (tag text);
CREATE FUNCTION note_change() RETURNS event_trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO public.changes VALUES (tg_tag); END $$;
CREATE EVENT TRIGGER audit ON ddl_command_end EXECUTE FUNCTION note_change();
COMMENT ON EVENT TRIGGER audit IS 'what was changed';
CREATE MATERIALIZED VIEW seen AS SELECT n FROM generate_series(1, 10) n;
"""
"""pg_restore creates event triggers before it refreshes materialised views, which is one more change."""


def event_triggers(server: PostgresServer, database: str) -> list[tuple[str, str, str]]:
    """The name, the state and the comment of each."""
    query = "SELECT evtname::text, evtenabled::text, obj_description(oid, 'pg_event_trigger') FROM pg_event_trigger"
    with server.connect(database) as connection:
        return connection.execute(query).fetchall()


def forget_subscriptions(server: PostgresServer, database: str) -> None:
    """Drops them, without a word to their publishers: no database with one can be dropped."""
    if not exists(server, database):
        return
    with server.connect(database) as connection:
        query = "SELECT subname FROM pg_subscription s JOIN pg_database d ON d.oid = subdbid WHERE datname = %s"
        for (name,) in connection.execute(query, [database]).fetchall():
            for statement in ("ALTER {} DISABLE", "ALTER {} SET (slot_name = NONE)", "DROP {}"):
                subscription = sql.SQL("SUBSCRIPTION ") + sql.Identifier(name)
                connection.execute(sql.SQL(statement).format(subscription))


@pytest.fixture
def subscribe(database: object, new_role: object) -> Iterator[Subscribe]:
    """Gives a database a disabled subscription with a slot of a publisher that nobody reaches.

    Afterwards no database whose name begins with its name has any, so that they can be dropped.
    """
    made: list[tuple[PostgresServer, str]] = []

    def make(server: PostgresServer, name: str) -> None:
        made.append((server, name))
        with server.connect(name) as connection:
            connection.execute(
                """CREATE SUBSCRIPTION "from afar" CONNECTION 'host=/nowhere' PUBLICATION p"""
                " WITH (connect = false, slot_name = 'its_slot')"
            )

    yield make
    for server, prefix in made:
        with server.connect() as connection:
            query = "SELECT datname FROM pg_database WHERE starts_with(datname, %s)"
            names = [row[0] for row in connection.execute(query, [prefix]).fetchall()]
        for name in names:
            forget_subscriptions(server, name)


# --- stores that fail


def flip(here: Site, backup: Backup, position: int) -> None:
    """Flips a bit of the archive."""
    path = here.archive_file(backup)
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.chmod(0o600)
    path.write_bytes(data)


@pytest.fixture
def in_s3(moto_s3: S3Server, stocked: Stocked, fault_proxy: Callable[[S3Server], tuple[FaultProxy, S3Server]]) -> InS3:
    """A stocked site whose store is S3 behind a proxy."""

    def make(server: PostgresServer, database: str) -> tuple[Site, Backup, FaultProxy]:
        here, backup = stocked(server, database)
        for path in here.store.rglob("*.*"):
            key = f"a/prefix/{path.relative_to(here.store)}"
            moto_s3.client.put_object(Bucket=moto_s3.bucket, Key=key, Body=path.read_bytes())
        proxy, _ = fault_proxy(moto_s3)
        here.settings |= {
            "BACKUPD_STORE__URL": f"s3://{moto_s3.bucket}/a/prefix",
            "BACKUPD_STORE__S3__ENDPOINT_URL": proxy.endpoint_url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        here.s3_options = replace(here.s3_options, endpoint_url=proxy.endpoint_url)
        here.secrets.append(SECRET_KEY)
        return here, backup, proxy

    return make


def fetches(proxy: FaultProxy, before: int = 2) -> bool:
    """Whether the newest request asks for members: a restore's first two are for the archive's index and toc.dat."""
    archives = [request for request in proxy.seen if request.endswith(".tar")]
    return len(archives) > before and archives[-1] == proxy.seen[-1]


# --- a restore that can be caught in the middle


@pytest.fixture(scope="session")
def waiting_of() -> Callable[[PostgresServer], str]:
    """The name of a database whose restore waits in the middle of its data: a constraint sleeps in all others."""
    return _once(fill_waiting)


def fill_waiting(connection: psycopg.Connection[Any]) -> None:
    """One table that restores at once, and one whose rows wait in every database but this."""
    connection.execute("CREATE TABLE at_once AS SELECT n FROM generate_series(1, 10) n")
    connection.execute(
        f"CREATE FUNCTION wait_elsewhere() RETURNS boolean LANGUAGE plpgsql AS $body$ BEGIN"
        f" IF current_database() <> '{connection.info.dbname}' THEN PERFORM pg_sleep(300); END IF; RETURN true;"
        f" END $body$"
    )
    connection.execute("CREATE TABLE slowly (n int CHECK (public.wait_elsewhere()))")
    connection.execute("INSERT INTO slowly VALUES (1)")


def wait_for_copy(server: PostgresServer, name: str) -> int:
    """The server's process that fills the table of `waiting_of` in that database, once it is there."""
    with server.connect() as connection:
        query = "SELECT pid FROM pg_stat_activity WHERE datname = %s AND wait_event = 'PgSleep'"

        def found() -> int | None:
            row = connection.execute(query, [name]).fetchone()
            return None if row is None else int(row[0])

        pid: int = wait_until(found, "pg_restore does not wait in the middle")
        return pid
