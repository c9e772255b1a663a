"""COPY's text format: which table and columns a statement of pg_dump loads, and rows as a multiset. Pure.

Hides how rows are compared whose order is free. COPY has no order of its own: a restore by one job puts rows where the
free space map says, and rows that are loaded through a partition root may come back in other leaves. So lines are
compared as a multiset: of each its xxh3_128, summed modulo 2 to the 128th, with the number of lines. Not sorted: that
would need room for the whole table.

A statement is taken apart into names, never sent as it is: what runs on a server is quoted by `postgres` alone.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import xxhash

from backupd.errors import VerificationFailed

_NAME = r'(?:"(?:[^"]|"")+"|[^\s"(),.;]+)'
_STATEMENT = re.compile(rf"COPY ({_NAME})\.({_NAME}) +(?:\((.*)\) )?FROM stdin;\n?", re.DOTALL)
_COLUMN = re.compile(rf"({_NAME})(?:, (?=.)|$)", re.DOTALL)
_MODULUS = 1 << 128


@dataclass(frozen=True)
class Target:
    """What a COPY statement of pg_dump loads; no `columns` where the table has none of its own."""

    schema: str
    name: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Multiset:
    """Lines regardless of their order: how many, and the sum of their hashes. Of parts they can be added."""

    lines: int = 0
    total: int = 0

    def __add__(self, other: "Multiset") -> "Multiset":
        return Multiset(self.lines + other.lines, (self.total + other.total) % _MODULUS)


def parse(statement: str) -> Target:
    """The table and columns of one of pg_dump's statements. Raises VerificationFailed for any other text."""
    found = _STATEMENT.fullmatch(statement)
    columns = _columns(found[3]) if found and found[3] else ()
    if found is None or columns is None:
        raise VerificationFailed(f"the index has a COPY statement that is none of pg_dump's: {statement[:200]!r}")
    return Target(_unquoted(found[1]), _unquoted(found[2]), columns)


def multiset(lines: Iterable[bytes]) -> Multiset:
    """The multiset of lines, which have no line breaks."""
    count = total = 0
    for line in lines:
        count += 1
        total += xxhash.xxh3_128_intdigest(line)
    return Multiset(count, total % _MODULUS)


def missing(promised: Iterable[bytes], found: Iterable[bytes]) -> int:
    """How many of the promised lines are not among those found, which may be more."""
    counts = Counter(map(xxhash.xxh3_128_digest, promised))
    counts.subtract(Counter(map(xxhash.xxh3_128_digest, found)))
    return sum(count for count in counts.values() if count > 0)


def rearranged(lines: Iterable[bytes], columns: Sequence[str], wanted: Sequence[str]) -> Iterator[bytes]:
    """The lines of `columns` with their fields in the order of `wanted`: partitions may have another than their root.

    A tab in a value is written as a backslash and a letter, so every tab divides fields. Raises VerificationFailed
    where the columns are others.
    """
    if tuple(columns) == tuple(wanted):
        yield from lines
        return
    if sorted(columns) != sorted(wanted):
        raise VerificationFailed(f"the index has a partition with other columns than {', '.join(wanted)}")
    places = [columns.index(name) for name in wanted]
    for line in lines:
        fields = line.split(b"\t")
        yield b"\t".join(fields[place] for place in places)


def _columns(text: str) -> tuple[str, ...] | None:
    """The names in a list, or None where the text is none."""
    names, position = [], 0
    while position < len(text):
        found = _COLUMN.match(text, position)
        if found is None:
            return None
        names.append(_unquoted(found[1]))
        position = found.end()
    return tuple(names)


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name
