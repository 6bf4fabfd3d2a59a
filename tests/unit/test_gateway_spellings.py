"""No spelling of a model or a vendor slips past a budget: as it is asked for, sent to its vendor, or only reserved."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.core.budgets import EACH, Budget
from services.core.events import CallFacts
from services.core.identity import Identity
from services.core.matching import BudgetIndex
from services.core.snapshot import Overrides, RouteRule, Target, UnknownModels
from services.gateway import forward
from services.gateway.sizing import STEP_TOKENS
from tests.support import growing
from tests.support.asgi import Client
from tests.support.budgets import (
    OK,
    ask,
    budget,
    charged,
    denials,
    held_by,
    hold_of,
    last_settlement,
    priced_world,
    reservations,
    resizes,
    set_budgets,
)
from tests.support.gateway import ScriptedAnswer, World, assert_refused, chat, world
from tests.support.reservations import USAGE, Ledger, post, reserve

BIG = 10**15
DATED = "gpt-4o-mini-2024-07-18"
# Whatever they look like, these are one model.
SPELLINGS = ("gpt-4o-mini", DATED, "GPT-4o-mini", "openai/gpt-4o-mini", "OpenAI/GPT-4o-mini-2024-07-18", f" {DATED} ")


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, relay_transport=Ledger()) as made:
        yield made


@pytest.fixture
async def priced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(forward, "RETRY_PAUSES_S", (0.0, 0.0))
    async with priced_world(tmp_path) as made:
        yield made


def full(kind: str = "model") -> Budget:
    """A budget of the model that all of `SPELLINGS` mean, with nothing left."""
    if kind == "cel":
        return budget("bud_1", "cel", "mini", expression='model == "gpt-4o-mini"', limit_nano=0)
    return budget("bud_1", "model", "gpt-4o-mini", limit_nano=0)


# ---- reservations: models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["model", "cel"])
@pytest.mark.parametrize("size", [{"amount_usd": "0.40"}, {"usage": USAGE}], ids=["amount", "usage"])
@pytest.mark.parametrize("model", SPELLINGS)
async def test_a_reservation_is_held_against_its_models_budget_however_that_is_spelled(
    there: World, model: str, size: dict[str, object], kind: str
) -> None:
    await set_budgets(there, full(kind))
    refused = await post(there, body={**size, "vendor": "openai", "model": model})
    assert (refused.status, refused.json().get("budget_id")) == (402, "bud_1"), refused.content
    (denial,) = denials(there)
    assert (denial.facts.model_requested, denial.facts.model_priced) == (model.strip(), "gpt-4o-mini")


@pytest.mark.parametrize("vendor", [{}, {"vendor": "tavily"}, {"vendor": "azure"}])
async def test_so_is_one_whose_vendor_has_no_prices_of_its_own(there: World, vendor: dict[str, str]) -> None:
    await set_budgets(there, full())
    assert (await reserve(there, model=DATED, **vendor)).status == 402


@pytest.mark.parametrize("name", ["GPT-4o-Mini", DATED, DATED.upper()])
async def test_a_budget_may_be_named_by_any_spelling_that_is_asked_for(there: World, name: str) -> None:
    await set_budgets(there, budget("bud_1", "model", name, limit_nano=0))
    assert (await reserve(there, vendor="openai", model=name.lower())).status == 402


async def test_each_models_budget_is_that_of_the_model_that_is_meant(there: World) -> None:
    await set_budgets(there, budget("bud_1", "model", EACH, limit_nano=500_000_000))
    assert (await reserve(there, vendor="openai", model=DATED)).status == 201
    refused = await reserve(there, vendor="openai", model="GPT-4o-mini")
    assert (refused.status, refused.json()["budget_id"]) == (402, "bud_1@gpt-4o-mini")


async def test_an_own_price_in_capitals_is_found_by_any(there: World) -> None:
    entry = {"vendor": "own", "model": "Org/Large", "prices": [{"usd": {"input": "1", "output": "1"}}]}
    await there.org.publish(overrides=Overrides("own", (entry,)))
    await set_budgets(there, budget("bud_1", "model", EACH, limit_nano=0))
    refused = await reserve(there, vendor="own", model="org/large")
    assert (refused.status, denials(there)[0].facts.model_priced) == (402, "Org/Large")


async def test_a_model_that_nobody_lists_is_taken_by_its_name(there: World) -> None:
    """As of a tool: an amount in dollars needs no price."""
    await there.org.publish(unknown_models=UnknownModels("fallback_price", Target("openai", "gpt-4o-mini")))
    await set_budgets(there, full(), budget("bud_2", "model", "search"))
    told = await reserve(there, vendor="tavily", model="Search")
    assert told.status == 201
    (reservation,) = reservations(there)
    assert charged(there) == ["bud_2"]
    assert (reservation.facts.model_priced, reservation.facts.match) == ("Search", "none")


async def test_what_no_model_is_named_for_is_in_no_models_budget(there: World) -> None:
    await set_budgets(there, full(), budget("bud_2", "model", EACH, limit_nano=0))
    assert (await reserve(there, vendor="openai")).status == 201
    assert charged(there) == []


async def test_a_reservation_grows_in_the_budget_of_its_model_and_is_settled_there(there: World) -> None:
    cap = budget("bud_1", "model", "gpt-4o-mini", limit_nano=500_000_000)
    path = f"/{(await reserve(there, '0.40', vendor='openai', model=DATED)).json()['reservation_id']}"
    await set_budgets(there, cap)
    assert (await post(there, f"{path}/extend", {"amount_usd": "0.60"})).status == 402
    assert (await post(there, f"{path}/extend", {"amount_usd": "0.50"})).status == 200
    assert held_by(there, "bud_1") == 500_000_000
    assert (await reserve(there, "0.01", vendor="openai", model="gpt-4o-mini")).status == 402
    assert (await post(there, f"{path}/settle", {"cost_usd": "0.20"})).status == 200
    settlement = there.settlement()
    assert [each.budget_id for each in settlement.charges] == ["bud_1"]
    assert (settlement.facts.model_requested, settlement.facts.model_priced) == (DATED, "gpt-4o-mini")


# ---- reservations: vendors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", [("vendor", "openai"), ("vendor", EACH), ("billing_class", "metered.openai"), None])
async def test_a_vendor_is_the_same_in_capitals(there: World, scope: tuple[str, str] | None) -> None:
    cap = budget("bud_1", "cel", "c", expression='vendor == "openai"', limit_nano=500_000_000)
    if scope is not None:
        cap = replace(cap, scope_kind=scope[0], scope_value=scope[1], expression=None)  # type: ignore[arg-type]
    await set_budgets(there, cap)
    assert (await reserve(there, "0.30", vendor="openai")).status == 201
    assert (await reserve(there, "0.30", vendor="OpenAI")).status == 402
    assert (await reserve(there, "0.20", vendor="OPENAI")).status == 201
    assert {each.facts.vendor for each in reservations(there)} == {"openai"}


async def test_usage_is_priced_whatever_the_capitals_of_its_vendor(there: World) -> None:
    told = await post(there, body={"usage": USAGE, "vendor": "OpenAI", "model": "GPT-4o-mini"})
    assert told.json()["held_usd"] == "0.000450000"
    settled = await post(there, f"/{told.json()['reservation_id']}/settle", {"usage": USAGE})
    assert settled.json()["cost_usd"] == "0.000450000"
    assert there.settlement().facts.vendor == "openai"


async def test_the_same_request_is_answered_as_it_was_and_one_in_other_capitals_is_another(there: World) -> None:
    first = await reserve(there, key="k", vendor="OpenAI", model=DATED)
    assert first.status == 201
    again = await reserve(there, key="k", vendor="OpenAI", model=DATED)
    assert (again.status, again.json()) == (201, first.json())
    assert (await reserve(there, key="k", vendor="openai", model=DATED)).status == 409
    assert len(reservations(there)) == 1


# ---- calls: what is sent --------------------------------------------------------------------------------------------

SENT = "low-2026-01-01"
# A vendor's model that costs more than `gpt-4o-mini`, and writes as long.
DEAR = {
    "vendor": "openai",
    "model": "dear",
    "prices": [{"usd": {"input": "100.000000000", "output": "1000.000000000"}}],
    "max_output_tokens": 100_000,
}


async def downgrading(there: World, *budgets: Budget, to: str = SENT) -> None:
    """Budgets of which one is full, and has `dear` answered by `to`."""
    dear = await hold_of(there, "dear")
    await set_budgets(there, budget("bud_d", limit_nano=dear - 1, when_full="downgrade", downgrade_to=to), *budgets)


async def test_a_call_is_not_downgraded_past_the_budget_of_the_name_that_is_sent(priced: World) -> None:
    await downgrading(priced, budget("bud_sent", "model", SENT, limit_nano=0))
    assert_refused(await ask(priced, SENT), 402, "budget_exhausted", "bud_sent")
    assert_refused(await ask(priced), 402, "budget_exhausted", "bud_d")


@pytest.mark.parametrize("to", [SENT, f"openai/{SENT}"])
async def test_a_downgraded_call_is_charged_to_the_budget_of_the_name_that_is_sent(priced: World, to: str) -> None:
    low = await hold_of(priced, "low")
    names = {"bud_dear": "dear", "bud_low": "low", "bud_sent": SENT}
    each_models = budget("bud_each", "model", EACH)
    await downgrading(priced, *(budget(name, "model", model) for name, model in names.items()), each_models, to=to)
    assert (await ask(priced)).status == 200
    assert json.loads(priced.vendor.requests[-1].body)["model"] == to
    (reservation,) = reservations(priced)[-1:]
    assert {"bud_d", *names} <= set(charged(priced))
    assert {f"bud_each@{name}" for name in ("dear", "low", to)} <= set(charged(priced))
    assert reservation.held_nano == held_by(priced, "bud_sent") >= low
    assert last_settlement(priced).charges == reservation.charges


async def test_an_expression_sees_the_name_that_is_sent(priced: World) -> None:
    await downgrading(priced, budget("bud_1", "cel", "sent", expression=f'model == "{SENT}"', limit_nano=0))
    assert_refused(await ask(priced), 402, "budget_exhausted", "bud_d")


async def test_a_downgraded_stream_grows_in_the_budget_of_the_name_that_is_sent(tmp_path: Path) -> None:
    async with world(tmp_path, hot_state_type=growing.SlowHotState) as there:
        limit_nano = 3 * STEP_TOKENS * growing.OUTPUT_NANO
        down = budget("bud_d", limit_nano=limit_nano, extend=True, when_full="downgrade", downgrade_to=DATED)
        await there.org.publish(overrides=Overrides("own", (DEAR,)))
        await set_budgets(there, down, budget("bud_sent", "model", DATED, limit_nano=BIG, extend=True))
        there.answer(growing.streamed(growing.text(STEP_TOKENS), growing.usage(STEP_TOKENS + 400), growing.DONE))
        client = await there.call(growing.asking(model="dear"))
        assert client.status == 200, client.content
        (reservation,) = reservations(there)
        assert (reservation.facts.flags, reservation.estimate_mode) == (("downgraded",), "stepped")
        assert [each.budget_id for each in reservation.charges] == ["bud_d", "bud_sent"]
        assert resizes(there), "it has grown"
        assert {each.charges for each in resizes(there)} == {reservation.charges}
        assert last_settlement(there).charges == reservation.charges


# ---- calls that go on to another vendor -----------------------------------------------------------------------------


async def fall_back(there: World, *models: str, asked: str = "dear") -> Client:
    """A call whose vendors are down but for the last of these models of the vendor `other`."""
    down = 3 * len(models)
    there.answer(*(ScriptedAnswer([b"down"], 503) for _ in range(down)), ScriptedAnswer([OK]))
    targets = tuple(Target("other", model) for model in models)
    await there.org.publish(rules=(RouteRule("openai", "chat.completions", fallbacks=targets),))
    await there.sync()
    client = await there.call(chat(model=asked))
    there.vendor.script.clear()
    return client


async def test_a_call_does_not_go_on_past_the_budget_of_the_name_that_is_sent(priced: World) -> None:
    await set_budgets(priced, budget("bud_sent", "model", "far-2026-01-01", limit_nano=0))
    assert (await fall_back(priced, "far-2026-01-01")).status == 503
    assert resizes(priced) == []


@pytest.mark.parametrize("sent", ["far-2026-01-01", "other/far-2026-01-01"])
async def test_a_call_that_goes_on_is_charged_to_the_budget_of_the_name_that_is_sent(priced: World, sent: str) -> None:
    names = {"bud_dear": "dear", "bud_far": "far", "bud_sent": "far-2026-01-01"}
    await set_budgets(priced, *(budget(name, "model", model) for name, model in names.items()))
    assert (await fall_back(priced, sent)).status == 200
    assert charged(priced) == ["bud_dear"]
    (resized,) = resizes(priced)
    assert [each.budget_id for each in resized.charges] == list(names)
    assert last_settlement(priced).charges == resized.charges


async def test_a_model_that_did_not_answer_lets_a_call_go_that_goes_on(priced: World) -> None:
    """Under each of its names: what was asked for and what answers is what a call costs."""
    sent = {"bud_far": "far", "bud_sent": "far-2026-01-01", "bud_further": "further"}
    await set_budgets(priced, budget("bud_dear", "model", "dear"), *(budget(n, "model", m) for n, m in sent.items()))
    assert (await fall_back(priced, "far-2026-01-01", "further")).status == 200
    assert [[each.budget_id for each in resized.charges] for resized in resizes(priced)] == [
        ["bud_dear", "bud_far", "bud_sent"],
        ["bud_dear", "bud_further"],
    ]


async def test_a_downgraded_call_that_goes_on_is_still_told_as_downgraded(priced: World) -> None:
    """`flags` are what has happened to a call. Which model answers it is in its facts, and decides its budgets."""
    names = {"bud_dear": "dear", "bud_low": "low", "bud_sent": SENT, "bud_far": "far"}
    await downgrading(priced, *(budget(name, "model", model) for name, model in names.items()))
    assert (await fall_back(priced, "far")).status == 200
    assert charged(priced) == ["bud_d", "bud_dear", "bud_low", "bud_sent"]
    (resized,) = resizes(priced)
    assert [each.budget_id for each in resized.charges] == ["bud_d", "bud_dear", "bud_far"]
    settled = last_settlement(priced)
    assert (settled.facts.flags, settled.facts.model_priced) == (("downgraded",), "far")
    assert settled.charges == resized.charges


# ---- what is on record ----------------------------------------------------------------------------------------------


def test_a_call_that_is_on_record_falls_under_its_vendor_in_any_capitals() -> None:
    facts = CallFacts(Identity("default", "key_1"), "OpenAI", "reservation", "", "", "none", "v1", 1)
    found = BudgetIndex([budget("bud_1", "vendor", "openai")]).matching(facts)
    assert [each.budget_id for each in found.applicable] == ["bud_1"]
