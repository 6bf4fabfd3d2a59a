"""Usage read off chat answers: OpenAI's, and those of the servers that speak its protocol in their own way."""

import json
from typing import Any

import pytest

from services.core.usage.openai_chat import ChatFold, ChatShape, read_usage
from services.core.usage.reading import MAX_COUNT, BodyReader, Reading, StreamReader
from tests.support.vendors.openai import (
    chunks,
    completion,
    dump,
    events,
    text_deltas,
    tool_deltas,
    usage,
    weather_call,
)


def read_body(*pieces: bytes) -> Reading:
    reader = BodyReader(ChatShape())
    for piece in pieces:
        reader.feed(piece)
    return reader.finish()


def read_stream(stream: bytes) -> Reading:
    reader = StreamReader(ChatShape())
    reader.feed(stream)
    return reader.finish()[2]


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
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
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
    reading = read_body(dump(answer))
    assert (reading.usage, reading.text_bytes, reading.complete) == ({}, sum(len(text) for text in told), True)


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
    reading = read_stream(stream)
    assert (reading.usage, reading.text_bytes, reading.complete) == (read_usage(usage(11, 2)), 5, True)


def test_a_stream_without_usage_counts_its_text() -> None:
    reading = read_stream(b"".join(events(chunks(text_deltas("Hel", "lö")))))
    assert (reading.usage, reading.text_bytes, reading.complete) == ({}, 6, True)
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
    reading = read_stream(stream)
    assert (reading.usage, reading.text_bytes, reading.complete, reading.failed) == ({}, 5, False, "error")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_line_ends_comments_names_and_a_bom(end: bytes) -> None:
    lines = [
        b"\xef\xbb\xbf: welcome", b"",
        b"event: message", b"id: 1", b'data:{"choices": [{"delta":', b'data: {"content": "ok"}}]}', b"",
        b": keep-alive", b"", b"", b"retry: 10", b'data: {"choices": [], "usage": {"prompt_tokens": 4,',
        b'data: "completion_tokens": 2}}', b"", b"data: [DONE]", b"", b"",
    ]  # fmt: skip
    assert read_stream(end.join(lines)) == Reading({"input_tokens": 4, "output_tokens": 2}, 2, complete=True)


def test_only_a_chunk_of_nothing_but_usage_is_the_usage_chunk() -> None:
    def is_usage_chunk(value: dict[str, Any]) -> bool:
        return ChatFold().take(None, value)

    assert is_usage_chunk({"choices": [], "usage": usage()})
    assert not is_usage_chunk({"choices": [], "usage": None})
    assert not is_usage_chunk({"choices": [], "prompt_filter_results": []})
    assert not is_usage_chunk({"choices": [{"delta": {}}], "usage": usage()})
    assert not is_usage_chunk({"usage": usage()})


# ---- servers that report in their own way ---------------------------------------------------------------------------


def test_usage_after_the_finish_reason_is_not_lost() -> None:
    finish = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    closing = {"choices": [], "usage": usage(19, 10)}
    reading = read_stream(b"".join(events([*chunks(text_deltas("Hi"), finish_reason=None), finish, closing])))
    assert (reading.usage["input_tokens"], reading.usage["output_tokens"], reading.complete) == (19, 10, True)


def test_806_deltas_are_not_billed_as_one_token() -> None:
    deltas = [{"content": "word "} for _ in range(806)]
    stream = b"".join(events([{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]))
    reading = read_stream(stream)
    assert reading.text_bytes == 806 * len("word ")
    assert "output_tokens" not in reading.usage


def test_deepseek_counts_cache_hits_beside_the_prompt() -> None:
    used = {
        "prompt_tokens": 1_000, "completion_tokens": 40, "total_tokens": 1_040,
        "prompt_cache_hit_tokens": 896, "prompt_cache_miss_tokens": 104,
    }  # fmt: skip
    assert read_usage(used) == {"input_tokens": 1_000, "output_tokens": 40, "cache_read_tokens": 896}
    assert read_usage({**used, "prompt_cache_hit_tokens": 0})["cache_read_tokens"] == 0


def test_groq_reports_a_stream_s_usage_under_its_own_name() -> None:
    last = {
        "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
        "x_groq": {"id": "req_1", "usage": usage(7, 3)},
    }
    reading = read_stream(b"".join(events([*chunks(text_deltas("Hi"), finish_reason=None), last])))
    assert (reading.usage["input_tokens"], reading.usage["output_tokens"]) == (7, 3)
    assert not ChatFold().take(None, last), "it carries more than usage, so the client gets it"


def test_moonshot_reports_a_stream_s_usage_within_the_choice() -> None:
    used = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "cached_tokens": 5}
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": used}]}
    reading = read_stream(b"".join(events([last])))
    assert reading.usage == {"input_tokens": 7, "output_tokens": 3, "cache_read_tokens": 5}


def test_xai_s_reasoning_lies_outside_its_completion() -> None:
    used = {
        "prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 135, "num_sources_used": 4,
        "completion_tokens_details": {"reasoning_tokens": 94}, "cost_in_usd_ticks": 37_756_000,
    }  # fmt: skip
    assert read_usage(used) == {
        "input_tokens": 32, "output_tokens": 103, "reasoning_tokens": 94, "web_searches": 4,
        "vendor_cost_nano": 3_775_600,
    }  # fmt: skip


def test_reasoning_is_not_added_to_an_output_that_already_holds_it() -> None:
    used = usage(prompt=75, completion=1_186, reasoning=1_024)
    assert read_usage(used)["output_tokens"] == 1_186
    del used["total_tokens"]
    assert read_usage(used)["output_tokens"] == 1_186


def test_reasoning_that_is_more_than_the_output_is_not_in_it() -> None:
    used = {
        "prompt_tokens": 32, "completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 94},
    }  # fmt: skip
    assert read_usage(used)["output_tokens"] == 9 + 94
    assert read_usage({**used, "total_tokens": 32 + 9})["output_tokens"] == 9 + 94


def test_google_s_reasoning_shows_in_the_total_only() -> None:
    used = {"prompt_tokens": 20, "completion_tokens": 424, "total_tokens": 1_016}
    assert read_usage(used) == {"input_tokens": 20, "output_tokens": 996}


def test_perplexity_counts_citations_and_reasoning_apart() -> None:
    used = {
        "prompt_tokens": 33, "completion_tokens": 7_163, "total_tokens": 7_196, "citation_tokens": 20_016,
        "num_search_queries": 18, "reasoning_tokens": 73_557, "search_context_size": "low",
        "cost": {"input_tokens_cost": 0.0, "total_cost": 0.409},
    }  # fmt: skip
    assert read_usage(used) == {
        "input_tokens": 33, "output_tokens": 7_163 + 20_016 + 73_557, "citation_tokens": 20_016,
        "reasoning_tokens": 73_557, "web_searches": 18, "vendor_cost_nano": 409_000_000,
    }  # fmt: skip


def test_openrouter_says_what_it_charges() -> None:
    used = {
        **usage(prompt=194, completion=2), "cost": 0.95, "server_tool_use": {"web_search_requests": 3},
        "cost_details": {"upstream_inference_cost": 19},
    }  # fmt: skip
    read = read_usage(used)
    assert (read["vendor_cost_nano"], read["web_searches"]) == (950_000_000, 3)


@pytest.mark.parametrize("cost", [-1, True, "0.5", float("nan"), float("inf"), 1e300, None, {}, {"total_cost": "1"}])
def test_a_cost_that_is_none_is_left_out(cost: Any) -> None:
    assert "vendor_cost_nano" not in read_usage({"prompt_tokens": 1, "cost": cost})


def test_vllm_s_running_usage_is_cumulative() -> None:
    running = [{"choices": [{"index": 0, "delta": {"content": "a"}}], "usage": usage(5, count)} for count in (1, 2, 3)]
    reading = read_stream(b"".join(events(running)))
    assert (reading.usage["input_tokens"], reading.usage["output_tokens"]) == (5, 3)


def test_mistral_s_audio_is_no_missing_output() -> None:
    used = {"prompt_audio_seconds": 203, "prompt_tokens": 4, "total_tokens": 3_264, "completion_tokens": 635}
    assert read_usage(used) == {"input_tokens": 4, "output_tokens": 635, "audio_ms": 203_000}


def test_an_error_inside_a_successful_answer_is_told() -> None:
    assert read_body(b'{"error": {"code": 502, "message": "no provider"}}').failed == "502"
    assert read_body(b'{"error": {"code": "busy"}}').failed == "busy"
    assert read_body(b'{"error": null, "choices": []}').failed is None
