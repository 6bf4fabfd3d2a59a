"""What every `vendor_port.VendorTransport` must do, against a real server: one suite for each implementation."""

import asyncio
import gzip
import socket
import time
from collections.abc import AsyncIterator

import pytest

from services.adapters.http_transport import HttpxTransport
from services.core.ports import NotSentError, TimedOutError, UnavailableError
from services.core.vendor_port import VendorRequest, VendorTransport
from tests.support.gateway import until
from tests.support.vendors import Answer, StandInVendor


@pytest.fixture(params=[HttpxTransport])
async def transport(request: pytest.FixtureRequest) -> AsyncIterator[VendorTransport]:
    made: VendorTransport = request.param()
    yield made
    await made.close()


def post(url: str, body: bytes = b"{}", timeout_s: float = 5.0) -> VendorRequest:
    headers = ((b"content-type", b"application/json"), (b"x-Case", b"Kept \xff"), (b"x-two", b"1"), (b"x-two", b"2"))
    return VendorRequest("POST", url + "/chat/completions?a=%20b", headers, body, timeout_s)


async def read(
    transport: VendorTransport, request: VendorRequest
) -> tuple[int, list[tuple[bytes, bytes]], list[bytes]]:
    response = await transport.send(request)
    try:
        return response.status, list(response.headers), [chunk async for chunk in response.chunks()]
    finally:
        await response.close()


async def test_bytes_go_and_come_as_they_are(transport: VendorTransport, openai_vendor: StandInVendor) -> None:
    packed = gzip.compress(b"x" * 1000)
    headers = (("Content-Encoding", "gzip"), ("X-Odd", "\xff"), ("Location", "http://127.0.0.1:9/"))
    openai_vendor.answer_with(Answer((packed,), 302, headers))
    body = bytes(range(256)) * 300
    status, seen, chunks = await read(transport, post(openai_vendor.url, body))
    assert (status, b"".join(chunks)) == (302, packed)
    assert {(name.lower(), value) for name, value in seen} >= {(b"content-encoding", b"gzip"), (b"x-odd", b"\xff")}
    (received,) = openai_vendor.requests
    assert received.body == body
    assert received.target == "/v1/chat/completions?a=%20b"
    assert received.headers == (
        ("host", f"127.0.0.1:{openai_vendor.port}"),
        ("content-type", "application/json"),
        ("x-case", "Kept \xff"),
        ("x-two", "1"),
        ("x-two", "2"),
        ("content-length", str(len(body))),
    ), "no header of the client library's own"


async def test_chunks_come_as_they_are_sent(transport: VendorTransport, openai_vendor: StandInVendor) -> None:
    openai_vendor.answer_with(Answer((b"one", b"two", b"three"), framing="chunked", piece_delay_s=0.1))
    response = await transport.send(post(openai_vendor.url))
    seen = [(chunk, time.monotonic()) async for chunk in response.chunks()]
    await response.close()
    assert [chunk for chunk, _ in seen] == [b"one", b"two", b"three"]
    assert seen[2][1] - seen[0][1] > 0.15


async def test_trailers_do_not_swallow_the_end_of_the_body(transport: VendorTransport) -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7}}\n\ndata: [DONE]\n\n'

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n{}")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n")
            writer.write(b"trailer: x-checksum, server-timing\r\n\r\n")
            writer.write(b"%x\r\n%b\r\n0\r\nx-checksum: 1f\r\nserver-timing: total;dur=5\r\n\r\n" % (len(usage), usage))
            await writer.drain()
        writer.close()
        await writer.wait_closed()
        answered.set()

    answered = asyncio.Event()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for _ in range(2):  # the second on the same line: nothing of the first may be left on it
            _, _, chunks = await read(transport, post(url))
            assert b"".join(chunks) == usage
        await answered.wait()


async def test_a_cancellation_says_whether_the_request_has_left(
    transport: VendorTransport, openai_vendor: StandInVendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = Answer((b"late",), delay_s=3.0)
    openai_vendor.answer_with(Answer((b"ok",)), late, late)
    await read(transport, post(openai_vendor.url))
    for number in (2, 3):  # the first on a line that was there, the other on one of its own
        sending = asyncio.create_task(transport.send(post(openai_vendor.url)))
        await until(lambda number=number: len(openai_vendor.requests) == number)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError) as told:
            await sending
        assert not isinstance(told.value.__cause__, NotSentError)
    connecting = asyncio.Event()

    async def slow(*_arguments: object, **_named: object) -> None:
        connecting.set()
        await asyncio.Event().wait()

    monkeypatch.setattr("anyio.connect_tcp", slow)
    sending = asyncio.create_task(transport.send(post(openai_vendor.url)))
    await connecting.wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError) as told:
        await sending
    assert isinstance(told.value.__cause__, NotSentError)


async def test_a_call_cancelled_while_it_waits_for_a_line_has_not_left(openai_vendor: StandInVendor) -> None:
    transport = HttpxTransport(max_connections=1)
    response = await transport.send(post(openai_vendor.url))
    waiting = asyncio.create_task(transport.send(post(openai_vendor.url)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError) as told:
        await waiting
    assert isinstance(told.value.__cause__, NotSentError)
    await response.close()
    assert (await read(transport, post(openai_vendor.url)))[0] == 401, "its place is free"
    await transport.close()


async def test_connections_are_used_again(transport: VendorTransport) -> None:
    connections = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        while await reader.readline():
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(2)
            assert b"content-length: 2" in head.lower()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        for _ in range(5):
            assert (await read(transport, post(f"http://127.0.0.1:{port}")))[2] == [b"ok"]
        assert len(connections) == 1
        for _ in range(3):
            both = await asyncio.gather(*(read(transport, post(f"http://127.0.0.1:{port}")) for _ in range(2)))
            assert [chunks for _, _, chunks in both] == [[b"ok"], [b"ok"]]
        assert len(connections) == 2
        # One that the vendor has closed meanwhile is not used again.
        for writer in connections:
            writer.close()
            await writer.wait_closed()
        assert (await read(transport, post(f"http://127.0.0.1:{port}")))[2] == [b"ok"]
        assert len(connections) == 3
        connections[2].close()
        await connections[2].wait_closed()


async def test_a_closed_response_ends_the_vendors_work(
    transport: VendorTransport, openai_vendor: StandInVendor
) -> None:
    openai_vendor.answer_with(Answer((b"x",) * 1000, framing="chunked", piece_delay_s=0.02))
    response = await transport.send(post(openai_vendor.url))
    chunks = response.chunks()
    assert await anext(chunks) == b"x"
    await chunks.aclose()
    await response.close()
    await until(lambda: openai_vendor.aborted)


async def test_a_vendor_that_is_not_there_was_sent_nothing(transport: VendorTransport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(NotSentError):
        await transport.send(post(f"http://127.0.0.1:{port}/v1"))


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/v1", "http://[::bad/v1", "http:///v1"])
async def test_an_address_that_makes_no_sense_was_sent_nothing(transport: VendorTransport, url: str) -> None:
    with pytest.raises(NotSentError):
        await transport.send(post(url))


async def test_a_header_that_cannot_be_sent_was_not_sent(
    transport: VendorTransport, openai_vendor: StandInVendor
) -> None:
    request = VendorRequest("POST", openai_vendor.url, ((b"x-odd", b"a\r\nb"),), b"{}", 5.0)
    with pytest.raises(NotSentError):
        await transport.send(request)
    assert openai_vendor.requests == []


async def test_a_vendor_that_hangs_up_is_told_apart_from_one_that_takes_too_long(
    transport: VendorTransport, openai_vendor: StandInVendor
) -> None:
    openai_vendor.answer_with(Answer((b"x",), hang_up_after=-1), Answer((b"x",), delay_s=5))
    with pytest.raises(UnavailableError) as caught:
        await transport.send(post(openai_vendor.url))
    assert not isinstance(caught.value, NotSentError | TimedOutError)
    with pytest.raises(TimedOutError):
        await transport.send(post(openai_vendor.url, timeout_s=0.1))


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_body_that_breaks_off_is_no_end(
    transport: VendorTransport, openai_vendor: StandInVendor, framing: str
) -> None:
    openai_vendor.answer_with(Answer((b"one", b"two"), hang_up_after=1, framing=framing))  # type: ignore[arg-type]
    response = await transport.send(post(openai_vendor.url))
    chunks = response.chunks()
    assert await anext(chunks) == b"one"
    with pytest.raises(UnavailableError):
        await anext(chunks)
    await response.close()


async def test_a_body_that_stalls_times_out(transport: VendorTransport, openai_vendor: StandInVendor) -> None:
    openai_vendor.answer_with(Answer((b"one", b"two"), framing="chunked", piece_delay_s=0.3))
    response = await transport.send(post(openai_vendor.url, timeout_s=0.15))
    with pytest.raises(TimedOutError):
        _ = [chunk async for chunk in response.chunks()]
    await response.close()


async def test_calls_past_the_limit_wait_for_a_connection(openai_vendor: StandInVendor) -> None:
    openai_vendor.always(Answer((b"ok",), delay_s=0.1))
    transport = HttpxTransport(max_connections=2)
    calls = [asyncio.create_task(read(transport, post(openai_vendor.url))) for _ in range(4)]
    await until(lambda: len(openai_vendor.requests) == 2)
    with pytest.raises(NotSentError, match="every vendor connection is in use"):
        await transport.send(post(openai_vendor.url, timeout_s=0.01))
    assert [chunks for _, _, chunks in await asyncio.gather(*calls)] == [[b"ok"]] * 4
    await transport.close()


async def test_a_cancelled_call_gives_its_connection_back(openai_vendor: StandInVendor) -> None:
    openai_vendor.always(Answer((b"{}",)))
    openai_vendor.answer_with(Answer((b"late",), delay_s=5))
    transport = HttpxTransport(max_connections=1)
    call = asyncio.create_task(transport.send(post(openai_vendor.url)))
    await until(lambda: openai_vendor.requests)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (await read(transport, post(openai_vendor.url, b'{"model":"m"}')))[0] == 200
    await transport.close()


async def test_connections_that_nobody_takes_are_closed_without_a_further_call(
    openai_vendor: StandInVendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    openai_vendor.always(Answer((b"{}",)))
    monkeypatch.setattr("services.adapters.http_transport.KEEP_ALIVE_S", 0.1)
    transport = HttpxTransport()
    await asyncio.gather(*(read(transport, post(openai_vendor.url)) for _ in range(3)))
    (idle,) = transport._idle.values()
    lines = [each for _, each, _ in idle]
    assert len(lines) == 3
    await until(lambda: not transport._idle, 2)
    await until(lambda: transport._sweeper is None, 2)
    assert all(line._pool.connections == [] for line in lines)
    assert (await read(transport, post(openai_vendor.url)))[0] == 200
    assert transport._sweeper is not None
    await transport.close()
    assert transport._sweeper is None
