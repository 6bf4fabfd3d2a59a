"""Where the fold stands: the next offset of every partition, kept in the hot state, and checked before each fold."""

from collections.abc import Sequence
from typing import Final, NoReturn

import structlog

from services.aggregator.observe import Observer
from services.aggregator.patience import Patience
from services.core.fold import OffsetGapError
from services.core.ports import Directory, EventLog, HotState, LedgerView, TopicPartition

_log = structlog.get_logger("farthing.aggregator")
_ALARM: Final = "fold_gap:{0.topic}:{0.partition}"


class FenceMovedBackError(RuntimeError):
    """A fence is below what this process has folded: the hot state is an older one, or was wiped and begun anew.

    Nothing is lost: reading has to start from the fence again.
    """


class Fences:
    """The fences of the partitions this process folds. They alone say where reading starts; a group's offsets never do.

    What a fence promises: every org that is warm has folded all that lies below it. A wipe may take a fence away at any
    moment; this process's own position then stands in, because every org the wipe made cold is rebuilt past it.
    """

    def __init__(
        self,
        log: EventLog,
        hot: HotState,
        ledger: LedgerView,
        directory: Directory,
        observer: Observer,
        patience: Patience,
    ) -> None:
        self._event_log = log
        self._hot = hot
        self._ledger = ledger
        self._directory = directory
        self._observer = observer
        self._patience = patience
        self._positions: dict[TopicPartition, int] = {}
        self._proven: set[TopicPartition] = set()

    async def prepare(self, places: Sequence[TopicPartition]) -> None:
        """Gives each partition that has no fence its first one. Raises `OffsetGapError` when history is missing.

        With no org warm, all will be rebuilt past what the ledger has, so the fold starts there. With any org warm, it
        starts at the beginning of the log, and the orgs' own fences skip what they have.
        """
        if not await self._without_fence(places):
            return
        # The order matters: the ledger, then the fences. Whoever rebuilds an org sees to its fences first and reads the
        # log's end after that; so a fence still missing now means that no rebuild ends below what the ledger answered.
        known = await self._patience.until_answered("ledger", self._ledger.next_offsets)
        missing = await self._without_fence(places)
        lows = await self._patience.until_answered("log", lambda: self._event_log.low_offsets(missing))
        warm = await self._patience.until_answered("hot state", self._is_any_org_warm)
        for place in missing:
            first = lows[place] if warm else known.get(place, 0)
            if first < lows[place]:
                await self.stop_at_gap(
                    place, f"the ledger has offsets below {first} only, but the log begins at {lows[place]}"
                )
            # As a first one only: a state from before the wipe may be back by now, with a fence of its own.
            await self._move(place, first, first)

    async def start(self, places: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Where to read each partition from; from now on these are the partitions of this process.

        Raises `OffsetGapError` when a fence lies outside the log: starting anywhere else would skip events silently.
        """
        await self.prepare(places)
        fences = await self._patience.until_answered("hot state", lambda: self._hot.fold_fences(places))
        lows = await self._patience.until_answered("log", lambda: self._event_log.low_offsets(places))
        ends = await self._patience.until_answered("log", lambda: self._event_log.end_offsets(places))
        starts: dict[TopicPartition, int] = {}
        for place in places:
            fence = fences[place]
            first = lows[place] if fence is None else fence
            if not lows[place] <= first <= ends[place]:
                await self.stop_at_gap(
                    place, f"the fold stands at offset {first}, but the log holds {lows[place]} to {ends[place]}"
                )
            starts[place] = first
            self._observer.fence(place, first)
        self._positions = dict(starts)
        self._proven.clear()
        for place in places:
            if starts[place] == ends[place]:
                await self._prove(place)
        return starts

    @property
    def has_begun(self) -> bool:
        """Whether this process has found where to read, of any partition."""
        return bool(self._positions)

    def position(self, place: TopicPartition) -> int | None:
        """Where the fence was last seen to stand; None when the partition is not this process's (any more)."""
        return self._positions.get(place)

    async def expected(self, place: TopicPartition) -> int | None:
        """The next offset to fold of a partition; None when the partition is not this process's (any more)."""
        if place not in self._positions:
            return None
        fence = (await self._patience.until_answered("hot state", lambda: self._hot.fold_fences([place])))[place]
        if fence is None:
            return self._positions.get(place)
        self._see(place, fence)
        return fence

    async def check(self) -> None:
        """Raises `FenceMovedBackError` when a fence is below what this process has folded.

        A hot state that has lost its last writes needs them folded again, and the log may be silent for hours.
        """
        # Positions first: a fence moves before its position does.
        positions = dict(self._positions)
        if not positions:
            return
        fences = await self._patience.until_answered("hot state", lambda: self._hot.fold_fences(tuple(positions)))
        for place, position in positions.items():
            fence = fences[place]
            if fence is not None and fence < position:
                raise _moved_back(place, position, fence)

    async def advance(self, place: TopicPartition, next_offset: int, orgs: Sequence[str] = ()) -> None:
        """Everything below `next_offset` is folded: last that of `orgs`.

        Raises `FenceMovedBackError` when the fence is below what was folded before, or that of an org below what was
        folded just now: a hot state that has lost its last writes in the middle of a batch needs them again, and must
        not be told that it has them.
        """
        position = self._positions.get(place, 0)
        if not await self._move(place, next_offset, position, orgs):
            fence = (await self._patience.until_answered("hot state", lambda: self._hot.fold_fences([place])))[place]
            raise _moved_back(place, next_offset if fence == position else position, fence or 0)
        self._see(place, next_offset)
        self._observer.fence(place, next_offset)
        await self._prove(place)

    async def keep(self) -> None:
        """Puts back the fences that a wipe took, so that they are there before any org is."""
        for place in await self._without_fence(tuple(self._positions)):
            # Of a cluster's servers one may have lost the fence, and another have an older one: that stays to be seen.
            await self._move(place, self._positions[place], self._positions[place])

    async def stop_before(self, place: TopicPartition, expected: int, found: int) -> NoReturn:
        """The log went on at `found` where the fence says `expected`: raises what that means.

        `FenceMovedBackError` when this process has itself folded all that lies between, else `OffsetGapError`.
        """
        position = self._positions.get(place, 0)
        if found <= position:
            raise _moved_back(place, position, expected)
        await self.stop_at_gap(place, f"expected offset {expected}, but the log continued at {found}")

    async def stop_at_gap(self, place: TopicPartition, text: str) -> NoReturn:
        """Raises the partition's alarm, for operators to see, and `OffsetGapError`, to end this process."""
        name = _ALARM.format(place)
        _log.error("fold_gap", topic=place.topic, partition=place.partition, reason=text)
        self._observer.alarm(name, True)
        await self._patience.until_answered("hot state", lambda: self._hot.set_alarm(name, text))
        raise OffsetGapError(f"{place.topic}/{place.partition}: {text}")

    def _see(self, place: TopicPartition, next_offset: int) -> None:
        # What was skipped as folded counts, too: reading has passed it. A partition given away is not taken back here.
        if place in self._positions:
            self._positions[place] = max(self._positions[place], next_offset)

    async def _prove(self, place: TopicPartition) -> None:
        """Clears the partition's alarm, once a start: the fold has been seen to go on from a good fence."""
        if place in self._proven:
            return
        name = _ALARM.format(place)
        await self._patience.until_answered("hot state", lambda: self._hot.clear_alarm(name))
        self._observer.alarm(name, False)
        self._proven.add(place)

    async def _move(self, place: TopicPartition, next_offset: int, above: int = 0, orgs: Sequence[str] = ()) -> bool:
        return await self._patience.until_answered(
            "hot state", lambda: self._hot.move_fold_fence(place, next_offset, above, orgs)
        )

    async def _without_fence(self, places: Sequence[TopicPartition]) -> list[TopicPartition]:
        fences = await self._patience.until_answered("hot state", lambda: self._hot.fold_fences(places))
        return [place for place in places if fences[place] is None]

    async def _is_any_org_warm(self) -> bool:
        epochs = await self._hot.epochs(await self._directory.orgs())
        return any(epoch is not None for epoch in epochs.values())


def _moved_back(place: TopicPartition, position: int, fence: int) -> FenceMovedBackError:
    return FenceMovedBackError(f"{place.topic}/{place.partition}: the fence went back from {position} to {fence}")
