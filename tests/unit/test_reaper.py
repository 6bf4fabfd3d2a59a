"""The reaper: holds past their time end by one event, however often it is published."""

import pytest

from services.adapters.memory import MemoryHotState
from services.aggregator.reaper import Reaper
from services.core.budgets import Proposal
from services.core.codec import decode, encode_facts
from services.core.events import Expiry
from services.core.hotstate import CLAIM_MS, DueHold, HoldRequest, ReserveAnswer
from services.core.ports import UnavailableError
from services.core.windows import parse_span
from tests.support.aggregation import NOW_MS, World
from tests.support.history import Caller, charges_at

HOLD_MS = 60_000
CHARGES = charges_at(NOW_MS)
DAY = (CHARGES[0].budget_id, CHARGES[0].window)


@pytest.fixture
async def world() -> World:
    world = World()
    await world.publish_org()
    await world.parts().rebuilder.rebuild_cold()
    return world


async def hold(world: World, name: str, context: str | None = None) -> ReserveAnswer:
    """What a gateway does when it admits a call."""
    proposals = tuple(Proposal(each.budget_id, each.scope, parse_span(each.window), 10**12) for each in CHARGES)
    facts = encode_facts(Caller(NOW_MS).facts) if context is None else context
    return await world.hot.reserve(HoldRequest("default", name, 1000, proposals, HOLD_MS, facts))


def figures(world: World) -> tuple[int, int]:
    window = world.state().windows[DAY]
    return window.spent_nano, window.held_nano


async def test_a_due_hold_is_booked_by_an_event(world: World) -> None:
    await hold(world, "txn_1")
    parts = world.parts()
    await parts.reaper.reap()
    assert world.log.messages(world.settlements) == [], "not yet due"
    world.clock_ms += HOLD_MS
    await parts.reaper.reap()
    [message] = world.log.messages(world.settlements)
    stamped = decode(message.value)
    assert stamped.event == Expiry("txn_1", NOW_MS + HOLD_MS, Caller(NOW_MS).facts, 1000, 1000, CHARGES, NOW_MS)
    assert (stamped.producer, stamped.sequence) == ("expiry:txn_1", 1)
    assert message.key == b"default"
    headers = dict(message.headers)
    assert (headers["ce_type"], headers["ce_id"]) == (Expiry.TYPE.encode(), b"expiry:txn_1/1")
    assert figures(world) == (0, 1000), "nothing is booked before the fold"
    await parts.fold_all()
    assert figures(world) == (1000, 0)
    assert parts.told.expiries == 1


async def test_an_org_may_release_instead_of_booking(world: World) -> None:
    await world.publish_org(book_expired=False)
    await hold(world, "txn_1")
    world.clock_ms += HOLD_MS
    parts = world.parts()
    await parts.reaper.reap()
    await parts.fold_all()
    assert figures(world) == (0, 0)


async def test_an_expiry_that_was_not_published_is_tried_again_once_its_claim_lapses(world: World) -> None:
    await hold(world, "txn_1")
    world.clock_ms += HOLD_MS
    world.log.is_away = True
    with pytest.raises(UnavailableError):
        await world.parts().reaper.reap()
    world.log.is_away = False
    await world.parts().reaper.reap()
    assert world.log.messages(world.settlements) == [], "another reaper may be at it"
    world.clock_ms += CLAIM_MS
    await world.parts().reaper.reap()
    assert len(world.log.messages(world.settlements)) == 1


async def test_an_expiry_published_twice_is_booked_once(world: World) -> None:
    await hold(world, "txn_1")
    world.clock_ms += HOLD_MS
    parts = world.parts()
    await parts.reaper.reap()
    world.clock_ms += CLAIM_MS
    await parts.reaper.reap()
    assert len(world.log.messages(world.settlements)) == 2
    await parts.fold_all()
    assert figures(world) == (1000, 0)


async def test_a_late_settlement_corrects_what_was_booked(world: World) -> None:
    await hold(world, "txn_1")
    world.clock_ms += HOLD_MS
    parts = world.parts()
    await parts.reaper.reap()
    await world.publish(Caller(NOW_MS).settlement("txn_1", 300))
    await parts.fold_all()
    assert figures(world) == (300, 0)


async def test_an_expiry_behind_a_settlement_changes_nothing(world: World) -> None:
    await hold(world, "txn_1")
    await world.publish(Caller(NOW_MS).settlement("txn_1", 300))
    world.clock_ms += HOLD_MS
    parts = world.parts()
    await parts.reaper.reap()
    await parts.fold_all()
    assert figures(world) == (300, 0)


async def test_a_cold_org_is_left_alone(world: World) -> None:
    await hold(world, "txn_1")
    world.clock_ms += HOLD_MS
    world.state().epoch = None
    await world.parts().reaper.reap()
    assert world.log.messages(world.settlements) == []


async def test_nothing_is_ended_until_it_is_known_whether_to_book(world: World) -> None:
    await hold(world, "txn_1")
    world.clock_ms += HOLD_MS
    world.store.snapshots.clear()
    await world.parts().reaper.reap()
    assert world.log.messages(world.settlements) == []


async def test_a_hold_that_cannot_be_told_stops_no_other(world: World) -> None:
    await hold(world, "txn_1", context="{}")
    await hold(world, "txn_2")
    world.clock_ms += HOLD_MS
    await world.parts().reaper.reap()
    [message] = world.log.messages(world.settlements)
    assert decode(message.value).event.transaction_id == "txn_2"


class PartlyAway(MemoryHotState):
    """Can't be asked what is due in one org: it lies on a server of a cluster that is away."""

    async def claim_due(self, org: str, limit: int) -> tuple[DueHold, ...]:
        if org == "acme":
            raise UnavailableError("that server is away")
        return await super().claim_due(org, limit)


async def test_an_org_whose_server_is_away_stops_no_other_and_is_told(world: World) -> None:
    world.store.published.clear()
    await world.publish_org("acme")
    await world.publish_org()
    assert await world.directory.orgs() == ("acme", "default")
    await hold(world, "txn_1")
    world.clock_ms += HOLD_MS
    parts = world.parts()
    reaper = Reaper(world.log, PartlyAway(lambda: world.clock_ms, world.store), world.directory, parts.told)
    with pytest.raises(UnavailableError, match="that server is away"):
        await reaper.reap()
    [message] = world.log.messages(world.settlements)
    assert decode(message.value).event.transaction_id == "txn_1"
