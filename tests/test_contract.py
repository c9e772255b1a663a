"""Tables, entries and members are held against each other; what may lack rows is named with its reason."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from backupd.contract import Exemptions, Facts, Relation, build
from backupd.decode import Decoded
from backupd.errors import VerificationFailed
from backupd.manifest import Contract, DatabaseProperties, Extension, LargeObject, Sequence, SkippedTable, Table
from backupd.toc import Entry, Toc

PROPERTIES = DatabaseProperties("owner", "UTF8", "c", "C", "C")
EXTENSIONS = (Extension("hstore", "1.8", "public"),)
WHOLE = Exemptions(filtered=False, standby=False)
ORDERS = Decoded(105, 10, "a" * 32)
ITEMS = Decoded(5, 0, "b" * 32)


def entry(dump_id: int, desc: str, **changes: Any) -> Entry:
    """An entry of toc.dat."""
    plain = Entry(
        dump_id=dump_id,
        oid=0,
        tag="",
        desc=desc,
        definition="",
        copy_statement="",
        namespace="",
        tablespace="",
        owner="owner",
        dependencies=(),
        filename="",
    )
    return replace(plain, **changes)


def table_entry(oid: int, name: str, **changes: Any) -> Entry:
    """The entry of a table's rows; it is named by its dump id, which is 100 more than its OID."""
    number = oid + 100
    copy = f"COPY shop.{name} (id) FROM stdin;\n"
    plain = entry(
        number, "TABLE DATA", oid=oid, tag=name, namespace="shop", filename=f"{number}.dat", copy_statement=copy
    )
    return replace(plain, **changes)


def contents(*entries: Entry) -> Toc:
    return Toc(entries)


def relation(oid: int, name: str, kind: str = "r", persistence: str = "p", *, of_extension: bool = False) -> Relation:
    return Relation(oid, "shop", name, kind, persistence, of_extension)


def facts(*relations: Relation) -> Facts:
    return Facts("7000000000000000001", 1000, PROPERTIES, relations, EXTENSIONS)


TOC = contents(table_entry(1, "orders"), table_entry(2, "items"))
FACTS = facts(relation(1, "orders"), relation(2, "items"))
DECODED = {"101.dat.zst": ORDERS, "102.dat.zst": ITEMS}


def refused(toc: Toc, known: Facts, decoded: Mapping[str, Decoded], exemptions: Exemptions = WHOLE) -> str:
    """The message with which it is refused."""
    with pytest.raises(VerificationFailed) as caught:
        build(toc, known, decoded, exemptions)
    return caught.value.message


# --- what agrees


def test_a_contract_has_what_was_proven_of_each_table_under_its_own_name() -> None:
    contract = build(TOC, FACTS, DECODED, WHOLE)
    orders = Table(
        schema="shop",
        name="orders",
        oid=1,
        member="101.dat.zst",
        rows=10,
        raw_bytes=105,
        fingerprint="a" * 32,
        copy_statement="COPY shop.orders (id) FROM stdin;\n",
    )
    items = replace(
        orders,
        name="items",
        oid=2,
        member="102.dat.zst",
        rows=0,
        raw_bytes=5,
        fingerprint="b" * 32,
        copy_statement="COPY shop.items (id) FROM stdin;\n",
    )
    assert contract == Contract(PROPERTIES, tables=(orders, items), extensions=EXTENSIONS, roles=("owner",))


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_member_is_found_under_any_compression(suffix: str) -> None:
    decoded = {f"101.dat{suffix}": ORDERS, f"102.dat{suffix}": ITEMS}
    assert [table.member for table in build(TOC, FACTS, decoded, WHOLE).tables] == list(decoded)


def test_the_order_of_members_does_not_matter() -> None:
    backwards = dict(reversed(list(DECODED.items())))
    assert build(TOC, FACTS, backwards, WHOLE) == build(TOC, FACTS, DECODED, WHOLE)


def test_an_empty_database_has_an_empty_contract() -> None:
    assert build(contents(), facts(), {}, WHOLE) == Contract(PROPERTIES, extensions=EXTENSIONS)


def test_tables_that_are_loaded_through_their_root_are_marked() -> None:
    via_root = table_entry(2, "events_1", definition="-- load via partition root shop.events")
    toc = contents(table_entry(1, "orders"), via_root)
    known = facts(relation(1, "orders"), relation(2, "events_1"), relation(3, "events", "p"))
    assert [table.via_root for table in build(toc, known, DECODED, WHOLE).tables] == [False, True]


def test_sequences_and_roles_are_those_of_the_table_of_contents() -> None:
    setval = "SELECT pg_catalog.setval('shop.orders_id_seq', 42, true);\n\n"
    toc = contents(
        *TOC.entries,
        entry(7, "SEQUENCE SET", tag="orders_id_seq", namespace="shop", definition=setval),
        entry(8, "ACL", definition="GRANT SELECT ON TABLE shop.orders TO reader;\n"),
    )
    contract = build(toc, FACTS, DECODED, WHOLE)
    assert contract.sequences == (Sequence("shop", "orders_id_seq", 42, True),)
    assert contract.roles == ("owner", "reader")


def test_large_objects_are_listed_by_oid_with_their_size_and_fingerprint() -> None:
    toc = contents(
        *TOC.entries,
        entry(7, "BLOB METADATA", definition="16400\n9\n"),
        entry(8, "BLOBS", filename="blobs_7.toc"),
    )
    objects = {"blob_16400.dat.zst": Decoded(7, 0, "c" * 32), "blob_9.dat.zst": Decoded(0, 0, "d" * 32)}
    contract = build(toc, FACTS, DECODED | objects, WHOLE)
    assert contract.large_objects == (LargeObject(9, 0, "d" * 32), LargeObject(16400, 7, "c" * 32))
    assert len(contract.tables) == 2


# --- what does not


def test_a_table_without_member_is_refused_and_named() -> None:
    assert refused(TOC, FACTS, {"101.dat.zst": ORDERS}) == "table shop.items has no member in the dump"


@pytest.mark.parametrize("name", ["999.dat.zst", "101.dat", "101.dat.gz", "notes.txt", "x101.dat.zst"])
def test_a_member_that_no_entry_names_is_refused_and_named(name: str) -> None:
    message = refused(TOC, FACTS, {"101.dat.zst": ORDERS, "102.dat.zst": ITEMS, name: ITEMS})
    assert message.startswith("members that toc.dat does not name: ")


def test_of_many_strangers_the_first_are_named() -> None:
    message = refused(TOC, FACTS, DECODED | {f"9{number}.dat.zst": ITEMS for number in range(10)})
    assert message == "members that toc.dat does not name: 90.dat.zst, 91.dat.zst, 92.dat.zst, 93.dat.zst, 94.dat.zst"


@pytest.mark.parametrize("exemptions", [WHOLE, Exemptions(filtered=False, standby=True)])
@pytest.mark.parametrize("persistence", ["p", "t"])
def test_a_table_of_the_source_that_is_not_in_the_dump_is_refused_and_named(
    persistence: str, exemptions: Exemptions
) -> None:
    known = facts(*FACTS.relations, relation(3, "lost", persistence=persistence))
    assert refused(TOC, known, DECODED, exemptions) == "tables are missing from the dump: shop.lost"


def test_a_table_is_known_by_its_oid_and_not_by_its_name() -> None:
    """One that was dropped and made again in between has the same name, and is another."""
    assert "shop.orders" in refused(TOC, facts(relation(7, "orders"), relation(2, "items")), DECODED)


def test_a_table_in_the_dump_that_the_source_does_not_list_is_fine() -> None:
    """Rows too many lose nobody's: `facts` leaves out the schemas of PostgreSQL, pg_dump's rules are finer."""
    assert len(build(TOC, facts(), DECODED, WHOLE).tables) == 2


METADATA = entry(7, "BLOB METADATA", definition="9\n10\n")
BLOB = Decoded(7, 0, "c" * 32)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["blob_9.dat.zst"], "large objects have no member in the dump: 10"),
        ([], "large objects have no member in the dump: 9, 10"),
        (["blob_9.dat.zst", "blob_10.dat.zst", "blob_11.dat.zst"], "large objects that toc.dat does not name: 11"),
        (["blob_9.dat.zst", "blob_9.dat", "blob_10.dat"], "a large object has several members in the dump"),
    ],
)
def test_large_objects_and_their_members_must_agree(names: list[str], message: str) -> None:
    decoded = DECODED | dict.fromkeys(names, BLOB)
    assert refused(contents(*TOC.entries, METADATA), FACTS, decoded) == message


def test_large_objects_of_older_clients_have_an_entry_each() -> None:
    toc = contents(*TOC.entries, entry(7, "BLOB", oid=9), entry(8, "BLOB", oid=10), entry(9, "BLOBS"))
    names = ["blob_9.dat.gz", "blob_10.dat.gz"]
    assert [each.oid for each in build(toc, FACTS, DECODED | dict.fromkeys(names, BLOB), WHOLE).large_objects] == [
        9,
        10,
    ]
    assert "have no member" in refused(toc, FACTS, DECODED | {"blob_9.dat.gz": BLOB})


# --- what may lack rows, and why

FILTERED = Exemptions(filtered=True, standby=False)
STANDBY = Exemptions(filtered=False, standby=True)


@pytest.mark.parametrize(
    ("missing", "exemptions", "reason"),
    [
        (relation(3, "view", "m"), WHOLE, "materialised view: filled by a refresh"),
        (relation(3, "foreign", "f"), WHOLE, "foreign table: its rows are elsewhere"),
        (relation(3, "configuration", of_extension=True), WHOLE, "belongs to an extension"),
        (relation(3, "cache", persistence="u"), STANDBY, "unlogged: a standby has none of its rows"),
        (relation(3, "other"), FILTERED, "not chosen by the filter"),
        # where several apply, what would hold without a filter is said
        (relation(3, "view", "m"), FILTERED, "materialised view: filled by a refresh"),
        (relation(3, "foreign", "f", of_extension=True), FILTERED, "foreign table: its rows are elsewhere"),
        (relation(3, "cache", persistence="u"), Exemptions(True, True), "unlogged: a standby has none of its rows"),
        (relation(3, "cache", persistence="u"), FILTERED, "not chosen by the filter"),
    ],
)
def test_what_may_lack_rows_is_skipped_with_its_reason(missing: Relation, exemptions: Exemptions, reason: str) -> None:
    contract = build(TOC, facts(*FACTS.relations, missing), DECODED, exemptions)
    assert contract.skipped == (SkippedTable("shop", missing.name, reason),)


def test_an_unlogged_table_of_a_primary_must_have_its_rows() -> None:
    known = facts(*FACTS.relations, relation(3, "cache", persistence="u"))
    assert "shop.cache" in refused(TOC, known, DECODED)


def test_a_partition_root_has_no_rows_of_its_own_and_is_not_missed() -> None:
    contract = build(TOC, facts(*FACTS.relations, relation(3, "events", "p")), DECODED, WHOLE)
    assert contract.skipped == ()


def test_a_leaf_of_a_partitioned_table_is_missed() -> None:
    known = facts(*FACTS.relations, relation(3, "events", "p"), relation(4, "events_1"))
    assert refused(TOC, known, DECODED) == "tables are missing from the dump: shop.events_1"


def test_what_was_dumped_is_not_skipped_whatever_it_is() -> None:
    """An extension's configuration table, a foreign table's rows that were asked for."""
    known = facts(relation(1, "orders", of_extension=True), relation(2, "items", "f"))
    contract = build(TOC, known, DECODED, FILTERED)
    assert contract.skipped == ()
    assert len(contract.tables) == 2


def test_every_table_that_is_missing_is_looked_for_before_any_is_excused() -> None:
    known = facts(*FACTS.relations, relation(3, "view", "m"), relation(4, "lost"), relation(5, "gone"))
    assert refused(TOC, known, DECODED) == "tables are missing from the dump: shop.lost, shop.gone"
