"""About how long a restore takes: by a drill of its database, scaled to its size, else by sizes alone. Pure."""

from collections.abc import Sequence

from backupd.manifest import Backup

RAW_BYTES_PER_SECOND = 35e6
"""What a restore gets done where no drill was timed: rows as COPY writes them, indexes and all, on two cores."""

_FIXED_SECONDS = 3.0


def restore_seconds(backup: Backup, drilled: Sequence[Backup]) -> tuple[float, str]:
    """Seconds that the restore takes, and where that comes from: the newest drill of this database, else sizes."""
    raw_bytes = backup.manifest.totals.raw_bytes
    for other in sorted((backup, *drilled), key=lambda each: each.id, reverse=True):
        note = other.note("drilled")
        seconds = note.facts.get("seconds") if note is not None and note.ok else None
        if isinstance(seconds, int | float) and not isinstance(seconds, bool):
            scale = max(raw_bytes, 1) / max(other.manifest.totals.raw_bytes, 1)
            return round(max(_FIXED_SECONDS, seconds * scale), 1), f"the drill of {other.id}"
    seconds = _FIXED_SECONDS + raw_bytes / RAW_BYTES_PER_SECOND
    return round(seconds, 1), "the size of its rows; a drill would know better"
