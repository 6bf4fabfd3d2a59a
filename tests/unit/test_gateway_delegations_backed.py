"""A part is told when all of it is held and its key works, and never before: whoever dies in between leaves nothing."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.core.events import HoldResized, Reservation
from services.core.hotstate import HoldRequest, ReserveAnswer
from services.core.identity import hash_key
from services.core.ports import TimedOutError, UnavailableError
from services.gateway.delegations import backing
from services.gateway.delegations.desk import Desk
from tests.support.delegations import Scene, budget_of, scene_at
from tests.support.gateway import AWAY, PEPPER, until

SIXTY = {"amount_usd": "0.60", "expires_in_seconds": 3_600}
MINUTE_MS = 60_000
HELD = (0, 600_000_000)
FREE = (0, 0)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene_at(tmp_path) as made:
        yield made


def of_kind(scene: Scene, kind: type[Any]) -> list[Any]:
    return [each for each in scene.there.events() if isinstance(each, kind)]


async def nothing(*_arguments: object, **_named: object) -> None:
    """What a gateway does that was killed."""


async def dies(scene: Scene, budget_id: str, monkeypatch: pytest.MonkeyPatch, once: str | None) -> None:
    """Asks for a part at a gateway that dies when control has made it, before all of it is held."""
    about_to = asyncio.Event()

    async def hanging(_asked: HoldRequest) -> None:
        about_to.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        patched.setattr(scene.there.hot_state, "resize", hanging)
        patched.setattr(Desk, "_give_up", nothing)
        asking = asyncio.create_task(scene.post(f"{budget_id}/delegate", SIXTY, once=once))
        await about_to.wait()
        asking.cancel()
        await asyncio.wait([asking])
    await scene.fold()


async def test_a_part_is_held_for_a_moment_and_for_all_of_its_time_when_control_has_made_it(scene: Scene) -> None:
    budget_id = await budget_of(scene)
    scene.control.gate.clear()
    asking = asyncio.create_task(scene.post(f"{budget_id}/delegate", SIXTY))
    await until(lambda: scene.figures(budget_id) == HELD)
    (first,) = of_kind(scene, Reservation)
    assert first.expires_at_ms - first.time_ms == MINUTE_MS
    scene.control.gate.set()
    told = await asking
    assert told.status == 201
    (resized,) = of_kind(scene, HoldResized)
    (part,) = scene.control.kept.values()
    assert (resized.transaction_id, resized.held_nano, resized.charges) == (
        first.transaction_id,
        first.held_nano,
        first.charges,
    )
    assert resized.expires_at_ms >= part["ends_ms"]
    await scene.fold()
    await scene.reap(after_ms=3_500_000)
    assert scene.figures(budget_id) == HELD
    assert await scene.spend(told.json()["key"], 500_000) == 200
    await scene.reap(after_ms=110_000)
    assert scene.figures(budget_id) == (300_000_000, 0)


async def test_a_part_of_a_minute_is_held_no_longer_than_it_lives(scene: Scene) -> None:
    budget_id = await budget_of(scene)
    await scene.delegate(budget_id, "0.60", expires_in_seconds=60)
    await scene.fold()
    await scene.reap(after_ms=64_000)
    assert scene.figures(budget_id) == FREE


@pytest.mark.parametrize("once", [None, "run-7"])
async def test_what_is_held_when_a_gateway_dies_that_control_has_not_answered_is_free_after_a_minute(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, once: str | None
) -> None:
    budget_id = await budget_of(scene)
    monkeypatch.setattr(Desk, "_give_up", nothing)
    scene.control.gate.clear()
    asking = asyncio.create_task(scene.post(f"{budget_id}/delegate", SIXTY, once=once))
    await until(lambda: scene.figures(budget_id) == HELD)
    asking.cancel()
    await asyncio.wait([asking])
    await scene.fold()
    await scene.reap(after_ms=MINUTE_MS - 1_000)
    assert scene.figures(budget_id) == HELD
    await scene.reap(after_ms=2_000)
    assert scene.figures(budget_id) == FREE


async def test_what_is_held_when_a_gateway_dies_that_control_has_answered_is_free_after_a_minute(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a part of a part, too: what it was carved from is then settled at what else was spent of it."""
    budget_id = await budget_of(scene)
    outer = await scene.delegate(budget_id, "0.80")
    scene.there.key, key = outer["key"], scene.there.key
    await dies(scene, outer["budget_id"], monkeypatch, None)
    assert scene.figures(outer["budget_id"]) == HELD
    await scene.reap(after_ms=MINUTE_MS + 1_000)
    assert scene.figures(outer["budget_id"]) == FREE
    assert await scene.spend(outer["key"], 500_000) == 200
    scene.there.key = key
    assert (await scene.post(f"{outer['budget_id']}/end")).status == 200
    await scene.reap(after_ms=4_000)
    assert scene.figures(budget_id) == (300_000_000, 0)


async def test_the_same_request_finishes_what_a_gateway_has_left_that_died(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget_id = await budget_of(scene)
    await dies(scene, budget_id, monkeypatch, "run-7")
    told = [await scene.post(f"{budget_id}/delegate", SIXTY, once="run-7") for _ in range(2)]
    assert [each.status for each in told] == [201, 201]
    assert told[0].content == told[1].content
    assert len(of_kind(scene, HoldResized)) == 1, "what is held for all of its time is left alone"
    await scene.fold()
    await scene.reap(after_ms=10 * MINUTE_MS)
    assert scene.figures(budget_id) == HELD
    assert await scene.spend(told[0].json()["key"], 500_000) == 200


async def test_the_key_of_a_part_that_is_held_no_more_is_told_to_nobody(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget_id = await budget_of(scene)
    path = f"{budget_id}/delegate"
    await dies(scene, budget_id, monkeypatch, "run-7")
    await scene.reap(after_ms=MINUTE_MS + 1_000)
    (part,) = scene.control.kept.values()
    for _ in range(2):
        told = await scene.post(path, SIXTY, once="run-7")
        assert (told.status, told.json()["error"]) == (409, "part_lapsed")
        assert told.json()["budget_id"] == part["budget_id"]
        assert "new Idempotency-Key" in told.json()["message"]
        assert part["key"] not in str(told.content)
    assert (part["has_ended"], part["has_lapsed"]) == (True, True)
    assert (await scene.post(path, {"amount_usd": "0.61"}, once="run-7")).json()["error"] == "idempotency_conflict"
    assert await scene.spend(part["key"], 1) == 401
    assert scene.figures(budget_id) == FREE
    other = await scene.post(path, SIXTY, once="run-8")
    assert (other.status, scene.figures(budget_id)) == (201, HELD)


async def test_a_part_has_lapsed_when_a_reaper_has_its_hold(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settlement may be on the way: what it holds can't be held on."""
    budget_id = await budget_of(scene)
    await dies(scene, budget_id, monkeypatch, "run-7")
    scene.there.clock.now_ms += MINUTE_MS + 1_000
    await scene.there.sync()
    await scene.there.hot_state.claim_due(scene.there.org.name, 10)
    assert (await scene.post(f"{budget_id}/delegate", SIXTY, once="run-7")).json()["error"] == "part_lapsed"


async def test_a_part_that_can_not_be_ended_at_control_is_not_said_to_have_lapsed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget_id = await budget_of(scene)
    await dies(scene, budget_id, monkeypatch, "run-7")
    await scene.reap(after_ms=MINUTE_MS + 1_000)

    async def away(*_arguments: object) -> None:
        raise UnavailableError("control answers 500")

    with monkeypatch.context() as patched:
        patched.setattr("services.gateway.delegations.control.ControlDelegations.lapse", away)
        assert (await scene.post(f"{budget_id}/delegate", SIXTY, once="run-7")).status == 503
    assert (await scene.post(f"{budget_id}/delegate", SIXTY, once="run-7")).status == 409


@pytest.mark.parametrize(("once", "status", "code"), [(None, 503, "service_unavailable"), ("a", 409, "part_lapsed")])
async def test_when_control_takes_longer_than_the_hold_the_part_has_ended(
    scene: Scene, once: str | None, status: int, code: str
) -> None:
    budget_id = await budget_of(scene)
    scene.control.gate.clear()
    asking = asyncio.create_task(scene.post(f"{budget_id}/delegate", SIXTY, once=once))
    await until(lambda: scene.figures(budget_id) == HELD)
    await scene.fold()
    await scene.reap(after_ms=MINUTE_MS + 1_000)
    scene.control.gate.set()
    told = await asking
    assert (told.status, told.json()["error"]) == (status, code)
    (part,) = scene.control.kept.values()
    assert (part["has_ended"], part["has_lapsed"]) == (True, True)
    await scene.fold()
    assert scene.figures(budget_id) == FREE
    assert (await scene.post(f"{budget_id}/delegate", SIXTY)).status == 201


@pytest.mark.parametrize("is_held_whole", [True, False])
async def test_a_part_whose_hold_is_not_known_to_be_changed_is_finished_or_given_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, is_held_whole: bool
) -> None:
    budget_id = await budget_of(scene, "2.00")
    resize = scene.there.hot_state.resize

    async def silent(asked: HoldRequest) -> ReserveAnswer | None:
        if is_held_whole:
            await resize(asked)
        raise TimedOutError("too slow")

    with monkeypatch.context() as patched:
        patched.setattr(scene.there.hot_state, "resize", silent)
        alone = await scene.post(f"{budget_id}/delegate", SIXTY)
        assert (alone.status, "nothing is held" in alone.json()["message"]) == (503, True)
        (part,) = scene.control.kept.values()
        assert part["has_ended"]
        await scene.fold()
        assert scene.figures(budget_id) == FREE
        assert (await scene.post(f"{budget_id}/delegate", SIXTY, once="run-7")).status == 503
    part = (await scene.post(f"{budget_id}/delegate", SIXTY, once="run-7")).json()
    await scene.fold()
    await scene.reap(after_ms=10 * MINUTE_MS)
    assert scene.figures(budget_id) == HELD
    assert await scene.spend(part["key"], 500_000) == 200


async def test_a_key_is_told_when_gateways_find_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control's publication may have failed, or been overtaken by one that is still under way."""
    budget_id = await budget_of(scene)
    find_key, looks = scene.there.directory.find_key, 0
    parts = scene.control.kept

    async def later(key_hash: str) -> Any:
        nonlocal looks
        if key_hash in {hash_key(each["key"], PEPPER) for each in parts.values()}:
            looks += 1
            if looks == 2:
                raise UnavailableError("bare") if len(parts) == 2 else AWAY
            return None if looks < 4 else await find_key(key_hash)
        return await find_key(key_hash)

    monkeypatch.setattr(scene.there.directory, "find_key", later)
    alone = await scene.post(f"{budget_id}/delegate", SIXTY)
    assert (alone.status, "nothing is held" in alone.json()["message"]) == (503, True)
    await scene.fold()
    assert (scene.figures(budget_id), [each["has_ended"] for each in parts.values()]) == (FREE, [True])
    looks = 0
    assert (await scene.post(f"{budget_id}/delegate", SIXTY, once="run-7")).status == 503
    part = await scene.post(f"{budget_id}/delegate", SIXTY, once="run-7")
    assert (part.status, looks) == (201, 4), "it was waited for"
    assert await scene.spend(part.json()["key"], 500_000) == 200


async def test_a_key_that_gateways_do_not_find_is_not_told(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    budget_id = await budget_of(scene)
    monkeypatch.setattr(backing, "_PUBLISHED_S", 0.1)
    part = await scene.post(f"{budget_id}/delegate", SIXTY, once="run-7")
    key_hash = hash_key(part.json()["key"], PEPPER)
    find_key = scene.there.directory.find_key

    async def lost(asked: str) -> Any:
        return None if asked == key_hash else await find_key(asked)

    with monkeypatch.context() as patched:
        patched.setattr(scene.there.directory, "find_key", lost)
        told = await scene.post(f"{budget_id}/delegate", SIXTY, once="run-7")
        assert (told.status, told.json()["error"]) == (503, "service_unavailable")
    assert (await scene.post(f"{budget_id}/delegate", SIXTY, once="run-7")).content == part.content


async def test_a_part_is_not_told_while_it_is_not_known_how_it_is_held(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept beside the hot state goes in time, and then the ledger is asked, which may lag or be away."""
    budget_id = await budget_of(scene)
    part = await scene.post(f"{budget_id}/delegate", SIXTY, once="run-7")
    for told in (None, AWAY):

        async def of_ledger(*_arguments: object, told: Exception | None = told) -> None:
            if told is not None:
                raise told

        with monkeypatch.context() as patched:
            patched.setattr("services.gateway.reservations.past.History.find", of_ledger)
            assert (await scene.post(f"{budget_id}/delegate", SIXTY, once="run-7")).status == 503
    assert (await scene.post(f"{budget_id}/delegate", SIXTY, once="run-7")).content == part.content
