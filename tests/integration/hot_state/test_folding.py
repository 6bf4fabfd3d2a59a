"""Events into spend: once each, and only into figures that still count."""

from dataclasses import replace

import pytest

from services.adapters.valkey import MAX_STEPS, ValkeyHotState
from services.adapters.valkey_connection import ValkeyConnection
from services.core.budgets import Charge, Proposal
from services.core.hotstate import (
    CLOCK_MARGIN_MS,
    TOLD_AGAIN_MS,
    TOMBSTONE_MS,
    WINDOW_GRACE_MS,
    Admitted,
    Applied,
    Behind,
    Cold,
    FoldStep,
)
from services.core.windows import CalendarSpan, RollingSpan
from tests.support.hot_rig import EMPTY, NOW_MS, ORG, PLACE, SPAN, Rig, proposal, request_of, settle


async def test_a_late_settlement_corrects_what_an_expiry_booked(rig: Rig) -> None:
    ring = proposal(100, "bud_2", RollingSpan(1_000, 60, 0))
    admitted = await rig.hot.reserve(request_of(60, proposal(100), ring))
    assert isinstance(admitted, Admitted)
    expiry = FoldStep("expire", 0, "expiry:txn_1", 1, "txn_1", 60, admitted.charges)
    assert await rig.hot.apply(ORG, PLACE, [expiry, replace(expiry, offset=1)], 2) == Applied(2, 0)
    standings = await rig.hot.peek(ORG, [proposal(100), ring])
    assert standings is not None
    assert [(each.spent_nano, each.held_nano) for each in standings] == [(60, 0)] * 2
    assert await rig.hot.apply(ORG, PLACE, [settle(2, 45, "txn_1", admitted.charges)], 3) == Applied(1, 0)
    standings = await rig.hot.peek(ORG, [proposal(100), ring])
    assert standings is not None
    assert [(each.spent_nano, each.held_nano) for each in standings] == [(45, 0)] * 2


@pytest.mark.parametrize("is_claimed", [False, True])
async def test_a_hold_that_was_handed_out_is_remembered_while_it_could_matter(rig: Rig, is_claimed: bool) -> None:
    admitted = await rig.hot.reserve(request_of(60, proposal(100)))
    assert isinstance(admitted, Admitted)
    await rig.turn_to(NOW_MS + 5_000)
    if is_claimed:
        await rig.hot.claim_due(ORG, 1)
    await rig.hot.apply(ORG, PLACE, [settle(0, 45, "txn_1", admitted.charges)], 1)
    hold = (await rig.state()).holds["txn_1"]
    assert hold.forget_at_ms == NOW_MS + 5_000 + (TOLD_AGAIN_MS if is_claimed else TOMBSTONE_MS)


@pytest.mark.parametrize("is_of_hold", [True, False], ids=["held", "ended"])
async def test_a_hold_that_was_handed_out_is_remembered_for_the_longest_window_of_it_or_of_its_end(
    rig: Rig, is_of_hold: bool
) -> None:
    month = proposal(100, "bud_2", CalendarSpan(NOW_MS, NOW_MS + 30 * 86_400_000))
    held, ended = (month, proposal(100)) if is_of_hold else (proposal(100), month)
    assert isinstance(await rig.hot.reserve(request_of(60, held)), Admitted)
    await rig.turn_to(NOW_MS + 5_000)
    await rig.hot.claim_due(ORG, 1)
    await rig.hot.apply(ORG, PLACE, [settle(0, 45, "txn_1", (ended.charge(),))], 1)
    assert (await rig.state()).holds["txn_1"].forget_at_ms == NOW_MS + 30 * 86_400_000 + WINDOW_GRACE_MS


async def test_a_window_takes_settlements_until_its_grace_is_over(rig: Rig) -> None:
    await rig.turn_to(SPAN.end_ms + WINDOW_GRACE_MS - 1)
    await rig.hot.apply(ORG, PLACE, [settle(0, 5)], 1)
    await rig.turn_to(SPAN.end_ms + WINDOW_GRACE_MS)
    assert await rig.hot.apply(ORG, PLACE, [settle(1, 5, "txn_y")], 2) == Applied(1, 0)
    standings = await rig.hot.peek(ORG, [proposal(100)])
    assert standings is not None
    assert standings[0].spent_nano == 5


async def test_a_bucket_counts_until_it_has_left_its_ring(rig: Rig) -> None:
    span = RollingSpan(1_000, 60, NOW_MS // 1_000)
    charge = (Charge("bud_1", "team:ml", span.key()),)
    await rig.hot.apply(ORG, PLACE, [settle(0, 5, charges=charge)], 1)
    for off_ms, spent_nano in ((60_999, 5), (61_000, 0), (59_000, 0)):  # back: a ring never turns back
        await rig.turn_to(NOW_MS + off_ms)
        if off_ms != 59_000:
            standings = await rig.hot.peek(ORG, [proposal(100, span=span)])
            assert standings is not None
            assert standings[0].spent_nano == spent_nano
        admitted = await rig.hot.reserve(request_of(1, proposal(100, span=span), name=f"txn_{off_ms}"))
        assert isinstance(admitted, Admitted)
        assert admitted.standings[0].spent_nano == spent_nano
    await rig.hot.apply(ORG, PLACE, [settle(1, 5, "txn_y", charges=charge)], 2)
    standings = await rig.hot.peek(ORG, [proposal(100, span=span)])
    assert standings is not None
    assert standings[0].spent_nano == 0


async def test_a_large_batch_is_folded_whole_and_once(rig: Rig) -> None:
    count = 2 * MAX_STEPS + 3
    steps = [settle(3 * number, 1, f"txn_{number}") for number in range(count)]
    assert await rig.hot.apply(ORG, PLACE, steps, 3 * count) == Applied(count, 0)
    assert await rig.hot.apply(ORG, PLACE, steps, 3 * count) == Applied(0, count)
    standings = await rig.hot.peek(ORG, [proposal(10_000)])
    assert standings is not None
    assert standings[0].spent_nano == count


async def test_what_is_published_twice_counts_once_within_a_batch_too(rig: Rig) -> None:
    steps = [settle(0, 5), replace(settle(1, 7, "txn_y"), sequence=1), settle(2, 9, "txn_z")]
    assert await rig.hot.apply(ORG, PLACE, steps, 3) == Applied(2, 1)
    standings = await rig.hot.peek(ORG, [proposal(100)])
    assert standings is not None
    assert standings[0].spent_nano == 14


async def test_a_batch_without_an_orgs_events_moves_its_fence(rig: Rig) -> None:
    assert await rig.hot.apply(ORG, PLACE, [], 7) == Applied(0, 0)
    assert await rig.hot.apply(ORG, PLACE, [settle(6, 5)], 7) == Applied(0, 1)
    assert await rig.hot.apply(ORG, PLACE, [settle(7, 5)], 8) == Applied(1, 0)


@pytest.mark.parametrize(
    ("admitted_after_ms", "folded_after_ms", "held_nano"),
    [
        (CLOCK_MARGIN_MS, TOMBSTONE_MS, 0),
        (CLOCK_MARGIN_MS, TOMBSTONE_MS - 1, 60),
        (CLOCK_MARGIN_MS - 1, TOMBSTONE_MS, 60),
    ],
    ids=["ended and forgotten", "lost by the server", "admitted before the org was loaded"],
)
async def test_a_late_reservation_is_restored_unless_its_hold_may_be_forgotten(
    rig: Rig, admitted_after_ms: int, folded_after_ms: int, held_nano: int
) -> None:
    budget = proposal(100, span=CalendarSpan(SPAN.start_ms, NOW_MS + 2 * TOMBSTONE_MS))
    charges = (budget.charge(),)
    await rig.turn_to(NOW_MS + folded_after_ms)
    late = FoldStep("restore", 0, "gw_1", 1, "txn_1", 60, charges, "{}", NOW_MS, NOW_MS + admitted_after_ms)
    assert await rig.hot.apply(ORG, PLACE, [late], 1) == Applied(1, 0)
    standings = await rig.hot.peek(ORG, [budget])
    assert standings is not None
    assert standings[0].held_nano == held_nano
    assert len(await rig.hot.claim_due(ORG, 1)) == (held_nano > 0)


async def test_under_an_epoch_of_an_earlier_version_reservations_are_restored(connection: ValkeyConnection) -> None:
    hot = ValkeyHotState(connection)
    await connection.execute("SET", f"{{{ORG}}}:epoch", "01K2")
    assert await hot.epochs([ORG]) == {ORG: "01K2"}
    late = FoldStep("restore", 0, "gw_1", 1, "txn_1", 60, (), "{}", 9, 1_700_000_000_000)
    assert await hot.apply(ORG, PLACE, [late], 1) == Applied(1, 0)
    assert len(await hot.claim_due(ORG, 1)) == 1


async def test_odd_names_are_only_names(rig: Rig) -> None:
    odd = 'b"u:d\n{x}*é'
    charges = (Charge(odd, odd, SPAN.key()), Charge(odd, odd, f"r:1000:60:{NOW_MS // 1000}"))
    restore = FoldStep("restore", 0, odd, 1, odd, 9, charges, odd, NOW_MS - 1, NOW_MS - 2)
    await rig.hot.load(odd, EMPTY, "e1")
    assert await rig.hot.apply(odd, PLACE, [restore], 1) == Applied(1, 0)
    (due,) = await rig.hot.claim_due(odd, 1)
    assert (due.reservation_id, due.charges, due.context) == (odd, charges, odd)
    assert await rig.hot.apply(odd, PLACE, [settle(1, 4, odd, charges=())], 2) == Applied(1, 0)
    budgets = [Proposal(odd, odd, SPAN, 10), Proposal(odd, odd, RollingSpan(1_000, 60, 0), 10)]
    standings = await rig.hot.peek(odd, budgets)
    assert standings is not None
    assert [each.held_nano for each in standings] == [0, 0], "the hold's own charges end with it"


async def test_a_batch_that_would_skip_what_was_lost_is_refused(rig: Rig) -> None:
    await rig.hot.apply(ORG, PLACE, [settle(0, 5)], 3)
    before = await rig.state()
    assert await rig.hot.apply(ORG, PLACE, [settle(4, 5, "txn_y")], 5, None, 4) == Behind()
    assert await rig.state() == before
    assert await rig.hot.apply(ORG, PLACE, [settle(4, 5, "txn_y")], 5, None, 3) == Applied(1, 0)
    await rig.go_cold()
    assert await rig.hot.apply(ORG, PLACE, [], 9, None, 8) == Cold()


async def test_many_steps_each_go_on_from_the_ones_before(rig: Rig) -> None:
    await rig.hot.apply(ORG, PLACE, [], 7)
    steps = [settle(7 + number, 1, f"txn_{number}") for number in range(MAX_STEPS + 1)]
    assert await rig.hot.apply(ORG, PLACE, steps, 7 + len(steps), None, 7) == Applied(len(steps), 0)
