"""`core.upkeep.Upkeep` in memory, for tests and simulation."""

from collections.abc import Callable, Sequence

from services.adapters.memory import MemoryStore
from services.core.ports import TopicPartition
from services.core.upkeep import GONE_MS, Endless, Page, forget_silent
from services.core.windows import LifetimeSpan

_LIFETIME = LifetimeSpan().key()


class MemoryUpkeep:
    """The twin of `valkey_upkeep.ValkeyUpkeep`, over the store of a `memory.MemoryHotState`."""

    def __init__(self, clock: Callable[[], int], store: MemoryStore) -> None:
        self._clock = clock
        self._store = store
        self._turn_until_ms = 0

    async def take_turn(self, keep_ms: int) -> bool:
        """See the port."""
        if self._clock() < self._turn_until_ms:
            return False
        self._turn_until_ms = self._clock() + keep_ms
        return True

    async def servers(self) -> tuple[str, ...]:
        """See the port."""
        return ("",)

    async def look(self, server: str, cursor: str) -> Page:
        """See the port."""
        endless: list[Endless] = []
        places: dict[tuple[str, TopicPartition], None] = {}
        for org, state in self._store.states.items():
            for slot, figures in state.windows.items():
                if slot[1] == _LIFETIME:
                    endless.append(Endless(org, slot[0], "b", figures.forget_at_ms is not None))
            for slot in state.crossed:
                if slot[1] == _LIFETIME:
                    endless.append(Endless(org, slot[0], "t", slot in state.crossed_until_ms))
            places |= {(org, TopicPartition(topic, partition)): None for topic, partition, _ in state.producers}
        marked = tuple(org for org, state in self._store.states.items() if state.filled)
        return Page(None, tuple(endless), marked, tuple(places))

    async def forget_silent(self, org: str, place: TopicPartition, cursor: str) -> str | None:
        """See the port."""
        forget_silent(self._store.state(org), place.topic, place.partition, self._clock())
        return None

    async def end_soon(self, keys: Sequence[Endless]) -> None:
        """See the port."""
        for each in keys:
            if not each.has_end:
                self._set_end(each, self._clock() + GONE_MS)

    async def keep(self, keys: Sequence[Endless]) -> None:
        """See the port."""
        for each in keys:
            self._set_end(each, None)

    def _set_end(self, each: Endless, until_ms: int | None) -> None:
        state, slot = self._store.state(each.org), (each.budget_id, _LIFETIME)
        if each.key == "b":
            if slot in state.windows:
                state.windows[slot].forget_at_ms = until_ms
        elif until_ms is None:
            state.crossed_until_ms.pop(slot, None)
        elif slot in state.crossed:
            state.crossed_until_ms[slot] = until_ms
