"""Stores that keep what is to be deleted: Object Lock, versions, credentials without the right; said, never a loop."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fake_s3 import Fake, Quirks
from fix_postgres import PostgresServer
from fix_store import ACCESS_KEY, PART_BYTES, S3Server
from fix_tools import Site, s3_site
from made_backups import ARCHIVE, made_manifest
from structlog.testing import capture_logs

from backupd import grants, probe, retention
from backupd.catalog import Catalog
from backupd.commands import shared
from backupd.errors import Retained, StoreError
from backupd.finding import Finding
from backupd.layout import archive_key
from backupd.manifest import Backup
from backupd.retention import Policy
from backupd.selector import Label, Name
from backupd.store import S3Options, Store

pytestmark = pytest.mark.slow

MakeFake = Callable[..., tuple[Fake, S3Server]]
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
DAY = timedelta(days=1)
LOCK: dict[str, Any] = {"object_lock": "governance", "object_lock_for": 30 * DAY}
WORM: dict[str, Any] = {"locks": True, "versioned": False}
"""As Google and others lock: without versions, so that a delete of what is locked is refused."""


def put(store: Store, key: str, data: bytes = b"x") -> None:
    with store.create(key, len(data)) as stream:
        stream.write(data)


def stocked(store: Store, count: int) -> list[Backup]:
    """So many backups, a day apart, newest first."""
    found = Catalog(store)
    taken = []
    for number in range(count):
        manifest = made_manifest(NOW - number * DAY, number=number)
        put(store, archive_key(Name(Label("prod", "app"), manifest.id)), ARCHIVE)
        taken.append(found.commit(manifest))
    return taken


def listed(store: Store) -> list[str]:
    listing = Catalog(store).backups()
    assert listing.broken == ()
    return [each.id for each in listing.backups]


def pruned(store: Store, keep: int) -> list[tuple[str, datetime | None]]:
    """What the store keeps of what a policy removes."""
    plan = retention.plan(Catalog(store).backups().backups, Policy(last=keep), NOW)
    return [(backup.id, exc.until) for backup, exc in shared.carry_out(Catalog(store), plan)]


def without(actions: str, prefix: str = "a/prefix") -> grants.Document:
    """All three policies as one, without some actions."""
    allowed = grants.policies(f"s3://backups/{prefix}", S3Options(object_lock="governance"))
    statements = [
        {**statement, "Action": [action for action in statement["Action"] if action.split(":")[1] not in actions]}
        for policy in allowed.values()
        for statement in policy["Statement"]
    ]
    return {"Statement": statements}


# --- Object Lock


@pytest.mark.parametrize("mode", ["governance", "compliance"])
@pytest.mark.parametrize("data", [b"small", bytes(PART_BYTES + 1)], ids=["small", "parts"])
def test_each_object_is_locked_as_asked_for_by_the_clock_of_the_service(
    fake_s3: MakeFake, mode: str, data: bytes
) -> None:
    fake, server = fake_s3(quirks=Quirks(skew=timedelta(minutes=10)), versioned=True, locks=True)
    put(server.store(object_lock=mode, object_lock_for=3 * DAY), "db/x", data)
    (version,) = fake.versions["a/prefix/db/x"]
    assert version.headers["x-amz-object-lock-mode"] == mode.upper()
    assert version.retained_until is not None
    assert abs(version.retained_until - fake.now - 3 * DAY) < timedelta(minutes=1)


def test_a_lock_is_asked_for_by_moto_as_by_aws(moto_s3: S3Server) -> None:
    bucket = f"{moto_s3.bucket}-locked"
    moto_s3.client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    server = S3Server(moto_s3.endpoint_url, bucket, moto_s3.client)
    store = server.store(**LOCK)
    put(store, "db/x")
    head = server.client.head_object(Bucket=bucket, Key="a/prefix/db/x")
    assert head["ObjectLockMode"] == "GOVERNANCE"
    with pytest.raises(Retained, match="it is retained until"):
        store.delete("db/x")
    assert server.keys() == ["a/prefix/db/x"]


@pytest.mark.parametrize("versioned", [True, False])
def test_a_locked_object_stays_listed_until_its_lock_ends(fake_s3: MakeFake, versioned: bool) -> None:
    fake, server = fake_s3(locks=True, versioned=versioned)
    store = server.store(**LOCK)
    put(store, "db/x")
    with pytest.raises(Retained, match=r"db/x: it is retained until 20..-..-.. ..:.. UTC") as raised:
        store.delete("db/x")
    assert raised.value.until is not None
    assert [entry.key for entry in store.list()] == ["db/x"]
    assert fake.versions["a/prefix/db/x"][-1].data == b"x"  # and no marker hides it
    fake.expire_locks()
    store.delete("db/x")
    assert list(store.list()) == []


def test_a_lock_that_the_bucket_sets_is_told_where_the_delete_is_refused(fake_s3: MakeFake) -> None:
    fake, server = fake_s3(**WORM, lock_default=2 * DAY)
    store = server.store(checksums="md5")
    put(store, "db/x")
    with pytest.raises(Retained) as raised:
        store.delete("db/x")
    assert raised.value.until is not None
    fake.policies[ACCESS_KEY] = without("GetObjectRetention")
    with pytest.raises(Retained) as raised:
        store.delete("db/x")
    assert raised.value.until is None
    assert "lifecycle" in f"{raised.value.hint}"


def test_a_bucket_that_locks_wants_a_checksum_and_the_hint_names_the_setting(fake_s3: MakeFake) -> None:
    _, server = fake_s3(locks=True, versioned=True)
    with pytest.raises(StoreError) as raised:
        put(server.store(checksums="when_required", **LOCK), "db/x")
    assert "BACKUPD_STORE__S3__CHECKSUMS" in f"{raised.value.hint}"
    for checksums in ("auto", "md5", "when_supported"):
        put(server.store(checksums=checksums, **LOCK), f"db/{checksums}", bytes(PART_BYTES + 1))
    assert len(server.keys()) == 3


def test_a_policy_prunes_what_is_not_locked_and_says_until_when_the_rest_stays(fake_s3: MakeFake) -> None:
    fake, server = fake_s3(**WORM)
    old = stocked(server.store(), 4)[1:]
    locked = made_manifest(NOW - 9 * DAY, number=9)
    store = server.store(**LOCK)
    put(store, archive_key(Name(Label("prod", "app"), locked.id)), ARCHIVE)
    Catalog(store).commit(locked)
    with capture_logs() as events:
        ((kept, until),) = pruned(store, keep=2)
    assert kept == locked.id
    assert until is not None
    assert [event["event"] for event in events if event["event"].startswith("backup.")] == [
        "backup.pruned",
        "backup.pruned",
        "backup.retained",
    ]
    assert len(listed(store)) == 3
    assert old[1].id not in listed(store)
    fake.expire_locks()
    assert pruned(store, keep=2) == []
    assert len(listed(store)) == 2


def test_a_note_that_is_locked_longer_is_left_alone_and_swept_when_its_lock_ends(fake_s3: MakeFake) -> None:
    fake, server = fake_s3(**WORM)
    (backup,) = stocked(server.store(), 1)
    store = server.store(**LOCK)
    Catalog(store).note(backup, "verified", True, {}, NOW)
    with capture_logs() as events:
        Catalog(store).delete(backup)
    assert [event["event"] for event in events] == ["orphan.retained"]
    assert [entry.key for entry in Catalog(store).backups().orphans] == [f"prod/app/{backup.id}.verified-1.json"]
    assert Catalog(store).sweep("prod", "app", NOW) == []
    fake.expire_locks()
    assert Catalog(store).sweep("prod", "app", NOW) == [f"prod/app/{backup.id}.verified-1.json"]
    assert list(store.list()) == []


# --- no right to delete


def test_without_the_right_to_delete_the_policy_drifts_and_one_refusal_is_enough(fake_s3: MakeFake) -> None:
    fake, server = fake_s3()
    stocked(server.store(), 5)
    fake.policies[ACCESS_KEY] = without("DeleteObject")
    with capture_logs() as events:
        assert [until for _, until in pruned(server.store(), keep=2)] == [None] * 3
    assert sum(line.startswith("DELETE") for line in fake.seen) == 1
    (drift,) = events
    assert (drift["event"], drift["backups"]) == ("retention.drift", 3)
    assert len(listed(server.store())) == 5


def test_without_the_right_to_delete_orphans_and_uploads_stay_and_are_said(fake_s3: MakeFake) -> None:
    fake, server = fake_s3()
    put(server.store(), "prod/app/20261119T120000Z-00000001.tar")
    server.client.create_multipart_upload(Bucket="backups", Key="a/prefix/prod/app/20261119T120000Z-00000002.tar")
    fake.policies[ACCESS_KEY] = without("DeleteObject AbortMultipartUpload")
    with capture_logs() as events:
        assert Catalog(server.store()).sweep("prod", "app", fake.now + DAY) == []
    assert [event["event"] for event in events] == ["orphan.retained"] * 2
    assert all("doctor --print-lifecycle" in event["action"] for event in events)
    fake.policies.clear()
    assert len(Catalog(server.store()).sweep("prod", "app", fake.now + DAY)) == 2


def test_an_archive_whose_manifest_the_list_does_not_show_yet_is_no_orphan(fake_s3: MakeFake) -> None:
    fake, server = fake_s3()
    (backup,) = stocked(server.store(), 1)
    key = f"a/prefix/prod/app/{backup.id}.json"
    (version,) = fake.versions[key]
    fake.hidden.add(key)
    assert len(Catalog(server.store()).backups().orphans) == 1
    assert Catalog(server.store()).sweep("prod", "app", NOW) == []
    fake.hidden.clear()
    assert listed(server.store()) == [backup.id]
    assert fake.versions[key] == [version]


def test_a_list_that_does_not_show_what_was_just_written_is_named(fake_s3: MakeFake) -> None:
    fake, server = fake_s3()
    manifest = made_manifest(NOW)
    key = archive_key(Name(Label("prod", "app"), manifest.id))
    put(server.store(), key, ARCHIVE)
    fake.hidden.add(f"a/prefix/{key}")
    with pytest.raises(StoreError, match="does not list it") as raised:
        Catalog(server.store()).commit(manifest)
    assert "lists" in f"{raised.value.hint}"
    fake.hidden.clear()
    assert listed(server.store()) == []


# --- doctor


def examined(server: S3Server, **options: Any) -> dict[str, Finding]:
    findings = probe.examine(f"s3://{server.bucket}/a/prefix", server.options(**options), lambda: datetime.now(UTC))
    return {finding.name: finding for finding in findings}


def doubts(found: dict[str, Finding]) -> set[str]:
    assert not [finding for finding in found.values() if finding.status == "fail"], found
    return {name for name, finding in found.items() if finding.status == "warn"}


def test_doctor_says_that_a_delete_only_hides_where_versions_are_kept(fake_s3: MakeFake) -> None:
    _, server = fake_s3(versioned=True)
    found = examined(server)
    assert doubts(found) == {"store versions"}
    assert "delete marker" in found["store versions"].text
    assert "doctor --print-lifecycle" in f"{found['store versions'].hint}"


def test_doctor_is_content_where_the_lifecycle_rule_that_it_prints_is_set(moto_s3: S3Server) -> None:
    moto_s3.client.put_bucket_versioning(Bucket=moto_s3.bucket, VersioningConfiguration={"Status": "Enabled"})
    assert "store versions" in doubts(examined(moto_s3))
    rules = grants.lifecycle(f"s3://{moto_s3.bucket}/a/prefix", Policy(daily=7, monthly=6), S3Options())
    assert [rule.get("Expiration") for rule in rules["Rules"]] == [{"ExpiredObjectDeleteMarker": True}, {"Days": 187}]
    moto_s3.client.put_bucket_lifecycle_configuration(Bucket=moto_s3.bucket, LifecycleConfiguration=rules)
    assert doubts(examined(moto_s3)) == set()


def test_doctor_tries_a_lock_that_ends_soon(fake_s3: MakeFake) -> None:
    fake, server = fake_s3(versioned=True, locks=True)
    found = examined(server, **LOCK)
    assert doubts(found) == {"store versions"}
    assert "governance" in found["store lock"].text
    (locked,) = [key for key in fake.visible() if key.endswith("-locked")]
    until = fake.versions[locked][-1].retained_until
    assert until is not None
    assert until < fake.now + timedelta(minutes=2)
    assert len(fake.visible()) == 1


def test_doctor_fails_where_a_lock_is_asked_for_and_the_bucket_has_none(fake_s3: MakeFake) -> None:
    _, server = fake_s3()
    found = examined(server, **LOCK)
    assert found["store lock"].status == "fail"
    assert "BACKUPD_STORE__S3__OBJECT_LOCK" in f"{found['store lock'].hint}"
    assert server.keys() == []


def test_doctor_names_the_settings_where_the_bucket_locks_by_itself(fake_s3: MakeFake) -> None:
    _, server = fake_s3(versioned=True, locks=True, lock_default=14 * DAY)
    found = examined(server, checksums="md5")
    assert "BACKUPD_STORE__S3__OBJECT_LOCK_FOR=14d" in f"{found['store lock'].hint}"


def test_doctor_doubts_and_writes_only_one_object_where_nothing_may_be_deleted(fake_s3: MakeFake) -> None:
    fake, server = fake_s3()
    fake.policies[ACCESS_KEY] = without("DeleteObject")
    found = examined(server)
    assert doubts(found) == {"store delete"}
    assert "doctor --print-lifecycle" in f"{found['store delete'].hint}"
    assert len(fake.visible()) == 1
    assert fake.uploads == {}


# --- the command line


@pytest.mark.slow
def test_prune_and_delete_say_until_when_a_backup_stays(
    fake_s3: MakeFake, site: Callable[..., Site], postgres17: PostgresServer
) -> None:
    _, server = fake_s3(versioned=True, locks=True)
    here = s3_site(site, postgres17, server)
    here.settings |= {"BACKUPD_RETENTION__KEEP_LAST": "1", "BACKUPD_RETENTION__FLOOR": "1"}
    here.settings |= {"BACKUPD_STORE__S3__OBJECT_LOCK": "compliance", "BACKUPD_STORE__S3__OBJECT_LOCK_FOR": "2d"}
    taken = stocked(server.store(object_lock="compliance", object_lock_for=2 * DAY), 2)
    text, document = here.run("prune", "--yes"), here.run("prune", "--yes", "--json")
    assert text.code == document.code == 0, text.stderr
    assert f"prod/app@{taken[1].id}: retained until 20" in text.stdout
    (retained,) = json.loads(document.stdout)["retained"]
    assert retained["backup"] == f"prod/app@{taken[1].id}"
    deleted = here.run("delete", taken[0].id, "--yes")
    assert (deleted.code, deleted.error["reason"]) == (12, "retained")
    assert "it is retained until" in deleted.error["message"]
    assert here.listed() == [each.id for each in taken]


@pytest.mark.slow
def test_a_backup_ends_with_0_where_nothing_may_be_deleted(
    fake_s3: MakeFake, site: Callable[..., Site], postgres17: PostgresServer, shop_of: Callable[[PostgresServer], str]
) -> None:
    fake, server = fake_s3()
    here, database = s3_site(site, postgres17, server), shop_of(postgres17)
    here.settings |= {"BACKUPD_RETENTION__KEEP_LAST": "1", "BACKUPD_RETENTION__FLOOR": "1"}
    fake.policies[ACCESS_KEY] = without("DeleteObject")
    put(server.store(), f"prod/{database}/20261119T120000Z-00000001.tar")
    first, second = here.run("backup", database), here.run("backup", database)
    assert (first.code, second.code) == (0, 0), second.stderr
    assert [event["event"] for event in second.events if event["level"] == "warning"].count("retention.drift") == 1
    assert len(here.listed()) == 2
    pruned = here.run("prune", "--yes")
    assert pruned.code == 0
    assert "stays: these credentials may not delete it" in pruned.stdout
    assert len(here.orphans()) == 1
