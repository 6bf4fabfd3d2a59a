"""Serves an ASGI application until the process is told to end, and then returns instead of dying of the signal."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Awaitable, Callable, Generator

import uvicorn


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # uvicorn's own way raises the signal again when it has shut down, and the process would end with its number.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


async def serve(app: Callable[..., Awaitable[None]], host: str, port: int) -> None:
    """Serves `app` until SIGTERM or SIGINT, then lets requests under way end (5 s) and returns.

    Raises `OSError` when the address can't be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listener:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, lifespan="off", timeout_graceful_shutdown=5
        )
        await _Server(config).serve(sockets=[listener])
