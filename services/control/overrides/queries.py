"""SQL of an org's own prices: rows are added, never changed, and the latest of a model and day counts."""

import json
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from asyncpg import Connection, Record

from services.control.overrides.compiled import OwnPrice

_COLUMNS = "override_id, vendor, model, from_date, period, max_output_tokens, context_window, created_by, created_at"
_LATEST = (
    f"SELECT DISTINCT ON (vendor, model, from_date) {_COLUMNS} FROM price_overrides"
    " WHERE org = $1 AND ($2::text IS NULL OR vendor = $2) AND ($3::text IS NULL OR model = $3)"
    " ORDER BY vendor, model, from_date, override_id DESC"
)


async def insert(
    connection: Connection,
    org: str,
    vendor: str,
    model: str,
    from_date: date,
    period: Mapping[str, Any] | None,
    max_output_tokens: int | None,
    context_window: int | None,
    actor: str,
) -> Record:
    """Adds a price, or without a period its withdrawal."""
    row = await connection.fetchrow(
        "INSERT INTO price_overrides"
        " (org, vendor, model, from_date, period, max_output_tokens, context_window, created_by)"
        f" VALUES ($1, $2, $3, $4, $5::jsonb, $6, $7, $8) RETURNING {_COLUMNS}",
        org,
        vendor,
        model,
        from_date,
        None if period is None else json.dumps(period),
        max_output_tokens,
        context_window,
        actor,
    )
    assert row is not None
    return row


async def list_latest(
    connection: Connection, org: str, vendor: str | None = None, model: str | None = None
) -> Sequence[Record]:
    """The prices that hold, by vendor, model and day."""
    rows = await connection.fetch(_LATEST, org, vendor, model)
    return [row for row in rows if row["period"] is not None]


async def list_history(
    connection: Connection, org: str, vendor: str | None = None, model: str | None = None
) -> Sequence[Record]:
    """Every row there ever was, latest first."""
    return await connection.fetch(
        f"SELECT {_COLUMNS} FROM price_overrides WHERE org = $1"
        " AND ($2::text IS NULL OR vendor = $2) AND ($3::text IS NULL OR model = $3) ORDER BY override_id DESC",
        org,
        vendor,
        model,
    )


async def list_own(connection: Connection, org: str) -> list[OwnPrice]:
    """The prices that hold, to be compiled."""
    return [
        OwnPrice(
            row["vendor"],
            row["model"],
            row["from_date"],
            json.loads(row["period"]),
            row["max_output_tokens"],
            row["context_window"],
        )
        for row in await list_latest(connection, org)
    ]
