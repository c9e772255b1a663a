"""A good backup: what it holds, how it can be used without backupd, and what a run does besides."""

import hashlib
import itertools
import json
import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fix_postgres import DatabaseFactory, PostgresServer
from fix_store import S3Server
from fix_tools import (
    LABEL,
    Site,
    Turnstile,
    Wire,
    locked_table,
    process_environment,
    s3_site,
)
from psycopg import sql
from shop import HOSTILE_SCHEMA, HOSTILE_SEQUENCE, count_rows

from backupd.manifest import Sequence
from backupd.progress import Progress
from backupd.selector import name_of
from backupd.verify import verify

MakeSite = Callable[..., Site]
Shop = Callable[[PostgresServer], str]
MakeClients = Callable[[PostgresServer, str], Path]

NOW = datetime(2026, 11, 24, tzinfo=UTC)


# --- what it holds


@pytest.mark.slow
def test_a_backup_holds_every_row_that_its_source_has(
    any_postgres: PostgresServer, site: MakeSite, shop_of: Shop
) -> None:
    here, database = site(any_postgres), shop_of(any_postgres)
    taken = here.take(database)
    with any_postgres.connect(database) as connection:
        promised = count_rows(connection)
        sizes = connection.execute(
            "SELECT m.oid::int8, coalesce(sum(length(data)), 0)::int8"
            " FROM pg_largeobject_metadata m LEFT JOIN pg_largeobject o ON o.loid = m.oid GROUP BY 1"
        ).fetchall()
    contract = here.index(taken).contract
    assert here.listed() == [taken.id]
    assert {(table.schema, table.name): table.rows for table in contract.tables} == promised
    assert {item.oid: item.raw_bytes for item in contract.large_objects} == dict(sizes)
    assert [(each.schema, each.name) for each in contract.skipped] == [("shop", "totals")]
    assert Sequence(HOSTILE_SCHEMA, HOSTILE_SEQUENCE, 42, True) in contract.sequences
    assert [each.name for each in contract.extensions] == ["hstore", "plpgsql"]
    assert taken.manifest.totals.rows == sum(promised.values()) > 700
    assert taken.manifest.totals.tables == len(promised)
    here.assert_clean()


@pytest.mark.slow
@pytest.mark.parametrize(("major", "compression"), [(15, "gzip:1"), (17, "zstd:1"), (18, "gzip:1")])
def test_a_backup_is_compressed_as_well_as_its_client_can(
    major: int, compression: str, request: pytest.FixtureRequest, site: MakeSite, shop_of: Shop
) -> None:
    server: PostgresServer = request.getfixturevalue(f"postgres{major}")
    here = site(server)
    taken = here.take(shop_of(server))
    suffix = {"gzip": ".dat.gz", "zstd": ".dat.zst"}[compression.partition(":")[0]]
    assert taken.manifest.compression == compression
    assert all(table.member.endswith(suffix) for table in here.index(taken).contract.tables)


@pytest.mark.slow
def test_a_backup_verifies_and_its_archive_has_the_hash_that_its_manifest_names(
    any_postgres: PostgresServer, site: MakeSite, shop_of: Shop
) -> None:
    here = site(any_postgres)
    taken = here.take(shop_of(any_postgres))
    file = here.archive_file(taken)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == taken.manifest.archive_sha256
    assert file.stat().st_size == taken.manifest.archive_bytes
    noted = verify(here.catalog, taken, NOW, Progress()).note("verified")
    assert noted is not None
    assert noted.ok
    assert noted.facts["members"] == taken.manifest.totals.tables + taken.manifest.totals.large_objects


@pytest.mark.slow
def test_every_file_of_an_archive_is_whole_to_tools_that_know_nothing_of_backupd(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop, tmp_path: Path
) -> None:
    here = site(postgres17)
    taken = here.take(shop_of(postgres17))
    subprocess.run(["tar", "xf", here.archive_file(taken)], cwd=tmp_path, check=True)
    members = {path.name: path for path in (tmp_path / taken.id).iterdir()}
    index = here.index(taken)
    hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in members.items()}
    assert {member.name: member.sha256 for member in index.members} == {
        name: digest for name, digest in hashes.items() if name != "index.json.zst"
    }
    if shutil.which("zstd") is None:
        pytest.skip("zstd is not installed")
    tables = [members[table.member] for table in index.contract.tables]
    subprocess.run(["zstd", "--test", "--quiet", *tables, members["index.json.zst"]], check=True)


@pytest.mark.slow
def test_the_commands_in_an_archive_s_readme_bring_the_data_back(
    any_postgres: PostgresServer, site: MakeSite, shop_of: Shop, database: DatabaseFactory, tmp_path: Path
) -> None:
    here, source = site(any_postgres), shop_of(any_postgres)
    taken = here.take(source)
    shutil.copy(here.archive_file(taken), tmp_path)
    readme = subprocess.run(
        ["tar", "xOf", here.archive_file(taken), f"{taken.id}/README.txt"], capture_output=True, text=True, check=True
    )
    commands = [line.strip() for line in readme.stdout.splitlines() if line.startswith("    ")]
    assert [command.split()[0] for command in commands] == ["tar", "createdb", "pg_restore"]
    name = f"{database(any_postgres)}_restored"
    script = "\n".join(commands).replace("=restored", f"={name}").replace(" restored", f" {name}")
    environment = {
        "PATH": f"{any_postgres.bin_directory}{os.pathsep}{os.environ['PATH']}",
        "PGHOST": any_postgres.host,
        "PGPORT": str(any_postgres.port),
        "PGUSER": any_postgres.user,
    }
    subprocess.run(["sh", "-e", "-c", script], cwd=tmp_path, env=environment, check=True)
    with any_postgres.connect(source) as original, any_postgres.connect(name) as restored:
        assert _partitions_summed(count_rows(restored)) == _partitions_summed(count_rows(original))


def _partitions_summed(counts: dict[tuple[str, str], int]) -> dict[str, int]:
    """Hash partitions of an enum are loaded through their root, where rows may land in other leaves."""
    summed: dict[str, int] = {}
    for (schema, name), rows in counts.items():
        key = f"{schema}.{re.sub('^events_[01]$', 'events', name)}"
        summed[key] = summed.get(key, 0) + rows
    return summed


@pytest.mark.slow
def test_an_empty_database_is_a_backup_of_no_tables(
    any_postgres: PostgresServer, site: MakeSite, database: DatabaseFactory
) -> None:
    here = site(any_postgres)
    taken = here.take(database(any_postgres))
    assert here.listed() == [taken.id]
    assert (taken.manifest.totals.tables, taken.manifest.totals.rows) == (0, 0)
    verify(here.catalog, taken, NOW, Progress())


@pytest.mark.slow
@pytest.mark.parametrize(
    "prefix", ['we"ird; DROP', "../x", ".hidden", "né", "line\nbreak", "per%20cent", "a'b\\c d=e", "x" * 54]
)
def test_a_hostile_name_of_a_database_is_backed_up_listed_and_restored(
    prefix: str, postgres17: PostgresServer, site: MakeSite, database: DatabaseFactory
) -> None:
    here, name = site(postgres17), database(postgres17, prefix)
    with postgres17.connect(name) as connection:
        connection.execute("CREATE TABLE t AS SELECT n FROM generate_series(1, 7) n")
    ended = here.run("backup", name)
    assert ended.code == 0, ended.stderr
    assert [each["source"]["database"] for each in json.loads(here.run("list", "--json").stdout)] == [name]
    assert {path.relative_to(here.store).parts[0] for path in here.store.rglob("*")} == {LABEL}
    target = f"{name[:-2]}_2"  # dropped with the first by the fixture, and no longer than a name may be
    assert len(target.encode()) <= 63
    restored = here.run("restore", f"{LABEL}/{name}@latest", "--as", target)
    assert restored.code == 0, restored.stderr
    with postgres17.connect(target) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchall() == [(7,)]
    with postgres17.connect() as connection:
        connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(target)))
    here.assert_clean()


@pytest.mark.slow
def test_ten_thousand_tables_are_backed_up_with_the_locks_that_a_server_has_by_default(
    postgres17: PostgresServer, site: MakeSite, database: DatabaseFactory
) -> None:
    here, name = site(postgres17), database(postgres17)
    with postgres17.connect(name) as connection:
        for start in range(0, 10_000, 500):
            create = "EXECUTE format('CREATE TABLE t%s AS SELECT 1 AS n', n)"
            loop = f"DO $$ BEGIN FOR n IN {start} .. {start + 499} LOOP {create}; END LOOP; END $$"
            connection.execute(loop.encode())
    ended = here.run("backup", name)
    assert ended.code == 0, ended.stderr
    (listed,) = here.catalog.backups().backups
    assert (listed.manifest.totals.tables, listed.manifest.totals.rows) == (10_000, 10_000)
    here.assert_clean()


@pytest.mark.slow
def test_a_backup_to_s3_is_listed_and_verifies(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop, rclone_s3: S3Server
) -> None:
    here = s3_site(site, postgres17, rclone_s3)
    ended = here.run("backup", shop_of(postgres17))
    assert ended.code == 0, ended.stderr
    (listed,) = here.catalog.backups().backups
    assert sorted(rclone_s3.keys()) == [
        f"a/prefix/{name_of(listed).label}/{listed.id}.{end}" for end in ("json", "tar")
    ]
    verified = here.run("verify", listed.id)
    assert verified.code == 0, verified.stderr
    here.assert_clean()


# --- filters


@pytest.mark.slow
def test_a_filtered_backup_is_listed_as_such_and_is_never_latest(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop
) -> None:
    here, database = site(postgres17), shop_of(postgres17)
    whole = here.take(database)
    ended = here.run("backup", database, "--json", BACKUPD_DUMP__INCLUDE="shop.customers,shop.orders")
    assert ended.code == 0, ended.stderr
    filtered = json.loads(ended.stdout)
    assert set(here.listed()) == {whole.id, filtered["id"]}
    assert filtered["filter"] == {"include": ["shop.customers", "shop.orders"], "exclude": [], "sha256": None}
    rows = [line for line in here.run("list").stdout.splitlines() if filtered["id"] in line]
    assert len(rows) == 1
    assert "filtered" in rows[0]
    assert json.loads(here.run("show", f"{database}@latest", "--json").stdout)["id"] == whole.id
    contract = here.index(here.catalog.find(filtered["id"])).contract
    tables = {table.name for table in contract.tables}
    assert tables == {"customers", "orders_2025", "orders_2026", "orders_rest"}
    assert {each.reason for each in contract.skipped if each.name == "products"} == {"not chosen by the filter"}


@pytest.mark.slow
def test_latest_finds_nothing_where_all_backups_are_filtered(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop
) -> None:
    here, database = site(postgres17), shop_of(postgres17)
    here.take(database, exclude=("shop.documents",))
    ended = here.run("show", f"{database}@latest")
    assert ended.code == 2
    assert "Filtered backups" in ended.error["detail"]


@pytest.mark.slow
def test_an_exclude_leaves_out_its_tables_and_keeps_all_others(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop
) -> None:
    here, database = site(postgres17), shop_of(postgres17)
    taken = here.take(database, exclude=("shop.documents", f"{HOSTILE_SCHEMA.split('.')[0]}*.*"))
    with postgres17.connect(database) as connection:
        everything = count_rows(connection)
    expected = {key: rows for key, rows in everything.items() if key[1] != "documents" and key[0] == "shop"}
    found = {(table.schema, table.name): table.rows for table in here.index(taken).contract.tables}
    assert found == expected


@pytest.mark.slow
def test_an_include_of_a_schema_and_of_a_table_holds_both(
    postgres17: PostgresServer, site: MakeSite, database: DatabaseFactory
) -> None:
    here, name = site(postgres17), _two_schemas(postgres17, database)
    taken = here.take(name, include=("one.*", "two.b"))
    tables = {(table.schema, table.name) for table in here.index(taken).contract.tables}
    assert tables == {("one", "a"), ("one", "b"), ("two", "b")}


@pytest.mark.slow
def test_an_exclude_of_a_schema_holds_beside_an_include_of_tables(
    postgres17: PostgresServer, site: MakeSite, database: DatabaseFactory
) -> None:
    here, name = site(postgres17), _two_schemas(postgres17, database)
    taken = here.take(name, include=("*.b",), exclude=("two.*",))
    assert {(table.schema, table.name) for table in here.index(taken).contract.tables} == {("one", "b")}


def _two_schemas(server: PostgresServer, database: DatabaseFactory) -> str:
    name = database(server)
    with server.connect(name) as connection:
        for schema in ("one", "two"):
            connection.execute(f"CREATE SCHEMA {schema}".encode())
            for table in ("a", "b"):
                connection.execute(f"CREATE TABLE {schema}.{table} AS SELECT 1 AS n".encode())
    return name


@pytest.mark.slow
@pytest.mark.parametrize(
    "include", ["shop.custommers", "shopp.*", "shop.customers,shop.nix"], ids=["table", "schema", "one of two"]
)
def test_an_include_that_matches_nothing_is_an_error(
    include: str, postgres17: PostgresServer, site: MakeSite, shop_of: Shop
) -> None:
    here = site(postgres17)
    here.remember()
    ended = here.run("backup", shop_of(postgres17), BACKUPD_DUMP__INCLUDE=include)
    here.assert_failed(ended, 2, "filter_refused")
    assert "BACKUPD_DUMP__INCLUDE" in ended.error["hint"]


@pytest.mark.slow
def test_an_exclude_that_matches_nothing_leaves_out_nothing(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop
) -> None:
    here, database = site(postgres17), shop_of(postgres17)
    taken = here.take(database, exclude=("shop.temporary_*", "scratch.*"))
    with postgres17.connect(database) as connection:
        assert taken.manifest.totals.tables == len(count_rows(connection))


FAMILIES = """
CREATE SCHEMA s;
CREATE SCHEMA old;
CREATE TABLE s.ev (n int) PARTITION BY RANGE (n);
CREATE TABLE s.ev_p1 PARTITION OF s.ev FOR VALUES FROM (0) TO (10);
CREATE TABLE s.ev_p2 PARTITION OF s.ev FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (n);
CREATE TABLE s.ev_p2_low PARTITION OF s.ev_p2 FOR VALUES FROM (10) TO (15);
CREATE TABLE old.ev_p0 PARTITION OF s.ev FOR VALUES FROM (-10) TO (0);
INSERT INTO s.ev SELECT generate_series(-2, 14);
CREATE TABLE s.animals (name text);
CREATE TABLE s.birds () INHERITS (s.animals);
INSERT INTO s.animals VALUES ('cat');
INSERT INTO s.birds VALUES ('owl');
"""
EV = {"old.ev_p0": 2, "s.ev_p1": 10, "s.ev_p2_low": 5}
ANIMALS = {"s.animals": 1, "s.birds": 1}
FILTERS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "a root": ({"include": ("s.ev",)}, EV),
    "a parent": ({"include": ("s.animals",)}, ANIMALS),
    "roots by a pattern": ({"include": ("s.e?", "s.animals")}, EV | ANIMALS),
    "a root without one partition": (
        {"include": ("s.ev",), "exclude": ("s.ev_p2",)},
        {"old.ev_p0": 2, "s.ev_p1": 10},
    ),
    "all but a root": ({"exclude": ("s.ev",)}, ANIMALS),
    "all but a parent": ({"exclude": ("s.animals",)}, EV),
    "all but partitions": ({"exclude": ("s.ev_*", "old.*")}, ANIMALS),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_takes_a_table_with_its_partitions_and_children_or_leaves_all_of_them_out(
    name: str, postgres17: PostgresServer, site: MakeSite, database: DatabaseFactory
) -> None:
    here, (patterns, expected) = site(postgres17), FILTERS[name]
    taken = here.take(_families(postgres17, database), **patterns)
    tables = here.index(taken).contract.tables
    assert {f"{table.schema}.{table.name}": table.rows for table in tables} == expected


PARTED: dict[str, tuple[dict[str, str], str]] = {
    "a root": ({"INCLUDE": "s.ev"}, "chose s.ev without its partition"),
    "a parent": ({"INCLUDE": "s.animals"}, "chose s.animals without its child s.birds"),
    "a root, and some partitions": ({"INCLUDE": "s.ev,s.ev_*"}, "chose s.ev without its partition old.ev_p0"),
    "a root, and all but its partitions": ({"INCLUDE": "s.ev", "EXCLUDE": "s.ev_*"}, "chose s.ev without its"),
    "a partition": ({"INCLUDE": "s.ev_p1"}, "chose partition s.ev_p1 without s.ev"),
    "a child": ({"INCLUDE": "s.birds"}, "chose child s.birds without s.animals"),
    "all but a root": ({"EXCLUDE": "s.ev"}, "chose partition"),
    "all but a parent": ({"EXCLUDE": "s.animals"}, "chose child s.birds without s.animals"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTED)
def test_a_filter_that_parts_a_table_from_its_partitions_or_children_is_refused_by_clients_that_cannot_keep_them(
    name: str, postgres15: PostgresServer, site: MakeSite, database: DatabaseFactory
) -> None:
    here, (patterns, words) = site(postgres15), PARTED[name]
    _refuses(here, _families(postgres15, database), patterns, words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        ({"INCLUDE": "s.ev_p1"}, "chose partition s.ev_p1 without s.ev"),
        ({"INCLUDE": "s.*"}, "chose s.ev without its partition old.ev_p0"),
        ({"EXCLUDE": "s.*"}, "chose partition old.ev_p0 without s.ev"),
    ],
    ids=["a partition", "a root's schema", "all but a root's schema"],
)
def test_a_filter_that_parts_a_table_from_its_partitions_is_refused(
    patterns: dict[str, str], words: str, postgres17: PostgresServer, site: MakeSite, database: DatabaseFactory
) -> None:
    _refuses(site(postgres17), _families(postgres17, database), patterns, words)


@pytest.mark.slow
def test_a_filter_names_partitions_and_children_to_clients_that_do_not_know_them(
    postgres15: PostgresServer, site: MakeSite, database: DatabaseFactory
) -> None:
    here, name = site(postgres15), _families(postgres15, database)
    taken = here.take(name, include=("s.ev*", "old.ev*", "s.birds", "s.animals"), exclude=("s.ev_p1",))
    tables = here.index(taken).contract.tables
    assert {f"{table.schema}.{table.name}": table.rows for table in tables} == {
        "old.ev_p0": 2,
        "s.ev_p2_low": 5,
    } | ANIMALS
    taken = here.take(name, exclude=("s.ev_p1", "s.birds"))
    assert {table.name for table in here.index(taken).contract.tables} == {"ev_p0", "ev_p2_low", "animals"}


def _refuses(here: Site, database: str, patterns: dict[str, str], words: str) -> None:
    here.remember()
    ended = here.run("backup", database, **{f"BACKUPD_DUMP__{name}": value for name, value in patterns.items()})
    here.assert_failed(ended, 2, "filter_refused")
    assert words in ended.error["message"]
    assert "BACKUPD_DUMP__INCLUDE, or both in BACKUPD_DUMP__EXCLUDE" in ended.error["hint"]


def _families(server: PostgresServer, database: DatabaseFactory) -> str:
    name = database(server)
    with server.connect(name) as connection:
        connection.execute(FAMILIES.encode())
    return name


# --- several databases


@pytest.mark.slow
def test_names_patterns_and_a_star_choose_the_databases(
    postgres17: PostgresServer, site: MakeSite, database: DatabaseFactory
) -> None:
    names = sorted([database(postgres17, "tenant"), database(postgres17, "tenant"), database(postgres17, "other")])
    other, *tenants = names
    here = site(postgres17)
    ended = here.run("backup", other, "tenant_*", "--json")
    assert ended.code == 0, ended.stderr
    assert _databases(ended.stdout) == [other, *tenants]
    with postgres17.connect() as connection:
        found = connection.execute("SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY 1").fetchall()
    ended = here.run("backup", "--json", BACKUPD_SOURCE__DATABASES="*")
    assert ended.code == 0, ended.stderr
    assert _databases(ended.stdout) == [name for (name,) in found]


@pytest.mark.slow
def test_a_star_leaves_out_what_an_interrupted_drop_made_invalid_and_says_what_to_do(
    any_postgres: PostgresServer, site: MakeSite, database: DatabaseFactory
) -> None:
    here, good, invalid = site(any_postgres), database(any_postgres, "app"), database(any_postgres, "app")
    with any_postgres.connect() as connection:
        connection.execute("UPDATE pg_database SET datconnlimit = -2 WHERE datname = %s", [invalid])
    ended = here.run("backup", "app_*", "--json")
    assert ended.code == 0, ended.stderr
    assert _databases(ended.stdout) == [good]
    (event,) = (each for each in ended.events if each["event"] == "database.invalid")
    assert (event["level"], event["database"]) == ("warning", invalid)
    assert "DROP DATABASE" in event["action"]
    assert here.run("backup", invalid).code == 2


def _databases(stdout: str) -> list[str]:
    return [json.loads(line)["source"]["database"] for line in stdout.splitlines()]


@pytest.mark.slow
def test_a_database_that_fails_does_not_stop_the_others_and_gives_its_own_exit_code(
    postgres17: PostgresServer, site: MakeSite, database: DatabaseFactory
) -> None:
    here, first, last = site(postgres17), database(postgres17), database(postgres17)
    ended = here.run("backup", first, "no_such_database", last, "--json")
    assert (ended.code, ended.error["reason"]) == (2, "usage")
    assert "no_such_database" in ended.error["message"]
    assert _databases(ended.stdout) == [first, last]
    assert len(here.listed()) == 2
    here.assert_clean()


@pytest.mark.slow
def test_databases_that_fail_for_different_reasons_give_exit_code_3_and_are_all_named(
    postgres17: PostgresServer, site: MakeSite, database: DatabaseFactory
) -> None:
    here, good, locked = site(postgres17), database(postgres17), database(postgres17)
    with postgres17.connect(locked) as connection:
        connection.execute("CREATE TABLE t ()")
    with locked_table(postgres17, locked, "t"):
        ended = here.run("backup", locked, "no_such_database", good, "--json", BACKUPD_DUMP__LOCK_WAIT="1s")
    assert (ended.code, ended.error["reason"]) == (3, "partial")
    assert locked in ended.error["message"]
    assert "no_such_database" in ended.error["message"]
    assert _databases(ended.stdout) == [good]
    assert len(here.listed()) == 1
    here.assert_clean()


# --- retention


@pytest.mark.slow
def test_retention_runs_after_a_success_and_only_then(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop
) -> None:
    here, database = site(postgres17), shop_of(postgres17)
    older = [here.take(database).id for _ in range(2)]
    policy = {"BACKUPD_RETENTION__KEEP_LAST": "1", "BACKUPD_RETENTION__FLOOR": "1"}
    assert here.run("backup", database, **policy, BACKUPD_DUMP__INCLUDE="no.table").code == 2
    assert here.listed() == older[::-1]
    ended = here.run("backup", database, "--json", **policy)
    assert ended.code == 0, ended.stderr
    assert here.listed() == [json.loads(ended.stdout)["id"]]
    assert sorted(event["backup"][-len(older[0]) :] for event in ended.events if "pruned" in event["event"]) == sorted(
        older
    )
    assert here.orphans() == []


# --- one at a time


@pytest.mark.slow
def test_a_second_run_ends_at_once_naming_the_holder_and_with_wait_it_waits(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop
) -> None:
    here, database = site(postgres17), shop_of(postgres17)
    with locked_table(postgres17, database, "shop.customers"):
        first = here.start("backup", database)
        here.pg_dump(first)
        second = here.run("backup", database)
        assert (second.code, second.error["reason"]) == (11, "locked")
        assert "backupd backup from 127.0.0.1" in second.error["detail"]
        assert "--wait" in second.error["hint"]
        third = here.start("backup", database, "--wait", "60")
        assert first.alive()
    assert first.end().code == 0
    assert third.end().code == 0
    assert len(here.listed()) == 2
    here.assert_clean()


# --- tables rewritten between snapshot and locks


REWRITES = {
    "truncate": "BEGIN; TRUNCATE t; INSERT INTO t SELECT n FROM generate_series(1, 3) n; COMMIT",
    "vacuum full": "DELETE FROM t WHERE n > 3; VACUUM FULL t",
    "alter type": "BEGIN; DELETE FROM t WHERE n > 3; ALTER TABLE t ALTER n TYPE bigint; COMMIT",
    "drop and create": "BEGIN; DROP TABLE t; CREATE TABLE t AS SELECT n FROM generate_series(1, 3) n; COMMIT",
    "swap": "BEGIN; ALTER TABLE t RENAME TO u; ALTER TABLE three RENAME TO t; ALTER TABLE u RENAME TO three; COMMIT",
}


@pytest.mark.slow
@pytest.mark.parametrize("statements", REWRITES.values(), ids=REWRITES)
def test_a_table_rewritten_between_snapshot_and_locks_is_dumped_again(
    statements: str,
    postgres17: PostgresServer,
    site: MakeSite,
    database: DatabaseFactory,
    turnstile: Turnstile,
    shell_clients: MakeClients,
) -> None:
    here, name = site(postgres17), _rewritten_table(postgres17, database)
    clients = shell_clients(postgres17, turnstile.script)
    run = here.start("backup", name, BACKUPD_DUMP__CLIENTS=str(clients))
    turnstile.wait(0)
    with postgres17.connect(name) as connection:
        for statement in statements.split("; ") if "VACUUM" in statements else [statements]:
            connection.execute(statement.encode())
    for number in range(2):
        turnstile.let(number)
    ended = run.end()
    assert ended.code == 0, ended.stderr
    (listed,) = here.catalog.backups().backups
    (rows,) = (table.rows for table in here.index(listed).contract.tables if table.name == "t")
    assert rows == 3
    (retried,) = (event for event in ended.events if event["event"] == "backup.retried")
    assert retried["reason"] == "rewritten"
    assert "public.t" in retried["tables"]
    here.assert_clean()


@pytest.mark.slow
def test_a_table_that_is_rewritten_three_times_in_a_row_is_named_and_nothing_is_listed(
    postgres17: PostgresServer,
    site: MakeSite,
    database: DatabaseFactory,
    turnstile: Turnstile,
    shell_clients: MakeClients,
) -> None:
    here, name = site(postgres17), _rewritten_table(postgres17, database)
    here.earlier(name)
    clients = shell_clients(postgres17, turnstile.script)
    run = here.start("backup", name, BACKUPD_DUMP__CLIENTS=str(clients))
    for number in range(3):
        turnstile.wait(number)
        with postgres17.connect(name) as connection:
            connection.execute("TRUNCATE t")
        turnstile.let(number)
    ended = run.end()
    here.assert_failed(ended, 18, "database")
    assert "public.t" in ended.error["detail"]
    assert not (turnstile.folder / "waiting.3").exists()


def _rewritten_table(server: PostgresServer, database: DatabaseFactory) -> str:
    name = database(server)
    with server.connect(name) as connection:
        connection.execute("CREATE TABLE t AS SELECT n FROM generate_series(1, 500) n")
        connection.execute("CREATE TABLE three AS SELECT n FROM generate_series(1, 3) n")
    return name


@pytest.mark.slow
def test_a_dump_whose_files_are_first_seen_at_its_end_is_a_backup(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop, shell_clients: MakeClients
) -> None:
    here, database = site(postgres17), shop_of(postgres17)
    # Renamed files were never closed there, so inotify says nothing: as on a machine without it, or that is slow.
    script = """set -e; aside="${folder%/*}/aside"
for argument; do shift; set -- "$@" "$(printf %s "$argument" | sed "s|^--file=.*|--file=$aside|")"; done
"$real" "$@"; mv "$aside"/* "$folder"
"""
    taken = here.take(database, clients=shell_clients(postgres17, script))
    assert here.listed() == [taken.id]
    with postgres17.connect(database) as connection:
        assert taken.manifest.totals.rows == sum(count_rows(connection).values())


# --- clocks


def test_a_clock_behind_the_newest_backup_is_warned_of(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop
) -> None:
    here, database = site(postgres17), shop_of(postgres17)
    ahead = here.take(database, clock=lambda: datetime.now(UTC) + timedelta(hours=1))
    ended = here.run("backup", database)
    assert ended.code == 0, ended.stderr
    (warned,) = [event for event in ended.events if event["event"] == "clock.behind"]
    assert warned["newest"] == ahead.id
    assert 3500 < warned["seconds"] <= 3600
    assert here.listed() == [ahead.id, warned["backup"]]


def test_a_clock_that_is_set_back_during_a_run_makes_no_backup_that_ended_before_it_began(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop
) -> None:
    times = itertools.chain((NOW,), itertools.repeat(NOW - timedelta(hours=1)))
    taken = site(postgres17).take(shop_of(postgres17), clock=lambda: next(times)).manifest
    assert (taken.started_at, taken.finished_at) == (NOW, NOW)


# --- how the server is reached


@pytest.mark.slow
def test_a_pooler_is_refused(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop, wire: Callable[..., Wire]
) -> None:
    def other_pid(data: bytes) -> bytes:
        """The message BackendKeyData with another process id, as a pooler makes one up."""
        return re.sub(rb"(?<=K\x00\x00\x00\x0c..)..", b"\x00\x07", data, count=1, flags=re.DOTALL)

    proxy = wire(postgres17)
    proxy.rewrite = other_pid
    here = site(postgres17, BACKUPD_SOURCE__PORT=str(proxy.port))
    here.remember()
    ended = here.run("backup", shop_of(postgres17))
    here.assert_failed(ended, 18, "database")
    assert "pooler" in ended.error["message"]
    assert "PGHOST" in ended.error["hint"]


@pytest.mark.slow
def test_children_get_the_password_by_a_private_file_that_is_gone_afterwards_and_in_no_other_way(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop
) -> None:
    here, database = site(postgres17, PGPASSWORD=postgres17.password), shop_of(postgres17)
    with locked_table(postgres17, database, "shop.customers"):
        run = here.start("backup", database)
        pid = here.pg_dump(run)
        environment = process_environment(pid)
        passfile = Path(environment.pop("PGPASSFILE"))
        assert stat.S_IMODE(passfile.stat().st_mode) == 0o600
        assert passfile.read_text() == f"*:*:*:*:{postgres17.password}\n"
        assert not [name for name in environment if name.startswith(("BACKUPD_", "AWS_")) or "PASSWORD" in name]
        here.assert_no_secret(json.dumps([environment, here.children()]))
        assert all(each.stat().st_mode & 0o077 == 0 for each in here.scratch.iterdir())
    assert run.end().code == 0
    assert not passfile.exists()
    here.assert_clean()


@pytest.mark.slow
def test_a_hostile_password_reaches_the_server_and_no_output(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop
) -> None:
    password, role = "ca:na\\ry 'pass\"word= é", "backup with password"
    with postgres17.connect() as connection:
        connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))
        statement = sql.SQL("CREATE ROLE {} LOGIN SUPERUSER PASSWORD {}")
        connection.execute(statement.format(sql.Identifier(role), sql.Literal(password)))
    here = site(postgres17, BACKUPD_SOURCE__USER=role, BACKUPD_SOURCE__PASSWORD=password)
    here.secrets.append(password)
    ended = here.run("backup", shop_of(postgres17), BACKUPD_LOG__LEVEL="debug")
    assert ended.code == 0, ended.stderr
    assert len(here.listed()) == 1
    here.assert_clean()


@pytest.mark.slow
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_pgpassfile_works_whoever_may_read_it(
    mode: int, postgres17: PostgresServer, site: MakeSite, shop_of: Shop, tmp_path: Path
) -> None:
    passfile = tmp_path / "pgpass"
    passfile.write_text(f"# as Secret volumes have it\n127.0.0.1:*:*:{postgres17.user}:{postgres17.password}\n")
    passfile.chmod(mode)
    here = site(postgres17, BACKUPD_SOURCE__PASSWORD="", PGPASSFILE=str(passfile))
    ended = here.run("backup", shop_of(postgres17))
    assert ended.code == 0, ended.stderr
    assert len(here.listed()) == 1
    assert passfile.exists()
    here.assert_clean()


@pytest.mark.slow
def test_settings_of_libpq_work_unchanged(postgres17: PostgresServer, site: MakeSite, shop_of: Shop) -> None:
    database = shop_of(postgres17)
    here = site(postgres17, **NOTHING_SET, **_libpq(postgres17), PGDATABASE=database)
    ended = here.run("backup")
    assert ended.code == 0, ended.stderr
    sources = [each.source for each in here.catalog.backups().backups]
    assert [(source.server, source.database) for source in sources] == [("localhost", database)]


@pytest.mark.slow
def test_timeouts_that_users_set_do_not_end_a_backup(postgres17: PostgresServer, site: MakeSite, shop_of: Shop) -> None:
    timeouts = ("statement_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout")
    options = " ".join(f"-c {name}=300ms" for name in timeouts)
    here, database = site(postgres17, **NOTHING_SET, **_libpq(postgres17), PGOPTIONS=options), shop_of(postgres17)
    with locked_table(postgres17, database, "shop.customers"):
        run = here.start("backup", database)
        here.pg_dump(run)
        time.sleep(1)
        assert run.alive()
    ended = run.end()
    assert ended.code == 0, ended.stderr
    assert len(here.listed()) == 1


NOTHING_SET = dict.fromkeys((f"BACKUPD_SOURCE__{name}" for name in ("HOST", "PORT", "USER", "PASSWORD", "SERVER")), "")


def _libpq(server: PostgresServer) -> dict[str, str]:
    return {"PGHOST": server.host, "PGPORT": str(server.port), "PGUSER": server.user}


# --- for schedulers


def test_a_backup_that_began_since_is_as_good_as_a_new_one(
    site: Callable[..., Site], postgres17: PostgresServer, shop_of: Callable[[PostgresServer], str]
) -> None:
    here, name = site(postgres17), shop_of(postgres17)
    first = here.take(name)
    began = first.manifest.started_at
    filtered = {"BACKUPD_DUMP__INCLUDE": "shop.*"}

    again = here.run("backup", name, "--unless-since", began.isoformat())
    assert (again.code, here.listed()) == (0, [first.id])
    assert "backup.taken_before" in [each["event"] for each in again.events]
    assert here.run("backup", name, "--unless-since", began.isoformat(), **filtered).code == 0
    assert len(here.listed()) == 2

    here.catalog.note(first, "verified", False, {"error": "archive is damaged"}, began)
    assert here.run("backup", name, "--unless-since", began.isoformat()).code == 0
    assert len(here.listed()) == 3
