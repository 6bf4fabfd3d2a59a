"""Calls that are under way when a budget is made: what may come between those who find out what it holds."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from services.aggregator.backfill import HELD_AT_ONCE
from services.core.backfill import ImpliedBudgets
from services.core.budgets import Budget, Charge, Proposal
from services.core.codec import encode_facts, to_message
from services.core.events import CallFacts, Denial, Event, HoldResized, Reservation, Stamped
from services.core.hotstate import Admitted, Backfill, Hold, HoldRequest, OpenHold, Refused
from services.core.identity import Identity
from services.core.implied import HeldBackfills, holds_with_implied, implied_by
from services.core.snapshot import Snapshot, encode_snapshot
from services.core.windows import CalendarWindow, LifetimeWindow, span_at
from tests.support.aggregation import NOW_MS, World
from tests.support.history import DAY_MS

DAY = CalendarWindow("day", "UTC")
OLD = Budget("bud_old", "team", "ml", DAY, 1_000)
NEW = Budget("bud_new", "team", "ml", DAY, 100, since_version=2)
FACTS = CallFacts(Identity("default", "key_1", team="ml"), "openai", "/v1/chat/completions", "m", "m", "exact", "c", 1)
NEW_CHARGE = Charge("bud_new", "team:ml", span_at(DAY, NOW_MS).key())


class Gateway:
    """Holds and changes holds, and publishes what it did."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sequence = 0

    async def admit(self, name: str, amount_nano: int = 40, *budgets: Budget) -> Admitted | Refused:
        answer = await self.world.hot.reserve(self._request(name, amount_nano, FACTS, budgets or (OLD,)))
        assert isinstance(answer, Admitted | Refused)
        return answer

    async def change(self, name: str, amount_nano: int, facts: CallFacts, *budgets: Budget) -> Admitted:
        answer = await self.world.hot.resize(self._request(name, amount_nano, facts, budgets))
        assert isinstance(answer, Admitted)
        return answer

    async def tell_of(self, name: str, answer: Any, amount_nano: int = 40) -> None:
        """Publishes the reservation."""
        told = (name, answer.now_ms, FACTS, "strict", 1, 1, amount_nano, answer.charges, answer.expires_at_ms)
        await self._publish(Reservation(*told))

    async def tell_of_change(self, name: str, answer: Any, amount_nano: int, facts: CallFacts = FACTS) -> None:
        await self._publish(HoldResized(name, answer.now_ms, facts, amount_nano, answer.charges, answer.expires_at_ms))

    async def _publish(self, event: Event) -> None:
        self.sequence += 1
        await self.world.publish(to_message(Stamped(event, "gw_1", self.sequence)))

    def _request(self, name: str, amount_nano: int, facts: CallFacts, budgets: tuple[Budget, ...]) -> HoldRequest:
        now_ms = self.world.clock_ms
        proposals = tuple(
            Proposal(each.budget_id, each.scope, span_at(each.window, now_ms), each.limit_nano) for each in budgets
        )
        return HoldRequest("default", name, amount_nano, proposals, 900_000, encode_facts(facts))


async def publish(world: World, version: int, *budgets: Budget) -> None:
    snapshot = Snapshot("default", version, "v1", 900_000, True, budgets, {})
    await world.directory.publish_org("default", version, encode_snapshot(snapshot), {}, ())


def held(world: World, budget: Budget = NEW) -> int:
    found = world.state().windows.get((budget.budget_id, span_at(budget.window, NOW_MS).key()))
    return found.held_nano if found else 0


@pytest.fixture
async def world() -> World:
    """An org that is warm and has one budget."""
    world = World()
    await publish(world, 1, OLD)
    await world.parts().rebuilder.rebuild_cold()
    return world


@pytest.fixture
def gateway(world: World) -> Gateway:
    return Gateway(world)


def between(world: World, monkeypatch: pytest.MonkeyPatch, at: int, deed: Callable[[], Awaitable[None]]) -> list[int]:
    """Has something happen between one look at the open holds and the step that goes by it.

    The first look is to prepare, the second for the last step. What it answers grows by each look.
    """
    looked = world.hot.open_holds
    looks: list[int] = []

    async def look(*asked: Any) -> Any:
        found = await looked(*asked)
        looks.append(len(found))
        if len(looks) == at:
            await deed()
        return found

    monkeypatch.setattr(world.hot, "open_holds", look)
    return looks


async def test_a_new_budget_admits_no_more_than_it_has_room_for_beside_calls_under_way(
    world: World, gateway: Gateway
) -> None:
    """Of 100, one call holds 60 without knowing of the budget: there is room for 40 more until it has ended."""
    await gateway.tell_of("txn_1", await gateway.admit("txn_1", 60), 60)
    await publish(world, 2, OLD, NEW)
    await world.parts().backfiller.backfill()
    assert isinstance(await gateway.admit("txn_2", 41, OLD, NEW), Refused)
    assert isinstance(await gateway.admit("txn_3", 40, OLD, NEW), Admitted)


async def test_a_hold_made_and_folded_while_the_holds_are_read_is_not_left_out(
    world: World, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another process, which did not know of the backfill yet. Its gateway did not know of the budget."""

    async def deed() -> None:
        await gateway.tell_of("txn_late", await gateway.admit("txn_late", 30), 30)
        await other.fold_all()

    await gateway.tell_of("txn_1", await gateway.admit("txn_1"))
    parts, other = world.parts(), world.parts()
    await other.fold_all()
    await publish(world, 2, OLD, NEW)
    looks = between(world, monkeypatch, 2, deed)
    await parts.backfiller.backfill()
    assert looks == [1, 1, 2]
    assert held(world) == 70


async def test_a_hold_made_by_a_gateway_that_is_late_is_held_when_its_reservation_is_folded(
    world: World, gateway: Gateway
) -> None:
    await publish(world, 2, OLD, NEW)
    parts = world.parts()
    await parts.backfiller.backfill()
    answer = await gateway.admit("txn_1")
    assert held(world) == 0
    await gateway.tell_of("txn_1", answer)
    await parts.fold_all()
    assert held(world) == 40
    assert world.state().holds["txn_1"].implied == (NEW_CHARGE,)


@pytest.mark.parametrize("at", [1, 2])
async def test_a_hold_that_gets_the_budget_meanwhile_is_held_by_it_once(
    world: World, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Its gateway knows of the budget already, and moves the call to another vendor."""

    async def deed() -> None:
        world.clock_ms += 5
        answers.append(await gateway.change("txn_1", 50, moved, OLD, NEW))

    answers: list[Admitted] = []
    moved = replace(FACTS, vendor="other", config_version=2)
    await gateway.tell_of("txn_1", await gateway.admit("txn_1"))
    await publish(world, 2, OLD, NEW)
    parts = world.parts()
    between(world, monkeypatch, at, deed)
    await parts.backfiller.backfill()
    assert held(world) == 50
    await gateway.tell_of_change("txn_1", answers[0], 50, moved)
    await parts.fold_all()
    assert held(world) == 50
    assert world.state().holds["txn_1"].implied == ()


async def test_a_change_is_held_in_the_window_of_the_admission(world: World, gateway: Gateway) -> None:
    """A call was moved by a gateway that was late to learn, a day later, to what falls under a new budget."""
    other = Budget("bud_other", "vendor", "other", DAY, 100, since_version=2)
    answer = await gateway.admit("txn_1")
    await publish(world, 2, OLD, other)
    parts = world.parts()
    await parts.backfiller.backfill()
    await gateway.tell_of("txn_1", answer)
    await parts.fold_all()
    assert held(world, other) == 0
    world.clock_ms += DAY_MS
    moved = replace(FACTS, vendor="other")
    changed = await gateway.change("txn_1", 50, moved)
    await gateway.tell_of_change("txn_1", changed, 50, moved)
    await parts.fold_all()
    assert held(world, other) == 50
    assert [each.window for each in world.state().holds["txn_1"].implied] == [NEW_CHARGE.window]


async def test_a_change_folded_with_its_reservation_finds_the_admission_there(world: World, gateway: Gateway) -> None:
    await publish(world, 2, OLD, NEW)
    parts = world.parts()
    await parts.backfiller.backfill()
    answer = await gateway.admit("txn_1")
    world.clock_ms += DAY_MS
    changed = await gateway.change("txn_1", 50, FACTS)
    await world.hot.release("default", "txn_1")  # as if the server had lost it with its last writes
    await gateway.tell_of("txn_1", answer)
    await gateway.tell_of_change("txn_1", changed, 50)
    await gateway.tell_of_change("txn_nobody_knows", changed, 7)
    await parts.fold_all()
    assert held(world) == 50
    assert list(world.state().holds) == ["txn_1"]


async def test_a_budget_with_another_window_moves_what_is_held(world: World, gateway: Gateway) -> None:
    await gateway.tell_of("txn_1", await gateway.admit("txn_1"))
    await publish(world, 2, OLD, NEW)
    parts = world.parts()
    await parts.backfiller.backfill()
    lasting = replace(NEW, window=LifetimeWindow(), since_version=3)
    await publish(world, 3, OLD, lasting)
    await parts.backfiller.backfill()
    assert (held(world), held(world, lasting)) == (0, 40)


async def test_many_holds_are_prepared_some_at_a_time_and_the_last_step_has_what_is_left(
    world: World, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2 * HELD_AT_ONCE + 1):
        await gateway.admit(f"txn_{number}", 1)
    filled: list[tuple[str, int]] = []
    backfill = world.hot.backfill

    async def seen(org: str, fill: Backfill) -> bool:
        filled.append((fill.token, len(fill.holds)))
        return await backfill(org, fill)

    async def deed() -> None:
        await gateway.admit("txn_late", 1)

    monkeypatch.setattr(world.hot, "backfill", seen)
    between(world, monkeypatch, 1, deed)
    await publish(world, 2, OLD, NEW)
    await world.parts().backfiller.backfill()
    assert [each for token, each in filled if not token] == [HELD_AT_ONCE, HELD_AT_ONCE, 1]
    assert [each for token, each in filled if token] == [1]
    assert held(world) == 2 * HELD_AT_ONCE + 2


async def test_what_was_prepared_and_never_done_goes_with_its_hold(world: World, gateway: Gateway) -> None:
    """The ledger went away in between. What the call did cost is left to the backfill."""
    answer = await gateway.admit("txn_1")
    await gateway.tell_of("txn_1", answer)
    pending = HeldBackfills(ImpliedBudgets([NEW]))
    holds = pending.of(await world.hot.open_holds("default"))
    assert await world.hot.backfill("default", Backfill({}, {}, {"bud_new": 2}, "", holds=holds))
    assert held(world) == 40
    changed = await gateway.change("txn_1", 50, FACTS, OLD)
    assert held(world) == 50
    await gateway.tell_of_change("txn_1", changed, 50)
    parts = world.parts()
    await parts.fold_all()
    assert held(world) == 0, "whoever folds knows nothing of the budget yet"
    await publish(world, 2, OLD, NEW)
    await parts.backfiller.backfill()
    assert held(world) == 50


async def test_a_hold_that_can_not_be_read_is_left_alone(world: World, gateway: Gateway) -> None:
    request = HoldRequest("default", "txn_1", 40, (), 900_000, "not JSON")
    assert isinstance(await world.hot.reserve(request), Admitted)
    await publish(world, 2, NEW)
    await world.parts().backfiller.backfill()
    assert held(world) == 0
    assert implied_by(world.state().holds["txn_1"], ImpliedBudgets([NEW])) == ()


def test_a_hold_loses_what_it_no_longer_falls_under() -> None:
    opened = OpenHold((), encode_facts(replace(FACTS, config_version=2)), NOW_MS, NOW_MS, (NEW_CHARGE,))
    other = replace(opened, implied=(replace(NEW_CHARGE, budget_id="bud_other"),))
    found = HeldBackfills(ImpliedBudgets([NEW])).of({"txn_1": opened, "txn_2": other})
    assert {name: each.charges for name, each in found.items()} == {"txn_1": ()}


def test_a_hold_that_has_changed_is_decided_anew() -> None:
    fills = HeldBackfills(ImpliedBudgets([NEW]))
    opened = OpenHold((), encode_facts(FACTS), NOW_MS, NOW_MS, ())
    assert fills.of({"txn_1": opened})["txn_1"].charges == (NEW_CHARGE,)
    moved = replace(opened, context=encode_facts(replace(FACTS, config_version=2)), changed_at_ms=NOW_MS + 1)
    assert fills.of({"txn_1": moved}) == {}


def test_of_a_ledgers_holds_the_open_ones_imply_something() -> None:
    opened = Hold(7, (), encode_facts(FACTS), NOW_MS, admitted_at_ms=NOW_MS)
    ended = replace(opened, phase="settled")
    found = holds_with_implied({"txn_1": opened, "txn_2": ended}, ImpliedBudgets([NEW]))
    assert [each.implied for each in found.values()] == [(NEW_CHARGE,), ()]
    assert holds_with_implied({"txn_1": opened}, ImpliedBudgets([OLD])) == {"txn_1": opened}


def test_a_denial_and_a_change_of_what_nobody_knows_imply_nothing() -> None:
    implied = ImpliedBudgets([NEW])
    resized = HoldResized("txn_1", NOW_MS, FACTS, 7, (), NOW_MS)
    assert implied.charges_of(resized, NOW_MS) == (NEW_CHARGE,)
    assert implied.charges_of(resized) == ()
    assert implied.charges_of(Denial("txn_1", NOW_MS, FACTS, "unknown_model", "", 0)) == ()
