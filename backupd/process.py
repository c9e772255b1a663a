"""Children: argument lists, their process group, what they say, and their certain end. The only user of subprocess.

A child runs in a process group of its own and is ended with it: `kill -9` of a parallel pg_dump leaves its workers
running, and what they go on writing can even decode. So leaving the `with` kills the group while the leader, ended or
not, still holds the group's id (it is looked at with WNOWAIT and reaped last), and then reaps every member: as PID 1
they are ours anyway, elsewhere PR_SET_CHILD_SUBREAPER makes them so. When backupd itself is killed, the kernel sends
SIGTERM to the leader (PR_SET_PDEATHSIG), upon which pg_dump and pg_restore end their workers. The kernel ties that
signal to the *thread* that started the child: start children from a thread that outlives them.

Not asyncio's subprocesses and not Popen alone: neither knows of groups. No shell, ever.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from backupd import signals, threads
from backupd.errors import UsageError

TAIL_LINES = 25
"""How many of a child's last lines on stderr an error carries."""

GRACE_SECONDS = 10.0
"""How long a child has after SIGTERM before SIGKILL; pg_dump needs a fraction of a second."""

LINE_LIMIT_BYTES = 1024
"""How much of one line on stderr is kept, its beginning: pg_dump repeats statements that name a thousand tables."""

_LOOK_SECONDS = 0.02
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Finished:
    """How a child ended: exit status (negative: the signal that ended it), stdout, and its last lines on stderr."""

    status: int
    stdout: str
    stderr: str


class Child:
    """A running child, the leader of its process group."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.pid = popen.pid
        self._popen = popen
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._reader: threading.Thread | None = None

    def listen(self, on_line: Callable[[str], None] | None) -> None:
        """Begins to read stderr, as long as it is open. Raises UsageError where the system gives no thread."""
        self._reader = threads.start(self._read_stderr, self._popen.stderr, on_line)

    def poll(self) -> int | None:
        """The exit status (negative: a signal's number), or None while the child runs."""
        if self._popen.returncode is not None:
            return self._popen.returncode
        try:
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # another thread has just reaped it
            return self._popen.wait()
        return None if ended is None else _status(ended)

    def wait(self, timeout_seconds: float | None = None) -> int | None:
        """As `poll`, but waits for the end, at most `timeout_seconds`."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while (status := self.poll()) is None and (deadline is None or time.monotonic() < deadline):
            time.sleep(_LOOK_SECONDS)
        return status

    def stderr(self) -> str:
        """The last lines that the child wrote to stderr; all of them once it has ended."""
        if self.poll() is not None:
            self._wait_for_reader()
        return "\n".join(self._tail)

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """Sends a signal to the leader alone: SIGINT, unless it understands another better (postgres: SIGQUIT)."""
        if self._popen.returncode is None:  # not reaped yet: the pid is still ours
            os.kill(self.pid, number)

    def end(self) -> None:
        """Ends the whole group: SIGTERM, a grace, SIGKILL; then reaps every member. Safe to call again."""
        if self._popen.returncode is not None:
            return
        if self.poll() is None:
            self._signal_group(signal.SIGTERM)
            self.wait(GRACE_SECONDS)
        self._signal_group(signal.SIGKILL)
        self._popen.wait()
        self._wait_for_reader()
        _reap_group(self.pid)

    def _wait_for_reader(self) -> None:
        if self._reader is not None:
            self._reader.join(timeout=1.0)  # a grandchild that lives on may hold the pipe open
        elif self._popen.stderr is not None:
            self._popen.stderr.close()

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _read_stderr(self, pipe: IO[bytes], on_line: Callable[[str], None] | None) -> None:
        with pipe:
            for line in lines(pipe):
                self._tail.append(line)
                if on_line is not None:
                    on_line(line)


def lines(pipe: IO[bytes]) -> Iterator[str]:
    """The lines as text, of a long one the beginning and an ellipsis.

    It ends where a word does: of a password that was cut nobody could tell any more that it is one.
    """
    while begun := pipe.readline(LINE_LIMIT_BYTES):
        read, cut = begun, False
        while len(read) == LINE_LIMIT_BYTES and not read.endswith(b"\n"):
            read, cut = pipe.readline(LINE_LIMIT_BYTES), True
        kept = begun.rpartition(b" ")[0] if cut else begun
        yield kept.decode("utf-8", "replace").rstrip() + ("…" if cut else "")


@contextlib.contextmanager
@signals.whole
def start(
    argv: Sequence[str],
    environment: Mapping[str, str],
    *,
    directory: Path | None = None,
    uid: int | None = None,
    nice: int = 0,
    on_line: Callable[[str], None] | None = None,
) -> Iterator[Child]:
    """Starts a child; at the end of the block its whole process group is gone, however the block ends.

    `on_line` gets each line of stderr, in a thread of its own. `uid` is the user (and group) to run as, `nice` what is
    added to our own niceness. stdout is thrown away. Raises UsageError when the program cannot be started.
    """
    popen = _spawn(argv, environment, directory, uid, subprocess.DEVNULL, nice)
    child = Child(Path(argv[0]).name, popen)
    try:
        child.listen(on_line)
        yield child
    finally:
        child.end()


def run(
    argv: Sequence[str],
    environment: Mapping[str, str],
    *,
    uid: int | None = None,
    directory: Path | None = None,
    timeout_seconds: float = 60.0,
) -> Finished:
    """Runs a short child to its end. Raises UsageError when it cannot be started or takes too long."""
    popen = _spawn(argv, environment, directory, uid, subprocess.PIPE)
    try:
        stdout, stderr = popen.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        message = f"{Path(argv[0]).name} did not end within {timeout_seconds:.0f} seconds"
        raise UsageError(message) from None
    except OSError as exc:
        raise UsageError(f"could not read what {Path(argv[0]).name} says", detail=f"{exc.strerror}.") from exc
    finally:
        if popen.returncode is None:  # and an interrupted communicate() cannot be called again
            _abandon(popen)
    return Finished(popen.returncode, stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace"))


def find_program(name: str, path: str | None = None) -> str | None:
    """Where PATH (or `path`, in its form) has that program."""
    return shutil.which(name, path=path)


@signals.whole
def _spawn(
    argv: Sequence[str],
    environment: Mapping[str, str],
    directory: Path | None,
    uid: int | None,
    stdout: int,
    nice: int = 0,
) -> subprocess.Popen[bytes]:
    if _libc is not None:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        return subprocess.Popen(
            list(argv),
            env=dict(environment),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            process_group=0,
            user=uid,
            group=uid,
            extra_groups=None if uid is None else [],
            preexec_fn=partial(_begin, os.getpid(), nice),
        )
    except (OSError, ValueError, subprocess.SubprocessError) as exc:
        message = f"could not start {argv[0]}"
        raise UsageError(message, detail=f"{exc}.", hint="BACKUPD_DUMP__CLIENTS names folders of programs.") from exc


def _begin(parent: int, nice: int) -> None:
    """What the child does first: it dies with its parent, and is as nice as it was asked to be."""
    os.nice(nice)
    if _libc is None:
        return
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died between fork and prctl
        os.kill(os.getpid(), signal.SIGKILL)


def _abandon(popen: subprocess.Popen[bytes]) -> None:
    """Ends a child without a method of Popen's that waits: interrupted in one, it may have kept its lock for ever."""
    with contextlib.suppress(ProcessLookupError):  # interrupted between the reaping and its being noted
        os.killpg(popen.pid, signal.SIGKILL)
    _reap_group(popen.pid)
    popen.returncode = -signal.SIGKILL
    for pipe in filter(None, (popen.stdout, popen.stderr)):
        pipe.close()


def _status(ended: "os.waitid_result") -> int:
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def _reap_group(group: int) -> None:
    """Waits for the members of a killed group that became our children when their leader died."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-group, 0)
