"""Measures backupd beside what people use else, on this machine, and compares the ratios with the goals.

usage: scripts/bench [--quick] [--scale GB] [--runs N] [--only PART...] [--json FILE] [--directory FOLDER]

Everything runs on this machine, in alternation (A B C A B C...), after one round that does not count. Ratios within
one run can be compared with those of another machine; seconds cannot.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import database
import listing
import pipelines
import report
from machine import Machine, open_machine
from measure import Sample
from pipelines import BARE_DUMP, BARE_RESTORE, FROM_DISK, FROM_S3, GZIP, TAR, TAR_TO_S3, TO_DISK, TO_S3, Pipeline

PARTS = ("backup", "restore", "many", "list")
DATABASE, MANY = "app", "many"
MIB = 1 << 20
MEMORY_MIB, SCRATCH_SHARE, LIST_CPU_SECONDS = 200, 0.75, 0.6


class Bench:
    """One session of measuring: what was found so far."""

    def __init__(self, machine: Machine, options: argparse.Namespace) -> None:
        self.machine = machine
        self.options = options
        self.samples: dict[str, dict[str, list[Sample]]] = {}
        self.goals: list[report.Goal] = []
        self.facts: dict[str, object] = {
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "runs": options.runs,
            "tables_of_many": options.tables,
        }

    def measure(self, part: str, compared: Sequence[Pipeline], runs: int) -> dict[str, list[Sample]]:
        """Runs the pipelines in alternation; the first round warms up."""
        found: dict[str, list[Sample]] = {pipeline.name: [] for pipeline in compared}
        for number in range(self.options.warm_up + runs):
            for pipeline in compared:
                sample = pipelines.run(self.machine, pipeline)
                say(f"{part} {number}: {pipeline.name} {sample.wall_seconds:.2f} s, {sample.cpu_seconds:.2f} CPU s")
                if number >= self.options.warm_up:
                    found[pipeline.name].append(sample)
        self.samples[part] = found
        print(f"\n## {part}\n\n{report.table(found)}\n", flush=True)
        return found

    def compare(self, found: report.Samples, ours: str, limits: Mapping[str, float], what: str = "") -> None:
        """Adds a goal for each peer that was measured, and one for the memory of our process.

        pg_dump's and pg_restore's own is in the table: for 10,000 tables they take twice as much as we do.
        """
        if ours in found:
            for peer, limit in limits.items():
                if peer in found:
                    self.goals.append(report.ratio(f"{what}{ours} / {peer}", found[ours], found[peer], limit))
            memory = [run.first_rss_bytes / MIB for run in found[ours]]
            self.goals.append(report.peak(f"{what}{ours}: memory, MiB", memory, MEMORY_MIB))


def say(text: str) -> None:
    """A line for whoever watches."""
    print(text, file=sys.stderr, flush=True)


def backup(bench: Bench) -> None:
    """backupd and its peers, to disk and to S3."""
    found = bench.measure("backup", pipelines.backups(bench.machine, DATABASE), bench.options.runs)
    bench.compare(found, TO_DISK, {BARE_DUMP: 1.45, TAR: 0.75, GZIP: 0.20})
    bench.compare(found, TO_S3, {TAR_TO_S3: 0.65})
    for name in (TO_DISK, TO_S3):
        shares = [run.scratch_bytes / run.stored_bytes for run in found.get(name, ())]
        if shares:
            bench.goals.append(report.peak(f"{name}: scratch / archive", shares, SCRATCH_SHARE))


def restore(bench: Bench) -> None:
    """backupd from disk and from S3 beside pg_restore; the rows of each are counted."""
    found = bench.measure("restore", pipelines.restores(bench.machine, DATABASE), bench.options.runs)
    bench.compare(found, FROM_DISK, {BARE_RESTORE: 1.15})
    bench.compare(found, FROM_S3, {BARE_RESTORE: 1.25})


def many(bench: Bench) -> None:
    """A database of very many tables: its dump, and what its backup does to `list`."""
    database.build_many(bench.machine.connect, MANY, bench.options.tables)
    found = bench.measure("many tables", pipelines.dumps(bench.machine, MANY), bench.options.runs)
    bench.compare(found, TO_DISK, {BARE_DUMP: 1.5}, "many tables: ")
    compared = pipelines.listing(bench.machine, "list of a backup of many tables", bench.machine.store)
    lists = bench.measure("list of many tables", [compared], bench.options.lists)
    add_list(bench, compared.name, lists)


def list_(bench: Bench) -> None:
    """`backupd list` of an empty folder, and of many backups in a folder and on S3."""
    machine, count = bench.machine, bench.options.backups
    empty, full = machine.folder / "empty", (machine.bucket or machine.folder) / "backups"
    empty.mkdir()
    nothing = pipelines.listing(machine, "list of an empty folder", empty)
    add_list(bench, nothing.name, bench.measure("empty list", [nothing], bench.options.lists))
    listing.fill(full, count)
    stores = {f"folder of {count} backups": full, f"S3 with {count} backups": machine.bucket}
    compared = [pipelines.listing(machine, name, store) for name, store in stores.items() if store is not None]
    bench.measure("list", compared, bench.options.runs)


def add_list(bench: Bench, name: str, found: report.Samples) -> None:
    """Adds the goal for the CPU time of a list."""
    cpu_seconds = [run.cpu_seconds for run in found[name]]
    bench.goals.append(report.middle(f"{name}: CPU s", cpu_seconds, LIST_CPU_SECONDS))


def main() -> int:
    options = arguments()
    shared_buffers = "128MB" if options.quick else "1GB"
    with open_machine(options.directory, shared_buffers) as machine:
        if machine.bucket is None:
            say("rclone is not installed: nothing is measured with S3")
        bench = Bench(machine, options)
        if {"backup", "restore"} & set(options.only):
            say(f"building a database of about {options.scale:g} GB")
            database.build(machine.connect, DATABASE, options.scale)
            bench.facts["database_bytes"] = database.size_bytes(machine.connect, DATABASE)
            bench.facts["rows"] = sum(database.row_counts(machine.connect, DATABASE).values())
            bench.facts["largest"] = database.describe(machine.connect, DATABASE)
        steps = {"backup": backup, "restore": restore, "many": many, "list": list_}
        for part in PARTS:
            if part in options.only:
                steps[part](bench)
    if not options.quick:  # its ratios are those of start-up times
        print(f"\n## goals\n\n{report.goals(bench.goals)}\n\n{json.dumps(bench.facts)}")
    if options.json is not None:
        options.json.write_text(json.dumps(report.document(bench.samples, bench.goals, bench.facts), indent=1))
    return 0


def arguments() -> argparse.Namespace:
    """The command line; --quick sets what is not given to what takes seconds."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run in seconds: its figures mean nothing")
    parser.add_argument("--scale", type=float, help="size of the database in GB (1)")
    parser.add_argument("--runs", type=int, help="runs of each pipeline (3)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure (all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample and figure there")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="where everything is put")
    parser.add_argument("--tables", type=int, help="tables of the part `many` (10000)")
    options = parser.parse_args()
    usual = {"scale": 1.0, "runs": 3, "tables": 10_000, "backups": 1000, "lists": 10, "warm_up": 1}
    quick = {"scale": 0.05, "runs": 1, "tables": 200, "backups": 20, "lists": 1, "warm_up": 0}
    for name, value in (quick if options.quick else usual).items():
        if getattr(options, name, None) is None:
            setattr(options, name, value)
    return options


if __name__ == "__main__":
    sys.exit(main())
