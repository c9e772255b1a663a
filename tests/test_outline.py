"""As much of a contract as a page shows, from real archives: and why not, where it cannot be read."""

from dataclasses import replace
from pathlib import Path

from made_archives import make_archive

from backupd.manifest import Index, SkippedTable
from backupd.outline import TABLES, Outline, outline, read


def test_the_outline_has_each_table_with_its_rows_the_largest_first(tmp_path: Path) -> None:
    made = make_archive(tmp_path)
    found = read(made.catalog, made.commit())

    assert [(each.name, each.rows) for each in found.tables] == [("shop.t3456", 2), ("shop.t3457", 0)]
    assert found.tables[0].fingerprint == made.index.contract.tables[0].fingerprint
    assert (found.others, found.unknown) == (0, "")


def test_a_damaged_index_is_unknown_with_the_reason(tmp_path: Path) -> None:
    made = make_archive(tmp_path)
    backup = made.commit()
    made.flip(made.manifest.index_offset + 5)

    assert read(made.catalog, backup) == Outline(unknown=f"index of {made.path.relative_to(made.root)} is damaged")


def test_an_archive_that_is_gone_is_unknown(tmp_path: Path) -> None:
    made = make_archive(tmp_path)
    backup = made.commit()
    made.path.unlink()

    assert read(made.catalog, backup).unknown


def test_a_contract_of_very_many_tables_is_cut_and_the_others_are_counted(tmp_path: Path) -> None:
    index = make_archive(tmp_path).index
    table = index.contract.tables[0]
    many = tuple(replace(table, name=f"t{number}", raw_bytes=number) for number in range(TABLES + 7))
    found = outline(with_contract(index, tables=many))

    assert (len(found.tables), found.others) == (TABLES, 7)
    assert found.tables[0].name == f"shop.t{TABLES + 6}"


def test_what_has_no_rows_is_told_with_its_reason(tmp_path: Path) -> None:
    skipped = (SkippedTable("public", "spatial_ref_sys", "owned by extension postgis"),)
    found = outline(with_contract(make_archive(tmp_path).index, skipped=skipped))

    assert found.skipped == (("public.spatial_ref_sys", "owned by extension postgis"),)


def with_contract(index: Index, **facts: object) -> Index:
    return replace(index, contract=replace(index.contract, **facts))  # type: ignore[arg-type]
