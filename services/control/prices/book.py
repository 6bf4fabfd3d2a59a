"""The price catalogs that orgs use, kept in PostgreSQL by version and never changed."""

import asyncio
from pathlib import Path
from typing import Final

from asyncpg import Connection

from services.control.catalogs import queries
from services.core.catalog import Catalog, decode_catalog

SHIPPED_CATALOG: Final = Path(__file__).with_name("catalog.json")

_CATALOGS_KEPT: Final = 4


class Catalogs:
    """Catalogs by version. Those last asked for stay decoded; decoding one takes a while, so no loop waits for it."""

    def __init__(self, shipped: bytes) -> None:
        """Raises `services.core.catalog.CatalogError` when `shipped`, the catalog of this release, is not a catalog."""
        self._shipped = shipped
        catalog = decode_catalog(shipped)
        self._decoded = {catalog.version: catalog}
        self.shipped_version: Final = catalog.version

    async def keep_shipped(self, connection: Connection) -> None:
        """Keeps the shipped catalog in PostgreSQL."""
        await queries.insert_body(connection, self.shipped_version, self._shipped)

    async def catalog_of(self, connection: Connection, version: str) -> Catalog:
        """A catalog that PostgreSQL has."""
        catalog = self._decoded.pop(version, None)
        if catalog is None:
            body = await queries.read_body(connection, version)
            catalog = await asyncio.to_thread(decode_catalog, body)
        self._decoded[version] = catalog  # the latest used is the last
        while len(self._decoded) > _CATALOGS_KEPT:
            del self._decoded[next(iter(self._decoded))]
        return catalog
