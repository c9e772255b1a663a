"""What the preflight knows without a server: how long a restore takes, and what only PostgreSQL 18 knows."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from made_backups import made_backup, made_manifest

from backupd.estimate import RAW_BYTES_PER_SECOND, restore_seconds
from backupd.manifest import Backup, Note
from backupd.preflight import only_of_18
from backupd.toc import Entry, Toc

NOW = datetime(2026, 11, 26, 3, 0, tzinfo=UTC)


def of_size(megabytes: float, days_ago: int, seconds: float | None = None, *, ok: bool = True) -> Backup:
    manifest = made_manifest(NOW - timedelta(days=days_ago))
    totals = replace(manifest.totals, raw_bytes=int(megabytes * 1e6))
    notes = [] if seconds is None else [Note("drilled", 1, NOW, ok, {"seconds": seconds})]
    return made_backup(replace(manifest, totals=totals), notes=notes)


def test_the_newest_drill_of_the_database_says_how_long_a_restore_takes() -> None:
    drilled, older = of_size(1000, 2, 100.0), of_size(1000, 9, 50.0)

    assert restore_seconds(of_size(1000, 1), [older, drilled]) == (100.0, f"the drill of {drilled.id}")
    assert restore_seconds(of_size(3000, 1), [drilled])[0] == 300.0
    assert restore_seconds(of_size(0, 1), [drilled])[0] == 3.0


def test_a_drill_that_failed_says_nothing_and_without_one_sizes_do() -> None:
    failed = of_size(1000, 2, 100.0, ok=False)
    seconds, basis = restore_seconds(of_size(1000, 1), [failed])

    assert seconds == round(3 + 1e9 / RAW_BYTES_PER_SECOND, 1)
    assert "size" in basis


DEFINITIONS = {
    "CREATE TABLE t (\n    a integer,\n    b integer GENERATED ALWAYS AS ((a + 1))\n);": "virtual generated column",
    "CREATE TABLE t (\n    a text GENERATED ALWAYS AS (f(')', g(a), \")\")) NOT NULL\n);": "virtual generated column",
    "CREATE TABLE t (\n    CONSTRAINT n NOT NULL a NO INHERIT\n);": "NOT NULL constraint that is NO INHERIT",
    "ALTER TABLE t ADD CONSTRAINT n NOT NULL a NOT VALID;": "NOT NULL constraint that is NOT VALID",
    "ALTER TABLE t ADD CONSTRAINT k PRIMARY KEY (a, b WITHOUT OVERLAPS);": "WITHOUT OVERLAPS",
    "ALTER TABLE t ADD CONSTRAINT k FOREIGN KEY (a, PERIOD b) REFERENCES u(a, PERIOD b);": "PERIOD in a foreign key",
    "CREATE TABLE t (\n    CONSTRAINT c CHECK ((a > 0)) NOT ENFORCED\n);": "NOT ENFORCED",
    "ALTER TABLE t ALTER COLUMN a SET DEFAULT uuidv7();": "uuidv7() or uuidv4()",
    "CREATE TABLE t (\n    a integer GENERATED ALWAYS AS (f(g(b), c)) STORED,\n    d integer\n);": None,
    "CREATE TABLE t (\n    a int GENERATED ALWAYS AS (\nCASE\n    WHEN b THEN c\nEND) STORED\n);": None,
    "ALTER TABLE t ADD CONSTRAINT c CHECK ((a > 0)) NO INHERIT;": None,
    "ALTER TABLE t ALTER COLUMN a ADD GENERATED ALWAYS AS IDENTITY (\n    SEQUENCE NAME s\n);": None,
}


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_what_only_18_knows_is_found_in_definitions(definition: str) -> None:
    expected = DEFINITIONS[definition]
    found = list(only_of_18(Toc((entry("TABLE", definition),))))

    assert found == ([] if expected is None else [f"TABLE public.t: {expected}"])


def test_what_a_function_s_body_says_does_not_count() -> None:
    body = entry("FUNCTION", "CREATE FUNCTION f() AS $$ SELECT uuidv7() -- NOT ENFORCED $$")

    assert list(only_of_18(Toc((body,)))) == []


def entry(desc: str, definition: str) -> Entry:
    return Entry(1, 0, "t", desc, definition, "", "public", "", "", (), "")
