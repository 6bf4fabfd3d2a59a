"""Where budgets stand, as the hot state says."""

from collections.abc import Mapping, Sequence
from typing import Final

from services.control.budgets.forms import BudgetAnswer, BudgetFields, NoStanding, StandingAnswer
from services.control.budgets.queries import StoredBudget
from services.control.errors import invalid
from services.core.budgets import EACH, Budget, Proposal, Standing, propose
from services.core.identity import check_name
from services.core.matching import instance_id
from services.core.ports import HotState, UnavailableError
from services.core.windows import SessionWindow, span_at

# Looked up at a time, so that no call of a gateway waits for a long list.
_AT_A_TIME: Final = 500


async def with_standings(hot: HotState, org: str, stored: Sequence[StoredBudget]) -> list[BudgetAnswer]:
    """The budgets, each with the one standing it has, or why it has none, and whether its past is known."""
    marks = await _marks(hot, org, stored)
    single = [each.budget for each in stored if _why_not_single(each.budget) is None]
    standings, reason = await peek_single(hot, org, single)
    return [
        _answer(
            each,
            marks,
            StandingAnswer.of(standings[each.budget.budget_id])
            if each.budget.budget_id in standings
            else StandingAnswer(reason=_why_not_single(each.budget) or reason),
        )
        for each in stored
    ]


async def with_standing_of(
    hot: HotState, org: str, stored: StoredBudget, value: str | None, session: str | None
) -> BudgetAnswer:
    """A budget with its standing for one value and one session, where it has one for each. Raises a 400."""
    budget = stored.budget
    if value is not None and budget.scope_value != EACH:
        raise invalid(
            "value", f"value goes with budgets of each value, and this one is of {budget.scope}; leave it out"
        )
    if session is not None and not isinstance(budget.window, SessionWindow):
        raise invalid("session", "session goes with budgets whose window is the session; leave it out")
    if value is None and session is None:
        [answer] = await with_standings(hot, org, [stored])
        return answer
    if session is not None:
        check_name("session", session)
    reason = _why_not_single(budget, value, session)
    marks = await _marks(hot, org, [stored])
    if reason is not None:
        return _answer(stored, marks, StandingAnswer(reason=reason))
    try:
        now_ms = await hot.now_ms()
        figures_id = budget.budget_id if value is None else instance_id(budget.budget_id, value)
        scope = budget.scope if value is None else f"{budget.scope_kind}:{value}"
        span = span_at(budget.window, now_ms, session)
        found = await hot.peek(org, [Proposal(figures_id, scope, span, budget.limit_nano)])
    except UnavailableError:
        return _answer(stored, marks, StandingAnswer(reason="hot_state_unreachable"))
    if found is None:
        return _answer(stored, marks, StandingAnswer(reason="state_rebuilding"))
    return _answer(stored, marks, StandingAnswer.of(found[0]))


def _why_not_single(budget: Budget, value: str | None = None, session: str | None = None) -> NoStanding | None:
    """Why a budget has no standing of its own, as far as `value` and `session` do not say which one is meant."""
    if budget.scope_value == EACH and value is None:
        return "per_value"
    return "per_session" if isinstance(budget.window, SessionWindow) and session is None else None


def _answer(stored: StoredBudget, marks: Mapping[str, int] | None, standing: StandingAnswer) -> BudgetAnswer:
    """The answer. Only the mark of the very window that a budget has tells that its past is in the figures (BU-8)."""
    budget = stored.budget
    backfilled: bool | None = True
    if budget.since_version > 0:
        backfilled = None if marks is None else marks.get(budget.budget_id) == budget.since_version
    return BudgetAnswer(**BudgetFields.of(stored).model_dump(), backfilled=backfilled, standing=standing)


async def _marks(hot: HotState, org: str, stored: Sequence[StoredBudget]) -> Mapping[str, int] | None:
    """For which `since_version` each of the budgets is backfilled; None while the hot state can't say."""
    with_past = tuple(each.budget.budget_id for each in stored if each.budget.since_version > 0)
    try:
        return await hot.filled(org, with_past) if with_past else {}
    except UnavailableError:
        return None


async def peek_single(
    hot: HotState, org: str, budgets: Sequence[Budget]
) -> tuple[dict[str, Standing], NoStanding | None]:
    """Standings by budget id of budgets that have a single one, or why there are none.

    Budgets are there without the hot state; their figures are not.
    """
    found: dict[str, Standing] = {}
    try:
        now_ms = await hot.now_ms()
        for first in range(0, len(budgets), _AT_A_TIME):
            standings = await hot.peek(org, propose(budgets[first : first + _AT_A_TIME], now_ms))
            if standings is None:
                return {}, "state_rebuilding"
            found |= {each.budget_id: each for each in standings}
    except UnavailableError:
        return {}, "hot_state_unreachable"
    return found, None
