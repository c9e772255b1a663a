"""Values as a page writes them. Pure."""

from datetime import datetime

from backupd import render, words


def when(moment: datetime) -> str:
    """A time, in UTC as all times here are: `26 Nov 2026, 07:50`."""
    return f"{words.utc(moment):%d %b %Y, %H:%M}".lstrip("0")


def day(moment: datetime) -> str:
    """A date without its year: `26 Nov`."""
    return f"{words.utc(moment):%d %b}".lstrip("0")


def age(moment: datetime, now: datetime, units: int = 2) -> str:
    """How long ago that was; what lies in the future is none."""
    return words.span((now - moment).total_seconds(), units) if moment <= now else "in the future"


def ago(moment: datetime, now: datetime, units: int = 2) -> str:
    """How long ago that was, in words."""
    return f"{age(moment, now, units)} ago" if moment <= now else "in the future"


def number(count: int) -> str:
    """A count with its thousands apart."""
    return f"{count:,}"


def sentence(words_: str) -> str:
    """The words of an error or a reason, as a sentence."""
    whole = words_[:1].upper() + words_[1:]
    return whole if whole.endswith((".", "…", "?")) else f"{whole}."


def fact(value: str | int | float | bool, name: str) -> str:
    """A fact of a note, by its name."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return render.printable(value)
    if name.endswith("seconds"):
        return words.span(value)
    return render.size(value) if name.endswith("bytes") else f"{value:,}"
