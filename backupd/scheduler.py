"""What runs when: the verbs that are due, each as a child of its own, one at a time, in the main thread.

The state is the catalog. Before a run it is read again, and the run is left out where its slot has one already, whoever
took it: this daemon before a restart, another one, somebody by hand. What ended because it was interrupted, or because
another run was busy, is no run of its slot. In memory there is only which slots were tried, so that what fails at once
is not tried again and again.

While the catalog cannot be read nobody can say what a slot lacks, so it waits. But only runs tell people: so after a
while a backup is begun all the same, once a slot, which fails and tells. Its slot stays open.

A verb is a child, since it may need a gigabyte, crash, or be killed, and nothing of that is to end the daemon.
"""

import json
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from backupd import log, process
from backupd.catalog import Listing
from backupd.errors import BackupdError, Interrupted
from backupd.manifest import Filter
from backupd.schedule import Schedule, Slot, due_at, is_done, slot_at
from backupd.selector import Label, name_of

Verb = Literal["backup", "drill", "prune", "digest"]

ABORT_SECONDS = 20.0
"""How long a run has to clean up when the daemon is stopped; what is left of it then is killed."""

WAIT_SECONDS = 6 * 3600
"""How long a backup waits for another run of the same database: as long as the chart lets one run."""

PATIENCE = timedelta(minutes=10)
"""How long a server or a store may be away before a backup fails for it: after a reboot all of us start together."""

_AGAIN = timedelta(seconds=10)  # until what could not be asked is asked again
_LEVELS = frozenset({"debug", "info", "warning", "error", "critical"})
_NO_RUN = frozenset({"interrupted", "locked"})
_log = log.get_logger()


@dataclass(frozen=True)
class Planned:
    """A verb that runs on a schedule."""

    verb: Verb
    schedule: Schedule


@dataclass(frozen=True)
class Known:
    """What is known before a run: the server's backups and failures, the labels that are expected, and its filter.

    Where the source could not say which labels are expected, or names none, they are None.
    """

    listing: Listing
    expected: Collection[Label] | None
    filter: Filter | None = None


def outstanding(verb: Verb, slot: Slot, known: Known) -> list[str] | None:
    """The command line of the run that the slot still lacks; None where it has one."""
    if verb == "prune":
        return ["prune", "--yes"]
    if verb == "digest":
        return ["digest"]
    if verb == "drill":
        notes = (backup.note("drilled") for backup in known.listing.backups)
        done = is_done(slot, (note.at for note in notes if note is not None))
        return None if done else ["drill", "--newest-undrilled"]
    begun = _begun(known)
    expected = known.expected if known.expected is not None else begun.keys()
    missing = sorted(label for label in expected if not is_done(slot, begun[label]))
    if expected and not missing:
        return None
    names = [] if len(missing) == len(expected) else ["--", *(label.database for label in missing)]
    return [*_backup(slot), *names]


def _backup(slot: Slot) -> list[str]:
    """The command line of a slot's backup of all databases.

    Another daemon, or a person, may have begun one since the catalog was read: waited for, it is this slot's.
    """
    return ["backup", "--wait", f"{WAIT_SECONDS}", "--unless-since", slot.begins_at.isoformat()]


def _begun(known: Known) -> Mapping[Label, list[datetime]]:
    """When runs of each database began, or failed."""
    begun: dict[Label, list[datetime]] = defaultdict(list)
    for backup in known.listing.backups:
        if backup.manifest.filter == known.filter:
            begun[name_of(backup).label].append(backup.manifest.started_at)
    for failure in known.listing.failures:
        if failure.step == "backup" and failure.reason not in _NO_RUN:
            begun[failure.label].append(failure.at)
    return begun


@dataclass
class Scheduler:
    """The loop. `start` runs a command line to its end and returns its exit code.

    `know` asks the source and reads the catalog, now. It raises where the catalog cannot be read and, when told so,
    where the source cannot be asked.
    """

    planned: Sequence[Planned]
    know: Callable[[bool], Known]
    start: Callable[[Sequence[str]], int]
    now: Callable[[], datetime]
    who: str
    tried: dict[Verb, Slot] = field(default_factory=dict)
    told: Slot | None = None
    waiting_since: dict[Verb, datetime] = field(default_factory=dict)

    def begin(self) -> None:
        """Leaves out what leaves no trace, of the slot that has begun: backups are pruned anyway, a digest is news."""
        for each in self.planned:
            if each.verb in ("prune", "digest"):
                self.tried[each.verb] = slot_at(each.schedule, self.now())

    def step(self) -> list[tuple[Verb, int]]:
        """Runs whatever is due, one after the other; returns how each ended."""
        return [(each.verb, code) for each in self.planned if (code := self._run(each)) is not None]

    def _run(self, planned: Planned) -> int | None:
        now = self.now()
        tried = self.tried.get(planned.verb)
        if tried is not None and tried.has(now):
            return None
        slot = slot_at(planned.schedule, now)
        if now < due_at(planned.schedule, slot, self.who):
            return None
        try:
            known = self._known(planned.verb, now)
        except BackupdError as exc:
            self.tried[planned.verb] = Slot(now, now + _AGAIN)
            _log.warning("run.postponed", verb=planned.verb, message=exc.message, detail=exc.detail, hint=exc.hint)
            return self._tell(planned.verb, slot, now)
        self.tried[planned.verb] = slot
        arguments = outstanding(planned.verb, slot, known)
        return None if arguments is None else self.start(arguments)

    def _known(self, verb: Verb, now: datetime) -> Known:
        """What is known; raises as `know`, for the source some time only."""
        since = self.waiting_since.setdefault(verb, now)
        known = self.know(verb == "backup" and now - since < PATIENCE)
        del self.waiting_since[verb]
        return known

    def _tell(self, verb: Verb, slot: Slot, now: datetime) -> int | None:
        """Runs a backup for a slot of which nothing is known, once, and late enough: it says why it fails."""
        if verb != "backup" or now - self.waiting_since[verb] < PATIENCE or self.told == slot:
            return None
        self.told = slot
        return self.start(_backup(slot))


def run_child(arguments: Sequence[str], environment: Mapping[str, str], limit_seconds: float) -> int:
    """Runs `backupd ARGUMENTS` to its end, logs what it logs, and returns its exit code.

    An interruption is passed on, and what outlasts the limit is interrupted, since no other run begins before its end:
    the child cleans up, and is killed with all it started where that takes too long.
    """
    _log.info("run.started", arguments=list(arguments))
    words = _Words()
    argv = [sys.executable, "-m", "backupd", *arguments]
    with process.start(argv, {**environment, "BACKUPD_LOG__FORMAT": "json"}, on_line=words.relay) as child:
        try:
            status = child.wait(limit_seconds)
        except Interrupted:
            _interrupt(child)
            raise
        if status is None:
            action = "look for what it waits for, or raise BACKUPD_SCHEDULE__RUN_LIMIT"
            _log.error("run.outlasted", arguments=list(arguments), limit_seconds=limit_seconds, action=action)
            status = _interrupt(child)
        child.stderr()  # until all of it was relayed
    code = 1 if status is None else 128 - status if status < 0 else status
    _log.log(_level(code), "run.ended", arguments=list(arguments), exit_code=code, last_event=words.last_event)
    return code


def _interrupt(child: process.Child) -> int | None:
    child.interrupt(signal.SIGTERM)
    return child.wait(ABORT_SECONDS)


def _level(code: int) -> int:
    return 40 if code else 20  # logging's numbers for error and info


class _Words:
    """What a child writes to stderr: events, which are logged as our own, or, where it crashes, text."""

    def __init__(self) -> None:
        self.last_event: str | None = None

    def relay(self, line: str) -> None:
        """Logs one line."""
        try:
            fields: dict[str, Any] = json.loads(line)
            event, level = str(fields.pop("event")), str(fields.pop("level"))
        except (ValueError, TypeError, AttributeError, KeyError):
            log.child_stderr("backupd", line)
            return
        self.last_event = event
        getattr(_log, level if level in _LEVELS else "info")(event, **{f"{name}": fields[name] for name in fields})
