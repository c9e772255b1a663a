"""Copies in a second store: whole or not listed, whatever interrupts them; what is there already stays as it is."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import pytest
from fix_postgres import PostgresServer
from fix_store import S3Server
from fix_tools import Site
from made_archives import KEY, BreakingStream, Made, WatchedStore, make_archive

from backupd import copy
from backupd.catalog import Catalog
from backupd.errors import AlreadyExists, NotFound, StoreError, UsageError, VerificationFailed
from backupd.layout import note_key
from backupd.manifest import Backup
from backupd.progress import Progress
from backupd.selector import name_of
from backupd.store import Store
from backupd.store.local import LocalStore

NOW = datetime.now(UTC)


@dataclass(frozen=True)
class Pair:
    """Two stores, the first with one backup that has notes."""

    made: Made
    backup: Backup
    root: Path

    @property
    def second(self) -> Catalog:
        """What the second store holds."""
        return Catalog(LocalStore(self.root))

    def copy(self, first: Store | None = None, second: Store | None = None, now: datetime = NOW) -> copy.Copied:
        """Copies the backup; a store before one of the two may misbehave."""
        to = Catalog(second or self.second.store)
        return copy.copy(Catalog(first or self.made.store), self.backup, to, now, Progress())

    def assert_nothing_listed(self) -> None:
        """The second store lists no backup, and nothing of it is broken."""
        listing = self.second.backups()
        assert (listing.backups, listing.broken) == ((), ())

    def assert_whole(self) -> None:
        """The second store lists the backup, and holds what the first holds, to the last byte."""
        assert [each.id for each in self.second.backups().backups] == [self.backup.id]
        assert objects(self.root) == objects(self.made.root)


def objects(root: Path) -> dict[str, bytes]:
    """Every file of a store, temporary ones too."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    made = make_archive(tmp_path)
    backup = made.commit()
    for pinned in (False, True):
        backup = made.catalog.note(backup, "pinned", pinned, {}, NOW)
    backup = made.catalog.note(backup, "verified", True, {"level": "decoded"}, NOW)
    (tmp_path / "second").mkdir()
    return Pair(made, backup, tmp_path / "second")


def test_a_copy_has_every_object_of_the_backup_to_the_last_byte(pair: Pair) -> None:
    copied = pair.copy()

    assert copied.new
    assert (copied.backup.manifest, copied.backup.pinned) == (pair.backup.manifest, True)
    pair.assert_whole()


def test_what_a_later_backupd_wrote_into_manifest_and_notes_is_copied_too(pair: Pair) -> None:
    manifest, note = (pair.made.root / KEY.replace(".tar", ending) for ending in (".json", ".drilled-1.json"))
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"of_tomorrow": 1}))
    note.write_text('{"kind": "drilled", "number": 1, "at": "2026-11-24T00:00:00Z", "ok": true, "facts": {}, "x": 1}')
    note.with_name(note.name.replace("drilled", "dreamt")).write_text("{}")

    assert pair.copy().new
    pair.assert_whole()


def test_a_copy_that_is_there_already_is_said_and_left_as_it_is(pair: Pair) -> None:
    pair.copy()
    pair.second.note(pair.backup, "pinned", False, {}, NOW)
    before = objects(pair.root)
    copied = pair.copy()

    assert not copied.new
    assert not copied.backup.pinned
    assert objects(pair.root) == before


@dataclass
class FailingStore(WatchedStore):
    """A store that ends in an error at its `fails_at`th step: the entry, each write or the exit of a create."""

    fails_at: int = 0
    steps: int = 0
    events: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def create(self, key: str, expected_bytes: int = 0) -> Iterator[BinaryIO]:
        """See Store."""
        self.step()
        with self.inner.create(key, expected_bytes) as stream:
            yield _Counted(stream, self)  # type: ignore[misc]
            self.step()
        self.events.append(key)

    def step(self) -> None:
        """Fails, if it is time."""
        self.steps += 1
        if self.steps == self.fails_at:
            raise StoreError(f"could not write to {self.url}", hint="Check BACKUPD_STORE__URL.")


@dataclass
class _Counted:
    stream: BinaryIO
    store: FailingStore

    def write(self, data: bytes) -> int:
        self.store.step()
        return self.stream.write(data)


def test_a_manifest_is_copied_last(pair: Pair) -> None:
    watched = FailingStore(pair.second.store)
    pair.copy(second=watched)

    assert watched.events[0] == KEY
    assert watched.events[-1] == KEY.replace(".tar", ".json")
    assert len(watched.events) == len(objects(pair.root))


def test_a_copy_that_was_interrupted_anywhere_lists_nothing_and_succeeds_when_it_is_run_again(
    pair: Pair, tmp_path: Path
) -> None:
    counted = FailingStore(pair.second.store)
    pair.copy(second=counted)
    for step in range(1, counted.steps + 1):
        root = tmp_path / f"second{step}"
        root.mkdir()
        other = replace(pair, root=root)
        with pytest.raises(StoreError) as raised:
            other.copy(second=FailingStore(other.second.store, fails_at=step))
        assert raised.value.hint == "Check BACKUPD_COPY__URL."
        other.assert_nothing_listed()
        assert other.copy().new
        other.assert_whole()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
def test_a_flipped_bit_in_the_archive_is_found_on_the_way_and_nothing_is_visible(pair: Pair, share: float) -> None:
    pair.made.flip(round(share * (pair.made.manifest.archive_bytes - 1)))
    with pytest.raises(VerificationFailed):
        pair.copy()

    assert objects(pair.root) == {}
    pair.made.flip(round(share * (pair.made.manifest.archive_bytes - 1)))
    assert pair.copy().new


def test_a_first_store_that_breaks_off_leaves_nothing_visible_and_its_hint_is_its_own(pair: Pair) -> None:
    breaking = WatchedStore(pair.made.store)
    breaking.replace_stream = lambda start, stream: BreakingStream(stream, 3000) if start == 0 else stream
    with pytest.raises(StoreError, match="broke off"):
        pair.copy(first=breaking)
    assert objects(pair.root) == {}
    pair.made.path.unlink()
    with pytest.raises(NotFound) as raised:
        pair.copy()
    assert "COPY" not in (raised.value.hint or "")
    pair.assert_nothing_listed()


def test_a_backup_that_is_deleted_while_it_is_copied_is_not_listed(pair: Pair) -> None:
    deleting = WatchedStore(pair.made.store)

    def delete(start: int, stream: BinaryIO) -> BinaryIO:
        if start == 0:
            (pair.made.root / KEY.replace(".tar", ".json")).unlink(missing_ok=True)
        return stream

    deleting.replace_stream = delete
    with pytest.raises(NotFound, match="deleted meanwhile"):
        pair.copy(first=deleting)
    pair.assert_nothing_listed()


def test_a_whole_archive_without_a_manifest_is_read_back_and_not_written_again(pair: Pair) -> None:
    pair.copy()
    (pair.root / KEY.replace(".tar", ".json")).unlink()
    inode = (pair.root / KEY).stat().st_ino

    assert pair.copy().new
    assert (pair.root / KEY).stat().st_ino == inode
    pair.assert_whole()


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer"])
def test_a_damaged_archive_without_a_manifest_is_replaced(pair: Pair, damage: str) -> None:
    pair.copy()
    (pair.root / KEY.replace(".tar", ".json")).unlink()
    data = (pair.root / KEY).read_bytes()
    changed = {"flipped": data[:700] + bytes([data[700] ^ 1]) + data[701:], "cut": data[:-1], "longer": data + b"x"}
    (pair.root / KEY).write_bytes(changed[damage])

    assert pair.copy().new
    pair.assert_whole()


def test_remains_of_copies_are_swept_when_nobody_can_be_about_to_publish_them(pair: Pair) -> None:
    folder = (pair.root / KEY).parent
    folder.mkdir(parents=True)
    old, young = (folder / f"2026112{day}T000000Z-00000000.tar" for day in (1, 2))
    half = folder / f".{KEY.rpartition('/')[2]}.0123456789abcdef.tmp"
    for path in (old, young, half):
        path.write_bytes(b"x")
    ago = (NOW - copy.IDLE - timedelta(minutes=1)).timestamp()
    for path in (old, half):
        os.utime(path, (ago, ago))
    pair.copy()

    assert [path.exists() for path in (old, young, half)] == [False, True, False]


def test_the_first_store_is_refused_as_the_second(pair: Pair) -> None:
    with pytest.raises(UsageError, match="first one"):
        pair.copy(second=pair.made.store)


def test_another_backup_of_the_same_name_is_not_overwritten(pair: Pair) -> None:
    pair.copy()
    path = pair.root / KEY.replace(".tar", ".json")
    path.write_text(path.read_text().replace('"jobs":2', '"jobs":1'))
    before = objects(pair.root)
    with pytest.raises(AlreadyExists, match="another backup"):
        pair.copy()

    assert objects(pair.root) == before


def test_a_copy_that_is_broken_is_named_and_not_overwritten(pair: Pair) -> None:
    pair.copy()
    (pair.root / KEY).unlink()
    with pytest.raises(VerificationFailed, match="is missing"):
        pair.copy()
    assert note_key(name_of(pair.backup), "verified", 1) in objects(pair.root)


# --- after a backup, and by hand


@pytest.mark.slow
def test_each_new_backup_is_copied_and_the_second_store_has_a_retention_of_its_own(
    postgres17: PostgresServer, site: Callable[..., Site], shop_of: Callable[[PostgresServer], str], tmp_path: Path
) -> None:
    root = tmp_path / "second"
    root.mkdir()
    here = site(postgres17, BACKUPD_COPY__URL=root.as_uri())
    here.settings |= {"BACKUPD_COPY__RETENTION__KEEP_LAST": "1", "BACKUPD_COPY__RETENTION__FLOOR": "1"}
    second = Catalog(LocalStore(root))
    for _ in range(2):
        ended = here.run("backup", shop_of(postgres17))
        assert ended.code == 0, ended.stderr
        assert "backup.copied" in {event["event"] for event in ended.events}
        newest = here.listed()[0]
        assert [each.id for each in second.backups().backups] == [newest]
    assert len(here.listed()) == 2
    again = here.run("copy", newest, root.as_uri())
    assert (again.code, again.stdout.startswith(f"prod/{shop_of(postgres17)}@{newest}: is already in")) == (0, True)
    older = json.loads(here.run("copy", here.listed()[1], "--json").stdout)
    assert (older["new"], older["store"]) == (True, root.as_uri())
    assert [each.id for each in second.backups().backups] == here.listed()
    here.assert_clean()


@pytest.mark.slow
def test_a_backup_stands_when_its_copy_fails(
    postgres17: PostgresServer, site: Callable[..., Site], shop_of: Callable[[PostgresServer], str], tmp_path: Path
) -> None:
    here = site(postgres17, BACKUPD_COPY__URL=(tmp_path / "not-mounted").as_uri())
    ended = here.run("backup", shop_of(postgres17))

    assert (ended.code, ended.error["reason"]) == (10, "store")
    (backup_id,) = here.listed()
    assert f"@{backup_id}: " in ended.stdout
    assert "was taken, but not copied" in ended.error["message"]
    assert "BACKUPD_COPY__URL" in ended.error["hint"]
    assert f"backupd copy prod/{shop_of(postgres17)}@{backup_id}" in ended.error["hint"]
    assert [(each.step, each.reason) for each in here.catalog.backups().failures] == [("copy", "store")]
    (tmp_path / "not-mounted").mkdir()
    assert here.run("copy", backup_id).code == 0
    assert [each.id for each in Catalog(LocalStore(tmp_path / "not-mounted")).backups().backups] == [backup_id]
    here.assert_clean()


@pytest.mark.slow
def test_whatever_stops_a_copy_after_a_backup_the_exit_code_is_the_stores(
    postgres17: PostgresServer, site: Callable[..., Site], shop_of: Callable[[PostgresServer], str], tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "prod").write_text("a file where a folder belongs")
    here = site(postgres17, BACKUPD_COPY__URL=closed.as_uri())
    ended = here.run("backup", shop_of(postgres17), "no_such_database")

    assert ended.code == 3, ended.stderr
    assert "no new backup or copy" in ended.error["message"]
    assert len(here.listed()) == 1


@pytest.mark.slow
def test_a_folder_is_copied_to_a_bucket_and_back(pair: Pair, moto_s3: S3Server) -> None:
    bucket = Catalog(moto_s3.store())
    assert copy.copy(pair.made.catalog, pair.backup, bucket, NOW, Progress()).new
    assert copy.copy(bucket, bucket.find(pair.backup.id), pair.second, NOW, Progress()).new
    pair.assert_whole()
    assert moto_s3.uploads() == []


def test_an_interrupted_run_is_no_failure_of_the_store(pair: Pair) -> None:
    class Stopped(BaseException):
        pass

    class Stopping(Progress):
        def advance(self, done_bytes: int = 0, done_members: int = 0, done_rows: int = 0) -> None:
            raise Stopped

    with pytest.raises(Stopped):
        copy.copy(pair.made.catalog, pair.backup, pair.second, NOW, Stopping())
    assert objects(pair.root) == {}
