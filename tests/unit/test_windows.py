"""Windows: which span of time a charge belongs to."""

from datetime import datetime
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core import windows
from services.core.windows import (
    CALENDAR_UNITS,
    LONGEST_CALENDAR_MS,
    ROLLING_BUCKETS,
    CalendarSpan,
    CalendarUnit,
    CalendarWindow,
    IntervalWindow,
    LifetimeSpan,
    LifetimeWindow,
    RollingSpan,
    RollingWindow,
    SessionSpan,
    SessionWindow,
    Window,
    WindowError,
    WindowText,
    check_zone,
    format_window,
    is_same_window,
    parse_span,
    parse_window,
    resets_at_ms,
    span_at,
    window_text,
)

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
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


def test_a_midnight_shown_again_before_its_day_is_over_begins_no_second_day() -> None:
    # Newfoundland put its clocks back at one minute past midnight, to 23:01 of the day before.
    midnight_ms = at("2006-10-29T00:00", "America/St_Johns")
    again_ms = midnight_ms + 31 * 60_000
    assert datetime.fromtimestamp(again_ms // 1000, ZoneInfo("America/St_Johns")).day == 28
    span = calendar("day", "America/St_Johns", again_ms)
    assert span == CalendarSpan(midnight_ms, at("2006-10-30T00:00", "America/St_Johns"))
    assert span.end_ms - span.start_ms == 25 * HOUR_MS


def test_a_date_that_a_zone_left_out_is_no_day() -> None:
    last = calendar("day", "Pacific/Apia", at("2011-12-29T12:00", "Pacific/Apia"))
    following = calendar("day", "Pacific/Apia", at("2011-12-31T12:00", "Pacific/Apia"))
    assert last.end_ms == following.start_ms
    assert last.end_ms - last.start_ms == following.end_ms - following.start_ms == 24 * HOUR_MS


def test_a_midnight_inside_a_skip_begins_its_day_with_the_skip() -> None:
    # Toronto's clocks went from 23:30 to 00:30.
    before_ms = at("1919-03-30T23:29", "America/Toronto")
    skip_ms = before_ms + 60_000
    span = calendar("day", "America/Toronto", skip_ms)
    assert span.start_ms == skip_ms == calendar("day", "America/Toronto", before_ms).end_ms
    assert span.end_ms - span.start_ms == 23.5 * HOUR_MS


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Africa/Cairo", "2026-04-24", 23),  # skips midnight
        ("Africa/Cairo", "2026-10-29", 25),  # back from midnight
        ("America/Sao_Paulo", "2018-11-04", 23),  # skips midnight
        ("America/Sao_Paulo", "2018-02-17", 25),  # back from midnight
    ],
)
def test_days_whose_clocks_change_at_midnight_are_whole(zone: str, day: str, hours: int) -> None:
    span = calendar("day", zone, at(f"{day}T12:00", zone))
    assert span.end_ms - span.start_ms == hours * HOUR_MS
    assert calendar("day", zone, span.start_ms - 1).end_ms == span.start_ms
    assert calendar("day", zone, span.end_ms).start_ms == span.end_ms


def test_an_hour_ends_where_the_clock_moves_by_half_of_one() -> None:
    zone, forward_ms = "Australia/Lord_Howe", at("2026-10-04T02:30", "Australia/Lord_Howe")  # 02:00 became 02:30
    assert calendar("hour", zone, forward_ms - 1) == CalendarSpan(forward_ms - HOUR_MS, forward_ms)
    assert calendar("hour", zone, forward_ms) == CalendarSpan(forward_ms, forward_ms + HOUR_MS // 2)
    back_ms = at("2026-04-05T01:30", zone) + HOUR_MS // 2  # 02:00 became 01:30
    assert calendar("hour", zone, back_ms - 1) == CalendarSpan(back_ms - HOUR_MS, back_ms)
    assert calendar("hour", zone, back_ms) == CalendarSpan(back_ms, back_ms + HOUR_MS // 2)


@pytest.mark.parametrize(
    ("window", "now", "start", "end"),
    [
        (CalendarWindow("week", "UTC"), "2026-11-29T23:59", "2026-11-23", "2026-11-30"),
        (CalendarWindow("week", "UTC"), "2026-11-30T00:00", "2026-11-30", "2026-12-07"),
        (CalendarWindow("week", "UTC", week_start=6), "2026-11-29T00:00", "2026-11-29", "2026-12-06"),
        (CalendarWindow("week", "UTC", week_start=6), "2026-11-28T23:59", "2026-11-22", "2026-11-29"),
        (CalendarWindow("week", "Europe/Berlin", week_start=4), "2026-10-25T12:00", "2026-10-23", "2026-10-30"),
        (CalendarWindow("month", "UTC", anchor_day=15), "2026-03-14T23:59", "2026-02-15", "2026-03-15"),
        (CalendarWindow("month", "UTC", anchor_day=31), "2026-02-27T23:59", "2026-01-31", "2026-02-28"),
        (CalendarWindow("month", "UTC", anchor_day=31), "2026-02-28T00:00", "2026-02-28", "2026-03-31"),
        (CalendarWindow("month", "UTC", anchor_day=31), "2028-02-29T00:00", "2028-02-29", "2028-03-31"),
        (CalendarWindow("month", "UTC", anchor_day=31), "2026-04-30T00:00", "2026-04-30", "2026-05-31"),
        (CalendarWindow("month", "UTC", anchor_day=30), "2026-12-30T00:00", "2026-12-30", "2027-01-30"),
        (CalendarWindow("month", "Asia/Tokyo", anchor_day=29), "2027-03-01T00:00", "2027-02-28", "2027-03-29"),
        (CalendarWindow("quarter", "UTC"), "2026-03-31T23:59", "2026-01-01", "2026-04-01"),
        (CalendarWindow("quarter", "UTC"), "2026-12-31T23:59", "2026-10-01", "2027-01-01"),
        (CalendarWindow("quarter", "UTC", anchor_month=2), "2027-01-31T00:00", "2026-11-01", "2027-02-01"),
        (CalendarWindow("quarter", "UTC", anchor_month=11), "2027-01-31T00:00", "2026-11-01", "2027-02-01"),
        (CalendarWindow("quarter", "UTC", anchor_day=31, anchor_month=2), "2026-03-01", "2026-02-28", "2026-05-31"),
        (CalendarWindow("year", "UTC"), "2026-12-31T23:59", "2026-01-01", "2027-01-01"),
        (CalendarWindow("year", "America/New_York", anchor_month=10), "2026-09-30T23:59", "2025-10-01", "2026-10-01"),
        (CalendarWindow("year", "UTC", anchor_day=29, anchor_month=2), "2027-03-01", "2027-02-28", "2028-02-29"),
        (CalendarWindow("year", "UTC", anchor_day=6, anchor_month=4), "2026-04-05T23:59", "2025-04-06", "2026-04-06"),
    ],
)
def test_weeks_months_quarters_and_years_begin_on_their_anchors(
    window: CalendarWindow, now: str, start: str, end: str
) -> None:
    assert span_at(window, at(now, window.zone)) == CalendarSpan(at(start, window.zone), at(end, window.zone))


@pytest.mark.parametrize(
    ("anchor_ms", "now_ms", "start_ms"),
    [(0, 5, 0), (3, 5, 3), (3, 2, -7), (1_000_003, 25, 23), (3, 13, 13), (3, 12, 3)],
)
def test_intervals_follow_one_another_from_their_anchor_both_ways(anchor_ms: int, now_ms: int, start_ms: int) -> None:
    assert span_at(IntervalWindow(10, anchor_ms), now_ms) == CalendarSpan(start_ms, start_ms + 10)


def test_a_session_and_a_lifetime_are_one_span_each() -> None:
    assert span_at(SessionWindow(), 5, "s1") == SessionSpan("s1")
    assert span_at(LifetimeWindow(), 5) == span_at(LifetimeWindow(), 10**13) == LifetimeSpan()
    assert resets_at_ms(SessionSpan("s1")) is None
    assert resets_at_ms(LifetimeSpan()) is None
    assert (parse_span("s:a:b@c"), parse_span("l")) == (SessionSpan("a:b@c"), LifetimeSpan())
    with pytest.raises(ValueError, match="needs the session"):
        span_at(SessionWindow(), 5)


def test_what_was_asked_before_never_shows() -> None:
    """Windows that differ in one option only, asked in turns, over an edge and back."""
    several = [
        CalendarWindow("month", zone, anchor_day=day)
        for zone in ("UTC", "Asia/Tokyo", "America/New_York")
        for day in (1, 28, 30, 31)
    ] + [CalendarWindow("week", "UTC", week_start=day) for day in range(7)]
    instants = [at("2026-02-27T12:00"), at("2026-03-30T23:30"), at("2026-01-30T00:30"), at("2026-02-27T12:00")]
    warm = {}
    for now_ms in instants:
        for window in several:
            warm[window, now_ms] = span_at(window, now_ms)
    for (window, now_ms), span in warm.items():
        windows._last_spans.clear()
        assert span_at(window, now_ms) == span


def test_what_is_kept_of_windows_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "_MAX_LAST_SPANS", 5)
    windows._last_spans.clear()
    for zone in sorted(available_timezones() - {"localtime", "Factory"})[:40]:
        assert isinstance(span_at(CalendarWindow("day", zone), at("2026-05-05T05:05")), CalendarSpan)
        assert len(windows._last_spans) <= 5


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
        ("week", "Europe/Berlin", CalendarWindow("week", "Europe/Berlin")),
        ("quarter", None, CalendarWindow("quarter", "UTC")),
        ("year", None, CalendarWindow("year", "UTC")),
        ("every 14d", None, IntervalWindow(14 * DAY_MS, 0)),
        ("every 90m", None, IntervalWindow(90 * 60_000, 0)),
        ("session", None, SessionWindow()),
        ("lifetime", None, LifetimeWindow()),
    ],
)
def test_an_operators_text_is_read_and_written(text: str, zone: str | None, window: Window) -> None:
    assert parse_window(text, zone) == window
    assert format_window(window) == text


def test_weeks_are_a_unit_of_length_that_is_written_in_days() -> None:
    assert parse_window("2w") == RollingWindow(14 * DAY_MS)
    assert parse_window("every 2w") == IntervalWindow(14 * DAY_MS, 0)
    assert format_window(parse_window("2w")) == "14d"


@pytest.mark.parametrize(
    ("text", "window"),
    [
        (WindowText("week", "UTC", week_start=6), CalendarWindow("week", "UTC", 6)),
        (WindowText("month", "UTC", anchor_day=31), CalendarWindow("month", "UTC", 0, 31)),
        (WindowText("quarter", "UTC", anchor_day=5, anchor_month=2), CalendarWindow("quarter", "UTC", 0, 5, 2)),
        (WindowText("year", "UTC", anchor_day=6, anchor_month=4), CalendarWindow("year", "UTC", 0, 6, 4)),
        (WindowText("every 14d", anchor="2026-01-05T09:00:00.000Z"),
         IntervalWindow(14 * DAY_MS, at("2026-01-05T09:00"))),
        (WindowText("1h"), RollingWindow(HOUR_MS)),
        (WindowText("day", "Asia/Tokyo"), CalendarWindow("day", "Asia/Tokyo")),
    ],
)  # fmt: skip
def test_a_windows_options_are_read_and_written(text: WindowText, window: Window) -> None:
    assert window_text(window) == text
    assert text.parse() == window


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2026-01-05T09:00Z", "2026-01-05T09:00"),
        ("2026-01-05T09:00:30Z", "2026-01-05T09:00:30"),
        ("2026-01-05T09:00:30.5Z", "2026-01-05T09:00:30.500"),
        ("2026-01-05T09:00:00+05:30", "2026-01-05T03:30"),
    ],
)
def test_an_anchor_is_an_instant_in_any_offset(text: str, instant: str) -> None:
    assert parse_window("every 7d", anchor=text) == IntervalWindow(7 * DAY_MS, at(instant))


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        (WindowText("month", week_start=0), "week_start", "use window week"),
        (WindowText("day", anchor_day=1), "anchor_day", "month, quarter, year"),
        (WindowText("week", anchor_day=1), "anchor_day", "month, quarter, year"),
        (WindowText("month", anchor_month=1), "anchor_month", "quarter or year"),
        (WindowText("day", anchor="2026-01-05T09:00:00Z"), "anchor", "every 14d"),
        (WindowText("30d", anchor="2026-01-05T09:00:00Z"), "anchor", "every 14d"),
        (WindowText("every 14d", zone="UTC"), "zone", "leave zone out"),
        (WindowText("session", zone="UTC"), "zone", "leave zone out"),
        (WindowText("lifetime", anchor_day=1), "anchor_day", "leave anchor_day out"),
        (WindowText("week", week_start=7), "week_start", "from 0 to 6"),
        (WindowText("week", week_start=-1), "week_start", "from 0 to 6"),
        (WindowText("month", anchor_day=0), "anchor_day", "from 1 to 31"),
        (WindowText("month", anchor_day=32), "anchor_day", "from 1 to 31"),
        (WindowText("year", anchor_month=13), "anchor_month", "from 1 to 12"),
        (WindowText("every 7d", anchor="2026-01-05"), "anchor", "such as 2026"),
        (WindowText("every 7d", anchor="2026-01-05T09:00:00"), "anchor", "such as 2026"),
        (WindowText("every 7d", anchor="2026-02-30T09:00:00Z"), "anchor", "such as 2026"),
        (WindowText("every 7d", anchor="1970-01-01T00:00:00+01:00"), "anchor", "1970"),
        (WindowText("every 7d", anchor="9999-01-05T09:00:00Z"), "anchor", "such as 2026"),
        (WindowText("every 0d"), "window", "every 14d"),
        (WindowText("every 367d"), "window", "1m to 366d"),
        (WindowText("every  7d"), "window", "every 14d"),
        (WindowText("53w"), "window", "1m to 366d"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_by_its_own_name(text: WindowText, field: str, says: str) -> None:
    with pytest.raises(WindowError, match=says) as caught:
        text.parse()
    assert caught.value.field == field
    assert len(str(caught.value)) < 200


def test_windows_are_the_same_when_their_spans_are() -> None:
    assert is_same_window(IntervalWindow(7 * DAY_MS, 5), IntervalWindow(7 * DAY_MS, 5 + 21 * DAY_MS))
    assert not is_same_window(IntervalWindow(7 * DAY_MS, 5), IntervalWindow(7 * DAY_MS, 6))
    for month in range(1, 13):
        other = CalendarWindow("quarter", "UTC", 0, 5, (month + 2) % 12 + 1)
        assert is_same_window(CalendarWindow("quarter", "UTC", 0, 5, month), other)
    assert not is_same_window(CalendarWindow("quarter", "UTC", 0, 5, 1), CalendarWindow("quarter", "UTC", 0, 5, 2))
    assert not is_same_window(CalendarWindow("year", "UTC", 0, 5, 1), CalendarWindow("year", "UTC", 0, 5, 4))
    assert not is_same_window(CalendarWindow("day", "UTC"), IntervalWindow(DAY_MS, 0))
    assert not is_same_window(RollingWindow(DAY_MS), IntervalWindow(DAY_MS, 0))


@pytest.mark.parametrize("unit", CALENDAR_UNITS)
@pytest.mark.parametrize("now", ["2028-02-29T00:00", "2027-12-31T23:59:59.999", "2026-10-25T00:59:59.999"])
def test_no_calendar_window_lasts_longer_than_is_kept(unit: CalendarUnit, now: str) -> None:
    for zone in ("UTC", "Europe/Berlin"):
        span = calendar(unit, zone, at(now))
        assert span.end_ms - span.start_ms <= LONGEST_CALENDAR_MS


@pytest.mark.parametrize(
    ("text", "zone", "field"),
    [
        ("fortnight", None, "window"),
        ("Week", None, "window"),
        ("", None, "window"),
        ("day", "", "zone"),
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
