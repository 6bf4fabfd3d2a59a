"""Every question callers may put to the ledger, as SQL over `events`."""

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from services.core.codec import decode
from services.core.components import MILLION
from services.core.events import Denial, Expiry, Reservation, Settlement
from services.core.money import divide_half_even, format_usd
from services.core.ports import LedgerStore, Query
from services.ledger.transactions import State, Transaction, merge

Dimension = Literal["org", "team", "agent", "vendor", "model"]

_KINDS: Final = {
    "reservation": Reservation.TYPE,
    "settlement": Settlement.TYPE,
    "expiry": Expiry.TYPE,
    "denial": Denial.TYPE,
}
_RAW: Final = "SELECT raw, trace_id FROM events"
_IN_ORDER: Final = "ORDER BY topic, partition, `offset`"
_DAY_MS: Final = 86_400_000
_COLUMNS: Final[Mapping[Dimension, str]] = {
    "org": "org",
    "team": "team",
    "agent": "agent",
    "vendor": "vendor",
    "model": "model_priced",
}
# Statements are put together from these fixed texts; values go in as parameters only.
_SETTLED: Final = "(SELECT transaction_id FROM events WHERE org = {org:String} AND type = {settlement:String})"
_EXPIRED: Final = "(SELECT transaction_id FROM events WHERE org = {org:String} AND type = {expiry:String})"
_RESERVED: Final = "type = {reservation:String} AND transaction_id"
_STATE_CONDITIONS: Final[Mapping[State, str]] = {
    "denied": "type = {denial:String}",
    "held": f"{_RESERVED} NOT IN {_SETTLED} AND transaction_id NOT IN {_EXPIRED}",
    "settled": f"{_RESERVED} IN {_SETTLED}",
    "expired": f"{_RESERVED} IN {_EXPIRED} AND transaction_id NOT IN {_SETTLED}",
}


class CursorError(ValueError):
    """The text is not a cursor that the ledger gave."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What a caller may see and asks for: one org, columns that must have a value, and a span of event time.

    `since_ms` is inclusive, `until_ms` exclusive. `model` is what was asked for or what it was priced as.
    """

    org: str
    columns: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None

    def conditions(self) -> tuple[str, dict[str, object]]:
        """The scope as a WHERE clause and its parameters."""
        parts, parameters = ["org = {org:String}"], dict[str, object](_KINDS, org=self.org)
        for name, value in self.columns.items():
            if name not in SCOPE_COLUMNS:
                raise ValueError(f"{name!r} is not a column to filter by")
            parts.append(f"{name} = {{{name}:String}}")
            parameters[name] = value
        if self.model is not None:
            parts.append("(model_requested = {model:String} OR model_priced = {model:String})")
            parameters["model"] = self.model
        for name, comparison, bound in (("since_ms", ">=", self.since_ms), ("until_ms", "<", self.until_ms)):
            if bound is not None:
                parts.append(f"time {comparison} fromUnixTimestamp64Milli({{{name}:Int64}}, 'UTC')")
                parameters[name] = bound
        return " AND ".join(parts), parameters


SCOPE_COLUMNS: Final = frozenset({"team", "agent", "user", "project", "session", "environment", "vendor"})


@dataclass(frozen=True, slots=True)
class Page:
    """Transactions, newest first, and the cursor that goes on after them; None at the end."""

    transactions: tuple[Transaction, ...]
    next_cursor: str | None


async def find_transaction(store: LedgerStore, scope: Scope, transaction_id: str) -> Transaction | None:
    """The transaction with this id, if it lies within the scope. Raises `UnavailableError`."""
    where, parameters = scope.conditions()
    statement = f"{_RAW} WHERE {where} AND transaction_id = {{transaction_id:String}} {_IN_ORDER}"
    (rows,) = await store.query(Query(statement, {**parameters, "transaction_id": transaction_id}))
    return _transactions(rows).get(transaction_id)


async def list_transactions(
    store: LedgerStore, scope: Scope, state: State | None, limit: int, cursor: str | None
) -> Page:
    """Up to `limit` transactions by the time they were opened, newest first. A cursor stays good whatever is added.

    Raises `CursorError` and `UnavailableError`.
    """
    where, parameters = scope.conditions()
    condition = _STATE_CONDITIONS[state] if state else "type IN ({reservation:String}, {denial:String})"
    if cursor is not None:
        where += " AND (time, transaction_id) < (fromUnixTimestamp64Milli({at_ms:Int64}, 'UTC'), {after:String})"
        parameters["at_ms"], parameters["after"] = decode_cursor(cursor)
    statement = f"""
        SELECT transaction_id, toUnixTimestamp64Milli(time) AS time_ms
        FROM events WHERE {where} AND {condition}
        ORDER BY time DESC, transaction_id DESC LIMIT {{rows:UInt32}}
    """  # noqa: S608
    (rows,) = await store.query(Query(statement, {**parameters, "rows": limit + 1}))
    shown = rows[:limit]
    transactions = await _load(store, scope.org, shown)
    last = shown[-1] if len(rows) > limit else None
    return Page(transactions, encode_cursor(last["time_ms"], last["transaction_id"]) if last is not None else None)


async def _load(store: LedgerStore, org: str, openings: Sequence[Mapping[str, Any]]) -> tuple[Transaction, ...]:
    if not openings:
        return ()
    ids = [row["transaction_id"] for row in openings]
    # Clocks of those who end a call may differ from that of its gateway, but not by a day.
    since_ms = max(0, openings[-1]["time_ms"] - _DAY_MS)
    statement = (
        f"{_RAW} WHERE org = {{org:String}} AND transaction_id IN {{ids:Array(String)}}"
        f" AND time >= fromUnixTimestamp64Milli({{since_ms:Int64}}, 'UTC') {_IN_ORDER}"
    )
    (rows,) = await store.query(Query(statement, {"org": org, "ids": ids, "since_ms": since_ms}))
    found = _transactions(rows)
    return tuple(found[name] for name in ids)


async def spend(store: LedgerStore, scope: Scope, by: Dimension) -> dict[str, Any]:
    """Spend within the scope by one dimension, dearest first, with totals. Raises `UnavailableError`.

    A call counts when it ended: at its cost, or at what its expiry booked until a settlement corrects that. Open
    dimensions have the value null.
    """
    where, parameters = scope.conditions()
    statement = f"""
        SELECT {_COLUMNS[by]} AS value,
               sum(toInt128(cost_nano + booked_nano)) AS spent_nano,
               countIf(type = {{settlement:String}}) AS settled,
               countIf(type = {{expiry:String}}) AS expired,
               sum(usage['input_tokens']) AS input_tokens,
               sum(usage['output_tokens']) AS output_tokens
        FROM events
        WHERE {where} AND (type = {{settlement:String}}
            OR (type = {{expiry:String}} AND transaction_id NOT IN (
                SELECT transaction_id FROM events
                WHERE org = {{org:String}} AND type = {{settlement:String}} AND transaction_id IN {_EXPIRED})))
        GROUP BY value ORDER BY spent_nano DESC, value
    """  # noqa: S608
    denials = f"SELECT count() AS denied FROM events WHERE {where} AND type = {{denial:String}}"  # noqa: S608
    rows, (refused,) = await store.query(Query(statement, parameters), Query(denials, parameters))
    counted = ("settled", "expired", "input_tokens", "output_tokens")
    return {
        "rows": [
            {"value": row["value"] or None, "cost_usd": format_usd(row["spent_nano"])}
            | {name: row[name] for name in counted}
            for row in rows
        ],
        "total": {
            "cost_usd": format_usd(sum(row["spent_nano"] for row in rows)),
            **{name: sum(row[name] for row in rows) for name in counted},
            "denied": refused["denied"],
        },
    }


async def estimates(store: LedgerStore, scope: Scope) -> list[dict[str, Any]]:
    """How well calls were estimated, by vendor, model, route and way of estimating; the least well first.

    A call was under-estimated when it cost more than was held for it. Raises `UnavailableError`.
    """
    where, parameters = scope.conditions()
    # Settlements of earlier releases do not say how their holds were sized: there was one way only.
    statement = f"""
        SELECT vendor, model_priced AS model, route,
               if(estimate_mode = '', 'strict', toString(estimate_mode)) AS mode,
               count() AS settled,
               countIf(cost_nano > held_nano) AS underestimated,
               sum(toInt128(held_nano)) AS held_in_all,
               sum(toInt128(cost_nano)) AS cost_in_all
        FROM events
        WHERE {where} AND type = {{settlement:String}}
        GROUP BY vendor, model, route, mode
        ORDER BY underestimated / settled DESC, settled DESC, vendor, model, route, mode
    """  # noqa: S608
    (rows,) = await store.query(Query(statement, parameters))
    return [
        {
            **{name: row[name] for name in ("vendor", "model", "route")},
            "estimate_mode": row["mode"],
            "settled": row["settled"],
            "underestimated": row["underestimated"],
            "underestimated_ppm": divide_half_even(row["underestimated"] * MILLION, row["settled"]),
            "held_usd": format_usd(row["held_in_all"]),
            "cost_usd": format_usd(row["cost_in_all"]),
        }
        for row in rows
    ]


async def count_events(store: LedgerStore, org: str) -> dict[str, int]:
    """How many events of each type an org has in the ledger. Raises `UnavailableError`."""
    statement = "SELECT type, count() AS events FROM events WHERE org = {org:String} GROUP BY type"
    (rows,) = await store.query(Query(statement, {"org": org}))
    return {row["type"]: row["events"] for row in rows}


def encode_cursor(time_ms: int, transaction_id: str) -> str:
    """A cursor that goes on after this transaction."""
    return base64.urlsafe_b64encode(f"{time_ms}:{transaction_id}".encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> tuple[int, str]:
    """Time and id of `encode_cursor` text; raises `CursorError`."""
    try:
        padded = cursor.encode() + b"=" * (-len(cursor) % 4)
        time_text, separator, name = base64.b64decode(padded, altchars=b"-_", validate=True).decode().partition(":")
    except (binascii.Error, UnicodeError) as error:
        raise CursorError("not a cursor") from error
    if not (separator and name and time_text.isascii() and time_text.isdecimal() and len(time_text) <= 15):
        raise CursorError("not a cursor")
    return int(time_text), name


def _transactions(rows: Iterable[Mapping[str, Any]]) -> dict[str, Transaction]:
    return merge((decode(row["raw"].encode()).event, row["trace_id"]) for row in rows)
