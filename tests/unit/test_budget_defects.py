"""How others overspend, block for nothing or lose count, one test each, as far as admission can prevent it.

Those that the fold, the reaper, the outbox or the ledger prevent are tested with these; docs/defects.md names all.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.core.budgets import EACH
from services.core.windows import SessionWindow
from services.gateway.assemble import assemble
from tests.support.asgi import request
from tests.support.budgets import (
    OK,
    ask,
    budget,
    charged,
    denials,
    held_by,
    hold_of,
    priced_world,
    reservations,
    set_budgets,
)
from tests.support.gateway import CHAT_PATH, ScriptedAnswer, World, assert_refused, chat, options, until

MANY = 50


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with priced_world(tmp_path) as made:
        yield made


async def at_once(there: World, many: int, **headers: str) -> list[int]:
    """The statuses of so many calls, all of which are decided before the first is answered."""
    recorded = len(there.events())
    there.vendor.head_at = asyncio.Event()
    there.answer(*(ScriptedAnswer([OK]) for _ in range(many)))
    calls = [asyncio.create_task(there.call(chat(model="dear"), **headers)) for _ in range(many)]
    await until(lambda: len(there.events()) == recorded + many)
    there.vendor.head_at.set()
    statuses = [(await each).status for each in calls]
    there.vendor.script.clear()
    return statuses


async def test_per_replica_counters_that_make_n_times_the_cap(there: World) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(there, budget("bud_1", limit_nano=5 * dear))
    replicas = [there.assembly, *(assemble(there.ports, options()) for _ in range(2))]
    for each in replicas:
        await each.snapshots.poll()
    recorded = len(there.events())
    there.vendor.head_at = asyncio.Event()
    there.answer(*(ScriptedAnswer([OK]) for _ in range(15)))
    calls = [
        asyncio.create_task(request(replicas[number % 3].app, CHAT_PATH, chat(model="dear"), headers=there.headers()))
        for number in range(15)
    ]
    await until(lambda: len(there.events()) == recorded + 15)
    there.vendor.head_at.set()
    statuses = [(await each).status for each in calls]
    assert (statuses.count(200), statuses.count(402)) == (5, 10)


async def test_first_concurrent_calls_of_an_unknown_user_all_pass(there: World) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(there, budget("bud_users", "user", EACH, limit_nano=7 * dear))
    statuses = await at_once(there, MANY, x_spend_user="nobody-has-seen-me")
    assert (statuses.count(200), statuses.count(402)) == (7, MANY - 7)
    assert held_by(there, "bud_users@nobody-has-seen-me") == 7 * dear
    assert (await ask(there, x_spend_user="another")).status == 200, "whose budget is another"


async def test_parallel_calls_of_one_session_overshoot(there: World) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(there, budget("bud_s", window=SessionWindow(), limit_nano=3 * dear + dear // 2))
    statuses = await at_once(there, MANY, x_spend_session="ses-1")
    assert (statuses.count(200), statuses.count(402)) == (3, MANY - 3)


async def test_a_hold_that_is_clamped_to_the_remainder_and_admitted(there: World) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(there, budget("bud_1", limit_nano=2 * dear - 1))
    assert (await ask(there)).status == 200
    client = await ask(there)
    assert_refused(client, 402, "budget_exhausted", "bud_1")
    assert denials(there)[-1].estimate_nano == dear
    assert held_by(there, "bud_1") == dear


async def test_a_parents_hold_that_is_leaked_by_refused_calls_until_it_is_falsely_exhausted(there: World) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(
        there,
        budget("bud_p", limit_nano=dear),
        budget("bud_c", "user", "poor", limit_nano=dear - 1, parent_id="bud_p"),
    )
    for _ in range(10):
        assert (await ask(there, x_spend_user="poor")).status == 402
    assert held_by(there, "bud_p") == 0
    assert (await ask(there, x_spend_user="rich")).status == 200, "the parent has all of its room"


async def test_isolation_that_is_inverted_so_that_the_orgs_cap_is_no_cap(there: World) -> None:
    """An isolated child is capped by itself, and by its parent all the same."""
    dear = await hold_of(there, "dear")
    await set_budgets(
        there,
        budget("bud_org", limit_nano=2 * dear),
        budget("bud_team", "team", "ml", limit_nano=100 * dear, parent_id="bud_org"),
    )
    statuses = await at_once(there, 10)
    assert (statuses.count(200), statuses.count(402)) == (2, 8)
    assert {each.budget_id for each in denials(there)} == {"bud_org"}


async def test_parent_charged_that_is_always_true(there: World) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(
        there,
        budget("bud_p", limit_nano=10 * dear),
        budget("bud_c", "team", "ml", limit_nano=dear, parent_id="bud_p", child_mode="fallback"),
    )
    seen = []
    for _ in range(2):
        assert (await ask(there)).status == 200
        seen.append((reservations(there)[-1].parent_charged, charged(there)))
    assert seen == [((), ["bud_p", "bud_c"]), (("bud_c",), ["bud_p"])]


async def test_sibling_budgets_of_which_only_the_first_chain_is_charged(there: World) -> None:
    dear = await hold_of(there, "dear")
    names = ["bud_a", "bud_b", "bud_c", "bud_d"]
    await set_budgets(
        there,
        budget("bud_a"),
        budget("bud_b", "team", "ml", parent_id="bud_a"),
        budget("bud_c", "team", "web"),
        budget("bud_d", "agent", "ada", parent_id="bud_c"),
    )
    assert (await ask(there, x_spend_agent="ada")).status == 200
    assert sorted(charged(there)) == names
    assert [held_by(there, name) for name in names] == [dear] * 4
    # And the last of the second chain refuses as well as the first of the first.
    await set_budgets(
        there,
        budget("bud_a"),
        budget("bud_b", "team", "ml", parent_id="bud_a"),
        budget("bud_c", "team", "web", limit_nano=2 * dear - 1),
        budget("bud_d", "agent", "ada", parent_id="bud_c"),
    )
    assert_refused(await ask(there, x_spend_agent="ada"), 402, "budget_exhausted", "bud_c")


async def test_a_cel_error_that_skips_the_budget(there: World) -> None:
    await set_budgets(there, budget("bud_cel", "cel", "first-tag", expression='tags[0] == "never"', limit_nano=1))
    assert_refused(await ask(there), 402, "budget_exhausted", "bud_cel")
    assert denials(there)[-1].facts.flags == ("expression_error:bud_cel",)


async def test_first_limit_hit_precedence_that_is_undefined(there: World) -> None:
    """The same budgets, published in any order, refuse by the same one: the tightest."""
    dear = await hold_of(there, "dear")
    budgets = [
        budget("bud_wide", limit_nano=dear - 1),
        budget("bud_tie_b", "team", "ml", limit_nano=dear - 9),
        budget("bud_tie_a", "user", "eve", limit_nano=dear - 9),
        budget("bud_cel", "cel", "all", expression="true", limit_nano=dear - 5),
    ]
    for turn in range(len(budgets)):
        await set_budgets(there, *budgets[turn:], *budgets[:turn])
        assert (await ask(there, x_spend_user="eve")).json()["error"]["budget_id"] == "bud_tie_a"


async def test_a_dated_name_that_slips_past_its_models_budget(there: World) -> None:
    await set_budgets(there, budget("bud_mini", "model", "gpt-4o-mini", limit_nano=1))
    client = await ask(there, "gpt-4o-mini-2024-07-18")
    assert_refused(client, 402, "budget_exhausted", "bud_mini")
    facts = denials(there)[-1].facts
    assert (facts.model_requested, facts.model_priced) == ("gpt-4o-mini-2024-07-18", "gpt-4o-mini")


async def test_a_repeated_client_request_id_that_is_refused_or_not_counted(there: World) -> None:
    """Two calls that reach a vendor cost twice, whatever their client calls them; of none is more than one hold."""
    dear = await hold_of(there, "dear")
    await set_budgets(there, budget("bud_1", limit_nano=2 * dear))
    named = {"x_request_id": "req-1", "x_client_request_id": "req-1", "idempotency_key": "req-1"}
    assert [(await ask(there, **named)).status for _ in range(3)] == [200, 200, 402]
    first, second = reservations(there)[-2:]
    assert first.transaction_id != second.transaction_id
    assert held_by(there, "bud_1") == 2 * dear


async def test_a_fail_closed_gateway_that_lets_calls_through(there: World) -> None:
    await set_budgets(there, budget("bud_1"))
    there.hot_state.store.state("default").epoch = None
    assert_refused(await ask(there), 503, "state_rebuilding")
    assert there.vendor.requests == []
