"""Budgets in requests and answers."""

from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, Field

from services.control.budgets.queries import StoredBudget
from services.control.fields import Body, Instant, Made, ModelName, Name, NotNull, Usd
from services.core.budgets import ChildMode, Enforcement, EstimateMode, ScopeKind, Standing, WhenFull
from services.core.codec_fields import format_time
from services.core.money import format_usd
from services.core.windows import window_text

MAX_THRESHOLDS: Final = 10

BudgetId = Annotated[str, Field(max_length=64, examples=["bud_01JD9Z0V9VJ3C2Q4M8K3J5H7RT"])]
NoStanding = Literal["state_rebuilding", "hot_state_unreachable", "per_value", "per_session"]


class Scope(BaseModel):
    """What a budget caps. The value ``*`` stands for each value on its own."""

    kind: ScopeKind
    value: str = Field(examples=["ml"])


class ExpressionScope(Scope):
    """The calls that an expression is true for, under a name."""

    expression: str = Field(examples=['team == "ml" && model.startsWith("claude-")'])


class ScopeBody(Body):
    """What a budget shall cap."""

    kind: ScopeKind
    value: str | None = Field(
        default=None,
        max_length=256,
        examples=["ml"],
        description="A value of that kind, or * for each value on its own: each user, say, has figures of their own. Of"
        " kind cel: a name for it. May be left out for kind org.",
    )
    expression: str | None = Field(
        default=None,
        max_length=1_000,
        examples=['team == "ml" && model.startsWith("claude-")'],
        description="Of kind cel: what must be true of a call (https://cel.dev). May be left out for a name that has"
        " one already.",
    )


class WindowBody(Body):
    """The options of a window."""

    zone: str | None = Field(
        default=None, max_length=64, examples=["Europe/Berlin"], description="Of calendar windows. Default: UTC."
    )
    week_start: int | None = Field(
        default=None, description="Of week: the day it begins on, 0 (Monday, the default) to 6 (Sunday)."
    )
    anchor_day: int | None = Field(
        default=None,
        description="Of month, quarter and year: the day of the month they begin on, 1 (the default) to 31; in shorter"
        " months the last.",
    )
    anchor_month: int | None = Field(
        default=None,
        description="Of year: the month it begins in, 1 (January, the default) to 12; of quarter: a month that one"
        " begins in.",
    )
    anchor: str | None = Field(
        default=None,
        max_length=40,
        examples=["2026-01-05T09:00:00Z"],
        description="Of every ...: an instant at which one begins. Default: the Unix epoch.",
    )


class BudgetOptions(WindowBody):
    """What may be left out: it stays as it is, and is the default for a new budget."""

    estimate: Annotated[EstimateMode | None, NotNull()] = Field(
        default=None,
        description="What it holds for a call: strict, the most it can cost (the default), or calibrated, what such"
        " calls have cost plus a margin.",
    )
    extend: Annotated[bool | None, NotNull()] = Field(
        default=None,
        description="A stream that names no output limit is held a step at a time, and ended when no budget is left;"
        " default: at the most it can cost.",
    )
    parent_id: BudgetId | None = Field(
        default=None, description="A budget that everything charged to this one is charged to as well; null: none."
    )
    child_mode: Annotated[ChildMode | None, NotNull()] = Field(
        default=None,
        description="When this one is full: isolated (the default), it does as when_full says; fallback, its parent"
        " pays.",
    )
    enforcement: Annotated[Enforcement | None, NotNull()] = Field(
        default=None, description="enforce (the default), or monitor: everything is recorded and nothing blocked."
    )
    when_full: Annotated[WhenFull | None, NotNull()] = Field(
        default=None,
        description="What becomes of a call it has no room for: block (the default), downgrade (to downgrade_to), or"
        " alert: it passes.",
    )
    downgrade_to: ModelName | None = Field(
        default=None, description="Of downgrade: the cheaper model of the same vendor that answers; null: none."
    )
    thresholds: Annotated[list[int] | None, NotNull()] = Field(
        default=None,
        description=f"Percents of the limit at which it tells, 1 to 100, ascending, at most {MAX_THRESHOLDS}; []: none."
        " Default: 60, 85, 100.",
    )


_LIMIT: Final = "US dollars; 0 blocks everything."
_WINDOW: Final = (
    "hour, day, week, month, quarter, year (by the wall clock of zone); rolling: 90m, 1h, 30d, 2w; from an anchor on:"
    " every 14d; session (each session on its own), or lifetime."
)


class SetBudget(BudgetOptions):
    """A budget as it shall be. Say what it caps by `scope`, or by `team` and `agent`; neither means the whole org."""

    limit_usd: str = Field(max_length=40, examples=["50.00"], description=_LIMIT)
    window: str = Field(max_length=40, examples=["day"], description=_WINDOW)
    scope: Annotated[ScopeBody | None, NotNull()] = None
    team: Annotated[Name | None, NotNull()] = None
    agent: Annotated[Name | None, NotNull()] = None


class ChangeBudget(BudgetOptions):
    """What shall change of a budget; the rest stays. An option of a window alone changes the window it has."""

    limit_usd: Annotated[str | None, NotNull()] = Field(
        default=None, max_length=40, examples=["50.00"], description=_LIMIT
    )
    window: Annotated[str | None, NotNull()] = Field(
        default=None, max_length=40, examples=["week"], description=_WINDOW
    )


class StandingAnswer(BaseModel):
    """A budget's current window. All figures are null when there are none; `reason` says why."""

    spent_usd: Usd | None = None
    held_usd: Usd | None = None
    remaining_usd: Usd | None = None
    resets_at: str | None = Field(
        default=None, description="When all spend of now has left the window; null for one that never ends."
    )
    reason: NoStanding | None = Field(
        default=None,
        description="per_value and per_session: there is a standing for each; ask for one by value and session.",
    )

    @classmethod
    def of(cls, standing: Standing) -> Self:
        """The answer for known figures."""
        return cls(
            spent_usd=format_usd(standing.spent_nano),
            held_usd=format_usd(standing.held_nano),
            remaining_usd=format_usd(standing.remaining_nano),
            resets_at=None if standing.resets_at_ms is None else format_time(standing.resets_at_ms),
        )


class BudgetFields(BaseModel):
    """A budget as it is kept. What has no meaning for its window is null."""

    budget_id: BudgetId
    scope: ExpressionScope | Scope
    limit_usd: Usd
    window: str
    zone: str | None
    week_start: int | None
    anchor_day: int | None
    anchor_month: int | None
    anchor: str | None
    estimate: EstimateMode
    extend: bool
    parent_id: str | None
    child_mode: ChildMode
    enforcement: Enforcement
    when_full: WhenFull
    downgrade_to: str | None
    thresholds: list[int]
    since_version: int = Field(
        description="The config_version it counts since in this window; calls before it are made up for by their"
        " records. 0: since ever."
    )
    created_at: Instant
    updated_at: Instant

    @classmethod
    def of(cls, stored: StoredBudget) -> "BudgetFields":
        """The fields of a stored budget."""
        budget, text = stored.budget, window_text(stored.budget.window)
        kind, value = budget.scope_kind, budget.scope_value
        return BudgetFields(
            budget_id=budget.budget_id,
            scope=Scope(kind=kind, value=value)
            if budget.expression is None
            else ExpressionScope(kind=kind, value=value, expression=budget.expression),
            limit_usd=format_usd(budget.limit_nano),
            window=text.window,
            zone=text.zone,
            week_start=text.week_start,
            anchor_day=text.anchor_day,
            anchor_month=text.anchor_month,
            anchor=text.anchor,
            estimate=budget.estimate,
            extend=budget.extend,
            parent_id=budget.parent_id,
            child_mode=budget.child_mode,
            enforcement=budget.enforcement,
            when_full=budget.when_full,
            downgrade_to=budget.downgrade_to,
            thresholds=list(budget.thresholds),
            since_version=budget.since_version,
            created_at=stored.created_at,
            updated_at=stored.updated_at,
        )


class BudgetAnswer(BudgetFields):
    """A budget and where it stands."""

    backfilled: bool | None = Field(
        description="Whether what its window held before it counted is in its figures; until then calls that it could"
        " stop wait a moment, and are refused with 503 after that. null: the hot state can't say now."
    )
    standing: StandingAnswer


class SetBudgetAnswer(BudgetAnswer):
    """The budget, and what was made on the way."""

    made: Made


class Budgets(BaseModel):
    """Budgets of the org, oldest first."""

    budgets: list[BudgetAnswer]
    next: str | None = Field(default=None, description="There are more: the `cursor` to ask for them by.")
