"""Names: every one has a key and comes back from it, and what people type names one backup or none."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_backups import made_backup, made_manifest

from backupd.errors import UsageError
from backupd.manifest import Backup, Filter
from backupd.selector import Label, Name, name_of, narrow, pick, quote, unquote
from backupd.store import is_key

START = datetime(2026, 11, 1, 22, tzinfo=UTC)

HOSTILE = [
    "../x",
    ".",
    "..",
    ".hidden",
    "%2e",
    "%2E",
    "%",
    "a/b",
    "né",
    'we"ird; DROP',
    "line\nbreak",
    "a@latest",
    "~root",
    "é" * 31 + "x",
    "." * 63,
    "\x01" * 63,
    "日本語",
    " ",
    "app ",
    "a\\b",
    "*",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_one_plain_segment_and_comes_back(name: str) -> None:
    quoted = quote(name)

    assert re.fullmatch(r"[A-Za-z0-9_%-][A-Za-z0-9_.%-]*", quoted)
    assert len(quoted) <= 189
    assert is_key(f"{quoted}/{quoted}/x.tar")
    assert unquote(quoted) == name


@pytest.mark.parametrize("name", ["app", "App_2", "a.b", "-x", "_", "x" * 63, "2026"])
def test_a_plain_name_stays_as_it_is(name: str) -> None:
    assert quote(name) == name


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_any_two_names_have_different_keys_from_which_they_come_back(one: str, other: str) -> None:
    assert unquote(quote(one)) == one
    assert (quote(one) == quote(other)) == (one == other)


@pytest.mark.parametrize(
    "text", ["", ".", "..", ".x", "%2e", "%41", "%", "%4", "a/b", "a b", "né", "%FF", "~", "%C3", "x" * 256]
)
def test_what_quote_would_not_write_is_no_name(text: str) -> None:
    assert unquote(text) is None


@pytest.mark.parametrize("name", ["", "x" * 256, "é" * 43, "\udcff"])
def test_a_name_that_no_key_can_hold_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        quote(name)


def backups(*labels: tuple[str, str], days: int = 3) -> list[Backup]:
    """A backup of each on each day, newest first."""
    made = [
        made_backup(made_manifest(START + timedelta(days=day), number=number, server=server, database=database))
        for day in range(days)
        for number, (server, database) in enumerate(labels)
    ]
    return made[::-1]


def select(made: Sequence[Backup], text: str) -> Backup:
    """What the catalog does, with all manifests at hand."""
    names = narrow([name_of(backup) for backup in made], text)
    return pick([backup for backup in made if name_of(backup) in names], text)


ONE = backups(("prod", "app"))
FLEET = backups(("prod", "app"), ("prod", "app2"), ("staging", "app"))


@pytest.mark.parametrize(
    ("made", "text", "want"),
    [
        (ONE, "latest", "prod/app@20261103T220000Z-00000000"),
        (ONE, "app@latest", "prod/app@20261103T220000Z-00000000"),
        (ONE, "before:2026-11-02T22:00Z", "prod/app@20261101T220000Z-00000000"),
        (ONE, "app@before:2026-11-02T22:00:01Z", "prod/app@20261102T220000Z-00000000"),
        (ONE, "app@before:2026-11-03", "prod/app@20261102T220000Z-00000000"),
        (ONE, "app@before:2026-11-02T22:30", "prod/app@20261102T220000Z-00000000"),
        (ONE, "app@before:2026-11-02T23:30+01:00", "prod/app@20261102T220000Z-00000000"),
        (ONE, "app@before:2026-11-02T22:30+01:00", "prod/app@20261101T220000Z-00000000"),
        (ONE, "app@before:9999-12-31T23:59-14:00", "prod/app@20261103T220000Z-00000000"),
        (ONE, "20261102T220000Z-00000000", "prod/app@20261102T220000Z-00000000"),
        (ONE, "20261102", "prod/app@20261102T220000Z-00000000"),
        (ONE, "app@20261101", "prod/app@20261101T220000Z-00000000"),
        (FLEET, "app2@latest", "prod/app2@20261103T220000Z-00000001"),
        (FLEET, "prod/app@latest", "prod/app@20261103T220000Z-00000000"),
        (FLEET, "staging/app@20261101", "staging/app@20261101T220000Z-00000002"),
        (FLEET, "20261102T220000Z-00000002", "staging/app@20261102T220000Z-00000002"),
    ],
)
def test_a_text_names_one_backup(made: list[Backup], text: str, want: str) -> None:
    assert str(name_of(select(made, text))) == want


@pytest.mark.parametrize(
    ("made", "text", "message", "hint"),
    [
        ([], "latest", "no backup is 'latest'", "store is empty"),
        ([], "app@latest", "no backups of 'app' are in the store", "store is empty"),
        ([], "20261101", "no backup is named '20261101'", "store is empty"),
        (FLEET, "latest", "several databases", "prod/app@latest, prod/app2@latest, staging/app@latest"),
        (FLEET, "app@latest", "'app' is the name of several databases", "prod/app@, staging/app@"),
        (FLEET, "before:2026-11-03", "several databases", "prod/app@before:2026-11-03"),
        (FLEET, "crm@latest", "no backups of 'crm'", "prod/app, prod/app2, staging/app"),
        (FLEET, "20261102", "'20261102' names 3 backups", "staging/app@20261102T220000Z-00000002"),
        (FLEET, "prod/app@202611", "names 3 backups", "prod/app@20261103T220000Z-00000000"),
        (ONE, "202", "too short", "newest are: prod/app@20261103T220000Z-00000000, prod/app@20261102"),
        (ONE, "", "too short", "newest are"),
        (ONE, "app@", "too short", "newest are"),
        (ONE, "00000000", "no backup is named '00000000'", "newest are"),
        (ONE, "2025", "no backup is named '2025'", "newest are: prod/app@20261103T220000Z-00000000"),
        (ONE, "20261101T220000Z-000000000", "no backup is named", "newest are"),
        (ONE, "app@before:2026-11-01", "no backup is 'app@before:2026-11-01'", "newest are: prod/app@20261103"),
        (ONE, "app@before:yesterday", "'yesterday' is no time", "2026-11-01T14:30Z"),
        (ONE, "app@before:", "'' is no time", "2026-11-01T14:30Z"),
        (ONE, "Latest", "no backup is named 'Latest'", "newest are"),
    ],
)
def test_a_text_that_names_none_or_several_is_refused_with_a_way_out(
    made: list[Backup], text: str, message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        select(made, text)

    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_can_be_typed_as_it_is_or_as_in_keys(name: str) -> None:
    made = backups(("prod", name), ("prod", "app"))

    for text in (name, quote(name), f"prod/{name}", f"prod/{quote(name)}"):
        assert select(made, f"{text}@latest").source.database == name


def test_a_name_that_could_be_two_databases_is_refused_and_as_in_keys_it_is_one() -> None:
    """Of `..` the key has `%2E.`, and a database may be called just that."""
    made = backups(("prod", ".."), ("prod", "%2E."), ("a/b", "c"), ("a", "b/c"))

    for text in ("%2E.@latest", "a/b/c@latest"):
        with pytest.raises(UsageError, match="several databases"):
            select(made, text)
    for server, database in (("prod", ".."), ("prod", "%2E."), ("a/b", "c"), ("a", "b/c")):
        found = select(made, f"{Label(server, database)}@latest")
        assert name_of(found).label == Label(server, database)


def test_latest_is_the_newest_complete_one_even_where_that_is_suspect() -> None:
    suspect = made_backup(made_manifest(START + timedelta(days=8), suspect="rows fell by half"))
    filtered = made_backup(made_manifest(START + timedelta(days=9), patterns=Filter(exclude=("logs",))))
    made = [filtered, suspect, *ONE]

    assert select(made, "latest") == suspect
    assert select(made, "app@before:2027-01-01") == suspect
    assert select(made, filtered.id) == filtered


def test_where_there_are_only_filtered_ones_an_id_is_asked_for() -> None:
    filtered = made_backup(made_manifest(START, patterns=Filter(exclude=("logs",))))

    with pytest.raises(UsageError, match="no backup is 'app@latest'") as caught:
        select([filtered], "app@latest")
    assert "named by id" in (caught.value.detail or "")
    assert filtered.id in (caught.value.hint or "")


def test_a_hint_lists_ten_candidates_at_most() -> None:
    made = backups(*[("prod", f"db{number:02}") for number in range(30)], days=1)

    with pytest.raises(UsageError) as caught:
        select(made, "latest")
    assert (caught.value.hint or "").count("@latest") == 10
    assert "and 20 more" in (caught.value.hint or "")


def test_an_id_that_two_databases_share_is_refused_with_both_names() -> None:
    made = [
        made_backup(made_manifest(START, database="app")),
        made_backup(made_manifest(START, database="copy")),
    ]

    with pytest.raises(UsageError, match="names 2 backups") as caught:
        select(made, made[0].id)
    assert f"prod/app@{made[0].id}, prod/copy@{made[0].id}" in (caught.value.hint or "")
    assert select(made, f"copy@{made[0].id}") == made[1]


def test_a_name_is_written_as_it_can_be_typed() -> None:
    assert str(Name(Label("prod", "né/1"), "x")) == "prod/n%C3%A9%2F1@x"
