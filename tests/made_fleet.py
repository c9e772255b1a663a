"""A fleet of databases with a past, the same each time: good days, bad days, and names that nobody should give."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import product
from typing import Any

from made_backups import made_backup, made_manifest

from backupd import retention
from backupd.catalog import Listing
from backupd.errors import VerificationFailed
from backupd.failure import Failure
from backupd.manifest import Backup, Note, Totals
from backupd.outline import Outline, TableLine
from backupd.reader import Broken
from backupd.retention import Policy
from backupd.selector import Label, Name, name_of
from backupd.site import Holdings
from backupd.status import Expected, Reading, Status, status

NOW = datetime(2026, 11, 26, 9, 0, tzinfo=UTC)
POLICY = Policy(daily=14, weekly=8, monthly=6, floor=2)
EXPECTED = Expected(
    "prod",
    max_age=timedelta(hours=26),
    verified_within=timedelta(days=8),
    drilled_within=timedelta(days=8),
    policy=POLICY,
)
READING = Reading("s3://backups-eu/postgres", NOW - timedelta(seconds=42))

HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "‮gnp.exe‭",
    "line\nbreak\r\x1b[2Jname",
    "🗄️🐘🧯🪣🗄️🐘🧯🪣🗄️🐘"[:15],
    "..",
    "a/b c",
    "{{ 7 * 7 }}{% raw %}",
    "قاعدة البيانات",
    "x" * 63,
)


@dataclass(frozen=True)
class Kind:
    """What a made-up database is like."""

    label: Label
    gigabytes: float
    hour: float
    drilled_weekday: int | None = 6
    days: int = 160


def backups_of(kind: Kind, policy: Policy | None = POLICY, missing: Sequence[int] = ()) -> list[Backup]:
    """A backup a day as retention left them, newest first; `missing` are days ago on which none was taken."""
    chance = random.Random(str(kind.label))
    start = _start(kind)
    taken = [
        _taken(kind, start - timedelta(days=ago), ago, chance)
        for ago in range(kind.days)
        if ago not in missing and start - timedelta(days=ago) < NOW
    ]
    removed = {each.id for each in retention.plan(taken, policy, NOW).removed}
    return [each for each in taken if each.id not in removed]


def _start(kind: Kind) -> datetime:
    return NOW.replace(hour=0, minute=0) + timedelta(hours=kind.hour)


def _taken(kind: Kind, started_at: datetime, ago: int, chance: random.Random) -> Backup:
    size = kind.gigabytes * (1 << 30) * (1 - ago / 400) * chance.uniform(0.985, 1.015)
    took = timedelta(seconds=20 + size / 60e6 * chance.uniform(0.85, 1.3))
    rows = int(size / 90)
    label = kind.label
    manifest = made_manifest(started_at, server=label.server, database=label.database, took=took)
    manifest = replace(
        manifest,
        id=f"{started_at:%Y%m%dT%H%M%SZ}-{chance.getrandbits(32):08x}",
        archive_bytes=int(size / 3),
        database_bytes=int(size * 1.4),
        totals=Totals(tables=87, rows=rows, raw_bytes=int(size), large_objects=12, members=101),
    )
    return made_backup(manifest, notes=list(_notes(kind, manifest.finished_at, rows, size)))


def _notes(kind: Kind, finished_at: datetime, rows: int, size: float) -> Iterator[Note]:
    if kind.drilled_weekday is not None and finished_at.weekday() == kind.drilled_weekday:
        level = "restored" if kind.label.database == "billing" else "identical"
        times: dict[str, Any] = {"seconds": round(3 + size / 35e6, 1), "content_seconds": 9.4, "rows": rows}
        counts = {"identical": 85, "other_order": 1, "not_comparable": 1 if level == "restored" else 0}
        facts = {"level": level, **times, **counts, "server_version": "17.10"}
        yield Note("drilled", 1, finished_at + timedelta(hours=2), True, facts)
    if finished_at.weekday() in (2, 6):
        facts = {"level": "decoded", "members": 99, "archive_bytes": int(size / 3)}
        yield Note("verified", 1, finished_at + timedelta(minutes=40), True, facts)


def small(*, healthy: bool = False) -> Status:
    """A fleet of a dozen: all well, or with one of each trouble."""
    well = [
        Kind(Label("prod", "app"), 42, 1.3),
        Kind(Label("prod", "billing"), 6.5, 1.8),
        Kind(Label("prod", "warehouse"), 310, 2.2),
        Kind(Label("prod", "identity"), 0.8, 1.1),
        Kind(Label("prod", "search"), 18, 3.1),
        Kind(Label("staging", "app"), 3.2, 4.0),
        Kind(Label("staging", "billing"), 0.9, 4.2),
    ]
    backups = [each for kind in well for each in backups_of(kind, missing=(9,) if kind.gigabytes == 18 else ())]
    failures: tuple[Failure, ...] = ()
    broken: tuple[Broken, ...] = ()
    if not healthy:
        backups += _troubled()
        failures = tuple(_failures())
        name = Name(Label("staging", "app"), "20261101T040000Z-0badc0de")
        broken = (
            Broken(
                f"{name.label}/{name.id}.json",
                name,
                VerificationFailed(f"archive {name.label}/{name.id}.tar has 4096 bytes, its manifest says 1153433600"),
            ),
        )
    outlines = {name_of(each): _outline() for each in backups if each.source.database == "app"}
    return seen(backups, failures, broken, outlines)


def _troubled() -> list[Backup]:
    stale = backups_of(Kind(Label("prod", "events"), 77, 2.6), missing=(0, 1, 2))
    doubt = "188 rows in all, and at least 412004 in each of 14 earlier backups"
    wrong = [Kind(Label("prod", "catalog"), 4.4, 1.6), Kind(Label("staging", "search"), 2, 5.0)]
    doubtful, bad = (_taken(kind, _start(kind), 0, random.Random(1)) for kind in wrong)
    older = [each for kind in wrong for each in backups_of(kind, missing=(0,))]
    undrilled = backups_of(Kind(Label("prod", "ledger"), 12, 2.4, drilled_weekday=None))
    said = "backup does not restore: function public.normalise(text) does not exist"
    drilled = Note("drilled", 1, NOW - timedelta(hours=1), False, {"error": said, "server_version": "17.10"})
    retired, *gone = backups_of(Kind(Label("prod", "legacy_crm"), 1.1, 1.0), missing=range(40))
    return [
        *stale,
        *older,
        *undrilled,
        replace(doubtful, manifest=replace(doubtful.manifest, suspect=doubt)),
        replace(bad, notes=(drilled,)),
        replace(retired, notes=(*retired.notes, Note("retired", 1, NOW - timedelta(days=38), True, {}))),
        *gone,
    ]


def _failures() -> Iterator[Failure]:
    refused = "could not connect to server db-events.internal:5432: connection refused"
    hint = "See that the server runs, and that BACKUPD_SOURCE__HOST names it."
    first = NOW - timedelta(days=2, hours=6.4)
    for number in (3, 2, 1):
        at = first + timedelta(days=number - 1)
        yield failed("events", at, first, number, exit_code=18, reason="database", message=refused, hint=hint)
    at = NOW - timedelta(days=9, hours=5.9)
    message = "store has 1.2 GiB free, the archive needs about 5.9 GiB"
    yield failed("search", at, at, 1, exit_code=17, reason="no_room", message=message)


def failed(database: str, at: datetime, first_at: datetime, count: int, **facts: Any) -> Failure:
    """A failed backup of one of prod's databases."""
    name = f"{at:%Y%m%dT%H%M%SZ}-{count:08x}"
    return Failure(name, "prod", database, "backup", at, first_at, count, **facts)


def _outline() -> Outline:
    names = ("orders", "order_items", "customers", "sessions", "payments", "products", "audit.events", "stock_levels")
    tables = tuple(
        TableLine(
            name if "." in name else f"public.{name}",
            9_812_004 >> place,
            (11 << 30) >> place,
            f"{place + 1:x}7c1e09b2d4f6a83{place:x}" * 2,
        )
        for place, name in enumerate(names)
    )
    skipped = (("public.spatial_ref_sys", "owned by extension postgis"),)
    return Outline(tables, 0, skipped, ("pg_trgm 1.6", "postgis 3.5.2"), ("app", "app_read", "reporting"))


def seen(
    backups: Sequence[Backup],
    failures: Sequence[Failure] = (),
    broken: Sequence[Broken] = (),
    outlines: dict[Name, Outline] | None = None,
) -> Status:
    """The status of these backups."""
    newest_first = sorted(backups, key=lambda each: (each.manifest.started_at, each.id), reverse=True)
    listing = Listing(tuple(newest_first), tuple(broken), failures=tuple(failures))
    return status(listing, EXPECTED, READING, NOW, outlines)


def large(databases: int = 300, backups: int = 10_000) -> Status:
    """A fleet of many, some of them in trouble."""
    each, found = backups // databases, []
    for number in range(databases):
        label = Label(f"cluster-{number % 7}", f"tenant_{number:03}")
        kind = Kind(label, 0.2 + number % 13, 1 + number % 5, number % 7, days=each + 9)
        found += backups_of(kind, None, missing=(0, 1) if number % 60 == 7 else ())[
            : each + (number < backups % databases)
        ]
    return seen(found)


def hostile() -> Status:
    """Names that act on a page, if one lets them."""
    found = [each for name in HOSTILE for each in backups_of(Kind(Label("prod", name), 1, 2, days=9))]
    evil = replace(found[0].manifest, suspect='<b>bold</b> & "quotes" ‮reversed', warnings=("<i>said</i>",))
    return seen([replace(found[0], manifest=evil), *found[1:]])


def holdings(found: Status) -> Holdings:
    """What a store would have answered for that status."""
    backups = sorted((each for database in found.databases for each in database.backups), key=lambda each: each.id)
    failures = tuple(each for database in found.databases for each in database.failures)
    return Holdings(Listing(tuple(reversed(backups)), found.broken, failures=failures), found.outlines)


def absurd() -> Status:
    """Manifests and notes as only somebody with bad intentions would write them; each passes as one."""
    first = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))
    last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone(-timedelta(hours=14)))
    most = (1 << 63) - 1
    found = []
    for number, (started_at, finished_at) in enumerate(product((first, NOW, last), repeat=2)):
        manifest = made_manifest(NOW, number=number, database=f"db{number % 4}")
        totals = Totals(tables=most, rows=most, raw_bytes=number % 2 * most, large_objects=most, members=most)
        manifest = replace(manifest, started_at=started_at, finished_at=finished_at, totals=totals)
        manifest = replace(manifest, archive_bytes=most, database_bytes=most)
        facts: dict[str, Any] = {"seconds": (math.inf, math.nan, -1e308)[number % 3], "raw_bytes": -1, "level": "<b>"}
        notes = [Note("drilled", 1, (first, NOW - timedelta(days=1), last)[number % 3], number % 2 == 0, facts)]
        found.append(made_backup(manifest, notes=notes))
    failures = [failed("db1", each, first, most, exit_code=-1, reason="\x1b", message="") for each in (first, last)]
    return seen(found, failures)
