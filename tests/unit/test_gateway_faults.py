"""Vendors that fail, in every way: what is tried again, what the client is told, and what is settled."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.core.money import format_usd
from services.core.ports import NotSentError, TimedOutError, UnavailableError
from services.gateway import forward
from tests.support import openai_answers
from tests.support.gateway import EVENT_STREAM, WHOLE_ANSWER, ScriptedAnswer, World, asking, stream_events, until, world


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "RETRY_PAUSES_S", (0.001, 0.001))


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        await made.org.set_budget("1.00")
        await made.sync()
        yield made


async def test_a_vendor_that_hangs_up_between_events_ends_the_stream_with_an_error_event(there: World) -> None:
    events = stream_events()
    there.answer(ScriptedAnswer([*events[:2], UnavailableError("cut")], headers=EVENT_STREAM))
    client = await there.call(asking())
    assert client.ended
    assert client.content.startswith(b"".join(events[:2]))
    last = client.content[len(b"".join(events[:2])) :].strip()
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert error["code"] == "vendor_unreachable"
    assert error["transaction_id"] == there.settlement().transaction_id
    assert there.settlement().outcome == "partial"
    assert len("Hello") <= there.settlement().usage["output_tokens"] < 100


async def test_a_vendor_that_hangs_up_within_an_event_cuts_the_connection(there: World) -> None:
    events = stream_events()
    there.answer(ScriptedAnswer([events[0], events[1][:20], UnavailableError("cut")], headers=EVENT_STREAM))
    client = await there.call(asking())
    assert client.content == events[0] + events[1][:20]
    assert not client.ended, "an ended body would pass half an event off as the whole answer"
    assert there.settlement().outcome == "partial"


async def test_a_stream_without_its_own_end_is_partial(there: World) -> None:
    events = stream_events(include_usage=False)
    there.answer(ScriptedAnswer(events[:2], headers=EVENT_STREAM))
    client = await there.call(asking())
    assert client.content == b"".join(events[:2])
    assert client.ended
    assert there.settlement().outcome == "partial"


async def test_a_vendor_that_hangs_up_in_a_whole_answer_is_a_502_and_charged_for(there: World) -> None:
    there.answer(ScriptedAnswer([WHOLE_ANSWER[:100], UnavailableError("cut")]))
    client = await there.call()
    assert (client.status, client.json()["error"]["code"]) == (502, "vendor_unreachable")
    settlement = there.settlement()
    assert (settlement.outcome, settlement.usage_source) == ("partial", "estimated")
    # Its vendor had written all of it, up to the limit for all that is known.
    assert settlement.usage["output_tokens"] == 100
    assert settlement.cost_nano == settlement.held_nano
    assert client.header("x-spend-cost") == format_usd(settlement.cost_nano)
    assert client.json()["error"]["transaction_id"] == settlement.transaction_id
    assert settlement.cost_nano > 0


@pytest.mark.parametrize("status", [400, 401, 404, 429, 302])
async def test_a_vendors_refusal_passes_unchanged_and_costs_nothing(there: World, status: int) -> None:
    body = openai_answers.dump(openai_answers.BAD_REQUEST)
    headers = ((b"Content-Type", b"application/json"), (b"Retry-After", b"7"))
    there.answer(ScriptedAnswer([body], status, headers))
    client = await there.call()
    assert (client.status, client.content) == (status, body)
    assert client.header("retry-after") == "7"
    assert client.header("x-spend-cost") == "0.000000000"
    settlement = there.settlement()
    assert (settlement.outcome, settlement.usage_source, settlement.cost_nano) == ("vendor_error", "none", 0)
    assert (settlement.http_status, settlement.components) == (status, ())
    assert len(there.vendor.requests) == 1


async def test_a_status_that_http_does_not_know_is_a_502(there: World) -> None:
    there.answer(*(ScriptedAnswer([b"no bots"], 999) for _ in range(3)))
    client = await there.call()
    assert (client.status, client.content) == (502, b"no bots")
    assert (there.settlement().outcome, there.settlement().http_status) == ("vendor_error", 999)


async def test_a_failing_vendor_is_asked_three_times(there: World) -> None:
    body = openai_answers.dump(openai_answers.SERVER_ERROR)
    answers = [ScriptedAnswer([body], status) for status in (500, 503, 502)]
    there.answer(*answers)
    client = await there.call()
    assert (client.status, client.content) == (502, body)
    assert client.header("x-spend-retry-count") == "2"
    settlement = there.settlement()
    assert (settlement.outcome, settlement.retry_count, settlement.http_status) == ("vendor_error", 2, 502)
    assert all(each.closed for each in answers)
    assert len({each.body for each in there.vendor.requests}) == 1
    timeouts_s = [each.timeout_s for each in there.vendor.requests]
    assert timeouts_s[0] == 120 > timeouts_s[1] > timeouts_s[2] > 60, "the tries share one time"


async def test_a_vendor_that_comes_back_is_settled_once(there: World) -> None:
    there.answer(NotSentError("refused"), ScriptedAnswer([b"busy"], 503), ScriptedAnswer([WHOLE_ANSWER]))
    client = await there.call()
    assert (client.status, client.content) == (200, WHOLE_ANSWER)
    assert client.header("x-spend-retry-count") == "2"
    assert (there.settlement().outcome, there.settlement().retry_count) == ("completed", 2)


async def test_a_vendor_that_is_away_is_a_502_and_costs_nothing(there: World) -> None:
    there.answer(*(NotSentError("refused") for _ in range(3)))
    client = await there.call()
    error = client.json()["error"]
    assert (client.status, error["code"]) == (502, "vendor_unreachable")
    assert "'openai'" in error["message"]
    settlement = there.settlement()
    assert (settlement.outcome, settlement.cost_nano, settlement.retry_count) == ("vendor_error", 0, 2)
    assert error["transaction_id"] == client.header("x-spend-transaction-id") == settlement.transaction_id


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [(TimedOutError("120 s"), 504, "vendor_timeout"), (UnavailableError("hung up"), 502, "vendor_unreachable")],
)
async def test_a_vendor_that_may_have_answered_is_not_asked_again_and_its_cost_is_the_bound(
    there: World, failure: Exception, status: int, code: str
) -> None:
    there.answer(failure)
    client = await there.call()
    assert (client.status, client.json()["error"]["code"]) == (status, code)
    settlement = there.settlement()
    assert (settlement.outcome, settlement.usage_source, settlement.retry_count) == ("partial", "estimated", 0)
    assert 0 < settlement.cost_nano <= settlement.held_nano
    assert sum(each.cost_nano for each in settlement.components) == settlement.cost_nano
    assert len(there.vendor.requests) == 1


async def test_a_vendor_call_never_outlives_its_hold(there: World) -> None:
    await there.org.publish(hold_ms=10_000)
    await there.sync()
    there.answer(ScriptedAnswer([WHOLE_ANSWER]))
    await there.call()
    assert there.vendor.requests[0].timeout_s == 9.0


async def test_nothing_is_tried_again_once_a_calls_time_is_up(there: World) -> None:
    await there.org.publish(hold_ms=20)
    await there.sync()
    there.vendor.head_at = asyncio.Event()
    there.answer(ScriptedAnswer([b"busy"], 503))
    calling = asyncio.create_task(there.call())
    await until(lambda: there.vendor.requests)
    await asyncio.sleep(0.03)
    there.vendor.head_at.set()
    client = await calling
    assert (client.status, client.header("x-spend-retry-count")) == (503, "0")


async def test_an_answer_too_large_to_hold_back_is_passed_on_as_it_comes(tmp_path: Path) -> None:
    async with world(tmp_path, max_response_bytes=1024) as there:
        body = openai_answers.dump(openai_answers.completion("gpt-4o-mini", text="x" * 5000))
        there.answer(ScriptedAnswer([body[:1000], body[1000:2000], body[2000:]]))
        client = await there.call()
        assert client.content == body
        assert client.ended
        assert client.header("x-spend-cost") is None
        assert client.header("content-length") is None
        settlement = there.settlement()
        assert (settlement.outcome, settlement.usage["output_tokens"]) == ("completed", 9)
        there.answer(ScriptedAnswer([body[:1000], body[1000:2000], UnavailableError("cut")]))
        client = await there.call()
        assert not client.ended
