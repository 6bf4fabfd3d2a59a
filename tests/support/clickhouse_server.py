"""ClickHouse's HTTP interface in front of the real engine (chDB), as a process that can be killed or told to misbehave.

Python's packages have no ClickHouse server; this is as much of its protocol as `clickhouse-connect` speaks. Run as
``python -m tests.support.clickhouse_server <path> <port>``. ``POST /lose-answers?count=n`` makes it carry out the
next n inserts and hang up without an answer.
"""

import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

REPOSITORY = Path(__file__).resolve().parents[2]
# URL parameters that are the protocol's own; all others but ``param_…`` are settings.
_PROTOCOL = frozenset(
    {
        "query",
        "database",
        "wait_end_of_query",
        "send_progress_in_http_headers",
        "http_headers_progress_interval_ms",
        "client_protocol_version",
        "enable_http_compression",
        "session_id",
        "query_id",
        "cancel_http_readonly_queries_on_client_close",
    }
)


@contextmanager
def running_server(path: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The server as a process, once it answers; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.clickhouse_server", str(path), str(port)], cwd=REPOSITORY
    )
    try:
        wait_until_answering(port)
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until_answering(port: int, seconds: float = 30.0) -> None:
    """Returns when the server answers."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2):
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the ClickHouse server does not answer")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: Any = None
    one_at_a_time = threading.Lock()
    answers_to_lose = 0

    def do_GET(self) -> None:
        self._answer(200, b"Ok.\n")

    def do_POST(self) -> None:
        parts = urlsplit(self.path)
        parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
        body = self._body()
        if parts.path == "/lose-answers":
            _Handler.answers_to_lose = int(parameters["count"])
            self._answer(200, b"")
            return
        try:
            with self.one_at_a_time:
                content = self._run(parameters, body)
        except Exception as error:  # whatever the engine says goes to the client, as a server's would
            text = str(error)
            code = text.partition("Code: ")[2].partition(".")[0]
            self._answer(500, text.encode(), {"X-ClickHouse-Exception-Code": code or "1001"})
            return
        if body.startswith(b"INSERT") and _Handler.answers_to_lose > 0:
            _Handler.answers_to_lose -= 1
            self.close_connection = True
            return
        self._answer(200, content, {"X-ClickHouse-Summary": "{}"})

    def _run(self, parameters: dict[str, str], body: bytes) -> bytes:
        if "database" in parameters:
            self.engine.query(f"USE `{parameters['database']}`")
        values = {name.removeprefix("param_"): value for name, value in parameters.items() if name.startswith("param_")}
        settings = ", ".join(
            f"{name} = '{value}'"
            for name, value in parameters.items()
            if name not in _PROTOCOL and not name.startswith("param_")
        )
        if body.startswith(b"INSERT"):
            head, _, rows = body.partition(b"\n")
            return self._insert(head.decode(), rows, settings)
        statement = body.decode()
        if settings and statement.lstrip().upper().startswith("SELECT"):
            before, found, form = statement.rpartition("FORMAT")
            statement = f"{before} SETTINGS {settings} FORMAT{form}" if found else f"{statement} SETTINGS {settings}"
        content: bytes = self.engine.query(statement, "TabSeparated", params=values).bytes() or b""
        return content

    def _insert(self, statement: str, body: bytes, settings: str) -> bytes:
        head, _, form = statement.rpartition("FORMAT")
        with tempfile.NamedTemporaryFile() as file:
            file.write(body)
            file.flush()
            clause = f"SETTINGS {settings} " if settings else ""
            self.engine.query(f"{head} FROM INFILE '{file.name}' {clause}FORMAT {form}")
        return b""

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (its name in the base class)
        return None


def _main() -> None:
    import chdb

    _Handler.engine = chdb.connect(sys.argv[1])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), _Handler).serve_forever()


if __name__ == "__main__":
    _main()
