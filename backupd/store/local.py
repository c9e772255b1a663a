"""A store in a directory: a PVC, an NFS share, a disk.

Hides what makes a file appear whole or not at all: it is written under a temporary name beside its own, fsynced, and
linked to its name, since a link refuses a name that is taken where a rename would replace it; then the folder is
fsynced. The root is never made: a volume that is not mounted would become a folder on the node's own disk. Folders
below it are made as needed and never removed: an empty one costs nothing, and removing it would race with the next
`create`. Symbolic links are neither listed nor read, and none may take a key out of the root.
"""

import contextlib
import errno
import io
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, cast

from backupd.errors import AccessRefused, AlreadyExists, NoRoom, NotFound, StoreError
from backupd.store import Entry, check_key, is_key

READ_BYTES = 256 * 1024

_TEMPORARY = re.compile(r"(?P<folder>(.*/)?)\.(?P<name>[^/]+)\.[0-9a-f]{16}\.tmp")
_NO_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK})
_NO_DIRECTORY_SYNC = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class LocalStore:
    """A Store (see there) below the folder `root`, which must exist. Its files are 0600, its folders 0700."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def url(self) -> str:
        """`file://` and the absolute path."""
        return self._root.as_uri()

    @contextlib.contextmanager
    def create(self, key: str, expected_bytes: int = 0) -> Iterator[BinaryIO]:
        """See Store."""
        action = f"write {key} to {self.url}"
        with _errors(action):
            path = self._path(key)
            if os.path.lexists(path):
                raise self._exists(key)
            self._make_folders(path.parent)
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.closing(_Writer(descriptor, action)) as writer:
                yield cast(BinaryIO, writer)
                writer.sync()
            with _errors(action):
                self._publish(key, temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    @contextlib.contextmanager
    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[BinaryIO]:
        """See Store."""
        action = f"read {key} from {self.url}"
        with contextlib.ExitStack() as stack:
            with _errors(action):
                descriptor = self._open_file(key)
                stack.callback(os.close, descriptor)
                size_bytes = os.fstat(descriptor).st_size
                left = size_bytes - start if length is None else length
                if left < 0 or start + left > size_bytes:
                    detail = f"It has {size_bytes} bytes; byte {start} and those after it were asked for."
                    raise StoreError(f"object {key} in {self.url} is too short", detail=detail)
                os.lseek(descriptor, start, os.SEEK_SET)
            yield io.BufferedReader(_Reader(descriptor, left, action), READ_BYTES)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See Store."""
        with _errors(f"list {self.url}"):
            entries = [
                Entry(key, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))
                for key, status in self._walk(prefix)
                if key.startswith(prefix) and is_key(key)
            ]
        return iter(sorted(entries))

    def delete(self, key: str) -> None:
        """See Store."""
        with _errors(f"delete {key} from {self.url}"):
            path = self._path(key)
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                path.unlink()
                _sync_directory(path.parent)

    def sweep(self, prefix: str, idle_since: datetime) -> Sequence[str]:
        """See Store. News is the last write to a temporary file."""
        swept = []
        with _errors(f"sweep {self.url}"):
            for key, status in self._walk(prefix):
                temporary = _TEMPORARY.fullmatch(key)
                if temporary is None or not (temporary["folder"] + temporary["name"]).startswith(prefix):
                    continue
                if status.st_mtime < idle_since.timestamp():
                    (self._root / key).unlink(missing_ok=True)
                    swept.append(key)
        return sorted(swept)

    def _path(self, key: str) -> Path:
        self._require_root()
        path = self._root / check_key(key)
        if not path.parent.resolve().is_relative_to(self._root.resolve()):
            detail = "One of its folders is a symbolic link."
            raise StoreError(f"key {key} leads out of {self.url}", detail=detail)
        return path

    def _require_root(self) -> None:
        if not self._root.is_dir():
            raise StoreError(
                f"store {self.url} does not exist",
                detail="It is not made, since it may be a volume that is not mounted.",
                hint="Mount the volume, or create the folder that BACKUPD_STORE__URL names.",
            )

    def _make_folders(self, folder: Path) -> None:
        below = [each for each in (folder, *folder.parents) if self._root in each.parents]
        for each in reversed(below):
            if not each.is_dir():
                with contextlib.suppress(FileExistsError):
                    each.mkdir(0o700)
                _sync_directory(each.parent)

    def _publish(self, key: str, temporary: Path, path: Path) -> None:
        try:
            path.hardlink_to(temporary)
        except FileExistsError as exc:
            if not path.samefile(temporary):  # else it is ours: NFS asks again where an answer was lost
                raise self._exists(key) from exc
        except OSError as exc:
            if exc.errno not in _NO_LINKS:
                raise
            self._rename(key, temporary, path)
        try:
            _sync_directory(path.parent)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def _rename(self, key: str, temporary: Path, path: Path) -> None:
        """For file systems without hard links (FAT, some network shares): two at once are not told apart."""
        if os.path.lexists(path):
            raise self._exists(key)
        temporary.rename(path)

    def _open_file(self, key: str) -> int:
        path = self._path(key)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return descriptor
            os.close(descriptor)
        raise NotFound(f"object {key} does not exist in {self.url}")

    def _exists(self, key: str) -> AlreadyExists:
        return AlreadyExists(f"object {key} exists in {self.url} already")

    def _walk(self, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
        """Every regular file below the root, except in folders where no key with that prefix can be."""
        self._require_root()
        folders = [""]
        while folders:
            folder = folders.pop()
            with contextlib.suppress(FileNotFoundError), os.scandir(self._root / folder) as entries:
                for entry in entries:
                    key = folder + entry.name
                    if entry.is_file(follow_symlinks=False):
                        with contextlib.suppress(FileNotFoundError):
                            yield key, entry.stat(follow_symlinks=False)
                    elif entry.is_dir(follow_symlinks=False) and _can_hold(key, prefix):
                        folders.append(f"{key}/")


class _Writer(io.RawIOBase):
    """The temporary file. Its errors are the store's; those of the caller's block are not."""

    def __init__(self, descriptor: int, action: str) -> None:
        self._file = io.FileIO(descriptor, "wb")
        self._action = action
        self._written_bytes = 0
        self._advised_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        rest = memoryview(data).cast("B")
        size_bytes = len(rest)
        with _errors(self._action, f" after {self._written_bytes} bytes"):
            while rest:
                count = self._file.write(rest)
                self._written_bytes += count
                rest = rest[count:]
            self._write_back()
        return size_bytes

    def _write_back(self) -> None:
        """Lets the kernel write out and forget what is complete: the sync is short, and the server's cache stays."""
        ready = self._written_bytes - self._written_bytes % WRITE_BACK_BYTES
        if ready > self._advised_bytes and hasattr(os, "posix_fadvise"):
            length = ready - self._advised_bytes
            os.posix_fadvise(self._file.fileno(), self._advised_bytes, length, os.POSIX_FADV_DONTNEED)
            self._advised_bytes = ready

    def sync(self) -> None:
        with _errors(self._action, f" after {self._written_bytes} bytes"):
            os.fsync(self._file.fileno())
            self._file.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        super().close()


class _Reader(io.RawIOBase):
    """The next `left` bytes of a file, or an error."""

    def __init__(self, descriptor: int, left: int, action: str) -> None:
        self._descriptor, self._left, self._action = descriptor, left, action

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = memoryview(buffer)[: self._left]
        if not wanted:
            return 0
        with _errors(self._action):
            count = os.readv(self._descriptor, [wanted])
        if count == 0:
            raise StoreError(f"could not {self._action}", detail=f"It ended {self._left} bytes early.")
        self._left -= count
        return count


def _can_hold(folder: str, prefix: str) -> bool:
    """Whether keys with that prefix can be below the folder. `lost+found` is the file system's, and root's."""
    folder = f"{folder}/"
    ours = is_key(folder[:-1]) and folder != "lost+found/"
    return ours and (folder.startswith(prefix) or prefix.startswith(folder))


def _sync_directory(folder: Path) -> None:
    """Makes names in the folder durable, where the file system knows how."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno not in _NO_DIRECTORY_SYNC:
            raise
    finally:
        os.close(descriptor)


WRITE_BACK_BYTES = 16 << 20
"""How much is written before the kernel is asked to put it on disk: 185 MB then sync in 4 ms in place of 62."""


@contextlib.contextmanager
def _errors(action: str, progress: str = "") -> Iterator[None]:
    """Translates what the operating system says."""
    try:
        yield
    except OSError as exc:
        message, detail = f"could not {action}", f"{exc.strerror or exc}{progress}."
        if exc.errno in _FULL:
            hint = "Make room in the folder of BACKUPD_STORE__URL, or let `backupd prune` remove backups."
            raise NoRoom(message, detail=detail, hint=hint) from exc
        if exc.errno in _REFUSED:
            hint = f"backupd runs as user {os.geteuid()}, who must be allowed to use the folder of BACKUPD_STORE__URL."
            raise AccessRefused(message, detail=detail, hint=hint) from exc
        raise StoreError(message, detail=detail) from exc
