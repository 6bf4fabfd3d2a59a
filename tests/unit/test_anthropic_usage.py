"""What Anthropic's answers say they used, and the ways in which others read them wrongly."""

from collections.abc import Iterable, Sequence
from typing import Any

import orjson
import pytest

from services.core.estimate import fill_in_usage
from services.core.pricing import Price, Tier, price_usage
from services.core.usage.anthropic_messages import BatchResultsShape, BatchShape, MessagesShape
from services.core.usage.reading import AnswerShape, BodyReader, Framing, Reading, StreamReader
from services.gateway.vendors import RouteRequest
from services.gateway.vendors.anthropic import MESSAGES, AnthropicDialect

USD = 10**9
SONNET = {
    "input": 3 * USD, "output": 15 * USD, "cache_read": 3 * USD // 10,
    "cache_write": 375 * USD // 100, "cache_write_1h": 6 * USD,
}  # fmt: skip


def whole(body: object, shape: AnswerShape | None = None) -> Reading:
    reader = BodyReader(shape or MessagesShape())
    reader.feed(orjson.dumps(body))
    return reader.finish()


def streamed(events: Iterable[dict[str, Any]], shape: AnswerShape | None = None, framing: Framing = "sse") -> Reading:
    reader = StreamReader(shape or MessagesShape(), framing)
    for event in events:
        data = orjson.dumps(event)
        frame = data + b"\n" if framing == "lines" else b"event: %s\ndata: %s\n\n" % (event["type"].encode(), data)
        passed = reader.feed(frame)
        assert passed == [(frame, False)]
    return reader.finish()[2]


def message(**usage: Any) -> dict[str, Any]:
    return {
        "type": "message",
        "model": "claude-sonnet-4-5",
        "content": [{"type": "text", "text": "Hi"}],
        "usage": usage,
    }


def start(**usage: Any) -> dict[str, Any]:
    return {"type": "message_start", "message": {**message(**usage), "content": []}}


def text(*parts: str) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": part}} for part in parts
    ]


def report(**usage: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}


STOP = {"type": "message_stop"}


def cost_usd_millionths(usage: Any, rates: dict[str, int] = SONNET, tiers: Sequence[Tier] = ()) -> int:
    cost_nano = sum(each.cost_nano for each in price_usage(Price(rates, tuple(tiers)), usage))
    assert cost_nano % 1000 == 0
    return cost_nano // 1000


# ---- the ways in which others failed --------------------------------------------------------------------------------


def test_cumulative_message_delta_usage_is_not_summed() -> None:
    reading = streamed([start(input_tokens=10, output_tokens=1), *(report(output_tokens=n) for n in (5, 12, 40)), STOP])
    assert reading.usage == {"input_tokens": 10, "output_tokens": 40}


def test_input_repeated_by_message_delta_wins_and_is_not_added() -> None:
    first = start(input_tokens=100, cache_read_input_tokens=50, output_tokens=1)
    last = report(input_tokens=170, cache_read_input_tokens=60, output_tokens=9)
    reading = streamed([first, last, STOP])
    assert reading.usage == {"input_tokens": 230, "cache_read_tokens": 60, "output_tokens": 9}


def test_cached_tokens_are_not_counted_in_and_beside_input() -> None:
    usage = whole(
        message(input_tokens=100, cache_read_input_tokens=900, cache_creation_input_tokens=0, output_tokens=0)
    ).usage
    assert usage["input_tokens"] == 1000
    # 100 at 3 and 900 at 0.3 millionths of a dollar.
    assert cost_usd_millionths(usage) == 300 + 270


def test_one_hour_cache_writes_are_not_priced_as_five_minute_ones() -> None:
    split = {"ephemeral_5m_input_tokens": 400, "ephemeral_1h_input_tokens": 600}
    usage = whole(
        message(input_tokens=0, cache_creation_input_tokens=1000, cache_creation=split, output_tokens=0)
    ).usage
    # 400 at 3.75 and 600 at 6.
    assert cost_usd_millionths(usage) == 1500 + 3600


def test_the_long_context_tier_goes_by_the_whole_input() -> None:
    long = {name: 2 * value for name, value in SONNET.items()}
    tiers = (Tier(200_000, long),)
    under = whole(message(input_tokens=1000, cache_read_input_tokens=199_000, output_tokens=0)).usage
    over = whole(message(input_tokens=1001, cache_read_input_tokens=199_000, output_tokens=0)).usage
    assert cost_usd_millionths(under, tiers=tiers) == 3000 + 59_700
    assert cost_usd_millionths(over, tiers=tiers) == 2 * (3003 + 59_700)


def test_an_explicit_zero_is_not_replaced() -> None:
    reading = streamed([start(input_tokens=0, output_tokens=3), *text("Hello"), report(output_tokens=0), STOP])
    assert reading.usage == {"input_tokens": 0, "output_tokens": 0}


def test_a_cut_stream_of_806_deltas_is_not_one_token() -> None:
    reading = streamed([start(input_tokens=10, output_tokens=1), *text(*["word "] * 806)])
    assert "output_tokens" not in reading.usage
    assert reading.text_bytes == 806 * 5
    assert not reading.complete
    request = orjson.dumps({"model": "m", "max_tokens": 8192, "messages": []})
    demand = AnthropicDialect().read_request(RouteRequest(MESSAGES, request)).demand
    usage, source = fill_in_usage(reading.usage, MessagesShape.needed, reading.text_bytes, demand)
    assert (usage["output_tokens"], source) == (4030, "estimated")


def test_a_call_that_is_cut_off_is_not_free() -> None:
    reading = streamed([start(input_tokens=10, cache_read_input_tokens=5, output_tokens=1)])
    assert reading.usage == {"input_tokens": 15, "cache_read_tokens": 5}
    assert not reading.complete


def searching(*names: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for at, name in enumerate(names):
        blocks = (
            {"type": "server_tool_use", "id": f"srvtoolu_{at}", "name": name, "input": {}},
            {"type": f"{name}_tool_result", "tool_use_id": f"srvtoolu_{at}", "content": []},
        )
        events += [{"type": "content_block_start", "index": at, "content_block": block} for block in blocks]
    return events


def test_searches_of_a_cut_stream_are_not_free() -> None:
    first = start(input_tokens=2000, output_tokens=1, server_tool_use={"web_search_requests": 0})
    reading = streamed([first, *searching("web_search", "web_fetch", "web_search", "web_search"), *text("Found")])
    assert reading.usage == {"input_tokens": 2000, "web_searches": 3}
    assert not reading.complete


@pytest.mark.parametrize(("used", "searches"), [({"server_tool_use": {"web_search_requests": 2}}, 2), ({}, 3)])
def test_the_vendor_says_how_many_searches_are_charged(used: dict[str, Any], searches: int) -> None:
    events = [start(input_tokens=10), *searching(*["web_search"] * 3), report(output_tokens=9, **used), STOP]
    assert streamed(events).usage == {"input_tokens": 10, "output_tokens": 9, "web_searches": searches}


def test_thinking_is_not_added_to_the_output_that_holds_it() -> None:
    usage = whole(message(input_tokens=0, output_tokens=1000, output_tokens_details={"thinking_tokens": 800})).usage
    assert usage["reasoning_tokens"] == 800
    assert cost_usd_millionths(usage) == 15_000


# ---- answers --------------------------------------------------------------------------------------------------------


def test_an_answer_says_who_made_it_and_at_which_rates() -> None:
    reading = whole(message(input_tokens=1, output_tokens=2, service_tier="priority", speed="fast", inference_geo="us"))
    assert reading.model == "claude-sonnet-4-5"
    assert reading.context == {"service_tier": "priority", "speed": "fast", "inference_geo": "us"}
    assert reading.complete
    assert whole(message(input_tokens=1, output_tokens=2, service_tier="batch")).context["processing"] == "batch"


def test_counts_that_are_none_are_missing() -> None:
    reading = whole(message(input_tokens=-1, output_tokens="7", cache_read_input_tokens=True, server_tool_use=[]))
    assert reading.usage == {}
    assert whole({"type": "message", "usage": "much"}).usage == {}
    assert whole({}).usage == {}


def test_without_input_tokens_the_parts_do_not_pass_for_the_whole() -> None:
    usage = whole(message(cache_read_input_tokens=900, output_tokens=1)).usage
    assert usage == {"cache_read_tokens": 900, "output_tokens": 1}


def test_a_split_without_its_sum_is_summed() -> None:
    split = {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 6}
    usage = whole(message(input_tokens=1, cache_creation=split, output_tokens=0)).usage
    assert (usage["input_tokens"], usage["cache_write_tokens"], usage["cache_write_1h_tokens"]) == (11, 10, 6)


def test_text_is_what_the_model_wrote() -> None:
    content = [
        {"type": "thinking", "thinking": "abc", "signature": "de"},
        {"type": "text", "text": "fé"},
        {"type": "tool_use", "id": "toolu_1", "name": "gh", "input": {"k": "ij"}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": [{"encrypted_content": "x" * 999}]},
    ]
    assert whole({"content": content}).text_bytes == 3 + 2 + 3 + 2 + 2


def test_an_error_is_named() -> None:
    reading = whole({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
    assert reading.failed == "overloaded_error"


# ---- streams --------------------------------------------------------------------------------------------------------


def test_only_message_stop_completes_a_stream() -> None:
    events = [start(input_tokens=1, output_tokens=1), *text("a"), report(output_tokens=2)]
    assert not streamed(events).complete
    assert streamed([*events, STOP]).complete


def test_an_error_in_a_stream_is_named_and_ends_nothing() -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    reading = streamed([start(input_tokens=7, output_tokens=1), *text("ab"), error])
    assert (reading.failed, reading.complete, reading.text_bytes) == ("overloaded_error", False, 2)
    assert reading.usage == {"input_tokens": 7}
    assert streamed([{"type": "error"}]).failed == "error"


def test_results_of_the_vendors_tools_are_no_text_of_the_stream() -> None:
    result = {"type": "web_search_tool_result", "tool_use_id": "s", "content": [{"encrypted_content": "x" * 999}]}
    use = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    blocks = [
        {"type": "content_block_start", "index": n, "content_block": each} for n, each in enumerate([use, result])
    ]
    assert streamed([start(input_tokens=1, output_tokens=1), *blocks]).text_bytes == len("web_search")


def test_thinking_that_is_not_shown_is_estimated_when_a_stream_is_cut() -> None:
    hidden = [
        {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "", "estimated_tokens": count}}
        for count in (50, None, 100)
    ]
    reading = streamed([start(input_tokens=1, output_tokens=1), *hidden, *text("ab")])
    assert reading.text_bytes == 152
    ended = streamed([start(input_tokens=1, output_tokens=1), *hidden, report(output_tokens=140), STOP])
    assert ended.usage["output_tokens"] == 140


def test_a_split_of_cache_writes_is_kept_when_later_reports_leave_it_out() -> None:
    split = {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 300}
    first = start(input_tokens=10, cache_creation_input_tokens=400, cache_creation=split, output_tokens=1)
    same = streamed([first, report(cache_creation_input_tokens=400, output_tokens=5), STOP]).usage
    assert (same["cache_write_tokens"], same["cache_write_1h_tokens"]) == (400, 300)
    more = streamed([first, report(cache_creation_input_tokens=900, output_tokens=5), STOP]).usage
    assert (more["cache_write_tokens"], more["cache_write_1h_tokens"]) == (900, 800)
    short = {**split, "ephemeral_1h_input_tokens": 0}
    first = start(input_tokens=10, cache_creation_input_tokens=100, cache_creation=short, output_tokens=1)
    plain = streamed([first, report(cache_creation_input_tokens=900, output_tokens=5), STOP]).usage
    assert (plain["cache_write_tokens"], plain["cache_write_1h_tokens"]) == (900, 0)


def test_nulls_in_a_later_report_take_nothing_back() -> None:
    last = report(input_tokens=None, cache_read_input_tokens=None, output_tokens=5)
    reading = streamed([start(input_tokens=10, cache_read_input_tokens=4, output_tokens=1), last, STOP])
    assert reading.usage == {"input_tokens": 14, "cache_read_tokens": 4, "output_tokens": 5}


def test_a_compaction_cut_off_leaves_the_output_to_be_estimated() -> None:
    steps = [{"type": "compaction", "input_tokens": 100, "output_tokens": 50}]
    reading = streamed([start(input_tokens=10, output_tokens=1, iterations=steps), *text("ab")])
    assert reading.usage == {"input_tokens": 10}
    ended = streamed([start(input_tokens=10, output_tokens=1), report(output_tokens=5, iterations=steps), STOP])
    assert ended.usage == {"input_tokens": 110, "output_tokens": 55}


def test_other_iterations_are_in_the_totals_already() -> None:
    steps = [{"type": "message", "input_tokens": 6, "output_tokens": 2}] * 2
    assert whole(message(input_tokens=12, output_tokens=4, iterations=steps)).usage == {
        "input_tokens": 12, "output_tokens": 4,
    }  # fmt: skip


@pytest.mark.parametrize("value", [{}, {"type": "message_start"}, {"type": "message_delta"}])
def test_events_that_say_nothing_change_nothing(value: dict[str, Any]) -> None:
    fold = MessagesShape().fold()
    assert fold.take(None, value) is False
    fold.done()
    assert fold.reading() == Reading({}, 0, complete=False)


# ---- batches --------------------------------------------------------------------------------------------------------


def test_a_batch_says_how_it_stands() -> None:
    reading = whole({"id": "msgbatch_1", "processing_status": "in_progress"}, BatchShape())
    assert (reading.job, reading.status, reading.usage, reading.complete) == ("msgbatch_1", "in_progress", {}, True)
    assert BatchShape().needed == ()
    assert BatchShape().fold().reading().usage == {}


def test_each_result_is_read_by_itself() -> None:
    result = {"type": "succeeded", "message": message(input_tokens=5, output_tokens=6, service_tier="batch")}
    reading = whole({"custom_id": "a", "result": result}, BatchResultsShape())
    assert (reading.job, reading.status, reading.model) == ("a", "succeeded", "claude-sonnet-4-5")
    assert reading.usage == {"input_tokens": 5, "output_tokens": 6}
    assert reading.context["processing"] == "batch"


def test_results_that_failed_cost_nothing_and_say_why() -> None:
    failure = {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}
    reading = whole({"custom_id": "a", "result": {"type": "errored", "error": failure}}, BatchResultsShape())
    assert (reading.usage, reading.failed, reading.status) == ({}, "invalid_request_error", "errored")


def test_a_file_of_results_is_summed() -> None:
    lines = [
        {"custom_id": str(n), "result": {"type": "succeeded", "message": message(input_tokens=n, output_tokens=1)}}
        for n in range(1, 5)
    ]
    reading = streamed([*lines, {"custom_id": "9", "result": {"type": "expired"}}], BatchResultsShape(), "lines")
    assert reading.usage == {"input_tokens": 10, "output_tokens": 4}
    assert reading.complete
    assert reading.model == "claude-sonnet-4-5"
    assert not streamed([], BatchResultsShape(), "lines").complete
