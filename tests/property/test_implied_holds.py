"""A budget that is made while calls are under way holds what they hold, as if it had always been there.

A gateway and the aggregator's own parts run over twins in memory. Whatever the order of what they do, and whether the
gateway knows of the budget yet or not, each open hold counts once against every budget that it matches, and goes with
its call; and a hot state that is rebuilt holds the same.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random

import pytest

from services.core.budgets import Budget, Charge, Proposal
from services.core.codec import encode_facts, to_message
from services.core.events import CallFacts, HoldResized, Reservation, Settlement, Stamped
from services.core.hotstate import Admitted, HoldRequest, OrgState
from services.core.identity import Identity
from services.core.ports import Outgoing, TopicPartition
from services.core.snapshot import Snapshot, encode_snapshot
from services.core.windows import (
    CalendarWindow,
    IntervalWindow,
    LifetimeWindow,
    RollingWindow,
    Window,
    parse_span,
    span_at,
)
from tests.support.aggregation import NOW_MS, Parts, World

MINUTE_MS = 60_000
WINDOWS: tuple[Window, ...] = (
    CalendarWindow("hour", "UTC"),
    RollingWindow(30 * MINUTE_MS),
    IntervalWindow(7 * MINUTE_MS, 1_000_003),
    LifetimeWindow(),
)
OLD = Budget("bud_old", "team", "ml", CalendarWindow("day", "UTC"), 10**12)
MADE = (Budget("bud_team", "team", "ml", WINDOWS[0], 10**12), Budget("bud_ada", "user", "ada", WINDOWS[0], 10**12))
# A call is admitted (a), or moved (m), by the last configuration or one before it; its hold is changed (r), or grows as
# a reservation's does, by such a configuration (g); it is settled (s); an event or two are published (e); some time
# goes by (t); fold (f), backfill (b), the ledger takes all there is (l), a wipe (w), another process (o), the next
# configuration is published (p), all comes to rest (c).
DEEDS = "aaaaaaaaaeeeeeeemmmrrrrgggsttfffffbbblloppcw"
SEEDS = 250


def configurations(rng: Random) -> dict[int, tuple[Budget, ...]]:
    """The budgets of each configuration: each is made with 2 or 3, and may get another window with 3."""
    found: dict[int, tuple[Budget, ...]] = {1: (OLD,), 2: (OLD,), 3: (OLD,)}
    for budget in MADE:
        since, first, second = rng.randint(2, 3), rng.choice(WINDOWS), rng.choice(WINDOWS)
        for version in range(since, 4):
            is_another = version > since and first != second
            window, at = (second, version) if is_another else (first, since)
            found[version] += (replace(budget, window=window, since_version=at),)
    return found


def matches(budget: Budget, facts: CallFacts) -> bool:
    """Not the index's way to find it."""
    who = facts.identity
    return budget.scope_value in ((who.team,) if budget.scope_kind == "team" else (who.user,))


@dataclass
class Call:
    """A call under way, as its gateway knows it."""

    facts: CallFacts
    admitted_ms: int
    amount_nano: int
    charges: tuple[Charge, ...]


@dataclass
class Gateway:
    """Holds and changes holds by the configuration it knows, and publishes its events late."""

    world: World
    history: dict[int, tuple[Budget, ...]]
    rng: Random
    open: dict[str, Call] = field(default_factory=dict)
    waiting: list[Outgoing] = field(default_factory=list)
    sequence: int = 0
    names: int = 0

    async def admit(self, version: int) -> None:
        self.names += 1
        who = Identity("default", "key_1", team=self._one_of("ml", "web"), user=self._one_of("ada", "bob"))
        facts = CallFacts(who, "openai", "/v1/x", "m", "m", "exact", "c", version)
        name, amount_nano = f"txn_{self.names}", self.rng.randint(1, 1000)
        answer = await self.world.hot.reserve(self._request(name, facts, amount_nano, {}, version))
        if isinstance(answer, Admitted):
            self.open[name] = Call(facts, answer.now_ms, amount_nano, answer.charges)
            self._tell(
                Reservation(
                    *(name, answer.now_ms, facts, "strict", 1, 1, amount_nano, answer.charges, answer.expires_at_ms)
                )
            )

    async def change(self, version: int | None, *, grows: bool = False) -> None:
        """Changes a hold: its amount (None), or all that it falls under, by a configuration. One that `grows` is still
        of the configuration that it was made by."""
        if not self.open:
            return
        name = self._one_of(*self.open)
        call = self.open[name]
        facts = call.facts if version is None or grows else replace(call.facts, config_version=version)
        held = {each.budget_id: each for each in call.charges}
        if grows and version is not None:
            windows = {each.budget_id: each for each in self.history[version]}
            held = {name: each for name, each in held.items() if name not in windows or is_of(windows[name], each)}
        request = self._request(name, facts, self.rng.randint(1, 1000), held, version)
        answer = await self.world.hot.resize(request)
        if isinstance(answer, Admitted):
            call.facts, call.amount_nano, call.charges = facts, request.amount_nano, answer.charges
            amount_nano, now_ms = request.amount_nano, answer.now_ms
            self._tell(HoldResized(name, now_ms, facts, amount_nano, answer.charges, answer.expires_at_ms))

    def settle(self) -> None:
        if self.open:
            name = self._one_of(*self.open)
            call = self.open.pop(name)
            now_ms = self.world.clock_ms
            self._tell(
                Settlement(
                    *(name, now_ms, call.facts, "completed", "reported", {}, (), 1, call.amount_nano, call.charges),
                    *(200, 0),
                    admitted_at_ms=call.admitted_ms,
                )
            )

    def take(self, count: int) -> list[Outgoing]:
        """The next events to be published."""
        some, self.waiting = self.waiting[:count], self.waiting[count:]
        return some

    def _request(
        self, name: str, facts: CallFacts, amount_nano: int, held: dict[str, Charge], version: int | None
    ) -> HoldRequest:
        proposals = {
            each.budget_id: Proposal(
                *(each.budget_id, each.scope, parse_span(each.window), 10**12, "block"), is_fixed=True
            )
            for each in held.values()
        }
        for budget in () if version is None else self.history[version]:
            if matches(budget, facts) and budget.budget_id not in proposals:
                span = span_at(budget.window, self.world.clock_ms)
                proposals[budget.budget_id] = Proposal(budget.budget_id, budget.scope, span, budget.limit_nano)
        all_of_them = tuple(proposals.values())
        return HoldRequest("default", name, amount_nano, all_of_them, 10 * 3_600_000, encode_facts(facts))

    def _tell(self, event: Reservation | HoldResized | Settlement) -> None:
        self.sequence += 1
        self.waiting.append(to_message(Stamped(event, "gw_1", self.sequence)))

    def _one_of(self, *choices: str) -> str:
        return self.rng.choice(choices)


def expected(budgets: tuple[Budget, ...], calls: dict[str, Call]) -> Counter[tuple[str, str]]:
    """What the open calls hold: what they say, and what they would say had these budgets always been there."""
    held: Counter[tuple[str, str]] = Counter()
    for call in calls.values():
        for charge in call.charges:
            held[slot(charge.budget_id, charge.window)] += call.amount_nano
        for budget in budgets:
            present = [each for each in call.charges if each.budget_id == budget.budget_id and is_of(budget, each)]
            if call.facts.config_version < budget.since_version and matches(budget, call.facts) and not present:
                held[slot(budget.budget_id, span_at(budget.window, call.admitted_ms).key())] += call.amount_nano
    return held


def is_of(budget: Budget, charge: Charge) -> bool:
    """Whether a charge is in the window that its budget has now: by its form, for each of `WINDOWS` has another."""
    kind, *numbers = charge.window.split(":")
    length = int(numbers[1]) - int(numbers[0]) if kind == "c" else None
    match budget.window:
        case CalendarWindow():
            return length == 60 * MINUTE_MS
        case IntervalWindow():
            return length == budget.window.length_ms
        case RollingWindow():
            return kind == "r"
        case _:
            return kind == "l"


def slot(budget_id: str, window: str) -> tuple[str, str]:
    """What a charge is held in: of a ring, the ring."""
    return budget_id, window.rpartition(":")[0] if window.startswith("r:") else window


def held_in(state: OrgState) -> Counter[tuple[str, str]]:
    """All that is held, by budget and window or ring; what is zero left out."""
    found = Counter({key: each.held_nano for key, each in state.windows.items() if each.held_nano})
    found |= {(name, f"r:{ms}:{count}"): ring.held_nano for (name, ms, count), ring in state.rings.items()}
    return +found


@dataclass
class Run:
    """One history, as its seed has it."""

    rng: Random
    version: int = 1

    def __post_init__(self) -> None:
        self.history = configurations(self.rng)
        self.world = World()
        self.gateway = Gateway(self.world, self.history, self.rng)
        self.parts = self.world.parts()

    async def live(self) -> None:
        await self.publish_budgets()
        await self.parts.rebuilder.rebuild_cold()
        for deed in self.rng.choices(DEEDS, k=self.rng.randint(10, 45)):
            await self.do(deed)
        self.version = 3
        await self.publish_budgets()
        await self.come_to_rest()
        state = self.world.state()
        before = held_in(state), {name: set(hold.implied) for name, hold in state.holds.items() if hold.implied}
        self.world.ledger.taken = {place: self.rng.randint(0, end) for place, end in (await self.ends()).items()}
        await self.do("w")
        state = self.world.state()
        after = held_in(state), {name: set(hold.implied) for name, hold in state.holds.items() if hold.implied}
        assert after == before

    async def do(self, deed: str) -> None:
        known = self.rng.randint(max(1, self.version - 1), self.version)
        match deed:
            case "a":
                await self.gateway.admit(known)
            case "m" | "r" | "g":
                await self.gateway.change(None if deed == "r" else known, grows=deed == "g")
            case "s":
                self.gateway.settle()
            case "e":
                for message in self.gateway.take(self.rng.randint(1, 3)):
                    await self.world.publish(*[message] * self.rng.randint(1, 2))
            case "t":
                self.world.clock_ms += 10 * MINUTE_MS
            case "f":
                await self.parts.fold_all()
            case "b":
                await backfill(self.parts)
            case "l":
                self.world.ledger.taken = await self.ends()
            case "w":
                self.world.store.wipe()
                await self.publish_budgets()
                self.parts = self.world.parts()
                await self.parts.rebuilder.rebuild_cold()
            case "o":
                self.parts = self.world.parts()
            case "p":
                self.version = min(3, self.version + 1)
                await self.publish_budgets()
            case "c":
                await self.come_to_rest()

    async def come_to_rest(self) -> None:
        """All that has happened is published and folded, and all budgets are backfilled: then nothing is missing."""
        await self.world.publish(*self.gateway.take(len(self.gateway.waiting)))
        await backfill(self.parts)
        await self.parts.fold_all()
        assert held_in(self.world.state()) == expected(self.history[self.version], self.gateway.open)

    async def ends(self) -> dict[TopicPartition, int]:
        return dict(await self.world.log.end_offsets(self.world.places))

    async def publish_budgets(self) -> None:
        snapshot = Snapshot("default", self.version, "v1", 900_000, True, self.history[self.version], {})
        await self.world.directory.publish_org("default", self.version, encode_snapshot(snapshot), {}, ())


async def backfill(parts: Parts) -> None:
    """What the aggregator does beside its fold. A ledger that is ahead of the fold has it wait, so the fold goes on."""
    await parts.rebuilder.rebuild_cold()
    folding = asyncio.create_task(parts.fold_all())
    await asyncio.wait_for(parts.backfiller.backfill(), 5)
    await folding


@pytest.mark.parametrize("first", range(0, SEEDS, 50))
def test_calls_under_way_are_held_by_budgets_made_meanwhile(first: int) -> None:
    assert NOW_MS % (60 * MINUTE_MS) == 0, "an hour turns while the calls are under way"
    for seed in range(first, first + 50):
        try:
            asyncio.run(Run(Random(seed)).live())
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
