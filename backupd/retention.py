"""What to keep, what to remove, and why: `plan(backups, policy, now) -> Plan`, a pure function of its arguments.

Hides the arithmetic of buckets and every way in which retention stops itself. The plan has a reason for each backup,
so that it can be printed before anything is deleted; deleting is the catalog's.

Rules are counted over the backups that exist, newest first, and `within` is measured from the newest good backup,
both as restic does it: neither a wrong clock nor a schedule that stopped makes anything expire. `now` only decides
whether a scope is frozen. Unlike restic there is no extra backup for the oldest of an unfilled rule.

Good means not suspect. Only good backups fill a rule or the floor. A suspect one is measured against the good ones
newer than it and stays where those leave a rule unfilled: it never displaces a good one, and what may be the only
trace of a day is not thrown away. A pinned one stays, and the others fare as if it were not there: pinning removes
nothing else, and whoever deletes a pinned one by hand still has what the policy promises. So does one that was rekeyed,
which would else fill a place twice, and is left to whoever may still have its old keys; and so does one that is not
trusted, which should be signed and is not: whoever can write to the store must not decide what else goes, or stays.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from backupd.errors import UsageError
from backupd.manifest import Backup, Filter, superseded


@dataclass(frozen=True)
class Policy:
    """What to keep: each count is of the newest good backups of different hours, days, ISO weeks, months or years.

    Buckets are those of `timezone`. `within` keeps everything made in that time before the newest good backup,
    `floor` is the number of good ones that no rule can go below, and a scope whose newest backup ended longer ago
    than `expect_within` is frozen. Raises UsageError where it makes no sense; a policy that keeps nothing makes none.
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: timedelta | None = None
    floor: int = 2
    timezone: str = "UTC"
    expect_within: timedelta | None = None

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("last", "hourly", "daily", "weekly", "monthly", "yearly")}
        for name, count in counts.items():
            if count < 0:
                raise UsageError(f"BACKUPD_RETENTION__KEEP_{name.upper()} is {count}, which is negative")
        if self.floor < 1:
            hint = "Set it to 1 or more; the newest good backup is never removed."
            raise UsageError(f"BACKUPD_RETENTION__FLOOR is {self.floor}", hint=hint)
        for name, span in {"KEEP_WITHIN": self.within, "EXPECT_WITHIN": self.expect_within}.items():
            if span is not None and span <= timedelta(0):
                raise UsageError(f"BACKUPD_RETENTION__{name} is {written(span)}, which is no time span")
        if not any(counts.values()) and self.within is None:
            hint = "Set at least one, such as BACKUPD_RETENTION__KEEP_DAILY=7, or no retention setting at all."
            raise UsageError("retention policy has no rule that keeps backups", hint=hint)
        _zone(self.timezone)


@dataclass(frozen=True)
class Scope:
    """What retention looks at by itself: one database of one identity under one label, with one filter or none."""

    server: str
    database: str
    system_identifier: str
    filter: Filter | None = None


@dataclass(frozen=True)
class Frozen:
    """A reason for which nothing is removed in a scope; a scope may have several."""

    scope: Scope
    reason: str


@dataclass(frozen=True)
class Decision:
    """What happens to one backup, and every reason for it."""

    backup: Backup
    keep: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A decision for each backup, by scope and newest first, those not trusted last, and what is frozen."""

    decisions: tuple[Decision, ...]
    frozen: tuple[Frozen, ...] = ()

    @property
    def removed(self) -> tuple[Backup, ...]:
        """What the plan removes."""
        return tuple(decision.backup for decision in self.decisions if not decision.keep)


def plan(backups: Sequence[Backup], policy: Policy | None, now: datetime) -> Plan:
    """The decision for each of `backups`; their order does not matter. Without a policy everything is kept."""
    scopes: dict[Scope, list[Backup]] = defaultdict(list)
    rekeyed = superseded(backups)
    for backup in backups:
        if backup.untrusted is None and backup.id not in rekeyed:
            scopes[scope_of(backup)].append(backup)
    decisions: list[Decision] = []
    frozen: list[Frozen] = []
    for scope in sorted(scopes, key=_order):
        newest_first = sorted(scopes[scope], key=lambda backup: (backup.manifest.started_at, backup.id), reverse=True)
        if policy is None:
            decisions += [Decision(backup, True, ("no policy is set",)) for backup in newest_first]
            continue
        stops = [*_mixed(scope, scopes), *_doubtful(newest_first[0], policy, now)]
        frozen += [Frozen(scope, reason) for reason in stops]
        decisions += [_unless_frozen(decision, stops) for decision in _decide(newest_first, policy)]
    return Plan((*decisions, *_left_to_others(backups)), tuple(frozen))


def reach(policy: Policy) -> timedelta | None:
    """How old the oldest backup is that the policy keeps at a schedule that fills it; None where only counts say so."""
    counts = (policy.hourly, policy.daily, policy.weekly, policy.monthly, policy.yearly)
    spans = [timedelta(days=count * days) for count, days in zip(counts, (1 / 24, 1, 7, 31, 366), strict=True) if count]
    return max([*spans, *([policy.within] if policy.within else [])], default=None)


def scope_of(backup: Backup) -> Scope:
    """The scope of a backup, by the identity that `adopt` gave it."""
    source = backup.source
    return Scope(source.server, source.database, source.system_identifier, backup.manifest.filter)


def _left_to_others(backups: Sequence[Backup]) -> Iterator[Decision]:
    untrusted = [backup for backup in backups if backup.untrusted is not None]
    later = {backup.rekeyed_from: backup.id for backup in backups if backup.rekeyed_from and backup.suspect is None}
    for backup in sorted((each for each in backups if each.id in later and each.untrusted is None), key=_by_scope):
        yield Decision(backup, True, (f"rekeyed as {later[backup.id]}, so left to `backupd delete`",))
    for backup in sorted(untrusted, key=_by_scope):
        yield Decision(backup, True, (f"not trusted, so left alone: {backup.untrusted}",))


def _by_scope(backup: Backup) -> tuple[object, ...]:
    return *_order(scope_of(backup)), backup.id


def _order(scope: Scope) -> tuple[str, str, str, bool, tuple[str, ...], tuple[str, ...]]:
    patterns = scope.filter or Filter()
    name = (scope.server, scope.database, scope.system_identifier)
    return (*name, scope.filter is not None, patterns.include, patterns.exclude)


def _mixed(scope: Scope, scopes: Mapping[Scope, list[Backup]]) -> Iterator[str]:
    label = (scope.server, scope.database)
    identities = {other.system_identifier for other in scopes if (other.server, other.database) == label}
    if len(identities) > 1:
        seen = ", ".join(sorted(identities))
        yield f"backups of different clusters bear this name (system identifiers {seen}) until `backupd adopt`"


def _doubtful(newest: Backup, policy: Policy, now: datetime) -> Iterator[str]:
    manifest = newest.manifest
    looked_at = newest.pinned and newest.suspect == manifest.suspect  # not where verify or a drill found it bad
    if newest.suspect is not None and not looked_at:
        yield f"the newest backup {newest.id} is suspect: {newest.suspect}"
    if manifest.started_at > now:
        yield f"the newest backup {newest.id} lies in the future: a clock is wrong"
    if policy.expect_within is not None and now - manifest.finished_at > policy.expect_within:
        yield f"the newest backup {newest.id} is older than {written(policy.expect_within)}"


def _unless_frozen(decision: Decision, stops: Sequence[str]) -> Decision:
    if decision.keep or not stops:
        return decision
    return Decision(decision.backup, True, tuple(f"frozen: {reason}" for reason in stops))


@dataclass(frozen=True)
class _Rule:
    """Keeps the newest good backup of each of `count` buckets; `bucket` names the one of a local time and an id."""

    name: str
    count: int
    bucket: Callable[[datetime, str], str]


def _rules(policy: Policy) -> list[_Rule]:
    rules = [
        _Rule("last", policy.last, lambda _, backup_id: backup_id),
        # The offset tells the two hours apart that a clock set back shows as one.
        _Rule("hour", policy.hourly, lambda local, _: local.isoformat(timespec="hours")),
        _Rule("day", policy.daily, lambda local, _: f"{local.date()}"),
        _Rule("week", policy.weekly, lambda local, _: "{:04}-W{:02}".format(*local.isocalendar())),
        _Rule("month", policy.monthly, lambda local, _: f"{local.year:04}-{local.month:02}"),
        _Rule("year", policy.yearly, lambda local, _: f"{local.year:04}"),
        _Rule("floor", policy.floor, lambda _, backup_id: backup_id),
    ]
    return [rule for rule in rules if rule.count]


def _decide(newest_first: Sequence[Backup], policy: Policy) -> Iterator[Decision]:
    zone = _zone(policy.timezone)
    filled: dict[_Rule, set[str]] = {rule: set() for rule in _rules(policy)}
    newest_good = next((one for one in newest_first if one.suspect is None and not one.pinned), None)
    for backup in newest_first:
        if backup.pinned:
            yield Decision(backup, True, ("pinned",))
            continue
        local = _local(backup.manifest.started_at, zone)
        answers = {rule.name: _apply(rule, buckets, backup, local) for rule, buckets in filled.items()}
        if policy.within is not None and newest_good is not None:
            answers = {"within": _within(backup, newest_good, policy.within), **answers}
        yield _decision(backup, answers)


def _decision(backup: Backup, answers: Mapping[str, tuple[bool, str]]) -> Decision:
    kept = tuple(reason for keep, reason in answers.values() if keep)
    # The floor is why something stays; that it has enough others is no reason to go.
    removed = tuple(reason for name, (_, reason) in answers.items() if name != "floor")
    if backup.suspect is not None:
        kept = tuple(f"{reason}, though suspect" for reason in kept)
        removed = (f"suspect: {backup.suspect}", *removed)
    return Decision(backup, bool(kept), kept or removed)


def _apply(rule: _Rule, filled: set[str], backup: Backup, local: datetime) -> tuple[bool, str]:
    """Whether the rule keeps the backup, and why (not); a good one fills its bucket."""
    bucket = rule.bucket(local, backup.id)
    name = rule.name if bucket == backup.id else f"{rule.name} {bucket}"
    if bucket in filled:
        return False, f"{name}: has a newer one"
    place = len(filled) + 1
    if place > rule.count:
        return False, f"{name}: beyond the newest {rule.count}"
    if backup.suspect is None:
        filled.add(bucket)
    return True, f"{name} ({place} of {rule.count})"


def _within(backup: Backup, newest_good: Backup, within: timedelta) -> tuple[bool, str]:
    if newest_good.manifest.started_at - backup.manifest.started_at < within:
        return True, f"within {written(within)} of the newest good one"
    return False, f"not within {written(within)} of the newest good one"


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC  # a small system may lack the time zone database
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        hint = "Set BACKUPD_RETENTION__TIMEZONE to a name such as UTC or Europe/Berlin."
        raise UsageError(f"time zone {name!r} is unknown", hint=hint) from None


def _local(moment: datetime, zone: tzinfo) -> datetime:
    try:
        return moment.astimezone(zone)
    except OverflowError:
        return moment  # within a day of year 1 or 10000: no clock says so, but a damaged manifest may


def written(span: timedelta) -> str:
    """The duration as a person writes it in a setting: `7d`, `26h`, `90s`."""
    for unit, size in (("d", timedelta(days=1)), ("h", timedelta(hours=1)), ("min", timedelta(minutes=1))):
        if span % size == timedelta(0):
            return f"{span // size}{unit}"
    return f"{span.total_seconds():g}s"
