"""The sink: every event of the log into the ledger, exactly once, in one loop that waits or ends the process.

Where to go on from is asked of ClickHouse, never of a consumer group. What does not answer is waited for with the batch
in hand; a gap in the offsets, or a fence outside the log, ends the process with an alarm and nothing past it inserted.
"""

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Final, NoReturn, TypeVar, cast

import structlog

from services.core.events import Stamped
from services.core.fold import OffsetGapError
from services.core.ports import EventLog, GoneError, HotState, Incoming, LedgerStore, TopicPartition, UnavailableError
from services.ledger.fences import last_sequences, settled_next_offsets
from services.ledger.observe import Observer
from services.ledger.runs import Read, Run, read_messages, split_runs

_T = TypeVar("_T")
_log = structlog.get_logger("farthing.ledger")

BATCH_ROWS: Final = 1000
# With the reader's own wait and the insert this keeps an event's way into the ledger under 600 ms.
BATCH_WAIT_S: Final = 0.4
_READ_WAIT_MS: Final = 100
# Producers beyond these are asked for again; expiries alone bring one producer each.
KNOWN_PRODUCERS: Final = 20_000
_FIRST_DELAY_S: Final = 0.05
_LONGEST_DELAY_S: Final = 2.0
_ALARM_TIMEOUT_S: Final = 5.0


class Sink:
    """Moves topics of the log into the ledger. `run` it once; it may be cancelled at any instant and started anew."""

    def __init__(
        self, log: EventLog, store: LedgerStore, hot: HotState, topics: Sequence[str], observer: Observer
    ) -> None:
        self._event_log = log
        self._store = store
        self._topics = tuple(topics)
        self._observer = observer
        self._moved: set[TopicPartition] = set()
        self._hot = hot
        self._next: dict[TopicPartition, int] = {}
        self._sequences: OrderedDict[tuple[TopicPartition, str], int] = OrderedDict()
        self.started = asyncio.Event()

    async def run(self) -> NoReturn:
        """Runs without end. Raises `OffsetGapError`, after the alarm, when the log doesn't go on where we stopped."""
        await self._find_start()
        self.started.set()
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                async with contextlib.aclosing(self._batches()) as batches:
                    async for batch in batches:
                        await self._take(batch)
                        delay_s = _FIRST_DELAY_S
            except GoneError as error:
                _log.warning("reading_again", reason=str(error))
                await self._check_bounds()
                await self._take_up_to_gap()
            except UnavailableError as error:
                _log.warning("waiting", waiting_for="log", reason=str(error))
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)

    async def _find_start(self) -> None:
        places = await self._answer("log", self._places)
        stored = await self._answer("ledger store", lambda: settled_next_offsets(self._store))
        self._next = {place: stored.get(place, 0) for place in places}
        await self._check_bounds()
        for place, next_offset in self._next.items():
            self._observer.fence(place, next_offset)

    async def _places(self) -> list[TopicPartition]:
        return [
            TopicPartition(topic, number)
            for topic in self._topics
            for number in range(await self._event_log.partitions(topic))
        ]

    async def _check_bounds(self) -> None:
        """Raises `OffsetGapError`, after the alarm, unless every fence lies within the log."""
        places = list(self._next)
        lows = await self._answer("log", lambda: self._event_log.low_offsets(places))
        ends = await self._answer("log", lambda: self._event_log.end_offsets(places))
        for place, next_offset in self._next.items():
            if not lows[place] <= next_offset <= ends[place]:
                held = f"the log holds {lows[place]} to {ends[place]}"
                await self._stop(place, f"the ledger goes on at offset {next_offset}, but {held}")

    async def _take_up_to_gap(self) -> None:
        """Stores what can be read, one by one; `OffsetGapError`, after the alarm, where a partition breaks off."""
        ends = await self._answer("log", lambda: self._event_log.end_offsets(list(self._next)))
        for place, end in ends.items():
            try:
                async with self._reading({place: self._next[place]}, max_messages=1) as reading:
                    while self._next[place] < end:
                        await self._take(await anext(reading))
            except GoneError as error:
                await self._stop(place, str(error))
            except UnavailableError:
                return  # whoever reads next finds out again

    @contextlib.asynccontextmanager
    async def _reading(
        self, start: Mapping[TopicPartition, int], max_messages: int
    ) -> AsyncGenerator[AsyncGenerator[Sequence[Incoming], None], None]:
        reading = self._event_log.read(dict(start), max_messages=max_messages, max_wait_ms=_READ_WAIT_MS)
        async with contextlib.aclosing(cast(AsyncGenerator[Sequence[Incoming], None], reading)) as closing:
            yield closing

    async def _batches(self) -> AsyncGenerator[list[Incoming], None]:
        """What to store together: `BATCH_ROWS` messages, what came in `BATCH_WAIT_S`, or what came before trouble."""
        gathered: list[Incoming] = []
        due_s = 0.0
        async with self._reading(self._next, BATCH_ROWS) as reading:
            try:
                async for messages in reading:
                    if messages and not gathered:
                        due_s = time.monotonic() + BATCH_WAIT_S
                    gathered.extend(messages)
                    if len(gathered) >= BATCH_ROWS or (gathered and time.monotonic() >= due_s):
                        yield gathered
                        gathered = []
            except (GoneError, UnavailableError):
                if gathered:
                    yield gathered
                raise

    async def _take(self, batch: Sequence[Incoming]) -> None:
        by_place: dict[TopicPartition, list[Incoming]] = {}
        for message in batch:
            by_place.setdefault(message.place, []).append(message)
        for place, messages in by_place.items():
            await self._take_place(place, messages)

    async def _take_place(self, place: TopicPartition, messages: Sequence[Incoming]) -> None:
        expected = self._next[place]
        fresh: list[Incoming] = []
        for message in messages:
            if message.offset == expected:
                fresh.append(message)
                expected += 1
            elif message.offset > expected:
                break
        if fresh:
            await self._record(place, fresh)
        beyond = [message.offset for message in messages if message.offset > expected]
        if beyond:
            await self._stop(place, f"expected offset {expected}, but the log went on at {beyond[0]}")

    async def _record(self, place: TopicPartition, messages: Sequence[Incoming]) -> None:
        reads = read_messages(messages)
        sequences = await self._known_sequences(place, reads)
        for run in split_runs(reads, sequences):
            await self._publish_letters(place, run)
            with self._observer.recording([each.read.message for each in run.placed]):
                await self._insert(place, run)
            self._next[place] = run.placed[-1].read.message.offset + 1
            self._count(place, run)
        await self._clear_alarm(place)
        for producer, sequence in sequences.items():
            self._sequences[place, producer] = sequence
            self._sequences.move_to_end((place, producer))
        while len(self._sequences) > KNOWN_PRODUCERS:
            self._sequences.popitem(last=False)

    async def _known_sequences(self, place: TopicPartition, reads: Sequence[Read]) -> dict[str, int]:
        """The last sequence of every producer among the messages."""
        producers = {read.event.producer for read in reads if isinstance(read.event, Stamped)}
        known = {name: self._sequences[place, name] for name in producers if (place, name) in self._sequences}
        asked = producers - known.keys()
        if asked:
            known |= await self._answer("ledger store", lambda: last_sequences(self._store, place, asked))
        return known

    async def _publish_letters(self, place: TopicPartition, run: Run) -> None:
        letters = run.letters()
        if letters:
            await self._answer("log", lambda: self._event_log.publish(letters))
            _log.warning("dead_letters", topic=place.topic, partition=place.partition, count=len(letters))

    async def _insert(self, place: TopicPartition, run: Run) -> None:
        """Inserts a run once. After an insert whose outcome is unknown the store is asked before it is tried again."""
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                await self._store.insert(run.table, [each.row for each in run.placed], run.token)
            except UnavailableError as error:
                _log.warning("waiting", waiting_for="ledger store", reason=str(error))
            else:
                return
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
            stored = await self._answer("ledger store", lambda: settled_next_offsets(self._store))
            if stored.get(place, 0) > run.placed[-1].read.message.offset:
                return

    def _count(self, place: TopicPartition, run: Run) -> None:
        for kind, count in Counter(each.kind for each in run.placed).items():
            if run.table == "events":
                self._observer.rows(kind, count)
            elif kind == "duplicate":
                self._observer.duplicates(count)
            else:
                self._observer.dead_letters(place.topic, count)
        self._observer.fence(place, self._next[place])

    async def _stop(self, place: TopicPartition, reason: str) -> NoReturn:
        _log.error("ledger_gap", topic=place.topic, partition=place.partition, reason=reason)
        with contextlib.suppress(UnavailableError, TimeoutError):
            # Not `wait_for`: on Python 3.11 it forgets a cancellation that comes as its task ends.
            async with asyncio.timeout(_ALARM_TIMEOUT_S):
                await self._hot.set_alarm(_alarm(place), reason)
        raise OffsetGapError(f"{place.topic} {place.partition}: {reason}")

    async def _clear_alarm(self, place: TopicPartition) -> None:
        """A partition that moves on has no gap (any more); said once a process."""
        if place not in self._moved:
            self._moved.add(place)
            with contextlib.suppress(UnavailableError, TimeoutError):
                async with asyncio.timeout(_ALARM_TIMEOUT_S):
                    await self._hot.clear_alarm(_alarm(place))

    async def _answer(self, what: str, operation: Callable[[], Awaitable[_T]]) -> _T:
        """The operation's result, tried more and more slowly until there is one."""
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                return await operation()
            except UnavailableError as error:
                if delay_s == _FIRST_DELAY_S:
                    _log.warning("waiting", waiting_for=what, reason=str(error))
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)


def _alarm(place: TopicPartition) -> str:
    return f"ledger_gap:{place.topic}:{place.partition}"
