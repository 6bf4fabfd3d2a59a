"""A part that is asked for again under its Idempotency-Key: one part, one answer, whatever fails in between."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.core.events import Reservation
from services.core.identity import is_key_text
from services.core.parts import part_key
from services.gateway.delegations import desk
from services.gateway.delegations.backing import SETTLE_MS
from tests.support.delegations import Scene, budget_of, scene_at
from tests.support.gateway import AWAY, until
from tests.unit.test_gateway_delegations import get

SIXTY = {"amount_usd": "0.60"}


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene_at(tmp_path) as made:
        yield made


async def test_the_same_request_is_answered_the_same_and_makes_one_part(scene: Scene) -> None:
    budget_id = await budget_of(scene)
    path = f"{budget_id}/delegate"
    first = await scene.post(path, SIXTY, once="run-7")
    assert first.status == 201, first.content
    part = first.json()
    scene.there.clock.now_ms += 1_000
    again = await scene.post(path, {"amount_usd": "0.6"}, once="run-7")
    assert (again.status, again.json()) == (201, part), "however it is written"
    assert (await scene.spend(part["key"], 500_000), scene.figures(budget_id)) == (200, (0, 600_000_000))
    assert (await scene.post(f"{part['budget_id']}/end")).status == 200
    assert ((await scene.post(path, SIXTY, once="run-7")).json(), await scene.spend(part["key"], 1)) == (part, 401)
    await scene.reap(after_ms=4_000)
    assert scene.figures(budget_id) == (300_000_000, 0)
    assert len([each for each in scene.there.events() if isinstance(each, Reservation)]) == 2, "the part and its call"


async def test_another_request_under_the_same_key_is_refused(scene: Scene) -> None:
    budget_id = await budget_of(scene)
    other_id = await scene.there.org.set_budget("5.00", "team", "ml")
    await scene.there.sync()
    part = (await scene.post(f"{budget_id}/delegate", SIXTY, once="run-7")).json()
    for budget, body in (
        (budget_id, {"amount_usd": "0.61"}),
        (budget_id, {**SIXTY, "agent": "reader"}),
        (budget_id, {**SIXTY, "expires_in_seconds": 60}),
        (other_id, SIXTY),
    ):
        refused = await scene.post(f"{budget}/delegate", body, once="run-7")
        assert (refused.status, refused.json()["error"]) == (409, "idempotency_conflict")
        assert refused.json()["budget_id"] == part["budget_id"]
    assert scene.figures(budget_id) == (0, 600_000_000)
    bad = await scene.post(f"{budget_id}/delegate", SIXTY, once="x" * 256)
    assert (bad.status, bad.json()["field"]) == (400, "idempotency-key")


async def test_every_api_key_has_its_own_and_other_keys_make_other_parts(scene: Scene) -> None:
    budget_id = await budget_of(scene)
    other = await scene.there.org.make_key(team="ml")
    await scene.there.sync()
    asked = {"amount_usd": "0.20"}
    told = [
        (await scene.post(f"{budget_id}/delegate", asked, key=key, once=once)).json()
        for key, once in ((None, "a"), (None, "b"), (other, "a"))
    ]
    assert len({each["key"] for each in told}) == len({each["budget_id"] for each in told}) == 3
    assert scene.figures(budget_id) == (0, 600_000_000)


async def test_the_same_request_many_times_at_once_makes_one_part(scene: Scene) -> None:
    budget_id = await budget_of(scene)
    answers = await asyncio.gather(*(scene.post(f"{budget_id}/delegate", SIXTY, once="run-7") for _ in range(8)))
    assert {each.status for each in answers} == {201}
    assert len({each.content for each in answers}) == 1
    assert scene.figures(budget_id) == (0, 600_000_000)


async def test_whoever_is_slower_than_its_claim_holds_nothing_on(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim lapses after a while: then two may be at it, and control keeps one."""
    budget_id = await budget_of(scene, "5.00")

    @contextlib.asynccontextmanager
    async def lapsed(*_arguments: object) -> AsyncIterator[None]:
        yield

    monkeypatch.setattr(desk, "alone", lapsed)
    scene.control.gate.clear()
    asking = [asyncio.create_task(scene.post(f"{budget_id}/delegate", SIXTY, once="run-7")) for _ in range(3)]
    await until(lambda: scene.figures(budget_id) == (0, 1_800_000_000))
    scene.control.gate.set()
    answers = await asyncio.gather(*asking)
    assert [each.status for each in answers] == [201] * 3
    assert len({each.content for each in answers}) == 1
    await scene.fold()
    assert scene.figures(budget_id) == (0, 600_000_000)
    assert await scene.spend(answers[0].json()["key"], 500_000) == 200


@pytest.mark.parametrize("lost", ["request", "answer"])
async def test_when_control_does_not_answer_the_next_try_finishes_what_was_begun(scene: Scene, lost: str) -> None:
    budget_id = await budget_of(scene)
    path = f"{budget_id}/delegate"
    scene.control.loses = [lost, lost]
    for _ in range(1 if lost == "answer" else 2):
        client = await scene.post(path, SIXTY, once="run-7")
        assert (client.status, client.json()["error"]) == (503, "service_unavailable")
        assert "ask again with it" in client.json()["message"]
        await scene.fold()
        assert scene.figures(budget_id) == (0, 600_000_000), "never a second time"
    assert (await scene.post(path, {"amount_usd": "0.1"}, once="run-7")).status == 409, "it is another request's"
    scene.control.loses = []
    part = (await scene.post(path, SIXTY, once="run-7")).json()
    assert part["reservation_id"] == scene.control.kept[part["budget_id"]]["reservation_id"]
    assert await scene.spend(part["key"], 500_000) == 200
    assert (await scene.post(f"{part['budget_id']}/end")).status == 200
    await scene.reap(after_ms=4_000)
    assert scene.figures(budget_id) == (300_000_000, 0)


async def test_what_was_begun_and_then_done_by_another_is_held_no_longer(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget_id = await budget_of(scene, "5.00")
    scene.control.loses = ["request"]
    assert (await scene.post(f"{budget_id}/delegate", SIXTY, once="run-7")).status == 503
    find = desk.Desk._made_before

    async def nothing(*_arguments: object) -> None:
        return None

    with monkeypatch.context() as patched:  # as for one that has looked before that try was given up
        patched.setattr(desk.History, "carved_before", nothing)
        part = (await scene.post(f"{budget_id}/delegate", SIXTY, once="run-7")).json()
    looks: list[object] = []

    async def later(self: desk.Desk, *arguments: object) -> object:
        looks.append(arguments)
        return None if len(looks) == 1 else await find(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(desk.Desk, "_made_before", later)
    assert (await scene.post(f"{budget_id}/delegate", SIXTY, once="run-7")).json() == part
    await scene.fold()
    assert scene.figures(budget_id) == (0, 600_000_000)


async def test_what_was_held_for_a_part_that_never_came_is_free_at_its_time(scene: Scene) -> None:
    budget_id = await budget_of(scene)
    asked = {**SIXTY, "expires_in_seconds": 120}
    scene.control.loses = ["request"]
    assert (await scene.post(f"{budget_id}/delegate", asked, once="run-7")).status == 503
    await scene.fold()
    await scene.reap(after_ms=125_000)
    assert scene.figures(budget_id) == (0, 0)
    part = (await scene.post(f"{budget_id}/delegate", asked, once="run-7")).json()
    assert scene.figures(budget_id) == (0, 600_000_000)
    assert await scene.spend(part["key"], 500_000) == 200


async def test_what_is_held_for_some_seconds_more_only_is_not_gone_on_with(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control may take as long to answer: the part would have lapsed, and its Idempotency-Key be of no more use."""
    budget_id = await budget_of(scene, "5.00")
    scene.control.loses = ["request"]
    assert (await scene.post(f"{budget_id}/delegate", SIXTY, once="run-7")).status == 503
    await scene.reap(after_ms=desk.FIRST_HOLD_MS - SETTLE_MS + 1_000)

    async def slow() -> bool:
        await scene.reap(after_ms=SETTLE_MS)
        return True

    monkeypatch.setattr(scene.control.gate, "wait", slow)
    assert (await scene.post(f"{budget_id}/delegate", SIXTY, once="run-7")).status == 201
    await scene.fold()
    assert scene.figures(budget_id) == (0, 600_000_000)


async def test_a_refusal_is_not_the_last_word(scene: Scene) -> None:
    """There is no part then, and nothing is held: the same request is a new try."""
    budget_id = await budget_of(scene)
    outer = await scene.delegate(budget_id, "0.60")
    path = f"{budget_id}/delegate"
    assert (await scene.post(path, SIXTY, once="run-7")).status == 402
    assert (await scene.post(f"{outer['budget_id']}/end")).status == 200
    await scene.reap(after_ms=4_000)
    scene.control.loses = ["declined"]
    refused = await scene.post(path, SIXTY, once="run-7")
    assert (refused.status, refused.json()["error"]) == (409, "too_many_parts")
    assert refused.json()["message"].endswith("nothing is held")
    await scene.fold()
    assert scene.figures(budget_id) == (0, 0)
    part = await scene.post(path, SIXTY, once="run-7")
    assert (part.status, scene.figures(budget_id)) == (201, (0, 600_000_000))
    assert await scene.spend(part.json()["key"], 500_000) == 200


async def test_what_is_held_for_a_part_that_may_be_there_stays_when_control_declines(scene: Scene) -> None:
    """The try that was not answered may have made it, or may yet: nobody knows, and its key can be told."""
    budget_id = await budget_of(scene)
    scene.control.loses = ["request", "declined"]
    for status, told in ((503, "stays so"), (409, "stays so")):
        refused = await scene.post(f"{budget_id}/delegate", SIXTY, once="run-7")
        assert refused.status == status
        assert told in refused.json()["message"]
        await scene.fold()
        assert scene.figures(budget_id) == (0, 600_000_000)
    assert (await scene.post(f"{budget_id}/delegate", SIXTY, once="run-7")).status == 201
    assert scene.figures(budget_id) == (0, 600_000_000)


async def test_nothing_is_carved_while_it_is_not_known_what_is_held_already(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget_id = await budget_of(scene)
    answers = scene.there.ports.answers

    async def away(*_arguments: object) -> None:
        raise AWAY

    for method in ("claim", "find"):
        with monkeypatch.context() as patched:
            patched.setattr(answers, method, away)
            assert (await scene.post(f"{budget_id}/delegate", SIXTY, once="run-7")).status == 503
            assert scene.figures(budget_id) == (0, 0)
    assert (await scene.post(f"{budget_id}/delegate", SIXTY, once="run-7")).status == 201


async def test_the_part_of_a_repeated_request_is_found_as_any_other(scene: Scene) -> None:
    part = (await scene.post(f"{await budget_of(scene)}/delegate", SIXTY, once="run-7")).json()
    assert (await get(scene, part["budget_id"], scene.there.key)).json()["remaining_usd"] == "0.600000000"
    assert (await get(scene, part["budget_id"], part["key"])).status == 200


def test_the_key_of_a_part_is_a_key_of_its_own() -> None:
    makers = [f"fk_live_{letter * 40}" for letter in "ab"]
    asked = [(pepper, maker, name) for pepper in (b"p", b"q") for maker in makers for name in ("sub_1", "sub_2")]
    keys = [part_key(*each) for each in asked]
    assert all(is_key_text(each) for each in keys)
    assert len({*keys, *makers}) == 10, "a maker does not make it without the pepper, nor anybody without the maker's"
    assert part_key(*asked[0]) == keys[0]
