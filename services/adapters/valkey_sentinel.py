"""A Valkey or Redis under Sentinels: they name the primary, it proves that it is one, and a failover is followed.

A primary that was replaced may not know it yet. Whoever asks again gets the Sentinels' present answer, and a server
that says it is a replica is never written to.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self, TypeVar
from urllib.parse import parse_qs, unquote

from services.adapters.valkey_addresses import parse_places
from services.adapters.valkey_connection import Address, Argument, RefusedError, ValkeyConnection
from services.core.ports import NotSentError, UnavailableError

_T = TypeVar("_T")
# What a server says that is no primary (any more).
_DEMOTED: Final = frozenset(("READONLY", "MASTERDOWN", "UNBLOCKED"))
_OPTIONS: Final = frozenset(("sentinel_user", "sentinel_password"))


@dataclass(frozen=True, slots=True)
class SentinelAddress:
    """The Sentinels, the name they know the primary by, and as what to log in to it (`primary` has no place yet)."""

    sentinels: tuple[Address, ...]
    name: str
    primary: Address

    @classmethod
    def parse(cls, url: str) -> Self:
        """The address of ``redis+sentinel://[user:password@]host:port,host:port,…/name[/database]``.

        The login and TLS (``rediss+sentinel://``) are the primary's; ``?sentinel_password=…`` (and ``sentinel_user``)
        is the Sentinels' own. Raises `ValueError`.
        """
        places = parse_places(url, ("redis+sentinel", "rediss+sentinel"), 26_379)
        path, query = ("", "") if places is None else (places.path, places.query)
        name, _, database = path.strip("/").partition("/")
        options = parse_qs(query, keep_blank_values=True)
        if places is None or not name or not (database or "0").isdecimal() or not options.keys() <= _OPTIONS:
            raise ValueError(
                "an address by Sentinels looks like redis+sentinel://[user:password@]host:port,host:port,…/name/0 "
                "(rediss+sentinel:// for TLS), with ?sentinel_password=… when they want one"
            )
        user, password = options.get("sentinel_user", [None])[0], options.get("sentinel_password", [None])[0]
        return cls(
            tuple(replace(each, user=user, password=password) for each in places.addresses),
            unquote(name),
            replace(places.addresses[0], host="", port=0, database=int(database or "0")),
        )


class SentinelConnection:
    """`valkey_connection.HotConnection` to the primary that Sentinels name. For one event loop."""

    is_cluster: Final = False

    def __init__(self, address: "str | SentinelAddress", *, timeout_s: float = 2.0) -> None:
        self._address = SentinelAddress.parse(address) if isinstance(address, str) else address
        self._timeout_s = timeout_s
        self._primary: ValkeyConnection | None = None
        self._finding: asyncio.Task[ValkeyConnection] | None = None

    async def execute(self, *command: Argument) -> Any:
        """See `HotConnection`."""
        return await self._on_primary(lambda primary: primary.execute(*command))

    async def execute_all(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """See `HotConnection`."""
        return await self._on_primary(lambda primary: primary.execute_all(commands))

    async def execute_on_each(self, *command: Argument) -> list[Any]:
        """See `HotConnection`."""
        return [await self.execute(*command)]

    async def tags(self) -> tuple[str, ...]:
        """See `HotConnection`."""
        return ("",)

    def server_of(self, key: str | bytes) -> str:
        """See `HotConnection`."""
        return self._address.name

    async def close(self) -> None:
        """See `HotConnection`."""
        if self._finding is not None:
            self._finding.cancel()
        primary, self._primary = self._primary, None
        if primary is not None:
            await primary.close()

    async def _on_primary(self, operation: Callable[[ValkeyConnection], Awaitable[_T]]) -> _T:
        """The operation's result. A primary that was left, or that is none any more, is looked for anew, once."""
        primary = self._primary or await self._find()
        try:
            return await operation(primary)
        except RefusedError as error:
            if error.code not in _DEMOTED:
                raise
            await self._leave(primary)
        except NotSentError:
            await self._leave(primary)
        except UnavailableError:
            # The command may have been done, so it is not repeated here; the next one looks for the primary.
            await self._leave(primary)
            raise
        return await operation(self._primary or await self._find())

    async def _leave(self, primary: ValkeyConnection) -> None:
        if self._primary is primary:
            self._primary = None
            await primary.close()

    async def _find(self) -> ValkeyConnection:
        if self._finding is None or self._finding.done():
            self._finding = asyncio.create_task(self._ask_sentinels())
            self._finding.add_done_callback(_seen)
        return await asyncio.shield(self._finding)

    async def _ask_sentinels(self) -> ValkeyConnection:
        reason = "none answered"
        for sentinel in self._address.sentinels:
            try:
                async with asyncio.timeout(self._timeout_s / 2):
                    named = await self._named_by(sentinel)
                if named is None:
                    reason = f"the Sentinel at {sentinel.where} knows no {self._address.name!r}"
                    continue
                primary = await self._proven(named)
            except TimeoutError:
                reason = f"the Sentinel at {sentinel.where} did not answer in time"
            except UnavailableError as error:
                reason = str(error)
            else:
                self._primary = primary
                return primary
        raise NotSentError(f"the Sentinels lead to no primary of {self._address.name!r}: {reason}")

    async def _proven(self, named: Address) -> ValkeyConnection:
        """A connection to a server that leads and answers. Raises `UnavailableError`, with nothing left open."""
        primary = ValkeyConnection(named, timeout_s=self._timeout_s, must_lead=True)
        try:
            await primary.execute("PING")
        except BaseException:  # also when nobody looks for it any more
            await primary.close()
            raise
        return primary

    async def _named_by(self, sentinel: Address) -> Address | None:
        connection = ValkeyConnection(sentinel, timeout_s=self._timeout_s)
        try:
            answer = await connection.execute("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._address.name)
        finally:
            await connection.close()
        if answer is None:
            return None
        host, port = answer
        return replace(self._address.primary, host=host.decode(), port=int(port))


def _seen(task: "asyncio.Task[ValkeyConnection]") -> None:
    """Takes note of a failure that nobody may wait for."""
    if not task.cancelled():
        task.exception()
