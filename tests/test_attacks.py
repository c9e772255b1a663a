"""A part of each campaign of tests/attack, small enough for CI, and whether the harness tells a broken promise."""

import shutil
from pathlib import Path
from typing import NoReturn

import pytest
from attack import record, run
from attack.outcome import Attack, Missed, Outcome, carry_out


@pytest.mark.slow
@pytest.mark.parametrize("name", run.names())
def test_no_attack_of_a_part_of_the_campaign_breaks_a_promise(name: str, tmp_path: Path) -> None:
    campaign = run.load(name)
    ended = list(run.outcomes(campaign, run.SEED, campaign.PART, tmp_path))
    assert [outcome for outcome in ended if not outcome.ok] == []
    assert len(ended) == campaign.PART
    assert len({outcome.label for outcome in ended}) == campaign.PART  # or --only would repeat another


@pytest.mark.parametrize("name", run.names())
def test_a_campaign_says_what_it_attacks(name: str) -> None:
    assert run.title(run.load(name))
    assert 0 < run.load(name).PART <= run.load(name).WHOLE


def _broken() -> NoReturn:
    pytest.fail("the backup is lost")


def _missed() -> NoReturn:
    raise Missed


def test_a_broken_promise_is_told_from_a_fault_that_did_not_happen() -> None:
    broken = carry_out(Attack("broken", _broken))
    assert broken is not None
    assert not broken.ok
    assert "the backup is lost" in broken.detail
    assert carry_out(Attack("missed", _missed)) is None


class _Made:
    """A campaign."""

    WHOLE = PART = 2

    def campaign(self, seed: int, count: int, folder: Path):  # type: ignore[no-untyped-def]
        for number in range(5):
            yield Attack(f"number {number}", _missed if number == 0 else lambda: "held")


def test_a_fault_that_did_not_happen_is_made_up_for_by_another(tmp_path: Path) -> None:
    assert [each.label for each in run.outcomes(_Made(), 0, 2, tmp_path)] == ["number 1", "number 2"]


def test_one_attack_can_be_repeated(tmp_path: Path) -> None:
    assert [each.label for each in run.outcomes(_Made(), 0, 2, tmp_path, "number 2")] == ["number 2"]


def test_counts_are_recorded_in_place_of_earlier_ones(tmp_path: Path) -> None:
    document = Path(shutil.copy(record.RELIABILITY, tmp_path))
    first = record.Line("one", "a fault", "5", "0", "6", "1", "2026-11-26", "abc")
    second = record.Line("two", "another", "7", "0", "6", "1", "2026-11-26", "abc")
    record.write([second, first], document)
    record.write([record.Line("one", "a fault", "9", "1", "6", "1", "2026-11-27", "def")], document)
    text = document.read_text(encoding="utf-8")
    assert "| one | a fault | 9 | 1 | 6 | 1 | 2026-11-27 | def |\n" in text
    assert "| two | another | 7 |" in text
    assert "| one | a fault | 5 |" not in text
    record.write_figures([Outcome("to S3", True, "1 GB in 1 s")], document)
    record.write_figures([Outcome("to S3", True, "1 GB in 2 s")], document)
    assert f"{record.FIGURES_BEGIN}\n- to S3: 1 GB in 2 s.\n{record.FIGURES_END}" in document.read_text(
        encoding="utf-8"
    )
    assert text.partition(record.BEGIN)[0] == record.RELIABILITY.read_text(encoding="utf-8").partition(record.BEGIN)[0]
