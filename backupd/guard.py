"""Is this live database the one that the backup is of? Two identities are compared before one replaces the other. Pure.

The mistake of 03:00 is the wrong window: the right backup over the wrong database. Nothing in a name shows it, so
cluster, name, size and time are held against each other, and what looks wrong must be named by hand.

Not the OID and not the time of creation: a database that was dropped and made again by mistake has others, and is just
what somebody restores over.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from backupd.errors import TargetRefused, UsageError

MUCH_LARGER = 2.0
"""How many times as large as the backup's source a live database may be: indexes bloat, data do not double in days."""

SMALL_BYTES = 64 << 20
"""A difference below this says nothing: an empty database has 8 MB."""

MUCH_NEWER = timedelta(days=7)
"""How much older than the live database's present a backup may be: what was written since would be gone."""


@dataclass(frozen=True)
class Identity:
    """A database at a time: of which cluster, its name, its size on disk (None: unknown), when it was looked at."""

    system_identifier: str
    database: str
    size_bytes: int | None
    at: datetime

    def __str__(self) -> str:
        """All of it in one line."""
        size = "of unknown size" if self.size_bytes is None else f"{self.size_bytes / (1 << 20):.1f} MiB"
        where = f"database {self.database} of cluster {self.system_identifier}"
        return f"{where}, {size}, at {self.at:%Y-%m-%d %H:%M} UTC"


def differences(archived: Identity, live: Identity) -> Iterator[str]:
    """Why the live database may not be the one that the backup is of."""
    if live.system_identifier != archived.system_identifier:
        yield "it is in another cluster"
    if live.database != archived.database:
        yield "it has another name"
    sizes = live.size_bytes, archived.size_bytes
    if sizes[0] is not None and sizes[1] is not None and sizes[0] > max(sizes[1] * MUCH_LARGER, sizes[1] + SMALL_BYTES):
        yield f"it is {sizes[0] / max(sizes[1], 1):.1f} times as large"
    if (age := live.at - archived.at) > MUCH_NEWER:
        yield f"the backup is {age.days} days old"


def require_same(archived: Identity, live: Identity, named: str | None) -> str:
    """What is different, if it was allowed by name. Raises TargetRefused, both identities side by side, if it was not.

    Raises UsageError where another name was given.
    """
    if named is not None and named != live.database:
        hint = f"Give --yes-replace {live.database}, if that is the one."
        raise UsageError(f"--yes-replace names {named}, and --replace {live.database}", hint=hint)
    found = list(differences(archived, live))
    if found and named is None:
        raise TargetRefused(
            f"database {live.database} may not be the one that was backed up: {', and '.join(found)}",
            detail=f"In the archive: {archived}.\nOn the target:  {live}.",
            hint=f"If it is to be replaced all the same, give --yes-replace {live.database}; nothing was touched.",
        )
    return ", and ".join(found)
