"""Which budgets a call falls under (BU-1, BU-3): found by scope value, expressions last.

10,000 budgets take no longer than ten: the index has one look-up for each value the call has. Only expressions are
evaluated one by one.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Protocol

from services.core.budgets import (
    EACH,
    MAX_BUDGETS_PER_CALL,
    MAX_DEPTH,
    SCOPE_KINDS,
    Budget,
    FullRule,
    Proposal,
    owner_id,
)
from services.core.events import CallFacts
from services.core.parts import ROUTE as PART_ROUTE
from services.core.windows import SessionWindow, span_at

# What fits into an id (`core.identity`) beside a budget's own, and can't be mistaken for a window's key behind it.
_PLAIN_VALUE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@/+-]{0,89}", re.ASCII)

# The names an expression may use; `context_of` gives their values.
CONTEXT_FIELDS: Final = frozenset(
    {
        *("org", "team", "agent", "user", "project", "session", "environment", "key", "tags"),
        *("vendor", "route", "model", "auth_mode", "billing_class"),
    }
)

# What only calls have. A part (`core.parts`) is carved before any of its calls is known: what is capped by these caps
# the calls, when they are made.
_KINDS_OF_CALLS: Final = frozenset({"billing_class", "vendor", "model"})
_FIELDS_OF_CALLS: Final = frozenset({"vendor", "route", "model", "auth_mode", "billing_class"})
# Kinds whose names are one name however they are capitalised: a caller may write them as they like.
_KINDS_OF_ANY_CASE: Final = frozenset({"vendor", "model"})

Predicate = Callable[[Mapping[str, Any]], bool]


class ExpressionError(ValueError):
    """An expression that can't be compiled or evaluated; its text says why."""


class Expressions(Protocol):
    """The Common Expression Language (https://cel.dev)."""

    def compile(self, text: str) -> Predicate:
        """The expression as a function of the request context (`context_of`). Raises `ExpressionError`, then and when
        it is called: also where it gives anything but a truth value.
        """


class TooManyBudgetsError(ValueError):
    """A call falls under more budgets (`count`) than one reservation may hold. Its text says what to do."""

    def __init__(self, count: int) -> None:
        super().__init__(
            f"this call falls under {count} budgets, and one call can be held against {MAX_BUDGETS_PER_CALL}; "
            "remove some, or narrow their scopes or expressions, so that fewer of them match it"
        )
        self.count = count


@dataclass(frozen=True, slots=True)
class Applicable:
    """A budget that a call is charged to. For a budget of each value, `budget_id` and `scope` are that value's own."""

    budget: Budget
    budget_id: str
    scope: str


@dataclass(frozen=True, slots=True)
class Matching:
    """All that a call is charged to, widest scope first, ancestors included; `flags` are those of `CallFacts`."""

    applicable: tuple[Applicable, ...]
    flags: tuple[str, ...] = ()


# An expression takes microseconds, and is a function of its context alone: its answers to so many are remembered.
_CONTEXTS_KEPT: Final = 1_024
# A budget that a call matches, and its ancestors.
_Chain = tuple[Applicable, ...]
_NOTHING: Final[Mapping[str, Sequence[_Chain]]] = MappingProxyType({})


class BudgetIndex:
    """The budgets of one org, found by scope value.

    Raises `ExpressionError` for an expression that can't be compiled (control has refused such), and `ValueError` for
    parents that are missing, circular or too deep.
    """

    def __init__(self, budgets: Iterable[Budget], expressions: Expressions | None = None) -> None:
        self._by_id = {each.budget_id: each for each in budgets}
        named: dict[str, dict[str, list[_Chain]]] = {}
        by_each: dict[str, list[tuple[Budget, _Chain]]] = {}
        by_expression: list[tuple[Budget, Predicate, _Chain]] = []
        for budget in self._by_id.values():
            ancestors = tuple(_itself(each) for each in self._ancestors(budget))
            if budget.scope_kind == "cel":
                if expressions is None or budget.expression is None:
                    raise ExpressionError(f"budget {budget.budget_id} has an expression that nothing here can evaluate")
                predicate = expressions.compile(budget.expression)
                by_expression.append((budget, predicate, (_itself(budget), *ancestors)))
            elif budget.scope_value == EACH:
                by_each.setdefault(budget.scope_kind, []).append((budget, ancestors))
            else:
                value = _spelled(budget.scope_kind, budget.scope_value)
                chains = named.setdefault(budget.scope_kind, {}).setdefault(value, [])
                chains.append((_itself(budget), *ancestors))
        self._has_parts = any(each.covers for each in self._by_id.values())
        self._named = named
        self._by_each = by_each
        self._by_expression = by_expression
        self._expressions_known: dict[object, tuple[tuple[_Chain, ...], tuple[str, ...]]] = {}
        # What no budget speaks of is not looked at.
        self._kinds = tuple(kind for kind in SCOPE_KINDS if kind in named or kind in by_each)
        self._kinds_of_parts = tuple(kind for kind in self._kinds if kind not in _KINDS_OF_CALLS)

    def find(self, budget_id: str) -> Budget | None:
        """The budget of an id, that of one value of it included."""
        return self._by_id.get(owner_id(budget_id))

    def matching(self, facts: CallFacts, models: Iterable[str] = ()) -> Matching:
        """Everything the call is charged to; `models` are more names of models that it asks for (a batch) or that it
        is sent to its vendor by.

        A model budget caps the calls that name its model and those that are priced as it: no spelling of a name slips
        past it, its capitals and its vendor's prefix included, and what a cheaper model answers in another's place
        counts against both. So does an expression that is true for any of these names; it compares them as they are
        written. One that fails counts as a match, flagged: money is never let past a budget by an error. Raises
        `TooManyBudgetsError`.

        The carving of a part is charged to what caps all of its calls, whatever they will be: to no budget of a vendor,
        a model or a billing class, and to an expression only where it is true without these being known.
        """
        found: dict[str, Applicable] = {}
        more = (name for model in models for name in _names_of_model(facts.vendor, model))
        names = tuple(dict.fromkeys((*names_of(facts), *more)))
        for kind in self._kinds if facts.route != PART_ROUTE else self._kinds_of_parts:
            self._match(found, kind, names if kind == "model" else _VALUES[kind](facts))
        flags: tuple[str, ...] = ()
        if self._by_expression:
            chains, flags = self._expressed(facts, names)
            for chain in chains:
                for each in chain:
                    found[each.budget_id] = each
        if self._has_parts:
            # What a part was carved from holds all of it already.
            for budget_id in [name for each in found.values() for name in each.budget.covers]:
                found.pop(budget_id, None)
        if len(found) > MAX_BUDGETS_PER_CALL:
            raise TooManyBudgetsError(len(found))
        return Matching(tuple(sorted(found.values(), key=_order)), flags)

    def _expressed(self, facts: CallFacts, names: tuple[str, ...]) -> tuple[tuple[_Chain, ...], tuple[str, ...]]:
        """The budgets whose expressions are true of any of the models' names, and the flags of those that failed.

        Of calls alike, found once.
        """
        key = (facts.identity, facts.vendor, facts.route, names, facts.auth_mode)
        known = self._expressions_known.get(key)
        if known is not None:
            return known
        is_part = facts.route == PART_ROUTE
        contexts = [_of_part(facts)] if is_part else [context_of(facts) | {"model": name} for name in names]
        contexts = contexts or [context_of(facts)]
        chains: list[_Chain] = []
        flags: list[str] = []
        for budget, predicate, chain in self._by_expression:
            # The names of a batch may be many, and few expressions speak of them.
            seen = contexts if budget.expression is not None and "model" in budget.expression else contexts[:1]
            try:
                matches = any(predicate(context) for context in seen)
            except ExpressionError:
                # What can't be said of a part before its calls are there is asked of each of them.
                matches = not is_part
                if matches:
                    flags.append(f"expression_error:{budget.budget_id}")
            if matches:
                chains.append(chain)
        if len(self._expressions_known) >= _CONTEXTS_KEPT:
            del self._expressions_known[next(iter(self._expressions_known))]
        found = self._expressions_known[key] = tuple(chains), tuple(flags)
        return found

    def _match(self, found: dict[str, Applicable], kind: str, values: Iterable[str]) -> None:
        named, by_each = self._named.get(kind, _NOTHING), self._by_each.get(kind, ())
        for value in values:
            for chain in named.get(_spelled(kind, value), ()):
                for each in chain:
                    found[each.budget_id] = each
            for budget, ancestors in by_each:
                budget_id = instance_id(budget.budget_id, value)
                found[budget_id] = Applicable(budget, budget_id, f"{kind}:{value}")
                for each in ancestors:
                    found[each.budget_id] = each

    def _ancestors(self, budget: Budget) -> list[Budget]:
        """From its parent up. Raises `ValueError`."""
        ancestors: list[Budget] = []
        parent_id = budget.parent_id
        while parent_id is not None:
            parent = self._by_id.get(parent_id)
            if parent is None or parent.scope_value == EACH:
                raise ValueError(f"budget {budget.budget_id} has parent {parent_id}, which can't be one")
            ancestors.append(parent)
            if len(ancestors) >= MAX_DEPTH:
                raise ValueError(f"budget {budget.budget_id} is more than {MAX_DEPTH} deep, or its own ancestor")
            parent_id = parent.parent_id
        return ancestors


def limit_at(budget: Budget, now_ms: int) -> int:
    """A budget's limit in nano-dollars at `now_ms`: 0 once it has ended."""
    return 0 if budget.ends_at_ms is not None and now_ms >= budget.ends_at_ms else budget.limit_nano


def proposals_for(matching: Matching, session: str | None, now_ms: int) -> tuple[Proposal, ...]:
    """One proposal a budget, for the spans that hold `now_ms`.

    `session` may be None only where no budget asks for one (`asks_for_session`).
    """
    seen = [each for each in matching.applicable if session is not None or _sees_all(each.budget)]
    by_id = {each.budget_id: each.budget for each in matching.applicable}
    paying = paying_ids((each.budget_id, each.budget) for each in seen)
    return tuple(
        Proposal(
            each.budget_id,
            each.scope,
            span_at(each.budget.window, now_ms, session),
            limit_at(each.budget, now_ms),
            rule_beside(each.budget, paying, by_id.get),
        )
        for each in seen
    )


def paying_ids(charged: Iterable[tuple[str, Budget | None]]) -> set[str]:
    """Whose money is held by a call that is charged to these ids: they, and all that parts among them cover (BU-9)."""
    paying: set[str] = set()
    for budget_id, budget in charged:
        paying.add(budget_id)
        if budget is not None:
            paying.update(budget.covers)
    return paying


def rule_beside(budget: Budget, paying: Collection[str], find: Callable[[str], Budget | None]) -> FullRule:
    """What becomes of a call that a budget has no room for and that `paying` (`paying_ids`) hold, too.

    A fallback child lets those above it pay only where one of them does. Without any it blocks: what it let pass would
    be charged to nobody. `find` knows the budgets above it, as far as there are any.
    """
    if budget.full_rule != "parent":
        return budget.full_rule
    above: Budget | None = budget
    while above is not None and above.parent_id is not None:
        if above.parent_id in paying:
            return "parent"
        above = find(above.parent_id)
    return "block"


def _sees_all(budget: Budget) -> bool:
    """Whether a budget sees calls that name no session."""
    return not isinstance(budget.window, SessionWindow)


def asks_for_session(matching: Matching) -> Applicable | None:
    """A budget that caps each session, which a call that names none would slip past.

    One that only watches blocks nothing: it does not see such calls.
    """
    for each in matching.applicable:
        if isinstance(each.budget.window, SessionWindow) and each.budget.full_rule != "pass":
            return each
    return None


def closed_cap(matching: Matching, amount_nano: int | None = None) -> Applicable | None:
    """A cell of the cap matrix that is set to 0 (BU-7) or, where `amount_nano` is 0, any budget of 0 that blocks.

    Neither lets anything pass, also not what costs nothing or, for a cell, names no session: the figures alone would.
    Of what costs something, they tell more than this does.
    """
    for each in matching.applicable:
        budget = each.budget
        if budget.limit_nano == 0 and (budget.is_cap or (amount_nano == 0 and budget.full_rule == "block")):
            return each
    return None


def names_of(facts: CallFacts) -> tuple[str, ...]:
    """The names of the models that a call asks for and is priced as. A price that only stands in is no other model."""
    names = _names_of_model(facts.vendor, facts.model_requested)
    if facts.match in ("exact", "normalised") and facts.model_priced not in ("", *names):
        names.append(facts.model_priced)
    return tuple(names)


def _names_of_model(vendor: str, model: str) -> list[str]:
    """A model's name, and that without its vendor's prefix; none of none."""
    bare = model
    for prefix in ("models/", f"{vendor}/"):
        if bare[: len(prefix)].lower() == prefix.lower():
            bare = bare[len(prefix) :]
    return [name for name in dict.fromkeys((model, bare)) if name]


def _spelled(kind: str, value: str) -> str:
    return value.lower() if kind in _KINDS_OF_ANY_CASE else value


def context_of(facts: CallFacts) -> dict[str, Any]:
    """What an expression may speak of. All of it is in every event of the call; what the call leaves open is ``""``."""
    who = facts.identity
    return {
        "org": who.org,
        "team": who.team or "",
        "agent": who.agent or "",
        "user": who.user or "",
        "project": who.project or "",
        "session": who.session or "",
        "environment": who.environment or "",
        "key": who.key_id,
        "tags": list(who.tags),
        "vendor": facts.vendor,
        "route": facts.route,
        "model": facts.model_requested,
        "auth_mode": facts.auth_mode,
        "billing_class": facts.billing_class,
    }


def _of_part(facts: CallFacts) -> dict[str, Any]:
    """What an expression may speak of before any call of a part is there; what it says of them fails."""
    return {name: value for name, value in context_of(facts).items() if name not in _FIELDS_OF_CALLS}


def instance_id(budget_id: str, value: str) -> str:
    """The id of a budget's figures for one value; a value that is long or has a colon, say, is taken by its hash."""
    if _PLAIN_VALUE.fullmatch(value):
        return f"{budget_id}@{value}"
    return f"{budget_id}@@{hashlib.sha256(value.encode()).hexdigest()[:32]}"


def _itself(budget: Budget) -> Applicable:
    return Applicable(budget, budget.budget_id, budget.scope)


def _open_or(value: str | None) -> tuple[str, ...]:
    return () if value is None else (value,)


# Every scope that a call is in by value, but for its models.
_VALUES: Final[Mapping[str, Callable[[CallFacts], tuple[str, ...]]]] = {
    "org": lambda facts: (facts.identity.org,),
    "environment": lambda facts: _open_or(facts.identity.environment),
    "billing_class": lambda facts: (facts.billing_class,),
    "vendor": lambda facts: (facts.vendor,),
    "tag": lambda facts: facts.identity.tags,
    "team": lambda facts: _open_or(facts.identity.team),
    "project": lambda facts: _open_or(facts.identity.project),
    "user": lambda facts: _open_or(facts.identity.user),
    "agent": lambda facts: _open_or(facts.identity.agent),
    "key": lambda facts: (facts.identity.key_id,),
    "session": lambda facts: _open_or(facts.identity.session),
}
_RANK: Final = {kind: rank for rank, kind in enumerate(SCOPE_KINDS)}


def _order(each: Applicable) -> tuple[int, str]:
    return _RANK[each.budget.scope_kind], each.budget_id
