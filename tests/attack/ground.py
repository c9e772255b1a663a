"""What campaigns need around them: one PostgreSQL, one S3 server, one launcher, and installations that are made anew.

An attack begins from the same state each time. Stores are copied from one that was filled once, databases made from
templates: both take milliseconds.
"""

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from attack.launcher import read_once
from attack.traced import Launcher, launcher, wrapped_clients
from fix_postgres import PostgresServer, running_server
from fix_store import PART_BYTES, new_bucket, only_test_credentials, running_rclone
from fix_tools import Site, s3_site, wait_until
from psycopg import sql

TINY, LARGER = "tiny", "larger"
STOCKED = 3
"""How many backups a new store holds."""


@dataclass(frozen=True)
class Ground:
    """What was started. `endpoint` is of `rclone serve s3`; `clients` run under strace where they are asked to."""

    server: PostgresServer
    endpoint: str
    launcher: Launcher
    folder: Path
    clients: Path

    def site(self, **settings: str) -> Site:
        """A new installation with an empty store in a directory."""
        usual = {"BACKUPD_DUMP__CLIENTS": str(self.clients)}
        return Site(self.server, self.folder / f"site-{secrets.token_hex(4)}", usual | settings)

    def stocked(self, database: str = TINY, *, s3: bool = False) -> Site:
        """A new installation with backups of that database."""
        stock = self.folder / "stock" / database
        if not s3:
            site = self.site()
            shutil.copytree(stock, site.store, dirs_exist_ok=True)
            return site
        bucket = new_bucket(self.endpoint)
        site = s3_site(lambda _, **settings: self.site(**settings), self.server, bucket)
        for path in sorted(path for path in stock.rglob("*") if path.is_file()):
            key = f"a/prefix/{path.relative_to(stock)}"
            bucket.client.put_object(Bucket=bucket.bucket, Key=key, Body=path.read_bytes())
        site.settings["BACKUPD_STORE__S3__PART_BYTES"] = str(PART_BYTES)
        return site

    def fill(self, database: str) -> None:
        """Takes the backups that new stores hold."""
        site = self.site()
        for _ in range(STOCKED):
            taken = self.launcher.run(site, "backup", database)
            assert taken.ended.code == 0, taken.ended.stderr
        shutil.copytree(site.store, self.folder / "stock" / database)
        shutil.rmtree(site.folder)

    def make(self, name: str, template: str) -> None:
        """A database like another."""
        with self.server.connect() as connection:
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
            connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))

    def wait_until_gone(self) -> None:
        """Until the server has seen that a killed run is gone: the next one would wait a second for its lock."""
        query = "SELECT FROM pg_stat_activity WHERE application_name LIKE 'backupd%' OR application_name = 'pg_dump'"
        with self.server.connect() as connection:
            wait_until(lambda: not connection.execute(query).fetchall(), "the server keeps sessions of a killed run")

    def drop(self, prefix: str) -> None:
        """Drops every database whose name begins so."""
        with self.server.connect() as connection:
            found = connection.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [prefix])
            for (name,) in found.fetchall():
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextlib.contextmanager
def ground(folder: Path, **options: str) -> Iterator[Ground]:
    """Starts everything, for which `folder` is used, and makes the two databases, one tiny, one of two parts in S3.

    `options` are the server's.
    """
    (folder / "s3").mkdir()
    with (
        pytest.MonkeyPatch.context() as patched,
        only_test_credentials(),
        running_server(17, **options) as server,
        running_rclone(folder / "s3") as endpoint,
        launcher(folder / "launcher") as started,
    ):
        patched.setattr("botocore.session.create_loader", read_once())
        clients = wrapped_clients(folder / "clients", server.bin_directory)
        made = Ground(server, endpoint, started, folder, clients)
        _create(made, TINY)
        _create(made, LARGER)
        with server.connect(LARGER) as connection:
            connection.execute("ALTER TABLE things ALTER name SET STORAGE EXTERNAL")
            noise = "SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 32000)"
            for _ in range(12):  # of noise that zstd makes half as large: 6 MB
                connection.execute(f"INSERT INTO things (name) {noise}")
        made.fill(TINY)
        yield made


def _create(made: Ground, name: str) -> None:
    made.make(name, "template0")
    with made.server.connect(name) as connection:
        connection.execute("CREATE TABLE things (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text)")
        connection.execute("INSERT INTO things (name) SELECT md5(g::text) FROM generate_series(1, 100) g")
        connection.execute("CREATE TABLE empty (id int)")
        connection.execute("SELECT lo_from_bytea(0, 'a large object')")
