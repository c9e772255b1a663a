"""When something is due: cron's five fields in a time zone, as slots. Pure; the only user of croniter.

A slot begins where the schedule fires and ends where it fires next. It is done when a run has begun in it, so that the
records of the runs are all the memory there is: after a restart, or a clock that was set back, no slot runs twice; one
that was missed is still open and runs once, however many went by; a run that a wrong clock put into the future is in
another slot and hinders nothing. What outlasts its slot is the next one's run: a clock set back to the first one then
finds none there.

Slots are local times first, each of which is one moment. Where a clock is set back, a time that comes twice is the
earlier one; where it is set forward, a time that never comes is as much later as the clock jumps. croniter alone, given
aware times, fires twice at the former. The price: in a zone with such days an hourly schedule leaves out an hour a
year.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

CRON_REASON = "should be five fields of cron such as `30 2 * * *`"

_NEVER_REASON = "never fires: no such date comes"
_ALIASES = frozenset({"@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually"})
_CHARACTERS = frozenset("0123456789*/,-#")
_NAMES = frozenset("jan feb mar apr may jun jul aug sep oct nov dec sun mon tue wed thu fri sat l".split())  # noqa: SIM905
_LARGEST_JUMP = timedelta(hours=3)  # of a clock that is set forward or back; where one is today, it is an hour
_LOOKED_AT = 400  # slots
_LOOKED_AT_LEAST = timedelta(days=8)


@dataclass(frozen=True)
class Schedule:
    """When something is to run. `jitter` is the longest by which a run is put off, so that not all begin at once."""

    cron: str
    timezone: str = "UTC"
    jitter: timedelta = timedelta(0)


@dataclass(frozen=True)
class Slot:
    """From one firing of a schedule to the next; `ends_at` is no part of it."""

    begins_at: datetime
    ends_at: datetime

    def has(self, moment: datetime) -> bool:
        """Whether the moment lies in it."""
        return self.begins_at <= moment < self.ends_at


def check_cron(text: str) -> str:
    """The text, if it is a schedule that fires at all. Raises ValueError with a reason that follows the name."""
    fields = text.split()
    if text.lower() not in _ALIASES and (len(fields) != 5 or not all(map(_is_plain, fields))):
        raise ValueError(CRON_REASON)
    from croniter import CroniterBadDateError, CroniterError

    try:
        next(_times(text, datetime(2026, 1, 1)))  # noqa: DTZ001  # any day serves
    except CroniterBadDateError:
        raise ValueError(_NEVER_REASON) from None
    except (CroniterError, ValueError, KeyError):
        raise ValueError(CRON_REASON) from None
    return text


def slot_at(schedule: Schedule, moment: datetime) -> Slot:
    """The slot in which the moment lies."""
    zone = _zone(schedule.timezone)
    return Slot(_last(schedule.cron, zone, moment), _next(schedule.cron, zone, moment))


def due_at(schedule: Schedule, slot: Slot, who: str) -> datetime:
    """When the slot's run is to begin: put off by a part of the jitter that `who`, a name, always gets.

    Never by more than half of the slot, so that the run still begins in it.
    """
    most = min(schedule.jitter, (slot.ends_at - slot.begins_at) / 2)
    drawn = int.from_bytes(hashlib.sha256(f"{who} {slot.begins_at.isoformat()}".encode()).digest()[:6], "big")
    return slot.begins_at + most * (drawn / (1 << 48))


def is_done(slot: Slot, begun: Iterable[datetime]) -> bool:
    """Whether one of the runs, by when they began, was this slot's."""
    return any(slot.has(moment) for moment in begun)


def interval(schedule: Schedule, moment: datetime) -> timedelta:
    """The longest time between two slots from then on: how old the newest backup gets when all is well.

    Looked at are 400 slots, a year of daily ones, and at least eight days, which have a weekend.
    """
    longest, earlier = timedelta(0), None
    start = _local(moment, _zone(schedule.timezone))
    for number, later in enumerate(_times(schedule.cron, start)):
        longest = max(longest, later - earlier if earlier else longest)
        earlier = later
        if number >= _LOOKED_AT and later - start > _LOOKED_AT_LEAST:
            break
    return longest


def _is_plain(field: str) -> bool:
    """Whether croniter's own letters (hashes, random times) are not in it: a slot must be the same when asked again."""
    words = "".join(" " if character in _CHARACTERS else character for character in field.lower()).split()
    return field.isascii() and all(word in _NAMES for word in words)


def _times(cron: str, start: datetime, backwards: bool = False) -> Iterator[datetime]:
    """When it fires after the start, or before it; all without a zone."""
    from croniter import croniter

    iterator = croniter(cron, start)
    step = iterator.get_prev if backwards else iterator.get_next
    while True:
        yield step(datetime)


def _zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else ZoneInfo(name)  # a small system may lack the time zone database


def _local(moment: datetime, zone: tzinfo) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


def _moment(local: datetime, zone: tzinfo) -> datetime:
    return local.replace(tzinfo=zone).astimezone(UTC)


def _last(cron: str, zone: tzinfo, moment: datetime) -> datetime:
    """The newest firing that is not after the moment."""
    # Begun later, since the start itself is left out, and by as much as a clock may have been set back.
    start = _local(moment, zone) + timedelta(seconds=1) + _LARGEST_JUMP
    found = (_moment(local, zone) for local in _times(cron, start, backwards=True))
    return next(each for each in found if each <= moment)


def _next(cron: str, zone: tzinfo, moment: datetime) -> datetime:
    """The first firing after the moment."""
    found = (_moment(local, zone) for local in _times(cron, _local(moment, zone) - _LARGEST_JUMP))
    return next(each for each in found if each > moment)
