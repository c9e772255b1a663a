"""Backups as somebody forges them who can write the store: real members, then whatever he likes, with right hashes."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backupd import archive, decode
from backupd.layout import archive_key, manifest_key
from backupd.manifest import Backup, Contract, Index, Manifest, to_json
from backupd.selector import Label, Name, name_of
from backupd.store import Store

Document = dict[str, Any]
Change = Callable[[Document], object]


def unchanged(_: Document) -> None:
    """Leaves a document as it is."""


@dataclass(frozen=True)
class Original:
    """A backup's members, contract and manifest."""

    manifest: Manifest
    members: Mapping[str, bytes]
    contract: Contract

    @property
    def label(self) -> Label:
        """Where it is filed."""
        return name_of(Backup(self.manifest)).label


def read(store: Store, backup: Backup) -> Original:
    """What the store holds of it."""
    there = archive.Archive(store, archive_key(name_of(backup)), backup.manifest)
    index = archive.read_index(there)
    members = {member.name: b"".join(archive.read(there, member)) for member in index.members}
    return Original(backup.manifest, members, index.contract)


@dataclass(frozen=True)
class Forgery:
    """A backup to write. Changes see documents as they would be right; what is `raw` is written in their place.

    `before` are bytes of the tar before the first member: headers of whatever kind. `spoil` changes the archive's bytes
    last, when the manifest was made of what they were. `seal` makes of a member's name and content what is stored.
    """

    original: Original
    members: Mapping[str, bytes] = field(default_factory=dict)
    lacking: frozenset[str] = frozenset()
    before: bytes = b""
    index: Change = unchanged
    raw_index: bytes | None = None
    packed_index: bytes | None = None
    manifest: Change = unchanged
    raw_manifest: bytes | None = None
    spoil: Callable[[bytes], bytes] = lambda data: data
    seal: Callable[[str, bytes], bytes] = lambda _, content: content
    notes: Mapping[str, bytes] = field(default_factory=dict)
    label: Label | None = None

    def write(self, root: Path) -> Name:
        """Writes it below a store's folder; returns its name."""
        original = self.original
        stream = io.BytesIO()
        writer = archive.Writer(stream, original.manifest.id, original.manifest.started_at)
        if self.before:
            writer._write(self.before)
        for member, content in {**original.members, **self.members}.items():
            if member not in self.lacking:
                writer.add(member, self.seal(member, content))
        index = self.seal(archive.INDEX_NAME, self._index(writer))
        entry = writer.add(archive.INDEX_NAME, index)
        stream.write(bytes(2 * tarfile.BLOCKSIZE))
        data = stream.getvalue()
        sums = {
            "archive_bytes": len(data),
            "archive_sha256": hashlib.sha256(data).hexdigest(),
            "index_offset": entry.offset,
            "index_bytes": entry.size_bytes,
            "index_sha256": entry.sha256,
        }
        name = Name(self.label or original.label, original.manifest.id)
        self._put(root, archive_key(name), self.spoil(data))
        document = json.loads(to_json(original.manifest)) | sums
        document["source"] |= {"server": name.label.server, "database": name.label.database}
        self.manifest(document)
        raw = _dumped(document) if self.raw_manifest is None else self.raw_manifest
        self._put(root, manifest_key(name), raw)
        for ending, note in self.notes.items():
            self._put(root, manifest_key(name).removesuffix(".json") + f".{ending}.json", note)
        return name

    def _index(self, writer: archive.Writer) -> bytes:
        if self.packed_index is not None:
            return self.packed_index
        if self.raw_index is not None:
            return decode.pack(self.raw_index)
        manifest = self.original.manifest
        document = json.loads(
            to_json(Index(manifest.format, manifest.id, tuple(writer._members), self.original.contract))
        )
        self.index(document)
        return decode.pack(_dumped(document))

    def _put(self, root: Path, key: str, data: bytes) -> None:
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _dumped(document: Document) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")
