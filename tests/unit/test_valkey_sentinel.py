"""The client of Sentinels, with servers that a test plays: what it leaves open, and what it leaves unsaid."""

import asyncio
import gc
from typing import Any

import pytest

from services.adapters import valkey_sentinel
from services.adapters.valkey_connection import Address
from services.adapters.valkey_sentinel import SentinelConnection
from services.core.ports import NotSentError, UnavailableError
from tests.support.gateway import until


class Played:
    """A connection: to a Sentinel, which names a primary, or to that, which answers as `ping` says."""

    made: list["Played"]
    ping: Exception | None = None
    gate: asyncio.Event | None = None

    def __init__(self, address: Address, *, timeout_s: float, must_lead: bool = False) -> None:
        self.address = address
        self.is_primary = must_lead
        self.is_closed = False
        self.made.append(self)

    async def execute(self, *command: Any) -> Any:
        if not self.is_primary:
            return [b"primary", b"6379"]
        if self.gate is not None:
            await self.gate.wait()
        if self.ping is not None:
            raise self.ping
        return b"PONG"

    async def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> type[Played]:
    class Own(Played):
        made: list[Played] = []  # noqa: RUF012 - one a test

    monkeypatch.setattr(valkey_sentinel, "ValkeyConnection", Own)
    return Own


@pytest.mark.parametrize("failure", [UnavailableError("no answer"), NotSentError("a replica")])
async def test_a_named_primary_that_does_not_answer_is_closed(played: type[Played], failure: Exception) -> None:
    played.ping = failure
    connection = SentinelConnection("redis+sentinel://s1,s2/hot")
    for _ in range(3):
        with pytest.raises(NotSentError, match="lead to no primary"):
            await connection.execute("GET", "a")
    assert sum(each.is_primary for each in played.made) == 6
    assert all(each.is_closed for each in played.made)


async def test_a_primary_that_answers_stays_open_until_it_is_closed_here(played: type[Played]) -> None:
    connection = SentinelConnection("redis+sentinel://s1,s2/hot")
    assert await connection.execute("GET", "a") == b"PONG"
    (primary,) = (each for each in played.made if each.is_primary)
    assert not primary.is_closed
    await connection.close()
    assert primary.is_closed


async def test_closing_while_a_primary_is_looked_for_leaves_none_open(played: type[Played]) -> None:
    played.gate = asyncio.Event()
    connection = SentinelConnection("redis+sentinel://s1/hot")
    asking = asyncio.create_task(connection.execute("GET", "a"))
    await until(lambda: any(each.is_primary for each in played.made))
    await connection.close()
    await asyncio.gather(asking, return_exceptions=True)
    assert all(each.is_closed for each in played.made)


async def test_a_search_that_fails_when_nobody_waits_for_it_any_more_is_no_lost_error(played: type[Played]) -> None:
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    played.gate, played.ping = asyncio.Event(), UnavailableError("no answer")
    connection = SentinelConnection("redis+sentinel://s1/hot")
    asking = asyncio.create_task(connection.execute("GET", "a"))
    await until(lambda: any(each.is_primary for each in played.made))
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    played.gate.set()
    for _ in range(10):
        await asyncio.sleep(0)
    played.ping = None  # its traceback knows the search
    del asking, connection
    gc.collect()
    assert told == []
