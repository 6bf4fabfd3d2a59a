"""The ledger's sink on a log in memory and a real ClickHouse engine, and ways to trip it."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from services.adapters.memory import MemoryHotState, MemoryStore
from services.core.codec import to_message
from services.core.events import Denial, Event, Expiry, Reservation, Settlement, Stamped
from services.core.hotstate import EXPIRY_PRODUCER
from services.core.ports import EventLog, Incoming, LedgerStore, Outgoing, Query, TopicPartition, UnavailableError
from services.ledger.fences import next_offsets
from services.ledger.sink import Sink
from tests.support.memory_log import MemoryLog

SOURCES = (Reservation.TOPIC, Settlement.TOPIC, Denial.TOPIC)
ALL_EVENTS = Query(
    "SELECT topic, partition, `offset`, producer, sequence, type, transaction_id, raw FROM events"
    " ORDER BY topic, partition, `offset`"
)
ALL_SKIPPED = Query(
    "SELECT topic, partition, `offset`, reason, detail FROM skipped ORDER BY topic, partition, `offset`"
)


def now_ms() -> int:
    """This machine's clock."""
    return time.time_ns() // 1_000_000


def new_log(partitions: int = 2) -> MemoryLog:
    """An empty log with the topics the ledger reads and their dead-letter topics."""
    return MemoryLog({name: partitions for topic in SOURCES for name in (topic, f"{topic}.dlq")})


class Publisher:
    """Stamps events as one gateway's outbox does, and publishes them."""

    def __init__(self, log: EventLog, producer: str = "gw_01JD3V0S5G8Q4X1Y2Z3A4B5C6D") -> None:
        self._event_log = log
        self._producer = producer
        self.sequence = 0

    def stamp(self, event: Event) -> Outgoing:
        """The next message of this producer; an expiry has a producer of its own."""
        if isinstance(event, Expiry):
            return to_message(Stamped(event, EXPIRY_PRODUCER + event.transaction_id, 1))
        self.sequence += 1
        return to_message(Stamped(event, self._producer, self.sequence))

    async def publish(self, *events: Event) -> list[Outgoing]:
        """Publishes the events; the messages, so that they can be published again."""
        messages = [self.stamp(event) for event in events]
        await self._event_log.publish(messages)
        return messages


class Watcher:
    """An `Observer` that remembers."""

    def __init__(self) -> None:
        self.counted: Counter[str] = Counter()
        self.fences: dict[TopicPartition, int] = {}
        self.recorded: list[Incoming] = []

    def recording(self, messages: Sequence[Incoming]) -> AbstractContextManager[None]:
        return self._recording(messages)

    @contextmanager
    def _recording(self, messages: Sequence[Incoming]) -> Iterator[None]:
        yield
        self.recorded.extend(messages)

    def rows(self, event_type: str, count: int) -> None:
        self.counted["rows"] += count
        self.counted[event_type] += count

    def duplicates(self, count: int) -> None:
        self.counted["duplicates"] += count

    def dead_letters(self, topic: str, count: int) -> None:
        self.counted["dead_letters"] += count

    def fence(self, place: TopicPartition, next_offset: int) -> None:
        self.fences[place] = next_offset


class TrippedStore:
    """A `LedgerStore` whose inserts fail as told, `before` or `after` they took effect, counted from 1."""

    def __init__(self, store: LedgerStore) -> None:
        self._store = store
        self.before: set[int] = set()
        self.after: set[int] = set()
        self.inserts: list[tuple[str, list[Any]]] = []
        self.on_insert: Callable[[int], None] = lambda number: None

    async def query(self, *queries: Query) -> Sequence[Sequence[Mapping[str, Any]]]:
        return await self._store.query(*queries)

    async def insert(self, table: str, rows: Sequence[Mapping[str, object]], token: str) -> None:
        self.inserts.append((table, [row["offset"] for row in rows]))
        number = len(self.inserts)
        if number in self.before:
            raise UnavailableError("the store is away")
        await self._store.insert(table, rows, token)
        self.on_insert(number)
        if number in self.after:
            raise UnavailableError("the store's answer was lost")


class Rig:
    """A sink with everything it needs. `run` may be called again and again: each time is a new process."""

    def __init__(self, store: LedgerStore, log: EventLog | None = None) -> None:
        self.log: EventLog = log or new_log()
        self.store = TrippedStore(store)
        self.memory = MemoryStore()
        self.hot = MemoryHotState(now_ms, self.memory)
        self.watcher = Watcher()
        self.publisher = Publisher(self.log)

    def sink(self) -> Sink:
        """A sink as a new process would make it."""
        return Sink(self.log, self.store, self.hot, SOURCES, self.watcher)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """A sink at work; ended at once, whatever it was doing, when the block ends."""
        task: asyncio.Task[None] = asyncio.create_task(self.sink().run())
        try:
            yield task
        finally:
            # Again and again, as at every place where a library may have let a cancellation go by.
            while not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=1.0)
            with contextlib.suppress(asyncio.CancelledError, Exception):
                task.result()

    async def catch_up(self, seconds: float = 10.0) -> None:
        """Runs a sink until it has everything the log has; raises what ended it before."""
        async with self.running() as task:
            await self.until_level(task, seconds)

    async def until_level(self, task: asyncio.Task[None], seconds: float = 10.0) -> None:
        """Waits until the running sink has everything the log has; raises what ended it before."""
        deadline = time.monotonic() + seconds
        while not await self.is_level():
            if task.done():
                task.result()
            assert time.monotonic() < deadline, "the sink did not catch up"
            await asyncio.sleep(0.01)

    async def is_level(self) -> bool:
        """Whether the ledger accounts for every offset of the log."""
        places = [TopicPartition(topic, at) for topic in SOURCES for at in range(await self.log.partitions(topic))]
        ends = await self.log.end_offsets(places)
        stored = await next_offsets(self.store)
        return all(stored.get(place, 0) == end for place, end in ends.items())

    async def events(self) -> list[Mapping[str, Any]]:
        """Every event row, in log order."""
        (rows,) = await self.store.query(ALL_EVENTS)
        return list(rows)

    async def skipped(self) -> list[Mapping[str, Any]]:
        """Every skipped offset, in log order."""
        (rows,) = await self.store.query(ALL_SKIPPED)
        return list(rows)
