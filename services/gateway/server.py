"""The HTTP server: uvicorn, which answers what it can't parse in our own words and leaves signals to us."""

import json
import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.gateway.routes import Gateway

# A header line whose value holds what no header may hold, as it stands in the bytes that failed to parse.
_BAD_LINE: Final = re.compile(rb"(?:^|\n)([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[^\r\n]*?[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_KEEP_ALIVE_S: Final = 75


class ClearProtocol(HttpToolsProtocol):
    """uvicorn's protocol, but a request that can't be parsed is refused in JSON that names the header at fault."""

    _received = b""

    def data_received(self, data: bytes) -> None:
        """Remembers the bytes for as long as they are being parsed."""
        self._received = data
        super().data_received(data)
        self._received = b""

    def send_400_response(self, msg: str) -> None:
        """Answers a request that is not HTTP, and closes the connection."""
        fault = _BAD_LINE.search(self._received.partition(b"\r\n\r\n")[0])
        error: dict[str, Any] = {"message": "this is not a valid HTTP/1.1 request", "param": None}
        if fault is not None:
            name = fault[1].decode("ascii").lower()
            error = {
                "message": f"header {name} holds a control character; send printable characters only",
                "param": name,
            }
        body = json.dumps({"error": {**error, "type": "invalid_request_error", "code": "invalid_request"}}).encode()
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: set `should_exit` to end it, and it ends cleanly."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leaves signals alone: uvicorn raises them again after a clean end, and the process would die of them."""
        yield


def make_server(app: Gateway, host: str, port: int, *, finish_s: int) -> Server:
    """A server for the gateway; calls in flight have `finish_s` seconds to end once it is told to exit."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=ClearProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=finish_s,
    )
    return Server(config)
