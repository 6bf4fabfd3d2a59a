"""Addresses of more than one server, taken apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from services.adapters.valkey_connection import Address


@dataclass(frozen=True, slots=True)
class Places:
    """The servers of an address, all with its user, password and TLS, and what follows them in it."""

    addresses: tuple[Address, ...]
    path: str
    query: str


def parse_places(url: str, schemes: Sequence[str], default_port: int) -> Places | None:
    """The servers of ``scheme://[user:password@]host:port,host:port,…/path?query``; None when it is not like that.

    TLS is on when the scheme begins with ``rediss``.
    """
    parts = urlsplit(url)
    if parts.scheme not in schemes:
        return None
    login, at, hosts = parts.netloc.rpartition("@")
    user, colon, password = login.partition(":")
    if at and not colon:
        return None
    addresses = []
    for each in hosts.split(","):
        try:
            place = urlsplit(f"//{each}")
            host, port = place.hostname, place.port or default_port
        except ValueError:
            return None
        if not host:
            return None
        is_tls = parts.scheme.startswith("rediss")
        addresses.append(Address(host, port, 0, unquote(user) or None, unquote(password) if colon else None, is_tls))
    return Places(tuple(addresses), parts.path, parts.query)
