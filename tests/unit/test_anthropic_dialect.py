"""What Anthropic requests can cost at most, what is refused, and how errors look."""

from typing import Any

import orjson
import pytest

from services.core.estimate import UnpricedComponentError, strict_bound
from services.core.pricing import Price, Variant
from services.gateway.vendors import RequestFacts, RequestRefusedError, Route, RouteRequest
from services.gateway.vendors.anthropic import BATCHES, MESSAGES, AnthropicDialect
from services.gateway.vendors.anthropic_content import MAX_IMAGE_TOKENS
from services.gateway.vendors.anthropic_tools import MAX_ROUNDS, PROMPT_TOKENS
from services.gateway.vendors.fields import TEMPLATE_TOKENS

DIALECT = AnthropicDialect()
HELLO = {"role": "user", "content": "Hello"}
USD = 10**9


def ask(**fields: Any) -> dict[str, Any]:
    return {"model": "claude-sonnet-4-5", "max_tokens": 1024, "messages": [HELLO], **fields}


def read(request: object, route: Route = MESSAGES, **options: Any) -> RequestFacts:
    body = request if isinstance(request, bytes) else orjson.dumps(request)
    return DIALECT.read_request(RouteRequest(route, body, **options))


def refused(request: object, route: Route = MESSAGES) -> RequestRefusedError:
    with pytest.raises(RequestRefusedError) as caught:
        read(request, route)
    return caught.value


def user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return ask(messages=[{"role": "user", "content": list(blocks)}])


def nest(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def batch(*requests: dict[str, Any]) -> dict[str, Any]:
    return {"requests": [{"custom_id": str(place), "params": params} for place, params in enumerate(requests)]}


# ---- what is read ---------------------------------------------------------------------------------------------------


def test_a_plain_request_is_bounded_by_its_bytes_and_max_tokens() -> None:
    request = ask(stream=True)
    facts = read(request)
    assert (facts.model, facts.stream) == ("claude-sonnet-4-5", True)
    assert facts.body == orjson.dumps(request)
    assert facts.demand.input_tokens == len(facts.body) + TEMPLATE_TOKENS
    assert facts.demand.output_tokens_limit == 1024
    assert (facts.demand.rounds, facts.demand.unseen, facts.demand.parts) == (1, None, frozenset())


def test_what_the_coding_agent_sends_is_read() -> None:
    tools = [
        {"name": f"Tool{place}", "description": "x" * 2500, "input_schema": {"type": "object", "properties": {}}}
        for place in range(24)
    ]
    system = [{"type": "text", "text": "You are", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    conversation = [
        HELLO,
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm", "signature": "Eq"},
            {"type": "tool_use", "id": "toolu_1", "name": "Tool1", "input": {"type": "document", "source": {}}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "ok"}]},
        ]},
    ]  # fmt: skip
    management = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
    request = ask(
        max_tokens=64_000, stream=True, system=system, messages=conversation, tools=tools,
        thinking={"type": "adaptive"}, context_management=management, metadata={"user_id": "u"},
    )  # fmt: skip
    facts = read(
        request, query="beta=true", headers=((b"anthropic-beta", b"claude-code-20250219,interleaved-thinking"),)
    )
    demand = facts.demand
    assert demand.input_tokens == len(facts.body) + PROMPT_TOKENS + TEMPLATE_TOKENS
    assert (demand.output_tokens_limit, demand.rounds, demand.unseen) == (64_000, 1, None)
    assert demand.parts == {"cache_write_1h"}


def test_max_tokens_zero_warms_the_cache() -> None:
    assert read(ask(max_tokens=0)).demand.output_tokens_limit == 0


def test_a_thinking_budget_beyond_max_tokens_bounds_the_output() -> None:
    thinking = {"type": "enabled", "budget_tokens": 5000}
    assert read(ask(thinking=thinking)).demand.output_tokens_limit == 5000
    assert read(ask(max_tokens=9000, thinking=thinking)).demand.output_tokens_limit == 9000


@pytest.mark.parametrize(
    "body",
    [
        ask(cache_control={"type": "ephemeral", "ttl": "1h"}),
        ask(system=[{"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]),
        orjson.dumps(ask(cache_control={"type": "ephemeral", "ttl": "@"})).replace(b"@", rb"\u0031h"),
        orjson.dumps(ask(cache_control={"type": "ephemeral", "ttl": "@"})).replace(b"@", rb"1\u0068"),
    ],
)
def test_one_hour_cache_writes_are_in_reach_only_when_asked_for(body: object) -> None:
    assert read(body).demand.parts == {"cache_write_1h"}
    assert read(ask(cache_control={"type": "ephemeral", "ttl": "5m"})).demand.parts == frozenset()


@pytest.mark.parametrize("source", [{"type": "base64", "data": "iVBO"}, {"type": "url", "url": "u"}, {"type": "file"}])
def test_each_image_counts_at_most_the_published_tokens(source: dict[str, str]) -> None:
    image = {"type": "image", "source": source}
    nested = {"type": "tool_result", "tool_use_id": "t", "content": [image]}
    plain = len(orjson.dumps(user(image, nested))) + TEMPLATE_TOKENS
    demand = read(user(image, nested)).demand
    assert demand.input_tokens == plain + 2 * MAX_IMAGE_TOKENS
    assert demand.unseen is None


@pytest.mark.parametrize(
    "block",
    [
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}},
        {"type": "document", "source": {"type": "url", "url": "https://example.com/a.pdf"}},
        {"type": "document", "source": {"type": "file", "file_id": "file_1"}},
        {"type": "text", "text": "x", "source": {"type": "url"}},
        {"type": "hologram"},
        {"type": ["image"]},
        {"type": "web_fetch_tool_result", "content": {"type": "web_fetch_result", "content": {
            "type": "document", "source": {"type": "base64", "data": "JVBE"}}}},
    ],
)  # fmt: skip
def test_content_whose_length_cannot_be_seen_may_fill_the_window(block: dict[str, Any]) -> None:
    demand = read(user(block)).demand
    assert demand.unseen == "messages"
    price = Price({"input": 3 * USD, "output": 15 * USD}, context_window=200_000)
    assert strict_bound(price, demand).input_tokens == 200_000


def test_documents_of_text_are_bounded_by_their_bytes() -> None:
    text = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "abc"}}
    blocks = {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "abc"}]}}
    assert read(user(text, blocks)).demand.unseen is None


def test_a_pdf_inside_a_document_of_blocks_is_found() -> None:
    pdf = {"type": "document", "source": {"type": "base64", "data": "JVBE"}}
    assert read(user({"type": "document", "source": {"type": "content", "content": [pdf]}})).demand.unseen == "messages"


def test_tools_found_by_search_are_put_into_the_prompt_again() -> None:
    tool = {"name": "deep", "description": "x" * 400, "input_schema": {"type": "object"}, "defer_loading": True}
    found = {"type": "tool_reference", "tool_name": "deep"}
    unknown = {"type": "tool_reference", "tool_name": "other"}
    request = {**user({"type": "tool_result", "tool_use_id": "t", "content": [found, unknown]}), "tools": [tool]}
    size = len(orjson.dumps(tool))
    fixed = len(orjson.dumps(request)) + PROMPT_TOKENS + TEMPLATE_TOKENS
    assert read(request).demand.input_tokens == fixed + 2 * size


def test_a_tool_offered_in_mid_conversation_is_read_like_any_other() -> None:
    def added(tool: object) -> dict[str, Any]:
        return user({"type": "tool_addition", "tool": tool})

    search = {"type": "web_search_20250305", "name": "web_search"}
    assert refused(added({"type": "tool_definition", "definition": search})).param == "tools.max_uses"
    demand = read(added({"type": "tool_definition", "definition": {**search, "max_uses": 2}})).demand
    assert (demand.counts, demand.rounds) == ({"web_searches": 2}, MAX_ROUNDS)
    own = {"name": "deep", "description": "x" * 400, "input_schema": {"type": "object"}}
    request = {**added({"type": "tool_reference", "name": "deep"}), "tools": [own]}
    again = len(orjson.dumps(request)) + len(orjson.dumps(own)) + PROMPT_TOKENS + TEMPLATE_TOKENS
    assert read(request).demand.input_tokens == again
    assert read(added({"type": "mcp_toolset_reference", "server_name": "s"})).demand.unseen is None
    assert refused(added("deep")).param == "messages"


def test_a_thread_that_goes_on_may_fill_the_window() -> None:
    assert read(ask(thread={"type": "create"})).demand.unseen is None
    assert read(ask(thread={"type": "continue", "previous_message_id": "msg_1"})).demand.unseen == "thread"
    assert read(ask(container={"skills": [{"skill_id": "pdf"}]})).demand.unseen == "container"


def test_a_beta_with_a_longer_window_bounds_what_cannot_be_seen() -> None:
    request = user({"type": "document", "source": {"type": "url", "url": "u"}})
    long = read(request, headers=((b"Anthropic-Beta", b"a,context-1m-2025-08-07"),)).demand
    assert long.input_tokens == 1_000_000
    assert read(ask(), headers=((b"anthropic-beta", b"context-1m-2025-08-07"),)).demand.input_tokens < 1_000


def test_compaction_is_a_run_of_its_own() -> None:
    edits = [{"type": "clear_tool_uses_20250919"}, {"type": "compact_20260112"}]
    for request in (ask(context_management={"edits": edits}), ask(compaction={"type": "summarize"})):
        demand = read(request).demand
        assert (demand.rounds, demand.output_tokens_limit) == (2, None)


# ---- server tools ---------------------------------------------------------------------------------------------------


def test_web_search_is_bounded_by_max_uses_and_the_vendors_own_loop() -> None:
    tool = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
    demand = read(ask(tools=[tool])).demand
    assert demand.counts == {"web_searches": 5}
    assert demand.rounds == MAX_ROUNDS


def test_web_search_without_max_uses_is_refused_by_name() -> None:
    error = refused(ask(tools=[{"type": "web_search_20260318", "name": "web_search"}]))
    assert (error.code, error.param) == ("unpriced_feature", "tools.max_uses")
    assert "set max_uses" in str(error)


@pytest.mark.parametrize("uses", [0, -1, 1.5, True, "3", 10**9])
def test_a_malformed_max_uses_is_refused(uses: object) -> None:
    error = refused(ask(tools=[{"type": "web_search_20250305", "name": "web_search", "max_uses": uses}]))
    assert (error.code, error.param) == ("invalid_request", "tools.max_uses")


def test_code_execution_is_free_only_beside_newer_web_tools() -> None:
    code = {"type": "code_execution_20260120", "name": "code_execution"}
    for tools in ([code], [code, {"type": "web_fetch_20250910", "name": "web_fetch"}]):
        error = refused(ask(tools=tools))
        assert (error.code, error.param) == ("unpriced_feature", "tools")
        assert "code execution" in str(error)
    demand = read(ask(tools=[code, {"type": "web_fetch_20260209", "name": "web_fetch"}])).demand
    assert demand.rounds == MAX_ROUNDS
    assert demand.counts == {}


@pytest.mark.parametrize("kind", ["tool_search_tool_bm25_20251119", "web_fetch_20250910", "mcp_toolset"])
def test_other_server_tools_loop_without_a_charge_of_their_own(kind: str) -> None:
    assert read(ask(tools=[{"type": kind, "name": "x"}])).demand.rounds == MAX_ROUNDS


def test_remote_servers_loop() -> None:
    assert read(ask(mcp_servers=[{"type": "url", "url": "u", "name": "n"}])).demand.rounds == MAX_ROUNDS


@pytest.mark.parametrize(
    "kind",
    ["bash_20250124", "text_editor_20250728", "computer_20251124", "memory_20250818", "computer_toolset_20260801"],
)
def test_client_tools_of_the_vendor_add_their_descriptions(kind: str) -> None:
    plain = ask(tools=[{"type": "custom", "name": kind}])
    known = ask(tools=[{"type": kind, "name": kind}])
    longer = len(orjson.dumps(known)) - len(orjson.dumps(plain))
    added = read(known).demand.input_tokens - read(plain).demand.input_tokens - longer
    assert added >= 735 + 499
    assert read(known).demand.rounds == 1


@pytest.mark.parametrize("kind", ["advisor_20260301", "teleport_20270101"])
def test_tools_that_cannot_be_priced_are_refused(kind: str) -> None:
    error = refused(ask(tools=[{"type": kind, "name": "x", "model": "claude-opus-5"}]))
    assert (error.code, error.param) == ("unpriced_feature", "tools")
    assert "leave it out of tools" in str(error)


# ---- price contexts -------------------------------------------------------------------------------------------------


def test_every_context_the_vendor_may_choose_is_in_reach() -> None:
    contexts = read(ask()).demand.contexts
    assert {} in contexts
    assert {"service_tier": "priority", "inference_geo": "us"} in contexts
    only = read(ask(service_tier="standard_only", inference_geo="global")).demand.contexts
    assert only == ({"inference_geo": "global"},)


def test_fast_mode_needs_a_price_of_its_own() -> None:
    standard = {"input": 5 * USD, "output": 25 * USD}
    fast = {"input": 10 * USD, "output": 50 * USD}
    demand = read(ask(speed="fast")).demand
    bound = strict_bound(Price(standard, variants=(Variant({"speed": "fast"}, fast),)), demand)
    assert bound.amount_nano == demand.input_tokens * 10_000 + 1024 * 50_000
    with pytest.raises(UnpricedComponentError, match="speed fast"):
        strict_bound(Price(standard), demand)
    assert read(ask(speed="standard")).demand.distinct == {}


def test_a_geography_with_a_surcharge_needs_a_price_of_its_own() -> None:
    assert read(ask(inference_geo="us")).demand.distinct == {"inference_geo": "us"}
    assert read(ask(inference_geo="global")).demand.distinct == {}


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": ["hi"]}, "messages"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages"),
        ({"system": 7}, "system"),
        ({"stream": "yes"}, "stream"),
        ({"tools": "all"}, "tools"),
        ({"tools": [{"type": 7}]}, "tools"),
        ({"thinking": {"type": "enabled", "budget_tokens": "big"}}, "budget_tokens"),
        ({"speed": 7}, "speed"),
        ({"service_tier": "x" * 65}, "service_tier"),
    ],
)
def test_malformed_fields_are_named(change: dict[str, Any], param: str) -> None:
    error = refused(ask(**change))
    assert (error.code, error.param) == ("invalid_request", param)


@pytest.mark.parametrize("fallbacks", ["default", [{"model": "claude-haiku-4-5"}]])
def test_other_models_are_refused(fallbacks: object) -> None:
    error = refused(ask(fallbacks=fallbacks))
    assert (error.code, error.param) == ("unpriced_feature", "fallbacks")
    read(ask(fallbacks=[]))


def test_a_bill_for_somebody_else_is_refused() -> None:
    policy = {"type": "billing_policy", "bill_to": "user_profile"}
    assert refused(ask(billing_policy=policy)).param == "billing_policy"
    read(ask(billing_policy={"type": "billing_policy", "bill_to": "self"}))


@pytest.mark.parametrize("field", ["model", "max_tokens", "tools", "speed", "fallbacks"])
def test_a_decided_field_that_is_there_twice_is_refused(field: str) -> None:
    request = ask(**({} if field in ("model", "max_tokens") else {field: None}))
    body = orjson.dumps(request)
    twice = body[:-1] + b',"' + field.encode() + b'":null}'
    assert refused(twice).param == field


# ---- batches --------------------------------------------------------------------------------------------------------


def test_a_batch_is_bounded_by_the_sum_of_its_requests_at_the_batch_price() -> None:
    requests = [ask(), ask(max_tokens=10, messages=[{"role": "user", "content": "Hi"}])]
    facts = read(batch(*requests), BATCHES)
    assert facts.model == "claude-sonnet-4-5"
    assert facts.context == {"processing": "batch"}
    assert (facts.demand.input_tokens, facts.demand.output_tokens_limit) == (0, 0)
    sizes = [len(orjson.dumps(each)) + TEMPLATE_TOKENS for each in requests]
    assert [line.demand.input_tokens for line in facts.lines] == sizes
    assert [line.demand.output_tokens_limit for line in facts.lines] == [1024, 10]
    assert all(context["processing"] == "batch" for line in facts.lines for context in line.demand.contexts)


def test_each_request_of_a_batch_has_its_own_model() -> None:
    facts = read(batch(ask(), ask(model="claude-opus-5")), BATCHES)
    assert [line.model for line in facts.lines] == ["claude-sonnet-4-5", "claude-opus-5"]


def test_a_batch_at_full_price_is_not_what_is_held() -> None:
    full, half = {"input": 3 * USD, "output": 15 * USD}, {"input": 3 * USD // 2, "output": 15 * USD // 2}
    demand = read(batch(ask()), BATCHES).lines[0].demand
    bound = strict_bound(Price(full, variants=(Variant({"processing": "batch"}, half),)), demand)
    assert bound.amount_nano == demand.input_tokens * 1_500 + 1024 * 7_500


def test_each_run_of_a_batch_that_cannot_be_seen_may_fill_a_window() -> None:
    pdf = user({"type": "document", "source": {"type": "url", "url": "u"}})
    search = ask(tools=[{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}])
    lines = read(batch(ask(max_tokens=2000), pdf, search), BATCHES).lines
    assert [line.demand.counts for line in lines] == [{}, {}, {"web_searches": 3}]
    price = Price({"input": USD, "output": USD, "web_search": USD}, context_window=200_000)
    plain, unseen, searching = (strict_bound(price, line.demand) for line in lines)
    assert plain.input_tokens == lines[0].demand.input_tokens
    assert unseen.input_tokens == 200_000
    assert searching.input_tokens == MAX_ROUNDS * 200_000
    assert searching.output_tokens == MAX_ROUNDS * 1024


def test_a_batch_with_a_compaction_is_bounded_by_the_models_limit() -> None:
    demand = read(batch(ask(compaction={"type": "summarize"})), BATCHES).lines[0].demand
    assert demand.output_tokens_limit is None
    assert demand.rounds == 2


@pytest.mark.parametrize(
    ("requests", "code", "param"),
    [
        ([], "invalid_request", "requests"),
        ([ask(), ask(max_tokens=None)], "invalid_request", "requests[1].params.max_tokens"),
        ([ask(stream=True)], "invalid_request", "requests[0].params.stream"),
        ([ask(fallbacks="default")], "unpriced_feature", "requests[0].params.fallbacks"),
        ([None], "invalid_request", "requests[0].params"),
    ],
)
def test_a_batch_is_refused_by_the_place_of_what_is_wrong(requests: list[Any], code: str, param: str) -> None:
    error = refused(batch(*requests), BATCHES)
    assert (error.code, error.param) == (code, param)


def test_a_batch_with_a_limit_twice_is_refused() -> None:
    body = orjson.dumps(batch(ask())).replace(b'"max_tokens":1024', b'"max_tokens":1024,"max_tokens":64000')
    assert refused(body, BATCHES).param == "requests.max_tokens"


def test_a_batch_that_is_nested_too_deeply_is_refused() -> None:
    body = orjson.dumps(batch(ask(metadata="@")))
    assert read(body.replace(b'"@"', nest(100)), BATCHES).model == "claude-sonnet-4-5"
    for depth in (900, 100_000):
        assert refused(body.replace(b'"@"', nest(depth)), BATCHES).code == "invalid_request"


def test_a_tool_that_is_nested_too_deeply_is_refused() -> None:
    request = user({"type": "tool_reference", "tool_name": "deep"})
    body = orjson.dumps({**request, "tools": [{"name": "deep", "input_schema": "@"}]})
    assert read(body.replace(b'"@"', nest(100))).demand.rounds == 1
    assert refused(body.replace(b'"@"', nest(900))).param == "tools"


# ---- routes, names, keys, errors ------------------------------------------------------------------------------------


def test_every_route_that_costs_money_says_how_it_is_read() -> None:
    billable = {route.name for route in DIALECT.routes if route.billing in ("held", "submitted")}
    assert billable == {"messages", "messages.batches"}
    assert billable <= DIALECT.shapes.keys()
    assert DIALECT.shapes["messages.batches.results"].framing == "lines"
    paths = [(route.method, route.path) for route in DIALECT.routes]
    assert len(set(paths)) == len(paths)


def test_another_model_changes_nothing_else() -> None:
    body = b'{ "max_tokens": 1, "model" : "claude-a", "messages": [] }'
    renamed = DIALECT.renamed(RouteRequest(MESSAGES, body), "claude-b")
    assert renamed.body == body.replace(b"claude-a", b"claude-b")
    with pytest.raises(RequestRefusedError, match="batch"):
        DIALECT.renamed(RouteRequest(BATCHES, orjson.dumps(batch(ask()))), "claude-b")


def test_keys_go_where_the_vendor_looks_for_them() -> None:
    assert DIALECT.credential_headers(None) == ()
    assert DIALECT.credential_headers("sk-ant-api03-x") == ((b"x-api-key", b"sk-ant-api03-x"),)
    assert DIALECT.credential_headers("sk-ant-oat01-x") == ((b"authorization", b"Bearer sk-ant-oat01-x"),)
    assert set(DIALECT.key_headers) == {"x-api-key", "authorization"}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (402, "billing_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_an_error_is_in_the_vendors_envelope(status: int, kind: str) -> None:
    fields = {"budget_id": "b1", "remaining_usd": "0.10", "type": "hidden", "transaction_id": "tx1"}
    error = orjson.loads(DIALECT.error_body(status, "budget_exhausted", "No money left.", "model", fields))
    assert error["type"] == "error"
    assert error["request_id"] == "tx1"
    inner = error["error"]
    assert (inner["type"], inner["message"], inner["code"], inner["param"]) == (
        kind, "No money left.", "budget_exhausted", "model",
    )  # fmt: skip
    assert (inner["budget_id"], inner["remaining_usd"]) == ("b1", "0.10")
    assert inner["details"] == {"error_code": "budget_exhausted"}


def test_an_error_in_a_stream_is_an_event_of_its_own() -> None:
    event = DIALECT.stream_error("budget_exhausted", "No money left.", {"budget_id": "b1"})
    assert event.startswith(b"\n\nevent: error\ndata: ")
    assert event.endswith(b"\n\n")
    error = orjson.loads(event.split(b"data: ", 1)[1])
    assert error["error"]["type"] == "billing_error"
    assert error["error"]["budget_id"] == "b1"
