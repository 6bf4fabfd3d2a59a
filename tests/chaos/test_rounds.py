"""Bursts of a thousand calls at forty budgets over ten gateways, while everything is killed, paused or full in turn."""

from pathlib import Path

import pytest

from tests.chaos.rounds.arena import arena
from tests.chaos.rounds.faults import FAULTS
from tests.chaos.rounds.run import play

ROUNDS = 2 * len(FAULTS)


@pytest.mark.timeout(600)
async def test_no_budget_is_overspent_and_nothing_lost_whatever_goes_wrong(tmp_path: Path) -> None:
    with arena(tmp_path) as made:
        outcome = await play(made, ROUNDS, seed=20_261_127, each_judged=len(FAULTS))
    assert outcome.rounds == ROUNDS >= 20
    assert outcome.statuses[200] > 30 * ROUNDS, outcome.statuses
    assert outcome.statuses[402] > 10 * ROUNDS, outcome.statuses
    assert outcome.overshoots.checked > outcome.statuses[200]
    assert outcome.verdict.kinds()["expiry"] > 0, "kills leave holds behind"
