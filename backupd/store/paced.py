"""A store whose uploads take no more than so many bytes a second, on average; everything else is as it was.

Hides the arithmetic of waiting. A store before another one, and not a setting of each: what is sent is the same bytes.
S3 sends parts of 16 MiB and more at once, so that the line is busy for a moment and then free for longer.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO, cast

from backupd.store import Entry, Store

_SLICES = 4  # a second: so much is written between two waits
_CREDIT_SECONDS = 1.0  # of silence count for what comes then, and no more


@dataclass(frozen=True)
class Paced:
    """`store`, written to at `bytes_per_second` at most. See Store."""

    store: Store
    bytes_per_second: int

    @property
    def url(self) -> str:
        """See Store."""
        return self.store.url

    @contextlib.contextmanager
    def create(self, key: str, expected_bytes: int = 0) -> Iterator[BinaryIO]:
        """See Store."""
        with self.store.create(key, expected_bytes) as stream:
            yield cast(BinaryIO, _Stream(stream, self.bytes_per_second))

    def open(self, key: str, start: int = 0, length: int | None = None) -> AbstractContextManager[BinaryIO]:
        """See Store."""
        return self.store.open(key, start, length)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See Store."""
        return self.store.list(prefix)

    def delete(self, key: str) -> None:
        """See Store."""
        self.store.delete(key)

    def sweep(self, prefix: str, idle_since: datetime) -> Sequence[str]:
        """See Store."""
        return self.store.sweep(prefix, idle_since)


class _Stream:
    """What a store's `create` gives, and no more than that: a writable, unseekable stream."""

    def __init__(self, stream: BinaryIO, bytes_per_second: int) -> None:
        self._stream = stream
        self._rate = bytes_per_second
        self._free_at = time.monotonic()

    def seekable(self) -> bool:
        return False

    def write(self, data: bytes) -> int:
        size = max(1, self._rate // _SLICES)
        for start in range(0, len(data), size):
            part = data[start : start + size]
            self._stream.write(part)
            now = time.monotonic()
            self._free_at = max(self._free_at, now - _CREDIT_SECONDS) + len(part) / self._rate
            time.sleep(max(0.0, self._free_at - now))
        return len(data)
