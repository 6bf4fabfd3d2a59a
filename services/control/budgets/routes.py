"""``/api/v1/budgets``."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from services.control.auth import AdminDep
from services.control.budgets import forms, service
from services.control.fields import PathId, Sought
from services.core.budgets import ScopeKind

router = APIRouter(prefix="/budgets", tags=["budgets"])

Value = Annotated[Sought | None, Query(description="Of a budget of each value: the standing of this value.")]
Session = Annotated[Sought | None, Query(description="Of a budget of each session: the standing of this session.")]


@router.get("")
async def list_budgets(
    admin: AdminDep,
    kind: Annotated[ScopeKind | None, Query(description="Only those of scopes of this kind.")] = None,
    value: Annotated[Sought | None, Query(description="Only those of scopes of this value; *: of each value.")] = None,
    limit: Annotated[int | None, Query(ge=1, le=1000, description="How many at the most; default: all.")] = None,
    cursor: Annotated[Sought | None, Query(description="Continue after an earlier answer: its `next`.")] = None,
) -> forms.Budgets:
    """Budgets of the org, each with what its current window has spent and holds."""
    return await service.list_budgets(admin, kind, value, cursor, limit)


@router.put("", responses={201: {"model": forms.SetBudgetAnswer, "description": "The budget is new."}})
async def set_budget(admin: AdminDep, request: forms.SetBudget, response: Response) -> forms.SetBudgetAnswer:
    """Sets the budget of a scope and window: makes it (201) or changes it (200); what is left out stays as it is.

    A team or agent it names is made when it does not exist. It is enforced on every gateway within a second.
    """
    budget, is_new = await service.set_budget(admin, request)
    response.status_code = 201 if is_new else 200
    return budget


@router.get("/{budget_id}")
async def get_budget(
    admin: AdminDep, budget_id: PathId, value: Value = None, session: Session = None
) -> forms.BudgetAnswer:
    """One budget, with what its current window has spent and holds."""
    return await service.get_budget(admin, budget_id, value, session)


@router.patch("/{budget_id}")
async def change_budget(admin: AdminDep, budget_id: PathId, request: forms.ChangeBudget) -> forms.BudgetAnswer:
    """Changes a budget in all but its scope. In another window it keeps its id, and counts what that window holds."""
    return await service.change_budget(admin, budget_id, request)


@router.delete("/{budget_id}", status_code=204)
async def delete_budget(admin: AdminDep, budget_id: PathId) -> None:
    """Removes a budget that is no parent of others."""
    await service.delete_budget(admin, budget_id)
