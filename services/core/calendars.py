"""The wall clock's hours, days, weeks, months, quarters and years, as instants (`core.windows`).

A day begins at the first instant at which the wall clock shows its date or a later one, and lasts until the next one
begins. So days, and all that is made of days, follow one another without gap or overlap whatever the clock does: a
midnight that is skipped is the instant of the skip, one that comes twice is its first instant, a date that is left out
is an empty day. Hours are those of the clock's own offset: of the two 02:00 hours of an autumn night each is one, and
where the clock moves by a part of an hour, the hour ends there.

All instants here are whole seconds since the Unix epoch; the zones' clocks never change between two.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Final, Literal
from zoneinfo import ZoneInfo

DaysUnit = Literal["day", "week", "month", "quarter", "year"]

_MONTHS: Final = {"month": 1, "quarter": 3, "year": 12}
_HOUR_S: Final = 3_600


def hour_at(now_s: int, zone: ZoneInfo) -> tuple[int, int]:
    """Begin and end of the hour that holds `now_s`."""
    past_hour_s = _offset_s(now_s, zone) % _HOUR_S

    def is_of_this_clock(instant_s: int) -> bool:
        return _offset_s(instant_s, zone) % _HOUR_S == past_hour_s

    start_s = now_s - (now_s + past_hour_s) % _HOUR_S
    end_s = start_s + _HOUR_S
    if not is_of_this_clock(start_s):
        start_s = _first(is_of_this_clock, start_s, now_s)
    if not is_of_this_clock(end_s - 1):
        end_s = _first(lambda instant_s: not is_of_this_clock(instant_s), now_s, end_s - 1)
    return start_s, end_s


def days_at(
    unit: DaysUnit, now_s: int, zone: ZoneInfo, week_start: int, anchor_day: int, anchor_month: int
) -> tuple[int, int]:
    """Begin and end of the day, week, month, quarter or year that holds `now_s`. The rest is as in `CalendarWindow`."""
    day = datetime.fromtimestamp(now_s, zone).date()
    # A clock put back over midnight shows the date before again; the day that has begun goes on.
    while _day_begins_s(day + timedelta(days=1), zone) <= now_s:
        day += timedelta(days=1)
    first, following = _dates_around(day, unit, week_start, anchor_day, anchor_month)
    return _day_begins_s(first, zone), _day_begins_s(following, zone)


def _dates_around(day: date, unit: DaysUnit, week_start: int, anchor_day: int, anchor_month: int) -> tuple[date, date]:
    """The first date of the unit that `day` is in, and of the one after it."""
    if unit == "day":
        return day, day + timedelta(days=1)
    if unit == "week":
        first = day - timedelta(days=(day.weekday() - week_start) % 7)
        return first, first + timedelta(days=7)
    months = _MONTHS[unit]
    month = day.year * 12 + day.month - 1
    month -= (month - (anchor_month - 1)) % months
    if day < _anchored(month, anchor_day):
        month -= months
    return _anchored(month, anchor_day), _anchored(month + months, anchor_day)


def _anchored(month: int, anchor_day: int) -> date:
    """The anchor's date in a month, counted from January of year 0."""
    first = date(month // 12, month % 12 + 1, 1)
    next_month = (first + timedelta(days=31)).replace(day=1)
    return first + timedelta(days=min(anchor_day, (next_month - first).days) - 1)


def _day_begins_s(day: date, zone: ZoneInfo) -> int:
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    begins_s = _instant_s(midnight)
    with_later_offset_s = _instant_s(midnight.replace(fold=1))
    if begins_s <= with_later_offset_s:
        return begins_s
    # The clock skips this midnight (PEP 495): the day begins with the skip, which may be before midnight would be.
    return _first(
        lambda instant_s: datetime.fromtimestamp(instant_s, zone).date() >= day, with_later_offset_s, begins_s
    )


def _instant_s(local: datetime) -> int:
    return int(local.astimezone(UTC).timestamp())


def _offset_s(instant_s: int, zone: ZoneInfo) -> int:
    offset = datetime.fromtimestamp(instant_s, zone).utcoffset()
    assert offset is not None, "a zone's time has an offset"
    return offset // timedelta(seconds=1)


def _first(holds: Callable[[int], bool], before_s: int, by_s: int) -> int:
    """The first second at which `holds`, which it does at `by_s` and not at `before_s`."""
    while by_s - before_s > 1:
        middle_s = (before_s + by_s) // 2
        if holds(middle_s):
            by_s = middle_s
        else:
            before_s = middle_s
    return by_s
