"""Budgets: caps by scope and window, and where they stand."""

from collections.abc import Sequence
from typing import Final, Literal, Self

from pydantic import BaseModel, Field
from ulid import ULID

from services.control.agents.service import ensure_placed
from services.control.auth import Admin
from services.control.budgets import queries
from services.control.budgets.queries import StoredBudget
from services.control.context import Change
from services.control.errors import conflict, invalid, not_found
from services.control.fields import Body, Instant, Made, Name, Usd
from services.core.budgets import (
    MAX_BUDGETS_PER_CALL,
    SCOPE_KINDS,
    Budget,
    EstimateMode,
    ScopeKind,
    Standing,
    propose,
)
from services.core.codec_fields import format_time
from services.core.money import MAX_LIMIT_NANO, MoneyError, format_usd, parse_usd
from services.core.ports import HotState, UnavailableError
from services.core.windows import CalendarWindow, format_window, parse_window

# A call falls under one scope of each kind; its budgets must fit into one reservation.
MAX_BUDGETS_PER_SCOPE: Final = MAX_BUDGETS_PER_CALL // len(SCOPE_KINDS)


class Scope(BaseModel):
    """What a budget caps."""

    kind: ScopeKind
    value: str = Field(examples=["ml"])


class ScopeBody(Body):
    """What a budget shall cap. The value of kind ``org`` may be left out."""

    kind: ScopeKind
    value: Name | None = None


class SetBudget(Body):
    """A budget as it shall be. Say what it caps by `scope`, or by `team` and `agent`; neither means the whole org."""

    limit_usd: str = Field(max_length=40, examples=["50.00"], description="US dollars; 0 blocks everything.")
    window: str = Field(max_length=40, examples=["day"], description="hour, day, month, or rolling: 90m, 1h, 30d.")
    zone: str | None = Field(default=None, max_length=64, examples=["Europe/Berlin"], description="Default: UTC.")
    estimate: EstimateMode | None = Field(
        default=None,
        description="What it holds for a call: strict, the most it can cost, or calibrated, what such calls have cost"
        " plus a margin. Default: as it is, strict for a new budget.",
    )
    scope: ScopeBody | None = None
    team: Name | None = None
    agent: Name | None = None


class StandingAnswer(BaseModel):
    """A budget's current window. All figures are null when the hot state can't tell them; `reason` says why."""

    spent_usd: Usd | None = None
    held_usd: Usd | None = None
    remaining_usd: Usd | None = None
    resets_at: str | None = Field(default=None, description="When all spend of now has left the window.")
    reason: Literal["state_rebuilding", "hot_state_unreachable"] | None = None

    @classmethod
    def of(cls, standing: Standing) -> Self:
        """The answer for known figures."""
        return cls(
            spent_usd=format_usd(standing.spent_nano),
            held_usd=format_usd(standing.held_nano),
            remaining_usd=format_usd(standing.remaining_nano),
            resets_at=format_time(standing.resets_at_ms),
        )


class BudgetFields(BaseModel):
    """A budget as it is kept."""

    budget_id: str = Field(examples=["bud_01JD9Z0V9VJ3C2Q4M8K3J5H7RT"])
    scope: Scope
    limit_usd: Usd
    window: str
    zone: str | None
    estimate: EstimateMode
    created_at: Instant
    updated_at: Instant

    @classmethod
    def of(cls, stored: StoredBudget) -> "BudgetFields":
        """The fields of a stored budget."""
        budget = stored.budget
        return BudgetFields(
            budget_id=budget.budget_id,
            scope=Scope(kind=budget.scope_kind, value=budget.scope_value),
            limit_usd=format_usd(budget.limit_nano),
            window=format_window(budget.window),
            zone=budget.window.zone if isinstance(budget.window, CalendarWindow) else None,
            estimate=budget.estimate,
            created_at=stored.created_at,
            updated_at=stored.updated_at,
        )


class BudgetAnswer(BudgetFields):
    """A budget and where it stands."""

    standing: StandingAnswer


class SetBudgetAnswer(BudgetAnswer):
    """The budget, and what was made on the way."""

    made: Made


class Budgets(BaseModel):
    """Every budget of the org, oldest first."""

    budgets: list[BudgetAnswer]


async def put_budget(change: Change, request: SetBudget) -> tuple[StoredBudget, Made, bool]:
    """Sets a budget as part of a change: the budget, what was made on the way, and whether it is new.

    A scope has at most one budget a window and zone, which keeps its id, and so its spend, when its limit changes.
    """
    limit_nano = _limit(request.limit_usd)
    window = parse_window(request.window, request.zone)
    kind, value, team = _scope(request, change.org)
    if kind == "agent":
        _, made = await ensure_placed(change, team, value)
    elif kind == "team":
        _, made = await ensure_placed(change, value, None)
    else:
        made = Made()
    siblings = await queries.list_of_scope(change.connection, change.org, kind, value)
    found = next((each for each in siblings if each.budget.window == window), None)
    if found is None:
        if len(siblings) >= MAX_BUDGETS_PER_SCOPE:
            raise conflict(
                "too_many_budgets", f"{kind} {value!r} has {len(siblings)} budgets, and no more fit; delete one first"
            )
        new = Budget(f"bud_{ULID()}", kind, value, window, limit_nano, request.estimate or "strict")
        stored = await queries.insert(change.connection, change.org, new)
    else:
        estimate = request.estimate or found.budget.estimate
        stored = await queries.change(change.connection, found.budget.budget_id, limit_nano, estimate)
    await change.audit(
        "budget.create" if found is None else "budget.update",
        stored.budget.budget_id,
        before=None if found is None else BudgetFields.of(found).model_dump(mode="json"),
        after=BudgetFields.of(stored).model_dump(mode="json"),
    )
    return stored, made, found is None


async def set_budget(admin: Admin, request: SetBudget) -> tuple[SetBudgetAnswer, bool]:
    """Sets a budget of the caller's org, and whether it is new."""
    async with admin.change() as change:
        stored, made, is_new = await put_budget(change, request)
    [answer] = await _with_standings(admin.context.hot, admin.org, [stored])
    return SetBudgetAnswer(**answer.model_dump(), made=made), is_new


async def list_budgets(admin: Admin) -> Budgets:
    """The org's budgets and where they stand."""
    async with admin.context.database.snapshot() as connection:
        stored = await queries.list_stored(connection, admin.org)
    return Budgets(budgets=await _with_standings(admin.context.hot, admin.org, stored))


async def get_budget(admin: Admin, budget_id: str) -> BudgetAnswer:
    """One budget and where it stands."""
    async with admin.context.database.snapshot() as connection:
        stored = await queries.find(connection, admin.org, budget_id)
    if stored is None:
        raise not_found(f"budget {budget_id[:60]!r}")
    [answer] = await _with_standings(admin.context.hot, admin.org, [stored])
    return answer


async def delete_budget(admin: Admin, budget_id: str) -> None:
    """Removes a budget. One made later for the same scope and window has another id, and starts at zero."""
    async with admin.change() as change:
        stored = await queries.find(change.connection, admin.org, budget_id)
        if stored is None:
            raise not_found(f"budget {budget_id[:60]!r}")
        await queries.delete(change.connection, budget_id)
        await change.audit("budget.delete", budget_id, before=BudgetFields.of(stored).model_dump(mode="json"))


def _limit(text: str) -> int:
    try:
        limit_nano = parse_usd(text)
    except MoneyError as error:
        raise invalid("limit_usd", f"limit_usd: {error}") from error
    if limit_nano < 0:
        raise invalid("limit_usd", "limit_usd must not be negative; 0 blocks everything")
    if limit_nano > MAX_LIMIT_NANO:
        raise invalid("limit_usd", f"limit_usd must be at most {format_usd(MAX_LIMIT_NANO)}")
    return limit_nano


def _scope(request: SetBudget, org: str) -> tuple[ScopeKind, str, str | None]:
    """Kind and value of the scope asked for, and the team named beside an agent."""
    if request.scope is None:
        if request.agent is not None:
            return "agent", request.agent, request.team
        if request.team is not None:
            return "team", request.team, None
        return "org", org, None
    if request.team is not None or request.agent is not None:
        raise invalid("scope", "scope and team or agent exclude each other; leave one out")
    kind, value = request.scope.kind, request.scope.value
    if kind != "org":
        if value is None:
            raise invalid("scope.value", f"scope.value is required for kind {kind!r}")
        return kind, value, None
    if value not in (None, org):
        raise invalid("scope.value", f"scope.value of kind 'org' can only be {org!r}; leave it out")
    return "org", org, None


async def _with_standings(hot: HotState, org: str, stored: Sequence[StoredBudget]) -> list[BudgetAnswer]:
    standings, reason = await _peek(hot, org, [each.budget for each in stored])
    return [
        BudgetAnswer(
            **BudgetFields.of(each).model_dump(),
            standing=standings.get(each.budget.budget_id) or StandingAnswer(reason=reason),
        )
        for each in stored
    ]


async def _peek(
    hot: HotState, org: str, budgets: Sequence[Budget]
) -> tuple[dict[str, StandingAnswer], Literal["state_rebuilding", "hot_state_unreachable"] | None]:
    """Standings by budget id, or why there are none. Budgets are there without the hot state; their figures are not."""
    try:
        standings = await hot.peek(org, propose(budgets, await hot.now_ms()))
    except UnavailableError:
        return {}, "hot_state_unreachable"
    if standings is None:
        return {}, "state_rebuilding"
    return {each.budget_id: StandingAnswer.of(each) for each in standings}, None
