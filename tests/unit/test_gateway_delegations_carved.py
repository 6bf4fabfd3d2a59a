"""What a part of a budget is carved from, and what is charged for its calls and what is not."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.core.budgets import Budget
from services.core.events import Reservation
from services.core.windows import SessionWindow
from tests.support.asgi import request
from tests.support.delegations import Scene, budget_of, scene_at
from tests.support.gateway import DAY, ScriptedAnswer

MINUTE_MS = 60_000


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene_at(tmp_path) as made:
        yield made


async def test_nobody_names_the_holder_of_a_part_as_another_than_their_own(scene: Scene) -> None:
    budget_id = await budget_of(scene)
    pinned = await scene.there.org.make_key(team="ml", agent="ada", project="x")
    await scene.there.sync()
    for body in ({"agent": "bob"}, {"agent": "adam"}, {"project": "y"}):
        client = await scene.post(f"{budget_id}/delegate", {"amount_usd": "0.10", **body}, pinned)
        assert (client.status, client.json()["error"], client.json()["field"]) == (
            403,
            "identity_mismatch",
            next(iter(body)),
        )
    assert scene.figures(budget_id) == (0, 0)
    part = await scene.delegate(budget_id, "0.10", key=pinned, agent="ada/reader", session="run-1")
    assert scene.control.kept[part["budget_id"]]["pins"] == {
        "team": "ml",
        "agent": "ada/reader",
        "project": "x",
        "session": "run-1",
    }


async def test_a_part_of_a_budget_of_each_is_held_against_the_one_of_its_maker(scene: Scene) -> None:
    window = DAY
    each = Budget("bud_each", "agent", "*", window, 1_000_000_000)
    watching = Budget("bud_watch", "team", "ml", window, 100_000_000, when_full="alert")
    await scene.there.org.publish(budgets=(each, watching))
    key = await scene.there.org.make_key(team="ml", agent="ada")
    await scene.there.sync()
    part = await scene.delegate("bud_each", "0.60", key=key, agent="ada/reader")
    assert scene.figures("bud_each@ada") == (0, 600_000_000)
    assert scene.figures("bud_watch") == (0, 600_000_000), "a budget that only watches is counted, too"
    assert (await scene.post("bud_each/delegate", {"amount_usd": "0.50"}, key)).status == 402
    assert await scene.spend(part["key"], 500_000) == 200
    assert scene.figures("bud_each@ada") == (0, 600_000_000)
    assert scene.figures("bud_each@ada/reader") == (300_000_000, 0), "its holder's own is no part of it"
    assert (await scene.post(f"{part['budget_id']}/end", key=key)).status == 200
    await scene.reap(after_ms=4_000)
    assert scene.figures("bud_each@ada") == (300_000_000, 0)
    assert scene.figures("bud_watch") == (300_000_000, 0)


async def test_a_part_is_settled_when_the_budget_it_was_carved_from_is_gone(scene: Scene) -> None:
    budget_id = await budget_of(scene)
    part = await scene.delegate(budget_id, "0.60", expires_in_seconds=120)
    kept = tuple(each for each in scene.there.org.snapshot.budgets if each.budget_id != budget_id)
    await scene.there.org.publish(budgets=kept)
    await scene.there.sync()
    assert await scene.spend(part["key"], 100_000) == 200
    assert (await scene.post(f"{part['budget_id']}/end")).status == 200
    await scene.reap(after_ms=4_000)
    assert scene.figures(budget_id) == (60_000_000, 0)


async def test_a_part_for_a_session_is_carved_from_that_sessions_cap(scene: Scene) -> None:
    """Else a key that names another session with each part would have that cap once a part."""
    org = scene.there.org
    cap = Budget("bud_session", "team", "ml", SessionWindow(), 1_000_000_000)
    await org.publish(budgets=(*org.snapshot.budgets, cap))
    await scene.there.sync()
    asked = {"amount_usd": "0.60", "session": "victim"}
    statuses = [(await scene.post("bud_session/delegate", asked)).status for _ in range(3)]
    assert statuses == [201, 402, 402]
    held = scene.there.hot_state.store.state(org.name).windows["bud_session", "s:victim"].held_nano
    assert held == 600_000_000


CAP = "billing_class", "metered.openai"


async def test_no_budget_of_vendors_or_billing_classes_is_charged_for_a_part_but_for_its_calls(scene: Scene) -> None:
    """A part is no call to anybody: what its calls will be is not known when it is carved."""
    org = scene.there.org
    budget_id = await budget_of(scene, "5.00")
    caps = (
        Budget("bud_vendor", "vendor", "*", DAY, 100_000_000),
        Budget("bud_ours", "vendor", "farthing", DAY, 0),
        Budget("bud_class", "billing_class", "*", DAY, 100_000_000),
        Budget("cap_ours", "billing_class", "metered.farthing", SessionWindow(), 0, is_cap=True),
        Budget("cap_openai", *CAP, DAY, 80_000_000, is_cap=True),
        Budget("cel_other", "cel", "other", DAY, 100_000_000, expression='vendor != "anthropic"'),
        Budget("cel_all", "cel", "all", DAY, 2_000_000_000, expression='team == "ml"'),
    )
    await org.publish(budgets=(*org.snapshot.budgets, *caps))
    await scene.there.sync()
    part = await scene.delegate(budget_id, "1.00")
    assert scene.figures("cel_all") == (0, 1_000_000_000)
    assert scene.there.held_nano() == 2_000_000_000, "by these two and no other"
    assert await scene.spend(part["key"], 150_000) == 402, "9 cents, of 8 for the cell"
    assert await scene.spend(part["key"], 100_000) == 200
    spent = {name: scene.figures(name)[0] for name in ("bud_vendor@openai", "bud_class@metered.openai", "cap_openai")}
    assert set(spent.values()) == {60_000_000}, spent
    assert scene.figures("cel_other") == (60_000_000, 0), "what its calls are is known when they are made"
    assert scene.figures("cel_all") == (0, 1_000_000_000), "and this one holds the whole part already"
    assert (await scene.post(f"{part['budget_id']}/end")).status == 200
    await scene.reap(after_ms=4_000)
    assert scene.figures("cel_all") == scene.figures(budget_id) == (60_000_000, 0)
    assert scene.figures("bud_vendor@openai") == (60_000_000, 0), "once"
    told = (await scene.post("bud_vendor/delegate", {"amount_usd": "0.10"})).json()
    assert told["error"] == "not_found"
    assert "caps the part's own calls instead" in told["message"]


async def test_a_stream_in_a_part_is_held_as_the_budgets_say_that_the_part_was_carved_from(scene: Scene) -> None:
    org = scene.there.org
    day = Budget("bud_day", "team", "ml", DAY, 10_000_000_000, extend=True)
    await org.publish(budgets=(day, replace(day, budget_id="bud_watch", extend=False, when_full="alert")))
    await scene.there.sync()
    outer = await scene.delegate("bud_day", "0.60")
    inner = await scene.delegate(outer["budget_id"], "0.50", key=outer["key"])
    modes = {}
    for name, key in (("maker", scene.there.key), ("outer", outer["key"]), ("inner", inner["key"])):
        scene.there.answer(ScriptedAnswer([b"data: [DONE]\n\n"], headers=[(b"content-type", b"text/event-stream")]))
        asked = {"model": "gpt-4o-mini", "stream": True, "messages": []}
        assert (await scene.there.call(asked, authorization=f"Bearer {key}")).status == 200
        modes[name] = [each for each in scene.there.events() if isinstance(each, Reservation)][-1].estimate_mode
    assert modes == {"maker": "stepped", "outer": "stepped", "inner": "stepped"}


@pytest.mark.parametrize(("cost", "spent_nano"), [("0.10", 100_000_000), ("0.50", 500_000_000)])
@pytest.mark.parametrize("book_expired", [True, False])
async def test_what_expired_in_a_part_and_is_settled_after_it_is_not_passed_on(
    scene: Scene, cost: str, spent_nano: int, book_expired: bool
) -> None:
    """What a part was carved from is charged once, when the part is settled (docs/reservations.md)."""
    await scene.there.org.publish(book_expired=book_expired)
    budget_id = await budget_of(scene)
    part = await scene.delegate(budget_id, "0.80")
    app, own = scene.there.assembly.app, scene.there.headers(authorization=f"Bearer {part['key']}")
    body = {"amount_usd": "0.30", "hold_seconds": 60}
    held = (await request(app, "/v1/reservations", body, headers=own)).json()
    await scene.fold()
    await scene.reap(after_ms=70_000)
    booked_nano = 300_000_000 if book_expired else 0
    assert scene.figures(part["budget_id"]) == (booked_nano, 0)
    assert (await scene.post(f"{part['budget_id']}/end")).status == 200
    await scene.reap(after_ms=4_000)
    assert scene.figures(budget_id) == (booked_nano, 0)
    path = f"/v1/reservations/{held['reservation_id']}/settle"
    assert (await request(app, path, {"cost_usd": cost}, headers=scene.there.headers())).status == 200
    await scene.fold()
    assert scene.figures(part["budget_id"]) == (spent_nano, 0)
    assert scene.figures(budget_id) == (booked_nano, 0)
