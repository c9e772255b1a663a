"""Keys as people make them, with age's and OpenSSH's own programs."""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

Kind = str
NewKey = Callable[..., "Key"]


@dataclass(frozen=True)
class Key:
    """A key pair: the public key as text, and the file of the private one."""

    recipient: str
    path: Path


@pytest.fixture(scope="session")
def age_program() -> str:
    """Debian's `age`."""
    return shutil.which("age") or pytest.skip("age is not installed")


@pytest.fixture
def new_key(tmp_path: Path, age_program: str) -> NewKey:
    """A new key pair: `new_key("age")`, `new_key("ssh-ed25519")`, `new_key("ssh-rsa", "its passphrase")`."""
    count = iter(range(1000))

    def make(kind: Kind = "age", passphrase: str = "") -> Key:
        path = tmp_path / f"key-{next(count)}"
        if kind == "age":
            subprocess.run(["age-keygen", "-o", path], check=True, capture_output=True)
            finished = subprocess.run(["age-keygen", "-y", path], check=True, capture_output=True, text=True)
            return Key(finished.stdout.strip(), path)
        bits = ["-b", "2048"] if kind == "ssh-rsa" else []  # quicker
        options = ["-q", "-t", kind.removeprefix("ssh-"), *bits, "-N", passphrase, "-C", "somebody@a-host"]
        subprocess.run(["ssh-keygen", *options, "-f", path], check=True)
        return Key(path.with_suffix(".pub").read_text().strip(), path)

    return make
