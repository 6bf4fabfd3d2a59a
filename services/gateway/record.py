"""Where events go from here: the gateway's side of the outbox."""

from collections.abc import Sequence
from typing import Protocol

from services.core.ports import OutboxEvent


class Recorder(Protocol):
    """The part of `ports.Outbox` that a call needs."""

    def append(self, events: Sequence[OutboxEvent]) -> None:
        """Keeps the events durably, all or none. Raises `OutboxFullError` and `UnavailableError`."""

    def is_full(self) -> bool:
        """Whether no further call may be taken on."""
