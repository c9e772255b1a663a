"""Runs the command line again and again in forks of a process that has imported all of it.

A run of a small backup is mostly imports, and a fault among those attacks Python. A fork costs a millisecond, and
nearly every system call that it makes is the program's own. Each request and each answer is a line; one run at a time.
"""

import gc
import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import botocore.loaders
import botocore.session

from backupd import __main__ as program

_LATE = (
    "backupd.backup",
    "backupd.cli",
    "backupd.copy",
    "backupd.drill",
    "backupd.rekey",
    "backupd.restore",
    "backupd.store.local",
    "backupd.store.paced",
    "backupd.store.s3",
    "backupd.swap",
    "backupd.verify",
    "boto3.s3.inject",
    "boto3.s3.transfer",
    "encodings.idna",
    "inotify_simple",
    "pyrage",
    "typer._adapters",
)
"""What a run imports once it is known to need it; seen by what `sys.modules` has more at its end."""


def serve() -> None:
    """Reads requests until there are no more: arguments, environment, files for output, and whether to wait first."""
    for module in _LATE:
        importlib.import_module(module)
    botocore.session.create_loader = read_once()
    gc.freeze()  # else the first collection in each fork copies all of it
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _run(request)
            return
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def read_once() -> "Callable[..., botocore.loaders.Loader]":
    """What gives botocore its descriptions of all services, 10,000 system calls in which ours would be lost."""
    loader = botocore.loaders.create_loader()
    for what in ("endpoints", "partitions", "sdk-default-configuration"):
        loader.load_data(what)
    loader.load_service_model("s3", "service-2")

    def created(search_path_string: str | None = None) -> botocore.loaders.Loader:
        return loader

    return created


def _run(request: dict[str, Any]) -> None:
    """Becomes the command line, and leaves as it does; but taking apart all that was imported would cost a second."""
    os.environ.clear()
    os.environ.update(request["environment"])
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    for number, path in ((1, request["stdout"]), (2, request["stderr"])):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, number)
        os.close(file)
    sys.argv = ["backupd", *request["arguments"]]
    if request["stopped"]:
        os.kill(os.getpid(), signal.SIGSTOP)  # until somebody traces it
    try:
        program.main()
    except SystemExit as exc:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exc.code if isinstance(exc.code, int) else 1)


if __name__ == "__main__":
    serve()
