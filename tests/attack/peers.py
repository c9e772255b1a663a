"""Servers that are none: whatever speaks to psycopg and pg_dump in a server's place, and lies, floods or falls silent.

A fake peer answers in the wire protocol, from the first byte on, or stands before a real server and changes what
pg_dump or everybody hears. The run must end with a documented code within the limits, list nothing that is not whole,
say nothing that acts on the terminal, keep its memory, and show no secret, not even one that the peer says back.
"""

import contextlib
import itertools
import os
import random
import shutil
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from attack import arena
from attack.archives import CODES, MEMORY_LIMIT_BYTES, PLANTED, assert_quiet
from attack.outcome import Attack
from fix_postgres import PostgresServer, running_server

WHOLE, PART = 110, 5

SLOWEST_SECONDS = 55.0
"""A first connection is given up after 15 s; `doctor` and the record of a failure may try others."""

SECRET = "canary-of-the-source"  # that of the role which the campaign makes

Talk = Callable[[socket.socket, bytes], object]
"""What is done with a client that has sent that start-up message."""

Change = Callable[[bytes], bytes]


# --- the protocol


def message(kind: bytes, body: bytes = b"") -> bytes:
    """One message of a server."""
    return kind + struct.pack("!I", len(body) + 4) + body


def said(kind: bytes, text: str, state: str = "XX000") -> bytes:
    """An error (`E`) or a notice (`N`)."""
    severity = b"SERROR\0VERROR\0" if kind == b"E" else b"SWARNING\0VWARNING\0"
    text = text.replace("\0", "")  # which ends it
    fields = severity + f"C{state}\0M{text}\0D{text}\0H{text}\0".encode("utf-8", "surrogatepass")
    return message(kind, fields + b"\0")


def rows(*values: bytes | None, oid: int = 25, times: int = 1) -> bytes:
    """A result of that many equal rows."""
    described = b"".join(b"c\0" + struct.pack("!IhIhih", 0, 0, oid, -1, -1, 0) for _ in values)
    fields = b"".join(
        struct.pack("!i", -1) if value is None else struct.pack("!i", len(value)) + value for value in values
    )
    row = message(b"D", struct.pack("!h", len(values)) + fields)
    return (
        message(b"T", struct.pack("!h", len(values)) + described) + row * times + message(b"C", b"SELECT 1\0") + READY
    )


READY = message(b"Z", b"I")
SET = message(b"C", b"SET\0") + READY
AUTH_OK = message(b"R", struct.pack("!I", 0))
GREETING = AUTH_OK + message(b"S", b"server_version\x0017.10\0") + message(b"K", struct.pack("!II", 1, 2)) + READY


def _start(client: socket.socket) -> bytes:
    """The start-up message; TLS and GSS are refused before it."""
    while True:
        (length,) = struct.unpack("!I", _exactly(client, 4))
        body = _exactly(client, length - 4)
        if struct.unpack("!I", body[:4])[0] not in (80877103, 80877104):
            return body
        client.sendall(b"N")


def _exactly(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = client.recv(count - len(data))
        if not piece:
            raise ConnectionError
        data += piece
    return data


def _asked(client: socket.socket) -> bytes:
    """The client's next question, to its end: a simple query, or messages up to Sync."""
    whole = b""
    while True:
        head = _exactly(client, 5)
        whole += head + _exactly(client, struct.unpack("!I", head[1:])[0] - 4)
        if head[:1] in b"QSpX":
            return whole


# --- peers that answer from the first byte on


def _says(data: bytes, client: socket.socket, start: bytes) -> None:
    client.sendall(data)
    with contextlib.suppress(TimeoutError):
        client.recv(1 << 16)


def _silent(client: socket.socket, start: bytes) -> None:
    client.settimeout(40)
    client.recv(1 << 16)


def _endless(data: bytes, client: socket.socket, start: bytes) -> None:
    while True:
        client.sendall(data * 100)


def _asks_password(answer: Callable[[bytes], bytes], client: socket.socket, start: bytes) -> None:
    """For the password in clear, without TLS, which libpq gives unless PGREQUIREAUTH forbids it."""
    client.sendall(message(b"R", struct.pack("!I", 3)))
    client.sendall(answer(_asked(client)))


def _answers(answer: bytes, after: int, client: socket.socket, start: bytes) -> None:
    """Greets, takes that many statements (the SETs of every session), and answers the next."""
    client.sendall(GREETING)
    for _ in range(after):
        _asked(client)
        client.sendall(SET)
    _asked(client)
    client.sendall(answer)
    with contextlib.suppress(TimeoutError):
        client.recv(1 << 16)


_PID = rows(b"1", oid=23)


def _of_version(answer: bytes, client: socket.socket, start: bytes) -> None:
    """Passes for no pooler, and answers the question for its version."""
    client.sendall(GREETING)
    for each in (SET, SET, _PID, answer):
        _asked(client)
        client.sendall(each)
    with contextlib.suppress(TimeoutError):
        client.recv(1 << 16)


def _sasl(mechanism: bytes) -> bytes:
    return message(b"R", struct.pack("!I", 10) + mechanism + b"\0\0")


_AFTER_SETS = 2
_TALKS: dict[str, Talk] = {
    "says nothing at all": _silent,
    "hangs up": lambda client, start: None,
    "says noise": partial(_says, bytes(range(256)) * 40),
    "is a web server": partial(_says, b"HTTP/1.1 400 Bad Request\r\nServer: \x1bPWN\r\n\r\n"),
    "refuses with words for a terminal": partial(_says, said(b"E", PLANTED, "28P01")),
    "refuses in the old way": partial(_says, b"E" + PLANTED.replace("\0", "").encode() + b"\n\0"),
    "refuses by 100 KB": partial(_says, said(b"E", "x" * 100_000)),
    "announces a message of 2 GiB": partial(_says, b"E\x7f\xff\xff\xff" + b"x" * 1000),
    "announces a message of no length": partial(_says, b"R\0\0\0\0"),
    "knows no such way to log in": partial(_says, message(b"R", struct.pack("!I", 99))),
    "wants SASL of its own": partial(_says, _sasl(b"\x1bPWN")),
    "wants SCRAM with a channel": partial(_says, _sasl(b"SCRAM-SHA-256-PLUS")),
    "negotiates for ever": partial(_says, message(b"v", struct.pack("!II", 196608, 1) + b"_pq_.\x1bPWN\0") * 50),
    "greets with notices": partial(_says, AUTH_OK + said(b"N", PLANTED) * 500 + said(b"E", PLANTED)),
    "greets for ever": partial(_endless, said(b"N", PLANTED)),
    "tells parameters for ever": partial(_endless, message(b"S", b"x\0\x1bPWN\0")),
    "says the password back": partial(_asks_password, lambda asked: said(b"E", asked[5:].decode("latin-1") + PLANTED)),
    "takes the password and hangs up": partial(_asks_password, lambda asked: b""),
    **{
        f"answers {what} to statement {after}": partial(_answers, answer, after)
        for after in (0, _AFTER_SETS)
        for what, answer in {
            "an error": said(b"E", PLANTED, "42501"),
            "an error with an odd state": said(b"E", PLANTED, "\x1bPWN"),
            "notices": said(b"N", PLANTED) * 2000 + said(b"E", "no"),
            "nothing": b"",
            "no rows": message(b"C", b"SELECT 0\0") + READY,
            "an empty result": rows(b"1", times=0),
            "NULL": rows(None),
            "text for a number": rows(b"\x1bPWN"),
            "a number of 2,000 digits": rows(b"9" * 2000, oid=1700),
            "an array that is none": rows(b"{{{{", oid=1007),
            "JSON that is none": rows(b"[" * 10_000, oid=3802),
            "a time that is none": rows(b"infinity PWN", oid=1184),
            "20 columns": rows(*[b"1"] * 20),
            "a copy in": message(b"G", b"\0\0\0"),
            "a copy out": message(b"H", b"\0\0\0") + message(b"d", PLANTED.encode()) * 10 + message(b"c"),
            "a copy both": message(b"W", b"\0\0\0"),
            "a row before its description": message(b"D", struct.pack("!hi", 1, 1) + b"x"),
            "columns of negative length": message(b"T", struct.pack("!h", -5)),
            "a function's result": message(b"V", struct.pack("!i", 4) + b"1234"),
            "many results": rows(b"1") * 200,
        }.items()
    },
    **{
        f"is {what}": partial(_of_version, answer)
        for what, answer in {
            "of no version": rows(b"1", times=0),
            "of a version in one column": rows(b"1"),
            "of NULL": rows(None, None, None, None),
            "of a version in words": rows(*[b"\x1bPWN"] * 4),
            "of an empty version": rows(b"", b"", b"", b""),
            "of a version without end": rows(b"9" * 4000, b"9" * 4000, b"t", b"NaN"),
            "of version -1": rows(b"-1", b"-1", b"f", b"-Infinity"),
        }.items()
    },
}


# --- peers before a real server


class Peer:
    """Listens at a port of its own, and talks to each client in a thread."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """No more clients."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(6)
        with client, contextlib.suppress(OSError, struct.error):
            self._talk(client, _start(client))


def _between(port: int, change: Change, client: socket.socket, start: bytes) -> None:
    """Passes everything on; `change` sees what the server says."""
    with socket.create_connection(("127.0.0.1", port)) as server:
        server.sendall(struct.pack("!I", len(start) + 4) + start)
        threading.Thread(target=_pump, args=(client, server, lambda data: data), daemon=True).start()
        _pump(server, client, change)


def _pump(source: socket.socket, target: socket.socket, change: Change) -> None:
    source.settimeout(60)
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(change(data))
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def _to_pg_dump(
    change: Callable[[], Change], talk: Talk | None, port: int, client: socket.socket, start: bytes
) -> None:
    """Lies to pg_dump alone, which is known by the options that only children get."""
    ours = b"bytea_output=hex" in start
    if ours and talk is not None:
        talk(client, start)
    else:
        _between(port, change() if ours else lambda data: data, client, start)


def _first(inserted: bytes) -> Change:
    """Puts something before the first answer that follows the greeting."""
    count = itertools.count()
    return lambda data: inserted + data if next(count) == 2 else data


_LIES: dict[str, tuple[Callable[[], Change], Talk | None]] = {
    "a notice": (lambda: _first(said(b"N", PLANTED)), None),
    "10,000 notices": (lambda: _first(said(b"N", PLANTED) * 10_000), None),
    "a notice of 30 MB": (lambda: _first(said(b"N", "x" * 30_000_000)), None),
    "an error": (lambda: _first(said(b"E", PLANTED) + READY), None),
    "noise": (lambda: _first(os.urandom(300)), None),
    "a copy in": (lambda: _first(message(b"G", b"\0\0\0")), None),
    "a parameter": (lambda: _first(message(b"S", b"standard_conforming_strings\0off\0")), None),
    "silence at its start": (lambda: lambda data: data, _silent),
    "a question for the password": (lambda: lambda data: data, _TALKS["says the password back"]),
    "another server's version": (lambda: lambda data: data.replace(b"17.", b"99."), None),
    "the end": (lambda: lambda data: data, _TALKS["hangs up"]),
}


def _scratching(seed: int, port: int, client: socket.socket, start: bytes) -> None:
    """Changes some bytes of what everybody hears."""
    chance = random.Random(f"{seed} {b'bytea_output' in start}")

    def change(data: bytes) -> bytes:
        found = bytearray(data)
        if chance.random() < 0.05:
            place = chance.randrange(len(found))
            found[place : place + chance.choice([0, 1, 4])] = chance.randbytes(chance.choice([1, 4, 40]))
        return bytes(found)

    _between(port, change, client, start)


# --- the campaign


@dataclass(frozen=True)
class Kind:
    """A peer: how it talks, given the real server's port; whether a backup may come of it, or a silence without end."""

    name: str
    talk: Callable[[int], Talk]
    may_succeed: bool = False
    may_be_silent: bool = False


def campaign(seed: int, count: int, folder: Path) -> Iterator[Attack]:
    """Every peer once, then bytes that are changed by chance, in an order that the seed decides."""
    chance = random.Random(seed)
    kinds = [Kind(f"peer that {name}", partial(_only, talk)) for name, talk in _TALKS.items()]
    for name, (change, talk) in _LIES.items():
        kinds.append(Kind(f"pg_dump hears {name}", partial(_lying, change, talk), may_succeed=talk is None))
    chance.shuffle(kinds)
    scratched = (
        Kind(f"changed bytes {number}", partial(_scratched, seed + number), True, True) for number in itertools.count()
    )
    with running_server(17) as server, arena.opened() as pit:
        with server.connect() as connection:
            connection.execute(f"CREATE ROLE source SUPERUSER LOGIN PASSWORD '{SECRET}'".encode())
            connection.execute("CREATE TABLE rows AS SELECT n FROM generate_series(1, 1000) n")
        for number, kind in enumerate(itertools.islice(itertools.chain(kinds, scratched), count)):
            yield Attack(f"{number} {kind.name}", partial(_attack, pit, server, kind, folder / f"{number}"))


def _only(talk: Talk, port: int) -> Talk:
    return talk


def _lying(change: Callable[[], Change], talk: Talk | None, port: int) -> Talk:
    return partial(_to_pg_dump, change, talk, port)


def _scratched(seed: int, port: int) -> Talk:
    return partial(_scratching, seed, port)


def _attack(pit: arena.Arena, server: PostgresServer, kind: Kind, folder: Path) -> str:
    for name in ("store", "scratch", "temporary", "home"):
        (folder / name).mkdir(parents=True)
    peer = Peer(kind.talk(server.port))
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "temporary"),
        "TERM": "xterm-256color",
        "PGDATABASE": "postgres",
        "BACKUPD_STORE__URL": (folder / "store").as_uri(),
        "BACKUPD_SCRATCH__DIRECTORY": str(folder / "scratch"),
        "BACKUPD_DUMP__CLIENTS": str(server.bin_directory),
        "BACKUPD_DUMP__LOCK_WAIT": "5s",
        "BACKUPD_DUMP__MAX_SECONDS": "20",
        "BACKUPD_SOURCE__SERVER": "prod",
        "BACKUPD_SOURCE__HOST": "127.0.0.1",
        "BACKUPD_SOURCE__PORT": str(peer.port),
        "BACKUPD_SOURCE__USER": "source",
        "BACKUPD_SOURCE__PASSWORD": SECRET,
    }
    try:
        ended = pit.run(["backup"], environment)
    finally:
        peer.close()
    what = f"ended with {ended.code} after {ended.seconds} s: {ended.terminal[-1500:]!r}"
    assert_quiet(ended)
    assert SECRET not in ended.terminal, what
    if kind.may_be_silent and ended.code == -signal.SIGKILL:  # a length that was changed: more is waited for
        listed = pit.run(["list", "--json"], environment)
        assert '"id"' not in listed.terminal, listed.terminal
        return "fell silent, and the run waited until it was ended; nothing is listed"
    assert ended.code in CODES, what
    assert "Traceback" not in ended.terminal, what
    assert ended.memory_bytes < MEMORY_LIMIT_BYTES, f"{ended.memory_bytes >> 20} MiB: {what}"
    assert ended.seconds < SLOWEST_SECONDS, what
    assert kind.may_succeed or ended.code != 0, what
    listed = pit.run(["list", "--json"], environment)
    assert listed.code == 0
    assert ended.code == 0 or '"id"' not in listed.terminal, f"listed after a failure: {listed.terminal}"
    if ended.code == 0:
        verified = pit.run(["verify", "all"], environment)
        assert verified.code == 0, verified.terminal
    left = [*(folder / "scratch").iterdir(), *(folder / "temporary").iterdir()]
    assert not left, f"left: {left}"
    shutil.rmtree(folder)
    return f"ended with {ended.code} in {ended.seconds:.1f} s, {ended.memory_bytes >> 20} MiB"
