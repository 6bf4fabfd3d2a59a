"""SQL of vendor connections. Vendor keys are here sealed only."""

from collections.abc import Sequence

from asyncpg import Connection, Record

from services.core import snapshot

_COLUMNS = "vendor, dialect, base_url, key_hint, prices_as, auth_mode, created_at, updated_at"


async def find(connection: Connection, org: str, vendor: str) -> Record | None:
    """A connection of an org, without its key."""
    return await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM connections WHERE org = $1 AND vendor = $2",
        org,
        vendor,
    )


async def list_connections(connection: Connection, org: str) -> Sequence[Record]:
    """Every connection of an org, without keys."""
    return await connection.fetch(f"SELECT {_COLUMNS} FROM connections WHERE org = $1 ORDER BY vendor", org)


async def upsert(connection: Connection, org: str, compiled: snapshot.Connection, key_hint: str | None) -> Record:
    """Keeps a connection in place of what the vendor had."""
    row = await connection.fetchrow(
        "INSERT INTO connections (org, vendor, dialect, base_url, sealed_key, key_hint, prices_as, auth_mode)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
        " ON CONFLICT (org, vendor) DO UPDATE SET dialect = excluded.dialect, base_url = excluded.base_url,"
        " sealed_key = excluded.sealed_key, key_hint = excluded.key_hint, prices_as = excluded.prices_as,"
        " auth_mode = excluded.auth_mode,"
        f" updated_at = now() RETURNING {_COLUMNS}",
        org,
        compiled.vendor,
        compiled.dialect,
        compiled.base_url,
        compiled.sealed_key,
        key_hint,
        compiled.prices_as,
        compiled.auth_mode,
    )
    assert row is not None
    return row


async def delete(connection: Connection, org: str, vendor: str) -> None:
    """Removes a connection, its key included."""
    await connection.execute("DELETE FROM connections WHERE org = $1 AND vendor = $2", org, vendor)


async def list_compiled(connection: Connection, org: str) -> Sequence[snapshot.Connection]:
    """Every connection of an org as gateways need it, its key sealed."""
    rows = await connection.fetch(
        "SELECT vendor, dialect, base_url, sealed_key, prices_as, auth_mode FROM connections WHERE org = $1", org
    )
    return [snapshot.Connection(**row) for row in rows]
