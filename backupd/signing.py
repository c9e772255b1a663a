"""Signatures as minisign makes and checks them, so that a manifest can be checked without backupd.

Hides Ed25519 (PyNaCl, which is libsodium, as in minisign itself) and minisign's file formats. A signature's trusted
comment, which is signed too, holds the key of the object: what is signed proves nothing under another name.

A signature is believed only where it is to the last byte what `sign` writes. minisign is more lenient (its first line
is a comment that nothing protects, and base64 has spare bits), but then bytes could change and nobody would know.

Not OpenSSH's signatures: they bind a namespace and no name, and their tool needs a file of allowed signers. Not the
minisign program as a child: a listing would start it a thousand times.
"""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backupd.errors import UsageError

if TYPE_CHECKING:
    from nacl.signing import SigningKey

KEY_SETTING = "BACKUPD_SIGNING__KEY_FILE"
PUBLIC_KEYS_SETTING = "BACKUPD_SIGNING__PUBLIC_KEYS"

# minisign's own words: of keys, of signatures of a BLAKE2b-512 hash, of no password, of a checksum that we do not read
_ED25519, _HASHED, _NO_PASSWORD, _BLAKE2B = b"Ed", b"ED", b"\0\0", b"B2"
_ID_BYTES, _KEY_BYTES, _SIGNATURE_BYTES = 8, 32, 64
_SECRET_HEADER_BYTES = 6 + 32 + 8 + 8  # algorithms, then salt and limits, which only a password needs
_SECRET_FILE_BYTES = _SECRET_HEADER_BYTES + _ID_BYTES + 2 * _KEY_BYTES + 32
_COMMENT, _TRUSTED_COMMENT = "untrusted comment: ", "trusted comment: "


@dataclass(frozen=True)
class PublicKey:
    """What checks signatures; `id` are the eight bytes by which a signature names its key."""

    id: bytes
    key: bytes

    def __str__(self) -> str:
        """The key as minisign writes it, RW..."""
        return base64.b64encode(_ED25519 + self.id + self.key).decode()


@dataclass(frozen=True)
class SecretKey:
    """What signs; `public` is its other half."""

    seed: bytes = field(repr=False)
    public: PublicKey


@dataclass(frozen=True)
class Keys:
    """What an installation signs with, and whose signatures it believes; without any of these, it asks for none."""

    secret: SecretKey | None = None
    trusted: tuple[PublicKey, ...] = ()

    def __post_init__(self) -> None:
        """Raises UsageError where what one signs with is not among what one believes."""
        if self.secret is not None and self.trusted and self.secret.public not in self.trusted:
            raise UsageError(
                f"the public key of {KEY_SETTING} is not among {PUBLIC_KEYS_SETTING}",
                detail="Nothing that is signed with it would be trusted.",
                hint=f"Add {self.secret.public} to {PUBLIC_KEYS_SETTING}.",
            )


def read_public_key(text: str) -> PublicKey:
    """The key in `text`, as minisign writes it into the second line of its .pub file. Raises ValueError."""
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        data = b""
    if len(data) != 2 + _ID_BYTES + _KEY_BYTES or not data.startswith(_ED25519):
        raise ValueError("should be public keys of minisign, as RW..., separated by commas")
    return PublicKey(data[2 : 2 + _ID_BYTES], data[2 + _ID_BYTES :])


def read_secret_key(text: str) -> SecretKey:
    """The key in the text of minisign's secret key file. Raises UsageError, which has nothing of the text in it."""
    lines = [line for line in text.splitlines() if line and not line.startswith(_COMMENT)]
    try:
        data = base64.b64decode(lines[0], validate=True) if len(lines) == 1 else b""
    except (ValueError, binascii.Error):
        data = b""
    made = "Make one with `minisign -G -W -p backupd.pub -s backupd.key`."
    if len(data) != _SECRET_FILE_BYTES or (data[:2], data[4:6]) != (_ED25519, _BLAKE2B):
        raise UsageError(f"{KEY_SETTING} has no secret key of minisign", hint=made)
    if data[2:4] != _NO_PASSWORD:
        hint = "Nobody is there at night to type it: take it off with `minisign -C -W -s FILE`."
        raise UsageError(f"the secret key in {KEY_SETTING} is protected by a password", hint=hint)
    data = data[_SECRET_HEADER_BYTES:]
    key_id, seed, key = data[:8], data[8:40], data[40:72]
    if bytes(_signer(seed).verify_key) != key:
        raise UsageError(f"the secret key in {KEY_SETTING} is damaged", hint=made)
    return SecretKey(seed, PublicKey(key_id, key))


def sign(secret: SecretKey, key: str, data: bytes) -> bytes:
    """The signature of the object `data` under `key`: what lies beside it in the store, as minisign reads it."""
    signer, comment = _signer(secret.seed), f"backupd {key}"
    signature = signer.sign(_hash(data)).signature
    over_comment = signer.sign(signature + comment.encode()).signature
    return _written(secret.public.id, signature, comment, over_comment)


def why_untrusted(trusted: Sequence[PublicKey], key: str, data: bytes, signature: bytes | None) -> str | None:
    """Why that is no signature of `data` under `key` by one of these keys, in words; None where it is one."""
    if signature is None:
        return "it has no signature"
    parts = _read(signature)
    if parts is None:
        return "its signature is not as backupd writes it"
    key_id, over_data, comment, over_comment = parts
    known = [public for public in trusted if public.id == key_id]
    if not known:
        return f"it is signed by key {_shown(key_id)}, which is not among {PUBLIC_KEYS_SETTING}"
    signed = ((_hash(data), over_data), (over_data + comment.encode(), over_comment))
    if not any(all(_is_signed(each, *pair) for pair in signed) for each in known):
        return "its signature is wrong"
    return None if comment == f"backupd {key}" else f"its signature is of {comment.removeprefix('backupd ')!r}"


def _written(key_id: bytes, signature: bytes, comment: str, over_comment: bytes) -> bytes:
    lines = (
        f"{_COMMENT}signature by backupd",
        base64.b64encode(_HASHED + key_id + signature).decode(),
        f"{_TRUSTED_COMMENT}{comment}",
        base64.b64encode(over_comment).decode(),
    )
    return "".join(f"{line}\n" for line in lines).encode()


def _read(text: bytes) -> tuple[bytes, bytes, str, bytes] | None:
    """Key id, signature, trusted comment and the signature over that; None where they are not as we write them."""
    try:
        _, of_data, comment, of_comment, _ = text.decode("ascii").split("\n")
        data, over_comment = base64.b64decode(of_data), base64.b64decode(of_comment)
    except ValueError:  # of which binascii's errors are
        return None
    key_id, signature = data[2 : 2 + _ID_BYTES], data[2 + _ID_BYTES :]
    comment = comment.removeprefix(_TRUSTED_COMMENT)
    if len(signature) != _SIGNATURE_BYTES or len(over_comment) != _SIGNATURE_BYTES:
        return None
    parts = key_id, signature, comment, over_comment
    return parts if _written(*parts) == text else None


def _is_signed(public: PublicKey, data: bytes, signature: bytes) -> bool:
    _require_library()
    from nacl.exceptions import BadSignatureError
    from nacl.signing import VerifyKey

    try:
        VerifyKey(public.key).verify(data, signature)
    except BadSignatureError:
        return False
    return True


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data).digest()


def _shown(key_id: bytes) -> str:
    """A key's id as minisign prints it."""
    return f"{int.from_bytes(key_id, 'little'):016X}"


def _signer(seed: bytes) -> "SigningKey":
    _require_library()
    from nacl.signing import SigningKey

    return SigningKey(seed)


def _require_library() -> None:
    """Raises UsageError where PyNaCl is not installed: it comes with an extra."""
    try:
        import nacl.signing  # noqa: F401
    except ImportError:
        hint = "Run: pip install 'backupd[encryption]'"
        raise UsageError("PyNaCl, which signatures need, is not installed", hint=hint) from None
