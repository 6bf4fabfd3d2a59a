"""Teams: names that keys and budgets refer to."""

from pydantic import BaseModel

from services.control.auth import Admin
from services.control.context import Change
from services.control.errors import conflict
from services.control.fields import Body, Instant, Name
from services.control.teams import queries
from services.core.identity import check_name


class NewTeam(Body):
    """A team to make."""

    name: Name


class Team(BaseModel):
    """A team."""

    name: str
    created_at: Instant


class Teams(BaseModel):
    """Every team of the org, by name."""

    teams: list[Team]


async def ensure_team(change: Change, name: str) -> bool:
    """Makes the team unless it is there; whether it was made."""
    return await _insert(change, check_name("team", name)) is not None


async def create_team(admin: Admin, request: NewTeam) -> Team:
    """Makes a team; 409 when it is there."""
    name = check_name("name", request.name)
    async with admin.change() as change:
        team = await _insert(change, name)
        if team is None:
            raise conflict("already_exists", f"there is a team {name!r} already", "name")
    return team


async def list_teams(admin: Admin) -> Teams:
    """The org's teams."""
    async with admin.context.database.snapshot() as connection:
        rows = await queries.list_teams(connection, admin.org)
    return Teams(teams=[Team(**row) for row in rows])


async def _insert(change: Change, name: str) -> Team | None:
    row = await queries.insert(change.connection, change.org, name)
    if row is None:
        return None
    await change.audit("team.create", name, after={"name": name})
    return Team(**row)
