"""OpenAI's batches and background responses through the gateway: reserved at submit, settled exactly once at the end.

The official client asks a stand-in vendor; the jobs are kept in a real Valkey.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from services.core.events import Denial, Reservation
from services.core.hotstate import FoldStep
from services.core.jobs import HOLD_MS
from services.core.ports import TopicPartition
from services.gateway.vendors.fields import TEMPLATE_TOKENS
from tests.support.jobs import BATCH_INPUT_NANO, BATCH_OUTPUT_NANO, CHAT, JobWorld, job_world, jsonl, line
from tests.support.vendors import StandInVendor, bytes_answer, json_answer, stream_answer
from tests.support.vendors import openai as answers
from tests.support.vendors.server import Received


@pytest.fixture
async def there(
    tmp_path: Path, valkey_url: str, openai_vendor: StandInVendor, anthropic_vendor: StandInVendor
) -> AsyncIterator[JobWorld]:
    async with job_world(tmp_path, valkey_url, openai_vendor, anthropic_vendor, gateways=2) as world:
        await world.org.set_budget("1.00")
        await live(world)
        yield world


async def live(world: JobWorld) -> None:
    """Returns when every gateway has what was published last."""
    for each in world.gateways:
        snapshots = each.assembly.snapshots
        await snapshots.poll()
        assert (await snapshots.view(world.org.name)).snapshot.version == world.org.snapshot.version


async def submit(world: JobWorld, *lines: dict[str, Any], endpoint: str = CHAT) -> openai.types.Batch:
    def both() -> openai.types.Batch:
        with world.client() as client:
            file = client.files.create(file=("in.jsonl", jsonl(*lines)), purpose="batch")
            return client.batches.create(
                input_file_id=file.id,
                endpoint=endpoint,  # type: ignore[arg-type]
                completion_window="24h",
            )

    return await asyncio.to_thread(both)


async def look_at(world: JobWorld, batch_id: str, times: int = 1, gateway: int = 0) -> openai.types.Batch:
    def look() -> openai.types.Batch:
        with world.client(gateway) as client:
            for _ in range(times - 1):
                client.batches.retrieve(batch_id)
            return client.batches.retrieve(batch_id)

    return await asyncio.to_thread(look)


def bound_nano(*lines: dict[str, Any]) -> int:
    """By hand: every byte of a line's body a token, its template's, its output limit, and a nano-dollar of rounding."""
    tokens = [len(json.dumps(each["body"])) + TEMPLATE_TOKENS for each in lines]
    most = sum(each["body"]["max_tokens"] for each in lines)
    return sum(tokens) * BATCH_INPUT_NANO + most * BATCH_OUTPUT_NANO + len(lines)


def fetched(world: JobWorld, ending: str) -> list[Received]:
    return [each for each in world.openai.requests if each.path.endswith(ending)]


async def test_a_batch_is_reserved_from_its_input_file_and_settled_from_its_output_file(there: JobWorld) -> None:
    lines = [line(1), line(2, max_tokens=200)]
    batch = await submit(there, *lines)
    (reservation,) = there.events()
    assert isinstance(reservation, Reservation)
    assert reservation.held_nano == bound_nano(*lines)
    assert await there.figures() == (0, reservation.held_nano)
    assert reservation.expires_at_ms - reservation.time_ms == HOLD_MS["openai.batch"]
    assert (reservation.facts.route, reservation.facts.model_priced) == ("batches", "gpt-4o-mini")

    assert (await look_at(there, batch.id)).status == "in_progress"
    assert there.settlements() == []
    seen = await look_at(there, batch.id, times=2)
    assert seen.status == "completed"
    (settlement,) = there.settlements()
    # Each line: 13 tokens in, 9 out.
    assert settlement.usage["input_tokens"] == 26
    assert settlement.usage["output_tokens"] == 18
    costs = {each.component: (each.quantity, each.price_nano, each.cost_nano) for each in settlement.components}
    assert costs == {"input": (26, 75_000_000, 26 * 75), "output": (18, 300_000_000, 18 * 300)}
    assert settlement.cost_nano == 26 * BATCH_INPUT_NANO + 18 * BATCH_OUTPUT_NANO
    assert (settlement.outcome, settlement.usage_source) == ("completed", "reported")
    assert settlement.price_context == {"processing": "batch"}
    assert (settlement.transaction_id, settlement.held_nano) == (reservation.transaction_id, reservation.held_nano)
    assert settlement.charges == reservation.charges
    assert await there.kept() == 0


async def test_a_settlement_that_comes_after_its_holds_expiry_corrects_it(there: JobWorld) -> None:
    batch = await submit(there, line(1))
    (reservation,) = there.events()
    assert isinstance(reservation, Reservation)
    place = TopicPartition("spend.settlements.v1", 0)
    name, charges = reservation.transaction_id, reservation.charges
    expiry = FoldStep("expire", 0, f"expiry:{name}", 1, name, reservation.held_nano, charges)
    await there.hot_state.apply(there.org.name, place, [expiry], 1)
    assert await there.figures() == (reservation.held_nano, 0)
    await look_at(there, batch.id, times=3)
    (settlement,) = there.settlements()
    step = FoldStep("settle", 1, "gw_1", 1, settlement.transaction_id, settlement.cost_nano, settlement.charges)
    await there.hot_state.apply(there.org.name, place, [step], 2)
    assert await there.figures() == (13 * BATCH_INPUT_NANO + 9 * BATCH_OUTPUT_NANO, 0)


async def test_a_batch_costs_half_of_what_its_requests_would_have(there: JobWorld) -> None:
    """The defect: batch at full price."""

    def ask() -> None:
        with there.client() as client:
            client.chat.completions.create(**line(1)["body"])

    await asyncio.to_thread(ask)
    batch = await submit(there, line(1))
    await look_at(there, batch.id, times=3)
    call, job = there.settlements()
    assert (call.usage["input_tokens"], call.usage["output_tokens"]) == (13, 9)
    assert 2 * job.cost_nano == call.cost_nano
    call_held, job_held = (each.held_nano for each in there.events() if isinstance(each, Reservation))
    assert 10 * job_held < 6 * call_held


async def test_two_gateways_that_see_the_end_at_once_settle_once_and_fetch_once(there: JobWorld) -> None:
    batch = await submit(there, line(1))
    await look_at(there, batch.id, times=2)
    await asyncio.gather(*(look_at(there, batch.id, gateway=number % 2) for number in range(6)))
    assert len(there.settlements()) == 1
    output = f"{batch.id}_output.jsonl"
    (number,) = (name for name, (file, _) in there.openai.responder.files.items() if file["filename"] == output)
    assert len(fetched(there, f"/files/{number}/content")) == 1


async def test_a_batch_that_nobody_asks_for_is_settled_by_a_gateway_that_looks(there: JobWorld) -> None:
    batch = await submit(there, line(1))
    for _ in range(2):
        await there.look()
        assert there.settlements() == []
        assert await there.kept() == 1
    await there.make_due()
    await asyncio.gather(*(each.assembly.poller.look() for each in there.gateways))
    (settlement,) = there.settlements()
    assert settlement.cost_nano == 13 * BATCH_INPUT_NANO + 9 * BATCH_OUTPUT_NANO
    assert await there.kept() == 0
    assert fetched(there, batch.id)[-1].credential == "sk-vendor"


async def test_lines_that_the_vendor_refused_cost_nothing(there: JobWorld) -> None:
    there.openai.responder.answer_line = lambda url, body: (  # type: ignore[method-assign,union-attr]
        (200, answers.completion(used=answers.usage(1_000, 10)))
        if body["user"] == "good"
        else (400, answers.error("invalid_request_error", "no such thing", None, None))
    )
    batch = await submit(there, line(1, user="good"), line(2, user="bad"), line(3, user="bad"))
    await look_at(there, batch.id, times=3)
    (settlement,) = there.settlements()
    assert settlement.cost_nano == 1_000 * BATCH_INPUT_NANO + 10 * BATCH_OUTPUT_NANO
    assert settlement.usage["input_tokens"] == 1_000
    assert settlement.outcome == "completed"


async def test_an_expired_batch_is_charged_for_the_lines_that_were_answered(there: JobWorld) -> None:
    batch = await submit(there, line(1), line(2))
    responder = there.openai.responder
    good = answers.batch_output([answers.batch_line("line-1", answers.completion(used=answers.usage(7, 3)))])
    late = answers.batch_output([answers.batch_line("line-2", None)])
    names = [responder.keep_file(content, "out", "batch_output")["id"] for content in (good, late)]  # type: ignore[attr-defined]
    ended = answers.batch(batch.id, "expired", output_file=names[0], error_file=names[1], counts=(2, 1, 1))
    responder.batches[batch.id] = ended  # type: ignore[attr-defined]
    assert (await look_at(there, batch.id)).status == "expired"
    (settlement,) = there.settlements()
    assert settlement.cost_nano == 7 * BATCH_INPUT_NANO + 3 * BATCH_OUTPUT_NANO
    assert (settlement.outcome, settlement.usage_source) == ("partial", "reported")


@pytest.mark.parametrize(("status", "outcome"), [("cancelled", "cancelled"), ("failed", "vendor_error")])
async def test_a_batch_that_ran_nothing_costs_nothing(there: JobWorld, status: str, outcome: str) -> None:
    batch = await submit(there, line(1))
    there.openai.responder.batches[batch.id] = answers.batch(batch.id, status, counts=(1, 0, 0))  # type: ignore[attr-defined]
    await look_at(there, batch.id)
    (settlement,) = there.settlements()
    assert (settlement.cost_nano, settlement.outcome, settlement.usage_source) == (0, outcome, "none")


async def test_cancelling_settles_what_had_been_done_by_then(there: JobWorld) -> None:
    batch = await submit(there, line(1))

    def cancel() -> None:
        with there.client() as client:
            assert client.batches.cancel(batch.id).status == "cancelling"

    await asyncio.to_thread(cancel)
    assert there.settlements() == []
    assert (await look_at(there, batch.id)).status == "cancelled"
    (settlement,) = there.settlements()
    assert (settlement.cost_nano, settlement.outcome) == (0, "cancelled")


async def test_a_cap_holds_against_the_sum_of_a_batchs_lines(there: JobWorld) -> None:
    lines = [line(number) for number in range(50)]
    await there.org.publish(budgets=())
    one = bound_nano(lines[0])
    await there.org.set_budget("0.000500000")
    await live(there)
    assert one < 500_000 < bound_nano(*lines)
    with pytest.raises(openai.APIStatusError) as caught:
        await submit(there, *lines)
    assert caught.value.status_code == 402
    (denial,) = there.events()
    assert isinstance(denial, Denial)
    assert denial.estimate_nano == bound_nano(*lines)
    assert not [each for each in there.openai.requests if each.path.endswith("/batches")]
    assert await there.figures() == (0, 0)


@pytest.mark.parametrize(
    ("change", "code", "names"),
    [
        ({"model": "gpt-99"}, "unknown_model", ("line 2", "gpt-99")),
        ({"n": 0}, "invalid_request", ("line 2", "n ")),
    ],
)
async def test_a_line_that_can_not_be_priced_refuses_the_batch_by_its_number(
    there: JobWorld, change: dict[str, Any], code: str, names: tuple[str, ...]
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await submit(there, line(1), line(2, **change))
    assert caught.value.code == code
    for name in names:
        assert name in caught.value.message
    assert not [each for each in there.openai.requests if each.path.endswith("/batches")]


async def test_a_file_that_can_not_be_had_refuses_the_batch(there: JobWorld) -> None:
    def ask() -> None:
        with there.client() as client:
            client.batches.create(input_file_id="file-nowhere", endpoint=CHAT, completion_window="24h")

    with pytest.raises(openai.BadRequestError) as caught:
        await asyncio.to_thread(ask)
    assert caught.value.param == "input_file_id"
    assert "404" in caught.value.message


async def test_a_batch_that_the_vendor_refuses_costs_nothing(there: JobWorld) -> None:
    content = jsonl(line(1))
    there.openai.answer_with(bytes_answer(content, "application/octet-stream"), answers.failure(400))
    async with httpx.AsyncClient(base_url=there.gateways[0].url) as client:
        body = {"input_file_id": "file-1", "endpoint": CHAT, "completion_window": "24h"}
        answer = await client.post("/v1/batches", json=body, headers={"authorization": f"Bearer {there.key}"})
    assert answer.status_code == 400
    (settlement,) = there.settlements()
    assert (settlement.cost_nano, settlement.outcome) == (0, "vendor_error")
    assert await there.kept() == 0


async def test_results_that_can_not_be_had_are_tried_again(there: JobWorld) -> None:
    batch = await submit(there, line(1))
    await look_at(there, batch.id, times=2)
    responder = there.openai.responder
    ended = answers.batch(batch.id, "completed", output_file="file-late", counts=(1, 1, 0))
    responder.batches[batch.id] = ended  # type: ignore[attr-defined]
    await look_at(there, batch.id)
    assert (there.settlements(), await there.kept()) == ([], 1)
    content = answers.batch_output([answers.batch_line("line-1", answers.completion(used=answers.usage(5, 5)))])
    responder.files["file-late"] = (answers.file("file-late"), content)  # type: ignore[attr-defined]
    await there.look()
    (settlement,) = there.settlements()
    assert settlement.cost_nano == 5 * BATCH_INPUT_NANO + 5 * BATCH_OUTPUT_NANO


async def test_who_deletes_the_results_pays_for_all_that_the_batch_could_use(
    there: JobWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.jobs.keeper._RETRY_MS", 0)
    batch = await submit(there, line(1))
    ended = answers.batch(batch.id, "completed", output_file="file-gone", counts=(1, 1, 0))
    there.openai.responder.batches[batch.id] = ended  # type: ignore[attr-defined]
    for _ in range(5):
        await there.look()
    (settlement,) = there.settlements()
    (reservation,) = (each for each in there.events() if isinstance(each, Reservation))
    assert (settlement.outcome, settlement.usage_source) == ("partial", "estimated")
    # All but the nano-dollar for rounding.
    assert settlement.cost_nano == reservation.held_nano - 1
    assert await there.kept() == 0


# ---- responses in the background ------------------------------------------------------------------------------------


async def test_a_response_in_the_background_is_settled_when_it_has_ended(there: JobWorld) -> None:
    def begin() -> str:
        with there.client() as client:
            answer = client.responses.create(model="gpt-4o-mini", input="Hello", background=True, max_output_tokens=60)
            assert answer.status == "queued"
            return answer.id

    def look(name: str) -> str | None:
        with there.client() as client:
            return client.responses.retrieve(name).status

    name = await asyncio.to_thread(begin)
    (reservation,) = there.events()
    assert isinstance(reservation, Reservation)
    assert reservation.expires_at_ms - reservation.time_ms == HOLD_MS["openai.response"]
    assert await asyncio.to_thread(look, name) == "in_progress"
    assert there.settlements() == []
    assert await asyncio.to_thread(look, name) == "completed"
    (settlement,) = there.settlements()
    assert (settlement.outcome, settlement.usage_source, settlement.facts.route) == (
        "completed",
        "reported",
        "responses",
    )
    # At the full price: 13 tokens in, 9 out.
    assert settlement.cost_nano == 13 * 150 + 9 * 600
    assert await asyncio.to_thread(look, name) == "completed"
    assert len(there.settlements()) == 1


async def test_a_background_stream_that_breaks_off_does_not_end_its_job(there: JobWorld) -> None:
    there.openai.responder.responses["resp_1"] = (  # type: ignore[attr-defined]
        answers.response(used=answers.response_usage(20, 30), response_id="resp_1", background=True),
        None,
    )
    events = answers.response_events(answers.response(response_id="resp_1", background=True))
    there.openai.answer_with(replace(stream_answer(events), hang_up_after=3))
    headers = {"authorization": f"Bearer {there.key}"}
    async with httpx.AsyncClient(base_url=there.gateways[0].url, headers=headers) as client:
        body = {"model": "gpt-4o-mini", "input": "Hi", "background": True, "stream": True, "max_output_tokens": 60}
        await client.post("/v1/responses", json=body)
        assert there.settlements() == []
        assert await there.kept() == 1
        assert (await client.get("/v1/responses/resp_1")).status_code == 200
    (settlement,) = there.settlements()
    assert (settlement.outcome, settlement.cost_nano) == ("completed", 20 * 150 + 30 * 600)


async def test_a_cancelled_response_that_reports_no_usage_is_settled_at_its_bound(there: JobWorld) -> None:
    def both() -> None:
        with there.client() as client:
            answer = client.responses.create(model="gpt-4o-mini", input="Hello", background=True, max_output_tokens=60)
            assert client.responses.cancel(answer.id).status == "cancelled"

    await asyncio.to_thread(both)
    (settlement,) = there.settlements()
    (reservation,) = (each for each in there.events() if isinstance(each, Reservation))
    assert (settlement.outcome, settlement.usage_source) == ("cancelled", "estimated")
    assert settlement.usage["input_tokens"] == reservation.input_tokens_bound
    assert settlement.usage["output_tokens"] == 60
    assert settlement.cost_nano == reservation.input_tokens_bound * 150 + 60 * 600


async def test_a_response_that_the_vendor_says_nothing_of_is_settled_at_its_bound(there: JobWorld) -> None:
    there.openai.answer_with(json_answer({"id": None, "object": "response"}))
    headers = {"authorization": f"Bearer {there.key}"}
    async with httpx.AsyncClient(base_url=there.gateways[0].url, headers=headers) as client:
        body = {"model": "gpt-4o-mini", "input": "Hi", "background": True, "max_output_tokens": 60}
        await client.post("/v1/responses", json=body)
    (settlement,) = there.settlements()
    assert (settlement.outcome, settlement.usage_source) == ("partial", "estimated")
    assert settlement.usage["output_tokens"] == 60
