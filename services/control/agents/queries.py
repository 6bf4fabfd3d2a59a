"""SQL of agents."""

from collections.abc import Sequence

from asyncpg import Connection, Record

_COLUMNS = "name, team, created_at"


async def find(connection: Connection, org: str, name: str) -> Record | None:
    """An agent by name."""
    return await connection.fetchrow(f"SELECT {_COLUMNS} FROM agents WHERE org = $1 AND name = $2", org, name)


async def insert(connection: Connection, org: str, name: str, team: str | None) -> Record:
    """Makes an agent."""
    row = await connection.fetchrow(
        f"INSERT INTO agents (org, name, team) VALUES ($1, $2, $3) RETURNING {_COLUMNS}",
        org,
        name,
        team,
    )
    assert row is not None
    return row


async def set_team(connection: Connection, org: str, name: str, team: str) -> None:
    """Puts an agent into a team."""
    await connection.execute("UPDATE agents SET team = $3 WHERE org = $1 AND name = $2", org, name, team)


async def list_agents(connection: Connection, org: str) -> Sequence[Record]:
    """Every agent of an org."""
    return await connection.fetch(f"SELECT {_COLUMNS} FROM agents WHERE org = $1 ORDER BY name", org)
