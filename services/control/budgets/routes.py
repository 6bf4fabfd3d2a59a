"""``/api/v1/budgets``."""

from fastapi import APIRouter, Response

from services.control.auth import AdminDep
from services.control.budgets import service
from services.control.fields import PathId

router = APIRouter(prefix="/budgets", tags=["budgets"])


@router.get("")
async def list_budgets(admin: AdminDep) -> service.Budgets:
    """Every budget of the org, with what its current window has spent and holds."""
    return await service.list_budgets(admin)


@router.put("", responses={201: {"model": service.SetBudgetAnswer, "description": "The budget is new."}})
async def set_budget(admin: AdminDep, request: service.SetBudget, response: Response) -> service.SetBudgetAnswer:
    """Sets the budget of a scope, window and zone: makes it (201) or changes its limit (200).

    A team or agent it names is made when it does not exist. It is enforced on every gateway within a second.
    """
    budget, is_new = await service.set_budget(admin, request)
    response.status_code = 201 if is_new else 200
    return budget


@router.get("/{budget_id}")
async def get_budget(admin: AdminDep, budget_id: PathId) -> service.BudgetAnswer:
    """One budget, with what its current window has spent and holds."""
    return await service.get_budget(admin, budget_id)


@router.delete("/{budget_id}", status_code=204)
async def delete_budget(admin: AdminDep, budget_id: PathId) -> None:
    """Removes a budget. A budget made later for the same scope starts at zero."""
    await service.delete_budget(admin, budget_id)
