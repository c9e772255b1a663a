"""Time: zones that skip or repeat an hour, leap days, ends of years, clocks that are stepped back.

Each attack is a schedule across such a moment, in one zone, run after run: an id for each, a backup for each, and the
plan of retention after each, carried out. The clock is an argument of all of it, so that years pass in a second.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from zoneinfo import ZoneInfo

from attack.outcome import Attack
from made_backups import made_backup, made_manifest

from backupd.manifest import Backup
from backupd.retention import Plan, Policy, plan

WHOLE, PART = 400, 40

ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Pacific/Apia")
"""One hour forward and back, the same elsewhere, half an hour, midnight that did not exist, a day that did not."""

MOMENTS = {
    "gap": {
        "Europe/Berlin": datetime(2026, 3, 29, 1, tzinfo=UTC),
        "America/New_York": datetime(2026, 3, 8, 7, tzinfo=UTC),
        "Australia/Lord_Howe": datetime(2026, 10, 3, 15, 30, tzinfo=UTC),
        "America/Sao_Paulo": datetime(2018, 11, 4, 3, tzinfo=UTC),
        "Pacific/Apia": datetime(2011, 12, 30, 10, tzinfo=UTC),
    },
    "fold": {
        "Europe/Berlin": datetime(2026, 10, 25, 1, tzinfo=UTC),
        "America/New_York": datetime(2026, 11, 1, 6, tzinfo=UTC),
        "Australia/Lord_Howe": datetime(2026, 4, 4, 15, tzinfo=UTC),
        "America/Sao_Paulo": datetime(2018, 2, 18, 2, tzinfo=UTC),
        "Pacific/Apia": datetime(2011, 4, 2, 14, tzinfo=UTC),
    },
    "leap day": dict.fromkeys(ZONES, datetime(2028, 2, 29, 12, tzinfo=UTC)),
    "year's end": dict.fromkeys(ZONES, datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)),
}

HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Case:
    """A schedule: a run every `step` from before the moment until after it, under that policy."""

    moment: datetime
    step: timedelta
    policy: Policy
    stepped_back_at: int | None
    """The number of the run before which the clock is set back by an hour."""


def campaign(seed: int, count: int, folder: Path) -> Iterator[Attack]:
    """Cases of every moment in every zone, with and without a clock that is stepped back."""
    chance = random.Random(seed)
    for number in range(count):
        word = list(MOMENTS)[number % len(MOMENTS)]
        zone = ZONES[number // len(MOMENTS) % len(ZONES)]
        step = chance.choice([HOUR / 4, HOUR, 6 * HOUR, 24 * HOUR])
        stepped = chance.randrange(5, 35) if number // (len(MOMENTS) * len(ZONES)) % 2 else None
        case = Case(MOMENTS[word][zone], step, _policy(chance, zone), stepped)
        stepping = "" if stepped is None else f", back before run {stepped}"
        yield Attack(f"{number} {word} in {zone}, every {step / HOUR:g} h{stepping}", partial(_act, case))


def _policy(chance: random.Random, zone: str) -> Policy:
    """One rule alone, whose buckets nothing else fills, or all of them at once."""
    counts = [chance.choice([0, 1, 3, 24]) for _ in range(5)]
    alone = chance.choice([None, *range(5)])
    if alone is not None:
        counts = [24 if number == alone else 0 for number in range(5)]
    hourly, daily, weekly, monthly, yearly = counts
    return Policy(
        last=chance.randrange(1, 4),
        hourly=hourly,
        daily=daily,
        weekly=weekly,
        monthly=monthly,
        yearly=yearly,
        within=None if alone is not None else chance.choice([None, 2 * HOUR, 48 * HOUR]),
        floor=chance.randrange(1, 4),
        timezone=zone,
    )


def _act(case: Case) -> str:
    kept: list[Backup] = []
    ids: set[str] = set()
    frozen = removed = 0
    for number, now in enumerate(_clock(case)):
        taken = made_backup(made_manifest(now, number=number, took=timedelta(seconds=1)))
        assert taken.id not in ids, f"id {taken.id} was given twice"
        ids.add(taken.id)
        newest_before = max((each.manifest.started_at for each in kept), default=now)
        answer = plan([*kept, taken], case.policy, now)
        _assert_lawful(answer, case.policy)
        _assert_kept(answer, case.policy)
        if newest_before > now:
            assert answer.frozen, "a clock behind the newest backup did not freeze"
            assert not answer.removed, "something was removed by a clock that is behind"
        assert taken not in answer.removed, "the backup just taken was removed"
        kept = [decision.backup for decision in answer.decisions if decision.keep]
        frozen += bool(answer.frozen)
        removed += len(answer.removed)
    assert removed or len(ids) < 40 or case.policy.within is not None, "nothing was ever removed"
    return f"{len(ids)} runs, {removed} removed, {len(kept)} kept, {frozen} times frozen"


def _clock(case: Case) -> Iterator[datetime]:
    now = case.moment - 20 * case.step
    for number in range(48):
        if number == case.stepped_back_at:
            now -= HOUR
        yield now
        now += case.step


def _assert_lawful(answer: Plan, policy: Policy) -> None:
    decisions = answer.decisions
    assert all(decision.reasons for decision in decisions), "a decision without a reason"
    assert sum(decision.keep for decision in decisions) >= min(policy.floor, len(decisions)), "below the floor"


def _assert_kept(answer: Plan, policy: Policy) -> None:
    """Counted again by local calendars: every bucket among the newest of its rule still has a backup."""
    rules = {
        "%Y-%m-%d %H %z": policy.hourly,
        "%Y-%m-%d": policy.daily,
        "%G-%V": policy.weekly,
        "%Y-%m": policy.monthly,
        "%Y": policy.yearly,
    }
    zone = ZoneInfo(policy.timezone)
    newest_first = sorted(answer.decisions, key=lambda each: each.backup.manifest.started_at, reverse=True)
    for form, count in rules.items():
        all_buckets = [_bucket(decision.backup, zone, form) for decision in newest_first]
        wanted = set(list(dict.fromkeys(all_buckets))[:count])
        still = {_bucket(decision.backup, zone, form) for decision in newest_first if decision.keep}
        assert wanted <= still, f"{form}: {sorted(wanted - still)} lost their last backup"


def _bucket(backup: Backup, zone: ZoneInfo, form: str) -> str:
    return backup.manifest.started_at.astimezone(zone).strftime(form)
