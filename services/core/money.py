"""Money: US dollars as integer nano-dollars (1e-9 USD) inside, as decimal strings at every edge."""

import re
from typing import Final

NANO_PER_USD: Final = 1_000_000_000

# A budget past a billion dollars is a typing error, and sums stay far inside the hot state's signed 64 bits.
MAX_LIMIT_NANO: Final = 1_000_000_000 * NANO_PER_USD
_MAX_NANO: Final = 2**63 - 1

_USD: Final = re.compile(r"(?P<sign>-?)(?P<whole>\d{1,30})(?:\.(?P<fraction>\d{1,9}))?")


class MoneyError(ValueError):
    """The text is not an amount of US dollars that fits nano-dollars."""


def parse_usd(text: str) -> int:
    """Nano-dollars of a decimal string such as ``"12.50"``.

    Exact: more than nine decimals, exponents, blanks and signs other than a leading ``-`` raise `MoneyError`.
    """
    match = _USD.fullmatch(text) if text.isascii() else None
    if match is None:
        raise MoneyError(f"{text[:40]!r} is not an amount in US dollars; write it like '12.50' (at most nine decimals)")
    nano = int(match["whole"]) * NANO_PER_USD + int((match["fraction"] or "").ljust(9, "0"))
    if nano > _MAX_NANO:
        raise MoneyError(f"{text!r} US dollars are more than Farthing can count ({format_usd(_MAX_NANO)})")
    return -nano if match["sign"] else nano


def format_usd(nano: int) -> str:
    """The one decimal form of an amount: always nine decimals, so equal amounts are equal bytes."""
    whole, fraction = divmod(abs(nano), NANO_PER_USD)
    return f"{'-' if nano < 0 else ''}{whole}.{fraction:09d}"


def divide_half_even(numerator: int, denominator: int) -> int:
    """``numerator / denominator`` rounded to an integer, ties to even. The only rounding in Farthing."""
    quotient, remainder = divmod(numerator, denominator)
    twice = 2 * remainder
    if twice > denominator or (twice == denominator and quotient % 2 == 1):
        return quotient + 1
    return quotient
