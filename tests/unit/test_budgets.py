"""Budgets: which ones a call falls under, and where they stand."""

from services.core.budgets import Budget, BudgetIndex, Charge, Proposal, Standing, propose, standing, tightest
from services.core.identity import Identity
from services.core.windows import CalendarSpan, CalendarWindow, RollingSpan, RollingWindow

DAY = CalendarWindow("day", "UTC")
HOUR = RollingWindow(3_600_000)
BUDGETS = (
    Budget("bud_agent", "agent", "crawler", DAY, 1),
    Budget("bud_team_day", "team", "ml", DAY, 2),
    Budget("bud_org", "org", "acme", DAY, 3),
    Budget("bud_team_hour", "team", "ml", HOUR, 4),
    Budget("bud_other_team", "team", "web", DAY, 5),
    Budget("bud_other_org", "org", "other", DAY, 6),
)


def names(identity: Identity) -> list[str]:
    return [budget.budget_id for budget in BudgetIndex(BUDGETS).matching(identity)]


def test_a_call_falls_under_every_budget_of_its_org_team_and_agent_widest_first() -> None:
    identity = Identity(org="acme", key_id="key_1", team="ml", agent="crawler")
    assert names(identity) == ["bud_org", "bud_team_day", "bud_team_hour", "bud_agent"]


def test_an_open_dimension_matches_nothing() -> None:
    assert names(Identity(org="acme", key_id="key_1")) == ["bud_org"]
    assert names(Identity(org="acme", key_id="key_1", agent="crawler")) == ["bud_org", "bud_agent"]
    assert names(Identity(org="nowhere", key_id="key_1", team="none", agent="none")) == []


def test_a_team_and_an_agent_of_one_name_are_told_apart() -> None:
    index = BudgetIndex([Budget("bud_1", "team", "same", DAY, 1), Budget("bud_2", "agent", "same", DAY, 1)])
    assert [each.budget_id for each in index.matching(Identity("acme", "key_1", agent="same"))] == ["bud_2"]


def test_proposals_are_for_the_spans_that_hold_the_instant() -> None:
    day_ms = 86_400_000
    first, second = propose([BUDGETS[1], BUDGETS[3]], 10 * day_ms + 61_000)
    assert first == Proposal("bud_team_day", "team:ml", CalendarSpan(10 * day_ms, 11 * day_ms), 2)
    assert second.span == RollingSpan(60_000, 60, 10 * 1440 + 1)
    assert second.charge() == Charge("bud_team_hour", "team:ml", "r:60000:60:14401")


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
