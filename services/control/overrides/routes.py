"""``/api/v1/price-overrides``."""

from typing import Annotated

from fastapi import APIRouter, Query

from services.control.auth import AdminDep
from services.control.fields import Sought
from services.control.overrides import service

router = APIRouter(prefix="/price-overrides", tags=["prices"])


@router.get("")
async def list_overrides(
    admin: AdminDep,
    vendor: Annotated[Sought | None, Query(description="Only this vendor's.")] = None,
    model: Annotated[Sought | None, Query(description="Only this model's, by this very name.")] = None,
    history: Annotated[bool, Query(description="Those that no longer hold and withdrawals, too.")] = False,
) -> service.Overrides:
    """The org's own prices, which hold in place of the catalog's."""
    return await service.list_overrides(admin, vendor, model, history)


@router.put("")
async def set_override(admin: AdminDep, request: service.SetOverride) -> service.Override:
    """Sets what a vendor's model costs the org from a day on. It holds on every gateway within a second."""
    return await service.set_override(admin, request)


@router.delete("", status_code=204)
async def withdraw_override(
    admin: AdminDep,
    vendor: Annotated[Sought, Query(description="The vendor.")],
    model: Annotated[Sought, Query(description="The model, by this very name.")],
    day: Annotated[str | None, Query(alias="from", description="Only the price from this day on.")] = None,
) -> None:
    """Withdraws own prices of a model: the catalog's hold again. Nothing is forgotten."""
    await service.withdraw(admin, vendor, model, day)
