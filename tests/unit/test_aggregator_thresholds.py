"""Telling when budgets have spent a percentage of their limits: once, and whoever is cut off when."""

import asyncio
from collections.abc import Sequence

import pytest

from services.aggregator import thresholds as thresholds_module
from services.aggregator.thresholds import Thresholds
from services.core.alerts import ThresholdCrossed, crossed_percents, decode_alert
from services.core.budgets import EACH, Budget, Charge, Proposal, Standing
from services.core.ports import Outgoing, TopicPartition, UnavailableError
from services.core.windows import CalendarWindow, LifetimeWindow, RollingWindow, SessionWindow, Window, span_at
from tests.support.aggregation import NOW_MS, Parts, World
from tests.unit.test_aggregator_backfill import Caller, publish

MINUTE_MS = 60_000
ALERTS = TopicPartition(ThresholdCrossed.TOPIC, 0)
DAY = Budget("bud_day", "org", "default", CalendarWindow("day", "UTC"), 1_000)
RING = Budget("bud_ring", "org", "default", RollingWindow(10 * MINUTE_MS), 1_000, thresholds=(50,))


def charge(budget: Budget, at_ms: int = NOW_MS, window: Window | None = None) -> Charge:
    return Charge(budget.budget_id, budget.scope, span_at(window or budget.window, at_ms, "ses").key())


def told(world: World) -> list[tuple[str, int]]:
    """The budget and percent of each event, in order."""
    events = [decode_alert(message.value) for message in world.log.messages(ALERTS)]
    return [(each.budget_id, each.percent) for each in events]


async def spend(world: World, parts: Parts, caller: Caller, nano: int, *charges: Charge) -> None:
    await world.publish(caller.settlement(nano, 1, charges))
    await parts.fold_all()


@pytest.fixture
async def world() -> World:
    world = World()
    await publish(world, 1, DAY, RING)
    await world.parts().rebuilder.rebuild_cold()
    return world


async def test_each_threshold_is_told_once_a_window(world: World) -> None:
    parts, caller = world.parts(), Caller()
    for nano, expected in ((599, 0), (1, 1), (200, 1), (60, 2), (100, 2), (40, 3), (5_000, 3)):
        await spend(world, parts, caller, nano, charge(DAY))
        assert len(told(world)) == expected
    assert told(world) == [("bud_day", 60), ("bud_day", 85), ("bud_day", 100)]
    [event, *_] = [decode_alert(message.value) for message in world.log.messages(ALERTS)]
    assert (event.org, event.scope, event.window) == ("default", "org:default", charge(DAY).window)
    assert (event.limit_nano, event.spent_nano, event.config_version) == (1_000, 600, 1)


async def test_what_is_held_is_not_spent_and_a_limit_of_nothing_is_crossed_by_anything() -> None:
    assert crossed_percents((60, 100), 1_000, 0) == frozenset()
    assert crossed_percents((60, 100), 0, 0) == frozenset()
    assert crossed_percents((60, 100), 0, 1) == {60, 100}
    assert crossed_percents((60, 100), 1_000, 599) == frozenset()
    assert crossed_percents((60, 150), 10**18, 6 * 10**17) == {60}


async def test_a_rolling_window_tells_anew_after_it_has_been_below(world: World) -> None:
    parts, caller = world.parts(), Caller()
    await spend(world, parts, caller, 600, charge(RING))
    await spend(world, parts, caller, 10, charge(RING))
    assert told(world) == [("bud_ring", 50)]
    world.clock_ms += 5 * MINUTE_MS
    await parts.thresholds.look_again()
    world.clock_ms += 20 * MINUTE_MS
    await parts.thresholds.look_again()
    await spend(world, parts, caller, 500, charge(RING, world.clock_ms))
    assert told(world) == [("bud_ring", 50)] * 2
    first, second = [decode_alert(message.value) for message in world.log.messages(ALERTS)]
    assert first.producer != second.producer


async def test_another_process_does_not_tell_again(world: World) -> None:
    caller = Caller()
    await spend(world, world.parts(), caller, 900, charge(DAY), charge(RING))
    await spend(world, world.parts(), caller, 50, charge(DAY), charge(RING))
    assert sorted(told(world)) == [("bud_day", 60), ("bud_day", 85), ("bud_ring", 50)]


async def test_one_that_was_cut_off_before_it_marked_is_told_again_under_the_same_id(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(*_: object) -> None:
        raise RuntimeError("killed")

    caller = Caller()
    with monkeypatch.context() as patched:
        patched.setattr(world.hot, "set_crossed", killed)
        with pytest.raises(RuntimeError, match="killed"):
            await spend(world, world.parts(), caller, 600, charge(DAY))
    later = world.parts()
    await spend(world, later, caller, 1, charge(DAY))
    first, second = world.log.messages(ALERTS)
    assert dict(first.headers)["ce_id"] == dict(second.headers)["ce_id"]
    await spend(world, later, caller, 1, charge(DAY))
    assert len(told(world)) == 2


def take_no_alerts(world: World, patched: pytest.MonkeyPatch) -> None:
    """Has the log take everything but alerts."""
    publish_all = world.log.publish

    async def no_alerts(messages: Sequence[Outgoing]) -> None:
        if any(message.topic == ThresholdCrossed.TOPIC for message in messages):
            raise UnavailableError("no leader")
        await publish_all(messages)

    patched.setattr(world.log, "publish", no_alerts)


async def test_a_log_that_takes_no_alerts_does_not_hold_the_fold_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, caller = world.parts(), Caller()
    with monkeypatch.context() as patched:
        take_no_alerts(world, patched)
        await spend(world, parts, caller, 600, charge(DAY))
        assert world.state().windows["bud_day", charge(DAY).window].spent_nano == 600
        assert world.store.fold_fences[world.settlements] == 1
    assert told(world) == []
    await parts.thresholds.look_again()
    assert told(world) == [("bud_day", 60)]


async def test_a_lower_limit_is_noticed_without_a_call(world: World) -> None:
    parts, caller = world.parts(), Caller()
    await spend(world, parts, caller, 300, charge(DAY))
    await parts.backfiller.backfill()
    await publish(world, 2, Budget("bud_day", "org", "default", DAY.window, 350))
    await parts.backfiller.backfill()
    await parts.thresholds.look_again()
    assert told(world) == [("bud_day", 60), ("bud_day", 85)]


async def test_what_a_new_budget_already_has_spent_is_told(world: World) -> None:
    parts, caller = world.parts(), Caller()
    await spend(world, parts, caller, 700)
    await publish(world, 2, Budget("bud_new", "team", "ml", LifetimeWindow(), 1_000, since_version=2))
    await parts.backfiller.backfill()
    await parts.thresholds.look_again()
    assert told(world) == [("bud_new", 60)]


async def test_each_value_and_each_session_tells_for_itself(world: World) -> None:
    each = Budget("bud_each", "user", EACH, SessionWindow(), 100, thresholds=(100,))
    await publish(world, 2, each)
    parts, caller = world.parts(), Caller()
    charges = [Charge(f"bud_each@{user}", f"user:{user}", f"s:{name}") for user in ("a", "b") for name in ("x", "y")]
    for nano in (99, 1, 1):
        for one in charges:
            await spend(world, parts, caller, nano, one)
    assert sorted(told(world)) == [("bud_each@a", 100)] * 2 + [("bud_each@b", 100)] * 2


async def test_what_is_told_of_a_window_that_the_budget_no_longer_has_means_nothing(world: World) -> None:
    parts, caller = world.parts(), Caller()
    await spend(world, parts, caller, 5_000, charge(DAY, window=CalendarWindow("hour", "UTC")))
    assert told(world) == []


async def test_one_that_was_cut_off_before_it_looked_looks_again_when_it_folds_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed() -> None:
        raise RuntimeError("killed")

    parts, caller = world.parts(), Caller()
    monkeypatch.setattr(parts.thresholds, "look_at_all", killed)
    with pytest.raises(RuntimeError, match="killed"):
        await spend(world, parts, caller, 600, charge(DAY))
    assert world.state().windows["bud_day", charge(DAY).window].spent_nano == 600
    later = world.parts()
    await later.fold_all()
    assert world.state().windows["bud_day", charge(DAY).window].spent_nano == 600
    assert told(world) == [("bud_day", 60)]


async def test_one_that_is_killed_while_the_hot_state_can_not_be_looked_at_has_folded_nothing_for_good(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a session, or a window that is over, its successor knows by the log alone."""
    each = Budget("bud_each", "user", EACH, SessionWindow(), 100, thresholds=(100,))
    await publish(world, 2, each)
    asked = asyncio.Event()

    async def away(*_: object) -> None:
        asked.set()
        raise UnavailableError("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(world.hot, "peek", away)
        folding = asyncio.create_task(spend(world, world.parts(), Caller(), 100, Charge("bud_each@a", "user:a", "s:x")))
        await asyncio.wait_for(asked.wait(), 5)
        folding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await folding
    assert world.store.fold_fences[world.settlements] == 0
    later = world.parts()
    await later.fold_all()
    assert told(world) == [("bud_each@a", 100)]
    assert world.store.fold_fences[world.settlements] == 1


async def test_the_fold_goes_on_once_the_hot_state_has_been_looked_at(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    peek, asked = world.hot.peek, 0

    async def away_at_first(org: str, proposals: Sequence[Proposal]) -> tuple[Standing, ...] | None:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise UnavailableError("no answer")
        return await peek(org, proposals)

    monkeypatch.setattr(world.hot, "peek", away_at_first)
    await spend(world, world.parts(), Caller(), 600, charge(DAY))
    assert told(world) == [("bud_day", 60)]
    assert asked == 2


async def test_a_clock_that_does_not_answer_drops_nothing_that_waits(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise UnavailableError("no answer")

    parts, caller = world.parts(), Caller()
    await spend(world, parts, caller, 600, charge(RING))
    with monkeypatch.context() as patched:
        take_no_alerts(world, patched)
        await spend(world, parts, caller, 600, charge(DAY))
        patched.setattr(world.hot, "now_ms", away)
        with pytest.raises(UnavailableError):
            await parts.thresholds.look_again()
    await parts.thresholds.look_again()
    assert told(world) == [("bud_ring", 50), ("bud_day", 60)]


async def test_a_ring_is_armed_anew_however_many_slots_have_been_told_of(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thresholds_module, "MAX_KNOWN", 2)
    others = tuple(Budget(f"bud_{number}", "org", "default", DAY.window, 1) for number in range(3))
    await publish(world, 2, DAY, RING, *others)
    parts, caller = world.parts(), Caller()
    await spend(world, parts, caller, 600, charge(RING))
    await spend(world, parts, caller, 1, *map(charge, others))
    world.clock_ms += 25 * MINUTE_MS
    await parts.thresholds.look_again()
    await spend(world, parts, caller, 500, charge(RING, world.clock_ms))
    assert told(world).count(("bud_ring", 50)) == 2


async def test_what_a_rebuild_has_folded_is_told_without_another_call(world: World) -> None:
    """Of every budget's present window, and of each value and session that a call in the log's tail has charged."""
    each = Budget("bud_each", "user", EACH, SessionWindow(), 100, thresholds=(100,))
    await publish(world, 2, DAY, RING, each)
    caller, tail = Caller(), Charge("bud_each@a", "user:a", "s:x")
    await world.publish(caller.settlement(600, 1, (charge(DAY),)))
    world.ledger.taken = dict(await world.log.end_offsets(world.places))
    await world.publish(caller.settlement(100, 1, (tail,)))
    world.store.wipe()
    await publish(world, 2, DAY, RING, each)
    parts = world.parts()
    await parts.rebuilder.rebuild_cold()
    await parts.thresholds.look_again()
    assert sorted(told(world)) == [("bud_day", 60), ("bud_each@a", 100)]
    await parts.thresholds.look_again()
    assert len(told(world)) == 2


async def test_one_org_that_can_not_be_looked_at_after_its_rebuild_holds_up_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, caller, look = world.parts(), Caller(), Thresholds.look_at_current

    async def not_yet(self: Thresholds, org: str) -> None:
        if org == "another":
            raise UnavailableError("control has yet to publish it again")
        await look(self, org)

    await world.publish(caller.settlement(600, 1, (charge(DAY),)))
    world.store.wipe()
    await publish(world, 1, DAY, RING)
    await parts.rebuilder.rebuild_cold()
    parts.thresholds.rebuilt("another", ())
    with monkeypatch.context() as patched:
        patched.setattr(Thresholds, "look_at_current", not_yet)
        await parts.thresholds.look_again()
    assert told(world) == [("bud_day", 60)]
