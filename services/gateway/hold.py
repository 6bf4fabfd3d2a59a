"""One round trip that holds a call against all of its budgets, by the first of its options that they have room for."""

import asyncio
import contextlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Final

from services.core.backfill import is_span_of
from services.core.budgets import Charge, FullRule, Proposal
from services.core.hotstate import MAX_FIGURE, Admitted, Cold, HoldOption, HoldRequest, Refused
from services.core.matching import BudgetIndex, limit_at, paying_ids, rule_beside
from services.core.parts import BUDGET_PREFIX, budget_of_key
from services.core.ports import HotState, NotSentError, UnavailableError
from services.core.reserve import left_out, only_watching
from services.core.windows import parse_span
from services.gateway.options import CallOption
from services.gateway.refusal import RefusedError, rebuilding, require_part
from services.gateway.releasing import Releases
from services.gateway.sizing import HoldSize
from services.gateway.snapshots import HotClock, OrgView, Snapshots

FAIL_OPEN: Final = "fail_open"
_PROPOSALS: Final = 3


@dataclass(frozen=True, slots=True)
class Held:
    """The option that is held, what was proposed for it, and the hot state's answer."""

    option: CallOption
    proposed: HoldOption
    admitted: Admitted

    @property
    def parent_charged(self) -> tuple[str, ...]:
        """The budgets that were full and let their parents pay: proposed, and not charged (BU-3)."""
        return left_out(self.proposed.proposals, self.admitted.charges)

    @property
    def would_block(self) -> tuple[str, ...]:
        """The budgets that had no room and only watch (BU-4): with this hold they are above their limits."""
        return only_watching(self.proposed.proposals, self.admitted.standings)


class Holder:
    """Holds calls, and takes back holds that no call will end."""

    def __init__(self, hot_state: HotState, clock: HotClock, snapshots: Snapshots, releases: Releases) -> None:
        self._hot_state = hot_state
        self._clock = clock
        self._snapshots = snapshots
        self._releases = releases

    async def hold(
        self,
        view: OrgView,
        transaction_id: str,
        options: tuple[CallOption, ...],
        hold_ms: int,
        *,
        fail_open: bool = False,
    ) -> Held | Refused:
        """Holds the first option that fits, for `hold_ms`. Raises `RefusedError` (503).

        With `fail_open` a spend state that is away or being rebuilt lets the call pass as asked, unheld and flagged.
        """
        if view.pasts.unknown:
            try:
                options = await _with_known_pasts(view, options)
            except RefusedError:
                if fail_open:
                    return self._unheld(options[0], hold_ms)
                raise
        now_ms = self._clock.now_ms()
        org = view.snapshot.org
        for _ in range(_PROPOSALS):
            asked, *cheaper = to_hold = [each.to_hold(now_ms) for each in options]
            request = HoldRequest(
                org, transaction_id, asked.amount_nano, asked.proposals, hold_ms, asked.context, tuple(cheaper)
            )
            try:
                answer = await self._hot_state.reserve(request)
            except asyncio.CancelledError:
                self.release(org, transaction_id)  # it may be held by now, and whoever asked for it is gone
                raise
            except UnavailableError as error:
                if fail_open:
                    return self._unheld(options[0], hold_ms)  # if it was held all the same, its settlement ends that
                if not isinstance(error, NotSentError):
                    self.release(org, transaction_id)
                raise rebuilding("the spend state can't be reached; try again in a second") from error
            if isinstance(answer, Cold):
                if fail_open:
                    return self._unheld(options[0], hold_ms)
                raise rebuilding("the spend state is being rebuilt; try again in a second")
            self._clock.learn(answer.now_ms)
            self._snapshots.hint(view, answer.config_version)
            if isinstance(answer, Admitted):
                try:
                    await require_part_still(self._snapshots, view, answer, options[0].facts.identity.key_id)
                except (RefusedError, asyncio.CancelledError):
                    self.release(org, transaction_id)
                    raise
                return Held(options[answer.option], to_hold[answer.option], answer)
            if isinstance(answer, Refused):
                return answer
            now_ms = answer.now_ms
        raise rebuilding("the budgets' windows are turning over; try again in a second")

    def _unheld(self, option: CallOption, hold_ms: int) -> Held:
        """The call let through (GW-9): charged in full, and in the windows of the clock as last known.

        Its events fold into what the budgets have spent once the state is back. There is no hold that could grow, so a
        stream is recorded at all that it can cost.
        """
        now_ms = self._clock.now_ms()
        facts = replace(option.facts, flags=(*option.facts.flags, FAIL_OPEN))
        passed = replace(option, facts=facts, size=HoldSize(option.bound.amount_nano, "strict"))
        proposed = passed.to_hold(now_ms)
        charges = tuple(each.charge() for each in proposed.proposals)
        return Held(passed, proposed, Admitted(0, now_ms, charges, (), now_ms + hold_ms))

    def release(self, org: str, transaction_id: str) -> None:
        """Takes a hold back that no call will end, off the call's way; its expiry would book money never spent."""
        self._releases.add(org, transaction_id)


async def require_part_still(snapshots: Snapshots, view: OrgView, answer: Admitted, key_id: str) -> None:
    """Raises `RefusedError` (503) where a part's key was given a hold by a configuration from before the part's end.

    What a part holds is held for it until it is settled, soon after its end: who pays for a call after that? To be
    asked of every hold, whose answer tells of the configuration that is in force in the very step.
    """
    if answer.config_version <= view.snapshot.version or budget_of_key(key_id) is None:
        return
    try:
        view = await snapshots.since(view.snapshot.org, answer.config_version)
    except UnavailableError as error:
        raise rebuilding("this org's configuration can't be read right now; try again in a second") from error
    require_part(view.budgets, key_id)


async def _with_known_pasts(view: OrgView, options: tuple[CallOption, ...]) -> tuple[CallOption, ...]:
    """The options whose budgets can all be checked by now; a cheaper one's that can't are in no other's way.

    Raises `RefusedError` where those of the call as asked can't.
    """
    first, *cheaper = options
    await view.pasts.wait(first.matching.applicable)
    known = [first]
    for each in cheaper:
        with contextlib.suppress(RefusedError):
            await view.pasts.wait(each.matching.applicable)
            known.append(each)
    return tuple(known)


def counted_now(charges: Iterable[Charge], budgets: BudgetIndex) -> tuple[Charge, ...]:
    """Those of a hold's charges that are in a window which their budget still has: a larger hold is checked there."""
    found = ((each, budgets.find(each.budget_id)) for each in charges)
    return tuple(each for each, budget in found if budget is not None and is_span_of(budget, parse_span(each.window)))


def held_now(charges: Iterable[Charge], budgets: BudgetIndex, now_ms: int) -> tuple[Proposal, ...]:
    """What a hold is charged to, in its windows (P9), by the limits and rules of now: for whoever changes that hold.

    A budget that is gone stays charged and refuses nothing. The budget of a part (BU-9) that is gone has ended, and
    what it was carved from is free again: nothing more may be held against it. A fallback child that is full leaves
    the hold only where one above it stays: it may have got its parent after the hold was made.
    """
    kept = tuple(charges)
    paying = paying_ids((each.budget_id, budgets.find(each.budget_id)) for each in kept)
    return tuple(_held_now(each, budgets, paying, now_ms) for each in kept)


def has_ended_part(charges: Iterable[Charge], budgets: BudgetIndex) -> bool:
    """Whether a hold is charged to a part (BU-9) that is gone."""
    return any(each.budget_id.startswith(BUDGET_PREFIX) and budgets.find(each.budget_id) is None for each in charges)


def _held_now(charge: Charge, budgets: BudgetIndex, paying: Collection[str], now_ms: int) -> Proposal:
    budget = budgets.find(charge.budget_id)
    limit_nano = MAX_FIGURE
    rule: FullRule = "pass"
    if budget is not None:
        limit_nano, rule = limit_at(budget, now_ms), rule_beside(budget, paying, budgets.find)
    elif has_ended_part((charge,), budgets):
        limit_nano, rule = 0, "block"
    return Proposal(charge.budget_id, charge.scope, parse_span(charge.window), limit_nano, rule, is_fixed=True)
