"""The compiled snapshot of an org: all a gateway needs to decide, versioned, published into the hot state."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.core.budgets import Budget
from services.core.windows import CalendarWindow, RollingWindow, Window


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach a vendor for an org. `sealed_key` is the vendor key, AES-256-GCM under the org's own key (VA-1)."""

    vendor: str
    dialect: str
    base_url: str
    sealed_key: str | None
    prices_as: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An org as compiled: `version` grows with every change."""

    org: str
    version: int
    catalog_version: str
    hold_ms: int
    book_expired: bool
    budgets: tuple[Budget, ...]
    connections: Mapping[str, Connection]


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """The snapshot as JSON."""
    return json.dumps(
        {
            "org": snapshot.org,
            "version": snapshot.version,
            "catalog_version": snapshot.catalog_version,
            "hold_ms": snapshot.hold_ms,
            "book_expired": snapshot.book_expired,
            "budgets": [
                {
                    "budget_id": each.budget_id,
                    "scope_kind": each.scope_kind,
                    "scope_value": each.scope_value,
                    "window": _window_fields(each.window),
                    "limit_nano": each.limit_nano,
                }
                for each in snapshot.budgets
            ],
            "connections": [
                {
                    "vendor": each.vendor,
                    "dialect": each.dialect,
                    "base_url": each.base_url,
                    "sealed_key": each.sealed_key,
                    "prices_as": each.prices_as,
                }
                for each in snapshot.connections.values()
            ],
        },
        sort_keys=True,
        separators=(",", ":"),
    ).encode()


def decode_snapshot(value: bytes) -> Snapshot:
    """The snapshot of `encode_snapshot` bytes; fields that a newer control adds are passed over.

    Raises `ValueError`, `KeyError`, `TypeError` or `AttributeError` for anything else.
    """
    fields: dict[str, Any] = json.loads(value)
    return Snapshot(
        org=fields["org"],
        version=fields["version"],
        catalog_version=fields["catalog_version"],
        hold_ms=fields["hold_ms"],
        book_expired=fields["book_expired"],
        budgets=tuple(
            Budget(
                each["budget_id"],
                each["scope_kind"],
                each["scope_value"],
                _window_of(each["window"]),
                each["limit_nano"],
            )
            for each in fields["budgets"]
        ),
        connections={each["vendor"]: _connection_of(each) for each in fields["connections"]},
    )


def _connection_of(fields: dict[str, Any]) -> Connection:
    return Connection(
        fields["vendor"], fields["dialect"], fields["base_url"], fields["sealed_key"], fields["prices_as"]
    )


def _window_fields(window: Window) -> dict[str, Any]:
    if isinstance(window, CalendarWindow):
        return {"unit": window.unit, "zone": window.zone}
    return {"length_ms": window.length_ms}


def _window_of(fields: dict[str, Any]) -> Window:
    return (
        RollingWindow(fields["length_ms"]) if "length_ms" in fields else CalendarWindow(fields["unit"], fields["zone"])
    )
