"""A stream that is ended for want of room says so in its dialect's own way, or breaks off where none can be said."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from services.core.catalog import catalog_version
from services.core.events import Reservation
from services.gateway.vendors.registry import DIALECTS
from tests.support.gateway import World, world
from tests.support.growing import Trickle, begin, budget, event, set_budgets, text
from tests.support.routes import MODEL, connect_all

HELLO = [{"role": "user", "content": "Hello"}]
STEPS = 3


@dataclass(frozen=True)
class Case:
    """A stream without a limit: what it begins with, an event of so much text, and where in an event its error is."""

    path: str
    body: dict[str, Any]
    begin: bytes
    text: Callable[[int], bytes]
    error: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    name: str | None = None
    code: str = "code"


def named(value: dict[str, Any]) -> bytes:
    return b"event: " + str(value["type"]).encode() + b"\n" + event(value)


def block(size: int) -> bytes:
    return named({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x" * size}})


def delta(size: int) -> bytes:
    return named({"type": "response.output_text.delta", "delta": "x" * size})


def candidate(size: int) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": [{"text": "x" * size}], "role": "model"}}]}


def cohere(size: int) -> bytes:
    return named({"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "x" * size}}}})


CHAT_BODY = {"model": MODEL, "messages": HELLO, "stream": True}
CASES: Mapping[str, Case] = {
    "openai": Case("/openai/v1/chat/completions", CHAT_BODY, b"", text, lambda said: said["error"]),
    "azure": Case("/azure/openai/v1/chat/completions", CHAT_BODY, b"", text, lambda said: said["error"]),
    "responses": Case(
        "/openai/v1/responses",
        {"model": MODEL, "input": "Hello", "stream": True},
        named({"type": "response.created", "response": {"id": "resp_1", "status": "in_progress"}}),
        delta,
        lambda said: said["error"],
    ),
    "anthropic": Case(
        "/v1/messages",
        # Only the model's own limit bounds the summing up of a conversation.
        {**CHAT_BODY, "max_tokens": 100, "compaction": {"type": "enabled"}},
        named({"type": "message_start", "message": {"model": MODEL, "usage": {"input_tokens": 9, "output_tokens": 1}}}),
        block,
        lambda said: said["error"],
        "error",
    ),
    "google": Case(
        f"/v1beta/models/{MODEL}:streamGenerateContent",
        {"contents": [{"parts": [{"text": "Hello"}]}]},
        event(candidate(1)),
        lambda size: event(candidate(size)),
        lambda said: said["error"],
        code="reason",
    ),
    "mistral": Case("/mistral/v1/chat/completions", CHAT_BODY, b"", text, lambda said: said),
    "cohere": Case("/v2/chat", CHAT_BODY, b"", cohere, lambda said: said["delta"], "message-end"),
}
every_dialect = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        await connect_all(made)
        models = [
            {
                "vendor": vendor,
                "model": MODEL,
                "prices": [{"usd": {"input": "0.5", "output": "2"}}],
                "max_output_tokens": 100_000,
                "context_window": 200_000,
            }
            for vendor in DIALECTS
        ]
        document: dict[str, Any] = {"format": 2, "models": models}
        version = document["version"] = catalog_version(document)
        await made.directory.publish_catalog(version, json.dumps(document).encode())
        await made.org.publish(catalog_version=version)
        yield made


async def cut_off(there: World, case: Case, kind: bytes = b"text/event-stream", *pieces: bytes) -> tuple[bytes, bool]:
    """What a client got of a stream whose hold was extended until there was no room, and whether it was ended."""
    there.outbox.forget(10**9)
    await set_budgets(there, budget(10**12))
    there.answer(Trickle([]))
    await there.call(case.body, path=case.path)
    held = next(each for each in there.events() if isinstance(each, Reservation))
    assert held.estimate_mode == "stepped"
    there.outbox.forget(10**9)
    state = there.hot_state.store.state("default")
    for part in (state.windows, state.holds, state.due):
        part.clear()
    # A step is 4,096 tokens of $2 a million.
    limit_nano = held.held_nano + (STEPS - 1) * 4_096 * 2_000
    await set_budgets(there, budget(limit_nano))
    answer = Trickle(pieces or [case.begin, *(case.text(1_000) for _ in range(50))], headers=[(b"Content-Type", kind)])
    there.answer(answer)
    client, calling = begin(there, case.body, case.path)
    await calling
    settlement = there.settlement()
    assert (settlement.outcome, settlement.held_nano, answer.closed) == ("cut_off", limit_nano, True)
    assert settlement.cost_nano <= limit_nano
    assert there.held_nano() == limit_nano
    return client.content, client.ended


@every_dialect
async def test_every_dialect_has_its_own_error(there: World, case: Case) -> None:
    content, ended = await cut_off(there, case)
    sent = case.begin + case.text(1_000) * 12
    assert ended
    assert content.startswith(sent)
    *head, data = content[len(sent) :].strip().split(b"\n")
    assert head == ([] if case.name is None else [b"event: " + case.name.encode()])
    error = case.error(orjson.loads(data.removeprefix(b"data: ")))
    budget_id = there.org.snapshot.budgets[0].budget_id
    assert error[case.code] == "budget_exhausted"
    assert error["budget_id"] == budget_id
    assert error["scope"] == "org:default"
    assert error["transaction_id"] == there.settlement().transaction_id
    assert budget_id in str(error.get("message", error.get("error")))


async def test_types_say_what_is_missing(there: World) -> None:
    kinds = {}
    for name in ("openai", "anthropic", "mistral", "google"):
        case = CASES[name]
        content, _ = await cut_off(there, case)
        error = case.error(orjson.loads(content.rpartition(b"data: ")[2]))
        kinds[name] = error.get("type", error.get("status"))
    assert kinds == {
        "openai": "insufficient_quota",
        "anthropic": "billing_error",
        "mistral": "payment_required",
        "google": "RESOURCE_EXHAUSTED",
    }


async def test_a_stream_that_is_no_stream_of_events_is_broken_off(there: World) -> None:
    elements = [b"[", *(orjson.dumps(candidate(1_000)) + b",\r\n" for _ in range(50)), b"]"]
    content, ended = await cut_off(there, CASES["google"], b"application/json", *elements)
    assert not ended
    assert b"".join(elements).startswith(content)
    assert content.count(b"candidates") == 12
    case = Case("/v1/chat", {"model": MODEL, "message": "Hello", "stream": True}, b"", text, dict)
    lines = [orjson.dumps({"event_type": "text-generation", "text": "x" * 1_000}) + b"\n" for _ in range(50)]
    content, ended = await cut_off(there, case, b"application/stream+json", *lines)
    assert (content, ended) == (b"".join(lines[:12]), False)
