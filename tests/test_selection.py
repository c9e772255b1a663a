"""What belongs to a table, by the entries of a dump alone: up, down, and what ties two tables together."""

import pytest

from backupd.errors import UsageError, VerificationFailed
from backupd.manifest import Contract, DatabaseProperties, Extension, Table
from backupd.selection import Selection, Wanted, choose, cut, event_triggers_apart
from backupd.toc import Entry, Toc

CLONE = "\nALTER TABLE s.leaf DISABLE TRIGGER t;\n"


def entry(dump_id: int, desc: str, tag: str, *dependencies: int, schema: str = "s", definition: str = "") -> Entry:
    return Entry(
        dump_id=dump_id,
        oid=dump_id,
        tag=tag,
        desc=desc,
        definition=definition,
        copy_statement="",
        namespace=schema,
        tablespace="",
        owner="me",
        dependencies=dependencies,
        filename=f"{dump_id}.dat" if desc == "TABLE DATA" else "",
    )


def chosen(entries: list[Entry], *tables: str, schemas: tuple[str, ...] = ()) -> Selection:
    return choose(Toc(tuple(entries)), Wanted(tables, schemas))


def ids(selection: Selection) -> list[int]:
    return [each.dump_id for each in selection.toc.entries]


def left_out(selection: Selection) -> dict[str, str]:
    return {each.name: each.reason for each in selection.left_out}


SCHEMA = entry(1, "SCHEMA", "s", schema="")
TABLE = entry(10, "TABLE", "a", 1)
ROWS = entry(20, "TABLE DATA", "a", 10)
OTHER = entry(11, "TABLE", "b", 1)
OTHER_ROWS = entry(21, "TABLE DATA", "b", 11)
BOTH = [SCHEMA, TABLE, OTHER, ROWS, OTHER_ROWS]


def test_a_table_brings_its_rows_and_its_schema_and_nothing_else() -> None:
    assert ids(chosen(BOTH, "s.a")) == [1, 10, 20]
    assert ids(chosen(BOTH, "s.a", "s.b")) == [1, 10, 11, 20, 21]
    assert chosen(BOTH, "s.a").use_list == "1;\n10;\n20;\n"


def test_tables_that_are_partitions_of_each_other_are_refused() -> None:
    circle = [entry(30, "TABLE ATTACH", "a", 10, 11), entry(31, "TABLE ATTACH", "b", 11, 10)]

    with pytest.raises(VerificationFailed, match="b as a partition of itself"):
        chosen([*BOTH, *circle], "s.a")


def test_a_schema_brings_all_that_is_in_it_and_what_that_needs() -> None:
    entries = [
        *BOTH,
        entry(2, "SCHEMA", "t", schema=""),
        entry(3, "TYPE", "unused", 1),
        entry(4, "TYPE", "used", 2, schema="t"),
        entry(5, "FUNCTION", "f()", 1, 4),
        entry(6, "DEFAULT ACL", "DEFAULT PRIVILEGES FOR TABLES", 1),
        entry(7, "EVENT TRIGGER", "e", 5, schema=""),
    ]
    assert ids(chosen(entries, schemas=("s",))) == [1, 10, 11, 20, 21, 2, 3, 4, 5, 6]
    assert ids(chosen(entries, schemas=("t",))) == [2, 4]


def test_grants_and_comments_of_all_that_comes_come_too() -> None:
    entries = [
        entry(2, "ACL", "SCHEMA s", 1, schema=""),
        *BOTH,
        entry(30, "ACL", "TABLE a", 10),
        entry(31, "ACL", "COLUMN a.x", 10, 30),
        entry(32, "INDEX", "i", 10),
        entry(33, "COMMENT", "INDEX i", 32),
        entry(34, "COMMENT", "TABLE b", 11),
    ]
    assert ids(chosen(entries, "s.a")) == [2, 1, 10, 20, 30, 31, 32, 33]


def test_grants_on_a_schema_that_the_dump_does_not_create_come_with_its_tables() -> None:
    table = entry(10, "TABLE", "a", schema="public")
    entries = [table, entry(30, "ACL", "SCHEMA public", 99, schema=""), entry(31, "ACL", "SCHEMA s", 98, schema="")]
    assert ids(chosen(entries, "a")) == [10, 30]


@pytest.mark.parametrize(
    ("desc", "tag"), [("POLICY", "a p"), ("RULE", "a r"), ("TRIGGER", "a t"), ("CONSTRAINT", "a c")]
)
def test_a_part_that_reads_another_table_brings_its_definition_and_says_that_it_is_empty(desc: str, tag: str) -> None:
    entries = [*BOTH, entry(30, desc, tag, 10, 11), entry(31, "INDEX", "b_index", 11)]
    assert ids(chosen(entries, "s.a")) == [1, 10, 11, 20, 30]
    assert left_out(chosen(entries, "s.a")) == {
        "rows of s.b": "not chosen: it comes empty, because something that was chosen needs its definition"
    }
    assert ids(chosen(entries, "s.b")) == [1, 11, 21, 31]


def test_a_part_is_its_own_table_s_also_where_names_could_be_read_in_two_ways() -> None:
    spaced = entry(11, "TABLE", "a b", 1)
    policy = entry(30, "POLICY", "a b c", 11, 10, definition='CREATE POLICY "b c" ON s.a USING (true);')
    index = entry(31, "INDEX", "i", 11, 10, definition='CREATE INDEX i ON s.a USING btree (f(ROW(1)::s."a b"));')
    statistics = entry(32, "STATISTICS", "x", 10, 11, schema="t", definition='CREATE STATISTICS t.x ON y FROM s."a b";')
    entries = [SCHEMA, TABLE, spaced, policy, index, statistics]
    assert ids(chosen(entries, "s.a")) == [1, 10, 11, 30, 31]
    assert ids(chosen(entries, 's."a b"')) == [1, 10, 11, 32]


def test_an_index_is_its_table_s_although_its_name_begins_with_another_s() -> None:
    index = entry(30, "INDEX", "b index", 10, 11, definition='CREATE INDEX "b index" ON s.a USING btree (f(x));')
    assert ids(chosen([*BOTH, index], "s.b")) == [1, 11, 21]
    assert ids(chosen([*BOTH, index], "s.a")) == [1, 10, 11, 20, 30]


def test_what_ties_relations_that_the_dump_lacks_does_not_come() -> None:
    entries = [*BOTH, entry(30, "MATERIALIZED VIEW DATA", "m", 99), entry(31, "SEQUENCE OWNED BY", "q", 98)]
    assert ids(chosen(entries, "s.a", "s.b")) == [1, 10, 11, 20, 21]


def test_a_foreign_key_comes_when_both_its_tables_were_chosen_else_it_is_named() -> None:
    key = entry(30, "FK CONSTRAINT", "a a_b_fkey", 10, 11, 31)
    entries = [
        *BOTH,
        entry(31, "CONSTRAINT", "b b_pkey", 11),
        key,
        entry(32, "COMMENT", "CONSTRAINT a_b_fkey ON a", 30),
    ]
    assert ids(chosen(entries, "s.a", "s.b")) == [1, 10, 11, 20, 21, 31, 30, 32]
    for table, other in (("s.a", "s.b"), ("s.b", "s.a")):
        assert left_out(chosen(entries, table)) == {"foreign key a_b_fkey of s.a": f"{other} was not chosen"}


def test_a_foreign_key_to_a_table_that_comes_empty_stays_behind() -> None:
    entries = [*BOTH, entry(30, "POLICY", "a p", 10, 11), entry(31, "FK CONSTRAINT", "a fk", 10, 11)]
    assert ids(chosen(entries, "s.a")) == [1, 10, 11, 20, 30]


def test_a_sequence_comes_with_its_value_and_without_the_table_that_owns_it() -> None:
    sequence = entry(12, "SEQUENCE", "b_id_seq", 11, 1, definition="CREATE SEQUENCE s.b_id_seq;")
    owned, value = entry(13, "SEQUENCE OWNED BY", "b_id_seq", 12), entry(14, "SEQUENCE SET", "b_id_seq", 12)
    entries = [
        *BOTH,
        sequence,
        owned,
        value,
        entry(15, "DEFAULT", "a id", 10, 12),
        entry(16, "DEFAULT", "b id", 11, 12),
    ]
    assert ids(chosen(entries, "s.a")) == [1, 10, 20, 12, 14, 15]
    assert ids(chosen(entries, "s.b")) == [1, 11, 21, 12, 13, 14, 16]
    assert ids(chosen(entries, "s.b_id_seq")) == [1, 12, 14]


PARTITIONS = [
    SCHEMA,
    entry(10, "TABLE", "root", 1),
    entry(11, "TABLE", "middle", 1, 10),
    entry(12, "TABLE", "leaf", 1, 11),
    entry(13, "TABLE", "rest", 1, 10),
    entry(14, "TABLE ATTACH", "middle", 11, 10),
    entry(15, "TABLE ATTACH", "leaf", 12, 11),
    entry(16, "TABLE ATTACH", "rest", 13, 10),
    entry(22, "TABLE DATA", "leaf", 12),
    entry(23, "TABLE DATA", "rest", 13),
    entry(30, "CONSTRAINT", "root root_pkey", 10),
    entry(31, "CONSTRAINT", "middle middle_pkey", 11, 30),
    entry(32, "CONSTRAINT", "leaf leaf_pkey", 12, 31),
    entry(33, "INDEX ATTACH", "middle_pkey", 31, 30, 11, 10),
    entry(34, "INDEX ATTACH", "leaf_pkey", 32, 31, 30, 12, 11),
    entry(40, "TRIGGER", "root t", 10, definition="CREATE TRIGGER t AFTER INSERT ON s.root"),
    entry(41, "TRIGGER", "leaf t", 12, definition=CLONE),
]


def test_a_partition_root_brings_its_partitions() -> None:
    assert ids(chosen(PARTITIONS, "s.root")) == [each.dump_id for each in PARTITIONS]
    assert left_out(chosen(PARTITIONS, "s.root")) == {}


def test_a_partition_alone_comes_without_what_needs_its_root() -> None:
    assert ids(chosen(PARTITIONS, "s.leaf")) == [1, 12, 22, 32]
    assert ids(chosen(PARTITIONS, "s.middle")) == [1, 11, 12, 15, 22, 31, 32, 34]
    assert left_out(chosen(PARTITIONS, "s.leaf")) == {
        "attachment of partition s.leaf": "its root s.middle was not chosen: it becomes a table of its own,"
        " without what the root defines",
        "state of trigger t of s.leaf": "the trigger is the partition root's, which was not chosen",
    }


def test_a_partition_whose_rows_go_through_its_root_brings_the_root() -> None:
    rows = entry(22, "TABLE DATA", "leaf", 12, definition="-- load via partition root s.root")
    entries = [rows if each.dump_id == 22 else each for each in PARTITIONS]
    assert ids(chosen(entries, "s.leaf")) == ids(chosen(entries, "s.root")) == [each.dump_id for each in entries]
    assert ids(chosen(entries, "s.middle")) == [each.dump_id for each in entries]


def test_views_come_when_they_are_chosen_and_bring_definitions_without_rows() -> None:
    entries = [*BOTH, entry(30, "VIEW", "v", 1, 10), entry(31, "DEFAULT", "v x", 30), entry(32, "ACL", "TABLE v", 30)]
    assert ids(chosen(entries, "s.v")) == [1, 10, 30, 31, 32]
    assert left_out(chosen(entries, "s.a")) == {"view s.v": "it uses what was chosen, and was not chosen itself"}


def test_a_view_whose_query_is_a_rule_of_its_own_comes_with_it_and_only_with_it() -> None:
    key = entry(30, "CONSTRAINT", "a a_pkey", 10)
    rule = entry(32, "RULE", "v _RETURN", 30, 10, 31, definition="CREATE OR REPLACE VIEW s.v AS SELECT;")
    entries = [*BOTH, entry(31, "VIEW", "v", 1), key, rule, entry(33, "MATERIALIZED VIEW", "m", 31)]
    assert ids(chosen(entries, "s.a")) == [1, 10, 20, 30]
    assert ids(chosen(entries, "s.v")) == ids(chosen(entries, "s.v", "s.v")) == [1, 10, 31, 30, 32]
    assert left_out(chosen(entries, "s.a")) == {"view s.v": "it uses what was chosen, and was not chosen itself"}


def test_a_materialised_view_is_filled_only_when_all_that_it_reads_has_rows() -> None:
    entries = [
        *BOTH,
        entry(30, "VIEW", "v", 1, 11),
        entry(31, "MATERIALIZED VIEW", "m", 1, 10, 30),
        entry(32, "MATERIALIZED VIEW DATA", "m", 31, 99),
    ]
    assert 32 in ids(chosen(entries, "s.a", "s.b", "s.m"))
    one = chosen(entries, "s.a", "s.m")
    assert 32 not in ids(one)
    assert left_out(one)["rows of materialised view s.m"] == "it reads s.b, not chosen: REFRESH it when they have rows"


def test_a_cast_and_a_check_come_with_their_types() -> None:
    entries = [
        entry(2, "TYPE", "one", 1),
        entry(3, "DOMAIN", "two", 1),
        entry(4, "FUNCTION", "convert(s.one)", 2),
        entry(5, "CAST", "CAST (one AS text)", 2, 4, schema=""),
        entry(6, "CAST", "CAST (one AS two)", 2, 3, schema=""),
        entry(7, "CHECK CONSTRAINT", "two positive", 3),
        SCHEMA,
        entry(10, "TABLE", "a", 1, 2),
        entry(11, "TABLE", "b", 1, 2, 3),
    ]
    assert ids(chosen(entries, "s.a")) == [2, 4, 5, 1, 10]
    assert ids(chosen(entries, "s.b")) == [2, 3, 4, 5, 6, 7, 1, 11]


def test_a_foreign_table_brings_its_server_and_the_users_of_it() -> None:
    entries = [
        entry(2, "FOREIGN DATA WRAPPER", "w", schema=""),
        entry(3, "SERVER", "far", 2, schema=""),
        entry(4, "USER MAPPING", "USER MAPPING me SERVER far", schema=""),
        entry(5, "USER MAPPING", "USER MAPPING me SERVER other", schema=""),
        SCHEMA,
        entry(10, "FOREIGN TABLE", "f", 1, 3),
    ]
    assert ids(chosen(entries, "s.f")) == [2, 3, 4, 1, 10]


def test_rows_of_an_extension_s_own_table_come_when_it_is_named() -> None:
    entries = [entry(2, "EXTENSION", "x", schema=""), SCHEMA, TABLE, ROWS, entry(22, "TABLE DATA", "config", 99)]
    entries += [entry(3, "TYPE", "of_x", 2), entry(11, "TABLE", "b", 3)]
    assert ids(chosen(entries, "s.config")) == [2, 1, 22]
    assert ids(chosen(entries, "s.a")) == [1, 10, 20]
    assert left_out(chosen(entries, "s.b")) == {
        "rows of s.config": "an extension's own table; name it to have its rows"
    }


def test_publications_and_large_objects_stay_behind_and_are_named() -> None:
    entries = [
        *BOTH,
        entry(30, "PUBLICATION", "p", schema=""),
        entry(31, "PUBLICATION TABLE", "p a", 30, 10),
        entry(32, "BLOB", "4711", schema=""),
        entry(33, "ACL", "LARGE OBJECT 4711", 32, schema=""),
    ]
    selection = chosen(entries, "s.a")
    assert ids(selection) == [1, 10, 20]
    assert left_out(selection) == {
        "publication of s.a": "publications belong to the whole database",
        "large objects: 1": "they belong to no table; restore the whole backup for them",
    }


def test_a_pattern_that_matches_nothing_is_refused_also_beside_one_that_does() -> None:
    for tables, schemas in ((("s.a", "s.c"), ()), (("s.a",), ("x",))):
        with pytest.raises(UsageError, match="of the backup matches"):
            chosen(BOTH, *tables, schemas=schemas)


# --- the contract


LIKE = DatabaseProperties("me", "UTF8", "c", "C", "C")


def promised(*names: str) -> Contract:
    tables = tuple(Table("s", name, 1, f"{name}.dat", 3, 10, "0" * 32, "COPY") for name in names)
    return Contract(LIKE, tables, extensions=(Extension("x", "1", "s"), Extension("y", "1", "s")), roles=("me", "you"))


def test_the_contract_is_cut_to_what_was_chosen() -> None:
    entries = [*BOTH, entry(2, "EXTENSION", "x", schema=""), entry(3, "TYPE", "t", 2), entry(12, "TABLE", "c", 3)]
    kept = cut(promised("a", "b"), chosen(entries, "s.a", "s.c"))
    assert [table.name for table in kept.tables] == ["a"]
    assert [extension.name for extension in kept.extensions] == ["x"]
    assert kept.roles == ("me",)
    assert kept.database == LIKE


def test_an_index_that_does_not_promise_what_the_dump_holds_is_refused() -> None:
    with pytest.raises(VerificationFailed, match="do not name the same tables"):
        cut(promised("b"), chosen(BOTH, "s.a"))


def test_event_triggers_are_told_apart_with_what_belongs_to_them() -> None:
    entries = [
        *BOTH,
        entry(2, "EVENT TRIGGER", "e", 5, schema=""),
        entry(3, "COMMENT", "EVENT TRIGGER e", 2, schema=""),
        entry(4, "COMMENT", "TABLE a", 10),
        entry(5, "FUNCTION", "f()", 1),
    ]
    apart = event_triggers_apart(Toc(tuple(entries)))
    assert apart is not None
    assert [ids(each) for each in apart] == [[1, 10, 11, 20, 21, 4, 5], [2, 3]]
    assert event_triggers_apart(Toc(tuple(BOTH))) is None
