"""Backups with real archives in a store, signed where their catalog has a key."""

from collections.abc import Mapping
from dataclasses import replace

from made_archives import MEMBERS, contract_of, manifest_of

from backupd import archive
from backupd.catalog import Catalog
from backupd.layout import archive_key
from backupd.manifest import Backup, Manifest, format_of
from backupd.selector import name_of


def take(
    catalog: Catalog, empty: Manifest, members: Mapping[str, bytes] = MEMBERS, recipients: tuple[str, ...] = ()
) -> Backup:
    """A backup of these members under the name of a manifest, encrypted to the recipients."""
    with catalog.store.create(archive_key(name_of(Backup(empty)))) as stream:
        writer = archive.Writer(stream, empty.id, empty.started_at, recipients)
        for name, data in members.items():
            writer.add(name, data)
        written = manifest_of(writer.finish(contract_of(members)))
    names = ("archive_bytes", "archive_sha256", "index_offset", "index_bytes", "index_sha256")
    of_archive = {name: getattr(written, name) for name in names}
    return catalog.commit(replace(empty, format=format_of(recipients), recipients=recipients, **of_archive))
