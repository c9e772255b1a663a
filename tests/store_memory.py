"""A store in memory, for tests of what stands above stores; the suite in `store_suite` holds it to their promises."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import BinaryIO

from backupd.errors import AlreadyExists, NotFound, StoreError
from backupd.store import Entry, check_key


class MemoryStore:
    """A Store (see there) in a dictionary. `now` is when its objects were modified."""

    def __init__(self, now: datetime = datetime(2026, 11, 23, tzinfo=UTC)) -> None:
        self.now = now
        self.objects: dict[str, tuple[bytes, datetime]] = {}

    @property
    def url(self) -> str:
        """A name that is no address."""
        return "memory://"

    @contextlib.contextmanager
    def create(self, key: str, expected_bytes: int = 0) -> Iterator[BinaryIO]:
        """See Store."""
        self._require_absent(check_key(key))
        with _Unseekable() as stream:
            yield stream
            self._require_absent(key)
            self.objects[key] = (stream.getvalue(), self.now)

    @contextlib.contextmanager
    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[BinaryIO]:
        """See Store."""
        if check_key(key) not in self.objects:
            raise NotFound(f"object {key} does not exist in {self.url}")
        data, _ = self.objects[key]
        end = len(data) if length is None else start + length
        if start > len(data) or end > len(data):
            raise StoreError(f"object {key} in {self.url} is too short")
        yield io.BytesIO(data[start:end])

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See Store."""
        found = sorted(self.objects.items())
        return iter([Entry(key, len(data), at) for key, (data, at) in found if key.startswith(prefix)])

    def delete(self, key: str) -> None:
        """See Store."""
        self.objects.pop(check_key(key), None)

    def sweep(self, prefix: str, idle_since: datetime) -> Sequence[str]:
        """See Store: nothing outlives a `create` here."""
        return []

    def _require_absent(self, key: str) -> None:
        if key in self.objects:
            raise AlreadyExists(f"object {key} exists in {self.url} already")


class _Unseekable(io.BytesIO):
    """As strict as a real store's stream, so that nobody comes to rely on more."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: object) -> int:
        raise io.UnsupportedOperation("seek")

    def tell(self) -> int:
        raise io.UnsupportedOperation("tell")
