"""An event log in memory, with what a real one can do to its readers: outages, retention, and gaps."""

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence

from services.core.ports import GoneError, Incoming, Outgoing, TopicDeclaration, TopicPartition, UnavailableError


class MemoryLog:
    """`ports.EventLog` in memory. `is_away` makes every call fail as an outage would."""

    def __init__(self, partitions: Mapping[str, int]) -> None:
        self._topics = dict(partitions)
        self._messages: dict[TopicPartition, list[Incoming]] = {}
        self._lows: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._news = asyncio.Event()
        self.is_away = False
        # Every message of all partitions, in the order in which the log took them.
        self.history: list[Incoming] = []

    def places(self, *topics: str) -> list[TopicPartition]:
        """Every partition of the topics."""
        return [TopicPartition(topic, number) for topic in topics for number in range(self._topics[topic])]

    def messages(self, place: TopicPartition) -> list[Incoming]:
        """What a partition holds."""
        return list(self._messages.get(place, ()))

    def end(self, place: TopicPartition) -> int:
        """The offset that the next message of a partition gets."""
        return self._ends.get(place, 0)

    def slice(self, place: TopicPartition, start: int, most: int) -> list[Incoming]:
        """The first messages of a partition from an offset on. Only for a log that nothing was trimmed from."""
        return self._messages.get(place, [])[start : start + most]

    async def wait(self, seconds: float) -> None:
        """Returns at the next message, or after so long."""
        self._news.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    def skip(self, place: TopicPartition, count: int = 1) -> None:
        """Uses up offsets without a message, as a transaction's marker does."""
        self._ends[place] = self._ends.get(place, 0) + count
        if not self._messages.get(place):
            self._lows[place] = self._ends[place]

    def trim(self, place: TopicPartition, low: int) -> None:
        """Forgets what lies below `low`, as retention does."""
        self._lows[place] = low
        self._messages[place] = [each for each in self._messages.get(place, ()) if each.offset >= low]

    async def create_topics(self, topics: Sequence[TopicDeclaration]) -> None:
        self._check()
        for topic in topics:
            self._topics.setdefault(topic.name, topic.partitions)

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        self._check()
        for message in messages:
            place = TopicPartition(message.topic, zlib.crc32(message.key) % self._topics[message.topic])
            offset = self._ends.get(place, 0)
            self._ends[place] = offset + 1
            taken = Incoming(place.topic, place.partition, offset, message.key, message.value, message.headers, 0)
            self._messages.setdefault(place, []).append(taken)
            self.history.append(taken)
        self._news.set()

    async def partitions(self, topic: str) -> int:
        self._check()
        if topic not in self._topics:
            raise GoneError(f"topic {topic!r} is not there")
        return self._topics[topic]

    async def low_offsets(self, places: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        self._check()
        return {place: self._lows.get(place, 0) for place in places}

    async def end_offsets(self, places: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        self._check()
        return {place: self._ends.get(place, 0) for place in places}

    async def read(
        self, start: Mapping[TopicPartition, int], *, max_messages: int = 1000, max_wait_ms: int = 200
    ) -> AsyncIterator[Sequence[Incoming]]:
        self._check()
        positions = dict(start)
        for place, offset in positions.items():
            if not self._lows.get(place, 0) <= offset <= self._ends.get(place, 0):
                raise GoneError(f"{place}: offset {offset} is outside the log")
        while True:
            self._check()
            self._news.clear()
            batch = [
                message
                for place, offset in positions.items()
                for message in self._messages.get(place, ())
                if message.offset >= offset
            ][:max_messages]
            for message in batch:
                positions[message.place] = message.offset + 1
            yield batch
            if not batch:
                try:
                    async with asyncio.timeout(max_wait_ms / 1000):
                        await self._news.wait()
                except TimeoutError:
                    continue

    async def close(self) -> None:
        return None

    def _check(self) -> None:
        if self.is_away:
            raise UnavailableError("the log is away")
