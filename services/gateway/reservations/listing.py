"""The listed model that a reservation names: however it is spelled, it falls under that model's budgets."""

from dataclasses import replace

from services.core.dialects import DIALECTS
from services.core.pricebook import Priced
from services.gateway.snapshots import OrgView


def prices_of(view: OrgView, vendor: str) -> str:
    """Whose prices a vendor's models have."""
    connection = view.snapshot.connections.get(vendor)
    return vendor if connection is None else connection.prices_as


def listed(view: OrgView, prices_as: str, model: str, at_ms: int) -> Priced | None:
    """The listed price of a model by its name, or by the same name in other capitals; None when it has none."""
    found = view.prices.listed(prices_as, model, at_ms)
    if found is not None or not model:
        return found
    plain = model.lower()
    name = next((name for name in view.prices.names(prices_as) if name.lower() == plain), plain)
    found = view.prices.listed(prices_as, name, at_ms)
    return None if found is None else replace(found, match="normalised")


def known_as(view: OrgView, vendor: str, model: str, at_ms: int) -> Priced | None:
    """What a model is listed as, by its vendor or else by one that makes models: who says what something costs may
    name no vendor, or the one that resells it. None of a model that nobody lists.
    """
    own = prices_of(view, vendor)
    found = (listed(view, prices_as, model, at_ms) for prices_as in dict.fromkeys((own, *DIALECTS)))
    return next((each for each in found if each is not None), None)
