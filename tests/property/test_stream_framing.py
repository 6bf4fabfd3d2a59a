"""However a stream is cut, the usage read is the same and so are the bytes that go on."""

import gzip
from itertools import pairwise
from typing import Any

import orjson
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.gateway.vendors import Metered, RequestFacts
from services.gateway.vendors.openai import OpenAIDialect
from tests.support.openai_answers import chunks, dump, text_deltas, tool_deltas, usage

DIALECT = OpenAIDialect()
EVENT_STREAM = {b"content-type": b"text/event-stream; charset=utf-8"}
USAGE_EVENT = b"data: " + dump(chunks([], used=usage(21, 8, cached=4))[-1])

line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])


def facts(*, hide: bool) -> RequestFacts:
    request: dict[str, Any] = {"model": "gpt-4o", "stream": True, "messages": []}
    if not hide:
        request["stream_options"] = {"include_usage": True}
    read = DIALECT.read_request("chat.completions", orjson.dumps(request))
    assert read.hide_usage_chunk is hide
    return read


@st.composite
def events(draw: st.DrawFn) -> list[bytes]:
    """Events, each with its own line ends: real chunks, comments, multi-line data, blank lines, junk, a usage chunk."""
    answer = chunks(draw(st.sampled_from([text_deltas("Hel", "lo 👋"), tool_deltas()])), used=usage(21, 8, cached=4))
    noise = st.sampled_from(
        [
            b": keep-alive",
            b"event: ping\ndata: {}",
            b"data: not json",
            b"data: {\ndata: }",
            b"",
            b"\n",
            b"data",
            b"id: 7",
        ]
    )
    lines: list[bytes] = []
    for chunk in answer:
        lines += draw(st.lists(noise, max_size=2))
        lines.append(b"data: " + dump(chunk))
    lines += draw(st.lists(st.just(b"data: [DONE]"), max_size=1))
    stream = []
    for place, event in enumerate(lines):
        end = draw(line_ends)
        bom = b"\xef\xbb\xbf" if place == 0 and draw(st.booleans()) else b""
        stream.append(bom + event.replace(b"\n", end) + end + end)
    return stream


def cut(data: bytes, places: set[int]) -> list[bytes]:
    marks = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(marks)]


def metered(pieces: list[bytes], request: RequestFacts, headers: dict[bytes, bytes]) -> tuple[bytes, Metered]:
    meter = DIALECT.meter(request, 200, headers)
    passed_on = b"".join([meter.feed(piece) for piece in pieces])
    rest, answer = meter.finish()
    return passed_on + rest, answer


@settings(deadline=None)
@given(stream=events(), places=st.sets(st.integers(0, 5000), max_size=30))
@example(stream=[b"data: a\n\n", USAGE_EVENT + b"\r\n\r\n", b"data: [DONE]\n\n"], places=set(range(5000)))
@example(stream=[USAGE_EVENT + b"\r\r", b"data: [DONE]\n\n"], places=set(range(5000)))
def test_a_stream_may_be_cut_anywhere(stream: list[bytes], places: set[int]) -> None:
    whole = b"".join(stream)
    for hide in (False, True):
        request = facts(hide=hide)
        expected_bytes, expected = metered([whole], request, EVENT_STREAM)
        assert metered(cut(whole, places), request, EVENT_STREAM) == (expected_bytes, expected)
        assert expected.usage["input_tokens"] == 21
        assert expected.usage["cache_read_tokens"] == 4
        assert expected.source == "reported"
        assert expected.complete
        if not hide:
            assert expected_bytes == whole


@settings(deadline=None)
@given(stream=events())
def test_hiding_takes_out_the_usage_chunk_and_nothing_else(stream: list[bytes]) -> None:
    passed_on, _ = metered([b"".join(stream)], facts(hide=True), EVENT_STREAM)
    assert passed_on.replace(b"\r", b"\n").count(b'"choices":[]') == 0
    wanted = [event for event in stream if USAGE_EVENT not in event]
    # Line ends between events may belong to either neighbour; nothing else may differ.
    assert passed_on.replace(b"\r", b"").replace(b"\n", b"") == b"".join(wanted).replace(b"\r", b"").replace(b"\n", b"")


@settings(deadline=None)
@given(stream=events(), places=st.sets(st.integers(0, 2000), max_size=20), hide=st.booleans())
def test_a_compressed_stream_is_metered_and_goes_on_as_it_is(stream: list[bytes], places: set[int], hide: bool) -> None:
    packed = gzip.compress(b"".join(stream), mtime=0)
    passed_on, answer = metered(cut(packed, places), facts(hide=hide), EVENT_STREAM | {b"content-encoding": b"gzip"})
    assert passed_on == packed
    assert (answer.usage["input_tokens"], answer.usage["output_tokens"], answer.source) == (21, 8, "reported")


@settings(deadline=None)
@given(data=st.binary(max_size=300), places=st.sets(st.integers(0, 300), max_size=10), hide=st.booleans())
def test_any_bytes_at_all_go_on_unchanged(data: bytes, places: set[int], hide: bool) -> None:
    passed_on, answer = metered(cut(data, places), facts(hide=hide), EVENT_STREAM)
    assert passed_on == data
    assert answer.source == "estimated"
