"""OpenAI's dialect: how a chat completion is read, what is refused, how errors look, and which routes there are."""

import base64
import json
from typing import Any

import orjson
import pytest

from services.core.estimate import Demand
from services.core.usage.reading import AnswerShape
from services.gateway.vendors import Dialect, RequestFacts, RequestRefusedError, RouteRequest
from services.gateway.vendors.fields import TEMPLATE_TOKENS
from services.gateway.vendors.openai import OpenAIDialect
from services.gateway.vendors.openai_content import MAX_IMAGE_TOKENS
from services.gateway.vendors.openai_routes import CHAT
from tests.support.audio import wave

DIALECT: Dialect = OpenAIDialect()
HELLO = [{"role": "user", "content": "Hello"}]


def body_of(**fields: Any) -> bytes:
    return orjson.dumps({"model": "gpt-4o", "messages": HELLO, **fields})


def read(body: bytes) -> RequestFacts:
    return DIALECT.read_request(RouteRequest(CHAT, body))


def refusal(body: bytes) -> tuple[str, str | None]:
    with pytest.raises(RequestRefusedError) as caught:
        read(body)
    assert str(caught.value)
    return caught.value.code, caught.value.param


def parts(*content: Any, **fields: Any) -> bytes:
    return body_of(messages=[{"role": "user", "content": list(content)}], **fields)


# ---- reading --------------------------------------------------------------------------------------------------------


def test_a_plain_request() -> None:
    body = body_of(max_tokens=100, temperature=0.5, service_tier="default")
    facts = read(body)
    assert facts.demand == Demand(input_tokens=len(body) + TEMPLATE_TOKENS, output_tokens_limit=100)
    assert (facts.model, facts.stream, facts.body, facts.hide_usage_chunk) == ("gpt-4o", False, body, False)
    assert (facts.counted, facts.context) == ({}, {})
    shape: AnswerShape = facts.shape
    assert shape.needed == ("input_tokens", "output_tokens")


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, None),
        ({"max_tokens": None, "max_completion_tokens": None}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 7}, 7),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({"max_tokens": 9, "max_completion_tokens": 7}, 9),
    ],
)
def test_max_completion_tokens_is_not_ignored_in_favour_of_max_tokens(
    fields: dict[str, Any], limit: int | None
) -> None:
    assert read(body_of(**fields)).demand.output_tokens_limit == limit


def test_n_above_one_is_not_bounded_as_one() -> None:
    assert read(body_of(n=3)).demand.choices == 3
    assert read(body_of(n=3, best_of=5)).demand.choices == 5


def test_null_fields() -> None:
    facts = read(body_of(n=None, stream=None, stream_options=None, tools=None, service_tier=None, modalities=None))
    assert (facts.demand.choices, facts.stream, facts.hide_usage_chunk) == (1, False, False)


def test_what_a_request_costs_nothing_extra_for_is_let_through() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"model": {}, "n": {}}}}}]
    body = body_of(
        tools=[*tools, {"type": "custom", "custom": {"name": "c"}}], service_tier="auto", modalities=["text"],
        response_format={"type": "json_object"}, reasoning_effort="low", store=True, metadata={"model": "x"},
        logit_bias={"7": 1}, seed=7, stop=["\n"], user="u", web_search_options=None, prediction=None,
    )  # fmt: skip
    assert read(body).body is body


def test_images_count_at_their_documented_maximum() -> None:
    url = "https://example.com/cat.png"
    image = {"type": "image_url", "image_url": {"url": url, "detail": "high"}}
    body = parts({"type": "text", "text": "What are these?"}, image, image, model="gpt-6-sol")
    assert read(body).demand.input_tokens == len(body) + TEMPLATE_TOKENS + 2 * MAX_IMAGE_TOKENS
    disguised = parts({"type": "text", "text": "x", "image_url": {"url": url}}, model="gpt-4o-mini")
    assert read(disguised).demand.input_tokens == len(disguised) + TEMPLATE_TOKENS + MAX_IMAGE_TOKENS
    assert read(body).demand.parts == {"image_input", "image_cache_read"}


def test_images_of_models_with_a_published_maximum_count_at_that() -> None:
    for model in ("gpt-4o-2024-08-06", "gpt-4.1-nano", "gpt-5-mini", "o3"):
        body = parts({"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}, model=model)
        assert read(body).demand.input_tokens == len(body) + TEMPLATE_TOKENS + 3_779


def test_the_data_of_images_and_files_is_no_text() -> None:
    data = "data:image/png;base64," + "A" * 10_000
    body = parts({"type": "image_url", "image_url": {"url": data}})
    assert read(body).demand.input_tokens == len(body) - len(data) + TEMPLATE_TOKENS + 3_779
    body = parts({"type": "file", "file": {"file_data": data}})
    assert read(body).demand.input_tokens == len(body) - len(data) + TEMPLATE_TOKENS


def test_audio_asks_for_an_audio_price_and_counts_by_its_length() -> None:
    data = base64.b64encode(wave(seconds=3)).decode()
    body = parts({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}})
    demand = read(body).demand
    assert demand.parts == {"audio_input", "audio_cache_read"}
    assert demand.required == {"audio_input"}
    # Three seconds and one more, at 20 tokens a second.
    assert demand.input_tokens == len(body) - len(data) + TEMPLATE_TOKENS + 80
    assert read(body_of(modalities=["text", "audio"])).demand.required == {"audio_output"}
    assert read(body_of(audio={"voice": "alloy", "format": "wav"})).demand.required == {"audio_output"}


@pytest.mark.parametrize("audio", [None, {}, {"data": 7}, {"data": "no base64!"}, {"data": "\u00e9"}, "AAAA"])
def test_audio_without_its_data_is_refused(audio: Any) -> None:
    assert refusal(parts({"type": "input_audio", "input_audio": audio})) == ("invalid_request", "messages")


def test_what_can_not_be_seen_may_fill_the_window() -> None:
    file = parts({"type": "file", "file": {"file_id": "file-1"}})
    assert read(file).demand.unseen == "messages"
    disguised = parts({"type": "text", "text": "x", "file": {"file_id": "file-1"}})
    assert read(disguised).demand.unseen == "messages"
    earlier = read(body_of(messages=[{"role": "assistant", "audio": {"id": "audio_abc"}}])).demand
    assert (earlier.unseen, earlier.required) == ("messages", {"audio_input"})


def test_a_prediction_is_charged_beyond_the_output_limit() -> None:
    prediction = {"type": "content", "content": "x" * 1_000}
    limit = read(body_of(max_tokens=50, prediction=prediction)).demand.output_tokens_limit
    assert limit == 50 + len(orjson.dumps(prediction))
    assert refusal(body_of(prediction=prediction)) == ("unpriced_feature", "max_tokens")


def test_a_search_is_charged_by_the_request() -> None:
    for body in (body_of(web_search_options={}), body_of(model="gpt-4o-mini-search-preview-2025-03-11")):
        facts = read(body)
        assert (facts.counted, facts.demand.counts) == ({"web_searches": 1}, {"web_searches": 1})
        assert facts.demand.unseen == "web_search_options"
    included = read(body_of(model="sonar-pro", web_search_options={"search_context_size": "low"}))
    assert (included.counted, included.demand.counts) == ({}, {})


@pytest.mark.parametrize(
    ("tier", "contexts", "distinct"),
    [
        (None, ("", "priority", "scale"), {}),
        ("auto", ("", "priority", "scale"), {}),
        ("default", ("",), {}),
        ("flex", ("", "flex"), {}),
        ("priority", ("", "priority"), {"service_tier": "priority"}),
        ("fast", ("", "priority"), {"service_tier": "priority"}),
        ("ultrafast", ("", "ultrafast"), {"service_tier": "ultrafast"}),
    ],
)
def test_every_tier_in_reach_is_bounded(tier: str | None, contexts: tuple[str, ...], distinct: dict[str, str]) -> None:
    demand = read(body_of(service_tier=tier)).demand
    assert tuple(each.get("service_tier", "") for each in demand.contexts) == contexts
    assert demand.distinct == distinct


@pytest.mark.parametrize("where", ["part", "tool", "request", "escaped"])
def test_cache_writes_that_live_an_hour_are_bounded_at_their_own_rate(where: str) -> None:
    """OpenRouter passes them on to Claude."""
    control = {"type": "ephemeral", "ttl": "1h"}
    part = {"type": "text", "text": "x"}
    tool = {"type": "function", "function": {"name": "f"}}
    body = {
        "part": parts({**part, "cache_control": control}),
        "tool": body_of(tools=[{**tool, "cache_control": control}]),
        "request": body_of(cache_control=control),
        "escaped": body_of(cache_control=control).replace(b"1h", b"\\u0031h"),
    }[where]
    assert "cache_write_1h" in read(body).demand.parts
    assert read(parts({**part, "cache_control": {"type": "ephemeral", "ttl": "5m"}})).demand.parts == frozenset()


def test_longer_lived_cache_writes_need_a_price() -> None:
    part = {"type": "text", "text": "x", "prompt_cache_breakpoint": {"mode": "explicit", "ttl": "12h"}}
    assert read(parts(part)).demand.required == {"cache_write_1h"}
    assert read(body_of(prompt_cache_options={"ttl": "12h"})).demand.required == {"cache_write_1h"}
    assert read(body_of(prompt_cache_options={"ttl": "30m"})).demand.required == frozenset()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"[]",
        b'"text"',
        b"null",
        b'{"model": "gpt-4o", "messages": []',
        b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "\xff"}]}',
        b'\xef\xbb\xbf{"model": "gpt-4o", "messages": []}',
        b'{"model": "gpt-4o", "messages": [], "temperature": NaN}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    assert refusal(body) == ("invalid_request", None)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": 7}, "model"),
        ({"model": ["gpt-4o"]}, "model"),
        ({"model": "gpt-4o\n"}, "model"),
        ({"model": "x" * 257}, "model"),
        ({"stream": "true"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 1.0}, "n"),
        ({"n": True}, "n"),
        ({"n": "2"}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1e3}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": "10"}, "max_completion_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": ["hello"]}, "messages"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages"),
        ({"messages": [{"role": "user", "content": [7]}]}, "messages"),
        ({"service_tier": []}, "service_tier"),
        ({"best_of": 0}, "best_of"),
        ({"tools": {}}, "tools"),
        ({"tools": ["f"]}, "tools"),
        ({"modalities": "audio"}, "modalities"),
        ({"modalities": [["audio"]]}, "modalities"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": "no"}}, "stream_options.include_usage"),
    ],
)
def test_a_malformed_field_is_named(fields: dict[str, Any], param: str) -> None:
    assert refusal(body_of(**fields)) == ("invalid_request", param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"search_parameters": {"mode": "auto"}}, "search_parameters"),
        ({"data_sources": [{"type": "azure_search"}]}, "data_sources"),
        ({"model": "gpt-4o:online"}, "model"),
        ({"model": "sonar-deep-research"}, "model"),
        ({"models": ["gpt-4"]}, "models"),
        ({"plugins": [{"id": "web"}]}, "plugins"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": []}]}, "tools"),
        ({"modalities": ["text", "image"]}, "modalities"),
    ],
)
def test_what_can_not_be_priced_is_refused(fields: dict[str, Any], param: str) -> None:
    assert refusal(body_of(**fields)) == ("unpriced_feature", param)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video_url", "video_url": {"url": "https://example.com/v.mp4"}},
        {"type": ["text"], "text": "x"},
        {"text": "x"},
    ],
)
def test_content_of_unknown_length_is_refused(part: dict[str, Any]) -> None:
    assert refusal(parts(part)) == ("unpriced_feature", "messages")


# ---- credentials and errors -----------------------------------------------------------------------------------------


def test_the_credential() -> None:
    assert DIALECT.credential_headers("sk-1") == ((b"authorization", b"Bearer sk-1"),)
    assert DIALECT.credential_headers(None) == ()


def test_errors_come_in_openai_s_envelope_with_our_fields_inside() -> None:
    body = DIALECT.error_body(
        402, "budget_exhausted", "The budget is used up.", None, {"budget_id": "bud_1", "code": "x"}
    )
    assert json.loads(body) == {
        "error": {
            "message": "The budget is used up.",
            "type": "insufficient_quota",
            "param": None,
            "code": "budget_exhausted",
            "budget_id": "bud_1",
        }
    }
    kinds = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 503: "server_error"}
    for status, kind in kinds.items():
        assert json.loads(DIALECT.error_body(status, "c", "m", "model", {}))["error"]["type"] == kind


def test_an_error_within_a_stream_is_an_event() -> None:
    event = DIALECT.stream_error("vendor_unreachable", "The vendor broke off.", {"transaction_id": "txn_1"})
    assert event.startswith(b"\n\ndata: ")
    assert event.endswith(b"\n\n")
    error = json.loads(event.strip().removeprefix(b"data: "))["error"]
    assert (error["code"], error["transaction_id"]) == ("vendor_unreachable", "txn_1")


# ---- routes ---------------------------------------------------------------------------------------------------------

# Every route of OpenAI's that makes a model run, or is charged for in another way.
CHARGED = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/responses/compact", "/v1/embeddings",
    "/v1/images/generations", "/v1/images/edits", "/v1/images/variations", "/v1/audio/speech",
    "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/batches", "/v1/videos", "/v1/fine_tuning/jobs",
    "/v1/vector_stores", "/v1/containers", "/v1/assistants", "/v1/threads/runs", "/v1/evals", "/v1/realtime/sessions",
    "/v1/realtime/client_secrets",
)  # fmt: skip


def test_image_and_audio_routes_and_all_others_that_cost_money_are_inside_the_gate() -> None:
    billing = {each.path: each.billing for each in DIALECT.routes if each.method == "POST"}
    for path in CHARGED:
        assert billing.get(path, "refused by name") in ("held", "submitted", "refused by name")
    held = {path for path, how in billing.items() if how in ("held", "submitted")}
    assert held <= set(CHARGED)
    assert len(held) == 12


def test_every_route_that_costs_money_has_its_reader_and_its_shape() -> None:
    for each in DIALECT.routes:
        if each.billing == "held":
            assert each.name in DIALECT.shapes
            with pytest.raises(RequestRefusedError):
                DIALECT.read_request(RouteRequest(each, b"{}"))
    assert len({each.name for each in DIALECT.routes}) == len(DIALECT.routes)


def test_another_model_is_named_in_the_body_alone() -> None:
    body = b'{ "messages":[{"role":"user","content":"model"}], "model" : "gpt-4o" }'
    renamed = DIALECT.renamed(RouteRequest(CHAT, body), "gpt-4o-mini")
    assert renamed.body == body.replace(b'"gpt-4o"', b'"gpt-4o-mini"')
    with pytest.raises(RequestRefusedError):
        DIALECT.renamed(RouteRequest(CHAT, b"--x--", content_type="multipart/form-data; boundary=x"), "gpt-4o-mini")
