"""What an org has spent by billing class, project or session: pages of sums, all of one moment of the ledger (BU-7)."""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from services.core.codec_fields import format_time
from services.core.money import format_usd
from services.core.ports import LedgerStore, Query
from services.ledger.query import COLUMNS, SPEND_FIGURES, CursorError, Scope, spends

BillingDimension = Literal["billing_class", "project", "session"]

_GIVEN_AS: Final = "nextCursor"
_MAX_INT128: Final = 2**127 - 1
_MAX_INSTANT_MS: Final = 10**15
# Rows are only ever added, so that those recorded before a moment stay the same ones: pages add up, whatever comes in.
_SEEN: Final = " AND recorded_at < fromUnixTimestamp64Milli({as_of_ms:Int64}, 'UTC')"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page goes on: after the row of `spent_nano` and `value`, in sums since `since_ms` as of `as_of_ms`."""

    since_ms: int
    as_of_ms: int
    spent_nano: int
    value: str


@dataclass(frozen=True, slots=True)
class BillingQuery:
    """What is asked for: sums `by` one dimension of what lies in `scope`, but for its span of time."""

    scope: Scope
    by: BillingDimension
    window: str

    @property
    def digest(self) -> str:
        """Tells whether a cursor is one of this query's: its pages are of no use to another."""
        asked = [self.scope.org, sorted(self.scope.columns.items()), self.scope.billing_class, self.by, self.window]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


async def billing_spend(
    store: LedgerStore, query: BillingQuery, since_ms: int, limit: int, cursor: str | None
) -> dict[str, Any]:
    """One page, dearest first, and of equals by value. A cursor has its own `since_ms`.

    Raises `CursorError` and `UnavailableError`.
    """
    after = None if cursor is None else decode_place(query, cursor)
    if after is None:
        ((now,),) = await store.query(Query("SELECT toUnixTimestamp64Milli(now64(3)) AS now_ms"))
        as_of_ms: int = now["now_ms"]
    else:
        since_ms, as_of_ms = after.since_ms, after.as_of_ms
    scope = Scope(query.scope.org, query.scope.columns, None, since_ms, None, query.scope.billing_class)
    where, parameters = scope.conditions()
    parameters |= {"as_of_ms": as_of_ms, "rows": limit + 1}
    counted = f"FROM events WHERE {where}{_SEEN} AND {spends(_SEEN)}"
    having = ""
    if after is not None:
        having = "HAVING spent_nano < {spent:Int128} OR (spent_nano = {spent:Int128} AND value > {after:String})"
        parameters |= {"spent": after.spent_nano, "after": after.value}
    rows_of = f"""
        SELECT toString({COLUMNS[query.by]}) AS value, {SPEND_FIGURES},
               toUnixTimestamp64Milli(min(time)) AS first_ms, toUnixTimestamp64Milli(max(time)) AS last_ms
        {counted} GROUP BY value {having} ORDER BY spent_nano DESC, value LIMIT {{rows:UInt32}}
    """
    rows, (total,) = await store.query(
        Query(rows_of, parameters),
        Query(f"SELECT {SPEND_FIGURES} {counted}", parameters),
    )
    shown = rows[:limit]
    last = shown[-1] if len(rows) > limit else None
    return {
        "orgId": query.scope.org,
        "by": query.by,
        "since": format_time(since_ms),
        "asOf": format_time(as_of_ms),
        "rows": [_row_fields(row) for row in shown],
        "total": _figures(total),
        _GIVEN_AS: None
        if last is None
        else encode_place(query, Place(since_ms, as_of_ms, last["spent_nano"], last["value"])),
    }


def encode_place(query: BillingQuery, place: Place) -> str:
    """A cursor of a query."""
    text = json.dumps([query.digest, place.since_ms, place.as_of_ms, place.spent_nano, place.value])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_place(query: BillingQuery, cursor: str) -> Place:
    """The place of `encode_place` text; raises `CursorError` for any other, that of another query included."""
    try:
        padded = cursor.encode() + b"=" * (-len(cursor) % 4)
        fields = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError) as error:
        raise CursorError("not a cursor", _GIVEN_AS) from error
    match fields:
        case [query.digest, int(since_ms), int(as_of_ms), int(spent_nano), str(value)] if (
            not any(isinstance(each, bool) for each in fields)
            and 0 <= since_ms <= as_of_ms < _MAX_INSTANT_MS
            and abs(spent_nano) <= _MAX_INT128
        ):
            return Place(since_ms, as_of_ms, spent_nano, value)
    raise CursorError("not a cursor of this query", _GIVEN_AS)


def _row_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "value": row["value"] or None,
        **_figures(row),
        "firstAt": format_time(row["first_ms"]),
        "lastAt": format_time(row["last_ms"]),
    }


def _figures(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "costUsd": format_usd(row["spent_nano"]),
        "calls": row["settled"] + row["expired"],
        "expired": row["expired"],
        "inputTokens": row["input_tokens"],
        "outputTokens": row["output_tokens"],
    }
