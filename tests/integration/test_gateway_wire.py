"""The gateway behind its real HTTP server and in front of a real vendor: what only shows on the wire."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from services.adapters.http_transport import HttpxTransport
from services.core.events import Settlement
from services.gateway import server
from tests.support import openai_answers
from tests.support.gateway import Serving, World, chat, options, serving, until, world
from tests.support.vendors import Answer, StandInVendor, stream_answer

SIZE = 50_000_000


@pytest.fixture
async def there(tmp_path: Path, openai_vendor: StandInVendor) -> AsyncIterator[World]:
    transport = HttpxTransport()
    async with world(tmp_path, vendors=transport) as made:
        await made.org.connect("openai", openai_vendor.url)
        await made.org.set_budget("1.00")
        yield made
        await transport.close()


@pytest.fixture
async def gateway(there: World) -> AsyncIterator[Serving]:
    async with serving(there.ports, options()) as gateway:
        await until(lambda: gateway.assembly.snapshots.generation is not None)
        yield gateway


@pytest.fixture
async def client(gateway: Serving, there: World) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {there.key}"}
    async with httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=30) as client:
        yield client


async def raw(gateway: Serving, request: bytes) -> bytes:
    """What comes back for raw bytes until the connection is closed."""
    async with opened(gateway) as (reader, writer):
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 5)


@contextlib.asynccontextmanager
async def opened(gateway: Serving) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the gateway."""
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_of_50_megabytes_gets_a_readable_refusal_and_the_connection_lives(
    client: httpx.AsyncClient, there: World, announced: bool
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(SIZE // 1_000_000):
            yield b"x" * 1_000_000

    content = b"x" * SIZE if announced else chunks()
    answer = await client.post("/v1/chat/completions", content=content)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert (await client.post("/v1/chat/completions", json=chat())).status_code == 200
    assert len(there.events()) == 2


async def test_a_body_of_50_megabytes_without_a_key_is_a_readable_401(gateway: Serving) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
        answer = await client.post("/v1/chat/completions", content=b"x" * SIZE)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_key")
        assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize("character", [b"\x00", b"\x01", b"\x0b", b"\x7f"])
async def test_a_control_character_in_a_header_is_refused_by_name(
    gateway: Serving, there: World, character: bytes
) -> None:
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n"
        b"X-Spend-Team: a%sb\r\nContent-Length: 2\r\n\r\n{}" % (there.key.encode(), character)
    )
    head, _, body = (await raw(gateway, request)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    error = json.loads(body)["error"]
    assert (error["code"], error["param"]) == ("invalid_request", "x-spend-team")
    assert there.events() == []


async def test_what_is_not_http_is_refused_in_json(gateway: Serving) -> None:
    head, _, body = (await raw(gateway, b"EHLO mail.test\r\n\r\n")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "invalid_request"


async def test_a_body_is_never_taken_for_a_bad_header(gateway: Serving, there: World) -> None:
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nnot a size\r\nsecret: \x01\r\n" % there.key.encode()
    )
    answer = await raw(gateway, request)
    assert b"secret" not in answer


@pytest.mark.parametrize("ended", [b"", b"\r\n\r\n"])
@pytest.mark.parametrize("pieces", [1, 10])
async def test_a_head_that_is_too_large_is_a_431(gateway: Serving, pieces: int, ended: bytes) -> None:
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Padding: " + b"p" * 70_000 + ended
    async with opened(gateway) as (reader, writer):
        for at in range(0, len(head), len(head) // pieces + 1):
            writer.write(head[at : at + len(head) // pieces + 1])
            await writer.drain()
            await asyncio.sleep(0.005)
        status, _, answer = (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n")
    assert status.startswith(b"HTTP/1.1 431 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "headers_too_large"


async def test_bodies_and_earlier_requests_do_not_count_as_head(client: httpx.AsyncClient, gateway: Serving) -> None:
    for _ in range(20):
        answer = await client.post("/v1/chat/completions", json=chat(user="u" * 100_000))
        assert answer.status_code == 200
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Padding: %s\r\n\r\n" % (b"p" * 8_000)
    async with opened(gateway) as (reader, writer):
        for _ in range(20):
            writer.write(request)
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200 ")
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await reader.read()


@pytest.mark.parametrize("before", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_a_head_that_does_not_end_has_only_so_long(
    gateway: Serving, monkeypatch: pytest.MonkeyPatch, before: bytes
) -> None:
    monkeypatch.setattr(server, "HEAD_S", 0.3)
    async with opened(gateway) as (reader, writer):
        if before:
            writer.write(before)
            await reader.readuntil(b"}")
        writer.write(b"GET /healthz HTTP/1.1\r\n")
        reading = asyncio.create_task(reader.read(1000))
        async with asyncio.timeout(5):
            while not reading.done():  # Bytes that keep coming gain no time.
                writer.write(b"X-A: b\r\n")
                await asyncio.wait({reading}, timeout=0.05)
        answer = await reading
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"request_timeout"' in answer


async def test_a_connection_that_sends_nothing_is_closed(gateway: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_S", 0.1)
    assert await raw(gateway, b"") == b""


async def test_an_answer_under_way_is_not_cut_when_the_next_head_is_late(
    there: World, gateway: Serving, openai_vendor: StandInVendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HEAD_S", 0.1)
    openai_vendor.answer_with(Answer((openai_answers.dump(openai_answers.completion("gpt-4o-mini")),), delay_s=0.5))
    body = json.dumps(chat()).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n"
    async with opened(gateway) as (reader, writer):
        writer.write(head % (there.key.encode(), len(body)) + body)
        await until(lambda: openai_vendor.requests)
        writer.write(b"GET /healthz")
        answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"usage"' in answer
    assert b"HTTP/1.1 408 " in answer


async def test_a_request_too_many_is_a_503_and_health_is_still_told(
    client: httpx.AsyncClient, there: World, openai_vendor: StandInVendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_REQUESTS", 1)
    openai_vendor.answer_with(Answer((openai_answers.dump(openai_answers.completion("gpt-4o-mini")),), delay_s=0.5))
    calling = asyncio.create_task(client.post("/v1/chat/completions", json=chat()))
    await until(lambda: openai_vendor.requests)
    refused = await client.post("/v1/chat/completions", json=chat())
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "too_many_requests")
    assert refused.headers["retry-after"] == "1"
    assert (await client.get("/healthz")).status_code == 200
    assert (await calling).status_code == 200
    assert len(there.events()) == 2, "nothing of the refused one"
    assert (await client.post("/v1/chat/completions", json=chat())).status_code == 200


async def test_a_connection_too_many_is_closed(gateway: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 1)
    async with opened(gateway) as (_, first):
        await until(lambda: not first.is_closing())
        async with opened(gateway) as (reader, _):
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 5) == b""


async def test_a_long_header_is_refused_by_name(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/chat/completions", json=chat(), headers={"x-spend-session": "s" * 9000})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "x-spend-session"


async def test_a_stream_comes_through_as_it_is_sent_byte_for_byte(
    client: httpx.AsyncClient, openai_vendor: StandInVendor
) -> None:
    deltas = openai_answers.text_deltas("Hello", " there")
    events = openai_answers.events(openai_answers.chunks(deltas, "gpt-4o-mini", openai_answers.usage()))
    openai_vendor.answer_with(stream_answer(events, piece_delay_s=0.05))
    body = chat(stream=True, stream_options={"include_usage": True})
    seen = []
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.headers["x-request-id"] == "req_stand_in"
        async for chunk in answer.aiter_raw():
            seen.append(chunk)
    assert seen == events


async def test_a_client_that_hangs_up_mid_stream_is_settled_and_its_vendor_let_go(
    client: httpx.AsyncClient, openai_vendor: StandInVendor, there: World
) -> None:
    deltas = openai_answers.text_deltas("Hello", *["x"] * 500)
    events = openai_answers.events(openai_answers.chunks(deltas, "gpt-4o-mini"))
    openai_vendor.answer_with(stream_answer(events, piece_delay_s=0.02))
    async with client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
        async for _ in answer.aiter_raw():
            break
    await until(lambda: any(isinstance(each, Settlement) for each in there.events()), 2)
    assert there.settlement().outcome == "partial"
    await until(lambda: openai_vendor.aborted, 2)


async def test_a_vendor_cut_within_an_event_is_a_cut_for_the_client(
    client: httpx.AsyncClient, openai_vendor: StandInVendor, there: World
) -> None:
    events = openai_answers.events(openai_answers.chunks(openai_answers.text_deltas("Hello"), "gpt-4o-mini"))
    openai_vendor.answer_with(replace(stream_answer([events[0], events[1][:9], b"never"]), hang_up_after=2))
    body = chat(stream=True, stream_options={"include_usage": True})
    with pytest.raises(httpx.RemoteProtocolError):
        await client.post("/v1/chat/completions", json=body)
    assert there.settlement().outcome == "partial"


async def test_a_vendor_that_fails_and_comes_back(
    client: httpx.AsyncClient, openai_vendor: StandInVendor, there: World
) -> None:
    openai_vendor.answer_with(Answer((b"busy",), 503), Answer((b"busy",), 502))
    answer = await client.post("/v1/chat/completions", json=chat())
    assert answer.status_code == 200
    assert answer.headers["x-spend-retry-count"] == "2"
    assert there.settlement().retry_count == 2
    assert len(openai_vendor.requests) == 3
    assert openai_vendor.requests[0].header("authorization") == "Bearer sk-vendor"
    assert openai_vendor.requests[0].header("host") == f"127.0.0.1:{openai_vendor.port}"


async def test_a_call_in_flight_finishes_when_the_server_stops(there: World, openai_vendor: StandInVendor) -> None:
    openai_vendor.answer_with(Answer((openai_answers.dump(openai_answers.completion("gpt-4o-mini")),), delay_s=0.5))
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {there.key}"}) as client:
        async with serving(there.ports, options()) as gateway:
            await until(lambda: gateway.assembly.snapshots.generation is not None)
            calling = asyncio.create_task(client.post(gateway.url + "/v1/chat/completions", json=chat()))
            await until(lambda: openai_vendor.requests)
        assert (await calling).status_code == 200


async def test_a_stream_longer_than_the_server_waits_is_cut_and_settled(
    there: World, openai_vendor: StandInVendor
) -> None:
    deltas = openai_answers.text_deltas("Hello", *["x"] * 500)
    events = openai_answers.events(openai_answers.chunks(deltas, "gpt-4o-mini"))
    openai_vendor.answer_with(stream_answer(events, piece_delay_s=0.1))
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {there.key}"}) as client:
        async with serving(there.ports, options()) as gateway:
            await until(lambda: gateway.assembly.snapshots.generation is not None)
            url = gateway.url + "/v1/chat/completions"
            calling = asyncio.create_task(client.post(url, json=chat(stream=True)))
            await until(lambda: openai_vendor.requests)
        with pytest.raises(httpx.RemoteProtocolError):
            await calling
    assert there.settlement().outcome == "partial"
