"""Medians, ranges and ratios of samples, as a Markdown table for people and a document for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from measure import Sample

MIB = 1 << 20

Samples = Mapping[str, Sequence[Sample]]
"""The runs of each pipeline, round by round."""


@dataclass(frozen=True)
class Goal:
    """A figure that must not exceed a limit."""

    text: str
    found: float
    limit: float
    range: tuple[float, float]

    @property
    def met(self) -> bool:
        """Whether it does not."""
        return self.found <= self.limit


def ratio(text: str, ours: Sequence[Sample], peer: Sequence[Sample], limit: float) -> Goal:
    """The medians' ratio of wall time, with the smallest and largest of a round."""
    pairs = [(mine.wall_seconds, other.wall_seconds) for mine, other in zip(ours, peer, strict=True)]
    rounds = [mine / other for mine, other in pairs]
    found = median(mine for mine, _ in pairs) / median(other for _, other in pairs)
    return Goal(text, found, limit, (min(rounds), max(rounds)))


def peak(text: str, values: Sequence[float], limit: float) -> Goal:
    """The highest of all values."""
    return Goal(text, max(values), limit, (min(values), max(values)))


def middle(text: str, values: Sequence[float], limit: float) -> Goal:
    """The median."""
    return Goal(text, median(values), limit, (min(values), max(values)))


def table(samples: Samples) -> str:
    """A line a pipeline: medians, and the range of wall time."""
    head = ("pipeline", "wall s (range)", *(title for title, _ in _TIMES), *(title for title, _ in _SIZES))
    lines = [
        (
            name,
            f"{_middle(runs, 'wall_seconds'):.2f} ({_least(runs):.2f}-{_most(runs):.2f})",
            *(f"{_middle(runs, field):.2f}" for _, field in _TIMES),
            *(f"{max(getattr(run, field) for run in runs) / MIB:.0f}" for _, field in _SIZES),
        )
        for name, runs in samples.items()
    ]
    return markdown(head, lines)


def goals(found: Sequence[Goal]) -> str:
    """A line a goal."""
    lines = [
        (goal.text, f"{goal.found:.2f} ({goal.range[0]:.2f}-{goal.range[1]:.2f})", f"<= {goal.limit:g}", _word(goal))
        for goal in found
    ]
    return markdown(("figure", "found (range)", "goal", ""), lines)


def document(samples: Mapping[str, Samples], found: Sequence[Goal], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, for `--json`."""
    plain = {part: {name: list(map(asdict, runs)) for name, runs in each.items()} for part, each in samples.items()}
    return {"facts": dict(facts), "samples": plain, "goals": [{**asdict(goal), "met": goal.met} for goal in found]}


_TIMES = (
    ("CPU s", "cpu_seconds"),
    ("PostgreSQL's", "server_cpu_seconds"),
    ("S3 server's", "s3_cpu_seconds"),
    ("others'", "other_cpu_seconds"),
)
_SIZES = (
    ("memory MiB", "first_rss_bytes"),
    ("of all processes", "tree_rss_bytes"),
    ("scratch MiB", "scratch_bytes"),
    ("stored MiB", "stored_bytes"),
)


def _middle(runs: Sequence[Sample], field: str) -> float:
    return float(median(getattr(run, field) for run in runs))


def _least(runs: Sequence[Sample]) -> float:
    return min(run.wall_seconds for run in runs)


def _most(runs: Sequence[Sample]) -> float:
    return max(run.wall_seconds for run in runs)


def _word(goal: Goal) -> str:
    return "met" if goal.met else "MISSED"


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of Markdown, its columns aligned."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in [head, *lines]]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    rows = [cells[0], ["-" * width for width in widths], *cells[1:]]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )
