"""What is compared: each pipeline is the commands that a user would type, and the folder where they leave their result.

backupd runs as installed, with its settings in the environment; the peers get the same clients and the same server.
Restores go into a database that is new; afterwards its rows are counted, and it is dropped.
"""

import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import database
import measure
from machine import BUCKET, Machine, find

RESTORED = "restored"
"""The database that every restore makes."""

BARE_DUMP, BARE_RESTORE, SERIAL_RESTORE = "pg_dump -Fd -j2 zstd:1", "pg_restore -Fd -j2", "pg_restore -Fd -j1"
TO_DISK, TO_S3 = "backupd to disk", "backupd to S3"
FROM_DISK, FROM_S3 = "backupd from disk", "backupd from S3"
ONE_TABLE = "one table from S3"


@dataclass(frozen=True)
class Command:
    """A command line and what it needs in the environment besides."""

    argv: tuple[str, ...]
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pipeline:
    """Commands that are measured as one, and what is done before, unmeasured.

    `result` is `emptied` before, and what is in it afterwards was stored. `restores` is the database whose rows must
    have come back; with `drops` only a part of it came, and nothing is counted.
    """

    name: str
    commands: tuple[Command, ...]
    result: Path | None = None
    before: tuple[Command, ...] = ()
    restores: str | None = None
    drops: bool = False
    emptied: bool = True


def run(machine: Machine, pipeline: Pipeline) -> measure.Sample:
    """Runs a pipeline once."""
    empty(machine.scratch)
    if pipeline.result is not None and pipeline.emptied:
        empty(pipeline.result)
    for command in pipeline.before:
        _measured(machine, command)
    machine.settle()
    samples = [_measured(machine, command) for command in pipeline.commands]
    if pipeline.result is not None:
        samples.append(measure.Sample(stored_bytes=measure.file_bytes(pipeline.result)))
    if pipeline.drops:
        machine.drop(RESTORED)
    if pipeline.restores is not None:
        samples.append(measure.Sample(restored_rows=_restored_rows(machine, pipeline.name, pipeline.restores)))
    return measure.join(samples)


def dumps(machine: Machine, source: str) -> list[Pipeline]:
    """pg_dump by itself, and backupd to disk."""
    out = machine.peers / "out"
    return [
        Pipeline(BARE_DUMP, (bare_dump(machine, source, out),), machine.peers),
        Pipeline(TO_DISK, (_backup(machine, source, machine.store),), machine.store),
    ]


def to_s3(machine: Machine, source: str) -> list[Pipeline]:
    """backupd to S3, where there is a server."""
    if machine.bucket is None:
        return []
    return [Pipeline(TO_S3, (_backup(machine, source, machine.bucket),), machine.bucket)]


def restores(machine: Machine, source: str, jobs: int = 2) -> list[Pipeline]:
    """pg_restore from a local folder, and backupd from disk and from S3; what they restore is made here."""
    dump, stores = machine.folder / "dump", {FROM_DISK: machine.store, FROM_S3: machine.bucket}
    shutil.rmtree(dump, ignore_errors=True)
    _measured(machine, bare_dump(machine, source, dump))
    create = client(machine, "createdb", "--template=template0", RESTORED)
    restore = client(machine, "pg_restore", "-Fd", f"-j{jobs}", "-d", RESTORED, str(dump))
    name = BARE_RESTORE if jobs == 2 else SERIAL_RESTORE
    found = [Pipeline(name, (restore,), before=(create,), restores=source)]
    for name, store in stores.items():
        if store is not None:
            empty(store)
            _measured(machine, _backup(machine, source, store))
            found.append(Pipeline(name, (_restore(machine, source, store),), restores=source))
    return found


def one_table(machine: Machine, source: str, table: str) -> Pipeline | None:
    """Only that table, from the backup that `restores` left on S3."""
    if machine.bucket is None:
        return None
    command = _restore(machine, source, machine.bucket)
    return Pipeline(ONE_TABLE, (Command((*command.argv, "--table", table), command.settings),), drops=True)


def _restore(machine: Machine, source: str, store: Path) -> Command:
    return Command((_backupd(), "restore", f"{source}@latest", "--as", RESTORED), _settings(machine, store))


def every_database(machine: Machine) -> Pipeline:
    """backupd of every database of the server, to disk."""
    return Pipeline(TO_DISK, (_backup(machine, "*", machine.store),), machine.store)


def listing(machine: Machine, name: str, store: Path, *databases: str) -> Pipeline:
    """`backupd list` of a store, or of one database in it."""
    return Pipeline(name, (Command((_backupd(), "list", *databases), _settings(machine, store)),))


def bare_dump(machine: Machine, source: str, folder: Path) -> Command:
    """pg_dump as backupd runs it, with nothing around it."""
    arguments = ("-Fd", "-j2", "--compress=zstd:1", "--no-sync", "-f", str(folder))
    return client(machine, "pg_dump", *arguments, source)


def client(machine: Machine, name: str, *arguments: str) -> Command:
    """One of PostgreSQL's own programs."""
    return Command((str(machine.clients / name), *arguments))


def _backup(machine: Machine, source: str, store: Path) -> Command:
    return Command((_backupd(), "backup", source), _settings(machine, store))


def _backupd() -> str:
    return find("backupd") or sys.exit("backupd is not installed beside this Python: run scripts/setup")


def _settings(machine: Machine, store: Path) -> dict[str, str]:
    settings = {
        "BACKUPD_SOURCE__SERVER": "bench",
        "BACKUPD_STORE__URL": store.as_uri(),
        "BACKUPD_SCRATCH__DIRECTORY": str(machine.scratch),
        "BACKUPD_DUMP__CLIENTS": str(machine.clients),
    }
    if store == machine.bucket:
        settings["BACKUPD_STORE__URL"] = f"s3://{BUCKET}/backups"
        settings["BACKUPD_STORE__S3__ENDPOINT_URL"] = machine.environment["AWS_ENDPOINT_URL"]
    return settings


def _measured(machine: Machine, command: Command) -> measure.Sample:
    environment = {**machine.environment, **command.settings}
    return measure.run(command.argv, environment, machine.scratch, machine.server_pid, machine.rclone_pid)


def _restored_rows(machine: Machine, name: str, source: str) -> int:
    """Counts and drops what was restored. Exits where it is not what the source has."""
    wanted, found = (database.row_counts(machine.connect, each) for each in (source, RESTORED))
    machine.drop(RESTORED)
    if wanted != found:
        sys.exit(f"{name} did not restore the rows of the source: {sorted(set(wanted.items()) ^ set(found.items()))}")
    return sum(found.values())


def empty(folder: Path) -> None:
    """Makes that folder, or makes it anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
