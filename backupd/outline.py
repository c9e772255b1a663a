"""As much of a backup's contract as a page shows: its largest tables, what has no rows and why, what it needs.

A whole index takes 40 MB where there are 100,000 tables, and a page of them helps nobody; `tables ID` lists them all.
"""

from dataclasses import dataclass

from backupd import archive
from backupd.catalog import Catalog
from backupd.errors import BackupdError
from backupd.manifest import Backup, Index

TABLES = 500
"""The most tables that an outline has."""


@dataclass(frozen=True)
class TableLine:
    """One table of a contract."""

    name: str
    rows: int
    raw_bytes: int
    fingerprint: str


@dataclass(frozen=True)
class Outline:
    """The largest tables and the number of `others`, what has no rows and why, the extensions and roles it needs.

    Where the index could not be read, all is empty and `unknown` says why.
    """

    tables: tuple[TableLine, ...] = ()
    others: int = 0
    skipped: tuple[tuple[str, str], ...] = ()
    extensions: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    unknown: str = ""


def read(catalog: Catalog, backup: Backup) -> Outline:
    """The outline of a backup, by one range of its archive; never raises for a store or an index that is bad."""
    try:
        return outline(archive.read_index(catalog.archive(backup)))
    except BackupdError as exc:
        return Outline(unknown=exc.message)


def outline(index: Index) -> Outline:
    """The outline of an index."""
    contract = index.contract
    largest = sorted(contract.tables, key=lambda table: (-table.raw_bytes, table.schema, table.name))
    return Outline(
        tables=tuple(
            TableLine(f"{table.schema}.{table.name}", table.rows, table.raw_bytes, table.fingerprint)
            for table in largest[:TABLES]
        ),
        others=max(0, len(largest) - TABLES),
        skipped=tuple((f"{each.schema}.{each.name}", each.reason) for each in contract.skipped[:TABLES]),
        extensions=tuple(f"{each.name} {each.version}" for each in contract.extensions),
        roles=contract.roles,
    )
