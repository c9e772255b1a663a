"""A link to the S3 server as a process of its own: as slow and as long as it is told, with its requests counted.

usage: link.py PORT COUNTS [--rate BYTES_PER_SECOND] [--delay SECONDS]

Forwards connections to 127.0.0.1:PORT and prints the port where it listens. All connections share the rate, each way
by itself. Every request adds a line (its method) to the file COUNTS. A link in a network namespace (tc netem) would be
the real thing, but needs root.
"""

import argparse
import queue
import re
import socket
import threading
import time
from pathlib import Path

CHUNK_BYTES = 64 * 1024
WINDOW_CHUNKS = 64
"""What may be on the way of one connection: 4 MiB, four times what 50 MB/s over 20 ms need."""

_REQUEST = re.compile(rb"(?:\A|\r\n\r\n)(GET|PUT|POST|HEAD|DELETE) [^ \r\n]+ HTTP/1\.1\r\n")


class Lane:
    """One direction of the link, which all connections share."""

    def __init__(self, rate: float | None, delay_seconds: float) -> None:
        self._rate, self._delay_seconds = rate, delay_seconds
        self._free_at = 0.0
        self._lock = threading.Lock()

    def arrives_at(self, length: int) -> float:
        """When that many bytes, sent now, are at the other end (by time.monotonic)."""
        now = time.monotonic()
        if self._rate is None:
            return now + self._delay_seconds
        with self._lock:
            self._free_at = max(now, self._free_at) + length / self._rate
            return self._free_at + self._delay_seconds


def forward(source: socket.socket, target: socket.socket, lane: Lane, counts: Path | None) -> None:
    """Carries bytes one way until the source ends; counts the requests among them where told to."""
    on_the_way: queue.Queue[tuple[float, bytes]] = queue.Queue(WINDOW_CHUNKS)
    sender = threading.Thread(target=_deliver, args=(on_the_way, target), daemon=True)
    sender.start()
    try:
        while data := source.recv(CHUNK_BYTES):
            if counts is not None:
                _count(data, counts)
            on_the_way.put((lane.arrives_at(len(data)), data))
    except OSError:
        pass
    on_the_way.put((lane.arrives_at(0), b""))


def _deliver(on_the_way: "queue.Queue[tuple[float, bytes]]", target: socket.socket) -> None:
    alive = True
    while True:
        arrives_at, data = on_the_way.get()
        time.sleep(max(0.0, arrives_at - time.monotonic()))
        try:
            if not data:
                target.shutdown(socket.SHUT_WR)
            elif alive:
                target.sendall(data)
        except OSError:
            alive = False  # what comes still is taken, so that the reader never waits for room
        if not data:
            return


def _count(data: bytes, counts: Path) -> None:
    found = _REQUEST.findall(data)
    if found:
        with counts.open("ab") as file:
            file.write(b"".join(method + b"\n" for method in found))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("port", type=int)
    parser.add_argument("counts", type=Path)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--delay", type=float, default=0.0)
    options = parser.parse_args()
    lanes = [Lane(options.rate, options.delay / 2) for _ in range(2)]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            near, _ = listener.accept()
            far = socket.create_connection(("127.0.0.1", options.port))
            for sides in (near, far):
                sides.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pairs = ((near, far, lanes[0], options.counts), (far, near, lanes[1], None))
            for arguments in pairs:
                threading.Thread(target=forward, args=arguments, daemon=True).start()


if __name__ == "__main__":
    main()
