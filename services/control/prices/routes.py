"""``/api/v1/prices``."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from services.control.auth import AdminDep
from services.control.prices import service

router = APIRouter(prefix="/prices", tags=["prices"])

_Vendor = Annotated[str | None, Query(description="Only this vendor's.")]


@router.get("")
async def list_prices(
    admin: AdminDep,
    vendor: _Vendor = None,
    model: Annotated[str | None, Query(description="Only this model, looked up as the gateway does.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    cursor: Annotated[str | None, Query(description="Continue after an earlier answer: its `next`.")] = None,
) -> service.Prices:
    """Prices that hold for the org: the catalog's and its own, by vendor and model."""
    return await service.list_prices(admin, vendor, model, limit, cursor)


@router.get("/{model:path}")
async def get_price(
    admin: AdminDep,
    model: Annotated[str, Path(min_length=1, max_length=256, description="A model's name, slashes and all.")],
    vendor: _Vendor = None,
) -> service.ModelDetail:
    """One model's price with its history, looked up as the gateway does; without a vendor, the likeliest one's."""
    return await service.get_price(admin, model, vendor)
