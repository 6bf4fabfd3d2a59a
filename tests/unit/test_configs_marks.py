"""No rebuild before control has published an org's budgets again; and marks that are lost all the same are missed."""

import asyncio

import pytest

from services.aggregator.configs import NotPublishedError
from services.core.budgets import Budget
from services.core.codec import to_message
from services.core.events import CallFacts, Settlement, Stamped
from services.core.hotstate import OrgImage
from services.core.identity import Identity
from services.core.ports import Outgoing, Pulse, UnavailableError
from services.core.snapshot import Snapshot, encode_snapshot
from services.core.windows import LifetimeWindow
from tests.support.aggregation import NOW_MS, World

NEW = Budget("bud_1", "org", "default", LifetimeWindow(), 1_000, since_version=2)


async def test_what_waits_to_be_backfilled_is_looked_at_again() -> None:
    world = World()
    parts = world.parts()
    await world.hot.load("default", OrgImage({}, {}, {}, {}), "epoch-0")
    snapshot = encode_snapshot(Snapshot("default", 2, "v1", 900_000, True, (NEW,), {}))
    await world.directory.publish_org("default", 2, snapshot, {}, ())
    assert (await parts.configs.of("default")).pending.since == {"bud_1": 2}
    assert await parts.configs.check_marks() == ["default"]


async def test_what_is_backfilled_is_left_alone() -> None:
    world = World()
    parts = world.parts()
    snapshot = encode_snapshot(Snapshot("default", 2, "v1", 900_000, True, (NEW,), {}))
    await world.directory.publish_org("default", 2, snapshot, {}, ())
    await parts.rebuilder.rebuild(["default"])
    assert (await parts.configs.of("default")).implied.since == {"bud_1": 2}
    assert await parts.configs.check_marks() == []


async def test_nothing_is_folded_by_marks_whose_budgets_are_not_published() -> None:
    """Else calls of earlier configurations would not be charged to them, and nobody would ever know."""
    world = World()
    parts = world.parts()
    await world.hot.load("default", OrgImage({}, {}, {}, {}, filled={"bud_1": 2}), "epoch-0")
    with pytest.raises(UnavailableError, match="has yet to publish"):
        await parts.configs.of("default")
    snapshot = encode_snapshot(Snapshot("default", 2, "v1", 900_000, True, (NEW,), {}))
    await world.directory.publish_org("default", 2, snapshot, {}, ())
    assert (await parts.configs.of("default")).implied.since == {"bud_1": 2}


# ---- after a wipe ---------------------------------------------------------------------------------------------------


def settlement(number: int, cost_nano: int, org: str = "default") -> Outgoing:
    """A call that was admitted before there was a budget."""
    facts = CallFacts(Identity(org, "key_1"), "openai", "/v1/x", "m", "m", "exact", "c", 1)
    event = Settlement(
        f"txn_{number}", NOW_MS, facts, "completed", "reported", {}, (), cost_nano, 0, (), 200, 0, admitted_at_ms=NOW_MS
    )
    return to_message(Stamped(event, "gw_1", number))


async def publish(world: World, org: str = "default", *, announce: bool = True) -> None:
    snapshot = encode_snapshot(Snapshot(org, 2, "v1", 900_000, True, (NEW,), {}))
    await world.directory.publish_org(org, 2, snapshot, {}, (), announce=announce)


async def wiped() -> World:
    """An org with a budget and an implied call, whose hot state is lost. Control has yet to publish it again."""
    world = World()
    await publish(world)
    await world.publish(settlement(1, 100))
    await world.parts().fold_all()
    world.store.wipe()
    return world


async def test_an_event_that_comes_before_control_has_published_again_waits_for_it() -> None:
    """Rebuilt without its budgets the org would be warm, and gateways would check its caps without their past."""
    world = await wiped()
    parts = world.parts()
    await world.publish(settlement(2, 20))
    folding = asyncio.create_task(parts.fold_all())
    with pytest.raises(NotPublishedError, match="control has yet to publish it again"):
        await parts.rebuilder.rebuild(["default"])
    assert (folding.done(), world.state().epoch) == (False, None)
    await publish(world)
    await folding
    assert world.state().filled == {"bud_1": 2}
    assert world.state().windows["bud_1", "l"].spent_nano == 120


async def test_an_org_that_is_published_but_not_announced_can_be_rebuilt() -> None:
    world = await wiped()
    await publish(world, announce=False)
    await world.parts().rebuilder.rebuild(["default"])
    assert world.state().filled == {"bud_1": 2}


async def test_an_org_whose_server_has_lost_its_snapshot_is_waited_for_and_no_other_is() -> None:
    """As in a cluster, where the list of orgs is on another server."""
    world = World()
    await publish(world)
    await publish(world, "other")
    del world.store.snapshots["default"]
    parts = world.parts()
    with pytest.raises(NotPublishedError, match="org default"):
        await parts.rebuilder.rebuild_cold()
    assert (world.state().epoch, world.state("other").filled) == (None, {"bud_1": 2})
    assert parts.told.rebuilds == 1
    await publish(world)
    await parts.rebuilder.rebuild_cold()
    assert world.state().filled == {"bud_1": 2}


async def test_an_org_that_control_does_not_know_is_in_nobodys_way() -> None:
    world = await wiped()
    await world.publish(settlement(3, 7, "gone"))
    parts = world.parts()
    folding = asyncio.create_task(parts.fold_all())
    await publish(world)
    await folding
    assert world.state("gone").epoch is not None
    assert world.store.fold_fences[world.settlements] == 2


async def test_an_org_is_not_taken_for_unknown_when_the_state_is_lost_while_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    await publish(world)
    pulse, asked = world.directory.pulse, 0

    async def lost_at_once() -> Pulse:
        nonlocal asked
        asked += 1
        answer = await pulse()
        if asked == 1:
            world.store.wipe()
        return answer

    monkeypatch.setattr(world.directory, "pulse", lost_at_once)
    with pytest.raises(NotPublishedError):
        await world.parts().configs.implied("default")
    assert asked == 2
