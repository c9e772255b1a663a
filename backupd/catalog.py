"""Which backups a store holds: listing, finding, committing, noting, deleting, sweeping.

Hides the keys, and the order of writes and deletes that makes "what is listed is complete" true: a manifest is
written last and deleted first, and one that is damaged, of the future or not of the place where it lies makes no
backup. Such ones are named beside the others and never stop them.

There is no index of backups in the store: it would be a second truth to keep right, and a lock to keep it. One list
of keys and small reads show ten thousand backups in two seconds from a directory, a thousand in two from S3.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from backupd import failure, log, signing, threads
from backupd.archive import Archive
from backupd.encryption import NO_IDENTITIES, Identities
from backupd.errors import (
    AccessRefused,
    AlreadyExists,
    NotFound,
    Retained,
    StoreError,
    VerificationFailed,
)
from backupd.layout import NOTE_LIMIT, SIGNATURE, Files, archive_key, group, manifest_key, note_key
from backupd.manifest import (
    MANIFEST_LIMIT_BYTES,
    Backup,
    Manifest,
    Note,
    NoteKind,
    load_manifest,
    load_note,
    to_json,
)
from backupd.reader import Broken, Reader, require_trusted, require_whole
from backupd.selector import Label, Name, find_label, name_of, narrow, pick, quote
from backupd.store import Entry, Store, is_key

_log = log.get_logger()

_NOTE_ATTEMPTS = 10
_READERS = 8  # botocore has ten connections
_UNREADABLE_LIMIT = 3  # objects
_LIFECYCLE = "leave it to a lifecycle rule of the bucket, as `backupd doctor --print-lifecycle` prints one"


@dataclass(frozen=True)
class Listing:
    """What a store holds: backups, newest first; what is broken; and orphans, remains without a manifest.

    `failures` are the newest of the runs that failed, of each database some, newest first (`failure` says what of).
    """

    backups: tuple[Backup, ...]
    broken: tuple[Broken, ...] = ()
    orphans: tuple[Entry, ...] = ()
    failures: tuple[failure.Failure, ...] = ()


def new_id(now: datetime, random_hex: str) -> str:
    """The id of a backup that starts now, as `20261123T221614Z-3f9ac21b`; `random_hex` are eight hex digits."""
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{random_hex}"


@dataclass(frozen=True)
class Catalog:
    """The backups in `store`; what is written is signed, and what is read is believed, by `keys`.

    One that is asked more than once remembers, so that it reads only what is new: objects never change.
    `identities` open the archives that are encrypted.
    """

    store: Store
    keys: signing.Keys = field(default_factory=signing.Keys)
    identities: Identities = NO_IDENTITIES
    remembered: dict[Name, tuple[Files, Backup]] | None = field(default=None, repr=False, compare=False)

    def backups(self, server: str | None = None, database: str | None = None) -> Listing:
        """What the store holds, all of it or that of a server or a database.

        Raises StoreError or AccessRefused where the store does not answer. Up to three objects that cannot be read
        are broken; more are the store's failure. A backup that is deleted meanwhile is not in the listing.
        """

        def is_meant(name: Name) -> bool:
            return server in (None, name.label.server) and database in (None, name.label.database)

        found = [files for files in self._scan(_prefix(server, database)) if is_meant(files.name)]
        self._forget(filter(is_meant, {*(self.remembered or ())} - {files.name for files in found}))
        orphans = tuple(entry for files in found if files.manifest is None for entry in files.remains)
        return replace(self._read(found), orphans=orphans, failures=failure.read(self.store, _records(found)))

    def find(self, text: str) -> Backup:
        """The backup that `text` names (`selector` has the grammar), reading no more manifests than that needs.

        Raises UsageError where that is none or several, or what is wrong where nothing that it names can be read.
        """
        found = {files.name: files for files in self._named(text.rpartition("@")[0]) if files.manifest is not None}
        listing = self._read([found[name] for name in narrow(found, text)])
        if listing.broken and not listing.backups:
            raise listing.broken[0].error
        for broken in listing.broken:
            _log.warning("backup.broken", key=broken.key, message=broken.error.message, action="backupd list")
        return pick(listing.backups, text)

    def look_up(self, name: Name) -> Backup | None:
        """The backup of exactly that name, None where there is none. Raises what is wrong where it cannot be read."""
        listing = self._read([files for files in self._scan(f"{name.label}/{name.id}.") if files.manifest is not None])
        if listing.broken and not listing.backups:
            raise listing.broken[0].error
        return next(iter(listing.backups), None)

    def archive(self, backup: Backup) -> Archive:
        """The backup's archive, to be read. Raises NotTrusted where nobody may rely on it."""
        require_trusted(backup)
        return Archive(self.store, archive_key(name_of(backup)), backup.manifest, self.identities)

    def labels(self, server: str) -> list[Label]:
        """The databases of a server of which the store holds anything, from keys alone."""
        return list(dict.fromkeys(files.name.label for files in self._scan(_prefix(server, None))))

    def database(self, text: str) -> Listing:
        """What the store holds of one database, as people write it (`app`, `prod/app`). Raises UsageError."""
        label = find_label((files.name.label for files in self._named(text)), text)
        return self.backups(label.server, label.database)

    def commit(self, manifest: Manifest) -> Backup:
        """Writes the manifest: the backup exists. Its archive must be in the store already."""
        backup = Backup(manifest)
        name, data = name_of(backup), to_json(manifest)
        key = manifest_key(name)
        require_whole(load_manifest(data, key), name, self._written(archive_key(name)))
        self._write_signed(key, data)
        return backup

    def announce(self, name: Name, rekeyed_from: str, now: datetime) -> None:
        """Writes the note `rekeyed` of a backup that does not exist yet: for a day its remains are not swept.

        Who rekeys does not hold the source's lock, and may have no access to it.
        """
        data = to_json(Note("rekeyed", 1, now, True, {"from": rekeyed_from}))
        self._write_signed(note_key(name, "rekeyed", 1), data)

    def sign(self, backup: Backup) -> Backup:
        """Signs a backup's manifest, which must be the one that was read; a signature that is there is replaced."""
        self.require_signer()
        key = manifest_key(name_of(backup))
        with self.store.open(key) as stream:
            data = stream.read(MANIFEST_LIMIT_BYTES + 1)
        if load_manifest(data, key) != backup.manifest:
            raise VerificationFailed(f"manifest {key} changed while the backup was read")
        if self._exists(key + SIGNATURE):  # these credentials may be some that delete nothing
            self.store.delete(key + SIGNATURE)
        self._write_signature(key, data)
        return replace(backup, untrusted=None)

    def require_signer(self) -> None:
        """Raises AccessRefused where what is written here would not be believed here."""
        if self.keys.trusted and self.keys.secret is None:
            message = f"{signing.PUBLIC_KEYS_SETTING} is set, and {signing.KEY_SETTING} is not"
            hint = "Set it to the secret key of one of them, on the machines that may vouch for backups."
            detail = "What is written without a signature would not be trusted."
            raise AccessRefused(message, detail=detail, hint=hint)

    def commit_copy(self, backup: Backup, first: "Catalog") -> None:
        """Writes the notes and the manifest as they lie in the first catalog: the backup exists here too.

        Byte by byte, since a later backupd may have written more into them than this one knows. Its archive must be in
        the store already. A note that is here already stays: what is known of this copy counts here.
        """
        name = name_of(backup)
        files = next(first._scan(f"{name.label}/{name.id}."), None)
        if files is None or files.manifest is None:
            raise NotFound(f"backup {name} was deleted meanwhile")
        data = first._reader.content(files.manifest)
        if load_manifest(data, files.manifest.key) != backup.manifest:
            raise VerificationFailed(f"manifest {files.manifest.key} changed while the backup was copied")
        require_trusted(replace(backup, untrusted=first._reader.why_untrusted(files, files.manifest.key, data)))
        require_whole(backup.manifest, name, self._written(archive_key(name)))
        for entry in files.remains:
            if entry is not files.archive:
                with contextlib.suppress(AlreadyExists):
                    self._write(entry.key, first._reader.content(entry))
        self._write(files.manifest.key, data)

    def note(
        self,
        backup: Backup,
        kind: NoteKind,
        ok: bool,
        facts: Mapping[str, str | int | float | bool | None],
        now: datetime,
    ) -> Backup:
        """Writes the next note of that kind beside the backup, and returns the backup with it."""
        self.require_signer()
        name = name_of(backup)
        for _ in range(_NOTE_ATTEMPTS):
            files = next(self._scan(f"{name.label}/{name.id}."), None)
            if files is None or files.manifest is None:
                raise NotFound(f"backup {name} was deleted meanwhile")
            number = files.last_number(kind) + 1
            if number > NOTE_LIMIT:
                message = f"no number is left for a note {kind} of {name}"
                raise AlreadyExists(
                    message, hint=f"Remove {note_key(name, kind, NOTE_LIMIT)}: backupd never got there."
                )
            note = Note(kind, number, now, ok, facts)
            key, data = note_key(name, kind, number), to_json(note)
            load_note(data, key)
            try:
                self._write_signed(key, data)
            except AlreadyExists:
                continue  # another run noted the same just now; the later note counts
            return replace(backup, notes=(*backup.notes, note))
        raise AlreadyExists(f"{_NOTE_ATTEMPTS} other notes {kind} of {name} were written just now")

    def delete(self, backup: Backup) -> None:
        """Removes a backup, its manifest first: what an interrupted delete leaves are orphans, never half a backup.

        Raises Retained where the store keeps the manifest; then the backup is as it was.
        """
        name = name_of(backup)
        self.store.delete(manifest_key(name))
        for files in list(self._scan(f"{name.label}/{name.id}.")):
            self._remove(files.remains)

    def sweep(self, server: str, database: str, idle_since: datetime) -> Sequence[str]:
        """Removes what interrupted runs left of one database: orphans and unfinished writes. Returns their names.

        Only under the source's lock: nothing is live there, so that an orphan is nobody's. Unfinished writes, and what
        was announced, must be without news since `idle_since`, since an upload shows no owner. What these credentials
        may not remove stays, and is said: remains are no reason to take no backup.
        """
        prefix, swept = _prefix(server, database), list[str]()
        try:
            swept += self.store.sweep(prefix, idle_since)
        except AccessRefused as exc:
            _log.warning("orphan.retained", message=exc.message, detail=exc.detail, action=_LIFECYCLE)
        for files in list(self._scan(prefix)):
            if any(entry.modified_at >= idle_since for _, entry in files.notes.get("rekeyed", ())):
                continue  # somebody may be about to publish it
            if files.remains and files.manifest is None and not self._exists(manifest_key(files.name)):
                swept += self._remove(files.remains)
        return swept

    def forget_failures(self, label: Label) -> None:
        """Removes every record of failed runs of one database."""
        for entry in _records(self._scan(f"{label}/")).values():
            self.store.delete(entry.key)

    def forget_old_failures(self, server: str, now: datetime) -> None:
        """Removes the records of a server's failed runs that are too many or too old (`failure` has the limits)."""
        for entry in failure.surplus(_records(self._scan(_prefix(server, None))), now):
            self.store.delete(entry.key)

    def _remove(self, entries: Iterable[Entry]) -> Sequence[str]:
        """Removes what is not a manifest; what the store keeps is said, and left to a later sweep."""
        removed: list[str] = []
        for entry in entries:
            try:
                self.store.delete(entry.key)
            except Retained as exc:
                until = exc.until and exc.until.isoformat()
                _log.warning("orphan.retained", key=entry.key, until=until, message=exc.message, action=_LIFECYCLE)
            else:
                removed.append(entry.key)
        return removed

    def _exists(self, key: str) -> bool:
        """Asked for by its key: a list is no snapshot, and some services tell late of what was just written."""
        try:
            with self.store.open(key, 0, 0):
                return True
        except NotFound:
            return False

    def _write_signed(self, key: str, data: bytes) -> None:
        """Writes an object after its signature, which makes nothing exist by itself."""
        self.require_signer()
        self._write_signature(key, data)
        self._write(key, data)

    def _write_signature(self, key: str, data: bytes) -> None:
        if self.keys.secret is not None:
            self._write(key + SIGNATURE, signing.sign(self.keys.secret, key, data))

    def _write(self, key: str, data: bytes) -> None:
        with self.store.create(key, len(data)) as stream:
            stream.write(data)

    def _written(self, key: str) -> Entry | None:
        """What was just written, as it is listed. Raises StoreError where it is there and not listed."""
        entry = self._reader.look(key)
        if entry is None and self._exists(key):
            hint = "Use a service whose lists show at once what was written: backups are found by them."
            raise StoreError(f"{self.store.url} holds {key}, and does not list it", hint=hint)
        return entry

    @property
    def _reader(self) -> Reader:
        return Reader(self.store, self.keys)

    def _scan(self, prefix: str) -> Iterator[Files]:
        """What lies under each name, from one list of keys."""
        return group(self.store.list(prefix))

    def _named(self, label: str) -> list[Files]:
        """What lies under the label that is written as in keys; where it is not, all: it may be anybody's."""
        there = list(self._scan(f"{label}/")) if label.count("/") == 1 and is_key(label) else []
        return there if any(files.manifest for files in there) else list(self._scan(""))

    def remembering(self) -> "Catalog":
        """The same backups, as one process sees them that asks for them again and again."""
        return replace(self, remembered={})

    def _forget(self, names: Iterable[Name]) -> None:
        remembered = self.remembered or {}
        for name in names:
            remembered.pop(name, None)

    def _read(self, found: Sequence[Files]) -> Listing:
        before = self.remembered or {}
        known = {files.name: before[files.name] for files in found if before.get(files.name, (None,))[0] == files}
        backups = [backup for _, backup in known.values()]
        broken: list[Broken] = []
        exist = [files for files in found if files.manifest is not None and files.name not in known]
        for backup, failures in threads.each(self._reader.load, exist, _READERS, "catalog"):
            backups += [backup] if backup else []
            broken += failures
            if failures:
                _raise_if_the_store_fails(broken)
        backups.sort(key=lambda backup: (backup.manifest.started_at, backup.id), reverse=True)
        if self.remembered is not None:
            # What could not be read may be readable the next time.
            doubted, by_name = {each.name for each in broken}, {name_of(backup): backup for backup in backups}
            whole = [files for files in found if files.name in by_name and files.name not in doubted]
            self._forget(files.name for files in found)
            self.remembered.update((files.name, (files, by_name[files.name])) for files in whole)
        return Listing(tuple(backups), tuple(sorted(broken, key=lambda each: each.key)))


def _records(found: Iterable[Files]) -> dict[Name, Entry]:
    return {files.name: files.record for files in found if files.record is not None}


def _prefix(server: str | None, database: str | None) -> str:
    if server is None:
        return ""
    return f"{quote(server)}/" if database is None else f"{Label(server, database)}/"


def _raise_if_the_store_fails(broken: Sequence[Broken]) -> None:
    """A bad sector or two are not to hide all other backups; when more cannot be read, it is the store that fails."""
    failures = [each.error for each in broken if isinstance(each.error, StoreError | AccessRefused)]
    if len(failures) > _UNREADABLE_LIMIT:
        raise failures[0]
