"""Bringing an org back, and what a server keeps beside orgs."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from services.adapters.valkey import UnsafeHotStateError, ValkeyDirectory, ValkeyHotState
from services.adapters.valkey_connection import MAX_WAITING, ValkeyConnection
from services.core.hotstate import (
    CORRECTION_MS,
    TOMBSTONE_MS,
    Admitted,
    Applied,
    Hold,
    OrgImage,
)
from services.core.ports import TopicPartition, UnavailableError
from services.core.windows import CalendarSpan, RollingSpan
from tests.support.hot_rig import CHARGE, EMPTY, NOW_MS, ORG, PLACE, SPAN, Rig, proposal, request_of, settle
from tests.support.hot_state import read_state
from tests.support.valkey import ValkeyServer, free_port


async def test_an_image_is_loaded_once_with_its_epoch(rig: Rig) -> None:
    ring = f"r:1000:60:{NOW_MS // 1000}"
    held = Hold(7, (CHARGE,), "{}", NOW_MS + 9, admitted_at_ms=NOW_MS - 9)
    settled = Hold(5, (CHARGE,), "{}", NOW_MS, phase="settled", booked_nano=3)
    expired = Hold(5, (CHARGE,), "{}", NOW_MS, phase="expired", booked_nano=5)
    image = OrgImage(
        {("bud_1", SPAN.key()): 2**60 + 1, ("bud_2", ring): 11},
        {"txn_held": held, "txn_settled": settled, "txn_expired": expired},
        {(PLACE.topic, PLACE.partition): 40},
        {(PLACE.topic, PLACE.partition, "gw_1"): 17},
    )
    assert await rig.hot.load("other", image, "epoch-9")
    assert not await rig.hot.load("other", EMPTY, "epoch-10")
    assert await rig.hot.epochs(["other"]) == {"other": "epoch-9"}
    standings = await rig.hot.peek("other", [proposal(2**62), proposal(100, "bud_2", RollingSpan(1_000, 60, 0))])
    assert standings is not None
    assert [(each.spent_nano, each.held_nano) for each in standings] == [(2**60 + 1, 7), (11, 0)]
    assert await rig.hot.apply("other", PLACE, [settle(39, 5), settle(41, 5, "txn_y")], 42) == Applied(1, 1)
    assert await rig.hot.apply("other", PLACE, [settle(50, 9, "txn_settled")], 51) == Applied(1, 0)
    again = await rig.hot.peek("other", [proposal(2**62)])
    assert again is not None
    assert again[0].spent_nano == 2**60 + 6, "an ended hold stays ended"
    holds = (await rig.state("other")).holds
    assert holds["txn_settled"].forget_at_ms == NOW_MS + TOMBSTONE_MS
    assert holds["txn_expired"].forget_at_ms == NOW_MS + CORRECTION_MS


async def test_of_several_that_load_at_once_one_does(valkey_url: str) -> None:
    aggregators = [ValkeyHotState(ValkeyConnection(valkey_url)) for _ in range(4)]
    loads = [
        each.load(ORG, OrgImage({("bud_1", SPAN.key()): 5}, {}, {}, {}), str(n)) for n, each in enumerate(aggregators)
    ]
    loaded = await asyncio.gather(*loads)
    assert loaded.count(True) == 1
    assert await aggregators[0].epochs([ORG]) == {ORG: str(loaded.index(True))}
    standings = await aggregators[0].peek(ORG, [proposal(100)])
    assert standings is not None
    assert standings[0].spent_nano == 5
    for each in aggregators:
        await each.close()


async def test_loading_clears_what_was_left_of_this_org_alone(connection: ValkeyConnection) -> None:
    hot, directory = ValkeyHotState(connection), ValkeyDirectory(connection)
    orgs = ("*", "a*", "abc", "a[b]c", "a\\bc", "a?c")
    for org in orgs:
        await hot.load(org, EMPTY, "e1")
        await directory.publish_org(org, 3, b"{}", {}, [])
        await hot.apply(org, PLACE, [settle(0, 5)], 1)
    states = {org: await read_state(connection, org) for org in ("abc",)}
    for org in orgs:
        if org != "abc":
            await connection.execute("DEL", f"{{{org}}}:epoch")
            assert await hot.load(org, EMPTY, "e2")
            left = await connection.execute("EXISTS", f"{{{org}}}:f:{PLACE.topic}:0", f"{{{org}}}:h:txn_x")
            assert left == 0, org
            assert await directory.snapshot(org) == b"{}", "its configuration is control's"
    assert {org: await read_state(connection, org) for org in ("abc",)} == states


async def test_the_fold_fence_moves_forward_only(rig: Rig) -> None:
    other = TopicPartition(PLACE.topic, 1)
    assert await rig.hot.fold_fences([PLACE, other]) == {PLACE: None, other: None}
    for next_offset, expected in ((0, 0), (10, 10), (9, 10), (11, 11)):
        await rig.hot.move_fold_fence(PLACE, next_offset)
        assert await rig.hot.fold_fences([PLACE]) == {PLACE: expected}


async def test_the_fold_fence_waits_for_the_orgs_that_are_warm(rig: Rig) -> None:
    assert await rig.hot.org_fences([ORG, "cold"], PLACE) == {ORG: 0, "cold": None}
    await rig.hot.apply(ORG, PLACE, [], 7)
    assert await rig.hot.org_fences(["cold", ORG], PLACE) == {"cold": None, ORG: 7}
    assert not await rig.hot.move_fold_fence(PLACE, 8, 0, ["cold", ORG])
    assert await rig.hot.fold_fences([PLACE]) == {PLACE: None}
    assert await rig.hot.move_fold_fence(PLACE, 7, 0, ["cold", ORG])
    assert not await rig.hot.move_fold_fence(PLACE, 8, 8, [])
    assert await rig.hot.fold_fences([PLACE]) == {PLACE: 7}


async def test_alarms_are_kept_until_they_are_cleared(rig: Rig) -> None:
    assert await rig.hot.alarms() == {}
    await rig.hot.set_alarm("fold_gap:t:0", "expected 5")
    await rig.hot.set_alarm("fold_gap:t:0", "expected 6")
    assert await rig.hot.alarms() == {"fold_gap:t:0": "expected 6"}
    await rig.hot.clear_alarm("fold_gap:t:0")
    await rig.hot.clear_alarm("never set")
    assert await rig.hot.alarms() == {}


async def test_the_clock_is_the_servers(connection: ValkeyConnection) -> None:
    before_ms = time.time_ns() // 1_000_000
    now_ms = await ValkeyHotState(connection).now_ms()
    pulse = await ValkeyDirectory(connection).pulse()
    assert before_ms - 1 <= now_ms <= pulse.now_ms <= time.time_ns() // 1_000_000 + 1


async def test_a_server_without_memory_does_nothing_halfway(tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path / "valkey")
    server.start()
    connection = ValkeyConnection(server.url)
    hot = ValkeyHotState(connection)
    await hot.load(ORG, EMPTY, "e1")
    now_ms = await hot.now_ms()
    budget = proposal(100, span=CalendarSpan(now_ms - 60_000, now_ms + 60_000))
    admitted = await hot.reserve(request_of(60, budget))
    assert isinstance(admitted, Admitted)
    before = await read_state(connection, ORG)
    await connection.execute("CONFIG", "SET", "maxmemory", 1)
    for attempt in (
        hot.reserve(request_of(1, budget, name="txn_2")),
        hot.apply(ORG, PLACE, [settle(0, 45, "txn_1", admitted.charges)], 1),
        hot.release(ORG, "txn_1"),
    ):
        with pytest.raises(UnavailableError, match="OOM"):
            await attempt
    assert await read_state(connection, ORG) == before
    await connection.execute("CONFIG", "SET", "maxmemory", 0)
    assert await hot.apply(ORG, PLACE, [settle(0, 45, "txn_1", admitted.charges)], 1) == Applied(1, 0)
    await connection.close()
    server.stop()


@pytest.mark.parametrize(
    ("policy", "limit"), [("noeviction", 0), ("noeviction", 2**30), ("allkeys-lru", 0), ("volatile-ttl", 0)]
)
async def test_a_server_that_evicts_nothing_is_safe(tmp_path: Path, policy: str, limit: int) -> None:
    with ValkeyServer(tmp_path / "valkey") as server:
        connection = ValkeyConnection(server.url)
        await connection.execute("CONFIG", "SET", "maxmemory-policy", policy, "maxmemory", limit)
        await ValkeyHotState(connection).check_safe()
        await connection.close()


async def test_a_server_that_may_evict_is_refused(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path / "valkey") as server:
        connection = ValkeyConnection(server.url)
        await connection.execute("CONFIG", "SET", "maxmemory-policy", "volatile-lru", "maxmemory", 2**30)
        with pytest.raises(
            UnsafeHotStateError, match=r"may evict keys .*volatile-lru.* set maxmemory-policy noeviction"
        ):
            await ValkeyHotState(connection).check_safe()
        await connection.close()


async def test_a_redis_cluster_is_refused(tmp_path: Path) -> None:
    # Its second port would be ten thousand above the first, where there may be none.
    options = {"cluster-enabled": "yes", "cluster-port": str(free_port())}
    with ValkeyServer(tmp_path / "valkey", options=options) as server:
        connection = ValkeyConnection(server.url)
        with pytest.raises(UnsafeHotStateError, match=r"redis\+cluster://"):
            await ValkeyHotState(connection).check_safe()
        await connection.close()


async def test_the_epochs_of_more_orgs_than_commands_may_wait(connection: ValkeyConnection) -> None:
    hot = ValkeyHotState(connection)
    await hot.load(ORG, EMPTY, "e1")
    cold = [f"org-{number}" for number in range(MAX_WAITING)]
    assert await hot.epochs([*cold, ORG]) == dict.fromkeys(cold) | {ORG: "e1"}


async def test_scripts_are_sent_to_a_server_that_has_lost_them(connection: ValkeyConnection) -> None:
    hot = ValkeyHotState(connection)
    await hot.load(ORG, EMPTY, "e1")
    await hot.apply(ORG, PLACE, [settle(0, 5)], 1)
    await connection.execute("SCRIPT", "FLUSH")
    answers: list[Any] = await asyncio.gather(
        *(hot.apply(ORG, PLACE, [settle(1, 5, "txn_y")], 2) for _ in range(5)), hot.peek(ORG, [])
    )
    assert [answer.applied for answer in answers[:5]] == [1, 0, 0, 0, 0]
