"""A store under an S3 prefix: AWS, or any service that speaks S3. The only user of boto3.

Hides multipart uploads of a stream whose length nobody knows, checksums, retries, lost answers, and what services do
differently. Uploads are our own `upload_part` calls, not boto3's `upload_fileobj`: that completes the object when its
producer dies, holds ten parts in memory and ends at 78 GiB. Parts have one size and leave in order, two at a time: R2
wants them equal, AWS without gaps, rclone as a stream. Keys are deleted one by one: deleting many needs a checksum that
services do not agree on. Never `boto3[crt]`: it ignores the endpoint (boto3 issue 4839).

Objects are locked as they are written, until a time by the service's own clock, which is the one that will judge it;
deleting a locked one is not tried, since a bucket with versions would only hide what stays.

A service that knows `If-None-Match` refuses a second object of one key; one that does not (rclone) is asked before.
Each object carries a nonce, by which an object that arrived although the answer was lost is known as ours.
"""

import base64
import contextlib
import functools
import hashlib
import io
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import urlsplit

import boto3
from botocore import exceptions
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from backupd import threads
from backupd.errors import AccessRefused, AlreadyExists, NotFound, Retained, StoreError, UsageError
from backupd.store import Entry, Protection, S3Options, answers, check_key, is_key

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

THREADS = 2  # parts in flight: more were not faster and hold more memory (performance 3)
ATTEMPTS = 10  # of one request, by botocore: trouble of about ten seconds is waited out
ABORT_SECONDS = 10.0  # for parts in flight when an upload is aborted: SIGKILL comes 30 seconds after SIGTERM
RESUMES = 5  # of a broken download, without a byte of progress
READ_BYTES = 256 * 1024
SMALLEST_PART_BYTES = 5 << 20  # the protocol's

_Part = dict[str, Any]
_NONCE = "backupd-upload"
_AWS = (".amazonaws.com", ".amazonaws.com.cn")
_UNREACHABLE = "Check BACKUPD_STORE__S3__ENDPOINT_URL, and whether the network lets backupd get there."
_CREDENTIALS = "Give credentials in a way that AWS tools know: AWS_ACCESS_KEY_ID, a profile, a service account's role."
_NO_CREDENTIALS = (
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.CredentialRetrievalError,
    exceptions.ProfileNotFound,
)


class S3Store:
    """A Store (see there) of the objects in `bucket` whose keys start with `prefix/`."""

    def __init__(self, bucket: str, prefix: str, options: S3Options) -> None:
        if prefix and {"", ".", ".."} & set(prefix.split("/")):
            raise UsageError(f"prefix {prefix!r} is no prefix of keys", hint="Correct BACKUPD_STORE__URL.")
        self._options = options
        self._prefix = f"{prefix}/" if prefix else ""
        self._url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = _given(Bucket=bucket, ExpectedBucketOwner=options.expected_bucket_owner)
        with _errors(f"open {self._url}"):
            self._client = _client(options)

    def describe(self) -> Mapping[str, str]:
        """For `doctor`: where requests go, and which of boto3's providers found credentials; never a credential."""
        with _errors(f"find credentials for {self._url}"):
            found = boto3.Session(profile_name=self._options.profile).get_credentials()
        return {"endpoint": self._client.meta.endpoint_url, "credentials": f"from {found.method}" if found else "none"}

    @property
    def url(self) -> str:
        """`s3://`, bucket and prefix."""
        return self._url

    def protection(self) -> Protection:
        """For `doctor`: what the bucket does against deletion."""
        with _errors(f"look at {self._url}"):
            versions = self._asked(self._client.get_bucket_versioning)
            rules = self._asked(self._client.get_bucket_lifecycle_configuration)
            lock = self._asked(self._client.get_object_lock_configuration)
        versioned = None if versions is None else versions.get("Status") == "Enabled"
        expires = None if rules is None else any(map(_removes_versions, rules.get("Rules", ())))
        if lock is None:
            return Protection(versioned, expires, None)
        held = lock.get("ObjectLockConfiguration", {}).get("Rule", {}).get("DefaultRetention", {})
        days = held.get("Days") or 365 * held.get("Years", 0) or None
        return Protection(versioned, expires, bool(lock.get("ObjectLockConfiguration")), days)

    def _asked(self, request: Callable[..., Any]) -> Mapping[str, Any] | None:
        """The answer of the bucket; empty where it has none or the service does not know of it, None where refused."""
        try:
            return cast("Mapping[str, Any]", request(**self._bucket))
        except ClientError as exc:
            status, code, _ = _answer(exc)
            if code == "AccessDenied":
                return None
            if code in answers.NO_BUCKET | answers.REFUSED or status not in (400, 404, 405, 501):
                raise
            return {}

    @contextlib.contextmanager
    def create(self, key: str, expected_bytes: int = 0) -> Iterator[BinaryIO]:
        """See Store."""
        address = self._address(key)
        their_now = self._require_absent(address)
        upload = _Upload(self._client, address, self._options, expected_bytes, their_now)
        try:
            yield cast(BinaryIO, upload)
            upload.finish()
        except BaseException:
            upload.abort()
            raise
        finally:
            upload.close()

    @contextlib.contextmanager
    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[BinaryIO]:
        """See Store. A connection that breaks is made again for the rest of the range."""
        with io.BufferedReader(_Download(self._client, self._address(key), start, length), READ_BYTES) as stream:
            yield stream

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See Store. Sorted here: not every service does it."""
        entries = []
        with _errors(f"list {self._url}"):
            for item in (item for page in self._pages(self._prefix + prefix) for item in page.get("Contents", ())):
                key = item["Key"].removeprefix(self._prefix)
                if is_key(key):
                    entries.append(Entry(key, item["Size"], item["LastModified"].astimezone(UTC)))
        return iter(sorted(entries))

    def delete(self, key: str) -> None:
        """See Store."""
        address, action = self._address(key), f"delete {self._url}/{key}"
        with contextlib.suppress(NotFound), _errors(action):
            if self._options.object_lock is not None:
                self._refuse_locked(address, action)
            try:
                self._client.delete_object(**address)
            except ClientError as exc:
                if _answer(exc)[1] not in answers.KEPT:
                    raise
                self._refuse_locked(address, action)
                raise Retained(f"could not {action}", detail=answers.said(*_answer(exc)), hint=answers.RULE) from exc

    def _refuse_locked(self, address: Mapping[str, Any], action: str) -> None:
        """Raises Retained where a lock holds the object; what may not be asked is not known."""
        try:
            answer = self._client.head_object(**address)
        except ClientError:
            return
        until = answer.get("ObjectLockRetainUntilDate")
        if until is not None and until > _their_now(answer):
            until = until.astimezone(UTC)
            raise Retained(f"could not {action}: it is retained until {until:%Y-%m-%d %H:%M} UTC", until=until)

    def sweep(self, prefix: str, idle_since: datetime) -> Sequence[str]:
        """See Store. News of an upload is its start or its newest part."""
        swept = []
        with _errors(f"sweep {self._url}"):
            for key, upload_id, started_at in self._open_uploads(prefix):
                upload = {**self._bucket, "Key": self._prefix + key, "UploadId": upload_id}
                with contextlib.suppress(self._client.exceptions.NoSuchUpload):
                    pages = self._client.get_paginator("list_parts").paginate(**upload)
                    part_times = [part["LastModified"] for page in pages for part in page.get("Parts", ())]
                    if max([started_at, *part_times]) < idle_since:
                        self._client.abort_multipart_upload(**upload)
                        swept.append(f"{key} (upload {upload_id})")
        return sorted(swept)

    def _address(self, key: str) -> dict[str, Any]:
        return {**self._bucket, "Key": self._prefix + check_key(key)}

    def _require_absent(self, address: Mapping[str, Any]) -> datetime:
        """Asks by a list, not a HEAD: its error has a body, which tells a missing bucket before a byte is dumped.

        Returns the time by the service's clock.
        """
        with _errors(f"write {_url(address)}"):
            answer = next(self._pages(address["Key"], MaxKeys=1))
        if any(item["Key"] == address["Key"] for item in answer.get("Contents", ())):
            raise AlreadyExists(f"object {_url(address)} exists already")
        return _their_now(answer)

    def _pages(self, prefix: str, **limit: int) -> Iterator[Mapping[str, Any]]:
        """What a list answers. A service that knows only its first version refuses the second, or answers the first.

        That has no token for the next page, and whoever did not look would take the first page for all; and a service
        that knows no bucket in the host answers with its list of buckets, in which there are no objects.
        """
        asked: dict[str, Any] = {**self._bucket, "Prefix": prefix, **limit}
        try:
            pages: Iterator[Any] = iter(self._client.get_paginator("list_objects_v2").paginate(**asked))
            for page in pages:
                if "Name" not in page and "Contents" not in page:
                    detail = "The answer names no bucket: that in the URL's host was not understood."
                    raise StoreError(f"could not list {self._url}", detail=detail, hint=answers.ADDRESSING)
                if page.get("IsTruncated") and not page.get("NextContinuationToken"):
                    break
                yield page
            else:
                return
        except ClientError as exc:
            if _answer(exc)[0] != 501:
                raise
        yield from self._client.get_paginator("list_objects").paginate(**asked)

    def _open_uploads(self, prefix: str) -> Iterator[tuple[str, str, datetime]]:
        pages = self._client.get_paginator("list_multipart_uploads")
        try:
            for page in pages.paginate(**self._bucket, Prefix=self._prefix + prefix):
                for item in page.get("Uploads", ()):
                    yield item["Key"].removeprefix(self._prefix), item["UploadId"], item["Initiated"]
        except ClientError as exc:
            if _answer(exc)[1] not in answers.NO_UPLOADS:
                raise


class _Upload(io.RawIOBase):
    """One object on its way up: a single request while it is smaller than a part, else a multipart upload."""

    def __init__(
        self,
        client: "S3Client",
        address: Mapping[str, Any],
        options: S3Options,
        expected_bytes: int,
        their_now: datetime,
    ) -> None:
        self._client, self._address, self._action = client, address, f"write {_url(address)}"
        self._part_limit, self._part_bytes = options.part_limit, max(options.part_bytes, SMALLEST_PART_BYTES)
        while self._part_bytes * self._part_limit < expected_bytes * 5 // 4:  # a guess: leave a quarter's room
            self._part_bytes *= 2
        self._nonce = secrets.token_hex(16)
        self._properties = _given(ServerSideEncryption=options.sse, SSEKMSKeyId=options.kms_key_id)
        self._properties["Metadata"] = {_NONCE: self._nonce}
        if options.object_lock is not None and options.object_lock_for is not None:
            until = (their_now + options.object_lock_for).replace(microsecond=0)
            self._properties |= {"ObjectLockMode": options.object_lock.upper(), "ObjectLockRetainUntilDate": until}
        self._md5 = _checksums(options) == "md5"
        if client.meta.config.request_checksum_calculation == "when_supported":  # type: ignore[attr-defined]
            self._properties["ChecksumAlgorithm"] = "CRC32"  # AWS expects another one where an upload names none
        self._upload: Mapping[str, Any] | None = None
        self._buffer, self._filled = bytearray(), 0
        self._spare: list[bytearray] = []
        self._number = 0
        self._under_way: dict[futures.Future[_Part], bytearray] = {}
        self._parts: list[_Part] = []

    def writable(self) -> bool:
        return True

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        rest = memoryview(data).cast("B")
        size_bytes = len(rest)
        if self.closed:
            raise ValueError("write to a closed stream")
        while rest:
            taken = rest[: self._part_bytes - self._filled]
            self._buffer[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            rest = rest[len(taken) :]
            if self._filled == self._part_bytes:
                self._send_part()
        return size_bytes

    def finish(self) -> None:
        """Makes the object visible."""
        request: Callable[..., object]
        del self._buffer[self._filled :]
        if self._upload is None:
            put: dict[str, Any] = {**self._address, **self._properties, **self._body(self._buffer)}
            request = functools.partial(self._client.put_object, **put)
        else:
            if self._buffer:
                self._send_part()
            self._wait(0)
            parts: Any = {"Parts": sorted(self._parts, key=lambda part: part["PartNumber"])}
            request = functools.partial(self._client.complete_multipart_upload, **self._upload, MultipartUpload=parts)
        with _errors(self._action):
            self._publish(request, IfNoneMatch="*")

    def abort(self) -> None:
        """Removes what was sent. What cannot be removed is left to `sweep`: another error is being raised."""
        if self._upload is not None:
            futures.wait(self._under_way, ABORT_SECONDS)
            with contextlib.suppress(StoreError, AccessRefused), _errors(self._action):
                self._client.abort_multipart_upload(**self._upload)

    def _send_part(self) -> None:
        self._upload = self._upload or self._begin()
        if self._number == self._part_limit:
            raise StoreError(
                f"could not {self._action}: it outgrew {self._part_limit} parts of {self._part_bytes} bytes",
                detail="It is larger than was expected when it was begun, and the size of its parts cannot change.",
                hint=f"Set BACKUPD_STORE__S3__PART_BYTES to {4 * self._part_bytes} and run it again.",
            )
        self._wait(THREADS - 1)
        self._number += 1
        part: futures.Future[_Part] = futures.Future()
        data = self._buffer  # and not bytes, of which botocore would make a copy
        threads.start(self._send, part, self._upload, self._number, data)
        self._under_way[part] = data
        # Used again: between others' memory, ones made anew leave holes of their size.
        self._buffer, self._filled = self._spare.pop() if self._spare else bytearray(), 0

    def _wait(self, most: int) -> None:
        """Until no more parts are under way; raises what is wrong with one."""
        while len(self._under_way) > most:
            part = next(threads.completed(self._under_way))
            self._spare.append(self._under_way.pop(part))
            self._parts.append(part.result())

    def _begin(self) -> Mapping[str, Any]:
        with _errors(self._action):
            answer = self._client.create_multipart_upload(**self._address, **self._properties)
        return {**self._address, "UploadId": answer["UploadId"]}

    def _send(self, part: futures.Future[_Part], upload: Mapping[str, Any], number: int, data: bytearray) -> None:
        try:
            with _errors(self._action):
                answer = self._client.upload_part(**upload, PartNumber=number, **self._body(data))
            checksum = _given(ChecksumCRC32=answer.get("ChecksumCRC32"))
            part.set_result({"PartNumber": number, "ETag": answer["ETag"], **checksum})
        except BaseException as exc:  # noqa: BLE001 - raised in the writer's thread instead
            part.set_exception(exc)

    def _body(self, data: bytearray) -> dict[str, Any]:
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode() if self._md5 else None
        return {"Body": data, **_given(ContentMD5=digest)}

    def _publish(self, request: Callable[..., object], **condition: str) -> None:
        """Makes the request that shows the object; without the condition where the service knows none."""
        try:
            request(**condition)
        except (ClientError, BotoCoreError) as exc:
            if self._is_there():
                return
            if not condition or not isinstance(exc, ClientError) or _answer(exc)[0] not in (400, 501):
                raise
            self._publish(request)

    def _is_there(self) -> bool:
        """Whether the object is ours: the answer was lost, and a retry then found it taken or its upload gone."""
        try:
            metadata = self._client.head_object(**self._address)["Metadata"]
        except (ClientError, BotoCoreError):
            return False
        return any(name.lower() == _NONCE and value == self._nonce for name, value in metadata.items())


class _Download(io.RawIOBase):
    """A range of an object, or an error."""

    def __init__(self, client: "S3Client", address: Mapping[str, Any], start: int, length: int | None) -> None:
        self._client, self._address, self._action = client, address, f"read {_url(address)}"
        self._position, self._etag = start, ""
        self._body: Any = io.BytesIO()
        with _errors(self._action):
            if length == 0:  # no range to S3; that the object is there is all that can be asked
                client.head_object(**address)
            self._left = self._request(length) if length != 0 else 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = memoryview(buffer)[: self._left]
        for _ in range(RESUMES) if wanted else ():
            with contextlib.suppress(BotoCoreError, HTTPError, OSError):
                count: int = self._body.readinto(wanted)
                if count:
                    self._position += count
                    self._left -= count
                    return count
            self._body.close()
            with _errors(self._action):
                self._request(self._left)
        if wanted:
            raise self._wrong(f"It broke off {RESUMES} times, {self._left} bytes before its end.")
        return 0

    def close(self) -> None:
        self._body.close()
        super().close()

    def _request(self, length: int | None) -> int:
        ranged = self._position > 0 or length is not None
        last = "" if length is None else self._position + length - 1
        asked = _given(Range=f"bytes={self._position}-{last}" if ranged else None)
        answer = self._client.get_object(**self._address, **asked)
        self._body, size_bytes = answer["Body"], answer["ContentLength"]
        if length is not None and size_bytes != length:
            detail = f"{length} bytes from byte {self._position} were asked for, {size_bytes} came."
            raise self._wrong(detail, answers.NO_RANGES if size_bytes > length else None)
        if self._position > 0 and "ContentRange" not in answer:
            raise self._wrong(
                f"Bytes from byte {self._position} were asked for, the whole object came.", answers.NO_RANGES
            )
        if self._etag not in ("", answer["ETag"]):
            raise self._wrong("It changed while it was read.")
        self._etag = answer["ETag"]
        return size_bytes

    def _wrong(self, detail: str, hint: str | None = None) -> StoreError:
        return StoreError(f"could not {self._action}", detail=detail, hint=hint)


def _client(options: S3Options) -> "S3Client":
    checksums: Any = {"auto": None, "md5": "when_required"}.get(_checksums(options), _checksums(options))
    config = Config(
        connect_timeout=10,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        s3={"addressing_style": options.addressing},
        request_checksum_calculation=checksums,
        response_checksum_validation="when_required",
        tcp_keepalive=True,
    )
    try:
        session = boto3.Session(region_name=options.region, profile_name=options.profile)
        client: S3Client = session.client("s3", endpoint_url=options.endpoint_url, config=config)
    except ValueError as exc:
        raise UsageError(f"S3 client cannot be made: {exc}", hint=_UNREACHABLE) from exc
    return client


def _checksums(options: S3Options) -> str:
    """The mode, `auto` only where it is left to boto3 because the service is AWS."""
    host = urlsplit(options.endpoint_url or "").hostname or _AWS[0]
    if options.checksums != "auto" or host.endswith(_AWS):
        return options.checksums
    return "when_required" if options.object_lock is None else "md5"


def _their_now(answer: Mapping[str, Any]) -> datetime:
    """The time at the service when it answered."""
    return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).astimezone(UTC)


def _removes_versions(rule: Mapping[str, Any]) -> bool:
    return rule.get("Status") == "Enabled" and "NoncurrentVersionExpiration" in rule


def _url(address: Mapping[str, Any]) -> str:
    return f"s3://{address['Bucket']}/{address['Key']}"


def _given(**arguments: str | None) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def _answer(exc: ClientError) -> tuple[int, str, str]:
    """Status, code and message."""
    said = exc.response.get("Error", {})
    return exc.response["ResponseMetadata"]["HTTPStatusCode"], said.get("Code", ""), said.get("Message", "")


@contextlib.contextmanager
def _errors(action: str) -> Iterator[None]:
    """Translates what the service, botocore and the network say."""
    try:
        yield
    except ClientError as exc:
        raise answers.error(*_answer(exc), f"could not {action}") from exc
    except _NO_CREDENTIALS as exc:
        raise AccessRefused(f"could not {action}", detail=answers.sentence(exc), hint=_CREDENTIALS) from exc
    except ResponseParserError as exc:  # whose text is the whole answer
        detail = "What answered is no service that speaks S3, or a proxy before it."
        raise StoreError(f"could not {action}", detail=detail, hint=_UNREACHABLE) from exc
    except (BotoCoreError, HTTPError, OSError) as exc:
        raise StoreError(f"could not {action}", detail=answers.sentence(exc), hint=_UNREACHABLE) from exc
