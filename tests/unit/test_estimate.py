"""The strict bound: what it is made of, what it refuses, and how missing usage is filled in."""

import pytest

from services.core.estimate import (
    Bound,
    Demand,
    UnboundedError,
    UnpricedComponentError,
    fill_in_usage,
    most_nano,
    most_tokens,
    strict_bound,
    within_bound,
    writes_text_only,
)
from services.core.pricing import Price, Tier, Variant, price_usage

SANDBOX_SMALL = Price({"input": 150_000_000, "output": 600_000_000, "cache_read": 75_000_000}, max_output_tokens=4096)


def cost(price: Price, usage: dict[str, int]) -> int:
    return sum(each.cost_nano for each in price_usage(price, usage))


def test_a_whole_price_is_bounded_exactly() -> None:
    bound = strict_bound(SANDBOX_SMALL, Demand(100, 10, choices=2))
    assert bound == Bound(100, 20, 100 * 150 + 20 * 600)
    assert cost(SANDBOX_SMALL, {"input_tokens": 100, "output_tokens": 20}) == bound.amount_nano


def test_a_part_of_the_output_costs_that_part_and_all_of_the_rest() -> None:
    demand = Demand(100, None, choices=2)
    bound = strict_bound(SANDBOX_SMALL, demand)
    assert [most_nano(SANDBOX_SMALL, demand, tokens) for tokens in (0, 10, 8192)] == [15_000, 21_000, bound.amount_nano]
    enough = [
        most_tokens(SANDBOX_SMALL, demand, bound, nano) for nano in (0, 15_000, 21_000, 21_599, bound.amount_nano)
    ]
    assert enough == [0, 0, 10, 10, 8192]


def test_of_rates_in_reach_the_one_that_is_dearest_for_so_much_output_counts() -> None:
    price = Price(
        {"input": 0, "output": 9_000_000},
        (Tier(10, {"input": 1_000_000, "output": 8_000_000}),),
        max_output_tokens=1_000,
    )
    demand = Demand(100, None)
    assert [most_nano(price, demand, tokens) for tokens in (50, 100, 200)] == [500, 900, 1_800]
    bound = strict_bound(price, demand)
    for nano in range(0, 9_001, 100):
        enough = most_tokens(price, demand, bound, nano)
        assert enough == 0 or most_nano(price, demand, enough) <= nano
        # Two prices meet here: between them some is left, never more than the larger of them is above the line.
        assert most_nano(price, demand, enough + 1) > nano - 100


@pytest.mark.parametrize(
    ("price", "demand", "only"),
    [
        (SANDBOX_SMALL, Demand(1, None), True),
        (SANDBOX_SMALL, Demand(1, None, parts=frozenset({"image_output"})), True),
        (
            SANDBOX_SMALL,
            Demand(1, None, parts=frozenset({"image_output"}), required=frozenset({"image_output"})),
            False,
        ),
        (
            Price({"input": 1, "output": 1, "image_output": 1}),
            Demand(1, None, parts=frozenset({"image_output"})),
            False,
        ),
        (Price({"input": 1, "output": 1, "image_output": 1}), Demand(1, None), True),
        (Price({"input": 1, "image_input": 1}), Demand(1, None, parts=frozenset({"image_input"})), True),
        (
            Price({"input": 1}, variants=(Variant({"speed": "fast"}, {"input": 1, "audio_output": 1}),)),
            Demand(1, None, parts=frozenset({"audio_output"})),
            False,
        ),
    ],
)
def test_text_alone_is_written_where_nothing_else_is_asked_for_and_priced(
    price: Price, demand: Demand, only: bool
) -> None:
    assert writes_text_only(price, demand) is only


def test_rounding_never_gets_past_the_bound() -> None:
    price = Price({"input": 500_001, "output": 500_001, "cache_read": 500_001, "audio_input": 500_001})
    usage = {"input_tokens": 3, "cache_read_tokens": 1, "audio_input_tokens": 1, "output_tokens": 1}
    assert cost(price, usage) == 4
    assert strict_bound(price, Demand(3, 1, parts=frozenset({"audio_input"}))).amount_nano >= 4
    one = Price({"input": 1_500_001, "output": 0})
    assert strict_bound(one, Demand(1, 1)).amount_nano == cost(one, {"input_tokens": 1}) == 2


def test_the_dearest_rate_in_reach_counts() -> None:
    price = Price(
        {"input": 1_000_000, "output": 1_000_000, "cache_write": 3_000_000, "request": 7_000_000},
        (Tier(50, {"input": 10_000_000, "output": 1_000_000}),),
    )
    assert strict_bound(price, Demand(50, 1)).amount_nano == 50 * 3 + 1 + 7
    assert strict_bound(price, Demand(51, 1)).amount_nano == 51 * 10 + 1


def test_a_tier_that_is_cheaper_does_not_lower_the_bound() -> None:
    price = Price({"input": 9_000_000, "output": 0}, (Tier(10, {"input": 1_000_000, "output": 0}),))
    # Ten tokens cost more than eleven do.
    assert strict_bound(price, Demand(11, 1)).amount_nano >= cost(price, {"input_tokens": 10}) == 90


def test_audio_and_hour_long_writes_count_only_where_the_request_can_bring_them_about() -> None:
    price = Price(
        {
            "input": 1_000_000,
            "output": 1_000_000,
            "audio_input": 32_000_000,
            "audio_cache_read": 40_000_000,
            "cache_write": 2_000_000,
            "cache_write_1h": 4_000_000,
            "audio_output": 64_000_000,
        }
    )
    assert strict_bound(price, Demand(10, 1)).amount_nano == 10 * 2 + 1
    assert strict_bound(price, Demand(10, 1, parts=frozenset({"cache_write_1h"}))).amount_nano == 10 * 4 + 1
    # What is heard may also be read from a cache; it is not spoken.
    assert strict_bound(price, Demand(10, 1, parts=frozenset({"audio_input"}))).amount_nano == 10 * 40 + 1
    assert strict_bound(price, Demand(10, 1, parts=frozenset({"audio_output"}))).amount_nano == 10 * 2 + 64


def test_every_context_that_the_vendor_may_choose_counts() -> None:
    price = Price(
        {"input": 2_000_000, "output": 0},
        variants=(
            Variant({"service_tier": "flex"}, {"input": 1_000_000, "output": 0}),
            Variant({"service_tier": "priority"}, {"input": 5_000_000, "output": 0}),
        ),
    )
    flex, standard, priority = ({"service_tier": each} for each in ("flex", "default", "priority"))
    for contexts, rate in (
        (({},), 2),
        ((flex,), 1),
        ((standard,), 2),
        ((standard, priority), 5),
        ((flex, standard), 2),
    ):
        assert strict_bound(price, Demand(10, 1, contexts=contexts)).amount_nano == 10 * rate, contexts


def test_a_context_that_must_have_rates_of_its_own_and_has_none_is_refused() -> None:
    fast = Variant({"speed": "fast"}, {"input": 6, "output": 6})
    price = Price({"input": 1, "output": 1}, variants=(fast,))
    demand = Demand(1, 1, contexts=({"speed": "fast"},), distinct={"speed": "fast"})
    assert strict_bound(price, demand).amount_nano >= 1
    with pytest.raises(UnpricedComponentError, match="speed fast"):
        strict_bound(Price({"input": 1, "output": 1}), demand)


def test_without_a_named_limit_the_model_bounds_the_output() -> None:
    assert strict_bound(SANDBOX_SMALL, Demand(0, None)).output_tokens == 4096
    both = Price({"input": 0, "output": 1_000_000}, max_output_tokens=16, context_window=100)
    assert strict_bound(both, Demand(0, None, choices=3)).output_tokens == 48
    window = Price({"input": 0, "output": 1_000_000}, context_window=100)
    assert strict_bound(window, Demand(0, None, choices=3)).output_tokens == 300


def test_a_named_limit_stands_even_above_the_model_s_maximum() -> None:
    assert strict_bound(SANDBOX_SMALL, Demand(0, 5000)).output_tokens == 5000


def test_without_any_limit_the_caller_must_name_one() -> None:
    unknown = Price({"input": 1, "output": 1})
    with pytest.raises(UnboundedError, match="max_completion_tokens") as refused:
        strict_bound(unknown, Demand(10, None, limit_param="max_completion_tokens"))
    assert refused.value.param == "max_completion_tokens"
    assert strict_bound(unknown, Demand(10, 5)).output_tokens == 5


def test_each_further_round_may_read_a_whole_window() -> None:
    price = Price({"input": 1_000_000, "output": 2_000_000}, context_window=1_000)
    bound = strict_bound(price, Demand(10, 5, rounds=3))
    assert bound == Bound(3_000, 15, 3_000 + 30)
    assert strict_bound(price, Demand(2_000, 5, rounds=2)).input_tokens == 4_000
    with pytest.raises(UnboundedError) as refused:
        strict_bound(Price({"input": 1, "output": 1}), Demand(10, 5, rounds=2))
    assert refused.value.param == "tools"


def test_content_that_can_not_be_seen_fills_the_window() -> None:
    price = Price({"input": 1_000_000, "output": 0}, context_window=1_000)
    assert strict_bound(price, Demand(10, 5, unseen="messages[0]")).input_tokens == 1_000
    with pytest.raises(UnboundedError, match=r"messages\[0\]"):
        strict_bound(Price({"input": 1, "output": 1}), Demand(10, 5, unseen="messages[0]"))


def test_input_that_costs_nothing_can_still_bring_the_output_into_a_dearer_tier() -> None:
    rates, dearer = {"input": 0, "output": 1_000_000}, {"input": 0, "output": 3_000_000}
    price = Price(rates, (Tier(200, dearer),), context_window=1_000)
    assert strict_bound(price, Demand(10, 5, unseen="cachedContent")) == Bound(1_000, 5, 15)
    endless = Price(rates, (Tier(200, dearer),))
    assert strict_bound(endless, Demand(10, 5, unseen="cachedContent")) == Bound(10, 5, 15)
    assert strict_bound(endless, Demand(10, 5)) == Bound(10, 5, 5)


def test_counts_are_bounded_and_must_have_a_price() -> None:
    price = Price({"input": 0, "output": 0, "web_search": 10_000_000_000, "audio_duration": 3_600_000})
    assert strict_bound(price, Demand(1, 1, counts={"web_searches": 3})).amount_nano == 30_000
    assert strict_bound(price, Demand(1, 1, counts={"audio_ms": 7})).amount_nano == 7
    minimum = Price({"audio_duration": 3_600_000}, minimums={"audio_ms": 10_000})
    assert strict_bound(minimum, Demand(0, 0, counts={"audio_ms": 7})).amount_nano == 10_000
    assert strict_bound(minimum, Demand(0, 0)).amount_nano == 0
    with pytest.raises(UnpricedComponentError, match="file search"):
        strict_bound(price, Demand(1, 1, counts={"file_searches": 1}))
    assert strict_bound(price, Demand(1, 1, counts={"file_searches": 0})).amount_nano == 0


def test_pages_stand_at_the_dearer_of_both_kinds() -> None:
    price = Price({"page": 2_000_000, "annotated_page": 3_000_000})
    assert strict_bound(price, Demand(0, 0, counts={"pages": 5})).amount_nano == 15
    only = Price({"page": 2_000_000})
    assert strict_bound(only, Demand(0, 0, counts={"pages": 5, "annotated_pages": 5})).amount_nano >= 10
    with pytest.raises(UnpricedComponentError, match="page"):
        strict_bound(SANDBOX_SMALL, Demand(0, 0, counts={"pages": 1}))


def test_a_component_without_a_price_is_refused() -> None:
    speaks = frozenset({"audio_output"})
    with pytest.raises(UnpricedComponentError, match="audio output") as refused:
        strict_bound(SANDBOX_SMALL, Demand(10, 5, parts=speaks, required=speaks))
    assert refused.value.component == "audio_output"
    free = {"input": 1, "output": 1, "audio_output": 0}
    assert strict_bound(Price(free), Demand(0, 5, parts=speaks, required=speaks)).output_tokens == 5
    tiered = Price(free, (Tier(9, {"input": 1, "output": 1}),))
    assert strict_bound(tiered, Demand(9, 5, parts=speaks, required=speaks)).output_tokens == 5
    with pytest.raises(UnpricedComponentError):
        strict_bound(tiered, Demand(10, 5, parts=speaks, required=speaks))


def test_a_model_without_a_price_for_tokens_is_refused_where_there_can_be_some() -> None:
    embedding, transcript = Price({"input": 1_000_000}), Price({"audio_duration": 1})
    assert strict_bound(embedding, Demand(7, 0)).amount_nano == 7
    with pytest.raises(UnpricedComponentError, match="output"):
        strict_bound(embedding, Demand(7, 5))
    with pytest.raises(UnpricedComponentError, match="input"):
        strict_bound(transcript, Demand(1, 0))


def test_what_costs_nothing_needs_no_limit() -> None:
    """A server of one's own: zero is a price, however long the answer."""
    own = Price({"input": 0, "output": 0})
    assert strict_bound(own, Demand(1000, None)).amount_nano == 0
    assert strict_bound(own, Demand(1000, None, rounds=9, unseen="tools")).amount_nano == 0
    with pytest.raises(UnboundedError):
        strict_bound(Price({"input": 0, "output": 1}), Demand(1000, None))


def test_what_the_vendor_reported_is_not_cut_when_the_rest_is_estimated() -> None:
    usage = {"input_tokens": 500, "output_tokens": 30}
    bound = Bound(100, 20, 1)
    assert within_bound(usage, "estimated", bound, {"input_tokens": 500}) == {"input_tokens": 500, "output_tokens": 20}


def test_reported_usage_is_taken_as_it_is() -> None:
    reported = {"input_tokens": 0, "output_tokens": 0, "cache_read_tokens": 0}
    assert fill_in_usage(reported, ("input_tokens", "output_tokens"), 99, Demand(1000, 10)) == (reported, "reported")


@pytest.mark.parametrize(
    ("reported", "demand", "filled"),
    [
        ({}, Demand(1000, None), {"input_tokens": 1000, "output_tokens": 99}),
        ({}, Demand(1000, 10, choices=2), {"input_tokens": 1000, "output_tokens": 20}),
        ({}, Demand(1000, 10, choices=2, rounds=3), {"input_tokens": 1000, "output_tokens": 60}),
        ({"input_tokens": 7}, Demand(1000, None), {"input_tokens": 7, "output_tokens": 99}),
        ({"output_tokens": 3}, Demand(1000, None), {"input_tokens": 1000, "output_tokens": 3}),
    ],
)
def test_missing_usage_is_estimated_conservatively(
    reported: dict[str, int], demand: Demand, filled: dict[str, int]
) -> None:
    assert fill_in_usage(reported, ("input_tokens", "output_tokens"), 99, demand) == (filled, "estimated")


def test_other_counts_that_are_missing_stand_at_their_bound() -> None:
    demand = Demand(0, 0, counts={"pages": 12})
    assert fill_in_usage({}, ("pages", "images"), 0, demand) == ({"pages": 12, "images": 0}, "estimated")


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
