"""What all events of one call say together: a transaction. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from services.core.codec import event_fields, facts_fields
from services.core.codec_fields import format_time
from services.core.events import Denial, Event, Expiry, HoldResized, Reservation, Settlement
from services.core.money import format_usd

State = Literal["held", "settled", "denied", "expired"]
STATES: Final[tuple[State, ...]] = ("held", "settled", "denied", "expired")


@dataclass(slots=True)
class Transaction:
    """The events of one call. An event of a kind that is there already changes nothing."""

    reservation: Reservation | None = None
    resized: HoldResized | None = None
    settlement: Settlement | None = None
    expiry: Expiry | None = None
    denial: Denial | None = None
    trace_id: str = ""

    def add(self, event: Event, trace_id: str) -> None:
        """Takes one more event in."""
        self.trace_id = self.trace_id or trace_id
        match event:
            case Reservation():
                self.reservation = self.reservation or event
            case HoldResized():
                if self.resized is None or self.resized.time_ms <= event.time_ms:
                    self.resized = event
            case Settlement():
                self.settlement = self.settlement or event
            case Expiry():
                self.expiry = self.expiry or event
            case Denial():
                self.denial = self.denial or event

    @property
    def events(self) -> tuple[Event, ...]:
        """Its events, the one that opened it first."""
        every = (self.reservation, self.denial, self.resized, self.settlement, self.expiry)
        return tuple(event for event in every if event is not None)

    @property
    def state(self) -> State:
        """Where the call stands. A settlement corrects an expiry."""
        if self.settlement is not None:
            return "settled"
        if self.expiry is not None:
            return "expired"
        return "held" if self.reservation is not None or self.resized is not None else "denied"

    @property
    def cost_nano(self) -> int:
        """What the call has put into spend so far: its cost, or what its expiry booked."""
        if self.settlement is not None:
            return self.settlement.cost_nano
        return self.expiry.booked_nano if self.expiry is not None else 0

    def fields(self) -> dict[str, Any]:
        """The transaction as JSON. What is not known (yet) is null."""
        first = self.events[0]
        return {
            "transaction_id": first.transaction_id,
            "state": self.state,
            "created_at": format_time(first.time_ms),
            # A call may have gone on to another vendor: what its last event says of it is what was paid for.
            **facts_fields((self.settlement or self.resized or first).facts),
            "cost_usd": format_usd(self.cost_nano),
            **self._hold_fields(),
            "opened": _pick(self.reservation, "held_usd", "charges", "expires_at", "parent_charged"),
            **self._budget_fields(),
            **self._settlement_fields(),
            "expiry": _pick(self.expiry, "time", "booked_usd"),
            "denial": _pick(self.denial, "code", "reason", "estimate_usd", "budget"),
            "trace_id": self.trace_id or None,
        }

    def _hold_fields(self) -> dict[str, Any]:
        held = self.reservation or self.settlement or self.expiry
        fields = event_fields(held) if held is not None else {}
        if self.resized is not None:
            fields = {**fields, **event_fields(self.resized)}
        if self.settlement is not None:  # a change that comes later than the end has changed nothing
            fields = {**fields, **(_pick(self.settlement, "held_usd", "charges") or {})}
        return {name: fields.get(name) for name in ("held_usd", "charges", "estimate", "expires_at")}

    def _budget_fields(self) -> dict[str, Any]:
        """Budgets that were full: those whose parents paid, and those that only watch."""
        last = self.settlement or self.reservation
        return {
            "parent_charged": None if last is None else list(last.parent_charged),
            "would_block": None if self.reservation is None else list(self.reservation.would_block),
        }

    def _settlement_fields(self) -> dict[str, Any]:
        names = (
            *("outcome", "usage_source", "usage", "components", "http_status", "retry_count", "latency_us"),
            *("price_context", "unpriced", "attempts"),
        )
        settled_at = format_time(self.settlement.time_ms) if self.settlement is not None else None
        return {"settled_at": settled_at, **(_pick(self.settlement, *names) or dict.fromkeys(names))}


def merge(events: Iterable[tuple[Event, str]]) -> dict[str, Transaction]:
    """Events with their trace ids as transactions, by id, in the order in which the ids first occur."""
    transactions: dict[str, Transaction] = {}
    for event, trace_id in events:
        transactions.setdefault(event.transaction_id, Transaction()).add(event, trace_id)
    return transactions


def _pick(event: Event | None, *names: str) -> dict[str, Any] | None:
    if event is None:
        return None
    fields = event_fields(event)
    return {name: fields[name] for name in names}
