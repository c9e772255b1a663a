"""Where a process begins: signals first, then the rest.

As PID 1 a process without a handler ignores SIGTERM, and one that arrives during the imports would be lost; so the
handler is installed before anything heavy is imported.
"""

import signal
import sys
from types import FrameType


def _ignore(number: int, frame: FrameType | None) -> None:
    """The second signal: clean-up goes on."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises Interrupted once; what comes later must not interrupt the clean-up."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _ignore)  # not SIG_IGN: Python complains where one is pending already
    from backupd.errors import Interrupted

    raise Interrupted(number)


def main() -> None:
    """Runs the command line and exits with its code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    from backupd.errors import Interrupted

    try:
        from backupd import cli

        code = cli.run(sys.argv[1:])
    except Interrupted as exc:
        code = exc.exit_code
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # while Python ends it would give them back
    sys.exit(code)


if __name__ == "__main__":
    main()
