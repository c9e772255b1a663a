"""What is hard to bring back, dumped and restored by every server: content and definitions come back the same.

Each file in hard/ is one case; both sides are compared without backupd (fix_restore), the rows of materialised views
too. What cannot come back must be said, and leaves nothing behind.
"""

from collections.abc import Callable
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from fix_postgres import DatabaseFactory, PostgresServer
from fix_restore import NewName, contents, definitions, exists, forget_subscriptions, restore_to, values
from fix_tools import Site
from psycopg import sql

from backupd.errors import DatabaseError, RestoreFailed
from backupd.manifest import Backup
from backupd.restore import Restored

pytestmark = pytest.mark.slow

CASES = sorted((Path(__file__).parent / "hard").glob("*.sql"))

MakeSite = Callable[..., Site]
NewRole = Callable[..., str]
Make = Callable[..., str]


@pytest.fixture
def make(new_role: NewRole, database: DatabaseFactory) -> Make:
    """Makes a database of SQL text; the two roles that the cases name are there. They go after it."""

    def build(server: PostgresServer, text: str | bytes, options: str = "", client_encoding: str = "UTF8") -> str:
        for role in ("hard owner", "hard_reader"):
            with server.connect() as connection:
                if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).fetchone() is None:
                    new_role(server, name=role)
        source = database(server, options=options)
        with server.connect(source, client_encoding=client_encoding) as connection:
            connection.execute(text if isinstance(text, bytes) else text.encode())
        return source

    return build


def restored_equal(server: PostgresServer, here: Site, source: str, name: str) -> tuple[Backup, Restored]:
    """Backs up and restores, and compares everything that can be compared from outside."""
    backup = here.take(source)
    restored = restore_to(here, backup, name)
    assert restored.refused == ()
    assert contents(server, name) == contents(server, source)
    assert values(server, name) == values(server, source)
    assert materialised(server, name) == materialised(server, source)
    assert definitions(server, name) == definitions(server, source)
    here.assert_clean()
    return backup, restored


def materialised(server: PostgresServer, database: str) -> dict[str, list[tuple[object, ...]]]:
    """The rows of every materialised view that has any."""
    with server.connect(database) as connection:
        names = connection.execute("SELECT oid::regclass::text FROM pg_class WHERE relkind = 'm' AND relispopulated")
        return {
            name: sorted(connection.execute(f"TABLE {name}".encode()).fetchall(), key=repr)
            for (name,) in names.fetchall()
        }


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_a_hard_case_comes_back_the_same(
    case: Path, any_postgres: PostgresServer, make: Make, site: MakeSite, new_name: NewName
) -> None:
    source, name = make(any_postgres, case.read_text(encoding="utf-8")), new_name(any_postgres)
    try:
        restored_equal(any_postgres, site(any_postgres), source, name)
    finally:
        for each in (source, name):
            forget_subscriptions(any_postgres, each)


# --- what only some servers have


ONLY_18 = """
CREATE TABLE virtual (a int, b int GENERATED ALWAYS AS (a * 2) VIRTUAL, c uuid DEFAULT uuidv7());
INSERT INTO virtual (a, c) SELECT n, NULL FROM generate_series(1, 9) n;
CREATE TABLE checked (a int CONSTRAINT named NOT NULL NO INHERIT, b int);
INSERT INTO checked VALUES (1, NULL);
ALTER TABLE checked ADD CONSTRAINT later NOT NULL b NOT VALID;
ALTER TABLE checked ADD CONSTRAINT unenforced CHECK (a < 0) NOT ENFORCED;
CREATE EXTENSION btree_gist;
CREATE TABLE stays (room int, during daterange, PRIMARY KEY (room, during WITHOUT OVERLAPS));
INSERT INTO stays VALUES (1, '[2026-01-01,2026-02-01)'), (1, '[2026-02-01,2026-03-01)');
CREATE TABLE bills (room int, during daterange,
    FOREIGN KEY (room, PERIOD during) REFERENCES stays (room, PERIOD during));
INSERT INTO bills VALUES (1, '[2026-01-10,2026-02-10)');
"""


def test_what_only_18_knows_comes_back_the_same(
    postgres18: PostgresServer, make: Make, site: MakeSite, new_name: NewName
) -> None:
    restored_equal(postgres18, site(postgres18), make(postgres18, ONLY_18), new_name(postgres18))


ICU = """
CREATE COLLATION phonebook (PROVIDER = icu, LOCALE = 'de-u-co-phonebk');
CREATE COLLATION anyhow (PROVIDER = icu, LOCALE = 'und-u-ks-level2', DETERMINISTIC = false);
CREATE TABLE words (word text COLLATE phonebook PRIMARY KEY, other text COLLATE anyhow UNIQUE);
INSERT INTO words VALUES ('Götz', 'a'), ('Goethe', 'B'), ('Goldmann', 'ä');
CREATE TABLE sorted (word text COLLATE phonebook) PARTITION BY RANGE (word);
CREATE TABLE sorted_low PARTITION OF sorted FOR VALUES FROM (MINVALUE) TO ('Goldmann');
CREATE TABLE sorted_high PARTITION OF sorted FOR VALUES FROM ('Goldmann') TO (MAXVALUE);
INSERT INTO sorted SELECT word FROM words;
"""


def test_collations_of_icu_come_back_the_same(
    postgres15: PostgresServer, make: Make, site: MakeSite, new_name: NewName
) -> None:
    restored_equal(postgres15, site(postgres15), make(postgres15, ICU), new_name(postgres15))


# --- encodings


IN_C = "ENCODING '{}' LC_COLLATE 'C' LC_CTYPE 'C'"
ENCODINGS = [
    ("LATIN1", "Straße", "äöü ÿ"),
    ("WIN1252", "“Straße”", r"€ „x“ \\N\t"),
    ("EUC_JP", "顧客", r"日本語 \\ 表"),
    ("WIN1251", "Клиенты", r"я\nё"),
    ("UTF8", "顧客 🐘", "e\u0301 \u202e x \ufeff"),
]
NAMED = """
CREATE TYPE "{name} type" AS ENUM ('{name}');
CREATE TABLE "{name}" ("{name}" text DEFAULT '{name}', e "{name} type" DEFAULT '{name}');
INSERT INTO "{name}" VALUES (E'{text}', '{name}'), (DEFAULT, NULL);
CREATE SEQUENCE "{name} sequence";
SELECT setval('"{name} sequence"', 5);
COMMENT ON TABLE "{name}" IS '{text}';
CREATE FUNCTION "{name} function"() RETURNS text LANGUAGE sql AS 'SELECT ''{name}''';
"""


@pytest.mark.parametrize(("encoding", "name", "text"), ENCODINGS, ids=[each[0] for each in ENCODINGS])
def test_names_and_rows_of_every_encoding_come_back_the_same(
    encoding: str,
    name: str,
    text: str,
    any_postgres: PostgresServer,
    make: Make,
    site: MakeSite,
    new_name: NewName,
) -> None:
    source = make(any_postgres, NAMED.format(name=name, text=text), IN_C.format(encoding))
    backup, restored = restored_equal(any_postgres, site(any_postgres), source, new_name(any_postgres))

    assert backup.manifest.totals.rows == 2
    assert f"public.{name}" in {item.name for item in restored.comparisons}


def test_a_role_that_another_database_s_encoding_named_stops_no_backup_and_no_restore(
    any_postgres: PostgresServer,
    make: Make,
    site: MakeSite,
    new_name: NewName,
    new_role: Callable[..., str],
) -> None:
    new_role(any_postgres, name="a role \u2013 of UTF8")
    source = make(any_postgres, NAMED.format(name="顧客", text="日本語"), IN_C.format("EUC_JP"))
    with any_postgres.connect(source, client_encoding="UTF8") as connection, pytest.raises(psycopg.DataError):
        connection.execute("SELECT rolname FROM pg_roles").fetchall()

    restored_equal(any_postgres, site(any_postgres), source, new_name(any_postgres))


def test_a_database_whose_sessions_speak_an_encoding_without_its_characters_comes_back_the_same(
    any_postgres: PostgresServer, make: Make, site: MakeSite, new_name: NewName
) -> None:
    here, name = site(any_postgres), new_name(any_postgres)
    source = make(any_postgres, NAMED.format(name="顧客", text="日本語"))
    speak(any_postgres, source, "SET client_encoding = 'LATIN1'")
    backup = here.take(source)
    restore_to(here, backup, name)
    for each in (source, name):
        speak(any_postgres, each, "RESET client_encoding")

    assert backup.manifest.totals.rows == 2
    assert contents(any_postgres, name) == contents(any_postgres, source)
    assert definitions(any_postgres, name) == definitions(any_postgres, source)


def speak(server: PostgresServer, database: str, what: LiteralString) -> None:
    """Has sessions of the database speak another encoding."""
    with server.connect() as connection:
        connection.execute(sql.SQL(f"ALTER DATABASE {{}} {what}").format(sql.Identifier(database)))


BYTES = b"CREATE TABLE plain (t text); INSERT INTO plain VALUES ('\xe4\xff'), ('\xc3\xa4'), (E'\x80\\n');"


def test_rows_of_no_encoding_at_all_come_back_the_same(
    any_postgres: PostgresServer, make: Make, site: MakeSite, new_name: NewName
) -> None:
    source, name = make(any_postgres, BYTES, IN_C.format("SQL_ASCII"), "SQL_ASCII"), new_name(any_postgres)
    here = site(any_postgres)
    restore_to(here, here.take(source), name)

    assert contents(any_postgres, name) == contents(any_postgres, source)
    assert contents(any_postgres, name)["public.plain"] == [b"\x80\\n", b"\xc3\xa4", b"\xe4\xff"]
    assert definitions(any_postgres, name) == definitions(any_postgres, source)


def test_a_name_that_is_no_utf_8_is_refused_and_no_backup_is_listed(
    any_postgres: PostgresServer, make: Make, site: MakeSite
) -> None:
    source = make(any_postgres, b'CREATE TABLE "Stra\xdfe" ()', IN_C.format("SQL_ASCII"), "SQL_ASCII")
    here = site(any_postgres)
    with pytest.raises(DatabaseError, match="invalid byte sequence"):
        here.take(source)

    assert (here.listed(), here.orphans()) == ([], [])


# --- what does not come back, and is said


UNQUALIFIED = """
CREATE TABLE rates (currency text, rate numeric);
INSERT INTO rates VALUES ('EUR', 1.1);
CREATE FUNCTION rate_of(text) RETURNS numeric LANGUAGE plpgsql IMMUTABLE
    AS 'BEGIN RETURN (SELECT rate FROM rates WHERE currency = $1); END';
CREATE TABLE bills (currency text);
CREATE INDEX by_rate ON bills (rate_of(currency));
INSERT INTO bills VALUES ('EUR');
"""


def test_a_function_in_an_index_that_names_a_table_without_its_schema_fails_the_restore_and_is_named(
    any_postgres: PostgresServer, make: Make, site: MakeSite, new_name: NewName
) -> None:
    here, source, name = site(any_postgres), make(any_postgres, UNQUALIFIED), new_name(any_postgres)
    backup = here.take(source)
    here.remember()
    with pytest.raises(RestoreFailed) as raised:
        restore_to(here, backup, name)

    assert 'relation "rates" does not exist' in (raised.value.detail or "")
    assert "SET search_path" in (raised.value.hint or "")
    assert not exists(any_postgres, name)
    here.assert_untouched()


LABELLED = """
CREATE TABLE secret (n int);
SET allow_system_table_mods = on;
INSERT INTO pg_seclabel VALUES ('secret'::regclass, 'pg_class'::regclass, 0, 'nobodys provider', 'top');
"""


def test_a_security_label_whose_provider_is_not_loaded_fails_the_restore_and_is_named(
    any_postgres: PostgresServer, make: Make, site: MakeSite, new_name: NewName
) -> None:
    here, source, name = site(any_postgres), make(any_postgres, LABELLED), new_name(any_postgres)
    backup = here.take(source)
    with pytest.raises(RestoreFailed) as raised:
        restore_to(here, backup, name)

    assert "nobodys provider" in (raised.value.detail or "")
    assert not exists(any_postgres, name)
