"""Where a process begins: signals first, then the rest.

As PID 1 a process without a handler ignores SIGTERM, and one that arrives during the imports would be lost; so the
handler is installed before anything heavy is imported.
"""

import sys

from backupd import signals


def main() -> None:
    """Runs the command line and exits with its code."""
    try:
        signals.install()
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


if __name__ == "__main__":
    main()
