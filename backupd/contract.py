"""Every table accounted for: the dump's table of contents, its members and the source's tables must agree. Pure.

Three lists that come from different places (toc.dat, the files, pg_class) are held against each other: a table with
rows in the TOC but no file, a file that no entry names, a table of the source that neither has nor may lack rows, each
refuses the backup; so does a large object without a file. What may lack rows is named with its reason.
A filter may leave tables out, but not part a table from its partitions or children.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from backupd import toc
from backupd.decode import Decoded, large_object_oid
from backupd.errors import FilterRefused, VerificationFailed
from backupd.manifest import (
    Contract,
    DatabaseProperties,
    Extension,
    Filter,
    LargeObject,
    Recovery,
    Role,
    SkippedTable,
    Table,
)

UNLOGGED = "unlogged: a standby has none of its rows"
"""The reason for which an unlogged table has no rows in a standby's dump."""

_SUFFIXES = ("", ".zst", ".gz")


@dataclass(frozen=True)
class Relation:
    """A table of the source that could have rows of its own: `kind` is pg_class's letter."""

    oid: int
    schema: str
    name: str
    kind: str
    persistence: str
    of_extension: bool


@dataclass(frozen=True)
class Facts:
    """What is recorded of a source, read in the dump's snapshot once pg_dump holds its locks."""

    system_identifier: str
    database_bytes: int
    properties: DatabaseProperties
    relations: tuple[Relation, ...]
    extensions: tuple[Extension, ...]
    recovery: Recovery | None = None
    roles: tuple[Role, ...] = ()


@dataclass(frozen=True)
class Exemptions:
    """Why tables may be missing from this dump as a whole: patterns were set, or it was taken from a standby."""

    filtered: bool
    standby: bool


def build(contents: toc.Toc, known: Facts, decoded: Mapping[str, Decoded], exemptions: Exemptions) -> Contract:
    """The contract. Raises VerificationFailed where a table, an entry or a member has no counterpart."""
    tables = tuple(_table(entry, decoded) for entry in toc.table_data(contents))
    objects = tuple(
        LargeObject(oid, proven.raw_bytes, proven.fingerprint)
        for name, proven in decoded.items()
        if (oid := large_object_oid(name)) is not None
    )
    _refuse_strangers(decoded, {table.member for table in tables})
    _compare_objects(set(toc.large_objects(contents)), [item.oid for item in objects])
    return Contract(
        database=known.properties,
        tables=tables,
        skipped=tuple(_skipped(known.relations, {table.oid for table in tables}, exemptions)),
        sequences=toc.sequences(contents),
        large_objects=tuple(sorted(objects, key=lambda item: item.oid)),
        extensions=known.extensions,
        roles=toc.roles(contents),
        role_definitions=known.roles,
        named_roles=toc.named_roles(contents),
    )


def _table(entry: toc.TableData, decoded: Mapping[str, Decoded]) -> Table:
    member = next((entry.filename + suffix for suffix in _SUFFIXES if entry.filename + suffix in decoded), None)
    if member is None:
        message = f"table {entry.schema}.{entry.name} has no member in the dump"
        raise VerificationFailed(message, detail=f"pg_dump ended with 0 and did not write {entry.filename}.")
    proven = decoded[member]
    return Table(
        schema=entry.schema,
        name=entry.name,
        oid=entry.oid,
        member=member,
        rows=proven.rows,
        raw_bytes=proven.raw_bytes,
        fingerprint=proven.fingerprint,
        copy_statement=entry.copy_statement,
        via_root=entry.via_root,
    )


def require_families(
    contents: toc.Toc, relations: Collection[Relation], parents: Collection[tuple[int, int]], patterns: Filter
) -> None:
    """Raises FilterRefused where the patterns chose a child without its parent (`parents`, as OIDs) or the reverse.

    A child without its parent is restored nowhere, for it is created as a part of that. A partition root without its
    partitions has no rows, which is meant only where patterns to exclude name them. An extension brings its own
    tables, and a foreign table's rows are elsewhere.
    """
    known = {relation.oid: relation for relation in relations if not relation.of_extension}
    dumped = {entry.oid for entry in contents.entries if entry.desc in {"TABLE", "FOREIGN TABLE"}}
    families = [(known[child], known[parent]) for child, parent in parents if child in known and parent in known]
    thinned = {parent.oid for child, parent in families if child.oid in dumped} if patterns.exclude else set()
    for child, parent in families:
        kind = "partition" if parent.kind == "p" else "child"
        if child.oid in dumped and parent.oid not in dumped:
            raise _parted(f"{kind} {child.schema}.{child.name} without {parent.schema}.{parent.name}")
        forgotten = child.oid not in dumped and child.kind != "f" and parent.oid in dumped
        if forgotten and patterns.include and parent.oid not in thinned:
            raise _parted(f"{parent.schema}.{parent.name} without its {kind} {child.schema}.{child.name}")


def _parted(what: str) -> FilterRefused:
    return FilterRefused(
        f"the filter chose {what}",
        detail="A child cannot be restored without its parent, and a partition root has no rows without partitions.",
        hint="Name both in BACKUPD_DUMP__INCLUDE, or both in BACKUPD_DUMP__EXCLUDE; a pattern such as `s.events*` can.",
    )


def require_lists(promised: Contract, listed: Collection[int]) -> None:
    """Raises VerificationFailed where pg_dump's lists, which pg_restore goes by, do not have the same large objects."""
    if odd := sorted({item.oid for item in promised.large_objects}.symmetric_difference(listed)):
        raise VerificationFailed(f"large objects are not as pg_dump's lists have them: {_some(odd)}")


def _refuse_strangers(decoded: Mapping[str, Decoded], expected: set[str]) -> None:
    strangers = sorted(name for name in decoded if name not in expected and large_object_oid(name) is None)
    if strangers:
        raise VerificationFailed(f"members that toc.dat does not name: {', '.join(strangers[:5])}")


def _compare_objects(listed: set[int], dumped: list[int]) -> None:
    if missing := sorted(listed.difference(dumped)):
        message = f"large objects have no member in the dump: {_some(missing)}"
        raise VerificationFailed(message, detail="pg_dump ended with 0, and its toc.dat has them.")
    if strangers := sorted(set(dumped) - listed):
        raise VerificationFailed(f"large objects that toc.dat does not name: {_some(strangers)}")
    if len(dumped) > len(listed):
        raise VerificationFailed("a large object has several members in the dump")


def _some(oids: list[int]) -> str:
    return ", ".join(str(oid) for oid in oids[:5])


def _skipped(relations: tuple[Relation, ...], dumped: set[int], exemptions: Exemptions) -> list[SkippedTable]:
    skipped, missing = [], []
    for relation in relations:
        if relation.oid in dumped or relation.kind == "p":
            continue
        reason = _reason(relation, exemptions)
        if reason is None:
            missing.append(f"{relation.schema}.{relation.name}")
        else:
            skipped.append(SkippedTable(relation.schema, relation.name, reason))
    if missing:
        detail = "pg_dump ended with 0, and the snapshot it was given has these tables."
        raise VerificationFailed(f"tables are missing from the dump: {', '.join(missing[:5])}", detail=detail)
    return skipped


def _reason(relation: Relation, exemptions: Exemptions) -> str | None:
    reasons = (
        (relation.kind == "m", "materialised view: filled by a refresh"),
        (relation.kind == "f", "foreign table: its rows are elsewhere"),
        (relation.of_extension, "belongs to an extension"),
        (relation.persistence == "u" and exemptions.standby, UNLOGGED),
        (exemptions.filtered, "not chosen by the filter"),
    )
    return next((reason for applies, reason in reasons if applies), None)
