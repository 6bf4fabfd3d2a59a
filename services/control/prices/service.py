"""What models cost under the catalog an org uses."""

from collections.abc import Iterator

from pydantic import BaseModel, Field

from services.control.auth import Admin
from services.control.fields import Usd
from services.control.orgs import queries as org_queries
from services.core.events import Match
from services.core.pricing import Catalog, Price, rates_fields


class Tier(BaseModel):
    """Prices of a whole call with more than `above_input_tokens` tokens of input."""

    above_input_tokens: int
    usd_per_million: dict[str, Usd]


class ModelPrice(BaseModel):
    """A model's price by component: US dollars per million tokens (of ``request``: per million requests)."""

    vendor: str
    model: str
    aliases: list[str]
    usd_per_million: dict[str, Usd]
    tiers: list[Tier]
    max_output_tokens: int | None
    context_window: int | None
    match: Match | None = Field(description="How the model asked for was found; null when none was asked for.")


class Prices(BaseModel):
    """Prices under one version of the catalog. What is not listed has no price, and calls to it are refused."""

    catalog_version: str
    prices: list[ModelPrice]


async def list_prices(admin: Admin, vendor: str | None, model: str | None) -> Prices:
    """Prices of a vendor (or all vendors), of one model as the gateway would look it up (or all models)."""
    async with admin.context.database.snapshot() as connection:
        org = await org_queries.find(connection, admin.org)
        catalog = await admin.context.prices.catalog_of(connection, org.catalog_version)
    vendors = sorted(catalog.prices) if vendor is None else [vendor]
    found = [price for each in vendors for price in _prices_of(catalog, each, model)]
    return Prices(catalog_version=catalog.version, prices=found)


def _prices_of(catalog: Catalog, vendor: str, model: str | None) -> Iterator[ModelPrice]:
    aliases: dict[str, list[str]] = {}
    models: dict[str, Price] = {}
    for name, (canonical, price) in catalog.prices.get(vendor, {}).items():
        models[canonical] = price
        aliases.setdefault(canonical, [])
        if name != canonical:
            aliases[canonical].append(name)
    match: Match | None = None
    wanted = sorted(models)
    if model is not None:
        found = catalog.find(vendor, model)
        if found is None:
            return
        match, wanted = found.match, [found.model_priced]
    for name in wanted:
        price = models[name]
        yield ModelPrice(
            vendor=vendor,
            model=name,
            aliases=sorted(aliases[name]),
            usd_per_million=rates_fields(price),
            tiers=[
                Tier(above_input_tokens=tier.above_input_tokens, usd_per_million=rates_fields(tier.rates))
                for tier in price.tiers
            ],
            max_output_tokens=price.max_output_tokens,
            context_window=price.context_window,
            match=match,
        )
