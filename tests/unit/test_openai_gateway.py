"""OpenAI's routes through the gateway: held before they leave, settled by what their answers say."""

import json
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest

import services.control.prices
from services.core.catalog import catalog_version
from services.core.ports import UnavailableError
from tests.support.audio import wave
from tests.support.forms import FORM_TYPE, form
from tests.support.gateway import ScriptedAnswer, World, assert_refused, world
from tests.support.vendors import openai as answers

SSE = ((b"Content-Type", b"text/event-stream"),)


MODELS = ("gpt-4o-mini", "text-embedding-3-small", "tts-1", "whisper-1")


@cache
def prices() -> tuple[str, bytes]:
    """The shipped prices of `MODELS`: the catalog's version and bytes."""
    document = json.loads((Path(services.control.prices.__file__).parent / "catalog.json").read_bytes())
    document["models"] = [each for each in document["models"] if each["vendor"] == "openai" and each["model"] in MODELS]
    document["version"] = catalog_version(document)
    return document["version"], json.dumps(document).encode()


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        version, catalog = prices()
        await made.directory.publish_catalog(version, catalog)
        await made.org.publish(catalog_version=version)
        await made.sync()
        yield made


def dump(value: Any) -> bytes:
    return orjson.dumps(value)


async def test_a_responses_stream_is_not_settled_at_nothing(there: World) -> None:
    whole = answers.response(used=answers.response_usage(1_000, 100))
    events = answers.response_events(whole)
    there.answer(ScriptedAnswer(events, headers=SSE))
    body = {"model": "gpt-4o-mini", "input": "Hello", "stream": True, "max_output_tokens": 100}
    client = await there.call(body, path="/v1/responses")
    assert (client.status, client.content) == (200, b"".join(events))
    settlement = there.settlement()
    assert (settlement.facts.route, settlement.usage_source) == ("responses", "reported")
    # 1,000 at $0.15 and 100 at $0.60 a million.
    assert settlement.cost_nano == 210_000


async def test_embeddings_are_not_settled_as_chat(there: World) -> None:
    there.answer(ScriptedAnswer([dump(answers.embeddings("text-embedding-3-small", 2, 8))]))
    client = await there.call({"model": "text-embedding-3-small", "input": ["a", "b"]}, path="/v1/embeddings")
    assert client.status == 200
    settlement = there.settlement()
    # 8 at $0.02 a million.
    assert (settlement.facts.route, settlement.usage, settlement.cost_nano) == ("embeddings", {"input_tokens": 8}, 160)


async def test_speech_is_settled_by_its_characters(there: World) -> None:
    there.answer(ScriptedAnswer([answers.SPEECH_BYTES], headers=((b"Content-Type", b"audio/mpeg"),)))
    client = await there.call({"model": "tts-1", "input": "Hello there.", "voice": "alloy"}, path="/v1/audio/speech")
    assert (client.status, client.content) == (200, answers.SPEECH_BYTES)
    settlement = there.settlement()
    # 12 characters at $15 a million.
    assert (settlement.outcome, settlement.usage_source, settlement.cost_nano) == ("completed", "counted", 180_000)


async def test_speech_that_nobody_answered_is_settled_by_its_characters(there: World) -> None:
    there.answer(UnavailableError("hung up"))
    client = await there.call({"model": "tts-1", "input": "Hello there.", "voice": "alloy"}, path="/v1/audio/speech")
    assert client.status == 502
    settlement = there.settlement()
    assert settlement.usage["characters"] == 12
    # 12 characters at $15 a million.
    assert (settlement.outcome, settlement.cost_nano) == ("partial", 180_000)


async def test_a_transcription_that_nobody_answered_is_settled_by_the_length_of_the_file(there: World) -> None:
    there.answer(UnavailableError("hung up"))
    body = form(("model", "whisper-1"), ("response_format", "srt"), ("file", wave(seconds=2.5)))
    client = await there.call(body, path="/v1/audio/transcriptions", content_type=FORM_TYPE)
    assert client.status == 502
    settlement = there.settlement()
    # 3 s at $0.36 an hour; more was held, in case that the file says too little.
    assert (settlement.usage["audio_ms"], settlement.cost_nano) == (3_000, 300_000)
    assert settlement.held_nano > settlement.cost_nano


async def test_a_count_without_a_price_is_named(there: World) -> None:
    used = {**answers.usage(10, 5), "server_side_tool_usage_details": {"x_search_calls": 2}}
    there.answer(ScriptedAnswer([dump(answers.completion("gpt-4o-mini", used=used))]))
    await there.call()
    settlement = there.settlement()
    assert (settlement.usage["social_searches"], settlement.unpriced) == (2, ("social_searches",))
    # 10 at $0.15 and 5 at $0.60 a million.
    assert settlement.cost_nano == 10 * 150 + 5 * 600


async def test_subtitles_are_settled_by_the_length_of_the_file(there: World) -> None:
    text = b"1\n00:00:00,000 --> 00:00:02,500\nHello.\n"
    there.answer(ScriptedAnswer([text], headers=((b"Content-Type", b"text/plain; charset=utf-8"),)))
    body = form(("model", "whisper-1"), ("response_format", "srt"), ("file", wave(seconds=2.5)))
    client = await there.call(body, path="/v1/audio/transcriptions", content_type=FORM_TYPE)
    assert (client.status, client.content) == (200, text)
    settlement = there.settlement()
    # 3 s at $0.36 an hour.
    assert (settlement.outcome, settlement.usage_source, settlement.cost_nano) == ("completed", "counted", 300_000)


async def test_a_tool_without_a_bound_is_refused_by_name(there: World) -> None:
    body = {"model": "gpt-4o-mini", "input": "Hello", "tools": [{"type": "web_search"}]}
    client = await there.call(body, path="/v1/responses")
    assert_refused(client, 400, "unpriced_feature", "max_tool_calls")
    assert json.loads(client.content)["error"]["param"] == "max_tool_calls"


async def test_an_explicit_zero_is_not_replaced_by_an_estimate(there: World) -> None:
    answer = answers.completion("gpt-4o-mini", "Text that could be counted.", used=answers.usage(1_000, 0))
    there.answer(ScriptedAnswer([dump(answer)]))
    assert (await there.call({"model": "gpt-4o-mini", "messages": [], "max_tokens": 100})).status == 200
    settlement = there.settlement()
    # 1,000 at $0.15 a million, and nothing written.
    assert (settlement.usage_source, settlement.usage["output_tokens"], settlement.cost_nano) == (
        "reported",
        0,
        150_000,
    )


async def test_a_completion_s_usage_chunk_does_not_leak_to_who_had_not_asked(there: World) -> None:
    chunks = answers.text_completion_chunks([" Hello", "!"], "gpt-4o-mini", answers.plain_usage(1_000, 100))
    events = answers.events(chunks)
    there.answer(ScriptedAnswer(events, headers=SSE))
    client = await there.call(
        {"model": "gpt-4o-mini", "prompt": "x", "stream": True, "max_tokens": 100}, path="/v1/completions"
    )
    assert client.status == 200
    assert b'"usage":{' not in client.content.replace(b": ", b":")
    assert client.content.endswith(b"data: [DONE]\n\n")
    assert there.settlement().cost_nano == 210_000


@pytest.mark.parametrize(
    "path",
    [
        "/v1/images/generations",
        "/v1/audio/transcriptions",
        "/v1/videos",
        "/v1/fine_tuning/jobs",
        "/v1/realtime/sessions",
    ],
)
async def test_image_and_audio_routes_are_not_outside_the_gate(there: World, path: str) -> None:
    client = await there.call({"model": "no-such-model", "prompt": "x"}, path=path)
    assert client.status in (400, 403, 404)
    assert there.vendor.requests == []
