"""Runs command lines of backupd in children of a small process that has imported it once: thirty a second, measured.

As a program it is that process: jobs come as lines of JSON on stdin, what became of each goes to stdout. Each child has
a terminal of its own for stdout and stderr, as an operator would, and no more memory than `ADDRESS_SPACE_BYTES`, so
that a bomb ends the child and not the machine.
"""

import base64
import contextlib
import json
import os
import pty
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ADDRESS_SPACE_BYTES = 3 << 30
"""Of which most is never touched: glibc reserves 64 MiB for each thread."""

PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Ended:
    """How one command line ended: the exit code (-9: it was too slow), what was on the terminal, its largest memory."""

    arguments: Sequence[str]
    code: int
    terminal: str
    memory_bytes: int
    seconds: float


class Arena:
    """The process that forks."""

    def __init__(self, stdin: IO[str], stdout: IO[str]) -> None:
        self._stdin, self._stdout = stdin, stdout

    def run(self, arguments: Sequence[str], environment: Mapping[str, str]) -> Ended:
        """Runs `backupd ARGUMENTS` in exactly that environment."""
        print(
            json.dumps({"arguments": list(arguments), "environment": dict(environment)}), file=self._stdin, flush=True
        )
        answer = json.loads(self._stdout.readline())
        terminal = base64.b64decode(answer.pop("terminal")).decode("utf-8", "surrogateescape")
        return Ended(arguments, terminal=terminal, **answer)


@contextlib.contextmanager
def opened() -> Iterator[Arena]:
    """An arena, gone after the block."""
    argv = [sys.executable, "-m", "attack.arena"]
    folders = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd="/"
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        yield Arena(child.stdin, child.stdout)
        child.stdin.close()


def _serve() -> None:
    from backupd import archive, cli, copy, postgres, restore, verify  # noqa: F401  # once, for all children

    for line in sys.stdin:
        job = json.loads(line)
        began = time.monotonic()
        child, terminal = pty.fork()
        if child == 0:
            _act(job["arguments"], job["environment"])
        text = _drain(child, terminal, began + PATIENCE_SECONDS)
        _, status, usage = os.wait4(child, 0)
        answer = {
            "code": os.waitstatus_to_exitcode(status),
            "terminal": base64.b64encode(text).decode(),
            "memory_bytes": usage.ru_maxrss * 1024,
            "seconds": round(time.monotonic() - began, 3),
        }
        print(json.dumps(answer), flush=True)


def _act(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """The child: never returns."""
    from backupd import cli

    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
        os.environ.clear()
        os.environ.update(environment)
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115
        sys.stdout = os.fdopen(1, "w", encoding="utf-8")
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1)
        code = cli.run(arguments)
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001  # as the interpreter shows it
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


def _drain(child: int, terminal: int, deadline: float) -> bytes:
    """All that the child writes; it is ended at the deadline."""
    found = bytearray()
    with contextlib.suppress(OSError):  # EIO: the last one that held the terminal is gone
        while True:
            ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                os.kill(child, signal.SIGKILL)
                break
            data = os.read(terminal, 65536)
            if not data:
                break
            found += data
    os.close(terminal)
    return bytes(found)


if __name__ == "__main__":
    _serve()
