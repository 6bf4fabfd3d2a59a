"""Budgets made, re-windowed and enlarged while two gateways settle, with real processes over each log."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial

import pytest

from services.adapters.kafka import KafkaLog
from services.adapters.valkey_log import ValkeyLog
from services.core.alerts import ThresholdCrossed, decode_alert
from services.core.budgets import Budget, Charge, Proposal
from services.core.codec import encode_facts, to_message
from services.core.events import CallFacts, Expiry, Reservation, Settlement, Stamped
from services.core.hotstate import EXPIRY_PRODUCER, Admitted, HoldRequest, Refused, ReserveAnswer
from services.core.identity import Identity
from services.core.ports import EventLog, Outgoing
from services.core.windows import IntervalWindow, LifetimeSpan, LifetimeWindow, RollingWindow, span_at
from tests.support.aggregator_rig import AggregatorProcess, Rig, Station
from tests.support.history import DAY_MS
from tests.support.kafka import KafkaBroker
from tests.support.valkey import ValkeyServer

OLD = Budget("bud_old", "org", "default", LifetimeWindow(), 10**15, thresholds=())
NEW = Budget("bud_new", "team", "ml", LifetimeWindow(), 200_000, since_version=2)
# A length of its own, so that no window turns in a test; a rolling one, none of whose buckets leaves in it.
WIDE = Budget("bud_wide", "user", "*", IntervalWindow(400 * DAY_MS, 0), 10**15, thresholds=(), since_version=3)
ROLLING = Budget("bud_wide", "user", "*", RollingWindow(60 * DAY_MS), 10**15, thresholds=(), since_version=4)


@pytest.fixture(scope="module", params=["valkey", "kafka"])
def station(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    directory = tmp_path_factory.mktemp("engines")
    log: ValkeyServer | KafkaBroker
    connect: Callable[[], EventLog]
    if request.param == "valkey":
        log = valkey_log = ValkeyServer(directory / "log", appendonly="always")
        settings, connect = {"FARTHING_LOG_URL": valkey_log.url}, partial(ValkeyLog, valkey_log.url)
    else:
        log = broker = KafkaBroker(directory / "log")
        settings, connect = {"FARTHING_KAFKA": broker.bootstrap}, partial(KafkaLog, broker.bootstrap)
    with log, ValkeyServer(directory / "hot") as hot, Station(directory, hot.url, settings, connect) as station:
        yield station


@pytest.fixture
async def rig(station: Station) -> AsyncIterator[Rig]:
    rig = Rig(station)
    await rig.open()
    yield rig
    await rig.close()


class Writer:
    """One gateway: its calls carry the charges of the configuration that it last looked at."""

    def __init__(self, name: str, rig: Rig, seed: int) -> None:
        self.name = name
        self.config: tuple[int, tuple[Budget, ...]] = (1, (OLD,))
        self.costs: list[tuple[str | None, int, int]] = []
        self._rig = rig
        self._chance = random.Random(seed)
        self._sequence = 0

    async def write(self, calls: int, pause_s: float) -> None:
        """Settles so many calls; some expire first, some are told twice."""
        for number in range(calls):
            version, budgets = self.config
            now_ms = await self._rig.hot.now_ms()
            user, cost_nano = self._chance.choice([None, "ada", "bob"]), self._chance.randrange(1, 1_000)
            who = Identity("default", "key_1", team="ml", user=user)
            facts = CallFacts(who, "openai", "/v1/x", "m", "m", "exact", "c", version)
            head = (f"txn_{self.name}_{number}", now_ms, facts)
            charges = tuple(_charges(budgets, user, now_ms))
            messages: list[Outgoing] = []
            if number % 9 == 0:
                expiry = Expiry(*head, 500, 500, charges, admitted_at_ms=now_ms)
                messages.append(to_message(Stamped(expiry, EXPIRY_PRODUCER + head[0], 1)))
            self._sequence += 1
            settlement = Settlement(
                *(*head, "completed", "reported", {}, (), cost_nano, 500, charges, 200, 0), admitted_at_ms=now_ms
            )
            messages.append(to_message(Stamped(settlement, self.name, self._sequence)))
            await self._rig.publish(*messages * (1 + (number % 7 == 0)))
            self.costs.append((user, cost_nano, now_ms))
            await asyncio.sleep(pause_s)


def _charges(budgets: Sequence[Budget], user: str | None, now_ms: int) -> Iterator[Charge]:
    for budget in budgets:
        if budget.scope_kind != "user":
            yield Charge(budget.budget_id, budget.scope, span_at(budget.window, now_ms).key())
        elif user is not None:
            yield Charge(f"{budget.budget_id}@{user}", f"user:{user}", span_at(budget.window, now_ms).key())


def meant(budgets: Sequence[Budget], writers: Sequence[Writer]) -> dict[tuple[str, str], int]:
    spent: dict[tuple[str, str], int] = {}
    for writer in writers:
        for user, cost_nano, now_ms in writer.costs:
            for charge in _charges(budgets, user, now_ms):
                slot = charge.budget_id, charge.window
                spent[slot] = spent.get(slot, 0) + cost_nano
    return spent


async def until_filled(rig: Rig, since: dict[str, int]) -> None:
    async def is_filled() -> bool:
        return (await rig.hot.marks("default", ())).filled == since

    await rig.until(is_filled, lambda: f"{since} are backfilled")


async def test_budgets_that_change_while_gateways_settle_end_exact(rig: Rig) -> None:
    first = rig.station.running()
    await rig.until_warm()
    await rig.until_running(first)
    second = rig.station.spawn()
    writers = [Writer(f"gw_{number}", rig, number) for number in (1, 2)]
    writing = [asyncio.create_task(writer.write(260, 0.012)) for writer in writers]
    enlarged = Budget("bud_new", "team", "ml", LifetimeWindow(), 250_000, since_version=2)
    for version, budgets, since in (
        (2, (OLD, NEW), {"bud_new": 2}),
        (3, (OLD, NEW, WIDE), {"bud_new": 2, "bud_wide": 3}),
        (4, (OLD, NEW, ROLLING), {"bud_new": 2, "bud_wide": 4}),
        (5, (OLD, enlarged, ROLLING), {"bud_new": 2, "bud_wide": 4}),
    ):
        await asyncio.sleep(0.5)
        if version == 3:
            ends = await rig.log.end_offsets(rig.places)
            await rig.ledger_takes("default", {place: (rig.begin[place] + ends[place]) // 2 for place in rig.places})
        await rig.publish_org("default", version, *budgets)
        writers[0].config = (version, budgets)
        await asyncio.sleep(0.2)  # the other gateway learns of it later
        writers[1].config = (version, budgets)
        await until_filled(rig, since)
    await asyncio.gather(*writing)
    await rig.until_folded()
    last = (OLD, enlarged, ROLLING)
    expected = meant(last, writers)
    assert await figures(rig, last) == expected
    await check_thresholds(rig)

    # Wiped, it comes back the same; and the ledger's half of the history is enough for the half that it has.
    rig.command("FLUSHALL")
    await rig.publish_org("default", 5, *last)
    await rig.until_warm()
    assert await figures(rig, last) == expected
    await rig.until_folded()
    assert await figures(rig, last) == expected
    assert (await rig.hot.marks("default", ())).filled == {"bud_new": 2, "bud_wide": 4}
    await stop(first, second)


async def test_what_calls_under_way_hold_counts_against_a_budget_made_meanwhile(rig: Rig) -> None:
    """Known to the log or not when it is made, or made by a gateway that had not learned of it; and so after a wipe."""
    process = rig.station.running()
    await rig.until_warm()
    await rig.until_running(process)
    who = Identity("default", "key_1", team="ml")
    facts = CallFacts(who, "openai", "/v1/x", "m", "m", "exact", "c", 1)
    now_ms = await rig.hot.now_ms()
    [old_charge] = charges = tuple(_charges((OLD,), None, now_ms))
    old, new = (Proposal(each.budget_id, each.scope, LifetimeSpan(), each.limit_nano) for each in (OLD, NEW))

    async def admit(name: str, *proposals: Proposal, amount_nano: int = 60_000) -> ReserveAnswer:
        told = (proposals, 900_000, encode_facts(facts))
        return await rig.hot.reserve(HoldRequest("default", name, amount_nano, *told))

    async def hold(name: str, sequence: int, *, is_told: bool) -> Outgoing:
        answer = await admit(name, old)
        assert isinstance(answer, Admitted)
        event = Reservation(name, now_ms, facts, "strict", 1, 1, 60_000, charges, now_ms + 900_000)
        message = to_message(Stamped(event, "gw_1", sequence))
        if is_told:
            await rig.publish(message)
        return message

    await hold("txn_1", 1, is_told=True)
    waiting = await hold("txn_2", 2, is_told=False)
    await rig.publish_org("default", 2, OLD, NEW)
    await until_filled(rig, {"bud_new": 2})
    assert rig.figures()["held"] == {("bud_old", "l"): 120_000, ("bud_new", "l"): 120_000}
    late = await hold("txn_3", 3, is_told=False)
    await rig.publish(waiting, late)
    await rig.until_folded()
    assert rig.figures()["held"] == {("bud_old", "l"): 180_000, ("bud_new", "l"): 180_000}
    assert isinstance(await admit("txn_4", old, new, amount_nano=20_001), Refused)
    rig.command("FLUSHALL")
    await rig.publish_org("default", 2, OLD, NEW)
    await rig.until_warm()
    assert rig.figures()["held"] == {("bud_old", "l"): 180_000, ("bud_new", "l"): 180_000}
    head = (now_ms, facts, "completed", "reported", {}, (), 1_000, 60_000, (old_charge,), 200, 0)
    endings = [Settlement(f"txn_{number}", *head, admitted_at_ms=now_ms) for number in (1, 2, 3)]
    await rig.publish(*(to_message(Stamped(each, "gw_1", at)) for at, each in enumerate(endings, 4)))
    await rig.until_folded()
    assert rig.figures()["held"] == {}
    assert rig.figures()["spent"] == {("bud_old", "l"): 3_000, ("bud_new", "l"): 3_000}
    await stop(process)


async def figures(rig: Rig, budgets: Sequence[Budget]) -> dict[tuple[str, str], int]:
    """What the present windows of these budgets have spent."""
    ids = {each.budget_id: span_at(each.window, 0).key()[0] for each in budgets}
    return {slot: nano for slot, nano in rig.figures()["spent"].items() if ids[slot[0].partition("@")[0]] == slot[1][0]}


async def check_thresholds(rig: Rig) -> None:
    """The thresholds of the one budget that has any are told of once each, as equal ids are one event."""
    messages = await rig.messages([ThresholdCrossed.TOPIC])
    events = {dict(message.headers)["ce_id"]: decode_alert(message.value) for message in messages}
    spent = rig.figures()["spent"]["bud_new", "l"]
    assert sorted(each.percent for each in events.values()) == [each for each in (60, 85, 100) if spent >= each * 2_500]


async def stop(*processes: AggregatorProcess) -> None:
    for process in processes:
        if process.is_running():
            assert await process.terminate() == 0
