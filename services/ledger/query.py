"""Every question callers may put to the ledger, as SQL over `events`."""

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from services.core.codec import decode
from services.core.components import MILLION
from services.core.events import Denial, Expiry, HoldResized, Reservation, Settlement
from services.core.money import divide_half_even, format_usd
from services.core.parts import ROUTE as PARTS_ROUTE
from services.core.ports import LedgerStore, Query
from services.ledger.transactions import State, Transaction, merge

Dimension = Literal[
    "org", "team", "agent", "user", "project", "session", "environment", "key", "vendor", "model", "billing_class"
]

_KINDS: Final = {
    "reservation": Reservation.TYPE,
    "resized": HoldResized.TYPE,
    "settlement": Settlement.TYPE,
    "expiry": Expiry.TYPE,
    "denial": Denial.TYPE,
}
_RAW: Final = "SELECT raw, trace_id FROM events"
_IN_ORDER: Final = "ORDER BY topic, partition, `offset`"
_DAY_MS: Final = 86_400_000
# Dearest first; the rest of a dimension with more values than this is in the total only.
MAX_SPEND_ROWS: Final = 1_000
COLUMNS: Final[Mapping[Dimension, str]] = {
    **{name: name for name in ("org", "team", "agent", "user", "project", "session", "environment", "vendor")},
    "key": "key_id",
    "model": "model_priced",
    "billing_class": "lower(concat(auth_mode, '.', vendor))",
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
# A call that went on to another vendor or model has said so on its way.
_WENT_ON: Final = (
    "transaction_id IN (SELECT transaction_id FROM events WHERE org = {org:String} AND type = {resized:String}"
)
SPEND_FIGURES: Final = """
    sum(toInt128(cost_nano + booked_nano)) AS spent_nano,
    countIf(type = {settlement:String}) AS settled,
    countIf(type = {expiry:String}) AS expired,
    sum(usage['input_tokens']) AS input_tokens,
    sum(usage['output_tokens']) AS output_tokens
"""


def spends(seen: str = "") -> str:
    """A condition: the event puts money into spend, as a settlement, or as an expiry that none has corrected.

    What a part of a budget has spent is there call by call: the part itself is not (`core.parts`).
    `seen` narrows down, beginning with AND, the settlements that are looked at.
    """
    settled = f"org = {{org:String}} AND type = {{settlement:String}} AND transaction_id IN {_EXPIRED}{seen}"
    corrected = f"(SELECT transaction_id FROM events WHERE {settled})"  # noqa: S608
    ended = f"type = {{settlement:String}} OR (type = {{expiry:String}} AND transaction_id NOT IN {corrected})"
    return f"(route != '{PARTS_ROUTE}' AND ({ended}))"


class CursorError(ValueError):
    """The text is not a cursor that the ledger gave, in an answer's field `given_as`."""

    def __init__(self, reason: str, given_as: str = "next_cursor") -> None:
        super().__init__(reason)
        self.given_as = given_as


@dataclass(frozen=True, slots=True)
class Scope:
    """What a caller may see and asks for: one org, columns that must have a value, and a span of event time.

    `since_ms` is inclusive, `until_ms` exclusive. `model` is what was asked for or what it was priced as.
    `billing_class` is an auth mode and a vendor (BU-7).
    """

    org: str
    columns: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    billing_class: str | None = None

    def conditions(self, *, follow: bool = False) -> tuple[str, dict[str, object]]:
        """The scope as a WHERE clause and its parameters.

        With `follow`, calls that went on to the vendor or model are those of it, too, whichever event is looked at.
        """
        parts, parameters = ["org = {org:String}"], dict[str, object](_KINDS, org=self.org)
        for name, value in self.columns.items():
            if name not in SCOPE_COLUMNS:
                raise ValueError(f"{name!r} is not a column to filter by")
            condition = f"{name} = {{{name}:String}}"
            parts.append(f"({condition} OR {_WENT_ON} AND {condition}))" if follow and name == "vendor" else condition)
            parameters[name] = value
        if self.model is not None:
            went_on = f" OR {_WENT_ON} AND model_priced = {{model:String}})" if follow else ""
            parts.append(f"(model_requested = {{model:String}} OR model_priced = {{model:String}}{went_on})")
            parameters["model"] = self.model
        if self.billing_class is not None:
            parts.append(f"{COLUMNS['billing_class']} = {{billing_class:String}}")
            parameters["billing_class"] = self.billing_class
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
    where, parameters = scope.conditions(follow=True)
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
    dimensions have the value null. What is past `MAX_SPEND_ROWS` rows is in the total alone; how many that are is told.
    """
    where, parameters = scope.conditions()
    rows_of = f"""
        SELECT {COLUMNS[by]} AS value, {SPEND_FIGURES}, count() OVER () AS found
        FROM events WHERE {where} AND {spends()}
        GROUP BY value ORDER BY spent_nano DESC, value LIMIT {{rows:UInt32}}
    """  # noqa: S608
    # A denial has neither cost nor usage, so that it adds to nothing but its own count.
    total_of = f"""
        SELECT {SPEND_FIGURES}, countIf(type = {{denial:String}}) AS denied
        FROM events WHERE {where} AND (type = {{denial:String}} OR {spends()})
    """  # noqa: S608
    rows, (total,) = await store.query(
        Query(rows_of, {**parameters, "rows": MAX_SPEND_ROWS}), Query(total_of, parameters)
    )
    return {
        "rows": [{"value": row["value"] or None, **_spend_fields(row)} for row in rows],
        "rows_left_off": rows[0]["found"] - len(rows) if rows else 0,
        "total": {**_spend_fields(total), "denied": total["denied"]},
    }


def _spend_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    counted = ("settled", "expired", "input_tokens", "output_tokens")
    return {"cost_usd": format_usd(row["spent_nano"]), **{name: row[name] for name in counted}}


async def estimates(store: LedgerStore, scope: Scope) -> list[dict[str, Any]]:
    """How well calls were estimated, by vendor, model, route and way of estimating; the least well first.

    A call was under-estimated when it cost more than was held for it. What its caller has stated was not estimated.
    Raises `UnavailableError`.
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
        WHERE {where} AND type = {{settlement:String}} AND estimate_mode != 'stated'
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
