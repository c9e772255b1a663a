"""What a running dump holds up: room in scratch, a snapshot, and with that VACUUM; looked at once a second.

The snapshot of a dump keeps VACUUM from removing what died since, in all of the database. So it is let go as soon as
pg_dump has ended, however long the rest takes to store; it may be given a longest time; and once many transactions have
passed, a warning says what is going on.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from backupd import dump, facts, log, postgres, scratch
from backupd.errors import DatabaseError
from backupd.progress import Progress

_log = log.get_logger()

_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Held:
    """What one dump holds, and how much of each it may: a folder in scratch, and a snapshot until `release`."""

    database: str
    folder: Path
    folder_limit_bytes: int | None
    options: dump.Options
    running: dump.Dump
    release: Callable[[], None]


class Watch:
    """Looks at a dump, at most once a second, whenever it is called; `session` is another one in its database."""

    def __init__(self, held: Held, session: postgres.Session, application: str, progress: Progress) -> None:
        self.dump_is_read = False
        """Whether nobody asks the snapshot anything any more, but pg_dump itself."""
        self._held = held
        self._session = session
        self._application = application
        self._progress = progress
        self._began = time.monotonic()
        self._next = 0.0
        self._warn_from = held.options.vacuum_age

    def __call__(self) -> None:
        """Raises NoRoom where scratch is too full, DatabaseError where the snapshot is held for too long."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _LOOK_SECONDS
        scratch.require_within(self._held.folder, self._held.folder_limit_bytes)
        self._progress.copying(*facts.copying(self._session))
        if not self._held.running.ended:
            self._look_at_snapshot(now - self._began)
        elif self.dump_is_read:
            self._held.release()

    def _look_at_snapshot(self, seconds: float) -> None:
        longest = self._held.options.max_seconds
        if longest is not None and seconds > longest:
            raise DatabaseError(
                f"the dump of database {self._held.database} held its snapshot for more than {longest} s",
                detail="That is the longest that BACKUPD_DUMP__MAX_SECONDS allows; nothing was stored.",
                hint="Raise it, give BACKUPD_DUMP__JOBS more connections, or dump from a standby.",
            )
        age = facts.vacuum_age(self._session, self._application)
        if age >= self._warn_from:
            self._warn_from = 2 * age
            action = "VACUUM removes no newer dead rows until the dump ends; a standby would be dumped without that"
            _log.warning("vacuum.held_back", database=self._held.database, transactions=age, action=action)
