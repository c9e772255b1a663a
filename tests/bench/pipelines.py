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

BARE_DUMP, TAR, GZIP, TAR_TO_S3 = "pg_dump -Fd -j2 zstd:1", "pg_dump -Ft", "pg_dump -Z6", "pg_dump -Ft, aws s3 cp"
BARE_RESTORE = "pg_restore -Fd -j2"
TO_DISK, TO_S3 = "backupd to disk", "backupd to S3"
FROM_DISK, FROM_S3 = "backupd from disk", "backupd from S3"


@dataclass(frozen=True)
class Command:
    """A command line and what it needs in the environment besides."""

    argv: tuple[str, ...]
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pipeline:
    """Commands that are measured as one, and what is done before, unmeasured.

    `result` is emptied before, and what is in it afterwards was stored. `restores` is the database whose rows must
    have come back.
    """

    name: str
    commands: tuple[Command, ...]
    result: Path | None = None
    before: tuple[Command, ...] = ()
    restores: str | None = None


def run(machine: Machine, pipeline: Pipeline) -> measure.Sample:
    """Runs a pipeline once."""
    _empty(machine.scratch)
    if pipeline.result is not None:
        _empty(pipeline.result)
    for command in pipeline.before:
        _measured(machine, command)
    machine.settle()
    samples = [_measured(machine, command) for command in pipeline.commands]
    if pipeline.result is not None:
        samples.append(measure.Sample(stored_bytes=measure.file_bytes(pipeline.result)))
    if pipeline.restores is not None:
        samples.append(measure.Sample(restored_rows=_restored_rows(machine, pipeline.name, pipeline.restores)))
    return measure.join(samples)


def dumps(machine: Machine, source: str) -> list[Pipeline]:
    """pg_dump by itself, and backupd to disk."""
    out = machine.peers / "out"
    return [
        Pipeline(BARE_DUMP, (_bare_dump(machine, source, out),), machine.peers),
        Pipeline(TO_DISK, (_backup(machine, source, machine.store),), machine.store),
    ]


def backups(machine: Machine, source: str) -> list[Pipeline]:
    """backupd to disk, what people use else, and the same to S3 where there is a server."""
    plain = {TAR: ["-Ft", "-f", str(machine.peers / "out.tar")], GZIP: ["-Z6", "-f", str(machine.peers / "out.sql.gz")]}
    found = dumps(machine, source)
    for name, arguments in plain.items():
        found.append(Pipeline(name, (_client(machine, "pg_dump", *arguments, source),), machine.peers))
    if machine.bucket is not None:
        found.append(Pipeline(TO_S3, (_backup(machine, source, machine.bucket),), machine.bucket))
    if machine.bucket is not None and (aws := find("aws")) is not None:
        tar = str(machine.scratch / "out.tar")
        dump = _client(machine, "pg_dump", "-Ft", "-f", tar, source)
        copy = Command((aws, "s3", "cp", "--only-show-errors", tar, f"s3://{BUCKET}/out.tar"))
        found.append(Pipeline(TAR_TO_S3, (dump, copy), machine.bucket))
    return found


def restores(machine: Machine, source: str) -> list[Pipeline]:
    """pg_restore from a local folder, and backupd from disk and from S3; what they restore is made here."""
    dump, stores = machine.folder / "dump", {FROM_DISK: machine.store, FROM_S3: machine.bucket}
    _measured(machine, _bare_dump(machine, source, dump))
    create = _client(machine, "createdb", "--template=template0", RESTORED)
    restore = _client(machine, "pg_restore", "-Fd", "-j2", "-d", RESTORED, str(dump))
    found = [Pipeline(BARE_RESTORE, (restore,), before=(create,), restores=source)]
    for name, store in stores.items():
        if store is not None:
            _empty(store)
            _measured(machine, _backup(machine, source, store))
            command = Command((_backupd(), "restore", f"{source}@latest", "--as", RESTORED), _settings(machine, store))
            found.append(Pipeline(name, (command,), restores=source))
    return found


def listing(machine: Machine, name: str, store: Path) -> Pipeline:
    """`backupd list` of a store."""
    return Pipeline(name, (Command((_backupd(), "list"), _settings(machine, store)),))


def _bare_dump(machine: Machine, source: str, folder: Path) -> Command:
    arguments = ("-Fd", "-j2", "--compress=zstd:1", "--no-sync", "-f", str(folder))
    return _client(machine, "pg_dump", *arguments, source)


def _client(machine: Machine, name: str, *arguments: str) -> Command:
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


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
