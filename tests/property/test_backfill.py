"""A budget that is made while calls are settled ends with the figures it would have if it had always been there.

The aggregator's own parts run over twins in memory: whatever the order of what it does, and whatever is published twice
or wiped in between, every call counts once against every budget that it matches.
"""

import asyncio
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from services.core.budgets import EACH, Budget, Charge
from services.core.codec import to_message
from services.core.events import CallFacts, Expiry, Settlement, Stamped
from services.core.hotstate import EXPIRY_PRODUCER
from services.core.identity import Identity
from services.core.ports import Outgoing
from services.core.snapshot import Snapshot, encode_snapshot
from services.core.windows import (
    CalendarWindow,
    IntervalWindow,
    LifetimeWindow,
    RollingWindow,
    Window,
    span_at,
)
from tests.support.aggregation import NOW_MS, Parts, World

MINUTE_MS = 60_000
WINDOWS: tuple[Window, ...] = (
    CalendarWindow("day", "Europe/Berlin"),
    CalendarWindow("hour", "UTC"),
    RollingWindow(30 * MINUTE_MS),
    IntervalWindow(7 * MINUTE_MS, 1_000_003),
    LifetimeWindow(),
)
OLD = Budget("bud_old", "team", "ml", CalendarWindow("day", "UTC"), 10**12)


@dataclass(frozen=True)
class Call:
    """A call: who made it, how long before now it was admitted, under which configuration, and what it cost."""

    number: int
    team: str
    user: str | None
    age_ms: int
    version: int
    cost_nano: int
    expires: bool
    settles: bool

    @property
    def name(self) -> str:
        return f"txn_{self.number}"

    @property
    def admitted_ms(self) -> int:
        return NOW_MS - self.age_ms

    def facts(self) -> CallFacts:
        who = Identity("default", "key_1", team=self.team, user=self.user)
        return CallFacts(who, "openai", "/v1/x", "m", "m", "exact", "c", self.version)

    def charges(self, history: dict[int, tuple[Budget, ...]]) -> tuple[Charge, ...]:
        """What it was charged to at its admission: the budgets of its configuration that it matches."""
        return tuple(
            Charge(name, "s", span_at(budget.window, self.admitted_ms).key())
            for budget in history[self.version]
            for name in matches(budget, self)
        )


def matches(budget: Budget, call: Call) -> list[str]:
    """The ids of a budget's figures that a call counts in. Not the index's way to find them."""
    if budget.scope_kind == "team":
        return [budget.budget_id] if budget.scope_value == call.team else []
    if budget.scope_kind == "cel":
        return [budget.budget_id] if call.user == "ada" else []
    assert (budget.scope_kind, budget.scope_value) == ("user", EACH)
    return [] if call.user is None else [f"{budget.budget_id}@{call.user}"]


calls = st.builds(
    Call,
    number=st.just(0),
    team=st.sampled_from(["ml", "web"]),
    user=st.sampled_from([None, "ada", "bob"]),
    age_ms=st.sampled_from([0, 1, 5 * MINUTE_MS, 29 * MINUTE_MS, 90 * MINUTE_MS, 13 * 60 * MINUTE_MS]),
    version=st.integers(1, 3),
    cost_nano=st.integers(1, 1000),
    expires=st.booleans(),
    settles=st.booleans(),
)
budgets = st.lists(
    st.builds(
        lambda kind, window, since: Budget(
            f"bud_{kind}",
            kind,
            {"team": "ml", "user": EACH, "cel": "ada"}[kind],
            WINDOWS[window],
            10**12,
            expression='user == "ada"' if kind == "cel" else None,
            since_version=since,
        ),
        kind=st.sampled_from(["team", "user", "cel"]),
        window=st.integers(0, len(WINDOWS) - 1),
        since=st.integers(2, 3),
    ),
    max_size=3,
    unique_by=lambda each: each.budget_id,
)


def endings(call: Call, charges: tuple[Charge, ...], sequences: dict[str, int]) -> list[Outgoing]:
    """How the call ended, as far as it did."""
    found = []
    facts, time_ms = call.facts(), call.admitted_ms + 1_000
    if call.expires:
        expiry = Expiry(call.name, time_ms, facts, 500, 500, charges, admitted_at_ms=call.admitted_ms)
        found.append(to_message(Stamped(expiry, f"{EXPIRY_PRODUCER}{call.name}", 1)))
    if call.settles:
        settlement = Settlement(
            *(call.name, time_ms, facts, "completed", "reported", {}, (), call.cost_nano, 500, charges, 200, 0),
            admitted_at_ms=call.admitted_ms,
        )
        producer = f"gw_{call.number % 2}"
        sequences[producer] = sequences.get(producer, 0) + 1
        found.append(to_message(Stamped(settlement, producer, sequences[producer])))
    return found


def figures(world: World) -> dict[tuple[str, str], int]:
    """All that is spent, by budget and by window or ring."""
    state = world.state()
    found = {slot: each.spent_nano for slot, each in state.windows.items()}
    for (budget_id, bucket_ms, count), ring in state.rings.items():
        assert ring.total_nano == sum(ring.buckets.values())
        for bucket, nano in ring.buckets.items():
            found[budget_id, f"r:{bucket_ms}:{count}:{bucket}"] = nano
    return {slot: nano for slot, nano in found.items() if nano}


def expected(made: tuple[Budget, ...], done: list[Call]) -> dict[tuple[str, str], int]:
    """What budgets that always existed have spent."""
    spent: dict[tuple[str, str], int] = {}
    for call in done:
        amount = call.cost_nano if call.settles else 500 if call.expires else 0
        for budget in made:
            window = budget.window
            if isinstance(window, RollingWindow) and call.age_ms > window.length_ms + window.bucket_ms:
                continue
            for name in matches(budget, call):
                slot = name, span_at(window, call.admitted_ms).key()
                spent[slot] = spent.get(slot, 0) + amount
    return {slot: nano for slot, nano in spent.items() if nano}


async def backfill(world: World, parts: Parts) -> None:
    """What the aggregator does beside its fold. A ledger that is ahead of the fold has it wait, so the fold goes on."""
    folding = asyncio.create_task(parts.fold_all())
    await parts.backfiller.backfill()
    await folding


async def publish(world: World, version: int, made: tuple[Budget, ...]) -> None:
    snapshot = Snapshot("default", version, "v1", 900_000, True, made, {})
    await world.directory.publish_org("default", version, encode_snapshot(snapshot), {}, ())


@given(st.lists(calls, max_size=12), budgets, st.lists(st.sampled_from("fblwrp"), max_size=14), st.data())
def test_budgets_made_meanwhile_end_as_if_they_had_always_been(
    drawn: list[Call], later: list[Budget], deeds: list[str], data: st.DataObject
) -> None:
    """The deeds: fold (f), backfill (b), the ledger takes all there is (l), a wipe (w), another process (r),
    the next configuration is published (p). Between two deeds an event or two come to the log."""
    done = [replace(each, number=number) for number, each in enumerate(drawn)]
    history = {version: (OLD, *(each for each in later if each.since_version <= version)) for version in (1, 2, 3)}
    sequences: dict[str, int] = {}
    waiting: list[Outgoing] = []
    for call in done:
        waiting += endings(call, call.charges(history), sequences)

    async def run() -> World:
        world = World()
        version = 1
        await publish(world, version, history[version])
        parts = world.parts()
        for deed in (*deeds, "p", "p", "l"):
            for message in [waiting.pop(0) for _ in range(min(len(waiting), data.draw(st.integers(0, 3))))]:
                await world.publish(*[message] * data.draw(st.integers(1, 2)))
            if deed == "p" and version < 3:
                version += 1
                await publish(world, version, history[version])
            elif deed == "f":
                await parts.fold_all()
            elif deed == "b":
                await parts.rebuilder.rebuild_cold()
                await asyncio.wait_for(backfill(world, parts), 5)
            elif deed == "l":
                world.ledger.taken = dict(await world.log.end_offsets(world.places))
            elif deed == "w":
                world.store.wipe()
                await publish(world, version, history[version])
            elif deed == "r":
                parts = world.parts()
        await world.publish(*waiting)
        await parts.rebuilder.rebuild_cold()
        await parts.fold_all()
        await backfill(world, parts)
        return world

    world = asyncio.run(run())
    assert figures(world) == expected(history[3], done)
    assert world.state().filled == {each.budget_id: each.since_version for each in later}
