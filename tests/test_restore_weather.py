"""A restore in bad weather: nothing but a closed, named database is ever left, and the comparison bites.

After each failure the test looks at the target (the half-made database is gone, an existing one is closed), the store
(as it was, to the last byte), scratch (empty) and processes (none left).
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from fix_postgres import OPTIONS, DatabaseFactory, PostgresServer
from fix_restore import (
    MARK,
    InS3,
    NewName,
    RestoreClients,
    Stocked,
    client_of,
    contents,
    exists,
    fetches,
    flip,
    restore_to,
    state,
    wait_for_copy,
)
from fix_tools import Ended, Running, Site, small_disk, wait_until
from psycopg import sql

from backupd import throwaway
from backupd.errors import (
    AccessRefused,
    BackupdError,
    NoRoom,
    NotFound,
    RestoreFailed,
    StoreError,
    TargetRefused,
    UsageError,
    VerificationFailed,
    VersionMismatch,
)
from backupd.layout import archive_key
from backupd.progress import Progress
from backupd.selector import name_of

MakeSite = Callable[..., Site]
NewRole = Callable[..., str]
Waiting = Callable[[PostgresServer], str]

pytestmark = pytest.mark.slow


def databases(server: PostgresServer) -> list[tuple[object, ...]]:
    """Every database with all that is visible of it from outside."""
    with server.connect() as connection:
        query = "SELECT d::text, shobj_description(oid, 'pg_database') FROM pg_database d ORDER BY datname"
        return connection.execute(query).fetchall()


@contextlib.contextmanager
def refused(here: Site, kind: type[BackupdError], *words: str, server: PostgresServer | None = None) -> Iterator[None]:
    """The block fails with that error, all words in its text; the target and the store are as they were."""
    before, objects = databases(server or here.server), here.objects()
    with pytest.raises(kind) as raised:
        yield
    assert raised.type is kind
    for word in words:
        assert word in str(raised.value)
    assert databases(server or here.server) == before
    assert here.objects() == objects
    here.assert_clean()


# --- the comparison bites


CHANGES = {
    "a row is missing": ("DELETE FROM shop.products WHERE id = 7", "shop.products: 50 promised, 49 found"),
    "a row is too many": ("INSERT INTO shop.animals VALUES ('dog', 4)", "shop.animals: 1 promised, 2 found"),
    "a child's rows are not its parent's": ("DELETE FROM shop.birds", "shop.birds: 2 promised, 0 found"),
    "a table is empty": ("TRUNCATE shop.kinds", "shop.kinds: 5 promised, 0 found"),
    "rows without columns": ("TRUNCATE shop.nothing", "shop.nothing: 3 promised, 0 found"),
    "an empty table is gone": ("DROP TABLE shop.nobody_bought", "shop.nobody_bought: 0 promised, none found"),
    "a leaf under its root": (
        "DELETE FROM shop.events WHERE (tableoid, ctid) IN (SELECT tableoid, ctid FROM shop.events LIMIT 1)",
        "shop.events: 100 promised, 99 found",
    ),
    "a leaf": ("TRUNCATE shop.orders_2025", "shop.orders_2025: 208 promised, 0 found"),
    "a sequence is behind": (
        "SELECT setval('shop.products_id_seq', 49)",
        "sequence shop.products_id_seq: 50 promised, 49 found",
    ),
    "a sequence is gone": ("DROP SEQUENCE shop.downwards", "sequence shop.downwards: -2 promised, none found"),
    "a sequence was used": (
        "SELECT nextval('shop.never_called')",
        "sequence shop.never_called unused: 1 promised, 0 found",
    ),
    "a large object is gone": (
        "SELECT lo_unlink(min(oid)) FROM pg_largeobject_metadata",
        "large objects: 4 promised, 3 found",
    ),
    "a large object is too many": ("SELECT lo_create(0)", "large objects: 4 promised, 5 found"),
    "an index is invalid": (
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'shop.products_pkey'::regclass",
        "invalid indexes: 0 promised, 1 found",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_restored_database_that_differs_is_named_with_both_numbers_and_dropped(
    change: str, postgres17: PostgresServer, stocked: Stocked, restore_clients: RestoreClients, new_name: NewName
) -> None:
    here, backup = stocked(postgres17)
    statement, said = CHANGES[change]
    client = client_of(postgres17, restore_clients(postgres17, f'"$real" "$@" && psql {shlex.quote(statement)}'))
    with refused(here, VerificationFailed, "differs from the backup in 1 places", f"detail: {said}.", "--keep"):
        restore_to(here, backup, new_name(postgres17), clients=[client])


def test_a_pg_restore_that_does_nothing_and_ends_with_0_is_found_out(
    postgres17: PostgresServer, stocked: Stocked, restore_clients: RestoreClients, new_name: NewName
) -> None:
    here, backup = stocked(postgres17)
    client = client_of(postgres17, restore_clients(postgres17, "exit 0"))
    with refused(here, VerificationFailed, "shop.documents: 5 promised, none found"):
        restore_to(here, backup, new_name(postgres17), clients=[client])


def test_with_keep_the_different_database_is_kept_closed_and_named(
    postgres17: PostgresServer,
    stocked: Stocked,
    restore_clients: RestoreClients,
    new_name: NewName,
    new_role: NewRole,
) -> None:
    folder = restore_clients(postgres17, '"$real" "$@" && psql "TRUNCATE shop.kinds"')
    here, backup = stocked(postgres17, BACKUPD_DUMP__CLIENTS=str(folder))
    name, anybody = new_name(postgres17), new_role(postgres17)
    ended = here.run("restore", backup.id, "--as", name, "--keep")

    here.assert_failed(ended, 14, "verification_failed")
    assert "shop.kinds: 5 promised, 0 found" in ended.error["detail"]
    assert "--keep" not in ended.error["hint"]
    left = next(event for event in ended.events if event["event"] == "target.left_closed")
    assert left["database"] == name
    assert state(postgres17, name) == (MARK.format(backup.id), False, "postgres")
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        postgres17.connect(name, user=anybody)


def test_an_existing_database_that_differs_is_left_closed_and_named(
    postgres17: PostgresServer, stocked: Stocked, restore_clients: RestoreClients, database: DatabaseFactory
) -> None:
    folder = restore_clients(postgres17, '"$real" "$@" && psql "TRUNCATE shop.kinds"')
    here, backup = stocked(postgres17, BACKUPD_DUMP__CLIENTS=str(folder))
    name = database(postgres17)
    ended = here.run("restore", backup.id, "--into", name)

    here.assert_failed(ended, 14, "verification_failed")
    assert [event["database"] for event in ended.events if event["event"] == "target.left_closed"] == [name]
    comment, public, _ = state(postgres17, name)
    assert not public
    assert comment is not None
    assert comment.startswith(MARK.format(backup.id))


# --- refused before anything is written


def test_a_name_that_is_taken_is_refused(postgres17: PostgresServer, stocked: Stocked) -> None:
    here, backup = stocked(postgres17)
    for name in (backup.source.database, "postgres", "template1"):
        with refused(here, TargetRefused, f"database {name} exists already", "--as", "--into"):
            restore_to(here, backup, name)


@pytest.mark.parametrize("name", ["", "x" * 64, "ü" * 32, "\udcff"])
def test_a_name_that_no_database_can_have_is_refused(name: str, postgres17: PostgresServer, stocked: Stocked) -> None:
    here, backup = stocked(postgres17)
    with refused(here, UsageError, "database name"):
        restore_to(here, backup, name)


def test_a_role_that_may_not_create_databases_is_refused_and_shown_into(
    postgres17: PostgresServer, stocked: Stocked, new_role: NewRole
) -> None:
    here, backup = stocked(postgres17)
    with refused(here, AccessRefused, "role may not create database", "--into"):
        restore_to(here, backup, "never_made", keywords={"user": new_role(postgres17)})


def test_into_a_database_that_is_missing_is_refused(postgres17: PostgresServer, stocked: Stocked) -> None:
    here, backup = stocked(postgres17)
    with refused(here, UsageError, 'database "missing" does not exist', "hint: Give --as"):
        restore_to(here, backup, "missing", create=False)


def test_into_a_database_of_somebody_else_is_refused(
    postgres17: PostgresServer, stocked: Stocked, database: DatabaseFactory, new_role: NewRole
) -> None:
    here, backup = stocked(postgres17)
    name, role = database(postgres17), new_role(postgres17)
    with refused(here, AccessRefused, "role does not own the target", "OWNER TO"):
        restore_to(here, backup, name, create=False, keywords={"user": role})


CONTENTS = {
    "a table": ("CREATE TABLE t ()", "table public.t"),
    "an empty schema": ("CREATE SCHEMA s; CREATE TABLE s.t (); DROP TABLE s.t", "schema s"),
    "a view": ("CREATE VIEW v AS SELECT 1 AS one", "view public.v"),
    "a sequence": ("CREATE SEQUENCE s", "sequence public.s"),
    "a function": ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "function public.f()"),
    "an enum": ("CREATE TYPE e AS ENUM ()", "type public.e"),
    "a domain": ("CREATE DOMAIN d AS int", "type public.d"),
    "a composite type": ("CREATE TYPE c AS (n int)", "type public.c"),
    "a shell type": ("CREATE TYPE s", "type public.s"),
    "a large object": ("SELECT lo_create(4711)", "large object 4711"),
    "an operator": ("CREATE OPERATOR @@@ (LEFTARG = int, RIGHTARG = int, FUNCTION = int4pl)", "operator public.@@@"),
    "a collation": ('CREATE COLLATION c FROM "C"', "collation public.c"),
    "a text search configuration": ("CREATE TEXT SEARCH CONFIGURATION t (COPY = simple)", "configuration public.t"),
    "a publication": ("CREATE PUBLICATION p", "publication p"),
    "a foreign data wrapper": ("CREATE FOREIGN DATA WRAPPER w", "foreign-data wrapper w"),
    "a table beside an extension": ("CREATE EXTENSION hstore; CREATE TABLE t (h hstore)", "table public.t"),
}


@pytest.mark.parametrize("content", CONTENTS)
def test_into_a_database_that_holds_anything_is_refused_and_what_it_holds_is_named(
    content: str, postgres17: PostgresServer, stocked: Stocked, database: DatabaseFactory
) -> None:
    here, backup = stocked(postgres17)
    statements, named = CONTENTS[content]
    name = database(postgres17)
    with postgres17.connect(name) as connection:
        connection.execute(statements.encode())
    with refused(here, TargetRefused, "target is not empty", named, "nothing was touched"):
        restore_to(here, backup, name, create=False)


def test_missing_roles_are_named(
    postgres17: PostgresServer, site: MakeSite, database: DatabaseFactory, new_role: NewRole
) -> None:
    here, source = site(postgres17), database(postgres17)
    with postgres17.connect(source) as connection:
        for role in ('own"er', "reader"):
            connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
        connection.execute('CREATE TABLE t (); ALTER TABLE t OWNER TO "own""er"; GRANT SELECT ON t TO reader')
        backup = here.take(source)
        connection.execute('DROP TABLE t; DROP ROLE "own""er", reader')
    here.remember()
    with refused(here, TargetRefused, 'roles are missing on the target: own"er, reader', "CREATE ROLE"):
        restore_to(here, backup, "never_made")


def test_missing_extensions_are_named(postgres18: PostgresServer, stocked: Stocked, tmp_path: Path) -> None:
    here, backup = stocked(postgres18)
    open_to_all(tmp_path)
    with refused(here, TargetRefused, "extensions are not available on the target: hstore, plpgsql"):
        restore_to(here, backup, "never_made", keywords={"options": f"-c extension_control_path={tmp_path}"})


def test_a_standby_is_refused(
    own_postgres: Callable[..., tuple[PostgresServer, Callable[[], None]]],
    postgres17: PostgresServer,
    stocked: Stocked,
) -> None:
    here, backup = stocked(postgres17)
    server, _ = own_postgres()
    become_standby(server)
    with refused(here, TargetRefused, "target is a standby", "BACKUPD_TARGET__HOST", server=server):
        restore_to(here, backup, "never_made", on=server)


def become_standby(server: PostgresServer) -> None:
    """A server that recovers, as after the death of one of its processes, looks for the standby's signal."""
    (server.data_directory / "standby.signal").touch()
    with server.connect() as connection:
        os.kill(connection.info.backend_pid, signal.SIGKILL)

    def standby() -> bool:
        with contextlib.suppress(psycopg.OperationalError), server.connect() as connection:
            return connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
        return False

    wait_until(standby, "the server does not come back as a standby")


# --- clients


def test_without_a_client_nothing_is_written(postgres17: PostgresServer, stocked: Stocked, tmp_path: Path) -> None:
    here, backup = stocked(postgres17)
    with refused(here, VersionMismatch, "no PostgreSQL client 17 or newer", "found: none", "BACKUPD_DUMP__CLIENTS"):
        restore_to(here, backup, "never_made", clients=[])


def test_a_client_older_than_the_archive_is_refused(
    postgres15: PostgresServer, postgres17: PostgresServer, stocked: Stocked
) -> None:
    here, backup = stocked(postgres17)
    older = replace(client_of(postgres15), zstd=True)
    with refused(here, VersionMismatch, "no PostgreSQL client 17", "Clients found: 15.", "BACKUPD_DUMP__CLIENTS"):
        restore_to(here, backup, "never_made", clients=[older])


def test_a_client_without_the_archive_s_compression_is_refused(
    postgres17: PostgresServer, postgres18: PostgresServer, stocked: Stocked
) -> None:
    here, backup = stocked(postgres17)
    with refused(here, VersionMismatch, "built with zstd", "Clients found: 18.", "BACKUPD_DUMP__CLIENTS"):
        restore_to(here, backup, "never_made", clients=[client_of(postgres18)])


def test_an_archive_of_17_is_not_restored_into_15(
    postgres15: PostgresServer, postgres17: PostgresServer, stocked: Stocked
) -> None:
    here, backup = stocked(postgres17)
    words = "does not restore into PostgreSQL 15", "transaction_timeout", "Restore into PostgreSQL 17 or newer"
    with refused(here, VersionMismatch, *words, server=postgres15):
        restore_to(here, backup, "never_made", on=postgres15, clients=[client_of(postgres15), client_of(postgres17)])


def test_an_archive_of_15_needs_an_old_client_for_an_old_server(
    postgres15: PostgresServer, postgres17: PostgresServer, stocked: Stocked
) -> None:
    here, backup = stocked(postgres15)
    with refused(here, VersionMismatch, "does not restore into PostgreSQL 15", "postgresql-client-15"):
        restore_to(here, backup, "never_made", clients=[client_of(postgres17)])


# --- room


def test_a_scratch_that_is_too_small_is_refused_with_the_bytes_that_are_needed(
    postgres17: PostgresServer, stocked: Stocked, large_of: Waiting, tmp_path: Path
) -> None:
    here, backup = stocked(postgres17, large_of(postgres17))
    dump_bytes = sum(member.size_bytes for member in here.index(backup).members if not member.name.startswith("README"))
    with small_disk(tmp_path / "small", 4) as folder:
        with refused(here, NoRoom, f"backup {backup.id} needs ", " bytes of scratch", "BACKUPD_SCRATCH__DIRECTORY"):
            restore_to(here, backup, "never_made", scratch=folder)
        assert list(folder.iterdir()) == []
    assert dump_bytes > 8_000_000


def test_a_limit_on_scratch_is_kept_by_a_restore_too(
    postgres17: PostgresServer, stocked: Stocked, large_of: Waiting
) -> None:
    """Where more would be written the kubelet evicts the pod, and its log with it."""
    here, backup = stocked(postgres17, large_of(postgres17))
    ended = here.run("restore", backup.id, "--as", "never_made", BACKUPD_SCRATCH__LIMIT="4000000")
    here.assert_failed(ended, 17, "no_room")
    assert ended.error["message"].startswith(f"backup {backup.id} needs ")
    assert "BACKUPD_SCRATCH__LIMIT" in ended.error["hint"]


def test_a_data_folder_that_may_not_be_looked_at_stops_no_restore(
    postgres17: PostgresServer, stocked: Stocked, shop_of: Waiting
) -> None:
    here, backup = stocked(postgres17, shop_of(postgres17))
    refusal = ["-e", "trace=statfs", "-e", "inject=statfs:error=EACCES:when=1"]
    here.prefix = ["strace", "-f", "-qq", "-o", os.devnull, *refusal]
    ended = here.run("restore", backup.id, "--as", "never_made", "--plan")
    assert ended.code == 0, ended.stderr
    assert "what is free there cannot be asked" in ended.stdout


NEW_WAL = 'psql "SELECT pg_switch_wal()"; psql CHECKPOINT'
"""Gives WAL room of its own: a server that finds none when its disk is full does not come back."""


def test_a_target_that_fills_up_is_named_and_the_database_is_dropped(
    postgres17: PostgresServer,
    site: MakeSite,
    database: DatabaseFactory,
    restore_clients: RestoreClients,
    tmp_path: Path,
) -> None:
    here, source = site(postgres17), database(postgres17)
    with postgres17.connect(source) as connection:  # unlogged: the disk fills with rows, not with WAL
        connection.execute("CREATE UNLOGGED TABLE full_of_x (n int, x text)")
        connection.execute("ALTER TABLE full_of_x ALTER x SET STORAGE EXTERNAL")
        connection.execute("INSERT INTO full_of_x SELECT n, repeat('x', 1 << 20) FROM generate_series(1, 60) n")
    backup = here.take(source)
    here.remember()
    open_to_all(tmp_path)
    filler = "CREATE UNLOGGED TABLE filler (x text); ALTER TABLE filler ALTER x SET STORAGE EXTERNAL;"
    filler += " INSERT INTO filler SELECT repeat('x', 1 << 20) FROM generate_series(1, 90)"
    client = client_of(postgres17, restore_clients(postgres17, f'{NEW_WAL}; psql "{filler}"; exec "$real" "$@"'))
    words = "pg_restore ended with status 1", "No space left on device"
    with small_disk(tmp_path / "server", 180) as folder, one_server(folder) as server:  # noqa: SIM117
        with refused(here, NoRoom, *words, server=server):
            restore_to(here, backup, "too_large", on=server, clients=[client])
    with small_disk(tmp_path / "server", 100) as folder, one_server(folder) as server:  # noqa: SIM117
        with refused(here, NoRoom, "target has ", "bytes free in ", server=server):
            restore_to(here, backup, "too_large", on=server)


def open_to_all(folder: Path) -> None:
    """Lets the server's user into a folder of pytest's."""
    for each in (folder, *folder.parents[:2]):
        each.chmod(0o755)


@contextlib.contextmanager
def one_server(folder: Path) -> Iterator[PostgresServer]:
    install = next(each for each in throwaway.find_servers() if each.major == 17)
    folder.chmod(0o755)
    options = OPTIONS | {"max_wal_size": "32MB", "min_wal_size": "32MB", "wal_writer_delay": "10s"}
    options["synchronous_commit"] = "on"
    with throwaway.start(install, folder, options=options, listen=True) as made:
        yield PostgresServer.of(made)


INTO = {
    "a new database": ("--as", "target"),
    "an empty one": ("--into", "target"),
    "the live one's place": ("--replace", "target", "--yes-replace", "target"),
}


@pytest.mark.parametrize("into", INTO)
def test_a_server_that_crashes_right_after_a_restore_has_lost_nothing_of_it(
    into: str, site: MakeSite, tmp_path: Path
) -> None:
    """Commits of pg_restore wait for no disk; that of the last step must, and the WAL writer sleeps meanwhile."""
    open_to_all(tmp_path)
    (tmp_path / "server").mkdir()
    with one_server(tmp_path / "server") as server:
        here = site(server)
        with server.connect() as connection:
            connection.execute("CREATE DATABASE source")
            if into != "a new database":
                connection.execute("CREATE DATABASE target TEMPLATE template0")
        with server.connect("source") as connection:
            for number in range(50):
                connection.execute(f"CREATE TABLE t{number} AS SELECT n FROM generate_series(1, 100) n".encode())
        backup, there = here.take("source"), contents(server, "source")
        ended = here.run("restore", backup.id, *INTO[into])
        crash(server)
        assert ended.code == 0, ended.stderr
        with started_again(server):
            assert contents(server, "target") == there
            assert state(server, "target") == state(server, "source")


def crash(server: PostgresServer) -> None:
    """Ends a server at once: what no disk has yet is lost."""
    pid = int((server.data_directory / "postmaster.pid").read_text().split()[0])
    os.kill(pid, signal.SIGQUIT)
    wait_until(lambda: not (server.data_directory / "postmaster.pid").exists(), "the server does not end")


@contextlib.contextmanager
def started_again(server: PostgresServer) -> Iterator[None]:
    """The server with its data as a crash left them."""
    argv = shlex.split((server.data_directory / "postmaster.opts").read_text())
    with subprocess.Popen(argv, cwd=server.data_directory, user=server.data_directory.stat().st_uid) as child:
        try:
            wait_until(lambda: answers(server), "the server does not come back")
            yield
        finally:
            child.send_signal(signal.SIGQUIT)


def answers(server: PostgresServer) -> bool:
    with contextlib.suppress(psycopg.OperationalError), server.connect():
        return True
    return False


# --- pg_restore and the server in the middle


ENDINGS = {
    "an error": (
        'psql "CREATE SCHEMA shop"; exec "$real" "$@"',
        ["ended with status 1", 'schema "shop" already exists'],
    ),
    "silence": ('psql "CREATE TABLE half ()"; exit 3', ["ended with status 3", "It said nothing"]),
    "kill -9": ('psql "CREATE TABLE half ()"; kill -9 $$', ["ended with signal 9"]),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_pg_restore_that_ends_badly_leaves_no_database(
    ending: str, postgres17: PostgresServer, stocked: Stocked, restore_clients: RestoreClients, new_name: NewName
) -> None:
    here, backup = stocked(postgres17)
    script, words = ENDINGS[ending]
    with refused(here, RestoreFailed, *words, "--keep"):
        client = client_of(postgres17, restore_clients(postgres17, script))
        restore_to(here, backup, new_name(postgres17), clients=[client])


def test_a_filtered_backup_that_lacks_what_its_tables_need_is_shown_fetch(
    postgres17: PostgresServer, site: MakeSite, shop_of: Waiting, new_name: NewName
) -> None:
    here = site(postgres17)
    backup = here.take(shop_of(postgres17), include=("shop.animals",))
    with refused(here, RestoreFailed, 'schema "shop" does not exist', "is filtered", "`backupd fetch`"):
        restore_to(here, backup, new_name(postgres17))


@contextlib.contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[None]:
    """Runs `work` in a thread while the block runs; what it raises fails the test."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as exc:  # noqa: BLE001
            failures.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        assert failures == []


def test_sessions_that_the_server_ends_in_the_middle_leave_no_database(
    postgres17: PostgresServer, stocked: Stocked, waiting_of: Waiting, new_name: NewName
) -> None:
    here, backup = stocked(postgres17, waiting_of(postgres17))
    name = new_name(postgres17)

    def end() -> None:
        pid = wait_for_copy(postgres17, name)
        with postgres17.connect() as connection:
            connection.execute("SELECT pg_terminate_backend(%s)", [pid])

    with refused(here, RestoreFailed, "terminating connection"), meanwhile(end):
        restore_to(here, backup, name)


def test_a_server_that_crashes_in_the_middle_and_recovers_has_no_database_left(
    own_postgres: Callable[..., tuple[PostgresServer, Callable[[], None]]],
    postgres17: PostgresServer,
    stocked: Stocked,
    waiting_of: Waiting,
) -> None:
    here, backup = stocked(postgres17, waiting_of(postgres17))
    server, _ = own_postgres()

    def kill() -> None:
        os.kill(wait_for_copy(server, "crashing"), signal.SIGKILL)

    with refused(here, RestoreFailed, server=server), meanwhile(kill):
        restore_to(here, backup, "crashing", on=server)


def test_a_server_that_is_gone_does_not_hide_why_the_restore_failed(
    own_postgres: Callable[..., tuple[PostgresServer, Callable[[], None]]],
    postgres17: PostgresServer,
    stocked: Stocked,
    waiting_of: Waiting,
    capfd: pytest.CaptureFixture[str],
) -> None:
    here, backup = stocked(postgres17, waiting_of(postgres17))
    server, stop = own_postgres()

    def end() -> None:
        wait_for_copy(server, "stopping")
        stop()

    with pytest.raises(RestoreFailed), meanwhile(end):
        restore_to(here, backup, "stopping", on=server)
    here.assert_untouched()
    assert "target.left " in capfd.readouterr().out


# --- archives


@pytest.mark.parametrize("name", ["toc.dat", "blob_", "blobs", "table"])
def test_a_flipped_bit_is_found_before_any_database_is_made(
    name: str, postgres17: PostgresServer, stocked: Stocked, new_name: NewName
) -> None:
    here, backup = stocked(postgres17)
    index = here.index(backup)
    wanted = max(index.contract.tables, key=lambda table: table.raw_bytes).member if name == "table" else name
    member = next(each for each in index.members if each.name.startswith(wanted) and each.size_bytes)
    flip(here, backup, member.offset + member.size_bytes // 2)
    with refused(here, VerificationFailed, f"member {member.name}", "is damaged", "backupd list"):
        restore_to(here, backup, new_name(postgres17))


def test_a_flipped_bit_in_the_index_is_found_before_any_database_is_made(
    postgres17: PostgresServer, stocked: Stocked, new_name: NewName
) -> None:
    here, backup = stocked(postgres17)
    flip(here, backup, backup.manifest.index_offset + backup.manifest.index_bytes // 2)
    with refused(here, VerificationFailed, "index of ", "is damaged"):
        restore_to(here, backup, new_name(postgres17))


@pytest.mark.parametrize("left_bytes", [0, 100_000])
def test_a_cut_archive_is_found_before_any_database_is_made(
    left_bytes: int, postgres17: PostgresServer, stocked: Stocked, new_name: NewName
) -> None:
    here, backup = stocked(postgres17)
    path = here.archive_file(backup)
    path.chmod(0o600)
    os.truncate(path, left_bytes)
    with refused(here, StoreError, archive_key(name_of(backup))):
        restore_to(here, backup, new_name(postgres17))


def test_an_archive_that_is_deleted_meanwhile_makes_no_database(
    postgres17: PostgresServer, stocked: Stocked, new_name: NewName
) -> None:
    here, backup = stocked(postgres17)
    before, path = databases(postgres17), here.archive_file(backup)

    def delete(progress: Progress) -> None:
        if progress.stage == "fetch":
            path.unlink(missing_ok=True)

    with pytest.raises(NotFound, match=path.name):
        restore_to(here, backup, new_name(postgres17), progress=Progress(delete))
    assert databases(postgres17) == before
    here.assert_clean()


def test_another_backup_s_archive_under_this_one_s_name_is_found_out(
    postgres17: PostgresServer, stocked: Stocked, new_name: NewName
) -> None:
    here, backup = stocked(postgres17)
    other = here.take(backup.source.database)
    path = here.archive_file(backup)
    path.chmod(0o600)
    shutil.copyfile(here.archive_file(other), path)
    with refused(here, VerificationFailed, backup.id):
        restore_to(here, backup, new_name(postgres17))


# --- S3


def test_a_connection_that_s3_resets_in_the_middle_of_a_member_is_made_good(
    postgres17: PostgresServer, in_s3: InS3, large_of: Waiting, new_name: NewName
) -> None:
    here, backup, proxy = in_s3(postgres17, large_of(postgres17))
    cut: list[str] = []

    def rule(method: str, path: str, number: int) -> str | None:
        if method == "GET" and path.endswith(".tar") and len(cut) < 3:
            cut.append(path)
            return "cut response"
        return None

    proxy.rule = rule
    name = new_name(postgres17)
    restore_to(here, backup, name)
    assert len(cut) == 3
    assert contents(postgres17, name) == contents(postgres17, backup.source.database)
    assert list(here.scratch.iterdir()) == []


def test_an_s3_that_ends_every_answer_early_makes_no_database(
    postgres17: PostgresServer, in_s3: InS3, large_of: Waiting, new_name: NewName
) -> None:
    here, backup, proxy = in_s3(postgres17, large_of(postgres17))

    def rule(method: str, path: str, number: int) -> str | None:
        return "cut response" if fetches(proxy) else None

    proxy.rule = rule
    with refused(here, StoreError, backup.id, "before its end"):
        restore_to(here, backup, new_name(postgres17))


# --- signals


SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_in_the_middle_of_pg_restore_leaves_nothing(
    number: int, code: int, postgres17: PostgresServer, stocked: Stocked, waiting_of: Waiting, new_name: NewName
) -> None:
    here, backup = stocked(postgres17, waiting_of(postgres17))
    name = new_name(postgres17)
    run = here.start("restore", backup.id, "--as", name)
    wait_for_copy(postgres17, name)
    run.send(number)
    ended = ended_soon(run)
    here.assert_failed(ended, code, "interrupted")
    assert not exists(postgres17, name)


def ended_soon(run: Running, seconds: float = 10.0) -> Ended:
    """The end of a run that was interrupted; Kubernetes waits 30 s."""
    began = time.monotonic()
    ended = run.end()
    assert time.monotonic() - began < seconds
    return ended


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_in_the_middle_of_a_fetch_from_s3_leaves_nothing(
    number: int, code: int, postgres17: PostgresServer, in_s3: InS3, large_of: Waiting
) -> None:
    here, backup, proxy = in_s3(postgres17, large_of(postgres17))
    before, fetching = databases(postgres17), threading.Event()

    def rule(method: str, path: str, number: int) -> str | None:
        if not fetches(proxy):
            return None
        fetching.set()
        return "slow 2"

    proxy.rule = rule
    run = here.start("restore", backup.id, "--as", "never_made")
    assert fetching.wait(30)
    run.send(number)
    ended = ended_soon(run)
    assert (ended.code, ended.error["reason"]) == (code, "interrupted")
    assert databases(postgres17) == before
    here.assert_clean()


@contextlib.contextmanager
def locked(server: PostgresServer, name: str, table: str, mode: str) -> Iterator[None]:
    with server.connect(name) as connection, connection.transaction():
        connection.execute(f"LOCK TABLE {table} IN {mode} MODE".encode())
        yield


def waits_for_lock(server: PostgresServer) -> bool:
    with server.connect() as connection:
        query = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        return connection.execute(query).fetchone() is not None


def sessions_of_backupd(server: PostgresServer) -> bool:
    with server.connect() as connection:
        query = "SELECT FROM pg_stat_activity WHERE application_name = 'backupd restore'"
        return connection.execute(query).fetchone() is not None


def test_a_signal_while_the_database_is_being_made_leaves_none(
    postgres17: PostgresServer, stocked: Stocked, new_name: NewName
) -> None:
    here, backup = stocked(postgres17)
    name = new_name(postgres17)
    with locked(postgres17, "postgres", "pg_database", "EXCLUSIVE"):
        run = here.start("restore", backup.id, "--as", name)
        wait_until(lambda: waits_for_lock(postgres17), "CREATE DATABASE does not wait")
        run.send(signal.SIGTERM)
        time.sleep(0.5)
    ended = ended_soon(run)
    here.assert_failed(ended, 143, "interrupted")
    # the server would go on with the CREATE DATABASE that nobody waits for
    wait_until(lambda: not sessions_of_backupd(postgres17), "sessions are left")
    assert not exists(postgres17, name)


@pytest.mark.parametrize("stage", ["compare", "open"])
def test_a_signal_after_pg_restore_leaves_no_database(
    stage: str,
    postgres17: PostgresServer,
    stocked: Stocked,
    new_name: NewName,
    restore_clients: RestoreClients,
    tmp_path: Path,
) -> None:
    done, go = tmp_path / "done", tmp_path / "go"
    folder = restore_clients(postgres17, f'"$real" "$@" && : > {done}; while [ ! -e {go} ]; do sleep 0.02; done')
    here, backup = stocked(postgres17, BACKUPD_DUMP__CLIENTS=str(folder))
    name = new_name(postgres17)
    run = here.start("restore", backup.id, "--as", name)
    wait_until(done.exists, "pg_restore does not end")
    place, table = (name, "shop.documents, shop.kinds") if stage == "compare" else ("postgres", "pg_database")
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(psycopg.OperationalError))  # DROP DATABASE ends our session
        stack.enter_context(locked(postgres17, place, table, "ACCESS EXCLUSIVE" if stage == "compare" else "EXCLUSIVE"))
        go.touch()
        wait_until(lambda: waits_for_lock(postgres17), f"{stage} does not wait")
        assert state(postgres17, name)[:2] == (MARK.format(backup.id), False)
        run.send(signal.SIGTERM)
        if stage == "compare":  # the count must not go on
            ended = ended_soon(run)
    if stage == "open":
        ended = ended_soon(run)
    here.assert_failed(ended, 143, "interrupted")
    assert not exists(postgres17, name)


def test_what_kill_9_leaves_is_closed_and_the_next_restore_says_what_it_is_and_how_to_remove_it(
    postgres17: PostgresServer, stocked: Stocked, waiting_of: Waiting, new_name: NewName, new_role: NewRole
) -> None:
    here, backup = stocked(postgres17, waiting_of(postgres17))
    name, anybody = new_name(postgres17, 'left "over"'), new_role(postgres17)
    run = here.start("restore", backup.id, "--as", name)
    wait_for_copy(postgres17, name)
    with pytest.raises(TargetRefused) as raised:  # while it is still being filled
        restore_to(here, backup, name)
    assert "or one is still filling it" in raised.value.message
    # pg_restore's, and at times the one that looks how far it is
    assert re.search(r"Sessions in it now: [12]\.", str(raised.value.detail))
    run.send(signal.SIGKILL)
    run.end()

    wait_until(lambda: not here.children(), "pg_restore outlives backupd")
    assert state(postgres17, name) == (MARK.format(backup.id), False, "postgres")
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        postgres17.connect(name, user=anybody)
    again = here.run("restore", backup.id, "--as", name)
    assert (again.code, again.error["reason"]) == (15, "target_refused")
    assert "interrupted restore" in again.error["message"]
    assert backup.id in again.error["detail"]
    assert 'DROP DATABASE "left ""over""";' in again.error["hint"]
    assert state(postgres17, name) == (MARK.format(backup.id), False, "postgres")
    for folder in here.scratch.iterdir():  # what kill -9 leaves there is nobody's
        shutil.rmtree(folder)
    for folder in here.temporary.iterdir():
        shutil.rmtree(folder)
    here.assert_untouched()
