"""A field that a decision rests on is refused when it is there twice, however the body is written, and only then."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.gateway.vendors import RequestRefusedError
from services.gateway.vendors.fields import is_plain, read_object

DECIDED = frozenset({"model", "max_tokens", "n"})

names = st.sampled_from(["model", "max_tokens", "n", "stop", "a", "né", "\x7f", 'q"'])
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | names
)
# An object is a list of members, which may have a key twice; a list is a tuple.
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.lists(st.tuples(names, inner), max_size=4),
    max_leaves=12,
)
members = st.lists(st.tuples(names, values), max_size=6)
# How it is written: white space, and whether letters beyond ASCII, or each letter of a key, are escapes.
ways = st.tuples(st.sampled_from(["", " ", "\n\t"]), st.booleans(), st.booleans())
PLAIN = ("", False, False)


def written(value: Any, way: tuple[str, bool, bool]) -> str:
    space, in_ascii, escaped = way
    if isinstance(value, tuple):
        return "[" + ("," + space).join(written(each, way) for each in value) + "]"
    if not isinstance(value, list):
        return json.dumps(value, ensure_ascii=in_ascii)
    told = []
    for key, inner in value:
        spelled = "".join(f"\\u{ord(letter):04x}" for letter in key) if escaped else json.dumps(key)[1:-1]
        told.append(f'{space}"{spelled}"{space}:{space}{written(inner, way)}{space}')
    return "{" + ",".join(told) + "}"


@settings(max_examples=500, deadline=None)
@given(members, ways)
@example([("model", "a"), ("stop", [("model", 1), ("model", 2)])], PLAIN)
@example([("model", "a"), ("model", "a")], PLAIN)
@example([("n", 1), ("stop", "n"), ("n", 1)], ("", False, True))
def test_a_decided_field_that_is_there_twice_is_refused(
    body: list[tuple[str, Any]], way: tuple[str, bool, bool]
) -> None:
    keys = [key for key, _ in body]
    twice = {key for key in DECIDED if keys.count(key) > 1}
    raw = written(body, way).encode(errors="replace")
    if twice:
        with pytest.raises(RequestRefusedError) as caught:
            read_object(raw, DECIDED)
        assert caught.value.param in twice
    else:
        assert read_object(raw, DECIDED).keys() == set(keys)


def has_a_key_twice(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(map(has_a_key_twice, value))
    if not isinstance(value, list):
        return False
    keys = [key for key, _ in value]
    return len(set(keys)) < len(keys) or any(has_a_key_twice(inner) for _, inner in value)


@settings(max_examples=500, deadline=None)
@given(members, ways)
def test_no_plain_body_has_a_key_twice_at_any_depth(body: list[tuple[str, Any]], way: tuple[str, bool, bool]) -> None:
    raw = written(body, way).encode(errors="replace")
    if is_plain(raw, read_object(raw, frozenset())):
        assert not has_a_key_twice(body)


def test_what_clients_send_is_plain() -> None:
    body = (
        '{"model":"gpt-4o","n":1,"top_p":0.7,"messages":[{"role":"user","content":"é👋 \\"a\\"\\n\\u001b"}],"stop":[]}'
    )
    assert is_plain(body.encode(), read_object(body.encode(), DECIDED))
