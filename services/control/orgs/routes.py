"""``/api/v1/org`` and ``/api/v1/status``."""

from fastapi import APIRouter

from services.control.auth import AdminDep
from services.control.orgs import service

router = APIRouter(tags=["org"])


@router.get("/org")
async def get_org(admin: AdminDep) -> service.Org:
    """The org this key manages."""
    return await service.get_org(admin)


@router.patch("/org")
async def change_org(admin: AdminDep, request: service.ChangeOrg) -> service.Org:
    """Changes what becomes of models and routes that have no price, and of expired holds; what is left out stays."""
    return await service.change_org(admin, request)


@router.get("/status")
async def get_status(admin: AdminDep) -> service.Status:
    """Whether gateways have the org as it is, whether its spend state can be trusted, and what needs an operator."""
    return await service.get_status(admin)
