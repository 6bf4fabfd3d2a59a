"""Windows: which span of time a charge belongs to."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.windows import (
    ROLLING_BUCKETS,
    CalendarSpan,
    CalendarUnit,
    CalendarWindow,
    RollingSpan,
    RollingWindow,
    Window,
    WindowError,
    check_zone,
    format_window,
    parse_span,
    parse_window,
    resets_at_ms,
    span_at,
)

HOUR_MS = 3_600_000
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "Asia/Beirut",
         "America/Havana", "America/St_Johns", "Pacific/Chatham", "Atlantic/Azores", "Africa/Casablanca")  # fmt: skip


def at(text: str, zone: str = "UTC", fold: int = 0) -> int:
    """Unix milliseconds of a wall clock's time."""
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp() * 1000)


def calendar(unit: CalendarUnit, zone: str, now_ms: int) -> CalendarSpan:
    span = span_at(CalendarWindow(unit, zone), now_ms)
    assert isinstance(span, CalendarSpan)
    return span


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", "2026-03-29", 23),
        ("Europe/Berlin", "2026-10-25", 25),
        ("Europe/Berlin", "2026-03-30", 24),
        ("America/New_York", "2026-03-08", 23),
        ("America/New_York", "2026-11-01", 25),
        ("Australia/Lord_Howe", "2026-10-04", 23.5),
        ("Australia/Lord_Howe", "2026-04-05", 24.5),
    ],
)
def test_a_day_is_as_long_as_its_wall_clock_makes_it(zone: str, day: str, hours: float) -> None:
    span = calendar("day", zone, at(f"{day}T12:00", zone))
    assert span.start_ms == at(f"{day}T00:00", zone)
    assert span.end_ms - span.start_ms == hours * HOUR_MS


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York"])
def test_the_hour_that_comes_twice_is_two_windows(zone: str) -> None:
    day, hour = ("2026-10-25", "02") if zone == "Europe/Berlin" else ("2026-11-01", "01")
    first = calendar("hour", zone, at(f"{day}T{hour}:30", zone))
    second = calendar("hour", zone, at(f"{day}T{hour}:30", zone, fold=1))
    assert first.end_ms == second.start_ms
    assert second.end_ms - first.start_ms == 2 * HOUR_MS


@pytest.mark.parametrize(
    ("zone", "before"), [("Europe/Berlin", "2026-03-29T01:59"), ("America/New_York", "2026-03-08T01:59")]
)
def test_the_hour_that_is_skipped_is_no_window(zone: str, before: str) -> None:
    last = calendar("hour", zone, at(before, zone))
    following = calendar("hour", zone, last.end_ms)
    assert datetime.fromtimestamp(following.start_ms // 1000, ZoneInfo(zone)).hour == 3
    assert following.start_ms == last.end_ms


@pytest.mark.parametrize(
    ("zone", "now", "start"),
    [
        ("Asia/Kathmandu", "2026-05-01T00:20", "2026-05-01T00:00"),
        ("Asia/Kolkata", "2026-05-01T23:59:59.999", "2026-05-01T23:00"),
        ("Pacific/Chatham", "2026-05-01T12:45", "2026-05-01T12:00"),
    ],
)
def test_hours_begin_on_the_zones_own_full_hour(zone: str, now: str, start: str) -> None:
    span = calendar("hour", zone, at(now, zone))
    assert span == CalendarSpan(at(start, zone), at(start, zone) + HOUR_MS)


@pytest.mark.parametrize(
    ("now", "start", "end"),
    [
        ("2026-01-31T23:59:59.999", "2026-01-01T00:00", "2026-02-01T00:00"),
        ("2026-02-28T12:00", "2026-02-01T00:00", "2026-03-01T00:00"),
        ("2028-02-29T12:00", "2028-02-01T00:00", "2028-03-01T00:00"),
        ("2026-12-31T23:59", "2026-12-01T00:00", "2027-01-01T00:00"),
        ("2026-03-31T00:00", "2026-03-01T00:00", "2026-04-01T00:00"),
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York"])
def test_a_month_runs_from_its_first_midnight_to_the_next_ones(zone: str, now: str, start: str, end: str) -> None:
    assert calendar("month", zone, at(now, zone)) == CalendarSpan(at(start, zone), at(end, zone))


def test_a_midnight_that_is_skipped_begins_its_day_at_the_skip() -> None:
    skip_ms = at("2026-03-08T01:00", "America/Havana")  # 00:00 became 01:00
    span = calendar("day", "America/Havana", skip_ms)
    assert span.start_ms == skip_ms
    assert calendar("day", "America/Havana", skip_ms - 1).end_ms == skip_ms


def test_a_midnight_that_comes_twice_begins_its_day_the_first_time() -> None:
    first_ms = at("2026-11-01T00:00", "America/Havana")
    second_ms = at("2026-11-01T00:00", "America/Havana", fold=1)
    assert second_ms - first_ms == HOUR_MS
    assert calendar("day", "America/Havana", second_ms + 60_000).start_ms == first_ms


@given(
    zone=st.sampled_from(ZONES),
    unit=st.sampled_from(("day", "month")),
    now_ms=st.integers(at("2024-01-01T00:00"), at("2037-12-31T00:00")),
)
def test_days_and_months_tile_time(zone: str, unit: CalendarUnit, now_ms: int) -> None:
    span = calendar(unit, zone, now_ms)
    assert span.start_ms <= now_ms < span.end_ms
    assert calendar(unit, zone, span.start_ms) == calendar(unit, zone, span.end_ms - 1) == span
    assert calendar(unit, zone, span.end_ms).start_ms == span.end_ms
    assert calendar(unit, zone, span.start_ms - 1).end_ms == span.start_ms


@given(zone=st.sampled_from(ZONES), now_ms=st.integers(at("2024-01-01T00:00"), at("2037-12-31T00:00")))
def test_an_hour_holds_its_instant_and_lasts_an_hour(zone: str, now_ms: int) -> None:
    span = calendar("hour", zone, now_ms)
    assert span.start_ms <= now_ms < span.end_ms == span.start_ms + HOUR_MS


def test_every_zone_there_is_has_days_that_tile() -> None:
    """At each change of the clock in one year, in every zone: where windows go wrong if they do."""
    halves = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=12 * n) for n in range(2 * 366)]
    seen = set()
    for zone in sorted(available_timezones()):
        info = ZoneInfo(zone)
        offsets = tuple(half.astimezone(info).utcoffset() for half in halves)
        if offsets in seen:
            continue
        seen.add(offsets)
        for number in [n for n in range(1, len(halves)) if offsets[n] != offsets[n - 1]]:
            start_ms = int(halves[number - 1].timestamp() * 1000)
            for now_ms in range(start_ms, start_ms + 12 * HOUR_MS, 15 * 60_000):
                span = calendar("day", zone, now_ms)
                assert span.start_ms <= now_ms < span.end_ms, (zone, now_ms)
                assert calendar("day", zone, span.end_ms).start_ms == span.end_ms, (zone, now_ms)


@given(length_ms=st.integers(60_000, 366 * 86_400_000), now_ms=st.integers(0, 10**13))
def test_a_ring_spans_at_least_its_window_and_at_most_a_bucket_more(length_ms: int, now_ms: int) -> None:
    window = RollingWindow(length_ms)
    span = span_at(window, now_ms)
    assert isinstance(span, RollingSpan)
    assert span.bucket * span.bucket_ms <= now_ms < (span.bucket + 1) * span.bucket_ms
    counted_for_ms = resets_at_ms(span) - now_ms
    assert length_ms < counted_for_ms <= span.bucket_ms * (ROLLING_BUCKETS + 1)
    assert span.bucket_ms * ROLLING_BUCKETS - length_ms < ROLLING_BUCKETS


def test_what_resets_when() -> None:
    assert resets_at_ms(CalendarSpan(5, 9)) == 9
    assert resets_at_ms(RollingSpan(1000, 60, 100)) == 161_000


@given(
    st.one_of(
        st.tuples(st.integers(0, 10**13), st.integers(1, 10**9)).map(lambda pair: CalendarSpan(pair[0], sum(pair))),
        st.builds(RollingSpan, st.integers(1, 10**9), st.integers(1, 1000), st.integers(0, 10**5)),
    )
)
def test_a_spans_key_is_read_back(span: CalendarSpan | RollingSpan) -> None:
    assert parse_span(span.key()) == span


@pytest.mark.parametrize(
    "key",
    ["", "c", "c:", "c:1", "c:2:1", "c:1:1", "c:1:2:3", "c:-1:2", "c:01:2", "c:1:+2", "c:1:1_0", "c:1: 2", "c:1:2 ",
     "c:1:2\n", "c:1:1e3", "c:1:\u0662", "r:1:1", "r:0:1:1", "r:1:0:1", "r:1:1:-1", "r:1:1:1:1", "x:1:2",
     "c:1:1000000000000000", "r:1000000:60:1000000000", "r:999999999999999:999999999999999:1"],
)  # fmt: skip
def test_any_other_text_is_no_key(key: str) -> None:
    with pytest.raises(ValueError, match="is not a window key"):
        parse_span(key)


@pytest.mark.parametrize(
    ("text", "zone", "window"),
    [
        ("hour", None, CalendarWindow("hour", "UTC")),
        ("day", "Europe/Berlin", CalendarWindow("day", "Europe/Berlin")),
        ("month", "America/New_York", CalendarWindow("month", "America/New_York")),
        ("1m", None, RollingWindow(60_000)),
        ("90m", None, RollingWindow(90 * 60_000)),
        ("1h", None, RollingWindow(HOUR_MS)),
        ("30d", None, RollingWindow(30 * 24 * HOUR_MS)),
        ("366d", None, RollingWindow(366 * 24 * HOUR_MS)),
    ],
)
def test_an_operators_text_is_read_and_written(text: str, zone: str | None, window: Window) -> None:
    assert parse_window(text, zone) == window
    assert format_window(window) == text


@pytest.mark.parametrize(
    ("text", "zone", "field"),
    [
        ("week", None, "window"),
        ("", None, "window"),
        ("0h", None, "window"),
        ("-1h", None, "window"),
        ("1.5h", None, "window"),
        ("1s", None, "window"),
        ("367d", None, "window"),
        ("999999d", None, "window"),
        ("1h ", None, "window"),
        ("1h", "UTC", "zone"),
        ("day", "Mars/Olympus", "zone"),
        ("day", "../../etc/passwd", "zone"),
        ("day", "Europe", "zone"),
        ("day", "localtime", "zone"),
        ("day", "right/UTC", "zone"),
        ("day", "Europe/Berlin\x00", "zone"),
        ("day", "x" * 500, "zone"),
    ],
)
def test_a_wrong_text_names_its_field(text: str, zone: str | None, field: str) -> None:
    with pytest.raises(WindowError) as caught:
        parse_window(text, zone)
    assert caught.value.field == field
    assert len(str(caught.value)) < 200


def test_a_zone_is_given_back_as_it_is() -> None:
    assert check_zone("Asia/Kathmandu") == "Asia/Kathmandu"
