"""Proves a backup by restoring it into a server that nobody needs, timed, and comparing every table's content.

The restore is `restore`'s own, so that what is proven is what would be done at 03:00; in its midst, before event
triggers write anything, the content is compared; then the database is dropped. What was found is a note beside the
backup: *restored*, *identical*, or that it failed, which makes the backup suspect. Only what the backup itself is to
blame for is noted as its failure: a server that was lost, lacks an extension or refuses a privilege proves nothing
about it.

Roles that the dump refers to are made (they may not log in) and dropped again: without them nothing would restore.
One drill at a time uses a server, by a lock: two would measure each other, and what a killed one left is swept by the
next. The cluster that a backup is of is refused: a drill runs the backup's functions, and costs what a restore does.
"""

import contextlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from backupd import archive, comparison, content, facts, locks, log, postgres, restore, target, throwaway
from backupd.catalog import Catalog
from backupd.clients import Client
from backupd.connection import Server
from backupd.errors import (
    AccessRefused,
    BackupdError,
    Locked,
    NotFound,
    RestoreFailed,
    TargetRefused,
    UsageError,
    VerificationFailed,
    VersionMismatch,
)
from backupd.manifest import Backup, Contract, superseded
from backupd.progress import Progress
from backupd.reader import require_trusted
from backupd.selector import name_of

_log = log.get_logger()

_PREFIX = "backupd_drill_"
_NAMED_AT_MOST = 10

# What pg_restore says (in English: LC_ALL=C) of a statement that failed, and what in it is the server's fault.
_STATEMENT = re.compile(r"could not execute query|COPY failed for table|could not (create|open|write to) large object")
_SERVERS_FAULT = re.compile(
    "FATAL: |PANIC: |server closed the connection|no connection to the server|connection to server"
    "|terminating connection|canceling statement|out of (shared )?memory|could not resize shared memory"
    '|shared_preload_libraries|extension "|could not access file|permission denied|must be (owner|superuser|able)'
    '|tablespace ".*" does not exist|language ".*" does not exist|could not create locale'
    '|for encoding ".*" does not exist'
)
_NO_SCHEMA = re.compile("(function|operator|relation|type) .*does not exist")
_SAID = re.compile("ERROR:  ?([^/]*)")


_SCHEMA_HINT = (
    "Something that an index, a constraint or a view calls names others without their schema, and pg_restore has an"
    " empty search_path: ALTER FUNCTION ... SET search_path on the source, or write the schema, and back up again."
)


@dataclass(frozen=True)
class Job:
    """Where and how: `maintenance` is the database to connect to for making others; the rest is `restore.Job`'s."""

    maintenance: str
    jobs: int = 2
    scratch: Path | None = None
    scratch_limit_bytes: int | None = None


@dataclass(frozen=True)
class Drilled:
    """A drill that did not fail: the backup with its note (`noted`, where the store let it be written), what was found.

    `seconds` is what the restore took, without the comparison of content, which took `content_seconds`. `left` is the
    copy that could not be dropped.
    """

    backup: Backup
    level: str
    seconds: float
    content_seconds: float
    server_version: str
    comparisons: tuple[comparison.Comparison, ...]
    content: content.Content
    left: str | None
    noted: bool


def next_undrilled(backups: Sequence[Backup]) -> Backup | None:
    """The backup whose drill is due: by turns, the newest of each database, if it was not drilled yet.

    Databases that never had a drill come first, then those whose last one is longest ago. Filtered and suspect backups
    are passed over, and those that were rekeyed. None where every newest one was drilled.
    """
    rekeyed = superseded(backups)
    newest: dict[tuple[str, str], Backup] = {}
    drilled_at: dict[tuple[str, str], datetime] = {}
    for backup in sorted(backups, key=lambda backup: (backup.manifest.started_at, backup.id)):
        label = backup.source.server, backup.source.database
        note = backup.note("drilled")
        if note is not None:
            drilled_at[label] = max(note.at, drilled_at.get(label, note.at))
        if backup.manifest.filter is None and backup.suspect is None and backup.id not in rekeyed:
            newest[label] = backup
    due = {label: backup for label, backup in newest.items() if backup.note("drilled") is None}
    never = datetime.min.replace(tzinfo=UTC)
    return min(due.items(), key=lambda pair: (drilled_at.get(pair[0], never), pair[0]), default=(None, None))[1]


@contextlib.contextmanager
def own_server(archive_major: int, folder: Path | None, environment: Mapping[str, str]) -> Iterator[Server]:
    """A server of our own, of the archive's major or the next newer one that is installed; gone after the block.

    It listens on a private socket only. Raises UsageError where no such server is installed.
    """
    installs = [each for each in throwaway.find_servers(environment.get("PATH")) if each.major >= archive_major]
    if not installs:
        raise UsageError(
            f"no server of PostgreSQL {archive_major} or newer is installed here, and BACKUPD_DRILL__URL is not set",
            hint="Set BACKUPD_DRILL__URL to a server that nobody needs.",
        )
    # /dev/shm, where parallel index builds meet by default, has 64 MB in a container
    options = {"dynamic_shared_memory_type": "mmap"}
    with throwaway.start(installs[0], folder or Path(tempfile.gettempdir()), options=options) as running:
        keywords = {"host": str(running.socket_directory), "hostaddr": "", "port": str(running.port)}
        yield Server({**keywords, "user": running.superuser}, environment=environment)


def drill(
    access: postgres.Access,
    catalog: Catalog,
    clients: list[Client],
    backup: Backup,
    job: Job,
    clock: Callable[[], datetime],
    progress: Progress,
) -> Drilled:
    """Restores, compares, drops what was restored, and notes what was found.

    Raises VerificationFailed, after noting that, where the backup does not restore or comes back as another one;
    anything else that stops it says nothing about the backup, and is not noted.
    """
    require_trusted(backup)
    try:
        with _server_held(access, backup, job):
            found = _prove(access, catalog, clients, backup, job, progress)
    except (VerificationFailed, NotFound, RestoreFailed) as exc:
        if isinstance(exc, RestoreFailed) and not _is_the_backups_fault(exc):
            raise
        failure = _failure(backup, exc)
        said = {"error": failure.message, "detail": failure.detail}
        if backup.manifest.recipients:  # it may name tables
            said = {"error": "what it found is in the drill's log, for the backup is encrypted"}
        try:
            catalog.note(backup, "drilled", False, {**said, "server_version": access.version}, clock())
        except BackupdError as not_written:  # the failure matters more
            _warn_of_missing_note(backup, not_written)
        raise failure from exc
    try:
        noted = catalog.note(backup, "drilled", True, _facts(backup, found), clock())
    except AccessRefused as exc:  # credentials that may only read are a choice
        _warn_of_missing_note(backup, exc)
        return found
    return replace(found, backup=noted, noted=True)


def _warn_of_missing_note(backup: Backup, exc: BackupdError) -> None:
    action = "let the drill's credentials write to the store; until then nothing but this log knows of the drill"
    _log.warning("drill.unnoted", backup=str(name_of(backup)), message=exc.message, action=action)


@contextlib.contextmanager
def _server_held(access: postgres.Access, backup: Backup, job: Job) -> Iterator[None]:
    """The server for this drill alone, without remains of others. Raises TargetRefused, VersionMismatch or Locked."""
    archive_major = backup.manifest.server_major
    if access.major < archive_major:
        raise VersionMismatch(
            f"the drill's server is PostgreSQL {access.major}, and the backup is of {archive_major}",
            detail="That it does not restore into an older one would say nothing about it.",
            hint="Set BACKUPD_DRILL__URL to a server of the same major or a newer one.",
        )
    with postgres.connect(access, job.maintenance) as session:
        if facts.system_identifier(session) in {backup.source.system_identifier, _first_identity(backup)}:
            raise TargetRefused(
                f"the drill's server is the cluster that the backup is of: {session.place}",
                detail="A drill costs the server what a restore does, and runs the backup's own functions.",
                hint="Set BACKUPD_DRILL__URL to a server that nobody needs.",
            )
        if access.standby:
            raise TargetRefused(f"the drill's server is a standby: {session.place}", hint="Name a primary.")
        if not locks.acquired(session, locks.DRILL):
            raise Locked(f"another drill uses the server: {session.place}", hint="Run this one when that has ended.")
        query = "SELECT datname FROM pg_database WHERE starts_with(datname, %s)"
        for (name,) in session.rows(query, [_PREFIX]):
            if target.drop(access, job.maintenance, name):
                _log.info("drill.swept", database=name)
        yield


def _first_identity(backup: Backup) -> str:
    return backup.manifest.source.system_identifier


def _prove(
    access: postgres.Access,
    catalog: Catalog,
    clients: list[Client],
    backup: Backup,
    job: Job,
    progress: Progress,
) -> Drilled:
    """The restored database's rows and content are those of the backup; else VerificationFailed."""
    stored, database = catalog.archive(backup), f"{_PREFIX}{backup.id.lower()}"
    index = archive.read_index(stored)
    seen: list[tuple[content.Content, float]] = []

    def compare_content() -> None:
        began = time.monotonic()
        found = content.compare(access, database, content.Dump(stored, index), job.jobs, progress)
        seen.append((found, time.monotonic() - began))

    into = restore.Job(
        database,
        create=True,
        maintenance=job.maintenance,
        jobs=job.jobs,
        scratch=job.scratch,
        scratch_limit_bytes=job.scratch_limit_bytes,
        also_compare=compare_content,
    )
    with _roles(access, job.maintenance, index.contract):
        began = time.monotonic()
        restored = restore.restore(access, catalog, clients, backup, into, progress)
        seconds = time.monotonic() - began
        gone = target.drop(access, job.maintenance, database)
    [(found, content_seconds)] = seen
    _require_no_difference(backup, found)
    return Drilled(
        backup=backup,
        level="identical" if found.identical else "restored",
        seconds=round(seconds - content_seconds, 3),
        content_seconds=round(content_seconds, 3),
        server_version=access.version,
        comparisons=restored.comparisons,
        content=found,
        left=None if gone else database,
        noted=False,
    )


@contextlib.contextmanager
def _roles(access: postgres.Access, maintenance: str, contract: Contract) -> Iterator[None]:
    """The roles that the dump refers to, which may not log in; those made here are dropped after the block."""
    like = contract.database
    of_settings = {each.role for each in like.settings if each.role}
    named = {*contract.roles, like.owner, *of_settings, *(each.role for each in like.grants or () if each.role)}
    made: list[str] = []
    try:
        with postgres.connect(access, maintenance) as session:
            # from 16 on, who creates a role without being a superuser may else not give it anything
            query = (
                "SELECT set_config(name, 'set, inherit', false) FROM pg_settings WHERE name = 'createrole_self_grant'"
            )
            session.rows(query)
            for name in facts.missing_roles(session, named):
                if not name.startswith("pg_"):  # PostgreSQL's own, of a newer major
                    session.execute("CREATE ROLE {}", [name])
                    made.append(name)
        yield
    finally:
        if made:
            _drop_roles(access, maintenance, made)


def _drop_roles(access: postgres.Access, maintenance: str, names: Sequence[str]) -> None:
    try:
        with postgres.connect(access, maintenance) as session:
            for name in names:
                session.execute("DROP ROLE {}", [name])
    except BackupdError as exc:
        _log.warning("drill.roles_left", roles=list(names), message=exc.message, action="drop them by hand")


def _require_no_difference(backup: Backup, found: content.Content) -> None:
    different = found.different
    if different:
        named = ", ".join(f"{each.name} ({each.why})" for each in different[:_NAMED_AT_MOST])
        more = f" and {len(different) - _NAMED_AT_MOST} more" if len(different) > _NAMED_AT_MOST else ""
        message = f"backup {backup.id} comes back with other content in {len(different)} tables or large objects"
        raise VerificationFailed(message, detail=f"{named}{more}.")


def _is_the_backups_fault(exc: RestoreFailed) -> bool:
    """Whether a statement of the dump failed, and not for what the server is or lacks."""
    said = exc.detail or ""
    return _STATEMENT.search(said) is not None and _SERVERS_FAULT.search(said) is None


def _failure(backup: Backup, exc: BackupdError) -> VerificationFailed:
    """What the drill found, in its own words."""
    look = f"`backupd restore {backup.id} --as NAME --keep` keeps what comes back, to look at it."
    if isinstance(exc, NotFound):
        return VerificationFailed(f"archive of backup {backup.id} is missing", hint=archive.OTHER_HINT)
    if not isinstance(exc, RestoreFailed):
        return VerificationFailed(exc.message, detail=exc.detail, hint=look)
    said = _SAID.search(exc.detail or "")
    message = (
        f"backup {backup.id} does not restore: {said[1].strip()}" if said else f"backup {backup.id} does not restore"
    )
    hint = _SCHEMA_HINT if _NO_SCHEMA.search(message) else look
    return VerificationFailed(message, detail=exc.detail, hint=hint)


def _facts(backup: Backup, found: Drilled) -> Mapping[str, str | int | float]:
    """What the note says."""
    totals, counts = backup.manifest.totals, found.content.counts
    return {
        "level": found.level,
        "seconds": found.seconds,
        "content_seconds": found.content_seconds,
        "rows": totals.rows,
        "raw_bytes": totals.raw_bytes,
        "tables": totals.tables,
        "identical": counts["identical"],
        "other_order": counts["other order"],
        "contained": counts["contained"],
        "not_comparable": counts["not comparable"],
        "large_objects": totals.large_objects,
        "server_version": found.server_version,
    }
