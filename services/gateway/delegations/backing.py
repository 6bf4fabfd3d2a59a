"""What has to be so before anybody is told a part's key: it works at every gateway, and all of the part is held (BU-9).

A part is held for a moment first. Whoever is about to tell its key sees to the rest, in this order: control has made
it, gateways find its key, it is held for all of its time. A part that is held no more by then has lapsed: it ends, its
key is told to nobody, and what it was carved from is free.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Mapping
from typing import Any, Final, TypeVar

from services.core import parts
from services.core.events import HoldResized, Reservation
from services.core.identity import hash_key
from services.core.ports import Directory, UnavailableError
from services.gateway.delegations.carved import Control, DeclinedError
from services.gateway.plain_api import Caller, away
from services.gateway.refusal import RefusedError
from services.gateway.reservations.holding import Holding, quietly
from services.gateway.reservations.past import History
from services.gateway.snapshots import HotClock

# A revoked key stops within a second on every replica; the reaper looks a moment after that.
SETTLE_MS: Final = 3_000
# Control publishes at once, and makes up for what has failed within a second.
_PUBLISHED_S: Final = 2.0
_PAUSE_S: Final = 0.05
# When a part that nobody was told is ended at control: control may be away, or still about to make it.
_LAPSE_PAUSES_S: Final = (0.0, 1.0, 10.0, 30.0)
# So many such parts are seen to at a time; more are left to their time.
_MOST_LAPSING: Final = 200
_A = TypeVar("_A")


class LapsedError(RefusedError):
    """A part is held no more, though its time is not over: it has ended, and its key is told to nobody (409)."""

    def __init__(self, budget_id: str) -> None:
        message = (
            "this part was not held any more when its key was to be told, so it has ended and holds nothing; "
            "use a new Idempotency-Key for another part"
        )
        super().__init__(409, "part_lapsed", message, fields={"budget_id": budget_id})


class Backing:
    """Sees that a part may be told. Every method may raise `RefusedError`.

    A part is given by its fields, as control has them.
    """

    def __init__(
        self,
        holding: Holding,
        history: History,
        control: Control,
        directory: Directory,
        pepper: bytes,
        clock: HotClock,
    ) -> None:
        self._holding = holding
        self._history = history
        self._control = control
        self._directory = directory
        self._pepper = pepper
        self._clock = clock
        self._lapsing: set[asyncio.Task[None]] = set()

    def key_of(self, caller: Caller, part_id: str) -> str:
        """The key of a part that its maker asks for with an Idempotency-Key, in clear."""
        return parts.part_key(self._pepper, caller.secret, part_id)

    async def check(self, caller: Caller, part: Mapping[str, Any]) -> None:
        """Does what an earlier try of the same request has left undone.

        A part that has ended may be told as it was, for its key is worth nothing; one that has lapsed was never told.
        """
        if part["has_lapsed"]:
            raise LapsedError(part["budget_id"])
        if part["has_ended"] or part["ends_ms"] <= self._clock.now_ms():
            return
        try:
            past = await self._history.find(caller.org, part["reservation_id"], caller.credentials)
        except UnavailableError as error:
            raise away(f"it can't be known right now how this part is held; try again in a moment: {error}") from error
        if past is None or not isinstance(past.first, Reservation):
            raise away("it is not known yet how this part is held; try again in a moment")
        await self.published(self.key_of(caller, part["budget_id"]))
        if (past.resized or past.first).expires_at_ms < part["ends_ms"]:
            await self.hold_whole(caller, past.first, part)

    async def published(self, key: str) -> None:
        """Waits until gateways find a key, but not for long (503).

        Where control could not publish it at once, or another publication has overtaken its own and is still under
        way, it would be called invalid.
        """
        key_hash = hash_key(key, self._pepper)
        try:
            async with asyncio.timeout(_PUBLISHED_S):
                while True:
                    if await self._directory.find_key(key_hash) is not None:
                        return
                    await asyncio.sleep(_PAUSE_S)
        except (TimeoutError, UnavailableError) as error:
            raise away("this part's key is not known to gateways yet; try again in a moment") from error

    async def hold_whole(self, caller: Caller, held: Reservation, part: Mapping[str, Any]) -> None:
        """Has a part held for all of its time. Raises `LapsedError` when it is held no more, and has ended by that."""
        hold_ms = part["ends_ms"] - self._clock.now_ms() + SETTLE_MS
        changed = await self._holding.resize(caller, held, held.held_nano, hold_ms, is_growing=False)
        if isinstance(changed, HoldResized):
            self._holding.record(changed)
            await quietly(self._history.resized(held, changed))
            return
        ended = await ask_control(self._control.lapse(caller.org, part["budget_id"], caller.key.key_id))
        if ended["has_lapsed"]:
            raise LapsedError(part["budget_id"])

    async def lapse_soon(self, caller: Caller, part_id: str, *, wait_s: float = 0.0) -> None:
        """Has control end a part that holds nothing and whose key nobody was told, if there is one.

        That goes on off the caller's way, who waits for it for `wait_s` at the most. Where it can't be done the part
        takes one of its maker's places until its time.
        """
        if len(self._lapsing) >= _MOST_LAPSING:
            return
        lapsing = asyncio.create_task(self._lapse(caller.org, part_id, caller.key.key_id))
        self._lapsing.add(lapsing)
        lapsing.add_done_callback(self._lapsing.discard)
        if wait_s:
            await asyncio.wait({lapsing}, timeout=wait_s)

    async def _lapse(self, org: str, part_id: str, actor: str) -> None:
        for pause_s in _LAPSE_PAUSES_S:
            await asyncio.sleep(pause_s)
            with contextlib.suppress(UnavailableError):
                with contextlib.suppress(DeclinedError):
                    await self._control.lapse(org, part_id, actor)
                return


async def ask_control(deed: Awaitable[_A]) -> _A:
    """What control answers. Raises `RefusedError`: as control declines it, or 503."""
    try:
        return await deed
    except DeclinedError as error:
        raise refused(error) from error
    except UnavailableError as error:
        raise away("control is away; try again in a moment") from error


def refused(error: DeclinedError, more: str = "") -> RefusedError:
    """What control has declined, as the caller is told it."""
    return RefusedError(error.status, error.code, f"{error}{more}")
