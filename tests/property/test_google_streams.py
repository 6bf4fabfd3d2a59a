"""However Gemini's streams are cut and framed, the reading is the same and so are the bytes that go on."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.usage.framing import event_fields
from services.core.usage.google_generate import GenerateShape
from services.core.usage.reading import Framing, Reading, StreamReader

CORPUS = Path(__file__).parents[1] / "golden" / "answers" / "google" / "streamGenerateContent.json"
CASES: list[dict[str, Any]] = json.loads(CORPUS.read_text())


def values_of(case: dict[str, Any]) -> list[Any]:
    text = "".join(case["stream"])
    if case["framing"] == "json_array":
        return list(json.loads(text))
    datas = [event_fields(event.encode())[1] for event in text.replace("\r\n", "\n").split("\n\n")]
    return [json.loads(data) for data in datas if data is not None]


def cut(data: bytes, places: set[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(edges)]


def read(pieces: list[bytes], framing: Framing) -> tuple[Reading, bytes]:
    reader = StreamReader(GenerateShape(), framing, orjson.loads)
    passed = [raw for piece in pieces for raw, _ in reader.feed(piece)]
    rest, _, reading = reader.finish()
    return reading, b"".join([*passed, rest])


@st.composite
def events(draw: st.DrawFn, values: list[Any]) -> bytes:
    noise = st.sampled_from(["", ": keep-alive", "id: 7", "retry: 3000", "event: message"])
    stream = "\ufeff" if draw(st.booleans()) else ""
    for value in values:
        end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
        indent = draw(st.sampled_from([None, 0, 2]))
        colon = draw(st.sampled_from(["data: ", "data:"])) if indent != 2 else "data: "
        lines = [
            colon + line for line in json.dumps(value, indent=indent, ensure_ascii=draw(st.booleans())).split("\n")
        ]
        extra = [each for each in draw(st.lists(noise, max_size=2)) if each]
        if extra and draw(st.booleans()):
            stream += end.join(extra) + end + end
            extra = []
        stream += end.join([*extra, *lines]) + end + end
    return stream.encode()


@st.composite
def arrays(draw: st.DrawFn, values: list[Any]) -> bytes:
    space = st.sampled_from(["", " ", "\n", "\r\n", "\t"])
    text = "[" + draw(space)
    for place, value in enumerate(values):
        text += (draw(space) + "," + draw(space)) if place else ""
        text += json.dumps(value, indent=draw(st.sampled_from([None, 2])), ensure_ascii=draw(st.booleans()))
    return (text + draw(space) + "]" + draw(space)).encode()


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from(CASES), st.sets(st.integers(0, 100_000), max_size=30), st.booleans())
def test_framing_and_cuts_change_nothing(
    data: st.DataObject, case: dict[str, Any], places: set[int], as_array: bool
) -> None:
    values = values_of(case)
    stream = data.draw(arrays(values) if as_array else events(values))
    reading, passed = read(cut(stream, places), "json_array" if as_array else "sse")
    assert passed == stream
    assert dict(reading.usage) == case["usage"]
    assert reading.complete is case["complete"]
    assert reading.model == case["model"]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CASES), st.integers(1, 7))
def test_the_corpus_itself_in_pieces_of_any_size(case: dict[str, Any], size: int) -> None:
    stream = "".join(case["stream"]).encode()
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    reading, passed = read(pieces, case["framing"])
    assert (dict(reading.usage), reading.complete, passed) == (case["usage"], case["complete"], stream)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from(CASES), st.booleans())
def test_a_stream_cut_off_anywhere_is_never_free_once_text_came(
    data: st.DataObject, case: dict[str, Any], as_array: bool
) -> None:
    values = values_of(case)
    stream = data.draw(arrays(values) if as_array else events(values))
    at = data.draw(st.integers(0, len(stream)))
    reading, passed = read([stream[:at]], "json_array" if as_array else "sse")
    assert passed == stream[:at]
    if reading.text_bytes and not reading.complete:
        counted = reading.usage.get("output_tokens")
        assert counted is None or counted > 0
    for name, count in reading.usage.items():
        assert count <= case["usage"][name]
