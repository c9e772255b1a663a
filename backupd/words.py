"""Spans of time as people say them. Pure."""

_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
_LONG = 48 * 3600  # up to here in hours: a backup a day is 26 h old, not 1 d 2 h


def span(seconds: float, units: int = 2) -> str:
    """Seconds in the one or two units that matter: `42 s`, `3 min 20 s`, `26 h`, `2 d 4 h`, `41 d`."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for unit, size in _UNITS[left < _LONG :]:
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
        if unit == "d" and count >= 10:
            break
    return " ".join(filter(None, parts[:units])) or "0 s"
