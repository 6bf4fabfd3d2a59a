"""Parts of budgets: carved by a hold, spent by a key of their own, and what is left returns."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.aggregator.reaper import Reaper
from services.core.budgets import Budget
from services.core.events import Reservation, Settlement
from services.core.hotstate import CLAIM_MS, HoldRequest, ReserveAnswer
from services.core.identity import KEY_PREFIX, KeyRecord, hash_key
from services.core.ports import TimedOutError, TopicPartition
from services.core.snapshot import ANY, RouteRule
from tests.support import reservations
from tests.support.asgi import Client, request
from tests.support.delegations import ANSWER, Nobody, Scene, budget_of, scene_at
from tests.support.gateway import AWAY, DAY, PEPPER, ScriptedAnswer, until

MINUTE_MS = 60_000


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene_at(tmp_path) as made:
        yield made


async def test_a_part_is_held_spent_by_its_key_and_what_is_left_returns(scene: Scene) -> None:
    budget_id = await budget_of(scene)
    part = await scene.delegate(budget_id, "0.60", agent="helper")
    assert scene.figures(budget_id) == (0, 600_000_000)
    assert await scene.spend(part["key"], 500_000) == 200
    # The call is charged to the part alone: what the part was carved from holds it all already.
    assert scene.figures(part["budget_id"]) == (300_000_000, 0)
    assert scene.figures(budget_id) == (0, 600_000_000)
    call = [each for each in scene.there.events() if isinstance(each, Settlement)][-1]
    assert call.facts.identity.agent == "helper"
    assert call.facts.identity.team == "ml", "what its maker is pinned to, it is pinned to"
    assert (await scene.post(f"{part['budget_id']}/end")).status == 200
    await scene.reap(after_ms=4_000)
    assert scene.figures(budget_id) == (300_000_000, 0)
    assert await scene.spend(part["key"], 1) == 401


async def test_no_more_than_the_part_can_be_spent_by_its_key(scene: Scene) -> None:
    budget_id = await budget_of(scene)
    part = await scene.delegate(budget_id, "0.31")  # its input is bounded at a little, too
    assert await scene.spend(part["key"], 600_000) == 402, "a call of 36 cents"
    assert await scene.spend(part["key"], 500_000) == 200
    assert await scene.spend(part["key"], 50_000) == 402, "3 cents, of one that is left"


async def test_a_parts_window_is_of_the_hot_states_clock(scene: Scene) -> None:
    """P9: a gateway that has heard nothing of that clock for long goes by its host's, which may be an hour off."""
    budget_id = await budget_of(scene)
    now_ms = scene.there.clock.now_ms
    scene.there.assembly.snapshots._clock.learn(now_ms + 3_600_000)
    part = await scene.delegate(budget_id, "0.60")
    kept = scene.control.kept[part["budget_id"]]
    assert kept["starts_ms"] == now_ms - MINUTE_MS
    assert await scene.spend(part["key"], 500_000) == 200
    assert (await scene.post(f"{part['budget_id']}/end")).status == 200
    await scene.reap(after_ms=4_000)
    assert scene.figures(budget_id) == (300_000_000, 0)


async def test_parts_never_add_up_to_more_than_there_is(scene: Scene) -> None:
    budget_id = await budget_of(scene)
    answers = await asyncio.gather(*(scene.post(f"{budget_id}/delegate", {"amount_usd": "0.30"}) for _ in range(10)))
    assert sorted(each.status for each in answers) == [201] * 3 + [402] * 7
    assert scene.figures(budget_id) == (0, 900_000_000)
    assert await scene.spend(scene.there.key, 200_000) == 402, "12 cents, of 10 that are left"


async def test_a_part_of_a_part_is_carved_from_that_alone(scene: Scene) -> None:
    budget_id = await budget_of(scene)
    part = await scene.delegate(budget_id, "0.60")
    inner = await scene.delegate(part["budget_id"], "0.50", key=part["key"])
    assert scene.figures(budget_id) == (0, 600_000_000)
    assert scene.figures(part["budget_id"]) == (0, 500_000_000)
    refused = await scene.post(f"{part['budget_id']}/delegate", {"amount_usd": "0.20"}, part["key"])
    assert refused.status == 402
    assert await scene.spend(inner["key"], 500_000) == 200
    assert scene.figures(inner["budget_id"]) == (300_000_000, 0)
    assert scene.figures(budget_id) == (0, 600_000_000)
    assert (await scene.post(f"{inner['budget_id']}/end", key=part["key"])).status == 200
    await scene.reap(after_ms=4_000)
    assert scene.figures(part["budget_id"]) == (300_000_000, 0)
    assert (await scene.post(f"{part['budget_id']}/end")).status == 200
    await scene.reap(after_ms=4_000)
    assert scene.figures(budget_id) == (300_000_000, 0)


async def test_a_part_ends_by_itself_at_its_time(scene: Scene) -> None:
    budget_id = await budget_of(scene)
    part = await scene.delegate(budget_id, "0.60", expires_in_seconds=120)
    assert await scene.spend(part["key"], 100_000) == 200
    scene.there.clock.now_ms += 121_000
    await scene.there.sync()
    assert await scene.spend(part["key"], 1) == 402, "its key may still be known, but it has nothing to spend"
    await scene.reap(after_ms=5_000)
    assert scene.figures(budget_id) == (60_000_000, 0)


async def test_a_part_with_an_open_call_is_settled_after_it(scene: Scene) -> None:
    budget_id = await budget_of(scene)
    part = await scene.delegate(budget_id, "0.60", expires_in_seconds=120)
    scene.there.vendor.head_at = asyncio.Event()
    scene.there.answer(ScriptedAnswer([ANSWER % (0, 100_000)]))
    body = {"model": "gpt-4o-mini", "max_tokens": 200_000, "messages": []}
    calling = asyncio.create_task(scene.there.call(body, authorization=f"Bearer {part['key']}"))
    await until(lambda: scene.there.vendor.requests)
    await scene.reap(after_ms=125_000)
    assert scene.figures(budget_id) == (0, 600_000_000), "what the call costs is not known yet"
    scene.there.vendor.head_at.set()
    assert (await calling).status == 200
    await scene.fold()
    await scene.reap(after_ms=31_000)
    assert scene.figures(budget_id) == (60_000_000, 0)


async def test_a_part_is_settled_after_calls_that_have_passed_without_a_hold(scene: Scene) -> None:
    """They are in no figures before they are folded, and what the part was carved from is to pay for them."""
    there, budget_id = scene.there, await budget_of(scene)
    part = await scene.delegate(budget_id, "0.60", expires_in_seconds=120)
    await there.org.publish(rules=(RouteRule(ANY, ANY, fail_open=True),))
    assert await scene.spend(part["key"], 100_000) == 200
    state = there.hot_state.store.state(there.org.name)
    epoch, state.epoch = state.epoch, None
    there.answer(ScriptedAnswer([ANSWER % (0, 800_000)]))
    body = {"model": "gpt-4o-mini", "max_tokens": 800_000, "messages": []}
    assert (await there.call(body, authorization=f"Bearer {part['key']}")).header("x-spend-fail-open") == "true"
    state.epoch, scene.log.end = epoch, 1
    reaper = Reaper(scene.log, there.hot_state, there.directory, Nobody())  # type: ignore[arg-type]
    there.clock.now_ms += 125_000
    await reaper.reap()
    assert scene.log.messages == []
    await scene.fold()
    for topic in (Reservation.TOPIC, Settlement.TOPIC):
        await there.hot_state.move_fold_fence(TopicPartition(topic, 0), 1)
    scene.log.end = 2  # calls of others go on
    there.clock.now_ms += CLAIM_MS
    await reaper.reap()
    await scene.fold()
    assert scene.figures(budget_id) == (540_000_000, 0)


@pytest.mark.parametrize("is_reservation", [False, True])
async def test_what_is_held_for_a_part_after_its_end_by_a_gateway_that_stalled_is_taken_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, is_reservation: bool
) -> None:
    """Its part may be settled by then, and nothing that it was carved from would pay."""
    budget_id = await budget_of(scene)
    part = await scene.delegate(budget_id, "0.60")
    there, reserve = scene.there, scene.there.hot_state.reserve

    async def when_it_has_ended(request: HoldRequest) -> ReserveAnswer:
        await scene.control.end(part["budget_id"])
        return await reserve(request)

    monkeypatch.setattr(there.hot_state, "reserve", when_it_has_ended)
    if is_reservation:
        key = {"authorization": f"Bearer {part['key']}"}
        assert (await reservations.post(there, "", {"amount_usd": "0.30"}, **key)).status == 503
    else:
        assert await scene.spend(part["key"], 500_000) == 503
    assert there.vendor.requests == []
    await until(lambda: scene.figures(part["budget_id"]) == (0, 0))


async def test_two_reapers_settle_a_part_once(scene: Scene) -> None:
    budget_id = await budget_of(scene)
    part = await scene.delegate(budget_id, "0.60", expires_in_seconds=120)
    await scene.spend(part["key"], 100_000)
    scene.there.clock.now_ms += 125_000
    await scene.there.sync()
    reapers = [
        Reaper(scene.log, scene.there.hot_state, scene.there.directory, Nobody())  # type: ignore[arg-type]
        for _ in range(2)
    ]
    await asyncio.gather(*(each.reap() for each in reapers))
    scene.there.clock.now_ms += 31_000
    await reapers[1].reap()  # the claim of the other has lapsed before the fold came
    await scene.fold()
    assert scene.figures(budget_id) == (60_000_000, 0)


async def test_what_else_caps_a_parts_calls_still_does(scene: Scene) -> None:
    budget_id = await budget_of(scene)
    part = await scene.delegate(budget_id, "0.60")
    later = Budget("bud_model", "model", "gpt-4o-mini", scene.there.org.snapshot.budgets[0].window, 10_000_000)
    await scene.there.org.publish(budgets=(*scene.there.org.snapshot.budgets, later))
    await scene.there.sync()
    assert await scene.spend(part["key"], 100_000) == 402, "6 cents, of one"
    assert await scene.spend(part["key"], 10_000) == 200
    assert scene.figures("bud_model") == (6_000_000, 0)


async def test_without_control_nothing_stays_held(scene: Scene) -> None:
    budget_id = await budget_of(scene)
    scene.control.is_away = True
    client = await scene.post(f"{budget_id}/delegate", {"amount_usd": "0.60"})
    assert (client.status, client.json()["error"]) == (503, "service_unavailable")
    await scene.fold()
    assert scene.figures(budget_id) == (0, 0)


async def test_what_control_declines_is_told_as_it_says_and_nothing_stays_held(scene: Scene) -> None:
    budget_id = await budget_of(scene)
    scene.control.declines = (409, {"error": "too_many_parts", "message": "this key has 200 live parts"})
    client = await scene.post(f"{budget_id}/delegate", {"amount_usd": "0.60"})
    assert (client.status, client.json()["error"]) == (409, "too_many_parts")
    assert client.json()["message"] == "this key has 200 live parts; nothing is held"
    await scene.fold()
    assert scene.figures(budget_id) == (0, 0)
    scene.control.declines = (400, {"error": "invalid_request", "message": "no name"})
    assert (await get(scene, "sub_x", scene.there.key)).status == 400
    assert (await scene.post("sub_x/end")).status == 400


async def test_a_part_that_was_not_answered_is_not_held_on(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    budget_id = await budget_of(scene)
    reserve = scene.there.hot_state.reserve

    async def silent(asked: HoldRequest) -> ReserveAnswer:
        await reserve(asked)
        raise TimedOutError("too slow")

    with monkeypatch.context() as patched:
        patched.setattr(scene.there.hot_state, "reserve", silent)
        assert (await scene.post(f"{budget_id}/delegate", {"amount_usd": "0.60"})).status == 503
        await until(lambda: scene.figures(budget_id) == (0, 0))
    await scene.delegate(budget_id, "0.60")


async def test_a_part_is_live_until_it_has_ended_wherever_it_is_known(scene: Scene) -> None:
    """Budgets come with the next snapshot: a part that this gateway has not heard of yet has not ended."""
    budget_id = await budget_of(scene)
    part = await scene.delegate(budget_id, "0.60", expires_in_seconds=120)
    with_part = scene.there.org.snapshot.budgets
    await scene.there.org.publish(budgets=tuple(each for each in with_part if each.budget_id == budget_id))
    await scene.there.sync()
    assert (await get(scene, part["budget_id"], scene.there.key)).json()["state"] == "live"
    scene.there.clock.now_ms += 121_000
    await scene.there.sync()
    assert (await get(scene, part["budget_id"], scene.there.key)).json()["state"] == "ended"


async def test_a_part_is_ended_though_the_spend_state_hangs_and_all_that_was_handed_on_is_looked_after(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = await scene.delegate(await budget_of(scene), "0.60")
    inner = [await scene.delegate(part["budget_id"], "0.10", key=part["key"]) for _ in range(2)]
    tried: list[str] = []

    async def hanging(asked: HoldRequest) -> None:
        tried.append(asked.reservation_id)
        raise AWAY

    monkeypatch.setattr(scene.there.hot_state, "resize", hanging)
    client = await scene.post(f"{part['budget_id']}/end")
    assert (client.status, client.json()["state"]) == (200, "ended")
    assert tried == [each["reservation_id"] for each in (part, *inner)]


async def reserved(scene: Scene, path: str, body: object, key: str) -> Client:
    headers = scene.there.headers(authorization=f"Bearer {key}")
    return await request(scene.there.assembly.app, f"/v1/reservations{path}", body, headers=headers)


@pytest.mark.parametrize("is_ended_by_hand", [True, False])
async def test_what_a_part_holds_grows_no_more_when_the_part_has_ended(scene: Scene, is_ended_by_hand: bool) -> None:
    part = await scene.delegate(await budget_of(scene), "0.60", expires_in_seconds=120)
    held = (await reserved(scene, "", {"amount_usd": "0.30", "hold_seconds": 900}, part["key"])).json()
    path = f"/{held['reservation_id']}/extend"
    assert (await reserved(scene, path, {"amount_usd": "0.40"}, scene.there.key)).status == 200
    if is_ended_by_hand:
        assert (await scene.post(f"{part['budget_id']}/end")).status == 200
    else:
        scene.there.clock.now_ms += 121_000
        await scene.there.sync()
    grown = await reserved(scene, path, {"amount_usd": "0.50"}, scene.there.key)
    assert (grown.status, grown.json()["budget_id"]) == (402, part["budget_id"])
    assert (await reserved(scene, path, {"hold_seconds": 60}, scene.there.key)).status == 200, "it may live on"
    assert scene.figures(part["budget_id"]) == (0, 400_000_000)


async def test_who_may_and_what_is_wrong(scene: Scene) -> None:
    budget_id = await budget_of(scene)
    other = replace(scene.there.org.snapshot.budgets[0], budget_id="bud_other", scope_kind="team", scope_value="web")
    await scene.there.org.publish(budgets=(*scene.there.org.snapshot.budgets, other))
    await scene.there.sync()
    assert (await scene.post("bud_other/delegate", {"amount_usd": "0.10"})).status == 404
    assert (await scene.post("bud_none/delegate", {"amount_usd": "0.10"})).status == 404
    for body, field in (
        ({}, "amount_usd"),
        ({"amount_usd": "0"}, "amount_usd"),
        ({"amount_usd": "0.0009"}, "amount_usd"),
        ({"amount_usd": "1", "x": 1}, "x"),
    ):
        client = await scene.post(f"{budget_id}/delegate", body)
        assert (client.status, client.json()["field"]) == (400, field)
    part = await scene.delegate(budget_id, "0.10")
    stranger = await scene.there.org.make_key(team="ml")
    await scene.there.sync()
    assert (await scene.post(f"{part['budget_id']}/end", key=stranger)).status == 404
    shown = await request(
        scene.there.assembly.app, f"/v1/budgets/{part['budget_id']}", headers=scene.there.headers(), method="GET"
    )
    assert shown.json()["remaining_usd"] == "0.100000000"
    assert shown.json()["state"] == "live"


async def admin_of(scene: Scene) -> str:
    key = KEY_PREFIX + "A" * 40
    scene.there.org._keys[hash_key(key, PEPPER)] = KeyRecord("key_admin", scene.there.org.name, "org_admin", {})
    await scene.there.org.publish()
    await scene.there.sync()
    return key


async def get(scene: Scene, budget_id: str, key: str) -> Client:
    headers = scene.there.headers(authorization=f"Bearer {key}")
    return await request(scene.there.assembly.app, f"/v1/budgets/{budget_id}", headers=headers, method="GET")


async def test_an_admin_sees_and_ends_every_part_of_the_org(scene: Scene) -> None:
    part = await scene.delegate(await budget_of(scene), "0.60")
    admin = await admin_of(scene)
    assert (await get(scene, part["budget_id"], admin)).json()["remaining_usd"] == "0.600000000"
    await scene.there.org.revoke_key(scene.there.key)
    await scene.there.sync()
    assert (await scene.post(f"{part['budget_id']}/end", key=admin)).status == 200
    await scene.reap(after_ms=4_000)
    assert scene.there.held_nano() == 0
    assert await scene.spend(part["key"], 1) == 401


async def test_a_part_may_be_ended_by_its_own_key_and_again_by_its_maker(scene: Scene) -> None:
    budget_id = await budget_of(scene)
    part = await scene.delegate(budget_id, "0.60")
    assert (await scene.post(f"{part['budget_id']}/end", key=part["key"])).status == 200
    assert (await scene.post(f"{part['budget_id']}/end")).status == 200
    await scene.reap(after_ms=4_000)
    assert scene.figures(budget_id) == (0, 0)


async def test_too_many_budgets_are_told_with_the_fix(scene: Scene) -> None:
    crowd = [Budget(f"bud_{number}", "team", "ml", DAY, 10**9) for number in range(70)]
    await scene.there.org.publish(budgets=tuple(crowd))
    await scene.there.sync()
    client = await scene.post("bud_1/delegate", {"amount_usd": "0.10"})
    assert (client.status, client.json()["error"]) == (400, "too_many_budgets")
    assert "narrow their scopes" in client.json()["message"]


async def test_what_was_handed_on_of_a_part_ends_with_it(scene: Scene) -> None:
    budget_id = await budget_of(scene)
    part = await scene.delegate(budget_id, "0.60")
    inner = await scene.delegate(part["budget_id"], "0.50", key=part["key"])
    assert await scene.spend(inner["key"], 500_000) == 200
    assert (await scene.post(f"{part['budget_id']}/end")).status == 200
    assert await scene.spend(inner["key"], 1) == 401
    await scene.reap(after_ms=4_000)  # the inner one
    await scene.reap(after_ms=31_000)  # and then the outer one, which held it
    assert scene.figures(budget_id) == (300_000_000, 0)


async def test_the_key_of_a_part_spends_nothing_where_the_part_is_not_in_force(scene: Scene) -> None:
    """Keys are looked up at once, budgets come with the next snapshot: in between the key has nothing to spend."""
    budget_id = await budget_of(scene)
    part = await scene.delegate(budget_id, "0.60")
    with_part = scene.there.org.snapshot.budgets
    await scene.there.org.publish(budgets=tuple(each for each in with_part if each.budget_id == budget_id))
    await scene.there.sync()
    assert await scene.spend(part["key"], 1) == 503
    assert (await scene.post(f"{budget_id}/delegate", {"amount_usd": "0.10"}, part["key"])).status == 503
    assert scene.figures(budget_id) == (0, 600_000_000)
    await scene.there.org.publish(budgets=with_part)
    await scene.there.sync()
    assert await scene.spend(part["key"], 1) == 200
