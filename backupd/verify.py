"""Reads a backup back, to its last byte, and notes what was found: *hashed* and *decoded*, not *restored*.

The archive is read once, in order. Its sha256 and every member's are compared with manifest and index, and every
member is decoded again and compared with the contract, so that a wrong index is found as surely as a flipped bit. A
store that does not answer proves nothing about the bytes: that raises, and notes nothing.
"""

from collections.abc import Mapping
from datetime import datetime

from backupd import archive, decode
from backupd.catalog import Catalog
from backupd.errors import NotFound, VerificationFailed
from backupd.manifest import Backup, Contract, Index, Member
from backupd.progress import Progress


def verify(catalog: Catalog, backup: Backup, now: datetime, progress: Progress) -> Backup:
    """The backup with its new note `verified`. Raises VerificationFailed, after noting that, where it is damaged."""
    try:
        decoded = _read(catalog, backup, progress)
    except (VerificationFailed, NotFound) as exc:
        catalog.note(backup, "verified", False, {"error": exc.message}, now)
        if isinstance(exc, NotFound):
            message = f"archive of backup {backup.id} is missing"
            raise VerificationFailed(message, hint=archive.OTHER_HINT) from exc
        raise
    facts: Mapping[str, str | int] = {
        "level": "decoded",
        "members": decoded,
        "archive_bytes": backup.manifest.archive_bytes,
    }
    return catalog.note(backup, "verified", True, facts, now)


def _read(catalog: Catalog, backup: Backup, progress: Progress) -> int:
    stored = catalog.archive(backup)
    index = archive.read_index(stored)
    members = len(index.contract.tables) + len(index.contract.large_objects)
    progress.begin("verify", backup.id, members, backup.manifest.archive_bytes)
    reader = _Reader(index, progress)
    archive.verify(stored, index, reader)
    if reader.decoded != members:
        raise VerificationFailed(f"archive {stored.key} holds {reader.decoded} of {members} members")
    return reader.decoded


class _Reader:
    """Takes members' bytes in order, decodes each, and compares it with the contract at its end."""

    def __init__(self, index: Index, progress: Progress) -> None:
        self._promised = _promises(index.contract)
        self._progress = progress
        self._decoder: decode.Decoder | None = None
        self.decoded = 0

    def __call__(self, member: Member, data: bytes) -> None:
        self._progress.advance(len(data))
        if not decode.is_data(member.name):
            return
        decoder = self._decoder = self._decoder or decode.Decoder(member.name)
        if data:
            decoder.feed(data)
            return
        self._decoder = None
        if decoder.finish() != self._promised.get(member.name):
            detail = "Rows, size or fingerprint are not the contract's, although its sha256 is right."
            raise VerificationFailed(f"member {member.name} is not what the index promises", detail=detail)
        self.decoded += 1
        self._progress.advance(0, 1)


def _promises(contract: Contract) -> Mapping[str, decode.Decoded]:
    """What each member must decode to; large objects' members are named by pg_dump with their compression."""
    promised = {
        table.member: decode.Decoded(table.raw_bytes, table.rows, table.fingerprint) for table in contract.tables
    }
    for item in contract.large_objects:
        for suffix in ("", ".zst", ".gz"):
            promised[f"blob_{item.oid}.dat{suffix}"] = decode.Decoded(item.raw_bytes, 0, item.fingerprint)
    return promised
