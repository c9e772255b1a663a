"""Encrypted backups: taken with public keys alone, opaque to who reads the store, whole to who has a private key."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_encryption import Key, NewKey
from fix_postgres import DatabaseFactory, PostgresServer
from fix_restore import NewName, contents, exists, flip, values
from fix_store import S3Server
from fix_tools import Ended, Site, s3_site
from psycopg import sql

from backupd.manifest import Backup, Filter
from backupd.selector import name_of

MakeSite = Callable[..., Site]
Shop = Callable[[PostgresServer], str]

NOW = datetime(2026, 11, 26, tzinfo=UTC)
RECIPIENTS, IDENTITIES = "BACKUPD_ENCRYPTION__RECIPIENTS", "BACKUPD_ENCRYPTION__IDENTITIES_FILE"
PRIVATE = "very_private"
"""In the name of every table, column and row of `private`; nobody may read it in a store."""


@pytest.fixture
def key(new_key: NewKey) -> Key:
    """The operator's key pair."""
    return new_key()


@pytest.fixture
def here(postgres17: PostgresServer, site: MakeSite, key: Key) -> Site:
    """A service that holds the public key alone."""
    return site(postgres17, **{RECIPIENTS: key.recipient})


@pytest.fixture
def private(here: Site, database: DatabaseFactory) -> Iterator[psycopg.Connection[Any]]:
    """A small database."""
    with here.server.connect(database(here.server)) as connection:
        connection.execute(f"CREATE TABLE {PRIVATE}_a ({PRIVATE}_id int PRIMARY KEY, body text)")
        connection.execute(f"INSERT INTO {PRIVATE}_a SELECT n, '{PRIVATE}' FROM generate_series(1, 2000) n")
        connection.execute(f"CREATE TABLE {PRIVATE}_c AS SELECT n FROM generate_series(1, 20000) n")
        yield connection


def taken(here: Site, database: str, *flags: str, **settings: str) -> Backup:
    """A backup that the command line took."""
    ended = here.run("backup", database, *flags, **settings)
    assert ended.code == 0, ended.stderr
    return here.catalog.find("latest")


def opened(here: Site, key: Key) -> Site:
    """The same installation where the private key is at hand."""
    here.settings |= {IDENTITIES: str(key.path)}
    return here


def in_clear(here: Site) -> list[str]:
    """The objects of the store in which the private word can be read."""
    return [path.name for path in here.store.rglob("*") if path.is_file() and PRIVATE.encode() in path.read_bytes()]


def warned(ended: Ended, event: str) -> bool:
    """Whether a run logged that event."""
    return event in [each["event"] for each in ended.events]


# --- taken with public keys alone


def test_nothing_in_the_store_names_a_table_a_column_or_a_row(
    here: Site, private: psycopg.Connection[Any], key: Key, shell_clients: Callable[[PostgresServer, str], Path]
) -> None:
    name, warning = private.info.dbname, f"pg_dump: warning: there is something with {PRIVATE}_a"
    clients = shell_clients(here.server, f'echo "{warning}" >&2; exec "$real" "$@"')
    settings = {"BACKUPD_DUMP__EXCLUDE": f"public.{PRIVATE}_c", "BACKUPD_DUMP__COMPRESSION": "gzip:1"}
    ended = here.run("backup", name, **settings, BACKUPD_DUMP__CLIENTS=str(clients))
    assert ended.code == 0, ended.stderr
    assert warning in ended.stderr
    [backup] = here.catalog.backups().backups
    tar = subprocess.run(["tar", "tf", here.archive_file(backup)], capture_output=True, text=True, check=True)
    names = tar.stdout.replace(f"{backup.id}/", "").split()

    assert in_clear(here) == []
    assert backup.manifest.format == 2
    assert backup.manifest.recipients == (key.recipient,)
    assert backup.manifest.warnings == ()
    assert backup.manifest.filter == Filter(exclude=(f"public.{PRIVATE}_c",))
    assert names[0] == "README.txt"
    assert [each for each in names if not each.endswith(".age")] == ["README.txt"]
    assert names[-1] == "index.json.zst.age"


def test_a_plain_backup_stays_of_format_1_for_older_readers(here: Site, private: psycopg.Connection[Any]) -> None:
    backup = here.take(private.info.dbname)
    assert (backup.manifest.format, backup.manifest.recipients, here.index(backup).format) == (1, (), 1)


@pytest.mark.slow
def test_list_show_and_check_need_no_private_key(here: Site, private: psycopg.Connection[Any], key: Key) -> None:
    backup = taken(here, private.info.dbname)
    shown = here.run("show", "latest").stdout
    assert f"encrypted to: {key.recipient}" in shown
    assert f"22000 rows in {backup.manifest.totals.tables} tables" in shown
    assert backup.id in here.run("list").stdout
    assert here.run("check", "--max-age", "1h").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["tables", "fetch", "restore", "drill"])
def test_what_reads_tables_asks_for_the_private_key_by_the_setting_s_name(
    verb: str, here: Site, private: psycopg.Connection[Any], tmp_path: Path
) -> None:
    backup = taken(here, private.info.dbname)
    here.remember()
    arguments = {"fetch": [str(tmp_path / "fetched")], "restore": ["--as", "nothing"]}.get(verb, [])
    drill = {"BACKUPD_DRILL__URL": f"postgresql://postgres@127.0.0.1:{here.server.port}/postgres"}
    ended = here.run(verb, backup.id, *arguments, **(drill if verb == "drill" else {}))
    if verb != "drill":  # which refuses the source's own cluster first
        here.assert_failed(ended, 2, "usage")
        assert IDENTITIES in ended.error["hint"]
    assert not exists(here.server, "nothing")
    assert not (tmp_path / "fetched").exists()


@pytest.mark.slow
def test_the_record_of_a_failed_run_names_no_table(
    here: Site, private: psycopg.Connection[Any], shell_clients: Callable[[PostgresServer, str], Path]
) -> None:
    words = f"pg_dump: error: query failed: ERROR:  permission denied for table {PRIVATE}_a"
    clients = shell_clients(here.server, f'echo "{words}" >&2; exit 1')
    ended = here.run("backup", private.info.dbname, BACKUPD_DUMP__CLIENTS=str(clients))
    assert ended.code != 0
    assert PRIVATE in ended.stderr
    [failed] = here.catalog.backups().failures
    assert (failed.exit_code, failed.reason) == (ended.code, ended.error["reason"])
    assert "in the run's log" in failed.message
    assert in_clear(here) == []


@pytest.mark.slow
def test_the_record_of_a_refused_filter_does_not_have_its_patterns(
    here: Site, private: psycopg.Connection[Any]
) -> None:
    ended = here.run("backup", private.info.dbname, BACKUPD_DUMP__INCLUDE=f"public.{PRIVATE}_d")
    assert (ended.code, PRIVATE in ended.stderr) == (2, True)
    [failed] = here.catalog.backups().failures
    assert "in the run's log" in failed.message
    assert in_clear(here) == []


@pytest.mark.slow
def test_predecessors_are_compared_by_their_totals_alone_and_the_log_says_so(
    here: Site, private: psycopg.Connection[Any]
) -> None:
    name = private.info.dbname
    here.take(name)  # in clear, so that its tables could be read
    ended = here.run("backup", name)
    assert warned(ended, "anomaly.totals_only")
    private.execute(f"DELETE FROM {PRIVATE}_c")
    taken(here, name)
    suspect = here.catalog.find("latest").suspect
    assert suspect is not None
    assert suspect.startswith("2000 rows in all")
    assert PRIVATE not in suspect


# --- what roles' passwords are checked by


VERIFIER = "SELECT rolpassword FROM pg_authid WHERE rolname = %s"


@pytest.mark.slow
def test_a_missing_role_gets_its_password_back_and_nobody_sees_it(
    here: Site, key: Key, database: DatabaseFactory, new_role: Callable[..., str], new_name: NewName
) -> None:
    name, role, restored = database(here.server), new_role(here.server), new_name(here.server)
    with here.server.connect(name) as connection:
        connection.execute(sql.SQL("CREATE TABLE mine (); ALTER TABLE mine OWNER TO {}").format(sql.Identifier(role)))
        (verifier,) = connection.execute(VERIFIER, [role]).fetchone() or ("",)
        assert verifier.startswith("SCRAM-SHA-256$")
        here.secrets.append(verifier)  # from now on every output is looked through for it
        backup = taken(here, name, "--with-role-passwords")
        connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))
    opened(here, key)
    assert here.run("tables", backup.id, "--json").code == 0
    assert verifier not in repr(here.index(backup))
    ended = here.run("restore", backup.id, "--as", restored, "--create-roles", BACKUPD_LOG__LEVEL="debug")
    assert ended.code == 0, ended.stderr
    assert "with its password" in ended.stdout
    with here.server.connect() as connection:
        assert connection.execute(VERIFIER, [role]).fetchone() == (verifier,)
        query = "SELECT rolcanlogin FROM pg_roles WHERE rolname = %s"
        assert connection.execute(query, [role]).fetchone() == (False,)
        connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO CURRENT_USER").format(sql.Identifier(restored)))


@pytest.mark.slow
def test_passwords_are_recorded_only_on_demand_and_by_who_may_see_them(
    here: Site, key: Key, private: psycopg.Connection[Any], new_role: Callable[..., str]
) -> None:
    name = private.info.dbname
    index = opened(here, key).index(taken(here, name))
    assert {role.password for role in index.contract.role_definitions} == {None}
    reader = new_role(here.server)  # pg_read_all_data would do, which may read pg_authid too
    grant = sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}")
    private.execute(grant.format(sql.Identifier(reader)))
    here.remember()
    ended = here.run("backup", name, BACKUPD_BACKUP_WITH_ROLE_PASSWORDS="true", BACKUPD_SOURCE__USER=reader)
    assert ended.code == 12, ended.stderr
    assert "pg_authid" in ended.error["message"]
    assert len(here.listed()) == 1
    private.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(reader)))


def test_passwords_without_encryption_are_refused(here: Site, private: psycopg.Connection[Any]) -> None:
    here.remember()
    ended = here.run("backup", private.info.dbname, "--with-role-passwords", **{RECIPIENTS: ""})
    assert ended.code == 2, ended.stderr
    assert RECIPIENTS in ended.error["hint"]
    assert here.listed() == []


# --- read with a private key


@pytest.mark.slow
def test_one_of_the_keys_restores_all_and_a_table_alone(
    postgres17: PostgresServer, site: MakeSite, shop_of: Shop, new_key: NewKey, new_name: NewName
) -> None:
    key, other = new_key("ssh-ed25519"), new_key()
    here = opened(site(postgres17, **{RECIPIENTS: f"# ours\n{key.recipient}\n{other.recipient}"}), key)
    backup, whole, part = taken(here, shop_of(postgres17)), new_name(postgres17), new_name(postgres17)
    here.remember()
    ended = here.run("restore", backup.id, "--as", whole)
    assert ended.code == 0, ended.stderr
    assert contents(postgres17, whole) == contents(postgres17, backup.source.database)
    assert values(postgres17, whole) == values(postgres17, backup.source.database)
    ended = here.run("restore", backup.id, "--as", part, "--table", "shop.orders_2025", "--json")
    assert ended.code == 0, ended.stderr
    assert 0 < json.loads(ended.stdout)["read_bytes"] < backup.manifest.archive_bytes / 2
    assert "orders_2025" in here.run("tables", backup.id).stdout
    here.assert_untouched()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["age", "ssh-ed25519", "ssh-rsa"])
def test_the_commands_in_the_readme_bring_the_data_back_with_the_real_age(
    kind: str,
    postgres17: PostgresServer,
    site: MakeSite,
    shop_of: Shop,
    new_key: NewKey,
    new_name: NewName,
    tmp_path: Path,
) -> None:
    key = new_key(kind)
    here, name = site(postgres17, **{RECIPIENTS: key.recipient}), new_name(postgres17)
    backup = taken(here, shop_of(postgres17))
    shutil.copy(here.archive_file(backup), tmp_path)
    argv = ["tar", "xOf", str(here.archive_file(backup)), f"{backup.id}/README.txt"]
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    commands = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    assert [command.split()[0] for command in commands] == ["tar", "for", "createdb", "pg_restore"]
    assert " ".join(key.recipient.split()[:2]) in text
    script = "\n".join(commands).replace("=restored", f"={name}").replace(" restored", f" {name}")
    environment = {
        "PATH": f"{postgres17.bin_directory}{os.pathsep}{os.environ['PATH']}",
        "PGHOST": postgres17.host,
        "PGPORT": str(postgres17.port),
        "PGUSER": postgres17.user,
    }
    script = script.replace("KEY", str(key.path))
    subprocess.run(["sh", "-e", "-c", script], cwd=tmp_path, env=environment, check=True)
    assert contents(postgres17, name) == contents(postgres17, backup.source.database)


@pytest.mark.slow
def test_a_table_comes_back_from_s3_by_ranges(
    rclone_s3: S3Server, postgres17: PostgresServer, site: MakeSite, large_of: Shop, key: Key, new_name: NewName
) -> None:
    here = opened(s3_site(site, postgres17, rclone_s3), key)
    here.settings |= {RECIPIENTS: key.recipient}
    backup, name = taken(here, large_of(postgres17)), new_name(postgres17)
    small = min(here.index(backup).contract.tables, key=lambda table: table.raw_bytes)
    chosen = f"{small.schema}.{small.name}"
    ended = here.run("restore", backup.id, "--as", name, "--table", chosen, "--json")
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout)["read_bytes"] < backup.manifest.archive_bytes / 20
    assert contents(postgres17, name)[chosen] == contents(postgres17, backup.source.database)[chosen]


@pytest.mark.slow
def test_a_wrong_key_is_access_refused_and_leaves_nothing(
    here: Site, private: psycopg.Connection[Any], new_key: NewKey, tmp_path: Path
) -> None:
    backup = taken(here, private.info.dbname)
    opened(here, new_key())
    here.remember()
    for arguments in (["restore", "--as", "nothing"], ["tables"], ["fetch", str(tmp_path / "fetched")], ["verify"]):
        ended = here.run(arguments[0], backup.id, *arguments[1:])
        here.assert_failed(ended, 12, "access_refused")
        assert "none of the identities opens" in ended.error["message"]
    assert not exists(here.server, "nothing")
    assert not (tmp_path / "fetched").exists()


# --- verified


@pytest.mark.slow
def test_without_a_private_key_verify_says_that_it_hashed_and_did_not_decode(
    here: Site, private: psycopg.Connection[Any], key: Key
) -> None:
    backup = taken(here, private.info.dbname)
    ended = here.run("verify", backup.id)
    assert ended.code == 0, ended.stderr
    assert re.fullmatch(rf"{name_of(backup)}: hashed [0-9-]+, not decoded: no identities are set\n", ended.stdout)
    note = here.catalog.find("latest").note("verified")
    assert note is not None
    assert (note.ok, note.facts["level"], note.facts["members"]) == (True, "hashed", 0)
    assert "  hashed 20" in here.run("list").stdout

    ended = opened(here, key).run("verify", backup.id)
    assert re.fullmatch(rf"{name_of(backup)}: verified [0-9-]+\n", ended.stdout), ended.stderr
    note = here.catalog.find("latest").note("verified")
    assert note is not None
    assert (note.ok, note.facts["level"]) == (True, "decoded")
    assert note.facts["members"] == backup.manifest.totals.tables


@pytest.mark.slow
@pytest.mark.parametrize("sealed", [True, False])
def test_a_flipped_byte_anywhere_is_found_with_a_private_key_and_without(
    sealed: bool, here: Site, private: psycopg.Connection[Any], key: Key
) -> None:
    backup = taken(here, private.info.dbname)
    index = opened(here, key).index(backup)
    if sealed:
        del here.settings[IDENTITIES]
    member = max(index.members, key=lambda member: member.size_bytes)
    for position in (member.offset + 40, member.offset + member.size_bytes - 1, backup.manifest.index_offset + 50):
        flip(here, backup, position)
        ended = here.run("verify", backup.id)
        assert ended.code == 14, ended.stderr
        flip(here, backup, position)
    assert in_clear(here) == []


@pytest.mark.slow
def test_right_hashes_do_not_take_back_that_decoding_found_damage(here: Site, private: psycopg.Connection[Any]) -> None:
    backup = taken(here, private.info.dbname)
    here.catalog.note(backup, "verified", False, {"error": "it is not right"}, NOW)
    ended = here.run("verify", backup.id)
    assert ended.code == 14
    assert "was found damaged before" in ended.error["message"]
    assert here.catalog.find("latest").suspect is not None


@pytest.mark.slow
def test_a_drill_proves_an_encrypted_backup_identical(
    postgres17: PostgresServer, postgres18: PostgresServer, site: MakeSite, shop_of: Shop, key: Key
) -> None:
    here = opened(site(postgres17, **{RECIPIENTS: key.recipient}), key)
    backup = taken(here, shop_of(postgres17))
    url = {
        "BACKUPD_DRILL__URL": f"postgresql://{postgres18.user}@127.0.0.1:{postgres18.port}/postgres",
        "BACKUPD_DRILL__PASSWORD": postgres18.password,
    }
    ended = here.run("drill", backup.id, **url)
    assert ended.code == 0, ended.stderr
    note = here.catalog.find("latest").note("drilled")
    assert note is not None
    assert note.facts["level"] == "identical"


@pytest.mark.slow
def test_what_a_failed_drill_notes_names_no_table(
    here: Site, private: psycopg.Connection[Any], postgres18: PostgresServer, key: Key
) -> None:
    function = "IMMUTABLE LANGUAGE sql AS 'SELECT count(*)::int FROM pg_class'"
    private.execute(f"CREATE FUNCTION {PRIVATE}_f(int) RETURNS int {function}")
    private.execute(f"ALTER TABLE {PRIVATE}_c ADD CHECK (current_database() = '{private.info.dbname}')")
    opened(here, key)
    backup = taken(here, private.info.dbname)
    url = {
        "BACKUPD_DRILL__URL": f"postgresql://{postgres18.user}@127.0.0.1:{postgres18.port}/postgres",
        "BACKUPD_DRILL__PASSWORD": postgres18.password,
    }
    ended = here.run("drill", backup.id, **url)
    assert ended.code == 14, ended.stderr
    assert PRIVATE in ended.stderr
    assert here.catalog.find("latest").suspect is not None
    assert in_clear(here) == []


# --- copied


@pytest.mark.slow
@pytest.mark.parametrize("sealed", [True, False])
def test_a_copy_needs_no_private_key_and_proves_every_byte(
    sealed: bool, here: Site, private: psycopg.Connection[Any], key: Key, tmp_path: Path
) -> None:
    backup = taken(here, private.info.dbname)
    if not sealed:
        opened(here, key)
    second = tmp_path / "second"
    second.mkdir()
    flip(here, backup, backup.manifest.index_offset - 600)
    ended = here.run("copy", backup.id, second.as_uri())
    assert ended.code == 14, ended.stderr
    assert [path for path in second.rglob("*") if path.is_file()] == []
    flip(here, backup, backup.manifest.index_offset - 600)
    ended = here.run("copy", backup.id, second.as_uri())
    assert ended.code == 0, ended.stderr
    copied = second / here.archive_file(backup).relative_to(here.store)
    assert copied.read_bytes() == here.archive_file(backup).read_bytes()


# --- settings


def test_a_wrong_recipient_stops_everything_before_anything_is_done(
    here: Site, private: psycopg.Connection[Any]
) -> None:
    here.remember()
    ended = here.run("backup", private.info.dbname, **{RECIPIENTS: "age1foo"})
    here.assert_failed(ended, 2, "usage")
    assert "age1foo" not in ended.stderr


def test_recipients_may_be_in_a_file(here: Site, private: psycopg.Connection[Any], key: Key, tmp_path: Path) -> None:
    path = tmp_path / "recipients"
    path.write_text(f"# whoever restores\n\n{key.recipient}\n")
    backup = taken(here, private.info.dbname, **{RECIPIENTS: "", f"{RECIPIENTS}_FILE": str(path)})
    assert backup.manifest.recipients == (key.recipient,)
