"""Tables and schemas are found as people write them, and never another one."""

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shop import HOSTILE_SCHEMA, HOSTILE_TABLE

from backupd.errors import UsageError
from backupd.table_pattern import find_schemas, find_tables, spelled, split

NAMES = [
    ("public", "orders"),
    ("public", "Orders"),
    ("public", "order_lines"),
    ("public", "plots"),
    ("land", "plots"),
    ("land", "Houses"),
    ("We.ird", "x"),
    ("We.ird", "a.b"),
    ("We", "ird.x"),
    ("stars", "a*b"),
    ("stars", "aab"),
    ('q"q', 'a""b'),
    (HOSTILE_SCHEMA, HOSTILE_TABLE),
]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("public.orders", [("public", "orders")]),
        ("public.Orders", [("public", "Orders")]),  # as it is written
        ("PUBLIC.ORDERS", [("public", "orders")]),  # as SQL folds it
        ('public."Orders"', [("public", "Orders")]),
        ('"public".orders', [("public", "orders")]),
        ("land.Houses", [("land", "Houses")]),
        ("order_lines", [("public", "order_lines")]),
        ("public.order*", [("public", "orders"), ("public", "order_lines")]),
        ("public.?rders", [("public", "orders"), ("public", "Orders")]),
        ("*.plots", [("public", "plots"), ("land", "plots")]),
        ("plo*", [("public", "plots"), ("land", "plots")]),
        ('"We.ird"."x"', [("We.ird", "x")]),
        ('"We.ird".*', [("We.ird", "x"), ("We.ird", "a.b")]),
        ("We.ird.a.b", [("We.ird", "a.b")]),  # as `tables` prints it
        ('We."ird.x"', [("We", "ird.x")]),
        ('stars."a*b"', [("stars", "a*b")]),
        ("stars.a*b", [("stars", "a*b"), ("stars", "aab")]),
        ('"q""q"."a""""b"', [('q"q', 'a""b')]),
        (f"{HOSTILE_SCHEMA}.{HOSTILE_TABLE}", [(HOSTILE_SCHEMA, HOSTILE_TABLE)]),
        ("we?ird*.new?line*", [(HOSTILE_SCHEMA, HOSTILE_TABLE)]),
    ],
)
def test_a_pattern_means_these_tables(pattern: str, found: list[tuple[str, str]]) -> None:
    assert find_tables([pattern], NAMES) == frozenset(found)


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("public.ordres", 'Near it are: public."Orders", public.orders'),
        ("ordres", "Near it are: public."),
        ("lnd.plots", "Near it are: land.plots"),
        ('public."ORDERS"', "Near it are: public."),
        ('public."order*"', "Near it are: public."),
        ("", "`backupd tables ID`"),
        (".", "`backupd tables ID`"),
        ("zzz.qqq", "`backupd tables ID`"),
        ('"', "`backupd tables ID`"),
        ('public."x', ""),
        ("a.b.c.d", ""),
        (".orders", ""),
        ("public.", ""),
    ],
)
def test_a_pattern_that_means_none_is_an_error_that_names_near_ones(pattern: str, hint: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"no table of the backup matches {pattern!r}")) as raised:
        find_tables([pattern], NAMES)
    assert hint in (raised.value.hint or "")


@pytest.mark.parametrize("pattern", ["plots", "We.ird.x"])
def test_a_name_of_several_tables_is_an_error_that_says_how_to_write_each(pattern: str) -> None:
    with pytest.raises(UsageError, match="is the name of 2 tables") as raised:
        find_tables([pattern], NAMES)
    assert raised.value.hint in (
        "Write one of: land.plots, public.plots.",
        'Write one of: "We"."ird.x", "We.ird".x.',
    )


def test_schemas_are_found_as_tables_are() -> None:
    schemas = {schema for schema, _ in NAMES} | {"empty"}
    assert find_schemas(["LAND", '"We.ird"'], schemas) == {"land", "We.ird"}
    assert find_schemas(["We.ird"], schemas) == {"We.ird"}
    assert find_schemas(["e*"], schemas) == {"empty"}
    with pytest.raises(UsageError, match="no schema of the backup matches 'lnd'") as raised:
        find_schemas(["lnd"], schemas)
    assert raised.value.hint == "Near it are: land."


_NAME = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(st.lists(st.tuples(_NAME, _NAME), min_size=1, max_size=5, unique=True))
def test_every_name_is_found_alone_when_it_is_spelled(names: list[tuple[str, str]]) -> None:
    for name in names:
        assert find_tables([spelled(*name)], names) == {name}
        assert find_schemas([spelled(name[0])], {schema for schema, _ in names}) == {name[0]}


@given(st.text(alphabet='ab".*?,\n', max_size=12), st.lists(st.tuples(_NAME, _NAME), max_size=3))
def test_no_pattern_crashes(pattern: str, names: list[tuple[str, str]]) -> None:
    for find in (lambda: find_tables([pattern], names), lambda: find_schemas([pattern], {name[0] for name in names})):
        with contextlib.suppress(UsageError):
            assert find()


def test_a_variable_is_split_at_commas_outside_quotes() -> None:
    assert split(' a.b , "x,y"."z""," ,, c ') == ("a.b", '"x,y"."z"","', "c")
    assert split("") == ()
    with pytest.raises(UsageError, match="quote is not closed"):
        split('a."b')
    with pytest.raises(UsageError, match="names no table"):
        split(" , ")
