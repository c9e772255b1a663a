"""Bytes by key: immutable objects in a directory (`local`) or under an S3 prefix (`s3`).

Hides fsync and rename, multipart uploads, part sizes, checksums, retries and provider quirks behind five methods.
No `exists`, `stat`, `copy` or `rename`: nothing above needs them, and not every store can do them atomically.
Implementations are imported where they are opened, so that a directory does not cost the import of boto3.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Literal, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from backupd.errors import StoreError, UsageError


@dataclass(frozen=True, order=True)
class Entry:
    """One visible object: `key` relative to the store's root, `size_bytes`, `modified_at` (aware, UTC)."""

    key: str
    size_bytes: int
    modified_at: datetime


class Store(Protocol):
    """What every store promises; `tests/store_suite.py` holds each implementation to each sentence.

    Keys are as `is_key` says. Foreign exceptions never pass: they become StoreError, NotFound, AlreadyExists,
    AccessRefused or NoRoom.
    """

    @property
    def url(self) -> str:
        """Where the store is, printable: never with a secret."""
        ...

    def create(self, key: str, expected_bytes: int = 0) -> AbstractContextManager[BinaryIO]:
        """A writable, unseekable stream; the object becomes visible, whole and durable, at the clean exit of the block.

        An exception in the block leaves nothing visible and removes what was written, as far as the store allows
        (`sweep` finds the rest). A key that exists raises AlreadyExists: at the entry, or at the exit where it appeared
        in between and the store can tell; where it cannot, ids are unique. `expected_bytes` is a guess of the size,
        rather too large than too small, from which S3 chooses its part size.
        """
        ...

    def open(self, key: str, start: int = 0, length: int | None = None) -> AbstractContextManager[BinaryIO]:
        """A readable stream of `length` bytes from `start` (to the end without a length).

        Raises NotFound. Where the object ends before the range does, StoreError comes at the entry or from `read`,
        never a silent short read at the end; `read(n)` gives fewer than n bytes only at the end of the range.
        """
        ...

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """The visible objects whose key starts with `prefix`, each once, sorted by key. A missing prefix is empty.

        `prefix` is text, not a folder: `app/ma` finds `app/main/x` too.
        """
        ...

    def delete(self, key: str) -> None:
        """Removes the object, durably; one that does not exist is fine (idempotent).

        Raises Retained where the store keeps it: a lock holds it, or these credentials may write but not delete.
        """
        ...

    def sweep(self, prefix: str, idle_since: datetime) -> Sequence[str]:
        """Removes what interrupted `create` calls left under `prefix` without news since `idle_since`; returns names.

        Temporary files and open multipart uploads only: visible objects are never touched. A store that keeps no list
        of its open uploads (rclone) has nothing to sweep, and ends them itself.
        """
        ...


@dataclass(frozen=True)
class S3Options:
    """How an S3 store is spoken to; each field is the setting BACKUPD_STORE__S3__<NAME>.

    Credentials are boto3's own chain (environment, files, IRSA, Pod Identity, instance role), and so are AWS_PROFILE,
    AWS_CA_BUNDLE for a private certificate authority, and the proxies.
    """

    endpoint_url: str | None = None
    """Where the service is; None is AWS."""

    region: str | None = None
    """The bucket's region; None is what the environment says."""

    profile: str | None = None
    """A profile of AWS's own files, whose credentials win over those in the environment; None is boto3's chain."""

    addressing: Literal["auto", "path", "virtual"] = "auto"
    """Whether the bucket is in the URL's path or in its host name; `auto` is the path for an `endpoint_url`."""

    sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    """Server-side encryption that is asked for; None is the bucket's own default."""

    kms_key_id: str | None = None
    """The key for `aws:kms`; None is the account's default key."""

    expected_bucket_owner: str | None = None
    """The account that must own the bucket; requests to anyone else's are refused by the service."""

    checksums: Literal["auto", "when_required", "when_supported", "md5"] = "auto"
    """Whether uploads carry a CRC32 (`when_supported`) or Content-MD5 (`md5`), one of which Object Lock needs.

    `auto` is a CRC32 on AWS; elsewhere nothing, or Content-MD5 where objects are locked: every service knows that."""

    part_limit: int = 10_000
    """How many parts one upload may have; some services allow 1,000."""

    part_bytes: int = 16 << 20
    """The smallest part (at least 5 MiB); doubled until the expected size fits. Three parts are held in memory.

    Larger ones were not faster (408 MB: 2.4 s with 16 MiB and two threads, 2.9 s with 32 MiB and four; performance 3),
    and smaller ones are more requests, each of which is paid for."""

    object_lock: Literal["governance", "compliance"] | None = None
    """How each object is locked as it is written; None leaves it to the bucket, which may have a default."""

    object_lock_for: timedelta | None = None
    """For how long, from when an object is begun and by the service's clock; set together with `object_lock`."""


@dataclass(frozen=True)
class Protection:
    """What a bucket does against deletion; None where these credentials may not ask.

    `versioned`: a delete hides an object and frees nothing; `expires`: a lifecycle rule removes what is hidden.
    `locks`: objects can be locked, and are for `default_days` where nothing else is asked for.
    """

    versioned: bool | None
    expires: bool | None
    locks: bool | None
    default_days: int | None = None


_KEY = re.compile(r"{0}(/{0})*".format(r"[A-Za-z0-9%+_~=@,:-][A-Za-z0-9%+_~=@,:.-]*"))


def is_key(name: str) -> bool:
    """Whether that is a key: segments of plain ASCII characters between slashes, none of which starts with a dot.

    `catalog` percent-encodes names, leading dots too: so neither `..` nor what a file system or a store keeps for
    itself (`.snapshot`, our own temporary files) can ever be a key.
    """
    return _KEY.fullmatch(name) is not None


def check_key(key: str) -> str:
    """The key itself. Raises StoreError where it is none."""
    if not is_key(key):
        raise StoreError(f"{key!r} is no key of a store")
    return key


def open_store(url: str, s3_options: S3Options) -> Store:
    """The store at `file:///absolute/folder` or `s3://bucket/prefix`. Nothing is asked of it yet.

    Raises UsageError for any other URL, without repeating it: it may hold a password.
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        from backupd.store.local import LocalStore

        return LocalStore(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc and _is_plain(parts):
        from backupd.store.s3 import S3Store

        return S3Store(parts.netloc, unquote(parts.path).strip("/"), s3_options)
    raise UsageError(
        "store URL is neither file:///absolute/folder nor s3://bucket/prefix",
        hint="Set BACKUPD_STORE__URL; credentials, port and endpoint do not belong into it.",
    )


def hint_of_second(hint: str) -> str:
    """The hint with the second store's settings: a store knows not which it is, and names the first one's."""
    return hint.replace("BACKUPD_STORE__", "BACKUPD_COPY__")


def _is_plain(parts: SplitResult) -> bool:
    return not ({"@", ":"} & set(parts.netloc) or parts.query or parts.fragment)
