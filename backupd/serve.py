"""HTTP: the pages, the metrics and whether all is well, from what is known already; the only asyncio.

The only door to starlette and uvicorn. What is served was read before anybody asked, and most of it was rendered before
too (`site`), so that a request costs a look into a dictionary, and neither a store that hangs nor a thousand requests a
second reach further than this module. Nothing here changes anything: there is no request but GET.

uvicorn runs in a thread of its own: signals, and children, which die with the thread that started them, are the main
thread's. It has no limit for a client that sends or reads slowly, and none for those that only connect; `_patient` adds
both.
"""

import base64
import binascii
import contextlib
import hashlib
import hmac
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from backupd.errors import UsageError
from backupd.web import pages

if TYPE_CHECKING:
    import asyncio

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE_SECONDS = 15.0
"""Enough for a phone in a train."""

HEADERS_LIMIT_BYTES = 16 << 10
"""Of one request's head; what is larger is refused with 400."""

CONNECTIONS = 512
"""More at once are answered with 503."""

SILENT_CONNECTIONS = 256
"""Of those, on which nothing is asked: with one more the longest silent is cut, so that whoever asks finds room."""

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""What is answered without a token: a probe has none, and learns a word."""

SWITCH_SECONDS = 0.0001
"""How long the thread that makes pages may hold the interpreter's lock while a request waits for it. A request needs
that lock after each of its system calls: with Python's 5 ms two hundred a second would queue up behind one page."""

_CLOSE_SECONDS = 2
_HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": pages.CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_ENCODED = tuple((name.lower().encode(), value.encode()) for name, value in _HEADERS.items())


@dataclass(frozen=True)
class Answer:
    """What a path has: a body of that type, with a status of HTTP; `fixed` never changes under its path."""

    body: bytes
    content_type: str = "text/html; charset=utf-8"
    status: int = 200
    fixed: bool = False


class Answers(Protocol):
    """What answers a path, still quoted as it was sent, with its query."""

    def ready(self, path: str, query: Mapping[str, str]) -> Answer | None:
        """The answer where it need not be made first. Called in the event loop: it must not wait for anything."""
        ...

    def make(self, path: str, query: Mapping[str, str]) -> Answer:
        """The answer, however long it takes. Called in any thread."""
        ...


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens there. Raises UsageError where that cannot be had, as where the port is taken."""
    try:
        listener = _bound(host, port)
    except (OSError, OverflowError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        hint = "Give another --port where it is taken, and a --host that is this machine's."
        raise UsageError(f"could not listen on {host} port {port}", detail=f"{reason}.", hint=hint) from None
    with listener:
        yield listener


def _bound(host: str, port: int) -> socket.socket:
    if not host:
        raise ValueError("an empty address would be every one, which is 0.0.0.0")
    host.encode("idna")  # where that fails, create_server leaves a socket open
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = family is socket.AF_INET6 and socket.has_dualstack_ipv6()
    return socket.create_server((host, port), family=family, backlog=CONNECTIONS, dualstack_ipv6=both)


@contextlib.contextmanager
def serving(
    listener: socket.socket, answers: Answers, token: str | None, patience_seconds: float = PATIENCE_SECONDS
) -> Iterator[None]:
    """Answers what comes to the socket while the block runs; with a token only who knows it.

    A connection on which no answer was completed for `patience_seconds`, or for twice as long, is cut.
    """
    import uvicorn

    config = uvicorn.Config(
        cast(Any, _application(answers, token)),
        http=_patient(patience_seconds),
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        h11_max_incomplete_event_size=HEADERS_LIMIT_BYTES,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    thread = threading.Thread(target=server.run, args=([listener],), name="http", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(_CLOSE_SECONDS)
        sys.setswitchinterval(before)


def _application(answers: Answers, token: str | None) -> "ASGIApp":
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import Response
    from starlette.routing import Route

    async def endpoint(request: "Request") -> "Response":
        path, query = request.scope["raw_path"].decode("ascii", "replace"), request.query_params
        found = answers.ready(path, query)
        if found is None:
            found = await run_in_threadpool(answers.make, path, query)
        headers = {"Cache-Control": "public, max-age=31536000, immutable"} if found.fixed else None
        return Response(found.body, found.status, headers, found.content_type)

    return _Guard(Starlette(routes=[Route("/{path:path}", endpoint, methods=["GET"])]), token)


class _Guard:
    """In front of everything: who may ask, and the headers that every answer has."""

    def __init__(self, application: "ASGIApp", token: str | None) -> None:
        self._application = application
        self._token = token

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        async def send_guarded(message: "Message") -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                message["headers"] += [(name, value) for name, value in _ENCODED if name not in given]
            await send(message)

        if scope["path"] in OPEN_PATHS or self._token is None or _knows(scope["headers"], self._token):
            await self._application(scope, receive, send_guarded)
            return
        from starlette.responses import PlainTextResponse

        refused = PlainTextResponse(
            "unauthorized\n", 401, {"WWW-Authenticate": 'Basic realm="backupd", charset="UTF-8"'}
        )
        await refused(scope, receive, send_guarded)


def _knows(headers: Sequence[tuple[bytes, bytes]], token: str) -> bool:
    """Whether the request has the token: as a bearer's, or as the password of any user, which is what browsers send."""
    scheme, _, rest = next((value for name, value in headers if name == b"authorization"), b"").partition(b" ")
    given = rest.strip()
    if scheme.lower() == b"basic":
        try:
            given = base64.b64decode(given, validate=True).partition(b":")[2]
        except binascii.Error:
            return False
    elif scheme.lower() != b"bearer":
        return False
    # Of hashes, which have one length: how long a comparison takes says nothing.
    return hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(token.encode()).digest())


def _patient(seconds: float) -> "type[H11Protocol]":
    """The HTTP of uvicorn, with an end to patience."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    silent: dict[H11Protocol, None] = {}  # the longest first

    class Patient(H11Protocol):
        """A connection that is cut where no answer was completed between two looks.

        So ends one that never sends the whole of a request, one that never reads the whole of its answer, and one whose
        last bytes are never fetched. One that asks nothing is cut when too many do.
        """

        _look: "asyncio.TimerHandle | None" = None
        _completed = False

        def connection_made(self, transport: "asyncio.Transport") -> None:  # type: ignore[override]
            super().connection_made(transport)
            silent[self] = None
            if len(silent) > SILENT_CONNECTIONS:
                longest = next(iter(silent))
                del silent[longest]
                longest.transport.abort()
            self._look = self.loop.call_later(seconds, self._cut_or_wait)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._look is not None:
                self._look.cancel()
            silent.pop(self, None)
            super().connection_lost(exc)

        def handle_events(self) -> None:
            super().handle_events()
            if self.cycle and not self.cycle.response_complete:
                silent.pop(self, None)

        def on_response_complete(self) -> None:
            self._completed = True
            if not self.transport.is_closing():
                silent[self] = None
            super().on_response_complete()

        def _cut_or_wait(self) -> None:
            if not self._completed:
                self.transport.abort()
                return
            self._completed = False
            self._look = self.loop.call_later(seconds, self._cut_or_wait)

    return Patient
