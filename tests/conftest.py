"""What all tests share: the fixtures' modules, and a header that says what runs."""

import pytest

from backupd import throwaway

pytest_plugins = ["fix_postgres", "fix_store", "fix_tools", "fix_restore"]


def pytest_report_header(config: pytest.Config) -> str:
    """The PostgreSQL servers that were found."""
    found = ", ".join(str(install.major) for install in throwaway.find_servers())
    return f"PostgreSQL servers: {found or 'none'}"
