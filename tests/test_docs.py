"""The documents say what the program does: verbs, exit codes, settings, words of the format."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from typer.main import get_command

from backupd import cli
from backupd.manifest import FORMAT, Manifest
from backupd.sections import RUN_VARIABLES, variables

TOP = Path(__file__).parent.parent
README = (TOP / "README.md").read_text(encoding="utf-8")
FORMAT_TEXT = (TOP / "FORMAT.md").read_text(encoding="utf-8")
OPERATIONS = (TOP / "OPERATIONS.md").read_text(encoding="utf-8")
DOCUMENTS = sorted([*TOP.glob("*.md"), *(TOP / "chart").rglob("*.md")])

VERBS = sorted(getattr(get_command(cli.app), "commands"))  # noqa: B009  # typer's own class, without a public name


@pytest.mark.parametrize("verb", VERBS)
def test_the_readme_has_every_verb(verb: str) -> None:
    assert re.search(rf"`{verb}[ `]", README), f"README.md does not explain {verb}"


def test_the_readme_has_no_verb_that_does_not_exist() -> None:
    table = README.partition("| verb | does |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`([a-z]+)[ `]", table))

    assert named - {"restore"} <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_its_options_are_explained(verb: str) -> None:
    command = getattr(get_command(cli.app), "commands")[verb]  # noqa: B009

    assert command.help
    assert all(getattr(parameter, "help", "") for parameter in command.params), verb


def test_every_variable_is_in_the_readme() -> None:
    names = [variable.name for variable in variables()] + list(RUN_VARIABLES)

    assert not [name for name in names if f"`{name}`" not in README]


def test_every_variable_that_the_documents_name_exists() -> None:
    known = {name for one in variables() for name in (one.name, one.file_name)} | set(RUN_VARIABLES)
    named = set(re.findall(r"\bBACKUPD_[A-Z0-9_]*[A-Z0-9]\b", README + FORMAT_TEXT + OPERATIONS))

    assert named <= known


def anchors(document: Path) -> set[str]:
    """What a link may name behind `#` in a document: its headings, as forges write them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(TOP)))
def test_every_link_to_another_place_in_the_documents_leads_there(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"\s+", " ", document.read_text(encoding="utf-8")))

    for file, _, anchor in (link.partition("#") for link in links if not link.startswith(("http://", "https://"))):
        place = (document.parent / file).resolve() if file else document
        assert place.exists(), f"{document.name} links to {file}"
        assert not anchor or anchor in anchors(place), f"{document.name} links to {file}#{anchor}"


def test_the_format_document_has_every_field_of_the_manifest() -> None:
    assert not [field.name for field in fields(Manifest) if f"`{field.name}`" not in FORMAT_TEXT]
    assert f"format version {FORMAT}" in FORMAT_TEXT


def test_hints_name_settings_that_exist() -> None:
    known = {name for one in variables() for name in (one.name, one.file_name)} | set(RUN_VARIABLES)
    sources = "".join(path.read_text(encoding="utf-8") for path in (TOP / "backupd").rglob("*.py"))
    named = set(re.findall(r"\bBACKUPD_[A-Z0-9_]*[A-Z0-9]\b", sources))

    assert not {name for name in named - known if not any(each.startswith(name) for each in known)}


def test_hints_name_verbs_that_exist() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (TOP / "backupd").rglob("*.py"))
    named = set(re.findall(r"`backupd ([a-z]+)", sources))

    assert named - {"verb"} <= set(VERBS)
