"""compose.yaml, which people copy: it is well-formed, and what it sets exists."""

from pathlib import Path
from typing import Any

import pytest

from backupd import __version__, settings
from backupd.sections import RUN_VARIABLES, variables

yaml: Any = pytest.importorskip("yaml")

TEXT = (Path(__file__).parent.parent / "compose.yaml").read_text(encoding="utf-8")


@pytest.fixture
def compose() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(TEXT)
    return read


def test_every_setting_exists(compose: dict[str, Any]) -> None:
    known = {name for one in variables() for name in (one.name, one.file_name)} | set(RUN_VARIABLES)

    assert set(compose["services"]["backupd"]["environment"]) <= known


def test_its_settings_are_valid_together(compose: dict[str, Any], tmp_path: Path) -> None:
    environment = {name: str(value) for name, value in compose["services"]["backupd"]["environment"].items()}
    (tmp_path / "password").write_text("secret\n")
    environment["BACKUPD_SOURCE__PASSWORD_FILE"] = str(tmp_path / "password")

    loaded = settings.load(environment)

    assert loaded.store_url() == "file:///backups"
    assert loaded.retention.policy() is not None


def test_the_image_is_the_one_that_scripts_image_makes(compose: dict[str, Any]) -> None:
    assert compose["services"]["backupd"]["image"] == f"backupd:{__version__}"


def test_every_volume_and_secret_is_declared(compose: dict[str, Any]) -> None:
    services = compose["services"].values()

    assert {each.partition(":")[0] for one in services for each in one["volumes"]} == set(compose["volumes"])
    assert {each for one in services for each in one["secrets"]} == set(compose["secrets"])


def test_the_password_is_in_no_variable(compose: dict[str, Any]) -> None:
    names = [name for one in compose["services"].values() for name in one["environment"] if "PASSWORD" in name]

    assert names
    assert all(name.endswith("_FILE") for name in names)
