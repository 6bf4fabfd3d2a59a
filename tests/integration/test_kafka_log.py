"""What only the Kafka log does: a topic's settings, and a producer that has lost its brokers for good."""

import asyncio
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from services.adapters.kafka import KafkaLog
from services.adapters.topics import load_topics
from services.core.ports import Outgoing, TopicDeclaration, TopicPartition, UnavailableError
from tests.support.kafka import KafkaBroker
from tests.support.patience import patiently
from tests.support.valkey import free_port

PLACE = TopicPartition("test.moves", 0)


async def test_topics_are_made_as_they_are_declared(kafka_broker: str) -> None:
    log = KafkaLog(kafka_broker)
    await log.create_topics(load_topics())
    for topic in load_topics():
        assert await log.partitions(topic.name) == topic.partitions
        settings = await settings_of(kafka_broker, topic.name)
        assert settings["retention.ms"] == str(topic.retention_ms)
        assert settings["cleanup.policy"] == topic.cleanup
        assert settings["max.message.bytes"] == str(topic.max_message_bytes)
        assert settings["message.timestamp.type"] == "LogAppendTime"
        assert settings["min.insync.replicas"] == "1"
    await log.close()


async def settings_of(bootstrap: str, topic: str) -> dict[str, str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    finally:
        await admin.close()
    return {entry[0]: entry[1] for entry in answers[0].resources[0][4]}


async def test_a_topic_kafka_refuses_is_an_error(kafka_broker: str) -> None:
    log = KafkaLog(kafka_broker)
    with pytest.raises(UnavailableError, match="did not make topic no spaces: InvalidTopicError"):
        await log.create_topics([TopicDeclaration("no spaces", 1, 60_000)])
    await log.close()


async def test_no_places_have_no_offsets(kafka_broker: str) -> None:
    """As when another aggregator has set all fences meanwhile: the consumer is stopped as soon as it has started."""
    log = KafkaLog(kafka_broker)
    assert (await log.low_offsets([]), await log.end_offsets([])) == ({}, {})
    await log.close()


async def test_a_producer_whose_brokers_have_moved_is_replaced(tmp_path: Path) -> None:
    """aiokafka asks only the brokers it knows; when all of them have moved, it would wait for ever."""
    broker, second_port = KafkaBroker(tmp_path / "kafka"), free_port()
    await asyncio.to_thread(broker.start)
    log = KafkaLog(f"127.0.0.1:{broker.port},127.0.0.1:{second_port}", timeout_s=0.5)
    try:
        await log.create_topics([TopicDeclaration(PLACE.topic, 1, 3_600_000)])
        await log.publish([Outgoing(PLACE.topic, b"org", b"0")])
        await asyncio.to_thread(broker.kill)
        with pytest.raises(UnavailableError):
            await log.publish([Outgoing(PLACE.topic, b"org", b"1")])
        broker.port = second_port
        await asyncio.to_thread(broker.start)
        await patiently(lambda: log.publish([Outgoing(PLACE.topic, b"org", b"1")]))
        assert (await log.end_offsets([PLACE]))[PLACE] >= 2
    finally:
        await log.close()
        await asyncio.to_thread(broker.stop)
