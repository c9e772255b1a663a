"""SIGKILL at every n-th system call that touches a file, a socket or a child.

The victim is backupd, or the pg_dump or pg_restore that it runs. What must be true afterwards stands in scenes.py.
"""

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from attack.ground import ground
from attack.outcome import Attack
from attack.points import mixed, strike

WHOLE, PART = 500, 10


def campaign(seed: int, count: int, folder: Path) -> Iterator[Attack]:
    """Points of all scenes."""
    with ground(folder) as made:
        for point in mixed(made, random.Random(seed), every=True):
            yield Attack(point.label, partial(strike, made, point, "signal=KILL"))
