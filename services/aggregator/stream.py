"""The fold over the embedded log: one plain loop, every partition in this process."""

import asyncio
from collections.abc import Sequence

import structlog

from services.aggregator.fences import FenceMovedBackError, Fences
from services.aggregator.folder import Folder
from services.aggregator.patience import FIRST_DELAY_S, Patience
from services.aggregator.reading import FOLDED_TOPICS, folded_places, reading
from services.core.alerts import ThresholdCrossed
from services.core.events import Denial
from services.core.ports import (
    EventLog,
    GoneError,
    HotState,
    Incoming,
    LedgerView,
    TopicPartition,
    UnavailableError,
)

_log = structlog.get_logger("farthing.aggregator")


async def fold_stream(
    log: EventLog,
    places: Sequence[TopicPartition],
    fences: Fences,
    folder: Folder,
    patience: Patience,
    stopping: asyncio.Event,
) -> None:
    """Folds until `stopping`, finishing the batch in hand. Raises `OffsetGapError` at a gap; waits out an outage.

    Whatever ends a reading, the next one begins with `Fences.start`, which holds every fence against the log.
    """
    while not stopping.is_set():
        starts = await fences.start(places)
        try:
            async with reading(log, starts) as batches:
                async for batch in batches:
                    for place, messages in by_partition(batch).items():
                        await folder.apply(place, messages)
                    if not batch:
                        await fences.check()
                    if stopping.is_set():
                        return
        except (UnavailableError, GoneError, FenceMovedBackError) as error:
            _log.warning("reading_anew", reason=str(error))
            await patience.pause(FIRST_DELAY_S)


async def trim_bounds(log: EventLog, hot: HotState, ledger: LedgerView) -> dict[TopicPartition, int]:
    """The first offset to keep of each partition: below it, fold and ledger have read all that each of them reads.

    Dead letters and alerts have no reader to wait for, so theirs is the end. A partition that a reader has no fence of
    is not in the answer. Raises `UnavailableError` when one of them does not answer.
    """
    folded = await folded_places(log)
    denied = await _places(log, Denial.TOPIC)
    topics = (*FOLDED_TOPICS, Denial.TOPIC, ThresholdCrossed.TOPIC)
    unread = [*(f"{topic}.dlq" for topic in topics), ThresholdCrossed.TOPIC]
    letters = [place for topic in unread for place in await _places(log, topic)]
    stored = await ledger.next_offsets()
    fences = await hot.fold_fences(folded)
    bounds = {place: stored[place] for place in denied if place in stored}
    for place in folded:
        fence = fences[place]
        if fence is not None and place in stored:
            bounds[place] = min(fence, stored[place])
    return bounds | dict(await log.end_offsets(letters))


async def _places(log: EventLog, topic: str) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for number in range(await log.partitions(topic))]


def by_partition(batch: Sequence[Incoming]) -> dict[TopicPartition, list[Incoming]]:
    """The messages of each partition, in their order."""
    parts: dict[TopicPartition, list[Incoming]] = {}
    for message in batch:
        parts.setdefault(message.place, []).append(message)
    return parts
