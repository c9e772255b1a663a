"""Where a process begins: signals first, then the rest.

As PID 1 a process without a handler ignores SIGTERM, and one that arrives during the imports would be lost; so the
handler is installed before anything heavy is imported. Nor does anything dump its core: passwords and keys are in the
memory of this process and of its children, who inherit the limit.
"""

import contextlib
import resource
import sys

from backupd import signals


def main() -> None:
    """Runs the command line and exits with its code."""
    try:
        signals.install()
        _dump_no_core()
        from backupd import cli

        code = cli.run(sys.argv[1:])
        signals.ignore()
    except BaseException as exc:
        from backupd.errors import Interrupted

        if not isinstance(exc, Interrupted):
            raise
        signals.ignore()
        code = exc.exit_code
    sys.exit(code)


def _dump_no_core() -> None:
    """One byte, not none: no file is so small, and it is the one limit that Linux holds a handler to which it pipes."""
    with contextlib.suppress(ValueError, OSError):  # no file is allowed already
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


if __name__ == "__main__":
    main()
