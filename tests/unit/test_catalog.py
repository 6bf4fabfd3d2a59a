"""The shipped catalog: what the tool makes, and what genai-prices would charge."""

from datetime import UTC, datetime, time
from decimal import Decimal
from functools import cache

import pytest
from genai_prices.data import providers
from genai_prices.types import ModelInfo, Provider, Usage

from services.core.estimate import UnboundedError, strict_bound
from services.core.pricing import Catalog, decode_catalog, price_usage
from services.sandbox.request import MODELS
from tools.compile_catalog import AS_OF, CATALOG, compile_catalog, render

COMMON = (
    "gpt-3.5-turbo", "gpt-4", "gpt-4-turbo", "gpt-4o", "gpt-4o-mini", "gpt-4o-2024-05-13", "gpt-4.1", "gpt-4.1-mini",
    "gpt-4.1-nano", "gpt-5", "gpt-5-mini", "gpt-5-nano", "gpt-5.1", "gpt-5.2", "gpt-5.4", "gpt-5.4-mini", "gpt-5.5",
    "gpt-5.6", "gpt-6-sol", "gpt-6-luna", "gpt-6-astra", "gpt-6.1-sol", "gpt-6.1-terra", "gpt-audio", "o1", "o3",
    "o3-mini", "o4-mini",
)  # fmt: skip


@cache
def shipped() -> Catalog:
    return decode_catalog(CATALOG.read_bytes())


def openai() -> Provider:
    return next(each for each in providers if each.id == "openai")


def models() -> list[tuple[str, ModelInfo]]:
    """Every priced name with the entry of genai-prices that stands behind it."""
    found = []
    for name in shipped().prices["openai"]:
        model = openai().find_model(name)
        assert model is not None, name
        found.append((name, model))
    return found


def test_the_shipped_file_is_what_the_tool_makes() -> None:
    assert CATALOG.read_bytes() == render(compile_catalog())


def test_the_tool_is_deterministic() -> None:
    assert render(compile_catalog()) == render(compile_catalog())


def test_it_has_the_common_models_and_bounds_them() -> None:
    for name in COMMON:
        found = shipped().find("openai", name)
        assert found is not None, name
        assert found.match == "exact", name
        assert strict_bound(found.price, 1000, None, 1).amount_nano > 0, name


def test_a_model_of_unknown_length_asks_for_a_limit() -> None:
    found = shipped().find("openai", "gpt-6-cyber")
    assert found is not None
    with pytest.raises(UnboundedError):
        strict_bound(found.price, 1000, None, 1)


def test_the_sandbox_models_are_priced_and_bounded_as_the_sandbox_writes_them() -> None:
    for name, most in MODELS.items():
        found = shipped().find("sandbox", name)
        assert found is not None
        assert found.price.max_output_tokens == most


@pytest.mark.parametrize(
    "usage",
    [
        {"input_tokens": 1234, "output_tokens": 567},
        {"input_tokens": 1234, "cache_read_tokens": 1000, "output_tokens": 567},
        {"input_tokens": 271_999, "cache_read_tokens": 3, "output_tokens": 1},
        {"input_tokens": 272_000, "output_tokens": 9},
        {"input_tokens": 272_001, "cache_read_tokens": 100_000, "output_tokens": 12_345},
    ],
)
def test_costs_are_those_of_genai_prices(usage: dict[str, int]) -> None:
    when = datetime.combine(AS_OF, time(12), UTC)
    for name, model in models():
        price = shipped().prices["openai"][name][1]
        theirs = model.calc_price(Usage(**usage), openai(), genai_request_timestamp=when).total_price
        ours = sum(each.cost_nano for each in price_usage(price, usage))
        # Half a nano-dollar a component is what rounding may make of it.
        assert abs(theirs * 10**9 - ours) <= Decimal("1.5"), name


def test_cache_writes_and_audio_cost_what_genai_prices_says() -> None:
    when = datetime.combine(AS_OF, time(12), UTC)
    written = {"cache_write_tokens": 400}
    heard = {"input_audio_tokens": 50, "output_audio_tokens": 70}
    spoken = {"audio_input_tokens": 50, "audio_output_tokens": 70}
    cases = (("gpt-6-sol", written, written), ("gpt-5.6", written, written), ("gpt-audio", heard, spoken))
    for name, theirs, ours in cases:
        model = openai().find_model(name)
        assert model is not None
        total = {"input_tokens": 1000, "output_tokens": 100}
        expected = model.calc_price(Usage(**total, **theirs), openai(), genai_request_timestamp=when).total_price
        price = shipped().prices["openai"][name][1]
        assert sum(each.cost_nano for each in price_usage(price, {**total, **ours})) == expected * 10**9, name


def test_each_name_is_priced_as_genai_prices_matches_it() -> None:
    for name, model in models():
        assert model.is_match(name)


def test_nothing_that_was_left_out_is_priced_by_a_normalised_name() -> None:
    kept = set(shipped().prices["openai"])
    candidates = {"gpt-4o-search-preview-2025-03-11", "gpt-4o-audio-preview-2024-12-17", "gpt-5-search-api-2025-10-14"}
    candidates |= {"gpt-4o-mini-search-preview-2025-03-11", "gpt-realtime-2025-08-28", "gpt-image-1.5-2025-12-16"}
    candidates |= {"o3-deep-research-2025-06-26", "gpt-4o-mini-tts-2025-12-15", "ft:gpt-4o-2024-08-06"}
    for name in candidates - kept:
        assert shipped().find("openai", name) is None, name
    assert not candidates & kept


def test_what_is_left_out_is_listed_with_the_reason() -> None:
    document = compile_catalog()
    notes = "\n".join(document["notes"])
    kept = {each["model"] for each in document["models"]} | {
        alias for each in document["models"] for alias in each["aliases"]
    }
    for model in openai().models:
        assert (
            model.id in kept
            or any(model.is_match(name) for name in kept)
            or f"openai/{model.id} is left out: " in notes
        )
