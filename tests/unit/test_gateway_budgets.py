"""What a call is charged to, what it must name for it, and what it is told when a budget has no room."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.core.budgets import EACH, ScopeKind
from services.core.money import format_usd
from services.core.snapshot import RouteRule
from services.core.windows import CalendarWindow, LifetimeWindow, RollingWindow, SessionWindow
from tests.support.asgi import request
from tests.support.budgets import (
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
    spend,
)
from tests.support.gateway import World, assert_refused

MONTH = CalendarWindow("month", "UTC")
BIG = 10**15


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with priced_world(tmp_path) as made:
        yield made


# ---- what a call is charged to --------------------------------------------------------------------------------------

HEADERS = {
    "x_spend_agent": "ada",
    "x_spend_user": "eve@example.org",
    "x_spend_project": "apollo",
    "x_spend_session": "ses-1",
    "x_spend_environment": "prod",
    "x_spend_tags": "nightly,eval",
}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("org", "default"),
        ("team", "ml"),
        ("agent", "ada"),
        ("user", "eve@example.org"),
        ("project", "apollo"),
        ("session", "ses-1"),
        ("environment", "prod"),
        ("vendor", "openai"),
        ("model", "dear"),
        ("tag", "eval"),
        ("billing_class", "metered.openai"),
    ],
)
async def test_a_call_is_charged_to_the_budget_of_each_of_its_scopes(there: World, kind: ScopeKind, value: str) -> None:
    await set_budgets(
        there,
        budget("bud_own", kind, value),
        budget("bud_each", kind, EACH),
        budget("bud_not", kind, value + "x"),
    )
    assert (await ask(there, **HEADERS)).status == 200
    assert {"bud_own", f"bud_each@{value}"} <= set(charged(there))
    assert "bud_not" not in charged(there)
    held_nano = reservations(there)[-1].held_nano
    assert held_by(there, "bud_own") == held_by(there, f"bud_each@{value}") == held_nano > 0


async def test_a_key_has_a_budget_of_its_own(there: World) -> None:
    assert (await ask(there)).status == 200
    key_id = reservations(there)[-1].facts.identity.key_id
    await set_budgets(there, budget("bud_own", "key", key_id))
    assert (await ask(there)).status == 200
    assert charged(there) == ["bud_own"]


async def test_an_expression_is_charged_after_all_scopes(there: World) -> None:
    await set_budgets(
        there,
        budget("bud_cel", "cel", "nightly", expression='"nightly" in tags && team == "ml"'),
        budget("bud_org"),
        budget("bud_no", "cel", "never", expression='team == "web"'),
    )
    await ask(there, **HEADERS)
    assert charged(there) == ["bud_org", "bud_cel"]
    assert reservations(there)[-1].facts.flags == ()


async def test_what_is_charged_carries_its_window(there: World) -> None:
    await set_budgets(
        there,
        budget("bud_l", window=LifetimeWindow()),
        budget("bud_r", window=RollingWindow(3_600_000)),
        budget("bud_s", window=SessionWindow()),
    )
    assert (await ask(there, **HEADERS)).status == 200
    windows = {each.budget_id: each.window for each in reservations(there)[-1].charges}
    assert windows == {"bud_l": "l", "bud_r": "r:60000:60:29333333", "bud_s": "s:ses-1"}


async def test_a_settlement_tells_when_its_call_was_admitted_and_which_parents_paid(there: World) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(there, *chain(2, [dear - 1, BIG], child_mode="fallback"))
    await ask(there)
    settlement = last_settlement(there)
    assert settlement.admitted_at_ms == there.clock.now_ms
    assert settlement.parent_charged == ("bud_0",)
    assert settlement.charges == reservations(there)[-1].charges


async def test_every_model_of_a_batch_is_capped(there: World) -> None:
    await there.org.connect("anthropic", "https://claude.test", dialect="anthropic", prices_as="openai")
    await set_budgets(there, budget("bud_dear", "model", "dear", limit_nano=1), budget("bud_low", "model", "low"))
    params = {"max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]}
    lines = [{"custom_id": name, "params": {**params, "model": name}} for name in ("low", "dear")]
    headers = [("x-api-key", there.key), ("anthropic-version", "2023-06-01")]
    client = await request(
        there.assembly.app, "/v1/messages/batches", json.dumps({"requests": lines}).encode(), headers=headers
    )
    assert (client.status, denials(there)[-1].budget_id) == (402, "bud_dear"), client.content


# ---- too many, and sessions -----------------------------------------------------------------------------------------


async def test_a_call_of_more_budgets_than_can_be_held_against_is_refused_with_what_to_do(there: World) -> None:
    budgets = [budget(f"bud_{number}") for number in range(65)]
    await set_budgets(there, *budgets)
    client = await ask(there)
    assert_refused(client, 400, "too_many_budgets", "65 budgets", "64", "narrow their scopes")
    assert denials(there)[-1].code == "too_many_budgets"
    await set_budgets(there, *budgets[:-1])
    assert (await ask(there)).status == 200
    assert len(charged(there)) == 64


async def test_a_budget_of_each_session_asks_for_the_session_by_the_name_of_its_header(tmp_path: Path) -> None:
    async with priced_world(tmp_path, header_prefix="x-acme-") as there:
        await set_budgets(there, budget("bud_s", "team", "ml", window=SessionWindow()))
        client = await ask(there)
        assert_refused(client, 400, "session_required", "bud_s", "team:ml", "x-acme-session")
        assert client.json()["error"]["param"] == "x-acme-session"
        assert denials(there)[-1].code == "session_required"
        assert (await ask(there, x_acme_session="ses-1")).status == 200


async def test_what_claude_code_calls_its_session_stands_in_and_goes_on_to_the_vendor(there: World) -> None:
    await set_budgets(there, budget("bud_s", window=SessionWindow()))
    assert (await ask(there, x_claude_code_session_id="6f0c-42")).status == 200
    assert reservations(there)[-1].charges[0].window == "s:6f0c-42"
    assert reservations(there)[-1].facts.identity.session == "6f0c-42"
    assert (b"x-claude-code-session-id", b"6f0c-42") in there.vendor.requests[-1].headers
    assert (await ask(there, x_claude_code_session_id="6f0c-42", x_spend_session="own")).status == 200
    assert reservations(there)[-1].charges[0].window == "s:own"
    assert_refused(await ask(there, x_claude_code_session_id="no name"), 400, "session_required")


async def test_a_key_that_is_pinned_to_a_session_does_not_contradict_its_client(there: World) -> None:
    key = await there.org.make_key(session="pinned")
    await there.sync()
    client = await ask(there, authorization=f"Bearer {key}", x_claude_code_session_id="6f0c-42")
    assert client.status == 200
    assert reservations(there)[-1].facts.identity.session == "pinned"


async def test_a_budget_that_only_watches_sessions_asks_for_none(there: World) -> None:
    await set_budgets(there, budget("bud_s", window=SessionWindow(), enforcement="monitor"), budget("bud_d"))
    assert (await ask(there)).status == 200
    assert charged(there) == ["bud_d"]
    assert (await ask(there, x_spend_session="ses-1")).status == 200
    assert charged(there) == ["bud_d", "bud_s"]


async def test_sessions_are_capped_one_by_one(there: World) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(there, budget("bud_s", window=SessionWindow(), limit_nano=dear))
    assert (await ask(there, x_spend_session="ses-1")).status == 200
    client = await ask(there, x_spend_session="ses-1")
    assert_refused(client, 402, "budget_exhausted", "bud_s")
    assert (await ask(there, x_spend_session="ses-2")).status == 200


# ---- the refusal ----------------------------------------------------------------------------------------------------


async def test_a_refusal_names_the_tightest_budget_and_of_equals_the_first_by_id(there: World) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(
        there,
        budget("bud_z", limit_nano=dear - 2),
        budget("bud_c", "team", "ml", limit_nano=dear - 5),
        budget("bud_b", "user", EACH, limit_nano=dear - 5),
        budget("bud_a", limit_nano=0, enforcement="monitor"),
        budget("bud_d", when_full="alert", limit_nano=0),
    )
    for _ in range(3):
        error = (await ask(there, x_spend_user="eve")).json()["error"]
        assert error["budget_id"] == "bud_b@eve"
        assert error["scope"] == "user:eve"
    assert {each.budget_id for each in denials(there)} == {"bud_b@eve"}
    assert there.held_nano() == 0


async def test_a_budget_for_all_time_never_resets_and_is_not_to_be_waited_for(there: World) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(there, budget("bud_l", window=LifetimeWindow(), limit_nano=dear))
    await ask(there)
    spend(there, "bud_l", 0)
    client = await ask(there)
    assert_refused(client, 402, "budget_exhausted", "it never resets")
    error = client.json()["error"]
    assert error["resets_at"] is None
    assert "retry_at" not in error
    assert client.header("retry-after") is None
    assert client.header("x-should-retry") == "false"


async def test_a_refusal_tells_when_there_is_room_again(there: World) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(there, budget("bud_d", limit_nano=dear))
    await ask(there)
    held_up = await ask(there)
    assert held_up.json()["error"]["retry_at"] == "2025-10-09T08:53:21.000Z", "held by a call that may end any time"
    assert held_up.header("retry-after") == "1"
    spend(there, "bud_d", 0)
    client = await ask(there)
    error = client.json()["error"]
    assert error["retry_at"] == error["resets_at"] == "2025-10-10T00:00:00.000Z"
    assert error["spent_usd"] == error["limit_usd"] == format_usd(dear)
    assert error["held_usd"] == "0.000000000"
    assert client.header("retry-after") is None, "too long to wait for"


@pytest.mark.parametrize(
    ("window", "cap", "words"),
    [
        (CalendarWindow("day", "UTC"), "daily", "the daily cap on metered.openai"),
        (MONTH, "monthly", "the monthly cap on metered.openai"),
        (SessionWindow(), "perSession", "the per-session cap on metered.openai"),
    ],
)
async def test_a_cap_is_refused_in_the_words_of_the_cap_matrix(there: World, window: Any, cap: str, words: str) -> None:
    await set_budgets(
        there,
        budget("cap_1", "billing_class", "metered.openai", window=window, limit_nano=0, is_cap=True),
        budget("cap_2", "billing_class", "byok.openai", window=window, limit_nano=0, is_cap=True),
    )
    client = await ask(there, x_spend_session="ses-1")
    assert_refused(client, 402, "BudgetCapExceeded", words, "$0.000000000 left")
    error = client.json()["error"]
    assert (error["cap"], error["billingClass"], error["budget_id"]) == (cap, "metered.openai", "cap_1")
    assert denials(there)[-1].code == "BudgetCapExceeded"
    assert there.vendor.requests == []


async def test_a_cap_has_the_status_of_its_routes_rule(there: World) -> None:
    await there.org.publish(rules=(RouteRule("openai", "chat.completions", budget_status=429),))
    await set_budgets(there, budget("cap_1", "billing_class", "metered.openai", limit_nano=0, is_cap=True))
    assert (await ask(there)).status == 429


async def test_another_budget_that_is_tighter_than_the_cap_is_named_as_itself(there: World) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(
        there,
        budget("cap_1", "billing_class", "metered.openai", limit_nano=dear - 1, is_cap=True),
        budget("bud_1", limit_nano=dear - 2),
    )
    error = (await ask(there)).json()["error"]
    assert (error["code"], error["budget_id"]) == ("budget_exhausted", "bud_1")
    assert "cap" not in error


# ---- expressions that fail ------------------------------------------------------------------------------------------


async def test_a_failing_expression_is_charged_and_flagged_in_every_event(there: World) -> None:
    await set_budgets(there, budget("bud_cel", "cel", "first-tag", expression='tags[0] == "never"'))
    assert (await ask(there)).status == 200
    assert charged(there) == ["bud_cel"]
    assert {each.facts.flags for each in there.events()} == {("expression_error:bud_cel",)}
    assert (await ask(there, x_spend_tags="other")).status == 200
    assert charged(there) == []
    assert reservations(there)[-1].facts.flags == ()


async def test_a_failing_expression_refuses_once_its_budget_is_full(there: World) -> None:
    await set_budgets(there, budget("bud_cel", "cel", "first-tag", expression='tags[0] == "x"', limit_nano=1))
    assert_refused(await ask(there), 402, "budget_exhausted", "bud_cel", "cel:first-tag")
    assert denials(there)[-1].facts.flags == ("expression_error:bud_cel",)
