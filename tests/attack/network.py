"""Network: wires to PostgreSQL and to S3 that break, stall, repeat themselves and answer with errors.

Each attack lets one verb (a backup, a fetch, a prune) run over a wire with one kind of fault at one place that the seed
chooses. Whatever the verb says then: what is listed verifies, holds what the database holds, and is what was listed
before, and at most one backup more; the verb ends in time, with one of our errors or with what it promised; and after a
failure the next run succeeds and sweeps what was left.
"""

import contextlib
import hashlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from attack.outcome import Attack, Missed
from fake_s3 import Fake, Quirks, Version
from fix_postgres import PostgresServer, running_server
from fix_store import FaultProxy, only_test_credentials, proxied, served
from fix_tools import Site, Wire, fill_large, s3_site
from psycopg import sql
from structlog.testing import capture_logs

from backupd import archive, fetch, retention, verify
from backupd.catalog import Catalog
from backupd.commands import shared
from backupd.errors import BackupdError
from backupd.manifest import Backup
from backupd.progress import Progress
from backupd.retention import Policy

WHOLE, PART = 320, 12

LIMIT_SECONDS = 180.0
"""No verb may take longer: ten attempts of one request, each of which may wait for 20 s, and as much for others."""

STALL_SECONDS = 62.0
"""Longer than botocore waits for an answer; one attack in 100 stalls so long."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong: `text` as FaultProxy takes it, or a word of `_Torn`; from where, and how often.

    `at` is the number of a request, or a number of bytes from the server; `times` 99 is for ever. What `passes` must
    be waited out: the verb succeeds.
    """

    name: str
    text: str
    times: Sequence[int] = (1,)
    meant: Callable[[str, str], bool] = lambda method, path: True
    passes: bool = True


def _publishes(method: str, path: str) -> bool:
    """Whether the request makes an object visible."""
    return "partNumber=" not in path and (method == "PUT" or (method == "POST" and "uploadId=" in path))


def _completes(method: str, path: str) -> bool:
    return method == "POST" and "uploadId=" in path


def _reads(method: str, path: str) -> bool:
    return method == "GET" and path.endswith((".tar", ".json"))


S3_FAULTS = (
    Fault("reset in the request", "cut request", (1, 2, 3)),
    Fault("reset instead of an answer", "lose answer", (1, 2, 3)),
    Fault("reset in the answer", "cut response", (1, 2, 3), _reads),
    Fault("slow", "slow 0.4", (1, 3)),
    Fault("500", "500 InternalError", (1, 2, 3)),
    Fault("503", "503 SlowDown", (1, 2, 3)),
    Fault("answered twice", "twice", (1, 2, 99), passes=False),
    Fault("lost answer to what publishes", "lose answer", (1, 2), _publishes),
    Fault("404 after it was completed", "done 404 NoSuchUpload", (1,), _completes),
    Fault("404 though it was not", "404 NoSuchUpload", (1,), _completes, passes=False),
    Fault("412 after it was written", "done 412 PreconditionFailed", (1,), _publishes),
    Fault("412 though it was not", "412 PreconditionFailed", (1,), _publishes, passes=False),
    Fault("500 after it was written", "done 500 InternalError", (1, 2), _publishes),
    Fault("expired credentials", "400 ExpiredToken", (1, 99), passes=False),
    Fault("a clock that is wrong", "403 RequestTimeTooSkewed", (1, 99), passes=False),
    Fault("a list that lags", "lag", (1, 2, 4, 8), passes=False),
)
POSTGRES_FAULTS = (
    Fault("reset", "reset", (1, 99), passes=False),
    Fault("end", "end", (1, 99), passes=False),
    Fault("stall", "stall", (1,)),
    Fault("slow", "slow", (20,)),
    Fault("said twice", "twice", (1, 2), passes=False),
)


@dataclass(frozen=True)
class _Place:
    """What is the same for all attacks: a server, what a store holds before, and what its database is known to hold."""

    server: PostgresServer
    folder: Path
    stock: Mapping[str, Mapping[str, Sequence[Version]]]
    known: Mapping[str, object]
    fetched: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class _Case:
    """One attack."""

    verb: str
    database: str
    fault: Fault
    at: int
    times: int
    over_s3: bool


@dataclass
class _Scene:
    """An installation made for one attack, its store over the wire, and as it is `seen` without. `fired` counts."""

    here: Site
    found: Catalog
    seen: Catalog
    fake: Fake
    before: list[Backup]
    fired: int = 0
    done: list[object] = field(default_factory=list)


_REQUESTS_OF = {"backup": 14, "fetch": 2, "prune": 6}
_REQUESTS: Mapping[object, int] = {_publishes: 2, _completes: 1, _reads: 2}
_BYTES = 25_000
"""How many requests an undisturbed run makes, about, and how many bytes the server says in its longest connection."""


def campaign(seed: int, count: int, folder: Path) -> Iterator[Attack]:
    """Every fault in turn, at places, in verbs and on databases that the seed chooses."""
    chance = random.Random(seed)
    faults = [*((fault, True) for fault in S3_FAULTS), *((fault, False) for fault in POSTGRES_FAULTS)]
    with only_test_credentials(), running_server(17) as server:
        place = _place(server, folder)
        for number in range(4 * count):
            if number % len(faults) == 0:
                chance.shuffle(faults)
            fault, over_s3 = faults[number % len(faults)]
            case = _chosen(chance, fault, over_s3)
            if number % 100 == 99:
                case = replace(case, fault=Fault("stall", f"slow {STALL_SECONDS}"), over_s3=True, times=1)
            where = f"{'S3' if case.over_s3 else 'PostgreSQL'}: {case.fault.name}"
            label = f"{number} {case.verb} of {case.database}, {where}, at {case.at}, {case.times} times"
            yield Attack(label, partial(_act, place, case, number))


def _chosen(chance: random.Random, fault: Fault, over_s3: bool) -> _Case:
    verb = chance.choice(["backup", "backup", "fetch", "prune"]) if over_s3 else "backup"
    database = chance.choice(["tiny"] * 5 + ["large"])
    if fault.meant is _publishes:
        verb = "backup"
    if fault.meant is _completes:
        verb, database = "backup", "large"
    most = _REQUESTS.get(fault.meant, _REQUESTS_OF[verb]) if over_s3 else _BYTES
    return _Case(verb, database, fault, chance.randrange(1, most + 1), chance.choice(fault.times), over_s3)


# --- one attack


def _act(place: _Place, case: _Case, number: int) -> str:
    with contextlib.ExitStack() as stack:
        stack.enter_context(capture_logs())
        fake = Fake()
        fake.versions = {key: list(found) for key, found in place.stock[case.database].items()}
        direct = stack.enter_context(served(fake))
        proxy, between = stack.enter_context(proxied(direct))
        here = s3_site(partial(_site, place.folder / f"{number}"), place.server, between)
        found = here.catalog
        seen = Catalog(direct.store(region="us-east-1"))
        scene = _Scene(here, found, seen, fake, list(seen.backups().backups))
        proxy.seen.clear()
        _break(scene, case, proxy, stack)
        problem = _within_limit(partial(_VERBS[case.verb], place, case, scene))
        proxy.rule = lambda method, path, number: None
        fake.quirks = Quirks()
        here.settings["BACKUPD_SOURCE__PORT"] = str(place.server.port)
        if not scene.fired:
            raise Missed
        assert problem is None or not case.fault.passes, f"what passes was not waited out: {problem}"
        new = _assert_whole(place, case, scene)
        if case.verb == "backup" and problem is None:
            assert [backup.id for backup in new] == [str(done) for done in scene.done], "it was said to be taken"
        if case.verb == "prune" and problem is None:
            assert len(seen.backups().backups) == 1, "it was said to be pruned"
        if problem is not None:
            _assert_next_succeeds(place, case, scene)
        here.assert_clean()
        return f"{problem.reason if problem else 'ok'}, {scene.fired} times, {len(new)} new"


def _site(folder: Path, server: PostgresServer, **settings: str) -> Site:
    return Site(server, folder, dict(settings))


def _break(scene: _Scene, case: _Case, proxy: FaultProxy, stack: contextlib.ExitStack) -> None:
    if not case.over_s3:
        wire = _Torn(scene, case)
        stack.callback(wire.close)
        scene.here.settings["BACKUPD_SOURCE__PORT"] = str(wire.port)
        return
    if case.fault.text == "lag":
        scene.fake.quirks = Quirks(list_lag=case.times)
        scene.fired = 1
        return
    meant, lock = 0, threading.Lock()

    def rule(method: str, path: str, number: int) -> str | None:
        nonlocal meant
        with lock:
            meant += case.fault.meant(method, path)
            if not case.fault.meant(method, path) or meant < case.at or scene.fired >= case.times:
                return None
            scene.fired += 1
            return case.fault.text

    proxy.rule = rule


class _Torn(Wire):
    """A wire to PostgreSQL that breaks when the server has said `at` bytes in a connection."""

    def __init__(self, scene: _Scene, case: _Case) -> None:
        self._scene, self._case = scene, case
        self._lock = threading.Lock()
        super().__init__(scene.here.server.port)

    def _answer(self, data: bytes, passed: int) -> bytes:
        with self._lock:
            if passed < self._case.at or self._scene.fired >= self._case.times:
                return data
            self._scene.fired += 1
        if self._case.fault.text == "twice":
            return data + data
        if self._case.fault.text == "end":
            raise ConnectionAbortedError
        if self._case.fault.text == "reset":
            for each in self._sockets:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            raise ConnectionResetError
        time.sleep(2.0 if self._case.fault.text == "stall" else 0.05)
        return data


def _within_limit(act: Callable[[], None]) -> BackupdError | None:
    """Does it in a thread, so that a hang is seen. Returns our error; any other is a bug of ours."""
    ended: list[BaseException | None] = []

    def run() -> None:
        try:
            act()
        except BaseException as exc:  # noqa: BLE001 - looked at below
            ended.append(exc)
        else:
            ended.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LIMIT_SECONDS)
    assert ended, f"it still runs after {LIMIT_SECONDS} s"
    if ended[0] is not None and not isinstance(ended[0], BackupdError):
        raise ended[0]
    return ended[0]


# --- the verbs


def _back_up(place: _Place, case: _Case, scene: _Scene) -> None:
    scene.done.append(scene.here.take(case.database, catalog=scene.found).id)


def _fetch(place: _Place, case: _Case, scene: _Scene) -> None:
    folder = scene.here.folder / "fetched"
    folder.mkdir()
    backup = scene.before[0]
    index = archive.read_index(scene.found.archive(backup))
    fetch.members(scene.found, backup, index, folder, Progress())
    assert _hashes(folder) == place.fetched[case.database], "other bytes were fetched than were stored"


def _prune(place: _Place, case: _Case, scene: _Scene) -> None:
    found = scene.found
    plan = retention.plan(found.backups().backups, Policy(last=1, floor=1), datetime.now(UTC))
    shared.carry_out(found, plan)


_VERBS = {"backup": _back_up, "fetch": _fetch, "prune": _prune}


# --- what must hold


def _assert_whole(place: _Place, case: _Case, scene: _Scene) -> list[Backup]:
    """What is listed, looked at without the wire. Returns what is new."""
    found = scene.seen
    listing = found.backups()
    assert listing.broken == (), f"broken: {listing.broken}"
    ids, before = [each.id for each in listing.backups], [each.id for each in scene.before]
    assert len(set(ids)) == len(ids), "one is listed twice"
    missing = set(before) - set(ids)
    assert before[0] in ids, "the newest is gone"
    assert not missing or case.verb == "prune", f"lost: {missing}"
    new = [each for each in listing.backups if each.id not in before]
    assert len(new) <= (case.verb == "backup"), f"{len(new)} are new"
    for backup in new:
        assert _content(found, backup) == place.known[case.database], f"{backup.id} holds something else"
        assert verify.verify(found, backup, datetime.now(UTC), Progress()).suspect is None
    for key, (version,) in place.stock[case.database].items():
        assert not any(f"/{known}" in key for known in ids) or scene.fake.versions[key] == [version], f"{key} changed"
    return new


def _assert_next_succeeds(place: _Place, case: _Case, scene: _Scene) -> None:
    scene.done.clear()
    scene = replace(scene, found=scene.here.catalog)  # as another process would
    folder = scene.here.folder / "fetched"
    if folder.exists():
        folder.rmdir()
    if case.verb != "fetch":
        scene.before[:] = scene.seen.backups().backups
    _VERBS[case.verb](place, case, scene)
    _assert_whole(place, case, scene)
    assert case.verb != "backup" or scene.seen.backups().orphans == (), "orphans are left"
    assert case.verb != "prune" or len(scene.seen.backups().backups) == 1, "it was not carried out"


def _content(found: Catalog, backup: Backup) -> object:
    """What the backup says that it holds, table by table."""
    contract = archive.read_index(found.archive(backup)).contract
    return [(each.schema, each.name, each.rows, each.raw_bytes, each.fingerprint) for each in contract.tables]


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


# --- the place


def _place(server: PostgresServer, folder: Path) -> _Place:
    """Makes the databases, and takes two backups of each."""
    stock: dict[str, Mapping[str, Sequence[Version]]] = {}
    known: dict[str, object] = {}
    fetched: dict[str, Mapping[str, str]] = {}
    for name, megabytes in {"tiny": 0, "large": 5}.items():
        _make(server, name, megabytes)
        with capture_logs(), served(fake := Fake()) as s3:
            here = s3_site(partial(_site, folder / name), server, s3)
            found = here.catalog
            taken = [here.take(name, catalog=found) for _ in range(2)][-1]
            stock[name] = {key: [replace(each, written=-100) for each in found] for key, found in fake.versions.items()}
            known[name] = _content(found, taken)
            into = folder / name / "fetched"
            into.mkdir()
            fetch.members(found, taken, archive.read_index(found.archive(taken)), into, Progress())
            fetched[name] = _hashes(into)
    return _Place(server, folder, stock, known, fetched)


def _make(server: PostgresServer, name: str, megabytes: int) -> None:
    with server.connect() as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    with server.connect(name) as connection:
        fill_large(connection, megabytes)
        connection.execute("CREATE TABLE words AS SELECT n, md5(n::text) FROM generate_series(1, 2000) n")
