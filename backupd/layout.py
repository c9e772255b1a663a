"""What lies in a store under each name: keys put together, taken apart, and grouped by the backup that they belong to.

Hides how keys are spelt beyond the names that `selector` quotes: the endings of archive, manifest, notes and
signatures. FORMAT.md has the same as text. Nothing is read here; what is not ours is passed over.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import cast, get_args

from backupd import failure
from backupd.manifest import ID_PATTERN, NoteKind
from backupd.selector import Label, Name, unquote
from backupd.store import Entry

SIGNATURE = ".minisig"
"""What a signature's key has after that of what it signs."""

NOTE_LIMIT = 999_999_999
"""The highest number of a note."""

_KEY = re.compile(
    rf"([^/]+)/([^/]+)/({ID_PATTERN.pattern})(\.tar|(?:\.[a-z]+-[1-9][0-9]{{0,8}})?\.json(?:{re.escape(SIGNATURE)})?)"
)
_NOTE_ENDING = re.compile(rf"\.([a-z]+)-([0-9]+)\.json({re.escape(SIGNATURE)})?")
_NOTE_KINDS = frozenset(get_args(NoteKind))


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
class Files:
    """What lies in the store under one name; `entries` are by the rest of the key, as `.tar` or `.pinned-1.json`."""

    name: Name
    entries: Mapping[str, Entry]

    @property
    def archive(self) -> Entry | None:
        """The archive."""
        return self.entries.get(".tar")

    @property
    def manifest(self) -> Entry | None:
        """The manifest, whose existence makes the backup exist."""
        return self.entries.get(".json")

    @property
    def remains(self) -> list[Entry]:
        """All but the manifest and the record of a failure, the archive last."""
        apart = (".tar", ".json", failure.ENDING)
        others = [entry for ending, entry in self.entries.items() if ending not in apart]
        return [*others, self.archive] if self.archive else others

    @property
    def record(self) -> Entry | None:
        """What a run that failed left, under a name that is no backup's."""
        return self.entries.get(failure.ENDING)

    @property
    def notes(self) -> dict[NoteKind, list[tuple[int, Entry]]]:
        """Of each kind the notes, the one that counts first; a kind of some later backupd is passed over."""
        found: dict[NoteKind, list[tuple[int, Entry]]] = defaultdict(list)
        for ending, entry in self.entries.items():
            match = _NOTE_ENDING.fullmatch(ending)
            if match and match[1] in _NOTE_KINDS and not match[3]:
                found[cast(NoteKind, match[1])].append((int(match[2]), entry))
        return {kind: sorted(notes, reverse=True) for kind, notes in found.items()}

    def last_number(self, kind: NoteKind) -> int:
        """The highest number that a note of that kind has, or the signature of one that never came; 0 for none."""
        matches = map(_NOTE_ENDING.fullmatch, self.entries)
        return max((int(match[2]) for match in matches if match and match[1] == kind), default=0)

    def signature(self, key: str) -> Entry | None:
        """The signature of the object with that key."""
        return self.entries.get(key.removeprefix(f"{self.name.label}/{self.name.id}") + SIGNATURE)


def group(entries: Iterable[Entry]) -> Iterator[Files]:
    """What lies under each name, from entries in the order of their keys."""
    ours = ((match, entry) for entry in entries if (match := _KEY.fullmatch(entry.key)))
    for (server, database, backup_id), found in groupby(ours, lambda pair: pair[0].group(1, 2, 3)):
        server_name, database_name = unquote(server), unquote(database)
        if server_name is not None and database_name is not None:
            name = Name(Label(server_name, database_name), backup_id)
            yield Files(name, {match[4]: entry for match, entry in found})
