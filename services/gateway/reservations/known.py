"""What a deed of the reservation API is to know first: that nobody else is at it, and what was done before."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from services.core.answers import CLAIM_MS, Answer
from services.core.events import Reservation
from services.core.parts import ROUTE as PART_ROUTE
from services.core.ports import UnavailableError
from services.gateway.plain_api import Caller, away
from services.gateway.refusal import RefusedError
from services.gateway.reservations.holding import ask
from services.gateway.reservations.past import History, Past

ROUTE: Final = "reservation"
# How long the answer to the same request under way elsewhere is waited for: until its claim has lapsed.
_PATIENCE_S: Final = CLAIM_MS / 1000 + 2
_PAUSE_S: Final = 0.02


async def claimed(claim: Callable[[], Awaitable[Answer | None]]) -> Answer | None:
    """The answer that is there already; None when the deed is now ours to do. Raises `RefusedError` (503).

    While it is under way elsewhere that is waited for: whoever is at it answers, or is gone and its claim lapses.
    So is another request under the same key: it may yet find that it came too late.
    """
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        there = await ask(claim())
        if there is None or there.status:
            return there
        if time.monotonic() >= deadline_s:
            raise away("the same request is under way elsewhere; ask again in a second")
        await asyncio.sleep(_PAUSE_S)


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
