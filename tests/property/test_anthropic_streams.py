"""However an Anthropic stream is cut and framed, the same usage is read off it and the same bytes go on."""

import json
from pathlib import Path
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.usage.reading import AnswerShape, Framing, Reading, StreamReader
from services.gateway.vendors.anthropic import AnthropicDialect

SHAPES = AnthropicDialect.shapes


def corpus_streams(vendor: str, route: str) -> list[str]:
    """The streams of a corpus file, each whole."""
    path = Path(__file__).parents[1] / "golden" / "answers" / vendor / f"{route}.json"
    return ["".join(case["stream"]) for case in json.loads(path.read_text()) if "stream" in case]


def read(shape: AnswerShape, framing: Framing, pieces: list[bytes]) -> Reading:
    """The reading of a stream in pieces; what is handed on must be what came in."""
    reader = StreamReader(shape, framing, orjson.loads)
    passed = [raw for piece in pieces for raw, _ in reader.feed(piece)]
    rest, _, reading = reader.finish()
    assert b"".join([*passed, rest]) == b"".join(pieces)
    return reading


@st.composite
def cuts(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """The data in pieces, cut at any bytes."""
    places = sorted(draw(st.sets(st.integers(0, len(data)), max_size=12)))
    return [data[begin:end] for begin, end in zip([0, *places], [*places, len(data)], strict=True)]


@st.composite
def reframed(draw: st.DrawFn, stream: str) -> bytes:
    """The events of a stream, framed otherwise: other line ends, comments, ids, data in many lines, a BOM."""
    events = []
    for event in stream.replace("\r\n", "\n").split("\n\n"):
        lines = []
        for line in event.split("\n"):
            lines += draw(
                st.lists(st.sampled_from([": keep-alive", "id: 7", "retry: 3000", "data-like: x"]), max_size=2)
            )
            if line.startswith("data: {") and draw(st.booleans()):
                lines += ["data: {", "data:" + draw(st.sampled_from(["", " "])) + line.removeprefix("data: {")]
            elif line:
                lines.append(line)
        end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
        events.append("".join(line + end for line in lines) + end)
    bom = "\ufeff" if draw(st.booleans()) else ""
    return (bom + "".join(events)).encode()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_messages_stream_reads_the_same_however_it_is_cut(data: st.DataObject) -> None:
    stream = data.draw(st.sampled_from(corpus_streams("anthropic", "messages"))).encode()
    shape = SHAPES["messages"].shape
    assert read(shape, "sse", data.draw(cuts(stream))) == read(shape, "sse", [stream])


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_messages_stream_reads_the_same_however_it_is_framed(data: st.DataObject) -> None:
    stream = data.draw(st.sampled_from(corpus_streams("anthropic", "messages")))
    shape = SHAPES["messages"].shape
    framed = data.draw(reframed(stream))
    assert read(shape, "sse", data.draw(cuts(framed))) == read(shape, "sse", [stream.encode()])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_results_read_the_same_however_they_are_cut(data: st.DataObject) -> None:
    stream = data.draw(st.sampled_from(corpus_streams("anthropic", "messages.batches.results"))).encode()
    shape = SHAPES["messages.batches.results"].shape
    framed = data.draw(st.sampled_from([stream, stream.replace(b"\n", b"\r\n"), stream.replace(b"\n", b"\n\n")]))
    assert read(shape, "lines", data.draw(cuts(framed))) == read(shape, "lines", [stream])


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_messages_stream_cut_off_anywhere_never_counts_more_than_the_whole(data: st.DataObject) -> None:
    stream = data.draw(st.sampled_from(corpus_streams("anthropic", "messages"))).encode()
    shape = SHAPES["messages"].shape
    whole = read(shape, "sse", [stream])
    cut = read(shape, "sse", [stream[: data.draw(st.integers(0, len(stream)))]])
    assert all(count <= whole.usage[name] for name, count in cut.usage.items())
    # Either the vendor had reported its output by then, or it is left to be estimated.
    if "output_tokens" in cut.usage and not cut.complete:
        assert cut.usage["output_tokens"] <= whole.usage["output_tokens"]


NAMES = (
    "type", "usage", "message", "delta", "iterations", "cache_creation", "input_tokens", "output_tokens", "content",
    "cache_creation_input_tokens", "ephemeral_1h_input_tokens", "content_block", "error", "result", "server_tool_use",
)  # fmt: skip
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=8,
)
KINDS = (
    "message_start", "message_delta", "message_stop", "content_block_start", "content_block_delta", "error",
)  # fmt: skip
HOLDERS = ("message", "usage", "delta", "content_block", "error")
any_event = st.tuples(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(HOLDERS), any_json, max_size=3))


@settings(max_examples=100, deadline=None)
@given(st.lists(any_event, max_size=4))
def test_no_event_breaks_the_reader(events: list[tuple[str, dict[str, Any]]]) -> None:
    shape = SHAPES["messages"].shape
    pieces = [b"data: %s\n\n" % json.dumps({**value, "type": kind}).encode() for kind, value in events]
    reading = read(shape, "sse", pieces)
    assert all(count >= 0 for count in reading.usage.values())
    for _, value in events:
        for each in SHAPES.values():
            assert all(count >= 0 for count in each.shape.whole(value).usage.values())
