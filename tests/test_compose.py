"""compose.yaml, which people copy: it is well-formed, what it sets exists, and it does what it says."""

import contextlib
import socket
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import pytest
from fix_tools import wait_until
from test_image import Image, image

from backupd import __version__, settings, signals
from backupd.sections import RUN_VARIABLES, variables

__all__ = ["image"]  # a fixture

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


def test_the_page_is_published_on_this_host_only(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert all(each.startswith("127.0.0.1:") for each in service.get("ports", ()))


def test_it_may_clean_up_for_as_long_as_a_run_may_take_to_end(compose: dict[str, Any]) -> None:
    assert int(compose["services"]["backupd"]["stop_grace_period"].removesuffix("s")) > signals.GRACE_SECONDS


def test_the_password_is_in_no_variable(compose: dict[str, Any]) -> None:
    names = [name for one in compose["services"].values() for name in one["environment"] if "PASSWORD" in name]

    assert names
    assert all(name.endswith("_FILE") for name in names)


# --- started


def options(service: dict[str, Any], project: str, folder: Path) -> dict[str, Any]:
    """What a service says, as the engine's API has it; volumes bear the project's name, secrets are in the folder."""
    mounts = {f"{project}_{name}": {"bind": place} for name, place in (each.split(":") for each in service["volumes"])}
    secrets = {str(folder / name): {"bind": f"/run/secrets/{name}", "mode": "ro"} for name in service["secrets"]}
    return {
        "environment": {name: str(value) for name, value in service["environment"].items()},
        "volumes": mounts | secrets,
        "tmpfs": dict.fromkeys(service.get("tmpfs", ()), ""),
        "read_only": service.get("read_only", False),
        "cap_drop": service.get("cap_drop"),
        "security_opt": [each.removesuffix(":true") for each in service.get("security_opt", ())],
    }


def fetch(port: int, path: str) -> str:
    """What the page answers; nothing while it does not."""
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        text: str = answer.read().decode()
        return text
    return ""


@pytest.mark.container
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_takes_a_backup_at_once_and_shows_it(compose: dict[str, Any], image: Image, tmp_path: Path) -> None:
    """Both have one network, since a name like `postgres` needs an engine that has names."""
    services, project = compose["services"], f"test_{uuid.uuid4().hex[:8]}"
    (tmp_path / "postgres-password").write_text("a password")
    tmp_path.chmod(0o755)
    server = options(services["postgres"], project, tmp_path)
    server["environment"]["POSTGRES_PASSWORD"] = "a password"  # a stand-in knows no file
    server["environment"].pop("POSTGRES_PASSWORD_FILE")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with contextlib.ExitStack() as stack:
        for name in compose["volumes"]:
            stack.callback(image.engine.volumes.create(f"{project}_{name}").remove, force=True)
        published = {"hostname": "postgres", "ports": {"8080/tcp": ("127.0.0.1", port)}}
        made = image.engine.containers.create
        postgres = made("docker.io/library/postgres:17", **server, **published)
        stack.callback(postgres.remove, force=True, v=True)
        postgres.start()
        shared = {"network_mode": f"container:{postgres.id}"}
        daemon = options(services["backupd"], project, tmp_path)
        backupd = made(image.name, services["backupd"]["command"], **daemon, **shared)
        stack.callback(backupd.remove, force=True)
        backupd.start()
        good = 'backupd_backups{database="app",server="postgres",state="good"} 1.0'
        wait_until(lambda: good in fetch(port, "/metrics"), "there is no backup", 90)
        page, ready = fetch(port, "/"), fetch(port, "/readyz")
        backupd.stop(timeout=30)
        ended = backupd.wait()["StatusCode"]

    assert "postgres/app" in page
    assert ready == "ready\n"
    assert ended == 0
