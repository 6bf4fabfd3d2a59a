"""An org's own prices: a contract's, or those of a server of its own. Kept for ever, in force until withdrawn."""

import json
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any, Final

from asyncpg import Record
from pydantic import BaseModel, Field

from services.control.auth import Admin
from services.control.connections.names import check_vendor_name
from services.control.errors import conflict, invalid, not_found
from services.control.fields import Body, Instant, ModelName, Usd, VendorName
from services.control.overrides import queries
from services.core.components import COMPONENTS
from services.core.money import NANO_PER_USD, MoneyError, format_usd, parse_usd

# More than any vendor asks for a million of anything; a slip of the decimal point is more likely.
MAX_RATE_NANO: Final = 1_000_000 * NANO_PER_USD
MAX_OVERRIDES: Final = 1_000
_MAX_TOKENS: Final = 2**40

UsdTexts = dict[str, str]


class TierBody(Body):
    """Prices of a whole call with more than `above_input_tokens` tokens of input."""

    above_input_tokens: int = Field(ge=1, le=_MAX_TOKENS)
    usd: UsdTexts


class VariantBody(Body):
    """Prices that replace the plain ones in a context, such as ``{"processing": "batch"}``."""

    when: dict[str, str] = Field(min_length=1, max_length=4, examples=[{"processing": "batch"}])
    usd: UsdTexts
    tiers: list[TierBody] = Field(default_factory=list, max_length=16)


class SetOverride(Body):
    """What a vendor's model costs the org from a day on, in place of the catalog's price. Zero is a price."""

    vendor: VendorName
    model: ModelName
    usd: UsdTexts = Field(
        examples=[{"input": "2.00", "output": "8.00"}],
        description="US dollars by component: per million, of audio_duration per hour. What is left out has no price.",
    )
    tiers: list[TierBody] = Field(default_factory=list, max_length=16)
    variants: list[VariantBody] = Field(default_factory=list, max_length=16)
    from_: str | None = Field(
        default=None, alias="from", max_length=10, examples=["2027-01-01"], description="A day in UTC; default: today."
    )
    max_output_tokens: int | None = Field(
        default=None, ge=1, le=_MAX_TOKENS, description="The most one answer can have; default: as the catalog says."
    )
    context_window: int | None = Field(default=None, ge=1, le=_MAX_TOKENS, description="Default: as the catalog says.")


class OverridePeriod(BaseModel):
    """The prices of an override."""

    usd: dict[str, Usd]
    tiers: list[dict[str, Any]]
    variants: list[dict[str, Any]]


class Override(BaseModel):
    """An own price, or with `period` null its withdrawal."""

    override_id: int
    vendor: str
    model: str
    from_: str = Field(alias="from")
    period: OverridePeriod | None
    max_output_tokens: int | None
    context_window: int | None
    created_by: str
    created_at: Instant


class Overrides(BaseModel):
    """Own prices by vendor, model and day; with the history every row there ever was, latest first."""

    overrides: list[Override]


async def list_overrides(admin: Admin, vendor: str | None, model: str | None, history: bool) -> Overrides:
    """The org's own prices."""
    read = queries.list_history if history else queries.list_latest
    async with admin.context.database.snapshot() as connection:
        rows = await read(connection, admin.org, vendor, model)
    return Overrides(overrides=[_answer(row) for row in rows])


async def set_override(admin: Admin, request: SetOverride) -> Override:
    """Sets a price; one of the same model and day is no longer in force, and stays in the history."""
    if request.vendor != "sandbox":
        check_vendor_name(request.vendor)
    _check_model(request.model)
    day = _day("from", request.from_)
    period = {
        "usd": _rates("usd", request.usd, may_be_empty=False),
        "tiers": _tiers("tiers", request.tiers),
        "variants": _variants(request.variants),
    }
    async with admin.change() as change:
        in_force = await queries.list_latest(change.connection, admin.org)
        before = next((each for each in in_force if _key(each) == (request.vendor, request.model, day)), None)
        if before is None and len(in_force) >= MAX_OVERRIDES:
            message = f"the org has {len(in_force)} own prices, and no more fit; withdraw some, or import a catalog"
            raise conflict("too_many_overrides", message)
        row = await queries.insert(
            change.connection,
            admin.org,
            request.vendor,
            request.model,
            day,
            period,
            request.max_output_tokens,
            request.context_window,
            change.actor,
        )
        await change.audit(
            "price.override",
            f"{request.vendor}/{request.model}",
            before=None if before is None else _fields(before),
            after=_fields(row),
        )
    return _answer(row)


async def withdraw(admin: Admin, vendor: str, model: str, day_text: str | None) -> None:
    """Withdraws the price of a day, or all of a model's: the catalog's prices hold again."""
    day = None if day_text is None else _day("from", day_text)
    async with admin.change() as change:
        rows: Sequence[Record] = await queries.list_latest(change.connection, admin.org, vendor, model)
        wanted = [row for row in rows if day in (None, row["from_date"])]
        if not wanted:
            since = "" if day is None else f" from {day}"
            raise not_found(f"own price of model {model[:256]!r} of vendor {vendor[:63]!r}{since}")
        for row in wanted:
            await queries.insert(
                change.connection, admin.org, vendor, model, row["from_date"], None, None, None, change.actor
            )
            await change.audit("price.withdraw", f"{vendor}/{model}", before=_fields(row))


def _key(row: Record) -> tuple[str, str, date]:
    return row["vendor"], row["model"], row["from_date"]


def _check_model(model: str) -> None:
    if not model.isprintable() or model != model.strip():
        raise invalid("model", "model must be printable, without blanks around it")


def _day(field: str, text: str | None) -> date:
    if text is None:
        return datetime.now(UTC).date()
    try:
        day = date.fromisoformat(text)
    except ValueError as error:
        raise invalid(field, f"{field} must be a day in UTC, written like 2027-01-31") from error
    if day.isoformat() != text or not 1970 <= day.year <= 2999:
        raise invalid(field, f"{field} must be a day in UTC from 1970 on, written like 2027-01-31")
    return day


def _rates(field: str, amounts: UsdTexts, *, may_be_empty: bool) -> dict[str, str]:
    if not amounts and not may_be_empty:
        raise invalid(field, f"{field} must name at least one component, such as input; 0 is a price")
    rates = {}
    for component, text in amounts.items():
        if component not in COMPONENTS:
            raise invalid(field, f"{field} has an unknown component; it can have: {', '.join(COMPONENTS)}")
        where = f"{field}.{component}"
        try:
            nano = parse_usd(text)
        except MoneyError as error:
            raise invalid(where, f"{where}: {error}") from error
        if not 0 <= nano <= MAX_RATE_NANO:
            raise invalid(where, f"{where} must be from 0 to {format_usd(MAX_RATE_NANO)}")
        rates[component] = format_usd(nano)
    return rates


def _tiers(field: str, tiers: list[TierBody]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for number, tier in enumerate(tiers):
        where = f"{field}.{number}"
        if found and tier.above_input_tokens <= found[-1]["above_input_tokens"]:
            raise invalid(f"{where}.above_input_tokens", f"{where}.above_input_tokens must be above the tier's before")
        rates = _rates(f"{where}.usd", tier.usd, may_be_empty=False)
        found.append({"above_input_tokens": tier.above_input_tokens, "usd": rates})
    return found


def _variants(variants: list[VariantBody]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for number, variant in enumerate(variants):
        where = f"variants.{number}"
        if not all(text and text.isprintable() for pair in variant.when.items() for text in pair):
            raise invalid(f"{where}.when", f"{where}.when must be names and values, such as processing: batch")
        if any(each["when"] == variant.when for each in found):
            raise invalid(f"{where}.when", f"{where}.when is the context of an earlier variant; leave one out")
        rates = _rates(f"{where}.usd", variant.usd, may_be_empty=bool(variant.tiers))
        found.append({"when": variant.when, "usd": rates, "tiers": _tiers(f"{where}.tiers", variant.tiers)})
    return found


def _answer(row: Record) -> Override:
    return Override(
        **{name: row[name] for name in ("override_id", "vendor", "model", "max_output_tokens", "context_window")},
        **{"from": row["from_date"].isoformat()},
        period=None if row["period"] is None else OverridePeriod(**json.loads(row["period"])),
        created_by=row["created_by"],
        created_at=row["created_at"],
    )


def _fields(row: Record) -> dict[str, Any]:
    """A row for the audit trail."""
    fields = _answer(row).model_dump(mode="json", by_alias=True)
    return {name: fields[name] for name in ("from", "period", "max_output_tokens", "context_window")}
