"""Money stays exact to the nano-dollar at any size, for Lua has only doubles."""

from dataclasses import replace

import pytest

from services.adapters.valkey import ValkeyHotState
from services.adapters.valkey_connection import ValkeyConnection
from services.core.hotstate import (
    MAX_FIGURE,
    Admitted,
    Applied,
    FoldStep,
    Refused,
)
from services.core.windows import CalendarSpan, RollingSpan
from tests.support.hot_rig import CHARGE, EMPTY, NOW_MS, ORG, PLACE, SPAN, Rig, proposal, request_of, settle

LARGE = (10**15 - 1, 10**15, 2**53 - 1, 2**53, 2**53 + 1, 10**18 + 7, 9 * 10**18 + 1, MAX_FIGURE - 2)


@pytest.mark.parametrize("limit_nano", LARGE)
@pytest.mark.parametrize("share", [0, 1, 3])
async def test_room_is_exact_to_the_nano_dollar_at_any_size(rig: Rig, limit_nano: int, share: int) -> None:
    spent_nano = limit_nano * share // 7
    held_nano = limit_nano // 3
    room_nano = limit_nano - spent_nano - held_nano
    full = proposal(limit_nano)
    await rig.hot.apply(ORG, PLACE, [settle(0, spent_nano)], 1)
    held = await rig.hot.reserve(request_of(held_nano, proposal(MAX_FIGURE), name="txn_held"))
    assert isinstance(held, Admitted)
    refused = await rig.hot.reserve(request_of(room_nano + 1, full))
    assert isinstance(refused, Refused)
    assert refused.exhausted[0].remaining_nano == room_nano
    admitted = await rig.hot.reserve(request_of(room_nano, full))
    assert isinstance(admitted, Admitted)
    assert admitted.standings[0].remaining_nano == 0
    assert admitted.standings[0].spent_nano == spent_nano
    assert admitted.standings[0].held_nano == held_nano + room_nano


@pytest.mark.parametrize("span", [SPAN, RollingSpan(60_000, 60, NOW_MS // 60_000)])
async def test_large_amounts_come_back_out_exactly(rig: Rig, span: CalendarSpan | RollingSpan) -> None:
    budget = proposal(MAX_FIGURE, span=span)
    amount_nano, cost_nano = 2**62 + 1, 2**61 + 1
    admitted = await rig.hot.reserve(request_of(amount_nano, budget))
    assert isinstance(admitted, Admitted)
    await rig.hot.apply(ORG, PLACE, [replace(settle(0, cost_nano, "txn_1"), charges=admitted.charges)], 1)
    standings = await rig.hot.peek(ORG, [budget])
    assert standings is not None
    assert (standings[0].spent_nano, standings[0].held_nano) == (cost_nano, 0)


async def test_a_sum_past_64_bits_leaves_the_budget_full(rig: Rig) -> None:
    steps = [settle(0, 2**62), settle(1, 2**62, "txn_y"), settle(2, 2**70, "txn_z")]
    assert await rig.hot.apply(ORG, PLACE, steps, 3) == Applied(3, 0)
    standings = await rig.hot.peek(ORG, [proposal(100)])
    assert standings is not None
    assert standings[0].spent_nano == MAX_FIGURE
    assert isinstance(await rig.hot.reserve(request_of(0, proposal(MAX_FIGURE - 1))), Refused)


@pytest.mark.parametrize("spent_nano", [-1, -(10**9), -(10**9) - 1, -(2**53) - 1, -9 * 10**18])
async def test_room_is_exact_below_zero_too(connection: ValkeyConnection, spent_nano: int) -> None:
    hot = ValkeyHotState(connection)
    await hot.load(ORG, EMPTY, "e1")
    now_ms = await hot.now_ms()
    span = CalendarSpan(now_ms - 60_000, now_ms + 60_000)
    await connection.execute("HSET", f"{{{ORG}}}:b:bud_1:{span.key()}", "spent", spent_nano)
    limit_nano = 10**9 + 1
    refused = await hot.reserve(request_of(limit_nano - spent_nano + 1, proposal(limit_nano, span=span)))
    assert isinstance(refused, Refused)
    assert refused.exhausted[0].remaining_nano == limit_nano - spent_nano
    assert isinstance(await hot.reserve(request_of(limit_nano - spent_nano, proposal(limit_nano, span=span))), Admitted)


async def test_what_would_fall_below_64_bits_is_not_taken_off(connection: ValkeyConnection) -> None:
    hot = ValkeyHotState(connection)
    await hot.load(ORG, EMPTY, "e1")
    await hot.apply(ORG, PLACE, [FoldStep("expire", 0, "expiry:txn_x", 1, "txn_x", 5, (CHARGE,))], 1)
    key = f"{{{ORG}}}:b:bud_1:{SPAN.key()}"
    await connection.execute("HSET", key, "spent", -(2**63))
    assert await hot.apply(ORG, PLACE, [settle(1, 0)], 2) == Applied(1, 0)
    assert await connection.execute("HGET", key, "spent") == b"%d" % -(2**63)
