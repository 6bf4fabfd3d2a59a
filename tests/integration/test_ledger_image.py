"""Which holds an image still carries, by when the ledger recorded their ends, and how far back it looks at all."""

import json
from dataclasses import replace
from typing import Any

import pytest

from services.adapters.clickhouse import ClickHouse
from services.adapters.valkey import ValkeyHotState
from services.adapters.valkey_connection import ValkeyConnection
from services.core.budgets import Charge, Proposal
from services.core.codec import decode, encode_facts, to_message
from services.core.codec_fields import format_time
from services.core.events import Event, Expiry, HoldResized, Reservation, Settlement, Stamped
from services.core.fold import step_of
from services.core.hotstate import (
    CORRECTION_MS,
    EXPIRY_PRODUCER,
    SESSION_IDLE_MS,
    TOLD_AGAIN_MS,
    TOMBSTONE_MS,
    Admitted,
    HoldRequest,
    OrgImage,
)
from services.core.ports import Incoming, Query, TopicPartition
from services.core.windows import MAX_ROLLING_MS, CalendarSpan, CalendarWindow, RollingSpan, RollingWindow, span_at
from services.ledger import image as image_module
from services.ledger.image import CLOCK_SLACK_MS, EVENT_SLACK_MS, LONGEST_LIFE_MS, org_image
from services.ledger.rows import event_row
from tests.support.examples import FACTS, RESERVATION, RESIZED, SETTLEMENT
from tests.support.hot_state import read_state, turn_clock, with_turned_clock
from tests.support.ledger import now_ms

LONG_MS = TOMBSTONE_MS + CLOCK_SLACK_MS + 60_000
NOW_MS = now_ms()
ALIVE = Charge("bud_1", "org:default", RollingSpan(60_000, 60, NOW_MS // 60_000).key())
GONE = Charge("bud_2", "org:default", CalendarSpan(0, 1).key())


class Recorder:
    """Puts rows into the ledger as if they had been recorded at another time."""

    def __init__(self, store: ClickHouse) -> None:
        self._store = store
        self._offset = 0

    async def record(self, event: Event, age_ms: int, is_one_shot: bool = False) -> None:
        """One event, recorded `age_ms` ago; of a producer of its own, if it `is_one_shot` or an expiry."""
        self._offset += 1
        is_one_shot |= isinstance(event, Expiry)
        producer = EXPIRY_PRODUCER + event.transaction_id if is_one_shot else f"gw_{self._offset}"
        value = to_message(Stamped(event, producer, 1)).value
        row = event_row(Incoming(event.TOPIC, 0, self._offset, b"default", value, (), 0), decode(value))
        row["recorded_at"] = format_time(NOW_MS - age_ms)
        await self._store.insert("events", [row], f"row {self._offset}")


def reservation(name: str, *charges: Charge, at_ms: int = NOW_MS) -> Reservation:
    return replace(RESERVATION, transaction_id=name, time_ms=at_ms, charges=charges)


def settlement(name: str, *charges: Charge, at_ms: int = NOW_MS) -> Settlement:
    return replace(SETTLEMENT, transaction_id=name, time_ms=at_ms, charges=charges)


def resized(name: str, held_nano: int, at_ms: int) -> HoldResized:
    return HoldResized(name, at_ms, RESIZED.facts, held_nano, (ALIVE,), at_ms + 900_000)


def expiry(name: str, *charges: Charge, at_ms: int = NOW_MS) -> Expiry:
    return Expiry(name, at_ms, FACTS, 5, 5, charges)


async def test_ends_are_remembered_as_long_as_another_event_could_come(ledger_store: ClickHouse) -> None:
    recorder = Recorder(ledger_store)
    gone = ("ended_and_gone", "ended_long_ago_and_gone", "expired_and_gone", "expired_long_ago_and_gone")
    for name in ("just_settled", "long_settled", "long_expired", *gone, "corrected", "open"):
        await recorder.record(reservation(name, GONE if "gone" in name else ALIVE), LONG_MS)
    await recorder.record(settlement("just_settled", ALIVE), 0)
    await recorder.record(settlement("long_settled", ALIVE), LONG_MS)
    await recorder.record(expiry("long_expired", ALIVE), LONG_MS)
    week_ms = TOLD_AGAIN_MS + CLOCK_SLACK_MS + 60_000
    await recorder.record(settlement("ended_and_gone", GONE), TOLD_AGAIN_MS - 60_000, is_one_shot=True)
    await recorder.record(settlement("ended_long_ago_and_gone", GONE), week_ms, is_one_shot=True)
    await recorder.record(settlement("charged_to_nothing"), LONG_MS, is_one_shot=True)
    await recorder.record(expiry("expired_and_gone", GONE), CORRECTION_MS - 60_000)
    await recorder.record(expiry("expired_long_ago_and_gone", GONE), CORRECTION_MS + CLOCK_SLACK_MS + 60_000)
    await recorder.record(expiry("corrected", ALIVE), LONG_MS)
    await recorder.record(settlement("corrected", ALIVE), LONG_MS)
    holds = (await org_image(ledger_store, "default", NOW_MS)).image.holds
    assert {name: hold.phase for name, hold in holds.items()} == {
        "open": "held",
        "just_settled": "settled",
        "ended_and_gone": "settled",
        "charged_to_nothing": "settled",
        "long_expired": "expired",
        "expired_and_gone": "expired",
        "corrected": "settled",
    }


async def test_a_hold_is_as_large_as_was_said_last_of_it(ledger_store: ClickHouse) -> None:
    """By the hot state's clock, whatever order the log has; an ended one keeps what it held in the end."""
    recorder = Recorder(ledger_store)
    for name in ("open", "settled", "plain"):
        await recorder.record(reservation(name, ALIVE), 0)
    for name in ("open", "settled", "never_reserved"):
        await recorder.record(resized(name, 2_000, NOW_MS + 20), 0)
        await recorder.record(resized(name, 9_000, NOW_MS + 10), 0)
    await recorder.record(settlement("settled", ALIVE), 0)
    holds = (await org_image(ledger_store, "default", NOW_MS)).image.holds
    assert set(holds) == {"open", "settled", "plain"}
    assert (holds["plain"].amount_nano, holds["plain"].resized_at_ms) == (RESERVATION.held_nano, 0)
    for name, phase in (("open", "held"), ("settled", "settled")):
        hold = holds[name]
        assert (hold.phase, hold.amount_nano, hold.expires_at_ms) == (phase, 2_000, NOW_MS + 900_020)
        assert (hold.admitted_at_ms, hold.resized_at_ms) == (NOW_MS, NOW_MS + 20)
    assert json.loads(holds["open"].context)["vendor"] == RESIZED.facts.vendor
    assert holds["open"].charges == (ALIVE,)


async def test_a_hot_state_with_resized_holds_is_rebuilt_as_it_was(ledger_store: ClickHouse, valkey_url: str) -> None:
    """Held, moved and settled in a real Valkey, recorded in a real ledger; wiped, and loaded from its image."""
    connection = ValkeyConnection(valkey_url)
    hot = with_turned_clock(ValkeyHotState(connection))
    await turn_clock(connection, NOW_MS)
    await hot.load("default", OrgImage({}, {}, {}, {}), "epoch-1")
    proposals = tuple(
        Proposal(f"bud_{number}", "team:ml", span_at(window, NOW_MS), 10_000)
        for number, window in enumerate((CalendarWindow("day", "UTC"), RollingWindow(3_600_000)))
    )
    recorder = Recorder(ledger_store)
    for name, held_nano in (("larger", 100), ("smaller", 200), ("as_it_was", 300), ("settled", 400)):
        asked = HoldRequest("default", name, held_nano, proposals, 900_000, encode_facts(FACTS))
        answer = await hot.reserve(asked)
        assert isinstance(answer, Admitted)
        held = replace(reservation(name, *answer.charges), held_nano=held_nano, expires_at_ms=answer.expires_at_ms)
        await recorder.record(held, 0)
    await turn_clock(connection, NOW_MS + 1_500)
    events: list[Event] = []
    for name, held_nano in (("larger", 1_100), ("smaller", 20), ("settled", 500)):
        asked = HoldRequest("default", name, held_nano, proposals, 900_000, encode_facts(RESIZED.facts))
        moved = await hot.resize(asked)
        assert isinstance(moved, Admitted)
        change = HoldResized(name, moved.now_ms, RESIZED.facts, held_nano, moved.charges, moved.expires_at_ms)
        await recorder.record(change, 0)
        events.append(change)
    events.append(replace(settlement("settled", *moved.charges), cost_nano=33))
    await recorder.record(events[-1], 0)
    for number, event in enumerate(events):
        step = step_of(Stamped(event, "gw_1", number + 1), number)
        assert step is not None
        await hot.apply("default", TopicPartition("t", 0), [step], number + 1)
    before = await read_state(connection, "default")

    image = (await org_image(ledger_store, "default", NOW_MS + 1_500)).image
    await connection.execute("FLUSHALL")
    await turn_clock(connection, NOW_MS + 1_500)
    assert await hot.load("default", image, "epoch-2")
    after = await read_state(connection, "default")
    await hot.close()
    assert (after.windows, after.rings, after.due) == (before.windows, before.rings, before.due)
    assert after.holds == before.holds
    assert {figures.held_nano for figures in after.windows.values()} == {1_100 + 20 + 300}
    assert {figures.spent_nano for figures in after.windows.values()} == {33}


async def test_an_end_that_may_come_again_is_remembered_until_its_windows_are_gone(ledger_store: ClickHouse) -> None:
    long_window = Charge("bud_3", "org:default", RollingSpan(86_400_000, 60, NOW_MS // 86_400_000).key())
    recorder = Recorder(ledger_store)
    await recorder.record(reservation("settled", long_window), 0)
    await recorder.record(settlement("settled", long_window), 0)
    await recorder.record(reservation("expired", long_window), 0)
    await recorder.record(expiry("expired", long_window), 0)
    for name, age_ms in (("ended", 0), ("long_ended", LONG_MS)):
        await recorder.record(reservation(name, long_window), age_ms)
        await recorder.record(settlement(name, long_window), age_ms, is_one_shot=True)
    holds = (await org_image(ledger_store, "default", NOW_MS)).image.holds
    assert holds["settled"].forget_at_ms == NOW_MS + TOMBSTONE_MS
    for name in ("ended", "long_ended"):
        assert holds[name].forget_at_ms == (NOW_MS // 86_400_000 + 61) * 86_400_000
    assert holds["expired"].forget_at_ms == holds["ended"].forget_at_ms
    assert holds["expired"].booked_nano == 5
    assert (holds["settled"].amount_nano, holds["settled"].charges) == (RESERVATION.held_nano, (long_window,))
    assert holds["settled"].expires_at_ms == RESERVATION.expires_at_ms


async def test_a_lifetime_is_summed_up_from_its_beginning_and_a_session_while_it_is_remembered(
    ledger_store: ClickHouse,
) -> None:
    recorder = Recorder(ledger_store)
    old_ms = NOW_MS - 3 * LONGEST_LIFE_MS
    lifetime = Charge("bud_5", "org:default", "l")
    busy, idle = Charge("bud_6", "session:s", "s:busy"), Charge("bud_6", "session:s", "s:idle")
    await recorder.record(settlement("old", lifetime, busy, GONE, at_ms=old_ms), NOW_MS - old_ms)
    await recorder.record(settlement("idle", lifetime, idle, at_ms=old_ms), SESSION_IDLE_MS + CLOCK_SLACK_MS + 60_000)
    await recorder.record(settlement("late", busy), SESSION_IDLE_MS - 60_000)
    await recorder.record(expiry("corrected", idle, at_ms=old_ms), NOW_MS - old_ms)
    await recorder.record(settlement("corrected", lifetime, at_ms=old_ms), NOW_MS - old_ms)
    image = (await org_image(ledger_store, "default", NOW_MS)).image
    cost_nano = SETTLEMENT.cost_nano
    assert image.spent_nano == {("bud_5", "l"): 3 * cost_nano, ("bud_6", "s:busy"): 2 * cost_nano}


async def test_an_end_without_a_windows_end_is_remembered_for_as_long_as_a_session(ledger_store: ClickHouse) -> None:
    recorder = Recorder(ledger_store)
    for name, age_ms in (("just", SESSION_IDLE_MS - 60_000), ("long", SESSION_IDLE_MS + CLOCK_SLACK_MS + 60_000)):
        await recorder.record(expiry(name, Charge("bud_6", "session:s", "s:1")), age_ms)
        await recorder.record(expiry(f"{name}_ever", Charge("bud_5", "org:default", "l")), age_ms)
    holds = (await org_image(ledger_store, "default", NOW_MS)).image.holds
    assert {name: hold.forget_at_ms for name, hold in holds.items()} == dict.fromkeys(
        ("just", "just_ever"), NOW_MS + SESSION_IDLE_MS
    )


async def test_the_last_change_of_a_hold_says_what_it_is_charged_to(ledger_store: ClickHouse) -> None:
    recorder = Recorder(ledger_store)
    other = replace(ALIVE, budget_id="bud_7")
    await recorder.record(reservation("open", ALIVE), 0)
    await recorder.record(replace(resized("open", 2_000, NOW_MS + 20), charges=(other, ALIVE)), 0)
    await recorder.record(replace(resized("open", 3_000, NOW_MS + 10), charges=()), 0)
    (hold,) = (await org_image(ledger_store, "default", NOW_MS)).image.holds.values()
    assert (hold.charges, hold.amount_nano) == ((other, ALIVE), 2_000)


async def test_a_call_in_the_last_moment_of_the_longest_window_still_counts(ledger_store: ClickHouse) -> None:
    """Spent, held and expired: all of it is as old as anything alive can be."""
    longest = RollingWindow(MAX_ROLLING_MS)
    at_ms = (NOW_MS // longest.bucket_ms - 60) * longest.bucket_ms
    charge = Charge("bud_4", "org:default", span_at(longest, at_ms).key())
    assert NOW_MS - at_ms > MAX_ROLLING_MS
    recorder = Recorder(ledger_store)
    for name in ("open", "settled", "expired"):
        await recorder.record(reservation(name, charge, at_ms=at_ms), LONG_MS)
    await recorder.record(settlement("settled", charge, at_ms=at_ms), LONG_MS)
    await recorder.record(expiry("expired", charge, at_ms=at_ms), LONG_MS)
    image = (await org_image(ledger_store, "default", NOW_MS)).image
    assert image.spent_nano == {("bud_4", charge.window): SETTLEMENT.cost_nano + 5}
    assert {name: hold.phase for name, hold in image.holds.items()} == {"open": "held", "expired": "expired"}
    assert image.holds["expired"].admitted_at_ms == at_ms


async def test_what_no_window_can_be_alive_for_is_not_looked_at(ledger_store: ClickHouse) -> None:
    """Rows that claim a window they can't have show that they are not even read."""
    old_ms = NOW_MS - LONGEST_LIFE_MS - CLOCK_SLACK_MS - 2 * EVENT_SLACK_MS - 1
    recorder = Recorder(ledger_store)
    for name in ("open", "settled", "expired"):
        await recorder.record(reservation(name, ALIVE, at_ms=old_ms), 0)
    await recorder.record(settlement("settled", ALIVE, at_ms=old_ms), 0)
    await recorder.record(expiry("expired", ALIVE, at_ms=old_ms), 0)
    image = (await org_image(ledger_store, "default", NOW_MS)).image
    assert (image.spent_nano, image.holds, image.producers) == ({}, {}, {})


async def test_a_call_on_the_edge_is_not_opened_again(ledger_store: ClickHouse) -> None:
    """Its end is stamped by another clock, a little before the bound."""
    edge_ms = NOW_MS - LONGEST_LIFE_MS - CLOCK_SLACK_MS - EVENT_SLACK_MS
    recorder = Recorder(ledger_store)
    await recorder.record(reservation("settled", GONE, at_ms=edge_ms + 1_000), LONG_MS)
    await recorder.record(settlement("settled", GONE, at_ms=edge_ms - 1_000), LONG_MS)
    assert (await org_image(ledger_store, "default", NOW_MS)).image.holds == {}


async def test_days_that_are_past_are_not_read(ledger_store: ClickHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """ClickHouse leaves out the parts of days before the bound, for every read of `events`."""
    recorder = Recorder(ledger_store)
    for days in (0, 1, 400, 500, 600):
        await recorder.record(reservation(f"txn_{days}", ALIVE, at_ms=NOW_MS - days * 86_400_000), 0)
    asked: list[Query] = []
    query = ledger_store.query

    async def remembered(*queries: Query) -> Any:
        asked.extend(queries)
        return await query(*queries)

    monkeypatch.setattr(ledger_store, "query", remembered)
    await org_image(ledger_store, "default", NOW_MS)
    statements = [each for each in asked if each.statement in image_module.STATEMENTS]
    assert len(statements) == 4
    for each in statements:
        (lines,) = await query(Query(f"EXPLAIN indexes = 1 {each.statement}", each.parameters))
        plan = [line["explain"].strip() for line in lines]
        read = [plan[at + 1 :] for at, line in enumerate(plan) if line == "Partition"]
        # Which reads of a set a plan tells of differs, so the text must have the bound for each of them.
        assert each.statement.count("FROM events") == each.statement.count(" time >= ")
        assert read
        for after in read:
            parts = next(line for line in after if line.startswith("Parts:"))
            # Of 5, or of as many as the days' earliest and latest times leave over already.
            assert parts.startswith("Parts: 2/"), each.statement
