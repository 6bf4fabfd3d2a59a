"""OpenAI's dialect: what is read, what is refused, how a body is edited, how errors look."""

import contextlib
import json
import time
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.vendors import Dialect, RequestFacts, RequestRefusedError
from services.gateway.vendors.openai import (
    MAX_FIELDS,
    MAX_IMAGE_TOKENS,
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_TOOLS,
    MAX_VALUES,
    TEMPLATE_TOKENS,
    OpenAIDialect,
)

DIALECT: Dialect = OpenAIDialect()
HELLO = [{"role": "user", "content": "Hello"}]
USAGE_REQUEST = b'"stream_options":{"include_usage":true},'


def body_of(**fields: Any) -> bytes:
    return orjson.dumps({"model": "gpt-4o", "messages": HELLO, **fields})


def read(body: bytes) -> RequestFacts:
    return DIALECT.read_request("chat.completions", body)


def refusal(body: bytes) -> tuple[str, str | None]:
    with pytest.raises(RequestRefusedError) as caught:
        read(body)
    assert str(caught.value)
    return caught.value.code, caught.value.param


def parts(*content: Any, **message: Any) -> bytes:
    return body_of(messages=[{"role": "user", "content": list(content), **message}])


# ---- reading --------------------------------------------------------------------------------------------------------


def test_a_plain_request() -> None:
    body = body_of(max_tokens=100, temperature=0.5)
    assert read(body) == RequestFacts(
        model="gpt-4o",
        stream=False,
        input_tokens_bound=len(body) + TEMPLATE_TOKENS,
        output_tokens_limit=100,
        choices=1,
        body=body,
        hide_usage_chunk=False,
        components=(),
    )


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
def test_the_larger_limit_bounds_the_output(fields: dict[str, Any], limit: int | None) -> None:
    assert read(body_of(**fields)).output_tokens_limit == limit


def test_choices_and_null_fields() -> None:
    assert read(body_of(n=3)).choices == 3
    facts = read(body_of(n=None, stream=None, stream_options=None, tools=None, service_tier=None, modalities=None))
    assert (facts.choices, facts.stream, facts.hide_usage_chunk) == (1, False, False)


def test_what_a_request_costs_nothing_extra_for_is_let_through() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"model": {}, "n": {}}}}}]
    body = body_of(
        tools=[*tools, {"type": "custom", "custom": {"name": "c"}}], service_tier="auto", modalities=["text"],
        response_format={"type": "json_object"}, reasoning_effort="low", store=True, metadata={"model": "x"},
        logit_bias={"7": 1}, seed=7, stop=["\n"], user="u", web_search_options=None,
    )  # fmt: skip
    assert read(body).body is body


def test_images_count_at_their_documented_maximum() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png", "detail": "high"}}
    body = parts({"type": "text", "text": "What are these?"}, image, image)
    assert read(body).input_tokens_bound == len(body) + TEMPLATE_TOKENS + 2 * MAX_IMAGE_TOKENS
    disguised = parts({"type": "text", "text": "x", "image_url": {"url": "https://example.com/cat.png"}})
    assert read(disguised).input_tokens_bound == len(disguised) + TEMPLATE_TOKENS + MAX_IMAGE_TOKENS


def test_audio_asks_for_an_audio_price() -> None:
    spoken = parts({"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}})
    assert read(spoken).components == ("audio_input",)
    assert read(body_of(modalities=["text", "audio"])).components == ("audio_output",)
    assert read(body_of(audio={"voice": "alloy", "format": "wav"})).components == ("audio_output",)


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
        ({"web_search_options": {}}, "web_search_options"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"models": ["gpt-4"]}, "models"),
        ({"plugins": [{"id": "web"}]}, "plugins"),
        ({"best_of": 20}, "best_of"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"service_tier": []}, "service_tier"),
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
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "text", "text": "x", "file": {"file_data": "data:application/pdf;base64,JVBERi0="}},
        {"type": "video_url", "video_url": {"url": "https://example.com/v.mp4"}},
        {"type": ["text"], "text": "x"},
        {"text": "x"},
    ],
)
def test_content_of_unknown_length_is_refused(part: dict[str, Any]) -> None:
    assert refusal(parts(part)) == ("unpriced_feature", "messages")


def test_an_earlier_spoken_answer_is_refused() -> None:
    body = body_of(messages=[{"role": "assistant", "audio": {"id": "audio_abc"}}])
    assert refusal(body) == ("unpriced_feature", "messages")


def test_another_route_can_not_be_priced() -> None:
    with pytest.raises(RequestRefusedError) as caught:
        DIALECT.read_request("responses", body_of())
    assert caught.value.code == "unpriced_feature"


# ---- keys that could be read in two ways ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        (b'"model":"gpt-4o-mini"', "model"),
        (b'"mod\\u0065l":"gpt-4o-mini"', "model"),
        (b'"\\u006D\\u006fdel" : "gpt-4o-mini"', "model"),
        (b'"MODEL":"gpt-4o-mini"', "model"),
        (b'"Max_Tokens":1000', "max_tokens"),
        (b'"max\\u005ftokens":1000', "max_tokens"),
        (b'"messages":[]', "messages"),
        (b'"stream":true', "stream"),
        (b'"max_to\xe2\x84\xaaens":9', "max_tokens"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_second_key_is_refused(extra: bytes, param: str, first: bool) -> None:
    body = body_of(stream=False, max_tokens=10)
    doubled = b"{" + extra + b"," + body[1:] if first else body[:-1] + b"," + extra + b"}"
    assert refusal(doubled) == ("invalid_request", param)


def test_the_same_key_elsewhere_is_no_second_key() -> None:
    nested = {"metadata": {"model": "a", "messages": "b"}, "user": '"model"', "stop": ["model", "n", "stream"]}
    assert read(body_of(n=1, **nested)).choices == 1
    escaped = b'{"model":"gpt-4o","messages":[{"role":"user","content":"caf\\u00e9 \\u0041 \\\\u0061 \\"model\\""}]}'
    assert read(escaped).model == "gpt-4o"


@pytest.mark.parametrize("extra", [b'"model":"gpt-4o-mini"', b'"mod\\u0065l":"gpt-4o-mini"'])
@pytest.mark.parametrize("first", [True, False])
def test_a_second_key_in_a_large_body_is_refused(extra: bytes, first: bool) -> None:
    body = body_of(user="\u00e9\u4e16 \\" * 30_000, seed=10**15, metadata={"model": 1e300})
    doubled = b"{ " + extra + b" , " + body[1:] if first else body[:-1] + b"\n,\t" + extra + b"\r}"
    assert refusal(doubled) == ("invalid_request", "model")
    assert read(body).body is body


def test_numbers_and_nesting_that_skimming_could_stumble_over() -> None:
    deep = b'{"model":"m","messages":[],"user":"model","x":' + b"[" * 1000 + b"]" * 1000 + b"}"
    assert refusal(deep) == ("invalid_request", None)
    for number in (b"-0.5e-7", b"1e308", b"0", b"-1"):
        assert read(b'{"x":%s,"user":"model","model":"m","messages":[]}' % number).model == "m"


# ---- what one body may cost -----------------------------------------------------------------------------------------

ITEMS = MAX_VALUES + 1


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (body_of(messages=HELLO * (MAX_MESSAGES + 1)), "messages"),
        (body_of(messages=[{"role": "user", "content": ["x"] * (MAX_PARTS // 2 + 1)}] * 2), "messages"),
        (body_of(tools=[{"type": "function"}] * (MAX_TOOLS + 1)), "tools"),
        (body_of(**{f"x{number}": 0 for number in range(MAX_FIELDS)}), None),
        (body_of()[:-1] + b',"a":0' * MAX_FIELDS + b',"user":"model"}', None),
        (body_of(x=[""] * ITEMS), None),
        (b'{"model":"m","messages":[' + b"{}," * ITEMS + b"{}]}", None),
        (b'{"model":"m","messages":[],"x":[' + b"[]," * ITEMS + b"[]]}", None),
    ],
    ids=["messages", "parts", "tools", "fields", "the same field", "texts", "objects", "lists"],
)
def test_more_than_any_model_takes_is_refused(body: bytes, param: str | None) -> None:
    assert refusal(body) == ("invalid_request", param)


def test_as_much_as_is_allowed_is_read() -> None:
    body = body_of(
        messages=[*HELLO * (MAX_MESSAGES - 1), {"role": "user", "content": ["x"] * MAX_PARTS}],
        tools=[{"type": "function"}] * MAX_TOOLS,
        **{f"x{number}": 0 for number in range(MAX_FIELDS - 3)},
    )
    assert read(body).model == "gpt-4o"


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[],"user":"model","x":[' + b'"",' * 1_500_000 + b'""]}',
        b'{"model":"m","messages":[],"x":"\\u0041","y":[' + b'"",' * 1_500_000 + b'""]}',
        b'{"model":"m","messages":[' + b"{}," * 10_000_000 + b"{}]}",
    ],
    ids=["a name quoted twice", "an escaped letter", "messages"],
)
def test_what_a_body_costs_is_in_proportion(body: bytes) -> None:
    started = time.process_time()
    orjson.loads(body[:1] + b'"x":[' + b'"",' * 1_500_000 + b'""]}')
    parsing_s = time.process_time() - started
    started = time.process_time()
    with contextlib.suppress(RequestRefusedError):
        read(body)
    assert time.process_time() - started < 12 * parsing_s + 0.2


def test_a_second_include_usage_is_refused() -> None:
    options = b'{"include_usage":true,"include_usage":false}'
    body = body_of(stream=True)[:-1] + b',"stream_options":' + options + b"}"
    assert refusal(body) == ("invalid_request", "stream_options")


# ---- asking for usage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            b'{"model":"m","messages":[],"stream":true}',
            b"{" + USAGE_REQUEST + b'"model":"m","messages":[],"stream":true}',
        ),
        (
            b' \n{ "model":"m","messages":[],"stream":true}',
            b" \n{" + USAGE_REQUEST + b' "model":"m","messages":[],"stream":true}',
        ),
        (
            b'{"model":"m","stream_options" : null ,"messages":[],"stream":true}',
            b'{"model":"m","stream_options" : {"include_usage":true} ,"messages":[],"stream":true}',
        ),
        (
            b'{"model":"m","stream_options":{ },"messages":[],"stream":true}',
            b'{"model":"m","stream_options":{"include_usage":true },"messages":[],"stream":true}',
        ),
        (
            b'{"model":"m","stream_options":{"include_obfuscation":false},"messages":[],"stream":true}',
            b'{"model":"m","stream_options":{"include_usage":true,"include_obfuscation":false},"messages":[],"stream":true}',
        ),
        (
            b'{"model":"m","stream_options":{"a":[{}],"include_usage": false},"messages":[],"stream":true}',
            b'{"model":"m","stream_options":{"a":[{}],"include_usage": true},"messages":[],"stream":true}',
        ),
        (
            b'{"metadata":{"stream_options":1},"model":"m","stream\\u005foptions":{"include_usage":null},"messages":[],"stream":true}',
            b'{"metadata":{"stream_options":1},"model":"m","stream\\u005foptions":{"include_usage":true},"messages":[],"stream":true}',
        ),
    ],
)  # fmt: skip
def test_usage_is_asked_for_by_the_smallest_edit(before: bytes, after: bytes) -> None:
    facts = read(before)
    assert facts.body == after
    assert facts.hide_usage_chunk


@pytest.mark.parametrize(
    "fields",
    [{}, {"stream": False}, {"stream": True, "stream_options": {"include_usage": True}}, {"stream_options": {}}],
)
def test_a_body_that_needs_no_edit_stays_the_same_object(fields: dict[str, Any]) -> None:
    body = body_of(**fields)
    facts = read(body)
    assert facts.body is body
    assert not facts.hide_usage_chunk


scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=12)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
options = st.none() | st.dictionaries(
    st.sampled_from(["include_obfuscation", "other", 'quo"te']), values, max_size=2
).flatmap(lambda rest: st.sampled_from([rest, {**rest, "include_usage": False}, {"include_usage": None, **rest}]))


@settings(deadline=None)
@given(
    text=st.text(max_size=20),
    others=st.dictionaries(st.sampled_from(["metadata", "user", "x", "stop", "tool_choice"]), values, max_size=3),
    given_options=st.just("absent") | options,
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_the_edit_changes_nothing_but_the_usage_request(
    text: str, others: dict[str, Any], given_options: Any, indent: int | None, ascii_only: bool, order: Any
) -> None:
    fields = {"model": "gpt-4o", "messages": [{"role": "user", "content": text}], "stream": True, **others}
    if given_options != "absent":
        fields["stream_options"] = given_options
    shuffled = list(fields.items())
    order.shuffle(shuffled)
    body = json.dumps(dict(shuffled), indent=indent, ensure_ascii=ascii_only).encode(errors="replace")
    facts = read(body)
    expected = json.loads(body)
    expected["stream_options"] = {**(expected.get("stream_options") or {}), "include_usage": True}
    assert json.loads(facts.body) == expected
    # Take the longest common head and tail away: what is left of either is the edit.
    head = next((at for at, (old, new) in enumerate(zip(body, facts.body, strict=False)) if old != new), len(body))
    tail = len(body) - head
    while tail and not facts.body.endswith(body[len(body) - tail :]):
        tail -= 1
    assert body[head : len(body) - tail] in (b"", b"null", b"nul", b"false", b"fals", b"n", b"f")
    assert len(facts.body) - len(body) <= len(USAGE_REQUEST)


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
