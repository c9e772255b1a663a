"""The database that a restore fills: made beside, closed until it has proved equal, opened or dropped.

SQL and its answers only. A database under restore is never closed with ALLOW_CONNECTIONS false (a crash would leave
it closed to its owner too): CONNECT is revoked from PUBLIC, which template0 gives to every new database, and given
back after the comparison, in one transaction with the rest. Until then its comment says what it is, for whoever finds
it after a crash; an existing database's comment also says what it was, for the restore that is tried again.
"""

import contextlib
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import LiteralString

from backupd import facts, log, marks, properties
from backupd.errors import AccessRefused, BackupdError, DatabaseError, Interrupted, TargetRefused, UsageError
from backupd.manifest import Contract, DatabaseProperties
from backupd.postgres import Access, Session, connect
from backupd.sessions import in_lots, in_parallel

_WAS_OPEN = "; PUBLIC could connect before"

_DROP_PAUSES_SECONDS = (0.0, 0.5, 1.5, 3.0)
"""Before each try of a drop: when one of its processes was killed, a server is back after a recovery."""

_DROP_SUBSCRIBED_BY_HAND = (
    "drop the database by hand, as a superuser; first in it, for each subscription, ALTER SUBSCRIPTION ... DISABLE,"
    " then SET (slot_name = NONE), or the original loses its slot, then DROP SUBSCRIPTION"
)

_log = log.get_logger()


@dataclass(frozen=True)
class Before:
    """What an existing database was before a restore closed it: its comment, and whether PUBLIC could connect."""

    comment: str | None
    public: bool


# --- before anything is written


def require_new(session: Session, name: str) -> None:
    """Raises UsageError, TargetRefused or AccessRefused unless a database of that name can be made."""
    try:
        length_bytes = len(name.encode())
    except UnicodeEncodeError:  # the command line was not UTF-8
        raise UsageError("database name is not UTF-8 text") from None
    if not 1 <= length_bytes <= marks.NAME_LIMIT_BYTES:
        raise UsageError(f"database name must have 1 to {marks.NAME_LIMIT_BYTES} bytes, not {length_bytes}")
    query: LiteralString = (
        "SELECT quote_ident(d.datname), coalesce(shobj_description(d.oid, 'pg_database'), ''),"
        " (SELECT count(*) FROM pg_stat_activity a WHERE a.datid = d.oid) FROM pg_database d WHERE datname = %s"
    )
    for quoted, comment, sessions in session.rows(query, [name]):
        raise _exists(name, quoted, comment, sessions)
    if not session.row("SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user")[0]:
        raise AccessRefused(
            f"role may not create database {name}",
            hint="ALTER ROLE ... CREATEDB, or have an empty database made and give --into.",
        )


def _exists(name: str, quoted: str, comment: str, sessions: int) -> TargetRefused:
    mark = marks.read(comment)
    if mark is None or mark.state != "restoring":
        return TargetRefused(
            f"database {name} exists already",
            detail="A restore never writes into a database that holds anything.",
            hint="Give --as another name, or --into where the database is empty.",
        )
    return TargetRefused(
        f"database {name} is the remains of an interrupted restore, or one is still filling it",
        detail=f"Its comment is: {comment.splitlines()[0]}. Sessions in it now: {sessions}.",
        hint=f"If no restore is running, DROP DATABASE {quoted}; and restore again. Or give --as another name.",
    )


def require_empty(session: Session) -> None:
    """Raises unless the session's database holds only extensions' own objects, and is the role's own to close."""
    if not session.row("SELECT pg_has_role(datdba, 'USAGE') FROM pg_database WHERE datname = current_database()")[0]:
        raise AccessRefused(
            f"role does not own the target: {session.place}",
            detail="Only its owner can keep others out until what was restored has proved equal.",
            hint="ALTER DATABASE ... OWNER TO the role, or restore with --as into a new database.",
        )
    found = [str(row[0]) for row in session.rows(_STRANGERS)]
    if found:
        raise TargetRefused(
            f"target is not empty: {session.place}",
            detail=f"It holds, among others: {', '.join(found)}.",
            hint="Restore with --as into a new database; nothing was touched.",
        )


# 16384 is the first OID that initdb does not use, but large objects have whatever OID somebody gave them. A `public` of
# one's own is what is left where somebody emptied a database by dropping the schema.
_STRANGERS: LiteralString = (
    "SELECT pg_describe_object(o.class, o.oid, 0) FROM ("
    " SELECT 'pg_class'::regclass AS class, oid, relnamespace AS namespace FROM pg_class"
    " UNION ALL SELECT 'pg_proc'::regclass, oid, pronamespace FROM pg_proc"
    " UNION ALL SELECT 'pg_type'::regclass, oid, typnamespace FROM pg_type"
    " UNION ALL SELECT 'pg_operator'::regclass, oid, oprnamespace FROM pg_operator"
    " UNION ALL SELECT 'pg_collation'::regclass, oid, collnamespace FROM pg_collation"
    " UNION ALL SELECT 'pg_ts_config'::regclass, oid, cfgnamespace FROM pg_ts_config"
    " UNION ALL SELECT 'pg_ts_dict'::regclass, oid, dictnamespace FROM pg_ts_dict"
    " UNION ALL SELECT 'pg_namespace'::regclass, oid, oid FROM pg_namespace WHERE nspname <> 'public'"
    " UNION ALL SELECT 'pg_cast'::regclass, oid, 0 FROM pg_cast"
    " UNION ALL SELECT 'pg_event_trigger'::regclass, oid, 0 FROM pg_event_trigger"
    " UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, oid, 0 FROM pg_foreign_data_wrapper"
    " UNION ALL SELECT 'pg_publication'::regclass, oid, 0 FROM pg_publication"
    " UNION ALL SELECT 'pg_subscription'::regclass, s.oid, 0 FROM pg_subscription s"
    " JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()"
    " UNION ALL SELECT 'pg_largeobject'::regclass, oid, 0 FROM pg_largeobject_metadata"
    ") o WHERE (o.oid >= 16384 OR o.class = 'pg_largeobject'::regclass)"
    " AND NOT EXISTS (SELECT FROM pg_namespace n WHERE n.oid = o.namespace AND n.nspname LIKE 'pg\\_%')"
    " AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = o.class AND d.objid = o.oid"
    " AND d.deptype IN ('e', 'i')) ORDER BY 1 LIMIT 3"
)


def require_roles(session: Session, names: Collection[str]) -> None:
    """Raises TargetRefused where roles are missing that the dump needs: pg_restore would stop at the first."""
    missing = facts.missing_roles(session, names)
    if missing:
        raise TargetRefused(
            f"roles are missing on the target: {', '.join(missing)}",
            detail="Objects in the backup belong to them, or are granted to them.",
            hint="Give --create-roles to make them (without LOGIN), or --no-owner or --role to do without owners and"
            " grants, or CREATE ROLE each of them (NOLOGIN will do).",
        )


def require_extensions(session: Session, contract: Contract) -> None:
    """Raises TargetRefused where extensions of the source are not installed on the target's machine."""
    available = {str(row[0]) for row in session.rows("SELECT name FROM pg_available_extensions")}
    missing = sorted({extension.name for extension in contract.extensions} - available)
    if missing:
        raise TargetRefused(
            f"extensions are not available on the target: {', '.join(missing)}",
            detail=f"{session.place} cannot CREATE EXTENSION them.",
            hint="Install their packages on the server's machine and restore again.",
        )


# --- made, closed, opened, dropped


@dataclass(frozen=True)
class Beside:
    """The live database that a new one is to replace, and its tablespace (None: that of template0)."""

    live: str
    tablespace: str | None = None


@contextlib.contextmanager
def new_database(
    access: Access,
    maintenance: str,
    name: str,
    like: DatabaseProperties,
    backup_id: str,
    *,
    keep: bool,
    beside: Beside | None = None,
) -> Iterator[None]:
    """A new database, equal to the source's and closed to others; dropped when the block raises, unless kept."""
    made = False
    try:
        with connect(access, maintenance) as session:
            _create(access, session, name, like, beside.tablespace if beside else None)
            made = True
            mark = marks.Mark("restoring", backup_id, beside.live if beside else None)
            _close(session, name, mark.text())
        yield
    except BaseException:
        if made and not keep:
            drop(access, maintenance, name)
        raise


def _create(access: Access, session: Session, name: str, like: DatabaseProperties, tablespace: str | None) -> None:
    words: list[LiteralString] = ["CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}"]
    literals: list[str] = [like.encoding, like.collate, like.ctype]
    if like.locale_provider == "i" and like.locale is not None:
        words.append("LOCALE_PROVIDER icu ICU_LOCALE {}")
        literals.append(like.locale)
    if like.locale_provider == "i" and like.icu_rules is not None and access.major >= 16:
        words.append("ICU_RULES {}")
        literals.append(like.icu_rules)
    if like.locale_provider == "b" and like.locale is not None:
        words.append("LOCALE_PROVIDER builtin BUILTIN_LOCALE {}")
        literals.append(like.locale)
    if like.locale_provider == "c" and access.major >= 15:
        words.append("LOCALE_PROVIDER libc")
    if tablespace is not None:
        words[0] = words[0].replace("template0", "template0 TABLESPACE {}")
    try:
        session.execute(" ".join(words), [name, *([tablespace] if tablespace is not None else [])], literals)
    except DatabaseError as exc:
        hint = "The locale and encoding are the source's; the target's operating system must have that locale."
        raise DatabaseError(f"could not create database {name}: {exc.message}", detail=exc.detail, hint=hint) from exc
    except Interrupted:  # the server goes on with what we no longer wait for
        with connect(access, access.database) as other:
            other.rows("SELECT pg_terminate_backend(%s, 10000)", [session.pid])
            other.execute("DROP DATABASE IF EXISTS {}", [name])
        raise


def close(session: Session, name: str, backup_id: str) -> Before:
    """Closes an existing database, the session's own, to PUBLIC, says why in its comment, and returns what it was.

    What an interrupted restore closed before is remembered by the comment which that one left.
    """
    comment, public = session.row(
        "SELECT shobj_description(oid, 'pg_database'), has_database_privilege('public', oid, 'CONNECT')"
        " FROM pg_database WHERE datname = current_database()"
    )
    before = Before(comment, public)
    left = marks.read(comment)
    if comment is not None and left is not None:
        before = Before(left.comment or None, public or comment.partition("\n")[0].endswith(_WAS_OPEN))
    mark = marks.Mark("restoring", backup_id).text() + (_WAS_OPEN if before.public else "")
    _close(session, name, "\n".join(filter(None, (mark, before.comment))))
    return before


def _close(session: Session, name: str, comment: str) -> None:
    session.execute("BEGIN")
    session.execute("COMMENT ON DATABASE {} IS {}", [name], [comment])
    session.execute("REVOKE CONNECT ON DATABASE {} FROM PUBLIC", [name])
    session.execute("COMMIT")


def give(session: Session, name: str, owner: str, major: int) -> None:
    """Makes that role the owner of a closed database, where ours needs it and may, and still lets only ours in.

    A role is given a table only where it may CREATE in its schema, unless by a superuser; in public only the database's
    owner may, who is pg_database_owner (since PostgreSQL 15). Without it an ordinary role could restore no table of the
    owner's there. `properties.admission_steps` undoes the rest.
    """
    query: LiteralString = (
        "SELECT FROM pg_roles o, pg_roles me WHERE o.rolname = %s AND me.rolname = current_user"
        " AND NOT me.rolsuper AND o.oid <> me.oid AND pg_has_role(o.oid, 'USAGE') AND pg_has_role(o.oid, %s)"
    )
    if not session.rows(query, [owner, "SET" if major >= 16 else "MEMBER"]):
        return
    session.execute("BEGIN")
    session.execute("ALTER DATABASE {} OWNER TO {}", [name, owner])
    session.execute("REVOKE CONNECT ON DATABASE {} FROM {}", [name, owner])
    session.execute("GRANT CONNECT ON DATABASE {} TO CURRENT_USER", [name])
    session.execute("COMMIT")


def drop(access: Access, maintenance: str, name: str) -> bool:
    """Drops a database that a restore made, with its sessions and subscriptions, and returns whether it is gone.

    What stays after all is logged.
    """
    failure, subscribed = None, list[str]()
    for pause_seconds in _DROP_PAUSES_SECONDS:
        time.sleep(pause_seconds)
        try:
            with connect(access, maintenance) as session:
                subscribed = subscriptions(session, name)
                _drop_subscriptions(access, name, subscribed)
                session.execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", [name])
        except BackupdError as exc:  # whatever it is, what made us drop it matters more
            failure = exc.message
        else:
            return True
    action = _DROP_SUBSCRIBED_BY_HAND if subscribed else "drop the database by hand"
    _log.error("target.left", database=name, message=failure, action=action)
    return False


def subscriptions(session: Session, name: str) -> list[str]:
    """The names of a database's subscriptions: with any, PostgreSQL does not drop it, FORCE or not (dropdb)."""
    query: LiteralString = (
        "SELECT s.subname FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid WHERE d.datname = %s"
        " ORDER BY 1"
    )
    return [str(row[0]) for row in session.rows(query, [name])]


def _drop_subscriptions(access: Access, database: str, names: Sequence[str]) -> None:
    """Drops a copy's subscriptions without a word to their publishers.

    The slots that they name are the original's, which without slot_name = NONE would lose them (DROP SUBSCRIPTION).
    """
    if not names:
        return
    with connect(access, database) as session:
        for name in names:
            session.execute("ALTER SUBSCRIPTION {} DISABLE", [name])
            session.execute("ALTER SUBSCRIPTION {} SET (slot_name = NONE)", [name])
            session.execute("DROP SUBSCRIPTION {}", [name])


def open_new(session: Session, name: str, like: DatabaseProperties) -> list[str]:
    """Gives the database the source's settings, comment, grants and owner; what was refused is returned, as text."""
    return _try_all(session, [*properties.admission_steps(session, name), *properties.steps(name, like)])


def open_existing(session: Session, name: str, before: Before) -> list[str]:
    """Gives an existing database back the comment and the openness that it had."""
    grant: properties.Step = ("GRANT CONNECT ON DATABASE {} TO PUBLIC", [name], [])
    return _try_all(session, [properties.comment_step(name, before.comment), *([grant] if before.public else [])])


def _try_all(session: Session, steps: Iterable[properties.Step]) -> list[str]:
    """All steps at once, as others see them, but for those that are refused; a lost connection undoes all."""
    session.execute("BEGIN")
    refused = properties.try_each(session, steps)
    session.execute("COMMIT")
    return refused


# --- once it has proved equal


@dataclass(frozen=True)
class Script:
    """Somebody's SQL, and the name of its file."""

    name: str
    text: str


def run_script(access: Access, database: str, script: Script, like: DatabaseProperties) -> None:
    """Runs it as an application would, with the database's settings, though without timeouts. Raises what stopped it.

    Sequences of statements are one transaction unless the script says otherwise. psql's own commands are none of SQL.
    """
    with connect(access, database) as session:
        session.execute("BEGIN")
        properties.try_each(session, properties.setting_steps(database, like))
        session.execute("COMMIT")
    with connect(access, database) as session:
        session.execute("RESET search_path")
        session.execute("RESET row_security")
        session.execute("RESET standard_conforming_strings")
        session.execute("RESET DateStyle")
        session.execute("RESET TimeZone")
        try:
            session.script(script.text)
        except BackupdError as exc:
            hint = f"Correct {script.name} and restore again; it is SQL only, without psql's own commands."
            raise type(exc)(f"{script.name}: {exc.message}", detail=exc.detail, hint=hint) from exc


def analyze(access: Access, database: str, jobs: int) -> list[str]:
    """Gives the planner statistics, which a dump does not hold; what was refused is returned, as text.

    By several sessions, which a plain ANALYZE is not. A partition root's statement does its leaves too. The tables of
    a statement that was refused are tried once more, alone, and then the leaves of a root without it: one foreign
    leaf whose server cannot be reached refuses the root.
    """
    with connect(access, database) as session:
        names: Sequence[tuple[str, str]] = session.rows(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relkind IN ('r', 'p', 'm') AND c.relpersistence <> 't'"
            " AND NOT c.relispartition AND NOT c.relisshared"
            " ORDER BY c.relkind = 'p' DESC, pg_relation_size(c.oid) DESC"
        )
    lots = in_lots(names, jobs)
    said = in_parallel(access, database, jobs, lots, _analyze)
    again = [name for lot, why in zip(lots, said, strict=True) if why for name in lot]
    if not (refused := _analyze_alone(access, database, jobs, again)):
        return []
    with connect(access, database) as session:
        roots = facts.partition_roots(session)
    leaves = [leaf for leaf, root in roots.items() if root in refused]
    refused |= _analyze_alone(access, database, jobs, leaves)
    return [f"ANALYZE {'.'.join(name)}: {why}" for name, why in refused.items()]


def _analyze_alone(
    access: Access, database: str, jobs: int, names: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], str]:
    """Why the server refused those that it did, each by a statement of its own."""
    if not names:
        return {}
    said = in_parallel(access, database, jobs, [[name] for name in names], _analyze)
    return {name: why for name, why in zip(names, said, strict=True) if why}


def _analyze(session: Session, names: list[tuple[str, str]]) -> str:
    """Why the server refused it; empty where it did not."""
    try:
        session.analyze(names)
    except (AccessRefused, DatabaseError) as exc:  # a function in an expression failed: the rows are good all the same
        return exc.message
    return ""
