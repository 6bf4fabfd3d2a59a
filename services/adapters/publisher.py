"""Moves an outbox to the log: in order, as soon as there is something, for as long as it takes."""

import asyncio
from collections.abc import Callable
from typing import Final

from services.core.ports import EventLog, Outbox, UnavailableError

BATCH_EVENTS: Final = 500
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 2.0
CHECKPOINT_EVERY_S: Final = 1.0


class Publisher:
    """One task's work: `run` it, `wake` it after each append, `drain` it before the process ends.

    `on_published` is told how many events the log has taken, `on_failure` why a try failed; it is tried again, with
    pauses that double from `FIRST_PAUSE_S` to `LONGEST_PAUSE_S`. A try that failed may have reached the log all the
    same: then its events are there twice, which their sequence tells.
    """

    def __init__(
        self,
        outbox: Outbox,
        log: EventLog,
        *,
        on_published: Callable[[int], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._outbox = outbox
        self._log = log
        self._on_published = on_published
        self._on_failure = on_failure
        self._awake = asyncio.Event()
        self._drained = asyncio.Event()

    def wake(self) -> None:
        """Says that something was appended. Call it in the event loop's thread."""
        self._drained.clear()
        self._awake.set()

    async def run(self) -> None:
        """Publishes until it is cancelled. Raises (in an `ExceptionGroup`) only what trying again can't mend."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._publish_for_ever())
            tasks.create_task(self._checkpoint_now_and_then())

    async def drain(self, timeout_s: float) -> bool:
        """Waits until the log has everything; false when it has not after `timeout_s` seconds. `run` must be going."""
        self.wake()
        try:
            async with asyncio.timeout(timeout_s):
                await self._drained.wait()
        except TimeoutError:
            return False
        return True

    async def _publish_for_ever(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self._publish_all()
                pause_s = FIRST_PAUSE_S
                await self._awake.wait()
            except UnavailableError as error:
                self._on_failure(str(error))
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _publish_all(self) -> None:
        # Cleared before the look, so that an append after the look is not slept through.
        self._awake.clear()
        while rows := self._outbox.oldest(BATCH_EVENTS):
            await self._log.publish([row.message for row in rows])
            self._outbox.forget(rows[-1].sequence)
            self._on_published(len(rows))
        self._drained.set()

    async def _checkpoint_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(CHECKPOINT_EVERY_S)
            try:
                await asyncio.to_thread(self._outbox.checkpoint)
            except UnavailableError as error:
                self._on_failure(str(error))
