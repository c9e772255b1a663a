"""Every way in which backupd refuses or fails, with one exit code a class.

    BackupdError                 never raised itself
    ├─ UsageError            2   settings or arguments are wrong, or there is no such backup
    │  └─ FilterRefused       2   the patterns of tables to dump match nothing, or part a table from its partitions
    ├─ Partial               3   some databases failed, for different reasons
    ├─ StoreError           10   the store is unreachable or answered with an error
    │  ├─ NotFound          10   no object has that key
    │  └─ AlreadyExists     10   an object has that key already; objects are immutable
    ├─ Locked               11   another run holds the source
    ├─ AccessRefused        12   credentials or privileges are missing
    │  └─ Retained          12   the store keeps what was to be deleted: it is locked, or may not be deleted by us
    ├─ VersionMismatch      13   the client is older than the server or the archive
    ├─ VerificationFailed   14   bytes or contract are wrong
    │  └─ NotTrusted        14   nobody whose key is known has signed it
    ├─ TargetRefused        15   the target is not empty, in use, or another identity
    ├─ ReplicaConflict      16   a standby cancelled the dump
    ├─ NoRoom               17   scratch, store or target is too small
    ├─ DatabaseError        18   source or target is unreachable, or refused
    │  └─ LocksExhausted     18   the server has no memory for more locks
    ├─ Stale                19   `check` found a backup too old or missing
    ├─ RestoreFailed        20   pg_restore ended with an error
    └─ HookFailed           21   a command that was to run before a backup failed
    Interrupted        130/143   SIGINT or SIGTERM; not an Exception (see its docstring)

Anything else is a bug: exit code 1 with a traceback. Codes are append-only; README.md lists them and a test
compares. The wording follows PostgreSQL's error style guide: the message is one lower-case line without a full
stop that names the thing and the place; detail and hint are sentences; the hint names a flag or a setting
that exists. Two levels only: a class exists because it has an exit code or because somebody catches it.
"""

from datetime import datetime


class BackupdError(Exception):
    """A failure that is written for the user: message, detail, hint."""

    exit_code = 1
    reason = "error"

    def __init__(self, message: str, detail: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint

    def __str__(self) -> str:
        """The whole text, a line for each of message, detail and hint."""
        rest = ((f"{name}: {text}") for name, text in (("detail", self.detail), ("hint", self.hint)) if text)
        return "\n".join((self.message, *rest))


class UsageError(BackupdError):
    """Settings or arguments are wrong, or name a backup that does not exist."""

    exit_code = 2
    reason = "usage"


class FilterRefused(UsageError):
    """The patterns of tables to dump match nothing, or part a table from its partitions: such words name tables."""

    reason = "filter_refused"


class Partial(BackupdError):
    """Some databases failed, for different reasons; where all failed for one reason, its own class is raised."""

    exit_code = 3
    reason = "partial"


class StoreError(BackupdError):
    """The store is unreachable, or answered with an error that retries did not cure."""

    exit_code = 10
    reason = "store"


class NotFound(StoreError):
    """No object in the store has that key."""

    reason = "not_found"


class AlreadyExists(StoreError):
    """An object in the store has that key already; objects are never overwritten."""

    reason = "already_exists"


class Locked(BackupdError):
    """Another run holds the advisory lock on the source."""

    exit_code = 11
    reason = "locked"


class AccessRefused(BackupdError):
    """The server or the store refused credentials, a privilege is missing, or no identity opens an encrypted backup."""

    exit_code = 12
    reason = "access_refused"


class Retained(AccessRefused):
    """The store keeps what was to be deleted: a lock holds it `until` then, or, without a time, we may not delete."""

    reason = "retained"

    def __init__(
        self, message: str, detail: str | None = None, hint: str | None = None, until: datetime | None = None
    ) -> None:
        super().__init__(message, detail, hint)
        self.until = until


class VersionMismatch(BackupdError):
    """No client is new enough for the server or the archive."""

    exit_code = 13
    reason = "version_mismatch"


class VerificationFailed(BackupdError):
    """Bytes, or rows after a restore, are not what was recorded."""

    exit_code = 14
    reason = "verification_failed"


class NotTrusted(VerificationFailed):
    """Verification keys are set, and what was read is not signed by any of them."""

    reason = "not_trusted"


class TargetRefused(BackupdError):
    """The target is not empty, in use, or not the one that was meant; it was not touched."""

    exit_code = 15
    reason = "target_refused"


class ReplicaConflict(BackupdError):
    """A standby cancelled the dump because replay had to remove rows that it still read."""

    exit_code = 16
    reason = "replica_conflict"


class NoRoom(BackupdError):
    """Scratch, store or target has too little room; the message has the bytes that are needed."""

    exit_code = 17
    reason = "no_room"


class DatabaseError(BackupdError):
    """Source or target is unreachable, broke off, or refused a statement."""

    exit_code = 18
    reason = "database"


class LocksExhausted(DatabaseError):
    """The server has no memory for more locks; a dump by one job needs half of them."""

    reason = "locks_exhausted"


class Stale(BackupdError):
    """`backupd check` found a database whose newest backup is too old, or that has none."""

    exit_code = 19
    reason = "stale"


class RestoreFailed(BackupdError):
    """pg_restore ended with an error."""

    exit_code = 20
    reason = "restore_failed"


class HookFailed(BackupdError):
    """A command of the installation's own failed, could not be started or took too long."""

    exit_code = 21
    reason = "hook_failed"


class Interrupted(BaseException):
    """SIGINT (130) or SIGTERM (143) arrived; raised in the main thread by the handler of `signals`.

    Not an Exception: botocore turns every Exception that crosses its transport into an HTTP error and retries it,
    and would swallow the signal. Not a KeyboardInterrupt either: typer turns that into exit code 1.
    """

    reason = "interrupted"

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by signal {signal_number}")
        self.exit_code = 128 + signal_number


def reason_of(exit_code: int) -> str:
    """The word for an exit code of a run that failed; of a code that several classes have, the first one's."""
    if exit_code > 128:
        return Interrupted.reason
    found = (kind.reason for kind in BackupdError.__subclasses__() if kind.exit_code == exit_code)
    return next(found, BackupdError.reason)
