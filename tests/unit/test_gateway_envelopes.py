"""Refusals are written so that the vendors' own clients understand them, and stop where asking again is no use."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.adapters.memory import MemoryHotState
from services.core.hotstate import HoldRequest
from services.core.ports import UnavailableError
from services.gateway.vendors.openai import OpenAIDialect
from tests.support.gateway import World, world

STRANGER = "Bearer fk_live_" + "x" * 40


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


@pytest.mark.parametrize(
    ("path", "flat"),
    [
        ("/v1/chat/completions", False),
        ("/openai/v1/chat/completions", False),
        ("/mistral/v1/chat/completions", True),
        ("/somebody/v1/chat/completions", False),
        ("/mistral/v1/fim/completions", True),
    ],
)
async def test_a_stranger_is_refused_in_the_envelope_of_the_vendor_that_the_path_names(
    there: World, path: str, flat: bool
) -> None:
    """Several vendors have the same route; their clients would not read each other's errors."""
    client = await there.call(path=path, authorization=STRANGER)
    assert client.status == 401
    assert ("message" in client.json(), "error" in client.json()) == (flat, not flat)


async def test_clients_are_told_not_to_ask_again_for_what_will_not_change(there: World) -> None:
    """Some ask eleven times for a 401, unless they are told."""
    for client in (
        await there.call(authorization=STRANGER),
        await there.call({"model": "gpt-nobody-priced", "messages": []}),
        await there.call(x_spend_team="ops"),
    ):
        assert client.status in (400, 401, 403)
        assert client.header("x-should-retry") == "false"


class Unreachable(MemoryHotState):
    """A hot state that holds nothing."""

    async def reserve(self, request: HoldRequest) -> object:  # type: ignore[override]
        raise UnavailableError("it is away")


async def test_clients_may_ask_again_when_it_helps(tmp_path: Path) -> None:
    async with world(tmp_path, hot_state_type=Unreachable) as there:
        client = await there.call()
    assert (client.status, client.header("retry-after"), client.header("x-should-retry")) == (503, "1", None)


def test_an_error_within_a_stream_is_one_of_chats_and_of_responses() -> None:
    """Clients of chat look for ``error``; those of responses for an event of that type with its fields beside it."""
    event = OpenAIDialect().stream_error("vendor_unreachable", "It broke off", {"transaction_id": "txn_1"})
    told = json.loads(event.strip().removeprefix(b"data: "))
    assert {name: told[name] for name in ("type", "code", "message", "param")} == {
        "type": "error",
        "code": "vendor_unreachable",
        "message": "It broke off",
        "param": None,
    }
    assert type(told["sequence_number"]) is int
    assert told["error"]["transaction_id"] == "txn_1"
    assert told["error"]["message"] == "It broke off"
