"""What of a backup is restored, and its way out of the archive into a folder that pg_restore takes as it is.

For a part, the index is cut to the members that its tables need, and only those are read. Nothing else decides which
files there are: pg_restore looks at no path, so what its lists name is checked here.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from backupd import archive, decode, scratch, selection, toc
from backupd.catalog import Catalog
from backupd.errors import VerificationFailed
from backupd.manifest import Backup, Index, Manifest, Member
from backupd.progress import Progress

_USE_LIST = "restore.list"
_EVENT_TRIGGERS = "event-triggers.list"


@dataclass(frozen=True)
class Lists:
    """Files for pg_restore's --use-list: what it restores first (None: the whole dump), and what once that is equal.

    What comes later are the event triggers, None where there are none.
    """

    first: Path | None
    event_triggers: Path | None


@dataclass(frozen=True)
class Part:
    """What of a backup is restored: the index cut to it, what was left out, and the files that say so to pg_restore."""

    index: Index
    left_out: tuple[selection.LeftOut, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)

    def write_files(self, folder: Path) -> Lists:
        """Writes the files beside the members, which are there: two lists of a whole dump that has event triggers.

        A part of a dump has none: they belong to the whole database.
        """
        files = dict(self.files)
        if not files and (apart := _event_triggers_apart(folder)) is not None:
            names = (_USE_LIST, _EVENT_TRIGGERS)
            files |= {name: chosen.use_list.encode() for name, chosen in zip(names, apart, strict=True)}
        for name, data in files.items():
            archive.write_file(folder / name, data)
        return Lists(
            first=folder / _USE_LIST if _USE_LIST in files else None,
            event_triggers=folder / _EVENT_TRIGGERS if _EVENT_TRIGGERS in files else None,
        )

    def read_bytes(self, manifest: Manifest) -> int:
        """How much of the archive is read for it."""
        members = sum(member.size_bytes for member in needed(self.index))
        return manifest.index_bytes + members + len(self.toc)

    @property
    def toc(self) -> bytes:
        """The dump's toc.dat, where it was read to cut the index."""
        return self.files.get(toc.NAME, b"")


def _event_triggers_apart(folder: Path) -> tuple[selection.Selection, selection.Selection] | None:
    with scratch.errors(folder):
        data = (folder / toc.NAME).read_bytes()
    if selection.EVENT_TRIGGER.encode() not in data:  # read_toc takes 0.2 s for 10,000 tables
        return None
    return selection.event_triggers_apart(toc.read_toc(data))


def part_of(catalog: Catalog, backup: Backup, wanted: selection.Wanted | None) -> Part:
    """All of the backup, or what belongs to the wanted tables: then toc.dat is read, and only members that are needed.

    Raises UsageError where a pattern matches nothing.
    """
    stored = catalog.archive(backup)
    index = archive.read_index(stored)
    if wanted is None:
        return Part(index)
    data = archive.read_toc(stored, index)
    chosen = selection.choose(toc.read_toc(data), wanted)
    contract = selection.cut(index.contract, chosen)
    of_tables = {table.member for table in contract.tables}
    kept = tuple(member for member in index.members if member.name in of_tables)
    files = {toc.NAME: data, _USE_LIST: chosen.use_list.encode()}
    return Part(replace(index, members=kept, contract=contract), chosen.left_out, files)


def needed(index: Index) -> Iterator[Member]:
    """The members that pg_restore needs: all but what is for people and for backupd."""
    return (member for member in index.members if member.name not in (archive.README_NAME, archive.INDEX_NAME))


def members(
    catalog: Catalog,
    backup: Backup,
    index: Index,
    folder: Path,
    progress: Progress,
    limit_bytes: int | None = None,
) -> None:
    """The dump's members into a new, empty folder, as pg_restore wants them, every sha256 checked.

    Raises NoRoom, before a byte is read, where the folder or the limit has too little room, and VerificationFailed
    where pg_dump's lists among them would lead pg_restore to other files. When this raises, they are gone and the
    folder with them: half a dump must not be taken for one.
    """
    wanted = list(needed(index))
    needed_bytes = sum(member.size_bytes for member in wanted)
    progress.begin("fetch", backup.id, total_members=len(wanted), total_bytes=needed_bytes)
    try:
        scratch.require_room(folder, needed_bytes, f"backup {backup.id}", limit_bytes)
        archive.fetch(catalog.archive(backup), wanted, folder, progress.advance)
        _check_lists(folder)
    except BaseException:
        for member in wanted:
            (folder / member.name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it was not empty
            folder.rmdir()
        raise


def _check_lists(folder: Path) -> None:
    """Raises VerificationFailed where the dump's lists name files that pg_dump would not: pg_restore opens them all.

    It looks at no path, and an archive may be somebody's who wants a file of this machine in his table.
    """
    with scratch.errors(folder):
        for path in folder.iterdir():
            if path.name == toc.NAME:
                if path.stat().st_size > archive.MEMORY_LIMIT_BYTES:
                    raise VerificationFailed(f"toc.dat of the dump is larger than {archive.MEMORY_LIMIT_BYTES} bytes")
                toc.read_toc(path.read_bytes())
            elif decode.is_object_list(path.name):
                with path.open("rb") as file:
                    toc.check_blobs_toc(file)
