"""toc.dat: real dumps of three majors are read to the last byte, damaged ones are refused."""

import re
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_postgres import DatabaseFactory, PostgresServer
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql
from shop import HOSTILE_SCHEMA, HOSTILE_SEQUENCE, HOSTILE_TABLE, OWNER, READER, count_rows, fill_shop

from backupd import toc
from backupd.errors import VerificationFailed, VersionMismatch

LARGE_OBJECTS = 1003
"""More than one group of them, which is 1000."""


@dataclass(frozen=True)
class Dump:
    """A directory dump of the shop, and the database that it is of."""

    server: PostgresServer
    dbname: str
    folder: Path

    @property
    def data(self) -> bytes:
        return (self.folder / "toc.dat").read_bytes()

    @property
    def toc(self) -> toc.Toc:
        return toc.read_toc(self.data)

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with self.server.connect(self.dbname) as connection:
            return connection.execute(statement.encode()).fetchall()


def pg_dump(server: PostgresServer, dbname: str, folder: Path, *options: str) -> Path:
    argv = [str(server.bin_directory / "pg_dump"), "-Fd", "--no-sync", "-h", server.host, "-p", str(server.port)]
    subprocess.run([*argv, "-U", server.user, "-f", str(folder), *options, dbname], check=True)
    return folder


def pg_restore_list(server: PostgresServer, folder: Path) -> str:
    argv = [str(server.bin_directory / "pg_restore"), "--list", str(folder)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("postgres15", "-Z1"), marks=pytest.mark.slow),
        ("postgres17", "--compress=zstd:1"),
        pytest.param(("postgres18", "--compress=gzip:1"), marks=pytest.mark.slow),
    ],
    ids=lambda param: str(param[0]),
)
def dump(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dump]:
    name, compression = request.param
    server: PostgresServer = request.getfixturevalue(name)
    with server.connect() as connection:
        connection.execute("CREATE DATABASE toc_shop TEMPLATE template0")
    with server.connect("toc_shop") as connection:
        fill_shop(connection, rows=50, large_objects=LARGE_OBJECTS)
    folder = pg_dump(server, "toc_shop", tmp_path_factory.mktemp("toc") / "dump", compression)
    yield Dump(server, "toc_shop", folder)
    with server.connect() as connection:
        connection.execute("DROP DATABASE toc_shop WITH (FORCE)")


def test_every_entry_is_read_to_the_last_byte(dump: Dump) -> None:
    listed = pg_restore_list(dump.server, dump.folder)
    found = re.search(r"TOC Entries: ([0-9]+)", listed)
    assert found is not None
    assert len(dump.toc.entries) == int(found[1])


def test_ids_descriptions_and_owners_are_what_pg_restore_lists(dump: Dump) -> None:
    lines = re.findall(r"^([0-9]+); ([0-9]+) ([0-9]+) (.*)$", pg_restore_list(dump.server, dump.folder), re.MULTILINE)
    by_id = {entry.dump_id: entry for entry in dump.toc.entries}
    assert len(lines) > 90
    for dump_id, _, oid, text in lines:
        entry = by_id[int(dump_id)]
        assert entry.oid == int(oid)
        shown = (entry.desc, entry.namespace or "-", entry.tag, entry.owner)
        assert text == " ".join(shown).replace("\n", " ")


def test_every_file_is_named_by_exactly_one_entry_or_list_of_large_objects(dump: Dump) -> None:
    entries = [entry.filename for entry in dump.toc.entries if entry.filename]
    lists = [toc.read_blobs_toc(path.read_bytes()) for path in dump.folder.glob("blobs*.toc")]
    named = ["toc.dat", *entries, *(name for files in lists for name in files)]
    there = [re.sub(r"\.(gz|zst|lz4)$", "", path.name) for path in dump.folder.iterdir()]
    assert sorted(named) == sorted(there)
    assert len(named) > LARGE_OBJECTS + 10


def test_tables_come_with_their_own_oid(dump: Dump) -> None:
    tables = {(table.schema, table.name): table.oid for table in toc.table_data(dump.toc)}
    with dump.server.connect(dump.dbname) as connection:
        counted = count_rows(connection)
    rows = dump.query("SELECT nspname, relname, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace")
    oids = {(schema, name): oid for schema, name, oid in rows}
    assert tables == {key: oids[key] for key in counted}
    assert (HOSTILE_SCHEMA, HOSTILE_TABLE) in tables


def test_copy_statements_run_backwards_and_give_every_row(dump: Dump) -> None:
    tables = [table for table in toc.table_data(dump.toc) if not table.via_root]
    with dump.server.connect(dump.dbname) as connection:
        counted = count_rows(connection)
        for table in tables:
            statement = table.copy_statement.replace(" FROM stdin;", " TO STDOUT;").encode()
            with connection.cursor().copy(statement) as copy:
                lines = b"".join(bytes(chunk) for chunk in copy).count(b"\n")
            assert lines == counted[table.schema, table.name], table.name
    assert len(tables) > 10


def test_only_leaves_of_a_hash_of_an_enum_are_loaded_via_the_root(dump: Dump) -> None:
    via_root = {table.name: table.copy_statement for table in toc.table_data(dump.toc) if table.via_root}
    root = "COPY shop.events (status, payload) FROM stdin;\n"
    assert via_root == {"events_0": root, "events_1": root}


def test_sequences_have_the_values_of_the_server(dump: Dump) -> None:
    with dump.server.connect(dump.dbname) as connection:
        for sequence in toc.sequences(dump.toc):
            name = sql.Identifier(sequence.schema, sequence.name)
            row = connection.execute(sql.SQL("SELECT last_value, is_called FROM {}").format(name)).fetchone()
            assert row == (sequence.last_value, sequence.is_called)
    names = [sequence.name for sequence in toc.sequences(dump.toc)]
    assert sorted(names) == [
        row[0] for row in dump.query("SELECT relname FROM pg_class WHERE relkind = 'S' ORDER BY 1")
    ]
    assert HOSTILE_SEQUENCE in names


def test_large_objects_are_those_of_the_server_and_of_the_lists(dump: Dump) -> None:
    oids = sorted(toc.large_objects(dump.toc))
    lists = [toc.read_blobs_toc(path.read_bytes()) for path in dump.folder.glob("blobs*.toc")]
    assert oids == [row[0] for row in dump.query("SELECT oid FROM pg_largeobject_metadata ORDER BY 1")]
    assert oids == sorted(oid for files in lists for oid in files.values())
    assert len(oids) == LARGE_OBJECTS


def test_roles_and_extensions_are_named(dump: Dump) -> None:
    assert toc.roles(dump.toc) == (dump.server.user, OWNER, READER)
    assert toc.extensions(dump.toc) == ("hstore",)


def test_hostile_names_come_out_exactly(postgres17: PostgresServer, database: DatabaseFactory, tmp_path: Path) -> None:
    names = ['"', "'", "\\", "a\nb\r\n\tc", "TO evil;", "ü 🐘", "%s {} $1", '""', "..", "x" * 63]
    roles = ['a"b, c', "TO \"public\", 'x'", "role", "Über"]
    dbname = database(postgres17)
    with postgres17.connect(dbname) as connection:
        for name in names:
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
            connection.execute(sql.SQL("CREATE TABLE {} ()").format(sql.Identifier(name, name)))
        connection.execute("CREATE TABLE granted (role int); ALTER TABLE granted ENABLE ROW LEVEL SECURITY")
        with grants(connection, roles):
            folder = pg_dump(postgres17, dbname, tmp_path / "dump")
    contents = toc.read_toc((folder / "toc.dat").read_bytes())
    tables = [(table.schema, table.name) for table in toc.table_data(contents)]
    assert sorted(tables) == sorted([*((name, name) for name in names), ("public", "granted")])
    assert toc.roles(contents) == tuple(sorted([*roles, postgres17.user]))


class grants:  # noqa: N801 - reads like a function
    """Roles that hold a privilege, a default privilege and a policy; gone afterwards."""

    def __init__(self, connection: psycopg.Connection[Any], roles: list[str]) -> None:
        self.connection = connection
        self.roles = [sql.Identifier(role) for role in roles]

    def __enter__(self) -> None:
        for role in self.roles:
            self.connection.execute(sql.SQL("CREATE ROLE {}").format(role))
        first, second, third, last = self.roles
        for statement in (
            sql.SQL("GRANT SELECT (role), UPDATE (role) ON granted TO {} WITH GRANT OPTION").format(first),
            sql.SQL("ALTER DEFAULT PRIVILEGES FOR ROLE {} GRANT SELECT ON TABLES TO PUBLIC").format(second),
            sql.SQL("CREATE POLICY p ON granted TO {}, {} USING (extract(day FROM now()) > 0)").format(third, last),
        ):
            self.connection.execute(statement)

    def __exit__(self, *_: object) -> None:
        self.connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.SQL(", ").join(self.roles)))
        for role in self.roles:
            self.connection.execute(sql.SQL("DROP ROLE {}").format(role))


def test_names_are_decoded_as_the_dump_says(
    postgres17: PostgresServer, database: DatabaseFactory, tmp_path: Path
) -> None:
    dbname = database(postgres17, "données", "ENCODING 'LATIN1' LOCALE 'C'")
    with postgres17.connect(dbname) as connection:
        connection.execute('CREATE TABLE "été" (id int)')
    data = (pg_dump(postgres17, dbname, tmp_path / "dump") / "toc.dat").read_bytes()
    assert "été".encode("latin-1") in data
    assert [table.name for table in toc.table_data(toc.read_toc(data))] == ["été"]


# Damage


@pytest.fixture(scope="module")
def small(postgres17: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The toc.dat of a small part of a dump: every kind of entry that is read closely, in a few kilobytes."""
    with postgres17.connect() as connection:
        connection.execute("CREATE DATABASE toc_small TEMPLATE template0")
    with postgres17.connect("toc_small") as connection:
        connection.execute(
            "CREATE TABLE t (id serial PRIMARY KEY); CREATE TABLE u (a text); GRANT SELECT ON t TO PUBLIC"
        )
        connection.execute("SELECT lo_create(100000), lo_create(100001)")
    folder = pg_dump(postgres17, "toc_small", tmp_path_factory.mktemp("toc") / "small")
    with postgres17.connect() as connection:
        connection.execute("DROP DATABASE toc_small WITH (FORCE)")
    return (folder / "toc.dat").read_bytes()


def read_everything(data: bytes) -> toc.Toc | None:
    """Everything that can be read from a toc.dat, or None where it was refused; any other exception is a failure."""
    try:
        contents = toc.read_toc(data)
        for reader in (toc.table_data, toc.sequences, toc.large_objects, toc.extensions, toc.roles):
            reader(contents)
    except (VerificationFailed, VersionMismatch):
        return None
    return contents


def test_a_toc_cut_anywhere_is_refused(small: bytes) -> None:
    assert read_everything(small) is not None
    for length in range(len(small)):
        assert read_everything(small[:length]) is None, length


def test_a_toc_with_more_behind_it_is_refused(small: bytes) -> None:
    with pytest.raises(VerificationFailed, match="damaged"):
        toc.read_toc(small + b"\0")


@settings(max_examples=400, deadline=2000)
@given(flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bits_are_refused_or_read_but_never_crash(small: bytes, flips: list[tuple[int, int]]) -> None:
    data = bytearray(small)
    for position, mask in flips:
        data[position % len(data)] ^= mask
    contents = read_everything(bytes(data))
    assert contents is None or isinstance(contents, toc.Toc)


@settings(max_examples=200, deadline=2000)
@given(start=st.integers(0, 1 << 20), length=st.integers(0, 50), junk=st.binary(max_size=50))
def test_a_piece_replaced_is_refused_or_read_but_never_crashes(
    small: bytes, start: int, length: int, junk: bytes
) -> None:
    start %= len(small)
    contents = read_everything(small[:start] + junk + small[start + length :])
    assert contents is None or isinstance(contents, toc.Toc)


@settings(max_examples=200, deadline=2000)
@given(junk=st.binary(max_size=200))
def test_a_header_with_anything_behind_it_never_crashes(junk: bytes) -> None:
    contents = read_everything(b"PGDMP\x01\x10\x00\x04\x08\x03" + junk)
    assert contents is None or isinstance(contents, toc.Toc)


def header(count: int) -> bytes:
    """A header for that many entries."""
    text = struct.pack("<BI", 0, 1) + b"x"
    times = 7 * struct.pack("<BI", 0, 0)
    return b"PGDMP\x01\x10\x00\x04\x08\x03\x00" + times + 3 * text + struct.pack("<BI", count < 0, abs(count))


def test_counts_and_lengths_beyond_the_file_are_refused() -> None:
    assert toc.read_toc(header(0)).entries == ()
    for data in (header(1 << 31), header(1), header(-1), header(0)[:47] + b"\0\xff\xff\xff\x7f"):
        with pytest.raises(VerificationFailed):
            toc.read_toc(data)


@pytest.mark.parametrize("name", [b"../../../a", b"/a.dat", b"a.dat", b"toc.dat", b"9\n.dat", b"99.dat/x", b"99.datx"])
def test_a_file_name_that_pg_dump_would_not_write_is_refused(small: bytes, name: bytes) -> None:
    own = small[small.rindex(b".dat") - 4 : small.rindex(b".dat") + 4]
    field = struct.pack("<BI", 0, len(own)) + own
    assert small.count(field) == 1
    with pytest.raises(VerificationFailed):
        toc.read_toc(small.replace(field, struct.pack("<BI", 0, len(name)) + name))


def test_a_zero_byte_in_a_name_is_refused_since_pg_restore_would_see_another_name(small: bytes) -> None:
    with pytest.raises(VerificationFailed):
        toc.read_toc(small.replace(b"t_id_seq", b"t_id\0seq"))


def test_two_entries_with_one_file_are_refused(small: bytes) -> None:
    first, second = (entry.filename.encode() for entry in toc.read_toc(small).entries if entry.desc == "TABLE DATA")
    with pytest.raises(VerificationFailed, match="twice"):
        toc.read_toc(small.replace(second, first))


def test_a_custom_format_archive_is_refused(small: bytes) -> None:
    with pytest.raises(VerificationFailed):
        toc.read_toc(small[:10] + b"\1" + small[11:])


def test_a_newer_archive_version_asks_for_a_newer_backupd(small: bytes) -> None:
    with pytest.raises(VersionMismatch, match=r"1\.17"):
        toc.read_toc(small[:6] + b"\x11" + small[7:])


def test_an_unreadable_sequence_value_is_refused(small: bytes) -> None:
    contents = toc.read_toc(small)
    for definition in (
        "",
        "SELECT pg_catalog.setval('t', 1);",
        "SELECT pg_catalog.setval('t', 1, true); DROP TABLE t;",
    ):
        changed = tuple(
            replace(entry, definition=definition) if entry.desc == "SEQUENCE SET" else entry
            for entry in contents.entries
        )
        with pytest.raises(VerificationFailed, match=r"public\.t_id_seq"):
            toc.sequences(replace(contents, entries=changed))


@pytest.mark.parametrize(
    "data",
    [
        b"1 blob_1.dat",  # cut
        b"1 blob_1.dat\n2 blob_",
        b"1 blob_2.dat\n",
        b"1 ../../x\n",
        b"1 blob_1.dat\n1 blob_1.dat\n",
        b"x\n",
        b"1 blob_1.dat\r\n",
        b"1 blob_1.dat\n\n",
        b"\xff\xfe\0 blob_",
    ],
)
def test_a_damaged_list_of_large_objects_is_refused(data: bytes) -> None:
    with pytest.raises(VerificationFailed):
        toc.read_blobs_toc(data)


def test_a_list_of_large_objects_is_read() -> None:
    assert toc.read_blobs_toc(b"7 blob_7.dat\n4294967295 blob_4294967295.dat\n") == {
        "blob_7.dat": 7,
        "blob_4294967295.dat": 4294967295,
    }
    assert toc.read_blobs_toc(b"") == {}
