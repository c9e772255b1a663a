"""toc.dat, the table of contents of a directory dump, read to its last byte: bytes to values.

Hides the format, which PostgreSQL's pg_backup_archiver.c writes and only its comments describe: archive versions
1.12 to 1.16 (pg_dump 9.0 to 18), integers of a sign byte and four little-endian bytes, strings with their length,
a field or two more in each version. Names are decoded as the dump's ENCODING entry says, so that they compare equal
with what a session reports. The bytes may come from a store that somebody else can write: every length is held
against what is left, file names must be pg_dump's own, and whatever does not fit is VerificationFailed.

Not `pg_restore --list`: it prints a line break in a name as a space, does not show where a schema's name with a space
in it ends, and passes on half a dump.
"""

import re
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

from backupd.errors import VerificationFailed, VersionMismatch
from backupd.manifest import Sequence

NAME = "toc.dat"
"""The file in a directory-format dump."""

OLDEST, NEWEST = (1, 12), (1, 16)
"""The archive versions that are read: pg_dump 9.0 wrote the oldest, pg_dump 17 and 18 write the newest."""

_TAR_FORMAT = 3  # a directory's toc.dat says tar, whose layout it shares
_MAGIC = b"PGDMP"
_HEADER = struct.Struct("<5s6B")
_INTEGER = struct.Struct("<BI")
_SECTIONS = range(1, 5)  # none, pre-data, data, post-data
_FILENAME = re.compile(r"[0-9]{1,10}\.dat|blobs(?:_[0-9]{1,10})?\.toc")
_NUMBER = re.compile(rb"[0-9]{1,10}")
_BLOBS_LINE = re.compile(rb"([0-9]{1,10}) (blob_\1\.dat)\n")
_BLOBS_LINE_BYTES = 40  # twice ten digits, and the words around them
_VIA_ROOT = "-- load via partition root "
_SETVAL = re.compile(r"SELECT pg_catalog\.setval\('.*', (-?[0-9]{1,19}), (true|false)\);\s*", re.DOTALL)
_WORD = re.compile(r'"(?:[^"]|"")*"|[^\s"(),;]+|[(),;]')
_INTRODUCTIONS = frozenset({"TO", "FROM", "ROLE", "AUTHORIZATION"})
_NO_ROLES = frozenset({"PUBLIC", "public", "DEFAULT", ";"})  # user mappings write it small; no role is called so
_ENCODING = re.compile(r"SET client_encoding = '(.*)';\s*")
_CODECS = {
    "UTF8": "utf-8",
    "SQL_ASCII": "utf-8",
    "EUC_CN": "gb2312",
    "EUC_JP": "euc_jp",
    "EUC_JIS_2004": "euc_jis_2004",
    "EUC_KR": "euc_kr",
    "SJIS": "cp932",
    "SHIFT_JIS_2004": "shift_jis_2004",
    "BIG5": "big5",
    "GBK": "gbk",
    "GB18030": "gb18030",
    "UHC": "cp949",
    "JOHAB": "johab",
    "KOI8R": "koi8-r",
    "KOI8U": "koi8-u",
    **{f"LATIN{n}": f"iso8859-{part}" for n, part in enumerate((1, 2, 3, 4, 9, 10, 13, 14, 15, 16), start=1)},
    **{f"ISO_8859_{part}": f"iso8859-{part}" for part in (5, 6, 7, 8)},
    **{f"WIN{page}": f"cp{page}" for page in (866, 874, 1250, 1251, 1252, 1253, 1254, 1255, 1256, 1257, 1258)},
}
"""PostgreSQL's names of encodings. Those that Python lacks are read as UTF-8, other bytes as surrogates."""

_DAMAGED_HINT = "Verify other backups and make a new one."


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry, of which there are some for each table: what nobody asks for is not kept.

    What is NULL in the file is empty here; `filename` is without a suffix of compression.
    """

    dump_id: int
    oid: int
    tag: str
    desc: str
    definition: str
    copy_statement: str
    namespace: str
    tablespace: str
    owner: str
    dependencies: tuple[int, ...]
    filename: str


@dataclass(frozen=True)
class Toc:
    """What is needed of the file: its `entries`, in its order, which is pg_restore's."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class TableData:
    """A table whose rows are in the dump. `oid` is the table's own; `filename` is without a suffix of compression.

    With `via_root` the COPY statement names the partition root, and pg_restore's rows may land in other leaves.
    """

    schema: str
    name: str
    oid: int
    filename: str
    copy_statement: str
    via_root: bool


def read_toc(data: bytes) -> Toc:
    """The values in the bytes of a toc.dat.

    Raises VersionMismatch for an archive version newer than `NEWEST`, VerificationFailed for everything else that is
    not the whole toc.dat of a directory dump.
    """
    cursor = _Cursor(data)
    try:
        toc = _toc(cursor)
    except (struct.error, UnicodeDecodeError) as exc:
        raise _damaged(cursor.position) from exc
    if cursor.position != len(data):
        raise _damaged(cursor.position)
    return toc


def read_blobs_toc(data: bytes) -> dict[str, int]:
    """The files that one `blobs*.toc` lists, without a suffix of compression, and their large objects' OIDs."""
    files: dict[str, int] = {}
    for line in data.splitlines(keepends=True):
        name, oid = _large_object(line)
        if name in files:
            raise _damaged_list(line)
        files[name] = oid
    return files


def check_blobs_toc(file: BinaryIO) -> None:
    """Raises VerificationFailed where a `blobs*.toc` names a file that pg_dump would not, however large the list is."""
    while line := file.readline(_BLOBS_LINE_BYTES):
        _large_object(line)


def _large_object(line: bytes) -> tuple[str, int]:
    found = _BLOBS_LINE.fullmatch(line)
    if found is None:
        raise _damaged_list(line)
    return found[2].decode(), int(found[1])


def _damaged_list(line: bytes) -> VerificationFailed:
    message = "a list of large objects in the dump is damaged"
    return VerificationFailed(message, detail=f"One of its lines is {line[:80]!r}.", hint=_DAMAGED_HINT)


def table_data(toc: Toc) -> tuple[TableData, ...]:
    """The tables whose rows are in the dump: ordinary ones and leaf partitions, also those of foreign tables."""
    return tuple(
        TableData(
            schema=entry.namespace,
            name=entry.tag,
            oid=entry.oid,
            filename=entry.filename,
            copy_statement=entry.copy_statement,
            via_root=entry.definition.startswith(_VIA_ROOT),
        )
        for entry in toc.entries
        if entry.desc == "TABLE DATA"
    )


def sequences(toc: Toc) -> tuple[Sequence, ...]:
    """Every sequence with the value that pg_restore will set. Raises VerificationFailed where that is not readable."""
    return tuple(_sequence(entry) for entry in toc.entries if entry.desc == "SEQUENCE SET")


def encoding(toc: Toc) -> str:
    """PostgreSQL's name of the encoding that the rows are in: pg_dump's client_encoding, mostly the database's own."""
    found = next((_ENCODING.fullmatch(entry.definition) for entry in toc.entries if entry.desc == "ENCODING"), None)
    if found is None:
        raise VerificationFailed("toc.dat of the dump does not say which encoding it is in", hint=_DAMAGED_HINT)
    return found[1]


def large_objects(toc: Toc) -> tuple[int, ...]:
    """The OIDs of the large objects that pg_restore will create: BLOB entries, since 17 groups in BLOB METADATA."""
    oids: list[int] = []
    for entry in toc.entries:
        if entry.desc == "BLOB":
            oids.append(entry.oid)
        elif entry.desc == "BLOB METADATA":
            oids += [_number(line.encode("ascii", "replace")) for line in entry.definition.split()]
    return tuple(oids)


def extensions(toc: Toc) -> tuple[str, ...]:
    """The names of the extensions that pg_restore will create; plpgsql, which every database has, is not one."""
    return tuple(entry.tag for entry in toc.entries if entry.desc == "EXTENSION")


def roles(toc: Toc) -> tuple[str, ...]:
    """The names of all roles that must exist where the dump is restored, sorted.

    Owners, and who is named by grants, default privileges, policies and user mappings. Left out is what a function's
    body names, and roles that only have settings of their own for the database.
    """
    found = {entry.owner for entry in toc.entries if entry.owner}
    for entry in toc.entries:
        if entry.desc in {"ACL", "DEFAULT ACL"}:
            found.update(_named_roles(entry))
    return tuple(sorted(found.union(named_roles(toc))))


def named_roles(toc: Toc) -> tuple[str, ...]:
    """The names of those roles that must exist even where owners and grants are not restored, sorted."""
    entries = (entry for entry in toc.entries if entry.desc in {"POLICY", "USER MAPPING"})
    return tuple(sorted({name for entry in entries for name in _named_roles(entry)}))


class _Cursor:
    """Reads integers and strings; the end of the data is struct.error."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.codec = "utf-8"
        self._names = {b"": ""}

    def integer(self) -> int:
        negative, value = _INTEGER.unpack_from(self.data, self.position)
        self.position += _INTEGER.size
        return -int(value) if negative else int(value)

    def raw(self) -> bytes:
        """A string's bytes; NULL is empty."""
        return self.nullable() or b""

    def nullable(self) -> bytes | None:
        """A string's bytes, or None for NULL."""
        length = self.integer()
        if length < 0:
            return None
        start, self.position = self.position, self.position + length
        raw = self.data[start : self.position]
        if len(raw) != length or b"\0" in raw:
            raise _damaged(start)
        return raw

    def text(self) -> str:
        return self.raw().decode(self.codec, "surrogateescape")

    def name(self) -> str:
        """As `text`, for what recurs in many entries: kept once."""
        raw = self.raw()
        if (known := self._names.get(raw)) is None:
            known = self._names[raw] = raw.decode(self.codec, "surrogateescape")
        return known


def _toc(cursor: _Cursor) -> Toc:
    version = _archive_version(cursor)
    if version >= (1, 15):
        cursor.position += 1  # the algorithm of compression
    else:
        cursor.integer()  # its level
    for _ in range(7):
        cursor.integer()  # local time without a zone: of no use
    for _ in range(3):
        cursor.raw()  # the database's name, the server's version and pg_dump's: the manifest has them
    count = cursor.integer()
    entries: list[Entry] = []
    while len(entries) < count:  # a count that lies ends where the bytes do
        entries.append(_entry(cursor, version))
        if entries[-1].desc == "ENCODING":
            cursor.codec = _codec(entries[-1].definition)
    if len(entries) != count:
        raise _damaged(cursor.position)
    _refuse_duplicates(entries)
    return Toc(tuple(entries))


def _archive_version(cursor: _Cursor) -> tuple[int, int]:
    """The header up to the format: magic, version and revision, sizes of integers and offsets."""
    magic, major, minor, _, integer_bytes, _, form = _HEADER.unpack_from(cursor.data)
    version = major, minor
    if magic == _MAGIC and version > NEWEST:
        message = f"toc.dat has archive version {major}.{minor}, newer than any known"
        raise VersionMismatch(message, hint="Use a newer release of backupd, or an older pg_dump.")
    if magic != _MAGIC or version < OLDEST or integer_bytes != _INTEGER.size - 1 or form != _TAR_FORMAT:
        raise _damaged(cursor.position)
    cursor.position += _HEADER.size
    return version


def _entry(cursor: _Cursor, version: tuple[int, int]) -> Entry:
    dump_id, _had_data = cursor.integer(), cursor.integer()
    _catalog, oid = _number(cursor.raw()), _number(cursor.raw())
    tag, desc, section = cursor.text(), cursor.name(), cursor.integer()
    entry = Entry(  # arguments are evaluated in order, and this is the file's
        dump_id=dump_id,
        oid=oid,
        tag=tag,
        desc=desc,
        definition=cursor.text(),
        copy_statement=_copy_statement(cursor),
        namespace=cursor.name(),
        tablespace=cursor.name(),
        owner=_owner(cursor, version),
        dependencies=_dependencies(cursor),
        filename=cursor.text(),
    )
    if dump_id <= 0 or section not in _SECTIONS or (entry.filename and not _FILENAME.fullmatch(entry.filename)):
        raise _damaged(cursor.position)
    if entry.desc == "BLOBS" and version < (1, 16):
        return replace(entry, filename="blobs.toc")  # whatever it says: pg_restore takes it so, too
    return entry


def _copy_statement(cursor: _Cursor) -> str:
    cursor.raw()  # before it: how the object is dropped
    return cursor.text()


def _owner(cursor: _Cursor, version: tuple[int, int]) -> str:
    """The owner, behind what only newer versions have."""
    if version >= (1, 14):
        cursor.raw()  # the table access method
    if version >= (1, 16):
        cursor.integer()  # relkind
    return cursor.name()


def _dependencies(cursor: _Cursor) -> tuple[int, ...]:
    """Numbers up to a NULL, behind the mark for WITH OIDS, which no supported server knows."""
    cursor.raw()
    return tuple(_number(raw) for raw in iter(cursor.nullable, None))


def _number(raw: bytes) -> int:
    if not _NUMBER.fullmatch(raw) or (number := int(raw)) >= 1 << 32:
        message = "toc.dat of the dump is damaged"
        raise VerificationFailed(message, detail=f"It has {raw[:20]!r} where a number belongs.", hint=_DAMAGED_HINT)
    return number


def _codec(definition: str) -> str:
    found = _ENCODING.fullmatch(definition)
    return _CODECS.get(found[1], "utf-8") if found else "utf-8"


def _refuse_duplicates(entries: Collection[Entry]) -> None:
    """An id or a file that is named twice would let one table's rows pass for another's."""
    files = [entry.filename for entry in entries if entry.filename]
    if len(set(files)) != len(files) or len({entry.dump_id for entry in entries}) != len(entries):
        message = "toc.dat of the dump names an entry or a file twice"
        raise VerificationFailed(message, hint=_DAMAGED_HINT)


def _sequence(entry: Entry) -> Sequence:
    found = _SETVAL.fullmatch(entry.definition)
    if found is None:
        message = f"toc.dat of the dump has no readable value for sequence {entry.namespace}.{entry.tag}"
        raise VerificationFailed(message, hint=_DAMAGED_HINT)
    return Sequence(entry.namespace, entry.tag, int(found[1]), found[2] == "true")


def _named_roles(entry: Entry) -> Iterator[str]:
    """Who is named after TO, FROM, ROLE...: pg_dump writes keywords in capitals and quotes what is not plain."""
    expected = listed = False
    introductions = _INTRODUCTIONS | ({"FOR"} if entry.desc == "USER MAPPING" else set())
    for word in _WORD.findall(entry.definition):
        if entry.desc == "POLICY" and word in {"USING", "WITH"}:
            return  # expressions follow, which may have a FROM of their own
        if expected and word not in _NO_ROLES:
            yield word[1:-1].replace('""', '"') if word.startswith('"') else word
        listed, expected = expected, word in introductions or (listed and word == ",")


def _damaged(position: int) -> VerificationFailed:
    return VerificationFailed(
        "toc.dat of the dump is damaged",
        detail=f"It cannot be read around byte {position}.",
        hint=_DAMAGED_HINT,
    )
