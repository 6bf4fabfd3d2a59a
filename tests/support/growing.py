"""Streams that are held by steps: a vendor that writes as much as it is told to, and a hot state that can be slow."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import orjson
from ulid import ULID

from services.adapters.memory import MemoryHotState
from services.core.budgets import Budget, ScopeKind
from services.core.codec import decode
from services.core.events import HoldResized, Reservation, Settlement
from services.core.fold import step_of
from services.core.hotstate import HoldRequest, ReserveAnswer
from services.core.ports import TopicPartition, UnavailableError
from tests.support.asgi import Client, scope_of
from tests.support.gateway import CHAT_PATH, DAY, EVENT_STREAM, ScriptedAnswer, World, chat

# What an output token of gpt-4o-mini costs, in nano-dollars, and the most that it writes.
OUTPUT_NANO = 600
MOST_TOKENS = 16_384


class SlowHotState(MemoryHotState):
    """A hot state whose resizes wait while `gate` is closed, and are refused while `is_away`; `resized` counts them."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_away = False
        self.resized: list[HoldRequest] = []

    async def resize(self, request: HoldRequest) -> ReserveAnswer | None:
        self.resized.append(request)
        await self.gate.wait()
        if self.is_away:
            raise UnavailableError("it is away")
        return await super().resize(request)


class Trickle(ScriptedAnswer):
    """An answer whose pieces come one by one, as from a network: everything else has its turn between them."""

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(super().chunks()) as pieces:
            async for piece in pieces:
                for _ in range(5):
                    await asyncio.sleep(0)
                yield piece


def event(value: object) -> bytes:
    """One event, as every vendor sends it."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


def text(size: int, **fields: Any) -> bytes:
    """A chunk with so many bytes of text."""
    delta = {"content": "x" * size}
    return event({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}], **fields})


def usage(tokens_out: int, tokens_in: int = 10) -> bytes:
    """The chunk that reports usage."""
    used = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out}
    return event({"object": "chat.completion.chunk", "choices": [], "usage": used})


DONE = b"data: [DONE]\n\n"


def streamed(*pieces: bytes | Exception | asyncio.Event) -> ScriptedAnswer:
    """An answer of these pieces."""
    return Trickle(pieces, headers=EVENT_STREAM)


def asking(**fields: Any) -> dict[str, Any]:
    """A streaming request that names no limit of its own, and asks for usage itself."""
    body = {**chat(), "stream": True, "stream_options": {"include_usage": True}}
    del body["max_tokens"]
    return {**body, **fields}


def budget(limit_nano: int, kind: ScopeKind = "org", value: str = "default", **fields: Any) -> Budget:
    """A budget that lets streams be held by steps."""
    return Budget(f"bud_{ULID()}", kind, value, DAY, limit_nano, **{"extend": True, **fields})


async def set_budgets(there: World, *budgets: Budget) -> None:
    """Publishes these budgets and no others."""
    await there.org.publish(budgets=budgets)
    await there.sync()


def begin(
    there: World, body: object = None, path: str = CHAT_PATH, **headers: str
) -> tuple[Client, asyncio.Task[None]]:
    """A call on its way, and its client."""
    client = Client(body=(orjson.dumps(asking() if body is None else body),))
    scope = scope_of(path, there.headers(**headers))
    return client, asyncio.ensure_future(there.assembly.app(scope, client.receive, client.send))


def reservation(there: World) -> Reservation:
    """The one reservation there is."""
    (found,) = (each for each in there.events() if isinstance(each, Reservation))
    return found


def resizes(there: World) -> Sequence[HoldResized]:
    """Every resize on record, in order."""
    return [each for each in there.events() if isinstance(each, HoldResized)]


async def fold_all(there: World, last: type = Settlement) -> None:
    """Folds everything on record, events of type `last` after all others."""
    stamped = [decode(row.message.value) for row in there.outbox.oldest(1000)]
    stamped.sort(key=lambda each: isinstance(each.event, last))
    for number, each in enumerate(stamped):
        step = step_of(replace(each, producer=f"p{number}"), number)
        assert step is not None
        await there.hot_state.apply("default", TopicPartition("t", 0), [step], number + 1)
