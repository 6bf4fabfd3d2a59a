"""The price catalogs that orgs use, kept in PostgreSQL by version and never changed."""

from pathlib import Path
from typing import Final

from asyncpg import Connection

from services.control.prices import queries
from services.core.pricing import Catalog, decode_catalog

SHIPPED_CATALOG: Final = Path(__file__).with_name("catalog.json")


class PriceBook:
    """Catalogs by version. The one last asked for stays decoded: hardly anyone asks for another."""

    def __init__(self, shipped: bytes) -> None:
        """Raises `services.core.pricing.CatalogError` when `shipped`, the catalog of this version, is not a catalog."""
        self._shipped = shipped
        self._latest = decode_catalog(shipped)
        self.shipped_version: Final = self._latest.version

    async def keep_shipped(self, connection: Connection) -> None:
        """Keeps the shipped catalog in PostgreSQL."""
        await queries.insert(connection, self.shipped_version, self._shipped)

    async def catalog_of(self, connection: Connection, version: str) -> Catalog:
        """A catalog that an org refers to."""
        if self._latest.version != version:
            self._latest = decode_catalog(await queries.read_body(connection, version))
        return self._latest
