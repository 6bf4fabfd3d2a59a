"""The sink on a real ClickHouse engine: every offset is a row, a known duplicate or quarantined, whatever happens."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from services.adapters.clickhouse import ClickHouse
from services.core.codec import encode
from services.core.codec_fields import parse_time
from services.core.events import Denial, Event, Reservation, Settlement, Stamped
from services.core.fold import OffsetGapError
from services.core.ports import Outgoing, Query, TopicPartition, UnavailableError
from services.ledger import sink as sink_module
from services.ledger.fences import next_offsets, settled_next_offsets
from tests.support.examples import DENIAL, EXPIRY, PARTIAL, RESERVATION, SETTLEMENT, UNBUDGETED, UNKNOWN_MODEL
from tests.support.ledger import Rig, new_log
from tests.support.memory_log import MemoryLog

EVERY_KIND: tuple[Event, ...] = (RESERVATION, SETTLEMENT, EXPIRY, DENIAL, PARTIAL, UNBUDGETED, UNKNOWN_MODEL)
HOME = TopicPartition(Settlement.TOPIC, 0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches need not wait for company here."""
    monkeypatch.setattr(sink_module, "BATCH_WAIT_S", 0.01)
    monkeypatch.setattr(sink_module, "_FIRST_DELAY_S", 0.001)


@pytest.fixture
def rig(ledger_store: ClickHouse) -> Rig:
    return Rig(ledger_store, new_log(1))


def settlements(count: int, times: tuple[str, ...] = ("2026-03-01T12:00:00.000Z",)) -> list[Event]:
    return [
        replace(SETTLEMENT, transaction_id=f"txn_{number:026d}", time_ms=parse_time(times[number % len(times)]))
        for number in range(count)
    ]


def memory_of(rig: Rig) -> MemoryLog:
    assert isinstance(rig.log, MemoryLog)
    return rig.log


def unreadable(value: bytes = b"{not json") -> Outgoing:
    return Outgoing(Settlement.TOPIC, b"default", value, (("ce_type", b"x"),))


def assert_accounted_for(offsets: list[int], count: int) -> None:
    """Each offset exactly once."""
    assert sorted(offsets) == list(range(count))


async def test_every_kind_of_event_becomes_one_row_with_its_very_bytes(rig: Rig) -> None:
    messages = await rig.publisher.publish(*EVERY_KIND)
    await rig.catch_up()
    rows = await rig.events()
    assert {row["raw"].encode() for row in rows} == {message.value for message in messages}
    assert len(rows) == len(EVERY_KIND)
    assert await rig.skipped() == []
    assert rig.watcher.counted["rows"] == len(EVERY_KIND)


async def test_columns_say_what_the_event_says(rig: Rig) -> None:
    traceparent = b"00-" + b"ab" * 16 + b"-" + b"cd" * 8 + b"-01"
    await rig.log.publish([replace(rig.publisher.stamp(SETTLEMENT), headers=(("traceparent", traceparent),))])
    await rig.publisher.publish(DENIAL)
    await rig.catch_up()
    ((denied,), (settled,)) = await rig.store.query(
        Query("SELECT * FROM events WHERE type = {type:String}", {"type": Denial.TYPE}),
        Query(
            "SELECT *, toUnixTimestamp64Milli(time) AS ms FROM events WHERE type = {type:String}",
            {"type": Settlement.TYPE},
        ),
    )
    expected = {
        "ms": SETTLEMENT.time_ms,
        "org": "default",
        "team": "ml",
        "agent": "ada",
        "user": "",
        "tags": ["nightly", "eval"],
        "cost_nano": 525_000,
        "held_nano": SETTLEMENT.held_nano,
        "usage": {"input_tokens": 250, "cache_read_tokens": 0, "output_tokens": 200},
        "components.component": ["input", "output"],
        "components.price_nano_per_million": [500_000_000, 2_000_000_000],
        "charges.window": [charge.window for charge in SETTLEMENT.charges],
        "latency_us": dict(SETTLEMENT.latency_us),
        "outcome": "completed",
        "trace_id": "ab" * 16,
    }
    assert {name: settled[name] for name in expected} == expected
    assert (denied["denial_code"], denied["budget_limit_nano"]) == (DENIAL.code, DENIAL.limit_nano)


async def test_a_replay_from_the_beginning_changes_nothing(rig: Rig) -> None:
    """A log that hands out everything again, from offset 0."""
    await rig.publisher.publish(*EVERY_KIND)
    await rig.catch_up()
    before, inserts = await rig.events(), len(rig.store.inserts)
    replaying = rig.sink()
    await replaying._find_start()
    await replaying._take([message for place in replaying._next for message in memory_of(rig).messages(place)])
    assert await rig.events() == before
    assert len(rig.store.inserts) == inserts


async def test_a_second_start_goes_on_where_the_rows_end(rig: Rig) -> None:
    await rig.publisher.publish(*EVERY_KIND)
    await rig.catch_up()
    inserts = len(rig.store.inserts)
    await rig.catch_up()
    assert len(rig.store.inserts) == inserts
    await rig.publisher.publish(*settlements(3))
    await rig.catch_up()
    assert len(await rig.events()) == len(EVERY_KIND) + 3


@pytest.mark.parametrize("restarts", [False, True], ids=["same process", "after a restart"])
async def test_an_event_published_again_is_one_row(rig: Rig, restarts: bool) -> None:
    messages = await rig.publisher.publish(RESERVATION, *settlements(2), EXPIRY)
    if restarts:
        await rig.catch_up()
    await rig.log.publish(messages)
    await rig.catch_up()
    assert len(await rig.events()) == len(messages)
    assert [row["reason"] for row in await rig.skipped()] == ["duplicate"] * len(messages)
    assert rig.watcher.counted["duplicates"] == len(messages)
    assert len({(row["producer"], row["sequence"]) for row in await rig.events()}) == len(messages)


async def test_trailing_duplicates_do_not_hold_the_fence_back(rig: Rig) -> None:
    messages = await rig.publisher.publish(*settlements(2))
    await rig.log.publish(messages)
    await rig.catch_up()
    assert (await next_offsets(rig.store))[HOME] == 4
    # With all of it gone by retention, a restart finds its fence at the very end of the log, not outside it.
    memory_of(rig).trim(HOME, 4)
    await rig.publisher.publish(SETTLEMENT)
    await rig.catch_up()
    assert len(await rig.events()) == 3


async def test_the_unreadable_goes_to_the_dead_letter_topic_before_its_offset_counts(rig: Rig) -> None:
    good = settlements(3)
    await rig.publisher.publish(good[0])
    await rig.log.publish([unreadable()])
    await rig.publisher.publish(good[1])
    await rig.log.publish([unreadable(b'{"type":"spend.unheard.of.v1"}')])
    await rig.publisher.publish(good[2])
    await rig.catch_up()
    letters = memory_of(rig).messages(TopicPartition(f"{Settlement.TOPIC}.dlq", 0))
    assert [letter.value for letter in letters] == [b"{not json", b'{"type":"spend.unheard.of.v1"}']
    headers = dict(letters[0].headers)
    assert headers["ce_type"] == b"x"
    assert headers["farthing-consumer"] == b"ledger"
    assert headers["farthing-topic"] == Settlement.TOPIC.encode()
    assert (headers["farthing-partition"], headers["farthing-offset"]) == (b"0", b"1")
    assert b"JSON" in headers["farthing-reason"]
    rows, skipped = await rig.events(), await rig.skipped()
    assert [row["reason"] for row in skipped] == ["quarantined"] * 2
    assert_accounted_for([row["offset"] for row in [*rows, *skipped]], 5)
    assert rig.watcher.counted["dead_letters"] == 2
    await rig.catch_up()
    assert len(memory_of(rig).messages(TopicPartition(f"{Settlement.TOPIC}.dlq", 0))) == 2


async def test_no_insert_spans_two_days_and_offsets_stay_in_order(rig: Rig) -> None:
    around_midnight = ("2026-02-28T23:59:59.999Z", "2026-02-28T23:59:59.999Z", "2026-03-01T00:00:00.000Z")
    await rig.publisher.publish(*settlements(9, around_midnight))
    await rig.catch_up()
    assert [offsets for _, offsets in rig.store.inserts] == [[0, 1], [2], [3, 4], [5], [6, 7], [8]]
    parts = Query(
        "SELECT DISTINCT partition FROM system.parts"
        " WHERE database = currentDatabase() AND table = 'events' AND active ORDER BY partition"
    )
    (rows,) = await rig.store.query(parts)
    assert [row["partition"] for row in rows] == ["20260228", "20260301"]


@pytest.mark.parametrize("number", range(1, 5))
async def test_killed_right_after_an_insert_loses_nothing_and_repeats_nothing(rig: Rig, number: int) -> None:
    """Day by day, duplicates and letters between: wherever it dies, the next process goes on."""
    days = tuple(f"2026-03-0{day}T10:00:00.000Z" for day in (1, 2))
    messages = await rig.publisher.publish(*settlements(4, days))
    await rig.log.publish([messages[0], unreadable()])
    died = asyncio.Event()
    rig.store.on_insert = lambda seen: died.set() if seen == number else None
    async with rig.running():
        await asyncio.wait_for(died.wait(), 5)
    rig.store.on_insert = lambda seen: None
    await rig.catch_up()
    rows, skipped = await rig.events(), await rig.skipped()
    assert len(rows) == 4
    assert_accounted_for([row["offset"] for row in [*rows, *skipped]], 6)


async def test_an_insert_whose_answer_was_lost_is_not_repeated(rig: Rig) -> None:
    rig.store.after = {1}
    await rig.publisher.publish(*settlements(5))
    async with rig.running() as task:
        await rig.until_level(task)
        deadline = time.monotonic() + 5
        while rig.watcher.counted["rows"] < 5:
            assert time.monotonic() < deadline, "the sink still waits"
            await asyncio.sleep(0.01)
    assert len(rig.store.inserts) == 1
    assert len(await rig.events()) == 5


async def test_an_insert_that_did_not_happen_is_tried_until_it_does(rig: Rig) -> None:
    rig.store.before = {1, 2, 3}
    await rig.publisher.publish(*settlements(5))
    await rig.catch_up()
    assert [offsets for _, offsets in rig.store.inserts] == [list(range(5))] * 4
    assert len(await rig.events()) == 5


async def test_outages_of_the_log_are_waited_out(rig: Rig) -> None:
    await rig.publisher.publish(*settlements(2))
    async with rig.running() as task:
        await rig.until_level(task)
        memory_of(rig).is_away = True
        await asyncio.sleep(0.25)
        assert not task.done()
        memory_of(rig).is_away = False
        await rig.publisher.publish(SETTLEMENT)
        await rig.until_level(task)
    assert len(await rig.events()) == 3


async def test_a_gap_stops_it_with_an_alarm_and_nothing_past_it_is_inserted(rig: Rig) -> None:
    await rig.publisher.publish(*settlements(2))
    memory_of(rig).skip(HOME)
    await rig.publisher.publish(SETTLEMENT)
    with pytest.raises(OffsetGapError, match="expected offset 2, but the log went on at 3"):
        await rig.catch_up()
    assert [row["offset"] for row in await rig.events()] == [0, 1]
    assert list(rig.memory.alarms) == [f"ledger_gap:{Settlement.TOPIC}:0"]
    with pytest.raises(OffsetGapError):
        await rig.catch_up()
    assert [row["offset"] for row in await rig.events()] == [0, 1]


async def test_a_fence_the_log_has_trimmed_past_stops_it(rig: Rig) -> None:
    await rig.publisher.publish(*settlements(4))
    memory_of(rig).trim(HOME, 2)
    with pytest.raises(OffsetGapError, match="goes on at offset 0, but the log holds 2 to 4"):
        await rig.catch_up()
    assert await rig.events() == []
    assert list(rig.memory.alarms) == [f"ledger_gap:{Settlement.TOPIC}:0"]


async def test_a_fence_past_the_end_of_the_log_stops_it(rig: Rig, ledger_store: ClickHouse) -> None:
    """The topic was made anew: what the ledger has is of another log."""
    await rig.publisher.publish(*settlements(4))
    await rig.catch_up()
    other = Rig(ledger_store, new_log(1))
    with pytest.raises(OffsetGapError, match="goes on at offset 4, but the log holds 0 to 0"):
        await other.catch_up()


async def test_an_alarm_is_cleared_once_the_partition_moves_on(rig: Rig) -> None:
    rig.memory.alarms[f"ledger_gap:{Settlement.TOPIC}:0"] = "of before"
    rig.memory.alarms["fold_gap:x:0"] = "not ours"
    await rig.publisher.publish(SETTLEMENT)
    await rig.catch_up()
    await asyncio.sleep(0)
    assert list(rig.memory.alarms) == ["fold_gap:x:0"]


async def test_a_batch_is_one_insert_a_partition_within_half_a_second(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_module, "BATCH_WAIT_S", 0.4)
    async with rig.running() as task:
        started_s = time.monotonic()
        for event in settlements(20):
            await rig.publisher.publish(event)
            await asyncio.sleep(0.005)
        await rig.until_level(task)
        took_s = time.monotonic() - started_s
    assert len(rig.store.inserts) <= 2
    assert took_s < 1.2


async def test_producers_that_are_not_remembered_are_asked_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded although every expiry brings a producer; a late repeat is still a duplicate."""
    monkeypatch.setattr(sink_module, "KNOWN_PRODUCERS", 3)
    expiries = [replace(EXPIRY, transaction_id=f"txn_{number:026d}") for number in range(10)]
    sink = rig.sink()
    await sink._find_start()
    messages = await rig.publisher.publish(*expiries)
    await sink._take(memory_of(rig).messages(HOME))
    assert len(sink._sequences) == 3
    await rig.log.publish(messages[:2])
    await sink._take(memory_of(rig).messages(HOME)[10:])
    assert len(await rig.events()) == 10
    assert [row["reason"] for row in await rig.skipped()] == ["duplicate"] * 2


async def test_partitions_and_producers_are_kept_apart(ledger_store: ClickHouse) -> None:
    rig = Rig(ledger_store, new_log(2))
    for org in "abcdef":
        identity = replace(SETTLEMENT.facts.identity, org=org)
        await rig.publisher.publish(replace(SETTLEMENT, facts=replace(SETTLEMENT.facts, identity=identity)))
    other = Outgoing(Settlement.TOPIC, b"a", encode(Stamped(SETTLEMENT, "gw_other", 1)))
    await rig.log.publish([other])
    await rig.catch_up()
    assert len(await rig.events()) == 7
    assert len({row["partition"] for row in await rig.events()}) == 2


async def test_the_fence_is_not_read_while_an_insert_is_under_way() -> None:
    class Busy:
        inserts: Iterator[int] = iter((1, 0))

        async def query(self, *queries: Query) -> list[list[dict[str, object]]]:
            return [[{"inserts": next(self.inserts)}], [{"topic": "t", "partition": 0, "next_offset": 7}]]

        async def insert(self, table: str, rows: object, token: str) -> None:
            raise AssertionError("nothing is inserted here")

    store = Busy()
    with pytest.raises(UnavailableError):
        await settled_next_offsets(store)
    assert await settled_next_offsets(store) == {TopicPartition("t", 0): 7}


async def test_reservations_settlements_and_denials_lie_side_by_side(rig: Rig) -> None:
    await rig.publisher.publish(RESERVATION, SETTLEMENT, DENIAL)
    await rig.catch_up()
    assert {row["topic"] for row in await rig.events()} == {Reservation.TOPIC, Settlement.TOPIC, Denial.TOPIC}
    assert all(fence == 1 for fence in rig.watcher.fences.values())
