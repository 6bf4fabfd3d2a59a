"""To the vendor: which headers go along, and how often a failure is tried again (GW-5)."""

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from services.core.ports import (
    NotSentError,
    TimedOutError,
    UnavailableError,
    VendorRequest,
    VendorResponse,
    VendorTransport,
)
from services.gateway.admit import AdmittedCall
from services.gateway.headers import Headers
from services.gateway.observe import Observer

RETRY_PAUSES_S: Final = (0.1, 0.5)
# A vendor call must end well before its hold does, or its cost would be booked twice for a while.
_SHARE_OF_HOLD: Final = 0.9


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A vendor's answer has begun, after `retry_count` retries."""

    response: VendorResponse
    retry_count: int


class VendorFailedError(Exception):
    """No answer began. `was_sent`: the vendor may have done all it was asked for. `timed_out`: it was given up on."""

    def __init__(self, message: str, retry_count: int, *, was_sent: bool, timed_out: bool = False) -> None:
        super().__init__(message)
        self.retry_count = retry_count
        self.was_sent = was_sent
        self.timed_out = timed_out


class Forwarder:
    """Sends admitted calls to their vendors. `timeout_s` bounds all tries to get an answer, and each wait for bytes."""

    def __init__(self, transport: VendorTransport, observer: Observer, timeout_s: float) -> None:
        self._transport = transport
        self._observer = observer
        self._timeout_s = timeout_s

    async def send(self, call: AdmittedCall, path: str, headers: Headers, credential: Headers) -> Forwarded:
        """The head of the vendor's answer to a POST on `path` (with its query). Raises `VendorFailedError`."""
        request = VendorRequest(
            "POST",
            call.target.base_url + path,
            (*headers, *credential, *_trace(call.span.headers), (b"accept-encoding", b"identity")),
            call.request.body,
            min(self._timeout_s, call.hold_ms * _SHARE_OF_HOLD / 1000),
        )
        self._observer.forwarded(call.timing.overhead_ns() / 1e9)
        call.timing.sent_ns = time.perf_counter_ns()
        try:
            return await self._send(request, call.target.vendor)
        finally:
            call.timing.mark_vendor()
            self._observer.answered(call.target.vendor, call.timing.vendor_ns / 1e9)

    async def _send(self, request: VendorRequest, vendor: str) -> Forwarded:
        retry_count = 0
        ends_s = time.monotonic() + request.timeout_s
        # Each try gets the time that is left, so the last one must have enough of it to be of use.
        last_start_s = ends_s - request.timeout_s / 2
        while True:
            try:
                response = await self._transport.send(request)
            except TimedOutError as error:
                message = f"vendor {vendor!r} did not answer within {request.timeout_s:g} s"
                raise VendorFailedError(message, retry_count, was_sent=True, timed_out=True) from error
            except NotSentError as error:
                if _is_last(retry_count, last_start_s):
                    raise VendorFailedError(
                        f"vendor {vendor!r} can't be reached", retry_count, was_sent=False
                    ) from error
            except UnavailableError as error:
                # It may have answered, and charged, on a line that broke: asking again could be paid for twice.
                message = f"vendor {vendor!r} hung up without an answer"
                raise VendorFailedError(message, retry_count, was_sent=True) from error
            else:
                if response.status < 500 or _is_last(retry_count, last_start_s):
                    return Forwarded(response, retry_count)
                await response.close()
            # Callers that failed together must not come back together.
            await asyncio.sleep(RETRY_PAUSES_S[retry_count] * random.uniform(0.75, 1.25))  # noqa: S311
            retry_count += 1
            request = replace(request, timeout_s=ends_s - time.monotonic())


def _is_last(retry_count: int, last_start_s: float) -> bool:
    if retry_count == len(RETRY_PAUSES_S):
        return True
    return time.monotonic() + RETRY_PAUSES_S[retry_count] >= last_start_s


def _trace(headers: Mapping[str, str]) -> Headers:
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
