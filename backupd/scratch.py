"""Scratch: the private folder of one run, and what a full or unwritable one means.

One place knows that ENOSPC is NoRoom (17) with a setting that helps, and that room is asked for before it is used: a
disk that fills at 03:00 after an hour of work is the failure that a check of a microsecond prevents.
"""

import atexit
import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from backupd import signals
from backupd.errors import NoRoom, UsageError

_PREFIX = ".backupd-scratch-"  # so particular that nothing else is swept
HINT = "Point BACKUPD_SCRATCH__DIRECTORY at a folder with more room."
LIMIT_HINT = "Raise BACKUPD_SCRATCH__LIMIT, in Kubernetes together with the volume's size."

_open: set[Path] = set()


@contextlib.contextmanager
@signals.whole
def open_scratch(parent: Path | None, name: str) -> Iterator[Path]:
    """A new folder (0700) in `parent`, or the system's temporary folder; gone with all it holds after the block."""
    with errors(parent or Path("TMPDIR")):  # the system may have no usable temporary folder, which then has no name
        folder, mark = _made(parent or Path(tempfile.gettempdir()), name)
    _open.add(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _open.discard(folder)
        os.close(mark)


@atexit.register
def _remove_open() -> None:
    """Removes what a daemon thread had open as the process ended: its block never does, and there may be a passfile."""
    for folder in tuple(_open):
        shutil.rmtree(folder, ignore_errors=True)


def _made(where: Path, name: str) -> tuple[Path, int]:
    """A new folder, and the descriptor whose lock says that its run is alive."""
    _sweep(where)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{name}-", dir=where))
        with contextlib.suppress(FileNotFoundError):  # another run swept it before it was opened
            mark = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(mark, fcntl.LOCK_EX)
            if folder.exists():  # else one swept it before it was locked
                return folder, mark
            os.close(mark)


def _sweep(where: Path) -> None:
    """Removes the folders of runs that were killed: nobody holds the lock that a living run has on its own."""
    for folder in where.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_uid == os.geteuid():
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def require_room(folder: Path, needed_bytes: int, purpose: str, limit_bytes: int | None = None) -> None:
    """Raises NoRoom where the folder's file system, or the limit on its use, has less room than is needed."""
    with errors(folder):
        room_bytes, hint = shutil.disk_usage(folder).free, HINT
    if limit_bytes is not None and limit_bytes < room_bytes:
        room_bytes, hint = limit_bytes, LIMIT_HINT
    if room_bytes < needed_bytes:
        message = f"{purpose} needs {needed_bytes} bytes of scratch, {folder} has {room_bytes}"
        raise NoRoom(message, hint=hint)


def require_within(folder: Path, limit_bytes: int | None) -> None:
    """Raises NoRoom where the folder holds more than the limit: the kubelet would evict the pod a minute later."""
    if limit_bytes is None:
        return
    with errors(folder):
        used_bytes = sum(_allocated_bytes(path) for path in folder.rglob("*"))
    if used_bytes > limit_bytes:
        message = f"scratch {folder} holds {used_bytes} bytes, and BACKUPD_SCRATCH__LIMIT is {limit_bytes}"
        raise NoRoom(message, hint=LIMIT_HINT)


def _allocated_bytes(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512
    except FileNotFoundError:  # stored and removed since it was listed
        return 0


@contextlib.contextmanager
def errors(path: Path) -> Iterator[None]:
    """Translates what the operating system says of a file or folder in scratch: NoRoom, or UsageError."""
    try:
        yield
    except OSError as exc:
        detail = f"{exc.strerror or exc}."
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoRoom(f"scratch is full: could not write {path}", detail=detail, hint=HINT) from exc
        message = f"could not use scratch {path}"
        hint = "BACKUPD_SCRATCH__DIRECTORY must be a folder that backupd may write to."
        raise UsageError(message, detail=detail, hint=hint) from exc
