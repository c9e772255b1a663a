"""What is read of a backup, and believed: its manifest and notes, checked against their names and signatures.

Hides what one that is damaged, unsigned or deleted meanwhile counts as. Everything that is wrong with one backup is
said of that one and stops no other: the catalog shows it beside those that can be used.
"""

import contextlib
from dataclasses import dataclass

from backupd import signing
from backupd.errors import BackupdError, NotFound, NotTrusted, VerificationFailed
from backupd.layout import SIGNATURE, Files, archive_key, manifest_key
from backupd.manifest import MANIFEST_LIMIT_BYTES, Backup, Manifest, Note, NoteKind, load_manifest, load_note
from backupd.selector import Name, name_of
from backupd.store import Entry, Store


@dataclass(frozen=True)
class Broken:
    """An object that should belong to a backup but cannot be used, and why."""

    key: str
    name: Name
    error: BackupdError


@dataclass(frozen=True)
class Reader:
    """Reads from `store`, and believes by `keys`."""

    store: Store
    keys: signing.Keys

    def load(self, files: Files) -> tuple[Backup | None, list[Broken]]:
        """The backup, if it is one, and what of it is broken. Neither where it was deleted since the list."""
        name, key = files.name, manifest_key(files.name)
        try:
            # An archive may have come or gone while the list was made. Looked for before the manifest is read: a delete
            # takes the manifest first, so that one without an archive is gone by then, unless it is broken.
            archive = files.archive or self.look(archive_key(name))
            data = self.content(files.entries[".json"])
            manifest = load_manifest(data, key)
            require_whole(manifest, name, archive)
            untrusted = self.why_untrusted(files, key, data)
        except NotFound:
            return None, []
        except BackupdError as exc:
            return None, [Broken(key, name, exc)]
        notes, broken = self._load_notes(files)
        return Backup(manifest, tuple(notes), untrusted), broken

    def _load_notes(self, files: Files) -> tuple[list[Note], list[Broken]]:
        notes: list[Note] = []
        broken: list[Broken] = []
        for kind, candidates in files.notes.items():
            for number, entry in candidates:
                try:
                    note = self._load_note(files, kind, number, entry)
                except NotFound:
                    continue
                except BackupdError as exc:
                    broken.append(Broken(entry.key, files.name, exc))
                    if isinstance(exc, NotTrusted) and kind != "pinned":
                        continue  # the one below it counts: whoever can write here must not decide what is known
                    # What cannot be read counts as its cautious answer: pinned, not verified, not confirmed...
                    note = Note(kind, number, entry.modified_at, kind == "pinned", {"error": "its note cannot be read"})
                if note is not None:
                    notes.append(note)
                    break
        return notes, broken

    def _load_note(self, files: Files, kind: NoteKind, number: int, entry: Entry) -> Note | None:
        """The note; None where it has to be signed and is not. Raises NotTrusted where its signature is wrong.

        A pin counts without one: whoever wrote it can only make us keep more.
        """
        unsigned = bool(self.keys.trusted) and files.signature(entry.key) is None
        if unsigned and kind != "pinned":
            return None
        data = self.content(entry)
        if not unsigned and (why := self.why_untrusted(files, entry.key, data)) is not None:
            raise NotTrusted(f"note {entry.key} is not trusted: {why}")
        note = load_note(data, entry.key)
        if (note.kind, note.number) != (kind, number):
            raise VerificationFailed(f"note {entry.key} says that it is {note.kind}-{note.number}")
        return None if unsigned and not note.ok else note

    def why_untrusted(self, files: Files, key: str, data: bytes) -> str | None:
        """Why nobody is to believe that object, in words. Raises NotFound where it is not there any more."""
        if not self.keys.trusted:
            return None
        return signing.why_untrusted(self.keys.trusted, key, data, self._signature(files, key))

    def _signature(self, files: Files, key: str) -> bytes | None:
        entry = files.signature(key)
        if entry is not None:
            with contextlib.suppress(NotFound):
                return self.content(entry)
        # A list is no snapshot: both may have come, or gone, while it was made.
        there = {entry.key: entry for entry in self.store.list(key)}
        if key not in there:
            raise NotFound(f"object {key} was deleted meanwhile")
        return self.content(there[key + SIGNATURE]) if key + SIGNATURE in there else None

    def content(self, entry: Entry) -> bytes:
        """The whole object, which is to be small. Raises VerificationFailed where it is not."""
        if entry.size_bytes > MANIFEST_LIMIT_BYTES:
            raise VerificationFailed(f"object {entry.key} is larger than {MANIFEST_LIMIT_BYTES} bytes")
        with self.store.open(entry.key) as stream:
            return stream.read()

    def look(self, key: str) -> Entry | None:
        """The object as it is listed now."""
        return next((entry for entry in self.store.list(key) if entry.key == key), None)


def require_trusted(backup: Backup) -> None:
    """Raises NotTrusted where nobody may rely on the backup."""
    if backup.untrusted is not None:
        hint = "`backupd list` shows which are signed; `backupd sign ID` signs what you know to be yours."
        raise NotTrusted(f"backup {name_of(backup)} is not trusted: {backup.untrusted}", hint=hint)


def require_whole(manifest: Manifest, name: Name, archive: Entry | None) -> None:
    """Raises VerificationFailed where the manifest is another's, or its archive is not there whole."""
    source = manifest.source
    if (source.server, source.database, manifest.id) != (name.label.server, name.label.database, name.id):
        whose = f"server {source.server!r}, database {source.database!r}, id {manifest.id}"
        raise VerificationFailed(f"manifest {manifest_key(name)} is another backup's", detail=f"It is of {whose}.")
    if archive is None:
        raise VerificationFailed(f"archive {archive_key(name)} is missing", detail="Its manifest is there.")
    if archive.size_bytes != manifest.archive_bytes:
        message = f"archive {archive.key} has {archive.size_bytes} bytes, its manifest says {manifest.archive_bytes}"
        raise VerificationFailed(message)
