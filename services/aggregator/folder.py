"""The fold of one partition's messages into the hot state, exactly once, whichever log they come from."""

from collections.abc import Sequence

import structlog

from services.aggregator.fences import Fences
from services.aggregator.observe import Observer
from services.aggregator.patience import Patience
from services.aggregator.rebuild import Rebuilder
from services.core.codec import decode
from services.core.codec_fields import UnreadableEventError
from services.core.dead_letters import dead_letter
from services.core.fold import step_of
from services.core.hotstate import Cold, FoldStep
from services.core.ports import EventLog, HotState, Incoming, Outgoing, TopicPartition

_log = structlog.get_logger("farthing.aggregator")
_CONSUMER = "aggregator"


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
    ) -> None:
        self._event_log = log
        self._hot = hot
        self._fences = fences
        self._rebuilder = rebuilder
        self._observer = observer
        self._patience = patience

    async def apply(self, place: TopicPartition, messages: Sequence[Incoming]) -> None:
        """Folds the messages of one partition that are not folded yet, and moves its fence past them.

        Each message is held against the fence: a batch may hold some that were folded before. When an offset is
        missing, what lies before it is folded and `OffsetGapError` raised: nothing past a gap is ever folded. Raises
        `FenceMovedBackError` when reading must start anew. Waits as long as it takes for what does not answer.
        """
        expected = await self._fences.expected(place)
        if expected is None:
            return
        fresh: list[Incoming] = []
        for message in messages:
            if message.offset < expected:
                continue
            if message.offset > expected:
                break
            fresh.append(message)
            expected += 1
        if fresh:
            with self._observer.folding(fresh):
                await self._fold(place, fresh)
        known = sum(message.offset < expected for message in messages) - len(fresh)
        self._observer.folded("duplicate", known)
        if len(fresh) + known < len(messages):
            found = next(message.offset for message in messages if message.offset > expected)
            await self._fences.stop_before(place, expected, found)

    async def _fold(self, place: TopicPartition, messages: Sequence[Incoming]) -> None:
        steps: dict[str, list[FoldStep]] = {}
        unreadable: list[Outgoing] = []
        for message in messages:
            try:
                stamped = decode(message.value)
            except UnreadableEventError as error:
                unreadable.append(dead_letter(message, _CONSUMER, str(error)))
                continue
            step = step_of(stamped, message.offset)
            if step is not None:
                steps.setdefault(stamped.event.facts.identity.org, []).append(step)
        if unreadable:
            await self._patience.until_answered("log", lambda: self._event_log.publish(unreadable))
            self._observer.dead_letters(place.topic, len(unreadable))
            _log.warning("dead_letters", topic=place.topic, partition=place.partition, count=len(unreadable))
        next_offset = messages[-1].offset + 1
        for org, org_steps in steps.items():
            await self._apply(org, place, org_steps, next_offset)
        await self._fences.advance(place, next_offset)

    async def _apply(self, org: str, place: TopicPartition, steps: Sequence[FoldStep], next_offset: int) -> None:
        while True:
            answer = await self._patience.until_answered(
                "hot state", lambda: self._hot.apply(org, place, steps, next_offset)
            )
            if not isinstance(answer, Cold):
                self._observer.folded("applied", answer.applied)
                self._observer.folded("duplicate", answer.duplicates)
                return
            await self._patience.until_answered("rebuild", lambda: self._rebuilder.rebuild([org]))
