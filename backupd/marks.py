"""What backupd writes into names and comments of databases, from which their state is found again. Pure.

A restore that is killed leaves a database and nothing else: who finds it must see what it is, and so must the next
run. Names and comments are the only places for that which every owner may write, which are transactional, and which a
crash of the client cannot lose; a setting of our own (ALTER DATABASE SET backupd.x) is refused to owners.

A mark is the first line of the comment; what the comment was before follows it.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

NAME_LIMIT_BYTES = 63
"""The longest name of a database; PostgreSQL cuts longer ones."""

_KEPT_BYTES = 40  # of the live name, so that 62 are never exceeded
_STAMP = "%Y%m%d%H%M%S"
_BESIDE_NAME = re.compile(r"(?s).+_beside_[0-9]{14}")
_RESTORING = "backupd is restoring this database from {}; not compared yet"
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_PATTERNS = {
    "restoring": re.compile(
        r"backupd is restoring this database from (?P<origin>\S+)"
        rf"(?: to replace (?P<live>{_QUOTED}))?; not compared yet"
    ),
    "ready": re.compile(
        rf"backupd restored this database from (?P<origin>\S+) to replace (?P<live>{_QUOTED});"
        " equal, not swapped in yet"
    ),
    "kept": re.compile(
        rf"backupd kept this database; it was (?P<live>{_QUOTED}) until (?P<stamp>[0-9]{{14}}), and (?P<origin>\S+)"
        " replaced it"
    ),
}

State = Literal["restoring", "ready", "kept"]


@dataclass(frozen=True)
class Mark:
    """What a database is: `live` is the name that it is to take or had, `origin` the backup, or `undo`.

    `stamp` says when a kept one lost its name (UTC, yyyymmddhhmmss), `comment` what its own comment was.
    """

    state: State
    origin: str
    live: str | None = None
    stamp: str = ""
    comment: str | None = None

    def text(self) -> str:
        """The comment that says so."""
        quoted = json.dumps(self.live, ensure_ascii=False)
        match self.state:
            case "restoring":
                first = _RESTORING.format(self.origin if self.live is None else f"{self.origin} to replace {quoted}")
            case "ready":
                first = (
                    f"backupd restored this database from {self.origin} to replace {quoted}; equal, not swapped in yet"
                )
            case "kept":
                first = f"backupd kept this database; it was {quoted} until {self.stamp}, and {self.origin} replaced it"
        return first if self.comment is None else f"{first}\n{self.comment}"


def read(comment: str | None) -> Mark | None:
    """The mark in a database's comment, if it has one."""
    first, line_break, rest = (comment or "").partition("\n")
    states: tuple[State, ...] = ("restoring", "ready", "kept")
    for state in states:
        if found := _PATTERNS[state].match(first):
            groups = found.groupdict()
            live = None if groups["live"] is None else _unquoted(groups["live"])
            return Mark(state, groups["origin"], live, groups.get("stamp") or "", rest if line_break else None)
    return None


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:  # somebody else's writing: no name is like that
        return text


def own_comment(comment: str | None) -> str | None:
    """What a database's comment is without our marks: they say what became of that database, not of one made like it.

    One mark may be below another, where a marked database was itself restored from a backup that had recorded a mark.
    """
    while (mark := read(comment)) is not None:
        comment = mark.comment
    return comment


def is_ours(name: str, comment: str | None) -> bool:
    """Whether backupd made that database, or is filling it: no pattern of databases to back up means it.

    The name counts where a run was killed before it could comment.
    """
    return read(comment) is not None or (comment is None and is_beside(name))


def is_beside(name: str, live: str | None = None) -> bool:
    """Whether that is the name of a database beside another one, or beside `live`."""
    head, _, _ = name.rpartition("_beside_")
    return _BESIDE_NAME.fullmatch(name) is not None and (live is None or head == _head(live))


def beside(live: str, now: datetime, taken: Collection[str]) -> str:
    """The name of a database to restore into beside the live one; none of those that are taken."""
    return _stamped(live, "beside", now, taken)[0]


def before(live: str, now: datetime, taken: Collection[str]) -> tuple[str, str]:
    """The name under which the live database stays when it is replaced, and the time in it."""
    return _stamped(live, "before", now, taken)


def _stamped(live: str, word: str, now: datetime, taken: Collection[str]) -> tuple[str, str]:
    moment = now
    while (name := f"{_head(live)}_{word}_{moment:{_STAMP}}") in taken:
        moment += timedelta(seconds=1)
    return name, f"{moment:{_STAMP}}"


def _head(live: str) -> str:
    """The first 40 bytes of the name, whole characters."""
    return live.encode()[:_KEPT_BYTES].decode(errors="ignore")
