"""Why an identified call is not made, told to the client and to the ledger."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from services.core.budgets import Budget, Standing
from services.core.codec_fields import format_time
from services.core.events import CallFacts, Denial
from services.core.hotstate import Refused
from services.core.matching import Applicable
from services.core.money import format_usd
from services.core.ports import OutboxEvent, OutboxFullError, UnavailableError
from services.core.windows import CalendarWindow, SessionWindow
from services.gateway.observe import CallSpan, event_headers
from services.gateway.record import Recorder
from services.gateway.refusal import RefusedError

log = structlog.get_logger()

BUDGET_STATUS: Final = 402
# A client that waits longer than this is better told than held up.
_SHORT_WAIT_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class FullBudget:
    """What a refusal says of a budget without room: its code, the budget's name in a sentence, and its fields."""

    code: str
    name: str
    fields: Mapping[str, object]


class Denier:
    """Makes refusals of identified calls, each with its event."""

    def __init__(self, outbox: Recorder, header_prefix: str) -> None:
        self._outbox = outbox
        self._transaction_header = (header_prefix + "transaction-id").encode()
        self.session_header: Final = header_prefix + "session"

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
        self,
        transaction_id: str,
        facts: CallFacts,
        span: CallSpan,
        amount_nano: int,
        answer: Refused,
        status: int,
        budget: Budget | None = None,
    ) -> RefusedError:
        """The refusal of a call of `amount_nano` that a budget has no room for.

        It names the tightest that is in the way: the one with the least left, of equals the first by id. `budget` is
        that one, where it is still in force.
        """
        first = answer.exhausted[0]
        full = name_full(first, amount_nano, budget, facts.billing_class)
        # Holds end in milliseconds to minutes: the window's end would be a wrong thing to wait for.
        is_held_up = all(_is_held_up(each, amount_nano) for each in answer.exhausted)
        retry_at_ms = answer.now_ms + 1000 if is_held_up else answer.room_at_ms
        headers = ((b"retry-after", b"1"),) if is_held_up else ((b"x-should-retry", b"false"), *_worth_waiting(answer))
        fields = dict(full.fields)
        if retry_at_ms is not None:
            fields["retry_at"] = format_time(retry_at_ms)
        message = (
            f"{full.name} has ${format_usd(first.remaining_nano)} left of ${format_usd(first.limit_nano)}, "
            f"and this call could cost up to ${format_usd(amount_nano)}; {outlook(first, amount_nano, answer.now_ms)}"
        )
        return self.denied(
            transaction_id,
            facts,
            span,
            status,
            full.code,
            message,
            fields=fields,
            headers=headers,
            estimate_nano=amount_nano,
            budget=first,
        )


def by_closed_cap(closed: Applicable, config_version: int, now_ms: int) -> Refused:
    """The refusal of a cap of nothing (`matching.closed_cap`), which no hot state needs to be asked for."""
    standing = Standing(closed.budget_id, closed.scope, 0, spent_nano=0, held_nano=0, resets_at_ms=None)
    return Refused(config_version, now_ms, (standing,))


def outlook(first: Standing, amount_nano: int, now_ms: int) -> str:
    """What waiting brings to who is refused `amount_nano` at `now_ms` by a budget that stands at `first`: a clause."""
    if _is_held_up(first, amount_nano):
        return f"${format_usd(first.held_nano)} is held by other calls and may come free shortly"
    if first.limit_nano <= 0 or first.limit_nano < amount_nano:
        return "the whole limit has no room for that, so waiting brings nothing"
    if first.resets_at_ms is None:
        return "it never resets"
    if first.resets_at_ms <= now_ms:
        return "its window is over, so waiting brings nothing"  # that of a hold which is to grow
    return f"it resets at {format_time(first.resets_at_ms)}"


def _is_held_up(standing: Standing, amount_nano: int) -> bool:
    """Whether the amount would have room were it not for the holds of others."""
    return standing.held_nano > 0 and standing.limit_nano - standing.spent_nano >= amount_nano


def name_full(first: Standing, amount_nano: int, budget: Budget | None, billing_class: str) -> FullBudget:
    """What a refusal of `amount_nano` nano-dollars says of `budget`, which stands at `first` and has no room for it.

    A cell of the cap matrix (BU-7) has a code of its own, and is named by its period and `billing_class`.
    """
    fields: dict[str, object] = {
        "budget_id": first.budget_id,
        "scope": first.scope,
        "limit_usd": format_usd(first.limit_nano),
        "spent_usd": format_usd(first.spent_nano),
        "held_usd": format_usd(first.held_nano),
        "remaining_usd": format_usd(first.remaining_nano),
        "estimate_usd": format_usd(amount_nano),
        "resets_at": None if first.resets_at_ms is None else format_time(first.resets_at_ms),
    }
    if budget is None or not budget.is_cap:
        return FullBudget("budget_exhausted", f"budget {first.budget_id} of {first.scope}", fields)
    kind, words = _cap_kind(budget)
    fields |= {"cap": kind, "billingClass": billing_class}
    return FullBudget("BudgetCapExceeded", f"the {words} cap on {billing_class}", fields)


def _cap_kind(cap: Budget) -> tuple[str, str]:
    """A cap as the cap matrix calls it, and as a person would."""
    if isinstance(cap.window, SessionWindow):
        return "perSession", "per-session"
    if isinstance(cap.window, CalendarWindow) and cap.window.unit == "month":
        return "monthly", "monthly"
    return "daily", "daily"


def _worth_waiting(answer: Refused) -> tuple[tuple[bytes, bytes], ...]:
    """``Retry-After``, when every budget in the way has room for the call soon."""
    if answer.room_at_ms is None:
        return ()
    wait_ms = answer.room_at_ms - answer.now_ms
    return ((b"retry-after", b"%d" % max(1, -(-wait_ms // 1000))),) if wait_ms <= _SHORT_WAIT_MS else ()
