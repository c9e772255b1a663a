"""Signatures: minisign reads ours; not one byte, and not one name, of what was signed can be another."""

import base64
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_keys import key_texts, made_keys, made_secret

from backupd.errors import UsageError
from backupd.signing import Keys, SecretKey, read_public_key, read_secret_key, sign, why_untrusted

KEY = "prod/app%20one/20261123T221614Z-3f9ac21b.json"
DATA = b'{"format":1,"id":"20261123T221614Z-3f9ac21b"}\n'
TRUSTED = made_keys().trusted
SIGNATURE = sign(made_secret(), KEY, DATA)


def minisign(*arguments: str | Path, typed: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the real program; `typed` is what it asks for."""
    program = shutil.which("minisign")
    assert program, "minisign is not installed"
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, input=typed)


@pytest.fixture(scope="session")
def real_key(tmp_path_factory: pytest.TempPathFactory) -> tuple[SecretKey, Path]:
    """A key that minisign made, and the file of its public half."""
    folder = tmp_path_factory.mktemp("minisign")
    made = minisign("-G", "-W", "-p", folder / "backupd.pub", "-s", folder / "backupd.key")
    assert made.returncode == 0, made.stderr
    return read_secret_key((folder / "backupd.key").read_text()), folder / "backupd.pub"


# --- minisign


def test_minisign_checks_what_was_signed_and_shows_its_name(real_key: tuple[SecretKey, Path], tmp_path: Path) -> None:
    secret, public = real_key
    file = tmp_path / "20261123T221614Z-3f9ac21b.json"
    file.write_bytes(DATA)
    file.with_name(f"{file.name}.minisig").write_bytes(sign(secret, KEY, DATA))

    checked = minisign("-V", "-p", public, "-m", file)

    assert checked.returncode == 0, checked.stderr
    assert f"Trusted comment: backupd {KEY}" in checked.stdout
    file.write_bytes(DATA.replace(b"1", b"2"))
    assert minisign("-V", "-p", public, "-m", file).returncode != 0


def test_the_public_key_is_written_as_minisign_writes_it(real_key: tuple[SecretKey, Path]) -> None:
    secret, public = real_key

    assert str(secret.public) == public.read_text().splitlines()[1]
    assert read_public_key(str(secret.public)) == secret.public


@pytest.mark.slow
def test_a_password_of_minisigns_is_refused_and_the_hint_takes_it_off(tmp_path: Path) -> None:
    public, secret = tmp_path / "backupd.pub", tmp_path / "backupd.key"
    assert minisign("-G", "-p", public, "-s", secret, typed="canary\ncanary\n").returncode == 0
    with pytest.raises(UsageError, match="is protected by a password") as caught:
        read_secret_key(secret.read_text())
    hint = re.search("`minisign (.*) FILE`", caught.value.hint or "")
    assert hint

    assert minisign(*hint[1].split(), secret, typed="canary\n").returncode == 0
    assert str(read_secret_key(secret.read_text()).public) == public.read_text().splitlines()[1]


# --- what is believed


def test_what_was_signed_is_believed() -> None:
    assert why_untrusted(TRUSTED, KEY, DATA, SIGNATURE) is None


def test_no_byte_of_a_signature_can_be_another() -> None:
    for position, byte in enumerate(SIGNATURE):
        for other in {byte ^ 1, byte ^ 0x20, 0x0A, 0x41, 0x3D} - {byte}:
            changed = SIGNATURE[:position] + bytes([other]) + SIGNATURE[position + 1 :]
            assert why_untrusted(TRUSTED, KEY, DATA, changed), (position, other)


@settings(deadline=None)
@given(position=st.integers(0, len(DATA) - 1), change=st.integers(1, 255))
def test_no_byte_of_what_was_signed_can_be_another(position: int, change: int) -> None:
    changed = DATA[:position] + bytes([DATA[position] ^ change]) + DATA[position + 1 :]

    assert why_untrusted(TRUSTED, KEY, changed, SIGNATURE) == "its signature is wrong"


@settings(deadline=None)
@given(start=st.integers(0, len(SIGNATURE)), length=st.integers(0, 20), put=st.binary(max_size=20))
def test_nothing_can_be_cut_from_a_signature_or_put_into_it(start: int, length: int, put: bytes) -> None:
    changed = SIGNATURE[:start] + put + SIGNATURE[start + length :]

    assert (why_untrusted(TRUSTED, KEY, DATA, changed) is None) == (changed == SIGNATURE)


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_what_is_no_signature_is_refused_with_a_reason(noise: bytes) -> None:
    assert why_untrusted(TRUSTED, KEY, DATA, noise) == "its signature is not as backupd writes it"


def test_a_missing_signature_is_none() -> None:
    assert why_untrusted(TRUSTED, KEY, DATA, None) == "it has no signature"


@pytest.mark.parametrize("other", ["prod/app/20261123T221614Z-3f9ac21b.json", KEY.replace("1b", "1c"), f"{KEY} "])
def test_what_was_signed_under_another_name_is_refused(other: str) -> None:
    assert why_untrusted(TRUSTED, other, DATA, SIGNATURE) == f"its signature is of {KEY!r}"


def test_a_key_that_is_not_known_is_named_as_minisign_names_it() -> None:
    why = why_untrusted(made_keys(2).trusted, KEY, DATA, SIGNATURE) or ""

    assert int.from_bytes(made_secret().public.id, "little") == int(why.split()[5].strip(","), 16)
    assert "BACKUPD_SIGNING__PUBLIC_KEYS" in why


def test_a_key_with_the_id_of_a_known_one_is_not_known_for_that() -> None:
    known, other = made_secret().public, made_secret(2)
    forged = SecretKey(other.seed, type(known)(known.id, other.public.key))

    assert why_untrusted(TRUSTED, KEY, DATA, sign(forged, KEY, DATA)) == "its signature is wrong"


def test_halves_of_two_signatures_make_none() -> None:
    other = sign(made_secret(), KEY, DATA.replace(b"1", b"2"))
    mixed = b"".join(SIGNATURE.splitlines(True)[:2] + other.splitlines(True)[2:])

    assert why_untrusted(TRUSTED, KEY, DATA, mixed) == "its signature is wrong"


def test_while_keys_are_changed_both_are_believed() -> None:
    both = made_keys(2, 1)

    assert both.secret is not None
    assert why_untrusted(both.trusted, KEY, DATA, SIGNATURE) is None
    assert why_untrusted(both.trusted, KEY, DATA, sign(both.secret, KEY, DATA)) is None


# --- keys


SECRET_LINE = key_texts()[0].splitlines()[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (key_texts(kdf=b"Sc")[0], "is protected by a password"),
        ("", "has no secret key of minisign"),
        ("untrusted comment: minisign encrypted secret key\n", "has no secret key of minisign"),
        (key_texts()[1], "has no secret key of minisign"),
        ("not base64, but a canary", "has no secret key of minisign"),
        (f"{SECRET_LINE}\n{SECRET_LINE}", "has no secret key of minisign"),
        (SECRET_LINE[:-8], "has no secret key of minisign"),
        (base64.b64encode(b"XX" + base64.b64decode(SECRET_LINE)[2:]).decode(), "has no secret key of minisign"),
        (SECRET_LINE[:90] + ("A" if SECRET_LINE[90] != "A" else "B") + SECRET_LINE[91:], "is damaged"),
    ],
)
def test_what_is_no_usable_secret_key_is_refused_and_not_repeated(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_secret_key(text)

    assert re.search("`minisign -[GC] -W ", str(caught.value))
    assert not any(line in str(caught.value) for line in text.splitlines() if line)


def test_a_secret_key_may_come_without_its_comment_or_with_windows_ends_of_line() -> None:
    assert read_secret_key(SECRET_LINE) == read_secret_key(key_texts()[0].replace("\n", "\r\n")) == made_secret()


@pytest.mark.parametrize("text", ["", "RW", key_texts()[1][:-4], SECRET_LINE, key_texts()[1] + "AAAA", "ä"])
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="should be public keys of minisign"):
        read_public_key(text)


def test_a_key_that_signs_what_nobody_would_believe_is_refused_with_the_one_to_add() -> None:
    with pytest.raises(UsageError) as caught:
        Keys(made_secret(1), made_keys(2).trusted)

    assert str(made_secret(1).public) in str(caught.value)


def test_a_secret_key_is_not_shown() -> None:
    secret = made_secret()

    assert repr(secret.seed) not in repr(made_keys())
    assert secret.seed.hex() not in repr(made_keys())


def test_without_the_library_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nacl.signing", None)

    with pytest.raises(UsageError) as caught:
        why_untrusted(TRUSTED, KEY, DATA, SIGNATURE)
    assert "backupd[encryption]" in str(caught.value)
