"""Reservations that are extended after a budget was made: who asks for more is held against every cap there is now."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.core.backfill import ImpliedBudgets
from services.core.budgets import Budget
from services.core.events import Reservation, Settlement, Stamped
from services.core.fold import apply, load, step_of
from services.core.hotstate import Backfill, OrgImage, OrgState
from services.core.implied import HeldBackfills, step_with_implied
from services.core.snapshot import Overrides
from services.core.windows import CalendarWindow, SessionWindow, parse_span, span_at
from services.gateway import pasts
from tests.support.budgets import DAY, budget, held_by, last_settlement, resizes, set_budgets
from tests.support.gateway import World, world
from tests.support.reservations import Ledger, get, post, reserve

CENT = 10_000_000
OLD = budget("bud_old")
# An hour's window turns while a reservation is held; a week's does not.
WEEK = CalendarWindow("week", "UTC")
HOUR_MS = 3_600_000


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, relay_transport=Ledger()) as made:
        await set_budgets(made, OLD)
        yield made


async def make(there: World, *budgets: Budget) -> tuple[Budget, ...]:
    """Makes budgets beside those there are, or others in their place, as control and the aggregator do."""
    version = there.org.snapshot.version + 1
    made = tuple(replace(each, since_version=version) for each in budgets)
    names = {each.budget_id for each in made}
    there.hot_state.store.state("default").filled |= dict.fromkeys(names, version)
    await set_budgets(there, *(each for each in there.org.snapshot.budgets if each.budget_id not in names), *made)
    holds = HeldBackfills(ImpliedBudgets(made)).of(await there.hot_state.open_holds("default"))
    assert await there.hot_state.backfill("default", Backfill({}, {}, {}, f"m{version}", holds=holds))
    return made


async def reserved(there: World, amount: str = "0.01", **fields: object) -> str:
    told = await reserve(there, amount, hold_seconds=86_400, **fields)
    assert told.status == 201
    return f"/{told.json()['reservation_id']}"


def fold(there: World, state: OrgState) -> None:
    """All that was recorded, by the aggregator's own steps and the budgets of now. What is folded is ignored."""
    implied = ImpliedBudgets(there.org.snapshot.budgets)
    admitted = {each.transaction_id: each.time_ms for each in there.events() if isinstance(each, Reservation)}
    for number, event in enumerate(there.events()):
        step = step_of(Stamped(event, "gw_1", number + 1), number)
        if step is not None:
            step = step_with_implied(step, event, implied, admitted.get(event.transaction_id))
            apply(state, "spend", 0, [step], number + 1, there.clock.now_ms)


def spent(state: OrgState) -> dict[str, list[int]]:
    """What was spent and what is held, summed over each budget's windows."""
    found: dict[str, list[int]] = {}
    for (name, _), figures in state.windows.items():
        sums = found.setdefault(name, [0, 0])
        sums[0] += figures.spent_nano
        sums[1] += figures.held_nano
    return found


async def test_who_asks_for_more_is_refused_by_a_budget_made_since(there: World) -> None:
    path = await reserved(there)
    await make(there, budget("bud_new", "team", "ml", limit_nano=10 * CENT))
    refused = await post(there, path + "/extend", {"amount_usd": "0.50"})
    assert (refused.status, refused.json()["budget_id"], refused.json()["limit_usd"]) == (402, "bud_new", "0.100000000")
    assert (held_by(there, "bud_old"), held_by(there, "bud_new")) == (CENT, CENT)
    assert (await post(there, path + "/extend", {"hold_seconds": 600})).status == 200, "that asks for no room"
    assert (await post(there, path + "/extend", {"amount_usd": "0.10"})).status == 200
    assert (held_by(there, "bud_old"), held_by(there, "bud_new")) == (10 * CENT, 10 * CENT)


async def test_a_hold_that_has_shrunk_is_refused_by_a_budget_made_since_when_it_grows_again(there: World) -> None:
    path = await reserved(there, "0.50")
    assert (await post(there, path + "/extend", {"amount_usd": "0.10"})).status == 200
    await make(there, budget("bud_new", "team", "ml", limit_nano=20 * CENT))
    refused = await post(there, path + "/extend", {"amount_usd": "0.30"})
    assert (refused.status, refused.json()["budget_id"]) == (402, "bud_new")
    assert (await post(there, path + "/extend", {"amount_usd": "0.20"})).status == 200
    assert held_by(there, "bud_new") == 20 * CENT


@pytest.mark.parametrize("is_folded", [True, False])
async def test_what_is_said_is_implied_no_more_and_counts_once_when_it_ends(there: World, is_folded: bool) -> None:
    path = await reserved(there)
    await make(there, budget("bud_new", "team", "ml"))
    state = there.hot_state.store.state("default")
    if is_folded:
        fold(there, state)
    assert state.holds[path[1:]].implied
    for hours, body in ((0, {"amount_usd": "0.05"}), (1, {"hold_seconds": 7_200}), (1, {"amount_usd": "0.04"})):
        there.clock.now_ms += hours * HOUR_MS
        await there.sync()
        grown = await post(there, path + "/extend", body)
        assert grown.status == 200
        amount_nano = resizes(there)[-1].held_nano
        assert {each["budget_id"] for each in grown.json()["charges"]} == {"bud_old", "bud_new"}
        assert (held_by(there, "bud_old"), held_by(there, "bud_new")) == (5 * CENT, 5 * CENT), "not folded yet"
        if is_folded:
            fold(there, state)
            assert (held_by(there, "bud_old"), held_by(there, "bud_new")) == (amount_nano, amount_nano)
        assert state.holds[path[1:]].implied == ()
    assert (await post(there, path + "/settle", {"cost_usd": "0.03"})).status == 200
    assert last_settlement(there).charges == resizes(there)[-1].charges
    fold(there, state)
    rebuilt = OrgState()
    assert load(rebuilt, OrgImage({}, {}, {}, {}), "e", there.clock.now_ms)
    fold(there, rebuilt)
    assert spent(state) == spent(rebuilt) == {"bud_old": [3 * CENT, 0], "bud_new": [3 * CENT, 0]}


async def test_a_change_that_was_never_recorded_is_settled_as_implied(there: World) -> None:
    """Its gateway died in between: what ends the hold knows the first charges alone."""
    path = await reserved(there)
    await make(there, budget("bud_new", "team", "ml"))
    (first,) = (each for each in there.events() if isinstance(each, Reservation))
    assert (await post(there, path + "/extend", {"amount_usd": "0.05"})).status == 200
    state = there.hot_state.store.state("default")
    cost = ((), 3 * CENT, CENT, first.charges, 0, 0)
    ending = Settlement(first.transaction_id, there.clock.now_ms, first.facts, "completed", "none", {}, *cost)
    ending = replace(ending, admitted_at_ms=first.time_ms)
    step = step_of(Stamped(ending, "gw_1", 1), 0)
    assert step is not None
    step = step_with_implied(step, ending, ImpliedBudgets(there.org.snapshot.budgets))
    apply(state, "spend", 0, [step], 1, there.clock.now_ms)
    assert spent(state) == {"bud_old": [3 * CENT, 0], "bud_new": [3 * CENT, 0]}


async def test_a_budget_with_another_window_is_charged_in_that_one_alone(there: World) -> None:
    await set_budgets(there, OLD, budget("bud_1", "team", "ml"))
    path = await reserved(there)
    (weekly,) = await make(there, budget("bud_1", "team", "ml", window=WEEK, limit_nano=10 * CENT))
    state = there.hot_state.store.state("default")
    assert held_by(there, "bud_1") == 2 * CENT, "in the old window and, without saying so, in the new one"
    assert (await post(there, path + "/extend", {"amount_usd": "0.11"})).json()["budget_id"] == "bud_1"
    assert (await post(there, path + "/extend", {"amount_usd": "0.10"})).status == 200
    (resized,) = resizes(there)
    key = span_at(weekly.window, there.clock.now_ms).key()
    assert [each.window for each in resized.charges if each.budget_id == "bud_1"] == [key]
    fold(there, state)
    assert held_by(there, "bud_1") == 10 * CENT
    assert (await post(there, path + "/settle", {"cost_usd": "0.03"})).status == 200
    fold(there, state)
    assert spent(state) == {"bud_old": [3 * CENT, 0], "bud_1": [3 * CENT, 0]}
    assert state.windows["bud_1", key].spent_nano == 3 * CENT


async def test_a_former_parent_with_another_window_is_charged_in_that_one_alone(there: World) -> None:
    """It sees no call by itself: the reservation was charged to it as what is above another budget."""
    parent, child = budget("bud_p", "team", "none"), budget("bud_c", "team", "ml", parent_id="bud_p")
    await set_budgets(there, parent, child)
    path = await reserved(there)
    await make(there, replace(child, parent_id=None), replace(parent, window=WEEK))
    grown = await post(there, path + "/extend", {"amount_usd": "0.05"})
    assert grown.status == 200
    week = span_at(WEEK, there.clock.now_ms).key()
    assert [each.window for each in resizes(there)[-1].charges if each.budget_id == "bud_p"] == [week]
    assert (
        there.hot_state.store.state("default").windows["bud_p", week].held_nano == held_by(there, "bud_p") == 5 * CENT
    )


async def test_what_a_part_holds_already_is_not_held_again(there: World) -> None:
    await set_budgets(there, OLD, budget("bud_team", "team", "ml"))
    (key_id,) = {record.key_id for record in there.org._keys.values()}
    part = budget("sub_1", "key", key_id, limit_nano=20 * CENT, covers=("bud_old", "bud_team"))
    await set_budgets(there, OLD, budget("bud_team", "team", "ml"), part)
    path = await reserved(there)
    await make(there, budget("bud_new", "user", "*"), budget("bud_agent", "team", "ml", window=WEEK))
    grown = await post(there, path + "/extend", {"amount_usd": "0.15"})
    assert {each["budget_id"] for each in grown.json()["charges"]} == {"sub_1", "bud_agent"}
    assert (held_by(there, "bud_old"), held_by(there, "bud_agent")) == (0, 15 * CENT)
    await set_budgets(there, *(each for each in there.org.snapshot.budgets if each.budget_id != "sub_1"))
    assert (await post(there, path + "/extend", {"amount_usd": "0.16"})).json()["budget_id"] == "sub_1", "it has ended"


async def test_a_reservation_without_a_session_does_not_grow_past_a_cap_of_sessions(there: World) -> None:
    path = await reserved(there)
    await make(there, budget("bud_new", "team", "ml", window=SessionWindow()))
    refused = await post(there, path + "/extend", {"amount_usd": "0.02"})
    assert (refused.status, refused.json()["error"], refused.json()["field"]) == (
        400,
        "session_required",
        "x-spend-session",
    )
    assert held_by(there, "bud_old") == CENT
    await make(there, budget("bud_new", "team", "ml", window=SessionWindow(), enforcement="monitor"))
    assert (await post(there, path + "/extend", {"amount_usd": "0.02"})).status == 200, "it only watches"


async def test_no_cap_is_checked_before_its_past_is_known(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pasts, "PATIENCE_S", 0.03)
    path = await reserved(there)
    await set_budgets(there, OLD, budget("bud_new", "team", "ml", since_version=there.org.snapshot.version + 1))
    unknown = await post(there, path + "/extend", {"amount_usd": "0.02"})
    assert (unknown.status, unknown.json()["budget_id"]) == (503, "bud_new")
    assert (await post(there, path + "/extend", {"amount_usd": "0.01", "hold_seconds": 60})).status == 200
    there.hot_state.store.state("default").filled["bud_new"] = there.org.snapshot.version
    assert (await post(there, path + "/extend", {"amount_usd": "0.02"})).status == 200


async def test_a_new_budgets_window_is_the_one_of_the_change(there: World) -> None:
    """The gateway's clock is behind: it learns of the turn of the hour from the hot state."""
    path = await reserved(there)
    await make(there, budget("bud_new", "team", "ml", window=CalendarWindow("hour", "UTC")))
    there.clock.now_ms += HOUR_MS
    assert (await post(there, path + "/extend", {"amount_usd": "0.02"})).status == 200
    windows = {each.budget_id: parse_span(each.window) for each in resizes(there)[-1].charges}
    hour = CalendarWindow("hour", "UTC")
    assert windows == {
        "bud_old": span_at(DAY, there.clock.now_ms - HOUR_MS),
        "bud_new": span_at(hour, there.clock.now_ms),
    }


async def test_a_child_that_had_no_room_is_asked_again_and_named_once(there: World) -> None:
    parent = budget("bud_p")
    child = budget("bud_c", "team", "ml", limit_nano=5 * CENT, parent_id="bud_p", child_mode="fallback")
    await set_budgets(there, parent, child)
    told = (await reserve(there, "0.06", hold_seconds=86_400)).json()
    assert told["parent_charged"] == ["bud_c"]
    path = f"/{told['reservation_id']}"
    await set_budgets(there, parent, replace(child, limit_nano=50 * CENT))
    grown = (await post(there, path + "/extend", {"amount_usd": "0.07"})).json()
    assert ({each["budget_id"] for each in grown["charges"]}, grown["parent_charged"]) == ({"bud_p", "bud_c"}, [])
    assert (await get(there, path[1:])).json() == grown
    grown = (await post(there, path + "/extend", {"amount_usd": "0.70"})).json()
    assert ([each["budget_id"] for each in grown["charges"]], grown["parent_charged"]) == (["bud_p"], ["bud_c"])
    await post(there, path + "/settle", {"cost_usd": "0.30"})
    assert last_settlement(there).parent_charged == ("bud_c",)


async def test_a_child_that_is_asked_again_is_charged_in_the_window_of_the_reservation(there: World) -> None:
    parent = budget("bud_p")
    child = budget("bud_c", "team", "ml", limit_nano=5 * CENT, parent_id="bud_p", child_mode="fallback")
    await set_budgets(there, parent, child)
    path = f"/{(await reserve(there, '0.01', hold_seconds=3 * 86_400)).json()['reservation_id']}"
    (first,) = there.events()
    assert isinstance(first, Reservation)
    assert (await post(there, path + "/extend", {"amount_usd": "0.06"})).json()["parent_charged"] == ["bud_c"]
    await set_budgets(there, parent, replace(child, limit_nano=50 * CENT))
    there.clock.now_ms += 86_400_000
    await there.sync()
    assert (await post(there, path + "/extend", {"amount_usd": "0.07"})).json()["parent_charged"] == []
    assert {each.window for each in resizes(there)[-1].charges} == {each.window for each in first.charges}


async def test_a_new_child_that_has_no_room_lets_its_parent_pay(there: World) -> None:
    path = await reserved(there)
    await make(there, budget("bud_c", "team", "ml", limit_nano=5 * CENT, parent_id="bud_old", child_mode="fallback"))
    grown = await post(there, path + "/extend", {"amount_usd": "0.06"})
    assert (grown.status, [each["budget_id"] for each in grown.json()["charges"]]) == (200, ["bud_old"])
    refused = await post(there, path + "/extend", {"amount_usd": "1.01"})
    assert (refused.status, refused.json()["budget_id"]) == (402, "bud_old")


async def test_a_cap_of_nothing_lets_nothing_grow(there: World) -> None:
    path = await reserved(there)
    await make(there, budget("bud_new", "billing_class", "metered.direct", limit_nano=0, is_cap=True))
    refused = await post(there, path + "/extend", {"amount_usd": "0.02"})
    assert (refused.status, refused.json()["error"]) == (402, "BudgetCapExceeded")
    assert held_by(there, "bud_old") == CENT


async def test_more_budgets_than_one_hold_can_have_are_refused_by_their_number(there: World) -> None:
    path = await reserved(there)
    await set_budgets(there, *(budget(f"bud_{number}") for number in range(64)))
    refused = await post(there, path + "/extend", {"amount_usd": "0.02"})
    assert (refused.status, refused.json()["error"]) == (400, "too_many_budgets")
    assert "65 budgets" in refused.json()["message"]
    await set_budgets(there, *(budget(f"bud_{number}") for number in range(65)))
    assert (await post(there, path + "/extend", {"amount_usd": "0.02"})).json()["error"] == "too_many_budgets"
    assert held_by(there, "bud_old") == CENT


async def test_all_endings_of_a_reservation_fall_under_the_same_budgets(there: World) -> None:
    """Or a late settlement would take back, of a budget made meanwhile, what no expiry had booked there."""
    told = await reserve(there, "0.05", vendor="openai", model="gpt-4o-mini-2024-07-18")
    own = {
        "vendor": "openai",
        "model": "gpt-4o-mini-2024-07-18",
        "prices": [{"usd": {"input": "1.000000000", "output": "2.000000000"}}],
        "max_output_tokens": 8_000,
        "context_window": 128_000,
    }
    await there.org.publish(overrides=Overrides("ov_1", (own,)))
    await there.sync()
    path = f"/{told.json()['reservation_id']}/settle"
    assert (await post(there, path, {"usage": {"input_tokens": 1_000, "output_tokens": 500}})).status == 200
    (first,) = (each for each in there.events() if isinstance(each, Reservation))
    settled = last_settlement(there)
    assert settled.cost_nano == 2_000_000, "by the price of now"
    assert settled.facts.catalog_version.endswith("+ov_1")
    assert settled.facts == replace(first.facts, catalog_version=settled.facts.catalog_version)
