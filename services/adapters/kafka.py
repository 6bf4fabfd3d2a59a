"""The event log on Apache Kafka.

What a publisher is told to repeat, it repeats from its first message on, and consumers drop what they have seen of a
producer by sequence. So a message must never become durable while one before it, on its partition, did not: at most one
record batch of a partition is under way at a time, and nothing new is sent while an earlier one is in doubt.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as KafkaPlace
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, OffsetOutOfRangeError, TopicAlreadyExistsError, for_code

from services.core.ports import GoneError, Incoming, Outgoing, TopicDeclaration, TopicPartition, UnavailableError

MAX_BATCH_BYTES: Final = 262_144
MAX_REQUEST_BYTES: Final = 1_048_576
REPLICAS: Final = 3

# A producer that has not acknowledged for this many time limits is replaced as soon as the brokers take another.
PATIENCE: Final = 6
STOP_S: Final = 1.0

# What a message takes beside its key, value and headers, at most.
_FRAMING_BYTES: Final = 96


class KafkaLog:
    """`ports.EventLog` on Apache Kafka. `bootstrap` is ``host:port[,host:port]``; `timeout_s` bounds every call."""

    def __init__(self, bootstrap: str, *, timeout_s: float = 10.0) -> None:
        self._timeout_s = timeout_s
        self._client_options = {"bootstrap_servers": bootstrap, "request_timeout_ms": int(timeout_s * 1000)}
        self._publishing = asyncio.Lock()
        self._producer: Any = None
        self._in_doubt: set[asyncio.Future[Any]] = set()
        self._in_doubt_since_s = 0.0

    async def create_topics(self, topics: Sequence[TopicDeclaration]) -> None:
        """Makes the topics that are missing, on up to `REPLICAS` brokers; those there are left as they are."""
        async with self._admin() as admin:
            replicas = min(REPLICAS, len((await admin.describe_cluster())["brokers"]))
            answer = await admin.create_topics([_new_topic(topic, replicas) for topic in topics])
        for name, code, *_ in answer.topic_errors:
            error = for_code(code)
            if code and error is not TopicAlreadyExistsError:
                raise UnavailableError(f"Kafka did not make topic {name}: {error.__name__}")

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        """Returns when every in-sync replica has every message."""
        for batch in _batches(messages):
            async with self._publishing:
                with _unavailable():
                    await self._publish_batch(batch)

    async def partitions(self, topic: str) -> int:
        """How many partitions the topic has; raises `GoneError` when there is no such topic."""
        return (await self._partitions({topic}))[topic]

    async def low_offsets(self, places: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """The first offset still held of each partition."""
        await self._check_places(places)
        async with self._consumer() as consumer:
            return _by_place(await consumer.beginning_offsets(_kafka_places(places)))

    async def end_offsets(self, places: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """The offset the next message of each partition will get."""
        await self._check_places(places)
        async with self._consumer() as consumer:
            return _by_place(await consumer.end_offsets(_kafka_places(places)))

    async def read(
        self, start: Mapping[TopicPartition, int], *, max_messages: int = 1000, max_wait_ms: int = 200
    ) -> AsyncIterator[Sequence[Incoming]]:
        """Batches from the given offsets on; see `ports.EventLog.read`. Empty ones while the brokers are away."""
        await self._check_places(list(start))
        async with self._consumer() as consumer:
            places = _kafka_places(list(start))
            low, end = await consumer.beginning_offsets(places), await consumer.end_offsets(places)
            consumer.assign(places)
            for kafka_place, (place, offset) in zip(places, start.items(), strict=True):
                first, last = low[kafka_place], end[kafka_place]
                if not first <= offset <= last:
                    raise GoneError(f"{place}: offset {offset} is outside the log, which has {first} to {last}")
                consumer.seek(kafka_place, offset)
            while True:
                try:
                    records = await consumer.getmany(timeout_ms=max_wait_ms, max_records=max_messages)
                except OffsetOutOfRangeError as error:
                    raise GoneError(f"the log no longer has these offsets: {error}") from error
                yield [_incoming(record) for partition in records.values() for record in partition]

    async def close(self) -> None:
        """Closes all connections; what is still under way may or may not arrive."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await self._stop(producer)
        self._drop_doubts()

    async def _publish_batch(self, messages: Sequence[Outgoing]) -> None:
        if self._in_doubt:
            await self._settle_doubts()
        if self._producer is None:
            self._producer = await self._start_producer()
        self._in_doubt_since_s = time.monotonic()
        for message in messages:
            self._in_doubt.add(
                await self._producer.send(
                    message.topic, key=message.key, value=message.value, headers=list(message.headers)
                )
            )
        await self._resolve()

    async def _settle_doubts(self) -> None:
        """Waits for what an earlier call left under way."""
        if time.monotonic() - self._in_doubt_since_s > PATIENCE * self._timeout_s:
            # It starts only when the brokers can be reached, so a mere outage changes nothing.
            fresh = await self._start_producer()
            silent, self._producer = self._producer, fresh
            self._drop_doubts()
            await self._stop(silent)
        else:
            await self._resolve()

    async def _resolve(self) -> None:
        done, pending = await asyncio.wait(self._in_doubt, timeout=self._timeout_s)
        self._in_doubt = pending
        failures = [error for future in done if (error := future.exception()) is not None]
        if failures:
            # Its sequence numbers have a gap now, which Kafka would not let it pass.
            failed, self._producer = self._producer, None
            self._drop_doubts()
            await self._stop(failed)
            raise failures[0]
        if pending:
            raise TimeoutError(f"{len(pending)} messages were not acknowledged in {self._timeout_s} s")

    def _drop_doubts(self) -> None:
        for future in self._in_doubt:
            future.cancel()
        self._in_doubt = set()

    async def _start_producer(self) -> Any:
        producer = AIOKafkaProducer(
            acks="all",
            enable_idempotence=True,
            max_batch_size=MAX_BATCH_BYTES,
            max_request_size=MAX_REQUEST_BYTES,
            **self._client_options,
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                await producer.start()
        except BaseException:
            await producer.stop()
            raise
        return producer

    @staticmethod
    async def _stop(producer: Any) -> None:
        try:
            # stop() flushes first, which takes for ever when the brokers are away.
            async with asyncio.timeout(STOP_S):
                await producer.stop()
        except (KafkaError, TimeoutError):
            await producer.client.close()

    async def _partitions(self, names: set[str]) -> dict[str, int]:
        async with self._admin() as admin:
            # All topics are asked for, not these: brokers may be set to make a topic that is asked for.
            found = {each["topic"]: len(each["partitions"]) for each in await admin.describe_topics()}
        missing = sorted(names - found.keys())
        if missing:
            raise GoneError(f"topic {missing[0]!r} is not there; create_topics makes it")
        return found

    async def _check_places(self, places: Sequence[TopicPartition]) -> None:
        partitions = await self._partitions({place.topic for place in places})
        for place in places:
            if not 0 <= place.partition < partitions[place.topic]:
                raise GoneError(f"{place}: there is no such partition")

    @asynccontextmanager
    async def _admin(self) -> AsyncIterator[Any]:
        admin = AIOKafkaAdminClient(**self._client_options)
        try:
            with _unavailable():
                await admin.start()
                yield admin
        finally:
            await admin.close()

    @asynccontextmanager
    async def _consumer(self) -> AsyncIterator[Any]:
        # "none": an offset outside the log is an error, never a silent jump to another.
        consumer = AIOKafkaConsumer(auto_offset_reset="none", enable_auto_commit=False, **self._client_options)
        try:
            with _unavailable():
                await consumer.start()
                yield consumer
        finally:
            # Its coordinator cancels a task of its own and awaits it: one that has not begun would be taken for ours.
            await asyncio.sleep(0)
            await consumer.stop()


def _new_topic(topic: TopicDeclaration, replicas: int) -> Any:
    return NewTopic(
        topic.name,
        topic.partitions,
        replicas,
        topic_configs={
            "cleanup.policy": topic.cleanup,
            "retention.ms": str(topic.retention_ms),
            "max.message.bytes": str(topic.max_message_bytes),
            "min.insync.replicas": str(max(1, replicas - 1)),
            # The broker's clock decides what has expired, not that of a gateway.
            "message.timestamp.type": "LogAppendTime",
        },
    )


def _batches(messages: Sequence[Outgoing]) -> Iterator[Sequence[Outgoing]]:
    """The messages in order, in runs that fit one record batch even if all are for one partition."""
    first, size = 0, 0
    for index, message in enumerate(messages):
        more = _FRAMING_BYTES + len(message.key) + len(message.value)
        more += sum(len(name.encode()) + len(value) + 10 for name, value in message.headers)
        if size + more > MAX_BATCH_BYTES and index > first:
            yield messages[first:index]
            first, size = index, 0
        size += more
    if first < len(messages):
        yield messages[first:]


def _kafka_places(places: Sequence[TopicPartition]) -> list[Any]:
    return [KafkaPlace(place.topic, place.partition) for place in places]


def _by_place(offsets: Mapping[Any, int]) -> dict[TopicPartition, int]:
    return {TopicPartition(*place): offset for place, offset in offsets.items()}


def _incoming(record: Any) -> Incoming:
    return Incoming(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=record.key or b"",
        value=record.value or b"",
        headers=tuple((name, value or b"") for name, value in record.headers),
        timestamp_ms=record.timestamp,
    )


@contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except (KafkaError, OSError) as error:
        raise UnavailableError(f"Kafka: {type(error).__name__}: {error}") from error
