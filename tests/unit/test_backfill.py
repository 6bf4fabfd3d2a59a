"""Implied charges: which calls have them, in which window, and what a ledger is asked for."""

from dataclasses import replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ulid import ULID

from services.adapters.cel import Cel
from services.core.backfill import (
    ZONE_GRAIN_MS,
    CallSum,
    ImpliedBudgets,
    admitted_at_ms,
    grain_ms,
    is_span_of,
    looks_back_to_ms,
)
from services.core.budgets import EACH, Budget, Charge
from services.core.events import CallFacts, Expiry
from services.core.hotstate import SESSION_IDLE_MS, is_forgotten, ring_low
from services.core.identity import Identity
from services.core.parts import ROUTE
from services.core.windows import (
    CalendarWindow,
    IntervalWindow,
    LifetimeWindow,
    RollingSpan,
    RollingWindow,
    SessionWindow,
    Window,
    parse_span,
    span_at,
)

NOW_MS = 1_800_000_000_000
FACTS = CallFacts(Identity("o", "k", team="ml", user="ada", session="ses"), "v", "/", "m", "m", "exact", "c", 1)
TEAM = Budget("bud_1", "team", "ml", LifetimeWindow(), 1, since_version=3)
WINDOWS: list[Window] = [
    CalendarWindow("hour", "Asia/Kathmandu"),
    CalendarWindow("day", "Australia/Lord_Howe"),
    CalendarWindow("month", "America/St_Johns"),
    RollingWindow(60_000),
    RollingWindow(7 * 86_400_000 + 60_000),
    IntervalWindow(7 * 86_400_000, 1_700_000_000_123),
    IntervalWindow(90_000, 0),
    LifetimeWindow(),
]


def test_calls_of_earlier_configurations_imply_a_charge_and_later_ones_carry_it() -> None:
    implied = ImpliedBudgets([TEAM, replace(TEAM, budget_id="bud_2", since_version=2)])
    for version, expected in ((1, ["bud_1", "bud_2"]), (2, ["bud_1"]), (3, []), (4, [])):
        charges = implied.charges(replace(FACTS, config_version=version), NOW_MS, ())
        assert [each.budget_id for each in charges] == expected
    assert implied.since == {"bud_1": 3, "bud_2": 2}


def test_a_budget_that_always_counted_implies_nothing() -> None:
    assert ImpliedBudgets([replace(TEAM, since_version=0)]).charges(FACTS, NOW_MS, ()) == ()


def test_a_charge_that_is_carried_is_not_implied_as_well() -> None:
    assert ImpliedBudgets([TEAM]).charges(FACTS, NOW_MS, {("bud_1", "l")}) == ()
    rolling = replace(TEAM, window=RollingWindow(3_600_000))
    later = span_at(rolling.window, NOW_MS + 600_000).key()
    assert ImpliedBudgets([rolling]).charges(FACTS, NOW_MS, {("bud_1", later)}) == (), "carried since it was resized"
    assert ImpliedBudgets([TEAM]).charges(FACTS, NOW_MS, {("bud_1", "c:0:1")}) == (Charge("bud_1", "team:ml", "l"),)


def test_what_was_charged_as_a_childs_is_charged_in_the_window_that_its_parent_has_now() -> None:
    """A parent whose children lie outside its own scope got another window: it does not start at nothing."""
    parent = replace(TEAM, budget_id="bud_2", scope_value="web", window=CalendarWindow("day", "UTC"))
    window = span_at(parent.window, NOW_MS).key()
    implied = ImpliedBudgets([parent])
    assert implied.charges(FACTS, NOW_MS, ()) == ()
    assert implied.charges(FACTS, NOW_MS, {("bud_2", "l")}) == (Charge("bud_2", "team:web", window),)
    assert implied.charges(FACTS, NOW_MS, {("bud_2", "l"), ("bud_2", window)}) == ()
    assert implied.charges(replace(FACTS, config_version=3), NOW_MS, {("bud_2", "l")}) == ()
    of_sessions = ImpliedBudgets([replace(parent, window=SessionWindow())])
    unnamed = replace(FACTS, identity=replace(FACTS.identity, session=None))
    assert of_sessions.charges(unnamed, NOW_MS, {("bud_2", "l")}) == ()
    matching = replace(FACTS, identity=replace(FACTS.identity, team="web"))
    assert implied.charges(matching, NOW_MS, {("bud_2", "l")}) == (Charge("bud_2", "team:web", window),), "once"


def test_ancestors_are_charged_by_their_own_matches_only() -> None:
    parent = replace(TEAM, budget_id="bud_2", scope_value="web")
    assert ImpliedBudgets([parent, replace(TEAM, parent_id="bud_2")]).charges(FACTS, NOW_MS, ()) == (
        Charge("bud_1", "team:ml", "l"),
    )


def test_each_value_each_session_and_each_expression_by_its_own() -> None:
    budgets = [
        Budget("bud_u", "user", EACH, SessionWindow(), 1, since_version=2),
        Budget("bud_c", "cel", "x", LifetimeWindow(), 1, expression='user == "ada"', since_version=2),
    ]
    implied = ImpliedBudgets(budgets, Cel())
    assert implied.charges(FACTS, NOW_MS, ()) == (
        Charge("bud_u@ada", "user:ada", "s:ses"),
        Charge("bud_c", "cel:x", "l"),
    )
    nobody = replace(FACTS, identity=replace(FACTS.identity, session=None))
    assert [each.budget_id for each in implied.charges(nobody, NOW_MS, ())] == ["bud_c"]


def test_the_end_of_a_part_is_no_call() -> None:
    assert ImpliedBudgets([TEAM]).charges(replace(FACTS, route=ROUTE), NOW_MS, ()) == ()


def test_an_expression_that_can_not_be_compiled_is_told_of() -> None:
    broken = Budget("bud_c", "cel", "x", LifetimeWindow(), 1, expression="user ==", since_version=2)
    implied = ImpliedBudgets([broken, TEAM], Cel())
    assert (list(implied.unusable), implied.since) == (["bud_c"], {"bud_1": 3})


def test_when_a_call_was_admitted() -> None:
    name = f"txn_{ULID.from_timestamp(1_750_000_000.5)}"
    event = Expiry(name, NOW_MS, FACTS, 1, 1, (), admitted_at_ms=NOW_MS - 5)
    assert admitted_at_ms(event) == NOW_MS - 5
    assert admitted_at_ms(replace(event, admitted_at_ms=0)) == 1_750_000_000_500
    assert admitted_at_ms(replace(event, admitted_at_ms=0, transaction_id="txn_1")) == NOW_MS


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@given(at_ms=st.integers(NOW_MS - 40 * 86_400_000, NOW_MS), part=st.floats(0, 1, exclude_max=True))
def test_a_grain_never_lies_in_two_windows(window: Window, at_ms: int, part: float) -> None:
    grain = grain_ms(window)
    first = at_ms - at_ms % grain
    assert span_at(window, first) == span_at(window, first + int(part * grain))


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@given(before_ms=st.integers(1, 400 * 86_400_000))
def test_what_lies_before_the_look_back_counts_nowhere(window: Window, before_ms: int) -> None:
    since_ms = looks_back_to_ms(window, NOW_MS)
    if since_ms == 0:
        return
    span = span_at(window, since_ms - before_ms)
    assert is_forgotten(span, NOW_MS) or (isinstance(span, RollingSpan) and span.bucket < ring_low(span, NOW_MS))


def test_every_zone_keeps_to_quarter_hours() -> None:
    for name in available_timezones() - {"localtime", "Factory"}:
        for month in range(1, 13):
            offset = datetime(2026, month, 1, tzinfo=UTC).astimezone(ZoneInfo(name)).utcoffset()
            assert offset is not None
            assert offset.total_seconds() * 1000 % ZONE_GRAIN_MS == 0, name


def test_budgets_are_asked_for_by_grain_and_summed_by_their_own_query() -> None:
    day = replace(TEAM, budget_id="bud_day", window=CalendarWindow("day", "UTC"))
    hour = replace(TEAM, budget_id="bud_hour", window=RollingWindow(3_600_000), since_version=2)
    implied = ImpliedBudgets([day, hour])
    queries = implied.queries(NOW_MS, {0: 7})
    assert {query.budget_ids for query in queries} == {("bud_day",), ("bud_hour",)}
    spent: list[dict[tuple[str, str], int]] = []
    for query in queries:
        assert query.below == {0: 7}
        spent.append(implied.spent_nano(query, [CallSum(FACTS, NOW_MS, (), 5, NOW_MS)] * 2, NOW_MS))
    assert sorted(name for each in spent for name, _ in each) == ["bud_day", "bud_hour"]
    assert {nano for each in spent for nano in each.values()} == {10}


def test_a_session_that_has_been_idle_for_long_is_forgotten() -> None:
    implied = ImpliedBudgets([Budget("bud_s", "team", "ml", SessionWindow(), 1, since_version=2)])
    [query] = implied.queries(NOW_MS, {})
    for idle_ms, expected in ((SESSION_IDLE_MS - 1, 1), (SESSION_IDLE_MS, 0)):
        sums = [CallSum(FACTS, 0, (), 5, NOW_MS - idle_ms)]
        assert len(implied.spent_nano(query, sums, NOW_MS)) == expected


def test_a_span_of_a_window_that_a_budget_once_had_is_not_its_own() -> None:
    for window in WINDOWS:
        own = Budget("bud_1", "org", "o", window, 1)
        for other in WINDOWS:
            assert is_span_of(own, parse_span(span_at(other, NOW_MS).key())) == (window == other)
    assert is_span_of(Budget("bud_1", "org", "o", SessionWindow(), 1), parse_span("s:x"))
