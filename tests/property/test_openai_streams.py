"""However a stream of OpenAI's is framed and split, it says the same, and its bytes go on unchanged."""

import itertools
import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.usage.framing import splitter_for
from services.core.usage.reading import Reading, StreamReader
from services.gateway.vendors.openai import SHAPES

CORPUS = Path(__file__).parent.parent / "golden" / "answers" / "openai"
MOST_EVENTS = 60


def streams() -> list[tuple[str, str, bytes]]:
    found = []
    for path in sorted(CORPUS.glob("*.json")):
        for case in json.loads(path.read_text()):
            if "stream" in case:
                found.append((path.stem, case["name"], "".join(case["stream"]).encode()))
    return found


STREAMS = streams()


def read(route: str, pieces: list[bytes]) -> tuple[Reading, bytes, list[bytes]]:
    """The reading, the bytes as handed on, and those that only report usage."""
    reader = StreamReader(SHAPES[route].shape, "sse", orjson.loads)
    passed = [frame for piece in pieces for frame in reader.feed(piece)]
    rest, hidden, reading = reader.finish()
    passed.append((rest, hidden))
    return reading, b"".join(raw for raw, _ in passed), [raw for raw, only_usage in passed if only_usage]


def events_of(stream: bytes) -> list[tuple[str | None, bytes]]:
    """Names and data of a stream's events; comments have neither and are left out."""
    splitter = splitter_for("sse")
    frames = [*splitter.feed(stream), splitter.finish()]
    return [(frame.name, frame.data) for frame in frames if frame.data is not None]


def pieces_of(stream: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(stream) + 1) for cut in cuts} | {0, len(stream)})
    return [stream[start:end] for start, end in itertools.pairwise(places)]


def test_the_corpus_has_streams_of_every_route_that_streams() -> None:
    assert {route for route, _, _ in STREAMS} == {
        "chat.completions", "completions", "responses", "images.generations", "images.edits", "audio.speech",
        "audio.transcriptions",
    }  # fmt: skip


@pytest.mark.parametrize(("route", "name", "stream"), STREAMS, ids=[f"{route}: {name}" for route, name, _ in STREAMS])
def test_byte_by_byte(route: str, name: str, stream: bytes) -> None:
    whole, bytes_out, hidden = read(route, [stream])
    assert whole.complete
    assert bytes_out == stream
    short = stream if len(stream) < 40_000 else stream[-40_000:]
    pieces = [short[at : at + 1] for at in range(len(short))]
    once, twice = read(route, [short]), read(route, pieces)
    assert once == twice
    assert len(hidden) <= 1


@settings(max_examples=80, deadline=None)
@given(which=st.sampled_from(STREAMS), cuts=st.lists(st.integers(0, 1_000_000), max_size=30))
def test_any_split_says_the_same(which: tuple[str, str, bytes], cuts: list[int]) -> None:
    route, _, stream = which
    assert read(route, pieces_of(stream, cuts)) == read(route, [stream])


@st.composite
def framings(draw: st.DrawFn, events: list[tuple[str | None, bytes]]) -> bytes:
    """The same events in other words: line ends, comments, many data lines, other fields, a byte order mark."""
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    comment = st.sampled_from([[], [": ping"], [":"], [": data: {}"]])
    lines = []
    for name, data in events:
        lines += draw(comment)
        if lines and lines[-1].startswith(":") and draw(st.booleans()):
            lines.append("")
        if name is not None:
            lines.append(f"event:{draw(st.sampled_from(['', ' ']))}{name}")
        if draw(st.booleans()):
            lines.append("id: 7")
        text = data.decode()
        if data.strip() != b"[DONE]":
            value: Any = json.loads(text)
            text = json.dumps(value, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 0, 1])))
        space = draw(st.sampled_from(["", " "]))
        lines += [f"data:{space}{line}" for line in text.split("\n")]
        lines += [""] * draw(st.integers(1, 2))
    bom = draw(st.sampled_from(["", "\ufeff"]))
    return (bom + end.join(lines) + end).encode()


@settings(max_examples=100, deadline=None)
@given(data=st.data(), cuts=st.lists(st.integers(0, 1_000_000), max_size=20))
def test_any_framing_says_the_same(data: st.DataObject, cuts: list[int]) -> None:
    route, _, stream = data.draw(st.sampled_from(STREAMS))
    # The end says the most; a stream of hundreds of like events is no better a test than one of dozens.
    events = events_of(stream)[-MOST_EVENTS:]
    plain = b"".join(
        (b"event: %s\n" % name.encode() if name is not None else b"")
        + b"data: %s\n\n" % value.replace(b"\n", b"\ndata: ")
        for name, value in events
    )
    reframed = data.draw(framings(events))
    reading, bytes_out, hidden = read(route, pieces_of(reframed, cuts))
    expected, _, expected_hidden = read(route, [plain])
    assert reading == expected
    assert bytes_out == reframed
    assert len(hidden) == len(expected_hidden)


@settings(max_examples=100, deadline=None)
@given(which=st.sampled_from(STREAMS), at=st.integers(0, 1_000_000))
def test_a_stream_cut_anywhere_never_says_more_than_the_whole(which: tuple[str, str, bytes], at: int) -> None:
    route, _, stream = which
    cut = stream[: at % len(stream)]
    reading, bytes_out, _ = read(route, [cut])
    whole, _, _ = read(route, [stream])
    assert bytes_out == cut
    for count, number in reading.usage.items():
        assert number <= whole.usage[count]
