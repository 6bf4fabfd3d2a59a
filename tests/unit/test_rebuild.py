"""Rebuilds: ledger and log tail give back what was there, and gateways are refused until they have."""

import asyncio
import copy
from collections.abc import Mapping, Sequence

import pytest

from services.aggregator import rebuild
from services.aggregator.rebuild import Replay
from services.core.budgets import Proposal
from services.core.fold import OffsetGapError
from services.core.hotstate import Admitted, Cold, HoldRequest, OrgImage, OrgState
from services.core.ports import LedgerImage, TopicPartition, UnavailableError
from services.core.windows import parse_span
from tests.support.aggregation import NOW_MS, World
from tests.support.history import DAY_MS, Caller, charges_at

DAY = (charges_at(NOW_MS)[0].budget_id, charges_at(NOW_MS)[0].window)


@pytest.fixture
async def world() -> World:
    world = World(partitions=2)
    await world.publish_org()
    return world


@pytest.fixture
def caller() -> Caller:
    return Caller(NOW_MS)


def figures(state: OrgState) -> dict[str, object]:
    """What of a state decides anything."""
    return {
        "windows": {slot: (each.spent_nano, each.held_nano) for slot, each in state.windows.items()},
        "rings": {slot: (each.total_nano, each.held_nano, each.buckets) for slot, each in state.rings.items()},
        "holds": {name: (each.phase, each.booked_nano, each.charges) for name, each in state.holds.items()},
        "due": state.due,
        "producers": state.producers,
    }


async def history(world: World, caller: Caller) -> None:
    """Open, settled, expired and corrected calls, and a message nobody can read."""
    await world.publish(
        *(caller.reservation(f"txn_{number}") for number in range(8)),
        *(caller.settlement(f"txn_{number}", 100 + number) for number in range(4)),
        caller.expiry("txn_4", 1000),
        caller.settlement("txn_4", 250),
        caller.expiry("txn_5", 1000),
    )


async def test_an_org_without_history_comes_to_life(world: World) -> None:
    parts = world.parts()
    await parts.fences.prepare(world.places)
    await parts.rebuilder.rebuild_cold()
    epoch = world.state().epoch
    assert epoch is not None
    assert parts.told.rebuilds == 1
    await parts.rebuilder.rebuild_cold()
    assert world.state().epoch == epoch, "a warm org is left alone"


async def test_a_wiped_org_comes_back_as_it_was(world: World, caller: Caller) -> None:
    await history(world, caller)
    parts = world.parts()
    await parts.fold_all()
    before = copy.deepcopy(figures(world.state()))
    for part in range(4):
        world.ledger.taken = {place: len(world.log.messages(place)) * part // 3 for place in world.places}
        world.store.wipe()
        await world.publish_org()
        await parts.rebuilder.rebuild_cold()
        assert figures(world.state()) == before
        assert world.state().fences == {
            (place.topic, place.partition): len(world.log.messages(place)) for place in world.places
        }


async def test_a_batch_under_way_finds_the_org_rebuilt(world: World, caller: Caller) -> None:
    """Cold in the middle of a batch: the rebuild reads to the log's end, so the batch itself is skipped."""
    await history(world, caller)
    await world.parts().fold_all()
    before = copy.deepcopy(figures(world.state()))
    world.store.wipe()
    await world.publish_org()
    parts = world.parts()
    await parts.fold_all()
    assert figures(world.state()) == before
    assert parts.told.results["applied"] == 0


async def test_reservations_that_come_late_are_held_again(world: World, caller: Caller) -> None:
    """A hold made before the wipe whose event was still in an outbox: it is unknown to the rebuild, and restored."""
    late = caller.reservation("txn_1"), caller.settlement("txn_1", 300)
    parts = world.parts()
    await parts.fold_all()
    await parts.rebuilder.rebuild_cold()
    await world.publish(late[0])
    await parts.fold_all()
    assert world.state().windows[DAY].held_nano == 1000
    await world.publish(late[1])
    await parts.fold_all()
    assert (world.state().windows[DAY].held_nano, world.state().windows[DAY].spent_nano) == (0, 300)


async def test_a_reservation_behind_its_settlement_is_not_held_again(world: World, caller: Caller) -> None:
    """The ledger has the settlement and not yet the reservation, which is another topic's."""
    await world.publish(caller.reservation("txn_1"), caller.settlement("txn_1", 300))
    world.ledger.taken = {place: 1 for place in world.places if world.log.messages(place) and "settle" in place.topic}
    parts = world.parts()
    await parts.fold_all()
    assert (world.state().windows[DAY].held_nano, world.state().windows[DAY].spent_nano) == (0, 300)
    assert world.state().due == {}


async def test_several_orgs_share_one_reading_of_the_tail(
    world: World, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Caller(NOW_MS, org="other", producer="gw_2")
    await world.publish_org("other")
    await world.publish(caller.settlement("txn_1", 100), other.settlement("txn_2", 30))
    readings = 0
    read = world.log.read

    def counted(*arguments: object, **options: object) -> object:
        nonlocal readings
        readings += 1
        return read(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(world.log, "read", counted)
    parts = world.parts()
    await parts.rebuilder.rebuild_cold()
    assert readings == 1
    assert world.state().windows[DAY].spent_nano == 100
    assert world.state("other").windows[DAY].spent_nano == 30


async def test_gateways_are_refused_while_the_ledger_is_away(
    world: World, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    charge = charges_at(NOW_MS)[0]
    proposal = Proposal(charge.budget_id, charge.scope, parse_span(charge.window), 10_000)
    request = HoldRequest("default", "txn_9", 1000, (proposal,), 900_000, "{}")
    await history(world, caller)
    is_away = True
    org_image = world.ledger.org_image

    async def perhaps(org: str) -> LedgerImage:
        if is_away:
            raise UnavailableError("the ledger is away")
        return await org_image(org)

    monkeypatch.setattr(world.ledger, "org_image", perhaps)
    parts = world.parts()
    watching = asyncio.create_task(parts.patience.every(0.01, "rebuild", parts.rebuilder.rebuild_cold))
    await asyncio.sleep(0.05)
    assert isinstance(await world.hot.reserve(request), Cold)
    is_away = False
    await asyncio.sleep(0.05)
    assert isinstance(await world.hot.reserve(request), Admitted)
    parts.stopping.set()
    await watching


async def test_two_rebuilds_at_once_load_once(world: World, caller: Caller) -> None:
    await history(world, caller)
    first, second = world.parts(), world.parts()
    await asyncio.gather(*(each.rebuilder.rebuild_cold() for each in (first, second, first)))
    assert first.told.rebuilds + second.told.rebuilds == 1


async def test_a_rebuild_that_another_process_is_in_the_way_of_is_tried_again(
    world: World, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has begun to load may have died: an org that is still cold then must not count as seen to."""
    await history(world, caller)
    parts = world.parts()
    load, in_the_way = world.hot.load, [True, True]

    async def perhaps(org: str, image: OrgImage, epoch: str) -> bool:
        return False if in_the_way and in_the_way.pop() else await load(org, image, epoch)

    monkeypatch.setattr(world.hot, "load", perhaps)
    monkeypatch.setattr(rebuild, "LOADING_PATIENCE_S", 0.0)
    await parts.fences.prepare(world.places)
    with pytest.raises(UnavailableError, match="another process loads"):
        await parts.rebuilder.rebuild_cold()
    await parts.patience.until_answered("rebuild", parts.rebuilder.rebuild_cold)
    assert world.state().epoch is not None
    assert parts.told.rebuilds == 1


async def test_a_rebuild_waits_for_the_process_that_loads_already(
    world: World, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an org is large, another rebuild beside it would keep the ledger busy for nothing."""
    await history(world, caller)
    parts, asked = world.parts(), []
    load = world.hot.load

    async def begun_elsewhere(org: str, image: OrgImage, epoch: str) -> bool:
        asked.append(org)
        asyncio.get_running_loop().call_later(0.05, lambda: asyncio.ensure_future(load(org, image, epoch)))
        return False

    monkeypatch.setattr(world.hot, "load", begun_elsewhere)
    monkeypatch.setattr(rebuild, "_PAUSE_S", 0.01)
    await parts.fences.prepare(world.places)
    await parts.rebuilder.rebuild_cold()
    assert world.state().epoch is not None
    assert (asked, parts.told.rebuilds) == (["default"], 0)


async def test_a_rebuild_beside_the_fold_counts_nothing_twice(world: World, caller: Caller) -> None:
    await history(world, caller)
    parts = world.parts()
    await parts.fold_all()
    before = copy.deepcopy(figures(world.state()))
    for _ in range(20):
        world.store.wipe()
        await world.publish_org()
        await asyncio.gather(parts.fold_all(), world.parts().rebuilder.rebuild_cold(), parts.rebuilder.rebuild_cold())
        assert figures(world.state()) == before


async def test_a_wipe_in_the_middle_of_a_rebuild_leaves_no_fence_missing(
    world: World, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the next process would find a warm org and no fences, and read the whole log again."""
    await history(world, caller)
    parts = world.parts()
    await parts.fold_all()
    before = dict(world.store.fold_fences)
    world.store.wipe()
    await world.publish_org()
    end_offsets = world.log.end_offsets

    async def wiped_meanwhile(places: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        world.store.wipe()
        return await end_offsets(places)

    monkeypatch.setattr(world.log, "end_offsets", wiped_meanwhile)
    await parts.rebuilder.rebuild(["default"])
    assert world.store.fold_fences == {}
    await parts.rebuilder.rebuild_cold()
    assert world.store.fold_fences == before


async def test_a_gap_in_the_tail_stops_the_rebuild(world: World, caller: Caller) -> None:
    await world.publish(caller.settlement("txn_1"))
    place = next(place for place in world.places if world.log.messages(place))
    world.log.skip(place)
    await world.publish(caller.settlement("txn_2"))
    with pytest.raises(OffsetGapError, match="expected offset 1, but the log continued at 2"):
        await world.parts().rebuilder.rebuild_cold()
    assert f"fold_gap:{place.topic}:{place.partition}" in world.store.alarms
    assert world.state().epoch is None, "an org that can't be rebuilt whole stays cold"


async def test_a_ledger_behind_the_logs_beginning_stops_the_rebuild(world: World, caller: Caller) -> None:
    await world.publish(*(caller.settlement(f"txn_{number}") for number in range(5)))
    place = next(place for place in world.places if world.log.messages(place))
    world.ledger.taken = {place: 2}
    world.log.trim(place, 4)
    with pytest.raises(OffsetGapError, match="the ledger has offsets below 2 only, but the log begins at 4"):
        await world.parts().rebuilder.rebuild_cold()
    assert world.state().epoch is None


async def test_a_ledger_past_the_logs_end_stops_the_rebuild(world: World, caller: Caller) -> None:
    """The log was lost or recreated: offsets mean something else now."""
    await world.publish(caller.settlement("txn_1"))
    place = next(place for place in world.places if world.log.messages(place))
    world.ledger.taken = {place: 3}
    with pytest.raises(OffsetGapError, match="the ledger has offsets below 3, but the log ends at 1"):
        await world.parts().rebuilder.rebuild_cold()


async def test_a_log_that_hands_out_nothing_is_an_outage(
    world: World, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction's marker at the very end: the offset is there, and no message ever comes."""
    await world.publish(caller.settlement("txn_1"))
    world.log.skip(next(place for place in world.places if world.log.messages(place)))
    monkeypatch.setattr(rebuild, "TAIL_PATIENCE_S", 0.05)
    with pytest.raises(UnavailableError, match="hands out nothing"):
        await world.parts().rebuilder.rebuild_cold()


def test_long_gone_windows_do_not_come_back() -> None:
    long_ago = charges_at(NOW_MS - 3 * DAY_MS)
    spent = {(charge.budget_id, charge.window): 500 for charge in long_ago}
    known = LedgerImage({TopicPartition("t", 0): 4}, OrgImage(spent, {}, {}, {}))
    image = Replay(known, NOW_MS).image({TopicPartition("t", 0): 4})
    assert image.spent_nano == {}
    assert image.fences == {("t", 0): 4}
