"""What services that speak S3 answer when they refuse, and what that means to whoever has to do something about it.

Hides the codes, in which services differ more than in anything else. Pure: `s3` gives status, code and message.
"""

from backupd.errors import AccessRefused, AlreadyExists, NoRoom, NotFound, StoreError

_PERMISSIONS = (
    "On the bucket of BACKUPD_STORE__URL the credentials need s3:ListBucket, GetObject, PutObject, DeleteObject, Abort"
    "MultipartUpload, ListBucketMultipartUploads, ListMultipartUploadParts; with KMS kms:GenerateDataKey and Decrypt."
)
_REGION = "Set BACKUPD_STORE__S3__REGION to the bucket's region."
_CHECKSUMS = "Set BACKUPD_STORE__S3__CHECKSUMS to when_required, or, with Object Lock, to when_supported or md5."
_VIRTUAL = "Set BACKUPD_STORE__S3__ADDRESSING to virtual."
ADDRESSING = "Set BACKUPD_STORE__S3__ADDRESSING to path."
_PARTS = "Set BACKUPD_STORE__S3__PART_LIMIT to the number of parts that the service allows, such as 1000."
NO_RANGES = "The service gave more than the range; where BACKUPD_STORE__S3__SSE is set, unset it, else use another."
RULE = "Let a lifecycle rule of the bucket remove it: `backupd doctor --print-lifecycle` prints one."
_HINTS = {
    "NoSuchBucket": "Create the bucket, or correct BACKUPD_STORE__URL or BACKUPD_STORE__S3__ADDRESSING.",
    "MissingContentMD5": "Set BACKUPD_STORE__S3__CHECKSUMS to md5.",
    **dict.fromkeys(("SecondLevelDomainForbidden", "VirtualHostDomainRequired"), _VIRTUAL),
    "NoSuchUpload": "A rule of the bucket or another program ended the upload; a rule must leave it some days.",
    "RequestTimeTooSkewed": "Set this machine's clock.",
    **dict.fromkeys(("PermanentRedirect", "AuthorizationHeaderMalformed"), _REGION),
    **dict.fromkeys(("NotImplemented", "InvalidRequest", "XAmzContentSHA256Mismatch"), _CHECKSUMS),
}
NO_BUCKET = frozenset({"NoSuchBucket"})
REFUSED = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired"})
"""What is said of credentials with a status of its own."""
_FULL = frozenset({"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"})
KEPT = frozenset({"AccessDenied", "ObjectLocked", "RetentionPolicyNotMet"})
"""Why an object is not deleted, as AWS, MinIO and Google say it."""
_TAKEN = frozenset({"PreconditionFailed", "ConditionalRequestConflict"})
NO_UPLOADS = frozenset({"NotImplemented", "MethodNotAllowed", "NoSuchUpload"})
"""Of a service that keeps no list of its uploads, or has none."""


def error(status: int, code: str, message: str, failed: str) -> StoreError | AccessRefused | NoRoom:
    """The error for an answer; `failed` says what could not be done."""
    detail = said(status, code, message)
    if code in _FULL or status == 507:
        return NoRoom(failed, detail=detail, hint="Raise the quota, or let `backupd prune` remove backups.")
    if code in _TAKEN:
        return AlreadyExists(f"{failed}: it exists already", detail=detail)
    if code in REFUSED or status in (401, 403):
        return AccessRefused(failed, detail=detail, hint=_HINTS.get(code, _PERMISSIONS))
    if status == 404 and code not in _HINTS:
        return NotFound(f"{failed}: it does not exist", detail=detail)
    hint = _PARTS if code == "InvalidArgument" and "part" in message.lower() else _HINTS.get(code)
    return StoreError(failed, detail=detail, hint=hint)


def said(status: int, code: str, message: str) -> str:
    """The answer, as a sentence."""
    return f"The service answered {status} {code}: {sentence(message)}"


def sentence(text: object) -> str:
    """The text on one line, with one full stop."""
    return " ".join(str(text).split()).rstrip(".") + "."
