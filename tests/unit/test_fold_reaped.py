"""The fold of what comes late to a hold that a reaper has had: it stays the reaper's, and ends once."""

from dataclasses import replace

import pytest

from services.core.budgets import Charge
from services.core.fold import forget
from services.core.hotstate import CLAIM_MS, TOLD_AGAIN_MS, Applied, HoldRequest
from services.core.reserve import claim_due, resize
from tests.unit.test_fold import NOW_MS, RING, fold, held, live, step

LATE_MS = NOW_MS + 5_000
MONTH = Charge("bud_month", "org:acme", f"c:0:{NOW_MS + 30 * 86_400_000}")


def test_a_change_that_comes_late_takes_no_claimed_hold_from_its_reaper() -> None:
    state = live()
    fold(state, step("restore", 0, 50))
    assert claim_due(state, LATE_MS, 1)
    late = replace(step("resize", 1, 60), expires_at_ms=LATE_MS + 900_000)
    assert fold(state, late, now_ms=LATE_MS) == Applied(1, 0)
    assert resize(state, HoldRequest("acme", "txn_1", 70, (), 5_000, "{}"), LATE_MS) is None, "its expiry may be told"
    assert (held(state), state.due) == ((60, 60), {"txn_1": LATE_MS + CLAIM_MS})


@pytest.mark.parametrize(("held_by", "ended_by"), [(MONTH, RING), (RING, MONTH)], ids=["held", "ended"])
def test_a_second_ending_finds_the_first_while_a_window_of_the_hold_or_of_that_lasts(
    held_by: Charge, ended_by: Charge
) -> None:
    state = live()
    fold(state, step("restore", 0, 50, charges=(held_by,)))
    assert claim_due(state, LATE_MS, 1)
    fold(state, step("settle", 1, 30, charges=(ended_by,)), now_ms=LATE_MS)
    week_later_ms = LATE_MS + TOLD_AGAIN_MS
    forget(state, week_later_ms)
    fold(state, step("expire", 2, 50, charges=(MONTH,)), now_ms=week_later_ms)
    assert state.windows[MONTH.budget_id, MONTH.window].spent_nano == (30 if ended_by is MONTH else 0)
