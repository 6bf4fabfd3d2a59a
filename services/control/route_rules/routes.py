"""``/api/v1/routes``."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from services.control.auth import AdminDep
from services.control.fields import Sought
from services.control.route_rules import service

router = APIRouter(prefix="/routes", tags=["routes"])


@router.get("")
async def list_rules(admin: AdminDep) -> service.Rules:
    """Every rule of how calls of a vendor's route are treated."""
    return await service.list_rules(admin)


@router.put("", responses={201: {"model": service.Rule, "description": "The rule is new."}})
async def set_rule(admin: AdminDep, request: service.SetRule, response: Response) -> service.Rule:
    """Sets the rule of a vendor and route. It holds on every gateway within a second."""
    rule, is_new = await service.set_rule(admin, request)
    response.status_code = 201 if is_new else 200
    return rule


@router.delete("", status_code=204)
async def delete_rule(
    admin: AdminDep,
    vendor: Annotated[Sought, Query(description="The rule's vendor; * for the one of all.")] = "*",
    route: Annotated[Sought, Query(description="The rule's route; * for the one of all.")] = "*",
) -> None:
    """Removes a rule."""
    await service.delete_rule(admin, vendor, route)
