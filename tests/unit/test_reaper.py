"""The reaper: holds past their time end by one event, however often it is published."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import structlog
from structlog.testing import capture_logs

from services.adapters.memory import MemoryHotState
from services.aggregator import app
from services.aggregator import reaper as reaper_module
from services.aggregator.reaper import UNREADABLE_MS, Reaper
from services.aggregator.underway import KEPT_MS
from services.core.alerts import ThresholdCrossed
from services.core.budgets import Proposal
from services.core.codec import decode, encode_facts
from services.core.events import Expiry
from services.core.hotstate import CLAIM_MS, DueHold, HoldRequest, ReserveAnswer
from services.core.parts import ROUTE, part_flags
from services.core.ports import TopicPartition, UnavailableError
from services.core.snapshot import Snapshot, encode_snapshot
from services.core.windows import CalendarSpan, parse_span
from tests.support.aggregation import NOW_MS, World
from tests.support.history import TOPICS, Caller, charges_at
from tests.support.memory_log import MemoryLog

HOLD_MS = 60_000
CHARGES = charges_at(NOW_MS)
DAY = (CHARGES[0].budget_id, CHARGES[0].window)


@pytest.fixture
async def world() -> World:
    world = World()
    await world.publish_org()
    await world.parts().rebuilder.rebuild_cold()
    return world


async def hold(world: World, name: str, context: str | None = None, org: str = "default") -> ReserveAnswer:
    """What a gateway does when it admits a call."""
    proposals = tuple(Proposal(each.budget_id, each.scope, parse_span(each.window), 10**12) for each in CHARGES)
    facts = encode_facts(Caller(NOW_MS).facts) if context is None else context
    return await world.hot.reserve(HoldRequest(org, name, 1000, proposals, HOLD_MS, facts))


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
    await world.parts().reaper.reap()
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


async def test_a_hold_that_cannot_be_read_raises_an_alarm_until_it_has_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The loggers of a process keep the processors of their first use, which capture_logs could not replace.
    monkeypatch.setattr(reaper_module, "_log", structlog.get_logger())
    await hold(world, "txn_1", context="{}")
    world.clock_ms += HOLD_MS
    parts = world.parts()
    with capture_logs() as lines:
        for _ in range(10):
            await parts.reaper.reap()
            world.clock_ms += CLAIM_MS // 2
    assert [(line["event"], line["transaction_id"]) for line in lines] == [("unreadable_hold", "txn_1")]
    [(name, text)] = (await world.hot.alarms()).items()
    assert (name, parts.told.alarms) == ("unreadable_hold:default", {name: True})
    assert text.startswith("hold txn_1 is over its time and can't be read")
    assert figures(world) == (0, 1000), "what it may have cost is not known: it stays held"
    await world.hot.clear_alarm(name)
    world.clock_ms += CLAIM_MS
    await parts.reaper.reap()
    assert name in await world.hot.alarms(), "a process that was never handed it may have cleared it"
    await world.publish(Caller(NOW_MS).settlement("txn_1", 300))
    await parts.fold_all()
    restarted = world.parts()
    for each in (parts, restarted):
        await each.reaper.reap()
    world.clock_ms += UNREADABLE_MS + 1
    for each in (parts, restarted):
        await each.reaper.reap()
        assert each.told.alarms[name] is False
    assert await world.hot.alarms() == {}


# ---- while the fold stands still ------------------------------------------------------------------------------------


def published(world: World) -> list[str]:
    return [decode(each.value).event.transaction_id for each in world.log.messages(world.settlements)]


async def test_nothing_is_published_again_while_the_fold_stands_still(world: World) -> None:
    """Else a log that nobody folds would grow by every due hold, each half minute."""
    for name in ("txn_1", "txn_2"):
        await hold(world, name)
    world.clock_ms += HOLD_MS
    parts = world.parts()
    for _ in range(20):
        await parts.reaper.reap()
        await hold(world, "txn_3")
        world.clock_ms += CLAIM_MS
    await parts.reaper.reap()
    assert sorted(published(world)) == ["txn_1", "txn_2", "txn_3"]
    assert parts.told.expiries == 3
    await parts.fold_all()
    assert figures(world) == (3000, 0)


async def test_another_reaper_publishes_what_the_first_may_not_have_and_once_only(world: World) -> None:
    await hold(world, "txn_1")
    world.clock_ms += HOLD_MS
    dead, living = world.parts().reaper, world.parts().reaper
    await dead.reap()
    for _ in range(5):
        world.clock_ms += CLAIM_MS
        await living.reap()
    assert published(world) == ["txn_1", "txn_1"]
    await world.parts().fold_all()
    assert figures(world) == (1000, 0)


async def test_a_hold_that_is_still_due_when_the_fold_has_passed_its_expiry_is_expired_again(world: World) -> None:
    """As when the log has lost what it had said it has."""
    await hold(world, "txn_1")
    world.clock_ms += HOLD_MS
    parts = world.parts()
    await parts.reaper.reap()
    lost = world.log.end(world.settlements)
    world.clock_ms += CLAIM_MS
    await parts.reaper.reap()
    await parts.fences.start(world.places)
    await world.hot.move_fold_fence(world.settlements, lost)
    await world.publish(Caller(NOW_MS).settlement("txn_other", 1))
    world.clock_ms += CLAIM_MS
    await parts.reaper.reap()
    assert published(world).count("txn_1") == 2


async def test_an_expiry_that_a_shortened_log_has_lost_is_published_again(world: World) -> None:
    await hold(world, "txn_1")
    world.clock_ms += HOLD_MS
    parts = world.parts()
    await parts.reaper.reap()
    world.clock_ms += CLAIM_MS
    await parts.reaper.reap()
    world.log = MemoryLog(dict.fromkeys((*TOPICS, ThresholdCrossed.TOPIC), 1))
    parts.reaper._event_log = parts.reaper._underway._log = world.log
    world.clock_ms += CLAIM_MS
    await parts.reaper.reap()
    assert published(world) == ["txn_1"]


async def test_what_is_remembered_of_ended_holds_is_let_go(world: World) -> None:
    parts = world.parts()
    for number in range(5):
        await hold(world, f"txn_{number}")
        world.clock_ms += HOLD_MS
        await parts.reaper.reap()
        await parts.fold_all()
        world.clock_ms += KEPT_MS + 1
    assert len(parts.reaper._underway._known) == 1


async def test_a_changed_setting_counts_for_what_expires_from_then_on(world: World) -> None:
    parts = world.parts()
    await hold(world, "txn_1")
    world.clock_ms += HOLD_MS
    await parts.reaper.reap()
    released = Snapshot("default", 2, "v1", 900_000, False, (), {})
    await world.directory.publish_org("default", 2, encode_snapshot(released), {}, ())
    await hold(world, "txn_2")
    world.clock_ms += HOLD_MS
    await parts.reaper.reap()
    await parts.fold_all()
    assert figures(world) == (1000, 0)


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


class WithoutFences(MemoryHotState):
    """A hot state of several servers, one of which is away: the fold's fences are on all of them."""

    async def fold_fences(self, places: Sequence[TopicPartition]) -> Mapping[TopicPartition, int | None]:
        raise UnavailableError("that server is away")


async def test_a_part_that_can_not_be_looked_at_holds_up_no_call_and_no_other_org(world: World) -> None:
    world.store.published.clear()
    await world.publish_org("acme")
    await world.publish_org()
    parts = world.parts()
    await parts.rebuilder.rebuild_cold()
    flags = part_flags("sub_1", CalendarSpan(NOW_MS, NOW_MS + 1_000))
    await hold(world, "txn_0", encode_facts(replace(Caller(NOW_MS).facts, route=ROUTE, flags=flags)), "acme")
    await hold(world, "txn_1", org="acme")
    await hold(world, "txn_2")
    world.clock_ms += HOLD_MS
    reaper = Reaper(world.log, WithoutFences(lambda: world.clock_ms, world.store), world.directory, parts.told)
    with pytest.raises(UnavailableError, match="that server is away"):
        await reaper.reap()
    assert published(world) == ["txn_1", "txn_2"]


async def test_an_alarm_that_can_not_be_kept_holds_up_no_other_org(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaper_module, "_log", structlog.get_logger())
    world.store.published.clear()
    await world.publish_org("acme")
    await world.publish_org()
    parts = world.parts()
    await parts.rebuilder.rebuild_cold()
    await hold(world, "txn_0", "{}", "acme")
    await hold(world, "txn_1")
    world.clock_ms += HOLD_MS

    async def away(_name: str, _text: str) -> None:
        raise UnavailableError("the server of the alarms is away")

    monkeypatch.setattr(world.hot, "set_alarm", away)
    await parts.reaper.reap()
    [message] = world.log.messages(world.settlements)
    assert decode(message.value).event.transaction_id == "txn_1"


async def test_a_process_that_can_not_begin_to_fold_ends_nothing(world: World) -> None:
    """It ends at a gap, and again at each restart: each would publish the same expiries."""
    await hold(world, "txn_1")
    world.clock_ms += HOLD_MS
    parts = world.parts()
    await app._reap(parts.fences, parts.reaper)
    assert published(world) == []
    await parts.fences.start(world.places)
    await app._reap(parts.fences, parts.reaper)
    assert published(world) == ["txn_1"]
