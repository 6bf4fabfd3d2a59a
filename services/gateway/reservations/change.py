"""Changes of what a reservation holds, and until when: one at a time, each told as it was (GW-10, P2)."""

from collections.abc import Awaitable
from typing import TypeVar

from services.core.events import Denial, HoldResized, Reservation
from services.core.money import parse_usd
from services.core.ports import UnavailableError
from services.gateway.plain_api import Caller, Told
from services.gateway.refusal import RefusedError
from services.gateway.reservations import told
from services.gateway.reservations.bodies import ExtendBody
from services.gateway.reservations.holding import Holding, ask, quietly
from services.gateway.reservations.known import alone, find_past, not_kept, opened, other_body
from services.gateway.reservations.past import History, Past, event_of
from services.gateway.reservations.told import NO_ROOM, OK
from services.gateway.snapshots import HotClock

_A = TypeVar("_A")


class Changes:
    """Changes of holds. Every method may raise `RefusedError`."""

    def __init__(self, holding: Holding, clock: HotClock, history: History) -> None:
        self._holding = holding
        self._clock = clock
        self._history = history

    async def extend(
        self, caller: Caller, reservation_id: str, body: ExtendBody, key: str | None, request_hash: str
    ) -> Told:
        """See `Book.extend`.

        What a body leaves out stays as it is: as the change before has left it, whoever made that, and on whatever
        gateway. So how it is gets read once nobody else changes or ends it.
        """
        past = await find_past(self._history, caller, reservation_id)
        answer = await self._answered(caller, reservation_id, key, request_hash)
        if answer is None:
            if past.settlement is not None or past.decided is not None:
                raise _ended(reservation_id)
            async with alone(self._history, caller.org, reservation_id) as ending:
                # The same request may have been waited for; its answer stays when the reservation has ended since.
                answer = await self._answered(caller, reservation_id, key, request_hash)
                if answer is None and ending is not None:
                    raise _ended(reservation_id)
                answer = answer or await self._change(caller, past, body, key, request_hash)
        return self._told(opened(past), answer, is_lasting=key is not None)

    async def _answered(
        self, caller: Caller, reservation_id: str, key: str | None, request_hash: str
    ) -> HoldResized | Denial | None:
        """How this request was answered before, if it comes under a key; 409 where that was another request's."""
        if key is None:
            return None
        there = await ask(self._history.extended_before(caller.org, reservation_id, key))
        if there is None:
            return None
        answer = event_of(there)
        if there.request_hash != request_hash or not isinstance(answer, HoldResized | Denial):
            raise other_body(reservation_id)
        return answer

    async def _change(
        self, caller: Caller, past: Past, body: ExtendBody, key: str | None, request_hash: str
    ) -> HoldResized | Denial:
        past = await ask(self._history.latest(caller.org, past))
        first = opened(past)
        last = past.resized or first
        amount_nano = last.held_nano if body.amount_usd is None else parse_usd(body.amount_usd)
        left_ms = last.expires_at_ms - self._clock.now_ms()
        hold_ms = max(1, left_ms) if body.hold_seconds is None else body.hold_seconds * 1000
        is_growing = amount_nano > last.held_nano
        answer = await self._holding.resize(
            caller, first, amount_nano, hold_ms, is_growing=is_growing, last=past.resized
        )
        if answer is None:
            raise _ended(first.transaction_id)
        if isinstance(answer, HoldResized):
            # Kept first: an end reads here what is held, and must name no budget that a recorded change has let go of.
            # What is kept and may not be recorded is recorded by the end.
            number = await _kept(self._history.resizing(first, answer, past.change))
            self._holding.record(answer)
            await quietly(self._history.resized(first, answer, number))
        if key is None:
            return answer
        left_ms = (answer if isinstance(answer, HoldResized) else last).expires_at_ms - self._clock.now_ms()
        kept = await _kept(self._history.extended(first, answer, key, request_hash, left_ms))
        if kept is None:
            raise other_body(first.transaction_id)
        return kept

    def _told(self, first: Reservation, answer: HoldResized | Denial, *, is_lasting: bool) -> Told:
        if isinstance(answer, HoldResized):
            return Told(OK, told.held(first, answer))
        headers = told.refusal_headers(answer, self._clock.now_ms(), is_lasting=is_lasting)
        return Told(NO_ROOM, told.refused(answer), headers)


async def _kept(deed: Awaitable[_A]) -> _A:
    """What is kept; raises `RefusedError` (503) where nothing can be."""
    try:
        return await deed
    except UnavailableError as error:
        raise not_kept() from error


def _ended(reservation_id: str) -> RefusedError:
    message = "this reservation has ended or expired; it can be settled, but not extended"
    return RefusedError(409, "reservation_ended", message, fields={"reservation_id": reservation_id})
