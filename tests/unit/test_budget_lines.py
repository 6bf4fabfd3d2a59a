"""Budgets as people read them."""

from typing import Any

import pytest

from services.commands.budget_lines import full_line, past_line, resets_line, scope_text, spends_line, window_line

BUDGET: dict[str, Any] = {
    "scope": {"kind": "team", "value": "ml"},
    "limit_usd": "50.000000000",
    "window": "day",
    "zone": "UTC",
    "week_start": None,
    "anchor_day": None,
    "anchor_month": None,
    "anchor": None,
    "child_mode": "isolated",
    "enforcement": "enforce",
    "when_full": "block",
    "downgrade_to": None,
    "standing": {"spent_usd": "0.000000000", "resets_at": "2026-03-02T00:00:00.000Z", "reason": None},
}


def windowed(window: str, zone: str | None = None, **options: Any) -> dict[str, Any]:
    return BUDGET | {"window": window, "zone": zone} | options


@pytest.mark.parametrize(
    ("budget", "line", "spends"),
    [
        (windowed("day", "Asia/Tokyo"), "day (Asia/Tokyo)", "$50.00 per day (Asia/Tokyo)"),
        (windowed("week", "UTC", week_start=0), "week (UTC)", "$50.00 per week (UTC)"),
        (windowed("week", "UTC", week_start=6), "week from Sunday (UTC)", "$50.00 per week from Sunday (UTC)"),
        (windowed("month", "UTC", anchor_day=1), "month (UTC)", "$50.00 per month (UTC)"),
        (windowed("month", "UTC", anchor_day=31), "month from day 31 (UTC)", "$50.00 per month from day 31 (UTC)"),
        (windowed("year", "UTC", anchor_day=1, anchor_month=1), "year (UTC)", "$50.00 per year (UTC)"),
        (
            windowed("year", "Europe/London", anchor_day=6, anchor_month=4),
            "year from April 6 (Europe/London)",
            "$50.00 per year from April 6 (Europe/London)",
        ),
        (
            windowed("quarter", "UTC", anchor_day=1, anchor_month=2),
            "quarter from February 1 (UTC)",
            "$50.00 per quarter from February 1 (UTC)",
        ),
        (windowed("30d"), "30d", "$50.00 in any 30d"),
        (windowed("every 14d", anchor="1970-01-01T00:00:00.000Z"), "every 14d", "$50.00 every 14d"),
        (
            windowed("every 14d", anchor="2026-01-05T09:00:00.000Z"),
            "every 14d from 2026-01-05 09:00:00",
            "$50.00 every 14d from 2026-01-05 09:00:00",
        ),
        (windowed("session"), "session", "$50.00 per session"),
        (windowed("lifetime"), "lifetime", "$50.00 in all"),
    ],
)
def test_a_window_reads_as_what_it_is(budget: dict[str, Any], line: str, spends: str) -> None:
    assert window_line(budget) == line
    assert spends_line(budget) == spends


def test_a_scope_reads_as_what_it_caps() -> None:
    assert scope_text(BUDGET) == "team ml"
    assert scope_text({"scope": {"kind": "user", "value": "*"}}) == "each user"
    assert scope_text({"scope": {"kind": "cel", "value": "x", "expression": "true"}}) == "calls x: true"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, "block"),
        ({"when_full": "alert"}, "alert"),
        ({"when_full": "downgrade", "downgrade_to": "m"}, "downgrade to m"),
        ({"child_mode": "fallback"}, "parent pays"),
        ({"child_mode": "fallback", "when_full": "alert"}, "alert"),
        ({"enforcement": "monitor", "when_full": "downgrade", "downgrade_to": "m"}, "monitor"),
    ],
)
def test_what_happens_when_it_is_full_reads_as_it_will(options: dict[str, Any], line: str) -> None:
    assert full_line(BUDGET | options) == line


@pytest.mark.parametrize(
    ("standing", "line"),
    [
        ({}, "2026-03-02 00:00:00"),
        ({"resets_at": None}, "never"),
        ({"spent_usd": None, "resets_at": None, "reason": "per_value"}, "each value"),
        ({"spent_usd": None, "resets_at": None, "reason": "per_session"}, "each session"),
        ({"spent_usd": None, "resets_at": None, "reason": "state_rebuilding"}, "being rebuilt"),
        ({"spent_usd": None, "resets_at": None, "reason": "of_a_later_release"}, "of_a_later_release"),
        ({"spent_usd": None, "resets_at": None}, "-"),
    ],
)
def test_why_nothing_resets_is_said(standing: dict[str, Any], line: str) -> None:
    assert resets_line(BUDGET | {"standing": BUDGET["standing"] | standing}) == line


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"backfilled": True}, "counted"),
        ({"backfilled": False}, "not known yet"),
        ({"backfilled": None}, "-"),
        ({}, "-"),
    ],
)
def test_whether_what_was_spent_before_a_budget_is_counted(told: dict[str, Any], line: str) -> None:
    assert past_line(BUDGET | told) == line
