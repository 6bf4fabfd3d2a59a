"""What a deed of the reservation API is to know first: that nobody else is at it, and what was done before."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from ulid import ULID

from services.core.answers import CLAIM_MS, Answer
from services.core.events import Reservation
from services.core.parts import ROUTE as PART_ROUTE
from services.core.ports import NotSentError, UnavailableError
from services.gateway.plain_api import Caller, away
from services.gateway.refusal import RefusedError
from services.gateway.reservations.holding import ask, quietly
from services.gateway.reservations.past import History, Past

ROUTE: Final = "reservation"
# How long the answer to the same request under way elsewhere is waited for: until its claim has lapsed.
_PATIENCE_S: Final = CLAIM_MS / 1000 + 2
_PAUSE_S: Final = 0.02
# How long a change or an end may take once its turn is claimed: it is over before its claim lapses
# (`core.answers.CLAIM_MS`), the time that the claim's own answer has taken included.
_WITHIN_S: Final = 6.0


async def claimed(claim: Callable[[], Awaitable[Answer | None]]) -> Answer | None:
    """The answer that is there already; None when the deed is now ours to do. Raises `RefusedError` (503).

    While it is under way elsewhere that is waited for: whoever is at it answers, or is gone and its claim lapses.
    So is another request under the same name: it may yet find that it came too late.
    """
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        there = await ask(claim())
        if there is None or there.status:
            return there
        if time.monotonic() >= deadline_s:
            raise away("another request for the same reservation is under way elsewhere; ask again in a second")
        await asyncio.sleep(_PAUSE_S)


@contextlib.asynccontextmanager
async def alone(
    history: History, org: str, reservation_id: str, *, is_end: bool = False
) -> AsyncIterator[Answer | None]:
    """While nobody else changes or ends a reservation, at whatever gateway; gives its end where that is decided.

    What `is_end` decides the end in here, which takes the place of the claim. Where the hot state has not answered,
    what was asked of it may still be on its way: then the claim is left to lapse, so that nothing is told before that
    could be undone by it. Raises `RefusedError` (503) when somebody else has been at it for too long, and when this
    has.
    """
    name = f"turn:{ULID()}"
    ending = await claimed(lambda: history.claim_turn(org, reservation_id, name))
    if ending is not None:
        yield ending
        return
    try:
        async with asyncio.timeout(_WITHIN_S):
            yield None
    except TimeoutError as error:
        raise away("this has taken too long; ask again in a moment") from error
    except RefusedError as error:
        if not _may_still_come(error.__cause__):
            await quietly(history.drop_turn(org, reservation_id, name))
        raise
    if not is_end:
        await quietly(history.drop_turn(org, reservation_id, name))


def _may_still_come(error: BaseException | None) -> bool:
    return isinstance(error, UnavailableError) and not isinstance(error, NotSentError)


async def find_past(history: History, caller: Caller, reservation_id: str) -> Past:
    """A reservation of the caller's that was made. Raises `RefusedError`: 404, 409 or 503."""
    try:
        past = await history.find(caller.org, reservation_id, caller.credentials)
    except UnavailableError as error:
        raise away(f"this reservation can't be looked up right now: {error}") from error
    if past is None or not isinstance(past.first, Reservation) or not caller.may_see(past.first.facts.identity):
        raise RefusedError(404, "not_found", f"there is no reservation {reservation_id[:80]!r} of yours")
    if past.first.facts.route != ROUTE:
        kind = "a part of a budget; see /v1/budgets" if past.first.facts.route == PART_ROUTE else "a proxied call"
        message = f"{reservation_id[:80]} is no reservation of this API's, but {kind}; it is settled by itself"
        raise RefusedError(409, "not_a_reservation", message)
    if past.has_lapsed:
        raise lapsed(reservation_id)
    return past


def opened(past: Past) -> Reservation:
    """The reservation of what `find_past` has found."""
    assert isinstance(past.first, Reservation), "a refused reservation is not found"
    return past.first


def not_kept() -> RefusedError:
    """What was done can't be told, for it could be told otherwise later (503)."""
    return away("the answer can't be kept right now, so it is not told; ask again in a moment")


def other_body(reservation_id: str) -> RefusedError:
    """Another request than the first one of its key (409)."""
    message = "this Idempotency-Key was used for another request; use a new key for a new reservation"
    return RefusedError(409, "idempotency_conflict", message, fields={"reservation_id": reservation_id})


def lapsed(reservation_id: str) -> RefusedError:
    """What its key has held expired before it was recorded: it was never told, and holds nothing any more (409)."""
    message = (
        "what was held for this Idempotency-Key has expired before it could be recorded; "
        "use a new key for a new reservation"
    )
    return RefusedError(409, "reservation_lapsed", message, fields={"reservation_id": reservation_id})
