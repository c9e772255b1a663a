"""Commands of the installation's own: before a backup of a database, after it, and where something failed.

Hides how one is run: an argument list, without a shell, in a process group that does not outlive it, with what is known
of the run as `BACKUP_...` variables and no secret of backupd's. Those names are not `BACKUPD_...`, which are settings:
a hook that runs backupd itself would find them misspelt. stdout is thrown away, stderr is logged, line by line.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Literal

from backupd import log, process
from backupd.connection import without_secrets
from backupd.errors import HookFailed, UsageError
from backupd.manifest import Backup

When = Literal["before", "after", "failure"]

FACT_LIMIT = 4000
"""Characters of one variable: an argument list and its environment share a limited room."""


def run(
    when: When,
    argv: Sequence[str],
    environment: Mapping[str, str],
    facts: Mapping[str, str | int],
    limit: timedelta,
) -> None:
    """Runs the command to its end; an empty one is none. `facts` become `BACKUP_<NAME>`. Raises HookFailed."""
    if not argv:
        return
    texts = {f"BACKUP_{name.upper()}": str(value) for name, value in {**facts, "event": when}.items()}
    whole = without_secrets(environment) | {name: _plain(text) for name, text in texts.items()}
    hint = f"See BACKUPD_HOOK__{when.upper()} and BACKUPD_HOOK__LIMIT."
    try:
        with process.start(argv, whole, on_line=partial(log.child_stderr, f"hook {when}")) as child:
            status = child.wait(limit.total_seconds())
            said = child.stderr()
    except UsageError as exc:
        raise HookFailed(f"hook {when} could not be started: {argv[0]}", detail=exc.detail, hint=hint) from exc
    if status is None:
        raise HookFailed(f"hook {when} ({child.name}) did not end within {limit.total_seconds():.0f} s", hint=hint)
    if status:
        detail = f"It said: {said}" if said else "It said nothing to stderr."
        raise HookFailed(f"hook {when} ({child.name}) ended with {status}", detail=detail, hint=hint)


def facts_of(taken: Backup) -> dict[str, str | int]:
    """What is known of a backup that was taken."""
    manifest = taken.manifest
    return {
        "id": taken.id,
        "started_at": manifest.started_at.isoformat(),
        "finished_at": manifest.finished_at.isoformat(),
        "archive_bytes": manifest.archive_bytes,
        "tables": manifest.totals.tables,
        "rows": manifest.totals.rows,
        "suspect": manifest.suspect or "",
    }


def _plain(text: str) -> str:
    return text.replace("\0", "")[:FACT_LIMIT]
