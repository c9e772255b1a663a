"""The daemon's own loop, a day and more of it in a second: restarts, outages, failures, clocks that are stepped.

Each attack is one daemon with a schedule, a catalog in memory and a clock that only the attack moves. Counted is what
came of it: no slot has two backups of a database, none that the daemon was awake for has neither a backup nor a
failure, and what retention leaves is what its floor promises.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from attack.clock import HOUR, MOMENTS, ZONES
from attack.outcome import Attack
from made_backups import made_backup, made_manifest

from backupd.catalog import Listing
from backupd.failure import Failure
from backupd.manifest import Backup
from backupd.retention import Policy, plan
from backupd.schedule import Schedule, Slot, is_done, slot_at
from backupd.scheduler import Known, Planned, Scheduler
from backupd.selector import Label

WHOLE, PART = 60, 6

MINUTE = timedelta(minutes=1)
CRONS = ("*/10 * * * *", "7 * * * *", "30 2 * * *", "0 */6 * * *", "15,45 1-3 * * *", "0 0 * * *")
POLICY = Policy(last=4, daily=3, floor=2)
DATABASES = tuple(f"app{number}" for number in range(8))


@dataclass
class Day:
    """The world around one daemon, and what it did: `begun` are all its runs, of which the catalog forgets some."""

    chance: random.Random
    schedule: Schedule
    now: datetime
    backups: list[Backup] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    begun: dict[str, list[datetime]] = field(default_factory=lambda: {name: [] for name in DATABASES})
    removed: int = 0
    set_back: bool = False

    def know(self, source: bool = True) -> Known:
        """The catalog, and the source, which always answers."""
        labels = [Label("prod", name) for name in DATABASES]
        return Known(Listing(tuple(self.backups), failures=tuple(self.failures)), labels)

    def start(self, arguments: Sequence[str]) -> int:
        """`backup`: each database takes its time, and now and then one fails; retention follows, as it always does."""
        assert arguments[0] == "backup"
        names = arguments[arguments.index("--") + 1 :] if "--" in arguments else DATABASES
        since = datetime.fromisoformat(arguments[arguments.index("--unless-since") + 1])
        slot = slot_at(self.schedule, self.now)
        failed = sum(self._back_up(name, since, slot) for name in names)
        return 18 if failed else 0

    def _back_up(self, name: str, since: datetime, run_slot: Slot) -> bool:
        slot = slot_at(self.schedule, self.now)
        own = [each.manifest.started_at for each in self.backups if each.source.database == name]
        if any(since <= moment <= self.now for moment in own):
            return False
        failed_at = [each.at for each in self.failures if each.database == name]
        # A turn that comes in the next slot makes its own one lack a run, once the clock is set back to that.
        late = self.set_back and slot != run_slot
        done = is_done(slot, [*own, *failed_at])
        assert late or not done, f"{name} has a run in the slot of {slot.begins_at} already"
        self.begun[name].append(self.now)
        number = sum(map(len, self.begun.values()))
        failed = self.chance.random() < 0.1
        if failed:
            self.failures.append(_failure(self.now, name, number))
        else:
            self.backups.append(made_backup(made_manifest(self.now, number=number, database=name, took=MINUTE / 2)))
            self._prune(name)
        self.now += timedelta(seconds=self.chance.randrange(5, 40))
        return failed

    def _prune(self, name: str) -> None:
        own = [backup for backup in self.backups if backup.source.database == name]
        gone = {backup.id for backup in plan(own, POLICY, self.now).removed}
        assert len(own) - len(gone) >= min(POLICY.floor, len(own)), "retention went below its floor"
        assert max(own, key=lambda each: each.manifest.started_at).id not in gone, "retention removed the newest"
        self.backups = [backup for backup in self.backups if backup.id not in gone]
        self.removed += len(gone)


def _failure(at: datetime, database: str, number: int) -> Failure:
    return Failure(f"{at:%Y%m%dT%H%M%SZ}-{number:08x}", "prod", database, "backup", at, at, 1, 18, "database", "made")


def campaign(seed: int, count: int, folder: Path) -> Iterator[Attack]:
    """Days of every schedule, in zones of chance: on one that is shorter, on one that is longer, on one like others."""
    chance = random.Random(seed)
    for number in range(count):
        zone = chance.choice(ZONES[:4])  # Apia left out a day, and schedules know of jumps of three hours
        word = chance.choice(["gap", "fold", "leap day"])
        schedule = Schedule(CRONS[number % len(CRONS)], zone, chance.choice([timedelta(0), 5 * MINUTE]))
        begin = MOMENTS[word][zone] - 8 * HOUR
        label = f"{number} `{schedule.cron}` in {zone}, {word}"
        yield Attack(label, partial(_act, random.Random(f"{seed} {number}"), schedule, begin))


def _act(chance: random.Random, schedule: Schedule, begin: datetime) -> str:
    day = Day(chance, schedule, begin)
    daemon = _daemon(day)
    looked: list[tuple[datetime, datetime]] = []
    restarts = 0
    stepped = chance.randrange(300, 1200)
    for minute in range(26 * 60):
        if minute == stepped and chance.choice([False, True]):
            day.now -= HOUR
            day.set_back = True
        if chance.random() < 0.005:  # killed, and started again after a while: nothing of its memory is left
            restarts += 1
            day.now += MINUTE * chance.choice([0, 1, 30, 300])
            daemon = _daemon(day)
        before = day.now
        daemon.step()
        looked.append((before, day.now))
        day.now = max(day.now, before + MINUTE)
    _assert_none_missed(day, looked)
    runs = sum(map(len, day.begun.values()))
    return f"{runs} backups tried, {len(day.failures)} failed, {day.removed} removed, {restarts} restarts"


def _daemon(day: Day) -> Scheduler:
    made = Scheduler([Planned("backup", day.schedule)], day.know, day.start, lambda: day.now, "prod")
    made.begin()
    return made


def _assert_none_missed(day: Day, looked: Sequence[tuple[datetime, datetime]]) -> None:
    """Whenever the daemon looked after a slot's jitter, each database had a run in the slot, or got one then."""
    for before, after in looked:
        slot = slot_at(day.schedule, before)
        if before - slot.begins_at < min(day.schedule.jitter, (slot.ends_at - slot.begins_at) / 2):
            continue
        for name, moments in day.begun.items():
            there = any(slot.has(moment) or before <= moment <= after for moment in moments)
            assert there, f"{name} has no run in the slot of {slot.begins_at}, in which the daemon looked at {before}"
