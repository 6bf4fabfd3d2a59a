"""A hot state that loses its last writes in the middle of a batch: what it has lost is folded again, not skipped."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields

import pytest

from services.adapters.memory import MemoryHotState, MemoryStore
from services.aggregator.fences import FenceMovedBackError
from services.core.hotstate import ApplyAnswer, FoldStep
from services.core.ports import TopicPartition
from tests.support.aggregation import Parts, World
from tests.support.history import TOPICS, Caller


class Failing(MemoryHotState):
    """Takes a batch, and has lost the one before it by then: a replica that was behind has taken over."""

    loses = False

    async def apply(
        self,
        org: str,
        place: TopicPartition,
        steps: Sequence[FoldStep],
        next_offset: int,
        marks: str | None = None,
        above: int = 0,
    ) -> ApplyAnswer:
        if self.loses:
            self.loses = False
            self.store.fold_fences[place] = 0
            lost = self.store.state("acme")
            for part in (lost.holds, lost.due, lost.windows, lost.rings, lost.fences, lost.producers):
                part.clear()
        return await super().apply(org, place, steps, next_offset, marks, above)


async def test_a_fence_that_goes_back_while_a_batch_is_folded_is_not_lifted_over_what_was_lost() -> None:
    world = World()
    hot = world.hot = Failing(lambda: world.clock_ms, world.store)
    await world.publish_org("acme")
    await world.publish_org("other")
    parts = world.parts()
    await parts.rebuilder.rebuild(["acme", "other"])
    await world.publish(Caller(world.clock_ms, "acme").reservation("txn_1"))
    await parts.fold_all()
    assert "txn_1" in world.state("acme").holds
    await world.publish(Caller(world.clock_ms, "other", "gw_2").reservation("txn_2"))
    hot.loses = True
    with pytest.raises(FenceMovedBackError, match="went back from 1 to 0"):
        await parts.fold_all()
    assert "txn_1" not in world.state("acme").holds
    await parts.fold_all()  # reading begins anew, from the fence
    assert "txn_1" in world.state("acme").holds
    assert world.store.fold_fences[world.reservations] == 2


async def test_a_fence_moves_forward_only_from_where_it_must_stand() -> None:
    world = World()
    place = world.reservations
    assert await world.hot.move_fold_fence(place, 5, 3), "one that is missing is set"
    assert not await world.hot.move_fold_fence(place, 9, 6)
    assert (await world.hot.fold_fences([place]))[place] == 5
    assert await world.hot.move_fold_fence(place, 4, 5), "it never goes back"
    assert await world.hot.move_fold_fence(place, 9, 5)
    assert (await world.hot.fold_fences([place]))[place] == 9


class Replaced(MemoryHotState):
    """A hot state that an older one takes the place of, just before or just after something is asked of it."""

    older: MemoryStore | None = None
    before: str | None = None
    after: str | None = None
    is_wiped_first = False

    def _fail_over(self, when: str | None, what: str) -> None:
        if when == what and self.older is not None:
            for name in ("states", "fold_fences"):
                setattr(self.store, name, getattr(self.older, name))
            self.older = None

    async def apply(
        self,
        org: str,
        place: TopicPartition,
        steps: Sequence[FoldStep],
        next_offset: int,
        marks: str | None = None,
        above: int = 0,
    ) -> ApplyAnswer:
        self._fail_over(self.before, "apply")
        answer = await super().apply(org, place, steps, next_offset, marks, above)
        self._fail_over(self.after, "apply")
        return answer

    async def org_fences(self, orgs: Sequence[str], place: TopicPartition) -> Mapping[str, int | None]:
        self._fail_over(self.before, "org_fences")
        if self.is_wiped_first:
            self.is_wiped_first = False
            self.store.states, self.store.fold_fences = {}, {}
        return await super().org_fences(orgs, place)


async def folded_until_replaced(world: World, older: int, lose: Callable[[Replaced], None]) -> Parts:
    """Three reservations, folded one by one, and a hot state that has lost its writes in the middle of the third.

    It is then as it was when the first `older` of them were folded. Reading begins anew, if it has to.
    """
    hot = world.hot = Replaced(lambda: world.clock_ms, world.store)
    await world.publish_org("acme")
    parts = world.parts()
    await parts.rebuilder.rebuild(["acme"])
    caller = Caller(world.clock_ms, "acme")
    states = []
    for number in range(3):
        states.append(copy.deepcopy(world.store))
        if number == 2:
            hot.older = states[older]
            lose(hot)
        await world.publish(caller.reservation(f"txn_{number}"))
        try:
            await parts.fold_all()
        except FenceMovedBackError:
            await parts.fold_all()
    assert hot.older is None, "it was replaced"
    return parts


@pytest.mark.parametrize("older", [1, 2])
@pytest.mark.parametrize("when", [{"before": "apply"}, {"after": "apply"}, {"before": "org_fences"}])
async def test_whatever_is_lost_in_the_middle_of_a_batch_is_folded_again(older: int, when: dict[str, str]) -> None:
    """Older by one batch, or by this one alone: then no fence stands lower than it did when the batch was begun."""
    world = World()
    await folded_until_replaced(world, older, lambda hot: hot.__dict__.update(when))
    assert set(world.state("acme").holds) == {"txn_0", "txn_1", "txn_2"}
    assert world.state("acme").fences[TOPICS[0], 0] == world.store.fold_fences[world.reservations] == 3


async def test_an_org_that_was_cold_and_is_warm_again_in_an_older_state_takes_nothing_past_what_it_lacks() -> None:
    world = World()

    def lose(hot: Replaced) -> None:
        hot.is_wiped_first, hot.before = True, "apply"

    await folded_until_replaced(world, 1, lose)
    assert set(world.state("acme").holds) == {"txn_0", "txn_1", "txn_2"}


async def test_a_fence_waits_for_the_orgs_that_are_warm() -> None:
    world = World()
    place = world.reservations
    await world.publish_org("acme")
    assert await world.hot.org_fences(["acme"], place) == {"acme": None}
    assert await world.hot.move_fold_fence(place, 2, 0, ["acme"]), "a cold org is rebuilt past it"
    await world.parts().rebuilder.rebuild(["acme"])
    assert await world.hot.org_fences(["acme"], place) == {"acme": 0}
    assert not await world.hot.move_fold_fence(place, 5, 2, ["acme"])
    assert (await world.hot.fold_fences([place]))[place] == 2
    await world.hot.apply("acme", place, [], 5)
    assert await world.hot.move_fold_fence(place, 5, 2, ["acme"])


class Returning(MemoryHotState):
    """A hot state that was wiped, and is there again as it was before that once somebody moves a fence."""

    older: MemoryStore | None = None

    async def move_fold_fence(
        self, place: TopicPartition, next_offset: int, above: int = 0, orgs: Sequence[str] = ()
    ) -> bool:
        if self.older is not None:
            for each in fields(MemoryStore):
                setattr(self.store, each.name, getattr(self.older, each.name))
            self.older = None
        return await super().move_fold_fence(place, next_offset, above, orgs)


async def test_a_first_fence_is_none_for_a_state_from_before_the_wipe_that_has_its_own() -> None:
    world = World()
    hot = world.hot = Returning(lambda: world.clock_ms, world.store)
    await world.publish_org("acme")
    parts = world.parts()
    await parts.rebuilder.rebuild(["acme"])
    await parts.fold_all()
    await world.publish(Caller(world.clock_ms, "acme").reservation("txn_1"))
    hot.older = copy.deepcopy(world.store)
    world.store.wipe()
    world.ledger.taken = dict(await world.log.end_offsets(world.places))
    await world.parts().fold_all()
    assert "txn_1" in world.state("acme").holds
    assert world.store.fold_fences[world.reservations] == 1
