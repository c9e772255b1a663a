"""The live database's name given to a restored one, and back: one transaction, and what stands in its way.

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
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

from backupd import facts, log, marks, properties, target, threads
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

_LOCK_KEY = 0x73776170
"""The first half of the advisory lock of a replacement: "swap"; the other half is made of the live name."""

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


@dataclass(frozen=True)
class Ours:
    """A database that backupd made for the sake of a live one, and its mark; without one it was never commented."""

    name: str
    mark: marks.Mark | None
    size_bytes: int


# --- what is there


def made_for(session: Session, live: str) -> list[Ours]:
    """The databases that replaced the live one's predecessors, or are to replace it; kept ones newest first, then rest.

    Sizes are 0 where the role may not ask. Whoever owns a database may write what he likes into its comment: a mark by
    which it would take the live one's place counts only where its owner could have made it so.
    """
    query: LiteralString = (
        "SELECT d.datname, shobj_description(d.oid, 'pg_database'), CASE WHEN has_database_privilege(d.oid, 'CONNECT')"
        " OR pg_has_role('pg_read_all_stats', 'USAGE') THEN pg_database_size(d.oid) ELSE 0 END,"
        " o.rolsuper OR o.oid = me.oid OR (NOT me.rolsuper AND pg_has_role(o.oid, 'MEMBER'))"
        " OR o.oid IN (SELECT datdba FROM pg_database WHERE datname = %s)"
        " FROM pg_database d JOIN pg_roles o ON o.oid = d.datdba JOIN pg_roles me ON me.rolname = current_user"
    )
    found = []
    for name, comment, size_bytes, trusted in session.rows(query, [live]):
        mark = marks.read(comment)
        unmarked = comment is None and marks.is_beside(name, live)
        if not (unmarked or (mark is not None and mark.live == live and name != live)):
            continue
        if trusted or mark is None or mark.state == "restoring":
            found.append(Ours(name, mark, size_bytes))
        else:
            action = f"if it is right, give it the owner of {live}; else ask its owner why it says so"
            _log.warning("swap.stranger", database=name, comment=mark.text().splitlines()[0], action=action)
    return sorted(found, key=lambda ours: (ours.mark.stamp if ours.mark else "", ours.name), reverse=True)


def kept(session: Session, live: str) -> list[Ours]:
    """The databases that had the live name before, newest first."""
    return [ours for ours in made_for(session, live) if ours.mark is not None and ours.mark.state == "kept"]


def beside_name(session: Session, live: str) -> str:
    """A free name for a database beside the live one."""
    return marks.beside(live, _now(session), _names(session))


def tablespace(session: Session, live: str) -> str | None:
    """The live database's tablespace, where it is not that of every new one."""
    query: LiteralString = (
        "SELECT t.spcname FROM pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace WHERE d.datname = %s"
        " AND d.dattablespace <> (SELECT dattablespace FROM pg_database WHERE datname = 'template0')"
    )
    return next((str(row[0]) for row in session.rows(query, [live])), None)


def _names(session: Session) -> frozenset[str]:
    return frozenset(str(row[0]) for row in session.rows("SELECT datname FROM pg_database"))


def _now(session: Session) -> datetime:
    """The server's clock, in UTC: stamps of one cluster are then in order, whichever machine made them."""
    now: datetime = session.row("SELECT clock_timestamp()")[0]
    return now


@contextlib.contextmanager
def hold(access: Access, maintenance: str, live: str) -> Iterator[None]:
    """Holds the live name for the block, by an advisory lock that dies with us. Raises Locked where somebody has it."""
    keys = (_LOCK_KEY, zlib.crc32(live.encode()) - (1 << 31))
    with connect(access, maintenance) as session:
        deadline = time.monotonic() + _GOING_SECONDS
        while not session.row("SELECT pg_try_advisory_lock(%s, %s)", keys)[0]:
            if time.monotonic() > deadline:
                raise Locked(f"another run of backupd restores or swaps database {live}", hint=_WAIT_HINT)
            time.sleep(0.1)
        yield


# --- what stands in the way: each raises what stops it, with the way out


def require_live(session: Session, live: str) -> None:
    """The name must be a database's that can be replaced, and not the one from which others are made."""
    query: LiteralString = (
        "SELECT datistemplate OR NOT datallowconn, shobj_description(oid, 'pg_database'), quote_ident(datname)"
        " FROM pg_database WHERE datname = %s"
    )
    for unusable, comment, quoted in session.rows(query, [live]):
        if session.row("SELECT current_database()")[0] == live:
            hint = "Set BACKUPD_TARGET__DATABASE to another database to connect to, such as template1."
            raise UsageError(f"database {live} cannot be renamed while backupd itself is connected to it", hint=hint)
        if unusable:
            hint = "Name the database that applications connect to, or restore with --as."
            raise TargetRefused(f"database {live} is a template, or accepts no connections", hint=hint)
        if marks.is_ours(live, comment):
            first = (comment or "It has a name of backupd's, and no comment.").splitlines()[0]
            hint = f"Name the live database. If this one is it, run: COMMENT ON DATABASE {quoted} IS NULL;"
            raise TargetRefused(f"database {live} was made by backupd", detail=f"Its comment is: {first}.", hint=hint)
        return
    names = [name for name in facts.databases(session) if name != session.row("SELECT current_database()")[0]]
    before = [ours.name for ours in kept(session, live)]
    hint = f"There are: {', '.join(names[:20]) or 'none'}. With --as a new one is made."
    if before:
        hint = f"It was kept as {before[0]}: ALTER DATABASE ... RENAME TO it back, or restore with --as."
    raise UsageError(f"there is no database {live} to replace", hint=hint)


def require_rights(session: Session, live: str) -> None:
    """Renaming takes the owner's rights and CREATEDB; a tablespace of its own the right to create there."""
    owner, owned, createdb, superuser, role = session.row(
        "SELECT quote_ident(pg_get_userbyid(d.datdba)), pg_has_role(d.datdba, 'USAGE'), r.rolcreatedb, r.rolsuper,"
        " quote_ident(r.rolname) FROM pg_database d, pg_roles r WHERE d.datname = %s AND r.rolname = current_user",
        [live],
    )
    if not superuser and not owned:
        hint = f"As a superuser run: GRANT {owner} TO {role}; or restore as {owner} (BACKUPD_TARGET__USER)."
        raise AccessRefused(f"role {role} does not own database {live}, and may not rename it", hint=hint)
    if not superuser and not createdb:
        hint = f"As a superuser run: ALTER ROLE {role} CREATEDB; or have an empty database made and give --into."
        raise AccessRefused(f"role {role} may neither create nor rename databases", hint=hint)
    space = tablespace(session, live)
    if space is not None and not session.row("SELECT has_tablespace_privilege(%s, 'CREATE')", [space])[0]:
        hint = f"As a superuser run: GRANT CREATE ON TABLESPACE ... TO {role};"
        raise AccessRefused(f"role {role} may not use tablespace {space}, in which database {live} lies", hint=hint)


def require_no_prepared(session: Session, live: str) -> None:
    """A prepared transaction keeps its database from being renamed, and would stay with the old one."""
    found = session.rows("SELECT gid FROM pg_prepared_xacts WHERE database = %s ORDER BY prepared", [live])
    if found:
        raise TargetRefused(
            f"database {live} has prepared transactions: {_some(found)}",
            hint="Connect to it and COMMIT PREPARED or ROLLBACK PREPARED each of them.",
        )


def require_no_slots(session: Session, live: str) -> None:
    """A logical slot stays with the old database and would hold WAL for it until the disk is full."""
    found = session.rows("SELECT slot_name FROM pg_replication_slots WHERE database = %s ORDER BY 1", [live])
    if found:
        raise TargetRefused(
            f"database {live} has logical replication slots: {_some(found)}",
            detail="They would stay with the old database and hold WAL; their consumers would miss the restored data.",
            hint="Stop their consumers, and pg_drop_replication_slot() each; make new ones after the restore.",
        )


def require_no_subscriptions(session: Session, live: str) -> None:
    """An enabled subscription goes on writing into the old database."""
    found = session.rows(
        "SELECT s.subname FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid"
        " WHERE d.datname = %s AND s.subenabled ORDER BY 1",
        [live],
    )
    if found:
        raise TargetRefused(
            f"database {live} has enabled subscriptions: {_some(found)}",
            detail="They would go on writing into the old database, and not into the restored one.",
            hint="Connect to it and ALTER SUBSCRIPTION ... DISABLE each; enable the restored ones after the swap.",
        )


def require_endable(session: Session, live: str) -> None:
    """Sessions of superusers are ended by superusers only, those of other roles by members of pg_signal_backend."""
    found = session.rows(
        "SELECT r.rolname || ' (process ' || a.pid || ')', r.rolsuper" + _SESSIONS + " AND NOT (" + _ENDABLE + ")",
        [_oid(session, live)],
    )
    if found:
        hint = "As a superuser run: GRANT pg_signal_backend TO the role; or end them yourself."
        if any(superuser for _, superuser in found):
            hint = "Only a superuser may end a superuser's session: have them ended, or restore as one."
        raise TargetRefused(f"database {live} has sessions that this role may not end: {_some(found)}", hint=hint)


OBSTACLES: Sequence[Callable[[Session, str], None]] = (
    require_no_prepared,
    require_no_slots,
    require_no_subscriptions,
    require_endable,
)
"""What is looked at again right before the names are swapped: a restore takes hours."""

_SESSIONS: LiteralString = (
    " FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid"
    " WHERE a.datid::int8 = %s AND a.pid <> pg_backend_pid()"
)
_ENDABLE: LiteralString = (
    "(SELECT rolsuper FROM pg_roles WHERE rolname = current_user) OR (NOT r.rolsuper"
    " AND (pg_has_role(a.usesysid, 'USAGE') OR pg_has_role('pg_signal_backend', 'USAGE')))"
)


def count_sessions(session: Session, live: str) -> int:
    """How many sessions there are that a swap ends."""
    return int(session.row("SELECT count(*)" + _SESSIONS, [_oid(session, live)])[0])


def _oid(session: Session, name: str) -> int:
    return int(session.row("SELECT oid::int8 FROM pg_database WHERE datname = %s", [name])[0])


def _some(rows: Sequence[tuple[object, ...]]) -> str:
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return ", ".join(str(row[0]) for row in rows[:5]) + more


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
        require_live(session, live)
        require_rights(session, live)
        last = next(iter(kept(session, live)), None)
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
        found = kept(session, live)
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
            require_live(session, live)
            found = [ours for ours in made_for(session, live) if ours.mark is None or ours.mark.state != "kept"]
        ready = [ours for ours in found if ours.mark is not None and ours.mark.state == "ready"]
        remains = [ours for ours in found if ours not in ready]
        dropped = tuple(ours.name for ours in remains if _drop_remains(access, maintenance, ours))
        left = tuple(ours.name for ours in remains if ours.name not in dropped)
        if not ready:
            return Resumed(None, dropped, left)
        newest = ready[0]
        origin = newest.mark.origin if newest.mark else ""
        return Resumed(replace(access, maintenance, live, newest.name, origin), dropped, left)


def _drop_remains(access: Access, maintenance: str, ours: Ours) -> bool:
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
    for require in OBSTACLES:
        require(session, live)
    with connect(access, access.database) as ending:
        for number in range(1, TRIES):
            try:
                return _try_exchange(session, ending, live, incoming)
            except TargetRefused:  # sessions stayed for 5 s
                session.execute("ROLLBACK")
                _log.warning("swap.retried", database=live, sessions=count_sessions(session, live), attempt=number)
        return _try_exchange(session, ending, live, incoming)


def _try_exchange(session: Session, ending: Session, live: str, incoming: _Incoming) -> Swapped:
    name, stamp = marks.before(live, _now(session), _names(session))
    _end_sessions(ending, _oid(session, incoming.name))  # whoever looks into it; it is nobody's live database
    session.execute("BEGIN")
    session.execute("SET LOCAL lock_timeout = '10s'")  # else new connections would wait behind us for ever
    refused = properties.try_each(session, incoming.steps)
    comment = session.row("SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", [live])[0]
    mark = marks.Mark("kept", incoming.origin, live, stamp, comment)
    session.execute("COMMENT ON DATABASE {} IS {}", [live], [mark.text()])
    began = time.monotonic()
    with _sessions_ended(ending, _oid(session, live)):
        session.execute("ALTER DATABASE {} RENAME TO {}", [live, name])
        session.execute("ALTER DATABASE {} RENAME TO {}", [incoming.name, live])
        session.execute("COMMIT")
    return Swapped(live, name, round(time.monotonic() - began, 3), tuple(refused))


def _end_sessions(session: Session, oid: int) -> None:
    session.rows("SELECT pg_terminate_backend(a.pid)" + _SESSIONS + " AND (" + _ENDABLE + ")", [oid])


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
