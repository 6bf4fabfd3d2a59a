"""Twins of outside systems in memory, for tests and simulation: the same answers from the same core, on any clock."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from services.core import fold
from services.core import reserve as reserving
from services.core.budgets import Proposal, Standing
from services.core.hotstate import ApplyAnswer, DueHold, FoldStep, HoldRequest, OrgImage, OrgState, ReserveAnswer
from services.core.identity import KeyRecord
from services.core.ports import Pulse, TopicPartition, UnavailableError

Clock = Callable[[], int]


@dataclass(slots=True)
class MemoryStore:
    """What one hot state server holds. Give the same one to every twin that shares the server."""

    states: dict[str, OrgState] = field(default_factory=dict)
    fold_fences: dict[TopicPartition, int] = field(default_factory=dict)
    alarms: dict[str, str] = field(default_factory=dict)
    snapshots: dict[str, bytes] = field(default_factory=dict)
    published: dict[str, int] = field(default_factory=dict)
    keys: dict[str, tuple[int, KeyRecord | None]] = field(default_factory=dict)
    catalogs: dict[str, bytes] = field(default_factory=dict)
    generation: int | None = None

    def state(self, org: str) -> OrgState:
        """The state of an org; a cold one when there is none."""
        return self.states.setdefault(org, OrgState())

    def wipe(self) -> None:
        """Loses everything, as a server without persistence does when it restarts."""
        for part in (self.states, self.fold_fences, self.alarms, self.snapshots, self.published, self.keys):
            part.clear()
        self.catalogs.clear()
        self.generation = None


class MemoryHotState:
    """`ports.HotState` over `core`. `clock` gives Unix milliseconds."""

    def __init__(self, clock: Clock, store: MemoryStore | None = None) -> None:
        self.store = store or MemoryStore()
        self._clock = clock

    async def reserve(self, request: HoldRequest) -> ReserveAnswer:
        """See the port."""
        return reserving.reserve(self.store.state(request.org), request, self._clock())

    async def resize(self, request: HoldRequest) -> ReserveAnswer | None:
        """See the port."""
        return reserving.resize(self.store.state(request.org), request, self._clock())

    async def release(self, org: str, reservation_id: str) -> bool:
        """See the port."""
        return reserving.release(self.store.state(org), reservation_id, self._clock())

    async def apply(self, org: str, place: TopicPartition, steps: Sequence[FoldStep], next_offset: int) -> ApplyAnswer:
        """See the port."""
        return fold.apply(self.store.state(org), place.topic, place.partition, steps, next_offset, self._clock())

    async def claim_due(self, org: str, limit: int) -> tuple[DueHold, ...]:
        """See the port. As a reaper asks every second, this is also where what is over goes."""
        state = self.store.state(org)
        fold.forget(state, self._clock())
        return reserving.claim_due(state, self._clock(), limit)

    async def peek(self, org: str, proposals: Sequence[Proposal]) -> tuple[Standing, ...] | None:
        """See the port."""
        return reserving.peek(self.store.state(org), proposals, self._clock())

    async def now_ms(self) -> int:
        """See the port."""
        return self._clock()

    async def load(self, org: str, image: OrgImage, epoch: str) -> bool:
        """See the port."""
        return fold.load(self.store.state(org), image, epoch, self._clock())

    async def epochs(self, orgs: Sequence[str]) -> Mapping[str, str | None]:
        """See the port."""
        return {org: self.store.state(org).epoch for org in orgs}

    async def fold_fences(self, places: Sequence[TopicPartition]) -> Mapping[TopicPartition, int | None]:
        """See the port."""
        return {place: self.store.fold_fences.get(place) for place in places}

    async def move_fold_fence(self, place: TopicPartition, next_offset: int) -> None:
        """See the port."""
        self.store.fold_fences[place] = max(next_offset, self.store.fold_fences.get(place, 0))

    async def set_alarm(self, name: str, text: str) -> None:
        """See the port."""
        self.store.alarms[name] = text

    async def clear_alarm(self, name: str) -> None:
        """See the port."""
        self.store.alarms.pop(name, None)

    async def alarms(self) -> Mapping[str, str]:
        """See the port."""
        return dict(self.store.alarms)

    async def close(self) -> None:
        """See the port."""


class MemoryDirectory:
    """`ports.Directory` over the same store as the hot state whose answers carry its versions."""

    def __init__(self, clock: Clock, store: MemoryStore | None = None) -> None:
        self.store = store or MemoryStore()
        self._clock = clock

    async def pulse(self) -> Pulse:
        """See the port."""
        return Pulse(self.store.generation, self._clock())

    async def find_key(self, key_hash: str) -> KeyRecord | None:
        """See the port."""
        if self.store.generation is None:
            raise UnavailableError("the hot state is bare: control has yet to publish keys into it")
        _, record = self.store.keys.get(key_hash, (0, None))
        return record

    async def snapshot(self, org: str) -> bytes | None:
        """See the port."""
        return self.store.snapshots.get(org)

    async def catalog(self, version: str) -> bytes | None:
        """See the port."""
        return self.store.catalogs.get(version)

    async def orgs(self) -> tuple[str, ...]:
        """See the port."""
        return tuple(self.store.published)

    async def publish_org(
        self,
        org: str,
        version: int,
        snapshot: bytes,
        keys: Mapping[str, KeyRecord],
        revoked: Sequence[str],
        *,
        announce: bool = True,
    ) -> bool:
        """See the port."""
        state = self.store.state(org)
        if state.config_version > version:
            return False
        state.config_version = version
        self.store.snapshots[org] = snapshot
        for key_hash, record in [*keys.items(), *((key_hash, None) for key_hash in revoked)]:
            known_version, _ = self.store.keys.get(key_hash, (0, None))
            if known_version <= version:
                self.store.keys[key_hash] = (version, record)
        self.store.published[org] = version
        if announce:
            self.store.generation = max((self.store.generation or 0) + 1, self._clock())
        return True

    async def publish_catalog(self, version: str, catalog: bytes) -> None:
        """See the port."""
        self.store.catalogs.setdefault(version, catalog)

    async def published_versions(self) -> Mapping[str, int]:
        """See the port."""
        return dict(self.store.published)
