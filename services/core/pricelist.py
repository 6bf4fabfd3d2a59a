"""Prices as people read them: pages of what holds now, and all that is known of one model."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

from services.core.catalog import Catalog, Model, catalog_of, rates_fields
from services.core.catalog_fields import entry_fields, models_of, priced_model, tier_fields
from services.core.dialects import DIALECTS
from services.core.pricebook import PriceBook, Priced
from services.core.snapshot import Overrides, UnknownModels


class PriceList:
    """A catalog and an org's own prices on top, looked up as gateways look up listed models."""

    def __init__(self, catalog: Catalog, overrides: Overrides | None = None) -> None:
        """Raises as `PriceBook` does."""
        self.catalog: Final = catalog
        self._own = Catalog("", {}) if overrides is None else catalog_of(overrides.version, overrides.entries, {})
        self._book = PriceBook(catalog, overrides, UnknownModels())

    def vendors(self) -> list[str]:
        """Every vendor that has prices."""
        return sorted({*self.catalog.models, *self._own.models})

    def has_vendor(self, vendor: str) -> bool:
        """Whether calls to a vendor can be priced at all, by its own prices or by those of a vendor it resells."""
        return vendor in self.catalog.models or vendor in self.catalog.also or vendor in self._own.models

    def find(self, vendor: str, model: str, at_ms: int) -> Priced | None:
        """The price of a vendor's model at an instant; None when it is not listed."""
        return self._book.listed(vendor, model, at_ms)

    def rows(
        self, vendors: Iterable[str], model: str | None, at_ms: int, after: tuple[str, str] = ("", "")
    ) -> Iterator[dict[str, Any]]:
        """The prices in force at an instant, by vendor and model, that come after (vendor, model).

        With a `model`, each vendor's price of it, looked up as gateways do; `match` then says how it was found.
        """
        for vendor in vendors:
            if model is not None:
                priced = self.find(vendor, model, at_ms)
                if priced is not None and (vendor, priced.model_priced) > after:
                    yield self._fields(vendor, model, priced) | {"match": priced.match}
                continue
            for name in sorted({*models_of(self.catalog, vendor), *models_of(self._own, vendor)}):
                if (vendor, name) > after:
                    priced = self.find(vendor, name, at_ms)
                    assert priced is not None
                    yield self._fields(vendor, name, priced) | {"match": None}

    def detail(self, model: str, vendor: str | None, at_ms: int) -> dict[str, Any] | None:
        """All that is known of a model's price with a vendor, or with the likeliest one; None when it has no price."""
        vendors = self.vendors() if vendor is None else [vendor]
        found = {each: priced for each in vendors if (priced := self.find(each, model, at_ms)) is not None}
        if not found:
            return None
        chosen = min(found, key=lambda each: _rank(each, found[each]))
        priced = found[chosen]
        entry = entry_fields(chosen, self._model(chosen, model, priced))
        return self._fields(chosen, model, priced) | {
            "match": priced.match,
            "requested": model,
            "periods": entry["prices"],
            "variants": entry["variants"],
            "prefixes": entry["prefixes"],
            "minimums": entry["minimums"],
            "also_priced_by": [each for each in found if each != chosen],
        }

    def _fields(self, vendor: str, name: str, priced: Priced) -> dict[str, Any]:
        price = priced.price
        return {
            "vendor": vendor,
            "model": priced.model_priced,
            "aliases": sorted(self._model(vendor, name, priced).aliases),
            "usd": rates_fields(price.rates),
            "tiers": tier_fields(price.tiers),
            "max_output_tokens": price.max_output_tokens,
            "context_window": price.context_window,
            "source": "override" if self._is_own(priced) else "catalog",
            "catalog_version": priced.catalog_version,
        }

    def _model(self, vendor: str, name: str, priced: Priced) -> Model:
        """The model that a price was found with."""
        model = priced_model(self._own if self._is_own(priced) else self.catalog, vendor, name)
        assert model is not None
        return model

    def _is_own(self, priced: Priced) -> bool:
        return priced.catalog_version != self.catalog.version


def _rank(vendor: str, priced: Priced) -> tuple[bool, int, str]:
    """Whoever has the very name comes first, of those whoever made a dialect: others mostly resell its models."""
    known = list(DIALECTS)
    return priced.match != "exact", known.index(vendor) if vendor in known else len(known), vendor
