"""What adversaries can do, as FORMAT.md's threat model says it, where no other test has the promise already.

A promise that something is found out is tested by doing it; so is what the document says is *not* found out, since a
promise that is too small misleads nobody, and one that is too large does.
"""

import contextlib
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import signed
from botocore.exceptions import ClientError
from fake_s3 import Fake
from fix_encryption import NewKey
from fix_postgres import PostgresServer
from fix_store import S3Server
from fix_tools import Site
from made_archives import MEMBERS, STARTED_AT
from made_backups import made_manifest
from made_keys import made_keys
from store_memory import MemoryStore

from backupd import archive, retention, verify
from backupd.catalog import Catalog
from backupd.decode import END_MARKER
from backupd.encryption import Identities
from backupd.errors import NotTrusted, VerificationFailed
from backupd.freshness import check
from backupd.layout import SIGNATURE, archive_key, manifest_key, note_key
from backupd.manifest import Backup
from backupd.progress import Progress
from backupd.retention import Policy
from backupd.selector import name_of
from backupd.signing import Keys

TOP = Path(__file__).parent.parent
KEYS = made_keys()
DAY = timedelta(days=1)
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
POLICY = Policy(daily=3, floor=2, expect_within=2 * DAY)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def catalog(store: MemoryStore) -> Catalog:
    return Catalog(store, KEYS)


def take(catalog: Catalog, started_at: datetime, row: bytes = b"1\tone\n", recipients: tuple[str, ...] = ()) -> Backup:
    """A backup with a real archive, encrypted to the recipients, signed where the catalog has a key."""
    return signed.take(catalog, made_manifest(started_at), {**MEMBERS, "3457.dat": row + END_MARKER}, recipients)


def snapshot(store: MemoryStore, backup: Backup) -> dict[str, bytes]:
    """What a reader of the store keeps of a backup."""
    prefix = f"{name_of(backup).label}/{backup.id}."
    return {key: data for key, (data, _) in store.objects.items() if key.startswith(prefix)}


def put(store: MemoryStore, objects: dict[str, bytes]) -> None:
    """What a writer of the store puts there."""
    store.objects.update((key, (data, store.now)) for key, data in objects.items())


# --- whoever writes the store


def test_archives_of_one_size_that_are_swapped_are_found_out(catalog: Catalog, store: MemoryStore) -> None:
    first, second = take(catalog, STARTED_AT), take(catalog, STARTED_AT + DAY, b"1\tten\n")
    one, other = (archive_key(name_of(backup)) for backup in (first, second))
    assert first.manifest.archive_bytes == second.manifest.archive_bytes
    store.objects[one], store.objects[other] = store.objects[other], store.objects[one]

    for backup in catalog.backups().backups:
        with pytest.raises(VerificationFailed):
            archive.read_index(catalog.archive(backup))


def test_an_archive_and_its_index_made_anew_do_not_fit_the_signed_manifest(
    catalog: Catalog, store: MemoryStore
) -> None:
    """The adversary does all that backupd does, but for signing."""
    mine = snapshot(store, take(catalog, STARTED_AT))
    store.objects.clear()
    forged = take(Catalog(store), STARTED_AT, b"1\tmal\n")
    key = manifest_key(name_of(forged))
    put(store, {key + SIGNATURE: mine[key + SIGNATURE]})
    assert catalog.backups().backups[0].untrusted == "its signature is wrong"

    put(store, {name: data for name, data in mine.items() if name.startswith(key)})
    (backup,) = catalog.backups().backups
    assert backup.untrusted is None
    with pytest.raises(VerificationFailed):
        verify.verify(catalog, backup, NOW, Progress())


def test_a_fake_newest_backup_is_refused_as_latest_and_never_passed_over_for_an_older_one(
    catalog: Catalog, store: MemoryStore
) -> None:
    take(catalog, STARTED_AT)
    fake = take(Catalog(store), STARTED_AT + DAY)

    chosen = catalog.find("app@latest")
    assert chosen.id == fake.id
    with pytest.raises(NotTrusted, match="it has no signature"):
        catalog.archive(chosen)


def test_a_deleted_backup_that_is_put_back_is_what_it_was_and_pushes_no_newer_one_out(
    catalog: Catalog, store: MemoryStore
) -> None:
    days = [take(catalog, STARTED_AT + day * DAY) for day in range(6)]
    old = snapshot(store, days[0])
    now = STARTED_AT + 6 * DAY
    for backup in retention.plan(catalog.backups().backups, POLICY, now).removed:
        catalog.delete(backup)
    kept = catalog.backups().backups
    put(store, old)

    listing = catalog.backups()
    assert listing.backups == (*kept, days[0]), "it is genuine, and nothing says that it was deleted"
    assert retention.plan(listing.backups, POLICY, now).removed == (days[0],)


def test_a_newest_backup_that_somebody_deleted_is_missed_by_check_and_stops_retention(
    catalog: Catalog, store: MemoryStore
) -> None:
    days = [take(catalog, STARTED_AT + day * DAY) for day in range(6)]
    now = STARTED_AT + 5 * DAY + timedelta(hours=12)
    assert not check(catalog.backups(), None, DAY, now)[0].stale
    for backup in days[3:]:
        for key in snapshot(store, backup):
            del store.objects[key]

    assert check(catalog.backups(), None, DAY, now)[0].stale
    plan = retention.plan(catalog.backups().backups, POLICY, now)
    assert plan.removed == ()
    assert "is older than" in plan.frozen[0].reason


def test_a_note_that_somebody_deleted_is_not_missed(catalog: Catalog, store: MemoryStore) -> None:
    """Not found out: of the notes that are left the newest counts. Only a store that deletes nothing prevents that."""
    backup = take(catalog, STARTED_AT)
    backup = catalog.note(backup, "verified", True, {}, NOW)
    backup = catalog.note(backup, "verified", False, {"error": "damaged"}, NOW)
    assert catalog.backups().backups[0].suspect
    for ending in ("", SIGNATURE):
        del store.objects[note_key(name_of(backup), "verified", 2) + ending]

    assert catalog.backups().backups[0].suspect is None


def test_a_note_that_was_signed_for_a_copy_counts_here_and_vouches_for_no_other_bytes(
    catalog: Catalog, store: MemoryStore
) -> None:
    """Not found out: a signature says of which backup a note is, and not in which store."""
    backup = take(catalog, STARTED_AT)
    catalog.note(backup, "pinned", True, {}, NOW)
    second = MemoryStore()
    put(second, snapshot(store, backup))  # a copy has the same bytes
    Catalog(second, KEYS).note(backup, "pinned", False, {}, NOW)
    Catalog(second, KEYS).note(backup, "verified", True, {}, NOW)
    assert catalog.backups().backups[0].pinned
    key = archive_key(name_of(backup))
    put(store, {**snapshot(second, backup), key: bytes(backup.manifest.archive_bytes)})

    (replayed,) = catalog.backups().backups
    assert (replayed.untrusted, replayed.pinned, replayed.manifest) == (None, False, backup.manifest)
    assert [note.ok for note in replayed.notes if note.kind == "verified"] == [True]
    with pytest.raises(VerificationFailed):
        archive.read_index(catalog.archive(replayed))


@pytest.mark.slow
@pytest.mark.parametrize("versioned", [True, False])
def test_what_object_lock_holds_can_be_hidden_at_most_and_is_there_again_as_it_was(
    versioned: bool, fake_s3: Callable[..., tuple[Fake, S3Server]]
) -> None:
    """The adversary has every right but to pass over a lock; a service without versions refuses it more."""
    fake, server = fake_s3(locks=True, versioned=versioned)
    locking = Catalog(server.store(object_lock="compliance", object_lock_for=30 * DAY), KEYS)
    backup = locking.note(take(locking, STARTED_AT), "pinned", True, {}, NOW)
    written = {key: versions[0].id for key, versions in fake.versions.items()}
    for key, version in written.items():
        where = {"Bucket": server.bucket, "Key": key}
        for attempt in (partial(server.client.put_object, Body=b"forged"), server.client.delete_object):
            with contextlib.nullcontext() if versioned else pytest.raises(ClientError, match="AccessDenied"):
                attempt(**where)
        with pytest.raises(ClientError, match="AccessDenied"):
            server.client.delete_object(**where, VersionId=version)

    assert locking.backups().backups == (() if versioned else (backup,))
    for key, version in written.items():
        for later in [each.id for each in fake.versions[key] if each.id != version]:
            server.client.delete_object(Bucket=server.bucket, Key=key, VersionId=later)
    assert locking.backups().backups == (backup,)
    assert verify.verify(locking, backup, NOW, Progress()).id == backup.id


def test_what_is_copied_to_another_label_of_the_fleet_is_refused(catalog: Catalog, store: MemoryStore) -> None:
    """One server's backup under another's name would be restored over the wrong database."""
    mine = snapshot(store, take(catalog, STARTED_AT))
    put(store, {key.replace("prod/app", "prod/billing"): data for key, data in mine.items()})

    listing = catalog.backups("prod", "billing")
    assert listing.backups == ()
    assert "is another backup's" in listing.broken[0].error.message


def test_that_something_is_encrypted_to_us_says_nothing_about_who_wrote_it(store: MemoryStore, new_key: NewKey) -> None:
    ours = new_key()
    forged = take(Catalog(store), STARTED_AT, b"1\tmal\n", (ours.recipient,))  # public keys are public

    opening = Catalog(store, identities=Identities(ours.path))
    assert verify.verify(opening, forged, NOW, Progress()).suspect is None
    checking = replace(opening, keys=KEYS)
    with pytest.raises(NotTrusted):
        checking.archive(checking.backups().backups[0])


def test_without_keys_a_forged_backup_is_taken_for_a_good_one(store: MemoryStore) -> None:
    """Not found out: hashes that lie beside what they are of prove nothing about who wrote it."""
    take(Catalog(store, KEYS), STARTED_AT)
    store.objects.clear()
    forged = take(Catalog(store), STARTED_AT, b"1\tmal\n")

    trusting = Catalog(store, Keys(KEYS.secret))
    verified = verify.verify(trusting, trusting.backups().backups[0], NOW, Progress())
    assert (verified.id, verified.suspect) == (forged.id, None)


# --- whoever owns the backup pod


def test_who_has_the_signing_key_signs_what_they_like_for_any_label(catalog: Catalog, store: MemoryStore) -> None:
    """Not found out: so a server that shares a store has a key of its own, and restores believe only that."""
    stolen = Catalog(store, Keys(KEYS.secret))
    forged = take(stolen, STARTED_AT, b"1\tmal\n")
    assert catalog.backups().backups == (forged,)

    of_another_server = Catalog(store, Keys(trusted=made_keys(2).trusted))
    assert "which is not among" in (of_another_server.backups().backups[0].untrusted or "")


# --- whoever owns the network


def test_a_server_that_cannot_prove_who_it_is_gets_no_session_where_that_is_asked_for(
    site: Callable[..., Site], postgres17: PostgresServer
) -> None:
    here = site(postgres17, BACKUPD_SOURCE__SSLMODE="verify-full", BACKUPD_SOURCE__SSLROOTCERT="system")

    ended = here.run("backup", "postgres")
    assert (ended.code, here.objects()) == (18, {}), ended.stderr


# --- the document

MODEL = (TOP / "FORMAT.md").read_text(encoding="utf-8").partition("## Threat model")[2].partition("\n## ")[0]
ROWS = [line for line in MODEL.splitlines() if line.startswith("| ") and not line.startswith("| it may")]
ADVERSARIES = ("Accidents", "reads the store", "writes the store", "source database", "backup pod", "network")


def test_every_adversary_has_a_part_of_the_threat_model_and_every_part_has_lines() -> None:
    parts = re.split(r"^### ", MODEL, flags=re.MULTILINE)[1:]

    assert [
        adversary for adversary in ADVERSARIES if not any(adversary in part.splitlines()[0] for part in parts)
    ] == []
    assert len(parts) == len(ADVERSARIES)
    assert all("\n| " in part for part in parts)


@pytest.mark.parametrize("row", ROWS, ids=[row[2:50].strip() for row in ROWS])
def test_every_line_of_the_threat_model_has_tests_that_exist(row: str) -> None:
    named = re.findall(r"`(test_\w+)\.(test_\w+)`", row.split("|")[-2])

    assert named, row
    for module, test in named:
        source = (TOP / "tests" / f"{module}.py").read_text(encoding="utf-8")
        assert f"\ndef {test}(" in source, f"{module}.py has no {test}"
