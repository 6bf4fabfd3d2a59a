"""Holding, releasing and claiming, at their edges and all at once."""

import asyncio

import pytest

from services.adapters.valkey import ValkeyHotState
from services.adapters.valkey_connection import ValkeyConnection
from services.core.hotstate import (
    CLAIM_MS,
    Admitted,
    Cold,
    Refused,
    StaleWindow,
)
from services.core.windows import CalendarSpan, RollingSpan
from tests.support.hot_rig import EMPTY, NOW_MS, ORG, PLACE, Rig, proposal, request_of, settle


async def test_of_many_at_once_exactly_as_many_as_fit_are_held(valkey_url: str) -> None:
    gateways = [ValkeyHotState(ValkeyConnection(valkey_url)) for _ in range(3)]
    await gateways[0].load(ORG, EMPTY, "e1")
    now_ms = await gateways[0].now_ms()
    day = CalendarSpan(now_ms - 3_600_000, now_ms + 3_600_000)
    cost_nano, fitting = 1_234_567, 137
    limit_nano = cost_nano * fitting + cost_nano - 1
    budgets = [proposal(10 * limit_nano, "bud_org", day), proposal(limit_nano, "bud_team", day),
               proposal(10 * limit_nano, "bud_agent", RollingSpan(60_000, 60, now_ms // 60_000))]  # fmt: skip
    is_over = False

    async def sample() -> int:
        count = 0
        while not is_over:
            standings = await gateways[0].peek(ORG, budgets)
            assert standings is not None
            assert all(each.remaining_nano >= 0 for each in standings)
            count += 1
        return count

    sampling = asyncio.create_task(sample())
    requests = [request_of(cost_nano, *budgets, name=f"txn_{number}") for number in range(300)]
    answers = await asyncio.gather(*(gateways[number % 3].reserve(each) for number, each in enumerate(requests)))
    is_over = True
    assert await sampling > 0
    assert sum(isinstance(answer, Admitted) for answer in answers) == fitting
    assert sum(isinstance(answer, Refused) for answer in answers) == 300 - fitting
    standings = await gateways[0].peek(ORG, budgets)
    assert standings is not None
    assert [each.held_nano for each in standings] == [cost_nano * fitting] * 3
    for gateway in gateways:
        await gateway.close()


@pytest.mark.parametrize(("off_ms", "is_stale"), [(-1_001, True), (-1_000, False), (999, False), (1_000, True)])
async def test_only_the_window_of_the_hot_states_clock_is_current(rig: Rig, off_ms: int, is_stale: bool) -> None:
    await rig.turn_to(NOW_MS + off_ms)
    answer = await rig.hot.reserve(request_of(1, proposal(100)))
    assert isinstance(answer, StaleWindow if is_stale else Admitted)
    assert answer.now_ms == NOW_MS + off_ms


async def test_the_same_reservation_is_answered_alike_held_settled_or_full(rig: Rig) -> None:
    ring = proposal(100, "bud_2", RollingSpan(1_000, 60, 0))
    first = await rig.hot.reserve(request_of(60, proposal(100), ring))
    assert isinstance(first, Admitted)
    await rig.turn_to(NOW_MS + 500)
    for expected_held_nano in (60, 0):
        again = await rig.hot.reserve(request_of(60, proposal(100), ring))
        assert isinstance(again, Admitted)
        assert (again.charges, again.expires_at_ms) == (first.charges, first.expires_at_ms)
        assert [each.held_nano for each in again.standings] == [expected_held_nano] * 2
        await rig.hot.apply(ORG, PLACE, [settle(0, 60, "txn_1", first.charges)], 1)


async def test_a_hold_that_a_reaper_has_keeps_its_room_until_its_expiry_is_folded(rig: Rig) -> None:
    held = await rig.hot.reserve(request_of(60, proposal(100)))
    assert isinstance(held, Admitted)
    await rig.turn_to(held.expires_at_ms)
    assert len(await rig.hot.claim_due(ORG, 10)) == 1
    assert not await rig.hot.release(ORG, "txn_1")
    standings = await rig.hot.peek(ORG, [proposal(100)])
    assert standings is not None
    assert [each.held_nano for each in standings] == [60]


async def test_a_release_gives_everything_back_once(rig: Rig) -> None:
    ring = proposal(100, "bud_2", RollingSpan(1_000, 60, 0))
    await rig.hot.reserve(request_of(60, proposal(100), ring))
    assert await rig.hot.release(ORG, "txn_1")
    assert not await rig.hot.release(ORG, "txn_1")
    assert not await rig.hot.release(ORG, "txn_unknown")
    standings = await rig.hot.peek(ORG, [proposal(100), ring])
    assert standings is not None
    assert [each.held_nano for each in standings] == [0, 0]


async def test_due_holds_are_handed_out_at_their_instant_and_again_after_a_while(rig: Rig) -> None:
    admitted = await rig.hot.reserve(request_of(60, proposal(100)))
    assert isinstance(admitted, Admitted)
    await rig.turn_to(NOW_MS + 4_999)
    assert await rig.hot.claim_due(ORG, 10) == ()
    await rig.turn_to(NOW_MS + 5_000)
    (due,) = await rig.hot.claim_due(ORG, 10)
    assert (due.reservation_id, due.amount_nano, due.charges) == ("txn_1", 60, admitted.charges)
    assert (due.context, due.admitted_at_ms) == ('{"é": "\\n"}', NOW_MS)
    await rig.turn_to(NOW_MS + 5_000 + CLAIM_MS - 1)
    assert await rig.hot.claim_due(ORG, 10) == ()
    await rig.turn_to(NOW_MS + 5_000 + CLAIM_MS)
    assert len(await rig.hot.claim_due(ORG, 10)) == 1


async def test_an_org_that_went_cold_answers_nothing_of_what_is_left(rig: Rig) -> None:
    await rig.hot.reserve(request_of(1, proposal(100)))
    await rig.turn_to(NOW_MS + 5_000)
    await rig.go_cold()
    assert await rig.hot.reserve(request_of(1, proposal(100))) == Cold()
    assert await rig.hot.claim_due(ORG, 10) == ()
    assert await rig.hot.peek(ORG, [proposal(100)]) is None
    assert await rig.hot.apply(ORG, PLACE, [settle(0, 1)], 1) == Cold()
    assert await rig.hot.load(ORG, EMPTY, "epoch-2")
    assert await rig.hot.claim_due(ORG, 10) == ()


async def test_a_cold_org_answers_nothing(rig: Rig) -> None:
    assert await rig.hot.reserve(request_of(1, proposal(100), org="cold")) == Cold()
    assert await rig.hot.apply("cold", PLACE, [settle(0, 1)], 1) == Cold()
    assert await rig.hot.peek("cold", [proposal(100)]) is None
    assert await rig.hot.claim_due("cold", 10) == ()
    assert await rig.hot.epochs([ORG, "cold"]) == {ORG: "epoch-1", "cold": None}
