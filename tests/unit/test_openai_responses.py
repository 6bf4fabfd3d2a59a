"""OpenAI's responses: what a request can cost, what is refused, and usage read off answers and streams."""

import json
from typing import Any

import orjson
import pytest

from services.core.estimate import UnboundedError, UnpricedComponentError, strict_bound
from services.core.pricing import Price
from services.core.usage.openai_responses import ResponsesShape, read_response
from services.core.usage.reading import BodyReader, Reading, StreamReader
from services.gateway.vendors import RequestFacts, RequestRefusedError, RouteRequest
from services.gateway.vendors.fields import TEMPLATE_TOKENS
from services.gateway.vendors.openai import OpenAIDialect
from services.gateway.vendors.openai_responses import MAX_ITEMS
from services.gateway.vendors.openai_routes import COMPACT, RESPONSES
from tests.support.vendors import openai as answers

DIALECT = OpenAIDialect()
PRICE = Price({"input": 2_500_000_000, "output": 10_000_000_000}, max_output_tokens=16_384, context_window=128_000)


def body_of(**fields: Any) -> bytes:
    return orjson.dumps({"model": "gpt-4o", "input": "Hello", **fields})


def read(**fields: Any) -> RequestFacts:
    return DIALECT.read_request(RouteRequest(RESPONSES, body_of(**fields)))


def refusal(**fields: Any) -> tuple[str, str | None]:
    with pytest.raises(RequestRefusedError) as caught:
        read(**fields)
    return caught.value.code, caught.value.param


def part(kind: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": kind, **fields}]}]


# ---- requests -------------------------------------------------------------------------------------------------------


def test_cache_writes_that_live_an_hour_are_bounded_at_their_own_rate() -> None:
    asked = part("input_text", text="x", cache_control={"type": "ephemeral", "ttl": "1h"})
    demand = read(input=asked, max_output_tokens=40).demand
    dear = Price({**PRICE.rates, "cache_write_1h": 5_000_000_000})
    assert strict_bound(dear, demand).amount_nano == demand.input_tokens * 5_000 + 40 * 10_000
    assert read(input=part("input_text", text="x")).demand.parts == frozenset()


def test_a_plain_request() -> None:
    facts = read(max_output_tokens=40, stream=True)
    assert (facts.model, facts.stream, facts.body) == ("gpt-4o", True, body_of(max_output_tokens=40, stream=True))
    assert facts.demand.input_tokens == len(facts.body) + TEMPLATE_TOKENS
    assert (facts.demand.output_tokens_limit, facts.demand.rounds, facts.demand.unseen) == (40, 1, None)
    assert facts.demand.limit_param == "max_output_tokens"
    assert not facts.hide_usage_chunk


def test_a_compaction_is_bounded_as_a_response() -> None:
    facts = DIALECT.read_request(RouteRequest(COMPACT, body_of(previous_response_id="resp_1")))
    assert (facts.demand.unseen, facts.demand.output_tokens_limit) == ("previous_response_id", None)


@pytest.mark.parametrize(
    ("fields", "unseen"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}, "tools": []}, "prompt"),
        ({"input": part("input_file", file_id="file-1")}, "input"),
        ({"input": part("input_file", file_url="https://example.com/a.pdf")}, "input"),
        ({"input": [{"id": "msg_1"}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input"),
        ({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}, "input"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input"),
        ({"input": part("input_text", text="x")}, None),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "42"}]}, None),
    ],
)
def test_what_the_vendor_keeps_may_fill_the_window(fields: dict[str, Any], unseen: str | None) -> None:
    facts = read(max_output_tokens=1, **fields)
    assert facts.demand.unseen == unseen
    if unseen is not None:
        assert strict_bound(PRICE, facts.demand).input_tokens == 128_000
        with pytest.raises(UnboundedError) as caught:
            strict_bound(Price({"input": 1, "output": 1}), facts.demand)
        assert caught.value.param == unseen


def test_images_and_files_wherever_they_are() -> None:
    url = "data:image/png;base64," + "A" * 5_000
    screenshot = {
        "type": "computer_call_output",
        "call_id": "c",
        "output": {"type": "computer_screenshot", "image_url": url},
    }
    returned = {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": url}]}
    for item in (*part("input_image", image_url=url), screenshot, returned):
        facts = read(input=[item])
        assert facts.demand.input_tokens == len(facts.body) - len(url) + TEMPLATE_TOKENS + 3_779
        assert facts.demand.parts == {"image_input", "image_cache_read"}
    assert read(input=part("input_file", file_data=url)).demand.unseen == "input"


def test_searches_are_bounded_by_max_tool_calls() -> None:
    tools = [{"type": "web_search"}, {"type": "file_search", "vector_store_ids": ["vs_1"]}]
    demand = read(tools=tools, max_tool_calls=4, max_output_tokens=100).demand
    assert (demand.counts, demand.rounds) == ({"web_searches": 4, "file_searches": 4}, 5)
    assert refusal(tools=tools) == ("unpriced_feature", "max_tool_calls")
    with pytest.raises(UnpricedComponentError):
        strict_bound(PRICE, demand)
    priced = Price({**PRICE.rates, "web_search": 10**13, "file_search": 2_500 * 10**9}, (), 16_384, 128_000)
    bound = strict_bound(priced, demand)
    # Five runs that each fill the window and write 100 tokens, and four calls of each tool.
    assert bound.amount_nano == 5 * 128_000 * 2_500 + 5 * 100 * 10_000 + 4 * 10_000_000 + 4 * 2_500_000


def test_compaction_on_the_way_is_one_more_run() -> None:
    assert read(context_management=[{"type": "compaction", "compact_threshold": 1_000}]).demand.rounds == 2


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "web_search_preview"},
        {"type": "code_interpreter", "container": {"type": "auto"}},
        {"type": "image_generation"},
        {"type": "mcp", "server_label": "x", "server_url": "https://example.com"},
        {"type": "shell", "environment": {"type": "container_auto"}},
        {"type": "shell"},
        {"type": "tool_search"},
        {"type": "programmatic_tool_calling"},
        {"type": "x_search"},
        {"type": ["function"]},
        {},
    ],
)
def test_tools_that_can_not_be_priced_are_refused_by_name(tool: dict[str, Any]) -> None:
    assert refusal(tools=[tool], max_tool_calls=1) == ("unpriced_feature", "tools")


@pytest.mark.parametrize("kind", ["function", "custom", "namespace", "apply_patch", "local_shell", "computer"])
def test_tools_that_the_client_runs_are_free(kind: str) -> None:
    demand = read(tools=[{"type": kind}, {"type": "shell", "environment": {"type": "local"}}]).demand
    assert (demand.counts, demand.rounds) == ({}, 1)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"model": None}, ("invalid_request", "model")),
        ({"input": 7}, ("invalid_request", "input")),
        ({"input": ["x"]}, ("invalid_request", "input")),
        ({"input": [{"role": "user", "content": 7}]}, ("invalid_request", "input")),
        ({"input": [{"role": "user", "content": [7]}]}, ("invalid_request", "input")),
        ({"input": [{"id": "x"}] * (MAX_ITEMS + 1)}, ("invalid_request", "input")),
        ({"input": part("input_video")}, ("unpriced_feature", "input")),
        ({"input": [{"type": "additional_tools", "tools": []}]}, ("unpriced_feature", "input")),
        ({"input": [{"type": ["message"]}]}, ("unpriced_feature", "input")),
        ({"stream": "yes"}, ("invalid_request", "stream")),
        ({"background": 1}, ("invalid_request", "background")),
        ({"max_output_tokens": 0}, ("invalid_request", "max_output_tokens")),
        ({"max_tool_calls": 0, "tools": [{"type": "web_search"}]}, ("invalid_request", "max_tool_calls")),
        ({"prompt": {"id": "pmpt_1"}}, ("unpriced_feature", "prompt")),
        ({"reasoning": {"mode": "pro"}}, ("unpriced_feature", "reasoning.mode")),
        ({"plugins": [{"id": "web"}]}, ("unpriced_feature", "plugins")),
    ],
)
def test_a_field_that_can_not_be_read_or_bounded_is_named(fields: dict[str, Any], error: tuple[str, str]) -> None:
    assert refusal(**fields) == error


def test_a_second_key_is_refused() -> None:
    body = body_of(max_output_tokens=10)
    for extra in (b'"max_output_tokens":99', b'"max\\u005foutput_tokens":99'):
        with pytest.raises(RequestRefusedError) as caught:
            DIALECT.read_request(RouteRequest(RESPONSES, body[:-1] + b"," + extra + b"}"))
        assert caught.value.param == "max_output_tokens"


def test_whether_it_goes_on_in_the_background() -> None:
    assert read(background=True).in_background
    escaped = body_of(background=True).replace(b"background", b"b\\u0061ckground")
    assert DIALECT.read_request(RouteRequest(RESPONSES, escaped)).in_background
    assert not read(background=False).in_background
    assert not read(metadata={"background": "true"}).in_background
    assert not read().in_background


# ---- answers --------------------------------------------------------------------------------------------------------


def whole(**fields: Any) -> Reading:
    reader = BodyReader(ResponsesShape())
    reader.feed(json.dumps(answers.response(**fields)).encode())
    return reader.finish()


def streamed(*pieces: bytes) -> Reading:
    reader = StreamReader(ResponsesShape())
    for piece in pieces:
        reader.feed(piece)
    return reader.finish()[2]


USED = answers.response_usage(input_tokens=328, output_tokens=52, cached=128, reasoning=20, cache_write=64)
COUNTED = {
    "input_tokens": 328,
    "output_tokens": 52,
    "cache_read_tokens": 128,
    "cache_write_tokens": 64,
    "reasoning_tokens": 20,
}


def test_every_detail_is_read() -> None:
    reading = whole(used=USED, service_tier="priority")
    assert (reading.usage, reading.complete, reading.failed) == (COUNTED, True, None)
    assert (reading.model, reading.context) == ("gpt-4o-2024-08-06", {"service_tier": "priority"})
    assert (reading.job, reading.status) == (None, "completed")


@pytest.mark.parametrize("status", ["completed", "incomplete", "failed"])
def test_a_responses_stream_is_not_billed_as_nothing(status: str) -> None:
    reading = streamed(*answers.response_events(answers.response(used=USED, status=status)))
    assert (reading.usage, reading.complete, reading.status) == (COUNTED, True, status)


def test_a_failed_response_says_why_and_what_it_used_is_not_known() -> None:
    failed = answers.response(status="failed", failure=("rate_limit_exceeded", "Slow down."), output=[])
    for reading in (read_response(failed), streamed(*answers.response_events(failed))):
        assert (reading.usage, reading.failed, reading.complete) == ({}, "rate_limit_exceeded", True)


def test_a_stream_that_breaks_off_counts_its_text_and_names_its_job() -> None:
    events = answers.response_events(answers.response(output=[answers.text_item("Hello there")]))
    cut = next(at for at, event in enumerate(events) if b"output_text.done" in event)
    reading = streamed(*events[:cut])
    assert (reading.usage, reading.text_bytes, reading.complete) == ({}, len("Hello there"), False)
    assert (reading.job, reading.status) == (answers.response()["id"], "in_progress")


def test_a_response_in_the_background_is_a_job() -> None:
    for status in ("queued", "in_progress"):
        reading = whole(status=status, background=True)
        assert (reading.usage, reading.job, reading.status) == ({}, answers.response()["id"], status)


def test_calls_of_hosted_tools_are_counted() -> None:
    looked = {**answers.web_search_item(), "action": {"type": "open_page", "url": "https://example.com"}}
    output = [
        answers.web_search_item(),
        answers.web_search_item(),
        looked,
        answers.file_search_item(),
        answers.text_item(),
    ]
    assert whole(output=output).usage["web_searches"] == 2, "looking at a page that was found is free"
    assert whole(output=output).usage["file_searches"] == 1
    told = whole(output=output, echo={"tool_usage": {"web_search": {"num_requests": 5}}})
    assert told.usage["web_searches"] == 5
    events = answers.response_events(answers.response(output=output))
    assert streamed(*events[:-1]).usage == {"web_searches": 2, "file_searches": 1}


def test_an_error_event_ends_a_stream_in_failure() -> None:
    created = answers.response_events(answers.response())[0]
    error = b'event: error\ndata: {"type":"error","code":"server_error","message":"x","param":null}\n\n'
    reading = streamed(created, error)
    assert (reading.failed, reading.complete) == ("server_error", False)


def test_longer_lived_cache_writes_are_told_apart() -> None:
    used = json.loads(json.dumps(USED))
    used["input_tokens_details"]["cache_write_tokens_details"] = {"ttl_30m_tokens": 40, "ttl_12h_tokens": 24}
    assert whole(used=used).usage == {**COUNTED, "cache_write_1h_tokens": 24}


def test_reasoning_that_the_total_puts_beside_the_output_is_added_once() -> None:
    used = answers.response_usage(input_tokens=100, output_tokens=50, reasoning=200)
    assert whole(used={**used, "total_tokens": 350}).usage["output_tokens"] == 250
    used = answers.response_usage(input_tokens=100, output_tokens=250, reasoning=200)
    assert whole(used=used).usage["output_tokens"] == 250
