"""``/api/v1/agents``."""

from fastapi import APIRouter

from services.control.agents import service
from services.control.auth import AdminDep

router = APIRouter(prefix="/agents", tags=["teams and agents"])


@router.get("")
async def list_agents(admin: AdminDep) -> service.Agents:
    """Every agent of the org, with its team."""
    return await service.list_agents(admin)


@router.post("", status_code=201)
async def create_agent(admin: AdminDep, request: service.NewAgent) -> service.NewAgentAnswer:
    """Makes an agent. Agents named by keys or budgets are made on the way, so this is rarely needed."""
    return await service.create_agent(admin, request)
