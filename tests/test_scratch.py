"""Scratch: private, gone afterwards, and what a full or unusable one means."""

import contextlib
import errno
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backupd.errors import BackupdError, Interrupted, NoRoom, UsageError
from backupd.scratch import HINT, LIMIT_HINT, errors, open_scratch, require_room, require_within

PROJECT = Path(__file__).parent.parent


class Boom(Exception):
    """What the block raises."""


def test_scratch_is_an_empty_private_folder_that_is_gone_after_the_block(tmp_path: Path) -> None:
    with open_scratch(tmp_path, "20261123T221614Z-3f9ac21b") as folder:
        assert folder.parent == tmp_path
        assert "20261123T221614Z-3f9ac21b" in folder.name
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert list(folder.iterdir()) == []
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "deep" / "er" / "file").write_bytes(b"x")
        (folder / "deep").chmod(0o500)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [Boom(), Interrupted(15), OSError(errno.ENOSPC, "of the block's own")])
def test_scratch_is_gone_however_the_block_ends(tmp_path: Path, error: BaseException) -> None:
    def use() -> None:
        with open_scratch(tmp_path, "run") as folder:
            (folder / "file").write_bytes(b"x")
            raise error

    with pytest.raises(type(error)) as caught:
        use()
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_scratch_is_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_bytes(b"x")
    with open_scratch(tmp_path, "run") as folder:
        (folder / "link").symlink_to(tmp_path / "precious")
    assert [path.name for path in tmp_path.rglob("*")] == ["precious", "file"]


def test_two_runs_have_a_folder_each(tmp_path: Path) -> None:
    with open_scratch(tmp_path, "run") as one, open_scratch(tmp_path, "run") as other:
        assert one != other


def test_a_folder_that_another_run_sweeps_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, swept = tempfile.mkdtemp, list[str]()

    def make(**options: Any) -> str:
        folder: str = made(**options)
        if not swept:
            swept.append(folder)
            Path(folder).rmdir()
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", make)
    with open_scratch(tmp_path, "run") as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert len(swept) == 1


def test_without_a_setting_scratch_is_in_the_system_s_temporary_folder() -> None:
    with open_scratch(None, "run") as folder:
        assert folder.parent == Path(tempfile.gettempdir())
    assert not folder.exists()


@pytest.mark.parametrize("place", ["missing", "file"])
def test_a_place_that_is_no_folder_is_a_usage_error_that_names_it(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match=str(tmp_path / place)) as caught, open_scratch(tmp_path / place, "run"):
        pass
    assert "BACKUPD_SCRATCH__DIRECTORY" in str(caught.value.hint)


NOWHERE = """
for folder in /tmp /var/tmp; do  # read-only, and still there: this project may lie in it
    mount --bind $folder $folder && mount -o remount,bind,ro $folder || exit 77
done
cd /proc && exec "$0" -c '
import sys
from pathlib import Path

from backupd import scratch
from backupd.errors import UsageError

try:
    with scratch.open_scratch(None, "run"):
        pass
except UsageError as exc:
    print(exc)
'
"""


@pytest.mark.slow
def test_a_system_without_any_temporary_folder_is_a_usage_error() -> None:
    """A container with a read-only root and no /tmp."""
    program = ["unshare", "--mount", "/bin/sh", "-c", NOWHERE, sys.executable]
    environment = {"PYTHONPATH": str(PROJECT), "PATH": os.environ["PATH"]}
    said = subprocess.run(program, env=environment, capture_output=True, text=True)
    if said.returncode == 77 or "unshare" in said.stderr:
        pytest.skip(f"only root may mount: {said.stderr}")
    assert said.stderr == ""
    assert said.stdout.startswith("could not use scratch")
    assert "BACKUPD_SCRATCH__DIRECTORY" in said.stdout


# --- room


def test_enough_room_is_enough(tmp_path: Path) -> None:
    require_room(tmp_path, 0, "backup x")
    require_room(tmp_path, 1, "backup x")


def test_too_little_room_is_said_with_both_numbers_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(NoRoom, match=f"backup x needs {1 << 60} bytes of scratch, {tmp_path} has [0-9]+") as caught:
        require_room(tmp_path, 1 << 60, "backup x")
    assert caught.value.hint == HINT


def test_a_limit_below_the_room_is_what_counts_and_what_the_hint_is_about(tmp_path: Path) -> None:
    require_room(tmp_path, 1000, "backup x", 1000)
    with pytest.raises(NoRoom, match=f"backup x needs 1001 bytes of scratch, {tmp_path} has 1000") as caught:
        require_room(tmp_path, 1001, "backup x", 1000)
    assert caught.value.hint == LIMIT_HINT
    with pytest.raises(NoRoom) as caught:
        require_room(tmp_path, 1 << 60, "backup x", 1 << 61)
    assert caught.value.hint == HINT


def test_what_a_folder_holds_is_held_against_the_limit(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(os.urandom(1 << 20))
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 40)
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    require_within(tmp_path, None)
    require_within(tmp_path, 2 << 20)
    with pytest.raises(
        NoRoom, match=f"scratch {tmp_path} holds 1[0-9]{{6}} bytes, and BACKUPD_SCRATCH__LIMIT is 1000000"
    ):
        require_within(tmp_path, 1_000_000)


def test_room_in_a_folder_that_does_not_exist_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="missing"):
        require_room(tmp_path / "missing", 1, "backup x")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True).returncode:
        pytest.skip("only root may mount")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
def test_room_is_that_of_the_file_system(small_disk: Path) -> None:
    require_room(small_disk, 65536, "backup x")
    with pytest.raises(NoRoom):
        require_room(small_disk, 65537, "backup x")
    (small_disk / "file").write_bytes(bytes(4096))
    with pytest.raises(NoRoom):
        require_room(small_disk, 65536, "backup x")


@pytest.mark.slow
def test_a_full_disk_is_no_room(small_disk: Path) -> None:
    path = small_disk / "file"
    with pytest.raises(NoRoom, match=f"could not write {path}") as caught, errors(path):
        path.write_bytes(bytes(1 << 20))
    assert caught.value.hint == HINT


# --- what the operating system says


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, NoRoom),
        (errno.EDQUOT, NoRoom),
        (errno.EACCES, UsageError),
        (errno.EROFS, UsageError),
        (errno.ENOENT, UsageError),
        (errno.EIO, UsageError),
    ],
)
def test_what_the_system_says_of_scratch_is_translated_and_kept(number: int, expected: type[BackupdError]) -> None:
    original = OSError(number, os.strerror(number))
    with pytest.raises(expected, match="/scratch/x") as caught, errors(Path("/scratch/x")):
        raise original
    assert caught.value.detail == f"{os.strerror(number)}."
    assert caught.value.__cause__ is original


def test_what_is_not_the_system_s_passes_as_it_is() -> None:
    for error in (Boom(), NoRoom("of the store"), Interrupted(2)):
        with pytest.raises(type(error)) as caught, errors(Path("/scratch/x")):
            raise error
        assert caught.value is error
    with contextlib.ExitStack() as stack:
        stack.enter_context(errors(Path("/scratch/x")))
