"""Backfilling and thresholds in the hot state: both implementations, asked the same, end in the same state."""

import random
from copy import deepcopy
from dataclasses import replace
from typing import Literal

from services.adapters.memory import MemoryHotState
from services.adapters.valkey import ValkeyHotState
from services.adapters.valkey_connection import ValkeyConnection
from services.core.budgets import Charge
from services.core.hotstate import Applied, Backfill, Cold, FoldStep, Outdated
from services.core.windows import CalendarSpan, LifetimeSpan, RollingSpan, SessionSpan
from tests.support.hot_rig import CHARGE, EMPTY, NOW_MS, ORG, PLACE, Rig, settle
from tests.support.hot_state import read_all, turn_clock, with_turned_clock

FENCE = (PLACE.topic, PLACE.partition)
RING = RollingSpan(1_000, 60, NOW_MS // 1_000)
SPANS = (CHARGE.window, RING.key(), SessionSpan("x").key(), LifetimeSpan().key(), CalendarSpan(0, 1).key())


async def test_a_backfill_sets_what_is_spent_and_marks_the_budget(rig: Rig) -> None:
    charges = tuple(Charge("bud_1", "s", span) for span in SPANS[:4])
    await rig.hot.apply(ORG, PLACE, [settle(0, 5, "txn_1", charges)], 1)
    spent = {("bud_1", span): 2**60 + number for number, span in enumerate(SPANS)}
    fill = Backfill({FENCE: 1}, spent, {"bud_1": 7, "bud_2": 7}, "token-1")
    assert await rig.hot.backfill(ORG, fill)
    state = deepcopy(await rig.state())
    assert [state.windows["bud_1", span].spent_nano for span in (SPANS[0], *SPANS[2:4])] == [
        2**60,
        2**60 + 2,
        2**60 + 3,
    ]
    ring = state.rings["bud_1", 1_000, 60]
    assert (ring.buckets, ring.total_nano) == ({RING.bucket: 2**60 + 1}, 2**60 + 1)
    assert len(state.windows) == 3, "a window that is forgotten is not made again"
    marks = await rig.hot.marks(ORG, [PLACE])
    assert (marks.token, marks.filled, marks.fences) == ("token-1", {"bud_1": 7, "bud_2": 7}, {FENCE: 1})
    assert await rig.hot.filled(ORG, ["bud_2", "bud_none", "bud_1"]) == {"bud_1": 7, "bud_2": 7}
    assert await rig.hot.backfill(ORG, replace(fill, token="token-2", filled={"bud_1": 8}, gone=("bud_2", "bud_3")))
    assert await rig.hot.filled(ORG, ["bud_1", "bud_2"]) == {"bud_1": 8}
    assert await rig.hot.filled(ORG, []) == {}
    again = await rig.state()
    assert (again.windows, again.rings) == (state.windows, state.rings), "the same again changes no figure"


async def test_the_marks_of_very_many_budgets_are_found(rig: Rig) -> None:
    marks = {f"bud_{number}": number for number in range(1, 2_600, 2)}
    assert await rig.hot.backfill(ORG, Backfill({FENCE: 0}, {}, marks, "token-1"))
    assert await rig.hot.filled(ORG, [f"bud_{number}" for number in range(2_600)]) == marks


async def test_a_backfill_is_refused_when_the_org_is_cold_or_has_been_folded_further(rig: Rig) -> None:
    fill = Backfill({FENCE: 0}, {("bud_1", "l"): 5}, {"bud_1": 7}, "token-1")
    await rig.hot.apply(ORG, PLACE, [settle(0, 5)], 1)
    before = deepcopy(await rig.state())
    assert not await rig.hot.backfill(ORG, fill)
    await rig.go_cold()
    assert not await rig.hot.backfill(ORG, replace(fill, fences={FENCE: 1}))
    assert await rig.hot.filled(ORG, ["bud_1"]) is await rig.hot.filled(ORG, []) is None
    assert replace(await rig.state(), epoch="epoch-1", loaded_at_ms=before.loaded_at_ms) == before


async def test_a_backfill_that_was_decided_by_other_marks_is_refused(rig: Rig) -> None:
    first = Backfill({FENCE: 0}, {}, {"bud_1": 7}, "token-1", known="")
    assert await rig.hot.backfill(ORG, first), "by no marks, while there are none"
    before = deepcopy(await rig.state())
    later = Backfill({FENCE: 0}, {("bud_2", "l"): 5}, {"bud_2": 8}, "token-2", ("bud_1",))
    for known in ("", "token-0"):
        assert not await rig.hot.backfill(ORG, replace(later, known=known))
        assert not await rig.hot.backfill(ORG, replace(later, known=known, token="", fences={}, gone=()))
    assert await rig.state() == before
    assert await rig.hot.backfill(ORG, replace(later, known="token-1"))
    marks = await rig.hot.marks(ORG, ())
    assert (marks.token, marks.filled) == ("token-2", {"bud_2": 8})


async def test_steps_are_folded_under_the_marks_they_were_decided_by_alone(rig: Rig) -> None:
    assert await rig.hot.apply(ORG, PLACE, [settle(0, 5)], 1, "") == Applied(1, 0)
    await rig.hot.backfill(ORG, Backfill({FENCE: 1}, {}, {"bud_1": 7}, "token-1"))
    before = deepcopy(await rig.state())
    assert await rig.hot.apply(ORG, PLACE, [settle(1, 5, "txn_2")], 2, "") == Outdated()
    assert await rig.hot.apply(ORG, PLACE, [settle(1, 5, "txn_2")], 2, "token-0") == Outdated()
    assert await rig.state() == before
    assert await rig.hot.apply(ORG, PLACE, [settle(1, 5, "txn_2")], 2, "token-1") == Applied(1, 0)
    assert await rig.hot.apply(ORG, PLACE, [settle(2, 5, "txn_3")], 3) == Applied(1, 0)
    await rig.go_cold()
    assert await rig.hot.apply(ORG, PLACE, [], 4, "token-0") == Cold()


async def test_marks_come_back_with_a_rebuild_under_another_token(rig: Rig) -> None:
    await rig.hot.backfill(ORG, Backfill({}, {}, {"bud_1": 7}, "token-1"))
    await rig.hot.set_crossed(ORG, ("bud_1", "l"), [60], None)
    await rig.go_cold()
    assert await rig.hot.load(ORG, replace(EMPTY, filled={"bud_2": 9}), "epoch-2")
    marks = await rig.hot.marks(ORG, ())
    assert (marks.token, marks.filled) == ("epoch-2", {"bud_2": 9})
    assert await rig.hot.crossed(ORG, [("bud_1", "l")]) == [frozenset()]
    await rig.go_cold()
    assert await rig.hot.load(ORG, EMPTY, "epoch-3")
    assert (await rig.hot.marks(ORG, ())).token == ""


async def test_what_is_told_of_a_slot_is_kept(rig: Rig) -> None:
    slots = [("bud_1", "l"), ("bud_1", "r:1000:60"), ("bud_2@a", "s:x")]
    assert await rig.hot.crossed(ORG, slots) == [frozenset()] * 3
    await rig.hot.set_crossed(ORG, slots[0], [60, 85], None)
    await rig.hot.set_crossed(ORG, slots[1], [50], NOW_MS + 5_000)
    assert await rig.hot.crossed(ORG, slots) == [{60, 85}, {50}, frozenset()]
    await rig.hot.set_crossed(ORG, slots[1], [50, 60], 1)
    assert await rig.hot.crossed(ORG, slots) == [{60, 85}, frozenset(), frozenset()], "its time is over"
    await rig.hot.set_crossed(ORG, slots[1], [], None)
    assert await rig.hot.crossed(ORG, slots) == [{60, 85}, frozenset(), frozenset()]
    if rig.connection is not None:
        _, expiries = await read_all(rig.connection, ORG)
        assert expiries[f"{{{ORG}}}:t:bud_1:l"] is None
        await rig.hot.set_crossed(ORG, slots[1], [50], NOW_MS + 5_000)
        _, expiries = await read_all(rig.connection, ORG)
        assert expiries[f"{{{ORG}}}:t:bud_1:r:1000:60"] == NOW_MS + 5_000


async def test_both_spend_implied_charges_alike(valkey_url: str) -> None:
    """Endings in any order, some twice, with what they imply; then a backfill; then more of them."""
    for seed in range(6):
        chance = random.Random(seed)
        connection = ValkeyConnection(valkey_url)
        await connection.execute("FLUSHALL")
        lua = with_turned_clock(ValkeyHotState(connection))
        await turn_clock(connection, NOW_MS)
        twin = MemoryHotState(lambda: NOW_MS)
        both = (lua, twin)
        for hot in both:
            await hot.load(ORG, EMPTY, "epoch-1")
        for offset in range(40):
            name = f"txn_{chance.randrange(12)}"
            implied = tuple(Charge("bud_9", "s", span) for span in SPANS if chance.random() < 0.4)
            kind: Literal["settle", "expire"] = chance.choice(("settle", "expire"))
            producer = f"expiry:{name}" if kind == "expire" else "gw_1"
            step = FoldStep(
                kind,
                offset,
                producer,
                1 if kind == "expire" else offset + 1,
                name,
                chance.randrange(1_000),
                charges=(CHARGE,),
                implied=implied,
            )
            for hot in both:
                await hot.apply(ORG, PLACE, [step], offset + 1, "" if offset < 30 else "token")
            if offset == 29:
                fill = Backfill({FENCE: 30}, {("bud_9", span): 77 for span in SPANS}, {"bud_9": 3}, "token")
                assert [await hot.backfill(ORG, fill) for hot in both] == [True, True]
        state, _ = await read_all(connection, ORG)
        expected = twin.store.state(ORG)
        assert (state.windows, state.rings) == (expected.windows, expected.rings)
        assert state.holds == expected.holds
        assert (state.filled, state.marks, state.fences) == (expected.filled, expected.marks, expected.fences)
        await lua.close()
