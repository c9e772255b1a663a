"""Everything that can be known before a restore writes anything: each thing asked once, and the plan with its estimate.

A check is a function that returns what it found, or a `Doubt`, or raises what the restore would raise: as in `doctor`,
whose words and hints these are. All are tried, so that one look at 03:00 shows all that is in the way; then the first
failure stops the restore. Nothing here writes.
"""

import ipaddress
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from backupd import facts, fetch, guard, obstacles, roles, scratch, target
from backupd.clients import Client
from backupd.errors import AccessRefused, BackupdError, NoRoom, TargetRefused, VersionMismatch
from backupd.finding import Check, Doubt, Finding, try_all
from backupd.manifest import Backup, Index
from backupd.postgres import Access, Session
from backupd.toc import Toc


@dataclass(frozen=True)
class Subject:
    """What is to be restored, and where to. `session` is in the database to fill, or where databases are made from.

    `database` is the one to make (`create`) or to fill; `live` the one that it is to replace, where it is named
    `yes_replace` whatever it looks like. `client` gives the pg_restore that fits, or raises; `toc` reads the archive's.
    `roles` must be there already, and `role` is the one that everything will belong to.
    """

    access: Access
    session: Session
    backup: Backup
    index: Index
    client: Callable[[], Client]
    toc: Callable[[], Toc]
    database: str
    create: bool
    live: str | None = None
    yes_replace: str | None = None
    roles: tuple[str, ...] = ()
    role: str | None = None
    scratch: Path | None = None
    scratch_limit_bytes: int | None = None


@dataclass(frozen=True)
class Plan:
    """What a restore would do, step by step, what stands for it and in its way, and about how long it takes.

    `basis` says where `seconds` come from.
    """

    backup: str
    database: str
    steps: tuple[str, ...]
    findings: tuple[Finding, ...]
    seconds: float
    basis: str


def examine(subject: Subject) -> tuple[list[Finding], list[BackupdError]]:
    """Every finding, in the order in which things depend on each other, and the failures among them as errors."""
    errors: list[BackupdError] = []
    checks = {name: partial(_recorded, errors, check) for name, check in _checks(subject).items()}
    return list(try_all(checks, subject, needs=dict.fromkeys(_LIVE, "live database"))), errors


def raise_first(errors: Sequence[BackupdError]) -> None:
    """Raises the first of the errors, the others named in its detail."""
    if not errors:
        return
    first, *others = errors
    also = [f"Also: {other.message}." for other in others]
    raise type(first)(first.message, detail=" ".join(filter(None, (first.detail, *also))) or None, hint=first.hint)


def steps(subject: Subject, script: str | None) -> Iterator[str]:
    """What the restore does, in its order."""
    members = list(fetch.needed(subject.index))
    size_bytes = sum(member.size_bytes for member in members)
    yield f"fetch {len(members)} members, {size_bytes} bytes, and check the sha256 of each"
    if subject.create:
        owner = f", beside {subject.live}" if subject.live is not None else ""
        yield f"make database {subject.database}{owner}, closed to others"
    else:
        yield f"close database {subject.database} to others"
    tables = subject.index.contract.tables
    rows = sum(table.rows for table in tables)
    yield f"restore {rows} rows of {len(tables)} tables, and compare them with the backup, table by table"
    if script is not None:
        yield f"run {script} in it"
    if subject.live is None:
        yield f"open database {subject.database}"
    else:
        yield f"end the sessions of {subject.live}, and swap the names in one transaction"
        yield f"keep the old one, for `backupd undo {subject.live}`"


def _recorded(errors: list[BackupdError], check: Check[Subject], subject: Subject) -> str | Doubt:
    try:
        return check(subject)
    except BackupdError as exc:
        errors.append(exc)
        raise


# --- the server


def _connection(on: Subject) -> str:
    """Whether this is a primary; a pooler in between was refused when it was reached."""
    if on.access.standby:
        hint = "Name the primary in BACKUPD_TARGET__HOST."
        raise TargetRefused(f"target is a standby: {on.session.place}", hint=hint)
    return f"PostgreSQL {on.access.version}, a primary, directly and without a pooler at {on.session.place}"


def _client(on: Subject) -> str:
    client = on.client()
    return f"pg_restore {client.version} in {client.folder}, for an archive of pg_dump {_archived_by(on)}"


def _archived_by(on: Subject) -> str:
    return on.backup.manifest.client_version


# What only 18 knows, as its pg_dump writes it in definitions (postgres.md 18): none of it can be skipped.
_ONLY_18: Mapping[str, re.Pattern[str]] = {
    "NOT NULL constraint that is NO INHERIT": re.compile(r"NOT NULL[^,\n]* NO INHERIT"),
    "NOT NULL constraint that is NOT VALID": re.compile(r"NOT NULL[^,\n]* NOT VALID"),
    "WITHOUT OVERLAPS": re.compile(r"\bWITHOUT OVERLAPS\b"),
    "PERIOD in a foreign key": re.compile(r"\bFOREIGN KEY \([^)]*\bPERIOD\b"),
    "NOT ENFORCED": re.compile(r"\bNOT ENFORCED\b"),
    "uuidv7() or uuidv4()": re.compile(r"\buuidv[47]\("),
}
_DEFINING = frozenset({"TABLE", "CONSTRAINT", "FK CONSTRAINT", "CHECK CONSTRAINT", "DEFAULT", "INDEX", "DOMAIN"})


def _definitions(on: Subject) -> str:
    """Upwards everything is known; 18 into 17 only what 17 knows too."""
    source = on.backup.manifest.server_major
    if source <= on.access.major:
        return f"of PostgreSQL {source}, which {on.access.major} knows"
    found = sorted(only_of_18(on.toc())) if source == 18 else []
    if found:
        raise VersionMismatch(
            f"the backup has definitions that PostgreSQL {on.access.major} does not know",
            detail=f"{'; '.join(found[:10])}{f'; and {len(found) - 10} more' if len(found) > 10 else ''}.",
            hint=f"Restore into PostgreSQL {source}.",
        )
    return f"of PostgreSQL {source}, and nothing was found that {on.access.major} does not know"


def only_of_18(contents: Toc) -> Iterator[str]:
    """What only PostgreSQL 18 knows, with the object that has it."""
    for entry in contents.entries:
        if entry.desc in _DEFINING:
            found = [name for name, pattern in _ONLY_18.items() if pattern.search(entry.definition)]
            if _has_virtual_column(entry.definition):
                found.append("virtual generated column")
            yield from (f"{entry.desc} {entry.namespace}.{entry.tag}: {name}" for name in found)


def _has_virtual_column(definition: str) -> bool:
    """Whether a generated column's expression is followed by no STORED; it may have parentheses and line breaks."""
    for start in re.finditer(r"GENERATED ALWAYS AS (?=\()", definition):
        depth = 0
        for token in re.finditer(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|[()]", definition[start.end() :]):
            depth += {"(": 1, ")": -1}.get(token[0], 0)
            if depth == 0:
                if not definition.startswith(" STORED", start.end() + token.end()):
                    return True
                break
    return False


# --- the database


def _name(on: Subject) -> str:
    target.require_new(on.session, on.database)
    return f"{on.database} is free, and may be made"


def _emptiness(on: Subject) -> str:
    target.require_empty(on.session)
    return f"{on.database} is empty, and the role's own"


def _live(on: Subject) -> str | Doubt:
    live = _live_name(on)
    obstacles.require_live(on.session, live)
    left = [ours.name for ours in obstacles.remains(on.session, live)]
    if left:
        text = f"{live} is there, and so are remains of a restore that was cut off: {', '.join(left)}"
        return Doubt(text, f"`backupd restore --resume {live}` swaps in what had proved equal, and drops the rest.")
    return f"{live} is there, and its name can be given to another"


def _identity(on: Subject) -> str | Doubt:
    live, manifest, source = _live_name(on), on.backup.manifest, on.backup.source
    archived = guard.Identity(source.system_identifier, source.database, manifest.database_bytes, manifest.started_at)
    size_bytes, now = on.session.row(
        "SELECT CASE WHEN has_database_privilege(oid, 'CONNECT') OR pg_has_role('pg_read_all_stats', 'USAGE')"
        " THEN pg_database_size(oid) END, clock_timestamp() FROM pg_database WHERE datname = %s",
        [live],
    )
    found = guard.Identity(facts.system_identifier(on.session), live, size_bytes, now)
    allowed = guard.require_same(archived, found, on.yes_replace)
    if allowed:
        return Doubt(f"replaced although {allowed}, since --yes-replace names it", "Look twice.")
    return f"{found}, as in the archive"


def _rights(on: Subject) -> str | Doubt:
    """To rename is one right, to give the restored one to the same owner another, since 16."""
    obstacles.require_rights(on.session, _live_name(on))
    owner, may_give, role = on.session.row(
        "SELECT quote_ident(pg_get_userbyid(datdba)), pg_has_role(datdba, %s), quote_ident(current_user)"
        " FROM pg_database WHERE datname = %s",
        ["SET" if on.access.major >= 16 else "MEMBER", _live_name(on)],
    )
    if not may_give:
        hint = f"As a superuser run: GRANT {owner} TO {role} WITH SET TRUE; or change the owner after the swap."
        return Doubt(f"the role may rename it, but cannot make {owner} the owner of the restored one", hint)
    return "the role may rename it, and make another"


def _obstacle(require: Callable[[Session, str], None], nothing: str, on: Subject) -> str:
    require(on.session, _live_name(on))
    return nothing


def _sessions(on: Subject) -> str:
    obstacles.require_endable(on.session, _live_name(on))
    return f"{obstacles.count_sessions(on.session, _live_name(on))} now; all that there are at the swap will be ended"


def _live_name(on: Subject) -> str:
    return on.live or on.database


# --- what the dump needs there


def _roles(on: Subject) -> str:
    target.require_roles(on.session, on.roles)
    if on.role is not None:
        roles.require_role(on.session, on.role)
    return f"all {len(on.roles)} that must be there are there"


# as pg_dump writes it behind a table's definition
_FORCED = re.compile(r"^ALTER TABLE ONLY .* FORCE ROW LEVEL SECURITY;$", re.MULTILINE)


def _row_security(on: Subject) -> str:
    """Whether the role may count what it will have restored: forced row security holds for owners too."""
    bypasses, role = on.session.row(
        "SELECT rolsuper OR rolbypassrls, quote_ident(rolname) FROM pg_roles WHERE rolname = current_user"
    )
    if bypasses:  # so that toc.dat need not be read
        return f"role {role} counts the rows of tables that force it"
    entries = on.toc().entries
    enabled = {(entry.namespace, entry.tag) for entry in entries if entry.desc == "ROW SECURITY"}
    counted = {(table.schema, table.name) for table in on.index.contract.tables} & enabled
    forced = sorted(
        f"{entry.namespace}.{entry.tag}"
        for entry in entries
        if entry.desc == "TABLE" and (entry.namespace, entry.tag) in counted and _FORCED.search(entry.definition)
    )
    if forced:
        raise AccessRefused(
            f"role {role} could not count the rows of {len(forced)} tables that force row security",
            detail=f"{', '.join(forced[:10])}{f' and {len(forced) - 10} more' if len(forced) > 10 else ''}.",
            hint=f"As a superuser run: ALTER ROLE {role} BYPASSRLS; or restore as a superuser.",
        )
    return "no table forces it"


def _extensions(on: Subject) -> str | Doubt:
    """Whether they can be made, and in a version that is not older than the source's."""
    extensions = on.index.contract.extensions
    if on.backup.manifest.filter is not None:
        return "a filtered dump holds none"
    target.require_extensions(on.session, on.index.contract)
    query = "SELECT name, default_version FROM pg_available_extensions"
    there = {str(name): str(version) for name, version in on.session.rows(query)}
    older = [
        f"{each.name} {there[each.name]} ({each.version} in the source)"
        for each in extensions
        if _numbers(there[each.name]) < _numbers(each.version)
    ]
    if older:
        hint = "Update their packages on the server's machine, or expect statements that it does not know."
        return Doubt(f"older on the target: {', '.join(older)}", hint)
    return f"all {len(extensions)} are available"


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall("[0-9]+", version)]


def _locale(on: Subject) -> str | Doubt:
    """Whether the server has heard of the source's locale; only CREATE DATABASE knows for sure."""
    like = on.index.contract.database
    known = {
        str(row[0])
        for row in on.session.rows(
            "SELECT collcollate FROM pg_collation WHERE collcollate IS NOT NULL"
            " UNION SELECT datcollate FROM pg_database UNION SELECT 'C' UNION SELECT 'POSIX'"
        )
    }
    text = f"{like.encoding}, {like.collate}{f', {like.locale} of {like.locale_provider}' if like.locale else ''}"
    if _plain(like.collate) not in {_plain(name) for name in known}:
        hint = "Install the locale on the server's machine; if it has it under another name, this does not matter."
        return Doubt(f"{text}: the server has no collation of that name", hint)
    return text


def _sort_order(on: Subject) -> str | Doubt:
    """Whether the live database and the restored one, which is like the source, sort alike."""
    live, source = (
        (like.encoding, like.collate, like.ctype, like.locale or "no other locale")
        for like in (facts.properties(on.session, _live_name(on)), on.index.contract.database)
    )
    if live == source:
        return f"{', '.join(live)}, as in the source"
    hint = "Indexes and ORDER BY will be the source's; a database's locale cannot be changed later."
    return Doubt(f"{', '.join(live)}; the restored one will have the source's: {', '.join(source)}", hint)


def _encoding(on: Subject) -> str | Doubt:
    """What is there cannot be changed: other encodings may lack characters."""
    here, source = facts.properties(on.session), on.index.contract.database
    if here.encoding != source.encoding:
        hint = "A character that it lacks stops the restore; --as makes a database like the source."
        return Doubt(f"{on.database} has {here.encoding}, the source {source.encoding}", hint)
    return f"{here.encoding}, as in the source"


def _plain(locale: str) -> str:
    return locale.lower().replace("-", "")


def _tablespaces(on: Subject) -> str:
    wanted = {entry.tablespace for entry in on.toc().entries if entry.tablespace}
    there = {str(row[0]) for row in on.session.rows("SELECT spcname FROM pg_tablespace")}
    if missing := sorted(wanted - there):
        raise TargetRefused(
            f"tablespaces are missing on the target: {', '.join(missing)}",
            detail="Tables or indexes of the backup lie in them.",
            hint="CREATE TABLESPACE each of them on the target and restore again.",
        )
    return f"{', '.join(sorted(wanted))} are there" if wanted else "none but the default"


# --- room


def _scratch(on: Subject) -> str:
    needed_bytes = sum(member.size_bytes for member in fetch.needed(on.index))
    with scratch.open_scratch(on.scratch, on.backup.id) as folder:
        scratch.require_room(folder, needed_bytes, f"backup {on.backup.id}", on.scratch_limit_bytes)
        return f"{needed_bytes} bytes are needed in {folder.parent}, and free"


def _room(on: Subject) -> str:
    """The source's size against the target's free space, which a server tells nobody: known on this machine only."""
    needed_bytes = on.backup.manifest.database_bytes
    address, folder = on.session.row(
        "SELECT host(inet_server_addr()), CASE WHEN pg_has_role('pg_read_all_settings', 'USAGE')"
        " THEN current_setting('data_directory') END"
    )
    local = address is None or ipaddress.ip_address(address).is_loopback
    space = obstacles.tablespace(on.session, on.live) if on.live is not None else None
    free_bytes = _free_bytes(Path(folder)) if local and folder and space is None else None
    if free_bytes is None:
        return f"about {needed_bytes} bytes are needed, as in the source; what is free there cannot be asked"
    if free_bytes < needed_bytes:
        message = f"target has {free_bytes} bytes free in {folder}, and the database had {needed_bytes}"
        raise NoRoom(message, hint="Make room there: the live database stays until the new one has proved equal.")
    return f"about {needed_bytes} bytes are needed, as in the source; {free_bytes} are free in {folder}"


def _free_bytes(folder: Path) -> int | None:
    """None where nobody may look there, or there is no such folder: a local port may be forwarded."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


_LIVE: Mapping[str, Check[Subject]] = {
    "identity": _identity,
    "rights": _rights,
    "sort order": _sort_order,
    "prepared transactions": partial(_obstacle, obstacles.require_no_prepared, "none"),
    "logical slots": partial(_obstacle, obstacles.require_no_slots, "none"),
    "subscriptions": partial(_obstacle, obstacles.require_no_subscriptions, "none is enabled"),
    "sessions": _sessions,
}
_BEFORE: Mapping[str, Check[Subject]] = {"connection": _connection, "pg_restore": _client, "definitions": _definitions}
_AFTER: Mapping[str, Check[Subject]] = {
    "roles": _roles,
    "row security": _row_security,
    "extensions": _extensions,
    "tablespaces": _tablespaces,
    "room": _room,
    "scratch": _scratch,
}


def _checks(subject: Subject) -> Mapping[str, Check[Subject]]:
    place: dict[str, Check[Subject]] = {}
    if subject.live is not None:
        place |= {"live database": _live, **_LIVE}
    place |= {"name": _name, "locale": _locale} if subject.create else {"emptiness": _emptiness, "encoding": _encoding}
    return {**_BEFORE, **place, **_AFTER}
