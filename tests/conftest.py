"""What all tests share: the fixtures' modules, what CI may skip, and a header that says what runs."""

import os
from collections.abc import Iterator

import pytest
import structlog

from backupd import throwaway

pytest_plugins = [
    "fix_postgres",
    "fix_store",
    "fix_tools",
    "fix_restore",
    "fix_cluster",
    "fix_encryption",
    "fix_receiver",
    "skips",
]


@pytest.fixture(scope="session", autouse=True)
def _enterable(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Lets the servers' user into pytest's folders, which root keeps closed; under xdist there is one more."""
    for folder in (tmp_path_factory.getbasetemp(), *tmp_path_factory.getbasetemp().parents):
        if folder.stat().st_uid == os.geteuid() and folder.name and "pytest" in str(folder):
            folder.chmod(folder.stat().st_mode | 0o011)


@pytest.fixture(autouse=True)
def _log_of_its_own() -> Iterator[None]:
    """Ends what a command line that ran in process set up: the stream that it logs to is closed with its test."""
    yield
    structlog.reset_defaults()


def pytest_report_header(config: pytest.Config) -> str:
    """The PostgreSQL servers that were found."""
    found = ", ".join(str(install.major) for install in throwaway.find_servers())
    return f"PostgreSQL servers: {found or 'none'}"
