"""Parts of budgets: carved by a hold, spent by a key of their own, and what is left returns."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.aggregator.reaper import Reaper
from services.core.budgets import Budget
from services.core.codec import decode
from services.core.events import Reservation, Settlement
from services.core.fold import step_of
from services.core.hotstate import HoldRequest, ReserveAnswer
from services.core.identity import KEY_PREFIX, KeyRecord, hash_key
from services.core.parts import key_of, parts_held_alike
from services.core.ports import Outgoing, TimedOutError, TopicPartition
from services.core.windows import IntervalWindow, SessionWindow
from tests.support.asgi import Client, request
from tests.support.gateway import AWAY, DAY, PEPPER, ScriptedAnswer, World, until, world

PLACE = TopicPartition("spend.settlements.v1", 0)
ANSWER = b'{"usage":{"prompt_tokens":%d,"completion_tokens":%d}}'
MINUTE_MS = 60_000


class Control(httpx.AsyncBaseTransport):
    """Does for a world's org what control does with delegations."""

    def __init__(self) -> None:
        self.world: World | None = None
        self.kept: dict[str, dict[str, Any]] = {}
        self.is_away = False
        self.declines: tuple[int, dict[str, str]] | None = None
        # What becomes of the next requests to make a part: its "answer" is lost, the "request", or it is "declined".
        self.loses: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if "/v1/transactions/" in request.url.path:
            return httpx.Response(404, json={})
        if self.is_away:
            raise httpx.ConnectError("away")
        if self.declines is not None:
            return httpx.Response(self.declines[0], json=self.declines[1])
        assert request.headers["authorization"] == "Bearer a token"
        rest = request.url.path.partition("/delegations")[2].strip("/").split("/")
        if request.method == "POST" and rest == [""]:
            return await self._make(json.loads(await request.aread()))
        known = self.kept.get(rest[0])
        if known is None:
            return httpx.Response(404, json={"error": "not_found"})
        if rest[-1] == "lapse":
            if not known["has_ended"]:
                await self._end_below(rest[0])
                known["has_lapsed"] = True
            return httpx.Response(200, json=known)
        if rest[-1] == "end":
            return httpx.Response(200, json={"reservation_ids": await self._end_below(rest[0])})
        return httpx.Response(200, json=known)

    async def _make(self, body: dict[str, Any]) -> httpx.Response:
        await self.gate.wait()
        lost = self.loses.pop(0) if self.loses else None
        if lost == "request":
            raise httpx.ReadTimeout("lost")
        if lost == "declined":
            return httpx.Response(409, json={"error": "too_many_parts", "message": "too many"})
        if body["budget_id"] in self.kept:
            return httpx.Response(409, json={"error": "already_delegated", "message": "it is there"})
        if self._is_overtaken(body):
            return httpx.Response(409, json={"error": "budget_changed", "message": "it has changed"})
        answer = await self._delegate(body)
        if lost == "answer":
            raise httpx.ReadTimeout("lost")
        return httpx.Response(201, json=answer)

    def _is_overtaken(self, body: dict[str, Any]) -> bool:
        """Whether what a part was carved from has another window by now, or is gone."""
        assert self.world is not None
        since = {each.budget_id: each.since_version for each in self.world.org.snapshot.budgets}
        version = body["config_version"]
        return any(since.get(name.partition("@")[0], version + 1) > version for name in body["covers"])

    async def _delegate(self, body: dict[str, Any]) -> dict[str, Any]:
        assert self.world is not None
        assert ("key" in body) == ("request_hash" in body)
        key = body.pop("key", None) or KEY_PREFIX + f"{len(self.kept):040d}"
        key_id = key_of(body["budget_id"])
        org = self.world.org
        org._keys[hash_key(key, PEPPER)] = KeyRecord(key_id, org.name, "agent", body["pins"])
        window = IntervalWindow(body["ends_ms"] - body["starts_ms"], body["starts_ms"])
        part = Budget(
            body["budget_id"],
            "key",
            key_id,
            window,
            body["limit_nano"],
            covers=tuple(body["covers"]),
            ends_at_ms=body["ends_ms"],
        )
        (part,) = parts_held_alike([part], org.snapshot.budgets)
        await org.publish(budgets=(*org.snapshot.budgets, part))
        ended = {"has_ended": False, "has_lapsed": False}
        self.kept[part.budget_id] = {"request_hash": "", **body, "key_id": key_id, **ended, "key": key}
        return {"budget_id": part.budget_id, "key_id": key_id, "key": key}

    async def _end_below(self, budget_id: str) -> list[str]:
        await self.end(budget_id)
        ended = [self.kept[budget_id]["reservation_id"]]
        for name, each in self.kept.items():
            if each["made_by"] == self.kept[budget_id]["key_id"]:
                ended += await self._end_below(name)
        return ended

    async def end(self, budget_id: str) -> None:
        """Revokes a part's key and takes its budget away."""
        assert self.world is not None
        org = self.world.org
        self.kept[budget_id]["has_ended"] = True
        key_hash = hash_key(self.kept[budget_id]["key"], PEPPER)
        org._keys.pop(key_hash, None)
        left = tuple(each for each in org.snapshot.budgets if each.budget_id != budget_id)
        await org.publish(revoked=[key_hash], budgets=left)


class Log:
    """Takes what the reaper publishes."""

    def __init__(self) -> None:
        self.messages: list[Outgoing] = []

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        self.messages += messages


class Nobody:
    """Hears nothing."""

    def expired(self, count: int) -> None:
        """Nothing."""


class Scene:
    """A world with a control, a reaper, and a fold that is run by hand."""

    def __init__(self, there: World, control: Control) -> None:
        self.there = there
        self.control = control
        self.log = Log()
        self._folded = 0
        self._offset = 0

    async def post(self, path: str, body: object = b"", key: str | None = None, once: str | None = None) -> Client:
        named = {} if once is None else {"idempotency_key": once}
        headers = self.there.headers(**named, **({} if key is None else {"authorization": f"Bearer {key}"}))
        client = await request(self.there.assembly.app, f"/v1/budgets/{path}", body, headers=headers)
        await self.there.sync()
        return client

    async def delegate(self, budget_id: str, amount: str, key: str | None = None, **fields: Any) -> dict[str, Any]:
        client = await self.post(f"{budget_id}/delegate", {"amount_usd": amount, **fields}, key)
        assert client.status == 201, client.content
        told: dict[str, Any] = client.json()
        return told

    async def spend(self, key: str, tokens: int) -> int:
        """A call by a key that costs $0.60 for a million tokens out; its status."""
        self.there.vendor.script.clear()
        self.there.answer(ScriptedAnswer([ANSWER % (0, tokens)]))
        body = {"model": "gpt-4o-mini", "max_tokens": tokens, "messages": []}
        client = await self.there.call(body, authorization=f"Bearer {key}")
        await self.fold()
        return client.status

    async def fold(self) -> None:
        """Folds all that was recorded since."""
        rows = [row.message.value for row in self.there.outbox.oldest(100_000)][self._folded :]
        self._folded += len(rows)
        for value in [*rows, *(each.value for each in self.log.messages)]:
            step = step_of(decode(value), self._offset)
            if step is not None:
                await self.there.hot_state.apply(self.there.org.name, PLACE, [step], self._offset + 1)
            self._offset += 1
        self.log.messages.clear()

    async def reap(self, after_ms: int = 0) -> None:
        """Lets the reaper look, after a time."""
        self.there.clock.now_ms += after_ms
        await self.there.sync()
        reaper = Reaper(self.log, self.there.hot_state, self.there.directory, Nobody())  # type: ignore[arg-type]
        await reaper.reap()
        await self.fold()

    def figures(self, budget_id: str) -> tuple[int, int]:
        """What a budget has spent and holds, over all its windows."""
        windows = self.there.hot_state.store.state(self.there.org.name).windows
        mine = [figures for (name, _), figures in windows.items() if name == budget_id]
        return sum(each.spent_nano for each in mine), sum(each.held_nano for each in mine)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    control = Control()
    async with world(tmp_path, relay_transport=control, internal_token="a token") as made:
        control.world = made
        yield Scene(made, control)


async def budget_of(scene: Scene, limit: str = "1.00") -> str:
    budget_id = await scene.there.org.set_budget(limit)
    await scene.there.sync()
    return budget_id


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
    await reapers[0].reap()  # its claim has lapsed before the fold came
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
