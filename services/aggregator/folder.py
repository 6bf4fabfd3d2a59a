"""The fold of one partition's messages into the hot state, exactly once, whichever log they come from."""

import asyncio
from collections.abc import Mapping, Sequence

import structlog

from services.aggregator.configs import Configs
from services.aggregator.fences import FenceMovedBackError, Fences
from services.aggregator.observe import Observer
from services.aggregator.patience import Patience
from services.aggregator.rebuild import Rebuilder
from services.aggregator.thresholds import Thresholds
from services.core.backfill import ImpliedBudgets
from services.core.codec import decode
from services.core.codec_fields import UnreadableEventError
from services.core.dead_letters import dead_letter
from services.core.events import Event, HoldResized, Settlement
from services.core.fold import step_of
from services.core.hotstate import Applied, ApplyAnswer, Behind, Cold, FoldStep
from services.core.implied import step_with_implied
from services.core.ports import EventLog, HotState, Incoming, Outgoing, TopicPartition

_log = structlog.get_logger("farthing.aggregator")
_CONSUMER = "aggregator"

EventStep = tuple[Event, FoldStep]


class _Batch:
    """The messages that follow one upon the other from `begin` on, as steps by org, and what of them can't be read."""

    def __init__(self, place: TopicPartition, messages: Sequence[Incoming], begin: int) -> None:
        self.place = place
        self.begin = begin
        self.messages: list[Incoming] = []
        self.steps: dict[str, list[EventStep]] = {}
        self.unreadable: list[Outgoing] = []
        for message in messages:
            expected = begin + len(self.messages)
            if message.offset > expected:
                break
            if message.offset == expected:
                self._take(message)

    def _take(self, message: Incoming) -> None:
        self.messages.append(message)
        try:
            stamped = decode(message.value)
        except UnreadableEventError as error:
            self.unreadable.append(dead_letter(message, _CONSUMER, str(error)))
            return
        step = step_of(stamped, message.offset)
        if step is not None:
            self.steps.setdefault(stamped.event.facts.identity.org, []).append((stamped.event, step))


class Folder:
    """Applies messages in offset order. Calls for one partition must not overlap; each may be cut off and repeated."""

    def __init__(
        self,
        log: EventLog,
        hot: HotState,
        fences: Fences,
        rebuilder: Rebuilder,
        observer: Observer,
        patience: Patience,
        configs: Configs | None = None,
        thresholds: Thresholds | None = None,
    ) -> None:
        self._event_log = log
        self._hot = hot
        self._fences = fences
        self._rebuilder = rebuilder
        self._observer = observer
        self._patience = patience
        self._configs = configs
        self._thresholds = thresholds
        # Held while a batch is folded. Whoever holds it has the fences of this process stand still.
        self.turn = asyncio.Lock()

    async def apply(self, place: TopicPartition, messages: Sequence[Incoming]) -> None:
        """Folds the messages of one partition that are not folded yet, and moves its fence past them.

        Each message is held against the fence: a batch may hold some that were folded before. When an offset is
        missing, what lies before it is folded and `OffsetGapError` raised: nothing past a gap is ever folded. Raises
        `FenceMovedBackError` when reading must start anew. Waits as long as it takes for what does not answer.
        """
        async with self.turn:
            await self._apply_in_turn(place, messages)

    async def _apply_in_turn(self, place: TopicPartition, messages: Sequence[Incoming]) -> None:
        found_next = await self._next(place, messages)
        if found_next is None:
            return
        batch, stood = found_next
        fresh, expected = batch.messages, batch.begin + len(batch.messages)
        if fresh:
            with self._observer.folding(fresh):
                await self._fold(batch, stood)
        known = sum(message.offset < expected for message in messages) - len(fresh)
        self._observer.folded("duplicate", known)
        if len(fresh) + known < len(messages):
            found = next(message.offset for message in messages if message.offset > expected)
            await self._fences.stop_before(place, expected, found)

    async def _next(self, place: TopicPartition, messages: Sequence[Incoming]) -> tuple[_Batch, dict[str, int]] | None:
        """What is to be folded of the messages, and where each org's own fence stands at least; None: nothing, here.

        An org's fence is read between two looks at the partition's, which has not moved: so the org, as it stood, has
        all that lies below the batch. Where it stands lower later it has lost that, and must not skip it.
        """
        begin = self._fences.position(place)
        while begin is not None:
            batch = _Batch(place, messages, begin)
            stood = await self._own_fences(place, tuple(batch.steps))
            fence = await self._fences.expected(place)
            if fence == begin:
                # A cold org is rebuilt past `begin`. If it is warm without having been, that is an older state of it.
                return batch, {org: begin if own is None else own for org, own in stood.items()}
            begin = fence
        return None

    async def _own_fences(self, place: TopicPartition, orgs: tuple[str, ...]) -> Mapping[str, int | None]:
        if not orgs:
            return {}
        return await self._patience.until_answered("hot state", lambda: self._hot.org_fences(orgs, place))

    async def _fold(self, batch: _Batch, stood: Mapping[str, int]) -> None:
        place, unreadable = batch.place, batch.unreadable
        if unreadable:
            await self._patience.until_answered("log", lambda: self._event_log.publish(unreadable))
            self._observer.dead_letters(place.topic, len(unreadable))
            _log.warning("dead_letters", topic=place.topic, partition=place.partition, count=len(unreadable))
        next_offset = batch.messages[-1].offset + 1
        for org, org_steps in batch.steps.items():
            await self._apply(org, place, org_steps, next_offset, stood[org])
        if self._thresholds is not None and place.topic == Settlement.TOPIC:
            # Before the fence moves: who is cut off here folds the batch again, and looks again.
            await self._patience.until_answered("thresholds", self._thresholds.look_at_all)
        await self._fences.advance(place, next_offset, tuple(batch.steps))

    async def _apply(
        self, org: str, place: TopicPartition, events: Sequence[EventStep], next_offset: int, above: int
    ) -> None:
        while True:
            answer = await self._patience.until_answered(
                "hot state", lambda: self._apply_once(org, place, events, next_offset, above)
            )
            if isinstance(answer, Applied):
                self._observer.folded("applied", answer.applied)
                self._observer.folded("duplicate", answer.duplicates)
                return
            if isinstance(answer, Behind):
                raise FenceMovedBackError(f"{place.topic}/{place.partition}: org {org} has lost what it had folded")
            if isinstance(answer, Cold):
                await self._patience.until_answered("rebuild", lambda: self._rebuilder.rebuild([org]))
            if self._configs is not None:
                self._configs.forget(org)

    async def _apply_once(
        self, org: str, place: TopicPartition, events: Sequence[EventStep], next_offset: int, above: int
    ) -> ApplyAnswer:
        if self._configs is None:
            return await self._hot.apply(org, place, [step for _, step in events], next_offset, None, above)
        config = await self._configs.to_fold_by(org)
        steps = await self._with_implied(org, events, config.implied)
        answer = await self._hot.apply(org, place, steps, next_offset, config.token, above)
        if self._thresholds is not None and place.topic == Settlement.TOPIC and isinstance(answer, Applied):
            self._thresholds.note(org, (charge for step in steps for charge in (*step.charges, *step.implied)))
        return answer

    async def _with_implied(self, org: str, events: Sequence[EventStep], implied: ImpliedBudgets) -> list[FoldStep]:
        """The steps with what they imply. When a call was admitted is for its hold to say, where its event does not."""
        admitted_ms = {step.reservation_id: step.time_ms for _, step in events if step.kind == "restore"}
        asked = [
            step.reservation_id
            for event, step in events
            if isinstance(event, HoldResized) and event.facts.config_version < implied.horizon
        ]
        if unknown := [name for name in asked if name not in admitted_ms]:
            holds = await self._hot.open_holds(org, unknown)
            admitted_ms |= {name: hold.admitted_at_ms for name, hold in holds.items()}
        return [step_with_implied(step, event, implied, admitted_ms.get(step.reservation_id)) for event, step in events]
