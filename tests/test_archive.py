"""Members to a tar stream and back: any tar reads it, the reader trusts nothing in it, and no flipped byte passes."""

import contextlib
import hashlib
import io
import json
import os
import shlex
import signal
import stat
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import psycopg
import pytest
from fix_postgres import DatabaseFactory, PostgresServer
from made_archives import (
    EMPTY_MANIFEST,
    ID,
    KEY,
    MEMBERS,
    PROPERTIES,
    STARTED_AT,
    BreakingStream,
    Made,
    SlowStream,
    WatchedStore,
    contract_of,
    make_archive,
    manifest_of,
)
from psycopg import sql

from backupd import archive, decode, readme
from backupd.errors import Interrupted, NoRoom, NotFound, StoreError, UsageError, VerificationFailed, VersionMismatch
from backupd.manifest import FORMAT, Contract, DatabaseProperties, Index, Manifest, Member
from backupd.store import Store
from backupd.store.local import LocalStore

NOTHING = Contract(PROPERTIES)
SIZES = (0, 1, 511, 512, 513, 1024, 10_240, archive.CHUNK_BYTES - 1, archive.CHUNK_BYTES, archive.CHUNK_BYTES + 1)


def nothing(_: object, __: object = None) -> None:
    """Takes what `feed` and `on_bytes` get."""


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A small archive."""
    return make_archive(tmp_path)


@pytest.fixture
def sizes(tmp_path: Path) -> Made:
    """An archive with members of all sizes around a block, a record and a chunk."""
    return make_archive(tmp_path, {f"size-{size}": os.urandom(size) for size in SIZES}, NOTHING)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An empty folder."""
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


# --- writing


def test_tar_lists_and_unpacks_what_was_written(made: Made, target: Path) -> None:
    listed = subprocess.run(["tar", "tf", made.path], capture_output=True, text=True, check=True)
    assert listed.stdout.splitlines() == [f"{ID}/{name}" for name in [*MEMBERS, "index.json.zst"]]
    assert listed.stderr == ""
    subprocess.run(["tar", "xf", made.path], cwd=target, check=True)
    unpacked = {path.name: path.read_bytes() for path in (target / ID).iterdir()}
    index = unpacked.pop("index.json.zst")
    assert unpacked == MEMBERS
    assert hashlib.sha256(index).hexdigest() == made.manifest.index_sha256
    assert {stat.S_IMODE(path.stat().st_mode) for path in (target / ID).iterdir()} == {0o600}


def test_members_of_any_size_are_whole_in_the_tar(sizes: Made) -> None:
    with tarfile.open(sizes.path, "r:") as tar:
        members = tar.getmembers()
        for member in members[:-1]:
            size = int(member.name.rpartition("-")[2])
            assert member.isreg()
            assert (member.size, member.mtime, member.mode) == (size, STARTED_AT.timestamp(), 0o600)
            assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
            extracted = tar.extractfile(member)
            assert extracted is not None
            promised = next(each for each in sizes.index.members if f"{ID}/{each.name}" == member.name)
            assert hashlib.sha256(extracted.read()).hexdigest() == promised.sha256
    assert len(members) == len(SIZES) + 1
    assert members[-1].name == f"{ID}/index.json.zst"


def test_offsets_point_at_the_bytes(sizes: Made) -> None:
    data = sizes.path.read_bytes()
    for member in sizes.index.members:
        stored = data[member.offset : member.offset + member.size_bytes]
        assert (len(stored), hashlib.sha256(stored).hexdigest()) == (member.size_bytes, member.sha256)
    start, size = sizes.manifest.index_offset, sizes.manifest.index_bytes
    packed = data[start : start + size]
    assert hashlib.sha256(packed).hexdigest() == sizes.manifest.index_sha256
    plain = subprocess.run(["zstd", "-dc"], input=packed, capture_output=True, check=True).stdout
    assert json.loads(plain)["members"] == [asdict(member) for member in sizes.index.members]


def test_a_manifest_knows_the_archive_s_size_and_hash(sizes: Made) -> None:
    data = sizes.path.read_bytes()
    assert len(data) == sizes.manifest.archive_bytes
    assert len(data) % tarfile.RECORDSIZE == 0
    assert data.endswith(bytes(2 * tarfile.BLOCKSIZE))
    assert hashlib.sha256(data).hexdigest() == sizes.manifest.archive_sha256


def test_an_archive_of_nothing_is_an_archive(tmp_path: Path) -> None:
    made = make_archive(tmp_path, {}, NOTHING)
    assert made.index == Index(1, ID, (), NOTHING)
    archive.verify(made.archive, made.index, nothing)


def test_a_member_of_more_than_8_gib_has_its_size_in_a_pax_header(tmp_path: Path) -> None:
    """The old header's field ends there. The archive is cut after its header, and the bytes are a hole."""
    size, path = 9 << 30, tmp_path / "sparse.tar"
    with path.open("wb") as file:
        writer = archive.Writer(file, ID, STARTED_AT)
        with pytest.raises(VerificationFailed):
            writer.add_stream("3456.dat.zst", size, io.BytesIO(), nothing)
        header_bytes = writer.written_bytes
    os.truncate(path, header_bytes + size + tarfile.RECORDSIZE)
    listed = subprocess.run(["tar", "tvf", path], capture_output=True, text=True, check=True)
    assert str(size) in listed.stdout.split()
    with tarfile.open(path, "r:") as tar:
        [member] = tar.getmembers()
    assert (member.name, member.size, member.offset_data) == (f"{ID}/3456.dat.zst", size, header_bytes)


def store_member(store: Store, name: str, source: BinaryIO, feed: Callable[[bytes], None]) -> None:
    """Stores an archive of one member that is said to have 100 bytes."""
    with store.create(KEY) as stream:
        archive.Writer(stream, ID, STARTED_AT).add_stream(name, 100, source, feed)


@pytest.mark.parametrize("found", [0, 99, 101, 100 + archive.CHUNK_BYTES, 10 * archive.CHUNK_BYTES])
def test_a_member_that_changes_while_it_is_read_is_refused_and_leaves_nothing(tmp_path: Path, found: int) -> None:
    with pytest.raises(VerificationFailed, match=r"member 1\.dat changed while it was read") as caught:
        store_member(LocalStore(tmp_path), "1.dat", io.BytesIO(bytes(found)), nothing)
    assert "100 bytes" in str(caught.value.detail)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_member_that_grows_for_ever_is_given_up() -> None:
    written = io.BytesIO()
    writer = archive.Writer(written, ID, STARTED_AT)
    with pytest.raises(VerificationFailed, match="changed"):
        writer.add_stream("1.dat", 2000, SlowStream(), nothing)  # type: ignore[arg-type]
    assert len(written.getvalue()) < 10_000


def test_a_member_is_fed_byte_for_byte_on_its_way() -> None:
    data, fed = os.urandom(3 * archive.CHUNK_BYTES + 7), io.BytesIO()
    writer = archive.Writer(io.BytesIO(), ID, STARTED_AT)
    member = writer.add_stream("1.dat", len(data), io.BytesIO(data), lambda chunk: nothing(fed.write(chunk)))
    assert fed.getvalue() == data
    assert member == Member("1.dat", 512, len(data), hashlib.sha256(data).hexdigest())


def test_a_member_is_read_once_and_in_chunks() -> None:
    reads: list[int | None] = []

    class Source(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            reads.append(size)
            return super().read(size)

    writer = archive.Writer(io.BytesIO(), ID, STARTED_AT)
    writer.add_stream("1.dat", 1 << 20, Source(bytes(1 << 20)), nothing)
    assert reads == [archive.CHUNK_BYTES] * 5


def test_what_the_reader_of_a_member_raises_ends_the_archive(tmp_path: Path) -> None:
    store, decoder = LocalStore(tmp_path), decode.Decoder("1.dat.zst")
    with pytest.raises(VerificationFailed, match=r"member 1\.dat\.zst is damaged"):
        store_member(store, "1.dat.zst", io.BytesIO(b"x" * 100), decoder.feed)
    assert list(store.list()) == []


# --- the readme


def commands(like: DatabaseProperties) -> list[str]:
    """The commands of a readme."""
    text = readme.text(ID, "17.12", like)
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


def test_the_readme_names_tar_createdb_and_pg_restore() -> None:
    assert commands(PROPERTIES) == [
        f"tar xf {ID}.tar",
        "createdb --template=template0 --encoding=UTF8 --lc-collate=C.UTF-8 --lc-ctype=C.UTF-8 restored",
        f"pg_restore --exit-on-error --jobs=4 --dbname=restored {ID}/",
    ]
    assert "pg_restore 17 or newer" in readme.text(ID, "17.12", PROPERTIES)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, []),
        ({"locale_provider": "i", "locale": "en-US"}, ["--locale-provider=icu", "--icu-locale=en-US"]),
        (
            {"locale_provider": "i", "locale": "und", "icu_rules": "&V << w; touch x"},
            ["--locale-provider=icu", "--icu-locale=und", "--icu-rules=&V << w; touch x"],
        ),
        ({"locale_provider": "b", "locale": "C.UTF-8"}, ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]),
    ],
)
def test_the_readme_makes_a_database_with_an_equal_locale(changes: Mapping[str, Any], options: list[str]) -> None:
    like = replace(PROPERTIES, collate="$(touch x)", **changes)
    words = shlex.split(commands(like)[1])
    plain = ["createdb", "--template=template0", "--encoding=UTF8", "--lc-collate=$(touch x)", "--lc-ctype=C.UTF-8"]
    assert words == [*plain, *options, "restored"]


LOCALE = (
    "SELECT to_jsonb(d) - ARRAY['oid', 'datname', 'datdba', 'datfrozenxid', 'datminmxid', 'dattablespace']"
    " FROM pg_database d WHERE datname = %s"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "major", "changes"),
    [
        ("LOCALE 'C'", 15, {"collate": "C", "ctype": "C"}),
        (
            "LOCALE_PROVIDER icu ICU_LOCALE 'en-US' LC_COLLATE 'C' LC_CTYPE 'C'",
            15,
            {"collate": "C", "ctype": "C", "locale_provider": "i", "locale": "en-US"},
        ),
        (
            "LOCALE_PROVIDER icu ICU_LOCALE 'en-US' ICU_RULES '&V << w' LC_COLLATE 'C' LC_CTYPE 'C'",
            18,
            {"collate": "C", "ctype": "C", "locale_provider": "i", "locale": "en-US", "icu_rules": "&V << w"},
        ),
        (
            "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' LC_COLLATE 'C' LC_CTYPE 'C'",
            17,
            {"collate": "C", "ctype": "C", "locale_provider": "b", "locale": "C.UTF-8"},
        ),
    ],
    ids=["libc", "icu", "icu with rules", "builtin"],
)
def test_the_readme_s_createdb_gives_what_the_source_was(
    options: str, major: int, changes: Mapping[str, Any], request: pytest.FixtureRequest, database: DatabaseFactory
) -> None:
    server: PostgresServer = request.getfixturevalue(f"postgres{major}")
    try:
        source = database(server, options=f"ENCODING 'UTF8' {options}")
    except psycopg.errors.FeatureNotSupported as exc:
        pytest.skip(str(exc))
    command = commands(replace(PROPERTIES, **changes))[1].removesuffix("restored") + f"{source}_2"
    environment = {
        "PATH": f"{server.bin_directory}{os.pathsep}{os.environ['PATH']}",
        "PGHOST": server.host,
        "PGPORT": str(server.port),
        "PGUSER": server.user,
    }
    subprocess.run(["sh", "-ec", command], env=environment, check=True)
    with server.connect() as connection:
        rows = [connection.execute(LOCALE, [name]).fetchone() for name in (source, f"{source}_2")]
        connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(f"{source}_2")))
    assert rows[0] == rows[1]


# --- reading the index


def with_index(folder: Path, packed: bytes, members: Mapping[str, bytes] = MEMBERS) -> tuple[Store, Manifest]:
    """An archive whose index is whatever is given, with a manifest that swears to it."""
    store = LocalStore(folder)
    with store.create(KEY) as stream:
        writer = archive.Writer(stream, ID, STARTED_AT)
        for name, data in members.items():
            writer.add(name, data)
        entry = writer.add("index.json.zst", packed)
        stream.write(bytes(1024))
    written = archive.Written(writer.written_bytes + 1024, "a" * 64, entry, len(members))
    return store, manifest_of(written)


def document(made: Made) -> dict[str, Any]:
    """The index as JSON."""
    value: dict[str, Any] = json.loads(json.dumps(asdict(made.index)))
    return value


def test_the_index_is_read_by_one_range(made: Made) -> None:
    watched = WatchedStore(made.store)
    assert archive.read_index(archive.Archive(watched, KEY, made.manifest)) == made.index
    assert watched.opened == [(made.manifest.index_offset, made.manifest.index_bytes)]


def test_an_index_with_any_flipped_bit_is_refused(made: Made) -> None:
    for position in range(made.manifest.index_offset, made.manifest.index_offset + made.manifest.index_bytes):
        made.flip(position)
        with pytest.raises(VerificationFailed, match=f"index of {KEY} is damaged"):
            archive.read_index(made.archive)
        made.flip(position)
    assert archive.read_index(made.archive) == made.index


Change = Callable[[dict[str, Any]], object]
LAST = len(MEMBERS) - 1
LAYOUTS: dict[str, Change] = {
    "overlapping": lambda it: it["members"][1].update(offset=it["members"][0]["offset"] + 1),
    "overlapping backwards": lambda it: it["members"][LAST].update(offset=it["members"][0]["offset"]),
    "duplicate name": lambda it: it["members"][2].update(name=it["members"][1]["name"]),
    "twice the same": lambda it: it["members"].append(it["members"][0]),
    "negative size": lambda it: it["members"][1].update(size_bytes=-1),
    "negative offset": lambda it: it["members"][0].update(offset=-1),
    "huge size": lambda it: it["members"][LAST].update(size_bytes=(1 << 63) - 1),
    "huger size": lambda it: it["members"][LAST].update(size_bytes=1 << 63),
    "huge offset": lambda it: it["members"][LAST].update(offset=(1 << 63) - 1),
    "into the index": lambda it: it["members"][LAST].update(size_bytes=4096),
    "beyond the archive": lambda it: it["members"][LAST].update(offset=1 << 20),
    "another id": lambda it: it.update(id="20261123T221615Z-00000000"),
    "no id": lambda it: it.update(id="../x"),
    "no members": lambda it: it.pop("members"),
    **{
        f"name {name!r}": (lambda it, name=name: it["members"][1].update(name=name))  # type: ignore[misc]
        for name in ("", ".", "..", "../x", "/x", "a/b", "a\\b", ".x", "x\n", "x\0", "x y", "é", "x" * 201)
    },
}


@pytest.mark.parametrize("change", LAYOUTS.values(), ids=LAYOUTS)
def test_an_index_that_cannot_be_of_this_archive_is_refused(made: Made, tmp_path: Path, change: Change) -> None:
    it = document(made)
    change(it)
    (tmp_path / "other").mkdir()
    store, manifest = with_index(tmp_path / "other", decode.pack(json.dumps(it).encode()))
    with pytest.raises(VerificationFailed, match=f"index of {KEY} is damaged"):
        archive.read_index(archive.Archive(store, KEY, manifest))


def test_an_index_that_was_not_changed_passes_through_the_same_hands(made: Made, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    store, manifest = with_index(tmp_path / "other", decode.pack(json.dumps(document(made)).encode()))
    assert archive.read_index(archive.Archive(store, KEY, manifest)) == made.index


def test_the_order_in_the_index_does_not_matter(made: Made, tmp_path: Path) -> None:
    it = document(made)
    it["members"].reverse()
    (tmp_path / "other").mkdir()
    store, manifest = with_index(tmp_path / "other", decode.pack(json.dumps(it).encode()))
    assert len(archive.read_index(archive.Archive(store, KEY, manifest)).members) == len(MEMBERS)


def test_an_index_of_a_future_version_says_so(made: Made, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    packed = decode.pack(json.dumps(document(made) | {"format": FORMAT + 1, "members": "elsewhere"}).encode())
    store, manifest = with_index(tmp_path / "other", packed)
    with pytest.raises(VersionMismatch, match=f"index of {KEY} has format version {FORMAT + 1}"):
        archive.read_index(archive.Archive(store, KEY, manifest))


@pytest.mark.parametrize("length", [0, 1, 8, 40, -1])
def test_an_index_whose_frame_is_cut_is_refused_though_its_hash_is_right(
    made: Made, tmp_path: Path, length: int
) -> None:
    (tmp_path / "other").mkdir()
    store, manifest = with_index(tmp_path / "other", decode.pack(json.dumps(document(made)).encode())[:length])
    with pytest.raises(VerificationFailed, match=f"index of {KEY} is damaged"):
        archive.read_index(archive.Archive(store, KEY, manifest))


@pytest.mark.slow
def test_an_index_that_expands_without_measure_is_refused(tmp_path: Path) -> None:
    store, manifest = with_index(tmp_path, decode.pack(bytes(2 * archive.INDEX_LIMIT_BYTES)))
    assert manifest.index_bytes < 100_000
    with pytest.raises(VerificationFailed, match=f"index of {KEY} is larger"):
        archive.read_index(archive.Archive(store, KEY, manifest))


def test_an_index_that_is_too_large_is_not_even_read(made: Made) -> None:
    watched = WatchedStore(made.store)
    with pytest.raises(VerificationFailed, match=f"index of {KEY} is larger"):
        archive.read_index(
            archive.Archive(watched, KEY, replace(made.manifest, index_bytes=archive.INDEX_LIMIT_BYTES + 1))
        )
    assert watched.opened == []


def test_an_index_that_is_not_there_is_the_store_s_to_say(made: Made) -> None:
    with pytest.raises(StoreError, match="too short"):
        archive.read_index(archive.Archive(made.store, KEY, replace(made.manifest, index_offset=1 << 30)))
    made.store.delete(KEY)
    with pytest.raises(NotFound, match=KEY):
        archive.read_index(made.archive)


# --- verifying


def verified(made: Made) -> dict[str, bytes]:
    """What `verify` gave of each member."""
    fed: dict[str, bytes] = {}

    def look(member: Member, content: archive.Content) -> None:
        fed[member.name] = b"".join(content.chunks)
        assert len(fed[member.name]) == content.size_bytes

    archive.verify(made.archive, made.index, look)
    return fed


def test_verify_reads_the_archive_once_and_gives_every_member(sizes: Made) -> None:
    watched, ended = WatchedStore(sizes.store), list[str]()

    def look(member: Member, _: archive.Content) -> None:
        ended.append(member.name)

    archive.verify(archive.Archive(watched, KEY, sizes.manifest), sizes.index, look)
    assert len(watched.opened) == 1
    assert ended == [f"size-{size}" for size in SIZES]
    assert {name: hashlib.sha256(data).hexdigest() for name, data in verified(sizes).items()} == {
        member.name: member.sha256 for member in sizes.index.members
    }


def test_every_byte_that_is_flipped_is_found_in_headers_and_padding_too(made: Made) -> None:
    for position in range(made.manifest.archive_bytes):
        made.flip(position)
        with pytest.raises(VerificationFailed):
            archive.verify(made.archive, made.index, nothing)
        made.flip(position)
    archive.verify(made.archive, made.index, nothing)


def test_a_flipped_byte_names_its_member_and_no_later_one_is_given(made: Made) -> None:
    damaged = made.index.members[2]
    made.flip(damaged.offset)
    fed: list[str] = []
    with pytest.raises(VerificationFailed, match=f"member {damaged.name} of {KEY} is damaged") as caught:
        archive.verify(made.archive, made.index, lambda member, _: fed.append(member.name))
    assert set(fed) == {member.name for member in made.index.members[:3]}
    assert "`backupd list`" in str(caught.value.hint)


def test_members_that_changed_places_are_found(tmp_path: Path) -> None:
    made = make_archive(tmp_path, {"1.dat": b"one" + decode.END_MARKER, "2.dat": b"two" + decode.END_MARKER}, NOTHING)
    data = bytearray(made.path.read_bytes())
    one, two = made.index.members
    first, second = (slice(each.offset, each.offset + each.size_bytes) for each in (one, two))
    data[first], data[second] = data[second], data[first]
    made.path.write_bytes(data)
    with pytest.raises(VerificationFailed, match=r"member 1\.dat"):
        archive.verify(made.archive, made.index, nothing)


def test_an_archive_cut_at_any_block_is_found(made: Made) -> None:
    for length in range(made.manifest.archive_bytes - 512, -1, -512):
        os.truncate(made.path, length)
        with pytest.raises(VerificationFailed, match=f"{KEY} is cut"):
            archive.verify(made.archive, made.index, nothing)


@pytest.mark.parametrize("more", [b"\0", bytes(10_240), b"x"])
def test_an_archive_that_goes_on_is_found(made: Made, more: bytes) -> None:
    with made.path.open("ab") as file:
        file.write(more)
    with pytest.raises(VerificationFailed, match=f"archive {KEY} is damaged") as caught:
        archive.verify(made.archive, made.index, nothing)
    assert "goes on" in str(caught.value.detail)


def test_a_store_that_breaks_off_is_no_damage(made: Made) -> None:
    watched = WatchedStore(made.store, replace_stream=lambda _, stream: BreakingStream(stream, 3000))
    with pytest.raises(StoreError, match="broke off"):
        archive.verify(archive.Archive(watched, KEY, made.manifest), made.index, nothing)


# --- fetching


def files(folder: Path) -> dict[str, bytes]:
    """Every file below the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if not path.is_dir()}


def test_fetch_writes_exactly_the_members_as_private_regular_files(sizes: Made, target: Path) -> None:
    arrived: list[int] = []
    archive.fetch(sizes.archive, sizes.index.members, target, arrived.append)
    assert {name: hashlib.sha256(data).hexdigest() for name, data in files(target).items()} == {
        member.name: member.sha256 for member in sizes.index.members
    }
    assert sum(arrived) == sum(SIZES)
    for path in target.iterdir():
        assert stat.S_ISREG(path.lstat().st_mode)
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600


def test_fetch_of_some_members_writes_only_those(made: Made, target: Path) -> None:
    wanted = made.index.members[1::2]
    archive.fetch(made.archive, wanted, target, nothing)
    assert files(target) == {member.name: MEMBERS[member.name] for member in wanted}


def test_fetch_of_nothing_asks_for_nothing(made: Made, target: Path) -> None:
    watched = WatchedStore(made.store)
    archive.fetch(archive.Archive(watched, KEY, EMPTY_MANIFEST), [], target, nothing)
    assert (watched.opened, files(target)) == ([], {})


def test_many_small_members_are_asked_for_in_few_ranges(tmp_path: Path, target: Path) -> None:
    members = {f"{number}.dat": b"%d\n" % number for number in range(2000)}
    made = make_archive(tmp_path, members, NOTHING)
    watched = WatchedStore(made.store)
    archive.fetch(archive.Archive(watched, KEY, EMPTY_MANIFEST), made.index.members, target, nothing)
    assert files(target) == members
    assert len(watched.opened) == 1


def test_ranges_are_bounded_and_the_largest_comes_first(tmp_path: Path, target: Path) -> None:
    sizes = [4 << 20, 4 << 20, 4 << 20, 15 << 20, 1000]
    members = {f"{number}.dat": bytes([number]) * size for number, size in enumerate(sizes)}
    made = make_archive(tmp_path, members, NOTHING)
    watched = WatchedStore(made.store)
    archive.fetch(archive.Archive(watched, KEY, EMPTY_MANIFEST), made.index.members, target, nothing)
    assert files(target) == members
    offsets = {member.offset: member.name for member in made.index.members}
    opened = {offsets[start]: length or 0 for start, length in watched.opened}
    assert set(opened) == {"0.dat", "3.dat"}
    assert max(opened.values()) <= archive.RANGE_BYTES
    assert opened["3.dat"] in [length for _, length in watched.opened[:2]]


def test_a_large_archive_is_read_in_few_ranges(tmp_path: Path, target: Path) -> None:
    """rclone hashes the whole object for each of them."""
    members = {f"{number}.dat": bytes([number]) * (1 << 20) for number in range(160)}
    made = make_archive(tmp_path, members, NOTHING)
    watched = WatchedStore(made.store)
    archive.fetch(archive.Archive(watched, KEY, EMPTY_MANIFEST), made.index.members, target, nothing)
    assert files(target) == members
    assert len(watched.opened) <= archive.RANGES_PER_THREAD * archive.FETCH_THREADS + 1


def test_members_far_apart_are_not_joined_by_what_lies_between(tmp_path: Path, target: Path) -> None:
    members = {"1.dat": b"one", "2.dat": bytes(100_000), "3.dat": b"three"}
    made = make_archive(tmp_path, members, NOTHING)
    watched = WatchedStore(made.store)
    archive.fetch(
        archive.Archive(watched, KEY, EMPTY_MANIFEST), [made.index.members[0], made.index.members[2]], target, nothing
    )
    assert sorted(length or 0 for _, length in watched.opened) == [3, 5]


def test_progress_is_counted_by_one_thread_at_a_time(tmp_path: Path, target: Path) -> None:
    members = {f"{number}.dat": bytes(17 << 20) for number in range(2)}
    made = make_archive(tmp_path, members, NOTHING)
    inside, threads, arrived = threading.Lock(), set[str](), list[int]()

    def count(size_bytes: int) -> None:
        assert inside.acquire(blocking=False)
        threads.add(threading.current_thread().name)
        time.sleep(0.001)
        arrived.append(size_bytes)
        inside.release()

    archive.fetch(made.archive, made.index.members, target, count)
    assert sum(arrived) == 34 << 20
    assert len(threads) == archive.FETCH_THREADS


@pytest.mark.parametrize("number", [number for number, data in enumerate(MEMBERS.values()) if data])
def test_a_damaged_member_is_removed_and_never_given_to_anyone(made: Made, target: Path, number: int) -> None:
    damaged = made.index.members[number]
    made.flip(damaged.offset + damaged.size_bytes - 1)
    with pytest.raises(VerificationFailed, match=f"member {damaged.name} of {KEY} is damaged"):
        archive.fetch(made.archive, made.index.members, target, nothing)
    assert files(target) == {name: MEMBERS[name] for name in list(MEMBERS)[:number]}


def test_an_existing_file_is_refused_and_stays(made: Made, target: Path) -> None:
    (target / "toc.dat").write_bytes(b"somebody's")
    with pytest.raises(UsageError, match=r"toc\.dat") as caught:
        archive.fetch(made.archive, made.index.members, target, nothing)
    assert "exists" in str(caught.value.detail)
    assert files(target)["toc.dat"] == b"somebody's"


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing"])
def test_a_planted_link_is_not_followed(made: Made, target: Path, tmp_path: Path, there: bool) -> None:
    victim = tmp_path / "victim"
    if there:
        victim.write_bytes(b"precious")
    (target / "toc.dat").symlink_to(victim)
    with pytest.raises(UsageError, match=r"toc\.dat"):
        archive.fetch(made.archive, made.index.members, target, nothing)
    assert victim.exists() == there
    assert not there or victim.read_bytes() == b"precious"
    assert (target / "toc.dat").is_symlink()


def test_a_folder_that_does_not_exist_is_a_usage_error(made: Made, target: Path) -> None:
    with pytest.raises(UsageError, match="missing"):
        archive.fetch(made.archive, made.index.members, target / "missing", nothing)


def test_a_store_that_breaks_off_leaves_only_whole_files(sizes: Made, target: Path) -> None:
    half = sizes.index.members[-1].offset + sizes.index.members[-1].size_bytes // 2 - sizes.index.members[0].offset
    watched = WatchedStore(sizes.store, replace_stream=lambda _, stream: BreakingStream(stream, half))
    with pytest.raises(StoreError, match="broke off"):
        archive.fetch(archive.Archive(watched, KEY, EMPTY_MANIFEST), sizes.index.members, target, nothing)
    assert set(files(target)) == {member.name for member in sizes.index.members[:-1]}
    for member in sizes.index.members[:-1]:
        assert hashlib.sha256((target / member.name).read_bytes()).hexdigest() == member.sha256


def test_a_range_that_ends_early_is_a_cut_archive(made: Made, target: Path) -> None:
    """A store must not do that; one that does is not believed."""
    watched = WatchedStore(made.store, replace_stream=lambda _, stream: io.BytesIO(stream.read(600)))
    with pytest.raises(VerificationFailed, match=f"{KEY} is cut"):
        archive.fetch(archive.Archive(watched, KEY, EMPTY_MANIFEST), made.index.members, target, nothing)
    assert set(files(target)) <= {"README.txt"}


@pytest.fixture
def endless(tmp_path: Path) -> tuple[WatchedStore, list[Member]]:
    """A member that takes hours to arrive, and a small one that is damaged."""
    made = make_archive(tmp_path, {"1.dat": b"x", "2.dat": b"y"}, NOTHING)
    one, two = made.index.members

    def slow(start: int, stream: BinaryIO) -> BinaryIO:
        return stream if start == two.offset else SlowStream()  # type: ignore[return-value]

    made.flip(two.offset)
    # its range is longer than others are joined to; the slow stream has more than it asks for
    os.truncate(made.path, 1 << 37)
    return WatchedStore(made.store, replace_stream=slow), [replace(one, size_bytes=1 << 36, offset=1 << 30), two]


def test_a_failure_does_not_wait_for_a_long_member(endless: tuple[WatchedStore, list[Member]], target: Path) -> None:
    store, members = endless
    began = time.monotonic()
    with pytest.raises(VerificationFailed, match=r"2\.dat"):
        archive.fetch(archive.Archive(store, KEY, EMPTY_MANIFEST), members, target, nothing)
    assert time.monotonic() - began < 5
    assert files(target) == {}


@contextlib.contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Raises Interrupted in the main thread, as the handler of SIGTERM does."""

    def interrupt(number: int, _: FrameType | None) -> None:
        raise Interrupted(number)

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_interrupted_fetch_ends_at_once_and_leaves_no_half_file(
    endless: tuple[WatchedStore, list[Member]], target: Path
) -> None:
    store, members = endless
    began = time.monotonic()
    with pytest.raises(Interrupted), interrupted_after(0.3):
        archive.fetch(archive.Archive(store, KEY, EMPTY_MANIFEST), members[:1], target, nothing)
    assert time.monotonic() - began < 5
    assert files(target) == {}
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("fetch")] == []


# --- a disk that is full


@pytest.fixture
def small_target(target: Path) -> Iterator[Path]:
    """A folder with room for 96 KiB."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "none", target], capture_output=True).returncode:
        pytest.skip("only root may mount")
    yield target
    subprocess.run(["umount", "--lazy", target], check=True)


@pytest.mark.slow
def test_a_full_disk_is_no_room_and_what_is_whole_stays(tmp_path: Path, small_target: Path) -> None:
    members = {"1.dat": os.urandom(30_000), "2.dat": os.urandom(30_000), "3.dat": os.urandom(3 << 20)}
    made = make_archive(tmp_path, members, NOTHING)
    with pytest.raises(NoRoom, match=r"3\.dat") as caught:
        archive.fetch(made.archive, made.index.members, small_target, nothing)
    assert "BACKUPD_SCRATCH__DIRECTORY" in str(caught.value.hint)
    assert files(small_target) == {name: members[name] for name in ("1.dat", "2.dat")}


@pytest.mark.slow
@pytest.mark.parametrize("size", [98_305, 100_000, 102_400, archive.CHUNK_BYTES])
def test_a_disk_that_takes_half_of_the_last_chunk_is_no_room(tmp_path: Path, small_target: Path, size: int) -> None:
    """The system then writes what it can and reports no error: the file would be cut, its hash right."""
    made = make_archive(tmp_path, {"1.dat": os.urandom(size)}, NOTHING)
    with pytest.raises(NoRoom, match=r"1\.dat"):
        archive.fetch(made.archive, made.index.members, small_target, nothing)
    assert files(small_target) == {}


@pytest.mark.slow
def test_a_disk_that_is_just_large_enough_is_enough(tmp_path: Path, small_target: Path) -> None:
    made = make_archive(tmp_path, {"1.dat": os.urandom(98_304)}, NOTHING)
    archive.fetch(made.archive, made.index.members, small_target, nothing)
    assert (small_target / "1.dat").stat().st_size == 98_304


def test_what_is_promised_of_the_members_here_is_what_they_hold() -> None:
    """The other tests stand on it."""
    contract = contract_of(MEMBERS)
    assert [(table.member, table.rows) for table in contract.tables] == [("3456.dat.zst", 2), ("3457.dat", 0)]
    assert [(item.oid, item.raw_bytes) for item in contract.large_objects] == [(16686, 14), (16687, 0)]
