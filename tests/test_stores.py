"""The conformance suite on every store, and what chooses among them."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.register_assert_rewrite("store_suite")

from store_suite import *  # noqa: E402, F403 - the tests of the suite become tests of this module

from backupd.errors import UsageError  # noqa: E402
from backupd.store import S3Options, open_store  # noqa: E402


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/backups",
        "file://host/backups",
        "file:backups",
        "s3://",
        "s3://key:canary@bucket/p",
        "s3://bucket:9000/p",
        "s3://bucket/p?x=canary",
        "s3://bucket/p//q",
        "s3://bucket/../p",
        "https://u:canary@h/b",
    ],
)
def test_another_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError) as raised:
        open_store(url, S3Options())
    assert "canary" not in str(raised.value)


def test_a_directory_does_not_cost_the_import_of_boto3(tmp_path: Path) -> None:
    program = (
        "import sys; from backupd.store import S3Options, open_store\n"
        f"list(open_store('file://{tmp_path}', S3Options()).list())\n"
        "sys.exit(any(name.split('.')[0] in ('boto3', 'botocore') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_url_is_printable() -> None:
    assert open_store("file:///back%20ups/a", S3Options()).url == "file:///back%20ups/a"
    assert open_store("s3://bucket/", S3Options()).url == "s3://bucket"
    assert open_store("s3://bucket/a/b/", S3Options()).url == "s3://bucket/a/b"
