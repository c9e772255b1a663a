"""age files: what is written opens with the real `age`, what `age` wrote opens here, and no damage passes."""

import os
import subprocess
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_encryption import Key, NewKey

from backupd import encryption, threads
from backupd.encryption import Identities
from backupd.errors import AccessRefused, BackupdError, UsageError, VerificationFailed

KINDS = ["age", "ssh-ed25519", "ssh-rsa"]
CHUNK = 64 << 10
SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 1_000_003]


def pieces(data: bytes, size: int = 100_000) -> Iterator[bytes]:
    """The data in chunks."""
    return (data[start : start + size] for start in range(0, len(data), size))


def encrypted(data: bytes, *recipients: str) -> bytes:
    """An age file, whose size was known before."""
    with encryption.encrypt(pieces(data), len(data), recipients) as made:
        stored = b"".join(made.chunks)
        assert len(stored) == made.size_bytes
    return stored


def decrypted(stored: bytes, key: Key) -> bytes:
    """Its content."""
    return b"".join(encryption.decrypt(pieces(stored), Identities(key.path), "member 1.dat"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_real_age_opens_what_was_encrypted_to_any_kind_of_key(kind: str, new_key: NewKey, age_program: str) -> None:
    key, other = new_key(kind), new_key()
    data = os.urandom(200_000)
    stored = encrypted(data, *encryption.parse_recipients([other.recipient, key.recipient]))
    for one in (key, other):
        argv = [age_program, "--decrypt", "--identity", str(one.path)]
        assert subprocess.run(argv, input=stored, capture_output=True, check=True).stdout == data


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_real_age_encrypted_is_opened(kind: str, new_key: NewKey, age_program: str) -> None:
    key, data = new_key(kind), os.urandom(200_000)
    argv = [age_program, "--encrypt", "--recipient", key.recipient]
    assert decrypted(subprocess.run(argv, input=data, capture_output=True, check=True).stdout, key) == data


@pytest.mark.parametrize("size", SIZES)
def test_the_size_of_an_age_file_is_known_from_its_header_on(size: int, new_key: NewKey) -> None:
    key, data = new_key(), os.urandom(size)
    for _ in range(20):  # the header's size is random
        assert decrypted(encrypted(data, key.recipient), key) == data


@pytest.mark.slow
def test_the_end_of_a_header_is_found_that_comes_in_several_pieces(new_key: NewKey) -> None:
    stored = encrypted(b"data", *[new_key().recipient] * 2800)
    assert len(stored) > threads.MADE_BYTES


def test_another_s_key_is_access_refused(new_key: NewKey) -> None:
    stored = encrypted(b"data" * 1000, new_key().recipient)
    for kind in KINDS:
        with pytest.raises(AccessRefused, match=r"none of the identities opens member 1\.dat"):
            decrypted(stored, new_key(kind))


def test_no_key_at_all_names_the_setting() -> None:
    with pytest.raises(UsageError, match="no identities are set") as caught:
        list(encryption.decrypt([b"data"], Identities(), "member 1.dat"))
    assert "BACKUPD_ENCRYPTION__IDENTITIES_FILE" in str(caught.value.hint)


def test_no_flipped_bit_and_no_cut_passes(new_key: NewKey) -> None:
    """Of the payload and of its end at once: an early end is not taken for the end."""
    key, data = new_key(), os.urandom(3 * CHUNK)
    stored = encrypted(data, key.recipient)
    payload = len(stored) - len(data) - 3 * 16
    for position in (0, 30, payload - 60, payload - 1, payload, payload + CHUNK, len(stored) - 1):
        flipped = bytearray(stored)
        flipped[position] ^= 1
        with pytest.raises((VerificationFailed, AccessRefused)):
            decrypted(bytes(flipped), key)
    for size in (0, 1, 60, payload - 20, payload, payload + CHUNK + 16, payload + 2 * (CHUNK + 16), len(stored) - 1):
        with pytest.raises(VerificationFailed, match=r"member 1\.dat is damaged"):
            decrypted(stored[:size], key)
    with pytest.raises(VerificationFailed, match="is damaged"):
        decrypted(stored + b"\0", key)


def test_a_header_without_end_is_given_up_before_it_fills_the_memory(new_key: NewKey) -> None:
    """It is read to its end all the same, since the hash of it all decides first."""
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        yield b"age-encryption.org/v1\n"
        for _ in range(500):
            read += 1
            yield (b"-> X25519 " + b"A" * 43 + b"\n" + b"A" * 43 + b"\n") * 5000

    tracemalloc.start()
    with pytest.raises(VerificationFailed, match="is damaged") as caught:
        list(encryption.decrypt(endless(), Identities(new_key().path), "member 1.dat"))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "no age header" in str(caught.value.detail)
    assert read == 500
    assert peak_bytes < 20 << 20


def test_what_reading_raises_is_raised_as_itself(new_key: NewKey) -> None:
    class Broken(Exception):
        pass

    def breaking(data: bytes) -> Iterator[bytes]:
        yield from pieces(data)
        raise Broken

    key = new_key()
    stored = encrypted(bytes(300_000), key.recipient)
    with pytest.raises(Broken):
        list(encryption.decrypt(breaking(stored), Identities(key.path), "it"))
    with pytest.raises(Broken):  # and a key that does not fit is no excuse for not reading to the end
        list(encryption.decrypt(breaking(stored), Identities(new_key().path), "it"))
    with (
        pytest.raises(Broken),
        encryption.encrypt(breaking(bytes(300_000)), 300_000, [key.recipient]) as made,
    ):
        list(made.chunks)


def test_what_is_left_in_the_middle_leaves_no_thread(new_key: NewKey) -> None:
    key = new_key()
    stored, before = encrypted(bytes(3_000_000), key.recipient), threading.active_count()
    opened = encryption.decrypt(pieces(stored), Identities(key.path), "it")
    next(opened)
    opened.close()  # type: ignore[attr-defined]
    with encryption.encrypt(pieces(bytes(3_000_000)), 3_000_000, [key.recipient]) as made:
        next(made.chunks)
    assert threading.active_count() == before


def test_only_little_is_held_however_large_the_member_is(new_key: NewKey) -> None:
    """No more is asked for than what was taken before, but for some chunks."""
    key, given, taken = new_key(), 0, 0

    def counting() -> Iterator[bytes]:
        nonlocal given
        for _ in range(100):
            given += 100_000
            yield bytes(100_000)

    with encryption.encrypt(counting(), 10_000_000, [key.recipient]) as made:
        for chunk in made.chunks:
            taken += len(chunk)
            assert given - taken < 1_000_000
    assert given == 10_000_000


# --- recipients


def test_a_recipient_is_kept_once_and_without_the_comment_of_an_ssh_key(new_key: NewKey) -> None:
    keys = [new_key(kind).recipient for kind in KINDS]
    assert "somebody@a-host" in keys[1]
    kept = encryption.parse_recipients([*keys, keys[0]])
    assert kept == (keys[0], " ".join(keys[1].split()[:2]), " ".join(keys[2].split()[:2]))


WRONG = [
    "age1foo",
    "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kudhqrqfsl6nvgx",
    "ssh-ed25519",
    "ssh-ed25519 AAAA",
    "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBB",
    "secret-in-the-wrong-place",
]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_public_key_is_refused_by_its_place_and_not_shown(text: str, new_key: NewKey) -> None:
    with pytest.raises(UsageError, match="key 2 is no public key for age") as caught:
        encryption.parse_recipients([new_key().recipient, text])
    assert text not in str(caught.value)


def test_a_private_key_among_the_recipients_is_called_one_and_not_shown(new_key: NewKey) -> None:
    for kind in KINDS:
        secret = new_key(kind).path.read_text().splitlines()[-1 if kind == "age" else 0]
        with pytest.raises(UsageError, match="key 1 is a private key") as caught:
            encryption.parse_recipients([secret])
        assert secret not in str(caught.value)


# --- identities


def refused(path: Path) -> UsageError:
    """Why that file is not taken; no message shows what is in it."""
    with pytest.raises(UsageError) as caught:
        _ = Identities(path).keys
    if path.is_file():
        for line in path.read_text().splitlines():
            assert len(line) < 10 or line not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ssh-rsa"])
def test_a_key_with_a_passphrase_is_refused_with_a_way_out(kind: str, new_key: NewKey) -> None:
    error = refused(new_key(kind, "a passphrase").path)
    assert "is protected by a passphrase" in error.message
    assert "ssh-keygen -p" in str(error.hint)


def test_an_age_identity_with_a_passphrase_is_refused_with_a_way_out(tmp_path: Path) -> None:
    path = tmp_path / "protected"
    path.write_text("age-encryption.org/v1\n-> scrypt abc 18\nabc\n--- abc\n")
    error = refused(path)
    assert "is protected by a passphrase" in error.message
    assert "age -d" in str(error.hint)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no identity"),
        ("# only a comment\n", "holds no identity"),
        ("# a comment\nAGE-SECRET-KEY-1FOOLISH\n", "line 2 of"),
        ("AGE-PLUGIN-YUBIKEY-1ABC", "line 1 of"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nbroken\n-----END OPENSSH PRIVATE KEY-----\n", "is no SSH private key"),
        ("-----BEGIN PRIVATE KEY-----\nbroken\n-----END PRIVATE KEY-----\n", "is no SSH private key"),
        ("\0" * 2_000_000, "holds no identity"),
    ],
)
def test_a_file_without_identities_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "identities"
    path.write_text(text)
    error = refused(path)
    assert reason in error.message
    assert "BACKUPD_ENCRYPTION__IDENTITIES_FILE" in error.message


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "missing").message
    assert "Is a directory" in refused(tmp_path).message


def test_several_identities_may_be_in_one_file(tmp_path: Path, new_key: NewKey) -> None:
    keys = [new_key(), new_key()]
    path = tmp_path / "both"
    path.write_text("".join(key.path.read_text() for key in keys))
    for key in keys:
        assert decrypted(encrypted(b"data", key.recipient), Key("", path)) == b"data"


def test_every_failure_of_a_key_has_a_hint(tmp_path: Path) -> None:
    errors: list[BackupdError] = [refused(tmp_path / "missing"), refused(tmp_path)]
    assert all(error.hint for error in errors)
