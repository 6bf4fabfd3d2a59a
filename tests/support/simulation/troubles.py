"""What happens to a simulated world from outside: changes of configuration, losses, and what can't be read."""

import asyncio
import copy
from collections.abc import Coroutine, Iterator
from dataclasses import fields, replace
from random import Random
from typing import TYPE_CHECKING, Any

from services.adapters.memory import MemoryDirectory, MemoryStore
from services.core.budgets import Budget
from services.core.dead_letters import dead_letter
from services.core.identity import KEY_PREFIX, KeyRecord, hash_key
from services.core.parts import parts_held_alike
from services.core.ports import Outgoing
from services.core.snapshot import Connection, RouteRule, Snapshot, encode_snapshot
from tests.support.catalogs import small_catalog
from tests.support.checker import readable
from tests.support.gateway import PEPPER
from tests.support.history import TOPICS
from tests.support.simulation.network import at_once
from tests.support.simulation.plan import CHEAPER, DEARER, MODEL, NEIGHBOUR, ORG

if TYPE_CHECKING:
    from tests.support.simulation.world import World

MODELS = (MODEL, CHEAPER, DEARER)
DENIALS, ALERTS = "spend.decisions.v1", "spend.alerts.v1"
KEYS = {org: KEY_PREFIX + letter * 40 for org, letter in ((ORG, "S"), (NEIGHBOUR, "N"))}


class Troubles:
    """Control, the ledger, and everything that goes wrong by the clock."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._rng = Random(f"troubles:{world.plan.seed}")
        self._poisoned = 0
        self.snapshots: dict[str, Snapshot] = {}
        # The budgets that people have set, by org; parts of them come and go by themselves.
        self._budgets: dict[str, tuple[Budget, ...]] = {}

    def all(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What comes to its end. The ledger goes on for ever, beside it."""
        yield self._change_budgets()
        yield self._wipe()
        yield self._roll_back()
        yield self._poison()
        self._world.loop.spawn(self._world.loop.world, self._keep_ledger(), "ledger")
        if self._world.errands:
            self._world.loop.spawn(self._world.loop.world, self._keep_denials(), "denials")
            self._world.loop.spawn(self._world.loop.world, self._world.control.run(), "control")

    def configure(self, org: str, budgets: tuple[Budget, ...]) -> None:
        """Takes down what is to be published of an org next."""
        self._budgets[org] = budgets
        version = self.snapshots[org].version + 1 if org in self.snapshots else 1
        if org == ORG:
            budgets = (*budgets, *parts_held_alike(self._world.control.budgets(), budgets))
        catalog_version, _ = small_catalog(MODELS)
        connections = {
            name: Connection(name, "openai", f"https://{name}.test/v1", "sealed:sk", "openai")
            for name in ("openai", "other")
        }
        snapshot = Snapshot(
            org,
            version,
            catalog_version,
            self._world.plan.hold_ms,
            self._world.plan.book_expired,
            budgets,
            connections,
            rules=(
                RouteRule(fallbacks=self._world.plan.fallbacks or None, fail_open=self._world.plan.fail_open or None),
            ),
        )
        self.snapshots[org] = snapshot
        self._world.configurations[org].take(encode_snapshot(snapshot))
        self._world.trace("configured", org, version, *(f"{each.budget_id}={each.limit_nano}" for each in budgets))

    def reconfigure(self, org: str) -> None:
        """Publishes an org anew because parts of its budgets have come or gone."""
        self.configure(org, self._budgets[org])
        self.publish()

    def publish(self, to: MemoryDirectory | None = None) -> None:
        """Publishes all orgs as they are to be, as control does after every change, and after a loss."""
        directory = to or self._world.directory
        at_once(directory.publish_catalog(*small_catalog(MODELS)))
        for org, snapshot in self.snapshots.items():
            keys, revoked = self._world.control.keys() if org == ORG else ({}, [])
            keys[hash_key(KEYS[org], PEPPER)] = KeyRecord("key_1", org, "agent", {"team": "ml"})
            assert at_once(directory.publish_org(org, snapshot.version, encode_snapshot(snapshot), keys, revoked))

    async def _change_budgets(self) -> None:
        """Publishes the plan's changes. It numbers them without the publications that parts of budgets bring about."""
        for number, (at_s, budgets) in enumerate(self._world.plan.budgets, 1):
            if number > 1:
                await asyncio.sleep(max(0.0, at_s - self._world.loop.time()))
                self.configure(ORG, tuple(self._allowed(each, number) for each in budgets))
                self.publish()

    def _allowed(self, budget: Budget, number: int) -> Budget:
        """A budget of a change of the plan, as control lets it be: what parts were carved from keeps its window."""
        there = {each.budget_id: each for each in self._budgets[ORG]}.get(budget.budget_id)
        if there is not None and budget.budget_id in self._world.control.covered():
            return replace(budget, window=there.window, since_version=there.since_version)
        if budget.since_version == number or (there is not None and there.window != budget.window):
            return replace(budget, since_version=self.snapshots[ORG].version + 1)
        return budget if there is None else replace(budget, since_version=there.since_version)

    async def _wipe(self) -> None:
        for at_s in self._world.plan.wipes_s:
            await asyncio.sleep(max(0.0, at_s - self._world.loop.time()))
            self.wipe()
            await asyncio.sleep(self._rng.uniform(0.0, 1.5))
            self.publish()

    def wipe(self) -> None:
        """The hot state loses all it had, and every connection to it."""
        self._world.trace("wiped")
        self._world.store.wipe()
        self._world.network.incarnations["hot"] = self._world.network.incarnations.get("hot", 0) + 1

    async def _roll_back(self) -> None:
        for since_s, at_s in self._world.plan.rollbacks:
            await asyncio.sleep(max(0.0, since_s - self._world.loop.time()))
            if len(self._world.store.fold_fences) < len(self._world.log.places(*TOPICS)):
                continue  # a state that is older than the very first fold can't be told from a new one
            since_ms, before = self._world.hot_ms(), copy.deepcopy(self._world.store)
            await asyncio.sleep(at_s - since_s)
            self._world.trace("rolled back to", since_ms)
            for each in fields(MemoryStore):
                setattr(self._world.store, each.name, getattr(before, each.name))
            self._world.lost.append((since_ms, self._world.hot_ms()))
            self._world.network.incarnations["hot"] = self._world.network.incarnations.get("hot", 0) + 1
            await asyncio.sleep(self._rng.uniform(0.0, 1.5))
            self.publish()

    async def _poison(self) -> None:
        for at_s in self._world.plan.poison_s:
            await asyncio.sleep(max(0.0, at_s - self._world.loop.time()))
            self._poisoned += 1
            topic = TOPICS[self._rng.randrange(2)]
            await self._world.log.publish(
                [Outgoing(topic, ORG.encode(), b'{"type":"spend.' + str(self._poisoned).encode())]
            )

    async def _keep_ledger(self) -> None:
        while True:
            await asyncio.sleep(self._rng.uniform(0, 2 * self._world.plan.ledger_every_s))
            for place in self._world.log.places(*TOPICS):
                low = self._world.ledger.taken.get(place, 0)
                self._world.ledger.taken[place] = self._rng.randint(low, self._world.log.end(place))
                for message in self._world.log.slice(place, low, self._world.ledger.taken[place] - low):
                    if readable(message) is None:
                        await self._world.log.publish([dead_letter(message, "ledger", "it can't be read")])

    async def _keep_denials(self) -> None:
        rng = Random(f"denials:{self._world.plan.seed}")
        while True:
            await asyncio.sleep(rng.uniform(0, 2 * self._world.plan.ledger_every_s))
            for place in self._world.log.places(DENIALS):
                low = self._world.denials_taken.get(place, 0)
                self._world.denials_taken[place] = rng.randint(low, self._world.log.end(place))
