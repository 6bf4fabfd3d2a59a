"""What is served where: billable routes, the model list, health, and clear words for the rest."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.core.ports import UnavailableError
from tests.support.asgi import Client, request
from tests.support.gateway import ScriptedAnswer, World, chat, world

OK = b'{"object":"chat.completion","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5}}'


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def ask(there: World, path: str, method: str = "GET", **headers: str) -> Client:
    return await request(there.assembly.app, path, method=method, headers=there.headers(**headers))


# ---- billable routes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/chat/completions", "/openai/v1/chat/completions", "/openai/chat/completions"]
)
async def test_chat_is_served_under_every_base_that_clients_use(there: World, path: str) -> None:
    there.answer(ScriptedAnswer([OK]))
    assert (await there.call(path=path)).status == 200
    assert there.vendor.requests[0].url == "https://vendor.test/v1/chat/completions"
    assert there.settlement().facts.route == "chat.completions"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/v1/fine_tuning/jobs", 404, "unknown_route"),
        ("POST", "/openai/v1/assistants", 404, "unknown_route"),
        ("GET", "/v1", 404, "unknown_route"),
        ("GET", "/internal/v1/orgs", 404, "unknown_route"),
        ("GET", "/v1/embeddings", 405, "method_not_allowed"),
        ("PUT", "/openai/v1/embeddings", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
    ],
)
async def test_vendor_routes_that_are_not_served_are_refused_by_name(
    there: World, method: str, path: str, status: int, code: str
) -> None:
    client = await ask(there, path, method)
    error = client.json()["error"]
    assert (client.status, error["code"]) == (status, code)
    assert path in error["message"]
    assert method in error["message"]
    if status == 405:
        assert client.header("allow") == ("GET" if path == "/v1/models" else "POST")
    assert there.vendor.requests == []


@pytest.mark.parametrize("path", ["/", "/nope", "/a b/v1/chat/completions", "//v1", "/internal/orgs", "/nope/x"])
async def test_everything_else_is_not_found_in_plain_form(there: World, path: str) -> None:
    client = await ask(there, path, "POST")
    assert client.status == 404
    assert client.json()["error"] == "not_found"
    assert path in client.json()["message"]


async def test_only_http_is_spoken(there: World) -> None:
    with pytest.raises(RuntimeError, match="websocket"):
        await there.assembly.app({"type": "websocket"}, Client().receive, Client().send)


# ---- models ---------------------------------------------------------------------------------------------------------


async def test_models_are_those_with_a_price_at_vendors_within_reach(there: World) -> None:
    client = await ask(there, "/v1/models")
    assert client.status == 200
    answer = client.json()
    assert answer["object"] == "list"
    owners = {each["id"]: each["owned_by"] for each in answer["data"]}
    assert owners["gpt-4o-mini"] == "openai"
    assert owners["sandbox-small"] == "sandbox"
    assert all(each["object"] == "model" and each["created"] == 0 for each in answer["data"])
    only = (await ask(there, "/sandbox/v1/models")).json()["data"]
    assert {each["owned_by"] for each in only} == {"sandbox"}
    await there.org.publish(connections={})
    await there.sync()
    assert {each["owned_by"] for each in (await ask(there, "/v1/models")).json()["data"]} == {"sandbox"}
    assert there.events() == []


async def test_models_are_for_callers_with_a_key(there: World) -> None:
    client = await ask(there, "/v1/models", authorization="Bearer nonsense")
    assert (client.status, client.json()["error"]["code"]) == (401, "invalid_key")


# ---- health ---------------------------------------------------------------------------------------------------------


async def readiness(there: World) -> tuple[int, str | None]:
    client = await ask(there, "/readyz")
    return client.status, client.json().get("message")


async def test_health_is_that_the_process_is_up(tmp_path: Path) -> None:
    async with world(tmp_path) as there:
        there.hot_state.store.wipe()
        client = await ask(there, "/healthz")
        assert (client.status, client.json()) == (200, {"status": "ok"})


async def test_readiness_is_that_calls_can_be_served(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await readiness(there) == (200, None)
    there.hot_state.store.state("default").epoch = None
    assert await readiness(there) == (503, "the hot state is being rebuilt")
    there.hot_state.store.wipe()
    await there.sync()
    assert await readiness(there) == (503, "control has not published anything yet")
    monkeypatch.setattr("services.gateway.assemble._STALE_S", -1.0)
    assert await readiness(there) == (503, "the hot state can't be reached")


async def test_a_hot_state_that_went_away_is_not_ready(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(_orgs: object) -> None:
        raise UnavailableError("away")

    monkeypatch.setattr(there.hot_state, "epochs", away)
    assert await readiness(there) == (503, "the hot state can't be reached")


async def test_a_full_outbox_is_not_ready(tmp_path: Path) -> None:
    async with world(tmp_path, outbox_limit=1) as there:
        await there.call(chat(model="nobody-priced-it"))
        assert await readiness(there) == (503, "the outbox is full: the event log has been away too long")
