"""What of the log is folded, and reading it for a while."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

from services.core.events import Reservation, Settlement
from services.core.ports import EventLog, Incoming, TopicPartition

# Expiries are on the settlements' topic: whatever ends a hold comes in one order.
FOLDED_TOPICS: Final = (Reservation.TOPIC, Settlement.TOPIC)
BATCH_MESSAGES: Final = 500
BATCH_WAIT_MS: Final = 100


async def folded_places(log: EventLog) -> list[TopicPartition]:
    """Every partition there is to fold; raises `GoneError` when a topic is missing."""
    counts = {topic: await log.partitions(topic) for topic in FOLDED_TOPICS}
    return [TopicPartition(topic, number) for topic, count in counts.items() for number in range(count)]


@asynccontextmanager
async def reading(
    log: EventLog, starts: Mapping[TopicPartition, int]
) -> AsyncIterator[AsyncIterator[Sequence[Incoming]]]:
    """Batches of the log from `starts` on. The reader is closed with the block, not whenever memory is tidied."""
    batches = log.read(starts, max_messages=BATCH_MESSAGES, max_wait_ms=BATCH_WAIT_MS)
    try:
        yield batches
    finally:
        if isinstance(batches, AsyncGenerator):
            await batches.aclose()
