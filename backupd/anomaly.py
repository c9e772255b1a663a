"""This backup against its predecessors: whether so much is missing that somebody should look before older ones go.

A pure function. A backup of a database that somebody emptied by mistake is complete, restores, and pushes the good
ones out of retention one by one. So what falls sharply is published as suspect, with the reason in the manifest, and
retention freezes. The price of a false alarm is a look and one command, but an alarm a week would be ignored: so a fall
counts only against the *smallest* of the predecessors, one a day over more than a month. What is truncated every night,
emptied every week or starts anew every month was small before. A confirmed backup is a predecessor like any good one,
so that the same alarm does not come twice; a suspect one is none, so that the alarm does not go away by itself.

Not statistics over all history: a standard deviation of seven numbers explains nothing to the person who is woken up.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from backupd.manifest import Backup, Manifest, Table, Totals

DAYS = 35
"""How far back predecessors go, one a day, at the time of day of this backup: longer than any month."""

SHORT_HISTORY = 7
"""How many predecessors are taken at least, where so many days have not passed yet."""

TOTAL_SHARE = 2
"""In all: fewer than half of the tables, rows or bytes that the smallest predecessor had."""

TABLE_SHARE = 10
"""Of one table: fewer than a tenth."""

TABLE_HISTORY = 3
"""A table must be in so many of the predecessors that something is known of its ways."""

LEAST_ROWS, LEAST_BYTES = 100, 100 << 10
"""In all: below these a fall means nothing."""

LEAST_TABLE_ROWS, LEAST_TABLE_BYTES = 1000, 1 << 20
"""Of one table: below these neither rows nor bytes count; a queue may be empty at any time."""

_NAMED_AT_MOST = 3


def predecessors(manifest: Manifest, backups: Iterable[Backup]) -> tuple[Backup, ...]:
    """What this backup is compared with, newest first: good ones of the same source and filter, one a day."""
    good = [
        backup
        for backup in backups
        if backup.suspect is None
        and (backup.source, backup.manifest.filter) == (manifest.source, manifest.filter)
        and backup.manifest.started_at < manifest.started_at
    ]
    newest_first = sorted(good, key=lambda backup: (backup.manifest.started_at, backup.id), reverse=True)
    chosen: dict[str, Backup] = {}
    for day in range(DAYS + 1):
        limit = manifest.started_at - timedelta(days=day)
        found = next((each for each in newest_first if each.manifest.started_at <= limit), None)
        if found is None or limit - found.manifest.started_at > timedelta(days=DAYS):
            break
        chosen[found.id] = found
    for backup in newest_first:
        if len(chosen) < SHORT_HISTORY:
            chosen.setdefault(backup.id, backup)
    return tuple(backup for backup in newest_first if backup.id in chosen)


def in_all(totals: Totals, earlier: Sequence[Totals]) -> Iterator[str]:
    """Why these totals are suspect, in words; nothing without any earlier ones."""
    if not earlier:
        return
    kinds = (
        ("tables", totals.tables, min(each.tables for each in earlier), 1),
        ("rows", totals.rows, min(each.rows for each in earlier), LEAST_ROWS),
        ("bytes", totals.raw_bytes, min(each.raw_bytes for each in earlier), LEAST_BYTES),
    )
    for kind, now, before, least in kinds:
        if before >= least and now * TOTAL_SHARE < before:
            yield f"{now} {kind} in all, and at least {before} in {_counted(len(earlier))}"


def of_tables(tables: Sequence[Table], earlier: Iterable[Sequence[Table]]) -> Iterator[str]:
    """Why single tables are suspect, in words. `earlier`, newest first, is read no further than there are any left.

    A table is found again by its name, be it the same or made anew, or by its OID where it was renamed. One that is
    gone was dropped, as old partitions are; that counts in all only.
    """
    fallen = [_Fallen(table) for table in tables]
    now = _Names(tables)
    for known in earlier:
        then = _Names(known)
        followed = []
        for each in fallen:
            before = _before(each.table, now, then)
            if before is None and each.seen:
                followed.append(each)  # it was made since then
            elif before is not None and _fell(each.table, before):
                followed.append(each.against(before))
        fallen = followed
        if not fallen:
            return
    reasons = [each.reason for each in fallen if each.seen >= TABLE_HISTORY]
    yield from reasons[:_NAMED_AT_MOST]
    if len(reasons) > _NAMED_AT_MOST:
        yield f"{len(reasons) - _NAMED_AT_MOST} more tables like these"


class _Names:
    """The tables of one backup by name and by OID."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self.by_name = {(table.schema, table.name): table for table in tables}
        self.by_oid = {table.oid: table for table in tables}


def _before(table: Table, now: _Names, then: _Names) -> Table | None:
    """What the table was in an earlier backup. Where the cluster is another one, OIDs are others', and names decide."""
    namesake = then.by_name.get((table.schema, table.name))
    if namesake is None:
        same = then.by_oid.get(table.oid)
        return None if same is None or (same.schema, same.name) in now.by_name else same
    holder = now.by_oid.get(namesake.oid)
    renamed_away = holder is not None and (holder.schema, holder.name) not in then.by_name
    return None if renamed_away else namesake


@dataclass(frozen=True)
class _Fallen:
    """A table, in how many predecessors it was much larger, and how large in the smallest of them."""

    table: Table
    seen: int = 0
    rows: int = 0
    raw_bytes: int = 0

    def against(self, before: Table) -> "_Fallen":
        """With one predecessor more."""
        if not self.seen:
            return _Fallen(self.table, 1, before.rows, before.raw_bytes)
        smaller = min(self.rows, before.rows), min(self.raw_bytes, before.raw_bytes)
        return _Fallen(self.table, self.seen + 1, *smaller)

    @property
    def reason(self) -> str:
        name = f"table {self.table.schema}.{self.table.name}"
        if self.table.rows * TABLE_SHARE < self.rows:
            return f"{name} has {self.table.rows} rows, and at least {self.rows} in {_counted(self.seen)}"
        return f"{name} has {self.table.raw_bytes} bytes, and at least {self.raw_bytes} in {_counted(self.seen)}"


def _fell(now: Table, before: Table) -> bool:
    rows = before.rows >= LEAST_TABLE_ROWS and now.rows * TABLE_SHARE < before.rows
    return rows or (before.raw_bytes >= LEAST_TABLE_BYTES and now.raw_bytes * TABLE_SHARE < before.raw_bytes)


def _counted(earlier: int) -> str:
    return "the earlier backup" if earlier == 1 else f"each of {earlier} earlier backups"
