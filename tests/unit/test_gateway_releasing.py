"""Holds that no call will end: taken back for as long as the hot state is away, within bounds."""

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.adapters.memory import MemoryHotState, MemoryStore
from services.core.hotstate import HoldRequest, ReserveAnswer
from services.gateway import releasing
from services.gateway.releasing import Releases
from tests.support.gateway import AWAY, assert_refused, until, world


class AwayHotState(MemoryHotState):
    """Keeps what it is asked to let go, and answers for no org of `away`; `there` are the holds it has."""

    def __init__(self) -> None:
        super().__init__(lambda: 0, MemoryStore())
        self.away: set[str] = set()
        self.asked: list[str] = []
        self.there: set[str] = set()

    async def release(self, org: str, reservation_id: str) -> bool:
        self.asked.append(reservation_id)
        await asyncio.sleep(0)
        if org in self.away:
            raise AWAY
        is_there = reservation_id in self.there
        self.there.discard(reservation_id)
        return is_there


@pytest.fixture
def hot(monkeypatch: pytest.MonkeyPatch) -> AwayHotState:
    monkeypatch.setattr(releasing, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(releasing, "_LONGEST_PAUSE_S", 0.004)
    return AwayHotState()


def add(releases: Releases, hot: AwayHotState, org: str, *names: str) -> None:
    for name in names:
        hot.there.add(name)
        releases.add(org, name)


async def test_a_hold_goes_back_however_long_the_hot_state_is_away(hot: AwayHotState) -> None:
    releases, names = Releases(hot), [f"txn_{number}" for number in range(10)]
    hot.away.add("acme")
    add(releases, hot, "acme", *names)
    await until(lambda: len(hot.asked) >= 30)
    assert (releases.pending, len(hot.there)) == (10, 10)
    assert max(each.pause_s for each in releases._pending.values()) == 0.004, "it grows no further"
    hot.away.clear()
    await until(lambda: releases.pending == 0)
    assert hot.there == set()
    await until(lambda: releases._task is None)
    asked = len(hot.asked)
    add(releases, hot, "acme", "txn_later")
    await until(lambda: not hot.there)
    assert hot.asked[asked:] == ["txn_later"]


async def test_one_org_that_is_away_holds_up_no_other_and_is_asked_for_one_hold_at_a_time(
    hot: AwayHotState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(releasing, "_FIRST_PAUSE_S", 60.0)
    releases = Releases(hot)
    hot.away.add("acme")
    add(releases, hot, "acme", "txn_1", "txn_2", "txn_3")
    await until(lambda: hot.asked)
    add(releases, hot, "other", "txn_4")
    await until(lambda: releases.pending == 3)
    assert hot.asked == ["txn_1", "txn_4"]
    await releases.finish(1)


@pytest.mark.parametrize("error", [AWAY, ValueError("no such window")])
async def test_a_hold_that_can_not_be_let_go_is_in_no_others_way(
    hot: AwayHotState, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    real = hot.release

    async def release(org: str, reservation_id: str) -> bool:
        if reservation_id == "txn_0":
            raise error
        return await real(org, reservation_id)

    monkeypatch.setattr(hot, "release", release)
    releases = Releases(hot)
    add(releases, hot, "acme", *(f"txn_{number}" for number in range(5)))
    await until(lambda: hot.there == {"txn_0"})
    await until(lambda: releases.pending == (1 if error is AWAY else 0))
    await releases.finish(1)


async def test_what_is_not_there_is_asked_for_twice(hot: AwayHotState) -> None:
    releases = Releases(hot)
    releases.add("acme", "txn_1")
    await until(lambda: releases.pending == 0)
    assert hot.asked == ["txn_1", "txn_1"]


async def test_of_too_many_the_oldest_are_given_up_and_that_is_told_once(
    hot: AwayHotState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(releasing, "MAX_PENDING", 3)
    releases = Releases(hot)
    hot.away.add("acme")
    with capture_logs() as logs:
        add(releases, hot, "acme", *(f"txn_{number}" for number in range(6)))
        assert releases.pending == 3
        hot.away.clear()
        await until(lambda: releases.pending == 0)
        assert hot.there == {"txn_0", "txn_1", "txn_2"}
        await until(lambda: releases._task is None)
        hot.away.add("acme")
        add(releases, hot, "acme", *(f"txn_{number}" for number in range(6, 10)))
    assert [(each["event"], each["transaction_id"]) for each in logs] == [
        ("hold_not_released", "txn_0"),
        ("hold_not_released", "txn_6"),
    ]
    await releases.finish(1)


@pytest.mark.parametrize("is_away", [True, False])
async def test_what_is_left_at_the_end_is_tried_once_more_and_then_given_up(
    hot: AwayHotState, monkeypatch: pytest.MonkeyPatch, is_away: bool
) -> None:
    monkeypatch.setattr(releasing, "_FIRST_PAUSE_S", 60.0)
    releases = Releases(hot)
    await releases.finish(1)  # with nothing to do
    hot.away.add("acme")
    add(releases, hot, "acme", "txn_1", "txn_2")
    await until(lambda: hot.asked)
    if not is_away:
        hot.away.clear()
    with capture_logs() as logs:
        await releases.finish(1)
    assert (releases.pending, len(hot.there)) == (0, 2 if is_away else 0)
    assert [(each["event"], each["holds"]) for each in logs] == ([("holds_not_released", 2)] if is_away else [])
    assert releases._task is None


async def test_the_end_waits_no_longer_than_it_may(hot: AwayHotState, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> bool:
        await asyncio.Event().wait()
        return True

    monkeypatch.setattr(hot, "release", never)
    releases = Releases(hot)
    releases.add("acme", "txn_1")
    await asyncio.sleep(0)
    await asyncio.wait_for(releases.finish(0.01), 5)
    assert (releases.pending, releases._task) == (0, None)


class StalledHotState(MemoryHotState):
    """Takes each hold without a word, and answers no release, for as long as it `is_stalled`."""

    is_stalled = True
    tries = 0

    async def reserve(self, request: HoldRequest) -> ReserveAnswer:
        answer = await super().reserve(request)
        if self.is_stalled:
            raise AWAY
        return answer

    async def release(self, org: str, reservation_id: str) -> bool:
        self.tries += 1
        if self.is_stalled:
            raise AWAY
        return await super().release(org, reservation_id)


async def test_calls_that_were_refused_in_a_long_stall_hold_nothing_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(releasing, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(releasing, "_LONGEST_PAUSE_S", 0.002)
    async with world(tmp_path, hot_state_type=StalledHotState) as there:
        hot = there.hot_state
        assert isinstance(hot, StalledHotState)
        await there.org.set_budget("1.00")
        await there.sync()
        for _ in range(5):
            assert_refused(await there.call(), 503, "state_rebuilding")
        reservation = await there.call({"amount_usd": "0.10"}, path="/v1/reservations")
        assert reservation.status == 503
        await until(lambda: hot.tries > 20)
        assert there.assembly.releases.pending == len(hot.store.state("default").holds) == 6
        hot.is_stalled = False
        await until(lambda: there.assembly.releases.pending == 0)
        assert there.held_nano() == 0
        assert there.events() == []
