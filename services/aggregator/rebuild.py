"""Bringing cold orgs back: the ledger's sums, then the log's tail folded on top, then loaded with its epoch last."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import structlog

from services.aggregator.configs import Configs, NotPublishedError
from services.aggregator.fences import Fences
from services.aggregator.observe import Observer
from services.aggregator.reading import folded_places, reading
from services.aggregator.snapshots import UnreadableSnapshotError
from services.aggregator.thresholds import Thresholds
from services.core.backfill import ImpliedBudgets
from services.core.budgets import Charge
from services.core.codec import decode
from services.core.codec_fields import UnreadableEventError
from services.core.events import Event, Settlement
from services.core.fold import apply, image_of, load, step_of
from services.core.hotstate import FoldStep, OrgImage, OrgState
from services.core.implied import holds_with_implied, step_with_implied
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
# What another process has begun to load is there by then, or has failed: after that it may be begun anew.
LOADING_PATIENCE_S: Final = 10.0
_PAUSE_S: Final = 0.25


class Replay:
    """One org's state while ledger image and log tail are folded into it. Pure: the image alone comes out of it.

    `implied_nano` is what the calls that the ledger knows have spent by implied charges to the budgets `implied`.
    """

    def __init__(
        self,
        known: LedgerImage,
        now_ms: int,
        implied: ImpliedBudgets | None = None,
        implied_nano: Mapping[tuple[str, str], int] | None = None,
    ) -> None:
        self._next = dict(known.next_offsets)
        self._now_ms = now_ms
        self.implied = implied or ImpliedBudgets(())
        # What endings of the tail have been charged to, each once.
        self.charged: dict[Charge, None] = {}
        self._state = OrgState()
        spent_nano = dict(known.image.spent_nano)
        for slot, nano in (implied_nano or {}).items():
            spent_nano[slot] = spent_nano.get(slot, 0) + nano
        fences = {(place.topic, place.partition): offset for place, offset in known.next_offsets.items()}
        holds = holds_with_implied(known.image.holds, self.implied)
        image = replace(known.image, spent_nano=spent_nano, holds=holds, fences=fences)
        load(self._state, image, "rebuilding", now_ms)

    def start(self, place: TopicPartition) -> int:
        """The first offset of a partition that is not in it yet."""
        return self._next.get(place, 0)

    def with_implied(self, step: FoldStep, event: Event) -> FoldStep:
        """An event's step with the charges it implies."""
        hold = self._state.holds.get(step.reservation_id)
        return step_with_implied(step, event, self.implied, None if hold is None else hold.admitted_at_ms)

    def fold(self, place: TopicPartition, step: FoldStep) -> None:
        """Folds one event of the tail, with what it implies; one that the ledger had is skipped."""
        if step.kind in ("settle", "expire") and step.offset >= self.start(place):
            self.charged |= dict.fromkeys((*step.charges, *step.implied))
        apply(self._state, place.topic, place.partition, [step], step.offset + 1, self._now_ms)

    def reach(self, ends: Mapping[TopicPartition, int]) -> None:
        """All below `ends` is in it."""
        self._next |= ends

    def image(self, ends: Mapping[TopicPartition, int]) -> OrgImage:
        """Everything folded, as of `ends` (exclusive) of every partition."""
        fences = {(place.topic, place.partition): end for place, end in ends.items()}
        return replace(image_of(self._state), fences=fences, filled=self.implied.since)


async def implied_nano(
    ledger: LedgerView, org: str, known: LedgerImage, implied: ImpliedBudgets, now_ms: int
) -> dict[tuple[str, str], int]:
    """What the calls in a ledger's image have spent by implied charges. Raises `UnavailableError`."""
    places = known.next_offsets.items()
    below = {place.partition: offset for place, offset in places if place.topic == Settlement.TOPIC}
    spent: dict[tuple[str, str], int] = {}
    for query in implied.queries(now_ms, below):
        spent |= implied.spent_nano(query, await ledger.call_sums(org, query), now_ms)
    return spent


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
        configs: Configs | None = None,
        thresholds: Thresholds | None = None,
    ) -> None:
        self._event_log = log
        self._hot = hot
        self._ledger = ledger
        self._directory = directory
        self._fences = fences
        self._observer = observer
        self._new_epoch = new_epoch
        self._configs = configs
        self._thresholds = thresholds
        self._lock = asyncio.Lock()

    async def rebuild_cold(self) -> None:
        """Sees to the fences, then to every published org that is cold. Raises `UnavailableError`: try again later."""
        await self._fences.keep()
        await self.rebuild(await self._directory.orgs())

    async def rebuild(self, orgs: Sequence[str]) -> None:
        """Rebuilds those of `orgs` that are cold; gateways refuse their calls meanwhile.

        Raises `UnavailableError`, the orgs still cold, when an outside system is away, and `OffsetGapError` when ledger
        and log together do not hold the whole history. Raises `NotPublishedError` when the budgets of some are lost
        until control publishes them again, and `UnreadableSnapshotError` when they can't be read: these stay cold, and
        all others are rebuilt.
        """
        async with self._lock:
            epochs = await self._hot.epochs(orgs)
            cold = [org for org in orgs if epochs[org] is None]
            if not cold:
                return
            await self._fences.keep()
            now_ms = await self._hot.now_ms()
            replays, waiting = await self._replays(cold, now_ms)
            # The ends are read last: past what the ledger knew, and past all that was folded while the orgs were cold.
            ends = await self._event_log.end_offsets(await folded_places(self._event_log))
            await self.fold_tail(replays, ends)
            loaded = [org for org, replay in replays.items() if await self._load(org, replay, ends)]
            if loaded:
                self._observer.rebuilt(len(loaded))
                _log.info("rebuilt", orgs=len(loaded))
            if waiting is not None:
                raise waiting
            await self._wait_for([org for org in replays if org not in loaded])

    async def _wait_for(self, orgs: Sequence[str]) -> None:
        """Waits for those that another process is loading; raises `UnavailableError` when that takes long, or failed.

        To rebuild them meanwhile would keep the ledger busy for nothing.
        """
        clock = asyncio.get_running_loop().time
        patience_ends_s = clock() + LOADING_PATIENCE_S
        while orgs:
            epochs = await self._hot.epochs(orgs)
            orgs = [org for org in orgs if epochs[org] is None]
            if not orgs:
                return
            if clock() >= patience_ends_s:
                some = f"{', '.join(orgs[:3])} ({len(orgs)} in all)"
                raise UnavailableError(f"another process loads orgs, or failed to: {some}")
            await asyncio.sleep(_PAUSE_S)

    async def _load(self, org: str, replay: Replay, ends: Mapping[TopicPartition, int]) -> bool:
        is_refused = False
        try:
            is_refused = not await self._hot.load(org, replay.image(ends), self._new_epoch())
        finally:  # an answer that was lost may have been a good one
            if self._thresholds is not None and not is_refused:
                self._thresholds.rebuilt(org, replay.charged)
        return not is_refused

    async def _replays(self, orgs: Sequence[str], now_ms: int) -> tuple[dict[str, Replay], UnavailableError | None]:
        """Those of the orgs that are published, and why the others are not among them."""
        replays: dict[str, Replay] = {}
        waiting: UnavailableError | None = None
        for org in orgs:
            try:
                replays[org] = await self._replay(org, now_ms)
            except (NotPublishedError, UnreadableSnapshotError) as error:
                waiting = error
        return replays, waiting

    async def _replay(self, org: str, now_ms: int) -> Replay:
        # Asked first: while control is away, the ledger is not bothered again and again.
        implied = None if self._configs is None else await self._configs.implied(org)
        known = await self._ledger.org_image(org)
        if implied is None:
            return Replay(known, now_ms)
        return Replay(known, now_ms, implied, await implied_nano(self._ledger, org, known, implied, now_ms))

    async def fold_tail(self, replays: Mapping[str, Replay], ends: Mapping[TopicPartition, int]) -> None:
        """Folds what is not in the replays yet and lies below `ends`, read once for all orgs together.

        Raises as `rebuild` does.
        """
        if not replays:
            return
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
        replay.fold(message.place, replay.with_implied(step, stamped.event))
