"""The catalog as JSON: how it is read, what it refuses, and how models are looked up."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from services.core.catalog import Catalog, CatalogError, Found, catalog_version, decode_catalog
from services.core.pricing import Price, Tier, Variant, price_usage


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "vendor": "openai",
        "model": "gpt-4o",
        "aliases": ["gpt-4o-2024-08-06"],
        "prices": [{"usd": {"input": "2.500000000", "output": "10.000000000", "cache_read": "1.250000000"}}],
        "max_output_tokens": 16384,
        "context_window": 128000,
        **changes,
    }


def catalog_bytes(*entries: dict[str, Any], version: str | None = None, **fields: Any) -> bytes:
    document: dict[str, Any] = {"format": 2, "models": list(entries), **fields}
    return json.dumps({"version": version or catalog_version(document), **document}).encode()


def catalog(*entries: dict[str, Any], **fields: Any) -> Catalog:
    return decode_catalog(catalog_bytes(*entries, **fields))


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def priced(found: Found | None, at_least: str = "input") -> int | None:
    return None if found is None else found.price.rates[at_least]


# ---- Look-up --------------------------------------------------------------------------------------------------------


def test_look_up_is_exact_then_normalised_then_nothing() -> None:
    dated = entry(model="gpt-4o-2024-05-13", aliases=[], prices=[{"usd": {"input": "5.0", "output": "15.0"}}])
    known = catalog(entry(), dated)
    rates = {"input": 2_500_000_000, "output": 10_000_000_000, "cache_read": 1_250_000_000}
    assert known.find("openai", "gpt-4o", 0) == Found("gpt-4o", "exact", Price(rates, (), 16384, 128000))
    for model, name, match in (
        ("gpt-4o-2024-08-06", "gpt-4o", "exact"),
        ("openai/gpt-4o", "gpt-4o", "normalised"),
        ("models/gpt-4o", "gpt-4o", "normalised"),
        ("gpt-4o-2030-01-31", "gpt-4o", "normalised"),
        ("gpt-4o-20300131", "gpt-4o", "normalised"),
        ("gpt-4o@20300131", "gpt-4o", "normalised"),
        ("gpt-4o-001", "gpt-4o", "normalised"),
        ("gpt-4o-latest", "gpt-4o", "normalised"),
        ("openai/gpt-4o-2030-01-31", "gpt-4o", "normalised"),
        ("gpt-4o-2024-05-13", "gpt-4o-2024-05-13", "exact"),
        ("openai/gpt-4o-2024-05-13", "gpt-4o-2024-05-13", "normalised"),
    ):
        found = known.find("openai", model, 0)
        assert found is not None, model
        assert (found.model_priced, found.match) == (name, match), model


@pytest.mark.parametrize(
    "model",
    [
        "gpt-4o-mini",
        "gpt-4",
        "GPT-4o",
        "gpt-4o ",
        "gpt-4o-2024-08",
        "gpt-4o-2024-13-06",
        "gpt-4o-20241306",
        "gpt-4o-99999999",
        "gpt-4o-2024-0806",
        "gpt-4o-2024-08-06-preview",
        "gpt-4o-2024-08-06\n",
        "gpt-4o-0011",
        "gpt-4o-latest-001",
        "ft:gpt-4o-2024-08-06:acme::x",
        "azure/gpt-4o",
        "openai/openai/gpt-4o",
        "-2024-08-06",
        "",
    ],
)
def test_an_unknown_model_never_gets_the_price_of_another(model: str) -> None:
    assert catalog(entry()).find("openai", model, 0) is None


def test_vendors_do_not_share_prices() -> None:
    known = catalog(entry())
    assert known.find("mistral", "gpt-4o", 0) is None
    assert known.find("mistral", "openai/gpt-4o", 0) is None


def test_a_vendor_that_resells_another_s_models_has_its_prices() -> None:
    own = entry(vendor="azure", model="o4-mini", aliases=[], prices=[{"usd": {"input": "9", "output": "9"}}])
    theirs = entry(model="o4-mini", aliases=[], prices=[{"usd": {"input": "1", "output": "1"}}])
    known = catalog(entry(), own, theirs, also={"azure": ["openai"]})
    found = known.find("azure", "gpt-4o", 0)
    assert found is not None
    assert (found.model_priced, found.match) == ("gpt-4o", "normalised")
    assert priced(known.find("azure", "o4-mini", 0)) == 9_000_000_000
    assert priced(known.find("azure", "azure/gpt-4o-2030-01-31", 0)) == 2_500_000_000
    assert known.find("openai", "azure/gpt-4o", 0) is None


def test_names_that_customers_choose_are_known_by_their_beginning_the_longest_first() -> None:
    usual = entry(model="ft:a", aliases=[], prefixes=["ft:a"], prices=[{"usd": {"input": "1"}}])
    special = entry(model="ft:a-b:", aliases=[], prefixes=["ft:a-b:"], prices=[{"usd": {"input": "2"}}])
    known = catalog(usual, special)
    assert priced(known.find("openai", "ft:a-b:acme", 0)) == 2_000_000_000
    assert priced(known.find("openai", "ft:a:acme", 0)) == 1_000_000_000
    assert known.find("openai", "gpt:a", 0) is None


# ---- Time -----------------------------------------------------------------------------------------------------------


def test_the_price_is_the_one_in_force() -> None:
    periods = [
        {"usd": {"input": "1"}},
        {"from": "2026-03-01", "usd": {"input": "2"}},
        {"from": "2026-11-01", "usd": {"input": "3"}},
    ]
    known = catalog(entry(prices=periods))
    for moment, dollars in (
        ("1999-01-01", 1),
        ("2026-02-28T23:59:59.999", 1),
        ("2026-03-01", 2),
        ("2026-10-31T23:59:59.999", 2),
        ("2026-11-01", 3),
        ("2099-01-01", 3),
    ):
        assert priced(known.find("openai", "gpt-4o", at(moment))) == dollars * 10**9, moment


def test_a_price_by_the_time_of_day_ends_before_its_end_and_may_pass_midnight() -> None:
    periods = [
        {"usd": {"input": "1"}},
        {"daily": ["00:30:00", "16:30:00"], "usd": {"input": "2"}},
        {"daily": ["23:00:00", "00:10:00"], "usd": {"input": "3"}},
    ]
    known = catalog(entry(prices=periods))
    for clock, dollars in (
        ("00:09:59.999", 3),
        ("00:10:00", 1),
        ("00:30:00", 2),
        ("16:29:59.999", 2),
        ("16:30:00", 1),
        ("23:00:00", 3),
    ):
        assert priced(known.find("openai", "gpt-4o", at(f"2026-11-27T{clock}"))) == dollars * 10**9, clock


def test_before_its_first_day_a_model_has_no_price() -> None:
    known = catalog(entry(prices=[{"from": "2026-03-01", "usd": {"input": "2"}}]))
    assert known.find("openai", "gpt-4o", 0) is None
    assert priced(known.find("openai", "gpt-4o", 1_772_323_200_000)) == 2_000_000_000


def test_variants_override_what_they_name_from_their_day_on() -> None:
    periods = [{"usd": {"input": "8", "output": "8"}, "tiers": [{"above_input_tokens": 10, "usd": {"input": "9"}}]}]
    variants = [
        {"when": {"processing": "batch"}, "from": "2026-10-14", "usd": {"input": "4"}},
        {
            "when": {"service_tier": "flex"},
            "usd": {"input": "5"},
            "tiers": [{"above_input_tokens": 20, "usd": {"input": "6"}}],
        },
    ]
    known = catalog(entry(prices=periods, variants=variants))
    before, after = known.find("openai", "gpt-4o", at("2026-10-13")), known.find("openai", "gpt-4o", at("2026-10-14"))
    assert before is not None
    assert after is not None
    eight, batch = 8 * 10**9, {"input": 4 * 10**9}
    flex = Variant(
        {"service_tier": "flex"},
        {"input": 5 * 10**9, "output": eight},
        # The standard tier goes on at the variant's own rate, then the variant's begins.
        (Tier(10, {"input": 5 * 10**9}), Tier(20, {"input": 6 * 10**9})),
    )
    assert before.price.variants == (flex,)
    halved = Variant({"processing": "batch"}, {**batch, "output": eight}, (Tier(10, batch),))
    assert after.price.variants == (halved, flex)
    assert after.price.rates == {"input": eight, "output": eight}


# ---- Form -----------------------------------------------------------------------------------------------------------


def test_an_edited_catalog_is_refused() -> None:
    good = catalog_bytes(entry())
    assert decode_catalog(good).version == json.loads(good)["version"]
    with pytest.raises(CatalogError, match="edited"):
        decode_catalog(good.replace(b"2.500000000", b"0.500000000"))


def test_the_version_is_of_the_content_not_of_its_layout() -> None:
    document = json.loads(catalog_bytes(entry()))
    again = json.dumps(dict(reversed(document.items())), indent=3).encode()
    assert decode_catalog(again).version == document["version"]


def test_a_catalog_of_the_first_form_still_reads() -> None:
    old = {
        "vendor": "openai",
        "model": "gpt-4o",
        "aliases": ["gpt-4o-2024-08-06"],
        "usd_per_million": {"input": "2.500000000", "output": "10.000000000"},
        "tiers": [{"above_input_tokens": 9, "usd_per_million": {"input": "5.0", "output": "10.0"}}],
        "max_output_tokens": 16384,
        "context_window": None,
    }
    document: dict[str, Any] = {"models": [old], "as_of": "2026-11-21", "notes": []}
    known = decode_catalog(json.dumps({"version": catalog_version(document), **document}).encode())
    found = known.find("openai", "gpt-4o-2024-08-06", 0)
    assert found is not None
    assert found.match == "exact"
    assert sum(each.cost_nano for each in price_usage(found.price, {"input_tokens": 9, "output_tokens": 1})) == 32_500
    assert sum(each.cost_nano for each in price_usage(found.price, {"input_tokens": 10})) == 50_000
    assert (found.price.max_output_tokens, found.price.context_window) == (16384, None)


def tiers(*starts: object) -> list[dict[str, Any]]:
    return [{"usd": {"input": "1"}, "tiers": [{"above_input_tokens": each, "usd": {"input": "1"}} for each in starts]}]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"[]",
        b"{}",
        b'{"version": "x"}',
        catalog_bytes(entry(), format=3),
        catalog_bytes(entry(prices=[])),
        catalog_bytes(entry(prices=[{"usd": {"smell": "1.0"}}])),
        catalog_bytes(entry(prices=[{"usd": {"input": "-1.0"}}])),
        catalog_bytes(entry(prices=[{"usd": {"input": 1}}])),
        catalog_bytes(entry(prices=[{"usd": {"input": "1e3"}}])),
        catalog_bytes(entry(prices=[{"usd": {"input": "0.0000000001"}}])),
        catalog_bytes(entry(prices=[{"from": "soon", "usd": {"input": "1"}}])),
        catalog_bytes(entry(prices=[{"daily": ["9:00", "10:00"], "usd": {"input": "1"}}])),
        catalog_bytes(entry(prices=[{"daily": ["09:00:00", "24:00:00"], "usd": {"input": "1"}}])),
        catalog_bytes(entry(prices=tiers(9, 8))),
        catalog_bytes(entry(prices=tiers(9, 9))),
        catalog_bytes(entry(prices=tiers("9"))),
        catalog_bytes(entry(prices=tiers(True))),
        catalog_bytes(entry(variants=[{"usd": {"input": "1"}}])),
        catalog_bytes(entry(variants=[{"when": {}, "usd": {"input": "1"}}])),
        catalog_bytes(entry(variants=[{"when": {"processing": 1}, "usd": {"input": "1"}}])),
        catalog_bytes(entry(minimums={"audio_hours": 1})),
        catalog_bytes(entry(minimums={"audio_ms": -1})),
        catalog_bytes(entry(max_output_tokens=0)),
        catalog_bytes(entry(context_window=1.5)),
        catalog_bytes(entry(model="")),
        catalog_bytes(entry(prefixes=[""])),
        catalog_bytes(entry(aliases=[None])),
        catalog_bytes(entry(), entry(model="other")),
        catalog_bytes(entry(), also={"azure": "openai"}),
    ],
)
def test_a_malformed_catalog_is_refused(value: bytes) -> None:
    with pytest.raises(CatalogError):
        decode_catalog(value)
