"""Fetching a backup: a folder that PostgreSQL's own pg_restore takes, or no folder."""

import os
import shlex
import signal
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from fix_postgres import DatabaseFactory, PostgresServer
from fix_restore import InS3, Stocked, contents, fetches, flip, values
from fix_tools import Site, small_disk

from backupd.errors import NoRoom, StoreError, VerificationFailed
from backupd.fetch import members as fetch_members
from backupd.manifest import Backup
from backupd.progress import Progress

pytestmark = pytest.mark.slow


def fetch(here: Site, backup: Backup, folder: Path) -> None:
    """Fetches in process."""
    folder.mkdir()
    fetch_members(here.catalog, backup, here.index(backup), folder, Progress())


def test_the_printed_command_restores_what_was_fetched(
    any_postgres: PostgresServer, stocked: Stocked, database: DatabaseFactory, tmp_path: Path
) -> None:
    here, backup = stocked(any_postgres)
    name, folder = database(any_postgres), tmp_path / "fetched"
    ended = here.run("fetch", backup.id, str(folder))
    assert ended.code == 0, ended.stderr
    here.assert_untouched()

    target = psycopg.conninfo.make_conninfo(
        host=any_postgres.host, port=any_postgres.port, user="postgres", dbname=name
    )
    program, *arguments = shlex.split(ended.stdout)
    assert program == "pg_restore"
    argv = [str(any_postgres.bin_directory / program), *(each.replace("NAME", target) for each in arguments)]
    finished = subprocess.run(argv, capture_output=True, text=True)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert contents(any_postgres, name) == contents(any_postgres, backup.source.database)
    assert values(any_postgres, name) == values(any_postgres, backup.source.database)


def test_what_is_fetched_are_regular_files_for_their_owner_alone(
    postgres17: PostgresServer, stocked: Stocked, tmp_path: Path
) -> None:
    here, backup = stocked(postgres17)
    folder = tmp_path / "fetched"
    assert here.run("fetch", backup.id, str(folder)).code == 0
    modes = {path.name: path.lstat().st_mode for path in folder.iterdir()}
    members = {member.name for member in here.index(backup).members}
    assert set(modes) == members - {"README.txt", "index.json.zst"}
    assert set(modes.values()) == {stat.S_IFREG | 0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_exists_is_refused_and_left_alone(
    postgres17: PostgresServer, stocked: Stocked, tmp_path: Path
) -> None:
    here, backup = stocked(postgres17)
    (tmp_path / "toc.dat").write_text("mine")
    ended = here.run("fetch", backup.id, str(tmp_path))
    assert (ended.code, ended.error["reason"]) == (2, "usage")
    assert (tmp_path / "toc.dat").read_text() == "mine"
    here.assert_untouched()


@pytest.mark.parametrize("name", ["toc.dat", "blob_", "table"])
def test_a_flipped_bit_is_named_and_no_folder_is_left(
    name: str, postgres17: PostgresServer, stocked: Stocked, tmp_path: Path
) -> None:
    here, backup = stocked(postgres17)
    index = here.index(backup)
    wanted = max(index.contract.tables, key=lambda table: table.raw_bytes).member if name == "table" else name
    member = next(each for each in index.members if each.name.startswith(wanted) and each.size_bytes)
    flip(here, backup, member.offset)
    ended = here.run("fetch", backup.id, str(tmp_path / "fetched"))
    assert (ended.code, ended.error["reason"]) == (14, "verification_failed")
    assert member.name in ended.error["message"]
    assert "backupd list" in ended.error["hint"]
    assert not (tmp_path / "fetched").exists()
    here.assert_clean()


def test_an_archive_that_ends_early_leaves_no_folder(
    postgres17: PostgresServer, stocked: Stocked, tmp_path: Path
) -> None:
    here, backup = stocked(postgres17)
    index = here.index(backup)
    path = here.archive_file(backup)
    path.chmod(0o600)
    os.truncate(path, backup.manifest.index_offset // 2)
    (tmp_path / "fetched").mkdir()
    with pytest.raises(StoreError, match=backup.id):
        fetch_members(here.catalog, backup, index, tmp_path / "fetched", Progress())
    assert not (tmp_path / "fetched").exists()


def test_a_disk_that_is_too_small_is_named_with_the_bytes_that_are_needed(
    postgres17: PostgresServer, stocked: Stocked, large_of: Callable[[PostgresServer], str], tmp_path: Path
) -> None:
    here, backup = stocked(postgres17, large_of(postgres17))
    members = [each for each in here.index(backup).members if each.name not in ("README.txt", "index.json.zst")]
    needed_bytes = sum(member.size_bytes for member in members)
    with small_disk(tmp_path / "small", 4) as disk:
        with pytest.raises(NoRoom, match=f"needs {needed_bytes} bytes"):
            fetch(here, backup, disk / "fetched")
        assert list(disk.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_is_named_and_no_folder_is_left(
    postgres17: PostgresServer, stocked: Stocked, large_of: Callable[[PostgresServer], str], tmp_path: Path
) -> None:
    here, backup = stocked(postgres17, large_of(postgres17))
    with small_disk(tmp_path / "small", 12) as disk:

        def fill(progress: Progress) -> None:
            if progress.done_bytes == 0 < progress.total_bytes:
                return
            if not (disk / "other").exists():
                (disk / "other").write_bytes(bytes(7 << 20))

        (disk / "fetched").mkdir()
        with pytest.raises(NoRoom, match="could not write"):
            fetch_members(here.catalog, backup, here.index(backup), disk / "fetched", Progress(fill))
        assert [path.name for path in disk.iterdir()] == ["other"]


def test_a_member_whose_connection_is_reset_is_fetched_again(
    postgres17: PostgresServer, in_s3: InS3, large_of: Callable[[PostgresServer], str], tmp_path: Path
) -> None:
    here, backup, proxy = in_s3(postgres17, large_of(postgres17))
    cut: list[str] = []

    def rule(method: str, path: str, number: int) -> str | None:
        if not fetches(proxy, before=1) or len(cut) == 2:
            return None
        cut.append(path)
        return "cut response"

    proxy.rule = rule
    fetch(here, backup, tmp_path / "fetched")
    assert len(cut) == 2
    total_bytes = sum(path.stat().st_size for path in (tmp_path / "fetched").iterdir())
    assert total_bytes > 8_000_000


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_no_folder(
    number: int,
    code: int,
    postgres17: PostgresServer,
    in_s3: InS3,
    large_of: Callable[[PostgresServer], str],
    tmp_path: Path,
) -> None:
    here, backup, proxy = in_s3(postgres17, large_of(postgres17))
    fetching = threading.Event()

    def rule(method: str, path: str, number: int) -> str | None:
        if not fetches(proxy, before=1):  # only the index is read before
            return None
        fetching.set()
        return "slow 2"

    proxy.rule = rule
    run = here.start("fetch", backup.id, str(tmp_path / "fetched"))
    assert fetching.wait(30)
    run.send(number)
    ended = run.end()
    assert (ended.code, ended.error["reason"]) == (code, "interrupted")
    assert not (tmp_path / "fetched").exists()
    here.assert_clean()


def test_a_damaged_archive_is_never_half_a_folder_even_where_most_of_it_is_good(
    postgres17: PostgresServer, stocked: Stocked, tmp_path: Path
) -> None:
    here, backup = stocked(postgres17)
    last = max(here.index(backup).members, key=lambda member: member.offset if member.name == "toc.dat" else 0)
    flip(here, backup, last.offset + last.size_bytes - 1)
    with pytest.raises(VerificationFailed, match=r"toc\.dat"):
        fetch(here, backup, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()
