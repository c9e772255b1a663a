"""backupd as somebody installed it, and what can go wrong around it: clients that misbehave, wires that hold or break.

A `Site` is one installation: settings, store, scratch and temporary folder of its own. It runs the command line as a
child or `backup.take` in process, and asks afterwards what a fault test must ask: what is listed, whether the earlier
backup is as it was, whether a process, a file or a secret was left anywhere.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest
from fix_postgres import OPTIONS, PostgresServer
from fix_store import S3Server
from psycopg import sql
from shop import fill_shop

from backupd import archive, backup, dump, postgres, throwaway
from backupd.catalog import Catalog
from backupd.clients import Client, choose_for_dump, client_in
from backupd.connection import Server, child_environment
from backupd.encryption import Identities
from backupd.failure import ENDING
from backupd.layout import archive_key
from backupd.manifest import Backup, Index
from backupd.progress import Progress
from backupd.selector import name_of
from backupd.store import S3Options, open_store

PROJECT = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 30.0
LABEL = "prod"


def wait_until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """The condition's first true answer; a test fails where there is none in time."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds} s in vain: {what}")
        time.sleep(0.02)
    return answer


@dataclass(frozen=True)
class Ended:
    """How a run of the command line ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """The log: every line of stderr must be an event, or a traceback would hide among them."""
        return [json.loads(line) for line in self.stderr.splitlines()]

    @property
    def error(self) -> dict[str, Any]:
        """The last event, which says why the run failed."""
        last = self.events[-1]
        assert last["event"] == "run.failed", self.stderr
        return last


class Running:
    """backupd as a child of the test."""

    def __init__(self, site: "Site", popen: subprocess.Popen[str]) -> None:
        self._site = site
        self._popen = popen
        self.pid = popen.pid

    def send(self, number: int) -> None:
        """Sends a signal to backupd alone."""
        self._popen.send_signal(number)

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._popen.poll() is None

    def end(self) -> Ended:
        """Waits for the end; no output may hold a secret."""
        stdout, stderr = self._popen.communicate(timeout=120)
        ended = Ended(self._popen.returncode, stdout, stderr)
        self._site.assert_no_secret(ended.stdout + ended.stderr)
        return ended


@dataclass
class Site:
    """One installation of backupd for a server; `settings` are environment variables and win over what is usual."""

    server: PostgresServer
    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    s3_options: S3Options = field(default_factory=S3Options)
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    prefix: Sequence[str] = ()
    """A command that runs the command line, as `nice` would."""

    def __post_init__(self) -> None:
        for each in (self.store, self.scratch, self.temporary):
            each.mkdir(parents=True)
        self.secrets = [self.server.password]
        self._photograph: Mapping[str, str] = {}
        self._listed: Sequence[str] = ()

    @property
    def store(self) -> Path:
        """The store's folder."""
        return self.folder / "store"

    @property
    def scratch(self) -> Path:
        """Where dumps lie."""
        return self.folder / "scratch"

    @property
    def temporary(self) -> Path:
        """TMPDIR."""
        return self.folder / "temporary"

    def environment(self, **settings: str) -> dict[str, str]:
        """The whole environment of a run; children inherit the mark."""
        usual = {
            "PATH": f"{self.server.bin_directory}{os.pathsep}{os.environ['PATH']}",
            "TMPDIR": str(self.temporary),
            "SITE_MARK": self.mark,
            "BACKUPD_SOURCE__HOST": "127.0.0.1",
            "BACKUPD_SOURCE__PORT": str(self.server.port),
            "BACKUPD_SOURCE__USER": self.server.user,
            "BACKUPD_SOURCE__PASSWORD": self.server.password,
            "BACKUPD_SOURCE__SERVER": LABEL,
            "BACKUPD_STORE__URL": self.store.as_uri(),
            "BACKUPD_SCRATCH__DIRECTORY": str(self.scratch),
        }
        merged = usual | self.settings | settings
        return {name: value for name, value in merged.items() if value}

    def start(self, *arguments: str, **settings: str) -> Running:
        """Starts `backupd ARGUMENTS`."""
        argv = [*self.prefix, sys.executable, "-m", "backupd", *arguments]
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environment = self.environment(**settings)
        return Running(self, subprocess.Popen(argv, env=environment, cwd=PROJECT, text=True, **pipes))

    def run(self, *arguments: str, **settings: str) -> Ended:
        """Runs `backupd ARGUMENTS` to its end."""
        return self.start(*arguments, **settings).end()

    @property
    def catalog(self) -> Catalog:
        """The store's backups."""
        environment = self.environment()
        file = environment.get("BACKUPD_ENCRYPTION__IDENTITIES_FILE")
        identities = Identities(Path(file) if file else None)
        return Catalog(open_store(environment["BACKUPD_STORE__URL"], self.s3_options), identities=identities)

    def take(
        self,
        database: str,
        *,
        clients: Path | None = None,
        catalog: Catalog | None = None,
        recipients: tuple[str, ...] = (),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        progress: Progress | None = None,
        **options: Any,
    ) -> Backup:
        """Takes a backup in process, into the site's store unless another catalog is given."""
        with self.reached() as access:
            environment = child_environment(access_server(self), None, "test")
            client = choose_for_dump(_clients(clients, self.server, environment), self.server.major)
            job = backup.Job(LABEL, database, dump.Options(**options), self.scratch, recipients=recipients)
            shown = progress or Progress()
            return backup.take(access, catalog or self.catalog, client, job, clock, shown)

    @contextlib.contextmanager
    def reached(self) -> Iterator[postgres.Access]:
        """The server, reached in process as the command line does it."""
        with postgres.reach(access_server(self), "postgres", self.temporary, "backupd test") as access:
            yield access

    def earlier(self, database: str) -> Backup:
        """A good backup before anything goes wrong; `assert_untouched` will ask for it."""
        taken = self.take(database)
        self.remember()
        return taken

    def remember(self) -> None:
        """Keeps in mind what the store holds now."""
        self._photograph, self._listed = self.objects(), self.listed()

    def listed(self) -> list[str]:
        """The ids of what is listed; nothing listed may be broken."""
        listing = self.catalog.backups()
        assert listing.broken == ()
        return [each.id for each in listing.backups]

    def orphans(self) -> list[str]:
        """The keys of what a user could mistake for a backup."""
        return [entry.key for entry in self.catalog.backups().orphans]

    def failures(self) -> list[tuple[str, str, int]]:
        """What the store knows of runs that failed: database, reason and how many in a row, the newest first."""
        return [(each.database, each.reason, each.count) for each in self.catalog.backups().failures]

    def objects(self) -> dict[str, str]:
        """Every file of the store but records of failures, temporary ones too, with its hash."""
        files = sorted(path for path in self.store.rglob("*") if path.is_file() and not path.match(f"*{ENDING}"))
        return {str(path.relative_to(self.store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def index(self, taken: Backup) -> Index:
        """The backup's index, read back."""
        return archive.read_index(self.catalog.archive(taken))

    def archive_file(self, taken: Backup) -> Path:
        """The backup's archive."""
        return self.store / archive_key(name_of(taken))

    def children(self, besides: int = 0) -> dict[int, str]:
        """The living processes of this site, backupd's own apart (`besides`), with their command lines."""
        return {pid: text for pid, text in _processes(f"SITE_MARK={self.mark}") if pid not in (besides, os.getpid())}

    def pg_dump(self, run: Running) -> int:
        """The process that dumps, once it is there."""

        def found() -> int | None:
            dumping = {pid: text for pid, text in self.children(run.pid).items() if "--format=directory" in text}
            return min(dumping, default=None)  # workers are forked later

        pid: int = wait_until(found, "pg_dump was not started")
        return pid

    def assert_no_secret(self, text: str) -> None:
        """No password of this site is in the text."""
        for secret in self.secrets:
            assert secret not in text

    def assert_failed(self, ended: Ended, code: int, reason: str) -> None:
        """The run failed for that reason and changed nothing that anybody could see."""
        assert ended.code == code, ended.stderr
        assert ended.error["reason"] == reason, ended.stderr
        assert ended.error["exit_code"] == code
        self.assert_untouched()

    def assert_untouched(self) -> None:
        """The store is as it was remembered, to the last byte; no process, no file is left."""
        self.assert_clean()
        assert self.listed() == self._listed
        assert self.objects() == self._photograph

    def assert_clean(self, seconds: float = 1.0) -> None:
        """No child is left, nothing is in scratch and temporary folder, nothing unfinished is in the store."""
        wait_until(lambda: not self.children(), "children are left", seconds)
        assert sorted(self.scratch.rglob("*")) == []
        left = sorted(self.temporary.rglob("*"))
        assert left == []
        assert [path for path in self.store.rglob(".*") if path.is_file()] == []


def s3_site(site: Callable[..., Site], server: PostgresServer, s3: S3Server) -> Site:
    """An installation with that S3 server as its store."""
    credentials = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    here = site(server, **credentials, BACKUPD_STORE__URL=f"s3://{s3.bucket}/a/prefix")
    here.settings |= {"BACKUPD_STORE__S3__ENDPOINT_URL": s3.endpoint_url, "BACKUPD_STORE__S3__REGION": "us-east-1"}
    here.s3_options = s3.options(region="us-east-1")
    here.secrets.append(credentials["AWS_SECRET_ACCESS_KEY"])
    return here


def access_server(site: Site) -> Server:
    """The site's server with its password, by TCP; children get the mark."""
    found = site.server.as_server(
        site.server.password, host="127.0.0.1", port=site.environment()["BACKUPD_SOURCE__PORT"]
    )
    return replace(found, environment={**found.environment, "SITE_MARK": site.mark})


def _clients(folder: Path | None, server: PostgresServer, environment: Mapping[str, str]) -> list[Client]:
    """Only the one that is meant: looking at every client of this machine costs 0.2 s."""
    found = client_in(folder or server.bin_directory, environment)
    assert found is not None
    return [found]


def _processes(marked: str) -> Iterator[tuple[int, str]]:
    """Living processes with that variable in their environment; a zombie has none."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if marked.encode() in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name), (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()


def process_environment(pid: int) -> dict[str, str]:
    """The environment of a living process."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(variable.split("=", 1) for variable in variables if variable)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Installs backupd for a server: `site(postgres17, BACKUPD_...="...")`. Its children do not outlive the test."""
    made: list[Site] = []

    def install(server: PostgresServer, **settings: str) -> Site:
        made.append(Site(server, tmp_path / f"site{len(made)}", settings))
        return made[-1]

    yield install
    for each in made:
        for pid in each.children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def namespace() -> list[str]:
    """Runs a shell script and then the command, in a mount namespace of its own."""
    command = ["unshare", "--mount", "sh", "-ec"]
    if os.geteuid() != 0 or shutil.which("unshare") is None or subprocess.run([*command, "true"]).returncode:
        pytest.skip("only root mounts file systems")
    return command


# --- databases that tests only read


@pytest.fixture(scope="session")
def shop_of() -> Callable[[PostgresServer], str]:
    """The name of a shop on that server, made once; nobody may change it."""
    return _once(lambda connection: fill_shop(connection))


@pytest.fixture(scope="session")
def large_of() -> Callable[[PostgresServer], str]:
    """The name of a database with 8 MB that do not compress, in one table, and a small table."""
    return _once(fill_large)


@pytest.fixture(scope="session")
def huge_of() -> Callable[[PostgresServer], str]:
    """As `large_of`, with 24 MB: more than one part of an upload."""
    return _once(lambda connection: fill_large(connection, 24))


def fill_large(connection: psycopg.Connection[Any], megabytes: int = 8) -> None:
    """One table with that many MB, which come as twice as much from COPY, and a small one."""
    connection.execute("CREATE TABLE big (id int, noise bytea)")
    connection.execute("ALTER TABLE big ALTER noise SET STORAGE EXTERNAL")
    for number in range(megabytes):
        connection.execute("INSERT INTO big VALUES (%s, %s)", [number, os.urandom(1 << 20)], binary=True)
    connection.execute("CREATE TABLE small AS SELECT n FROM generate_series(1, 10) n")


def _once(fill: Callable[[psycopg.Connection[Any]], None]) -> Callable[[PostgresServer], str]:
    made: dict[tuple[str, int], str] = {}

    def make(server: PostgresServer) -> str:
        key = server.host, server.port
        if key not in made:
            name = f"read_only_{secrets.token_hex(4)}"
            with server.connect() as connection:
                connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
            with server.connect(name) as connection:
                fill(connection)
            made[key] = name
        return made[key]

    return make


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[Callable[..., tuple[PostgresServer, Callable[[], None]]]]:
    """A server of the test's own, and what stops it at once: `own_postgres(**options)`."""
    with contextlib.ExitStack() as stack:

        def start(**options: str) -> tuple[PostgresServer, Callable[[], None]]:
            install = next(each for each in throwaway.find_servers() if each.major == 17)
            running = stack.enter_context(contextlib.ExitStack())
            folder = Path(os.environ.get("TMPDIR", "/tmp"))
            made = running.enter_context(throwaway.start(install, folder, options=OPTIONS | options, listen=True))
            return PostgresServer.of(made), running.close

        yield start


# --- clients that misbehave


@pytest.fixture
def shell_clients(tmp_path: Path) -> Callable[[PostgresServer, str], Path]:
    """Clients whose pg_dump runs a shell script when it should dump: `$real` is the real one, `$folder` the dump's."""

    def make(server: PostgresServer, script: str) -> Path:
        head = f"""#!/bin/sh
real={shlex.quote(str(server.bin_directory / "pg_dump"))}
for argument; do case "$argument" in --file=*) folder="${{argument#--file=}}";; esac; done
case " $* " in *" --format=directory "*) ;; *) exec "$real" "$@";; esac
"""
        return _made_clients(tmp_path, server, head + script)

    return make


@pytest.fixture
def tampering_clients(tmp_path: Path) -> Callable[[PostgresServer, str], Path]:
    """Clients whose pg_dump dumps aside, runs Python code on that (`dump`, a Path), gives the result, and ends with 0.

    `member` is the largest table's file. The code has `unpack(path)` and `packed(path, data)`.
    `publish(path)` gives a file before the end: toc.dat first, then the rest, as pg_dump does.
    """

    def make(server: PostgresServer, code: str) -> Path:
        script = TAMPERING.format(
            python=sys.executable, real=str(server.bin_directory / "pg_dump"), code=code.strip().replace("\n", "\n    ")
        )
        return _made_clients(tmp_path, server, script)

    return make


TAMPERING = """#!{python}
import gzip, os, re, shutil, subprocess, sys, time
from pathlib import Path

def unpack(path):
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    from backports import zstd
    return zstd.decompress(path.read_bytes())

def packed(path, data):
    if path.suffix == ".gz":
        return gzip.compress(data)
    from backports import zstd
    return zstd.compress(data)

def main():
    if "--format=directory" not in sys.argv:
        os.execv({real!r}, sys.argv)
    file = next(each for each in sys.argv if each.startswith("--file="))
    target = Path(file.removeprefix("--file="))
    dump = target.with_name("aside")
    argv = [{real!r}, *(each.replace(file, "--file=" + str(dump)) for each in sys.argv[1:])]
    status = subprocess.run(argv).returncode
    if status:
        sys.exit(status)
    tables = [each for each in dump.iterdir() if re.match("[0-9]+[.]dat", each.name)]
    member = max(tables, key=lambda each: each.stat().st_size)
    def publish(path):
        shutil.copyfile(path, target / path.name)
        path.unlink()
    {code}
    for path in sorted(dump.iterdir(), key=lambda each: each.name != "toc.dat"):
        publish(path)

main()
"""


def _made_clients(tmp_path: Path, server: PostgresServer, script: str) -> Path:
    folder = tmp_path / f"clients-{secrets.token_hex(4)}"
    folder.mkdir()
    (folder / "pg_restore").symlink_to(server.bin_directory / "pg_restore")
    (folder / "pg_dump").write_text(script)
    (folder / "pg_dump").chmod(0o755)
    return folder


@dataclass
class Turnstile:
    """Where a pg_dump waits before it begins; each waits for its own number."""

    folder: Path

    @property
    def script(self) -> str:
        """For `shell_clients`."""
        folder = shlex.quote(str(self.folder))
        return f"""number=$(ls {folder} | grep -c waiting)
: > {folder}/waiting.$number
while [ ! -e {folder}/go.$number ]; do sleep 0.02; done
exec "$real" "$@"
"""

    def wait(self, number: int) -> None:
        """Until pg_dump number `number` (from 0) has come."""
        wait_until((self.folder / f"waiting.{number}").exists, f"pg_dump {number} was not started")

    def let(self, number: int) -> None:
        """Lets it go on."""
        (self.folder / f"go.{number}").touch()


@pytest.fixture
def turnstile(tmp_path: Path) -> Turnstile:
    """A turnstile for `shell_clients`."""
    (tmp_path / "turnstile").mkdir()
    return Turnstile(tmp_path / "turnstile")


# --- wires


class Wire:
    """A TCP proxy before a server. It may change what the server says first, hold a long answer, or break.

    `hold_after` is how many bytes of the server's a connection lets pass until `release`: only a COPY is that long,
    so that pg_dump hangs in the middle of a member, as it would on a slow network.
    """

    def __init__(self, port: int, hold_after: int | None = None) -> None:
        self._target = ("127.0.0.1", port)
        self._hold_after = hold_after
        self._sockets: list[socket.socket] = []
        self._go = threading.Event()
        self.held = threading.Event()
        self.rewrite: Callable[[bytes], bytes] = lambda data: data
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def release(self) -> None:
        """Lets everything pass from now on."""
        self._go.set()

    def close(self) -> None:
        """Ends the listener and all connections."""
        self.release()
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for each in (self._listener, *self._sockets):
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                server = socket.create_connection(self._target)
                self._sockets.append(server)
                for source, target, relay in ((client, server, self._ask), (server, client, self._answer)):
                    threading.Thread(target=self._pump, args=(source, target, relay), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, relay: Callable[[bytes, int], bytes]) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                passed += len(data)
                target.sendall(relay(data, passed))
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _ask(self, data: bytes, passed: int) -> bytes:
        return data

    def _answer(self, data: bytes, passed: int) -> bytes:
        if self._hold_after is not None and passed > self._hold_after and not self._go.is_set():
            self.held.set()
            self._go.wait()
        return self.rewrite(data)


@pytest.fixture
def wire() -> Iterator[Callable[..., Wire]]:
    """Puts a wire before a server: `wire(postgres17, hold_after=3_000_000)`."""
    with contextlib.ExitStack() as stack:

        def lay(server: PostgresServer, **options: Any) -> Wire:
            made = Wire(server.port, **options)
            stack.callback(made.close)
            return made

        yield lay


@contextlib.contextmanager
def locked_table(server: PostgresServer, database: str, table: str) -> Iterator[None]:
    """Holds a table as DDL does, so that pg_dump waits before it has written anything."""
    with server.connect(database) as connection, connection.transaction():
        connection.execute(sql.SQL("LOCK TABLE {}").format(sql.Identifier(*table.split("."))))
        yield


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of that size at `folder`."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts file systems")
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
