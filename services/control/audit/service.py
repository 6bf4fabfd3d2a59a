"""The audit trail: who changed what, when."""

import json
from typing import Any

from pydantic import BaseModel, Field

from services.control.audit import queries
from services.control.auth import Admin
from services.control.fields import Instant


class AuditEntry(BaseModel):
    """One change. `actor` is a key's id, or ``bootstrap`` or ``control`` where no person asked."""

    entry_id: int
    config_version: int
    actor: str
    action: str = Field(examples=["budget.update"])
    target: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    at: Instant


class AuditPage(BaseModel):
    """Entries, newest first. `next` goes into ``before`` for the page that follows; null on the last."""

    entries: list[AuditEntry]
    next: int | None


async def list_entries(admin: Admin, limit: int, before: int | None) -> AuditPage:
    """A page of the caller's org's trail."""
    async with admin.context.database.snapshot() as connection:
        rows = await queries.page(connection, admin.org, limit + 1, before)
    entries = [
        AuditEntry(
            **{name: row[name] for name in ("entry_id", "config_version", "actor", "action", "target", "at")},
            before=None if row["before"] is None else json.loads(row["before"]),
            after=None if row["after"] is None else json.loads(row["after"]),
        )
        for row in rows[:limit]
    ]
    return AuditPage(entries=entries, next=entries[-1].entry_id if len(rows) > limit else None)
