"""Parts of budgets, and budgets that get another window, for the walks of the twins (`twin_operations`)."""

from services.core.budgets import Charge, Proposal, Standing
from services.core.hotstate import EXPIRY_PRODUCER, Backfill, FoldStep, HeldBackfill, HoldRequest, is_forgotten
from services.core.parts import spent_by
from services.core.reserve import peek as peek_at
from services.core.windows import CalendarSpan, RollingSpan, parse_span
from tests.support.twin_steps import DAY_MS, HOUR_MS, WINDOWS, Draw, at_the_brim, proposals_at
from tests.support.twins import ORG, Part, Twins

# As the gateway makes parts: their windows begin a little earlier, and their holds end a little later.
BEFORE_MS, AFTER_MS = 60_000, 3_000


async def delegate(twins: Twins, draw: Draw) -> None:
    """Carves a part: of budgets, or of another part."""
    number = len(twins.state.holds)
    amount_nano, lasts_ms = draw.number(1, 300), draw.one_of((60_000, HOUR_MS, 20 * DAY_MS))
    if twins.parts and draw.number(0, 2) == 0:
        proposals: tuple[Proposal, ...] = (_budget_of(draw.one_of(twins.parts[-3:]), twins.now_ms),)
    else:
        proposals = at_the_brim(twins, draw, amount_nano, proposals_at(twins, draw, twins.now_ms))
    name = f"dlg_{number}_{twins.now_ms}"
    await twins.reserve(HoldRequest(ORG, name, amount_nano, proposals, lasts_ms + AFTER_MS, f'{{"part":"{number}"}}'))
    if name in twins.state.holds and all(each.name != name for each in twins.parts):
        span = CalendarSpan(twins.now_ms - BEFORE_MS, twins.now_ms + lasts_ms)
        twins.parts.append(Part(name, f"sub_{number}_{twins.now_ms}", span, amount_nano))


async def spend_part(twins: Twins, draw: Draw) -> None:
    """A call by the key of a part: charged to the part alone, and to what that was not carved from."""
    if not twins.parts:
        return
    part = draw.one_of(twins.parts[-3:])
    amount_nano = draw.number(0, part.amount_nano)
    proposals = (_budget_of(part, twins.now_ms), *proposals_at(twins, draw, twins.now_ms, draw.one_of((0, 0, 1))))
    hold_ms = draw.one_of((1_000, 60_000))
    await twins.reserve(HoldRequest(ORG, twins.new_name(), amount_nano, proposals, hold_ms, "{}"))


async def end_part(twins: Twins, draw: Draw) -> None:
    """What the reaper does with a part: it ends at what it has spent, and the rest is free again."""
    if not twins.parts or twins.state.epoch is None:
        return
    part = draw.one_of(twins.parts[-3:])
    hold = twins.state.holds.get(part.name)
    if hold is None or hold.phase != "held":
        twins.parts.remove(part)
        return
    own = Proposal(part.budget_id, "part", part.span, 0, "pass", is_fixed=True)
    spent_nano = spent_by(own, (await _peek(twins, (own,)))[0], hold.amount_nano, twins.now_ms)
    if spent_nano is None:
        return  # a call of it is open
    charges, held_nano, implied = hold.charges, hold.amount_nano, hold.implied
    carved = tuple(_of_charge(each) for each in charges)
    before = await _peek(twins, carved)
    place = sorted(twins.ends)[-1]
    offset = twins.ends[place]
    step = FoldStep(
        "settle", offset, EXPIRY_PRODUCER + part.name, 1, part.name, spent_nano, charges, "{}", 0, twins.now_ms
    )
    await twins.apply(place, (step,), offset + 1)
    await twins.apply(place, (step,), offset + 1)  # a reaper that asks again publishes a duplicate
    if not twins.is_saturated and not implied:
        for charge, was, is_now in zip(charges, before, await _peek(twins, carved), strict=True):
            _assert_given_back(twins, charge, was, is_now, held_nano, spent_nano)
    twins.parts.remove(part)


async def change_budget(twins: Twins, draw: Draw) -> None:
    """Gives a budget another window, which starts from what it holds already; open calls are held against it, too.

    Limits are another matter: every call of a walk brings its own.
    """
    budget_id, _ = draw.one_of(WINDOWS)
    twins.windows[budget_id] = draw.one_of(WINDOWS)[1]
    proposals = [each for each in proposals_at(twins, draw, twins.now_ms, len(WINDOWS)) if each.budget_id == budget_id]
    charges = tuple(each.charge() for each in proposals)
    fences = {
        (each.topic, each.partition): twins.state.fences.get((each.topic, each.partition), 0) for each in twins.ends
    }
    spent_nano = {(each.budget_id, each.window): draw.number(0, 300) for each in charges}
    held = {
        name: HeldBackfill(hold.changed_at_ms, charges)
        for name in twins.recent()
        if (hold := twins.state.holds.get(name)) is not None and hold.phase == "held" and draw.number(0, 1)
    }
    version = draw.number(1, 9)
    filled = {budget_id.partition("@")[0]: version}
    await twins.backfill(Backfill(fences, spent_nano, filled, f"changed-{version}", holds=held))


def _budget_of(part: Part, now_ms: int) -> Proposal:
    limit_nano = part.amount_nano if now_ms < part.span.end_ms else 0
    return Proposal(part.budget_id, f"key:key_{part.budget_id}", part.span, limit_nano)


def _of_charge(charge: Charge) -> Proposal:
    return Proposal(charge.budget_id, charge.scope, parse_span(charge.window), 0, "pass", is_fixed=True)


async def _peek(twins: Twins, proposals: tuple[Proposal, ...]) -> tuple[Standing, ...]:
    await twins.peek(proposals)
    standings = peek_at(twins.state, proposals, twins.now_ms)
    assert standings is not None, "the org is warm"
    return standings


def _assert_given_back(
    twins: Twins, charge: Charge, was: Standing, is_now: Standing, held_nano: int, spent_nano: int
) -> None:
    """BU-9: what was held for a part is free again, but for what it has spent, once."""
    span = parse_span(charge.window)
    if is_forgotten(span, twins.latest_ms):
        return
    assert was.held_nano - is_now.held_nano == held_nano, (charge, was, is_now)
    spent_more = is_now.spent_nano - was.spent_nano
    if isinstance(span, RollingSpan):
        assert spent_more in (0, spent_nano), (charge, was, is_now)  # of a bucket that has left, nothing counts
    else:
        assert spent_more == spent_nano, (charge, was, is_now)
