"""What open holds are held against without saying so: the implied charges (`core.backfill`) of calls under way."""

from collections.abc import Mapping
from dataclasses import replace

from services.core.backfill import ImpliedBudgets
from services.core.budgets import Charge, owner_id
from services.core.codec import decode_facts
from services.core.codec_fields import UnreadableEventError
from services.core.events import CallFacts, Event
from services.core.hotstate import FoldStep, HeldBackfill, Hold, OpenHold


def step_with_implied(
    step: FoldStep, event: Event, implied: ImpliedBudgets, admitted_at_ms: int | None = None
) -> FoldStep:
    """An event's step with the charges it implies. `admitted_at_ms` as `ImpliedBudgets.charges_of` has it."""
    charges = implied.charges_of(event, admitted_at_ms)
    return replace(step, implied=charges) if charges else step


def implied_by(hold: Hold | OpenHold, implied: ImpliedBudgets) -> tuple[Charge, ...]:
    """The implied charges of an open hold, by its context. One that can't be read implies none."""
    facts = _facts_of(hold)
    return () if facts is None else _implied_by(hold, facts, implied)


def holds_with_implied(holds: Mapping[str, Hold], implied: ImpliedBudgets) -> dict[str, Hold]:
    """The holds of a ledger's image, each that is open with its implied charges."""
    if implied.horizon == 0:
        return dict(holds)
    return {
        name: replace(hold, implied=implied_by(hold, implied)) if hold.phase == "held" else hold
        for name, hold in holds.items()
    }


class HeldBackfills:
    """What open holds get when budgets are backfilled. A hold that is looked at again is decided only if it changed."""

    def __init__(self, pending: ImpliedBudgets) -> None:
        self._pending = pending
        self._decided: dict[tuple[str, int, int], tuple[Charge, ...]] = {}
        # Calls of one caller have equal facts, and to read them is most of the work.
        self._facts: dict[str, CallFacts | None] = {}

    def of(self, holds: Mapping[str, OpenHold]) -> dict[str, HeldBackfill]:
        """Of each hold that does not have it yet, by its id."""
        found = {}
        since = self._pending.since
        for name, hold in holds.items():
            key = name, hold.admitted_at_ms, hold.changed_at_ms
            charges = self._decided.get(key)
            if charges is None:
                charges = self._decided[key] = self._decide(hold)
            if charges != tuple(each for each in hold.implied if owner_id(each.budget_id) in since):
                found[name] = HeldBackfill(hold.changed_at_ms, charges)
        return found

    def _decide(self, hold: OpenHold) -> tuple[Charge, ...]:
        if hold.context not in self._facts:
            self._facts[hold.context] = _facts_of(hold)
        facts = self._facts[hold.context]
        return () if facts is None else _implied_by(hold, facts, self._pending)


def _facts_of(hold: Hold | OpenHold) -> CallFacts | None:
    try:
        return decode_facts(hold.context)
    except UnreadableEventError:
        return None


def _implied_by(hold: Hold | OpenHold, facts: CallFacts, implied: ImpliedBudgets) -> tuple[Charge, ...]:
    return implied.charges(facts, hold.admitted_at_ms, {(each.budget_id, each.window) for each in hold.charges})
