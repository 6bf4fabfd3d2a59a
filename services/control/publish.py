"""Brings committed changes to the gateways: at once after each write, and by a loop that catches up on misses."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Final, Protocol

import structlog
from asyncpg import Connection

from services.control.budgets import queries as budget_queries
from services.control.cap_policies import queries as cap_queries
from services.control.cap_policies.compiled import compile_caps
from services.control.catalogs import queries as catalog_queries
from services.control.compile import compile_keys, compile_snapshot
from services.control.connections import queries as connection_queries
from services.control.delegations import queries as delegation_queries
from services.control.keys import queries as key_queries
from services.control.orgs import queries as org_queries
from services.control.overrides import queries as override_queries
from services.control.overrides.compiled import compile_overrides
from services.control.prices.book import Catalogs
from services.control.route_rules import queries as rule_queries
from services.core.parts import parts_held_alike
from services.core.ports import Directory, UnavailableError
from services.core.snapshot import Overrides, encode_snapshot

_log = structlog.get_logger(__name__)

RECONCILE_INTERVAL_S: Final = 1.0
TIDY_INTERVAL_S: Final = 3_600.0
_MANY_BUDGETS: Final = 1_000


class ReadableDatabase(Protocol):
    """PostgreSQL, read."""

    def snapshot(self) -> AbstractAsyncContextManager[Connection]:
        """Read-only; every read sees the same instant."""


class Publisher:
    """Publishes orgs from PostgreSQL to the directory. Publishing what is there already, or less, changes nothing."""

    def __init__(self, database: ReadableDatabase, catalogs: Catalogs, directory: Directory) -> None:
        self._database = database
        self._catalogs = catalogs
        self._directory = directory
        self._is_behind = False
        self._restored: set[str] = set()
        self._tidied_s = float("-inf")
        # When each org was read for the last publication of this process, by the database's clock.
        self._published_at: dict[str, datetime] = {}

    async def publish(self, org: str, *, announce: bool = True, is_whole: bool = True) -> None:
        """Publishes an org as committed now: its catalog first, then snapshot and keys. Raises `UnavailableError`.

        Unannounced, gateways do not look for it yet, and take a hot state that is bare to be bare still. Not whole, it
        leaves out the keys that were revoked long before this process published the org last.
        """
        since = None if is_whole else self._published_at.get(org)
        async with self._database.snapshot() as connection:
            read_at = await org_queries.read_clock(connection)
            record = await org_queries.find(connection, org)
            budgets = await budget_queries.list_budgets(connection, org)
            vendor_connections = await connection_queries.list_compiled(connection, org)
            keys = await key_queries.list_hashed(connection, org, since)
            rules = await rule_queries.list_rules(connection, org)
            caps = compile_caps(await cap_queries.list_caps(connection, org))
            parts = await delegation_queries.list_budgets(connection, org)
            overrides = await self._overrides(connection, org, record.catalog_version)
        # A gateway may read the snapshot the moment it is there, so what it names has to be there before.
        await self._ensure_catalog(record.catalog_version)
        compiled = compile_keys(keys)

        def compile_it() -> bytes:
            more = (*caps, *parts_held_alike(parts, (*budgets, *caps)))
            return encode_snapshot(compile_snapshot(record, budgets, vendor_connections, overrides, rules, more))

        # An org of very many budgets takes seconds, and control has others to answer.
        snapshot = await asyncio.to_thread(compile_it) if len(budgets) > _MANY_BUDGETS else compile_it()
        is_new = await self._directory.publish_org(
            *(org, record.config_version, snapshot, compiled.live, compiled.revoked),
            forgotten=compiled.forgotten,
            announce=announce,
        )
        if is_new:
            self._published_at[org] = read_at

    async def _ensure_catalog(self, version: str) -> None:
        # The hot state is asked each time: it may have been wiped since, and only it knows.
        if not await self._directory.keep_catalog(version):
            async with self._database.snapshot() as connection:
                catalog = await catalog_queries.read_body(connection, version)
            await self._directory.publish_catalog(version, catalog)

    async def tidy_catalogs(self) -> None:
        """Lets catalogs go that no org uses any more, and sees that those in use stay. Raises `UnavailableError`."""
        async with self._database.snapshot() as connection:
            catalogs = await catalog_queries.list_use(connection)
        await self._directory.let_catalogs_go([version for version, is_used in catalogs.items() if not is_used])
        for version, is_used in catalogs.items():
            if is_used:
                await self._ensure_catalog(version)

    async def _overrides(self, connection: Connection, org: str, catalog_version: str) -> Overrides | None:
        own = await override_queries.list_own(connection, org)
        if not own:
            return None
        catalog = await self._catalogs.catalog_of(connection, catalog_version)
        return await asyncio.to_thread(compile_overrides, own, catalog)

    async def publish_soon(self, org: str) -> None:
        """Publishes a change that is committed. When that fails now, the loop does it as soon as it can."""
        try:
            if await self._is_bare():
                await self.reconcile()
            else:
                await self.publish(org, is_whole=False)
        except UnavailableError as error:
            _log.warning("publication_delayed", org=org, reason=str(error))

    async def published_versions(self) -> Mapping[str, int]:
        """The version gateways have of each org. Raises `UnavailableError`."""
        return await self._directory.published_versions()

    async def reconcile(self) -> None:
        """Publishes every org that the directory lacks or has an older version of. Raises `UnavailableError`."""
        # In this order: nothing is published before it is committed, so no version read first can be the greater one.
        published = await self.published_versions()
        is_bare = await self._is_bare()
        async with self._database.snapshot() as connection:
            versions = await org_queries.list_versions(connection)
        behind = [org for org, version in versions.items() if is_bare or published.get(org, 0) < version]
        for org in behind:
            # In a bare state a key is unknown for a while, not wrong: nothing is announced until all orgs are there.
            await self.publish(org, announce=not is_bare or org == behind[-1])
        restored = {org for org, version in versions.items() if published.get(org, 0) > version}
        for org in restored - self._restored:
            _log.error("database_older_than_gateways", org=org, config_version=versions[org], published=published[org])
        self._restored = restored

    async def _is_bare(self) -> bool:
        return (await self._directory.pulse()).generation is None

    async def catch_up(self) -> None:
        """Reconciles if it can, and says once when it can't and once when it can again."""
        try:
            await self.reconcile()
            await self._directory.beat()
            if time.monotonic() - self._tidied_s > TIDY_INTERVAL_S:
                await self.tidy_catalogs()
                self._tidied_s = time.monotonic()
        except UnavailableError as error:
            if not self._is_behind:
                _log.warning("publication_waits", reason=str(error))
            self._is_behind = True
        else:
            if self._is_behind:
                _log.info("publication_resumed")
            self._is_behind = False

    async def run(self) -> None:
        """Catches up for ever. Engines that are away are waited for; anything else is raised."""
        while True:
            await self.catch_up()
            await asyncio.sleep(RECONCILE_INTERVAL_S)
