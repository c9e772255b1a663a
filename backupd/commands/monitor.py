"""What a run that has ended tells monitors: by a Pushgateway, or in a file. It never fails a run."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from backupd import log
from backupd.catalog import Catalog
from backupd.errors import BackupdError
from backupd.installation import Installation
from backupd.selector import Label

if TYPE_CHECKING:
    from backupd.metrics import Sample

_log = log.get_logger()


@dataclass(frozen=True)
class Ended:
    """A run that has ended: its server and databases, and of those that failed which, at which step, and why.

    Without a server it was about several.
    """

    server: str | None
    databases: Sequence[str]
    failed: Sequence[tuple[str, str, str]]
    now: datetime


def tell(here: Installation, found: Catalog, run: Ended) -> None:
    """Tells how the server's databases fare now; where the store cannot be read, only which of the run's failed.

    A Pushgateway is told of the run's databases only: runs of others may be under way, and know theirs better.
    """
    chosen = here.settings.metrics
    if chosen.pushgateway_url is None and chosen.textfile is None:
        return
    from backupd import metrics

    try:
        told, whole = list(_all(here, found, run)), True
    except BackupdError as exc:
        _log.warning("metrics.incomplete", message=exc.message, action="look at the store")
        server = run.server or ""
        failures = (metrics.of_failure(Label(server, each[0]), each[1], each[2], run.now) for each in run.failed)
        told, whole = [sample for each in failures for sample in each], False
    if chosen.textfile is not None:
        with _bearable():
            metrics.write_file(chosen.textfile, told, whole)
    if chosen.pushgateway_url is not None:
        with _bearable():
            own = {(run.server, database) for database in run.databases}
            metrics.push(chosen.pushgateway_url, [each for each in told if not own or each.labels[:2] in own])


def _all(here: Installation, found: Catalog, run: Ended) -> "Iterator[Sample]":
    """Of the run's databases, where no file is to have all: a pod for each is not to read what all others have."""
    from backupd import metrics, status

    only = run.databases if here.settings.metrics.textfile is None else ()
    expected, reading = here.expectations(None, run.now), status.Reading(found.store.url, run.now)
    for listing in [found.backups(run.server, each) for each in only] or [found.backups(run.server)]:
        yield from metrics.samples(status.status(listing, expected, reading, run.now))


@contextlib.contextmanager
def _bearable() -> Iterator[None]:
    try:
        yield
    except BackupdError as exc:
        _log.warning("metrics.failed", message=exc.message, detail=exc.detail, action=exc.hint)
