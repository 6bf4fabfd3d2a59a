"""One connection to a Valkey or Redis server that writes the commands of one event-loop turn together.

Answers come in the order of the commands, so callers wait on a queue of futures and none waits for another's round
trip. A connection that breaks, or that leaves a command unanswered for too long, fails every caller that waits on it
with `UnavailableError`; the next command connects anew.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self, cast
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis

from services.core.ports import NotSentError, UnavailableError

Argument = str | bytes | int
MAX_WAITING: Final = 16_384
_INCOMPLETE: Final = object()
# How long a busy loop gets to catch up with a server before that counts as silent.
_GRACE_S: Final = 0.1
_pack: Callable[[tuple[Argument, ...]], bytes] = cast(Any, hiredis.pack_command)  # its stub knows one argument only


class RefusedError(UnavailableError):
    """The server answered with an error; `code` is its first word, such as ``NOSCRIPT`` or ``LOADING``."""

    def __init__(self, text: str) -> None:
        super().__init__(f"the hot state refused a command: {text[:200]}")
        self.code, _, self.detail = text.partition(" ")


class HotConnection(Protocol):
    """What the hot state needs of its server or servers: of one, of a cluster, or of the one that Sentinels name."""

    @property
    def is_cluster(self) -> bool:
        """Whether several servers share the keys."""

    async def execute(self, *command: Argument) -> Any:
        """The answer to one command: bytes, int, None or a list of these.

        Raises `RefusedError` when the server answers with an error, `NotSentError` when there is no connection to be
        had, and otherwise `UnavailableError` when it does not answer.
        """

    async def execute_all(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """The answers to several commands, written together; raises as `execute` does."""

    async def execute_on_each(self, *command: Argument) -> list[Any]:
        """The answers to one command without a key of every primary that answers; raises as `execute` if none does."""

    async def tags(self) -> tuple[str, ...]:
        """A hash tag for each primary, by which a key is on it; one empty one when there is one server."""

    def server_of(self, key: str | bytes) -> str:
        """Which server answers for a key, as far as is known: a name to tell one server's failing from another's."""

    async def close(self) -> None:
        """Closes what is open. A later command would open it again."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens and how to log in. `path` is that of a unix socket, in place of host and port."""

    host: str
    port: int
    database: int
    user: str | None
    password: str | None
    is_tls: bool
    path: str | None = None

    @property
    def where(self) -> str:
        """The place alone, fit to be told."""
        return self.path or f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, url: str) -> Self:
        """The address of ``redis://[user:password@]host:port/database`` (``rediss://`` for TLS) or
        ``unix://[user:password@]/path?db=database``; raises `ValueError`.
        """
        parts = urlsplit(url)
        is_unix = parts.scheme == "unix"
        database = parse_qs(parts.query).get("db", ["0"])[0] if is_unix else parts.path.strip("/") or "0"
        has_place = bool(parts.path) if is_unix else parts.scheme in ("redis", "rediss") and bool(parts.hostname)
        if not has_place or not database.isdecimal():
            raise ValueError(
                "a Valkey address looks like redis://[user:password@]host:port/0, rediss:// for TLS, or unix:///path?db=0"
            )
        return cls(
            parts.hostname or "",
            6379 if is_unix else parts.port or 6379,
            int(database),
            unquote(parts.username) if parts.username else None,
            unquote(parts.password) if parts.password else None,
            parts.scheme == "rediss",
            unquote(parts.path) if is_unix else None,
        )


class ValkeyConnection:
    """A connection made when first needed and again after it broke. For one event loop.

    With `must_lead` a server that says it is a replica is not taken: `NotSentError`.
    """

    is_cluster: Final = False

    def __init__(self, address: "str | Address", *, timeout_s: float = 2.0, must_lead: bool = False) -> None:
        self._address = Address.parse(address) if isinstance(address, str) else address
        self._timeout_s = timeout_s
        self._must_lead = must_lead
        self._wire: _Wire | None = None
        self._connecting: asyncio.Task[_Wire] | None = None

    async def execute(self, *command: Argument) -> Any:
        """See `HotConnection`."""
        wire = self._wire
        if wire is None or wire.is_closed:
            wire = await self._connect()
        return _accept(await wire.send(command))

    async def execute_all(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """See `HotConnection`."""
        wire = self._wire
        if wire is None or wire.is_closed:
            wire = await self._connect()
        # Gathered, so that every failure is taken note of when the connection breaks under all of them.
        answers = await asyncio.gather(*[wire.send(command) for command in commands])
        return [_accept(answer) for answer in answers]

    async def execute_on_each(self, *command: Argument) -> list[Any]:
        """See `HotConnection`."""
        return [await self.execute(*command)]

    async def tags(self) -> tuple[str, ...]:
        """See `HotConnection`."""
        return ("",)

    def server_of(self, key: str | bytes) -> str:
        """See `HotConnection`."""
        return self._address.where

    async def close(self) -> None:
        """See `HotConnection`."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._wire is not None:
            self._wire.fail("it was closed here")
            self._wire = None

    async def _connect(self) -> "_Wire":
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._open())
        # Callers share one attempt; one that is cancelled must not cancel it for the others.
        return await asyncio.shield(self._connecting)

    async def _open(self) -> "_Wire":
        address = self._address
        where = address.where
        context = ssl.create_default_context() if address.is_tls else None
        loop = asyncio.get_running_loop()
        wire = _Wire(loop, where, self._timeout_s)
        try:
            async with asyncio.timeout(self._timeout_s):
                if address.path is not None:
                    await loop.create_unix_connection(lambda: wire, address.path)
                else:
                    await loop.create_connection(lambda: wire, address.host, address.port, ssl=context)
                if address.password is not None:
                    _accept(await wire.send(("AUTH", address.user or "default", address.password)))
                if address.database:
                    _accept(await wire.send(("SELECT", address.database)))
                if self._must_lead and _accept(await wire.send(("ROLE",)))[0] != b"master":
                    raise NotSentError(f"the server at {where} is no primary (any more): a failover is under way")
        except (OSError, TimeoutError) as error:
            wire.fail("connecting failed")
            raise NotSentError(f"the hot state at {where} can't be reached: {error or 'timed out'}") from error
        except UnavailableError:
            wire.fail("the login failed")
            raise
        self._wire = wire
        return wire


def _accept(answer: Any) -> Any:
    if isinstance(answer, hiredis.ReplyError):
        raise RefusedError(str(answer))
    return answer


class _Wire(asyncio.Protocol):
    """One open connection: commands out in order, answers in in the same order."""

    def __init__(self, loop: asyncio.AbstractEventLoop, where: str, timeout_s: float) -> None:
        self._loop = loop
        self._where = where
        self._timeout_s = timeout_s
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._unsent: list[bytes] = []
        self._waiting: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._transport: asyncio.Transport | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._is_overdue = False
        self.is_closed = False

    def send(self, command: Sequence[Argument]) -> "asyncio.Future[Any]":
        """The future of one command's answer (a `hiredis.ReplyError` is an answer, too)."""
        if self.is_closed:
            raise UnavailableError(f"the connection to the hot state at {self._where} has just broken")
        if len(self._waiting) >= MAX_WAITING:
            raise UnavailableError(f"{MAX_WAITING} commands wait for the hot state at {self._where} already")
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(_pack(tuple(command)))
        answer = self._loop.create_future()
        self._waiting.append((self._loop.time() + self._timeout_s, answer))
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout_s, self._check_time)
        return answer

    def fail(self, reason: str) -> None:
        """Drops the connection and fails all who wait."""
        self.is_closed = True
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._transport is not None:
            self._transport.abort()
        while self._waiting:
            _, answer = self._waiting.popleft()
            if not answer.done():
                answer.set_exception(UnavailableError(f"no answer from the hot state at {self._where}: {reason}"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport of a unix socket is no declared asyncio.Transport, though it is one.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(f"the connection broke ({exc or 'closed by the server'})")

    def data_received(self, data: bytes) -> None:
        self._is_overdue = False
        self._reader.feed(data)
        try:
            while (answer := self._reader.gets()) is not _INCOMPLETE:
                _, future = self._waiting.popleft()
                if not future.done():  # its caller may have been cancelled
                    future.set_result(answer)
        except (hiredis.ProtocolError, IndexError):
            self.fail("it does not speak the Redis protocol")

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self._transport is not None and not self.is_closed:
            self._transport.write(b"".join(unsent))

    def _check_time(self) -> None:
        """One timer a connection instead of one a command: the oldest command has waited longest."""
        self._watch = None
        if not self._waiting:
            return
        due = self._waiting[0][0]
        if due > self._loop.time():
            self._watch = self._loop.call_at(due, self._check_time)
        elif self._is_overdue:
            self.fail(f"it did not answer within {self._timeout_s:g} s")
        else:
            # A loop that was busy has yet to write the command or to read its answer: that is not the server's silence.
            self._is_overdue = True
            self._watch = self._loop.call_later(_GRACE_S, self._check_time)
