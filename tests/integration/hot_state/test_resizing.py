"""A hold that gets another size: all or nothing, never doubled, and not once its end may be on the way."""

import asyncio
import copy
from dataclasses import replace

from services.adapters.valkey import ValkeyHotState
from services.adapters.valkey_connection import ValkeyConnection
from services.core import fold
from services.core.budgets import Proposal
from services.core.hotstate import (
    WINDOW_GRACE_MS,
    Admitted,
    Applied,
    Cold,
    FoldStep,
    Hold,
    OrgState,
    Refused,
    ReserveAnswer,
    StaleWindow,
)
from services.core.windows import CalendarSpan, RollingSpan, SessionSpan
from tests.support.hot_rig import CHARGE, EMPTY, NOW_MS, ORG, PLACE, SPAN, Rig, proposal, request_of, settle
from tests.support.hot_state import read_state

RING = RollingSpan(1_000, 60, NOW_MS // 1_000)
FIXED = replace(proposal(100), is_fixed=True)
PLACE_OF_HOLDS = replace(PLACE, topic="spend.reservations.v1")


async def resize(rig: Rig, amount_nano: int, *proposals: Proposal, name: str = "txn_1") -> ReserveAnswer | None:
    return await rig.hot.resize(replace(request_of(amount_nano, *proposals, name=name), context='{"to":"other"}'))


async def held(rig: Rig, *proposals: Proposal) -> list[int]:
    standings = await rig.hot.peek(ORG, proposals)
    assert standings is not None
    return [each.held_nano for each in standings]


async def spent(rig: Rig, *proposals: Proposal) -> list[int]:
    standings = await rig.hot.peek(ORG, proposals)
    assert standings is not None
    return [each.spent_nano for each in standings]


async def test_a_hold_grows_and_shrinks_in_every_budget_it_is_in(rig: Rig) -> None:
    """What it holds less stays held until the log tells so: whoever made it smaller may not know that they have."""
    budgets = (proposal(100), proposal(90, "bud_2", RING))
    assert isinstance(await rig.hot.reserve(request_of(40, *budgets)), Admitted)
    await rig.turn_to(NOW_MS + 500)
    for amount_nano in (90, 10, 0, 55):
        answer = await resize(rig, amount_nano, *budgets)
        assert isinstance(answer, Admitted)
        assert [each.held_nano for each in answer.standings] == [90, 90]
        assert await held(rig, *budgets) == [90, 90]
    assert answer.expires_at_ms == NOW_MS + 5_500
    state = await rig.state()
    assert state.holds["txn_1"] == Hold(
        55,
        tuple(each.charge() for each in budgets),
        '{"to":"other"}',
        NOW_MS + 5_500,
        admitted_at_ms=NOW_MS,
        resized_at_ms=NOW_MS + 500,
        left=tuple((each.charge(), 35) for each in budgets),
    )
    assert state.due == {"txn_1": NOW_MS + 5_500}
    told = FoldStep("resize", 0, "gw_1", 1, "txn_1", 55, answer.charges, "{}", NOW_MS + 5_500, NOW_MS + 500)
    await rig.hot.apply(ORG, PLACE_OF_HOLDS, [told], 1)
    assert await held(rig, *budgets) == [55, 55]
    assert (await rig.state()).holds["txn_1"].left == ()


async def test_without_room_in_one_budget_nothing_changes_in_any(rig: Rig) -> None:
    budgets = (proposal(1_000), proposal(100, "bud_2", RING))
    assert isinstance(await rig.hot.reserve(request_of(30, proposal(100, "bud_2", RING), name="txn_2")), Admitted)
    assert isinstance(await rig.hot.reserve(request_of(40, *budgets)), Admitted)
    before = copy.deepcopy(await rig.state())
    answer = await resize(rig, 71, *budgets)
    assert isinstance(answer, Refused)
    # 100 less what the other call holds; its own hold would be out.
    assert [(each.budget_id, each.remaining_nano) for each in answer.exhausted] == [("bud_2", 70)]
    assert await rig.state() == before
    assert isinstance(await resize(rig, 70, *budgets), Admitted)
    assert await held(rig, *budgets) == [70, 100]


async def test_a_smaller_hold_is_taken_even_where_its_budget_is_over_full(rig: Rig) -> None:
    """A limit may have been lowered, or a call have cost more than it held: holding less is never wrong."""
    assert isinstance(await rig.hot.reserve(request_of(50, proposal(100))), Admitted)
    answer = await resize(rig, 50, proposal(10))
    assert isinstance(answer, Admitted)
    assert isinstance(await resize(rig, 20, proposal(10)), Admitted)
    assert isinstance(await resize(rig, 21, proposal(10)), Admitted), "which it has held all the while"
    assert isinstance(await resize(rig, 51, proposal(10)), Refused)
    assert await held(rig, proposal(10)) == [50]


async def test_amounts_that_no_double_has_are_made_smaller_exactly(rig: Rig) -> None:
    large = 9 * 10**18
    assert isinstance(await rig.hot.reserve(request_of(large + 1, proposal(2**63 - 1))), Admitted)
    for amount_nano, left_nano in ((large, 1), (10**18 - 1, 8 * 10**18 + 2), (large + 1, 0)):
        assert isinstance(await resize(rig, amount_nano, proposal(2**63 - 1)), Admitted)
        assert await held(rig, proposal(2**63 - 1)) == [large + 1]
        assert sum(nano for _, nano in (await rig.state()).holds["txn_1"].left) == left_nano


async def test_what_is_no_open_hold_can_not_be_resized(rig: Rig) -> None:
    assert await resize(rig, 5, proposal(100), name="txn_unknown") is None
    assert isinstance(await rig.hot.reserve(request_of(40, proposal(100))), Admitted)
    await rig.hot.apply(ORG, PLACE, [settle(0, 7, "txn_1")], 1)
    assert await resize(rig, 5, proposal(100)) is None
    assert await held(rig, proposal(100)) == [0]
    await rig.go_cold()
    assert await resize(rig, 5, proposal(100)) == Cold()


async def test_a_hold_that_a_reaper_has_can_not_be_resized(rig: Rig) -> None:
    """Its expiry may be in the log by now, with the old amount."""
    assert isinstance(await rig.hot.reserve(request_of(40, proposal(100))), Admitted)
    await rig.turn_to(NOW_MS + 5_000)
    (due,) = await rig.hot.claim_due(ORG, 5)
    assert due.amount_nano == 40
    assert await resize(rig, 10, proposal(100)) is None
    assert await held(rig, proposal(100)) == [40]


async def test_a_hold_past_its_time_that_no_reaper_has_lives_on(rig: Rig) -> None:
    assert isinstance(await rig.hot.reserve(request_of(40, proposal(100))), Admitted)
    await rig.turn_to(NOW_MS + 5_001)
    assert isinstance(await resize(rig, 60, FIXED), Admitted)
    assert await rig.hot.claim_due(ORG, 5) == ()
    assert await held(rig, proposal(100)) == [60]


async def test_its_event_changes_nothing_more_and_an_earlier_one_nothing_at_all(rig: Rig) -> None:
    assert isinstance(await rig.hot.reserve(request_of(40, proposal(100))), Admitted)
    await rig.turn_to(NOW_MS + 10)
    assert isinstance(await resize(rig, 60, proposal(100)), Admitted)
    before = copy.deepcopy(await rig.state())

    def told(offset: int, amount_nano: int, time_ms: int) -> FoldStep:
        return FoldStep(
            "resize",
            offset,
            "gw_1",
            offset + 1,
            "txn_1",
            amount_nano,
            (CHARGE,),
            '{"to":"other"}',
            time_ms + 5_000,
            time_ms,
        )

    assert await rig.hot.apply(ORG, PLACE_OF_HOLDS, [told(0, 55, NOW_MS + 9)], 1) == Applied(1, 0)
    assert await rig.hot.apply(ORG, PLACE_OF_HOLDS, [told(1, 60, NOW_MS + 10)], 2) == Applied(1, 0)
    after = await rig.state()
    assert after.holds == before.holds
    assert await held(rig, proposal(100)) == [60]
    assert await rig.hot.apply(ORG, PLACE_OF_HOLDS, [told(2, 70, NOW_MS + 11)], 3) == Applied(1, 0)
    assert await held(rig, proposal(100)) == [70]
    assert await rig.hot.apply(ORG, PLACE, [settle(0, 7, "txn_1")], 1) == Applied(1, 0)
    standings = await rig.hot.peek(ORG, [proposal(100)])
    assert standings is not None
    assert (standings[0].spent_nano, standings[0].held_nano) == (7, 0)


async def test_a_rebuild_after_resizes_gives_the_same_state(rig: Rig) -> None:
    budgets = (proposal(1_000), proposal(1_000, "bud_2", RING))
    for number, amount_nano in enumerate((40, 50, 60)):
        assert isinstance(await rig.hot.reserve(request_of(amount_nano, *budgets, name=f"txn_{number}")), Admitted)
    await rig.turn_to(NOW_MS + 250)
    assert isinstance(await resize(rig, 75, *budgets, name="txn_0"), Admitted)
    assert isinstance(await resize(rig, 5, *budgets, name="txn_1"), Admitted)
    charges = tuple(each.charge() for each in budgets)
    await rig.hot.apply(ORG, PLACE, [settle(0, 3, "txn_1", charges)], 1)
    before = copy.deepcopy(await rig.state())
    image = fold.image_of(before)
    await rig.go_cold()
    assert await rig.hot.load(ORG, image, "epoch-2")
    after = await rig.state()
    assert (after.windows, after.rings, after.holds, after.due) == (
        before.windows,
        before.rings,
        before.holds,
        before.due,
    )
    twin = OrgState()
    fold.load(twin, image, "epoch-2", NOW_MS + 250)
    assert (twin.windows, twin.rings, twin.holds, twin.due) == (after.windows, after.rings, after.holds, after.due)


async def test_of_many_resizes_at_once_as_many_pass_as_there_is_room_for(valkey_url: str) -> None:
    gateways = [ValkeyHotState(ValkeyConnection(valkey_url)) for _ in range(3)]
    await gateways[0].load(ORG, EMPTY, "e1")
    now_ms = await gateways[0].now_ms()
    day = CalendarSpan(now_ms - 3_600_000, now_ms + 3_600_000)
    # Forty hold 10; each wants 30: there is room for seven more times 20.
    budget = proposal(40 * 10 + 7 * 20 + 19, "bud_team", day)
    for number in range(40):
        assert isinstance(await gateways[0].reserve(request_of(10, budget, name=f"txn_{number}")), Admitted)
    asked = [request_of(30, budget, name=f"txn_{number}") for number in range(40)]
    answers = await asyncio.gather(*(gateways[number % 3].resize(each) for number, each in enumerate(asked)))
    assert sum(isinstance(answer, Admitted) for answer in answers) == 7
    assert sum(isinstance(answer, Refused) for answer in answers) == 33
    state = await read_state(gateways[0]._connection, ORG)
    assert sum(figures.held_nano for figures in state.windows.values()) == 40 * 10 + 7 * 20
    for gateway in gateways:
        await gateway.close()


async def test_a_hold_is_moved_from_one_budget_to_another_in_one_step(rig: Rig) -> None:
    kept, left, new = proposal(100), proposal(100, "bud_2", RING), proposal(60, "bud_3", SessionSpan("s:1/a"))
    assert isinstance(await rig.hot.reserve(request_of(40, kept, left)), Admitted)
    answer = await resize(rig, 55, kept, new)
    assert isinstance(answer, Admitted)
    assert answer.charges == (kept.charge(), new.charge())
    assert [(each.budget_id, each.held_nano) for each in answer.standings] == [("bud_1", 55), ("bud_3", 55)]
    assert await held(rig, kept, left, new) == [55, 0, 55]
    assert (await rig.state()).holds["txn_1"].charges == answer.charges
    assert isinstance(await resize(rig, 61, kept, new), Refused)
    assert await held(rig, kept, left, new) == [55, 0, 55]
    await rig.hot.apply(ORG, PLACE, [settle(0, 7, "txn_1", answer.charges)], 1)
    assert await held(rig, kept, left, new) == [0, 0, 0]


async def test_room_is_needed_only_where_more_is_held_than_before(rig: Rig) -> None:
    """A budget that is over full already keeps what it has; one that the call was not in before needs room for all."""
    assert isinstance(await rig.hot.reserve(request_of(40, proposal(100))), Admitted)
    answer = await resize(rig, 30, proposal(10), proposal(29, "bud_2"))
    assert isinstance(answer, Refused)
    assert [each.budget_id for each in answer.exhausted] == ["bud_2"]
    assert isinstance(await resize(rig, 30, proposal(10), proposal(30, "bud_2")), Admitted)


async def test_a_fixed_span_stays_where_others_are_decided_now(rig: Rig) -> None:
    ring = proposal(100, "bud_2", RING)
    assert isinstance(await rig.hot.reserve(request_of(40, proposal(100), ring)), Admitted)
    await rig.turn_to(NOW_MS + 3_000)
    assert await resize(rig, 50, proposal(100), ring) == StaleWindow(0, NOW_MS + 3_000)
    answer = await resize(rig, 50, FIXED, replace(ring, is_fixed=True))
    assert isinstance(answer, Admitted)
    assert answer.charges == (proposal(100).charge(), ring.charge())
    answer = await resize(rig, 50, FIXED, ring)
    assert isinstance(answer, Admitted)
    assert answer.charges[1].window == RollingSpan(1_000, 60, NOW_MS // 1_000 + 3).key()
    assert await held(rig, proposal(100), ring) == [50, 50]


async def test_a_full_rule_decides_for_a_larger_hold_as_for_a_new_one(rig: Rig) -> None:
    child = proposal(50, "bud_child")
    assert isinstance(await rig.hot.reserve(request_of(40, proposal(100), child)), Admitted)
    asked = (proposal(100), replace(child, full_rule="parent"), replace(proposal(1, "bud_3"), full_rule="pass"))
    answer = await resize(rig, 51, *asked)
    assert isinstance(answer, Admitted)
    assert [each.budget_id for each in answer.charges] == ["bud_1", "bud_3"]
    assert await held(rig, *asked) == [51, 40, 51], "the child holds on what it had"
    refused = await resize(rig, 60, proposal(100), replace(child, full_rule="downgrade"))
    assert isinstance(refused, Refused)
    assert [(each.budget_id, each.held_nano) for each in refused.exhausted] == [("bud_child", 0)]
    assert await held(rig, *asked) == [51, 40, 51]


CHILD = proposal(50, "bud_child", RING)
PAYING = (FIXED, replace(CHILD, is_fixed=True, full_rule="parent"))


async def leave(rig: Rig) -> None:
    """A hold of 40 grows to 60, and its child lets the parent pay."""
    assert isinstance(await rig.hot.reserve(request_of(40, proposal(100), CHILD)), Admitted)
    await rig.turn_to(NOW_MS + 100)
    answer = await resize(rig, 60, *PAYING)
    assert isinstance(answer, Admitted)
    assert answer.charges == (proposal(100).charge(),)
    assert await held(rig, proposal(100), CHILD) == [60, 40]
    assert (await rig.state()).holds["txn_1"].left == ((CHILD.charge(), 40),)
    assert isinstance(await rig.hot.reserve(request_of(11, CHILD, name="txn_2")), Refused), "it may yet be spent there"


async def test_a_child_that_leaves_holds_on_until_the_change_is_folded(rig: Rig) -> None:
    await leave(rig)
    grown = FoldStep("resize", 0, "gw_1", 1, "txn_1", 60, (proposal(100).charge(),), "{}", NOW_MS + 9_000, NOW_MS + 100)
    earlier = replace(grown, amount_nano=45, time_ms=NOW_MS + 99)
    await rig.hot.apply(ORG, PLACE_OF_HOLDS, [earlier], 1)
    assert await held(rig, proposal(100), CHILD) == [60, 40]
    await rig.hot.apply(ORG, PLACE_OF_HOLDS, [replace(grown, offset=1, sequence=2)], 2)
    assert await held(rig, proposal(100), CHILD) == [60, 0]
    assert (await rig.state()).holds["txn_1"].left == ()


async def test_a_call_that_never_heard_that_its_child_has_left_is_spent_there(rig: Rig) -> None:
    await leave(rig)
    charges = (proposal(100).charge(), CHILD.charge())
    await rig.hot.apply(ORG, PLACE, [FoldStep("settle", 0, "gw_1", 1, "txn_1", 35, charges)], 1)
    assert (await spent(rig, proposal(100), CHILD), await held(rig, proposal(100), CHILD)) == ([35, 35], [0, 0])
    assert (await rig.state()).holds["txn_1"].left == ()


async def test_a_hold_that_is_let_go_holds_nothing_of_a_child_that_had_left(rig: Rig) -> None:
    await leave(rig)
    assert await rig.hot.release(ORG, "txn_1")
    assert await held(rig, proposal(100), CHILD) == [0, 0]


async def test_whoever_does_not_know_that_a_child_has_left_changes_the_hold_as_it_was(rig: Rig) -> None:
    await leave(rig)
    as_it_was = [replace(each, full_rule="pass") for each in PAYING]
    answer = await resize(rig, 40, *as_it_was)
    assert isinstance(answer, Admitted)
    assert answer.charges == (proposal(100).charge(), CHILD.charge())
    assert await held(rig, proposal(100), CHILD) == [60, 40]
    assert (await rig.state()).holds["txn_1"].left == ((proposal(100).charge(), 20),)


async def test_a_child_that_has_left_is_asked_again_for_all_or_let_go_of(rig: Rig) -> None:
    await leave(rig)
    assert isinstance(await resize(rig, 70, *PAYING), Admitted)
    assert await held(rig, proposal(100), CHILD) == [70, 40], "it has no room for that either"
    assert isinstance(await resize(rig, 101, *PAYING), Refused)
    assert await held(rig, proposal(100), CHILD) == [70, 40]
    answer = await resize(rig, 80, FIXED, replace(PAYING[1], limit_nano=80))
    assert isinstance(answer, Admitted)
    assert (await held(rig, proposal(100), CHILD), (await rig.state()).holds["txn_1"].left) == ([80, 80], ())
    assert isinstance(await resize(rig, 90, *PAYING), Admitted)
    assert await held(rig, proposal(100), CHILD) == [90, 80]
    assert isinstance(await resize(rig, 90, FIXED), Admitted)
    assert await held(rig, proposal(100), CHILD) == [90, 0], "who no longer names it knows that it has left"


async def test_an_event_moves_the_charges_of_a_hold_whose_change_was_lost(rig: Rig) -> None:
    other = proposal(100, "bud_2", RING)
    assert isinstance(await rig.hot.reserve(request_of(40, proposal(100))), Admitted)
    moved = FoldStep("resize", 0, "gw_1", 1, "txn_1", 60, (other.charge(),), "{}", NOW_MS + 9_000, NOW_MS + 1)
    assert await rig.hot.apply(ORG, PLACE_OF_HOLDS, [moved], 1) == Applied(1, 0)
    assert await held(rig, proposal(100), other) == [0, 60]
    assert (await rig.state()).holds["txn_1"].charges == (other.charge(),)


async def test_what_an_expiry_booked_is_taken_back_from_where_it_was_booked(rig: Rig) -> None:
    """The reaper ended the hold as it was; the settlement knows of a change that the hot state had lost."""
    other = proposal(100, "bud_2", RING)
    assert isinstance(await rig.hot.reserve(request_of(40, proposal(100))), Admitted)
    booked = FoldStep("expire", 0, "expiry:txn_1", 1, "txn_1", 40, (CHARGE,))
    settled = FoldStep("settle", 1, "gw_1", 1, "txn_1", 25, (other.charge(),))
    assert await rig.hot.apply(ORG, PLACE, [booked], 1) == Applied(1, 0)
    assert await spent(rig, proposal(100), other) == [40, 0]
    assert await rig.hot.apply(ORG, PLACE, [settled], 2) == Applied(1, 0)
    assert await spent(rig, proposal(100), other) == [0, 25]
    assert await held(rig, proposal(100), other) == [0, 0]


async def test_a_window_that_is_forgotten_has_no_room_to_grow(rig: Rig) -> None:
    """A hold may live for long after its window, whose figures are gone then: nobody knows what it had spent."""
    watched = replace(proposal(100, "bud_2"), is_fixed=True, full_rule="pass")
    assert isinstance(await rig.hot.reserve(request_of(40, proposal(100), proposal(100, "bud_2"))), Admitted)
    await rig.turn_to(SPAN.end_ms)
    over = await resize(rig, 101, FIXED, watched)
    assert isinstance(over, Refused)
    assert over.room_at_ms is None, "the window is over, and what is spent in it does not leave it"
    await rig.turn_to(SPAN.end_ms + WINDOW_GRACE_MS - 1)
    assert isinstance(await resize(rig, 50, FIXED, watched), Admitted)
    await rig.turn_to(SPAN.end_ms + WINDOW_GRACE_MS)
    refused = await resize(rig, 51, FIXED, watched)
    assert isinstance(refused, Refused)
    assert [(each.budget_id, each.remaining_nano, each.spent_nano) for each in refused.exhausted] == [("bud_1", 0, 100)]
    assert refused.room_at_ms is None
    for amount_nano in (50, 40, 0):
        answer = await resize(rig, amount_nano, FIXED, watched)
        assert isinstance(answer, Admitted)
        assert [each.remaining_nano for each in answer.standings] == [0, 0]
    assert isinstance(await resize(rig, 1, watched), Admitted)
