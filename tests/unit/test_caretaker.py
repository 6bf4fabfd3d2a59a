"""Rounds of upkeep: what has lost its owner gets an end, what has one is left alone."""

from collections.abc import Sequence

import pytest

from services.adapters.memory_upkeep import MemoryUpkeep
from services.adapters.topics import load_topics
from services.aggregator import caretaker as module
from services.aggregator.caretaker import ROUND_MS, Caretaker
from services.core import fold
from services.core.budgets import Budget, Charge
from services.core.hotstate import Applied, Backfill, FoldStep, OrgImage
from services.core.ports import UnavailableError
from services.core.snapshot import Snapshot, encode_snapshot
from services.core.upkeep import DAY_MS, GONE_MS, SILENT_DAYS, Endless, Page
from services.core.windows import LifetimeWindow, RollingWindow, Window
from tests.support.aggregation import Parts, World

ORG = "default"


def budget(name: str, window: Window | None = None, since_version: int = 1) -> Budget:
    return Budget(name, "org", ORG, window or LifetimeWindow(), 1_000, since_version=since_version)


async def publish(world: World, version: int, *budgets: Budget, org: str = ORG) -> None:
    snapshot = Snapshot(org, version, "v1", 900_000, True, budgets, {})
    await world.directory.publish_org(org, version, encode_snapshot(snapshot), {}, ())


def caretaker_of(world: World, parts: Parts, upkeep: MemoryUpkeep | None = None) -> Caretaker:
    """One whose pauses cost no time."""
    numbers = iter(range(1_000))

    async def no_pause(seconds: float) -> None:
        """The clock stands still."""

    parts.patience.pause = no_pause  # type: ignore[method-assign]
    upkeep = upkeep or MemoryUpkeep(lambda: world.clock_ms, world.store)
    new_token = lambda: f"token-{next(numbers)}"  # noqa: E731
    return Caretaker(upkeep, world.hot, parts.configs, parts.patience, new_token)


async def charge(world: World, offset: int, *budget_ids: str, org: str = ORG) -> None:
    """A settlement against budgets for all time."""
    charges = tuple(Charge(each, "org", "l") for each in budget_ids)
    step = FoldStep("settle", offset, "gw_1", offset + 1, f"txn_{offset}", 5, charges)
    assert await world.hot.apply(org, world.settlements, [step], offset + 1) == Applied(1, 0)


async def next_round(world: World, caretaker: Caretaker) -> None:
    world.clock_ms += ROUND_MS
    for org in world.store.states:
        fold.forget(world.state(org), world.clock_ms)
    await caretaker.go_round()


async def started(*budgets: Budget) -> tuple[World, Parts]:
    """A warm org whose budgets are backfilled."""
    world = World()
    await publish(world, 1, *budgets)
    parts = world.parts()
    await parts.rebuilder.rebuild([ORG])
    return world, parts


# ---- figures for all time -------------------------------------------------------------------------------------------


async def test_the_figures_of_a_deleted_budget_go_and_no_others_do() -> None:
    world, parts = await started(budget("bud_1"), budget("bud_2"))
    caretaker = caretaker_of(world, parts)
    await charge(world, 0, "bud_1", "bud_2")
    for name in ("bud_1", "bud_2"):
        await world.hot.set_crossed(ORG, (name, "l"), [60], None)
    await publish(world, 2, budget("bud_1"))
    await parts.configs.refresh()
    await next_round(world, caretaker)
    assert world.state().windows["bud_2", "l"].spent_nano == 5, "they outlive it, for what is still to be settled"
    world.clock_ms += GONE_MS
    await next_round(world, caretaker)
    assert world.state().windows.keys() == {("bud_1", "l")}
    assert await world.hot.crossed(ORG, [("bud_1", "l"), ("bud_2", "l")]) == [{60}, frozenset()]
    world.clock_ms += 10 * GONE_MS
    await next_round(world, caretaker)
    assert world.state().windows["bud_1", "l"].spent_nano == 5


async def test_a_late_settlement_brings_figures_back_for_a_while_only() -> None:
    world, parts = await started()
    caretaker = caretaker_of(world, parts)
    for offset in range(3):
        await charge(world, offset, "bud_gone")
        await next_round(world, caretaker)
        assert world.state().windows.keys() == {("bud_gone", "l")}
        world.clock_ms += GONE_MS
        await next_round(world, caretaker)
        assert not world.state().windows


async def test_a_budget_with_another_window_leaves_its_figures_for_all_time() -> None:
    world, parts = await started(budget("bud_1"))
    caretaker = caretaker_of(world, parts)
    await charge(world, 0, "bud_1")
    await publish(world, 2, budget("bud_1", RollingWindow(60_000), 2))
    await parts.configs.refresh()
    await next_round(world, caretaker)
    world.clock_ms += GONE_MS
    await next_round(world, caretaker)
    assert not world.state().windows


async def test_a_budget_that_is_there_again_keeps_its_figures() -> None:
    world, parts = await started(budget("bud_1"))
    caretaker = caretaker_of(world, parts)
    await charge(world, 0, "bud_1")
    await publish(world, 2)
    await parts.configs.refresh()
    await next_round(world, caretaker)
    world.clock_ms += GONE_MS // 2
    await publish(world, 3, budget("bud_1"))
    await parts.configs.refresh()
    await next_round(world, caretaker)
    world.clock_ms += GONE_MS
    await next_round(world, caretaker)
    assert world.state().windows["bud_1", "l"].spent_nano == 5


async def test_a_budget_that_this_process_has_not_heard_of_is_not_gone() -> None:
    """The configuration that it keeps may be older than the keys it finds."""
    world, parts = await started()
    caretaker = caretaker_of(world, parts)
    await parts.configs.of(ORG)
    await publish(world, 2, budget("bud_new", since_version=0))
    await charge(world, 0, "bud_new")
    await next_round(world, caretaker)
    assert world.state().windows["bud_new", "l"].forget_at_ms is None


async def test_while_nobody_knows_an_orgs_budgets_all_of_them_stay() -> None:
    world, parts = await started(budget("bud_1"))
    await charge(world, 0, "bud_1")
    world.store.snapshots.clear()
    parts.configs.forget(ORG)
    caretaker = caretaker_of(world, parts)
    await next_round(world, caretaker)
    assert world.state().windows["bud_1", "l"].forget_at_ms is None
    assert world.state().filled == {"bud_1": 1}


# ---- marks ----------------------------------------------------------------------------------------------------------


async def test_the_mark_of_a_deleted_budget_is_dropped() -> None:
    world, parts = await started(budget("bud_1"), budget("bud_2"))
    caretaker = caretaker_of(world, parts)
    token = world.state().marks
    await caretaker.go_round()
    assert (world.state().filled, world.state().marks) == ({"bud_1": 1, "bud_2": 1}, token)
    await publish(world, 2, budget("bud_1"))
    await parts.configs.refresh()
    await next_round(world, caretaker)
    assert world.state().filled == {"bud_1": 1}
    assert world.state().marks != token, "whoever folds by the old ones has to read them again"
    assert (await parts.configs.of(ORG)).token == world.state().marks


async def test_the_mark_of_a_budget_that_is_new_stays() -> None:
    """Another process has read the configuration, and backfilled the budget; this one has an older one."""
    world, parts = await started(budget("bud_1"))
    caretaker = caretaker_of(world, parts)
    await parts.configs.of(ORG)
    await publish(world, 2, budget("bud_1"), budget("bud_2", since_version=2))
    await world.hot.backfill(ORG, Backfill({}, {}, {"bud_2": 2}, "another"))
    assert world.state().filled == {"bud_1": 1, "bud_2": 2}
    await next_round(world, caretaker)
    assert world.state().filled == {"bud_1": 1, "bud_2": 2}


async def test_marks_that_change_while_they_are_looked_at_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget that was deleted is made again by the change that another process backfills just then."""
    world, parts = await started(budget("bud_1"), budget("bud_2"))
    caretaker = caretaker_of(world, parts)
    await publish(world, 2, budget("bud_1"))
    await parts.configs.refresh()
    backfill = world.hot.backfill

    async def beaten(org: str, fill: Backfill) -> bool:
        await backfill(org, Backfill({}, {}, {"bud_2": 3}, "another"))
        return await backfill(org, fill)

    monkeypatch.setattr(world.hot, "backfill", beaten)
    await next_round(world, caretaker)
    assert (world.state().filled, world.state().marks) == ({"bud_1": 1, "bud_2": 3}, "another")


# ---- producers, and the rounds --------------------------------------------------------------------------------------


async def test_producers_that_are_gone_are_forgotten() -> None:
    world, parts = await started()
    caretaker = caretaker_of(world, parts)
    await charge(world, 0, "bud_1")
    for _ in range(SILENT_DAYS * DAY_MS // ROUND_MS):
        assert world.state().producers
        await next_round(world, caretaker)
    world.clock_ms += 2 * DAY_MS
    await next_round(world, caretaker)
    assert not world.state().producers


async def test_one_process_goes_each_round() -> None:
    world, parts = await started()
    upkeep = MemoryUpkeep(lambda: world.clock_ms, world.store)
    looks: list[str] = []
    look = upkeep.look

    async def counted(server: str, cursor: str) -> Page:
        looks.append(cursor)
        return await look(server, cursor)

    upkeep.look = counted  # type: ignore[method-assign]
    first, second = (caretaker_of(world, parts, upkeep) for _ in range(2))
    for _ in range(3):
        await first.go_round()
        await second.go_round()
    assert len(looks) == 1
    world.clock_ms += ROUND_MS
    await second.go_round()
    assert len(looks) == 2


class Flaky(MemoryUpkeep):
    """A server of three pages that is away once, at its second one; and one org that nothing can be learned of."""

    def __init__(self, world: World) -> None:
        super().__init__(lambda: world.clock_ms, world.store)
        self.looks: list[str] = []
        self.ended: list[str] = []

    async def look(self, server: str, cursor: str) -> Page:
        self.looks.append(cursor)
        if self.looks == ["", "1"]:
            raise UnavailableError("away")
        number = int(cursor or "0")
        keys = tuple(Endless(org, f"bud_{number}", f"{org}{number}", False) for org in ("unknown", ORG))
        return Page(str(number + 1) if number < 2 else None, keys)

    async def end_soon(self, keys: Sequence[Endless]) -> None:
        self.ended += [each.key for each in keys]


async def test_a_round_that_was_cut_short_goes_on_where_it_was() -> None:
    world, parts = await started()
    # Marks of a configuration that control has yet to publish: what is read of this org raises.
    await world.hot.load("unknown", OrgImage({}, {}, {}, {}, filled={"bud_1": 9}), "epoch-1")
    upkeep = Flaky(world)
    caretaker = caretaker_of(world, parts, upkeep)
    try:
        await caretaker.go_round()
    except UnavailableError:
        await caretaker.go_round()
    assert upkeep.looks == ["", "1", "1", "2"]
    assert upkeep.ended == [f"{ORG}{number}" for number in range(3)]
    await caretaker.go_round()
    assert len(upkeep.looks) == 4, "that was the round"


def test_a_round_is_done_long_before_anything_ends() -> None:
    assert ROUND_MS * 100 < GONE_MS
    assert module.PAUSE_S > 0


def test_a_producer_is_remembered_for_as_long_as_the_log_keeps_any_event() -> None:
    assert all(topic.retention_ms <= SILENT_DAYS * DAY_MS for topic in load_topics())
