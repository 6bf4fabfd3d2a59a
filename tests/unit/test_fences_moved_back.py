"""A hot state that has lost its last writes is noticed, also while the log is silent."""

import asyncio

import pytest

from services.aggregator.fences import FenceMovedBackError
from services.aggregator.stream import fold_stream
from tests.support.aggregation import World
from tests.support.gateway import until
from tests.support.history import Caller


async def test_a_fence_that_went_back_is_told() -> None:
    world = World()
    await world.publish_org()
    parts = world.parts()
    await parts.rebuilder.rebuild(["default"])
    await world.publish(Caller(world.clock_ms).reservation("txn_1"))
    await parts.fold_all()
    await parts.fences.check()
    world.store.fold_fences[world.reservations] = 0
    with pytest.raises(FenceMovedBackError, match="went back from 1 to 0"):
        await parts.fences.check()


async def test_a_fence_that_is_missing_is_left_to_whoever_keeps_them() -> None:
    world = World()
    await world.publish_org()
    parts = world.parts()
    await parts.rebuilder.rebuild(["default"])
    await world.publish(Caller(world.clock_ms).reservation("txn_1"))
    await parts.fold_all()
    del world.store.fold_fences[world.reservations]
    await parts.fences.check()


async def test_what_a_hot_state_has_lost_is_folded_again_though_nothing_more_comes() -> None:
    world = World()
    await world.publish_org()
    parts = world.parts()
    await parts.rebuilder.rebuild(["default"])
    caller = Caller(world.clock_ms)
    await world.publish(caller.reservation("txn_1"))
    folding = asyncio.ensure_future(
        fold_stream(parts.log, parts.places, parts.fences, parts.folder, parts.patience, parts.stopping)
    )
    await until(lambda: world.store.fold_fences.get(world.reservations) == 1)
    # As it was before that fold: neither the hold nor the fences.
    state = world.state()
    for part in (state.holds, state.due, state.windows, state.rings, state.fences, state.producers):
        part.clear()
    world.store.fold_fences[world.reservations] = 0
    await until(lambda: "txn_1" in state.holds)
    parts.stopping.set()
    await folding
    assert world.store.fold_fences[world.reservations] == 1
