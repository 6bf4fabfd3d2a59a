"""What is learned from settled calls, and from how many."""

import pytest

from services.core.calibrate import LEAST_SAMPLES, MARGIN_THOUSANDTHS, MAX_KEYS, SAMPLES, Calibration

KEY = ("acme", "openai", "gpt-4o-mini", "chat.completions")


def learned(*costs: int, bound_nano: int = 1_000_000) -> Calibration:
    calibration = Calibration()
    for cost_nano in costs:
        calibration.learn(KEY, bound_nano, cost_nano)
    return calibration


def test_nothing_is_known_before_there_are_enough_calls() -> None:
    calibration = learned(*[100_000] * (LEAST_SAMPLES - 1))
    assert calibration.estimate(KEY, 1_000_000) is None
    calibration.learn(KEY, 1_000_000, 100_000)
    # A tenth of the bound, times the margin of 1.25.
    assert calibration.estimate(KEY, 1_000_000) == 125_000
    assert calibration.estimate(KEY, 8_000) == 1_000
    assert MARGIN_THOUSANDTHS == 1_250


def test_kinds_of_calls_are_told_apart() -> None:
    calibration = learned(*[100_000] * LEAST_SAMPLES)
    for other in (
        ("globex", *KEY[1:]),
        (KEY[0], "azure", *KEY[2:]),
        (*KEY[:2], "gpt-4o", KEY[3]),
        (*KEY[:3], "responses"),
    ):
        assert calibration.estimate(other, 1_000_000) is None


def test_shares_and_estimates_are_rounded_up() -> None:
    # 1 of 3 is 333.3 thousandths: 334, times 1.25 is 417.5; of a bound of 7 that is 2.9.
    assert learned(*[1] * LEAST_SAMPLES, bound_nano=3).estimate(KEY, 7) == 3


def test_an_estimate_is_never_above_the_bound() -> None:
    assert learned(*[900_000] * LEAST_SAMPLES).estimate(KEY, 1_000_000) == 1_000_000
    assert learned(*[5_000_000] * LEAST_SAMPLES).estimate(KEY, 1_000_000) == 1_000_000


def test_one_dear_call_of_a_hundred_does_not_count_and_two_do() -> None:
    assert learned(*[100_000] * 99, 600_000).estimate(KEY, 1_000_000) == 125_000
    assert learned(*[100_000] * 98, 600_000, 600_000).estimate(KEY, 1_000_000) == 750_000


def test_of_few_calls_the_dearest_counts() -> None:
    assert learned(*[100_000] * (LEAST_SAMPLES - 1), 600_000).estimate(KEY, 1_000_000) == 750_000


def test_what_was_learned_long_ago_is_forgotten() -> None:
    calibration = learned(*[800_000] * SAMPLES)
    assert calibration.estimate(KEY, 1_000_000) == 1_000_000
    for _ in range(SAMPLES):
        calibration.learn(KEY, 1_000_000, 8_000)
    assert calibration.estimate(KEY, 1_000_000) == 10_000


def test_new_calls_are_taken_in_soon() -> None:
    calibration = learned(*[100_000] * LEAST_SAMPLES)
    assert calibration.estimate(KEY, 1_000_000) == 125_000
    for _ in range(16):
        calibration.learn(KEY, 1_000_000, 400_000)
    assert calibration.estimate(KEY, 1_000_000) == 500_000


def test_calls_that_cost_nothing_at_most_teach_nothing() -> None:
    calibration = learned(*[0] * (2 * LEAST_SAMPLES), bound_nano=0)
    assert calibration.estimate(KEY, 1_000_000) is None


def test_calls_that_did_cost_nothing_teach_that() -> None:
    assert learned(*[0] * LEAST_SAMPLES).estimate(KEY, 1_000_000) == 0


def test_kinds_not_seen_for_longest_are_forgotten_first() -> None:
    calibration = learned(*[100_000] * LEAST_SAMPLES)
    for number in range(MAX_KEYS - 1):
        calibration.learn(("o", "v", f"m{number}", "r"), 10, 1)
    assert calibration.estimate(KEY, 1_000_000) == 125_000
    calibration.learn(KEY, 1_000_000, 100_000)
    calibration.learn(("o", "v", "one more", "r"), 10, 1)
    assert calibration.estimate(KEY, 1_000_000) == 125_000, "it was seen after the others"
    for number in range(MAX_KEYS):
        calibration.learn(("o", "w", f"m{number}", "r"), 10, 1)
    assert calibration.estimate(KEY, 1_000_000) is None


@pytest.mark.parametrize("bound_nano", [0, 1, 10**15])
def test_any_bound_has_an_estimate(bound_nano: int) -> None:
    estimate = learned(*[100_000] * LEAST_SAMPLES).estimate(KEY, bound_nano)
    assert estimate is not None
    assert 0 <= estimate <= bound_nano
