"""What calls have cost while the outbox's disk refuses it."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog.testing

from services.adapters.outbox import SqliteOutbox
from services.core.events import Settlement
from services.gateway import unrecorded
from tests.support import openai_answers
from tests.support.gateway import AWAY, WHOLE_ANSWER, RefusingOutbox, ScriptedAnswer, World, until, world


class Disk:
    """Takes settlements, or does not."""

    error: Exception | None = None

    def refuses(self, event: object) -> Exception | None:
        return self.error if isinstance(event, Settlement) else None


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(unrecorded, "_PAUSE_S", 0.01)
    return Disk()


@pytest.fixture
async def there(tmp_path: Path, disk: Disk) -> AsyncIterator[World]:
    with contextlib.closing(SqliteOutbox(tmp_path / "refusing.sqlite", 100)) as outbox:
        async with world(tmp_path, recorder=RefusingOutbox(outbox, disk.refuses)) as made:
            made.outbox = outbox
            yield made


async def calls(there: World, count: int) -> None:
    for _ in range(count):
        there.answer(ScriptedAnswer([WHOLE_ANSWER]))
        assert (await there.call()).status == 200


def settled(there: World) -> list[str]:
    return [each.transaction_id for each in there.events() if isinstance(each, Settlement)]


async def test_they_are_recorded_in_order_once_the_disk_takes_them(there: World, disk: Disk) -> None:
    disk.error = AWAY
    with structlog.testing.capture_logs() as logs:
        await calls(there, 3)
    assert (settled(there), there.assembly.settlements.pending) == ([], 3)
    assert [each["event"] for each in logs] == ["settlement_waits"]
    disk.error = None
    await until(lambda: len(settled(there)) == 3)
    opened = list(dict.fromkeys(each.transaction_id for each in there.events()))
    assert settled(there) == opened
    assert there.assembly.settlements.pending == 0
    await calls(there, 1)
    assert len(settled(there)) == 4


async def test_what_comes_after_them_is_recorded_behind_them(there: World, disk: Disk) -> None:
    disk.error = AWAY
    await calls(there, 2)
    disk.error = None
    await calls(there, 1)
    await until(lambda: len(settled(there)) == 3)
    assert settled(there) == list(dict.fromkeys(each.transaction_id for each in there.events()))


async def test_one_that_can_not_be_written_is_in_no_others_way(there: World, disk: Disk) -> None:
    """As of an answer whose vendor has put more into it than an event may have."""
    disk.error = ValueError("this event has 300000 bytes, and may have 262144")
    with structlog.testing.capture_logs() as logs:
        await calls(there, 1)
    assert [(each["event"], each["reason"]) for each in logs] == [("settlement_not_recorded", repr(disk.error))]
    disk.error = None
    await calls(there, 1)
    assert (len(settled(there)), there.assembly.settlements.pending) == (1, 0)


async def test_what_a_vendor_says_of_its_tier_makes_no_event_too_long(there: World) -> None:
    answer = openai_answers.completion("gpt-4o-mini") | {"service_tier": "x" * 300_000}
    there.answer(ScriptedAnswer([openai_answers.dump(answer)]))
    assert (await there.call()).status == 200
    assert there.settlement().price_context["service_tier"] == "x" * 128


async def test_of_too_many_the_oldest_are_given_up(there: World, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unrecorded, "MAX_PENDING", 2)
    disk.error = AWAY
    with structlog.testing.capture_logs() as logs:
        await calls(there, 3)
    (given_up,) = (each for each in logs if each["event"] == "settlement_not_recorded")
    assert (given_up["transaction_id"], given_up["log_level"]) == (there.events()[0].transaction_id, "error")
    assert given_up["cost_usd"] != "0.000000000"
    disk.error = None
    await until(lambda: len(settled(there)) == 2)
    assert given_up["transaction_id"] not in settled(there)


@pytest.mark.parametrize("is_full", [False, True])
async def test_the_end_tries_once_more_and_says_what_it_gives_up(there: World, disk: Disk, is_full: bool) -> None:
    disk.error = AWAY
    await calls(there, 2)
    disk.error = AWAY if is_full else None
    with structlog.testing.capture_logs() as logs:
        await there.assembly.settlements.finish()
    assert len(settled(there)) == (0 if is_full else 2)
    assert len(logs) == (2 if is_full else 0)
    assert there.assembly.settlements.pending == 0
