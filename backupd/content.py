"""Whether a restored database holds, byte for byte, what was dumped: every table by COPY, every large object in chunks.

Hides which rows may lie in another order, and where: tables are first read in the order in which they lie, which is
the dump's after a parallel restore, and only those that differ are read once more as a multiset, together with their
member in the archive (postgres.md 10 and 11). Nothing is sorted, nothing is kept: each side is read as a stream. What
cannot be compared, because row security or a privilege stands before it, is named and never called equal.

Not covered: materialised views' rows, generated columns and statistics. Sequences are compared by `comparison`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import xxhash

from backupd import archive, copytext, decode, facts, sessions, toc
from backupd.archive import Archive
from backupd.errors import AccessRefused, BackupdError, DatabaseError, VerificationFailed
from backupd.manifest import Index, LargeObject, Table
from backupd.postgres import Access, Session, connect
from backupd.progress import Progress

Outcome = Literal["identical", "other order", "contained", "different", "not comparable"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

CHUNK_BYTES = 1 << 20
"""How much of a large object is read at once: the server has it in memory twice."""

_HASHED_TOGETHER_BYTES = 128 * 1024  # a call for each row costs more than joining them

# What a row's text depends on, beyond what every session of ours sets; unknown names are passed over
_SETTINGS = {
    "bytea_output": "hex",
    "lc_monetary": "C",
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    "extra_float_digits": "3",
    "max_parallel_workers_per_gather": "0",
    "restrict_nonsystem_relation_kind": "view, foreign-table",
}


@dataclass(frozen=True)
class Dump:
    """Where the dump lies that a database is compared with."""

    archive: Archive
    index: Index


@dataclass(frozen=True)
class Compared:
    """A table (or a partition root, for its leaves), or a large object, and what became of its content.

    `contained` is for extensions' own tables, which may hold more than was dumped; `why` is for the last two outcomes.
    """

    name: str
    outcome: Outcome
    tables: int = 0
    why: str = ""


@dataclass(frozen=True)
class Content:
    """What a comparison found of every table and every large object."""

    tables: tuple[Compared, ...]
    large_objects: tuple[Compared, ...] = ()

    @property
    def identical(self) -> bool:
        """Whether all of it was compared and found to be what was dumped."""
        doubtful = ("different", "not comparable")
        return not any(each.outcome in doubtful for each in (*self.tables, *self.large_objects))

    @property
    def different(self) -> tuple[Compared, ...]:
        """What is not what was dumped."""
        return tuple(each for each in (*self.tables, *self.large_objects) if each.outcome == "different")

    @property
    def counts(self) -> Mapping[Outcome, int]:
        """How many of the dumped tables had each outcome."""
        return {outcome: sum(each.tables for each in self.tables if each.outcome == outcome) for outcome in OUTCOMES}


@dataclass(frozen=True)
class _Group:
    """Tables that are compared as one: a table alone, or all leaves of a root through which some were loaded."""

    target: copytext.Target
    tables: tuple[Table, ...]
    root: bool
    of_extension: bool

    @property
    def name(self) -> str:
        return f"{self.target.schema}.{self.target.name}"


def compare(access: Access, database: str, dump: Dump, jobs: int, progress: Progress) -> Content:
    """The content of the database against the dump's, by `jobs` sessions; largest tables first.

    Raises VerificationFailed where the dump itself is damaged, DatabaseError where the server is lost.
    """
    encoding = toc.encoding(toc.read_toc(archive.read_toc(dump.archive, dump.index)))
    with connect(access, database) as session:
        groups = _groups(session, dump.index.contract.tables)
        there = {int(row[0]) for row in session.rows("SELECT oid::int8 FROM pg_largeobject_metadata")}
    objects = dump.index.contract.large_objects
    progress.begin("compare content", database, total_members=len(groups) + len(objects))

    def look(session: Session, subject: _Group | LargeObject) -> Compared:
        if isinstance(subject, _Group):
            found = _named_where_impossible(
                session, subject.name, len(subject.tables), _Reader(dump, encoding, subject)
            )
        else:
            found = _large_object(session, subject, there)
        progress.advance(0, 1)
        return found

    subjects: list[_Group | LargeObject] = [*groups, *objects]
    found = sessions.in_parallel(access, database, jobs, subjects, look)
    return Content(tuple(found[: len(groups)]), tuple(found[len(groups) :]))


def _groups(session: Session, tables: Sequence[Table]) -> list[_Group]:
    """The tables as they are compared, largest first."""
    of_extension = {(each.schema, each.name) for each in facts.relations(session) if each.of_extension}
    roots = facts.partition_roots(session)
    parsed = {table.member: copytext.parse(table.copy_statement) for table in tables}
    loaded = {_name(parsed[table.member]) for table in tables if table.via_root}
    joined: dict[tuple[str, str], list[Table]] = {}
    for table in tables:
        name = (table.schema, table.name)
        root = _name(parsed[table.member]) if table.via_root else roots.get(name, name)
        joined.setdefault(root if root in loaded else name, []).append(table)
    groups = [
        _Group(
            copytext.Target(*name, parsed[members[0].member].columns),
            tuple(members),
            name in loaded,
            name in of_extension,
        )
        for name, members in joined.items()
    ]
    return sorted(groups, key=lambda group: sum(table.raw_bytes for table in group.tables), reverse=True)


def _name(found: copytext.Target) -> tuple[str, str]:
    return found.schema, found.name


def _named_where_impossible(session: Session, name: str, tables: int, reader: "_Reader") -> Compared:
    """What the reader found, or why that table cannot be read by this role; a lost server is no such reason."""
    try:
        session.rows(
            "SELECT set_config(s.name, v.value, false) FROM pg_settings s"
            " JOIN unnest(%s::text[], %s::text[]) v (name, value) ON lower(s.name) = v.name",
            [list(_SETTINGS), list(_SETTINGS.values())],
        )
        outcome, why = reader.outcome(session)
    except (AccessRefused, DatabaseError) as exc:
        session.row("SELECT 1")  # raises where nothing can be read any more
        return Compared(name, "not comparable", tables, _plain(exc))
    return Compared(name, outcome, tables, why)


def _plain(exc: BackupdError) -> str:
    return exc.message.rpartition(": ")[2]


@dataclass(frozen=True)
class _Reader:
    """Reads both sides of one group: the database's rows by COPY, the dump's from its members."""

    dump: Dump
    encoding: str
    group: _Group

    def outcome(self, session: Session) -> tuple[Outcome, str]:
        """In order where that may be asked, else as multisets."""
        group = self.group
        if not group.root and self._fingerprint(session) == group.tables[0].fingerprint:
            return "identical", ""
        promised = self._promised()
        found = copytext.multiset(self._found(session))
        if found == promised:
            return "other order", ""
        if group.of_extension:
            lacking = copytext.missing(self._lines(group.tables[0]), self._found(session))
            return ("contained", "") if lacking == 0 else ("different", f"{lacking} of the dumped rows are not there")
        if found.lines != promised.lines:
            return "different", f"{promised.lines} rows promised, {found.lines} found"
        return "different", f"{found.lines} rows, but not the same ones"

    def _fingerprint(self, session: Session) -> str:
        """As of the member's decoded bytes without the marker."""
        together, size_bytes, whole = list[bytes](), 0, xxhash.xxh3_128()
        for row in self._rows(session):
            together.append(row)
            size_bytes += len(row)
            if size_bytes >= _HASHED_TOGETHER_BYTES:
                whole.update(b"".join(together))
                together, size_bytes = [], 0
        whole.update(b"".join(together))
        return whole.hexdigest()

    def _rows(self, session: Session) -> Iterator[bytes]:
        aim = self.group.target
        return session.copy_rows(_name(aim), aim.columns, self.encoding, descendants=self.group.root)

    def _found(self, session: Session) -> Iterator[bytes]:
        return (row[:-1] for row in self._rows(session))

    def _promised(self) -> copytext.Multiset:
        return sum((copytext.multiset(self._lines(table)) for table in self.group.tables), copytext.Multiset())

    def _lines(self, table: Table) -> Iterator[bytes]:
        """The dumped rows, with their fields in the order of the group's columns."""
        member = next((each for each in self.dump.index.members if each.name == table.member), None)
        if member is None:
            raise VerificationFailed(f"the index names no member {table.member}")
        lines = decode.lines(member.name, archive.read(self.dump.archive, member))
        columns = copytext.parse(table.copy_statement).columns
        return copytext.rearranged(lines, columns, self.group.target.columns)


def _large_object(session: Session, promised: LargeObject, there: set[int]) -> Compared:
    name = f"large object {promised.oid}"
    if promised.oid not in there:
        return Compared(name, "different", why="it is not there")
    whole, size_bytes = xxhash.xxh3_128(), 0
    try:
        for chunk in _chunks(session, promised.oid):
            whole.update(chunk)
            size_bytes += len(chunk)
    except AccessRefused as exc:
        return Compared(name, "not comparable", why=_plain(exc))
    if (size_bytes, whole.hexdigest()) != (promised.raw_bytes, promised.fingerprint):
        return Compared(name, "different", why=f"{promised.raw_bytes} bytes promised, {size_bytes} others found")
    return Compared(name, "identical")


def _chunks(session: Session, oid: int) -> Iterator[bytes]:
    position = 0
    while True:
        chunk: bytes = session.row("SELECT lo_get(%s::oid, %s, %s)", [oid, position, CHUNK_BYTES])[0]
        yield chunk
        position += len(chunk)
        if len(chunk) < CHUNK_BYTES:
            return
