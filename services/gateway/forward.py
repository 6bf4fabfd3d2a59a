"""To the vendor: which headers go along, and how often a failure is tried again (GW-5)."""

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from services.core.events import Attempt, AttemptOutcome
from services.core.ports import NotSentError, TimedOutError, UnavailableError
from services.core.vendor_port import VendorRequest, VendorResponse, VendorTransport
from services.gateway.admit import AdmittedCall
from services.gateway.headers import Headers
from services.gateway.observe import Observer
from services.gateway.table import path_below

RETRY_PAUSES_S: Final = (0.1, 0.5)
# A vendor call must end well before its hold does, or its cost would be booked twice for a while.
_SHARE_OF_HOLD: Final = 0.9
PLAIN_ANSWER: Final = (b"accept-encoding", b"identity")


class VendorFailedError(Exception):
    """No answer to `call` began. `was_sent`: the vendor may have done what it was asked; `timed_out`: given up on."""

    def __init__(self, call: AdmittedCall, message: str, *, was_sent: bool, timed_out: bool = False) -> None:
        super().__init__(message)
        self.call = call
        self.was_sent = was_sent
        self.timed_out = timed_out


class Forwarder:
    """Sends admitted calls to their vendors. `timeout_s` bounds all tries to get an answer, and each wait for bytes."""

    def __init__(self, transport: VendorTransport, observer: Observer, timeout_s: float) -> None:
        self._transport = transport
        self._observer = observer
        self._timeout_s = timeout_s

    async def send(self, call: AdmittedCall, headers: Headers) -> VendorResponse:
        """The head of the vendor's answer. Each try is added to the call's attempts. Raises `VendorFailedError`.

        When it is cancelled, the last of the attempts tells whether the vendor may be at work (`may_be_at_work`).
        """
        asked = call.asked
        dialect = asked.candidate.dialect
        path = path_below(call.target.base_url, dialect, asked.candidate)
        query = asked.request.query
        timeout_s = self._timeout_s if call.rule.timeout_ms is None else call.rule.timeout_ms / 1000
        request = VendorRequest(
            asked.candidate.route.method,
            f"{call.target.base_url}{path}?{query}" if query else call.target.base_url + path,
            (*headers, *dialect.credential_headers(call.target.vendor_key), *_trace(call.span.headers), PLAIN_ANSWER),
            call.request.body,
            min(timeout_s, call.hold_ms * _SHARE_OF_HOLD / 1000),
        )
        self._observer.forwarded(call.timing.overhead_ns() / 1e9)
        if not call.timing.sent_ns:
            call.timing.sent_ns = time.perf_counter_ns()
        try:
            return await self._send(request, call)
        finally:
            call.timing.mark_vendor()
            self._observer.answered(call.target.vendor, call.timing.vendor_ns / 1e9)

    async def _send(self, request: VendorRequest, call: AdmittedCall) -> VendorResponse:
        vendor = call.target.vendor
        retry_count = 0
        ends_s = time.monotonic() + request.timeout_s
        # Each try gets the time that is left, so the last one must have enough of it to be of use.
        last_start_s = ends_s - request.timeout_s / 2
        while True:
            started_ns = call.timing.tried_ns = time.perf_counter_ns()
            try:
                response = await self._transport.send(request)
            except asyncio.CancelledError as error:
                # The vendor goes on with what it has, whether or not anybody waits for it.
                never_left = isinstance(error.__cause__, NotSentError)
                _note(call, "unreachable" if never_left else "broke_off", 0, started_ns)
                raise
            except TimedOutError as error:
                _note(call, "timed_out", 0, started_ns)
                message = f"vendor {vendor!r} did not answer within {request.timeout_s:g} s"
                raise VendorFailedError(call, message, was_sent=True, timed_out=True) from error
            except NotSentError as error:
                _note(call, "unreachable", 0, started_ns)
                if _is_last(retry_count, last_start_s):
                    raise VendorFailedError(call, f"vendor {vendor!r} can't be reached", was_sent=False) from error
            except UnavailableError as error:
                # It may have answered, and charged, on a line that broke: asking again could be paid for twice.
                _note(call, "broke_off", 0, started_ns)
                raise VendorFailedError(call, f"vendor {vendor!r} hung up without an answer", was_sent=True) from error
            else:
                _note(call, _outcome(response.status), response.status, started_ns)
                if response.status < 500 or _is_last(retry_count, last_start_s):
                    return response
                await response.close()
            # Callers that failed together must not come back together.
            await asyncio.sleep(RETRY_PAUSES_S[retry_count] * random.uniform(0.75, 1.25))  # noqa: S311
            retry_count += 1
            request = replace(request, timeout_s=ends_s - time.monotonic())


def may_be_at_work(call: AdmittedCall) -> bool:
    """Whether a call's last try has left, and no answer to it began: its vendor may have done what it was asked."""
    return bool(call.attempts) and call.attempts[-1].outcome in ("broke_off", "timed_out")


def _outcome(status: int) -> AttemptOutcome:
    if status >= 500:
        return "failed"
    return "answered" if status < 400 else "refused"


def _note(call: AdmittedCall, outcome: AttemptOutcome, status: int, started_ns: int) -> None:
    duration_us = (time.perf_counter_ns() - started_ns) // 1000
    call.attempts.append(Attempt(call.target.vendor, call.request.model, outcome, status, duration_us))


def _is_last(retry_count: int, last_start_s: float) -> bool:
    if retry_count == len(RETRY_PAUSES_S):
        return True
    return time.monotonic() + RETRY_PAUSES_S[retry_count] >= last_start_s


def _trace(headers: Mapping[str, str]) -> Headers:
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
