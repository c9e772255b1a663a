"""What the overview says in a sentence and a few figures, of a status. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from backupd import render, words
from backupd.manifest import Backup
from backupd.report import Line, Report
from backupd.retention import Policy
from backupd.selector import Label
from backupd.status import Database, Removal, State, Status


@dataclass(frozen=True)
class Fact:
    """One figure: what it is of, the figure, where it comes from; `label` is the database that it is of."""

    name: str
    value: str
    note: str
    label: Label | None = None


@dataclass(frozen=True)
class BackupFact:
    """One figure of a database's page; `backup` is the one that it is of."""

    name: str
    value: str
    note: str
    backup: Backup | None = None


@dataclass(frozen=True)
class Headline:
    """The answer at a glance, and the sentence after it."""

    title: str
    text: str


def headline(status: Status) -> Headline:
    """The answer: is every database safe."""
    danger, warning, safe = (status.count(state) for state in ("danger", "warning", "safe"))
    if status.reading.read_at is None:
        return Headline("The store was not read yet.", "Nothing is known of any backup.")
    if not danger + warning + safe:
        return Headline("There is no backup yet.", "And no database is expected to have one.")
    limit = words.span(status.expected.max_age.total_seconds())
    if danger:
        title = f"{_databases(danger)} {'is' if danger == 1 else 'are'} in danger."
        rest = [f"{warning} more {_needs(warning)} a look"] * bool(warning) + [_safe(safe)] * bool(safe)
        return Headline(title, f"{', '.join(rest)}." if rest else "No other database is expected here.")
    if warning:
        title = f"{_databases(warning)} {_needs(warning)} a look."
        return Headline(title, f"Each database has a good backup of the last {limit}.")
    if status.state != "safe":
        return Headline("The store needs a look.", f"Its {_databases(safe)} had good backups when it was last read.")
    if safe == 1:
        return Headline("The database is safe.", f"Its newest good backup is not older than {limit}.")
    return Headline("Every database is safe.", f"All {safe} have a good backup that is not older than {limit}.")


def facts(status: Status) -> Iterator[Fact]:
    """The figures below it: the worst of the fleet, since the worst is what somebody must know."""
    active = [database for database in status.databases if database.state != "retired"]
    yield _oldest(status, "Newest verified", "read back", [(each, each.newest_verified) for each in active])
    yield _oldest(status, "Newest drilled", "restored in a drill", [(each, each.newest_drilled) for each in active])
    yield _longest(active)
    backups = sum(len(each.backups) for each in status.databases)
    stored = render.size(sum(each.archive_bytes for each in status.databases))
    count = f"{_counted(backups, 'backup')} of {_databases(len(status.databases))}"
    yield Fact("In the store", stored, count)
    yield _next(removals(status))


def removals(status: Status) -> list[tuple[Database, Removal]]:
    """What retention removes next, of all databases: what goes first, and the oldest, first."""
    found = [(database, removal) for database in status.databases for removal in database.removals]
    return sorted(found, key=lambda pair: (not pair[1].now, pair[1].backup.id))


def sentence(database: Database, status: Status) -> str:
    """How one database fares."""
    if database.state == "retired":
        return "It was retired: no new backup is expected, and those that are left stay until retention removes them."
    limit = _span(status.expected.max_age)
    if database.newest is None:
        return "There is no good backup of it."
    age = _span(status.now - database.newest.manifest.finished_at)
    return f"Its newest good backup is {age} old; {limit} at most are expected."


def database_facts(database: Database, status: Status) -> Iterator[BackupFact]:
    """The figures of one database."""
    for name, backup, within in (
        ("Newest good", database.newest, status.expected.max_age),
        ("Newest verified", database.newest_verified, status.expected.verified_within),
        ("Newest drilled", database.newest_drilled, status.expected.drilled_within),
    ):
        age = "never" if backup is None else f"{_span(status.now - backup.manifest.finished_at)} old"
        yield BackupFact(name, age, f"at most {_span(within)} expected" if within is not None else "", backup)
    if database.restore is not None:
        seconds, basis = database.restore
        yield BackupFact("A restore takes", words.span(seconds), _known_by(basis))
    yield BackupFact("In the store", render.size(database.archive_bytes), _counted(len(database.backups), "backup"))


def report_state(report: Report) -> State:
    """The worst that the period had for the databases that it had backups of: gaps and failed drills are danger."""
    if any(_real_gaps(line) or any(not drill.ok for drill in line.drills) for line in report.databases):
        return "danger"
    return "safe" if any(line.backups for line in report.databases) else "warning"


def report_lead(report: Report) -> str:
    """The period in a sentence or two."""
    backups = sum(len(line.backups) for line in report.databases)
    gaps = sum(_real_gaps(line) for line in report.databases)
    drills = [drill for line in report.databases for drill in line.drills]
    failed = sum(not drill.ok for drill in drills)
    said = f"{_counted(backups, 'backup')} of {_databases(len(report.databases))} in the store are of this period"
    proven = f"{_counted(len(drills), 'drill')} restored some of them{f', {failed} of which failed' if failed else ''}"
    return (
        f"{said}; {proven}. {_counted(gaps, 'gap')} without a new good backup {'was' if gaps == 1 else 'were'} found."
    )


def report_facts(report: Report) -> Iterator[Fact]:
    """The figures below it."""
    backups = [each for line in report.databases for each in line.backups]
    drills = [drill for line in report.databases for drill in line.drills if drill.ok]
    timed = [drill.seconds for drill in drills if drill.seconds is not None]
    longest = [line.longest_hours for line in report.databases if line.longest_hours is not None]
    undrilled = sum(not line.drills for line in report.databases)
    yield Fact("Backups", f"{len(backups):,}", render.size(sum(each.archive_bytes for each in backups)))
    yield Fact("Longest time between two", words.span(max(longest) * 3600) if longest else "unknown", "of good backups")
    identical = sum(drill.level == "identical" for drill in drills)
    yield Fact("Drills that succeeded", f"{len(drills)}", f"{identical} identical, {len(drills) - identical} restored")
    yield Fact("Slowest restore", words.span(max(timed)) if timed else "unknown", "as drills measured it")
    yield Fact("Never drilled in it", _databases(undrilled), f"of {_databases(len(report.databases))}")


def _real_gaps(line: Line) -> int:
    return sum(not gap.thinned for gap in line.gaps)


def _counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def policy(chosen: Policy | None, known: bool) -> str:
    """A retention policy in a sentence; it is not `known` for what another installation keeps."""
    if not known:
        return "What it keeps is decided by the installation that takes these backups."
    if chosen is None:
        return "No policy is set: every backup is kept."
    units = (("hour", chosen.hourly), ("day", chosen.daily), ("week", chosen.weekly), ("month", chosen.monthly))
    kept = [f"the newest {chosen.last}"] if chosen.last else []
    kept += [f"one of each of {count} {unit}s" for unit, count in (*units, ("year", chosen.yearly)) if count]
    kept += [f"everything of {_span(chosen.within)}"] if chosen.within else []
    return f"It keeps {', '.join(kept)}, and never fewer than {chosen.floor} good ones."


def details(backup: Backup) -> Iterator[tuple[str, str]]:
    """What a backup is, term by term."""
    manifest = backup.manifest
    yield "Source", f"database {manifest.source.database} of cluster {backup.source.system_identifier}"
    yield "Server", f"PostgreSQL {manifest.server_version}{', a standby' if manifest.standby else ''}"
    yield "Client", f"pg_dump {manifest.client_version}, {manifest.compression}, {manifest.jobs} jobs"
    yield "Took", _span(manifest.finished_at - manifest.started_at)
    yield "Archive", f"{render.size(manifest.archive_bytes)} of {manifest.totals.members:,} members"
    yield "Database then", render.size(manifest.database_bytes)
    yield "Rewrites while it was taken", f"checked: {manifest.rewrite_check}"
    if manifest.filter is not None:
        yield "Filter", render.patterns(manifest.filter)
    if manifest.recipients:
        yield "Encrypted for", ", ".join(manifest.recipients)
    yield "Taken by", f"backupd {manifest.backupd_version}"


def _oldest(status: Status, name: str, how: str, newest: Sequence[tuple[Database, Backup | None]]) -> Fact:
    """The database whose newest proven backup is the oldest; those that have none are counted."""
    known = [(status.now - backup.manifest.finished_at, each) for each, backup in newest if backup is not None]
    never = len(newest) - len(known)
    if not known:
        return Fact(name, "never", f"no backup was {how} yet")
    age, database = max(known, key=lambda pair: (pair[0], pair[1].label))
    note = f"{never} of {len(newest)} never" if never else "the oldest of all" if len(newest) > 1 else f"{how}"
    return Fact(name, f"{_span(age)} old", note, database.label)


def _longest(active: Iterable[Database]) -> Fact:
    estimates = [(*each.restore, each.label) for each in active if each.restore is not None]
    if not estimates:
        return Fact("A restore takes", "unknown", "there is no good backup")
    seconds, basis, label = max(estimates)
    note = f"{_known_by(basis)}{', the longest' if len(estimates) > 1 else ''}"
    return Fact("A restore takes", words.span(seconds), note, label)


def _known_by(basis: str) -> str:
    return "measured by a drill" if "drill of" in basis else "by its size: no drill was timed"


def _next(found: Sequence[tuple[Database, Removal]]) -> Fact:
    if not found:
        return Fact("Retention removes next", "nothing", "every backup is kept")
    freed = sum(removal.backup.manifest.archive_bytes for _, removal in found)
    count = f"{len(found)} backup{'' if len(found) == 1 else 's'}"
    return Fact("Retention removes next", count, f"{render.size(freed)}, each with a reason below")


def _safe(count: int) -> str:
    return f"{count} {'is' if count == 1 else 'are'} safe"


def _needs(count: int) -> str:
    return "needs" if count == 1 else "need"


def _databases(count: int) -> str:
    return "1 database" if count == 1 else f"{count} databases"


def _span(length: timedelta) -> str:
    return words.span(length.total_seconds())
