"""Calls of an engine that was away a moment ago."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from services.core.ports import UnavailableError

T = TypeVar("T")


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """The answer of a call that is made again until the engine is there, as our services do.

    A Kafka that was paused or restarted answers before it names a broker in its metadata again.
    """
    async with asyncio.timeout(60):
        while True:
            try:
                return await call()
            except UnavailableError:
                await asyncio.sleep(0.05)
