"""A part that was carved from a budget that has changed since: it is not made, nothing is held, and it is tried again.

Control judges by the configuration that the hold was made under, whenever it is told of it.
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.adapters.memory_answers import MemoryAnswers
from services.core.budgets import Budget
from services.core.events import Reservation
from services.core.windows import LifetimeWindow
from tests.support.asgi import Client
from tests.support.delegations import Scene, budget_of, scene_at
from tests.support.gateway import DAY

SIXTY = {"amount_usd": "0.60"}
HELD = (0, 600_000_000)
FREE = (0, 0)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene_at(tmp_path) as made:
        yield made


async def rewindow(scene: Scene, budget_id: str) -> None:
    """Gives a budget another window, and the mark that its past is known. Gateways have not heard of it yet."""
    org = scene.there.org
    await scene.there.assembly.snapshots.view(org.name)
    version = org.snapshot.version + 1
    changed = [
        replace(each, window=LifetimeWindow(), since_version=version) if each.budget_id == budget_id else each
        for each in org.snapshot.budgets
    ]
    scene.there.hot_state.store.state(org.name).filled[budget_id] = version
    await org.publish(budgets=tuple(changed))


async def ask(scene: Scene, budget_id: str, once: str | None, body: dict[str, Any] = SIXTY) -> Client:
    return await scene.post(f"{budget_id}/delegate", body, once=once)


def holds(scene: Scene) -> list[Reservation]:
    return [each for each in scene.there.events() if isinstance(each, Reservation)]


def windows(held: Reservation) -> list[str]:
    return [each.window for each in held.charges]


def assert_to_be_tried_again(scene: Scene, told: Client) -> None:
    assert (told.status, told.json()["error"]) == (503, "service_unavailable")
    assert (b"retry-after", b"1") in told.headers
    assert told.json()["message"].endswith("nothing is held. Try again in a moment")
    assert not scene.control.kept


@pytest.mark.parametrize("once", [None, "run-7"])
async def test_a_part_held_in_a_window_that_the_budget_has_no_more_is_not_made(scene: Scene, once: str | None) -> None:
    budget_id = await budget_of(scene)
    await rewindow(scene, budget_id)
    assert_to_be_tried_again(scene, await ask(scene, budget_id, once))
    await scene.fold()
    assert scene.figures(budget_id) == FREE
    told = await ask(scene, budget_id, once)
    assert told.status == 201, told.content
    first, second = holds(scene)
    assert windows(first) != windows(second) == ["l"]
    assert scene.control.kept[told.json()["budget_id"]]["config_version"] == second.facts.config_version
    assert await scene.spend(told.json()["key"], 500_000) == 200


async def test_a_part_of_a_budget_that_is_gone_is_not_made(scene: Scene) -> None:
    budget_id = await budget_of(scene)
    await scene.there.assembly.snapshots.view(scene.there.org.name)
    await scene.there.org.publish(budgets=())
    assert_to_be_tried_again(scene, await ask(scene, budget_id, None))
    await scene.fold()
    assert scene.figures(budget_id) == FREE
    assert (await ask(scene, budget_id, None)).status == 404


async def test_what_is_held_since_control_was_away_is_judged_by_when_it_was_held(scene: Scene) -> None:
    """The gateway has heard of the change by now, and the hold has not: it is given back, and held anew next time."""
    budget_id = await budget_of(scene)
    scene.control.loses = ["request"]
    assert (await ask(scene, budget_id, "run-7")).status == 503
    await scene.fold()
    assert scene.figures(budget_id) == HELD
    await rewindow(scene, budget_id)
    await scene.there.sync()
    scene.there.clock.now_ms += 1_000
    assert_to_be_tried_again(scene, await ask(scene, budget_id, "run-7"))
    await scene.fold()
    assert scene.figures(budget_id) == FREE
    # What is held then is found again, as ever.
    scene.control.loses = ["request"]
    assert "stays so" in (await ask(scene, budget_id, "run-7")).json()["message"]
    told = await ask(scene, budget_id, "run-7")
    assert (told.status, scene.figures(budget_id)) == (201, HELD)
    first, second = holds(scene)
    assert (windows(second), told.json()["reservation_id"]) == (["l"], second.transaction_id)
    assert first.transaction_id != second.transaction_id


async def test_what_was_given_back_binds_nobody_to_its_body(scene: Scene) -> None:
    budget_id = await budget_of(scene)
    await rewindow(scene, budget_id)
    assert (await ask(scene, budget_id, "run-7")).status == 503
    assert (await ask(scene, budget_id, "run-7", {"amount_usd": "0.10"})).status == 201


@pytest.mark.parametrize(("after_ms", "is_found"), [(50_000, True), (58_000, False), (61_000, False)])
async def test_what_is_held_is_gone_on_with_only_while_it_is_sure_to_be_held(
    scene: Scene, after_ms: int, is_found: bool
) -> None:
    """What is kept of a hold may outlive it, where control took long: a part made of it would be held by nobody."""
    budget_id = await budget_of(scene, "2.00")
    scene.control.loses = ["request"]
    assert (await ask(scene, budget_id, "run-7")).status == 503
    (held,) = holds(scene)
    answers, org = scene.there.ports.answers, scene.there.org.name
    assert isinstance(answers, MemoryAnswers)
    (name,) = (name for _, name in answers._kept if name.endswith("/held"))
    answers._kept[org, name] = (scene.there.clock.now_ms + 70_000, answers._kept[org, name][1])
    await scene.fold()
    if after_ms > 60_000:
        await scene.reap(after_ms=after_ms)
    else:
        scene.there.clock.now_ms += after_ms
        await scene.there.sync()
    told = await ask(scene, budget_id, "run-7")
    assert told.status == 201, told.content
    assert (told.json()["reservation_id"] == held.transaction_id) == is_found
    await scene.fold()
    await scene.reap(after_ms=120_000)
    assert scene.figures(budget_id) == HELD


async def test_a_parent_that_came_after_the_hold_is_charged_for_the_parts_calls(scene: Scene) -> None:
    """It does not hold the part, so nothing covers it: the part can be made."""
    budget_id = await budget_of(scene)
    org = scene.there.org
    await scene.there.assembly.snapshots.view(org.name)
    above = Budget("bud_above", "project", "whatever", DAY, 1_000_000_000)
    below = [replace(each, parent_id=above.budget_id) for each in org.snapshot.budgets]
    await org.publish(budgets=(above, *below))
    part = (await ask(scene, budget_id, None)).json()
    assert (scene.figures(budget_id), scene.figures(above.budget_id)) == (HELD, FREE)
    assert await scene.spend(part["key"], 500_000) == 200
    assert scene.figures(above.budget_id) == (300_000_000, 0)
