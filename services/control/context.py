"""What every part of control is handed, and the one way to write: `Context.change`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from asyncpg import Connection

from services.control.audit import queries as audit_queries
from services.control.orgs import queries as org_queries
from services.control.prices.book import Catalogs
from services.control.publish import Publisher
from services.core.matching import Expressions
from services.core.ports import HotState


class Database(Protocol):
    """PostgreSQL. Both raise `UnavailableError` when it is away."""

    def transaction(self) -> AbstractAsyncContextManager[Connection]:
        """Committed when the block ends, rolled back when it raises."""

    def snapshot(self) -> AbstractAsyncContextManager[Connection]:
        """Read-only; every read sees the same instant."""


class Vault(Protocol):
    """Secrets as control needs them."""

    @property
    def pepper(self) -> bytes:
        """What API keys are hashed with."""

    @property
    def fingerprint(self) -> str:
        """Says which master key this is."""

    @property
    def internal_token(self) -> str:
        """What our own services show each other."""

    def seal(self, org: str, vendor: str, plaintext: str) -> str:
        """A vendor key, encrypted for one org and vendor."""


@dataclass(frozen=True, slots=True)
class Change:
    """A write to one org in the making. Whoever holds it is alone in writing to that org until it is committed."""

    connection: Connection
    org: str
    actor: str
    config_version: int

    async def audit(
        self,
        action: str,
        target: str,
        *,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
    ) -> None:
        """Records what was done, as JSON without secrets. Every write does."""
        await audit_queries.insert(
            self.connection, self.org, self.config_version, self.actor, action, target, before, after
        )

    async def take_back(self) -> int:
        """For a write that finds nothing to change, and wrote nothing: makes no version. The one that there is."""
        return await org_queries.take_back(self.connection, self.org)


@dataclass(frozen=True, slots=True)
class Context:
    """Everything outside, as ports. `started` is set once the database is migrated and filled."""

    database: Database
    hot: HotState
    vault: Vault
    prices: Catalogs
    publisher: Publisher
    expressions: Expressions
    started: asyncio.Event = field(default_factory=asyncio.Event)

    @contextlib.asynccontextmanager
    async def change(self, org: str, actor: str) -> AsyncIterator[Change]:
        """One write: the block's changes and the org's next config version are committed together, then published.

        A publication that fails is made up for by the publisher's loop.
        """
        async with self.database.transaction() as connection:
            # First of all, for its row lock: rules that look at several rows then hold without any other lock.
            version = await org_queries.bump(connection, org)
            yield Change(connection, org, actor, version)
        await self.publisher.publish_soon(org)
