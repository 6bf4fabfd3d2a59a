"""Cold paths: requests to the services behind the one address (control, ledger), passed on untouched."""

from collections.abc import AsyncIterator
from typing import Final

import httpx
import structlog

from services.gateway.body import Message, Receive, Send
from services.gateway.headers import check_values, end_to_end, last_value
from services.gateway.refusal import RefusedError
from services.gateway.respond import send_plain

log = structlog.get_logger()

_TIMEOUT_S: Final = 60.0
_REPLACED: Final = frozenset((b"host", b"expect"))


class _CallerGoneError(Exception):
    pass


class Relay:
    """Passes requests on to the service at `base_url`. `name` is what a caller is told when it is away."""

    def __init__(self, name: str, base_url: str, transport: httpx.AsyncBaseTransport) -> None:
        self._name = name
        self._base_url = base_url.rstrip("/").encode()
        self._transport = transport

    async def serve(self, scope: Message, receive: Receive, send: Send) -> None:
        """Passes one request on and its answer back, both as they stream."""
        try:
            check_values(scope["headers"])
            request = self._request(scope, receive)
        except RefusedError as refusal:
            await send_plain(send, refusal.status, refusal.code, refusal.message, fields={"field": refusal.param})
            return
        except httpx.InvalidURL:
            await send_plain(send, 400, "invalid_request", "the path can't be read")
            return
        try:
            response = await self._transport.handle_async_request(request)
        except _CallerGoneError:
            return
        except httpx.TransportError as error:
            log.warning("relay_failed", to=self._name, reason=type(error).__name__)
            message = f"the {self._name} service is away; model calls are not affected. Try again in a moment"
            await send_plain(send, 502, "service_unavailable", message, headers=[(b"retry-after", b"1")])
            return
        try:
            await _pass_back(response, send)
        finally:
            await response.aclose()

    def _request(self, scope: Message, receive: Receive) -> httpx.Request:
        target: bytes = self._base_url + scope["raw_path"]
        query: bytes = scope["query_string"]
        if query:
            target += b"?" + query
        headers = scope["headers"]
        has_body = any(last_value(headers, name) is not None for name in (b"content-length", b"transfer-encoding"))
        return httpx.Request(
            scope["method"],
            target.decode("ascii"),
            headers=end_to_end(headers, _REPLACED),
            content=_chunks(receive) if has_body else None,
            extensions={"timeout": httpx.Timeout(_TIMEOUT_S, connect=5.0).as_dict()},
        )


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _CallerGoneError
        if message.get("body"):
            yield message["body"]
        more = message.get("more_body", False)


async def _pass_back(response: httpx.Response, send: Send) -> None:
    headers = end_to_end(response.headers.raw, frozenset())
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    assert isinstance(response.stream, httpx.AsyncByteStream)
    try:
        async for chunk in response.stream:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except httpx.TransportError as error:
        # The head is out: only a connection cut short tells the caller that this is not all.
        log.warning("relay_broke_off", reason=type(error).__name__)
        return
    await send({"type": "http.response.body", "body": b""})
