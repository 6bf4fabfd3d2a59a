"""Budgets: caps by scope and window, their hierarchy, and where they stand."""

from dataclasses import replace
from typing import Final

from ulid import ULID

from services.control.agents.service import ensure_placed
from services.control.auth import Admin
from services.control.budgets import queries
from services.control.budgets.forms import (
    BudgetAnswer,
    BudgetFields,
    Budgets,
    ChangeBudget,
    SetBudget,
    SetBudgetAnswer,
)
from services.control.budgets.queries import StoredBudget
from services.control.budgets.rules import (
    changed_window,
    expression_of,
    limit_of,
    scope_of,
    window_of,
    with_options,
)
from services.control.budgets.standings import with_standing_of, with_standings
from services.control.connections import queries as connection_queries
from services.control.context import Change, Context
from services.control.delegations import queries as delegation_queries
from services.control.errors import conflict, invalid, not_found
from services.control.fields import Made
from services.control.prices.org_prices import now_ms, read_prices
from services.core.billing import split_class
from services.core.budgets import EACH, MAX_BUDGETS_PER_ORG, MAX_DEPTH, Budget, ScopeKind
from services.core.matching import Expressions
from services.core.windows import Window, is_same_window

# A call falls under a scope of several kinds, and its budgets must fit into one reservation (`MAX_BUDGETS_PER_CALL`):
# four scopes that are full do. The gateway refuses a call that falls under more.
MAX_BUDGETS_PER_SCOPE: Final = 16
# Each costs every call of the org some microseconds, whether it matches or not.
MAX_EXPRESSIONS_PER_ORG: Final = 64


async def put_budget(change: Change, request: SetBudget, context: Context) -> tuple[StoredBudget, Made, bool]:
    """Sets a budget as part of a change: the budget, what was made on the way, and whether it is new.

    A scope has at most one budget a window, which keeps its id, and so its spend, when anything else changes.
    """
    limit_nano = limit_of(request.limit_usd)
    window = window_of(request)
    kind, value, team = scope_of(request, change.org)
    made = await _make_named(change, kind, value, team)
    siblings = await queries.list_of_scope(change.connection, change.org, kind, value)
    expression = _expression(request, siblings, context.expressions) if kind == "cel" else None
    found = _with_window(siblings, window)
    if found is None:
        await _check_room(change, kind, value, siblings)
        base = Budget(
            f"bud_{ULID()}", kind, value, window, limit_nano, expression=expression, since_version=change.config_version
        )
        budget = with_options(base, request)
    else:
        budget = with_options(replace(found.budget, limit_nano=limit_nano), request)
    await _check_parent(change, budget)
    await _check_downgrade(change, context, budget, found)
    stored = await _keep(change, found, budget)
    return stored, made, found is None


async def set_budget(admin: Admin, request: SetBudget) -> tuple[SetBudgetAnswer, bool]:
    """Sets a budget of the caller's org, and whether it is new."""
    async with admin.change() as change:
        stored, made, is_new = await put_budget(change, request, admin.context)
    [answer] = await with_standings(admin.context.hot, admin.org, [stored])
    return SetBudgetAnswer(**answer.model_dump(), made=made), is_new


async def change_budget(admin: Admin, budget_id: str, request: ChangeBudget) -> BudgetAnswer:
    """Changes a budget in all but its scope. In another window it keeps its id and counts anew."""
    if not request.model_fields_set:
        raise invalid("limit_usd", "name what to change: limit_usd, window, or another field but the scope")
    async with admin.change() as change:
        found = await _find(change, budget_id)
        window = changed_window(request, found.budget.window)
        changed = found.budget
        if not is_same_window(window, changed.window):
            await _check_no_twin(change, changed, window)
            await _check_no_part(change, budget_id)
            changed = replace(changed, window=window, since_version=change.config_version)
        if request.limit_usd is not None:
            changed = replace(changed, limit_nano=limit_of(request.limit_usd))
        changed = with_options(changed, request)
        await _check_parent(change, changed)
        await _check_downgrade(change, admin.context, changed, found)
        stored = await _keep(change, found, changed)
    [answer] = await with_standings(admin.context.hot, admin.org, [stored])
    return answer


async def list_budgets(
    admin: Admin, kind: ScopeKind | None, value: str | None, cursor: str | None, limit: int | None
) -> Budgets:
    """The org's budgets and where they stand: all, or a page of them."""
    async with admin.context.database.snapshot() as connection:
        one_more = None if limit is None else limit + 1
        stored = await queries.list_page(connection, admin.org, kind, value, cursor or "", one_more)
    page = stored if limit is None else stored[:limit]
    following = page[-1].budget.budget_id if len(page) < len(stored) else None
    return Budgets(budgets=await with_standings(admin.context.hot, admin.org, page), next=following)


async def get_budget(admin: Admin, budget_id: str, value: str | None, session: str | None) -> BudgetAnswer:
    """One budget and where it stands, for one value and session where it has a standing for each."""
    async with admin.context.database.snapshot() as connection:
        stored = await queries.find(connection, admin.org, budget_id)
    if stored is None:
        raise not_found(f"budget {budget_id[:60]!r}")
    return await with_standing_of(admin.context.hot, admin.org, stored, value, session)


async def delete_budget(admin: Admin, budget_id: str) -> None:
    """Removes a budget. One made later for the same scope and window has another id, and starts with its window."""
    async with admin.change() as change:
        stored = await _find(change, budget_id)
        children = await queries.list_children(change.connection, admin.org, budget_id)
        if children:
            message = (
                f"budget {budget_id} is the parent of {len(children)}, {children[0]} first; delete those, or change "
                "their parent_id"
            )
            raise conflict("has_children", message)
        await queries.delete(change.connection, budget_id)
        await change.audit("budget.delete", budget_id, before=BudgetFields.of(stored).model_dump(mode="json"))


async def _make_named(change: Change, kind: ScopeKind, value: str, team: str | None) -> Made:
    """Makes the team and the agent that a scope names; of other kinds nothing is kept."""
    if kind not in ("agent", "team") or value == EACH:
        return Made()
    _, made = await ensure_placed(change, team, value) if kind == "agent" else await ensure_placed(change, value, None)
    return made


def _expression(request: SetBudget, siblings: tuple[StoredBudget, ...], expressions: Expressions) -> str:
    """The one expression of a name. Raises a 400, or a 409 where the name has another."""
    known = siblings[0].budget.expression if siblings else None
    expression = expression_of(request, known, expressions)
    if known not in (None, expression):
        message = (
            f"budgets named {siblings[0].budget.scope_value!r} have the expression {known!r}, by which they have "
            "counted; choose another name, or delete them first"
        )
        raise conflict("expression_differs", message, "scope.expression")
    return expression


def _with_window(siblings: tuple[StoredBudget, ...], window: Window) -> StoredBudget | None:
    return next((each for each in siblings if is_same_window(each.budget.window, window)), None)


async def _check_room(change: Change, kind: ScopeKind, value: str, siblings: tuple[StoredBudget, ...]) -> None:
    """Raises a 409 when one more budget would be too many."""
    if len(siblings) >= MAX_BUDGETS_PER_SCOPE:
        raise conflict(
            "too_many_budgets", f"{kind} {value!r} has {len(siblings)} budgets, and no more fit; delete one first"
        )
    budgets, with_expression = await queries.count(change.connection, change.org)
    if budgets >= MAX_BUDGETS_PER_ORG:
        message = f"this org has {budgets} budgets, and no more fit; delete some, or use one of each value ('*')"
        raise conflict("too_many_budgets", message)
    if kind == "cel" and with_expression >= MAX_EXPRESSIONS_PER_ORG:
        message = (
            f"this org has {with_expression} budgets with an expression, and every call pays for each; delete one, or "
            "use another kind of scope"
        )
        raise conflict("too_many_budgets", message, "scope.kind")


async def _check_no_twin(change: Change, budget: Budget, window: Window) -> None:
    """Raises a 409 when the scope has a budget in this window already."""
    siblings = await queries.list_of_scope(change.connection, change.org, budget.scope_kind, budget.scope_value)
    twin = _with_window(siblings, window)
    if twin is not None and twin.budget.budget_id != budget.budget_id:
        twin_id = twin.budget.budget_id
        raise conflict(
            "already_exists", f"{budget.scope} has budget {twin_id} in this window; change that one", "window"
        )


async def _check_no_part(change: Change, budget_id: str) -> None:
    """Raises a 409 for a budget that parts are carved from: what they spend is in the window that they are held in."""
    part_id = await delegation_queries.find_covering(change.connection, change.org, budget_id)
    if part_id is not None:
        message = (
            f"part {part_id} was carved from budget {budget_id} in the window it has now, and would be missing from "
            f"another; end it by POST /v1/budgets/{part_id}/end and try again in a minute, or make another budget"
        )
        raise conflict("has_parts", message, "window")


async def _check_parent(change: Change, budget: Budget) -> None:
    """Raises a 400 for a parent that a budget can't have."""
    if budget.parent_id is None:
        return
    parent = await queries.find(change.connection, change.org, budget.parent_id)
    if parent is None:
        message = f"there is no budget {budget.parent_id[:60]!r} to be the parent; GET /api/v1/budgets lists them"
        raise invalid("parent_id", message)
    if parent.budget.scope_value == EACH:
        message = f"budget {budget.parent_id} is one of each {parent.budget.scope_kind}, which can't be a parent"
        raise invalid("parent_id", f"{message}; name a budget of one value")
    line = await queries.list_line(change.connection, change.org, budget.parent_id)
    if budget.budget_id in line:
        message = f"parent_id {budget.parent_id} would make the budget its own ancestor; name one that is not below it"
        raise invalid("parent_id", message)
    depth = len(line) + await queries.count_generations(change.connection, change.org, budget.budget_id)
    if depth > MAX_DEPTH:
        message = f"the hierarchy would be {depth} budgets deep, and {MAX_DEPTH} is the most; name a parent further up"
        raise invalid("parent_id", message)


async def _check_downgrade(change: Change, context: Context, budget: Budget, found: StoredBudget | None) -> None:
    """Raises a 400 for a model to downgrade to that has no price: gateways would pass it over, and block.

    The policy for unknown models makes no difference: a cheaper model is taken by its price. One that was set before
    stays.
    """
    model = budget.downgrade_to
    if model is None or (found is not None and found.budget.downgrade_to == model):
        return
    _, prices = await read_prices(context.prices, change.connection, change.org)
    vendor = _vendor_of(budget)
    if vendor is None:
        vendors, whose = prices.vendors(), "any vendor"
    else:
        compiled = await connection_queries.list_compiled(change.connection, change.org)
        vendors = [{each.vendor: each.prices_as for each in compiled}.get(vendor, vendor)]
        whose = f"vendor {vendors[0]!r}, whose calls this budget caps"
    if all(prices.find(each, model, now_ms()) is None for each in vendors):
        message = f"downgrade_to: model {model[:80]!r} has no price with {whose}, so that no call can be held at it"
        raise invalid("downgrade_to", f"{message}; name one that GET /api/v1/prices lists, or set its price first")


def _vendor_of(budget: Budget) -> str | None:
    """The one vendor whose calls a budget caps, as far as its scope says."""
    if budget.scope_value == EACH or budget.scope_kind not in ("vendor", "billing_class"):
        return None
    return budget.scope_value if budget.scope_kind == "vendor" else split_class(budget.scope_value)[1]


async def _find(change: Change, budget_id: str) -> StoredBudget:
    stored = await queries.find(change.connection, change.org, budget_id)
    if stored is None:
        raise not_found(f"budget {budget_id[:60]!r}")
    return stored


async def _keep(change: Change, found: StoredBudget | None, budget: Budget) -> StoredBudget:
    if found is None:
        stored = await queries.insert(change.connection, change.org, budget)
    else:
        stored = await queries.change(change.connection, budget)
    await change.audit(
        "budget.create" if found is None else "budget.update",
        budget.budget_id,
        before=None if found is None else BudgetFields.of(found).model_dump(mode="json"),
        after=BudgetFields.of(stored).model_dump(mode="json"),
    )
    return stored
