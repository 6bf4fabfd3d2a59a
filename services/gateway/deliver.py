"""A vendor's answer on its way to the client, metered as it passes and settled once, however it ends (GW-3, GW-4)."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Final

import structlog

from services.core.events import Outcome
from services.core.ports import UnavailableError
from services.core.vendor_port import VendorResponse
from services.gateway.body import Receive, Send
from services.gateway.extend import CutOffError, GrowingHold, interrupt
from services.gateway.jobs.addresses import Rewrite
from services.gateway.jobs.keeper import GoesOn, Keeper
from services.gateway.meter import Meter, Metered, is_events, is_stream, meter_for
from services.gateway.refusal import RefusedError
from services.gateway.renew import LiveHold
from services.gateway.respond import ResponseHeaders, send_refusal, send_whole, trailing_comment
from services.gateway.settle import NOTHING_USED, Settled, Settler, at_bound
from services.gateway.vendors import Dialect

log = structlog.get_logger()

_EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")


class Delivery:
    """One answer. Make one a call, and `run` it once."""

    def __init__(
        self,
        *,
        hold: LiveHold,
        response: VendorResponse,
        dialect: Dialect,
        settler: Settler,
        keeper: Keeper,
        names: ResponseHeaders,
        receive: Receive,
        send: Send,
        buffer_bytes: int,
        with_trailer: bool,
        rewrite: Rewrite | None = None,
    ) -> None:
        self._hold = hold
        self._call = hold.call
        self._growing = hold.growing
        self._response = response
        self._dialect = dialect
        self._settler = settler
        self._keeper = keeper
        self._names = names
        self._receive = receive
        self._send = send
        self._buffer_bytes = buffer_bytes
        self._with_trailer = with_trailer
        self._rewrite = rewrite
        self._status = self._response.status
        # A status that HTTP does not know (some bot walls send 999) can't be passed on.
        self._status_told = self._status if self._status <= 599 else 502
        self._headers = self._names.of_vendor(self._response.headers)
        # The last of several is what counts, as it does for the client.
        self._head = {name.lower(): value for name, value in self._response.headers}
        self._is_stream = is_stream(hold.call.request, self._head)
        # Only such a stream has comments, and errors that its clients look for in it.
        self._is_sse = is_events(hold.call.request, self._head)
        self._meter: Meter | None = None
        self._has_ended = False
        self._settled: Settled | None = None
        self._goes_on: GoesOn | None = None
        self._tail = b""
        self._last = b"\n\n"
        # What has come and is not handed on yet, because the hold must be extended first.
        self._waiting = b""
        self._is_sending = False
        self._has_client_left = False

    async def run(self) -> None:
        """Delivers the answer to its end, or to where it or the client breaks off."""
        if 200 <= self._status < 300:
            self._meter = meter_for(self._call.request, self._status, self._head)
        if self._growing is not None and (self._meter is None or not (self._is_stream or self._growing.is_strict)):
            self._growing.end()  # it costs nothing, or is paid for by what calls like it have cost
            self._growing = None
        try:
            async with aclosing(self._response.chunks()) as chunks:
                if self._is_stream:
                    await self._pass_on(chunks, [])
                else:
                    await self._deliver_whole(chunks)
        finally:
            # Synchronous, so that even a cancelled call is settled with what it has used so far.
            self._settle(complete=False)
            await self._response.close()

    async def _deliver_whole(self, chunks: AsyncIterator[bytes]) -> None:
        """Holds the answer back until its cost is known, so that the cost can be in its head."""
        parts: list[bytes] = []
        size = 0
        try:
            if self._growing is not None:
                await self._growing.cover_all()
            async for chunk in chunks:
                parts.append(self._feed(chunk))
                size += len(parts[-1])
                if size > self._buffer_bytes:
                    await self._pass_on(chunks, parts)
                    return
        except UnavailableError:
            settled = self._settle(complete=False)
            self._log_break()
            fields = {"transaction_id": self._call.transaction_id}
            refusal = RefusedError(502, "vendor_unreachable", self._broke_off(), fields=fields)
            headers = self._names.of_call(self._call, settled)
            await send_refusal(self._send, self._dialect, refusal, headers)
            return
        except CutOffError as cut:
            settled = self._settle(complete=False, cut_off=True)
            await self._response.close()
            await send_refusal(self._send, self._dialect, cut.refusal, self._names.of_call(self._call, settled))
            return
        settled = self._settle(complete=True)
        if self._goes_on is not None:
            await self._goes_on.wait()
        headers = [*self._headers, *self._names.of_call(self._call, settled)]
        body = b"".join([*parts, self._tail])
        await send_whole(self._send, self._status_told, headers, body if self._rewrite is None else self._rewrite(body))

    async def _pass_on(self, chunks: AsyncIterator[bytes], parts: list[bytes]) -> None:
        """Hands on every chunk as it comes; `parts` came before."""
        headers = [*self._headers, *self._names.of_call(self._call, None)]
        broken = False
        refusal: RefusedError | None = None
        try:
            async with asyncio.timeout(None) as scope:
                watch = asyncio.create_task(self._watch(scope))
                try:
                    await self._send({"type": "http.response.start", "status": self._status_told, "headers": headers})
                    for part in parts:
                        await self._send_part(part)
                    if self._growing is not None:
                        await self._pass_on_held(chunks, self._growing, scope)
                    async for chunk in chunks:
                        await self._send_part(self._feed(chunk))
                except UnavailableError:
                    broken = True
                except CutOffError as cut:
                    refusal = cut.refusal
                finally:
                    watch.cancel()
        except OSError as error:
            # Our own timeout, for either reason, or a server whose `send` says that the client has hung up.
            if isinstance(error, TimeoutError) and self._growing is not None and not self._has_client_left:
                refusal = self._growing.refusal
            if refusal is None:
                self._settle(complete=False)
                return
        if refusal is not None:
            await self._cut_off(refusal)
            return
        settled = self._settle(complete=not broken)
        await self._end(settled, broken=broken)

    async def _pass_on_held(self, chunks: AsyncIterator[bytes], growing: GrowingHold, scope: asyncio.Timeout) -> None:
        """The same, each chunk once it is within what is held. Raises `CutOffError`."""
        assert self._meter is not None
        growing.follow(self._meter)
        with growing.interrupted_by(lambda: interrupt(scope)):
            growing.begin_read()
            async for chunk in chunks:
                self._waiting = self._feed(chunk)
                if not growing.is_covered():
                    await growing.wait()
                part, self._waiting = self._waiting, b""
                await self._send_part(part)
                growing.begin_read()

    async def _cut_off(self, refusal: RefusedError) -> None:
        """Ends a stream whose budgets have no room for more of it."""
        settled = self._settle(complete=False, cut_off=True)
        await self._response.close()  # before a slow client is told: a vendor that writes on would charge for it
        log.warning("stream_cut_off", transaction_id=self._call.transaction_id, reason=refusal.message)
        rest = self._rest_of_event()
        if rest is None:
            return  # as for a stream that broke off there: only a connection cut short tells the client so
        fields = {**refusal.fields, "transaction_id": self._call.transaction_id}
        last = rest + self._dialect.stream_error(refusal.code, refusal.message, fields)
        if self._with_trailer and settled is not None:
            last += trailing_comment(self._call, settled)
        await self._send({"type": "http.response.body", "body": last})

    def _rest_of_event(self) -> bytes | None:
        """What is to be sent until an event of our own can follow, of what has come; None when none can."""
        if self._is_sending or not self._is_sse:
            return None
        if self._head.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            return None
        if self._last.endswith(_EVENT_ENDS):
            return b""
        joined = self._last + self._waiting
        begin = len(self._last)
        places = [(joined.find(end, max(0, begin - len(end) + 1)), end) for end in _EVENT_ENDS]
        ends = [place + len(end) for place, end in places if place >= 0]
        return joined[begin : min(ends)] if ends else None

    async def _end(self, settled: Settled | None, *, broken: bool) -> None:
        """Ends a stream; its settlement is on disk when the client learns of the end, if the disk takes it."""
        last = self._tail
        if broken:
            self._log_break()
            if self._is_sse and self._last.endswith(_EVENT_ENDS):
                fields = {"transaction_id": self._call.transaction_id}
                last = self._dialect.stream_error("vendor_unreachable", self._broke_off(), fields)
            else:
                # Half an event or half a document is out: only a connection cut short tells the client so.
                return
        elif self._with_trailer and self._is_sse and settled is not None:
            last += trailing_comment(self._call, settled)
        await self._send({"type": "http.response.body", "body": last})

    async def _watch(self, scope: asyncio.Timeout) -> None:
        """Ends the delivery when the client hangs up, even while the vendor is silent."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._has_client_left = True
        interrupt(scope)

    async def _send_part(self, part: bytes) -> None:
        if part:
            self._is_sending = True
            self._last = part[-4:] if len(part) >= 4 else (self._last + part)[-4:]
            await self._send({"type": "http.response.body", "body": part, "more_body": True})
            self._is_sending = False

    def _log_break(self) -> None:
        log.warning("vendor_broke_off", vendor=self._call.target.vendor, transaction_id=self._call.transaction_id)

    def _broke_off(self) -> str:
        return f"vendor {self._call.target.vendor!r} broke off in its answer"

    def _feed(self, chunk: bytes) -> bytes:
        if self._meter is None:
            return chunk
        passed_on = self._meter.feed(chunk)
        if not self._call.timing.text_ns and self._meter.has_text:
            self._call.timing.text_ns = time.perf_counter_ns()
        return passed_on

    def _settle(self, *, complete: bool, cut_off: bool = False) -> Settled | None:
        """Settles the call, once; later calls change nothing. None when it goes on as a job."""
        if self._has_ended:
            return self._settled
        self._has_ended = True
        self._hold.end()
        self._call.timing.mark_vendor()
        outcome: Outcome = "vendor_error"
        metered: Metered = NOTHING_USED
        if self._meter is not None:
            self._tail, metered = self._meter.finish()
            outcome = "cut_off" if cut_off else "completed" if complete and metered.complete else "partial"
            if self._call.asked.job is not None:
                self._goes_on = self._keeper.take_over(self._call, metered, self._status)
                if self._goes_on is not None:
                    return None
            if not complete and not metered.complete and not self._is_stream and metered.source == "estimated":
                # Its vendor had written all of it before it sent any.
                metered = at_bound(self._call)
        self._settled = self._settler.settle(self._call, outcome, metered, self._status)
        return self._settled
