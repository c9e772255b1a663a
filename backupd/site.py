"""What is served: pages, metrics and JSON of the newest status, made once and kept until there is a newer one.

A page says how old things are, so it is made again when it is `STALE_SECONDS` old, in a thread of its own; the rest is
made when somebody first asks for it. What may be asked for is endless (a search for anything), so only so many answers
are kept, and the lock lets one be made at a time: whoever asks for much waits for himself.
"""

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, cast, get_args
from urllib.parse import unquote

from backupd import metrics
from backupd.catalog import Listing
from backupd.manifest import Backup
from backupd.outline import Outline
from backupd.selector import Label, Name
from backupd.selector import unquote as unquote_name
from backupd.serve import Answer
from backupd.status import Expected, Reading, State, Status, status
from backupd.watch import Seen, Watch
from backupd.web import pages
from backupd.web.commands import Here

STALE_SECONDS = 20.0
"""How old a page becomes before it is made again."""

_KEPT = 64
_TEXT = "text/plain; charset=utf-8"
_METRICS = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Holdings:
    """What the store answered: its listing, and outlines of some of its backups."""

    listing: Listing
    outlines: Mapping[Name, Outline] = field(default_factory=dict)


@dataclass(frozen=True)
class Edition:
    """All that can be said of one status; what was made of it is kept in `made`."""

    status: Status
    runs: Mapping[tuple[str, str], int]
    made: dict[tuple[str, str], Answer] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class View:
    """How this installation looks at a store: its URL, what it expects of which labels, how its commands are called.

    `document` is a backup as `--json` shows it.
    """

    store_url: str
    expected: Callable[[tuple[Label, ...] | None, datetime], Expected]
    here: Here
    document: Callable[[Backup], Mapping[str, object]]


class Site:
    """`serve.Answers`, of what two watches saw last."""

    def __init__(
        self,
        view: View,
        store: Watch[Holdings],
        source: Watch[tuple[Label, ...]] | None,
        now: Callable[[], datetime],
    ) -> None:
        self._view, self._store, self._source, self._now = view, store, source, now
        self._assets = {name: Answer(each.data, each.content_type, fixed=True) for name, each in pages.assets().items()}
        self._edited: tuple[tuple[object, ...], Edition] | None = None
        self._runs: dict[tuple[str, str], int] = {}

    def count(self, verb: str, result: str) -> None:
        """Counts a run, for the metrics."""
        self._runs[verb, result] = self._runs.get((verb, result), 0) + 1

    def edit(self) -> None:
        """Makes a new edition, with what is asked for most, where the last one is old or something is new."""
        store = self._store.seen
        source: Seen[tuple[Label, ...]] = self._source.seen if self._source else Seen()
        news = (store.number, store.error is None, source.number, sum(self._runs.values()))
        now = self._now()
        if store.answer is None and store.error is None:
            return  # nothing was heard yet
        if self._edited is not None and self._edited[0] == news and _is_fresh(self._edited[1], now):
            return
        holdings = store.answer or Holdings(Listing(()))
        expected = self._view.expected(source.answer, now)
        reading = Reading(self._view.store_url, store.at, store.error)
        found = status(holdings.listing, expected, reading, now, holdings.outlines)
        edition = Edition(found, dict(self._runs))
        for path in ("/", "/metrics"):
            edition.made[path, ""] = self._made(edition, path, {})
        self._edited = (news, edition)

    def ready(self, path: str, query: Mapping[str, str]) -> Answer | None:
        """What was made before, or takes no time."""
        if path == "/healthz":
            return Answer(b"ok\n", _TEXT)
        if path == "/readyz":
            return self._readiness()
        if path.startswith("/static/"):
            return self._assets.get(path.removeprefix("/static/"), _missing(path))
        if self._edited is None:
            return Answer(b"the store has not been read yet\n", _TEXT, 503)
        return self._edited[1].made.get((path, _key(query)))

    def make(self, path: str, query: Mapping[str, str]) -> Answer:
        """What `ready` does not have; one at a time, and kept for the next who asks."""
        edition = cast(tuple[object, Edition], self._edited)[1]
        key = (path, _key(query))
        with edition.lock:
            if (made := edition.made.get(key)) is None:
                made = self._made(edition, path, query)
                if len(edition.made) < _KEPT and made.status == 200:
                    edition.made[key] = made
        return made

    def _readiness(self) -> Answer:
        asked: list[Watch[Any]] = [self._store, *([self._source] if self._source else [])]
        lacking = [each.name for each in asked if each.seen.error is not None or each.seen.at is None]
        if lacking:
            return Answer(f"not ready: {' and '.join(lacking)}\n".encode(), _TEXT, 503)
        return Answer(b"ready\n", _TEXT)

    def _made(self, edition: Edition, path: str, query: Mapping[str, str]) -> Answer:
        found, here = edition.status, self._view.here
        page: str | None = None
        match [unquote(segment) for segment in path.split("/")[1:]]:
            case [""]:
                page = pages.overview(found, here, _filter(query))
            case ["metrics"]:
                return Answer(metrics.text(metrics.samples(found, edition.runs)), _METRICS)
            case ["api", "v1", "backups.json"]:
                return Answer(_document(found, self._view.document), "application/json")
            case ["database", server, database] if label := _label(server, database):
                page = pages.database(found, here, label, _number(query.get("page", "1")))
            case ["backup", server, database, backup_id] if label := _label(server, database):
                page = pages.backup(found, here, Name(label, backup_id))
        return _missing(path) if page is None else Answer(page.encode("utf-8", "replace"))


def _document(found: Status, document: Callable[[Backup], Mapping[str, object]]) -> bytes:
    """All backups as one document, with when that was read."""
    whole: dict[str, Any] = {
        "read_at": found.reading.read_at.isoformat() if found.reading.read_at else None,
        "error": found.reading.error.message if found.reading.error else None,
        "broken": [{"key": each.key, "message": each.error.message} for each in found.broken],
        "backups": [document(backup) for database in found.databases for backup in database.backups],
    }
    return json.dumps(whole, ensure_ascii=True).encode() + b"\n"


def _is_fresh(edition: Edition, now: datetime) -> bool:
    return timedelta(0) <= now - edition.status.now < timedelta(seconds=STALE_SECONDS)


def _missing(path: str) -> Answer:
    return Answer(pages.not_found(path).encode("utf-8", "replace"), status=404)


def _key(query: Mapping[str, str]) -> str:
    return json.dumps([query.get(name, "") for name in ("search", "state", "page")]) if query else ""


def _filter(query: Mapping[str, str]) -> pages.Filter:
    state = query.get("state")
    return pages.Filter(query.get("search", ""), cast(State, state) if state in get_args(State) else None)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 7 else 0


def _label(server: str, database: str) -> Label | None:
    """The label of two segments of a key."""
    server_name, database_name = unquote_name(server), unquote_name(database)
    return None if server_name is None or database_name is None else Label(server_name, database_name)
