"""What models cost an org: the catalog it uses and its own prices."""

import asyncio
import time

from asyncpg import Connection

from services.control.compile import OrgRecord
from services.control.orgs import queries as org_queries
from services.control.overrides import queries as override_queries
from services.control.overrides.compiled import compile_overrides
from services.control.prices.book import Catalogs
from services.core.pricelist import PriceList


async def read_prices(catalogs: Catalogs, connection: Connection, org: str) -> tuple[OrgRecord, PriceList]:
    """An org's settings and prices."""
    record = await org_queries.find(connection, org)
    catalog = await catalogs.catalog_of(connection, record.catalog_version)
    own = await override_queries.list_own(connection, org)
    if not own:
        return record, PriceList(catalog)
    # Hundreds of own prices take long enough for others to notice.
    return record, await asyncio.to_thread(lambda: PriceList(catalog, compile_overrides(own, catalog)))


def now_ms() -> int:
    """This host's clock: good enough to say which price is in force; gateways have the hot state's."""
    return time.time_ns() // 1_000_000
