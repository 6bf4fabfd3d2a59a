"""The caller's org and how it stands on the gateways."""

from typing import Literal

from pydantic import BaseModel, Field

from services.control.auth import Admin
from services.control.compile import OrgRecord
from services.control.fields import Instant
from services.control.orgs import queries
from services.core.ports import UnavailableError

HotStateText = Literal["warm", "cold", "unreachable"]


class Org(BaseModel):
    """An org. `config_version` grows with every change."""

    name: str
    config_version: int
    catalog_version: str
    hold_ms: int = Field(description="How long a call's hold lives.")
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


async def get_org(admin: Admin) -> Org:
    """The caller's org."""
    async with admin.context.database.snapshot() as connection:
        record = await queries.find(connection, admin.org)
        created_at = await queries.find_created_at(connection, admin.org)
    return Org(
        name=record.name,
        config_version=record.config_version,
        catalog_version=record.catalog_version,
        hold_ms=record.hold_ms,
        created_at=created_at,
    )


async def get_status(admin: Admin) -> Status:
    """How the caller's org stands."""
    async with admin.context.database.snapshot() as connection:
        record = await queries.find(connection, admin.org)
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
    )


def org_fields(record: OrgRecord) -> dict[str, object]:
    """An org's settings for the audit trail."""
    return {"name": record.name, "catalog_version": record.catalog_version, "hold_ms": record.hold_ms}
