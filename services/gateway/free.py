"""Routes that cost nothing: identified, then passed on and back as they stream, without a hold."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Final

from services.core.ports import UnavailableError
from services.core.vendor_port import VendorRequest, VendorResponse, VendorTransport
from services.gateway.body import Receive, Send, read_body
from services.gateway.connect import Choice, Connector, Target, own_key
from services.gateway.forward import PLAIN_ANSWER
from services.gateway.headers import CallHeaders
from services.gateway.refusal import RefusedError
from services.gateway.respond import ResponseHeaders
from services.gateway.snapshots import OrgView
from services.gateway.table import path_below

_LAST_STATUS: Final = 599


class FreeCalls:
    """Passes free calls on. `timeout_s` bounds connecting and each wait for bytes."""

    def __init__(
        self,
        transport: VendorTransport,
        connector: Connector,
        names: ResponseHeaders,
        *,
        max_body_bytes: int,
        timeout_s: float,
    ) -> None:
        self._transport = transport
        self._connector = connector
        self._names = names
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s

    async def serve(
        self,
        method: str,
        receive: Receive,
        send: Send,
        view: OrgView,
        choice: Choice,
        headers: CallHeaders,
        query: str,
    ) -> None:
        """Passes one call on. Raises `RefusedError` and `ClientGoneError` while nothing has been answered."""
        request, _ = await self.prepare(method, receive, view, choice, headers, query)
        response = await self.send(request)
        try:
            await self.pass_on(response, send)
        finally:
            await response.close()

    async def send(self, request: VendorRequest) -> VendorResponse:
        """The head of the vendor's answer. Raises `RefusedError` (502)."""
        try:
            return await self._transport.send(request)
        except UnavailableError as error:
            message = f"the vendor can't be reached: {error}"
            raise RefusedError(502, "vendor_unreachable", message) from error

    async def pass_on(
        self,
        response: VendorResponse,
        send: Send,
        parts: Sequence[bytes] = (),
        chunks: AsyncGenerator[bytes, None] | None = None,
        sink: Callable[[bytes], object] | None = None,
    ) -> None:
        """Hands an answer on as it comes: `parts` of it came before, `chunks` are the rest; each goes into `sink`, too.

        A client that leaves, or a vendor that breaks off, ends it without an error.
        """
        status = response.status if response.status <= _LAST_STATUS else 502
        head = {"type": "http.response.start", "status": status, "headers": self._names.of_vendor(response.headers)}
        try:
            await send(head)
            for part in parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            async with aclosing(response.chunks() if chunks is None else chunks) as rest:
                async for chunk in rest:
                    if sink is not None:
                        sink(chunk)
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except (UnavailableError, OSError):
            # The head is out: only a connection cut short tells the client that this is not all.
            return

    async def prepare(
        self, method: str, receive: Receive, view: OrgView, choice: Choice, headers: CallHeaders, query: str
    ) -> tuple[VendorRequest, Target]:
        """The call as it goes to the vendor, and where that is. Raises `RefusedError` and `ClientGoneError`."""
        dialect = choice.candidate.dialect
        key = own_key(headers, dialect)
        vendor = choice.vendor or self._connector.default_vendor
        try:
            connection = self._connector.speaking(dialect, view.snapshot, vendor, brings_key=key is not None)
            target = self._connector.target(view.snapshot.org, connection, key)
        except ValueError as error:
            raise RefusedError(400, "no_vendor_connection", str(error)) from error
        body = await read_body(receive, headers.content_length, self._max_body_bytes)
        path = path_below(target.base_url, dialect, choice.candidate)
        own: Sequence[tuple[bytes, bytes]] = dialect.credential_headers(target.vendor_key)
        request = VendorRequest(
            method,
            f"{target.base_url}{path}?{query}" if query else target.base_url + path,
            (*headers.forwarded, *own, PLAIN_ANSWER),
            body,
            self._timeout_s,
        )
        return request, target
