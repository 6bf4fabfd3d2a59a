"""What ``reserve.lua`` and ``resize.lua`` are asked and answer, as `core.reserve` says it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from services.adapters.valkey_connection import Argument
from services.adapters.valkey_scripts import org_key, parse_charges, proposal_arguments
from services.core.budgets import Proposal, standing
from services.core.hotstate import Admitted, Cold, FoundHold, HoldRequest, Refused, ReserveAnswer, StaleWindow, plus
from services.core.reserve import Lacking, at_bucket, charged, of_option, options_of, refusal
from services.core.windows import RollingSpan


def reserve_call(request: HoldRequest) -> tuple[list[Argument], list[Argument]]:
    """Keys and arguments of ``reserve.lua``."""
    keys, arguments = _call(request)
    _add_proposals(request.org, request.proposals, keys, arguments)
    for option in request.alternatives:
        _add_proposals(request.org, option.proposals, keys, arguments)
    for option in request.alternatives:
        arguments += (option.amount_nano, option.context, len(option.proposals))
    return keys, arguments


def reserve_answer(request: HoldRequest, answer: Sequence[Any]) -> ReserveAnswer:
    """What ``reserve.lua`` has answered."""
    status = answer[0]
    if status == b"cold":
        return Cold()
    version, now_ms = int(answer[1]), answer[2]
    if status == b"stale":
        return StaleWindow(version, now_ms)
    if status == b"refused":
        return _refused(at_bucket(request.proposals, now_ms), request.amount_nano, version, now_ms, answer[3:])
    options = options_of(request)
    number: int = answer[3]
    option = of_option(options, number)
    proposals = at_bucket(option.proposals, now_ms)
    if status == b"known":
        amount, context, *figures = answer[6:]
        found = FoundHold(int(amount), context.decode())
        return replace(_as_it_is(proposals, answer[1:6], figures), found=found)
    kept, standings = [], []
    for index, proposal in enumerate(proposals):
        spent, held = answer[5 + 2 * index : 7 + 2 * index]
        if spent:
            kept.append(proposal.charge())
            standings.append(standing(proposal, int(spent), plus(int(held), option.amount_nano)))
    return Admitted(version, now_ms, tuple(kept), tuple(standings), int(answer[4]), number)


def resize_call(request: HoldRequest) -> tuple[list[Argument], list[Argument]]:
    """Keys and arguments of ``resize.lua``."""
    keys, arguments = _call(request)
    arguments.append(org_key(request.org, ""))
    _add_proposals(request.org, request.proposals, keys, arguments, keeps_fixed=True)
    return keys, arguments


def resize_answer(request: HoldRequest, answer: Sequence[Any]) -> ReserveAnswer | None:
    """What ``resize.lua`` has answered."""
    status = answer[0]
    if status == b"gone":
        return None
    if status == b"cold":
        return Cold()
    version, now_ms = int(answer[1]), answer[2]
    if status == b"stale":
        return StaleWindow(version, now_ms)
    proposals = at_bucket(request.proposals, now_ms, keeps_fixed=True)
    if status == b"refused":
        return _refused(proposals, request.amount_nano, version, now_ms, answer[3:])
    return _as_it_is(proposals, answer[1:6], answer[6:])


def _call(request: HoldRequest) -> tuple[list[Argument], list[Argument]]:
    org, name = request.org, request.reservation_id
    keys: list[Argument] = [org_key(org, "epoch"), org_key(org, "cfg"), org_key(org, f"h:{name}"), org_key(org, "hx")]
    return keys, [name, request.hold_ms, request.amount_nano, request.context]


def _add_proposals(
    org: str,
    proposals: Sequence[Proposal],
    keys: list[Argument],
    arguments: list[Argument],
    *,
    keeps_fixed: bool = False,
) -> None:
    for proposal in proposals:
        key, words = proposal_arguments(org, proposal, keeps_fixed and proposal.is_fixed)
        keys.append(key)
        arguments += words


def _as_it_is(proposals: Sequence[Proposal], told_of_it: Sequence[Any], figures: Sequence[Any]) -> Admitted:
    """A hold as it is: its charges are told, and the figures have it in them."""
    version, now_ms, number, expires_at_ms, charges_text = told_of_it
    charges = parse_charges(charges_text)
    told = {each.budget_id: at for each, at in zip(proposals, range(0, len(figures), 2), strict=True)}
    standings = tuple(
        standing(each, int(figures[told[each.budget_id]]), int(figures[told[each.budget_id] + 1]))
        for each in charged(proposals, charges)
    )
    return Admitted(int(version), now_ms, charges, standings, int(expires_at_ms), number)


def _refused(
    proposals: Sequence[Proposal], amount_nano: int, version: int, now_ms: int, in_the_way: Sequence[Any]
) -> Refused:
    lacking: list[Lacking] = []
    buckets: dict[str, dict[int, int]] = {}
    for index, spent, held, ring in in_the_way:
        proposal = proposals[index]
        lacking.append((proposal, standing(proposal, int(spent), int(held))))
        if isinstance(proposal.span, RollingSpan):
            # The rest of a ring is named in letters.
            fields = zip(ring[::2], ring[1::2], strict=True)
            buckets[proposal.budget_id] = {int(bucket): int(nano) for bucket, nano in fields if bucket.isdigit()}
    return refusal(version, now_ms, amount_nano, lacking, buckets)
