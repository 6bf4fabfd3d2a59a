"""``/api/v1/teams``."""

from fastapi import APIRouter

from services.control.auth import AdminDep
from services.control.teams import service

router = APIRouter(prefix="/teams", tags=["teams and agents"])


@router.get("")
async def list_teams(admin: AdminDep) -> service.Teams:
    """Every team of the org."""
    return await service.list_teams(admin)


@router.post("", status_code=201)
async def create_team(admin: AdminDep, request: service.NewTeam) -> service.Team:
    """Makes a team. Teams named by keys or budgets are made on the way, so this is rarely needed."""
    return await service.create_team(admin, request)
