"""What stands in the way of giving a live database's name to another one, each with the way out; and what is beside it.

Nothing here changes anything: the preflight asks it hours before a swap, and `swap` again right before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import LiteralString

from backupd import facts, log, marks
from backupd.errors import AccessRefused, TargetRefused, UsageError
from backupd.postgres import Session

SESSIONS: LiteralString = (
    " FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid"
    " WHERE a.datid::int8 = %s AND a.pid <> pg_backend_pid()"
)
"""The sessions of the database with that OID, `a`, and their roles, `r`."""

ENDABLE: LiteralString = (
    "(SELECT rolsuper FROM pg_roles WHERE rolname = current_user) OR (NOT r.rolsuper"
    " AND (pg_has_role(a.usesysid, 'USAGE') OR pg_has_role('pg_signal_backend', 'USAGE')))"
)
"""Whether this role may end one of them."""

_log = log.get_logger()


@dataclass(frozen=True)
class Ours:
    """A database that backupd made for the sake of a live one, and its mark; without one it was never commented."""

    name: str
    mark: marks.Mark | None
    size_bytes: int


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


def remains(session: Session, live: str) -> list[Ours]:
    """What restores that were cut off left beside the live database, ready to take its name or not."""
    return [ours for ours in made_for(session, live) if ours.mark is None or ours.mark.state != "kept"]


def tablespace(session: Session, live: str) -> str | None:
    """The live database's tablespace, where it is not that of every new one."""
    query: LiteralString = (
        "SELECT t.spcname FROM pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace WHERE d.datname = %s"
        " AND d.dattablespace <> (SELECT dattablespace FROM pg_database WHERE datname = 'template0')"
    )
    return next((str(row[0]) for row in session.rows(query, [live])), None)


# --- each raises what stops it


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
        "SELECT r.rolname || ' (process ' || a.pid || ')', r.rolsuper" + SESSIONS + " AND NOT (" + ENDABLE + ")",
        [oid(session, live)],
    )
    if found:
        hint = "As a superuser run: GRANT pg_signal_backend TO the role; or end them yourself."
        if any(superuser for _, superuser in found):
            hint = "Only a superuser may end a superuser's session: have them ended, or restore as one."
        raise TargetRefused(f"database {live} has sessions that this role may not end: {_some(found)}", hint=hint)


def count_sessions(session: Session, live: str) -> int:
    """How many sessions there are that a swap ends."""
    return int(session.row("SELECT count(*)" + SESSIONS, [oid(session, live)])[0])


def oid(session: Session, name: str) -> int:
    """The OID of the database of that name."""
    return int(session.row("SELECT oid::int8 FROM pg_database WHERE datname = %s", [name])[0])


def _some(rows: Sequence[tuple[object, ...]]) -> str:
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return ", ".join(str(row[0]) for row in rows[:5]) + more


OBSTACLES: Sequence[Callable[[Session, str], None]] = (
    require_no_prepared,
    require_no_slots,
    require_no_subscriptions,
    require_endable,
)
"""What is looked at again right before the names are swapped: a restore takes hours."""
