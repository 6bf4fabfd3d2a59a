"""Budget windows: which span of time a charge belongs to, decided once, at admission.

Two families. A *calendar* window is an hour, day or month in a zone: one bucket from ``start_ms`` to ``end_ms``. A
*rolling* window of length L is a ring of `ROLLING_BUCKETS` buckets of equal width; the oldest bucket counts whole until
it has left the window entirely, so the ring holds between L and L + one bucket of spend: never less than was asked.

All instants are Unix milliseconds, UTC.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Final, Literal
from zoneinfo import ZoneInfo, available_timezones

CalendarUnit = Literal["hour", "day", "month"]

CALENDAR_UNITS: Final[tuple[CalendarUnit, ...]] = ("hour", "day", "month")
ROLLING_BUCKETS: Final = 60
MIN_ROLLING_MS: Final = 60_000
MAX_ROLLING_MS: Final = 366 * 86_400_000
_HOUR_MS: Final = 3_600_000
_ROLLING_TEXT: Final = re.compile(r"(?P<count>[1-9]\d{0,5})(?P<unit>[mhd])")
# The one spelling of each span, for its key is its identity; and within what a double holds, for Lua has no integers.
_SPAN_KEY: Final = re.compile(
    r"c:(?P<start>0|[1-9][0-9]{0,14}):(?P<end>[1-9][0-9]{0,14})"
    r"|r:(?P<bucket_ms>[1-9][0-9]{0,14}):(?P<count>[1-9][0-9]{0,14}):(?P<bucket>0|[1-9][0-9]{0,14})"
)
_MAX_INSTANT_MS: Final = 10**15 - 1
_UNIT_MS: Final = {"m": 60_000, "h": _HOUR_MS, "d": 86_400_000}


class WindowError(ValueError):
    """A window or zone that Farthing does not know. `field` names the offending field."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class CalendarWindow:
    """An hour, day or month of the wall clock in `zone` (an IANA name)."""

    unit: CalendarUnit
    zone: str


@dataclass(frozen=True, slots=True)
class RollingWindow:
    """The last `length_ms` milliseconds."""

    length_ms: int

    @property
    def bucket_ms(self) -> int:
        """Width of one ring bucket, rounded up so that the ring never spans less than the window."""
        return -(-self.length_ms // ROLLING_BUCKETS)


Window = CalendarWindow | RollingWindow


@dataclass(frozen=True, slots=True)
class CalendarSpan:
    """One calendar window: holds for ``start_ms <= t < end_ms``."""

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


Span = CalendarSpan | RollingSpan


def parse_span(key: str) -> Span:
    """The span of a `key()`; raises `ValueError` on any other text."""
    match = _SPAN_KEY.fullmatch(key)
    if match is not None and match["start"] is not None:
        calendar = CalendarSpan(int(match["start"]), int(match["end"]))
        if calendar.start_ms < calendar.end_ms:
            return calendar
    elif match is not None:
        rolling = RollingSpan(int(match["bucket_ms"]), int(match["count"]), int(match["bucket"]))
        if resets_at_ms(rolling) <= _MAX_INSTANT_MS:
            return rolling
    raise ValueError(f"{key[:60]!r} is not a window key")


def parse_window(text: str, zone: str | None = None) -> Window:
    """The window of an operator's text: ``hour``, ``day``, ``month`` (in `zone`, else UTC), ``90m``, ``1h`` or ``30d``.

    Raises `WindowError` naming the field (``window`` or ``zone``) and what would be right.
    """
    if text in CALENDAR_UNITS:
        return CalendarWindow(text, check_zone(zone or "UTC"))
    match = _ROLLING_TEXT.fullmatch(text)
    if match is None:
        raise WindowError(
            "window", f"unknown window {text[:40]!r}; use hour, day, month, or a length like 90m, 1h, 30d"
        )
    if zone is not None:
        raise WindowError(
            "zone", f"window {text!r} is rolling and has no zone; leave zone out, or use hour, day or month"
        )
    length_ms = int(match["count"]) * _UNIT_MS[match["unit"]]
    if not MIN_ROLLING_MS <= length_ms <= MAX_ROLLING_MS:
        raise WindowError("window", f"rolling window {text!r} is out of range; use 1m to 366d")
    return RollingWindow(length_ms)


def format_window(window: Window) -> str:
    """The operator's text of a window (the inverse of `parse_window`, without the zone)."""
    if isinstance(window, CalendarWindow):
        return window.unit
    for unit, size in (("d", _UNIT_MS["d"]), ("h", _UNIT_MS["h"])):
        if window.length_ms % size == 0:
            return f"{window.length_ms // size}{unit}"
    return f"{window.length_ms // _UNIT_MS['m']}m"


def check_zone(zone: str) -> str:
    """`zone` when it is a known IANA time zone; raises `WindowError` otherwise."""
    if zone not in _zones():
        raise WindowError("zone", f"unknown zone {zone[:60]!r}; use an IANA name such as Europe/Berlin or UTC")
    return zone


def span_at(window: Window, now_ms: int) -> Span:
    """The span of `window` that holds the instant `now_ms`."""
    if isinstance(window, RollingWindow):
        return RollingSpan(window.bucket_ms, ROLLING_BUCKETS, now_ms // window.bucket_ms)
    span = _last_spans.get(window)
    if span is None or not span.start_ms <= now_ms < span.end_ms:
        span = _last_spans[window] = _calendar_span(window.unit, ZoneInfo(window.zone), now_ms)
    return span


# Calls come by the thousand while one window lasts, and working it out takes tens of microseconds. One a unit and zone.
_last_spans: dict[CalendarWindow, CalendarSpan] = {}


def resets_at_ms(span: Span) -> int:
    """When all spend of this span has left its budget: the calendar end, or the ring bucket's last instant."""
    if isinstance(span, CalendarSpan):
        return span.end_ms
    return (span.bucket + span.count + 1) * span.bucket_ms


@cache
def _zones() -> frozenset[str]:
    # "localtime" is each host's own, and would give every gateway windows of its own.
    return frozenset(available_timezones() - {"localtime", "Factory"})


def _calendar_span(unit: CalendarUnit, zone: ZoneInfo, now_ms: int) -> CalendarSpan:
    now = datetime.fromtimestamp(now_ms // 1000, zone)
    if unit == "hour":
        # Hours are counted on the instant's own offset, so the two 02:00 hours of an autumn night stay two windows.
        into_hour_ms = (now.minute * 60 + now.second) * 1000 + now_ms % 1000
        return CalendarSpan(now_ms - into_hour_ms, now_ms - into_hour_ms + _HOUR_MS)
    first = now.date() if unit == "day" else now.date().replace(day=1)
    following = first + timedelta(days=1) if unit == "day" else (first + timedelta(days=32)).replace(day=1)
    return CalendarSpan(_local_midnight_ms(first.toordinal(), zone), _local_midnight_ms(following.toordinal(), zone))


def _local_midnight_ms(ordinal: int, zone: ZoneInfo) -> int:
    # fold=0: a midnight that occurs twice is its first instant; one that is skipped, the instant of the skip (PEP 495).
    local = datetime.fromordinal(ordinal).replace(tzinfo=zone)
    return int(local.astimezone(UTC).timestamp()) * 1000
