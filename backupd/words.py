"""Times and spans of time as people say them. Pure.

What is said may come from a store that anybody wrote to: no value of a manifest or a note makes these fail.
"""

import math
from datetime import UTC, datetime, timedelta

_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
_LONGEST_SECONDS = timedelta.max.total_seconds() - 1
_LONG = 48 * 3600  # up to here in hours: a backup a day is 26 h old, not 1 d 2 h


def span(seconds: float, units: int = 2) -> str:
    """Seconds in the one or two units that matter: `42 s`, `3 min 20 s`, `26 h`, `2 d 4 h`, `41 d`."""
    if not math.isfinite(seconds):
        return "unknown"
    left = round(min(max(0, seconds), _LONGEST_SECONDS))
    parts: list[str] = []
    for unit, size in _UNITS[left < _LONG :]:
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
        if unit == "d" and count >= 10:
            break
    return " ".join(filter(None, parts[:units])) or "0 s"


def utc(moment: datetime) -> datetime:
    """The moment in UTC; at the ends of the calendar, where that is no date any more, as it was written."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        return moment.replace(tzinfo=UTC)
