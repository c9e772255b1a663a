"""The bench is code too: a pipeline that does not run any more is found here, not on the day of a release."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent / "bench"


def simulated(*arguments: str) -> str:
    """What the simulated fleet prints."""
    argv = [sys.executable, str(BENCH / "fleet.py"), *arguments]
    return subprocess.run(argv, check=True, timeout=60, stdout=subprocess.PIPE, text=True).stdout


def nights(text: str) -> dict[str, list[float]]:
    """The rows of its table, by arrangement."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {name: [float(figure) for figure in figures] for name, *figures in rows[2:]}


def test_the_simulated_fleet_is_the_one_that_the_documents_show() -> None:
    table = simulated().split("\n\n")[1]
    assert table in (BENCH.parent.parent / "BENCHMARKS.md").read_text()


def test_a_simulated_night_lets_no_more_pods_live_than_it_may_and_backs_up_everything() -> None:
    found = nights(simulated("--quick"))
    hours = [found[f"an index a server, {count} at a time"][0] for count in (2, 10, 20)]
    assert hours == sorted(hours, reverse=True)
    for count in (2, 10, 20):
        _, pods, at_once, sessions, *_ = found[f"an index a server, {count} at a time"]
        assert pods >= 20
        assert (at_once, sessions) == (count, 5)
    _, pods, at_once, sessions, *_ = found["a release a server, 2 databases at a time, all at 01:30"]
    assert pods >= 20 * 25
    assert (at_once, sessions) == (2 * 20, 10)


@pytest.mark.slow
def test_every_pipeline_of_the_bench_runs_and_every_restore_has_the_rows_of_the_source(tmp_path: Path) -> None:
    document = tmp_path / "bench.json"
    argv = [sys.executable, str(BENCH), "--quick", "--json", str(document), "--charts", str(tmp_path)]
    ran_through = subprocess.run(argv, check=True, timeout=600, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(document.read_text())
    ran = {part: set(pipelines) for part, pipelines in found["samples"].items()}
    assert {"pg_dump -Fd -j2 zstd:1", "pg_dump -Ft", "pg_dump -Z6", "backupd to disk"} <= ran["backup"]
    assert {"pg_restore -Fd -j2", "backupd from disk"} <= ran["restore"]
    parts = {"huge", "wide", "incompressible", "many tables", "restore of many tables", "list of many tables", "list"}
    assert parts | {"one table", "backup over a slow link", "restore over a slow link"} <= set(ran)
    assert "backupd to disk" in (tmp_path / "backup.svg").read_text()
    assert ran_through.count("## growth: ") == 4
    assert re.search(r"\| [1-9][0-9]* GET, [1-9][0-9]* PUT", ran_through)
    restored = {run["restored_rows"] for runs in found["samples"]["restore"].values() for run in runs}
    assert restored == {found["facts"]["app"]["rows"]}
