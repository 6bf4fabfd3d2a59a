"""Prices: rates, tiers, variants, and cost."""

import pytest

from services.core.components import BY_COUNT, COMPONENTS, FLAT, PARTS, TREES
from services.core.money import NANO_PER_USD
from services.core.pricing import Price, Tier, Variant, price_usage, rates_for, unpriced_contexts, unpriced_counts

CHAT = Price({"input": 2_500_000_000, "output": 10_000_000_000, "cache_read": 1_250_000_000})
AUDIO = Price(
    {
        "input": 2_500_000_000,
        "output": 10_000_000_000,
        "audio_input": 32_000_000_000,
        "audio_output": 64_000_000_000,
    }
)


def costs(price: Price, context: dict[str, str] | None = None, **usage: int) -> dict[str, tuple[int, int]]:
    return {each.component: (each.quantity, each.cost_nano) for each in price_usage(price, usage, context or {})}


def test_every_component_has_a_count_of_its_own_and_lies_where_its_tree_says() -> None:
    assert len(BY_COUNT) == len(COMPONENTS)
    assert {each.name for each in FLAT} | {part.name for tree in TREES for part in PARTS[tree]} | set(TREES) == set(
        COMPONENTS
    )
    for tree in TREES:
        assert all(part.is_inside(COMPONENTS[tree]) for part in PARTS[tree])
    assert COMPONENTS["audio_cache_read"].is_inside(COMPONENTS["cache_read"])
    assert COMPONENTS["audio_cache_read"].is_inside(COMPONENTS["audio_input"])
    assert COMPONENTS["cache_write_1h"].is_inside(COMPONENTS["cache_write"])
    assert not COMPONENTS["cache_write"].is_inside(COMPONENTS["cache_write_1h"])
    assert not COMPONENTS["audio_input"].is_inside(COMPONENTS["audio_output"])
    assert not COMPONENTS["web_search"].is_inside(COMPONENTS["file_search"])


def test_components_are_disjoint_and_add_up() -> None:
    assert costs(CHAT, input_tokens=1000, cache_read_tokens=400, output_tokens=50, reasoning_tokens=30) == {
        "input": (600, 1_500_000),
        "cache_read": (400, 500_000),
        "output": (50, 500_000),
    }


def test_nothing_used_costs_nothing_and_says_so() -> None:
    assert costs(CHAT) == {"input": (0, 0), "output": (0, 0)}


def test_zero_is_a_price_and_absent_is_not() -> None:
    free_cache = Price({"input": 1_000_000_000, "output": 0, "cache_read": 0})
    assert costs(free_cache, input_tokens=10, cache_read_tokens=10, output_tokens=5) == {
        "input": (0, 0),
        "cache_read": (10, 0),
        "output": (5, 0),
    }
    no_cache_price = Price({"input": 1_000_000_000, "output": 0})
    assert costs(no_cache_price, input_tokens=10, cache_read_tokens=10) == {"input": (10, 10_000), "output": (0, 0)}


def test_audio_has_its_own_price() -> None:
    assert costs(AUDIO, input_tokens=100, audio_input_tokens=60, output_tokens=50, audio_output_tokens=40) == {
        "input": (40, 100_000),
        "audio_input": (60, 1_920_000),
        "output": (10, 100_000),
        "audio_output": (40, 2_560_000),
    }


def test_reasoning_is_part_of_the_output_and_charged_once() -> None:
    priced = Price({"output": 2_000_000, "reasoning": 3_000_000})
    assert costs(priced, output_tokens=10, reasoning_tokens=4) == {"output": (6, 12), "reasoning": (4, 12)}
    assert costs(Price({"output": 2_000_000}), output_tokens=10, reasoning_tokens=4) == {"output": (10, 20)}


def test_an_hour_s_cache_writes_are_not_charged_as_five_minutes_too() -> None:
    price = Price({"input": 4_000_000, "cache_write": 5_000_000, "cache_write_1h": 8_000_000, "cache_read": 400_000})
    usage = {"input_tokens": 100, "cache_read_tokens": 20, "cache_write_tokens": 30, "cache_write_1h_tokens": 10}
    assert costs(price, **usage) == {
        "input": (50, 200),
        "cache_write": (20, 100),
        "cache_write_1h": (10, 80),
        "cache_read": (20, 8),
    }
    no_hour = Price({"input": 4_000_000, "cache_write": 5_000_000})
    assert costs(no_hour, **usage) == {"input": (70, 280), "cache_write": (30, 150)}


def test_a_token_that_is_two_parts_at_once_is_charged_at_the_price_of_both() -> None:
    price = Price({"input": 4_000_000, "cache_read": 400_000, "audio_input": 32_000_000, "audio_cache_read": 2_500_000})
    # Of 100 tokens 30 were audio and 40 cached; 10 of them were both.
    usage = {
        "input_tokens": 100,
        "audio_input_tokens": 30,
        "cache_read_tokens": 40,
        "audio_cache_read_tokens": 10,
    }
    assert costs(price, **usage) == {
        "input": (40, 160),
        "audio_cache_read": (10, 25),
        "audio_input": (20, 640),
        "cache_read": (30, 12),
    }


def test_parts_beyond_their_total_are_cut_and_the_dearest_keeps_its_tokens() -> None:
    price = Price(
        {"input": 4_000_000, "output": 0, "cache_read": 1_000_000, "cache_write": 5_000_000, "audio_input": 9_000_000}
    )
    usage = {"input_tokens": 10, "audio_input_tokens": 6, "cache_write_tokens": 3, "cache_read_tokens": 8}
    assert costs(price, **usage) == {
        "input": (0, 0),
        "audio_input": (6, 54),
        "cache_write": (3, 15),
        "cache_read": (1, 1),
        "output": (0, 0),
    }


def test_tokens_without_a_price_of_their_kind_are_charged_at_the_dearest_part_s() -> None:
    speaking = Price({"input": 1_000_000, "audio_output": 12_000_000, "image_output": 5_000_000})
    assert costs(speaking, output_tokens=10) == {"input": (0, 0), "audio_output": (10, 120)}
    assert costs(speaking, output_tokens=10, image_output_tokens=4) == {
        "input": (0, 0),
        "image_output": (4, 20),
        "audio_output": (6, 72),
    }


def test_each_component_is_rounded_once_half_even() -> None:
    price = Price({"input": 500_000, "output": 1_500_000, "request": 2_500_000})
    assert costs(price, input_tokens=1, output_tokens=1) == {"input": (1, 0), "output": (1, 2), "request": (1, 2)}
    assert costs(price, input_tokens=3, output_tokens=3)["input"] == (3, 2)


def test_a_context_without_rates_of_its_own_is_named() -> None:
    price = Price({"input": 1}, variants=(Variant({"service_tier": "priority"}, {"input": 2}),))
    standard = {"service_tier": "default", "speed": "standard", "inference_geo": "not_available"}
    assert unpriced_contexts(price, standard) == ()
    assert unpriced_contexts(price, {"service_tier": "priority"}) == ()
    assert unpriced_contexts(price, {"service_tier": "flex", "processing": "batch"}) == (
        "service_tier=flex",
        "processing=batch",
    )


def test_a_request_price_is_charged_once() -> None:
    price = Price({"input": 0, "request": 10_000_000 * 1_000_000})
    assert costs(price, input_tokens=7)["request"] == (1, NANO_PER_USD // 100)


def test_flat_counts_are_charged_by_the_unit() -> None:
    # Ten dollars a thousand searches, fifteen a million characters, six cents an hour of audio.
    price = Price({"web_search": 10_000 * NANO_PER_USD, "character": 15 * NANO_PER_USD, "audio_duration": 60_000_000})
    usage = {"web_searches": 3, "characters": 2_000, "audio_ms": 90_000}
    assert costs(price, **usage) == {
        "web_search": (3, 3 * NANO_PER_USD // 100),
        "character": (2_000, 30_000_000),
        "audio_duration": (90_000, 60_000_000 // 40),
    }
    assert [each.per for each in price_usage(price, usage)] == [1_000_000, 3_600_000, 1_000_000]


def test_the_least_that_is_charged() -> None:
    price = Price({"audio_duration": 36_000_000}, minimums={"audio_ms": 10_000})
    assert costs(price, audio_ms=1) == {"audio_duration": (10_000, 100_000)}
    assert costs(price, audio_ms=20_000) == {"audio_duration": (20_000, 200_000)}
    assert costs(price, audio_ms=0) == {}


def test_pages_and_those_with_annotations() -> None:
    price = Price({"page": 2_000 * NANO_PER_USD, "annotated_page": 3_000 * NANO_PER_USD})
    assert costs(price, pages=5, annotated_pages=2) == {"page": (3, 6_000_000), "annotated_page": (2, 6_000_000)}


TIERED = Price(
    {"input": 1_000_000_000, "output": 2_000_000_000},
    (
        Tier(100, {"input": 3_000_000_000, "output": 4_000_000_000}),
        Tier(200, {"input": 5_000_000_000, "output": 6_000_000_000}),
    ),
)


def test_a_long_context_tier_prices_the_whole_call() -> None:
    assert rates_for(TIERED, 100) is TIERED.rates
    assert costs(TIERED, input_tokens=100, output_tokens=1) == {"input": (100, 100_000), "output": (1, 2_000)}
    assert costs(TIERED, input_tokens=101, output_tokens=1) == {"input": (101, 303_000), "output": (1, 4_000)}
    assert costs(TIERED, input_tokens=201, output_tokens=1) == {"input": (201, 1_005_000), "output": (1, 6_000)}


def test_a_context_picks_its_variant_and_another_the_standard_rates() -> None:
    price = Price(
        {"input": 8_000_000, "output": 8_000_000},
        variants=(
            Variant(
                {"processing": "batch"}, {"input": 4_000_000, "output": 4_000_000}, (Tier(5, {"input": 6_000_000}),)
            ),
            Variant({"service_tier": "priority"}, {"input": 16_000_000, "output": 16_000_000}),
        ),
    )
    assert costs(price, {"processing": "batch"}, input_tokens=5) == {"input": (5, 20), "output": (0, 0)}
    assert costs(price, {"processing": "batch"}, input_tokens=6) == {"input": (6, 36)}
    assert costs(price, {"service_tier": "priority"}, input_tokens=6)["input"] == (6, 96)
    for context in ({}, {"service_tier": "default"}, {"processing": "other"}):
        assert costs(price, context, input_tokens=6)["input"] == (6, 48)
    # The first that holds.
    assert costs(price, {"service_tier": "priority", "processing": "batch"}, input_tokens=5)["input"] == (5, 20)


def test_what_a_price_does_not_cover_is_named() -> None:
    assert unpriced_counts(CHAT, {"input_tokens": 5, "audio_input_tokens": 5, "output_tokens": 1}) == ()
    assert unpriced_counts(CHAT, {"input_tokens": 5, "web_searches": 2, "pages": 1, "file_searches": 0}) == (
        "pages",
        "web_searches",
    )
    embedding = Price({"input": 1})
    assert unpriced_counts(embedding, {"input_tokens": 5, "output_tokens": 0}) == ()
    assert unpriced_counts(embedding, {"input_tokens": 5, "output_tokens": 1}) == ("output_tokens",)
    speaking = Price({"audio_output": 1})
    assert unpriced_counts(speaking, {"output_tokens": 1}) == ()


@pytest.mark.parametrize("count", ["accepted_prediction_tokens", "anything_else"])
def test_counts_that_are_no_component_s_change_nothing(count: str) -> None:
    assert costs(CHAT, input_tokens=3, **{count: 99}) == costs(CHAT, input_tokens=3)
    assert unpriced_counts(CHAT, {count: 99}) == ()
