"""However a stream is cut or framed, what is read from it is the same, and so are the bytes that go on."""

import gzip
import json
import zlib
from itertools import pairwise
from typing import Any

import brotli
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from services.core.estimate import Demand
from services.core.usage.framing import Frame, splitter_for
from services.core.usage.openai_chat import ChatShape
from services.gateway.meter import Metered, meter_for
from services.gateway.vendors import RequestFacts
from tests.support.vendors.openai import chunks, dump, text_deltas, tool_deltas, usage

EVENT_STREAM = {b"content-type": b"text/event-stream; charset=utf-8"}
USAGE_EVENT = b"data: " + dump(chunks([], used=usage(21, 8, cached=4))[-1])
BOM = b"\xef\xbb\xbf"

line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
cuts = st.sets(st.integers(0, 5000), max_size=30)
texts = st.text(st.sampled_from('ab{}[]",:\\\n\r\t é👋 \u2028'), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**12) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)
objects = st.dictionaries(texts, values, max_size=4)


def cut(data: bytes, places: set[int]) -> list[bytes]:
    marks = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(marks)]


# ---- frames ---------------------------------------------------------------------------------------------------------


def frames_of(kind: Any, pieces: list[bytes]) -> list[Frame]:
    splitter = splitter_for(kind)
    frames = [frame for piece in pieces for frame in splitter.feed(piece)]
    return [*frames, splitter.finish()]


def values_of(frames: list[Frame]) -> list[Any]:
    return [json.loads(frame.data) for frame in frames if frame.data is not None]


@st.composite
def event_streams(draw: st.DrawFn) -> tuple[list[Any], bytes]:
    """JSON values, and a stream of them in some framing: line ends, data lines, comments, names, blank lines, a BOM."""
    sent = draw(st.lists(objects, max_size=5))
    stream = BOM * draw(st.booleans())
    for value in sent:
        end = draw(line_ends)
        # Where JSON has a line end, data may go on in a line of its own.
        text = json.dumps(value, ensure_ascii=False, indent=draw(st.sampled_from([None, 1]))).encode()
        noise = st.lists(st.sampled_from([b": a comment", b"id: 7", b"retry: 10", b"event: message"]), max_size=2)
        lines = draw(noise)
        for line in text.split(b"\n"):
            lines += [b"data:" + b" " * draw(st.integers(0, 1)) + line, *draw(noise)]
        stream += end.join([*lines, b"", b""])
        for _ in range(draw(st.integers(0, 1))):
            stream += draw(st.sampled_from([end, b": ping" + end * 2, b"event: ping" + end * 2]))
    return sent, stream[: -len(end)] if sent and stream.endswith(end * 2) and draw(st.booleans()) else stream


@given(made=event_streams(), places=cuts)
def test_events_hold_the_same_data_in_any_framing_and_cut(made: tuple[list[Any], bytes], places: set[int]) -> None:
    sent, stream = made
    frames = frames_of("sse", cut(stream, places))
    assert values_of(frames) == sent
    assert b"".join(frame.raw for frame in frames) == stream


@given(sent=st.lists(objects, max_size=5), indent=st.sampled_from([None, 2]), data=st.data(), places=cuts)
def test_elements_hold_the_same_data_in_any_framing_and_cut(
    sent: list[Any], indent: int | None, data: st.DataObject, places: set[int]
) -> None:
    comma = st.sampled_from([b",", b",\r\n", b"\n,\r\n", b" , "])
    stream = b"["
    for place, value in enumerate(sent):
        stream += (data.draw(comma) if place else b"") + json.dumps(value, ensure_ascii=False, indent=indent).encode()
    stream += data.draw(st.sampled_from([b"]", b"\n]\n", b""]))
    frames = frames_of("json_array", cut(stream, places))
    assert values_of(frames) == sent
    assert b"".join(frame.raw for frame in frames) == stream


@given(sent=st.lists(objects, max_size=5), data=st.data(), places=cuts)
def test_lines_hold_the_same_data_in_any_framing_and_cut(
    sent: list[Any], data: st.DataObject, places: set[int]
) -> None:
    end = st.sampled_from([b"\n", b"\r\n", b"\n\n", b" \r\n\r\n"])
    stream = b"".join(json.dumps(value).encode() + data.draw(end) for value in sent)
    stream = stream.rstrip() if data.draw(st.booleans()) else stream
    frames = frames_of("lines", cut(stream, places))
    assert values_of(frames) == sent
    assert b"".join(frame.raw for frame in frames) == stream


MARKS = (b"\r", b"\n", b"data:", b" ", b"x", b":", BOM, b"event:", b"{", b"}", b"[", b"]", b'"', b"\\", b",")
noisy = st.lists(st.sampled_from(MARKS)).map(b"".join)


@pytest.mark.parametrize("kind", ["sse", "json_array", "lines"])
@given(stream=noisy, places=cuts)
def test_any_bytes_give_the_same_frames_in_any_cut(kind: str, stream: bytes, places: set[int]) -> None:
    frames = frames_of(kind, cut(stream, places))
    assert b"".join(frame.raw for frame in frames) == stream
    whole = frames_of(kind, [stream])
    # An end that may go on (a CR at the end of a chunk) is settled by the next byte, so only then is it known.
    assert [frame for frame in frames if frame.raw] == [frame for frame in whole if frame.raw]


# ---- the meter ------------------------------------------------------------------------------------------------------


def facts(*, hide: bool) -> RequestFacts:
    return RequestFacts("gpt-4o", True, Demand(100, None), ChatShape(), b"", hide_usage_chunk=hide)


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
    lines += draw(st.lists(st.sampled_from([b"data: [DONE]", b"data:[DONE]", b"data: [DONE]  \t"]), max_size=1))
    stream = []
    for place, event in enumerate(lines):
        end = draw(line_ends)
        bom = BOM if place == 0 and draw(st.booleans()) else b""
        stream.append(bom + event.replace(b"\n", end) + end + end)
    return stream


def metered(pieces: list[bytes], request: RequestFacts, headers: dict[bytes, bytes]) -> tuple[bytes, Metered]:
    meter = meter_for(request, 200, headers)
    passed_on = b"".join([meter.feed(piece) for piece in pieces])
    rest, answer = meter.finish()
    return passed_on + rest, answer


@given(stream=events(), places=cuts)
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


@given(stream=events())
def test_hiding_takes_out_the_usage_chunk_and_nothing_else(stream: list[bytes]) -> None:
    passed_on, _ = metered([b"".join(stream)], facts(hide=True), EVENT_STREAM)
    assert passed_on.replace(b"\r", b"\n").count(b'"choices":[]') == 0
    wanted = [event for event in stream if USAGE_EVENT not in event]
    # Line ends between events may belong to either neighbour; nothing else may differ.
    assert passed_on.replace(b"\r", b"").replace(b"\n", b"") == b"".join(wanted).replace(b"\r", b"").replace(b"\n", b"")


ENCODERS = {
    b"gzip": lambda data: gzip.compress(data, mtime=0),
    b"deflate": zlib.compress,
    b"br": brotli.compress,
    b"zstd": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("encoding", ENCODERS)
@given(stream=events(), places=cuts, hide=st.booleans())
def test_a_compressed_stream_is_metered_and_goes_on_as_it_is(
    encoding: bytes, stream: list[bytes], places: set[int], hide: bool
) -> None:
    packed = ENCODERS[encoding](b"".join(stream))
    headers = EVENT_STREAM | {b"content-encoding": encoding}
    passed_on, answer = metered(cut(packed, places), facts(hide=hide), headers)
    assert passed_on == packed
    assert (answer.usage["input_tokens"], answer.usage["output_tokens"], answer.source) == (21, 8, "reported")


@given(
    data=st.binary(max_size=300) | noisy,
    places=cuts,
    hide=st.booleans(),
    encoding=st.sampled_from([b"", b"identity", *ENCODERS, b"gzip, br", b"compress"]),
)
def test_any_bytes_at_all_go_on_unchanged(data: bytes, places: set[int], hide: bool, encoding: bytes) -> None:
    headers = EVENT_STREAM | {b"content-encoding": encoding}
    passed_on, answer = metered(cut(data, places), facts(hide=hide), headers)
    assert passed_on == data
    assert answer.source == "estimated"
