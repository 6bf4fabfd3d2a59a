"""Models of a catalog back as its JSON entries, and what two catalogs differ in (the other way: `core.catalog`)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from services.core.catalog import Catalog, Model, rates_fields
from services.core.pricing import Tier


def models_of(catalog: Catalog, vendor: str) -> Mapping[str, Model]:
    """A vendor's models by their own names, in order; aliases are in them."""
    own = {model.name: model for model in catalog.models.get(vendor, {}).values()}
    return dict(sorted(own.items()))


def priced_model(catalog: Catalog, vendor: str, name: str) -> Model | None:
    """The model by whose prices `Catalog.find` prices a vendor's model called `name`."""
    of_one_vendor = Catalog(catalog.version, catalog.models, catalog.prefixes)
    for each in (vendor, *catalog.also.get(vendor, ())):
        found = of_one_vendor.find(each, name, 0)
        if found is not None:
            return catalog.models[each][found.model_priced]
    return None


def entry_fields(vendor: str, model: Model) -> dict[str, Any]:
    """A model as an entry of format 2, every field there, so that equal models are equal entries."""
    return {
        "vendor": vendor,
        "model": model.name,
        "aliases": sorted(model.aliases),
        "prefixes": sorted(model.prefixes),
        "prices": [
            {
                "from": day_text(each.from_ms),
                "daily": None if each.daily_ms is None else [_time_text(bound) for bound in each.daily_ms],
                "usd": rates_fields(each.rates),
                "tiers": tier_fields(each.tiers),
            }
            for each in model.periods
        ],
        "variants": [
            {
                "when": dict(each.when),
                "from": day_text(each.from_ms),
                "usd": rates_fields(each.rates),
                "tiers": tier_fields(each.tiers),
            }
            for each in model.variants
        ],
        "max_output_tokens": model.max_output_tokens,
        "context_window": model.context_window,
        "minimums": dict(model.minimums),
    }


def tier_fields(tiers: Sequence[Tier]) -> list[dict[str, Any]]:
    """Tiers as JSON."""
    return [{"above_input_tokens": each.above_input_tokens, "usd": rates_fields(each.rates)} for each in tiers]


def day_text(at_ms: int | None) -> str | None:
    """The day in UTC that begins at an instant, as catalogs write it."""
    return None if at_ms is None else datetime.fromtimestamp(at_ms // 1000, UTC).date().isoformat()


@dataclass(frozen=True, slots=True)
class ModelChange:
    """A model that two catalogs have differently: `fields` says in what. `old` or `new` is None where it is missing."""

    vendor: str
    model: str
    fields: tuple[str, ...]
    old: Mapping[str, Any] | None
    new: Mapping[str, Any] | None


def diff_catalogs(old: Catalog, new: Catalog) -> Iterator[ModelChange]:
    """Every model that is new, gone or changed, by vendor and name."""
    for vendor in sorted({*old.models, *new.models}):
        before, after = models_of(old, vendor), models_of(new, vendor)
        for name in sorted({*before, *after}):
            was = entry_fields(vendor, before[name]) if name in before else None
            is_now = entry_fields(vendor, after[name]) if name in after else None
            if was == is_now:
                continue
            differing = () if was is None or is_now is None else tuple(key for key in was if was[key] != is_now[key])
            yield ModelChange(vendor, name, differing, was, is_now)


def _time_text(of_day_ms: int) -> str:
    minutes, seconds = divmod(of_day_ms // 1000, 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"
