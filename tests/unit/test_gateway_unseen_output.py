"""A model reasons or draws long before any text comes: an answer cut by then is charged for the time that it took."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from services.core.estimate import TOKENS_PER_SECOND, unseen_tokens
from services.core.events import Settlement
from services.core.ports import NotSentError, UnavailableError
from services.gateway import forward
from services.gateway.timing import Timing
from tests.support.asgi import Client, scope_of
from tests.support.gateway import EVENT_STREAM, ScriptedAnswer, World, until, world
from tests.support.routes import MODEL, connect_all
from tests.support.vendors import google, openai

LIMIT = 10_000
# A test may take so long beside the time that it makes pass.
SLACK_TOKENS = 2 * TOKENS_PER_SECOND
HELLO = [{"role": "user", "content": "Hello"}]
SUMMARY = "Weighing it up"


@dataclass(frozen=True)
class Case:
    """A streaming request, and the first event of its answer, one that sums up thoughts, and one of text ``Hello``."""

    path: str
    body: dict[str, Any]
    begin: bytes
    summary: bytes
    text: bytes


def event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def chat_event(**delta: Any) -> bytes:
    return event({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]})


def thinking(delta: dict[str, Any]) -> bytes:
    return event({"type": "content_block_delta", "index": 0, "delta": delta})


def gemini_event(*parts: dict[str, Any]) -> bytes:
    return event({"candidates": [google.candidate(parts, finish_reason=None)], "modelVersion": MODEL})


CHAT = Case(
    "/openai/v1/chat/completions",
    {"model": MODEL, "messages": HELLO, "max_tokens": LIMIT, "stream": True},
    chat_event(role="assistant", content=""),
    chat_event(reasoning=SUMMARY),
    chat_event(content="Hello"),
)
RESPONSES = Case(
    "/openai/v1/responses",
    {"model": MODEL, "input": "Hello", "max_output_tokens": LIMIT, "stream": True},
    event({"type": "response.created", "response": {"id": "resp_1", "status": "in_progress"}}),
    event({"type": "response.reasoning_summary_text.delta", "delta": SUMMARY}),
    event({"type": "response.output_text.delta", "delta": "Hello"}),
)
ANTHROPIC = Case(
    "/v1/messages",
    {"model": MODEL, "messages": HELLO, "max_tokens": LIMIT, "stream": True},
    event({"type": "message_start", "message": {"model": MODEL, "usage": {"input_tokens": 9, "output_tokens": 1}}}),
    thinking({"type": "thinking_delta", "thinking": SUMMARY}),
    thinking({"type": "text_delta", "text": "Hello"}),
)
GOOGLE = Case(
    f"/v1beta/models/{MODEL}:streamGenerateContent",
    {"contents": [{"parts": [{"text": "Hello"}]}], "generationConfig": {"maxOutputTokens": LIMIT}},
    event({"modelVersion": MODEL}),
    gemini_event(google.thought_part(SUMMARY)),
    gemini_event(google.text_part("Hello")),
)
CASES = {"chat": CHAT, "responses": RESPONSES, "anthropic": ANTHROPIC, "google": GOOGLE}
every_dialect = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


class Clock:
    """The clock of calls, which a test moves on by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real: Callable[[], int] = time.perf_counter_ns
        self._moved_ns = 0
        monkeypatch.setattr(time, "perf_counter_ns", lambda: self._real() + self._moved_ns)

    def move(self, seconds: int) -> None:
        """Lets so many seconds pass."""
        self._moved_ns += seconds * 10**9


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(forward, "RETRY_PAUSES_S", (0.0, 0.0))
    return Clock(monkeypatch)


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        await connect_all(made)
        yield made


async def hung_up(there: World, clock: Clock, case: Case, *steps: bytes | int) -> Settlement:
    """The settlement of a call whose client leaves after `steps`: events of the vendor's, and seconds that pass."""
    gates: list[asyncio.Event] = []
    pieces: list[bytes | Exception | asyncio.Event] = []
    for step in steps:
        if isinstance(step, bytes):
            pieces.append(step)
        else:
            gates.append(asyncio.Event())
            pieces.append(gates[-1])
    there.answer(ScriptedAnswer([*pieces, asyncio.Event()], headers=EVENT_STREAM))
    client = Client(body=(orjson.dumps(case.body),))
    scope = scope_of(case.path, there.headers())
    calling = asyncio.ensure_future(there.assembly.app(scope, client.receive, client.send))
    await until(lambda: client.answered.is_set() or calling.done())
    assert client.status == 200, client.content
    waiting = iter(gates)
    seen = 0
    for step in steps:
        if isinstance(step, bytes):
            seen += 1
            count = seen
            await until(lambda: len(client.chunks) >= count)  # noqa: B023 - it is over by the next round
        else:
            clock.move(step)
            next(waiting).set()
    client.hang_up()
    await asyncio.wait_for(calling, 5)
    return there.settlement()


def assert_output(settlement: Settlement, least: int) -> None:
    assert (settlement.outcome, settlement.usage_source) == ("partial", "estimated")
    assert least <= settlement.usage["output_tokens"] <= least + SLACK_TOKENS


@every_dialect
async def test_a_client_that_leaves_while_a_model_reasons_pays_for_the_time(
    there: World, clock: Clock, case: Case
) -> None:
    settlement = await hung_up(there, clock, case, case.begin, 8)
    assert_output(settlement, 8 * TOKENS_PER_SECOND)


@every_dialect
async def test_the_time_ends_with_the_first_text(there: World, clock: Clock, case: Case) -> None:
    settlement = await hung_up(there, clock, case, case.begin, 6, case.text, 30)
    assert_output(settlement, 6 * TOKENS_PER_SECOND + len("Hello"))


@every_dialect
async def test_the_time_does_not_end_with_a_summary_of_thoughts(there: World, clock: Clock, case: Case) -> None:
    settlement = await hung_up(there, clock, case, case.begin, 1, case.summary, 7, case.text, 30)
    assert_output(settlement, 8 * TOKENS_PER_SECOND + len(SUMMARY) + len("Hello"))


@every_dialect
async def test_what_was_not_seen_is_never_more_than_the_bound(there: World, clock: Clock, case: Case) -> None:
    settlement = await hung_up(there, clock, case, case.begin, 500)
    assert settlement.usage["output_tokens"] == LIMIT
    assert settlement.cost_nano <= settlement.held_nano


async def test_thoughts_that_google_counted_are_not_charged_twice(there: World, clock: Clock) -> None:
    counted = {**json.loads(GOOGLE.summary[6:]), "usageMetadata": google.usage(9, None, thoughts=1_900)}
    settlement = await hung_up(there, clock, GOOGLE, 8, event(counted))
    # 1,900 are known of, and 100 more may have been thought in 8 s.
    assert_output(settlement, 8 * TOKENS_PER_SECOND + len(SUMMARY))


async def test_an_image_that_never_came_was_drawn_all_the_same(there: World, clock: Clock) -> None:
    body = {"model": "gpt-image-1", "prompt": "a coin", "size": "1024x1024", "quality": "high", "stream": True}
    case = Case("/openai/v1/images/generations", body, b": drawing\n\n", b"", b"")
    settlement = await hung_up(there, clock, case, case.begin, 8)
    assert_output(settlement, 8 * TOKENS_PER_SECOND)


async def test_tries_that_failed_are_not_counted(there: World, clock: Clock) -> None:
    send = there.vendor.send

    async def slow(request: Any) -> ScriptedAnswer:
        if len(there.vendor.requests) < 2:
            clock.move(20)
        return await send(request)

    there.vendor.send = slow  # type: ignore[method-assign]
    there.answer(NotSentError("refused"), NotSentError("refused"))
    settlement = await hung_up(there, clock, CHAT, CHAT.begin, 2)
    assert settlement.retry_count == 2
    assert_output(settlement, 2 * TOKENS_PER_SECOND)


async def test_a_stream_that_came_to_its_end_is_charged_by_what_it_says(there: World, clock: Clock) -> None:
    there.answer(
        ScriptedAnswer(
            openai.events(openai.chunks(openai.text_deltas("Hello"), MODEL, openai.usage(13, 2))), headers=EVENT_STREAM
        )
    )
    clock.move(60)
    await there.call(CHAT.body, path=CHAT.path)
    assert (there.settlement().usage_source, there.settlement().usage["output_tokens"]) == ("reported", 2)


@every_dialect
async def test_a_whole_answer_that_broke_off_was_written_up_to_its_limit(there: World, case: Case) -> None:
    path = case.path.replace("streamGenerateContent", "generateContent")
    body = {name: value for name, value in case.body.items() if name != "stream"}
    there.answer(ScriptedAnswer([b'{"id":"1","usage":', UnavailableError("cut")]))
    assert (await there.call(body, path=path)).status == 502
    settlement = there.settlement()
    assert (settlement.outcome, settlement.usage_source) == ("partial", "estimated")
    assert settlement.usage["output_tokens"] == LIMIT
    assert settlement.cost_nano == settlement.held_nano


@pytest.mark.parametrize(("unseen_ms", "tokens"), [(0, 0), (1, 1), (4, 1), (5, 2), (1_000, 250), (60_000, 15_000)])
def test_tokens_are_rounded_up(unseen_ms: int, tokens: int) -> None:
    assert unseen_tokens(unseen_ms) == tokens


def test_time_is_counted_from_the_last_try_to_the_first_text() -> None:
    timing = Timing(sent_ns=1_000_000, tried_ns=5_000_000, vendor_ns=9_000_001)
    assert timing.unseen_ms() == 6
    timing.text_ns = 7_000_000
    assert timing.unseen_ms() == 2
