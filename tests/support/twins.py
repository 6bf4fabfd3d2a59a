"""The hot state's two halves side by side: `core` and the Lua scripts in a real Valkey, on a clock that is turned.

Every operation is done by both, and their answers are compared; `check` reads Valkey's complete state back and compares
that, too, and what must hold of either. What is done is drawn by `twin_steps` and `twin_parts`.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from services.adapters.valkey import ValkeyHotState
from services.adapters.valkey_connection import ValkeyConnection
from services.core import fold
from services.core import reserve as reserving
from services.core.budgets import Charge, FullRule, Proposal
from services.core.hotstate import (
    MAX_FIGURE,
    SESSION_IDLE_MS,
    Admitted,
    Applied,
    Backfill,
    FoldStep,
    HoldRequest,
    Marks,
    OrgImage,
    OrgState,
    counts_until_ms,
    is_forgotten,
)
from services.core.ports import TopicPartition
from services.core.windows import CalendarSpan, LifetimeSpan, RollingSpan, SessionSpan, Window, parse_span
from tests.support.hot_state import end_idle_sessions, read_all, turn_clock, with_turned_clock

ORG: Final = "acme"
# In 2096, so that nothing expires in Valkey by its own clock while the twins turn another.
START_MS: Final = 4_000_000_000_000
TOPICS: Final = ("spend.reservations.v1", "spend.settlements.v1")

# A budget, and its window or its ring.
Slot = tuple[str, str]


@dataclass(frozen=True)
class Part:
    """A part of budgets: the reservation that holds it, and its own budget (`core.parts`)."""

    name: str
    budget_id: str
    span: CalendarSpan
    amount_nano: int


class Twins:
    """Both twins, and what an aggregator would remember of the log."""

    def __init__(self, url: str, alter: Callable[[ValkeyHotState], None] = lambda _: None) -> None:
        self.connection = ValkeyConnection(url)
        self.valkey = with_turned_clock(ValkeyHotState(self.connection))
        alter(self.valkey)
        self.state = OrgState()
        self.now_ms = self.latest_ms = START_MS
        self.names: list[str] = []
        self.ends = {TopicPartition(topic, partition): 0 for topic in TOPICS for partition in (0, 1)}
        self.sequences: dict[str, int] = {}
        self.batches: list[tuple[TopicPartition, tuple[FoldStep, ...], int]] = []
        # The windows of budgets that have got another one, and the parts of budgets that are held.
        self.windows: dict[str, Window] = {}
        self.parts: list[Part] = []
        self.has_large_amounts = True
        self._asked_nano = 0

    async def begin(self) -> None:
        """Starts over with an empty server and a loaded, empty org."""
        await self.connection.execute("FLUSHALL")
        await turn_clock(self.connection, self.now_ms)
        await self.load(OrgImage({}, {}, {}, {}))

    async def close(self) -> None:
        await self.connection.close()

    def new_name(self) -> str:
        self.names.append(f"txn_{len(self.names)}")
        return self.names[-1]

    def recent(self) -> list[str]:
        """The last few reservations: few enough that much happens to each."""
        return self.names[-3:]

    @property
    def is_saturated(self) -> bool:
        """Whether a sum may have reached the bound of 64 bits, and is no sum any more."""
        return self._asked_nano > MAX_FIGURE // 2

    # ---- what is done by both ----

    async def reserve(self, request: HoldRequest) -> None:
        is_new = request.reservation_id not in self.state.holds
        self._asked_nano += max(each.amount_nano for each in reserving.options_of(request))
        expected = reserving.reserve(self.state, request, self.now_ms)
        found = await self.valkey.reserve(request)
        assert found == expected, (found, expected)
        if is_new and isinstance(found, Admitted):
            self._assert_fits(request, found)

    async def resize(self, request: HoldRequest) -> None:
        self._asked_nano += request.amount_nano
        hold = self.state.holds.get(request.reservation_id)
        before = Counter[Slot]() if hold is None else held_by(hold.amounts())
        expected = reserving.resize(self.state, request, self.now_ms)
        found = await self.valkey.resize(request)
        assert found == expected, (found, expected)
        if isinstance(found, Admitted):
            self._assert_grown_within_limits(request, found, before)

    async def release(self, name: str) -> None:
        expected = reserving.release(self.state, name, self.now_ms)
        assert await self.valkey.release(ORG, name) is expected

    async def claim(self, limit: int) -> None:
        expected = reserving.claim_due(self.state, self.now_ms, limit)
        found = await self.valkey.claim_due(ORG, limit)
        assert found == expected, (found, expected)

    async def peek(self, proposals: Sequence[Proposal]) -> None:
        expected = reserving.peek(self.state, proposals, self.now_ms)
        found = await self.valkey.peek(ORG, proposals)
        assert found == expected, (found, expected)

    async def apply(
        self, place: TopicPartition, steps: tuple[FoldStep, ...], next_offset: int, marks: str | None = None
    ) -> None:
        self._asked_nano += sum(step.amount_nano for step in steps)
        expected = fold.apply(self.state, place.topic, place.partition, steps, next_offset, self.now_ms, marks)
        found = await self.valkey.apply(ORG, place, steps, next_offset, marks)
        assert found == expected, (found, expected)
        if isinstance(expected, Applied):
            self.ends[place] = max(self.ends[place], next_offset)
            self.batches.append((place, steps, next_offset))

    async def load(self, image: OrgImage) -> None:
        expected = fold.load(self.state, copy.deepcopy(image), "epoch-1", self.now_ms)
        assert await self.valkey.load(ORG, image, "epoch-1") is expected

    async def backfill(self, fill: Backfill) -> None:
        self._asked_nano += sum(fill.spent_nano.values())
        expected = fold.backfill(self.state, fill, self.now_ms)
        assert await self.valkey.backfill(ORG, fill) is expected
        places = [TopicPartition(*place) for place in fill.fences]
        marks = await self.valkey.marks(ORG, places)
        fences = {place: self.state.fences.get(place, 0) for place in fill.fences}
        assert marks == Marks(self.state.marks, self.state.filled, fences), marks

    async def go_cold(self) -> None:
        await self.connection.execute("DEL", f"{{{ORG}}}:epoch")
        self.state.epoch = self.state.loaded_at_ms = None

    async def rebuild(self, knows_when: bool) -> None:
        """The ledger knows of an ended hold that it ended, but not until when the hot state meant to remember it."""
        self._drop_idle_sessions()
        image = fold.image_of(self.state)
        if not knows_when:
            image = replace(image, holds={k: replace(hold, forget_at_ms=None) for k, hold in image.holds.items()})
        if knows_when:
            image = replace(image, filled=dict(self.state.filled))
        await self.load(image)

    async def turn(self, now_ms: int) -> None:
        """Turns the clock. A session is the one thing that a server's own clock ends while it may still be asked for.

        What is gone stays gone when the clock is set back.
        """
        if now_ms < self.now_ms:
            self._drop_idle_sessions()
        self.now_ms, self.latest_ms = now_ms, max(now_ms, self.latest_ms)
        await turn_clock(self.connection, now_ms)
        await end_idle_sessions(self.connection, ORG, now_ms)

    async def let_keys_expire(self) -> None:
        """What Valkey would let go by now goes, and the pure twin must have come to hold it for forgotten, too."""
        _, expiries = await read_all(self.connection, ORG)
        for key, expires_at_ms in expiries.items():
            if expires_at_ms is not None and expires_at_ms <= self.now_ms:
                await self.connection.execute("DEL", key)
                if key.startswith(f"{{{ORG}}}:r:"):
                    _, _, budget_id, bucket_ms, count = key.split(":")
                    ring = self.state.rings.pop((budget_id, int(bucket_ms), int(count)))
                    low = self.now_ms // int(bucket_ms) - int(count)
                    assert ring.held_nano == 0, key
                    assert ring.spent_at(low) == 0 or self.is_saturated
        rings = dict(self.state.rings)
        fold.forget(self.state, self.now_ms)
        self.state.rings = rings

    async def settle_all(self) -> None:
        """Ends every open hold, as a day of rest would: nothing is held any more (P5)."""
        if self.state.epoch is None:
            await self.rebuild(knows_when=True)
        place = next(iter(self.ends))
        open_holds = [(name, hold) for name, hold in self.state.holds.items() if hold.phase == "held"]
        self.sequences["gw_1"] = self.sequences.get("gw_1", 0) + len(open_holds)
        first, end = self.sequences["gw_1"] - len(open_holds), self.ends[place]
        steps = tuple(
            FoldStep("settle", end + number, "gw_1", first + number + 1, name, hold.amount_nano, hold.charges)
            for number, (name, hold) in enumerate(open_holds)
        )
        await self.apply(place, steps, end + len(steps))
        await self.check()
        if not self.is_saturated:
            assert not self.state.due
            for window, figures in self.state.windows.items():
                assert figures.held_nano == 0 or is_forgotten(parse_span(window[1]), self.latest_ms)
            assert not any(ring.held_nano for ring in self.state.rings.values())

    # ---- what holds after every step ----

    async def check(self) -> None:
        """Compares the complete states, and raises `AssertionError` also where what must always hold does not."""
        found, expiries = await read_all(self.connection, ORG)
        expected = replace(self.state, windows=dict(self.state.windows))
        drop_idle_sessions(expected, self.now_ms)
        assert found == expected, difference(found, expected)
        self._assert_held_is_the_sum_of_open_holds()
        self._assert_keys_end(expiries)

    def _assert_fits(self, request: HoldRequest, answer: Admitted) -> None:
        """P1, said once more, without the code that decides: no budget that refuses is charged past its limit."""
        rules = rules_of(reserving.options_of(request)[answer.option].proposals, answer)
        for each in answer.standings:
            assert each.remaining_nano >= 0 or rules[each.budget_id] == "pass", f"past its limit: {each}"

    def _assert_grown_within_limits(self, request: HoldRequest, answer: Admitted, before: Counter[Slot]) -> None:
        """P1 where a hold is changed: the same of each budget that holds more for the call than it did `before`.

        What the hold implies is no part of that: it is held with room or without, for its limit is not known there.
        """
        hold = self.state.holds[request.reservation_id]
        own = held_by((*((each, hold.amount_nano) for each in hold.charges), *hold.left))
        implied = held_by((each, hold.amount_nano) for each in hold.implied)
        rules = rules_of(request.proposals, answer)
        for charge, each in zip(answer.charges, answer.standings, strict=True):
            slot = slot_of(charge)
            if own[slot] > before.get(slot, -1) and rules[each.budget_id] != "pass":
                assert each.remaining_nano + implied[slot] >= 0, f"past its limit: {each}"

    def _assert_held_is_the_sum_of_open_holds(self) -> None:
        held = Counter[Slot]()
        for hold in self.state.holds.values():
            assert hold.phase == "held" or not (hold.implied or hold.left)
            if hold.phase == "held":
                held.update(held_by(hold.amounts()))
        if self.is_saturated:
            return
        for (budget_id, window), figures in self.state.windows.items():
            # Set back across the end of a window's grace, a clock may see what it had forgotten: nothing is held in it.
            if not is_forgotten(parse_span(window), self.latest_ms):
                assert figures.held_nano == held[budget_id, window], (budget_id, window)
        for (budget_id, bucket_ms, count), ring in self.state.rings.items():
            assert ring.held_nano == held[budget_id, f"{bucket_ms}:{count}"]

    def _assert_keys_end(self, expiries: dict[str, int | None]) -> None:
        """Every key goes when nothing can ask for it any more, and not before."""
        for key, expires_at_ms in expiries.items():
            _, kind, *rest = key.split(":", 3)
            if kind == "b":
                span = parse_span(rest[1])
                figures = self.state.windows[rest[0], rest[1]]
                if isinstance(span, CalendarSpan):
                    assert expires_at_ms == counts_until_ms(span, self.now_ms), key
                elif isinstance(span, LifetimeSpan):
                    assert expires_at_ms is None, key
                else:
                    assert (expires_at_ms is None) == (figures.held_nano != 0), key
            elif kind == "r":
                bucket_ms, count = map(int, rest[1].split(":"))
                ring = self.state.rings[rest[0], bucket_ms, count]
                assert (expires_at_ms is None) == (ring.held_nano != 0), key
            elif kind == "h":
                name = key.removeprefix(f"{{{ORG}}}:h:")
                assert (expires_at_ms is None) == (self.state.holds[name].phase == "held"), key
            else:
                assert expires_at_ms is None, key

    def _drop_idle_sessions(self) -> None:
        drop_idle_sessions(self.state, self.now_ms)

    def edges(self) -> list[int]:
        """The instants ahead at which something changes: the end of a window, hold, claim, session or memory."""
        edges = {*self.state.due.values()}
        for (_, window), figures in self.state.windows.items():
            span = parse_span(window)
            if isinstance(span, CalendarSpan):
                edges |= {span.end_ms, counts_until_ms(span, self.now_ms)}
            elif isinstance(span, SessionSpan):
                edges.add(figures.forget_at_ms or self.now_ms + SESSION_IDLE_MS)
        edges |= {hold.forget_at_ms for hold in self.state.holds.values() if hold.forget_at_ms is not None}
        for (_, bucket_ms, count), ring in self.state.rings.items():
            edges |= {(bucket + count + 1) * bucket_ms for bucket in ring.buckets}
        return sorted(edge for edge in edges if edge > self.now_ms)


def slot_of(charge: Charge) -> Slot:
    """The figures that a charge is held in: those of its budget's window, or of its ring, whatever the bucket."""
    span = parse_span(charge.window)
    return charge.budget_id, f"{span.bucket_ms}:{span.count}" if isinstance(span, RollingSpan) else charge.window


def held_by(amounts: Iterable[tuple[Charge, int]]) -> Counter[Slot]:
    """What is held in each of the figures."""
    held = Counter[Slot]()
    for charge, amount_nano in amounts:
        held[slot_of(charge)] += amount_nano
    return held


def rules_of(proposals: Iterable[Proposal], answer: Admitted) -> dict[str, FullRule]:
    """What becomes of a call that each budget has no room for; only those whose parents pay may have been left out."""
    rules = {each.budget_id: each.full_rule for each in proposals}
    left_out = set(rules) - {each.budget_id for each in answer.charges}
    assert all(rules[budget_id] == "parent" for budget_id in left_out), left_out
    return rules


def drop_idle_sessions(state: OrgState, now_ms: int) -> None:
    """Forgets the sessions whose time is over, and nothing else."""
    for window, figures in list(state.windows.items()):
        if figures.forget_at_ms is not None and figures.forget_at_ms <= now_ms:
            del state.windows[window]


def difference(found: OrgState, expected: OrgState) -> str:
    """Where two states differ, in a few lines."""
    lines = []
    for name in OrgState.__slots__:
        there, wanted = getattr(found, name), getattr(expected, name)
        if there == wanted:
            continue
        if not isinstance(there, dict):
            lines.append(f"{name}: found {there}, expected {wanted}")
            continue
        for key in {*there, *wanted}:
            if there.get(key) != wanted.get(key):
                lines.append(f"{name}[{key}]: found {there.get(key)}, expected {wanted.get(key)}")
    return "\n".join(lines)
