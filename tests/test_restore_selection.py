"""Parts of a backup: every table by itself comes back whole, with nothing read but what it needs.

Against the source: rows by COPY of both sides, definitions by pg_dump --schema-only of both sides. What lacks in the
restored one must have been named as left out.
"""

import json
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator

import psycopg
import pytest
from estate import fill_estate
from fix_postgres import DatabaseFactory, PostgresServer
from fix_restore import (
    InS3,
    NewName,
    RestoreClients,
    Stocked,
    client_of,
    contents,
    definitions,
    exists,
    flip,
    restore_to,
    state,
)
from fix_tools import Site, _once
from shop import HOSTILE_SCHEMA, HOSTILE_TABLE

from backupd import toc
from backupd.errors import RestoreFailed, TargetRefused, VerificationFailed
from backupd.layout import archive_key
from backupd.manifest import Backup
from backupd.restore import Restored
from backupd.selection import Wanted
from backupd.selector import name_of
from backupd.table_pattern import spelled

pytestmark = pytest.mark.slow

MakeSite = Callable[..., Site]
NewRole = Callable[..., str]
Name = tuple[str, str]
RELATIONS = ("TABLE", "FOREIGN TABLE", "VIEW", "MATERIALIZED VIEW", "SEQUENCE")


@pytest.fixture(scope="session")
def estate_of() -> Callable[[PostgresServer], str]:
    """The name of a filled estate on that server, filled when it is first asked for."""
    return _once(fill_estate)


def entries(here: Site, backup: Backup) -> tuple[toc.Entry, ...]:
    """The dump's table of contents."""
    member = next(each for each in here.index(backup).members if each.name == "toc.dat")
    with here.catalog.store.open(archive_key(name_of(backup)), member.offset, member.size_bytes) as stream:
        return toc.read_toc(stream.read()).entries


def names(here: Site, backup: Backup) -> list[Name]:
    """Every relation that the dump creates."""
    return [(each.namespace, each.tag) for each in entries(here, backup) if each.desc in RELATIONS]


def statements(server: PostgresServer, database: str, tables: Iterable[Name]) -> set[str]:
    """What pg_dump writes of these tables: whole statements, their comments and the tables' order apart."""
    argv = [str(server.bin_directory / "pg_dump"), "--schema-only", "--format=plain", "--quote-all-identifiers"]
    argv += [f"--table={'.'.join(quoted(part) for part in table)}" for table in tables]
    target = psycopg.conninfo.make_conninfo(host=server.host, port=server.port, user=server.user, dbname=database)
    finished = subprocess.run([*argv, f"--dbname={target}"], capture_output=True, check=True)
    text = re.sub(r"(?m)^(\\(un)?restrict .*|--.*)$", "", finished.stdout.decode())
    # said where a parent has a default, and a parent may come for its definition only
    text = re.sub(r" DEFAULT NULL( NOT NULL)?(,?)\n", r"\1\2\n", text)
    return {_sorted_lines(each) for each in re.split(r";\n", text) if each.strip()}


def _sorted_lines(statement: str) -> str:
    """A child's inherited columns come first after pg_dump."""
    return "\n".join(sorted(line.strip().rstrip(",") for line in statement.splitlines() if line.strip()))


def quoted(name: str) -> str:
    return f'"{name.replace(chr(34), chr(34) * 2)}"'


def chosen_tables(server: PostgresServer, database: str, wanted: Iterable[Name]) -> list[Name]:
    """The wanted relations and their partitions, as the source's server knows them; whole trees of enum hashes."""
    query = (
        "SELECT n.nspname, c.relname FROM pg_class w JOIN pg_namespace wn ON wn.oid = w.relnamespace"
        " CROSS JOIN LATERAL (SELECT relid FROM pg_partition_tree(CASE WHEN w.relname ~ '^(painted|events)_[01]$'"
        " THEN pg_partition_root(w.oid) ELSE w.oid END) UNION SELECT w.oid) t"
        " JOIN pg_class c ON c.oid = t.relid JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE wn.nspname = %s AND w.relname = %s"
    )
    with server.connect(database) as connection:
        return sorted({row for name in wanted for row in connection.execute(query, name).fetchall()})


def assert_whole(
    server: PostgresServer, source: str, wanted: Iterable[Name], restored: Restored, expected: dict[str, list[bytes]]
) -> None:
    """The wanted are in the target as they are in the source, but for what was named as left out."""
    target, tables = restored.database, chosen_tables(server, source, wanted)
    before, after = statements(server, source, tables), statements(server, target, tables)
    reasons = {each.name.partition(" ")[0] for each in restored.left_out}
    allowed = {
        "foreign": r"(?s)(ADD|ALTER TABLE .*ADD) CONSTRAINT .* FOREIGN KEY|COMMENT ON CONSTRAINT",
        "attachment": r"ALTER (INDEX|TABLE ONLY) .* ATTACH PARTITION",
        "state": r"ALTER TABLE .* (DISABLE|ENABLE|ENABLE ALWAYS|ENABLE REPLICA) TRIGGER",
    }
    assert after <= before, after - before
    for lacking in before - after:
        assert any(word in reasons and re.match(pattern, lacking) for word, pattern in allowed.items()), lacking
    found = contents(server, target)
    plain = {f"{ident(schema)}.{ident(name)}" for schema, name in tables}
    for name in found.keys() & plain:
        leaf = name not in expected  # of a hash, which `contents` shows at its root
        assert found[name] == (copied(server, source, name) if leaf else expected[name]), name
    assert expected.keys() & plain <= found.keys()
    assert not any(found[name] for name in found.keys() - plain)  # what came for its definition only


def copied(server: PostgresServer, database: str, table: str) -> list[bytes]:
    """The rows of one table, sorted."""
    statement = f"COPY {table} TO STDOUT".encode()
    with server.connect(database) as connection, connection.cursor() as cursor, cursor.copy(statement) as copy:
        return sorted(b"".join(bytes(chunk) for chunk in copy).splitlines())


def ident(name: str) -> str:
    """As quote_ident, for the names here."""
    return name if re.fullmatch("[a-z_][a-z0-9_]*", name) and name != "both" else quoted(name)


def each_by_itself(
    here: Site, backup: Backup, server: PostgresServer, new_name: NewName, sets: Iterable[tuple[Name, ...]]
) -> int:
    source, count = backup.source.database, 0
    expected = contents(server, source)
    for wanted in sets:
        name = new_name(server)
        restored = restore_to(here, backup, name, wanted=Wanted(tuple(spelled(*each) for each in wanted)))
        assert_whole(server, source, wanted, restored, expected)
        with server.connect() as connection:
            connection.execute(f"DROP DATABASE {name}".encode())
        count += 1
    return count


def test_every_table_of_the_shop_comes_back_by_itself(
    any_postgres: PostgresServer, stocked: Stocked, new_name: NewName
) -> None:
    here, backup = stocked(any_postgres)
    sets = [(name,) for name in names(here, backup)]
    assert each_by_itself(here, backup, any_postgres, new_name, sets) == 24
    here.assert_untouched()


def test_every_table_of_the_estate_comes_back_by_itself(
    any_postgres: PostgresServer, stocked: Stocked, estate_of: Callable[[PostgresServer], str], new_name: NewName
) -> None:
    here, backup = stocked(any_postgres, estate_of(any_postgres))
    sets = [(name,) for name in names(here, backup)]
    assert each_by_itself(here, backup, any_postgres, new_name, sets) == 57


def test_tables_that_are_tied_to_each_other_come_back_in_pairs(
    any_postgres: PostgresServer, stocked: Stocked, estate_of: Callable[[PostgresServer], str], new_name: NewName
) -> None:
    here, backup = stocked(any_postgres, estate_of(any_postgres))
    sets = list(pairs(entries(here, backup)))
    assert each_by_itself(here, backup, any_postgres, new_name, sets) > 25


def pairs(contents: tuple[toc.Entry, ...]) -> Iterator[tuple[Name, ...]]:
    """Two relations each that an entry names together."""
    by_id = {each.dump_id: each for each in contents}
    found = set()
    for each in contents:
        tables = {by_id[other] for other in each.dependencies if other in by_id and by_id[other].desc in RELATIONS}
        if each.desc in RELATIONS:
            tables.add(each)
        ordered = sorted((table.namespace, table.tag) for table in tables)
        found |= {(one, two) for one in ordered for two in ordered if one < two}
    yield from sorted(found)


# --- what is read


def test_only_the_index_the_contents_and_the_table_are_read_from_s3(
    postgres17: PostgresServer, database: DatabaseFactory, in_s3: InS3, new_name: NewName
) -> None:
    source = database(postgres17)
    with postgres17.connect(source) as connection:
        for name, rows in (("small", 2_000), ("large", 60_000), ("last", 20_000)):
            connection.execute(
                f"CREATE TABLE {name} AS SELECT n, md5(n::text) || md5((-n)::text) AS x"
                f" FROM generate_series(1, {rows}) n".encode()
            )
    here, backup, proxy = in_s3(postgres17, source)
    before = proxy.sent_bytes
    restored = restore_to(here, backup, new_name(postgres17), wanted=Wanted(("public.small",)))

    sizes = {member.name: member.size_bytes for member in here.index(backup).members}
    table = next(table for table in here.index(backup).contract.tables if table.name == "small")
    needed = backup.manifest.index_bytes + sizes["toc.dat"] + sizes[table.member]
    assert restored.read_bytes == needed
    assert backup.manifest.archive_bytes > 20 * needed
    assert needed < proxy.sent_bytes - before < needed + 8_000  # and headers
    assert [item.name for item in restored.comparisons][:1] == ["public.small"]


def test_damage_elsewhere_in_the_archive_does_not_keep_a_table_from_coming_back(
    postgres17: PostgresServer, stocked: Stocked, new_name: NewName
) -> None:
    here, backup = stocked(postgres17)
    index = here.index(backup)
    offsets = {member.name: member.offset for member in index.members}
    members = {table.name: table.member for table in index.contract.tables}
    flip(here, backup, offsets[members["documents"]] + 20)
    name, other = new_name(postgres17), new_name(postgres17)

    restore_to(here, backup, name, wanted=Wanted(("shop.products",)))
    assert contents(postgres17, name)["shop.products"] == contents(postgres17, backup.source.database)["shop.products"]
    with pytest.raises(VerificationFailed, match="is damaged"):
        restore_to(here, backup, other, wanted=Wanted(("shop.documents",)))
    assert not exists(postgres17, other)


def test_a_damaged_table_of_contents_is_found_before_anything_is_made(
    postgres17: PostgresServer, stocked: Stocked, new_name: NewName
) -> None:
    here, backup = stocked(postgres17)
    contents_member = next(member for member in here.index(backup).members if member.name == "toc.dat")
    flip(here, backup, contents_member.offset + 500)
    name = new_name(postgres17)
    with pytest.raises(VerificationFailed, match=r"member toc\.dat .* is damaged"):
        restore_to(here, backup, name, wanted=Wanted(("shop.products",)))
    assert not exists(postgres17, name)


# --- what is compared, refused and left behind


def test_a_part_that_lost_rows_is_found_and_dropped(
    postgres17: PostgresServer, stocked: Stocked, new_name: NewName, restore_clients: RestoreClients
) -> None:
    here, backup = stocked(postgres17)
    name = new_name(postgres17)
    losing = restore_clients(postgres17, '"$real" "$@" && psql "DELETE FROM shop.products WHERE id = 1"')
    with pytest.raises(VerificationFailed, match="differs") as raised:
        restore_to(here, backup, name, clients=[client_of(postgres17, losing)], wanted=Wanted(("shop.products",)))
    assert raised.value.detail == "shop.products: 50 promised, 49 found."
    assert not exists(postgres17, name)


def test_what_a_function_body_names_stops_the_restore_with_the_way_out(
    postgres17: PostgresServer, site: MakeSite, database: DatabaseFactory, new_name: NewName
) -> None:
    here, source = site(postgres17), database(postgres17)
    with postgres17.connect(source) as connection:
        connection.execute(
            "CREATE TABLE rates (n int); CREATE TABLE prices (n int);"
            " CREATE FUNCTION rated(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql"
            " AS $$ BEGIN RETURN (SELECT count(*) FROM public.rates) + n; END $$;"
            " CREATE INDEX ON prices (rated(n)); INSERT INTO prices VALUES (1)"
        )
    backup = here.take(source)
    name, both = new_name(postgres17), new_name(postgres17)
    with pytest.raises(RestoreFailed) as raised:
        restore_to(here, backup, name, wanted=Wanted(("prices",)))
    assert 'relation "public.rates" does not exist' in str(raised.value.detail)
    assert "What function bodies name is not recorded in a dump" in str(raised.value.hint)
    assert not exists(postgres17, name)
    restore_to(here, backup, both, wanted=Wanted(("prices", "rates")))
    assert contents(postgres17, both) == contents(postgres17, source)


def test_only_roles_and_extensions_that_the_part_needs_must_be_there(
    postgres17: PostgresServer, site: MakeSite, database: DatabaseFactory, new_name: NewName, new_role: NewRole
) -> None:
    here, source, owner = site(postgres17), database(postgres17), new_role(postgres17)
    with postgres17.connect(source) as connection:
        connection.execute("CREATE TABLE ours (n int); CREATE TABLE theirs (n int)")
        connection.execute(f"ALTER TABLE theirs OWNER TO {owner}".encode())
    backup = here.take(source)
    with postgres17.connect(source) as connection:
        connection.execute(f"DROP OWNED BY {owner}; DROP ROLE {owner}".encode())
    name = new_name(postgres17)
    restore_to(here, backup, name, wanted=Wanted(("ours",)))
    assert contents(postgres17, name) == {"public.ours": []}
    with pytest.raises(TargetRefused, match=f"roles are missing on the target: {owner}"):
        restore_to(here, backup, new_name(postgres17), wanted=Wanted(("theirs",)))
    with postgres17.connect() as connection:
        connection.execute(f"CREATE ROLE {owner}".encode())  # for the fixture that drops it


def test_a_schema_comes_back_with_all_that_is_in_it(
    any_postgres: PostgresServer, stocked: Stocked, estate_of: Callable[[PostgresServer], str], new_name: NewName
) -> None:
    here, backup = stocked(any_postgres, estate_of(any_postgres))
    name, source = new_name(any_postgres), backup.source.database
    restored = restore_to(here, backup, name, wanted=Wanted(schemas=("types", '"We.ird"', "empty", "land")))
    missing = set(definitions(any_postgres, source)) - set(definitions(any_postgres, name))
    for line in missing:
        if line.startswith("-- Name:"):
            assert re.search(r"Type: (PUBLICATION|EVENT TRIGGER)|Schema: public", line), line
    assert contents(any_postgres, name).items() <= contents(any_postgres, source).items()
    assert len(contents(any_postgres, source)) - len(contents(any_postgres, name)) == 3  # those of `public`
    assert {each.name.partition(" of ")[0] for each in restored.left_out} == {"publication"}


def test_a_part_goes_into_an_existing_empty_database_and_into_no_other(
    postgres17: PostgresServer, stocked: Stocked, database: DatabaseFactory
) -> None:
    here, backup = stocked(postgres17)
    empty, used = database(postgres17), database(postgres17)
    with postgres17.connect(used) as connection:
        connection.execute("CREATE TABLE mine (n int)")
    restore_to(here, backup, empty, create=False, wanted=Wanted(("shop.products",)))
    assert set(contents(postgres17, empty)) == {"shop.products"}
    assert state(postgres17, empty) == (None, True, "postgres")
    for name in (empty, used):
        before = contents(postgres17, name)
        with pytest.raises(TargetRefused, match="target is not empty"):
            restore_to(here, backup, name, create=False, wanted=Wanted(("shop.products",)))
        assert contents(postgres17, name) == before


def test_rows_of_an_extension_s_table_come_back_when_it_is_named(
    postgres18: PostgresServer, tiny_extension: str, site: MakeSite, database: DatabaseFactory, new_name: NewName
) -> None:
    here, source, name = site(postgres18), database(postgres18), new_name(postgres18)
    with postgres18.connect(source) as connection:
        connection.execute(f"CREATE EXTENSION {tiny_extension}; CREATE TABLE other (n int)".encode())
        connection.execute("INSERT INTO setting VALUES ('a'), ('b'), ('c')")
    restored = restore_to(here, here.take(source), name, wanted=Wanted(("public.setting",)))
    config = next(item for item in restored.comparisons if item.name == "public.setting")
    assert (config.promised, config.found, config.at_least) == (3, 5, True)
    expected = contents(postgres18, source)
    del expected["public.other"]
    assert contents(postgres18, name) == expected


# --- as a command


def test_the_command_says_what_it_restored_and_what_it_left_out(
    postgres17: PostgresServer, stocked: Stocked, new_name: NewName
) -> None:
    here, backup = stocked(postgres17)
    name, again = new_name(postgres17), new_name(postgres17)
    ended = here.run("restore", backup.id, "--as", name, "--table", "SHOP.orders", "--table", "*.documents")
    assert ended.code == 0, ended.stderr
    left_out = "left out: foreign key orders_customer_fkey of shop.orders: shop.customers was not chosen\n"
    assert left_out in ended.stdout
    assert re.search(r"^read [0-9.]+ KiB of the archive$", ended.stdout, re.MULTILINE)
    assert f"database {name} holds the chosen part of backup {backup.id}" in ended.stdout

    variables = {"BACKUPD_RESTORE_TABLE": "shop.orders, shop.documents", "BACKUPD_COMMAND": "restore"}
    ended = here.run(BACKUPD_RESTORE_BACKUP=backup.id, BACKUPD_RESTORE_AS=again, **variables)
    assert ended.code == 0, ended.stderr
    assert contents(postgres17, again) == contents(postgres17, name)
    assert set(contents(postgres17, name)) == {
        "shop.documents",
        "shop.orders",
        "shop.orders_2025",
        "shop.orders_2026",
        "shop.orders_rest",
    }


def test_json_has_what_was_left_out_and_the_bytes_that_were_read(
    postgres17: PostgresServer, stocked: Stocked, new_name: NewName
) -> None:
    here, backup = stocked(postgres17)
    ended = here.run("restore", backup.id, "--as", new_name(postgres17), "--table", "shop.orders_2025", "--json")
    assert ended.code == 0, ended.stderr
    document = json.loads(ended.stdout)
    assert 0 < document["read_bytes"] < backup.manifest.archive_bytes
    assert {
        "name": "attachment of partition shop.orders_2025",
        "reason": "its root shop.orders was not chosen: it becomes a table of its own, without what the root defines",
    } in document["left_out"]


@pytest.mark.parametrize(("flag", "value"), [("--table", "shop.ordres"), ("--schema", "shp")])
def test_a_pattern_that_matches_nothing_ends_with_2_and_makes_nothing(
    flag: str, value: str, postgres17: PostgresServer, stocked: Stocked, new_name: NewName
) -> None:
    here, backup = stocked(postgres17)
    name = new_name(postgres17)
    ended = here.run("restore", backup.id, "--as", name, "--table", "shop.orders", flag, value)
    here.assert_failed(ended, 2, "usage")
    assert "shop" in ended.error["hint"]
    assert not exists(postgres17, name)


def test_a_hostile_name_is_found_as_it_is_spelled(
    any_postgres: PostgresServer, stocked: Stocked, new_name: NewName
) -> None:
    here, backup = stocked(any_postgres)
    name = new_name(any_postgres)
    restored = restore_to(here, backup, name, wanted=Wanted((spelled(HOSTILE_SCHEMA, HOSTILE_TABLE),)))
    assert [item.promised for item in restored.comparisons if item.name == f"{HOSTILE_SCHEMA}.{HOSTILE_TABLE}"] == [2]
    assert len(contents(any_postgres, name)) == 1
    here.assert_untouched()
