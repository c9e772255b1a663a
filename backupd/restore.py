"""Restores a backup into a new database, or an existing empty one, and believes it only after comparing.

Preflight touches nothing; then members by range into scratch, every sha256 checked; a database that is closed to
others; pg_restore; the contract compared; event triggers, which would else write into what is compared; ANALYZE; only
then is it opened, or takes a live database's name.
pg_restore gets a folder of regular files because it takes nothing else any more (postgres.md 1: pipes are refused since
November 2026).
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from backupd import (
    archive,
    comparison,
    dump,
    facts,
    fetch,
    log,
    obstacles,
    postgres,
    preflight,
    roles,
    scratch,
    selection,
    swap,
    target,
    toc,
)
from backupd.catalog import Catalog
from backupd.clients import Client, choose_for_restore
from backupd.errors import AccessRefused, BackupdError, RestoreFailed, UsageError, VerificationFailed
from backupd.estimate import restore_seconds
from backupd.manifest import Backup, Contract, DatabaseProperties, Manifest
from backupd.progress import Progress
from backupd.selector import name_of

_log = log.get_logger()

SMALL_TABLE_BYTES = 100 * 1024
"""Below this mean size of a table parallel jobs make no restore much faster, and one of 10,000 slower (28 s
with 1, 59 s with 2). Two took 1.07 times as long at 37 KiB a table, 0.93 at 73, 0.85 at 221 (BENCHMARKS.md)."""


@dataclass(frozen=True)
class Job:
    """Where a restore goes: `create` makes the database, else it exists and is empty.

    With `live` the one that is made takes the name of that live database in the end, and its own is chosen here;
    `yes_replace` names it where it may not look like the source. `script` runs before anybody may connect.
    `also_compare` looks into it too once its rows proved equal, while nothing of its own runs there yet.
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
    live: str | None = None
    yes_replace: str | None = None
    script: target.Script | None = None
    also_compare: Callable[[], None] | None = None


@dataclass(frozen=True)
class Restored:
    """What a restore found: each line of the contract, what could not be applied, and how long each stage took.

        Of a part of a backup, also what was left out. `read_bytes` is the size of the archive's members that were read.
        `roles` says of each role that was made what it is and what it lacks.
    After a swap also where the live database is `kept`, and for how long nobody could connect.
    """

    database: str
    comparisons: tuple[comparison.Comparison, ...]
    refused: tuple[str, ...]
    seconds: dict[str, float]
    left_out: tuple[selection.LeftOut, ...] = ()
    read_bytes: int = 0
    roles: tuple[str, ...] = ()
    kept: str | None = None
    gap_seconds: float | None = None


def restore(
    access: postgres.Access, catalog: Catalog, clients: list[Client], backup: Backup, job: Job, progress: Progress
) -> Restored:
    """Restores and compares. Raises what stopped it; the half-made database is then dropped unless it is to be kept.

    What stops the swap of names leaves the database that has proved equal, for `--resume`; the live one is as it was.
    """
    live = job.live
    if live is None:
        return _restore(access, catalog, clients, backup, job, progress)
    with swap.hold(access, job.maintenance, live):
        beside = _placed(access, job)
        with _reassuring(live):
            restored = _restore(access, catalog, clients, backup, beside, progress)
        stages = _Stages(progress, live)
        with stages.timed("swap"):
            swapped = swap.replace(access, job.maintenance, live, beside.database, backup.id)
    refused = *restored.refused, *swapped.refused
    log_refused(live, refused)
    return replace(
        restored,
        database=live,
        refused=refused,
        seconds=restored.seconds | stages.seconds,
        kept=swapped.kept,
        gap_seconds=swapped.gap_seconds,
    )


def _restore(
    access: postgres.Access, catalog: Catalog, clients: list[Client], backup: Backup, job: Job, progress: Progress
) -> Restored:
    manifest = backup.manifest
    stages = _Stages(progress, job.database)
    part = fetch.part_of(catalog, backup, job.wanted)
    index = part.index
    with stages.timed("preflight"), _subject(access, catalog, clients, backup, part, job) as subject:
        findings, errors = preflight.examine(subject)
        for found in findings:
            if found.status == "warn":
                _log.warning("preflight.doubt", check=found.name, what=found.text, action=found.hint)
        preflight.raise_first(errors)
        planned = _plan_roles(subject.session, job, index.contract)
    seconds, basis = restore_seconds(backup, ())
    _log.info("preflight.passed", checks=len(findings), about_seconds=seconds, by=basis)
    client = choose_for_restore(clients, manifest, access.major)
    with scratch.open_scratch(job.scratch, manifest.id) as folder:
        with stages.timed("fetch"):
            fetch.members(catalog, backup, index, folder, progress, job.scratch_limit_bytes)
            lists = part.write_files(folder)
        with (
            roles.created(access, _first_database(job), planned, keep=job.keep),
            _database(access, job, index.contract, manifest.id) as refused,
        ):
            options = dump.RestoreOptions(_jobs(index.contract, job.jobs), lists.first, job.owners, job.role)
            conninfo = access.conninfo(job.database)
            with stages.timed("restore"), _growing(access, job, manifest, progress) as on_idle:
                _load(access, job, manifest, dump.restore_argv(client, conninfo, folder, options), on_idle)
            with stages.timed("compare"):
                comparisons = comparison.compare(access, job.database, index.contract, job.jobs)
                _require_equal(job, comparisons)
            if job.also_compare is not None:
                job.also_compare()
            if lists.event_triggers is not None:
                options = replace(options, jobs=1, use_list=lists.event_triggers)
                with stages.timed("event triggers"):
                    _load(access, job, manifest, dump.restore_argv(client, conninfo, folder, options), lambda: None)
            if job.script is not None:
                with stages.timed("sql"):
                    target.run_script(access, job.database, job.script, _like(access, job, index.contract))
            with stages.timed("analyze"):
                refused += target.analyze(access, job.database, job.jobs)
    return Restored(
        job.database,
        tuple(comparisons),
        tuple(refused),
        stages.seconds,
        part.left_out,
        part.read_bytes(manifest),
        tuple(map(roles.describe, planned)),
    )


def plan(
    access: postgres.Access, catalog: Catalog, clients: list[Client], backup: Backup, job: Job
) -> tuple[preflight.Plan, list[BackupdError]]:
    """What `restore` would do and find, and what would stop it; nothing is written."""
    job = _placed(access, job)
    part = fetch.part_of(catalog, backup, job.wanted)
    with _subject(access, catalog, clients, backup, part, job) as subject:
        findings, errors = preflight.examine(subject)
        steps = [*preflight.steps(subject, job.script.name if job.script else None)]
        steps += [f"leave out {each.name}: {each.reason}" for each in part.left_out]
        steps += [
            f"first make {roles.describe(each)}" for each in _plan_roles(subject.session, job, part.index.contract)
        ]
    others = catalog.backups(backup.source.server, backup.source.database).backups
    seconds, basis = restore_seconds(backup, others)
    name = str(name_of(backup))
    return preflight.Plan(name, job.live or job.database, tuple(steps), tuple(findings), seconds, basis), errors


def _placed(access: postgres.Access, job: Job) -> Job:
    """The job with a name for the database to make beside a live one."""
    if job.live is None:
        return job
    with postgres.connect(access, job.maintenance) as session:
        return replace(job, database=swap.beside_name(session, job.live))


def _like(access: postgres.Access, job: Job, contract: Contract) -> DatabaseProperties:
    """What the restored database will be like: the live one, or the source."""
    if job.live is None:
        return _of_source(access, job, contract.database)
    with postgres.connect(access, job.maintenance) as session:
        return facts.properties(session, job.live)


@contextlib.contextmanager
def _reassuring(live: str) -> Iterator[None]:
    """When the block raises: says that the live database was not touched, which is the first thing to know."""
    try:
        yield
    except BackupdError as exc:
        exc.detail = " ".join(filter(None, (exc.detail, f"Database {live} is as it was.")))
        raise


@contextlib.contextmanager
def _subject(
    access: postgres.Access, catalog: Catalog, clients: list[Client], backup: Backup, part: fetch.Part, job: Job
) -> Iterator[preflight.Subject]:
    """What the preflight looks at, with a session in the database that it looks from."""
    with contextlib.ExitStack() as stack:
        try:
            session = stack.enter_context(postgres.connect(access, _first_database(job)))
        except UsageError as exc:
            hint = "Give --as, which makes the database." if not job.create else "Set BACKUPD_TARGET__DATABASE."
            raise UsageError(exc.message, detail=exc.detail, hint=hint) from exc
        stored = catalog.archive(backup)
        yield preflight.Subject(
            access=access,
            session=session,
            backup=backup,
            index=part.index,
            client=lambda: choose_for_restore(clients, backup.manifest, access.major),
            toc=functools.cache(lambda: toc.read_toc(part.toc or archive.read_toc(stored, part.index))),
            database=job.database,
            create=job.create,
            live=job.live,
            yes_replace=job.yes_replace,
            roles=_needed_roles(job, part.index.contract),
            role=job.role,
            scratch=job.scratch,
            scratch_limit_bytes=job.scratch_limit_bytes,
        )


def _needed_roles(job: Job, contract: Contract) -> tuple[str, ...]:
    """The roles that must be there already."""
    if job.create_roles:
        return ()
    return contract.roles if job.owners else contract.named_roles


def _first_database(job: Job) -> str:
    """The database to ask and act in before the one to fill is there."""
    return job.maintenance if job.create else job.database


def _plan_roles(session: postgres.Session, job: Job, contract: Contract) -> tuple[roles.Planned, ...]:
    """The roles to make, shown before anything is written."""
    if not job.create_roles:
        return ()
    planned = roles.plan(session, contract)
    for each in planned:
        _log.info("role.planned", role=each.role.name, what=roles.describe(each))
    return planned


def _of_source(access: postgres.Access, job: Job, properties: DatabaseProperties) -> DatabaseProperties:
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
    if job.live is not None:
        with _beside(access, job, job.live, contract, backup_id), _named_if_left(job):
            yield refused
    elif job.create:
        like = _like(access, job, contract)
        with target.new_database(access, job.maintenance, job.database, like, backup_id, keep=job.keep):
            _give(access, job, like.owner)
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
    log_refused(job.database, refused)


@contextlib.contextmanager
def _beside(access: postgres.Access, job: Job, live: str, contract: Contract, backup_id: str) -> Iterator[None]:
    """The database that is to take the live one's name: in its tablespace, and marked as ready after the block."""
    with postgres.connect(access, job.maintenance) as session:
        beside = target.Beside(live, obstacles.tablespace(session, live))
    with target.new_database(
        access, job.maintenance, job.database, contract.database, backup_id, keep=job.keep, beside=beside
    ):
        _give(access, job, _like(access, job, contract).owner)
        _require_admission(access, job.database)
        yield
        with postgres.connect(access, job.maintenance) as session:
            swap.mark_ready(session, job.database, backup_id, live)


def _give(access: postgres.Access, job: Job, owner: str) -> None:
    """Makes the one who will have the database in the end its owner already where the restore would else be refused.

    That is the role that everything will belong to, which could make nothing in a database of somebody else; and with
    owners, whoever it is whose tables lie in public.
    """
    with postgres.connect(access, job.maintenance) as session:
        if job.role is not None:
            session.execute("ALTER DATABASE {} OWNER TO {}", [job.database, job.role])
        elif job.owners:
            target.give(session, job.database, owner, access.major)


def _require_admission(access: postgres.Access, database: str) -> None:
    """Raises AccessRefused where the server lets us into others, but not into a database of that name."""
    try:
        with postgres.connect(access, database):
            pass
    except AccessRefused as exc:
        hint = "The server's pg_hba.conf must admit the role to databases that a restore makes, named ..._beside_..."
        raise AccessRefused(exc.message, detail=exc.detail, hint=hint) from exc


def log_refused(database: str, refused: Iterable[str]) -> None:
    """Names what the target did not let us apply; the data are there all the same."""
    for what in refused:
        _log.warning("target.refused", database=database, what=what, action="apply it by hand as a superuser")


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


def _load(access: postgres.Access, job: Job, manifest: Manifest, argv: list[str], on_idle: Callable[[], None]) -> None:
    """Runs pg_restore with these arguments."""
    _log.debug("child.started", tool="pg_restore", argv=argv)
    with _explained(job, manifest) as on_line:
        dump.restore(argv, access.environment, on_line, on_idle)


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


def _require_equal(job: Job, comparisons: list[comparison.Comparison]) -> None:
    unequal = [each for each in comparisons if not each.equal]
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


@contextlib.contextmanager
def _growing(access: postgres.Access, job: Job, manifest: Manifest, progress: Progress) -> Iterator[Callable[[], None]]:
    """What is called while the database fills, which says how large it is: at the end about as large as it was."""
    with contextlib.ExitStack() as stack:
        session = None
        if job.wanted is None:
            with contextlib.suppress(BackupdError):  # no connection is left for what is not needed
                session = stack.enter_context(postgres.connect(access, job.database))
                progress.begin("restore", job.database, total_bytes=manifest.database_bytes)

        def look() -> None:
            with contextlib.suppress(BackupdError):  # what is wrong, pg_restore will say
                progress.reach(facts.database_bytes(session) if session else 0)

        yield look


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
