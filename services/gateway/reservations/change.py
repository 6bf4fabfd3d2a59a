"""Changes of what a reservation holds, and until when: one at a time, each told as it was (GW-10, P2)."""

import asyncio
from collections.abc import Awaitable
from typing import Final, TypeVar

from ulid import ULID

from services.core.events import Denial, HoldResized, Reservation
from services.core.money import parse_usd
from services.core.ports import UnavailableError
from services.gateway.plain_api import Caller, Told, away
from services.gateway.refusal import RefusedError
from services.gateway.reservations import told
from services.gateway.reservations.bodies import ExtendBody
from services.gateway.reservations.holding import Holding, quietly
from services.gateway.reservations.known import claimed, find_past, not_kept, opened, other_body
from services.gateway.reservations.past import History, event_of
from services.gateway.reservations.told import NO_ROOM, OK
from services.gateway.snapshots import HotClock

# How long a change may take once it is claimed: it is over before its claim lapses (`core.answers.CLAIM_MS`), the time
# that the claim's own answer has taken included.
_WITHIN_S: Final = 6.0
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
        """See `Book.extend`."""
        first = opened(await find_past(self._history, caller, reservation_id))
        if key is None:
            return self._told(first, await self._alone(caller, reservation_id, body), is_lasting=False)
        there = await claimed(lambda: self._history.claim_extend(caller.org, reservation_id, key, request_hash))
        answer = event_of(there)
        if there is not None:
            if there.request_hash != request_hash or not isinstance(answer, HoldResized | Denial):
                raise other_body(reservation_id)
            return self._told(first, answer, is_lasting=True)
        try:
            answer = await self._alone(caller, reservation_id, body)
        except RefusedError:
            await quietly(self._history.drop_extend(caller.org, reservation_id, key, request_hash))
            raise
        kept = await _kept(self._history.extended(first, answer, key, request_hash))
        if kept is None:
            raise other_body(reservation_id)
        return self._told(first, kept, is_lasting=True)

    async def _alone(self, caller: Caller, reservation_id: str, body: ExtendBody) -> HoldResized | Denial:
        """Changes a hold while nobody else does.

        What a body leaves out stays as it is: as the change before has left it, whoever made that, and on whatever
        gateway. So how it is gets read once the change is claimed. Where the hot state has not answered, the change may
        still be on its way: then its claim is left to lapse, so that none is told before that could be undone by it.
        """
        name = f"change:{ULID()}"
        await claimed(lambda: self._history.claim_change(caller.org, reservation_id, name))
        try:
            async with asyncio.timeout(_WITHIN_S):
                answer = await self._change(caller, reservation_id, body)
        except TimeoutError as error:
            raise away("this change has taken too long; ask again in a moment") from error
        except RefusedError as error:
            if not isinstance(error.__cause__, UnavailableError):
                await quietly(self._history.drop_change(caller.org, reservation_id, name))
            raise
        await quietly(self._history.drop_change(caller.org, reservation_id, name))
        return answer

    async def _change(self, caller: Caller, reservation_id: str, body: ExtendBody) -> HoldResized | Denial:
        past = await find_past(self._history, caller, reservation_id)
        first = opened(past)
        if past.settlement is not None or past.decided is not None:
            raise _ended(reservation_id)
        last = past.resized or first
        amount_nano = last.held_nano if body.amount_usd is None else parse_usd(body.amount_usd)
        left_ms = last.expires_at_ms - self._clock.now_ms()
        hold_ms = max(1, left_ms) if body.hold_seconds is None else body.hold_seconds * 1000
        is_growing = amount_nano > last.held_nano
        answer = await self._holding.resize(
            caller, first, amount_nano, hold_ms, is_growing=is_growing, last=past.resized
        )
        if answer is None:
            raise _ended(reservation_id)
        if isinstance(answer, HoldResized):
            await _kept(self._history.resized(first, answer, past.change))
        return answer

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
