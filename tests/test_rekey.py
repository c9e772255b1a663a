"""Rekeying: the same content under other keys, beside the old backup, which nothing but a person removes."""

import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import pytest
from fix_encryption import Key, NewKey
from fix_postgres import PostgresServer
from fix_restore import NewName, contents
from fix_tools import Site, wait_until
from made_archives import ID, MEMBERS, BreakingStream, Made, WatchedStore, contract_of, make_archive
from made_keys import made_keys

from backupd import archive, rekey, retention
from backupd.catalog import Catalog
from backupd.drill import next_undrilled
from backupd.encryption import Identities
from backupd.errors import AccessRefused, NotTrusted, StoreError, UsageError, VerificationFailed
from backupd.layout import archive_key
from backupd.manifest import Backup, Filter
from backupd.progress import Progress
from backupd.retention import Policy
from backupd.selector import name_of, pick
from backupd.signing import Keys
from backupd.verify import sign, verify

NOW = datetime(2026, 11, 26, 5, tzinfo=UTC)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A small backup in clear."""
    made = make_archive(tmp_path)
    made.commit()
    return made


@pytest.fixture
def key(new_key: NewKey) -> Key:
    """Today's key pair."""
    return new_key()


def opened(made: Made, key: Key) -> Catalog:
    """The store's backups, where that private key is at hand."""
    return Catalog(made.store, identities=Identities(key.path))


def rekeyed(catalog: Catalog, key: Key, of: str = ID) -> Backup:
    """That backup under another key."""
    return rekey.rekey(catalog, catalog.find(of), (key.recipient,), lambda: NOW, Progress()).backup


def listed(made: Made) -> list[str]:
    """The ids of what is listed; nothing listed may be broken."""
    listing = made.catalog.backups()
    assert listing.broken == ()
    return [each.id for each in listing.backups]


# --- what it makes


def test_every_member_is_the_same_for_the_real_age(made: Made, key: Key, age_program: str, tmp_path: Path) -> None:
    before = made.path.read_bytes()
    new = rekeyed(made.catalog, key)
    path = made.root / archive_key(name_of(new))
    with tarfile.open(path) as tar:
        names = [member.name for member in tar.getmembers()]
        encrypted = [f"{new.id}/{name}.age" for name in [*list(MEMBERS)[1:], "index.json.zst"]]
        assert names == [f"{new.id}/README.txt", *encrypted]
        for name in list(MEMBERS)[1:]:
            stored = tar.extractfile(f"{new.id}/{name}.age")
            assert stored is not None
            argv = [age_program, "-d", "-i", str(key.path)]
            plain = subprocess.run(argv, input=stored.read(), capture_output=True, check=True).stdout
            assert plain == MEMBERS[name]
    assert made.path.read_bytes() == before
    assert verify(opened(made, key), new, NOW, Progress()).suspect is None


def test_the_facts_are_kept_and_the_origin_is_named(made: Made, key: Key) -> None:
    old = made.catalog.find(ID)
    new = rekeyed(made.catalog, key)
    assert new.rekeyed_from == old.id
    assert new.id != old.id
    assert new.id.startswith(old.id[:16])
    kept = ("source", "started_at", "finished_at", "server_version", "client_version", "database_bytes", "compression")
    assert [getattr(new.manifest, name) for name in kept] == [getattr(old.manifest, name) for name in kept]
    assert (new.manifest.format, new.manifest.recipients) == (2, (key.recipient,))
    assert sorted(listed(made)) == sorted([old.id, new.id])
    index = archive.read_index(opened(made, key).archive(new))
    assert index.contract == made.index.contract


def test_the_new_key_opens_it_and_the_old_one_does_not(made: Made, key: Key, new_key: NewKey) -> None:
    first = rekeyed(made.catalog, key)
    today = new_key()
    second = rekeyed(opened(made, key), today, first.id)
    assert archive.read_index(opened(made, today).archive(second)).contract == made.index.contract
    with pytest.raises(AccessRefused):
        archive.read_index(opened(made, key).archive(second))


def test_what_a_backup_in_clear_said_of_tables_is_not_said_any_more(tmp_path: Path, key: Key) -> None:
    made, private = make_archive(tmp_path), "very_private"
    manifest = replace(
        made.manifest, suspect=f"table {private}", warnings=(private,), filter=Filter(exclude=(f"a.{private}",))
    )
    made.catalog.commit(manifest)
    made.catalog.note(made.catalog.find(ID), "drilled", False, {"error": private, "detail": private}, NOW)
    new = rekeyed(made.catalog, key)
    assert new.suspect is not None
    assert new.manifest.filter == manifest.filter
    written = [path for path in made.root.rglob(f"*{new.id}*") if path.is_file()]
    assert len(written) == 4
    assert [path for path in written if private.encode() in path.read_bytes()] == []


def test_what_is_known_of_the_content_comes_along_and_proofs_of_the_old_bytes_do_not(made: Made, key: Key) -> None:
    old = made.catalog.find(ID)
    for kind, facts in (("pinned", {}), ("adopted", {"system_identifier": "42"}), ("retired", {})):
        old = made.catalog.note(old, kind, True, facts, NOW)  # type: ignore[arg-type]
    made.catalog.note(made.catalog.note(old, "verified", True, {}, NOW), "drilled", True, {"seconds": 3.0}, NOW)
    new = rekeyed(made.catalog, key)
    assert sorted(note.kind for note in new.notes) == ["adopted", "pinned", "rekeyed", "retired"]
    assert (new.pinned, new.source.system_identifier) == (True, "42")


# --- once, and never to nobody


def test_a_second_time_makes_nothing_new_and_ends_what_was_cut_off(made: Made, key: Key) -> None:
    new = rekeyed(made.catalog, key)
    made.catalog.note(made.catalog.find(ID), "pinned", True, {}, NOW)  # as if the first had been killed before it
    again = rekey.rekey(made.catalog, made.catalog.find(ID), (key.recipient,), lambda: NOW, Progress())
    assert (again.backup.id, again.new, again.backup.pinned) == (new.id, False, True)
    assert len(listed(made)) == 2


def test_other_recipients_are_refused_for_what_was_rekeyed_before(made: Made, key: Key, new_key: NewKey) -> None:
    new = rekeyed(made.catalog, key)
    with pytest.raises(UsageError, match=f"was rekeyed as {new.id}, to other recipients"):
        rekeyed(made.catalog, new_key())
    with pytest.raises(UsageError, match="is encrypted to these recipients already"):
        rekeyed(opened(made, key), key, new.id)
    assert len(listed(made)) == 2


def test_nothing_is_written_in_clear(made: Made) -> None:
    with pytest.raises(UsageError, match="no recipients are set"):
        rekey.rekey(made.catalog, made.catalog.find(ID), (), lambda: NOW, Progress())
    assert listed(made) == [ID]


def test_without_the_old_key_nothing_is_written(made: Made, key: Key, new_key: NewKey) -> None:
    first, files = rekeyed(made.catalog, key), set(made.root.rglob("*.tar"))
    with pytest.raises(UsageError, match="no identities are set"):
        rekeyed(made.catalog, new_key(), first.id)
    assert set(made.root.rglob("*.tar")) == files


def test_a_rekeyed_backup_is_signed_and_one_that_nobody_signed_is_not_rekeyed(
    tmp_path: Path, made: Made, key: Key
) -> None:
    signing = Catalog(made.store, made_keys(1))
    with pytest.raises(NotTrusted):
        rekeyed(signing, key)
    verified = sign(signing, signing.find(ID), NOW, Progress())
    new = rekeyed(signing, key, verified.id)
    assert (new.untrusted, new.rekeyed_from) == (None, ID)
    with pytest.raises(AccessRefused, match="is set, and BACKUPD_SIGNING__KEY_FILE is not"):
        rekeyed(Catalog(made.store, Keys(trusted=made_keys(1).trusted)), key)


# --- faults


def test_a_damaged_backup_is_not_rekeyed(made: Made, key: Key) -> None:
    for member in made.index.members[1:3]:
        made.flip(member.offset)
        with pytest.raises(VerificationFailed):
            rekeyed(made.catalog, key)
        made.flip(member.offset)
    assert listed(made) == [ID]
    assert [path.name for path in made.root.rglob("*.tar")] == [f"{ID}.tar"]


def test_a_backup_that_lacks_what_its_index_promises_is_not_rekeyed(tmp_path: Path, key: Key) -> None:
    lacking = dict(MEMBERS)
    del lacking["3457.dat"]
    made = make_archive(tmp_path, lacking, contract_of(MEMBERS))
    made.commit()
    with pytest.raises(VerificationFailed, match="holds 3 of 4 members"):
        rekeyed(made.catalog, key)
    assert listed(made) == [ID]


def test_a_store_that_breaks_off_leaves_what_the_next_day_sweeps(made: Made, key: Key) -> None:
    def breaking(start: int, stream: BinaryIO) -> BinaryIO:
        return stream if start == made.manifest.index_offset else BreakingStream(stream, 2000)

    watched = WatchedStore(made.store, replace_stream=breaking)
    old = made.catalog.find(ID)
    with pytest.raises(StoreError, match="broke off"):
        rekey.rekey(Catalog(watched), old, (key.recipient,), lambda: NOW, Progress())
    assert listed(made) == [ID]
    label = name_of(old).label
    now = datetime.now(UTC)
    assert made.catalog.sweep(label.server, label.database, now - timedelta(days=1)) == []
    [swept] = made.catalog.sweep(label.server, label.database, now + timedelta(days=1))
    assert swept.endswith(".rekeyed-1.json")
    assert listed(made) == [ID]


def test_a_run_that_sweeps_meanwhile_leaves_an_archive_that_is_about_to_be_published(made: Made, key: Key) -> None:
    swept: list[str] = []

    class Sweeping(Catalog):
        def commit(self, manifest: object) -> Backup:
            """As the catalog's, after another run has looked for orphans."""
            label = name_of(made.catalog.find(ID)).label
            swept.extend(made.catalog.sweep(label.server, label.database, datetime.now(UTC) - timedelta(days=1)))
            return super().commit(manifest)  # type: ignore[arg-type]

    new = rekeyed(Sweeping(made.store), key)
    assert swept == []
    assert new.id in listed(made)


# --- what goes by time, and retention


def test_latest_is_the_one_under_todays_key(made: Made, key: Key, new_key: NewKey) -> None:
    first = rekeyed(made.catalog, key)
    second = rekeyed(opened(made, key), new_key(), first.id)
    backups = made.catalog.backups().backups
    for order in (backups, backups[::-1]):  # which of them is first is chance, for they are of one second
        assert pick(order, "latest").id == second.id
    assert made.catalog.find(ID).id == ID
    due = next_undrilled(made.catalog.backups().backups)
    assert due is not None
    assert due.id == second.id


def test_a_rekeyed_backup_fills_no_place_and_is_left_to_a_person(made: Made, key: Key) -> None:
    new = rekeyed(made.catalog, key)
    policy = Policy(last=1, floor=1)
    later = NOW + timedelta(days=400)
    backups = made.catalog.backups().backups
    newer = replace(new.manifest, id="20270101T000000Z-00000000", started_at=NOW + timedelta(days=36))
    plan = retention.plan([*backups, Backup(newer)], policy, later)
    kept = {each.backup.id: each.keep for each in plan.decisions}
    assert kept == {newer.id: True, new.id: False, ID: True}
    [reason] = [each.reasons for each in plan.decisions if each.backup.id == ID]
    assert reason == (f"rekeyed as {new.id}, so left to `backupd delete`",)


def test_where_the_new_one_is_found_damaged_the_old_one_counts_again(made: Made, key: Key) -> None:
    new = rekeyed(made.catalog, key)
    made.catalog.note(new, "verified", False, {"error": "damaged"}, NOW)
    assert made.catalog.find("latest").id in (ID, new.id)
    plan = retention.plan(made.catalog.backups().backups, Policy(last=1, floor=1), NOW)
    assert {each.backup.id for each in plan.decisions if each.keep} >= {ID}
    assert all("rekeyed as" not in reason for each in plan.decisions for reason in each.reasons)


# --- the command line


@pytest.mark.slow
def test_all_that_need_it_are_rekeyed_and_restore_with_the_new_key(
    postgres17: PostgresServer,
    site: Callable[..., Site],
    shop_of: Callable[[PostgresServer], str],
    new_key: NewKey,
    new_name: NewName,
) -> None:
    here, name, (first, second) = site(postgres17), new_name(postgres17), (new_key(), new_key())
    old = here.take(shop_of(postgres17))
    for recipients, key in ((first, first), (second, first)):
        here.settings |= {
            "BACKUPD_ENCRYPTION__RECIPIENTS": recipients.recipient,
            "BACKUPD_ENCRYPTION__IDENTITIES_FILE": str(key.path),
        }
        ended = here.run("rekey", "all")
        assert ended.code == 0, ended.stderr
        assert ended.stdout.count("is now") == 1
    assert "nothing to rekey" in here.run("rekey", "all").stdout
    assert len(here.listed()) == 3
    ended = here.run("restore", "latest", "--as", name, BACKUPD_ENCRYPTION__IDENTITIES_FILE=str(second.path))
    assert ended.code == 0, ended.stderr
    assert contents(postgres17, name) == contents(postgres17, old.source.database)
    here.assert_clean()


@pytest.mark.slow
def test_one_that_is_killed_leaves_no_half_backup(
    postgres17: PostgresServer, site: Callable[..., Site], large_of: Callable[[PostgresServer], str], key: Key
) -> None:
    here = site(postgres17, BACKUPD_ENCRYPTION__RECIPIENTS=key.recipient)
    old = here.take(large_of(postgres17))
    run = here.start("rekey", old.id)
    wait_until(lambda: list(here.store.rglob("*.rekeyed-1.json")), "nothing was begun")
    run.send(9)
    run.end()
    assert set(here.listed()) >= {old.id}
    ended = here.run("rekey", old.id)
    assert ended.code == 0, ended.stderr
    here.settings["BACKUPD_ENCRYPTION__IDENTITIES_FILE"] = str(key.path)
    assert here.run("verify", "all").code == 0
    assert len(here.listed()) == 2
