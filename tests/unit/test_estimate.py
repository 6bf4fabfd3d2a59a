"""The strict bound is a true upper bound, and estimates stay within it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.estimate import (
    Bound,
    UnboundedError,
    UnpricedComponentError,
    fill_in_usage,
    strict_bound,
    within_bound,
)
from services.core.pricing import Price, Rates, Tier, price_usage

SANDBOX_SMALL = Price(input=150_000_000, output=600_000_000, cache_read=75_000_000, max_output_tokens=4096)

# Rates beside half a nano-dollar a token are where rounding could get past the bound.
rate = st.integers(0, 100_000_000_000) | st.sampled_from([500_001, 1_500_001, 499_999, 500_000, 2_000_000])
maybe = st.none() | rate
rates = st.builds(
    Rates,
    input=rate,
    output=rate,
    cache_read=maybe,
    cache_write=maybe,
    audio_input=maybe,
    audio_output=maybe,
    request=maybe,
)


@st.composite
def prices(draw: st.DrawFn) -> Price:
    base = draw(rates)
    starts = sorted(draw(st.sets(st.integers(0, 3000), max_size=2)))
    return Price(
        base.input,
        base.output,
        base.cache_read,
        base.cache_write,
        base.audio_input,
        base.audio_output,
        base.request,
        tuple(Tier(start, draw(rates)) for start in starts),
    )


@settings(deadline=None)
@given(price=prices(), data=st.data())
def test_no_usage_within_the_bound_costs_more(price: Price, data: st.DataObject) -> None:
    input_bound, limit, choices = data.draw(st.tuples(st.integers(0, 4000), st.integers(1, 1000), st.integers(1, 4)))
    bound = strict_bound(price, input_bound, limit, choices)
    assert (bound.input_tokens, bound.output_tokens) == (input_bound, limit * choices)
    usage = {
        "input_tokens": data.draw(st.just(input_bound) | st.integers(0, input_bound)),
        "output_tokens": data.draw(st.just(limit * choices) | st.integers(0, limit * choices)),
    }
    for part in ("cache_read_tokens", "cache_write_tokens", "audio_input_tokens", "audio_output_tokens"):
        usage[part] = data.draw(st.integers(0, 5000))
    assert sum(each.cost_nano for each in price_usage(price, usage)) <= bound.amount_nano


def test_rounding_never_gets_past_the_bound() -> None:
    price = Price(input=500_001, output=500_001, cache_read=500_001, audio_input=500_001)
    usage = {"input_tokens": 3, "cache_read_tokens": 1, "audio_input_tokens": 1, "output_tokens": 1}
    assert sum(each.cost_nano for each in price_usage(price, usage)) == 4
    assert strict_bound(price, 3, 1, 1).amount_nano >= 4
    one = Price(input=1_500_001, output=0)
    assert strict_bound(one, 1, 1, 1).amount_nano == price_usage(one, {"input_tokens": 1})[0].cost_nano == 2


def test_a_whole_price_is_bounded_exactly() -> None:
    bound = strict_bound(SANDBOX_SMALL, 100, 10, 2)
    assert bound == Bound(100, 20, 100 * 150 + 20 * 600)
    used = price_usage(SANDBOX_SMALL, {"input_tokens": 100, "output_tokens": 20})
    assert sum(each.cost_nano for each in used) == bound.amount_nano


def test_the_dearest_rate_in_reach_counts() -> None:
    price = Price(
        input=1_000_000, output=1_000_000, cache_write=3_000_000, audio_output=5_000_000, request=7_000_000,
        tiers=(Tier(50, Rates(input=10_000_000, output=1_000_000)),),
    )  # fmt: skip
    assert strict_bound(price, 50, 1, 1).amount_nano == 50 * 3 + 5 + 7
    assert strict_bound(price, 51, 1, 1).amount_nano == 51 * 10 + 1


def test_without_a_named_limit_the_model_bounds_the_output() -> None:
    assert strict_bound(SANDBOX_SMALL, 0, None, 1).output_tokens == 4096
    both = Price(input=0, output=1_000_000, max_output_tokens=16, context_window=100)
    assert strict_bound(both, 0, None, 3).output_tokens == 48
    window = Price(input=0, output=1_000_000, context_window=100)
    assert strict_bound(window, 0, None, 3).output_tokens == 300


def test_a_named_limit_stands_even_above_the_model_s_maximum() -> None:
    assert strict_bound(SANDBOX_SMALL, 0, 5000, 1).output_tokens == 5000


def test_without_any_limit_the_caller_must_name_one() -> None:
    unknown = Price(input=1, output=1)
    with pytest.raises(UnboundedError, match="max_tokens"):
        strict_bound(unknown, 10, None, 1)
    assert strict_bound(unknown, 10, 5, 1).output_tokens == 5


def test_a_component_without_a_price_is_refused() -> None:
    with pytest.raises(UnpricedComponentError, match="audio output"):
        strict_bound(SANDBOX_SMALL, 10, 5, 1, ("audio_output",))
    speaking = Price(input=1, output=1, audio_output=0)
    assert strict_bound(speaking, 0, 5, 1, ("audio_output",)).output_tokens == 5
    tiered = Price(input=1, output=1, audio_output=0, tiers=(Tier(9, Rates(input=1, output=1)),))
    assert strict_bound(tiered, 9, 5, 1, ("audio_output",)).output_tokens == 5
    with pytest.raises(UnpricedComponentError):
        strict_bound(tiered, 10, 5, 1, ("audio_output",))


def test_reported_usage_is_taken_as_it_is() -> None:
    reported = {"input_tokens": 0, "output_tokens": 0, "cache_read_tokens": 0}
    assert fill_in_usage(reported, 99, 1000, 10, 1) == (reported, "reported")


def test_missing_usage_is_estimated_conservatively() -> None:
    assert fill_in_usage({}, 99, 1000, None, 1) == ({"input_tokens": 1000, "output_tokens": 99}, "estimated")
    assert fill_in_usage({}, 99, 1000, 10, 2) == ({"input_tokens": 1000, "output_tokens": 20}, "estimated")
    assert fill_in_usage({"input_tokens": 7}, 99, 1000, None, 1) == (
        {"input_tokens": 7, "output_tokens": 99},
        "estimated",
    )
    assert fill_in_usage({"output_tokens": 3}, 99, 1000, None, 1) == (
        {"input_tokens": 1000, "output_tokens": 3},
        "estimated",
    )


def test_an_estimate_never_goes_past_what_is_held() -> None:
    bound = Bound(100, 20, 1)
    assert within_bound({"input_tokens": 500, "output_tokens": 30, "cache_read_tokens": 4}, "estimated", bound) == {
        "input_tokens": 100,
        "output_tokens": 20,
        "cache_read_tokens": 4,
    }
    assert within_bound({"input_tokens": 500, "output_tokens": 5}, "reported", bound) == {
        "input_tokens": 500,
        "output_tokens": 5,
    }
