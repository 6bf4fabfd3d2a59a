"""What the ledger tells the outside of its work; the composition root turns it into metrics and spans."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from services.core.ports import Incoming, TopicPartition


class Observer(Protocol):
    """Counts and traces. Called from the event loop; never raises, never blocks."""

    def recording(self, messages: Sequence[Incoming]) -> AbstractContextManager[None]:
        """Surrounds the recording of these messages, continuing each one's trace."""

    def rows(self, event_type: str, count: int) -> None:
        """`count` events of this type are in the ledger."""

    def duplicates(self, count: int) -> None:
        """`count` messages were events the ledger had already."""

    def dead_letters(self, topic: str, count: int) -> None:
        """`count` messages of this topic went to its dead-letter topic."""

    def fence(self, place: TopicPartition, next_offset: int) -> None:
        """The ledger has every offset of this partition below `next_offset`."""
