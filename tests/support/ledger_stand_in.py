"""A ledger's internal HTTP API for tests of whoever rebuilds from it: it says what it is told to say."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

from services.core.hotstate import OrgImage
from services.core.ports import Incoming, LedgerImage
from services.ledger.backfill import calls_fields, query_of
from services.ledger.image import image_fields, next_offsets_fields
from tests.support.call_sums import call_sums

EMPTY = LedgerImage({}, OrgImage({}, {}, {}, {}))


class LedgerStandIn:
    """Serves `images` by org, the next offsets of `known`, and sums of the calls that `messages` tell of.

    `status` other than 200 is answered to everything.
    """

    def __init__(self, token: str) -> None:
        self.images: dict[str, LedgerImage] = {}
        self.known = EMPTY
        self.status = 200
        self.asked: list[str] = []
        self.messages: list[Incoming] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stand_in.asked.append(self.path)
                is_known = self.headers["authorization"] == f"Bearer {token}"
                status = stand_in.status if is_known else 401
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                content = b"{}"
                if status == 200:
                    answer = stand_in.calls(self.path, body) if body else stand_in.answer(self.path)
                    content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_POST(self) -> None:
                self.do_GET()

            def log_request(self, *_: Any) -> None:
                """Test output stays quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def calls(self, path: str, body: bytes) -> dict[str, Any]:
        """The JSON that answers a question about calls."""
        org = unquote(path.removeprefix("/internal/v1/orgs/").removesuffix("/calls"))
        return calls_fields(call_sums(org, self.messages, query_of(json.loads(body))))

    def answer(self, path: str) -> dict[str, Any]:
        """The JSON of a path."""
        if path == "/internal/v1/next-offsets":
            return next_offsets_fields(self.known.next_offsets)
        org = unquote(path.removeprefix("/internal/v1/orgs/").removesuffix("/image"))
        return image_fields(self.images.get(org, self.known))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
