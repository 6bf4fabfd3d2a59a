"""Engines that run elsewhere: whether they answer, asked before anything is started."""

import asyncio
import contextlib
from collections.abc import Awaitable
from urllib.parse import urlsplit

import httpx

from services.embedded.data_dir import UpError
from services.embedded.engines import check_postgres, check_valkey

_TIMEOUT_S = 5.0


async def require_outside(kafka: str | None, redis: str | None, postgres: str | None, clickhouse: str | None) -> None:
    """Returns when each engine that is named answers; raises `UpError` for the first that doesn't."""
    if kafka is not None:
        await _require("Kafka", "--kafka", kafka, _check_kafka(kafka))
    if redis is not None:
        await _require("Redis", "--redis", _place(redis), check_valkey(redis))
    if postgres is not None:
        await _require("PostgreSQL", "--postgres", _place(postgres), check_postgres(postgres))
    if clickhouse is not None and not clickhouse.startswith("chdb:"):
        await _require("ClickHouse", "--clickhouse", _place(clickhouse), _check_clickhouse(clickhouse))


async def _require(engine: str, option: str, place: str, check: Awaitable[str | None]) -> None:
    try:
        reason = await check
    except ValueError as error:
        reason = str(error)  # The address itself can't be read.
    if reason is not None:
        raise UpError(
            f"{engine} at {place} does not answer ({reason}). Start it, correct {option}, or leave {option} out."
        )


async def _check_kafka(servers: str) -> str | None:
    reasons = []
    for server in servers.split(","):
        host, _, port = server.rpartition(":")
        if not host or not port.isdigit():
            return f"{server!r} is not host:port"
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except (OSError, TimeoutError) as error:
            reasons.append(str(error) or "no answer in time")
            continue
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return None
    return "; ".join(reasons)


async def _check_clickhouse(dsn: str) -> str | None:
    parts = urlsplit(dsn)
    secure = parts.scheme in ("https", "clickhouses")
    port = parts.port or (8443 if secure else 8123)
    url = f"{'https' if secure else 'http'}://{parts.hostname}:{port}/ping"
    try:
        async with httpx.AsyncClient(timeout=_TIMEOUT_S) as client:
            answer = await client.get(url)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return str(error) or type(error).__name__
    return None if answer.status_code == 200 else f"HTTP status {answer.status_code}"


def _place(address: str) -> str:
    """An address without its password."""
    parts = urlsplit(address)
    if parts.hostname is None:
        return parts.path or "an address without a host"
    return f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
