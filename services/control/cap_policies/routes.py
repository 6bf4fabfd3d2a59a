"""``/api/admin/billing/cap-policy``."""

from typing import Annotated

from fastapi import APIRouter, Path

from services.control.auth import AdminDep
from services.control.cap_policies import service

router = APIRouter(prefix="/billing/cap-policy", tags=["billing"])

# PostgreSQL takes no NUL, and no org's name has a control character.
_OrgId = Annotated[str, Path(alias="orgId", pattern=r"^[^\u0000-\u001f]{1,128}$", description="The key's own org.")]


@router.get("/{orgId:path}", response_model_exclude_unset=True)
async def get_policy(admin: AdminDep, org_id: _OrgId) -> service.CapPolicy:
    """The cap matrix: what each auth mode of each vendor may spend a day, a month and a session."""
    return await service.get_policy(admin, org_id)


@router.patch("/{orgId:path}", response_model_exclude_unset=True)
async def change_policy(admin: AdminDep, org_id: _OrgId, request: service.ChangeCapPolicy) -> service.CapPolicy:
    """Changes cells of the cap matrix, all or nothing; what is left out stays as it is. The matrix as it is then.

    It is enforced on every gateway within a second.
    """
    return await service.change_policy(admin, org_id, request)
