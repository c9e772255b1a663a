"""Can this installation work: every permission and assumption tried once, and what to do about each that fails.

A check is a function that returns what it found, or a `Doubt` where backups work but something should be changed, or
raises what a backup would raise: codes and hints are the errors' own, and cannot drift from them. A failure does not
stop the other checks; what makes no sense after it is skipped, and named.

Privileges are asked of the server, not tried by a dump: pg_dump stops at the first that is missing, these name them
all, and a dump of everything is what backups are for. The store is tried with objects of our own, since nothing else
proves a policy; their keys are none of the catalog's, and they are deleted. Nothing is written to the source.
"""

import contextlib
import ipaddress
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path

from backupd import (
    dump,
    encryption,
    facts,
    locks,
    notify,
    postgres,
    privileges,
    probe,
    process,
    scratch,
    signing,
    sqlstate,
)
from backupd.clients import SAFE_MINORS, Client, choose_for_dump, compression_for, describe, may_share_snapshot
from backupd.errors import AccessRefused, BackupdError, Locked, UsageError, VerificationFailed, VersionMismatch
from backupd.finding import Check, Doubt, Finding, attempt, failure, skip, try_all
from backupd.probe import compare_clocks, file_system, is_in_memory, store_folder
from backupd.retention import Policy
from backupd.store import S3Options, hint_of_second

ROOM_DIVISORS = (2, 10)
"""Room in scratch, as a divisor of the database's size, below which it may and below which it will not suffice.

A dump has no indexes, is compressed, and its members are removed as they are stored."""


@dataclass(frozen=True)
class Subject:
    """What is examined. No `source` or no `store_url`: that half is not set, and not tried.

    `password_from` is the setting or variable that has the source's password, `passfile` what libpq reads without one.
    """

    source: Callable[[], AbstractContextManager[postgres.Access]] | None
    databases: Callable[[postgres.Access], Sequence[str]]
    password_from: str | None
    passfile: Path
    clients: Sequence[Client]
    client_folders: Sequence[Path]
    options: dump.Options
    scratch: Path | None
    scratch_limit_bytes: int | None
    store_url: str | None
    s3_options: S3Options
    policy: Policy | None
    second: tuple[str, S3Options] | None = None
    """URL and options of the store that copies go to."""

    notify_urls: Sequence[str] = ()
    hooks: Mapping[str, Sequence[str]] = field(default_factory=dict)

    recipients: tuple[str, ...] = ()
    identities: encryption.Identities = encryption.NO_IDENTITIES
    keys: Callable[[], signing.Keys] = signing.Keys
    """What is signed with and believed; raises UsageError where that cannot be used."""


def examine(subject: Subject, clock: Callable[[], datetime]) -> list[Finding]:
    """Every finding, in the order in which things depend on each other."""
    if subject.source is None and subject.store_url is None:
        hint = "Set PGHOST or BACKUPD_SOURCE__HOST, BACKUPD_SOURCE__DATABASES and BACKUPD_STORE__URL."
        return [Finding("settings", "fail", "neither a source nor a store is set", hint, UsageError.exit_code)]
    findings = [*try_all(_MACHINE, subject)]
    if subject.source is None:
        hint = "Set PGHOST or BACKUPD_SOURCE__HOST, and BACKUPD_SOURCE__DATABASES, for an installation that backs up."
        findings.append(Finding("source", "warn", "no source is set, so none was tried", hint))
    else:
        findings += _source(subject.source, subject, clock)
    if subject.store_url is None:
        findings.append(Finding("store", "warn", "no store is set, so none was tried", "Set BACKUPD_STORE__URL."))
    else:
        findings += probe.examine(subject.store_url, subject.s3_options, clock)
    if subject.second is not None:
        findings += map(_of_second, probe.examine(*subject.second, clock))
    return findings


def _of_second(finding: Finding) -> Finding:
    hint = finding.hint and hint_of_second(finding.hint)
    return replace(finding, name=f"second {finding.name}", hint=hint)


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
    return "; ".join(describe(client) for client in subject.clients)


def _scratch(subject: Subject) -> str:
    """Whether scratch can be written to, and what it is."""
    with scratch.open_scratch(subject.scratch, "doctor") as folder:
        path = folder / "probe"
        with scratch.errors(path):
            path.write_bytes(b"backupd doctor")
            kind, free_bytes = file_system(folder), shutil.disk_usage(folder).free
            shared = _is_shared(folder, subject.store_url)
        where = f"{free_bytes} bytes are free in {folder.parent} ({kind}{', in memory' if is_in_memory(kind) else ''})"
        return f"{where}, on the same file system as the store, which takes room too" if shared else where


def _is_shared(folder: Path, store_url: str | None) -> bool:
    there = store_folder(store_url or "")
    if there is None or not there.is_dir():
        return False
    return there.stat().st_dev == folder.stat().st_dev


def _retention(subject: Subject) -> str | Doubt:
    policy = subject.policy
    if policy is None:
        hint = "Set BACKUPD_RETENTION__KEEP_DAILY=7 or other rules, unless something else is to remove backups."
        return Doubt("no policy is set, so nothing is ever removed", hint)
    names = ("last", "hourly", "daily", "weekly", "monthly", "yearly", "within")
    rules = [f"{name} {value}" for name in names if (value := getattr(policy, name))]
    return f"{', '.join(rules)}; never fewer than {policy.floor} good backups"


def _signing(subject: Subject) -> str | Doubt:
    """Whether what is signed here is believed here: something is signed, and looked at."""
    keys, believed = subject.keys(), "what nobody signed is taken for as good as what somebody did"
    if keys.trusted:
        known = "the one key" if len(keys.trusted) == 1 else f"one of {len(keys.trusted)} keys"
        believed = f"only what {known} signed is trusted"
    if keys.secret is None:
        hint = f"Set {signing.KEY_SETTING}, unless no backup is taken or noted here."
        lacks = keys.trusted and subject.source is not None
        return (
            Doubt(f"{believed}, and there is no key to sign with", hint) if lacks else f"{believed}; nothing is signed"
        )
    signed = signing.sign(keys.secret, _PROBE, _PROBE.encode())
    why = signing.why_untrusted([keys.secret.public], _PROBE, _PROBE.encode(), signed)
    if why is not None:
        raise VerificationFailed(f"what was signed just now is not trusted: {why}")
    hint = f"Set {signing.PUBLIC_KEYS_SETTING}={keys.secret.public} where backups are read."
    return f"signs, and {believed}" if keys.trusted else Doubt(f"signs, but {believed}", hint)


_PROBE = "backupd doctor"


def _encryption(subject: Subject) -> str | Doubt:
    """Whether what is encrypted here can be opened here, where that is wanted: something is encrypted, and opened."""
    if not subject.recipients:
        return "backups are in clear" if not subject.identities else "backups are in clear; identities open older ones"
    with encryption.encrypt([_PROBE.encode()], len(_PROBE), subject.recipients) as encrypted:
        stored = b"".join(encrypted.chunks)
    to = f"backups are encrypted to {len(subject.recipients)} public keys"
    if not subject.identities:
        return f"{to}, and no private key is here to open them"
    try:
        opened = b"".join(encryption.decrypt([stored], subject.identities, "what was encrypted just now"))
    except AccessRefused as exc:
        hint = f"Put the private key of one of {encryption.RECIPIENTS_SETTING} into {encryption.SETTING}'s file too."
        return Doubt(f"{to}, and {exc.message}", hint)
    if opened != _PROBE.encode():
        raise VerificationFailed("what was encrypted just now is something else when it is opened")
    return f"{to}, and can be opened here"


def _notifications(subject: Subject) -> str:
    """Whether each URL names a service; nothing is sent."""
    if not subject.notify_urls:
        return "nobody is notified: exit codes and `backupd check` tell how things stand"
    if problems := notify.unusable(subject.notify_urls):
        raise UsageError("; ".join(problems), hint="Correct BACKUPD_NOTIFY__URLS: each is an apprise URL.")
    return f"{len(subject.notify_urls)} URLs are understood"


def _hooks(subject: Subject) -> str:
    """Whether each hook's program is there; none is run."""
    for when, argv in subject.hooks.items():
        if process.find_program(argv[0]) is None:
            hint = f"Correct BACKUPD_HOOK__{when.upper()}; in the image there is only what Debian brings."
            raise UsageError(f"hook {when}: there is no program {argv[0]}", hint=hint)
    return f"{', '.join(subject.hooks)}: the programs are there" if subject.hooks else "none is set"


_MACHINE: Mapping[str, Check[Subject]] = {
    "clients": _clients,
    "scratch": _scratch,
    "retention": _retention,
    "signing": _signing,
    "encryption": _encryption,
    "notifications": _notifications,
    "hooks": _hooks,
}


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
    yield attempt("password", partial(_password, subject))
    with contextlib.ExitStack() as stack:
        try:
            access = stack.enter_context(reach())
            session = stack.enter_context(postgres.connect(access, access.database))
            role, role_literal = session.row("SELECT quote_ident(current_user), quote_literal(current_user)")
        except BackupdError as exc:
            yield failure("connection", exc)
            yield from (skip(name, "connection") for name in (*_SERVER, "databases"))
            return
        server = _Server(subject, clock, access, session, role, role_literal)
        yield from try_all({"connection": _connection, **_SERVER}, server)
        try:
            names = subject.databases(access)
        except BackupdError as exc:
            yield failure("databases", exc)
            return
        for name in names:
            yield from _database(server, name)


def _database(server: _Server, name: str) -> Iterator[Finding]:
    with contextlib.ExitStack() as stack:
        try:
            _require_admission(server, name)
            session = stack.enter_context(postgres.connect(server.access, name))
        except BackupdError as exc:
            yield failure(f"database {name}", exc)
            yield from (skip(f"{check} of {name}", f"database {name}") for check in _DATABASE)
            return
        yield Finding(f"database {name}", "ok", f"{server.role} may connect")
        yield from try_all(_DATABASE, _Database(server, name, session), f" of {name}")


def _require_admission(server: _Server, name: str) -> None:
    """Asked before it is tried: a refused connection has no SQLSTATE to tell why."""
    query = "SELECT quote_ident(datname), has_database_privilege(oid, 'CONNECT') FROM pg_database WHERE datname = %s"
    for quoted, admitted in server.session.rows(query, [name]):
        if not admitted:
            hint = f"Run: GRANT CONNECT ON DATABASE {quoted} TO {server.role};"
            raise AccessRefused(f"role {server.role} may not connect to database {name}", hint=hint)
        return
    raise UsageError(f"database {name} does not exist", hint="Correct BACKUPD_SOURCE__DATABASES or PGDATABASE.")


def _password(subject: Subject) -> str | Doubt:
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
        return Doubt(f"libpq ignores {path}: its mode {mode:04o} lets others read it", f"Run: chmod 600 {path}")
    return f"from {path}" if mode else "none is set: the server must know us by trust, peer or certificate"


def _connection(on: _Server) -> str:
    kind = "a standby" if on.access.standby else "a primary"
    identity = facts.system_identifier(on.session)
    who = f"{on.session.place}, as {on.role}"
    return f"PostgreSQL {on.access.version}, {kind}, cluster {identity}, directly and without a pooler at {who}"


def _tls(on: _Server) -> str | Doubt:
    query = "SELECT ssl, version, cipher, host(inet_client_addr()) FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    encrypted, version, cipher, address = on.session.row(query)
    hint = "Set BACKUPD_SOURCE__SSLMODE=verify-full, and BACKUPD_SOURCE__SSLROOTCERT to the CA's certificates."
    if address is None:
        return "a local socket, which needs none"
    if encrypted:
        mode = _sslmode(on.access)
        text = f"{version}, {cipher}, sslmode {mode}"
        unchecked = mode in ("allow", "prefer", "require")
        return Doubt(f"{text}: the server's certificate is not checked", hint) if unchecked else text
    if ipaddress.ip_address(address).is_loopback:
        return "none, and none is needed on this machine"
    return Doubt("none: what is dumped crosses the network readable", hint)


def _sslmode(access: postgres.Access) -> str:
    """The effective one; what a service's file says only libpq knows."""
    keywords, environment = access.server.keywords, access.environment
    system = (keywords.get("sslrootcert") or environment.get("PGSSLROOTCERT")) == "system"
    default = "of PGSERVICE" if environment.get("PGSERVICE") else "verify-full" if system else "prefer"
    return keywords.get("sslmode") or environment.get("PGSSLMODE") or default


def _server_clock(on: _Server) -> str | Doubt:
    return compare_clocks(on.session.row("SELECT clock_timestamp()")[0], on.clock(), "the server's clock")


def _pg_dump(on: _Server) -> str | Doubt:
    client = choose_for_dump(on.subject.clients, on.access.major)
    compression = compression_for(client, on.subject.options.compression)
    text = f"{describe(client)}, compresses with {compression}"
    hint = f"Install the newest postgresql-client-{on.access.major}."
    if client.major != on.access.major:
        return Doubt(f"{text}: it is newer than the server, whose own pg_restore may not read its dumps", hint)
    return text if client.safe else Doubt(text, hint)


def _standby(on: _Server) -> str | Doubt:
    access = on.access
    if not access.standby:
        return "the server is a primary"
    if not may_share_snapshot(access.standby, access.version_num):
        text = f"parallel dumps of a standby with PostgreSQL {access.version} can corrupt, so one job is used"
        return Doubt(text, f"Update it to {access.major}.{SAFE_MINORS[access.major]} or newer.")
    feedback, delay = on.session.row(
        "SELECT current_setting('hot_standby_feedback'), current_setting('max_standby_streaming_delay')"
    )
    text = f"hot_standby_feedback is {feedback}, max_standby_streaming_delay {delay}"
    if feedback == "off" and delay != "-1":
        return Doubt(f"{text}: replay may cancel a long dump", sqlstate.REPLICA_HINT)
    return text


_SERVER: Mapping[str, Check[_Server]] = {
    "TLS": _tls,
    "server clock": _server_clock,
    "pg_dump": _pg_dump,
    "standby": _standby,
}


def _missing(privilege: privileges.Privilege, on: _Database) -> str | Doubt:
    """Raises AccessRefused where something is missing; a filter may leave just that out."""
    names, more = privileges.missing(on.session, privilege)
    if not names:
        return "nothing is missing"
    text = f"role {on.server.role} {privilege.problem} {', '.join(names)}{f' and {more} more' if more else ''}"
    remedy = privilege.remedy.format(role=on.server.role, literal=on.server.role_literal)
    hint = f"As a superuser run: {remedy}"
    options = on.server.subject.options
    if options.include or options.exclude:
        return Doubt(f"{text}, unless BACKUPD_DUMP__INCLUDE and BACKUPD_DUMP__EXCLUDE leave them out", hint)
    raise AccessRefused(text, hint=hint)


def _snapshot(on: _Database) -> str:
    """Exports a snapshot and takes it over in another session, as pg_dump does."""
    access = on.server.access
    if not may_share_snapshot(access.standby, access.version_num):
        return "not shared on this standby"
    with (
        postgres.snapshot(access, on.name) as (_, name),
        postgres.connect(access, on.name) as other,
    ):
        other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        other.execute("SET TRANSACTION SNAPSHOT {}", literals=[name])
    return "exported, and taken over by another session"


def _lock(on: _Database) -> str | Doubt:
    try:
        with locks.hold_source(on.server.access, on.name) as lock:
            lock.check()
    except Locked as exc:
        hint = "Nothing is to be done where that is a backup at work; else end that session."
        return Doubt(f"{exc.message}: {exc.detail}", hint)
    return "taken and given back"


def _lock_table(on: _Database) -> str | Doubt:
    """Whether the server's lock table has room for the locks of a dump: each table's twice, where jobs share it."""
    tables, setting, sessions = privileges.count_locks(on.session)
    needed = tables if on.server.subject.options.jobs == 1 else 2 * tables
    text = f"a dump needs about {needed} locks, and there is room for {setting * sessions}"
    if needed <= setting * sessions:
        return text
    outcome = "so a dump is likely to fail" if tables > setting * sessions else "so one job will have to do"
    hint = f"Set max_locks_per_transaction = {2 * -(-needed // sessions)} on the server and restart it."
    return Doubt(f"{text}, {outcome}", hint)


def _room(on: _Database) -> str | Doubt:
    """Scratch against the database's size."""
    database_bytes, subject = facts.database_bytes(on.session), on.server.subject
    purpose, limit_bytes = f"a dump of {database_bytes} bytes in {on.name}", subject.scratch_limit_bytes
    with scratch.open_scratch(subject.scratch, "doctor") as made:
        with scratch.errors(made):
            free_bytes = min(shutil.disk_usage(made).free, limit_bytes or sys.maxsize)
        scratch.require_room(made, database_bytes // ROOM_DIVISORS[1], purpose, limit_bytes)
    text = f"the database has {database_bytes} bytes, scratch has {free_bytes} free"
    if free_bytes < database_bytes // ROOM_DIVISORS[0]:
        return Doubt(f"{text}, which may not do where the store is slower than the server", scratch.HINT)
    return text


_DATABASE: Mapping[str, Check[_Database]] = {
    "schemas": partial(_missing, privileges.SCHEMAS),
    "tables": partial(_missing, privileges.TABLES),
    "sequences": partial(_missing, privileges.SEQUENCES),
    "large objects": partial(_missing, privileges.LARGE_OBJECTS),
    "row security": partial(_missing, privileges.ROW_SECURITY),
    "snapshot": _snapshot,
    "lock": _lock,
    "lock table": _lock_table,
    "room for a dump": _room,
}
