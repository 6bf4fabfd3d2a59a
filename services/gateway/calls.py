"""A governed call, start to end: identify, admit, forward, deliver. The hot path."""

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from services.core.identity import IdentityError, check_name
from services.gateway.admit import AdmittedCall, Admitter
from services.gateway.body import ClientGoneError, Message, Receive, Send, read_body
from services.gateway.deliver import Delivery
from services.gateway.forward import Forwarder, VendorFailedError
from services.gateway.headers import CallHeaders, HeaderReader
from services.gateway.identify import Authenticator
from services.gateway.observe import Observer
from services.gateway.refusal import RefusedError
from services.gateway.respond import ResponseHeaders, send_refusal
from services.gateway.settle import Settler
from services.gateway.timing import Timing
from services.gateway.vendors import Dialect, RequestFacts, RequestRefusedError

# Larger bodies take long enough to read that other calls would notice.
_READ_IN_THREAD_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class VendorRoute:
    """A billable route: its `name` in events, its path below a vendor's base URL, and the dialect it is in."""

    name: str
    path: str
    dialect: Dialect


class GovernedCalls:
    """Serves billable routes. `max_body_bytes` and `max_response_bytes` bound what one call may hold in memory."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        admitter: Admitter,
        forwarder: Forwarder,
        settler: Settler,
        observer: Observer,
        header_prefix: str,
        max_body_bytes: int,
        max_response_bytes: int,
    ) -> None:
        self._reader = HeaderReader(header_prefix)
        self._names = ResponseHeaders(header_prefix)
        self._authenticator = authenticator
        self._admitter = admitter
        self._forwarder = forwarder
        self._settler = settler
        self._observer = observer
        self._max_body_bytes = max_body_bytes
        self._max_response_bytes = max_response_bytes
        self._vendor_header = header_prefix + "vendor"
        self._trailer_header = header_prefix + "trailer"

    async def serve(self, scope: Message, receive: Receive, send: Send, route: VendorRoute, vendor: str | None) -> None:
        """Serves one call to `route`; `vendor` is what its path names, if it does."""
        timing = Timing()
        try:
            headers = self._reader.read(scope["headers"])
            call = await self._admit(headers, receive, route, vendor, timing)
        except RefusedError as refusal:
            self._observer.denied(refusal.code)
            await send_refusal(send, route.dialect, refusal)
            return
        except ClientGoneError:
            return
        query: bytes = scope["query_string"]
        path = f"{route.path}?{query.decode('latin-1')}" if query else route.path
        await self._carry_out(call, headers, path, route.dialect, receive, send)

    async def _admit(
        self, headers: CallHeaders, receive: Receive, route: VendorRoute, vendor: str | None, timing: Timing
    ) -> AdmittedCall:
        identity = await self._authenticator.identify(headers)
        vendor = self._vendor(headers, vendor)
        timing.identified_ns = time.perf_counter_ns()
        body = await read_body(receive, headers.content_length, self._max_body_bytes)
        timing.read_ns = time.perf_counter_ns()
        return await self._admitter.admit(
            identity,
            await _read_request(route, body),
            dialect=route.dialect.name,
            route=route.name,
            vendor=vendor,
            trace=headers.trace,
            timing=timing,
        )

    def _vendor(self, headers: CallHeaders, in_path: str | None) -> str | None:
        name = headers.spend.get(self._vendor_header)
        if name is None:
            return in_path
        try:
            check_name(self._vendor_header, name)
        except IdentityError as error:
            raise RefusedError(400, "invalid_request", str(error), param=error.field) from error
        if in_path is not None and in_path != name:
            message = f"{self._vendor_header} says {name!r}, but the path names {in_path!r}; drop one of them"
            raise RefusedError(400, "invalid_request", message, param=self._vendor_header)
        return name

    async def _carry_out(
        self, call: AdmittedCall, headers: CallHeaders, path: str, dialect: Dialect, receive: Receive, send: Send
    ) -> None:
        credential = dialect.credential_headers(call.target.vendor_key)
        try:
            forwarded = await self._forwarder.send(call, path, headers.forwarded, credential)
        except VendorFailedError as failure:
            status, code = (504, "vendor_timeout") if failure.timed_out else (502, "vendor_unreachable")
            settled = self._settler.settle_unanswered(
                call, was_sent=failure.was_sent, http_status=status, retry_count=failure.retry_count
            )
            refusal = RefusedError(status, code, str(failure), fields={"transaction_id": call.transaction_id})
            await send_refusal(send, dialect, refusal, self._names.of_call(call, failure.retry_count, settled))
            return
        delivery = Delivery(
            call=call,
            forwarded=forwarded,
            dialect=dialect,
            settler=self._settler,
            names=self._names,
            receive=receive,
            send=send,
            buffer_bytes=self._max_response_bytes,
            with_trailer=headers.spend.get(self._trailer_header, "").lower() == "true",
        )
        await delivery.run()


async def _read_request(route: VendorRoute, body: bytes) -> RequestFacts:
    try:
        if len(body) > _READ_IN_THREAD_BYTES:
            return await asyncio.to_thread(route.dialect.read_request, route.name, body)
        return route.dialect.read_request(route.name, body)
    except RequestRefusedError as error:
        raise RefusedError(400, error.code, str(error), param=error.param) from error
