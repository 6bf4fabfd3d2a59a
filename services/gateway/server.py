"""The HTTP server: uvicorn, which answers what it can't parse in our own words and leaves signals to us."""

import asyncio
import json
import re
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from services.gateway.body import Message, Receive, Send
from services.gateway.routes import Gateway

# A header line whose value holds what no header may hold, as it stands in the bytes that failed to parse.
_BAD_LINE: Final = re.compile(rb"(?:^|\n)([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[^\r\n]*?[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_KEEP_ALIVE_S: Final = 75
# How long what was cancelled may take to end: it is settled by then, before the outbox is emptied.
_CANCELLED_S: Final = 3.0

# What anyone may cost this process before a key is asked for.
MAX_HEAD_BYTES: Final = 64 * 1024
HEAD_S: Final = 30.0
MAX_REQUESTS: Final = 2_000
MAX_CONNECTIONS: Final = 10_000


class ClearProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with bounds, and refusals in JSON.

    A request that can't be parsed is refused by the name of the header at fault (400), a head that is too large with
    431, one that is not complete in time with 408, and a request beyond `MAX_REQUESTS` under way with 503.
    """

    _received = b""
    # Of the head that is under way: its bytes in earlier pieces, and what ends its time.
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _in_head = True
    _ended = False
    _too_large = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins the wait for a head; a connection too many is closed at once."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the wait."""
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parses the bytes; remembers them for as long as that takes."""
        self._received = data
        self._ended = False
        super().data_received(data)
        self._received = b""
        # A piece that ended a request is not counted: how much of it is the next head can't be told.
        if self._in_head and not self._ended and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse_head()
            elif self._head_timer is None:
                self._await_head()

    def on_headers_complete(self) -> None:
        """Starts the request, unless its head is too large."""
        # Bytes that came with the head may be its body's, so the head is measured only when it could be too large.
        if self._head_bytes + len(self._received) > MAX_HEAD_BYTES:
            size = len(self.url) + sum(len(name) + len(value) + len(b": \r\n") for name, value in self.headers)
            if size > MAX_HEAD_BYTES:
                self._too_large = True
                raise ValueError("the head is too large")  # The parser stops, and send_400_response is called.
        self._in_head = False
        self._stop_head_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Begins the next head."""
        self._in_head = self._ended = True
        self._head_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers a request that is not HTTP, and closes the connection."""
        if self._too_large:
            self._refuse_head()
            return
        fault = _BAD_LINE.search(self._received.partition(b"\r\n\r\n")[0])
        if fault is None:
            self._refuse(b"400 Bad Request", "invalid_request", "this is not a valid HTTP/1.1 request")
            return
        name = fault[1].decode("ascii").lower()
        message = f"header {name} holds a control character; send printable characters only"
        self._refuse(b"400 Bad Request", "invalid_request", message, name)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if len(self.tasks) >= MAX_REQUESTS and cycle.scope["path"] != "/healthz":
            app = _busy
        super()._start_asgi_task(cycle, app)

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if self._is_answering():  # It has begun another request early. The answer under way is not cut for that.
            self._await_head()
        elif self._head_bytes == 0:
            self.transport.close()
        else:
            message = f"the request's head was not complete after {HEAD_S:.0f} s; send it at once"
            self._refuse(b"408 Request Timeout", "request_timeout", message)

    def _refuse_head(self) -> None:
        message = f"the request line and headers are larger than {MAX_HEAD_BYTES} bytes; send less in headers"
        self._refuse(b"431 Request Header Fields Too Large", "headers_too_large", message)

    def _refuse(self, status: bytes, code: str, message: str, param: str | None = None) -> None:
        if not self._is_answering():  # Within an earlier answer, this one would be taken for a part of it.
            body = _error(message, param, "invalid_request_error", code)
            self.transport.write(
                b"HTTP/1.1 %s\r\ncontent-type: application/json\r\nconnection: close\r\n"
                b"content-length: %d\r\n\r\n%s" % (status, len(body), body)
            )
        self.transport.close()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete


async def _busy(scope: Message, receive: Receive, send: Send) -> None:
    """An ASGI application that has no room."""
    message = f"this gateway has {MAX_REQUESTS} requests under way; try again in a second"
    body = _error(message, None, "server_error", "too_many_requests")
    length = b"%d" % len(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", length), (b"retry-after", b"1")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _error(message: str, param: str | None, kind: str, code: str) -> bytes:
    return json.dumps({"error": {"message": message, "param": param, "type": kind, "code": code}}).encode()


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: set `should_exit` to end it, and it ends cleanly."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leaves signals alone: uvicorn raises them again after a clean end, and the process would die of them."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends as uvicorn does, and waits for the requests that it cancels: they settle what they have begun."""
        await super().shutdown(sockets)
        if self.server_state.tasks:
            await asyncio.wait(set(self.server_state.tasks), timeout=_CANCELLED_S)


def make_server(app: Gateway, host: str, port: int, *, finish_s: int) -> Server:
    """A server for the gateway; calls in flight have `finish_s` seconds to end once it is told to exit."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=ClearProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=finish_s,
    )
    return Server(config)
