"""Takes one backup: the line of the design's section 4, top to bottom.

Lock, snapshot, dump, rewrite check, members as they finish, index, archive, manifest. Nothing is listed before the
manifest is written, and that is written only when pg_dump ended with 0, every byte was decoded, every table was
accounted for and the lock was still ours. Whatever raises on the way leaves the store as it was, or an orphan that
the next run sweeps.
"""

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from backupd import (
    __version__,
    archive,
    contract,
    decode,
    dump,
    facts,
    hold,
    locks,
    log,
    postgres,
    predecessors,
    readme,
    scratch,
    sqlstate,
    threads,
    toc,
)
from backupd.catalog import Catalog, Listing, new_id
from backupd.clients import Client, compression_for, may_share_snapshot
from backupd.errors import BackupdError, DatabaseError, LocksExhausted, ReplicaConflict, VerificationFailed
from backupd.layout import archive_key
from backupd.manifest import Backup, Contract, Filter, Manifest, Source, Totals, format_of
from backupd.progress import Progress
from backupd.selector import Label, Name, name_of

_log = log.get_logger()

ATTEMPTS = 3
"""How often a dump is begun again because a table was rewritten between its snapshot and its locks."""

CONFLICT_ATTEMPTS = 3
"""How often a dump of a standby is begun, each time in a new snapshot, while replay cancels it."""

COUNTED_SECONDS = 2.0
"""How long the server may take to count a conflict."""

UPLOADS_IDLE = timedelta(days=1)
"""How long an open upload or a temporary file must have been without news before it is swept."""

WARNINGS_KEPT = 20

ASIDE_BYTES = 4 << 20
"""From this size a member is decoded in a thread of its own, beside hashing and writing: the largest often comes last,
when pg_dump has left the processors to us."""

ASIDE_CHUNKS = 8
"""How many chunks may wait for that thread."""


@dataclass(frozen=True)
class Job:
    """What to back up and how; `server` is the label, `scratch` a folder or None for the system's temporary one.

    With `recipients` it is encrypted to them, and neither manifest nor keys name what is in it; `role_passwords` also
    records by what the server checks the passwords of its roles, and needs them. A backup that began since
    `unless_since` is as good as a new one: two schedulers of one database then take one.
    """

    server: str
    database: str
    options: dump.Options
    scratch: Path | None = None
    scratch_limit_bytes: int | None = None
    wait_seconds: float = 0.0
    recipients: tuple[str, ...] = ()
    role_passwords: bool = False
    unless_since: datetime | None = None


@dataclass(frozen=True)
class _Run:
    """One run of pg_dump on its way: who, when, with what.

    `earlier` is what the store had of the database when the run began, None where that could not be read.
    """

    job: Job
    access: postgres.Access
    client: Client
    id: str
    started_at: datetime
    lock: locks.Lock
    progress: Progress
    earlier: Listing | None


def take(
    access: postgres.Access,
    catalog: Catalog,
    client: Client,
    job: Job,
    clock: Callable[[], datetime],
    progress: Progress,
) -> Backup:
    """Takes a backup of one database and returns it, listed. Raises whatever stopped it; then nothing is listed.

    Returns an earlier one where that is as good (`Job.unless_since`).
    """
    catalog.require_signer()
    started_at = clock()
    backup_id = new_id(started_at, secrets.token_hex(4))
    with (
        locks.hold_source(access, job.database, job.wait_seconds) as lock,
        scratch.open_scratch(job.scratch, backup_id) as folder,
    ):
        if (before := _taken_before(catalog, job, clock())) is not None:
            return before
        _sweep(catalog, job, started_at)
        if not may_share_snapshot(access.standby, access.version_num):
            job = replace(job, options=replace(job.options, jobs=1))
        earlier = predecessors.read(catalog, job.server, job.database)  # only who has the lock adds to it
        run = _Run(job, access, client, backup_id, started_at, lock, progress, earlier)
        try:
            manifest = _despite_replay(run, catalog, folder, clock)
        except LocksExhausted:
            if job.options.jobs == 1:
                raise
            _log.warning("backup.retried", database=job.database, reason="max_locks_per_transaction", jobs=1)
            single = replace(run, job=replace(job, options=replace(job.options, jobs=1)))
            manifest = _despite_replay(single, catalog, folder, clock)
        lock.check()  # again: predecessors' tables were read meanwhile, and who has it sweeps what has no manifest
        taken = catalog.commit(manifest)
    if taken.suspect is not None:
        action = f"look at the database; `backupd confirm {taken.id}` if it is as it should be"
        _log.warning("backup.suspect", backup=str(name_of(taken)), why=taken.suspect, action=action)
    return taken


def _taken_before(catalog: Catalog, job: Job, now: datetime) -> Backup | None:
    """The newest backup that is as good as a new one. Asked under the lock: nobody takes another meanwhile.

    One that is not trusted, or was found bad since, is not; one that looked wrong as it was taken would look so again.
    """
    if job.unless_since is None:
        return None
    patterns = Filter(job.options.include, job.options.exclude)
    for each in catalog.backups(job.server, job.database).backups:
        in_time = job.unless_since <= each.manifest.started_at <= now
        bad = each.suspect not in (None, each.manifest.suspect)
        if in_time and not bad and (each.manifest.filter or Filter()) == patterns:
            _log.info("backup.taken_before", backup=str(name_of(each)), since=job.unless_since.isoformat())
            return each
    return None


def _sweep(catalog: Catalog, job: Job, now: datetime) -> None:
    for name in catalog.sweep(job.server, job.database, now - UPLOADS_IDLE):
        _log.info("orphan.swept", key=name)


def _despite_replay(run: _Run, catalog: Catalog, folder: Path, clock: Callable[[], datetime]) -> Manifest:
    """Dumps again, in a new snapshot, where replay cancelled a standby's dump; in the end raises ReplicaConflict."""
    if not run.access.standby:
        return _attempts(run, catalog, folder, clock)
    for attempt in range(1, CONFLICT_ATTEMPTS + 1):
        before = facts.conflicts(run.lock.session)
        try:
            return _attempts(run, catalog, folder, clock)
        except BackupdError as exc:
            if not _is_conflict(run, exc, before):
                raise
            conflict = exc
        _log.warning("backup.retried", database=run.job.database, reason="replica_conflict", attempt=attempt)
    raise ReplicaConflict(
        f"the standby cancelled the dump of database {run.job.database} {CONFLICT_ATTEMPTS} times",
        detail=conflict.detail or conflict.message,
        hint=sqlstate.REPLICA_HINT,
    ) from conflict


def _is_conflict(run: _Run, exc: BackupdError, before: int) -> bool:
    """Whether replay is to blame. Messages may be translated, and a lost session says nothing: so it is counted too."""
    if isinstance(exc, ReplicaConflict):
        return True
    deadline = time.monotonic() + COUNTED_SECONDS
    with contextlib.suppress(DatabaseError):  # the server is gone, and `exc` says so
        while isinstance(exc, DatabaseError | VerificationFailed) and time.monotonic() < deadline:
            if facts.conflicts(run.lock.session) > before:
                return True
            time.sleep(0.1)
    return False


def _attempts(run: _Run, catalog: Catalog, folder: Path, clock: Callable[[], datetime]) -> Manifest:
    """Dumps until no table was rewritten between snapshot and locks; the names of those that were are in the error."""
    rewritten: list[str] = []
    for attempt in range(1, ATTEMPTS + 1):
        with _dumping(run, folder / f"attempt{attempt}") as (running, session, release):
            try:
                watch = _watch(run, folder, running, release)
                files = running.files(watch, release)
                toc_bytes = _read(_first(files))
                table_of_contents = toc.read_toc(toc_bytes)
                rewritten = _rewritten(run, session, {table.oid for table in toc.table_data(table_of_contents)})
                if not rewritten:
                    known = facts.read(session, toc.roles(table_of_contents), passwords=run.job.role_passwords)
                    if (patterns := _filter(run)) is not None:
                        parents = facts.parents(session)
                        contract.require_families(table_of_contents, known.relations, parents, patterns)
                    expected_bytes = facts.table_bytes(session)
                    stream = _Stream(running, files, watch, table_of_contents, toc_bytes, known, expected_bytes)
                    return _store(run, catalog, stream, clock)
            except VerificationFailed:
                running.raise_failure()
                raise
        _log.warning("backup.retried", database=run.job.database, reason="rewritten", tables=rewritten, attempt=attempt)
    raise DatabaseError(
        f"tables of database {run.job.database} were rewritten while the dump began, {ATTEMPTS} times",
        detail=f"TRUNCATE, VACUUM FULL, CLUSTER or ALTER TABLE ran on: {', '.join(rewritten)}.",
        hint="Back up at another time, or keep such statements away from the first seconds of a backup.",
    )


@contextlib.contextmanager
def _dumping(run: _Run, folder: Path) -> Iterator[tuple[dump.Dump, postgres.Session, Callable[[], None]]]:
    """A running pg_dump in an exported snapshot, a session in that snapshot, and what ends the snapshot early."""
    shared = may_share_snapshot(run.access.standby, run.access.version_num)
    with contextlib.ExitStack() as exported:
        session, name = exported.enter_context(postgres.snapshot(run.access, run.job.database))
        conninfo = run.access.conninfo(run.job.database)
        encoding = facts.encoding(session)
        argv = dump.dump_argv(run.client, conninfo, folder, run.job.options, name if shared else None, encoding)
        _log.debug("child.started", tool="pg_dump", argv=argv)
        said, nice = partial(log.child_stderr, "pg_dump"), run.job.options.nice
        with dump.start(argv, run.access.environment, folder, said, nice) as running:
            yield running, session, exported.close


def _watch(run: _Run, folder: Path, running: dump.Dump, release: Callable[[], None]) -> hold.Watch:
    job = run.job
    held = hold.Held(job.database, folder, job.scratch_limit_bytes, job.options, running, release)
    return hold.Watch(held, run.lock.session, run.access.environment["PGAPPNAME"], run.progress)


def _first(files: Iterator[Path]) -> Path:
    path = next(files)
    if path.name != toc.NAME:
        raise VerificationFailed(f"pg_dump wrote {path.name} before {toc.NAME}")
    return path


def _read(path: Path) -> bytes:
    with scratch.errors(path):
        return path.read_bytes()


def _rewritten(run: _Run, session: postgres.Session, dumped: Collection[int]) -> list[str]:
    """The dumped tables whose file is not the snapshot's any more, now that pg_dump holds its locks."""
    oids = facts.rewritten(facts.filenodes(session), facts.filenodes(run.lock.session), dumped)
    names = {relation.oid: f"{relation.schema}.{relation.name}" for relation in facts.relations(session)}
    return [names.get(oid, str(oid)) for oid in oids]


@dataclass(frozen=True)
class _Stream:
    """A dump whose locks are held: its files still to come, what looks at it, its table of contents, and the facts.

    `expected_bytes` are about as many as its tables will have as text.
    """

    running: dump.Dump
    files: Iterator[Path]
    watch: hold.Watch
    toc: toc.Toc
    toc_bytes: bytes
    facts: contract.Facts
    expected_bytes: int


def _store(run: _Run, catalog: Catalog, stream: _Stream, clock: Callable[[], datetime]) -> Manifest:
    """Streams the members into an archive and publishes it; the manifest that will make it a backup is returned."""
    stream.watch.dump_is_read = True
    members = len(toc.table_data(stream.toc))
    run.progress.begin("dump", run.job.database, members, stream.expected_bytes or stream.facts.database_bytes)
    properties = stream.facts.properties
    key = archive_key(Name(Label(run.job.server, run.job.database), run.id))
    with catalog.store.create(key, stream.facts.database_bytes) as output:
        writer = archive.Writer(output, run.id, run.started_at, run.job.recipients)
        how_to = readme.text(run.id, run.client.version, properties, run.job.recipients)
        writer.add(archive.README_NAME, how_to.encode())
        decoded, objects = {}, dict[str, int]()
        for path in stream.files:
            if decode.is_data(path.name):
                decoded[path.name] = _add(writer, path, run.progress, stream.watch)
            elif decode.is_object_list(path.name):
                data = _read(path)
                objects |= toc.read_blobs_toc(data)
                writer.add(path.name, data)
            else:
                raise VerificationFailed(f"pg_dump wrote {path.name!r}, which is no member of a dump")
            with scratch.errors(path):
                path.unlink()
        writer.add(toc.NAME, stream.toc_bytes)
        promised = contract.build(stream.toc, stream.facts, decoded, _exemptions(run))
        contract.require_lists(promised, objects.values())
        _warn_of_unlogged(run, promised)
        written = writer.finish(promised)
        run.lock.check()
    manifest = _manifest(run, stream, promised, written, clock())
    if run.earlier is None:
        return manifest
    predecessors.warn_of_clock(manifest, run.earlier.backups)
    return replace(manifest, suspect=predecessors.suspicion(catalog, run.earlier.backups, manifest, promised))


def _warn_of_unlogged(run: _Run, promised: Contract) -> None:
    tables = [f"{each.schema}.{each.name}" for each in promised.skipped if each.reason == contract.UNLOGGED]
    if tables:
        action = "back up the primary where their rows matter"
        _log.warning("tables.unlogged", database=run.job.database, tables=tables, action=action)


def _add(writer: archive.Writer, path: Path, progress: Progress, watch: Callable[[], None]) -> decode.Decoded:
    """Adds one member, decoding it on the way; pg_dump fills the scratch meanwhile, so that is looked at too."""
    decoder = decode.Decoder(path.name)
    with scratch.errors(path), path.open("rb", buffering=0) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        large = size_bytes >= ASIDE_BYTES
        with threads.beside(decoder.feed, ASIDE_CHUNKS) if large else contextlib.nullcontext(decoder.feed) as feed:

            def look(chunk: bytes) -> None:
                feed(chunk)
                watch()

            writer.add_stream(path.name, size_bytes, file, look)
    proven = decoder.finish()
    progress.advance(proven.raw_bytes, 1, proven.rows)
    return proven


def _source(run: _Run, stream: _Stream) -> Source:
    return Source(run.job.server, run.job.database, stream.facts.system_identifier)


def _filter(run: _Run) -> Filter | None:
    options = run.job.options
    return Filter(options.include, options.exclude) if options.include or options.exclude else None


def _exemptions(run: _Run) -> contract.Exemptions:
    return contract.Exemptions(filtered=_filter(run) is not None, standby=run.access.standby)


def _manifest(
    run: _Run, stream: _Stream, promised: Contract, written: archive.Written, finished_at: datetime
) -> Manifest:
    tables, recipients, patterns = promised.tables, run.job.recipients, _filter(run)
    return Manifest(
        format=format_of(recipients),
        id=run.id,
        backupd_version=__version__,
        source=_source(run, stream),
        server_version=run.access.version,
        server_version_num=run.access.version_num,
        client_version=run.client.version,
        standby=run.access.standby,
        started_at=run.started_at,
        finished_at=max(finished_at, run.started_at),  # a clock may be set back meanwhile
        database_bytes=stream.facts.database_bytes,
        archive_bytes=written.archive_bytes,
        archive_sha256=written.archive_sha256,
        index_offset=written.index.offset,
        index_bytes=written.index.size_bytes,
        index_sha256=written.index.sha256,
        totals=Totals(
            tables=len(tables),
            rows=sum(table.rows for table in tables),
            raw_bytes=sum(table.raw_bytes for table in tables) + sum(lo.raw_bytes for lo in promised.large_objects),
            large_objects=len(promised.large_objects),
            members=written.members,
        ),
        compression=compression_for(run.client, run.job.options.compression),
        jobs=run.job.options.jobs,
        filter=patterns.hidden() if recipients and patterns else patterns,
        recipients=recipients,
        warnings=() if recipients else tuple(map(log.scrub, stream.running.warnings[-WARNINGS_KEPT:])),
        recovery=stream.facts.recovery,
    )
