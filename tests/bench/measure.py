"""One run of a command, measured from outside: wall and CPU time, peak memory of its processes, peak scratch.

A thread looks into /proc every 50 ms. CPU time is exact (the kernel's sums over ended children), memory of the first
process too (VmHWM, its own peak); the sum over the tree and the scratch are the largest that were seen.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

LOOK_SECONDS = 0.05
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Sample:
    """What one run took. `first_rss_bytes` is the peak of the command's own process, which for backupd is Python.

    `other_cpu_seconds` is what everything else on the machine took meanwhile, the host's other guests (steal) too:
    where it is not small, the wall time is worth little.
    """

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    server_cpu_seconds: float = 0.0
    s3_cpu_seconds: float = 0.0
    other_cpu_seconds: float = 0.0
    first_rss_bytes: int = 0
    tree_rss_bytes: int = 0
    scratch_bytes: int = 0
    stored_bytes: int = 0
    restored_rows: int = 0


_PEAKS = frozenset({"first_rss_bytes", "tree_rss_bytes", "scratch_bytes", "stored_bytes", "restored_rows"})


def join(samples: Sequence[Sample]) -> Sample:
    """Commands that ran one after the other, as one: times add up, peaks are the highest."""
    joined: dict[str, Any] = {}
    for name in (field.name for field in fields(Sample)):
        joined[name] = (max if name in _PEAKS else sum)(getattr(each, name) for each in samples)
    return Sample(**joined)


def run(
    argv: Sequence[str],
    environment: Mapping[str, str],
    scratch: Path | None = None,
    server_pid: int | None = None,
    s3_pid: int | None = None,
) -> Sample:
    """Runs a command to its end and returns what it took. Exits where it failed."""
    before = _machine_cpu_seconds(), _cpu_seconds(server_pid), _cpu_seconds(s3_pid)
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(argv, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        watch = _Watch(child.pid, scratch)
        watch.start()
        _, status, usage = os.wait4(child.pid, 0)
        wall_seconds = time.monotonic() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        watch.stop()
        if child.returncode != 0:
            output.seek(0)
            sys.exit(f"{' '.join(argv)}\nended with {child.returncode}\n{output.read()}")
    cpu_seconds = usage.ru_utime + usage.ru_stime
    after = _machine_cpu_seconds(), _cpu_seconds(server_pid), _cpu_seconds(s3_pid)
    machine, server, s3 = (later - earlier for earlier, later in zip(before, after, strict=True))
    return Sample(
        wall_seconds=wall_seconds,
        cpu_seconds=cpu_seconds,
        server_cpu_seconds=server,
        s3_cpu_seconds=s3,
        other_cpu_seconds=max(0.0, machine - cpu_seconds - server - s3),
        first_rss_bytes=watch.first_rss_bytes,
        tree_rss_bytes=watch.tree_rss_bytes,
        scratch_bytes=watch.scratch_bytes,
    )


def file_bytes(folder: Path) -> int:
    """The bytes that the files below a folder hold."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class _Watch(threading.Thread):
    """Looks at a process, its descendants and a folder until it is stopped."""

    def __init__(self, pid: int, scratch: Path | None) -> None:
        super().__init__(daemon=True)
        self._pid, self._scratch = pid, scratch
        self._ended = threading.Event()
        self._tree, self._others = {pid}, set[int]()
        self.first_rss_bytes = self.tree_rss_bytes = self.scratch_bytes = 0

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        pause = 0.0
        while not self._ended.wait(pause):
            began = time.monotonic()
            self._look()
            pause = max(LOOK_SECONDS, 10 * (time.monotonic() - began))

    def _look(self) -> None:
        self._find_children()
        self.tree_rss_bytes = max(self.tree_rss_bytes, sum(map(_rss_bytes, self._tree)))
        self.first_rss_bytes = max(self.first_rss_bytes, _peak_rss_bytes(self._pid))
        if self._scratch is not None:
            self.scratch_bytes = max(self.scratch_bytes, _disk_bytes(self._scratch))

    def _find_children(self) -> None:
        """Each process is asked once for its parent; parents have lower numbers, but for a wrap-around."""
        for pid in sorted(_pids()):
            if pid not in self._tree and pid not in self._others:
                (self._tree if _parent(pid) in self._tree else self._others).add(pid)


def _pids() -> list[int]:
    with os.scandir("/proc") as entries:
        return [int(entry.name) for entry in entries if entry.name.isdigit()]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, or none where it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _parent(pid: int) -> int:
    stat = _stat(pid)
    return int(stat[1]) if stat else 0


def _machine_cpu_seconds() -> float:
    """CPU seconds of all processors since the start that were not idle: user, nice, system, interrupts, steal."""
    ticks = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / _TICKS


def _cpu_seconds(pid: int | None) -> float:
    """CPU seconds of a process, its children that ended, and its children that run."""
    if pid is None:
        return 0.0
    ticks = sum(map(int, _stat(pid)[11:15]))
    for each in _pids():
        if (stat := _stat(each)) and int(stat[1]) == pid:
            ticks += sum(map(int, stat[11:13]))
    return ticks / _TICKS


def _rss_bytes(pid: int) -> int:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    return 0


def _peak_rss_bytes(pid: int) -> int:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _disk_bytes(folder: Path) -> int:
    """The blocks that files below a folder occupy."""
    total, folders = 0, [folder]
    while folders:
        with contextlib.suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total
