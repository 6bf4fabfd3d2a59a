"""A real cluster of three Valkey servers for tests, on loopback, its slots in three equal parts."""

import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import hiredis

from services.adapters.valkey_cluster import SLOTS, slot_of
from tests.support.valkey import ValkeyServer, free_port

_READY_TIMEOUT_S: Final = 20.0


def ask(port: int, *words: str | int) -> Any:
    """The answer of a loopback server to one command on a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(hiredis.pack_command(tuple(str(word) for word in words)))  # type: ignore[arg-type]
        reader = hiredis.Reader()
        while (answer := reader.gets()) is False:
            reader.feed(connection.recv(65_536))
    if isinstance(answer, hiredis.ReplyError):
        raise answer
    return answer


class ValkeyCluster:
    """Primaries, each with a third of the slots, and no replica but those that a test adds.

    A slot whose server is gone is refused alone; the others are served.
    """

    def __init__(self, directory: Path, primaries: int = 3) -> None:
        self._directory = directory
        self.servers = [self._server(number) for number in range(primaries)]

    @property
    def url(self) -> str:
        """Its address, by two of its servers."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{each.port}" for each in self.servers[:2])

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        for server in self.servers:
            server.kill()

    def server_for(self, key: str) -> ValkeyServer:
        """The primary that has the key's slot."""
        slot = slot_of(key)
        for start, end, primary, *_ in ask(self._alive().port, "CLUSTER", "SLOTS"):
            if start <= slot <= end:
                return next(each for each in self.servers if each.port == primary[1])
        raise AssertionError(f"nobody has slot {slot}")

    def org_on(self, server: ValkeyServer, prefix: str = "org") -> str:
        """The name of an org whose keys are on this server."""
        return next(
            name for number in range(10_000) if self.server_for(f"{{{(name := f'{prefix}-{number}')}}}:x") is server
        )

    def name_of(self, server: ValkeyServer) -> str:
        """The cluster's own name for a server."""
        name: bytes = ask(server.port, "CLUSTER", "MYID")
        return name.decode()

    def add_replica(self, of: ValkeyServer) -> ValkeyServer:
        """A new replica that has all its primary has."""
        replica = self._server(len(self.servers))
        self.servers.append(replica)
        replica.start()
        self._meet(replica)
        wait_for(lambda: self.name_of(of).encode() in ask(replica.port, "CLUSTER", "NODES"))
        ask(replica.port, "CLUSTER", "REPLICATE", self.name_of(of))
        wait_for(lambda: b"master_link_status:up" in ask(replica.port, "INFO", "replication"))
        return replica

    def begin_move(self, slot: int, source: ValkeyServer, target: ValkeyServer) -> None:
        """Opens a slot for being moved key by key: from now on what is not in the one is asked of the other."""
        ask(target.port, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.name_of(source))
        ask(source.port, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.name_of(target))

    def move_keys(self, slot: int, source: ValkeyServer, target: ValkeyServer, count: int = 1000) -> list[str]:
        """Moves up to `count` keys of an opened slot and answers them."""
        keys = [key.decode() for key in ask(source.port, "CLUSTER", "GETKEYSINSLOT", slot, count)]
        if keys:
            ask(source.port, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        return keys

    def end_move(self, slot: int, target: ValkeyServer) -> None:
        """Gives an emptied slot to its new server."""
        name = self.name_of(target)
        for server in (target, *(each for each in self.servers if each is not target)):
            ask(server.port, "CLUSTER", "SETSLOT", slot, "NODE", name)

    def _server(self, number: int) -> ValkeyServer:
        options = {
            "cluster-enabled": "yes",
            "cluster-port": str(free_port()),
            "cluster-node-timeout": "2000",
            "cluster-require-full-coverage": "no",
            "cluster-replica-validity-factor": "0",
            "repl-diskless-sync-delay": "0",
        }
        return ValkeyServer(self._directory / f"node-{number}", options=options)

    def _start(self) -> None:
        for server in self.servers:
            server.start()
        share = -(-SLOTS // len(self.servers))
        for number, server in enumerate(self.servers):
            last = min(SLOTS, (number + 1) * share) - 1
            ask(server.port, "CLUSTER", "ADDSLOTSRANGE", number * share, last)
            ask(server.port, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in self.servers[1:]:
            self._meet(server)
        for server in self.servers:
            wait_for(lambda server=server: self._knows_all(server))

    def _knows_all(self, server: ValkeyServer) -> bool:
        info = ask(server.port, "CLUSTER", "INFO")
        return b"cluster_state:ok" in info and b"cluster_slots_assigned:16384" in info

    def _meet(self, server: ValkeyServer) -> None:
        bus = server._options["cluster-port"]
        ask(self._alive().port, "CLUSTER", "MEET", "127.0.0.1", server.port, bus)

    def _alive(self) -> ValkeyServer:
        return next(each for each in self.servers if each.is_running)


def wait_for(condition: Any, timeout_s: float = _READY_TIMEOUT_S) -> None:
    """Returns as soon as `condition()` holds; raises `TimeoutError` when it does not in time.

    A server that changes its role breaks off its connections: what is asked then does not hold yet.
    """
    deadline = time.monotonic() + timeout_s

    def holds() -> Any:
        try:
            return condition()
        except ConnectionError:
            return False

    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not come to be in time")
        time.sleep(0.02)


def servers_of(cluster: ValkeyCluster, names: Sequence[str]) -> set[int]:
    """The ports of the servers that have these orgs."""
    return {cluster.server_for(f"{{{name}}}:x").port for name in names}
