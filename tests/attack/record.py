"""The table of RELIABILITY.md: how many attacks there were, when, on which commit, and how many failed."""

import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from attack.outcome import Outcome

RELIABILITY = Path(__file__).resolve().parents[2] / "RELIABILITY.md"
BEGIN, END = "<!-- attacks: scripts/attack --record -->", "<!-- end of attacks -->"
FIGURES_BEGIN, FIGURES_END = "<!-- figures: scripts/attack --record -->", "<!-- end of figures -->"
HEAD = ("campaign", "what is attacked", "attacks", "failed", "seed", "seconds", "date", "commit")


@dataclass(frozen=True)
class Line:
    """One campaign's line, as it is written."""

    campaign: str
    what: str
    attacks: str
    failed: str
    seed: str
    seconds: str
    date: str
    commit: str


def write(lines: list[Line], path: Path = RELIABILITY) -> None:
    """Puts the lines into the table, in place of those of the same campaigns."""
    before, table, after = _between(path, BEGIN, END)
    merged = {line.campaign: line for line in [*_read(table), *lines]}
    rows = [HEAD, ("---",) * len(HEAD), *(astuple(merged[name]) for name in sorted(merged))]
    text = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    path.write_text(f"{before}\n{text}{after}", encoding="utf-8")


def write_figures(outcomes: Sequence[Outcome], path: Path = RELIABILITY) -> None:
    """Puts what each attack told in place of the figures that are there."""
    before, _, after = _between(path, FIGURES_BEGIN, FIGURES_END)
    text = "".join(f"- {outcome.label}: {outcome.detail}.\n" for outcome in outcomes)
    path.write_text(f"{before}\n{text}{after}", encoding="utf-8")


def _between(path: Path, begin: str, end: str) -> tuple[str, str, str]:
    """What is before the text between the two lines, it, and what is after; each line is with its outside."""
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    text, ended, after = rest.partition(end)
    if not ended:
        raise ValueError(f"{path} has nothing between {begin} and {end}")
    return before + found, text, ended + after


def _read(table: str) -> list[Line]:
    rows = [re.split(r" *\| *", row.strip(" |")) for row in table.strip().splitlines()[2:]]
    return [Line(*row) for row in rows]
