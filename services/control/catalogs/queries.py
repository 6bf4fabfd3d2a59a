"""SQL of price catalogs and of their proposals to orgs. The tables themselves refuse changes and deletions."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from asyncpg import Connection, Record

_COLUMNS = "proposal_id, version, base_version, state, proposed_by, proposed_at, decided_by, decided_at, reason"


async def insert_body(connection: Connection, version: str, body: bytes) -> None:
    """Keeps a catalog, unless its version is there already."""
    await connection.execute(
        "INSERT INTO price_catalogs (version, body) VALUES ($1, $2) ON CONFLICT DO NOTHING", version, body
    )


async def read_body(connection: Connection, version: str) -> bytes:
    """The bytes of a catalog that is there."""
    body: bytes = await connection.fetchval("SELECT body FROM price_catalogs WHERE version = $1", version)
    return body


async def list_use(connection: Connection) -> Mapping[str, bool]:
    """Every catalog by version, and whether an org uses it."""
    rows = await connection.fetch(
        "SELECT version, EXISTS (SELECT FROM orgs WHERE catalog_version = version) AS is_used FROM price_catalogs"
    )
    return {row["version"]: row["is_used"] for row in rows}


async def loaded_at(connection: Connection, version: str) -> datetime:
    """When a catalog that is there was first loaded."""
    instant: datetime = await connection.fetchval("SELECT loaded_at FROM price_catalogs WHERE version = $1", version)
    return instant


async def insert_accepted(connection: Connection, org: str, version: str, actor: str) -> None:
    """Records the catalog that an org begins with."""
    await connection.execute(
        "INSERT INTO catalog_proposals (org, version, state, proposed_by, decided_by, decided_at)"
        " VALUES ($1, $2, 'accepted', $3, $3, now())",
        org,
        version,
        actor,
    )


async def insert_pending(connection: Connection, org: str, version: str, base_version: str, actor: str) -> Record:
    """Proposes a catalog to an org."""
    row = await connection.fetchrow(
        "INSERT INTO catalog_proposals (org, version, base_version, state, proposed_by)"
        f" VALUES ($1, $2, $3, 'pending', $4) RETURNING {_COLUMNS}",
        org,
        version,
        base_version,
        actor,
    )
    assert row is not None
    return row


async def decide(connection: Connection, proposal_id: int, state: str, actor: str, reason: str | None) -> Record:
    """Decides a pending proposal."""
    row = await connection.fetchrow(
        "UPDATE catalog_proposals SET state = $2, decided_by = $3, decided_at = now(), reason = $4"
        f" WHERE proposal_id = $1 RETURNING {_COLUMNS}",
        proposal_id,
        state,
        actor,
        reason,
    )
    assert row is not None
    return row


async def reject_older(connection: Connection, org: str, version: str, actor: str, reason: str) -> None:
    """Rejects what `actor` had proposed to an org before `version`, and nobody has decided."""
    await connection.execute(
        "UPDATE catalog_proposals SET state = 'rejected', decided_by = $3, decided_at = now(), reason = $4"
        " WHERE org = $1 AND version <> $2 AND proposed_by = $3 AND state = 'pending'",
        org,
        version,
        actor,
        reason,
    )


async def list_proposals(connection: Connection, org: str, version: str | None = None) -> Sequence[Record]:
    """Every proposal to an org (of one version), newest first."""
    return await connection.fetch(
        f"SELECT {_COLUMNS} FROM catalog_proposals WHERE org = $1 AND ($2::text IS NULL OR version = $2)"
        " ORDER BY proposal_id DESC",
        org,
        version,
    )


async def list_pending_versions(connection: Connection, org: str) -> list[str]:
    """The versions that wait for a decision, newest first."""
    rows = await connection.fetch(
        "SELECT version FROM catalog_proposals WHERE org = $1 AND state = 'pending' ORDER BY proposal_id DESC", org
    )
    return [row["version"] for row in rows]


async def list_never_proposed(connection: Connection, version: str) -> Sequence[Record]:
    """Name and catalog of every org that has never been proposed this version."""
    return await connection.fetch(
        "SELECT name, catalog_version FROM orgs WHERE catalog_version <> $1 AND NOT EXISTS"
        " (SELECT FROM catalog_proposals WHERE org = name AND version = $1) ORDER BY name",
        version,
    )
