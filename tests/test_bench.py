"""The bench is code too: a pipeline that does not run any more is found here, not on the day of a release."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent / "bench"


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
