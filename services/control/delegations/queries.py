"""SQL of delegations."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from asyncpg import Connection, Record

from services.core.budgets import Budget
from services.core.windows import IntervalWindow

_COLUMNS = (
    "budget_id, org, reservation_id, parent_budget_id, key_id, limit_nano, covers, starts_ms, ends_ms, made_by,"
    " request_hash, has_lapsed, created_at, ended_at"
)

# A part that nothing is held of any more is settled within this time of its end.
_SETTLED_AFTER: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class NewDelegation:
    """A delegation to keep. Instants are Unix milliseconds of the hot state's clock.

    `request_hash` tells the request that asked for it with an Idempotency-Key; empty without one.
    """

    budget_id: str
    reservation_id: str
    parent_budget_id: str
    key_id: str
    limit_nano: int
    covers: Sequence[str]
    starts_ms: int
    ends_ms: int
    made_by: str
    request_hash: str


async def insert(connection: Connection, org: str, new: NewDelegation) -> None:
    """Keeps a new delegation."""
    await connection.execute(
        "INSERT INTO delegations (budget_id, org, reservation_id, parent_budget_id, key_id, limit_nano, covers,"
        " starts_ms, ends_ms, made_by, request_hash) VALUES ($1, $2, $3, $4, $5, $6, $7::jsonb, $8, $9, $10, $11)",
        new.budget_id,
        org,
        new.reservation_id,
        new.parent_budget_id,
        new.key_id,
        new.limit_nano,
        json.dumps(list(new.covers)),
        new.starts_ms,
        new.ends_ms,
        new.made_by,
        new.request_hash,
    )


async def find(connection: Connection, org: str, budget_id: str) -> Record | None:
    """A delegation of an org by its budget."""
    return await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM delegations WHERE org = $1 AND budget_id = $2", org, budget_id
    )


async def count_live(connection: Connection, org: str, made_by: str) -> tuple[int, int]:
    """How many live delegations an org has, and how many of them a key has made."""
    row = await connection.fetchrow(
        "SELECT count(*) AS in_all, count(*) FILTER (WHERE made_by = $2) AS made FROM delegations"
        " WHERE org = $1 AND ended_at IS NULL",
        org,
        made_by,
    )
    assert row is not None, "a count is a row"
    return row["in_all"], row["made"]


async def find_covering(connection: Connection, org: str, budget_id: str) -> str | None:
    """A part that was carved from a budget, or from that of one value of it, and may not be settled yet."""
    found: str | None = await connection.fetchval(
        "SELECT budget_id FROM delegations WHERE org = $1 AND (ended_at IS NULL OR ended_at > now() - $3::interval)"
        " AND EXISTS (SELECT 1 FROM jsonb_array_elements_text(covers) AS covered"
        " WHERE split_part(covered, '@', 1) = $2) ORDER BY ends_ms DESC LIMIT 1",
        org,
        budget_id,
        _SETTLED_AFTER,
    )
    return found


async def find_overtaken(connection: Connection, org: str, covers: Sequence[str], config_version: int) -> str | None:
    """One of the budgets `covers` of a part carved by configuration `config_version` that is no more as it was then.

    It has got another window since, or is gone; of a part, it has ended. What a part covers that lives is as it was
    when that one was carved, or gone since, because it keeps its window (`find_covering`). Cells of the cap matrix are
    never covered.
    """
    found: str | None = await connection.fetchval(
        "WITH live AS (SELECT budget_id, covers FROM delegations"
        " WHERE org = $1 AND budget_id = ANY($2::text[]) AND ended_at IS NULL)"
        " SELECT covered FROM unnest($2::text[]) AS covered"
        " WHERE NOT EXISTS (SELECT 1 FROM live WHERE live.budget_id = covered OR live.covers ? covered)"
        " AND NOT EXISTS (SELECT 1 FROM budgets WHERE org = $1 AND budget_id = split_part(covered, '@', 1)"
        " AND since_version <= $3) LIMIT 1",
        org,
        list(covers),
        config_version,
    )
    return found


async def list_below(connection: Connection, org: str, budget_id: str) -> Sequence[Record]:
    """A delegation, all that was made by its key, by those keys, and so on: outer ones first."""
    return await connection.fetch(
        "WITH RECURSIVE below AS ("
        " SELECT budget_id, reservation_id, key_id FROM delegations WHERE org = $1 AND budget_id = $2"
        " UNION SELECT inner_.budget_id, inner_.reservation_id, inner_.key_id FROM delegations AS inner_"
        " JOIN below ON inner_.org = $1 AND inner_.made_by = below.key_id)"
        " SELECT budget_id, reservation_id FROM below",
        org,
        budget_id,
    )


async def end(connection: Connection, org: str, budget_ids: Sequence[str]) -> Sequence[str]:
    """Ends delegations and revokes their keys; the budgets of those that had not ended before."""
    rows = await connection.fetch(
        "UPDATE delegations SET ended_at = now() WHERE org = $1 AND budget_id = ANY($2) AND ended_at IS NULL"
        " RETURNING budget_id, key_id",
        org,
        budget_ids,
    )
    key_ids = [row["key_id"] for row in rows]
    await connection.execute(
        "UPDATE keys SET revoked_at = now() WHERE key_id = ANY($1) AND revoked_at IS NULL", key_ids
    )
    return [row["budget_id"] for row in rows]


async def mark_lapsed(connection: Connection, org: str, budget_id: str) -> None:
    """Notes that a delegation has ended because nothing was held for it any more."""
    await connection.execute(
        "UPDATE delegations SET has_lapsed = true WHERE org = $1 AND budget_id = $2", org, budget_id
    )


async def list_due(connection: Connection, now_ms: int, limit: int) -> Sequence[tuple[str, str]]:
    """Org and budget of delegations that nobody has ended though their time is over, or their maker's key revoked."""
    rows = await connection.fetch(
        "SELECT org, budget_id FROM delegations WHERE ended_at IS NULL AND (ends_ms <= $1 OR EXISTS"
        " (SELECT 1 FROM keys WHERE keys.key_id = made_by AND keys.revoked_at IS NOT NULL))"
        " ORDER BY ends_ms LIMIT $2",
        now_ms,
        limit,
    )
    return [(row["org"], row["budget_id"]) for row in rows]


async def list_budgets(connection: Connection, org: str) -> Sequence[Budget]:
    """The budgets of an org's live delegations; how their calls are held is up to what they cover (`core.parts`)."""
    rows = await connection.fetch(f"SELECT {_COLUMNS} FROM delegations WHERE org = $1 AND ended_at IS NULL", org)
    return [_budget(row) for row in rows]


def _budget(row: Record) -> Budget:
    return Budget(
        row["budget_id"],
        "key",
        row["key_id"],
        IntervalWindow(row["ends_ms"] - row["starts_ms"], row["starts_ms"]),
        row["limit_nano"],
        thresholds=(),
        covers=tuple(json.loads(row["covers"])),
        ends_at_ms=row["ends_ms"],
    )
