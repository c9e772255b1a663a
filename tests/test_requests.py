"""How much is asked of an S3 service, by kind of request: each costs money and time, whatever it carries.

The bounds are what BENCHMARKS.md promises, with the figures of a backup whose archive is smaller than a part. They are
the least that is known to be enough: a mistake that asks once more for each member, backup or run exceeds them.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from fake_s3 import Fake, Quirks, Version
from fix_postgres import PostgresServer
from fix_store import PART_BYTES, S3Server
from fix_tools import Site, s3_site
from made_backups import ARCHIVE, made_manifest

from backupd import archive, copy, fetch, verify
from backupd.catalog import Catalog
from backupd.layout import archive_key, manifest_key
from backupd.manifest import Backup, to_json
from backupd.progress import Progress
from backupd.selector import Label, Name

pytestmark = pytest.mark.slow

MakeFake = Callable[..., tuple[Fake, S3Server]]
MakeSite = Callable[..., Site]
ShopOf = Callable[[PostgresServer], str]

NOW = datetime.now(UTC)
EARLIER = 50
"""Backups of each database before the one that is looked at."""


@dataclass
class Counted:
    """What was asked of a fake since it was last looked at."""

    fake: Fake
    known: int = 0

    def asked(self) -> Counter[str]:
        """The requests by kind."""
        seen = self.fake.seen[self.known :]
        self.known += len(seen)
        return Counter(map(kind, seen))


def kind(request: str) -> str:
    """The kind of a request, as services charge for it."""
    method, _, address = request.partition(" ")
    parts = urlsplit(address)
    query = parse_qs(parts.query, keep_blank_values=True)
    if method == "GET" and parts.path.strip("/").count("/") == 0:
        return "LIST"
    if "partNumber" in query:
        return "PART"
    return method


def put(fake: Fake, database: str, server: str = "prod") -> None:
    """EARLIER backups, an hour apart, as if they lay in the fake already; their archives are none."""
    for number in range(1, EARLIER + 1):
        manifest = made_manifest(NOW - timedelta(hours=number), number=number, database=database, server=server)
        name = Name(Label(server, database), manifest.id)
        for key, data in ((archive_key(name), ARCHIVE), (manifest_key(name), to_json(manifest))):
            fake.versions[f"a/prefix/{key}"] = [Version(key, data, {}, f'"{key}"', manifest.finished_at, 0)]


def test_a_backup_asks_for_each_manifest_of_its_database_once_and_for_nothing_of_others(
    fake_s3: MakeFake, site: MakeSite, postgres17: PostgresServer, shop_of: ShopOf
) -> None:
    fake, server = fake_s3()
    here, database, counted = s3_site(site, postgres17, server), shop_of(postgres17), Counted(fake)
    keep = {"BACKUPD_RETENTION__KEEP_LAST": "100"}

    assert here.run("backup", database, **keep).code == 0
    assert counted.asked() <= Counter(LIST=8, PUT=2, GET=1)

    put(fake, database)
    put(fake, "other")
    asks_much = {"BACKUPD_METRICS__PUSHGATEWAY_URL": "http://127.0.0.1:1", "BACKUPD_NOTIFY__URLS": "json://127.0.0.1:1"}
    since = (NOW + timedelta(hours=1)).isoformat()
    assert here.run("backup", database, "--unless-since", since, **keep, **asks_much).code == 0
    manifests, index = EARLIER + 2, 1
    assert counted.asked() <= Counter(LIST=11, PUT=2, GET=manifests + index)

    put(fake, "app", "elsewhere")
    assert here.run("check", "--max-age", "26h", BACKUPD_SOURCE__DATABASES=database).code == 0
    assert counted.asked() <= Counter(LIST=1, GET=manifests + EARLIER)


def test_an_object_of_many_parts_takes_a_request_for_each_and_three_more(fake_s3: MakeFake) -> None:
    fake, server = fake_s3()
    store, counted = server.store(), Counted(fake)

    with store.create("a/b/c.tar", 4 * PART_BYTES) as stream:
        for _ in range(4):
            stream.write(bytes(PART_BYTES))
    assert counted.asked() == Counter(LIST=1, POST=2, PART=4)


@dataclass(frozen=True)
class Estate:
    """Two databases of two servers with backups of which one is whole, in a fake whose lists have small pages."""

    counted: Counted
    found: Catalog
    taken: Backup
    pages: int
    """How many requests a list of everything takes."""


@pytest.fixture
def estate(fake_s3: MakeFake, site: MakeSite, postgres17: PostgresServer, shop_of: ShopOf) -> Estate:
    """See Estate."""
    fake, server = fake_s3(quirks=Quirks(page=120))
    here, database = s3_site(site, postgres17, server), shop_of(postgres17)
    taken = here.take(database)
    put(fake, database)
    put(fake, "app", "other")
    counted = Counted(fake)
    counted.asked()
    return Estate(counted, here.catalog, taken, -(-len(fake.visible()) // 120))


def test_lists_and_lookups_read_each_manifest_that_they_need_once(estate: Estate) -> None:
    counted, found, taken = estate.counted, estate.found, estate.taken
    everything = 2 * EARLIER + 1

    assert len(found.backups().backups) == everything
    assert counted.asked() <= Counter(LIST=estate.pages, GET=everything)

    assert len(found.backups("other").backups) == EARLIER
    assert counted.asked() <= Counter(LIST=1, GET=EARLIER)

    assert found.find(taken.id) == taken
    assert counted.asked() <= Counter(LIST=estate.pages, GET=1)

    assert found.find(f"prod/{taken.source.database}@latest") == taken
    assert counted.asked() <= Counter(LIST=1, GET=EARLIER + 1)

    assert len(found.database("other/app").backups) == EARLIER
    assert counted.asked() <= Counter(LIST=2, GET=EARLIER)


def test_what_is_served_reads_nothing_again(estate: Estate) -> None:
    counted, found = estate.counted, estate.found.remembering()
    found.backups()
    found.backups("other")
    counted.asked()

    assert len(found.backups().backups) == 2 * EARLIER + 1
    assert counted.asked() == Counter(LIST=estate.pages)


def test_a_backup_is_verified_noted_fetched_copied_and_deleted_by_as_many_requests_however_many_there_are(
    estate: Estate, fake_s3: MakeFake, tmp_path: Path
) -> None:
    counted, found, taken = estate.counted, estate.found, estate.taken

    verify.verify(found, taken, NOW, Progress())
    assert counted.asked() <= Counter(GET=2, LIST=2, PUT=1)

    found.note(taken, "pinned", True, {}, NOW)
    assert counted.asked() <= Counter(LIST=2, PUT=1)

    index = archive.read_index(found.archive(taken))
    assert len(index.members) > 2 * archive.FETCH_THREADS
    fetch.members(found, taken, index, tmp_path, Progress())
    assert counted.asked() <= Counter(GET=1 + 1)

    second, server = fake_s3(bucket="copies")
    there = Counted(second)
    assert copy.copy(found, taken, Catalog(server.store()), NOW, Progress()).new
    assert counted.asked() <= Counter(LIST=1, GET=2 + 1 + 2)
    assert there.asked() <= Counter(LIST=10, PUT=4, GET=3)

    found.delete(taken)
    assert counted.asked() <= Counter(LIST=1, DELETE=4)
