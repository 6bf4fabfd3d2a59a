"""Budgets that get another parent while holds are charged to them: what grows is always charged to somebody (BU-3)."""

from dataclasses import replace
from pathlib import Path

from services.core.budgets import Budget, propose
from services.core.hotstate import Admitted, HoldRequest, OrgState, Refused, ReserveAnswer
from services.core.matching import BudgetIndex
from services.core.reserve import reserve, resize
from services.gateway.hold import held_now
from tests.support.budgets import DAY, budget, held_by, set_budgets
from tests.support.gateway import world
from tests.support.reservations import Ledger, post
from tests.support.reservations import reserve as ask_for

NOW_MS = 1_800_000_000_000
CHILD = Budget("bud_c", "team", "ml", DAY, 10)
FALLS_BACK = replace(CHILD, parent_id="bud_q", child_mode="fallback")
PARENT = Budget("bud_q", "org", "acme", DAY, 20)


def grown(held: tuple[Budget, ...], now: tuple[Budget, ...], amount_nano: int) -> ReserveAnswer | None:
    """The answer to a hold of 5 against `held` that is to be `amount_nano` once the budgets are those of `now`."""
    state = OrgState(epoch="e", config_version=1)
    first = reserve(state, HoldRequest("acme", "t", 5, propose(held, NOW_MS), 900_000, "{}"), NOW_MS)
    assert isinstance(first, Admitted)
    proposals = held_now(first.charges, BudgetIndex(now), NOW_MS)
    return resize(state, HoldRequest("acme", "t", amount_nano, proposals, 900_000, "{}"), NOW_MS)


def test_a_child_can_not_let_a_parent_pay_that_the_hold_is_not_charged_to() -> None:
    refused = grown((CHILD,), (FALLS_BACK, PARENT), 11)
    assert isinstance(refused, Refused)
    assert [each.budget_id for each in refused.exhausted] == ["bud_c"]
    admitted = grown((CHILD,), (FALLS_BACK, PARENT), 10)
    assert isinstance(admitted, Admitted)
    assert [each.budget_id for each in admitted.charges] == ["bud_c"]


def test_a_child_lets_any_budget_above_it_pay_that_the_hold_is_charged_to() -> None:
    between = replace(PARENT, budget_id="bud_m", parent_id="bud_q", child_mode="fallback")
    child = replace(FALLS_BACK, parent_id="bud_m")
    for held in ((PARENT, CHILD), (PARENT, between, CHILD)):
        admitted = grown(held, (PARENT, replace(between, limit_nano=10), child), 20)
        assert isinstance(admitted, Admitted)
        assert [each.budget_id for each in admitted.charges] == ["bud_q"]
    refused = grown((PARENT, CHILD), (PARENT, between, child), 21)
    assert isinstance(refused, Refused)
    assert [each.budget_id for each in refused.exhausted] == ["bud_q"]
    topless = grown((between, CHILD), (PARENT, replace(between, limit_nano=10), child), 11)
    assert isinstance(topless, Refused), "the uppermost that is charged does not leave itself out"
    assert [each.budget_id for each in topless.exhausted] == ["bud_m"]


def test_a_child_lets_a_part_pay_that_was_carved_from_a_budget_above_it() -> None:
    part = Budget("sub_1", "key", "key_sub_1", DAY, 30, covers=("bud_q",))
    admitted = grown((CHILD, part), (FALLS_BACK, PARENT, part), 30)
    assert isinstance(admitted, Admitted)
    assert [each.budget_id for each in admitted.charges] == ["sub_1"]
    other = replace(part, covers=("bud_x",))
    assert isinstance(grown((CHILD, part), (FALLS_BACK, PARENT, other), 30), Refused)


async def test_a_reservation_that_grows_past_a_child_is_charged_to_a_parent_that_came_later(tmp_path: Path) -> None:
    child = budget("bud_c", "team", "ml")
    async with world(tmp_path, relay_transport=Ledger()) as there:
        await set_budgets(there, child)
        large, small = [f"/{(await ask_for(there, '0.10')).json()['reservation_id']}/extend" for _ in range(2)]
        parent = budget("bud_q", "team", "none", limit_nano=1_500_000_000)
        await set_budgets(there, parent, replace(child, parent_id="bud_q", child_mode="fallback"))
        grown = await post(there, large, {"amount_usd": "1.10"})
        assert (grown.status, grown.json()["parent_charged"]) == (200, ["bud_c"])
        assert (held_by(there, "bud_c"), held_by(there, "bud_q")) == (200_000_000, 1_100_000_000), "not folded yet"
        assert (await post(there, small, {"amount_usd": "0.30"})).status == 200
        assert (held_by(there, "bud_c"), held_by(there, "bud_q")) == (400_000_000, 1_400_000_000)
        refused = await post(there, small, {"amount_usd": "0.41"})
        assert (refused.status, refused.json()["budget_id"]) == (402, "bud_q")
