"""The live database's name given to a restored one, and back, in one transaction.

ALTER DATABASE RENAME is transactional: it takes its lock first, so that new connections wait, and then waits up to 5 s
for the sessions that are there, which a second session ends meanwhile (postgres.md 14; ending them first and renaming
then loses against clients that reconnect). Killed at any instant, the live name leads to one whole database. It is
never closed with ALLOW_CONNECTIONS false: a crash would leave it so.

What does not follow a rename (settings, grants, comment, limit, owner) is copied in the same transaction, to the
restored database and while the live one is still open: only two renames and the commit lie in the gap. The old database
keeps all of its own, and so is what it was when `undo` brings it back.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

from backupd import facts, locks, log, marks, obstacles, properties, target, threads
from backupd.errors import (
    AccessRefused,
    BackupdError,
    DatabaseError,
    Interrupted,
    Locked,
    TargetRefused,
    UsageError,
)
from backupd.postgres import Access, Session, connect

TRIES = 3
"""How often the renaming is tried, 5 s each, where sessions stay although they were told to end."""

_GOING_SECONDS = 2.0  # a server needs a moment to see that a killed run is gone
_WAIT_HINT = "Wait for its end; `SELECT * FROM pg_stat_activity` shows where it comes from."
_PAUSE_SECONDS = 0.005  # between two looks for sessions to end

_log = log.get_logger()


@dataclass(frozen=True)
class Swapped:
    """How a swap ended: where the old database is now, how long nobody could connect, what could not be copied."""

    database: str
    kept: str
    gap_seconds: float
    refused: tuple[str, ...] = ()


# --- what is there


def beside_name(session: Session, live: str) -> str:
    """A free name for a database beside the live one."""
    return marks.beside(live, _now(session), _names(session))


def _names(session: Session) -> frozenset[str]:
    return frozenset(str(row[0]) for row in session.rows("SELECT datname FROM pg_database"))


def _now(session: Session) -> datetime:
    """The server's clock, in UTC: stamps of one cluster are then in order, whichever machine made them."""
    now: datetime = session.row("SELECT clock_timestamp()")[0]
    return now


@contextlib.contextmanager
def hold(access: Access, maintenance: str, live: str) -> Iterator[None]:
    """Holds the live name for the block, by an advisory lock that dies with us. Raises Locked where somebody has it."""
    with connect(access, maintenance) as session:
        if not locks.acquired(session, locks.of_swap(live), _GOING_SECONDS):
            raise Locked(f"another run of backupd restores or swaps database {live}", hint=_WAIT_HINT)
        yield


# --- what is done


def mark_ready(session: Session, beside: str, backup_id: str, live: str) -> None:
    """Says in the restored database's comment that it has proved equal: from now on `--resume` swaps it in."""
    session.execute("COMMENT ON DATABASE {} IS {}", [beside], [marks.Mark("ready", backup_id, live).text()])


def replace(access: Access, maintenance: str, live: str, beside: str, backup_id: str) -> Swapped:
    """Gives the live name, and all that does not follow it, to the restored database beside. Raises what stopped it."""
    hint = f"`backupd restore --resume {live}` swaps the names without restoring again."
    with _explained(live, f"{hint} To give up, drop database {beside}."), connect(access, maintenance) as session:
        steps = (
            *properties.admission_steps(session, beside),
            *properties.steps(beside, facts.properties(session, live)),
        )
        try:
            return _exchange(access, session, live, _Incoming(beside, backup_id, steps))
        except Interrupted:
            _log.warning("swap.interrupted", database=live, left=beside, action=hint)
            raise


def undo(access: Access, maintenance: str, live: str) -> Swapped:
    """Gives the live name back to the database that had it last; the present one is kept in its turn."""
    with hold(access, maintenance, live), connect(access, maintenance) as session:
        obstacles.require_live(session, live)
        obstacles.require_rights(session, live)
        last = next(iter(obstacles.kept(session, live)), None)
        if last is None or last.mark is None:
            hint = "Databases that a restore replaced are kept as ..._before_...; `psql -l` lists all."
            raise UsageError(f"no database is kept that was {live} before", hint=hint)
        steps = (properties.comment_step(last.name, last.mark.comment),)
        with _explained(live, f"Run `backupd undo {live}` again when that is cured."):
            return _exchange(access, session, live, _Incoming(last.name, "undo", steps))


def forget(access: Access, maintenance: str, live: str) -> list[str]:
    """Drops the databases that had the live name before, and returns their names; sessions in them are not ended."""
    dropped = []
    with hold(access, maintenance, live), connect(access, maintenance) as session:
        found = obstacles.kept(session, live)
        for ours in found:
            _require_no_subscriptions_kept(session, ours.name, live)
        for ours in found:
            try:
                session.execute("DROP DATABASE {}", [ours.name])
            except BackupdError as exc:
                exc.hint = f"{exc.hint or ''} End the sessions in it, and run the command again.".strip()
                raise
            dropped.append(ours.name)
    return dropped


def _require_no_subscriptions_kept(session: Session, name: str, live: str) -> None:
    """Whether the slot of a database that was live is still needed is not ours to know, so neither is it to drop."""
    found = target.subscriptions(session, name)
    if found:
        raise TargetRefused(
            f"database {name} has subscriptions: {', '.join(found)}",
            detail="PostgreSQL drops no database that has any. Nothing was dropped.",
            hint="Connect to it and DROP SUBSCRIPTION each, which drops its slot on the publisher too: first ALTER"
            f" SUBSCRIPTION ... DISABLE and SET (slot_name = NONE) where database {live} goes on with its slot.",
        )


@dataclass(frozen=True)
class Resumed:
    """What a killed restore had left: swapped in if it was ready, and what was dropped because it was not.

    `left` is what was to be dropped, and could not.
    """

    swapped: Swapped | None
    dropped: tuple[str, ...]
    left: tuple[str, ...] = ()


def resume(access: Access, maintenance: str, live: str) -> Resumed:
    """Brings a killed restore to its end, from names and comments: swaps what is ready, drops what is not."""
    with hold(access, maintenance, live):
        with connect(access, maintenance) as session:
            obstacles.require_live(session, live)
            found = obstacles.remains(session, live)
        ready = [ours for ours in found if ours.mark is not None and ours.mark.state == "ready"]
        others = [ours for ours in found if ours not in ready]
        dropped = tuple(ours.name for ours in others if _drop_remains(access, maintenance, ours))
        left = tuple(ours.name for ours in others if ours.name not in dropped)
        if not ready:
            return Resumed(None, dropped, left)
        newest = ready[0]
        origin = newest.mark.origin if newest.mark else ""
        return Resumed(replace(access, maintenance, live, newest.name, origin), dropped, left)


def _drop_remains(access: Access, maintenance: str, ours: obstacles.Ours) -> bool:
    """Drops what was not ready; what has no mark only if it is empty, as a killed CREATE DATABASE leaves it.

    Returns whether it is gone.
    """
    with connect(access, maintenance) as session:
        _require_not_filling(session, ours.name)
    if ours.mark is None:
        with connect(access, ours.name) as session:
            target.require_empty(session)
    return target.drop(access, maintenance, ours.name)


def _require_not_filling(session: Session, name: str) -> None:
    """Raises Locked while a restore fills that database: `hold` keeps none apart that have other maintenance databases.

    Its sessions go by the name that a run of backupd gives to all of its own, and to pg_restore's.
    """
    query: LiteralString = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND starts_with(application_name, 'backupd ')"
    )
    deadline = time.monotonic() + _GOING_SECONDS
    while session.row(query, [name])[0]:
        if time.monotonic() > deadline:
            raise Locked(f"another run of backupd is in database {name}", hint=_WAIT_HINT)
        time.sleep(0.1)


# --- the swap itself


@dataclass(frozen=True)
class _Incoming:
    """The database that takes the live name, why (a backup's id, or `undo`), and what it is given before."""

    name: str
    origin: str
    steps: tuple[properties.Step, ...]


def _exchange(access: Access, session: Session, live: str, incoming: _Incoming) -> Swapped:
    for require in obstacles.OBSTACLES:
        require(session, live)
    with connect(access, access.database) as ending:
        for number in range(1, TRIES):
            try:
                return _try_exchange(session, ending, live, incoming)
            except TargetRefused:  # sessions stayed for 5 s
                session.execute("ROLLBACK")
                sessions = obstacles.count_sessions(session, live)
                _log.warning("swap.retried", database=live, sessions=sessions, attempt=number)
        return _try_exchange(session, ending, live, incoming)


def _try_exchange(session: Session, ending: Session, live: str, incoming: _Incoming) -> Swapped:
    name, stamp = marks.before(live, _now(session), _names(session))
    _end_sessions(ending, obstacles.oid(session, incoming.name))  # whoever looks into it; it is nobody's live database
    session.execute("BEGIN")
    session.execute("SET LOCAL lock_timeout = '10s'")  # else new connections would wait behind us for ever
    refused = properties.try_each(session, incoming.steps)
    comment = session.row("SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", [live])[0]
    mark = marks.Mark("kept", incoming.origin, live, stamp, comment)
    session.execute("COMMENT ON DATABASE {} IS {}", [live], [mark.text()])
    began = time.monotonic()
    with _sessions_ended(ending, obstacles.oid(session, live)):
        session.execute("ALTER DATABASE {} RENAME TO {}", [live, name])
        session.execute("ALTER DATABASE {} RENAME TO {}", [incoming.name, live])
        session.execute("COMMIT")
    return Swapped(live, name, round(time.monotonic() - began, 3), tuple(refused))


def _end_sessions(session: Session, oid: int) -> None:
    session.rows("SELECT pg_terminate_backend(a.pid)" + obstacles.SESSIONS + " AND (" + obstacles.ENDABLE + ")", [oid])


@contextlib.contextmanager
def _sessions_ended(session: Session, oid: int) -> Iterator[None]:
    """Ends every session in that database, again and again, while the block runs.

    By OID: once the names are swapped, the live one leads to sessions that have come to stay.
    """
    done = threading.Event()

    def end() -> None:
        with contextlib.suppress(BackupdError):  # the renaming then says that sessions are there
            while not done.is_set():
                _end_sessions(session, oid)
                time.sleep(_PAUSE_SECONDS)

    with threads.pool(1, "end-sessions") as pool:
        pool.submit(end)
        try:
            yield
        finally:
            done.set()


@contextlib.contextmanager
def _explained(live: str, hint: str) -> Iterator[None]:
    """Gives whatever stops a swap the way on; of a commit whose answer was lost nobody knows what became of it."""
    try:
        yield
    except (AccessRefused, DatabaseError, TargetRefused, UsageError) as exc:
        state = f"Database {live} is as it was."
        if isinstance(exc, DatabaseError):
            state = f"Database {live} is whole: as it was, unless the connection broke at the very commit."
        detail = " ".join(filter(None, (exc.detail, state)))
        raise type(exc)(exc.message, detail=detail, hint=" ".join(filter(None, (exc.hint, hint)))) from exc
