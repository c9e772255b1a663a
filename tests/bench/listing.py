"""Stores with many backups, for `backupd list`: real manifests, archives of a few bytes."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

from backupd.catalog import Catalog
from backupd.layout import archive_key
from backupd.manifest import Backup, Manifest, Source, Totals
from backupd.selector import name_of
from backupd.store.local import LocalStore

_ARCHIVE = b"an archive, as far as a list looks into one"
_FIRST_AT = datetime(2026, 1, 1, tzinfo=UTC)


def fill(folder: Path, backups: int, databases: int = 4) -> None:
    """Makes backups of that many databases, an hour apart, in that folder, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    catalog = Catalog(LocalStore(folder))
    for number in range(backups):
        manifest = _manifest(number, number % databases)
        with catalog.store.create(archive_key(name_of(Backup(manifest)))) as stream:
            stream.write(_ARCHIVE)
        catalog.commit(manifest)


def _manifest(number: int, database: int) -> Manifest:
    started_at = _FIRST_AT + timedelta(hours=number)
    return Manifest(
        format=1,
        id=f"{started_at:%Y%m%dT%H%M%SZ}-{number:08x}",
        backupd_version="0.1.0",
        source=Source("prod", f"app_{database}", "7000000000000000001"),
        server_version="17.10",
        server_version_num=170010,
        client_version="17.10",
        standby=False,
        started_at=started_at,
        finished_at=started_at + timedelta(minutes=9),
        database_bytes=1 << 30,
        archive_bytes=len(_ARCHIVE),
        archive_sha256="a" * 64,
        index_offset=0,
        index_bytes=10,
        index_sha256="b" * 64,
        totals=Totals(tables=200, rows=1_000_000, raw_bytes=1 << 30, large_objects=0, members=203),
        compression="zstd:1",
        jobs=2,
    )
