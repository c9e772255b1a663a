"""Whether every database is safe, and why: the catalog as the status page and its neighbours see it. Pure.

Hides what counts as danger. A database is safe where a good backup is as new as is expected, and where the proofs that
are expected of it (read back, restored in a drill) are new enough as well; all else is a concern with its words, a
hint, and the command and runbook for it. The worst concern is the database's state.

Nothing is asked of the store here, so that a page can be made of an old reading while the store hangs: it then shows
how old the reading is. Nothing is kept between two readings either: the catalog is the only truth.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Literal

from backupd import estimate, freshness, retention, words
from backupd.catalog import Listing
from backupd.errors import BackupdError
from backupd.failure import Failure, is_current
from backupd.history import Gap, gaps
from backupd.manifest import Backup, Filter, NoteKind
from backupd.outline import Outline
from backupd.reader import Broken
from backupd.retention import Decision, Policy
from backupd.selector import Label, Name, name_of

State = Literal["danger", "warning", "safe", "retired"]
"""The worst first. Retired is a database that is gone, of which no new backup is expected."""

_USUAL = 10
"""Of so many newest backups the usual interval is taken."""

_IMAGINED_ID = "99991231T235959Z-00000000"

_ORDER: Mapping[State, int] = {"danger": 0, "warning": 1, "safe": 2, "retired": 3}


@dataclass(frozen=True)
class Expected:
    """What is expected of the databases in a store, by the installation that is named `server`.

    `labels` are those that should have backups; None means those that the catalog knows. The newest good backup may be
    `max_age` old, the newest that was read back `verified_within`, the newest that a drill restored `drilled_within`;
    None asks for none. `filter` and `policy` are this installation's own, and say nothing of other servers.
    """

    server: str
    labels: tuple[Label, ...] | None = None
    max_age: timedelta = timedelta(hours=26)
    verified_within: timedelta | None = None
    drilled_within: timedelta | None = None
    filter: Filter | None = None
    policy: Policy | None = None


@dataclass(frozen=True)
class Reading:
    """Which store was read, when it answered last, and its error where it has not answered since."""

    store_url: str
    read_at: datetime | None
    error: BackupdError | None = None


@dataclass(frozen=True)
class Concern:
    """Why something is not simply safe. `command` are backupd's arguments; `runbook` is a file of chart/runbooks."""

    state: Literal["danger", "warning"]
    text: str
    hint: str = ""
    command: tuple[str, ...] = ()
    runbook: str = ""


@dataclass(frozen=True)
class Removal:
    """A backup that retention removes: when it runs (`now`), or else as soon as one more backup exists; and why."""

    backup: Backup
    reasons: tuple[str, ...]
    now: bool


@dataclass(frozen=True)
class Database:
    """One database: its state with every concern, its backups newest first, and what happens to them.

    `good` are those that nothing speaks against and that have the filter that is expected; `decisions` are retention's,
    by id, none where the policy is another installation's; `gaps` are the times without a new backup, newest first.
    """

    label: Label
    state: State
    concerns: tuple[Concern, ...]
    backups: tuple[Backup, ...]
    good: tuple[Backup, ...]
    gaps: tuple[Gap, ...] = ()
    failures: tuple[Failure, ...] = ()
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    removals: tuple[Removal, ...] = ()
    frozen: tuple[str, ...] = ()

    @property
    def newest(self) -> Backup | None:
        """The newest good backup."""
        return next(iter(self.good), None)

    @property
    def newest_verified(self) -> Backup | None:
        """The newest good backup that was read back to its last byte, or restored by a drill, which reads it too."""
        return next((each for each in self.good if _proved(each, "verified") or _proved(each, "drilled")), None)

    @property
    def newest_drilled(self) -> Backup | None:
        """The newest good backup that a drill restored."""
        return next((each for each in self.good if _proved(each, "drilled")), None)

    @property
    def restore(self) -> tuple[float, str] | None:
        """About how many seconds a restore of the newest good backup takes, and where that comes from."""
        return estimate.restore_seconds(self.newest, self.backups) if self.newest else None

    @property
    def archive_bytes(self) -> int:
        """What its backups take in the store."""
        return sum(backup.manifest.archive_bytes for backup in self.backups)


@dataclass(frozen=True)
class Status:
    """Every database, the worst first; what is wrong with the store itself; outlines of contracts that are known."""

    now: datetime
    reading: Reading
    expected: Expected
    databases: tuple[Database, ...]
    concerns: tuple[Concern, ...] = ()
    broken: tuple[Broken, ...] = ()
    orphans: int = 0
    orphan_bytes: int = 0
    outlines: Mapping[Name, Outline] = field(default_factory=dict)

    @property
    def state(self) -> State:
        """The worst of all; a store without any database is no safe one."""
        states: list[State] = [*(each.state for each in self.databases), *(each.state for each in self.concerns)]
        return min(states, key=_ORDER.__getitem__, default="warning")

    def count(self, state: State) -> int:
        """How many databases are in that state."""
        return sum(each.state == state for each in self.databases)

    def find(self, label: Label) -> Database | None:
        """The database of that label."""
        return next((each for each in self.databases if each.label == label), None)


def status(
    listing: Listing,
    expected: Expected,
    reading: Reading,
    now: datetime,
    outlines: Mapping[Name, Outline] | None = None,
) -> Status:
    """What the listing, as it was at the last reading, says of every database that is in it or expected."""
    by_label: dict[Label, list[Backup]] = defaultdict(list)
    for backup in listing.backups:
        by_label[name_of(backup).label].append(backup)
    failures: dict[Label, list[Failure]] = defaultdict(list)
    for failure in listing.failures:
        failures[failure.label].append(failure)
    labels = {*by_label, *failures, *(each.name.label for each in listing.broken), *(expected.labels or ())}
    databases = [_database(_Found(label, by_label[label], failures[label]), expected, now) for label in labels]
    return Status(
        now=now,
        reading=reading,
        expected=expected,
        databases=tuple(sorted(databases, key=lambda each: (_ORDER[each.state], each.label))),
        concerns=tuple(_store_concerns(listing, reading)),
        broken=listing.broken,
        orphans=len(listing.orphans),
        orphan_bytes=sum(entry.size_bytes for entry in listing.orphans),
        outlines=outlines or {},
    )


def _store_concerns(listing: Listing, reading: Reading) -> Iterator[Concern]:
    if reading.error is not None:
        yield Concern(
            "danger",
            f"the store does not answer: {reading.error.message}",
            reading.error.hint or "What is shown is what it held when it answered last.",
            ("doctor",),
            "backup-is-failing",
        )
    if listing.broken:
        yield Concern(
            "warning",
            f"{len(listing.broken)} object{'' if len(listing.broken) == 1 else 's'} in the store cannot be used",
            "What that belongs to is left out or doubted, and named below; all else is as it was.",
            ("list",),
            "retention-is-frozen",
        )


@dataclass(frozen=True)
class _Found:
    """What the listing has of one label."""

    label: Label
    backups: Sequence[Backup]
    failures: Sequence[Failure]


def _database(found: _Found, expected: Expected, now: datetime) -> Database:
    label, backups = found.label, tuple(found.backups)
    own = label.server == expected.server
    patterns = expected.filter if own or not backups else backups[0].manifest.filter
    good = freshness.good(backups, patterns)
    database = Database(label, "retired", (), backups, good, failures=tuple(found.failures))
    if own:
        database = _with_retention(database, expected.policy, now)
    if freshness.is_retired(backups):
        return database
    database = replace(database, gaps=gaps(good, database.decisions, expected.max_age, now))
    concerns = tuple(_concerns(database, expected, now))
    states: list[State] = [each.state for each in concerns]
    return replace(database, state=min(states, key=_ORDER.__getitem__, default="safe"), concerns=concerns)


# --- retention


def _with_retention(database: Database, policy: Policy | None, now: datetime) -> Database:
    plan = retention.plan(database.backups, policy, now)
    gone = {backup.id for backup in plan.removed}
    following = _imagined(database.good, now)
    after = plan
    if following is not None and not plan.frozen:
        after = retention.plan((*database.backups, following), policy, following.manifest.finished_at)
    return replace(
        database,
        decisions={decision.backup.id: decision for decision in plan.decisions},
        removals=tuple(
            Removal(decision.backup, decision.reasons, decision.backup.id in gone)
            for decision in after.decisions
            if not decision.keep
        ),
        frozen=tuple(each.reason for each in plan.frozen),
    )


def _imagined(good: Sequence[Backup], now: datetime) -> Backup | None:
    """The next good backup, as it will probably be: one interval after the newest, but not before now."""
    if not good:
        return None
    newest = good[0].manifest
    between = sorted(
        later.manifest.started_at - earlier.manifest.started_at for later, earlier in pairwise(good[:_USUAL])
    )
    usual = between[len(between) // 2] if between else timedelta(days=1)
    try:
        started_at = max(now, newest.started_at + usual)
        finished_at = started_at + max(newest.finished_at - newest.started_at, timedelta())
    except OverflowError:  # no clock says so, but a manifest may
        return None
    return Backup(replace(newest, id=_IMAGINED_ID, started_at=started_at, finished_at=finished_at))


# --- concerns


def _concerns(database: Database, expected: Expected, now: datetime) -> Iterator[Concern]:
    own = database.label.server == expected.server
    if own and expected.labels is not None and database.label not in expected.labels:
        hint = "Where it is gone for good, say so; else set BACKUPD_SOURCE__DATABASES."
        text = "it is not among the databases that are backed up here"
        yield Concern("warning", text, hint, ("retire", str(database.label)))
        return
    yield from _freshness(database, expected, now)
    yield from _failing(database, now)
    yield from _doubts(database)
    yield from _proofs(database, expected, now)


def _freshness(database: Database, expected: Expected, now: datetime) -> Iterator[Concern]:
    again = ("backup", database.label.database) if database.label.server == expected.server else ()
    newest = database.newest
    if newest is None:
        hint = "Take a backup, and see why there is none."
        yield Concern("danger", freshness.why_none(database.backups), hint, again, "backup-is-failing")
    elif newest.manifest.started_at > now:
        text = f"its newest backup {newest.id} lies in the future: a clock is wrong"
        yield Concern("danger", text, "Set the clock; retention is frozen until then.", (), "retention-is-frozen")
    elif (age := now - newest.manifest.finished_at) > expected.max_age:
        text = f"its newest good backup is {_span(age)} old, {_span(expected.max_age)} at most are expected"
        yield Concern("danger", text, "Take a backup, and see why none came.", again, "backup-is-failing")


def _failing(database: Database, now: datetime) -> Iterator[Concern]:
    """What failed at each step, and did not end well since."""
    succeeded_at = max((backup.manifest.finished_at for backup in database.backups), default=None)
    newest: dict[str, Failure] = {}
    for failure in database.failures:
        if is_current(failure, succeeded_at):
            newest.setdefault(failure.step, failure)
    for step, failure in newest.items():
        often = f", {failure.count} times in a row" if failure.count > 1 else ""
        what = f"the last {step} failed {_span(now - failure.at)} ago{often}"
        text = f"{what}: {failure.message} (exit code {failure.exit_code}, {failure.reason})"
        hint = " ".join(filter(None, (failure.detail, failure.hint)))
        yield Concern("warning", text, hint, (), "backup-is-failing")


def _doubts(database: Database) -> Iterator[Concern]:
    """What speaks against the newest backup of all, and what freezes retention beside that."""
    newest = next(iter(database.backups), None)
    doubt = newest.suspect if newest is not None else None
    if newest is not None and doubt is not None:
        name = str(name_of(newest))
        if doubt == newest.manifest.suspect:
            hint = "Look at the source. If it is right, confirm the backup; retention is frozen until then."
            text = f"its newest backup looks wrong: {doubt}"
            yield Concern("warning", text, hint, ("confirm", name), "retention-is-frozen")
        else:
            hint = "Do not rely on it; take another one and try that."
            yield Concern("danger", f"its newest backup is bad: {doubt}", hint, ("show", name), "retention-is-frozen")
    elif database.frozen:
        text = f"retention is frozen: {database.frozen[0]}"
        yield Concern("warning", text, "Nothing is removed until then.", ("prune",), "retention-is-frozen")


def _proofs(database: Database, expected: Expected, now: datetime) -> Iterator[Concern]:
    """Whether what is expected to be read back and restored was, of a backup that is new enough."""
    wanted = (
        ("read back", ("verify", f"{database.label}@latest"), expected.verified_within, database.newest_verified),
        (
            "restored in a drill",
            ("drill", f"{database.label}@latest"),
            expected.drilled_within,
            database.newest_drilled,
        ),
    )
    for what, command, within, newest in wanted:
        since = newest or next(reversed(database.backups), None)  # before the first can be due, nothing is late
        if within is None or since is None or (age := now - since.manifest.finished_at) <= within:
            continue
        text = (
            f"none of its backups was {what} yet"
            if newest is None
            else f"the newest that was {what} is {_span(age)} old"
        )
        yield Concern("warning", f"{text}, {_span(within)} at most are expected", "", command)


def _proved(backup: Backup, kind: NoteKind) -> bool:
    note = backup.note(kind)
    return note is not None and note.ok


def _span(length: timedelta) -> str:
    return words.span(length.total_seconds())
