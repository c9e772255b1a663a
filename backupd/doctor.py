"""Can this installation work: every permission and assumption tried once, and what to do about each that fails.

A check is a function that returns what it found, or a `_Doubt` where backups work but something should be changed, or
raises what a backup would raise: codes and hints are the errors' own, and cannot drift from them. A failure does not
stop the other checks; what makes no sense after it is skipped, and named.

Privileges are asked of the server, not tried by a dump: pg_dump stops at the first that is missing, these name them
all, and a dump of everything is what backups are for. The store is tried with objects of our own, since nothing else
proves a policy; their keys are none of the catalog's, and they are deleted. Nothing is written to the source.
"""

import contextlib
import ipaddress
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Literal, LiteralString, Protocol, TypeVar, runtime_checkable
from urllib.parse import unquote, urlsplit

from backupd import dump, facts, postgres, process, scratch
from backupd.errors import (
    AccessRefused,
    BackupdError,
    DatabaseError,
    Locked,
    StoreError,
    UsageError,
    VerificationFailed,
    VersionMismatch,
)
from backupd.retention import Policy
from backupd.store import Entry, S3Options, Store, open_store

CLOCK_SECONDS = 60.0
"""How far clocks may differ: ids and retention are in minutes, and S3 refuses requests at 15."""

PART_BYTES = 5 << 20
"""The smallest part that S3 allows, so that trying a multipart upload stays cheap."""

ROOM_DIVISORS = (2, 10)
"""Room in scratch, as a divisor of the database's size, below which it may and below which it will not suffice.

A dump has no indexes, is compressed, and its members are removed as they are stored."""

NAMED = 5
"""How many of the missing a finding names."""


@dataclass(frozen=True)
class Finding:
    """What one check found, in words, and what to do about it; `exit_code` is a failure's, else 0."""

    name: str
    status: Literal["ok", "warn", "fail", "skip"]
    text: str
    hint: str | None = None
    exit_code: int = 0


@dataclass(frozen=True)
class Subject:
    """What is examined. No `source` or no `store_url`: that half is not set, and not tried.

    `password_from` is the setting or variable that has the source's password, `passfile` what libpq reads without one.
    """

    source: Callable[[], AbstractContextManager[postgres.Access]] | None
    databases: Callable[[postgres.Access], Sequence[str]]
    password_from: str | None
    passfile: Path
    clients: Sequence[dump.Client]
    client_folders: Sequence[Path]
    options: dump.Options
    scratch: Path | None
    store_url: str | None
    s3_options: S3Options
    policy: Policy | None


@runtime_checkable
class Described(Protocol):
    """A store that can say how it is reached."""

    def describe(self) -> Mapping[str, str]:
        """Names and values, as endpoint and whose credentials were found; never a credential."""
        ...


def examine(subject: Subject, clock: Callable[[], datetime]) -> list[Finding]:
    """Every finding, in the order in which things depend on each other."""
    if subject.source is None and subject.store_url is None:
        hint = "Set PGHOST or BACKUPD_SOURCE__HOST, BACKUPD_SOURCE__DATABASES and BACKUPD_STORE__URL."
        return [Finding("settings", "fail", "neither a source nor a store is set", hint, UsageError.exit_code)]
    findings = [*_all(_MACHINE, subject)]
    if subject.source is None:
        hint = "Set PGHOST or BACKUPD_SOURCE__HOST, and BACKUPD_SOURCE__DATABASES, for an installation that backs up."
        findings.append(Finding("source", "warn", "no source is set, so none was tried", hint))
    else:
        findings += _source(subject.source, subject, clock)
    if subject.store_url is None:
        findings.append(Finding("store", "warn", "no store is set, so none was tried", "Set BACKUPD_STORE__URL."))
    else:
        findings += _store(subject.store_url, subject, clock)
    return findings


# --- how checks are run


@dataclass(frozen=True)
class _Doubt:
    """Something that works and should be changed all the same."""

    text: str
    hint: str


_T = TypeVar("_T")
_Check = Callable[[_T], str | _Doubt]


def _all(
    checks: Mapping[str, _Check[_T]], subject: _T, of: str = "", needs: Mapping[str, str] | None = None
) -> Iterator[Finding]:
    """Tries each check, but for those that need one which failed; `of` ends their names."""
    lost: dict[str, str] = {}  # what failed, or was skipped, by what is to blame
    for name, check in checks.items():
        cause = lost.get((needs or {}).get(name, ""))
        finding = _skip(name + of, cause + of) if cause else _try(name + of, partial(check, subject))
        if finding.status in ("fail", "skip"):
            lost[name] = cause or name
        yield finding


def _try(name: str, check: Callable[[], str | _Doubt]) -> Finding:
    try:
        found = check()
    except BackupdError as exc:
        return _failure(name, exc)
    if isinstance(found, _Doubt):
        return Finding(name, "warn", found.text, found.hint)
    return Finding(name, "ok", found)


def _failure(name: str, exc: BackupdError) -> Finding:
    text = ": ".join(part for part in (exc.message, exc.detail) if part)
    hint = exc.hint if exc.hint and "backupd doctor" not in exc.hint else _HINTS.get(type(exc))
    return Finding(name, "fail", " ".join(text.split()), hint, exc.exit_code)


# where an error has no hint, or only that to run `backupd doctor`
_HINTS: Mapping[type[BackupdError], str] = {
    AccessRefused: "Check the role, where its password comes from (see `password`), and the server's pg_hba.conf.",
    DatabaseError: "Check BACKUPD_SOURCE__HOST and __PORT, or PGHOST and PGPORT, the network, and the server's log.",
    StoreError: "Check BACKUPD_STORE__URL, and what it names.",
    VerificationFailed: "Trust no backups to this store; look for a proxy or a cache before it.",
    VersionMismatch: "Install pg_dump and pg_restore of one version into each folder.",
}


def _skip(name: str, ground: str) -> Finding:
    return Finding(name, "skip", f"not tried: {ground} failed")


# --- this machine


def _clients(subject: Subject) -> str:
    """Which clients there are, that each has a pg_restore that runs, and that no folder was named in vain."""
    programs = [folder / name for folder in subject.client_folders for name in ("pg_dump", "pg_restore")]
    missing = [str(program) for program in programs if not os.access(program, os.X_OK)]
    if missing:
        hint = "Each folder in BACKUPD_DUMP__CLIENTS must have both pg_dump and pg_restore."
        raise UsageError(f"no program {', '.join(missing)}", hint=hint)
    for client in subject.clients:
        said = process.run([client.program("pg_restore"), "--version"], {"LC_ALL": "C"})
        if f"(PostgreSQL) {client.major}" not in said.stdout:
            detail = f"It says: {(said.stdout or said.stderr).strip()}."
            raise VersionMismatch(f"{client.program('pg_restore')} is no pg_restore {client.major}", detail=detail)
    if not subject.clients:
        hint = "Install postgresql-client of the server's major, or name its folder in BACKUPD_DUMP__CLIENTS."
        raise VersionMismatch("no PostgreSQL clients were found", hint=hint)
    return "; ".join(describe_client(client) for client in subject.clients)


def describe_client(client: dump.Client) -> str:
    """Version and folder, and whether fixes of known vulnerabilities are missing."""
    floor = "" if client.safe else f", below {client.major}.{dump.SAFE_MINORS[client.major]}, which closes known holes"
    return f"{client.version} in {client.folder}{floor}"


def _scratch(subject: Subject) -> str:
    """Whether scratch can be written to, and what it is."""
    with scratch.open_scratch(subject.scratch, "doctor") as folder:
        path = folder / "probe"
        with scratch.errors(path):
            path.write_bytes(b"backupd doctor")
            kind, free_bytes = _file_system(folder), shutil.disk_usage(folder).free
            shared = _is_shared(folder, subject.store_url)
        where = f"{free_bytes} bytes are free in {folder.parent} ({kind}{', in memory' if _in_memory(kind) else ''})"
        return f"{where}, on the same file system as the store, which takes room too" if shared else where


def _is_shared(folder: Path, store_url: str | None) -> bool:
    store_folder = _store_folder(store_url or "")
    if store_folder is None or not store_folder.is_dir():
        return False
    return store_folder.stat().st_dev == folder.stat().st_dev


def _retention(subject: Subject) -> str | _Doubt:
    policy = subject.policy
    if policy is None:
        hint = "Set BACKUPD_RETENTION__KEEP_DAILY=7 or other rules, unless something else is to remove backups."
        return _Doubt("no policy is set, so nothing is ever removed", hint)
    names = ("last", "hourly", "daily", "weekly", "monthly", "yearly", "within")
    rules = [f"{name} {value}" for name in names if (value := getattr(policy, name))]
    return f"{', '.join(rules)}; never fewer than {policy.floor} good backups"


_MACHINE: Mapping[str, _Check[Subject]] = {"clients": _clients, "scratch": _scratch, "retention": _retention}


def _file_system(folder: Path) -> str:
    """The type of its file system, as the kernel calls it. Raises OSError."""
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            fields = line.split()
            if fields[2] == number:
                return fields[fields.index("-") + 1]
    return "a file system of unknown type"


def _in_memory(kind: str) -> bool:
    return kind in ("tmpfs", "ramfs")


# --- the source


@dataclass(frozen=True)
class _Server:
    """The source's server, reached; `role` is our own, quoted as a name in SQL, `role_literal` as a string."""

    subject: Subject
    clock: Callable[[], datetime]
    access: postgres.Access
    session: postgres.Session
    role: str
    role_literal: str


@dataclass(frozen=True)
class _Database:
    """One of its databases, with a session there."""

    server: _Server
    name: str
    session: postgres.Session


def _source(
    reach: Callable[[], AbstractContextManager[postgres.Access]], subject: Subject, clock: Callable[[], datetime]
) -> Iterator[Finding]:
    yield _try("password", partial(_password, subject))
    with contextlib.ExitStack() as stack:
        try:
            access = stack.enter_context(reach())
            session = stack.enter_context(postgres.connect(access, access.database))
            role, role_literal = session.row("SELECT quote_ident(current_user), quote_literal(current_user)")
        except BackupdError as exc:
            yield _failure("connection", exc)
            yield from (_skip(name, "connection") for name in (*_SERVER, "databases"))
            return
        server = _Server(subject, clock, access, session, role, role_literal)
        yield from _all({"connection": _connection, **_SERVER}, server)
        try:
            names = subject.databases(access)
        except BackupdError as exc:
            yield _failure("databases", exc)
            return
        for name in names:
            yield from _database(server, name)


def _database(server: _Server, name: str) -> Iterator[Finding]:
    with contextlib.ExitStack() as stack:
        try:
            _require_admission(server, name)
            session = stack.enter_context(postgres.connect(server.access, name))
        except BackupdError as exc:
            yield _failure(f"database {name}", exc)
            yield from (_skip(f"{check} of {name}", f"database {name}") for check in _DATABASE)
            return
        yield Finding(f"database {name}", "ok", f"{server.role} may connect")
        yield from _all(_DATABASE, _Database(server, name, session), f" of {name}")


def _require_admission(server: _Server, name: str) -> None:
    """Asked before it is tried: a refused connection has no SQLSTATE to tell why."""
    query = "SELECT quote_ident(datname), has_database_privilege(oid, 'CONNECT') FROM pg_database WHERE datname = %s"
    for quoted, admitted in server.session.rows(query, [name]):
        if not admitted:
            hint = f"Run: GRANT CONNECT ON DATABASE {quoted} TO {server.role};"
            raise AccessRefused(f"role {server.role} may not connect to database {name}", hint=hint)
        return
    raise UsageError(f"database {name} does not exist", hint="Correct BACKUPD_SOURCE__DATABASES or PGDATABASE.")


def _password(subject: Subject) -> str | _Doubt:
    """Where the password comes from, never what it is. libpq passes over a password file that others may read."""
    path, mode = subject.passfile, 0
    with contextlib.suppress(OSError):
        mode = path.stat().st_mode & 0o777
    if subject.password_from not in (None, "PGPASSFILE"):
        return f"from {subject.password_from}"
    if subject.password_from:
        ignored = (
            f"; libpq alone would ignore it for its mode {mode:04o}, so clients get a copy" if mode & 0o077 else ""
        )
        return f"from PGPASSFILE, {path}{ignored}"
    if mode & 0o077:
        return _Doubt(f"libpq ignores {path}: its mode {mode:04o} lets others read it", f"Run: chmod 600 {path}")
    return f"from {path}" if mode else "none is set: the server must know us by trust, peer or certificate"


def _connection(on: _Server) -> str:
    kind = "a standby" if on.access.standby else "a primary"
    identity = facts.system_identifier(on.session)
    who = f"{on.session.place}, as {on.role}"
    return f"PostgreSQL {on.access.version}, {kind}, cluster {identity}, directly and without a pooler at {who}"


def _tls(on: _Server) -> str | _Doubt:
    query = "SELECT ssl, version, cipher, host(inet_client_addr()) FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    encrypted, version, cipher, address = on.session.row(query)
    hint = "Set BACKUPD_SOURCE__SSLMODE=verify-full, and BACKUPD_SOURCE__SSLROOTCERT to the CA's certificates."
    if address is None:
        return "a local socket, which needs none"
    if encrypted:
        mode = _sslmode(on.access)
        text = f"{version}, {cipher}, sslmode {mode}"
        unchecked = mode in ("allow", "prefer", "require")
        return _Doubt(f"{text}: the server's certificate is not checked", hint) if unchecked else text
    if ipaddress.ip_address(address).is_loopback:
        return "none, and none is needed on this machine"
    return _Doubt("none: what is dumped crosses the network readable", hint)


def _sslmode(access: postgres.Access) -> str:
    """The effective one; what a service's file says only libpq knows."""
    keywords, environment = access.server.keywords, access.environment
    system = (keywords.get("sslrootcert") or environment.get("PGSSLROOTCERT")) == "system"
    default = "of PGSERVICE" if environment.get("PGSERVICE") else "verify-full" if system else "prefer"
    return keywords.get("sslmode") or environment.get("PGSSLMODE") or default


def _server_clock(on: _Server) -> str | _Doubt:
    return _compared(on.session.row("SELECT clock_timestamp()")[0], on.clock(), "the server's clock")


def _compared(theirs: datetime, ours: datetime, whose: str) -> str | _Doubt:
    seconds = (theirs - ours).total_seconds()
    text = f"{whose} is {abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'} ours"
    if abs(seconds) <= CLOCK_SECONDS:
        return text
    return _Doubt(text, "Set the wrong one of the two; ids, retention and `backupd check` go by this machine's.")


def _pg_dump(on: _Server) -> str | _Doubt:
    client = dump.choose_for_dump(on.subject.clients, on.access.major)
    compression = dump.compression_for(client, on.subject.options.compression)
    text = f"{describe_client(client)}, compresses with {compression}"
    hint = f"Install the newest postgresql-client-{on.access.major}."
    if client.major != on.access.major:
        return _Doubt(f"{text}: it is newer than the server, whose own pg_restore may not read its dumps", hint)
    return text if client.safe else _Doubt(text, hint)


def _standby(on: _Server) -> str | _Doubt:
    access = on.access
    if not access.standby:
        return "the server is a primary"
    if not dump.may_share_snapshot(access.standby, access.version_num):
        text = f"parallel dumps of a standby with PostgreSQL {access.version} can corrupt, so one job is used"
        return _Doubt(text, f"Update it to {access.major}.{dump.SAFE_MINORS[access.major]} or newer.")
    feedback, delay = on.session.row(
        "SELECT current_setting('hot_standby_feedback'), current_setting('max_standby_streaming_delay')"
    )
    text = f"hot_standby_feedback is {feedback}, max_standby_streaming_delay {delay}"
    if feedback == "off" and delay != "-1":
        return _Doubt(f"{text}: replay may cancel a long dump", dump.REPLICA_HINT)
    return text


_SERVER: Mapping[str, _Check[_Server]] = {
    "TLS": _tls,
    "server clock": _server_clock,
    "pg_dump": _pg_dump,
    "standby": _standby,
}

# What pg_dump locks and reads, tried with 15, 17 and 18: neither views of any kind nor foreign tables, and of
# extensions only the tables that they have marked as configuration.
_DUMPED: LiteralString = (
    "WITH dumped AS (SELECT c.oid, c.relkind, c.relnamespace, quote_ident(n.nspname) AS schema,"
    " quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name"
    " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE c.relkind IN ('r', 'p', 'S') AND c.relpersistence <> 't'"
    " AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
    " AND (c.oid IN (SELECT unnest(extconfig) FROM pg_extension) OR NOT EXISTS (SELECT FROM pg_depend d"
    " WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'))) "
)


def _missing(query: LiteralString, problem: str, remedy: str, on: _Database) -> str | _Doubt:
    """Raises AccessRefused where the query has rows, naming some; a filter may leave just those out."""
    rows = on.session.rows(_DUMPED + query + " ORDER BY 1 LIMIT %s", [NAMED])
    if not rows:
        return "nothing is missing"
    names, more = [str(row[0]) for row in rows], int(rows[0][1]) - len(rows)
    text = f"role {on.server.role} {problem} {', '.join(names)}{f' and {more} more' if more else ''}"
    hint = f"As a superuser run: {remedy.format(role=on.server.role, literal=on.server.role_literal)}"
    options = on.server.subject.options
    if options.include or options.exclude:
        return _Doubt(f"{text}, unless BACKUPD_DUMP__INCLUDE and BACKUPD_DUMP__EXCLUDE leave them out", hint)
    raise AccessRefused(text, hint=hint)


_READ_ALL = "GRANT pg_read_all_data TO {role};"

_schemas = partial(
    _missing,
    # 18 reads sequences without their schema
    "SELECT schema, count(*) OVER () FROM dumped WHERE NOT has_schema_privilege(relnamespace, 'USAGE')"
    " AND (relkind <> 'S' OR current_setting('server_version_num')::int < 180000) GROUP BY schema",
    "may not use schema",
    _READ_ALL,
)
_tables = partial(
    _missing,
    "SELECT name, count(*) OVER () FROM dumped WHERE relkind <> 'S' AND NOT has_table_privilege(oid, 'SELECT')",
    "may not read table",
    _READ_ALL,
)
_sequences = partial(
    _missing,
    # not has_sequence_privilege: called for a table before the filter has dropped that, it raises
    "SELECT name, count(*) OVER () FROM dumped WHERE relkind = 'S' AND NOT has_table_privilege(oid, 'SELECT')",
    "may not read sequence",
    _READ_ALL,
)
_large_objects = partial(
    _missing,
    # has_largeobject_privilege came with 18; with 19 pg_read_all_data counts for large objects too
    "SELECT m.oid::text, count(*) OVER () FROM pg_largeobject_metadata m"
    " WHERE current_setting('lo_compat_privileges') = 'off' AND NOT pg_has_role(m.lomowner, 'USAGE')"
    " AND NOT EXISTS (SELECT FROM aclexplode(m.lomacl) a WHERE a.privilege_type = 'SELECT'"
    " AND (a.grantee = 0 OR pg_has_role(a.grantee, 'USAGE')))"
    " AND NOT (current_setting('server_version_num')::int >= 190000 AND pg_has_role('pg_read_all_data', 'USAGE'))",
    "may not read large object",
    "SELECT format('GRANT SELECT ON LARGE OBJECT %s TO %I', oid, {literal}) FROM pg_largeobject_metadata \\gexec",
)
_row_security = partial(
    _missing,
    "SELECT name, count(*) OVER () FROM dumped WHERE relkind = 'r' AND row_security_active(oid)",
    "is subject to row security, under which pg_dump refuses to read table",
    "ALTER ROLE {role} BYPASSRLS;",
)


def _snapshot(on: _Database) -> str:
    """Exports a snapshot and takes it over in another session, as pg_dump does."""
    access = on.server.access
    if not dump.may_share_snapshot(access.standby, access.version_num):
        return "not shared on this standby"
    with (
        postgres.snapshot(access, on.name) as (_, name),
        postgres.connect(access, on.name) as other,
    ):
        other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        other.execute("SET TRANSACTION SNAPSHOT {}", literals=[name])
    return "exported, and taken over by another session"


def _lock(on: _Database) -> str | _Doubt:
    try:
        with postgres.lock(on.server.access, on.name) as lock:
            lock.check()
    except Locked as exc:
        hint = "Nothing is to be done where that is a backup at work; else end that session."
        return _Doubt(f"{exc.message}: {exc.detail}", hint)
    return "taken and given back"


def _lock_table(on: _Database) -> str | _Doubt:
    """Whether the server's lock table has room for the locks of a dump: each table's twice, where jobs share it."""
    query: LiteralString = (
        "SELECT (SELECT count(*) FROM dumped WHERE relkind <> 'S'), current_setting('max_locks_per_transaction')::int,"
        " current_setting('max_connections')::int + current_setting('max_prepared_transactions')::int"
    )
    tables, setting, sessions = on.session.row(_DUMPED + query)
    needed = tables if on.server.subject.options.jobs == 1 else 2 * tables
    text = f"a dump needs about {needed} locks, and there is room for {setting * sessions}"
    if needed <= setting * sessions:
        return text
    outcome = "so a dump is likely to fail" if tables > setting * sessions else "so one job will have to do"
    hint = f"Set max_locks_per_transaction = {2 * -(-needed // sessions)} on the server and restart it."
    return _Doubt(f"{text}, {outcome}", hint)


def _room(on: _Database) -> str | _Doubt:
    """Scratch against the database's size."""
    database_bytes, folder = facts.database_bytes(on.session), on.server.subject.scratch
    with scratch.open_scratch(folder, "doctor") as made:
        free_bytes = shutil.disk_usage(made).free
        scratch.require_room(made, database_bytes // ROOM_DIVISORS[1], f"a dump of {database_bytes} bytes in {on.name}")
    text = f"the database has {database_bytes} bytes, scratch has {free_bytes} free"
    if free_bytes < database_bytes // ROOM_DIVISORS[0]:
        return _Doubt(f"{text}, which may not do where the store is slower than the server", scratch.HINT)
    return text


_DATABASE: Mapping[str, _Check[_Database]] = {
    "schemas": _schemas,
    "tables": _tables,
    "sequences": _sequences,
    "large objects": _large_objects,
    "row security": _row_security,
    "snapshot": _snapshot,
    "lock": _lock,
    "lock table": _lock_table,
    "room for a dump": _room,
}

# --- the store


@dataclass(frozen=True)
class _Probe:
    """A store that is tried with objects whose keys start with `key`; one at the top is no place of the catalog's."""

    store: Store
    url: str
    clock: Callable[[], datetime]
    key: str

    def entry(self) -> Entry | None:
        """The probe, if the store lists it."""
        return next((entry for entry in self.store.list(self.key) if entry.key == self.key), None)


_CONTENT = b"backupd doctor tries this store and deletes this at once\n"


def _store(url: str, subject: Subject, clock: Callable[[], datetime]) -> Iterator[Finding]:
    others = _FOLDER if _store_folder(url) else _BUCKET
    try:
        store = open_store(url, replace(subject.s3_options, part_bytes=PART_BYTES))
    except BackupdError as exc:
        yield _failure("store", exc)
        yield from (_skip(name, "store") for name in (*_STORE, *others) if name != "store")
        return
    probe = _Probe(store, url, clock, f"backupd-doctor-{secrets.token_hex(8)}")
    tried: dict[str, str] = {}
    try:
        for finding in _all({**_STORE, **others}, probe, needs=_NEEDS):
            tried[finding.name] = finding.status
            yield finding
    finally:
        if tried.get("store put") != "skip" and tried.get("store delete") != "ok":
            with contextlib.suppress(BackupdError):
                store.delete(probe.key)


def _described(on: _Probe) -> str:
    said = on.store.describe() if isinstance(on.store, Described) else {}
    return ", ".join([on.store.url, *(f"{name} {value}" for name, value in said.items())])


def _list(on: _Probe) -> str:
    found = on.entry()
    if found is not None:
        raise StoreError(f"{on.store.url} lists {found.key}, which was never written")
    return "answered"


def _put(on: _Probe) -> str:
    with on.store.create(on.key, len(_CONTENT)) as stream:
        stream.write(_CONTENT)
    found = on.entry()
    if found is None or found.size_bytes != len(_CONTENT):
        raise StoreError(f"{on.store.url} does not list {on.key} as it was written", detail=f"It lists {found}.")
    return f"{on.key} was written and is listed"


def _get(on: _Probe) -> str:
    return _read(on, on.key, 0, None, _CONTENT)


def _range(on: _Probe) -> str:
    return _read(on, on.key, 8, 6, _CONTENT[8:14])


def _read(on: _Probe, key: str, start: int, length: int | None, expected: bytes) -> str:
    with on.store.open(key, start, length) as stream:
        if stream.read() != expected:
            raise VerificationFailed(f"{on.store.url} returned other bytes of {key} than were written")
    return f"{len(expected)} bytes came back as they were written"


def _store_clock(on: _Probe) -> str | _Doubt:
    found = on.entry()
    if found is None:
        raise StoreError(f"{on.store.url} does not list {on.key} any more")
    return _compared(found.modified_at, on.clock(), "the store's clock")


def _delete(on: _Probe) -> str:
    on.store.delete(on.key)
    if on.entry() is not None:
        raise StoreError(f"{on.store.url} still lists {on.key} after it was deleted")
    return f"{on.key} was deleted"


def _multipart(on: _Probe) -> str:
    """An object of two parts, read back across their border."""
    key, size_bytes = f"{on.key}-parts", PART_BYTES + 1
    try:
        with on.store.create(key, size_bytes) as stream:
            stream.write(bytes(PART_BYTES) + b"1")
        _read(on, key, PART_BYTES - 1, 2, b"\0001")
    finally:
        on.store.delete(key)
    return "an object of two parts was written, read and deleted"


class _Abandoned(Exception):
    """Ends a `create` as a failing backup does."""


def _abort(on: _Probe) -> str:
    """A write that is given up must leave nothing, or it costs money for ever."""
    key = f"{on.key}-abandoned"
    with contextlib.suppress(_Abandoned), on.store.create(key, PART_BYTES) as stream:
        stream.write(bytes(PART_BYTES))
        raise _Abandoned
    left = [*on.store.sweep(key, on.clock() + timedelta(days=1)), *(entry.key for entry in on.store.list(key))]
    if left:
        hint = "Allow s3:AbortMultipartUpload, and have the bucket end unfinished uploads after some days."
        raise StoreError(f"a write that was given up left {', '.join(left)} in {on.store.url}", hint=hint)
    return "a write that was given up left nothing"


def _durability(on: _Probe) -> str | _Doubt:
    """Whether the folder outlives this container and a loss of power."""
    folder = _store_folder(on.url) or Path("/")
    try:
        kind = _file_system(folder)
        if _in_memory(kind):
            return _Doubt(f"{folder} is in memory ({kind})", "Mount a disk there, or backups end with the machine.")
        if kind == "overlay":
            return _Doubt(f"{folder} is this container's own ({kind})", "Mount a volume there, or backups end with it.")
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as exc:
        hint = "After a loss of power run `backupd verify all`, or use another file system."
        return _Doubt(f"{folder} does not make the names of files durable: {exc.strerror}", hint)
    return f"{folder} ({kind}) makes files and their names durable"


def _store_folder(url: str) -> Path | None:
    """The folder of a store's URL; None for another kind of store."""
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


_STORE: Mapping[str, _Check[_Probe]] = {
    "store": _described,
    "store list": _list,
    "store put": _put,
    "store get": _get,
    "store range": _range,
    "store clock": _store_clock,
    "store delete": _delete,
    "store abort": _abort,
}
_FOLDER: Mapping[str, _Check[_Probe]] = {"store durability": _durability}
_BUCKET: Mapping[str, _Check[_Probe]] = {"store multipart": _multipart}
_NEEDS: Mapping[str, str] = {
    "store list": "store",
    "store put": "store list",
    "store get": "store put",
    "store range": "store put",
    "store clock": "store put",
    "store delete": "store put",
    "store abort": "store delete",  # what cannot be deleted is not written
    "store multipart": "store delete",
    "store durability": "store list",
}
