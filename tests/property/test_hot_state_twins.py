"""The hot state's two halves, `core` and the Lua scripts in a real Valkey, driven by the same machine, step by step.

After every step the complete state is read back from Valkey and compared with the pure one. How many runs there are is
the hypothesis profile's business.
"""

import asyncio
import copy
from collections import Counter
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, Final, Literal, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from services.adapters.valkey import ValkeyHotState
from services.adapters.valkey_connection import ValkeyConnection
from services.core import fold
from services.core import reserve as reserving
from services.core.budgets import Budget, Charge, Proposal, propose
from services.core.hotstate import (
    CLOCK_MARGIN_MS,
    EXPIRY_PRODUCER,
    MAX_FIGURE,
    TOMBSTONE_MS,
    Cold,
    FoldStep,
    HoldRequest,
    OrgImage,
    OrgState,
    counts_until_ms,
    is_forgotten,
)
from services.core.ports import TopicPartition
from services.core.windows import CalendarWindow, RollingSpan, RollingWindow, parse_span, resets_at_ms
from tests.support.hot_state import read_expiries, read_state, turn_clock, with_turned_clock

ORG: Final = "acme"
# In 2096, so that nothing expires in Valkey by its own clock while the machine turns another.
START_MS: Final = 4_000_000_000_000
HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
TOPICS: Final = ("spend.reservations.v1", "spend.settlements.v1")

BUDGETS: Final = (
    Budget("bud_org_day", "org", "acme", CalendarWindow("day", "Europe/Berlin"), 0),
    Budget("bud_team_hour", "team", "ml", CalendarWindow("hour", "UTC"), 0),
    Budget("bud_team_1m", "team", "ml", RollingWindow(60_000), 0),
    Budget("bud_agent_30d", "agent", "crawler", RollingWindow(30 * DAY_MS), 0),
)

limits = st.sampled_from((0, 100, 1_000, 10**15 - 1, 10**15, 2**53 + 1, 9 * 10**18, 2**63 - 1))
amounts = st.one_of(
    st.integers(0, 300), st.sampled_from((10**9 - 1, 10**15 - 1, 2**53 - 1, 2**53, 2**53 + 1, 10**18, 9 * 10**18))
)
turns = st.sampled_from((1, 999, 1_000, 30_000, 59_999, 900_000, HOUR_MS, DAY_MS, 2 * DAY_MS, 40 * DAY_MS, -1_500))
budgets = st.lists(st.sampled_from(BUDGETS), unique=True, max_size=4)
kinds: st.SearchStrategy[Literal["settle", "expire", "restore", "resize"]] = st.sampled_from(
    ("settle", "expire", "restore", "resize")
)

T = TypeVar("T")


class TwinMachine(RuleBasedStateMachine):
    """Both twins, and what an aggregator would remember of the log."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.connection = ValkeyConnection(url)
        self.valkey = with_turned_clock(ValkeyHotState(self.connection))
        self.state = OrgState()
        self.now_ms = START_MS
        self.names: list[str] = []
        self.ends = {TopicPartition(topic, partition): 0 for topic in TOPICS for partition in (0, 1)}
        self.sequences: dict[str, int] = {}
        self.batches: list[tuple[TopicPartition, tuple[FoldStep, ...], int]] = []
        self.is_saturated = False
        self.execute("FLUSHALL")
        self.set_clock()
        self.rebuild(OrgImage({}, {}, {}, {}))

    def teardown(self) -> None:
        self.run(self.connection.close())
        self.runner.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    def execute(self, *command: str | bytes | int) -> Any:
        return self.run(self.connection.execute(*command))

    def set_clock(self) -> None:
        self.run(turn_clock(self.connection, self.now_ms))

    def recent(self) -> list[str]:
        """The last few reservations: few enough that much happens to each."""
        return self.names[-3:]

    def rebuild(self, image: OrgImage) -> None:
        expected = fold.load(self.state, copy.deepcopy(image), "epoch-1", self.now_ms)
        assert self.run(self.valkey.load(ORG, image, "epoch-1")) is expected

    # ---- admission ----

    def reserve(
        self, name: str, chosen: list[Budget], limit_nano: int, amount_nano: int, hold_ms: int, at: int
    ) -> None:
        limited = [Budget(b.budget_id, b.scope_kind, b.scope_value, b.window, limit_nano) for b in chosen]
        request = HoldRequest(ORG, name, amount_nano, propose(limited, at), hold_ms, f'{{"for":"{name}"}}')
        expected = reserving.reserve(self.state, request, self.now_ms)
        assert self.run(self.valkey.reserve(request)) == expected

    @rule(chosen=budgets, limit=limits, amount=amounts, hold_ms=st.sampled_from((1, 1_000, 60_000, 900_000)))
    def admit(self, chosen: list[Budget], limit: int, amount: int, hold_ms: int) -> None:
        self.names.append(f"txn_{len(self.names)}")
        self.reserve(self.names[-1], chosen, limit, amount, hold_ms, self.now_ms)

    @rule(chosen=budgets, behind_ms=st.sampled_from((1, 60_000, HOUR_MS, DAY_MS)))
    def admit_for_another_instant(self, chosen: list[Budget], behind_ms: int) -> None:
        self.names.append(f"txn_{len(self.names)}")
        self.reserve(self.names[-1], chosen, 1_000, 10, 60_000, self.now_ms - behind_ms)

    @precondition(lambda self: self.names)
    @rule(data=st.data(), chosen=budgets, amount=amounts)
    def admit_again(self, data: st.DataObject, chosen: list[Budget], amount: int) -> None:
        self.reserve(data.draw(st.sampled_from(self.recent())), chosen, 1_000, amount, 60_000, self.now_ms)

    @precondition(lambda self: self.names)
    @rule(data=st.data(), limit=limits, amount=amounts, hold_ms=st.sampled_from((1, 60_000, 900_000)))
    def resize(self, data: st.DataObject, limit: int, amount: int, hold_ms: int) -> None:
        name = data.draw(st.sampled_from(self.recent()))
        proposals = tuple(
            Proposal(charge.budget_id, charge.scope, parse_span(charge.window), limit)
            for charge in self.charges_of(name, data)
        )
        request = HoldRequest(ORG, name, amount, proposals, hold_ms, f'{{"now":"{amount}"}}')
        expected = reserving.resize(self.state, request, self.now_ms)
        found = self.run(self.valkey.resize(request))
        assert found == expected, (found, expected)

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.recent()))
        expected = reserving.release(self.state, name, self.now_ms)
        assert self.run(self.valkey.release(ORG, name)) is expected

    @rule(limit=st.integers(0, 3))
    def claim(self, limit: int) -> None:
        expected = reserving.claim_due(self.state, self.now_ms, limit)
        assert self.run(self.valkey.claim_due(ORG, limit)) == expected

    @rule(chosen=budgets, limit=limits, at_ms=st.sampled_from((0, -HOUR_MS, -DAY_MS)))
    def peek(self, chosen: list[Budget], limit: int, at_ms: int) -> None:
        limited = [Budget(b.budget_id, b.scope_kind, b.scope_value, b.window, limit) for b in chosen]
        proposals = propose(limited, self.now_ms + at_ms)
        expected = reserving.peek(self.state, proposals, self.now_ms)
        assert self.run(self.valkey.peek(ORG, proposals)) == expected

    # ---- the log ----

    def charges_of(self, name: str, data: st.DataObject) -> tuple[Charge, ...]:
        """Those of its hold, as an honest event has them; or others, as an event of an unknown or odd call might."""
        hold = self.state.holds.get(name)
        if hold is not None and data.draw(st.integers(0, 9)):
            return hold.charges
        chosen = data.draw(budgets)
        at_ms = self.now_ms + data.draw(st.sampled_from((0, -30_000, -HOUR_MS, -DAY_MS, -3 * DAY_MS, 5_000)))
        return tuple(proposal.charge() for proposal in propose(chosen, at_ms))

    def step(self, place: TopicPartition, offset: int, data: st.DataObject) -> FoldStep:
        name = data.draw(st.sampled_from([*self.recent(), f"txn_unseen_{offset % 2}"]))
        kind = data.draw(kinds)
        producer = EXPIRY_PRODUCER + name if kind == "expire" else data.draw(st.sampled_from(("gw_1", "gw_2")))
        sequence = 1 if kind == "expire" else self.sequences.get(producer, 0) + 1
        self.sequences[producer] = sequence
        charges = self.charges_of(name, data)
        amount_nano = data.draw(amounts)
        expires_at_ms = self.now_ms + data.draw(st.sampled_from((-1_000, 0, 60_000)))
        return FoldStep(kind, offset, producer, sequence, name, amount_nano, charges, "{}", expires_at_ms, self.now_ms)

    def apply(self, place: TopicPartition, steps: tuple[FoldStep, ...], next_offset: int) -> None:
        expected = fold.apply(self.state, place.topic, place.partition, steps, next_offset, self.now_ms)
        assert self.run(self.valkey.apply(ORG, place, steps, next_offset)) == expected
        if expected != Cold():
            self.ends[place] = max(self.ends[place], next_offset)
            self.batches.append((place, steps, next_offset))

    def place(self, data: st.DataObject) -> TopicPartition:
        return data.draw(st.sampled_from(sorted(self.ends)))

    @rule(data=st.data(), count=st.integers(0, 4), gap=st.integers(0, 2))
    def fold_new(self, data: st.DataObject, count: int, gap: int) -> None:
        place = self.place(data)
        first = self.ends[place] + gap
        steps = tuple(self.step(place, first + number, data) for number in range(count))
        self.apply(place, steps, first + count)

    @precondition(lambda self: self.state.loaded_at_ms is not None)
    @rule(data=st.data(), chosen=budgets, loaded_off_ms=st.integers(-1, 1), forgotten_off_ms=st.integers(-1, 1))
    def fold_late_reservation(
        self, data: st.DataObject, chosen: list[Budget], loaded_off_ms: int, forgotten_off_ms: int
    ) -> None:
        """Of a call admitted about when the org was loaded, folded about when its ended hold would be forgotten."""
        assert self.state.loaded_at_ms is not None
        admitted_ms = self.state.loaded_at_ms + CLOCK_MARGIN_MS + loaded_off_ms
        self.now_ms = max(self.now_ms, admitted_ms - CLOCK_MARGIN_MS + TOMBSTONE_MS + forgotten_off_ms)
        self.set_clock()
        place = self.place(data)
        offset = self.ends[place]
        self.names.append(f"txn_{len(self.names)}")
        self.sequences["gw_1"] = self.sequences.get("gw_1", 0) + 1
        charges = tuple(proposal.charge() for proposal in propose(chosen, self.now_ms))
        reservation = FoldStep(
            "restore",
            offset,
            "gw_1",
            self.sequences["gw_1"],
            self.names[-1],
            7,
            charges,
            "{}",
            self.now_ms,
            admitted_ms,
        )
        self.apply(place, (reservation,), offset + 1)

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def fold_again(self, data: st.DataObject) -> None:
        self.apply(*data.draw(st.sampled_from(self.batches)))

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def fold_published_twice(self, data: st.DataObject) -> None:
        place, steps, _ = data.draw(st.sampled_from(self.batches))
        end = self.ends[place]
        moved = tuple(replace(step, offset=end + number) for number, step in enumerate(steps))
        self.apply(place, moved, end + len(moved))

    # ---- time and loss ----

    @rule(turn_ms=turns)
    def turn_clock(self, turn_ms: int) -> None:
        self.now_ms += turn_ms
        self.set_clock()

    @rule(data=st.data(), off_ms=st.sampled_from((-1, 0, 1)))
    def turn_clock_to_an_edge(self, data: st.DataObject, off_ms: int) -> None:
        """To an instant at which something changes: a window's end, a hold's, a claim's, or the end of a memory."""
        spans = [parse_span(window) for _, window in self.state.windows]
        edges = {*self.state.due.values(), *(resets_at_ms(span) for span in spans), *map(counts_until_ms, spans)}
        edges |= {hold.forget_at_ms for hold in self.state.holds.values() if hold.forget_at_ms is not None}
        for (_, bucket_ms, count), ring in self.state.rings.items():
            edges |= {counts_until_ms(RollingSpan(bucket_ms, count, bucket)) for bucket in ring.buckets}
        ahead = sorted(edge for edge in edges if edge > self.now_ms)
        if ahead:
            self.now_ms = data.draw(st.sampled_from(ahead[:6])) + off_ms
            self.set_clock()

    @rule()
    def let_keys_expire(self) -> None:
        """What Valkey would let go by now goes, and the pure twin must have come to hold it for forgotten, too."""
        for key, expires_at_ms in self.run(read_expiries(self.connection, ORG)).items():
            if expires_at_ms is not None and expires_at_ms <= self.now_ms:
                self.execute("DEL", key)
                if key.startswith(f"{{{ORG}}}:r:"):
                    _, _, budget_id, bucket_ms, count = key.split(":")
                    ring = self.state.rings.pop((budget_id, int(bucket_ms), int(count)))
                    low = self.now_ms // int(bucket_ms) - int(count)
                    assert ring.held_nano == 0
                    assert ring.spent_at(low) == 0
        rings = dict(self.state.rings)
        fold.forget(self.state, self.now_ms)
        self.state.rings = rings

    @rule()
    def go_cold(self) -> None:
        self.execute("DEL", f"{{{ORG}}}:epoch")
        self.state.epoch = self.state.loaded_at_ms = None

    @rule(knows_when=st.booleans())
    def rebuild_from_image(self, knows_when: bool) -> None:
        """The ledger knows of an ended hold that it ended, but not until when the hot state meant to remember it."""
        image = fold.image_of(self.state)
        if not knows_when:
            image = replace(image, holds={k: replace(hold, forget_at_ms=None) for k, hold in image.holds.items()})
        self.rebuild(image)

    # ---- what holds after every step ----

    @invariant()
    def states_are_equal(self) -> None:
        found = self.run(read_state(self.connection, ORG))
        assert found == self.state

    @invariant()
    def held_is_the_sum_of_open_holds(self) -> None:
        held = Counter[tuple[str, str]]()
        for hold in self.state.holds.values():
            for charge in hold.charges if hold.phase == "held" else ():
                span = parse_span(charge.window)
                slot = f"{span.bucket_ms}:{span.count}" if isinstance(span, RollingSpan) else charge.window
                held[charge.budget_id, slot] += hold.amount_nano
        if any(total > MAX_FIGURE // 2 for total in held.values()):
            self.is_saturated = True  # sums that reached the bound of 64 bits are no sums any more
        if self.is_saturated:
            return
        for (budget_id, window), figures in self.state.windows.items():
            if not is_forgotten(parse_span(window), self.now_ms):
                assert figures.held_nano == held[budget_id, window]
        for (budget_id, bucket_ms, count), ring in self.state.rings.items():
            assert ring.held_nano == held[budget_id, f"{bucket_ms}:{count}"]

    @invariant()
    def keys_expire_when_nothing_can_ask_for_them(self) -> None:
        for key, expires_at_ms in self.run(read_expiries(self.connection, ORG)).items():
            _, kind, *rest = key.split(":", 3)
            if kind == "b":
                assert expires_at_ms == counts_until_ms(parse_span(rest[1])), key
            elif kind == "r":
                bucket_ms, count = map(int, rest[1].split(":"))
                ring = self.state.rings[rest[0], bucket_ms, count]
                assert (expires_at_ms is None) == (ring.held_nano != 0), key
            elif kind != "h":
                assert expires_at_ms is None, key


@pytest.mark.timeout(600)  # a failing run is shrunk for minutes; a passing one takes seconds
def test_core_and_lua_end_in_equal_states(valkey_url: str) -> None:
    class Machine(TwinMachine):
        def __init__(self) -> None:
            super().__init__(valkey_url)

    run_state_machine_as_test(
        Machine, settings=settings(deadline=None, stateful_step_count=40, suppress_health_check=list(HealthCheck))
    )
