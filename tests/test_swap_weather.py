"""`restore --replace` in bad weather: the live database is as it was, and the message says what to do next."""

import contextlib
import json
import re
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_postgres import DatabaseFactory, PostgresServer
from fix_restore import RestoreClients, Subscribe, client_of, contents, exists, forget_subscriptions, restore_to, state
from fix_tools import Site, wait_until
from psycopg import sql
from test_swap import Damaged, Stepwise, damaged, family, put_back, sold, whole  # noqa: F401  # a fixture among them

from backupd import marks, swap
from backupd.errors import (
    AccessRefused,
    BackupdError,
    DatabaseError,
    Locked,
    NoRoom,
    RestoreFailed,
    TargetRefused,
    UsageError,
    VerificationFailed,
    VersionMismatch,
)

MakeSite = Callable[..., Site]
NewRole = Callable[..., str]
MakeDamaged = Callable[..., Damaged]

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def refused(given: Damaged, kind: type[BackupdError], *words: str, remains: bool = False) -> Iterator[None]:
    """The block fails with that error, all words in its text; the live database is as it was."""
    with pytest.raises(kind) as raised:
        yield
    assert raised.type is kind
    for word in words:
        assert word in str(raised.value)
    given.assert_as_it_was(remains=remains)


# --- while it restores


ENDINGS = {
    "an error": 'psql "CREATE TABLE goods ()"; exec "$real" "$@"',
    "kill -9": 'psql "CREATE TABLE half ()"; kill -9 $$',
    "a lost connection": 'psql "SELECT pg_terminate_backend(pg_backend_pid())"; exit 1',
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_pg_restore_that_fails_leaves_the_live_database_as_it_was(
    ending: str,
    postgres17: PostgresServer,
    damaged: MakeDamaged,  # noqa: F811
    restore_clients: RestoreClients,
) -> None:
    given = damaged(postgres17)
    client = client_of(postgres17, restore_clients(postgres17, ENDINGS[ending]))
    with refused(given, RestoreFailed, "pg_restore ended with", f"Database {given.live} is as it was."):
        given.restore(clients=[client])


def test_what_does_not_prove_equal_never_gets_the_live_name(
    postgres17: PostgresServer,
    damaged: MakeDamaged,  # noqa: F811
    restore_clients: RestoreClients,
) -> None:
    given = damaged(postgres17)
    client = client_of(postgres17, restore_clients(postgres17, '"$real" "$@" && psql "DELETE FROM goods WHERE id = 7"'))
    with refused(given, VerificationFailed, "goods: 100 promised, 99 found", "is as it was"):
        given.restore(clients=[client])
    with refused(given, VerificationFailed, "It is closed to others", remains=True):
        given.restore(clients=[client], keep=True)
    beside = family(postgres17, given.live)[1]
    assert state(postgres17, beside)[1] is False
    with given.here.reached() as access:
        assert swap.resume(access, "postgres", given.live) == swap.Resumed(None, (beside,))
    given.assert_as_it_was()


def test_a_connection_that_breaks_at_the_commit_leaves_one_whole_database_and_the_way_on(
    postgres17: PostgresServer,
    damaged: MakeDamaged,  # noqa: F811
) -> None:
    given = damaged(postgres17)
    arguments = "restore", given.backup.id, "--replace", given.live
    with Stepwise(postgres17.port) as wire:
        assert given.run(*arguments, BACKUPD_TARGET__PORT=str(wire.port)).code == 0
    put_back(given)
    for question, at, found in ((True, len(wire.questions), 3), (False, len(wire.answers), 100)):
        with Stepwise(postgres17.port, at, question=question) as broken:
            ended = given.run(*arguments, BACKUPD_TARGET__PORT=str(broken.port))
        assert ended.code == DatabaseError.exit_code
        assert f"`backupd restore --resume {given.live}`" in ended.error["hint"]
        assert "is whole: as it was, unless the connection broke at the very commit" in ended.error["detail"]
        assert whole(given) == found
        ended = given.run("restore", "--resume", given.live, "--json")
        assert ended.code == 0, ended.stderr
        assert (json.loads(ended.stdout)["swapped"] is None) == (found == 100)
        assert whole(given) == 100
        put_back(given)


def test_a_target_that_cannot_be_reached_any_more_has_the_live_database_as_it_was(
    postgres17: PostgresServer,
    damaged: MakeDamaged,  # noqa: F811
) -> None:
    given = damaged(postgres17)
    wires: list[Stepwise] = []
    with Stepwise(postgres17.port, 3, lambda: wires[0].close(), question=False) as wire:
        wires.append(wire)
        ended = given.run("restore", given.backup.id, "--replace", given.live, BACKUPD_TARGET__PORT=str(wire.port))
    assert ended.code == DatabaseError.exit_code
    assert f"Database {given.live} is as it was." in ended.error["detail"]
    left = next(event for event in ended.events if event["event"] == "target.left")
    given.assert_as_it_was(remains=True)
    assert family(postgres17, given.live) == [given.live, left["database"]]
    with given.here.reached() as access:
        assert swap.resume(access, "postgres", given.live).dropped == (left["database"],)
    given.assert_as_it_was()


def test_a_swap_that_waits_is_interrupted_at_once_and_can_be_resumed(
    postgres17: PostgresServer,
    damaged: MakeDamaged,  # noqa: F811
) -> None:
    given = damaged(postgres17)
    waits = "SELECT FROM pg_locks WHERE locktype = 'object' AND NOT granted"
    with postgres17.connect() as held, postgres17.connect() as looking:
        held.execute("BEGIN")
        held.execute(sql.SQL("COMMENT ON DATABASE {} IS 'held'").format(sql.Identifier(given.live)))
        run = given.here.start("restore", given.backup.id, "--replace", given.live)
        wait_until(lambda: looking.execute(waits).fetchone() is not None, "the swap does not wait")
        run.send(signal.SIGTERM)
        ended = run.end()
        held.execute("ROLLBACK")
    assert ended.code == 143, ended.stderr
    left = next(event for event in ended.events if event["event"] == "swap.interrupted")
    assert f"`backupd restore --resume {given.live}`" in left["action"]
    given.assert_as_it_was(remains=True)
    assert given.run("restore", "--resume", given.live).code == 0
    assert whole(given) == 100


# --- a subscription in it, with which no database can be dropped


UNEQUAL = '"$real" "$@" && psql "DELETE FROM goods WHERE id = 2"'


def subscribed(given: Damaged, subscribe: Subscribe) -> Damaged:
    """The same database with a subscription, and a backup of that."""
    subscribe(given.server, given.live)
    return replace(given, backup=given.here.take(given.live))


def test_restores_that_fail_or_are_cut_off_leave_no_copy_of_a_database_with_a_subscription(
    any_postgres: PostgresServer,
    damaged: MakeDamaged,  # noqa: F811
    subscribe: Subscribe,
    restore_clients: RestoreClients,
) -> None:
    given = subscribed(damaged(any_postgres), subscribe)
    client = client_of(any_postgres, restore_clients(any_postgres, UNEQUAL))
    with refused(given, VerificationFailed, "goods: 3 promised, 2 found"):
        restore_to(given.here, given.backup, f"{given.live}_other", clients=[client])
    with refused(given, VerificationFailed, "It is closed to others", remains=True):
        given.restore(clients=[client], keep=True)
    beside = family(any_postgres, given.live)[1]
    ended = given.run("restore", "--resume", given.live)
    assert ended.code == 0, ended.stderr
    assert f"dropped {beside}, which had not proved equal" in ended.stdout
    given.assert_as_it_was()


def test_a_subscription_that_is_not_the_role_s_own_to_drop_leaves_the_database_and_that_is_said(
    postgres17: PostgresServer,
    damaged: MakeDamaged,  # noqa: F811
    subscribe: Subscribe,
    new_role: NewRole,
    restore_clients: RestoreClients,
) -> None:
    given, owner = damaged(postgres17), new_role(postgres17, "CREATEDB")
    with postgres17.connect() as connection:
        alter = sql.SQL("ALTER DATABASE {} OWNER TO {}")
        connection.execute(alter.format(sql.Identifier(given.live), sql.Identifier(owner)))
    client = client_of(postgres17, restore_clients(postgres17, UNEQUAL))
    with pytest.raises(VerificationFailed):
        given.restore(clients=[client], keep=True, keywords={"user": owner}, owners=False)
    beside = family(postgres17, given.live)[1]
    subscribe(postgres17, beside)
    settings = {"BACKUPD_TARGET__USER": owner, "BACKUPD_TARGET__PASSWORD": postgres17.password}
    ended = given.run("restore", "--resume", given.live, **settings)
    assert ended.code == 0, ended.stderr
    assert ended.stdout == f"could not drop {beside}, which had not proved equal: the log says why\n"
    [left] = [event for event in ended.events if event["event"] == "target.left"]
    assert left["database"] == beside
    assert "must be owner of subscription from afar" in left["message"]
    assert "SET (slot_name = NONE)" in left["action"]
    assert exists(postgres17, beside)


def test_a_kept_database_with_a_subscription_is_not_forgotten_until_that_is_dropped(
    any_postgres: PostgresServer,
    damaged: MakeDamaged,  # noqa: F811
    subscribe: Subscribe,
) -> None:
    given = subscribed(damaged(any_postgres), subscribe)
    first, second = given.restore().kept, given.restore().kept
    forget_subscriptions(any_postgres, second)
    ended = given.run("undo", given.live, "--drop", "--yes")
    assert ended.code == TargetRefused.exit_code
    assert f"database {first} has subscriptions: from afar" in ended.error["message"]
    assert "DROP SUBSCRIPTION" in ended.error["hint"]
    assert f"where database {given.live} goes on with its slot" in ended.error["hint"]
    assert family(any_postgres, given.live) == sorted([given.live, first, second])  # all or nothing
    forget_subscriptions(any_postgres, first)
    ended = given.run("undo", given.live, "--drop", "--yes")
    assert ended.code == 0, ended.stderr
    assert family(any_postgres, given.live) == [given.live]


def test_a_database_with_nothing_but_a_subscription_is_not_empty(
    postgres17: PostgresServer,
    damaged: MakeDamaged,  # noqa: F811
    subscribe: Subscribe,
) -> None:
    """Nor does --resume drop it, because it has the name of remains."""
    given = damaged(postgres17)
    beside = f"{given.live}_beside_20261126030007"
    with postgres17.connect() as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(beside)))
    subscribe(postgres17, beside)
    with (
        refused(given, TargetRefused, "not empty", "subscription from afar", remains=True),
        given.here.reached() as access,
    ):
        swap.resume(access, "postgres", given.live)


def test_a_server_that_crashes_in_the_middle_has_the_live_database_when_it_is_back(
    own_postgres: Callable[..., tuple[PostgresServer, Callable[[], None]]],
    site: MakeSite,
    restore_clients: RestoreClients,
) -> None:
    server, _ = own_postgres()
    with server.connect() as connection:
        connection.execute("CREATE DATABASE live")
    with server.connect("live") as connection:
        connection.execute("CREATE TABLE goods AS SELECT n AS id FROM generate_series(1, 100) n")
    here = site(server)
    backup = here.take("live")
    crash = "COPY (SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter') TO STDOUT"
    client = client_of(server, restore_clients(server, f'kill -9 $(psql "{crash}"); exit 1'))
    with pytest.raises(BackupdError, match="ended with status 1"):
        restore_to(here, backup, "live", live="live", clients=[client])
    assert sold(server, "live") == 100
    assert state(server, "live")[:2] == (None, True)
    assert family(server, "live") == ["live"]


# --- refused before anything is written


def test_what_would_not_survive_a_change_of_databases_is_refused_with_the_way_out(
    own_postgres: Callable[..., tuple[PostgresServer, Callable[[], None]]], site: MakeSite
) -> None:
    server, _ = own_postgres(wal_level="logical", max_prepared_transactions="5")
    with server.connect() as connection:
        connection.execute("CREATE DATABASE live")
    with server.connect("live") as connection:
        connection.execute("CREATE TABLE goods AS SELECT n AS id FROM generate_series(1, 100) n")
    here = site(server)
    given = Damaged(here, server, "live", here.take("live"))

    def refuses(*words: str) -> None:
        with pytest.raises(TargetRefused) as raised:
            given.restore()
        for word in words:
            assert word in str(raised.value)
        assert family(server, "live") == ["live"]
        assert sold(server, "live") == 100

    with server.connect("live") as connection:
        connection.execute("BEGIN; INSERT INTO goods VALUES (0); PREPARE TRANSACTION 'half done'")
    refuses("prepared transactions: half done", "ROLLBACK PREPARED")
    with server.connect("live") as connection:
        connection.execute("ROLLBACK PREPARED 'half done'")
        connection.execute("SELECT pg_create_logical_replication_slot('feed', 'pgoutput')")
    refuses("logical replication slots: feed", "pg_drop_replication_slot")
    with server.connect("live") as connection:
        connection.execute("SELECT pg_drop_replication_slot('feed')")
        connection.execute(
            "CREATE SUBSCRIPTION \"from afar\" CONNECTION 'host=/nowhere' PUBLICATION p"
            " WITH (connect = false, slot_name = NONE)"
        )
        connection.execute("ALTER SUBSCRIPTION \"from afar\" SET (slot_name = 'x')")
        connection.execute('ALTER SUBSCRIPTION "from afar" ENABLE')
    refuses("enabled subscriptions: from afar", "DISABLE")
    with server.connect("live") as connection:
        connection.execute('ALTER SUBSCRIPTION "from afar" DISABLE')
    given.restore()
    with here.reached() as access, server.connect("live") as connection:
        connection.execute("SELECT pg_create_logical_replication_slot('later', 'pgoutput')")
        with pytest.raises(TargetRefused, match="logical replication slots: later"):
            swap.undo(access, "postgres", "live")
        connection.execute("SELECT pg_drop_replication_slot('later')")
        kept = family(server, "live")[1]
    with server.connect(kept) as connection:
        connection.execute('ALTER SUBSCRIPTION "from afar" SET (slot_name = NONE); DROP SUBSCRIPTION "from afar"')


def test_rights_that_are_missing_are_named_with_the_statement_that_gives_them(
    postgres17: PostgresServer,
    damaged: MakeDamaged,  # noqa: F811
    new_role: NewRole,
) -> None:
    given = damaged(postgres17)
    stranger, owner = new_role(postgres17, "CREATEDB"), new_role(postgres17)
    with refused(given, AccessRefused, "does not own database", f"GRANT postgres TO {stranger}"):
        given.restore(keywords={"user": stranger})
    with postgres17.connect() as connection:
        alter = sql.SQL("ALTER DATABASE {} OWNER TO {}")
        connection.execute(alter.format(sql.Identifier(given.live), sql.Identifier(owner)))
    with refused(given, AccessRefused, "may neither create nor rename", f"ALTER ROLE {owner} CREATEDB"):
        given.restore(keywords={"user": owner})


def test_names_that_cannot_be_replaced_are_refused(postgres17: PostgresServer, damaged: MakeDamaged) -> None:  # noqa: F811
    given = damaged(postgres17)
    for name, kind, word in (
        ("never_there", UsageError, "there is no database never_there to replace"),
        ("template1", TargetRefused, "is a template"),
        ("postgres", UsageError, "BACKUPD_TARGET__DATABASE"),
    ):
        with refused(given, kind, word):
            restore_to(given.here, given.backup, name, live=name)
    kept = given.restore().kept
    with pytest.raises(TargetRefused, match="was made by backupd"):
        restore_to(given.here, given.backup, kept, live=kept, yes_replace=kept)


def test_sessions_of_superusers_stop_an_ordinary_owner_before_and_at_the_swap(
    postgres17: PostgresServer,
    damaged: MakeDamaged,  # noqa: F811
    new_role: NewRole,
    restore_clients: RestoreClients,
) -> None:
    given = damaged(postgres17)
    owner = new_role(postgres17, "CREATEDB")
    with postgres17.connect() as connection:
        alter = sql.SQL("ALTER DATABASE {} OWNER TO {}")
        connection.execute(alter.format(sql.Identifier(given.live), sql.Identifier(owner)))
        connection.execute(sql.SQL("GRANT postgres TO {}").format(sql.Identifier(owner)))  # what it restores is his
    keywords = {"user": owner}
    watching = postgres17.connect(given.live)
    with refused(given, TargetRefused, "sessions that this role may not end: postgres (process", "Only a superuser"):
        given.restore(keywords=keywords)
    watching.close()

    held: list[psycopg.Connection[Any]] = []
    go = given.here.folder / "go"
    script = f'"$real" "$@"; : > {go}.reached; while [ ! -e {go} ]; do sleep 0.02; done'
    client = client_of(postgres17, restore_clients(postgres17, script))

    def come_in() -> None:
        wait_until(Path(f"{go}.reached").exists, "pg_restore did not end")
        held.append(postgres17.connect(given.live))
        go.touch()

    visitor = threading.Thread(target=come_in)
    visitor.start()
    with refused(given, TargetRefused, f"`backupd restore --resume {given.live}`", "is as it was", remains=True):
        given.restore(keywords=keywords, clients=[client])
    visitor.join()
    held[0].close()
    live, beside = family(postgres17, given.live)
    assert "_beside_" in beside
    mark = marks.read(state(postgres17, beside)[0])
    assert mark is not None
    assert (mark.state, mark.live) == ("ready", live)
    assert state(postgres17, beside)[1] is False
    settings = {"BACKUPD_TARGET__USER": owner, "BACKUPD_TARGET__PASSWORD": postgres17.password}
    ended = given.here.run("restore", "--resume", live, **settings)
    assert ended.code == 0, ended.stderr
    assert sold(postgres17, live) == 100


def test_a_beside_name_that_is_taken_is_passed_over(postgres17: PostgresServer, damaged: MakeDamaged) -> None:  # noqa: F811
    given = damaged(postgres17)
    with postgres17.connect() as connection:
        now = connection.execute("SELECT now() AT TIME ZONE 'UTC'").fetchone()
        assert now is not None
        name = marks.beside(given.live, now[0], [])
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        with given.here.reached() as access, contextlib.ExitStack() as stack:
            from backupd import postgres

            session = stack.enter_context(postgres.connect(access, "postgres"))
            assert swap.beside_name(session, given.live) != name
            assert not exists(postgres17, swap.beside_name(session, given.live))


def test_a_server_that_does_not_admit_the_beside_name_is_named(
    own_postgres: Callable[..., tuple[PostgresServer, Callable[[], None]]], site: MakeSite
) -> None:
    server, _ = own_postgres()
    with server.connect() as connection:
        connection.execute("CREATE DATABASE live")
    with server.connect("live") as connection:
        connection.execute("CREATE TABLE goods AS SELECT n AS id FROM generate_series(1, 100) n")
    here = site(server)
    given = Damaged(here, server, "live", here.take("live"))
    hba = server.data_directory / "pg_hba.conf"
    hba.write_text(f'host "/_beside_" all all reject\n{hba.read_text()}')
    with server.connect() as connection:
        connection.execute("SELECT pg_reload_conf()")
    with pytest.raises(AccessRefused, match=r"pg_hba\.conf") as raised:
        given.restore()
    assert "_beside_..." in str(raised.value.hint)
    assert family(server, "live") == ["live"]
    assert sold(server, "live") == 100


def test_two_replacements_of_one_database_are_not_run_at_once(
    postgres17: PostgresServer,
    damaged: MakeDamaged,  # noqa: F811
) -> None:
    given = damaged(postgres17)
    with given.here.reached() as access, swap.hold(access, "postgres", given.live):
        for arguments in (("restore", given.backup.id, "--replace"), ("restore", "--resume"), ("undo",)):
            ended = given.run(*arguments, given.live)
            assert ended.code == Locked.exit_code, ended.stderr
            assert "another run of backupd" in ended.error["message"]
    given.assert_as_it_was()


def test_a_restore_that_is_still_filling_is_not_dropped_from_another_maintenance_database(
    postgres17: PostgresServer,
    damaged: MakeDamaged,  # noqa: F811
    database: DatabaseFactory,
    restore_clients: RestoreClients,
) -> None:
    """Advisory locks are per database, so that the one on the live name does not keep these two apart."""
    given, other = damaged(postgres17), database(postgres17, "other")
    go = given.here.folder / "go"
    script = f'"$real" "$@"; : > {go}.reached; while [ ! -e {go} ]; do sleep 0.02; done'
    folder = restore_clients(postgres17, script)
    run = given.here.start("restore", given.backup.id, "--replace", given.live, BACKUPD_DUMP__CLIENTS=str(folder))
    wait_until(Path(f"{go}.reached").exists, "pg_restore did not end")
    ended = given.run("restore", "--resume", given.live, BACKUPD_TARGET__DATABASE=other)
    beside = family(postgres17, given.live)[1:]
    go.touch()
    assert run.end().code == 0
    assert ended.code == Locked.exit_code, ended.stderr
    assert f"another run of backupd is in database {beside[0]}" in ended.error["message"]
    assert sold(postgres17, given.live) == 100


# --- another target than was meant


def test_another_cluster_and_another_name_are_refused_unless_named(
    postgres17: PostgresServer,
    postgres18: PostgresServer,
    damaged: MakeDamaged,  # noqa: F811
    database: DatabaseFactory,
) -> None:
    given, staging = damaged(postgres17), database(postgres17, "staging")
    with refused(given, TargetRefused, "it has another name", "In the archive: ", "On the target: ", "--yes-replace"):
        restore_to(given.here, given.backup, staging, live=staging)
    assert family(postgres17, staging) == [staging]
    ended = given.run("restore", given.backup.id, "--replace", staging, "--yes-replace", given.live)
    assert ended.code == 2
    ended = given.run("restore", given.backup.id, "--replace", staging, "--yes-replace", staging)
    assert ended.code == 0, ended.stderr
    assert sold(postgres17, staging) == 100
    elsewhere = database(postgres18, "elsewhere")
    with pytest.raises(TargetRefused, match="it is in another cluster"):
        restore_to(
            given.here,
            given.backup,
            elsewhere,
            live=elsewhere,
            on=postgres18,
            clients=[client_of(postgres17), client_of(postgres18)],
        )


# --- masking


def test_sql_runs_after_the_comparison_and_before_anybody_may_connect(
    postgres17: PostgresServer,
    damaged: MakeDamaged,  # noqa: F811
    tmp_path: Path,
) -> None:
    given = damaged(postgres17)
    with postgres17.connect() as connection:
        connection.execute(sql.SQL("ALTER DATABASE {} SET app.mask = 'xxx'").format(sql.Identifier(given.live)))
    script = tmp_path / "mask.sql"
    script.write_text("UPDATE goods SET name = current_setting('app.mask');\nDELETE FROM goods WHERE id > 90;\n")
    ended = given.run("restore", given.backup.id, "--replace", given.live, "--sql", str(script), "--json")
    assert ended.code == 0, ended.stderr
    assert list(json.loads(ended.stdout)["seconds"])[-4:] == ["compare", "sql", "analyze", "swap"]
    assert sold(postgres17, given.live) == 90
    with postgres17.connect(given.live) as connection:
        assert connection.execute("SELECT DISTINCT name FROM goods").fetchall() == [("xxx",)]


def test_sql_that_fails_stops_the_swap_and_names_its_line(
    postgres17: PostgresServer,
    damaged: MakeDamaged,  # noqa: F811
    tmp_path: Path,
) -> None:
    given = damaged(postgres17)
    script = tmp_path / "mask.sql"
    script.write_text("UPDATE goods\nSET name = 'x';\n\nUPDATE nowhere SET name = 'x';\n")
    ended = given.run("restore", given.backup.id, "--replace", given.live, "--sql", str(script))
    assert ended.code == 18
    assert "mask.sql: line 4: " in ended.error["message"]
    assert "is as it was" in ended.error["detail"]
    given.assert_as_it_was()
    ended = given.run("restore", given.backup.id, "--replace", given.live, "--sql", f"{script}.not")
    assert ended.code == 2
    given.assert_as_it_was()


# --- the plan


def test_a_plan_writes_nothing_and_names_all_that_is_in_the_way(
    postgres17: PostgresServer,
    damaged: MakeDamaged,  # noqa: F811
    new_role: NewRole,
) -> None:
    given = damaged(postgres17)
    ended = given.run("restore", given.backup.id, "--replace", given.live, "--plan")
    assert ended.code == 0, ended.stderr
    assert re.search(r"^ok    sessions: 0 now", ended.stdout, re.MULTILINE)
    assert re.search(r"^ok    room: about \d+ bytes are needed", ended.stdout, re.MULTILINE)
    assert re.search(r"^this takes about 3.0 s, by the size of its rows", ended.stdout, re.MULTILINE)
    given.assert_as_it_was()

    stranger = new_role(postgres17)
    settings = {"BACKUPD_TARGET__USER": stranger, "BACKUPD_TARGET__PASSWORD": postgres17.password}
    ended = given.run("restore", given.backup.id, "--replace", given.live, "--plan", "--json", **settings)
    assert ended.code == 12
    plan = json.loads(ended.stdout)
    failed = {each["name"] for each in plan["findings"] if each["status"] == "fail"}
    assert failed == {"rights", "name"}
    assert all(each["hint"] for each in plan["findings"] if each["status"] != "ok")
    given.assert_as_it_was()
    ended = given.run("restore", given.backup.id, "--replace", given.live, **settings)
    assert ended.code == 12
    assert "Also: role may not create database" in ended.error["detail"]
    given.assert_as_it_was()


def test_a_plan_for_a_new_and_for_an_existing_database(
    postgres17: PostgresServer,
    damaged: MakeDamaged,  # noqa: F811
    database: DatabaseFactory,
) -> None:
    given = damaged(postgres17)
    empty = database(postgres17)
    for arguments, code in (
        (("--as", "never_made"), 0),
        (("--into", empty), 0),
        (("--into", given.live), 15),
        (("--as", given.live), 15),
    ):
        ended = given.run("restore", given.backup.id, *arguments, "--plan", BACKUPD_RESTORE_JOBS="1")
        assert ended.code == code, ended.stdout
    assert not exists(postgres17, "never_made")
    assert contents(postgres17, empty) == {}
    given.assert_as_it_was()


def test_18_into_17_is_refused_for_what_only_18_knows_and_that_is_listed(
    postgres17: PostgresServer, postgres18: PostgresServer, site: MakeSite, database: DatabaseFactory
) -> None:
    plain, new = database(postgres18, "plain"), database(postgres18, "new")
    with postgres18.connect(plain) as connection:
        connection.execute("CREATE TABLE t (a int, b int GENERATED ALWAYS AS (CASE WHEN a > 0 THEN a END) STORED)")
    with postgres18.connect(new) as connection:
        connection.execute("CREATE TABLE virtual (a int, b int GENERATED ALWAYS AS (abs(least(a, 1))) VIRTUAL)")
        connection.execute("CREATE TABLE ids (id uuid DEFAULT uuidv7())")
        connection.execute("CREATE TABLE soft (a int CONSTRAINT c CHECK (a > 0) NOT ENFORCED)")
        connection.execute("CREATE TABLE kin (a int NOT NULL NO INHERIT)")
    here = site(postgres18)
    clients = [client_of(postgres17), client_of(postgres18)]
    restore_to(here, here.take(plain), plain, on=postgres17, clients=clients)
    with postgres17.connect() as connection:
        connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(plain)))
    with pytest.raises(VersionMismatch) as raised:
        restore_to(here, here.take(new), new, on=postgres17, clients=clients)
    for word in ("virtual generated column", "uuidv7", "NOT ENFORCED", "NO INHERIT"):
        assert word in str(raised.value.detail)
    assert str(raised.value.detail).count("; ") == 3
    assert not exists(postgres17, new)


def test_a_full_disk_under_the_restored_database_leaves_the_live_one(
    postgres17: PostgresServer,
    site: MakeSite,
    restore_clients: RestoreClients,
    tmp_path: Path,
) -> None:
    from fix_tools import small_disk
    from test_restore_weather import NEW_WAL, one_server, open_to_all

    open_to_all(tmp_path)
    filler = "CREATE UNLOGGED TABLE filler (x text); ALTER TABLE filler ALTER x SET STORAGE EXTERNAL;"
    filler += " INSERT INTO filler SELECT repeat('x', 1 << 20) FROM generate_series(1, 300)"
    client = client_of(postgres17, restore_clients(postgres17, f'{NEW_WAL}; psql "{filler}" || exit 1'))
    with small_disk(tmp_path / "server", 140) as folder, one_server(folder) as server:
        with server.connect() as connection:
            connection.execute("CREATE DATABASE live")
        with server.connect("live") as connection:
            connection.execute("CREATE TABLE goods AS SELECT n AS id FROM generate_series(1, 100) n")
        here = site(server)
        with pytest.raises((NoRoom, RestoreFailed), match="ended with status 1"):
            restore_to(here, here.take("live"), "live", live="live", clients=[client])
        assert family(server, "live") == ["live"]
        assert sold(server, "live") == 100
        assert state(server, "live")[:2] == (None, True)
