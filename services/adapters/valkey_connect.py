"""From an address to a connection: which kind of hot state it names."""

from urllib.parse import urlsplit

from services.adapters.valkey_cluster import ClusterAddress, ClusterConnection
from services.adapters.valkey_connection import Address, HotConnection, ValkeyConnection
from services.adapters.valkey_sentinel import SentinelAddress, SentinelConnection

AnyAddress = Address | ClusterAddress | SentinelAddress


def parse_address(url: str) -> AnyAddress:
    """The address of one server, of a cluster (``redis+cluster://``) or by Sentinels (``redis+sentinel://``).

    Raises `ValueError`, whose text holds no password.
    """
    scheme = urlsplit(url).scheme
    if scheme.endswith("+cluster"):
        return ClusterAddress.parse(url)
    if scheme.endswith("+sentinel"):
        return SentinelAddress.parse(url)
    if "," in urlsplit(url).netloc:
        raise ValueError(
            "redis:// takes one server; for several it is redis+cluster://host:port,host:port,… (a cluster) or "
            "redis+sentinel://host:port,host:port,…/name (Sentinels)"
        )
    return Address.parse(url)


def check_log_address(url: str) -> None:
    """Raises `ValueError` for what can't hold the event log on Valkey Streams: anything but one server."""
    if urlsplit(url).scheme.partition("+")[2] or "," in urlsplit(url).netloc:
        raise ValueError(
            "the event log on Valkey Streams is for one server: redis://host:port/0; on several machines it is Kafka "
            "(FARTHING_KAFKA)"
        )


def connect(url: str, *, timeout_s: float = 2.0) -> HotConnection:
    """A connection to what the address names, made when first needed. Raises `ValueError`."""
    address = parse_address(url)
    if isinstance(address, ClusterAddress):
        return ClusterConnection(address, timeout_s=timeout_s)
    if isinstance(address, SentinelAddress):
        return SentinelConnection(address, timeout_s=timeout_s)
    return ValkeyConnection(address, timeout_s=timeout_s)
