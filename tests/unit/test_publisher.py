"""The publisher: everything the outbox takes reaches the log, in order and at once, however often the log is away."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from services.adapters import publisher as module
from services.adapters.outbox import SqliteOutbox
from services.adapters.publisher import BATCH_EVENTS, Publisher
from services.core.codec import decode
from services.core.ports import EventLog, OutboxEvent, Outgoing, UnavailableError
from tests.support.examples import RESERVATION


class Log:
    """A log that can be away, slow, or lose its answer after it has taken the messages."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.is_away = False
        self.loses_answers = 0
        self.delay_s = 0.0
        self.error: Exception | None = None
        self.tries = 0

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        self.tries += 1
        await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        if self.is_away:
            raise UnavailableError("the log is away")
        self.batches.append([decode(message.value).sequence for message in messages])
        if self.loses_answers:
            self.loses_answers -= 1
            raise UnavailableError("the answer was lost")

    @property
    def sequences(self) -> list[int]:
        return [sequence for batch in self.batches for sequence in batch]


class Bench:
    """An outbox, a log, and a publisher that runs between them."""

    def __init__(self, outbox: SqliteOutbox) -> None:
        self.outbox = outbox
        self.log = Log()
        self.published = 0
        self.failures: list[str] = []
        self.publisher = Publisher(
            outbox, cast(EventLog, self.log), on_published=self._count, on_failure=self.failures.append
        )
        self.running: asyncio.Task[None] | None = None

    def _count(self, events: int) -> None:
        self.published += events

    def start(self) -> None:
        self.running = asyncio.create_task(self.publisher.run())

    def append(self, count: int = 1) -> None:
        self.outbox.append([OutboxEvent(RESERVATION)] * count)
        self.publisher.wake()


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[SqliteOutbox]:
    with contextlib.closing(SqliteOutbox(tmp_path / "outbox.sqlite", 100_000)) as outbox:
        yield outbox


@pytest.fixture
async def bench(outbox: SqliteOutbox) -> AsyncIterator[Bench]:
    bench = Bench(outbox)
    yield bench
    if bench.running is not None:
        bench.running.cancel()
        await asyncio.gather(bench.running, return_exceptions=True)


async def test_what_waited_from_before_is_published_at_start(bench: Bench) -> None:
    bench.append(3)
    bench.start()
    assert await bench.publisher.drain(5)
    assert bench.log.batches == [[1, 2, 3]]
    assert (bench.outbox.size(), bench.published, bench.failures) == (0, 3, [])


async def test_an_append_is_published_at_once(bench: Bench) -> None:
    bench.start()
    await asyncio.sleep(0.05)
    latencies_s = []
    for expected in range(1, 21):
        started_s = time.monotonic()
        bench.append()
        while bench.published < expected:  # noqa: ASYNC110 - the shortest wait there is
            await asyncio.sleep(0)
        latencies_s.append(time.monotonic() - started_s)
        await asyncio.sleep(0.002)
    assert sorted(latencies_s)[10] < 0.05


async def test_batches_are_bounded_and_in_order(bench: Bench) -> None:
    for _ in range(4):
        bench.append(300)
    bench.start()
    assert await bench.publisher.drain(5)
    assert [len(batch) for batch in bench.log.batches] == [BATCH_EVENTS, BATCH_EVENTS, 200]
    assert bench.log.sequences == list(range(1, 1201))


async def test_what_comes_during_a_publication_follows_it(bench: Bench) -> None:
    bench.log.delay_s = 0.05
    bench.start()
    bench.append()
    await asyncio.sleep(0.02)
    bench.append(2)
    bench.append(3)
    assert await bench.publisher.drain(5)
    assert bench.log.batches == [[1], [2, 3, 4, 5, 6]]


async def test_an_outage_is_waited_out_with_growing_pauses(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.08)
    bench.log.is_away = True
    bench.start()
    bench.append(5)
    await asyncio.sleep(0.5)
    assert 3 <= bench.log.tries <= 10
    assert set(bench.failures) == {"the log is away"}
    assert bench.outbox.size() == 5
    bench.log.is_away = False
    assert await bench.publisher.drain(5)
    assert bench.log.sequences == [1, 2, 3, 4, 5]
    assert bench.published == 5


async def test_a_lost_answer_means_publishing_again_from_the_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    bench.log.loses_answers = 2
    bench.start()
    bench.append(2)
    assert await bench.publisher.drain(5)
    assert bench.log.batches == [[1, 2], [1, 2], [1, 2]]
    assert bench.published == 2


async def test_draining_gives_up_in_time(bench: Bench) -> None:
    bench.log.is_away = True
    bench.start()
    bench.append()
    started_s = time.monotonic()
    assert not await bench.publisher.drain(0.1)
    assert time.monotonic() - started_s < 1
    assert bench.outbox.size() == 1


async def test_draining_an_empty_outbox_is_done_at_once(bench: Bench) -> None:
    bench.start()
    assert await bench.publisher.drain(1)
    assert await bench.publisher.drain(1)


async def test_draining_waits_for_what_was_appended_after_an_earlier_drain(bench: Bench) -> None:
    bench.start()
    assert await bench.publisher.drain(1)
    bench.log.delay_s = 0.05
    bench.append()
    assert await bench.publisher.drain(1)
    assert bench.log.sequences == [1]


async def test_a_cancelled_publication_keeps_its_events(bench: Bench) -> None:
    bench.log.delay_s = 10
    bench.start()
    bench.append(2)
    await asyncio.sleep(0.05)
    assert bench.running is not None
    bench.running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bench.running
    assert bench.outbox.size() == 2


async def test_an_error_that_trying_again_can_not_mend_ends_it(bench: Bench) -> None:
    bench.log.error = ValueError("no such thing")
    bench.append()
    with pytest.raises(ExceptionGroup) as caught:
        await bench.publisher.run()
    assert caught.group_contains(ValueError, match="no such thing")
    assert bench.outbox.size() == 1


async def test_checkpoints_are_made_off_the_loop(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_EVERY_S", 0.01)
    threads: list[int] = []

    def checkpoint() -> None:
        threads.append(threading.get_ident())
        if len(threads) == 1:
            raise UnavailableError("the disk refuses")

    monkeypatch.setattr(bench.outbox, "checkpoint", checkpoint)
    bench.start()
    await asyncio.sleep(0.3)
    assert len(threads) > 1
    assert threading.get_ident() not in threads
    assert bench.failures == ["the disk refuses"]


async def test_a_disk_that_refuses_is_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    forget, refusals = bench.outbox.forget, [UnavailableError("the disk refuses")]

    def refuse_once(up_to_sequence: int) -> Any:
        if refusals:
            raise refusals.pop()
        forget(up_to_sequence)

    monkeypatch.setattr(bench.outbox, "forget", refuse_once)
    bench.start()
    bench.append()
    assert await bench.publisher.drain(5)
    assert bench.log.batches == [[1], [1]]
    assert bench.failures == ["the disk refuses"]
