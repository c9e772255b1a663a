"""A large database, to a directory and to S3: what comes back is whole, and memory stays flat.

ATTACK_GIGABYTES says how large it is, a tenth where it is not set; 12 in a recorded run, for which there must be room
three times. Half of it does not compress. It is generated for the campaign, and gone with it.
"""

import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from attack.ground import Ground, ground
from attack.outcome import Attack
from fix_store import new_bucket
from fix_tools import Site, s3_site
from psycopg import sql

from backupd.render import duration, size

WHOLE = PART = 2
TELLS_FIGURES = True

LARGE = "large"
MEMORY_LIMIT_BYTES = 200 << 20
"""What a backup or a verification may need, however large the database is (BENCHMARKS.md)."""

_ROWS_AT_ONCE = 64
_ROW_BYTES = 1 << 20


def campaign(seed: int, count: int, folder: Path) -> Iterator[Attack]:
    """Both stores."""
    gigabytes = float(os.environ.get("ATTACK_GIGABYTES", "0.1"))
    with ground(folder, max_wal_size="4GB") as made:
        _fill(made, int(gigabytes * 1e9))
        for name, s3 in (("a directory", False), ("S3", True)):
            yield Attack(f"{gigabytes:g} GB to {name}", partial(_act, made, s3))


def _fill(made: Ground, size_bytes: int) -> None:
    """One table of rows of a megabyte, half noise, half zeros that its compression is not to see."""
    made.make(LARGE, "template0")
    with made.server.connect(LARGE) as connection:
        connection.execute("CREATE TABLE things (id int, noise bytea, same bytea)")
        connection.execute("ALTER TABLE things ALTER noise SET STORAGE EXTERNAL, ALTER same SET STORAGE EXTERNAL")
        rows = max(size_bytes // _ROW_BYTES, 1)
        for first in range(0, rows, _ROWS_AT_ONCE):
            values = [
                (number, os.urandom(_ROW_BYTES // 2), bytes(_ROW_BYTES // 2))
                for number in range(first, min(first + _ROWS_AT_ONCE, rows))
            ]
            connection.cursor().executemany(sql.SQL("INSERT INTO things VALUES (%s, %s, %s)"), values)


def _act(made: Ground, s3: bool) -> str:
    site = made.site()
    if s3:
        site = s3_site(lambda _, **settings: made.site(**settings), made.server, new_bucket(made.endpoint))
    told = [_timed(site, "backup", LARGE), _timed(site, "verify", f"{LARGE}@latest")]
    (backup,) = site.catalog.backups().backups
    note = backup.note("verified")
    assert note is not None
    assert note.ok
    shutil.rmtree(site.folder)
    manifest = backup.manifest
    return f"{size(manifest.database_bytes)} become {size(manifest.archive_bytes)}; {', '.join(told)}"


def _timed(site: Site, *arguments: str) -> str:
    """Runs it to its end; how long it took, and the most memory that our process had."""
    began = time.monotonic()
    run = site.start(*arguments)
    status = Path(f"/proc/{run.pid}/status")
    peak_bytes = 0
    while run.alive():
        peak_bytes = max(peak_bytes, _peak(status.read_text()))
        time.sleep(0.05)
    ended = run.end()
    assert ended.code == 0, ended.stderr
    assert 0 < peak_bytes < MEMORY_LIMIT_BYTES, f"{arguments[0]} needed {size(peak_bytes)}"
    return f"{arguments[0]} {duration(time.monotonic() - began)} with {size(peak_bytes)} of memory"


def _peak(status: str) -> int:
    """The line of a living process; a zombie has none."""
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) * 1024
