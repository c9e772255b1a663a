"""Values to text for people: tables in columns, sizes, ages, errors. Nothing here prints.

Names come from databases that anybody may have named: control characters would act on the reader's terminal, so what
is not printable is shown escaped, here, in the one place that all text for people passes.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from backupd import words
from backupd.catalog import Listing
from backupd.errors import BackupdError, Retained
from backupd.manifest import Backup, Filter, Index, Manifest
from backupd.retention import Plan
from backupd.selector import name_of

if TYPE_CHECKING:  # a quarter of a second of psycopg, which `list` does not need
    from backupd.drill import Drilled
    from backupd.finding import Finding
    from backupd.preflight import Plan as RestorePlan
    from backupd.restore import Restored

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def printable(text: str) -> str:
    """The text with everything that is not printable escaped."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode() for char in text
    )


def printable_lines(text: str) -> str:
    """The text with all of its lines printable; nothing but a line feed ends one."""
    return "\n".join(map(printable, text.split("\n")))


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns, two spaces apart; numbers to the right."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    numeric = [all(isinstance(row[index], int) for row in rows) for index in range(len(header))] if cells else []
    lines = [list(header), *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if numeric and numeric[index] else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def size(count: float) -> str:
    """Bytes in the unit that fits: 1.5 MiB."""
    for unit in _UNITS:
        if count < 1024 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def age(since: datetime, now: datetime) -> str:
    """How long ago, in the one or two units that matter: 3d4h."""
    seconds = int((now - since).total_seconds())
    if seconds < 60:
        return f"{max(seconds, 0)}s"
    minutes, hours, days = seconds // 60 % 60, seconds // 3600 % 24, seconds // 86400
    return f"{days}d{hours}h" if days else f"{hours}h{minutes}m" if hours else f"{minutes}m"


def duration(seconds: float) -> str:
    """Seconds as people say them, of a short time with its tenths."""
    return f"{seconds:.1f} s" if seconds < 120 else words.span(seconds)


def proof(backup: Backup) -> str:
    """The strongest word that is true of the backup: stored, hashed, decoded..., or why it is suspect."""
    if backup.untrusted:
        return f"NOT TRUSTED: {backup.untrusted}"
    if backup.suspect:
        return f"SUSPECT: {backup.suspect}"
    drilled, verified = backup.note("drilled"), backup.note("verified")
    if drilled is not None:
        seconds = drilled.facts.get("seconds")
        took = f" in {duration(seconds)}" if isinstance(seconds, int | float) else ""
        return f"{drilled.facts.get('level', 'restored')} {drilled.at:%Y-%m-%d}{took}"
    if verified is None:
        return "stored"
    return f"{'hashed' if verified.facts.get('level') == 'hashed' else 'verified'} {verified.at:%Y-%m-%d}"


def listing(found: Listing, now: datetime) -> str:
    """What `list` shows: a line a backup, newest last, then what is broken."""
    rows = [
        (
            f"{backup.source.server}/{backup.source.database}",
            backup.id,
            age(backup.manifest.finished_at, now),
            size(backup.manifest.archive_bytes),
            backup.manifest.totals.tables,
            backup.manifest.totals.rows,
            ", ".join(_remarks(backup)),
        )
        for backup in sorted(found.backups, key=lambda backup: (name_of(backup).label, backup.id))
    ]
    shown = table(("DATABASE", "ID", "AGE", "SIZE", "TABLES", "ROWS", "PROOF"), rows) if rows else "no backups"
    broken = [f"broken: {printable(item.key)}: {printable(item.error.message)}" for item in found.broken]
    return "\n".join([shown, *broken])


def _remarks(backup: Backup) -> list[str]:
    remarks = [proof(backup)]
    if backup.manifest.filter is not None:
        remarks.append("filtered")
    if backup.pinned:
        remarks.append("pinned")
    if backup.rekeyed_from:
        remarks.append("rekeyed")
    return remarks


def show(backup: Backup) -> str:
    """What `show` says of one backup."""
    manifest, totals = backup.manifest, backup.manifest.totals
    filters = manifest.filter
    lines = [
        ("backup", f"{name_of(backup)}"),
        ("proof", proof(backup)),
        ("source", f"database {manifest.source.database} of cluster {manifest.source.system_identifier}"),
        ("server", f"PostgreSQL {manifest.server_version}{_standby(manifest)}"),
        ("client", f"pg_dump {manifest.client_version}, {manifest.compression}, {manifest.jobs} jobs"),
        ("started", f"{manifest.started_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("took", duration((manifest.finished_at - manifest.started_at).total_seconds())),
        ("archive", f"{size(manifest.archive_bytes)} ({manifest.archive_bytes} bytes)"),
        ("sha256", manifest.archive_sha256),
        (
            "decoded",
            f"{totals.rows} rows in {totals.tables} tables, {totals.large_objects} large objects,"
            f" {size(totals.raw_bytes)}",
        ),
        ("rewrites", f"checked: {manifest.rewrite_check}"),
    ]
    lines += [("encrypted to", recipient) for recipient in manifest.recipients]
    if filters is not None:
        lines.append(("filtered", patterns(filters)))
    lines += [
        (note.kind, f"{'yes' if note.ok else 'NO'}, {note.at:%Y-%m-%d %H:%M:%S} UTC {_facts(note.facts)}")
        for note in backup.notes
    ]
    lines += [("pg_dump said", warning) for warning in manifest.warnings]
    return "\n".join(f"{name + ':':<14}{printable(text)}" for name, text in lines)


def patterns(filters: Filter) -> str:
    """What a filter lets through, as far as it says so."""
    if filters.sha256:
        return f"by patterns that an encrypted backup does not name (sha256 {filters.sha256[:16]})"
    return f"include {', '.join(filters.include) or '*'}; exclude {', '.join(filters.exclude) or 'nothing'}"


def _standby(manifest: Manifest) -> str:
    if not manifest.standby or (recovery := manifest.recovery) is None:
        return ", a standby" if manifest.standby else ""
    lag = "unknown" if recovery.replay_lag_seconds is None else duration(recovery.replay_lag_seconds)
    feedback = "on" if recovery.hot_standby_feedback else "off"
    delay = recovery.max_standby_streaming_delay
    return f", a standby: replay lag {lag}, hot_standby_feedback {feedback}, max_standby_streaming_delay {delay}"


def _facts(facts: object) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items()) if isinstance(facts, dict) else ""


def tables(index: Index) -> str:
    """What `tables` shows: the contract's tables, and what was left out with the reason."""
    contract = index.contract
    rows = [
        (f"{item.schema}.{item.name}", item.rows, item.raw_bytes, item.fingerprint[:16], item.member)
        for item in contract.tables
    ]
    shown = table(("TABLE", "ROWS", "BYTES", "FINGERPRINT", "MEMBER"), rows)
    skipped = [f"without rows: {printable(f'{item.schema}.{item.name}: {item.reason}')}" for item in contract.skipped]
    return "\n".join([shown, *skipped])


def comparison(restored: "Restored") -> str:
    """What `restore` found: the contract's lines with both numbers."""
    rows = [
        (
            item.name,
            item.promised,
            "missing" if item.found is None else item.found,
            "equal" if item.equal else "DIFFERENT",
        )
        for item in restored.comparisons
    ]
    return table(("", "BACKUP", "RESTORED", ""), rows)


def left_out(restored: "Restored") -> str:
    """Of a part of a backup: what did not come along and why, and how much of the archive was read."""
    lines = [printable(f"left out: {each.name}: {each.reason}") for each in restored.left_out]
    return "\n".join([*lines, f"read {size(restored.read_bytes)} of the archive"])


def drilled(found: "Drilled") -> str:
    """What a drill found: a line of counts, before it what came back in another order, or could not be compared.

    After it the copy that is still there.
    """
    content = found.content
    tables = ", ".join(f"{count} {outcome}" for outcome, count in content.counts.items() if count)
    rows = [
        (each.name, each.outcome, each.why)
        for each in (*content.tables, *content.large_objects)
        if each.outcome != "identical"
    ]
    times = f"restored in {duration(found.seconds)}, content compared in {duration(found.content_seconds)}"
    line = f"{name_of(found.backup)}: {found.level}: {times}; tables: {tables or 'none'}"
    if content.large_objects:
        line += f"; large objects: {len(content.large_objects)}"
    lines = [*([table(("TABLE", "CONTENT", ""), rows)] if rows else []), printable(line)]
    if found.left is not None:
        lines.append(printable(f"its copy could not be dropped: database {found.left}; the log says why"))
    return "\n".join(lines)


def plan(chosen: Plan) -> str:
    """What retention would do, with the reason for each backup."""
    rows = [
        (
            f"{decision.backup.source.server}/{decision.backup.source.database}",
            decision.backup.id,
            "keep" if decision.keep else "REMOVE",
            ", ".join(decision.reasons),
        )
        for decision in chosen.decisions
    ]
    frozen = [f"frozen: {each.scope.server}/{each.scope.database}: {each.reason}" for each in chosen.frozen]
    return "\n".join([table(("DATABASE", "ID", "", "REASON"), rows) if rows else "no backups", *map(printable, frozen)])


def retained(kept: Retained) -> str:
    """Why the store keeps what was to be removed."""
    if kept.until is None:
        return "stays: these credentials may not delete it"
    return f"retained until {kept.until:%Y-%m-%d %H:%M} UTC"


def finding(found: "Finding") -> str:
    """One line of `doctor`: status, name, what was found; what to do about it on the next."""
    line = f"{found.status:<4}  {found.name}: {found.text}"
    return printable(line) + (f"\n      hint: {printable(found.hint)}" if found.hint else "")


def restore_plan(chosen: "RestorePlan") -> str:
    """What `restore --plan` shows: each finding, then each step, or that nothing would be done, and for how long."""
    failed = sum(each.status == "fail" for each in chosen.findings)
    lines = [finding(each) for each in chosen.findings]
    if failed:
        return "\n".join([*lines, f"{failed} checks failed: nothing would be written"])
    lines += [printable(f"{number}. {step}") for number, step in enumerate(chosen.steps, start=1)]
    return "\n".join([*lines, f"this takes about {duration(chosen.seconds)}, by {chosen.basis}; nothing was written"])


def error(exc: BackupdError) -> str:
    """An error as people read it: a line each for message, detail and hint."""
    parts = (("error", exc.message), ("detail", exc.detail), ("hint", exc.hint))
    return "\n".join(f"{name}: {printable(line)}" for name, text in parts if text for line in text.splitlines())
