"""A circuit breaker for each server of the hot state: what does not answer is left alone for a moment, then asked once.

Without it every call of an outage would try to connect, or wait for as long as a connection may take to answer. While a
circuit is open its calls fail at once, with nothing sent; when its time is up one call is let through, and what becomes
of it closes the circuit or opens it for longer. It guards a connection, and so everything that shares one: holds, key
look-ups, jobs.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from services.adapters.valkey_cluster import key_of
from services.adapters.valkey_connection import Argument, HotConnection, RefusedError
from services.core.ports import NotSentError, UnavailableError

_T = TypeVar("_T")

# So many failures in a row open a circuit; one does when there is no connection to be had.
MAX_FAILURES: Final = 5
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 2.0
# A cluster has fewer servers by far: most of these addresses have gone, and those that are in use are learned anew.
MAX_CIRCUITS: Final = 1_000


class OpenCircuitError(NotSentError):
    """The server has just failed and is not asked again yet. Nothing was sent."""


class Circuit:
    """What is known of one server. `opened_until_s` is None while it is asked as usual."""

    __slots__ = ("failures", "is_probed", "opened_until_s", "pause_s", "server")

    def __init__(self, server: str) -> None:
        self.server = server
        self.failures = 0
        self.is_probed = False
        self.opened_until_s: float | None = None
        self.pause_s = FIRST_PAUSE_S


class GuardedConnection:
    """`valkey_connection.HotConnection` with a breaker before it. For one event loop.

    `on_change` is told a server's name and whether its circuit is open, whenever that changes.
    """

    def __init__(
        self,
        connection: HotConnection,
        on_change: Callable[[str, bool], None] = lambda _server, _is_open: None,
        *,
        monotonic_s: Callable[[], float] | None = None,
    ) -> None:
        self._connection = connection
        self._on_change = on_change
        self._monotonic_s = monotonic_s
        self._circuits: dict[str, Circuit] = {}
        # A server by itself has one circuit, whatever the key.
        self._only = None if connection.is_cluster else self._circuit(connection.server_of(""))

    @property
    def is_cluster(self) -> bool:
        """See `HotConnection`."""
        return self._connection.is_cluster

    async def execute(self, *command: Argument) -> Any:
        """See `HotConnection`. Raises `OpenCircuitError` at once while the server's circuit is open."""
        circuit = self._only or self._circuit_of(command)
        if circuit.opened_until_s is not None:
            return await self._probe(circuit, lambda: self._connection.execute(*command))
        try:
            answer = await self._connection.execute(*command)
        except UnavailableError as error:
            self._failed(circuit, error)
            raise
        circuit.failures = 0
        return answer

    async def execute_all(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """See `HotConnection` and `execute`."""
        if self._only is None:
            # Each by itself, as each may be another server's: they are still written together.
            answers = await asyncio.gather(*(self.execute(*each) for each in commands), return_exceptions=True)
            for answer in answers:
                if isinstance(answer, BaseException):
                    raise answer
            return answers
        circuit = self._only
        if circuit.opened_until_s is not None:
            return await self._probe(circuit, lambda: self._connection.execute_all(commands))
        try:
            found = await self._connection.execute_all(commands)
        except UnavailableError as error:
            self._failed(circuit, error)
            raise
        circuit.failures = 0
        return found

    async def execute_on_each(self, *command: Argument) -> list[Any]:
        """See `HotConnection`. It is asked for seldom, and so not guarded."""
        return await self._connection.execute_on_each(*command)

    async def tags(self) -> tuple[str, ...]:
        """See `HotConnection`."""
        return await self._connection.tags()

    def server_of(self, key: str | bytes) -> str:
        """See `HotConnection`."""
        return self._connection.server_of(key)

    async def close(self) -> None:
        """See `HotConnection`."""
        await self._connection.close()

    def _circuit_of(self, command: Sequence[Argument]) -> Circuit:
        key = key_of(command)
        return self._circuit("any" if key is None else self._connection.server_of(key))

    def _circuit(self, server: str) -> Circuit:
        circuit = self._circuits.get(server)
        if circuit is None:
            if len(self._circuits) >= MAX_CIRCUITS:
                self._circuits.clear()
            circuit = self._circuits[server] = Circuit(server)
        return circuit

    async def _probe(self, circuit: Circuit, operation: Callable[[], Awaitable[_T]]) -> _T:
        """Lets one call through once the circuit's time is up; raises `OpenCircuitError` for all others."""
        if circuit.is_probed or (circuit.opened_until_s or 0) > self._now_s():
            raise OpenCircuitError(f"the hot state at {circuit.server} has just failed; it is asked again shortly")
        circuit.is_probed = True
        try:
            answer = await operation()
        except RefusedError:
            self._close(circuit)
            raise
        except UnavailableError:
            circuit.pause_s = min(2 * circuit.pause_s, LONGEST_PAUSE_S)
            self._open(circuit)
            raise
        finally:
            circuit.is_probed = False  # also when its caller went away: then the next call is let through
        self._close(circuit)
        return answer

    def _failed(self, circuit: Circuit, error: UnavailableError) -> None:
        if isinstance(error, RefusedError):
            circuit.failures = 0  # it does answer
            return
        circuit.failures += 1
        # Those that were under way when it opened tell nothing new.
        if circuit.opened_until_s is None and (circuit.failures >= MAX_FAILURES or isinstance(error, NotSentError)):
            circuit.pause_s = FIRST_PAUSE_S
            self._open(circuit)
            self._on_change(circuit.server, True)

    def _open(self, circuit: Circuit) -> None:
        # Drawn anew each time, so that many gateways do not come back in step.
        circuit.opened_until_s = self._now_s() + circuit.pause_s * random.uniform(0.5, 1.0)  # noqa: S311

    def _close(self, circuit: Circuit) -> None:
        if circuit.opened_until_s is not None:
            circuit.opened_until_s = None
            circuit.failures = 0
            self._on_change(circuit.server, False)

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time() if self._monotonic_s is None else self._monotonic_s()
