"""Reads a backup back, to its last byte, and notes what was found: *hashed* and *decoded*, not *restored*.

The archive is read once, in order. Its sha256 and every member's are compared with manifest and index, and every
member is decoded again and compared with the contract, so that a wrong index is found as surely as a flipped bit. A
store that does not answer proves nothing about the bytes: that raises, and notes nothing.

It proves nothing about who wrote them: that is what signatures are for, and a backup is signed only after it was read.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from backupd import archive, decode, log
from backupd.catalog import Catalog, require_trusted
from backupd.errors import AccessRefused, NotFound, VerificationFailed
from backupd.manifest import Backup, Contract, Index, Member, Note
from backupd.progress import Progress
from backupd.selector import name_of

_log = log.get_logger()

Facts = Mapping[str, str | int | float | bool | None]


def verify(catalog: Catalog, backup: Backup, now: datetime, progress: Progress) -> Backup:
    """The backup with its new note `verified`. Raises VerificationFailed, after noting that, where it is damaged."""
    require_trusted(backup)
    try:
        proven = _read(catalog, backup, progress)
    except (VerificationFailed, NotFound) as exc:
        _note(catalog, backup, False, {"error": exc.message}, now)
        if isinstance(exc, NotFound):
            message = f"archive of backup {backup.id} is missing"
            raise VerificationFailed(message, hint=archive.OTHER_HINT) from exc
        raise
    return _note(catalog, backup, True, proven, now)


def sign(catalog: Catalog, backup: Backup, now: datetime, progress: Progress) -> Backup:
    """Reads a backup back, as `verify` does, then signs its manifest; returns it with the note `verified`.

    For what was made before there was a key, or with one that is lost. Whoever asks for it vouches for the backup: that
    its bytes fit each other says nothing about who wrote them. Raises VerificationFailed where it is damaged.
    """
    catalog.require_signer()
    proven = _read(catalog, replace(backup, untrusted=None), progress)
    return catalog.note(catalog.sign(backup), "verified", True, proven, now)


def _note(catalog: Catalog, backup: Backup, ok: bool, facts: Facts, now: datetime) -> Backup:
    """Notes what was found; who may only read, or has no key to sign it with, is told that nobody else will know."""
    try:
        return catalog.note(backup, "verified", ok, facts, now)
    except AccessRefused as exc:
        action = "until it can be noted nothing but this log knows of it"
        _log.warning("verify.unnoted", backup=str(name_of(backup)), message=exc.message, action=action)
        before = backup.note("verified")
        note = Note("verified", before.number + 1 if before else 1, now, ok, facts)
        return replace(backup, notes=(*backup.notes, note))


def _read(catalog: Catalog, backup: Backup, progress: Progress) -> Facts:
    stored = catalog.archive(backup)
    index = archive.read_index(stored)
    members = len(index.contract.tables) + len(index.contract.large_objects)
    progress.begin("verify", backup.id, members, backup.manifest.archive_bytes)
    reader = _Reader(index, progress)
    archive.verify(stored, index, reader)
    if reader.decoded != members:
        raise VerificationFailed(f"archive {stored.key} holds {reader.decoded} of {members} members")
    return {"level": "decoded", "members": reader.decoded, "archive_bytes": backup.manifest.archive_bytes}


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
