"""Streams cut into frames: events, elements of an array, lines; whole, broken, hostile and endless."""

import time
import tracemalloc
from typing import Any

import pytest

from services.core.usage import framing
from services.core.usage.framing import Frame, splitter_for

KILOBYTE = 1024


def frames_of(kind: Any, *chunks: bytes) -> list[Frame]:
    splitter = splitter_for(kind)
    frames = [frame for chunk in chunks for frame in splitter.feed(chunk)]
    rest = splitter.finish()
    assert b"".join(frame.raw for frame in [*frames, rest]) == b"".join(chunks)
    return [*frames, rest] if rest.raw else frames


def data_of(kind: Any, *chunks: bytes) -> list[bytes | None]:
    return [frame.data for frame in frames_of(kind, *chunks)]


# ---- server-sent events ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_may_use_any_line_end(end: bytes) -> None:
    stream = end.join([b"event: delta", b"data: {", b"data: }", b"", b": nothing", b"", b"data:1", b"", b""])
    assert [(frame.name, frame.data) for frame in frames_of("sse", stream)] == [
        ("delta", b"{\n}"),
        (None, None),
        (None, b"1"),
    ]


def test_line_ends_may_be_mixed_and_a_crlf_is_one_of_them() -> None:
    assert data_of("sse", b"data: 1\r\n\ndata: 2\n\r\ndata: 3\r\r\ndata: 4\r\n\r\n") == [b"1", b"2", b"3", b"4"]
    assert data_of("sse", b"data: 1\r\ndata: 2\r\n", b"\r\n") == [b"1\n2"]


def test_a_crlf_that_is_split_ends_one_line() -> None:
    assert data_of("sse", b"data: 1\r", b"\ndata: 2\r", b"\n\r", b"\ndata: 3") == [b"1\n2", b"3"]


def test_a_byte_order_mark_counts_at_the_start_of_the_stream_only() -> None:
    bom = b"\xef\xbb\xbf"
    assert data_of("sse", bom[:1], bom[1:] + b"data: 1\n\n" + bom + b"data: 2\n\n") == [b"1", None]


def test_one_space_after_the_colon_is_no_data() -> None:
    assert data_of("sse", b"data:1\n\ndata:  2 \n\ndata\n\ndata:\n\ndatum: 3\n\n") == [b"1", b" 2 ", b"", b"", None]


def test_the_last_name_counts_and_an_empty_one_is_none() -> None:
    frames = frames_of("sse", b"event: a\nevent:b\ndata: 1\n\nevent:\ndata: 2\n\n")
    assert [frame.name for frame in frames] == ["b", None]


def test_an_event_may_end_with_the_stream() -> None:
    assert data_of("sse", b"data: 1\n\ndata: 2") == [b"1", b"2"]
    assert data_of("sse", b"data: 1\r\r") == [b"1"]


# ---- the elements of an array ---------------------------------------------------------------------------------------


def test_each_element_of_an_array_is_a_frame() -> None:
    frames = frames_of("json_array", b'[{"a": [1, {}]}\n,\r\n{"b": "]}"}\n]\n')
    assert [(frame.raw, frame.data) for frame in frames] == [
        (b'[{"a": [1, {}]}', b'{"a": [1, {}]}'),
        (b'\n,\r\n{"b": "]}"}', b'{"b": "]}"}'),
        (b"\n]\n", None),
    ]


def test_strings_may_hold_anything_and_be_cut_anywhere() -> None:
    stream = b'[{"a":"[{\\"}]\\\\"},{"\\\\\\"]":"}"}]'
    assert data_of("json_array", *[stream[at : at + 1] for at in range(len(stream))]) == [
        b'{"a":"[{\\"}]\\\\"}',
        b'{"\\\\\\"]":"}"}',
        None,
    ]


def test_an_error_instead_of_the_array_is_an_element() -> None:
    assert data_of("json_array", b'{"error": {"code": 429}}\n') == [b'{"error": {"code": 429}}', None]


def test_what_is_no_element_is_left_to_be_counted() -> None:
    assert data_of("json_array", b"upstream connect error") == [b"upstream connect error"]
    assert data_of("json_array", b'[{"a":1},{"b":') == [b'{"a":1}', b'{"b":']


def test_elements_after_junk_are_found() -> None:
    assert data_of("json_array", b']}}[null,{"a":1}') == [b'{"a":1}']


def test_deep_nesting_costs_no_stack() -> None:
    deep = b'[{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert data_of("json_array", deep[:70_000], deep[70_000:]) == [deep[1:]]


# ---- lines ----------------------------------------------------------------------------------------------------------


def test_lines_may_end_in_lf_or_crlf_or_not_at_all() -> None:
    assert data_of("lines", b'\xef\xbb\xbf{"a":1}\r\n', b'\n{"b"', b":2}\n \r\n", b'{"c":3}') == [
        b'{"a":1}',
        None,
        b'{"b":2}',
        None,
        b'{"c":3}',
    ]


# ---- bounds ---------------------------------------------------------------------------------------------------------

# How a frame of each framing begins and ends, and a short one that may follow it.
LONG = {"sse": (b"data: ", b"\n\n"), "json_array": (b'{"a":"', b'"}'), "lines": (b"", b"\n")}
AFTER = {"sse": b"data: {}\n\n", "json_array": b",{}", "lines": b"{}\n"}


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("beyond", [0, 1, KILOBYTE])
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_what_is_too_long_goes_on_in_pieces_and_what_follows_is_read(
    monkeypatch: pytest.MonkeyPatch, kind: str, beyond: int, step: int
) -> None:
    monkeypatch.setattr(framing, "MAX_FRAME_BYTES", KILOBYTE)
    opening, closing = LONG[kind]
    frame = opening + b"x" * (KILOBYTE - len(opening) - len(closing) + beyond) + closing
    stream = frame + AFTER[kind] + frame + AFTER[kind]
    frames = frames_of(kind, *[stream[at : at + step] for at in range(0, len(stream), step)])
    read = [each.data for each in frames if each.data is not None]
    if beyond:
        assert read == [b"{}", b"{}"]
        assert sum(len(each.raw) for each in frames if not each.whole) == 2 * len(frame)
    else:
        assert len(read) == 4
        assert all(each.whole for each in frames)


@pytest.mark.parametrize("kind", LONG)
def test_memory_does_not_grow_with_an_endless_frame(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    monkeypatch.setattr(framing, "MAX_FRAME_BYTES", 64 * KILOBYTE)
    splitter = splitter_for(kind)
    splitter.feed(LONG[kind][0])
    tracemalloc.start()
    try:
        for _ in range(20_000):
            splitter.feed(b"x" * 100)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * 64 * KILOBYTE
    assert splitter.finish().whole is False


@pytest.mark.parametrize("kind", LONG)
def test_time_grows_with_the_bytes_however_they_are_cut(kind: Any) -> None:
    """Four times the bytes, byte by byte, take about four times the time; copying all that came at each byte, sixteen.

    Process time, the least of three, so that a busy machine does not matter.
    """

    def seconds(size: int) -> float:
        best = float("inf")
        for _ in range(3):
            splitter = splitter_for(kind)
            begun = time.process_time()
            splitter.feed(LONG[kind][0])
            for _ in range(size):
                splitter.feed(b"x")
            splitter.finish()
            best = min(best, time.process_time() - begun)
        return best

    assert seconds(400_000) < 10 * seconds(100_000)
