"""Small archives in real stores, made by the archive's own writer, and stores that count, fail or are slow."""

import contextlib
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from made_backups import made_manifest

from backupd import archive, decode
from backupd.catalog import Catalog
from backupd.errors import StoreError
from backupd.layout import archive_key
from backupd.manifest import Backup, Contract, DatabaseProperties, Index, LargeObject, Manifest, Table
from backupd.selector import Name, name_of
from backupd.store import Entry, Store
from backupd.store.local import LocalStore

STARTED_AT = datetime(2026, 11, 23, 22, 16, 14, tzinfo=UTC)
PROPERTIES = DatabaseProperties("shop", "UTF8", "c", "C.UTF-8", "C.UTF-8")
EMPTY_MANIFEST = made_manifest(STARTED_AT)
ID = EMPTY_MANIFEST.id
KEY = archive_key(Name(name_of(Backup(EMPTY_MANIFEST)).label, ID))

ROWS = {
    "3456.dat.zst": decode.pack(b"1\tone\n2\ttwo\n" + decode.END_MARKER),
    "3457.dat": decode.END_MARKER,
    "blob_16686.dat.zst": decode.pack(b"a large object"),
    "blob_16687.dat.zst": b"",
}
MEMBERS = {"README.txt": b"how to\n", **ROWS, "blobs_16685.toc": b"16686 blob_16686.dat\n", "toc.dat": b"PGDMP"}


@dataclass(frozen=True)
class Made:
    """An archive in a store and what its manifest and index say."""

    store: LocalStore
    root: Path
    manifest: Manifest
    index: Index

    @property
    def path(self) -> Path:
        """The archive's file."""
        return self.root / KEY

    @property
    def archive(self) -> archive.Archive:
        """What reads it."""
        return archive.Archive(self.store, KEY, self.manifest)

    @property
    def catalog(self) -> Catalog:
        """The store's backups."""
        return Catalog(self.store)

    def commit(self) -> Backup:
        """Makes a backup of it."""
        return self.catalog.commit(self.manifest)

    def flip(self, position: int) -> None:
        """Changes one bit of that byte; a second time it is as before."""
        with self.path.open("r+b") as file:
            file.seek(position)
            (byte,) = file.read(1)
            file.seek(position)
            file.write(bytes([byte ^ 1 << position % 8]))


def contract_of(members: Mapping[str, bytes]) -> Contract:
    """What the members hold, as a backup would promise it."""
    tables, objects = [], []
    for name, data in members.items():
        if not decode.is_table(name) and decode.large_object_oid(name) is None:
            continue
        decoder = decode.Decoder(name)
        decoder.feed(data)
        proven = decoder.finish()
        oid = decode.large_object_oid(name)
        if oid is None:
            number = int(name.partition(".")[0])
            copy = f"COPY shop.t{number} (id, name) FROM stdin;\n"
            tables.append(
                Table("shop", f"t{number}", number, name, proven.rows, proven.raw_bytes, proven.fingerprint, copy)
            )
        else:
            objects.append(LargeObject(oid, proven.raw_bytes, proven.fingerprint))
    return Contract(PROPERTIES, tables=tuple(tables), large_objects=tuple(objects))


def make_archive(folder: Path, members: Mapping[str, bytes] = MEMBERS, contract: Contract | None = None) -> Made:
    """Writes an archive into a new store below the folder; without a contract, one that fits."""
    root = folder / "store"
    root.mkdir()
    store = LocalStore(root)
    with store.create(KEY) as stream:
        writer = archive.Writer(stream, ID, STARTED_AT)
        for name, data in members.items():
            writer.add(name, data)
        written = writer.finish(contract_of(members) if contract is None else contract)
    manifest = manifest_of(written)
    return Made(store, root, manifest, archive.read_index(archive.Archive(store, KEY, manifest)))


def manifest_of(written: archive.Written) -> Manifest:
    """The manifest of what a writer wrote."""
    return replace(
        EMPTY_MANIFEST,
        archive_bytes=written.archive_bytes,
        archive_sha256=written.archive_sha256,
        index_offset=written.index.offset,
        index_bytes=written.index.size_bytes,
        index_sha256=written.index.sha256,
    )


@dataclass
class WatchedStore:
    """A store before another one: it remembers the ranges that are opened, and lets a stream be replaced."""

    inner: Store
    opened: list[tuple[int, int | None]] = field(default_factory=list)
    replace_stream: Callable[[int, BinaryIO], BinaryIO] = lambda start, stream: stream

    @property
    def url(self) -> str:
        """See Store."""
        return self.inner.url

    @contextlib.contextmanager
    def create(self, key: str, expected_bytes: int = 0) -> Iterator[BinaryIO]:
        """See Store."""
        with self.inner.create(key, expected_bytes) as stream:
            yield stream

    @contextlib.contextmanager
    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[BinaryIO]:
        """See Store."""
        self.opened.append((start, length))
        with self.inner.open(key, start, length) as stream:
            yield self.replace_stream(start, stream)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See Store."""
        return self.inner.list(prefix)

    def delete(self, key: str) -> None:
        """See Store."""
        self.inner.delete(key)

    def sweep(self, prefix: str, idle_since: datetime) -> Sequence[str]:
        """See Store."""
        return self.inner.sweep(prefix, idle_since)


class BreakingStream(io.BytesIO):
    """The first bytes of another stream, then the error of a store."""

    def __init__(self, stream: BinaryIO, size_bytes: int) -> None:
        super().__init__(stream.read(size_bytes))

    def read(self, size: int | None = -1, /) -> bytes:
        """Less and less, then StoreError."""
        data = super().read(size)
        if not data:
            raise StoreError("the store broke off")
        return data


class SlowStream(io.RawIOBase):
    """Zeros without end, 1 KiB at a time, a hundred times a second."""

    def read(self, size: int = -1, /) -> bytes:
        """The next ones."""
        time.sleep(0.01)
        return bytes(min(size, 1024) if size > 0 else 1024)
