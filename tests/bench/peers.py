"""What people use else, as they type it: the command lines of the peers' own READMEs, and their best flags too.

A peer that is not installed is left out, and `missing` names it: a table without it does not say that it was beaten.
"""

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

from machine import BUCKET, Machine, find
from pipelines import RESTORED, Command, Pipeline, bare_dump, client
from psycopg import sql

TAR, GZIP, FAST_GZIP = "pg_dump -Ft", "pg_dump -Z6", "pg_dump -Z1"
BASE, RESTIC, BORG = "pg_basebackup zstd:1", "pg_dump | restic", "pg_dump | borg"
TAR_TO_S3 = "pg_dump -Ft, aws s3 cp"
CUSTOM_TO_S3 = "pg_dump -Fc, aws s3 cp (eeshugerman)"
ALL_TO_S3 = "pg_dumpall | pigz | aws s3 cp (Zalando)"
FOLDER_TO_S3 = "pg_dump -Fd gzip, aws s3 cp (pg_back)"
FAST_FOLDER_TO_S3 = "pg_dump -Fd zstd:1, aws s3 cp"
FROM_GZIP, FROM_TAR, FROM_CUSTOM_ON_S3 = "gunzip | psql", "pg_restore -Ft", "aws s3 cp, pg_restore -1 (eeshugerman)"
FETCH = "aws s3 cp of the archive"

PGBACKREST = "pgbackrest --type=full zst:1"

_PROGRAMS = ("aws", "pigz", "restic", "borg", "pgbackrest")


def missing() -> list[str]:
    """The programs that some peer needs and this machine lacks."""
    return [program for program in _PROGRAMS if find(program) is None]


def to_disk(machine: Machine, source: str) -> Iterator[Pipeline]:
    """Dumps into a folder or a repository on this machine."""
    out, repository = machine.peers / "out", machine.peers / "repository"
    plain = {TAR: ("-Ft",), GZIP: ("-Z6",), FAST_GZIP: ("-Z1",)}
    for name, options in plain.items():
        yield Pipeline(name, (client(machine, "pg_dump", *options, "-f", str(out), source),), machine.peers)
    base = ("--checkpoint=fast", "--no-sync", "-Ft", "--compress=client-zstd:1", "-D", str(out))
    yield Pipeline(BASE, (client(machine, "pg_basebackup", *base),), machine.peers)
    dump = shlex.join(client(machine, "pg_dump", source).argv)  # plain text: they compress and find what they know
    if (restic := find("restic")) is not None:
        secret = {
            "RESTIC_PASSWORD": "bench",
            "RESTIC_REPOSITORY": str(repository),
            "XDG_CACHE_HOME": str(machine.scratch),
        }
        make = Command((restic, "init", "--quiet"), secret)
        yield Pipeline(RESTIC, (_piped(f"{dump} | {restic} backup --quiet --stdin", secret),), machine.peers, (make,))
    if (borg := find("borg")) is not None:
        where = {"BORG_BASE_DIR": str(machine.scratch), "BORG_REPO": str(repository)}
        make = Command((borg, "init", "--encryption=none"), where)
        command = _piped(f"{dump} | {borg} create --compression zstd,1 ::dump -", where)
        yield Pipeline(BORG, (command,), machine.peers, (make,))


def to_s3(machine: Machine, source: str) -> Iterator[Pipeline]:
    """Dumps into a bucket, with the AWS command line."""
    if not (aws := _aws(machine)):
        return
    out = machine.scratch / "out"
    for name, options in {TAR_TO_S3: ("-Ft",), CUSTOM_TO_S3: ("-Fc",)}.items():
        dump = client(machine, "pg_dump", *options, "-f", str(out), source)
        yield Pipeline(name, (dump, _copy(aws, str(out), _url("out"))), machine.bucket)
    if (pigz := find("pigz")) is not None:
        dump_all = shlex.join(client(machine, "pg_dumpall").argv)
        script = f"{dump_all} | {pigz} | {shlex.join(_copy(aws, '-', _url('out')).argv)}"
        yield Pipeline(ALL_TO_S3, (_piped(script, {}),), machine.bucket)
    gzip = client(machine, "pg_dump", "-Fd", "-j2", "-f", str(out), source)
    for name, dump in {FOLDER_TO_S3: gzip, FAST_FOLDER_TO_S3: bare_dump(machine, source, out)}.items():
        yield Pipeline(name, (dump, _copy(aws, str(out), _url("out"), "--recursive")), machine.bucket)


def archive_by(machine: Machine, command: str) -> None:
    """Has the server archive its WAL by that command, from now on."""
    with machine.connect("postgres") as link:
        link.execute(sql.SQL("ALTER SYSTEM SET archive_command = {}").format(command))
        link.execute("SELECT pg_reload_conf()")


def cluster(machine: Machine) -> Iterator[Pipeline]:
    """pgBackRest's full backup of the cluster, as the server's own user: what it needs of the WAL is archived to it."""
    if (program := find("pgbackrest")) is None:
        return
    folder, user = machine.folder / "repository", machine.data.stat().st_uid
    where = {"pg1-path": machine.data, "repo1-path": folder, "lock-path": folder / "lock"}
    options = ["--stanza=bench", "--log-level-file=off", *(f"--{name}={path}" for name, path in where.items())]
    reached = {"socket-path": "PGHOST", "port": "PGPORT", "user": "PGUSER"}
    server = [f"--pg1-{name}={machine.environment[variable]}" for name, variable in reached.items()]
    as_user = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups") if os.getuid() == 0 else ()

    def own(*arguments: str) -> Command:
        return Command((*as_user, program, *options, *server, *arguments))

    machine.folder.chmod(0o711)
    folder.mkdir()
    os.chown(folder, user, user)
    subprocess.run(own("stanza-create").argv, check=True)
    # not before there is a stanza: after a failure the server waits for a minute
    archive_by(machine, shlex.join([program, *options, "archive-push", "%p"]))
    best = ("--start-fast", "--process-max=2", "--compress-type=zst", "--compress-level=1")
    full = own("--type=full", "--repo1-retention-full=1", *best, "backup")
    yield Pipeline(PGBACKREST, (full,), folder, emptied=False)


def restores(machine: Machine, source: str, dumps: Path) -> Iterator[Pipeline]:
    """Restores of what is made here, in `dumps`, and in the bucket."""
    tar, gzip = dumps / "out.tar", dumps / "out.sql.gz"
    create = client(machine, "createdb", "--template=template0", RESTORED)
    made = (client(machine, "pg_dump", "-Ft", "-f", str(tar), source), create)
    restore = client(machine, "pg_restore", "-d", RESTORED, str(tar))
    yield Pipeline(FROM_TAR, (restore,), before=made, restores=source)
    made = (client(machine, "pg_dump", "-Z1", "-f", str(gzip), source), create)
    psql = shlex.join(client(machine, "psql", "-q", "-X", "-o", "/dev/null", "-d", RESTORED).argv)
    yield Pipeline(FROM_GZIP, (_piped(f"gunzip -c {gzip} | {psql}", {}),), before=made, restores=source)
    if aws := _aws(machine):
        custom, fetched = dumps / "out.custom", machine.scratch / "out"
        uploaded = (
            client(machine, "pg_dump", "-Fc", "-f", str(custom), source),
            _copy(aws, str(custom), _url("out")),
            create,
        )
        once = client(machine, "pg_restore", "--single-transaction", "-d", RESTORED, str(fetched))
        commands = (_copy(aws, _url("out"), str(fetched)), once)
        yield Pipeline(FROM_CUSTOM_ON_S3, commands, before=uploaded, restores=source)


def fetch(machine: Machine, archive: Path) -> Iterator[Pipeline]:
    """Only the download of an archive in the bucket: a restore over a slow link cannot be faster."""
    if machine.bucket is not None and (aws := _aws(machine)):
        source = _url(str(archive.relative_to(machine.bucket)))
        yield Pipeline(FETCH, (_copy(aws, source, str(machine.scratch / "out")),))


def _url(key: str) -> str:
    return f"s3://{BUCKET}/{key}"


def _aws(machine: Machine) -> tuple[str, ...]:
    """The AWS command line with the endpoint as an option: versions before 2.13 know no AWS_ENDPOINT_URL."""
    aws = find("aws")
    return (
        ()
        if machine.bucket is None or aws is None
        else (aws, "--endpoint-url", machine.environment["AWS_ENDPOINT_URL"])
    )


def _copy(aws: tuple[str, ...], source: str, target: str, *options: str) -> Command:
    return Command((*aws, "s3", "cp", "--only-show-errors", *options, source, target))


def _piped(script: str, settings: dict[str, str]) -> Command:
    """A shell's pipe, as the peers' scripts have it; any of its programs that fails fails it."""
    return Command(("bash", "-o", "pipefail", "-ec", script), settings)
