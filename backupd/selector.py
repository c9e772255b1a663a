"""How backups are named, in keys of the store and as people type them. Pure.

Hides the percent-encoding of names (a database may be called `../x` or `we"ird`) and the grammar of what a command
takes for a backup: an id or the first characters of one, `latest`, `before:TIME`, each with `DATABASE@` or
`SERVER/DATABASE@` before it. The last `@` divides, since neither ids nor times have one; a name with `/` in it that
could be read in two ways is written as in keys.

An encoding of our own, not urllib's: that one leaves `~` and a leading dot alone and decodes whatever it is given.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from backupd.errors import UsageError
from backupd.manifest import Backup, superseded

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
_NAME_LIMIT_BYTES = 255  # of a file name; a database name has at most 63 bytes, 189 of them encoded
_BEFORE = "before:"
_SHORTEST = 4  # characters of an id
_SHOWN = 10  # candidates in a hint


@dataclass(frozen=True, order=True)
class Label:
    """A database as it is filed: the name that an installation gives its server, and the database's own."""

    server: str
    database: str

    def __str__(self) -> str:
        """The label as in keys and as people may type it: `server/database`, each quoted."""
        return f"{quote(self.server)}/{quote(self.database)}"


@dataclass(frozen=True, order=True)
class Name:
    """A backup's full name: where it is filed, and its id."""

    label: Label
    id: str

    def __str__(self) -> str:
        """The name as people may type it: `server/database@id`."""
        return f"{self.label}@{self.id}"


def name_of(backup: Backup) -> Name:
    """The full name of a backup."""
    return Name(Label(backup.source.server, backup.source.database), backup.id)


def quote(name: str) -> str:
    """The name as one plain segment of a key; of UTF-8 bytes that are not plain, and a leading dot, `%XX`."""
    try:
        data = name.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"name {name!r} is not UTF-8", hint="Rename the database; backups are filed by name."
        ) from None
    quoted = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in data)
    if quoted.startswith("."):
        quoted = f"%2E{quoted[1:]}"
    if not 0 < len(quoted) <= _NAME_LIMIT_BYTES:
        message = f"name {quoted!r} has {len(quoted)} bytes as part of a key, 1 to {_NAME_LIMIT_BYTES} are possible"
        raise UsageError(message, hint="Set BACKUPD_SOURCE__SERVER to a shorter name." if quoted else None)
    return quoted


def unquote(text: str) -> str | None:
    """The name that `quote` made `text` of, or None where it made it of none."""
    try:
        name = re.sub(rb"%([0-9A-F]{2})", lambda match: bytes.fromhex(match[1].decode()), text.encode()).decode()
        return name if quote(name) == text else None
    except (UnicodeError, UsageError):
        return None


def narrow(names: Iterable[Name], text: str) -> list[Name]:
    """The names that `text` leaves, newest first: one for an id, all of one database for `latest` and `before:TIME`.

    Names are known from keys alone, so that only what is left has to be read. Raises UsageError where none is left,
    or more than one id or database.
    """
    prefix, at, what = text.rpartition("@")
    newest_first = sorted(names, key=lambda name: name.id, reverse=True)
    if at:
        label = find_label((name.label for name in newest_first), prefix)
        newest_first = [name for name in newest_first if name.label == label]
    if not _is_by_time(what):
        return [_by_id(newest_first, text, what)]
    labels = sorted({name.label for name in newest_first})
    if len(labels) > 1:
        hint = f"Write one of: {_listed(f'{label}@{what}' for label in labels)}."
        raise UsageError(f"{text!r} could be of several databases", hint=hint)
    return newest_first


def pick(backups: Sequence[Backup], text: str) -> Backup:
    """The one that `text` names among the backups that `narrow` left, newest first. Raises UsageError for none.

    `latest` is the newest complete backup, be it suspect: to skip that silently would give older data than was asked
    for, so the caller warns. `before:TIME` is the newest complete one that started before then, as its id says;
    a time without a zone is UTC. Filtered backups are named by id only, and so are those that were rekeyed.
    """
    what = text.rpartition("@")[2]
    found = list(backups)
    if _is_by_time(what):
        rekeyed = superseded(found)
        found = [backup for backup in found if backup.manifest.filter is None and backup.id not in rekeyed]
    if what.startswith(_BEFORE):
        limit = parse_time(what.removeprefix(_BEFORE))
        found = [backup for backup in found if backup.manifest.started_at < limit]
    if not found:
        filtered = any(backup.manifest.filter for backup in backups)
        detail = "Filtered backups are not complete ones; they are named by id." if filtered else None
        raise UsageError(f"no backup is {text!r}", detail=detail, hint=_newest([name_of(one) for one in backups]))
    return found[0]


def _is_by_time(what: str) -> bool:
    return what == "latest" or what.startswith(_BEFORE)


def find_label(labels: Iterable[Label], text: str) -> Label:
    """The label that `text` names, as DATABASE, SERVER/DATABASE or as in keys. Raises UsageError for none or many."""
    known = sorted(set(labels))
    # As in keys it is never ambiguous, so that there is always a way to write a name.
    found = [label for label in known if str(label) == text] or [label for label in known if text in _spellings(label)]
    if not found:
        hint = f"There are backups of: {_listed(known)}." if known else "The store is empty."
        raise UsageError(f"no backups of {text!r} are in the store", hint=hint)
    if len(found) > 1:
        hint = f"Write one of: {_listed(f'{label}@' for label in found)}."
        raise UsageError(f"{text!r} is the name of several databases", hint=hint)
    return found[0]


def _spellings(label: Label) -> tuple[str, ...]:
    return label.database, quote(label.database), f"{label.server}/{label.database}"


def _by_id(names: Sequence[Name], text: str, what: str) -> Name:
    if len(what) < _SHORTEST:
        raise UsageError(f"{text!r} is too short to name a backup", hint=_newest(names))
    found = [name for name in names if name.id.startswith(what)]
    if not found:
        raise UsageError(f"no backup is named {text!r}", hint=_newest(names))
    if len(found) > 1:
        raise UsageError(f"{text!r} names {len(found)} backups", hint=f"Write one of: {_listed(found)}.")
    return found[0]


def parse_time(text: str) -> datetime:
    """The time that somebody wrote, in UTC where no zone is given. Raises UsageError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        hint = "Write it as 2026-11-01, 2026-11-01T14:30Z or 2026-11-01T14:30+01:00."
        raise UsageError(f"{text!r} is no time", hint=hint) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _newest(names: Sequence[Name]) -> str:
    return f"The newest are: {_listed(names[:3])}." if names else "The store is empty."


def _listed(things: Iterable[object]) -> str:
    texts = [str(thing) for thing in things]
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more
