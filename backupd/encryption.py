"""age: the keys that people write down, and streams of bytes to age files and back. The only importer of pyrage.

Hides what pyrage is like. It drives (it reads a file and writes another), and turns whatever a file raises into its own
error and text, an Interrupted too: so it works in a thread behind `threads.through`, and streams stay iterators. It
puts a stanza of random size into every header, by which an age file's size is known only when its header is there:
then it follows from the plain size (one tag of 16 bytes a chunk of 64 KiB), and the tar's header can be written before
the first byte is. Encrypting into scratch first would need room for the largest table twice.

Not GnuPG, which has a keyring and a configuration to get wrong; not a passphrase, which the service would have to hold.
Own files a member instead of one around the archive: one table is read by range, kilobytes instead of all.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import ModuleType

from backupd import threads
from backupd.errors import AccessRefused, UsageError, VerificationFailed

SUFFIX = ".age"
"""What is appended to the name of an encrypted member."""

SETTING = "BACKUPD_ENCRYPTION__IDENTITIES_FILE"
RECIPIENTS_SETTING = "BACKUPD_ENCRYPTION__RECIPIENTS"

IDENTITIES_LIMIT_BYTES = 1 << 20
HEADER_LIMIT_BYTES = 1 << 20
"""No header is longer: a recipient takes 100 bytes, 800 with the longest RSA keys."""

_CHUNK_BYTES, _TAG_BYTES, _NONCE_BYTES = 64 << 10, 16, 16  # age-encryption.org/v1, payload
_MAC_LINE = re.compile(rb"\n--- [^\n]*\n")
_RECIPIENT_HINT = "A key is what `age-keygen -y` prints (age1...), or a line of id_ed25519.pub or id_rsa.pub."
_KEY_HINT = f"{SETTING} names a file of age-keygen's, or an SSH private key (ed25519 or RSA) without a passphrase."
_NO_MATCH = "No matching keys found"


def parse_recipients(texts: Iterable[str]) -> tuple[str, ...]:
    """The recipients as they are kept: each once, and without an SSH key's comment, which names people and hosts.

    Raises UsageError where one is no public key; it names its place and not its text, which may be a private key.
    """
    kept: dict[str, None] = {}
    for number, text in enumerate(texts, 1):
        words = text.split()
        key = " ".join(words[:2]) if text.startswith("ssh-") else text
        if text.upper().startswith(("AGE-SECRET-KEY-", "-----BEGIN")):
            hint = f"Here it is no secret any more: make another. {_RECIPIENT_HINT}"
            raise UsageError(f"{RECIPIENTS_SETTING}: key {number} is a private key", hint=hint)
        try:
            _recipient(key)
        except ValueError:
            message = f"{RECIPIENTS_SETTING}: key {number} is no public key for age"
            raise UsageError(message, hint=_RECIPIENT_HINT) from None
        kept[key] = None
    return tuple(kept)


def _recipient(text: str) -> object:
    """Raises ValueError."""
    pyrage = _library()
    kind = pyrage.ssh if text.startswith("ssh-") else pyrage.x25519
    try:
        return kind.Recipient.from_str(text)
    except pyrage.RecipientError as exc:
        raise ValueError(str(exc)) from None


@dataclass(frozen=True)
class Identities:
    """The private keys that open an archive, in a file that is read when it is first needed; None: there are none."""

    path: Path | None = None

    def __bool__(self) -> bool:
        """Whether any are set."""
        return self.path is not None

    @cached_property
    def keys(self) -> tuple[object, ...]:
        """The keys. Raises UsageError where no file is set, or it is none of age identities or an SSH private key."""
        if self.path is None:
            raise UsageError(
                "the backup is encrypted, and no identities are set to open it",
                hint=f"Set {SETTING} to the file with the private key of one of its recipients.",
            )
        return tuple(_identities(self.path))


NO_IDENTITIES = Identities()


def _identities(path: Path) -> Iterator[object]:
    pyrage = _library()
    try:
        with path.open("rb") as file:
            data = file.read(IDENTITIES_LIMIT_BYTES + 1)
    except OSError as exc:
        hint = "Check that the file is there; in Kubernetes, that the Secret exists and has the key."
        raise UsageError(f"{SETTING}: could not read {path}: {exc.strerror}", hint=hint) from None
    _refuse_protected(path, data)
    if b"PRIVATE KEY-----" in data:
        try:
            yield pyrage.ssh.Identity.from_buffer(data)
        except pyrage.IdentityError as exc:
            if "must be decrypted" in str(exc) or "EncryptedPem" in str(exc):
                raise _protected(path, f"`ssh-keygen -p -N '' -f {path.name}` takes it from a copy.") from None
            raise UsageError(f"{SETTING}: {path} is no SSH private key that age knows", hint=_KEY_HINT) from None
        return
    lines = [line.strip() for line in data.decode("utf-8", "replace").splitlines()]
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line and not line.startswith("#")]
    if not numbered or len(data) > IDENTITIES_LIMIT_BYTES:
        raise UsageError(f"{SETTING}: {path} holds no identity", hint=_KEY_HINT)
    for number, line in numbered:
        try:
            yield pyrage.x25519.Identity.from_str(line)
        except pyrage.IdentityError:
            raise UsageError(f"{SETTING}: line {number} of {path} is no age identity", hint=_KEY_HINT) from None


def _refuse_protected(path: Path, data: bytes) -> None:
    if data.startswith((b"age-encryption.org/", b"-----BEGIN AGE ENCRYPTED FILE-----")):
        raise _protected(path, f"`age -d {path.name}` writes the one without, for as long as it is needed.")


def _protected(path: Path, hint: str) -> UsageError:
    message = f"{SETTING}: {path} is protected by a passphrase, which backupd never asks for"
    return UsageError(message, hint=hint)


@dataclass(frozen=True)
class Encrypted:
    """An age file in the making: its size, which is known before its bytes are."""

    size_bytes: int
    chunks: Iterator[bytes]


@contextlib.contextmanager
def encrypt(chunks: Iterable[bytes], size_bytes: int, recipients: Sequence[str]) -> Iterator[Encrypted]:
    """The age file of the chunks, which are `size_bytes` long together, for those recipients."""
    pyrage = _library()
    keys = [_recipient(text) for text in recipients]

    def work(given: threads.Given, made: threads.Made) -> None:
        pyrage.encrypt_io(given, made, keys)

    with contextlib.closing(threads.through(work, chunks)) as made:
        head, header_bytes = _head(made)
        payload_chunks = max(1, -(-size_bytes // _CHUNK_BYTES))
        stored_bytes = header_bytes + _NONCE_BYTES + size_bytes + payload_chunks * _TAG_BYTES
        yield Encrypted(stored_bytes, chain([head], made))


def peek(stored: Iterable[bytes], stored_bytes: int) -> tuple[int, Iterator[bytes]]:
    """How long the content of that age file is, and the same bytes again; 0 where it has no whole header."""
    source = iter(stored)
    head, header_bytes = _head(source)
    payload_bytes = stored_bytes - header_bytes - _NONCE_BYTES if header_bytes else 0
    tags = -(-payload_bytes // (_CHUNK_BYTES + _TAG_BYTES))
    return max(0, payload_bytes - tags * _TAG_BYTES), chain([head], source)


def _head(source: Iterator[bytes]) -> tuple[bytes, int]:
    """The first bytes of an age file, and how many of them are its header; 0 where that has no end within the limit."""
    head = b""
    while not (end := _MAC_LINE.search(head)) and len(head) <= HEADER_LIMIT_BYTES and (chunk := next(source, b"")):
        head += chunk
    return head, end.end() if end else 0


def decrypt(chunks: Iterable[bytes], identities: Identities, what: str) -> Iterator[bytes]:
    """The content of the age file that is `what` (for messages). All chunks are read, whatever becomes of it.

    Whatever reading the chunks raises, at their end too, comes before what is found here: where a hash is wrong, a key
    that does not fit proves nothing. Raises AccessRefused where no identity is a recipient's, VerificationFailed where
    the file is cut or damaged, after the bytes before that.
    """
    pyrage = _library()
    keys, source = list(identities.keys), iter(chunks)

    def work(given: threads.Given, made: threads.Made) -> None:
        try:
            pyrage.decrypt_io(given, made, keys)
        except (pyrage.DecryptError, OSError) as exc:
            raise _Failed(str(exc)) from None

    head, header_bytes = _head(source)
    failure = None if header_bytes else "it has no age header"
    try:
        if header_bytes:  # else age would look for its end in memory
            yield from threads.through(work, chain([head], source))
    except _Failed as exc:
        failure = str(exc)
    for _ in source:
        pass
    if failure is not None and _NO_MATCH in failure:
        raise AccessRefused(
            f"none of the identities opens {what}",
            detail=f"{identities.path} holds {len(keys)}, and it is encrypted to others.",
            hint=f"`backupd show ID` names its recipients; {SETTING} must hold the private key of one.",
        )
    if failure is not None:
        raise VerificationFailed(f"{what} is damaged", detail=f"age does not decrypt it: {failure}.")


def _library() -> ModuleType:
    """pyrage, whose import costs milliseconds. Raises UsageError where it is not installed: it comes with an extra."""
    try:
        import pyrage
    except ImportError:
        hint = "Run: pip install 'backupd[encryption]'"
        raise UsageError("pyrage, which encryption needs, is not installed", hint=hint) from None
    module: ModuleType = pyrage
    return module


class _Failed(Exception):
    """What age said."""
