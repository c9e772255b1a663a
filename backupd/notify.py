"""Telling people and monitors: any of apprise's services by its URL, and pings as healthchecks.io takes them.

The only user of apprise and of urllib.request. Hides that both may hang, raise, and name their URLs in messages, which
are as good as passwords: each call ends within its time and returns what went wrong, without a URL. Nothing here
raises: a notifier that fails must not fail a backup.

Each call works in a thread of its own that is left behind when its time is over: a library's time limits are a
socket's, and a name server or a server that drips has none. Pings go by the standard library: one request is all.
"""

import logging
import threading
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from queue import Empty, SimpleQueue
from urllib.parse import urlsplit, urlunsplit

from backupd import log
from backupd.notation import secret_pieces

SEND_SECONDS = 20.0
"""How long a message to all of the URLs may take."""

PING_SECONDS = 10.0
"""How long a ping may take."""

BODY_LIMIT = 10_000
"""Characters of a message; healthchecks.io keeps that much, and chats cut theirs shorter."""

_SHORTEST_PIECE = 4


def send(urls: Sequence[str], title: str, body: str) -> list[str]:
    """Sends a message to each of the apprise URLs; returns a line for each that did not take it."""

    def work() -> list[str]:
        return [problem for url in urls if (problem := _send_one(url, title, body[:BODY_LIMIT]))]

    if (problems := _within(SEND_SECONDS, work)) is None:
        return [f"not every notification was sent within {SEND_SECONDS:.0f} seconds"]
    return problems


def ping(url: str, ending: str, body: str) -> str | None:
    """Posts to a dead-man's switch: `/start`, nothing or the exit code is the ending. Returns what went wrong."""
    parts = urlsplit(url)
    whole = urlunsplit(parts._replace(path=parts.path.rstrip("/") + ending))
    headers = {"User-Agent": "backupd", "Content-Type": "text/plain; charset=utf-8"}

    def work() -> list[str]:
        try:
            request = urllib.request.Request(whole, body[:BODY_LIMIT].encode("utf-8", "replace"), headers)  # noqa: S310
            with urllib.request.urlopen(request, timeout=PING_SECONDS):  # noqa: S310  # http only: settings check it
                return []
        except (OSError, HTTPException, ValueError) as exc:
            return [_masked(str(exc) or type(exc).__name__, url)]

    if (problems := _within(PING_SECONDS, work)) is None:
        return f"no answer within {PING_SECONDS:.0f} seconds"
    return next(iter(problems), None)


def unusable(urls: Sequence[str]) -> list[str]:
    """Of the apprise URLs those that name no service, by their scheme; a line says that apprise itself is missing."""
    try:
        import apprise
    except ImportError:
        return ["apprise is not installed (`pip install backupd[notify]`)"]
    logging.getLogger("apprise").propagate = False
    return [f"{_scheme(url)} is no notification URL" for url in urls if apprise.Apprise.instantiate(url) is None]


def _send_one(url: str, title: str, body: str) -> str | None:
    if found := unusable([url]):
        return found[0]
    import apprise

    sender = apprise.Apprise()
    with apprise.LogCapture(level=logging.WARNING, fmt="%(message)s") as said:  # type: ignore[no-untyped-call]
        try:
            sent = sender.add(url) and sender.notify(body, title=title, body_format=apprise.NotifyFormat.TEXT)
        except Exception as exc:  # noqa: BLE001  # a hundred plugins: whatever one raises is that one's failure
            return _masked(f"{_scheme(url)}: {type(exc).__name__}: {exc}", url)
        lines = " ".join(said.getvalue().split())
    return None if sent else _masked(f"{_scheme(url)}: {lines or 'it was not taken'}", url)


def _scheme(url: str) -> str:
    return url.partition("://")[0] if "://" in url else "what has no ://"


def _masked(text: str, url: str) -> str:
    return log.scrub(text, [url, *secret_pieces(url, _SHORTEST_PIECE)])


def _within(seconds: float, work: Callable[[], list[str]]) -> list[str] | None:
    """What the work returns, or None where it takes longer; then its thread is left to itself."""
    done: SimpleQueue[list[str]] = SimpleQueue()

    def call() -> None:
        try:
            done.put(work())
        except Exception as exc:  # noqa: BLE001  # a hundred plugins, and their imports: nothing may pass
            done.put([type(exc).__name__])

    threading.Thread(target=call, daemon=True, name="notify").start()
    try:
        return done.get(timeout=seconds)
    except Empty:
        return None
