"""Scratch: the private folder of one run, and what a full or unwritable one means.

One place knows that ENOSPC is NoRoom (17) with a setting that helps, and that room is asked for before it is used: a
disk that fills at 03:00 after an hour of work is the failure that a check of a microsecond prevents.
"""

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from backupd.errors import NoRoom, UsageError

HINT = "Point BACKUPD_SCRATCH__DIRECTORY at a folder with more room."


LIMIT_HINT = "Raise BACKUPD_SCRATCH__LIMIT, in Kubernetes together with the volume's size."


@contextlib.contextmanager
def open_scratch(parent: Path | None, name: str) -> Iterator[Path]:
    """A new folder (0700) in `parent`, or the system's temporary folder; gone with all it holds after the block."""
    with errors(parent or Path("TMPDIR")):  # the system may have no usable temporary folder, which then has no name
        folder = Path(tempfile.mkdtemp(prefix=f"backupd-{name}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_room(folder: Path, needed_bytes: int, purpose: str, limit_bytes: int | None = None) -> None:
    """Raises NoRoom where the folder's file system, or the limit on its use, has less room than is needed."""
    room_bytes = shutil.disk_usage(folder).free
    if limit_bytes is not None:
        room_bytes = min(room_bytes, limit_bytes)
    if room_bytes < needed_bytes:
        message = f"{purpose} needs {needed_bytes} bytes of scratch, {folder} has {room_bytes}"
        raise NoRoom(message, hint=HINT if limit_bytes is None else LIMIT_HINT)


def require_within(folder: Path, limit_bytes: int | None) -> None:
    """Raises NoRoom where the folder holds more than the limit: the kubelet would evict the pod a minute later."""
    if limit_bytes is None:
        return
    used_bytes = sum(_allocated_bytes(path) for path in folder.rglob("*"))
    if used_bytes > limit_bytes:
        message = f"scratch {folder} holds {used_bytes} bytes, and BACKUPD_SCRATCH__LIMIT is {limit_bytes}"
        raise NoRoom(message, hint=LIMIT_HINT)


def _allocated_bytes(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
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
