"""What a model costs an org: its own prices first, then the catalog's, then its policy for unknown models (PR-2)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from services.core.catalog import Catalog, catalog_of
from services.core.components import COMPONENTS
from services.core.events import Match
from services.core.pricing import Price
from services.core.snapshot import Overrides, UnknownModels

# What an org that allows unpriced models pays: nothing that is known, so nothing is held and nothing is settled.
UNPRICED: Final = Price(dict.fromkeys(COMPONENTS, 0), max_output_tokens=2**31 - 1, context_window=2**31 - 1)


@dataclass(frozen=True, slots=True)
class Priced:
    """A model's price, as found: the name it is priced by, how that was matched, and the version of the prices.

    `catalog_version` is the catalog's, followed by ``+`` and the overrides' where the org's own price was taken.
    """

    model_priced: str
    match: Match
    price: Price
    catalog_version: str


class PriceBook:
    """The prices of one org."""

    def __init__(self, catalog: Catalog, overrides: Overrides | None, unknown: UnknownModels) -> None:
        """Raises `core.catalog.CatalogError` and others for overrides that can't be read."""
        self._catalog = catalog
        self._unknown = unknown
        self._own = None if overrides is None else catalog_of(overrides.version, overrides.entries, {})

    def find(self, vendor: str, model: str, at_ms: int) -> Priced | None:
        """The price of a vendor's model at an instant; None when it has none and the org rejects such models."""
        found = self.listed(vendor, model, at_ms)
        if found is not None or self._unknown.policy == "reject":
            return found
        if self._unknown.policy == "allow_unpriced":
            return Priced(model, "none", UNPRICED, self._catalog.version)
        target = self._unknown.priced_as
        found = None if target is None else self.listed(target.vendor, target.model, at_ms)
        return None if found is None else Priced(found.model_priced, "fallback", found.price, found.catalog_version)

    def listed(self, vendor: str, model: str, at_ms: int) -> Priced | None:
        """The same, of listed models only. An exact name is found first: a dated model may have a price of its own."""
        found = self._catalog.find(vendor, model, at_ms)
        if self._own is not None:
            own = self._own.find(vendor, model, at_ms)
            if own is not None and (own.match == "exact" or found is None or found.match != "exact"):
                version = f"{self._catalog.version}+{self._own.version}"
                return Priced(own.model_priced, own.match, own.price, version)
        return None if found is None else Priced(found.model_priced, found.match, found.price, self._catalog.version)

    def names(self, vendor: str) -> Mapping[str, object]:
        """Every name of a vendor's models that has a price."""
        own = {} if self._own is None else self._own.models.get(vendor, {})
        return {**self._catalog.models.get(vendor, {}), **own}
