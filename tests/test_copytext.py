"""pg_dump's COPY statements as names, and rows compared regardless of their order."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd import copytext
from backupd.copytext import Multiset, Target
from backupd.errors import VerificationFailed

LINES = st.lists(st.binary(max_size=8).map(lambda data: data.replace(b"\n", b"")), max_size=20)


@pytest.mark.parametrize(
    ("statement", "target"),
    [
        ("COPY public.t (a, b) FROM stdin;\n", Target("public", "t", ("a", "b"))),
        ("COPY public.nothing  FROM stdin;\n", Target("public", "nothing", ())),
        ('COPY "we ird.""s""."T\n;" ("a, b", "c)", d) FROM stdin;\n', None),
        (
            'COPY "we ird.""s"""."T\n;" ("a, b", "c)", "(""", d) FROM stdin;\n',
            Target('we ird."s"', "T\n;", ("a, b", "c)", '("', "d")),
        ),
        ('COPY s.t ("FROM stdin;") FROM stdin;\n', Target("s", "t", ("FROM stdin;",))),
        ("COPY s.t (a) FROM stdin; DROP TABLE s.t;\n", None),
        ("COPY s.t (a, b) FROM PROGRAM 'true';\n", None),
        ("COPY s.t (a b) FROM stdin;\n", None),
        ("COPY s.t (a, ) FROM stdin;\n", None),
        ("COPY (SELECT 1) TO stdout;\n", None),
        ("", None),
    ],
)
def test_only_pg_dumps_own_statements_are_taken_apart(statement: str, target: Target | None) -> None:
    if target is not None:
        assert copytext.parse(statement) == target
        return
    with pytest.raises(VerificationFailed, match="none of pg_dump's"):
        copytext.parse(statement)


@given(LINES, st.randoms())
def test_any_order_is_the_same_multiset(lines: list[bytes], random: Random) -> None:
    shuffled = list(lines)
    random.shuffle(shuffled)

    assert copytext.multiset(lines) == copytext.multiset(shuffled)
    assert copytext.missing(lines, shuffled) == 0


@given(LINES, LINES)
def test_multisets_of_parts_add_up(first: list[bytes], second: list[bytes]) -> None:
    assert copytext.multiset(first) + copytext.multiset(second) == copytext.multiset([*first, *second])


@given(LINES, LINES)
def test_other_lines_are_another_multiset(first: list[bytes], second: list[bytes]) -> None:
    assert (copytext.multiset(first) == copytext.multiset(second)) == (sorted(first) == sorted(second))


def test_a_line_that_comes_twice_is_not_a_line_that_comes_once() -> None:
    assert copytext.multiset([b"a", b"a", b"b"]) != copytext.multiset([b"a", b"b", b"b"])
    assert copytext.missing([b"a", b"a"], [b"a", b"b"]) == 1
    assert copytext.multiset([]) == Multiset()


def test_more_than_was_promised_lacks_nothing() -> None:
    assert copytext.missing([b"a"], [b"b", b"a", b"c"]) == 0


def test_fields_of_a_partition_come_in_the_order_of_its_root() -> None:
    lines = [b"1\tone\\tmore\t\\N", b"2\t\t"]

    assert list(copytext.rearranged(lines, ("a", "b", "c"), ("c", "a", "b"))) == [b"\\N\t1\tone\\tmore", b"\t2\t"]
    assert list(copytext.rearranged(lines, ("a", "b", "c"), ("a", "b", "c"))) == lines
    with pytest.raises(VerificationFailed, match="other columns"):
        list(copytext.rearranged(lines, ("a", "b"), ("a", "x")))
