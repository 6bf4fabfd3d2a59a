"""Which headers go where."""

import pytest

from services.gateway.headers import MAX_VALUE_BYTES, HeaderReader, check_values, end_to_end
from services.gateway.refusal import RefusedError

PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([(b"authorization", b"Bearer fk_1")], "fk_1"),
        ([(b"authorization", b"bearer  fk_1 ")], "fk_1"),
        ([(b"authorization", b"fk_1")], None),
        ([(b"x-api-key", b"fk_2")], "fk_2"),
        ([(b"x-spend-key", b"fk_3"), (b"authorization", b"Bearer fk_1"), (b"x-api-key", b"fk_2")], "fk_3"),
        ([(b"x-api-key", b"fk_2"), (b"authorization", b"Bearer fk_1")], "fk_1"),
        ([], None),
    ],
)
def test_the_key_is_found(headers: list[tuple[bytes, bytes]], key: str | None) -> None:
    found = HeaderReader("x-spend-").read(headers)
    assert found.key == key
    assert "x-spend-key" not in found.spend
    assert found.forwarded == []


def test_prefixed_headers_are_ours_under_both_prefixes() -> None:
    found = HeaderReader("x-acme-").read([(b"x-acme-team", b"ml"), (b"x-spend-team", b"ops"), (b"x-team", b"z")])
    assert found.spend == {"x-acme-team": "ml", "x-spend-team": "ops"}
    assert found.forwarded == [(b"x-team", b"z")]


def test_what_connection_names_stays_here() -> None:
    found = HeaderReader("x-spend-").read(
        [(b"connection", b"Keep-Alive, X-Hop"), (b"x-hop", b"1"), (b"accept", b"*/*")]
    )
    assert found.forwarded == [(b"accept", b"*/*")]


@pytest.mark.parametrize(
    ("headers", "trace"),
    [
        (
            [(b"traceparent", PARENT), (b"tracestate", b"a=1")],
            {"traceparent": PARENT.decode(), "tracestate": "a=1"},
        ),
        ([(b"traceparent", b"00-zz-1-01"), (b"tracestate", b"a=1")], {}),
        ([(b"tracestate", b"a=1")], {}),
        ([(b"traceparent", PARENT), (b"tracestate", b"a" * 513)], {"traceparent": PARENT.decode()}),
    ],
)
def test_only_a_well_formed_trace_is_carried_on(headers: list[tuple[bytes, bytes]], trace: dict[str, str]) -> None:
    assert HeaderReader("x-spend-").read(headers).trace == trace


@pytest.mark.parametrize(("value", "length"), [(b"12", 12), (b"-1", None), (b"1e3", None), (b"", None)])
def test_content_length_is_taken_when_it_is_a_number(value: bytes, length: int | None) -> None:
    assert HeaderReader("x-spend-").read([(b"content-length", value)]).content_length == length


@pytest.mark.parametrize("value", [b"\x00", b"a\x1fb", b"\x7f", b"a\nb", b"a\rb"])
def test_control_characters_are_refused_by_name(value: bytes) -> None:
    with pytest.raises(RefusedError, match="x-odd") as caught:
        check_values([(b"accept", b"*/*"), (b"x-odd", value)])
    assert (caught.value.status, caught.value.param) == (400, "x-odd")


def test_long_values_are_refused_but_many_short_ones_are_not() -> None:
    check_values([(b"x-a", b"a" * MAX_VALUE_BYTES), (b"x-b", b"b" * MAX_VALUE_BYTES), (b"x-tab", b"a\tb \xff")])
    with pytest.raises(RefusedError, match="x-b has 8193 bytes"):
        check_values([(b"x-a", b"a"), (b"x-b", b"b" * (MAX_VALUE_BYTES + 1))])


def test_end_to_end_headers_lose_hops_whatever_their_case() -> None:
    headers = [(b"Connection", b"close, X-Hop"), (b"X-Hop", b"1"), (b"TE", b"x"), (b"ETag", b"1"), (b"Host", b"h")]
    assert end_to_end(headers, frozenset((b"host",))) == [(b"etag", b"1")]
