"""Compiles an org's rows into what gateways decide with. Pure: equal rows give equal bytes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from services.core.budgets import SCOPE_KINDS, Budget
from services.core.identity import KeyRecord
from services.core.snapshot import Connection, Overrides, RouteRule, Snapshot, UnknownModels

_REJECT: Final = UnknownModels("reject")


@dataclass(frozen=True, slots=True)
class OrgRecord:
    """An org's settings. `hold_ms`: how long a hold lives; `book_expired`: an expired hold is booked, not released."""

    name: str
    config_version: int
    catalog_version: str
    hold_ms: int
    book_expired: bool
    unknown_models: UnknownModels = _REJECT
    allow_unpriced_routes: bool = False


@dataclass(frozen=True, slots=True)
class HashedKey:
    """A key as stored: its HMAC, and what it stands for.

    `is_forgotten`: it was revoked so long ago that no publication from before can still be under way.
    """

    key_hash: str
    record: KeyRecord
    is_revoked: bool
    is_forgotten: bool = False


@dataclass(frozen=True, slots=True)
class CompiledKeys:
    """Live keys by hash, and the hashes of revoked and of forgotten ones; each key is one of the three."""

    live: Mapping[str, KeyRecord]
    revoked: tuple[str, ...]
    forgotten: tuple[str, ...]


def compile_snapshot(
    org: OrgRecord,
    budgets: Iterable[Budget],
    connections: Iterable[Connection],
    overrides: Overrides | None = None,
    rules: Iterable[RouteRule] = (),
    caps: Iterable[Budget] = (),
) -> Snapshot:
    """The org's snapshot: budgets and caps from the widest scope to the narrowest, then by id; the rest by vendor."""
    return Snapshot(
        org=org.name,
        version=org.config_version,
        catalog_version=org.catalog_version,
        hold_ms=org.hold_ms,
        book_expired=org.book_expired,
        budgets=tuple(sorted((*budgets, *caps), key=lambda each: (SCOPE_KINDS.index(each.scope_kind), each.budget_id))),
        connections={each.vendor: each for each in sorted(connections, key=lambda each: each.vendor)},
        overrides=overrides,
        unknown_models=org.unknown_models,
        allow_unpriced_routes=org.allow_unpriced_routes,
        rules=tuple(sorted(rules, key=lambda each: (each.vendor, each.route))),
    )


def compile_keys(keys: Iterable[HashedKey]) -> CompiledKeys:
    """An org's keys as they are published."""
    live: dict[str, KeyRecord] = {}
    revoked: list[str] = []
    forgotten: list[str] = []
    for key in keys:
        if not key.is_revoked:
            live[key.key_hash] = key.record
        else:
            (forgotten if key.is_forgotten else revoked).append(key.key_hash)
    return CompiledKeys(live, tuple(revoked), tuple(forgotten))
