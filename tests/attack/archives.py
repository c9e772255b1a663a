"""Hostile archives, manifests and notes, before every verb that reads: refused with a reason, or inert.

Somebody who can write the store forges a backup with right hashes: names that lead elsewhere, links and devices, bombs,
lying counts, odd numbers, words for the terminal. Every verb that reads runs on a terminal of its own, beside a good
backup of another database. It must end with a documented code and a reason, below 200 MiB of memory, and write
nowhere but where it was told to; what the forger planted must not act on the terminal; the good backup stays listed.
"""

import contextlib
import hashlib
import io
import itertools
import json
import os
import random
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import forged
import pyrage
from attack import arena
from attack.outcome import Attack
from fix_postgres import PostgresServer, running_server
from fix_tools import Site
from forged import Change, Document, Forgery, Original

from backupd import decode
from backupd.manifest import FORMAT, format_of
from backupd.selector import Label

WHOLE, PART = 450, 12

MEMORY_LIMIT_BYTES = 200 << 20
SLOWEST_SECONDS = 40.0
CODES = frozenset({0, 2, 3, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20})
"""The exit codes that the README documents, but for that of a bug."""

_ACTS = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]PWN")
PLANTED = "".join(f"{control}PWN" for control in "\x1b\x07\x08\r\x9b\x85\x7f\0\u202e\u2028\u200f") + "[red]x[/green]"
"""What a forger may write where text is shown: each control character is known again by what follows it."""

Make = Callable[[Original, random.Random, Path], object]


@dataclass(frozen=True)
class Kind:
    """One kind of forgery: `make` writes it below the store's folder; the verbs of `refused` must not end with 0."""

    name: str
    make: Make
    refused: frozenset[str] = frozenset()


READERS = frozenset({"tables", "verify", "fetch", "copy", "restore"})
BYTES = frozenset({"verify", "fetch", "copy"})


def campaign(seed: int, count: int, folder: Path) -> Iterator[Attack]:
    """Every kind by hand once or more, then mutations of documents and bytes, in an order that the seed decides."""
    chance = random.Random(seed)
    with running_server(17) as server, arena.opened() as pit:
        original, bystander = _prepare(server, folder)
        fixed = [*_KINDS]
        chance.shuffle(fixed)
        mutations = itertools.cycle(_MUTATIONS)
        for number in range(count):
            kind = next(mutations) if number % 4 == 3 or not fixed else fixed.pop()
            act = partial(_attack, pit, server, original, bystander, kind, seed * 10_000 + number, folder / f"{number}")
            yield Attack(f"{number} {kind.name}", act)


def _prepare(server: PostgresServer, folder: Path) -> tuple[Original, Path]:
    """A real backup to forge from, and a store with a good one of another database."""
    here = Site(server, folder / "prepared")
    for name in ("original", "bystander"):
        with server.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        with server.connect(name) as connection:
            connection.execute("CREATE TABLE rows AS SELECT n, 'row ' || n AS t FROM generate_series(1, 50) n")
            connection.execute("CREATE TABLE other (n int)")
            connection.execute("SELECT lo_from_bytea(16000, 'one'), lo_from_bytea(16001, 'two')")
    original = forged.read(here.catalog.store, here.take("original"))
    shutil.rmtree(here.store / "prod" / "original")
    here.take("bystander")
    return original, here.store


# --- one attack


def _attack(
    pit: arena.Arena,
    server: PostgresServer,
    original: Original,
    bystander: Path,
    kind: Kind,
    seed: int,
    folder: Path,
) -> str:
    store = folder / "store"
    folder.mkdir()
    shutil.copytree(bystander, store)
    for name in ("scratch", "temporary", "home", "second", "fetched"):
        (folder / name).mkdir()
    (folder / "outside").write_text("a file that nothing may touch")
    (folder / "key").write_text(f"{_KEY}\n")
    kind.make(original, random.Random(seed), store)
    before = _tree(folder)
    ended = [pit.run(arguments, _environment(server, folder)) for arguments in _verbs(original, folder)]
    for each in ended:
        _assert_lawful(each)
        assert not (each.code == 0 and each.arguments[0] in kind.refused), f"{each.arguments} took it"
    listed = ended[0].terminal
    assert "prod/bystander" in listed, f"the good backup is not listed: {listed!r}"
    _assert_untouched(before, _tree(folder))
    shutil.rmtree(folder)
    codes = " ".join(f"{each.arguments[0]} {each.code}" for each in ended)
    return f"{codes}; at most {max(each.memory_bytes for each in ended) >> 20} MiB"


def _verbs(original: Original, folder: Path) -> Iterator[list[str]]:
    backup_id = original.manifest.id
    yield ["list"]
    yield ["list", "--json"]
    yield ["list", "--orphans"]
    yield ["show", backup_id]
    yield ["tables", backup_id]
    yield ["verify", backup_id]
    yield ["fetch", backup_id, str(folder / "fetched" / "dump")]
    yield ["copy", backup_id, (folder / "second").as_uri()]
    yield ["restore", backup_id, "--as=restored", "--plan"]
    yield ["prune"]
    yield ["check", "--max-age=36500d"]
    yield ["adopt", str(original.label)]


def _environment(server: PostgresServer, folder: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "temporary"),
        "TERM": "xterm-256color",
        "BACKUPD_STORE__URL": (folder / "store").as_uri(),
        "BACKUPD_SCRATCH__DIRECTORY": str(folder / "scratch"),
        "BACKUPD_RETENTION__KEEP_LAST": "1",
        "BACKUPD_RETENTION__KEEP_DAILY": "3",
        "BACKUPD_RETENTION__TIMEZONE": "Australia/Lord_Howe",
        "BACKUPD_DUMP__CLIENTS": str(server.bin_directory),
        "BACKUPD_ENCRYPTION__IDENTITIES_FILE": str(folder / "key"),
        "BACKUPD_SOURCE__SERVER": "prod",
        "BACKUPD_TARGET__HOST": server.host,
        "BACKUPD_TARGET__PORT": str(server.port),
        "BACKUPD_TARGET__USER": server.user,
    }


def _assert_lawful(ended: arena.Ended) -> None:
    what = f"{ended.arguments} ended with {ended.code}: {ended.terminal[-1500:]!r}"
    assert ended.code in CODES, what
    assert "Traceback" not in ended.terminal, what
    assert ended.memory_bytes < MEMORY_LIMIT_BYTES, f"{ended.memory_bytes >> 20} MiB: {what}"
    assert ended.seconds < SLOWEST_SECONDS, f"{ended.seconds} s: {what}"
    assert ended.code == 0 or "error: " in ended.terminal or "failed" in ended.terminal, f"no reason: {what}"
    assert_quiet(ended)


def assert_quiet(ended: arena.Ended) -> None:
    """Nothing that was planted may act on the terminal."""
    found = _ACTS.search(ended.terminal)
    assert found is None, f"{found and found[0]!r} reached the terminal: {ended.arguments} {ended.terminal[-1500:]!r}"


def _tree(folder: Path) -> dict[str, str]:
    """Every path below the folder with what it is and holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        text = f"{status.st_mode:o} {status.st_size}"
        if path.is_file() and not path.is_symlink() and status.st_size < 1 << 26:
            text += " " + hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = text
    return found


_NEW = re.compile(r"(fetched|second)/.*|store/.*\.verified-[0-9]+\.json")
_FETCHED = re.compile(r"fetched/dump(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)?")


def _assert_untouched(before: dict[str, str], after: dict[str, str]) -> None:
    changed = {path for path in before if after.get(path) != before[path] and not path.startswith("second")}
    changed -= {path for path in changed if path in after and after[path].startswith("4")}  # sizes of folders
    assert not changed, f"changed: {sorted(changed)}"
    new = set(after) - set(before)
    strange = [path for path in new if not _NEW.fullmatch(path)]
    assert not strange, f"written: {strange}"
    odd = [path for path in new if path.startswith("fetched") and not _FETCHED.fullmatch(path)]
    assert not odd, f"fetched: {odd}"
    assert all(after[path].startswith(("100600", "4")) for path in new), "a file that is no regular one was written"


# --- what is forged: headers of the tar, which the reader must never look at


def _header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> bytes:
    header = tarfile.TarInfo(name)
    header.type, header.size, header.linkname = kind, size, link
    header.mode, header.devmajor, header.devminor = 0o4777, 8, 0
    return header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _pax(records: str) -> bytes:
    body = b""
    for record in records.splitlines():
        length = len(record) + 2
        length += len(str(length + len(str(length))))
        body += f"{length} {record}\n".encode()
    return _header("././@PaxHeader", tarfile.XHDTYPE, len(body)) + body + bytes(-len(body) % 512)


_HEADERS = {
    "traversal": _header("../../outside"),
    "absolute": _header("/etc/cron.d/owned"),
    "symbolic link": _header("store", tarfile.SYMTYPE, link="/etc"),
    "hard link": _header("passwd", tarfile.LNKTYPE, link="/etc/passwd"),
    "character device": _header("null", tarfile.CHRTYPE),
    "block device": _header("sda", tarfile.BLKTYPE),
    "fifo": _header("fifo", tarfile.FIFOTYPE),
    "folder": _header("folder/", tarfile.DIRTYPE),
    "sparse": _header("sparse", tarfile.GNUTYPE_SPARSE, 1 << 33),
    "contiguous": _header("contiguous", tarfile.CONTTYPE, 512),
    "long name": _header("././@LongLink", tarfile.GNUTYPE_LONGNAME, 1024) + b"../" * 341 + b"\0",
    "pax path": _pax("path=../../outside\nsize=99999999999999999999\n"),
    "pax sparse": _pax("GNU.sparse.major=1\nGNU.sparse.realsize=9223372036854775807\nGNU.sparse.name=/etc/passwd\n"),
    "negative size": _header("negative")[:124] + b"\xff" * 12 + _header("negative")[136:],
    "end of the tar": bytes(1024),
    "another archive": b"PGDMP" + bytes(507),
}


def _tar(before: bytes, original: Original, chance: random.Random, store: Path) -> None:
    Forgery(original, before=before).write(store)


# --- indexes that lie


def _member(place: int, **changes: Any) -> Change:
    return lambda document: document["members"][place].update(changes)


def _overlap(document: Document) -> None:
    document["members"][2]["offset"] = document["members"][1]["offset"]


def _swap_names(document: Document) -> None:
    first, second = (each for each in document["members"] if decode.is_table(each["name"]))
    first["name"], second["name"] = second["name"], first["name"]


def _repeat(document: Document) -> None:
    document["members"].append(dict(document["members"][1]))


def _many(document: Document) -> None:
    document["members"] += [
        {"name": f"m{number}", "offset": 0, "size_bytes": 0, "sha256": hashlib.sha256().hexdigest()}
        for number in range(20_000)
    ]


def _bomb_of_names(document: Document) -> None:
    table = document["contract"]["tables"][0]
    document["contract"]["tables"] += [table | {"name": f"t{number}"} for number in range(20_000)]


_LAYOUTS: dict[str, Change] = {
    **{
        f"member named {name[:20]!r}": _member(1, name=name)
        for name in (
            *("../../outside", "/etc/passwd", "..", ".", "", "a/b", "a\\b", ".hidden", "x\0y", "x\ny", "é"),
            *("x" * 300, PLANTED, "-rf", "CON", "toc.dat", "index.json.zst", "README.txt"),
        )
    },
    "overlapping members": _overlap,
    "repeated member": _repeat,
    "swapped names": _swap_names,
    "20,000 members of nothing": _many,
    "20,000 tables of one member": _bomb_of_names,
    "negative size": _member(1, size_bytes=-1),
    "negative offset": _member(0, offset=-512),
    "huge size": _member(-1, size_bytes=(1 << 63) - 1),
    "huger size": _member(-1, size_bytes=1 << 64),
    "huge offset": _member(-1, offset=(1 << 63) - 1),
    "size in words": _member(1, size_bytes="12"),
    "fractional size": _member(1, size_bytes=12.5),
    "wrong sha256": _member(1, sha256="0" * 64),
    "no members": lambda document: document.update(members=[]),
    "no contract": lambda document: document.pop("contract"),
    "no toc.dat": lambda document: document.update(
        members=[each for each in document["members"] if each["name"] != "toc.dat"]
    ),
    "another id": lambda document: document.update(id="20200101T000000Z-00000000"),
    "future": lambda document: document.update(format=FORMAT + 1),
    "far future": lambda document: document.update(format=10**30),
}

_HARMLESS = {"member named '-rf'", "member named 'CON'", "no toc.dat", "20,000 members of nothing"}


def _index(change: Change, original: Original, chance: random.Random, store: Path) -> None:
    Forgery(original, index=change).write(store)


# --- documents that are no documents


def _documents() -> Iterator[tuple[str, bytes]]:
    yield "nothing", b""
    yield "no JSON", b"PGDMP"
    yield "cut", b'{"format": 1, "id"'
    yield "null", b"null"
    yield "a list", b"[1, 2, 3]"
    yield "a byte order mark", b"\xef\xbb\xbf{}"
    yield "UTF-16", '{"format": 1}'.encode("utf-16")
    yield "no UTF-8", b'{"format": 1, "id": "\xff\xfe"}'
    yield "a lone surrogate", b'{"format": 1, "id": "\\ud800"}'
    yield "depth of lists", b"[" * 500_000
    yield "depth of objects", b'{"a":' * 150_000
    yield "a wide list", b"[" + b"0," * 490_000 + b"0]"
    yield "wide emptiness", b"[" + b"[]," * 300_000 + b"[]]"
    yield "a long key", b'{"' + b"k" * 1_000_000 + b'": 1}'
    yield "the same key again and again", b'{"format": 1' + b', "format": 1' * 70_000 + b"}"
    yield "a huge number", b'{"format": ' + b"9" * 1_000_000 + b"}"
    yield "a huge exponent", b'{"format": 1e999999999}'
    yield "NaN", b'{"format": NaN}'
    yield "Infinity", b'{"format": -Infinity}'
    yield "a version in words", b'{"format": "1"}'
    yield "a true version", b'{"format": true}'
    yield "a future version", b'{"format": 99, "members": 5}'
    yield "spaces", b" " * 1_000_000


def _raw_manifest(raw: bytes, original: Original, chance: random.Random, store: Path) -> None:
    Forgery(original, raw_manifest=raw).write(store)


def _raw_index(raw: bytes, original: Original, chance: random.Random, store: Path) -> None:
    Forgery(original, raw_index=raw).write(store)


def _raw_note(raw: bytes, original: Original, chance: random.Random, store: Path) -> None:
    Forgery(original, notes={f"{kind}-1": raw for kind in ("drilled", "pinned", "verified")}).write(store)


# --- bombs


def _of_zeros(size_bytes: int) -> bytes:
    """A zstd frame that decodes to that many zeros."""
    return decode.pack(bytes(size_bytes))


def _gzip_of_zeros(megabytes: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()


def _wide(megabytes: int, unit: bytes) -> bytes:
    """A frame of a JSON list of that many MiB."""
    return decode.pack(b"[" + unit * ((megabytes << 20) // len(unit)) + b"0]")


def _bomb_index(packed: Callable[[], bytes], original: Original, chance: random.Random, store: Path) -> None:
    Forgery(original, packed_index=packed()).write(store)


def _bomb_member(packed: Callable[[], bytes], original: Original, chance: random.Random, store: Path) -> None:
    name = next(name for name in original.members if decode.is_table(name))
    Forgery(original, members={name: packed()}).write(store)


_BOMBS: dict[str, Callable[[], bytes]] = {
    "256 MiB of zeros": lambda: _of_zeros(256 << 20),
    "a hundred frames of 8 MiB": lambda: _of_zeros(8 << 20) * 100,
    "many empty frames": lambda: decode.pack(b"") * 20_000,
    "skippable frames": lambda: (b"\x50\x2a\x4d\x18" + (1 << 16).to_bytes(4, "little") + bytes(1 << 16)) * 50,
    "a skippable frame without end": lambda: b"\x50\x2a\x4d\x18\xff\xff\xff\x7f" + bytes(1 << 16),
    "a window of 2 GiB": lambda: b"\x28\xb5\x2f\xfd\x00\xa8" + bytes(1 << 12),
    "a frame that claims 2 ** 63 bytes": lambda: b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 7 + b"\x7f" + bytes(64),
    "gzip in zstd's place": lambda: _gzip_of_zeros(200),
    "nothing": bytes,
}

_INDEX_BOMBS: dict[str, Callable[[], bytes]] = {
    "128 MiB of zeros": lambda: _of_zeros((128 << 20) + 1),
    "120 MiB of numbers": lambda: _wide(120, b"0,"),
    "120 MiB of lists": lambda: _wide(120, b"[],"),
    "120 MiB of objects": lambda: _wide(120, b'{"a":0},'),
    "120 MiB of depth": lambda: decode.pack(b"[" * (120 << 20)),
    "120 MiB of one word": lambda: decode.pack(b'{"format": 1, "id": "' + b"x" * (120 << 20) + b'"}'),
    "120 MiB of unknown fields": lambda: decode.pack(
        b'{"format": 1' + b"".join(b',"k%d":0' % n for n in range(8_000_000)) + b"}"
    ),
    "120 MiB of members": lambda: decode.pack(
        b'{"format": 1, "members": ['
        + b'{"name":"a","offset":0,"size_bytes":0,"sha256":"%s"},' % (b"0" * 64) * 1_000_000
        + b"0]}"
    ),
}


# --- dumps that lead pg_restore elsewhere


def _blobs_toc(original: Original) -> str:
    return next(name for name in original.members if decode.is_object_list(name))


def _lead_objects_out(target: bytes, original: Original, chance: random.Random, store: Path) -> None:
    name = _blobs_toc(original)
    Forgery(original, members={name: b"16000 " + target + b"\n16001 blob_16001.dat\n"}).write(store)


def _lead_tables_out(target: bytes, original: Original, chance: random.Random, store: Path) -> None:
    """The length before a string is a sign and four bytes, least significant first."""
    name = next(name for name in original.members if decode.is_table(name)).partition(".")[0].encode() + b".dat"
    old, new = (b"\0" + len(text).to_bytes(4, "little") + text for text in (name, target))
    toc = original.members["toc.dat"]
    assert old in toc
    Forgery(original, members={"toc.dat": toc.replace(old, new)}).write(store)


_PATHS = (
    b"../outside",
    b"../../../../../../etc/passwd",
    b"/etc/passwd",
    b"../fetched/../outside.dat",
    b"x/../../outside",
)


def _toc_of(data: Callable[[bytes], bytes], original: Original, chance: random.Random, store: Path) -> None:
    Forgery(original, members={"toc.dat": data(original.members["toc.dat"])}).write(store)


_TOCS: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda toc: toc[: len(toc) // 2],
    "empty": lambda toc: b"",
    "longer": lambda toc: toc + b"\0",
    "of the future": lambda toc: toc[:6] + b"\x63" + toc[7:],
    "of custom format": lambda toc: toc[:10] + b"\x01" + toc[11:],
    "of other integers": lambda toc: toc[:8] + b"\x08" + toc[9:],
    "with a string of 2 GiB": lambda toc: toc[:50] + b"\0\xff\xff\xff\x7f" + toc[55:],
    "of zeros": lambda toc: toc[:11] + bytes(1 << 20),
}


# --- words for the terminal


def _with_words(original: Original, chance: random.Random, store: Path) -> None:
    """Everywhere where text is shown."""

    def manifest(document: Document) -> None:
        document["source"]["system_identifier"] = PLANTED
        for name in ("server_version", "client_version", "compression", "rewrite_check", "suspect", "backupd_version"):
            document[name] = PLANTED
        document["warnings"] = [PLANTED, PLANTED * 50]
        document["filter"] = {"include": [PLANTED], "exclude": [PLANTED]}
        document["standby"] = True
        document["recovery"] = {
            "hot_standby_feedback": True,
            "max_standby_streaming_delay": PLANTED,
            "replay_lag_seconds": 1e300,
        }

    def index(document: Document) -> None:
        contract = document["contract"]
        for table in contract["tables"]:
            table |= {"schema": PLANTED, "name": PLANTED, "copy_statement": PLANTED}
        contract["skipped"] = [{"schema": PLANTED, "name": PLANTED, "reason": PLANTED}]
        contract["roles"] = [PLANTED]
        contract["extensions"] = [{"name": PLANTED, "version": PLANTED, "schema": PLANTED}]
        contract["database"] |= {"owner": PLANTED, "encoding": PLANTED, "collate": PLANTED, "comment": PLANTED}

    facts = {"error": PLANTED, "level": PLANTED, PLANTED: PLANTED}
    notes = {"drilled-1": facts, "verified-1": facts, "confirmed-1": facts}
    Forgery(original, manifest=manifest, index=index, notes=_notes(original, notes)).write(store)


def _notes(original: Original, facts: dict[str, Any], *, ok: bool = True) -> dict[str, bytes]:
    at = original.manifest.finished_at.isoformat()
    return {
        name: json.dumps(
            {"kind": name.partition("-")[0], "number": int(name.partition("-")[2]), "at": at, "ok": ok, "facts": each}
        ).encode()
        for name, each in facts.items()
    }


def _label_of_words(original: Original, chance: random.Random, store: Path) -> None:
    Forgery(original, label=Label(PLANTED[:40], PLANTED[:60])).write(store)


def _words_one_by_one(name: str, original: Original, chance: random.Random, store: Path) -> None:
    def manifest(document: Document) -> None:
        if name == "system_identifier":
            document["source"][name] = PLANTED
        else:
            document[name] = [PLANTED] if name == "warnings" else PLANTED

    Forgery(original, manifest=manifest).write(store)


# --- numbers and times


_NUMBERS: dict[str, str] = {
    "NaN": "NaN",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "1e308": "1e308",
    "an int of 400 digits": "9" * 400,
    "an int of 4,000 digits": "9" * 4000,
    "an int of 5,000 digits": "9" * 5000,
    "-1": "-1",
    "true": "true",
}


def _odd_drill(number: str, original: Original, chance: random.Random, store: Path) -> None:
    at = original.manifest.finished_at.isoformat()
    facts = f'{{"level": "identical", "seconds": {number}, "content_seconds": {number}}}'
    note = f'{{"kind": "drilled", "number": 1, "at": "{at}", "ok": true, "facts": {facts}}}'
    Forgery(original, notes={"drilled-1": note.encode()}).write(store)


def _odd_number(field: str, number: str, original: Original, chance: random.Random, store: Path) -> None:
    def write(data: bytes) -> bytes:
        return re.sub(rb'("%b": )[^,}]+' % field.encode(), rb"\g<1>" + number.encode(), data)

    with tempfile.TemporaryDirectory() as folder:
        name = Forgery(original).write(Path(folder))
        path = next(Path(folder).rglob("*.json"))
        raw = write(path.read_bytes())
    assert name.id in raw.decode()
    Forgery(original, raw_manifest=raw).write(store)


_TIMES = (
    *("9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "2026-02-30T00:00:00Z", "2026-11-26T04:00:00", "now"),
    *("-0001-01-01T00:00:00Z", "99999-01-01T00:00:00Z", "1e30", "2026-11-26T04:00:60Z", "0001-01-01T00:00:00Z"),
    "9999-12-31T23:59:59Z",
)


def _odd_time(field: str, time: str, original: Original, chance: random.Random, store: Path) -> None:
    Forgery(original, manifest=lambda document: document.update({field: time})).write(store)


def _odd_note_time(time: str, original: Original, chance: random.Random, store: Path) -> None:
    facts: dict[str, Any] = {"level": "identical", "seconds": 5}
    notes = _notes(original, {"drilled-1": facts, "verified-999999999": facts, "pinned-1": {}})
    notes = {
        name: note.replace(original.manifest.finished_at.isoformat().encode(), time.encode())
        for name, note in notes.items()
    }
    Forgery(original, notes=notes).write(store)


# --- age files that are none of ours


_KEY, _STRANGER = pyrage.x25519.Identity.generate(), pyrage.x25519.Identity.generate()


def _age(data: bytes) -> bytes:
    return bytes(pyrage.encrypt(data, [_KEY.to_public()]))


def _cut_in_half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flipped(data: bytes) -> bytes:
    place = len(data) * 2 // 3
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


_STANZAS = b"".join(b"-> \x1bPWN %d\n%s\n" % (number, b"A" * 43) for number in range(20_000))

_SEALS: dict[str, Callable[[bytes], bytes]] = {
    "as it is": _age,
    "cut": lambda data: _cut_in_half(_age(data)),
    "without its last byte": lambda data: _age(data)[:-1],
    "with a byte more": lambda data: _age(data) + b"\0",
    "with a flipped bit": lambda data: _flipped(_age(data)),
    "to somebody else": lambda data: bytes(pyrage.encrypt(data, [_STRANGER.to_public()])),
    "to a passphrase": lambda data: bytes(pyrage.passphrase.encrypt(data, "x")),
    "not at all": lambda data: data,
    "twice": lambda data: _age(_age(data)),
    "armoured": lambda data: bytes(pyrage.encrypt(data, [_KEY.to_public()], armored=True)),
    "as nothing": lambda data: b"",
    "as a header alone": lambda data: b"age-encryption.org/v1\n",
    "with 20,000 stanzas": lambda data: b"age-encryption.org/v1\n" + _STANZAS + b"--- " + b"A" * 43 + b"\n" + data,
    "of another version": lambda data: _age(data).replace(b"/v1", b"/v9", 1),
    "with words in its header": lambda data: _age(data).replace(b"X25519", b"X25519 \x1bPWN", 1),
    "by chunks in another order": lambda data: _age(data)[:200] + _age(data)[200:][::-1],
}

_OPENS = {"as it is", "armoured"}


def _sealed(names: str, seal: Callable[[bytes], bytes], original: Original, chance: random.Random, store: Path) -> None:
    """Encrypts to us all but what `names` says; that is sealed as it is told."""

    def of(name: str, content: bytes) -> bytes:
        if name == "README.txt":
            return content
        chosen = name == "index.json.zst" if names == "index" else name != "index.json.zst"
        return seal(content) if chosen else _age(content)

    keys = (str(_KEY.to_public()),)
    changes = {"recipients": list(keys), "format": format_of(keys)}
    index = partial(_set, format_of(keys))
    Forgery(original, seal=of, index=index, manifest=lambda document: document.update(changes)).write(store)


def _set(version: int, document: Document) -> None:
    document["format"] = version


# --- what lies in a folder that is no object


def _in_place(
    ending: str, put: Callable[[Path], object], original: Original, chance: random.Random, store: Path
) -> None:
    """Puts something in the place of the archive or the manifest."""
    name = Forgery(original).write(store)
    path = store / "prod" / "original" / f"{name.id}{ending}"
    path.unlink()
    put(path)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


_PLACED: dict[str, Callable[[Path], object]] = {
    "a link to a file": lambda path: path.symlink_to("/etc/passwd"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to the good one": lambda path: path.symlink_to(next(path.parents[1].rglob(f"bystander/*{path.suffix}"))),
    "a fifo": os.mkfifo,
    "a device": lambda path: os.mknod(path, 0o20666, os.makedev(1, 5)) if os.geteuid() == 0 else os.mkfifo(path),
    "a folder": lambda path: path.mkdir(),
    "a file of a TiB without blocks": _sparse,
    "an empty file": lambda path: path.touch(),
}


def _folder_link(original: Original, chance: random.Random, store: Path) -> None:
    Forgery(original).write(store)
    (store / "prod" / "original").rename(store.parent / "second" / "elsewhere")
    (store / "prod" / "original").symlink_to(store.parent / "second" / "elsewhere")


def _odd_keys(original: Original, chance: random.Random, store: Path) -> None:
    Forgery(original).write(store)
    there = store / "prod" / "original"
    name = original.manifest.id
    for odd in ("%2e%2e", "%00", "%1B%5D0;owned", "a%", "%zz", "..%2F..", "\x1bPWN", "\u202ePWN", "-rf", " ", "\n"):
        (store / "prod" / odd).mkdir(exist_ok=True)
        (store / "prod" / odd / f"{name}.json").write_bytes(b"{}")
        (there / f"{name}.{odd}.json").write_bytes(b"{}")
        (there / f"{odd}{name}.tar").write_bytes(b"")


def _moved(original: Original, chance: random.Random, store: Path) -> None:
    """A good backup under a name that is not its own."""
    name = Forgery(original).write(store)
    shutil.copytree(store / "prod" / "original", store / "prod" / "another")
    assert name.label.database == "original"


# --- mutations by chance


_LEAVES: Sequence[Any] = (
    *(None, True, False, -1, 0, 1, 2**31, 2**63, 2**64, -(2**63), 10**40, 1e308, -0.0, float("nan"), float("inf")),
    *("", " ", "\0", "\n", PLANTED, "x" * 100_000, "../../outside", "%s%n%d", "{0.__class__}", "'; DROP TABLE x; --"),
    *([], {}, [[]], [None], {"": ""}, [[[[[]]]]], "2026-11-26T00:00:00Z", "NaN", "$(touch /tmp/owned)", "\\! touch x"),
)


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every value's container and key."""
    keys = list(document) if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        yield document, key
        yield from _places(document[key])


def _mutate(chance: random.Random, document: Document) -> None:
    for _ in range(chance.choice([1, 1, 1, 2, 3, 8])):
        places = list(_places(document))
        container, key = chance.choice(places)
        match chance.randrange(4):
            case 0 if isinstance(container, dict):
                container.pop(key)
            case 1 if isinstance(container, list):
                container.insert(0, container[key])
            case 2:
                other, name = chance.choice(places)
                with contextlib.suppress(KeyError, IndexError):  # it may be gone by now
                    container[key] = json.loads(json.dumps(other[name]))
            case _:
                container[key] = chance.choice(_LEAVES)


def _mutated_manifest(original: Original, chance: random.Random, store: Path) -> None:
    Forgery(original, manifest=partial(_mutate, chance)).write(store)


def _mutated_index(original: Original, chance: random.Random, store: Path) -> None:
    Forgery(original, index=partial(_mutate, chance)).write(store)


def _mutated_notes(original: Original, chance: random.Random, store: Path) -> None:
    facts = {"level": "identical", "seconds": 5.5, "error": "none", "system_identifier": "1", "why": "so"}
    kinds = ("verified", "drilled", "pinned", "adopted", "retired", "confirmed")
    documents = {}
    for name, raw in _notes(original, dict.fromkeys([f"{kind}-1" for kind in kinds], facts)).items():
        document = json.loads(raw)
        if chance.random() < 0.7:
            _mutate(chance, document)
        documents[name] = json.dumps(document).encode()
    Forgery(original, notes=documents).write(store)


def _scratched(chance: random.Random, data: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 5, 40])):
        place = chance.randrange(len(found))
        match chance.randrange(4):
            case 0:
                found[place] ^= 1 << chance.randrange(8)
            case 1:
                found[place : place + 4] = chance.choice(
                    [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"{[\"'"]
                )
            case 2:
                del found[place : place + chance.choice([1, 7, 512])]
            case _:
                found[place:place] = chance.randbytes(chance.choice([1, 5, 512]))
        if not found:
            return b""
    return bytes(found)


def _scratched_archive(original: Original, chance: random.Random, store: Path) -> None:
    """Bytes of the archive change, and its size in the manifest with them, so that it is listed."""
    changed: list[int] = []

    def scratch(data: bytes) -> bytes:
        found = data
        while found == data:  # zeros may have been put over zeros
            found = _scratched(chance, data)
        changed.append(len(found))
        return found

    Forgery(original, spoil=scratch, manifest=lambda document: document.update(archive_bytes=changed[0])).write(store)


def _scratched_member(original: Original, chance: random.Random, store: Path) -> None:
    """A member changes, and its hashes with it."""
    name = chance.choice(sorted(original.members))
    Forgery(original, members={name: _scratched(chance, original.members[name] or b"0")}).write(store)


def _scratched_toc(original: Original, chance: random.Random, store: Path) -> None:
    Forgery(original, members={"toc.dat": _scratched(chance, original.members["toc.dat"])}).write(store)


def _scratched_manifest(original: Original, chance: random.Random, store: Path) -> None:
    stream = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        Forgery(original).write(Path(folder))
        stream.write(next(Path(folder).rglob("*.json")).read_bytes())
    Forgery(original, raw_manifest=_scratched(chance, stream.getvalue())).write(store)


_MUTATIONS = (
    Kind("manifest mutated", _mutated_manifest),
    Kind("index mutated", _mutated_index),
    Kind("notes mutated", _mutated_notes),
    Kind("archive scratched", _scratched_archive, BYTES & {"verify", "copy"}),
    Kind("member scratched, hashes right", _scratched_member),
    Kind("toc.dat scratched, hashes right", _scratched_toc),
    Kind("manifest scratched", _scratched_manifest),
)


def _kinds() -> Iterator[Kind]:
    for name, header in _HEADERS.items():
        yield Kind(f"tar header: {name}", partial(_tar, header))
    for name, change in _LAYOUTS.items():
        refused = frozenset[str]() if name in _HARMLESS else frozenset({"verify"})
        yield Kind(f"index: {name}", partial(_index, change), refused)
    for name, raw in _documents():
        yield Kind(f"manifest is {name}", partial(_raw_manifest, raw), READERS | {"show"})
        yield Kind(f"index is {name}", partial(_raw_index, raw), READERS)
        yield Kind(f"notes are {name}", partial(_raw_note, raw))
    for name, bomb in _BOMBS.items():
        yield Kind(f"member: {name}", partial(_bomb_member, bomb), frozenset({"verify"}))
    for name, bomb in _INDEX_BOMBS.items():
        yield Kind(f"index: {name}", partial(_bomb_index, bomb), READERS)
    for name, seal in _SEALS.items():
        for names, refused in (("index", READERS), ("members", frozenset({"verify", "fetch"}))):
            opens = frozenset[str]() if name in _OPENS else refused
            yield Kind(f"{names} encrypted {name}", partial(_sealed, names, seal), opens)
    for path in _PATHS:
        yield Kind(f"large objects at {path.decode()}", partial(_lead_objects_out, path), frozenset({"fetch"}))
        yield Kind(f"tables at {path.decode()}", partial(_lead_tables_out, path), frozenset({"fetch"}))
    for name, data in _TOCS.items():
        yield Kind(f"toc.dat {name}", partial(_toc_of, data), frozenset({"fetch"}))
    yield Kind("words everywhere", _with_words)
    yield Kind("words in the label", _label_of_words)
    for name in ("system_identifier", "server_version", "client_version", "suspect", "warnings", "compression"):
        yield Kind(f"words in {name}", partial(_words_one_by_one, name))
    for name, number in _NUMBERS.items():
        yield Kind(f"seconds of a drill: {name}", partial(_odd_drill, number))
        for field in ("jobs", "server_version_num", "archive_bytes", "database_bytes", "rows"):
            yield Kind(f"{field}: {name}", partial(_odd_number, field, number))
    for time in _TIMES:
        yield Kind(f"started_at {time}", partial(_odd_time, "started_at", time))
        yield Kind(f"finished_at {time}", partial(_odd_time, "finished_at", time))
        yield Kind(f"notes at {time}", partial(_odd_note_time, time))
    for ending in (".tar", ".json"):
        for name, put in _PLACED.items():
            yield Kind(f"{name} as {ending}", partial(_in_place, ending, put), READERS | {"show"})
    yield Kind("a folder that is a link", _folder_link)
    yield Kind("odd keys", _odd_keys)
    yield Kind("a backup under another's name", _moved)


_KINDS = tuple(_kinds())
