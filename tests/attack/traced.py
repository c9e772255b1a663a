"""Runs of the command line with a fault at one system call, by strace.

strace counts calls a thread (`when=`), so that a point is a call's name and a number within it. Whom it befalls is the
victim: backupd with all its threads, or the pg_dump or pg_restore that it runs, with their workers.

Not LD_PRELOAD, which sees no call that a library makes inside itself, nor an audit hook, which sees Python's alone.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fix_tools import PROJECT, Ended, Site, wait_until

TOUCHING = (
    "%file,%network,%process,read,readv,pread64,write,writev,pwrite64,fsync,fdatasync,close,ftruncate,getdents64,"
    "fadvise64,sendfile,copy_file_range,inotify_add_watch"
)
"""The calls that touch a file, a socket or a child."""

BACKUPD, CLIENT = "backupd", "client"

RUN_SECONDS = 30
_LINE = re.compile(r"(?P<pid>[0-9]+) +(?P<call>[a-z0-9_]+)\(")


@dataclass(frozen=True)
class Tracing:
    """What strace does to a victim: its arguments. Without an injection it only writes down what it sees."""

    victim: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Traced:
    """How a run ended, and what strace wrote."""

    ended: Ended
    log: str

    @property
    def struck(self) -> bool:
        """Whether the fault happened."""
        return "(INJECTED)" in self.log or "+++ killed by SIGKILL +++" in self.log

    @property
    def calls(self) -> dict[str, int]:
        """Of each call how often the thread made it that made it most."""
        found = Counter((match["call"], match["pid"]) for match in _LINE.finditer(self.log))
        return {call: max(found[each] for each in found if each[0] == call) for call, _ in found}


class Launcher:
    """Runs the command line in forks of one process; `folder` is for its files."""

    def __init__(self, folder: Path, requests: IO[str], answers: IO[str]) -> None:
        self._folder = folder
        self._requests, self._answers = requests, answers

    def run(self, site: Site, *arguments: str, tracing: Tracing | None = None, alone: bool = True) -> Traced:
        """One run to its end, with a fault in it or without, and to that of its children, if it is the site's only."""
        log = self._folder / "strace"
        log.write_text("")
        settings = {"ATTACK_STRACE": _words(tracing, log)} if tracing and tracing.victim == CLIENT else {}
        nothing = contextlib.nullcontext()
        by_us = tracing is not None and tracing.victim == BACKUPD
        pid = self._ask(site.environment(**settings), arguments, stopped=by_us)
        with self._answered(pid) as answer, _attached(pid, tracing, log) if tracing and by_us else nothing:
            code = answer()
        if alone:
            wait_until(lambda: not site.children(), "children are left", 20)
        ended = Ended(code, *((self._folder / name).read_text() for name in ("stdout", "stderr")))
        site.assert_no_secret(ended.stdout + ended.stderr)
        return Traced(ended, log.read_text(errors="replace"))

    def _ask(self, environment: dict[str, str], arguments: tuple[str, ...], *, stopped: bool) -> int:
        files = {name: str(self._folder / name) for name in ("stdout", "stderr")}
        request = {"arguments": arguments, "environment": environment, "stopped": stopped, **files}
        self._requests.write(json.dumps(request) + "\n")
        self._requests.flush()
        return int(self._answers.readline())

    @contextlib.contextmanager
    def _answered(self, pid: int) -> Iterator[Callable[[], int]]:
        """What waits for the exit code; a run that hangs is ended, and so is one for which nobody has waited."""
        codes: list[int] = []
        hung = threading.Event()

        def answer() -> int:
            codes.append(int(self._answers.readline()))
            assert not hung.is_set(), f"backupd did not end within {RUN_SECONDS} s"
            return codes[0]

        def end() -> None:
            hung.set()
            os.kill(pid, signal.SIGKILL)

        alarm = threading.Timer(RUN_SECONDS, end)
        alarm.start()
        try:
            yield answer
        finally:
            alarm.cancel()
            if not codes:
                os.kill(pid, signal.SIGKILL)
                self._answers.readline()


@contextlib.contextmanager
def launcher(folder: Path) -> Iterator[Launcher]:
    """A launcher, for which `folder` is made."""
    folder.mkdir()
    argv = [sys.executable, "-m", "attack.launcher"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{PROJECT}{os.pathsep}{PROJECT / 'tests'}"}
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, cwd=PROJECT, env=environment, text=True, stdin=pipe, stdout=pipe) as popen:
        assert popen.stdin
        assert popen.stdout
        yield Launcher(folder, popen.stdin, popen.stdout)


def wrapped_clients(folder: Path, bin_directory: Path) -> Path:
    """Clients that run under strace where the environment asks for it and they do their proper work."""
    folder.mkdir()
    for name in ("pg_dump", "pg_restore"):
        real = shlex.quote(str(bin_directory / name))
        script = f"""#!/bin/sh
case "$ATTACK_STRACE $* " in
    " "*) ;;
    *" --format=directory "*) eval "exec strace -DDD $ATTACK_STRACE {real} \\"\\$@\\"" ;;
esac
exec {real} "$@"
"""
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    return folder


def _words(tracing: Tracing, log: Path) -> str:
    return shlex.join(["-f", "-qq", "-e", "signal=KILL", "-o", str(log), *tracing.arguments])


@contextlib.contextmanager
def _attached(pid: int, tracing: Tracing, log: Path) -> Iterator[None]:
    """strace holds the stopped process, which then goes on; children are let go when they become other programs."""
    status = Path(f"/proc/{pid}/status")
    wait_until(lambda: "State:\tT" in status.read_text(), "the run does not wait")
    argv = ["strace", "-b", "execve", "-p", str(pid), *shlex.split(_words(tracing, log))]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as strace:
        wait_until(lambda: f"TracerPid:\t{strace.pid}\n" in status.read_text(), "strace does not attach")
        os.kill(pid, signal.SIGCONT)
        yield
