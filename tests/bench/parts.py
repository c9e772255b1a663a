"""The parts of the bench: what each builds, compares and must not exceed.

The limits are the goals of the project; a figure that misses its goal is printed like the others.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence

import database
import growing
import listing
import peers
import pipelines
import report
from machine import Machine, has_server, linked, open_machine
from measure import Sample
from pipelines import BARE_DUMP, BARE_RESTORE, FROM_DISK, FROM_S3, ONE_TABLE, SERIAL_RESTORE, TO_DISK, TO_S3, Pipeline

DATABASE, MANY, CLUSTER = "app", "many", "cluster"
CLUSTER_MAJOR = 15
MIB = 1 << 20
MEMORY_MIB, SCRATCH_SHARE = 160, 0.65
LINK_BYTES_PER_SECOND, LINK_DELAY_SECONDS = 50e6, 0.02

DISK_GOALS = {BARE_DUMP: 1.38, peers.GZIP: 0.18, peers.FAST_GZIP: 0.50, peers.TAR: 0.70}
S3_GOALS = {peers.CUSTOM_TO_S3: 0.23, peers.ALL_TO_S3: 0.36, peers.FOLDER_TO_S3: 0.38, peers.TAR_TO_S3: 0.60}
RESTORE_GOALS = {peers.FROM_GZIP: 0.62, peers.FROM_TAR: 0.74, BARE_RESTORE: 1.05}


class Bench:
    """One session of measuring: what was found so far."""

    def __init__(self, machine: Machine, options: argparse.Namespace, facts: dict[str, object]) -> None:
        self.machine = machine
        self.options = options
        self.samples: dict[str, dict[str, list[Sample]]] = {}
        self.goals: list[report.Goal] = []
        self.facts = facts

    def build(self, name: str) -> None:
        """Makes a database and notes what is in it."""
        say(f"building database {name} of about {self.options.scale:g} GB")
        connect = self.machine.connect
        database.build(connect, name, self.options.scale)
        rows = sum(database.row_counts(connect, name).values())
        largest = database.describe(connect, name)
        self.facts[name] = {"bytes": database.size_bytes(connect, name), "rows": rows, "largest": largest}

    def measure(self, part: str, compared: Sequence[Pipeline]) -> dict[str, list[Sample]]:
        """Runs the pipelines in alternation; the first round warms up."""
        found: dict[str, list[Sample]] = {pipeline.name: [] for pipeline in compared}
        for number in range(self.options.warm_up + self.options.runs):
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
    machine = bench.machine
    ours = [*pipelines.dumps(machine, DATABASE), *pipelines.to_s3(machine, DATABASE)]
    theirs = [*peers.to_disk(machine, DATABASE), *peers.to_s3(machine, DATABASE)]
    found = bench.measure("backup", [*ours, *theirs])
    bench.compare(found, TO_DISK, DISK_GOALS)
    bench.compare(found, TO_S3, S3_GOALS)
    shares = [run.scratch_bytes / run.stored_bytes for run in found.get(TO_S3, ())]
    if shares:
        bench.goals.append(report.peak(f"{TO_S3}: scratch / archive", shares, SCRATCH_SHARE))


def restore(bench: Bench) -> None:
    """backupd from disk and from S3 beside pg_restore and psql; the rows of each are counted."""
    machine, dumps = bench.machine, bench.machine.folder / "dumps"
    dumps.mkdir()
    theirs = list(peers.restores(machine, DATABASE, dumps))
    found = bench.measure("restore", [*pipelines.restores(machine, DATABASE), *theirs])
    bench.compare(found, FROM_DISK, RESTORE_GOALS)
    bench.compare(found, FROM_S3, {BARE_RESTORE: 1.15})
    table = database.table_of_share(machine.connect, DATABASE, 0.01)
    if (one := pipelines.one_table(machine, DATABASE, table)) is not None:
        alone = bench.measure("one table", [one])
        bench.goals.append(report.ratio(f"{ONE_TABLE} ({table}) / {FROM_S3}", alone[ONE_TABLE], found[FROM_S3], 0.05))


def shapes(bench: Bench) -> None:
    """Other data: one table of 90 %, jsonb and TOAST, random bytes."""
    for name in database.SHAPES:
        bench.build(name)
        found = bench.measure(name, pipelines.dumps(bench.machine, name))
        bench.compare(found, TO_DISK, {BARE_DUMP: 0.95 if name == "huge" else DISK_GOALS[BARE_DUMP]}, f"{name}: ")
        bench.machine.drop(name)


def link(bench: Bench) -> None:
    """The bucket behind a link of 50 MB/s and 20 ms: what leaves while pg_dump runs, against what leaves after it."""
    near = bench.machine
    if near.bucket is None:
        return
    with linked(near, LINK_BYTES_PER_SECOND, LINK_DELAY_SECONDS) as far:
        bench.machine = far
        after = [each for each in peers.to_s3(far, DATABASE) if each.name == peers.FAST_FOLDER_TO_S3]
        found = bench.measure("backup over a slow link", [*pipelines.to_s3(far, DATABASE), *after])
        bench.compare(found, TO_S3, {peers.FAST_FOLDER_TO_S3: 0.90}, "slow link: ")
        compared = [each for each in pipelines.restores(far, DATABASE) if each.name != FROM_DISK]
        fetch = peers.fetch(far, next(near.bucket.rglob("*.tar")))
        found = bench.measure("restore over a slow link", [*compared, *fetch])
        bound = max(found.keys() - {FROM_S3}, key=lambda name: sum(run.wall_seconds for run in found[name]))
        bench.goals.append(report.ratio(f"slow link: {FROM_S3} / {bound}", found[FROM_S3], found[bound], 1.40))
    bench.machine = near


def many(bench: Bench) -> None:
    """A database of very many tables: its dump, its restore, and what its backup does to `list`."""
    machine = bench.machine
    database.build_many(machine.connect, MANY, bench.options.tables)
    found = bench.measure("many tables", pipelines.dumps(machine, MANY))
    bench.compare(found, TO_DISK, {BARE_DUMP: 1.10}, "many tables: ")
    compared = [each for each in pipelines.restores(machine, MANY, jobs=1) if each.name != FROM_S3]
    found = bench.measure("restore of many tables", compared)
    bench.compare(found, FROM_DISK, {SERIAL_RESTORE: 1.05}, "many tables: ")
    bench.measure("list of many tables", [pipelines.listing(machine, "list of a backup of many tables", machine.store)])
    machine.drop(MANY)


def cluster(bench: Bench) -> None:
    """pgBackRest beside backupd, on PostgreSQL 15: Debian's knows none that is newer."""
    if "pgbackrest" in peers.missing() or not has_server(CLUSTER_MAJOR):
        say("pgbackrest or PostgreSQL 15 is not installed: neither is measured")
        return
    usual, options = bench.machine, bench.options
    with open_machine(options.directory, options.shared_buffers, CLUSTER_MAJOR, archive_mode="on") as bench.machine:
        peers.archive_by(bench.machine, "true")  # what builds the database writes as much WAL as it has rows
        bench.build(CLUSTER)
        ours = [each for each in pipelines.dumps(bench.machine, CLUSTER) if each.name == TO_DISK]
        bench.measure("cluster", [*ours, *peers.cluster(bench.machine)])
    bench.machine = usual


def list_(bench: Bench) -> None:
    """`backupd list` of an empty folder, and of many backups in a folder and on S3; of one database among 200."""
    machine, count = bench.machine, bench.options.backups
    empty, full, fleet = (machine.folder / name for name in ("empty", "full", "fleet"))
    empty.mkdir()
    listing.fill(full, count)
    listing.fill(fleet, count, databases=200)
    nothing, everything, one = "list of nothing", f"list of {count} backups", "list of one database among 200"
    compared = [
        pipelines.listing(machine, nothing, empty),
        pipelines.listing(machine, everything, full),
        pipelines.listing(machine, one, fleet, "prod/app_7"),
    ]
    if machine.bucket is not None:
        listing.fill(machine.bucket / "backups", min(count, 1000))
        compared.append(pipelines.listing(machine, f"list of {min(count, 1000)} backups on S3", machine.bucket))
    found = bench.measure("list", compared)
    bench.goals.append(report.middle(f"{everything}: s", _walls(found[everything]), 3.0))
    beyond = [ours - start for ours, start in zip(_walls(found[one]), _walls(found[nothing]), strict=True)]
    bench.goals.append(report.middle(f"{one}: s beyond the start", beyond, 0.2))


def growth(bench: Bench) -> None:
    """How time, memory and requests grow with size, tables, databases and backups in the catalog."""
    machine, options = bench.machine, bench.options
    if machine.bucket is None:
        return
    machine.drop(DATABASE)  # every database of the server is backed up below
    for title, lines in (
        ("size in GB", growing.by_size(machine, options.scale / 10)),
        ("tables", growing.by_tables(machine, options.tables)),
        ("databases", growing.by_databases(machine, options.databases)),
        ("backups in the catalog", growing.by_backups(machine, options.backups)),
    ):
        print(f"\n## growth: {title}\n\n{report.markdown((title, *growing.HEAD), list(lines))}\n", flush=True)


def _walls(runs: Sequence[Sample]) -> list[float]:
    return [run.wall_seconds for run in runs]


PARTS = {
    "backup": backup,
    "restore": restore,
    "shapes": shapes,
    "link": link,
    "many": many,
    "list": list_,
    "cluster": cluster,
    "growth": growth,
}
