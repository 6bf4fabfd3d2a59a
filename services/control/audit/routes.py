"""``/api/v1/audit``."""

from typing import Annotated

from fastapi import APIRouter, Query

from services.control.audit import service
from services.control.auth import AdminDep

router = APIRouter(prefix="/audit", tags=["audit"])


@router.get("")
async def list_entries(
    admin: AdminDep,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    before: Annotated[int | None, Query(description="Entries older than this one.", ge=1, lt=2**63)] = None,
) -> service.AuditPage:
    """Every change to the org, newest first."""
    return await service.list_entries(admin, limit, before)
