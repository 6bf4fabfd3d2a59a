"""What an org's ended calls did cost, summed for budgets that are made after them (BU-8).

``POST /internal/v1/orgs/{org}/calls`` asks with, and is answered by, amounts as strings because they may pass 2^53::

    {"before_version", "since_ms", "grain_ms", "budget_ids": [], "below": {"<partition>": <offset>}}

    {"calls": [{"facts": {...}, "admitted_at_ms", "charged": [["<budget id>", "<window>"]], "amount_nano": "123",
                "last_ms"}]}

`facts` are those that decide what a call falls under. A call is looked at by its ending: its settlement, else its
expiry; of two of a kind the first counts, as in the fold. What lies at or past `below` is as if it were not there.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from services.core.backfill import CallQuery, CallSum
from services.core.events import CallFacts, Expiry, Settlement
from services.core.identity import DIMENSIONS, Identity
from services.core.ports import LedgerStore, Query

# The clocks that stamp an ending and its admission differ, but not by this much.
_SLACK_MS: Final = 86_400_000
_ENDING_ORDER: Final = "(type = {expiry:String}, partition, offset)"
_FACTS: Final = (*DIMENSIONS, "key_id", "vendor", "route", "model_requested", "model_priced", "match", "auth_mode")
_TOLD: Final = (*(f"toString(`{name}`)" for name in _FACTS), "arrayMap(tag -> toString(tag), tags)", "config_version")
# When the call was admitted: as the event says, else as its ULID was made, else when it ended (`core.backfill`).
_SAID: Final = (
    "ifNull(toUnixTimestamp64Milli("
    "parseDateTime64BestEffortOrNull(JSONExtractString(raw, 'admitted_at'), 3, 'UTC')), 0)"
)
_IS_ULID: Final = "match(transaction_id, '^[A-Za-z]{1,16}_[0-7][0-9A-HJKMNP-TV-Z]{25}$')"
_MADE: Final = (
    "arraySum(at -> bitShiftLeft(toInt64(position('0123456789ABCDEFGHJKMNPQRSTVWXYZ',"
    " substring(transaction_id, length(transaction_id) - 26 + at, 1)) - 1), toInt64(5 * (10 - at))),"
    " arrayMap(at -> toInt64(at), range(1, 11)))"
)
_ADMITTED: Final = f"multiIf({_SAID} > 0, {_SAID}, {_IS_ULID}, {_MADE}, toUnixTimestamp64Milli(time))"
# The statement is put together from fixed texts; values go in as parameters only.
_CALLS: Final = f"""
SELECT facts, charged, intDiv(admitted_ms, {{grain_ms:Int64}}) * {{grain_ms:Int64}} AS admitted_at_ms,
       sum(toInt128(amount_nano)) AS sum_nano, max(ended_ms) AS last_ms
FROM (
    SELECT argMin(tuple({", ".join(_TOLD)}), {_ENDING_ORDER}) AS facts,
           argMin(cost_nano + booked_nano, {_ENDING_ORDER}) AS amount_nano,
           argMin({_ADMITTED}, {_ENDING_ORDER}) AS admitted_ms,
           argMin(toUnixTimestamp64Milli(time), {_ENDING_ORDER}) AS ended_ms,
           argMin(arraySort(arrayFilter(
               charge -> has({{budget_ids:Array(String)}}, splitByChar('@', charge.1)[1]),
               arrayMap((id, window) -> (toString(id), toString(window)), `charges.budget_id`, `charges.window`)
           )), {_ENDING_ORDER}) AS charged
    FROM events
    WHERE org = {{org:String}} AND type IN ({{settlement:String}}, {{expiry:String}})
      AND time >= fromUnixTimestamp64Milli({{rows_since_ms:Int64}}, 'UTC')
      AND arrayExists((of, bound) -> partition = of AND offset < bound,
                      {{partitions:Array(UInt64)}}, {{bounds:Array(UInt64)}})
    GROUP BY transaction_id
)
WHERE tupleElement(facts, {len(_TOLD)}) < {{before_version:UInt64}} AND admitted_ms >= {{since_ms:Int64}}
GROUP BY facts, charged, admitted_at_ms
"""  # noqa: S608


async def call_sums(store: LedgerStore, org: str, query: CallQuery) -> Sequence[CallSum]:
    """The sums. Raises `UnavailableError`."""
    parameters = {
        "org": org,
        "settlement": Settlement.TYPE,
        "expiry": Expiry.TYPE,
        "grain_ms": query.grain_ms,
        "before_version": query.before_version,
        "since_ms": query.since_ms,
        "rows_since_ms": max(0, query.since_ms - _SLACK_MS),
        "budget_ids": list(query.budget_ids),
        "partitions": list(query.below.keys()),
        "bounds": list(query.below.values()),
    }
    if not query.below:
        return []
    (rows,) = await store.query(Query(_CALLS, parameters))
    return [
        CallSum(
            _facts(org, row["facts"]),
            row["admitted_at_ms"],
            tuple((budget_id, window) for budget_id, window in row["charged"]),
            row["sum_nano"],
            row["last_ms"],
        )
        for row in rows
    ]


def _facts(org: str, told: Any) -> CallFacts:
    values = tuple(told.values()) if isinstance(told, Mapping) else tuple(told)
    named = dict(zip(_FACTS, values, strict=False))
    tags, config_version = values[len(_FACTS) :]
    who = {name: named[name] or None for name in DIMENSIONS}
    return CallFacts(
        Identity(org, named["key_id"], tags=tuple(tags), **who),
        vendor=named["vendor"],
        route=named["route"],
        model_requested=named["model_requested"],
        model_priced=named["model_priced"],
        match=named["match"],
        catalog_version="",
        config_version=config_version,
        auth_mode=named["auth_mode"],
    )


def query_of(fields: Mapping[str, Any]) -> CallQuery:
    """The question of `core.backfill.query_fields`.

    Raises `ValueError`, `KeyError`, `TypeError` or `AttributeError` for anything else.
    """
    query = CallQuery(
        int(fields["before_version"]),
        int(fields["since_ms"]),
        int(fields["grain_ms"]),
        tuple(str(each) for each in fields["budget_ids"]),
        {int(partition): int(offset) for partition, offset in fields["below"].items()},
    )
    if query.grain_ms < 1 or min(query.since_ms, query.before_version, *query.below.values(), 0) < 0:
        raise ValueError("grain_ms must be 1 or more, and nothing below 0")
    return query


def calls_fields(sums: Sequence[CallSum]) -> dict[str, Any]:
    """The answer as JSON."""
    return {
        "calls": [
            {
                "facts": {
                    "key_id": each.facts.identity.key_id,
                    **{name: getattr(each.facts.identity, name) for name in DIMENSIONS},
                    "tags": list(each.facts.identity.tags),
                    "vendor": each.facts.vendor,
                    "route": each.facts.route,
                    "model_requested": each.facts.model_requested,
                    "model_priced": each.facts.model_priced,
                    "match": each.facts.match,
                    "auth_mode": each.facts.auth_mode,
                    "config_version": each.facts.config_version,
                },
                "admitted_at_ms": each.admitted_at_ms,
                "charged": [list(charge) for charge in each.charged],
                "amount_nano": str(each.amount_nano),
                "last_ms": each.last_ms,
            }
            for each in sums
        ]
    }
