"""The reservation API, asked of a `World`, and a ledger for it in memory."""

from typing import Any

import httpx

from services.core.events import Event
from services.ledger.transactions import merge
from tests.support.asgi import Client, request
from tests.support.gateway import World

USAGE = {"input_tokens": 1_000, "output_tokens": 500}


class Ledger(httpx.AsyncBaseTransport):
    """A ledger that has taken in `events`, unless it `is_away`."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.is_away = False
        self.asked = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        if self.is_away:
            raise httpx.ConnectError("away")
        assert request.headers["authorization"].startswith("Bearer fk_live_")
        assert request.url.query == b"wait=false"
        found = merge((each, "") for each in self.events).get(request.url.path.rpartition("/")[2])
        if found is None:
            return httpx.Response(404, json={"error": "not_found"})
        return httpx.Response(200, json=found.fields())


async def post(there: World, path: str = "", body: object = None, **headers: str) -> Client:
    content = b"" if body is None else body
    return await request(there.assembly.app, "/v1/reservations" + path, content, headers=there.headers(**headers))


async def get(there: World, reservation_id: str) -> Client:
    path = f"/v1/reservations/{reservation_id}"
    return await request(there.assembly.app, path, headers=there.headers(), method="GET")


async def reserve(there: World, amount: str = "0.40", key: str | None = None, **fields: Any) -> Client:
    headers = {} if key is None else {"idempotency_key": key}
    return await post(there, body={"amount_usd": amount, **fields}, **headers)
