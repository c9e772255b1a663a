"""The table of RELIABILITY.md: how many attacks there were, when, on which commit, and how many failed."""

import re
from dataclasses import astuple, dataclass
from pathlib import Path

RELIABILITY = Path(__file__).resolve().parents[2] / "RELIABILITY.md"
BEGIN, END = "<!-- attacks: scripts/attack --record -->", "<!-- end of attacks -->"
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
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    table, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{path} has no table between {BEGIN} and {END}")
    merged = {line.campaign: line for line in [*_read(table), *lines]}
    rows = [HEAD, ("---",) * len(HEAD), *(astuple(merged[name]) for name in sorted(merged))]
    text = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    path.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")


def _read(table: str) -> list[Line]:
    rows = [re.split(r" *\| *", row.strip(" |")) for row in table.strip().splitlines()[2:]]
    return [Line(*row) for row in rows]
