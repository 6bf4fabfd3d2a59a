"""Which processes make an instance: the engines that are embedded and the services, with their settings and order."""

import asyncio
import random
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import httpx

from services.adapters.config import environment_with
from services.adapters.valkey import ValkeyDirectory, ValkeyHotState
from services.adapters.valkey_connect import connect
from services.core.ports import UnavailableError
from services.embedded import engines, loopback
from services.embedded.data_dir import DataDir
from services.embedded.process import Check, ProcessSpec, nothing_to_prepare

SERVICES: Final = ("control", "ledger", "aggregator", "sandbox", "gateway")
_NEED_MASTER_KEY: Final = ("ledger", "aggregator", "gateway")
FIRST_ORG: Final = "default"

# Below the range from which systems draw ports for outgoing connections, so that none of those can take a chosen port.
_LOWEST_PORT: Final = 20_000
_HIGHEST_PORT: Final = 32_000
_CHECK_TIMEOUT_S: Final = 2.0
_FILE_POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What ``farthing up`` was asked for. An engine that is None is embedded."""

    data_dir: Path
    host: str
    port: int
    metrics_port: int
    kafka: str | None = None
    redis: str | None = None
    postgres: str | None = None
    clickhouse: str | None = None


@dataclass(frozen=True, slots=True)
class Stack:
    """The processes of an instance, each service's own address, and where each one's metrics are."""

    specs: tuple[ProcessSpec, ...]
    service_urls: Mapping[str, str]
    metrics_urls: Mapping[str, str]


def build_stack(options: UpOptions, data: DataDir, sockets: Path) -> Stack:
    """The processes for `options`, engines' sockets in `sockets`; raises `UpError` when an engine isn't installed."""
    passwords = data.engine_passwords()
    engine_specs = tuple(_engine_specs(options, data, sockets, passwords))
    ports = free_ports(2 * len(SERVICES))
    listen = {name: ("127.0.0.1", next(ports)) for name in SERVICES} | {"gateway": (options.host, options.port)}
    metrics_ports = {name: next(ports) for name in SERVICES}
    urls = {name: base_url(host, port) for name, (host, port) in listen.items()}
    shared = {
        **_engine_settings(options, data, sockets, passwords),
        "FARTHING_CONTROL_URL": urls["control"],
        "FARTHING_LEDGER_URL": urls["ledger"],
        "FARTHING_SANDBOX_URL": urls["sandbox"],
        "FARTHING_MASTER_KEY_FILE": str(data.master_key_file),
        "FARTHING_OUTBOX_PATH": str(data.path / "outbox.sqlite"),
        "FARTHING_STATE_DIR": str(data.path),
        "FARTHING_BOOTSTRAP_ORG": FIRST_ORG,
        "FARTHING_METRICS_HOST": "127.0.0.1",
    }
    engine_names = tuple(spec.name for spec in engine_specs)
    services = tuple(
        ProcessSpec(
            name=name,
            command=(sys.executable, "-m", "services.cli", "service", name),
            environment=environment_with(
                shared
                | {
                    "FARTHING_HOST": listen[name][0],
                    "FARTHING_PORT": str(listen[name][1]),
                    "FARTHING_METRICS_PORT": str(metrics_ports[name]),
                }
            ),
            check=_check(name, urls[name], shared["FARTHING_REDIS_URL"]),
            prepare=partial(_wait_for, data.master_key_file) if name in _NEED_MASTER_KEY else nothing_to_prepare,
            after=() if name == "sandbox" else engine_names,
            stop_rank=0 if name == "gateway" else 1,
        )
        for name in SERVICES
    )
    metrics_urls = {name: f"http://127.0.0.1:{port}/metrics" for name, port in metrics_ports.items()}
    return Stack((*engine_specs, *services), urls, metrics_urls)


def free_ports(count: int) -> Iterator[int]:
    """`count` different loopback ports that are free now."""
    for port in random.sample(range(_LOWEST_PORT, _HIGHEST_PORT), _HIGHEST_PORT - _LOWEST_PORT):
        if count == 0:
            return
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        count -= 1
        yield port


def base_url(host: str, port: int) -> str:
    """The address under which this machine reaches a server that listens on `host`."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{reached}:{port}"


def _engine_specs(
    options: UpOptions, data: DataDir, sockets: Path, passwords: Mapping[str, str]
) -> Iterator[ProcessSpec]:
    if options.redis is None:
        yield engines.valkey(engines.HOT_STATE, data, sockets, passwords[engines.HOT_STATE], fsync="everysec")
    if options.kafka is None:
        yield engines.valkey(engines.LOG, data, sockets, passwords[engines.LOG], fsync="always")
    if options.postgres is None:
        yield engines.postgres(data, sockets, passwords[engines.POSTGRES])
    if options.clickhouse is None:
        engines.require_installed("chdb", "ClickHouse (chDB)", "--clickhouse")


def _engine_settings(
    options: UpOptions, data: DataDir, sockets: Path, passwords: Mapping[str, str]
) -> Mapping[str, str]:
    embedded = {name: engines.valkey_url(name, sockets, passwords[name]) for name in (engines.HOT_STATE, engines.LOG)}
    return {
        "FARTHING_LOG_URL": embedded[engines.LOG],
        "FARTHING_REDIS_URL": options.redis or embedded[engines.HOT_STATE],
        "FARTHING_POSTGRES_DSN": options.postgres or engines.postgres_dsn(sockets, passwords[engines.POSTGRES]),
        "FARTHING_CLICKHOUSE_DSN": options.clickhouse or f"chdb://{data.folder('clickhouse')}",
        **({"FARTHING_KAFKA": options.kafka} if options.kafka else {}),
    }


async def _wait_for(file: Path) -> None:
    """Waits for what control makes early in its first start, instead of for all of that start."""
    while True:
        if await asyncio.to_thread(file.exists):
            return
        await asyncio.sleep(_FILE_POLL_S)


def _check(name: str, url: str, redis_url: str) -> Check:
    # The aggregator serves nobody over HTTP; what it is there for is a hot state that gateways can trust.
    return partial(_check_warm, redis_url) if name == "aggregator" else partial(_check_http, f"{url}/readyz")


async def _check_warm(redis_url: str) -> str | None:
    connection = connect(redis_url)
    try:
        orgs = await ValkeyDirectory(connection).orgs()
        epochs = await ValkeyHotState(connection).epochs(orgs)
    except UnavailableError as error:
        return str(error)
    finally:
        await connection.close()
    cold = [org for org in orgs if epochs[org] is None]
    if not orgs:
        return "no org has been published yet"
    return f"the hot state of {', '.join(cold)} is being rebuilt" if cold else None


async def _check_http(url: str) -> str | None:
    try:
        async with loopback.async_client(_CHECK_TIMEOUT_S) as client:
            answer = await client.get(url)
    except httpx.HTTPError as error:
        return f"no answer yet: {type(error).__name__}"
    return None if answer.status_code == 200 else f"answered {answer.status_code}: {answer.text[:200]}"
