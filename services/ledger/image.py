"""What the ledger's rows say of an org's hot state, for its rebuild: the same as folding all of them with `core.fold`.

The JSON of ``GET /internal/v1/orgs/{org}/image``, amounts as strings because they may pass 2^53::

    {"next_offsets": [{"topic", "partition", "offset"}],
     "spent": [{"budget_id", "window", "spent_nano": "123"}],
     "holds": [{"reservation_id", "phase", "amount_nano": "123", "charges": [{"budget_id", "scope", "window"}],
                "context", "expires_at_ms", "booked_nano": "0", "admitted_at_ms", "forget_at_ms",
                "resized_at_ms"}],
     "producers": [{"topic", "partition", "producer", "sequence"}]}

`spent` has the windows that can still be alive: of those without an end, all lifetimes, and the sessions that something
of has ended of late (`SESSION_IDLE_MS`). `holds` are the open ones, those recorded as ended of late, and those
that expired, or whose ending may be told again, of late (`CORRECTION_MS`, `TOLD_AGAIN_MS`) or while their windows are
alive: an event that is still to come must find them ended. All of it is as of `next_offsets`, exclusive. What is so old
that no window can be alive for it any more is not looked at.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from services.core.budgets import Charge
from services.core.codec import charges_fields, decode
from services.core.events import Denial, Expiry, HoldResized, Reservation, Settlement
from services.core.fold import step_of
from services.core.hotstate import (
    CORRECTION_MS,
    EXPIRY_PRODUCER,
    SESSION_IDLE_MS,
    TOLD_AGAIN_MS,
    TOMBSTONE_MS,
    WINDOW_GRACE_MS,
    Hold,
    HoldPhase,
    OrgImage,
    counts_until_ms,
)
from services.core.ports import LedgerImage, LedgerStore, Query, TopicPartition
from services.core.windows import LONGEST_CALENDAR_MS, MAX_ROLLING_MS, ROLLING_BUCKETS, RollingWindow, parse_span
from services.ledger.fences import NEXT_OFFSETS, read_next_offsets

# The hot state's clock may be behind ours by this much; what it still needs must not be left out.
CLOCK_SLACK_MS: Final = 3_600_000
_DAY_MS: Final = 86_400_000
# From a call's admission to the instant when no charge of it can change a figure any more, at the most: a ring's bucket
# stays for as many more as the ring has. What is charged to a session or a lifetime is summed up without this bound.
LONGEST_LIFE_MS: Final = max(
    (ROLLING_BUCKETS + 1) * RollingWindow(MAX_ROLLING_MS).bucket_ms, LONGEST_CALENDAR_MS + WINDOW_GRACE_MS
)
# The clocks that stamp the events of one call differ, but not by this much.
EVENT_SLACK_MS: Final = _DAY_MS

# A call's ending is its settlement, else its expiry; of two of a kind the first counts, as in the fold.
_ENDING_ORDER: Final = "(type = {expiry:String}, partition, offset)"
# What is held is what was said of it last; a reservation comes before every change.
_SIZE_ORDER: Final = "(type = {resized:String}, time, partition, offset)"
_ENDED_SINCE: Final = "fromUnixTimestamp64Milli({ended_since_ms:Int64}, 'UTC')"
_CORRECTED_SINCE: Final = "fromUnixTimestamp64Milli({corrected_since_ms:Int64}, 'UTC')"
_TOLD_SINCE: Final = "fromUnixTimestamp64Milli({told_since_ms:Int64}, 'UTC')"
_IDLE_SINCE: Final = "fromUnixTimestamp64Milli({idle_since_ms:Int64}, 'UTC')"
# By event time, which the table is partitioned by. An event before it belongs to a call with no window alive.
_SINCE: Final = "time >= fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')"
# The other events of a call that has one since then.
_CALLS_SINCE: Final = "time >= fromUnixTimestamp64Milli({calls_since_ms:Int64}, 'UTC')"
_ENDINGS: Final = "org = {org:String} AND type IN ({settlement:String}, {expiry:String})"


def _alive(part: str) -> str:
    """SQL for whether a charge can still change a figure of the hot state; `part` has the parts of its window's key.

    False for a window without an end.
    """
    second, third, fourth = (f"toInt64OrZero({part}[{number}])" for number in (2, 3, 4))
    calendar = f"{third} + {{grace_ms:Int64}} > {{now_ms:Int64}}"
    rolling = f"{fourth} + {third} >= intDivOrZero({{now_ms:Int64}}, {second})"
    return f"multiIf({part}[1] = 'c', {calendar}, {part}[1] = 'r', {rolling}, false)"


def _endless(window: str) -> str:
    """SQL for whether a window has no end: a lifetime or a session."""
    return f"({window} = 'l' OR startsWith({window}, 's:'))"


# The statements are put together from fixed texts; values go in as parameters only.
_SPENT: Final = f"""
SELECT charge.1 AS budget_id, charge.2 AS window, sum(toInt128(amount_nano)) AS spent_nano
FROM (
    SELECT argMin(cost_nano + booked_nano, {_ENDING_ORDER}) AS amount_nano,
           argMin(arrayZip(`charges.budget_id`, `charges.window`), {_ENDING_ORDER}) AS pairs
    FROM events WHERE {_ENDINGS} AND {_SINCE} GROUP BY transaction_id
)
ARRAY JOIN pairs AS charge, arrayMap(pair -> splitByChar(':', pair.2), pairs) AS part
WHERE {_alive("part")}
GROUP BY budget_id, window
"""  # noqa: S608
_SPENT_ENDLESSLY: Final = f"""
SELECT charge.1 AS budget_id, charge.2 AS window, sum(toInt128(amount_nano)) AS spent_nano
FROM (
    SELECT argMin(cost_nano + booked_nano, {_ENDING_ORDER}) AS amount_nano,
           argMin(arrayZip(`charges.budget_id`, `charges.window`), {_ENDING_ORDER}) AS pairs,
           max(recorded_at) AS last_at
    FROM events
    WHERE {_ENDINGS} AND transaction_id IN (
        SELECT transaction_id FROM events
        WHERE {_ENDINGS} AND arrayExists(window -> {_endless("window")}, `charges.window`))
    GROUP BY transaction_id
)
ARRAY JOIN pairs AS charge
WHERE {_endless("charge.2")}
GROUP BY budget_id, window
HAVING window = 'l' OR max(last_at) >= {_IDLE_SINCE}
"""  # noqa: S608
_OPEN: Final = f"""
SELECT transaction_id,
       argMinIf(raw, (partition, offset), type = {{reservation:String}}) AS first_raw,
       argMaxIf(raw, (time, partition, offset), type = {{resized:String}}) AS last_resized
FROM events
WHERE org = {{org:String}} AND type IN ({{reservation:String}}, {{resized:String}}) AND {_SINCE}
  AND transaction_id NOT IN (SELECT transaction_id FROM events WHERE {_ENDINGS} AND {_CALLS_SINCE})
GROUP BY transaction_id
HAVING first_raw != ''
"""  # noqa: S608
_ENDED: Final = f"""
SELECT transaction_id,
       argMinIf(type, {_ENDING_ORDER}, is_ending) AS ended_by,
       argMinIf(cost_nano + booked_nano, {_ENDING_ORDER}, is_ending) AS amount_nano,
       argMinIf(charge_list, {_ENDING_ORDER}, is_ending) AS charged,
       argMaxIf(held_nano, {_SIZE_ORDER}, NOT is_ending) AS hold_nano,
       argMaxIf(toUnixTimestamp64Milli(expires_at), {_SIZE_ORDER}, NOT is_ending) AS expires_at_ms,
       maxIf(toUnixTimestamp64Milli(time), type = {{reservation:String}}) AS admitted_at_ms,
       maxIf(toUnixTimestamp64Milli(time), type = {{resized:String}}) AS resized_at_ms,
       countIf(startsWith(producer, {{expiry_producer:String}})) > 0 AS may_end_again,
       groupUniqArrayArray(`charges.window`) AS windows
FROM (
    SELECT *, type IN ({{settlement:String}}, {{expiry:String}}) AS is_ending,
           arrayZip(`charges.budget_id`, `charges.scope`, `charges.window`) AS charge_list
    FROM events
    WHERE org = {{org:String}} AND type != {{denial:String}} AND {_CALLS_SINCE} AND transaction_id IN (
        SELECT transaction_id FROM events
        WHERE {_ENDINGS} AND {_SINCE}
          AND (startsWith(producer, {{expiry_producer:String}}) OR recorded_at >= {_ENDED_SINCE}))
)
GROUP BY transaction_id
HAVING maxIf(recorded_at, is_ending) >= {_ENDED_SINCE}
    OR (ended_by = {{expiry:String}} AND maxIf(recorded_at, is_ending) >= {_CORRECTED_SINCE})
    OR (may_end_again AND maxIf(recorded_at, is_ending) >= {_TOLD_SINCE})
    OR arrayExists(part -> {_alive("part")}, arrayMap(window -> splitByChar(':', window), windows))
    OR (arrayExists(window -> {_endless("window")}, windows) AND maxIf(recorded_at, is_ending) >= {_IDLE_SINCE})
"""  # noqa: S608
_PRODUCERS: Final = f"""
SELECT topic, partition, producer, max(sequence) AS last_sequence
FROM events
WHERE org = {{org:String}} AND type != {{denial:String}} AND {_SINCE}
  AND NOT startsWith(producer, {{expiry_producer:String}})
GROUP BY topic, partition, producer
"""  # noqa: S608
# All but the one of endless windows leave out what is long past.
STATEMENTS: Final = (_SPENT, _OPEN, _ENDED, _PRODUCERS)


async def org_image(store: LedgerStore, org: str, now_ms: int) -> LedgerImage:
    """An org's image at our clock's `now_ms`. Raises `UnavailableError`."""
    since_ms = now_ms - CLOCK_SLACK_MS - LONGEST_LIFE_MS - EVENT_SLACK_MS
    parameters = {
        "org": org,
        "reservation": Reservation.TYPE,
        "settlement": Settlement.TYPE,
        "expiry": Expiry.TYPE,
        "denial": Denial.TYPE,
        "resized": HoldResized.TYPE,
        "expiry_producer": EXPIRY_PRODUCER,
        "grace_ms": WINDOW_GRACE_MS,
        "now_ms": now_ms - CLOCK_SLACK_MS,
        "ended_since_ms": now_ms - CLOCK_SLACK_MS - TOMBSTONE_MS,
        "corrected_since_ms": now_ms - CLOCK_SLACK_MS - CORRECTION_MS,
        "told_since_ms": now_ms - CLOCK_SLACK_MS - TOLD_AGAIN_MS,
        "idle_since_ms": now_ms - CLOCK_SLACK_MS - SESSION_IDLE_MS,
        "since_ms": since_ms,
        "calls_since_ms": since_ms - EVENT_SLACK_MS,
    }
    places, spent, open_holds, ended, producers, endless = await store.query(
        NEXT_OFFSETS, *(Query(statement, parameters) for statement in (*STATEMENTS, _SPENT_ENDLESSLY))
    )
    next_offsets = read_next_offsets(places)
    holds = {row["transaction_id"]: _open_hold(row["first_raw"], row["last_resized"]) for row in open_holds}
    holds |= {row["transaction_id"]: _ended_hold(row, now_ms) for row in ended}
    return LedgerImage(
        next_offsets,
        OrgImage(
            spent_nano={(row["budget_id"], row["window"]): row["spent_nano"] for row in (*spent, *endless)},
            holds=holds,
            fences={(place.topic, place.partition): offset for place, offset in next_offsets.items()},
            producers={(row["topic"], row["partition"], row["producer"]): row["last_sequence"] for row in producers},
        ),
    )


class Images:
    """Images for whoever asks: one of an org is under way at a time, and all who ask meanwhile get that one.

    An image is right as of its own `next_offsets`, so one begun earlier is as good. Each may keep ClickHouse busy for
    minutes; a queue of them, left by askers who gave up, would keep everything else waiting.
    """

    def __init__(self, store: LedgerStore) -> None:
        self._store = store
        self._under_way: dict[str, asyncio.Task[LedgerImage]] = {}

    async def of(self, org: str, now_ms: int) -> LedgerImage:
        """`org_image`, or the one under way. Raises `UnavailableError`."""
        task = self._under_way.get(org)
        if task is None:
            task = asyncio.create_task(org_image(self._store, org, now_ms))
            self._under_way[org] = task
            task.add_done_callback(lambda _: self._under_way.pop(org))
        # An asker who goes away must not take it from the others.
        return await asyncio.shield(task)


def image_fields(ledger_image: LedgerImage) -> dict[str, Any]:
    """The image as JSON; see above."""
    image = ledger_image.image
    return {
        **next_offsets_fields(ledger_image.next_offsets),
        "spent": [
            {"budget_id": budget_id, "window": window, "spent_nano": str(spent_nano)}
            for (budget_id, window), spent_nano in image.spent_nano.items()
        ],
        "holds": [
            {
                "reservation_id": reservation_id,
                "phase": hold.phase,
                "amount_nano": str(hold.amount_nano),
                "charges": charges_fields(hold.charges),
                "context": hold.context,
                "expires_at_ms": hold.expires_at_ms,
                "booked_nano": str(hold.booked_nano),
                "admitted_at_ms": hold.admitted_at_ms,
                "forget_at_ms": hold.forget_at_ms,
                "resized_at_ms": hold.resized_at_ms,
            }
            for reservation_id, hold in image.holds.items()
        ],
        "producers": [
            {"topic": topic, "partition": partition, "producer": producer, "sequence": sequence}
            for (topic, partition, producer), sequence in image.producers.items()
        ],
    }


def next_offsets_fields(next_offsets: Mapping[TopicPartition, int]) -> dict[str, Any]:
    """Next offsets as JSON: the part of the image that ``GET /internal/v1/next-offsets`` answers."""
    return {
        "next_offsets": [
            {"topic": place.topic, "partition": place.partition, "offset": offset}
            for place, offset in sorted(next_offsets.items())
        ]
    }


def _open_hold(first_raw: str, last_resized: str) -> Hold:
    step = step_of(decode(first_raw.encode()), 0)
    assert step is not None, "a reservation always has a step"
    hold = Hold(step.amount_nano, step.charges, step.context, step.expires_at_ms, admitted_at_ms=step.time_ms)
    if last_resized:
        changed = step_of(decode(last_resized.encode()), 0)
        assert changed is not None, "a change of a hold always has a step"
        hold.amount_nano, hold.charges, hold.context = changed.amount_nano, changed.charges, changed.context
        hold.expires_at_ms, hold.resized_at_ms = changed.expires_at_ms, changed.time_ms
    return hold


def _ended_hold(row: Mapping[str, Any], now_ms: int) -> Hold:
    phase: HoldPhase = "settled" if row["ended_by"] == Settlement.TYPE else "expired"
    charges = tuple(Charge(*each) for each in row["charged"])
    # One that a reaper has had, or that a producer of one event has ended, may be told a second ending of; `core.fold`
    # remembers it as long as that matters.
    until_ms = [counts_until_ms(parse_span(each), now_ms) for each in row["windows"]] if row["may_end_again"] else []
    least_ms = CORRECTION_MS if phase == "expired" else TOLD_AGAIN_MS if row["may_end_again"] else TOMBSTONE_MS
    return Hold(
        row["hold_nano"],
        charges,
        "",
        row["expires_at_ms"],
        phase,
        booked_nano=row["amount_nano"],
        admitted_at_ms=row["admitted_at_ms"],
        forget_at_ms=max([now_ms + least_ms, *until_ms]),
        resized_at_ms=row["resized_at_ms"],
    )
