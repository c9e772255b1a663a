"""Slots: when something is due, in any zone, at any jump of a clock."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backupd.schedule import Schedule, Slot, check_cron, due_at, interval, is_done, slot_at

BERLIN = "Europe/Berlin"
NIGHTLY = Schedule("30 2 * * *")
CRONS = (
    "30 2 * * *",
    "*/20 * * * *",
    "0,45 2-3 * * *",
    "0 0 29 2 *",
    "15 1,2 * * 0",
    "@daily",
    "0 2 * * mon-fri",
    "0 3 l * *",
)
ZONES = ("UTC", BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu")
MOMENTS = st.integers(0, 7 * 366 * 86400).map(lambda seconds: at("2024-01-01") + timedelta(seconds=seconds))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize("text", [*CRONS, "0 2 * * 7", "5 4 1-7 jan sat#1"])
def test_what_fires_is_taken_as_it_is(text: str) -> None:
    assert check_cron(text) == text


@pytest.mark.parametrize(
    "text",
    ["", "daily", "@reboot", "30 2 * *", "0 30 2 * * *", "60 2 * * *", "*/0 * * * *", "a b c d e", "H 2 * * *",
     "R 2 * * *", "0 2 * * * 2030", "٣ 2 * * *", "1,,2 * * * *", "R(0-5) 2 * * *", "0 2 * * 5L", "\x00 2 * * *"],
)  # fmt: skip
def test_what_is_no_schedule_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="should be five fields of cron such as `30 2") as caught:
        check_cron(text)

    assert not text or repr(text) not in str(caught.value)


@pytest.mark.parametrize("text", ["0 0 31 2 *", "0 0 30 feb *", "0 0 31 4,6,9,11 *"])
def test_a_schedule_that_never_fires_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="never fires"):
        check_cron(text)


def test_a_slot_is_from_one_firing_to_the_next() -> None:
    slot = slot_at(NIGHTLY, at("2026-11-26 12:00"))

    assert slot == Slot(at("2026-11-26 02:30"), at("2026-11-27 02:30"))
    assert slot_at(NIGHTLY, slot.begins_at) == slot
    assert slot_at(NIGHTLY, slot.ends_at).begins_at == slot.ends_at


def test_local_times_follow_summer_time() -> None:
    schedule = Schedule("30 2 * * *", BERLIN)

    assert slot_at(schedule, at("2026-07-01 12:00")).begins_at == at("2026-07-01 00:30")
    assert slot_at(schedule, at("2026-12-01 12:00")).begins_at == at("2026-12-01 01:30")


def test_a_time_that_comes_twice_is_one_slot() -> None:
    """On 2026-10-25 Berlin's clocks show 2:30 at 00:30 and at 01:30 UTC."""
    schedule = Schedule("30 2 * * *", BERLIN)
    night = {slot_at(schedule, at("2026-10-24 12:00") + timedelta(minutes=minute)) for minute in range(1440)}

    assert sorted(slot.begins_at for slot in night) == [at("2026-10-24 00:30"), at("2026-10-25 00:30")]


def test_a_time_that_never_comes_is_one_slot_an_hour_later() -> None:
    """On 2026-03-29 Berlin's clocks go from 2:00 to 3:00 at 01:00 UTC."""
    schedule = Schedule("30 2 * * *", BERLIN)
    night = {slot_at(schedule, at("2026-03-28 12:00") + timedelta(minutes=minute)) for minute in range(1440)}

    assert sorted(slot.begins_at for slot in night) == [at("2026-03-28 01:30"), at("2026-03-29 01:30")]
    assert slot_at(schedule, at("2026-03-29 01:10")).ends_at == at("2026-03-29 01:30")


@settings(max_examples=150, deadline=None)
@given(
    cron=st.sampled_from(CRONS),
    zone=st.sampled_from(ZONES),
    moment=MOMENTS,
)
def test_slots_cover_all_time_without_overlap(cron: str, zone: str, moment: datetime) -> None:
    schedule = Schedule(cron, zone)
    slot = slot_at(schedule, moment)
    following = slot_at(schedule, slot.ends_at)

    assert slot.has(moment)
    assert following.begins_at == slot.ends_at
    assert slot_at(schedule, slot.ends_at - timedelta(microseconds=1)) == slot


@settings(max_examples=50, deadline=None)
@given(MOMENTS, st.sampled_from(ZONES))
def test_a_nightly_schedule_fires_once_a_local_day(moment: datetime, zone: str) -> None:
    schedule = Schedule("30 2 * * *", zone)
    days = []
    for _ in range(5):
        slot = slot_at(schedule, moment)
        days.append(slot.begins_at.astimezone(ZoneInfo(zone)).date())
        moment = slot.ends_at

    assert [later - earlier for earlier, later in pairwise(days)] == [timedelta(days=1)] * 4


def test_a_slot_is_done_by_a_run_that_began_in_it_and_by_no_other() -> None:
    slot = slot_at(NIGHTLY, at("2026-11-26 12:00"))

    assert is_done(slot, [at("2026-11-26 02:30")])
    assert not is_done(slot, [])
    assert not is_done(slot, [at("2026-11-26 02:29"), at("2026-11-27 02:30"), at("2036-01-01 00:00")])


def test_a_clock_that_is_set_back_does_not_run_a_slot_again() -> None:
    begun = [at("2026-11-26 02:30") + timedelta(seconds=3)]
    before_again = at("2026-11-26 01:40")

    assert not is_done(slot_at(NIGHTLY, before_again), begun)  # the night before was somebody else's run
    assert is_done(slot_at(NIGHTLY, before_again), [*begun, at("2026-11-25 02:31")])
    assert is_done(slot_at(NIGHTLY, at("2026-11-26 02:30")), begun)


def test_jitter_puts_off_by_the_same_part_each_time_and_within_the_slot() -> None:
    schedule = Schedule("*/10 * * * *", jitter=timedelta(hours=1))
    slot = slot_at(schedule, at("2026-11-26 12:00"))
    who = [due_at(schedule, slot, f"server-{number}") for number in range(50)]

    assert who == [due_at(schedule, slot, f"server-{number}") for number in range(50)]
    assert len(set(who)) > 40
    assert all(slot.begins_at <= each <= slot.begins_at + timedelta(minutes=5) for each in who)
    assert due_at(NIGHTLY, slot, "server") == slot.begins_at


@pytest.mark.parametrize(
    ("cron", "hours"),
    [("30 2 * * *", 24), ("0 */6 * * *", 6), ("*/15 8-18 * * mon-fri", 61.25), ("@hourly", 1), ("0 2 * * 0", 168)],
)
def test_the_interval_is_the_longest_wait_of_all(cron: str, hours: float) -> None:
    assert interval(Schedule(cron), at("2026-11-26 12:00")) == pytest.approx(
        timedelta(hours=hours), abs=timedelta(seconds=1)
    )
