"""A catalog with keys: only what is signed counts, whatever somebody who can write to the store puts there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, get_args

import pytest
from fix_store import StoreCase
from hypothesis import given, settings
from hypothesis import strategies as st
from made_archives import Made, make_archive
from made_backups import ARCHIVE, made_backup, made_manifest, made_note
from made_keys import made_keys
from store_memory import MemoryStore
from structlog.testing import capture_logs

from backupd import anomaly, copy, drill, retention, verify
from backupd.catalog import Catalog, Listing
from backupd.errors import AccessRefused, AlreadyExists, NotTrusted, StoreError, VerificationFailed
from backupd.freshness import check
from backupd.layout import SIGNATURE, archive_key, manifest_key, note_key
from backupd.manifest import Backup, Manifest, Note, NoteKind, to_json
from backupd.progress import Progress
from backupd.retention import Policy
from backupd.selector import name_of
from backupd.signing import Keys, sign
from backupd.store.local import LocalStore

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
START = datetime(2026, 11, 1, 22, tzinfo=UTC)
DAY = timedelta(days=1)
KEYS = made_keys()
READER = Keys(trusted=KEYS.trusted)
KINDS: tuple[NoteKind, ...] = get_args(NoteKind)


@dataclass
class Spied(MemoryStore):
    """A store in memory that remembers what was done, can fail at an action, and is open to an adversary."""

    done: list[tuple[str, str]] = field(default_factory=list)
    fails: Callable[[str, str], bool] = lambda action, key: False

    def __post_init__(self) -> None:
        super().__init__()

    def _do(self, action: str, key: str) -> None:
        self.done.append((action, key))
        if self.fails(action, key):
            raise StoreError(f"{action} {key} failed")

    @contextmanager
    def create(self, key: str, expected_bytes: int = 0) -> Iterator[BinaryIO]:
        self._do("create", key)
        with super().create(key, expected_bytes) as stream:
            yield stream

    @contextmanager
    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[BinaryIO]:
        self._do("open", key)
        with super().open(key, start, length) as stream:
            yield stream

    def delete(self, key: str) -> None:
        self._do("delete", key)
        super().delete(key)

    def put(self, key: str, data: bytes) -> None:
        """What somebody writes who may."""
        self.objects[key] = (data, self.now)

    def get(self, key: str) -> bytes:
        """What lies there."""
        return self.objects[key][0]

    def move(self, key: str, to: str) -> None:
        """Moves an object and its signature."""
        for ending in ("", SIGNATURE):
            self.put(to + ending, self.objects.pop(key + ending)[0])


@pytest.fixture
def store() -> Spied:
    return Spied()


@pytest.fixture
def catalog(store: Spied) -> Catalog:
    return Catalog(store, KEYS)


def take(catalog: Catalog, manifest: Manifest) -> Backup:
    """A backup as `backup` takes it."""
    with catalog.store.create(archive_key(name_of(Backup(manifest)))) as stream:
        stream.write(ARCHIVE)
    return catalog.commit(manifest)


def forge(store: Spied, manifest: Manifest) -> Backup:
    """A backup as somebody without the key writes it."""
    return take(Catalog(store), manifest)


def one(catalog: Catalog) -> Backup:
    (backup,) = catalog.backups().backups
    return backup


def keys_of(backup: Backup) -> tuple[str, str]:
    """The keys of archive and manifest."""
    return archive_key(name_of(backup)), manifest_key(name_of(backup))


# --- writing


def test_a_signature_is_written_before_what_it_signs_and_removed_after_it(catalog: Catalog, store: Spied) -> None:
    backup = take(catalog, made_manifest(START))
    catalog.note(backup, "pinned", True, {}, NOW)
    archive, manifest = keys_of(backup)
    note = note_key(name_of(backup), "pinned", 1)
    written = [key for action, key in store.done if action == "create"]

    assert written == [archive, manifest + SIGNATURE, manifest, note + SIGNATURE, note]
    store.done.clear()
    catalog.delete(backup)
    removed = [key for action, key in store.done if action == "delete"]
    assert (removed[0], removed[-1]) == (manifest, archive)
    assert set(removed) == set(written)
    assert store.objects == {}


def test_without_a_key_nothing_is_signed_and_no_signature_is_read(store: Spied) -> None:
    catalog = Catalog(store)
    catalog.note(take(catalog, made_manifest(START)), "pinned", True, {}, NOW)
    assert not [key for _, key in store.done if SIGNATURE in key]
    signed = Catalog(store, Keys(KEYS.secret))
    signed.note(take(signed, made_manifest(START + DAY)), "pinned", True, {}, NOW)
    store.done.clear()

    assert len(catalog.backups().backups) == len(signed.backups().backups) == 2
    assert not [key for _, key in store.done if SIGNATURE in key]


def test_a_listing_reads_a_signature_for_each_thing_that_counts(catalog: Catalog, store: Spied) -> None:
    for days in range(3):
        backup = take(catalog, made_manifest(START + days * DAY))
        for pinned in (True, False):
            catalog.note(backup, "pinned", pinned, {}, NOW)
    store.done.clear()

    assert all(backup.untrusted is None and not backup.pinned for backup in catalog.backups().backups)
    assert len(store.done) == 3 * 4, "a manifest, a note, and their signatures"


def test_an_interruption_between_signature_and_manifest_leaves_orphans_that_are_swept(
    catalog: Catalog, store: Spied
) -> None:
    backup = Backup(made_manifest(START))
    store.fails = lambda action, key: action == "create" and key.endswith(".json")
    with pytest.raises(StoreError):
        take(catalog, backup.manifest)

    archive, manifest = keys_of(backup)
    listing = catalog.backups()
    assert (listing.backups, listing.broken) == ((), ())
    assert [entry.key for entry in listing.orphans] == [manifest + SIGNATURE, archive]
    assert sorted(catalog.sweep("prod", "app", NOW)) == [manifest + SIGNATURE, archive]
    assert store.objects == {}


def test_a_signature_whose_note_never_came_does_not_stop_the_next_note(catalog: Catalog, store: Spied) -> None:
    backup = take(catalog, made_manifest(START))
    store.fails = lambda action, key: key.endswith(".pinned-1.json")
    with pytest.raises(StoreError):
        catalog.note(backup, "pinned", True, {}, NOW)
    store.fails = lambda action, key: False

    assert catalog.note(backup, "pinned", True, {}, NOW).notes[0].number == 2
    assert one(catalog).pinned


def test_who_believes_signatures_and_has_no_key_writes_nothing_that_would_not_be_believed(
    catalog: Catalog, store: Spied
) -> None:
    backup, reader = take(catalog, made_manifest(START)), Catalog(store, READER)
    store.put(keys_of(Backup(made_manifest(START, number=1)))[0], ARCHIVE)
    before = dict(store.objects)

    with pytest.raises(AccessRefused, match="BACKUPD_SIGNING__KEY_FILE is not"):
        reader.note(backup, "pinned", True, {}, NOW)
    with pytest.raises(AccessRefused):
        reader.commit(made_manifest(START, number=1))
    assert store.objects == before


def test_every_kind_of_store_keeps_signatures_and_gives_them_back(store_case: StoreCase) -> None:
    catalog = Catalog(store_case.store, KEYS)
    backup = take(catalog, made_manifest(START))
    backup = catalog.note(backup, "pinned", True, {}, NOW)

    assert catalog.backups() == Listing((backup,))
    assert catalog.sweep("prod", "app", NOW) == []
    catalog.delete(backup)
    assert list(store_case.store.list()) == []


# --- manifests


def test_what_nobody_signed_is_listed_as_not_trusted_and_counts_for_nothing(catalog: Catalog, store: Spied) -> None:
    signed = take(catalog, made_manifest(START))
    forge(store, made_manifest(START + DAY))
    newest, oldest = catalog.backups().backups

    assert (newest.untrusted, oldest.untrusted) == ("it has no signature", None)
    assert newest.suspect == "not trusted: it has no signature"
    assert anomaly.predecessors(made_manifest(START + 2 * DAY), [newest, oldest]) == (signed,)
    assert drill.next_undrilled([newest, oldest]) == signed


@settings(max_examples=50, deadline=None)
@given(position=st.integers(0, 2000), change=st.integers(1, 255))
def test_no_byte_of_a_manifest_can_be_another(position: int, change: int) -> None:
    store = Spied()
    backup = take(Catalog(store, KEYS), made_manifest(START))
    data = bytearray(store.get(keys_of(backup)[1]))
    data[position % len(data)] ^= change
    store.put(keys_of(backup)[1], bytes(data))

    listing = Catalog(store, READER).backups()
    assert all(each.untrusted == "its signature is wrong" for each in listing.backups)
    assert len(listing.backups) + len(listing.broken) == 1


def test_a_manifest_signed_by_another_key_is_not_trusted(catalog: Catalog, store: Spied) -> None:
    take(Catalog(store, made_keys(2)), made_manifest(START))

    assert "which is not among" in (one(catalog).untrusted or "")


def test_a_signed_manifest_under_another_name_is_no_backup(catalog: Catalog, store: Spied) -> None:
    for place in ("prod/app2", "staging/app"):
        backup = take(catalog, made_manifest(START))
        archive, manifest = keys_of(backup)
        store.put(archive.replace("prod/app", place), ARCHIVE)
        store.move(manifest, manifest.replace("prod/app", place))
        listing = catalog.backups()
        assert listing.backups == ()
        assert "is another backup's" in listing.broken[0].error.message
        store.objects.clear()


def test_a_signature_of_another_place_is_none_even_for_a_manifest_that_says_that_it_is_there(
    catalog: Catalog, store: Spied
) -> None:
    """The name in the manifest and the one in the signature are checked apart."""
    manifest = made_manifest(START, database="app2")
    assert KEYS.secret is not None
    forged = forge(store, manifest)
    store.put(
        keys_of(forged)[1] + SIGNATURE, sign(KEYS.secret, keys_of(forged)[1].replace("app2", "app"), to_json(manifest))
    )

    assert (one(catalog).untrusted or "").startswith("its signature is of 'prod/app/")


def test_a_signature_that_goes_while_backups_are_listed_hides_none(catalog: Catalog, store: Spied) -> None:
    """A delete takes the manifest first: a manifest that is still there without a signature is not being deleted."""
    backup = take(catalog, made_manifest(START))
    manifest = keys_of(backup)[1]

    def vanish(action: str, key: str) -> bool:
        if key == manifest:
            store.objects.pop(manifest + SIGNATURE, None)
        return False

    store.fails = vanish
    assert one(catalog).untrusted == "it has no signature"


def test_a_backup_that_is_deleted_while_it_is_listed_is_not_called_untrusted(catalog: Catalog, store: Spied) -> None:
    take(catalog, made_manifest(START))

    def vanish(action: str, key: str) -> bool:
        if key.endswith(SIGNATURE):
            store.objects.clear()
        return False

    store.fails = vanish
    assert catalog.backups() == Listing(())


# --- notes


def write_note(store: Spied, backup: Backup, kind: NoteKind, number: int, ok: bool) -> str:
    """Writes a note as somebody without the key does."""
    key = note_key(name_of(backup), kind, number)
    store.put(key, to_json(Note(kind, number, NOW, ok)))
    return key


@pytest.mark.parametrize("kind", KINDS)
def test_a_note_that_nobody_signed_changes_nothing_but_that_an_unsigned_pin_keeps(
    catalog: Catalog, store: Spied, kind: NoteKind
) -> None:
    backup = take(catalog, made_manifest(START))
    for ok in (False, True):
        write_note(store, backup, kind, 1, ok)
        seen = one(catalog)
        assert seen.pinned == (kind == "pinned" and ok)
        assert seen.suspect is None
        assert len(seen.notes) == int(seen.pinned)
        assert catalog.backups().broken == (), "an old one is no alarm"


@pytest.mark.parametrize("kind", KINDS)
def test_above_a_signed_note_one_that_is_not_signed_changes_nothing(
    catalog: Catalog, store: Spied, kind: NoteKind
) -> None:
    backup = take(catalog, made_manifest(START))
    backup = catalog.note(backup, kind, True, {"system_identifier": "7"}, NOW)
    write_note(store, backup, kind, 2, ok=False)
    store.put(note_key(name_of(backup), kind, 3), b"no note at all")
    store.put(note_key(name_of(backup), kind, 3) + SIGNATURE, b"no signature at all")

    (note,) = one(catalog).notes
    assert (note.number, note.ok) == (3 if kind == "pinned" else 1, True)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "pinned"])
def test_a_note_that_was_signed_for_another_backup_or_number_changes_nothing(
    catalog: Catalog, store: Spied, kind: NoteKind
) -> None:
    first, second = (take(catalog, made_manifest(START, number=number)) for number in (1, 2))
    catalog.note(first, kind, False, {}, NOW)
    catalog.note(first, kind, False, {}, NOW)
    key = note_key(name_of(first), kind, 2)
    for to in (note_key(name_of(first), kind, 7), note_key(name_of(second), kind, 2)):
        for ending in ("", SIGNATURE):
            store.put(to + ending, store.get(key + ending))

    listing = catalog.backups()

    assert {each.id: [note.number for note in each.notes] for each in listing.backups} == {first.id: [2], second.id: []}
    assert [type(each.error) for each in listing.broken] == [NotTrusted, NotTrusted]


@settings(max_examples=50, deadline=None)
@given(position=st.integers(0, 400), change=st.integers(1, 255), of_signature=st.booleans())
def test_no_byte_of_a_note_or_its_signature_can_be_another(position: int, change: int, of_signature: bool) -> None:
    store = Spied()
    catalog = Catalog(store, KEYS)
    backup = catalog.note(take(catalog, made_manifest(START)), "verified", True, {}, NOW)
    key = note_key(name_of(backup), "verified", 1) + (SIGNATURE if of_signature else "")
    data = bytearray(store.get(key))
    data[position % len(data)] ^= change
    store.put(key, bytes(data))

    assert one(catalog).notes == ()
    assert [type(each.error) for each in catalog.backups().broken] == [NotTrusted]


def test_a_pin_whose_signature_somebody_spoilt_still_keeps(catalog: Catalog, store: Spied) -> None:
    backup = take(catalog, made_manifest(START))
    for pinned in (False, True):
        catalog.note(backup, "pinned", pinned, {}, NOW)
    key = note_key(name_of(backup), "pinned", 2)
    signature = store.get(key + SIGNATURE)
    for ending, data in (
        (SIGNATURE, b"spoilt"),
        ("", b"spoilt"),
        ("", to_json(Note("pinned", 2, NOW, ok=False))),
        (SIGNATURE, signature),
    ):
        store.put(key + ending, data)
        assert one(catalog).pinned

    catalog.note(backup, "pinned", False, {}, NOW)
    assert not one(catalog).pinned, "whoever has the key can take it back"


def test_a_number_that_leaves_none_above_it_is_an_error_that_names_the_note(catalog: Catalog, store: Spied) -> None:
    backup = take(catalog, made_manifest(START))
    key = write_note(store, backup, "pinned", 999_999_999, ok=True)

    with pytest.raises(AlreadyExists) as caught:
        catalog.note(backup, "pinned", False, {}, NOW)
    assert key in str(caught.value)


def test_a_note_that_the_store_does_not_give_counts_as_its_cautious_answer(catalog: Catalog, store: Spied) -> None:
    backup = take(catalog, made_manifest(START))
    for kind in ("pinned", "verified"):
        catalog.note(backup, kind, kind == "verified", {}, NOW)
    store.fails = lambda action, key: action == "open" and "-1.json" in key and not key.endswith(SIGNATURE)

    seen = one(catalog)
    assert seen.pinned
    assert "its note cannot be read" in (seen.suspect or "")


# --- verbs


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A real archive, without a manifest yet."""
    return make_archive(tmp_path)


def signed_catalog(made: Made) -> Catalog:
    return Catalog(made.store, KEYS)


def objects(root: Path) -> dict[str, bytes]:
    """Every file of a store."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_no_verb_reads_the_archive_of_a_backup_that_is_not_trusted(made: Made, tmp_path: Path) -> None:
    made.commit()
    catalog, second = signed_catalog(made), Catalog(LocalStore(tmp_path / "second"), KEYS)
    backup, before = one(catalog), objects(made.root)

    for read in (
        lambda: catalog.archive(backup),
        lambda: verify.verify(catalog, backup, NOW, Progress()),
        lambda: copy.copy(catalog, backup, second, NOW, Progress()),
    ):
        with pytest.raises(NotTrusted, match="it has no signature") as caught:
            read()
        assert (caught.value.exit_code, caught.value.reason) == (14, "not_trusted")
    assert objects(made.root) == before, "not even a note that it is bad"
    assert not (tmp_path / "second").exists()


def test_verify_without_a_key_to_sign_with_proves_and_says_that_it_is_not_noted(made: Made) -> None:
    signed_catalog(made).commit(made.manifest)
    reader, before = Catalog(made.store, READER), objects(made.root)

    with capture_logs() as events:
        verified = verify.verify(reader, one(reader), NOW, Progress())
    assert (note := verified.note("verified")) is not None
    assert note.ok
    assert [event["event"] for event in events] == ["verify.unnoted"]
    made.flip(1000)
    with pytest.raises(VerificationFailed, match="is damaged"):
        verify.verify(reader, one(reader), NOW, Progress())
    made.flip(1000)
    assert objects(made.root) == before


def test_a_copy_has_every_signature_and_is_trusted_as_the_first_is(made: Made, tmp_path: Path) -> None:
    catalog = signed_catalog(made)
    backup = catalog.note(catalog.commit(made.manifest), "pinned", True, {}, NOW)
    (tmp_path / "second").mkdir()
    second = Catalog(LocalStore(tmp_path / "second"), READER)

    copied = copy.copy(catalog, backup, second, NOW, Progress())

    assert copied.backup == backup
    assert objects(tmp_path / "second") == objects(made.root)
    (tmp_path / "second" / (keys_of(backup)[1] + SIGNATURE)).unlink()
    with pytest.raises(NotTrusted):
        copy.copy(catalog, backup, second, NOW, Progress())


def test_a_signature_that_is_swapped_while_a_copy_runs_makes_no_copy(made: Made, tmp_path: Path) -> None:
    backup = signed_catalog(made).commit(made.manifest)
    (made.root / (keys_of(backup)[1] + SIGNATURE)).write_bytes(b"swapped")
    (tmp_path / "second").mkdir()
    second = Catalog(LocalStore(tmp_path / "second"), KEYS)

    with pytest.raises(NotTrusted):
        copy.copy(signed_catalog(made), backup, second, NOW, Progress())
    assert second.backups().backups == ()


# --- sign


def test_sign_reads_a_backup_to_its_end_and_makes_it_trusted(made: Made) -> None:
    made.commit()
    catalog = signed_catalog(made)

    signed = verify.sign(catalog, one(catalog), NOW, Progress())

    assert one(catalog) == signed
    assert (signed.untrusted, [note.kind for note in signed.notes]) == (None, ["verified"])


def test_sign_does_not_sign_what_is_damaged(made: Made) -> None:
    made.commit()
    catalog, before = signed_catalog(made), objects(made.root)
    made.flip(1000)

    with pytest.raises(VerificationFailed, match="is damaged"):
        verify.sign(catalog, one(catalog), NOW, Progress())
    made.flip(1000)
    assert objects(made.root) == before


def test_sign_does_not_sign_what_was_swapped_after_it_was_read(made: Made) -> None:
    backup = made.commit()
    path = made.root / keys_of(backup)[1]
    path.write_bytes(to_json(replace(made.manifest, archive_sha256="0" * 64)))

    with pytest.raises(VerificationFailed, match="changed while the backup was read"):
        signed_catalog(made).sign(backup)
    assert not path.with_name(path.name + SIGNATURE).exists()


def test_sign_needs_no_right_to_delete_where_there_is_no_signature(catalog: Catalog, store: Spied) -> None:
    backup = forge(store, made_manifest(START))
    store.fails = lambda action, key: action == "delete"

    catalog.sign(backup)
    assert one(catalog).untrusted is None


def test_sign_replaces_the_signature_of_a_key_that_is_lost(made: Made) -> None:
    Catalog(made.store, made_keys(2)).commit(made.manifest)
    catalog = signed_catalog(made)

    verify.sign(catalog, one(catalog), NOW, Progress())
    assert one(catalog).untrusted is None


# --- retention, check


def trusted(days: float, **facts: str) -> Backup:
    """A good backup of that day."""
    return made_backup(made_manifest(START + days * DAY, **facts))  # type: ignore[arg-type]


@settings(max_examples=50, deadline=None)
@given(
    days=st.lists(st.integers(0, 40), unique=True, max_size=12),
    fakes=st.lists(
        st.tuples(st.floats(-10, 400), st.sampled_from(["7000000000000000001", "666"]), st.booleans()), max_size=12
    ),
)
def test_fake_backups_change_nothing_for_those_that_are_signed(
    days: list[int], fakes: list[tuple[float, str, bool]]
) -> None:
    policy = Policy(last=2, daily=3, weekly=2, floor=2, expect_within=3 * DAY)
    good = [trusted(day) for day in days]
    forged = [
        replace(trusted(day, identity=identity), untrusted="it has no signature", notes=notes)
        for day, identity, pinned in fakes
        for notes in [(made_note("pinned", NOW),) if pinned else ()]
    ]
    now = START + 42 * DAY

    alone, beside = retention.plan(good, policy, now), retention.plan([*forged, *good], policy, now)

    assert beside.decisions[: len(good)] == alone.decisions
    assert beside.frozen == alone.frozen
    assert all(decision.keep for decision in beside.decisions[len(good) :])
    assert len(beside.decisions) == len(good) + len(forged)


def test_nothing_is_fresh_that_nobody_signed(catalog: Catalog, store: Spied) -> None:
    now = START + DAY
    take(catalog, made_manifest(START - 10 * DAY))
    forge(store, made_manifest(START))

    (found,) = check(catalog.backups(), None, 2 * DAY, now)
    assert found.stale
    assert found.finished_at == START - 10 * DAY + timedelta(minutes=10)


def test_a_label_whose_signatures_are_all_gone_is_still_expected(catalog: Catalog, store: Spied) -> None:
    backup = take(catalog, made_manifest(START))
    del store.objects[keys_of(backup)[1] + SIGNATURE]

    assert [found.stale for found in check(catalog.backups(), None, 2 * DAY, START + DAY)] == [True]


def test_a_retired_database_does_not_come_back_by_a_fake_backup(catalog: Catalog, store: Spied) -> None:
    catalog.note(take(catalog, made_manifest(START)), "retired", True, {}, START + DAY)
    forge(store, made_manifest(START + 2 * DAY))

    assert check(catalog.backups(), None, DAY, START + 9 * DAY) == ()
