"""The demo as a new user runs it: to its end, interrupted, and beside settings that point somewhere else."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from backupd import throwaway
from backupd.demo import Count, Shown, _compared
from backupd.errors import VerificationFailed

PROJECT = Path(__file__).resolve().parent.parent
LIMIT_SECONDS = 60
COLUMNS = 80
STEPS = 7
NOBODY = 65534


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A temporary folder that everybody may use, at a path as short as the usual one."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o1777)
        yield Path(name)


def start(
    temporary: Path,
    variables: Mapping[str, str] | None = None,
    before: Sequence[str] = (),
    *,
    python: str = sys.executable,
    uid: int | None = None,
) -> subprocess.Popen[str]:
    """Starts the demo, by the command `before` it, with the fewest variables and those that are given; from `/`."""
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(temporary), "PYTHONPATH": str(PROJECT)}
    environment |= variables or {}
    return subprocess.Popen(
        [*before, python, "-m", "backupd", "demo"],
        env=environment,
        cwd="/",
        user=uid,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def end(demo: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit code, stdout and stderr."""
    stdout, stderr = demo.communicate(timeout=LIMIT_SECONDS)
    return demo.returncode, stdout, stderr


def assert_nothing_left(temporary: Path) -> None:
    """No file is left, and no process that works below the folder, even where that is removed."""
    assert list(temporary.iterdir()) == []
    assert _processes_below(temporary) == {}


def _processes_below(folder: Path) -> dict[str, str]:
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if str(folder) in command or str((process / "cwd").readlink()).startswith(str(folder)):
                found[process.name] = command
    return found


def steps_of(stdout: str) -> list[str]:
    return re.findall(r"^([0-9])\. ", stdout, re.MULTILINE)


def assert_played(stdout: str) -> None:
    """All steps were played, and everything came back."""
    assert steps_of(stdout) == [str(number) for number in range(1, STEPS + 1)]
    assert "312758 rows in 12 tables" in stdout  # the same in every run
    assert 'database "shop" does not exist' in stdout
    _, _, restored = stdout.partition("BACKUP  RESTORED")
    assert len(re.findall(r"  equal$", restored, re.MULTILINE)) >= 15
    assert "DIFFERENT" not in stdout
    by_hand = re.findall(r"^.* ([0-9]+) +([0-9]+)$", stdout.partition("BY HAND")[2], re.MULTILINE)
    assert len(by_hand) == 7
    assert all(int(before) == int(after) > 0 for before, after in by_hand)


@pytest.mark.slow
def test_it_plays_to_its_end_and_leaves_nothing(temporary: Path) -> None:
    began = time.monotonic()
    demo = start(temporary)
    code, stdout, stderr = end(demo)

    assert (code, stderr) == (0, "")
    assert time.monotonic() - began < LIMIT_SECONDS
    assert_played(stdout)
    assert max(map(len, stdout.replace(str(temporary), "/tmp").splitlines())) <= COLUMNS
    assert re.search(r"It took [0-9.]+ s", stdout)
    assert all(f"  {word}  " in stdout for word in ("stored", "decoded", "restored"))
    assert "identical" not in stdout
    assert_nothing_left(temporary)


@pytest.mark.slow
def test_settings_of_the_user_are_never_followed(temporary: Path, tmp_path: Path) -> None:
    """Every variable leads to a server that notes who comes, or to a folder that must stay as it is."""
    folders = {name: tmp_path / name for name in ("store", "scratch", "home", "clients")}
    for folder in folders.values():
        folder.mkdir()
    for name in ("pg_dump", "pg_restore", "psql", "createdb", "dropdb"):
        (folders["clients"] / name).write_text(f"#!/bin/sh\ntouch {folders['clients']}/called\nexit 1\n")
        (folders["clients"] / name).chmod(0o755)
    (folders["home"] / ".pgpass").write_text("*:*:*:*:wrong\n")
    (folders["home"] / ".psqlrc").write_text("\\! touch ~/called\n")
    before = sorted(tmp_path.rglob("*"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        poison = {
            "HOME": str(folders["home"]),
            "PGHOST": "127.0.0.1",
            "PGHOSTADDR": "127.0.0.1",
            "PGPORT": port,
            "PGUSER": "production",
            "PGDATABASE": "production",
            "PGPASSWORD": "production's password",
            "PGOPTIONS": "-c no_such_setting=1",
            "PGSERVICE": "no_such_service",
            "PGCHANNELBINDING": "require",
            "PGREQUIREAUTH": "gss",
            "PGTARGETSESSIONATTRS": "standby",
            "PGAPPNAME": "production",
            "BACKUPD_SOURCE__HOST": "127.0.0.1",
            "BACKUPD_SOURCE__PORT": port,
            "BACKUPD_SOURCE__DATABASES": "*",
            "BACKUPD_TARGET__HOST": "127.0.0.1",
            "BACKUPD_TARGET__PORT": port,
            "BACKUPD_TARGET__USER": "production",
            "BACKUPD_STORE__URL": folders["store"].as_uri(),
            "BACKUPD_SCRATCH__DIRECTORY": str(folders["scratch"]),
            "BACKUPD_DUMP__CLIENTS": str(folders["clients"]),
            "BACKUPD_DUMP__EXCLUDE": "sales.*",
            "BACKUPD_RETENTION__KEEP_LAST": "1",
        }
        code, stdout, stderr = end(start(temporary, poison))
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()

    assert (code, stderr) == (0, "")
    assert_played(stdout)
    assert port not in stdout
    assert "production" not in stdout
    assert sorted(tmp_path.rglob("*")) == before
    assert_nothing_left(temporary)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "number"), [(1, signal.SIGTERM), (2, signal.SIGINT), (6, signal.SIGINT), (7, signal.SIGTERM)]
)
def test_an_interrupted_demo_leaves_neither_server_nor_folder(
    temporary: Path, step: int, number: signal.Signals
) -> None:
    demo = start(temporary, {"BACKUPD_LOG__LEVEL": "debug"})
    assert demo.stdout is not None
    for line in demo.stdout:
        if line.startswith(f"{step}. "):
            break
    time.sleep(0.3)  # into the step
    assert _processes_below(temporary) != {}
    demo.send_signal(number)
    code, stdout, stderr = end(demo)

    assert code == 128 + number, stderr
    assert "Proven" not in stdout
    assert f"interrupted by signal {number}" in stderr
    assert "child.started" in stderr or step == 1  # else the demo logs warnings only
    assert_nothing_left(temporary)


@pytest.mark.slow
def test_a_demo_that_nobody_reads_leaves_nothing(temporary: Path) -> None:
    demo = start(temporary)
    assert demo.stdout is not None
    demo.stdout.readline()
    demo.stdout.close()
    assert demo.wait(LIMIT_SECONDS) != 0
    assert demo.stderr is not None
    demo.stderr.close()
    assert_nothing_left(temporary)


@pytest.fixture
def python_of_nobody() -> tuple[str, dict[str, str]]:
    """A Python that an ordinary user can run, and the variables that give it what this one has."""
    variables = {"PYTHONPATH": os.pathsep.join([str(PROJECT), sysconfig.get_path("purelib")])}
    for python in (sys.executable, "/usr/bin/python3"):
        argv = [python, "-c", "import backupd.cli, backupd.postgres"]
        with contextlib.suppress(OSError):
            if subprocess.run(argv, env=variables, user=NOBODY, cwd="/", capture_output=True).returncode == 0:
                return python, variables
    pytest.skip("nobody can run a Python like this one")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_an_ordinary_user_with_a_closed_home_can_run_it(
    temporary: Path, python_of_nobody: tuple[str, dict[str, str]]
) -> None:
    python, variables = python_of_nobody
    home = temporary.with_name(f"{temporary.name}-home")
    home.mkdir(mode=0o700)
    os.chown(home, NOBODY, NOBODY)
    try:
        code, stdout, stderr = end(start(temporary, variables | {"HOME": str(home)}, python=python, uid=NOBODY))
        assert (code, stderr) == (0, "")
        assert_played(stdout)
        assert list(home.iterdir()) == []
    finally:
        home.rmdir()
    assert_nothing_left(temporary)


@pytest.mark.slow
def test_root_needs_no_user_named_postgres(temporary: Path, tmp_path: Path, namespace: list[str]) -> None:
    others = [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith("postgres:")]
    (tmp_path / "passwd").write_text("\n".join(others) + "\n")
    script = f'mount --bind {tmp_path}/passwd /etc/passwd; exec "$@"'
    closed = tmp_path / "home"
    closed.mkdir(mode=0o700)

    code, stdout, stderr = end(start(temporary, {"HOME": str(closed)}, [*namespace, script, "sh"]))

    assert (code, stderr) == (0, "")
    assert_played(stdout)
    assert_nothing_left(temporary)


def test_without_any_postgresql_it_says_how_to_get_one(temporary: Path, namespace: list[str]) -> None:
    folders = {install.bin_directory.parent for install in throwaway.find_servers()}
    script = "".join(f"mount -t tmpfs none {folder}; " for folder in folders) + 'exec "$@"'

    code, stdout, stderr = end(start(temporary, {"BACKUPD_LOG__FORMAT": "console"}, [*namespace, script, "sh"]))

    assert (code, stdout) == (2, "")
    assert "no PostgreSQL server is installed here" in stderr
    assert "pip install 'backupd[demo]'" in stderr
    assert_nothing_left(temporary)


def test_a_count_that_differs_after_tar_and_pg_restore_fails_the_demo() -> None:
    said: list[Shown] = []

    with pytest.raises(VerificationFailed, match="differs: rows of b"):
        _compared(said.append, {"rows of a": 1, "rows of b": 2}, {"rows of a": 1, "rows of b": 3})
    assert said == [(Count("rows of a", 1, 1), Count("rows of b", 2, 3))]
