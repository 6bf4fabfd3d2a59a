"""The breaker before the hot state's connection: when it opens, whom it lets through, and when it closes."""

import asyncio
import contextlib
from typing import Any

import pytest

from services.adapters.valkey_breaker import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    MAX_FAILURES,
    GuardedConnection,
    OpenCircuitError,
)
from services.adapters.valkey_connection import RefusedError
from services.core.ports import NotSentError, UnavailableError

SILENT = UnavailableError("no answer")
NOWHERE = NotSentError("nothing listens there")


class Server:
    """A connection whose answer a test sets: a value, an exception, or an event to wait for first."""

    def __init__(self, *, is_cluster: bool = False) -> None:
        self.is_cluster = is_cluster
        self.asked = 0
        self.answer: Any = b"OK"
        self.down: set[str] = set()
        self.waits_for: asyncio.Event | None = None

    async def execute(self, *command: Any) -> Any:
        self.asked += 1
        if self.waits_for is not None:
            await self.waits_for.wait()
        if len(command) > 1 and command[1] in self.down:
            raise NOWHERE
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def execute_all(self, commands: Any) -> list[Any]:
        return [await self.execute(*each) for each in commands]

    async def execute_on_each(self, *command: Any) -> list[Any]:
        return [await self.execute(*command)]

    def server_of(self, key: str | bytes) -> str:
        return key if isinstance(key, str) else key.decode()

    async def close(self) -> None:
        pass


class Guarded:
    """A breaker on a clock that the test turns, and what it has told."""

    def __init__(self, server: Server) -> None:
        self.now_s = 0.0
        self.told: list[tuple[str, bool]] = []
        self.connection = GuardedConnection(
            server, lambda name, is_open: self.told.append((name, is_open)), monotonic_s=lambda: self.now_s
        )

    async def fails_with(self, error: type[Exception], *, key: str = "a") -> None:
        with pytest.raises(error):
            await self.connection.execute("GET", key)

    async def pause_s(self) -> float:
        """How long it takes from now until a call is let through."""
        began_s = self.now_s
        while True:
            try:
                await self.connection.execute("GET", "a")
            except OpenCircuitError:
                self.now_s += 0.005
            except UnavailableError:
                return self.now_s - began_s
            else:
                return self.now_s - began_s


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def guarded(server: Server) -> Guarded:
    return Guarded(server)


async def test_one_connection_that_is_not_to_be_had_opens_it_and_nothing_more_is_sent(
    server: Server, guarded: Guarded
) -> None:
    server.answer = NOWHERE
    await guarded.fails_with(NotSentError)
    assert guarded.told == [("", True)]
    for _ in range(100):
        await guarded.fails_with(OpenCircuitError)
    with pytest.raises(OpenCircuitError):
        await guarded.connection.execute_all([("GET", "a"), ("GET", "b")])
    assert server.asked == 1


async def test_silence_opens_it_after_some_in_a_row_and_an_answer_between_begins_anew(
    server: Server, guarded: Guarded
) -> None:
    for answer in (SILENT, b"OK"):
        server.answer = answer
        for _ in range(MAX_FAILURES - 1):
            with contextlib.suppress(UnavailableError):
                await guarded.connection.execute("GET", "a")
    server.answer = SILENT
    for _ in range(MAX_FAILURES):
        assert guarded.told == []
        await guarded.fails_with(UnavailableError)
    assert guarded.told == [("", True)]
    await guarded.fails_with(OpenCircuitError)


async def test_a_server_that_refuses_is_there(server: Server, guarded: Guarded) -> None:
    server.answer = RefusedError("LOADING the server is loading")
    for _ in range(3 * MAX_FAILURES):
        await guarded.fails_with(RefusedError)
    assert guarded.told == []


async def test_it_is_left_alone_for_longer_each_time_but_never_for_long(server: Server, guarded: Guarded) -> None:
    server.answer = SILENT
    for _ in range(MAX_FAILURES):
        await guarded.fails_with(UnavailableError)
    pauses_s = [await guarded.pause_s() for _ in range(8)]
    longest_s = FIRST_PAUSE_S
    for pause_s in pauses_s:
        assert longest_s / 2 - 0.01 <= pause_s <= longest_s + 0.01
        longest_s = min(2 * longest_s, LONGEST_PAUSE_S)
    assert pauses_s[-1] >= LONGEST_PAUSE_S / 2
    assert guarded.told == [("", True)], "it never closed"
    server.answer = b"OK"
    await guarded.pause_s()
    assert guarded.told == [("", True), ("", False)]
    asked = server.asked
    assert await asyncio.gather(*(guarded.connection.execute("GET", "a") for _ in range(10))) == [b"OK"] * 10
    assert server.asked == asked + 10
    server.answer = NOWHERE
    await guarded.fails_with(NotSentError)
    assert await guarded.pause_s() <= FIRST_PAUSE_S + 0.01, "a new outage begins with the shortest pause"


async def test_one_call_at_a_time_is_let_through_to_see(server: Server, guarded: Guarded) -> None:
    server.answer = NOWHERE
    await guarded.fails_with(NotSentError)
    guarded.now_s += FIRST_PAUSE_S
    server.answer, server.waits_for = b"OK", asyncio.Event()
    probe = asyncio.create_task(guarded.connection.execute("GET", "a"))
    await asyncio.sleep(0)
    for _ in range(10):
        await guarded.fails_with(OpenCircuitError)
    assert server.asked == 2
    server.waits_for.set()
    assert await probe == b"OK"
    assert await guarded.connection.execute_all([("GET", "a")]) == [b"OK"]


async def test_a_probe_whose_caller_goes_away_leaves_its_place_to_the_next(server: Server, guarded: Guarded) -> None:
    server.answer = NOWHERE
    await guarded.fails_with(NotSentError)
    guarded.now_s += FIRST_PAUSE_S
    server.answer, server.waits_for = b"OK", asyncio.Event()
    probe = asyncio.create_task(guarded.connection.execute("GET", "a"))
    await asyncio.sleep(0)
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    server.waits_for = None
    assert await guarded.connection.execute("GET", "a") == b"OK"


async def test_those_under_way_when_it_opens_do_not_keep_it_open_longer(server: Server, guarded: Guarded) -> None:
    server.answer, server.waits_for = SILENT, asyncio.Event()
    calls = [asyncio.create_task(guarded.connection.execute("GET", "a")) for _ in range(1000)]
    await asyncio.sleep(0)
    server.waits_for.set()
    assert {str(each) for each in await asyncio.gather(*calls, return_exceptions=True)} == {"no answer"}
    assert guarded.told == [("", True)]
    assert await guarded.pause_s() <= FIRST_PAUSE_S + 0.01


async def test_each_server_of_a_cluster_is_judged_by_itself() -> None:
    server = Server(is_cluster=True)
    guarded = Guarded(server)
    server.down = {"b"}
    await guarded.fails_with(NotSentError, key="b")
    await guarded.fails_with(OpenCircuitError, key="b")
    assert await guarded.connection.execute("GET", "a") == b"OK"
    with pytest.raises(OpenCircuitError):
        await guarded.connection.execute_all([("GET", "a"), ("GET", "b")])
    assert await guarded.connection.execute_all([("GET", "a"), ("TIME",)]) == [b"OK", b"OK"]
    assert guarded.told == [("b", True)]


async def test_addresses_that_have_gone_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a cluster whose servers have another address whenever they are started."""
    monkeypatch.setattr("services.adapters.valkey_breaker.MAX_CIRCUITS", 4)
    server = Server(is_cluster=True)
    guarded = Guarded(server)
    for number in range(20):
        await guarded.connection.execute("GET", f"server-{number}")
        assert len(guarded.connection._circuits) <= 4
    server.down = {"server-19"}
    await guarded.fails_with(NotSentError, key="server-19")
    await guarded.fails_with(OpenCircuitError, key="server-19")
