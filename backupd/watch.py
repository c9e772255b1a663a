"""Asking again and again, in a thread, what may hang: a store, a server. Whoever wants to know gets the last answer.

No request ever waits for a store. One that hangs holds up its own thread and nothing else: the last answer stays, with
its time, and after a while that there is no newer one is an error like any other.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from backupd import log
from backupd.errors import BackupdError, StoreError

PATIENCE_SECONDS = 60.0
"""How long a question may take before it is said to hang; a thousand backups in S3 are read in a few seconds."""

_Answer = TypeVar("_Answer")
_log = log.get_logger()


@dataclass(frozen=True)
class Seen(Generic[_Answer]):
    """The last answer, when it came, and the error where there is no newer one; `number` counts the changes."""

    answer: _Answer | None = None
    at: datetime | None = None
    error: BackupdError | None = None
    number: int = 0


class Watch(Generic[_Answer]):
    """A question that is asked every so many seconds; `name` is its thread's, and in the log."""

    def __init__(
        self,
        name: str,
        ask: Callable[[], _Answer],
        now: Callable[[], datetime],
        interval_seconds: float,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self.name = name
        self._ask, self._now = ask, now
        self._interval_seconds, self._patience_seconds = interval_seconds, patience_seconds
        self._seen: Seen[_Answer] = Seen()
        self._asked_at: float | None = None
        self._soon = threading.Event()
        self._ended = False
        # A daemon, since nobody could end it while a store hangs.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Asks for the first time, and from then on."""
        self._thread.start()

    @property
    def seen(self) -> Seen[_Answer]:
        """What was answered last; at once, whatever the thread waits for."""
        seen, asked_at = self._seen, self._asked_at
        waited = time.monotonic() - asked_at if asked_at is not None else 0.0
        if waited <= self._patience_seconds:
            return seen
        error = StoreError(f"the {self.name} has not answered for {waited:.0f} seconds")
        return Seen(seen.answer, seen.at, error, seen.number)

    def ask_soon(self) -> None:
        """Asks again without waiting for the interval: something has just changed."""
        self._soon.set()

    def end(self, wait_seconds: float) -> None:
        """Asks no more, and waits so long for the answer that is due, so that its block can give back what it holds."""
        self._ended = True
        self._soon.set()
        if self._thread.is_alive():
            self._thread.join(wait_seconds)

    def _run(self) -> None:
        while not self._ended:
            self._soon.clear()
            self._asked_at = time.monotonic()
            self._look()
            self._asked_at = None
            self._soon.wait(self._interval_seconds)

    def _look(self) -> None:
        before = self._seen
        try:
            self._seen = Seen(self._ask(), self._now(), None, before.number + 1)
        except BackupdError as exc:
            if before.error is None:
                _log.warning("watch.failed", asked=self.name, message=exc.message, detail=exc.detail, hint=exc.hint)
            self._seen = Seen(before.answer, before.at, exc, before.number + 1)
        except Exception as exc:  # noqa: BLE001  # a bug here is told, and must not end what takes the backups
            if before.error is None:
                _log.exception("watch.failed", asked=self.name)
            self._seen = Seen(before.answer, before.at, BackupdError(f"a bug: {exc!r}"), before.number + 1)
        else:
            if before.error is not None:
                _log.info("watch.recovered", asked=self.name)
