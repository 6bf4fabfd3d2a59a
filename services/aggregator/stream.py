"""The fold over the embedded log: one plain loop, every partition in this process."""

import asyncio
from collections.abc import Sequence

import structlog

from services.aggregator.fences import FenceMovedBackError, Fences
from services.aggregator.folder import Folder
from services.aggregator.patience import FIRST_DELAY_S, Patience
from services.aggregator.reading import reading
from services.core.ports import EventLog, GoneError, Incoming, TopicPartition, UnavailableError

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
                    if stopping.is_set():
                        return
        except (UnavailableError, GoneError, FenceMovedBackError) as error:
            _log.warning("reading_anew", reason=str(error))
            await patience.pause(FIRST_DELAY_S)


def by_partition(batch: Sequence[Incoming]) -> dict[TopicPartition, list[Incoming]]:
    """The messages of each partition, in their order."""
    parts: dict[TopicPartition, list[Incoming]] = {}
    for message in batch:
        parts.setdefault(message.place, []).append(message)
    return parts
