"""Copies a backup to a second store: read once, proven on the way, listed there only when it is whole.

Every member's sha256 and the archive's own are checked before the second store shows the archive; then the notes, and
the manifest last. What an interrupted copy left is an archive without a manifest: it is read back and kept where it is
whole, since another run may be about to publish it, and replaced where it is not.

Not the bucket-to-bucket copy that S3 has: it proves nothing about the bytes, and the two stores may be of two kinds,
with two sets of credentials. Not a lock: objects are immutable, and two runs that copy one backup write the same bytes.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from backupd import archive, log
from backupd.catalog import Catalog
from backupd.errors import AlreadyExists, BackupdError, StoreError, UsageError, VerificationFailed
from backupd.manifest import Backup, Index
from backupd.progress import Progress
from backupd.reader import require_trusted
from backupd.selector import Label, name_of
from backupd.store import hint_of_second

_log = log.get_logger()

IDLE = timedelta(days=1)
"""How long remains of a copy must have been without news before they are swept: nobody is about to publish them."""


@dataclass(frozen=True)
class Copied:
    """A backup as the second store lists it, and whether it was copied just now or was there already."""

    backup: Backup
    new: bool


def copy(first: Catalog, backup: Backup, second: Catalog, now: datetime, progress: Progress) -> Copied:
    """Copies a backup, its notes and its manifest, unless it is there already; a copy has notes of its own from then.

    Raises VerificationFailed where the first store's bytes are wrong, UsageError where both are one store, and what
    either store raises; then the second lists nothing new.
    """
    if first.store.url == second.store.url:
        hint = "Name another store; BACKUPD_COPY__URL is its setting."
        raise UsageError("the second store is the first one", hint=hint)
    require_trusted(backup)
    name = name_of(backup)
    with _hints_of(first, second):
        _sweep(second, name.label, now - IDLE)
        there = second.look_up(name)
        if there is not None:
            _require_same(there, backup, second)
            require_trusted(there)
            return Copied(there, new=False)
        _copy_archive(first, backup, second, progress)
        second.commit_copy(backup, first)
        copied = second.look_up(name)
    if copied is None:
        raise StoreError(f"backup {name} was removed from {second.store.url} just now")
    return Copied(copied, new=True)


@contextlib.contextmanager
def _hints_of(first: Catalog, second: Catalog) -> Iterator[None]:
    """Stores name the first one's settings in hints: where the second fails, it is its own that help."""
    try:
        yield
    except BackupdError as exc:
        named = max((url for url in (first.store.url, second.store.url) if url in exc.message), key=len, default="")
        if exc.hint and named == second.store.url:
            exc.hint = hint_of_second(exc.hint)
        raise


def _sweep(second: Catalog, label: Label, idle_since: datetime) -> None:
    """Removes what interrupted copies left: there is no lock on a copy, so only what is old."""
    swept = [*second.store.sweep(f"{label}/", idle_since)]
    for entry in second.backups(label.server, label.database).orphans:
        if entry.modified_at < idle_since:
            second.store.delete(entry.key)
            swept.append(entry.key)
    for name in swept:
        _log.info("orphan.swept", key=name, store=second.store.url)


def _require_same(there: Backup, backup: Backup, second: Catalog) -> None:
    if there.manifest != backup.manifest:
        raise AlreadyExists(
            f"another backup is named {name_of(backup)} in {second.store.url}",
            detail="Its manifest is not that of the backup to copy, and objects are never overwritten.",
            hint="Give each installation's copies a prefix of their own.",
        )


def _copy_archive(first: Catalog, backup: Backup, second: Catalog, progress: Progress) -> None:
    stored, manifest = first.archive(backup), backup.manifest
    index = None if stored.sealed else archive.read_index(stored)
    progress.begin("copy", backup.id, total_bytes=manifest.archive_bytes)
    if _is_whole(second, backup, index, progress):
        return
    progress.begin("copy", backup.id, total_bytes=manifest.archive_bytes)
    with second.store.create(stored.key, manifest.archive_bytes) as stream:

        def write(chunk: bytes) -> None:
            stream.write(chunk)
            progress.advance(len(chunk))

        archive.copy(stored, index, write)


def _is_whole(second: Catalog, backup: Backup, index: Index | None, progress: Progress) -> bool:
    """Whether an archive without a manifest is there, whole; one that is not is removed."""
    stored = second.archive(backup)
    if not any(entry.key == stored.key for entry in second.store.list(stored.key)):
        return False
    try:
        archive.copy(stored, index, lambda chunk: progress.advance(len(chunk)))
    except VerificationFailed as exc:
        _log.warning(
            "orphan.damaged", key=stored.key, store=second.store.url, message=exc.message, action="it is replaced"
        )
        second.store.delete(stored.key)
        return False
    return True
