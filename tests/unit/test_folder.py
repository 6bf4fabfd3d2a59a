"""The folder and its fences: in order, exactly once, nothing past a gap."""

import pytest

from services.aggregator.fences import FenceMovedBackError
from services.aggregator.patience import StoppedError
from services.core.fold import OffsetGapError
from services.core.hotstate import ApplyAnswer, FoldStep
from services.core.ports import Outgoing, TopicPartition, UnavailableError
from tests.support.aggregation import DEAD_TOPICS, NOW_MS, World
from tests.support.history import TOPICS, Caller, charges_at

DAY, HOUR = ((each.budget_id, each.window) for each in charges_at(NOW_MS))
GAP = f"fold_gap:{TOPICS[1]}:0"


@pytest.fixture
async def world() -> World:
    world = World()
    await world.publish_org()
    return world


@pytest.fixture
def caller() -> Caller:
    return Caller(NOW_MS)


def spent(world: World) -> int:
    figures = world.state().windows.get(DAY)
    return figures.spent_nano if figures else 0


async def test_settlements_become_spend(world: World, caller: Caller) -> None:
    await world.publish(caller.reservation("txn_1"), caller.settlement("txn_1", 400), caller.reservation("txn_2"))
    parts = world.parts()
    await parts.fold_all()
    assert spent(world) == 400
    assert world.state().windows[DAY].held_nano == 1000
    assert world.store.fold_fences == {world.reservations: 2, world.settlements: 1}
    assert parts.told.fences == world.store.fold_fences
    assert parts.told.spanned == 3


async def test_a_replayed_batch_changes_nothing(world: World, caller: Caller) -> None:
    await world.publish(caller.settlement("txn_1"), caller.settlement("txn_2"))
    parts = world.parts()
    await parts.fold_all()
    await parts.folder.apply(world.settlements, world.log.messages(world.settlements))
    assert spent(world) == 800
    assert parts.told.results == {"applied": 0, "duplicate": 4}, "the rebuild had them, and then the fence"


async def test_a_replay_under_a_lost_fence_changes_nothing(world: World, caller: Caller) -> None:
    await world.publish(caller.settlement("txn_1"), caller.settlement("txn_2"))
    await world.parts().fold_all()
    world.store.fold_fences.clear()
    parts = world.parts()
    await parts.fold_all()
    assert spent(world) == 800
    assert parts.told.results["duplicate"] == 2
    assert world.store.fold_fences[world.settlements] == 2


async def test_an_event_published_twice_counts_once(world: World, caller: Caller) -> None:
    message = caller.settlement("txn_1")
    parts = world.parts()
    await parts.rebuilder.rebuild_cold()
    await world.publish(message, message)
    await parts.fold_all()
    assert spent(world) == 400
    assert parts.told.results == {"applied": 1, "duplicate": 1}


async def test_a_batch_may_mix_two_generations(world: World, caller: Caller) -> None:
    await world.publish(*(caller.settlement(f"txn_{number}") for number in range(6)))
    parts = world.parts()
    await parts.fences.start(world.places)
    messages = world.log.messages(world.settlements)
    await parts.folder.apply(world.settlements, messages[:3])
    await parts.folder.apply(world.settlements, [messages[3], *messages[1:], messages[0]])
    assert spent(world) == 6 * 400
    assert world.store.fold_fences[world.settlements] == 6


async def test_nothing_past_a_gap_is_folded(world: World, caller: Caller) -> None:
    parts = world.parts()
    await parts.rebuilder.rebuild_cold()
    await world.publish(caller.settlement("txn_1"))
    world.log.skip(world.settlements)
    await world.publish(caller.settlement("txn_2"))
    with pytest.raises(OffsetGapError, match="expected offset 1, but the log continued at 2"):
        await parts.fold_all()
    assert spent(world) == 400, "what lies before the gap is folded"
    assert world.store.fold_fences[world.settlements] == 1
    assert world.store.alarms == {GAP: "expected offset 1, but the log continued at 2"}
    assert parts.told.alarms[GAP]
    with pytest.raises(OffsetGapError):
        await world.parts().fold_all()
    assert spent(world) == 400, "the next process stops at the same place"


async def test_a_fence_that_went_back_is_no_gap(world: World, caller: Caller) -> None:
    """An older hot state, or another process that began anew after a wipe: reading starts from the fence again."""
    await world.publish(*(caller.settlement(f"txn_{number}") for number in range(5)))
    parts = world.parts()
    await parts.fold_all()
    await world.publish(caller.settlement("txn_9"))
    world.store.fold_fences[world.settlements] = 2
    with pytest.raises(FenceMovedBackError, match="the fence went back from 5 to 2"):
        await parts.folder.apply(world.settlements, world.log.messages(world.settlements)[5:])
    assert world.store.alarms == {}
    await parts.fold_all()
    assert spent(world) == 6 * 400


async def test_the_alarm_is_cleared_once_the_fold_goes_on(world: World, caller: Caller) -> None:
    parts = world.parts()
    await parts.rebuilder.rebuild_cold()
    await world.publish(caller.settlement("txn_1"))
    world.store.alarms[GAP] = "an earlier process stopped here"
    await parts.fences.start(world.places)
    assert GAP in world.store.alarms, "not proven yet"
    await parts.folder.apply(world.settlements, world.log.messages(world.settlements))
    assert world.store.alarms == {}
    assert parts.told.alarms[GAP] is False


@pytest.mark.parametrize("fence", [1, 9])
async def test_a_fence_outside_the_log_stops_the_fold(world: World, caller: Caller, fence: int) -> None:
    await world.publish(*(caller.settlement(f"txn_{number}") for number in range(5)))
    await world.parts().fold_all()
    world.log.trim(world.settlements, 3)
    world.store.fold_fences[world.settlements] = fence
    with pytest.raises(OffsetGapError, match=f"stands at offset {fence}, but the log holds 3 to 5"):
        await world.parts().fold_all()
    assert GAP in world.store.alarms
    assert spent(world) == 5 * 400


async def test_a_bare_hot_state_starts_from_the_ledger(world: World, caller: Caller) -> None:
    await world.publish(*(caller.settlement(f"txn_{number}") for number in range(5)))
    world.ledger.taken = {world.settlements: 4}
    starts = await world.parts().fences.start(world.places)
    assert starts == {world.reservations: 0, world.settlements: 4}


async def test_a_lost_fence_under_a_warm_org_starts_from_the_logs_beginning(world: World, caller: Caller) -> None:
    await world.publish(*(caller.settlement(f"txn_{number}") for number in range(5)))
    world.ledger.taken = {world.settlements: 4}
    await world.parts().fold_all()
    world.store.fold_fences.clear()
    world.log.trim(world.settlements, 2)
    assert (await world.parts().fences.start(world.places))[world.settlements] == 2


async def test_history_that_neither_ledger_nor_log_has_stops_the_fold(world: World, caller: Caller) -> None:
    await world.publish(*(caller.settlement(f"txn_{number}") for number in range(5)))
    world.ledger.taken = {world.settlements: 2}
    world.log.trim(world.settlements, 3)
    with pytest.raises(OffsetGapError, match="the ledger has offsets below 2 only, but the log begins at 3"):
        await world.parts().fences.start(world.places)
    assert GAP in world.store.alarms


async def test_an_unreadable_message_goes_to_the_dead_letters_first(world: World, caller: Caller) -> None:
    trace = ("traceparent", b"00-1")
    await world.publish(
        caller.settlement("txn_1"), Outgoing(TOPICS[1], b"default", b"\xff{", (trace,)), caller.settlement("txn_2")
    )
    parts = world.parts()
    await parts.fold_all()
    assert spent(world) == 800
    [letter] = world.log.messages(TopicPartition(DEAD_TOPICS[1], 0))
    assert (letter.key, letter.value) == (b"default", b"\xff{")
    assert dict(letter.headers) == {
        "traceparent": b"00-1",
        "farthing-consumer": b"aggregator",
        "farthing-reason": b"not JSON in UTF-8",
        "farthing-topic": TOPICS[1].encode(),
        "farthing-partition": b"0",
        "farthing-offset": b"1",
    }
    assert parts.told.letters == {TOPICS[1]: 1}
    await parts.folder.apply(world.settlements, world.log.messages(world.settlements))
    assert len(world.log.messages(TopicPartition(DEAD_TOPICS[1], 0))) == 1, "a replay sends no second letter"


async def test_the_fence_waits_for_the_dead_letter(world: World) -> None:
    await world.publish(Outgoing(TOPICS[1], b"default", b"{}"))
    parts = world.parts()
    await parts.fences.start(world.places)
    [message] = world.log.messages(world.settlements)
    world.log.is_away = True
    parts.stopping.set()
    with pytest.raises(StoppedError):
        await parts.folder.apply(world.settlements, [message])
    assert world.store.fold_fences[world.settlements] == 0


async def test_an_outage_is_waited_out(world: World, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hot state applies the batch and does not answer: asked again, it finds all of it done."""
    await world.publish(caller.settlement("txn_1"), caller.settlement("txn_2"))
    parts = world.parts()
    await parts.rebuilder.rebuild_cold()
    await world.publish(caller.settlement("txn_3"))
    apply, calls = world.hot.apply, 0

    async def answer_lost(
        org: str, place: TopicPartition, steps: list[FoldStep], next_offset: int, marks: str, above: int
    ) -> ApplyAnswer:
        nonlocal calls
        calls += 1
        answer = await apply(org, place, steps, next_offset, marks, above)
        if calls < 3:
            raise UnavailableError("no answer")
        return answer

    monkeypatch.setattr(world.hot, "apply", answer_lost)
    await parts.fold_all()
    assert calls == 3
    assert spent(world) == 3 * 400


async def test_orgs_are_folded_apart(world: World, caller: Caller) -> None:
    other = Caller(NOW_MS, org="other", producer="gw_2")
    await world.publish(caller.settlement("txn_1", 100), other.settlement("txn_2", 30), caller.settlement("txn_3", 100))
    await world.parts().fold_all()
    assert world.state("default").windows[DAY].spent_nano == 200
    assert world.state("other").windows[DAY].spent_nano == 30


async def test_a_partition_given_away_is_left_to_its_new_owner(world: World, caller: Caller) -> None:
    await world.publish(caller.settlement("txn_1"))
    parts = world.parts()
    await parts.fences.start([world.reservations])
    world.store.fold_fences.clear()
    await parts.folder.apply(world.settlements, world.log.messages(world.settlements))
    assert world.store.fold_fences == {}
    assert spent(world) == 0


async def test_what_was_skipped_as_folded_counts_when_the_fence_is_wiped(world: World, caller: Caller) -> None:
    """This worker began to read where the fence was, while its predecessor was still folding its last batch."""
    await world.publish(*(caller.settlement(f"txn_{number}") for number in range(4)))
    parts = world.parts()
    await parts.fences.start(world.places)
    await world.parts().fold_all()
    await parts.folder.apply(world.settlements, world.log.messages(world.settlements))
    world.store.wipe()
    await world.publish_org()
    await world.publish(caller.settlement("txn_9"))
    await parts.folder.apply(world.settlements, world.log.messages(world.settlements)[4:])
    assert spent(world) == 5 * 400
    assert world.store.alarms == {}


async def test_a_wiped_fence_is_put_back_from_where_this_process_stands(world: World, caller: Caller) -> None:
    await world.publish(*(caller.settlement(f"txn_{number}") for number in range(3)))
    parts = world.parts()
    await parts.fold_all()
    world.store.wipe()
    await world.publish_org()
    await parts.rebuilder.rebuild_cold()
    assert world.store.fold_fences == {world.reservations: 0, world.settlements: 3}
    await world.publish(caller.settlement("txn_9"))
    await parts.folder.apply(world.settlements, world.log.messages(world.settlements))
    assert spent(world) == 4 * 400
