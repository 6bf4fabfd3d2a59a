"""The codec: what is written is read back as it was, and whatever can't be read is refused by the name of its field."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core import codec
from services.core.codec import (
    MAX_EVENT_BYTES,
    cloud_event_headers,
    decode,
    decode_facts,
    encode,
    encode_facts,
    to_message,
)
from services.core.codec_fields import UnreadableEventError, format_time, parse_time
from services.core.events import CallFacts, Denial, Expiry, Reservation, Settlement, Stamped
from tests.support.examples import DENIAL, EXPIRY, FACTS, PRODUCER, RESERVATION, SETTLEMENT
from tests.support.strategies import facts, instants, stamped_events

STAMPED = {type(event): Stamped(event, PRODUCER, 7) for event in (RESERVATION, SETTLEMENT, EXPIRY, DENIAL)}


def fields_of(kind: type) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(encode(STAMPED[kind]))
    return fields


def written(fields: object) -> bytes:
    return json.dumps(fields).encode()


@given(stamped_events)
def test_what_is_encoded_is_decoded_as_it_was(stamped: Stamped) -> None:
    value = encode(stamped)
    assert decode(value) == stamped
    assert encode(decode(value)) == value


@given(facts)
def test_facts_survive_a_hold(known: CallFacts) -> None:
    assert decode_facts(encode_facts(known)) == known


@given(instants)
def test_times_survive(time_ms: int) -> None:
    assert parse_time(format_time(time_ms)) == time_ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-01-02T03:04:05Z",
        "2026-01-02T03:04:05.1Z",
        "2026-01-02T03:04:05.123456Z",
        "2026-01-02T03:04:05.123",
        "2026-01-02T03:04:05.123+00:00",
        "2026-1-2T03:04:05.123Z",
        "2026-01-02 03:04:05.123Z",
        "2026-02-30T03:04:05.123Z",
        "2026-01-02T03:04:60.123Z",
        "1969-12-31T23:59:59.999Z",
        "2200-01-01T00:00:00.000Z",
        "2026-01-02T03:04:0\N{ARABIC-INDIC DIGIT FIVE}.123Z",
        "2026-01-02T03:04:05.123Z\n",
    ],
)
def test_other_texts_of_a_time_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_time(text)


def test_the_bytes_are_canonical() -> None:
    value = encode(STAMPED[Settlement])
    assert json.dumps(json.loads(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() == value


def test_money_has_nine_decimals() -> None:
    assert fields_of(Settlement)["cost_usd"] == "0.000525000"


def test_fields_a_reader_does_not_know_are_ignored() -> None:
    for kind, stamped in STAMPED.items():
        fields = fields_of(kind)
        fields["from_a_later_release"] = {"anything": [1, 2.5, None]}
        fields["identity"]["from_a_later_release"] = True
        assert decode(written(fields)) == stamped


def paths_into(fields: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in an event whose absence or type matters (members of open maps are not fields)."""
    found: list[tuple[str | int, ...]] = []
    if isinstance(fields, dict):
        for name, value in fields.items():
            found.append((*path, name))
            if name not in ("usage", "latency_us"):
                found += paths_into(value, (*path, name))
    elif isinstance(fields, list):
        for index, value in enumerate(fields):
            found += paths_into(value, (*path, index))
    return found


# The billing class is for others to read: it follows from what is beside it.
ALL_PATHS = [(kind, path) for kind in STAMPED for path in paths_into(fields_of(kind)) if path != ("billing_class",)]


def at(fields: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        fields = fields[step]
    return fields


# What a later release has added may be missing.
ADDED = (
    *("estimate_mode", "price_context", "unpriced", "attempts"),
    *("flags", "parent_charged", "would_block", "admitted_at"),
)
FIRST_PATHS = [(kind, path) for kind, path in ALL_PATHS if len(path) > 1 or path[0] not in ADDED]


@pytest.mark.parametrize(("kind", "path"), FIRST_PATHS, ids=lambda each: str(each))
def test_every_missing_field_is_named(kind: type, path: tuple[str | int, ...]) -> None:
    fields = fields_of(kind)
    del at(fields, path[:-1])[path[-1]]
    with pytest.raises(UnreadableEventError, match=f"field '{path[-1]}' is missing"):
        decode(written(fields))


@pytest.mark.parametrize(("kind", "path"), ALL_PATHS, ids=lambda each: str(each))
def test_every_field_of_another_type_is_named(kind: type, path: tuple[str | int, ...]) -> None:
    for wrong in (1.5, True, {"a": 1}, ["a"], "\x00", -1, None):
        fields = fields_of(kind)
        holder, name = at(fields, path[:-1]), path[-1]
        if wrong is None and (name in ("team", "agent", "user", "project", "session", "environment", "budget")):
            continue
        if type(wrong) is type(holder[name]) and not (isinstance(wrong, int) and holder[name] >= 0):
            continue
        holder[name] = wrong
        with pytest.raises(UnreadableEventError, match="field '"):
            decode(written(fields))


@pytest.mark.parametrize(
    ("kind", "path", "wrong"),
    [
        (Reservation, ("type",), "spend.other.v1"),
        (Reservation, ("sequence",), 0),
        (Reservation, ("sequence",), 2**63),
        (Reservation, ("producer",), ""),
        (Reservation, ("transaction_id",), "a b"),
        (Reservation, ("time",), "2026-01-02"),
        (Reservation, ("expires_at",), "yesterday"),
        (Reservation, ("held_usd",), "1"),
        (Reservation, ("held_usd",), "1.50"),
        (Reservation, ("held_usd",), "-1.000000000"),
        (Reservation, ("held_usd",), "9999999999.000000000"),
        (Reservation, ("held_usd",), "01.000000000"),
        (Reservation, ("estimate", "input_tokens"), -1),
        (Reservation, ("identity", "org"), ""),
        (Reservation, ("identity", "org"), "a{b}"),
        (Reservation, ("identity", "team"), "x" * 129),
        (Reservation, ("identity", "tags"), ["fine", 3]),
        (Reservation, ("match",), "guess"),
        (Reservation, ("charges", 0, "budget_id"), ""),
        (Reservation, ("charges", 0, "window"), ""),
        (Reservation, ("charges", 0, "window"), "c:5:5"),
        (Reservation, ("charges", 0, "window"), "c:05:60"),
        (Reservation, ("charges", 0, "window"), "c:+5:60"),
        (Reservation, ("charges", 0, "window"), "r:0:60:1"),
        (Reservation, ("charges", 0, "window"), "c:0:9999999999999999"),
        (Settlement, ("outcome",), "lost"),
        (Settlement, ("usage_source",), "guessed"),
        (Settlement, ("usage",), {"input_tokens": 1.5}),
        (Settlement, ("latency_us",), {"vendor": -1}),
        (Settlement, ("components", 0, "quantity"), 2**63),
        (Denial, ("budget",), {}),
        (Denial, ("budget", "spent_usd"), "-0.000000000"),
    ],
)
def test_a_value_out_of_its_range_is_named(kind: type, path: tuple[str | int, ...], wrong: object) -> None:
    fields = fields_of(kind)
    at(fields, path[:-1])[path[-1]] = wrong
    named = {"usage": "input_tokens", "latency_us": "vendor"}.get(str(path[-1]), path[-1])
    named = "budget_id" if wrong == {} else named
    with pytest.raises(UnreadableEventError, match=f"field '{named}'"):
        decode(written(fields))


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b'"text"',
        b"\xff{}",
        b"{}\x00",
        b"[" * 100_000,
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":' + b"1" * 5000 + b"}",
        b"\xef\xbb\xbf{}",
        '{"type":"x"}'.encode("utf-16"),
        rb'{"type":"\ud800"}',
    ],
    ids=lambda value: repr(value[:20]),
)
def test_bytes_that_are_no_json_object_are_refused(value: bytes) -> None:
    with pytest.raises(UnreadableEventError, match=r"not JSON in UTF-8|not a JSON object"):
        decode(value)


def test_a_lone_surrogate_is_refused_wherever_it_is() -> None:
    value = encode(STAMPED[Denial]).replace(b'"code":"budget_exhausted"', rb'"code":"\udc00"')
    with pytest.raises(UnreadableEventError, match="not JSON in UTF-8"):
        decode(value)


def test_a_pair_of_surrogates_is_one_character() -> None:
    value = encode(STAMPED[Denial]).replace(b'"code":"budget_exhausted"', rb'"code":"\ud83d\ude00"')
    event = decode(value).event
    assert isinstance(event, Denial)
    assert event.code == "\N{GRINNING FACE}"


@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_else(value: bytes) -> None:
    with pytest.raises(UnreadableEventError):
        decode(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(ALL_PATHS), json_values)
def test_events_with_one_field_of_anything_raise_nothing_else(
    place: tuple[type, tuple[str | int, ...]], value: object
) -> None:
    kind, path = place
    fields = fields_of(kind)
    at(fields, path[:-1])[path[-1]] = value
    try:
        stamped = decode(written(fields))
    except UnreadableEventError:
        return
    assert decode(encode(stamped)) == stamped


@given(st.sampled_from(list(STAMPED.values())), st.data())
def test_events_with_damaged_bytes_raise_nothing_else(stamped: Stamped, data: st.DataObject) -> None:
    value = bytearray(encode(stamped))
    for _ in range(data.draw(st.integers(1, 4))):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(value))
    except UnreadableEventError:
        return


def test_nothing_is_written_that_could_not_be_read() -> None:
    long = Denial("txn_1", 0, FACTS, "unknown_model", "x" * MAX_EVENT_BYTES, 0)
    with pytest.raises(ValueError, match="at most 262144"):
        encode(Stamped(long, PRODUCER, 1))
    with pytest.raises(UnreadableEventError, match="at most 262144"):
        decode(b" " * (MAX_EVENT_BYTES + 1))


def test_an_event_of_the_greatest_length_is_read() -> None:
    short = len(encode(Stamped(Denial("txn_1", 0, FACTS, "unknown_model", "", 0), PRODUCER, 1)))
    longest = Stamped(Denial("txn_1", 0, FACTS, "unknown_model", "x" * (MAX_EVENT_BYTES - short), 0), PRODUCER, 1)
    assert decode(encode(longest)) == longest


@pytest.mark.parametrize("context", ["", "[]", "{}", "nonsense", '{"identity":3}'])
def test_a_hold_context_that_is_none_is_refused(context: str) -> None:
    with pytest.raises(UnreadableEventError):
        decode_facts(context)


def test_a_message_carries_the_cloud_event_headers() -> None:
    stamped = STAMPED[Expiry]
    assert dict(cloud_event_headers(stamped)) == {
        "ce_specversion": b"1.0",
        "ce_id": b"gw_01JD3TZZZZ0P1R2S3T4V5W6X7Y/7",
        "ce_source": b"/farthing/gw_01JD3TZZZZ0P1R2S3T4V5W6X7Y",
        "ce_type": b"spend.hold.expired.v1",
        "ce_time": codec.format_time(EXPIRY.time_ms).encode(),
        "ce_subject": EXPIRY.transaction_id.encode(),
        "content-type": b"application/json",
    }


def test_a_message_goes_to_its_topic_under_its_org() -> None:
    trace = (("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),)
    message = to_message(STAMPED[Reservation], trace)
    assert (message.topic, message.key) == ("spend.reservations.v1", b"default")
    assert message.value == encode(STAMPED[Reservation])
    assert message.headers == cloud_event_headers(STAMPED[Reservation]) + trace
