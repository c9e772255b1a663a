"""Advisory locks: one backup of a database, one drill on a server, one swap of a live name at a time.

They belong to a session and die with it, so that a killed run leaves none behind; a row in a table or a file would.
They are of the database that the session is connected to, and each kind has its own numbers.
"""

import contextlib
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from backupd.errors import DatabaseError, Locked
from backupd.postgres import Access, Session, connect

Keys = tuple[int, int]

SOURCE: Keys = (0x6261636B, 1)
"""A backup, in the database that is backed up: "back" and 1."""

DRILL: Keys = (0x6261636B, 2)
"""A drill, in the maintenance database of its server: "back" and 2."""

_LONGEST_PAUSE_SECONDS = 1.0


def of_swap(live: str) -> Keys:
    """A restore that takes a live name, in the maintenance database: "swap" and a number made of the name."""
    return 0x73776170, zlib.crc32(live.encode()) - (1 << 31)


def acquired(session: Session, keys: Keys, wait_seconds: float = 0.0) -> bool:
    """Whether the lock is the session's now, after waiting that long for it."""
    deadline, pause = time.monotonic() + wait_seconds, 0.05
    while not session.row("SELECT pg_try_advisory_lock(%s, %s)", keys)[0]:
        if time.monotonic() >= deadline:
            return False
        time.sleep(min(pause, max(0.05, deadline - time.monotonic())))
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    return True


@dataclass(frozen=True)
class Lock:
    """The advisory lock on a source, held by a session that does nothing else but look."""

    session: Session

    def check(self) -> None:
        """Raises Locked where the lock is not ours any more (the session, and with it the lock, was lost)."""
        query = (
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
            " AND classid = %s AND objid = %s AND granted"
        )
        try:
            held = self.session.row(query, SOURCE)[0]
        except DatabaseError as exc:
            message = "the lock on the source was lost during the run"
            raise DatabaseError(message, detail=exc.message, hint="Run the backup again.") from exc
        if not held:
            raise Locked("the lock on the source was lost during the run", hint="Run the backup again.")


@contextlib.contextmanager
def hold_source(access: Access, database: str, wait_seconds: float = 0.0) -> Iterator[Lock]:
    """Locks the source for the block. Raises Locked, naming the holder, after waiting `wait_seconds` for it."""
    with connect(access, database) as session:
        if not acquired(session, SOURCE, wait_seconds):
            raise _locked(session, database)
        yield Lock(session)


def _locked(session: Session, database: str) -> Locked:
    query = (
        "SELECT a.application_name, coalesce(host(a.client_addr), 'a local socket'), a.backend_start::text, a.pid"
        " FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND l.granted"
        " AND l.classid = %s AND l.objid = %s"
        " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    holders = session.rows(query, SOURCE)
    detail = "The holder is gone again."
    if holders:
        name, address, since, pid = holders[0]
        detail = f"The holder is {name or 'unnamed'} from {address}, connected since {since}, server process {pid}."
    return Locked(
        f"another backup of database {database} is running", detail=detail, hint="Give --wait SECONDS to wait for it."
    )
