"""Vendors over HTTP/1.1 through httpx's transport: pooled connections, bytes as they are on the wire."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Final

import httpx

from services.core.ports import NotSentError, TimedOutError, UnavailableError
from services.core.vendor_port import VendorRequest, VendorResponse

KEEP_ALIVE_S: Final = 30.0

# Errors of httpx that come before a request is on its way.
_NOT_SENT: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
    httpx.InvalidURL,
)
# What httpx's transport tells when the first byte of a request is about to go out.
_LEAVES: Final = ".send_request_headers.started"
_CANCELLED: Final = "it was cancelled before anything was sent"
# One of our own making keeps one connection: a pool of httpx's looks at every pair of its connections for each request.
_ONE: Final = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEEP_ALIVE_S)

_Origin = tuple[bytes, bytes, int | None]


class HttpxTransport:
    """`vendor_port.VendorTransport` on `httpx.AsyncHTTPTransport`. At most `max_connections` are in use; others wait.

    The transport is used by itself: a client's redirects, cookies, decoding and default headers must not happen.
    """

    def __init__(self, max_connections: int = 1000) -> None:
        self._ssl_context = httpx.create_ssl_context()
        self._slots = asyncio.Semaphore(max_connections)
        # By origin, the last used at the end: those at the front are the first to have been idle for too long. Each
        # tells whether it should have its connection.
        self._idle: dict[_Origin, deque[tuple[float, httpx.AsyncHTTPTransport, bool]]] = {}
        self._sweeper: asyncio.Task[None] | None = None

    async def send(self, request: VendorRequest) -> VendorResponse:
        """The answer's head. Raises `NotSentError`, `TimedOutError` or `UnavailableError`.

        A cancellation has a `NotSentError` as its cause while nothing has left.
        """
        try:
            outgoing = httpx.Request(
                request.method,
                _url(request.url),
                headers=list(request.headers),
                content=request.body,
                extensions={"timeout": dict.fromkeys(("connect", "read", "write", "pool"), request.timeout_s)},
            )
        except httpx.InvalidURL as error:
            raise NotSentError(_reason(error)) from error
        try:
            line = await self._take(outgoing.url, request.timeout_s)
        except asyncio.CancelledError as error:
            raise error from NotSentError(_CANCELLED)
        if not line.has_sent:
            outgoing.extensions["trace"] = line.note
        try:
            response = await line.transport.handle_async_request(outgoing)
        except BaseException as error:
            line.give_back(is_connected=False)
            if isinstance(error, asyncio.CancelledError) and not line.has_sent:
                raise error from NotSentError(_CANCELLED)
            if isinstance(error, _NOT_SENT):
                raise NotSentError(_reason(error)) from error
            if isinstance(error, httpx.TransportError):
                raise _failure(error) from error
            raise
        return HttpxResponse(response, line)

    async def close(self) -> None:
        """Closes every connection; call it when no call is under way."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait({self._sweeper})
            self._sweeper = None
        idle, self._idle = self._idle, {}
        for _, transport, _ in (each for line in idle.values() for each in line):
            await transport.aclose()

    async def _take(self, url: httpx.URL, timeout_s: float) -> "_Line":
        if self._slots.locked():
            try:
                async with asyncio.timeout(timeout_s):
                    await self._slots.acquire()
            except TimeoutError as error:
                raise NotSentError("every vendor connection is in use") from error
        else:
            await self._slots.acquire()
        origin = (url.raw_scheme, url.raw_host, url.port)
        idle = self._idle.get(origin)
        if idle:
            _, transport, is_connected = idle.pop()
            return _Line(transport, origin, self, has_sent=is_connected)
        transport = httpx.AsyncHTTPTransport(verify=self._ssl_context, limits=_ONE)
        return _Line(transport, origin, self, has_sent=False)

    def _give_back(self, line: "_Line", *, is_connected: bool) -> None:
        """Lets the next call have it."""
        self._slots.release()
        self._idle.setdefault(line.origin, deque()).append((time.monotonic(), line.transport, is_connected))
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._sweep())

    async def _sweep(self) -> None:
        """Closes what nobody has taken for a while, of every origin, until nothing is idle."""
        try:
            while self._idle:
                await asyncio.sleep(KEEP_ALIVE_S)
                for transport in self._too_old(time.monotonic() - KEEP_ALIVE_S):
                    # One that can't be closed in good order is gone all the same, and the others must go too.
                    with suppress(httpx.TransportError, OSError):
                        await transport.aclose()
        finally:
            self._sweeper = None

    def _too_old(self, before: float) -> list[httpx.AsyncHTTPTransport]:
        """Takes out what was given back before then, and the origins that have nothing left."""
        old = []
        for origin, idle in list(self._idle.items()):
            while idle and idle[0][0] <= before:
                old.append(idle.popleft()[1])
            if not idle:
                del self._idle[origin]
        return old


class _Line:
    """A transport of one connection, taken by one call.

    `has_sent` is false until that call's request begins to leave, where the connection is still to be made: one that
    is there has it at once.
    """

    def __init__(
        self, transport: httpx.AsyncHTTPTransport, origin: _Origin, owner: HttpxTransport, *, has_sent: bool
    ) -> None:
        self.transport = transport
        self.origin = origin
        self.has_sent = has_sent
        self._owner = owner

    async def note(self, event: str, _: object) -> None:
        """Hears from httpx how a request gets on."""
        if event.endswith(_LEAVES):
            self.has_sent = True

    def give_back(self, *, is_connected: bool) -> None:
        """Lets the next call have it."""
        self._owner._give_back(self, is_connected=is_connected)


class HttpxResponse:
    """`vendor_port.VendorResponse` of an httpx answer."""

    def __init__(self, response: httpx.Response, line: _Line) -> None:
        assert isinstance(response.stream, httpx.AsyncByteStream)
        self._stream = response.stream
        self._line: _Line | None = line
        self.status: int = response.status_code
        self.headers: Sequence[tuple[bytes, bytes]] = response.headers.raw

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it arrives, not decoded. Raises `TimedOutError` and `UnavailableError`."""
        try:
            async for chunk in self._stream:
                yield chunk
        except httpx.TransportError as error:
            raise _failure(error) from error

    async def close(self) -> None:
        """Gives the connection back when the body was read to its end, and closes it otherwise."""
        line, self._line = self._line, None
        if line is None:
            return
        try:
            await self._stream.aclose()
        finally:
            line.give_back(is_connected=True)


@lru_cache(maxsize=1024)
def _url(text: str) -> httpx.URL:
    return httpx.URL(text)


def _failure(error: httpx.TransportError) -> UnavailableError:
    if isinstance(error, httpx.TimeoutException):
        return TimedOutError(_reason(error))
    return UnavailableError(_reason(error))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
