"""A small S3 in memory, with the quirks of the services that people have: versions, locks, policies, all switchable.

moto and rclone show what two services do; this one does what it is told to, so that every quirk that is known can be
met in a test. It speaks HTTP as a real one, from the standard library alone, checks no signature, and tells of each
request what was asked (`Fake.seen`). What it answers is AWS's documentation, and the issue or product that each quirk
is of stands beside it.
"""

import base64
import contextlib
import fnmatch
import hashlib
import re
import secrets
import socketserver
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal, NoReturn
from urllib.parse import parse_qsl, quote, unquote, unquote_plus, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

Policy = Mapping[str, Any]
"""An IAM policy as `backupd doctor --print-policy` prints it: statements that allow."""


@dataclass(frozen=True)
class Quirks:
    """How a service differs from AWS."""

    knows_checksums: bool = True
    """Whether x-amz-checksum-... is known (boto3 issue 4392; many services before 2025)."""
    wants_md5: bool = False
    """Whether an upload without Content-MD5 is refused (older MinIO and Ceph with Object Lock)."""
    part_limit: int = 10_000
    """How many parts an upload may have (Scaleway: 1,000)."""
    equal_parts: bool = False
    """Whether all parts but the last must have one size (R2)."""
    parts_in_order: bool = False
    """Whether a part may not come before the one with the number below it was begun (rclone)."""
    if_none_match: Literal["known", "ignored", "refused"] = "known"
    addressing: Literal["both", "path", "virtual"] = "both"
    """Where the bucket may be: in the path only (many at home), in the host only (Aliyun)."""
    list_version: Literal["both", "1", "only 1"] = "both"
    """`1` answers ListObjectsV2 as if it were the first version, `only 1` refuses it (old Ceph, GCS once)."""
    decodes_twice: bool = False
    """Whether the path of a URL is decoded twice, so that `%20` and `+` in a key become a space (proxies, Swift)."""
    ranges_of_encrypted: bool = True
    """Whether a range of an object that is encrypted in the store can be read."""
    page: int = 1000
    """How many keys a list has at most."""
    list_lag: int = 0
    """After how many more requests a list tells of a change (Swift; AWS until 2020)."""
    out_of_step: bool = False
    """Whether every request gets what an earlier one asked for, a range of some object (proxies that answer twice)."""
    skew: timedelta = timedelta()
    """How far its clock is ahead of ours."""


@dataclass(frozen=True)
class Version:
    """An object, or a delete marker (no data), as it was written with the request number `written`."""

    id: str
    data: bytes | None
    headers: Mapping[str, str]
    etag: str
    modified_at: datetime
    written: int

    @property
    def retained_until(self) -> datetime | None:
        """The end of its lock."""
        text = self.headers.get("x-amz-object-lock-retain-until-date")
        return datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None


@dataclass
class Upload:
    """A multipart upload on its way."""

    key: str
    headers: Mapping[str, str]
    started_at: datetime
    parts: dict[int, tuple[bytes, datetime]] = field(default_factory=dict)


@dataclass
class Fake:
    """The service, with one bucket. `policies` is what each access key may do; a key that it lacks may do all."""

    quirks: Quirks = field(default_factory=Quirks)
    bucket: str = "backups"
    versioned: bool = False
    locks: bool = False
    lock_default: timedelta | None = None
    policies: dict[str, Policy] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    versions: dict[str, list[Version]] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    """Keys that no list shows yet."""
    endpoint_url: str = ""
    host: str = ""
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @property
    def now(self) -> datetime:
        """Its own clock."""
        return datetime.now(UTC) + self.quirks.skew

    def visible(self) -> list[str]:
        """The key of every object that is to be seen."""
        return sorted(key for key, found in self.versions.items() if found and found[-1].data is not None)

    def data(self, key: str) -> bytes:
        """What an object holds."""
        found = self.versions[key][-1].data
        assert found is not None, f"{key} was deleted"
        return found

    def expire_locks(self) -> None:
        """Lets all locks end, as time would."""
        past = (self.now - timedelta(days=1)).isoformat()
        for key, found in self.versions.items():
            self.versions[key] = [_relocked(each, past) for each in found]

    def shown(self, key: str) -> Version | None:
        """What a list shows of a key, which may lag behind."""
        if key in self.hidden:
            return None
        with self.lock:
            known = [
                each for each in self.versions.get(key, ()) if each.written + self.quirks.list_lag <= len(self.seen)
            ]
        return known[-1] if known and known[-1].data is not None else None


def _relocked(version: Version, until: str) -> Version:
    name = "x-amz-object-lock-retain-until-date"
    return replace(version, headers={**version.headers, **({name: until} if name in version.headers else {})})


@contextlib.contextmanager
def serve(fake: Fake) -> Iterator[Fake]:
    """Serves it on a free port; `endpoint_url` is set then."""
    with _Listener(("127.0.0.1", 0), _handler(fake)) as listener:
        fake.host = f"127.0.0.1:{listener.server_address[1]}"
        fake.endpoint_url = f"http://{fake.host}"
        threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield fake
        finally:
            listener.shutdown()


class _Listener(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64


class _Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(code)
        self.status, self.code, self.message = status, code, message or code


@dataclass(frozen=True)
class _Request:
    method: str
    bucket: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    access_key: str

    @property
    def what(self) -> str:
        """The subresource that is meant, if any."""
        names = ("uploads", "uploadId", "versioning", "object-lock", "versions", "lifecycle")
        return next((name for name in names if name in self.query), "")


@dataclass(frozen=True)
class _Answer:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def _xml(name: str, inner: str, status: int = 200) -> _Answer:
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<{name}>{inner}</{name}>'
    return _Answer(status, text.encode(), {"Content-Type": "application/xml"})


def _tags(**values: object) -> str:
    return "".join(f"<{name}>{escape(str(value))}</{name}>" for name, value in values.items())


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


# --- what may be done


_ACTIONS: Mapping[tuple[str, str], str] = {
    ("GET", "uploads"): "ListBucketMultipartUploads",
    ("GET", "versioning"): "GetBucketVersioning",
    ("GET", "object-lock"): "GetBucketObjectLockConfiguration",
    ("GET", "versions"): "ListBucketVersions",
    ("GET", "uploadId"): "ListMultipartUploadParts",
    ("DELETE", "uploadId"): "AbortMultipartUpload",
    ("DELETE", ""): "DeleteObject",
    ("GET", ""): "GetObject",
    ("HEAD", ""): "GetObject",
}


def _require_allowed(fake: Fake, request: _Request) -> None:
    action = _ACTIONS.get((request.method, request.what), "PutObject")
    if action == "GetObject" and not request.key:
        action = "ListBucket"
    if action == "DeleteObject" and "versionId" in request.query:
        action = "DeleteObjectVersion"
    wanted = [f"s3:{action}"]
    if "x-amz-object-lock-mode" in request.headers:
        wanted.append("s3:PutObjectRetention")
    wanted += _of_kms(fake, request, action)
    for each in wanted:
        if not _allows(fake, request, each):
            raise _Refused(403, "AccessDenied", f"not authorized to perform: {each}")


def _of_kms(fake: Fake, request: _Request, action: str) -> list[str]:
    """S3 uses the key in the name of whoever asks."""
    written = request.headers
    if request.what == "uploadId" and request.query["uploadId"] in fake.uploads:
        written = fake.uploads[request.query["uploadId"]].headers
    elif action == "GetObject" and fake.versions.get(request.key):
        written = fake.versions[request.key][-1].headers
    if action not in ("GetObject", "PutObject") or "kms" not in written.get("x-amz-server-side-encryption", ""):
        return []
    reads = action == "GetObject" or (request.what == "uploadId")
    return ["kms:Decrypt"] if reads else ["kms:GenerateDataKey"]


def _allows(fake: Fake, request: _Request, action: str) -> bool:
    policy = fake.policies.get(request.access_key)
    if policy is None:
        return True
    resource = f"arn:aws:s3:::{fake.bucket}{f'/{request.key}' if request.key else ''}"
    for statement in policy["Statement"]:
        prefixes = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix")
        near = action.startswith("kms:") or _like(resource, statement["Resource"])
        if action in _each(statement["Action"]) and near:
            return prefixes is None or _like(request.query.get("prefix", ""), prefixes)
    return False


def _like(text: str, patterns: str | Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(text, pattern.replace("[", "[[]")) for pattern in _each(patterns))


def _each(one_or_many: str | Sequence[str]) -> Sequence[str]:
    return [one_or_many] if isinstance(one_or_many, str) else one_or_many


# --- what is done


def _answer(fake: Fake, request: _Request) -> _Answer:
    if fake.quirks.out_of_step:
        return _Answer(206, b"bytes of another answer", {"Content-Range": "bytes 0-22/99"})
    if request.bucket == "":
        return _xml("ListAllMyBucketsResult", f"<Buckets><Bucket>{_tags(Name=fake.bucket)}</Bucket></Buckets>")
    if request.bucket != fake.bucket:
        raise _Refused(404, "NoSuchBucket")
    sent = request.headers.get("x-amz-date")
    if sent and abs(datetime.strptime(f"{sent}+0000", "%Y%m%dT%H%M%SZ%z") - fake.now) > timedelta(minutes=15):
        raise _Refused(403, "RequestTimeTooSkewed")
    _require_allowed(fake, request)
    _require_known_headers(fake, request)
    with fake.lock:
        return _of_object(fake, request) if request.key else _of_bucket(fake, request)


def _require_known_headers(fake: Fake, request: _Request) -> None:
    checksums = [name for name in request.headers if name.startswith(("x-amz-checksum-", "x-amz-sdk-checksum-"))]
    if checksums and not fake.quirks.knows_checksums:
        raise _Refused(501, "NotImplemented", "A header implies functionality that is not implemented")
    if request.method == "PUT":
        md5, crc32 = request.headers.get("content-md5"), request.headers.get("x-amz-checksum-crc32")
        if fake.quirks.wants_md5 and md5 is None:
            raise _Refused(400, "MissingContentMD5")
        if md5 is not None and base64.b64decode(md5) != hashlib.md5(request.body).digest():
            raise _Refused(400, "BadDigest")
        if crc32 is not None and base64.b64decode(crc32) != zlib.crc32(request.body).to_bytes(4, "big"):
            raise _Refused(400, "BadDigest")
        upload = fake.uploads.get(request.query.get("uploadId", ""))
        locked = "x-amz-object-lock-mode" in (upload.headers if upload else request.headers)
        if (locked or fake.lock_default) and md5 is None and crc32 is None:
            raise _Refused(400, "InvalidRequest", "Content-MD5 OR x-amz-checksum- HTTP header is required")


def _of_bucket(fake: Fake, request: _Request) -> _Answer:
    if request.what == "versioning":
        return _xml("VersioningConfiguration", _tags(Status="Enabled") if fake.versioned else "")
    if request.what == "object-lock":
        if not fake.locks:
            raise _Refused(404, "ObjectLockConfigurationNotFoundError")
        days = fake.lock_default.days if fake.lock_default else None
        rule = f"<Rule><DefaultRetention>{_tags(Mode='GOVERNANCE', Days=days)}</DefaultRetention></Rule>"
        return _xml("ObjectLockConfiguration", _tags(ObjectLockEnabled="Enabled") + (rule if days else ""))
    if request.what == "uploads":
        found = [
            f"<Upload>{_tags(Key=upload.key, UploadId=upload_id, Initiated=_stamp(upload.started_at))}</Upload>"
            for upload_id, upload in sorted(fake.uploads.items())
            if upload.key.startswith(request.query.get("prefix", ""))
        ]
        return _xml("ListMultipartUploadsResult", _tags(Bucket=fake.bucket, IsTruncated="false") + "".join(found))
    return _list(fake, request)


def _list(fake: Fake, request: _Request) -> _Answer:
    second = request.query.get("list-type") == "2"
    if second and fake.quirks.list_version == "only 1":
        raise _Refused(501, "NotImplemented")
    second = second and fake.quirks.list_version == "both"
    after = request.query.get("continuation-token" if second else "marker", "")
    limit = min(int(request.query.get("max-keys", "1000")), fake.quirks.page)
    prefix = request.query.get("prefix", "")
    there = [(key, found) for key in sorted(fake.versions) if (found := fake.shown(key)) is not None]
    there = [(key, found) for key, found in there if key.startswith(prefix) and key > after]
    page, cut = there[:limit], len(there) > limit
    encoded = request.query.get("encoding-type") == "url"
    items = "".join(
        f"<Contents>{_tags(Key=quote(key) if encoded else key, Size=len(found.data or b''), ETag=found.etag)}"
        f"{_tags(LastModified=_stamp(found.modified_at))}</Contents>"
        for key, found in page
    )
    head = _tags(Name=fake.bucket, Prefix=prefix, MaxKeys=limit, IsTruncated=str(cut).lower())
    head += _tags(EncodingType="url") if encoded else ""
    if second:
        head += _tags(KeyCount=len(page), **({"NextContinuationToken": page[-1][0]} if cut else {}))
    return _xml("ListBucketResult", head + items)


def _of_object(fake: Fake, request: _Request) -> _Answer:
    if request.method in ("GET", "HEAD") and request.what != "uploadId":
        return _read(fake, request)
    if request.what == "uploadId":
        return _of_upload(fake, request)
    if request.method == "DELETE":
        return _delete(fake, request)
    if request.what == "uploads":
        upload_id = secrets.token_hex(8)
        fake.uploads[upload_id] = Upload(request.key, request.headers, fake.now)
        return _xml("InitiateMultipartUploadResult", _tags(Bucket=fake.bucket, Key=request.key, UploadId=upload_id))
    _require_free(fake, request, request.key)
    return _store(fake, request.key, request.body, request.headers, hashlib.md5(request.body).hexdigest())


def _require_free(fake: Fake, request: _Request, key: str) -> None:
    if "if-none-match" not in request.headers or fake.quirks.if_none_match == "ignored":
        return
    if fake.quirks.if_none_match == "refused":
        raise _Refused(501, "NotImplemented", "A header implies functionality that is not implemented")
    if key in fake.visible():
        raise _Refused(412, "PreconditionFailed")


def _store(fake: Fake, key: str, data: bytes, headers: Mapping[str, str], etag: str) -> _Answer:
    kept = {name: value for name, value in headers.items() if name.startswith("x-amz-")}
    if fake.lock_default and "x-amz-object-lock-mode" not in kept:
        until = (fake.now + fake.lock_default).isoformat()
        kept |= {"x-amz-object-lock-mode": "GOVERNANCE", "x-amz-object-lock-retain-until-date": until}
    found = fake.versions.setdefault(key, [])
    if not fake.versioned and found:
        _require_unlocked(fake, found[-1])
        found.pop()
    found.append(Version(secrets.token_hex(8), data, kept, f'"{etag}"', fake.now, len(fake.seen)))
    crc32 = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
    checksum = {"x-amz-checksum-crc32": crc32} if "x-amz-checksum-crc32" in headers else {}
    return _Answer(200, b"", {"ETag": f'"{etag}"', **checksum})


def _require_unlocked(fake: Fake, version: Version) -> None:
    if version.retained_until is not None and version.retained_until > fake.now:
        raise _Refused(403, "AccessDenied", "Access Denied because object protected by object lock")


def _delete(fake: Fake, request: _Request) -> _Answer:
    found = fake.versions.get(request.key, [])
    if "versionId" in request.query:
        for each in [each for each in found if each.id == request.query["versionId"]]:
            _require_unlocked(fake, each)
            found.remove(each)
    elif fake.versioned:
        marker = Version(secrets.token_hex(8), None, {}, "", fake.now, len(fake.seen))
        fake.versions.setdefault(request.key, []).append(marker)
        return _Answer(204, b"", {"x-amz-delete-marker": "true", "x-amz-version-id": marker.id})
    elif found:
        _require_unlocked(fake, found[-1])
        del fake.versions[request.key]
    return _Answer(204)


def _read(fake: Fake, request: _Request) -> _Answer:
    if request.key not in fake.visible():
        raise _Refused(404, "NoSuchKey")
    version = fake.versions[request.key][-1]
    data = version.data or b""
    hidden = not _allows(fake, request, "s3:GetObjectRetention")
    shown = {name: value for name, value in version.headers.items() if name.startswith("x-amz-meta-")}
    lock = {name: value for name, value in version.headers.items() if name.startswith("x-amz-object-lock-")}
    headers = {**shown, **({} if hidden else lock), "ETag": version.etag, "Accept-Ranges": "bytes"}
    headers["Last-Modified"] = format_datetime(version.modified_at, usegmt=True)
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if wanted is None:
        return _Answer(200, data, headers)
    if "x-amz-server-side-encryption" in version.headers and not fake.quirks.ranges_of_encrypted:
        return _Answer(200, data, headers)
    start, end = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
    if start > end:
        raise _Refused(416, "InvalidRange")
    headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
    return _Answer(206, data[start : end + 1], headers)


def _of_upload(fake: Fake, request: _Request) -> _Answer:
    upload = fake.uploads.get(request.query["uploadId"])
    if upload is None or upload.key != request.key:
        raise _Refused(404, "NoSuchUpload")
    if request.method == "DELETE":
        del fake.uploads[request.query["uploadId"]]
        return _Answer(204)
    if request.method == "GET":
        parts = "".join(
            f"<Part>{_tags(PartNumber=number, Size=len(data), LastModified=_stamp(at))}</Part>"
            for number, (data, at) in sorted(upload.parts.items())
        )
        return _xml("ListPartsResult", _tags(IsTruncated="false") + parts)
    if request.method == "PUT":
        return _put_part(fake, request, upload)
    return _complete(fake, request, upload)


def _put_part(fake: Fake, request: _Request, upload: Upload) -> _Answer:
    number = int(request.query["partNumber"])
    if number > fake.quirks.part_limit:
        raise _Refused(400, "InvalidArgument", f"Part number must be between 1 and {fake.quirks.part_limit}")
    if fake.quirks.parts_in_order and number > max(upload.parts, default=0) + 2:
        raise _Refused(400, "InvalidPartOrder", "parts must come in order")
    upload.parts[number] = (request.body, fake.now)
    return _Answer(200, b"", {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})


def _complete(fake: Fake, request: _Request, upload: Upload) -> _Answer:
    _require_free(fake, request, upload.key)
    root = ElementTree.fromstring(request.body)
    named = [
        (int(str(part.findtext("{*}PartNumber"))), str(part.findtext("{*}ETag")).strip('"'))
        for part in root.iter()
        if part.tag.endswith("}Part") or part.tag == "Part"
    ]
    sizes = [len(upload.parts[number][0]) for number, _ in named if number in upload.parts]
    if named != sorted(named):
        raise _Refused(400, "InvalidPartOrder")
    if any(n not in upload.parts or hashlib.md5(upload.parts[n][0]).hexdigest() != etag for n, etag in named):
        raise _Refused(400, "InvalidPart")
    if any(size < 5 << 20 for size in sizes[:-1]):
        raise _Refused(400, "EntityTooSmall")
    if fake.quirks.equal_parts and (len(set(sizes[:-1])) > 1 or sizes[-1] > sizes[0]):
        raise _Refused(400, "InvalidPart", "All non-trailing parts must have the same length")
    data = b"".join(upload.parts[number][0] for number, _ in named)
    del fake.uploads[request.query["uploadId"]]
    etag = f"{hashlib.md5(data).hexdigest()}-{len(named)}"
    stored = _store(fake, upload.key, data, upload.headers, etag)
    return _xml("CompleteMultipartUploadResult", _tags(Bucket=fake.bucket, Key=upload.key, ETag=stored.headers["ETag"]))


# --- HTTP


def _handler(fake: Fake) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            pass

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:
                self.close_connection = True

        def serve_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with fake.lock:
                fake.seen.append(f"{self.command} {self.path}")
            try:
                answer = _answer(fake, _request(fake, self, body))
            except _Refused as exc:
                answer = _xml("Error", _tags(Code=exc.code, Message=exc.message), exc.status)
            self.send_response_only(answer.status)
            self.send_header("Date", format_datetime(fake.now, usegmt=True))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = serve_one  # noqa: N815

    return Handler


def _request(fake: Fake, handler: BaseHTTPRequestHandler, body: bytes) -> _Request:
    headers = {name.lower(): value for name, value in handler.headers.items()}
    parts = urlsplit(handler.path)
    host = headers.get("host", "").lower()
    in_host, _, rest = host.partition(".")
    path = unquote(parts.path).removeprefix("/")
    if fake.quirks.decodes_twice:
        path = unquote_plus(path)
    if in_host == fake.bucket and rest and fake.quirks.addressing != "path":
        bucket, key = in_host, path
    else:
        bucket, _, key = path.partition("/")
        if fake.quirks.addressing == "virtual":
            _refuse_path()
    credential = re.search(r"Credential=([^/]+)/", headers.get("authorization", ""))
    if credential is None:
        raise _Refused(403, "AccessDenied", "no signature")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    return _Request(handler.command, bucket, key, query, headers, body, credential[1])


def _refuse_path() -> NoReturn:
    raise _Refused(403, "SecondLevelDomainForbidden", "The bucket must be addressed using its own domain")
