"""What only S3 can do: refuse, break off, lose an answer, be slow, count parts; on real servers behind a proxy."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType

import pytest
from fix_store import ACCESS_KEY, PART_BYTES, SECRET_KEY, FaultProxy, S3Server
from fix_tools import wait_until

from backupd.errors import (
    AccessRefused,
    BackupdError,
    Interrupted,
    NoRoom,
    NotFound,
    StoreError,
    UsageError,
)
from backupd.store import S3Options, Store, open_store
from backupd.store.s3 import S3Store

pytestmark = pytest.mark.slow

CHUNK_BYTES = 128 * 1024
PARTS = random.Random(2).randbytes(3 * PART_BYTES + 4321)
Proxied = Callable[[S3Server], tuple[FaultProxy, S3Server]]


def put(store: Store, key: str, data: bytes, expected_bytes: int = 0) -> None:
    with store.create(key, expected_bytes) as stream:
        for start in range(0, len(data), CHUNK_BYTES):
            stream.write(data[start : start + CHUNK_BYTES])


def get(store: Store, key: str) -> bytes:
    with store.open(key) as stream:
        return stream.read()


def fail(times: int, fault: str, word: str, method: str = "PUT") -> Callable[[str, str, int], str | None]:
    """A rule: the first so many requests of a method whose path has the word fail."""
    left = iter(range(times))

    def rule(asked: str, path: str, number: int) -> str | None:
        return fault if asked == method and word in path and next(left, None) is not None else None

    return rule


def assert_nothing_left(server: S3Server) -> None:
    assert server.keys() == []
    assert server.uploads() == []


# Faults that pass: the object arrives.


@pytest.mark.parametrize("fault", ["503 SlowDown", "500 InternalError", "cut request", "lose answer", "slow 1"])
def test_a_part_survives(fault_proxy: Proxied, rclone_s3: S3Server, fault: str) -> None:
    proxy, server = fault_proxy(rclone_s3)
    proxy.rule = fail(2, fault, "partNumber=2")
    put(server.store(), "db/x.tar", PARTS)
    assert get(server.store(), "db/x.tar") == PARTS
    assert sum("partNumber=2" in line for line in proxy.seen) == (1 if fault == "slow 1" else 3)
    assert server.uploads() == []


@pytest.mark.parametrize("fault", ["503 SlowDown", "cut request", "lose answer"])
def test_the_last_request_of_an_upload_survives(fault_proxy: Proxied, rclone_s3: S3Server, fault: str) -> None:
    """Where the answer was lost, the next attempt is told that there is no such upload."""
    proxy, server = fault_proxy(rclone_s3)
    proxy.rule = fail(1, fault, "uploadId=", "POST")
    put(server.store(), "db/x.tar", PARTS)
    assert get(server.store(), "db/x.tar") == PARTS
    assert server.uploads() == []


@pytest.mark.parametrize("fault", ["503 SlowDown", "cut request", "lose answer"])
def test_a_small_object_survives(fault_proxy: Proxied, moto_s3: S3Server, fault: str) -> None:
    """Where the answer was lost, the next attempt is told that the key is taken: by ourselves."""
    proxy, server = fault_proxy(moto_s3)
    proxy.rule = fail(1, fault, "db/x.json")
    put(server.store(), "db/x.json", b"{}")
    assert get(server.store(), "db/x.json") == b"{}"


def test_a_download_goes_on_where_it_broke_off(fault_proxy: Proxied, rclone_s3: S3Server) -> None:
    proxy, server = fault_proxy(rclone_s3)
    put(server.store(), "db/x.tar", PARTS)
    proxy.seen.clear()
    proxy.rule = fail(3, "cut response", "db/x.tar", "GET")
    assert get(server.store(), "db/x.tar") == PARTS
    assert len(proxy.seen) == 4


def test_a_range_goes_on_where_it_broke_off(fault_proxy: Proxied, rclone_s3: S3Server) -> None:
    proxy, server = fault_proxy(rclone_s3)
    put(server.store(), "db/x.tar", PARTS)
    proxy.rule = fail(3, "cut response", "db/x.tar", "GET")
    with server.store().open("db/x.tar", 1000, 2_000_000) as stream:
        assert stream.read() == PARTS[1000:2_001_000]


@pytest.mark.parametrize("answer", ["501 NotImplemented", "400 InvalidArgument"])
@pytest.mark.parametrize("data", [b"small", PARTS], ids=["small", "parts"])
def test_a_service_without_if_none_match_is_written_to(
    fault_proxy: Proxied, rclone_s3: S3Server, answer: str, data: bytes
) -> None:
    proxy, server = fault_proxy(rclone_s3)
    last = ("POST", "uploadId=") if len(data) > PART_BYTES else ("PUT", "x.tar")
    proxy.rule = fail(1, answer, last[1], last[0])
    put(server.store(), "db/x.tar", data)
    assert get(server.store(), "db/x.tar") == data


# Faults that stay: an error, and nothing else.


def test_a_part_that_is_refused_ends_the_upload_at_once(fault_proxy: Proxied, rclone_s3: S3Server) -> None:
    proxy, server = fault_proxy(rclone_s3)
    proxy.rule = fail(99, "403 AccessDenied", "partNumber=2")
    written = 0

    def write() -> None:
        nonlocal written
        with server.store().create("db/x.tar") as stream:
            for _ in range(1000):
                written += stream.write(bytes(CHUNK_BYTES))

    with pytest.raises(AccessRefused, match=r"db/x\.tar") as raised:
        write()
    assert "PutObject" in f"{raised.value.hint}"
    assert written < 6 * PART_BYTES
    assert_nothing_left(server)


def test_a_last_part_that_is_refused_is_an_error(fault_proxy: Proxied, rclone_s3: S3Server) -> None:
    proxy, server = fault_proxy(rclone_s3)
    proxy.rule = fail(99, "403 AccessDenied", "partNumber=4")
    with pytest.raises(AccessRefused, match=r"db/x\.tar"):
        put(server.store(), "db/x.tar", PARTS)
    assert_nothing_left(server)


@pytest.mark.parametrize("code", ["QuotaExceeded", "XMinioStorageFull"])
def test_a_full_store_is_no_room(fault_proxy: Proxied, rclone_s3: S3Server, code: str) -> None:
    proxy, server = fault_proxy(rclone_s3)
    proxy.rule = fail(99, f"403 {code}", "partNumber=2")
    with pytest.raises(NoRoom, match=r"db/x\.tar"):
        put(server.store(), "db/x.tar", PARTS)
    assert_nothing_left(server)


def test_a_refused_last_request_leaves_nothing(fault_proxy: Proxied, rclone_s3: S3Server) -> None:
    proxy, server = fault_proxy(rclone_s3)
    proxy.rule = fail(99, "400 InvalidPart", "uploadId=", "POST")
    with pytest.raises(StoreError, match=r"db/x\.tar") as raised:
        put(server.store(), "db/x.tar", PARTS)
    assert "InvalidPart" in f"{raised.value.detail}"
    assert_nothing_left(server)


def test_an_upload_that_someone_else_ended_is_an_error(rclone_s3: S3Server) -> None:
    def overlap() -> None:
        with rclone_s3.store().create("db/x.tar") as stream:
            stream.write(PARTS)
            assert rclone_s3.store().sweep("", datetime.now(UTC) + timedelta(hours=1)) != []

    with pytest.raises(StoreError, match=r"db/x\.tar") as raised:
        overlap()
    assert "NoSuchUpload" in f"{raised.value.detail}"
    assert_nothing_left(rclone_s3)


@pytest.mark.slow
def test_a_store_that_stays_broken_is_an_error(fault_proxy: Proxied, rclone_s3: S3Server) -> None:
    proxy, server = fault_proxy(rclone_s3)
    proxy.rule = fail(99, "500 InternalError", "partNumber=2")
    with pytest.raises(StoreError, match=r"db/x\.tar") as raised:
        put(server.store(), "db/x.tar", PARTS)
    assert "500 InternalError" in f"{raised.value.detail}"
    assert sum("partNumber=2" in line for line in proxy.seen) == 10
    assert_nothing_left(server)


@pytest.mark.slow
def test_a_store_that_is_not_there_is_an_error(rclone_s3: S3Server) -> None:
    store = rclone_s3.store(endpoint_url="http://127.0.0.1:1")
    with pytest.raises(StoreError, match="could not list") as raised:
        store.list()
    assert "BACKUPD_STORE__S3__ENDPOINT_URL" in f"{raised.value.hint}"


@pytest.mark.slow
def test_a_store_that_goes_away_while_writing_is_an_error(fault_proxy: Proxied, rclone_s3: S3Server) -> None:
    proxy, server = fault_proxy(rclone_s3)
    proxy.rule = lambda method, path, number: "cut request" if "partNumber=3" in "".join(proxy.seen) else None
    with pytest.raises(StoreError, match=r"db/x\.tar") as raised:
        put(server.store(), "db/x.tar", PARTS)
    assert "BACKUPD_STORE__S3__ENDPOINT_URL" in f"{raised.value.hint}"
    assert rclone_s3.keys() == []
    proxy.rule = lambda method, path, number: None
    assert len(server.store().sweep("db/", datetime.now(UTC) + timedelta(hours=1))) == 1
    assert_nothing_left(server)


def test_a_download_that_always_breaks_off_is_an_error(fault_proxy: Proxied, rclone_s3: S3Server) -> None:
    proxy, server = fault_proxy(rclone_s3)
    put(server.store(), "db/x", b"x")  # half of one byte is none: there is never any progress
    proxy.seen.clear()
    proxy.rule = fail(99, "cut response", "db/x", "GET")
    with pytest.raises(StoreError, match="could not read") as raised:
        get(server.store(), "db/x")
    assert "1 bytes before its end" in f"{raised.value.detail}"
    assert len(proxy.seen) == 6


def test_an_object_that_changes_while_it_is_read_is_an_error(fault_proxy: Proxied, rclone_s3: S3Server) -> None:
    proxy, server = fault_proxy(rclone_s3)
    put(server.store(), "db/x.tar", PARTS)
    proxy.rule = fail(1, "cut response", "db/x.tar", "GET")

    def read() -> bytes:
        with server.store().open("db/x.tar") as stream:
            start = stream.read(1000)
            server.client.put_object(Bucket=server.bucket, Key="a/prefix/db/x.tar", Body=PARTS[::-1])
            return start + stream.read()

    with pytest.raises(StoreError, match="could not read") as raised:
        read()
    assert "changed" in f"{raised.value.detail}"


def test_a_store_that_fails_before_the_first_byte_says_so_then(rclone_s3: S3Server) -> None:
    """An hour of pg_dump must not pass before a missing bucket is told."""
    store = open_store("s3://no-such-bucket/p", rclone_s3.options())
    entered = False
    with pytest.raises(StoreError, match="no-such-bucket") as raised, store.create("db/x.tar"):
        entered = True
    assert not entered
    assert not isinstance(raised.value, NotFound)
    assert "BACKUPD_STORE__URL" in f"{raised.value.hint}"


def test_every_use_of_a_missing_bucket_is_an_error(rclone_s3: S3Server) -> None:
    store = open_store("s3://no-such-bucket/p", rclone_s3.options())
    for call in (store.list, lambda: get(store, "x"), lambda: store.delete("x")):
        with pytest.raises(StoreError, match="no-such-bucket") as raised:
            call()
        assert not isinstance(raised.value, NotFound)


@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_refused(rclone_s3: S3Server, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv(wrong, "a-wrong-one")
    store = rclone_s3.store()
    for call in (store.list, lambda: put(store, "db/x", b""), lambda: get(store, "db/x")):
        with pytest.raises(AccessRefused, match="could not") as raised:
            call()
        assert SECRET_KEY not in str(raised.value)
        assert "a-wrong-one" not in str(raised.value)


def test_missing_credentials_are_refused(rclone_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(AccessRefused, match="could not list") as raised:
        rclone_s3.store().list()
    assert "AWS_ACCESS_KEY_ID" in f"{raised.value.hint}"


@pytest.mark.parametrize(
    ("answer", "kind", "word"),
    [
        ("403 AccessDenied", AccessRefused, "s3:ListBucket"),
        ("403 RequestTimeTooSkewed", AccessRefused, "clock"),
        ("400 ExpiredToken", AccessRefused, "s3:ListBucket"),
        ("400 AuthorizationHeaderMalformed", StoreError, "BACKUPD_STORE__S3__REGION"),
        ("400 XAmzContentSHA256Mismatch", StoreError, "BACKUPD_STORE__S3__CHECKSUMS"),
        ("507 InsufficientStorage", NoRoom, "prune"),
    ],
)
def test_what_the_service_answers_is_told_with_a_hint(
    fault_proxy: Proxied, rclone_s3: S3Server, answer: str, kind: type[BackupdError], word: str
) -> None:
    proxy, server = fault_proxy(rclone_s3)
    proxy.rule = fail(99, answer, "", "GET")
    with pytest.raises(kind, match="could not list") as raised:
        server.store().list()
    assert f"answered {answer}: made by the proxy." in f"{raised.value.detail}"
    assert word in f"{raised.value.hint}"


# Interruption.


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """Has Interrupted raised in the main thread in a third of a second, as backupd's own handler does on SIGTERM."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise Interrupted(signal.SIGTERM)

    before = signal.signal(signal.SIGALRM, handler)
    yield lambda: threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGALRM)).start()
    signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["list-type", "uploads", "partNumber=1", "partNumber=3", "uploadId"])
def test_a_signal_ends_the_upload_and_leaves_nothing(
    fault_proxy: Proxied, rclone_s3: S3Server, interrupt: Callable[[], None], moment: str
) -> None:
    """It finds the writer waiting: for an answer, for a free slot, or for the last parts."""
    proxy, server = fault_proxy(rclone_s3)
    store, signalled = server.store(), iter([interrupt])

    def rule(method: str, path: str, number: int) -> str | None:
        if moment not in path or (moment == "uploadId" and method != "POST"):
            return None
        for send in signalled:
            send()
        return "slow 1.5" if method != "DELETE" else None

    proxy.rule = rule
    started = time.monotonic()
    with pytest.raises(Interrupted):
        put(store, "db/x.tar", PARTS)
    assert time.monotonic() - started < 8
    time.sleep(2)  # what was under way when the signal came has arrived by then
    if moment == "uploads":  # begun by a request for whose answer nobody waited
        store.sweep("db/", datetime.now(UTC) + timedelta(hours=1))
    assert_nothing_left(rclone_s3)


@pytest.mark.slow
def test_an_abort_does_not_wait_for_a_stuck_part(
    fault_proxy: Proxied, rclone_s3: S3Server, interrupt: Callable[[], None]
) -> None:
    proxy, server = fault_proxy(rclone_s3)
    store, stuck = server.store(), fail(1, "slow 40", "partNumber=1")

    def rule(method: str, path: str, number: int) -> str | None:
        fault = stuck(method, path, number)
        if fault:
            interrupt()
        return fault

    proxy.rule = rule
    started = time.monotonic()
    with pytest.raises(Interrupted):
        put(store, "db/x.tar", PARTS)
    assert 10 < time.monotonic() - started < 25
    assert_nothing_left(server)


@pytest.mark.slow
def test_what_a_killed_process_leaves_is_swept_and_never_listed(moto_s3: S3Server) -> None:
    program = (
        "import os, signal, time; from backupd.store import S3Options, open_store\n"
        f"options = S3Options(endpoint_url={moto_s3.endpoint_url!r}, part_bytes={PART_BYTES})\n"
        f"with open_store('s3://{moto_s3.bucket}/a/prefix', options).create('db/x.tar') as stream:\n"
        f"    stream.write(bytes(3 * {PART_BYTES})); time.sleep(1); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    assert moto_s3.keys() == []
    assert moto_s3.uploads() == ["a/prefix/db/x.tar"]
    store, now = moto_s3.store(), datetime.now(UTC)
    assert store.sweep("", now - timedelta(hours=1)) == []  # its newest part is newer
    assert len(store.sweep("db/", now + timedelta(hours=1))) == 1
    assert_nothing_left(moto_s3)


# Parts.


def part_numbers(proxy: FaultProxy) -> list[int]:
    return [int(line.split("partNumber=")[1].split("&")[0]) for line in proxy.seen if "partNumber=" in line]


def test_parts_are_equal_and_numbered_in_order(fault_proxy: Proxied, moto_s3: S3Server) -> None:
    proxy, server = fault_proxy(moto_s3)
    with server.store().create("db/x.tar") as stream:
        for start in range(0, len(PARTS), 999_999):
            stream.write(PARTS[start : start + 999_999])
        upload = server.client.list_multipart_uploads(Bucket=server.bucket)["Uploads"][0]

        def sizes() -> list[int]:
            answer = server.client.list_parts(Bucket=server.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
            return [part["Size"] for part in answer.get("Parts", ())]

        wait_until(lambda: len(sizes()) == 3, "the third part did not arrive")
        assert sizes() == [PART_BYTES] * 3
    assert sorted(part_numbers(proxy)) == [1, 2, 3, 4]
    assert server.client.head_object(Bucket=server.bucket, Key="a/prefix/db/x.tar")["ETag"].strip('"').endswith("-4")


def test_a_small_object_is_one_request(fault_proxy: Proxied, moto_s3: S3Server) -> None:
    proxy, server = fault_proxy(moto_s3)
    put(server.store(), "db/x.json", b"{}")
    assert [line.split()[0] for line in proxy.seen] == ["GET", "PUT"]


def test_two_parts_at_most_are_under_way(fault_proxy: Proxied, moto_s3: S3Server) -> None:
    proxy, server = fault_proxy(moto_s3)
    release, under_way, most = threading.Event(), 0, 0

    def rule(method: str, path: str, number: int) -> None:
        nonlocal under_way, most
        if "partNumber=" in path:
            under_way += 1
            most = max(most, under_way)
            release.wait(0.3)
            under_way -= 1

    proxy.rule = rule
    put(server.store(), "db/x.tar", PARTS + PARTS)
    assert most == 2


def test_parts_grow_until_the_expected_size_fits(fault_proxy: Proxied, moto_s3: S3Server) -> None:
    proxy, server = fault_proxy(moto_s3)
    put(server.store(part_limit=2), "db/x.tar", PARTS, expected_bytes=len(PARTS))
    assert sorted(part_numbers(proxy)) == [1, 2]  # 20 MiB each, since 10 leave no room for a wrong guess
    assert get(server.store(), "db/x.tar") == PARTS


def test_a_stream_that_outgrows_its_parts_is_an_error(moto_s3: S3Server) -> None:
    put(moto_s3.store(part_limit=4), "db/fits.tar", PARTS)
    with pytest.raises(StoreError, match="outgrew 3 parts") as raised:
        put(moto_s3.store(part_limit=3), "db/x.tar", PARTS)
    assert "BACKUPD_STORE__S3__PART_BYTES" in f"{raised.value.hint}"
    assert moto_s3.keys() == ["a/prefix/db/fits.tar"]
    assert moto_s3.uploads() == []


# Options.


def test_uploads_carry_what_the_options_ask_for(moto_s3: S3Server) -> None:
    store = moto_s3.store(sse="aws:kms", kms_key_id="alias/backups", checksums="when_supported")
    for key, data in (("db/small", b"small"), ("db/parts", PARTS)):
        put(store, key, data)
        head = moto_s3.client.head_object(Bucket=moto_s3.bucket, Key=f"a/prefix/{key}", ChecksumMode="ENABLED")
        assert head["ServerSideEncryption"] == "aws:kms"
        assert head["SSEKMSKeyId"] == "alias/backups"
        assert head["ChecksumCRC32"]
        assert get(store, key) == data


def test_checksums_are_left_out_for_services_that_do_not_know_them(fault_proxy: Proxied, moto_s3: S3Server) -> None:
    put(moto_s3.store(), "db/x", b"small")
    head = moto_s3.client.head_object(Bucket=moto_s3.bucket, Key="a/prefix/db/x", ChecksumMode="ENABLED")
    assert "ChecksumCRC32" not in head


@pytest.mark.parametrize(
    ("addressing", "where"), [("auto", "s3.test/{}"), ("path", "s3.test/{}"), ("virtual", "{}.s3.test/")]
)
def test_the_bucket_is_in_the_url_where_it_is_asked_for(
    fault_proxy: Proxied, moto_s3: S3Server, monkeypatch: pytest.MonkeyPatch, addressing: str, where: str
) -> None:
    proxy, server = fault_proxy(moto_s3)
    proxy.rule = lambda method, path, number: "403 AccessDenied"
    monkeypatch.setenv("HTTP_PROXY", server.endpoint_url)
    with pytest.raises(AccessRefused):
        server.store(addressing=addressing, endpoint_url="http://s3.test").list()
    assert [line.split("?")[0] for line in proxy.seen] == [f"GET http://{where.format(server.bucket)}"]


def test_a_prefix_keeps_to_itself(moto_s3: S3Server) -> None:
    put(moto_s3.store(), "db/x", b"ours")
    moto_s3.client.put_object(Bucket=moto_s3.bucket, Key="a/prefix2/db/x", Body=b"a neighbour's")
    moto_s3.client.put_object(Bucket=moto_s3.bucket, Key="a/prefix/", Body=b"")  # a console's idea of a folder
    neighbour = moto_s3.client.create_multipart_upload(Bucket=moto_s3.bucket, Key="a/prefix2/db/y")
    assert [entry.key for entry in moto_s3.store().list()] == ["db/x"]
    assert moto_s3.store().sweep("", datetime.now(UTC) + timedelta(hours=1)) == []
    assert moto_s3.uploads() == ["a/prefix2/db/y"]
    whole = open_store(f"s3://{moto_s3.bucket}", moto_s3.options())
    assert [entry.key for entry in whole.list()] == ["a/prefix/db/x", "a/prefix2/db/x"]
    moto_s3.client.abort_multipart_upload(Bucket=moto_s3.bucket, Key="a/prefix2/db/y", UploadId=neighbour["UploadId"])


@pytest.mark.slow
def test_a_listing_of_several_pages_is_whole(moto_s3: S3Server) -> None:
    with ThreadPoolExecutor(4) as pool:
        for number in range(1005):
            pool.submit(moto_s3.client.put_object, Bucket=moto_s3.bucket, Key=f"a/prefix/db/{number:05}", Body=b"")
    assert [entry.key for entry in moto_s3.store().list()] == [f"db/{number:05}" for number in range(1005)]


def test_an_endpoint_that_boto3_refuses_is_a_usage_error(s3_credentials: None) -> None:
    with pytest.raises(UsageError) as raised:
        open_store("s3://bucket", S3Options(endpoint_url="http://under_score:9000"))
    assert "BACKUPD_STORE__S3__ENDPOINT_URL" in f"{raised.value.hint}"


def test_boto3_without_crt(s3_credentials: None) -> None:
    """It would send backups to AWS, whatever the endpoint (boto3 issue 4839)."""
    from botocore.compat import HAS_CRT

    assert not HAS_CRT
    assert os.environ["AWS_ACCESS_KEY_ID"] == ACCESS_KEY


def test_a_profile_wins_over_credentials_in_the_environment_and_an_unknown_one_is_refused(
    rclone_s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = f"[offsite]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    (tmp_path / "credentials").write_text(text)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-another-store")
    store = S3Store(rclone_s3.bucket, "", rclone_s3.options(profile="offsite"))

    assert list(store.list()) == []
    assert store.describe()["credentials"] == "from shared-credentials-file"
    with pytest.raises(AccessRefused, match="could not open"):
        S3Store(rclone_s3.bucket, "", rclone_s3.options(profile="unknown"))


def test_describe_names_the_endpoint_and_the_provider_never_a_credential(moto_s3: S3Server) -> None:
    store = moto_s3.store()
    assert isinstance(store, S3Store)

    described = store.describe()

    assert described["endpoint"] == moto_s3.endpoint_url
    assert described["credentials"] == "from env"
