"""The store's half of `doctor`: list, put, get, range, delete, abort, multipart, durability, each tried once.

Nothing but doing it proves a policy. The objects' keys are none of the catalog's, and they are deleted.
"""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol, runtime_checkable
from urllib.parse import unquote, urlsplit

from backupd.errors import BackupdError, Retained, StoreError, VerificationFailed
from backupd.finding import Check, Doubt, Finding, failure, skip, try_all
from backupd.store import Entry, Protection, S3Options, Store, open_store

CLOCK_SECONDS = 60.0
"""How far clocks may differ: ids and retention are in minutes, and S3 refuses requests at 15."""

PART_BYTES = 5 << 20
"""The smallest part that S3 allows, so that trying a multipart upload stays cheap."""

LOCK = timedelta(minutes=1)
"""For how long a lock is tried."""

LIFECYCLE_HINT = "A lifecycle rule of the bucket must remove them: `backupd doctor --print-lifecycle` prints one."


@runtime_checkable
class Described(Protocol):
    """A store that can say how it is reached."""

    def describe(self) -> Mapping[str, str]:
        """Names and values, as endpoint and whose credentials were found; never a credential."""
        ...


@runtime_checkable
class Protected(Protocol):
    """A store that can say what it does against deletion."""

    def protection(self) -> Protection:
        """What the bucket does."""
        ...


@dataclass(frozen=True)
class _Probe:
    """A store that is tried with objects whose keys start with `key`; one at the top is no place of the catalog's.

    They are not locked, but for one of `locking`, whose lock ends at once.
    """

    store: Store
    url: str
    options: S3Options
    clock: Callable[[], datetime]
    key: str

    @property
    def locking(self) -> Store:
        """The store with short locks."""
        return open_store(self.url, replace(self.options, object_lock_for=LOCK))

    def entry(self) -> Entry | None:
        """The probe, if the store lists it."""
        return next((entry for entry in self.store.list(self.key) if entry.key == self.key), None)


_NOT_TRIED = "not tried, since these credentials may not delete it"
_CONTENT = b"backupd doctor tries this store and deletes this at once\n"


def examine(url: str, s3_options: S3Options, clock: Callable[[], datetime]) -> Iterator[Finding]:
    """Every finding about the store at that URL."""
    others = _FOLDER if store_folder(url) else _BUCKET
    try:
        store = open_store(url, replace(s3_options, part_bytes=PART_BYTES, object_lock=None, object_lock_for=None))
    except BackupdError as exc:
        yield failure("store", exc)
        yield from (skip(name, "store") for name in (*_STORE, *others) if name != "store")
        return
    probe = _Probe(store, url, s3_options, clock, f"backupd-doctor-{secrets.token_hex(8)}")
    tried: dict[str, str] = {}
    try:
        for finding in try_all({**_STORE, **others}, probe, needs=_NEEDS):
            tried[finding.name] = finding.status
            yield finding
    finally:
        if tried.get("store put") != "skip" and tried.get("store delete") != "ok":
            with contextlib.suppress(BackupdError):
                store.delete(probe.key)


def _described(on: _Probe) -> str:
    said = on.store.describe() if isinstance(on.store, Described) else {}
    return ", ".join([on.store.url, *(f"{name} {value}" for name, value in said.items())])


def _list(on: _Probe) -> str:
    found = on.entry()
    if found is not None:
        raise StoreError(f"{on.store.url} lists {found.key}, which was never written")
    return "answered"


def _put(on: _Probe) -> str:
    with on.store.create(on.key, len(_CONTENT)) as stream:
        stream.write(_CONTENT)
    found = on.entry()
    if found is None or found.size_bytes != len(_CONTENT):
        raise StoreError(f"{on.store.url} does not list {on.key} as it was written", detail=f"It lists {found}.")
    return f"{on.key} was written and is listed"


def _get(on: _Probe) -> str:
    return _read(on, on.key, 0, None, _CONTENT)


def _range(on: _Probe) -> str:
    return _read(on, on.key, 8, 6, _CONTENT[8:14])


def _read(on: _Probe, key: str, start: int, length: int | None, expected: bytes) -> str:
    with on.store.open(key, start, length) as stream:
        if stream.read() != expected:
            raise VerificationFailed(f"{on.store.url} returned other bytes of {key} than were written")
    return f"{len(expected)} bytes came back as they were written"


def _store_clock(on: _Probe) -> str | Doubt:
    found = on.entry()
    if found is None:
        raise StoreError(f"{on.store.url} does not list {on.key} any more")
    return compare_clocks(found.modified_at, on.clock(), "the store's clock")


def _delete(on: _Probe) -> str | Doubt:
    try:
        on.store.delete(on.key)
    except Retained as exc:
        if exc.until is None:
            return Doubt(
                f"{on.key} may not be deleted, so old backups stay, and remains of failed ones", LIFECYCLE_HINT
            )
        return f"{on.key} is retained until {exc.until:%Y-%m-%d %H:%M} UTC"
    if on.entry() is not None:
        raise StoreError(f"{on.store.url} still lists {on.key} after it was deleted")
    return f"{on.key} was deleted"


def _may_delete(on: _Probe, key: str) -> bool:
    """Asked before a key is written: what cannot be deleted is not."""
    try:
        on.store.delete(key)
    except Retained:
        return False
    return True


def _keys(on: _Probe) -> str | Doubt:
    """Whether keys stay as they are: names of databases that are not plain are percent-encoded in them."""
    key = f"{on.key}%20+~"
    if not _may_delete(on, key):
        return _NOT_TRIED
    with on.store.create(key, len(_CONTENT)) as stream:
        stream.write(_CONTENT)
    try:
        if [entry.key for entry in on.store.list(key)] == [key]:
            return f"{key} is listed as it was written"
    finally:
        with contextlib.suppress(Retained):
            on.store.delete(key)
    hint = "Back up only databases named in plain letters, digits, - and _, or use another service."
    return Doubt(f"{on.store.url} changes keys with % or +, and would lose {key}", hint)


def _multipart(on: _Probe) -> str:
    """An object of two parts, read back across their border."""
    key, size_bytes = f"{on.key}-parts", PART_BYTES + 1
    if not _may_delete(on, key):
        return _NOT_TRIED
    try:
        with on.store.create(key, size_bytes) as stream:
            stream.write(bytes(PART_BYTES) + b"1")
        _read(on, key, PART_BYTES - 1, 2, b"\0001")
    finally:
        with contextlib.suppress(Retained):
            on.store.delete(key)
    return "an object of two parts was written, read and deleted"


def _versions(on: _Probe) -> str | Doubt:
    """Whether a delete frees anything."""
    found = on.store.protection() if isinstance(on.store, Protected) else Protection(False, None, None)
    if found.versioned is None:
        return "these credentials may not ask whether the bucket keeps versions"
    if not found.versioned:
        return "the bucket keeps no versions: what is deleted is gone"
    text = "the bucket keeps versions: a delete hides an object behind a delete marker, and frees nothing"
    if found.expires is False:
        return Doubt(f"{text}, and no lifecycle rule removes what is hidden", LIFECYCLE_HINT)
    return f"{text} until a lifecycle rule removes what is hidden"


def _lock(on: _Probe) -> str | Doubt:
    """Whether objects can be locked as is asked for; that one is tried with a lock that ends soon."""
    found = on.store.protection() if isinstance(on.store, Protected) else Protection(None, None, None)
    if on.options.object_lock is None:
        if found.default_days is None:
            return "none is asked for, and the bucket has no default that these credentials may see"
        hint = f"Set BACKUPD_STORE__S3__OBJECT_LOCK and BACKUPD_STORE__S3__OBJECT_LOCK_FOR={found.default_days}d."
        text = f"the bucket locks each object for {found.default_days} days, and backupd does not know when that ends"
        return Doubt(text, hint)
    if found.locks is False:
        hint = "Turn Object Lock on for the bucket, or unset BACKUPD_STORE__S3__OBJECT_LOCK."
        raise StoreError(f"{on.store.url} cannot lock objects", hint=hint)
    key = f"{on.key}-locked"
    with on.locking.create(key, len(_CONTENT)) as stream:
        stream.write(_CONTENT)
    try:
        on.locking.delete(key)
    except Retained as exc:
        if exc.until is not None:
            return f"{on.options.object_lock}; {key} is retained until {exc.until:%Y-%m-%d %H:%M} UTC, to try it"
    hint = "Allow s3:GetObjectRetention, or `backupd prune` cannot tell what is locked."
    return Doubt(f"{on.options.object_lock}, but {key} does not show until when", hint)


class _Abandoned(Exception):
    """Ends a `create` as a failing backup does."""


def _abort(on: _Probe) -> str:
    """A write that is given up must leave nothing, or it costs money for ever."""
    key = f"{on.key}-abandoned"
    with contextlib.suppress(_Abandoned), on.store.create(key, PART_BYTES) as stream:
        stream.write(bytes(PART_BYTES))
        raise _Abandoned
    left = [*on.store.sweep(key, on.clock() + timedelta(days=1)), *(entry.key for entry in on.store.list(key))]
    if left:
        hint = "Allow s3:AbortMultipartUpload, and have the bucket end unfinished uploads after some days."
        raise StoreError(f"a write that was given up left {', '.join(left)} in {on.store.url}", hint=hint)
    return "a write that was given up left nothing"


def _durability(on: _Probe) -> str | Doubt:
    """Whether the folder outlives this container and a loss of power."""
    folder = store_folder(on.url) or Path("/")
    try:
        kind = file_system(folder)
        if is_in_memory(kind):
            return Doubt(f"{folder} is in memory ({kind})", "Mount a disk there, or backups end with the machine.")
        if kind == "overlay":
            return Doubt(f"{folder} is this container's own ({kind})", "Mount a volume there, or backups end with it.")
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as exc:
        hint = "After a loss of power run `backupd verify all`, or use another file system."
        return Doubt(f"{folder} does not make the names of files durable: {exc.strerror}", hint)
    return f"{folder} ({kind}) makes files and their names durable"


def compare_clocks(theirs: datetime, ours: datetime, whose: str) -> str | Doubt:
    """Whether two clocks agree well enough."""
    seconds = (theirs - ours).total_seconds()
    text = f"{whose} is {abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'} ours"
    if abs(seconds) <= CLOCK_SECONDS:
        return text
    return Doubt(text, "Set the wrong one of the two; ids, retention and `backupd check` go by this machine's.")


def store_folder(url: str) -> Path | None:
    """The folder of a store's URL; None for another kind of store."""
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def file_system(folder: Path) -> str:
    """The type of its file system, as the kernel calls it. Raises OSError."""
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            fields = line.split()
            if fields[2] == number:
                return fields[fields.index("-") + 1]
    return "a file system of unknown type"


def is_in_memory(kind: str) -> bool:
    """Whether that type of file system is gone with the machine."""
    return kind in ("tmpfs", "ramfs")


_STORE: Mapping[str, Check[_Probe]] = {
    "store": _described,
    "store list": _list,
    "store put": _put,
    "store get": _get,
    "store range": _range,
    "store clock": _store_clock,
    "store delete": _delete,
    "store keys": _keys,
    "store abort": _abort,
}
_FOLDER: Mapping[str, Check[_Probe]] = {"store durability": _durability}
_BUCKET: Mapping[str, Check[_Probe]] = {
    "store multipart": _multipart,
    "store versions": _versions,
    "store lock": _lock,
}
_NEEDS: Mapping[str, str] = {
    "store list": "store",
    "store put": "store list",
    "store get": "store put",
    "store range": "store put",
    "store clock": "store put",
    "store delete": "store put",
    "store keys": "store delete",  # what cannot be deleted is not written
    "store abort": "store delete",
    "store multipart": "store delete",
    "store versions": "store list",
    "store lock": "store put",
    "store durability": "store list",
}
