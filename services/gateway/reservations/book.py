"""The reservation API's deeds: reserve, extend, settle, release, each done once whatever is asked again (GW-10, P2)."""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import replace

from services.core.answers import Answer
from services.core.events import CallFacts, ComponentCost, Denial, Outcome, Reservation, Settlement
from services.core.hotstate import EXPIRY_PRODUCER, TOMBSTONE_MS
from services.core.money import parse_usd
from services.core.ports import UnavailableError
from services.core.pricebook import Priced
from services.core.pricing import price_usage, unpriced_counts
from services.gateway.plain_api import Caller, Told, away
from services.gateway.refusal import RefusedError
from services.gateway.reservations import told
from services.gateway.reservations.bodies import ExtendBody, ReserveBody, SettleBody
from services.gateway.reservations.change import Changes
from services.gateway.reservations.holding import STATED, Holding, ask, quietly
from services.gateway.reservations.known import ROUTE, alone, claimed, find_past, lapsed, not_kept, opened, other_body
from services.gateway.reservations.listing import known_as, listed, prices_of
from services.gateway.reservations.past import History, Past, event_of, has_happened
from services.gateway.reservations.told import CREATED, NO_ROOM, OK
from services.gateway.snapshots import HotClock


class Book:
    """Reservations. Every method may raise `RefusedError`."""

    def __init__(self, holding: Holding, clock: HotClock, history: History) -> None:
        self._holding = holding
        self._clock = clock
        self._history = history
        self._changes = Changes(holding, clock, history)

    # ---- reserve ----------------------------------------------------------------------------------------------------

    async def reserve(
        self, caller: Caller, body: ReserveBody, reservation_id: str, request_hash: str, *, is_repeatable: bool
    ) -> Told:
        """Holds, or says why not; the same request under the same id is answered as it was."""
        first = await self._known(caller, reservation_id, request_hash) if is_repeatable else None
        if first is None:
            try:
                first = await self._open(caller, body, reservation_id, request_hash, is_repeatable=is_repeatable)
            except RefusedError:
                # Nothing was decided: the next try is as good as the first.
                await quietly(self._history.drop(caller.org, reservation_id, request_hash))
                raise
            if first.facts.request_hash != request_hash:  # it was held before, and no answer is known any more
                await quietly(self._history.drop(caller.org, reservation_id, request_hash))
                raise other_body(reservation_id)
            first = await self._keep_opened(caller, first, is_repeatable=is_repeatable)
        if isinstance(first, Reservation):
            return Told(CREATED, told.held(first))
        headers = told.refusal_headers(first, self._clock.now_ms(), is_lasting=is_repeatable)
        return Told(NO_ROOM, told.refused(first), headers)

    async def _keep_opened(
        self, caller: Caller, first: Reservation | Denial, *, is_repeatable: bool
    ) -> Reservation | Denial:
        """Keeps the answer, and gives the one to tell. What can't be kept is not told: the next try may be told other.

        A hold that nobody can ask for again is ended then.
        """
        try:
            kept = await (self._history.refusing(first) if isinstance(first, Denial) else self._history.opened(first))
        except UnavailableError as error:
            if not is_repeatable:
                self._end_untold(caller, first)
            raise not_kept() from error
        except asyncio.CancelledError:
            if not is_repeatable:
                with contextlib.suppress(RefusedError):
                    self._end_untold(caller, first)
            raise
        if kept is None:
            raise other_body(first.transaction_id)
        return await self._refused(kept) if isinstance(kept, Denial) else kept

    async def _refused(self, denial: Denial) -> Reservation | Denial:
        """Records the refusal that is kept, and gives what is to be told.

        It is kept before, as an end is: whoever comes after a crash in between records the same one, and not another.
        """
        self._holding.record(denial, f"{EXPIRY_PRODUCER}refusal:{denial.transaction_id}")
        try:
            return await self._history.opened(denial) or denial
        except UnavailableError:
            return denial  # who asks next records it again, by the same producer

    def _end_untold(self, caller: Caller, first: Reservation | Denial) -> None:
        if isinstance(first, Reservation):
            ending = self._settlement(caller, Past(first), SettleBody(cost_usd="0"), "cancelled")
            self._holding.record(ending, end_producer(first.transaction_id))

    async def _known(self, caller: Caller, reservation_id: str, request_hash: str) -> Reservation | Denial | None:
        """How this request was answered before; None when it is for us to answer it, and now claimed."""
        there = await claimed(lambda: self._history.claim(caller.org, reservation_id, request_hash))
        if there is not None:
            first = event_of(there)
            if there.request_hash != request_hash or not isinstance(first, Reservation | Denial):
                raise other_body(reservation_id)
            return await self._refused(first) if isinstance(first, Denial) and not has_happened(there) else first
        # Nothing is kept, or it was never told: what was done then may have been recorded all the same.
        try:
            past = await self._history.recorded(caller.org, reservation_id, caller.credentials)
        except UnavailableError as error:
            await quietly(self._history.drop(caller.org, reservation_id, request_hash))
            raise away(f"what this key was answered before can't be looked up: {error}") from error
        if past is None:
            return None
        # It is not kept again: who finds how it was opened expects to find how it ended, too.
        await quietly(self._history.drop(caller.org, reservation_id, request_hash))
        if past.first.facts.request_hash != request_hash:
            raise other_body(reservation_id)
        if past.has_lapsed:
            raise lapsed(reservation_id)
        return past.first

    async def _open(
        self, caller: Caller, body: ReserveBody, reservation_id: str, request_hash: str, *, is_repeatable: bool
    ) -> Reservation | Denial:
        facts, amount_nano = self._facts_and_amount(caller, body, request_hash)
        hold_ms = self._hold_ms(caller, body)
        return await self._holding.hold(
            caller, facts, amount_nano, reservation_id, hold_ms, is_repeatable=is_repeatable
        )

    def _facts_and_amount(self, caller: Caller, body: ReserveBody, request_hash: str) -> tuple[CallFacts, int]:
        snapshot = caller.view.snapshot
        # Written as everywhere else; the hash of the request stays that of what was said.
        vendor, model = body.vendor.lower(), body.model.strip()
        facts = CallFacts(
            identity=caller.identity,
            vendor=vendor,
            route=ROUTE,
            model_requested=model,
            model_priced=model,
            match="none",
            catalog_version=snapshot.catalog_version,
            config_version=snapshot.version,
            auth_mode=body.auth_mode,
            request_hash=request_hash,
        )
        if body.usage is None:
            assert body.amount_usd is not None, "a body names one of the two"
            known = known_as(caller.view, vendor, model, self._clock.now_ms())
            return facts if known is None else _priced_as(facts, known), parse_usd(body.amount_usd)
        return self._priced(caller, facts, body.usage)[:2]

    def _priced(
        self, caller: Caller, facts: CallFacts, usage: Mapping[str, int]
    ) -> tuple[CallFacts, int, tuple[ComponentCost, ...]]:
        if not facts.model_requested:
            raise RefusedError(
                400, "invalid_request", "usage: this reservation names no model; say cost_usd", param="usage"
            )
        view, model, now_ms = caller.view, facts.model_requested, self._clock.now_ms()
        prices_as = prices_of(view, facts.vendor)
        priced = listed(view, prices_as, model, now_ms) or view.prices.find(prices_as, model, now_ms)
        if priced is None:
            message = (
                f"model {facts.model_requested!r} of vendor {facts.vendor!r} has no price; say the amount in dollars"
            )
            raise RefusedError(400, "unknown_model", message, param="model")
        missing = unpriced_counts(priced.price, usage)
        if missing:
            message = f"usage.{missing[0]}: this model has no price for it; say the amount in dollars"
            raise RefusedError(400, "unpriced_feature", message, param=f"usage.{missing[0]}")
        components = price_usage(priced.price, usage)
        return _priced_as(facts, priced), sum(each.cost_nano for each in components), components

    def _hold_ms(self, caller: Caller, body: ReserveBody) -> int:
        return caller.view.snapshot.hold_ms if body.hold_seconds is None else body.hold_seconds * 1000

    # ---- what comes after -------------------------------------------------------------------------------------------

    async def find(self, caller: Caller, reservation_id: str) -> Told:
        """Where a reservation stands."""
        past = await find_past(self._history, caller, reservation_id)
        ending = past.settlement
        if ending is None and past.decided is not None:
            ending = await self._finish(caller, past, past.decided)
        if ending is not None:
            return Told(OK, told.ended(ending))
        first = opened(past)
        fields = told.held(first, past.resized)
        last = past.resized or first
        if past.has_expired or last.expires_at_ms <= self._clock.now_ms():
            fields["state"] = "expired"
        return Told(OK, fields)

    async def extend(
        self, caller: Caller, reservation_id: str, body: ExtendBody, key: str | None, request_hash: str
    ) -> Told:
        """Changes what is held, and until when, all or nothing.

        To ask for the same again changes nothing but the time, which is counted from now; under the same `key` it
        changes nothing at all, and is answered as it was.
        """
        return await self._changes.extend(caller, reservation_id, body, key, request_hash)

    async def settle(self, caller: Caller, reservation_id: str, body: SettleBody, request_hash: str) -> Told:
        """Ends a reservation with what it did cost, an expired one, too."""
        return await self._end(caller, reservation_id, body, body.told, request_hash)

    async def release(self, caller: Caller, reservation_id: str, request_hash: str) -> Told:
        """Ends a reservation that has cost nothing."""
        return await self._end(caller, reservation_id, SettleBody(cost_usd="0"), "cancelled", request_hash)

    async def _end(
        self, caller: Caller, reservation_id: str, body: SettleBody, outcome: Outcome, request_hash: str
    ) -> Told:
        past = await find_past(self._history, caller, reservation_id)
        ending = past.settlement or await self._end_once(caller, past, body, outcome, request_hash)
        if not _is_same_end(ending, body, outcome):
            raise _other_end(reservation_id)
        return Told(OK, told.ended(ending))

    async def _end_once(
        self, caller: Caller, past: Past, body: SettleBody, outcome: Outcome, request_hash: str
    ) -> Settlement:
        """Ends a reservation, or finishes the end that somebody has decided before; the end that counts.

        An end is kept before it is recorded: whoever comes after a crash in between records the same one. Ends and
        changes wait for one another: the first end counts, and names what the last change has left.
        """
        if past.decided is not None:
            return await self._finish(caller, past, past.decided)
        first = opened(past)
        ended = await self._ended_long_ago(caller, past)
        if ended is None:
            async with alone(self._history, caller.org, first.transaction_id, is_end=True) as there:
                if there is not None:
                    return await self._finish(caller, past, there)
                past = await ask(self._history.latest(caller.org, past))
                ending = self._settlement(caller, past, body, outcome)
                ending = await ask(self._history.decided(first, ending, request_hash))
                ended = self._record_end(past, ending)
        await quietly(self._history.ended(first, ended, request_hash))
        return ended

    async def _finish(self, caller: Caller, past: Past, decided: Answer) -> Settlement:
        """Records the end that was decided, where that may not have been done: what is told has to be so.

        The end that counts.
        """
        first, ending = opened(past), event_of(decided)
        assert isinstance(ending, Settlement), "nothing else is kept as an end"
        if has_happened(decided):
            return ending
        ended = await self._ended_long_ago(caller, past)
        if ended is None:
            if past.is_unrecorded:  # when it was read: that was before whoever has decided had its turn
                past = await ask(self._history.latest(caller.org, past))
            ended = self._record_end(past, ending)
        await quietly(self._history.ended(first, ended, decided.request_hash))
        return ended

    def _record_end(self, past: Past, ending: Settlement) -> Settlement:
        """Records an end, and before it the change that it goes by, where that may not be in the log: told twice it is
        told once."""
        if past.is_unrecorded and past.resized is not None:
            self._holding.record(past.resized)
        return self._holding.record(ending, end_producer(ending.transaction_id))

    async def _ended_long_ago(self, caller: Caller, past: Past) -> Settlement | None:
        """The end of a reservation that is not kept beside the hot state, because nobody could write it there.

        The hot state itself ignores a second end for as long as it remembers the first. An older reservation is asked
        the ledger for before it is ended.
        """
        first = past.first
        if past.is_recorded or self._clock.now_ms() < first.time_ms + TOMBSTONE_MS // 2:
            return None
        try:
            recorded = await self._history.recorded(caller.org, first.transaction_id, caller.credentials)
        except UnavailableError as error:
            raise away(f"whether this reservation has ended already can't be looked up: {error}") from error
        if recorded is not None and recorded.has_lapsed:
            raise away("the ledger has not read this reservation yet, nor whether it has ended; ask again in a moment")
        return None if recorded is None else recorded.settlement

    def _settlement(self, caller: Caller, past: Past, body: SettleBody, outcome: Outcome) -> Settlement:
        first = opened(past)
        last = past.resized or first
        facts, charges = last.facts, last.charges
        if body.usage is None:
            assert body.cost_usd is not None, "a body names one of the two"
            cost_nano = parse_usd(body.cost_usd)
            components: tuple[ComponentCost, ...] = (ComponentCost(STATED, 1, cost_nano, cost_nano, per=1),)
        else:
            priced, cost_nano, components = self._priced(caller, facts, body.usage)
            # All endings of a call fall under the same budgets: a late one takes back what an expiry has booked there.
            facts = replace(facts, catalog_version=priced.catalog_version)
        return Settlement(
            transaction_id=first.transaction_id,
            time_ms=time.time_ns() // 1_000_000,
            facts=facts,
            outcome=outcome,
            usage_source="none" if body.usage is None else "reported",
            usage=body.usage or {},
            components=components if cost_nano or body.usage else (),
            cost_nano=cost_nano,
            held_nano=last.held_nano,
            charges=charges,
            http_status=0,
            retry_count=0,
            estimate_mode=STATED,
            # A child that had no room when the hold grew has left it to its parents since.
            parent_charged=told.parents_paid(first, charges),
            admitted_at_ms=first.time_ms,
        )


def _priced_as(facts: CallFacts, priced: Priced) -> CallFacts:
    return replace(facts, model_priced=priced.model_priced, match=priced.match, catalog_version=priced.catalog_version)


def end_producer(reservation_id: str) -> str:
    """The producer of a reservation's one end by this API. No sequence is kept of it, as of expiries (`core.fold`)."""
    return f"{EXPIRY_PRODUCER}end:{reservation_id}"


def _is_same_end(known: Settlement, body: SettleBody, outcome: Outcome) -> bool:
    """Whether a reservation ended as is asked for now. Usage is compared as such: its price may be another by now."""
    if known.outcome != outcome:
        return False
    if body.usage is not None:
        return known.usage_source == "reported" and dict(known.usage) == body.usage
    assert body.cost_usd is not None, "a body names one of the two"
    return known.usage_source == "none" and known.cost_nano == parse_usd(body.cost_usd)


def _other_end(reservation_id: str) -> RefusedError:
    message = "this reservation has ended already, and otherwise than is asked for now"
    return RefusedError(409, "idempotency_conflict", message, fields={"reservation_id": reservation_id})
