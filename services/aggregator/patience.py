"""Waiting out what does not answer, and ending the process on everything else."""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn, TypeVar

import structlog

from services.core.ports import UnavailableError

_T = TypeVar("_T")
_log = structlog.get_logger("farthing.aggregator")

EXIT_FATAL: Final = 70
FIRST_DELAY_S: Final = 0.05
LONGEST_DELAY_S: Final = 2.0
TELL_AGAIN_S: Final = 30.0


class StoppedError(RuntimeError):
    """The process was told to stop while it waited for an outside system. What it was at can safely be done again."""


class Patience:
    """Repeats what an outside system leaves unanswered, without end: a log line when it begins, each half minute, and
    when it is over."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self._stopping = stopping

    async def until_answered(self, what: str, operation: Callable[[], Awaitable[_T]]) -> _T:
        """The operation's result. Raises `StoppedError` when the process is told to stop before there is one."""
        outage = _Outage(what)
        delay_s = FIRST_DELAY_S
        while True:
            try:
                result = await operation()
            except UnavailableError as error:
                outage.goes_on(error)
            else:
                outage.is_over()
                return result
            await self.pause(delay_s)
            if self._stopping.is_set():
                raise StoppedError(f"stopped while waiting: {what}")
            delay_s = min(2 * delay_s, LONGEST_DELAY_S)

    async def every(self, interval_s: float, what: str, once: Callable[[], Awaitable[object]]) -> None:
        """Calls `once` again and again, `interval_s` apart, until the process is told to stop."""
        outage = _Outage(what)
        while not self._stopping.is_set():
            try:
                await once()
            except UnavailableError as error:
                outage.goes_on(error)
            else:
                outage.is_over()
            await self.pause(interval_s)

    async def pause(self, seconds: float) -> None:
        """Sleeps, but no longer than until the process is told to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)


class _Outage:
    """Says that something is awaited: at once, and then now and again."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._told_s: float | None = None

    def goes_on(self, error: UnavailableError) -> None:
        now_s = time.monotonic()
        if self._told_s is None or now_s - self._told_s >= TELL_AGAIN_S:
            self._told_s = now_s
            _log.warning("waiting", waiting_for=self._what, reason=str(error))

    def is_over(self) -> None:
        if self._told_s is not None:
            self._told_s = None
            _log.info("answered_again", waiting_for=self._what)


def end_process(event: str, **fields: object) -> NoReturn:
    """One log line, then exit code 70, at once: nothing further may be done by this process."""
    _log.critical(event, **fields)
    os._exit(EXIT_FATAL)


async def or_end_process(work: Awaitable[None]) -> None:
    """Awaits `work`; whatever it raises ends the process, but for being told to stop."""
    try:
        await work
    except StoppedError as stopped:
        _log.info("stopped_waiting", reason=str(stopped))
    except Exception as error:  # an exception that travelled on into Faust would be acknowledged as work done
        end_process("aggregator_failed", reason=f"{type(error).__name__}: {error}", exc_info=error)
