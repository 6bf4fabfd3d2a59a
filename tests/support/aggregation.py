"""An aggregator's parts, wired over twins in memory or over whatever is handed in."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count

from services.adapters.cel import Cel
from services.adapters.memory import MemoryDirectory, MemoryHotState, MemoryStore
from services.aggregator.backfill import Backfiller
from services.aggregator.configs import Configs
from services.aggregator.fences import Fences
from services.aggregator.folder import Folder
from services.aggregator.observe import FoldResult
from services.aggregator.patience import Patience
from services.aggregator.reaper import Reaper
from services.aggregator.rebuild import Rebuilder
from services.aggregator.stream import by_partition
from services.aggregator.thresholds import Thresholds
from services.core.alerts import ThresholdCrossed
from services.core.backfill import CallQuery, CallSum
from services.core.hotstate import OrgState
from services.core.ports import (
    Directory,
    EventLog,
    HotState,
    Incoming,
    LedgerImage,
    LedgerView,
    Outgoing,
    TopicPartition,
)
from services.core.snapshot import Snapshot, encode_snapshot
from tests.support.call_sums import call_sums
from tests.support.history import TOPICS, ledger_image
from tests.support.memory_log import MemoryLog

NOW_MS = 1_800_000_000_000
DEAD_TOPICS = tuple(f"{topic}.dlq" for topic in TOPICS)
ALERT_TOPICS = (ThresholdCrossed.TOPIC, f"{ThresholdCrossed.TOPIC}.dlq")


class Told:
    """What the aggregator has told (`observe.Observer`)."""

    def __init__(self) -> None:
        self.results: Counter[str] = Counter()
        self.letters: Counter[str] = Counter()
        self.fences: dict[TopicPartition, int] = {}
        self.alarms: dict[str, bool] = {}
        self.rebuilds = 0
        self.expiries = 0
        self.spanned = 0

    @contextmanager
    def folding(self, messages: Sequence[Incoming]) -> Iterator[None]:
        self.spanned += len(messages)
        yield

    def folded(self, result: FoldResult, count: int) -> None:
        self.results[result] += count

    def dead_letters(self, topic: str, count: int) -> None:
        self.letters[topic] += count

    def fence(self, place: TopicPartition, next_offset: int) -> None:
        self.fences[place] = next_offset

    def alarm(self, name: str, raised: bool) -> None:
        self.alarms[name] = raised

    def rebuilt(self, count: int) -> None:
        self.rebuilds += count

    def expired(self, count: int) -> None:
        self.expiries += count


class LedgerTwin:
    """A ledger that has taken what lies below `taken` of each partition of a log in memory."""

    def __init__(self, log: MemoryLog) -> None:
        self.log = log
        self.taken: dict[TopicPartition, int] = {}

    async def next_offsets(self) -> Mapping[TopicPartition, int]:
        return dict(self.taken)

    async def org_image(self, org: str) -> LedgerImage:
        messages = [message for place in self.log.places(*TOPICS) for message in self.log.messages(place)]
        return ledger_image(org, messages, self.taken)

    async def call_sums(self, org: str, query: CallQuery) -> Sequence[CallSum]:
        messages = [message for place in self.log.places(*TOPICS) for message in self.log.messages(place)]
        return call_sums(org, messages, query)


# Ids are never alike, whichever process makes them.
_NUMBERS = count(1)


class Parts:
    """The aggregator's parts over the given outside systems."""

    def __init__(
        self, log: EventLog, hot: HotState, directory: Directory, ledger: LedgerView, places: Sequence[TopicPartition]
    ) -> None:
        self.stopping = asyncio.Event()
        self.told = Told()
        self.log = log
        self.places = tuple(places)
        self.patience = Patience(self.stopping)
        self.fences = Fences(log, hot, ledger, directory, self.told, self.patience)
        new_id = lambda: f"epoch-{next(_NUMBERS)}"  # noqa: E731
        self.configs = Configs(hot, directory, Cel())
        self.thresholds = Thresholds(log, hot, self.configs)
        self.rebuilder = Rebuilder(
            *(log, hot, ledger, directory, self.fences, self.told, new_id, self.configs, self.thresholds)
        )
        self.folder = Folder(
            log, hot, self.fences, self.rebuilder, self.told, self.patience, self.configs, self.thresholds
        )
        self.backfiller = Backfiller(
            *(hot, ledger, self.configs, self.folder, self.rebuilder, self.thresholds),
            *(self.places, self.told, self.patience, new_id),
        )
        self.reaper = Reaper(log, hot, directory, self.told)

    async def fold_all(self) -> None:
        """Starts from the fences and folds to the log's present end."""
        starts = await self.fences.start(self.places)
        ends = await self.log.end_offsets(self.places)
        behind = {place for place in self.places if starts[place] < ends[place]}
        if not behind:
            return
        async for batch in self.log.read(starts):
            for place, messages in by_partition(batch).items():
                await self.folder.apply(place, messages)
            behind = {place for place in behind if (await self.fences.expected(place) or 0) < ends[place]}
            if not behind:
                return


class World:
    """The same over twins in memory, with one published org."""

    def __init__(self, partitions: int = 1) -> None:
        self.clock_ms = NOW_MS
        self.log = MemoryLog(dict.fromkeys((*TOPICS, *DEAD_TOPICS, *ALERT_TOPICS), partitions))
        self.store = MemoryStore()
        self.hot = MemoryHotState(lambda: self.clock_ms, self.store)
        self.directory = MemoryDirectory(lambda: self.clock_ms, self.store)
        self.ledger = LedgerTwin(self.log)
        self.places = self.log.places(*TOPICS)
        self.reservations, self.settlements = (TopicPartition(topic, 0) for topic in TOPICS)

    def parts(self) -> Parts:
        """The parts of a newly started aggregator."""
        return Parts(self.log, self.hot, self.directory, self.ledger, self.places)

    async def publish_org(self, org: str = "default", book_expired: bool = True) -> None:
        """What control does when an org is made, and again after a wipe."""
        snapshot = Snapshot(org, 1, "v1", 900_000, book_expired, (), {})
        await self.directory.publish_org(org, 1, encode_snapshot(snapshot), {}, ())

    async def publish(self, *messages: Outgoing) -> None:
        """Puts messages on the log."""
        await self.log.publish(messages)

    def state(self, org: str = "default") -> OrgState:
        """An org's hot state."""
        return self.store.state(org)
