"""The reservation API between two deeds: changes at once, ends half done, and holds that nobody has recorded."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.adapters.memory import MemoryHotState
from services.adapters.memory_answers import MemoryAnswers
from services.adapters.outbox import SqliteOutbox
from services.core.answers import CLAIM_MS, Answer
from services.core.codec import decode_facts
from services.core.events import Event, Expiry, HoldResized, Reservation, Settlement
from services.core.hotstate import HoldRequest, ReserveAnswer
from services.core.ports import TimedOutError
from services.gateway.reservations.told import held
from tests.support.gateway import AWAY, RefusingOutbox, World, until, world
from tests.support.reservations import Ledger, get, post, reserve

HOUR_MS = 3_600_000


class Slow(MemoryHotState):
    """A hot state whose answers are slow, or, to the deed that is `unanswered`, done and never told."""

    unanswered = ""
    refused_releases = 0

    async def reserve(self, request: HoldRequest) -> ReserveAnswer:
        answer = await super().reserve(request)
        self._answer("reserve")
        return answer

    async def resize(self, request: HoldRequest) -> ReserveAnswer | None:
        await asyncio.sleep(0.02 if request.amount_nano < 500_000_000 else 0.01)
        answer = await super().resize(request)
        self._answer("resize")
        return answer

    async def release(self, org: str, reservation_id: str) -> bool:
        if self.refused_releases:
            self.refused_releases -= 1
            raise AWAY
        return await super().release(org, reservation_id)

    def _answer(self, deed: str) -> None:
        if self.unanswered == deed:
            raise TimedOutError("too slow")


class Forgetful(MemoryAnswers):
    """What has ended is not kept as done while it `forgets`: whoever decided it is as good as gone.

    How a hold was changed is not kept while it `refuses_sizes`.
    """

    forgets = False
    refuses_sizes = False

    async def finish(self, org: str, name: str, answer: Answer, keep_ms: int) -> Answer:
        if self.refuses_sizes and name.endswith("/size"):
            raise AWAY
        if self.forgets and name.endswith("/end") and answer.status == 3:
            raise AWAY
        return await super().finish(org, name, answer, keep_ms)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
async def there(tmp_path: Path, ledger: Ledger) -> AsyncIterator[World]:
    built: World
    answers = Forgetful(lambda: built.clock.now_ms)
    async with world(tmp_path, relay_transport=ledger, answers=answers, hot_state_type=Slow) as built:
        await built.org.set_budget("1.00")
        await built.sync()
        yield built


def hot_state_of(there: World) -> Slow:
    assert isinstance(there.hot_state, Slow)
    return there.hot_state


def answers_of(there: World) -> Forgetful:
    assert isinstance(there.ports.answers, Forgetful)
    return there.ports.answers


def of_kind(there: World, kind: type[Event]) -> list[Any]:
    return [each for each in there.events() if isinstance(each, kind)]


async def turn(there: World, by_ms: int) -> None:
    there.clock.now_ms += by_ms
    await there.sync()


# ---- changes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_keyed", [False, True])
async def test_of_two_changes_at_once_none_undoes_the_other(there: World, is_keyed: bool) -> None:
    name = (await reserve(there, "0.40")).json()["reservation_id"]
    keys = ({"idempotency_key": "more"}, {"idempotency_key": "longer"}) if is_keyed else ({}, {})
    more, longer = await asyncio.gather(
        post(there, f"/{name}/extend", {"amount_usd": "0.90"}, **keys[0]),
        post(there, f"/{name}/extend", {"hold_seconds": 7_200}, **keys[1]),
    )
    assert (more.status, more.json()["held_usd"], longer.status) == (200, "0.900000000", 200)
    assert there.held_nano() == 900_000_000
    stands = (await get(there, name)).json()
    assert (stands["held_usd"], stands["expires_at"]) == ("0.900000000", longer.json()["expires_at"])


async def test_many_changes_of_one_millisecond_are_told_as_the_last_one_left_it(there: World) -> None:
    name = (await reserve(there, "0.40")).json()["reservation_id"]
    for amount in ("0.60", "0.70", "0.80"):
        assert (await post(there, f"/{name}/extend", {"amount_usd": amount})).status == 200
    assert (await get(there, name)).json()["held_usd"] == "0.800000000"
    longer = await post(there, f"/{name}/extend", {"hold_seconds": 600})
    assert (longer.json()["held_usd"], there.held_nano()) == ("0.800000000", 800_000_000)
    await post(there, f"/{name}/settle", {"cost_usd": "0.10"})
    assert there.settlement().held_nano == 800_000_000


async def test_a_change_is_kept_before_it_is_recorded(there: World) -> None:
    """Or its end would name what was held before, and be charged to a budget that has let go of it."""
    path = f"/{(await reserve(there, '0.40')).json()['reservation_id']}"
    answers_of(there).refuses_sizes = True
    assert (await post(there, path + "/extend", {"amount_usd": "0.60"})).status == 503
    assert of_kind(there, HoldResized) == []
    answers_of(there).refuses_sizes = False
    await turn(there, CLAIM_MS)
    assert (await post(there, path + "/release")).json()["held_usd"] == "0.400000000"
    assert there.settlement().held_nano == 400_000_000


@pytest.mark.parametrize("is_recorded", [False, True])
async def test_a_change_that_may_not_be_recorded_is_recorded_by_its_end(
    tmp_path: Path, ledger: Ledger, is_recorded: bool
) -> None:
    outbox, is_down = SqliteOutbox(tmp_path / "other.sqlite", 100), not is_recorded
    recorder = RefusingOutbox(outbox, lambda event: AWAY if is_down and isinstance(event, HoldResized) else None)
    async with world(tmp_path, relay_transport=ledger, recorder=recorder) as built:
        built.outbox = outbox
        path = f"/{(await reserve(built, '0.40')).json()['reservation_id']}"
        changed = await post(built, path + "/extend", {"amount_usd": "0.60"})
        assert changed.status == (200 if is_recorded else 503)
        is_down = False
        await turn(built, CLAIM_MS)
        assert (await post(built, path + "/settle", {"cost_usd": "0.10"})).json()["held_usd"] == "0.600000000"
        assert [type(each) for each in built.events()] == [Reservation, HoldResized, Settlement]
    outbox.close()


async def test_a_change_that_may_still_come_keeps_the_next_one_waiting(there: World) -> None:
    name = (await reserve(there, "0.40")).json()["reservation_id"]
    hot_state_of(there).unanswered = "resize"
    assert (await post(there, f"/{name}/extend", {"amount_usd": "0.50"})).status == 503
    hot_state_of(there).unanswered = ""
    again = asyncio.create_task(post(there, f"/{name}/extend", {"amount_usd": "0.90"}))
    await asyncio.sleep(0.1)
    assert not again.done()
    await turn(there, CLAIM_MS)
    assert ((await again).status, there.held_nano()) == (200, 900_000_000)


async def test_a_change_that_takes_too_long_is_given_up_before_its_claim_lapses(
    there: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = (await reserve(there, "0.40")).json()["reservation_id"]
    monkeypatch.setattr("services.gateway.reservations.known._WITHIN_S", 0.001)
    assert (await post(there, f"/{name}/extend", {"amount_usd": "0.90"})).status == 503
    assert there.held_nano() == 400_000_000


async def test_a_refused_change_keeps_nobody_waiting(there: World) -> None:
    name = (await reserve(there, "0.40")).json()["reservation_id"]
    async with asyncio.timeout(5):
        assert (await post(there, f"/{name}/extend", {"amount_usd": "1.10"})).status == 402
        assert (await post(there, f"/{name}/extend", {"amount_usd": "0.90"})).status == 200
        await post(there, f"/{name}/release")
        assert (await post(there, f"/{name}/extend", {"amount_usd": "0.80"})).status == 409
        assert (await post(there, f"/{name}/extend", {"amount_usd": "0.80"})).status == 409


async def test_a_change_that_the_ledger_has_not_read_yet_is_known_beside_the_hot_state(
    there: World, ledger: Ledger
) -> None:
    name = (await reserve(there, "0.40", hold_seconds=48 * 3_600)).json()["reservation_id"]
    await turn(there, 47 * HOUR_MS)
    assert (await post(there, f"/{name}/extend", {"amount_usd": "0.10", "hold_seconds": 10 * 86_400})).status == 200
    ledger.events = of_kind(there, Reservation)
    await turn(there, 60 * HOUR_MS)
    longer = await post(there, f"/{name}/extend", {"hold_seconds": 600})
    assert (longer.status, longer.json()["held_usd"]) == (200, "0.100000000")


# ---- ends -----------------------------------------------------------------------------------------------------------


async def test_a_reservation_whose_end_is_decided_is_neither_extended_nor_told_as_held(there: World) -> None:
    name = (await reserve(there, "0.40")).json()["reservation_id"]
    answers_of(there).forgets = True
    ended = await post(there, f"/{name}/settle", {"cost_usd": "0.25"})
    answers_of(there).forgets = False
    assert ended.status == 200
    assert (await post(there, f"/{name}/extend", {"amount_usd": "0.90"})).status == 409
    assert of_kind(there, HoldResized) == []
    assert (await get(there, name)).json() == ended.json()


async def test_an_end_that_was_decided_and_not_recorded_is_recorded_before_it_is_told(
    tmp_path: Path, ledger: Ledger
) -> None:
    outbox, is_down = SqliteOutbox(tmp_path / "other.sqlite", 100), False
    recorder = RefusingOutbox(outbox, lambda _: AWAY if is_down else None)
    async with world(tmp_path, relay_transport=ledger, recorder=recorder) as built:
        name = (await reserve(built, "0.40")).json()["reservation_id"]
        is_down = True
        assert (await post(built, f"/{name}/settle", {"cost_usd": "0.25"})).status == 503
        assert (await get(built, name)).status == 503
        is_down = False
        told = (await get(built, name)).json()
        assert (told["state"], told["cost_usd"]) == ("settled", "0.250000000")
        assert (await get(built, name)).json() == told
        assert (await post(built, f"/{name}/settle", {"cost_usd": "0.25"})).json() == told
        assert len([each for each in outbox.oldest(100) if b"settlement" in each.message.value]) == 1
    outbox.close()


# ---- holds that nobody has recorded ---------------------------------------------------------------------------------


async def lost(there: World) -> Expiry:
    """A hold whose gateway died before it was recorded, and the expiry that a reaper publishes of it."""
    hot_state_of(there).unanswered = "reserve"
    assert (await reserve(there, "0.40", "order-1", hold_seconds=60)).status == 503
    hot_state_of(there).unanswered = ""
    await turn(there, 61_000)
    (due,) = await there.hot_state.claim_due("default", 10)
    facts, now_ms = decode_facts(due.context), there.clock.now_ms
    return Expiry(due.reservation_id, now_ms, facts, due.amount_nano, due.amount_nano, due.charges, due.admitted_at_ms)


async def test_what_was_never_recorded_and_has_expired_is_told_so_for_ever(there: World, ledger: Ledger) -> None:
    expiry = await lost(there)
    ledger.events = [expiry]
    for later_ms in (0, HOUR_MS, 30 * 24 * HOUR_MS):
        await turn(there, later_ms)
        refused = await reserve(there, "0.40", "order-1", hold_seconds=60)
        assert (refused.status, refused.json()["error"]) == (409, "reservation_lapsed")
        assert refused.json()["reservation_id"] == expiry.transaction_id
    other = await reserve(there, "0.50", "order-1", hold_seconds=60)
    assert (other.status, other.json()["error"]) == (409, "idempotency_conflict")
    for deed, body in (("extend", {"amount_usd": "0.90"}), ("settle", {"cost_usd": "0.10"}), ("release", {})):
        assert (await post(there, f"/{expiry.transaction_id}/{deed}", body)).json()["error"] == "reservation_lapsed"
    assert (await get(there, expiry.transaction_id)).status == 409
    assert there.events() == []
    assert (await reserve(there, "0.40", "order-2")).status == 201


@pytest.mark.parametrize("is_folded", [False, True])
async def test_a_hold_that_has_ended_is_not_told_as_held(there: World, ledger: Ledger, is_folded: bool) -> None:
    """Until the ledger has read how it ended, nobody can say more."""
    expiry = await lost(there)
    if is_folded:
        hold = there.hot_state.store.state("default").holds[expiry.transaction_id]
        there.hot_state.store.state("default").holds[expiry.transaction_id] = replace(
            hold, phase="expired", context="", expires_at_ms=there.clock.now_ms + HOUR_MS
        )
    assert (await reserve(there, "0.40", "order-1", hold_seconds=60)).status == 503
    assert there.events() == []
    ledger.events = [expiry]
    assert (await reserve(there, "0.40", "order-1", hold_seconds=60)).status == 409


async def test_where_only_its_gateway_was_late_it_is_told_as_it_was(there: World, ledger: Ledger) -> None:
    told = await reserve(there, "0.40", "order-1", hold_seconds=60)
    (first,) = of_kind(there, Reservation)
    ledger.events = [Expiry(first.transaction_id, first.expires_at_ms, first.facts, 1, 1, first.charges, first.time_ms)]
    await turn(there, 2 * HOUR_MS)
    assert (await reserve(there, "0.40", "order-1", hold_seconds=60)).json() == told.json(), "it was kept"
    assert (await post(there, f"/{first.transaction_id}/settle", {"cost_usd": "0.10"})).status == 503
    assert of_kind(there, Settlement) == []
    await turn(there, 30 * 24 * HOUR_MS)
    ledger.events = [*ledger.events, first]
    assert (await reserve(there, "0.40", "order-1", hold_seconds=60)).json() == told.json() == held(first)


async def test_a_hold_that_can_not_be_recorded_is_released_however_often_that_fails(
    tmp_path: Path, ledger: Ledger
) -> None:
    outbox = SqliteOutbox(tmp_path / "other.sqlite", 10)
    recorder = RefusingOutbox(outbox, lambda _: AWAY)
    async with world(tmp_path, hot_state_type=Slow, relay_transport=ledger, recorder=recorder) as built:
        await built.org.set_budget("1.00")
        await built.sync()
        hot_state_of(built).refused_releases = 2
        assert (await reserve(built, "0.60")).status == 503
        await until(lambda: built.held_nano() == 0)
    outbox.close()
