"""Routes that cost nothing: identified, passed on as they are, and never held."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.core.ports import NotSentError, TimedOutError, UnavailableError
from tests.support.asgi import Client, request, scope_of
from tests.support.gateway import ScriptedAnswer, World, assert_refused, until, world

PATH = "/v1/files/file-1/content"


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        await made.org.set_budget("0.000000000")
        await made.sync()
        yield made


async def get(there: World, path: str = PATH, query: str = "", **headers: str) -> Client:
    return await request(there.assembly.app, path, headers=there.headers(**headers), method="GET", query=query)


async def test_request_and_answer_pass_as_they_are(there: World) -> None:
    told = ((b"Content-Type", b"application/jsonl"), (b"Set-Cookie", b"a=b"), (b"X-Request-Id", b"r1"))
    there.answer(ScriptedAnswer([b"one\n", b"two\n"], 206, headers=told))
    client = await get(there, query="after=x%20y", x_spend_agent="ada", accept="*/*", cookie="c=d")
    assert (client.status, client.content, client.ended) == (206, b"one\ntwo\n", True)
    assert client.header("x-request-id") == "r1"
    assert client.header("set-cookie") is None
    (asked,) = there.vendor.requests
    assert (asked.method, asked.url) == ("GET", "https://vendor.test/v1/files/file-1/content?after=x%20y")
    names = [name for name, _ in asked.headers]
    assert names == [b"accept", b"authorization", b"accept-encoding"]
    assert there.events() == []
    assert there.hot_state.store.state("default").holds == {}


async def test_an_upload_passes_as_it_is(there: World) -> None:
    there.answer(ScriptedAnswer([b"{}"]))
    client = await request(there.assembly.app, "/v1/files", b"\x00\xff" * 500, headers=there.headers())
    assert client.status == 200
    assert there.vendor.requests[0].body == b"\x00\xff" * 500


async def test_an_upload_that_is_too_large_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path, max_body_bytes=100) as there:
        client = await request(there.assembly.app, "/v1/files", b"x" * 101, headers=there.headers())
        assert_refused(client, 413, "request_too_large", "100 bytes")
        assert there.vendor.requests == []


async def test_a_file_comes_as_it_is_sent(there: World) -> None:
    gate = asyncio.Event()
    there.answer(ScriptedAnswer([b"one", gate, b"two"]))
    client = Client()
    calling = asyncio.ensure_future(
        there.assembly.app(scope_of(PATH, there.headers(), "GET"), client.receive, client.send)
    )
    await until(lambda: client.content == b"one")
    assert not client.ended
    gate.set()
    await calling
    assert (client.content, client.ended) == (b"onetwo", True)


@pytest.mark.parametrize("failure", [NotSentError("refused"), TimedOutError("late"), UnavailableError("broken")])
async def test_a_vendor_that_is_away_is_told_in_its_envelope(there: World, failure: Exception) -> None:
    there.answer(failure)
    assert_refused(await get(there), 502, "vendor_unreachable", "can't be reached")
    assert len(there.vendor.requests) == 1


async def test_an_answer_that_breaks_off_is_cut(there: World) -> None:
    answer = ScriptedAnswer([b"one", UnavailableError("cut")])
    there.answer(answer)
    client = await get(there)
    assert (client.content, client.ended) == (b"one", False)
    assert answer.closed


async def test_a_status_that_http_does_not_know_is_a_502(there: World) -> None:
    there.answer(ScriptedAnswer([b"bot wall"], 999))
    assert (await get(there)).status == 502


async def test_without_a_connection_there_is_nowhere_to_go(there: World) -> None:
    await there.org.disconnect("openai")
    await there.sync()
    assert_refused(await get(there), 400, "no_vendor_connection", "connections set openai")
    await there.org.connect("openai", "https://vendor.test/v1", "garbled")
    await there.sync()
    assert_refused(await get(there), 400, "no_vendor_connection", "set the connection again")
    assert there.vendor.requests == []


async def test_a_cold_hot_state_does_not_stop_what_costs_nothing(there: World) -> None:
    there.hot_state.store.state("default").epoch = None
    there.answer(ScriptedAnswer([b"{}"]))
    assert (await get(there)).status == 200
