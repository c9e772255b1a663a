"""What only a directory can do: fill up, be read-only, be missing, hold symbolic links, outlive a killed process."""

import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fix_store import hidden_files

from backupd.errors import AccessRefused, AlreadyExists, NoRoom, NotFound, StoreError
from backupd.store import S3Options, Store, open_store

Mount = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a small file system on a new folder; a test that cannot is skipped and says so."""
    with contextlib.ExitStack() as stack:

        def run(options: str) -> Path:
            folder = tmp_path / "mounted"
            folder.mkdir(exist_ok=True)
            argv = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
            stack.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)
            return folder

        yield run


def local_store(folder: Path) -> Store:
    return open_store(folder.as_uri(), S3Options())


def put(store: Store, key: str, data: bytes) -> None:
    with store.create(key) as stream:
        stream.write(data)


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


def test_a_full_disk_is_no_room_and_leaves_nothing(mount: Mount) -> None:
    folder = mount("size=1m")
    store = local_store(folder)
    put(store, "db/small", b"fits")
    with pytest.raises(NoRoom, match=r"db/big\.tar") as raised:
        put(store, "db/big.tar", bytes(2 << 20))
    assert "No space left" in f"{raised.value.detail}"
    assert files(folder) == ["db/small"]
    put(store, "db/again", bytes(1 << 19))
    assert files(folder) == ["db/again", "db/small"]


def test_full_inodes_are_no_room(mount: Mount) -> None:
    store = local_store(mount("size=1m,nr_inodes=3"))
    put(store, "x", b"")
    with pytest.raises(NoRoom, match="db/x"):
        put(store, "db/x", b"")
    assert [entry.key for entry in store.list()] == ["x"]


def test_a_read_only_directory_refuses_access(mount: Mount) -> None:
    folder = mount("size=1m")
    store = local_store(folder)
    put(store, "db/x", b"data")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    with pytest.raises(AccessRefused, match="could not write db/y") as raised:
        put(store, "db/y", b"")
    assert "BACKUPD_STORE__URL" in f"{raised.value.hint}"
    with pytest.raises(AccessRefused, match="could not write new/y"):
        put(store, "new/y", b"")
    with pytest.raises(AccessRefused, match="could not delete db/x"):
        store.delete("db/x")
    with store.open("db/x") as stream:
        assert stream.read() == b"data"


def test_a_missing_root_is_an_error_and_is_not_made(tmp_path: Path) -> None:
    store = local_store(tmp_path / "not-mounted")
    with pytest.raises(StoreError, match="does not exist") as raised:
        put(store, "db/x", b"")
    assert "BACKUPD_STORE__URL" in f"{raised.value.hint}"
    with pytest.raises(StoreError, match="does not exist"), store.open("db/x"):
        pass
    for call in (store.list, lambda: store.delete("db/x"), lambda: store.sweep("", datetime.now(UTC))):
        with pytest.raises(StoreError, match="does not exist"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_vanishes_while_writing_is_an_error(root: Path) -> None:
    store = local_store(root)

    def vanish() -> None:
        with store.create("db/x") as stream:
            stream.write(b"data")
            root.rename(root.with_name("gone"))

    with pytest.raises(StoreError, match="could not write db/x"):
        vanish()
    assert not root.exists()
    assert hidden_files(root.with_name("gone")) != []  # what `sweep` is for


def test_files_are_private(root: Path) -> None:
    old = os.umask(0)
    try:
        put(local_store(root), "server/db/x", b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE((root / "server/db/x").stat().st_mode) == 0o600
    assert stat.S_IMODE((root / "server/db").stat().st_mode) == 0o700


def test_the_file_has_one_name(root: Path) -> None:
    put(local_store(root), "db/x", b"data")
    assert (root / "db/x").stat().st_nlink == 1
    assert files(root) == ["db/x"]


def test_the_temporary_file_is_beside_its_own(root: Path) -> None:
    """On another file system it could not be linked, and would fill the wrong disk."""
    with local_store(root).create("server/db/x.tar") as stream:
        stream.write(b"data")
        [temporary] = hidden_files(root)
        assert temporary.startswith("server/db/.x.tar.")
        assert (root / temporary).read_bytes() == b"data"


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """What was given to fsync, and what its folder held then."""
    seen: list[tuple[str, list[str]]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        seen.append((path.name, sorted(each.name for each in (path if path.is_dir() else path.parent).iterdir())))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return seen


def test_what_is_published_is_on_the_disk_first(root: Path, syncs: list[tuple[str, list[str]]]) -> None:
    with local_store(root).create("server/db/x") as stream:
        stream.write(b"data")
        [temporary] = (Path(name).name for name in hidden_files(root))
        assert [name for name, _ in syncs] == ["store", "server"]  # each folder that got a new one
        syncs.clear()
    assert syncs == [(temporary, [temporary]), ("db", sorted([temporary, "x"]))]


def test_a_deletion_is_on_the_disk(root: Path, syncs: list[tuple[str, list[str]]]) -> None:
    """A manifest that came back after a crash, without its archive, would be a backup that is none."""
    put(local_store(root), "db/x", b"")
    syncs.clear()
    local_store(root).delete("db/x")
    assert syncs == [("db", [])]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_disk_that_cannot_sync_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    (root / "db").mkdir()
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == (kind == "folder"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StoreError, match="could not write db/x"):
        put(local_store(root), "db/x", b"data")
    assert files(root) == []


def test_a_file_system_that_knows_no_sync_of_folders_works(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    put(local_store(root), "db/x", b"data")
    assert files(root) == ["db/x"]


def test_a_link_whose_answer_was_lost_is_ours(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS asks again, and is then told that the name is taken."""
    real = os.link

    def link(*names: Any, **options: Any) -> None:
        real(*names, **options)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    monkeypatch.setattr(os, "link", link)
    put(local_store(root), "db/x", b"data")
    assert files(root) == ["db/x"]
    assert (root / "db" / "x").read_bytes() == b"data"


def test_a_range_beyond_the_end_is_told_at_the_entry(root: Path) -> None:
    put(local_store(root), "db/x", b"0123456789")
    for start, length in ((0, 11), (11, None), (11, 0)):
        with pytest.raises(StoreError, match="too short"), local_store(root).open("db/x", start, length):
            pass


def test_of_many_threads_one_wins(root: Path) -> None:
    store, barrier, outcomes = local_store(root), threading.Barrier(8), list[str]()

    def attempt(number: int) -> None:
        try:
            with store.create("db/x") as stream:
                stream.write(str(number).encode())
                barrier.wait(10)
        except AlreadyExists:
            return
        outcomes.append(str(number))

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = outcomes
    assert (root / "db/x").read_text() == winner
    assert files(root) == ["db/x"]


# A kernel that refuses link(2) with EPERM, as FAT and some network shares do, for the child that runs this.
WITHOUT_HARD_LINKS = """
import ctypes, platform, struct, sys
numbers = {"x86_64": (86, 265), "aarch64": (37,)}.get(platform.machine()) or sys.exit(77)
steps = [struct.pack("HBBI", 0x20, 0, 0, 0)]  # load the number of the system call
for number in numbers:
    steps += [struct.pack("HBBI", 0x15, 0, 1, number), struct.pack("HBBI", 0x06, 0, 0, 0x00050001)]  # equal: EPERM
steps.append(struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000))  # else: allow
code = ctypes.create_string_buffer(b"".join(steps))
program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):
    sys.exit(77)
"""


def test_a_file_system_without_hard_links_works(root: Path) -> None:
    program = WITHOUT_HARD_LINKS + (
        "from backupd.errors import AlreadyExists\n"
        "from backupd.store import S3Options, open_store\n"
        f"store = open_store({root.as_uri()!r}, S3Options())\n"
        "try:\n"
        "    with store.create('db/x') as slow:\n"
        "        slow.write(b'slow')\n"
        "        with store.create('db/x') as fast:\n"
        "            fast.write(b'fast')\n"
        "except AlreadyExists:\n"
        "    sys.exit(7)\n"
    )
    status = subprocess.run([sys.executable, "-c", program], check=False).returncode
    if status == 77:
        pytest.skip("system calls cannot be refused here")
    assert status == 7
    assert (root / "db/x").read_bytes() == b"fast"
    assert files(root) == ["db/x"]


def test_a_key_that_a_symbolic_link_leads_out_is_refused(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_text("not ours")
    (root / "link").symlink_to(outside)
    store = local_store(root)
    with pytest.raises(StoreError, match="leads out"), store.open("link/x"):
        pass
    with pytest.raises(StoreError, match="leads out"):
        put(store, "link/y", b"")
    with pytest.raises(StoreError, match="leads out"):
        store.delete("link/x")
    assert list(store.list()) == []
    assert files(outside) == ["x"]


def test_a_symbolic_link_is_no_object(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("not ours")
    (root / "x").symlink_to(tmp_path / "secret")
    (root / "dangling").symlink_to(tmp_path / "nowhere")
    store = local_store(root)
    with pytest.raises(StoreError, match="could not read x"), store.open("x"):
        pass
    for key in ("x", "dangling"):
        with pytest.raises(AlreadyExists):
            put(store, key, b"")
    assert list(store.list()) == []
    assert not (tmp_path / "nowhere").exists()


def test_a_root_behind_a_symbolic_link_works(root: Path, tmp_path: Path) -> None:
    (tmp_path / "backups").symlink_to(root)
    store = local_store(tmp_path / "backups")
    put(store, "db/x", b"data")
    assert [entry.key for entry in store.list()] == ["db/x"]
    assert files(root) == ["db/x"]


def test_what_is_not_ours_is_not_listed(root: Path) -> None:
    """A volume's own `lost+found` and snapshots, and whatever somebody put beside the backups."""
    for name in ("lost+found/x", ".snapshot/db/x", "db/my notes.txt", "db/.x.tar.part"):
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_text("")
    os.mkfifo(root / "db/pipe")
    put(local_store(root), "db/x", b"")
    assert [entry.key for entry in local_store(root).list()] == ["db/x"]
    with pytest.raises(NotFound), local_store(root).open("db/pipe"):
        pass


def test_an_object_that_is_cut_while_it_is_read_is_an_error(root: Path) -> None:
    store = local_store(root)
    put(store, "db/x", bytes(1 << 20))

    def read() -> bytes:
        with store.open("db/x") as stream:
            start = stream.read(1000)
            os.truncate(root / "db/x", 500_000)
            return start + stream.read()

    with pytest.raises(StoreError, match="could not read db/x") as raised:
        read()
    assert "early" in f"{raised.value.detail}"


def test_what_a_killed_process_leaves_is_swept_and_never_listed(root: Path) -> None:
    program = (
        "import os, signal; from backupd.store import S3Options, open_store\n"
        f"with open_store({root.as_uri()!r}, S3Options()).create('server/db/x.tar') as stream:\n"
        "    stream.write(bytes(1000)); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    store, now = local_store(root), datetime.now(UTC)
    assert list(store.list()) == []
    assert store.sweep("", now - timedelta(hours=1)) == []
    [left] = hidden_files(root)
    assert store.sweep("server/db/x", now + timedelta(hours=1)) == [left]
    assert files(root) == []


def test_a_create_that_was_swept_does_not_publish(root: Path) -> None:
    store = local_store(root)

    def overlap() -> None:
        with store.create("db/x") as stream:
            stream.write(b"data")
            store.sweep("", datetime.now(UTC) + timedelta(hours=1))

    with pytest.raises(StoreError, match="could not write db/x"):
        overlap()
    assert files(root) == []


def test_sweep_leaves_what_only_looks_like_ours(root: Path) -> None:
    for name in (".x", ".x.tmp", "x.0123456789abcdef.tmp", ".x.0123456789ABCDEF.tmp", "..0123456789abcdef.tmp"):
        (root / name).write_text("")
    before = files(root)
    assert local_store(root).sweep("", datetime.now(UTC) + timedelta(hours=1)) == []
    assert files(root) == before


def test_deleting_a_folder_is_deleting_nothing(root: Path) -> None:
    put(local_store(root), "db/x", b"")
    local_store(root).delete("db")
    assert files(root) == ["db/x"]
