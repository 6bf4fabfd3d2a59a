"""What a call did cost: usage into money, money into the settlement event, exactly one a call."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from services.core.budgets import Standing
from services.core.calibrate import Calibration
from services.core.estimate import within_bound
from services.core.events import ComponentCost, Outcome, Settlement, UsageSource
from services.core.money import format_usd
from services.core.ports import OutboxEvent, OutboxFullError, UnavailableError
from services.core.pricing import price_usage, unpriced_counts
from services.gateway.admit import AdmittedCall, calibration_key
from services.gateway.meter import Metered
from services.gateway.observe import Observer, event_headers
from services.gateway.record import Recorder
from services.gateway.vendors import RequestFacts

log = structlog.get_logger()

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

    def __init__(self, outbox: Recorder, observer: Observer, calibration: Calibration) -> None:
        self._outbox = outbox
        self._observer = observer
        self._calibration = calibration

    def settle(self, call: AdmittedCall, outcome: Outcome, metered: Metered, http_status: int) -> Settled:
        """Prices what was used and records it. Call once a call."""
        usage = within_bound(_at_most(call, metered), metered.source, call.bound)
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
            unpriced=unpriced_counts(call.price, usage, context),
            attempts=tuple(call.attempts),
        )
        try:
            self._outbox.append([OutboxEvent(settlement, event_headers(call.span))])
        except (OutboxFullError, UnavailableError) as error:
            # The hold stays, and its expiry books the estimate: caps are tighter than need be, never looser.
            log.error(
                "settlement_not_recorded",
                transaction_id=call.transaction_id,
                cost_usd=format_usd(cost_nano),
                reason=str(error),
            )
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
        usage = {
            "input_tokens": call.bound.input_tokens,
            "output_tokens": call.bound.output_tokens,
            **call.bound.counts,
            **call.request.counted,
        }
        return self.settle(call, "partial", Metered(usage, "estimated", complete=False), http_status)


def _at_most(call: AdmittedCall, metered: Metered) -> Mapping[str, int]:
    """The usage, with input that no answer told of at the call's own bound: more may have been read than was sent."""
    reading = metered.reading
    if metered.source != "estimated" or reading is None or "input_tokens" in reading.usage:
        return metered.usage
    if "input_tokens" not in metered.usage:
        return metered.usage
    return {**metered.usage, "input_tokens": call.bound.input_tokens}


def price_context(request: RequestFacts, metered: Metered) -> dict[str, str]:
    """What picks a call's rates besides its model: what its request decided, and what its answer says."""
    said = {} if metered.reading is None else metered.reading.context
    return {**said, **request.context}


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
