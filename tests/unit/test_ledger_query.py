"""Cursors, scopes and spans of time."""

import base64
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.identity import KeyRecord
from services.core.windows import WindowError
from services.ledger.auth import scope_of
from services.ledger.billing import BillingQuery, Place, decode_place, encode_place
from services.ledger.errors import ApiError
from services.ledger.parameters import SpendParameters, to_ms
from services.ledger.query import CursorError, Scope, decode_cursor, encode_cursor
from tests.support.strategies import instants, names

DAY_MS = 86_400_000
NOON_MS = to_ms("2026-03-10T12:00:00Z")


@given(time_ms=instants, name=names)
def test_cursors_come_back(time_ms: int, name: str) -> None:
    cursor = encode_cursor(time_ms, name)
    assert decode_cursor(cursor) == (time_ms, name)
    assert cursor.isascii()
    assert not set(cursor) & set("=+/?&")


@given(st.text(max_size=40))
def test_anything_else_is_a_cursor_error_or_a_cursor(text: str) -> None:
    try:
        time_ms, name = decode_cursor(text)
    except CursorError:
        return
    assert time_ms >= 0
    assert name


@pytest.mark.parametrize("inside", ["", ":", "1:", ":txn", "-1:txn", "1e3:txn", "1" * 16 + ":txn", "\u0661:txn"])
def test_forged_cursors_are_refused(inside: str) -> None:
    with pytest.raises(CursorError):
        decode_cursor(base64.urlsafe_b64encode(inside.encode()).decode())


BILLING = BillingQuery(Scope("default", {"project": "p"}), "session", "30d")


@given(
    st.builds(
        Place,
        since_ms=st.integers(0, 10**12),
        as_of_ms=st.integers(10**12, 10**13),
        spent_nano=st.integers(-(2**127) + 1, 2**127 - 1),
        value=st.text(max_size=130),
    )
)
def test_places_of_billing_pages_come_back_to_their_own_query(place: Place) -> None:
    cursor = encode_place(BILLING, place)
    assert decode_place(BILLING, cursor) == place
    assert cursor.isascii()
    assert not set(cursor) & set("=+/?&")
    for other in (
        replace(BILLING, by="project"),
        replace(BILLING, window="7d"),
        replace(BILLING, scope=Scope("other", {"project": "p"})),
        replace(BILLING, scope=Scope("default", {"team": "p"})),
        replace(BILLING, scope=Scope("default", {"project": "p"}, billing_class="metered.openai")),
    ):
        with pytest.raises(CursorError):
            decode_place(other, cursor)


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_anything_else_is_no_place(text: str) -> None:
    with pytest.raises(CursorError):
        decode_place(BILLING, text)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        {},
        [BILLING.digest, 0, 1, 2],
        [BILLING.digest, 0, 1, 2, None],
        [BILLING.digest, 0, 1, 2.5, "v"],
        [BILLING.digest, True, 1, 2, "v"],
        [BILLING.digest, -1, 1, 2, "v"],
        [BILLING.digest, 2, 1, 2, "v"],
        [BILLING.digest, 0, 10**15, 2, "v"],
        [BILLING.digest, 0, 1, 2**127, "v"],
        ["0" * 16, 0, 1, 2, "v"],
    ],
)
def test_forged_places_are_refused(fields: object) -> None:
    with pytest.raises(CursorError):
        decode_place(BILLING, base64.urlsafe_b64encode(json.dumps(fields).encode()).decode())


def test_values_of_a_scope_never_enter_the_statement() -> None:
    hostile = "x' OR 1=1 --"
    scope = Scope(hostile, {"team": hostile, "vendor": hostile}, hostile, 1, 2, hostile)
    for follow in (False, True):
        where, parameters = scope.conditions(follow=follow)
        assert hostile not in where
        given = [parameters[name] for name in ("org", "team", "vendor", "model", "billing_class")]
        assert given == [hostile] * 5


def test_only_known_columns_can_be_filtered_by() -> None:
    with pytest.raises(ValueError, match="raw"):
        Scope("o", {"raw = '' OR 1": "x"}).conditions()


def test_pins_are_forced_on_every_scope() -> None:
    record = KeyRecord("key_1", "default", "agent", {"team": "ml", "user": "u1"})
    scope = scope_of(record, {"team": None, "agent": "ada"}, None, None, None)
    assert scope.columns == {"team": "ml", "user": "u1", "agent": "ada"}
    assert scope_of(record, {"team": "ml"}, None, None, None).columns == {"team": "ml", "user": "u1"}
    with pytest.raises(ApiError) as raised:
        scope_of(record, {"team": "ops"}, None, None, None)
    assert (raised.value.status, raised.value.field) == (403, "team")


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, (NOON_MS - 30 * DAY_MS, None)),
        ({"window": "90m"}, (NOON_MS - 5_400_000, None)),
        ({"window": "day"}, (NOON_MS - DAY_MS // 2, NOON_MS + DAY_MS // 2)),
        ({"window": "hour", "zone": "Asia/Kolkata"}, (NOON_MS - 1_800_000, NOON_MS + 1_800_000)),
        ({"window": "quarter"}, (to_ms("2026-01-01T00:00:00Z"), to_ms("2026-04-01T00:00:00Z"))),
        ({"window": "2w"}, (NOON_MS - 14 * DAY_MS, None)),
        ({"since": "2026-03-10T11:00:00+01:00"}, (to_ms("2026-03-10T10:00:00Z"), None)),
        ({"until": "2026-03-10T10:00:00Z"}, (None, to_ms("2026-03-10T10:00:00Z"))),
    ],
)
def test_spans_of_time(parameters: dict[str, str], expected: tuple[int | None, int | None]) -> None:
    assert SpendParameters.model_validate(parameters).spend_span_ms(NOON_MS) == expected


@pytest.mark.parametrize("window", ["session", "lifetime"])
def test_a_window_that_is_no_span_of_time_is_refused(window: str) -> None:
    with pytest.raises(WindowError, match="no span of time") as raised:
        SpendParameters.model_validate({"window": window}).spend_span_ms(NOON_MS)
    assert raised.value.field == "window"


def test_a_window_and_bounds_do_not_go_together() -> None:
    parameters = SpendParameters.model_validate({"since": "2026-03-10T10:00:00Z", "zone": "UTC"})
    with pytest.raises(WindowError) as raised:
        parameters.spend_span_ms(NOON_MS)
    assert raised.value.field == "zone"
