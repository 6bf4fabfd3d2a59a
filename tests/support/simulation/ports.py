"""The ports of one simulated process: twins in memory behind a network that has its moods."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any

from services.adapters.memory import MemoryDirectory, MemoryHotState
from services.core.answers import Answer, Answers
from services.core.budgets import Charge
from services.core.codec import to_message
from services.core.events import Denial, Reservation, Stamped
from services.core.hotstate import Admitted, Applied, HoldRequest, ReserveAnswer
from services.core.ports import (
    GoneError,
    Incoming,
    OutboxEvent,
    OutboxFullError,
    OutboxRow,
    Outgoing,
    TopicPartition,
    UnavailableError,
)
from tests.support.checker import slot_of
from tests.support.checker_caps import Change
from tests.support.memory_log import MemoryLog
from tests.support.simulation.absence import Absence
from tests.support.simulation.loop import Process, Trace
from tests.support.simulation.network import Network, alive, at_once

SKIPPED_SEQUENCES = 1_000


class Disk:
    """What a gateway's outbox leaves behind when its process ends: every append that returned."""

    def __init__(self, producer: str) -> None:
        self.producer = producer
        self.rows: list[OutboxRow] = []
        self.sequence = 0
        self.starts = 0
        # Every reservation that was ever recorded, whether the log has it yet or not.
        self.recorded: set[str] = set()


class MemoryOutbox:
    """`ports.Outbox` of one process over a disk. A dead process writes nothing."""

    def __init__(self, process: Process, disk: Disk, limit: int, tell: Trace) -> None:
        self._process = process
        self._disk = disk
        self._limit = limit
        if disk.starts:
            disk.sequence += SKIPPED_SEQUENCES
        disk.starts += 1
        self._tell = tell
        self.wake: Callable[[], None] = lambda: None

    @property
    def producer(self) -> str:
        return self._disk.producer

    def append(self, events: Sequence[OutboxEvent]) -> None:
        alive(self._process)
        limit = None
        if any(isinstance(each.event, Denial) for each in events):
            limit = (self._limit + 1) // 2
        elif any(isinstance(each.event, Reservation) for each in events):
            limit = self._limit
        if limit is not None and len(self._disk.rows) + len(events) > limit:
            raise OutboxFullError("too many events wait")
        for each in events:
            self._disk.sequence += 1
            event: Any = each.event
            stamped = Stamped(event, self._disk.producer, self._disk.sequence)
            if each.producer is not None:
                stamped = Stamped(event, each.producer, 1)
            message = to_message(stamped, each.headers)
            self._disk.rows.append(OutboxRow(self._disk.sequence, message))
            if isinstance(event, Reservation):
                self._disk.recorded.add(event.transaction_id)
            self._tell(type(event).__name__.lower(), event.transaction_id, self._disk.sequence)
        self.wake()

    def oldest(self, limit: int) -> Sequence[OutboxRow]:
        return self._disk.rows[:limit]

    def forget(self, up_to_sequence: int) -> None:
        alive(self._process)
        self._disk.rows = [row for row in self._disk.rows if row.sequence > up_to_sequence]

    def size(self) -> int:
        return len(self._disk.rows)

    def is_full(self) -> bool:
        return len(self._disk.rows) >= self._limit

    def checkpoint(self) -> None:
        return None

    def close(self) -> None:
        return None


class Witness:
    """What the hot state was seen to answer, by whoever stands beside the server."""

    def __init__(self) -> None:
        self.admitted: dict[str, tuple[int, tuple[tuple[str, str], ...]]] = {}
        # By reservation, the incarnation of the hot state that held it.
        self.held_by: dict[str, int] = {}
        self.released: set[str] = set()
        # How holds were changed, and against what they were held from then on.
        self.resized: dict[str, list[Change]] = defaultdict(list)
        self.changed: dict[str, set[tuple[tuple[str, str], ...]]] = defaultdict(set)
        self.repeats: list[tuple[str, object, object]] = []
        # By org, when each message was folded, by the hot state's clock.
        self.folds: dict[str, dict[tuple[str, int, int], list[int]]] = defaultdict(lambda: defaultdict(list))
        # By org, when each rebuilt image was loaded, by the hot state's clock, and how much of the log it had.
        self.loads: dict[str, list[tuple[int, dict[tuple[str, int], int]]]] = defaultdict(list)


class SimHotState:
    """`ports.HotState` and `ports.Directory` of one process."""

    def __init__(
        self,
        process: Process,
        network: Network,
        twins: tuple[MemoryHotState, MemoryDirectory],
        witness: Witness,
        rng: Random,
        repeats_per_mille: int,
    ) -> None:
        self._process = process
        self._network = network
        self._hot, self._directory = twins
        self._witness = witness
        self._rng = rng
        self._repeats_per_mille = repeats_per_mille

    async def reserve(self, request: HoldRequest) -> ReserveAnswer:
        born = self._network.incarnations.get("hot", 0)
        answer = await self._carry("reserve", lambda: self._reserve(request))
        if isinstance(answer, Admitted) and self._rng.randrange(1000) < self._repeats_per_mille:
            # As a client does whose connection broke before the answer: it asks again.
            again = await self._network.carry(
                self._process, "hot", "reserve again", lambda: at_once(self._hot.reserve(request)), may_be_late=False
            )
            if self._network.incarnations.get("hot", 0) == born:
                self._witness.repeats.append((request.reservation_id, _said(answer), _said(again)))
        return answer  # type: ignore[no-any-return]

    def _reserve(self, request: HoldRequest) -> ReserveAnswer:
        answer = at_once(self._hot.reserve(request))
        if isinstance(answer, Admitted):
            charges = tuple((each.budget_id, each.window) for each in answer.charges)
            born = self._network.incarnations.get("hot", 0)
            is_lost = answer.found is None and self._witness.held_by.get(request.reservation_id) != born
            if request.reservation_id in self._witness.released or is_lost:
                # Asked for again under its key, and held anew: the first hold was released, or lost unrecorded.
                self._witness.admitted.pop(request.reservation_id, None)
            self._witness.held_by[request.reservation_id] = born
            self._witness.admitted.setdefault(request.reservation_id, (answer.now_ms, charges))
            self._witness.released.discard(request.reservation_id)
        self._network.trace("reserve", request.reservation_id, _shown(answer))
        return answer  # type: ignore[no-any-return]

    async def resize(self, request: HoldRequest) -> ReserveAnswer | None:
        def effect() -> Any:
            hold = self._hot.store.state(request.org).holds.get(request.reservation_id)
            before = () if hold is None else hold.charges
            answer = at_once(self._hot.resize(request))
            if isinstance(answer, Admitted):
                changes = self._witness.resized[request.reservation_id]
                changes.append(_change(request, before, changes, answer))
                charges = tuple((each.budget_id, each.window) for each in answer.charges)
                self._witness.changed[request.reservation_id].add(charges)
            self._network.trace("resize", request.reservation_id, request.amount_nano, _shown(answer))
            return answer

        answer = await self._carry("resize", effect)
        lost_per_mille = self._network.weather.lost_changes_per_mille
        if lost_per_mille and self._rng.randrange(1000) < lost_per_mille:
            self._network.trace("lost", self._process.name, "hot", "resize")
            raise UnavailableError("hot's answer was lost")
        return answer  # type: ignore[no-any-return]

    async def release(self, org: str, reservation_id: str) -> bool:
        def effect() -> Any:
            done = at_once(self._hot.release(org, reservation_id))
            if done:
                self._witness.released.add(reservation_id)
                self._network.trace("released", reservation_id)
            return done

        return await self._carry("release", effect)  # type: ignore[no-any-return]

    async def load(self, org: str, image: Any, epoch: str) -> bool:
        def effect() -> Any:
            done = at_once(self._hot.load(org, image, epoch))
            self._network.trace(self._process.name, "loads", org, done, sorted(image.fences.items()))
            if done:
                self._witness.loads[org].append((at_once(self._hot.now_ms()), dict(image.fences)))
            return done

        return await self._carry("load", effect)  # type: ignore[no-any-return]

    async def apply(self, org: str, place: TopicPartition, steps: Any, next_offset: int, *rest: Any) -> Any:
        if self._network.weather.slow_folds_s:
            await asyncio.sleep(self._rng.uniform(0, self._network.weather.slow_folds_s))

        def effect() -> Any:
            answer = at_once(self._hot.apply(org, place, steps, next_offset, *rest))
            self._network.trace(self._process.name, "folds", place, [each.offset for each in steps], answer)
            for each in steps if isinstance(answer, Applied) else ():
                folded = self._witness.folds[org][place.topic, place.partition, each.offset]
                folded.append(at_once(self._hot.now_ms()))
            return answer

        return await self._carry("apply", effect)

    async def close(self) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._hot, name, None) or getattr(self._directory, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            return await self._carry(name, lambda: at_once(method(*arguments, **options)))

        return call

    async def _carry(self, what: str, effect: Callable[[], Any]) -> Any:
        return await self._network.carry(self._process, "hot", what, effect)


def _change(request: HoldRequest, before: Iterable[Charge], changes: Sequence[Change], answer: Admitted) -> Change:
    """How a hold was changed that was charged to what was `before`, after earlier `changes`."""
    proposed = (slot_of({"budget_id": each.budget_id, "window": each.span.key()})[0] for each in request.proposals)
    slots, held = _slots(answer.charges), _slots(before)
    if changes:
        held |= changes[-1].left
    left = frozenset(slot for slot in proposed if slot in held - slots)
    return Change(answer.now_ms, request.amount_nano, slots, left)


def _slots(charges: Iterable[Charge]) -> frozenset[tuple[str, str]]:
    return frozenset(slot_of({"budget_id": each.budget_id, "window": each.window})[0] for each in charges)


def _shown(answer: Any) -> str:
    if isinstance(answer, Admitted):
        return " ".join(("admitted", *(f"{each.budget_id}/{each.window}" for each in answer.charges)))
    return type(answer).__name__.lower()


def _said(answer: Any) -> object:
    if isinstance(answer, Admitted):
        return answer.charges, answer.expires_at_ms, answer.option
    return answer


class SimLog:
    """`ports.EventLog` of one process. Partitions are read each at a pace of its own."""

    def __init__(
        self, process: Process, network: Network, log: MemoryLog, rng: Random, absence: Absence | None = None
    ) -> None:
        self._process = process
        self._absence = absence
        self._network = network
        self._log = log
        self._rng = rng

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        kept = list(messages)
        if self._network.weather.lost_per_mille and self._rng.randrange(100) < 3:
            # Each partition takes a beginning of its share, and the answer is an error.
            takes = {topic: self._rng.randint(0, len(kept)) for topic in sorted({each.topic for each in kept})}
            kept = [each for at, each in enumerate(kept) if at < takes[each.topic]]
            await self._carry("publish in part", lambda: self._publish(kept))
            raise UnavailableError("the log took a part of it")
        await self._carry("publish", lambda: self._publish(kept))

    def _publish(self, messages: Sequence[Outgoing]) -> None:
        begin = len(self._log.history)
        at_once(self._log.publish(messages))
        for each in self._log.history[begin:]:
            self._network.trace(self._process.name, "published", each.place, each.offset, more=partial(told, each))
        if self._absence is not None and self._absence.begins(self._process.name, self._log.history[begin:]):
            self._network.loop.call_soon(self._network.loop.kill, self._process, context=self._network.context)

    async def create_topics(self, topics: Any) -> None:
        await self._carry("create topics", lambda: at_once(self._log.create_topics(topics)))

    async def partitions(self, topic: str) -> int:
        return await self._carry("partitions", lambda: at_once(self._log.partitions(topic)))  # type: ignore[no-any-return]

    async def low_offsets(self, places: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return await self._carry("low offsets", lambda: at_once(self._log.low_offsets(places)))  # type: ignore[no-any-return]

    async def end_offsets(self, places: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return await self._carry("end offsets", lambda: at_once(self._log.end_offsets(places)))  # type: ignore[no-any-return]

    async def read(
        self, start: Mapping[TopicPartition, int], *, max_messages: int = 1000, max_wait_ms: int = 200
    ) -> AsyncIterator[Sequence[Incoming]]:
        positions = dict(start)
        for place, offset in positions.items():
            if offset > self._log.end(place):
                raise GoneError(f"{place}: offset {offset} is outside the log")
        while True:
            batch: list[Incoming] = []
            for place in self._rng.sample(sorted(positions), len(positions)):
                if self._rng.randrange(3):
                    most = self._rng.choice((1, 3, 20, max_messages))
                    batch += self._log.slice(place, positions[place], most)
            batch = await self._network.carry(self._process, "log", "read", lambda found=batch: found)
            for message in batch:
                positions[message.place] = message.offset + 1
            yield batch
            if all(positions[place] >= self._log.end(place) for place in positions):
                await self._log.wait(max(max_wait_ms, 2000) / 1000)

    async def close(self) -> None:
        return None

    async def _carry(self, what: str, effect: Callable[[], Any]) -> Any:
        return await self._network.carry(self._process, "log", what, effect)


def told(message: Incoming) -> str:
    """A message in a few words."""
    try:
        event = json.loads(message.value)
    except ValueError:
        return "what can't be read"
    words = [event.get(name, "") for name in ("type", "transaction_id", "producer", "sequence")]
    words += [f"{name}={event[name]}" for name in ("held_usd", "cost_usd", "booked_usd") if name in event]
    return " ".join(map(str, words))


class SimAnswers:
    """`core.answers.Answers` of one process. They lie beside the hot state, and outlive what becomes of it."""

    def __init__(self, process: Process, network: Network, answers: Answers) -> None:
        self._process = process
        self._network = network
        self._answers = answers

    async def claim(self, org: str, name: str, request_hash: str, keep_ms: int) -> Answer | None:
        return await self._carry("claim", lambda: at_once(self._answers.claim(org, name, request_hash, keep_ms)))  # type: ignore[no-any-return]

    async def finish(self, org: str, name: str, answer: Answer, keep_ms: int) -> Answer:
        def effect() -> Answer:
            kept: Answer = at_once(self._answers.finish(org, name, answer, keep_ms))
            self._network.trace(self._process.name, "keeps", name, answer.status, kept is answer)
            return kept

        return await self._carry("keep an answer", effect)  # type: ignore[no-any-return]

    async def find(self, org: str, name: str) -> Answer | None:
        return await self._carry("find an answer", lambda: at_once(self._answers.find(org, name)))  # type: ignore[no-any-return]

    async def drop(self, org: str, name: str, request_hash: str) -> None:
        await self._carry("drop a claim", lambda: at_once(self._answers.drop(org, name, request_hash)))

    async def _carry(self, what: str, effect: Callable[[], Any]) -> Any:
        return await self._network.carry(self._process, "hot", what, effect)


class SimLedger:
    """`ports.LedgerView` of one process."""

    def __init__(self, process: Process, network: Network, ledger: Any) -> None:
        self._process = process
        self._network = network
        self._ledger = ledger

    async def next_offsets(self) -> Mapping[TopicPartition, int]:
        return await self._carry(lambda: at_once(self._ledger.next_offsets()))  # type: ignore[no-any-return]

    async def org_image(self, org: str) -> Any:
        return await self._carry(lambda: at_once(self._ledger.org_image(org)))

    async def call_sums(self, org: str, query: Any) -> Any:
        return await self._carry(lambda: at_once(self._ledger.call_sums(org, query)))

    async def _carry(self, effect: Callable[[], Any]) -> Any:
        return await self._network.carry(self._process, "ledger", "ask", effect)
