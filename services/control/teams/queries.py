"""SQL of teams."""

from collections.abc import Sequence

from asyncpg import Connection, Record


async def insert(connection: Connection, org: str, name: str) -> Record | None:
    """Makes a team; None when it is there already."""
    return await connection.fetchrow(
        "INSERT INTO teams (org, name) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING name, created_at", org, name
    )


async def list_teams(connection: Connection, org: str) -> Sequence[Record]:
    """Every team of an org."""
    return await connection.fetch("SELECT name, created_at FROM teams WHERE org = $1 ORDER BY name", org)
