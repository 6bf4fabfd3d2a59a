"""SQL of route rules."""

import json
from collections.abc import Sequence

from asyncpg import Connection, Record

from services.core.snapshot import RouteRule, Target

_COLUMNS = "vendor, route, budget_status, timeout_ms, fallbacks, fail_open, created_at, updated_at"


async def list_rows(connection: Connection, org: str) -> Sequence[Record]:
    """Every rule of an org, by vendor and route."""
    return await connection.fetch(f"SELECT {_COLUMNS} FROM route_rules WHERE org = $1 ORDER BY vendor, route", org)


async def find(connection: Connection, org: str, vendor: str, route: str) -> Record | None:
    """The rule of a vendor and route."""
    return await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM route_rules WHERE org = $1 AND vendor = $2 AND route = $3", org, vendor, route
    )


async def upsert(connection: Connection, org: str, rule: RouteRule) -> Record:
    """Keeps a rule in place of what its vendor and route had."""
    targets = (
        None if rule.fallbacks is None else [{"vendor": each.vendor, "model": each.model} for each in rule.fallbacks]
    )
    row = await connection.fetchrow(
        "INSERT INTO route_rules (org, vendor, route, budget_status, timeout_ms, fallbacks, fail_open)"
        " VALUES ($1, $2, $3, $4, $5, $6::jsonb, $7)"
        " ON CONFLICT (org, vendor, route) DO UPDATE SET budget_status = excluded.budget_status,"
        " timeout_ms = excluded.timeout_ms, fallbacks = excluded.fallbacks, fail_open = excluded.fail_open,"
        " updated_at = now()"
        f" RETURNING {_COLUMNS}",
        org,
        rule.vendor,
        rule.route,
        rule.budget_status,
        rule.timeout_ms,
        None if targets is None else json.dumps(targets),
        rule.fail_open,
    )
    assert row is not None
    return row


async def delete(connection: Connection, org: str, vendor: str, route: str) -> None:
    """Removes a rule."""
    await connection.execute(
        "DELETE FROM route_rules WHERE org = $1 AND vendor = $2 AND route = $3", org, vendor, route
    )


async def list_rules(connection: Connection, org: str) -> Sequence[RouteRule]:
    """Every rule of an org."""
    return [rule_of(row) for row in await list_rows(connection, org)]


def rule_of(row: Record) -> RouteRule:
    """The rule of a row."""
    targets = None if row["fallbacks"] is None else json.loads(row["fallbacks"])
    fallbacks = None if targets is None else tuple(Target(each["vendor"], each["model"]) for each in targets)
    return RouteRule(row["vendor"], row["route"], row["budget_status"], row["timeout_ms"], fallbacks, row["fail_open"])
