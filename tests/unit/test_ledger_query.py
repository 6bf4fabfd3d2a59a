"""Cursors, scopes and spans of time."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.identity import KeyRecord
from services.core.windows import WindowError
from services.ledger.auth import scope_of
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


def test_values_of_a_scope_never_enter_the_statement() -> None:
    hostile = "x' OR 1=1 --"
    where, parameters = Scope(hostile, {"team": hostile}, model=hostile, since_ms=1, until_ms=2).conditions()
    assert hostile not in where
    assert (parameters["org"], parameters["team"], parameters["model"]) == (hostile,) * 3


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
        ({"since": "2026-03-10T11:00:00+01:00"}, (to_ms("2026-03-10T10:00:00Z"), None)),
        ({"until": "2026-03-10T10:00:00Z"}, (None, to_ms("2026-03-10T10:00:00Z"))),
    ],
)
def test_spans_of_time(parameters: dict[str, str], expected: tuple[int | None, int | None]) -> None:
    assert SpendParameters.model_validate(parameters).spend_span_ms(NOON_MS) == expected


def test_a_window_and_bounds_do_not_go_together() -> None:
    parameters = SpendParameters.model_validate({"since": "2026-03-10T10:00:00Z", "zone": "UTC"})
    with pytest.raises(WindowError) as raised:
        parameters.spend_span_ms(NOON_MS)
    assert raised.value.field == "zone"
