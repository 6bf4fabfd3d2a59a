"""Budgets: where they stand, and what they do when they are full. Which ones a call falls under: test_matching.py."""

import pytest

from services.core.budgets import Budget, Charge, FullRule, Proposal, Standing, propose, standing, tightest
from services.core.windows import CalendarSpan, CalendarWindow, LifetimeWindow, RollingSpan, RollingWindow

DAY = CalendarWindow("day", "UTC")
HOUR = RollingWindow(3_600_000)


def test_proposals_are_for_the_spans_that_hold_the_instant() -> None:
    day_ms = 86_400_000
    budgets = (Budget("bud_team_day", "team", "ml", DAY, 2), Budget("bud_team_hour", "team", "ml", HOUR, 4))
    first, second = propose(budgets, 10 * day_ms + 61_000)
    assert first == Proposal("bud_team_day", "team:ml", CalendarSpan(10 * day_ms, 11 * day_ms), 2)
    assert second.span == RollingSpan(60_000, 60, 10 * 1440 + 1)
    assert second.charge() == Charge("bud_team_hour", "team:ml", "r:60000:60:14401")


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({}, "block"),
        ({"when_full": "downgrade"}, "downgrade"),
        ({"when_full": "alert"}, "pass"),
        ({"enforcement": "monitor"}, "pass"),
        ({"enforcement": "monitor", "when_full": "downgrade"}, "pass"),
        ({"child_mode": "fallback"}, "block"),
        ({"parent_id": "bud_p"}, "block"),
        ({"parent_id": "bud_p", "child_mode": "fallback"}, "parent"),
        ({"parent_id": "bud_p", "child_mode": "fallback", "when_full": "downgrade"}, "parent"),
        ({"parent_id": "bud_p", "child_mode": "fallback", "enforcement": "monitor"}, "pass"),
        ({"parent_id": "bud_p", "when_full": "downgrade"}, "downgrade"),
    ],
)
def test_what_a_full_budget_does_is_its_own_to_say(changes: dict[str, str], rule: FullRule) -> None:
    budget = Budget("bud_1", "org", "acme", LifetimeWindow(), 1, **changes)  # type: ignore[arg-type]
    assert budget.full_rule == rule
    assert propose([budget], 0)[0].full_rule == rule


def test_what_remains_is_the_limit_less_spent_and_held() -> None:
    proposal = Proposal("bud_1", "team:ml", CalendarSpan(0, 1000), 100)
    assert standing(proposal, 30, 50) == Standing("bud_1", "team:ml", 100, 30, 50, 1000)
    assert standing(proposal, 30, 50).remaining_nano == 20
    assert standing(proposal, 90, 50).remaining_nano == -40


def test_the_tightest_is_the_one_with_least_left_and_of_equals_the_first_by_id() -> None:
    def left(name: str, remaining_nano: int) -> Standing:
        return Standing(name, "org:acme", 100, 100 - remaining_nano, 0, 0)

    assert tightest([left("c", 7), left("b", 3), left("a", 3), left("d", 9)]) == left("a", 3)
    assert tightest([]) is None
