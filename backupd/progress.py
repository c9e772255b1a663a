"""What a long run has done so far, as one value that changes; who shows it, and how often, is the caller's business.

What is left is estimated from the average since a stage began: a rate of the last seconds would jump with each table.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

_LEAST_SHARE = 0.01
"""Below this an estimate says nothing."""


@dataclass(frozen=True)
class Place:
    """Where a run over several databases is: its `number`th of `total`.

    `share_before` of the whole (0 to 1) is in the databases before it, `own_share` in itself.
    """

    number: int = 1
    total: int = 1
    share_before: float = 0.0
    own_share: float = 1.0


@dataclass
class Progress:
    """Counts of one stage; `show` gets it after each change and between them, and decides how often it speaks.

    `copying_bytes` and `copying_rows` are of members that pg_dump still writes (pg_stat_progress_copy). `total_bytes`
    may be a guess, and 0 where there is none.
    """

    show: Callable[["Progress"], None] = lambda _: None
    stage: str = ""
    subject: str = ""
    done_members: int = 0
    total_members: int = 0
    done_bytes: int = 0
    total_bytes: int = 0
    done_rows: int = 0
    copying_bytes: int = 0
    copying_rows: int = 0
    place: Place = field(default_factory=Place)

    def begin(self, stage: str, subject: str, total_members: int = 0, total_bytes: int = 0) -> None:
        """Starts a stage: all counts are 0 again."""
        self.stage, self.subject = stage, subject
        self.total_members, self.total_bytes = total_members, total_bytes
        self.done_members = self.done_bytes = self.done_rows = self.copying_bytes = self.copying_rows = 0
        self.show(self)

    def advance(self, done_bytes: int = 0, done_members: int = 0, done_rows: int = 0) -> None:
        """Adds to the counts."""
        self.done_bytes += done_bytes
        self.done_members += done_members
        self.done_rows += done_rows
        self.show(self)

    def copying(self, copying_bytes: int, copying_rows: int) -> None:
        """Says what is being written at this moment."""
        self.copying_bytes, self.copying_rows = copying_bytes, copying_rows
        self.show(self)

    def reach(self, done_bytes: int) -> None:
        """Says how far the stage has come."""
        self.done_bytes = done_bytes
        self.show(self)

    @property
    def share(self) -> float | None:
        """How much of the stage is done, 0 to 1; None where that is not known."""
        done, total = self.done_bytes + self.copying_bytes, self.total_bytes
        if not total:
            done, total = self.done_members, self.total_members
        return min(1.0, done / total) if total else None

    @property
    def whole_share(self) -> float | None:
        """How much of all databases is done."""
        share = self.share
        return None if share is None else self.place.share_before + self.place.own_share * share


def places(weights: Sequence[int]) -> list[Place]:
    """The place of each database; the weights are their sizes, and where none is known all weigh the same."""
    known = list(weights) if any(weights) else [1] * len(weights)
    whole = sum(known)
    return [
        Place(number, len(known), sum(known[: number - 1]) / whole, weight / whole)
        for number, weight in enumerate(known, 1)
    ]


def seconds_left(elapsed_seconds: float, share: float | None) -> float | None:
    """About how long the rest takes, where `share` was reached in that time."""
    if share is None or share < _LEAST_SHARE:
        return None
    return elapsed_seconds * (1 - share) / share
