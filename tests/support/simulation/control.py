"""Control as gateways see it when parts are handed on, the ledger as they ask it, and the way to both."""

import asyncio
import json
from random import Random
from typing import TYPE_CHECKING, Any

import httpx

from services.core.budgets import Budget
from services.core.codec import decode
from services.core.identity import KEY_PREFIX, KeyRecord, hash_key
from services.core.parts import key_of
from services.core.ports import UnavailableError
from services.core.windows import IntervalWindow
from services.ledger.transactions import merge
from tests.support.checker import readable
from tests.support.gateway import PEPPER
from tests.support.simulation.loop import Process
from tests.support.simulation.plan import ORG

if TYPE_CHECKING:
    from tests.support.simulation.world import World

_MAX_LIVE = 20
# A budget that a part was carved from keeps its window until so long after the part has ended.
_KEPT_MS = 60_000
Told = tuple[int, dict[str, Any]]


class SimControl:
    """Delegations of one org, as `services.control.delegations` keeps them. Changes are published a little later."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._rng = Random(f"control:{world.plan.seed}")
        self.kept: dict[str, dict[str, Any]] = {}
        self.publish_soon = asyncio.Event()

    def budgets(self) -> tuple[Budget, ...]:
        """The budgets of the parts that live."""
        return tuple(_budget(each) for each in self.kept.values() if each["ended_ms"] is None)

    def covered(self) -> set[str]:
        """The budgets that parts were carved from which may not be settled yet."""
        since_ms = self._world.hot_ms() - _KEPT_MS
        live = [each for each in self.kept.values() if each["ended_ms"] is None or each["ended_ms"] > since_ms]
        return {name.partition("@")[0] for each in live for name in each["covers"]}

    def keys(self) -> tuple[dict[str, KeyRecord], list[str]]:
        """Live keys by hash, and the hashes of revoked ones."""
        live, revoked = {}, []
        for each in self.kept.values():
            if each["ended_ms"] is None:
                live[each["key_hash"]] = KeyRecord(each["key_id"], ORG, "agent", each["pins"])
            else:
                revoked.append(each["key_hash"])
        return live, revoked

    def is_live(self, key: str) -> bool:
        """Whether a key is that of a part which has not ended."""
        key_hash = hash_key(key, PEPPER)
        return any(each["key_hash"] == key_hash and each["ended_ms"] is None for each in self.kept.values())

    def answer(self, method: str, path: str, body: bytes) -> Told:
        """One request to the internal API, at one instant."""
        budget_id, _, deed = path.partition("/")
        if not budget_id:
            return self._delegate(json.loads(body))
        known = self.kept.get(budget_id)
        if known is None:
            return 404, {"error": "not_found", "message": "there is none"}
        if deed == "lapse" and known["ended_ms"] is None:
            self._end([budget_id])
            known["has_lapsed"] = True
        if deed == "end":
            below = self._below(budget_id)
            self._end(below)
            return 200, {"reservation_ids": [self.kept[name]["reservation_id"] for name in below]}
        return 200, {**known, "has_ended": known["ended_ms"] is not None}

    async def run(self) -> None:
        """Ends parts at their time, and publishes what has changed."""
        while True:
            now_ms = self._world.hot_ms()
            due = [name for name, each in self.kept.items() if each["ended_ms"] is None and each["ends_ms"] <= now_ms]
            for name in due:
                self._end(self._below(name))
            try:
                async with asyncio.timeout(1.0):
                    await self.publish_soon.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(self._rng.choice((0.0, 0.02, 0.6)) * self._rng.random())
            self.publish_soon.clear()
            self._world.troubles.reconfigure(ORG)

    def _delegate(self, asked: dict[str, Any]) -> Told:
        budget_id = asked["budget_id"]
        if budget_id in self.kept:
            return 409, {"error": "already_delegated", "message": "its key was shown"}
        if self._is_overtaken(asked["covers"], asked["config_version"]):
            return 409, {"error": "budget_changed", "message": "it is not what it was"}
        if sum(each["ended_ms"] is None for each in self.kept.values()) >= _MAX_LIVE:
            return 409, {"error": "too_many_parts", "message": "no more fit"}
        key = asked.pop("key", "") or KEY_PREFIX + f"{len(self.kept):040d}"
        self.kept[budget_id] = {
            "request_hash": "",
            **asked,
            "key_id": key_of(budget_id),
            "key_hash": hash_key(key, PEPPER),
            "ended_ms": None,
            "has_lapsed": False,
        }
        self._world.trace("delegated", budget_id, asked["limit_nano"], *asked["covers"])
        self.publish_soon.set()
        return 201, {"budget_id": budget_id, "key_id": key_of(budget_id), "key": key}

    def _is_overtaken(self, covers: list[str], config_version: int) -> bool:
        """Whether a budget has got another window since that configuration, or is gone; of a part, it has ended."""
        outer = [self.kept[name] for name in covers if name in self.kept and self.kept[name]["ended_ms"] is None]
        known = {name for each in outer for name in (each["budget_id"], *each["covers"])}
        there = {each.budget_id: each.since_version for each in self._world.troubles.snapshots[ORG].budgets}
        left = [name.partition("@")[0] for name in covers if name not in known]
        return any(name in self.kept or there.get(name, config_version + 1) > config_version for name in left)

    def _below(self, budget_id: str) -> list[str]:
        """A part and all that was handed on of it, outer ones first."""
        key_id = self.kept[budget_id]["key_id"]
        inner = [name for name, each in self.kept.items() if each["made_by"] == key_id]
        return [budget_id, *(below for name in inner for below in self._below(name))]

    def _end(self, budget_ids: list[str]) -> None:
        for name in budget_ids:
            if self.kept[name]["ended_ms"] is None:
                self.kept[name]["ended_ms"] = self._world.hot_ms()
                self._world.trace("part ended", name)
                self.publish_soon.set()


def _budget(kept: dict[str, Any]) -> Budget:
    return Budget(
        kept["budget_id"],
        "key",
        kept["key_id"],
        IntervalWindow(kept["ends_ms"] - kept["starts_ms"], kept["starts_ms"]),
        kept["limit_nano"],
        thresholds=(),
        covers=tuple(kept["covers"]),
        ends_at_ms=kept["ends_ms"],
    )


class SimRelay(httpx.AsyncBaseTransport):
    """The way of one process to control and to the ledger."""

    def __init__(self, process: Process, world: "World") -> None:
        self._process = process
        self._world = world

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        method, path = request.method, request.url.path
        if path.startswith("/v1/transactions/"):
            key, name = request.headers["authorization"].removeprefix("Bearer "), path.rpartition("/")[2]
            status, fields = await self._carry("ledger", "look up", lambda: self._transaction(key, name))
        else:
            assert "/delegations" in path, path
            rest, body = path.partition("/delegations")[2].strip("/"), await request.aread()
            status, fields = await self._carry(
                "control", f"{method} {rest}", lambda: self._world.control.answer(method, rest, body)
            )
        return httpx.Response(status, json=fields)

    async def _carry(self, system: str, what: str, effect: Any) -> Told:
        try:
            told: Told = await self._world.network.carry(self._process, system, what, effect)
        except UnavailableError as error:
            raise httpx.ConnectError(str(error)) from error
        return told

    def _transaction(self, key: str, name: str) -> Told:
        """What the ledger has of a transaction, for whoever has a live key of the org's."""
        _, record = self._world.store.keys.get(hash_key(key, PEPPER), (0, None))
        if record is None:
            return 401, {"error": "invalid_key"}
        events = []
        for message in self._world.log.history:
            event = readable(message)
            if event is None or message.offset >= self._world.ledger_has(message.place):
                continue
            if event["transaction_id"] == name and event["identity"]["org"] == record.org:
                events.append((decode(message.value).event, ""))
        found = merge(events).get(name)
        return (404, {"error": "not_found"}) if found is None else (200, found.fields())
