"""What a call did cost: usage into money, money into the settlement event, exactly one a call."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from services.core.budgets import Standing
from services.core.calibrate import Calibration
from services.core.estimate import Bound, unseen_tokens, within_bound
from services.core.events import ComponentCost, Outcome, Settlement, UsageSource
from services.core.money import format_usd
from services.core.pricing import price_usage, unpriced_contexts, unpriced_counts
from services.gateway.admit import AdmittedCall
from services.gateway.extend import covered_tokens
from services.gateway.meter import Metered
from services.gateway.observe import Observer, event_headers
from services.gateway.options import calibration_key
from services.gateway.unrecorded import Settlements
from services.gateway.vendors import RequestFacts

NOTHING_USED: Final = Metered({}, "none", complete=True)


@dataclass(frozen=True, slots=True)
class Settled:
    """A call's cost and usage, as settled. `remaining_nano`: what its tightest budget has left, None without one."""

    outcome: Outcome
    source: UsageSource
    usage: Mapping[str, int]
    cost_nano: int
    remaining_nano: int | None

    @property
    def tokens_in(self) -> int:
        """Input tokens, all kinds."""
        return self.usage.get("input_tokens", 0)

    @property
    def tokens_out(self) -> int:
        """Output tokens, all kinds."""
        return self.usage.get("output_tokens", 0)


class Settler:
    """Writes settlements. Never waits, so that no cancellation can come between a call's end and its record."""

    def __init__(self, settlements: Settlements, observer: Observer, calibration: Calibration) -> None:
        self._settlements = settlements
        self._observer = observer
        self._calibration = calibration

    def settle(self, call: AdmittedCall, outcome: Outcome, metered: Metered, http_status: int) -> Settled:
        """Prices what was used and records it. Call once a call."""
        metered, bound = _within_hold(call, outcome, metered)
        reported = () if metered.reading is None else metered.reading.usage
        usage = within_bound(_at_most(call, metered), metered.source, bound, reported)
        context = price_context(call.request, metered)
        components: tuple[ComponentCost, ...] = ()
        if metered.source != "none":
            components = price_usage(call.price, usage, context)
        cost_nano = sum(each.cost_nano for each in components)
        settlement = Settlement(
            transaction_id=call.transaction_id,
            time_ms=time.time_ns() // 1_000_000,
            facts=call.facts,
            outcome=outcome,
            usage_source=metered.source,
            usage=usage,
            components=components,
            cost_nano=cost_nano,
            held_nano=call.held_nano,
            charges=call.charges,
            http_status=http_status,
            retry_count=max(0, len(call.attempts) - 1),
            latency_us=call.timing.latency_us(),
            estimate_mode=call.estimate_mode,
            price_context=context,
            unpriced=(*unpriced_counts(call.price, usage, context), *unpriced_contexts(call.price, context)),
            attempts=tuple(call.attempts),
            parent_charged=call.parent_charged,
            admitted_at_ms=call.admitted_at_ms,
        )
        self._settlements.record(settlement, event_headers(call.span))
        self._observer.settled(call.target.vendor, outcome, cost_nano)
        if cost_nano > call.held_nano:
            self._observer.underestimated(call.target.vendor, call.estimate_mode)
        if metered.source in ("reported", "counted") and outcome == "completed":
            self._calibration.learn(calibration_key(call.facts), call.bound.amount_nano, cost_nano)
        freed_nano = call.held_nano - cost_nano
        settled = Settled(outcome, metered.source, usage, cost_nano, _remaining(call.standing, freed_nano))
        _end_span(call, settled, http_status)
        return settled

    def settle_unanswered(self, call: AdmittedCall, *, was_sent: bool, http_status: int) -> Settled:
        """Settles a call whose vendor never answered.

        A vendor that was never reached can't charge for anything. One that hung up, or that Farthing gave up waiting
        for, may have done everything: its cost is taken as the bound, because an unknown cost is never zero.
        """
        if not was_sent:
            return self.settle(call, "vendor_error", NOTHING_USED, http_status)
        if call.request.is_unpriced:
            return self.settle(call, "partial", replace(NOTHING_USED, complete=False), http_status)
        return self.settle(call, "partial", at_bound(call), http_status)


def at_bound(call: AdmittedCall) -> Metered:
    """What a call used whose vendor may have done all of it and told nothing."""
    usage = {
        "input_tokens": call.bound.input_tokens,
        "output_tokens": call.bound.output_tokens,
        **call.bound.counts,
        **call.request.counted,
    }
    return Metered(usage, "estimated", complete=False)


def _within_hold(call: AdmittedCall, outcome: Outcome, metered: Metered) -> tuple[Metered, Bound]:
    """What was used, and its bound. A stream that is held by steps and ended early never costs more than was held.

    All that came was within the hold, or was not handed on. Of that last piece, even a vendor's own count is taken for
    an estimate: what had been written when the vendor learned of the end, its answer can't say.
    """
    if call.estimate_mode != "stepped" or outcome not in ("partial", "cut_off"):
        return metered, call.bound
    bound = replace(call.bound, output_tokens=covered_tokens(call))
    reading = metered.reading
    if reading is not None and reading.usage.get("output_tokens", 0) > bound.output_tokens:
        known = {name: count for name, count in reading.usage.items() if name != "output_tokens"}
        metered = replace(metered, source="estimated", reading=replace(reading, usage=known, complete=True))
    return metered, bound


def _at_most(call: AdmittedCall, metered: Metered) -> Mapping[str, int]:
    """The usage, with estimates for what could not be seen: input, and output of an answer that broke off.

    Input that no answer told of is at the call's own bound: more may have been read than was sent. A model that reasons
    or draws writes long before any text comes; what of that the vendor did count is in the estimate already.
    """
    reading = metered.reading
    if metered.source != "estimated" or reading is None:
        return metered.usage
    usage = dict(metered.usage)
    if "input_tokens" in usage and "input_tokens" not in reading.usage:
        usage["input_tokens"] = call.bound.input_tokens
    if "output_tokens" in usage and "output_tokens" not in reading.usage and not reading.complete:
        unseen = unseen_tokens(call.timing.unseen_ms())
        usage["output_tokens"] += max(0, unseen - reading.usage.get("reasoning_tokens", 0))
    return usage


def price_context(request: RequestFacts, metered: Metered) -> dict[str, str]:
    """What picks a call's rates besides its model: what its request decided, and what its answer says."""
    said = {} if metered.reading is None else metered.reading.brief_context
    # Where both speak, the vendor knows better: it may serve another tier than it was asked for.
    return {**request.context, **said}


def _end_span(call: AdmittedCall, settled: Settled, http_status: int) -> None:
    call.span.end(
        {
            "gen_ai.usage.input_tokens": settled.tokens_in,
            "gen_ai.usage.output_tokens": settled.tokens_out,
            "http.response.status_code": http_status,
            "farthing.transaction_id": call.transaction_id,
            "farthing.cost_usd": format_usd(settled.cost_nano),
            "farthing.outcome": settled.outcome,
        },
        error=None if settled.outcome == "completed" else settled.outcome,
    )


def _remaining(standing: Standing | None, freed_nano: int) -> int | None:
    return None if standing is None else standing.remaining_nano + freed_nano
