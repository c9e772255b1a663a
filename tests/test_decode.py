"""A member's bytes: whatever is whole decodes to exactly itself, whatever is not is refused, and memory stays small."""

import gzip
import random
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from backupd import decode
from backupd.decode import END_MARKER, STEP_BYTES, Decoded, Decoder, is_table, large_object_oid, pack, unpack
from backupd.errors import VerificationFailed

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PROJECT = Path(__file__).parent.parent
SUFFIXES = ("", ".gz", ".zst")
PACKERS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd.compress}

# what COPY makes of a value: a backslash is doubled, so that no row can be the marker
rows_of_tables = st.lists(
    st.one_of(
        st.sampled_from([b"", rb"\\.", rb"x\\.", rb"\N", b"1\t2", b"\\\\"]),
        st.binary(max_size=40).map(lambda raw: raw.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")),
    ),
    max_size=40,
)
cuts = st.lists(st.integers(min_value=1, max_value=100), min_size=1, max_size=8)


def copied(rows: Sequence[bytes]) -> bytes:
    """The stream of a table with those rows."""
    return b"".join(row + b"\n" for row in rows) + END_MARKER


def decoded(name: str, data: bytes, sizes: Sequence[int] = (1 << 20,)) -> Decoded:
    """What a decoder makes of the data, fed in chunks of those sizes, again and again."""
    decoder, position, turn = Decoder(name), 0, 0
    while position < len(data):
        size = sizes[turn % len(sizes)]
        decoder.feed(data[position : position + size])
        position, turn = position + size, turn + 1
    return decoder.finish()


def refused(name: str, data: bytes) -> VerificationFailed:
    """How it is refused, whatever the chunks; the message must name the member."""
    for sizes in ((1 << 20,), (1,), (7,)):
        with pytest.raises(VerificationFailed) as caught:
            decoded(name, data, sizes)
        assert name in caught.value.message
    return caught.value


def proven(rows: Sequence[bytes]) -> Decoded:
    """The same as `decode` should say, computed in another way."""
    content = b"".join(row + b"\n" for row in rows)
    return Decoded(len(content) + len(END_MARKER), len(rows), xxhash.xxh3_128_hexdigest(content))


# --- what is whole


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(deadline=None)
@given(rows=rows_of_tables, sizes=cuts)
def test_any_rows_in_any_chunks_are_counted_and_fingerprinted(
    suffix: str, rows: Sequence[bytes], sizes: Sequence[int]
) -> None:
    assert decoded(f"1.dat{suffix}", PACKERS[suffix](copied(rows)), sizes) == proven(rows)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(deadline=None)
@given(data=st.binary(max_size=500), sizes=cuts)
def test_any_bytes_of_a_large_object_decode_to_themselves(suffix: str, data: bytes, sizes: Sequence[int]) -> None:
    promised = Decoded(len(data), 0, xxhash.xxh3_128_hexdigest(data))
    assert decoded(f"blob_1.dat{suffix}", PACKERS[suffix](data), sizes) == promised


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(deadline=None)
@given(rows=rows_of_tables, breaks=cuts, sizes=cuts)
def test_several_frames_are_one_stream(
    suffix: str, rows: Sequence[bytes], breaks: Sequence[int], sizes: Sequence[int]
) -> None:
    stream, frames, turn = copied(rows), b"", 0
    while stream:
        size = breaks[turn % len(breaks)]
        frames += PACKERS[suffix](stream[:size])
        stream, turn = stream[size:], turn + 1
    assert decoded(f"1.dat{suffix}", frames, sizes) == proven(rows)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_content_around_the_size_of_a_step_is_whole(suffix: str, extra: int) -> None:
    """Compressible, so that one chunk gives several steps, and the last step may be of any size."""
    for steps in (1, 3):
        length = steps * STEP_BYTES + extra
        rows = [b"x" * 99] * ((length - len(END_MARKER)) // 100)
        rows.append(b"y" * (length - len(END_MARKER) - 100 * len(rows) - 1))
        data = PACKERS[suffix](copied(rows))
        assert proven(rows).raw_bytes == length
        assert decoded(f"1.dat{suffix}", data) == proven(rows)
        assert decoded(f"1.dat{suffix}", data, (11,)) == proven(rows)


def test_megabytes_that_do_not_compress_are_whole() -> None:
    rows = [random.Random(number).randbytes(1000).hex().encode() for number in range(2000)]
    for suffix in SUFFIXES:
        assert decoded(f"1.dat{suffix}", PACKERS[suffix](copied(rows)), (1 << 18,)) == proven(rows)


def test_every_level_that_can_be_set_is_decoded() -> None:
    rows = [random.Random(number).randbytes(50).hex().encode() for number in range(2000)]
    for level in range(1, 20):
        stream = zstd.ZstdCompressor(level=level)  # unlike one call, it does not know the size, as pg_dump does not
        assert decoded("1.dat.zst", stream.compress(copied(rows)) + stream.flush()) == proven(rows)
    for level in range(1, 10):
        assert decoded("1.dat.gz", gzip.compress(copied(rows), level)) == proven(rows)


@pytest.mark.parametrize("program", ["zstd", "gzip"])
def test_what_other_programs_packed_is_decoded(program: str) -> None:
    rows = [b"row %d" % number for number in range(1000)]
    packed = subprocess.run([program, "-c"], input=copied(rows), capture_output=True, check=True).stdout
    assert decoded({"zstd": "1.dat.zst", "gzip": "1.dat.gz"}[program], packed) == proven(rows)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_table_has_a_marker_and_an_empty_large_object_needs_not_even_a_frame(suffix: str) -> None:
    nothing = xxhash.xxh3_128_hexdigest(b"")
    assert decoded(f"1.dat{suffix}", PACKERS[suffix](END_MARKER)) == Decoded(5, 0, nothing)
    assert decoded(f"blob_1.dat{suffix}", b"") == Decoded(0, 0, nothing)
    assert decoded(f"blob_1.dat{suffix}", PACKERS[suffix](b"")) == Decoded(0, 0, nothing)


def test_rows_that_look_like_the_marker_are_rows() -> None:
    for rows in ([rb"\\."], [rb"\\.", b""], [rb"\\.", b"", b""], [rb"\\.", b"", b"", b"x"], [b""] * 3):
        assert decoded("1.dat", copied(rows)) == proven(rows)


# --- what is not


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["1.dat", "blob_1.dat"])
def test_a_member_cut_anywhere_is_refused(name: str, suffix: str) -> None:
    packed = PACKERS[suffix](copied([b"1\tone", b"2\ttwo", rb"3\t\N"]))
    # 0 bytes are a whole large object, and one that is not compressed shows no end: its size is toc.dat's business
    lengths = range(len(packed)) if name == "1.dat" else range(1, len(packed)) if suffix else ()
    for length in lengths:
        refused(f"{name}{suffix}", packed[:length])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_0_byte_table_is_refused(suffix: str) -> None:
    assert "end marker" in str(refused(f"1.dat{suffix}", b"").detail)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_cut_between_frames_is_caught_by_the_marker(suffix: str) -> None:
    stream = copied([b"1", b"2", b"3"])
    for length in range(len(stream)):
        whole_frames = b"".join(PACKERS[suffix](part) for part in (stream[: length // 2], stream[length // 2 : length]))
        assert "end marker" in str(refused(f"1.dat{suffix}", whole_frames).detail)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_cut_after_rows_that_look_like_the_marker_is_caught(suffix: str) -> None:
    """Of one column of texts: a backslash with a full stop, and two empty ones. Their last bytes are the marker's."""
    stream = copied([rb"\\.", b"", b"", b"more"])
    cut = stream[: stream.index(b"more")]
    assert cut.endswith(END_MARKER)
    refused(f"1.dat{suffix}", PACKERS[suffix](cut))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "end", [b"", b"\\.", b"\\.\n", b"\\.\n\n", b"\\.\n\n\n\n", b"\\.\n\n\nx", b"\n\n\n", b"x\\.\n\n\n"]
)
def test_rows_with_another_end_are_refused(suffix: str, end: bytes) -> None:
    refused(f"1.dat{suffix}", PACKERS[suffix](b"1\n2\n" + end))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["1.dat", "blob_1.dat"])
@pytest.mark.parametrize("garbage", [b"\0", b"\n", b"x", b"garbage", bytes(512), b"\x1f", b"\x28\xb5\x2f"])
def test_garbage_after_the_last_frame_is_refused(name: str, suffix: str, garbage: bytes) -> None:
    refused(f"{name}{suffix}", PACKERS[suffix](END_MARKER) + garbage)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_no_flipped_bit_passes_for_something_else(suffix: str) -> None:
    """Frames with a checksum of their own; where a bit means nothing (gzip's time), the content is the same."""
    checked = zstd.ZstdCompressor(options={zstd.CompressionParameter.checksum_flag: 1})
    rows = [b"%d\tsome text" % number for number in range(20)]
    packed = gzip.compress(copied(rows)) if suffix == ".gz" else checked.compress(copied(rows)) + checked.flush()
    survived = 0
    for bit in range(8 * len(packed)):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert decoded(f"1.dat{suffix}", bytes(damaged)) == proven(rows)
            survived += 1
        except VerificationFailed:
            pass
    assert survived <= 8 * 10  # gzip's header


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["1.dat", "blob_1.dat"])
@settings(deadline=None)
@given(data=st.binary(min_size=1, max_size=200))
def test_arbitrary_bytes_are_refused_and_never_anything_worse(name: str, suffix: str, data: bytes) -> None:
    refused(f"{name}{suffix}", data)


def test_rows_under_the_wrong_suffix_are_refused() -> None:
    stream = copied([b"1"])
    for suffix, other in ((".gz", ".zst"), (".zst", ".gz"), ("", ".gz"), ("", ".zst")):
        refused(f"1.dat{other}", PACKERS[suffix](stream))


# --- memory

BOMB = """
import resource, sys
from backupd.decode import Decoder

decoder, before = Decoder(sys.argv[2]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open(sys.argv[1], "rb") as file:
    while chunk := file.read(1 << 20):
        decoder.feed(chunk)
raw_bytes = decoder.finish().raw_bytes
print(raw_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def zeros_zst(window_log: int) -> bytes:
    """A GB of zeros in one frame that asks for such a window."""
    parameters: dict[int, int] = {
        zstd.CompressionParameter.window_log: window_log,
        zstd.CompressionParameter.compression_level: 1,
    }
    stream, zeros = zstd.ZstdCompressor(options=parameters), bytes(1 << 20)
    return b"".join([*(stream.compress(zeros) for _ in range(1024)), stream.flush()])


def zeros_gz() -> bytes:
    """A GB of zeros in one gzip member."""
    stream, zeros = zlib.compressobj(1, wbits=31), bytes(1 << 20)
    return b"".join([*(stream.compress(zeros) for _ in range(1024)), stream.flush()])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_gigabyte_in_one_frame_takes_little_memory(suffix: str, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb"
    bomb.write_bytes(zeros_gz() if suffix == ".gz" else zeros_zst(decode.WINDOW_LOG_LIMIT))
    argv = [sys.executable, "-c", BOMB, str(bomb), f"blob_1.dat{suffix}"]
    said = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    raw_bytes, grown_kilobytes = (int(word) for word in said.split())
    assert raw_bytes == 1 << 30
    assert grown_kilobytes < 50 * 1024


@pytest.mark.slow
def test_a_row_without_an_end_is_refused_before_it_fills_the_memory() -> None:
    rows = decode.lines("1.dat", [b"1\n", b"22", *[bytes(1000)] * 10], 5000)

    assert next(rows) == b"1"
    with pytest.raises(VerificationFailed, match="damaged") as caught:
        next(rows)
    assert "a row of more than 5000 bytes" in str(caught.value.detail)
    longest = [b"1" * 5000 + b"\n", b"2" * 5000, b"\n\\.\n\n\n"]
    assert [len(row) for row in decode.lines("1.dat", longest, 5000)] == [5000, 5000]


def test_a_frame_that_asks_for_a_huge_window_is_refused() -> None:
    assert "does not decode" in str(refused("blob_1.dat.zst", zeros_zst(27)).detail)


# --- frames of memory


@settings(deadline=None)
@given(st.binary(max_size=1000))
def test_what_was_packed_is_unpacked(data: bytes) -> None:
    assert unpack(pack(data), len(data), "index of x") == data


def test_more_than_the_limit_is_not_unpacked() -> None:
    with pytest.raises(VerificationFailed, match="index of x is larger than 999 bytes"):
        unpack(pack(bytes(1000)), 999, "index of x")
    with pytest.raises(VerificationFailed, match="larger"):
        unpack(pack(bytes(100 << 20)), 1 << 20, "index of x")


def test_a_frame_that_is_not_one_and_whole_is_not_unpacked() -> None:
    packed = pack(b"an index")
    damaged = [packed[:length] for length in range(len(packed))]
    damaged += [packed + b"x", packed + packed, b"garbage", b"\0" * 20]
    for data in damaged:
        with pytest.raises(VerificationFailed, match="index of x is damaged"):
            unpack(data, 1000, "index of x")


# --- names


@pytest.mark.parametrize(
    ("name", "table", "oid"),
    [
        ("3456.dat", True, None),
        ("3456.dat.gz", True, None),
        ("3456.dat.zst", True, None),
        ("blob_16686.dat", False, 16686),
        ("blob_16686.dat.gz", False, 16686),
        ("blob_16686.dat.zst", False, 16686),
        ("toc.dat", False, None),
        ("blobs.toc", False, None),
        ("blobs_123.toc", False, None),
        ("README.txt", False, None),
        ("index.json.zst", False, None),
        ("3456.dat.lz4", False, None),
        ("3456.dat\n", False, None),
        ("٣.dat", False, None),
        ("x3456.dat", False, None),
        ("blob_.dat", False, None),
        ("blob_1.dat.zst.zst", False, None),
    ],
)
def test_a_name_says_what_a_member_holds(name: str, table: bool, oid: int | None) -> None:
    assert (is_table(name), large_object_oid(name)) == (table, oid)
