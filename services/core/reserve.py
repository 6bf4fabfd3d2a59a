"""The reserve decision: check every budget, then hold against all of them or none.

Twin of ``adapters/lua/reserve.lua``, ``resize.lua``, ``release.lua``, ``claim.lua`` and ``peek.lua``.
"""

from collections.abc import Sequence
from dataclasses import replace

from services.core.budgets import Charge, Proposal, Standing, standing
from services.core.hotstate import (
    CLAIM_MS,
    Admitted,
    Cold,
    DueHold,
    Figures,
    Hold,
    HoldRequest,
    OrgState,
    Refused,
    ReserveAnswer,
    Ring,
    StaleWindow,
    is_forgotten,
    plus,
    ring_low,
    ring_slot,
    window_slot,
)
from services.core.windows import CalendarSpan, RollingSpan, parse_span


def reserve(state: OrgState, request: HoldRequest, now_ms: int) -> ReserveAnswer:
    """Holds the request or says why not; holds nothing unless it answers `Admitted`.

    A reservation id that already has a hold, ended or not, gets the charges it got (P2). A calendar span that does not
    hold `now_ms` is stale. A rolling span's bucket is set from `now_ms` here, whatever was proposed.
    """
    if state.epoch is None:
        return Cold()
    proposals = at_bucket(request.proposals, now_ms)
    known = state.holds.get(request.reservation_id)
    if known is not None:
        _advance(state, proposals, now_ms)
        return _admitted(state, proposals, known, now_ms)
    for proposal in proposals:
        span = proposal.span
        if isinstance(span, CalendarSpan) and not span.start_ms <= now_ms < span.end_ms:
            return StaleWindow(state.config_version, now_ms)
    _advance(state, proposals, now_ms)
    standings = _standings(state, proposals, now_ms)
    exhausted = lacking(standings, request.amount_nano)
    if exhausted:
        return Refused(state.config_version, now_ms, exhausted)
    hold = Hold(
        request.amount_nano,
        tuple(proposal.charge() for proposal in proposals),
        request.context,
        now_ms + request.hold_ms,
        admitted_at_ms=now_ms,
    )
    for charge in hold.charges:
        add_held(state, charge, hold.amount_nano, now_ms)
    state.holds[request.reservation_id] = hold
    state.due[request.reservation_id] = hold.expires_at_ms
    return _admitted(state, proposals, hold, now_ms)


def resize(state: OrgState, request: HoldRequest, now_ms: int) -> ReserveAnswer | None:
    """Changes what an open hold holds, and until when, all or nothing; None when there is no such hold any more.

    The proposals are the hold's own charges, in order, with their budgets' limits. Each budget must have room for the
    new amount once the old one is out, unless the new one is no larger; the standings of a refusal are without the old.
    """
    if state.epoch is None:
        return Cold()
    hold = state.holds.get(request.reservation_id)
    charges = tuple(proposal.charge() for proposal in request.proposals)
    if hold is None or hold.phase != "held" or hold.charges != charges:
        return None
    if state.due[request.reservation_id] != hold.expires_at_ms:
        return None  # a reaper has it, and its expiry may be on the way
    proposals = at_bucket(request.proposals, now_ms)
    _advance(state, proposals, now_ms)
    for charge in hold.charges:
        add_held(state, charge, -hold.amount_nano, now_ms)
    standings = _standings(state, proposals, now_ms)
    exhausted = lacking(standings, request.amount_nano)
    if exhausted and request.amount_nano > hold.amount_nano:
        for charge in hold.charges:
            add_held(state, charge, hold.amount_nano, now_ms)
        return Refused(state.config_version, now_ms, exhausted)
    for charge in hold.charges:
        add_held(state, charge, request.amount_nano, now_ms)
    hold.amount_nano, hold.context, hold.resized_at_ms = request.amount_nano, request.context, now_ms
    hold.expires_at_ms = state.due[request.reservation_id] = now_ms + request.hold_ms
    return _admitted(state, proposals, hold, now_ms)


def release(state: OrgState, reservation_id: str, now_ms: int) -> bool:
    """Takes back a hold whose reservation was never recorded; false when there is no such hold any more."""
    hold = state.holds.get(reservation_id)
    if hold is None or hold.phase != "held":
        return False
    for charge in hold.charges:
        add_held(state, charge, -hold.amount_nano, now_ms)
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
    return None if state.epoch is None else _standings(state, at_bucket(proposals, now_ms), now_ms)


def at_bucket(proposals: Sequence[Proposal], now_ms: int) -> tuple[Proposal, ...]:
    """The proposals with every rolling span moved to the bucket that holds `now_ms`."""
    moved = []
    for each in proposals:
        span = each.span
        if isinstance(span, RollingSpan) and span.bucket != now_ms // span.bucket_ms:
            moved.append(replace(each, span=replace(span, bucket=now_ms // span.bucket_ms)))
        else:
            moved.append(each)
    return tuple(moved)


def lacking(standings: Sequence[Standing], amount_nano: int) -> tuple[Standing, ...]:
    """The budgets without room for `amount_nano`, tightest first."""
    return tuple(
        sorted(
            (each for each in standings if each.remaining_nano < amount_nano),
            key=lambda each: (each.remaining_nano, each.budget_id),
        )
    )


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
        figures: Ring | Figures = ring_of(state, charge.budget_id, span, now_ms)
    else:
        figures = state.windows.setdefault(window_slot(charge.budget_id, span), Figures())
    figures.held_nano = plus(figures.held_nano, delta_nano)


def _advance(state: OrgState, proposals: Sequence[Proposal], now_ms: int) -> None:
    for proposal in proposals:
        span = proposal.span
        if isinstance(span, RollingSpan) and ring_slot(proposal.budget_id, span) in state.rings:
            ring_of(state, proposal.budget_id, span, now_ms)


def _standings(state: OrgState, proposals: Sequence[Proposal], now_ms: int) -> tuple[Standing, ...]:
    return tuple(standing(each, *_figures(state, each, now_ms)) for each in proposals)


def _figures(state: OrgState, proposal: Proposal, now_ms: int) -> tuple[int, int]:
    span = proposal.span
    if isinstance(span, CalendarSpan):
        window = state.windows.get(window_slot(proposal.budget_id, span), Figures())
        return window.spent_nano, window.held_nano
    ring = state.rings.get(ring_slot(proposal.budget_id, span))
    return (0, 0) if ring is None else (ring.spent_at(ring_low(span, now_ms)), ring.held_nano)


def _admitted(state: OrgState, proposals: Sequence[Proposal], hold: Hold, now_ms: int) -> Admitted:
    return Admitted(
        state.config_version, now_ms, hold.charges, _standings(state, proposals, now_ms), hold.expires_at_ms
    )
