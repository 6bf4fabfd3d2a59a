"""The event log on Valkey Streams, for one machine: the same promises as Apache Kafka, from one small process.

A partition is a stream, and the entry with offset n has the id ``<n + 1>-0``: a stream remembers its last id whatever
is trimmed, so offsets are contiguous and are never given twice. An append is one script, all or none. The server must
have an append on disk before it answers; `create_topics` refuses one with other settings.
"""

import zlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import orjson
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.adapters.headers import pack_headers, unpack_headers
from services.adapters.valkey_connect import check_log_address
from services.core.ports import GoneError, Incoming, Outgoing, TopicDeclaration, TopicPartition, UnavailableError

TOPICS_KEY: Final = "log:topics"

# One script stops the server's world while it runs, so each does a bounded amount: single milliseconds.
APPEND_MESSAGES: Final = 500
TRIM_MESSAGES: Final = 10_000

_LAST_ID: Final = """
local function last_id(key)
  if redis.call('EXISTS', key) == 0 then return 0 end
  local info = redis.call('XINFO', 'STREAM', key)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return tonumber(string.match(info[i + 1], '^%d+')) end
  end
end
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
"""

# KEYS: the topics hash, then the streams. ARGV: the streams' topics, then (stream, key, value, headers) a message.
_APPEND: Final = (
    _LAST_ID
    + """
local streams, last = #KEYS - 1, {}
for i = 1, streams do
  if redis.call('HEXISTS', KEYS[1], ARGV[i]) == 0 then
    return redis.error_reply("NOTOPIC topic '" .. ARGV[i] .. "' is not there; create_topics makes it")
  end
  last[i] = last_id(KEYS[i + 1])
end
local now = string.format('%d', now_ms())
for i = streams + 1, #ARGV, 4 do
  local stream = tonumber(ARGV[i])
  last[stream] = last[stream] + 1
  redis.call('XADD', KEYS[stream + 1], string.format('%d-0', last[stream]),
    't', now, 'k', ARGV[i + 1], 'v', ARGV[i + 2], 'h', ARGV[i + 3])
end
"""
)

# KEYS: streams. Answers low and end offset of each.
_BOUNDS: Final = (
    _LAST_ID
    + """
local bounds = {}
for i, key in ipairs(KEYS) do
  local last = last_id(key)
  local first = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
  bounds[i] = {first and tonumber(string.match(first[1], '^%d+')) - 1 or last, last}
end
return bounds
"""
)

# KEYS: a stream. ARGV: retention in ms, how many entries to drop at most, and the first offset to keep whatever its
# age. Answers how many it dropped.
_TRIM: Final = (
    _LAST_ID
    + """
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if not first then return 0 end
local oldest = tonumber(string.match(first[1], '^%d+'))
local cutoff = now_ms() - tonumber(ARGV[1])
local low, high = oldest, math.min(oldest + tonumber(ARGV[2]), tonumber(ARGV[3]) + 1, last_id(KEYS[1]) + 1)
while low < high do
  local middle = math.floor((low + high) / 2)
  local id = string.format('%d-0', middle)
  if tonumber(redis.call('XRANGE', KEYS[1], id, id)[1][2][2]) < cutoff then low = middle + 1 else high = middle end
end
return redis.call('XTRIM', KEYS[1], 'MINID', string.format('%d-0', low))
"""
)


# Without "always" an answer may come before the append-only file has what it answers.
_SAFE_SETTINGS: Final = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}


class UnsafeLogError(RuntimeError):
    """The server could lose messages that it has acknowledged; the text says which setting to change."""


class ValkeyLog:
    """`ports.EventLog` on one Valkey server. `timeout_s` bounds connecting and each answer.

    Raises `ValueError` for the address of a cluster or of Sentinels.
    """

    def __init__(self, url: str, *, timeout_s: float = 5.0) -> None:
        check_log_address(url)
        self._wait_limit_ms = int(timeout_s * 500)
        # No retries in the client: an append that is tried again unasked would be in the log twice.
        self._redis: Redis = Redis.from_url(
            url,
            protocol=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        self._append = self._redis.register_script(_APPEND)
        self._bounds_of = self._redis.register_script(_BOUNDS)
        self._trim = self._redis.register_script(_TRIM)
        self._partitions: dict[str, int] = {}

    async def create_topics(self, topics: Sequence[TopicDeclaration]) -> None:
        """Makes the topics that are missing. Raises `UnsafeLogError` for a server that could lose messages."""
        with _unavailable():
            await self._check_server()
            for topic in topics:
                declaration = {"partitions": topic.partitions, "retention_ms": topic.retention_ms}
                await self._redis.hsetnx(TOPICS_KEY, topic.name, orjson.dumps(declaration))

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        """Returns when every message is on disk."""
        with _unavailable():
            for first in range(0, len(messages), APPEND_MESSAGES):
                await self._publish_some(messages[first : first + APPEND_MESSAGES])

    async def partitions(self, topic: str) -> int:
        """How many partitions the topic has; raises `GoneError` when there is no such topic."""
        if topic not in self._partitions:
            with _unavailable():
                declaration = await self._redis.hget(TOPICS_KEY, topic)
            if declaration is None:
                raise GoneError(f"topic {topic!r} is not there; create_topics makes it")
            self._partitions[topic] = orjson.loads(declaration)["partitions"]
        return self._partitions[topic]

    async def low_offsets(self, places: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """The first offset still held of each partition."""
        return {place: low for place, (low, _) in (await self._bounds(places)).items()}

    async def end_offsets(self, places: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """The offset the next message of each partition will get."""
        return {place: end for place, (_, end) in (await self._bounds(places)).items()}

    async def read(
        self, start: Mapping[TopicPartition, int], *, max_messages: int = 1000, max_wait_ms: int = 200
    ) -> AsyncIterator[Sequence[Incoming]]:
        """Batches from the given offsets on; see `ports.EventLog.read`."""
        positions = dict(start)
        places = {_stream(place).encode(): place for place in positions}
        count = max(1, max_messages // len(positions))
        block = min(max_wait_ms, self._wait_limit_ms) or None
        await self._check_within(positions)
        while True:
            with _unavailable():
                # An entry's id is its offset plus one, so the ids after '<offset>-0' begin with the one at that offset.
                after: dict[Any, Any] = {_stream(place): f"{offset}-0" for place, offset in positions.items()}
                answer: Any = await self._redis.xread(after, count=count, block=block)
            found = [_incoming(places[stream], *entry) for stream, entries in answer for entry in entries]
            batch = found[:max_messages]
            for message in batch:
                if message.offset != positions[message.place]:
                    raise GoneError(f"{message.place}: offset {positions[message.place]} has been trimmed")
                positions[message.place] += 1
            if not batch:
                # A log that was wiped or replaced has nothing after our positions, and would look idle for ever.
                await self._check_within(positions)
            yield batch

    async def trim_expired(self, bounds: Mapping[TopicPartition, int]) -> int:
        """Drops messages that are older than their topic's retention; answers how many.

        `bounds` has the first offset that each partition must keep whatever its age: what someone has yet to read. A
        partition without a bound keeps everything. Nothing else bounds this log's size: the process that runs it calls
        this every minute or so.
        """
        dropped = 0
        with _unavailable():
            topics: dict[Any, Any] = await self._redis.hgetall(TOPICS_KEY)
            for name, packed in topics.items():
                declaration = orjson.loads(packed)
                for number in range(declaration["partitions"]):
                    place = TopicPartition(name.decode(), number)
                    if place not in bounds:
                        continue
                    arguments = [declaration["retention_ms"], TRIM_MESSAGES, bounds[place]]
                    while some := int(await self._trim(keys=[_stream(place)], args=arguments)):
                        dropped += some
        return dropped

    async def close(self) -> None:
        """Closes all connections."""
        await self._redis.aclose()

    async def _check_server(self) -> None:
        cluster: Any = await self._redis.info("cluster")
        if cluster.get("cluster_enabled"):
            raise UnsafeLogError("the event log's Valkey is in a cluster, where no append is one step: take one server")
        settings: Any = await self._redis.config_get(*_SAFE_SETTINGS)
        for name, value in _SAFE_SETTINGS.items():
            found = settings[name]
            if found != value:
                raise UnsafeLogError(
                    f"the event log's Valkey has {name} {found}; it must be {value}, or messages get lost"
                )

    async def _publish_some(self, messages: Sequence[Outgoing]) -> None:
        streams: dict[TopicPartition, int] = {}
        arguments: list[Any] = []
        for message in messages:
            number = zlib.crc32(message.key) % await self._partitions_to_publish(message.topic)
            stream = streams.setdefault(TopicPartition(message.topic, number), len(streams) + 1)
            arguments += (stream, message.key, message.value, pack_headers(message.headers))
        await self._append(
            keys=[TOPICS_KEY, *(_stream(place) for place in streams)],
            args=[*(place.topic for place in streams), *arguments],
        )

    async def _partitions_to_publish(self, topic: str) -> int:
        try:
            return await self.partitions(topic)
        except GoneError as error:
            # To a publisher a topic that is not there is an outage: it keeps its messages and tries again.
            raise UnavailableError(str(error)) from error

    async def _bounds(self, places: Sequence[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        for place in places:
            if not 0 <= place.partition < await self.partitions(place.topic):
                raise GoneError(f"{place}: there is no such partition")
        with _unavailable():
            bounds = await self._bounds_of(keys=[_stream(place) for place in places])
        return {place: (low, end) for place, (low, end) in zip(places, bounds, strict=True)}

    async def _check_within(self, positions: Mapping[TopicPartition, int]) -> None:
        for place, (low, end) in (await self._bounds(list(positions))).items():
            if not low <= positions[place] <= end:
                raise GoneError(f"{place}: offset {positions[place]} is outside the log, which has {low} to {end}")


def _stream(place: TopicPartition) -> str:
    return f"log:{place.topic}:{place.partition}"


def _incoming(place: TopicPartition, entry_id: bytes, fields: Mapping[bytes, bytes]) -> Incoming:
    return Incoming(
        topic=place.topic,
        partition=place.partition,
        offset=int(entry_id.partition(b"-")[0]) - 1,
        key=fields[b"k"],
        value=fields[b"v"],
        headers=unpack_headers(fields[b"h"]),
        timestamp_ms=int(fields[b"t"]),
    )


@contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise UnavailableError(f"the event log's Valkey: {error}") from error
