"""The price catalog: hashed, versioned, effective-dated; exact, then normalised look-up (PR-1, PR-2).

As JSON: ``{"version", "format": 2, "models": [entry, …], "also": {vendor: [vendor, …]}, …}``. An entry is ``{"vendor",
"model", "aliases": […], "prefixes": […], "prices": [period, …], "variants": [variant, …], "max_output_tokens",
"context_window", "minimums": {count: n}}``. A period is ``{"from": "2026-10-12" | null, "daily": ["00:30:00",
"16:30:00"] | null, "usd": {component: "2.500000000"}, "tiers": [{"above_input_tokens", "usd"}]}``; the last that is in
force counts, and before the first there is no price. A variant is ``{"when": {name: value}, "from", "usd", "tiers"}``
and overrides the rates that it names; the first that holds counts. All dates are days in UTC. `also` names the vendors
whose prices hold where a vendor resells their models.

A catalog without ``format`` is of the first form, one price a model; it stays readable because orgs may refer to it.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Any, Final

from services.core.components import BY_COUNT, COMPONENTS
from services.core.events import Match
from services.core.money import format_usd, parse_usd
from services.core.pricing import Price, Rates, Tier, Variant

FORMAT: Final = 2
DAY_MS: Final = 86_400_000

# What vendors append to a model's name to pin one release of it: a day, in the ways it is written, or a revision.
_RELEASE: Final = re.compile(
    r"(?:[-@]20\d\d(?P<dash>-?)(?:0[1-9]|1[0-2])(?P=dash)(?:0[1-9]|[12]\d|3[01])|-00\d|[-@]latest|@default)\Z"
)
_TIME: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d):([0-5]\d)")


class CatalogError(ValueError):
    """These bytes are not a price catalog, or not the one that their version names."""


@dataclass(frozen=True, slots=True)
class Period:
    """Rates in force from an instant on (None: ever), on a daily interval in UTC only where there is one."""

    from_ms: int | None
    daily_ms: tuple[int, int] | None
    rates: Rates
    tiers: tuple[Tier, ...]

    def is_in_force(self, at_ms: int) -> bool:
        """Whether it is in force at an instant."""
        if self.from_ms is not None and at_ms < self.from_ms:
            return False
        if self.daily_ms is None:
            return True
        start, end = self.daily_ms
        of_day = at_ms % DAY_MS
        return start <= of_day < end if start <= end else of_day >= start or of_day < end


@dataclass(frozen=True, slots=True)
class DatedVariant:
    """Rates that replace a period's from an instant on, in a context."""

    from_ms: int | None
    when: Mapping[str, str]
    rates: Rates
    tiers: tuple[Tier, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """A model by its own name, with every price it has had."""

    name: str
    aliases: tuple[str, ...]
    prefixes: tuple[str, ...]
    periods: tuple[Period, ...]
    variants: tuple[DatedVariant, ...]
    max_output_tokens: int | None
    context_window: int | None
    minimums: Mapping[str, int]
    _prices: dict[tuple[int, ...], Price] = field(default_factory=dict, compare=False, repr=False)

    def price_at(self, at_ms: int) -> Price | None:
        """The price in force at an instant (Unix milliseconds); None when its first one is still to come."""
        number = next((i for i in reversed(range(len(self.periods))) if self.periods[i].is_in_force(at_ms)), None)
        if number is None:
            return None
        active = [i for i, each in enumerate(self.variants) if each.from_ms is None or at_ms >= each.from_ms]
        key = (number, *active)
        price = self._prices.get(key)
        if price is None:
            price = self._prices[key] = self._resolve(self.periods[number], [self.variants[i] for i in active])
        return price

    def _resolve(self, period: Period, variants: Sequence[DatedVariant]) -> Price:
        return Price(
            period.rates,
            period.tiers,
            self.max_output_tokens,
            self.context_window,
            tuple(_merged(period, each) for each in variants),
            self.minimums,
        )


@dataclass(frozen=True, slots=True)
class Found:
    """The answer of a look-up: the catalog's own name of the model, how it was matched, and its price."""

    model_priced: str
    match: Match
    price: Price


@dataclass(frozen=True, slots=True)
class Catalog:
    """Prices by vendor and by every name and alias a model is known under. `version` is a hash of the content.

    `prefixes` has, by vendor, what the names of some models begin with (``ft:gpt-4o-2024-``), the longest first.
    """

    version: str
    models: Mapping[str, Mapping[str, Model]]
    prefixes: Mapping[str, tuple[tuple[str, Model], ...]] = field(default_factory=dict)
    also: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def find(self, vendor: str, model: str, at_ms: int) -> Found | None:
        """The price of `model` at an instant: by its exact name or alias, else without what only pins a release.

        A model that is not listed is never given the price of another.
        """
        for each in (vendor, *self.also.get(vendor, ())):
            found = self._find(each, model if each == vendor else _bare(vendor, model))
            if found is not None:
                known, match = found
                price = known.price_at(at_ms)
                return None if price is None else Found(known.name, match if each == vendor else "normalised", price)
        return None

    def _find(self, vendor: str, model: str) -> tuple[Model, Match] | None:
        names = self.models.get(vendor)
        if names is None:
            return None
        if model in names:
            return names[model], "exact"
        for name in plainer_names(vendor, model):
            if name in names:
                return names[name], "normalised"
        for prefix, known in self.prefixes.get(vendor, ()):
            if model.startswith(prefix):
                return known, "normalised"
        return None


def plainer_names(vendor: str, model: str) -> Iterator[str]:
    """The name without its vendor's prefix, and that without what pins a release."""
    bare = _bare(vendor, model)
    yield bare
    release = _RELEASE.search(bare)
    if release is not None:
        yield bare[: release.start()]


def _bare(vendor: str, model: str) -> str:
    return model.removeprefix("models/").removeprefix(f"{vendor}/")


def _merged(period: Period, variant: DatedVariant) -> Variant:
    starts = sorted({tier.above_input_tokens for tier in (*period.tiers, *variant.tiers)})
    return Variant(
        variant.when,
        {**period.rates, **variant.rates},
        tuple(
            Tier(
                start,
                {
                    **_rates_above(period.rates, period.tiers, start),
                    **_rates_above(variant.rates, variant.tiers, start),
                },
            )
            for start in starts
        ),
    )


def _rates_above(rates: Rates, tiers: Sequence[Tier], start: int) -> Rates:
    for tier in tiers:
        if tier.above_input_tokens <= start:
            rates = tier.rates
    return rates


# ---- JSON -----------------------------------------------------------------------------------------------------------


def catalog_version(document: Mapping[str, Any]) -> str:
    """The version of a catalog document: a prefix of the SHA-256 of its canonical JSON, the version itself left out."""
    content = {name: value for name, value in document.items() if name != "version"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def decode_catalog(value: bytes) -> Catalog:
    """The catalog of JSON bytes; raises `CatalogError` when they are malformed or were edited under their version."""
    try:
        document = json.loads(value)
        version = document["version"]
        if version != catalog_version(document):
            raise CatalogError(f"the catalog is not what its version {version!r} names: it was edited since")
        form = document.get("format", 1)
        if form not in (1, FORMAT):
            raise CatalogError(f"the catalog has format {form!r}; this release reads {FORMAT} and older")
        also = {vendor: _names(others) for vendor, others in document.get("also", {}).items()}
        entries = document["models"] if form == FORMAT else [_of_first_form(entry) for entry in document["models"]]
        return catalog_of(version, entries, also)
    except CatalogError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CatalogError(f"not a price catalog: {error!r}") from error


def catalog_of(version: str, entries: Sequence[Mapping[str, Any]], also: Mapping[str, tuple[str, ...]]) -> Catalog:
    """The catalog of entries; raises `CatalogError`, `ValueError`, `KeyError`, `TypeError` or `AttributeError`."""
    models: dict[str, dict[str, Model]] = {}
    prefixes: dict[str, list[tuple[str, Model]]] = {}
    for entry in entries:
        model = read_model(entry)
        names = models.setdefault(entry["vendor"], {})
        for name in (model.name, *model.aliases):
            if names.setdefault(name, model) is not model:
                raise CatalogError(f"two models of vendor {entry['vendor']!r} are called {name!r}")
        prefixes.setdefault(entry["vendor"], []).extend((prefix, model) for prefix in model.prefixes)
    longest_first = {
        vendor: tuple(sorted(found, key=lambda each: (-len(each[0]), each[0]))) for vendor, found in prefixes.items()
    }
    return Catalog(version, models, longest_first, also)


def read_model(entry: Mapping[str, Any]) -> Model:
    """The model of one entry; raises as `catalog_of` does."""
    periods = tuple(_period(each) for each in entry["prices"])
    if not periods:
        raise CatalogError(f"{entry['model']!r} has no prices")
    minimums = dict(entry.get("minimums") or {})
    unknown = minimums.keys() - BY_COUNT.keys()
    if unknown or not all(type(least) is int and least >= 0 for least in minimums.values()):
        raise CatalogError(f"the minimums of {entry['model']!r} can't be read")
    return Model(
        name=_text(entry["model"]),
        aliases=_names(entry.get("aliases", [])),
        prefixes=_names(entry.get("prefixes", [])),
        periods=periods,
        variants=tuple(
            DatedVariant(_instant(each.get("from")), _context(each["when"]), _rates(each["usd"]), _tiers(each))
            for each in entry.get("variants", ())
        ),
        max_output_tokens=_limit(entry.get("max_output_tokens")),
        context_window=_limit(entry.get("context_window")),
        minimums=minimums,
    )


def rates_fields(rates: Rates) -> dict[str, str]:
    """The rates that are there, by component, in US dollars for as many units as `components` says."""
    return {name: format_usd(amount) for name, amount in rates.items()}


def _of_first_form(entry: Mapping[str, Any]) -> dict[str, Any]:
    tiers = [
        {"above_input_tokens": each["above_input_tokens"], "usd": each["usd_per_million"]} for each in entry["tiers"]
    ]
    return {**entry, "prices": [{"usd": entry["usd_per_million"], "tiers": tiers}]}


def _period(fields: Mapping[str, Any]) -> Period:
    daily = fields.get("daily")
    interval = None if daily is None else (_of_day(daily[0]), _of_day(daily[1]))
    return Period(_instant(fields.get("from")), interval, _rates(fields["usd"]), _tiers(fields))


def _tiers(fields: Mapping[str, Any]) -> tuple[Tier, ...]:
    tiers = tuple(Tier(each["above_input_tokens"], _rates(each["usd"])) for each in fields.get("tiers", ()))
    starts = [tier.above_input_tokens for tier in tiers]
    if any(type(start) is not int for start in starts) or starts != sorted(set(starts)):
        raise CatalogError("tiers are not in rising order")
    return tiers


def _rates(amounts: Mapping[str, str]) -> Rates:
    unknown = sorted(amounts.keys() - COMPONENTS.keys())
    if unknown:
        raise CatalogError(f"{unknown[0]!r} is not a component that can be priced")
    rates = {component: _nano(text) for component, text in amounts.items()}
    if any(rate < 0 for rate in rates.values()):
        raise CatalogError("a price is negative")
    return rates


# A catalog repeats few amounts many times.
_nano: Final = lru_cache(maxsize=4096)(parse_usd)


@lru_cache(maxsize=1024)
def _instant(day: str | None) -> int | None:
    if day is None:
        return None
    midnight = datetime.combine(date.fromisoformat(day), datetime.min.time(), UTC)
    return round(midnight.timestamp()) * 1000


def _of_day(text: str) -> int:
    match = _TIME.fullmatch(text)
    if match is None:
        raise CatalogError(f"{text!r} is not a time of day; write it like '16:30:00'")
    hours, minutes, seconds = map(int, match.groups())
    return ((hours * 60 + minutes) * 60 + seconds) * 1000


def _limit(value: object) -> int | None:
    if value is None or (type(value) is int and value > 0):
        return value
    raise CatalogError(f"{value!r} is not a number of tokens")


def _context(fields: Mapping[str, str]) -> Mapping[str, str]:
    if not fields:
        raise CatalogError("a variant does not say when it holds")
    return {_text(name): _text(value) for name, value in fields.items()}


def _names(values: object) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise CatalogError(f"{values!r} is not a list of names")
    return tuple(_text(each) for each in values)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise CatalogError(f"{value!r} is not a name")
    return value
