"""Bursts of a thousand calls at forty budgets over ten gateways, while everything is killed, paused or full in turn."""

from pathlib import Path

import pytest

from tests.chaos.rounds.faults import FAULTS, nothing
from tests.chaos.rounds.run import Outcome, run

# Every fault, and all but two of them twice; the last round is a quiet one, so that the judge need not wait for long.
ROUNDS = 20
assert FAULTS[(ROUNDS - 1) % len(FAULTS)] is nothing
# What the rounds have to show in the log, or they would prove nothing of it.
WANTED = {
    "estimate strict",
    "estimate stepped",
    "estimate stated",
    "resized",
    "outcome completed",
    "outcome partial",
    "outcome cut_off",
    "outcome cancelled",
    "downgraded",
    "parent_charged",
    "would_block",
    "without a session",
    "billing class byok.sandbox",
    "billing class shared.tavily",
    "refused by budget_exhausted",
    "refused by BudgetCapExceeded",
    "refused by session_required",
    "settled after it had expired",
    "route reservation",
    "route delegation",
}


@pytest.mark.timeout(600)
def test_no_budget_is_overspent_and_nothing_lost_whatever_goes_wrong(tmp_path: Path) -> None:
    outcome = Outcome(seed=20_261_127)
    run(outcome, ROUNDS, tmp_path, each_judged=ROUNDS)
    assert not outcome.findings(), outcome.findings()[:5]
    assert outcome.rounds == ROUNDS
    assert set(outcome.recovery_s) == {each.__name__ for each in FAULTS}
    assert outcome.calls > 950 * ROUNDS
    assert outcome.told["answered"] > 30 * ROUNDS, outcome.told
    assert outcome.told["refused"] > 10 * ROUNDS, outcome.told
    books = outcome.books
    assert books.caps.checked > outcome.told["answered"]
    assert books.kinds["expiry"] > 0, "kills leave holds behind"
    assert not WANTED - {name for name, times in books.seen.items() if times}, books.seen
    assert outcome.memory.compared > 10 * ROUNDS
    assert outcome.memory.asked_later > 3 * ROUNDS
