"""Limits of nothing, and limits that change while a call comes or goes on: what is in force then decides."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from services.core.budgets import Budget
from services.core.snapshot import Overrides, RouteRule, Target
from services.core.vendor_port import VendorRequest
from services.core.windows import SessionWindow
from services.gateway import forward
from tests.support.asgi import Client, Message, request, scope_of
from tests.support.budgets import (
    ENTRIES,
    OK,
    ask,
    budget,
    charged,
    denials,
    held_by,
    hold_of,
    last_settlement,
    priced_world,
    resizes,
    set_budgets,
    spend,
)
from tests.support.gateway import CHAT_PATH, ScriptedAnswer, ScriptedVendor, World, assert_refused, chat

FREE: tuple[dict[str, Any], ...] = tuple(
    {"vendor": vendor, "model": model, "prices": [{"usd": {"input": "0", "output": "0"}}], "max_output_tokens": 100}
    for vendor, model in (("openai", "gratis"), ("other", "gift"))
)
BIG = 10**15


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "RETRY_PAUSES_S", (0.0, 0.0))


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with priced_world(tmp_path) as made:
        await made.org.publish(overrides=Overrides("own", ENTRIES + FREE))
        await made.sync()
        yield made


async def fall_back(there: World, asked: str, model: str) -> Client:
    """A call whose vendor is down and which may go on to another."""
    there.answer(*(ScriptedAnswer([b"down"], 503) for _ in range(3)), ScriptedAnswer([OK]))
    await there.org.publish(rules=(RouteRule("openai", "chat.completions", fallbacks=(Target("other", model),)),))
    await there.sync()
    client = await there.call(chat(model=asked))
    there.vendor.script.clear()
    return client


# ---- a limit of nothing ---------------------------------------------------------------------------------------------


async def test_a_budget_of_nothing_blocks_what_costs_nothing(there: World) -> None:
    await set_budgets(there, budget("bud_0", limit_nano=1))
    assert (await ask(there, "gratis")).status == 200
    await set_budgets(there, budget("bud_0", limit_nano=0))
    client = await ask(there, "gratis")
    assert_refused(client, 402, "budget_exhausted", "bud_0")
    assert client.header("x-should-retry") == "false"
    assert denials(there)[-1].budget_id == "bud_0"


@pytest.mark.parametrize(
    "changes",
    [{"enforcement": "monitor"}, {"when_full": "alert"}, {"when_full": "downgrade", "downgrade_to": "low"}],
    ids=["monitor", "alert", "downgrade"],
)
async def test_a_budget_of_nothing_that_refuses_nothing_lets_pass(there: World, changes: dict[str, Any]) -> None:
    await set_budgets(there, budget("bud_0", limit_nano=0, **changes))
    assert (await ask(there, "gratis")).status == 200


async def test_a_child_of_nothing_lets_its_parent_pay_nothing_unless_that_is_of_nothing_too(there: World) -> None:
    child = budget("bud_c", "team", "ml", limit_nano=0, parent_id="bud_p", child_mode="fallback")
    await set_budgets(there, budget("bud_p", limit_nano=1), child)
    assert (await ask(there, "gratis")).status == 200
    await set_budgets(there, budget("bud_p", limit_nano=0), child)
    assert_refused(await ask(there, "gratis"), 402, "budget_exhausted", "bud_p")


async def test_a_cheaper_model_of_a_budget_of_nothing_is_not_gone_to(there: World) -> None:
    full = budget("bud_full", limit_nano=1, when_full="downgrade", downgrade_to="gratis")
    await set_budgets(there, full)
    assert (await ask(there)).status == 200
    await set_budgets(there, full, budget("bud_0", "model", "gratis", limit_nano=0))
    assert_refused(await ask(there), 402, "budget_exhausted", "bud_full")


async def test_nothing_can_not_be_reserved_of_nothing(there: World) -> None:
    async def reserve() -> Client:
        headers = [*there.headers(), ("content-type", "application/json")]
        return await request(there.assembly.app, "/v1/reservations", {"amount_usd": "0"}, headers=headers)

    await set_budgets(there, budget("bud_0", limit_nano=1))
    assert (await reserve()).status == 201
    await set_budgets(there, budget("bud_0", limit_nano=0))
    refused = await reserve()
    assert (refused.status, refused.json()["error"], refused.json()["budget_id"]) == (402, "budget_exhausted", "bud_0")


async def test_a_call_does_not_go_on_to_what_a_budget_of_nothing_blocks(there: World) -> None:
    await set_budgets(there, budget("bud_org"))
    assert (await fall_back(there, "dear", "gift")).status == 200
    await set_budgets(there, budget("bud_org"), budget("bud_0", "vendor", "other", limit_nano=0))
    assert (await fall_back(there, "dear", "gift")).status == 503


async def test_a_call_of_no_session_does_not_go_on_to_a_vendor_whose_sessions_are_capped(there: World) -> None:
    await set_budgets(there, budget("bud_s", "vendor", "other", window=SessionWindow()))
    assert (await fall_back(there, "dear", "far")).status == 503
    assert resizes(there) == []


# ---- expressions of models ------------------------------------------------------------------------------------------


async def test_an_expression_of_a_model_is_not_slipped_past_by_a_batch(there: World) -> None:
    await there.org.connect("anthropic", "https://claude.test", dialect="anthropic", prices_as="openai")
    await set_budgets(there, budget("bud_cel", "cel", "dear", expression='model == "dear"', limit_nano=0))
    params = {"max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]}
    lines = [{"custom_id": name, "params": {**params, "model": name}} for name in ("low", "dear")]
    headers = [("x-api-key", there.key), ("anthropic-version", "2023-06-01")]
    content = json.dumps({"requests": lines}).encode()
    client = await request(there.assembly.app, "/v1/messages/batches", content, headers=headers)
    assert (client.status, denials(there)[-1].budget_id) == (402, "bud_cel"), client.content


async def test_an_expression_of_a_model_is_not_slipped_past_by_going_to_another_vendor(there: World) -> None:
    await set_budgets(there, budget("bud_org"))
    assert (await fall_back(there, "dear", "far")).status == 200
    far = budget("bud_cel", "cel", "far", expression='model == "far"', limit_nano=BIG)
    await set_budgets(there, budget("bud_org"), far)
    assert (await fall_back(there, "dear", "far")).status == 200
    assert "bud_cel" not in charged(there), "as it was admitted"
    assert "bud_cel" in [each.budget_id for each in last_settlement(there).charges]
    await set_budgets(
        there, budget("bud_org"), budget("bud_cel", "cel", "far", expression='model == "far"', limit_nano=0)
    )
    assert (await fall_back(there, "dear", "far")).status == 503


# ---- what changes while a request comes -----------------------------------------------------------------------------


class Stalling(Client):
    """A client that has something happen before the last part of its body."""

    between: Callable[[], Any]

    async def receive(self) -> Message:
        if self._place == 1:
            await self.between()
        return await super().receive()


def stalling(body: object, between: Callable[[], Any]) -> Stalling:
    content = orjson.dumps(body)
    client = Stalling(body=(content[:5], content[5:]))
    client.between = between
    return client


async def test_a_call_is_decided_by_the_limits_of_when_all_of_it_has_come(there: World) -> None:
    async def lower() -> None:
        await set_budgets(there, budget("bud_1", limit_nano=0))

    await set_budgets(there, budget("bud_1"))
    there.answer(ScriptedAnswer([OK]))
    client = stalling(chat(model="dear"), lower)
    await there.assembly.app(scope_of(CHAT_PATH, there.headers()), client.receive, client.send)
    assert_refused(client, 402, "budget_exhausted", "bud_1")
    assert denials(there)[-1].facts.config_version == there.org.snapshot.version


async def test_a_key_that_is_revoked_while_a_slow_call_comes_makes_none(there: World) -> None:
    async def revoke() -> None:
        await asyncio.sleep(0.06)
        await there.org.revoke_key(there.key)
        await there.sync()

    there.answer(ScriptedAnswer([OK]))
    client = stalling(chat(model="dear"), revoke)
    await there.assembly.app(scope_of(CHAT_PATH, there.headers()), client.receive, client.send)
    assert client.status == 401
    assert there.vendor.requests == []


async def test_a_key_is_looked_up_again_before_the_configuration_without_it_is_there(
    there: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll forgets keys first, and takes its time to load the rest."""

    async def find_key(_: str) -> None:
        return None

    async def revoke() -> None:
        await asyncio.sleep(0.06)
        monkeypatch.setattr(there.directory, "find_key", find_key)
        there.assembly.snapshots._on_change()

    client = stalling(chat(model="dear"), revoke)
    await there.assembly.app(scope_of(CHAT_PATH, there.headers()), client.receive, client.send)
    assert client.status == 401


async def test_a_reservation_is_decided_by_the_limits_of_when_all_of_it_has_come(there: World) -> None:
    async def lower() -> None:
        await set_budgets(there, budget("bud_1", limit_nano=0))

    await set_budgets(there, budget("bud_1"))
    client = stalling({"amount_usd": "0.01"}, lower)
    headers = [*there.headers(), ("content-type", "application/json")]
    await there.assembly.app(scope_of("/v1/reservations", headers), client.receive, client.send)
    assert (client.status, client.json()["budget_id"]) == (402, "bud_1")


# ---- what changes while a vendor fails ------------------------------------------------------------------------------


class ChangingVendor(ScriptedVendor):
    """Fails while the org's budgets become others."""

    there: World
    budgets: tuple[Budget, ...] = ()

    async def send(self, request: VendorRequest) -> ScriptedAnswer:
        if "vendor.test" in request.url and self.budgets:
            await set_budgets(self.there, *self.budgets)
        return await super().send(request)


@pytest.mark.parametrize("limit_nano", [0, BIG])
async def test_a_call_goes_on_by_the_limits_of_when_it_does(tmp_path: Path, limit_nano: int) -> None:
    vendor = ChangingVendor()
    async with priced_world(tmp_path, vendors=vendor) as there:
        vendor.there, vendor.script = there, there.vendor.script
        await set_budgets(there, budget("bud_org"))
        vendor.budgets = (budget("bud_org"), budget("bud_new", "vendor", "other", limit_nano=limit_nano))
        client = await fall_back(there, "dear", "far")
        assert client.status == (200 if limit_nano else 503)
        assert (held_by(there, "bud_new") > 0) == (limit_nano > 0)
        version = last_settlement(there).facts.config_version
        assert (version == there.org.snapshot.version) == (limit_nano > 0)


async def test_a_call_does_not_go_on_once_its_own_budget_is_of_nothing(tmp_path: Path) -> None:
    vendor = ChangingVendor()
    async with priced_world(tmp_path, vendors=vendor) as there:
        vendor.there, vendor.script = there, there.vendor.script
        await set_budgets(there, budget("bud_org"))
        vendor.budgets = (budget("bud_org", limit_nano=0),)
        assert (await fall_back(there, "dear", "far")).status == 503


# ---- what is worth waiting for --------------------------------------------------------------------------------------


async def test_of_two_full_budgets_one_that_is_spent_is_not_waited_for(there: World) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(there, budget("bud_a", limit_nano=dear), budget("bud_b", "team", "ml", limit_nano=dear))
    assert (await ask(there)).status == 200
    assert (await ask(there)).header("retry-after") == "1", "both are only held"
    spend(there, "bud_b", 0)
    client = await ask(there)
    assert (client.status, client.header("x-should-retry"), client.header("retry-after")) == (402, "false", None)


async def test_holds_that_would_leave_too_little_are_not_waited_for(there: World) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(there, budget("bud_a"))
    assert (await ask(there)).status == 200
    spend(there, "bud_a", 0)
    assert (await ask(there)).status == 200
    for limit_nano, header in ((2 * dear, "1"), (2 * dear - 1, None)):
        await set_budgets(there, budget("bud_a", limit_nano=limit_nano))
        client = await ask(there)
        assert (client.status, client.header("retry-after")) == (402, header)
