"""What a check of `doctor` finds, and how checks are run: each tried once, what depends on a failed one skipped.

A check is a function that returns what it found, or a `Doubt` where backups work but something should be changed, or
raises what a backup would raise: codes and hints are the errors' own, and cannot drift from them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

from backupd.errors import AccessRefused, BackupdError, DatabaseError, StoreError, VerificationFailed, VersionMismatch


@dataclass(frozen=True)
class Finding:
    """What one check found, in words, and what to do about it; `exit_code` is a failure's, else 0."""

    name: str
    status: Literal["ok", "warn", "fail", "skip"]
    text: str
    hint: str | None = None
    exit_code: int = 0


@dataclass(frozen=True)
class Doubt:
    """Something that works and should be changed all the same."""

    text: str
    hint: str


_T = TypeVar("_T")
Check = Callable[[_T], str | Doubt]
"""Returns what it found, or raises what a backup would raise."""


def try_all(
    checks: Mapping[str, Check[_T]], subject: _T, of: str = "", needs: Mapping[str, str] | None = None
) -> Iterator[Finding]:
    """Tries each check, but for those that need one which failed; `of` ends their names."""
    lost: dict[str, str] = {}  # what failed, or was skipped, by what is to blame
    for name, check in checks.items():
        cause = lost.get((needs or {}).get(name, ""))
        finding = skip(name + of, cause + of) if cause else attempt(name + of, partial(check, subject))
        if finding.status in ("fail", "skip"):
            lost[name] = cause or name
        yield finding


def attempt(name: str, check: Callable[[], str | Doubt]) -> Finding:
    """What that check found; one of our errors is a failure with its code and hint."""
    try:
        found = check()
    except BackupdError as exc:
        return failure(name, exc)
    if isinstance(found, Doubt):
        return Finding(name, "warn", found.text, found.hint)
    return Finding(name, "ok", found)


def failure(name: str, exc: BackupdError) -> Finding:
    """The error as a finding."""
    text = ": ".join(part for part in (exc.message, exc.detail) if part)
    hint = exc.hint if exc.hint and "backupd doctor" not in exc.hint else _HINTS.get(type(exc))
    return Finding(name, "fail", " ".join(text.split()), hint, exc.exit_code)


# where an error has no hint, or only that to run `backupd doctor`
_HINTS: Mapping[type[BackupdError], str] = {
    AccessRefused: "Check the role, where its password comes from (see `password`), and the server's pg_hba.conf.",
    DatabaseError: "Check BACKUPD_SOURCE__HOST and __PORT, or PGHOST and PGPORT, the network, and the server's log.",
    StoreError: "Check BACKUPD_STORE__URL, and what it names.",
    VerificationFailed: "Trust no backups to this store; look for a proxy or a cache before it.",
    VersionMismatch: "Install pg_dump and pg_restore of one version into each folder.",
}


def skip(name: str, ground: str) -> Finding:
    """A check that makes no sense after another failed."""
    return Finding(name, "skip", f"not tried: {ground} failed")
