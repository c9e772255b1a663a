"""Backup and restore against PostgreSQL's own images, over TCP with a password, as in compose and Kubernetes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from shop import count_rows, fill_shop

pytestmark = pytest.mark.container

PASSWORD = "a secret: with \\ and ' in it"


@pytest.fixture(scope="module", params=[15, 17, 18], ids="postgres:{}".format)
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """Host and port of a fresh container with the shop in database app."""
    if "DOCKER_HOST" not in os.environ and not Path("/var/run/docker.sock").exists():
        pytest.skip("no container engine answers: set DOCKER_HOST")
    from testcontainers.postgres import PostgresContainer

    image = f"docker.io/library/postgres:{request.param}"
    with PostgresContainer(image, username="postgres", password=PASSWORD, dbname="app", driver=None) as container:
        address = (container.get_container_host_ip(), int(container.get_exposed_port(5432)))
        with connect(address, "app") as connection:
            fill_shop(connection)
        yield address


def connect(address: tuple[str, int], database: str) -> "psycopg.Connection[tuple[object, ...]]":
    """A session as the superuser."""
    host, port = address
    return psycopg.connect(host=host, port=port, user="postgres", password=PASSWORD, dbname=database, autocommit=True)


def by_root(rows: dict[tuple[str, str], int]) -> dict[tuple[str, str], int]:
    """The rows with the leaves of shop.events as one: hashed by an enum, its rows may land in either."""
    leaves = [name for name in rows if name[1].startswith("events_")]
    others = {name: rows[name] for name in rows if name not in leaves}
    return {**others, ("shop", "events"): sum(rows[name] for name in leaves)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_containers_database_comes_back_equal(server: tuple[str, int], tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text(f"{PASSWORD}\n")
    (tmp_path / "store").mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "BACKUPD_SOURCE__HOST": server[0],
        "BACKUPD_SOURCE__PORT": str(server[1]),
        "BACKUPD_SOURCE__USER": "postgres",
        "BACKUPD_SOURCE__PASSWORD_FILE": str(secret),
        "BACKUPD_SOURCE__DATABASES": "app",
        "BACKUPD_STORE__URL": f"file://{tmp_path}/store",
    }

    def backupd(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "backupd", *arguments], env=environment, capture_output=True, text=True, check=False
        )

    taken = backupd("backup")
    restored = backupd("restore", "app@latest", "--as", "again")

    assert (taken.returncode, restored.returncode) == (0, 0), taken.stderr + restored.stderr
    assert PASSWORD not in taken.stdout + taken.stderr + restored.stdout + restored.stderr
    with connect(server, "app") as source, connect(server, "again") as copy:
        assert by_root(count_rows(copy)) == by_root(count_rows(source))
    assert backupd("verify", "all").returncode == 0
