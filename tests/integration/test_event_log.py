"""What every event log promises (`ports.EventLog`): one suite over Apache Kafka and Valkey Streams, both real."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from services.adapters.kafka import KafkaLog
from services.adapters.valkey_log import ValkeyLog
from services.core.ports import (
    EventLog,
    GoneError,
    Incoming,
    Outgoing,
    TopicDeclaration,
    TopicPartition,
    UnavailableError,
)
from tests.support.kafka import KafkaBroker
from tests.support.patience import patiently
from tests.support.valkey import ValkeyServer

PARTITIONS = 4
HOUR_MS = 3_600_000
_numbers = count()


@dataclass
class Engine:
    """A real engine under a log: what starts it, kills it, freezes it, and how a client of it is made."""

    server: KafkaBroker | ValkeyServer
    connect: Callable[[float], EventLog]

    async def kill(self) -> None:
        await asyncio.to_thread(self.server.kill)

    async def start(self) -> None:
        await asyncio.to_thread(self.server.start)


def kafka(folder: Path) -> Engine:
    broker = KafkaBroker(folder)
    return Engine(broker, lambda timeout_s: KafkaLog(broker.bootstrap, timeout_s=timeout_s))


def valkey(folder: Path) -> Engine:
    server = ValkeyServer(folder, appendonly="always")
    return Engine(server, lambda timeout_s: ValkeyLog(server.url, timeout_s=timeout_s))


@pytest.fixture(scope="module", params=[kafka, valkey], ids=lambda make: make.__name__)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine: Engine = request.param(tmp_path_factory.mktemp("log") / "engine")
    engine.server.start()
    yield engine
    engine.server.stop()


@pytest.fixture
async def log(engine: Engine) -> AsyncIterator[EventLog]:
    log = engine.connect(10.0)
    yield log
    await log.close()


@pytest.fixture
async def hasty(engine: Engine) -> AsyncIterator[EventLog]:
    """A client that gives up after a second."""
    log = engine.connect(1.0)
    yield log
    await log.close()


@pytest.fixture
async def topic(log: EventLog) -> str:
    name = f"test.topic{next(_numbers)}"
    await log.create_topics([TopicDeclaration(name, PARTITIONS, HOUR_MS)])
    return name


def places(topic: str) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for number in range(PARTITIONS)]


def message(topic: str, key: str, value: str | int) -> Outgoing:
    return Outgoing(topic, key.encode(), str(value).encode())


async def read_to_end(log: EventLog, topic: str, start: dict[TopicPartition, int] | None = None) -> list[Incoming]:
    """Everything the log holds now, from `start` (default: 0) on."""
    ends = await log.end_offsets(places(topic))
    start = start or dict.fromkeys(places(topic), 0)
    missing = sum(ends[place] - offset for place, offset in start.items())
    found: list[Incoming] = []
    async with aclosing(log.read(start)) as batches:  # type: ignore[type-var]
        while len(found) < missing:
            async with asyncio.timeout(10):
                found += await anext(batches)
    return found


def values(messages: Sequence[Incoming], key: str | None = None) -> list[str]:
    return [each.value.decode() for each in messages if key is None or each.key == key.encode()]


async def test_topics_are_made_once_and_then_left_as_they_are(log: EventLog, topic: str) -> None:
    await log.publish([message(topic, "a", 1)])
    await log.create_topics([TopicDeclaration(topic, PARTITIONS + 2, HOUR_MS)])
    assert await log.partitions(topic) == PARTITIONS
    assert values(await read_to_end(log, topic)) == ["1"]


async def test_a_topic_that_is_not_there(log: EventLog, hasty: EventLog) -> None:
    with pytest.raises(GoneError, match=r"'test\.missing' is not there"):
        await log.partitions("test.missing")
    with pytest.raises(GoneError, match=r"'test\.missing' is not there"):
        await log.end_offsets([TopicPartition("test.missing", 0)])
    with pytest.raises(UnavailableError):
        await hasty.publish([message("test.missing", "a", 1)])
    with pytest.raises(GoneError):
        await log.partitions("test.missing")


async def test_a_partition_that_is_not_there(log: EventLog, topic: str) -> None:
    for number in (-1, PARTITIONS):
        with pytest.raises(GoneError, match="no such partition"):
            await log.low_offsets([TopicPartition(topic, number)])


async def test_messages_of_a_key_stay_in_order_on_one_partition(log: EventLog, topic: str) -> None:
    keys = [f"org-{number}" for number in range(40)]
    for first in range(0, 60, 20):
        await log.publish([message(topic, key, number) for number in range(first, first + 20) for key in keys])
    found = await read_to_end(log, topic)
    for key in keys:
        assert values(found, key) == [str(number) for number in range(60)]
        assert len({each.partition for each in found if each.key == key.encode()}) == 1
    assert {each.partition for each in found} == set(range(PARTITIONS))


async def test_keys_values_and_headers_are_exact(log: EventLog, topic: str) -> None:
    every_byte = bytes(range(256))
    sent = [
        Outgoing(topic, every_byte, every_byte, (("every", every_byte), ("none", b""))),
        Outgoing(topic, b"", b""),
        Outgoing(topic, b"k", b"\r\n$3\r\n", (("a", b"2"), ("b", b"1"), ("a", b"1"))),
        Outgoing(topic, b"k", b"x" * 262_144, (("größe ✓", "größe ✓".encode()),)),
    ]
    await log.publish(sent)
    found = await read_to_end(log, topic)
    assert sorted((each.key, each.value, each.headers) for each in found) == sorted(
        (each.key, each.value, each.headers) for each in sent
    )


async def test_offsets_are_contiguous_from_zero_and_times_are_now(log: EventLog, topic: str) -> None:
    before_ms = time.time_ns() // 1_000_000
    for _ in range(3):
        await log.publish([message(topic, f"org-{number}", number) for number in range(30)])
    found = await read_to_end(log, topic)
    for place in places(topic):
        offsets = [each.offset for each in found if each.place == place]
        assert offsets == list(range(len(offsets)))
    assert all(before_ms - 50 <= each.timestamp_ms <= time.time_ns() // 1_000_000 + 50 for each in found)


async def test_reading_starts_in_the_middle(log: EventLog, topic: str) -> None:
    await log.publish([message(topic, "a", number) for number in range(10)])
    place = (await read_to_end(log, topic))[0].place
    found = await read_to_end(log, topic, {place: 7})
    assert [(each.offset, each.value) for each in found] == [(7, b"7"), (8, b"8"), (9, b"9")]


async def test_batches_are_no_longer_than_asked(log: EventLog, topic: str) -> None:
    await log.publish([message(topic, f"org-{number}", number) for number in range(50)])
    seen = 0
    async with aclosing(log.read(dict.fromkeys(places(topic), 0), max_messages=8)) as batches:  # type: ignore[type-var]
        async for batch in batches:
            assert len(batch) <= 8
            seen += len(batch)
            if seen == 50:
                break


async def test_an_empty_wait_ends(log: EventLog, topic: str) -> None:
    async with aclosing(log.read(dict.fromkeys(places(topic), 0), max_wait_ms=100)) as batches:  # type: ignore[type-var]
        assert list(await anext(batches)) == []
        started_s = time.monotonic()
        assert list(await anext(batches)) == []
        assert 0.05 <= time.monotonic() - started_s < 1.0


async def test_a_waiting_reader_sees_a_message_at_once(log: EventLog, topic: str) -> None:
    async with aclosing(log.read(dict.fromkeys(places(topic), 0), max_wait_ms=5000)) as batches:  # type: ignore[type-var]
        reading = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0.3)
        published_s = time.monotonic()
        await log.publish([message(topic, "a", 1)])
        assert values(await reading) == ["1"]
        assert time.monotonic() - published_s < 1.0


async def test_low_and_end_offsets(log: EventLog, topic: str) -> None:
    zero = dict.fromkeys(places(topic), 0)
    assert await log.low_offsets(places(topic)) == zero
    assert await log.end_offsets(places(topic)) == zero
    await log.publish([message(topic, "a", number) for number in range(5)])
    place = (await read_to_end(log, topic))[0].place
    assert await log.low_offsets(places(topic)) == zero
    assert await log.end_offsets(places(topic)) == zero | {place: 5}


@pytest.mark.parametrize("offset", [-1, 6, 1_000_000])
async def test_a_start_outside_the_log_is_refused(log: EventLog, topic: str, offset: int) -> None:
    await log.publish([message(topic, "a", number) for number in range(5)])
    place = (await read_to_end(log, topic))[0].place
    with pytest.raises(GoneError, match=f"offset {offset} is outside the log, which has 0 to 5"):
        await anext(log.read({place: offset}))


async def test_a_start_at_the_end_waits_for_what_comes(log: EventLog, topic: str) -> None:
    await log.publish([message(topic, "a", number) for number in range(5)])
    place = (await read_to_end(log, topic))[0].place
    async with aclosing(log.read({place: 5}, max_wait_ms=50)) as batches:  # type: ignore[type-var]
        assert list(await anext(batches)) == []
        await log.publish([message(topic, "a", 5)])
        async for batch in batches:
            if batch:
                assert [each.offset for each in batch] == [5]
                break


async def test_publishing_nothing_is_nothing(log: EventLog, topic: str) -> None:
    await log.publish([])
    assert set((await log.end_offsets(places(topic))).values()) == {0}


async def test_five_thousand_messages_in_one_call(log: EventLog, topic: str) -> None:
    sent = [Outgoing(topic, b"org-%d" % (number % 7), b"%04d" % number + b"x" * 1200) for number in range(5000)]
    await log.publish(sent)
    found = await read_to_end(log, topic)
    for key in {each.key for each in sent}:
        assert [each.value for each in found if each.key == key] == [each.value for each in sent if each.key == key]


async def test_two_publishers_at_once(engine: Engine, log: EventLog, topic: str) -> None:
    other = engine.connect(10.0)

    async def publish(publisher: EventLog, name: str) -> None:
        for first in range(0, 500, 25):
            await publisher.publish([message(topic, "org", f"{name}{first + number}") for number in range(25)])

    await asyncio.gather(publish(log, "a"), publish(other, "b"), publish(log, "c"))
    await other.close()
    found = values(await read_to_end(log, topic))
    assert len(found) == 1500
    for name in "abc":
        assert [value for value in found if value.startswith(name)] == [f"{name}{number}" for number in range(500)]


async def test_retention_drops_what_is_old_and_never_an_offset(engine: Engine, log: EventLog) -> None:
    topic = f"test.topic{next(_numbers)}"
    await log.create_topics([TopicDeclaration(topic, PARTITIONS, 60_000 if isinstance(log, ValkeyLog) else 2_000)])
    await log.publish([message(topic, "a", number) for number in range(5)])
    place = (await read_to_end(log, topic))[0].place
    if isinstance(log, ValkeyLog):
        await age(engine, place, 60_001)
        assert await log.trim_expired({place: 5}) == 5
    await until(lambda: low_offset(log, place, 5))
    assert await log.end_offsets([place]) == {place: 5}
    with pytest.raises(GoneError, match="offset 4 is outside the log, which has 5 to 5"):
        await anext(log.read({place: 4}))
    await log.publish([message(topic, "a", "after")])
    assert [(each.offset, each.value) for each in await read_to_end(log, topic, {place: 5})] == [(5, b"after")]


async def age(engine: Engine, place: TopicPartition, by_ms: int) -> None:
    """Makes every message of a Valkey log's partition older, by writing it again with an earlier time."""
    import redis.asyncio

    assert isinstance(engine.server, ValkeyServer)
    async with redis.asyncio.Redis.from_url(engine.server.url) as client:
        stream = f"log:{place.topic}:{place.partition}"
        entries: Any = await client.xrange(stream)
        await client.delete(stream)
        for entry_id, fields in entries:
            earlier = int(fields[b"t"]) - by_ms
            await client.xadd(
                stream, {b"t": earlier, **{name: fields[name] for name in (b"k", b"v", b"h")}}, id=entry_id
            )


async def low_offset(log: EventLog, place: TopicPartition, wanted: int) -> bool:
    return (await log.low_offsets([place]))[place] == wanted


async def until(holds: Callable[[], Awaitable[bool] | bool], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while True:
            answer = holds()
            if await answer if isinstance(answer, Awaitable) else answer:
                return
            await asyncio.sleep(0.02)


async def test_a_frozen_engine_is_unavailable_and_then_recovers(
    engine: Engine, log: EventLog, hasty: EventLog, topic: str
) -> None:
    await hasty.publish([message(topic, "org", 0)])
    engine.server.pause()
    await asyncio.sleep(0.1)  # for a signal that is still on its way
    try:
        for _ in range(2):
            with pytest.raises(UnavailableError):
                await hasty.publish([message(topic, "org", number) for number in (1, 2)])
    finally:
        engine.server.resume()
    await patiently(lambda: hasty.publish([message(topic, "org", number) for number in (1, 2, 3)]))
    found = values(await patiently(lambda: read_to_end(log, topic)))
    assert list(dict.fromkeys(found)) == ["0", "1", "2", "3"]


async def test_a_kill_under_load(engine: Engine, log: EventLog, topic: str) -> None:
    """Nothing acknowledged is lost, order holds, calls say that the engine is away, and what was going on goes on."""
    total, acknowledged = 3000, 0
    place = await place_of(log, topic, "org")
    found: list[Incoming] = []

    async def publish() -> None:
        nonlocal acknowledged
        while acknowledged < total:
            batch = [message(topic, "org", acknowledged + number) for number in range(10)]
            await patiently(partial(log.publish, batch))
            acknowledged += 10

    async def read() -> None:
        while True:
            try:
                async with aclosing(log.read({place: 1 + len(found)})) as batches:  # type: ignore[type-var]
                    async for batch in batches:
                        found.extend(batch)
            except UnavailableError:
                await asyncio.sleep(0.05)

    publishing, reading = asyncio.create_task(publish()), asyncio.create_task(read())
    await until(lambda: acknowledged > 300 and len(found) > 100)
    await engine.kill()
    before = acknowledged
    await assert_away(engine, topic)
    await engine.start()
    assert before < total
    async with asyncio.timeout(60):
        await publishing
    end = (await patiently(lambda: log.end_offsets([place])))[place]
    await until(lambda: len(found) == end - 1)
    reading.cancel()
    assert [each.offset for each in found] == list(range(1, end))
    assert list(dict.fromkeys(int(value) for value in values(found))) == list(range(total))


async def place_of(log: EventLog, topic: str, key: str) -> TopicPartition:
    """The partition of a key, learnt by publishing its first message."""
    await log.publish([message(topic, key, "first")])
    return (await read_to_end(log, topic))[0].place


async def assert_away(engine: Engine, topic: str) -> None:
    fresh = engine.connect(1.0)
    for call in (
        fresh.publish([message(topic, "org", 1)]),
        fresh.partitions(topic),
        fresh.low_offsets(places(topic)),
        fresh.end_offsets(places(topic)),
        fresh.create_topics([TopicDeclaration("test.other", 1, HOUR_MS)]),
        anext(fresh.read({places(topic)[0]: 0})),
    ):
        with pytest.raises(UnavailableError):
            await call
    await fresh.close()
