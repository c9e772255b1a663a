"""How time, memory and requests grow: one run each of ever more, through a link that counts what S3 is asked."""

import sys
from collections.abc import Callable, Iterator, Sequence

import database
import listing
import pipelines
from machine import Machine, linked
from pipelines import Pipeline

HEAD = ("wall s", "CPU s", "memory MiB", "scratch MiB", "S3 requests")

_MIB = 1 << 20
_NAME = "grown"


def by_size(machine: Machine, smallest_gb: float) -> Iterator[Sequence[str]]:
    """Backups to S3 of a database, and of ones 4 and 16 times as large."""
    for factor in (1, 4, 16):
        database.build(machine.connect, _NAME, smallest_gb * factor)
        yield _run(machine, f"{smallest_gb * factor:.2g}", _to_s3)
        machine.drop(_NAME)


def by_tables(machine: Machine, many: int) -> Iterator[Sequence[str]]:
    """Backups to S3 of databases of ever more tables."""
    for count in sorted({1, max(1, many // 100), many, many * 10}):
        database.build_many(machine.connect, _NAME, count)
        yield _run(machine, f"{count:,}", _to_s3)
        machine.drop(_NAME)


def by_databases(machine: Machine, most: int) -> Iterator[Sequence[str]]:
    """Backups to disk of every database of the server, in one run."""
    names: list[str] = []
    for count in sorted({1, max(1, most // 10), most}):
        more = [f"small{number}" for number in range(len(names), count)]
        database.build_small(machine.connect, more)
        names += more
        yield _run(machine, f"{count:,}", pipelines.every_database)
    for name in names:
        machine.drop(name)


def by_backups(machine: Machine, most: int) -> Iterator[Sequence[str]]:
    """`list` of ever more backups on S3."""
    assert machine.bucket is not None
    for count in sorted({10, max(10, most // 100), max(10, most // 10), most}):
        listing.fill(machine.bucket / "backups", count)
        yield _run(machine, f"{count:,}", _list)


def _to_s3(machine: Machine) -> Pipeline:
    return pipelines.to_s3(machine, _NAME)[0]


def _list(machine: Machine) -> Pipeline:
    assert machine.bucket is not None
    return pipelines.listing(machine, "list", machine.bucket)


def _run(machine: Machine, label: str, pipeline: Callable[[Machine], Pipeline]) -> Sequence[str]:
    with linked(machine) as counted:
        sample = pipelines.run(counted, pipeline(counted))
        requests = counted.taken_requests()
    print(f"{label}: {sample.wall_seconds:.2f} s, {requests}", file=sys.stderr, flush=True)
    asked = ", ".join(f"{count} {method}" for method, count in sorted(requests.items())) or "none"
    sizes = (f"{size / _MIB:.0f}" for size in (sample.first_rss_bytes, sample.scratch_bytes))
    return label, f"{sample.wall_seconds:.2f}", f"{sample.cpu_seconds:.2f}", *sizes, asked
