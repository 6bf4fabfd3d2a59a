"""The gateway's own routes are what ``schemas/openapi/gateway.json`` says they are."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from tests.support.asgi import Client, request
from tests.support.gateway import World, world
from tools.dump_openapi import GATEWAY, describe


class NoTransactions(httpx.AsyncBaseTransport):
    """A ledger that has nothing yet."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(404, json={"error": "not_found"})


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, relay_transport=NoTransactions()) as made:
        yield made


def test_the_file_is_that_of_the_code() -> None:
    assert GATEWAY.read_text() == describe(GATEWAY), "run: python -m tools.dump_openapi"


def check(path: str, method: str, client: Client) -> Any:
    """The JSON of an answer that is as described."""
    document = json.loads(GATEWAY.read_text())
    answer = document["paths"][path][method]["responses"][str(client.status)]
    schema = {**answer["content"]["application/json"]["schema"], "components": document["components"]}
    jsonschema.Draft202012Validator(schema).validate(client.json())
    return client.json()


async def ask(there: World, path: str, body: object = b"", method: str = "POST", **headers: str) -> Client:
    return await request(there.assembly.app, path, body, headers=there.headers(**headers), method=method)


async def test_every_answer_is_as_described(there: World) -> None:
    await there.org.set_budget("1.00")
    await there.sync()
    path = "/v1/reservations"
    held = check(path, "post", await ask(there, path, {"amount_usd": "0.10"}, idempotency_key="one"))
    check(path, "post", await ask(there, path, {"amount_usd": "0.20"}, idempotency_key="one"))
    check(path, "post", await ask(there, path, {"amount_usd": "2"}))
    check(path, "post", await ask(there, path, {"amount_usd": 2}))
    check(path, "post", await ask(there, path, {"amount_usd": "2"}, authorization="Bearer nonsense"))
    one = f"{path}/{held['reservation_id']}"
    check(path + "/{id}", "get", await ask(there, one, method="GET"))
    check(path + "/{id}/extend", "post", await ask(there, one + "/extend", {"hold_seconds": 60}))
    check(path + "/{id}/settle", "post", await ask(there, one + "/settle", {"cost_usd": "0.05"}))
    check(path + "/{id}/settle", "post", await ask(there, one + "/settle", {"cost_usd": "0.06"}))
    check(path + "/{id}", "get", await ask(there, one, method="GET"))
    check(path + "/{id}/release", "post", await ask(there, path + "/rsv_none/release"))


async def test_bodies_are_as_described(there: World) -> None:
    document = json.loads(GATEWAY.read_text())
    content = document["paths"]["/v1/reservations"]["post"]["requestBody"]["content"]["application/json"]
    schema = {**content["schema"], "components": document["components"]}
    jsonschema.Draft202012Validator(schema).validate({"amount_usd": "1", "vendor": "tavily", "hold_seconds": 60})
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate({"amount_usd": 1.0})
