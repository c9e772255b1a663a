"""Real PostgreSQL servers 15, 17 and 18, started when a test first asks, one of each per xdist worker."""

import contextlib
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from backupd import process, throwaway
from backupd.connection import Server

# Nothing here has to survive a crash, and two cores are shared by everything.
OPTIONS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "shared_buffers": "32MB",
    "autovacuum": "off",
}


@dataclass(frozen=True)
class PostgresServer:
    """A running server. `host` is its socket's folder (trusted); 127.0.0.1 with the same port wants the password."""

    major: int
    host: str
    port: int
    user: str
    password: str
    bin_directory: Path
    data_directory: Path

    @classmethod
    def of(cls, made: throwaway.Throwaway) -> "PostgresServer":
        """That server, as tests use it."""
        return cls(
            major=made.install.major,
            host=str(made.socket_directory),
            port=made.port,
            user=made.superuser,
            password=made.password,
            bin_directory=made.install.bin_directory,
            data_directory=made.data_directory,
        )

    def connect(self, dbname: str = "postgres", **keywords: Any) -> psycopg.Connection[Any]:
        """A session in autocommit; `keywords` are libpq's and win."""
        parameters = {"host": self.host, "port": self.port, "user": self.user, "dbname": dbname, **keywords}
        return psycopg.connect(autocommit=True, **parameters)

    def as_server(self, password: str | None = None, **keywords: str) -> Server:
        """The same server as backupd's settings would give it, its own clients first in PATH; `keywords` win."""
        merged = {"host": self.host, "port": str(self.port), "user": self.user, **keywords}
        path = f"{self.bin_directory}{os.pathsep}{os.environ['PATH']}"
        return Server(keywords=merged, password=password, environment={"PATH": path})


DatabaseFactory = Callable[..., str]


@contextlib.contextmanager
def running_server(major: int, **options: str) -> Iterator[PostgresServer]:
    """A server of that major version; `options` are settings of postgresql.conf and win."""
    install = next((found for found in throwaway.find_servers() if found.major == major), None)
    if install is None:
        pytest.skip(f"PostgreSQL {major} is not installed here")
    with throwaway.start(install, Path(tempfile.gettempdir()), options=OPTIONS | options, listen=True) as server:
        yield PostgresServer.of(server)


@pytest.fixture(scope="session")
def postgres15() -> Iterator[PostgresServer]:
    """PostgreSQL 15, the distribution's."""
    with running_server(15) as server:
        yield server


@pytest.fixture(scope="session")
def postgres17() -> Iterator[PostgresServer]:
    """PostgreSQL 17, a wheel with everything."""
    with running_server(17) as server:
        yield server


@pytest.fixture(scope="session")
def postgres18() -> Iterator[PostgresServer]:
    """PostgreSQL 18, a wheel without zstd and lz4."""
    with running_server(18) as server:
        yield server


@pytest.fixture(params=[15, 17, 18], ids="postgres{}".format)
def any_postgres(request: pytest.FixtureRequest) -> PostgresServer:
    """Each of the three in turn."""
    server: PostgresServer = request.getfixturevalue(f"postgres{request.param}")
    return server


@pytest.fixture
def database() -> Iterator[DatabaseFactory]:
    """Makes an empty database: `database(server)` or `database(server, "we ird")` returns its (unique) name.

    Afterwards it is dropped, and with it every database whose name starts with its name (restored beside, kept).
    """
    made: list[tuple[PostgresServer, str]] = []

    def create(server: PostgresServer, prefix: str = "test", options: str = "") -> str:
        name = f"{prefix}_{uuid.uuid4().hex[:8]}"
        with server.connect() as connection:
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE template0 " + options)
            connection.execute(statement.format(sql.Identifier(name)))
        made.append((server, name))
        return name

    yield create
    for server, prefix in made:
        _drop(server, prefix)


def _drop(server: PostgresServer, prefix: str) -> None:
    with server.connect() as connection:
        found = connection.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [prefix])
        for (name,) in found.fetchall():
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@contextlib.contextmanager
def standby_of(primary: PostgresServer) -> Iterator[PostgresServer]:
    """A standby of that server, which streams from it."""
    owner = primary.data_directory.stat()
    uid = owner.st_uid if os.geteuid() == 0 else None
    data = primary.data_directory.with_name("standby")
    programs, environment = primary.bin_directory, {"PATH": os.defpath}
    where = ["-h", primary.host, "-p", str(primary.port), "-U", primary.user]
    argv = [str(programs / "pg_basebackup"), *where, "-D", str(data), "-R", "-c", "fast", "--no-sync"]
    assert process.run(argv, environment, uid=uid, directory=data.parent).status == 0
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    settings = {**OPTIONS, "port": str(port), "unix_socket_directories": primary.host, "listen_addresses": "127.0.0.1"}
    argv = [str(programs / "postgres"), "-D", str(data)]
    argv += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    with process.start(argv, environment, directory=data.parent, uid=uid):
        yield replace(primary, port=port, data_directory=data)


def wait_for(server: PostgresServer, query: LiteralString, parameter: str) -> None:
    """Until the server accepts connections and the query has a row."""
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(psycopg.OperationalError), server.connect() as connection:
            if connection.execute(query, [parameter]).fetchone() is not None:
                return
        assert time.monotonic() < deadline, query
        time.sleep(0.05)
