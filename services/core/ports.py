"""What services need of the outside world. Each port has one real adapter or more, and a twin in memory for simulation.

Every method may raise `UnavailableError` (or a subclass): the outside system did not answer, nothing is known of the
effect, and the call may be repeated. Who is cancelled while it waits for an answer knows no more than that.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from services.core.backfill import CallQuery, CallSum
from services.core.budgets import Proposal, Standing
from services.core.hotstate import (
    ApplyAnswer,
    Backfill,
    DueHold,
    FoldStep,
    HoldRequest,
    Marks,
    OpenHold,
    OrgImage,
    ReserveAnswer,
)
from services.core.identity import KeyRecord


class UnavailableError(RuntimeError):
    """An outside system did not answer."""


class NotSentError(UnavailableError):
    """Nothing reached the outside system: the effect is known to be none."""


class TimedOutError(UnavailableError):
    """The outside system took longer than it was given; it may still be at work."""


class OutboxFullError(RuntimeError):
    """The outbox has reached its limit: the log has been away too long for more to be taken on."""


class GoneError(RuntimeError):
    """Offsets asked for are no longer in the log (retention has passed them) or not yet there."""


# ---- the event log --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class TopicPartition:
    """One partition of a topic."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]"


@dataclass(frozen=True, slots=True)
class TopicDeclaration:
    """A topic as ``schemas/topics`` declares it."""

    name: str
    partitions: int
    retention_ms: int
    cleanup: str = "delete"
    max_message_bytes: int = 1_048_576


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish. The log picks the partition by hashing `key`."""

    topic: str
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message as read. Offsets of a partition start at 0 and grow by one."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...]
    timestamp_ms: int

    @property
    def place(self) -> TopicPartition:
        """The partition this message is in."""
        return TopicPartition(self.topic, self.partition)


class EventLog(Protocol):
    """An append-only, partitioned log: Apache Kafka or Valkey Streams. One conformance suite holds both."""

    async def create_topics(self, topics: Sequence[TopicDeclaration]) -> None:
        """Makes the topics that are missing; those there are left as they are."""

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        """Returns when every message is durable. In order per key. On `UnavailableError` any of them may be durable."""

    async def partitions(self, topic: str) -> int:
        """How many partitions the topic has; raises `GoneError` when there is no such topic."""

    async def low_offsets(self, places: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """The first offset still held of each partition."""

    async def end_offsets(self, places: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """The offset the next message of each partition will get."""

    def read(
        self, start: Mapping[TopicPartition, int], *, max_messages: int = 1000, max_wait_ms: int = 200
    ) -> AsyncIterator[Sequence[Incoming]]:
        """Batches from the given offsets on, without end; a batch may be empty after `max_wait_ms` without a message.

        Messages of a partition come in offset order. Raises `GoneError` when a start lies outside the log.
        """

    async def close(self) -> None:
        """Lets go of connections; unpublished messages are the caller's to keep."""


# ---- the hot state --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a gateway polls to notice changes: `generation` grows with every publication; None: the state is bare.

    `control_seen_ms` is when control last said that all it has is published; None when it never did.
    """

    generation: int | None
    now_ms: int
    control_seen_ms: int | None = None


class HotState(Protocol):
    """Rolling spend and holds, the truth of the next decision. Keys: docs/hot-state.md."""

    async def reserve(self, request: HoldRequest) -> ReserveAnswer:
        """`core.reserve.reserve`, atomically, in one round trip."""

    async def resize(self, request: HoldRequest) -> ReserveAnswer | None:
        """`core.reserve.resize`, atomically, in one round trip."""

    async def release(self, org: str, reservation_id: str) -> bool:
        """`core.reserve.release`, atomically; its adapter may have to read the hold's charges before."""

    async def apply(
        self,
        org: str,
        place: TopicPartition,
        steps: Sequence[FoldStep],
        next_offset: int,
        marks: str | None = None,
        above: int = 0,
    ) -> ApplyAnswer:
        """`core.fold.apply`, atomically."""

    async def marks(self, org: str, places: Sequence[TopicPartition]) -> Marks:
        """Which budgets are backfilled, and the org's own fences of these partitions, as of one instant."""

    async def filled(self, org: str, budget_ids: Sequence[str]) -> Mapping[str, int] | None:
        """Which of these budgets are backfilled, each with the `Budget.since_version` that it was backfilled for.

        None when the org is cold.
        """

    async def backfill(self, org: str, fill: Backfill) -> bool:
        """`core.fold.backfill`, atomically."""

    async def open_holds(self, org: str, names: Sequence[str] | None = None) -> Mapping[str, OpenHold]:
        """The open holds of these reservations, or of all; not as of one instant."""

    async def crossed(self, org: str, slots: Sequence[tuple[str, str]]) -> Sequence[frozenset[int]]:
        """The thresholds, in percent, that have been told of for each slot (`core.alerts.slot_of`)."""

    async def set_crossed(
        self, org: str, slot: tuple[str, str], percents: Sequence[int], forget_at_ms: int | None
    ) -> None:
        """Keeps the thresholds that have been told of for a slot, none for one that is armed anew. They are forgotten
        at an instant of the hot state's clock; None: never."""

    async def claim_due(self, org: str, limit: int) -> tuple[DueHold, ...]:
        """`core.reserve.claim_due`, atomically."""

    async def peek(self, org: str, proposals: Sequence[Proposal]) -> tuple[Standing, ...] | None:
        """Current standings, changing nothing; None when the org is cold."""

    async def now_ms(self) -> int:
        """The hot state's clock, the only one that decides windows."""

    async def load(self, org: str, image: OrgImage, epoch: str) -> bool:
        """`core.fold.load`; the org is cold until all of it is there.

        False, too, when another process loads the org just then, or failed to a moment ago: it may be cold still.
        """

    async def epochs(self, orgs: Sequence[str]) -> Mapping[str, str | None]:
        """The epoch of each org; None for a cold one."""

    async def fold_fences(self, places: Sequence[TopicPartition]) -> Mapping[TopicPartition, int | None]:
        """Next offset of the whole partition, for the gap check; None where none is known."""

    async def move_fold_fence(
        self, place: TopicPartition, next_offset: int, above: int = 0, orgs: Sequence[str] = ()
    ) -> bool:
        """Moves a partition's fence forward (never back); false when it stands below `above`, and stays there.

        So it does while the own fence of any of `orgs` that is warm stands below `next_offset`. A hot state that has
        lost its last writes must not have them skipped. A fence that is missing is set.
        """

    async def org_fences(self, orgs: Sequence[str], place: TopicPartition) -> Mapping[str, int | None]:
        """Where the own fence of each org stands in a partition, 0 where it has none; None for a cold org."""

    async def set_alarm(self, name: str, text: str) -> None:
        """Keeps a named alarm that operators see until it is cleared."""

    async def clear_alarm(self, name: str) -> None:
        """Forgets a named alarm."""

    async def alarms(self) -> Mapping[str, str]:
        """Every alarm by name."""

    async def close(self) -> None:
        """Lets go of connections."""


# ---- what control publishes for gateways ----------------------------------------------------------------------------


class Directory(Protocol):
    """Keys, org snapshots and price catalogs, published by control into the hot state and read by every service."""

    async def pulse(self) -> Pulse:
        """One cheap read to learn whether anything changed."""

    async def find_key(self, key_hash: str) -> KeyRecord | None:
        """The record of a live key; None for an unknown or revoked one. `UnavailableError`: the hot state is bare."""

    async def snapshot(self, org: str) -> bytes | None:
        """The compiled snapshot of an org (JSON, `core.snapshot`)."""

    async def catalog(self, version: str) -> bytes | None:
        """A price catalog by version (JSON, `core.pricing`)."""

    async def orgs(self) -> tuple[str, ...]:
        """Every org that has been published."""

    async def publish_org(
        self,
        org: str,
        version: int,
        snapshot: bytes,
        keys: Mapping[str, KeyRecord],
        revoked: Sequence[str],
        *,
        forgotten: Sequence[str] = (),
        announce: bool = True,
    ) -> bool:
        """Publishes an org's snapshot and keys (by hash) unless a newer version is there; false then.

        Of a `revoked` key it is remembered for a while that it is none, so that no older publication, still under way,
        brings it back. Of a `forgotten` one, revoked so long ago that none can be, nothing is kept.

        `announce` lets gateways look. A bare hot state stays bare until then, so when many orgs are published into one,
        announce the last alone: until it is there, a key that is not found may be a live one.
        """

    async def publish_catalog(self, version: str, catalog: bytes) -> None:
        """Publishes a price catalog; a version is never published with other bytes."""

    async def keep_catalog(self, version: str) -> bool:
        """Has a published catalog stay; false when it is not there."""

    async def let_catalogs_go(self, versions: Sequence[str]) -> None:
        """Has catalogs that no org uses any more go in a month, unless they are kept again."""

    async def published_versions(self) -> Mapping[str, int]:
        """The version last published of each org; 0 of one that was, and is to be published again."""

    async def beat(self) -> None:
        """Says that control is there, and that all it has is published."""


# ---- the outbox -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """An event kept until the log has it."""

    sequence: int
    message: Outgoing


class Outbox(Protocol):
    """Events of one producer, on disk, in order, until they are published. Calls block for microseconds only."""

    @property
    def producer(self) -> str:
        """The identity of this outbox, made once with its file."""

    def append(self, events: "Sequence[OutboxEvent]") -> None:
        """Stamps the events with this producer and the next sequences and keeps them durably, all or none.

        Raises `OutboxFullError` when a reservation would go past the limit or a denial past half of it (what ends a
        call that was taken on is always kept), and `UnavailableError` when the disk refuses.
        """

    def oldest(self, limit: int) -> Sequence[OutboxRow]:
        """The first events not yet forgotten, in order."""

    def forget(self, up_to_sequence: int) -> None:
        """Drops events up to and including a sequence; the log has them."""

    def size(self) -> int:
        """How many events wait."""

    def is_full(self) -> bool:
        """Whether the limit is reached: no further call may be taken on."""

    def checkpoint(self) -> None:
        """Tidies the file. May take long, so call it in a thread; raises `UnavailableError` when the disk refuses."""

    def close(self) -> None:
        """Closes the file."""


@dataclass(frozen=True, slots=True)
class OutboxEvent:
    """An event on its way into an outbox, with the trace headers it shall carry.

    One that may be recorded twice, by whichever gateways, names a `producer` of its own: its sequence is 1, whoever
    repeats it.
    """

    event: object
    headers: tuple[tuple[str, bytes], ...] = ()
    producer: str | None = None


# ---- the ledger, as the aggregator needs it for a rebuild -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LedgerImage:
    """What the ledger knows of an org, up to `next_offsets` (exclusive) of each partition."""

    next_offsets: Mapping[TopicPartition, int]
    image: OrgImage


class LedgerView(Protocol):
    """The ledger's sums, for rebuilding the hot state."""

    async def next_offsets(self) -> Mapping[TopicPartition, int]:
        """The next offset the ledger will take of each partition it has rows of."""

    async def org_image(self, org: str) -> LedgerImage:
        """An org's spend by window, open holds and producers' sequences, as of `next_offsets`."""

    async def call_sums(self, org: str, query: CallQuery) -> Sequence[CallSum]:
        """What an org's ended calls did cost: of each call by its settlement, else by its expiry."""


# ---- the ledger's tables --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Query:
    """A read of the ledger's tables in ClickHouse's SQL; values go in only through `parameters` (``{name:Type}``)."""

    statement: str
    parameters: Mapping[str, object] = field(default_factory=dict)


class LedgerStore(Protocol):
    """The tables of ``schemas/clickhouse``, to which rows are only ever added."""

    async def query(self, *queries: Query) -> Sequence[Sequence[Mapping[str, Any]]]:
        """The rows of each query, by column name, as of one instant: no insert of this process lies between."""

    async def insert(self, table: str, rows: Sequence[Mapping[str, object]], token: str) -> None:
        """Adds the rows, all of one partition of the table, all or none; those of a known token not again.

        On `UnavailableError` they may or may not have been added, or may yet be.
        """
