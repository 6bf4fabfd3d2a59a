"""The reserve decision, in its pure form; ``tests/property/test_hot_state_twins.py`` holds the Lua scripts to it."""

import copy
from dataclasses import replace

import pytest

from services.core.budgets import Charge, FullRule, Proposal
from services.core.hotstate import (
    CLAIM_MS,
    SESSION_IDLE_MS,
    Admitted,
    Cold,
    Figures,
    FoundHold,
    HoldOption,
    HoldRequest,
    OrgState,
    Refused,
    Ring,
    StaleWindow,
)
from services.core.reserve import claim_due, peek, release, reserve
from services.core.windows import CalendarSpan, LifetimeSpan, RollingSpan, SessionSpan, Span

NOW_MS = 1_000_000
WINDOW = CalendarSpan(900_000, 1_100_000)
OTHER = CalendarSpan(0, 2_000_000)


def live(**parts: object) -> OrgState:
    return OrgState(epoch="e1", config_version=7, **parts)  # type: ignore[arg-type]


def proposal(limit_nano: int, name: str = "bud_1", span: Span = WINDOW, rule: FullRule = "block") -> Proposal:
    return Proposal(name, "team:ml", span, limit_nano, rule)


def request(
    amount_nano: int,
    *proposals: Proposal,
    name: str = "txn_1",
    hold_ms: int = 5_000,
    alternatives: tuple[HoldOption, ...] = (),
) -> HoldRequest:
    return HoldRequest("acme", name, amount_nano, proposals, hold_ms, "{}", alternatives)


def held(state: OrgState) -> dict[str, int]:
    """What is held by budget, rings included."""
    windows = {budget_id: figures.held_nano for (budget_id, _), figures in state.windows.items()}
    return windows | {slot[0]: ring.held_nano for slot, ring in state.rings.items()}


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


def test_a_hold_that_a_reaper_has_is_not_released_and_keeps_its_room() -> None:
    """Its expiry is on the way and books it: room given back before that would be spent twice."""
    state = live()
    reserve(state, request(40, proposal(100), hold_ms=1_000), NOW_MS)
    assert len(claim_due(state, NOW_MS + 1_000, 10)) == 1
    assert not release(state, "txn_1", NOW_MS + 1_001)
    assert state.windows["bud_1", WINDOW.key()] == Figures(0, 40)


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


def test_a_full_child_that_falls_back_is_left_out_and_its_parent_pays() -> None:
    state = live()
    asked = request(40, proposal(100), proposal(39, "bud_child", OTHER, "parent"))
    answer = reserve(state, asked, NOW_MS)
    assert isinstance(answer, Admitted)
    assert [each.budget_id for each in answer.charges] == ["bud_1"]
    assert [(each.budget_id, each.held_nano) for each in answer.standings] == [("bud_1", 40)]
    assert held(state) == {"bud_1": 40}
    assert reserve(state, asked, NOW_MS) == replace(answer, found=FoundHold(40, asked.context))


def test_a_full_parent_refuses_in_its_childs_place() -> None:
    state = live()
    answer = reserve(state, request(40, proposal(39), proposal(10, "bud_child", OTHER, "parent")), NOW_MS)
    assert isinstance(answer, Refused)
    assert [each.budget_id for each in answer.exhausted] == ["bud_1"]
    assert held(state) == {}


def test_a_budget_that_only_watches_is_charged_past_its_limit() -> None:
    state = live()
    answer = reserve(state, request(40, proposal(0, rule="pass"), proposal(40, "bud_2")), NOW_MS)
    assert isinstance(answer, Admitted)
    assert [each.remaining_nano for each in answer.standings] == [-40, 0]
    assert held(state) == {"bud_1": 40, "bud_2": 40}


def option(amount_nano: int, *proposals: Proposal) -> HoldOption:
    return HoldOption(amount_nano, proposals, f"for {amount_nano}")


def test_a_downgrade_holds_the_first_option_that_fits_as_a_whole() -> None:
    state = live(windows={("bud_2", OTHER.key()): Figures(60)})
    soft, hard = proposal(39, rule="downgrade"), proposal(100, "bud_2", OTHER)
    options = option(41, soft), option(39, soft, hard, proposal(38, "bud_3")), option(38, soft, hard), option(1, soft)
    answer = reserve(state, request(40, soft, hard, alternatives=options), NOW_MS)
    assert isinstance(answer, Admitted)
    assert answer.option == 3
    assert [each.held_nano for each in answer.standings] == [38, 38]
    assert held(state) == {"bud_1": 38, "bud_2": 38}
    hold = state.holds["txn_1"]
    assert (hold.amount_nano, hold.context, hold.option) == (38, "for 38", 3)
    assert reserve(state, request(40, soft, hard, alternatives=options), NOW_MS + 1) == replace(
        answer, now_ms=NOW_MS + 1, found=FoundHold(38, "for 38")
    )


def test_a_budget_that_blocks_is_not_got_around_by_a_downgrade() -> None:
    asked = (proposal(39, rule="downgrade"), proposal(39, "bud_2"))
    answer = reserve(live(), request(40, *asked, alternatives=(option(1),)), NOW_MS)
    assert isinstance(answer, Refused)
    assert [each.budget_id for each in answer.exhausted] == ["bud_1", "bud_2"]


def test_a_refusal_is_about_what_was_asked_for_first() -> None:
    options = option(30, proposal(20, "bud_9")), option(20, proposal(10, rule="downgrade"))
    asked = (proposal(39, rule="downgrade"), proposal(0, "bud_2", rule="pass"), proposal(0, "bud_3", rule="parent"))
    state = live()
    answer = reserve(state, request(40, *asked, alternatives=options), NOW_MS)
    assert isinstance(answer, Refused)
    assert [(each.budget_id, each.remaining_nano) for each in answer.exhausted] == [("bud_1", 39)]
    assert held(state) == {}


def test_an_option_that_is_not_needed_must_be_current_all_the_same() -> None:
    late = option(1, proposal(100, span=CalendarSpan(0, NOW_MS)))
    assert isinstance(reserve(live(), request(1, proposal(100), alternatives=(late,)), NOW_MS), StaleWindow)


def test_a_session_is_forgotten_when_it_was_idle_for_long_but_never_while_it_holds() -> None:
    state = live()
    asked = proposal(100, span=SessionSpan("s1"))
    slot = ("bud_1", "s:s1")
    assert isinstance(reserve(state, request(60, asked), NOW_MS), Admitted)
    long_ms = NOW_MS + 2 * SESSION_IDLE_MS
    assert isinstance(reserve(state, request(60, asked, name="txn_2"), long_ms), Refused)
    assert state.windows[slot].forget_at_ms is None
    assert release(state, "txn_1", long_ms)
    state.windows[slot].spent_nano = 70
    assert state.windows[slot].forget_at_ms == long_ms + SESSION_IDLE_MS
    last_ms = long_ms + SESSION_IDLE_MS
    assert isinstance(reserve(state, request(60, asked, name="txn_3"), last_ms - 1), Refused)
    standings = peek(state, [asked], last_ms)
    assert standings is not None
    assert standings[0].spent_nano == 0
    assert isinstance(reserve(state, request(60, asked, name="txn_3"), last_ms), Admitted)
    assert state.windows[slot] == Figures(0, 60)


def test_each_session_has_figures_of_its_own_and_a_lifetime_has_one_for_ever() -> None:
    state = live()
    ever = proposal(100, "bud_2", LifetimeSpan())
    for number, session in enumerate(("s1", "s2")):
        asked = request(50, proposal(50, span=SessionSpan(session)), ever, name=f"txn_{number}")
        assert isinstance(reserve(state, asked, NOW_MS + number * 10 * SESSION_IDLE_MS), Admitted)
    answer = reserve(state, request(1, ever, name="txn_9"), NOW_MS + 20 * SESSION_IDLE_MS)
    assert isinstance(answer, Refused)
    assert answer.exhausted[0].resets_at_ms is None
    assert answer.room_at_ms == answer.now_ms, "what is held may come free"


HOURLY = RollingSpan(60_000, 60, 0)
FULL_RING = Ring(low=0, total_nano=100, buckets={0: 10, 3: 50, 5: 40})


@pytest.mark.parametrize(
    ("spent", "limit_nano", "amount_nano", "at_ms"),
    [
        (Figures(90), 100, 11, WINDOW.end_ms),
        (Figures(90), 100, 101, None),
        (Figures(0, 95), 100, 100, NOW_MS),
        (Figures(90, 5), 100, 10, NOW_MS),
        (FULL_RING, 100, 10, 61 * 60_000),
        (FULL_RING, 100, 11, 64 * 60_000),
        (FULL_RING, 100, 60, 64 * 60_000),
        (FULL_RING, 100, 61, 66 * 60_000),
        (FULL_RING, 100, 100, 66 * 60_000),
        (FULL_RING, 100, 101, None),
    ],
)
def test_a_refusal_tells_when_there_is_room(
    spent: Figures | Ring, limit_nano: int, amount_nano: int, at_ms: int | None
) -> None:
    is_ring, spent = isinstance(spent, Ring), copy.deepcopy(spent)
    state = live(rings={("bud_1", 60_000, 60): spent}) if is_ring else live(windows={("bud_1", WINDOW.key()): spent})
    asked = proposal(limit_nano, span=HOURLY if is_ring else WINDOW)
    answer = reserve(copy.deepcopy(state), request(amount_nano, asked), NOW_MS)
    assert isinstance(answer, Refused)
    assert answer.room_at_ms == at_ms
    assert answer.exhausted[0].resets_at_ms == (at_ms if is_ring else WINDOW.end_ms)
    if is_ring and at_ms is not None:
        before = reserve(copy.deepcopy(state), request(amount_nano, asked), at_ms - 1)
        assert isinstance(before, Refused)
        assert isinstance(reserve(state, request(amount_nano, asked), at_ms), Admitted)


def test_there_is_room_when_the_last_of_all_budgets_has_it() -> None:
    ring = proposal(100, "bud_2", HOURLY)
    rings = {("bud_2", 60_000, 60): copy.deepcopy(FULL_RING)}
    state = live(rings=rings, windows={("bud_1", WINDOW.key()): Figures(100)})
    answer = reserve(copy.deepcopy(state), request(10, proposal(100), ring), NOW_MS)
    assert isinstance(answer, Refused)
    assert answer.room_at_ms == 61 * 60_000
    full = proposal(100)
    for asked in ((full, ring), (ring, full)):
        answer = reserve(copy.deepcopy(state), request(11, *asked), NOW_MS)
        assert isinstance(answer, Refused)
        assert answer.room_at_ms == 64 * 60_000, "whichever comes last"
        assert {each.budget_id: each.resets_at_ms for each in answer.exhausted} == {
            "bud_1": WINDOW.end_ms,
            "bud_2": 64 * 60_000,
        }
    state.windows["bud_3", "l"] = Figures(100)
    answer = reserve(state, request(10, proposal(100), ring, proposal(100, "bud_3", LifetimeSpan())), NOW_MS)
    assert isinstance(answer, Refused)
    assert answer.room_at_ms is None
