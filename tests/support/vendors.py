"""A stand-in for OpenAI: a small raw HTTP server that records what it got and answers what it is told, to the byte."""

import asyncio
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest

from tests.support import openai_answers

Framing = Literal["length", "chunked", "close"]


@dataclass(frozen=True)
class Received:
    """A request as it came in: header names in lower case, in order."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """The first value of a header."""
        return next((value for known, value in self.headers if known == name), None)

    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """What to send. Each of `pieces` is written by itself, `piece_delay_s` before each; `delay_s` before the head.

    With `hang_up_after` the connection is cut after that many pieces (0: after the head; -1: before it). ``close``
    framing ends the body by closing the connection; framing is left out of `headers`, and added here.
    """

    pieces: tuple[bytes, ...]
    status: int = 200
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"), ("x-request-id", "req_stand_in"))
    framing: Framing = "length"
    delay_s: float = 0.0
    piece_delay_s: float = 0.0
    hang_up_after: int | None = None

    def head(self) -> bytes:
        """The status line and headers."""
        lines = [f"HTTP/1.1 {self.status} Stand-In", *(f"{name}: {value}" for name, value in self.headers)]
        if self.framing == "length":
            lines.append(f"content-length: {sum(map(len, self.pieces))}")
        elif self.framing == "chunked":
            lines.append("transfer-encoding: chunked")
        else:
            lines.append("connection: close")
        return "\r\n".join((*lines, "", "")).encode("latin-1")


def json_answer(value: object, status: int = 200, **options: Any) -> Answer:
    """A JSON body in one piece."""
    return Answer((openai_answers.dump(value),), status, **options)


def stream_answer(pieces: list[bytes], **options: Any) -> Answer:
    """An event stream, a chunk a piece."""
    headers = (("content-type", "text/event-stream; charset=utf-8"), ("x-request-id", "req_stand_in"))
    return replace(Answer(tuple(pieces), headers=headers, framing="chunked"), **options)


def like_openai(request: Received) -> Answer:
    """What OpenAI would answer to a good request: JSON or a stream, with usage only where it was asked for."""
    if request.method == "GET":
        return json_answer({"object": "list", "data": []})
    fields = request.json()
    model = fields.get("model", "gpt-4o")
    if not fields.get("stream"):
        return json_answer(openai_answers.completion(model, choices=fields.get("n") or 1))
    reports = (fields.get("stream_options") or {}).get("include_usage")
    deltas = openai_answers.text_deltas("Hello", "!", " How", " can", " I", " help", "?")
    chunks = openai_answers.chunks(deltas, model, openai_answers.usage() if reports else None)
    return stream_answer(openai_answers.events(chunks))


@dataclass
class StandInVendor:
    """The server, in a thread of its own. `url` is a base URL as clients take it, with ``/v1``.

    `requests` are those received so far, `aborted` those whose client hung up before the answer was sent.
    """

    requests: list[Received] = field(default_factory=list)
    aborted: list[Received] = field(default_factory=list)
    otherwise: Callable[[Received], Answer] = like_openai
    port: int = 0

    def __post_init__(self) -> None:
        self._queue: deque[Answer] = deque()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="stand-in-vendor")
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.port}/v1"

    def answer_with(self, *answers: Answer) -> None:
        """The answers of the next requests, in order; after them, `otherwise` decides again."""
        self._queue.extend(answers)

    def always(self, answer: Answer) -> None:
        """One answer for every request from now on."""
        self.otherwise = lambda _request: answer

    def start(self) -> None:
        """Listens on `port`, or on a free one when that is 0."""
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Closes every connection and the thread."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while (request := await _read_request(reader)) is not None:
                self.requests.append(request)
                answer = self._queue.popleft() if self._queue else self.otherwise(request)
                try:
                    kept_alive = await _send(answer, reader, writer)
                except ConnectionError:
                    self.aborted.append(request)
                    return
                if not kept_alive:
                    return
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return
        finally:
            self._tasks.discard(task)
            writer.transport.abort()


async def _read_request(reader: asyncio.StreamReader) -> Received | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    start, *lines = head.decode("latin-1").split("\r\n")[:-2]
    method, target, _ = start.split(" ")
    pairs = (line.partition(":") for line in lines)
    headers = tuple((name.lower(), value.strip()) for name, _, value in pairs)
    named = dict(headers)
    if named.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    else:
        body = await reader.readexactly(int(named.get("content-length", "0")))
    return Received(method, target, headers, body)


async def _send(answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Sends an answer; whether the connection can be used again. Raises `ConnectionError` when the client has gone."""
    await _pause(answer.delay_s, reader)
    if answer.hang_up_after == -1:
        return False
    writer.write(answer.head())
    await writer.drain()
    for place, piece in enumerate(answer.pieces):
        if place == answer.hang_up_after:
            await _flush(writer)
            return False
        await _pause(answer.piece_delay_s, reader)
        chunked = answer.framing == "chunked" and piece
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
        await writer.drain()
    if answer.hang_up_after is not None or answer.framing == "close":
        await _flush(writer)
        return False
    if answer.framing == "chunked":
        writer.write(b"0\r\n\r\n")
        await writer.drain()
    return True


async def _pause(seconds: float, reader: asyncio.StreamReader) -> None:
    await asyncio.sleep(seconds)
    if reader.at_eof():
        raise ConnectionResetError("the client hung up")


async def _flush(writer: asyncio.StreamWriter) -> None:
    # The client gets what was written, then the end of the connection.
    writer.close()
    await writer.wait_closed()


@pytest.fixture
def openai_vendor() -> Iterator[StandInVendor]:
    """A stand-in for OpenAI, listening on a free port."""
    vendor = StandInVendor()
    vendor.start()
    yield vendor
    vendor.stop()
