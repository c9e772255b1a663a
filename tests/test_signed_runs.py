"""Signing as somebody uses it: keys of the real minisign, the command line, a real server and a store on disk."""

import base64
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_postgres import PostgresServer
from fix_restore import exists
from fix_tools import Site
from test_signing import minisign

from backupd.layout import SIGNATURE, manifest_key
from backupd.manifest import Backup
from backupd.selector import name_of
from backupd.signing import read_secret_key


@pytest.fixture
def signing(site: Callable[..., Site], postgres17: PostgresServer, tmp_path: Path) -> Site:
    """An installation that signs, with keys that minisign made."""
    public, secret = tmp_path / "backupd.pub", tmp_path / "backupd.key"
    assert minisign("-G", "-W", "-p", public, "-s", secret).returncode == 0
    here = site(postgres17, BACKUPD_SIGNING__KEY_FILE=str(secret))
    here.settings["BACKUPD_SIGNING__PUBLIC_KEYS"] = public.read_text().splitlines()[1]
    here.secrets.append(secret.read_text().splitlines()[1])
    return here


def signature_file(here: Site, backup: Backup) -> Path:
    """The signature of the backup's manifest."""
    return here.store / (manifest_key(name_of(backup)) + SIGNATURE)


@pytest.mark.slow
def test_a_signed_backup_is_checked_by_minisign_restored_and_refused_without_its_signature(
    signing: Site, shop_of: Callable[[PostgresServer], str], tmp_path: Path
) -> None:
    shop = shop_of(signing.server)
    assert signing.run("backup", shop).code == 0
    (backup,) = signing.catalog.backups().backups
    manifest = signing.store / manifest_key(name_of(backup))

    assert minisign("-V", "-p", tmp_path / "backupd.pub", "-m", manifest).returncode == 0
    sha256 = subprocess.run(["sha256sum", signing.archive_file(backup)], capture_output=True, text=True, check=True)
    assert f'"archive_sha256":"{sha256.stdout.split()[0]}"' in manifest.read_text()
    target = f"restored_{os.getpid()}_signed"
    restored = signing.run("restore", backup.id, "--as", target)
    assert restored.code == 0, restored.stderr
    signature_file(signing, backup).unlink()
    refused = signing.run("restore", backup.id, "--as", f"{target}_2")
    assert (refused.code, refused.error["reason"]) == (14, "not_trusted")
    assert not exists(signing.server, f"{target}_2")
    assert "NOT TRUSTED: it has no signature" in signing.run("list").stdout
    assert signing.run("backup", shop, "--unless-since", backup.manifest.started_at.isoformat()).code == 0
    assert len(signing.listed()) == 2, "what nobody signed kept a backup from being taken"


@pytest.mark.slow
def test_sign_is_the_way_in_for_what_was_there_before(signing: Site, shop_of: Callable[[PostgresServer], str]) -> None:
    backup = signing.take(shop_of(signing.server))

    refused = signing.run("sign", backup.id)
    assert (refused.code, backup.manifest.archive_sha256 in refused.error["message"]) == (2, True)
    assert signing.run("sign", backup.id, "--yes", BACKUPD_SIGNING__KEY_FILE="").code == 2
    assert signing.run("sign", backup.id, "--yes").code == 0
    assert "signed already" in signing.run("sign", backup.id).stdout
    assert signing.run("verify", backup.id).code == 0
    assert signing.run("pin", backup.id, BACKUPD_SIGNING__KEY_FILE="").code == 12


def test_a_backup_that_nobody_would_trust_is_not_begun(signing: Site, shop_of: Callable[[PostgresServer], str]) -> None:
    shop = shop_of(signing.server)

    unsigned = signing.run("backup", shop, BACKUPD_SIGNING__KEY_FILE="")
    assert (unsigned.code, "BACKUPD_SIGNING__KEY_FILE" in unsigned.error["message"]) == (12, True)
    other = signing.run("backup", shop, BACKUPD_SIGNING__PUBLIC_KEYS=f"RWQ{'A' * 53}")
    assert (other.code, "is not among" in other.error["message"]) == (2, True)
    assert signing.objects() == {}


@pytest.mark.slow
def test_adopt_and_retire_go_by_the_newest_backup_that_is_trusted(
    signing: Site, shop_of: Callable[[PostgresServer], str]
) -> None:
    shop = shop_of(signing.server)
    assert signing.run("backup", shop).code == 0
    (signed,) = signing.catalog.backups().backups
    signing.take(shop)

    assert "nothing to adopt: all 1 backups" in signing.run("adopt", shop).stdout
    assert signing.run("retire", shop).code == 0
    assert list(signature_file(signing, signed).parent.glob(f"{signed.id}.retired-1.json*"))
    assert signing.run("check", "--max-age", "1h").code == 19, "without a source nothing is expected any more"


@pytest.mark.slow
def test_the_signing_key_is_in_no_output_and_no_object(
    signing: Site,
    shop_of: Callable[[PostgresServer], str],
    shell_clients: Callable[[PostgresServer, str], Path],
) -> None:
    """As a variable, where children could inherit it, and with all that is ever logged."""
    text = Path(signing.settings.pop("BACKUPD_SIGNING__KEY_FILE")).read_text()
    seed = read_secret_key(text).seed
    signing.settings |= {"BACKUPD_SIGNING__KEY": text.rstrip(), "BACKUPD_LOG__LEVEL": "debug"}
    signing.secrets += [seed.hex(), repr(seed), base64.b64encode(seed).decode()]
    clients = shell_clients(signing.server, 'env >&2; tr "\\0" "\\n" < /proc/$$/cmdline >&2; exec "$real" "$@"')

    taken = signing.run("backup", shop_of(signing.server), "--json", BACKUPD_DUMP__CLIENTS=str(clients))
    assert taken.code == 0, taken.stderr
    assert "SITE_MARK" in taken.stderr, "what the child inherited is in the log"
    wrong = signing.run("list", BACKUPD_SIGNING__KEY=f"{text[:-20]}")
    assert (wrong.code, "has no secret key" in wrong.error["message"]) == (2, True)
    assert text.splitlines()[1][:100] not in wrong.stderr
    for key in signing.objects():
        data = (signing.store / key).read_bytes()
        signing.assert_no_secret(data.decode("latin-1"))
        assert seed not in data
