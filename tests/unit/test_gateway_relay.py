"""The services behind the one address: what goes to whom, untouched, and what a caller is told when one is away."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.asgi import Client, request, scope_of
from tests.support.gateway import World, world


class Behind(httpx.AsyncBaseTransport):
    """The services behind the one address: answers with what it was asked, in a streamed body of two chunks."""

    def __init__(self) -> None:
        self.requests: list[tuple[httpx.Request, bytes]] = []
        self.closed = 0
        self.breaks = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = b"".join([chunk async for chunk in request.stream])  # type: ignore[union-attr]
        self.requests.append((request, body))
        headers = [("Content-Type", "text/x"), ("Connection", "close, X-Hop"), ("X-Hop", "1"), ("ETag", '"1"')]
        return httpx.Response(207, headers=headers, stream=Streaming(self))


class Streaming(httpx.AsyncByteStream):
    def __init__(self, behind: Behind) -> None:
        self._behind = behind

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"one,"
        if self._behind.breaks:
            raise httpx.ReadError("cut")
        yield b"two"

    async def aclose(self) -> None:
        self._behind.closed += 1


@pytest.fixture
def behind() -> Behind:
    return Behind()


@pytest.fixture
async def there(tmp_path: Path, behind: Behind) -> AsyncIterator[World]:
    addresses: dict[str, Any] = {"control_url": "http://control.test/", "ledger_url": "http://ledger.test"}
    async with world(tmp_path, relay_transport=behind, **addresses) as made:
        yield made


async def ask(there: World, path: str, method: str = "GET", **headers: str) -> Client:
    return await request(there.assembly.app, path, method=method, headers=there.headers(**headers))


@pytest.mark.parametrize(
    ("path", "service"),
    [
        ("/api/v1/budgets", "control.test"),
        ("/api", "control.test"),
        ("/docs", "control.test"),
        ("/docs/oauth2-redirect", "control.test"),
        ("/openapi.json", "control.test"),
        ("/redoc", "control.test"),
        ("/v1/transactions", "ledger.test"),
        ("/v1/transactions/txn_1", "ledger.test"),
        ("/v1/spend", "ledger.test"),
        ("/v1/reconciliation", "ledger.test"),
        ("/api/admin/billing/cap-policy/default", "control.test"),
        ("/api/admin/billing/spend", "ledger.test"),
        ("/api/admin/billing/spending", "control.test"),
    ],
)
async def test_cold_paths_go_to_their_service_untouched(there: World, behind: Behind, path: str, service: str) -> None:
    body = json.dumps({"limit_usd": "1.00"}).encode()
    headers = [("authorization", "Bearer fk_live_x"), ("x-spend-team", "ml"), ("connection", "x-hop"), ("x-hop", "1")]
    headers += [("content-type", "application/json"), ("host", "gateway.test")]
    client = await request(there.assembly.app, path, body, headers=headers, method="PUT", query="by=team&x=%2F")
    ((sent, sent_body),) = behind.requests
    assert str(sent.url) == f"http://{service}{path}?by=team&x=%2F"
    assert (sent.method, sent_body) == ("PUT", body)
    assert sent.headers["authorization"] == "Bearer fk_live_x"
    assert sent.headers["x-spend-team"] == "ml"
    assert sent.headers["host"] == service
    assert sent.headers["content-length"] == str(len(body))
    assert not {"x-hop", "transfer-encoding", "accept-encoding", "user-agent"} & set(sent.headers)
    assert client.status == 207
    assert client.chunks == [b"one,", b"two", b""]
    assert client.headers == [(b"content-type", b"text/x"), (b"etag", b'"1"')]
    assert behind.closed == 1


async def test_a_request_without_a_body_is_passed_on_without_one(there: World, behind: Behind) -> None:
    await ask(there, "/v1/spend")
    ((sent, body),) = behind.requests
    assert body == b""
    assert "transfer-encoding" not in sent.headers


async def test_a_service_that_is_away_is_a_502(tmp_path: Path) -> None:
    async with world(tmp_path) as there:
        for path, name in (("/api/v1/keys", "control"), ("/v1/spend", "ledger")):
            client = await ask(there, path)
            assert (client.status, client.json()["error"]) == (502, "service_unavailable")
            assert name in client.json()["message"]
            assert client.header("retry-after") == "1"


async def test_a_service_that_breaks_off_cuts_the_connection(there: World, behind: Behind) -> None:
    behind.breaks = True
    client = await ask(there, "/v1/spend")
    assert client.chunks == [b"one,"]
    assert not client.ended
    assert behind.closed == 1


async def test_a_caller_that_hangs_up_in_its_upload_is_let_go(there: World, behind: Behind) -> None:
    client = Client(body=(b"{",), never_ends=True)
    scope = scope_of("/api/v1/keys", [("content-length", "10")])
    passing = asyncio.ensure_future(there.assembly.app(scope, client.receive, client.send))
    await asyncio.sleep(0)
    client.hang_up()
    await asyncio.wait_for(passing, 1)
    assert not client.answered.is_set()
    assert behind.requests == []


async def test_a_bad_header_is_named_on_cold_paths_too(there: World, behind: Behind) -> None:
    client = await ask(there, "/v1/spend", x_odd="a\x01b")
    assert (client.status, client.json()["error"], client.json()["field"]) == (400, "invalid_request", "x-odd")
    assert behind.requests == []


@pytest.mark.parametrize(
    "path", ["/api/../internal/v1/orgs/x/image", "/v1/spend/..", "/api/./v1", "/openai/../v1/models"]
)
async def test_paths_with_dots_lead_nowhere(there: World, behind: Behind, path: str) -> None:
    client = await ask(there, path)
    assert (client.status, client.json()["error"]) == (404, "not_found")
    assert behind.requests == []
