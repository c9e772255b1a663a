"""What earlier backups say of a new one: how it looks beside them, and whether the clock is right.

Reads what `anomaly` compares. The list is read before the dump, when there is no archive yet that a service would hash
again for it; the tables of predecessors at its end, one backup after the other, and only as many as it takes. What
cannot be read of them is said and stops no backup: the new one is proven without them.
"""

from collections.abc import Iterator, Sequence

from backupd import anomaly, archive, log
from backupd.catalog import Catalog, Listing
from backupd.errors import BackupdError
from backupd.manifest import Backup, Contract, Manifest, Table

_log = log.get_logger()


def read(catalog: Catalog, server: str, database: str) -> Listing | None:
    """What the store has of the database; None where it does not say."""
    try:
        listing = catalog.backups(server, database)
    except BackupdError as exc:
        _log.warning("anomaly.unknown", message=exc.message, action="this backup is compared with no earlier one")
        return None
    for broken in listing.broken:
        _log.warning("anomaly.unknown", key=broken.key, message=broken.error.message, action="backupd list")
    return listing


def suspicion(catalog: Catalog, backups: Sequence[Backup], manifest: Manifest, promised: Contract) -> str | None:
    """Why this backup looks wrong beside its predecessors among those; None where it does not."""
    earlier = anomaly.predecessors(manifest, backups)
    reasons = [*anomaly.in_all(manifest.totals, [each.manifest.totals for each in earlier])]
    if manifest.recipients:
        _log.info("anomaly.totals_only", why="the backup is encrypted, and its manifest may name no table")
    else:
        reasons += anomaly.of_tables(promised.tables, _tables(catalog, earlier))
    return "; ".join(reasons) or None


def warn_of_clock(manifest: Manifest, backups: Sequence[Backup]) -> None:
    """Says that this backup is not the newest one by its name, and so not `latest`, though it was taken last."""
    newest = next(iter(backups), None)
    if newest is not None and newest.manifest.started_at > manifest.started_at:
        behind = (newest.manifest.started_at - manifest.started_at).total_seconds()
        action = "set this machine's clock; until then `latest` is the other backup, and nothing is pruned"
        _log.warning("clock.behind", newest=newest.id, backup=manifest.id, seconds=round(behind), action=action)


def _tables(catalog: Catalog, backups: Sequence[Backup]) -> Iterator[Sequence[Table]]:
    """The tables of each backup, read when they are asked for; those that are sealed here are passed over."""
    for backup in backups:
        stored = catalog.archive(backup)
        if stored.sealed:
            continue
        try:
            yield archive.read_index(stored).contract.tables
        except BackupdError as exc:
            _log.warning("anomaly.unknown", backup=backup.id, message=exc.message, action="backupd verify it")
