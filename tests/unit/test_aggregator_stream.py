"""The embedded fold's loop, waiting, and the quiet it keeps in an outage."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
import structlog
from structlog.testing import capture_logs

from services.aggregator import patience as patience_module
from services.aggregator.patience import Patience, StoppedError
from services.aggregator.quiet import OneLineAMinute
from services.aggregator.stream import fold_stream, trim_bounds
from services.core.events import Denial
from services.core.fold import OffsetGapError
from services.core.ports import Outgoing, TopicDeclaration, TopicPartition, UnavailableError
from tests.support.aggregation import ALERT_TOPICS, NOW_MS, Parts, World
from tests.support.history import Caller, charges_at

DAY = (charges_at(NOW_MS)[0].budget_id, charges_at(NOW_MS)[0].window)


@pytest.fixture
async def world() -> World:
    world = World()
    await world.publish_org()
    return world


@pytest.fixture
async def parts(world: World) -> AsyncIterator[Parts]:
    parts = world.parts()
    yield parts
    parts.stopping.set()


def folding(world: World, parts: Parts) -> asyncio.Task[None]:
    return asyncio.create_task(
        fold_stream(world.log, world.places, parts.fences, parts.folder, parts.patience, parts.stopping)
    )


async def until_spent(world: World, amount_nano: int) -> None:
    for _ in range(1000):
        figures = world.state().windows.get(DAY)
        if figures is not None and figures.spent_nano == amount_nano:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"{amount_nano} nano-dollars were never spent")


async def test_it_folds_what_comes_and_ends_when_told(world: World, parts: Parts) -> None:
    task = folding(world, parts)
    caller = Caller(NOW_MS)
    for number in range(3):
        await world.publish(caller.settlement(f"txn_{number}"))
        await until_spent(world, 400 * (number + 1))
    parts.stopping.set()
    async with asyncio.timeout(2):
        await task


async def test_a_log_that_goes_away_is_read_again_from_the_fences(world: World, parts: Parts) -> None:
    task = folding(world, parts)
    caller = Caller(NOW_MS)
    await world.publish(caller.settlement("txn_1"))
    await until_spent(world, 400)
    world.log.is_away = True
    await asyncio.sleep(0.2)
    world.log.is_away = False
    await world.publish(caller.settlement("txn_2"))
    await until_spent(world, 800)
    parts.stopping.set()
    await task


async def test_a_fence_that_went_back_is_read_from_again(world: World, parts: Parts) -> None:
    caller = Caller(NOW_MS)
    await world.publish(caller.settlement("txn_1"), caller.settlement("txn_2"))
    task = folding(world, parts)
    await until_spent(world, 800)
    world.store.fold_fences[world.settlements] = 0
    await world.publish(caller.settlement("txn_3"))
    await until_spent(world, 1200)
    parts.stopping.set()
    await task


async def test_a_log_that_lost_its_tail_raises_the_alarm_of_that_partition(world: World, parts: Parts) -> None:
    await world.publish(Caller(NOW_MS).settlement("txn_1"))
    await world.parts().fold_all()
    world.store.fold_fences[world.settlements] = 5
    with pytest.raises(OffsetGapError, match="stands at offset 5, but the log holds 0 to 1"):
        await folding(world, parts)
    assert list(world.store.alarms) == [f"fold_gap:{world.settlements.topic}:0"]


async def test_what_fold_or_ledger_has_yet_to_read_may_not_be_trimmed(world: World) -> None:
    decisions, letters = TopicPartition(Denial.TOPIC, 0), TopicPartition(f"{Denial.TOPIC}.dlq", 0)
    await world.log.create_topics([TopicDeclaration(place.topic, 1, 60_000) for place in (decisions, letters)])
    dead = {TopicPartition(f"{place.topic}.dlq", 0): 0 for place in (*world.places, decisions)}
    dead |= {TopicPartition(topic, 0): 0 for topic in ALERT_TOPICS}
    assert await trim_bounds(world.log, world.hot, world.ledger) == dead, "of the rest nobody has said a word"

    await world.publish(Outgoing(letters.topic, b"default", b""), Outgoing(letters.topic, b"default", b""))
    dead[letters] = 2
    world.store.fold_fences.update({world.reservations: 5, world.settlements: 9})
    assert await trim_bounds(world.log, world.hot, world.ledger) == dead, "the ledger has not"
    world.ledger.taken.update({world.reservations: 7, world.settlements: 3, decisions: 4})
    expected = {**dead, world.reservations: 5, world.settlements: 3, decisions: 4}
    assert await trim_bounds(world.log, world.hot, world.ledger) == expected
    del world.store.fold_fences[world.reservations], expected[world.reservations]
    assert await trim_bounds(world.log, world.hot, world.ledger) == expected


async def test_nothing_is_trimmed_while_the_ledger_does_not_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.log.create_topics([TopicDeclaration(f"{Denial.TOPIC}{end}", 1, 60_000) for end in ("", ".dlq")])

    async def away(*_: object) -> None:
        raise UnavailableError("away")

    monkeypatch.setattr(world.ledger, "next_offsets", away)
    with pytest.raises(UnavailableError):
        await trim_bounds(world.log, world.hot, world.ledger)
    monkeypatch.undo()
    monkeypatch.setattr(world.hot, "fold_fences", away)
    with pytest.raises(UnavailableError):
        await trim_bounds(world.log, world.hot, world.ledger)


async def test_an_outage_is_told_when_it_begins_and_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience_module, "FIRST_DELAY_S", 0.001)
    # The loggers of a process keep the processors of their first use, which capture_logs could not replace.
    monkeypatch.setattr(patience_module, "_log", structlog.get_logger())
    answers = iter([UnavailableError("gone"), UnavailableError("gone"), None])

    async def operation() -> int:
        answer = next(answers)
        if answer is not None:
            raise answer
        return 7

    with capture_logs() as lines:
        assert await Patience(asyncio.Event()).until_answered("hot state", operation) == 7
    assert [line["event"] for line in lines] == ["waiting", "answered_again"]
    assert lines[0]["waiting_for"] == "hot state"
    assert lines[0]["reason"] == "gone"


async def test_waiting_ends_with_the_process() -> None:
    stopping = asyncio.Event()

    async def never() -> None:
        raise UnavailableError("gone")

    waiting = asyncio.create_task(Patience(stopping).until_answered("log", never))
    await asyncio.sleep(0.01)
    stopping.set()
    with pytest.raises(StoppedError):
        await waiting


async def test_side_work_goes_on_after_an_outage() -> None:
    stopping = asyncio.Event()
    calls = 0

    async def once() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            stopping.set()
        raise UnavailableError("gone")

    await Patience(stopping).every(0.001, "expiry", once)
    assert calls == 3


def record(name: str, level: int = logging.ERROR) -> logging.LogRecord:
    return logging.LogRecord(name, level, "", 0, "Unable to connect to %s", ("broker",), None)


def test_kafkas_clients_get_one_line_a_minute() -> None:
    now_s = 100.0
    quiet = OneLineAMinute(lambda: now_s)
    first = record("aiokafka.client")
    assert quiet.filter(first)
    assert first.getMessage().startswith("Unable to connect to broker (")
    for number in range(50):
        now_s += 1.0
        assert not quiet.filter(record(("aiokafka.conn", "faust.transport", "mode.services")[number % 3]))
    now_s += 10.0
    assert quiet.filter(record("aiokafka.client")), "a long outage is told again"


def test_everyone_elses_lines_pass() -> None:
    quiet = OneLineAMinute(lambda: 1.0)
    assert quiet.filter(record("aiokafka"))
    assert quiet.filter(record("farthing.aggregator"))
    assert quiet.filter(record("aiokafkaesque"))
    assert quiet.filter(record("aiokafka", logging.INFO))
