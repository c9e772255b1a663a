"""What the daemon runs when: a clock that is turned by hand, a catalog that is a value, and children that are noted."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from made_backups import made_backup, made_manifest, made_note

from backupd.catalog import Listing
from backupd.errors import DatabaseError, StoreError
from backupd.failure import Failure
from backupd.manifest import Backup, Filter
from backupd.schedule import Schedule
from backupd.scheduler import Known, Planned, Scheduler, Verb
from backupd.selector import Label

NIGHTLY = Schedule("30 2 * * *")
APP, BILLING = Label("prod", "app"), Label("prod", "billing")


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-11-{text}").replace(tzinfo=UTC)


def failed(moment: datetime, reason: str = "database", database: str = "app") -> Failure:
    return Failure(
        f"{moment:%Y%m%dT%H%M%SZ}-00000000", "prod", database, "backup", moment, moment, 1, 18, reason, "it failed"
    )


@dataclass
class World:
    """A store, a clock, and what was run: each run takes a minute and what it does is `outcome`."""

    clock: datetime
    backups: list[Backup] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    expected: tuple[Label, ...] | None = (APP,)
    filter: Filter | None = None
    outcome: str = "ok"
    unreadable: bool = False
    unreachable: bool = False
    runs: list[tuple[str, str]] = field(default_factory=list)

    def daemon(self, *planned: Planned) -> Scheduler:
        """A daemon that has just been started."""
        made = Scheduler(planned or [Planned("backup", NIGHTLY)], self.know, self.start, lambda: self.clock, "prod")
        made.begin()
        return made

    def know(self, needs_source: bool) -> Known:
        if self.unreadable:
            raise StoreError("no route to the store")
        if self.unreachable and needs_source:
            raise DatabaseError("the database system is starting up")
        listing = Listing(tuple(self.backups), failures=tuple(self.failures))
        return Known(listing, None if self.unreachable else self.expected, self.filter)

    def start(self, arguments: Sequence[str]) -> int:
        if arguments[0] == "backup":
            assert arguments[1:4] == ["--wait", "21600", "--unless-since"]
            assert datetime.fromisoformat(arguments[4]) <= self.clock
            arguments = ["backup", *arguments[5:]]
        self.runs.append((f"{self.clock:%d %H:%M}", " ".join(arguments)))
        begun, self.clock = self.clock, self.clock + timedelta(minutes=1)
        names = list(arguments[2:]) or [label.database for label in self.expected or (APP,)]
        if arguments[0] == "backup" and self.outcome == "ok":
            self.backups += [made_backup(made_manifest(begun, database=name, patterns=self.filter)) for name in names]
        elif arguments[0] == "backup" and self.outcome != "killed":
            self.failures += [failed(self.clock, self.outcome, name) for name in names]
        return 0 if self.outcome == "ok" else 18

    def live(self, daemon: Scheduler, until: str, step: timedelta = timedelta(minutes=7)) -> None:
        """Lets the daemon look at the clock until then."""
        while self.clock < at(until):
            daemon.step()
            self.clock += step


def test_a_slot_runs_once_and_so_does_the_next() -> None:
    world = World(at("20 02:00"))
    world.backups.append(made_backup(made_manifest(at("19 02:30"))))
    world.live(world.daemon(), "22 02:00")

    assert [moment[:-1] for moment, _ in world.runs] == ["20 02:3", "21 02:3"]


def test_what_was_missed_is_caught_up_once_however_many_slots_went_by() -> None:
    world = World(at("20 10:00"))
    world.backups.append(made_backup(made_manifest(at("12 02:30"))))
    world.live(world.daemon(), "21 02:00")

    assert world.runs == [("20 10:00", "backup")]


def test_an_installation_without_a_backup_takes_one_at_once() -> None:
    world = World(at("20 10:00"))
    world.live(world.daemon(), "20 12:00")

    assert world.runs == [("20 10:00", "backup")]


def test_a_slot_does_not_run_again_after_a_restart() -> None:
    for outcome in ("ok", "database"):
        world = World(at("20 02:31"), outcome=outcome)
        for _ in range(5):
            world.live(world.daemon(), f"{world.clock + timedelta(hours=2):%d %H:%M}")

        assert world.runs == [("20 02:31", "backup")]


def test_what_a_restart_interrupted_or_killed_runs_again() -> None:
    for outcome in ("interrupted", "killed"):
        world = World(at("20 02:31"), outcome=outcome)
        world.daemon().step()
        world.outcome = "ok"
        world.live(world.daemon(), "20 12:00")

        assert world.runs == [("20 02:31", "backup"), ("20 02:32", "backup")]


def test_what_fails_is_not_tried_again_in_its_slot() -> None:
    world = World(at("20 02:31"), outcome="killed")
    world.live(world.daemon(), "21 02:00")

    assert len(world.runs) == 1


def test_a_run_by_hand_in_the_slot_counts_and_one_before_it_does_not() -> None:
    world = World(at("20 02:29"))
    world.backups.append(made_backup(made_manifest(at("20 02:29"))))
    daemon = world.daemon()
    daemon.step()
    world.clock = at("20 02:40")
    world.backups.append(made_backup(made_manifest(at("20 02:35"))))
    world.live(daemon, "21 02:00")

    assert world.runs == []


def test_two_daemons_on_one_store_take_one_backup() -> None:
    world = World(at("20 02:31"))
    first, second = world.daemon(), world.daemon()
    for _ in range(100):
        first.step()
        second.step()
        world.clock += timedelta(minutes=5)

    assert world.runs == [("20 02:31", "backup")]


def test_only_the_databases_that_lack_one_are_backed_up() -> None:
    world = World(at("20 10:00"), expected=(APP, BILLING))
    world.backups.append(made_backup(made_manifest(at("20 02:30"))))
    world.live(world.daemon(), "20 12:00")

    assert world.runs == [("20 10:00", "backup -- billing")]


def test_a_backup_with_another_filter_is_no_substitute() -> None:
    world = World(at("20 10:00"), filter=Filter(include=("public.a",)))
    world.backups.append(made_backup(made_manifest(at("20 02:30"))))
    world.live(world.daemon(), "20 12:00")

    assert len(world.runs) == 1


def test_a_source_that_is_starting_is_waited_for() -> None:
    world = World(at("20 10:00"), unreachable=True)
    daemon = world.daemon()
    world.live(daemon, "20 10:05", timedelta(seconds=20))
    world.unreachable = False
    world.live(daemon, "21 02:00")

    assert [moment[:-1] for moment, _ in world.runs] == ["20 10:0"]


def test_a_source_that_stays_away_is_a_failure_that_is_recorded() -> None:
    world = World(at("20 10:00"), unreachable=True, outcome="database")
    world.backups.append(made_backup(made_manifest(at("19 02:30"))))
    world.live(world.daemon(), "21 02:00", timedelta(minutes=1))

    assert world.runs == [("20 10:10", "backup")]


def test_databases_that_nobody_named_are_those_of_the_catalog() -> None:
    world = World(at("20 10:00"), expected=None)
    world.backups += [
        made_backup(made_manifest(at(day), database=name)) for day, name in (("20 02:30", "app"), ("19 02:30", "crm"))
    ]
    world.live(world.daemon(), "20 12:00")

    assert world.runs == [("20 10:00", "backup -- crm")]


def test_a_catalog_that_cannot_be_read_puts_a_run_off_until_it_can() -> None:
    world = World(at("20 02:31"), unreadable=True)
    daemon = world.daemon()
    world.live(daemon, "20 02:40", timedelta(minutes=1))
    world.unreadable = False
    world.live(daemon, "21 02:00")

    assert [moment[:-1] for moment, _ in world.runs] == ["20 02:4"]


def test_a_catalog_that_stays_unreadable_has_one_backup_a_slot_that_fails_and_tells() -> None:
    world = World(at("20 02:31"), unreadable=True, outcome="killed")
    daemon = world.daemon(Planned("backup", NIGHTLY), Planned("prune", NIGHTLY), Planned("drill", NIGHTLY))
    world.live(daemon, "22 01:00", timedelta(minutes=1))
    assert world.runs == [("20 02:41", "backup"), ("21 02:30", "backup")]

    world.unreadable, world.outcome = False, "ok"
    world.live(daemon, "22 02:00")
    assert [run for _, run in world.runs[2:]] == ["backup", "prune --yes", "drill --newest-undrilled"]


def test_a_clock_that_is_set_back_runs_nothing_again() -> None:
    world = World(at("20 02:31"))
    daemon = world.daemon()
    world.live(daemon, "20 03:30")
    world.backups.append(made_backup(made_manifest(at("19 02:30"))))
    world.clock = at("20 01:30")
    world.live(daemon, "21 02:00")

    assert world.runs == [("20 02:31", "backup")]


def test_a_run_from_a_clock_that_was_years_ahead_hinders_no_later_one() -> None:
    world = World(at("20 02:31"))
    world.backups.append(made_backup(made_manifest(at("20 02:30").replace(year=2036))))
    world.live(world.daemon(), "22 02:00")

    assert [moment[:-1] for moment, _ in world.runs] == ["20 02:3", "21 02:3"]


def planned(**crons: str) -> list[Planned]:
    names: dict[str, Verb] = {"backup": "backup", "drill": "drill", "prune": "prune", "digest": "digest"}
    return [Planned(names[verb], Schedule(cron)) for verb, cron in crons.items()]


def test_drills_have_a_schedule_of_their_own_and_their_notes_are_its_memory() -> None:
    world = World(at("20 10:00"))
    drilled = made_backup(made_manifest(at("20 02:30")), notes=[made_note("drilled", at("20 05:00"))])
    world.backups.append(drilled)
    world.live(world.daemon(*planned(backup="30 2 * * *", drill="0 5 * * *")), "21 12:00", timedelta(minutes=30))

    assert world.runs == [("21 02:30", "backup"), ("21 05:01", "drill --newest-undrilled")]


@pytest.mark.parametrize(("verb", "line"), [("prune", "prune --yes"), ("digest", "digest")])
def test_what_leaves_no_trace_is_not_caught_up(verb: str, line: str) -> None:
    world = World(at("20 10:00"))
    world.live(world.daemon(*planned(**{verb: "0 4 * * *"})), "22 00:00", timedelta(minutes=30))

    assert world.runs == [("21 04:00", line)]


def test_what_is_due_while_another_run_goes_on_comes_after_it() -> None:
    world = World(at("20 03:59"))
    world.live(world.daemon(*planned(backup="0 4 * * *", drill="0 4 * * *")), "20 03:58")
    daemon = world.daemon(*planned(backup="0 4 * * *", drill="0 4 * * *"))
    world.backups.append(made_backup(made_manifest(at("19 04:00")), notes=[made_note("drilled", at("19 04:00"))]))
    world.live(daemon, "20 08:00", timedelta(minutes=1))

    assert world.runs == [("20 04:00", "backup"), ("20 04:01", "drill --newest-undrilled")]


def test_jitter_puts_a_run_off_within_its_slot() -> None:
    world = World(at("20 02:30"))
    world.backups.append(made_backup(made_manifest(at("19 02:30"))))
    world.live(world.daemon(Planned("backup", replace(NIGHTLY, jitter=timedelta(hours=3)))), "21 02:00")

    [(moment, _)] = world.runs
    assert "20 02:31" <= moment <= "20 05:40"
