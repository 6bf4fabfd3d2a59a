"""Backfilling: what stands in the way of two processes that each know another half, and what is told meanwhile."""

import asyncio
import copy
from dataclasses import replace
from typing import Any

import pytest

from services.aggregator import backfill as backfill_module
from services.core.budgets import Budget, Charge
from services.core.codec import to_message
from services.core.events import CallFacts, Settlement, Stamped
from services.core.hotstate import Applied, Backfill, Marks, Outdated
from services.core.identity import Identity
from services.core.ports import LedgerImage, Outgoing, UnavailableError
from services.core.snapshot import Snapshot, encode_snapshot
from services.core.windows import CalendarWindow, RollingWindow, Window, span_at
from tests.support.aggregation import NOW_MS, World
from tests.support.history import HOUR_MS

DAY = CalendarWindow("day", "UTC")
HOUR = RollingWindow(HOUR_MS)
NEW = Budget("bud_new", "team", "ml", DAY, 1_000, since_version=2)


class Caller:
    """Settlements of one gateway."""

    def __init__(self) -> None:
        self.sequence = 0

    def settlement(self, cost_nano: int, version: int = 1, charges: tuple[Charge, ...] = ()) -> Outgoing:
        """A call that was admitted now, under that configuration."""
        self.sequence += 1
        who = Identity("default", "key_1", team="ml")
        facts = CallFacts(who, "openai", "/v1/x", "m", "m", "exact", "c", version)
        event = Settlement(
            *(f"txn_{self.sequence}", NOW_MS, facts, "completed", "reported", {}, (), cost_nano, 0, charges, 200, 0),
            admitted_at_ms=NOW_MS,
        )
        return to_message(Stamped(event, "gw_1", self.sequence))


def charge(budget: Budget, window: Window | None = None) -> Charge:
    return Charge(budget.budget_id, budget.scope, span_at(window or budget.window, NOW_MS).key())


async def publish(world: World, version: int, *budgets: Budget) -> None:
    snapshot = Snapshot("default", version, "v1", 900_000, True, budgets, {})
    await world.directory.publish_org("default", version, encode_snapshot(snapshot), {}, ())


def spent(world: World, budget: Budget = NEW) -> int:
    found = world.state().windows.get((budget.budget_id, span_at(budget.window, NOW_MS).key()))
    return found.spent_nano if found else 0


@pytest.fixture
async def world() -> World:
    """An org that is warm, and its ledger knows nothing."""
    world = World()
    await publish(world, 1)
    await world.parts().rebuilder.rebuild_cold()
    return world


@pytest.fixture
def caller() -> Caller:
    return Caller()


async def test_a_process_that_does_not_know_of_a_backfill_learns_of_it_before_it_folds(
    world: World, caller: Caller
) -> None:
    await world.publish(caller.settlement(100))
    slow, quick = world.parts(), world.parts()
    await slow.fold_all()
    await publish(world, 2, NEW)
    await quick.backfiller.backfill()
    assert spent(world) == 100
    await world.publish(caller.settlement(20))
    await slow.fold_all()
    assert spent(world) == 120


async def test_steps_decided_by_other_marks_are_refused(world: World, caller: Caller) -> None:
    await publish(world, 2, NEW)
    await world.parts().backfiller.backfill()
    token = world.state().marks
    assert token
    assert await world.hot.apply("default", world.settlements, [], 5, "") == Outdated()
    assert world.state().fences.get(("spend.settlements.v1", 0), 0) == 0
    assert await world.hot.apply("default", world.settlements, [], 5, token) == Applied(0, 0)


async def test_a_backfill_as_of_another_fence_is_refused(world: World) -> None:
    fence = {("spend.settlements.v1", 0): 0}
    fill = Backfill(fence, {("bud_new", "l"): 7}, {"bud_new": 2}, "token")
    await world.hot.apply("default", world.settlements, [], 1)
    assert not await world.hot.backfill("default", fill)
    assert (world.state().filled, world.state().marks, world.state().windows) == ({}, "", {})
    assert await world.hot.backfill("default", replace(fill, fences={("spend.settlements.v1", 0): 1}))
    assert world.state().windows["bud_new", "l"].spent_nano == 7
    world.state().epoch = None
    assert not await world.hot.backfill("default", replace(fill, fences={}))


async def test_a_ledger_that_is_ahead_is_not_taken_for_the_fold(
    world: World, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill_module, "FOLD_PATIENCE_S", 0.05)
    await world.publish(caller.settlement(100))
    world.ledger.taken = dict(await world.log.end_offsets(world.places))
    await publish(world, 2, NEW)
    parts = world.parts()
    with pytest.raises(UnavailableError, match="behind the ledger"):
        await parts.backfiller.backfill()
    assert world.state().filled == {}
    await parts.fold_all()
    assert spent(world) == 0
    await parts.backfiller.backfill()
    assert spent(world) == 100


async def test_what_other_orgs_have_settled_meanwhile_is_in_nobodys_way(world: World, caller: Caller) -> None:
    """The org's own fence stays where its last event was, however far the ledger is."""
    await world.publish(caller.settlement(100))
    facts = CallFacts(Identity("other", "k"), "v", "/", "m", "m", "exact", "c", 1)
    other = Settlement("txn_o", NOW_MS, facts, "completed", "reported", {}, (), 1, 1, (), 200, 0)
    await world.publish(to_message(Stamped(other, "gw_2", 1)))
    parts = world.parts()
    await parts.fold_all()
    world.state().fences["spend.settlements.v1", 0] = 1
    world.ledger.taken = dict(await world.log.end_offsets(world.places))
    await publish(world, 2, NEW)
    await parts.backfiller.backfill()
    assert spent(world) == 100


async def test_a_window_that_a_budget_once_had_counts_what_it_said_then_once(world: World, caller: Caller) -> None:
    """Day, then a rolling hour, then day again: some calls carry the day's charge, some only imply it."""
    first = replace(NEW, since_version=0)
    parts = world.parts()
    for version, budget, cost_nano in (
        (2, first, 1),
        (3, replace(NEW, window=HOUR, since_version=3), 20),
        (4, replace(NEW, since_version=4), 300),
    ):
        await publish(world, version, budget)
        await parts.backfiller.backfill()
        await world.publish(caller.settlement(cost_nano, version, (charge(budget),)))
        await parts.fold_all()
    assert spent(world) == 321
    [ring] = world.state().rings.values()
    assert ring.total_nano == 21
    before = spent(world)
    world.ledger.taken = dict(await world.log.end_offsets(world.places))
    world.store.wipe()
    await publish(world, 4, replace(NEW, since_version=4))
    await world.parts().rebuilder.rebuild_cold()
    assert spent(world) == before


async def test_a_limit_that_is_raised_leaves_the_figures_alone(world: World, caller: Caller) -> None:
    await world.publish(caller.settlement(100))
    await publish(world, 2, NEW)
    parts = world.parts()
    await parts.fold_all()
    await parts.backfiller.backfill()
    marks = world.state().marks
    await publish(world, 3, replace(NEW, limit_nano=9_000))
    await parts.backfiller.backfill()
    assert (spent(world), world.state().marks) == (100, marks)


async def test_marks_of_budgets_that_are_no_more_go(world: World) -> None:
    parts = world.parts()
    for version, budget_id in ((2, "bud_a"), (3, "bud_b")):
        await publish(world, version, replace(NEW, budget_id=budget_id, since_version=version))
        await parts.backfiller.backfill()
    assert world.state().filled == {"bud_b": 3}


async def test_a_log_that_begins_past_what_the_ledger_has_stops_the_backfill_and_not_the_fold(
    world: World, caller: Caller
) -> None:
    await world.publish(caller.settlement(100), caller.settlement(10))
    parts = world.parts()
    await parts.fold_all()
    world.log.trim(world.settlements, 1)
    await publish(world, 2, NEW)
    with pytest.raises(UnavailableError, match="the log begins at 1"):
        await parts.backfiller.backfill()
    assert "backfill:default" in world.store.alarms
    await world.publish(caller.settlement(1))
    await parts.fold_all()
    assert world.state().filled == {}


async def test_without_its_ledger_a_backfill_waits_and_says_so(
    world: World, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise UnavailableError("the ledger is away")

    await world.publish(caller.settlement(100))
    await publish(world, 2, NEW)
    parts = world.parts()
    await parts.fold_all()
    with monkeypatch.context() as patched:
        patched.setattr(world.ledger, "call_sums", away)
        with pytest.raises(UnavailableError):
            await parts.backfiller.backfill()
        assert "the ledger is away" in world.store.alarms["backfill:default"]
        await world.publish(caller.settlement(20, 2, (charge(NEW),)))
        await parts.fold_all()
        assert spent(world) == 20, "until then it counts what it has counted itself"
    later = world.parts()
    await later.backfiller.backfill()
    assert spent(world) == 120
    assert world.store.alarms == {}, "another process clears it, too"
    assert (await world.hot.marks("default", ())).filled == {"bud_new": 2}


async def test_an_expression_that_can_not_be_read_raises_an_alarm_and_stops_nothing(
    world: World, caller: Caller
) -> None:
    broken = Budget("bud_cel", "cel", "x", DAY, 1, expression="user ==", since_version=2)
    await world.publish(caller.settlement(100))
    await publish(world, 2, NEW, broken)
    parts = world.parts()
    await parts.fold_all()
    await parts.backfiller.backfill()
    assert spent(world) == 100
    assert world.state().filled == {"bud_new": 2}
    assert "bud_cel" in world.store.alarms["backfill:default"]


async def test_a_call_under_more_budgets_than_it_could_be_held_against_counts_in_all(
    world: World, caller: Caller
) -> None:
    many = [replace(NEW, budget_id=f"bud_{number}") for number in range(70)]
    await world.publish(caller.settlement(100))
    await publish(world, 2, *many)
    parts = world.parts()
    await parts.fold_all()
    await parts.backfiller.backfill()
    await world.publish(caller.settlement(1))
    await parts.fold_all()
    assert {spent(world, each) for each in many} == {101}


async def test_a_configuration_that_was_read_late_is_not_taken_for_the_one_that_is_waited_for(
    world: World, caller: Caller
) -> None:
    """A large one is compiled in a thread: what it was made from may be older than what is published by then."""
    await world.publish(caller.settlement(100))
    parts = world.parts()
    await parts.fold_all()
    late = await parts.configs.of("default")
    await publish(world, 2, NEW)
    refresh = parts.configs.refresh

    async def overtaken() -> object:
        versions = await refresh()
        parts.configs._kept["default"] = late
        parts.configs._outdated.clear()
        return versions

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(parts.configs, "refresh", overtaken)
        await parts.backfiller.backfill()
    await parts.backfiller.backfill()
    assert spent(world) == 100


async def test_a_backfill_is_not_made_of_two_states_of_the_hot_state(
    world: World, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last writes are lost after the fences were read, and before the org's own were."""
    parts = world.parts()
    await world.publish(caller.settlement(100))
    await publish(world, 2, NEW)
    older = copy.deepcopy(world.store.states), dict(world.store.fold_fences)
    await parts.fold_all()
    marks = world.hot.marks
    lost = False

    async def fail_over(*arguments: Any) -> Marks:
        nonlocal lost
        if arguments[1] and not lost:
            lost = True
            world.store.states, world.store.fold_fences = older
            world.store.fold_fences.update(dict.fromkeys(world.places, 0))
        return await marks(*arguments)

    monkeypatch.setattr(world.hot, "marks", fail_over)
    await parts.backfiller.backfill()
    assert lost
    await parts.fold_all()
    assert spent(world) == 100


async def test_marks_that_are_newer_than_what_is_published_are_waited_for(world: World, caller: Caller) -> None:
    """As when the last publication was lost: its budgets are marked as backfilled, and nobody knows them."""
    await publish(world, 2, NEW)
    parts = world.parts()
    await parts.backfiller.backfill()
    world.store.states["default"].config_version = 0
    await publish(world, 1)
    with pytest.raises(UnavailableError, match="control has yet to publish again"):
        await world.parts().configs.of("default")
    await publish(world, 2, NEW)
    assert (await world.parts().configs.of("default")).version == 2


async def test_marks_of_a_forgotten_org_are_checked_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rebuild that knew no budgets yet, of an org that nothing is folded of since."""
    await publish(world, 2, NEW)
    parts = world.parts()
    await parts.backfiller.backfill()
    world.state().filled.clear()
    world.state().marks = ""
    parts.configs.forget("default")
    monkeypatch.setattr(backfill_module, "CHECK_MARKS_S", -1.0)
    await parts.backfiller.backfill()
    assert world.state().filled == {"bud_new": 2}
    assert await parts.configs.check_marks() == ["default"], "it was forgotten when its marks were set"
    assert await parts.configs.check_marks() == []


OTHER = replace(NEW, budget_id="bud_other", since_version=3)
REWINDOWED = replace(NEW, window=HOUR, since_version=3)


class Held:
    """Holds the first question to a world's ledger up, until it is let go."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.go = asyncio.Event(), asyncio.Event()
        self._real = world.ledger.org_image
        monkeypatch.setattr(world.ledger, "org_image", self._org_image)

    async def _org_image(self, org: str) -> LedgerImage:
        if not self.asked.is_set():
            self.asked.set()
            await self.go.wait()
        return await self._real(org)


@pytest.mark.parametrize("later", [(NEW, OTHER), (REWINDOWED,)], ids=["made", "rewindowed"])
async def test_a_slow_backfill_takes_nothing_back_of_a_newer_one(
    world: World, caller: Caller, monkeypatch: pytest.MonkeyPatch, later: tuple[Budget, ...]
) -> None:
    await world.publish(caller.settlement(100))
    slow, quick = world.parts(), world.parts()
    await slow.fold_all()
    await publish(world, 2, NEW)
    held = Held(world, monkeypatch)
    filling = asyncio.create_task(slow.backfiller.backfill())
    await held.asked.wait()
    await publish(world, 3, *later)
    await quick.backfiller.backfill()
    marks = (world.state().filled.copy(), world.state().marks)
    assert marks[0] == {each.budget_id: each.since_version for each in later}
    held.go.set()
    await filling
    assert (world.state().filled, world.state().marks) == marks
    await world.publish(caller.settlement(20))
    await quick.fold_all()
    await slow.backfiller.backfill()
    assert (world.state().filled, world.state().marks) == marks, "nothing was left to be done"
    rings = [ring.total_nano for ring in world.state().rings.values()]
    assert (rings or [spent(world, each) for each in later]) == [120] * len(later)
    assert world.store.alarms == {}


async def test_what_a_slow_backfill_was_for_is_done_by_its_next_look(
    world: World, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It read the marks in between of two changes, and the other process has done the first half only."""
    await world.publish(caller.settlement(100))
    slow, quick = world.parts(), world.parts()
    await slow.fold_all()
    await publish(world, 2, NEW)
    await quick.configs.of("default")
    await publish(world, 3, NEW, OTHER)
    held = Held(world, monkeypatch)
    filling = asyncio.create_task(slow.backfiller.backfill())
    await held.asked.wait()
    assert await quick.backfiller.fill("default", await quick.configs.of("default"))
    assert world.state().filled == {"bud_new": 2}
    held.go.set()
    await filling
    assert world.state().filled == {"bud_new": 2}
    await slow.backfiller.backfill()
    assert world.state().filled == {"bud_new": 2, "bud_other": 3}
    assert [spent(world, each) for each in (NEW, OTHER)] == [100, 100]


async def test_marks_that_change_in_the_last_step_of_a_backfill_refuse_it(
    world: World, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.publish(caller.settlement(100))
    parts = world.parts()
    await parts.fold_all()
    await publish(world, 2, NEW)
    backfill = world.hot.backfill

    async def beaten(org: str, fill: Backfill) -> bool:
        if fill.token and "bud_other" not in world.state().filled:
            await backfill(org, Backfill({}, {}, {"bud_other": 3}, "another"))
        return await backfill(org, fill)

    monkeypatch.setattr(world.hot, "backfill", beaten)
    await parts.backfiller.backfill()
    assert (world.state().filled, world.state().marks) == ({"bud_other": 3}, "another")
    await publish(world, 3, NEW, OTHER)
    await parts.backfiller.backfill()
    assert world.state().filled == {"bud_new": 2, "bud_other": 3}


async def test_two_processes_never_make_the_same_token(world: World) -> None:
    """Of the world of these tests itself: else nobody here would be told that marks are outdated."""
    await publish(world, 2, NEW)
    await world.parts().backfiller.backfill()
    first = world.state().marks
    await publish(world, 3, NEW, OTHER)
    await world.parts().backfiller.backfill()
    assert world.state().marks != first
