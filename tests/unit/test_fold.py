"""The fold: every event counts once, in whatever order and however often it comes."""

import copy
import itertools
from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.budgets import Charge
from services.core.events import CallFacts, Denial, Expiry, Reservation, Settlement, Stamped
from services.core.fold import apply, backfill, forget, image_of, load, step_of
from services.core.hotstate import (
    CLOCK_MARGIN_MS,
    CORRECTION_MS,
    MAX_FIGURE,
    SESSION_IDLE_MS,
    TOLD_AGAIN_MS,
    TOMBSTONE_MS,
    WINDOW_GRACE_MS,
    Applied,
    Backfill,
    Cold,
    Figures,
    FoldStep,
    Hold,
    OrgImage,
    OrgState,
    Ring,
    plus,
)
from services.core.identity import Identity
from services.core.reserve import claim_due, release

TOPIC = "spend.settlements.v1"
NOW_MS = 100_000_000
DAY = Charge("bud_day", "org:acme", "c:86400000:172800000")
RING = Charge("bud_ring", "team:ml", "r:1000:60:99990")
DAY_SLOT = ("bud_day", DAY.window)
RING_SLOT = ("bud_ring", 1_000, 60)
CHARGES = (DAY, RING)
FACTS = CallFacts(Identity("acme", "key_1"), "openai", "chat", "m", "m", "exact", "v1", 1)

SESSION = Charge("bud_session", "session:s1", "s:s1")
EVER = Charge("bud_ever", "org:acme", "l")

Kind = Literal["settle", "expire", "restore", "resize"]


def step(kind: Kind, offset: int, amount_nano: int, name: str = "txn_1", producer: str = "gw_1", sequence: int = 0,
         charges: tuple[Charge, ...] = CHARGES) -> FoldStep:  # fmt: skip
    if kind == "expire":
        producer, sequence = f"expiry:{name}", 1
    return FoldStep(
        kind, offset, producer, sequence or offset + 1, name, amount_nano, charges, "{}", NOW_MS + 5_000, NOW_MS
    )


def live() -> OrgState:
    return OrgState(epoch="e1")


def fold(state: OrgState, *steps: FoldStep, now_ms: int = NOW_MS, partition: int = 0) -> Applied | Cold:
    return apply(state, TOPIC, partition, steps, max((each.offset for each in steps), default=-1) + 1, now_ms)


def spent(state: OrgState) -> tuple[int, int]:
    """What both budgets have spent."""
    day = state.windows.get(DAY_SLOT, Figures()).spent_nano
    return day, state.rings[RING_SLOT].total_nano if RING_SLOT in state.rings else 0


def held(state: OrgState) -> tuple[int, int]:
    """What both budgets hold."""
    day = state.windows.get(DAY_SLOT, Figures()).held_nano
    return day, state.rings[RING_SLOT].held_nano if RING_SLOT in state.rings else 0


def test_a_settlement_takes_the_hold_out_and_the_cost_in() -> None:
    state = live()
    assert fold(state, step("restore", 0, 50), step("settle", 1, 30)) == Applied(2, 0)
    assert (spent(state), held(state)) == ((30, 30), (0, 0))
    assert state.rings[RING_SLOT].buckets == {99990: 30}
    assert (state.holds["txn_1"].phase, state.due) == ("settled", {})
    assert state.fences == {(TOPIC, 0): 2}
    assert state.producers == {(TOPIC, 0, "gw_1"): 2}


def test_a_cold_org_folds_nothing() -> None:
    state = OrgState()
    assert fold(state, step("settle", 0, 30)) == Cold()
    assert state == OrgState()


def test_a_replayed_batch_changes_nothing() -> None:
    state = live()
    batch = (step("restore", 0, 50), step("settle", 1, 30), step("settle", 2, 7, "txn_2"))
    fold(state, *batch)
    before = copy.deepcopy(state)
    assert fold(state, *batch) == Applied(0, 3)
    assert fold(state, *batch[:1]) == Applied(0, 1)
    assert state == before


def test_what_is_published_twice_counts_once() -> None:
    state = live()
    fold(state, step("settle", 0, 30, sequence=4))
    before = spent(state)
    assert fold(state, step("settle", 1, 30, sequence=4), step("settle", 2, 9, "txn_0", sequence=3)) == Applied(0, 2)
    assert spent(state) == before
    assert fold(state, step("settle", 3, 9, "txn_2", sequence=5)) == Applied(1, 0)


def test_a_producers_order_is_per_partition() -> None:
    state = live()
    fold(state, step("settle", 0, 30, sequence=4))
    assert fold(state, step("settle", 0, 9, "txn_2", sequence=1), partition=1) == Applied(1, 0)


def test_an_expiry_books_and_a_late_settlement_corrects() -> None:
    state = live()
    fold(state, step("restore", 0, 50), step("expire", 1, 50))
    assert (spent(state), held(state)) == ((50, 50), (0, 0))
    fold(state, step("settle", 2, 30))
    assert (spent(state), held(state)) == ((30, 30), (0, 0))


def test_an_expiry_that_repeats_or_comes_after_its_settlement_does_nothing() -> None:
    state = live()
    fold(state, step("restore", 0, 50), step("expire", 1, 50), step("expire", 2, 50))
    assert spent(state) == (50, 50)
    fold(state, step("settle", 3, 30), step("expire", 4, 50))
    assert spent(state) == (30, 30)


def test_no_sequence_is_kept_of_one_shot_producers() -> None:
    state = live()
    fold(state, step("expire", 0, 50))
    assert state.producers == {}
    cold = OrgState()
    load(cold, OrgImage({}, {}, {}, {(TOPIC, 0, "expiry:txn_1"): 1, (TOPIC, 0, "gw_1"): 3}), "e2", NOW_MS)
    assert cold.producers == {(TOPIC, 0, "gw_1"): 3}


def test_a_reservation_that_comes_after_its_ending_holds_nothing() -> None:
    state = live()
    fold(state, step("settle", 0, 30), step("restore", 1, 50))
    assert (spent(state), held(state), state.due) == ((30, 30), (0, 0), {})


def test_a_hold_is_restored_once() -> None:
    state = live()
    fold(state, step("restore", 0, 50), step("restore", 1, 50))
    assert held(state) == (50, 50)
    assert state.due == {"txn_1": NOW_MS + 5_000}
    assert state.holds["txn_1"] == Hold(50, CHARGES, "{}", NOW_MS + 5_000, admitted_at_ms=NOW_MS)


def test_a_reservation_that_comes_when_its_ended_hold_is_forgotten_holds_nothing() -> None:
    state = OrgState()
    load(state, OrgImage({}, {}, {}, {}), "e1", NOW_MS - CLOCK_MARGIN_MS)
    fold(state, step("settle", 0, 30))
    late_ms = NOW_MS + TOMBSTONE_MS
    forget(state, late_ms)
    assert state.holds == {}
    assert fold(state, step("restore", 1, 50), now_ms=late_ms) == Applied(1, 0)
    assert (spent(state)[0], held(state), state.holds, state.due) == (30, (0, 0), {}, {})


@pytest.mark.parametrize(
    ("loaded_at_ms", "late_ms"),
    [
        (NOW_MS - CLOCK_MARGIN_MS + 1, 2 * TOMBSTONE_MS),
        (NOW_MS - CLOCK_MARGIN_MS, TOMBSTONE_MS - CLOCK_MARGIN_MS - 1),
    ],
    ids=["admitted before the state was loaded", "too young to be forgotten: the server lost it"],
)
def test_a_hold_that_can_not_have_been_forgotten_is_restored(loaded_at_ms: int, late_ms: int) -> None:
    state = OrgState()
    load(state, OrgImage({}, {}, {}, {}), "e1", loaded_at_ms)
    fold(state, step("restore", 0, 50), now_ms=NOW_MS + late_ms)
    assert held(state) == (50, 50)


@given(
    st.permutations(
        [step("restore", 0, 50), step("settle", 0, 30), step("expire", 0, 50), step("restore", 0, 8, "txn_2"),
         step("expire", 0, 8, "txn_2"), step("restore", 0, 5, "txn_3"), step("settle", 0, 70, "txn_4")]
    )
)  # fmt: skip
def test_any_order_ends_in_the_same_figures(order: list[FoldStep]) -> None:
    state = live()
    for partition, each in enumerate(order):  # a partition of its own for each: no fence is in its way
        fold(state, each, partition=partition)
    assert spent(state) == (30 + 8 + 70,) * 2
    assert held(state) == (5, 5)


def figures(state: OrgState) -> dict[tuple[str, ...], tuple[int, int]]:
    """(spent, held) of every budget that has any."""
    found: dict[tuple[str, ...], tuple[int, int]] = {
        slot: (each.spent_nano, each.held_nano) for slot, each in state.windows.items()
    }
    found |= {(slot[0],): (ring.total_nano, ring.held_nano) for slot, ring in state.rings.items()}
    return {slot: each for slot, each in found.items() if each != (0, 0)}


@given(
    order=st.permutations(
        [step("restore", 0, 50, charges=(DAY, SESSION)), step("resize", 0, 70, charges=(RING, SESSION, EVER)),
         step("expire", 0, 50, charges=(DAY, SESSION)), step("settle", 0, 30, charges=(RING, SESSION, EVER)),
         step("restore", 0, 9, "txn_2", charges=(DAY,)), step("resize", 0, 8, "txn_2", charges=(EVER,)),
         step("expire", 0, 8, "txn_2", charges=(EVER,))]
    ),
    claims=st.booleans(),
)  # fmt: skip
def test_charges_that_change_end_in_the_same_figures_in_any_order(order: list[FoldStep], claims: bool) -> None:
    """P5: the settlement says where a call is spent, wherever it was held and booked before; nothing stays held."""
    state = live()
    for partition, each in enumerate(order):
        fold(state, each, partition=partition)
        if claims:
            claim_due(state, NOW_MS + 5_000, 1)
    assert figures(state) == {("bud_ring",): (30, 0), ("bud_session", "s:s1"): (30, 0), ("bud_ever", "l"): (38, 0)}
    assert (state.due, state.windows["bud_session", "s:s1"].forget_at_ms) == ({}, NOW_MS + SESSION_IDLE_MS)


def test_an_event_of_an_earlier_change_changes_nothing() -> None:
    state = live()
    later = replace(step("resize", 1, 70, charges=(EVER,)), time_ms=NOW_MS + 2)
    earlier = replace(step("resize", 2, 60, charges=(RING,)), time_ms=NOW_MS + 1)
    fold(state, step("restore", 0, 50), later, earlier)
    assert figures(state) == {("bud_ever", "l"): (0, 70)}
    assert state.holds["txn_1"].charges == (EVER,)


def test_sessions_go_when_idle_and_lifetimes_stay() -> None:
    state = live()
    fold(state, step("settle", 0, 30, charges=(SESSION, EVER)))
    later_ms = NOW_MS + SESSION_IDLE_MS - 1
    fold(state, step("settle", 1, 5, "txn_2", charges=(SESSION,)), now_ms=later_ms)
    forget(state, later_ms + SESSION_IDLE_MS - 1)
    assert state.windows["bud_session", "s:s1"] == Figures(35, 0, later_ms + SESSION_IDLE_MS)
    forget(state, later_ms + SESSION_IDLE_MS)
    assert state.windows == {("bud_ever", "l"): Figures(30)}
    fold(state, step("settle", 2, 7, "txn_3", charges=(SESSION,)), now_ms=later_ms + SESSION_IDLE_MS)
    assert state.windows["bud_session", "s:s1"].spent_nano == 7


def test_a_session_that_is_over_starts_anew_with_what_comes_late() -> None:
    state = live()
    fold(state, step("settle", 0, 30, charges=(SESSION,)))
    fold(state, step("settle", 1, 7, "txn_2", charges=(SESSION,)), now_ms=NOW_MS + SESSION_IDLE_MS)
    assert state.windows["bud_session", "s:s1"].spent_nano == 7


def test_an_expiry_of_a_charge_without_an_end_is_remembered_as_long_as_a_session() -> None:
    state = live()
    fold(state, step("restore", 0, 50, charges=(EVER,)), step("expire", 1, 50, charges=(EVER,)))
    assert state.holds["txn_1"].forget_at_ms == NOW_MS + SESSION_IDLE_MS


def test_a_window_long_past_is_left_alone() -> None:
    state = live()
    fold(state, step("restore", 0, 50))
    last_ms = 172_800_000 + WINDOW_GRACE_MS
    fold(state, step("settle", 1, 30, "txn_2"), now_ms=last_ms - 1)
    assert state.windows[DAY_SLOT] == Figures(30, 50)
    fold(state, step("settle", 2, 30, "txn_3"), step("settle", 3, 30), now_ms=last_ms)
    assert state.windows[DAY_SLOT] == Figures(30, 50)
    assert held(state)[1] == 0, "a ring's hold ends however late"


def test_a_bucket_that_has_left_its_ring_is_left_alone() -> None:
    state = live()
    fold(state, step("settle", 0, 30))
    fold(state, step("settle", 1, 9, "txn_2"), now_ms=100_050_999)
    assert state.rings[RING_SLOT] == Ring(low=99_990, total_nano=39, buckets={99_990: 39})
    fold(state, step("settle", 2, 9, "txn_3"), now_ms=100_051_000)
    assert state.rings[RING_SLOT] == Ring(low=99_991)


def test_a_hold_that_a_reaper_has_had_is_remembered_while_it_could_matter() -> None:
    late_ms = NOW_MS + 5_000
    in_time, claimed = live(), live()
    for state in (in_time, claimed):
        fold(state, step("restore", 0, 50))
    assert claim_due(claimed, late_ms, 1)
    for state in (in_time, claimed):
        fold(state, step("settle", 1, 30), now_ms=late_ms)
    assert in_time.holds["txn_1"].forget_at_ms == late_ms + TOMBSTONE_MS
    assert claimed.holds["txn_1"].forget_at_ms == late_ms + TOLD_AGAIN_MS
    for state in (in_time, claimed):
        forget(state, late_ms + TOMBSTONE_MS)
        fold(state, step("expire", 2, 50), now_ms=late_ms + TOMBSTONE_MS)
    assert spent(claimed)[0] == 30, "the expiry that was on its way found it settled"


@pytest.mark.parametrize("late_ms", [TOMBSTONE_MS, 7 * TOMBSTONE_MS])
def test_an_ending_of_a_one_shot_producer_counts_once_however_late_it_comes_again(late_ms: int) -> None:
    """As of a gateway that died when it had published and not yet forgotten, and is back after hours."""
    state = live()
    fold(state, step("restore", 0, 50), step("settle", 1, 30, producer="expiry:end:txn_1", sequence=1))
    forget(state, NOW_MS + late_ms)
    fold(state, step("settle", 2, 30, producer="expiry:end:txn_1", sequence=1), now_ms=NOW_MS + late_ms)
    assert spent(state)[0] == 30
    assert held(state)[0] == 0


def test_a_claimed_hold_is_remembered_while_its_expiry_could_change_what_it_implies() -> None:
    state = live()
    month = Charge("bud_month", "org:acme", f"c:0:{NOW_MS + 30 * 86_400_000}")
    fold(state, step("restore", 0, 50))
    assert claim_due(state, NOW_MS + 5_000, 1)
    late_ms = NOW_MS + 3 * 86_400_000
    for offset, kind, amount_nano, at_ms in ((1, "settle", 30, NOW_MS + 5_001), (2, "expire", 50, late_ms)):
        forget(state, at_ms)
        fold(state, replace(step(kind, offset, amount_nano), implied=(month,)), now_ms=at_ms)  # type: ignore[arg-type]
        assert state.windows[month.budget_id, month.window].spent_nano == 30


def test_an_expired_hold_is_remembered_until_no_settlement_can_correct_it() -> None:
    state = live()
    fold(state, step("restore", 0, 50), step("expire", 1, 50))
    hour_later_ms = NOW_MS + 24 * TOMBSTONE_MS
    forget(state, hour_later_ms)
    fold(state, step("settle", 2, 30), now_ms=hour_later_ms)
    assert spent(state)[0] == 30


@pytest.mark.parametrize("late_ms", [60_000, CORRECTION_MS - 1])
def test_a_late_settlement_takes_its_expiry_back_from_a_budget_that_was_made_since(late_ms: int) -> None:
    state, late_ms = live(), NOW_MS + late_ms
    fold(state, step("restore", 0, 50, charges=(RING,)), step("expire", 1, 50, charges=(RING,)))
    assert backfill(state, Backfill({}, {("bud_ever", "l"): 50}, {"bud_ever": 2}, "token"), NOW_MS)
    forget(state, late_ms)
    fold(state, replace(step("settle", 2, 30, charges=(RING,)), implied=(EVER,)), now_ms=late_ms)
    assert state.windows["bud_ever", "l"].spent_nano == 30


@pytest.mark.parametrize("charges", [(), (RING,)])
def test_what_a_one_shot_producer_tells_again_is_nothing_to_a_budget_that_was_made_since(
    charges: tuple[Charge, ...],
) -> None:
    state, late_ms = live(), NOW_MS + TOLD_AGAIN_MS - 1
    told = step("settle", 1, 30, producer="expiry:end:txn_1", charges=charges)
    fold(state, step("restore", 0, 50, charges=charges), told)
    assert backfill(state, Backfill({}, {("bud_ever", "l"): 30}, {"bud_ever": 2}, "token"), NOW_MS)
    forget(state, late_ms)
    fold(state, replace(told, offset=2, implied=(EVER,)), now_ms=late_ms)
    assert state.windows["bud_ever", "l"].spent_nano == 30


def test_an_ending_that_comes_first_after_all_its_windows_is_implied_as_ever() -> None:
    """As the tail of the log is, in a rebuild of another day: left out, it would leave a new budget too much room."""
    state, late_ms = live(), NOW_MS + 3 * 86_400_000
    fold(state, replace(step("expire", 0, 30, charges=(RING,)), implied=(EVER,)), now_ms=late_ms)
    assert state.windows["bud_ever", "l"].spent_nano == 30


def test_a_late_settlement_takes_an_expiry_back_once_where_only_that_had_named_a_budget() -> None:
    """As of a stream whose hold grew, under a budget made since, and whose gateway never heard of it."""
    state = live()
    grown_later = Charge("bud_ring", "team:ml", "r:1000:60:99999")
    fold(state, step("restore", 0, 50, charges=()), step("expire", 1, 80, charges=(grown_later, EVER)))
    assert (spent(state)[1], state.windows["bud_ever", "l"].spent_nano) == (80, 80)
    fold(state, replace(step("settle", 2, 30, charges=()), implied=(RING, EVER)))
    assert (spent(state)[1], state.windows["bud_ever", "l"].spent_nano) == (30, 30)


def test_a_late_settlement_takes_nothing_back_where_its_expiry_named_a_later_window() -> None:
    """As of a hold that grew after the turn of the day, and whose change was never recorded."""
    state, next_day = live(), replace(DAY, window="c:172800000:259200000")
    fold(state, step("restore", 0, 50, charges=()), step("expire", 1, 50, charges=(next_day,)))
    fold(state, replace(step("settle", 2, 30, charges=()), implied=(DAY,)))
    assert {window: each.spent_nano for (_, window), each in state.windows.items()} == {
        DAY.window: 30,
        next_day.window: 0,
    }


def test_a_late_settlement_takes_an_expiry_back_in_the_window_that_its_budget_has_by_now() -> None:
    """An event names the window that a budget had; the one that it has since is implied, beside that."""
    state = live()
    since = replace(DAY, budget_id=EVER.budget_id)
    expired = replace(step("expire", 1, 50, charges=(EVER,)), implied=(since,))
    fold(state, step("restore", 0, 50, charges=(EVER,)), expired)
    fold(state, replace(step("settle", 2, 30, charges=(EVER,)), implied=(since,)))
    assert {slot: each.spent_nano for slot, each in state.windows.items()} == {
        ("bud_ever", "l"): 30,
        ("bud_ever", DAY.window): 30,
    }


def test_forgetting_drops_only_what_nothing_can_ask_for() -> None:
    state = live()
    fold(state, step("settle", 0, 30), step("restore", 1, 50, "txn_2", charges=(RING,)))
    before = copy.deepcopy(state)
    forget(state, NOW_MS)
    assert state == before
    forget(state, 172_800_000 + WINDOW_GRACE_MS)
    assert state.windows == {}
    assert list(state.holds) == ["txn_2"]
    assert list(state.rings) == [RING_SLOT], "it holds still"
    release(state, "txn_2", 172_800_000 + WINDOW_GRACE_MS)
    forget(state, 172_800_000 + WINDOW_GRACE_MS)
    assert state.rings == {}


def test_an_image_loads_into_the_state_it_was_taken_of() -> None:
    state = live()
    fold(state, step("restore", 0, 50), step("settle", 1, 30, "txn_2"), step("expire", 2, 20, "txn_3"))
    fold(state, step("settle", 0, 7, "txn_4"), now_ms=NOW_MS + 1_000, partition=1)
    image = image_of(state)
    kept = copy.deepcopy(image)
    again = OrgState(config_version=state.config_version)
    assert load(again, image, "e1", NOW_MS + 1_000)
    state.loaded_at_ms = NOW_MS + 1_000
    assert again == state
    fold(again, step("settle", 3, 1), now_ms=NOW_MS + 2_000)
    assert image == kept, "an image is not the state's to change"


def test_a_live_org_is_not_loaded_over() -> None:
    state = live()
    fold(state, step("settle", 0, 30))
    before = copy.deepcopy(state)
    assert not load(state, OrgImage({}, {}, {}, {}), "e2", NOW_MS)
    assert state == before


def test_loading_clears_what_was_left() -> None:
    state = live()
    fold(state, step("settle", 0, 30), step("restore", 1, 5, "txn_2"))
    state.epoch = None
    assert load(state, OrgImage({DAY_SLOT: 4}, {}, {(TOPIC, 0): 9}, {}), "e2", NOW_MS)
    assert state == OrgState(epoch="e2", loaded_at_ms=NOW_MS, windows={DAY_SLOT: Figures(4)}, fences={(TOPIC, 0): 9})


def test_a_loaded_expired_hold_is_remembered_until_no_settlement_can_correct_it() -> None:
    state = OrgState()
    expired = Hold(50, CHARGES, "{}", 1, phase="expired", booked_nano=50)
    load(state, OrgImage({DAY_SLOT: 50}, {"txn_1": expired}, {}, {}), "e1", NOW_MS)
    assert state.holds["txn_1"].forget_at_ms == NOW_MS + CORRECTION_MS
    fold(state, step("settle", 0, 30))
    assert spent(state)[0] == 30


@pytest.mark.parametrize(
    ("figure", "delta", "expected"),
    [
        (1, 2, 3),
        (MAX_FIGURE, 1, MAX_FIGURE),
        (MAX_FIGURE - 1, 1, MAX_FIGURE),
        (-MAX_FIGURE, -5, -MAX_FIGURE),
        (5, -9, -4),
    ],
)
def test_a_figure_stays_within_64_bits_and_on_the_full_side(figure: int, delta: int, expected: int) -> None:
    assert plus(figure, delta) == expected


def test_steps_of_events() -> None:
    reservation = Reservation("txn_1", 5, FACTS, "strict", 1, 2, 50, CHARGES, 9)
    settlement = Settlement("txn_1", 6, FACTS, "completed", "reported", {}, (), 30, 50, CHARGES, 200, 0)
    expiry = Expiry("txn_1", 7, FACTS, 50, 45, CHARGES)
    denial = Denial("txn_1", 8, FACTS, "budget_exhausted", "full", 50)
    restored = step_of(Stamped(reservation, "gw_1", 3), 11)
    assert restored is not None
    assert (restored.kind, restored.offset, restored.producer, restored.sequence) == ("restore", 11, "gw_1", 3)
    assert (restored.amount_nano, restored.expires_at_ms, restored.time_ms) == (50, 9, 5)
    assert restored.context
    settled = step_of(Stamped(settlement, "gw_1", 4), 12)
    expired = step_of(Stamped(expiry, "expiry:txn_1", 1), 13)
    assert settled is not None
    assert expired is not None
    assert (settled.kind, settled.amount_nano, settled.charges) == ("settle", 30, CHARGES)
    assert (expired.kind, expired.amount_nano) == ("expire", 45)
    assert step_of(Stamped(denial, "gw_1", 5), 14) is None


def test_every_interleaving_of_topics_that_a_replay_may_take_ends_alike() -> None:
    """Reservations and settlements come from two topics whose order against each other is nobody's promise."""
    reservations = [step("restore", 0, 50), step("restore", 1, 8, "txn_2")]
    endings = [step("expire", 0, 50), step("settle", 1, 30), step("settle", 2, 3, "txn_2")]
    for chosen in itertools.combinations(range(5), 2):
        state = live()
        queues = (iter(reservations), iter(endings))
        for turn in range(5):
            is_ending = turn not in chosen
            each = next(queues[is_ending])
            apply(state, f"topic-{is_ending}", 0, [each], each.offset + 1, NOW_MS)
        assert (spent(state), held(state)) == ((33, 33), (0, 0))
