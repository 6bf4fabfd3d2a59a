"""Answers in every encoding and framing: their bytes pass as they are, they are metered, and a break leaves a part."""

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import brotli
import orjson
import pytest
import zstandard

from services.core.events import Settlement
from services.core.ports import UnavailableError
from services.gateway.timing import Timing
from tests.support.asgi import Client
from tests.support.gateway import (
    EVENT_STREAM,
    WHOLE_ANSWER,
    ScriptedAnswer,
    World,
    asking,
    chat,
    stream_events,
    world,
)
from tests.support.routes import GOOD, MODEL, connect_all
from tests.support.vendors import cohere, google

ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
}
JSON = ((b"Content-Type", b"application/json"),)


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        await made.org.set_budget("1000.00")
        await made.sync()
        yield made


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_a_compressed_answer_passes_unchanged_and_is_metered(there: World, encoding: str, size: int) -> None:
    packed = ENCODINGS[encoding](WHOLE_ANSWER)
    there.answer(ScriptedAnswer(cut(packed, size), headers=(*JSON, (b"Content-Encoding", encoding.encode()))))
    client = await there.call()
    assert (client.status, client.content, client.ended) == (200, packed, True)
    assert client.header("content-encoding") == encoding
    usage = json.loads(WHOLE_ANSWER)["usage"]
    settlement = there.settlement()
    assert (settlement.outcome, settlement.usage_source) == ("completed", "reported")
    assert settlement.usage["input_tokens"] == usage["prompt_tokens"]
    assert settlement.usage["output_tokens"] == usage["completion_tokens"]


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_a_compressed_stream_passes_unchanged_and_is_metered(there: World, encoding: str, size: int) -> None:
    packed = ENCODINGS[encoding](b"".join(stream_events()))
    there.answer(ScriptedAnswer(cut(packed, size), headers=(*EVENT_STREAM, (b"Content-Encoding", encoding.encode()))))
    client = await there.call(asking())
    assert (client.content, client.ended) == (packed, True)
    settlement = there.settlement()
    assert (settlement.outcome, settlement.usage_source) == ("completed", "reported")
    assert (settlement.usage["input_tokens"], settlement.usage["output_tokens"]) == (13, 2)


@pytest.mark.parametrize(
    "end", [b"data: [DONE]   \n\n", b"data: [DONE]\t\r\n\r\n", b"data:[DONE]\n\n", b"data: [DONE]\n"]
)
@pytest.mark.parametrize("hidden", [False, True], ids=["asked", "hidden"])
async def test_a_stream_ends_however_its_end_is_written(there: World, end: bytes, hidden: bool) -> None:
    *events, done = stream_events()
    assert done == b"data: [DONE]\n\n"
    there.answer(ScriptedAnswer([*events, end], headers=EVENT_STREAM))
    client = await there.call(chat(stream=True) if hidden else asking())
    settlement = there.settlement()
    assert (settlement.outcome, settlement.usage_source) == ("completed", "reported")
    assert client.content == b"".join(events[:-1] if hidden else events) + end


async def test_speech_passes_as_it_is_and_is_charged_by_what_was_asked_for(there: World) -> None:
    await connect_all(there)
    sound = bytes(range(256)) * 40
    body = {"model": "tts-1", "input": "Hello there.", "voice": "alloy"}
    there.answer(ScriptedAnswer(cut(sound, 1_000), headers=((b"Content-Type", b"audio/mpeg"),)))
    client = await there.call(body, path="/v1/audio/speech")
    assert (client.content, client.ended) == (sound, True)
    settlement = there.settlement()
    assert (settlement.outcome, settlement.usage_source, settlement.usage) == (
        "completed",
        "counted",
        {"characters": 12},
    )


async def test_speech_that_breaks_off_is_a_part_and_charged_all_the_same(there: World) -> None:
    await connect_all(there)
    body = {"model": "tts-1", "input": "Hello there.", "voice": "alloy"}
    there.answer(ScriptedAnswer([b"ID3", UnavailableError("cut")], headers=((b"Content-Type", b"audio/mpeg"),)))
    client = await there.call(body, path="/v1/audio/speech")
    assert client.status == 502
    settlement = there.settlement()
    assert (settlement.outcome, settlement.usage) == ("partial", {"characters": 12})


async def test_our_comment_is_for_event_streams_only(there: World) -> None:
    """A JSON array with a comment after it would be no JSON any more, and lines no lines."""
    await connect_all(there)
    array = google.array_stream(google.chunks(google.generated()))
    path, body = GOOD["google"]
    there.answer(ScriptedAnswer(array, headers=JSON))
    client = await there.call(
        orjson.loads(body), path=path.replace("generate", "streamGenerate"), x_spend_trailer="true"
    )
    assert client.content == b"".join(array)
    json.loads(client.content)
    lines = cohere.stream_v1()
    there.answer(ScriptedAnswer(lines, headers=((b"Content-Type", b"application/stream+json"),)))
    asked = {"model": MODEL, "message": "Hi", "stream": True, "max_tokens": 100}
    client = await there.call(asked, path="/v1/chat", x_spend_trailer="true")
    assert client.content == b"".join(lines)
    there.answer(ScriptedAnswer(stream_events(), headers=EVENT_STREAM))
    client = await there.call(asking(model=MODEL), x_spend_trailer="true")
    assert b"\n\n: spend {" in client.content


async def test_a_broken_array_is_cut_and_not_ended(there: World) -> None:
    await connect_all(there)
    first, *_ = google.array_stream(google.chunks(google.generated()))
    path, body = GOOD["google"]
    there.answer(ScriptedAnswer([first, b"\n\n", UnavailableError("cut")], headers=JSON))
    client = await there.call(orjson.loads(body), path=path.replace("generate", "streamGenerate"))
    assert client.content == first + b"\n\n"
    assert not client.ended
    assert there.settlement().outcome == "partial"


async def test_a_client_may_hang_up_at_any_byte(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was consumed is settled: whole events by their text, half of one by no more than its bytes."""
    monkeypatch.setattr(Timing, "unseen_ms", lambda _: 0)
    events = stream_events()
    data = b"".join(events)
    ends = [sum(map(len, events[:count])) for count in range(len(events) + 1)]
    costs: dict[int, int] = {}
    for at in sorted({*range(0, len(data), 29), *ends}):
        here = asyncio.Event()
        there.answer(ScriptedAnswer([*cut(data[:at], 1), here], headers=EVENT_STREAM))
        client = Client(body=(orjson.dumps(asking()),))
        calling = there.start(client)
        await client.answered.wait()
        while len(client.content) < at:
            client.sent.clear()
            await client.sent.wait()
        client.hang_up()
        await asyncio.wait_for(calling, 5)
        settlement = there.events()[-1]
        assert isinstance(settlement, Settlement)
        assert settlement.outcome == "partial"
        assert 0 < settlement.cost_nano <= settlement.held_nano, "the prompt was read at least"
        begun = max(end for end in ends if end <= at)
        if begun == at:
            costs[at] = settlement.cost_nano
        elif settlement.usage_source == "estimated":
            assert settlement.cost_nano <= costs[begun] + (at - begun) * 600
    whole = list(costs.values())
    # Reported in the event before the last: 13 at $0.15 and 2 at $0.60 a million.
    assert whole[-2:] == [13 * 150 + 2 * 600] * 2
    assert whole[:-2] == sorted(whole[:-2])
    assert whole[-3] == whole[0] + len("Hello there") * 600
