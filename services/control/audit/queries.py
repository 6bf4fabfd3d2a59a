"""SQL of the audit trail. The table itself refuses changes and deletions."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from asyncpg import Connection, Record


async def insert(
    connection: Connection,
    org: str,
    config_version: int,
    actor: str,
    action: str,
    target: str,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
) -> None:
    """One entry."""
    await connection.execute(
        "INSERT INTO audit (org, config_version, actor, action, target, before, after)"
        " VALUES ($1, $2, $3, $4, $5, $6::jsonb, $7::jsonb)",
        org,
        config_version,
        actor,
        action,
        target,
        None if before is None else json.dumps(before),
        None if after is None else json.dumps(after),
    )


async def page(connection: Connection, org: str, limit: int, before_entry: int | None) -> Sequence[Record]:
    """The newest entries below `before_entry`, newest first."""
    return await connection.fetch(
        "SELECT entry_id, config_version, actor, action, target, before, after, at FROM audit"
        " WHERE org = $1 AND ($2::bigint IS NULL OR entry_id < $2) ORDER BY entry_id DESC LIMIT $3",
        org,
        before_entry,
        limit,
    )
