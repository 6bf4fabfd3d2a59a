"""A chat completion's body: keys that could be read in two ways, what one body may cost, and the smallest edit."""

import contextlib
import json
import time
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.vendors import Dialect, RequestFacts, RequestRefusedError, RouteRequest
from services.gateway.vendors.fields import MAX_FIELDS, MAX_VALUES
from services.gateway.vendors.openai import OpenAIDialect
from services.gateway.vendors.openai_chat import MAX_MESSAGES, MAX_TOOLS
from services.gateway.vendors.openai_content import MAX_PARTS
from services.gateway.vendors.openai_routes import CHAT

DIALECT: Dialect = OpenAIDialect()
HELLO = [{"role": "user", "content": "Hello"}]
USAGE_REQUEST = b'"stream_options":{"include_usage":true},'


def body_of(**fields: Any) -> bytes:
    return orjson.dumps({"model": "gpt-4o", "messages": HELLO, **fields})


def read(body: bytes) -> RequestFacts:
    return DIALECT.read_request(RouteRequest(CHAT, body))


def refusal(body: bytes) -> tuple[str, str | None]:
    with pytest.raises(RequestRefusedError) as caught:
        read(body)
    assert str(caught.value)
    return caught.value.code, caught.value.param


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
    assert read(body_of(n=1, **nested)).demand.choices == 1
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


def test_a_prediction_nested_deeper_than_can_be_written_is_refused() -> None:
    body = body_of(max_tokens=1)[:-1] + b',"prediction":' + b"[" * 300 + b"]" * 300 + b"}"
    assert refusal(body) == ("invalid_request", "prediction")


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
