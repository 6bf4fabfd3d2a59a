"""A caller's own vendor key: used for that call alone, and nowhere to be found afterwards (GW-2)."""

import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from services.core.ports import NotSentError, TimedOutError, UnavailableError
from services.core.snapshot import Overrides, RouteRule, Target
from services.gateway import forward
from services.gateway.admit import AdmittedCall, Admitter
from services.gateway.headers import HeaderReader
from tests.support.asgi import Client, request
from tests.support.gateway import ScriptedAnswer, World, assert_refused, world
from tests.support.routes import GOOD, connect_all

OK = b'{"object":"chat.completion","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5}}'
OWN = "sk-own-0123456789"


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def ask(there: World, path: str, body: bytes, headers: Mapping[str, str]) -> Client:
    return await request(there.assembly.app, path, body, headers=list(headers.items()))


OWN_HEADERS = (
    ("openai", {"authorization": f"Bearer {OWN}"}, (b"authorization", f"Bearer {OWN}".encode())),
    ("azure", {"api-key": OWN}, (b"api-key", OWN.encode())),
    ("anthropic", {"x-api-key": OWN}, (b"x-api-key", OWN.encode())),
    ("anthropic", {"authorization": "Bearer sk-ant-oat-1"}, (b"authorization", b"Bearer sk-ant-oat-1")),
    ("google", {"x-goog-api-key": OWN}, (b"x-goog-api-key", OWN.encode())),
    ("mistral", {"authorization": f"Bearer {OWN}"}, (b"authorization", f"Bearer {OWN}".encode())),
    ("cohere", {"authorization": f"Bearer {OWN}"}, (b"authorization", f"Bearer {OWN}".encode())),
)


@pytest.mark.parametrize(("vendor", "own", "sent"), OWN_HEADERS)
@pytest.mark.parametrize("is_general", [False, True], ids=["own header", "x-vendor-key"])
async def test_the_key_is_taken_from_the_vendors_header_or_from_ours(
    there: World, vendor: str, own: dict[str, str], sent: tuple[bytes, bytes], is_general: bool
) -> None:
    await connect_all(there)
    key = next(iter(own.values())).removeprefix("Bearer ")
    headers = {"authorization": f"Bearer {there.key}", "x-vendor-key": key} if is_general else own
    there.answer(ScriptedAnswer([OK]))
    path, body = GOOD[vendor]
    client = await ask(there, path, body, {"x-spend-key": there.key, **headers})
    assert client.status == 200, client.content
    (asked,) = there.vendor.requests
    names = ("authorization", "x-api-key", "api-key", "x-goog-api-key", "x-vendor-key")
    assert [each for each in asked.headers if each[0].decode() in names] == [sent]
    assert there.key not in repr(asked)
    assert there.settlement().facts.auth_mode == "byok"
    assert all(each.facts.auth_mode == "byok" for each in there.events())


async def test_without_a_key_of_its_own_a_call_is_metered(there: World) -> None:
    there.answer(ScriptedAnswer([OK]), ScriptedAnswer([OK]))
    assert (await there.call()).status == 200
    assert there.settlement().facts.auth_mode == "metered"
    assert (await there.call(x_spend_key=there.key)).status == 200
    # A Farthing key in the vendor's header is ours, whatever else is there.
    assert dict(there.vendor.requests[-1].headers)[b"authorization"] == b"Bearer sk-vendor"


@pytest.mark.parametrize(
    ("vendor", "url"),
    [
        ("openai", "https://api.openai.com/v1/chat/completions"),
        ("anthropic", "https://api.anthropic.com/v1/messages"),
        ("google", "https://generativelanguage.googleapis.com/v1beta/models/m-1:generateContent"),
        ("mistral", "https://api.mistral.ai/v1/chat/completions"),
        ("cohere", "https://api.cohere.com/v2/chat"),
    ],
)
async def test_without_a_connection_the_vendors_own_address_is_used(there: World, vendor: str, url: str) -> None:
    await connect_all(there)
    await there.org.publish(connections={})
    await there.sync()
    there.answer(ScriptedAnswer([OK]))
    client = await ask(there, *GOOD[vendor], {"x-spend-key": there.key, "x-vendor-key": OWN})
    assert client.status == 200, client.content
    assert there.vendor.requests[0].url == url
    client = await ask(there, *GOOD[vendor], {"x-spend-key": there.key})
    assert client.status == 400
    assert b"no_vendor_connection" in client.content or b"NO_VENDOR_CONNECTION" in client.content


async def test_a_well_known_vendor_of_openais_dialect_has_an_address_too(there: World) -> None:
    rates = {"input": "1.000000000", "output": "1.000000000"}
    entry = {"vendor": "groq", "model": "llama", "prices": [{"usd": rates}]}
    await there.org.publish(overrides=Overrides("own", (entry,)))
    await there.sync()
    there.answer(ScriptedAnswer([OK]))
    body = {"model": "llama", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]}
    client = await there.call(body, path="/groq/v1/chat/completions", x_vendor_key=OWN)
    assert client.status == 200, client.content
    assert there.vendor.requests[0].url == "https://api.groq.com/openai/v1/chat/completions"


@pytest.mark.parametrize("vendor", ["azure", "nobody"])
async def test_a_vendor_without_an_address_of_its_own_needs_a_connection(there: World, vendor: str) -> None:
    path = "/azure/openai/v1/chat/completions" if vendor == "azure" else f"/{vendor}/v1/chat/completions"
    client = await there.call(path=path, x_vendor_key=OWN)
    assert_refused(client, 400, "no_vendor_connection", f"'{vendor}'")


async def test_a_connections_address_is_used_with_the_callers_key(there: World) -> None:
    await there.org.connect("openai", "https://proxy.test/v1", "garbled and never opened")
    await there.sync()
    there.answer(ScriptedAnswer([OK]))
    assert (await there.call(x_vendor_key=OWN)).status == 200
    assert there.vendor.requests[0].url == "https://proxy.test/v1/chat/completions"


async def test_a_free_route_takes_the_callers_key_too(there: World) -> None:
    there.answer(ScriptedAnswer([b"{}"]))
    headers = [("x-spend-key", there.key), ("authorization", f"Bearer {OWN}")]
    client = await request(there.assembly.app, "/v1/models/gpt-4o-mini", headers=headers, method="GET")
    assert client.status == 200
    assert (b"authorization", f"Bearer {OWN}".encode()) in there.vendor.requests[0].headers
    assert there.events() == []


# ---- where the key must not be --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        ScriptedAnswer([OK]),
        ScriptedAnswer([b'{"error":{"message":"Incorrect API key provided"}}'], 401),
        ScriptedAnswer([OK[:20], UnavailableError("cut")]),
        ScriptedAnswer([b"down"], 500),
        NotSentError("refused"),
        TimedOutError("late"),
        UnavailableError("the line broke"),
    ],
    ids=["answered", "refused", "cut", "failed", "unreachable", "late", "broken"],
)
async def test_the_key_is_in_no_event_no_log_no_answer_and_no_repr(
    there: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    monkeypatch.setattr(forward, "RETRY_PAUSES_S", (0.0, 0.0))
    calls: list[AdmittedCall] = []
    admit = Admitter.admit

    async def noted(*arguments: Any) -> AdmittedCall:
        calls.append(await admit(*arguments))
        return calls[-1]

    monkeypatch.setattr(Admitter, "admit", noted)
    await there.org.set_budget("1.00")
    await there.org.publish(rules=(RouteRule(fallbacks=(Target("sandbox", "sandbox-small"),)),))
    await there.sync()
    there.answer(*[answer] * 3)
    with capture_logs() as logs:
        client = await there.call(x_vendor_key=OWN, x_spend_agent="ada")
    with contextlib.closing(sqlite3.connect(tmp_path / "outbox.sqlite")) as database:
        kept = repr(database.execute("SELECT * FROM outbox").fetchall())
    (call,) = calls
    hold = repr(there.hot_state.store.state("default"))
    told = client.content.decode(errors="replace") + repr(client.headers)
    for place in (kept, json.dumps(logs, default=repr), told, repr(call), repr(call.asked), repr(call.target), hold):
        assert OWN not in place
        assert there.key not in place
    assert "farthing?" not in repr(call), "nor is what was asked"
    assert "byok" in kept
    assert there.vendor.requests
    assert all(dict(each.headers)[b"authorization"] == f"Bearer {OWN}".encode() for each in there.vendor.requests)


async def test_headers_as_they_were_read_do_not_show_keys() -> None:
    read = HeaderReader("x-spend-").read(
        [
            (b"x-spend-key", b"fk_live_" + b"a" * 40),
            (b"x-vendor-key", OWN.encode()),
            (b"x-api-key", OWN.encode()),
            (b"accept", b"*/*"),
        ]
    )
    assert OWN not in repr(read)
    assert "fk_live_" not in repr(read)
    assert read.vendor_key == OWN


async def test_a_key_that_no_header_can_hold_is_refused_without_being_told(there: World) -> None:
    client = await there.call(x_vendor_key="sk-\x01own")
    assert_refused(client, 400, "invalid_request", "x-vendor-key")
    assert "own" not in client.content.decode()
