"""The cap matrix on a gateway: which cell a call falls into, and what a cap refuses (BU-7)."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.control.cap_policies.compiled import compile_caps
from services.core.billing import Cap
from services.core.codec import decode
from services.core.events import Denial, Reservation, Settlement
from services.core.fold import step_of
from services.core.ports import TopicPartition
from services.core.snapshot import RouteRule, Target, UnknownModels
from tests.support.asgi import Client, request
from tests.support.gateway import WHOLE_ANSWER, ScriptedAnswer, World, chat, until, world
from tests.support.growing import DONE, begin, streamed, text, usage

# More than a chat call of `chat()` can cost, and less than one of a thousand tokens can.
ONE_CALL_NANO = 200_000
_ALLOWED = UnknownModels("allow_unpriced")


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


def cap(billing_class: str = "metered.openai", period: Any = "daily", limit_nano: int | None = 0) -> Cap:
    return Cap(billing_class, period, limit_nano, 1)


async def set_caps(there: World, *caps: Cap) -> None:
    """Publishes the caps as control does, with nothing spent before."""
    budgets = compile_caps(caps)
    there.hot_state.store.state("default").filled |= {each.budget_id: each.since_version for each in budgets}
    await there.org.publish(budgets=budgets)
    await there.sync()


async def answered(there: World, **headers: str) -> Client:
    there.answer(ScriptedAnswer([WHOLE_ANSWER]))
    return await there.call(**headers)


async def fold(there: World) -> None:
    """Folds what was settled, as the aggregator does."""
    rows = [row for row in there.outbox.oldest(100_000) if row.message.topic == Settlement.TOPIC]
    steps = [step_of(decode(row.message.value), offset) for offset, row in enumerate(rows)]
    place = TopicPartition(Settlement.TOPIC, 0)
    await there.hot_state.apply("default", place, [step for step in steps if step is not None], len(rows))


def error_of(client: Client) -> dict[str, Any]:
    error: dict[str, Any] = client.json()["error"]
    return error


def denial(there: World) -> Denial:
    (found,) = (each for each in there.events() if isinstance(each, Denial))
    return found


# ---- which cell -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["metered", "shared", "host-session", "local"])
async def test_a_connection_says_which_billing_class_its_calls_are_of(there: World, mode: str) -> None:
    connection = there.org.snapshot.connections["openai"]
    await there.org.publish(connections={"openai": replace(connection, auth_mode=mode)})
    await there.sync()
    await answered(there)
    assert {each.facts.billing_class for each in there.events()} == {f"{mode}.openai"}
    there.answer(ScriptedAnswer([WHOLE_ANSWER]))
    await there.call(x_vendor_key="sk-own")
    assert there.events()[-1].facts.billing_class == "byok.openai", "a key of the caller's own, whatever it says"


async def test_a_vendor_that_is_not_connected_is_metered_unless_the_caller_brings_a_key(there: World) -> None:
    await there.org.disconnect("openai")
    await there.sync()
    assert (await there.call()).status == 400
    assert denial(there).facts.billing_class == "metered.openai"
    assert (await answered(there, x_vendor_key="sk-own")).status == 200
    assert there.settlement().facts.billing_class == "byok.openai"


async def test_a_call_that_goes_on_to_another_vendor_is_of_that_connections_class(there: World) -> None:
    first = there.org.snapshot.connections["openai"]
    second = replace(first, vendor="mirror", base_url="https://mirror.test/v1", auth_mode="shared")
    rule = RouteRule("openai", "chat.completions", fallbacks=(Target("mirror", "gpt-4o-mini"),))
    await there.org.publish(connections={"openai": first, "mirror": second}, rules=(rule,))
    await set_caps(there, cap("metered.openai", "daily", 10**9), cap("shared.mirror", "daily", 10**9))
    there.answer(*[ScriptedAnswer([b"{}"], status=503)] * 3, ScriptedAnswer([WHOLE_ANSWER]))
    assert (await there.call()).status == 200
    settlement = there.settlement()
    assert settlement.facts.billing_class == "shared.mirror"
    assert [each.scope for each in settlement.charges] == ["billing_class:shared.mirror"]


# ---- what is refused ------------------------------------------------------------------------------------------------


async def test_a_daily_cap_refuses_what_does_not_fit_and_lets_others_be(there: World) -> None:
    await set_caps(there, cap(limit_nano=ONE_CALL_NANO), cap("byok.openai", "daily", ONE_CALL_NANO))
    assert (await answered(there)).status == 200
    await fold(there)
    spent = there.settlement().cost_nano
    assert 0 < spent < ONE_CALL_NANO
    there.answer(*[ScriptedAnswer([WHOLE_ANSWER])] * 2)
    refused = await there.call(chat(max_tokens=1_000))
    error = error_of(refused)
    assert (refused.status, error["code"]) == (402, "BudgetCapExceeded")
    assert (error["scope"], error["billingClass"], error["cap"]) == (
        "billing_class:metered.openai",
        "metered.openai",
        "daily",
    )
    assert denial(there).code == "BudgetCapExceeded"
    assert denial(there).spent_nano == spent
    assert (await there.call(x_vendor_key="sk-own")).status == 200, "another cell's cap has room"
    assert len(there.vendor.requests) == 2


async def test_each_session_has_a_cap_of_its_own(there: World) -> None:
    await set_caps(there, cap(period="per_session", limit_nano=ONE_CALL_NANO))
    assert (await answered(there, x_spend_session="one")).status == 200
    await fold(there)
    for session, expected in (("one", 402), ("two", 200), ("one", 402)):
        if expected == 200:
            there.answer(ScriptedAnswer([WHOLE_ANSWER]))
        client = await there.call(chat(max_tokens=1_000 if expected == 402 else 100), x_spend_session=session)
        assert client.status == expected, session
    charges = [each.charges for each in there.events() if isinstance(each, Reservation)]
    assert [[each.window for each in of_one] for of_one in charges] == [["s:one"], ["s:two"]]


async def test_a_cap_on_sessions_wants_to_know_the_session(there: World) -> None:
    await set_caps(there, cap(period="per_session", limit_nano=10**9))
    client = await there.call()
    assert (client.status, error_of(client)["code"]) == (400, "session_required")
    assert "x-spend-session" in error_of(client)["message"]
    assert (await answered(there, x_spend_session="one")).status == 200


@pytest.mark.parametrize("period", ["daily", "monthly", "per_session"])
@pytest.mark.parametrize("headers", [{}, {"x_spend_session": "one"}])
async def test_a_cap_of_nothing_blocks_before_the_session_starts(
    there: World, period: str, headers: dict[str, str]
) -> None:
    await set_caps(there, cap(period=period, limit_nano=0), cap("metered.sandbox", "per_session", 10**9))
    client = await there.call(**headers)
    error = error_of(client)
    assert (client.status, error["code"], error["limit_usd"]) == (402, "BudgetCapExceeded", "0.000000000")
    assert error["cap"] == {"per_session": "perSession"}.get(period, period)
    assert client.header("x-should-retry") == "false"
    assert client.header("retry-after") is None
    assert "waiting brings nothing" in error["message"]
    assert there.vendor.requests == []
    assert there.held_nano() == 0
    assert [type(each) for each in there.events()] == [Denial]


async def test_a_cap_of_nothing_blocks_what_costs_nothing_too(there: World) -> None:
    """A server of one's own, whose models have no price: no figure could ever be in the way."""
    connection = replace(there.org.snapshot.connections["openai"], vendor="vllm", prices_as="vllm", auth_mode="local")
    await there.org.publish(connections={"vllm": connection}, unknown_models=_ALLOWED)
    await set_caps(there, cap("local.vllm", "daily", 10**9))
    assert (await answered(there, x_spend_vendor="vllm")).status == 200
    assert there.settlement().cost_nano == 0
    await set_caps(there, cap("local.vllm", "daily", 0))
    client = await there.call(x_spend_vendor="vllm")
    assert (client.status, error_of(client)["code"]) == (402, "BudgetCapExceeded")
    assert client.header("x-should-retry") == "false"
    assert error_of(client)["message"].endswith("waiting brings nothing")


async def test_a_call_does_not_go_on_to_a_vendor_whose_cap_is_nothing(there: World) -> None:
    first = there.org.snapshot.connections["openai"]
    second = replace(first, vendor="mirror", base_url="https://mirror.test/v1")
    rule = RouteRule("openai", "chat.completions", fallbacks=(Target("mirror", "gpt-4o-mini"),))
    await there.org.publish(connections={"openai": first, "mirror": second}, rules=(rule,))
    await set_caps(there, cap("metered.mirror", "per_session", 0))
    there.answer(*[ScriptedAnswer([b"{}"], status=503)] * 3)
    assert (await there.call()).status == 503
    assert {each.url.partition("/v1")[0] for each in there.vendor.requests} == {"https://vendor.test"}


async def test_a_cap_that_is_off_and_one_that_is_not_there_enforce_nothing(there: World) -> None:
    await set_caps(there, cap(limit_nano=None), cap(period="per_session", limit_nano=None), cap("byok.openai"))
    assert (await answered(there)).status == 200
    assert there.settlement().charges == ()


async def test_the_status_of_a_routes_budget_refusals_is_that_of_its_caps_too(there: World) -> None:
    await there.org.publish(rules=(RouteRule(budget_status=403),))
    await set_caps(there, cap(limit_nano=0))
    assert (await there.call()).status == 403


# ---- what is no model call ------------------------------------------------------------------------------------------


async def test_caps_hold_for_what_is_reserved_by_hand_too(there: World) -> None:
    """A tool of one's own vendor: its daily cap has no room, and a cap of nothing lets not even nothing pass."""
    await set_caps(there, cap("metered.tavily", "daily", 10**9), cap("shared.tavily", "per_session", 0))
    asked = (
        ({"amount_usd": "1.01", "vendor": "tavily"}, 402),
        ({"amount_usd": "0.99", "vendor": "tavily"}, 201),
        ({"amount_usd": "0", "vendor": "tavily", "auth_mode": "shared"}, 402),
        ({"amount_usd": "1.01", "vendor": "tavily", "auth_mode": "local"}, 201),
    )
    for body, status in asked:
        client = await request(there.assembly.app, "/v1/reservations", body, headers=there.headers())
        assert client.status == status, (body, client.json())
        if status == 402:
            assert client.json()["error"] == "BudgetCapExceeded"
            assert client.json()["scope"].startswith("billing_class:")
    assert there.held_nano() == 990_000_000


async def test_a_stream_that_a_cap_has_no_more_room_for_is_told_which(there: World) -> None:
    """No cap lets a stream be held by steps yet: what it would be told is fixed all the same."""
    (compiled,) = compile_caps([cap(limit_nano=10**12)])
    daily = replace(compiled, extend=True, since_version=0)
    await there.org.publish(budgets=(daily,))
    await there.sync()
    gate = asyncio.Event()
    there.answer(streamed(text(10), gate, text(6_000), usage(2_000), DONE))
    client, calling = begin(there)
    await until(lambda: client.chunks)
    await there.org.publish(budgets=(replace(daily, limit_nano=1),))
    await there.sync()
    gate.set()
    await calling
    error = json.loads(client.content[len(text(10)) :].strip().removeprefix(b"data: "))["error"]
    assert (error["code"], error["cap"], error["billingClass"]) == ("BudgetCapExceeded", "daily", "metered.openai")
    assert error["message"].startswith("the daily cap on metered.openai has $")
    assert error["type"] == "insufficient_quota", "as a refusal with status 402 has it"
    assert there.settlement().outcome == "cut_off"
