"""Why an identified call is not made, told to the client and to the ledger."""

import time
from collections.abc import Mapping
from typing import Final

import structlog

from services.core.budgets import Standing
from services.core.codec_fields import format_time
from services.core.estimate import Bound
from services.core.events import CallFacts, Denial
from services.core.hotstate import Refused
from services.core.money import format_usd
from services.core.ports import OutboxEvent, OutboxFullError, UnavailableError
from services.gateway.observe import CallSpan, event_headers
from services.gateway.record import Recorder
from services.gateway.refusal import RefusedError

log = structlog.get_logger()

BUDGET_STATUS: Final = 402
# A client that waits longer than this is better told than held up (CLIENTS.md).
_SHORT_WAIT_MS: Final = 60_000


class Denier:
    """Makes refusals of identified calls, each with its event."""

    def __init__(self, outbox: Recorder, header_prefix: str) -> None:
        self._outbox = outbox
        self._transaction_header = (header_prefix + "transaction-id").encode()

    def denied(
        self,
        transaction_id: str,
        facts: CallFacts,
        span: CallSpan,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        fields: Mapping[str, object] | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        estimate_nano: int = 0,
        budget: Standing | None = None,
    ) -> RefusedError:
        """The refusal of an identified call, on its way to the ledger."""
        denial = Denial(
            transaction_id=transaction_id,
            time_ms=time.time_ns() // 1_000_000,
            facts=facts,
            code=code,
            reason=message,
            estimate_nano=estimate_nano,
            budget_id=budget.budget_id if budget is not None else None,
            scope=budget.scope if budget is not None else None,
            limit_nano=budget.limit_nano if budget is not None else None,
            spent_nano=budget.spent_nano if budget is not None else None,
            held_nano=budget.held_nano if budget is not None else None,
        )
        try:
            self._outbox.append([OutboxEvent(denial, event_headers(span))])
        except (OutboxFullError, UnavailableError) as error:
            # It cost nothing: the client is told the true reason, and the missing event is no missing money.
            log.warning("denial_not_recorded", transaction_id=transaction_id, code=code, reason=str(error))
        transaction = (self._transaction_header, transaction_id.encode())
        return RefusedError(
            status,
            code,
            message,
            param=param,
            fields={**(fields or {}), "transaction_id": transaction_id},
            headers=(*headers, transaction),
        )

    def exhausted(
        self, transaction_id: str, facts: CallFacts, span: CallSpan, bound: Bound, answer: Refused, status: int
    ) -> RefusedError:
        """The refusal of a call that a budget has no room for."""
        first = answer.exhausted[0]
        resets_at = format_time(first.resets_at_ms)
        message = (
            f"budget {first.budget_id} of {first.scope} has ${format_usd(first.remaining_nano)} left of "
            f"${format_usd(first.limit_nano)}, and this call could cost up to ${format_usd(bound.amount_nano)}; "
        )
        # Holds end in milliseconds to minutes: the window's end would be a wrong thing to wait for.
        is_held_up = all(each.limit_nano - each.spent_nano >= bound.amount_nano for each in answer.exhausted)
        headers: tuple[tuple[bytes, bytes], ...]
        if is_held_up:
            message += f"${format_usd(first.held_nano)} is held by other calls and may come free shortly"
            headers = ((b"retry-after", b"1"),)
        else:
            message += f"it resets at {resets_at}"
            headers = ((b"x-should-retry", b"false"), *_worth_waiting(answer, bound.amount_nano))
        fields = {
            "budget_id": first.budget_id,
            "scope": first.scope,
            "limit_usd": format_usd(first.limit_nano),
            "spent_usd": format_usd(first.spent_nano),
            "held_usd": format_usd(first.held_nano),
            "remaining_usd": format_usd(first.remaining_nano),
            "estimate_usd": format_usd(bound.amount_nano),
            "resets_at": resets_at,
        }
        return self.denied(
            transaction_id,
            facts,
            span,
            status,
            "budget_exhausted",
            message,
            fields=fields,
            headers=headers,
            estimate_nano=bound.amount_nano,
            budget=first,
        )


def _worth_waiting(answer: Refused, amount_nano: int) -> tuple[tuple[bytes, bytes], ...]:
    """``Retry-After``, when every budget in the way turns soon and has room for the call then."""
    wait_ms = max(each.resets_at_ms for each in answer.exhausted) - answer.now_ms
    if wait_ms > _SHORT_WAIT_MS or any(each.limit_nano < amount_nano for each in answer.exhausted):
        return ()
    return ((b"retry-after", b"%d" % max(1, -(-wait_ms // 1000))),)
