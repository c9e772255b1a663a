"""The catalog on a real directory: what is listed is complete, what is not is named, and nothing else is touched."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count, product
from pathlib import Path
from typing import BinaryIO

import pytest
from fix_store import StoreCase
from made_backups import ARCHIVE, made_backup, made_manifest, made_note
from structlog.testing import capture_logs

from backupd.catalog import Catalog, Listing, new_id
from backupd.errors import (
    AccessRefused,
    AlreadyExists,
    NotFound,
    StoreError,
    UsageError,
    VerificationFailed,
    VersionMismatch,
)
from backupd.freshness import Freshness, check
from backupd.layout import archive_key, manifest_key, note_key
from backupd.manifest import FORMAT, Backup, Filter, Manifest, NoteKind, to_json
from backupd.selector import Label, name_of
from backupd.store import Entry, Store
from backupd.store.local import LocalStore

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
START = datetime(2026, 11, 1, 22, tzinfo=UTC)
DAY = timedelta(days=1)


class Doctored:
    """A real store with a hook before each list, read and delete, and old lists that are given first."""

    def __init__(
        self,
        store: Store,
        hook: Callable[[str, str], None] = lambda action, key: None,
        old_lists: Sequence[Sequence[Entry]] = (),
    ) -> None:
        self.store, self.hook, self.old_lists = store, hook, list(old_lists)

    @property
    def url(self) -> str:
        return self.store.url

    def create(self, key: str, expected_bytes: int = 0) -> AbstractContextManager[BinaryIO]:
        return self.store.create(key, expected_bytes)

    def open(self, key: str, start: int = 0, length: int | None = None) -> AbstractContextManager[BinaryIO]:
        self.hook("open", key)
        return self.store.open(key, start, length)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        if self.old_lists:
            return iter(self.old_lists.pop())
        self.hook("list", prefix)
        return self.store.list(prefix)

    def delete(self, key: str) -> None:
        self.hook("delete", key)
        self.store.delete(key)

    def sweep(self, prefix: str, idle_since: datetime) -> Sequence[str]:
        return self.store.sweep(prefix, idle_since)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(LocalStore(tmp_path))


def put(catalog: Catalog, key: str, data: bytes) -> None:
    with catalog.store.create(key) as stream:
        stream.write(data)


def take(catalog: Catalog, manifest: Manifest) -> Backup:
    """A backup as `backup` takes it."""
    put(catalog, archive_key(name_of(Backup(manifest))), ARCHIVE)
    return catalog.commit(manifest)


def keys(catalog: Catalog) -> list[str]:
    return [entry.key for entry in catalog.store.list()]


def ids(listing: Listing) -> list[str]:
    return [backup.id for backup in listing.backups]


def one(catalog: Catalog) -> Backup:
    (backup,) = catalog.backups().backups
    return backup


# --- keys


def test_an_id_is_the_utc_time_of_the_start_and_eight_hex_digits() -> None:
    berlin = datetime.fromisoformat("2026-11-23T23:16:14.987654+01:00")

    assert new_id(berlin, "3f9ac21b") == "20261123T221614Z-3f9ac21b"


def test_the_keys_of_a_backup_are_those_of_the_format() -> None:
    name = name_of(made_backup(made_manifest(START, database="né/1")))

    assert archive_key(name) == "prod/n%C3%A9%2F1/20261101T220000Z-00000000.tar"
    assert manifest_key(name) == "prod/n%C3%A9%2F1/20261101T220000Z-00000000.json"
    assert note_key(name, "pinned", 2) == "prod/n%C3%A9%2F1/20261101T220000Z-00000000.pinned-2.json"


# --- commit and list


def test_what_was_committed_is_listed_as_it_was_newest_first(catalog: Catalog) -> None:
    manifests = [made_manifest(START + days * DAY) for days in (1, 0, 2)]
    taken = [take(catalog, manifest) for manifest in manifests]

    listing = catalog.backups()

    assert listing == Listing((taken[2], taken[0], taken[1]))
    assert [backup.manifest for backup in listing.backups] == [manifests[2], manifests[0], manifests[1]]


def test_an_empty_store_has_no_backups(catalog: Catalog) -> None:
    assert catalog.backups() == Listing(())
    assert catalog.backups("prod", "app") == Listing(())


def test_an_archive_is_an_orphan_until_its_manifest_is_written(catalog: Catalog) -> None:
    manifest = made_manifest(START)
    put(catalog, archive_key(name_of(Backup(manifest))), ARCHIVE)

    before = catalog.backups()
    catalog.commit(manifest)
    after = catalog.backups()

    assert (before.backups, [entry.key for entry in before.orphans]) == ((), ["prod/app/20261101T220000Z-00000000.tar"])
    assert (ids(after), after.orphans) == (["20261101T220000Z-00000000"], ())


def test_a_manifest_without_its_archive_is_not_committed(catalog: Catalog) -> None:
    with pytest.raises(VerificationFailed, match=r"archive prod/app/20261101T220000Z-00000000\.tar is missing"):
        catalog.commit(made_manifest(START))
    assert keys(catalog) == []


def test_a_manifest_with_another_size_of_the_archive_is_not_committed(catalog: Catalog) -> None:
    manifest = made_manifest(START)
    put(catalog, archive_key(name_of(Backup(manifest))), ARCHIVE[:-1])

    with pytest.raises(VerificationFailed, match=f"has {len(ARCHIVE) - 1} bytes, its manifest says {len(ARCHIVE)}"):
        catalog.commit(manifest)
    assert keys(catalog) == [archive_key(name_of(Backup(manifest)))]


def test_a_manifest_that_could_not_be_read_again_is_not_committed(catalog: Catalog) -> None:
    manifest = replace(made_manifest(START), archive_sha256="none")
    put(catalog, archive_key(name_of(Backup(manifest))), ARCHIVE)

    with pytest.raises(VerificationFailed, match="At archive_sha256"):
        catalog.commit(manifest)
    assert catalog.backups().backups == ()


def test_a_backup_is_committed_once(catalog: Catalog) -> None:
    backup = take(catalog, made_manifest(START))

    with pytest.raises(AlreadyExists):
        catalog.commit(replace(backup.manifest, jobs=1))
    assert one(catalog) == backup


def test_only_what_was_asked_for_is_listed(catalog: Catalog) -> None:
    for number, (server, database) in enumerate([("prod", "app"), ("prod", "app2"), ("prod2", "app"), ("prod", "ap")]):
        take(catalog, made_manifest(START, number=number, server=server, database=database))
        put(catalog, f"{server}/{database}/20261102T220000Z-00000000.tar", ARCHIVE)

    def labels(server: str | None, database: str | None) -> list[str]:
        listing = catalog.backups(server, database)
        assert len(listing.backups) == len(listing.orphans)
        return sorted(str(name_of(backup).label) for backup in listing.backups)

    assert labels("prod", "app") == ["prod/app"]
    assert labels("prod", None) == ["prod/ap", "prod/app", "prod/app2"]
    assert labels(None, "app") == ["prod/app", "prod2/app"]
    assert len(labels(None, None)) == 4


@pytest.mark.parametrize("database", ["../x", ".", "..", "%2e", 'we"ird; DROP', "né", "line\nbreak", "é" * 31 + "x"])
def test_a_hostile_name_is_filed_found_noted_swept_and_deleted_like_any_other(catalog: Catalog, database: str) -> None:
    neighbour = take(catalog, made_manifest(START, database="app"))
    backup = take(catalog, made_manifest(START, database=database, server=".."))
    backup = catalog.note(backup, "pinned", True, {}, NOW)
    put(catalog, archive_key(replace(name_of(backup), id="20250101T000000Z-00000000")), ARCHIVE)

    assert catalog.backups("..", database).backups == (backup,)
    assert catalog.find(f"{Label('..', database)}@latest") == backup
    assert catalog.sweep("..", database, NOW) == [f"{name_of(backup).label}/20250101T000000Z-00000000.tar"]
    catalog.delete(backup)
    assert catalog.backups() == Listing((neighbour,))


def test_files_of_others_in_the_store_are_passed_over_and_left_alone(catalog: Catalog, tmp_path: Path) -> None:
    backup = take(catalog, made_manifest(START))
    foreign = [
        "README",
        "prod/notes.json",
        "prod/app/20261101T220000Z-00000000.tar.bak",
        "prod/app/20261101T220000Z-00000000.pinned-0.json",
        "prod/app/20261101T220000Z-00000000.pinned.json",
        "prod/app/20261101T220000Z.json",
        "prod/app/deeper/20261101T220000Z-00000000.tar",
        "prod/%61pp/20261101T220000Z-00000000.json",
        "prod/app%/20261101T220000Z-00000000.tar",
    ]
    for key in foreign:
        (tmp_path / key).parent.mkdir(exist_ok=True)
        (tmp_path / key).write_text("not ours")

    assert catalog.backups() == Listing((backup,))
    assert catalog.sweep("prod", "app", NOW) == []
    catalog.delete(backup)
    assert sorted(keys(catalog)) == sorted(foreign)


# --- broken


def broken_files(tmp_path: Path) -> dict[str, tuple[str, type[Exception]]]:
    """Spoils every backup but the newest; what is to be said of each."""
    folder = tmp_path / "prod" / "app"
    manifests = iter(sorted(folder.glob("*.json")))
    said: dict[str, tuple[str, type[Exception]]] = {}

    def spoil(data: bytes, message: str, error: type[Exception] = VerificationFailed) -> None:
        path = next(manifests)
        path.write_bytes(data.replace(b"20261101T220000Z", path.name[:16].encode()))
        said[f"prod/app/{path.name}"] = (message, error)

    whole = to_json(made_manifest(START))
    value = json.loads(whole)
    spoil(b"", "is damaged")
    spoil(whole[:-40], "is damaged")
    spoil(b"\xff\xfe\x00", "is damaged")
    spoil(b"[" * 100_000, "is damaged")
    spoil(b" " * (1 << 20) + whole, "is larger than 1048576 bytes")
    spoil(json.dumps({**value, "format": FORMAT + 1}).encode(), f"has format version {FORMAT + 1}", VersionMismatch)
    spoil(json.dumps({**value, "id": "../../../etc/passwd"}).encode(), "is damaged")
    spoil(json.dumps({**value, "archive_bytes": -1}).encode(), "is damaged")
    spoil(json.dumps({**value, "archive_bytes": 7}).encode(), f"has {len(ARCHIVE)} bytes, its manifest says 7")
    spoil(json.dumps({**value, "id": "20200101T000000Z-00000000"}).encode(), "is another backup's")
    for field, name in {"server": "staging", "database": "app2"}.items():
        source = {**value["source"], field: name}
        spoil(json.dumps({**value, "source": source}).encode(), "is another backup's")
    path = next(manifests)
    path.with_suffix(".tar").unlink()
    said[f"prod/app/{path.name}"] = (f"archive prod/app/{path.stem}.tar is missing", VerificationFailed)
    return said


def test_a_broken_manifest_is_named_and_never_offered_and_stops_no_other(catalog: Catalog, tmp_path: Path) -> None:
    manifests = [made_manifest(START + days * DAY) for days in range(14)]
    for manifest in manifests:
        take(catalog, manifest)
    said = broken_files(tmp_path)

    listing = catalog.backups()

    assert len(said) == 13
    assert ids(listing) == [manifests[13].id]
    assert {each.key: type(each.error) for each in listing.broken} == {key: error for key, (_, error) in said.items()}
    for each in listing.broken:
        assert said[each.key][0] in each.error.message
    assert listing.orphans == ()
    assert catalog.sweep("prod", "app", NOW) == []
    with capture_logs() as events:
        assert catalog.find("latest").id == manifests[13].id
    assert {event["key"] for event in events if event["event"] == "backup.broken"} == set(said)


def test_swapped_manifests_are_two_broken_backups(catalog: Catalog, tmp_path: Path) -> None:
    first = tmp_path / manifest_key(name_of(take(catalog, made_manifest(START))))
    second = tmp_path / manifest_key(name_of(take(catalog, made_manifest(START, database="app2"))))
    one_text, other_text = first.read_bytes(), second.read_bytes()
    first.write_bytes(other_text)
    second.write_bytes(one_text)

    listing = catalog.backups()

    assert listing.backups == ()
    assert [each.error.message for each in listing.broken] == [
        "manifest prod/app/20261101T220000Z-00000000.json is another backup's",
        "manifest prod/app2/20261101T220000Z-00000000.json is another backup's",
    ]


def test_a_broken_backup_that_is_asked_for_says_what_is_wrong_with_it(catalog: Catalog, tmp_path: Path) -> None:
    broken = take(catalog, made_manifest(START))
    take(catalog, made_manifest(START + DAY))
    (tmp_path / archive_key(name_of(broken))).write_bytes(b"short")

    with pytest.raises(VerificationFailed, match="has 5 bytes"):
        catalog.find(broken.id[:12])


def test_an_archive_without_a_manifest_and_notes_without_one_are_orphans(catalog: Catalog, tmp_path: Path) -> None:
    whole = take(catalog, made_manifest(START))
    cut = catalog.note(take(catalog, made_manifest(START + DAY)), "pinned", True, {}, NOW)
    (tmp_path / manifest_key(name_of(cut))).unlink()

    listing = catalog.backups()

    assert listing.backups == (whole,)
    assert [entry.key for entry in listing.orphans] == [
        note_key(name_of(cut), "pinned", 1),
        archive_key(name_of(cut)),
    ]


# --- notes


def test_the_newest_note_of_a_kind_counts(catalog: Catalog) -> None:
    backup = take(catalog, made_manifest(START))
    answers = [True, False] * 5 + [True]

    for ok in answers:
        backup = catalog.note(backup, "pinned", ok, {}, NOW)
        assert backup.pinned is ok
        assert one(catalog).pinned is ok
    assert [note.number for note in one(catalog).notes] == [11]


def test_notes_of_different_kinds_do_not_touch_each_other(catalog: Catalog) -> None:
    backup = take(catalog, made_manifest(START, suspect="rows fell by half"))
    kinds: list[NoteKind] = ["verified", "drilled", "pinned", "adopted", "retired", "confirmed"]

    for kind in kinds:
        catalog.note(backup, kind, True, {"system_identifier": "9"}, NOW)

    got = one(catalog)
    assert {(note.kind, note.number) for note in got.notes} == {(kind, 1) for kind in kinds}
    assert (got.suspect, got.pinned, got.source.system_identifier) == (None, True, "9")


def test_a_note_has_its_facts(catalog: Catalog) -> None:
    facts: dict[str, str | int | float | bool | None]
    facts = {"seconds": 12.5, "level": "identical", "tables": 3, "error": None, "slow": False}
    noted = catalog.note(take(catalog, made_manifest(START)), "drilled", True, facts, NOW)

    assert one(catalog) == noted
    assert one(catalog).notes[0].facts == facts
    assert one(catalog).notes[0].at == NOW


def test_two_writers_of_notes_do_not_overwrite_each_other(catalog: Catalog) -> None:
    """Both know the backup without notes."""
    backup = take(catalog, made_manifest(START))
    errors: list[Exception] = []

    def write() -> None:
        try:
            for _ in range(8):
                catalog.note(backup, "verified", True, {}, NOW)
        except StoreError as exc:  # pragma: no cover
            errors.append(exc)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert len([key for key in keys(catalog) if ".verified-" in key]) == 16
    assert one(catalog).notes[0].number == 16


def test_a_note_on_a_deleted_backup_is_refused(catalog: Catalog) -> None:
    backup = take(catalog, made_manifest(START))
    catalog.delete(backup)

    with pytest.raises(NotFound, match="was deleted meanwhile"):
        catalog.note(backup, "pinned", True, {}, NOW)
    assert keys(catalog) == []


@pytest.mark.parametrize("text", ["", "{", '{"kind":"pinned","number":1,"at":"2026-11-24T12:00:00Z","ok":false}'])
def test_an_unreadable_note_is_named_and_counts_as_its_cautious_answer(
    catalog: Catalog, tmp_path: Path, text: str
) -> None:
    """The last text is a good note in the wrong place: number 1 is not number 2."""
    backup = take(catalog, made_manifest(START, suspect="rows fell by half"))
    kinds: list[NoteKind] = ["verified", "pinned", "adopted", "retired", "confirmed"]
    for kind in kinds:
        key = note_key(name_of(catalog.note(backup, kind, kind != "pinned", {"system_identifier": "9"}, NOW)), kind, 1)
        (tmp_path / key).rename(tmp_path / key.replace("-1.json", "-2.json"))
        (tmp_path / key.replace("-1.json", "-2.json")).write_text(text)

    listing = catalog.backups()

    (got,) = listing.backups
    assert got.pinned
    assert got.suspect == "verified failed: its note cannot be read"
    assert got.source == backup.source
    assert sorted(each.key for each in listing.broken) == sorted(note_key(name_of(got), kind, 2) for kind in kinds)
    assert not catalog.note(got, "pinned", False, {}, NOW).pinned


def test_an_object_too_large_for_a_manifest_or_note_is_not_even_read(catalog: Catalog) -> None:
    backup = take(catalog, made_manifest(START))
    put(catalog, note_key(name_of(backup), "verified", 1), b" " * ((1 << 20) + 1))
    put(catalog, "prod/app/20261102T220000Z-00000000.json", b" " * ((1 << 20) + 1))
    opened: list[str] = []

    listing = Catalog(Doctored(catalog.store, failing(opened, set(), StoreError("")))).backups()

    assert opened == [manifest_key(name_of(backup))]
    assert [each.error.message for each in listing.broken] == [
        "object prod/app/20261101T220000Z-00000000.verified-1.json is larger than 1048576 bytes",
        "object prod/app/20261102T220000Z-00000000.json is larger than 1048576 bytes",
    ]


def test_a_note_of_a_later_backupd_is_left_alone_until_its_backup_goes(catalog: Catalog) -> None:
    backup = take(catalog, made_manifest(START))
    put(catalog, "prod/app/20261101T220000Z-00000000.praised-1.json", b"{}")

    assert catalog.backups() == Listing((backup,))
    catalog.delete(backup)
    assert keys(catalog) == []


# --- delete and sweep


def test_a_delete_that_is_cut_anywhere_leaves_orphans_or_a_whole_backup(tmp_path: Path) -> None:
    for cut in range(5):
        (tmp_path / str(cut)).mkdir()
        catalog = Catalog(LocalStore(tmp_path / str(cut)))
        neighbour = take(catalog, made_manifest(START, number=1))
        backup = catalog.note(take(catalog, made_manifest(START)), "pinned", True, {}, NOW)
        backup = catalog.note(backup, "verified", True, {}, NOW)
        deleted: list[str] = []

        with contextlib.suppress(StoreError):
            Catalog(Doctored(catalog.store, dying(cut, deleted))).delete(backup)
        listing = catalog.backups()
        catalog.sweep("prod", "app", NOW)

        assert len(deleted) == cut
        assert listing.broken == ()
        assert listing.backups == ((neighbour, backup) if cut == 0 else (neighbour,))
        assert len(listing.orphans) == (4 - cut if cut else 0)
        assert catalog.backups() == Listing(listing.backups)


def dying(cut: int, deleted: list[str]) -> Callable[[str, str], None]:
    """A store that is gone after so many deletes."""

    def hook(action: str, key: str) -> None:
        if action == "delete":
            if len(deleted) == cut:
                raise StoreError("the store is gone")
            deleted.append(key)

    return hook


def test_delete_is_content_with_what_is_gone_already(catalog: Catalog) -> None:
    backup = take(catalog, made_manifest(START))
    catalog.delete(backup)

    catalog.delete(backup)

    assert catalog.backups() == Listing(())


def test_sweep_removes_what_earlier_runs_of_that_database_left_and_nothing_else(
    catalog: Catalog, tmp_path: Path
) -> None:
    whole = catalog.note(take(catalog, made_manifest(START)), "pinned", True, {}, NOW)
    left = "20261102T220000Z-00000000"
    for label in ("prod/app", "prod/app2", "staging/app"):
        put(catalog, f"{label}/{left}.tar", ARCHIVE)
        put(catalog, f"{label}/{left}.pinned-1.json", b"")
        (tmp_path / label / f".{left}.tar.0123456789abcdef.tmp").write_bytes(b"half")

    early = catalog.sweep("prod", "app", NOW - timedelta(days=36500))
    late = catalog.sweep("prod", "app", NOW + timedelta(days=36500))

    assert early == [f"prod/app/{left}.pinned-1.json", f"prod/app/{left}.tar"]
    assert late == [f"prod/app/.{left}.tar.0123456789abcdef.tmp"]
    assert catalog.backups("prod", "app") == Listing((whole,))
    assert [entry.key for entry in catalog.backups().orphans] == [
        f"prod/app2/{left}.pinned-1.json",
        f"prod/app2/{left}.tar",
        f"staging/app/{left}.pinned-1.json",
        f"staging/app/{left}.tar",
    ]
    assert len(list(tmp_path.glob("*/*/.*.tmp"))) == 2


@pytest.mark.slow
def test_a_catalog_is_the_same_on_every_store(store_case: StoreCase) -> None:
    catalog = Catalog(store_case.store)
    kept = take(catalog, made_manifest(START, database='we"ird; DROP'))
    gone = take(catalog, made_manifest(START + DAY, database="né/1"))
    noted = catalog.note(catalog.note(kept, "pinned", False, {}, NOW), "pinned", True, {"by": "né"}, NOW)
    put(catalog, archive_key(replace(name_of(gone), id="20250101T000000Z-00000000")), ARCHIVE)

    before = catalog.backups()
    catalog.delete(gone)
    swept = catalog.sweep("prod", "né/1", NOW)

    assert (ids(before), before.broken, len(before.orphans)) == ([gone.id, kept.id], (), 1)
    assert swept == ["prod/n%C3%A9%2F1/20250101T000000Z-00000000.tar"]
    assert [backup.note("pinned") for backup in catalog.backups().backups] == [noted.note("pinned")]
    assert len(keys(catalog)) == 4


def test_a_backup_that_is_committed_behind_the_back_of_a_sweep_stays(catalog: Catalog) -> None:
    backup = take(catalog, made_manifest(START))
    seen = [entry for entry in catalog.store.list() if entry.key != manifest_key(name_of(backup))]

    assert Catalog(Doctored(catalog.store, old_lists=[seen])).sweep("prod", "app", NOW) == []
    assert catalog.backups() == Listing((backup,))


# --- others at work, and stores that fail


def test_a_backup_that_is_deleted_while_it_is_listed_is_gone_not_broken(catalog: Catalog) -> None:
    """The list saw it, with its archive or, as a list is no snapshot, without; then its manifest was deleted first."""
    kept = take(catalog, made_manifest(START))
    gone = catalog.note(take(catalog, made_manifest(START + DAY)), "pinned", True, {}, NOW)
    seen = list(catalog.store.list())
    seen_late = [entry for entry in seen if entry.key != archive_key(name_of(gone))]

    for key_of in (manifest_key, archive_key):
        catalog.store.delete(key_of(name_of(gone)))
        for old in (seen, seen_late):
            listing = Catalog(Doctored(catalog.store, old_lists=[old])).backups()
            assert (listing.backups, listing.broken) == ((kept,), ())


def test_a_backup_that_is_deleted_between_any_two_steps_of_a_list_is_not_broken(tmp_path: Path) -> None:
    """Deleted whole just before the nth look at the store, from a list with its archive and one without."""
    for step, late in product(range(5), (False, True)):
        folder = tmp_path / f"{step}{late}"
        folder.mkdir()
        catalog = Catalog(LocalStore(folder))
        gone = catalog.note(take(catalog, made_manifest(START)), "pinned", True, {}, NOW)
        gone = catalog.note(gone, "verified", True, {}, NOW)
        seen = [entry for entry in catalog.store.list() if not late or entry.key != archive_key(name_of(gone))]
        hook = deleting(catalog, gone, step)

        assert Catalog(Doctored(catalog.store, hook, [seen])).backups().broken == ()


def deleting(catalog: Catalog, gone: Backup, step: int) -> Callable[[str, str], None]:
    steps = count()

    def hook(action: str, key: str) -> None:
        if next(steps) == step:
            catalog.delete(gone)

    return hook


def test_a_backup_that_is_committed_while_it_is_listed_is_whole(catalog: Catalog) -> None:
    """A list may have passed the archive's place before the archive came, and then meet the manifest."""
    backup = take(catalog, made_manifest(START))
    seen = [entry for entry in catalog.store.list() if entry.key != archive_key(name_of(backup))]

    assert Catalog(Doctored(catalog.store, old_lists=[seen])).backups() == Listing((backup,))


def test_listing_while_backups_come_and_go_finds_nothing_broken(catalog: Catalog) -> None:
    stable = take(catalog, made_manifest(START))
    stop = threading.Event()

    def churn() -> None:
        for number in count(1):
            backup = take(catalog, made_manifest(START + DAY, number=number))
            catalog.delete(catalog.note(backup, "verified", True, {}, NOW))
            if stop.is_set():
                return

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        listings = [catalog.backups() for _ in range(60)]
    finally:
        stop.set()
        thread.join()

    assert [listing.broken for listing in listings] == [()] * 60
    assert all(stable in listing.backups for listing in listings)


def failing(opened: list[str], keys: set[str] | None, error: Exception) -> Callable[[str, str], None]:
    """A store that lists, but cannot read some objects, or any."""

    def hook(action: str, key: str) -> None:
        if action == "list":
            return
        opened.append(key)
        if keys is None or key in keys:
            time.sleep(0.01)
            raise error

    return hook


def test_three_unreadable_manifests_are_named_and_four_are_the_stores_failure(catalog: Catalog) -> None:
    names = [manifest_key(name_of(take(catalog, made_manifest(START + days * DAY)))) for days in range(6)]
    error = StoreError("input/output error")

    three = Catalog(Doctored(catalog.store, failing([], set(names[:3]), error))).backups()
    four = Catalog(Doctored(catalog.store, failing([], set(names[:4]), error)))

    assert [each.key for each in three.broken] == names[:3]
    assert len(three.backups) == 3
    with pytest.raises(StoreError, match="input/output error"):
        four.backups()


def test_a_store_that_went_away_is_given_up_early(catalog: Catalog) -> None:
    for number in range(200):
        take(catalog, made_manifest(START, number=number))
    opened: list[str] = []
    refusing = failing(opened, None, AccessRefused("the key was withdrawn"))

    with pytest.raises(AccessRefused, match="the key was withdrawn"):
        Catalog(Doctored(catalog.store, refusing)).backups()
    assert len(opened) < 60


def test_a_store_that_cannot_be_listed_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        Catalog(LocalStore(tmp_path / "not mounted")).backups()


# --- find


def test_find_reads_only_what_it_needs(catalog: Catalog) -> None:
    for number in range(20):
        take(catalog, made_manifest(START + number * DAY, database=("app", "app2")[number % 2]))
    opened: list[str] = []
    reading = Catalog(Doctored(catalog.store, failing(opened, set(), StoreError(""))))

    assert reading.find("20261105").source.database == "app"
    assert opened == ["prod/app/20261105T220000Z-00000000.json"]
    assert reading.find("app2@latest").id == "20261120T220000Z-00000000"
    assert len(opened) == 11


def test_find_refuses_what_names_no_backup(catalog: Catalog) -> None:
    take(catalog, made_manifest(START))

    for text in ("", "2026x", "app2@latest", "app@before:2020-01-01", "prod/app@1999"):
        with pytest.raises(UsageError):
            catalog.find(text)


# --- check


APP, CRM = Label("prod", "app"), Label("prod", "crm")


def checked(*backups: Backup, expected: list[Label] | None = None, patterns: Filter | None = None) -> list[Freshness]:
    newest_first = sorted(backups, key=lambda backup: backup.id, reverse=True)
    return list(check(Listing(tuple(newest_first)), expected, timedelta(hours=26), NOW, patterns))


def ended(
    hours_ago: float, database: str = "app", suspect: str | None = None, patterns: Filter | None = None
) -> Backup:
    started_at = NOW - timedelta(hours=hours_ago, minutes=10)
    return made_backup(made_manifest(started_at, database=database, suspect=suspect, patterns=patterns))


def test_a_database_is_fresh_by_the_end_of_its_newest_good_backup() -> None:
    (fresh,) = checked(ended(26), ended(50))
    (stale,) = checked(ended(26.1), ended(50))

    assert (fresh.label, fresh.finished_at, fresh.stale) == (APP, NOW - timedelta(hours=26), False)
    assert (stale.finished_at, stale.stale) == (NOW - timedelta(hours=26.1), True)
    assert stale.reason == f"the newest good backup {ended(26.1).id} ended 26.1 h ago"


def test_a_suspect_backup_keeps_nothing_fresh() -> None:
    (stale,) = checked(ended(1, suspect="it is empty"), ended(30))
    (none,) = checked(ended(1, suspect="it is empty"))

    assert (stale.stale, stale.finished_at) == (True, NOW - timedelta(hours=30))
    assert (none.stale, none.finished_at, none.reason) == (True, None, "all its backups are suspect")


def test_an_expected_database_without_a_backup_is_stale() -> None:
    got = checked(ended(1), expected=[CRM, APP])

    assert [(each.label, each.stale, each.reason) for each in got] == [
        (APP, False, f"the newest good backup {ended(1).id} ended 1.0 h ago"),
        (CRM, True, "it has no backup"),
    ]


def test_what_is_not_expected_is_not_checked_and_without_a_list_everything_is() -> None:
    assert [each.label for each in checked(ended(1), ended(99, "crm"), expected=[APP])] == [APP]
    assert [each.stale for each in checked(ended(1), ended(99, "crm"))] == [False, True]


def test_a_database_of_which_all_manifests_are_broken_is_stale(catalog: Catalog, tmp_path: Path) -> None:
    backup = take(catalog, made_manifest(START))
    (tmp_path / manifest_key(name_of(backup))).write_bytes(b"")

    (got,) = check(catalog.backups(), None, DAY, NOW)

    assert (got.label, got.stale, got.finished_at) == (APP, True, None)


def test_a_retired_database_is_expected_again_once_it_has_a_newer_backup() -> None:
    def retired(hours_ago: float, ok: bool = True) -> Backup:
        backup = ended(99)
        return replace(backup, notes=(made_note("retired", NOW - timedelta(hours=hours_ago), ok=ok),))

    assert checked(retired(50)) == []
    assert checked(retired(50), expected=[APP]) == []
    assert [each.stale for each in checked(retired(50), ended(30))] == [True]
    assert [each.stale for each in checked(retired(50, ok=False))] == [True]
    assert [each.label for each in checked(retired(50), ended(1, "crm"))] == [CRM]


def test_a_backup_from_the_future_is_no_sign_of_freshness() -> None:
    (got,) = checked(ended(-48))

    assert got.stale
    assert "lies in the future" in got.reason


def test_backups_count_only_with_the_filter_of_the_installation() -> None:
    filtered, other = Filter(exclude=("logs",)), Filter(exclude=("tmp",))
    backups = [ended(1, patterns=other), ended(2, patterns=filtered), ended(40)]

    assert [each.finished_at for each in checked(*backups)] == [NOW - timedelta(hours=40)]
    assert [each.finished_at for each in checked(*backups, patterns=filtered)] == [NOW - timedelta(hours=2)]


def test_a_database_whose_backups_are_filtered_otherwise_is_stale_for_that_reason() -> None:
    (got,) = checked(ended(1, patterns=Filter(exclude=("logs",))))

    assert (got.stale, got.finished_at) == (True, None)
    assert got.reason == "its good backups have another filter than is set here"


def test_what_remembers_reads_nothing_twice_and_misses_nothing_new(catalog: Catalog, tmp_path: Path) -> None:
    opened: list[str] = []
    plain, store = (
        catalog,
        Doctored(catalog.store, lambda action, key: opened.append(key) if action == "open" else None),
    )
    catalog = Catalog(store).remembering()
    first, second = take(plain, made_manifest(START)), take(plain, made_manifest(START + DAY))
    assert catalog.backups() == plain.backups()
    opened.clear()

    assert catalog.backups() == plain.backups()
    assert opened == []

    noted = plain.note(first, "pinned", True, {}, START + DAY)
    third = take(plain, made_manifest(START + 2 * DAY))
    assert catalog.backups() == Listing((third, second, noted))
    assert sorted(opened) == sorted(
        [manifest_key(name_of(first)), note_key(name_of(first), "pinned", 1), manifest_key(name_of(third))]
    )

    plain.delete(second)
    (tmp_path / manifest_key(name_of(third))).write_bytes(b"{")
    listing = catalog.backups()
    assert (ids(listing), len(listing.broken)) == ([first.id], 1)
