"""Takes back holds that no call will end, for as long as it takes: their expiry would book money never spent."""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Final

import structlog

from services.core.ports import HotState, UnavailableError

log = structlog.get_logger()

# Above so many, those that have waited longest are left to their expiry: they have the least of their lives left.
MAX_PENDING: Final = 10_000
# So many answers that there is no such hold are believed. The first may be of a release that has overtaken its reserve.
_ANSWERS: Final = 2
_FIRST_PAUSE_S: Final = 0.5
# While the hot state is away. An outage may last longer than any hold: only an answer ends the trying.
_LONGEST_PAUSE_S: Final = 4.0


@dataclass(slots=True)
class _Pending:
    """A hold to be taken back: of which org, when next (the loop's time), and how that has gone so far."""

    org: str
    due_s: float
    pause_s: float = _FIRST_PAUSE_S
    answers: int = 0


class Releases:
    """Holds on their way back. One task tries them all, and lives while there are any."""

    def __init__(self, hot_state: HotState) -> None:
        self._hot_state = hot_state
        self._pending: dict[str, _Pending] = {}
        self._added = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_over_full = False

    @property
    def pending(self) -> int:
        """How many holds are still to be taken back."""
        return len(self._pending)

    def add(self, org: str, transaction_id: str) -> None:
        """Takes a hold back, off the call's way: at once, and again until the hot state has answered."""
        if len(self._pending) >= MAX_PENDING and transaction_id not in self._pending:
            oldest = next(iter(self._pending))
            del self._pending[oldest]
            if not self._is_over_full:  # once for each time it gets so far: there may be thousands a second
                log.warning("hold_not_released", transaction_id=oldest, reason=f"more than {MAX_PENDING:,} are waiting")
            self._is_over_full = True
        self._pending[transaction_id] = _Pending(org, asyncio.get_running_loop().time())
        self._added.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def finish(self, timeout_s: float) -> None:
        """Tries what is left once more, when no more calls are served; what does not go in time is given up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        for each in self._pending.values():
            each.due_s = 0.0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._try_due()
        unanswered = sum(each.answers == 0 for each in self._pending.values())
        if unanswered:
            reason = "the hot state is away, and the gateway ends"
            log.warning("holds_not_released", holds=unanswered, reason=reason)
        self._pending.clear()

    async def _run(self) -> None:
        try:
            while self._pending:
                self._added.clear()
                await self._try_due()
                self._is_over_full = self._is_over_full and len(self._pending) >= MAX_PENDING
                if self._pending:
                    wait_s = min(each.due_s for each in self._pending.values()) - asyncio.get_running_loop().time()
                    # Not `wait_for`, which loses a cancellation that comes as something is added (Python 3.11).
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(max(0.0, wait_s)):
                            await self._added.wait()
        finally:
            self._task = None

    async def _try_due(self) -> None:
        """Tries all that is due. Where one org's can't be reached, its others are put off untried."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        away: set[str] = set()
        for transaction_id, each in [named for named in self._pending.items() if named[1].due_s <= now_s]:
            if each.org not in away and not await self._try(transaction_id, each):
                away.add(each.org)
            if each.org in away:
                each.due_s, each.pause_s = loop.time() + each.pause_s, min(2 * each.pause_s, _LONGEST_PAUSE_S)

    async def _try(self, transaction_id: str, each: _Pending) -> bool:
        """Whether the hot state has answered. One hold that it can't let go is in no other's way."""
        try:
            is_released = await self._hot_state.release(each.org, transaction_id)
        except UnavailableError:
            if self._pending.pop(transaction_id, None) is not None:
                self._pending[transaction_id] = each  # behind the others: next time one of them is tried first
            return False
        except Exception:  # asking for it again and again would keep the others waiting, and change nothing
            log.exception("hold_not_released", transaction_id=transaction_id, reason="it can't be read")
            self._pending.pop(transaction_id, None)
            return True
        each.answers += 1
        each.due_s = asyncio.get_running_loop().time() + _FIRST_PAUSE_S
        if is_released or each.answers == _ANSWERS:
            self._pending.pop(transaction_id, None)
        return True
