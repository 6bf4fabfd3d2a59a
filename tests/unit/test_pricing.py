"""Prices: look-up, cost, and the catalog's form."""

import json
from typing import Any

import pytest

from services.core.money import NANO_PER_USD
from services.core.pricing import (
    CatalogError,
    Found,
    Price,
    Rates,
    Tier,
    catalog_version,
    decode_catalog,
    price_usage,
    rates_for,
)

CHAT = Price(input=2_500_000_000, output=10_000_000_000, cache_read=1_250_000_000)
AUDIO = Price(input=2_500_000_000, output=10_000_000_000, audio_input=32_000_000_000, audio_output=64_000_000_000)


def costs(price: Price, **usage: int) -> dict[str, tuple[int, int]]:
    return {each.component: (each.quantity, each.cost_nano) for each in price_usage(price, usage)}


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "vendor": "openai",
        "model": "gpt-4o",
        "aliases": ["gpt-4o-2024-08-06"],
        "usd_per_million": {"input": "2.500000000", "output": "10.000000000", "cache_read": "1.250000000"},
        "tiers": [],
        "max_output_tokens": 16384,
        "context_window": 128000,
        **changes,
    }


def catalog_bytes(*entries: dict[str, Any], version: str | None = None) -> bytes:
    document: dict[str, Any] = {"models": list(entries)}
    return json.dumps({"version": version or catalog_version(document), **document}).encode()


def test_components_are_disjoint_and_add_up() -> None:
    assert costs(CHAT, input_tokens=1000, cache_read_tokens=400, output_tokens=50, reasoning_tokens=30) == {
        "input": (600, 1_500_000),
        "cache_read": (400, 500_000),
        "output": (50, 500_000),
    }


def test_nothing_used_costs_nothing_and_says_so() -> None:
    assert costs(CHAT) == {"input": (0, 0), "output": (0, 0)}


def test_zero_is_a_price_and_absent_is_not() -> None:
    free_cache = Price(input=1_000_000_000, output=0, cache_read=0)
    assert costs(free_cache, input_tokens=10, cache_read_tokens=10, output_tokens=5) == {
        "input": (0, 0),
        "cache_read": (10, 0),
        "output": (5, 0),
    }
    no_cache_price = Price(input=1_000_000_000, output=0)
    assert costs(no_cache_price, input_tokens=10, cache_read_tokens=10) == {"input": (10, 10_000), "output": (0, 0)}


def test_audio_has_its_own_price() -> None:
    assert costs(AUDIO, input_tokens=100, audio_input_tokens=60, output_tokens=50, audio_output_tokens=40) == {
        "input": (40, 100_000),
        "audio_input": (60, 1_920_000),
        "output": (10, 100_000),
        "audio_output": (40, 2_560_000),
    }


def test_parts_beyond_their_total_are_cut_and_the_dearest_keeps_its_tokens() -> None:
    price = Price(input=4_000_000, output=0, cache_read=1_000_000, cache_write=5_000_000, audio_input=9_000_000)
    usage = {"input_tokens": 10, "audio_input_tokens": 6, "cache_write_tokens": 3, "cache_read_tokens": 8}
    assert costs(price, **usage) == {
        "input": (0, 0),
        "audio_input": (6, 54),
        "cache_write": (3, 15),
        "cache_read": (1, 1),
        "output": (0, 0),
    }


def test_each_component_is_rounded_once_half_even() -> None:
    price = Price(input=500_000, output=1_500_000, request=2_500_000)
    assert costs(price, input_tokens=1, output_tokens=1) == {"input": (1, 0), "output": (1, 2), "request": (1, 2)}
    assert costs(price, input_tokens=3, output_tokens=3)["input"] == (3, 2)


def test_a_request_price_is_charged_once() -> None:
    price = Price(input=0, output=0, request=10_000_000 * 1_000_000)
    assert costs(price, input_tokens=7)["request"] == (1, NANO_PER_USD // 100)


def test_a_long_context_tier_prices_the_whole_call() -> None:
    price = Price(
        input=1_000_000_000,
        output=2_000_000_000,
        tiers=(
            Tier(100, Rates(input=3_000_000_000, output=4_000_000_000)),
            Tier(200, Rates(input=5_000_000_000, output=6_000_000_000)),
        ),
    )
    assert rates_for(price, 100) is price
    assert costs(price, input_tokens=100, output_tokens=1) == {"input": (100, 100_000), "output": (1, 2_000)}
    assert costs(price, input_tokens=101, output_tokens=1) == {"input": (101, 303_000), "output": (1, 4_000)}
    assert costs(price, input_tokens=201, output_tokens=1) == {"input": (201, 1_005_000), "output": (1, 6_000)}


def test_look_up_is_exact_then_normalised_then_nothing() -> None:
    dated = entry(model="gpt-4o-2024-05-13", aliases=[], usd_per_million={"input": "5.0", "output": "15.0"})
    catalog = decode_catalog(catalog_bytes(entry(), dated))
    assert catalog.find("openai", "gpt-4o") == Found(
        "gpt-4o",
        "exact",
        Price(2_500_000_000, 10_000_000_000, 1_250_000_000, None, None, None, None, (), 16384, 128000),
    )
    for model, priced, match in (
        ("gpt-4o-2024-08-06", "gpt-4o", "exact"),
        ("openai/gpt-4o", "gpt-4o", "normalised"),
        ("gpt-4o-2030-01-31", "gpt-4o", "normalised"),
        ("openai/gpt-4o-2030-01-31", "gpt-4o", "normalised"),
        ("gpt-4o-2024-05-13", "gpt-4o-2024-05-13", "exact"),
        ("openai/gpt-4o-2024-05-13", "gpt-4o-2024-05-13", "normalised"),
    ):
        found = catalog.find("openai", model)
        assert found is not None, model
        assert (found.model_priced, found.match) == (priced, match), model


@pytest.mark.parametrize(
    "model",
    [
        "gpt-4o-mini",
        "gpt-4",
        "GPT-4o",
        "gpt-4o ",
        "gpt-4o-2024-08",
        "gpt-4o-2024-08-06-preview",
        "gpt-4o-2024-08-06\n",
        "ft:gpt-4o-2024-08-06:acme::x",
        "azure/gpt-4o",
        "openai/openai/gpt-4o",
        "-2024-08-06",
        "",
    ],
)
def test_an_unknown_model_never_gets_the_price_of_another(model: str) -> None:
    assert decode_catalog(catalog_bytes(entry())).find("openai", model) is None


def test_vendors_do_not_share_prices() -> None:
    catalog = decode_catalog(catalog_bytes(entry()))
    assert catalog.find("mistral", "gpt-4o") is None
    assert catalog.find("mistral", "openai/gpt-4o") is None


def test_an_edited_catalog_is_refused() -> None:
    good = catalog_bytes(entry())
    assert decode_catalog(good).version == json.loads(good)["version"]
    with pytest.raises(CatalogError, match="edited"):
        decode_catalog(good.replace(b"2.500000000", b"0.500000000"))


def test_the_version_is_of_the_content_not_of_its_layout() -> None:
    document = json.loads(catalog_bytes(entry()))
    again = json.dumps(dict(reversed(document.items())), indent=3).encode()
    assert decode_catalog(again).version == document["version"]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"[]",
        b"{}",
        b'{"version": "x"}',
        catalog_bytes(entry(usd_per_million={"input": "1.0"})),
        catalog_bytes(entry(usd_per_million={"input": "1.0", "output": "1.0", "smell": "1.0"})),
        catalog_bytes(entry(usd_per_million={"input": "-1.0", "output": "1.0"})),
        catalog_bytes(entry(usd_per_million={"input": 1, "output": "1.0"})),
        catalog_bytes(entry(usd_per_million={"input": "1e3", "output": "1.0"})),
        catalog_bytes(entry(), entry(model="other")),
        catalog_bytes(
            entry(
                tiers=[
                    {"above_input_tokens": 9, "usd_per_million": {"input": "1.0", "output": "1.0"}},
                    {"above_input_tokens": 8, "usd_per_million": {"input": "1.0", "output": "1.0"}},
                ]
            )
        ),
    ],
)
def test_a_malformed_catalog_is_refused(value: bytes) -> None:
    with pytest.raises(CatalogError):
        decode_catalog(value)
