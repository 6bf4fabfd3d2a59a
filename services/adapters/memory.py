"""Twins of outside systems in memory, for tests and simulation: the same answers from the same core, on any clock."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from services.core import fold
from services.core import reserve as reserving
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
    OrgState,
    ReserveAnswer,
)
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
    control_seen_ms: int | None = None

    def state(self, org: str) -> OrgState:
        """The state of an org; a cold one when there is none."""
        return self.states.setdefault(org, OrgState())

    def wipe(self) -> None:
        """Loses everything, as a server without persistence does when it restarts."""
        for part in (self.states, self.fold_fences, self.alarms, self.snapshots, self.published, self.keys):
            part.clear()
        self.catalogs.clear()
        self.generation = self.control_seen_ms = None


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

    async def apply(
        self,
        org: str,
        place: TopicPartition,
        steps: Sequence[FoldStep],
        next_offset: int,
        marks: str | None = None,
        above: int = 0,
    ) -> ApplyAnswer:
        """See the port."""
        state = self.store.state(org)
        return fold.apply(state, place.topic, place.partition, steps, next_offset, self._clock(), marks, above)

    async def marks(self, org: str, places: Sequence[TopicPartition]) -> Marks:
        """See the port."""
        state = self.store.state(org)
        fences = {(each.topic, each.partition): state.fences.get((each.topic, each.partition), 0) for each in places}
        return Marks(state.marks, dict(state.filled), fences)

    async def filled(self, org: str, budget_ids: Sequence[str]) -> Mapping[str, int] | None:
        """See the port."""
        state = self.store.state(org)
        if state.epoch is None:
            return None
        return {each: state.filled[each] for each in budget_ids if each in state.filled}

    async def backfill(self, org: str, fill: Backfill) -> bool:
        """See the port."""
        return fold.backfill(self.store.state(org), fill, self._clock())

    async def open_holds(self, org: str, names: Sequence[str] | None = None) -> Mapping[str, OpenHold]:
        """See the port."""
        holds = self.store.state(org).holds
        known = ((name, holds[name]) for name in (list(holds) if names is None else names) if name in holds)
        return {
            name: OpenHold(hold.charges, hold.context, hold.admitted_at_ms, hold.changed_at_ms, hold.implied)
            for name, hold in known
            if hold.phase == "held"
        }

    async def crossed(self, org: str, slots: Sequence[tuple[str, str]]) -> Sequence[frozenset[int]]:
        """See the port."""
        state, now_ms = self.store.state(org), self._clock()
        for slot in [slot for slot, until_ms in state.crossed_until_ms.items() if until_ms <= now_ms]:
            del state.crossed_until_ms[slot], state.crossed[slot]
        return [frozenset(state.crossed.get(slot, ())) for slot in slots]

    async def set_crossed(
        self, org: str, slot: tuple[str, str], percents: Sequence[int], forget_at_ms: int | None
    ) -> None:
        """See the port."""
        state = self.store.state(org)
        state.crossed.pop(slot, None)
        state.crossed_until_ms.pop(slot, None)
        if percents:
            state.crossed[slot] = set(percents)
            if forget_at_ms is not None:
                state.crossed_until_ms[slot] = forget_at_ms

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

    async def move_fold_fence(
        self, place: TopicPartition, next_offset: int, above: int = 0, orgs: Sequence[str] = ()
    ) -> bool:
        """See the port."""
        fence = self.store.fold_fences.get(place)
        stood = (await self.org_fences(orgs, place)).values()
        if (fence is not None and fence < above) or any(own is not None and own < next_offset for own in stood):
            return False
        self.store.fold_fences[place] = max(next_offset, fence or 0)
        return True

    async def org_fences(self, orgs: Sequence[str], place: TopicPartition) -> Mapping[str, int | None]:
        """See the port."""
        states = {org: self.store.state(org) for org in orgs}
        return {
            org: None if state.epoch is None else state.fences.get((place.topic, place.partition), 0)
            for org, state in states.items()
        }

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
        return Pulse(self.store.generation, self._clock(), self.store.control_seen_ms)

    async def beat(self) -> None:
        """See the port."""
        self.store.control_seen_ms = self._clock()

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
        forgotten: Sequence[str] = (),
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
        for key_hash in forgotten:
            self.store.keys.pop(key_hash, None)
        self.store.published[org] = version
        if announce:
            self.store.generation = max((self.store.generation or 0) + 1, self._clock())
        return True

    async def publish_catalog(self, version: str, catalog: bytes) -> None:
        """See the port."""
        self.store.catalogs.setdefault(version, catalog)

    async def keep_catalog(self, version: str) -> bool:
        """See the port."""
        return version in self.store.catalogs

    async def let_catalogs_go(self, versions: Sequence[str]) -> None:
        """See the port. Here they stay: nothing of this store outlives its process."""

    async def published_versions(self) -> Mapping[str, int]:
        """See the port."""
        return dict(self.store.published)
