"""The reserve decision: check every budget, then hold against all of them or none.

Twin of ``adapters/lua/reserve.lua``, ``resize.lua``, ``release.lua``, ``claim.lua`` and ``peek.lua``.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from services.core.budgets import Charge, Proposal, Standing, standing
from services.core.hotstate import (
    CLAIM_MS,
    SESSION_IDLE_MS,
    Admitted,
    Cold,
    DueHold,
    Figures,
    FoundHold,
    Hold,
    HoldOption,
    HoldRequest,
    OrgState,
    Refused,
    ReserveAnswer,
    Ring,
    RingSlot,
    StaleWindow,
    WindowSlot,
    is_forgotten,
    plus,
    ring_low,
    ring_slot,
    window_slot,
)
from services.core.windows import (
    CalendarSpan,
    LifetimeSpan,
    RollingSpan,
    SessionSpan,
    Span,
    parse_span,
    resets_at_ms,
)

PlainSpan = CalendarSpan | SessionSpan | LifetimeSpan
# A budget without room, as it was proposed and as it stands; and what was spent in each bucket of a ring.
Lacking = tuple[Proposal, Standing]
Buckets = Mapping[int, int]

# A full budget of one of these rules refuses; of the others, it lets its parents pay, or is charged all the same.
_REFUSING: Final = ("block", "downgrade")


def options_of(request: HoldRequest) -> tuple[HoldOption, ...]:
    """Every way to make the call, in the order in which they are tried."""
    return HoldOption(request.amount_nano, request.proposals, request.context), *request.alternatives


def reserve(state: OrgState, request: HoldRequest, now_ms: int) -> ReserveAnswer:
    """Holds the request or says why not; holds nothing unless it answers `Admitted`.

    A reservation id that already has a hold, ended or not, gets the charges it got (P2). A calendar span of any option
    that does not hold `now_ms` is stale. A rolling span's bucket is set from `now_ms` here, whatever was proposed: of a
    new hold, no span is fixed.
    """
    if state.epoch is None:
        return Cold()
    options = options_of(request)
    known = state.holds.get(request.reservation_id)
    if known is not None:
        proposals = at_bucket(of_option(options, known.option).proposals, now_ms)
        _advance(state, proposals, now_ms)
        admitted = _admitted(state, proposals, known, now_ms)
        return replace(admitted, found=FoundHold(known.amount_nano, known.context))
    if any(_is_stale(each.span, now_ms) for option in options for each in option.proposals):
        return StaleWindow(state.config_version, now_ms)
    refused: Refused | None = None
    for number, option in enumerate(options):
        proposals = at_bucket(option.proposals, now_ms)
        _advance(state, proposals, now_ms)
        kept, lacking = _choose(proposals, _standings(state, proposals, now_ms), option.amount_nano, {})
        if not lacking:
            charges = tuple(each.charge() for each in kept)
            expires_at_ms = now_ms + request.hold_ms
            hold = Hold(option.amount_nano, charges, option.context, expires_at_ms)
            hold.admitted_at_ms, hold.option = now_ms, number
            for charge in charges:
                add_held(state, charge, hold.amount_nano, now_ms)
            state.holds[request.reservation_id] = hold
            state.due[request.reservation_id] = expires_at_ms
            return _admitted(state, kept, hold, now_ms)
        refused = refused or _refused(state, lacking, option.amount_nano, now_ms)
        if number == 0 and any(each.full_rule != "downgrade" for each, _ in lacking):
            break
    assert refused is not None, "there is always the option that was asked for"
    return refused


def resize(state: OrgState, request: HoldRequest, now_ms: int) -> ReserveAnswer | None:
    """Changes what an open hold holds, against what, and until when, all or nothing; None when it is open no more.

    The proposals are all that the call is charged to from now on. A span that `is_fixed` is the hold's own and stays;
    any other is decided now. A budget needs room for the new amount, once the old one is out, where it holds more than
    before for this call; without room it does as its rule says. The standings of a refusal are without the old amount.
    A fixed span that is so long past that its figures are gone (`is_forgotten`) counts as full.

    What the hold is charged to without saying so (`Hold.implied`) holds the new amount as well, with room or without:
    its limit is not known here. Where a proposal names its budget anew, that proposal takes its place.

    What a budget has held that lets its parents pay from now on, and what a smaller hold would free, stays held: see
    `Hold.left`.
    """
    if state.epoch is None:
        return Cold()
    hold = state.holds.get(request.reservation_id)
    if hold is None or hold.phase != "held":
        return None
    if state.due[request.reservation_id] != hold.expires_at_ms:
        return None  # a reaper has it, and its expiry may be on the way
    if any(_is_stale(each.span, now_ms) for each in request.proposals if not each.is_fixed):
        return StaleWindow(state.config_version, now_ms)
    proposals = at_bucket(request.proposals, now_ms, keeps_fixed=True)
    _advance(state, proposals, now_ms)
    before, implied = hold.amounts(), _still_implied(hold, proposals)
    for charge, amount_nano in before:
        add_held(state, charge, -amount_nano, now_ms)
    before_nano = _by_slot(before)
    kept, lacking = _choose(proposals, _standings(state, proposals, now_ms), request.amount_nano, before_nano)
    if lacking:
        refused = _refused(state, lacking, request.amount_nano, now_ms)
        for charge, amount_nano in before:
            add_held(state, charge, amount_nano, now_ms)
        return refused
    hold.left = tuple(_left(proposals, kept, request.amount_nano, before_nano))
    hold.charges, hold.implied, hold.amount_nano = tuple(each.charge() for each in kept), implied, request.amount_nano
    for charge, amount_nano in hold.amounts():
        add_held(state, charge, amount_nano, now_ms)
    hold.context, hold.resized_at_ms = request.context, now_ms
    hold.expires_at_ms = state.due[request.reservation_id] = now_ms + request.hold_ms
    return _admitted(state, kept, hold, now_ms)


def release(state: OrgState, reservation_id: str, now_ms: int) -> bool:
    """Takes back a hold whose reservation was never recorded; false when there is no such hold any more.

    Nor is there one for it that a reaper has: what its expiry books must stay held until that is spent.
    """
    hold = state.holds.get(reservation_id)
    if hold is None or hold.phase != "held" or state.due[reservation_id] != hold.expires_at_ms:
        return False
    for charge, amount_nano in hold.amounts():
        add_held(state, charge, -amount_nano, now_ms)
    del state.holds[reservation_id], state.due[reservation_id]
    return True


def claim_due(state: OrgState, now_ms: int, limit: int) -> tuple[DueHold, ...]:
    """Up to `limit` holds past their time, earliest first, each handed out again only `CLAIM_MS` later."""
    if state.epoch is None:
        return ()
    ripe = sorted((due_ms, name) for name, due_ms in state.due.items() if due_ms <= now_ms)[:limit]
    claimed = []
    for _, name in ripe:
        hold = state.holds[name]
        state.due[name] = now_ms + CLAIM_MS
        claimed.append(DueHold(name, hold.amount_nano, hold.charges, hold.context, hold.admitted_at_ms))
    return tuple(claimed)


def peek(state: OrgState, proposals: Sequence[Proposal], now_ms: int) -> tuple[Standing, ...] | None:
    """Where each proposal's budget stands at `now_ms`, changing nothing; None when the org is cold."""
    if state.epoch is None:
        return None
    asked = [replace(each, is_fixed=False) for each in at_bucket(proposals, now_ms)]  # as there is nothing to grow
    return _standings(state, asked, now_ms)


def at_bucket(proposals: Sequence[Proposal], now_ms: int, *, keeps_fixed: bool = False) -> tuple[Proposal, ...]:
    """The proposals with every rolling span moved to the bucket that holds `now_ms`, or all but the fixed ones."""
    moved = []
    for each in proposals:
        span = each.span
        if not isinstance(span, RollingSpan) or (keeps_fixed and each.is_fixed):
            moved.append(each)
        elif span.bucket != now_ms // span.bucket_ms:
            moved.append(replace(each, span=replace(span, bucket=now_ms // span.bucket_ms)))
        else:
            moved.append(each)
    return tuple(moved)


def of_option(options: Sequence[HoldOption], number: int) -> HoldOption:
    """The option that a hold was admitted by; the first one for a caller who offers fewer now."""
    return options[number] if number < len(options) else options[0]


def charged(proposals: Iterable[Proposal], charges: Iterable[Charge]) -> list[Proposal]:
    """Those of the proposals whose budgets are charged."""
    budget_ids = {each.budget_id for each in charges}
    return [each for each in proposals if each.budget_id in budget_ids]


def left_out(proposals: Iterable[Proposal], charges: Iterable[Charge]) -> tuple[str, ...]:
    """The budgets that were full and let their parents pay: `parent_charged` in events (BU-3)."""
    budget_ids = {each.budget_id for each in charges}
    return tuple(
        each.budget_id for each in proposals if each.full_rule == "parent" and each.budget_id not in budget_ids
    )


def only_watching(proposals: Iterable[Proposal], standings: Iterable[Standing]) -> tuple[str, ...]:
    """The budgets that only watch and had no room: with the hold in their `standings` they are above their limits.

    `would_block` in events (BU-4).
    """
    watching = {each.budget_id for each in proposals if each.full_rule == "pass"}
    return tuple(each.budget_id for each in standings if each.remaining_nano < 0 and each.budget_id in watching)


def refusal(
    config_version: int, now_ms: int, amount_nano: int, lacking: Sequence[Lacking], buckets: Mapping[str, Buckets]
) -> Refused:
    """The refusal of `amount_nano` by these budgets; `buckets` are those of their rings, by budget id.

    A rolling one resets when enough of what it has spent has left it, not when all has.
    """
    standings = []
    for proposal, each in lacking:
        if isinstance(proposal.span, RollingSpan):
            ring = buckets.get(proposal.budget_id, {})
            at_ms = _turns_at_ms(proposal.span, each, ring, amount_nano, now_ms)
            standings.append(replace(each, resets_at_ms=at_ms))
        else:
            standings.append(each)
    exhausted = sorted(standings, key=lambda each: (each.remaining_nano, each.budget_id))
    return Refused(config_version, now_ms, tuple(exhausted), room_at_ms(lacking, buckets, amount_nano, now_ms))


def room_at_ms(lacking: Iterable[Lacking], buckets: Mapping[str, Buckets], amount_nano: int, now_ms: int) -> int | None:
    """When all of these budgets have room, if nothing more is spent; None when waiting brings none.

    What is held may come free at any time: a budget that would have room but for its holds has it now.
    """
    at_ms = now_ms
    for proposal, each in lacking:
        turns_at_ms = _turns_at_ms(proposal.span, each, buckets.get(proposal.budget_id, {}), amount_nano, now_ms)
        if turns_at_ms is None:
            return None
        at_ms = max(at_ms, turns_at_ms)
    return at_ms


def _turns_at_ms(span: Span, standing: Standing, buckets: Buckets, amount_nano: int, now_ms: int) -> int | None:
    missing_nano = standing.spent_nano + amount_nano - standing.limit_nano
    if missing_nano <= 0:
        return now_ms
    if standing.limit_nano < amount_nano:
        return None
    if not isinstance(span, RollingSpan):
        # A window that is over already, as that of a hold that is to grow, does not turn again.
        is_over = standing.resets_at_ms is not None and standing.resets_at_ms <= now_ms
        return None if is_over else standing.resets_at_ms
    for bucket in sorted(buckets):
        missing_nano -= buckets[bucket]
        if missing_nano <= 0:
            return resets_at_ms(replace(span, bucket=bucket))
    return None


def ring_of(state: OrgState, budget_id: str, span: RollingSpan, now_ms: int) -> Ring:
    """The ring of a rolling budget, advanced to `now_ms`; made when there is none."""
    low = ring_low(span, now_ms)
    ring = state.rings.setdefault(ring_slot(budget_id, span), Ring(low))
    ring.advance(low)
    return ring


def add_held(state: OrgState, charge: Charge, delta_nano: int, now_ms: int) -> None:
    """Adds to what a charge's budget holds, unless its window is forgotten."""
    span = parse_span(charge.window)
    if delta_nano == 0 or is_forgotten(span, now_ms):
        return
    if isinstance(span, RollingSpan):
        ring = ring_of(state, charge.budget_id, span, now_ms)
        ring.held_nano = plus(ring.held_nano, delta_nano)
    else:
        figures = figures_of(state, charge.budget_id, span, now_ms)
        figures.held_nano = plus(figures.held_nano, delta_nano)
        put(state, charge.budget_id, span, figures, now_ms)


def figures_of(state: OrgState, budget_id: str, span: PlainSpan, now_ms: int) -> Figures:
    """The figures of a window that is no ring: new ones where there are none, or those of a session are forgotten."""
    figures = state.windows.get(window_slot(budget_id, span))
    if figures is None or (figures.forget_at_ms is not None and figures.forget_at_ms <= now_ms):
        return Figures()
    return figures


def put(state: OrgState, budget_id: str, span: PlainSpan, figures: Figures, now_ms: int) -> None:
    """Keeps figures that have changed, those of a session for as long as a session is remembered."""
    if isinstance(span, SessionSpan):
        figures.forget_at_ms = now_ms + SESSION_IDLE_MS if figures.held_nano == 0 else None
    state.windows[window_slot(budget_id, span)] = figures


def _advance(state: OrgState, proposals: Sequence[Proposal], now_ms: int) -> None:
    for proposal in proposals:
        span = proposal.span
        if isinstance(span, RollingSpan) and ring_slot(proposal.budget_id, span) in state.rings:
            ring_of(state, proposal.budget_id, span, now_ms)


def _standings(state: OrgState, proposals: Sequence[Proposal], now_ms: int) -> tuple[Standing, ...]:
    return tuple(standing(each, *_figures(state, each, now_ms)) for each in proposals)


def _figures(state: OrgState, proposal: Proposal, now_ms: int) -> tuple[int, int]:
    span = proposal.span
    if proposal.is_fixed and is_forgotten(span, now_ms):
        return proposal.limit_nano, 0  # what it had spent is gone; it is not known to have room
    if not isinstance(span, RollingSpan):
        figures = figures_of(state, proposal.budget_id, span, now_ms)
        return figures.spent_nano, figures.held_nano
    ring = state.rings.get(ring_slot(proposal.budget_id, span))
    return (0, 0) if ring is None else (ring.spent_at(ring_low(span, now_ms)), ring.held_nano)


def _is_stale(span: Span, now_ms: int) -> bool:
    return isinstance(span, CalendarSpan) and not span.start_ms <= now_ms < span.end_ms


def _slot(budget_id: str, span: Span) -> WindowSlot | RingSlot:
    return ring_slot(budget_id, span) if isinstance(span, RollingSpan) else window_slot(budget_id, span)


def _still_implied(hold: Hold, proposals: Sequence[Proposal]) -> tuple[Charge, ...]:
    """The hold's implied charges, but for those of a budget that is proposed in another window than it is held in."""
    if not hold.implied:
        return ()
    held = {_slot(each.budget_id, parse_span(each.window)) for each in hold.charges}
    anew = {each.budget_id for each in proposals if _slot(each.budget_id, each.span) not in held}
    return tuple(each for each in hold.implied if each.budget_id not in anew)


def _by_slot(amounts: Iterable[tuple[Charge, int]]) -> dict[WindowSlot | RingSlot, int]:
    found: dict[WindowSlot | RingSlot, int] = {}
    for charge, amount_nano in amounts:
        slot = _slot(charge.budget_id, parse_span(charge.window))
        found[slot] = plus(found.get(slot, 0), amount_nano)
    return found


def _left(
    proposals: Iterable[Proposal],
    kept: Collection[Proposal],
    amount_nano: int,
    before_nano: Mapping[WindowSlot | RingSlot, int],
) -> Iterator[tuple[Charge, int]]:
    """What each proposal's budget holds on beside the new amount, of those that it is charged to."""
    for each in proposals:
        spare_nano = before_nano.get(_slot(each.budget_id, each.span), 0) - (amount_nano if each in kept else 0)
        if spare_nano > 0:
            yield each.charge(), spare_nano


def _choose(
    proposals: Sequence[Proposal],
    standings: Sequence[Standing],
    amount_nano: int,
    before_nano: Mapping[WindowSlot | RingSlot, int],
) -> tuple[list[Proposal], list[Lacking]]:
    """What the amount is charged to, and what refuses it. `before_nano` is what the call has held until now."""
    kept: list[Proposal] = []
    lacking: list[Lacking] = []
    for proposal, each in zip(proposals, standings, strict=True):
        grows = amount_nano > before_nano.get(_slot(proposal.budget_id, proposal.span), -1)
        if grows and each.remaining_nano < amount_nano:
            if proposal.full_rule == "parent":
                continue
            if proposal.full_rule in _REFUSING:
                lacking.append((proposal, each))
        kept.append(proposal)
    return kept, lacking


def _refused(state: OrgState, lacking: Sequence[Lacking], amount_nano: int, now_ms: int) -> Refused:
    buckets: dict[str, Buckets] = {}
    for proposal, _ in lacking:
        span = proposal.span
        if isinstance(span, RollingSpan):
            ring = state.rings.get(ring_slot(proposal.budget_id, span))
            buckets[proposal.budget_id] = {} if ring is None else ring.buckets
    return refusal(state.config_version, now_ms, amount_nano, lacking, buckets)


def _admitted(state: OrgState, proposals: Sequence[Proposal], hold: Hold, now_ms: int) -> Admitted:
    standings = _standings(state, charged(proposals, hold.charges), now_ms)
    return Admitted(state.config_version, now_ms, hold.charges, standings, hold.expires_at_ms, hold.option)
