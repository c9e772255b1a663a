"""One fake for each known quirk of services that speak S3: all passes, or `doctor` names the quirk and the setting."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fake_s3 import Fake, Quirks
from fix_postgres import PostgresServer
from fix_store import PART_BYTES, S3Server
from fix_tools import Site, s3_site

from backupd import fetch, probe, retention
from backupd.commands import shared
from backupd.errors import BackupdError, StoreError
from backupd.finding import Finding
from backupd.progress import Progress
from backupd.retention import Policy
from backupd.store import Store

pytestmark = pytest.mark.slow

MakeFake = Callable[..., tuple[Fake, S3Server]]
PARTS = bytes(range(256)) * (2 * PART_BYTES // 256) + b"and a little"


@dataclass(frozen=True)
class Case:
    """A quirk, the options with which all passes, and, where these are not the usual ones, what doctor says without."""

    quirks: Quirks
    options: dict[str, Any] = field(default_factory=dict)
    check: str = ""
    hint: str = ""


CASES = {
    "none": Case(Quirks()),
    "no checksum headers": Case(Quirks(knows_checksums=False)),
    "no checksum headers, asked for them": Case(
        Quirks(knows_checksums=False), {"checksums": "when_required"}, "store put", "BACKUPD_STORE__S3__CHECKSUMS"
    ),
    "MissingContentMD5": Case(
        Quirks(wants_md5=True), {"checksums": "md5"}, "store put", "BACKUPD_STORE__S3__CHECKSUMS to md5"
    ),
    "a limit of parts": Case(
        Quirks(part_limit=2), {"part_limit": 2, "part_bytes": 4 * PART_BYTES}, "", "BACKUPD_STORE__S3__PART_LIMIT"
    ),
    "equal parts": Case(Quirks(equal_parts=True)),
    "parts in order": Case(Quirks(parts_in_order=True)),
    "If-None-Match ignored": Case(Quirks(if_none_match="ignored")),
    "If-None-Match refused": Case(Quirks(if_none_match="refused")),
    "path style only": Case(Quirks(addressing="path")),
    "virtual only": Case(
        Quirks(addressing="virtual"), {"addressing": "virtual"}, "store list", "BACKUPD_STORE__S3__ADDRESSING"
    ),
    "ListObjects V1, V2 answered as V1": Case(Quirks(list_version="1", page=2)),
    "ListObjects V1, V2 refused": Case(Quirks(list_version="only 1", page=2)),
    "pages of two": Case(Quirks(page=2)),
    "no range on encrypted objects": Case(
        Quirks(ranges_of_encrypted=False), {"sse": None}, "store range", "BACKUPD_STORE__S3__SSE"
    ),
}
"""By the name of each quirk. A limit of parts shows only at the size that it forbids, so not in doctor."""

WRONG: dict[str, dict[str, Any]] = {
    "no checksum headers, asked for them": {"checksums": "when_supported"},
    "no range on encrypted objects": {"sse": "AES256"},
}
"""The options that are no use, where these are not the defaults."""


@pytest.fixture
def reached(fake_s3: MakeFake, monkeypatch: pytest.MonkeyPatch) -> Callable[[Quirks], tuple[Fake, S3Server]]:
    """A fake under a name, as it needs one for a bucket in the host: requests get there as through a proxy."""

    def reach(quirks: Quirks) -> tuple[Fake, S3Server]:
        fake, server = fake_s3(quirks=quirks)
        if quirks.addressing == "both":
            return fake, server
        monkeypatch.setenv("HTTP_PROXY", fake.endpoint_url)
        return fake, S3Server("http://s3.test", server.bucket, server.client)

    return reach


def put(store: Store, key: str, data: bytes) -> None:
    with store.create(key, len(data)) as stream:
        for start in range(0, len(data), 1 << 20):
            stream.write(data[start : start + (1 << 20)])


def get(store: Store, key: str, start: int = 0, length: int | None = None) -> bytes:
    with store.open(key, start, length) as stream:
        return stream.read()


def examined(server: S3Server, **options: Any) -> dict[str, Finding]:
    findings = probe.examine(f"s3://{server.bucket}/a/prefix", server.options(**options), lambda: datetime.now(UTC))
    return {finding.name: finding for finding in findings}


@pytest.mark.parametrize("name", CASES)
def test_a_store_with_that_quirk_writes_lists_reads_and_deletes(
    name: str, reached: Callable[[Quirks], tuple[Fake, S3Server]]
) -> None:
    case = CASES[name]
    fake, server = reached(case.quirks)
    store = server.store(**case.options)
    put(store, "db/x%20y+z.tar", PARTS)
    for number in range(4):
        put(store, f"db/{number}.json", b"{}")
    assert [entry.key for entry in store.list()] == [*(f"db/{number}.json" for number in range(4)), "db/x%20y+z.tar"]
    assert get(store, "db/x%20y+z.tar") == PARTS
    assert get(store, "db/x%20y+z.tar", PART_BYTES - 7, 1000) == PARTS[PART_BYTES - 7 : PART_BYTES + 993]
    for entry in list(store.list()):
        store.delete(entry.key)
    assert fake.visible() == []
    assert store.sweep("", fake.now + timedelta(days=1)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_doctor_passes_or_names_the_quirk_and_the_setting(
    name: str, reached: Callable[[Quirks], tuple[Fake, S3Server]]
) -> None:
    case = CASES[name]
    _, server = reached(case.quirks)
    right = examined(server, **case.options)
    assert {finding.name: finding.text for finding in right.values() if finding.status not in ("ok", "skip")} == {}
    if case.check:
        wrong = examined(server, **WRONG.get(name, {}))
        assert wrong[case.check].status == "fail"
        assert case.hint in f"{wrong[case.check].hint}"


def test_a_limit_of_parts_is_named_where_it_is_met(fake_s3: MakeFake) -> None:
    fake, server = fake_s3(quirks=CASES["a limit of parts"].quirks)
    with pytest.raises(StoreError) as raised:
        put(server.store(), "db/x.tar", PARTS)
    assert "BACKUPD_STORE__S3__PART_LIMIT" in f"{raised.value.hint}"
    assert (fake.visible(), fake.uploads) == ([], {})


def test_a_bucket_in_the_host_where_only_paths_are_known_is_refused_with_the_setting(
    reached: Callable[[Quirks], tuple[Fake, S3Server]],
) -> None:
    fake, server = reached(Quirks(addressing="path"))
    found = examined(server, addressing="virtual")
    failed = next(finding for finding in found.values() if finding.status == "fail")
    assert "BACKUPD_STORE__S3__ADDRESSING" in f"{failed.hint}"
    with pytest.raises(BackupdError) as raised:
        list(server.store(addressing="virtual").list())
    assert "BACKUPD_STORE__S3__ADDRESSING" in f"{raised.value.hint}"
    assert fake.visible() == []


def test_a_service_that_changes_keys_is_told_with_what_it_means(fake_s3: MakeFake) -> None:
    fake, server = fake_s3(quirks=Quirks(decodes_twice=True))
    found = examined(server)
    assert [name for name, finding in found.items() if finding.status != "ok"] == ["store keys"]
    assert "plain letters" in f"{found['store keys'].hint}"
    assert fake.visible() == []


def test_a_range_that_is_answered_with_the_whole_object_is_an_error_and_never_other_bytes(fake_s3: MakeFake) -> None:
    _, server = fake_s3(quirks=Quirks(ranges_of_encrypted=False))
    store = server.store(sse="AES256")
    put(store, "db/x", b"0123456789")
    for start, length in ((3, None), (3, 4), (0, 4)):
        with pytest.raises(StoreError, match="could not read") as raised:
            get(store, "db/x", start, length)
        assert "BACKUPD_STORE__S3__SSE" in f"{raised.value.hint}"
    assert get(store, "db/x") == b"0123456789"


def test_an_answer_that_is_not_to_what_was_asked_is_an_error_that_does_not_repeat_it(fake_s3: MakeFake) -> None:
    _, server = fake_s3(quirks=Quirks(out_of_step=True))
    store = server.store()
    for act in (store.list, lambda: put(store, "db/x", b"x"), lambda: store.sweep("", datetime.now(UTC))):
        with pytest.raises(StoreError, match="could not") as raised:
            act()
        assert "no service that speaks S3" in f"{raised.value.detail}"
        assert "bytes of another" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_backup_list_restore_and_prune_pass_with_that_quirk(
    name: str,
    reached: Callable[[Quirks], tuple[Fake, S3Server]],
    site: Callable[..., Site],
    postgres17: PostgresServer,
    large_of: Callable[[PostgresServer], str],
    tmp_path: Path,
) -> None:
    case = CASES[name]
    _, server = reached(case.quirks)
    here, database = s3_site(site, postgres17, server), large_of(postgres17)
    here.s3_options = server.options(region="us-east-1", **case.options)
    taken = [here.take(database) for _ in range(2)]
    assert sorted(here.listed()) == sorted(each.id for each in taken)
    (tmp_path / "fetched").mkdir()
    found = here.catalog
    fetch.members(found, taken[0], here.index(taken[0]), tmp_path / "fetched", Progress())
    plan = retention.plan(found.backups().backups, Policy(last=1, floor=1), datetime.now(UTC))
    assert shared.carry_out(found, plan) == []
    assert len(here.listed()) == 1
    assert here.orphans() == []
