"""A member's bytes, read once: every frame decoded to its end, rows counted, content fingerprinted.

pg_restore proves none of this: it takes a 0-byte table member as an empty table and a cut zstd frame as its end
(shared findings: performance 0.9 and 5). So a table member must decode completely and end with COPY's marker. Rows are
the lines before the marker: COPY's text has one line a row, whatever is in it. The fingerprint is xxh3_128 of the
decoded bytes without the marker: it is for accidents, sha256 of the stored bytes is for tampering.

Output is bounded per step, and so is what a frame may ask for as its window: one that expands a million times costs
time, never memory.
"""

import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import xxhash

from backupd.errors import VerificationFailed

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

END_MARKER = b"\\.\n\n\n"
"""What pg_dump writes after a table's last row (pg_dump.c, dumpTableData_copy)."""

WINDOW_LOG_LIMIT = 25
"""The largest zstd window that is decoded, 32 MiB: level 19 makes 8 MiB, the library would let a frame ask for 128."""

STEP_BYTES = 256 * 1024
"""Output per step; 128 to 256 KiB was up to 1.3 times faster than 1 MiB (performance 10)."""

LINE_LIMIT_BYTES = 1 << 30
"""The longest row that is taken for one: PostgreSQL makes none of a gigabyte (MaxAllocSize)."""

_MARKER_LINE = b"\\."
_LAST_LINE = (END_MARKER, b"\n" + END_MARKER)
_TAIL_BYTES = len(_LAST_LINE[1])
_TABLE = re.compile(r"[0-9]+\.dat(\.zst|\.gz)?")
_OBJECT_LIST = re.compile(r"blobs(_[0-9]+)?\.toc")
_LARGE_OBJECT = re.compile(r"blob_([0-9]+)\.dat(\.zst|\.gz)?")


@dataclass(frozen=True)
class Decoded:
    """What a member holds: decoded size (a table's marker included), rows (0 for a large object), fingerprint."""

    raw_bytes: int
    rows: int
    fingerprint: str


def is_table(name: str) -> bool:
    """Whether that member holds a table's rows."""
    return _TABLE.fullmatch(name) is not None


def is_data(name: str) -> bool:
    """Whether that member holds rows or a large object: what is decoded."""
    return is_table(name) or large_object_oid(name) is not None


def is_object_list(name: str) -> bool:
    """Whether that member lists large objects."""
    return _OBJECT_LIST.fullmatch(name) is not None


def large_object_oid(name: str) -> int | None:
    """The large object that this member holds, if it holds one."""
    match = _LARGE_OBJECT.fullmatch(name)
    return int(match[1]) if match else None


def pack(data: bytes) -> bytes:
    """One zstd frame of data from memory."""
    return zstd.compress(data, 3)


def unpack(data: bytes, limit_bytes: int, what: str) -> bytes:
    """The content of one zstd frame, which is `what` (for messages).

    Raises VerificationFailed where it is damaged, cut, larger than the limit, or followed by anything.
    """
    decompressor = _open_zstd()
    try:
        raw: bytes = decompressor.decompress(data, limit_bytes + 1)
    except zstd.ZstdError as exc:
        raise VerificationFailed(f"{what} is damaged", detail=f"It does not decode: {exc}.") from exc
    if len(raw) > limit_bytes:
        raise VerificationFailed(f"{what} is larger than {limit_bytes} bytes")
    if not decompressor.eof or decompressor.unused_data:
        raise VerificationFailed(f"{what} is damaged", detail="It is not one whole zstd frame.")
    return raw


class Decoder:
    """Takes a member's stored bytes chunk by chunk; `finish` says what they were, or raises VerificationFailed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._frames = _open_frames(name)
        self._table = is_table(name)
        self._hash = xxhash.xxh3_128()
        self._raw_bytes = 0
        self._newlines = 0
        self._tail = b""

    def feed(self, data: bytes) -> None:
        """Decodes the next stored bytes."""
        try:
            for raw in self._frames.decode(data):
                self._take(raw)
        except (zstd.ZstdError, zlib.error) as exc:
            raise _damaged(self._name, f"It does not decode after {self._raw_bytes} bytes: {exc}.") from exc

    def finish(self) -> Decoded:
        """What was decoded. Raises VerificationFailed where the last frame or the end marker is missing."""
        if not self._frames.complete:
            raise _damaged(self._name, f"Its last frame is cut after {self._raw_bytes} decoded bytes.")
        if not self._table:
            self._hash.update(self._tail)
            return Decoded(self._raw_bytes, 0, self._hash.hexdigest())
        # A row may end with the marker's bytes, but never be them: a backslash in data is written twice.
        if self._tail not in _LAST_LINE:
            raise _damaged(self._name, f"The rows do not end with COPY's end marker after {self._raw_bytes} bytes.")
        self._hash.update(self._tail[: -len(END_MARKER)])
        return Decoded(self._raw_bytes, self._newlines - END_MARKER.count(b"\n"), self._hash.hexdigest())

    def _take(self, raw: bytes) -> None:
        self._raw_bytes += len(raw)
        if self._table:
            self._newlines += len(raw) - len(raw.replace(b"\n", b""))  # twice as fast as count() in CPython 3.11
        if len(raw) < _TAIL_BYTES:
            raw, self._tail = self._tail + raw, b""
        self._hash.update(self._tail)
        self._hash.update(memoryview(raw)[:-_TAIL_BYTES])
        self._tail = raw[-_TAIL_BYTES:]


def lines(name: str, chunks: Iterable[bytes], limit_bytes: int = LINE_LIMIT_BYTES) -> Iterator[bytes]:
    """The rows of a table's member, without their line breaks, from its stored bytes, which are read to their end.

    Raises VerificationFailed where a frame or the end marker is missing, or a row is longer than the limit, after the
    rows before that.
    """
    pending: list[bytes] = []
    pending_bytes = 0
    ended = False
    for raw in _decoded(name, chunks):
        first, *rest = raw.split(b"\n")
        pending.append(first)
        pending_bytes += len(first)
        if pending_bytes > limit_bytes:
            raise _damaged(name, f"It has a row of more than {limit_bytes} bytes, which PostgreSQL never writes.")
        if not rest:
            continue
        for line in (b"".join(pending), *rest[:-1]):
            ended = ended or line == _MARKER_LINE
            if not ended:
                yield line
        pending, pending_bytes = [rest[-1]], len(rest[-1])
    if not ended:
        raise _damaged(name, "The rows do not end with COPY's end marker.")


def _decoded(name: str, chunks: Iterable[bytes]) -> Iterator[bytes]:
    frames = _open_frames(name)
    try:
        for chunk in chunks:
            yield from frames.decode(chunk)
    except (zstd.ZstdError, zlib.error) as exc:
        raise _damaged(name, f"It does not decode: {exc}.") from exc
    if not frames.complete:
        raise _damaged(name, "Its last frame is cut.")


class _Frames(Protocol):
    @property
    def complete(self) -> bool: ...

    def decode(self, data: bytes) -> Iterator[bytes]: ...


class _ZstdFrames:
    """Concatenated zstd frames; none at all is how pg_dump stores an empty large object."""

    def __init__(self) -> None:
        self._decompressor: zstd.ZstdDecompressor | None = None

    @property
    def complete(self) -> bool:
        return self._decompressor is None

    def decode(self, data: bytes) -> Iterator[bytes]:
        while data or self._decompressor is not None:
            current = self._decompressor = self._decompressor or _open_zstd()
            if not data and current.needs_input:
                return
            raw = current.decompress(data, STEP_BYTES)
            data = b""
            if current.eof:
                data, self._decompressor = current.unused_data, None
            if raw:
                yield raw


class _GzipFrames:
    """Concatenated gzip members."""

    def __init__(self) -> None:
        self._decompressor: zlib._Decompress | None = None

    @property
    def complete(self) -> bool:
        return self._decompressor is None

    def decode(self, data: bytes) -> Iterator[bytes]:
        while data:
            current = self._decompressor = self._decompressor or zlib.decompressobj(wbits=31)
            raw = current.decompress(data, STEP_BYTES)
            data = current.unconsumed_tail
            if current.eof:
                data, self._decompressor = current.unused_data, None
            if raw:
                yield raw


class _PlainBytes:
    """Bytes that were not compressed."""

    complete = True

    def decode(self, data: bytes) -> Iterator[bytes]:
        if data:
            yield data


def _open_zstd() -> zstd.ZstdDecompressor:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG_LIMIT})


def _open_frames(name: str) -> _Frames:
    if name.endswith(".zst"):
        return _ZstdFrames()
    return _GzipFrames() if name.endswith(".gz") else _PlainBytes()


def _damaged(name: str, detail: str) -> VerificationFailed:
    return VerificationFailed(f"member {name} is damaged", detail=detail)
