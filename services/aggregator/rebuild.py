"""Bringing cold orgs back: the ledger's sums, then the log's tail folded on top, then loaded in one step."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import structlog

from services.aggregator.fences import Fences
from services.aggregator.observe import Observer
from services.aggregator.reading import folded_places, reading
from services.core.codec import decode
from services.core.codec_fields import UnreadableEventError
from services.core.fold import apply, image_of, load, step_of
from services.core.hotstate import FoldStep, OrgImage, OrgState
from services.core.ports import (
    Directory,
    EventLog,
    GoneError,
    HotState,
    Incoming,
    LedgerImage,
    LedgerView,
    TopicPartition,
    UnavailableError,
)

_log = structlog.get_logger("farthing.aggregator")

# The tail is there when reading begins. A log that hands out nothing of it for this long is away: start anew.
TAIL_PATIENCE_S: Final = 10.0


class Replay:
    """One org's state while ledger image and log tail are folded into it. Pure: the image alone comes out of it."""

    def __init__(self, known: LedgerImage, now_ms: int) -> None:
        self._next = known.next_offsets
        self._now_ms = now_ms
        self._state = OrgState()
        fences = {(place.topic, place.partition): offset for place, offset in known.next_offsets.items()}
        load(self._state, replace(known.image, fences=fences), "rebuilding", now_ms)

    def start(self, place: TopicPartition) -> int:
        """The first offset of a partition that the ledger did not have."""
        return self._next.get(place, 0)

    def fold(self, place: TopicPartition, step: FoldStep) -> None:
        """Folds one event of the tail; one that the ledger had is skipped."""
        apply(self._state, place.topic, place.partition, [step], step.offset + 1, self._now_ms)

    def image(self, ends: Mapping[TopicPartition, int]) -> OrgImage:
        """Everything folded, as of `ends` (exclusive) of every partition."""
        fences = {(place.topic, place.partition): end for place, end in ends.items()}
        return replace(image_of(self._state), fences=fences)


class Rebuilder:
    """Gives cold orgs their state back, one rebuild at a time. Between processes, `HotState.load` decides."""

    def __init__(
        self,
        log: EventLog,
        hot: HotState,
        ledger: LedgerView,
        directory: Directory,
        fences: Fences,
        observer: Observer,
        new_epoch: Callable[[], str],
    ) -> None:
        self._event_log = log
        self._hot = hot
        self._ledger = ledger
        self._directory = directory
        self._fences = fences
        self._observer = observer
        self._new_epoch = new_epoch
        self._lock = asyncio.Lock()

    async def rebuild_cold(self) -> None:
        """Sees to the fences, then to every published org that is cold. Raises `UnavailableError`: try again later."""
        await self._fences.keep()
        await self.rebuild(await self._directory.orgs())

    async def rebuild(self, orgs: Sequence[str]) -> None:
        """Rebuilds those of `orgs` that are cold; gateways refuse their calls meanwhile.

        Raises `UnavailableError`, the orgs still cold, when an outside system is away, and `OffsetGapError` when ledger
        and log together do not hold the whole history.
        """
        async with self._lock:
            epochs = await self._hot.epochs(orgs)
            cold = [org for org in orgs if epochs[org] is None]
            if not cold:
                return
            await self._fences.keep()
            now_ms = await self._hot.now_ms()
            replays = {org: Replay(await self._ledger.org_image(org), now_ms) for org in cold}
            # The ends are read last: past what the ledger knew, and past all that was folded while the orgs were cold.
            ends = await self._event_log.end_offsets(await folded_places(self._event_log))
            await self._fold_tail(replays, ends)
            loaded = [org for org in cold if await self._hot.load(org, replays[org].image(ends), self._new_epoch())]
            if loaded:
                self._observer.rebuilt(len(loaded))
                _log.info("rebuilt", orgs=len(loaded))

    async def _fold_tail(self, replays: Mapping[str, Replay], ends: Mapping[TopicPartition, int]) -> None:
        """Folds what the ledger had not taken yet, read once for all orgs together."""
        position = {place: min(replay.start(place) for replay in replays.values()) for place in ends}
        for place, start in position.items():
            if start > ends[place]:
                await self._fences.stop_at_gap(
                    place, f"the ledger has offsets below {start}, but the log ends at {ends[place]}"
                )
        behind = {place: start for place, start in position.items() if start < ends[place]}
        if not behind:
            return
        try:
            async with reading(self._event_log, behind) as batches:
                await self._fold_batches(replays, batches, behind, ends)
        except GoneError as error:
            lows = await self._event_log.low_offsets(tuple(behind))
            for place, start in behind.items():
                if start < lows[place]:
                    await self._fences.stop_at_gap(
                        place, f"the ledger has offsets below {start} only, but the log begins at {lows[place]}"
                    )
            raise UnavailableError(f"the log changed while it was read: {error}") from error

    async def _fold_batches(
        self,
        replays: Mapping[str, Replay],
        batches: AsyncIterator[Sequence[Incoming]],
        starts: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
    ) -> None:
        behind = dict(starts)
        heard_s = time.monotonic()
        async for batch in batches:
            if batch:
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s > TAIL_PATIENCE_S:
                raise UnavailableError(f"the log hands out nothing of {sorted(behind)}, though it does not end there")
            for message in batch:
                place = message.place
                expected = behind.get(place)
                if expected is None:
                    continue
                if message.offset != expected:
                    text = f"expected offset {expected}, but the log continued at {message.offset}"
                    await self._fences.stop_at_gap(place, text)
                _fold_message(replays, message)
                behind[place] = expected + 1
                if behind[place] == ends[place]:
                    del behind[place]
            if not behind:
                return


def _fold_message(replays: Mapping[str, Replay], message: Incoming) -> None:
    try:
        stamped = decode(message.value)
    except UnreadableEventError:
        return  # the fold and the ledger each send it to the dead-letter topic when they come to it
    replay = replays.get(stamped.event.facts.identity.org)
    step = step_of(stamped, message.offset)
    if replay is not None and step is not None:
        replay.fold(message.place, step)
