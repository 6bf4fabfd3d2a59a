"""A hold that is no proxied call's: made, changed and recorded, all or nothing."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, TypeVar

from services.core.budgets import Proposal, Standing
from services.core.codec import decode_facts, encode_facts
from services.core.events import CallFacts, Denial, HoldResized, Reservation, Settlement
from services.core.hotstate import Admitted, Cold, HoldRequest, Refused, ReserveAnswer, StaleWindow
from services.core.matching import (
    Applicable,
    Matching,
    TooManyBudgetsError,
    asks_for_session,
    closed_cap,
    proposals_for,
)
from services.core.money import format_usd
from services.core.ports import HotState, NotSentError, OutboxEvent, OutboxFullError, UnavailableError
from services.core.reserve import left_out, only_watching
from services.gateway.deny import by_closed_cap, name_full, outlook
from services.gateway.hold import has_ended_part, held_now, require_part_still
from services.gateway.plain_api import Caller, away
from services.gateway.record import Recorder
from services.gateway.refusal import RefusedError, backlog, names_no_session, rebuilding, require_part
from services.gateway.reservations import told
from services.gateway.reservations.growth import Growth
from services.gateway.snapshots import HotClock, Snapshots

_E = TypeVar("_E", Reservation, HoldResized, Settlement, Denial)
_A = TypeVar("_A")

# How such a hold was sized: as its caller said.
STATED: Final = "stated"
_PROPOSALS: Final = 3


class Holding:
    """Makes and changes holds. Every method may raise `RefusedError`.

    `release` takes back, off the caller's way, a hold of an org that nobody will end.
    """

    def __init__(
        self,
        snapshots: Snapshots,
        clock: HotClock,
        hot_state: HotState,
        outbox: Recorder,
        session_header: str,
        release: Callable[[str, str], None],
    ) -> None:
        self._release = release
        self._snapshots = snapshots
        self._session_header = session_header
        self._clock = clock
        self._hot_state = hot_state
        self._outbox = outbox

    async def hold(
        self,
        caller: Caller,
        facts: CallFacts,
        amount_nano: int,
        reservation_id: str,
        hold_ms: int,
        *,
        is_repeatable: bool = False,
    ) -> Reservation | Denial:
        """Holds an amount against all that `facts` fall under, and records that; a refusal is its caller's to record.

        What `is_repeatable` is asked for again under its id, and finds what an earlier try has held.
        """
        if self._outbox.is_full():
            raise backlog("the event log has been away too long, and nothing can be recorded; try again shortly")
        matching = matched(caller, facts)
        facts = replace(facts, flags=(*facts.flags, *matching.flags))
        closed = closed_cap(matching, amount_nano)
        if closed is not None:
            refused = by_closed_cap(closed, caller.view.snapshot.version, self._clock.now_ms())
            return _denial(caller, reservation_id, facts, amount_nano, refused)
        needy = asks_for_session(matching)
        if needy is not None and facts.identity.session is None:
            raise self._session_required(needy)
        if caller.view.pasts.unknown:
            await caller.view.pasts.wait(matching.applicable)
        now_ms = self._clock.now_ms()
        for _ in range(_PROPOSALS):
            proposals = proposals_for(matching, facts.identity.session, now_ms)
            request = HoldRequest(caller.org, reservation_id, amount_nano, proposals, hold_ms, encode_facts(facts))
            answer = await self._reserve(request, is_repeatable=is_repeatable)
            if isinstance(answer, Cold):
                raise rebuilding("the spend state is being rebuilt; try again in a second")
            self._clock.learn(answer.now_ms)
            self._snapshots.hint(caller.view, answer.config_version)
            if isinstance(answer, Refused):
                return _denial(caller, reservation_id, facts, amount_nano, answer)
            if isinstance(answer, Admitted):
                return await self._record_hold(caller, request, facts, answer, is_repeatable=is_repeatable)
            now_ms = answer.now_ms
        raise _turning_over()

    async def _reserve(self, request: HoldRequest, *, is_repeatable: bool) -> ReserveAnswer:
        try:
            return await self._hot_state.reserve(request)
        except (UnavailableError, asyncio.CancelledError) as error:
            if not (is_repeatable or isinstance(error, NotSentError)):
                self._release(request.org, request.reservation_id)  # it may be held, and nobody knows of it
            if isinstance(error, asyncio.CancelledError):
                raise
            raise _unreachable() from error

    def _session_required(self, needy: Applicable) -> RefusedError:
        message = names_no_session(needy, self._session_header)
        return RefusedError(400, "session_required", message, param=self._session_header)

    async def _record_hold(
        self, caller: Caller, request: HoldRequest, facts: CallFacts, answer: Admitted, *, is_repeatable: bool
    ) -> Reservation:
        # A hold that was there already was admitted then, maybe under another configuration and at other prices: its
        # reservation is told as it was.
        found = answer.found
        if found is not None:
            if not found.context or answer.expires_at_ms <= answer.now_ms:
                raise away("what this key held before has ended, and the ledger does not know of it yet; ask again")
            facts = decode_facts(found.context)
        admitted_at_ms = min(answer.now_ms, answer.expires_at_ms - request.hold_ms)
        reservation = Reservation(
            transaction_id=request.reservation_id,
            time_ms=admitted_at_ms,
            facts=facts,
            estimate_mode=STATED,
            input_tokens_bound=0,
            output_tokens_bound=0,
            held_nano=request.amount_nano if found is None else found.amount_nano,
            charges=answer.charges,
            expires_at_ms=answer.expires_at_ms,
            parent_charged=left_out(request.proposals, answer.charges),
            would_block=only_watching(request.proposals, answer.standings),
        )
        try:
            await require_part_still(self._snapshots, caller.view, answer, facts.identity.key_id)
            return self.record(reservation)
        except (RefusedError, asyncio.CancelledError) as error:
            if not is_repeatable:
                self._release(request.org, request.reservation_id)
            elif found is None and isinstance(error, RefusedError):  # else another gateway has made and recorded it
                # Once, and before anybody asks again: a later one could take from them what they have found.
                await quietly(self._hot_state.release(request.org, request.reservation_id))
            raise

    async def resize(
        self,
        caller: Caller,
        reservation: Reservation,
        amount_nano: int,
        hold_ms: int,
        *,
        is_growing: bool,
        last: HoldResized | None = None,
    ) -> HoldResized | Denial | None:
        """Changes what is held, and until when; None when there is no such hold any more. Nothing of it is recorded.

        `last` is how the hold was changed before. One that grows is held against all that its facts fall under by now.
        """
        facts, charges = (last or reservation).facts, (last or reservation).charges
        growth: Growth | None = None
        if is_growing and not has_ended_part(charges, caller.view.budgets):
            matching = matched(caller, facts)
            facts = replace(facts, flags=tuple(dict.fromkeys((*facts.flags, *matching.flags))))
            closed = closed_cap(matching, amount_nano)
            if closed is not None:
                refused = by_closed_cap(closed, caller.view.snapshot.version, self._clock.now_ms())
                return _denial(caller, reservation.transaction_id, facts, amount_nano, refused)
            growth = Growth(reservation, charges, matching, caller.view.budgets)
            await self._prepare(caller, growth)
        now_ms = self._clock.now_ms()
        for _ in range(_PROPOSALS):
            proposals = (
                held_now(charges, caller.view.budgets, now_ms) if growth is None else _proposals_of(growth, now_ms)
            )
            request = HoldRequest(
                caller.org, reservation.transaction_id, amount_nano, proposals, hold_ms, encode_facts(facts)
            )
            answer = await ask(self._hot_state.resize(request))
            if not isinstance(answer, StaleWindow):
                break
            self._clock.learn(answer.now_ms)
            now_ms = answer.now_ms
        return self._resized(caller, request, facts, answer)

    async def _prepare(self, caller: Caller, growth: Growth) -> None:
        """Returns when all that a hold grows against can be checked. Raises `RefusedError`."""
        needy = asks_for_session(growth.matching)
        if needy is not None and growth.session is None:
            message = (
                f"budget {needy.budget_id} of {needy.scope} caps each session, and this reservation names none, so it "
                f"can't grow; settle it, and make another one with the session's name in {self._session_header}"
            )
            raise RefusedError(400, "session_required", message, param=self._session_header)
        if caller.view.pasts.unknown:
            await caller.view.pasts.wait(_proposals_of(growth, self._clock.now_ms()))

    def _resized(
        self, caller: Caller, request: HoldRequest, facts: CallFacts, answer: ReserveAnswer | None
    ) -> HoldResized | Denial | None:
        if answer is None:
            return None
        if isinstance(answer, Refused):
            return _denial(caller, request.reservation_id, facts, request.amount_nano, answer)
        if isinstance(answer, StaleWindow):
            raise _turning_over()
        if not isinstance(answer, Admitted):
            raise rebuilding("the spend state is being rebuilt; try again in a second")
        return HoldResized(
            transaction_id=request.reservation_id,
            time_ms=answer.now_ms,
            facts=facts,
            held_nano=request.amount_nano,
            charges=answer.charges,
            expires_at_ms=answer.expires_at_ms,
        )

    def record(self, event: _E, producer: str | None = None) -> _E:
        """Keeps an event durably; one that may be recorded again, under a `producer` of its own."""
        try:
            self._outbox.append([OutboxEvent(event, producer=producer)])
        except (OutboxFullError, UnavailableError) as error:
            raise backlog("this can't be recorded right now; try again shortly") from error
        return event


def matched(caller: Caller, facts: CallFacts) -> Matching:
    """All that `facts` fall under; raises `RefusedError` (400) where that is more than one call can be held against."""
    require_part(caller.view.budgets, facts.identity.key_id)
    try:
        return caller.view.budgets.matching(facts)
    except TooManyBudgetsError as error:
        raise _too_many(error) from error


def _proposals_of(growth: Growth, now_ms: int) -> tuple[Proposal, ...]:
    try:
        return growth.proposals(now_ms)
    except TooManyBudgetsError as error:
        raise _too_many(error) from error


def _too_many(error: TooManyBudgetsError) -> RefusedError:
    return RefusedError(400, "too_many_budgets", str(error))


async def ask(deed: Awaitable[_A]) -> _A:
    """What the hot state answers; raises `RefusedError` (503) when it does not."""
    try:
        return await deed
    except UnavailableError as error:
        raise _unreachable() from error


def _turning_over() -> RefusedError:
    return rebuilding("the budgets' windows are turning over; try again in a second")


def _unreachable() -> RefusedError:
    return rebuilding("the spend state can't be reached; try again in a second")


async def quietly(deed: Awaitable[object]) -> None:
    """Does what can be left out: without it the ledger answers later, or a claim lapses."""
    try:
        await deed
    except UnavailableError:
        return


def _denial(caller: Caller, reservation_id: str, facts: CallFacts, amount_nano: int, answer: Refused) -> Denial:
    """Why there is no hold, as a call is told (`gateway.deny`); what an event has no field for is in its flags."""
    first: Standing = answer.exhausted[0]
    budget = caller.view.budgets.find(first.budget_id)
    full = name_full(first, amount_nano, budget, facts.billing_class)
    return Denial(
        transaction_id=reservation_id,
        time_ms=time.time_ns() // 1_000_000,
        facts=replace(facts, flags=(*facts.flags, *told.refusal_flags(full.fields, answer.room_at_ms))),
        code=full.code,
        reason=(
            f"{full.name} has ${format_usd(first.remaining_nano)} left of "
            f"${format_usd(first.limit_nano)}, and ${format_usd(amount_nano)} was asked for; "
            f"{outlook(first, amount_nano, answer.now_ms)}"
        ),
        estimate_nano=amount_nano,
        budget_id=first.budget_id,
        scope=first.scope,
        limit_nano=first.limit_nano,
        spent_nano=first.spent_nano,
        held_nano=first.held_nano,
    )
