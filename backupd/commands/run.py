"""A run over one or more databases: each step fails by itself, is logged, and leaves a record in the store.

Hides how a failure becomes a record. Writing one is best effort: a store that is down cannot take it, and then that is
logged, and the first error stays the one that is raised.
"""

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field

from backupd import failure, log, settings
from backupd.catalog import Catalog, new_id
from backupd.commands import shared
from backupd.errors import BackupdError, Interrupted, UsageError
from backupd.failure import Failure, Step
from backupd.installation import Installation
from backupd.manifest import Backup
from backupd.selector import Label

_log = log.get_logger()


@dataclass
class Run:
    """What one run works with, and what of it failed."""

    here: Installation
    found: Catalog
    databases: list[str] = field(default_factory=list)
    failed: list[tuple[str, Step, BackupdError]] = field(default_factory=list)
    _store_fails: bool = False

    @contextlib.contextmanager
    def step(self, database: str, step: Step, taken: Backup | None = None) -> Iterator[None]:
        """A step for one database: its failure is kept for the end and stops no other; a signal and a bug stop all.

        `taken` is the run's own backup, where there is one: it is no sign that an earlier failure is over.
        """
        try:
            yield
        except BackupdError as exc:
            _log_failure(database, step, exc)
            self.failed.append((database, step, exc))
            self._record(database, step, exc, taken)
        except (Exception, Interrupted) as exc:
            self._record(database, step, exc, taken)
            raise

    @contextlib.contextmanager
    def beginning(self, names: list[str]) -> Iterator[None]:
        """Until `databases` are known: what fails before fails for each that is meant."""
        try:
            yield
        except (Exception, Interrupted) as exc:
            for database in [] if self.databases else self._meant(names):
                self._record(database, "backup", exc, None)
            raise

    def raise_failures(self) -> None:
        """Raises the one failure, the failures' one class, or Partial."""
        steps = {step for _, step, _ in self.failed}
        lacking = " or ".join(step for step in ("backup", "copy") if step in steps)
        what = [f"have no new {lacking}"] * bool(lacking) + ["were not pruned"] * ("retention" in steps)
        failures = [(database, exc) for database, _, exc in self.failed]
        shared.raise_failures(failures, len(self.databases), f"databases {' or '.join(what)}")

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
        if self._store_fails:
            return
        try:
            label = Label(self.here.settings.server_label, database)
            listing = self.found.backups(label.server, label.database)
            others = [each.manifest.finished_at for each in listing.backups if taken is None or each.id != taken.id]
            new = self._failure(label, step, exc)
            failure.write(self.found.store, failure.following(new, listing.failures, max(others, default=None)))
            self.found.forget_failures(label, new.at)
        except BackupdError as problem:
            self._store_fails = True
            _log.warning("failure.unrecorded", database=database, message=problem.message, action="look at the store")

    def _failure(self, label: Label, step: Step, exc: BaseException) -> Failure:
        now, known = shared.now(), settings.secrets(self.here.settings)
        error = exc if isinstance(exc, BackupdError) else BackupdError(str(exc) or type(exc).__name__)
        message, detail, hint = (text and log.scrub(text, known) for text in (error.message, error.detail, error.hint))
        kind = exc if isinstance(exc, Interrupted) else error
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


def _log_failure(database: str, step: Step, exc: BackupdError) -> None:
    fields = {"message": exc.message, "detail": exc.detail, "hint": exc.hint}
    match step:
        case "backup":
            _log.error("backup.failed", database=database, reason=exc.reason, **fields)
        case "retention":
            _log.error("retention.failed", database=database, reason=exc.reason, **fields)
        case "copy":
            _log.error("copy.failed", database=database, reason=exc.reason, **fields)
