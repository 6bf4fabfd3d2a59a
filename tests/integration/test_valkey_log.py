"""What only the Valkey log does: the settings it insists on, its trimming, and noticing that it was wiped."""

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import redis

from services.adapters import valkey_log
from services.adapters.topics import load_topics
from services.adapters.valkey_log import UnsafeLogError, ValkeyLog
from services.core.ports import GoneError, Outgoing, TopicDeclaration, TopicPartition, UnavailableError
from tests.support.patience import patiently
from tests.support.valkey import ValkeyServer

TOPIC = TopicDeclaration("test.topic", 1, 60_000)
PLACE = TopicPartition(TOPIC.name, 0)
STREAM = "log:test.topic:0"
ALL = {PLACE: 2**53 - 1}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyServer]:
    server = ValkeyServer(tmp_path / "valkey", appendonly="always")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def client(server: ValkeyServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as client:
        yield client


@pytest.fixture
async def log(server: ValkeyServer) -> AsyncIterator[ValkeyLog]:
    log = ValkeyLog(server.url)
    await log.create_topics([TOPIC])
    yield log
    await log.close()


def message(number: int) -> Outgoing:
    return Outgoing(TOPIC.name, b"org", b"%d" % number)


def add_old(client: redis.Redis, count: int, age_ms: int) -> None:
    """Appends messages that came `age_ms` ago."""
    seconds, micros = client.time()
    entry: Any = {"t": seconds * 1000 + micros // 1000 - age_ms, "k": b"org", "v": b"old", "h": b"[]"}
    first = client.xinfo_stream(STREAM)["last-generated-id"] if client.exists(STREAM) else b"0-0"
    for number in range(int(first.partition(b"-")[0]) + 1, int(first.partition(b"-")[0]) + 1 + count):
        client.xadd(STREAM, entry, id=f"{number}-0")


@pytest.mark.parametrize(
    ("setting", "value"), [("appendonly", "no"), ("appendfsync", "everysec"), ("maxmemory-policy", "allkeys-lru")]
)
async def test_a_server_that_could_lose_messages_is_refused(
    server: ValkeyServer, client: redis.Redis, setting: str, value: str
) -> None:
    client.config_set(setting, value)
    log = ValkeyLog(server.url)
    with pytest.raises(UnsafeLogError, match=f"{setting} {value}; it must be"):
        await log.create_topics([TOPIC])
    await log.close()


async def test_only_what_has_expired_is_trimmed(log: ValkeyLog, client: redis.Redis) -> None:
    await log.create_topics(load_topics())
    assert await log.trim_expired(ALL) == 0
    add_old(client, 7, 60_001)
    add_old(client, 2, 50_000)
    await log.publish([message(1)])
    assert await log.trim_expired(ALL) == 7
    assert await log.low_offsets([PLACE]) == {PLACE: 7}
    assert await log.end_offsets([PLACE]) == {PLACE: 10}
    assert await log.trim_expired(ALL) == 0


async def test_what_has_yet_to_be_read_is_kept_whatever_its_age(
    log: ValkeyLog, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valkey_log, "TRIM_MESSAGES", 3)
    add_old(client, 10, 60_001)
    assert await log.trim_expired({}) == 0
    assert await log.trim_expired({TopicPartition(TOPIC.name, 1): 10}) == 0
    assert await log.trim_expired({PLACE: 0}) == 0
    assert await log.low_offsets([PLACE]) == {PLACE: 0}
    for bound, dropped in [(7, 7), (5, 0), (7, 0), (8, 1), (99, 2)]:
        assert await log.trim_expired({PLACE: bound}) == dropped
        assert await log.low_offsets([PLACE]) == {PLACE: min(max(bound, 7), 10)}


async def test_trimming_goes_on_until_all_that_has_expired_is_gone(
    log: ValkeyLog, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valkey_log, "TRIM_MESSAGES", 10)
    add_old(client, 35, 60_001)
    assert await log.trim_expired(ALL) == 35
    assert await log.low_offsets([PLACE]) == await log.end_offsets([PLACE]) == {PLACE: 35}


async def test_offsets_go_on_after_everything_was_trimmed_and_the_server_was_killed(
    server: ValkeyServer, log: ValkeyLog, client: redis.Redis
) -> None:
    add_old(client, 5, 60_001)
    assert await log.trim_expired(ALL) == 5
    client.bgrewriteaof()
    while client.info("persistence")["aof_rewrite_in_progress"] or client.info("persistence")["aof_rewrite_scheduled"]:
        pass
    server.kill()
    server.start()
    # A connection that died with the server is noticed by the next call, which may fail.
    await patiently(lambda: log.publish([message(1)]))
    async with aclosing(log.read({PLACE: 5})) as batches:  # type: ignore[type-var]
        assert [(each.offset, each.value) for each in await anext(batches)] == [(5, b"1")]


async def test_a_reader_that_fell_behind_the_retention_is_told(log: ValkeyLog, client: redis.Redis) -> None:
    add_old(client, 5, 60_001)
    async with aclosing(log.read({PLACE: 0}, max_messages=2)) as batches:  # type: ignore[type-var]
        assert [each.offset for each in await anext(batches)] == [0, 1]
        assert await log.trim_expired(ALL) == 5
        await log.publish([message(1)])
        with pytest.raises(GoneError, match=r"test\.topic\[0\]: offset 2 has been trimmed"):
            await anext(batches)


async def test_a_wiped_log_is_noticed_by_a_waiting_reader(log: ValkeyLog, client: redis.Redis) -> None:
    await log.publish([message(number) for number in range(3)])
    async with aclosing(log.read({PLACE: 3}, max_wait_ms=20)) as batches:  # type: ignore[type-var]
        assert list(await anext(batches)) == []
        client.flushall()
        with pytest.raises(GoneError, match=r"offset 3 is outside the log, which has 0 to 0"):
            await anext(batches)


async def test_nothing_is_published_to_a_log_that_has_lost_its_topics(log: ValkeyLog, client: redis.Redis) -> None:
    await log.publish([message(1)])
    client.flushall()
    with pytest.raises(UnavailableError, match=r"topic 'test\.topic' is not there"):
        await log.publish([message(2)])
    assert client.dbsize() == 0


async def test_a_full_server_takes_nothing_of_a_batch(log: ValkeyLog, client: redis.Redis) -> None:
    client.config_set("maxmemory", 1)
    with pytest.raises(UnavailableError, match="used memory > 'maxmemory'"):
        await log.publish([message(number) for number in range(10)])
    client.config_set("maxmemory", 0)
    assert await log.end_offsets([PLACE]) == {PLACE: 0}
    await log.publish([message(1)])
