"""What every store promises, sentence by sentence (`backupd.store.Store`); `test_stores` runs it on each of them."""

import random
from datetime import UTC, datetime, timedelta
from typing import BinaryIO

import pytest
from fix_store import PART_BYTES, StoreCase

from backupd.errors import AlreadyExists, Interrupted, NotFound, StoreError
from backupd.store import Store

CHUNK_BYTES = 128 * 1024
SEVERAL_PARTS = random.Random(1).randbytes(2 * PART_BYTES + 12_345)
PLAIN_KEYS = (
    "db/x.tar",
    "shop%20%C3%A4/x.tar",
    "a+b/c=d,e/x@y:z~_.json",
    "db/x..y...tar",
    "%2Edb/20261123T221614Z-3f9ac21b.json",
)

NO_KEYS = ("", "/", "/x", "x/", "a//b", ".", "..", "../x", "a/../b", "a/./b", ".x", "a/.x/b", "a b", "ä", "a\\b", "a\n")


class Boom(Exception):
    """What the writer's own code raises."""


def put(store: Store, key: str, data: bytes) -> None:
    with store.create(key, len(data)) as stream:
        stream.write(data)


def get(store: Store, key: str, start: int = 0, length: int | None = None) -> bytes:
    with store.open(key, start, length) as stream:
        return stream.read()


def keys(store: Store, prefix: str = "") -> list[str]:
    return [entry.key for entry in store.list(prefix)]


def write_in_chunks(stream: BinaryIO, data: bytes) -> None:
    for start in range(0, len(data), CHUNK_BYTES):
        assert stream.write(data[start : start + CHUNK_BYTES]) == len(data[start : start + CHUNK_BYTES])


def test_what_was_written_is_read_back(store_case: StoreCase) -> None:
    for key in PLAIN_KEYS:
        put(store_case.store, key, key.encode())
    assert [get(store_case.store, key) for key in PLAIN_KEYS] == [key.encode() for key in PLAIN_KEYS]
    assert keys(store_case.store) == sorted(PLAIN_KEYS)


def test_an_empty_object_is_an_object(store_case: StoreCase) -> None:
    put(store_case.store, "db/empty", b"")
    assert get(store_case.store, "db/empty") == b""
    assert get(store_case.store, "db/empty", 0, 0) == b""
    assert [(entry.key, entry.size_bytes) for entry in store_case.store.list()] == [("db/empty", 0)]


def test_a_big_object_is_equal_byte_for_byte(store_case: StoreCase) -> None:
    with store_case.store.create("db/big.tar", len(SEVERAL_PARTS)) as stream:
        write_in_chunks(stream, SEVERAL_PARTS)
    with store_case.store.open("db/big.tar") as stream:
        chunks = list(iter(lambda: stream.read(CHUNK_BYTES), b""))
    assert b"".join(chunks) == SEVERAL_PARTS
    assert {len(chunk) for chunk in chunks[:-1]} == {CHUNK_BYTES}
    assert [entry.size_bytes for entry in store_case.store.list()] == [len(SEVERAL_PARTS)]
    assert store_case.leftovers() == []


def test_an_object_of_exactly_some_parts_is_equal(store_case: StoreCase) -> None:
    data = SEVERAL_PARTS[: 2 * PART_BYTES]
    put(store_case.store, "db/big.tar", data)
    assert get(store_case.store, "db/big.tar") == data


def test_a_writer_may_reuse_its_buffer(store_case: StoreCase) -> None:
    with store_case.store.create("db/x") as stream:
        for letter in b"abc":
            buffer = bytearray([letter]) * 4
            assert stream.write(memoryview(buffer)) == 4
            buffer[:] = b"----"
    assert get(store_case.store, "db/x") == b"aaaabbbbcccc"


def test_nothing_is_visible_before_the_clean_exit(store_case: StoreCase) -> None:
    with store_case.store.create("db/big.tar") as stream:
        assert keys(store_case.store) == []
        write_in_chunks(stream, SEVERAL_PARTS)
        assert keys(store_case.store) == []
        with pytest.raises(NotFound), store_case.store.open("db/big.tar"):
            pass
    assert keys(store_case.store) == ["db/big.tar"]


@pytest.mark.parametrize("data", [b"", b"little", SEVERAL_PARTS], ids=["nothing", "little", "parts"])
def test_an_exception_in_the_block_leaves_nothing(store_case: StoreCase, data: bytes) -> None:
    def write(error: BaseException) -> None:
        with store_case.store.create("db/x.tar") as stream:
            write_in_chunks(stream, data)
            raise error

    for error in (Boom(), Interrupted(15), FileExistsError(17, "of the caller's")):
        with pytest.raises(type(error)) as raised:
            write(error)
        assert raised.value is error
        assert keys(store_case.store) == []
        assert store_case.leftovers() == []
    put(store_case.store, "db/x.tar", b"again")
    assert get(store_case.store, "db/x.tar") == b"again"


def test_the_stream_is_closed_after_the_block(store_case: StoreCase) -> None:
    with store_case.store.create("db/x") as stream:
        stream.write(b"in the block")
        assert not stream.seekable()
    with pytest.raises(ValueError, match="closed"):
        stream.write(b"after it")
    assert get(store_case.store, "db/x") == b"in the block"


def test_a_taken_key_is_refused_and_its_object_stays(store_case: StoreCase) -> None:
    put(store_case.store, "db/x", b"the first")
    entered = False
    with pytest.raises(AlreadyExists, match="db/x"), store_case.store.create("db/x"):
        entered = True
    assert not entered  # told before anything was dumped
    assert get(store_case.store, "db/x") == b"the first"
    assert store_case.leftovers() == []


def test_of_two_creates_at_once_one_wins(store_case: StoreCase) -> None:
    if not store_case.tells_taken_keys:
        pytest.skip("this service ignores If-None-Match, so a second object replaces the first")

    def overlap() -> None:
        with store_case.store.create("db/x") as slow:
            slow.write(b"the slow one")
            put(store_case.store, "db/x", b"the fast one")

    with pytest.raises(AlreadyExists, match="db/x"):
        overlap()
    assert get(store_case.store, "db/x") == b"the fast one"
    assert store_case.leftovers() == []


def test_a_range_is_those_bytes(store_case: StoreCase) -> None:
    put(store_case.store, "db/x", b"0123456789")
    assert get(store_case.store, "db/x", 0, 4) == b"0123"
    assert get(store_case.store, "db/x", 3, 4) == b"3456"
    assert get(store_case.store, "db/x", 6, 4) == b"6789"
    assert get(store_case.store, "db/x", 6) == b"6789"
    assert get(store_case.store, "db/x", 3, 0) == b""


def test_a_range_beyond_the_end_is_an_error(store_case: StoreCase) -> None:
    put(store_case.store, "db/x", b"0123456789")
    for start, length in ((0, 11), (9, 2), (10, 1), (11, None), (20, 1)):
        with pytest.raises(StoreError, match="db/x") as raised:
            get(store_case.store, "db/x", start, length)
        assert not isinstance(raised.value, NotFound)


def test_a_range_is_read_in_pieces(store_case: StoreCase) -> None:
    put(store_case.store, "db/big.tar", SEVERAL_PARTS)
    with store_case.store.open("db/big.tar", PART_BYTES - 3, 1_000_000) as stream:
        assert stream.read(5) == SEVERAL_PARTS[PART_BYTES - 3 : PART_BYTES + 2]
        assert stream.read(999_995) == SEVERAL_PARTS[PART_BYTES + 2 : PART_BYTES + 999_997]
        assert stream.read(1) == b""


def test_a_missing_object_is_not_found(store_case: StoreCase) -> None:
    put(store_case.store, "db/folder/x", b"")
    for key in ("db/y", "db/folder", "db/folder/x/y", "other/x"):
        for length in (None, 0, 3):
            with pytest.raises(NotFound, match=key):
                get(store_case.store, key, 0, length)


def test_list_is_sorted_by_key(store_case: StoreCase) -> None:
    written = ["b/x", "a-b/x", "a/x", "a0/x", "a/b/x", "a.b/x", "a/b-c", "B/x", "top"]
    for key in written:
        put(store_case.store, key, b"")
    assert keys(store_case.store) == sorted(written)


def test_a_prefix_is_text_and_not_a_folder(store_case: StoreCase) -> None:
    for key in ("app/main/x", "app/main2/x", "app/mine/x", "apple/x", "app/other"):
        put(store_case.store, key, b"")
    assert keys(store_case.store, "app/ma") == ["app/main/x", "app/main2/x"]
    assert keys(store_case.store, "app/main/") == ["app/main/x"]
    assert keys(store_case.store, "app/main/x") == ["app/main/x"]
    assert keys(store_case.store, "app") == ["app/main/x", "app/main2/x", "app/mine/x", "app/other", "apple/x"]
    assert keys(store_case.store, "nothing/at/all") == []
    assert keys(store_case.store, "../") == []


def test_list_says_size_and_time(store_case: StoreCase) -> None:
    before = datetime.now(UTC) - timedelta(seconds=10)
    put(store_case.store, "db/x", b"0123456789")
    [entry] = store_case.store.list()
    assert (entry.key, entry.size_bytes) == ("db/x", 10)
    assert entry.modified_at.utcoffset() == timedelta()
    assert store_case.name == "memory" or before <= entry.modified_at <= datetime.now(UTC) + timedelta(seconds=10)


def test_deleting_is_idempotent(store_case: StoreCase) -> None:
    put(store_case.store, "db/x", b"1")
    put(store_case.store, "db/xy", b"2")
    store_case.store.delete("db/x")
    store_case.store.delete("db/x")
    store_case.store.delete("never/was")
    assert keys(store_case.store) == ["db/xy"]
    put(store_case.store, "db/x", b"again")
    assert get(store_case.store, "db/x") == b"again"


def test_sweep_removes_only_what_has_long_been_idle(store_case: StoreCase) -> None:
    if not store_case.sweeps:
        pytest.skip("nothing outlives a create here")
    put(store_case.store, "db/whole.tar", SEVERAL_PARTS)
    # A create that nobody ends is what a killed process leaves; the reference keeps it from being ended by us.
    abandoned = store_case.store.create("db/cut.tar")
    write_in_chunks(abandoned.__enter__(), SEVERAL_PARTS)
    other = store_case.store.create("other/cut.tar")
    write_in_chunks(other.__enter__(), SEVERAL_PARTS)
    assert len(store_case.leftovers()) == 2

    now = datetime.now(UTC)
    assert store_case.store.sweep("db/", now - timedelta(hours=1)) == []
    assert store_case.store.sweep("db/whole", now + timedelta(hours=1)) == []
    assert len(store_case.leftovers()) == 2
    [swept] = store_case.store.sweep("db/", now + timedelta(hours=1))
    assert "cut.tar" in swept
    assert len(store_case.leftovers()) == 1
    assert len(store_case.store.sweep("", now + timedelta(hours=1))) == 1
    assert store_case.leftovers() == []
    assert keys(store_case.store) == ["db/whole.tar"]

    for create in (abandoned, other):
        assert not create.__exit__(Boom, Boom(), None)
    assert keys(store_case.store) == ["db/whole.tar"]


def test_sweep_of_nothing_is_nothing(store_case: StoreCase) -> None:
    assert store_case.store.sweep("", datetime.now(UTC)) == []


def test_what_is_no_key_is_refused(store_case: StoreCase) -> None:
    for key in NO_KEYS:
        with pytest.raises(StoreError, match="no key"):
            put(store_case.store, key, b"")
        with pytest.raises(StoreError, match="no key"):
            get(store_case.store, key)
        with pytest.raises(StoreError, match="no key"):
            store_case.store.delete(key)
    assert keys(store_case.store) == []
