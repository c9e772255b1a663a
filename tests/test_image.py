"""The image: what is in it, and that it backs up and restores with as few rights as a cluster can leave it."""

import contextlib
import json
import os
import re
import subprocess
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_tools import wait_until
from shop import count_rows, fill_shop
from test_container import PASSWORD, by_root, connect

from backupd import __version__
from backupd.clients import SAFE_MINORS

pytestmark = [pytest.mark.container, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

TOP = Path(__file__).parent.parent
ENTRYPOINT = ["env", "--block-signal=TERM,INT", "backupd"]
MOST_BYTES = 200_000_000
MORE_BYTES = 2_000_000
"""For the first major, and for each further one."""


@dataclass(frozen=True)
class Ended:
    """How a container ended."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Image:
    """An image in a container engine."""

    engine: Any
    name: str

    @contextlib.contextmanager
    def started(self, *arguments: str, **options: Any) -> Iterator[Any]:
        """A container without rights, network and a writable file that is not in memory, unless `options` give it."""
        least = {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"], "network_mode": "none"}
        settings = {**least, "tmpfs": {"/tmp": ""}, **options}
        container = self.engine.containers.create(self.name, list(arguments), **settings)
        try:
            container.start()
            yield container
        finally:
            container.remove(force=True)

    def run(self, *arguments: str, **options: Any) -> Ended:
        """Runs backupd, or another `entrypoint`, to its end."""
        with self.started(*arguments, **options) as container:
            code = container.wait(timeout=120)["StatusCode"]
            stdout, stderr = (container.logs(stdout=out, stderr=not out).decode() for out in (True, False))
        return Ended(code, stdout, stderr)

    def shell(self, script: str, **options: Any) -> str:
        """What a shell script prints."""
        ended = self.run("-c", script, entrypoint="/bin/sh", **options)
        assert ended.code == 0, ended.stderr
        return ended.stdout

    def python(self, script: str) -> str:
        """What a Python script prints."""
        ended = self.run("-c", script, entrypoint="/opt/backupd/bin/python")
        assert ended.code == 0, ended.stderr
        return ended.stdout


@pytest.fixture(scope="module")
def image() -> Image:
    """What TEST_IMAGE names, else an image that is built here, with the client of Debian."""
    if "DOCKER_HOST" not in os.environ and not Path("/var/run/docker.sock").exists():
        pytest.skip("no container engine answers: set DOCKER_HOST")
    from testcontainers.core.docker_client import DockerClient

    name = os.environ.get("TEST_IMAGE")
    if name is None:
        name = "localhost/backupd:test"
        environment = {**os.environ, "PG_SOURCE": "debian", "PG_MAJORS": "17"}
        command = [str(TOP / "scripts" / "image"), name]
        built = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if built.returncode != 0:
            pytest.fail(f"scripts/image failed:\n{built.stdout[-3000:]}{built.stderr[-3000:]}", pytrace=False)
    return Image(DockerClient().client, name)


@pytest.fixture(scope="module")
def clients(image: Image) -> dict[int, int]:
    """The minor version of each major's client, as backupd sees them."""
    ended = image.run("--version")
    assert ended.code == 0, ended.stderr
    found = re.findall(r"^pg_dump and pg_restore (\d+)\.(\d+) ", ended.stdout, re.MULTILINE)
    return {int(major): int(minor) for major, minor in found}


# --- what is in it


def test_it_is_small(image: Image, clients: dict[int, int]) -> None:
    script = "du --summarize --one-file-system --block-size=1 / 2>/dev/null || true"
    used_bytes = int(image.shell(script, user="0", cap_drop=None).split()[0])

    assert used_bytes <= MOST_BYTES + MORE_BYTES * (len(clients) - 1)


@pytest.mark.filterwarnings("default:client:UserWarning")
def test_it_has_clients_and_those_with_known_holes_are_reported(clients: dict[int, int]) -> None:
    assert clients
    for major, minor in clients.items():
        if minor < SAFE_MINORS.get(major, 0):
            warnings.warn(f"client {major}.{minor} is below {major}.{SAFE_MINORS[major]}", UserWarning, stacklevel=1)


def test_it_has_no_server_no_perl_no_compiler_and_no_pip(image: Image) -> None:
    packages = image.shell("dpkg-query --show --showformat='${Package}\n'").split()
    unwanted = re.compile(
        r"perl|perl-modules.*|postgresql.*|(gcc|g\+\+|cpp)(-\d+)?|binutils|make|.*-dev|python3-(pip|venv)"
    )
    programs = "perldoc psql postgres initdb cc gcc g++ cpp ld as make pip pip3 curl wget"

    assert not [name for name in packages if unwanted.fullmatch(name)]
    assert image.shell(f"for each in {programs}; do command -v $each || true; done") == ""
    assert image.shell("ls /usr/lib/postgresql/*/bin | sort -u | grep -v :").split() == ["pg_dump", "pg_restore"]
    assert image.python("import importlib.util as u; print(*filter(u.find_spec, ['pip', 'setuptools']))") == "\n"


def test_its_labels_say_what_it_is(image: Image) -> None:
    config = image.engine.images.get(image.name).attrs["Config"]
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in config["Labels"].items()}

    assert labels["title"] == "backupd"
    assert labels["version"] == __version__
    assert labels["licenses"] == "Apache-2.0"
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", labels["revision"])


def test_it_runs_backupd_as_user_10001_and_has_no_health_check(image: Image) -> None:
    config = image.engine.images.get(image.name).attrs["Config"]

    assert (config["User"], config["Entrypoint"], config.get("Cmd") or []) == ("10001:10001", ENTRYPOINT, [])
    assert not config.get("Healthcheck")


def test_it_may_change_none_of_its_own_files(image: Image) -> None:
    writable = "-user 10001 -o -group 10001 -o -perm -o+w -not -type l -not -perm -1000"
    script = f"find / -xdev -not -path '/proc/*' \\( {writable} \\) 2>/dev/null || true"

    assert sorted(image.shell(script, user="0", cap_drop=None).split()) == ["/backups", "/scratch"]


# --- what it needs


LEAST = {"user": "12345:0"}


def test_it_runs_as_any_user_without_rights_network_and_a_writable_root(image: Image) -> None:
    version = image.run("--version", **LEAST)
    listed = image.run("list", **LEAST, environment={"BACKUPD_STORE__URL": "file:///backups"})

    assert version.code == 0, version.stderr
    assert f"backupd {__version__}\n" in version.stdout
    assert (listed.code, listed.stdout, listed.stderr) == (0, "no backups\n", "")


def test_the_descriptions_of_services_that_boto3_needs_are_there(image: Image) -> None:
    store = "print(open_store('s3://bucket/prefix', S3Options(region='eu-west-1')).describe()['endpoint'])"
    client = "print(boto3.client(name, region_name='eu-west-1').meta.endpoint_url)"
    services = ("s3", "sts", "sso", "sso-oidc", "signin")

    assert image.python(f"from backupd.store import *\n{store}").startswith("https://s3.")
    assert image.python(f"import boto3\nfor name in {services}: {client}").count("https://") == len(services)


def test_what_was_cut_from_its_libraries_is_not_missed(image: Image) -> None:
    urls = ["json://host/x", "mailto://user:word@example.org"]
    script = f"import apprise; print(*[apprise.Apprise().add(url) for url in {urls}])"
    assert image.python(script) == "True True\n"
    modules = "pyrage, nacl.signing, starlette, uvicorn, croniter, jinja2, prometheus_client, rich.markdown"
    assert image.python(f"import {modules}; print(1)") == "1\n"


def test_it_knows_time_zones_and_the_systems_certificates(image: Image) -> None:
    assert image.python("import zoneinfo; print(zoneinfo.ZoneInfo('Europe/Berlin'))") == "Europe/Berlin\n"
    assert int(image.shell('grep --count BEGIN "$SSL_CERT_FILE"')) > 10


# --- what it does


@dataclass(frozen=True)
class Server:
    """A PostgreSQL in a container: as this machine reaches it, and as a container of `network` does."""

    address: tuple[str, int]
    host: str
    network: str

    def connect(self, database: str) -> "psycopg.Connection[tuple[object, ...]]":
        return connect(self.address, database)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """In the block a dump of app waits for a lock."""
        with self.connect("app") as connection, connection.transaction():
            connection.execute("LOCK TABLE shop.customers IN ACCESS EXCLUSIVE MODE")
            yield

    def waits(self, database: str) -> bool:
        """Whether a session waits for a lock there."""
        query = "SELECT FROM pg_locks JOIN pg_database d ON d.oid = database WHERE NOT granted AND datname = %s"
        with self.connect("postgres") as connection:
            return connection.execute(query, [database]).fetchone() is not None

    def sessions(self) -> list[tuple[object, ...]]:
        """The sessions of backupd and its children."""
        query = "SELECT datname, state, query FROM pg_stat_activity WHERE application_name LIKE 'backupd%'"
        with self.connect("postgres") as connection:
            return connection.execute(query).fetchall()


SLOW_WORKERS = """
CREATE TABLE slow (n int);
CREATE FUNCTION wait_where_slow_is_locked() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_locks WHERE relation = 'slow'::regclass AND pid <> pg_backend_pid()) THEN
        PERFORM pg_sleep(20);
    END IF;
END $$;
CREATE EVENT TRIGGER wait ON login EXECUTE FUNCTION wait_where_slow_is_locked();
"""
"""Who logs in after pg_dump has taken its locks is one of its workers, and will be there for a while."""


@pytest.fixture(scope="module")
def server(image: Image) -> Iterator[Server]:
    """A postgres:17 with the shop in database app, and with a database slow, whose dump does not end."""
    from testcontainers.core.network import Network
    from testcontainers.postgres import PostgresContainer

    name = "docker.io/library/postgres:17"
    postgres = PostgresContainer(name, username="postgres", password=PASSWORD, dbname="app", driver=None)
    with Network() as network, postgres.with_network(network) as container:
        address = (container.get_container_host_ip(), int(container.get_exposed_port(5432)))
        wrapped = container.get_wrapped_container()
        wrapped.reload()
        host = wrapped.attrs["NetworkSettings"]["Networks"][network.name]["IPAddress"]
        with connect(address, "app") as connection:
            fill_shop(connection)
            connection.execute("CREATE DATABASE slow")
        with connect(address, "slow") as connection:
            connection.execute(SLOW_WORKERS.encode())
        yield Server(address, host, network.name)


@pytest.fixture
def installation(image: Image, server: Server, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A container's options: the server, its password in a file, and a new volume as the store."""
    secret = tmp_path / "password"
    secret.write_text(f"{PASSWORD}\n")
    secret.chmod(0o444)
    volume = image.engine.volumes.create()
    environment = {
        "BACKUPD_SOURCE__HOST": server.host,
        "BACKUPD_SOURCE__USER": "postgres",
        "BACKUPD_SOURCE__PASSWORD_FILE": "/run/secrets/password",
        "BACKUPD_SOURCE__SERVER": "prod",
        "BACKUPD_SOURCE__DATABASES": "app",
        "BACKUPD_STORE__URL": "file:///backups",
        "BACKUPD_DUMP__JOBS": "2",
    }
    mounts = {
        str(secret): {"bind": "/run/secrets/password", "mode": "ro"},
        volume.name: {"bind": "/backups", "mode": "rw"},
    }
    yield {"network_mode": server.network, "environment": environment, "volumes": mounts}
    volume.remove()


def listed(image: Image, installation: dict[str, Any]) -> list[str]:
    """The databases of the backups in the store."""
    ended = image.run("list", "--json", **installation)
    assert ended.code == 0, ended.stderr
    return [each["source"]["database"] for each in json.loads(ended.stdout)]


def test_a_backup_of_a_container_is_restored_with_equal_rows(
    image: Image, server: Server, installation: dict[str, Any]
) -> None:
    taken = image.run("backup", **installation)
    restored = image.run("restore", "app@latest", "--as", "again", **installation)

    assert (taken.code, restored.code) == (0, 0), taken.stderr + restored.stderr
    assert PASSWORD not in taken.stdout + taken.stderr + restored.stdout + restored.stderr
    with server.connect("app") as source, server.connect("again") as copy:
        assert by_root(count_rows(copy)) == by_root(count_rows(source))
    assert listed(image, installation) == ["app"]


@pytest.mark.parametrize("seconds", [0, 0.05, 0.2, 0.3, 0.5, 1.0])
def test_as_pid_1_it_is_ended_by_sigterm_soon_after_its_start(
    seconds: float, image: Image, server: Server, installation: dict[str, Any]
) -> None:
    with server.held(), image.started("backup", **installation) as container:
        time.sleep(seconds)
        container.kill("SIGTERM")
        code = container.wait(timeout=15)["StatusCode"]
        wait_until(lambda: not server.sessions(), "sessions were left on the server")

    assert code == 143


def test_as_pid_1_it_is_ended_by_sigterm_amid_a_dump_and_leaves_nothing(
    image: Image, server: Server, installation: dict[str, Any]
) -> None:
    with image.started("backup", "slow", **installation) as container:
        wait_until(lambda: len(pg_dumps(container)) == 3, "pg_dump has no workers")
        container.kill("SIGTERM")
        code = container.wait(timeout=15)["StatusCode"]

    assert code == 143
    assert listed(image, installation) == []
    assert "no orphans" in image.run("list", "--orphans", **installation).stdout


def test_as_pid_1_it_reaps_the_workers_of_a_killed_pg_dump(
    image: Image, server: Server, installation: dict[str, Any]
) -> None:
    with server.held(), image.started("backup", "slow", "app", **installation) as container:
        wait_until(lambda: len(pg_dumps(container)) == 3, "pg_dump has no workers")
        before = pg_dumps(container)
        leader = next(each for each in before if each.parent == 1)
        container.exec_run(["/bin/sh", "-c", f"kill -9 {leader.pid}"])
        wait_until(lambda: server.waits("app"), "the next database's dump does not wait")
        after = processes(container)

    assert {each.pid for each in before}.isdisjoint(each.pid for each in after)
    assert [each.name for each in after if each.name == "pg_dump"] == ["pg_dump"]
    assert not [each for each in after if each.state == "Z"]


@dataclass(frozen=True)
class Process:
    """A line of /proc/PID/stat."""

    pid: int
    name: str
    state: str
    parent: int


def processes(container: Any) -> list[Process]:
    """All processes of a container."""
    said = container.exec_run(["/bin/sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null"]).output.decode()
    found = re.findall(r"^(\d+) \((.*)\) (\S) (\d+) ", said, re.MULTILINE)
    return [Process(int(pid), name, state, int(parent)) for pid, name, state, parent in found]


def pg_dumps(container: Any) -> list[Process]:
    """The living processes of pg_dump."""
    return [each for each in processes(container) if each.name == "pg_dump" and each.state != "Z"]
