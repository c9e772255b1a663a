"""What failed lately: a small record beside the backups for each run of a database that did not end well.

With CronJobs nothing else outlives such a run, so the page, the metrics, notifications and the next run know of it from
here. A record makes no backup, counts for nothing in retention and is no orphan. It carries the sum of its predecessors
(since when, how many in a row), so that only the newest need to be read, and none is ever changed.

A module beside the catalog, not in it: nothing that makes a backup exist depends on this one.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from pydantic import AwareDatetime, TypeAdapter, ValidationError

from backupd import threads
from backupd.errors import BackupdError, NotFound, VerificationFailed
from backupd.manifest import Count, Id
from backupd.selector import Label, Name
from backupd.store import Entry, Store

Step = Literal["backup", "retention", "copy"]
"""What failed: there is no new backup, or there is one that was not followed by retention or a copy."""

ENDING = ".failed-1.json"
"""How a record's key ends, after the id: like a note, of which there is only one."""

KEPT = 20
"""How many records of a database stay, whatever their age below KEPT_WITHIN."""

KEPT_WITHIN = timedelta(days=30)
"""How old a record may become."""

LIMIT_BYTES = 16 << 10
"""A larger object is not ours, and is not read."""

_READ = 5  # of each database: what failed in turn (a copy, then a backup) is told apart
_READERS = 8  # as the catalog's


@dataclass(frozen=True)
class Failure:
    """One run of a database that failed at `at`, with its exit code, reason and words, all without secrets.

    It is the `count`th in a row of that step, since `first_at`: no backup (of another run) ended well in between.
    """

    id: Id
    server: str
    database: str
    step: Step
    at: AwareDatetime
    first_at: AwareDatetime
    count: Count
    exit_code: int
    reason: str
    message: str
    detail: str | None = None
    hint: str | None = None

    @property
    def label(self) -> Label:
        """The database as it is filed."""
        return Label(self.server, self.database)


_FAILURE = TypeAdapter(Failure)


def before(failure: Failure, earlier: Iterable[Failure], succeeded_at: datetime | None) -> Failure | None:
    """The one that the failure follows in a row: the newest `earlier` one of its step, if nothing ended well since."""
    alike = [each for each in earlier if each.step == failure.step and is_current(each, succeeded_at)]
    return max(alike, key=lambda each: each.at, default=None)


def following(failure: Failure, before: Failure | None) -> Failure:
    """The failure as the next in the row of the one before it."""
    return failure if before is None else replace(failure, first_at=before.first_at, count=before.count + 1)


def is_current(failure: Failure, succeeded_at: datetime | None) -> bool:
    """Whether nothing ended well since: `succeeded_at` is when the newest backup ended, None where there is none."""
    return succeeded_at is None or failure.at > succeeded_at


def write(store: Store, failure: Failure) -> None:
    """Writes the record, its words cut to a bearable length. Raises what the store raises."""
    short = replace(
        failure,
        message=_cut(failure.message, 500),
        detail=failure.detail and _cut(failure.detail, 2000),
        hint=failure.hint and _cut(failure.hint, 500),
    )
    data = _FAILURE.dump_json(short) + b"\n"
    with store.create(f"{failure.label}/{failure.id}{ENDING}", len(data)) as stream:
        stream.write(data)


def read(store: Store, records: Mapping[Name, Entry]) -> tuple[Failure, ...]:
    """The failures that these objects record, newest first, of each database the newest five.

    One that cannot be read is a failure all the same: its key says of what.
    """
    newest = [name for names in _by_label(records).values() for name in names[:_READ]]
    loaded = threads.each(lambda name: _load(store, name, records[name]), newest, _READERS, "failures")
    return tuple(sorted(filter(None, loaded), key=lambda each: (each.at, each.id), reverse=True))


def surplus(records: Mapping[Name, Entry], now: datetime) -> list[Entry]:
    """The records that are to be forgotten: of each database those beyond KEPT and KEPT_WITHIN."""
    return [
        records[name]
        for names in _by_label(records).values()
        for place, name in enumerate(names)
        if place >= KEPT or now - records[name].modified_at > KEPT_WITHIN
    ]


def _by_label(names: Iterable[Name]) -> Mapping[Label, list[Name]]:
    """The names of each database, newest first: an id begins with its time."""
    found: dict[Label, list[Name]] = defaultdict(list)
    for name in sorted(names, key=lambda name: name.id, reverse=True):
        found[name.label].append(name)
    return found


def _load(store: Store, name: Name, entry: Entry) -> Failure | None:
    """The failure in that object; None where it was forgotten meanwhile."""
    try:
        with store.open(entry.key, 0, min(entry.size_bytes, LIMIT_BYTES)) as stream:
            failure = _FAILURE.validate_json(stream.read(), strict=True)
        if (failure.label, failure.id) != (name.label, name.id):
            raise VerificationFailed(f"record {entry.key} is another run's")
    except NotFound:
        return None
    except (ValidationError, BackupdError):
        message = f"what failed cannot be read from {entry.key}"
        at = entry.modified_at
        return Failure(name.id, name.label.server, name.label.database, "backup", at, at, 1, 1, "error", message)
    return failure


def _cut(text: str, characters: int) -> str:
    """The text, no longer than that and without what UTF-8 does not have (a file's name may bring it)."""
    whole = text.encode("utf-8", "replace").decode()
    return whole if len(whole) <= characters else f"{whole[: characters - 1]}…"
