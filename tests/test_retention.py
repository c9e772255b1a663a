"""Retention: golden tables (tests/data/retention), what stops it, and what holds for every catalog and policy."""

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_backups import made_backup, made_manifest, made_note

from backupd.errors import UsageError
from backupd.manifest import Backup, Filter, NoteKind
from backupd.retention import Policy, Scope, plan, scope_of, written

TABLES = Path(__file__).parent / "data" / "retention"
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1)}


@pytest.mark.parametrize("table", sorted(TABLES.glob("*.txt")), ids=lambda path: path.stem)
def test_the_plan_is_the_one_in_the_table(table: Path) -> None:
    """A table's left half is the question, its right half the answer (RETENTION_WRITE=1 writes it, for review)."""
    got = answered(table.read_text())
    if os.environ.get("RETENTION_WRITE"):
        table.write_text(got)

    assert got == table.read_text()


def answered(text: str) -> str:
    comment, policy_line, now_line, *rows = text.splitlines()
    questions = [row.split("|")[0].rstrip() for row in rows if not row.startswith("frozen")]
    backups = [(backup_of(question), question) for question in questions]
    answer = plan([backup for backup, _ in backups], policy_of(policy_line), moment(now_line.removeprefix("now ")))
    lines = [comment, policy_line, now_line]
    for decision in answer.decisions:
        question = next(question for backup, question in backups if backup is decision.backup)
        verdict = "keep" if decision.keep else "remove"
        lines.append(f"{question:<49} | {verdict:<6} | {'; '.join(decision.reasons)}")
    for frozen in answer.frozen:
        scope = frozen.scope
        lines.append(f"frozen {scope.server}/{scope.database} {scope.system_identifier}: {frozen.reason}")
    return "\n".join(lines) + "\n"


def policy_of(line: str) -> Policy | None:
    words = line.removeprefix("policy ").split()
    if words == ["none"]:
        return None
    values: dict[str, int | str | timedelta] = {}
    for name, _, value in (word.partition("=") for word in words):
        if name.endswith("within"):
            values[name] = int(value[:-1]) * UNITS[value[-1]]
        else:
            values[name] = value if name == "timezone" else int(value)
    return Policy(**values)  # type: ignore[arg-type]


def backup_of(question: str) -> Backup:
    time, _, rest = question.partition(" ")
    facts = dict(word.partition("=")[::2] for word in rest.split(",") if word)
    suspect = "rows fell by half" if "suspect" in facts else None
    patterns = Filter(exclude=(facts["exclude"],)) if "exclude" in facts else None
    manifest = made_manifest(
        moment(time),
        server=facts.get("server", "prod"),
        database=facts.get("database", "app"),
        identity=facts.get("identity", "7000000000000000001"),
        suspect=suspect,
        patterns=patterns,
    )
    notes = [made_note("pinned", manifest.finished_at)] if "pinned" in facts else []
    if "adopted" in facts:
        notes.append(made_note("adopted", manifest.finished_at, system_identifier=facts["adopted"]))
    return made_backup(manifest, notes=notes)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"daily": -1}, "BACKUPD_RETENTION__KEEP_DAILY is -1"),
        ({"daily": 7, "floor": 0}, "BACKUPD_RETENTION__FLOOR is 0"),
        ({"within": timedelta(0)}, "BACKUPD_RETENTION__KEEP_WITHIN is 0d"),
        ({"daily": 7, "expect_within": -UNITS["h"]}, "BACKUPD_RETENTION__EXPECT_WITHIN is -1h"),
        ({"floor": 5}, "no rule that keeps backups"),
        ({"daily": 7, "timezone": "Europe/Atlantis"}, "time zone 'Europe/Atlantis' is unknown"),
        ({"daily": 7, "timezone": "../../etc/passwd"}, "is unknown"),
        ({"daily": 7, "timezone": "Europe"}, "is unknown"),
        ({"daily": 7, "timezone": ""}, "is unknown"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace(".", r"\.")):
        Policy(**values)  # type: ignore[arg-type]


def test_a_failed_verify_of_the_newest_freezes_its_scope_and_a_later_good_one_frees_it() -> None:
    manifests = [made_manifest(NOW - timedelta(days=days)) for days in (3, 2, 1)]
    failed = made_note("verified", NOW, ok=False, number=1, error="sha256 of member 3456.dat.zst differs")
    good = made_note("verified", NOW, ok=True, number=2)
    older = [made_backup(manifest) for manifest in manifests[:2]]

    frozen = plan([*older, made_backup(manifests[2], notes=[failed])], Policy(last=1, floor=1), NOW)
    freed = plan([*older, made_backup(manifests[2], notes=[failed, good])], Policy(last=1, floor=1), NOW)

    assert frozen.removed == ()
    assert [entry.reason for entry in frozen.frozen] == [
        f"the newest backup {manifests[2].id} is suspect: verified failed: sha256 of member 3456.dat.zst differs"
    ]
    assert len(freed.removed) == 2
    assert freed.frozen == ()


def test_a_pin_ends_the_freeze_of_what_looked_wrong_but_not_of_what_is_bad() -> None:
    older = [made_backup(made_manifest(NOW - timedelta(days=days))) for days in (3, 2)]
    wrong = made_backup(made_manifest(NOW - timedelta(days=1), suspect="rows fell by half"), "pinned")
    failed = replace(wrong, notes=(*wrong.notes, made_note("drilled", NOW, ok=False)))

    assert plan([*older, wrong], Policy(last=1, floor=1), NOW).removed == (older[0],)
    assert plan([*older, failed], Policy(last=1, floor=1), NOW).removed == ()


def test_a_confirmed_backup_is_a_good_one() -> None:
    suspects = [made_manifest(NOW - timedelta(days=days), suspect="rows fell by half") for days in (3, 2, 1)]

    confirmed = plan([made_backup(manifest, "confirmed") for manifest in suspects], Policy(last=1, floor=1), NOW)

    assert [backup.id for backup in confirmed.removed] == [suspects[1].id, suspects[0].id]


def test_a_backup_is_as_old_as_its_end_and_ends_later_than_now_while_it_is_being_committed() -> None:
    started_at = NOW - timedelta(hours=27)
    policy = Policy(last=1, floor=1, expect_within=timedelta(hours=26))
    ended_after_now = made_backup(made_manifest(NOW, took=timedelta(hours=3)))
    long_run = made_backup(made_manifest(started_at, took=timedelta(hours=2)))
    short_run = made_backup(made_manifest(started_at, took=timedelta(minutes=1)))

    assert plan([ended_after_now], policy, NOW).frozen == ()
    assert plan([long_run], policy, NOW).frozen == ()
    assert len(plan([short_run], policy, NOW).frozen) == 1


def test_all_reasons_for_a_freeze_are_given() -> None:
    old = made_manifest(NOW - timedelta(days=9), suspect="it is empty")
    other = made_manifest(NOW - timedelta(days=10), identity="8")

    got = plan([made_backup(old), made_backup(other)], Policy(last=1, expect_within=UNITS["d"]), NOW)

    assert [entry.reason.split(" (")[0] for entry in got.frozen if entry.scope == scope_of(made_backup(old))] == [
        "backups of different clusters bear this name",
        f"the newest backup {old.id} is suspect: it is empty",
        f"the newest backup {old.id} is older than 1d",
    ]


def test_times_at_the_ends_of_the_calendar_are_planned_like_any_other() -> None:
    """A damaged manifest may say year 1 or 9999; no time zone arithmetic may end the plan."""
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    backups = [made_backup(made_manifest(moment, took=timedelta(0))) for moment in (first, NOW, last)]

    for zone in ("America/New_York", "Pacific/Kiritimati"):
        policy = Policy(hourly=1, daily=1, weekly=1, monthly=1, yearly=1, within=UNITS["d"], timezone=zone)
        assert plan(backups, policy, NOW).removed == ()


def test_a_span_is_written_as_in_a_setting() -> None:
    spans = [timedelta(days=7), timedelta(hours=26), timedelta(minutes=90), timedelta(seconds=90.5)]

    assert [written(span) for span in spans] == ["7d", "26h", "90min", "90.5s"]


# --- for every catalog and every policy

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Kathmandu"]


def some_backup(started_at: datetime, names: tuple[str, str], suspect: bool, logs: bool, notes: str) -> Backup:
    """`notes` has a letter for each note: capital where it says yes."""
    database, identity = names
    patterns = Filter(exclude=("logs",)) if logs else None
    manifest = made_manifest(
        started_at, database=database, identity=identity, suspect="it is empty" if suspect else None, patterns=patterns
    )
    kinds: dict[str, NoteKind] = {"p": "pinned", "c": "confirmed", "a": "adopted", "v": "verified"}
    found = [made_note(kinds[n.lower()], NOW, ok=n.isupper(), system_identifier="1") for n in notes]
    return made_backup(manifest, notes=found)


def numbered(backups: list[Backup]) -> list[Backup]:
    """With ids of their own; only a number can tell two of the same second apart."""
    return [
        replace(one, manifest=replace(one.manifest, id=f"{one.id[:-8]}{number:08x}"))
        for number, one in enumerate(backups)
    ]


# A few of few databases, close together around changes of clocks, and some far away or in the future.
CLOCKS = (datetime(2026, 10, 25, 6, tzinfo=UTC), datetime(2026, 3, 29, 6, tzinfo=UTC), NOW)
TIMES = [clock - timedelta(minutes=15 * step * step) for clock in CLOCKS for step in range(-1, 60)]
BACKUPS = st.lists(
    st.builds(
        some_backup,
        st.sampled_from(TIMES),
        st.sampled_from([("app", "1")] * 6 + [("app2", "1")] * 3 + [("app2", "2")]),
        st.sampled_from([False, False, False, True]),
        st.sampled_from([False, False, False, True]),
        st.sampled_from([""] * 8 + ["P", "p", "C", "c", "A", "v", "V", "PC"]),
    ),
    max_size=16,
).map(numbered)


@st.composite
def some_policy(draw: st.DrawFn) -> Policy:
    """Small counts, since the catalogs are small."""
    names = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
    counts = {name: draw(st.sampled_from([0, 0, 1, 2, 4])) for name in names}
    within = draw(st.none() | st.timedeltas(timedelta(minutes=1), timedelta(days=400)))
    assume(any(counts.values()) or within)
    expect_within = draw(st.none() | st.timedeltas(timedelta(hours=1), timedelta(days=400)))
    zone = draw(st.sampled_from(ZONES))
    floor = draw(st.integers(1, 4))
    return Policy(**counts, within=within, floor=floor, timezone=zone, expect_within=expect_within)


def by_scope(backups: Sequence[Backup]) -> dict[Scope, list[Backup]]:
    scopes: dict[Scope, list[Backup]] = {}
    for backup in sorted(backups, key=lambda backup: (backup.manifest.started_at, backup.id), reverse=True):
        scopes.setdefault(scope_of(backup), []).append(backup)
    return scopes


POLICY = some_policy()
MANY = settings(max_examples=100, deadline=None)


@given(BACKUPS, POLICY)
@MANY
def test_the_newest_good_ones_down_to_the_floor_are_never_removed(backups: list[Backup], policy: Policy) -> None:
    removed = plan(backups, policy, NOW).removed

    for members in by_scope(backups).values():
        good = [backup for backup in members if backup.suspect is None]
        assert not any(backup in removed for backup in good[:1])
        assert not any(backup in removed for backup in [one for one in good if not one.pinned][: policy.floor])


@given(BACKUPS, POLICY)
@MANY
def test_each_backup_has_one_decision_with_reasons(backups: list[Backup], policy: Policy) -> None:
    decisions = plan(backups, policy, NOW).decisions

    assert sorted(decision.backup.id for decision in decisions) == sorted(backup.id for backup in backups)
    assert all(decision.reasons and all(decision.reasons) for decision in decisions)


@given(BACKUPS, POLICY)
@MANY
def test_planning_again_on_what_was_kept_removes_nothing_more(backups: list[Backup], policy: Policy) -> None:
    first = plan(backups, policy, NOW)
    again = plan([decision.backup for decision in first.decisions if decision.keep], policy, NOW)

    assert again.removed == ()
    assert again.frozen == first.frozen


@given(BACKUPS, POLICY, st.randoms())
@MANY
def test_the_order_of_the_backups_does_not_matter(backups: list[Backup], policy: Policy, random: Random) -> None:
    shuffled = list(backups)
    random.shuffle(shuffled)

    assert plan(shuffled, policy, NOW) == plan(backups, policy, NOW)


@given(BACKUPS, POLICY)
@MANY
def test_pinned_ones_stay_and_the_others_fare_as_if_they_were_not_there(backups: list[Backup], policy: Policy) -> None:
    whole = plan(backups, policy, NOW)
    unpinned = plan([backup for backup in backups if not backup.pinned], policy, NOW)
    frozen = {entry.scope for entry in (*whole.frozen, *unpinned.frozen)}

    assert not any(backup.pinned for backup in whole.removed)
    for decision in unpinned.decisions:
        if scope_of(decision.backup) not in frozen:
            assert decision in whole.decisions


@given(BACKUPS, POLICY)
@MANY
def test_other_scopes_have_no_influence(backups: list[Backup], policy: Policy) -> None:
    """Only another identity under the same name stops retention (a promise of its own, below)."""
    among = plan(backups, policy, NOW)

    for scope, members in by_scope(backups).items():
        identities = {other.system_identifier for other in by_scope(backups) if other.database == scope.database}
        if len(identities) == 1:
            alone = plan(members, policy, NOW)
            assert [decision for decision in among.decisions if scope_of(decision.backup) == scope] == [
                *alone.decisions
            ]
            assert [entry for entry in among.frozen if entry.scope == scope] == [*alone.frozen]


@given(BACKUPS, POLICY)
@MANY
def test_a_suspect_one_never_displaces_a_good_one(backups: list[Backup], policy: Policy) -> None:
    """Where nothing is frozen, the good ones fare as if the suspect ones were not there."""
    whole = plan(backups, policy, NOW)
    good_only = plan([backup for backup in backups if backup.suspect is None], policy, NOW)
    frozen = {entry.scope for entry in whole.frozen}

    for decision in good_only.decisions:
        if scope_of(decision.backup) not in frozen:
            assert decision in whole.decisions


@given(BACKUPS, POLICY)
@MANY
def test_nothing_is_removed_where_the_newest_is_doubtful(backups: list[Backup], policy: Policy) -> None:
    removed = plan(backups, policy, NOW).removed

    for members in by_scope(backups).values():
        newest = members[0]
        limit = policy.expect_within
        late = limit is not None and NOW - newest.manifest.finished_at > limit
        looked_at = newest.pinned and newest.suspect == newest.manifest.suspect
        if (newest.suspect and not looked_at) or newest.manifest.started_at > NOW or late:
            assert not any(backup in removed for backup in members)


@given(BACKUPS, POLICY)
@MANY
def test_a_name_with_two_identities_is_frozen_whole(backups: list[Backup], policy: Policy) -> None:
    removed = plan(backups, policy, NOW).removed

    for database in ("app", "app2"):
        named = [backup for backup in backups if backup.source.database == database]
        if len({backup.source.system_identifier for backup in named}) > 1:
            assert not any(backup in removed for backup in named)


@given(BACKUPS)
@MANY
def test_without_a_policy_everything_stays(backups: list[Backup]) -> None:
    got = plan(backups, None, NOW)

    assert got.removed == ()
    assert all(decision.reasons == ("no policy is set",) for decision in got.decisions)


@given(BACKUPS, st.integers(1, 4), st.sampled_from(ZONES))
@MANY
def test_a_daily_rule_keeps_the_newest_of_each_of_the_newest_days(backups: list[Backup], count: int, zone: str) -> None:
    """The same rule written another way, over good and unpinned backups of one scope."""
    members = [backup for backup in backups if backup.suspect is None and not backup.pinned]
    members = [backup for backup in members if scope_of(backup) == Scope("prod", "app", "1")]
    past = [backup for backup in members if backup.manifest.started_at <= NOW]
    newest_of: dict[str, Backup] = {}
    for backup in sorted(past, key=lambda backup: (backup.manifest.started_at, backup.id)):
        newest_of[f"{backup.manifest.started_at.astimezone(ZoneInfo(zone)):%Y-%m-%d}"] = backup
    want = {newest_of[day].id for day in sorted(newest_of)[-count:]}

    decisions = plan(past, Policy(daily=count, floor=1, timezone=zone), NOW).decisions

    assert {decision.backup.id for decision in decisions if decision.keep} == want
