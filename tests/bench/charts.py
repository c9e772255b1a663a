"""Bars of wall time as SVG, for a document: one picture a part, light or dark like the reader's page."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import median

from measure import Sample
from report import Samples

_ROW, _LABEL, _WIDTH, _BAR, _FIGURE = 26, 300, 860, 16, 70
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1f2328}.peer{fill:#8c959f}.ours{fill:#1a7f64}.range{stroke:#1f2328}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.peer{fill:#6e7681}.ours{fill:#3fb68b}.range{stroke:#e6edf3}}"
)


def write(parts: Mapping[str, Samples], folder: Path) -> None:
    """Draws each part into a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, samples in parts.items():
        (folder / f"{part.replace(' ', '-')}.svg").write_text(bars(part, samples), encoding="utf-8")


def bars(part: str, samples: Samples) -> str:
    """The pipelines by their medians, the fastest first; a thin line is the range of the runs."""
    ranked = sorted(samples.items(), key=lambda item: _median(item[1]))
    longest = max((run.wall_seconds for _, runs in ranked for run in runs), default=1.0)
    unit = (_WIDTH - _LABEL - _FIGURE) / longest
    rows = "".join(_bar(number, name, runs, unit) for number, (name, runs) in enumerate(ranked))
    size = f'width="{_WIDTH}" height="{_ROW * len(ranked) + 10}"'
    said = "; ".join(f"{name} {_median(runs):.1f}" for name, runs in ranked)
    title = f"<title>{escape(f'{part}, wall time in seconds: {said}')}</title>"
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    return f"{opening}{title}<style>{_STYLE}</style>{rows}</svg>\n"


def _bar(number: int, name: str, runs: Sequence[Sample], unit: float) -> str:
    top, middle = 5 + number * _ROW, _median(runs)
    least, most = (_LABEL + unit * pick(run.wall_seconds for run in runs) for pick in (min, max))
    kind = "ours" if name.startswith(("backupd", "one table", "list")) else "peer"
    across = top + _BAR / 2
    return (
        f'<text x="{_LABEL - 8}" y="{top + 13}" text-anchor="end">{escape(name)}</text>'
        f'<rect class="{kind}" x="{_LABEL}" y="{top}" width="{unit * middle:.1f}" height="{_BAR}" rx="2"/>'
        f'<line class="range" x1="{least:.1f}" x2="{most:.1f}" y1="{across}" y2="{across}"/>'
        f'<text x="{most + 6:.1f}" y="{top + 13}">{middle:.1f} s</text>'
    )


def _median(runs: Sequence[Sample]) -> float:
    return median(run.wall_seconds for run in runs)
