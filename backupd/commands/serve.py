"""`serve`: the schedule, the metrics and the status page, as long as it is left running."""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backupd import catalog, log, signals
from backupd.commands import shared
from backupd.errors import BackupdError, Interrupted, reason_of
from backupd.installation import Installation
from backupd.selector import Name, name_of

if TYPE_CHECKING:
    from backupd import scheduler, site, watch
    from backupd.outline import Outline

app = typer.Typer()

LOOK_SECONDS = 1.0
"""How often the clock is looked at: it may jump, so that sleeping until something is due would be wrong."""

_END_SECONDS = 2.0  # for each watch: a process that is told to end has 25 in all
_OUTLINES = 200  # of the newest backups; others' pages do without
_OUTLINES_AT_ONCE = 20
_log = log.get_logger()


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 or :: is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.", min=0, max=65535)] = 8080,
) -> None:
    """Keep the schedule, and show the status page, metrics and JSON; without a schedule only show.

    Ends with 0 at SIGTERM or SIGINT: a run that is under way is aborted, and cleans up.
    """
    from backupd import serve as server

    here = shared.installation()
    token = here.settings.serve.token
    served = _Served.of(here)
    try:
        with server.listening(host, port) as listener:
            port = listener.getsockname()[1]
            with server.serving(listener, served.site, token.get_secret_value() if token else None):
                _log.info("serve.started", host=host, port=port, schedules=[each.verb for each in served.loop.planned])
                if token is None and host not in ("127.0.0.1", "::1", "localhost"):
                    _log.warning(
                        "serve.open", host=host, action="set BACKUPD_SERVE__TOKEN_FILE, or let nobody reach it"
                    )
                served.run()
    except Interrupted as exc:
        signals.ignore()
        for each in served.watches:
            each.end(_END_SECONDS)
        _log.info("serve.stopped", reason=str(exc))


@dataclass(frozen=True)
class _Served:
    """What runs side by side: the watches' threads, and in this one the loop."""

    watches: Sequence["watch.Watch[Any]"]
    site: "site.Site"
    loop: "scheduler.Scheduler"

    @classmethod
    def of(cls, here: Installation) -> "_Served":
        """All of it, not started yet."""
        from backupd import scheduler, site, watch
        from backupd.web.commands import Here

        found, chosen = here.catalog(), here.settings.serve
        seconds = chosen.refresh.total_seconds()
        store = watch.Watch("store", _Reader(found), shared.now, seconds)
        source = watch.Watch("source", here.ask_expected, shared.now, seconds) if here.names_databases else None
        view = site.View(
            found.store.url, here.expectations, Here(chosen.command, chosen.runbooks_url), shared.backup_json
        )
        shown = site.Site(view, store, source, shared.now)
        page = watch.Watch("page", shown.edit, shared.now, LOOK_SECONDS)
        loop = scheduler.Scheduler(
            planned=_planned(here),
            know=partial(_know, here, found),
            start=partial(
                scheduler.run_child,
                environment=here.settings.environment,
                limit_seconds=here.settings.schedule.run_limit.total_seconds(),
            ),
            now=shared.now,
            who=here.settings.server_label,
        )
        return cls([each for each in (store, source, page) if each is not None], shown, loop)

    def run(self) -> None:
        """Until a signal comes."""
        for each in self.watches:
            each.start()
        self.loop.begin()
        while True:
            for verb, code in self.loop.step():
                self.site.count(verb, "ok" if code == 0 else reason_of(code))
                for each in self.watches:
                    each.ask_soon()
            time.sleep(LOOK_SECONDS)


def _planned(here: Installation) -> "list[scheduler.Planned]":
    from backupd import scheduler

    chosen = here.settings.schedule
    crons: tuple[tuple[scheduler.Verb, str | None], ...] = (
        ("backup", chosen.cron),
        ("drill", chosen.drill_cron),
        ("prune", chosen.prune_cron),
        ("digest", chosen.digest_cron),
    )
    return [scheduler.Planned(verb, chosen.schedule(cron)) for verb, cron in crons if cron is not None]


def _know(here: Installation, found: catalog.Catalog, needs_source: bool) -> "scheduler.Known":
    from backupd import scheduler

    expected = None
    try:
        expected = here.ask_expected() if here.names_databases else None
    except BackupdError:
        if needs_source:
            raise
    return scheduler.Known(found.backups(here.settings.server_label), expected, here.filter())


class _Reader:
    """Reads the store; of the newest backups also what their pages show, once, since a backup never changes.

    That takes a read of each archive, so it comes after the first list, some at a time: no page should wait for it.
    """

    def __init__(self, found: catalog.Catalog) -> None:
        self._found = found.remembering()
        self._outlines: dict[Name, Outline] = {}
        self._names: list[Name] = []

    def __call__(self) -> "site.Holdings":
        from backupd import outline, site

        listing = self._found.backups()
        names = [name_of(backup) for backup in listing.backups]
        newest = dict(zip(names[:_OUTLINES], listing.backups, strict=False))
        missing = [name for name in newest if name not in self._outlines] if self._names else []
        read = {name: outline.read(self._found, newest[name]) for name in missing[:_OUTLINES_AT_ONCE]}
        self._outlines = {name: known for name, known in self._outlines.items() if name in newest} | read
        if names != self._names:
            # What stays for as long as we run need not be looked through for garbage: that stops every thread, for
            # 0.1 to 0.8 s where there are ten thousand backups, and requests with them.
            gc.collect()
            gc.freeze()
            self._names = names
        return site.Holdings(listing, dict(self._outlines))
