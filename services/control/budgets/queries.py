"""SQL of budgets."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from asyncpg import Connection, Record

from services.core.budgets import MAX_DEPTH, Budget
from services.core.windows import Window, WindowText, window_text

# In the order of `_values`.
_WRITTEN: Final = (
    "limit_nano", "estimate", "time_window", "zone", "week_start", "anchor_day", "anchor_month", "anchor", "expression",
    "parent_id", "child_mode", "enforcement", "when_full", "downgrade_to", "thresholds", "extend", "since_version",
)  # fmt: skip
_COLUMNS: Final = f"budget_id, scope_kind, scope_value, {', '.join(_WRITTEN)}, created_at, updated_at"


@dataclass(frozen=True, slots=True)
class StoredBudget:
    """A budget, and when it was made and last changed."""

    budget: Budget
    created_at: datetime
    updated_at: datetime


async def list_page(
    connection: Connection, org: str, kind: str | None, value: str | None, after: str, limit: int | None
) -> tuple[StoredBudget, ...]:
    """Budgets of an org, oldest first: of a scope's kind and value where these are named, from behind the id `after`
    on, and `limit` at the most.
    """
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM budgets WHERE org = $1 AND ($2::text IS NULL OR scope_kind = $2)"
        " AND ($3::text IS NULL OR scope_value = $3) AND budget_id > $4 ORDER BY budget_id LIMIT $5",
        org,
        kind,
        value,
        after,
        limit,
    )
    return tuple(_stored(row) for row in rows)


async def list_budgets(connection: Connection, org: str) -> Sequence[Budget]:
    """Every budget of an org."""
    return [stored.budget for stored in await list_page(connection, org, None, None, "", None)]


async def count(connection: Connection, org: str) -> tuple[int, int]:
    """How many budgets an org has, and how many of them have an expression."""
    row = await connection.fetchrow("SELECT count(*), count(expression) FROM budgets WHERE org = $1", org)
    assert row is not None
    return row[0], row[1]


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
    """The budgets of one scope: at most one a window."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM budgets WHERE org = $1 AND scope_kind = $2 AND scope_value = $3 ORDER BY budget_id",
        org,
        scope_kind,
        scope_value,
    )
    return tuple(_stored(row) for row in rows)


async def list_line(connection: Connection, org: str, budget_id: str) -> Sequence[str]:
    """The ids of a budget and its ancestors, from itself up."""
    rows = await connection.fetch(
        "WITH RECURSIVE line AS ("
        " SELECT budget_id, parent_id, 1 AS depth FROM budgets WHERE org = $1 AND budget_id = $2"
        " UNION ALL SELECT above.budget_id, above.parent_id, depth + 1"
        " FROM line JOIN budgets above ON above.org = $1 AND above.budget_id = line.parent_id WHERE depth <= $3)"
        " SELECT budget_id FROM line ORDER BY depth",
        org,
        budget_id,
        MAX_DEPTH,
    )
    return [row["budget_id"] for row in rows]


async def count_generations(connection: Connection, org: str, budget_id: str) -> int:
    """How deep the hierarchy below a budget is, itself included."""
    generations: int = await connection.fetchval(
        "WITH RECURSIVE below AS ("
        " SELECT $2::text AS budget_id, 1 AS depth"
        " UNION ALL SELECT child.budget_id, depth + 1"
        " FROM below JOIN budgets child ON child.org = $1 AND child.parent_id = below.budget_id WHERE depth <= $3)"
        " SELECT max(depth) FROM below",
        org,
        budget_id,
        MAX_DEPTH,
    )
    return generations


async def list_children(connection: Connection, org: str, budget_id: str) -> Sequence[str]:
    """The ids of the budgets whose parent is this one."""
    rows = await connection.fetch(
        "SELECT budget_id FROM budgets WHERE org = $1 AND parent_id = $2 ORDER BY budget_id", org, budget_id
    )
    return [row["budget_id"] for row in rows]


async def insert(connection: Connection, org: str, budget: Budget) -> StoredBudget:
    """Keeps a new budget."""
    places = ", ".join(f"${number + 5}" for number in range(len(_WRITTEN)))
    row = await connection.fetchrow(
        f"INSERT INTO budgets (budget_id, org, scope_kind, scope_value, {', '.join(_WRITTEN)})"
        f" VALUES ($1, $2, $3, $4, {places}) RETURNING {_COLUMNS}",
        budget.budget_id,
        org,
        budget.scope_kind,
        budget.scope_value,
        *_values(budget),
    )
    assert row is not None
    return _stored(row)


async def change(connection: Connection, budget: Budget) -> StoredBudget:
    """Changes a budget that exists, in all but its id and what it caps."""
    places = ", ".join(f"{name} = ${number + 2}" for number, name in enumerate(_WRITTEN))
    row = await connection.fetchrow(
        f"UPDATE budgets SET {places}, updated_at = now() WHERE budget_id = $1 RETURNING {_COLUMNS}",
        budget.budget_id,
        *_values(budget),
    )
    assert row is not None
    return _stored(row)


async def delete(connection: Connection, budget_id: str) -> None:
    """Removes a budget, which must have no children."""
    await connection.execute("DELETE FROM budgets WHERE budget_id = $1", budget_id)


def _values(budget: Budget) -> tuple[Any, ...]:
    text = window_text(budget.window)
    return (
        budget.limit_nano,
        budget.estimate,
        text.window,
        text.zone or "",
        text.week_start,
        text.anchor_day,
        text.anchor_month,
        text.anchor,
        budget.expression,
        budget.parent_id,
        budget.child_mode,
        budget.enforcement,
        budget.when_full,
        budget.downgrade_to,
        list(budget.thresholds),
        budget.extend,
        budget.since_version,
    )


@lru_cache(maxsize=4_096)
def _window(text: WindowText) -> Window:
    """An org's thousands of budgets have a handful of windows."""
    return text.parse()


def _stored(row: Record) -> StoredBudget:
    text = WindowText(
        row["time_window"],
        row["zone"] or None,
        row["week_start"],
        row["anchor_day"],
        row["anchor_month"],
        row["anchor"],
    )
    budget = Budget(
        budget_id=row["budget_id"],
        scope_kind=row["scope_kind"],
        scope_value=row["scope_value"],
        window=_window(text),
        limit_nano=row["limit_nano"],
        estimate=row["estimate"],
        expression=row["expression"],
        parent_id=row["parent_id"],
        child_mode=row["child_mode"],
        enforcement=row["enforcement"],
        when_full=row["when_full"],
        downgrade_to=row["downgrade_to"],
        thresholds=tuple(row["thresholds"]),
        extend=row["extend"],
        since_version=row["since_version"],
    )
    return StoredBudget(budget, row["created_at"], row["updated_at"])
