"""``farthing up``: one command from an empty folder to a gateway that answers."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Final

from rich.console import Console

from services import __version__
from services.embedded.data_dir import DataDir, Instance, UpError
from services.embedded.engines import socket_folder
from services.embedded.metrics import serve_metrics
from services.embedded.outside import require_outside
from services.embedded.ready import Ready
from services.embedded.stack import Stack, UpOptions, base_url, build_stack, free_ports
from services.embedded.supervisor import Supervisor

_START_TIMEOUT_S: Final = 90.0
_END_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_up(options: UpOptions, *, as_json: bool, verbose: bool) -> None:
    """Runs an instance until a signal ends it. Raises `UpError` when it can't start."""
    data = DataDir.open(options.data_dir)
    try:
        asyncio.run(_run(options, data, as_json=as_json, verbose=verbose))
    finally:
        data.close()


async def _run(options: UpOptions, data: DataDir, *, as_json: bool, verbose: bool) -> None:
    options = _with_ports(options)
    await require_outside(options.kafka, options.redis, options.postgres, options.clickhouse)
    data.require_same_engines(
        {"--kafka": bool(options.kafka), "--postgres": bool(options.postgres), "--clickhouse": bool(options.clickhouse)}
    )
    console = None if as_json else Console(stderr=True, highlight=False)
    with socket_folder(data) as sockets:
        stack = build_stack(options, data, sockets)
        supervisor = Supervisor(stack.specs, data.folder("run"), data.folder("logs"), console, verbose=verbose)
        ending = asyncio.Event()
        _on_signals(ending, supervisor)
        try:
            with _shown(console, "Starting Farthing…"):
                started = await _started(supervisor, ending)
            if started:
                await _serve(options, data, stack, supervisor, ending, as_json=as_json)
        finally:
            with _shown(console, "Stopping Farthing…"):
                await supervisor.stop()


def _shown(console: Console | None, text: str) -> AbstractContextManager[object]:
    return contextlib.nullcontext() if console is None else console.status(text)


async def _started(supervisor: Supervisor, ending: asyncio.Event) -> bool:
    """Whether everything is ready; false when a signal came first."""
    start = asyncio.create_task(supervisor.start(_START_TIMEOUT_S))
    end = asyncio.create_task(ending.wait())
    await asyncio.wait({start, end}, return_when=asyncio.FIRST_COMPLETED)
    end.cancel()
    if start.done():
        start.result()
        return True
    start.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await start
    return False


async def _serve(
    options: UpOptions, data: DataDir, stack: Stack, supervisor: Supervisor, ending: asyncio.Event, *, as_json: bool
) -> None:
    metrics_port, close_metrics = serve_metrics(
        options.host, options.metrics_port, stack.metrics_urls, supervisor.states
    )
    try:
        url, metrics_url = (base_url(options.host, port) for port in (options.port, metrics_port))
        data.announce(Instance(url, metrics_url, os.getpid(), __version__, stack.service_urls))
        ready = Ready(url, metrics_url, data.first_keys(), data.path)
        if as_json:
            sys.stdout.write(ready.as_json() + "\n")
        else:
            ready.show(Console())
        sys.stdout.flush()
        data.forget_first_keys()
        await ending.wait()
    finally:
        close_metrics()


def _on_signals(ending: asyncio.Event, supervisor: Supervisor) -> None:
    """The first signal ends the instance in order; a second one ends it at once."""

    def end() -> None:
        if ending.is_set():
            supervisor.kill()
        ending.set()

    loop = asyncio.get_running_loop()
    for number in _END_SIGNALS:
        loop.add_signal_handler(number, end)


def _with_ports(options: UpOptions) -> UpOptions:
    """`options` with free ports for those that are 0; raises `UpError` for one that can't be had."""
    free = free_ports(2)
    port = options.port or next(free)
    metrics_port = options.metrics_port or next(free)
    if port == metrics_port:
        raise UpError(f"--port and --metrics-port are both {port}; give them different ones.")
    _require_port(options.host, port, "--port")
    _require_port(options.host, metrics_port, "--metrics-port")
    return replace(options, port=port, metrics_port=metrics_port)


def _require_port(host: str, port: int, option: str) -> None:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise UpError(f"{host!r} is no address ({error.strerror}); give --host an address of this machine.") from error
    except OSError as error:
        raise UpError(_port_trouble(error, host, port, option)) from error


def _port_trouble(error: OSError, host: str, port: int, option: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} on {host} is taken by another program; stop that one, or pick another port with {option}."
    if error.errno == errno.EACCES:
        return f"Port {port} may only be used by root; pick one above 1023 with {option}."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine; correct --host."
    return f"Can't listen on {host}:{port} ({error.strerror}); pick another port with {option}."
