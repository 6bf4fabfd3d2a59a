"""What a full budget does besides refusing: let its parent pay, have a cheaper model answer, or only watch."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.core.budgets import MAX_DEPTH
from services.core.codec import decode_facts
from services.core.money import format_usd
from services.core.snapshot import UnknownModels
from services.core.windows import SessionWindow
from tests.support.budgets import (
    SeenHotState,
    ask,
    budget,
    chain,
    charged,
    denials,
    held_by,
    hold_of,
    last_settlement,
    priced_world,
    reservations,
    set_budgets,
)
from tests.support.gateway import World, assert_refused, chat

BIG = 10**15


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with priced_world(tmp_path) as made:
        yield made


def asked(there: World) -> SeenHotState:
    assert isinstance(there.hot_state, SeenHotState)
    return there.hot_state


# ---- parents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", range(MAX_DEPTH))
async def test_an_isolated_child_is_refused_by_whichever_of_its_chain_is_full(there: World, full: int) -> None:
    dear = await hold_of(there, "dear")
    limits = [dear - 1 if depth == full else BIG for depth in range(MAX_DEPTH)]
    await set_budgets(there, *chain(MAX_DEPTH, limits))
    client = await ask(there)
    assert_refused(client, 402, "budget_exhausted", f"bud_{full}")
    assert there.held_nano() == 0


async def test_a_chain_with_room_is_charged_from_end_to_end(there: World) -> None:
    await set_budgets(there, *chain(MAX_DEPTH, [BIG] * MAX_DEPTH))
    assert (await ask(there)).status == 200
    assert sorted(charged(there)) == [f"bud_{depth}" for depth in range(MAX_DEPTH)]
    assert reservations(there)[-1].parent_charged == ()


@pytest.mark.parametrize("full", range(MAX_DEPTH))
async def test_full_fallback_children_let_the_rest_of_their_chain_pay(there: World, full: int) -> None:
    """Every budget below `full` is full, too: all of them are named, and what is above them pays."""
    dear = await hold_of(there, "dear")
    limits = [dear - 1 if depth < full else BIG for depth in range(MAX_DEPTH)]
    await set_budgets(there, *chain(MAX_DEPTH, limits, child_mode="fallback"))
    client = await ask(there)
    assert client.status == 200, client.content
    assert sorted(charged(there)) == [f"bud_{depth}" for depth in range(full, MAX_DEPTH)]
    assert sorted(reservations(there)[-1].parent_charged) == [f"bud_{depth}" for depth in range(full)]
    assert all(held_by(there, f"bud_{depth}") == (0 if depth < full else dear) for depth in range(MAX_DEPTH))


async def test_a_chain_of_full_fallback_children_is_refused_by_its_top(there: World) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(there, *chain(MAX_DEPTH, [dear - 1] * MAX_DEPTH, child_mode="fallback"))
    client = await ask(there)
    assert_refused(client, 402, "budget_exhausted", f"bud_{MAX_DEPTH - 1}")
    assert denials(there)[-1].budget_id == f"bud_{MAX_DEPTH - 1}"


async def test_one_child_may_be_full_while_its_sibling_is_charged(there: World) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(
        there,
        budget("bud_p", limit_nano=BIG),
        budget("bud_a", "team", "ml", limit_nano=dear - 1, parent_id="bud_p", child_mode="fallback"),
        budget("bud_b", "agent", "ada", limit_nano=BIG, parent_id="bud_p"),
    )
    assert (await ask(there, x_spend_agent="ada")).status == 200
    assert charged(there) == ["bud_p", "bud_b"]
    assert reservations(there)[-1].parent_charged == ("bud_a",)


# ---- watching -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"enforcement": "monitor"}, {"when_full": "alert"}])
async def test_a_budget_that_only_watches_counts_and_lets_pass(there: World, changes: dict[str, Any]) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(there, budget("bud_w", limit_nano=dear, **changes), budget("bud_o", limit_nano=BIG))
    assert (await ask(there)).status == 200
    assert reservations(there)[-1].would_block == (), "it had room"
    client = await ask(there)
    assert client.status == 200
    assert reservations(there)[-1].would_block == ("bud_w",)
    assert reservations(there)[-1].parent_charged == ()
    assert charged(there) == ["bud_o", "bud_w"]
    assert held_by(there, "bud_w") == 2 * dear


async def test_a_watching_child_is_charged_with_its_parent(there: World) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(
        there,
        budget("bud_p", limit_nano=BIG),
        budget("bud_c", "team", "ml", limit_nano=1, parent_id="bud_p", child_mode="fallback", enforcement="monitor"),
    )
    await ask(there)
    assert (charged(there), reservations(there)[-1].would_block) == (["bud_p", "bud_c"], ("bud_c",))
    assert held_by(there, "bud_c") == dear


async def test_the_response_tells_of_the_tightest_budget_that_is_charged(there: World) -> None:
    await set_budgets(there, budget("bud_wide", limit_nano=BIG), budget("bud_tight", "team", "ml"))
    client = await ask(there)
    assert client.header("x-spend-budget-id") == "bud_tight"
    # 15 tokens at $100 a million.
    assert client.header("x-spend-budget-remaining") == format_usd(1_000_000_000 - 1_500_000)


# ---- downgrading ----------------------------------------------------------------------------------------------------


async def test_a_full_budget_has_a_cheaper_model_answer_in_one_round_trip(there: World) -> None:
    dear, low = await hold_of(there, "dear"), await hold_of(there, "low")
    await set_budgets(there, budget("bud_1", limit_nano=dear - 1, when_full="downgrade", downgrade_to="low"))
    asked(there).asked.clear()
    there.vendor.requests.clear()
    client = await ask(there)
    assert client.status == 200, client.content
    assert len(asked(there).asked) == 1
    (reservation,) = reservations(there)[-1:]
    assert (reservation.held_nano, held_by(there, "bud_1")) == (low, low)
    assert (reservation.facts.model_requested, reservation.facts.model_priced) == ("dear", "low")
    assert reservation.facts.flags == ("downgraded",)
    (sent,) = there.vendor.requests
    assert json.loads(sent.body) == {**chat(), "model": "low"}, "nothing else is changed"
    assert client.header("x-spend-model") == "low"
    settlement = last_settlement(there)
    # 15 tokens at $1 a million.
    assert settlement.cost_nano == 15_000
    assert settlement.facts == reservation.facts
    hold = there.hot_state.store.state("default").holds[reservation.transaction_id]
    assert decode_facts(hold.context) == reservation.facts, "its expiry is told of the call as it is made"


async def test_a_budget_with_room_downgrades_nothing(there: World) -> None:
    await set_budgets(there, budget("bud_1", limit_nano=BIG, when_full="downgrade", downgrade_to="low"))
    await ask(there)
    (reservation,) = reservations(there)
    assert (reservation.facts.model_priced, reservation.facts.flags) == ("dear", ())
    assert b'"model":"dear"' in there.vendor.requests[-1].body.replace(b" ", b"")


async def test_downgrades_are_tried_in_the_order_of_their_budgets_and_the_first_that_fits_is_held(there: World) -> None:
    mid = await hold_of(there, "mid")
    for limit_nano, model in ((mid, "mid"), (mid - 1, "low")):
        await set_budgets(
            there,
            budget("bud_1", limit_nano=BIG, when_full="downgrade", downgrade_to="mid"),
            budget("bud_2", "team", "ml", limit_nano=limit_nano, when_full="downgrade", downgrade_to="low"),
            budget("bud_3", "user", "eve", limit_nano=limit_nano, when_full="downgrade", downgrade_to="mid"),
        )
        there.hot_state.store.state("default").windows.clear()
        client = await ask(there, x_spend_user="eve")
        assert (client.status, client.header("x-spend-model")) == (200, model)
        assert [len(each.alternatives) for each in asked(there).asked[-1:]] == [2], "each model once"


async def test_a_budget_that_blocks_is_not_appeased_by_a_cheaper_model(there: World) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(
        there,
        budget("bud_block", limit_nano=dear - 1),
        budget("bud_down", "team", "ml", limit_nano=dear - 2, when_full="downgrade", downgrade_to="low"),
    )
    client = await ask(there)
    assert_refused(client, 402, "budget_exhausted", "bud_down")
    assert client.json()["error"]["estimate_usd"] == format_usd(dear)


async def test_a_call_that_no_model_is_cheap_enough_for_is_refused_as_it_was_asked(there: World) -> None:
    dear, low = await hold_of(there, "dear"), await hold_of(there, "low")
    await set_budgets(there, budget("bud_1", limit_nano=low - 1, when_full="downgrade", downgrade_to="low"))
    client = await ask(there)
    assert_refused(client, 402, "budget_exhausted", "bud_1")
    assert client.json()["error"]["estimate_usd"] == format_usd(dear)
    assert denials(there)[-1].facts.model_priced == "dear"
    assert denials(there)[-1].facts.flags == ()


async def test_the_budgets_of_both_models_are_charged_for_a_downgraded_call(there: World) -> None:
    """Else the cheaper model's own cap could be overspent by calls that were downgraded to it."""
    dear, low = await hold_of(there, "dear"), await hold_of(there, "low")
    down = budget("bud_down", limit_nano=dear - 1, when_full="downgrade", downgrade_to="low")
    caps = (budget("bud_dear", "model", "dear", limit_nano=BIG), budget("bud_low", "model", "low", limit_nano=low))
    await set_budgets(there, down, *caps)
    assert (await ask(there)).status == 200
    assert charged(there) == ["bud_down", "bud_dear", "bud_low"]
    assert_refused(await ask(there), 402, "budget_exhausted", "bud_down")


@pytest.mark.parametrize("model", ["nobody-lists-it", "dear", None])
async def test_a_model_that_can_not_answer_is_no_alternative(there: World, model: str | None) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(there, budget("bud_1", limit_nano=dear - 1, when_full="downgrade", downgrade_to=model))
    assert_refused(await ask(there), 402, "budget_exhausted", "bud_1")
    assert asked(there).asked[-1].alternatives == ()


async def test_a_price_that_stands_in_for_unknown_models_makes_no_alternative(there: World) -> None:
    dear = await hold_of(there, "dear")
    await there.org.publish(unknown_models=UnknownModels("allow_unpriced"))
    await set_budgets(there, budget("bud_1", limit_nano=dear - 1, when_full="downgrade", downgrade_to="unlisted"))
    assert_refused(await ask(there), 402, "budget_exhausted", "bud_1")


async def test_a_cheaper_model_does_not_slip_past_its_own_budget_of_each_session(there: World) -> None:
    dear, low = await hold_of(there, "dear"), await hold_of(there, "low")
    down = budget("bud_1", limit_nano=dear - 1, when_full="downgrade", downgrade_to="low")
    await set_budgets(there, down, budget("bud_s", "model", "low", limit_nano=low, window=SessionWindow()))
    assert_refused(await ask(there), 402, "budget_exhausted", "bud_1")
    assert asked(there).asked[-1].alternatives == ()
    assert (await ask(there, x_spend_session="one")).status == 200
    assert charged(there) == ["bud_1", "bud_s"]
    assert_refused(await ask(there, x_spend_session="one"), 402, "budget_exhausted", "bud_1")
    watching = budget("bud_s", "model", "low", limit_nano=1, window=SessionWindow(), enforcement="monitor")
    await set_budgets(there, replace(down, limit_nano=dear - 1 + low), watching)
    assert (await ask(there)).status == 200, "one that only watches asks for none"


async def test_at_most_four_models_are_tried(there: World) -> None:
    models = ["mid", "low", "gpt-4o-mini", "dear", "mid", "unlisted", "low"]
    await set_budgets(
        there,
        *(budget(f"bud_{number}", when_full="downgrade", downgrade_to=model) for number, model in enumerate(models)),
    )
    await ask(there)
    facts = [decode_facts(each.context) for each in asked(there).asked[-1].alternatives]
    assert [each.model_priced for each in facts] == ["mid", "low", "gpt-4o-mini"]
    assert {each.flags for each in facts} == {("downgraded",)}


async def test_only_budgets_that_would_downgrade_offer_a_model(there: World) -> None:
    await set_budgets(
        there,
        budget("bud_p", limit_nano=BIG),
        budget("bud_m", enforcement="monitor", when_full="downgrade", downgrade_to="low"),
        budget("bud_f", "team", "ml", parent_id="bud_p", child_mode="fallback", when_full="downgrade",
               downgrade_to="low"),
        budget("bud_o", "team", "web", when_full="downgrade", downgrade_to="low"),
    )  # fmt: skip
    await ask(there)
    assert asked(there).asked[-1].alternatives == ()


async def test_work_that_goes_on_after_its_answer_is_never_downgraded(there: World) -> None:
    await set_budgets(there, budget("bud_1", limit_nano=1, when_full="downgrade", downgrade_to="low"))
    body = {"model": "dear", "input": "Hi", "background": True, "max_output_tokens": 9}
    assert_refused(await there.call(body, path="/v1/responses"), 402, "budget_exhausted")
    assert asked(there).asked[-1].alternatives == ()


async def test_a_cheaper_model_is_no_way_out_of_the_budget_of_the_model_that_was_asked_for_by_another_name(
    there: World,
) -> None:
    dear, low = await hold_of(there, "dear"), await hold_of(there, "low")
    await set_budgets(
        there,
        budget("bud_dear", "model", "dear", limit_nano=2 * low, when_full="downgrade", downgrade_to="low"),
        budget("bud_org", limit_nano=dear - 1, when_full="downgrade", downgrade_to="low"),
    )
    for _ in range(2):
        assert (await ask(there, "dear-2026-01-01")).status == 200
        assert reservations(there)[-1].facts.model_priced == "low"
        assert charged(there) == ["bud_org", "bud_dear"]
    assert_refused(await ask(there, "dear-2026-01-01"), 402, "budget_exhausted", "bud_dear")
