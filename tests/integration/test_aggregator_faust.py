"""The Faust worker on a real Kafka: it starts from our fences, and no gap and no rebalance gets past them."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as KafkaPlace
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from services.adapters.kafka import KafkaLog
from services.aggregator.faust_app import GROUP
from services.aggregator.patience import EXIT_FATAL
from services.core.ports import TopicPartition
from tests.support.aggregator_rig import AggregatorProcess, Rig, Station
from tests.support.history import TOPICS
from tests.support.kafka import KafkaBroker
from tests.support.valkey import ValkeyServer


@dataclass
class Engines:
    """A station on Kafka, and its broker."""

    station: Station
    broker: KafkaBroker


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    directory = tmp_path_factory.mktemp("engines")
    broker = KafkaBroker(directory / "log")
    settings = {"FARTHING_KAFKA": broker.bootstrap}
    with (
        broker,
        ValkeyServer(directory / "hot") as hot,
        Station(directory, hot.url, settings, partial(KafkaLog, broker.bootstrap)) as station,
    ):
        yield Engines(station, broker)


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


async def settle(rig: Rig, count: int, producer: str = "gw_1", org: str = "default") -> None:
    """Settlements of so many calls."""
    caller = await rig.caller(org, producer)
    await rig.publish(*(caller.settlement(f"txn_{producer}_{number}", 10 + number) for number in range(count)))


async def place_of(rig: Rig) -> TopicPartition:
    """The partition of the org's settlements."""
    return (await rig.messages())[-1].place


async def commit(broker: KafkaBroker, offsets: dict[TopicPartition, int]) -> None:
    """Commits offsets of the aggregator's group, which must have no member."""
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.bootstrap, group_id=GROUP, enable_auto_commit=False)
    await consumer.start()
    try:
        places = {KafkaPlace(place.topic, place.partition): offset for place, offset in offsets.items()}
        consumer.assign(list(places))
        await consumer.commit(places)
        assert await consumer.committed(next(iter(places))) == next(iter(places.values()))
    finally:
        await consumer.stop()


async def stop(rig: Rig, aggregator: AggregatorProcess) -> None:
    await rig.until_folded()
    await rig.until_running(aggregator)
    assert await aggregator.terminate() == 0


async def test_a_group_without_offsets_starts_from_the_fences(rig: Rig, engines: Engines) -> None:
    """The first worker there ever was, and events that were on the log before it."""
    consumer = AIOKafkaConsumer(bootstrap_servers=engines.broker.bootstrap, group_id=GROUP, enable_auto_commit=False)
    await consumer.start()
    assert await consumer.committed(KafkaPlace(TOPICS[1], 0)) is None, "this test must come first"
    await consumer.stop()
    await settle(rig, 30)
    rig.station.spawn()
    await rig.until_folded()
    await rig.assert_exact()


async def test_wrong_group_offsets_change_nothing(rig: Rig, aggregator: AggregatorProcess, engines: Engines) -> None:
    """One partition's is too high, one's too low, one's far outside the log, and one's missing or right."""
    orgs = [f"org-{number}" for number in range(16)]
    for org in orgs:
        await rig.publish_org(org)
        await settle(rig, 5, org=org)
    await stop(rig, aggregator)
    folded = await rig.log.end_offsets(rig.places)
    for org in orgs:
        await settle(rig, 5, "gw_2", org)
    ends = await rig.log.end_offsets(rig.places)
    high, low, outside, *_ = [place for place in rig.places if ends[place] > folded[place] > 5]
    await commit(engines.broker, {high: ends[high], low: folded[low] - 5, outside: ends[outside] + 1_000_000})
    rig.station.spawn()
    await rig.until_folded()
    for org in orgs:
        await rig.until_warm(org)
        await rig.assert_exact(org)


async def test_a_fence_of_zero_replays_the_whole_log_and_changes_nothing(
    rig: Rig, aggregator: AggregatorProcess
) -> None:
    await settle(rig, 20)
    await stop(rig, aggregator)
    await rig.assert_exact()
    before = rig.figures()
    for place in rig.places:
        rig.command("SET", f"fold:{place.topic}:{place.partition}", "0")
    aggregator = rig.station.spawn()
    await rig.until_folded()
    assert rig.figures() == before
    assert aggregator.metric('farthing_folded_events_total{result="duplicate"}') >= 20


async def test_messages_without_key_value_or_headers_stop_nothing(
    rig: Rig, aggregator: AggregatorProcess, engines: Engines
) -> None:
    letters = len(await rig.messages([f"{TOPICS[1]}.dlq"], {}))
    await settle(rig, 1)
    place = await place_of(rig)
    producer = AIOKafkaProducer(bootstrap_servers=engines.broker.bootstrap)
    await producer.start()
    await producer.send_and_wait(
        TOPICS[1], key=None, value=b"", partition=place.partition, headers=[("traceparent", None)]
    )
    await producer.send_and_wait(TOPICS[1], key=b"default", value=None, partition=place.partition)
    await producer.stop()
    await settle(rig, 5, "gw_2")
    await rig.until_folded()
    await rig.assert_exact()
    assert len(await rig.messages([f"{TOPICS[1]}.dlq"], {})) == letters + 2


async def test_workers_that_come_and_go_fold_every_event_once(rig: Rig, aggregator: AggregatorProcess) -> None:
    async def publish() -> None:
        callers = [await rig.caller(producer=f"gw_{number}") for number in range(3)]
        for number in range(400):
            caller = callers[number % 3]
            await rig.publish(caller.reservation(f"txn_{number}"), caller.settlement(f"txn_{number}", number))
            await asyncio.sleep(0.02)

    publishing = asyncio.create_task(publish())
    second = rig.station.spawn()
    await rig.until_running(second)
    third = rig.station.spawn()
    await rig.until_running(third)
    await asyncio.sleep(1.0)
    assert await second.terminate() == 0
    await aggregator.kill()
    await publishing
    await rig.until_folded()
    await rig.assert_exact()
    assert third.is_running()


async def test_a_broker_that_dies_is_waited_out_in_one_line(
    rig: Rig, aggregator: AggregatorProcess, engines: Engines
) -> None:
    await settle(rig, 10)
    await rig.until_folded()
    await asyncio.to_thread(engines.broker.kill)
    await asyncio.sleep(3.0)
    await asyncio.to_thread(engines.broker.start)
    await settle(rig, 10, "gw_2")
    await rig.until_folded()
    await rig.assert_exact()
    assert aggregator.is_running()
    lines = [line for line in aggregator.lines() if line["level"] in ("warning", "error")]
    assert len(lines) <= 2, "one a minute"
    assert any("held back" in line["event"] for line in lines)


async def assert_stopped_at_gap(rig: Rig, process: AggregatorProcess, place: TopicPartition, text: str) -> None:
    """It has ended, and operators can see why."""
    assert await process.exit_code() == EXIT_FATAL
    assert "fold_gap" in process.events()
    assert text in (await rig.hot.alarms())[f"fold_gap:{place.topic}:{place.partition}"]


async def test_a_fence_below_the_log_stops_the_fold(rig: Rig, aggregator: AggregatorProcess, engines: Engines) -> None:
    await settle(rig, 5)
    await stop(rig, aggregator)
    before = rig.figures()
    await settle(rig, 10, "gw_2")
    place = await place_of(rig)
    end = (await rig.log.end_offsets([place]))[place]
    admin = AIOKafkaAdminClient(bootstrap_servers=engines.broker.bootstrap)
    await admin.start()
    await admin.delete_records({KafkaPlace(place.topic, place.partition): RecordsToDelete(before_offset=end - 5)})
    await admin.close()
    await assert_stopped_at_gap(
        rig, rig.station.spawn(), place, f"stands at offset {end - 10}, but the log holds {end - 5} to {end}"
    )
    assert rig.figures() == before, "nothing past the gap is folded"
    rig.command("SET", f"fold:{place.topic}:{place.partition}", str(end))
    rig.station.spawn()

    async def is_quiet() -> bool:
        return len(await rig.hot.alarms()) == 0

    await rig.until(is_quiet, lambda: "the alarm goes once the fold runs from a good fence")


@pytest.mark.parametrize("ending", ["commit", "abort"])
async def test_an_offset_without_a_message_stops_the_fold(
    rig: Rig, aggregator: AggregatorProcess, engines: Engines, ending: str
) -> None:
    """A transaction's marker takes an offset, and looks like any other message that is missing."""
    await settle(rig, 5)
    await rig.until_folded()
    before = rig.figures()
    place = await place_of(rig)
    producer = AIOKafkaProducer(bootstrap_servers=engines.broker.bootstrap, transactional_id=f"test-{ending}")
    await producer.start()
    await producer.begin_transaction()
    sent = await producer.send_and_wait(place.topic, value=b"{}", partition=place.partition)
    await (producer.commit_transaction() if ending == "commit" else producer.abort_transaction())
    await producer.stop()
    marker = sent.offset + 1

    async def is_marked() -> bool:
        return bool((await rig.log.end_offsets([place]))[place] > marker)

    await rig.until(is_marked, lambda: "the marker is on the log")
    await settle(rig, 1, "gw_2")
    text = f"expected offset {marker}, but the log continued at {marker + 1}"
    await assert_stopped_at_gap(rig, aggregator, place, text)
    await assert_stopped_at_gap(rig, rig.station.spawn(), place, text)
    assert (await rig.hot.fold_fences([place]))[place] == marker
    assert rig.figures() == before, "nothing past the gap is folded"
