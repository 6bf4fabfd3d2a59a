"""A Redis or Valkey Cluster: each command goes to the server that has its key's slot, and follows it when it moves.

Only primaries are asked, never replicas: a replica's figures may be old. Every server has one connection, so commands
of one event-loop turn for one server are written together. What a command's effect is when a server goes away under
it is as unknown as with one server, so it is tried again only where the slot has got another server meanwhile; all of
the hot state's commands may be repeated.
"""

import asyncio
import binascii
import contextlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, Self

from services.adapters.valkey_addresses import parse_places
from services.adapters.valkey_connection import Address, Argument, RefusedError, ValkeyConnection
from services.core.ports import NotSentError, UnavailableError

SLOTS: Final = 16_384
# How long to wait before each try: a slot that is on its way may need a moment.
_PAUSES_S: Final = (0.0, 0.02, 0.05, 0.1, 0.2)
# The map is asked for again no sooner than this after it was, unless a server has named a newer one.
_MAP_REST_S: Final = 0.1
_AGAIN: Final = frozenset(("TRYAGAIN", "MOVED", "ASK"))
_LOST: Final = frozenset(("CLUSTERDOWN", "MASTERDOWN", "READONLY", "LOADING"))
_KEYLESS: Final = frozenset((b"PING", b"TIME", b"INFO", b"ECHO", b"CONFIG", b"CLIENT", b"CLUSTER", b"ROLE", b"SCRIPT"))
_NUMBERED: Final = frozenset((b"EVAL", b"EVALSHA", b"EVAL_RO", b"EVALSHA_RO", b"FCALL"))


@dataclass(frozen=True, slots=True)
class ClusterAddress:
    """Some servers of a cluster, to learn of the others from; user, password and TLS are those of all."""

    seeds: tuple[Address, ...]

    @classmethod
    def parse(cls, url: str) -> Self:
        """The address of ``redis+cluster://[user:password@]host:port,host:port,…`` (``rediss+cluster://`` for TLS).

        Raises `ValueError`.
        """
        places = parse_places(url, ("redis+cluster", "rediss+cluster"), 6379)
        if places is None or places.path.strip("/") not in ("", "0") or places.query:
            raise ValueError(
                "a cluster's address looks like redis+cluster://[user:password@]host:port,host:port,… "
                "(rediss+cluster:// for TLS); a cluster has no databases but 0"
            )
        return cls(places.addresses)


def slot_of(key: str | bytes) -> int:
    """The slot of a key: that of what stands in its first braces, if anything does."""
    return _slot(key.encode() if isinstance(key, str) else bytes(key))


@lru_cache(maxsize=16_384)
def _slot(key: bytes) -> int:
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return binascii.crc_hqx(key, 0) % SLOTS


@lru_cache(maxsize=1024)
def _tag(slot: int) -> str:
    return next(str(number) for number in itertools.count() if binascii.crc_hqx(b"%d" % number, 0) % SLOTS == slot)


def key_of(command: Sequence[Argument]) -> bytes | None:
    """The first key of a command; None for a command that has none and may go to any server.

    Raises `ValueError` for one that would have to be asked of every server.
    """
    name = _bytes(command[0]).upper()
    if name in _KEYLESS:
        return None
    if name in _NUMBERED:
        return _bytes(command[3]) if int(command[2]) > 0 else None
    if name in (b"SCAN", b"KEYS"):
        return _scanned(name, command)
    if len(command) < 2:
        raise ValueError(f"{name.decode()} is no command for one server of a cluster")
    return _bytes(command[1])


def _scanned(name: bytes, command: Sequence[Argument]) -> bytes:
    words = [_bytes(each) for each in command]
    pattern = words[1] if name == b"KEYS" else words[words.index(b"MATCH") + 1] if b"MATCH" in words else b""
    tag = re.match(rb"\{((?:[^*?\[\]\\}]|\\.)+)\}", pattern)
    if tag is None:
        raise ValueError("keys of a whole cluster can't be listed: name a slot by a pattern that begins with {…}")
    return b"{" + re.sub(rb"\\(.)", rb"\1", tag[1]) + b"}"


def _bytes(argument: Argument) -> bytes:
    return argument if isinstance(argument, bytes) else str(argument).encode()


class ClusterConnection:
    """`valkey_connection.HotConnection` to a cluster. For one event loop."""

    is_cluster: Final = True

    def __init__(self, address: "str | ClusterAddress", *, timeout_s: float = 2.0) -> None:
        self._address = ClusterAddress.parse(address) if isinstance(address, str) else address
        self._timeout_s = timeout_s
        self._servers: dict[Address, ValkeyConnection] = {}
        self._slots: list[Address | None] = [None] * SLOTS
        self._any: Address | None = None
        self._mapping: asyncio.Task[None] | None = None
        self._mapped_s = float("-inf")

    async def execute(self, *command: Argument) -> Any:
        """See `HotConnection`. Raises at once when the slot's server is gone and has no successor."""
        key = key_of(command)
        slot = None if key is None else slot_of(key)
        server = self._known(slot) or await self._find(slot)
        failure: UnavailableError | None = None
        for pause_s in _PAUSES_S:
            if pause_s:
                await asyncio.sleep(pause_s)
            try:
                return await self._connection(server).execute(*command)
            except RefusedError as error:
                failure = error
                if error.code == "ASK":
                    try:
                        return await self._ask(self._named(error, server), command)
                    except RefusedError as asked:
                        if asked.code not in _AGAIN:
                            raise
                elif error.code == "MOVED" and slot is not None:
                    server = self._moved(slot, self._named(error, server))
                elif error.code not in _AGAIN:
                    if error.code in _LOST:
                        await self._successor(slot, server)
                    raise
            except UnavailableError as error:
                successor = await self._successor(slot, server)
                if successor is None or successor == server:
                    raise
                failure, server = error, successor
        raise UnavailableError(f"{len(_PAUSES_S)} tries have found no server for a command: {failure}")

    async def execute_all(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """See `HotConnection`. Each goes to its own server; those for one server are written together, in order."""
        if not commands:
            return []
        answers = await asyncio.gather(*(self.execute(*command) for command in commands), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers

    async def execute_on_each(self, *command: Argument) -> list[Any]:
        """See `HotConnection`."""
        if self._any is None:
            await self._map(None)
        servers = dict.fromkeys(each for each in self._slots if each is not None)
        answers = []
        failure: UnavailableError | None = None
        for server in servers:
            try:
                answers.append(await self._connection(server).execute(*command))
            except UnavailableError as error:
                failure = error
        if failure is not None and not answers:
            raise failure
        return answers

    async def tags(self) -> tuple[str, ...]:
        """See `HotConnection`. A server's tag is of its lowest slot."""
        if self._any is None:
            await self._map(None)
        lowest: dict[Address, int] = {}
        for slot, server in enumerate(self._slots):
            if server is not None:
                lowest.setdefault(server, slot)
        return tuple(f"{{{_tag(slot)}}}" for slot in lowest.values())

    def server_of(self, key: str | bytes) -> str:
        """See `HotConnection`."""
        server = self._slots[slot_of(key)]
        return "unknown" if server is None else server.where

    async def close(self) -> None:
        """See `HotConnection`."""
        if self._mapping is not None:
            self._mapping.cancel()
        servers, self._servers = self._servers, {}
        self._slots, self._any = [None] * SLOTS, None
        for connection in servers.values():
            await connection.close()

    def _connection(self, server: Address) -> ValkeyConnection:
        connection = self._servers.get(server)
        if connection is None:
            connection = self._servers[server] = ValkeyConnection(server, timeout_s=self._timeout_s)
        return connection

    def _known(self, slot: int | None) -> Address | None:
        return self._any if slot is None else self._slots[slot]

    async def _find(self, slot: int | None) -> Address:
        await self._map(None)
        server = self._known(slot)
        if server is None:
            raise NotSentError(f"the cluster has no server for slot {slot}: not all of its slots are covered")
        return server

    async def _successor(self, slot: int | None, failed: Address) -> Address | None:
        """Who has the slot by now, as far as can be learned. What `failed` failed with stays what is told."""
        with contextlib.suppress(UnavailableError):
            await self._map(failed)
        return self._known(slot)

    async def _ask(self, server: Address, command: Sequence[Argument]) -> Any:
        _, answer = await self._connection(server).execute_all([("ASKING",), command])
        return answer

    def _moved(self, slot: int, server: Address) -> Address:
        """Takes in where a slot is now; what else has moved is asked for beside it."""
        self._slots[slot] = server
        if self._mapping is None or self._mapping.done():
            self._mapping = asyncio.create_task(self._learn(server, None))
            self._mapping.add_done_callback(_seen)
        return server

    def _named(self, error: RefusedError, by: Address) -> Address:
        """The server that a redirection names; one without a host has the host of whoever said so."""
        host, _, port = error.detail.split(" ")[-1].rpartition(":")
        return replace(by, host=host.strip("[]") or by.host, port=int(port))

    async def _map(self, failed: Address | None) -> None:
        """Asks for the map, once for all who need it; raises `UnavailableError` when no server answers."""
        if self._mapping is None or self._mapping.done():
            if asyncio.get_running_loop().time() - self._mapped_s < _MAP_REST_S:
                return
            self._mapping = asyncio.create_task(self._learn(None, failed))
            self._mapping.add_done_callback(_seen)
        await asyncio.shield(self._mapping)

    async def _learn(self, first: Address | None, last: Address | None) -> None:
        failure: UnavailableError | None = None
        for server in self._to_ask(first, last):
            try:
                async with asyncio.timeout(self._timeout_s / 2):
                    ranges = await self._connection(server).execute("CLUSTER", "SLOTS")
            except TimeoutError:
                failure = UnavailableError(f"the hot state at {server.where} did not answer in time")
            except RefusedError as error:
                if "cluster support disabled" in str(error):
                    raise UnavailableError(f"the server at {server.where} is in no cluster; use redis://") from error
                failure = error
            except UnavailableError as error:
                failure = error
            else:
                await self._take_in(server, ranges)
                return
        raise NotSentError(f"no server of the cluster can be reached: {failure}")

    def _to_ask(self, first: Address | None, last: Address | None) -> Iterator[Address]:
        known = dict.fromkeys(([first] if first is not None else []) + [*self._servers, *self._address.seeds])
        if last is not None and known.pop(last, "") is None:
            known[last] = None
        return iter(tuple(known))

    async def _take_in(self, told_by: Address, ranges: Sequence[Any]) -> None:
        slots: list[Address | None] = [None] * SLOTS
        for start, end, primary, *_ in ranges:
            host = (primary[0] or b"").decode()
            server = replace(told_by, host=told_by.host if host in ("", "?") else host, port=int(primary[1]))
            slots[start : end + 1] = [server] * (end + 1 - start)
        self._slots = slots
        self._any = told_by
        self._mapped_s = asyncio.get_running_loop().time()
        primaries = {each for each in slots if each is not None}
        for server in [each for each in self._servers if each not in primaries]:
            if server != told_by:
                await self._servers.pop(server).close()


def _seen(task: "asyncio.Task[None]") -> None:
    """Takes note of a failure that nobody may wait for."""
    if not task.cancelled():
        task.exception()
