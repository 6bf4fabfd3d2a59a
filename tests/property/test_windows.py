"""Calendar and interval windows in every zone: they tile time, begin on their anchors and never drift."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

from hypothesis import given
from hypothesis import strategies as st

from services.core import windows
from services.core.windows import (
    CALENDAR_UNITS,
    LONGEST_CALENDAR_MS,
    CalendarSpan,
    CalendarWindow,
    IntervalWindow,
    Window,
    parse_span,
    span_at,
    window_text,
)

ZONES: Final = tuple(sorted(available_timezones() - {"localtime", "Factory"}))
DAY_S: Final = 86_400
FIRST_S: Final = int(datetime(1970, 1, 3, tzinfo=UTC).timestamp())
LAST_S: Final = int(datetime(2040, 1, 1, tzinfo=UTC).timestamp())


def offset_at(zone: str, instant_s: int) -> timedelta | None:
    return datetime.fromtimestamp(instant_s, ZoneInfo(zone)).utcoffset()


@cache
def clock_changes(zone: str) -> tuple[int, ...]:
    """The seconds at which a zone's clock is changed, found by looking every month."""

    def found() -> Iterator[int]:
        at_s = FIRST_S
        while at_s < LAST_S:
            before = offset_at(zone, at_s)
            by_s = at_s + 30 * DAY_S
            if offset_at(zone, by_s) == before:
                at_s = by_s
                continue
            while by_s - at_s > 1:
                middle_s = (at_s + by_s) // 2
                at_s, by_s = (middle_s, by_s) if offset_at(zone, middle_s) == before else (at_s, middle_s)
            yield by_s
            at_s = by_s

    return tuple(found())


@st.composite
def instants(draw: st.DrawFn, zone: str) -> int:
    """Any instant, and those around a change of the zone's clock as often."""
    anywhere = st.integers(FIRST_S * 1000, LAST_S * 1000)
    changes = clock_changes(zone)
    if not changes or draw(st.booleans()):
        return draw(anywhere)
    distance = draw(
        st.one_of(st.integers(-5, 5), st.integers(-7_200_000, 7_200_000), st.integers(-3 * 10**8, 3 * 10**8))
    )
    return draw(st.sampled_from(changes)) * 1000 + distance


calendar_windows = st.builds(
    CalendarWindow,
    st.sampled_from(CALENDAR_UNITS),
    st.sampled_from(ZONES),
    st.integers(0, 6),
    st.integers(1, 31),
    st.integers(1, 12),
)
interval_windows = st.builds(IntervalWindow, st.integers(60_000, 366 * DAY_S * 1000), st.integers(0, 4 * 10**12))


def span(window: Window, now_ms: int) -> CalendarSpan:
    """The span as worked out from nothing."""
    windows._last_spans.clear()
    found = span_at(window, now_ms)
    assert isinstance(found, CalendarSpan)
    return found


@given(st.data())
def test_spans_tile_time_and_are_the_same_for_each_instant_in_them(data: st.DataObject) -> None:
    window = data.draw(st.one_of(calendar_windows, interval_windows))
    now_ms = data.draw(instants(window.zone if isinstance(window, CalendarWindow) else "UTC"))
    found = span(window, now_ms)
    assert found.start_ms <= now_ms < found.end_ms
    assert found.end_ms - found.start_ms <= LONGEST_CALENDAR_MS
    for inside_ms in (found.start_ms, found.end_ms - 1, data.draw(st.integers(found.start_ms, found.end_ms - 1))):
        assert span(window, inside_ms) == found
    assert span(window, found.end_ms).start_ms == found.end_ms
    assert span(window, found.start_ms - 1).end_ms == found.start_ms
    if found.start_ms >= 0:
        assert parse_span(found.key()) == found


@given(st.data())
def test_a_span_begins_with_its_date_on_the_wall_clock(data: st.DataObject) -> None:
    window = data.draw(calendar_windows)
    now_ms = data.draw(instants(window.zone))
    zone = ZoneInfo(window.zone)
    start_s = span(window, now_ms).start_ms // 1000
    local, before = datetime.fromtimestamp(start_s, zone), datetime.fromtimestamp(start_s - 1, zone)
    if window.unit == "hour":
        changed_s = offset_at(window.zone, start_s) != offset_at(window.zone, start_s - 1)
        assert (local.minute, local.second) == (0, 0) or changed_s
        return
    # The clock showed an earlier date until then; at midnight, or where midnight was skipped or is shown again.
    assert before.date() < local.date()
    begins = earliest_date_shown_from(window, local.date())
    assert begins == local.date() or offset_at(window.zone, start_s) != offset_at(window.zone, start_s - 1)


def earliest_date_shown_from(window: CalendarWindow, day: date) -> date:
    """The last date up to `day` on which the unit begins, by looking at one date after the other."""
    while not begins_on(window, day):
        day -= timedelta(days=1)
    return day


def begins_on(window: CalendarWindow, day: date) -> bool:
    """Whether a unit begins on a date: an independent reading of what the options say."""
    if window.unit == "day":
        return True
    if window.unit == "week":
        return day.weekday() == window.week_start
    is_last = (day + timedelta(days=1)).month != day.month
    if not (day.day == window.anchor_day or (is_last and day.day < window.anchor_day)):
        return False
    if window.unit == "month":
        return True
    if window.unit == "quarter":
        return day.month % 3 == window.anchor_month % 3
    return day.month == window.anchor_month


@given(st.data())
def test_no_later_span_depends_on_an_earlier_one(data: st.DataObject) -> None:
    """Thirty windows on, walking from end to end comes to where working it out anew does: nothing drifts."""
    window = data.draw(calendar_windows)
    now_ms = data.draw(instants(window.zone))
    walked = [span(window, now_ms)]
    for _ in range(30):
        walked.append(span(window, walked[-1].end_ms))
    for one in walked:
        assert span(window, (one.start_ms + one.end_ms) // 2) == one


@given(st.data(), st.lists(st.integers(0, 4), min_size=2, max_size=12))
def test_what_was_asked_before_never_shows(data: st.DataObject, turns: list[int]) -> None:
    several = data.draw(st.lists(calendar_windows, min_size=5, max_size=5))
    windows._last_spans.clear()
    asked = []
    for turn in turns:
        now_ms = data.draw(instants(several[turn].zone))
        asked.append((several[turn], now_ms, span_at(several[turn], now_ms)))
    for window, now_ms, found in asked:
        assert span(window, now_ms) == found


def test_every_zone_there_is_has_hours_and_days_that_tile() -> None:
    """At each change of the clock from 1970 to 2040, in every zone: where windows go wrong if they do."""
    seen = set()
    for name in ZONES:
        changes = clock_changes(name)
        if changes in seen:
            continue
        seen.add(changes)
        for change_s in changes:
            for window in (CalendarWindow("hour", name), CalendarWindow("day", name)):
                before, after = span(window, change_s * 1000 - 1), span(window, change_s * 1000)
                assert before.start_ms < change_s * 1000 <= before.end_ms, (window, change_s)
                assert after.start_ms <= change_s * 1000 < after.end_ms, (window, change_s)
                assert after in (before, span(window, before.end_ms)), (window, change_s)
                assert after == before or after.start_ms == before.end_ms, (window, change_s)


@given(
    st.one_of(
        calendar_windows,
        st.builds(
            IntervalWindow, st.integers(1, 366 * 1440).map(lambda minutes: minutes * 60_000), st.integers(0, 10**12)
        ),
    )
)
def test_a_window_as_written_has_the_spans_of_the_window(window: Window) -> None:
    text = window_text(window)
    read = text.parse()
    assert window_text(read) == text
    for now_ms in (0, 1_000_000_000_000, 1_790_000_000_000):
        assert span(read, now_ms) == span(window, now_ms)
