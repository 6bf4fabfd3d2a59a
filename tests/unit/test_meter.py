"""Metering answers as they pass: JSON and streams, whole and broken, plain and compressed, and made to cost time."""

import gzip
import time
import tracemalloc
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace

import brotli
import pytest
import zstandard

from services.core.estimate import Demand
from services.core.usage.openai_chat import ChatShape
from services.gateway import meter as meters
from services.gateway.meter import Decoder, Metered, meter_for
from services.gateway.vendors import RequestFacts
from tests.support.vendors.framing import json_array, json_lines
from tests.support.vendors.openai import RATE_LIMITED, chunks, completion, dump, events, text_deltas, usage

JSON = {b"content-type": b"application/json"}
EVENT_STREAM = {b"content-type": b"text/event-stream; charset=utf-8"}
INPUT_BOUND = 100
PLAIN = RequestFacts("gpt-4o", False, Demand(INPUT_BOUND, None), ChatShape(), b"")
STREAM = replace(PLAIN, stream=True)
HIDING = replace(STREAM, hide_usage_chunk=True)
ANSWER = dump(completion(text="long " * 100_000, used=usage(5, 6)))


def metered(
    facts: RequestFacts, headers: Mapping[bytes, bytes], *pieces: bytes, status: int = 200
) -> tuple[bytes, Metered]:
    meter = meter_for(facts, status, headers)
    passed_on = b"".join([meter.feed(piece) for piece in pieces])
    rest, answer = meter.finish()
    return passed_on + rest, answer


def tokens(answer: Metered) -> tuple[int, int]:
    return answer.usage["input_tokens"], answer.usage["output_tokens"]


# ---- what is passed on, and when ------------------------------------------------------------------------------------


def test_a_json_answer_is_metered_and_goes_on_at_once() -> None:
    body = dump(completion(used=usage(2006, 300, cached=1920, reasoning=128)))
    meter = meter_for(PLAIN, 200, JSON)
    assert [meter.feed(body[:50]), meter.feed(body[50:])] == [body[:50], body[50:]]
    rest, answer = meter.finish()
    assert rest == b""
    assert answer.complete
    assert answer.source == "reported"
    assert tokens(answer) == (2006, 300)
    assert (answer.usage["cache_read_tokens"], answer.usage["reasoning_tokens"]) == (1920, 128)


def test_a_stream_is_passed_on_event_by_event_without_its_usage_chunk() -> None:
    pieces = events(chunks(text_deltas("Hel", "lo"), used=usage(11, 2)))
    meter = meter_for(HIDING, 200, EVENT_STREAM)
    assert [meter.feed(piece) for piece in pieces] == [*pieces[:-2], b"", pieces[-1]]
    rest, answer = meter.finish()
    assert rest == b""
    assert (tokens(answer), answer.source, answer.complete) == ((11, 2), "reported", True)
    # Only an event that is not over yet waits.
    meter = meter_for(HIDING, 200, EVENT_STREAM)
    assert meter.feed(pieces[0] + pieces[1][:20]) == pieces[0]
    assert meter.feed(pieces[1][20:]) == pieces[1]
    assert meter.feed(pieces[2][:9]) == b""
    assert meter.finish()[0] == pieces[2][:9]


def test_a_usage_chunk_at_the_very_end_is_hidden_without_its_blank_line() -> None:
    pieces = events(chunks(text_deltas("Hello"), used=usage(11, 2)))[:-1]
    whole = b"".join(pieces).rstrip(b"\n")
    passed_on, answer = metered(HIDING, EVENT_STREAM, whole)
    assert passed_on == b"".join(pieces[:-1])
    assert tokens(answer) == (11, 2)


def test_a_client_that_asked_for_usage_gets_every_byte_at_once() -> None:
    pieces = events(chunks(text_deltas("Hello"), used=usage(11, 2)))
    meter = meter_for(STREAM, 200, EVENT_STREAM)
    halves = [half for piece in pieces for half in (piece[:30], piece[30:])]
    assert [meter.feed(half) for half in halves] == halves
    assert meter.finish()[1].usage["output_tokens"] == 2


@pytest.mark.parametrize("status", [301, 400, 401, 429, 500, 503])
def test_a_refusal_of_the_vendor_costs_nothing(status: int) -> None:
    body = dump({**RATE_LIMITED, "usage": usage()})
    assert metered(PLAIN, JSON, body, status=status) == (body, Metered({}, "none", complete=True))


# ---- what an answer is, its content type says -----------------------------------------------------------------------


def test_a_json_body_that_contains_data_lines_is_not_a_stream() -> None:
    text = "data: [DONE]\n\ndata: {}\n\n"
    body = b"\n" + dump(completion(text=text, used=usage(5, 6)))
    for facts in (PLAIN, STREAM, HIDING):
        passed_on, answer = metered(facts, JSON, body)
        assert passed_on == body
        assert (tokens(answer), answer.complete) == ((5, 6), True)


@pytest.mark.parametrize(
    "kind", [b"text/event-stream", b"TEXT/Event-Stream;charset=utf-8", b" text/event-stream ; x=y"]
)
def test_a_stream_that_nobody_asked_for_is_read_as_one(kind: bytes) -> None:
    pieces = events(chunks(text_deltas("Hello"), used=usage(11, 2)))
    assert tokens(metered(PLAIN, {b"content-type": kind}, *pieces)[1]) == (11, 2)


def test_a_stream_without_a_content_type_is_known_by_its_request() -> None:
    pieces = events(chunks(text_deltas("Hello"), used=usage(11, 2)))
    assert tokens(metered(STREAM, {}, *pieces)[1]) == (11, 2)
    body = dump(completion(used=usage(5, 6)))
    assert tokens(metered(PLAIN, {}, body)[1]) == (5, 6)


def test_a_type_that_only_begins_like_a_stream_is_none() -> None:
    body = dump(completion(used=usage(5, 6)))
    assert tokens(metered(PLAIN, {b"content-type": b"text/event-streams"}, body)[1]) == (5, 6)


def test_an_array_is_a_stream_though_its_type_is_json() -> None:
    values = chunks(text_deltas("Hello"), used=usage(11, 2))
    facts = replace(STREAM, framing="json_array")
    assert tokens(metered(facts, JSON, *json_array(values))[1]) == (11, 2)
    # Asked for as events after all, it comes so.
    assert tokens(metered(facts, EVENT_STREAM, *events(values))[1]) == (11, 2)


def test_lines_are_a_stream_unless_the_answer_is_one_json_body() -> None:
    facts = replace(STREAM, framing="lines")
    values = chunks(text_deltas("Hello"), used=usage(11, 2))
    for kind in (b"application/x-ndjson", b"application/stream+json", b"text/plain"):
        assert tokens(metered(facts, {b"content-type": kind}, *json_lines(values))[1]) == (11, 2)
    assert tokens(metered(facts, JSON, dump(completion(used=usage(5, 6))))[1]) == (5, 6)


# ---- what is missing ------------------------------------------------------------------------------------------------


def test_missing_usage_is_estimated_from_what_was_seen_and_says_so() -> None:
    pieces = events(chunks(text_deltas("Hel", "lo")))
    _, answer = metered(HIDING, EVENT_STREAM, *pieces)
    assert (tokens(answer), answer.source, answer.complete) == ((INPUT_BOUND, 5), "estimated", True)
    limited = replace(HIDING, demand=Demand(INPUT_BOUND, 1, choices=2))
    assert tokens(metered(limited, EVENT_STREAM, *pieces)[1]) == (INPUT_BOUND, 2)


def test_a_stream_that_breaks_off_is_partial() -> None:
    pieces = events(chunks(text_deltas("Hel", "lo"), used=usage()))
    _, answer = metered(STREAM, EVENT_STREAM, *pieces[:2])
    assert (answer.source, answer.complete, answer.usage["output_tokens"]) == ("estimated", False, 3)


def test_a_body_that_breaks_off_counts_by_its_bytes() -> None:
    body = dump(completion(used=usage(5, 6)))[:-1]
    _, answer = metered(PLAIN, JSON, body)
    assert (tokens(answer), answer.source, answer.complete) == ((INPUT_BOUND, len(body)), "estimated", False)


def test_an_event_that_is_no_object_counts_by_its_bytes() -> None:
    _, answer = metered(STREAM, EVENT_STREAM, b'data: "Hello"\n\n', b"data: [1]\n\n", b"data: nope\n\n")
    assert answer.usage["output_tokens"] == len(b'"Hello"[1]nope')


def test_a_count_that_the_request_settles_is_not_overruled_by_nothing() -> None:
    class Spoken(ChatShape):
        needed = ()  # type: ignore[assignment]

    facts = replace(PLAIN, counted={"characters": 12}, shape=Spoken())
    _, answer = metered(facts, {b"content-type": b"audio/mpeg"}, b"\xff\xfb" * 100)
    assert (answer.usage, answer.source) == ({"characters": 12}, "counted")


# ---- content encodings ----------------------------------------------------------------------------------------------


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def in_parts(pack: Callable[[bytes], bytes], parts: int) -> Callable[[bytes], bytes]:
    def packed(data: bytes) -> bytes:
        step = len(data) // parts + 1
        return b"".join(pack(data[at : at + step]) for at in range(0, len(data), step))

    return packed


zstd = zstandard.ZstdCompressor().compress
ENCODINGS: list[tuple[bytes, Callable[[bytes], bytes]]] = [
    (b"gzip", gzip.compress),
    (b"x-gzip", gzip.compress),
    (b" GZIP ", gzip.compress),
    (b"identity, gzip", gzip.compress),
    (b"gzip", in_parts(gzip.compress, 7)),
    (b"gzip", lambda data: gzip.compress(b"") + gzip.compress(data) + gzip.compress(b"")),
    (b"deflate", zlib.compress),
    (b"deflate", raw_deflate),
    (b"br", brotli.compress),
    (b"zstd", zstd),
    (b"zstd", in_parts(zstd, 7)),
]


@pytest.mark.parametrize("step", [1, 100, 1_000_000])
@pytest.mark.parametrize(("encoding", "pack"), ENCODINGS)
def test_compressed_answers_are_read_but_not_changed(
    encoding: bytes, pack: Callable[[bytes], bytes], step: int
) -> None:
    body = pack(ANSWER)
    pieces = [body[at : at + step] for at in range(0, len(body), step)]
    passed_on, answer = metered(PLAIN, JSON | {b"content-encoding": encoding}, *pieces)
    assert passed_on == body
    assert (tokens(answer), answer.source, answer.complete) == ((5, 6), "reported", True)


@pytest.mark.parametrize(("encoding", "pack"), ENCODINGS)
def test_every_byte_comes_out_however_full_the_last_step_is(encoding: bytes, pack: Callable[[bytes], bytes]) -> None:
    for size in (65_535, 65_536, 65_537, 131_072, 300_000):
        data = b"x" * size
        out: list[bytes] = []
        decoder = Decoder({b"content-encoding": encoding}, out.append)
        decoder.feed(pack(data))
        assert b"".join(out) == data
        assert decoder.unread_bytes == 0
        assert max(map(len, out)) <= 2 * 65_536


@pytest.mark.parametrize("encoding", [b"br", b"zstd", b"gzip", b"deflate", b"gzip, br", b"br,gzip", b"compress", b"*"])
def test_what_can_not_be_decoded_is_estimated_from_its_bytes(encoding: bytes) -> None:
    pieces = (b"\x07" * 60, b"\x01" * 40)
    passed_on, answer = metered(PLAIN, JSON | {b"content-encoding": encoding}, *pieces)
    assert passed_on == b"".join(pieces)
    assert (tokens(answer), answer.source, answer.complete) == ((INPUT_BOUND, 100), "estimated", False)


@pytest.mark.parametrize(("encoding", "pack"), ENCODINGS)
def test_a_compressed_answer_that_breaks_off_is_partial(encoding: bytes, pack: Callable[[bytes], bytes]) -> None:
    body = pack(ANSWER)
    half = body[: len(body) // 2]
    passed_on, answer = metered(PLAIN, JSON | {b"content-encoding": encoding}, half)
    assert passed_on == half
    assert (answer.usage["input_tokens"], answer.source, answer.complete) == (INPUT_BOUND, "estimated", False)


def test_what_follows_a_fault_counts_by_its_bytes_and_what_came_before_is_read() -> None:
    pieces = events(chunks(text_deltas("Hel", "lo"), used=usage(11, 2)))
    packed = gzip.compress(b"".join(pieces))
    _, answer = metered(STREAM, EVENT_STREAM | {b"content-encoding": b"gzip"}, packed, b"\x00" * 50, b"\x00" * 7)
    assert (tokens(answer), answer.source, answer.complete) == ((11, 2), "reported", True)
    _, answer = metered(
        STREAM, EVENT_STREAM | {b"content-encoding": b"gzip"}, gzip.compress(b"".join(pieces[:2])), b"\x07" * 50
    )
    assert answer.usage["output_tokens"] == 3 + 50


def test_a_compressed_stream_goes_on_whole_even_when_usage_was_to_be_hidden() -> None:
    packed = gzip.compress(b"".join(events(chunks(text_deltas("Hello"), used=usage(11, 2)))))
    passed_on, answer = metered(HIDING, EVENT_STREAM | {b"content-encoding": b"gzip"}, packed)
    assert passed_on == packed
    assert tokens(answer) == (11, 2)


BOMB_BYTES = 50_000_000
BOMBS: list[tuple[bytes, Callable[[], bytes]]] = [
    (b"gzip", lambda: gzip.compress(bytes(BOMB_BYTES), 6)),
    (b"br", lambda: brotli.compress(bytes(BOMB_BYTES), quality=2)),
    (b"zstd", lambda: zstd(bytes(BOMB_BYTES))),
]


@pytest.mark.parametrize(("encoding", "bomb"), BOMBS)
@pytest.mark.parametrize("headers", [JSON, EVENT_STREAM])
def test_a_bomb_costs_neither_memory_nor_time(
    monkeypatch: pytest.MonkeyPatch, encoding: bytes, bomb: Callable[[], bytes], headers: dict[bytes, bytes]
) -> None:
    """What comes out ends soon after the most that is read; the rest goes on as it is, and counts by its bytes."""
    packed = bomb()
    most = 1_000_000
    monkeypatch.setattr(meters, "MAX_BODY_BYTES", most)
    monkeypatch.setattr("services.core.usage.reading.MAX_BODY_BYTES", most)
    monkeypatch.setattr("services.core.usage.framing.MAX_FRAME_BYTES", most)
    taken = 0

    def take(piece: bytes) -> None:
        nonlocal taken
        taken += len(piece)

    decoder = Decoder(headers | {b"content-encoding": encoding}, take)
    begun = time.process_time()
    decoder.feed(packed)
    assert time.process_time() - begun < 1
    assert most // 2 < taken <= most + 32 * len(packed)
    assert decoder.unread_bytes > 0
    tracemalloc.start()
    try:
        passed_on, answer = metered(STREAM, headers | {b"content-encoding": encoding}, packed)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A parser of JSON may ask for a dozen bytes for each byte of the text.
    assert peak < 20 * most + 2 * len(packed)
    assert passed_on == packed
    assert (answer.source, answer.complete) == ("estimated", False)


def test_a_thousand_empty_members_cost_no_time() -> None:
    pieces = [gzip.compress(b"") * 1000 for _ in range(200)]
    begun = time.process_time()
    _, answer = metered(PLAIN, JSON | {b"content-encoding": b"gzip"}, *pieces)
    assert time.process_time() - begun < 3
    assert answer.source == "estimated"


def test_a_zstd_window_beyond_what_http_allows_is_not_given_memory() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    packed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = packed.compress(ANSWER) + packed.flush()
    _, answer = metered(PLAIN, JSON | {b"content-encoding": b"zstd"}, body)
    assert (answer.source, answer.usage["output_tokens"]) == ("estimated", len(body))


# ---- how far a stream is --------------------------------------------------------------------------------------------


def test_a_stream_tells_how_much_text_there_can_be_so_far() -> None:
    pieces = events(chunks(text_deltas("Hel", "lö")))
    meter = meter_for(STREAM, 200, EVENT_STREAM)
    assert (meter.progress(), meter.so_far().usage) == ((0, 0), {})
    for piece in pieces[:3]:
        meter.feed(piece)
    assert meter.progress() == (6, 6)
    meter.feed(pieces[3][:10])
    assert meter.progress() == (16, 6), "what has no end yet may be text"
    meter.feed(pieces[3][10:])
    assert meter.progress() == (6, 6)


def test_summaries_of_thoughts_are_seen_and_are_none_of_its_own() -> None:
    meter = meter_for(STREAM, 200, EVENT_STREAM)
    meter.feed(b'data: {"choices":[{"index":0,"delta":{"reasoning":"Hm, well"}}]}\n\n')
    assert meter.progress() == (8, 0)
    meter.feed(b'data: {"choices":[{"index":0,"delta":{"content":"Yes"}}]}\n\n')
    assert meter.progress() == (11, 3)


def test_what_cannot_be_read_is_seen_in_full() -> None:
    packed = gzip.compress(b"".join(events(chunks(text_deltas("Hello")))))
    meter = meter_for(STREAM, 200, {**EVENT_STREAM, b"content-encoding": b"compress"})
    meter.feed(packed)
    assert meter.progress() == (len(packed), 0)
    meter.feed(b"data: {" * 10)
    assert meter.progress() == (len(packed) + 70, 0)


@pytest.mark.parametrize(("status", "headers"), [(200, JSON), (404, EVENT_STREAM)])
def test_what_is_no_stream_tells_nothing_before_its_end(status: int, headers: Mapping[bytes, bytes]) -> None:
    meter = meter_for(PLAIN, status, headers)
    meter.feed(dump(completion(used=usage(5, 6))))
    assert (meter.progress(), meter.so_far().usage) == ((0, 0), {})


def test_reports_are_there_as_they_come() -> None:
    meter = meter_for(STREAM, 200, EVENT_STREAM)
    meter.feed(b'data: {"choices":[{"index":0,"delta":{"content":"Yes"}}],"usage":{"completion_tokens":2}}\n\n')
    assert meter.so_far().usage == {"output_tokens": 2}
    assert not meter.so_far().complete


@pytest.mark.parametrize(
    ("framing", "pieces"),
    [("json_array", json_array([{"a": "x" * 50}, {"b": "y" * 50}])), ("lines", json_lines([{"a": "x" * 50}] * 2))],
)
def test_every_framing_tells_what_waits_for_its_end(framing: str, pieces: list[bytes]) -> None:
    facts = replace(STREAM, framing=framing)  # type: ignore[arg-type]
    meter = meter_for(facts, 200, {})
    meter.feed(pieces[0][:20])
    assert meter.progress()[0] == 20
