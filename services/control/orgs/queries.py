"""SQL of orgs."""

from collections.abc import Mapping
from datetime import datetime

from asyncpg import Connection, Record

from services.control.compile import OrgRecord
from services.core.snapshot import Target, UnknownModels

_COLUMNS = (
    "name, config_version, catalog_version, hold_ms, book_expired,"
    " unknown_models, priced_as_vendor, priced_as_model, allow_unpriced_routes"
)


async def bump(connection: Connection, org: str) -> int:
    """The org's next config version; the row stays locked until the transaction ends."""
    version: int = await connection.fetchval(
        "UPDATE orgs SET config_version = config_version + 1 WHERE name = $1 RETURNING config_version", org
    )
    return version


async def take_back(connection: Connection, org: str) -> int:
    """The version from before `bump`, which holds again; in the same transaction, so that nobody saw the other."""
    version: int = await connection.fetchval(
        "UPDATE orgs SET config_version = config_version - 1 WHERE name = $1 RETURNING config_version", org
    )
    return version


async def find(connection: Connection, org: str) -> OrgRecord:
    """An org that exists: orgs are never deleted."""
    row = await connection.fetchrow(f"SELECT {_COLUMNS} FROM orgs WHERE name = $1", org)
    assert row is not None
    return _record(row)


async def find_created_at(connection: Connection, org: str) -> datetime:
    """When the org was made."""
    created_at: datetime = await connection.fetchval("SELECT created_at FROM orgs WHERE name = $1", org)
    return created_at


async def read_clock(connection: Connection) -> datetime:
    """The database's own time, as of which a snapshot reads."""
    now: datetime = await connection.fetchval("SELECT now()")
    return now


async def list_versions(connection: Connection) -> Mapping[str, int]:
    """The config version of every org."""
    rows = await connection.fetch("SELECT name, config_version FROM orgs ORDER BY name")
    return {row["name"]: row["config_version"] for row in rows}


async def insert(connection: Connection, org: str, catalog_version: str, hold_ms: int) -> None:
    """Makes an org."""
    await connection.execute(
        "INSERT INTO orgs (name, catalog_version, hold_ms) VALUES ($1, $2, $3)", org, catalog_version, hold_ms
    )


async def set_catalog(connection: Connection, org: str, catalog_version: str) -> OrgRecord:
    """Gives an org another catalog."""
    row = await connection.fetchrow(
        f"UPDATE orgs SET catalog_version = $2 WHERE name = $1 RETURNING {_COLUMNS}", org, catalog_version
    )
    assert row is not None
    return _record(row)


async def set_policies(connection: Connection, wanted: OrgRecord) -> OrgRecord:
    """Sets what becomes of models and routes without a price, and of expired holds."""
    target = wanted.unknown_models.priced_as
    row = await connection.fetchrow(
        "UPDATE orgs SET unknown_models = $2, priced_as_vendor = $3, priced_as_model = $4, allow_unpriced_routes = $5,"
        f" book_expired = $6 WHERE name = $1 RETURNING {_COLUMNS}",
        wanted.name,
        wanted.unknown_models.policy,
        None if target is None else target.vendor,
        None if target is None else target.model,
        wanted.allow_unpriced_routes,
        wanted.book_expired,
    )
    assert row is not None
    return _record(row)


async def settle_hold(connection: Connection, hold_ms: int) -> tuple[tuple[OrgRecord, OrgRecord], ...]:
    """Gives every org this hold time, with a new version where it had another; those, before and after."""
    before = await connection.fetch(
        f"SELECT {_COLUMNS} FROM orgs WHERE hold_ms <> $1 ORDER BY name FOR UPDATE", hold_ms
    )
    changed = []
    for row in before:
        after = await connection.fetchrow(
            f"UPDATE orgs SET hold_ms = $2, config_version = config_version + 1 WHERE name = $1 RETURNING {_COLUMNS}",
            row["name"],
            hold_ms,
        )
        assert after is not None
        changed.append((_record(row), _record(after)))
    return tuple(changed)


def _record(row: Record) -> OrgRecord:
    vendor = row["priced_as_vendor"]
    priced_as = None if vendor is None else Target(vendor, row["priced_as_model"])
    return OrgRecord(
        row["name"],
        row["config_version"],
        row["catalog_version"],
        row["hold_ms"],
        row["book_expired"],
        UnknownModels(row["unknown_models"], priced_as),
        row["allow_unpriced_routes"],
    )
