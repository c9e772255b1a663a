"""Keys as `minisign -G -W` writes them, made of a number, so that a test fails the same way twice."""

import base64
import hashlib

from nacl.signing import SigningKey

from backupd.signing import Keys, SecretKey, read_public_key, read_secret_key


def key_texts(number: int = 1, *, kdf: bytes = b"\0\0") -> tuple[str, str]:
    """The text of a secret key's file, and the public key; `kdf` other than zeros claims a password."""
    seed = hashlib.sha256(f"seed {number}".encode()).digest()
    key_id, public = hashlib.sha256(seed).digest()[:8], bytes(SigningKey(seed).verify_key)
    secret = b"Ed" + kdf + b"B2" + bytes(48) + key_id + seed + public + bytes(32)
    return (
        f"untrusted comment: minisign encrypted secret key\n{base64.b64encode(secret).decode()}\n",
        base64.b64encode(b"Ed" + key_id + public).decode(),
    )


def made_secret(number: int = 1) -> SecretKey:
    """A secret key."""
    return read_secret_key(key_texts(number)[0])


def made_keys(number: int = 1, *others: int) -> Keys:
    """What signs with one key, and believes that and others."""
    trusted = tuple(read_public_key(key_texts(each)[1]) for each in (number, *others))
    return Keys(made_secret(number), trusted)
