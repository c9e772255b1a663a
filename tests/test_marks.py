"""Names and comments from which the state of a swap is found again."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd import marks
from backupd.marks import Mark

NOW = datetime(2026, 11, 26, 3, 0, 7, tzinfo=UTC)
ID = "20261126T010000Z-3f9ac21b"

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
    lambda name: len(name.encode()) <= marks.NAME_LIMIT_BYTES
)
comments = st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(names, names)
def test_names_have_at_most_62_bytes_and_whole_characters(live: str, other: str) -> None:
    for name in (marks.before(live, NOW, [])[0], marks.beside(live, NOW, [])):
        assert len(name.encode()) <= 62
        assert name.startswith(live.encode()[:37].decode(errors="ignore"))


def test_the_kept_name_is_forty_bytes_the_word_and_the_time() -> None:
    assert marks.before("app", NOW, []) == ("app_before_20261126030007", "20261126030007")
    assert marks.before("x" * 63, NOW, [])[0] == "x" * 40 + "_before_20261126030007"
    assert marks.before("ü" * 31 + "x", NOW, [])[0] == "ü" * 20 + "_before_20261126030007"
    assert marks.before("x" + "ü" * 31, NOW, [])[0] == "x" + "ü" * 19 + "_before_20261126030007"


def test_a_name_that_is_taken_is_passed_over() -> None:
    taken = [marks.beside("app", NOW + timedelta(seconds=each), []) for each in range(3)]

    assert marks.beside("app", NOW, taken) == "app_beside_20261126030010"


@given(names, comments)
def test_a_mark_is_read_as_it_was_written(live: str, comment: str | None) -> None:
    for mark in (
        Mark("restoring", ID, live, comment=comment),
        Mark("restoring", ID, comment=comment),
        Mark("ready", ID, live, comment=comment),
        Mark("kept", "undo", live, "20261126030007", comment),
    ):
        assert marks.read(mark.text()) == mark
        assert marks.is_ours("any", mark.text())


@given(names, comments)
def test_below_marks_is_the_database_s_own_comment(live: str, comment: str | None) -> None:
    kept = Mark("kept", ID, live, "20261126030007", comment).text()
    for marked in (kept, Mark("restoring", ID, comment=kept).text()):
        assert marks.own_comment(marked) == marks.own_comment(comment)


@pytest.mark.parametrize("comment", [None, "", "a shop", "x\n" + Mark("ready", ID, "a").text()])
def test_a_comment_without_a_mark_is_all_the_database_s_own(comment: str | None) -> None:
    assert marks.own_comment(comment) == comment


@pytest.mark.parametrize(
    "comment", [None, "", "backupd", "a shop", "backupd kept this database", "x\n" + Mark("ready", ID, "a").text()]
)
def test_other_comments_have_no_mark(comment: str | None) -> None:
    assert marks.read(comment) is None
    assert not marks.is_ours("app", comment)


def test_a_database_that_was_never_commented_is_known_by_its_name() -> None:
    name = marks.beside("app", NOW, [])

    assert marks.is_ours(name, None)
    assert marks.is_beside(name, "app")
    assert not marks.is_beside(name, "ap")
    assert not marks.is_ours(name, "somebody's own")
    assert not marks.is_ours(marks.before("app", NOW, [])[0], None)
