"""Prices: a hashed, versioned catalog; exact, then normalised look-up; cost as integers, one rounding a component.

Every rate is in nano-dollars per million units (tokens, or requests for `request`). An absent rate is None; zero is a
price. Tokens of a part that has no rate of its own (say, cached input of a model without a cache price) are priced as
plain input or output.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from services.core.events import ComponentCost, Match
from services.core.money import divide_half_even, format_usd, parse_usd

UNITS_PER_RATE: Final = 1_000_000

# Parts of input and output that may have a rate of their own, with the usage count of each. Where reported parts
# overlap or exceed their total, the earlier (dearer) part takes its tokens first, so that cost is never too low.
INPUT_PARTS: Final = (
    ("audio_input", "audio_input_tokens"),
    ("cache_write", "cache_write_tokens"),
    ("cache_read", "cache_read_tokens"),
)
OUTPUT_PARTS: Final = (("audio_output", "audio_output_tokens"),)

_DATE_SUFFIX: Final = re.compile(r"-\d{4}-\d{2}-\d{2}")


class CatalogError(ValueError):
    """These bytes are not a price catalog, or not the one that their version names."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What each component costs."""

    input: int
    output: int
    cache_read: int | None = None
    cache_write: int | None = None
    audio_input: int | None = None
    audio_output: int | None = None
    request: int | None = None


@dataclass(frozen=True, slots=True)
class Tier:
    """Rates of a whole call whose input has more than `above_input_tokens` tokens."""

    above_input_tokens: int
    rates: Rates


@dataclass(frozen=True, slots=True)
class Price(Rates):
    """A model's price: base rates, long-context `tiers` by rising threshold, and what bounds its output, if known."""

    tiers: tuple[Tier, ...] = ()
    max_output_tokens: int | None = None
    context_window: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The answer of a look-up: the catalog's own name of the model, how it was matched, and its price."""

    model_priced: str
    match: Match
    price: Price


@dataclass(frozen=True, slots=True)
class Catalog:
    """Prices by vendor and by every name and alias a model is known under. `version` is a hash of the content."""

    version: str
    prices: Mapping[str, Mapping[str, tuple[str, Price]]]

    def find(self, vendor: str, model: str) -> Found | None:
        """The price of `model`: by its exact name or alias, else without its vendor prefix and date suffix, else None.

        A model that is not listed is never given the price of another.
        """
        names = self.prices.get(vendor, {})
        if model in names:
            return Found(names[model][0], "exact", names[model][1])
        bare = model.removeprefix(f"{vendor}/")
        dated = _DATE_SUFFIX.search(bare)
        undated = bare[: dated.start()] if dated is not None and dated.end() == len(bare) else bare
        for name in (bare, undated):
            if name in names:
                return Found(names[name][0], "normalised", names[name][1])
        return None


def price_usage(price: Price, usage: Mapping[str, int]) -> tuple[ComponentCost, ...]:
    """What `usage` costs, as disjoint components, each rounded once, half-even. Input and output are always there.

    Counts: input_tokens and output_tokens (totals) and their parts cache_read_tokens, cache_write_tokens,
    audio_input_tokens, audio_output_tokens; a missing count is zero, others are ignored.
    """
    input_tokens = usage.get("input_tokens", 0)
    rates = rates_for(price, input_tokens)
    costs = [
        *_split("input", rates, usage, input_tokens, INPUT_PARTS),
        *_split("output", rates, usage, usage.get("output_tokens", 0), OUTPUT_PARTS),
    ]
    if rates.request is not None:
        costs.append(_cost("request", 1, rates.request))
    return tuple(costs)


def rates_for(price: Price, input_tokens: int) -> Rates:
    """The rates of a call with that many input tokens: those of the highest tier it is above."""
    rates: Rates = price
    for tier in price.tiers:
        if input_tokens > tier.above_input_tokens:
            rates = tier.rates
    return rates


def _split(
    total_name: str, rates: Rates, usage: Mapping[str, int], total: int, parts: tuple[tuple[str, str], ...]
) -> list[ComponentCost]:
    rest = total
    costs = []
    for component, count_name in parts:
        rate: int | None = getattr(rates, component)
        quantity = min(usage.get(count_name, 0), rest)
        if rate is not None and quantity > 0:
            costs.append(_cost(component, quantity, rate))
            rest -= quantity
    return [_cost(total_name, rest, getattr(rates, total_name)), *costs]


def _cost(component: str, quantity: int, rate: int) -> ComponentCost:
    return ComponentCost(component, quantity, rate, divide_half_even(quantity * rate, UNITS_PER_RATE))


# ---- the catalog as JSON --------------------------------------------------------------------------------------------


def catalog_version(document: Mapping[str, Any]) -> str:
    """The version of a catalog document: a prefix of the SHA-256 of its canonical JSON, the version itself left out."""
    content = {name: value for name, value in document.items() if name != "version"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def decode_catalog(value: bytes) -> Catalog:
    """The catalog of JSON bytes; raises `CatalogError` when they are malformed or edited since their version was set.

    Form: ``{"version", "models": [{"vendor", "model", "aliases", "usd_per_million": {component: "0.150000000"},
    "tiers": [{"above_input_tokens", "usd_per_million"}], "max_output_tokens", "context_window"}], …}``.
    """
    try:
        document = json.loads(value)
        version = document["version"]
        if version != catalog_version(document):
            raise CatalogError(f"the catalog is not what its version {version!r} names: it was edited since")
        prices: dict[str, dict[str, tuple[str, Price]]] = {}
        for entry in document["models"]:
            price = _price(entry)
            names = prices.setdefault(entry["vendor"], {})
            for name in (entry["model"], *entry["aliases"]):
                if names.setdefault(name, (entry["model"], price)) != (entry["model"], price):
                    raise CatalogError(f"two models of vendor {entry['vendor']!r} are called {name!r}")
    except CatalogError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CatalogError(f"not a price catalog: {error!r}") from error
    return Catalog(version, prices)


def rates_fields(rates: Rates) -> dict[str, str]:
    """The rates that are there, by component, in US dollars per million units."""
    amounts = {field.name: getattr(rates, field.name) for field in fields(Rates)}
    return {name: format_usd(amount) for name, amount in amounts.items() if amount is not None}


def _price(entry: Mapping[str, Any]) -> Price:
    tiers = tuple(Tier(each["above_input_tokens"], Rates(**_rates(each))) for each in entry["tiers"])
    if list(tiers) != sorted(tiers, key=lambda tier: tier.above_input_tokens):
        raise CatalogError(f"the tiers of {entry['model']!r} are not in rising order")
    return Price(
        **_rates(entry),
        tiers=tiers,
        max_output_tokens=entry["max_output_tokens"],
        context_window=entry["context_window"],
    )


def _rates(entry: Mapping[str, Any]) -> dict[str, int]:
    rates = {component: parse_usd(text) for component, text in entry["usd_per_million"].items()}
    if any(rate < 0 for rate in rates.values()):
        raise CatalogError("a price is negative")
    return rates
