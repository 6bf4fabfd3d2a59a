"""Bytes there and back unchanged, and what a whole answer says of its cost."""

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.adapters.outbox import SqliteOutbox
from services.core.events import Settlement
from services.core.money import format_usd, parse_usd
from tests.support import openai_answers
from tests.support.asgi import Client, request
from tests.support.gateway import (
    AWAY,
    WHOLE_ANSWER,
    RefusingOutbox,
    ScriptedAnswer,
    World,
    chat,
    until,
    world,
)

ODD_REQUEST = (
    b'{ "model":"gpt-4o-mini",\r\n\t"max_tokens": 100 , '
    b'"messages":[{"role":"user","content":"Z\\u00fcrich \xc3\xbc"}] }'
)


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        await made.org.set_budget("1.00")
        await made.sync()
        yield made


# ---- bytes ----------------------------------------------------------------------------------------------------------


async def test_request_and_answer_pass_unchanged(there: World) -> None:
    there.answer(ScriptedAnswer([WHOLE_ANSWER[:7], WHOLE_ANSWER[7:90], WHOLE_ANSWER[90:]]))
    client = await there.call(ODD_REQUEST)
    assert client.status == 200
    assert client.content == WHOLE_ANSWER
    assert client.header("content-length") == str(len(WHOLE_ANSWER))
    (sent,) = there.vendor.requests
    assert sent.body == ODD_REQUEST
    assert (sent.method, sent.url) == ("POST", "https://vendor.test/v1/chat/completions")


async def test_a_body_in_many_chunks_is_put_together(there: World) -> None:
    there.answer(ScriptedAnswer([WHOLE_ANSWER]))
    whole = json.dumps(chat()).encode()
    client = Client(body=tuple(whole[place : place + 10] for place in range(0, len(whole), 10)))
    await there.start(client)
    assert client.status == 200
    assert there.vendor.requests[0].body == whole


async def test_a_compressed_answer_passes_as_it_is(there: World) -> None:
    packed = gzip.compress(WHOLE_ANSWER)
    headers = ((b"Content-Type", b"application/json"), (b"Content-Encoding", b"gzip"))
    there.answer(ScriptedAnswer([packed], headers=headers))
    client = await there.call()
    assert client.content == packed
    assert client.header("content-encoding") == "gzip"
    assert there.settlement().usage["output_tokens"] == 9


async def test_what_identifies_the_caller_does_not_reach_the_vendor(there: World) -> None:
    there.answer(ScriptedAnswer([WHOLE_ANSWER]))
    await there.call(
        x_spend_agent="ada",
        x_spend_session="s1",
        x_spend_anything="else",
        x_api_key="fk_other",
        api_key="azure",
        cookie="session=1",
        forwarded="for=10.0.0.1",
        x_forwarded_for="10.0.0.1",
        x_real_ip="10.0.0.1",
        connection="keep-alive, x-private",
        x_private="of this connection",
        te="trailers",
        accept_encoding="gzip, br",
        host="gateway.test",
        user_agent="OpenAI/Python 3.54",
        openai_beta="assistants=v2",
        content_type="application/json",
        idempotency_key="idem-1",
    )
    (sent,) = there.vendor.requests
    assert sorted(sent.headers) == sorted(
        [
            (b"accept-encoding", b"identity"),
            (b"authorization", b"Bearer sk-vendor"),
            (b"content-type", b"application/json"),
            (b"idempotency-key", b"idem-1"),
            (b"openai-beta", b"assistants=v2"),
            (b"user-agent", b"OpenAI/Python 3.54"),
        ]
    )


async def test_the_query_goes_along(there: World) -> None:
    there.answer(ScriptedAnswer([WHOLE_ANSWER]))
    headers = there.headers()
    await request(there.assembly.app, "/v1/chat/completions", chat(), headers=headers, query="api-version=1&x=%20y")
    assert there.vendor.requests[0].url == "https://vendor.test/v1/chat/completions?api-version=1&x=%20y"


async def test_what_is_the_vendors_own_does_not_reach_the_client(there: World) -> None:
    headers = (
        (b"Content-Type", b"application/json"),
        (b"Content-Length", str(len(WHOLE_ANSWER)).encode()),
        (b"Set-Cookie", b"__cf_bm=1"),
        (b"Alt-Svc", b'h3=":443"'),
        (b"Strict-Transport-Security", b"max-age=1"),
        (b"Connection", b"keep-alive, X-Hop"),
        (b"X-Hop", b"1"),
        (b"Keep-Alive", b"timeout=5"),
        (b"X-Spend-Cost", b"0"),
        (b"X-Odd", b"a\x01b"),
        (b"X-Request-Id", b"req_1"),
        (b"OpenAI-Processing-Ms", b"12"),
    )
    there.answer(ScriptedAnswer([WHOLE_ANSWER], headers=headers))
    client = await there.call()
    theirs = [name for name, _ in client.headers if not name.startswith(b"x-spend-")]
    assert theirs == [b"content-type", b"x-request-id", b"openai-processing-ms", b"content-length"]
    assert client.header("x-spend-cost") != "0"


# ---- what is told and settled ---------------------------------------------------------------------------------------


async def test_the_head_of_a_whole_answer_has_the_exact_cost(there: World) -> None:
    budget_id = there.org.snapshot.budgets[0].budget_id
    there.answer(ScriptedAnswer([WHOLE_ANSWER]))
    client = await there.call()
    settlement = there.settlement()
    assert settlement.outcome == "completed"
    assert settlement.usage_source == "reported"
    assert (settlement.usage["input_tokens"], settlement.usage["output_tokens"]) == (13, 9)
    assert settlement.cost_nano == 13 * 150 + 9 * 600 == sum(each.cost_nano for each in settlement.components)
    assert client.header("x-spend-cost") == format_usd(settlement.cost_nano)
    assert (client.header("x-spend-tokens-in"), client.header("x-spend-tokens-out")) == ("13", "9")
    assert client.header("x-spend-transaction-id") == settlement.transaction_id
    assert client.header("x-spend-budget-id") == budget_id
    assert client.header("x-spend-budget-remaining") == format_usd(parse_usd("1.00") - settlement.cost_nano)
    assert client.header("x-spend-model") == "gpt-4o-mini"
    assert client.header("x-spend-retry-count") == "0"
    whole, _, decimals = (client.header("x-spend-latency-overhead") or "").partition(".")
    assert whole.isdigit()
    assert len(decimals) == 3


async def test_the_latency_breakdown_adds_up(there: World) -> None:
    pause = asyncio.Event()
    there.answer(ScriptedAnswer([WHOLE_ANSWER[:9], pause, WHOLE_ANSWER[9:]]))
    started = time.perf_counter()
    calling = asyncio.create_task(there.call())
    await until(lambda: there.vendor.requests)
    await asyncio.sleep(0.05)
    pause.set()
    client = await calling
    latency = there.settlement().latency_us
    assert set(latency) == {"auth", "policy", "reserve", "vendor", "total"}
    assert latency["vendor"] >= 50_000
    assert sum(latency[name] for name in ("auth", "policy", "reserve", "vendor")) <= latency["total"]
    overhead_ms = float(client.header("x-spend-latency-overhead") or "inf")
    assert overhead_ms <= 1000 * (time.perf_counter() - started) - 50, "waiting for the vendor is no overhead"


async def test_the_budget_told_is_the_tightest(there: World) -> None:
    tight = await there.org.set_budget("0.01", "team", "ml")
    await there.org.set_budget("0.50", "agent", "ada")
    await there.sync()
    there.answer(ScriptedAnswer([WHOLE_ANSWER]))
    client = await there.call(x_spend_agent="ada")
    assert client.header("x-spend-budget-id") == tight
    assert client.header("x-spend-budget-remaining") == format_usd(parse_usd("0.01") - there.settlement().cost_nano)
    assert len(there.settlement().charges) == 3


async def test_without_a_budget_none_is_told(tmp_path: Path) -> None:
    async with world(tmp_path) as there:
        there.answer(ScriptedAnswer([WHOLE_ANSWER]))
        client = await there.call()
        assert client.status == 200
        assert client.header("x-spend-budget-id") is None
        assert client.header("x-spend-budget-remaining") is None


async def test_another_header_prefix_is_used_both_ways(tmp_path: Path) -> None:
    async with world(tmp_path, header_prefix="X-Acme-") as there:
        there.answer(ScriptedAnswer([WHOLE_ANSWER]))
        client = await there.call(authorization="", x_acme_key=there.key, x_acme_agent="ada", x_spend_agent="bob")
        assert client.status == 200
        assert there.settlement().facts.identity.agent == "ada"
        assert not [name for name, _ in there.vendor.requests[0].headers if name.startswith((b"x-acme", b"x-spend"))]
        assert client.header("x-acme-cost") == format_usd(there.settlement().cost_nano)
        assert client.header("x-spend-cost") is None


@pytest.mark.parametrize(("limit", "output_tokens"), [({}, 100), ({"max_tokens": None}, 16_384)])
async def test_missing_usage_is_estimated_and_never_past_the_bound(
    there: World, limit: dict[str, None], output_tokens: int
) -> None:
    answer = openai_answers.completion("gpt-4o-mini", text="x" * 50_000)
    del answer["usage"]
    there.answer(ScriptedAnswer([openai_answers.dump(answer)]))
    await there.call(chat(**limit))
    settlement = there.settlement()
    assert settlement.usage_source == "estimated"
    assert settlement.usage["output_tokens"] == output_tokens
    assert 0 < settlement.cost_nano <= settlement.held_nano


async def test_a_cost_above_the_hold_is_settled_as_it_is(there: World) -> None:
    used = openai_answers.usage(1_000_000, 1_000)
    there.answer(ScriptedAnswer([openai_answers.dump(openai_answers.completion("gpt-4o-mini", used=used))]))
    client = await there.call()
    settlement = there.settlement()
    assert settlement.cost_nano == 1_000_000 * 150 + 1_000 * 600 > settlement.held_nano
    assert client.header("x-spend-budget-remaining") == format_usd(parse_usd("1.00") - settlement.cost_nano)


async def test_a_settlement_that_cannot_be_recorded_does_not_cost_the_client_its_answer(tmp_path: Path) -> None:
    real = SqliteOutbox(tmp_path / "refusing.sqlite", 100)
    recorder = RefusingOutbox(real, lambda event: AWAY if isinstance(event, Settlement) else None)
    async with world(tmp_path, recorder=recorder) as there:
        there.answer(ScriptedAnswer([WHOLE_ANSWER]))
        client = await there.call()
        assert (client.status, client.content) == (200, WHOLE_ANSWER)
        assert len(there.hot_state.store.state("default").holds) == 1, "its expiry will book the estimate"
        await there.assembly.settlements.finish()
    real.close()


# ---- bodies that are too large --------------------------------------------------------------------------------------


async def test_a_body_that_is_too_large_is_refused_once_it_is_read(tmp_path: Path) -> None:
    async with world(tmp_path, max_body_bytes=1024) as there:
        for chunks in ([b"x" * 1025], [b"x" * 400] * 4):
            client = Client(body=chunks)
            await there.start(client)
            assert client.status == 413
            error = client.json()["error"]
            assert (error["code"], error["limit_bytes"]) == ("request_too_large", 1024)
            assert client._place == len(chunks), "it is read to its end, so that the client listens"
            assert client.header("connection") is None
        announced = Client(body=[b"x" * 400] * 4)
        await there.start(announced, content_length="1600")
        assert announced.status == 413
        assert there.events() == []


async def test_a_body_without_end_is_refused_and_its_connection_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.body._DRAIN_S", 0.01)
    async with world(tmp_path, max_body_bytes=1024) as there:
        client = Client(body=[b"x" * 1025], never_ends=True)
        await there.start(client)
        assert client.status == 413
        assert client.header("connection") == "close"
