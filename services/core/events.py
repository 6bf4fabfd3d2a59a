"""The ledger's events: immutable facts about one call. Shapes are fixed by ``schemas/events``; never content.

`reservation_id` and `transaction_id` are the same ULID-based text (``txn_…``): a call is one transaction.
Money is nano-dollars; instants are Unix milliseconds, UTC.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal

from services.core.budgets import Charge
from services.core.identity import Identity

Outcome = Literal["completed", "partial", "vendor_error", "cancelled", "cut_off"]
UsageSource = Literal["reported", "counted", "estimated", "none"]
Match = Literal["exact", "normalised", "fallback", "none"]
AttemptOutcome = Literal["answered", "refused", "failed", "timed_out", "unreachable", "broke_off"]

OUTCOMES: Final = ("completed", "partial", "vendor_error", "cancelled", "cut_off")
USAGE_SOURCES: Final = ("reported", "counted", "estimated", "none")
MATCHES: Final = ("exact", "normalised", "fallback", "none")
ATTEMPT_OUTCOMES: Final = ("answered", "refused", "failed", "timed_out", "unreachable", "broke_off")


@dataclass(frozen=True, slots=True)
class CallFacts:
    """What is known of a call when it is admitted. Every event of it repeats this: no consumer looks anything up.

    `flags` says what was out of the ordinary, each a word or a word, a colon and a name: ``fail_open`` (let through
    without a hold, because the spend state was away), ``downgraded`` (a full budget had it made by a cheaper model,
    from which it may have gone on to another vendor's), ``expression_error:bud_…`` (a budget's expression failed, which
    counts as a match). `request_hash` tells what the reservation API was asked for, so that the same request is known
    again (GW-10); empty for proxied calls.
    """

    identity: Identity
    vendor: str
    route: str
    model_requested: str
    model_priced: str
    match: Match
    catalog_version: str
    config_version: int
    auth_mode: str = "metered"
    flags: tuple[str, ...] = ()
    request_hash: str = ""

    @property
    def billing_class(self) -> str:
        """Whose money and which vendor's bill: ``metered.openai`` (BU-7)."""
        return f"{self.auth_mode}.{self.vendor}".lower()


@dataclass(frozen=True, slots=True)
class ComponentCost:
    """One priced component: `quantity` units (tokens, requests, …) at `price_nano` nano-dollars for `per` of them."""

    component: str
    quantity: int
    price_nano: int
    cost_nano: int
    per: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try to get a call answered. `http_status` is 0 when no answer began; `duration_us` ends where it began."""

    vendor: str
    model: str
    outcome: AttemptOutcome
    http_status: int
    duration_us: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """The most the call can cost is held against every budget in `charges`, until `expires_at_ms`.

    Both instants are of the hot state's clock: `time_ms` is when it admitted the call. `parent_charged` are the budgets
    that were full and let their parents pay, `would_block` those that had no room either and only watch (BU-3, BU-4).
    """

    TYPE: ClassVar[str] = "spend.reservation.created.v1"
    TOPIC: ClassVar[str] = "spend.reservations.v1"

    transaction_id: str
    time_ms: int
    facts: CallFacts
    estimate_mode: str
    input_tokens_bound: int
    output_tokens_bound: int
    held_nano: int
    charges: tuple[Charge, ...]
    expires_at_ms: int
    parent_charged: tuple[str, ...] = ()
    would_block: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Settlement:
    """What the call did cost. `held_nano` repeats the hold that it ends, `estimate_mode` how that was sized.

    `price_context` is what picked the rates besides the model (service tier, batch), `unpriced` the counts of `usage`
    that the price does not cover, `attempts` every try, in order, the one that was answered last. `admitted_at_ms` is
    the hot state's time of its reservation: 0 in events of earlier releases.
    """

    TYPE: ClassVar[str] = "spend.settlement.recorded.v1"
    TOPIC: ClassVar[str] = "spend.settlements.v1"

    transaction_id: str
    time_ms: int
    facts: CallFacts
    outcome: Outcome
    usage_source: UsageSource
    usage: Mapping[str, int]
    components: tuple[ComponentCost, ...]
    cost_nano: int
    held_nano: int
    charges: tuple[Charge, ...]
    http_status: int
    retry_count: int
    latency_us: Mapping[str, int] = field(default_factory=dict)
    estimate_mode: str = "strict"
    price_context: Mapping[str, str] = field(default_factory=dict)
    unpriced: tuple[str, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    parent_charged: tuple[str, ...] = ()
    admitted_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class HoldResized:
    """What is held for a call has changed, and until when: it goes to another vendor, or its stream needs more.

    `facts` are those of the call as it goes on. `time_ms` is of the hot state's clock.
    """

    TYPE: ClassVar[str] = "spend.hold.resized.v1"
    TOPIC: ClassVar[str] = "spend.reservations.v1"

    transaction_id: str
    time_ms: int
    facts: CallFacts
    held_nano: int
    charges: tuple[Charge, ...]
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class Expiry:
    """A hold outlived its time; `booked_nano` of it is taken as spent until a late settlement corrects it.

    `admitted_at_ms` is as in a settlement.
    """

    TYPE: ClassVar[str] = "spend.hold.expired.v1"
    TOPIC: ClassVar[str] = "spend.settlements.v1"

    transaction_id: str
    time_ms: int
    facts: CallFacts
    held_nano: int
    booked_nano: int
    charges: tuple[Charge, ...]
    admitted_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Denial:
    """A call that was refused before it cost anything. `budget` fields are set when a budget refused it."""

    TYPE: ClassVar[str] = "spend.decision.denied.v1"
    TOPIC: ClassVar[str] = "spend.decisions.v1"

    transaction_id: str
    time_ms: int
    facts: CallFacts
    code: str
    reason: str
    estimate_nano: int
    budget_id: str | None = None
    scope: str | None = None
    limit_nano: int | None = None
    spent_nano: int | None = None
    held_nano: int | None = None


Event = Reservation | HoldResized | Settlement | Expiry | Denial
EventType = type[Reservation] | type[HoldResized] | type[Settlement] | type[Expiry] | type[Denial]
EVENT_TYPES: Final[Mapping[str, EventType]] = {
    kind.TYPE: kind for kind in (Reservation, HoldResized, Settlement, Expiry, Denial)
}


@dataclass(frozen=True, slots=True)
class Stamped:
    """An event with its place in its producer's order: `sequence` grows by one an event of that producer, from 1."""

    event: Event
    producer: str
    sequence: int
