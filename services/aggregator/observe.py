"""What the aggregator tells the outside of its work; the composition root turns it into metrics and spans."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

from services.core.ports import Incoming, TopicPartition

FoldResult = Literal["applied", "duplicate"]


class Observer(Protocol):
    """Counts and traces. Called from the event loop; never raises, never blocks."""

    def folding(self, messages: Sequence[Incoming]) -> AbstractContextManager[None]:
        """Surrounds the folding of these messages, continuing each one's trace."""

    def folded(self, result: FoldResult, count: int) -> None:
        """`count` messages ended with this result."""

    def dead_letters(self, topic: str, count: int) -> None:
        """`count` messages of this topic went to its dead-letter topic."""

    def fence(self, place: TopicPartition, next_offset: int) -> None:
        """The fold of this partition stands at `next_offset`."""

    def alarm(self, name: str, raised: bool) -> None:
        """A named alarm was raised or cleared."""

    def rebuilt(self, count: int) -> None:
        """`count` orgs got their hot state back."""

    def expired(self, count: int) -> None:
        """`count` holds were ended by an expiry event."""
