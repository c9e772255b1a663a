"""What is read from a store: format version 1 for ever, and nothing that is cut, hostile or of the future."""

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_backups import made_backup, made_manifest, made_note

from backupd.errors import VerificationFailed, VersionMismatch
from backupd.manifest import (
    FORMAT,
    MANIFEST_LIMIT_BYTES,
    Contract,
    DatabaseProperties,
    Extension,
    Filter,
    Grant,
    Index,
    LargeObject,
    Manifest,
    Member,
    Note,
    Sequence,
    Setting,
    SkippedTable,
    Source,
    Table,
    Totals,
    load_index,
    load_manifest,
    load_note,
    to_json,
)

FORMAT_1 = Path(__file__).parent / "data" / "format-1"
ID = "20261123T221614Z-3f9ac21b"
EMPTY = "99aa06d3014798d86001c324468d497f"  # xxh3_128 of nothing
NOW = datetime(2026, 11, 24, 5, tzinfo=UTC)

MANIFEST_1 = Manifest(
    format=1,
    id=ID,
    backupd_version="0.1.0",
    source=Source("prod", "café", "7572817403186593893"),
    server_version="17.12",
    server_version_num=170012,
    client_version="17.12",
    standby=False,
    started_at=datetime(2026, 11, 23, 22, 16, 14, 250000, tzinfo=UTC),
    finished_at=datetime(2026, 11, 23, 22, 19, 51, tzinfo=UTC),
    database_bytes=98765432,
    archive_bytes=40960,
    archive_sha256="1f" * 32,
    index_offset=35328,
    index_bytes=1234,
    index_sha256="2e" * 32,
    totals=Totals(tables=3, rows=1204339, raw_bytes=87654337, large_objects=1, members=7),
    compression="zstd:1",
    jobs=2,
    rewrite_check="done",
    filter=Filter(("shop.*",), ("shop.sessions",)),
    suspect="rows of shop.orders fell from 1000000 to 10",
    recipients=(),
    warnings=("pg_dump: warning: there are circular foreign-key constraints",),
)

MANIFEST_2 = replace(
    MANIFEST_1,
    format=2,
    filter=Filter(sha256="002ad53854edcbd6b79e309793d3885310c1ad5fddf51b942e35c974585b08cc"),
    suspect="10 rows in all, and at least 1000000 in the earlier backup",
    recipients=(
        "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kudhqrqfsl6nvgz",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN",
    ),
    warnings=(),
)

INDEX_1 = Index(
    format=1,
    id=ID,
    members=(
        Member("README.txt", 512, 900, "a1" * 32),
        Member("3456.dat.zst", 2048, 20000, "b2" * 32),
        Member("3457.dat.gz", 22528, 60, "c3" * 32),
        Member("3458.dat.zst", 23552, 19, "d4" * 32),
        Member("blob_16686.dat.zst", 24576, 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        Member("blobs_16686.toc", 25088, 26, "e5" * 32),
        Member("toc.dat", 26112, 8192, "f6" * 32),
    ),
    contract=Contract(
        database=DatabaseProperties(
            owner="shop owner",
            encoding="UTF8",
            locale_provider="i",
            collate="C",
            ctype="C.UTF-8",
            locale="en-US",
            icu_rules="&V << w",
            comment='the shop\'s "own"\nsecond line',
            connection_limit=50,
            settings=(Setting("", "search_path", "shop, public"), Setting("reader", "work_mem", "64MB")),
            grants=(Grant("", "CONNECT", False), Grant("shop owner", "CREATE", True)),
        ),
        tables=(
            Table(
                schema="shop",
                name="orders",
                oid=16400,
                member="3456.dat.zst",
                rows=1204337,
                raw_bytes=87654321,
                fingerprint="0a" * 16,
                copy_statement="COPY shop.orders (id, total) FROM stdin;\n",
                via_root=False,
            ),
            Table(
                schema="shop",
                name="events_0",
                oid=16410,
                member="3457.dat.gz",
                rows=2,
                raw_bytes=11,
                fingerprint="1b" * 16,
                copy_statement="COPY shop.events (id) FROM stdin;\n",
                via_root=True,
            ),
            Table(
                schema="we ird",
                name='ta"ble\n♥',
                oid=4294967295,
                member="3458.dat.zst",
                rows=0,
                raw_bytes=5,
                fingerprint=EMPTY,
                copy_statement='COPY "we ird"."ta""ble\n♥" (x) FROM stdin;\n',
                via_root=False,
            ),
        ),
        skipped=(SkippedTable("shop", "totals", "materialised view: filled by a refresh"),),
        sequences=(
            Sequence("shop", "orders_id_seq", -(1 << 63), True),
            Sequence("shop", "unused", 1, False),
        ),
        large_objects=(LargeObject(16686, 0, EMPTY),),
        extensions=(Extension("hstore", "1.8", "shop"),),
        roles=("reader", "shop owner"),
    ),
)

NOTE_1 = Note(
    "verified",
    3,
    NOW,
    False,
    {"error": "member 3456.dat.zst is damaged", "level": None, "members": 2, "share": 0.5, "again": True},
)

Load = Callable[[bytes, str], Manifest | Index | Note]
EXAMPLES: Mapping[str, tuple[Load, Manifest | Index | Note]] = {
    "manifest": (load_manifest, MANIFEST_1),
    "index": (load_index, INDEX_1),
    "note": (load_note, NOTE_1),
}
NAMES = pytest.mark.parametrize("name", EXAMPLES)


def example(name: str) -> bytes:
    return (FORMAT_1 / f"{name}.json").read_bytes()


def changed(name: str, path: str, value: object) -> bytes:
    """The example with another value at that path, as `contract.tables.0.rows`; `...` removes it."""
    document = json.loads(example(name))
    *parents, last = path.split(".")
    place = document
    for step in parents:
        place = place[int(step) if isinstance(place, list) else step]
    if value is ...:
        del place[last]
    else:
        place[int(last) if isinstance(place, list) else last] = value
    return json.dumps(document).encode()


# --- for ever


@NAMES
def test_what_version_1_wrote_is_read_as_it_was_meant(name: str) -> None:
    load, expected = EXAMPLES[name]
    assert load(example(name), "of a test") == expected


def test_what_version_2_wrote_is_read_as_it_was_meant() -> None:
    assert load_manifest((FORMAT_1.parent / "format-2" / "manifest.json").read_bytes(), "of a test") == MANIFEST_2


def test_a_hidden_filter_equals_the_patterns_that_it_hides_and_no_others() -> None:
    patterns = Filter(("shop.*",), ("shop.sessions",))
    assert patterns.hidden() == patterns == MANIFEST_2.filter
    assert (patterns.hidden().include, patterns.hidden().exclude) == ((), ())
    assert len({patterns, patterns.hidden(), patterns.hidden().hidden()}) == 1
    assert patterns.hidden() != Filter(("shop.sessions",), ("shop.*",)).hidden()
    assert patterns != Filter(("shop.*", "shop.sessions"))


@NAMES
def test_what_is_written_is_read_back_equal(name: str) -> None:
    load, value = EXAMPLES[name]
    written = to_json(value)
    assert load(written, "of a test") == value
    assert written.count(b"\n") == 1
    assert written.endswith(b"\n")


def test_what_version_1_could_leave_out_may_be_missing() -> None:
    document = json.loads(example("manifest"))
    for name in ("rewrite_check", "filter", "suspect", "recipients", "warnings"):
        del document[name]
    loaded = load_manifest(json.dumps(document).encode(), "of a test")
    assert loaded == replace(MANIFEST_1, filter=None, suspect=None, warnings=())
    document = json.loads(example("index"))
    document["contract"] = {"database": document["contract"]["database"]}
    database = document["contract"]["database"]
    for name in ("locale", "icu_rules", "comment", "connection_limit", "settings", "grants"):
        del database[name]
    properties = DatabaseProperties("shop owner", "UTF8", "i", "C", "C.UTF-8", None, None, None, -1, (), None)
    assert load_index(json.dumps(document).encode(), "of a test").contract == Contract(properties)


@NAMES
def test_fields_that_are_not_known_are_passed_over(name: str) -> None:
    load, expected = EXAMPLES[name]
    assert load(changed(name, "from_the_future", {"a": [1]}), "of a test") == expected


@pytest.mark.parametrize("name", ["manifest", "index"])
@pytest.mark.parametrize("version", [FORMAT + 1, 10**30])
def test_a_future_version_says_so_whatever_else_it_changed(name: str, version: int) -> None:
    load, _ = EXAMPLES[name]
    for data in (changed(name, "format", version), b'{"format": %d, "anything": "else"}' % version):
        with pytest.raises(VersionMismatch, match=f"{name} of a test has format version {version}") as caught:
            load(data, "of a test")
        assert "tar and pg_restore" in str(caught.value.hint)


text = st.text(max_size=20)
counts = st.integers(min_value=0, max_value=(1 << 63) - 1)


@settings(deadline=None)
@given(
    st.builds(
        DatabaseProperties,
        owner=text,
        encoding=text,
        locale_provider=st.sampled_from("cib"),
        collate=text,
        ctype=text,
        comment=st.none() | text,
        settings=st.lists(st.builds(Setting, text, text, text), max_size=3).map(tuple),
        grants=st.none() | st.lists(st.builds(Grant, text, text, st.booleans()), max_size=3).map(tuple),
    ),
    st.lists(st.builds(SkippedTable, text, text, text), max_size=3).map(tuple),
    st.lists(st.builds(Sequence, text, text, st.integers(-(1 << 63), (1 << 63) - 1), st.booleans()), max_size=3),
    st.lists(st.builds(LargeObject, counts, counts, st.just(EMPTY)), max_size=3),
)
def test_any_names_and_numbers_of_a_contract_survive(
    properties: DatabaseProperties,
    skipped: tuple[SkippedTable, ...],
    sequences: list[Sequence],
    objects: list[LargeObject],
) -> None:
    contract = Contract(properties, skipped=skipped, sequences=tuple(sequences), large_objects=tuple(objects))
    index = Index(FORMAT, ID, (), contract)
    assert load_index(to_json(index), "of a test") == index


# --- what is damaged


@NAMES
def test_a_document_cut_anywhere_is_refused(name: str) -> None:
    load, _ = EXAMPLES[name]
    whole = example(name).rstrip()
    for length in range(len(whole)):
        with pytest.raises(VerificationFailed, match=f"{name} of a test is damaged"):
            load(whole[:length], "of a test")


@NAMES
@settings(deadline=None)
@given(position=st.integers(0, 1 << 16), byte=st.integers(0, 255))
def test_a_changed_byte_gives_a_document_or_a_refusal_and_nothing_worse(name: str, position: int, byte: int) -> None:
    load, _ = EXAMPLES[name]
    data = bytearray(example(name))
    data[position % len(data)] = byte
    with contextlib.suppress(VerificationFailed, VersionMismatch):
        assert isinstance(load(bytes(data), "of a test"), Manifest | Index | Note)


@NAMES
@settings(deadline=None)
@given(data=st.binary(max_size=200) | st.text(max_size=50).map(str.encode))
def test_arbitrary_bytes_are_refused(name: str, data: bytes) -> None:
    with pytest.raises(VerificationFailed, match="is damaged"):
        EXAMPLES[name][0](data, "of a test")


@NAMES
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"1",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"format": ' + b"[" * 100_000,
        b'{"format": ' + b"1" * 100_000,
        b'{"format": 1} trailing',
        b'\xef\xbb\xbf{"format": 1}',
        '{"format": 1}'.encode("utf-16"),
        b'{"format": NaN}',
        b'{"format": "1"}',
        b'{"format": 1.0}',
        b'{"format": true}',
        b'{"format": null}',
        b'{"format": 1, "id": "\\ud800"}',
        b'{"format": 1, "id": "\xff"}',
    ],
    ids=lambda data: ascii(data[:30]),
)
def test_what_is_no_such_document_is_refused(name: str, data: bytes) -> None:
    with pytest.raises(VerificationFailed, match=f"{name} of a test is damaged"):
        EXAMPLES[name][0](data, "of a test")


def test_a_manifest_that_is_not_small_is_refused() -> None:
    padded = example("manifest").rstrip()
    whole = padded[:-1] + b" " * (MANIFEST_LIMIT_BYTES - len(padded)) + b"}"
    assert len(whole) == MANIFEST_LIMIT_BYTES
    assert load_manifest(whole, "of a test") == MANIFEST_1
    with pytest.raises(VerificationFailed, match="larger"):
        load_manifest(whole + b" ", "of a test")


HOSTILE: list[tuple[str, str, Any]] = [
    *(("manifest", "id", value) for value in ("", "x", f"{ID}\n", f"../{ID}", ID.upper(), f"{ID}/x", 5, None)),
    *(("manifest", name, ...) for name in ("id", "source", "started_at", "totals", "archive_sha256", "index_bytes")),
    *(
        ("manifest", name, value)
        for name in ("archive_bytes", "index_offset", "index_bytes", "totals.rows", "database_bytes")
        for value in (-1, 1 << 63, 1.5, "1", None, True, [1])
    ),
    *(("manifest", name, "f" * 63) for name in ("archive_sha256", "index_sha256")),
    ("manifest", "archive_sha256", "F" * 64),
    ("manifest", "archive_sha256", "f" * 64 + "\n"),
    *(("manifest", "started_at", value) for value in ("2026-11-23T22:16:14", "yesterday", 1795472174, None)),
    ("manifest", "source.server", 1),
    ("manifest", "source", "prod/app"),
    ("manifest", "standby", 0),
    ("manifest", "warnings", "one"),
    ("manifest", "filter", ["shop.*"]),
    *(
        ("index", "members.0.name", value)
        for value in (
            "",
            ".",
            "..",
            "../x",
            "/etc/passwd",
            "a/b",
            "a\\b",
            ".hidden",
            "x\n",
            "x\0",
            "x y",
            "ä",
            "a" * 201,
            None,
            7,
        )
    ),
    *(("index", "contract.tables.0.member", value) for value in ("../x", "/x", "a/b", "")),
    *(("index", f"members.0.{name}", value) for name in ("offset", "size_bytes") for value in (-1, 1 << 63, "0", None)),
    *(("index", "members.0.sha256", value) for value in ("", "x" * 64, "0" * 65, None)),
    *(("index", "contract.tables.0.fingerprint", value) for value in ("", "g" * 32, "0" * 33)),
    *(("index", "contract.tables.0.rows", value) for value in (-1, 1 << 63, "5", None)),
    ("index", "contract", ...),
    ("index", "contract.database", ...),
    ("index", "members", {}),
    ("index", "id", "x"),
    ("note", "kind", "beloved"),
    ("note", "number", -1),
    ("note", "ok", "yes"),
    ("note", "at", "2026-11-24T05:00:00"),
    ("note", "facts", []),
    ("note", "facts", {"nested": {"a": 1}}),
]


@pytest.mark.parametrize(("name", "path", "value"), HOSTILE, ids=lambda value: ascii(value)[:40])
def test_a_value_that_cannot_be_is_refused_and_its_place_is_named(name: str, path: str, value: object) -> None:
    with pytest.raises(VerificationFailed, match=f"{name} of a test is damaged") as caught:
        EXAMPLES[name][0](changed(name, path, value), "of a test")
    assert str(caught.value.detail).startswith(f"At {path.partition('.')[0]}")


def test_a_refusal_does_not_repeat_what_it_refused() -> None:
    """It may be a secret, or a megabyte."""
    with pytest.raises(VerificationFailed) as caught:
        load_manifest(changed("manifest", "archive_bytes", "canary" * 1000), "of a test")
    assert "canary" not in str(caught.value)


# --- a backup


def test_of_one_kind_of_note_the_highest_number_counts() -> None:
    notes = [made_note("pinned", NOW + timedelta(days=-n), ok=n % 2 == 0, number=n) for n in (2, 10, 9, 1)]
    backup = made_backup(made_manifest(NOW), notes=notes)
    counted = backup.note("pinned")
    assert counted is not None
    assert counted.number == 10
    assert backup.pinned
    assert not replace(backup, notes=(*notes, made_note("pinned", NOW, ok=False, number=11))).pinned
    assert backup.note("drilled") is None


def test_an_adopted_backup_is_of_the_identity_that_took_it_over() -> None:
    backup = made_backup(made_manifest(NOW), notes=[made_note("adopted", NOW, system_identifier="99")])
    assert backup.source == replace(backup.manifest.source, system_identifier="99")
    assert replace(backup, notes=()).source == backup.manifest.source
    undone = replace(backup, notes=(*backup.notes, made_note("adopted", NOW, ok=False, number=2)))
    assert undone.source == backup.manifest.source


@pytest.mark.parametrize(
    ("suspect", "notes", "expected"),
    [
        (None, {}, None),
        ("too few rows", {}, "too few rows"),
        (None, {"verified": True, "drilled": True}, None),
        (None, {"verified": False}, "verified failed: why"),
        (None, {"drilled": False}, "drilled failed: why"),
        (None, {"verified": True, "drilled": False}, "drilled failed: why"),
        ("too few rows", {"verified": True}, "too few rows"),
        ("too few rows", {"confirmed": True}, None),
        ("too few rows", {"confirmed": False}, "too few rows"),
        ("too few rows", {"confirmed": True, "verified": False}, "verified failed: why"),
        ("too few rows", {"pinned": True}, "too few rows"),
    ],
)
def test_a_backup_is_suspect_as_long_as_a_reason_stands(
    suspect: str | None, notes: Mapping[Any, bool], expected: str | None
) -> None:
    made = [made_note(kind, NOW, ok=ok, error="why") for kind, ok in notes.items()]
    assert made_backup(made_manifest(NOW, suspect=suspect), notes=made).suspect == expected
