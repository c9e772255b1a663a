"""pg_dump and pg_restore at work: with which arguments, which files are finished, how it ended.

The dump is a folder of members (`-Fd`): the only format that is written by several jobs and restored by several. A
file is finished when pg_dump closes it (`--no-sync`, or it would reopen every one), so inotify's CLOSE_WRITE hands
members on while others are being written; where there is no inotify they all come after the end. `toc.dat` comes
first and proves only that pg_dump holds its locks; `blobs*.toc` is opened again and again and comes after the end.
"""

import contextlib
import functools
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backupd import log, process, scratch, signals, sqlstate, toc
from backupd.clients import Client, compression_for
from backupd.errors import (
    AccessRefused,
    BackupdError,
    DatabaseError,
    FilterRefused,
    LocksExhausted,
    NoRoom,
    ReplicaConflict,
    RestoreFailed,
)

if TYPE_CHECKING:
    from inotify_simple import INotify

_log = log.get_logger()

_LOOK_MILLISECONDS = 50
_DYING_SECONDS = 5.0  # a leader notices at once that a worker died, and ends the others


@dataclass(frozen=True)
class Options:
    """How to dump: at most `jobs` connections, `zstd:N` or `gzip:N`, patterns, seconds to wait for a lock.

    A snapshot may be held for `max_seconds`; after `vacuum_age` transactions a warning says that it holds VACUUM back.
    """

    jobs: int = 2
    compression: str = "zstd:1"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    lock_wait_seconds: float = 60.0
    max_seconds: int | None = None
    vacuum_age: int = 10_000_000
    nice: int = 0


def dump_argv(
    client: Client, conninfo: str, folder: Path, options: Options, snapshot: str | None, encoding: str
) -> list[str]:
    """pg_dump's command line, in the database's own encoding. Secrets never are on it: see `postgres.Access`."""
    method, _, level = compression_for(client, options.compression).partition(":")
    compress = f"--compress={method}:{level}" if client.major >= 16 else f"--compress={level}"
    return [
        client.program("pg_dump"),
        f"--dbname={conninfo}",
        "--format=directory",
        f"--file={folder}",
        f"--jobs={options.jobs}",
        compress,
        "--no-sync",
        "--no-password",
        # else that of ALTER DATABASE or ROLE ... SET client_encoding, which may lack characters that are there
        f"--encoding={encoding}",
        f"--lock-wait-timeout={round(options.lock_wait_seconds * 1000)}",
        *([f"--snapshot={snapshot}"] if snapshot is not None else []),
        *_filter(client, options),
    ]


def _filter(client: Client, options: Options) -> Iterator[str]:
    """`name.*` is a schema, but beside an included table it is its tables: --table makes pg_dump ignore schemas.

    A table comes or stays with its partitions and children where the client can do that; `contract.require_families`
    refuses what other clients, and patterns of schemas, part.
    """
    table = "table-and-children" if client.major >= 16 else "table"
    schemas = all(pattern.endswith(".*") for pattern in options.include)
    for prefix, patterns in (("--", options.include), ("--exclude-", options.exclude)):
        for pattern in patterns:
            is_schema = schemas and pattern.endswith(".*")
            yield f"{prefix}schema={pattern[:-2]}" if is_schema else f"{prefix}{table}={pattern}"
    if options.include:
        yield "--strict-names"


class Dump:
    """A running pg_dump: its finished files, then how it ended."""

    def __init__(self, child: process.Child, folder: Path, closed: "_Closed") -> None:
        self._child = child
        self._folder = folder
        self._closed = closed
        self._seen: set[str] = set()
        self.warnings: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether pg_dump has ended, well or not."""
        return self._child.poll() is not None

    def files(self, on_idle: Callable[[], None], on_end: Callable[[], None]) -> Iterator[Path]:
        """Each file once, as pg_dump finishes it: toc.dat first, blobs*.toc after the end.

        `on_idle` is called between looks, `on_end` as soon as pg_dump has ended. Raises what pg_dump's failure means;
        once the last file was given, it had ended with 0.
        """
        while (status := self._child.poll()) is None:
            yield from self._new(self._closed(_LOOK_MILLISECONDS))
            on_idle()
        self._check_end(status)
        with scratch.errors(self._folder):
            rest = sorted(path.name for path in self._folder.iterdir())
        yield from self._new([name for name in rest if name == toc.NAME], ended=True)
        on_end()  # only now: what toc.dat says is held against the snapshot
        yield from self._new(rest, ended=True)

    def raise_failure(self) -> None:
        """Raises what pg_dump's failure means, where it failed or is just failing: a dying one closes cut files.

        A leader may hang at its end, when it cannot reach the server to cancel its workers' queries.
        """
        status, stderr = self._child.wait(_DYING_SECONDS), self._child.stderr()
        if status or (status is None and "pg_dump: error:" in stderr):
            raise dump_failure(status, stderr)

    def _new(self, names: Sequence[str], *, ended: bool = False) -> Iterator[Path]:
        for name in names:
            if name not in self._seen and (ended or not name.startswith("blobs")):
                self._seen.add(name)
                yield self._folder / name

    def _check_end(self, status: int) -> None:
        stderr = self._child.stderr()
        if status != 0:
            raise dump_failure(status, stderr)
        self.warnings = tuple(line for line in stderr.splitlines() if line.strip())


@contextlib.contextmanager
@signals.whole
def start(
    argv: Sequence[str], environment: Mapping[str, str], folder: Path, on_line: Callable[[str], None], nice: int = 0
) -> Iterator[Dump]:
    """pg_dump into `folder`, which is made here and gone with the block, like whatever is left of the process."""
    with scratch.errors(folder):
        folder.mkdir(mode=0o700)
    try:
        with _watch(folder) as closed, process.start(argv, environment, nice=nice, on_line=on_line) as child:
            yield Dump(child, folder, closed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_Closed = Callable[[int], Sequence[str]]


@contextlib.contextmanager
def _watch(folder: Path) -> Iterator[_Closed]:
    """Yields what waits some milliseconds for names of files that were closed after writing.

    An overflow of the kernel's queue loses names, which then come after the end with the rest; so do all where the
    kernel refuses to watch, whose limits are shared by everything that a node runs.
    """
    if sys.platform != "linux":
        yield _see_nothing
        return
    from inotify_simple import INotify, flags

    with contextlib.ExitStack() as stack:
        try:
            inotify = stack.enter_context(INotify())
            inotify.add_watch(folder, flags.CLOSE_WRITE)
        except OSError as exc:
            action = "raise fs.inotify.max_user_instances and max_user_watches: scratch holds the whole dump until then"
            _log.warning("inotify.refused", message=exc.strerror, action=action)
            closed: _Closed = _see_nothing
        else:
            closed = functools.partial(_read_names, inotify)
        yield closed


def _read_names(inotify: "INotify", milliseconds: int) -> Sequence[str]:
    return [event.name for event in inotify.read(timeout=milliseconds) if event.name]


def _see_nothing(milliseconds: int) -> Sequence[str]:
    time.sleep(milliseconds / 1000)
    return ()


_SAID: Sequence[tuple[str, type[BackupdError], str | None]] = (
    # server messages may be translated; the names of settings in them are not
    (
        "max_locks_per_transaction",
        LocksExhausted,
        "Raise max_locks_per_transaction on the server; `backupd doctor` says to what.",
    ),
    ("max_standby_streaming_delay", ReplicaConflict, sqlstate.REPLICA_HINT),
    ("conflict with recovery", ReplicaConflict, sqlstate.REPLICA_HINT),
    ("hot_standby_feedback", ReplicaConflict, sqlstate.REPLICA_HINT),
    ("permission denied", AccessRefused, "`backupd doctor` lists the tables and sequences that may not be read."),
    ("row-level security", AccessRefused, "Give the role BYPASSRLS: a dump without it would lack rows."),
    ("must be owner", AccessRefused, None),
    ("No space left on device", NoRoom, scratch.HINT),
    ("Disk quota exceeded", NoRoom, scratch.HINT),
    (
        "could not obtain lock on relation",
        LocksExhausted,
        "Run with BACKUPD_DUMP__JOBS=1, which locks each table once.",
    ),
    (
        "statement timeout",
        DatabaseError,
        "DDL holds a table for long; run again later, or raise BACKUPD_DUMP__LOCK_WAIT.",
    ),
    ("no matching", FilterRefused, "BACKUPD_DUMP__INCLUDE and BACKUPD_DUMP__EXCLUDE must match something."),
)


def dump_failure(status: int | None, stderr: str) -> BackupdError:
    """What a pg_dump that did not end with 0 means; without a status it said an error and did not end."""
    ended = "an error" if status is None else f"signal {-status}" if status < 0 else f"status {status}"
    kind, hint = next(
        ((kind, hint) for words, kind, hint in _SAID if words in stderr),
        (DatabaseError, "The detail is what pg_dump said; run `backupd doctor`."),
    )
    return kind(f"pg_dump ended with {ended}", detail=_last_words(stderr), hint=hint)


def _last_words(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return " / ".join(lines[-5:]) or "It said nothing."


@dataclass(frozen=True)
class RestoreOptions:
    """How to restore: by `jobs` connections, all of the dump or the entries that the file `use_list` names.

    Without `owners` neither owners nor grants, which need roles; everything then belongs to `role`, if one is given.
    """

    jobs: int
    use_list: Path | None = None
    owners: bool = True
    role: str | None = None


def restore_argv(client: Client, conninfo: str, folder: Path, options: RestoreOptions) -> list[str]:
    """pg_restore's command line for a dump into an existing, empty database."""
    return [
        client.program("pg_restore"),
        f"--dbname={conninfo}",
        "--format=directory",
        f"--jobs={options.jobs}",
        "--exit-on-error",
        "--no-password",
        *([f"--use-list={options.use_list}"] if options.use_list else []),
        *([] if options.owners else ["--no-owner", "--no-privileges"]),
        *([f"--role={options.role}"] if options.role is not None else []),
        str(folder),
    ]


def restore(
    argv: Sequence[str], environment: Mapping[str, str], on_line: Callable[[str], None], on_idle: Callable[[], None]
) -> None:
    """Runs pg_restore to its end. Raises RestoreFailed, or NoRoom where the target's disk is full."""
    with process.start(argv, environment, on_line=on_line) as child:
        while (status := child.wait(1.0)) is None:
            on_idle()
        stderr = child.stderr()
    if status == 0:
        return
    ended = f"signal {-status}" if status < 0 else f"status {status}"
    kind = NoRoom if "No space left on device" in stderr else RestoreFailed
    hint = "The detail is what pg_restore said; --keep keeps the half-made database to look at."
    raise kind(f"pg_restore ended with {ended}", detail=_last_words(stderr), hint=hint)
