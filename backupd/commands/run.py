"""A run of a verb, and what everybody is told of it: the log, the store, people and monitors.

Each step for a database fails by itself: it is logged, leaves a record in the store, and is raised at the end with the
others. When the run is over one event says all of it, and monitors, people and the dead-man's switch are told. None of
this may fail a run, or hide the first error: a store that is down takes no record, a dead notifier no message, and then
that is logged.
"""

import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from backupd import failure, hook, log, notice, settings
from backupd.catalog import Catalog, new_id
from backupd.commands import monitor, shared, tell
from backupd.errors import (
    BackupdError,
    FilterRefused,
    Interrupted,
    Locked,
    NoRoom,
    StoreError,
    UsageError,
    VersionMismatch,
)
from backupd.failure import Failure, Step
from backupd.installation import Installation
from backupd.manifest import Backup
from backupd.notice import Notice
from backupd.selector import Label, name_of

_log = log.get_logger()

_NAMES_NO_TABLE = (UsageError, StoreError, Locked, VersionMismatch, NoRoom, Interrupted)
"""Failures whose words may lie in a store from which nobody is to learn what the tables are."""

SIGNALLED_LIMIT = timedelta(seconds=10)
"""How long a hook may take after a signal: the process is over 25 seconds after that."""


@dataclass(frozen=True)
class Outcome:
    """How one step for one database ended: `ok` or the reason why not; the backup that it took or used, if it did."""

    database: str
    step: str
    outcome: str
    seconds: float
    backup: str | None = None
    archive_bytes: int = 0


@dataclass
class Run:
    """What one run works with, what came of it, and what is to be told when it is over."""

    here: Installation
    found: Catalog
    server: str | None
    """Whose databases it is about; None where nothing says which of several."""
    databases: list[str] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    failed: list[tuple[str, Step, BackupdError]] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    told: bool = False
    """Whether what failed is in the notices, or known for so long that it is not to be told again."""
    _store_fails: bool = False

    @contextlib.contextmanager
    def step(self, database: str, step: Step, taken: Backup | None = None) -> Iterator[list[Backup]]:
        """A step for one database: its failure is kept for the end and stops no other; a signal and a bug stop all.

        `taken` is the run's own backup, where there is one: it is no sign that an earlier failure is over. The block
        may put the backup that it takes into the list.
        """
        began, made = time.monotonic(), list[Backup]()
        reason = "ok"
        try:
            yield made
        except BackupdError as exc:
            reason = exc.reason
            _log_failure(database, step, exc)
            self.failed.append((database, step, exc))
            self._record(database, step, exc, taken)
        except (Exception, Interrupted) as exc:
            reason = getattr(exc, "reason", BackupdError.reason)
            self._record(database, step, exc, taken)
            raise
        finally:
            self.note(database, step, made[0] if made else None, time.monotonic() - began, reason)

    def note(self, database: str, step: str, backup: Backup | None, seconds: float, reason: str = "ok") -> None:
        """Keeps an outcome for the run's last event."""
        name, size = (str(name_of(backup)), backup.manifest.archive_bytes) if backup else (None, 0)
        self.outcomes.append(Outcome(database, step, reason, round(seconds, 3), name, size))

    @contextlib.contextmanager
    def beginning(self, names: list[str]) -> Iterator[None]:
        """Until `databases` are known: what fails before fails for each that is meant."""
        try:
            yield
        except (Exception, Interrupted) as exc:
            for database in [] if self.databases else self._meant(names):
                self._record(database, "backup", exc, None)
            if not isinstance(exc, Interrupted):
                self._forget()
            raise

    def raise_failures(self) -> None:
        """Raises the one failure, the failures' one class, or Partial; forgets what failed long ago."""
        self._forget()
        steps = {step for _, step, _ in self.failed}
        lacking = " or ".join(step for step in ("backup", "copy") if step in steps)
        what = [f"have no new {lacking}"] * bool(lacking) + ["were not pruned"] * ("retention" in steps)
        failures = [(database, exc) for database, _, exc in self.failed]
        shared.raise_failures(failures, len(self.databases), f"databases {' or '.join(what)}")

    def run_hook(
        self, when: hook.When, database: str, facts: Mapping[str, str | int], limit: timedelta | None = None
    ) -> None:
        """Runs the installation's own command for that moment. Raises HookFailed."""
        chosen, environment = self.here.settings.hook, self.here.settings.environment
        argv = {"before": chosen.before, "after": chosen.after, "failure": chosen.failure}[when]
        where = {"server": self.here.settings.server_label, "database": database, "store": self.found.store.url}
        hook.run(when, argv, environment, {**where, **facts}, min(chosen.limit, limit or chosen.limit))

    def run_late_hook(
        self, when: hook.When, database: str, facts: Mapping[str, str | int], limit: timedelta | None = None
    ) -> None:
        """As `run_hook`, once nothing can be stopped any more: that it fails is logged."""
        try:
            self.run_hook(when, database, facts, limit)
        except BackupdError as exc:
            _log.error("hook.failed", database=database, message=exc.message, detail=exc.detail, hint=exc.hint)

    def look_back(self, taken: Sequence[Backup]) -> None:
        """Notes what is to be told of the databases that have a new backup; nobody reads it where none is to be."""
        failed = {database for database, _, _ in self.failed}
        for each in taken if self.here.settings.notify.urls else ():
            try:
                listing = self.found.backups(each.source.server, each.source.database)
            except BackupdError as exc:
                _log.warning("notify.failed", message=exc.message, action="look at the store")
                return
            others = [other for other in listing.backups if other.id != each.id]
            if each.source.database not in failed:
                self._tell(notice.of_success(each, others, listing.failures))
            self._tell(notice.of_doubt(listing.backups, self.here.settings.retention.policy()))

    def _forget(self) -> None:
        """Removes old records; another run does it where this one may not, or cannot."""
        try:
            if not self._store_fails:
                self.found.forget_old_failures(self.here.settings.server_label, shared.now())
        except BackupdError as exc:
            _log.debug("failure.kept", message=exc.message)

    def _tell(self, told: Notice | None) -> None:
        self.notices += [told] if told else []

    def _meant(self, names: list[str]) -> list[str]:
        try:
            return self.here.databases_unasked(names, self.found.labels(self.here.settings.server_label))
        except UsageError:  # none is named, which is what failed
            return []
        except BackupdError as exc:
            _log.warning("failure.unrecorded", message=exc.message, action="look at the store")
            return []

    def _record(self, database: str, step: Step, exc: BaseException, taken: Backup | None) -> None:
        """Writes the record, unless the store has just refused another: each try may take minutes."""
        new = self._failure(Label(self.here.settings.server_label, database), step, exc)
        previous = None
        try:
            previous = None if self._store_fails else self._remember(new, taken)
        except BackupdError as problem:
            self._store_fails = True
            _log.warning("failure.unrecorded", database=database, message=problem.message, action="look at the store")
        self.told = True
        known = {"step": step, "exit_code": new.exit_code, "reason": new.reason, "message": new.message}
        limit = SIGNALLED_LIMIT if isinstance(exc, Interrupted) else None
        self.run_late_hook("failure", database, known, limit)
        self._tell(notice.of_failure(failure.following(new, previous), previous))

    def _remember(self, new: Failure, taken: Backup | None) -> Failure | None:
        """Writes the record of a failure; returns the one before it in its row."""
        listing = self.found.backups(new.server, new.database)
        others = [each.manifest.finished_at for each in listing.backups if taken is None or each.id != taken.id]
        previous = failure.before(new, listing.failures, max(others, default=None))
        failure.write(self.found.store, failure.following(new, previous))
        return previous

    def _failure(self, label: Label, step: Step, exc: BaseException) -> Failure:
        now, known = shared.now(), settings.secrets(self.here.settings)
        error = exc if isinstance(exc, BackupdError) else BackupdError(str(exc) or type(exc).__name__)
        names_tables = isinstance(exc, FilterRefused) or not isinstance(exc, _NAMES_NO_TABLE)
        if self.here.settings.encryption.recipients and names_tables:
            error = BackupdError("why is in the run's log: backups are encrypted here, and it may name tables")
        message, detail, hint = (text and log.scrub(text, known) for text in (error.message, error.detail, error.hint))
        kind = exc if isinstance(exc, BackupdError | Interrupted) else error
        return Failure(
            id=new_id(now, secrets.token_hex(4)),
            server=label.server,
            database=label.database,
            step=step,
            at=now,
            first_at=now,
            count=1,
            exit_code=kind.exit_code,
            reason=kind.reason,
            message=message or "",
            detail=detail,
            hint=hint,
        )


@contextlib.contextmanager
def reported(verb: str, *, tells: bool = True, pings: bool = False) -> Iterator[Run]:
    """A run of that verb: when its block is over the log has one event with everything, and whoever is to be told is.

    With `pings` the dead-man's switch hears of the beginning and of every end.
    """
    here = shared.installation()
    run = Run(here, here.catalog().remembering(), here.settings.known_label)
    began = time.monotonic()
    if pings:
        tell.ping(here, "/start", "")
    try:
        yield run
    except (Exception, Interrupted) as exc:
        code, reason = getattr(exc, "exit_code", BackupdError.exit_code), getattr(exc, "reason", BackupdError.reason)
        _log_finished(run, verb, began, code, reason)
        _tell_monitors(run)
        if not run.told:  # it failed before any database was known
            run.notices.append(notice.of_error(verb, exc))
        if tells:
            tell.send(here, run.server, run.notices)
        if pings:
            tell.ping(here, f"/{code}", f"{reason}: {exc}")
        raise
    _log_finished(run, verb, began, 0, "ok")
    _tell_monitors(run)
    if tells:
        tell.send(here, run.server, run.notices)
    if pings:
        tell.ping(here, "", "\n".join(each.backup for each in run.outcomes if each.backup))


def _log_finished(run: Run, verb: str, began: float, code: int, reason: str) -> None:
    _log.info(
        "run.finished",
        verb=verb,
        exit_code=code,
        reason=reason,
        seconds=round(time.monotonic() - began, 3),
        archive_bytes=sum(each.archive_bytes for each in run.outcomes),
        outcomes=[vars(each) for each in run.outcomes],
    )


def _tell_monitors(run: Run) -> None:
    failed = [(database, step, exc.reason) for database, step, exc in run.failed]
    monitor.tell(run.here, run.found, monitor.Ended(run.server, run.databases, failed, shared.now()))


def _log_failure(database: str, step: Step, exc: BackupdError) -> None:
    fields = {"message": exc.message, "detail": exc.detail, "hint": exc.hint}
    match step:
        case "backup":
            _log.error("backup.failed", database=database, reason=exc.reason, **fields)
        case "retention":
            _log.error("retention.failed", database=database, reason=exc.reason, **fields)
        case "copy":
            _log.error("copy.failed", database=database, reason=exc.reason, **fields)
