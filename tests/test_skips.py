"""What CI may skip, and that whatever else skips itself fails there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from skips import may_skip

TESTS = Path(__file__).resolve().parent

SKIPPING = """
import pytest

def test_that_lacks_something():
    pytest.skip("zstd is not installed")

@pytest.fixture
def cluster():
    pytest.skip("promtool is missing")

def test_whose_fixture_lacks_something(cluster): ...

@pytest.mark.xfail(reason="known", strict=True)
def test_that_is_known_to_fail():
    assert False

def test_of_a_build(): pytest.skip("this PostgreSQL was built without that")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "code", "outcome"),
    [("true", 1, "1 failed, 1 skipped, 1 xfailed, 1 error"), ("", 0, "3 skipped, 1 xfailed")],
)
def test_what_skips_itself_fails_in_ci_and_nowhere_else(given: str, code: int, outcome: str, tmp_path: Path) -> None:
    ended = _run(SKIPPING, given, tmp_path)
    assert (ended.returncode, outcome in ended.stdout) == (code, True), ended.stdout
    assert ("skipped in CI: zstd is not installed" in ended.stdout) == bool(given)


@pytest.mark.slow
def test_a_module_that_skips_itself_fails_in_ci(tmp_path: Path) -> None:
    module = "import pytest\npytest.importorskip('no_such_module')\ndef test_it(): ...\n"
    assert _run(module, "", tmp_path).returncode == 5  # nothing was collected
    assert _run(module, "true", tmp_path).returncode == 2


def test_only_what_cannot_be_had_may_be_skipped() -> None:
    assert may_skip("nothing outlives a create here", frozenset())
    assert not may_skip("no cluster: set KUBECONFIG", frozenset({"root", "images"}))
    assert may_skip("no cluster: set KUBECONFIG", frozenset({"cluster"}))
    assert not may_skip("only root mounts file systems", frozenset({"cluster"}))
    assert may_skip("only root mounts file systems", frozenset({"root"}))


def _run(text: str, ci: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    (folder / "test_it.py").write_text(text)
    argv = [sys.executable, "-m", "pytest", "-p", "skips", "-p", "no:cacheprovider", "-q", str(folder)]
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(TESTS)}
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
