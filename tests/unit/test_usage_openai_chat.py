"""Usage read off OpenAI chat answers, and the framing of event streams."""

import json
from typing import Any

import pytest

from services.core.usage.openai_chat import MAX_COUNT, BodyReader, Reading, StreamReader, read_usage
from services.core.usage.sse import MAX_EVENT_BYTES, EventSplitter, Segment, event_data
from tests.support.openai_answers import chunks, completion, dump, events, text_deltas, tool_deltas, usage, weather_call


def read_body(*pieces: bytes) -> Reading:
    reader = BodyReader()
    for piece in pieces:
        reader.feed(piece)
    return reader.finish()


def read_stream(stream: bytes) -> Reading:
    splitter = EventSplitter()
    reader = StreamReader()
    for segment in [*splitter.feed(stream), splitter.finish()]:
        reader.read(segment)
    return reader.finish()


def test_every_detail_is_read() -> None:
    used = usage(prompt=2006, completion=300, cached=1920, reasoning=128, audio=5)
    used["prompt_tokens_details"]["cache_write_tokens"] = 40
    assert read_usage(used) == {
        "input_tokens": 2006,
        "output_tokens": 300,
        "cache_read_tokens": 1920,
        "cache_write_tokens": 40,
        "audio_input_tokens": 5,
        "audio_output_tokens": 5,
        "reasoning_tokens": 128,
    }


def test_an_explicit_zero_is_a_zero_and_what_is_missing_is_missing() -> None:
    assert read_usage({"prompt_tokens": 0, "completion_tokens": 0}) == {"input_tokens": 0, "output_tokens": 0}
    assert read_usage({"prompt_tokens": 3, "prompt_tokens_details": None}) == {"input_tokens": 3}
    assert read_usage({}) == {}
    assert read_usage(None) == {}


@pytest.mark.parametrize("count", [-1, MAX_COUNT + 1, 1.5, "7", True, None, [], {}])
def test_a_malformed_count_is_as_good_as_missing(count: Any) -> None:
    assert read_usage({"prompt_tokens": count, "completion_tokens": 2}) == {"output_tokens": 2}


def test_a_body_is_read_whole_in_any_pieces() -> None:
    body = dump(completion(text="Grüezi 👋", used=usage(7, 3, cached=2)))
    reading = read_body(*(body[at : at + 1] for at in range(len(body))))
    assert reading.complete
    assert reading.usage["input_tokens"] == 7
    assert reading.usage["cache_read_tokens"] == 2
    assert reading.text_bytes == len("Grüezi 👋".encode())


def test_text_that_looks_like_a_stream_is_still_a_body() -> None:
    fake = 'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\ndata: [DONE]\n\n'
    reading = read_body(dump(completion(text=fake, used=usage(70, 30))))
    assert (reading.usage["input_tokens"], reading.usage["output_tokens"]) == (70, 30)


def test_a_body_without_usage_counts_its_text() -> None:
    answer = completion(text="twelve bytes", tool_calls=[weather_call("Bern")])
    del answer["usage"]
    call = answer["choices"][0]["message"]["tool_calls"][0]
    told = ["twelve bytes", call["id"], call["type"], *call["function"].values()]
    assert read_body(dump(answer)) == Reading({}, sum(len(text) for text in told), complete=True)


@pytest.mark.parametrize(
    "body", [b"", b"<html>busy</html>", b'{"id": "chatcmpl-1", "choices": [{"mess', b"[1]", b"\xff"]
)
def test_a_body_that_broke_off_or_is_not_json_counts_its_bytes(body: bytes) -> None:
    assert read_body(body) == Reading({}, len(body), complete=False)


def test_deeply_nested_answers_are_survived() -> None:
    deep: Any = "x"
    for _ in range(900):
        deep = {"a": [deep]}
    answer = {"choices": [{"message": json.loads("[" * 900 + '"xy"' + "]" * 900)}]}
    assert read_body(dump(answer)).text_bytes == 2
    assert read_body(b"[" * 100_000).complete is False


def test_a_stream_with_usage() -> None:
    stream = b"".join(events(chunks(text_deltas("Hel", "lo"), used=usage(11, 2))))
    assert read_stream(stream) == Reading(read_usage(usage(11, 2)), 5, complete=True)


def test_a_stream_without_usage_counts_its_text() -> None:
    assert read_stream(b"".join(events(chunks(text_deltas("Hel", "lö"))))) == Reading({}, 6, complete=True)
    reading = read_stream(b"".join(events(chunks(tool_deltas(), finish_reason="tool_calls"))))
    assert reading.text_bytes >= len("get_weather" + '{"city":"Zürich"}')


def test_the_last_usage_wins_and_null_takes_nothing_back() -> None:
    first, last = usage(11, 1), usage(11, 5)
    running = [{**chunk, "usage": first} for chunk in chunks(text_deltas("a"))]
    empty = [{**running[0], "usage": nothing} for nothing in (None, {}, {"prompt_tokens": None})]
    stream = b"".join(events([*running, {**running[0], "usage": last}, *empty]))
    assert read_stream(stream).usage == read_usage(last)


def test_a_stream_that_breaks_off_is_not_complete() -> None:
    pieces = events(chunks(text_deltas("Hel", "lo"), used=usage()))
    broken = read_stream(b"".join(pieces[:3]) + pieces[3][:25])
    assert not broken.complete
    assert broken.usage == {}
    assert broken.text_bytes >= len("Hello")


def test_a_stream_that_ends_without_a_last_blank_line_is_complete() -> None:
    stream = b"".join(events(chunks(text_deltas("Hello"), used=usage(4, 2))))
    assert read_stream(stream.removesuffix(b"\n\n")).complete
    only_usage = stream[: stream.index(b"data: [DONE]")]
    assert read_stream(only_usage).complete


def test_an_error_in_mid_stream_leaves_it_incomplete() -> None:
    pieces = events(chunks(text_deltas("Hello")))
    stream = b"".join(pieces[:2]) + b'data: {"error": {"message": "overloaded"}}\n\n'
    assert read_stream(stream) == Reading({}, 5, complete=False)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_line_ends_comments_names_and_a_bom(end: bytes) -> None:
    lines = [
        b"\xef\xbb\xbf: welcome", b"",
        b"event: message", b"id: 1", b'data:{"choices": [{"delta":', b'data: {"content": "ok"}}]}', b"",
        b": keep-alive", b"", b"", b"retry: 10", b'data: {"choices": [], "usage": {"prompt_tokens": 4,',
        b'data: "completion_tokens": 2}}', b"", b"data: [DONE]", b"", b"",
    ]  # fmt: skip
    assert read_stream(end.join(lines)) == Reading({"input_tokens": 4, "output_tokens": 2}, 2, complete=True)


def test_event_data() -> None:
    assert event_data(b"\xef\xbb\xbfdata: a\n\n") == b"a"
    assert event_data(b"data: a\ndata:b\ndata\ndata:  c\n\n") == b"a\nb\n\n c"
    assert event_data(b": data: a\n\n") is None
    assert event_data(b"database: a\n\n") is None
    assert event_data(b"") is None


def test_only_a_chunk_of_nothing_but_usage_is_the_usage_chunk() -> None:
    def is_usage_chunk(value: object) -> bool:
        return StreamReader().read(Segment(b"data: " + dump(value) + b"\n\n", whole=True))

    assert is_usage_chunk({"choices": [], "usage": usage()})
    assert not is_usage_chunk({"choices": [], "usage": None})
    assert not is_usage_chunk({"choices": [], "prompt_filter_results": []})
    assert not is_usage_chunk({"choices": [{"delta": {}}], "usage": usage()})
    assert not is_usage_chunk({"usage": usage()})


def test_an_event_too_long_to_read_is_passed_on_in_bounded_memory() -> None:
    splitter = EventSplitter()
    long = b"data: " + b"x" * (3 * MAX_EVENT_BYTES)
    stream = long + b"\n\ndata: [DONE]\n\n"
    segments = []
    for at in range(0, len(stream), 65_536):
        segments += splitter.feed(stream[at : at + 65_536])
    assert b"".join(each.data for each in segments) == stream
    assert [each.data for each in segments if each.whole] == [b"data: [DONE]\n\n"]
    assert max(len(each.data) for each in segments) <= MAX_EVENT_BYTES + 65_536
    whole = EventSplitter().feed(stream)
    assert [each.whole for each in whole] == [False, True]
    reader = StreamReader()
    for segment in segments:
        reader.read(segment)
    assert reader.finish() == Reading({}, len(long) + 2, complete=True)
