"""Of estimates: never above the bound, and too low no more often than promised for calls that are alike."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from services.core.calibrate import (
    LEAST_SAMPLES,
    MARGIN_THOUSANDTHS,
    QUANTILE_THOUSANDTHS,
    SAMPLES,
    Calibration,
)

KEY = ("o", "v", "m", "r")
# A call: its bound, and what it cost, in thousandths of it.
CALLS = st.lists(st.tuples(st.integers(1, 10**12), st.integers(0, 1000)), min_size=LEAST_SAMPLES, max_size=700)


def learned(calls: list[tuple[int, int]]) -> Calibration:
    calibration = Calibration()
    for bound_nano, share in calls:
        calibration.learn(KEY, bound_nano, bound_nano * share // 1000)
    return calibration


@given(CALLS, st.integers(0, 10**15))
def test_an_estimate_lies_between_nothing_and_the_bound(calls: list[tuple[int, int]], bound_nano: int) -> None:
    estimate = learned(calls).estimate(KEY, bound_nano)
    assert estimate is not None
    assert type(estimate) is int
    assert 0 <= estimate <= bound_nano


@given(CALLS)
def test_all_but_one_in_a_hundred_of_the_calls_learned_from_would_have_been_covered(
    calls: list[tuple[int, int]],
) -> None:
    calibration = learned(calls)
    last = calls[-SAMPLES:]
    too_low = 0
    for bound_nano, share in last:
        estimate = calibration.estimate(KEY, bound_nano)
        assert estimate is not None
        too_low += bound_nano * share // 1000 > estimate
    assert too_low * 1000 <= len(last) * (1000 - QUANTILE_THOUSANDTHS)


@given(CALLS, st.integers(1, 10**12))
def test_an_estimate_is_the_quantile_with_its_margin(calls: list[tuple[int, int]], bound_nano: int) -> None:
    """By another road: exact fractions, and the least share that enough of the calls stayed within."""
    shares = [-(-(bound * share // 1000) * 1000 // bound) for bound, share in calls[-SAMPLES:]]
    covered = min(
        share
        for share in shares
        if sum(each <= share for each in shares) >= Fraction(QUANTILE_THOUSANDTHS, 1000) * len(shares)
    )
    exact = Fraction(bound_nano * covered * MARGIN_THOUSANDTHS, 1_000_000)
    estimate = learned(calls).estimate(KEY, bound_nano)
    assert estimate == min(bound_nano, -(-exact.numerator // exact.denominator))
