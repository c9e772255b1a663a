"""What a monitor is told: the status as Prometheus reads it, at `/metrics`, in a file or by a Pushgateway.

The only door to prometheus_client. Everything is worked out from the catalog when it is asked for, so that nothing is
counted twice or lost in a restart, and a CronJob tells the same as the daemon. Times of a last success and a last
failure are told, not a state that the next event overwrites; which of them is later is the monitor's to say.

Labels are `server` and `database`, and words from short lists: no id, or each backup would be a new series for ever.
"""

import contextlib
import http.client
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from backupd import __version__
from backupd.errors import StoreError
from backupd.failure import Failure, is_current
from backupd.manifest import Backup
from backupd.selector import Label
from backupd.status import Database, Expected, Status

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric as Family

PUSH_TIMEOUT_SECONDS = 10.0

FILE_LIMIT_BYTES = 64 << 20
"""A larger file of metrics is not one that we wrote."""

JOB = "backupd"


@dataclass(frozen=True)
class Metric:
    """A metric that there is: its name without suffix, its labels, and what it says."""

    name: str
    labels: tuple[str, ...]
    help: str
    kind: Literal["gauge", "counter"] = "gauge"


_DATABASE = ("server", "database")

METRICS: tuple[Metric, ...] = (
    Metric(
        "backupd_backup_last_success_timestamp_seconds",
        _DATABASE,
        "When the newest good backup ended; 0 where an expected database has none.",
    ),
    Metric(
        "backupd_backup_last_verified_timestamp_seconds",
        _DATABASE,
        "When the newest good backup ended that was read back, or restored in a drill.",
    ),
    Metric("backupd_backup_last_attempt_timestamp_seconds", _DATABASE, "When the newest run began, or failed."),
    Metric(
        "backupd_backup_last_failure_timestamp_seconds",
        (*_DATABASE, "step", "reason"),
        "When the newest run failed: at a backup, at retention or at a copy, and why.",
    ),
    Metric("backupd_backup_failures_in_a_row", _DATABASE, "How many runs failed since the last that ended well."),
    Metric("backupd_backup_last_duration_seconds", _DATABASE, "How long the newest backup took."),
    Metric("backupd_backup_last_size_bytes", _DATABASE, "Size of the newest backup's archive."),
    Metric("backupd_backup_last_source_bytes", _DATABASE, "Size of the database when it was backed up last."),
    Metric("backupd_backup_last_suspect", _DATABASE, "Whether the newest backup looks wrong, or is known to be bad."),
    Metric("backupd_backup_oldest_timestamp_seconds", _DATABASE, "When the oldest good backup began."),
    Metric(
        "backupd_backups",
        (*_DATABASE, "state"),
        "Backups that are good, suspect, or damaged (verify or a drill failed).",
    ),
    Metric("backupd_store_bytes", _DATABASE, "Size of all archives."),
    Metric("backupd_retention_frozen", _DATABASE, "Whether retention removes nothing until somebody looks."),
    Metric("backupd_drill_last_success_timestamp_seconds", _DATABASE, "When a drill last restored a backup."),
    Metric("backupd_drill_last_failure_timestamp_seconds", _DATABASE, "When a drill last found a backup bad."),
    Metric("backupd_drill_last_duration_seconds", _DATABASE, "How long the last drill's restore took."),
    Metric("backupd_expected_interval_seconds", _DATABASE, "How old the newest good backup may become."),
    Metric("backupd_drill_expected_interval_seconds", _DATABASE, "How long ago the last good drill may be."),
    Metric("backupd_catalog_last_refresh_timestamp_seconds", (), "When the store last answered."),
    Metric("backupd_catalog_readable", (), "Whether the store answers."),
    Metric("backupd_catalog_broken_objects", (), "Objects in the store that cannot be used."),
    Metric("backupd_runs", ("verb", "result"), "Runs that this daemon started, by how they ended.", "counter"),
    Metric("backupd_build_info", ("version",), "1, and which version of backupd says so."),
)
"""Every metric that there is; the table in OPERATIONS.md is this one."""

_LABELS = {metric.name: metric.labels for metric in METRICS}
_PUSH_HINT = "See BACKUPD_METRICS__PUSHGATEWAY_URL; backups are not hindered."


@dataclass(frozen=True)
class Sample:
    """One value; `labels` are in the order of its metric's."""

    name: str
    labels: tuple[str, ...]
    value: float


def samples(status: Status, runs: Mapping[tuple[str, str], int] | None = None) -> Iterator[Sample]:
    """All that there is to tell; `runs` are a daemon's, by verb and result."""
    for database in status.databases:
        label = (database.label.server, database.label.database)
        failed = next(iter(database.failures), None)
        for name, value in _of_database(database, failed, status.expected):
            yield Sample(name, label, value)
        for state, count in _states(database.backups).items():
            yield Sample("backupd_backups", (*label, state), count)
        if database.state != "retired" and failed is not None:
            labels = (*label, failed.step, failed.reason)
            yield Sample("backupd_backup_last_failure_timestamp_seconds", labels, failed.at.timestamp())
    yield from _of_catalog(status)
    for (verb, result), count in (runs or {}).items():
        yield Sample("backupd_runs", (verb, result), count)


def of_failure(label: Label, step: str, reason: str, at: datetime) -> Iterator[Sample]:
    """What a run tells that failed and could not even read the store."""
    names, moment = (label.server, label.database), at.timestamp()
    yield Sample("backupd_backup_last_attempt_timestamp_seconds", names, moment)
    yield Sample("backupd_backup_last_failure_timestamp_seconds", (*names, step, reason), moment)


def _of_catalog(status: Status) -> Iterator[Sample]:
    if status.reading.read_at is not None:
        yield Sample("backupd_catalog_last_refresh_timestamp_seconds", (), status.reading.read_at.timestamp())
    yield Sample("backupd_catalog_readable", (), status.reading.error is None and status.reading.read_at is not None)
    yield Sample("backupd_catalog_broken_objects", (), len(status.broken))
    yield Sample("backupd_build_info", (__version__,), 1)


def _of_database(database: Database, failed: Failure | None, expected: Expected) -> Iterator[tuple[str, float]]:
    yield "backupd_store_bytes", database.archive_bytes
    if database.state == "retired":
        return
    yield "backupd_backup_last_success_timestamp_seconds", _ended(database.newest) or 0
    yield "backupd_backup_failures_in_a_row", _failures_in_a_row(database, failed)
    yield "backupd_retention_frozen", bool(database.frozen)
    yield "backupd_expected_interval_seconds", expected.max_age.total_seconds()
    if expected.drilled_within is not None:
        yield "backupd_drill_expected_interval_seconds", expected.drilled_within.total_seconds()
    if (verified := _ended(database.newest_verified)) is not None:
        yield "backupd_backup_last_verified_timestamp_seconds", verified
    if database.good:
        yield "backupd_backup_oldest_timestamp_seconds", database.good[-1].manifest.started_at.timestamp()
    tried = [each.manifest.started_at for each in database.backups[:1]] + ([failed.at] if failed else [])
    if tried:
        yield "backupd_backup_last_attempt_timestamp_seconds", max(tried).timestamp()
    yield from _newest(database.backups)
    yield from _drills(database.backups)


def _newest(backups: Sequence[Backup]) -> Iterator[tuple[str, float]]:
    for newest in backups[:1]:
        manifest = newest.manifest
        yield "backupd_backup_last_suspect", newest.suspect is not None
        yield "backupd_backup_last_duration_seconds", (manifest.finished_at - manifest.started_at).total_seconds()
        yield "backupd_backup_last_size_bytes", manifest.archive_bytes
        yield "backupd_backup_last_source_bytes", manifest.database_bytes


def _ended(backup: Backup | None) -> float | None:
    return None if backup is None else backup.manifest.finished_at.timestamp()


def _failures_in_a_row(database: Database, failed: Failure | None) -> int:
    ended = database.newest.manifest.finished_at if database.newest else None
    return failed.count if failed is not None and is_current(failed, ended) else 0


def _states(backups: Sequence[Backup]) -> dict[str, int]:
    counts = {"good": 0, "suspect": 0, "damaged": 0}
    for backup in backups:
        notes = (backup.note("verified"), backup.note("drilled"))
        damaged = any(note is not None and not note.ok for note in notes)
        counts["damaged" if damaged else "suspect" if backup.suspect else "good"] += 1
    return counts


def _drills(backups: Sequence[Backup]) -> Iterator[tuple[str, float]]:
    notes = [note for backup in backups if (note := backup.note("drilled")) is not None]
    for ok, name in ((True, "success"), (False, "failure")):
        if times := [note.at for note in notes if note.ok is ok]:
            yield f"backupd_drill_last_{name}_timestamp_seconds", max(times).timestamp()
    good = [note for note in notes if note.ok and isinstance(note.facts.get("seconds"), int | float)]
    if good:
        yield "backupd_drill_last_duration_seconds", float(max(good, key=lambda note: note.at).facts["seconds"] or 0)


def text(found: Iterable[Sample]) -> bytes:
    """The samples in Prometheus' text format, with help and type."""
    from prometheus_client import generate_latest

    return generate_latest(_registry(found))


def _registry(found: Iterable[Sample]) -> "CollectorRegistry":
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()
    registry.register(_Collector(tuple(_families(found))))
    return registry


@dataclass(frozen=True, eq=False)
class _Collector:
    """What prometheus_client asks for families."""

    families: Sequence["Family"]

    def collect(self) -> Iterable["Family"]:
        return self.families


def _families(found: Iterable[Sample]) -> Iterator["Family"]:
    """The samples by their metric, in the order of METRICS."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    by_name: dict[str, list[Sample]] = defaultdict(list)
    for sample in found:
        by_name[sample.name].append(sample)
    for metric in METRICS:
        family: Any = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        made = family(metric.name, metric.help, labels=metric.labels)
        for sample in by_name[metric.name]:
            made.add_metric([_utf8(label) for label in sample.labels], sample.value)
        if by_name[metric.name]:
            yield made


def _utf8(label: str) -> str:
    return label.encode("utf-8", "replace").decode()


def push(url: str, found: Iterable[Sample]) -> None:
    """Adds what is told of each database to a Pushgateway, in a group of its own.

    What is not told, as a last success by a run that could not read the store, stays there as it was. What is told of
    no database stays out, since it would be as old as the last run. Raises StoreError.
    """
    from prometheus_client import pushadd_to_gateway

    groups: dict[tuple[str, ...], list[Sample]] = defaultdict(list)
    for sample in found:
        if _LABELS[sample.name][:2] == _DATABASE:
            groups[sample.labels[:2]].append(sample)
    for labels, samples_ in groups.items():
        key = dict(zip(_DATABASE, map(_utf8, labels), strict=True))
        try:
            pushadd_to_gateway(url, JOB, cast(Any, _registry(samples_)), key, PUSH_TIMEOUT_SECONDS)
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise StoreError(f"could not push metrics to {url}", detail=f"{exc}.", hint=_PUSH_HINT) from None


def write_file(path: Path, found: Sequence[Sample], whole: bool) -> None:
    """Writes what is told into a file for node_exporter, which sees the old one or the new one and never a half.

    Where it is not the whole, as by a run that could not read the store, what the file says beside it stays. Raises
    StoreError.
    """
    if not whole:
        told = {(sample.name, sample.labels[:2]) for sample in found}
        found = [*found, *(each for each in _read_file(path) if (each.name, each.labels[:2]) not in told)]
    made = path.with_name(f".{path.name}.{os.getpid()}")  # node_exporter reads what ends in .prom
    try:
        made.write_bytes(text(found))
        made.chmod(0o644)
        made.replace(path)
    except OSError as exc:
        with contextlib.suppress(OSError):
            made.unlink(missing_ok=True)
        hint = "See BACKUPD_METRICS__TEXTFILE: its folder must be there, and writable."
        raise StoreError(f"could not write metrics to {path}", detail=f"{exc.strerror}.", hint=hint) from None


def _read_file(path: Path) -> list[Sample]:
    """What a file of ours says; nothing where there is none, or it is no such file."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        if path.stat().st_size > FILE_LIMIT_BYTES:
            return []
        families = list(text_string_to_metric_families(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, IndexError):
        return []
    return [
        Sample(family.name, tuple(each.labels.get(name, "") for name in _LABELS[family.name]), each.value)
        for family in families
        if family.name in _LABELS
        for each in family.samples
    ]
