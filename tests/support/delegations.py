"""A gateway that carves parts of budgets, with what stands behind it: control, the reaper, and a fold run by hand."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from services.aggregator.reaper import Reaper
from services.core.budgets import Budget
from services.core.codec import decode
from services.core.fold import step_of
from services.core.identity import KEY_PREFIX, KeyRecord, hash_key
from services.core.parts import key_of, parts_held_alike
from services.core.ports import Outgoing, TopicPartition
from services.core.windows import IntervalWindow
from tests.support.asgi import Client, request
from tests.support.gateway import PEPPER, ScriptedAnswer, World, world

PLACE = TopicPartition("spend.settlements.v1", 0)
ANSWER = b'{"usage":{"prompt_tokens":%d,"completion_tokens":%d}}'


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
    """Takes what the reaper publishes. Of its only partition it ends at `end`."""

    def __init__(self) -> None:
        self.messages: list[Outgoing] = []
        self.end = 0

    async def partitions(self, _topic: str) -> int:
        return 1

    async def end_offsets(self, places: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, self.end)

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


@asynccontextmanager
async def scene_at(place: Path) -> AsyncIterator[Scene]:
    """A scene that is set up in a directory."""
    control = Control()
    async with world(place, relay_transport=control, internal_token="a token") as made:
        control.world = made
        yield Scene(made, control)


async def budget_of(scene: Scene, limit: str = "1.00") -> str:
    """A new budget of the scene's org."""
    budget_id = await scene.there.org.set_budget(limit)
    await scene.there.sync()
    return budget_id
