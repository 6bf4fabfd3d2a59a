"""One part for one request, however often it is asked for under its ``Idempotency-Key`` (BU-9).

A part's id is made of the caller's key and the Idempotency-Key, and control keeps no two parts of one id: so there is
one part at the most, whatever fails and whoever asks at the same time. The part's own key is made of its maker's
(`core.parts.part_key`): whoever asks again is told it again, and nobody had to keep it.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from services.core.answers import CLAIM_MS
from services.core.parts import BUDGET_PREFIX
from services.gateway.plain_api import Caller, away, digest
from services.gateway.refusal import RefusedError
from services.gateway.reservations.holding import ask, quietly
from services.gateway.reservations.past import History

# How long the same request under way elsewhere is waited for: until its claim has lapsed.
_PATIENCE_S: Final = CLAIM_MS / 1000 + 2
_PAUSE_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Once:
    """A request that makes the part of this id, and no other does; `request_hash` tells it from others of its key."""

    part_id: str
    request_hash: str


def once(caller: Caller, key: str, request_hash: str) -> Once:
    """The request of an Idempotency-Key. Every API key has its own: two agents that count alike don't meet."""
    return Once(f"{BUDGET_PREFIX}{digest(caller.org, caller.key.key_id, key)}", request_hash)


@contextlib.asynccontextmanager
async def alone(history: History, org: str, asked: Once | None) -> AsyncIterator[None]:
    """While nobody else is at the same request, so that it is not refused for what its own twin holds.

    For as long as a claim lasts, that is: control may take longer to answer. Then a second try may be at it, too, and
    may be refused for what the first one holds; neither makes another part, and whoever asks again is told the one.

    Raises `RefusedError`: 409 when another request is under way under the same key, 503 when the same one still is.
    """
    if asked is None:
        yield
        return
    deadline_s = time.monotonic() + _PATIENCE_S
    while (there := await ask(history.claim(org, asked.part_id, asked.request_hash))) is not None:
        if there.request_hash != asked.request_hash:
            raise other_body(asked)
        if time.monotonic() >= deadline_s:
            raise away("the same request is under way elsewhere; ask again in a second")
        await asyncio.sleep(_PAUSE_S)
    try:
        yield
    finally:
        await quietly(history.drop(org, asked.part_id, asked.request_hash))


def other_body(asked: Once) -> RefusedError:
    """Another request than the first one of its key (409)."""
    message = "this Idempotency-Key was used for another request; use a new key for another part"
    return RefusedError(409, "idempotency_conflict", message, fields={"budget_id": asked.part_id})
