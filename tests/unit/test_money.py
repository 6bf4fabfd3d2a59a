"""Money: exact, in nano-dollars."""

from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.money import NANO_PER_USD, MoneyError, divide_half_even, format_usd, parse_usd

BOUND = 2**63 - 1


@pytest.mark.parametrize(
    ("text", "nano"),
    [
        ("0", 0),
        ("-0", 0),
        ("1", NANO_PER_USD),
        ("12.50", 12_500_000_000),
        ("0.000000001", 1),
        ("-0.000000001", -1),
        ("0009", 9 * NANO_PER_USD),
        ("9007199.254740993", 2**53 + 1),
        ("9223372036.854775807", BOUND),
        ("-9223372036.854775807", -BOUND),
    ],
)
def test_amounts_are_read_exactly(text: str, nano: int) -> None:
    assert parse_usd(text) == nano


@pytest.mark.parametrize(
    "text",
    ["", " 1", "1 ", "+1", "1.", ".5", "1e3", "1,000", "0.0000000001", "--1", "1.-5", "NaN", "Infinity", "$1", "1\n",
     "\u0661", "12345678901", "9223372036.854775808", "-9223372036.854775808"],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(MoneyError):
        parse_usd(text)


@given(st.integers(-BOUND, BOUND))
def test_an_amount_survives_its_text(nano: int) -> None:
    text = format_usd(nano)
    assert parse_usd(text) == nano
    assert Decimal(text) * NANO_PER_USD == nano
    assert len(text.partition(".")[2]) == 9


@given(st.integers(-(10**24), 10**24), st.integers(1, 10**12))
def test_the_one_rounding_is_half_even(numerator: int, denominator: int) -> None:
    # Python rounds a fraction exactly, and half to even, too.

    assert divide_half_even(numerator, denominator) == round(Fraction(numerator, denominator))


@pytest.mark.parametrize(
    ("numerator", "denominator", "expected"),
    [(1, 2, 0), (3, 2, 2), (5, 2, 2), (-1, 2, 0), (-3, 2, -2), (7, 3, 2), (8, 3, 3), (0, 5, 0), (6, 3, 2)],
)
def test_ties_go_to_the_even_neighbour(numerator: int, denominator: int, expected: int) -> None:
    assert divide_half_even(numerator, denominator) == expected
    assert expected == int((Decimal(numerator) / Decimal(denominator)).quantize(Decimal(1), ROUND_HALF_EVEN))


def test_a_large_amount_is_told_apart_from_what_is_none() -> None:
    with pytest.raises(MoneyError, match="more than Farthing can count"):
        parse_usd("99999999999999")
