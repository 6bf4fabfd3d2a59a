"""SQL of budgets."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from asyncpg import Connection, Record

from services.core.budgets import Budget, EstimateMode
from services.core.windows import CalendarWindow, Window, format_window, parse_window

_COLUMNS = "budget_id, scope_kind, scope_value, time_window, zone, limit_nano, estimate, created_at, updated_at"


@dataclass(frozen=True, slots=True)
class StoredBudget:
    """A budget, and when it was made and last changed."""

    budget: Budget
    created_at: datetime
    updated_at: datetime


async def list_stored(connection: Connection, org: str) -> tuple[StoredBudget, ...]:
    """Every budget of an org, oldest first."""
    rows = await connection.fetch(f"SELECT {_COLUMNS} FROM budgets WHERE org = $1 ORDER BY budget_id", org)
    return tuple(_stored(row) for row in rows)


async def list_budgets(connection: Connection, org: str) -> Sequence[Budget]:
    """Every budget of an org."""
    return [stored.budget for stored in await list_stored(connection, org)]


async def find(connection: Connection, org: str, budget_id: str) -> StoredBudget | None:
    """A budget of an org by id."""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM budgets WHERE org = $1 AND budget_id = $2",
        org,
        budget_id,
    )
    return None if row is None else _stored(row)


async def list_of_scope(
    connection: Connection, org: str, scope_kind: str, scope_value: str
) -> tuple[StoredBudget, ...]:
    """The budgets of one scope: at most one a window and zone."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM budgets WHERE org = $1 AND scope_kind = $2 AND scope_value = $3",
        org,
        scope_kind,
        scope_value,
    )
    return tuple(_stored(row) for row in rows)


async def insert(connection: Connection, org: str, budget: Budget) -> StoredBudget:
    """Keeps a new budget."""
    row = await connection.fetchrow(
        "INSERT INTO budgets (budget_id, org, scope_kind, scope_value, time_window, zone, limit_nano, estimate)"
        f" VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING {_COLUMNS}",
        budget.budget_id,
        org,
        budget.scope_kind,
        budget.scope_value,
        format_window(budget.window),
        _zone_text(budget.window),
        budget.limit_nano,
        budget.estimate,
    )
    assert row is not None
    return _stored(row)


async def change(connection: Connection, budget_id: str, limit_nano: int, estimate: EstimateMode) -> StoredBudget:
    """Changes the limit and the estimates of a budget that exists."""
    row = await connection.fetchrow(
        "UPDATE budgets SET limit_nano = $2, estimate = $3, updated_at = now() WHERE budget_id = $1"
        f" RETURNING {_COLUMNS}",
        budget_id,
        limit_nano,
        estimate,
    )
    assert row is not None
    return _stored(row)


async def delete(connection: Connection, budget_id: str) -> None:
    """Removes a budget."""
    await connection.execute("DELETE FROM budgets WHERE budget_id = $1", budget_id)


def _stored(row: Record) -> StoredBudget:
    window = parse_window(row["time_window"], row["zone"] or None)
    budget = Budget(row["budget_id"], row["scope_kind"], row["scope_value"], window, row["limit_nano"], row["estimate"])
    return StoredBudget(budget, row["created_at"], row["updated_at"])


def _zone_text(window: Window) -> str:
    return window.zone if isinstance(window, CalendarWindow) else ""
