"""A drill proves a backup by restoring it where nobody needs anything, and notes only what it has proven."""

import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fix_postgres import DatabaseFactory, PostgresServer
from fix_restore import LOGS_LOGINS, RestoreClients, Stocked, Subscribe, client_of, flip
from fix_tools import Site, access_server, wait_until
from made_backups import made_backup, made_manifest, made_note
from psycopg import sql

from backupd import drill, locks, postgres, retention
from backupd.errors import (
    Locked,
    RestoreFailed,
    TargetRefused,
    UsageError,
    VerificationFailed,
    VersionMismatch,
)
from backupd.manifest import Backup, Filter
from backupd.progress import Progress

MakeSite = Callable[..., Site]
NOW = datetime(2026, 11, 26, 5, tzinfo=UTC)
ASLEEP = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname LIKE 'backupd_drill%'"


def drill_on(
    here: Site, backup: Backup, server: PostgresServer, clients: Path | None = None, user: str = ""
) -> drill.Drilled:
    """Drills in process, on another server, with the clients of the archive's server or those in a folder."""
    made = access_server(here)
    keywords = {**made.keywords, "port": str(server.port), "user": user or server.user}
    reached = type(made)(keywords, server.password, None, made.environment)
    with postgres.reach(reached, "postgres", here.temporary, "backupd test") as access:
        job = drill.Job("postgres", 2, here.scratch)
        found = [client_of(here.server, clients)]
        return drill.drill(access, here.catalog, found, backup, job, lambda: NOW, Progress())


def by_url(server: PostgresServer) -> dict[str, str]:
    """Settings that send drills to that server."""
    return {
        "BACKUPD_DRILL__URL": f"postgresql://{server.user}@127.0.0.1:{server.port}/postgres",
        "BACKUPD_DRILL__PASSWORD": server.password,
    }


def remains(server: PostgresServer) -> list[str]:
    """Databases and roles that drills have left."""
    query = (
        "SELECT datname FROM pg_database WHERE datname LIKE 'backupd\\_drill\\_%'"
        " UNION ALL SELECT rolname FROM pg_roles WHERE rolname IN ('shop owner', 'shop_reader', 'drilled_owner')"
    )
    with server.connect() as connection:
        return [str(row[0]) for row in connection.execute(query).fetchall()]


def copies(server: PostgresServer) -> list[str]:
    """Databases that drills have left."""
    return [name for name in remains(server) if name.startswith("backupd_drill_")]


def again(here: Site, backup: Backup) -> Backup:
    """The backup as the store has it now."""
    return here.catalog.find(backup.id)


@pytest.fixture
def other(postgres18: PostgresServer) -> Iterator[PostgresServer]:
    """A server that nobody needs; a drill leaves nothing there."""
    before = remains(postgres18)
    yield postgres18
    assert remains(postgres18) == before


# --- what is proven


@pytest.mark.slow
@pytest.mark.parametrize(("old", "new"), [(15, 17), (17, 18), (15, 18)])
def test_a_drilled_shop_is_identical_and_says_how_long_it_took(
    old: int, new: int, request: pytest.FixtureRequest, stocked: Stocked
) -> None:
    server: PostgresServer = request.getfixturevalue(f"postgres{new}")
    before = remains(server)
    here, backup = stocked(request.getfixturevalue(f"postgres{old}"))
    found = drill_on(here, backup, server)

    assert (found.level, found.noted) == ("identical", True)
    note = again(here, backup).note("drilled")
    assert note is not None
    assert (note.ok, note.at, note.facts["level"]) == (True, NOW, "identical")
    assert note.facts["seconds"] == found.seconds > 0
    assert note.facts["tables"] == backup.manifest.totals.tables
    assert (note.facts["rows"], note.facts["raw_bytes"]) == (
        backup.manifest.totals.rows,
        backup.manifest.totals.raw_bytes,
    )
    assert remains(server) == before
    here.assert_clean()


@pytest.mark.slow
def test_a_role_that_is_no_superuser_drills_what_lies_in_public(
    site: MakeSite,
    postgres17: PostgresServer,
    database: DatabaseFactory,
    other: PostgresServer,
    new_role: Callable[..., str],
) -> None:
    source, owner = database(postgres17), new_role(postgres17, name="drilled_owner")
    with postgres17.connect(source) as connection:
        connection.execute(
            sql.SQL("ALTER DATABASE {} OWNER TO {}").format(sql.Identifier(source), sql.Identifier(owner))
        )
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(owner)))
        connection.execute("CREATE TABLE plain AS SELECT n FROM generate_series(1, 10) n")
    here = site(postgres17)
    found = drill_on(here, here.take(source), other, user=new_role(other, "CREATEDB CREATEROLE"))

    assert (found.level, found.noted) == ("identical", True)


@pytest.mark.slow
def test_a_database_that_logs_logins_is_identical(
    site: MakeSite, postgres17: PostgresServer, database: DatabaseFactory, other: PostgresServer
) -> None:
    here, source = site(postgres17), database(postgres17)
    with postgres17.connect(source) as connection:
        connection.execute(LOGS_LOGINS)
    found = drill_on(here, here.take(source), other)

    assert found.level == "identical"
    assert {each.name for each in found.content.tables} == {"public.logins"}


@pytest.mark.slow
def test_list_and_show_print_what_was_proven(
    stocked: Stocked, postgres17: PostgresServer, other: PostgresServer
) -> None:
    here, backup = stocked(postgres17)
    ended = here.run("drill", "--json", **by_url(other))
    summary = json.loads(ended.stdout)

    assert ended.code == 0, ended.stderr
    assert (summary["message_type"], summary["level"], summary["backup"]["id"]) == ("summary", "identical", backup.id)
    assert re.search(r"  identical 20[0-9-]{8} in [0-9.]+ s$", here.run("list").stdout, re.MULTILINE)
    assert re.search("drilled: +yes, .*level identical, seconds ", here.run("show", "latest").stdout)


@pytest.mark.slow
@pytest.mark.parametrize("major", [15, 17, 18])
def test_a_server_of_its_own_is_started_where_one_is_installed(
    major: int, request: pytest.FixtureRequest, stocked: Stocked
) -> None:
    here, _ = stocked(request.getfixturevalue(f"postgres{major}"))
    hostile = {"PGHOST": "nowhere", "PGHOSTADDR": "192.0.2.1", "PGSERVICE": "none", "PGPORT": "1", "PGUSER": "nobody"}
    hostile |= {"PGREQUIREAUTH": "scram-sha-256", "PGSSLMODE": "verify-full"}
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)  # PostgreSQL does not run as root, and pytest's own folders are closed to others
        ended = here.run("drill", **hostile, BACKUPD_SCRATCH__DIRECTORY=name)
        left = list(Path(name).iterdir())

    assert ended.code == 0, ended.stderr
    assert left == []
    assert re.search("identical: restored in .* s, content compared in .* s; tables: ", ended.stdout)
    here.assert_clean(seconds=20)


@pytest.mark.slow
def test_other_content_behind_equal_rows_makes_the_backup_suspect(
    postgres17: PostgresServer, other: PostgresServer, stocked: Stocked, restore_clients: RestoreClients
) -> None:
    here, backup = stocked(postgres17)
    liar = """"$real" "$@" || exit; psql "UPDATE shop.carts SET content = 'x' WHERE id = 3" """
    with pytest.raises(VerificationFailed, match="other content in 1 tables") as raised:
        drill_on(here, backup, other, restore_clients(postgres17, liar))

    assert raised.value.detail == "shop.carts (10 rows, but not the same ones)."
    assert "drilled failed" in (again(here, backup).suspect or "")
    plan = retention.plan(here.catalog.backups().backups, retention.Policy(last=1), NOW)
    assert [each.reason for each in plan.frozen if "suspect" in each.reason]
    here.assert_clean()


@pytest.mark.slow
def test_an_index_on_a_function_without_a_schema_is_found_and_explained(
    postgres15: PostgresServer, other: PostgresServer, site: MakeSite, database: DatabaseFactory
) -> None:
    """From 17 on such an index cannot be made; older ones have made millions."""
    here, name = site(postgres15, **by_url(other)), database(postgres15)
    with postgres15.connect(name) as connection:
        connection.execute("CREATE FUNCTION inner_one(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT $1'")
        body = "'BEGIN RETURN inner_one($1); END'"
        connection.execute(f"CREATE FUNCTION outer_one(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS {body}")
        connection.execute("CREATE TABLE t AS SELECT 'a' AS a")
        connection.execute("CREATE INDEX ON t (outer_one(a))")
    here.take(name)
    ended = here.run("drill")

    assert (ended.code, ended.error["reason"]) == (14, "verification_failed")
    assert "does not restore: function inner_one(text) does not exist" in ended.error["message"]
    assert "without their schema" in ended.error["hint"]
    assert "SUSPECT: drilled failed: backup" in here.run("list").stdout
    here.assert_clean()


@pytest.mark.slow
def test_a_damaged_archive_is_noted(postgres17: PostgresServer, other: PostgresServer, stocked: Stocked) -> None:
    here, backup = stocked(postgres17)
    member = max(here.index(backup).members, key=lambda each: each.size_bytes)
    flip(here, backup, member.offset)
    with pytest.raises(VerificationFailed, match="is damaged"):
        drill_on(here, backup, other)

    assert "is damaged" in (again(here, backup).suspect or "")


@pytest.mark.slow
def test_the_next_good_drill_takes_the_suspicion_away(
    postgres17: PostgresServer, other: PostgresServer, stocked: Stocked
) -> None:
    here, backup = stocked(postgres17)
    suspect = here.catalog.note(backup, "drilled", False, {"error": "it was the server"}, NOW)
    assert suspect.suspect
    drill_on(here, suspect, other)

    assert again(here, backup).suspect is None


# --- what proves nothing


@pytest.mark.slow
def test_a_killed_pg_restore_says_nothing_about_the_backup(
    postgres17: PostgresServer, other: PostgresServer, stocked: Stocked, restore_clients: RestoreClients
) -> None:
    here, backup = stocked(postgres17)
    with pytest.raises(RestoreFailed):
        drill_on(here, backup, other, restore_clients(postgres17, "kill -9 $$"))

    here.assert_untouched()


@pytest.mark.slow
def test_a_lost_connection_says_nothing_about_the_backup(
    postgres17: PostgresServer, other: PostgresServer, stocked: Stocked, waiting_of: Callable[[PostgresServer], str]
) -> None:
    here, _ = stocked(postgres17, waiting_of(postgres17), **by_url(other))
    run = here.start("drill")
    with other.connect() as connection:
        (pid,) = wait_until(lambda: connection.execute(ASLEEP).fetchone(), "the drill does not wait in the middle")
        connection.execute("SELECT pg_terminate_backend(%s)", [pid])
    ended = run.end()

    assert (ended.code, ended.error["reason"]) == (20, "restore_failed")
    here.assert_untouched()


@pytest.mark.parametrize(
    ("said", "backups"),
    [
        ("could not execute query: ERROR:  function f(text) does not exist", True),
        ('could not execute query: ERROR:  relation "locales" does not exist', True),
        ('could not execute query: ERROR:  schema "extension" does not exist', True),
        ('COPY failed for table "t": ERROR:  new row violates check constraint "c"', True),
        ('could not execute query: ERROR:  could not create unique index "i" / could not execute query: x', True),
        ("could not execute query: server closed the connection unexpectedly", False),
        ("could not execute query: FATAL:  terminating connection due to administrator command", False),
        ("could not execute query: ERROR:  canceling statement due to user request", False),
        ("could not execute query: ERROR:  out of shared memory", False),
        ('could not execute query: ERROR:  extension "x" must be installed in schema pg_catalog', False),
        ("could not execute query: ERROR:  x must be loaded via shared_preload_libraries", False),
        ("could not execute query: ERROR:  permission denied to create extension", False),
        ('could not execute query: ERROR:  must be able to SET ROLE "owner"', False),
        ('could not execute query: ERROR:  tablespace "fast" does not exist', False),
        ('could not execute query: ERROR:  could not access file "$libdir/x": No such file or directory', False),
        ("a worker process died unexpectedly", False),
        ("It said nothing.", False),
    ],
)
def test_only_a_statement_that_no_other_server_would_take_is_the_backups_fault(said: str, backups: bool) -> None:
    error = RestoreFailed("pg_restore ended with status 1", detail=f"pg_restore: error: {said}")

    assert drill._is_the_backups_fault(error) is backups


@pytest.mark.slow
def test_the_cluster_that_the_backup_is_of_is_refused(postgres17: PostgresServer, stocked: Stocked) -> None:
    here, backup = stocked(postgres17)
    with pytest.raises(TargetRefused, match="is the cluster that the backup is of"):
        drill_on(here, backup, postgres17)

    here.assert_untouched()


@pytest.mark.slow
def test_an_older_server_is_refused_since_its_failure_would_prove_nothing(
    postgres18: PostgresServer, postgres17: PostgresServer, stocked: Stocked
) -> None:
    here, backup = stocked(postgres18)
    with pytest.raises(VersionMismatch, match="the drill's server is PostgreSQL 17, and the backup is of 18"):
        drill_on(here, backup, postgres17)

    here.assert_untouched()


@pytest.mark.slow
def test_one_drill_at_a_time_uses_a_server(postgres17: PostgresServer, other: PostgresServer, stocked: Stocked) -> None:
    here, backup = stocked(postgres17)
    with other.connect() as connection:
        connection.execute("SELECT pg_advisory_lock(%s, %s)", locks.DRILL)
        with pytest.raises(Locked, match="another drill uses the server"):
            drill_on(here, backup, other)

    here.assert_untouched()


@pytest.mark.slow
def test_what_a_killed_drill_left_is_swept_by_the_next(
    postgres17: PostgresServer, other: PostgresServer, stocked: Stocked
) -> None:
    here, backup = stocked(postgres17)
    with other.connect() as connection:
        for name in ("backupd_drill_20200101t000000z-00000000", f"backupd_drill_{backup.id.lower()}"):
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    drill_on(here, backup, other)

    assert again(here, backup).note("drilled") is not None


@pytest.mark.slow
@pytest.mark.parametrize("major", [15, 17])
def test_a_copy_with_a_subscription_is_dropped_after_a_drill(
    major: int,
    request: pytest.FixtureRequest,
    site: MakeSite,
    other: PostgresServer,
    database: DatabaseFactory,
    subscribe: Subscribe,
) -> None:
    server: PostgresServer = request.getfixturevalue(f"postgres{major}")
    source = database(server)
    subscribe(server, source)
    here = site(server, **by_url(other))
    backup = here.take(source)

    assert drill_on(here, backup, other).left is None
    assert json.loads(here.run("drill", "--json").stdout)["left"] is None  # the first one's would stop it
    assert copies(other) == []


@pytest.mark.slow
def test_a_drill_says_that_it_could_not_drop_its_copy(
    site: MakeSite,
    postgres17: PostgresServer,
    other: PostgresServer,
    database: DatabaseFactory,
    restore_clients: RestoreClients,
) -> None:
    here = site(postgres17, **by_url(other))
    here.take(database(postgres17))
    prepares = """psql "UPDATE pg_database SET datistemplate = true WHERE datname = '$name'" """
    script = f'"$real" "$@"; name=$(psql "COPY (SELECT current_database()) TO STDOUT"); {prepares}'
    ended = here.run("drill", BACKUPD_DUMP__CLIENTS=str(restore_clients(postgres17, script)))
    [name] = copies(other)
    with other.connect() as connection:
        connection.execute(sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(sql.Identifier(name)))
        connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))

    assert ended.code == 0, ended.stderr
    assert f"its copy could not be dropped: database {name}" in ended.stdout
    [left] = [event for event in ended.events if event["event"] == "target.left"]
    assert left["database"] == name


@pytest.mark.slow
def test_a_drill_that_is_interrupted_leaves_nothing(
    postgres17: PostgresServer, other: PostgresServer, stocked: Stocked, waiting_of: Callable[[PostgresServer], str]
) -> None:
    here, _ = stocked(postgres17, waiting_of(postgres17), **by_url(other))
    run = here.start("drill")
    with other.connect() as connection:
        wait_until(lambda: connection.execute(ASLEEP).fetchone(), "the drill does not wait in the middle")
        run.send(signal.SIGTERM)
        ended = run.end()

    assert ended.code == 143
    here.assert_untouched()


@pytest.mark.slow
def test_a_store_that_may_only_be_read_gets_no_note_and_fails_nothing(
    postgres17: PostgresServer, other: PostgresServer, stocked: Stocked, tmp_path: Path
) -> None:
    here, _ = stocked(postgres17, **by_url(other))
    if os.geteuid() != 0:
        pytest.skip("only root mounts file systems")
    read_only = tmp_path / "read-only"
    read_only.mkdir()
    subprocess.run(["mount", "--bind", here.store, read_only], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", read_only], check=True)
        ended = here.run("drill", BACKUPD_STORE__URL=read_only.as_uri())
    finally:
        subprocess.run(["umount", read_only], check=True)

    assert ended.code == 0, ended.stderr
    assert [each["event"] for each in ended.events if each["level"] == "warning"] == ["drill.unnoted"]
    assert "identical" in ended.stdout
    here.assert_untouched()


# --- which server


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("postgresql:///postgres", "names no host"),
        ("dbname=postgres user=postgres", "names no host"),
        ("postgresql://127.0.0.1/postgres", "names no user"),
        ("host", "BACKUPD_DRILL__URL should be postgresql://"),
        ("postgresql://u:canary@h/d", "without a password"),
        ("postgresql://u@h/d?password=canary", "without a password"),
        ("postgresql://u@h/d?passwor%64=canary", "has a password in it"),
        ("host=h user=u password = canary", "without a password"),
        ("host=h user='u", "is not a connection string"),
    ],
)
def test_a_url_that_could_lead_elsewhere_or_shows_a_password_is_refused(
    url: str, what: str, site: MakeSite, tmp_path: Path
) -> None:
    server = PostgresServer(17, "/nowhere", 1, "u", "secret-of-the-source", tmp_path, tmp_path)
    here = site(server, BACKUPD_DRILL__URL=url)
    manifest = made_manifest(NOW)
    (here.store / "prod/app").mkdir(parents=True)
    here.catalog.store  # noqa: B018
    (here.store / f"prod/app/{manifest.id}.tar").write_bytes(b"an archive, as far as a catalog looks into one")
    here.catalog.commit(manifest)
    ended = here.run("drill", PGHOST="source", PGUSER="source")

    assert ended.code == 2, ended.stderr
    assert what in ended.error["message"]
    assert "canary" not in ended.stderr


def test_no_server_is_said_with_the_setting_that_helps() -> None:
    with (
        pytest.raises(UsageError, match="no server of PostgreSQL 99 or newer") as raised,
        drill.own_server(99, None, {}),
    ):
        pass

    assert "BACKUPD_DRILL__URL" in (raised.value.hint or "")


# --- which backup


def of(database: str, days_ago: int, *, drilled_days_ago: int | None = None, **facts: Any) -> Backup:
    """A backup of so many days ago, drilled so many days ago."""
    manifest = made_manifest(NOW - timedelta(days=days_ago), database=database, **facts)
    notes = [] if drilled_days_ago is None else [made_note("drilled", NOW - timedelta(days=drilled_days_ago))]
    return made_backup(manifest, notes=notes)


@pytest.mark.parametrize(
    ("backups", "chosen"),
    [
        ([], None),
        ([of("a", 1)], 0),
        ([of("a", 2), of("a", 1)], 1),
        ([of("a", 2), of("a", 1, drilled_days_ago=0)], None),
        ([of("a", 1), of("b", 2)], 0),
        ([of("a", 3, drilled_days_ago=2), of("a", 1), of("b", 2)], 2),
        ([of("a", 9, drilled_days_ago=2), of("a", 1), of("b", 8, drilled_days_ago=7), of("b", 2)], 3),
        ([of("a", 2), of("a", 1, patterns=Filter(include=("s.*",)))], 0),
        ([of("a", 2), of("a", 1, suspect="fewer rows")], 0),
    ],
)
def test_by_turns_the_newest_of_each_database_is_drilled(backups: list[Backup], chosen: int | None) -> None:
    assert drill.next_undrilled(backups) == (None if chosen is None else backups[chosen])


@pytest.mark.slow
def test_a_job_drills_what_is_due_and_nothing_twice(
    postgres17: PostgresServer, other: PostgresServer, stocked: Stocked
) -> None:
    here, _ = stocked(postgres17, **by_url(other))
    settings = {"BACKUPD_COMMAND": "drill", "BACKUPD_DRILL_NEWEST_UNDRILLED": "true"}
    first, second = here.run(**settings), here.run(**settings)

    assert "identical: restored in" in first.stdout
    assert (second.code, second.stdout) == (0, "nothing to drill: the newest backup of each database was drilled\n")
