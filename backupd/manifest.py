"""What a backup is made of, as frozen types, and their JSON.

Hides the format's version and its checks: everything that is read from a store passes `load_manifest`, `load_index`
or `load_note`, which refuse what is cut, hostile or of a future version before any value is used. pydantic does the
checking (it is here for the settings anyway); a decoder of our own would be the fourth parser to keep right.
FORMAT.md is the full text of format version 1.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Literal, TypeVar

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError

from backupd.errors import VerificationFailed, VersionMismatch

FORMAT = 2
"""The newest format version that is read. What needs nothing newer is written as 1, for older readers."""

MANIFEST_LIMIT_BYTES = 1 << 20
"""A manifest stays small however many tables there are; a larger one is hostile or not ours."""

ID_PATTERN = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")
MEMBER_PATTERN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")

Id = Annotated[str, Field(pattern=rf"^{ID_PATTERN.pattern}$")]
MemberName = Annotated[str, Field(pattern=rf"^{MEMBER_PATTERN.pattern}$", max_length=200)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Fingerprint = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Version = Annotated[str, Field(pattern=r"^[0-9]{1,4}(\.[0-9]{1,4})*$")]
Moment = Annotated[AwareDatetime, Field(ge=datetime(2000, 1, 1, tzinfo=UTC), lt=datetime(9000, 1, 1, tzinfo=UTC))]
"""A time that every zone's calendar has: nothing that is computed from it may overflow."""

Real = Annotated[float, Field(allow_inf_nan=False)]
Whole = Annotated[int, Field(gt=-(1 << 63), lt=1 << 63)]


@dataclass(frozen=True)
class Source:
    """One database of one cluster. `system_identifier` is text: 64 bits do not survive every JSON reader."""

    server: str
    database: str
    system_identifier: str


@dataclass(frozen=True)
class Member:
    """One file of a dump inside the archive; offset and size are those of its stored bytes."""

    name: MemberName
    offset: Count
    size_bytes: Count
    sha256: Sha256


@dataclass(frozen=True)
class Table:
    """What was proven of one table: COPY lines are rows; `fingerprint` is xxh3_128 of the decoded stream, markerless.

    `via_root` says that pg_restore loads it through its partition root, so that rows may land in other leaves.
    """

    schema: str
    name: str
    oid: Count
    member: MemberName
    rows: Count
    raw_bytes: Count
    fingerprint: Fingerprint
    copy_statement: str
    via_root: bool = False


@dataclass(frozen=True)
class SkippedTable:
    """A table of the source without rows in the archive, and why (filtered, owned by an extension...)."""

    schema: str
    name: str
    reason: str


@dataclass(frozen=True)
class Sequence:
    """A sequence's value as pg_dump wrote it (sequences are not transactional)."""

    schema: str
    name: str
    last_value: int
    is_called: bool


@dataclass(frozen=True)
class LargeObject:
    """One large object's size and xxh3_128."""

    oid: Count
    raw_bytes: Count
    fingerprint: Fingerprint


@dataclass(frozen=True)
class Extension:
    """An installed extension."""

    name: str
    version: str
    schema: str


@dataclass(frozen=True)
class Setting:
    """One ALTER DATABASE ... SET (`role` empty) or ALTER ROLE ... IN DATABASE ... SET."""

    role: str
    name: str
    value: str


@dataclass(frozen=True)
class Grant:
    """One privilege on the database; `role` is empty for PUBLIC."""

    role: str
    privilege: str
    grantable: bool


@dataclass(frozen=True)
class Membership:
    """That a role is a member of `role`: whether it may admit others and, from 16 on, inherit from it and become it."""

    role: str
    admin: bool = False
    inherit: bool = True
    set: bool = True


@dataclass(frozen=True)
class Role:
    """A role as it was on the source's cluster. No `connection_limit` is -1.

    `password` is its verifier (SCRAM-SHA-256$... or md5...), recorded only on demand and in encrypted archives.
    """

    name: str
    login: bool
    superuser: bool
    inherit: bool
    create_database: bool
    create_role: bool
    replication: bool
    bypass_row_security: bool
    connection_limit: int = -1
    member_of: tuple[Membership, ...] = ()
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class DatabaseProperties:
    """What makes an equal, empty database. `locale_provider` is pg_database's letter; no `grants` are the default."""

    owner: str
    encoding: str
    locale_provider: str
    collate: str
    ctype: str
    locale: str | None = None
    icu_rules: str | None = None
    comment: str | None = None
    connection_limit: int = -1
    settings: tuple[Setting, ...] = ()
    grants: tuple[Grant, ...] | None = None


@dataclass(frozen=True)
class Contract:
    """What a restore must bring back.

    `roles` must exist on the target; `role_definitions` say what they were, and those of which they are members.
    `named_roles` are needed even where owners and grants are left out: policies and user mappings name them.
    """

    database: DatabaseProperties
    tables: tuple[Table, ...] = ()
    skipped: tuple[SkippedTable, ...] = ()
    sequences: tuple[Sequence, ...] = ()
    large_objects: tuple[LargeObject, ...] = ()
    extensions: tuple[Extension, ...] = ()
    roles: tuple[str, ...] = ()
    role_definitions: tuple[Role, ...] = ()
    named_roles: tuple[str, ...] = ()


@dataclass(frozen=True)
class Index:
    """The last member of an archive: where every other one is, and the contract."""

    format: int
    id: Id
    members: tuple[Member, ...]
    contract: Contract


@dataclass(frozen=True, eq=False)
class Filter:
    """The patterns of a filtered backup, as they were set; of an encrypted one only their `sha256`: they name tables.

    Two are equal when they were set alike, hidden or not: they are one scope of retention.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    sha256: Sha256 | None = None

    @property
    def identity(self) -> str:
        """The sha256 of the patterns as JSON, `[[include...], [exclude...]]`."""
        patterns = json.dumps([self.include, self.exclude]).encode()
        return self.sha256 or hashlib.sha256(patterns).hexdigest()

    def hidden(self) -> "Filter":
        """The same, without its patterns."""
        return Filter(sha256=self.identity)

    def __eq__(self, other: object) -> bool:
        """Whether the other was set alike."""
        return isinstance(other, Filter) and self.identity == other.identity

    def __hash__(self) -> int:
        """As it was set."""
        return hash(self.identity)


@dataclass(frozen=True)
class Totals:
    """Sums over the contract, so that `list` needs no index."""

    tables: Count
    rows: Count
    raw_bytes: Count
    large_objects: Count
    members: Count


@dataclass(frozen=True)
class Recovery:
    """How a standby stood when it was dumped: the settings that decide who wins a conflict, and how far behind it was.

    `max_standby_streaming_delay` is as the server writes it (`30s`, `-1`); no lag is known before the first replay.
    """

    hot_standby_feedback: bool
    max_standby_streaming_delay: str
    replay_lag_seconds: Real | None


@dataclass(frozen=True)
class Manifest:
    """The small JSON whose existence makes a backup exist. Times are aware and UTC.

    `rewrite_check` is `done` or why it was not; `suspect` is why the backup is not trusted, decided before publication.
    """

    format: int
    id: Id
    backupd_version: str
    source: Source
    server_version: str
    server_version_num: Count
    client_version: Version
    standby: bool
    started_at: Moment
    finished_at: Moment
    database_bytes: Count
    archive_bytes: Count
    archive_sha256: Sha256
    index_offset: Count
    index_bytes: Count
    index_sha256: Sha256
    totals: Totals
    compression: str
    jobs: Count
    rewrite_check: str = "done"
    filter: Filter | None = None
    suspect: str | None = None
    recipients: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    recovery: Recovery | None = None

    @property
    def server_major(self) -> int:
        """The major version of the server that was backed up."""
        return self.server_version_num // 10000


NoteKind = Literal["verified", "drilled", "pinned", "adopted", "retired", "confirmed", "rekeyed"]


@dataclass(frozen=True)
class Note:
    """A later fact about a backup, beside it and immutable too; of one kind the highest `number` counts.

    `ok` is the fact's yes or no (verified and found good, pinned or unpinned); `facts` are its plain values.
    """

    kind: NoteKind
    number: Count
    at: Moment
    ok: bool
    facts: Mapping[str, str | Whole | Real | bool | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Backup:
    """An archive and its manifest, with the notes that count (the newest of each kind).

    `untrusted` is why nobody may rely on it: the manifest's signature is missing or wrong. None where it is right, and
    where no verification key is set.
    """

    manifest: Manifest
    notes: tuple[Note, ...] = ()
    untrusted: str | None = None

    @property
    def id(self) -> str:
        """The manifest's id: UTC time of the run's start and eight hex digits."""
        return self.manifest.id

    @property
    def source(self) -> Source:
        """The manifest's source; after `adopt`, with the identity that took it over."""
        source = self.manifest.source
        adopted = self.note("adopted")
        if adopted is None or not adopted.ok:
            return source
        return Source(source.server, source.database, str(adopted.facts.get("system_identifier", "")))

    @property
    def pinned(self) -> bool:
        """Whether retention must leave it alone."""
        pinned = self.note("pinned")
        return pinned is not None and pinned.ok

    @property
    def suspect(self) -> str | None:
        """Why it counts for nothing: nobody signed it, verify or drill failed, its manifest says so unconfirmed."""
        if self.untrusted is not None:
            return f"not trusted: {self.untrusted}"
        for note in (self.note("verified"), self.note("drilled")):
            if note is not None and not note.ok:
                return f"{note.kind} failed: {note.facts.get('error', 'no reason was recorded')}"
        confirmed = self.note("confirmed")
        return None if confirmed is not None and confirmed.ok else self.manifest.suspect

    @property
    def rekeyed_from(self) -> str | None:
        """The id of the backup of which it is the content under other keys; None where it was taken itself."""
        rekeyed = self.note("rekeyed")
        return str(rekeyed.facts.get("from", "")) if rekeyed is not None and rekeyed.ok else None

    def note(self, kind: NoteKind) -> Note | None:
        """The note of that kind that counts."""
        return max((note for note in self.notes if note.kind == kind), key=lambda note: note.number, default=None)


def superseded(backups: Iterable[Backup]) -> frozenset[str]:
    """The ids of those that a good one among them replaced under other keys: they stay, and count for nothing."""
    return frozenset(backup.rekeyed_from for backup in backups if backup.rekeyed_from and backup.suspect is None)


def format_of(recipients: tuple[str, ...]) -> int:
    """The format version to write: 2 is what a reader of version 1 would take for damage, encryption."""
    return 2 if recipients else 1


_T = TypeVar("_T")

_MANIFEST = TypeAdapter(Manifest)
_NOTE = TypeAdapter(Note)


@cache
def _index() -> TypeAdapter[Index]:
    return TypeAdapter(Index)  # when it is first needed: `list` does without, and saves 20 ms


def to_json(value: Manifest | Index | Note) -> bytes:
    """The value as JSON text, one line."""
    if isinstance(value, Index):
        return _index().dump_json(value) + b"\n"
    return (_MANIFEST.dump_json(value) if isinstance(value, Manifest) else _NOTE.dump_json(value)) + b"\n"


def load_manifest(data: bytes, where: str) -> Manifest:
    """The manifest in `data`, read from `where` (for messages).

    Raises VersionMismatch for a future format version, VerificationFailed for anything else that is not a manifest.
    """
    if len(data) > MANIFEST_LIMIT_BYTES:
        message = f"manifest {where} is larger than {MANIFEST_LIMIT_BYTES} bytes"
        raise VerificationFailed(message, hint=_DAMAGED_HINT)
    _refuse_future(data, "manifest", where)
    return _load(_MANIFEST, data, "manifest", where)


def load_index(data: bytes, where: str) -> Index:
    """The index in `data` (decompressed). Raises as `load_manifest`."""
    _refuse_future(data, "index", where)
    return _load(_index(), data, "index", where)


def load_note(data: bytes, where: str) -> Note:
    """The note in `data`. Raises VerificationFailed where it is none."""
    return _load(_NOTE, data, "note", where)


_DAMAGED_HINT = "Leave it where it is for inspection; `backupd list` shows the backups that can be read."


def _load(adapter: TypeAdapter[_T], data: bytes, name: str, where: str) -> _T:
    try:
        return adapter.validate_json(data, strict=True)
    except ValidationError as exc:
        raise _damaged(name, where, exc) from None


@dataclass(frozen=True)
class _Version:
    format: int


_VERSION = TypeAdapter(_Version)


def _refuse_future(data: bytes, name: str, where: str) -> None:
    try:
        version = _VERSION.validate_json(data, strict=True).format
    except ValidationError as exc:
        raise _damaged(name, where, exc) from None
    if version > FORMAT:
        raise VersionMismatch(
            f"{name} {where} has format version {version}, this backupd reads up to {FORMAT}",
            hint="Use the backupd that wrote it, or a newer one; tar and pg_restore read the archive without backupd.",
        )


def _damaged(name: str, where: str, exc: ValidationError) -> VerificationFailed:
    first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "the document"
    return VerificationFailed(f"{name} {where} is damaged", detail=f"At {place}: {first['msg']}.", hint=_DAMAGED_HINT)
