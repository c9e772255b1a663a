"""The drawn tree of errors, the classes and README.md's table of exit codes say the same."""

import contextlib
import inspect
import re
from collections import defaultdict
from pathlib import Path

import pytest

from backupd import errors
from backupd.errors import BackupdError, Interrupted

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")

FAILURES: list[type[BackupdError]] = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, BackupdError) and cls is not BackupdError and cls.__module__ == errors.__name__
]

DRAWN = re.compile(r"^    (?P<branches>[│├└─ ]*)(?P<name>[A-Z]\w+) +(?P<codes>[0-9/]+)   \S.*$", re.MULTILINE)


def drawn() -> dict[str, tuple[str | None, str]]:
    """The parent and the code of every class in the module's docstring, as they are drawn there."""
    found: dict[str, tuple[str | None, str]] = {}
    parents: dict[int, str] = {0: "BackupdError"}
    for match in DRAWN.finditer(errors.__doc__ or ""):
        depth = len(match["branches"]) // 3
        parents[depth] = match["name"]
        found[match["name"]] = (parents[depth - 1] if depth > 1 else "BackupdError" if depth else None, match["codes"])
    return found


def documented() -> dict[int, set[str]]:
    """The reasons of each code in README.md's table."""
    table = README.partition("## Exit codes")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([0-9, ]+) \| ([a-z_, ]*)\| .+ \|$", table, re.MULTILINE)
    return {
        int(code): {reason.strip() for reason in reasons.split(",") if reason.strip()}
        for codes, reasons in rows
        for code in codes.split(",")
    }


def parent(cls: type[BackupdError]) -> type[BackupdError]:
    assert cls.__base__ is not None
    assert issubclass(cls.__base__, BackupdError)
    return cls.__base__


def test_the_tree_is_drawn_as_the_classes_stand() -> None:
    expected: dict[str, tuple[str | None, str]] = {
        cls.__name__: (parent(cls).__name__, str(cls.exit_code)) for cls in FAILURES
    }
    assert drawn() == expected | {"Interrupted": (None, "130/143")}


def test_the_tree_has_two_levels() -> None:
    for cls in FAILURES:
        above = parent(cls)
        assert above is BackupdError or parent(above) is BackupdError, cls


def test_a_code_belongs_to_one_class_and_those_that_refine_it() -> None:
    owners: dict[int, set[type]] = defaultdict(set)
    for cls in FAILURES:
        owners[cls.exit_code].add(cls if parent(cls) is BackupdError else parent(cls))
    assert {code: found for code, found in owners.items() if len(found) > 1} == {}
    assert not owners.keys() & {0, 1, 130, 143}


def test_a_reason_belongs_to_one_class() -> None:
    reasons = [BackupdError.reason, Interrupted.reason, *(cls.reason for cls in FAILURES)]
    assert sorted(set(reasons)) == sorted(reasons)


def test_the_readme_has_every_code_with_its_reasons_and_no_other() -> None:
    expected: dict[int, set[str]] = defaultdict(set, {0: set()})
    every: list[type[BackupdError]] = [BackupdError, *FAILURES]
    for cls in every:
        expected[cls.exit_code].add(cls.reason)
    for number in (2, 15):
        expected[Interrupted(number).exit_code].add(Interrupted.reason)
    assert documented() == expected


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143)])
def test_an_interruption_escapes_those_who_catch_every_exception(number: int, code: int) -> None:
    with pytest.raises(Interrupted) as caught, contextlib.suppress(Exception):
        raise Interrupted(number)
    assert caught.value.exit_code == code
    assert str(number) in str(caught.value)
    assert not isinstance(caught.value, KeyboardInterrupt)


@pytest.mark.parametrize(
    ("detail", "hint", "text"),
    [
        (None, None, "message"),
        ("It says.", None, "message\ndetail: It says."),
        (None, "Do it.", "message\nhint: Do it."),
        ("It says.", "Do it.", "message\ndetail: It says.\nhint: Do it."),
    ],
)
def test_the_text_of_an_error_has_a_line_for_each_part(detail: str | None, hint: str | None, text: str) -> None:
    for cls in FAILURES:
        error = cls("message", detail=detail, hint=hint)
        assert str(error) == text
        assert (error.message, error.detail, error.hint) == ("message", detail, hint)
