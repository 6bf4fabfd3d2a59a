"""Holds of calls that were under way when a budget was made: both hot states hold them against it, and let them go."""

from dataclasses import replace
from typing import Any

import pytest

from services.core.budgets import Charge
from services.core.hotstate import (
    CORRECTION_MS,
    SESSION_IDLE_MS,
    TOLD_AGAIN_MS,
    TOMBSTONE_MS,
    WINDOW_GRACE_MS,
    Admitted,
    Applied,
    Backfill,
    FoldStep,
    HeldBackfill,
    Hold,
    OpenHold,
    Refused,
)
from services.core.ports import TopicPartition
from services.core.windows import CalendarSpan, LifetimeSpan, RollingSpan, SessionSpan
from tests.support.hot_rig import CHARGE, EMPTY, NOW_MS, ORG, PLACE, SPAN, Rig, proposal, request_of, settle

HOLDS = TopicPartition("spend.reservations.v1", 0)
RING = RollingSpan(1_000, 60, NOW_MS // 1_000)
NEW = Charge("bud_new", "org:acme", "l")
NEWER = Charge("bud_newer", "org:acme", RING.key())
OWN = proposal(100)
PROPOSED_NEW, PROPOSED_NEWER = proposal(100, "bud_new", LifetimeSpan()), proposal(100, "bud_newer", RING)
FIXED = replace(OWN, is_fixed=True)


async def admit(rig: Rig, amount_nano: int = 40, name: str = "txn_1") -> None:
    assert isinstance(await rig.hot.reserve(request_of(amount_nano, OWN, name=name)), Admitted)


async def backfill(rig: Rig, *charges: Charge, name: str = "txn_1", changed_at_ms: int = NOW_MS) -> None:
    filled = {each.budget_id: 2 for each in charges}
    holds = {name: HeldBackfill(changed_at_ms, charges)}
    assert await rig.hot.backfill(ORG, Backfill({}, {}, filled, "token", holds=holds))


async def resize(rig: Rig, amount_nano: int, *proposals: Any) -> Any:
    return await rig.hot.resize(request_of(amount_nano, *proposals))


def step(kind: Any, offset: int, amount_nano: int, *implied: Charge, name: str = "txn_1", time_ms: int = NOW_MS) -> Any:
    told = (name, amount_nano, (CHARGE,), "{}", NOW_MS + 5_000, time_ms, implied)
    return FoldStep(kind, offset, f"expiry:{name}" if kind == "expire" else "gw_1", offset + 1, *told)


def one_shot(told: FoldStep) -> FoldStep:
    """The step as the reservation API's producer tells it, which has no other."""
    return replace(told, producer=f"expiry:end:{told.reservation_id}", sequence=1)


async def held(rig: Rig) -> list[int]:
    """By the call's own budget, and by the two that are made later."""
    standings = await rig.hot.peek(ORG, [OWN, PROPOSED_NEW, PROPOSED_NEWER])
    assert standings is not None
    return [each.held_nano for each in standings]


async def spent(rig: Rig) -> list[int]:
    standings = await rig.hot.peek(ORG, [OWN, PROPOSED_NEW, PROPOSED_NEWER])
    assert standings is not None
    return [each.spent_nano for each in standings]


async def test_a_backfill_holds_what_is_under_way_and_leaves_room_for_no_more(rig: Rig) -> None:
    await admit(rig)
    await backfill(rig, NEW, NEWER)
    assert await held(rig) == [40, 40, 40]
    assert (await rig.hot.open_holds(ORG))["txn_1"].implied == (NEW, NEWER)
    refused = await rig.hot.reserve(request_of(61, PROPOSED_NEW, name="txn_2"))
    assert isinstance(refused, Refused)
    assert refused.exhausted[0].held_nano == 40
    assert isinstance(await rig.hot.reserve(request_of(60, PROPOSED_NEW, name="txn_3")), Admitted)


async def test_another_backfill_leaves_what_is_held_by_others_and_moves_its_own(rig: Rig) -> None:
    await admit(rig)
    await backfill(rig, NEW, NEWER)
    await backfill(rig, replace(NEW, window="s:x"))
    assert await held(rig) == [40, 0, 40]
    assert (await rig.state()).holds["txn_1"].implied == (NEWER, replace(NEW, window="s:x"))
    holds = {"txn_1": HeldBackfill(NOW_MS, ())}
    assert await rig.hot.backfill(ORG, Backfill({}, {}, {"bud_newer": 3, "bud_new": 3}, "token", holds=holds))
    assert await held(rig) == [40, 0, 0]
    assert (await rig.state()).holds["txn_1"].implied == ()


async def test_what_is_prepared_is_held_and_not_marked_and_comes_too_late_when_it_is_done(rig: Rig) -> None:
    await admit(rig)
    holds = {"txn_1": HeldBackfill(NOW_MS, (NEW,))}
    prepared = Backfill({}, {}, {"bud_other": 1, "bud_new": 2}, "", holds=holds)
    assert await rig.hot.backfill(ORG, prepared)
    assert await held(rig) == [40, 40, 0]
    marks = await rig.hot.marks(ORG, [])
    assert (marks.token, marks.filled) == ("", {})
    await backfill(rig, replace(NEW, window="s:x"))
    for version, is_late in ((1, True), (2, True), (3, False)):
        assert await rig.hot.backfill(ORG, replace(prepared, filled={"bud_new": version})) is not is_late
        assert await held(rig) == [40, 0 if is_late else 40, 0]
    assert (await rig.hot.marks(ORG, [])).token == "token"


async def test_a_budget_of_each_value_goes_by_its_own_id(rig: Rig) -> None:
    await admit(rig)
    each = Charge("bud_user@ada", "user:*", "l")
    holds = {"txn_1": HeldBackfill(NOW_MS, (each, NEW))}
    assert await rig.hot.backfill(ORG, Backfill({}, {}, {"bud_user": 2, "bud_new": 2}, "token", holds=holds))
    holds = {"txn_1": HeldBackfill(NOW_MS, (replace(each, window="s:x"),))}
    assert await rig.hot.backfill(ORG, Backfill({}, {}, {"bud_user": 3}, "token", holds=holds))
    assert (await rig.state()).holds["txn_1"].implied == (NEW, replace(each, window="s:x"))


async def test_a_hold_that_was_changed_or_has_ended_meanwhile_is_left_alone(rig: Rig) -> None:
    await admit(rig)
    await rig.turn_to(NOW_MS + 10)
    assert isinstance(await resize(rig, 50, FIXED), Admitted)
    await backfill(rig, NEW)
    await backfill(rig, NEW, name="txn_unknown")
    assert await held(rig) == [50, 0, 0]
    await rig.hot.apply(ORG, PLACE, [settle(0, 5, "txn_1")], 1)
    await backfill(rig, NEW, changed_at_ms=NOW_MS + 10)
    assert await held(rig) == [0, 0, 0]


@pytest.mark.parametrize("kind", ["settle", "expire"])
async def test_an_end_lets_go_of_it_and_spends_what_it_says(rig: Rig, kind: str) -> None:
    await admit(rig)
    await backfill(rig, NEW, NEWER)
    await rig.hot.apply(ORG, PLACE, [step(kind, 0, 25, NEW)], 1)
    assert await held(rig) == [0, 0, 0]
    assert await spent(rig) == [25, 25, 0]
    assert (await rig.state()).holds["txn_1"].implied == ()


async def test_a_late_settlement_corrects_what_an_expiry_booked_once(rig: Rig) -> None:
    await admit(rig)
    await backfill(rig, NEW)
    await rig.hot.apply(ORG, PLACE, [step("expire", 0, 40, NEW), step("settle", 1, 25, NEW)], 2)
    await rig.hot.apply(ORG, PLACE, [step("settle", 2, 25, NEW), step("expire", 3, 40, NEW)], 4)
    assert await spent(rig) == [25, 25, 0]
    assert await held(rig) == [0, 0, 0]


async def test_a_release_lets_go_of_it(rig: Rig) -> None:
    await admit(rig)
    await backfill(rig, NEW, NEWER)
    assert await rig.hot.release(ORG, "txn_1")
    assert await held(rig) == [0, 0, 0]
    assert await rig.hot.open_holds(ORG) == {}


async def test_a_reservation_that_comes_late_brings_it(rig: Rig) -> None:
    """Its gateway did not know of the budget yet."""
    await admit(rig)
    await rig.hot.apply(ORG, HOLDS, [step("restore", 0, 40, NEW), step("restore", 1, 30, NEW, name="txn_2")], 2)
    assert await held(rig) == [70, 70, 0]
    await rig.hot.apply(ORG, HOLDS, [step("restore", 2, 40, NEW, NEWER)], 3)
    assert await held(rig) == [70, 70, 40]
    await rig.hot.apply(ORG, HOLDS, [step("restore", 3, 40)], 4)
    assert await held(rig) == [70, 70, 40]


async def test_a_reservation_does_not_speak_for_a_hold_that_was_changed(rig: Rig) -> None:
    await admit(rig)
    await rig.turn_to(NOW_MS + 10)
    assert isinstance(await resize(rig, 50, FIXED), Admitted)
    await rig.hot.apply(ORG, HOLDS, [step("restore", 0, 40, NEW)], 1)
    assert await held(rig) == [50, 0, 0]
    await rig.hot.apply(ORG, HOLDS, [step("resize", 1, 50, NEWER, time_ms=NOW_MS + 10)], 2)
    assert await held(rig) == [50, 0, 50]
    await rig.hot.apply(ORG, HOLDS, [step("resize", 2, 60, time_ms=NOW_MS + 20)], 3)
    assert await held(rig) == [60, 0, 0]
    await rig.hot.apply(ORG, HOLDS, [step("resize", 3, 40, NEW, time_ms=NOW_MS + 10)], 4)
    assert await held(rig) == [60, 0, 0], "a change that is past"


async def test_an_ended_hold_implies_nothing_more(rig: Rig) -> None:
    await rig.hot.apply(ORG, PLACE, [step("settle", 0, 25, NEW)], 1)
    await rig.hot.apply(ORG, HOLDS, [step("restore", 0, 40, NEW), step("resize", 1, 40, NEW)], 2)
    assert await held(rig) == [0, 0, 0]
    assert await spent(rig) == [25, 25, 0]


async def test_a_hold_that_is_changed_takes_it_along_with_or_without_room(rig: Rig) -> None:
    await admit(rig)
    await backfill(rig, NEW, NEWER)
    answer = await resize(rig, 99, FIXED)
    assert isinstance(answer, Admitted)
    assert answer.charges == (CHARGE,)
    assert await held(rig) == [99, 99, 99]
    await rig.turn_to(NOW_MS + 10)
    assert isinstance(await rig.hot.reserve(request_of(1, PROPOSED_NEW, name="txn_2")), Admitted)
    assert isinstance(await resize(rig, 100, FIXED), Admitted), "the new budgets' limits are not known"
    assert await held(rig) == [100, 101, 100]
    assert isinstance(await resize(rig, 101, FIXED), Refused)
    assert await held(rig) == [100, 101, 100]


async def test_a_budget_that_is_named_takes_its_place(rig: Rig) -> None:
    await admit(rig, 100)
    await backfill(rig, NEW, NEWER)
    assert isinstance(await resize(rig, 100, FIXED, PROPOSED_NEW), Admitted), "what it holds already is in its way"
    assert await held(rig) == [100, 100, 100]
    assert (await rig.state()).holds["txn_1"].implied == (NEWER,)
    refused = await resize(rig, 101, FIXED, PROPOSED_NEW, PROPOSED_NEWER)
    assert isinstance(refused, Refused)
    assert [each.held_nano for each in refused.exhausted] == [0, 0, 0], "without what it holds itself"
    assert await held(rig) == [100, 100, 100]
    assert isinstance(await resize(rig, 7, FIXED, PROPOSED_NEW, PROPOSED_NEWER), Admitted)
    assert await held(rig) == [100, 100, 100], "what it had stays held until that is folded"
    assert (await rig.state()).holds["txn_1"].implied == ()


async def test_a_charge_in_the_window_that_the_budget_had_leaves_it_where_it_is(rig: Rig) -> None:
    """A budget got another window: the call is charged to the old one, and held in the new one."""
    await admit(rig)
    moved = Charge(CHARGE.budget_id, CHARGE.scope, "l")
    await backfill(rig, moved)
    assert isinstance(await resize(rig, 60, FIXED), Admitted)
    assert (await rig.state()).windows[CHARGE.budget_id, "l"].held_nano == 60
    assert isinstance(await resize(rig, 50, proposal(100, CHARGE.budget_id, LifetimeSpan())), Admitted)
    state = await rig.state()
    assert state.windows[CHARGE.budget_id, "l"].held_nano == 60, "what it had stays held until that is folded"
    assert state.windows[CHARGE.budget_id, CHARGE.window].held_nano == 0
    assert state.holds["txn_1"].implied == ()


async def test_a_rebuilt_hold_has_it(rig: Rig) -> None:
    hold = Hold(40, (CHARGE,), "{}", NOW_MS + 9, admitted_at_ms=NOW_MS - 9, resized_at_ms=NOW_MS - 3)
    hold.implied = (NEW, NEWER)
    await rig.go_cold()
    assert await rig.hot.load(ORG, replace(EMPTY, holds={"txn_1": hold}), "epoch-2")
    assert await held(rig) == [40, 40, 40]
    opened = OpenHold((CHARGE,), "{}", NOW_MS - 9, NOW_MS - 3, (NEW, NEWER))
    assert await rig.hot.open_holds(ORG) == {"txn_1": opened}
    assert await rig.hot.open_holds(ORG, ["txn_2", "txn_1"]) == {"txn_1": opened}
    await rig.hot.apply(ORG, PLACE, [step("settle", 0, 25, NEW, NEWER)], 1)
    assert await held(rig) == [0, 0, 0]
    assert await rig.hot.open_holds(ORG, ["txn_1"]) == {}


async def test_a_session_stays_for_as_long_as_anything_is_held_in_it(rig: Rig) -> None:
    await admit(rig)
    session = Charge("bud_new", "org:acme", SessionSpan("x").key())
    await backfill(rig, session)
    assert (await rig.state()).windows["bud_new", "s:x"].forget_at_ms is None
    await rig.hot.apply(ORG, PLACE, [step("settle", 0, 25)], 1)
    assert (await rig.state()).windows["bud_new", "s:x"].forget_at_ms == NOW_MS + SESSION_IDLE_MS


async def test_a_fold_of_steps_without_any_goes_as_ever(rig: Rig) -> None:
    assert await rig.hot.apply(ORG, HOLDS, [step("restore", 0, 40)], 1) == Applied(1, 0)
    assert (await rig.hot.open_holds(ORG))["txn_1"].implied == ()


@pytest.mark.parametrize("implied", [NEW, NEWER])
async def test_an_ended_hold_is_remembered_for_as_long_as_the_longest_of_all_its_windows_counts(
    rig: Rig, implied: Charge
) -> None:
    await admit(rig)
    await backfill(rig, implied)
    await rig.hot.apply(ORG, PLACE, [one_shot(step("settle", 0, 25, implied))], 1)
    assert SPAN.end_ms + WINDOW_GRACE_MS < NOW_MS + TOLD_AGAIN_MS < NOW_MS + SESSION_IDLE_MS
    kept_ms = SESSION_IDLE_MS if implied is NEW else TOLD_AGAIN_MS
    assert (await rig.state()).holds["txn_1"].forget_at_ms == NOW_MS + kept_ms


async def test_a_late_settlement_takes_its_expiry_back_from_a_budget_that_was_made_since(rig: Rig) -> None:
    await admit(rig)
    await rig.hot.apply(ORG, PLACE, [step("expire", 0, 40)], 1)
    assert (await rig.state()).holds["txn_1"].forget_at_ms == NOW_MS + CORRECTION_MS
    assert await rig.hot.backfill(ORG, Backfill({}, {("bud_new", "l"): 40}, {"bud_new": 2}, "token"))
    await rig.turn_to(SPAN.end_ms + WINDOW_GRACE_MS)
    await rig.hot.apply(ORG, PLACE, [step("settle", 1, 25, NEW)], 2)
    assert (await rig.state()).windows["bud_new", "l"].spent_nano == 25


@pytest.mark.parametrize(("is_one_shot", "kept_ms"), [(True, TOLD_AGAIN_MS), (False, TOMBSTONE_MS)])
async def test_an_ending_that_may_be_told_again_is_remembered_for_budgets_to_come(
    rig: Rig, is_one_shot: bool, kept_ms: int
) -> None:
    told = replace(step("settle", 0, 25), charges=())
    await rig.hot.apply(ORG, PLACE, [one_shot(told) if is_one_shot else told], 1)
    assert (await rig.state()).holds["txn_1"].forget_at_ms == NOW_MS + kept_ms


async def test_a_late_settlement_takes_an_expiry_back_once_where_only_that_had_named_a_budget(rig: Rig) -> None:
    grown_later = replace(NEWER, window=RollingSpan(1_000, 60, NOW_MS // 1_000 + 7).key())
    expired = replace(step("expire", 0, 40), charges=(CHARGE, NEW, grown_later))
    await rig.hot.apply(ORG, PLACE, [expired, step("settle", 1, 25, NEW, NEWER)], 2)
    standings = await rig.hot.peek(ORG, [OWN, PROPOSED_NEW, PROPOSED_NEWER])
    assert standings is not None
    assert [each.spent_nano for each in standings] == [25, 25, 25]


async def test_a_late_settlement_takes_nothing_back_where_its_expiry_named_a_later_window(rig: Rig) -> None:
    day = replace(NEW, window=SPAN.key())
    next_day = replace(NEW, window=CalendarSpan(SPAN.end_ms, SPAN.end_ms + 86_400_000).key())
    expired = replace(step("expire", 0, 40), charges=(CHARGE, next_day))
    late = replace(step("settle", 1, 25), implied=(day,))
    await rig.hot.apply(ORG, PLACE, [expired, late], 2)
    windows = (await rig.state()).windows
    assert windows["bud_new", day.window].spent_nano == 25
    assert windows["bud_new", next_day.window].spent_nano == 0


async def test_a_late_settlement_takes_an_expiry_back_in_the_window_that_its_budget_has_by_now(rig: Rig) -> None:
    """Of which its span lies in, or around, the one that the expiry named."""
    longer = replace(NEW, window=CalendarSpan(SPAN.start_ms, SPAN.end_ms + 86_400_000).key())
    named = replace(NEW, window=SPAN.key())
    expired = replace(step("expire", 0, 40, longer), charges=(CHARGE, named))
    late = replace(step("settle", 1, 25, longer), charges=(CHARGE, named))
    await rig.hot.apply(ORG, PLACE, [expired, late], 2)
    windows = (await rig.state()).windows
    assert [windows["bud_new", each.window].spent_nano for each in (named, longer)] == [25, 25]
