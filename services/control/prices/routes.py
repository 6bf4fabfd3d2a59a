"""``/api/v1/prices``."""

from typing import Annotated

from fastapi import APIRouter, Query

from services.control.auth import AdminDep
from services.control.prices import service

router = APIRouter(prefix="/prices", tags=["prices"])


@router.get("")
async def list_prices(
    admin: AdminDep,
    vendor: Annotated[str | None, Query(description="Only this vendor's.")] = None,
    model: Annotated[str | None, Query(description="Only this model, looked up as the gateway does.")] = None,
) -> service.Prices:
    """Prices of the catalog the org uses."""
    return await service.list_prices(admin, vendor, model)
