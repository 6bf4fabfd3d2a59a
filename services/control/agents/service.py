"""Agents: names unique in their org, each in one team once something names both."""

import json

from pydantic import BaseModel

from services.control.agents import queries
from services.control.auth import Admin
from services.control.context import Change
from services.control.errors import conflict
from services.control.fields import Body, Instant, Made, Name
from services.control.keys import queries as key_queries
from services.control.teams.service import ensure_team
from services.core.identity import check_name


class NewAgent(Body):
    """An agent to make. Without a team it joins the first one that a key or budget names together with it."""

    name: Name
    team: Name | None = None


class Agent(BaseModel):
    """An agent."""

    name: str
    team: str | None
    created_at: Instant


class NewAgentAnswer(Agent):
    """The agent, and whether its team was made on the way."""

    made: Made


class Agents(BaseModel):
    """Every agent of the org, by name."""

    agents: list[Agent]


async def ensure_placed(change: Change, team: str | None, agent: str | None) -> tuple[str | None, Made]:
    """Makes the team and the agent where they are missing and puts the agent into the team.

    Returns the team the agent is in (or `team` without an agent). Raises a 409 when the agent is in another team.
    """
    team_made = await ensure_team(change, team) if team is not None else False
    if agent is None:
        return team, Made(team=team_made)
    found = await queries.find(change.connection, change.org, check_name("agent", agent))
    if found is None:
        await queries.insert(change.connection, change.org, agent, team)
        await change.audit("agent.create", agent, after={"name": agent, "team": team})
        return team, Made(team=team_made, agent=True)
    home: str | None = found["team"]
    if team is None or home == team:
        return home, Made(team=team_made)
    if home is not None:
        message = (
            f"agent {agent!r} is in team {home!r}, not {team!r}, and an agent is in one team only; "
            "leave team out, or name another agent"
        )
        raise conflict("agent_in_other_team", message, "team")
    await _join_team(change, agent, team)
    return team, Made(team=team_made)


async def create_agent(admin: Admin, request: NewAgent) -> NewAgentAnswer:
    """Makes an agent; 409 when it is there."""
    name = check_name("name", request.name)
    async with admin.change() as change:
        if await queries.find(change.connection, admin.org, name) is not None:
            raise conflict("already_exists", f"there is an agent {name!r} already", "name")
        team_made = await ensure_team(change, request.team) if request.team is not None else False
        row = await queries.insert(change.connection, admin.org, name, request.team)
        await change.audit("agent.create", name, after={"name": name, "team": request.team})
    return NewAgentAnswer(**row, made=Made(team=team_made))


async def _join_team(change: Change, agent: str, team: str) -> None:
    await queries.set_team(change.connection, change.org, agent, team)
    await change.audit(
        "agent.join_team", agent, before={"name": agent, "team": None}, after={"name": agent, "team": team}
    )
    # A key pinned to the agent alone would let its calls name any team, or none, past this team's budgets.
    for row in await key_queries.pin_team(change.connection, change.org, agent, team):
        after = json.loads(row["pins"])
        await change.audit("key.join_team", row["key_id"], before={**after, "team": None}, after=after)


async def list_agents(admin: Admin) -> Agents:
    """The org's agents."""
    async with admin.context.database.snapshot() as connection:
        rows = await queries.list_agents(connection, admin.org)
    return Agents(agents=[Agent(**row) for row in rows])
