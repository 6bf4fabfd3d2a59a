"""HTTP clients for this machine's own addresses: no proxies, and no certificates, whose loading takes its time."""

import ssl

import httpx


def client(timeout_s: float, base_url: str = "") -> httpx.Client:
    """A client for plain HTTP; over TLS it would trust nobody."""
    return httpx.Client(base_url=base_url, timeout=timeout_s, trust_env=False, verify=_no_trust())


def async_client(timeout_s: float, base_url: str = "") -> httpx.AsyncClient:
    """The same for coroutines."""
    return httpx.AsyncClient(base_url=base_url, timeout=timeout_s, trust_env=False, verify=_no_trust())


def _no_trust() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
