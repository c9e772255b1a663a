"""What a campaign is made of: attacks, each one promise under one fault, and how each ended."""

import random
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pytest

T = TypeVar("T")

_DETAIL_LIMIT = 4000  # characters


class Missed(Exception):
    """The fault did not happen, as where a run ended before its n-th call: no attack, and not counted as one."""


@dataclass(frozen=True)
class Attack:
    """One attack. `act` does it and says in a few words what came of it; it raises where a promise was broken.

    `label` names it within its campaign, the same by the same seed, so that it can be repeated by itself.
    """

    label: str
    act: Callable[[], str]


@dataclass(frozen=True)
class Outcome:
    """How an attack ended: `ok` is whether every promise held."""

    label: str
    ok: bool
    detail: str


def carry_out(attack: Attack) -> Outcome | None:
    """Does it. None where the fault did not happen. Whatever else is raised is a promise that was broken."""
    try:
        return Outcome(attack.label, True, attack.act())
    except Missed:
        return None
    except (Exception, pytest.fail.Exception):  # noqa: BLE001  # that of pytest is no Exception
        return Outcome(attack.label, False, traceback.format_exc()[-_DETAIL_LIMIT:])


def shuffled(seed: int, values: Sequence[T]) -> list[T]:
    """The values in an order that is the same by the same seed."""
    return random.Random(seed).sample(values, len(values))
