"""Settlements that the outbox's disk refuses: kept in memory, and tried again for as long as the gateway lives."""

import asyncio
from collections import deque
from typing import Final

import structlog

from services.core.events import Settlement
from services.core.money import format_usd
from services.core.ports import OutboxEvent, OutboxFullError, UnavailableError
from services.gateway.record import Recorder

log = structlog.get_logger()

# Calls are refused while the disk is full, so that these are of calls under way: above so many the oldest are given up.
MAX_PENDING: Final = 10_000
_PAUSE_S: Final = 0.5
# Each is a commit of its own, which calls wait for.
_AT_ONCE: Final = 20


class Settlements:
    """The way of settlements into the outbox. Never raises: what a call has cost is known, and nobody else knows it.

    One that is given up leaves its hold, whose expiry books what was held, or releases it, as the org has it.
    """

    def __init__(self, outbox: Recorder) -> None:
        self._outbox = outbox
        self._pending: deque[OutboxEvent] = deque()
        self._task: asyncio.Task[None] | None = None

    @property
    def pending(self) -> int:
        """How many the disk has yet to take."""
        return len(self._pending)

    def record(self, settlement: Settlement, headers: tuple[tuple[str, bytes], ...]) -> None:
        """Has a settlement recorded: now, or once the disk takes it, behind those that wait already."""
        waits = bool(self._pending)
        self._pending.append(OutboxEvent(settlement, headers))
        error = None if waits else self._try_some()
        if error is not None:  # once an outage: hundreds of equal lines help nobody
            log.warning("settlement_waits", transaction_id=settlement.transaction_id, reason=str(error))
        if len(self._pending) > MAX_PENDING:
            _give_up(self._pending.popleft(), f"more than {MAX_PENDING:,} are waiting")
        if self._pending and self._task is None:
            self._task = asyncio.create_task(self._run())

    async def finish(self) -> None:
        """Tries what is left once more, when no more calls are served; what the disk still refuses is given up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        error: Exception | None = None
        while self._pending and error is None:
            error = self._try_some()
        while self._pending:
            _give_up(self._pending.popleft(), f"the gateway ends, and {error}")

    def _try_some(self) -> Exception | None:
        """Records the first ones; what is in the way of all, if anything. One that can't be written is given up."""
        for _ in range(min(_AT_ONCE, len(self._pending))):
            try:
                self._outbox.append([self._pending[0]])
            except (OutboxFullError, UnavailableError) as error:
                return error
            except Exception as error:  # it is its own fault, whatever it is, and told with all that is known
                _give_up(self._pending[0], repr(error))
            self._pending.popleft()
        return None

    async def _run(self) -> None:
        pause_s = _PAUSE_S
        try:
            while self._pending:
                await asyncio.sleep(pause_s)
                pause_s = _PAUSE_S if self._try_some() else 0.0  # calls go on between the pieces
        finally:
            self._task = None


def _give_up(one: OutboxEvent, reason: str) -> None:
    assert isinstance(one.event, Settlement)
    log.error(
        "settlement_not_recorded",
        transaction_id=one.event.transaction_id,
        cost_usd=format_usd(one.event.cost_nano),
        reason=reason,
    )
