"""Hostile databases: names that are commands, in every encoding, and code that waits to run with the backup's rights.

Each attack makes a database on a real server (15, 17 and 18 in turn), backs it up, looks at it, restores it and
compares both sides from outside. Names hold line breaks, quotes, shell text, escape sequences; functions stand in every
place from which a dump or a question could call them, and raise if they are; settings of the database try to change
what our queries mean. No text may act on the terminal, no shell may run, and what comes back must be the same.
"""

import contextlib
import glob
import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from attack import arena
from attack.archives import CODES, PLANTED, assert_quiet
from attack.outcome import Attack
from fix_postgres import PostgresServer, running_server
from fix_restore import contents
from psycopg import sql
from traps import SPRUNG, fill_traps

from backupd import toc

WHOLE, PART = 120, 4
MAJORS = (15, 17, 18)

Fill = Callable[[PostgresServer, str, random.Random], object]


@dataclass(frozen=True)
class Kind:
    """One kind of database: its own name, how it is made, and its options; of which majors' servers."""

    name: str
    fill: Fill
    database: str = ""
    options: str = ""
    majors: tuple[int, ...] = MAJORS


def campaign(seed: int, count: int, folder: Path) -> Iterator[Attack]:
    """Every kind on some server, then names by chance, in an order that the seed decides."""
    chance = random.Random(seed)
    sentinel = folder / "a shell ran"
    kinds = [*_kinds(sentinel)]
    chance.shuffle(kinds)
    with contextlib.ExitStack() as stack:
        servers = {major: stack.enter_context(running_server(major)) for major in MAJORS}
        pit = stack.enter_context(arena.opened())
        for number, kind in enumerate(itertools.islice(itertools.chain(kinds, _by_chance(chance, sentinel)), count)):
            major = kind.majors[number % len(kind.majors)]
            act = partial(_attack, pit, servers[major], kind, seed * 10_000 + number, folder / f"{number}", sentinel)
            yield Attack(f"{number} {kind.name}, PostgreSQL {major}", act)


# --- one attack


def _attack(pit: arena.Arena, server: PostgresServer, kind: Kind, seed: int, folder: Path, sentinel: Path) -> str:
    source = kind.database or f"source_{seed}"
    restored = f"restored_{seed}"
    for name in ("store", "scratch", "temporary", "home"):
        (folder / name).mkdir(parents=True)
    with _database(server, source, kind.options), _dropped(server, restored):
        kind.fill(server, source, random.Random(seed))
        environment = _environment(server, folder, source)
        looks = (["list"], ["show", "latest"], ["verify", "latest"], ["check", "--max-age=1h"])
        plan = ["restore", "latest", f"--as={restored}", "--plan"]
        look = [*looks, plan][seed % (len(looks) + 1)]
        for arguments in (["doctor"], ["backup"], ["tables", "latest"], look, plan[:-1]):
            ended = pit.run(arguments, environment)
            assert_quiet(ended)
            what = f"{arguments} ended with {ended.code}: {ended.terminal[-2000:]!r}"
            assert ended.code in CODES, what
            assert SPRUNG not in ended.terminal, what
            assert ended.code == 0 or arguments == ["doctor"], what
        for name in (source, restored):
            with server.connect() as connection:
                connection.execute(sql.SQL("ALTER DATABASE {} RESET ALL").format(sql.Identifier(name)))
        assert contents(server, restored) == contents(server, source), "what came back is not the same"
    assert not sentinel.exists(), "a shell ran"
    left = [*(folder / "scratch").iterdir(), *(folder / "temporary").iterdir()]
    assert not left, f"left: {left}"
    shutil.rmtree(folder)
    return "came back the same"


def _environment(server: PostgresServer, folder: Path, source: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "temporary"),
        "TERM": "xterm-256color",
        "PGDATABASE": glob.escape(source),
        "BACKUPD_STORE__URL": (folder / "store").as_uri(),
        "BACKUPD_SCRATCH__DIRECTORY": str(folder / "scratch"),
        "BACKUPD_DUMP__CLIENTS": str(server.bin_directory),
        "BACKUPD_SOURCE__SERVER": "prod",
        "BACKUPD_SOURCE__HOST": server.host,
        "BACKUPD_SOURCE__PORT": str(server.port),
        "BACKUPD_SOURCE__USER": server.user,
    }


@contextlib.contextmanager
def _database(server: PostgresServer, name: str, options: str) -> Iterator[None]:
    with server.connect() as connection:
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE template0 " + options)
        connection.execute(statement.format(sql.Identifier(name)))
    with _dropped(server, name):
        yield


@contextlib.contextmanager
def _dropped(server: PostgresServer, name: str) -> Iterator[None]:
    try:
        yield
    finally:
        with server.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


# --- names


def _names(sentinel: Path) -> dict[str, str]:
    touch = f"touch '{sentinel}'"
    return {
        "a line break": "line\nbreak",
        "a carriage return": "x\rPWN",
        "both and a comment": "x\r\n-- \n\\! id",
        "psql's shell": f"x\n\\! {touch[:40]}\n",
        "a command substitution": f"$({touch[:50]})",
        "backquotes": f"`{touch[:50]}`",
        "a pipe": f"x|{touch[:50]};#",
        "quotes": "a\"b''c\"\"d'",
        "backslashes": "\\\\'\\\"\\",
        "a dollar quote": "$$;$x$",
        "an escape sequence": "\x1bPWN]0;x\x07PWN",
        "C1 controls": "\x9bPWN\x85PWN",
        "backspaces": "x\x08PWN\x7fPWN",
        "a line turned round": "\u202ePWNtxt.exe\u2028PWN",
        "markup": "[/red][bold]x[link=file:///]",
        "percent signs": "%s%n%d%%(x)s%",
        "braces": "{0.__class__}{}{x!r}",
        "63 bytes": "x" * 63,
        "63 bytes of three each": "表" * 21,
        "a path": "../../../etc/passwd",
        "an option": "--help",
        "a connection string": "host=evil dbname=x",
        "a URI": "postgresql://evil/x?sslmode=off",
        "a pattern": "*.*?[a-z]",
        "a space": " ",
        "a dot": ".",
        "a comma": "a,b",
        "an at sign": "a@latest",
        "a tab": "\t",
        "emoji": "🐘\u200d💾",
    }


def _fill_named(name: str, server: PostgresServer, database: str, chance: random.Random) -> None:
    """Everything that has a name has that one; its owner, too."""
    role = sql.Identifier(f"{name[:30]}")
    with server.connect() as connection:
        found = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [name[:30]]).fetchone()
        if found is None:
            connection.execute(sql.SQL("CREATE ROLE {}").format(role))
    one = sql.Identifier(name)
    statements = (
        "CREATE SCHEMA {0}",
        "CREATE SCHEMA types",
        "CREATE TYPE types.{0} AS ENUM ({1})",
        "CREATE TABLE {0}.{0} ({0} types.{0} DEFAULT {1}, t text DEFAULT {1}, CONSTRAINT c UNIQUE ({0}))",
        "INSERT INTO {0}.{0} VALUES ({1}, {1})",
        "CREATE TABLE {0}.parent (n int, t text) PARTITION BY LIST (n)",
        "CREATE TABLE {0}.child PARTITION OF {0}.parent FOR VALUES IN (1)",
        "INSERT INTO {0}.parent VALUES (1, {1})",
        "CREATE SEQUENCE {0}.s",
        "SELECT setval(format('%I.s', {1})::regclass, 7)",
        "CREATE FUNCTION {0}.{0}() RETURNS text LANGUAGE sql AS 'SELECT 1::text'",
        "CREATE VIEW {0}.v AS SELECT t AS {0} FROM {0}.{0}",
        "CREATE MATERIALIZED VIEW {0}.m AS SELECT t AS {0} FROM {0}.{0}",
        "CREATE POLICY {0} ON {0}.parent TO {2} USING (t = {1})",
        "COMMENT ON TABLE {0}.{0} IS {1}",
        "COMMENT ON DATABASE {3} IS {1}",
        "SELECT lo_from_bytea(17000, convert_to({1}, 'UTF8'))",
        "COMMENT ON LARGE OBJECT 17000 IS {1}",
        "ALTER TABLE {0}.{0} OWNER TO {2}",
        "GRANT SELECT ON {0}.parent TO {2}",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA {0} GRANT SELECT ON TABLES TO {2}",
        "ALTER ROLE {2} IN DATABASE {3} SET application_name TO {1}",
        "ALTER DATABASE {3} SET search_path TO {0}, public",
    )
    with server.connect(database) as connection:
        for statement in statements:
            parts = (one, sql.Literal(name), role, sql.Identifier(database))
            connection.execute(sql.SQL(statement).format(*parts))


# --- encodings


_IN_C = "ENCODING '{}' LC_COLLATE 'C' LC_CTYPE 'C'"


def _fill_encoded(encoding: str, server: PostgresServer, database: str, chance: random.Random) -> None:
    """Names and rows of characters that only that encoding's codec knows."""
    codec = toc._CODECS.get(encoding, "utf-8")
    known: list[str] = []
    while len(known) < 8:
        character = chr(chance.randrange(0xA1, 0xFFFF))
        with contextlib.suppress(UnicodeError):
            if character.isprintable() and character.encode(codec).decode(codec) == character:
                known.append(character)
    with server.connect(database, client_encoding="UTF8") as connection:
        for each in itertools.islice(known, 8):
            name = sql.Identifier(each)
            try:
                connection.execute(sql.SQL("CREATE TABLE {0} ({0} text)").format(name))
                connection.execute(
                    sql.SQL("INSERT INTO {0} VALUES ({1})").format(name, sql.Literal(f"{each}\\N\t{each}"))
                )
            except (psycopg.errors.UntranslatableCharacter, psycopg.errors.DuplicateTable):
                continue  # the server's table of the encoding is not Python's, to a few characters
            try:
                connection.execute("SELECT relname FROM pg_class").fetchall()
            except psycopg.errors.UntranslatableCharacter:  # it goes in and does not come out: such a backup is refused
                connection.execute(sql.SQL("DROP TABLE {}").format(name))
        connection.execute("CREATE TABLE plain AS SELECT 1 AS n")


# --- code that waits


_WAITING = """
CREATE SCHEMA waiting;
CREATE FUNCTION waiting.wait(what text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF pg_catalog.current_setting('application_name') LIKE 'backupd%'
        AND pg_catalog.current_database() = '{source}' THEN
        RAISE EXCEPTION 'a trap was sprung: % ran as %', what, current_user;
    END IF;
    RETURN true;
END $$;
CREATE FUNCTION waiting.trigger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM waiting.wait('trigger');
    RETURN NEW;
END $$;
CREATE FUNCTION waiting.number(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    PERFORM waiting.wait('number');
    RETURN n;
END $$;
CREATE FUNCTION waiting.less(a int, b bigint) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN waiting.wait('operator') AND a < b;
END $$;
CREATE DOMAIN waiting.domain AS int CHECK (waiting.wait('domain'));
CREATE TABLE waiting.t (
    n int DEFAULT waiting.number(1) CHECK (waiting.wait('check')),
    g int GENERATED ALWAYS AS (waiting.number(n)) STORED,
    d waiting.domain DEFAULT waiting.number(2),
    EXCLUDE USING btree (waiting.number(n) WITH =)
);
CREATE INDEX ON waiting.t ((waiting.number(n))) WHERE waiting.wait('index');
CREATE STATISTICS waiting.s ON (waiting.number(n)), g FROM waiting.t;
CREATE TRIGGER t BEFORE INSERT OR UPDATE ON waiting.t FOR EACH ROW EXECUTE FUNCTION waiting.trigger();
ALTER TABLE waiting.t ENABLE ALWAYS TRIGGER t;
INSERT INTO waiting.t SELECT n FROM generate_series(1, 20) n;
CREATE TABLE waiting.secured (n int);
INSERT INTO waiting.secured VALUES (1);
ALTER TABLE waiting.secured ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY p ON waiting.secured USING (waiting.wait('policy'));
CREATE VIEW waiting.v AS SELECT n FROM waiting.t WHERE waiting.wait('view');
CREATE RULE r AS ON INSERT TO waiting.secured DO ALSO SELECT waiting.wait('rule');
CREATE TABLE waiting.parted (n int) PARTITION BY RANGE (waiting.number(n));
CREATE TABLE waiting.part PARTITION OF waiting.parted FOR VALUES FROM (1) TO (100);
INSERT INTO waiting.parted VALUES (5);
CREATE OPERATOR public.< (FUNCTION = waiting.less, LEFTARG = int, RIGHTARG = bigint);
CREATE CAST (waiting.t AS text) WITH INOUT AS IMPLICIT;
CREATE AGGREGATE public.count(*) (SFUNC = int8inc, STYPE = int8, INITCOND = '7');
CREATE FUNCTION public.count(int) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
    PERFORM waiting.wait('count');
    RETURN 1;
END $$;
"""

_EVENTS = """
CREATE FUNCTION waiting.event() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM waiting.wait('event trigger');
END $$;
CREATE EVENT TRIGGER e ON ddl_command_start EXECUTE FUNCTION waiting.event();
ALTER EVENT TRIGGER e ENABLE ALWAYS;
"""


def _fill_waiting(events: str, server: PostgresServer, database: str, chance: random.Random) -> None:
    with server.connect(database) as connection:
        connection.execute(_WAITING.replace("{source}", database).encode())
        connection.execute(events.encode())


def _fill_trapped(server: PostgresServer, database: str, chance: random.Random) -> None:
    owner = f"owner_{database}"
    with server.connect() as connection:
        connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(owner)))
    with server.connect(database) as connection:
        fill_traps(connection, owner)


# --- settings that change what a query means


_SETTINGS = (
    *("DateStyle = 'German'", "IntervalStyle = 'sql_standard'", "bytea_output = 'escape'", "extra_float_digits = -15"),
    *("standard_conforming_strings = off", "backslash_quote = on", "escape_string_warning = on", "array_nulls = off"),
    *(
        "transform_null_equals = on",
        "quote_all_identifiers = on",
        "client_encoding = 'LATIN1'",
        "TimeZone = 'Asia/Kathmandu'",
    ),
    *("default_transaction_isolation = 'serializable'", "default_transaction_deferrable = on", "row_security = off"),
    *("lock_timeout = '250ms'", "statement_timeout = '1ms'", "idle_in_transaction_session_timeout = '250ms'"),
    *(
        "idle_session_timeout = '250ms'",
        "client_min_messages = 'debug5'",
        "work_mem = '64kB'",
        "xmloption = 'document'",
    ),
    *(
        "enable_seqscan = off",
        "session_replication_role = 'replica'",
        "check_function_bodies = on",
        "lc_messages = 'C'",
    ),
    *("search_path = ''", "search_path = 'pg_temp, public, pg_catalog'", "lo_compat_privileges = on", "jit = on"),
    *(
        "debug_print_plan = on",
        "restrict_nonsystem_relation_kind = 'view,foreign-table'",
        "default_toast_compression = 'pglz'",
    ),
)


def _fill_set(setting: str, server: PostgresServer, database: str, chance: random.Random) -> None:
    with server.connect(database) as connection:
        connection.execute(
            "CREATE TABLE kinds AS SELECT now() AS at, interval '1 day -2 hours' AS span, '\\xff00'::bytea AS raw,"
            " 0.1::float8 + n AS real, ARRAY[1, NULL] AS list, 'pg_' || n AS t FROM generate_series(1, 30) n"
        )
        connection.execute("CREATE SCHEMA pgapp")
        connection.execute("CREATE TABLE pgapp.pgtable AS SELECT n FROM generate_series(1, 10) n")
        connection.execute("SELECT lo_from_bytea(17000, 'one')")
        try:
            statement = sql.SQL("ALTER DATABASE {} SET " + setting)
            connection.execute(statement.format(sql.Identifier(database)))
        except psycopg.errors.UndefinedObject:
            return  # that minor has no such setting


# --- all of them


def _kinds(sentinel: Path) -> Iterator[Kind]:
    for what, name in _names(sentinel).items():
        yield Kind(f"objects named by {what}", partial(_fill_named, name))
        if 0 < len(name.encode()) <= 63:
            yield Kind(f"a database named by {what}", partial(_fill_named, "plain"), name)
    for encoding in toc._CODECS:
        if encoding not in ("SJIS", "SHIFT_JIS_2004", "BIG5", "GBK", "GB18030", "UHC", "JOHAB"):  # of clients only
            yield Kind(f"encoding {encoding}", partial(_fill_encoded, encoding), options=_IN_C.format(encoding))
    for setting in _SETTINGS:
        yield Kind(f"with {setting}", partial(_fill_set, setting))
    for major in MAJORS:
        yield Kind("all of pg_catalog shadowed", _fill_trapped, majors=(major,))
        yield Kind("functions that wait", partial(_fill_waiting, ""), majors=(major,))
        yield Kind("event triggers that wait", partial(_fill_waiting, _EVENTS), majors=(major,))


def _by_chance(chance: random.Random, sentinel: Path) -> Iterator[Kind]:
    """Names put together of the pieces of others."""
    pieces: list[Any] = [*_names(sentinel).values(), *(chr(number) for number in range(1, 128)), PLANTED]
    for number in itertools.count():
        name = "".join(chance.choice(pieces)[: chance.randrange(1, 12)] for _ in range(chance.randrange(1, 9)))
        name = name.replace("\0", "").encode()[:63].decode(errors="ignore") or "x"
        yield Kind(f"objects named by chance {number}", partial(_fill_named, name))
        yield Kind(f"a database named by chance {number}", partial(_fill_named, "plain"), name)
