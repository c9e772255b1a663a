"""From each major version into itself and upward, and from 18 into 17: the table of the README says what is tried here.

Into itself is test_hard_cases' and test_restore's. Between versions the rows are the same bytes, and the same objects
are there; how definitions are spelled differs.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from fix_postgres import PostgresServer
from fix_restore import NewName, client_of, contents, definitions, exists, forget_subscriptions, restore_to, values
from fix_tools import Site
from psycopg import sql
from shop import OWNER, READER

from backupd.errors import RestoreFailed, VersionMismatch
from backupd.manifest import Backup

pytestmark = pytest.mark.slow

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
CASES = sorted((Path(__file__).parent / "hard").glob("*.sql"))
PAIRS = [(15, 17), (15, 18), (17, 18), (18, 17)]
REFUSED = [(17, 15), (18, 15)]
ROLES = ("hard owner", "hard_reader", OWNER, READER)

MakeSite = Callable[..., Site]
Shops = Callable[[PostgresServer], str]


@pytest.fixture
def servers(request: pytest.FixtureRequest, new_role: Callable[..., str]) -> Callable[[int], PostgresServer]:
    """The server of a major version, with the roles that the databases name."""

    def give(major: int) -> PostgresServer:
        server: PostgresServer = request.getfixturevalue(f"postgres{major}")
        with server.connect() as connection:
            there = {row[0] for row in connection.execute("SELECT rolname FROM pg_roles").fetchall()}
        for role in ROLES:
            if role not in there and not role.startswith("shop"):
                new_role(server, name=role)
            elif role not in there:  # shops stay, and so do their roles
                with server.connect() as connection:
                    connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
        return server

    return give


def restored(here: Site, backup: Backup, after: PostgresServer, name: str) -> None:
    """Restores with whichever client backupd chooses of both servers'."""
    restore_to(here, backup, name, on=after, clients=[client_of(here.server), client_of(after)])


def same(before: PostgresServer, source: str, after: PostgresServer, name: str) -> None:
    """The rows are the same bytes, sequences have the same values, and the same objects are there."""
    newer = max(before, after, key=lambda server: server.major)
    assert contents(after, name) == contents(before, source)
    found, expected = values(after, name), values(before, source)
    assert found["sequences"] == expected["sequences"]
    assert found["extensions"] == expected["extensions"]
    assert [(row[0], row[1], row[3]) for row in found["large objects"]] == [
        (row[0], row[1], row[3]) for row in expected["large objects"]
    ]
    titles = [
        [line for line in definitions(*side, client=newer) if line.startswith("-- Name: ")]
        for side in ((after, name), (before, source))
    ]
    assert titles[0] == titles[1]
    assert len(titles[0]) > 3


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_a_shop_comes_back_in_another_major_version(
    old: int,
    new: int,
    servers: Callable[[int], PostgresServer],
    shop_of: Shops,
    site: MakeSite,
    new_name: NewName,
) -> None:
    before, after = servers(old), servers(new)
    here, source, name = site(before), shop_of(before), new_name(after)
    restored(here, here.take(source), after, name)

    same(before, source, after, name)


@pytest.mark.parametrize(("old", "new"), PAIRS)
@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_a_hard_case_comes_back_in_another_major_version(
    case: Path,
    old: int,
    new: int,
    servers: Callable[[int], PostgresServer],
    database: Callable[..., str],
    site: MakeSite,
    new_name: NewName,
) -> None:
    before, after = servers(old), servers(new)
    here, source, name = site(before), database(before), new_name(after)
    try:
        with before.connect(source) as connection:
            connection.execute(case.read_bytes())
        restored(here, here.take(source), after, name)
        same(before, source, after, name)
    finally:
        for server, each in ((before, source), (after, name)):
            forget_subscriptions(server, each)


def test_what_only_18_knows_does_not_come_back_in_17_and_is_named(
    servers: Callable[[int], PostgresServer], database: Callable[..., str], site: MakeSite, new_name: NewName
) -> None:
    before, after = servers(18), servers(17)
    here, source, name = site(before), database(before), new_name(after)
    with before.connect(source) as connection:
        connection.execute("CREATE TABLE t (a int, b int GENERATED ALWAYS AS (a) VIRTUAL)")
    backup = here.take(source)
    with pytest.raises((RestoreFailed, VersionMismatch)):
        restored(here, backup, after, name)

    assert not exists(after, name)


@pytest.mark.parametrize(("old", "new"), REFUSED)
def test_what_a_version_does_not_understand_is_refused_before_anything_is_written(
    old: int, new: int, servers: Callable[[int], PostgresServer], shop_of: Shops, site: MakeSite, new_name: NewName
) -> None:
    before, after = servers(old), servers(new)
    here, name = site(before), new_name(after)
    with pytest.raises(VersionMismatch, match="does not restore"):
        restored(here, here.take(shop_of(before)), after, name)

    assert not exists(after, name)


def test_the_readme_says_what_is_tried() -> None:
    rows = README.partition("| dumped from | 15 | 17 | 18 |")[2].split("\n")[2:5]
    cells = {int(row.split("|")[1]): [cell.strip() for cell in row.split("|")[2:5]] for row in rows}
    columns = dict(zip((15, 17, 18), range(3), strict=True))

    for old in columns:
        for new, column in columns.items():
            word = "refused (13)" if (old, new) in REFUSED else "restored, if plain" if old > new else "restored"
            assert cells[old][column] == word
            assert old == new or (old, new) in [*PAIRS, *REFUSED]
