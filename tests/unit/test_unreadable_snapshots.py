"""An org whose snapshot can't be read: it waits where it must, loses nothing, and stands in no other org's way."""

import asyncio
import json
from dataclasses import replace

import pytest
import structlog
from structlog.testing import capture_logs

from services.adapters.memory_upkeep import MemoryUpkeep
from services.aggregator import snapshots as snapshots_module
from services.aggregator.caretaker import ROUND_MS, Caretaker
from services.aggregator.configs import OrgConfig
from services.aggregator.snapshots import Snapshots, UnreadableSnapshotError
from services.core.alerts import ThresholdCrossed, decode_alert
from services.core.budgets import Budget, Charge, Proposal
from services.core.codec import decode, encode_facts, to_message
from services.core.events import CallFacts, Settlement, Stamped
from services.core.hotstate import CLAIM_MS, Hold, HoldRequest, OrgImage
from services.core.identity import Identity
from services.core.ports import Outgoing, TopicPartition
from services.core.snapshot import Snapshot, encode_snapshot
from services.core.windows import LifetimeSpan, LifetimeWindow
from tests.support.aggregation import NOW_MS, Parts, World
from tests.support.gateway import until

SICK, WELL = "default", "other"
HOLD_MS = 60_000


def budget(name: str = "bud_1", since_version: int = 2, limit_nano: int = 1_000) -> Budget:
    return Budget(name, "org", "o", LifetimeWindow(), limit_nano, since_version=since_version)


def body_of(org: str, version: int, *budgets: Budget) -> bytes:
    made = tuple(replace(each, scope_value=org) for each in budgets)
    return encode_snapshot(Snapshot(org, version, "v1", 900_000, True, made, {}))


async def publish(world: World, org: str, version: int, *budgets: Budget) -> None:
    assert await world.directory.publish_org(org, version, body_of(org, version, *budgets), {}, ())


async def publish_newer(world: World, version: int = 3, word: str = "fortnight") -> None:
    """What a newer control may write: whole, but for the words that nobody here knows."""
    fields = json.loads(body_of(SICK, version, budget()))
    fields["budgets"][0]["window"] = {"unit": word, "zone": "UTC"}
    assert await world.directory.publish_org(SICK, version, json.dumps(fields).encode(), {}, ())


class Calls:
    """Settlements of one gateway."""

    def __init__(self) -> None:
        self.sequence = 0

    def settlement(self, org: str, cost_nano: int, version: int, *charges: Charge) -> Outgoing:
        self.sequence += 1
        facts = CallFacts(Identity(org, "key_1"), "openai", "/v1/x", "m", "m", "exact", "c", version)
        event = Settlement(
            *(f"txn_{self.sequence}", NOW_MS, facts, "completed", "reported", {}, (), cost_nano, 0, charges, 200, 0),
            admitted_at_ms=NOW_MS,
        )
        return to_message(Stamped(event, "gw_1", self.sequence))


def tries_of(parts: Parts) -> list[str]:
    """The orgs that the fold asks for, as it does: one entry a try."""
    tries: list[str] = []
    asking = parts.configs.to_fold_by

    async def ask(org: str) -> OrgConfig:
        tries.append(org)
        return await asking(org)

    parts.configs.to_fold_by = ask  # type: ignore[method-assign]
    return tries


def spent(world: World, org: str, name: str = "bud_1") -> int:
    found = world.state(org).windows.get((name, "l"))
    return 0 if found is None else found.spent_nano


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Two warm orgs, each with a backfilled budget."""
    # The loggers of a process keep the processors of their first use, which capture_logs could not replace.
    monkeypatch.setattr(snapshots_module, "_log", structlog.get_logger())
    world = World()
    for org in (SICK, WELL):
        await publish(world, org, 2, budget())
    await world.parts().rebuilder.rebuild_cold()
    assert world.state(SICK).filled == {"bud_1": 2}
    return world


@pytest.fixture
def calls() -> Calls:
    return Calls()


# ---- the fold -------------------------------------------------------------------------------------------------------


async def test_a_new_process_folds_what_implies_nothing_and_all_of_other_orgs(world: World, calls: Calls) -> None:
    await publish_newer(world)
    charge = Charge("bud_1", "org:o", "l")
    await world.publish(
        calls.settlement(SICK, 5, 2, charge), calls.settlement(WELL, 7, 1), calls.settlement(SICK, 6, 3, charge)
    )
    await asyncio.wait_for(world.parts().fold_all(), 5)
    assert (spent(world, SICK), spent(world, WELL)) == (11, 7)


async def test_a_call_whose_charges_only_the_budgets_could_tell_waits_for_them(world: World, calls: Calls) -> None:
    """To fold it without what it implies would leave that out for good."""
    await publish_newer(world)
    await world.publish(calls.settlement(SICK, 5, 1))
    parts = world.parts()
    tries = tries_of(parts)
    folding = asyncio.create_task(parts.fold_all())
    await until(lambda: len(tries) == 3)
    assert (folding.done(), spent(world, SICK)) == (False, 0)
    [message] = world.log.messages(world.settlements)
    config = await parts.configs.to_fold_by(SICK)
    with pytest.raises(UnreadableSnapshotError, match=r"org default can't be read: .*window.unit 'fortnight'"):
        config.implied.charges_of(decode(message.value).event)
    await publish(world, SICK, 4, budget())
    await asyncio.wait_for(folding, 5)
    assert spent(world, SICK) == 5


async def test_a_process_that_has_read_the_budgets_before_goes_on_by_them(world: World, calls: Calls) -> None:
    parts = world.parts()
    await parts.backfiller.backfill()
    await publish_newer(world)
    await parts.backfiller.backfill()
    await world.publish(calls.settlement(SICK, 5, 1))
    await asyncio.wait_for(parts.fold_all(), 5)
    assert spent(world, SICK) == 5


async def test_what_it_has_read_before_does_not_count_once_others_are_backfilled(world: World, calls: Calls) -> None:
    """As by a process of the newer release: the new budgets are charged by what is folded here, too."""
    parts = world.parts()
    await parts.configs.of(SICK)
    await publish_newer(world)
    await parts.configs.refresh()
    world.state(SICK).marks, world.state(SICK).filled = "another", {"bud_1": 2, "bud_2": 3}
    assert (await parts.configs.to_fold_by(SICK)).implied.horizon == 3
    await world.publish(calls.settlement(SICK, 5, 2))
    tries = tries_of(parts)
    folding = asyncio.create_task(parts.fold_all())
    await until(lambda: len(tries) == 3)
    assert not folding.done()
    await publish(world, SICK, 4, budget(), budget("bud_2", 3))
    await asyncio.wait_for(folding, 5)
    assert (spent(world, SICK), spent(world, SICK, "bud_2")) == (0, 5)


async def test_an_org_without_backfilled_budgets_is_folded_whatever_is_published(calls: Calls) -> None:
    world = World()
    await publish(world, SICK, 1)
    await world.parts().rebuilder.rebuild_cold()
    await publish_newer(world, 2)
    await world.publish(calls.settlement(SICK, 5, 1, Charge("bud_1", "org:o", "l")))
    await asyncio.wait_for(world.parts().fold_all(), 5)
    assert spent(world, SICK) == 5


# ---- rebuilding, backfilling, telling -------------------------------------------------------------------------------


async def test_a_cold_org_stays_cold_and_the_others_are_rebuilt(world: World) -> None:
    await publish_newer(world)
    world.state(SICK).epoch = world.state(WELL).epoch = None
    with pytest.raises(UnreadableSnapshotError, match="org default"):
        await world.parts().rebuilder.rebuild_cold()
    assert (world.state(SICK).epoch, world.state(WELL).epoch is None) == (None, False)
    await publish(world, SICK, 4, budget())
    await world.parts().rebuilder.rebuild_cold()
    assert world.state(SICK).filled == {"bud_1": 2}


async def test_its_budgets_wait_with_an_alarm_and_those_of_others_are_backfilled(world: World) -> None:
    parts = world.parts()
    await publish_newer(world)
    await publish(world, WELL, 3, budget(), budget("bud_2", 3))
    with capture_logs() as lines:
        for _ in range(3):
            await parts.backfiller.backfill()
    assert world.state(WELL).filled == {"bud_1": 2, "bud_2": 3}
    assert world.state(SICK).filled == {"bud_1": 2}
    [(name, text)] = (await world.hot.alarms()).items()
    assert (name, parts.told.alarms) == ("unreadable_snapshot:default", {name: True})
    assert "window.unit 'fortnight'" in text
    told = [(line["event"], line["org"]) for line in lines if line["log_level"] == "error"]
    assert told == [("snapshot_unreadable", SICK)]
    await publish(world, SICK, 4, budget(), budget("bud_3", 4))
    await parts.backfiller.backfill()
    assert world.state(SICK).filled == {"bud_1": 2, "bud_3": 4}
    assert (await world.hot.alarms(), parts.told.alarms) == ({}, {name: False})


async def test_the_next_process_knows_the_alarm_and_clears_it(world: World) -> None:
    await publish_newer(world)
    await world.parts().backfiller.backfill()
    restarted = world.parts()
    await restarted.backfiller.backfill()
    assert restarted.told.alarms == {"unreadable_snapshot:default": True}
    await publish(world, SICK, 4, budget())
    await restarted.backfiller.backfill()
    assert (await world.hot.alarms(), restarted.told.alarms) == ({}, {"unreadable_snapshot:default": False})


async def test_no_version_is_decoded_twice_nor_fetched_while_nothing_is_published(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []
    fetched: list[str] = []
    decoding, fetching = snapshots_module.decode_snapshot, world.directory.snapshot

    def decode_counted(body: bytes) -> Snapshot:
        decoded.append(body)
        return decoding(body)

    async def fetch_counted(org: str) -> bytes | None:
        fetched.append(org)
        return await fetching(org)

    monkeypatch.setattr(snapshots_module, "decode_snapshot", decode_counted)
    monkeypatch.setattr(world.directory, "snapshot", fetch_counted)
    await publish_newer(world)
    parts = world.parts()
    for _ in range(3):
        await parts.backfiller.backfill()
        await parts.reaper.reap()
        await parts.configs.to_fold_by(SICK)
        with pytest.raises(UnreadableSnapshotError):
            await parts.configs.implied(SICK)
    assert len(decoded) == len(set(decoded)) == 2
    assert fetched.count(SICK) == 2, "once, and once more to be sure of when"
    await publish(world, WELL, 3, budget())
    with capture_logs() as lines:
        await parts.backfiller.backfill()
        with pytest.raises(UnreadableSnapshotError):
            await parts.configs.of(SICK)
    assert (len(decoded), lines) == (3, []), "another org's publication is no news of this one"
    await publish_newer(world, 4, "moon")
    with capture_logs() as lines:
        await parts.backfiller.backfill()
    assert [line["event"] for line in lines] == ["snapshot_unreadable"]


async def test_what_it_has_spent_meanwhile_is_looked_at_once_it_can_be_read(world: World, calls: Calls) -> None:
    await publish_newer(world)
    parts = world.parts()
    await world.publish(calls.settlement(SICK, 700, 2, Charge("bud_1", "org:o", "l")))
    with capture_logs() as lines:
        await asyncio.wait_for(parts.fold_all(), 5)
        await parts.thresholds.look_again()
    assert [line for line in lines if line["event"] == "thresholds_wait"] == []
    alerts = TopicPartition(ThresholdCrossed.TOPIC, 0)
    assert world.log.messages(alerts) == []
    await publish(world, SICK, 4, budget())
    await parts.thresholds.look_again()
    assert [decode_alert(each.value).percent for each in world.log.messages(alerts)] == [60]


async def test_upkeep_takes_nothing_of_it_for_gone(world: World, calls: Calls) -> None:
    await world.publish(calls.settlement(SICK, 5, 2, Charge("bud_1", "org:o", "l")))
    await world.parts().fold_all()
    await publish_newer(world)
    parts = world.parts()
    upkeep = MemoryUpkeep(lambda: world.clock_ms, world.store)
    caretaker = Caretaker(upkeep, world.hot, parts.configs, parts.patience, lambda: "token")
    world.clock_ms += ROUND_MS
    await caretaker.go_round()
    assert world.state(SICK).filled == {"bud_1": 2}
    assert world.state(SICK).windows["bud_1", "l"].forget_at_ms is None


# ---- the reaper -----------------------------------------------------------------------------------------------------


async def hold(world: World, org: str, name: str) -> None:
    proposals = (Proposal("bud_1", "org:o", LifetimeSpan(), 10**12),)
    facts = encode_facts(CallFacts(Identity(org, "key_1"), "openai", "/v1/x", "m", "m", "exact", "c", 2))
    await world.hot.reserve(HoldRequest(org, name, 1000, proposals, HOLD_MS, facts))


def ended(world: World) -> list[str]:
    return [decode(each.value).event.transaction_id for each in world.log.messages(world.settlements)]


async def test_its_holds_are_not_ended_until_it_is_known_whether_to_book_them(world: World) -> None:
    for org in (SICK, WELL):
        await hold(world, org, f"txn_{org}")
    await publish_newer(world)
    world.clock_ms += HOLD_MS
    parts = world.parts()
    await parts.reaper.reap()
    world.clock_ms += CLAIM_MS
    await parts.reaper.reap()
    assert ended(world).count(f"txn_{SICK}") == 0
    assert f"txn_{WELL}" in ended(world)
    await publish(world, SICK, 4, budget())
    world.clock_ms += CLAIM_MS
    await parts.reaper.reap()
    await parts.fold_all()
    assert spent(world, SICK) == 1000


async def test_a_large_snapshot_is_decoded_beside_the_fold() -> None:
    world = World()
    many = tuple(budget(f"bud_{number}") for number in range(3_000))
    await publish(world, SICK, 2, *many)
    await world.hot.load(SICK, OrgImage({}, {"txn_1": Hold(1, (), "{}", NOW_MS)}, {}, {}), "epoch")
    turns = 0

    async def fold() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    folding = asyncio.create_task(fold())
    snapshots = Snapshots(world.directory)
    one, other = await asyncio.gather(snapshots.latest(SICK), snapshots.at(SICK, 2))
    folding.cancel()
    assert one is other
    assert turns > 10
