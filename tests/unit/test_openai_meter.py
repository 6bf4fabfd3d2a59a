"""Metering OpenAI's answers: JSON and streams, whole and broken, plain and compressed."""

import zlib
from typing import Any

import orjson
import pytest

from services.gateway.vendors import Dialect, Metered, RequestFacts
from services.gateway.vendors.openai import OpenAIDialect
from tests.support.openai_answers import RATE_LIMITED, chunks, completion, dump, events, text_deltas, usage

DIALECT: Dialect = OpenAIDialect()
JSON = {b"content-type": b"application/json"}
EVENT_STREAM = {b"content-type": b"text/event-stream; charset=utf-8"}


def body_of(**fields: Any) -> bytes:
    return orjson.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}], **fields})


def read(body: bytes) -> RequestFacts:
    return DIALECT.read_request("chat.completions", body)


def metered(facts: RequestFacts, status: int, headers: dict[bytes, bytes], *pieces: bytes) -> tuple[bytes, Metered]:
    meter = DIALECT.meter(facts, status, headers)
    passed_on = b"".join([meter.feed(piece) for piece in pieces])
    rest, answer = meter.finish()
    return passed_on + rest, answer


def test_a_json_answer_is_metered_and_goes_on_at_once() -> None:
    body = dump(completion(used=usage(2006, 300, cached=1920, reasoning=128)))
    meter = DIALECT.meter(read(body_of()), 200, JSON)
    assert [meter.feed(body[:50]), meter.feed(body[50:])] == [body[:50], body[50:]]
    rest, answer = meter.finish()
    assert rest == b""
    assert answer.complete
    assert answer.source == "reported"
    assert (answer.usage["input_tokens"], answer.usage["cache_read_tokens"]) == (2006, 1920)
    assert (answer.usage["output_tokens"], answer.usage["reasoning_tokens"]) == (300, 128)


def test_a_json_answer_to_a_streaming_request_is_read_as_json() -> None:
    text = "data: [DONE]\n\ndata: {}\n\n"
    body = dump(completion(text=text, used=usage(5, 6)))
    passed_on, answer = metered(read(body_of(stream=True)), 200, JSON, body)
    assert passed_on == body
    assert (answer.usage["input_tokens"], answer.usage["output_tokens"]) == (5, 6)


def test_a_stream_is_passed_on_event_by_event_without_its_usage_chunk() -> None:
    pieces = events(chunks(text_deltas("Hel", "lo"), used=usage(11, 2)))
    facts = read(body_of(stream=True))
    meter = DIALECT.meter(facts, 200, EVENT_STREAM)
    assert [meter.feed(piece) for piece in pieces] == [*pieces[:-2], b"", pieces[-1]]
    rest, answer = meter.finish()
    assert rest == b""
    assert answer == Metered(answer.usage, "reported", complete=True)
    assert answer.usage["input_tokens"] == 11
    # Only an event that is not over yet waits.
    meter = DIALECT.meter(facts, 200, EVENT_STREAM)
    assert meter.feed(pieces[0] + pieces[1][:20]) == pieces[0]
    assert meter.feed(pieces[1][20:]) == pieces[1]
    assert meter.feed(pieces[2][:9]) == b""
    assert meter.finish()[0] == pieces[2][:9]


def test_a_client_that_asked_for_usage_gets_every_byte_at_once() -> None:
    pieces = events(chunks(text_deltas("Hello"), used=usage(11, 2)))
    meter = DIALECT.meter(read(body_of(stream=True, stream_options={"include_usage": True})), 200, EVENT_STREAM)
    halves = [half for piece in pieces for half in (piece[:30], piece[30:])]
    assert [meter.feed(half) for half in halves] == halves
    assert meter.finish()[1].usage["output_tokens"] == 2


def test_missing_usage_is_estimated_from_what_was_seen_and_says_so() -> None:
    facts = read(body_of(stream=True))
    _, answer = metered(facts, 200, EVENT_STREAM, *events(chunks(text_deltas("Hel", "lo"))))
    assert answer == Metered({"input_tokens": facts.input_tokens_bound, "output_tokens": 5}, "estimated", complete=True)
    limited = read(body_of(stream=True, max_tokens=1, n=2))
    _, answer = metered(limited, 200, EVENT_STREAM, *events(chunks(text_deltas("Hel", "lo"))))
    assert answer.usage["output_tokens"] == 2


def test_a_stream_that_breaks_off_is_partial() -> None:
    pieces = events(chunks(text_deltas("Hel", "lo"), used=usage()))
    _, answer = metered(read(body_of(stream=True)), 200, EVENT_STREAM, *pieces[:2])
    assert (answer.source, answer.complete, answer.usage["output_tokens"]) == ("estimated", False, 3)


@pytest.mark.parametrize("status", [301, 400, 401, 429, 500, 503])
def test_a_refusal_of_the_vendor_costs_nothing(status: int) -> None:
    body = dump({**RATE_LIMITED, "usage": usage()})
    assert metered(read(body_of()), status, JSON, body) == (body, Metered({}, "none", complete=True))


@pytest.mark.parametrize(("encoding", "wbits"), [(b"gzip", 31), (b"deflate", 15), (b"x-gzip", 31), (b" GZIP ", 31)])
def test_compressed_answers_are_read_but_not_changed(encoding: bytes, wbits: int) -> None:
    packer = zlib.compressobj(wbits=wbits)
    body = packer.compress(dump(completion(text="long " * 100_000, used=usage(5, 6)))) + packer.flush()
    pieces = [body[at : at + 100] for at in range(0, len(body), 100)]
    passed_on, answer = metered(read(body_of()), 200, JSON | {b"content-encoding": encoding}, *pieces)
    assert passed_on == body
    assert (answer.usage["input_tokens"], answer.source, answer.complete) == (5, "reported", True)


@pytest.mark.parametrize("encoding", [b"br", b"zstd", b"gzip, gzip", b"gzip"])
def test_what_can_not_be_decoded_is_estimated_from_its_bytes(encoding: bytes) -> None:
    facts = read(body_of())
    passed_on, answer = metered(facts, 200, JSON | {b"content-encoding": encoding}, b"\x00" * 60, b"\x01" * 40)
    assert passed_on == b"\x00" * 60 + b"\x01" * 40
    expected = {"input_tokens": facts.input_tokens_bound, "output_tokens": 100}
    assert answer == Metered(expected, "estimated", complete=False)


def test_a_stream_without_a_content_type_is_known_by_its_request() -> None:
    pieces = events(chunks(text_deltas("Hello"), used=usage(11, 2)))
    assert metered(read(body_of(stream=True)), 200, {}, *pieces)[1].usage["input_tokens"] == 11
