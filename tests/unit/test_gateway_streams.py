"""Streams pass as they come, and whoever hangs up, what was used is settled."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.core.money import format_usd, parse_usd
from services.gateway.timing import Timing
from tests.support.asgi import Client
from tests.support.gateway import (
    EVENT_STREAM,
    WHOLE_ANSWER,
    ScriptedAnswer,
    World,
    asking,
    chat,
    stream_events,
    until,
    world,
)


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        await made.org.set_budget("1.00")
        await made.sync()
        yield made


async def test_a_stream_passes_chunk_by_chunk_as_it_comes(there: World) -> None:
    events = stream_events()
    gates = [asyncio.Event() for _ in events]
    pieces: list[bytes | Exception | asyncio.Event] = []
    for gate, event in zip(gates, events, strict=True):
        pieces += [gate, event]
    there.answer(ScriptedAnswer(pieces, headers=(*EVENT_STREAM, (b"Content-Length", b"1"))))
    client = Client(body=(json.dumps(asking()).encode(),))
    calling = there.start(client)
    await client.answered.wait()
    assert client.chunks == []
    for count, gate in enumerate(gates, 1):
        gate.set()
        await asyncio.wait_for(client.sent.wait(), 1)
        client.sent.clear()
        assert [chunk for chunk in client.chunks if chunk] == events[:count]
    await calling
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}, "nobody listens for a hang-up any more"
    assert client.content == b"".join(events)
    assert client.ended
    assert client.header("content-length") is None
    assert client.header("content-type") == "text/event-stream; charset=utf-8"
    assert there.settlement().outcome == "completed"
    assert there.settlement().usage["output_tokens"] == 2


async def test_the_head_of_a_stream_has_what_is_known(there: World) -> None:
    there.answer(ScriptedAnswer(stream_events(), headers=EVENT_STREAM))
    client = await there.call(asking())
    settlement = there.settlement()
    assert client.header("x-spend-transaction-id") == settlement.transaction_id
    assert client.header("x-spend-model") == "gpt-4o-mini"
    assert client.header("x-spend-budget-remaining") == format_usd(parse_usd("1.00") - settlement.held_nano)
    assert client.header("x-spend-cost") is None
    assert client.header("x-spend-tokens-out") is None


async def test_usage_is_asked_for_and_hidden_again(there: World) -> None:
    there.answer(ScriptedAnswer(stream_events(), headers=EVENT_STREAM))
    client = await there.call(chat(stream=True))
    sent = json.loads(there.vendor.requests[0].body)
    assert sent["stream_options"] == {"include_usage": True}
    events = stream_events()
    assert client.content == b"".join([*events[:-2], events[-1]])
    assert there.settlement().usage_source == "reported"


async def test_the_trailing_comment_comes_after_the_settlement_and_only_when_asked_for(there: World) -> None:
    there.answer(ScriptedAnswer(stream_events(), headers=EVENT_STREAM))
    client = await there.call(asking(), x_spend_trailer="true")
    events = b"".join(stream_events())
    assert client.content.startswith(events)
    comment = client.content[len(events) :]
    assert comment.startswith(b": spend {")
    assert comment.endswith(b"}\n\n")
    settlement = there.settlement()
    assert json.loads(comment.removeprefix(b": spend ")) == {
        "transaction_id": settlement.transaction_id,
        "model": "gpt-4o-mini",
        "cost_usd": format_usd(settlement.cost_nano),
        "tokens_in": 13,
        "tokens_out": 2,
        "usage_source": "reported",
        "outcome": "completed",
        "budget_id": there.org.snapshot.budgets[0].budget_id,
        "budget_remaining_usd": format_usd(parse_usd("1.00") - settlement.cost_nano),
    }


async def test_a_stream_is_settled_when_its_end_is_told(there: World) -> None:
    there.answer(ScriptedAnswer(stream_events(), headers=EVENT_STREAM))
    client = Client(body=(json.dumps(asking()).encode(),))
    settled_at_end = []
    send = client.send

    async def watching(message: dict[str, object]) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            settled_at_end.append(there.settlement())
        await send(message)

    client.send = watching  # type: ignore[assignment,method-assign]
    await there.start(client)
    assert len(settled_at_end) == 1


async def test_a_client_that_hangs_up_in_a_silent_stream_leaves_a_partial_settlement_at_once(
    there: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Timing, "unseen_ms", lambda _: 0)
    events = stream_events()
    answer = ScriptedAnswer([events[0], events[1], asyncio.Event()], headers=EVENT_STREAM)
    there.answer(answer)
    client = Client(body=(json.dumps(asking()).encode(),))
    calling = there.start(client)
    await until(lambda: len(client.chunks) == 2)
    client.hang_up()
    await asyncio.wait_for(calling, 1)
    settlement = there.settlement()
    assert settlement.outcome == "partial"
    assert settlement.usage_source == "estimated"
    assert settlement.usage["output_tokens"] == len("Hello")
    assert settlement.usage["input_tokens"] > 0
    assert answer.closed


async def test_a_client_that_hangs_up_before_the_stream_begins_is_noticed_with_its_head(there: World) -> None:
    there.vendor.head_at = asyncio.Event()
    answer = ScriptedAnswer([asyncio.Event()], headers=EVENT_STREAM)
    there.answer(answer)
    client = Client(body=(json.dumps(asking()).encode(),))
    calling = there.start(client)
    await until(lambda: there.vendor.requests)
    client.hang_up()
    there.vendor.head_at.set()
    await asyncio.wait_for(calling, 1)
    assert there.settlement().outcome == "partial"
    assert answer.closed


async def test_a_client_that_hangs_up_before_a_whole_answer_is_charged_what_it_cost(there: World) -> None:
    there.vendor.head_at = asyncio.Event()
    there.answer(ScriptedAnswer([WHOLE_ANSWER]))
    client = Client(body=(json.dumps(chat()).encode(),))
    calling = there.start(client)
    await until(lambda: there.vendor.requests)
    client.hang_up()
    there.vendor.head_at.set()
    await calling
    assert there.settlement().outcome == "completed"
    assert there.settlement().usage_source == "reported"


async def test_a_client_that_hangs_up_in_its_request_holds_nothing(there: World) -> None:
    client = Client(body=(b'{"model":',), never_ends=True)
    calling = there.start(client)
    await asyncio.sleep(0)
    client.hang_up()
    await calling
    assert there.events() == []
    assert there.vendor.requests == []
    assert not client.answered.is_set()


async def test_a_server_whose_send_fails_is_a_client_that_hung_up(there: World) -> None:
    events = stream_events()
    there.answer(ScriptedAnswer(events, headers=EVENT_STREAM))
    client = Client(body=(json.dumps(asking()).encode(),))
    send = client.send

    async def failing(message: dict[str, object]) -> None:
        if client.chunks:
            raise BrokenPipeError("nobody there")
        await send(message)

    client.send = failing  # type: ignore[assignment,method-assign]
    await there.start(client)
    assert there.settlement().outcome == "partial"


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_cancelled_call_is_settled_with_what_it_used(there: World, streaming: bool) -> None:
    pieces = stream_events()[:2] if streaming else [WHOLE_ANSWER[:50]]
    answer = ScriptedAnswer(
        [*pieces, asyncio.Event()], headers=EVENT_STREAM if streaming else ScriptedAnswer([]).headers
    )
    there.answer(answer)
    client = Client(body=(json.dumps(asking() if streaming else chat()).encode(),))
    calling = there.start(client)
    await until(lambda: there.vendor.requests and (client.chunks or not streaming))
    await asyncio.sleep(0.01)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    settlement = there.settlement()
    assert settlement.outcome == "partial"
    assert settlement.cost_nano > 0
    if not streaming:
        assert settlement.usage["output_tokens"] == 100, "a whole answer was written before its first byte came"
    assert answer.closed
