"""Which backups a store holds: listing, finding, committing, noting, deleting, sweeping.

Hides the keys, and the order of writes and deletes that makes "what is listed is complete" true: a manifest is
written last and deleted first, and one that is damaged, of the future or not of the place where it lies makes no
backup. Such ones are named beside the others and never stop them.

There is no index of backups in the store: it would be a second truth to keep right, and a lock to keep it. One list
of keys and small reads in parallel show a thousand backups in a second from a directory, in a few from S3.
"""

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import cast, get_args

from backupd import failure, log, threads
from backupd.archive import Archive
from backupd.errors import AccessRefused, AlreadyExists, BackupdError, NotFound, StoreError, VerificationFailed
from backupd.manifest import (
    ID_PATTERN,
    MANIFEST_LIMIT_BYTES,
    Backup,
    Filter,
    Manifest,
    Note,
    NoteKind,
    load_manifest,
    load_note,
    to_json,
)
from backupd.selector import Label, Name, find_label, name_of, narrow, pick, quote, unquote
from backupd.store import Entry, Store

_log = log.get_logger()

_KEY = re.compile(rf"([^/]+)/([^/]+)/({ID_PATTERN.pattern})(\.tar|\.json|\.[a-z]+-[1-9][0-9]{{0,8}}\.json)")
_NOTE_ENDING = re.compile(r"\.([a-z]+)-([0-9]+)\.json")
_NOTE_KINDS = frozenset(get_args(NoteKind))
_NOTE_ATTEMPTS = 10
_READERS = 8  # botocore has ten connections
_UNREADABLE_LIMIT = 3  # objects


@dataclass(frozen=True)
class Broken:
    """An object that should belong to a backup but cannot be used, and why."""

    key: str
    name: Name
    error: BackupdError


@dataclass(frozen=True)
class Listing:
    """What a store holds: backups, newest first; what is broken; and orphans, remains without a manifest.

    `failures` are the newest of the runs that failed, of each database some, newest first (`failure` says what of).
    """

    backups: tuple[Backup, ...]
    broken: tuple[Broken, ...] = ()
    orphans: tuple[Entry, ...] = ()
    failures: tuple[failure.Failure, ...] = ()


@dataclass(frozen=True)
class Freshness:
    """How an expected database fares: when its newest good backup ended, whether that is too long ago, in words."""

    label: Label
    finished_at: datetime | None
    stale: bool
    reason: str


def new_id(now: datetime, random_hex: str) -> str:
    """The id of a backup that starts now, as `20261123T221614Z-3f9ac21b`; `random_hex` are eight hex digits."""
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{random_hex}"


def archive_key(name: Name) -> str:
    """The key of an archive."""
    return f"{name.label}/{name.id}.tar"


def manifest_key(name: Name) -> str:
    """The key of a manifest, whose existence makes the backup exist."""
    return f"{name.label}/{name.id}.json"


def note_key(name: Name, kind: NoteKind, number: int) -> str:
    """The key of a note."""
    return f"{name.label}/{name.id}.{kind}-{number}.json"


@dataclass(frozen=True)
class _Files:
    """What lies in the store under one name; `entries` are by the rest of the key, as `.tar` or `.pinned-1.json`."""

    name: Name
    entries: Mapping[str, Entry]

    @property
    def archive(self) -> Entry | None:
        return self.entries.get(".tar")

    @property
    def manifest(self) -> Entry | None:
        return self.entries.get(".json")

    @property
    def record(self) -> Entry | None:
        return self.entries.get(failure.ENDING)

    @property
    def remains(self) -> list[Entry]:
        """All but the manifest and the record of a failure, the archive last."""
        others = (".tar", ".json", failure.ENDING)
        notes = [entry for ending, entry in self.entries.items() if ending not in others]
        return [*notes, self.archive] if self.archive else notes

    @property
    def newest_notes(self) -> dict[NoteKind, tuple[int, Entry]]:
        """Of each kind the note that counts; a kind of some later backupd is passed over."""
        newest: dict[NoteKind, tuple[int, Entry]] = {}
        for ending, entry in self.entries.items():
            match = _NOTE_ENDING.fullmatch(ending)
            if match and match[1] in _NOTE_KINDS:
                kind = cast(NoteKind, match[1])
                newest[kind] = max(newest.get(kind, (0, entry)), (int(match[2]), entry))
        return newest


@dataclass(frozen=True)
class Catalog:
    """The backups in `store`."""

    store: Store

    def backups(self, server: str | None = None, database: str | None = None) -> Listing:
        """What the store holds, all of it or that of a server or a database.

        Raises StoreError or AccessRefused where the store does not answer. Up to three objects that cannot be read
        are broken; more are the store's failure. A backup that is deleted meanwhile is not in the listing.
        """
        found = [
            files
            for files in self._scan(_prefix(server, database))
            if server in (None, files.name.label.server) and database in (None, files.name.label.database)
        ]
        orphans = tuple(entry for files in found if files.manifest is None for entry in files.remains)
        return replace(self._read(found), orphans=orphans, failures=failure.read(self.store, _records(found)))

    def find(self, text: str) -> Backup:
        """The backup that `text` names (`selector` has the grammar), reading no more manifests than that needs.

        Raises UsageError where that is none or several, or what is wrong where nothing that it names can be read.
        """
        found = {files.name: files for files in self._scan("") if files.manifest is not None}
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
        """The backup's archive, to be read."""
        return Archive(self.store, archive_key(name_of(backup)), backup.manifest)

    def labels(self, server: str) -> list[Label]:
        """The databases of a server of which the store holds anything, from keys alone."""
        return list(dict.fromkeys(files.name.label for files in self._scan(_prefix(server, None))))

    def database(self, text: str) -> Listing:
        """What the store holds of one database, as people write it (`app`, `prod/app`). Raises UsageError."""
        label = find_label((files.name.label for files in self._scan("")), text)
        return self.backups(label.server, label.database)

    def commit(self, manifest: Manifest) -> Backup:
        """Writes the manifest: the backup exists. Its archive must be in the store already."""
        backup = Backup(manifest)
        name, data = name_of(backup), to_json(manifest)
        key = manifest_key(name)
        _require(load_manifest(data, key), name, self._look(archive_key(name)))
        self._write(key, data)
        return backup

    def commit_copy(self, backup: Backup, first: "Catalog") -> None:
        """Writes the notes and the manifest as they lie in the first catalog: the backup exists here too.

        Byte by byte, since a later backupd may have written more into them than this one knows. Its archive must be in
        the store already. A note that is here already stays: what is known of this copy counts here.
        """
        name = name_of(backup)
        files = next(first._scan(f"{name.label}/{name.id}."), None)
        if files is None or files.manifest is None:
            raise NotFound(f"backup {name} was deleted meanwhile")
        data = first._bytes(files.manifest)
        if load_manifest(data, files.manifest.key) != backup.manifest:
            raise VerificationFailed(f"manifest {files.manifest.key} changed while the backup was copied")
        _require(backup.manifest, name, self._look(archive_key(name)))
        for entry in files.remains:
            if entry is not files.archive:
                with contextlib.suppress(AlreadyExists):
                    self._write(entry.key, first._bytes(entry))
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
        name = name_of(backup)
        for _ in range(_NOTE_ATTEMPTS):
            files = next(self._scan(f"{name.label}/{name.id}."), None)
            if files is None or files.manifest is None:
                raise NotFound(f"backup {name} was deleted meanwhile")
            number = files.newest_notes[kind][0] + 1 if kind in files.newest_notes else 1
            note = Note(kind, number, now, ok, facts)
            key, data = note_key(name, kind, number), to_json(note)
            load_note(data, key)
            try:
                self._write(key, data)
            except AlreadyExists:
                continue  # another run noted the same just now; the later note counts
            return replace(backup, notes=(*backup.notes, note))
        raise AlreadyExists(f"{_NOTE_ATTEMPTS} other notes {kind} of {name} were written just now")

    def delete(self, backup: Backup) -> None:
        """Removes a backup, its manifest first: what an interrupted delete leaves are orphans, never half a backup."""
        name = name_of(backup)
        self.store.delete(manifest_key(name))
        for files in list(self._scan(f"{name.label}/{name.id}.")):
            self._remove(files)

    def sweep(self, server: str, database: str, idle_since: datetime) -> Sequence[str]:
        """Removes what interrupted runs left of one database: orphans and unfinished writes. Returns their names.

        Only under the source's lock: nothing is live there, so that an orphan is nobody's. Unfinished writes must be
        without news since `idle_since`, since an upload shows no owner.
        """
        prefix = _prefix(server, database)
        swept = list(self.store.sweep(prefix, idle_since))
        for files in list(self._scan(prefix)):
            # Looked at again: a list is no snapshot, and a manifest may have come behind its back.
            if files.remains and files.manifest is None and self._look(manifest_key(files.name)) is None:
                self._remove(files)
                swept += [entry.key for entry in files.remains]
        return swept

    def forget_failures(self, label: Label, now: datetime | None = None) -> None:
        """Removes the records of failed runs of one database: all, or at a time those that are too many or too old."""
        records = _records(self._scan(f"{label}/"))
        for entry in records.values() if now is None else failure.surplus(records, now):
            self.store.delete(entry.key)

    def _remove(self, files: _Files) -> None:
        for entry in files.remains:
            self.store.delete(entry.key)

    def _write(self, key: str, data: bytes) -> None:
        with self.store.create(key, len(data)) as stream:
            stream.write(data)

    def _bytes(self, entry: Entry) -> bytes:
        if entry.size_bytes > MANIFEST_LIMIT_BYTES:
            raise VerificationFailed(f"object {entry.key} is larger than {MANIFEST_LIMIT_BYTES} bytes")
        with self.store.open(entry.key) as stream:
            return stream.read()

    def _look(self, key: str) -> Entry | None:
        return next((entry for entry in self.store.list(key) if entry.key == key), None)

    def _scan(self, prefix: str) -> Iterator[_Files]:
        """What lies under each name, from one list of keys; what is not ours is passed over."""
        ours = ((match, entry) for entry in self.store.list(prefix) if (match := _KEY.fullmatch(entry.key)))
        for (server, database, backup_id), found in groupby(ours, lambda pair: pair[0].group(1, 2, 3)):
            server_name, database_name = unquote(server), unquote(database)
            if server_name is not None and database_name is not None:
                name = Name(Label(server_name, database_name), backup_id)
                yield _Files(name, {match[4]: entry for match, entry in found})

    def _read(self, found: Sequence[_Files]) -> Listing:
        backups: list[Backup] = []
        broken: list[Broken] = []
        exist = [files for files in found if files.manifest is not None]
        with threads.pool(_READERS, "catalog") as readers:
            for loaded in threads.completed([readers.submit(self._load, files) for files in exist]):
                backup, failures = loaded.result()
                backups += [backup] if backup else []
                broken += failures
                if failures:
                    _raise_if_the_store_fails(broken)
        backups.sort(key=lambda backup: (backup.manifest.started_at, backup.id), reverse=True)
        return Listing(tuple(backups), tuple(sorted(broken, key=lambda each: each.key)))

    def _load(self, files: _Files) -> tuple[Backup | None, list[Broken]]:
        """The backup, if it is one, and what of it is broken. Neither where it was deleted since the list."""
        name, key = files.name, manifest_key(files.name)
        try:
            # An archive may have come or gone while the list was made. Looked for before the manifest is read: a delete
            # takes the manifest first, so that one without an archive is gone by then, unless it is broken.
            archive = files.archive or self._look(archive_key(name))
            manifest = load_manifest(self._bytes(files.entries[".json"]), key)
            _require(manifest, name, archive)
        except NotFound:
            return None, []
        except BackupdError as exc:
            return None, [Broken(key, name, exc)]
        notes, broken = self._load_notes(files)
        return Backup(manifest, tuple(notes)), broken

    def _load_notes(self, files: _Files) -> tuple[list[Note], list[Broken]]:
        notes: list[Note] = []
        broken: list[Broken] = []
        for kind, (number, entry) in files.newest_notes.items():
            try:
                note = load_note(self._bytes(entry), entry.key)
                if (note.kind, note.number) != (kind, number):
                    raise VerificationFailed(f"note {entry.key} says that it is {note.kind}-{note.number}")
            except NotFound:
                continue
            except BackupdError as exc:
                broken.append(Broken(entry.key, files.name, exc))
                # What cannot be read counts as its cautious answer: pinned, not verified, not confirmed...
                note = Note(kind, number, entry.modified_at, kind == "pinned", {"error": "its note cannot be read"})
            notes.append(note)
        return notes, broken


def check(
    listing: Listing,
    expected: Sequence[Label] | None,
    max_age: timedelta,
    now: datetime,
    patterns: Filter | None = None,
) -> tuple[Freshness, ...]:
    """Whether each expected database has a good backup that ended within `max_age`; a pure function.

    Expected are the labels that are given, or all that the listing knows, but for those retired since their newest
    backup. `patterns` is the installation's own filter: a backup with another filter, or without, is no substitute.
    """
    found: dict[Label, list[Backup]] = defaultdict(list)
    for backup in listing.backups:
        found[name_of(backup).label].append(backup)
    known = {*found, *(broken.name.label for broken in listing.broken)}
    labels = known if expected is None else {*expected}
    return tuple(
        _freshness(label, [backup for backup in found[label] if backup.manifest.filter == patterns], max_age, now)
        for label in sorted(labels)
        if not is_retired(found[label])
    )


def is_retired(backups: Sequence[Backup]) -> bool:
    """Whether a database was retired, and no backup of it has begun since."""
    notes = [note for backup in backups if (note := backup.note("retired"))]
    newest = max(notes, key=lambda note: note.at, default=None)
    return newest is not None and newest.ok and all(backup.manifest.started_at <= newest.at for backup in backups)


def _freshness(label: Label, backups: Sequence[Backup], max_age: timedelta, now: datetime) -> Freshness:
    good = [backup.manifest for backup in backups if backup.suspect is None]
    if not good:
        reason = "all its backups are suspect" if backups else "it has no backup"
        return Freshness(label, None, True, reason)
    newest = good[0]
    age = now - newest.finished_at
    if newest.started_at > now:
        return Freshness(label, newest.finished_at, True, f"backup {newest.id} lies in the future: a clock is wrong")
    reason = f"the newest good backup {newest.id} ended {age / timedelta(hours=1):.1f} h ago"
    return Freshness(label, newest.finished_at, age > max_age, reason)


def _records(found: Iterable[_Files]) -> dict[Name, Entry]:
    return {files.name: files.record for files in found if files.record is not None}


def _prefix(server: str | None, database: str | None) -> str:
    if server is None:
        return ""
    return f"{quote(server)}/" if database is None else f"{Label(server, database)}/"


def _require(manifest: Manifest, name: Name, archive: Entry | None) -> None:
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


def _raise_if_the_store_fails(broken: Sequence[Broken]) -> None:
    """A bad sector or two are not to hide all other backups; when more cannot be read, it is the store that fails."""
    failures = [each.error for each in broken if isinstance(each.error, StoreError | AccessRefused)]
    if len(failures) > _UNREADABLE_LIMIT:
        raise failures[0]
