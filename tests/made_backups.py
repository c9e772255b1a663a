"""Backups as values, for the tests of what is pure: each argument is a fact that the test is about."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from backupd.manifest import Backup, Filter, Manifest, Note, NoteKind, Source, Totals

ARCHIVE = b"an archive, as far as a catalog looks into one"


def made_manifest(
    started_at: datetime,
    *,
    number: int = 0,
    database: str = "app",
    server: str = "prod",
    identity: str = "7000000000000000001",
    suspect: str | None = None,
    patterns: Filter | None = None,
    took: timedelta = timedelta(minutes=10),
) -> Manifest:
    """A manifest of `ARCHIVE`; `number` makes ids of one second different."""
    return Manifest(
        format=1,
        id=f"{started_at:%Y%m%dT%H%M%SZ}-{number:08x}",
        backupd_version="0.1.0",
        source=Source(server, database, identity),
        server_version="17.10",
        server_version_num=170010,
        client_version="17.10",
        standby=False,
        started_at=started_at,
        finished_at=started_at + took,
        database_bytes=1000,
        archive_bytes=len(ARCHIVE),
        archive_sha256="a" * 64,
        index_offset=0,
        index_bytes=10,
        index_sha256="b" * 64,
        totals=Totals(tables=1, rows=2, raw_bytes=3, large_objects=0, members=1),
        compression="zstd:1",
        jobs=2,
        filter=patterns,
        suspect=suspect,
    )


def made_note(kind: NoteKind, at: datetime, *, ok: bool = True, number: int = 1, **facts: str) -> Note:
    """A note with its facts."""
    return Note(kind, number, at, ok, facts)


def made_backup(manifest: Manifest, *kinds: NoteKind, notes: Sequence[Note] = ()) -> Backup:
    """A backup with a positive note of each kind, and `notes`."""
    return Backup(manifest, (*(made_note(kind, manifest.finished_at) for kind in kinds), *notes))
