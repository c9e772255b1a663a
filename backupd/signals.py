"""SIGINT and SIGTERM: where they may interrupt, and a bound on the clean-up.

A signal becomes an exception, `Interrupted`, in the main thread. Raised between any two instructions it would now and
then leave a lock of another module's taken for ever: `threading.Condition.__enter__` takes its lock in Python code, and
a thread pool then waits for a worker that waits for that lock (seen in 2 of 3,000 interrupted pools). So while the main
thread is inside such code the signal is put off for some milliseconds. Nothing may wait long in there: `threads` waits
elsewhere. Functions that make or end what nobody else would end, such as a child, are marked `whole` for the same.

Code that nobody can name here may still swallow the exception: C runs callbacks (before a fork, at the end of an
object) and only prints what they raise. So a timer asks whether it is being handled, and raises it again where not.

Whatever else goes wrong, a clean-up ends: GRACE_SECONDS after the signal the process is over, as if it were killed,
for which everything is made (children die with us, `sweep` finds the rest).

Not a flag that is looked at: a read from a dead server would hold up the end for minutes.
"""

import _thread
import os
import signal
import sys
import time
from collections.abc import Callable
from types import CodeType, FrameType
from typing import TypeVar

GRACE_SECONDS = 25.0
"""For the clean-up after a signal: Kubernetes kills 30 seconds after SIGTERM unless it is told otherwise."""

_Function = TypeVar("_Function", bound=Callable[..., object])
_AGAIN_SECONDS = 0.01
_SWALLOWED_SECONDS = 0.2
_HANDLED = (signal.SIGINT, signal.SIGTERM)
_WITH_LOCKS = frozenset(
    {"threading", "queue", "logging", "concurrent.futures", "concurrent.futures._base", "concurrent.futures.thread"}
)
_SWALLOWING = frozenset({"weakref", "_weakrefset", "importlib._bootstrap"})
"""Python prints and forgets what callbacks and `__del__` raise, and an import that broke off fails the next one too."""


_whole: set[CodeType] = set()


class _Arrival:
    """The handler of both signals, and of the timer that asks again."""

    def __init__(self) -> None:
        self._number = 0
        self._raised: BaseException | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Raises Interrupted; a signal that comes later must not interrupt the clean-up."""
        if not self._number:
            if number == signal.SIGALRM:
                return
            self._number = number
            _thread.start_new_thread(_give_up, (number,))  # threading's own needs locks that may be taken here
        if self._raised is not None and (number != signal.SIGALRM or is_handled(self._raised)):
            return
        if is_delicate(frame):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS, _SWALLOWED_SECONDS)
            return
        signal.setitimer(signal.ITIMER_REAL, _SWALLOWED_SECONDS, _SWALLOWED_SECONDS)
        from backupd.errors import Interrupted

        self._raised = Interrupted(self._number)
        raise self._raised


def install() -> None:
    """Makes SIGINT and SIGTERM interrupt this process, from now on or, where they were blocked, since its start.

    The image starts us with both blocked: as PID 1 a process has no default for them, and one that came before Python
    ran our first line would be lost. Cheap: call it before anything heavy is imported.
    """
    arrival = _Arrival()
    for number in (*_HANDLED, signal.SIGALRM):
        signal.signal(number, arrival)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)


def ignore() -> None:
    """Makes them have no effect any more: once an interruption was heard, and while Python ends."""
    for number in (*_HANDLED, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


def whole(function: _Function) -> _Function:
    """Marks a function, or a generator under `contextmanager`, that a signal does not interrupt while it runs itself.

    The block of a `with` is not the generator: there a signal interrupts as everywhere.
    """
    _whole.add(function.__code__)
    return function


def is_handled(raised: BaseException) -> bool:
    """Whether this thread is in an `except`, a `finally` or the end of a `with` because of that exception."""
    current = sys.exc_info()[1]
    while current is not None and current is not raised:
        current = current.__context__
    return current is not None


def is_delicate(frame: FrameType | None) -> bool:
    """Whether an exception that is raised while that frame runs would leave a lock taken, or be lost.

    contextlib counts only where it runs itself: there a resource is open, and nobody holds it yet.
    """
    if frame is not None and frame.f_globals.get("__name__") == "contextlib":
        return True
    while frame is not None:
        name = frame.f_globals.get("__name__")
        if name in _WITH_LOCKS or name in _SWALLOWING or frame.f_code.co_name == "__del__" or frame.f_code in _whole:
            return True
        frame = frame.f_back
    return False


def _give_up(number: int) -> None:
    time.sleep(GRACE_SECONDS)
    text = f"backupd: clean-up after signal {number} took over {GRACE_SECONDS:.0f} seconds and was given up\n"
    os.write(2, text.encode())  # sys.stderr has a lock
    os._exit(128 + number)
