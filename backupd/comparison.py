"""The contract against the database that was restored: rows of every table, sequences, large objects, indexes.

Rows only, which the server counts by itself; what the tables hold is compared by `content`, in drills.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import LiteralString

from backupd import facts, sessions
from backupd.contract import Relation
from backupd.manifest import Contract, Sequence, Table
from backupd.postgres import Access, Session, connect

_Name = tuple[str, str]


@dataclass(frozen=True)
class Comparison:
    """One line of the contract: what it is about, what was promised and what was found (None: it is not there)."""

    name: str
    promised: int
    found: int | None
    at_least: bool = False

    @property
    def equal(self) -> bool:
        """Whether the promise is kept; extensions' own tables may hold more than was dumped."""
        if self.at_least:
            return self.found is not None and self.found >= self.promised
        return self.found == self.promised


def compare(access: Access, database: str, contract: Contract, jobs: int) -> list[Comparison]:
    """The contract against the database: rows of every table, sequences, large objects, invalid indexes.

    Tables that pg_restore loads through their partition root are compared at the root: their rows may land in other
    leaves (postgres.md 11). Materialised views, generated columns and statistics are not covered by rows.
    """
    with connect(access, database) as session:
        relations = {(relation.schema, relation.name): relation for relation in facts.relations(session)}
        counts = _promises(contract.tables, facts.partition_roots(session))
        rest = [
            *_compare_sequences(session, contract.sequences),
            Comparison("large objects", len(contract.large_objects), _count(session, _LARGE_OBJECTS)),
            Comparison("invalid indexes", 0, _count(session, _INVALID_INDEXES)),
        ]
    there = [relations[name] for name in counts if name in relations]
    rows = sessions.in_parallel(access, database, jobs, sessions.in_lots(there, jobs), _rows)
    found = dict(itertools.chain.from_iterable(rows))
    tables = [
        Comparison(f"{schema}.{name}", promised, found.get((schema, name)), _of_extension(relations, (schema, name)))
        for (schema, name), promised in counts.items()
    ]
    return tables + rest


_LARGE_OBJECTS: LiteralString = "SELECT count(*) FROM pg_largeobject_metadata"
# a partitioned index may be invalid in the source too (made ON ONLY the root), a plain one cannot be after a restore
_INVALID_INDEXES: LiteralString = (
    "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE NOT i.indisvalid AND c.relkind = 'i'"
)


def _count(session: Session, query: LiteralString) -> int:
    return int(session.row(query)[0])


def _rows(session: Session, lot: list[Relation]) -> list[tuple[_Name, int]]:
    counts = session.counts([(each.schema, each.name, each.kind == "p") for each in lot])
    return [((each.schema, each.name), count) for each, count in zip(lot, counts, strict=True)]


def _of_extension(relations: Mapping[_Name, Relation], name: _Name) -> bool:
    relation = relations.get(name)
    return relation is not None and relation.of_extension


def _promises(tables: Iterable[Table], roots: Mapping[_Name, _Name]) -> dict[_Name, int]:
    """The rows that are promised of each table, or of the root where leaves are loaded through it; largest first."""
    via_root = {roots.get((table.schema, table.name)) for table in tables if table.via_root}
    promised: dict[_Name, int] = {}
    for table in sorted(tables, key=lambda table: table.raw_bytes, reverse=True):
        name = (table.schema, table.name)
        root = roots.get(name)
        counted = root if root is not None and root in via_root else name
        promised[counted] = promised.get(counted, 0) + table.rows
    return promised


def _compare_sequences(session: Session, promised: Iterable[Sequence]) -> Iterator[Comparison]:
    """Each sequence's last value; one that was never used must not have been used."""
    query: LiteralString = "SELECT schemaname, sequencename, last_value FROM pg_sequences"
    found = {(schema, name): value for schema, name, value in session.rows(query)}
    for sequence in promised:
        name = (sequence.schema, sequence.name)
        label = f"sequence {sequence.schema}.{sequence.name}"
        if sequence.is_called:
            yield Comparison(label, sequence.last_value, found.get(name))
        else:
            yield Comparison(f"{label} unused", 1, int(name in found and found[name] is None))
