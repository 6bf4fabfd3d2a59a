"""SQL of API keys. Only the HMAC of a key is ever here."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from asyncpg import Connection, Record

from services.control.compile import HashedKey
from services.core.identity import KeyRecord

_COLUMNS = "key_id, role, pins, hint, created_at, revoked_at"

# No publication takes so long, and no hot state that loses its last writes loses so many.
_FORGOTTEN_AFTER: Final = timedelta(days=2)


async def find_live(connection: Connection, key_hash: str) -> KeyRecord | None:
    """The key with this hash, unless it is revoked."""
    row = await connection.fetchrow(
        "SELECT key_id, org, role, pins FROM keys WHERE hash = $1 AND revoked_at IS NULL", key_hash
    )
    return None if row is None else _record(row)


async def insert(
    connection: Connection, key_id: str, org: str, key_hash: str, hint: str, role: str, pins: Mapping[str, str]
) -> Record:
    """Keeps a new key."""
    row = await connection.fetchrow(
        "INSERT INTO keys (key_id, org, hash, hint, role, pins) VALUES ($1, $2, $3, $4, $5, $6::jsonb)"
        f" RETURNING {_COLUMNS}",
        key_id,
        org,
        key_hash,
        hint,
        role,
        json.dumps(pins),
    )
    assert row is not None
    return row


async def list_keys(connection: Connection, org: str) -> Sequence[Record]:
    """Every key of an org, oldest first."""
    return await connection.fetch(f"SELECT {_COLUMNS} FROM keys WHERE org = $1 ORDER BY key_id", org)


async def find(connection: Connection, org: str, key_id: str) -> Record | None:
    """A key of an org by id."""
    return await connection.fetchrow(f"SELECT {_COLUMNS} FROM keys WHERE org = $1 AND key_id = $2", org, key_id)


async def revoke(connection: Connection, key_id: str) -> Record:
    """Marks a live key as revoked."""
    row = await connection.fetchrow(
        f"UPDATE keys SET revoked_at = now() WHERE key_id = $1 RETURNING {_COLUMNS}",
        key_id,
    )
    assert row is not None
    return row


async def pin_team(connection: Connection, org: str, agent: str, team: str) -> Sequence[Record]:
    """Pins the live keys of an agent to a team as well, where they are pinned to none; the keys that it changed."""
    return await connection.fetch(
        "UPDATE keys SET pins = pins || jsonb_build_object('team', $3::text)"
        " WHERE org = $1 AND pins->>'agent' = $2 AND pins->>'team' IS NULL AND revoked_at IS NULL"
        " RETURNING key_id, pins",
        org,
        agent,
        team,
    )


async def count_live_admins(connection: Connection, org: str) -> int:
    """How many live org_admin keys an org has."""
    count: int = await connection.fetchval(
        "SELECT count(*) FROM keys WHERE org = $1 AND role = 'org_admin' AND revoked_at IS NULL", org
    )
    return count


async def list_hashed(connection: Connection, org: str, since: datetime | None) -> tuple[HashedKey, ...]:
    """The keys of an org as gateways need them: the live ones, and those revoked since shortly before an instant, or
    ever."""
    rows = await connection.fetch(
        "SELECT hash, key_id, org, role, pins, revoked_at IS NOT NULL AS is_revoked,"
        " coalesce(revoked_at < now() - $2::interval, false) AS is_forgotten FROM keys"
        " WHERE org = $1 AND (revoked_at IS NULL OR revoked_at > coalesce($3::timestamptz - $2, '-infinity'))",
        org,
        _FORGOTTEN_AFTER,
        since,
    )
    return tuple(HashedKey(row["hash"], _record(row), row["is_revoked"], row["is_forgotten"]) for row in rows)


def _record(row: Record) -> KeyRecord:
    return KeyRecord(row["key_id"], row["org"], row["role"], json.loads(row["pins"]))
