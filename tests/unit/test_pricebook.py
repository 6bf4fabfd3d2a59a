"""What a model costs an org: its own price, the catalog's, or what its policy for unknown models says."""

from typing import Any

import pytest

from services.core.catalog import CatalogError, catalog_of
from services.core.estimate import Demand, strict_bound
from services.core.pricebook import UNPRICED, PriceBook
from services.core.pricing import price_usage, unpriced_counts
from services.core.snapshot import Overrides, Target, UnknownModels

REJECT = UnknownModels()
ALL = {"input_tokens": 7, "output_tokens": 9, "images": 3, "audio_ms": 5, "pages": 2, "web_searches": 1}


def entry(model: str, usd: str, vendor: str = "openai", **more: Any) -> dict[str, Any]:
    return {"vendor": vendor, "model": model, "prices": [{"usd": {"input": usd, "output": usd}}], **more}


def book(*own: dict[str, Any], unknown: UnknownModels = REJECT) -> PriceBook:
    catalog = catalog_of(
        "base",
        [entry("gpt-4o", "2.000000000", aliases=["gpt-4o-latest"]), entry("gpt-4o-2024-05-13", "5.000000000")],
        {},
    )
    return PriceBook(catalog, Overrides("mine", own) if own else None, unknown)


def found(prices: PriceBook, model: str, vendor: str = "openai") -> tuple[str, str, int, str] | None:
    """(priced as, match, nano-dollars for a million input tokens, catalog version)."""
    priced = prices.find(vendor, model, 0)
    if priced is None:
        return None
    return priced.model_priced, priced.match, priced.price.rates["input"], priced.catalog_version


def test_without_overrides_the_catalog_speaks() -> None:
    assert found(book(), "gpt-4o") == ("gpt-4o", "exact", 2_000_000_000, "base")
    assert found(book(), "gpt-4o-latest") == ("gpt-4o", "exact", 2_000_000_000, "base")
    assert found(book(), "openai/gpt-4o") == ("gpt-4o", "normalised", 2_000_000_000, "base")
    assert found(book(), "gpt-4o-2024-08-06") == ("gpt-4o", "normalised", 2_000_000_000, "base")


def test_an_orgs_own_price_wins_and_both_versions_are_told() -> None:
    prices = book(entry("gpt-4o", "1.000000000"))
    assert found(prices, "gpt-4o") == ("gpt-4o", "exact", 1_000_000_000, "base+mine")
    assert found(prices, "gpt-4o-2024-08-06") == ("gpt-4o", "normalised", 1_000_000_000, "base+mine")


def test_an_own_price_that_begins_later_is_not_in_force_yet() -> None:
    day_ms = 86_400_000
    later = {"vendor": "vllm", "model": "llama", "prices": [{"from": "1970-01-03", "usd": {"input": "9.0"}}]}
    prices = book(later, {**later, "vendor": "openai", "model": "gpt-4o"})
    assert prices.find("vllm", "llama", 2 * day_ms - 1) is None
    begun = prices.find("vllm", "llama", 2 * day_ms)
    assert begun is not None
    assert begun.price.rates == {"input": 9_000_000_000}
    assert found(prices, "gpt-4o") == ("gpt-4o", "exact", 2_000_000_000, "base"), "until then the catalog speaks"


def test_a_dated_model_with_a_price_of_its_own_keeps_it() -> None:
    """An override of the undated name is found only by leaving the date out; the exact name says more."""
    prices = book(entry("gpt-4o", "1.000000000"))
    assert found(prices, "gpt-4o-2024-05-13") == ("gpt-4o-2024-05-13", "exact", 5_000_000_000, "base")
    dated = book(entry("gpt-4o-2024-05-13", "3.000000000"))
    assert found(dated, "gpt-4o-2024-05-13") == ("gpt-4o-2024-05-13", "exact", 3_000_000_000, "base+mine")
    assert found(dated, "gpt-4o") == ("gpt-4o", "exact", 2_000_000_000, "base")


def test_zero_is_a_price() -> None:
    prices = book(entry("own-llama", "0.000000000", vendor="vllm"))
    assert found(prices, "own-llama", "vllm") == ("own-llama", "exact", 0, "base+mine")
    priced = prices.find("vllm", "own-llama", 0)
    assert priced is not None
    assert strict_bound(priced.price, Demand(10, 10)).amount_nano == 0
    usage = {"input_tokens": 5, "output_tokens": 5}
    assert unpriced_counts(priced.price, usage) == ()
    assert [each.cost_nano for each in price_usage(priced.price, usage)] == [0, 0]


def test_an_unknown_model_is_refused_unless_the_org_says_otherwise() -> None:
    assert found(book(), "gpt-99") is None
    assert found(book(), "gpt-4o", vendor="other") is None
    assert found(book(unknown=UnknownModels("reject", Target("openai", "gpt-4o"))), "gpt-99") is None


def test_a_fallback_price_is_that_of_the_model_it_names() -> None:
    unknown = UnknownModels("fallback_price", Target("openai", "gpt-4o-latest"))
    assert found(book(unknown=unknown), "gpt-99") == ("gpt-4o", "fallback", 2_000_000_000, "base")
    assert found(book(unknown=unknown), "any", vendor="vllm") == ("gpt-4o", "fallback", 2_000_000_000, "base")
    own = book(entry("gpt-4o", "1.000000000"), unknown=UnknownModels("fallback_price", Target("openai", "gpt-4o")))
    assert found(own, "gpt-99") == ("gpt-4o", "fallback", 1_000_000_000, "base+mine")
    assert found(book(unknown=unknown), "gpt-4o-2024-05-13") == ("gpt-4o-2024-05-13", "exact", 5_000_000_000, "base")


@pytest.mark.parametrize("target", [None, Target("openai", "gpt-98"), Target("nobody", "gpt-4o")])
def test_a_fallback_price_that_is_none_refuses(target: Target | None) -> None:
    assert found(book(unknown=UnknownModels("fallback_price", target)), "gpt-99") is None


def test_an_unpriced_model_costs_nothing_and_is_never_unbounded() -> None:
    priced = book(unknown=UnknownModels("allow_unpriced")).find("openai", "gpt-99", 0)
    assert priced is not None
    assert (priced.model_priced, priced.match, priced.price, priced.catalog_version) == (
        "gpt-99",
        "none",
        UNPRICED,
        "base",
    )
    demand = Demand(10, None, counts={"images": 2, "web_searches": 3}, parts=frozenset({"audio_input"}))
    assert strict_bound(priced.price, demand).amount_nano == 0
    assert sum(each.cost_nano for each in price_usage(priced.price, ALL)) == 0


def test_the_names_of_a_vendor_are_those_of_both() -> None:
    prices = book(entry("own", "1.000000000"), entry("own-llama", "0.000000000", vendor="vllm"))
    assert set(prices.names("openai")) == {"gpt-4o", "gpt-4o-latest", "gpt-4o-2024-05-13", "own"}
    assert set(prices.names("vllm")) == {"own-llama"}
    assert set(prices.names("nobody")) == set()


def test_overrides_that_contradict_each_other_can_not_be_read() -> None:
    with pytest.raises(CatalogError, match="gpt-4o"):
        book(entry("gpt-4o", "1.000000000"), entry("gpt-4o", "2.000000000"))
