"""However a Cohere stream is cut and framed, the same usage is read off it and the same bytes go on."""

from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.vendors.cohere import CohereDialect
from tests.property.test_anthropic_streams import corpus_streams, cuts, read, reframed

SHAPES = CohereDialect.shapes
NAMES = (
    "type", "event_type", "delta", "message", "usage", "meta", "billed_units", "input_tokens", "output_tokens",
    "response", "finish_reason", "content", "text", "images", "image_tokens", "search_units",
)  # fmt: skip
KINDS = ("message-start", "content-delta", "message-end", "text-generation", "tool-calls-chunk", "stream-end")


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_chat_stream_reads_the_same_however_it_is_cut_and_framed(data: st.DataObject) -> None:
    stream = data.draw(st.sampled_from(corpus_streams("cohere", "chat")))
    shape = SHAPES["chat"].shape
    framed = data.draw(st.just(stream.encode()) | reframed(stream))
    assert read(shape, "sse", data.draw(cuts(framed))) == read(shape, "sse", [stream.encode()])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_v1_stream_reads_the_same_as_lines_and_as_events(data: st.DataObject) -> None:
    stream = data.draw(st.sampled_from(corpus_streams("cohere", "chat.v1")))
    shape = SHAPES["chat.v1"].shape
    expected = read(shape, "lines", [stream.encode()])
    line_end = data.draw(st.sampled_from(["\n", "\r\n", "\n\n"]))
    assert read(shape, "lines", data.draw(cuts(stream.replace("\n", line_end).encode()))) == expected
    events = "".join(f"data: {line}\n\n" for line in stream.splitlines())
    assert read(shape, "sse", data.draw(cuts(events.encode()))) == expected


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_chat_stream_cut_off_anywhere_reports_no_more_than_the_whole(data: st.DataObject) -> None:
    route = data.draw(st.sampled_from(["chat", "chat.v1"]))
    stream = data.draw(st.sampled_from(corpus_streams("cohere", route))).encode()
    answers = SHAPES[route]
    whole = read(answers.shape, answers.framing, [stream])
    cut = read(answers.shape, answers.framing, [stream[: data.draw(st.integers(0, len(stream)))]])
    assert cut.usage in ({}, whole.usage)
    assert cut.complete is (whole.complete and cut.usage == whole.usage)


any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.sampled_from(KINDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KINDS), any_json), max_size=4))
def test_no_event_breaks_the_readers(events: list[tuple[str, Any]]) -> None:
    for route, answers in SHAPES.items():
        name = "event_type" if route == "chat.v1" else "type"
        bodies = [
            {"delta": value, "response": value, "message": value, "meta": value, name: kind} for kind, value in events
        ]
        pieces = [orjson.dumps(body) + b"\n" for body in bodies if _fits(body)]
        reading = read(answers.shape, "lines", pieces)
        assert all(count >= 0 for count in reading.usage.values())
        for body in bodies:
            assert all(count >= 0 for count in answers.shape.whole(body).usage.values())


def _fits(body: object) -> bool:
    try:
        orjson.dumps(body)
    except orjson.JSONEncodeError:  # an integer of more than 64 bits
        return False
    return True
