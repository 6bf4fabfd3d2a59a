"""However Mistral's streams are cut and framed, the reading is the same and so are the bytes that go on."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.usage.framing import event_fields
from services.core.usage.reading import Reading, StreamReader
from services.gateway.vendors.mistral import MistralDialect

CORPUS = Path(__file__).parents[1] / "golden" / "answers" / "mistral"
SHAPES = MistralDialect.shapes
CASES: list[tuple[str, dict[str, Any]]] = [
    (path.name.removesuffix(".json"), case)
    for path in sorted(CORPUS.glob("*.json"))
    for case in json.loads(path.read_text())
    if "stream" in case
]


def events_of(case: dict[str, Any]) -> list[tuple[str | None, str]]:
    text = "".join(case["stream"]).replace("\r\n", "\n")
    found = [event_fields(event.encode()) for event in text.split("\n\n")]
    return [(name, data.decode()) for name, data in found if data is not None]


def read(route: str, pieces: list[bytes]) -> tuple[Reading, bytes]:
    reader = StreamReader(SHAPES[route].shape, "sse", orjson.loads)
    passed = [raw for piece in pieces for raw, _ in reader.feed(piece)]
    rest, _, reading = reader.finish()
    return reading, b"".join([*passed, rest])


@st.composite
def streams(draw: st.DrawFn, events: list[tuple[str | None, str]]) -> bytes:
    """The same events with other line ends, spaces, comments, and data on many lines."""
    noise = st.sampled_from([": keep-alive", "id: 7", "retry: 3000"])
    stream = "\ufeff" if draw(st.booleans()) else ""
    for name, data in events:
        end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
        if data != "[DONE]":
            data = json.dumps(
                json.loads(data), indent=draw(st.sampled_from([None, 0, 2])), ensure_ascii=draw(st.booleans())
            )
        lines = draw(st.lists(noise, max_size=2))
        lines += [] if name is None else [f"event: {name}"]
        lines += ["data: " + line for line in data.split("\n")]
        stream += end.join(lines) + end + end
    if draw(st.booleans()):
        stream += draw(st.sampled_from(["\n", "\r\n\r\n", ": bye\n\n"]))
    return stream.encode()


def cut(data: bytes, places: set[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(edges)]


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from(CASES), st.sets(st.integers(0, 100_000), max_size=30))
def test_framing_and_cuts_change_nothing(
    data: st.DataObject, case: tuple[str, dict[str, Any]], places: set[int]
) -> None:
    route, expected = case
    stream = data.draw(streams(events_of(expected)))
    reading, passed = read(route, cut(stream, places))
    assert passed == stream
    assert (dict(reading.usage), reading.complete) == (expected["usage"], expected["complete"])


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(CASES), st.integers(0, 100_000))
def test_a_stream_cut_off_anywhere_claims_nothing_that_was_not_reported(
    case: tuple[str, dict[str, Any]], place: int
) -> None:
    route, expected = case
    stream = "".join(expected["stream"]).encode()
    at = place % (len(stream) + 1)
    reading, passed = read(route, [stream[:at]])
    assert passed == stream[:at]
    assert dict(reading.usage) in ({}, expected["usage"])
    assert reading.complete is False or expected["complete"]
