"""Whoever is notified: a web server on this machine that keeps what it is sent."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

SECRET = "correct-horse-battery"


@dataclass
class Receiver:
    """A web server that keeps what it is sent; `status` is its answer, `slow` makes it drip for ever."""

    received: list[tuple[str, str]] = field(default_factory=list)
    status: int = 200
    slow: bool = False
    port: int = 0

    @property
    def messages(self) -> list[tuple[str, str]]:
        """Title and body of what came from apprise."""
        documents = [json.loads(text) for path, text in self.received if path.startswith("/hook")]
        return [(each["title"], each["message"]) for each in documents]

    @property
    def pings(self) -> list[tuple[str, str]]:
        """Path and body of what came from a dead-man's switch."""
        return [each for each in self.received if each[0].startswith("/ping")]

    @property
    def settings(self) -> dict[str, str]:
        """An installation's settings that name it, with secrets in both URLs."""
        return {
            "BACKUPD_NOTIFY__URLS": f"json://someone:{SECRET}@127.0.0.1:{self.port}/hook/{SECRET}",
            "BACKUPD_NOTIFY__PING_URL": f"http://127.0.0.1:{self.port}/ping/{SECRET}?rid=1",
        }


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    kept = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers["Content-Length"])).decode()
            kept.received.append((self.path, text))
            self.send_response(kept.status)
            while kept.slow:
                self.flush_headers()
                self.wfile.write(b"X-Drip: 1\r\n")
                time.sleep(0.2)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        kept.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield kept
        kept.slow = False
        server.shutdown()
        thread.join()
