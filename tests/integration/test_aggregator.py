"""Aggregator processes on a real Valkey, over each log: whatever happens, every event is folded exactly once."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from services.adapters.kafka import KafkaLog
from services.adapters.valkey_log import ValkeyLog
from services.core.budgets import Proposal
from services.core.codec import decode, encode_facts
from services.core.events import Expiry
from services.core.hotstate import HoldRequest
from services.core.ports import EventLog, Outgoing
from services.core.windows import parse_span
from tests.support.aggregator_rig import AggregatorProcess, Rig, Station
from tests.support.history import TOPICS, Caller, charges_at
from tests.support.kafka import KafkaBroker
from tests.support.valkey import ValkeyServer


@dataclass
class Engines:
    """A station, and the switches of what it stands on."""

    station: Station
    hot: ValkeyServer
    log: ValkeyServer | KafkaBroker


@pytest.fixture(scope="module", params=["valkey", "kafka"])
def engines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
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
        yield Engines(station, hot, log)


@pytest.fixture
async def rig(engines: Engines) -> AsyncIterator[Rig]:
    rig = Rig(engines.station)
    await rig.open()
    yield rig
    await rig.close()


@pytest.fixture
async def aggregator(rig: Rig) -> AggregatorProcess:
    """The running aggregator, with the test's org rebuilt."""
    process = rig.station.running()
    await rig.until_warm()
    return process


async def traffic(rig: Rig, calls: int, pause_s: float = 0.0) -> None:
    """Calls of two gateways: most settle, some expire first, some stay open, some events are published twice."""
    chance = random.Random(1)
    gateways = [await rig.caller(producer=f"gw_{number}") for number in range(2)]
    for number in range(calls):
        gateway, name = chance.choice(gateways), f"txn_{number:05}"
        messages = [gateway.reservation(name, 1000 + number)]
        if number % 11 == 0:
            messages.append(gateway.expiry(name, 1000 + number))
        if number % 7:
            messages.append(gateway.settlement(name, 10 * number))
        if number % 5 == 0:
            messages += messages
        await rig.publish(*messages)
        await asyncio.sleep(pause_s)


async def test_every_event_is_folded_exactly_once_whoever_is_killed(rig: Rig, aggregator: AggregatorProcess) -> None:
    chance = random.Random(2)
    publishing = asyncio.create_task(traffic(rig, 500, 0.004))
    for ending in ("kill", "kill", "terminate", "kill"):
        await asyncio.sleep(chance.uniform(0.2, 1.0))
        if ending == "kill":
            await aggregator.kill()
        else:
            await rig.until_running(aggregator)
            assert await aggregator.terminate() == 0
        aggregator = rig.station.spawn()
    await publishing
    await rig.until_folded()
    await rig.assert_exact()
    assert {line["level"] for line in aggregator.lines()} <= {"info", "warning"}


async def test_an_org_that_can_not_be_read_ends_nobody(rig: Rig, aggregator: AggregatorProcess) -> None:
    await rig.publish_org("sick")
    await rig.until_warm("sick")
    charge = Proposal("bud_1", "org:sick", parse_span("l"), 10**12)
    assert await rig.directory.publish_org("sick", 2, b'{"version": 2, "budgets": [{"new": 1}]}', {}, ())
    for org in ("sick", "default"):
        facts = encode_facts((await rig.caller(org)).facts)
        await rig.hot.reserve(HoldRequest(org, f"txn_{org}", 1000, (charge,), 1, facts))
    alarm = 'farthing_fold_alarm{alarm="unreadable_snapshot:sick"}'
    try:
        for process in (aggregator, rig.station.spawn()):

            async def is_told(process: AggregatorProcess = process) -> bool:
                with contextlib.suppress(StopIteration):  # there is no such metric yet
                    return "snapshot_unreadable" in process.events() and process.metric(alarm) == 1.0
                return False

            await rig.until(is_told, lambda: "the alarm is raised", 20)
        await traffic(rig, 30)
        await rig.publish((await rig.caller("sick", "gw_9")).settlement("txn_9"))
        await rig.until_folded()
        ended = [decode(each.value).event for each in await rig.messages()]
        assert {each.transaction_id for each in ended if isinstance(each, Expiry)} >= {"txn_default"}
        assert "txn_sick" not in {each.transaction_id for each in ended}
        for process in (aggregator, rig.station.running()):
            assert process.is_running()
            assert process.events().count("snapshot_unreadable") == 1
        await rig.publish_org("sick", 3)

        async def is_cleared() -> bool:
            return not await rig.hot.alarms() and rig.station.running().metric(alarm) == 0.0

        await rig.until(is_cleared, lambda: "the alarm is cleared", 20)
    finally:
        await aggregator.kill()  # those after this have one


async def test_a_settlement_is_spent_within_a_quarter_of_a_second(rig: Rig, aggregator: AggregatorProcess) -> None:
    caller = await rig.caller()
    charge = charges_at(caller.now_ms)[0]
    proposal = Proposal(charge.budget_id, charge.scope, parse_span(charge.window), 10**15)
    loop = asyncio.get_running_loop()
    await rig.publish(caller.settlement("txn_0"))
    await rig.until_folded()
    delays_s = []
    for number in range(1, 61):
        await rig.publish(caller.settlement(f"txn_{number}"))
        settled_s = loop.time()
        while True:
            standings = await rig.hot.peek("default", [proposal])
            assert standings is not None
            if standings[0].spent_nano == 400 * (number + 1):
                break
            await asyncio.sleep(0.002)
        delays_s.append(loop.time() - settled_s)
    assert sorted(delays_s)[-2] <= 0.25, sorted(delays_s)


async def test_a_wiped_hot_state_comes_back_as_it_was(rig: Rig, aggregator: AggregatorProcess) -> None:
    await traffic(rig, 100)
    await rig.until_folded()
    await rig.assert_exact()
    before, rebuilds = rig.figures(), aggregator.metric("farthing_rebuilds_total")
    ends = await rig.log.end_offsets(rig.places)
    for part in (0, 1, 2):
        taken = {place: rig.begin[place] + (ends[place] - rig.begin[place]) * part // 2 for place in rig.places}
        await rig.ledger_takes("default", taken)
        rig.command("FLUSHALL")
        await rig.publish_org()
        assert await rig.until_warm() < 5
        assert rig.figures() == before
        await rig.until_folded()
    assert aggregator.is_running(), "a wipe is not the aggregator's end"
    assert aggregator.metric("farthing_rebuilds_total") == rebuilds + 3


async def test_a_wipe_under_load_loses_nothing(rig: Rig, aggregator: AggregatorProcess) -> None:
    publishing = asyncio.create_task(traffic(rig, 400, 0.004))
    for _ in range(3):
        await asyncio.sleep(0.6)
        rig.command("FLUSHALL")
        await rig.publish_org()
    await publishing
    await rig.until_warm()
    await rig.until_folded()
    await rig.assert_exact()
    assert aggregator.is_running()


async def test_a_wipe_while_the_aggregator_is_away(rig: Rig, aggregator: AggregatorProcess) -> None:
    await traffic(rig, 50)
    await rig.until_folded()
    await rig.until_running(aggregator)
    assert await aggregator.terminate() == 0
    ends = await rig.log.end_offsets(rig.places)
    await rig.ledger_takes("default", {place: (rig.begin[place] + ends[place]) // 2 for place in rig.places})
    rig.command("FLUSHALL")
    await rig.publish_org()
    caller = await rig.caller(producer="gw_9")
    await rig.publish(caller.reservation("txn_late"), caller.settlement("txn_late", 77))
    rig.station.spawn()
    await rig.until_warm()
    await rig.until_folded()
    await rig.assert_exact()


async def test_a_new_org_is_live_within_a_second(rig: Rig, aggregator: AggregatorProcess) -> None:
    await traffic(rig, 20)
    await rig.publish_org("newcomer")
    assert await rig.until_warm("newcomer") < 1.0


async def test_calls_are_refused_until_the_ledger_answers(rig: Rig, aggregator: AggregatorProcess) -> None:
    before = aggregator.events()
    rig.ledger.status = 503
    rig.command("FLUSHALL")
    await rig.publish_org()
    await asyncio.sleep(2.0)
    assert (await rig.hot.epochs(["default"]))["default"] is None
    rig.ledger.status = 200
    await rig.until_warm()

    async def is_told() -> bool:
        return aggregator.events()[-3:] == ["waiting", "rebuilt", "answered_again"]

    await rig.until(is_told, lambda: "the outage has been told")
    assert aggregator.events()[len(before) :].count("waiting") == 1, "one line an outage"


async def test_an_unreadable_message_is_put_aside_and_the_fold_goes_on(rig: Rig, aggregator: AggregatorProcess) -> None:
    dead_topic = f"{TOPICS[1]}.dlq"
    before = await rig.messages([dead_topic], {})
    caller = await rig.caller()
    await rig.publish(
        caller.settlement("txn_1"),
        Outgoing(TOPICS[1], b"default", b'{"type":"nonsense"}', (("ce_id", b"x/1"),)),
        caller.settlement("txn_2"),
    )
    await rig.until_folded()
    await rig.assert_exact()
    [letter] = (await rig.messages([dead_topic], {}))[len(before) :]
    assert (letter.key, letter.value) == (b"default", b'{"type":"nonsense"}')
    headers = dict(letter.headers)
    assert headers["ce_id"] == b"x/1"
    assert headers["farthing-consumer"] == b"aggregator"
    assert headers["farthing-reason"].startswith(b"field 'type' is 'nonsense'")
    [original] = [each for each in await rig.messages() if each.value == letter.value]
    assert headers["farthing-offset"] == str(original.offset).encode()
    assert aggregator.metric(f'farthing_dead_letters_total{{topic="{TOPICS[1]}"}}') == 1


async def test_a_hold_past_its_time_is_ended_by_an_event(rig: Rig, aggregator: AggregatorProcess) -> None:
    caller = await rig.caller()
    proposals = tuple(
        Proposal(each.budget_id, each.scope, parse_span(each.window), 10**9) for each in charges_at(caller.now_ms)
    )
    await rig.hot.reserve(HoldRequest("default", "txn_1", 700, proposals, 200, encode_facts(caller.facts)))

    async def is_expired() -> bool:
        return bool(rig.figures()["phases"] == {"txn_1": ("expired", 700)})

    await rig.until(is_expired, lambda: "the expiry has been folded")
    [message] = await rig.messages()
    event = decode(message.value).event
    assert isinstance(event, Expiry)
    assert (event.transaction_id, event.booked_nano, event.facts) == ("txn_1", 700, caller.facts)
    assert aggregator.metric("farthing_expired_holds_total") >= 1
    await rig.publish(caller.settlement("txn_1", 150))
    await rig.until_folded()
    await rig.assert_exact()


async def test_engines_that_stop_answering_are_waited_out(
    rig: Rig, aggregator: AggregatorProcess, engines: Engines
) -> None:
    publishing = asyncio.create_task(traffic(rig, 150, 0.004))
    await asyncio.sleep(0.3)
    engines.hot.pause()
    await asyncio.sleep(3.0)
    engines.hot.resume()
    await publishing
    engines.log.pause()
    await asyncio.sleep(3.0)
    engines.log.resume()
    await traffic(rig, 20)
    await rig.until_folded()
    await rig.assert_exact()
    assert aggregator.is_running()


async def test_a_hot_state_that_may_evict_is_refused_at_start(rig: Rig, aggregator: AggregatorProcess) -> None:
    await aggregator.terminate()
    rig.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru", "maxmemory", "1gb")
    try:
        refused = rig.station.spawn()
        assert await refused.exit_code() == 70
    finally:
        rig.command("CONFIG", "SET", "maxmemory-policy", "noeviction", "maxmemory", "0")
    last = refused.lines()[-1]
    assert last["event"] == "aggregator_can_not_run"
    assert "maxmemory-policy allkeys-lru" in last["reason"]


async def test_told_to_stop_while_nothing_answers_it_stops(
    rig: Rig, aggregator: AggregatorProcess, engines: Engines
) -> None:
    await rig.until_running(aggregator)
    engines.hot.pause()
    try:
        await rig.publish(Caller(0).settlement("txn_1"))
        await asyncio.sleep(0.5)
        assert await aggregator.terminate() == 0
    finally:
        engines.hot.resume()
