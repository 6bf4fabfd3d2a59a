"""The reserve decision, in its pure form; ``tests/property/test_hot_state_twins.py`` holds the Lua scripts to it."""

import copy

import pytest

from services.core.budgets import Charge, Proposal
from services.core.hotstate import (
    CLAIM_MS,
    Admitted,
    Cold,
    Figures,
    HoldRequest,
    OrgState,
    Refused,
    Ring,
    StaleWindow,
)
from services.core.reserve import claim_due, peek, release, reserve
from services.core.windows import CalendarSpan, RollingSpan

NOW_MS = 1_000_000
WINDOW = CalendarSpan(900_000, 1_100_000)
OTHER = CalendarSpan(0, 2_000_000)


def live(**parts: object) -> OrgState:
    return OrgState(epoch="e1", config_version=7, **parts)  # type: ignore[arg-type]


def proposal(limit_nano: int, name: str = "bud_1", span: CalendarSpan | RollingSpan = WINDOW) -> Proposal:
    return Proposal(name, "team:ml", span, limit_nano)


def request(amount_nano: int, *proposals: Proposal, name: str = "txn_1", hold_ms: int = 5_000) -> HoldRequest:
    return HoldRequest("acme", name, amount_nano, proposals, hold_ms, "{}")


def test_a_cold_org_admits_nothing() -> None:
    state = OrgState()
    assert reserve(state, request(0), NOW_MS) == Cold()
    assert peek(state, [proposal(1)], NOW_MS) is None
    assert claim_due(state, NOW_MS, 10) == ()
    assert state == OrgState()


def test_a_call_is_held_against_every_budget() -> None:
    state = live()
    answer = reserve(state, request(40, proposal(100), proposal(60, "bud_2", OTHER)), NOW_MS)
    assert isinstance(answer, Admitted)
    assert answer.config_version == 7
    assert answer.expires_at_ms == NOW_MS + 5_000
    assert [(each.budget_id, each.held_nano, each.remaining_nano) for each in answer.standings] == [
        ("bud_1", 40, 60),
        ("bud_2", 40, 20),
    ]
    assert answer.charges == (
        Charge("bud_1", "team:ml", "c:900000:1100000"),
        Charge("bud_2", "team:ml", "c:0:2000000"),
    )
    assert [figures.held_nano for figures in state.windows.values()] == [40, 40]


def test_a_call_that_just_fits_is_held_and_one_nano_more_is_not() -> None:
    state = live(windows={("bud_1", WINDOW.key()): Figures(30, 20)})
    assert isinstance(reserve(copy.deepcopy(state), request(50, proposal(100)), NOW_MS), Admitted)
    refused = reserve(state, request(51, proposal(100)), NOW_MS)
    assert isinstance(refused, Refused)
    assert refused.exhausted[0].remaining_nano == 50


def test_a_refusal_names_every_exhausted_budget_tightest_first_and_holds_nothing() -> None:
    state = live(windows={("bud_1", WINDOW.key()): Figures(90), ("bud_2", OTHER.key()): Figures(120)})
    before = copy.deepcopy(state)
    tight = [proposal(100), proposal(100, "bud_2", OTHER), proposal(100, "bud_3")]
    answer = reserve(state, request(20, *tight), NOW_MS)
    assert isinstance(answer, Refused)
    assert [each.budget_id for each in answer.exhausted] == ["bud_2", "bud_1"]
    assert state == before


def test_nothing_fits_an_overspent_budget_not_even_a_call_that_costs_nothing() -> None:
    state = live(windows={("bud_1", WINDOW.key()): Figures(101)})
    assert isinstance(reserve(state, request(0, proposal(100)), NOW_MS), Refused)
    assert isinstance(reserve(state, request(0, proposal(101)), NOW_MS), Admitted)


@pytest.mark.parametrize(
    ("now_ms", "is_stale"), [(899_999, True), (900_000, False), (1_099_999, False), (1_100_000, True)]
)
def test_the_hot_states_clock_decides_whether_a_window_is_current(now_ms: int, is_stale: bool) -> None:
    state = live()
    answer = reserve(state, request(1, proposal(100)), now_ms)
    assert isinstance(answer, StaleWindow if is_stale else Admitted)
    assert answer.now_ms == now_ms
    assert bool(state.holds) is not is_stale


def test_a_ring_takes_the_bucket_of_the_hot_states_clock() -> None:
    state = live()
    answer = reserve(state, request(1, proposal(100, span=RollingSpan(1_000, 60, 5))), NOW_MS)
    assert isinstance(answer, Admitted)
    assert answer.charges[0].window == "r:1000:60:1000"
    assert answer.standings[0].resets_at_ms == 1_061_000


def test_what_has_left_a_ring_makes_room() -> None:
    ring = Ring(low=940, total_nano=100, buckets={940: 60, 941: 40})
    state = live(rings={("bud_1", 1_000, 60): ring})
    full = proposal(100, span=RollingSpan(1_000, 60, 0))
    assert isinstance(reserve(state, request(1, full), NOW_MS), Refused)
    assert isinstance(reserve(state, request(61, full), NOW_MS + 1_000), Refused)
    assert isinstance(reserve(state, request(60, full), NOW_MS + 1_000), Admitted)
    assert ring == Ring(low=941, total_nano=40, held_nano=60, buckets={941: 40})


def test_a_ring_never_turns_back() -> None:
    ring = Ring(low=941, total_nano=40, buckets={941: 40})
    state = live(rings={("bud_1", 1_000, 60): ring})
    reserve(state, request(1, proposal(100, span=RollingSpan(1_000, 60, 0))), NOW_MS - 50_000)
    assert ring.low == 941


def test_the_same_reservation_is_held_once_and_answered_alike() -> None:
    state = live()
    first = reserve(state, request(40, proposal(100)), NOW_MS)
    before = copy.deepcopy(state)
    again = reserve(state, request(40, proposal(100)), NOW_MS + 1)
    assert isinstance(first, Admitted)
    assert isinstance(again, Admitted)
    assert (again.charges, again.expires_at_ms, again.standings) == (
        first.charges,
        first.expires_at_ms,
        first.standings,
    )
    assert state == before


def test_the_same_reservation_is_answered_even_when_its_window_is_over() -> None:
    state = live()
    first = reserve(state, request(40, proposal(100)), NOW_MS)
    again = reserve(state, request(40, proposal(100, span=CalendarSpan(1_100_000, 1_300_000))), 1_100_000)
    assert isinstance(first, Admitted)
    assert isinstance(again, Admitted)
    assert again.charges == first.charges


def test_a_release_undoes_a_hold_once() -> None:
    state = live()
    ring = proposal(100, "bud_2", RollingSpan(1_000, 60, 0))
    reserve(state, request(40, proposal(100), ring), NOW_MS)
    assert release(state, "txn_1", NOW_MS + 10)
    assert not release(state, "txn_1", NOW_MS + 10)
    assert state.windows["bud_1", WINDOW.key()] == Figures(0, 0)
    assert state.rings["bud_2", 1_000, 60].held_nano == 0
    assert (state.holds, state.due) == ({}, {})


def test_due_holds_are_claimed_earliest_first_and_again_only_later() -> None:
    state = live()
    for number, hold_ms in enumerate((3_000, 1_000, 2_000, 9_000)):
        reserve(state, request(10, proposal(100), name=f"txn_{number}", hold_ms=hold_ms), NOW_MS)
    assert claim_due(state, NOW_MS + 999, 10) == ()
    claimed = claim_due(state, NOW_MS + 3_000, 2)
    assert [each.reservation_id for each in claimed] == ["txn_1", "txn_2"]
    assert claimed[0].amount_nano == 10
    assert claimed[0].admitted_at_ms == NOW_MS
    assert [each.reservation_id for each in claim_due(state, NOW_MS + 3_000, 2)] == ["txn_0"]
    assert claim_due(state, NOW_MS + 3_000 + CLAIM_MS - 1, 1)[0].reservation_id == "txn_3"
    assert claim_due(state, NOW_MS + 3_000 + CLAIM_MS, 1)[0].reservation_id == "txn_0"


def test_a_peek_changes_nothing() -> None:
    ring = Ring(low=940, total_nano=100, held_nano=5, buckets={940: 60, 941: 40})
    state = live(rings={("bud_1", 1_000, 60): ring})
    before = copy.deepcopy(state)
    standings = peek(state, [proposal(100, span=RollingSpan(1_000, 60, 0)), proposal(9, "bud_2")], NOW_MS + 1_000)
    assert standings is not None
    assert [(each.spent_nano, each.held_nano) for each in standings] == [(40, 5), (0, 0)]
    assert state == before
