"""Encrypts a backup anew, to the recipients of today: a new backup of the same content, beside the old one.

Read once, decoded and compared with its contract on the way, as `verify` does, so that what comes out is as proven as
what went in; no member lies in scratch. The new backup has the times and facts of the old one, and a name whose time is
the old one's: `latest`, `before:` and freshness mean what they meant. Its note `rekeyed` says of which backup it is the
content. That is written first, and keeps others from sweeping what is not published yet.

Not in place, which objects that never change do not allow, and which could lose both. The old one is left alone by
retention from then on, and is deleted by whoever knows that nobody needs its keys any more.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from backupd import __version__, archive, encryption, log, readme
from backupd.catalog import Catalog, new_id
from backupd.errors import UsageError
from backupd.layout import archive_key
from backupd.manifest import Backup, Index, Manifest, Member, Note, format_of
from backupd.progress import Progress
from backupd.reader import require_trusted
from backupd.selector import Name, name_of
from backupd.verify import Reader

_log = log.get_logger()

_SUSPECT = "it was suspect when it was taken, before it was encrypted"
_FAILED = "why is known of the backup that it was rekeyed from, before it was encrypted"


@dataclass(frozen=True)
class Rekeyed:
    """The backup under today's keys, and whether it was made just now or was there already."""

    backup: Backup
    new: bool


def rekey(
    catalog: Catalog, backup: Backup, recipients: tuple[str, ...], clock: Callable[[], datetime], progress: Progress
) -> Rekeyed:
    """Encrypts the backup's content to the recipients, unless that was done before.

    Raises UsageError where there are no recipients, or it was rekeyed to others; VerificationFailed where it is
    damaged, AccessRefused where no identity opens it. Then nothing new is listed.
    """
    if not recipients:
        message = "no recipients are set to encrypt to"
        raise UsageError(message, hint=f"Set {encryption.RECIPIENTS_SETTING}: `rekey` never writes a backup in clear.")
    require_trusted(backup)
    catalog.require_signer()
    there = _there(catalog, backup, recipients)
    if there is None:
        name = Name(name_of(backup).label, new_id(backup.manifest.started_at, secrets.token_hex(4)))
        catalog.announce(name, backup.id, clock())
        manifest = _write(catalog, backup, name, recipients, progress)
        made = replace(catalog.commit(manifest), notes=())
    else:
        made = there
    for note in backup.notes:
        if _is_of_the_content(note) and made.note(note.kind) is None:
            made = catalog.note(made, note.kind, note.ok, _facts(backup, note), clock())
    return Rekeyed(catalog.look_up(name_of(made)) or made, there is None)


def _there(catalog: Catalog, backup: Backup, recipients: tuple[str, ...]) -> Backup | None:
    """What an earlier run made of it, which may have ended before its notes were written."""
    if backup.manifest.recipients and set(backup.manifest.recipients) == set(recipients):
        hint = f"Set {encryption.RECIPIENTS_SETTING} to those that are to open it from now on."
        raise UsageError(f"backup {backup.id} is encrypted to these recipients already", hint=hint)
    listing = catalog.backups(backup.source.server, backup.source.database)
    for other in listing.backups:
        if other.rekeyed_from != backup.id or (other.suspect is not None and other.suspect != _SUSPECT):
            continue
        if set(other.manifest.recipients) != set(recipients):
            hint = f"Rekey {other.id}, or delete it first."
            raise UsageError(f"backup {backup.id} was rekeyed as {other.id}, to other recipients", hint=hint)
        return other
    return None


def _write(catalog: Catalog, backup: Backup, name: Name, recipients: tuple[str, ...], progress: Progress) -> Manifest:
    """Writes the archive; the manifest that will make it a backup is returned."""
    stored, old = catalog.archive(backup), backup.manifest
    index = archive.read_index(stored)
    reader = Reader(index, progress)
    progress.begin("rekey", backup.id, reader.expected, old.archive_bytes)
    with catalog.store.create(archive_key(name), old.archive_bytes) as output:
        writer = archive.Writer(output, name.id, old.started_at, recipients)
        how_to = readme.text(name.id, old.client_version, index.contract.database, recipients)
        writer.add(archive.README_NAME, how_to.encode())

        def rewrite(member: Member, content: archive.Content) -> None:
            if member.name != archive.README_NAME:
                writer.add_chunks(member.name, content.size_bytes, reader.proven(member, content.chunks))

        archive.verify(stored, index, rewrite)
        reader.finish(stored.key)
        written = writer.finish(index.contract)
    return _manifest(old, name, recipients, written, index)


def _manifest(
    old: Manifest, name: Name, recipients: tuple[str, ...], written: archive.Written, index: Index
) -> Manifest:
    """The old one's facts, without what an encrypted backup does not tell."""
    return replace(
        old,
        format=format_of(recipients),
        id=name.id,
        backupd_version=__version__,
        archive_bytes=written.archive_bytes,
        archive_sha256=written.archive_sha256,
        index_offset=written.index.offset,
        index_bytes=written.index.size_bytes,
        index_sha256=written.index.sha256,
        totals=replace(old.totals, members=len(index.members)),
        filter=old.filter and old.filter.hidden(),
        suspect=old.suspect if old.recipients or old.suspect is None else _SUSPECT,
        recipients=recipients,
        warnings=(),
    )


def _is_of_the_content(note: Note) -> bool:
    """Whether a note holds for the content under any key: the bytes were just proven anew, a good drill was not."""
    return note.kind not in ("verified", "rekeyed", "drilled") or (note.kind == "drilled" and not note.ok)


def _facts(backup: Backup, note: Note) -> Mapping[str, str | int | float | bool | None]:
    """The note's facts; of a backup that was in clear, its words may name tables."""
    if backup.manifest.recipients:
        return note.facts
    hidden = {"error": _FAILED, "why": _SUSPECT}
    return {name: hidden.get(name, value) for name, value in note.facts.items() if name != "detail"}
