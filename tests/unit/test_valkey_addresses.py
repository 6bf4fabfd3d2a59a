"""Where the hot state is: one server, a cluster, or Sentinels; and what is told of an address that is none of these."""

from typing import Any

import pytest

from services.adapters.config import Settings
from services.adapters.valkey import ValkeyHotState
from services.adapters.valkey_cluster import ClusterAddress, ClusterConnection
from services.adapters.valkey_connect import connect, parse_address
from services.adapters.valkey_connection import Address, ValkeyConnection
from services.adapters.valkey_log import ValkeyLog
from services.adapters.valkey_sentinel import SentinelAddress, SentinelConnection


def test_each_kind_of_address_gives_its_kind_of_connection() -> None:
    assert isinstance(connect("redis://h:1/0"), ValkeyConnection)
    assert isinstance(connect("unix:///run/valkey.sock?db=3"), ValkeyConnection)
    assert isinstance(connect("redis+cluster://h:1,h:2"), ClusterConnection)
    assert isinstance(connect("redis+sentinel://h:1,h:2/hot"), SentinelConnection)


def test_a_clusters_address_names_its_servers_and_how_to_log_in_to_all() -> None:
    found = parse_address("rediss+cluster://ada:p%40ss@h1:7000,[::1]:7001,h3/")
    assert isinstance(found, ClusterAddress)
    assert found.seeds == tuple(
        Address(host, port, 0, "ada", "p@ss", True) for host, port in (("h1", 7000), ("::1", 7001), ("h3", 6379))
    )


def test_the_sentinels_login_is_not_the_primarys() -> None:
    found = parse_address("redis+sentinel://:secret@s1,s2:5000/hot%2F1/2?sentinel_user=eve&sentinel_password=other")
    assert isinstance(found, SentinelAddress)
    assert found.sentinels == tuple(
        Address(host, port, 0, "eve", "other", False) for host, port in (("s1", 26_379), ("s2", 5000))
    )
    assert (found.name, found.primary) == ("hot/1", Address("", 0, 2, None, "secret", False))


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("http://h", "redis://"),
        ("redis://h1:1,h2:2/0", "redis+cluster://"),
        ("redis+cluster://", "redis+cluster://"),
        ("redis+cluster://h1:1,", "redis+cluster://"),
        ("redis+cluster://h1:1,h2:x", "redis+cluster://"),
        ("redis+cluster://h1:1/3", "no databases but 0"),
        ("redis+cluster://token@h1:1", "user:password@"),
        ("redis+sentinel://s1,s2", "/name/0"),
        ("redis+sentinel://s1/hot/first", "/name/0"),
        ("redis+sentinel://s1/hot?password=x", "sentinel_password"),
        ("kafka+cluster://h", "redis+cluster://"),
    ],
)
def test_what_is_no_address_is_told_with_what_is_one(url: str, names: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_address(url)
    assert names in str(caught.value)
    with pytest.raises(ValueError, match="redis_url"):
        Settings(redis_url=url)


def test_an_error_in_the_settings_never_tells_a_password() -> None:
    with pytest.raises(ValueError) as caught:
        Settings(redis_url="redis+cluster://ada:hunter2@h1:1/7", log_url="redis+cluster://ada:hunter2@h1:1")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis+cluster://h:1", "redis+sentinel://h/hot", "redis://h:1,h:2/0"])
def test_the_log_is_one_server_or_kafka(url: str) -> None:
    with pytest.raises(ValueError, match="FARTHING_KAFKA"):
        ValkeyLog(url)
    with pytest.raises(ValueError, match="log_url"):
        Settings(log_url=url)


class MovingCluster:
    """A connection under whose scan the slot goes to another server, with other cursors."""

    is_cluster = True

    def __init__(self) -> None:
        self.server = "first"
        self.scans: list[bytes] = []

    async def execute(self, *command: Any) -> Any:
        cursor = command[1]
        self.scans.append(cursor)
        if self.server == "first":
            self.server = "second" if len(self.scans) == 2 else "first"
            return [b"7", [b"{a}:early"]]
        return [b"0", [b"{a}:early", b"{a}:late"]] if cursor == b"0" else [b"0", []]

    def server_of(self, _key: object) -> str:
        return self.server


async def test_a_scan_begins_anew_where_the_slot_has_gone() -> None:
    connection = MovingCluster()
    hot = ValkeyHotState(connection)  # type: ignore[arg-type]
    left = [key async for some in hot._left_by("a") for key in some]
    assert set(left) == {b"{a}:early", b"{a}:late"}
    assert connection.scans == [b"0", b"7", b"0"]
