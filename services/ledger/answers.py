"""What the ledger's API answers, for its description alone: answers are written as plain JSON, without these models.

Money is a decimal string of US dollars with nine decimals, instants are RFC 3339 in UTC with milliseconds. What is not
known (yet) is null.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from services.core.estimate import HoldMode
from services.core.events import AttemptOutcome, Match, Outcome, UsageSource
from services.ledger.billing import BillingDimension
from services.ledger.query import Dimension
from services.ledger.transactions import State

Usd = Annotated[str, Field(pattern=r"^-?\d+\.\d{9}$", examples=["0.001250000"])]
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"}, examples=["2026-03-01T10:20:30.456Z"])]
Count = Annotated[int, Field(ge=0)]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorAnswer(_Answer):
    """Every error of this API: `error` for programs, `message` for people, `field` the parameter that was wrong."""

    error: str = Field(examples=["invalid_request"])
    message: str = Field(examples=["until must be later than since"])
    field: str | None = Field(default=None, examples=["until"])


class Who(_Answer):
    """Who a call is charged to. Open dimensions are null."""

    org: str
    key_id: str
    team: str | None
    agent: str | None
    user: str | None
    project: str | None
    session: str | None
    environment: str | None
    tags: list[str]


class ChargeAnswer(_Answer):
    """A budget that the call counts against, and the key of the window it was put into at admission."""

    budget_id: str
    scope: str = Field(examples=["team:ml"])
    window: str = Field(examples=["c:1764547200000:1767225600000", "r:60000:60:29411321"])


class EstimateAnswer(_Answer):
    """The bound on tokens that the hold was worked out from."""

    mode: str
    input_tokens: Count
    output_tokens: Count


class ComponentAnswer(_Answer):
    """One priced component of the cost. What is not priced by the million has its exact price for `per` units, too."""

    component: str = Field(examples=["input"])
    quantity: Count
    price_usd_per_million: Usd
    cost_usd: Usd
    price_usd: Usd | None = None
    per: Count | None = None


class AttemptAnswer(_Answer):
    """One try to get the call answered. `http_status` is 0 when no answer began."""

    vendor: str
    model: str
    outcome: AttemptOutcome
    http_status: Count
    duration_us: Count


class ExpiryAnswer(_Answer):
    """The hold outlived its time; `booked_usd` counts as spent until a late settlement corrects it."""

    time: Time
    booked_usd: Usd


class RefusingBudget(_Answer):
    """The budget that refused the call, as it stood then."""

    budget_id: str
    scope: str
    limit_usd: Usd
    spent_usd: Usd
    held_usd: Usd


class DenialAnswer(_Answer):
    """Why the call was refused."""

    code: str = Field(examples=["budget_exhausted"])
    reason: str
    estimate_usd: Usd
    budget: RefusingBudget | None


class OpenedAnswer(_Answer):
    """The hold as it was first taken, however it was changed since."""

    held_usd: Usd
    charges: list[ChargeAnswer]
    expires_at: Time
    parent_charged: list[str]


class TransactionAnswer(_Answer):
    """One call with all that its events say. `cost_usd` is what it has put into spend so far.

    `flags` is what was out of the ordinary: ``fail_open``, ``downgraded``, ``expression_error:bud_…``. Budgets that
    were full are in `parent_charged` when their parents paid, in `would_block` when they only watch.
    """

    transaction_id: str
    state: State
    created_at: Time
    identity: Who
    vendor: str
    route: str
    model_requested: str
    model_priced: str
    match: Match
    catalog_version: str
    config_version: Count
    auth_mode: str
    billing_class: str = Field(examples=["metered.openai"])
    flags: list[str]
    cost_usd: Usd
    held_usd: Usd | None
    charges: list[ChargeAnswer] | None
    parent_charged: list[str] | None
    would_block: list[str] | None
    estimate: EstimateAnswer | None
    expires_at: Time | None
    opened: OpenedAnswer | None
    settled_at: Time | None
    outcome: Outcome | None
    usage_source: UsageSource | None
    usage: dict[str, Count] | None
    components: list[ComponentAnswer] | None
    http_status: Count | None
    retry_count: Count | None
    latency_us: dict[str, Count] | None
    price_context: dict[str, str] | None
    unpriced: list[str] | None
    attempts: list[AttemptAnswer] | None
    expiry: ExpiryAnswer | None
    denial: DenialAnswer | None
    trace_id: str | None


class TransactionsAnswer(_Answer):
    """A page of transactions, newest first. `next_cursor` is what to ask the next page with; null at the end."""

    transactions: list[TransactionAnswer]
    next_cursor: str | None


class SpendFigures(_Answer):
    """Spend, and what it is made of. A call counts when it ended."""

    cost_usd: Usd
    settled: Count
    expired: Count
    input_tokens: Count
    output_tokens: Count


class SpendRow(SpendFigures):
    """The spend of one value of the dimension; null where calls left it open."""

    value: str | None


class SpendTotal(SpendFigures):
    """The sum of all rows, and how many calls were refused in the same span."""

    denied: Count


class SpendAnswer(_Answer):
    """Spend by one dimension, dearest first. `since` and `until` are what was summed up; null is without a bound.

    Of a dimension with more than a thousand values, `rows_left_off` tells how many are in the total alone.
    """

    org: str
    by: Dimension
    since: Time | None
    until: Time | None
    rows: list[SpendRow]
    rows_left_off: Count
    total: SpendTotal


class _CamelAnswer(BaseModel):
    # Below /api/admin names are written in camel case.
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True)


class BillingFigures(_CamelAnswer):
    """Spend, and what it is made of. `calls` are all that ended, `expired` those whose hold outlived its time."""

    cost_usd: Usd
    calls: Count
    expired: Count
    input_tokens: Count
    output_tokens: Count


class BillingRow(BillingFigures):
    """The spend of one value; null where calls left it open. `firstAt` and `lastAt` are when calls of it ended."""

    value: str | None = Field(examples=["metered.openai"])
    first_at: Time
    last_at: Time


class BillingSpendAnswer(_CamelAnswer):
    """A page of spend by billing class, project or session, dearest first.

    `nextCursor` is what to ask the next page with, null at the end. Every page is of the ledger as it was `asOf`, when
    the first one was answered, and `total` is of all pages together.
    """

    org_id: str
    by: BillingDimension
    since: Time
    as_of: Time
    rows: list[BillingRow]
    total: BillingFigures
    next_cursor: str | None


class EstimatesRow(_Answer):
    """How well calls alike were estimated. One was under-estimated when it cost more than was held for it.

    `underestimated_ppm` is how many in a million were. Strict holds are true bounds: one that is too small is a defect.
    """

    vendor: str
    model: str
    route: str
    estimate_mode: HoldMode
    settled: Count
    underestimated: Count
    underestimated_ppm: Count
    held_usd: Usd
    cost_usd: Usd


class EstimatesAnswer(_Answer):
    """Estimates against costs, the least well estimated first. `since` and `until` as in the answer to spend."""

    org: str
    since: Time | None
    until: Time | None
    rows: list[EstimatesRow]


class Book(_Answer):
    """What one of the books says of a budget."""

    spent_usd: Usd
    held_usd: Usd


class ReconciledBudget(_Answer):
    """One budget's window in each book; a book that was not compared is null."""

    budget_id: str
    scope: str
    window: str = Field(examples=["month", "30d"])
    span: str
    limit_usd: Usd
    hot_state: Book | None
    ledger: Book | None
    log: Book | None
    agree: bool


class EventCounts(_Answer):
    """How many events of each kind."""

    reservations: Count
    settlements: Count
    expiries: Count
    denials: Count


class LogEventCounts(EventCounts):
    """As read from the log, with how many came twice or could not be read."""

    duplicates: Count
    unreadable: Count


class ReconciledEvents(_Answer):
    """How many events ledger and log have."""

    log: LogEventCounts | None
    ledger: EventCounts
    agree: bool


class ReadOffsets(_Answer):
    """How far a partition of the log has been read; the fold does not read denials."""

    topic: str
    partition: Count
    log_end: Count
    ledger_next: Count
    fold_next: int | None


class ReconciliationAnswer(_Answer):
    """Hot state, ledger and log side by side.

    `agree`: the books that were compared say the same. `log_compared`: the log still reaches back to its beginning, so
    that it was one of them. `lagging`: something moved meanwhile, or is behind the log, or a new budget has not been
    given yet what its window holds, so a difference may be none.
    """

    org: str
    agree: bool
    log_compared: bool
    lagging: bool
    budgets: list[ReconciledBudget]
    events: ReconciledEvents
    offsets: list[ReadOffsets]
