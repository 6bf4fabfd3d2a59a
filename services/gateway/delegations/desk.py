"""Handing on a part of a budget: held first, then given a key; ended, then settled by the reaper (`core.parts`).

It is held for a short time until control has made its budget and key, and then for all of its time: a gateway that dies
in between leaves nothing behind that is held for days and that nobody knows of.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field
from ulid import ULID

from services.core import parts
from services.core.codec_fields import format_time
from services.core.events import CallFacts, Denial, HoldResized, Reservation, Settlement
from services.core.hotstate import EXPIRY_PRODUCER
from services.core.identity import DIMENSIONS
from services.core.money import format_usd, parse_usd
from services.core.ports import HotState, NotSentError, UnavailableError
from services.core.windows import CalendarSpan
from services.gateway.delegations.backing import SETTLE_MS, Backing, LapsedError, ask_control, refused
from services.gateway.delegations.carved import OVERTAKEN, Carved, Control, DeclinedError
from services.gateway.delegations.once import Once, alone, other_body
from services.gateway.plain_api import Caller, Told, away
from services.gateway.refusal import RefusedError
from services.gateway.reservations import told
from services.gateway.reservations.bodies import MAX_HOLD_SECONDS, Name, Usd
from services.gateway.reservations.holding import STATED, Holding, ask, matched, quietly
from services.gateway.reservations.past import History, Past
from services.gateway.reservations.told import CREATED, NO_ROOM, OK
from services.gateway.snapshots import HotClock

# A tenth of a cent. Every part is a key and a budget that each gateway knows.
MIN_PART_NANO: Final = 1_000_000
# The part's window begins a little before it is made: another gateway's idea of the hot state's clock may be behind.
_BEFORE_MS: Final = 60_000
# How long a part is held until control has made it: longer than everything takes that is asked until then.
FIRST_HOLD_MS: Final = 60_000
_STAYS_HELD: Final = "; what is held stays so for a minute, for this Idempotency-Key: ask again with it in a moment"
# How long a request that ends without its part waits for control to end that, too.
_LAPSE_S: Final = 2.0
_NOTHING_HELD: Final = "; nothing is held. Try again in a moment"


class DelegateBody(BaseModel):
    """A part to hand on. What names its holder is pinned to its key, beside all that the caller is pinned to."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    amount_usd: Usd
    expires_in_seconds: Annotated[int, Field(ge=60, le=MAX_HOLD_SECONDS)] = 3_600
    agent: Name | None = None
    user: Name | None = None
    project: Name | None = None
    session: Name | None = None
    environment: Name | None = None


class EndBody(BaseModel):
    """Nothing needs to be said."""

    model_config = ConfigDict(extra="forbid")


class Desk:
    """Delegates. Every method may raise `RefusedError`."""

    def __init__(
        self,
        holding: Holding,
        history: History,
        control: Control,
        backing: Backing,
        hot_state: HotState,
        clock: HotClock,
    ) -> None:
        self._backing = backing
        self._holding = holding
        self._history = history
        self._control = control
        self._hot_state = hot_state
        self._clock = clock

    async def delegate(self, caller: Caller, budget_id: str, body: DelegateBody, once: Once | None = None) -> Told:
        """Carves a part from all that the caller's calls are charged to, `budget_id` among it.

        A request that is to be done `once` is answered as it was, if there is a part of it.
        """
        pins = _pins(caller, body)
        amount_nano = parse_usd(body.amount_usd)
        if amount_nano < MIN_PART_NANO:
            message = f"amount_usd: a part has at least ${format_usd(MIN_PART_NANO)}, or hardly a call could spend it"
            raise RefusedError(400, "invalid_request", message, param="amount_usd")
        async with alone(self._history, caller.org, once):
            there = None if once is None else await self._made_before(caller, once)
            return there or await self._carve(caller, budget_id, body, pins, once)

    async def _made_before(self, caller: Caller, once: Once) -> Told | None:
        """The answer to the same request, from whenever it was first; None when there is no part of it."""
        known = await ask_control(self._control.find(caller.org, once.part_id))
        if known is None:
            return None
        if known["request_hash"] != once.request_hash:
            raise other_body(once)
        await self._backing.check(caller, known)
        return _told_made(once.part_id, known, self._backing.key_of(caller, once.part_id))

    async def _begun_before(self, caller: Caller, once: Once) -> Reservation | None:
        """What is held for the same request since a try that control has not answered."""
        held = await ask(self._history.carved_before(caller.org, once.part_id))
        if held is None or held.expires_at_ms - SETTLE_MS <= self._clock.now_ms():
            return None  # when its time is over, it is free
        if held.facts.request_hash != once.request_hash:
            raise other_body(once)
        return held

    async def _carve(
        self, caller: Caller, budget_id: str, body: DelegateBody, pins: Mapping[str, str], once: Once | None
    ) -> Told:
        before = None if once is None else await self._begun_before(caller, once)
        held = before or await self._hold(caller, budget_id, body, pins, once)
        if isinstance(held, Denial):
            headers = told.refusal_headers(held, self._clock.now_ms(), is_lasting=False)
            return Told(NO_ROOM, told.refused(held), headers)
        carved = _carved(caller, budget_id, pins, held)
        if once is not None:
            carved = replace(carved, request_hash=once.request_hash, key=self._backing.key_of(caller, once.part_id))
        try:
            key = await self._control.delegate(caller.org, carved)
        except DeclinedError as error:
            if error.code == OVERTAKEN:
                raise await self._overtaken(held, once, error) from error
            if before is None:
                self._give_back(held)
            there = None if once is None else await self._made_before(caller, once)
            if there is None:
                raise refused(error, "; nothing is held" if before is None else _STAYS_HELD) from error
            if before is not None and there.fields["reservation_id"] != before.transaction_id:
                self._give_back(before)
            return there
        except UnavailableError as error:
            raise await self._not_known(caller, held, carved, once, error) from error
        except asyncio.CancelledError as error:
            with contextlib.suppress(RefusedError):
                await self._not_known(caller, held, carved, once, error)
            raise
        await (self._finish_now(caller, held, carved, key) if once is None else self._finish(caller, held, carved, key))
        return _told_made(carved.budget_id, asdict(carved), key)

    async def _finish(self, caller: Caller, held: Reservation, carved: Carved, key: str) -> None:
        """What is left to do before a part may be told; the same request goes on with it where this fails."""
        await self._backing.published(key)
        await self._backing.hold_whole(caller, held, asdict(carved))

    async def _finish_now(self, caller: Caller, held: Reservation, carved: Carved, key: str) -> None:
        """As `_finish`, of a part that can't be asked for again: where this fails, the part has ended."""
        try:
            await self._finish(caller, held, carved, key)
        except RefusedError as error:
            if not isinstance(error, LapsedError):
                await self._give_up(caller, held, carved, wait_s=_LAPSE_S)
            raise away(f"the part could not be made for all of its time{_NOTHING_HELD}") from error
        except asyncio.CancelledError:  # it may be held for all of its time by now
            with contextlib.suppress(RefusedError):
                await self._give_up(caller, held, carved, wait_s=_LAPSE_S)
            raise

    async def _give_up(self, caller: Caller, held: Reservation, carved: Carved, *, wait_s: float = 0.0) -> None:
        """Gives back what is held for a part whose key nobody will be told, and has control end it."""
        try:
            self._give_back(held)
        finally:
            await self._backing.lapse_soon(caller, carved.budget_id, wait_s=wait_s)

    def _give_back(self, held: Reservation, ending: Settlement | None = None) -> None:
        """Ends a hold of which nothing was spent. Raises `RefusedError` when that can't be recorded.

        As the reaper ends it, too, when this gateway's record stays away for long: the two are one event.
        """
        ending = ending or _nothing_spent(held, self._clock.now_ms())
        self._holding.record(ending, f"{EXPIRY_PRODUCER}{held.transaction_id}")

    async def _hold(
        self, caller: Caller, budget_id: str, body: DelegateBody, pins: Mapping[str, str], once: Once | None
    ) -> Reservation | Denial:
        ulid = ULID()
        # A part's one window is decided here, for good: by the hot state's own clock (P9), which this gateway may not
        # have heard of yet.
        now_ms = await ask(self._hot_state.now_ms())
        span = CalendarSpan(now_ms - _BEFORE_MS, now_ms + body.expires_in_seconds * 1000)
        part_id = f"{parts.BUDGET_PREFIX}{ulid}" if once is None else once.part_id
        # In the session that its calls will be in: what caps each session is carved there, or not at all.
        facts = _facts(caller, parts.part_flags(part_id, span), pins.get("session"))
        facts = facts if once is None else replace(facts, request_hash=once.request_hash)
        matching = matched(caller, facts)
        if budget_id not in {name for each in matching.applicable for name in (each.budget_id, each.budget.budget_id)}:
            message = (
                f"no budget {budget_id[:80]!r} that all of this key's calls are charged to; "
                "one of a vendor or a model caps the part's own calls instead"
            )
            raise RefusedError(404, "not_found", message)
        hold_ms = min(FIRST_HOLD_MS, span.end_ms - now_ms + SETTLE_MS)
        reservation_id = f"{parts.RESERVATION_PREFIX}{ulid}"
        held = await self._holding.hold(caller, facts, parse_usd(body.amount_usd), reservation_id, hold_ms)
        if isinstance(held, Denial):
            return self._holding.record(held)
        await quietly(self._history.opened(held))
        return held

    async def _not_known(
        self, caller: Caller, held: Reservation, carved: Carved, once: Once | None, error: BaseException
    ) -> RefusedError:
        """What is told when control has not answered: whether it has made the key is not known.

        If so, nobody has been told it, and the hold can be given back; but whoever asks again under an Idempotency-Key
        would be told it then. So that hold stays for them, and they find it here.
        """
        if once is not None:
            await quietly(self._history.carved(once.part_id, held))
            return away(f"control is away, and a part needs a key{_STAYS_HELD}")
        if isinstance(error, NotSentError):
            self._give_back(held)
        else:
            wait_s = _LAPSE_S if isinstance(error, asyncio.CancelledError) else 0.0
            await self._give_up(caller, held, carved, wait_s=wait_s)
        return away(f"control is away, and a part needs a key{_NOTHING_HELD}")

    async def _overtaken(self, held: Reservation, once: Once | None, error: DeclinedError) -> RefusedError:
        """What is told when a budget that a part was carved from has changed since: it is to be carved anew.

        No part is made of this hold any more, also not by an earlier try that is still under way: it can be given back.
        """
        ending = _nothing_spent(held, self._clock.now_ms())
        if once is not None:
            await quietly(self._history.carved_in_vain(once.part_id, held, ending))
        self._give_back(held, ending)
        return away(f"{error}{_NOTHING_HELD}")

    async def find(self, caller: Caller, budget_id: str) -> Told:
        """Where a part stands."""
        known = await self._known(caller, budget_id)
        has_ended = known["has_ended"] or known["ends_ms"] <= self._clock.now_ms()
        fields: dict[str, Any] = {
            "budget_id": budget_id,
            "parent_budget_id": known["parent_budget_id"],
            "limit_usd": format_usd(known["limit_nano"]),
            "expires_at": format_time(known["ends_ms"]),
            "state": "ended" if has_ended else "live",
        }
        span = CalendarSpan(known["starts_ms"], known["ends_ms"])
        facts = _facts(caller, parts.part_flags(budget_id, span))
        proposal = parts.part_of(facts)
        assert proposal is not None, "these are a part's facts"
        standings = await ask(self._hot_state.peek(caller.org, [proposal]))
        if standings is not None:
            spent_nano, held_nano = standings[0].spent_nano, standings[0].held_nano
            fields |= {
                "spent_usd": format_usd(spent_nano),
                "held_usd": format_usd(held_nano),
                "remaining_usd": format_usd(known["limit_nano"] - spent_nano - held_nano),
            }
        return Told(OK, fields)

    async def end(self, caller: Caller, budget_id: str) -> Told:
        """Ends a part before its time, and all that its holder has handed on of it.

        What is left returns once its open calls have ended.
        """
        known = await self._known(caller, budget_id)
        outer = known["reservation_id"]
        try:
            # First: the ledger answers no key that is revoked, and it may be the part's own that asks.
            past = await self._history.find(caller.org, outer, caller.credentials)
            ended = await self._control.end(caller.org, budget_id, caller.key.key_id)
        except DeclinedError as error:
            raise refused(error) from error
        except UnavailableError as error:
            raise away(f"the part can't be ended right now; it ends by itself at its time: {error}") from error
        await self._settle_soon(caller, past)
        for reservation_id in ended:
            if reservation_id != outer:
                with contextlib.suppress(UnavailableError):
                    inner = await self._history.find(caller.org, reservation_id, caller.credentials)
                    await self._settle_soon(caller, inner)
        return Told(OK, {"budget_id": budget_id, "state": "ended"})

    async def _settle_soon(self, caller: Caller, past: Past | None) -> None:
        """Has the reaper look at a part as soon as its key is revoked everywhere.

        Where that fails, what is left returns at the part's time: it has ended all the same, as the next one shall.
        """
        if past is not None and isinstance(past.first, Reservation) and past.settlement is None:
            with contextlib.suppress(RefusedError):
                held_nano = past.first.held_nano
                changed = await self._holding.resize(caller, past.first, held_nano, SETTLE_MS, is_growing=False)
                if isinstance(changed, HoldResized):
                    self._holding.record(changed)

    async def _known(self, caller: Caller, budget_id: str) -> Mapping[str, Any]:
        known = await ask_control(self._control.find(caller.org, budget_id))
        mine = known is not None and caller.key.key_id in (known["key_id"], known["made_by"])
        if known is None or not (mine or caller.is_admin):
            raise RefusedError(404, "not_found", f"there is no delegated budget {budget_id[:80]!r} of this key's")
        return known


def _pins(caller: Caller, body: DelegateBody) -> dict[str, str]:
    """What the part's key is pinned to: the caller's own identity, and what the part is for.

    A key sees what it is pinned to. What pins the caller's can be narrowed, so that nobody sees or spends as another:
    ``ada`` may name ``ada/reader``. Raises `RefusedError` (403) naming the field.
    """
    pins = {name: value for name in DIMENSIONS if (value := getattr(caller.identity, name)) is not None}
    asked = {name: value for name in DIMENSIONS if (value := getattr(body, name, None)) is not None}
    for name, value in asked.items():
        pinned = caller.key.pins.get(name, value)
        if value != pinned and not value.startswith(pinned + "/"):
            message = (
                f"{name}: this key is pinned to {name} {pinned!r}; leave {name} out, or name one of its own, "
                f"such as {pinned + '/1'!r}"
            )
            raise RefusedError(403, "identity_mismatch", message, param=name)
    return pins | asked


def _facts(caller: Caller, flags: tuple[str, ...], session: str | None = None) -> CallFacts:
    snapshot = caller.view.snapshot
    return CallFacts(
        identity=replace(caller.identity, session=session or caller.identity.session),
        vendor=parts.VENDOR,
        route=parts.ROUTE,
        model_requested="",
        model_priced="",
        match="none",
        catalog_version=snapshot.catalog_version,
        config_version=snapshot.version,
        flags=flags,
    )


def _nothing_spent(held: Reservation, now_ms: int) -> Settlement:
    return Settlement(
        transaction_id=held.transaction_id,
        time_ms=now_ms,
        facts=held.facts,
        outcome="cancelled",
        usage_source="none",
        usage={},
        components=(),
        cost_nano=0,
        held_nano=held.held_nano,
        charges=held.charges,
        http_status=0,
        retry_count=0,
        estimate_mode=STATED,
        parent_charged=held.parent_charged,
        admitted_at_ms=held.time_ms,
    )


def _carved(caller: Caller, budget_id: str, pins: Mapping[str, str], held: Reservation) -> Carved:
    part = parts.part_of(held.facts)
    assert part is not None, "it is a part that is held"
    assert isinstance(part.span, CalendarSpan), "a part has a window from when it was made to its end"
    # Parts of parts: what this caller's own part covers is covered for its parts, too.
    covered = [name for each in matched(caller, held.facts).applicable for name in each.budget.covers]
    return Carved(
        reservation_id=held.transaction_id,
        budget_id=part.budget_id,
        parent_budget_id=budget_id,
        limit_nano=held.held_nano,
        covers=tuple(dict.fromkeys((*(each.budget_id for each in held.charges), *covered))),
        starts_ms=part.span.start_ms,
        ends_ms=part.span.end_ms,
        pins=pins,
        made_by=caller.identity.key_id,
        config_version=held.facts.config_version,
    )


def _told_made(part_id: str, part: Mapping[str, Any], key: str) -> Told:
    """A part as it was when it was made."""
    fields = {
        "budget_id": part_id,
        "parent_budget_id": part["parent_budget_id"],
        "limit_usd": format_usd(part["limit_nano"]),
        "expires_at": format_time(part["ends_ms"]),
        "reservation_id": part["reservation_id"],
        "state": "live",
        "key": key,
    }
    return Told(CREATED, fields)
