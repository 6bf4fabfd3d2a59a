"""`core.upkeep.Upkeep` in Valkey or Redis (7 or newer).

Keys are looked at page by page (SCAN), some hundreds at a time, on each primary of a cluster: in a script, as only that
can be sent to a server by the slot of a key. What a page leads to are commands for single keys.
"""

import re
from collections.abc import Sequence
from typing import Final

from services.adapters.valkey_connection import Argument, HotConnection
from services.adapters.valkey_scripts import load_scripts, org_key
from services.core.ports import TopicPartition
from services.core.upkeep import DAY_MS, GONE_MS, SILENT_DAYS, Endless, Page

KEYS_AT_ONCE: Final = 500
PRODUCERS_AT_ONCE: Final = 500
_TURN: Final = "upkeep:turn"
# A budget's id has no colon but behind the @ of one value, and a budget of each value is never for all time.
_ENDLESS: Final = re.compile(r"\{([^}]+)\}:[bt]:([^:]+):l")
_PRODUCERS: Final = re.compile(r"\{([^}]+)\}:p:(.+):(\d+)")
_MARKS: Final = re.compile(r"\{([^}]+)\}:bf")


class ValkeyUpkeep:
    """See the port; every method is one round trip, but for `look`, which has a second one for what it finds."""

    def __init__(self, connection: HotConnection) -> None:
        self._connection = connection
        self._scripts = load_scripts()

    async def take_turn(self, keep_ms: int) -> bool:
        """See the port."""
        return await self._connection.execute("SET", _TURN, "taken", "NX", "PX", keep_ms) is not None

    async def servers(self) -> tuple[str, ...]:
        """See the port. A primary is named by a hash tag of it; if slots move meanwhile, some keys wait for a later
        pass."""
        return await self._connection.tags()

    async def look(self, server: str, cursor: str) -> Page:
        """See the port."""
        following, *found = await self._scripts["keys"].run(
            self._connection, [f"{server}upkeep"], [cursor or "0", KEYS_AT_ONCE]
        )
        keys = [key.decode() for key in found]
        endless = [match for key in keys if (match := _ENDLESS.fullmatch(key))]
        times = await self._connection.execute_all([("PTTL", match[0]) for match in endless])
        return Page(
            None if following == b"0" else following.decode(),
            tuple(Endless(each[1], each[2], each[0], time != -1) for each, time in zip(endless, times, strict=True)),
            tuple(match[1] for key in keys if (match := _MARKS.fullmatch(key))),
            tuple(
                (match[1], TopicPartition(match[2], int(match[3])))
                for key in keys
                if (match := _PRODUCERS.fullmatch(key))
            ),
        )

    async def forget_silent(self, org: str, place: TopicPartition, cursor: str) -> str | None:
        """See the port."""
        key = org_key(org, f"p:{place.topic}:{place.partition}")
        arguments: list[Argument] = [cursor or "0", PRODUCERS_AT_ONCE, SILENT_DAYS, DAY_MS]
        following: bytes = await self._scripts["silent"].run(self._connection, [key], arguments)
        return None if following == b"0" else following.decode()

    async def end_soon(self, keys: Sequence[Endless]) -> None:
        """See the port."""
        await self._connection.execute_all([("PEXPIRE", each.key, GONE_MS, "NX") for each in keys])

    async def keep(self, keys: Sequence[Endless]) -> None:
        """See the port."""
        await self._connection.execute_all([("PERSIST", each.key) for each in keys])
