"""Reads a backup back, to its last byte, and notes what was found: *hashed* and *decoded*, not *restored*.

Where it is encrypted and no identities are set, only *hashed*: that every byte is the one that was stored.

The archive is read once, in order. Its sha256 and every member's are compared with manifest and index, and every
member is decoded again and compared with the contract, so that a wrong index is found as surely as a flipped bit. A
store that does not answer proves nothing about the bytes: that raises, and notes nothing.

It proves nothing about who wrote them: that is what signatures are for, and a backup is signed only after it was read.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime

from backupd import archive, decode, encryption, log
from backupd.catalog import Catalog
from backupd.errors import AccessRefused, NotFound, VerificationFailed
from backupd.manifest import Backup, Contract, Index, Member, Note
from backupd.progress import Progress
from backupd.reader import require_trusted
from backupd.selector import name_of

_log = log.get_logger()

Facts = Mapping[str, str | int | float | bool | None]


def verify(catalog: Catalog, backup: Backup, now: datetime, progress: Progress) -> Backup:
    """The backup with its new note `verified`. Raises VerificationFailed, after noting that, where it is damaged."""
    require_trusted(backup)
    try:
        proven = _prove(catalog, backup, progress)
    except (VerificationFailed, NotFound) as exc:
        _note(catalog, backup, False, {"error": exc.message}, now)
        if isinstance(exc, NotFound):
            message = f"archive of backup {backup.id} is missing"
            raise VerificationFailed(message, hint=archive.OTHER_HINT) from exc
        raise
    _require_no_doubt(backup, proven)
    return _note(catalog, backup, True, proven, now)


def sign(catalog: Catalog, backup: Backup, now: datetime, progress: Progress) -> Backup:
    """Reads a backup back, as `verify` does, then signs its manifest; returns it with the note `verified`.

    For what was made before there was a key, or with one that is lost. Whoever asks for it vouches for the backup: that
    its bytes fit each other says nothing about who wrote them. Raises VerificationFailed where it is damaged.
    """
    catalog.require_signer()
    proven = _prove(catalog, replace(backup, untrusted=None), progress)
    _require_no_doubt(backup, proven)
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


def _prove(catalog: Catalog, backup: Backup, progress: Progress) -> Facts:
    """What the note says of a backup that is good: it was decoded, or where it is sealed here only hashed."""
    stored = catalog.archive(backup)
    if not stored.sealed:
        return _facts(backup, "decoded", _read(stored, progress))
    progress.begin("verify", backup.id, total_bytes=backup.manifest.archive_bytes)
    archive.copy(stored, None, lambda chunk: progress.advance(len(chunk)))
    return _facts(backup, "hashed", 0)


def _facts(backup: Backup, level: str, members: int) -> Facts:
    return {"level": level, "members": members, "archive_bytes": backup.manifest.archive_bytes}


def _require_no_doubt(backup: Backup, proven: Facts) -> None:
    """Raises VerificationFailed where decoding found damage before: right hashes do not take that back."""
    before = backup.note("verified")
    if proven["level"] == "hashed" and before is not None and not before.ok:
        raise VerificationFailed(
            f"backup {backup.id} was found damaged before: {before.facts.get('error', 'no reason was recorded')}",
            detail="Its hashes are right, which proves less than what was found then.",
            hint=f"Verify it where {encryption.SETTING} is set.",
        )


def _read(stored: archive.Archive, progress: Progress) -> int:
    index = archive.read_index(stored)
    reader = Reader(index, progress)
    progress.begin("verify", stored.manifest.id, reader.expected, stored.manifest.archive_bytes)
    archive.verify(stored, index, reader)
    return reader.finish(stored.key)


class Reader:
    """Decodes each member and compares it with the contract; what it is given, it gives on."""

    def __init__(self, index: Index, progress: Progress) -> None:
        self._promised = _promises(index.contract)
        self._progress = progress
        self.expected = len(index.contract.tables) + len(index.contract.large_objects)
        self.decoded = 0

    def finish(self, key: str) -> int:
        """How many members were decoded. Raises VerificationFailed where some of the contract's are not there."""
        if self.decoded != self.expected:
            raise VerificationFailed(f"archive {key} holds {self.decoded} of {self.expected} members")
        return self.decoded

    def __call__(self, member: Member, content: archive.Content) -> None:
        """Reads a member to its end."""
        for _ in self.proven(member, content.chunks):
            pass

    def proven(self, member: Member, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The same chunks; raises VerificationFailed, at the end, where they are not what the index promises."""
        decoder = decode.Decoder(member.name) if decode.is_data(member.name) else None
        for chunk in chunks:
            self._progress.advance(len(chunk))
            if decoder is not None:
                decoder.feed(chunk)
            yield chunk
        if decoder is None:
            return
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
