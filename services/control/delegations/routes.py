"""``/internal/v1/orgs/{org}/delegations``: for our own services only."""

import hmac
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from services.control.context import Context
from services.control.delegations import service
from services.control.errors import ApiError
from services.control.fields import PathId
from services.core.ports import UnavailableError

router = APIRouter(prefix="/internal/v1/orgs/{org}/delegations", include_in_schema=False)
_bearer = HTTPBearer(auto_error=False)


async def our_own(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> Context:
    """What a service of ours works with: 401 without the internal token."""
    context: Context = request.app.state.context
    token = "" if credentials is None else credentials.credentials
    if not hmac.compare_digest(token.encode(), context.vault.internal_token.encode()):
        raise ApiError(401, "invalid_token", "this call is for Farthing's own services")
    if not context.started.is_set():
        raise UnavailableError("control is still starting")
    return context


OwnDep = Annotated[Context, Depends(our_own)]


@router.post("", status_code=201)
async def delegate(context: OwnDep, org: PathId, request: service.NewDelegation) -> service.NewDelegationAnswer:
    """Makes the key and budget of a part that is held already."""
    return await service.delegate(context, org, request)


@router.get("/{budget_id}")
async def find(context: OwnDep, org: PathId, budget_id: PathId) -> service.DelegationAnswer:
    """A delegation."""
    return await service.find(context, org, budget_id)


@router.post("/{budget_id}/end")
async def end(context: OwnDep, org: PathId, budget_id: PathId, actor: str) -> service.EndedAnswer:
    """Ends a delegation; one that has ended stays so."""
    return await service.end(context, org, budget_id, actor)


@router.post("/{budget_id}/lapse")
async def lapse(context: OwnDep, org: PathId, budget_id: PathId, actor: str) -> service.DelegationAnswer:
    """Ends a delegation that is held no more and whose key nobody was told; one that has ended stays as it is."""
    return await service.lapse(context, org, budget_id, actor)
