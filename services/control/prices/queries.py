"""SQL of price catalogs. The table itself refuses changes and deletions."""

from asyncpg import Connection


async def insert(connection: Connection, version: str, body: bytes) -> None:
    """Keeps a catalog, unless its version is there already."""
    await connection.execute(
        "INSERT INTO price_catalogs (version, body) VALUES ($1, $2) ON CONFLICT DO NOTHING", version, body
    )


async def read_body(connection: Connection, version: str) -> bytes:
    """The bytes of a catalog that an org refers to."""
    body: bytes = await connection.fetchval("SELECT body FROM price_catalogs WHERE version = $1", version)
    return body
