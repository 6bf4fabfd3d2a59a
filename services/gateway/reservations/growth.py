"""What a hold that is to grow is held against: all that it is charged to, and what its caller falls under by now."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from services.core.backfill import is_span_of
from services.core.budgets import MAX_BUDGETS_PER_CALL, Charge, Proposal
from services.core.events import Reservation
from services.core.matching import BudgetIndex, Matching, TooManyBudgetsError, paying_ids, proposals_for, rule_beside
from services.core.windows import SessionWindow, parse_span, span_at
from services.gateway.hold import held_now


@dataclass(frozen=True, slots=True)
class Growth:
    """A hold that asks for more: its `reservation`, the `charges` it has since, and `matching`, all it falls under."""

    reservation: Reservation
    charges: tuple[Charge, ...]
    matching: Matching
    budgets: BudgetIndex

    @property
    def session(self) -> str | None:
        """The session that the reservation names."""
        return self.reservation.facts.identity.session

    def proposals(self, now_ms: int) -> tuple[Proposal, ...]:
        """Whoever asks for more after a cap is known is held against it, in the window of now.

        A charge keeps its window (P9) for as long as its budget has that; what was charged in another one goes over to
        the present one. So no budget is named twice, and what an event names is not implied beside it
        (`core.backfill`). A child that has left the hold to its parents is asked again. Raises `TooManyBudgetsError`.
        """
        kept = {each.budget_id: each for each in (*self.reservation.charges, *self.charges)}
        falls_under = {each.budget_id: each for each in proposals_for(self.matching, self.session, now_ms)}
        proposals = dict(falls_under)
        for charge, held in zip(kept.values(), held_now(kept.values(), self.budgets, now_ms), strict=True):
            proposals[charge.budget_id] = self._present(charge, held, falls_under, now_ms)
        if len(proposals) > MAX_BUDGETS_PER_CALL:
            raise TooManyBudgetsError(len(proposals))
        # Who lets its parents pay is decided among all of them: a budget may have got a parent since.
        paying = paying_ids((name, self.budgets.find(name)) for name in proposals)
        return tuple(self._beside(each, paying) for each in proposals.values())

    def _present(self, charge: Charge, held: Proposal, falls_under: Mapping[str, Proposal], now_ms: int) -> Proposal:
        budget = self.budgets.find(charge.budget_id)
        if budget is None or is_span_of(budget, parse_span(charge.window)):
            return held
        if charge.budget_id in falls_under:
            return falls_under[charge.budget_id]
        if self.session is None and isinstance(budget.window, SessionWindow):
            return held  # it only watches sessions by now, and there is none
        # It was charged as what is above another one, and is that no more.
        return replace(held, span=span_at(budget.window, now_ms, self.session), is_fixed=False)

    def _beside(self, proposal: Proposal, paying: set[str]) -> Proposal:
        budget = self.budgets.find(proposal.budget_id)
        if budget is None:
            return proposal
        return replace(proposal, full_rule=rule_beside(budget, paying, self.budgets.find))
