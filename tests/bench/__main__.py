"""Measures backupd beside what people use else, on this machine, and compares the ratios with the goals.

usage: scripts/bench [--quick] [--scale GB] [--runs N] [--only PART...] [--json FILE] [--charts FOLDER]

Everything runs on this machine, in alternation (A B C A B C...), after one round that does not count. Ratios within
one run can be compared with those of another machine; seconds cannot.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

import charts
import peers
import report
from machine import open_machine
from parts import DATABASE, PARTS, Bench, say


def main() -> int:
    options = arguments()
    facts: dict[str, object] = {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "runs": options.runs,
        "missing": peers.missing(),
    }
    with open_machine(options.directory, options.shared_buffers) as machine:
        if machine.bucket is None:
            say("rclone is not installed: nothing is measured with S3")
        bench = Bench(machine, options, facts)
        if {"backup", "restore", "link"} & set(options.only):
            bench.build(DATABASE)
        for part, measure in PARTS.items():
            if part in options.only:
                measure(bench)
    if not options.quick:  # its ratios are those of start-up times
        print(f"\n## goals\n\n{report.goals(bench.goals)}\n\n{json.dumps(bench.facts)}")
    if options.json is not None:
        options.json.write_text(json.dumps(report.document(bench.samples, bench.goals, bench.facts), indent=1))
    if options.charts is not None:
        charts.write(bench.samples, options.charts)
    return 0


def arguments() -> argparse.Namespace:
    """The command line; --quick sets what is not given to what takes seconds."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run in seconds: its figures mean nothing")
    parser.add_argument("--scale", type=float, help="size of the databases in GB (1.6)")
    parser.add_argument("--runs", type=int, help="runs of each pipeline (3)")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts to measure (all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample and figure there")
    parser.add_argument("--charts", type=Path, metavar="FOLDER", help="draw each part as an SVG there")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="where everything is put")
    parser.add_argument("--tables", type=int, help="tables of the part `many` (10000)")
    options = parser.parse_args()
    usual = {"scale": 1.6, "runs": 3, "tables": 10_000, "backups": 10_000, "databases": 200, "warm_up": 1}
    quick = {"scale": 0.02, "runs": 1, "tables": 50, "backups": 20, "databases": 3, "warm_up": 0}
    options.shared_buffers = "128MB" if options.quick else "1GB"
    for name, value in (quick if options.quick else usual).items():
        if getattr(options, name, None) is None:
            setattr(options, name, value)
    return options


if __name__ == "__main__":
    sys.exit(main())
