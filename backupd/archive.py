"""Members to a tar stream and back: offsets, hashes, the index, and a reader that trusts no name in the tar.

Written in one pass to a stream that cannot seek: README.txt, the members as pg_dump finishes them, the index last.
`tarfile` makes the headers, but neither packs nor unpacks: it would copy each member once more, and `extractall` lets
names in a tar decide where files are written (its filters were bypassed twice, CVE-2025-4517 and CVE-2026-11940).
The reader takes members by the index's offsets, under names that fully match the format's pattern, into files that
it creates itself, and gives no byte to anyone before its sha256 was right.
"""

import contextlib
import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO

from backupd import decode, encryption, scratch, threads, toc
from backupd.encryption import NO_IDENTITIES, Identities
from backupd.errors import VerificationFailed
from backupd.manifest import Contract, Index, Manifest, Member, format_of, load_index, to_json
from backupd.store import Store

CHUNK_BYTES = 256 * 1024
INDEX_NAME = "index.json.zst"
README_NAME = "README.txt"
INDEX_LIMIT_BYTES = 128 << 20
"""Decoded size of the largest index that is read: 100,000 tables make about 40 MB."""

INDEX_FREE_BYTES = 4 << 20
"""Decoded size up to which an index may go whatever the archive's. Beyond that it must be smaller than twice the
archive, where toc.dat lies as it is and has more to say of each table: 12 KB would else become 128 MiB of JSON, and
those 2.5 GB of values (measured)."""

MEMORY_LIMIT_BYTES = 256 << 20
"""The largest member that is read into memory: toc.dat, of which 100,000 tables make about 100 MB."""

RANGE_BYTES = 16 << 20
"""Neighbouring members are read in one range at least up to this size: a request each would cost 17 ms."""

RANGES_PER_THREAD = 1
"""Of a whole archive: some services (rclone) hash an object anew for each range of it, 0.35 s for 185 MB. One is
enough, since a range whose connection breaks goes on where it was."""

FETCH_THREADS = 2
OTHER_HINT = "Use another backup: `backupd list` shows them, `backupd verify ID` reads one to its end."


@dataclass(frozen=True)
class Written:
    """What the manifest says of an archive: its size and hash, and where its index is."""

    archive_bytes: int
    archive_sha256: str
    index: Member
    members: int


@dataclass(frozen=True)
class Content:
    """What a member holds once it is decrypted, and how long that is."""

    size_bytes: int
    chunks: Iterator[bytes]


@dataclass(frozen=True)
class Archive:
    """An archive to be read: where it lies, what its manifest says of it, and what opens it if it is encrypted."""

    store: Store
    key: str
    manifest: Manifest
    identities: Identities = NO_IDENTITIES

    @property
    def sealed(self) -> bool:
        """Whether nothing in it can be read here but its README.txt."""
        return bool(self.manifest.recipients) and not self.identities

    def content(self, member: Member, stored: Iterable[bytes]) -> Content:
        """A member's content from its stored bytes, and how long it is."""
        if not self.manifest.recipients or member.name == README_NAME:
            return Content(member.size_bytes, iter(stored))
        size_bytes, stored = encryption.peek(stored, member.size_bytes)
        return Content(size_bytes, self.opened(member.name, stored))

    def opened(self, name: str, stored: Iterable[bytes]) -> Iterator[bytes]:
        """A member's content from its stored bytes, all of which are read."""
        if not self.manifest.recipients or name == README_NAME:
            yield from stored
        else:
            yield from encryption.decrypt(stored, self.identities, f"member {name} of {self.key}")


class Writer:
    """Writes one archive to a stream, each member once, and hashes the whole on the way.

    With `recipients` each member but the README.txt is an age file, and so is the index.
    """

    def __init__(
        self, stream: BinaryIO, backup_id: str, created_at: datetime, recipients: tuple[str, ...] = ()
    ) -> None:
        self._stream = stream
        self._id = backup_id
        self._recipients = recipients
        self._mtime = int(created_at.timestamp())
        self._sha256 = hashlib.sha256()
        self._members: list[Member] = []
        self.written_bytes = 0

    def add(self, name: str, data: bytes) -> Member:
        """Adds a member from memory."""
        return self.add_stream(name, len(data), io.BytesIO(data), lambda _: None)

    def add_stream(self, name: str, size_bytes: int, source: BinaryIO, feed: Callable[[bytes], None]) -> Member:
        """Adds a member of exactly that size from a stream; `feed` sees every byte of it, before it is encrypted.

        Raises VerificationFailed where the stream is shorter or longer.
        """
        return self.add_chunks(name, size_bytes, _exactly(name, size_bytes, source, feed))

    def add_chunks(self, name: str, size_bytes: int, chunks: Iterable[bytes]) -> Member:
        """Adds a member of exactly that size. Raises VerificationFailed where the chunks have another."""
        if not self._recipients or name == README_NAME:
            return self._store(name, name, size_bytes, chunks)
        with encryption.encrypt(chunks, size_bytes, self._recipients) as encrypted:
            return self._store(name, name + encryption.SUFFIX, encrypted.size_bytes, encrypted.chunks)

    def _store(self, name: str, stored_name: str, size_bytes: int, chunks: Iterable[bytes]) -> Member:
        header = tarfile.TarInfo(f"{self._id}/{stored_name}")
        header.size, header.mtime, header.mode = size_bytes, self._mtime, 0o600
        self._write(header.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict"))
        offset, sha256 = self.written_bytes, hashlib.sha256()
        for chunk in chunks:
            sha256.update(chunk)
            self._write(chunk)
        if self.written_bytes != offset + size_bytes:
            raise VerificationFailed(f"member {stored_name} has another size than its header says")
        self._write(bytes(-size_bytes % tarfile.BLOCKSIZE))
        member = Member(name, offset, size_bytes, sha256.hexdigest())
        self._members.append(member)
        return member

    def finish(self, contract: Contract) -> Written:
        """Adds the index and the end of the tar."""
        index = Index(format_of(self._recipients), self._id, tuple(self._members), contract)
        entry = self.add(INDEX_NAME, decode.pack(to_json(index)))
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self.written_bytes % tarfile.RECORDSIZE))
        return Written(self.written_bytes, self._sha256.hexdigest(), entry, len(index.members))

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._sha256.update(data)
        self.written_bytes += len(data)


def _exactly(name: str, size_bytes: int, source: BinaryIO, feed: Callable[[bytes], None]) -> Iterator[bytes]:
    left = size_bytes
    while left >= 0 and (chunk := source.read(CHUNK_BYTES)):
        left -= len(chunk)
        feed(chunk)
        yield chunk
    if left != 0:
        found = f"{size_bytes - left}{' or more' if left < 0 else ''}"
        detail = f"It was {size_bytes} bytes long when it was opened, and {found} when it was read."
        raise VerificationFailed(f"member {name} changed while it was read", detail=detail)


def read_index(archive: Archive) -> Index:
    """The archive's index, by one range. Raises VerificationFailed where it is not the one that was written."""
    manifest, where = archive.manifest, f"of {archive.key}"
    limit_bytes = min(INDEX_LIMIT_BYTES, INDEX_FREE_BYTES + 2 * manifest.archive_bytes)
    if manifest.index_bytes > limit_bytes:
        raise VerificationFailed(f"index {where} is larger than {limit_bytes} bytes")
    with archive.store.open(archive.key, manifest.index_offset, manifest.index_bytes) as stream:
        data = stream.read()
    if hashlib.sha256(data).hexdigest() != manifest.index_sha256:
        raise VerificationFailed(f"index {where} is damaged", detail="Its sha256 is not the manifest's.")
    data = b"".join(archive.opened(INDEX_NAME, [data]))
    index = load_index(decode.unpack(data, limit_bytes, f"index {where}"), where)
    _check_layout(index, manifest, where)
    return index


def verify(archive: Archive, index: Index, look: Callable[[Member, Content], object]) -> None:
    """Reads the whole archive once, in order; `look` gets each member with its content, and may leave some unread.

    Raises VerificationFailed at the first member, or at the end, whose sha256 is wrong, or where the size is.
    """
    for member, group in groupby(_proven(archive, index), key=itemgetter(0)):
        if member is not None:
            look(member, archive.content(member, map(itemgetter(1), group)))


def copy(archive: Archive, index: Index | None, write: Callable[[bytes], object]) -> None:
    """Reads the whole archive once, in order, and gives every byte of it to `write`.

    Raises as `verify`; what was written until then is no archive. Without an index, which may be sealed, the sha256 of
    the whole proves the same, at the end.
    """
    for _, chunk in _proven(archive, index):
        write(chunk)


def _proven(archive: Archive, index: Index | None) -> Iterator[tuple[Member | None, bytes]]:
    """Every byte in order, with the member that it is of; after a member's last byte an empty chunk, once it is proven.

    The end comes only when the archive as a whole is proven.
    """
    key, manifest, whole = archive.key, archive.manifest, hashlib.sha256()
    with archive.store.open(key) as stream:
        position = 0
        for member in sorted(index.members if index else (), key=lambda member: member.offset):
            for chunk in _chunks(key, stream, member.offset - position):
                whole.update(chunk)
                yield None, chunk
            own = hashlib.sha256()
            for chunk in _chunks(key, stream, member.size_bytes):
                whole.update(chunk)
                own.update(chunk)
                yield member, chunk
            _check_hash(key, member, own.hexdigest())
            yield member, b""
            position = member.offset + member.size_bytes
        for chunk in _chunks(key, stream, manifest.archive_bytes - position):
            whole.update(chunk)
            yield None, chunk
        if stream.read(1):
            detail = f"It goes on after the {manifest.archive_bytes} bytes that its manifest names."
            raise VerificationFailed(f"archive {key} is damaged", detail=detail, hint=OTHER_HINT)
    if whole.hexdigest() != manifest.archive_sha256:
        detail = "Its sha256 is not the manifest's" + (", although every member's is right." if index else ".")
        raise VerificationFailed(f"archive {key} is damaged", detail=detail, hint=OTHER_HINT)


def read_toc(archive: Archive, index: Index) -> bytes:
    """The dump's toc.dat, by one range. Raises VerificationFailed where it is not the one that was written."""
    member = next((member for member in index.members if member.name == toc.NAME), None)
    if member is None or member.size_bytes > MEMORY_LIMIT_BYTES:
        lacking = "It has no toc.dat." if member is None else f"Its toc.dat is larger than {MEMORY_LIMIT_BYTES} bytes."
        raise VerificationFailed(f"index of {archive.key} is damaged", detail=lacking, hint=OTHER_HINT)
    return b"".join(read(archive, member))


def write_file(path: Path, data: bytes) -> None:
    """Writes a new regular file, which is whole or not there."""
    with _new_file(path) as write:
        write(data)


def read(archive: Archive, member: Member) -> Iterator[bytes]:
    """One member as pg_dump wrote it, by one range.

    Raises VerificationFailed, at the end, where the sha256 of its stored bytes is wrong.
    """
    with archive.store.open(archive.key, member.offset, member.size_bytes) as stream:
        yield from archive.opened(member.name, _hashed(archive.key, member, stream, lambda _: None))


def _hashed(key: str, member: Member, stream: BinaryIO, on_bytes: Callable[[int], None]) -> Iterator[bytes]:
    """The member's stored bytes, the next ones of the stream."""
    sha256 = hashlib.sha256()
    for chunk in _chunks(key, stream, member.size_bytes):
        sha256.update(chunk)
        on_bytes(len(chunk))
        yield chunk
    _check_hash(key, member, sha256.hexdigest())


def fetch(archive: Archive, members: Sequence[Member], directory: Path, on_bytes: Callable[[int], None]) -> None:
    """Writes the members as regular files into an existing folder, largest ranges first, each sha256 checked.

    Every file that is left there is whole, also when this raises: the one that was being written is removed.
    `on_bytes` gets sizes as they arrive, from one thread at a time.
    """
    total_bytes = sum(member.size_bytes for member in members)
    most_bytes = max(RANGE_BYTES, total_bytes // (RANGES_PER_THREAD * FETCH_THREADS))
    ranges = sorted(_ranges(members, most_bytes), key=_range_bytes, reverse=True)
    lock, stopped = threading.Lock(), threading.Event()

    def count(size_bytes: int) -> None:
        with lock:
            if stopped.is_set():  # a member may be so long that nobody could wait for its end
                raise CancelledError
            on_bytes(size_bytes)

    with threads.pool(FETCH_THREADS, "fetch") as pool:
        try:
            futures = [pool.submit(_fetch_range, archive, group, directory, count) for group in ranges]
            for future in threads.completed(futures):
                future.result()
        except BaseException:
            stopped.set()
            raise


def _fetch_range(archive: Archive, members: Sequence[Member], directory: Path, on_bytes: Callable[[int], None]) -> None:
    start = members[0].offset
    with archive.store.open(archive.key, start, _range_bytes(members)) as stream:
        position = start
        for member in members:
            for _ in _chunks(archive.key, stream, member.offset - position):
                pass
            with _new_file(directory / member.name) as write:
                for chunk in archive.opened(member.name, _hashed(archive.key, member, stream, on_bytes)):
                    write(chunk)
            position = member.offset + member.size_bytes


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Yields what writes to a new regular file; whatever the block raises, the file is gone.

    Buffered, although chunks are large: an unbuffered write may stop at the end of the room and raise nothing.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with scratch.errors(path):
        file = os.fdopen(os.open(path, flags, 0o600), "wb")

    def write(data: bytes) -> None:
        with scratch.errors(path):
            file.write(data)

    try:
        yield write
        with scratch.errors(path):
            file.close()
    except BaseException:
        with contextlib.suppress(OSError):
            file.close()
        path.unlink(missing_ok=True)
        raise


def _chunks(key: str, stream: BinaryIO, size_bytes: int) -> Iterator[bytes]:
    """Exactly that many bytes, or VerificationFailed."""
    while size_bytes > 0:
        chunk = stream.read(min(CHUNK_BYTES, size_bytes))
        if not chunk:
            detail = f"It ends where {size_bytes} more bytes were expected."
            raise VerificationFailed(f"archive {key} is cut", detail=detail, hint=OTHER_HINT)
        size_bytes -= len(chunk)
        yield chunk


def _ranges(members: Sequence[Member], most_bytes: int) -> Iterator[tuple[Member, ...]]:
    """Neighbours joined up to that size while they are next to each other, so that few requests read many members."""
    group: list[Member] = []
    for member in sorted(members, key=lambda member: member.offset):
        near = group and member.offset - (group[-1].offset + group[-1].size_bytes) <= 4 * tarfile.BLOCKSIZE
        if group and (not near or _range_bytes([*group[:1], member]) > most_bytes):
            yield tuple(group)
            group = []
        group.append(member)
    if group:
        yield tuple(group)


def _range_bytes(members: Sequence[Member]) -> int:
    return members[-1].offset + members[-1].size_bytes - members[0].offset


def _check_layout(index: Index, manifest: Manifest, where: str) -> None:
    """Refuses an index whose members overlap, repeat, or lie outside the archive."""
    position, names = 0, set()
    for member in sorted(index.members, key=lambda member: member.offset):
        if member.offset < position or member.name in names:
            raise VerificationFailed(f"index {where} is damaged", detail=f"Member {member.name} overlaps or repeats.")
        names.add(member.name)
        position = member.offset + member.size_bytes
    if index.id != manifest.id or position > manifest.index_offset:
        raise VerificationFailed(f"index {where} is damaged", detail="It is not the index of this archive.")


def _check_hash(key: str, member: Member, got: str) -> None:
    if got != member.sha256:
        detail = f"Its sha256 is {got}, and was {member.sha256}."
        raise VerificationFailed(f"member {member.name} of {key} is damaged", detail=detail, hint=OTHER_HINT)
