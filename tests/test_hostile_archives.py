"""What the campaign of hostile archives found, each by itself: one odd note, list or number stops nothing else."""

import json
from pathlib import Path

import pytest
from made_archives import KEY, MEMBERS, STARTED_AT, Made, contract_of, make_archive
from test_archive import with_index

from backupd import archive, decode, fetch, render
from backupd.catalog import Catalog
from backupd.errors import VerificationFailed
from backupd.layout import manifest_key
from backupd.manifest import load_manifest, to_json
from backupd.progress import Progress
from backupd.selector import name_of


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A small archive."""
    return make_archive(tmp_path)


@pytest.mark.parametrize("number", ["1e400", "NaN", "-Infinity", "9" * 400])
def test_a_note_with_a_number_that_is_none_is_broken_and_stops_no_listing(made: Made, number: str) -> None:
    backup = made.commit()
    at = STARTED_AT.isoformat()
    note = f'{{"kind":"drilled","number":1,"at":"{at}","ok":true,"facts":{{"level":"identical","seconds":{number}}}}}'
    path = made.root / manifest_key(name_of(backup)).replace(".json", ".drilled-1.json")
    path.write_text(note)
    listing = made.catalog.backups()
    assert [each.id for each in listing.backups] == [backup.id]
    assert [each.key for each in listing.broken] == [str(path.relative_to(made.root))]
    assert "SUSPECT" in render.listing(listing, STARTED_AT)


@pytest.mark.parametrize("seconds", [1e300, float(1 << 62), 1 << 62])
def test_a_duration_beyond_all_calendars_is_shown(seconds: float) -> None:
    assert render.duration(seconds) == "999999999 d"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("started_at", "9999-12-31T23:59:59-23:59"),
        ("finished_at", "0001-01-01T00:00:00+23:59"),
        ("client_version", "seventeen"),
        ("client_version", "17\x1b[2J"),
        ("jobs", 10**30),
        ("server_version_num", -1),
    ],
)
def test_a_manifest_with_what_no_backup_has_is_damaged(made: Made, field: str, value: object) -> None:
    document = json.loads(to_json(made.manifest)) | {field: value}
    with pytest.raises(VerificationFailed, match="manifest x is damaged") as raised:
        load_manifest(json.dumps(document).encode(), "x")
    assert field in (raised.value.detail or "")


def test_an_index_that_is_out_of_proportion_to_its_archive_is_refused(tmp_path: Path) -> None:
    store, manifest = with_index(tmp_path, decode.pack(b"[" * (archive.INDEX_FREE_BYTES + (1 << 20))))
    assert manifest.archive_bytes < 1 << 15
    with pytest.raises(VerificationFailed, match="larger than"):
        archive.read_index(archive.Archive(store, KEY, manifest))


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "blob_16686.dat/../../x", "blob_1.dat"])
def test_a_list_that_leads_pg_restore_to_another_file_is_refused_and_nothing_is_left(tmp_path: Path, path: str) -> None:
    members = {**MEMBERS, "blobs_16685.toc": f"16686 {path}\n".encode()}
    del members["toc.dat"]
    made = make_archive(tmp_path, members, contract_of(members))
    folder = tmp_path / "fetched"
    folder.mkdir()
    with pytest.raises(VerificationFailed, match="list of large objects in the dump is damaged"):
        fetch.members(Catalog(made.store), made.commit(), made.index, folder, Progress())
    assert not folder.exists()


def test_a_toc_that_is_none_of_pg_dump_s_is_refused_before_pg_restore_sees_it(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "fetched"
    folder.mkdir()
    with pytest.raises(VerificationFailed, match=r"toc\.dat of the dump is damaged"):
        fetch.members(made.catalog, made.commit(), made.index, folder, Progress())
    assert not folder.exists()
