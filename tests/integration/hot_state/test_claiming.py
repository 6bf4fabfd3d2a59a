"""What a reaper is handed: what is due, earliest first, and nothing else is so much as read."""

import re
from dataclasses import replace

from services.adapters.valkey import ValkeyHotState
from services.adapters.valkey_connection import ValkeyConnection
from services.core.hotstate import CLAIM_MS, Admitted, Applied, FoldStep
from services.core.windows import CalendarSpan
from tests.support.hot_rig import CHARGE, EMPTY, NOW_MS, ORG, PLACE, Rig, proposal, request_of, settle


async def claimed(rig: Rig, limit: int) -> list[str]:
    return [each.reservation_id for each in await rig.hot.claim_due(ORG, limit)]


async def test_the_earliest_come_first_those_of_one_instant_by_name_and_no_more_than_asked_for(rig: Rig) -> None:
    for later_ms, name in ((2, "txn_b"), (0, "txn_d"), (2, "txn_a"), (1, "txn_c"), (900, "txn_e")):
        await rig.turn_to(NOW_MS + later_ms)
        await rig.hot.reserve(request_of(1, proposal(100), name=name))
    await rig.turn_to(NOW_MS + 5_002)
    assert await claimed(rig, 0) == []
    assert await claimed(rig, 3) == ["txn_d", "txn_c", "txn_a"]
    assert await claimed(rig, 3) == ["txn_b"], "those that are claimed stand in nobody's way"
    await rig.turn_to(NOW_MS + 5_900)
    assert await claimed(rig, 3) == ["txn_e"]
    await rig.turn_to(NOW_MS + 5_002 + CLAIM_MS)
    assert await claimed(rig, 10) == ["txn_a", "txn_b", "txn_c", "txn_d"]


async def test_one_that_has_ended_is_handed_to_nobody(rig: Rig) -> None:
    for name in ("txn_x", "txn_2", "txn_3"):
        await rig.hot.reserve(request_of(1, proposal(100), name=name))
    await rig.hot.apply(ORG, PLACE, [settle(0, 1)], 1)
    await rig.hot.release(ORG, "txn_2")
    await rig.turn_to(NOW_MS + 5_000)
    assert await claimed(rig, 10) == ["txn_3"]


async def test_a_change_that_is_folded_late_takes_no_hold_from_its_reaper(rig: Rig) -> None:
    fixed = replace(proposal(100), is_fixed=True)
    assert isinstance(await rig.hot.reserve(request_of(40, proposal(100))), Admitted)
    await rig.turn_to(NOW_MS + 5_000)
    assert await claimed(rig, 1) == ["txn_1"]
    late = FoldStep("resize", 0, "gw_1", 1, "txn_1", 60, (CHARGE,), "{}", NOW_MS + 900_000, NOW_MS + 1)
    assert await rig.hot.apply(ORG, PLACE, [late], 1) == Applied(1, 0)
    assert await rig.hot.resize(request_of(70, fixed)) is None, "its expiry may be in the log by now"
    state = await rig.state()
    assert (state.holds["txn_1"].amount_nano, state.due) == (60, {"txn_1": NOW_MS + 5_000 + CLAIM_MS})


async def test_holds_that_are_not_due_cost_nothing(connection: ValkeyConnection) -> None:
    hot = ValkeyHotState(connection)
    assert await hot.load(ORG, EMPTY, "epoch-1")
    now_ms = await hot.now_ms()
    day = proposal(10**12, span=CalendarSpan(now_ms - 3_600_000, now_ms + 3_600_000))
    for number in range(50):
        assert isinstance(await hot.reserve(request_of(1, day, name=f"txn_{number}")), Admitted)
    assert await hot.claim_due(ORG, 500) == ()
    await connection.execute("CONFIG", "RESETSTAT")
    assert await hot.claim_due(ORG, 500) == ()
    told = (await connection.execute("INFO", "commandstats")).decode()
    calls = dict(re.findall(r"cmdstat_([a-z|]+):calls=(\d+)", told))
    assert "hmget" not in calls
    assert sum(map(int, calls.values())) < 10, calls
