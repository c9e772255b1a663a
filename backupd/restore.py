"""Restores a backup into a new database, or an existing empty one, and believes it only after comparing.

Preflight touches nothing; then members by range into scratch, every sha256 checked; a database that is closed to
others; pg_restore; the contract compared; ANALYZE; only then is it opened. pg_restore gets a folder of regular files
because it takes nothing else any more (postgres.md 1: pipes are refused since November 2026).
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from backupd import archive, dump, log, postgres, roles, scratch, selection, target, toc
from backupd.catalog import Catalog, archive_key
from backupd.errors import RestoreFailed, TargetRefused, UsageError, VerificationFailed, VersionMismatch
from backupd.manifest import Backup, Contract, DatabaseProperties, Index, Manifest, Member
from backupd.progress import Progress
from backupd.selector import name_of

_log = log.get_logger()

SMALL_TABLE_BYTES = 100 * 1024
"""Below this mean size of a table parallel jobs make a restore slower (10,000 tables: 28 s with 1, 59 s with 2)."""

_USE_LIST = "restore.list"


@dataclass(frozen=True)
class Job:
    """Where a restore goes: `create` makes the database, else it exists and is empty.

    `maintenance` is the database from which others are made. `keep` keeps a database that did not prove equal.
    `jobs` is the most that are used. `scratch` is a folder, or None for the system's temporary one, of which
    `scratch_limit_bytes` may be used. `wanted` are the tables and schemas to restore, or None for all. `create_roles`
    makes the roles that are missing. Without `owners` everything belongs to `role`, or to whom we connect as, and
    grants are left out.
    """

    database: str
    create: bool
    maintenance: str = "postgres"
    jobs: int = 2
    keep: bool = False
    scratch: Path | None = None
    scratch_limit_bytes: int | None = None
    wanted: selection.Wanted | None = None
    create_roles: bool = False
    owners: bool = True
    role: str | None = None


@dataclass(frozen=True)
class Restored:
    """What a restore found: each line of the contract, what could not be applied, and how long each stage took.

    Of a part of a backup, also what was left out. `read_bytes` is the size of the archive's members that were read.
    `roles` says of each role that was made what it is and what it lacks.
    """

    database: str
    comparisons: tuple[target.Comparison, ...]
    refused: tuple[str, ...]
    seconds: dict[str, float]
    left_out: tuple[selection.LeftOut, ...] = ()
    read_bytes: int = 0
    roles: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Part:
    """What of a backup is restored: the index cut to it, what was left out, and the files that say so to pg_restore."""

    index: Index
    left_out: tuple[selection.LeftOut, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)

    def write_files(self, folder: Path) -> Path | None:
        """Writes the files beside the members; returns the list for pg_restore, None where it takes the whole dump."""
        for name, data in self.files.items():
            archive.write_file(folder / name, data)
        return folder / _USE_LIST if self.files else None

    def read_bytes(self, manifest: Manifest) -> int:
        """How much of the archive is read for it."""
        members = sum(member.size_bytes for member in _dumped(self.index))
        return manifest.index_bytes + members + len(self.files.get(toc.NAME, b""))


def restore(
    access: postgres.Access, catalog: Catalog, clients: list[dump.Client], backup: Backup, job: Job, progress: Progress
) -> Restored:
    """Restores and compares. Raises what stopped it; the half-made database is then dropped unless it is to be kept."""
    manifest = backup.manifest
    stages = _Stages(progress, job.database)
    client = _choose_client(clients, manifest, access)
    part = _part(catalog, backup, job.wanted)
    index = part.index
    with stages.timed("preflight"):
        _preflight(access, job, manifest, index.contract)
        planned = _plan_roles(access, job, index.contract)
    with scratch.open_scratch(job.scratch, manifest.id) as folder:
        with stages.timed("fetch"):
            fetch(catalog, backup, index, folder, progress, job.scratch_limit_bytes)
            use_list = part.write_files(folder)
        with (
            roles.created(access, _first_database(job), planned, keep=job.keep),
            _database(access, job, index.contract, manifest.id) as refused,
        ):
            jobs = _jobs(index.contract, job.jobs)
            with stages.timed("restore"):
                options = dump.RestoreOptions(jobs, use_list, job.owners, job.role)
                argv = dump.restore_argv(client, access.conninfo(job.database), folder, options)
                _log.debug("child.started", tool="pg_restore", argv=argv)
                with _explained(job, manifest) as on_line:
                    dump.restore(argv, access.environment, on_line, lambda: progress.advance())
            with stages.timed("compare"):
                comparisons = target.compare(access, job.database, index.contract, jobs)
                _require_equal(job, comparisons)
            with stages.timed("analyze"):
                refused += target.analyze(access, job.database, jobs)
    return Restored(
        job.database,
        tuple(comparisons),
        tuple(refused),
        stages.seconds,
        part.left_out,
        part.read_bytes(manifest),
        tuple(map(roles.describe, planned)),
    )


def _part(catalog: Catalog, backup: Backup, wanted: selection.Wanted | None) -> _Part:
    """All of the backup, or what belongs to the wanted tables: then toc.dat is read, and only members that are needed.

    Raises UsageError where a pattern matches nothing.
    """
    key = archive_key(name_of(backup))
    index = archive.read_index(catalog.store, key, backup.manifest)
    if wanted is None:
        return _Part(index)
    data = archive.read_toc(catalog.store, key, index)
    chosen = selection.choose(toc.read_toc(data), wanted)
    contract = selection.cut(index.contract, chosen)
    needed = {table.member for table in contract.tables}
    kept = tuple(member for member in index.members if member.name in needed)
    files = {toc.NAME: data, _USE_LIST: chosen.use_list.encode()}
    return _Part(replace(index, members=kept, contract=contract), chosen.left_out, files)


def fetch(
    catalog: Catalog,
    backup: Backup,
    index: Index,
    folder: Path,
    progress: Progress,
    limit_bytes: int | None = None,
) -> None:
    """The dump's members into a new, empty folder, as pg_restore wants them, every sha256 checked.

    Raises NoRoom, before a byte is read, where the folder or the limit has too little room. When this raises, they are
    gone and the folder with them: half a dump must not be taken for one.
    """
    wanted = _dumped(index)
    needed_bytes = sum(member.size_bytes for member in wanted)
    progress.begin("fetch", backup.id, total_members=len(wanted), total_bytes=needed_bytes)
    try:
        scratch.require_room(folder, needed_bytes, f"backup {backup.id}", limit_bytes)
        archive.fetch(catalog.store, archive_key(name_of(backup)), wanted, folder, progress.advance)
    except BaseException:
        for member in wanted:
            (folder / member.name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it was not empty
            folder.rmdir()
        raise


def _dumped(index: Index) -> list[Member]:
    """The members that pg_dump wrote."""
    return [member for member in index.members if member.name not in (archive.README_NAME, archive.INDEX_NAME)]


def _choose_client(clients: list[dump.Client], manifest: Manifest, access: postgres.Access) -> dump.Client:
    capable = [client for client in clients if client.zstd or not manifest.compression.startswith("zstd")]
    if clients and not capable:
        raise VersionMismatch(
            "no PostgreSQL client that was built with zstd was found, and the archive is compressed with it",
            detail=f"Clients found: {', '.join(client.version for client in clients)}.",
            hint="Name the folder of a pg_restore that was built with zstd in BACKUPD_DUMP__CLIENTS.",
        )
    # of the server's major or newer where there is one; an older pg_restore restores what its own pg_dump wrote
    wanted = access.major if any(client.major >= access.major for client in capable) else 0
    client = dump.choose_for_restore(capable, manifest.client_version, wanted)
    if client.major >= 17 > access.major:
        major = max(access.major, int(manifest.client_version.split(".")[0]))
        client_hint = f"Install postgresql-client-{major}, or name the folder of its programs in BACKUPD_DUMP__CLIENTS."
        raise VersionMismatch(
            f"pg_restore {client.version} does not restore into PostgreSQL {access.major}",
            detail=f"The archive was written by pg_dump {manifest.client_version}. From 17 on pg_restore sets"
            " transaction_timeout, which older servers do not know.",
            hint=client_hint if major < 17 else "Restore into PostgreSQL 17 or newer.",
        )
    return client


def _preflight(access: postgres.Access, job: Job, manifest: Manifest, contract: Contract) -> None:
    """Everything that can be known before anything is written."""
    with contextlib.ExitStack() as stack:
        try:
            session = stack.enter_context(postgres.connect(access, _first_database(job)))
        except UsageError as exc:
            hint = "Give --as, which makes the database." if not job.create else "Set BACKUPD_TARGET__DATABASE."
            raise UsageError(exc.message, detail=exc.detail, hint=hint) from exc
        if access.standby:
            hint = "Name the primary in BACKUPD_TARGET__HOST."
            raise TargetRefused(f"target is a standby: {session.place}", hint=hint)
        if job.create:
            target.require_new(session, job.database)
        else:
            target.require_empty(session)
        if not job.create_roles:
            target.require_roles(session, contract.roles if job.owners else contract.named_roles)
        if job.role is not None:
            roles.require_role(session, job.role)
        if manifest.filter is None:  # a filtered dump holds no extensions
            target.require_extensions(session, contract)


def _first_database(job: Job) -> str:
    """The database to ask and act in before the one to fill is there."""
    return job.maintenance if job.create else job.database


def _plan_roles(access: postgres.Access, job: Job, contract: Contract) -> tuple[roles.Planned, ...]:
    """The roles to make, shown before anything is written."""
    if not job.create_roles:
        return ()
    with postgres.connect(access, _first_database(job)) as session:
        planned = roles.plan(session, contract)
    for each in planned:
        _log.info("role.planned", role=each.role.name, what=roles.describe(each))
    return planned


def _like(access: postgres.Access, job: Job, properties: DatabaseProperties) -> DatabaseProperties:
    """The source's properties; without owners, those that need no role but the one that everything belongs to."""
    if job.owners:
        return properties
    grants = properties.grants and tuple(grant for grant in properties.grants if not grant.role)
    settings = tuple(setting for setting in properties.settings if not setting.role)
    owner = job.role or access.server.keywords["user"]
    return replace(properties, owner=owner, grants=grants, settings=settings)


@contextlib.contextmanager
def _database(access: postgres.Access, job: Job, contract: Contract, backup_id: str) -> Iterator[list[str]]:
    """The database to fill, closed to others; opened after the block, with what was refused in the list it yields.

    When the block raises, a database that was made here is dropped unless it is to be kept; an existing one is left
    closed, and named.
    """
    refused: list[str] = []
    if job.create:
        like = _like(access, job, contract.database)
        with target.new_database(access, job.maintenance, job.database, like, backup_id, keep=job.keep):
            if job.role is not None:  # it could make nothing in a database of somebody else
                with postgres.connect(access, job.maintenance) as session:
                    session.execute("ALTER DATABASE {} OWNER TO {}", [job.database, job.role])
            with _named_if_left(job):
                yield refused
            with postgres.connect(access, job.maintenance) as session:
                refused += target.open_new(session, job.database, like)
    else:
        with postgres.connect(access, job.database) as session:
            before = target.close(session, job.database, backup_id)
        with _named_if_left(job):
            yield refused
        with postgres.connect(access, job.database) as session:
            refused += target.open_existing(session, job.database, before)
    for what in refused:
        _log.warning("target.refused", database=job.database, what=what, action="apply it by hand as a superuser")


@contextlib.contextmanager
def _named_if_left(job: Job) -> Iterator[None]:
    """When the block raises: says that the database is left, unless it will be dropped."""
    try:
        yield
    except BaseException:
        if job.keep or not job.create:
            action = "look at it and drop it" if job.create else "empty it, and restore again"
            _log.warning("target.left_closed", database=job.database, action=action)
        raise


@contextlib.contextmanager
def _explained(job: Job, manifest: Manifest) -> Iterator[Callable[[str], None]]:
    """Takes pg_restore's lines and logs them; gives its failure the errors among them and the hint that helps here.

    The errors, because pg_restore repeats the whole statement after each: its last words rarely say what was wrong.
    """
    errors: list[str] = []

    def on_line(line: str) -> None:
        log.child_stderr("pg_restore", line)
        if " error: " in line:
            errors.append(line.strip())

    try:
        yield on_line
    except RestoreFailed as exc:
        hint = exc.hint if job.create and not job.keep else "The database is closed to others; look at it."
        if any("does not exist" in line for line in errors):
            hint = f"{hint} A function that names others without their schema works in no restore: give it, on the"
            hint += " source, ALTER FUNCTION ... SET search_path."
        if manifest.filter is not None:
            hint = "The backup is filtered: its tables may need schemas, types or functions that are not in it."
            hint += " `backupd fetch` gives a folder for pg_restore into a database that has them."
        elif job.wanted is not None:
            hint = f"{hint} What function bodies name is not recorded in a dump: choose that too, or restore the whole."
        raise RestoreFailed(exc.message, detail=" / ".join(errors[:3]) or exc.detail, hint=hint) from exc


def _jobs(contract: Contract, most: int) -> int:
    """One job where tables are tiny on the average: the server then spends its time on locks and commits."""
    tables = contract.tables
    mean_bytes = sum(table.raw_bytes for table in tables) / max(1, len(tables))
    return most if mean_bytes >= SMALL_TABLE_BYTES else 1


def _require_equal(job: Job, comparisons: list[target.Comparison]) -> None:
    unequal = [comparison for comparison in comparisons if not comparison.equal]
    if unequal:
        lines = ", ".join(
            f"{item.name}: {item.promised} promised, {'none' if item.found is None else item.found} found"
            for item in unequal[:10]
        )
        dropped = "It was dropped; give --keep to keep it and look at it."
        raise VerificationFailed(
            f"restored database {job.database} differs from the backup in {len(unequal)} places",
            detail=f"{lines}.",
            hint=f"{dropped if job.create and not job.keep else 'It is closed to others; look at it.'}"
            " The backup and its source are untouched.",
        )


class _Stages:
    """Names of stages and the seconds each took."""

    def __init__(self, progress: Progress, subject: str) -> None:
        self._progress = progress
        self._subject = subject
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        self._progress.begin(name, self._subject)
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 3)
