"""Finds the campaigns of this folder and carries their attacks out.

A campaign is a module that defines `WHOLE` and `PART`, how many attacks make a whole run and the part that CI has
time for, and `campaign(seed, count, folder)`, which yields at least that many, in an order that the seed decides.
Those that it yields besides take the place of attacks whose fault did not happen. With `TELLS_FIGURES` what its
attacks say is recorded, not only how many there were.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, cast

from attack.outcome import Attack, Outcome, carry_out

SEED = 6


class Campaign(Protocol):
    """What a campaign's module has."""

    __doc__: str | None
    WHOLE: int
    PART: int

    def campaign(self, seed: int, count: int, folder: Path) -> Iterator[Attack]:
        """At least `count` attacks, if there are so many; `folder` is empty, and theirs."""
        ...


def names() -> list[str]:
    """The campaigns."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [path.stem for path in files if "\ndef campaign(" in path.read_text(encoding="utf-8")]


def load(name: str) -> Campaign:
    """The campaign of that name."""
    return cast(Campaign, importlib.import_module(f"attack.{name}"))


def title(campaign: Campaign) -> str:
    """What is attacked, by the first line of the docstring."""
    return (campaign.__doc__ or "").partition("\n")[0].rstrip(".")


def outcomes(campaign: Campaign, seed: int, count: int, folder: Path, only: str | None = None) -> Iterator[Outcome]:
    """How `count` attacks end, one by one; with `only` just those of that label."""
    done = 0
    for attack in campaign.campaign(seed, count, folder):
        if only is not None and attack.label != only:
            continue
        outcome = carry_out(attack)
        if outcome is not None:
            yield outcome
            done += 1
        if done == count:
            return
