"""The reservation API's ends and changes of one reservation: they wait for one another, at whatever gateway."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from services.adapters.memory import MemoryHotState
from services.adapters.memory_answers import MemoryAnswers
from services.core.answers import CLAIM_MS, Answer
from services.core.budgets import Budget
from services.core.events import Event, HoldResized, Reservation, Settlement, Stamped
from services.core.fold import apply, step_of
from services.core.hotstate import HoldRequest, ReserveAnswer
from services.core.ports import NotSentError, TimedOutError
from services.gateway.assemble import assemble
from tests.support.asgi import Client
from tests.support.gateway import DAY, World, options, until, world
from tests.support.reservations import Ledger, post, reserve

# The status of an end that is decided, and not recorded yet.
DECIDED = 2
CHILD = "bud_child"


class Gated(MemoryHotState):
    """A hot state that changes a hold at once and says so when `told` is set, unless it `is_unanswered`."""

    resized = 0
    is_unanswered = False
    told: asyncio.Event

    async def resize(self, request: HoldRequest) -> ReserveAnswer | None:
        answer = await super().resize(request)
        self.resized += 1
        await self.told.wait()
        if self.is_unanswered:
            raise TimedOutError("too slow")
        return answer


class GatedAnswers(MemoryAnswers):
    """Answers that take as long as `pause` says; an end is decided when `decides` is set, unless it `fails`."""

    fails: Exception | None = None
    deciding = 0
    decides: asyncio.Event
    pause: Callable[[], float] | None = None

    async def claim(self, org: str, name: str, request_hash: str, keep_ms: int) -> Answer | None:
        await self._pause()
        return await super().claim(org, name, request_hash, keep_ms)

    async def find(self, org: str, name: str) -> Answer | None:
        await self._pause()
        return await super().find(org, name)

    async def finish(self, org: str, name: str, answer: Answer, keep_ms: int) -> Answer:
        if answer.status == DECIDED:
            self.deciding += 1
            await self.decides.wait()
            if self.fails is not None:
                raise self.fails
        await self._pause()
        return await super().finish(org, name, answer, keep_ms)

    async def _pause(self) -> None:
        if self.pause is not None:
            await asyncio.sleep(self.pause())


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    built: World
    answers = GatedAnswers(lambda: built.clock.now_ms)
    answers.decides = asyncio.Event()
    answers.decides.set()
    async with world(tmp_path, relay_transport=Ledger(), answers=answers, hot_state_type=Gated) as built:
        hot_state_of(built).told = asyncio.Event()
        hot_state_of(built).told.set()
        await built.org.set_budget("9.00")
        parent = built.org.snapshot.budgets[0]
        child = Budget(CHILD, "team", "ml", DAY, 500_000_000, parent_id=parent.budget_id, child_mode="fallback")
        await built.org.publish(budgets=(parent, child))
        await built.sync()
        yield built


async def another(there: World) -> World:
    """Another gateway beside the same hot state."""
    beside = replace(there, assembly=assemble(there.ports, options()))
    await beside.sync()
    return beside


def hot_state_of(there: World) -> Gated:
    assert isinstance(there.hot_state, Gated)
    return there.hot_state


def answers_of(there: World) -> GatedAnswers:
    assert isinstance(there.ports.answers, GatedAnswers)
    return there.ports.answers


def of_kind(there: World, kind: type[Event]) -> list[Any]:
    return [each for each in there.events() if isinstance(each, kind)]


def taken_nano(there: World, budget_id: str) -> int:
    """All that a budget has spent and holds."""
    windows = there.hot_state.store.state("default").windows
    return sum(each.spent_nano + each.held_nano for (name, _), each in windows.items() if name == budget_id)


def fold(there: World) -> None:
    for number, event in enumerate(there.events()):
        step = step_of(Stamped(event, "gw_1", number + 1), number)
        if step is not None:
            apply(there.hot_state.store.state("default"), "spend", 0, [step], number + 1, there.clock.now_ms)


def started(there: World, path: str, body: object = None, **headers: str) -> "asyncio.Task[Client]":
    return asyncio.create_task(post(there, path, body, **headers))


async def settle(there: World, name: str, cost: str = "0.35") -> Client:
    return await post(there, f"/{name}/settle", {"cost_usd": cost})


async def stays_open(task: "asyncio.Task[Client]") -> bool:
    done, _ = await asyncio.wait([task], timeout=0.1)
    return not done


# ---- a change is under way ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("deed", "body"), [("settle", {"cost_usd": "0.45"}), ("release", {})])
async def test_an_end_waits_for_the_change_and_names_what_that_has_left(
    there: World, deed: str, body: dict[str, str]
) -> None:
    name = (await reserve(there, "0.40")).json()["reservation_id"]
    hot_state_of(there).told.clear()
    more = started(there, f"/{name}/extend", {"amount_usd": "0.90"})
    await until(lambda: hot_state_of(there).resized)
    end = started(await another(there), f"/{name}/{deed}", body)
    assert await stays_open(end)
    assert of_kind(there, Settlement) == []
    hot_state_of(there).told.set()
    assert ((await more).status, (await end).status) == (200, 200)
    (changed,), settlement = of_kind(there, HoldResized), there.settlement()
    assert [type(each) for each in there.events()][-2:] == [HoldResized, Settlement]
    assert (settlement.held_nano, settlement.charges) == (900_000_000, changed.charges)
    assert settlement.parent_charged == (CHILD,)


async def test_a_child_that_a_hold_has_outgrown_is_not_charged_beside_what_has_taken_its_room(there: World) -> None:
    name = (await reserve(there, "0.40")).json()["reservation_id"]
    hot_state_of(there).told.clear()
    more = started(there, f"/{name}/extend", {"amount_usd": "0.90"})
    await until(lambda: hot_state_of(there).resized)
    end = asyncio.create_task(settle(there, name, "0.40"))
    assert (await reserve(there, "0.45")).status == 201
    hot_state_of(there).told.set()
    assert ((await more).status, (await end).status) == (200, 200)
    fold(there)
    assert (await reserve(there, "0.50")).status == 201
    assert taken_nano(there, CHILD) <= 500_000_000


async def test_a_change_that_may_still_come_keeps_the_end_waiting(there: World) -> None:
    name = (await reserve(there, "0.40")).json()["reservation_id"]
    hot_state_of(there).is_unanswered = True
    assert (await post(there, f"/{name}/extend", {"amount_usd": "0.90"})).status == 503
    end = asyncio.create_task(settle(there, name))
    assert await stays_open(end)
    assert of_kind(there, Settlement) == []
    there.clock.now_ms += CLAIM_MS
    assert (await end).status == 200
    assert len(of_kind(there, Settlement)) == 1


async def test_who_ends_while_another_is_at_it_for_too_long_asks_again(
    there: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.reservations.known._PATIENCE_S", 0.05)
    name = (await reserve(there, "0.40")).json()["reservation_id"]
    hot_state_of(there).told.clear()
    more = started(there, f"/{name}/extend", {"amount_usd": "0.90"})
    await until(lambda: hot_state_of(there).resized)
    refused = await settle(there, name)
    assert (refused.status, of_kind(there, Settlement)) == (503, [])
    hot_state_of(there).told.set()
    assert (await more).status == 200
    assert (await settle(there, name)).status == 200


async def test_a_change_that_was_given_up_by_its_caller_lets_the_end_in_when_its_claim_lapses(there: World) -> None:
    name = (await reserve(there, "0.40")).json()["reservation_id"]
    hot_state_of(there).told.clear()
    more = started(there, f"/{name}/extend", {"amount_usd": "0.90"})
    await until(lambda: hot_state_of(there).resized)
    more.cancel()
    end = asyncio.create_task(settle(there, name))
    assert await stays_open(end)
    there.clock.now_ms += CLAIM_MS
    assert (await end).status == 200


# ---- an end is under way --------------------------------------------------------------------------------------------


async def test_a_change_that_comes_second_is_told_that_it_has_ended(there: World) -> None:
    name = (await reserve(there, "0.40")).json()["reservation_id"]
    answers_of(there).decides.clear()
    end = asyncio.create_task(settle(there, name))
    await until(lambda: answers_of(there).deciding)
    beside = await another(there)
    more = started(beside, f"/{name}/extend", {"amount_usd": "0.90"})
    keyed = started(beside, f"/{name}/extend", {"amount_usd": "0.80"}, idempotency_key="more")
    assert await stays_open(more)
    assert await stays_open(keyed)
    answers_of(there).decides.set()
    assert (await end).status == 200
    for late in (await more, await keyed):
        assert (late.status, late.json()["error"]) == (409, "reservation_ended")
    assert (hot_state_of(there).resized, of_kind(there, HoldResized)) == (0, [])


async def test_an_end_that_may_still_be_decided_keeps_the_next_deed_waiting(there: World) -> None:
    name = (await reserve(there, "0.40")).json()["reservation_id"]
    answers_of(there).fails = TimedOutError("too slow")
    assert (await settle(there, name)).status == 503
    answers_of(there).fails = None
    more = started(there, f"/{name}/extend", {"amount_usd": "0.90"})
    assert await stays_open(more)
    there.clock.now_ms += CLAIM_MS
    assert (await more).status == 200
    assert (await settle(there, name)).status == 200
    assert there.settlement().held_nano == 900_000_000


async def test_what_was_never_asked_for_keeps_nobody_waiting(there: World) -> None:
    name = (await reserve(there, "0.40")).json()["reservation_id"]
    answers_of(there).fails = NotSentError("nobody is there")
    assert (await settle(there, name)).status == 503
    answers_of(there).fails = None
    async with asyncio.timeout(5):
        assert (await post(there, f"/{name}/extend", {"amount_usd": "0.90"})).status == 200
        unpriced = {"usage": {"input_tokens": 1}}
        assert (await post(there, f"/{name}/settle", unpriced)).status == 400
        assert (await settle(there, name)).status == 200


async def test_an_end_that_takes_too_long_is_given_up_before_its_claim_lapses(
    there: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = (await reserve(there, "0.40")).json()["reservation_id"]
    monkeypatch.setattr("services.gateway.reservations.known._WITHIN_S", 0.001)
    answers_of(there).decides.clear()
    assert (await settle(there, name)).status == 503
    assert of_kind(there, Settlement) == []


async def test_who_was_too_slow_takes_no_turn_from_whoever_has_come_after_it(there: World) -> None:
    name = (await reserve(there, "0.40")).json()["reservation_id"]
    hot_state_of(there).told.clear()
    answers_of(there).decides.clear()
    slow = started(there, f"/{name}/extend", {"amount_usd": "0.45"})
    await until(lambda: hot_state_of(there).resized)
    there.clock.now_ms += CLAIM_MS
    end = asyncio.create_task(settle(there, name))
    await until(lambda: answers_of(there).deciding)
    hot_state_of(there).told.set()
    assert (await slow).status == 200
    more = started(there, f"/{name}/extend", {"amount_usd": "0.90"})
    assert await stays_open(more)
    answers_of(there).decides.set()
    assert ((await end).status, (await more).status) == (200, 409)
    assert hot_state_of(there).resized == 1


# ---- the same request, asked again meanwhile ------------------------------------------------------------------------


async def test_a_keyed_change_that_outwaits_another_is_made_once(there: World) -> None:
    name = (await reserve(there, "0.40")).json()["reservation_id"]
    assert await answers_of(there).claim("default", f"{name}/end", "a gateway that is gone", CLAIM_MS) is None
    body = {"amount_usd": "0.45", "hold_seconds": 60}
    twins = [started(there, f"/{name}/extend", body, idempotency_key="more") for _ in range(3)]
    other = started(there, f"/{name}/extend", {"amount_usd": "0.46"}, idempotency_key="more")
    assert await stays_open(twins[0])
    there.clock.now_ms += CLAIM_MS
    told = [await each for each in twins]
    first_is_other = (await other).status == 200
    assert {each.status for each in told} == ({409} if first_is_other else {200})
    assert all(each.json() == told[0].json() for each in told)
    assert len(of_kind(there, HoldResized)) == 1


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_comes_at_once_the_end_is_last_and_names_what_the_last_change_has_left(
    there: World, seed: int
) -> None:
    rng = Random(seed)
    answers_of(there).pause = lambda: rng.uniform(0, 0.004)
    gateways = (there, await another(there))
    name = (await reserve(there, "0.30")).json()["reservation_id"]
    told: list[tuple[str, Client]] = []

    async def do(what: str, deed: str, body: object = None, **headers: str) -> None:
        await asyncio.sleep(rng.uniform(0, 0.05))
        told.append((what, await post(rng.choice(gateways), f"/{name}/{deed}", body, **headers)))

    await asyncio.gather(
        *(do("change", "extend", {"amount_usd": f"0.{rng.randrange(31, 70)}"}) for _ in range(3)),
        *(do("twin", "extend", {"amount_usd": "0.52"}, idempotency_key="twin") for _ in range(2)),
        do("end", "settle", {"cost_usd": "0.29"}),
        do("end", *rng.choice((("release", None), ("settle", {"cost_usd": "0.29"})))),
    )
    changes, (settlement, *copies) = of_kind(there, HoldResized), of_kind(there, Settlement)
    assert [settlement, *copies] == there.events()[-1 - len(copies) :], "it may be recorded twice, under one number"
    last = changes[-1] if changes else of_kind(there, Reservation)[0]
    assert (settlement.held_nano, settlement.charges) == (last.held_nano, last.charges)
    assert {each.status for _, each in told} <= {200, 409}
    first, second = (each for what, each in told if what == "twin")
    assert (first.status, first.json()) == (second.status, second.json()), "the one is the answer to the other"
    done = [what for what, each in told if each.status == 200]
    assert "change" not in done[done.index("end") :], "nothing is changed after it was told as ended"
    assert len(changes) == done.count("change") + (first.status == 200)
