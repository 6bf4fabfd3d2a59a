"""An org's own prices as compiled: what a call costs before, from and after each day, in every context."""

from datetime import UTC, date, datetime
from typing import Any

import pytest

from services.control.overrides.compiled import OwnPrice, compile_overrides
from services.core.catalog import catalog_of, decode_catalog
from services.core.pricebook import PriceBook
from services.core.pricing import rates_for
from services.core.snapshot import Overrides, UnknownModels
from tools.compile_catalog import CATALOG as CATALOG_FILE

BATCH = {"processing": "batch"}
FLEX = {"service_tier": "flex"}


def entry(model: str, **fields: Any) -> dict[str, Any]:
    return {"vendor": "openai", "model": model, "prices": [{"usd": {"input": "8"}}], **fields}


CATALOG = catalog_of(
    "cafe",
    [
        entry(
            "big",
            aliases=["big-latest", "big-2026-01-01"],
            prefixes=["ft:big"],
            prices=[
                {"usd": {"input": "10"}},
                {"from": "2026-03-01", "usd": {"input": "9"}},
                {"from": "2026-09-01", "usd": {"input": "8"}},
            ],
            variants=[{"when": BATCH, "usd": {"input": "4"}}],
            max_output_tokens=1000,
            context_window=8000,
            minimums={"input_tokens": 3},
        ),
        entry("big-2026-06-01", prices=[{"usd": {"input": "7"}}]),
    ],
    {"reseller": ("openai",)},
)


def own(model: str, day: str, usd: str, vendor: str = "openai", **fields: Any) -> OwnPrice:
    limits = {name: fields.pop(name) for name in ("max_output_tokens", "context_window") if name in fields}
    return OwnPrice(vendor, model, date.fromisoformat(day), {"usd": {"input": usd}, "tiers": [], **fields}, **limits)


def book(*prices: OwnPrice) -> PriceBook:
    return PriceBook(CATALOG, compile_overrides(prices, CATALOG), UnknownModels())


def input_usd(
    book: PriceBook,
    model: str,
    day: str,
    context: dict[str, str] | None = None,
    tokens: int = 1,
    vendor: str = "openai",
) -> float | None:
    """Dollars a million input tokens, on a day at noon."""
    noon = datetime.fromisoformat(day + "T12:00:00").replace(tzinfo=UTC)
    found = book.find(vendor, model, round(noon.timestamp() * 1000))
    return None if found is None else rates_for(found.price, tokens, context or {})["input"] / 1e9


def test_no_own_prices_are_no_overrides() -> None:
    assert compile_overrides([], CATALOG) is None


@pytest.mark.parametrize(
    ("day", "plain", "batch"),
    [
        ("2026-01-15", 10, 4),
        ("2026-03-01", 9, 4),
        ("2026-04-30", 9, 4),
        ("2026-05-01", 5, 5),  # the own price names no batch: its plain rates, not the catalog's
        ("2026-06-30", 5, 5),
        ("2026-07-01", 3, 1.5),
        ("2026-09-15", 3, 1.5),  # the catalog's change in September is the catalog's
        ("2026-10-01", 2, 2),
        ("2027-10-01", 2, 2),
    ],
)
@pytest.mark.parametrize("name", ["big", "big-latest", "big-2026-01-01", "big-2026-05-05", "ft:big-mine"])
def test_each_price_holds_from_its_day_until_the_next_one(name: str, day: str, plain: float, batch: float) -> None:
    prices = book(
        own("big", "2026-07-01", "3", variants=[{"when": BATCH, "usd": {"input": "1.5"}}]),
        own("big", "2026-10-01", "2"),
        own("big", "2026-05-01", "5"),
    )
    assert input_usd(prices, name, day) == plain
    assert input_usd(prices, name, day, BATCH) == batch
    assert input_usd(prices, name, day, FLEX) == plain


def test_a_model_with_another_name_of_its_own_keeps_its_price() -> None:
    prices = book(own("big", "2026-05-01", "5"))
    assert input_usd(prices, "big-2026-06-01", "2026-06-15") == 7
    assert input_usd(prices, "openai/big", "2026-06-15") == 5


def test_an_own_price_of_another_name_is_for_that_name_alone() -> None:
    prices = book(own("big-latest", "2026-05-01", "1"), own("big", "2026-06-01", "2"))
    assert [input_usd(prices, "big-latest", day) for day in ("2026-04-01", "2026-05-01", "2026-07-01")] == [9, 1, 1]
    assert [input_usd(prices, "big", day) for day in ("2026-04-01", "2026-05-01", "2026-07-01")] == [9, 9, 2]


def test_a_name_that_the_catalog_only_recognises_has_its_price_until_the_day() -> None:
    prices = book(own("ft:big-mine", "2026-05-01", "1"))
    assert [input_usd(prices, "ft:big-mine", day) for day in ("2026-04-30", "2026-05-01")] == [9, 1]
    assert input_usd(prices, "ft:big-yours", "2026-05-01") == 9
    found = prices.find("openai", "ft:big-mine", 1_790_000_000_000)
    assert found is not None
    assert found.price.max_output_tokens == 1000


def test_a_resellers_own_price_is_for_every_name_of_the_model_and_for_the_reseller_alone() -> None:
    prices = book(own("big", "2026-05-01", "1", vendor="reseller"))
    for name in ("big", "big-latest", "ft:big-mine"):
        assert [input_usd(prices, name, day, vendor="reseller") for day in ("2026-04-30", "2026-05-01")] == [9, 1]
        assert input_usd(prices, name, "2026-05-01") == 9


def test_a_model_that_the_catalog_lacks_has_its_own_price_and_zero_is_one() -> None:
    prices = book(own("llama", "2026-05-01", "0"))
    assert input_usd(prices, "llama", "2026-05-02") == 0
    assert input_usd(prices, "alpaca", "2026-05-02") is None


def test_tiers_hold_in_their_period() -> None:
    tiers = [{"above_input_tokens": 100, "usd": {"input": "6"}}]
    prices = book(own("big", "2026-05-01", "3", tiers=tiers), own("big", "2026-06-01", "2"))
    assert input_usd(prices, "big", "2026-05-15", tokens=100) == 3
    assert input_usd(prices, "big", "2026-05-15", tokens=101) == 6
    assert input_usd(prices, "big", "2026-05-15", BATCH, tokens=101) == 6
    assert input_usd(prices, "big", "2026-06-15", tokens=101) == 2


def test_bounds_are_the_catalogs_until_the_org_says_otherwise() -> None:
    at_ms = 1_790_000_000_000
    kept = book(own("big", "2026-05-01", "3")).find("openai", "big", at_ms)
    assert kept is not None
    assert (kept.price.max_output_tokens, kept.price.context_window) == (1000, 8000)
    assert dict(kept.price.minimums) == {"input_tokens": 3}
    said = book(
        own("big", "2026-05-01", "3", max_output_tokens=50), own("big", "2026-06-01", "2", context_window=60)
    ).find("openai", "big", at_ms)
    assert said is not None
    assert (said.price.max_output_tokens, said.price.context_window) == (50, 60)


def test_the_version_names_the_prices_in_any_order() -> None:
    prices = [own("big", "2026-05-01", "5"), own("llama", "2026-05-01", "0", vendor="vllm")]

    def version(*prices: OwnPrice) -> str:
        compiled = compile_overrides(prices, CATALOG)
        assert isinstance(compiled, Overrides)
        return compiled.version

    assert version(*prices) == version(*reversed(prices))
    assert len({version(*prices), version(prices[0]), version(prices[1]), version(own("big", "2026-05-01", "6"))}) == 4
    found = book(*prices).find("openai", "big", 1_790_000_000_000)
    assert found is not None
    assert found.catalog_version == f"cafe+{version(*prices)}"


def test_every_name_of_the_shipped_catalog_can_have_an_own_price_at_once() -> None:
    shipped = decode_catalog(CATALOG_FILE.read_bytes())
    names = [(vendor, name) for vendor in (*shipped.models, *shipped.also) for name in shipped.models[vendor]]
    names += [
        (vendor, name) for vendor, others in shipped.also.items() for each in others for name in shipped.models[each]
    ]
    prices = [own(name, "2026-05-01", "1", vendor=vendor) for vendor, name in set(names)]
    few = [each for number, each in enumerate(sorted(prices, key=lambda each: each.model)) if number % 3 == 0]
    for chosen in (prices, few):
        compiled = compile_overrides(chosen, shipped)
        assert compiled is not None
        priced = PriceBook(shipped, compiled, UnknownModels())
        for each in chosen:
            found = priced.find(each.vendor, each.model, 1_790_000_000_000)
            assert found is not None
            assert (dict(found.price.rates), found.match) == ({"input": 1_000_000_000}, "exact")
