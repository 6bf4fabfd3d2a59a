"""The caller's org and how it stands on the gateways."""

from dataclasses import replace
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from services.control.auth import Admin
from services.control.catalogs import queries as catalog_queries
from services.control.compile import OrgRecord
from services.control.errors import invalid
from services.control.fields import Body, Instant, ModelName, VendorName
from services.control.orgs import queries
from services.control.prices.org_prices import now_ms, read_prices
from services.core.ports import UnavailableError
from services.core.pricelist import PriceList
from services.core.snapshot import Target, UnknownModelPolicy, UnknownModels

HotStateText = Literal["warm", "cold", "unreachable"]
ExpiredHolds = Literal["booked", "released"]


class PricedAs(Body):
    """A vendor's model."""

    vendor: VendorName
    model: ModelName


class ChangeUnknownModels(Body):
    """What shall become of calls whose model has no price; `priced_as` goes with ``fallback_price`` only."""

    policy: UnknownModelPolicy
    priced_as: PricedAs | None = None


class ChangeOrg(Body):
    """Settings as they shall be."""

    unknown_models: ChangeUnknownModels | None = None
    allow_unpriced_routes: bool | None = None
    expired_holds: ExpiredHolds | None = None


class Model(BaseModel):
    """A vendor's model."""

    vendor: str
    model: str


class UnknownModelsAnswer(BaseModel):
    """What becomes of a call whose model has no price: refused, priced as another model, or let through unpriced."""

    policy: UnknownModelPolicy
    priced_as: Model | None


class Org(BaseModel):
    """An org. `config_version` grows with every change."""

    name: str
    config_version: int
    catalog_version: str
    hold_ms: int = Field(description="How long a call's hold lives.")
    unknown_models: UnknownModelsAnswer
    allow_unpriced_routes: bool = Field(description="Routes whose cost can't be known are let through, unheld.")
    expired_holds: ExpiredHolds = Field(
        description="What a hold that nobody settled in time counts as spent, until a late settlement corrects it:"
        " booked, what was held; released, nothing."
    )
    created_at: Instant


class Status(BaseModel):
    """Whether gateways have the org as it is, and whether its spend state can be trusted."""

    org: str
    config_version: int
    catalog_version: str
    published_version: int | None = Field(description="What gateways have; null: nothing, or the hot state is away.")
    published: bool = Field(description="Gateways have the org as it is now.")
    hot_state: HotStateText = Field(description="cold: being rebuilt; calls are refused meanwhile.")
    alarms: dict[str, str] | None = Field(description="What needs an operator, by name; null: unreachable.")
    pending_catalogs: list[str] = Field(description="Price catalogs that wait for a person to accept or reject them.")


async def get_org(admin: Admin) -> Org:
    """The caller's org."""
    async with admin.context.database.snapshot() as connection:
        record = await queries.find(connection, admin.org)
        created_at = await queries.find_created_at(connection, admin.org)
    return _org(record, created_at)


async def change_org(admin: Admin, request: ChangeOrg) -> Org:
    """Changes the caller's org; what is so already makes no version."""
    if request.unknown_models is None and request.allow_unpriced_routes is None and request.expired_holds is None:
        message = "name what to change: unknown_models, allow_unpriced_routes or expired_holds"
        raise invalid("unknown_models", message)
    async with admin.change() as change:
        before = await queries.find(change.connection, admin.org)
        created_at = await queries.find_created_at(change.connection, admin.org)
        wanted = before
        if request.unknown_models is not None:
            _, prices = await read_prices(admin.context.prices, change.connection, admin.org)
            wanted = replace(wanted, unknown_models=_unknown_models(request.unknown_models, prices))
        if request.allow_unpriced_routes is not None:
            wanted = replace(wanted, allow_unpriced_routes=request.allow_unpriced_routes)
        if request.expired_holds is not None:
            wanted = replace(wanted, book_expired=request.expired_holds == "booked")
        if wanted == before:
            return _org(replace(before, config_version=await change.take_back()), created_at)
        after = await queries.set_policies(change.connection, wanted)
        await change.audit("org.update", admin.org, before=org_fields(before), after=org_fields(after))
    return _org(after, created_at)


def _unknown_models(request: ChangeUnknownModels, prices: PriceList) -> UnknownModels:
    wanted = request.priced_as
    if request.policy != "fallback_price":
        if wanted is not None:
            message = f"unknown_models.priced_as goes with policy fallback_price, not {request.policy}; leave it out"
            raise invalid("unknown_models.priced_as", message)
        return UnknownModels(request.policy)
    if wanted is None:
        message = "unknown_models.priced_as is required for policy fallback_price: the model whose price is taken"
        raise invalid("unknown_models.priced_as", message)
    if prices.find(wanted.vendor, wanted.model, now_ms()) is None:
        message = (
            f"model {wanted.model!r} of vendor {wanted.vendor!r} has no price itself; GET /api/v1/prices lists them"
        )
        raise invalid("unknown_models.priced_as", message)
    return UnknownModels("fallback_price", Target(wanted.vendor, wanted.model))


async def get_status(admin: Admin) -> Status:
    """How the caller's org stands."""
    async with admin.context.database.snapshot() as connection:
        record = await queries.find(connection, admin.org)
        pending = await catalog_queries.list_pending_versions(connection, admin.org)
    published_version: int | None = None
    alarms: dict[str, str] | None = None
    hot_state: HotStateText = "unreachable"
    try:
        published_version = (await admin.context.publisher.published_versions()).get(admin.org)
        alarms = dict(await admin.context.hot.alarms())
        epochs = await admin.context.hot.epochs([admin.org])
        hot_state = "cold" if epochs[admin.org] is None else "warm"
    except UnavailableError:
        alarms = None
    return Status(
        org=record.name,
        config_version=record.config_version,
        catalog_version=record.catalog_version,
        published_version=published_version,
        published=published_version == record.config_version,
        hot_state=hot_state,
        alarms=alarms,
        pending_catalogs=pending,
    )


def org_fields(record: OrgRecord) -> dict[str, object]:
    """An org's settings for the audit trail."""
    return {
        "name": record.name,
        "catalog_version": record.catalog_version,
        "hold_ms": record.hold_ms,
        "unknown_models": _unknown_models_answer(record).model_dump(),
        "allow_unpriced_routes": record.allow_unpriced_routes,
        "expired_holds": _expired_holds(record),
    }


def _org(record: OrgRecord, created_at: datetime) -> Org:
    return Org(
        name=record.name,
        config_version=record.config_version,
        catalog_version=record.catalog_version,
        hold_ms=record.hold_ms,
        unknown_models=_unknown_models_answer(record),
        allow_unpriced_routes=record.allow_unpriced_routes,
        expired_holds=_expired_holds(record),
        created_at=created_at,
    )


def _unknown_models_answer(record: OrgRecord) -> UnknownModelsAnswer:
    target = record.unknown_models.priced_as
    priced_as = None if target is None else Model(vendor=target.vendor, model=target.model)
    return UnknownModelsAnswer(policy=record.unknown_models.policy, priced_as=priced_as)


def _expired_holds(record: OrgRecord) -> ExpiredHolds:
    return "booked" if record.book_expired else "released"
