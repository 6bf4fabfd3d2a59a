"""The fold: events into spend, exactly once. Twin of ``adapters/lua/apply.lua``.

Two fences make a replay harmless. The org's offset fence skips what this org has folded from a partition; the
producer's sequence skips what was published twice under two offsets. Past both, a hold's own phase makes its ending
commutative: whichever of settlement and expiry comes first, `spent` ends at the settlement's cost, against the
settlement's charges. So it does when the hold's charges were changed in between, whatever of that was folded before.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from services.core.budgets import Charge, owner_id
from services.core.codec import encode_facts
from services.core.events import Denial, Expiry, HoldResized, Reservation, Settlement, Stamped
from services.core.hotstate import (
    CLOCK_MARGIN_MS,
    CORRECTION_MS,
    EXPIRY_PRODUCER,
    TOLD_AGAIN_MS,
    TOMBSTONE_MS,
    Applied,
    ApplyAnswer,
    Backfill,
    Behind,
    Cold,
    FoldStep,
    Hold,
    HoldPhase,
    OrgImage,
    OrgState,
    Outdated,
    counts_until_ms,
    is_forgotten,
    plus,
    ring_slot,
)
from services.core.reserve import add_held, figures_of, put, ring_of
from services.core.windows import CalendarSpan, RollingSpan, Span, parse_span


class OffsetGapError(RuntimeError):
    """The log skipped an offset: something is lost, and nothing past it may be folded."""


def step_of(stamped: Stamped, offset: int) -> FoldStep | None:
    """What an event does to the hot state, or None for one that does nothing (a denial)."""
    event = stamped.event
    place = (offset, stamped.producer, stamped.sequence, event.transaction_id)
    match event:
        case Settlement():
            return FoldStep("settle", *place, event.cost_nano, event.charges, time_ms=event.time_ms)
        case Expiry():
            return FoldStep("expire", *place, event.booked_nano, event.charges, time_ms=event.time_ms)
        case Reservation():
            context = encode_facts(event.facts)
            return FoldStep(
                "restore", *place, event.held_nano, event.charges, context, event.expires_at_ms, event.time_ms
            )
        case HoldResized():
            context = encode_facts(event.facts)
            return FoldStep(
                "resize", *place, event.held_nano, event.charges, context, event.expires_at_ms, event.time_ms
            )
        case Denial():
            return None


def apply(
    state: OrgState,
    topic: str,
    partition: int,
    steps: Iterable[FoldStep],
    next_offset: int,
    now_ms: int,
    marks: str | None = None,
    above: int = 0,
) -> ApplyAnswer:
    """Folds one org's steps of one partition, in offset order, and moves its fence to `next_offset`; never back.

    `marks` is the token of the marks that the steps' implied charges were decided by; None: nobody asks. Below `above`
    the org's fence must not stand: what lies between it and the steps would be skipped for good.
    """
    if state.epoch is None:
        return Cold()
    fence = state.fences.get((topic, partition), 0)
    if fence < above:
        return Behind()
    if marks is not None and marks != state.marks:
        return Outdated()
    applied = duplicates = 0
    for step in steps:
        producer = (topic, partition, step.producer)
        if step.offset < fence or step.sequence <= state.producers.get(producer, 0):
            duplicates += 1
            continue
        if not step.producer.startswith(EXPIRY_PRODUCER):
            state.producers[producer] = step.sequence
            state.silent.pop(producer, None)
        before = state.holds.get(step.reservation_id)
        may_end_again = _apply_step(state, step, now_ms)
        if step.implied and step.kind in ("settle", "expire"):
            _apply_implied(state, step, before, may_end_again, now_ms)
        applied += 1
    if next_offset > fence:
        state.fences[topic, partition] = next_offset
    return Applied(applied, duplicates)


def load(state: OrgState, image: OrgImage, epoch: str, now_ms: int) -> bool:
    """Fills a cold org from a rebuilt image and sets its epoch; false, changing nothing, when it has one already."""
    if state.epoch is not None:
        return False
    state.windows.clear()
    state.rings.clear()
    for (budget_id, window), spent_nano in image.spent_nano.items():
        _add_spent(state, Charge(budget_id, "", window), spent_nano, now_ms)
    # What budgets were left, no log says: until the change is in it, the hold is charged to them there.
    state.holds = {name: replace(hold, left=()) for name, hold in image.holds.items()}
    state.due = {}
    for name, hold in state.holds.items():
        if hold.phase == "held":
            _start(state, name, hold, now_ms)
        else:
            hold.context = ""
            if hold.forget_at_ms is None:
                hold.forget_at_ms = _forget_at_ms(hold.charges, hold.phase, hold.phase == "expired", now_ms)
    state.fences = dict(image.fences)
    state.producers, state.silent = lasting_producers(image.producers), {}
    state.filled = dict(image.filled)
    state.marks = epoch if image.filled else ""
    state.crossed.clear()
    state.crossed_until_ms.clear()
    state.epoch, state.loaded_at_ms = epoch, now_ms
    return True


def backfill(state: OrgState, fill: Backfill, now_ms: int) -> bool:
    """Sets what the windows of some budgets have spent, and marks these; twin of ``backfill.lua``.

    False, changing nothing, when the org is cold, or its fences or marks are others than those that `fill` is as of; or
    when it would prepare what is done.
    """
    if state.epoch is None or any(state.fences.get(place, 0) != fence for place, fence in fill.fences.items()):
        return False
    if fill.known is not None and fill.known != state.marks:
        return False
    if not fill.token and any(state.filled.get(name, 0) >= version for name, version in fill.filled.items()):
        return False
    for (budget_id, window), spent_nano in fill.spent_nano.items():
        charge = Charge(budget_id, "", window)
        _add_spent(state, charge, -_spent_in(state, charge, now_ms), now_ms)
        _add_spent(state, charge, spent_nano, now_ms)
    for name, held in fill.holds.items():
        hold = state.holds.get(name)
        if hold is not None and hold.phase == "held" and hold.changed_at_ms == held.changed_at_ms:
            others = (each for each in hold.implied if owner_id(each.budget_id) not in fill.filled)
            _hold_implied(state, hold, (*others, *held.charges), now_ms)
    if not fill.token:
        return True
    state.filled |= fill.filled
    for budget_id in fill.gone:
        state.filled.pop(budget_id, None)
    state.marks = fill.token
    return True


def lasting_producers(producers: Mapping[tuple[str, int, str], int]) -> dict[tuple[str, int, str], int]:
    """The producers whose sequences are kept: all but those of expiries, which publish once each."""
    return {place: sequence for place, sequence in producers.items() if not place[2].startswith(EXPIRY_PRODUCER)}


def image_of(state: OrgState) -> OrgImage:
    """The image that `load` makes this state of again (at the same instant; buckets that have left are left out)."""
    spent_nano = {(budget_id, window): figures.spent_nano for (budget_id, window), figures in state.windows.items()}
    for (budget_id, bucket_ms, count), ring in state.rings.items():
        for bucket, bucket_nano in ring.buckets.items():
            spent_nano[budget_id, RollingSpan(bucket_ms, count, bucket).key()] = bucket_nano
    return OrgImage(spent_nano, dict(state.holds), dict(state.fences), dict(state.producers))


def forget(state: OrgState, now_ms: int) -> None:
    """Drops what nothing can ask for any more: windows past their grace, idle sessions, rings at rest, old tombstones.

    In Valkey keys expire for the same reasons at the same instants, so nothing of this is ever seen by a caller.
    """
    for window, figures in list(state.windows.items()):
        is_idle = figures.forget_at_ms is not None and figures.forget_at_ms <= now_ms
        if is_idle or is_forgotten(parse_span(window[1]), now_ms):
            del state.windows[window]
    for slot, ring in list(state.rings.items()):
        _, bucket_ms, count = slot
        low = now_ms // bucket_ms - count
        if ring.held_nano == 0 and all(bucket < low for bucket in ring.buckets):
            del state.rings[slot]
    for name, hold in list(state.holds.items()):
        if hold.forget_at_ms is not None and now_ms >= hold.forget_at_ms:
            del state.holds[name]


def _apply_step(state: OrgState, step: FoldStep, now_ms: int) -> bool:
    """Whether it was an ending after which there may be another one."""
    hold = state.holds.get(step.reservation_id)
    was_claimed = False
    if step.kind == "restore":
        if hold is None and not _may_be_forgotten(state, step.time_ms, now_ms):
            restored = Hold(
                step.amount_nano, step.charges, step.context, step.expires_at_ms, admitted_at_ms=step.time_ms
            )
            restored.implied = step.implied
            state.holds[step.reservation_id] = restored
            _start(state, step.reservation_id, restored, now_ms)
        elif step.implied and hold is not None and hold.phase == "held" and hold.resized_at_ms == 0:
            # Made by a gateway that did not know of these budgets yet. One that was changed is told of by that event.
            _hold_implied(state, hold, step.implied, now_ms)
        return False
    if step.kind == "resize":
        if hold is not None and hold.phase == "held" and step.time_ms >= hold.resized_at_ms:
            _resize(state, step, hold, now_ms)
        return False
    if hold is None:
        hold = Hold(0, step.charges, "", 0)
    elif _has_ended(hold, step):
        return False
    elif hold.phase == "held":
        for charge, amount_nano in hold.amounts():
            add_held(state, charge, -amount_nano, now_ms)
        was_claimed = state.due.pop(step.reservation_id, None) != hold.expires_at_ms
    for charge in step.charges:
        _add_spent(state, charge, step.amount_nano, now_ms)
    for charge in hold.charges:
        _add_spent(state, charge, -hold.booked_nano, now_ms)
    # What a producer of one event publishes again, no sequence tells from the first.
    is_told_again = step.producer.startswith(EXPIRY_PRODUCER)
    may_end_again = was_claimed or is_told_again or step.kind == "expire" or hold.phase == "expired"
    phase: HoldPhase = "settled" if step.kind == "settle" else "expired"
    state.holds[step.reservation_id] = replace(
        hold,
        charges=step.charges,
        context="",
        implied=(),
        left=(),
        phase=phase,
        booked_nano=step.amount_nano,
        forget_at_ms=_forget_at_ms((*hold.charges, *step.charges), phase, may_end_again, now_ms),
    )
    return may_end_again


def _has_ended(hold: Hold, step: FoldStep) -> bool:
    """Whether a hold ended before a step that would end it: a settlement counts after an expiry, and nothing else."""
    return hold.phase == "settled" or (hold.phase == "expired" and step.kind == "expire")


def _apply_implied(state: OrgState, step: FoldStep, before: Hold | None, may_end_again: bool, now_ms: int) -> None:
    """Spends a step's implied charges. `before` is its hold before the step: a second ending has nothing to add, and
    what an expiry had booked was booked against the same implied charges, but for those that it had named itself."""
    if before is not None and _has_ended(before, step):
        return
    booked_nano = 0 if before is None else before.booked_nano
    named = () if before is None else before.charges
    for charge in step.implied:
        _add_spent(state, charge, step.amount_nano, now_ms)
        if booked_nano and not _is_carried(charge, named):
            _add_spent(state, charge, -booked_nano, now_ms)
    hold = state.holds[step.reservation_id]
    if may_end_again and hold.forget_at_ms is not None:
        hold.forget_at_ms = max(hold.forget_at_ms, _forget_at_ms(step.implied, hold.phase, True, now_ms))


def _is_carried(implied: Charge, named: Iterable[Charge]) -> bool:
    """Whether an expiry that named those charges has booked nothing by implication where another ending implies this.

    A budget that an event names is not implied by it (`backfill.ImpliedBudgets`): all buckets of a ring are one, and
    of a calendar's spans one stands for all. Two that overlap are of two windows, one of which the budget had before.
    That a span of before can lie beside one of now goes unseen: then too much is spent, never too little.
    """
    span, windows = parse_span(implied.window), [each.window for each in named if each.budget_id == implied.budget_id]
    return any(_is_of_one_window(span, parse_span(each)) for each in windows)


def _is_of_one_window(one: Span, other: Span) -> bool:
    if isinstance(one, RollingSpan) and isinstance(other, RollingSpan):
        return (one.bucket_ms, one.count) == (other.bucket_ms, other.count)
    if isinstance(one, CalendarSpan) and isinstance(other, CalendarSpan):
        return one == other or one.end_ms <= other.start_ms or other.end_ms <= one.start_ms
    return one == other


def _spent_in(state: OrgState, charge: Charge, now_ms: int) -> int:
    span = parse_span(charge.window)
    if not isinstance(span, RollingSpan):
        return figures_of(state, charge.budget_id, span, now_ms).spent_nano
    if ring_slot(charge.budget_id, span) not in state.rings:
        return 0
    return ring_of(state, charge.budget_id, span, now_ms).buckets.get(span.bucket, 0)


def _resize(state: OrgState, step: FoldStep, hold: Hold, now_ms: int) -> None:
    for charge, amount_nano in hold.amounts():
        add_held(state, charge, -amount_nano, now_ms)
    hold.charges, hold.implied, hold.left, hold.amount_nano = step.charges, step.implied, (), step.amount_nano
    for charge, amount_nano in hold.amounts():
        add_held(state, charge, amount_nano, now_ms)
    hold.context, hold.resized_at_ms = step.context, step.time_ms
    if state.due[step.reservation_id] == hold.expires_at_ms:  # else a reaper has it
        hold.expires_at_ms = state.due[step.reservation_id] = step.expires_at_ms


def _may_be_forgotten(state: OrgState, admitted_at_ms: int, now_ms: int) -> bool:
    """Whether an unknown hold of that age may have ended in this state: to restore it would charge its call twice.

    A hold from before the state was loaded never was in it. A young one can't have been forgotten yet, so the server
    must have lost it with its last writes.
    """
    surely_by_ms = admitted_at_ms - CLOCK_MARGIN_MS
    return (
        state.loaded_at_ms is not None and surely_by_ms >= state.loaded_at_ms and now_ms >= surely_by_ms + TOMBSTONE_MS
    )


def _hold_implied(state: OrgState, hold: Hold, implied: tuple[Charge, ...], now_ms: int) -> None:
    for charge in hold.implied:
        add_held(state, charge, -hold.amount_nano, now_ms)
    for charge in implied:
        add_held(state, charge, hold.amount_nano, now_ms)
    hold.implied = implied


def _start(state: OrgState, name: str, hold: Hold, now_ms: int) -> None:
    state.due[name] = hold.expires_at_ms
    for charge, amount_nano in hold.amounts():
        add_held(state, charge, amount_nano, now_ms)


def _forget_at_ms(charges: Sequence[Charge], phase: HoldPhase, may_end_again: bool, now_ms: int) -> int:
    """When an ended hold may be forgotten.

    One that a reaper has had may have a second ending on its way, by however slow a road. It is remembered for as long
    as that could change any figure, or an outbox that comes back after a day would count the call twice.
    """
    counts_until = [counts_until_ms(parse_span(each.window), now_ms) for each in charges] if may_end_again else []
    least_ms = CORRECTION_MS if phase == "expired" else TOLD_AGAIN_MS if may_end_again else TOMBSTONE_MS
    return max([now_ms + least_ms, *counts_until])


def _add_spent(state: OrgState, charge: Charge, delta_nano: int, now_ms: int) -> None:
    span = parse_span(charge.window)
    if delta_nano == 0 or is_forgotten(span, now_ms):
        return
    if not isinstance(span, RollingSpan):
        figures = figures_of(state, charge.budget_id, span, now_ms)
        figures.spent_nano = plus(figures.spent_nano, delta_nano)
        put(state, charge.budget_id, span, figures, now_ms)
        return
    ring = ring_of(state, charge.budget_id, span, now_ms)
    if span.bucket >= ring.low:
        ring.buckets[span.bucket] = plus(ring.buckets.get(span.bucket, 0), delta_nano)
        ring.total_nano = plus(ring.total_nano, delta_nano)
