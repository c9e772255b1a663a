"""A night of a fleet on one cluster, simulated: how long it takes, and what it asks of servers, store and API.

usage: python tests/bench/fleet.py [--quick]

Nothing is measured here. It is arithmetic, with a seed, about figures that were measured on small things (each constant
says where), for what nobody can try on one machine: 5,000 databases on 200 servers. Its seconds are a guess within a
factor of two; what it is for is which way of arranging the Jobs costs what.
"""

import argparse
import heapq
import random
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter

SEED = 20261126

MEDIAN_BYTES, SIGMA = 400e6, 1.6
"""Sizes of databases: most are small, a few have most of the bytes. Assumed."""

BYTES_PER_SECOND = 120e6
"""Of a database, by one pod: half of what two cores did with server and store on them (BENCHMARKS.md)."""

STORED_SHARE = 0.2
"""Of a database's bytes, in its archive (BENCHMARKS.md)."""

POD_SECONDS = 5.0
"""From the Job's controller to the end of an empty pod, on a cluster of one node."""

RUN_SECONDS, DATABASE_SECONDS = 1.3, 0.6
"""The start of Python with boto3 and the look at clients; a database with next to nothing in it."""

REQUEST_SECONDS = 0.03
"""A small request to a store in the same region. Assumed."""

SESSIONS = 5
"""Of a backup with two jobs: the lock's, the snapshot's, pg_dump's own and its two workers'."""

FAILURES, RETRY_SECONDS = 0.01, 10.0
"""How many pods fail for what another try cures (assumed), and how long Kubernetes waits before that."""

PART_BYTES, READERS, KEPT = 16 << 20, 8, 30
"""Of an upload; manifests that are read at once; backups that are kept of each database."""

POD_WRITES, POD_OBJECT_BYTES, NAME_BYTES, KEPT_JOBS = 8, 8_000, 16, 8
"""Writes to the API in a pod's life, its object's size, that of a name in it, and the Jobs that the chart's history
limits keep, with their pods. The first two are assumed."""


@dataclass(frozen=True)
class Index:
    """What one pod does: databases of one server."""

    server: int
    databases: tuple[float, ...]

    @property
    def lists_and_puts(self) -> int:
        """LISTs, PUTs and POSTs: 8 and a manifest a backup, the archive, and a LIST for the one that is removed."""
        return sum(10 + _uploads(each) for each in self.databases)

    @property
    def gets(self) -> int:
        """GETs: each manifest once, and an index."""
        return len(self.databases) * (KEPT + 2)

    @property
    def seconds(self) -> float:
        """How long its pod lives."""
        waited = REQUEST_SECONDS * (11 + KEPT / READERS)  # parts leave while the dump runs
        work = sum(DATABASE_SECONDS + waited + size / BYTES_PER_SECOND for size in self.databases)
        return POD_SECONDS + RUN_SECONDS + work


def _uploads(size_bytes: float) -> int:
    """The requests for an archive: one, or begin, parts and end."""
    parts = -int(-size_bytes * STORED_SHARE // PART_BYTES)
    return 1 if parts <= 1 else parts + 2


@dataclass(frozen=True)
class Job:
    """An Indexed Job: its indexes, so many at a time, in that order; it begins `begins` seconds into the night."""

    indexes: Sequence[Index]
    parallelism: int
    begins: float = 0.0


@dataclass(frozen=True)
class Pod:
    """One try of an index."""

    index: Index
    begins: float
    ends: float


def run(job: Job, chance: random.Random) -> list[Pod]:
    """The pods of a Job. A failed index is tried once more, before those that have not begun, after a wait."""
    waiting, again = deque(job.indexes), list[tuple[float, Index]]()
    free = [job.begins] * job.parallelism
    pods = []
    while waiting or again:
        begins = heapq.heappop(free)
        soonest = min(again, key=itemgetter(0)) if again else None
        retry = soonest is not None and (not waiting or soonest[0] <= begins)
        ready, index = soonest if soonest is not None and retry else (begins, waiting.popleft())
        if retry:
            again.remove((ready, index))
        begins, whole = max(ready, begins), retry or chance.random() >= FAILURES
        ends = begins + index.seconds * (1.0 if whole else chance.random())
        pods.append(Pod(index, begins, ends))
        heapq.heappush(free, ends)
        if not whole:
            again.append((ends + RETRY_SECONDS, index))
    return pods


def most(pods: Iterable[Pod]) -> int:
    """How many of them live at the same time."""
    changes = sorted([(pod.begins, 1) for pod in pods] + [(pod.ends, -1) for pod in pods])
    there = highest = 0
    for _, change in changes:
        there += change
        highest = max(highest, there)
    return highest


@dataclass(frozen=True)
class Fleet:
    """The sizes of databases, by server."""

    sizes: Sequence[tuple[float, ...]]

    @classmethod
    def made(cls, servers: int, databases: int) -> "Fleet":
        """So many servers with so many databases each, the same each time."""
        chance = random.Random(SEED)
        return cls(
            [tuple(chance.lognormvariate(0, SIGMA) * MEDIAN_BYTES for _ in range(databases)) for _ in range(servers)]
        )

    def by_server(self, parallelism: int, *, largest_first: bool = False) -> list[Job]:
        """One release with `source.services`: an index a server."""
        indexes = [Index(server, sizes) for server, sizes in enumerate(self.sizes)]
        if largest_first:
            indexes.sort(key=lambda index: index.seconds, reverse=True)
        return [Job(indexes, parallelism)]

    def by_database(self, parallelism: int, spread_seconds: float = 0.0) -> list[Job]:
        """A release a server with `source.databases`: an index a database, beginning spread over some time."""
        return [
            Job([Index(server, (size,)) for size in sizes], parallelism, spread_seconds * server / len(self.sizes))
            for server, sizes in enumerate(self.sizes)
        ]


@dataclass(frozen=True)
class Night:
    """What it came to."""

    pods: int
    hours: float
    pods_at_once: int
    sessions_of_a_server: int
    lists_and_puts: int
    gets: int
    writes_a_second: float
    etcd_megabytes: float

    @property
    def gigabits(self) -> float:
        """To the store, when every pod sends."""
        return self.pods_at_once * BYTES_PER_SECOND * STORED_SHARE * 8 / 1e9


def simulate(jobs: Sequence[Job]) -> Night:
    """One night."""
    chance = random.Random(SEED)
    pods = [pod for job in jobs for pod in run(job, chance)]
    by_server = defaultdict(list)
    for pod in pods:
        by_server[pod.index.server].append(pod)
    seconds = max(pod.ends for pod in pods)
    names_bytes = NAME_BYTES * max(len(job.indexes) for job in jobs)
    return Night(
        pods=len(pods),
        hours=seconds / 3600,
        pods_at_once=most(pods),
        sessions_of_a_server=SESSIONS * max(map(most, by_server.values())),
        lists_and_puts=sum(pod.index.lists_and_puts for pod in pods),
        gets=sum(pod.index.gets for pod in pods),
        writes_a_second=len(pods) * POD_WRITES / seconds,
        etcd_megabytes=KEPT_JOBS * len(pods) * (POD_OBJECT_BYTES + names_bytes) / 1e6,
    )


def arrangements(fleet: Fleet) -> dict[str, list[Job]]:
    """What is compared."""
    together = {f"an index a server, {count} at a time": fleet.by_server(count) for count in (2, 10, 20, 50)}
    return together | {
        "... 20 at a time, the longest first": fleet.by_server(20, largest_first=True),
        "a release a server, 2 databases at a time, all at 01:30": fleet.by_database(2),
        "... begun over 4 hours": fleet.by_database(2, 4 * 3600),
        "one Job of all databases, 50 at a time": [
            Job([index for job in fleet.by_database(1) for index in job.indexes], 50)
        ],
    }


def table(fleet: Fleet) -> str:
    """The nights, as BENCHMARKS.md and OPERATIONS.md have them."""
    head = "arrangement|hours|pods|at once|sessions of a server|Gbit/s at most|LIST, PUT, POST|GET|API writes/s|etcd MB"
    lines = [head.split("|"), ["---"] * 10]
    for name, jobs in arrangements(fleet).items():
        night = simulate(jobs)
        figures = [f"{night.hours:.1f}", f"{night.pods}", f"{night.pods_at_once}", f"{night.sessions_of_a_server}"]
        figures += [f"{night.gigabits:.1f}", f"{night.lists_and_puts}", f"{night.gets}"]
        lines.append([name, *figures, f"{night.writes_a_second:.2f}", f"{night.etcd_megabytes:.0f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the servers")
    fleet = Fleet.made(20 if parser.parse_args().quick else 200, 25)
    total, databases = sum(map(sum, fleet.sizes)) / 1e12, sum(map(len, fleet.sizes))
    print(f"{len(fleet.sizes)} servers, {databases} databases, {total:.1f} TB\n")
    print(table(fleet))


if __name__ == "__main__":
    main()
