"""What models cost an org: its own prices on top of the catalog it uses."""

import base64
import binascii
import json
from itertools import islice
from typing import Literal

from pydantic import BaseModel, Field

from services.control.auth import Admin
from services.control.errors import invalid, not_found
from services.control.fields import Usd
from services.control.prices.org_prices import now_ms, read_prices
from services.core.events import Match

Usds = dict[str, Usd]


class Tier(BaseModel):
    """Prices of a whole call with more than `above_input_tokens` tokens of input."""

    above_input_tokens: int
    usd: Usds


class ModelPrice(BaseModel):
    """A model's price now, by component: US dollars per million tokens, searches, …; an hour of ``audio_duration``.

    `catalog_version` is the catalog's, followed by ``+`` and a hash of the org's own prices where one of those holds.
    """

    vendor: str
    model: str
    aliases: list[str]
    usd: Usds
    tiers: list[Tier]
    max_output_tokens: int | None
    context_window: int | None
    match: Match | None = Field(description="How the model asked for was found; null when none was asked for.")
    source: Literal["catalog", "override"]
    catalog_version: str


class Period(BaseModel):
    """Prices from a day on (UTC; null: ever), where `daily` says so only between two times of day."""

    from_: str | None = Field(alias="from")
    daily: list[str] | None
    usd: Usds
    tiers: list[Tier]


class Variant(BaseModel):
    """Prices that replace the period's in a context, such as ``{"processing": "batch"}``, from a day on."""

    when: dict[str, str]
    from_: str | None = Field(alias="from")
    usd: Usds
    tiers: list[Tier]


class ModelDetail(ModelPrice):
    """All that is known of a model's price. The last period in force counts; the first variant that holds does."""

    requested: str
    periods: list[Period]
    variants: list[Variant]
    prefixes: list[str]
    minimums: dict[str, int]
    also_priced_by: list[str] = Field(description="Other vendors that a model of this name has a price with.")


class Prices(BaseModel):
    """A page of prices. What is not listed has no price. `next` goes into ``cursor`` for the page that follows."""

    catalog_version: str
    prices: list[ModelPrice]
    next: str | None


async def list_prices(admin: Admin, vendor: str | None, model: str | None, limit: int, cursor: str | None) -> Prices:
    """Prices of a vendor (or all vendors), of one model as the gateway would look it up (or all models)."""
    after = ("", "") if cursor is None else _read_cursor(cursor)
    async with admin.context.database.snapshot() as connection:
        _, prices = await read_prices(admin.context.prices, connection, admin.org)
    vendors = prices.vendors() if vendor is None else [vendor]
    page = [ModelPrice(**each) for each in islice(prices.rows(vendors, model, now_ms(), after), limit + 1)]
    following = _cursor(page[limit - 1]) if len(page) > limit else None
    return Prices(catalog_version=prices.catalog.version, prices=page[:limit], next=following)


async def get_price(admin: Admin, model: str, vendor: str | None) -> ModelDetail:
    """One model's price, of a vendor or of the likeliest one."""
    async with admin.context.database.snapshot() as connection:
        _, prices = await read_prices(admin.context.prices, connection, admin.org)
    found = prices.detail(model, vendor, now_ms())
    if found is None:
        whose = "" if vendor is None else f" of vendor {vendor[:63]!r}"
        raise not_found(f"price of model {model[:256]!r}{whose}; GET /api/v1/prices lists what has one")
    return ModelDetail(**found)


def _cursor(last: ModelPrice) -> str:
    return base64.urlsafe_b64encode(json.dumps([last.vendor, last.model]).encode()).decode()


def _read_cursor(text: str) -> tuple[str, str]:
    try:
        vendor, model = json.loads(base64.b64decode(text, altchars=b"-_", validate=True))
        if isinstance(vendor, str) and isinstance(model, str):
            return vendor, model
    except (ValueError, binascii.Error, TypeError):
        pass
    raise invalid("cursor", "cursor must be the `next` of an earlier answer, as it was")
