"""A small raw HTTP server that records what it got and answers what it is told, to the byte."""

import asyncio
import json
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from tests.support.vendors.framing import dump

Framing = Literal["length", "chunked", "close"]

# The turns of a loop from accepting a connection to the start of its handler, and some more.
_TURNS_TO_BEGIN = 8


@dataclass(frozen=True)
class Received:
    """A request as it came in: header names in lower case, in order. `credential` is what the vendor looks for."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    credential: str | None = None

    def header(self, name: str) -> str | None:
        """The first value of a header."""
        return next((value for known, value in self.headers if known == name), None)

    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def path(self) -> str:
        """The target without its query."""
        return urlsplit(self.target).path

    def query(self, name: str) -> str | None:
        """The first value of a query parameter."""
        return next(iter(parse_qs(urlsplit(self.target).query).get(name, [])), None)


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

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(self.pieces)

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
    return Answer((dump(value),), status, **options)


def stream_answer(pieces: list[bytes], kind: str = "text/event-stream; charset=utf-8", **options: Any) -> Answer:
    """An event stream, or another stream of `kind`, a piece at a time."""
    headers = (("content-type", kind), ("x-request-id", "req_stand_in"))
    return replace(Answer(tuple(pieces), headers=headers, framing="chunked"), **options)


def bytes_answer(body: bytes, kind: str, **options: Any) -> Answer:
    """Any body in one piece."""
    return Answer((body,), headers=(("content-type", kind), ("x-request-id", "req_stand_in")), **options)


def error_answer(
    body: object, status: int, retry_after: str | None = None, more: tuple[tuple[str, str], ...] = (), **options: Any
) -> Answer:
    """An error body; with `retry_after`, its header, and `more` headers."""
    wait = (("retry-after", retry_after),) if retry_after is not None else ()
    headers = (("content-type", "application/json"), ("x-request-id", "req_stand_in"), *wait, *more)
    return Answer((dump(body),), status, headers, **options)


@dataclass
class Server:
    """The server, in a thread of its own.

    `requests` are those received so far, `aborted` those whose client hung up before the answer was sent.
    `otherwise` answers when no scripted answer is left; `credential_of` finds what the vendor takes for its key.
    """

    otherwise: Callable[[Received], Answer]
    credential_of: Callable[[Received], str | None]
    requests: list[Received] = field(default_factory=list)
    aborted: list[Received] = field(default_factory=list)
    port: int = 0

    def __post_init__(self) -> None:
        self._queue: deque[Answer] = deque()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="stand-in-vendor")
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def root(self) -> str:
        """Where it listens, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def answer_with(self, *answers: Answer) -> None:
        """The answers of the next requests, in order; after them, `otherwise` decides again."""
        self._queue.extend(answers)

    def always(self, answer: Answer) -> None:
        """One answer for every request from now on."""
        self.otherwise = lambda _request: answer

    def start(self) -> None:
        """Listens on `port`, or on a free one when that is 0."""
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=2**20))
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
        for listening in self._server.sockets:
            self._loop.remove_reader(listening.fileno())
        for _ in range(_TURNS_TO_BEGIN):  # what was just accepted has no handler yet that would close it
            await asyncio.sleep(0)
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while (read := await _read_request(reader)) is not None:
                request = replace(read, credential=self.credential_of(read))
                self.requests.append(request)
                answer = self._queue.popleft() if self._queue else self._decide(request)
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

    def _decide(self, request: Received) -> Answer:
        try:
            return self.otherwise(request)
        except Exception as fault:
            # A fault of the stand-in must not look like a vendor's: no test expects this status, all show the body.
            return json_answer({"stand_in_fault": f"{type(fault).__name__}: {fault}"}, 599)


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
