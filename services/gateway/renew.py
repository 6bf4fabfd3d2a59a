"""Holds of calls under way: made larger or renewed in one step with their record, so that none ends before its call."""

import asyncio
import time
from dataclasses import replace
from functools import partial
from typing import Final

import structlog

from services.core.budgets import Proposal, tightest
from services.core.codec import encode_facts
from services.core.events import HoldResized
from services.core.hotstate import MAX_FIGURE, Admitted, HoldRequest, Refused
from services.core.money import format_usd
from services.core.ports import HotState, OutboxEvent, OutboxFullError, UnavailableError
from services.gateway.admit import AdmittedCall
from services.gateway.deny import BUDGET_STATUS, name_full
from services.gateway.extend import GrowingHold, NotExtendedError, grows
from services.gateway.hold import FAIL_OPEN, counted_now, held_now
from services.gateway.observe import event_headers
from services.gateway.record import Recorder
from services.gateway.refusal import RefusedError, backlog, rebuilding
from services.gateway.snapshots import HotClock, OrgView, Snapshots

log = structlog.get_logger()

SWEEP_S: Final = 1.0
# A hold is renewed when a third of its life is over: two more tries are left before anybody may take it for dead.
_LIVES: Final = 3
# A renewal that did not come through is tried again after this part of the hold's life.
_RETRIES: Final = 30
_NEVER: Final = 2**63


class LiveHold:
    """The hold of one call under way. `growing` is there when it is less than the call can cost.

    `due_ns` is when it is to be renewed, on the monotonic clock of `time.perf_counter_ns`.
    """

    __slots__ = ("call", "due_ns", "growing", "has_ended", "lock")

    def __init__(self, call: AdmittedCall) -> None:
        self.call = call
        self.due_ns = _NEVER
        self.growing: GrowingHold | None = None
        self.has_ended = False
        self.lock: asyncio.Lock | None = None

    def end(self) -> None:
        """The call is settled: nothing more changes the hold."""
        self.has_ended = True
        if self.growing is not None:
            self.growing.end()

    def turn(self) -> asyncio.Lock:
        """Whoever changes the hold has this: of two changes, the later must know of the earlier."""
        if self.lock is None:
            self.lock = asyncio.Lock()
        return self.lock


class LiveHolds:
    """All holds of calls under way in this process. One sweep a second looks after them: a call schedules nothing."""

    def __init__(self, hot_state: HotState, outbox: Recorder, snapshots: Snapshots, clock: HotClock) -> None:
        self._hot_state = hot_state
        self._outbox = outbox
        self._snapshots = snapshots
        self._clock = clock
        self._open: dict[LiveHold, None] = {}  # in the order in which they began
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, call: AdmittedCall) -> LiveHold:
        """Looks after the hold of a call from now on. Jobs' holds live long enough, and calls let pass have none."""
        hold = LiveHold(call)
        if call.asked.job is None and FAIL_OPEN not in call.facts.flags:
            self._take(hold, call)
            self._open[hold] = None
        return hold

    def move(self, hold: LiveHold, call: AdmittedCall) -> None:
        """Takes note that the hold is another's now: of the same call on its way to another target."""
        if hold.growing is not None:
            hold.growing.end()
        hold.call, hold.growing = call, None
        if hold in self._open:
            self._take(hold, call)

    def end(self, hold: LiveHold) -> None:
        """Lets go of the hold."""
        hold.end()
        self._open.pop(hold, None)

    def _take(self, hold: LiveHold, call: AdmittedCall) -> None:
        hold.call = call
        hold.growing = GrowingHold(call, partial(self._extend, hold, call)) if grows(call) else None
        hold.due_ns = time.perf_counter_ns() + call.hold_ms * 1_000_000 // _LIVES

    async def run(self) -> None:
        """Sweeps until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sweep()

    def sweep(self) -> None:
        """Begins to renew what is due, and to extend what is used up while nothing comes."""
        now_ns = time.perf_counter_ns()
        for hold in tuple(self._open):
            if hold.growing is not None:
                hold.growing.tick(now_ns)
            if now_ns >= hold.due_ns:
                self._put_off(hold, now_ns)
                task = asyncio.create_task(self._renew(hold))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Waits for the renewals that a sweep has begun."""
        await asyncio.gather(*self._tasks)

    async def _renew(self, hold: LiveHold) -> None:
        """Lets a hold live on at the amount it has. When it is gone already, its call's settlement sets that right."""
        async with hold.turn():
            if hold.has_ended:
                return
            try:
                await self._resize(hold, hold.call.held_nano, is_renewal=True)
            except NotExtendedError as error:
                if error.is_gone:
                    hold.due_ns = _NEVER
                log.warning("hold_not_renewed", transaction_id=hold.call.transaction_id, reason=error.refusal.message)

    async def _extend(self, hold: LiveHold, call: AdmittedCall, amount_nano: int) -> None:
        """Makes a hold larger. Raises `NotExtendedError`, and then nothing more may be spent than before."""
        async with hold.turn():
            if hold.call is call and not hold.has_ended:
                await self._resize(hold, amount_nano, is_renewal=False)

    async def _resize(self, hold: LiveHold, amount_nano: int, *, is_renewal: bool) -> None:
        call = hold.call
        org = call.facts.identity.org
        try:
            view = await self._snapshots.view(org)
            if view.pasts.unknown and not is_renewal:
                await view.pasts.wait(counted_now(call.charges, view.budgets))
            proposals = _proposals(call, view, self._clock.now_ms(), is_renewal)
            request = HoldRequest(
                org, call.transaction_id, amount_nano, proposals, call.hold_ms, encode_facts(call.facts)
            )
            answer = await self._hot_state.resize(request)
        except UnavailableError as error:
            raise NotExtendedError(rebuilding("the spend state can't be reached")) from error
        except RefusedError as refusal:
            raise NotExtendedError(refusal) from refusal
        if answer is None:
            raise NotExtendedError(rebuilding("what was held for this call has expired"), is_gone=True)
        if isinstance(answer, Refused):
            room_nano = min(each.remaining_nano for each in answer.exhausted)
            raise NotExtendedError(_exhausted(call, view, amount_nano, answer), room_nano)
        if not isinstance(answer, Admitted):
            raise NotExtendedError(rebuilding("the spend state is being rebuilt"))
        if hold.has_ended:
            return  # the settlement takes out whatever is held
        self._record(hold, amount_nano, answer)

    def _record(self, hold: LiveHold, amount_nano: int, answer: Admitted) -> None:
        call = hold.call
        resized = HoldResized(
            transaction_id=call.transaction_id,
            time_ms=answer.now_ms,
            facts=call.facts,
            held_nano=amount_nano,
            charges=answer.charges,
            expires_at_ms=answer.expires_at_ms,
        )
        charged = {each.budget_id for each in answer.charges}
        left_out = tuple(each.budget_id for each in call.charges if each.budget_id not in charged)
        # The hot state has it whether or not it can be recorded, and the settlement must name what is charged.
        call.charges, call.parent_charged = answer.charges, (*call.parent_charged, *left_out)
        call.standing = tightest(each for each in answer.standings if each.limit_nano < MAX_FIGURE)
        self._put_off(hold, time.perf_counter_ns(), lived=True)
        try:
            self._outbox.append([OutboxEvent(resized, event_headers(call.span))])
        except (OutboxFullError, UnavailableError) as error:
            # A state that is rebuilt from the log would hold less: so may no more than that be spent.
            raise NotExtendedError(backlog("what is held for this call can't be recorded")) from error
        call.held_nano = amount_nano

    def _put_off(self, hold: LiveHold, now_ns: int, *, lived: bool = False) -> None:
        hold.due_ns = now_ns + hold.call.hold_ms * 1_000_000 // (_LIVES if lived else _RETRIES)


def _proposals(call: AdmittedCall, view: OrgView, now_ms: int, is_renewal: bool) -> tuple[Proposal, ...]:
    """The call's charges by the limits and rules of now; none of them can refuse that a hold stays as it is."""
    held = held_now(call.charges, view.budgets, now_ms)
    return tuple(replace(each, full_rule="pass") for each in held) if is_renewal else held


def _exhausted(call: AdmittedCall, view: OrgView, amount_nano: int, answer: Refused) -> RefusedError:
    """Why a stream is ended; the standings are without what it holds itself."""
    first = answer.exhausted[0]
    full = name_full(first, amount_nano, view.budgets.find(first.budget_id), call.facts.billing_class)
    message = (
        f"{full.name} has ${format_usd(first.remaining_nano)} left of ${format_usd(first.limit_nano)} for this answer, "
        f"which would need ${format_usd(amount_nano)} to go on; it was ended there"
    )
    fields = {**full.fields, "transaction_id": call.transaction_id}
    return RefusedError(call.rule.budget_status or BUDGET_STATUS, full.code, message, fields=fields)
