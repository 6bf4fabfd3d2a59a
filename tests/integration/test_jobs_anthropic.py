"""Anthropic's message batches through the gateway: held at submit, settled line by line, their results fetched here.

The stand-in vendor names its own address as that of the results, as Anthropic does; jobs are kept in a real Valkey.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.core.events import Reservation
from services.core.jobs import HOLD_MS
from services.core.snapshot import Overrides
from services.gateway.vendors.fields import TEMPLATE_TOKENS
from tests.support.clients import ask, run_client_many
from tests.support.jobs import CLAUDE, JobWorld, job_world, shipped
from tests.support.vendors import StandInVendor, bytes_answer
from tests.support.vendors import anthropic as answers

# Nano-dollars a token, half of $3 and $15 a million (Anthropic, "Pricing": batch processing).
INPUT_NANO, OUTPUT_NANO = 1_500, 7_500
BATCHES = "/v1/messages/batches"


@pytest.fixture
async def there(
    tmp_path: Path, valkey_url: str, openai_vendor: StandInVendor, anthropic_vendor: StandInVendor
) -> AsyncIterator[JobWorld]:
    async with job_world(tmp_path, valkey_url, openai_vendor, anthropic_vendor, gateways=2) as world:
        await world.org.set_budget("10.00")
        for each in world.gateways:
            await each.assembly.snapshots.poll()
        yield world


def call(world: JobWorld, **settings: Any) -> httpx.AsyncClient:
    headers = {"x-api-key": world.key, "anthropic-version": "2023-06-01"}
    return httpx.AsyncClient(base_url=world.gateways[0].url, headers=headers, timeout=20, **settings)


def batch(count: int = 2, **params: Any) -> dict[str, Any]:
    asked = {"model": CLAUDE, "max_tokens": 100, "messages": [{"role": "user", "content": "Hello"}], **params}
    return {"requests": [{"custom_id": f"one-{number}", "params": asked} for number in range(count)]}


async def test_a_batch_is_settled_when_its_owner_sees_that_it_has_ended(there: JobWorld) -> None:
    async with call(there) as client:
        made = (await client.post(BATCHES, json=batch())).json()
        (reservation,) = there.events()
        assert isinstance(reservation, Reservation)
        assert reservation.expires_at_ms - reservation.time_ms == HOLD_MS["anthropic.batch"]
        assert await there.figures() == (0, reservation.held_nano)
        assert there.settlements() == []
        seen = (await client.get(f"{BATCHES}/{made['id']}")).json()
        assert seen["processing_status"] == "ended"
        (settlement,) = there.settlements()
        # Two lines of 13 tokens in and 12 out.
        assert (settlement.usage["input_tokens"], settlement.usage["output_tokens"]) == (26, 24)
        assert settlement.cost_nano == 26 * INPUT_NANO + 24 * OUTPUT_NANO
        assert settlement.price_context == {"processing": "batch", "service_tier": "batch"}
        assert (settlement.outcome, settlement.usage_source) == ("completed", "reported")
        await client.get(f"{BATCHES}/{made['id']}")
    assert len(there.settlements()) == 1
    assert await there.kept() == 0


async def test_each_request_is_held_and_priced_as_its_own_model(there: JobWorld) -> None:
    haiku = "claude-haiku-4-5"
    both = [shipped("anthropic", name) for name in (CLAUDE, haiku)]
    await there.org.publish(overrides=Overrides("both", tuple(both)))
    for each in there.gateways:
        await each.assembly.snapshots.poll()
    requests = [*batch(1)["requests"], *batch(1, model=haiku)["requests"]]
    async with call(there) as client:
        refused = await client.post(BATCHES, json={"requests": [*requests, *batch(1, model="claude-0")["requests"]]})
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert (error["code"], error["param"]) == ("unknown_model", "requests[2]")
        assert "claude-0" in error["message"]
        made = (await client.post(BATCHES, json={"requests": requests})).json()
        await client.get(f"{BATCHES}/{made['id']}")
    (settlement,) = there.settlements()
    # Haiku, in a batch: $0.50 and $2.50 a million (Anthropic, "Pricing": batch processing).
    assert settlement.cost_nano == 13 * INPUT_NANO + 12 * OUTPUT_NANO + 13 * 500 + 12 * 2_500
    sizes = [len(json.dumps(each["params"], separators=(",", ":"))) + TEMPLATE_TOKENS for each in requests]
    # Any of the input may be written to the cache, at five quarters of its price. A nano-dollar a line is for rounding.
    held = sizes[0] * INPUT_NANO * 5 // 4 + 100 * OUTPUT_NANO + sizes[1] * 500 * 5 // 4 + 100 * 2_500 + 2
    assert settlement.held_nano == held


async def test_the_address_of_the_results_is_this_gateways(there: JobWorld) -> None:
    """Anthropic's clients call that address with the key that they have, which is ours."""
    async with call(there) as client:
        made = (await client.post(BATCHES, json=batch())).json()
        for prefix in ("", "/anthropic"):
            seen = (await client.get(f"{prefix}{BATCHES}/{made['id']}")).json()
            assert seen["results_url"] == f"{there.gateways[0].url}{prefix}{BATCHES}/{made['id']}/results"
            results = await client.get(seen["results_url"])
            assert len(results.text.splitlines()) == 2
        listed = (await client.get(BATCHES)).json()["data"][0]
        assert listed["results_url"] == f"{there.gateways[0].url}{BATCHES}/{made['id']}/results"
        cancelled = (await client.post(f"{BATCHES}/{made['id']}/cancel")).json()
        assert cancelled["results_url"] == listed["results_url"]
        headers = {"x-forwarded-proto": "https", "host": "gate.example"}
        seen = (await client.get(f"{BATCHES}/{made['id']}", headers=headers)).json()
        assert seen["results_url"] == f"https://gate.example{BATCHES}/{made['id']}/results"
    assert there.key not in {each.credential for each in there.anthropic.requests}


async def test_only_the_address_changes(there: JobWorld) -> None:
    raw = (
        b'{ "id":"msgbatch_1", "unknown": [1.50, "\\u00e9"],\n "results_url" :'
        b' "https://api.anthropic.com/v1/messages/batches/msgbatch_1/results" }'
    )
    there.anthropic.answer_with(bytes_answer(raw, "application/json"))
    async with call(there) as client:
        seen = await client.get(f"{BATCHES}/msgbatch_1")
    own = f"{there.gateways[0].url}{BATCHES}/msgbatch_1/results".encode()
    assert seen.content == raw.replace(b"https://api.anthropic.com/v1/messages/batches/msgbatch_1/results", own)


async def test_lines_that_did_not_succeed_cost_nothing(there: JobWorld) -> None:
    async with call(there) as client:
        made = (await client.post(BATCHES, json=batch(3))).json()
        responder = there.anthropic.responder
        known, _ = responder.batches[made["id"]]  # type: ignore[attr-defined]
        used = answers.usage(10, 20, cache_read=100, service_tier="batch")
        responder.batches[made["id"]] = (  # type: ignore[attr-defined]
            known,
            [
                answers.batch_result("one-0", answers.message(CLAUDE, used=used)),
                answers.batch_result("one-1", kind="expired"),
                answers.batch_result("one-2", error=answers.error("invalid_request_error", "no", None)),
            ],
        )
        await client.get(f"{BATCHES}/{made['id']}")
    (settlement,) = there.settlements()
    # A read from the cache costs a tenth.
    assert settlement.cost_nano == 10 * INPUT_NANO + 100 * INPUT_NANO // 10 + 20 * OUTPUT_NANO
    assert (settlement.outcome, settlement.usage["input_tokens"]) == ("partial", 110)


async def test_a_cancelled_batch_is_settled_as_such(there: JobWorld) -> None:
    async with call(there) as client:
        made = (await client.post(BATCHES, json=batch())).json()
        await client.post(f"{BATCHES}/{made['id']}/cancel")
        assert there.settlements() == []
        await client.get(f"{BATCHES}/{made['id']}")
    (settlement,) = there.settlements()
    assert (settlement.outcome, settlement.cost_nano, settlement.usage_source) == ("cancelled", 0, "none")


async def test_a_batch_that_nobody_asks_for_is_settled_by_a_gateway_that_looks(there: JobWorld) -> None:
    async with call(there) as client:
        await client.post(BATCHES, json=batch())
    await there.look()
    (settlement,) = there.settlements()
    assert settlement.cost_nano == 26 * INPUT_NANO + 24 * OUTPUT_NANO
    assert there.anthropic.requests[-1].header("anthropic-version") == "2023-06-01"


async def test_results_fetched_right_away_settle_the_batch_too(there: JobWorld) -> None:
    async with call(there) as client:
        made = (await client.post(BATCHES, json=batch())).json()
        # The vendor's batch has ended, which nobody has seen yet.
        there.anthropic.responder.show_batch(  # type: ignore[attr-defined]
            there.anthropic.requests[-1], re.match("(.*)", made["id"])
        )
        await client.get(f"{BATCHES}/{made['id']}/results")
    (settlement,) = there.settlements()
    assert settlement.cost_nano == 26 * INPUT_NANO + 24 * OUTPUT_NANO


async def test_a_batch_of_a_callers_own_key_is_settled_by_its_own_look_only(there: JobWorld) -> None:
    async with call(there) as client:
        client.headers["x-vendor-key"] = "sk-ant-mine"
        made = (await client.post(BATCHES, json=batch())).json()
        await there.gateways[0].assembly.poller.look()
        assert (there.settlements(), await there.kept()) == ([], 1)
        await client.get(f"{BATCHES}/{made['id']}")
    (settlement,) = there.settlements()
    assert (settlement.cost_nano, settlement.facts.auth_mode) == (26 * INPUT_NANO + 24 * OUTPUT_NANO, "byok")
    assert {each.credential for each in there.anthropic.requests} == {"sk-ant-mine"}


async def test_the_official_client_fetches_results_through_the_gateway(there: JobWorld) -> None:
    scenarios = [ask("anthropic", "batch_results", there.gateways[0].url, there.key, model=CLAUDE)]
    (outcome,) = await asyncio.to_thread(run_client_many, "anthropic", scenarios)
    assert outcome["ok"], outcome
    assert len(there.settlements()) == 1
    assert {each.credential for each in there.anthropic.requests} == {"sk-ant-vendor"}
