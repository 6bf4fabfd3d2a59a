"""Budget windows: which span of time a charge belongs to, decided once, at admission.

Five families. A *calendar* window is an hour, day, week, month, quarter or year in a zone, an *interval* one of equal
spans from an anchor on: one bucket from ``start_ms`` to ``end_ms``. A *rolling* window of length L is a ring of
`ROLLING_BUCKETS` buckets of equal width; the oldest bucket counts whole until it has left the window entirely, so the
ring holds between L and L + one bucket of spend: never less than was asked. A *session* and a *lifetime* are one bucket
each, for as long as they last.

Where a calendar window begins is worked out from the date of the instant it is asked for, never from where the one
before ended, so nothing drifts.

All instants are Unix milliseconds, UTC.
"""

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Final, Literal
from zoneinfo import ZoneInfo, available_timezones

from services.core.calendars import days_at, hour_at

CalendarUnit = Literal["hour", "day", "week", "month", "quarter", "year"]

CALENDAR_UNITS: Final[tuple[CalendarUnit, ...]] = ("hour", "day", "week", "month", "quarter", "year")
ROLLING_BUCKETS: Final = 60
_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS
MIN_ROLLING_MS: Final = 60_000
MAX_ROLLING_MS: Final = 366 * _DAY_MS
# No calendar or interval window lasts longer: a leap year, in a zone that moves over the date line and an hour of
# summer in it.
LONGEST_CALENDAR_MS: Final = 367 * _DAY_MS + _HOUR_MS
_LENGTH: Final = r"(?P<count>[1-9]\d{0,5})(?P<unit>[mhdw])"
_ROLLING_TEXT: Final = re.compile(_LENGTH, re.ASCII)
_INTERVAL_TEXT: Final = re.compile("every " + _LENGTH, re.ASCII)
_INSTANT_TEXT: Final = re.compile(
    r"(?:19[789]|2[01]\d)\d-\d\d-\d\dT\d\d:\d\d(?::\d\d(?:\.\d{1,3})?)?(?:Z|[+-]\d\d:\d\d)", re.ASCII
)
# The one spelling of each span, for its key is its identity; and within what a double holds, for Lua has no integers.
_SPAN_KEY: Final = re.compile(
    r"c:(?P<start>0|[1-9][0-9]{0,14}):(?P<end>[1-9][0-9]{0,14})"
    r"|r:(?P<bucket_ms>[1-9][0-9]{0,14}):(?P<count>[1-9][0-9]{0,14}):(?P<bucket>0|[1-9][0-9]{0,14})"
    r"|s:(?P<session>[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,127})|(?P<lifetime>l)"
)
_MAX_INSTANT_MS: Final = 10**15 - 1
_UNIT_MS: Final = {"m": 60_000, "h": _HOUR_MS, "d": _DAY_MS, "w": 7 * _DAY_MS}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_LAST_SPANS: Final = 4_096


class WindowError(ValueError):
    """A window or zone that Farthing does not know. `field` names the offending field."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class CalendarWindow:
    """A unit of the wall clock in `zone` (an IANA name).

    `week_start` is 0 for Monday to 6 for Sunday, and counts for weeks only. `anchor_day` is the day of the month on
    which months, quarters and years begin, the last one of shorter months; `anchor_month` (1 to 12) the month in which
    years begin, and every third month from it a quarter.
    """

    unit: CalendarUnit
    zone: str
    week_start: int = 0
    anchor_day: int = 1
    anchor_month: int = 1


@dataclass(frozen=True, slots=True)
class IntervalWindow:
    """Spans of `length_ms` milliseconds, one after another, one of them beginning at `anchor_ms`."""

    length_ms: int
    anchor_ms: int


@dataclass(frozen=True, slots=True)
class SessionWindow:
    """One span for each session, however long it lasts."""


@dataclass(frozen=True, slots=True)
class LifetimeWindow:
    """One span, for all time."""


@dataclass(frozen=True, slots=True)
class RollingWindow:
    """The last `length_ms` milliseconds."""

    length_ms: int

    @property
    def bucket_ms(self) -> int:
        """Width of one ring bucket, rounded up so that the ring never spans less than the window."""
        return -(-self.length_ms // ROLLING_BUCKETS)


Window = CalendarWindow | RollingWindow | IntervalWindow | SessionWindow | LifetimeWindow


@dataclass(frozen=True, slots=True)
class CalendarSpan:
    """One calendar or interval window: holds for ``start_ms <= t < end_ms``."""

    start_ms: int
    end_ms: int

    def key(self) -> str:
        """The text form carried in events."""
        return f"c:{self.start_ms}:{self.end_ms}"


@dataclass(frozen=True, slots=True)
class RollingSpan:
    """One bucket of a ring: `bucket` is ``floor(t / bucket_ms)``; the ring is live for `count` + 1 buckets."""

    bucket_ms: int
    count: int
    bucket: int

    def key(self) -> str:
        """The text form carried in events."""
        return f"r:{self.bucket_ms}:{self.count}:{self.bucket}"


@dataclass(frozen=True, slots=True)
class SessionSpan:
    """All of one session."""

    session: str

    def key(self) -> str:
        """The text form carried in events."""
        return f"s:{self.session}"


@dataclass(frozen=True, slots=True)
class LifetimeSpan:
    """All time."""

    def key(self) -> str:
        """The text form carried in events."""
        return "l"


Span = CalendarSpan | RollingSpan | SessionSpan | LifetimeSpan


def parse_span(key: str) -> Span:
    """The span of a `key()`; raises `ValueError` on any other text."""
    match = _SPAN_KEY.fullmatch(key)
    if match is not None and match["start"] is not None:
        calendar = CalendarSpan(int(match["start"]), int(match["end"]))
        if calendar.start_ms < calendar.end_ms:
            return calendar
    elif match is not None and match["session"] is not None:
        return SessionSpan(match["session"])
    elif match is not None and match["lifetime"] is not None:
        return LifetimeSpan()
    elif match is not None:
        rolling = RollingSpan(int(match["bucket_ms"]), int(match["count"]), int(match["bucket"]))
        if (rolling.bucket + rolling.count + 1) * rolling.bucket_ms <= _MAX_INSTANT_MS:
            return rolling
    raise ValueError(f"{key[:60]!r} is not a window key")


@dataclass(frozen=True, slots=True)
class WindowText:
    """A window as operators write it: the arguments of `parse_window`. What does not belong to a window is None."""

    window: str
    zone: str | None = None
    week_start: int | None = None
    anchor_day: int | None = None
    anchor_month: int | None = None
    anchor: str | None = None

    def parse(self) -> Window:
        """The window. Raises `WindowError`."""
        return parse_window(
            self.window,
            self.zone,
            week_start=self.week_start,
            anchor_day=self.anchor_day,
            anchor_month=self.anchor_month,
            anchor=self.anchor,
        )


def parse_window(
    text: str,
    zone: str | None = None,
    *,
    week_start: int | None = None,
    anchor_day: int | None = None,
    anchor_month: int | None = None,
    anchor: str | None = None,
) -> Window:
    """The window of an operator's text.

    ``hour``, ``day``, ``week``, ``month``, ``quarter`` or ``year`` (in `zone`, else UTC; the rest as in
    `CalendarWindow`), ``90m``, ``1h``, ``30d`` or ``2w`` (rolling), ``every 14d`` (from `anchor` on, an RFC 3339
    instant, else from the Unix epoch), ``session``, ``lifetime``. Raises `WindowError` naming the field and what would
    be right; an option that has no meaning for the window is such a field.
    """
    options = WindowText(text, zone, week_start, anchor_day, anchor_month, anchor)
    window = _window_of(options)
    fitting = window_text(window)
    for name in ("zone", "week_start", "anchor_day", "anchor_month", "anchor"):
        if getattr(options, name) is not None and getattr(fitting, name) is None:
            raise WindowError(name, f"{name} has no meaning for window {text!r}; leave {name} out, or {_FITS[name]}")
    return window


def window_text(window: Window) -> WindowText:
    """The inverse of `parse_window`: every option that has a meaning for the window, spelled out."""
    text = format_window(window)
    if isinstance(window, IntervalWindow):
        anchor = (_EPOCH + timedelta(milliseconds=window.anchor_ms)).isoformat(timespec="milliseconds")[:23] + "Z"
        return WindowText(text, anchor=anchor)
    if not isinstance(window, CalendarWindow):
        return WindowText(text)
    return WindowText(
        text,
        window.zone,
        week_start=window.week_start if window.unit == "week" else None,
        anchor_day=window.anchor_day if window.unit in ("month", "quarter", "year") else None,
        anchor_month=window.anchor_month if window.unit in ("quarter", "year") else None,
    )


def format_window(window: Window) -> str:
    """The operator's text of a window, without its options."""
    if isinstance(window, CalendarWindow):
        return window.unit
    if isinstance(window, SessionWindow):
        return "session"
    if isinstance(window, LifetimeWindow):
        return "lifetime"
    unit = next((unit for unit in "dh" if window.length_ms % _UNIT_MS[unit] == 0), "m")
    length = f"{window.length_ms // _UNIT_MS[unit]}{unit}"
    return f"every {length}" if isinstance(window, IntervalWindow) else length


def is_same_window(one: Window, other: Window) -> bool:
    """Whether two windows have the same spans, however they are written."""
    return _canonical(one) == _canonical(other)


def check_zone(zone: str) -> str:
    """`zone` when it is a known IANA time zone; raises `WindowError` otherwise."""
    if zone not in _zones():
        raise WindowError("zone", f"unknown zone {zone[:60]!r}; use an IANA name such as Europe/Berlin or UTC")
    return zone


def span_at(window: Window, now_ms: int, session: str | None = None) -> Span:
    """The span of `window` that holds the instant `now_ms`.

    Raises `ValueError` when the window is the session, and there is none.
    """
    if isinstance(window, RollingWindow):
        return RollingSpan(window.bucket_ms, ROLLING_BUCKETS, now_ms // window.bucket_ms)
    if isinstance(window, SessionWindow):
        if session is None:
            raise ValueError("a window that is a session needs the session")
        return SessionSpan(session)
    if isinstance(window, LifetimeWindow):
        return LifetimeSpan()
    if isinstance(window, IntervalWindow):
        start_ms = now_ms - (now_ms - window.anchor_ms) % window.length_ms
        return CalendarSpan(start_ms, start_ms + window.length_ms)
    span = _last_spans.get(window)
    if span is None or not span.start_ms <= now_ms < span.end_ms:
        span = _calendar_span(window, now_ms)
        if len(_last_spans) >= _MAX_LAST_SPANS:
            _last_spans.clear()
        _last_spans[window] = span
    return span


# Calls come by the thousand while one window lasts, and working it out takes tens of microseconds. One a window.
_last_spans: dict[CalendarWindow, CalendarSpan] = {}


def resets_at_ms(span: Span) -> int | None:
    """When all spend of this span has left its budget: the calendar end, or the ring bucket's last instant.

    None for a session and for all time, which have no end.
    """
    if isinstance(span, CalendarSpan):
        return span.end_ms
    if not isinstance(span, RollingSpan):
        return None
    return (span.bucket + span.count + 1) * span.bucket_ms


@cache
def _zones() -> frozenset[str]:
    # "localtime" is each host's own, and would give every gateway windows of its own.
    return frozenset(available_timezones() - {"localtime", "Factory"})


# For an option that does not fit its window: the windows it would fit.
_FITS: Final = {
    "zone": f"use one of {', '.join(CALENDAR_UNITS)}",
    "week_start": "use window week",
    "anchor_day": "use one of month, quarter, year",
    "anchor_month": "use quarter or year",
    "anchor": "use an interval such as every 14d",
}


def _window_of(options: WindowText) -> Window:
    if options.window in CALENDAR_UNITS:
        return CalendarWindow(
            options.window,
            check_zone("UTC" if options.zone is None else options.zone),
            _in_range("week_start", options.week_start, 0, 6, 0, " (Monday to Sunday)"),
            _in_range("anchor_day", options.anchor_day, 1, 31, 1, ", the day of the month"),
            _in_range("anchor_month", options.anchor_month, 1, 12, 1, " (January to December)"),
        )
    if options.window == "session":
        return SessionWindow()
    if options.window == "lifetime":
        return LifetimeWindow()
    if match := _ROLLING_TEXT.fullmatch(options.window):
        return RollingWindow(_length_ms(match))
    if match := _INTERVAL_TEXT.fullmatch(options.window):
        return IntervalWindow(_length_ms(match), 0 if options.anchor is None else _instant_ms(options.anchor))
    raise WindowError(
        "window",
        f"unknown window {options.window[:40]!r}; use {', '.join(CALENDAR_UNITS)}, a length like 90m, 1h, 30d or 2w, "
        "every 14d, session or lifetime",
    )


def _length_ms(match: re.Match[str]) -> int:
    length_ms = int(match["count"]) * _UNIT_MS[match["unit"]]
    if not MIN_ROLLING_MS <= length_ms <= MAX_ROLLING_MS:
        raise WindowError("window", f"the length of window {match[0]!r} is out of range; use 1m to 366d")
    return length_ms


def _instant_ms(text: str) -> int:
    try:
        if _INSTANT_TEXT.fullmatch(text) is None:
            raise ValueError(text)
        instant_ms = (datetime.fromisoformat(text) - _EPOCH) // timedelta(milliseconds=1)
    except ValueError as error:
        raise WindowError(
            "anchor", "anchor must be an instant from 1970 to 2199 such as 2026-01-05T09:00:00Z or ...T09:00:00+01:00"
        ) from error
    if instant_ms < 0:
        raise WindowError("anchor", "anchor must not be before 1970")
    return instant_ms


def _in_range(name: str, value: int | None, least: int, most: int, default: int, meaning: str) -> int:
    if value is None:
        return default
    if not least <= value <= most:
        raise WindowError(name, f"{name} must be from {least} to {most}{meaning}")
    return value


def _canonical(window: Window) -> Window:
    if isinstance(window, IntervalWindow):
        return replace(window, anchor_ms=window.anchor_ms % window.length_ms)
    if isinstance(window, CalendarWindow) and window.unit == "quarter":
        return replace(window, anchor_month=(window.anchor_month - 1) % 3 + 1)
    return window


def _calendar_span(window: CalendarWindow, now_ms: int) -> CalendarSpan:
    zone = ZoneInfo(window.zone)
    if window.unit == "hour":
        start_s, end_s = hour_at(now_ms // 1000, zone)
    else:
        start_s, end_s = days_at(
            window.unit, now_ms // 1000, zone, window.week_start, window.anchor_day, window.anchor_month
        )
    return CalendarSpan(start_s * 1000, end_s * 1000)
