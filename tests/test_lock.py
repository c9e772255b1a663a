"""requirements.lock, from which the image is made, pins what pyproject.toml asks for."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOP = Path(__file__).parent.parent
LOCK = (TOP / "requirements.lock").read_text(encoding="utf-8")
DEPENDENCIES = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]

ENTRIES = re.findall(r"^([^\s#-][^\\\n]*)((?: *\\\n +--hash=sha256:[0-9a-f]{64})*)", LOCK, re.MULTILINE)
"""(requirement, its hashes) of each line that begins at the margin."""

PINS = [Requirement(text) for text, _ in ENTRIES]


@pytest.mark.parametrize("text", DEPENDENCIES)
def test_every_dependency_is_pinned_within_its_range(text: str) -> None:
    wanted = Requirement(text)
    pins = [pin for pin in PINS if canonicalize_name(pin.name) == canonicalize_name(wanted.name)]
    pinned = [specifier for pin in pins for specifier in pin.specifier]

    assert pins, f"run scripts/lock: {wanted.name} is not in requirements.lock"
    assert {specifier.operator for specifier in pinned} == {"=="}
    assert all(wanted.specifier.contains(specifier.version) for specifier in pinned), "run scripts/lock"


def test_every_extra_of_a_dependency_is_pinned() -> None:
    extras = {f"{wanted.name}-{extra}" for wanted in map(Requirement, DEPENDENCIES) for extra in wanted.extras}

    assert extras <= {pin.name for pin in PINS}


def test_every_pin_has_hashes() -> None:
    assert not [text for text, hashes in ENTRIES if not hashes]


def test_the_lock_names_no_index() -> None:
    assert "://" not in LOCK
    assert not re.search(r"^\s*--(?!hash=)", LOCK, re.MULTILINE)
