"""SQL of the cap matrix."""

from collections.abc import Sequence

from asyncpg import Connection

from services.core.billing import Cap


async def list_caps(connection: Connection, org: str) -> Sequence[Cap]:
    """Every cap of an org, those that are turned off included, by billing class."""
    rows = await connection.fetch(
        "SELECT billing_class, period, limit_nano, since_version FROM caps WHERE org = $1"
        " ORDER BY billing_class, period",
        org,
    )
    return [Cap(**row) for row in rows]


async def upsert(connection: Connection, org: str, cap: Cap) -> None:
    """Keeps a cap in place of what its cell had for the period."""
    await connection.execute(
        "INSERT INTO caps (org, billing_class, period, limit_nano, since_version) VALUES ($1, $2, $3, $4, $5)"
        " ON CONFLICT (org, billing_class, period) DO UPDATE SET limit_nano = excluded.limit_nano,"
        " since_version = excluded.since_version, updated_at = now()",
        org,
        cap.billing_class,
        cap.period,
        cap.limit_nano,
        cap.since_version,
    )


async def delete_cell(connection: Connection, org: str, billing_class: str) -> None:
    """Removes every cap of a billing class."""
    await connection.execute("DELETE FROM caps WHERE org = $1 AND billing_class = $2", org, billing_class)


async def is_org(connection: Connection, name: str) -> bool:
    """Whether there is an org of that name."""
    return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM orgs WHERE name = $1)", name))
