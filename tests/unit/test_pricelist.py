"""Prices as people read them: which vendor a bare model name means, and where each price is from."""

from typing import Any

from services.core.catalog import catalog_of, decode_catalog
from services.core.catalog_fields import diff_catalogs, entry_fields, models_of
from services.core.pricelist import PriceList
from services.core.snapshot import Overrides
from tools.compile_catalog import CATALOG

AT_MS = 1_790_000_000_000


def entry(vendor: str, model: str, usd: str = "1", **fields: Any) -> dict[str, Any]:
    return {"vendor": vendor, "model": model, "prices": [{"usd": {"input": usd}}], **fields}


def listed(*entries: dict[str, Any], own: tuple[dict[str, Any], ...] = (), **also: tuple[str, ...]) -> PriceList:
    return PriceList(catalog_of("cafe", entries, also), Overrides("beef", own) if own else None)


def vendor_of(prices: PriceList, model: str) -> str | None:
    found = prices.detail(model, None, AT_MS)
    return None if found is None else str(found["vendor"])


def test_a_bare_name_means_whoever_has_the_very_name_then_whoever_made_a_dialect() -> None:
    prices = listed(entry("acme", "m"), entry("openai", "m"), entry("zeta", "m-2026-01-01"))
    assert vendor_of(prices, "m") == "openai"
    assert vendor_of(prices, "m-2026-01-01") == "zeta"
    assert vendor_of(prices, "m-2026-02-02") == "openai"
    assert vendor_of(prices, "n") is None
    found = prices.detail("m", "acme", AT_MS)
    assert found is not None
    assert (found["vendor"], found["also_priced_by"]) == ("acme", [])
    found = prices.detail("m", None, AT_MS)
    assert found is not None
    assert found["also_priced_by"] == ["acme"]


def test_own_prices_stand_in_for_the_catalogs_and_beside_them() -> None:
    prices = listed(
        entry("openai", "m"), entry("openai", "n"), own=(entry("openai", "m", "7"), entry("vllm", "o", "0"))
    )
    rows = [
        (each["vendor"], each["model"], each["usd"]["input"], each["source"], each["catalog_version"])
        for each in prices.rows(prices.vendors(), None, AT_MS)
    ]
    assert rows == [
        ("openai", "m", "7.000000000", "override", "cafe+beef"),
        ("openai", "n", "1.000000000", "catalog", "cafe"),
        ("vllm", "o", "0.000000000", "override", "cafe+beef"),
    ]
    after = [each["model"] for each in prices.rows(prices.vendors(), None, AT_MS, ("openai", "m"))]
    assert after == ["n", "o"]
    assert [prices.has_vendor(each) for each in ("openai", "vllm", "other")] == [True, True, False]


def test_a_reseller_has_the_prices_of_whom_it_resells() -> None:
    prices = listed(entry("openai", "m", aliases=["mm"]), entry("azure", "other"), azure=("openai",))
    assert prices.has_vendor("azure")
    [row] = prices.rows(["azure"], "mm", AT_MS)
    assert (row["vendor"], row["model"], row["aliases"], row["match"]) == ("azure", "m", ["mm"], "normalised")


def test_entries_of_a_catalog_are_the_catalog() -> None:
    """Written back and read again, no model of the shipped catalog has changed."""
    shipped = decode_catalog(CATALOG.read_bytes())
    entries = [
        entry_fields(vendor, model) for vendor in shipped.models for model in models_of(shipped, vendor).values()
    ]
    again = catalog_of("again", entries, shipped.also)
    assert again.models == shipped.models
    assert list(diff_catalogs(shipped, again)) == []
