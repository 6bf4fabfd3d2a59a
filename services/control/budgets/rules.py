"""What a budget may be: rules that need nothing but the request and the budget it changes."""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final

from services.control.budgets.forms import MAX_THRESHOLDS, BudgetOptions, ChangeBudget, SetBudget
from services.control.connections.names import SANDBOX, is_vendor_name
from services.control.errors import invalid
from services.core.billing import AUTH_MODES, split_class
from services.core.budgets import EACH, Budget, ScopeKind
from services.core.identity import KEY_PREFIX, check_name
from services.core.matching import ExpressionError, Expressions
from services.core.money import MAX_LIMIT_NANO, MoneyError, format_usd, parse_usd
from services.core.windows import LifetimeWindow, Window, WindowText, window_text

_WINDOW_OPTIONS: Final = ("zone", "week_start", "anchor_day", "anchor_month", "anchor")
_MODEL: Final = re.compile(r"[^\s\x00-\x1f\x7f](?:[^\x00-\x1f\x7f]{0,254}[^\s\x00-\x1f\x7f])?")


def limit_of(text: str) -> int:
    """Nano-dollars of a limit. Raises a 400."""
    try:
        limit_nano = parse_usd(text)
    except MoneyError as error:
        raise invalid("limit_usd", f"limit_usd: {error}") from error
    if limit_nano < 0:
        raise invalid("limit_usd", "limit_usd must not be negative; 0 blocks everything")
    if limit_nano > MAX_LIMIT_NANO:
        raise invalid("limit_usd", f"limit_usd must be at most {format_usd(MAX_LIMIT_NANO)}")
    return limit_nano


def scope_of(request: SetBudget, org: str) -> tuple[ScopeKind, str, str | None]:
    """Kind and value of the scope asked for, and the team named beside an agent. Raises a 400."""
    if request.scope is None:
        if request.agent is not None:
            return "agent", check_name("agent", request.agent), request.team
        if request.team is not None:
            return "team", check_name("team", request.team), None
        return "org", org, None
    if request.team is not None or request.agent is not None:
        raise invalid("scope", "scope and team or agent exclude each other; leave one out")
    kind, value = request.scope.kind, request.scope.value
    if request.scope.expression is not None and kind != "cel":
        message = f"scope.expression goes with kind 'cel', not {kind!r}; leave it out, or use kind 'cel' and a name"
        raise invalid("scope.expression", message)
    if kind == "org":
        if value not in (None, org):
            raise invalid("scope.value", f"scope.value of kind 'org' can only be {org!r}; leave it out")
        return "org", org, None
    if value is None:
        raise invalid("scope.value", f"scope.value is required for kind {kind!r}")
    _check_value(kind, value)
    return kind, value, None


def _check_value(kind: ScopeKind, value: str) -> None:
    if value == EACH:
        if kind == "cel":
            raise invalid("scope.value", "scope.value of kind 'cel' is a name of your choice, and can't be '*'")
    elif kind == "vendor":
        if not _is_vendor(value):
            raise invalid("scope.value", "scope.value of kind 'vendor' must be a vendor's name, such as openai")
    elif kind == "billing_class":
        if not _is_billing_class(value):
            message = f"an auth mode ({', '.join(AUTH_MODES)}), a dot and a vendor's name, such as metered.openai"
            raise invalid("scope.value", f"scope.value of kind 'billing_class' must be {message}")
    elif kind == "model":
        if _MODEL.fullmatch(value) is None:
            message = "scope.value of kind 'model' must be a model's name as calls ask for it, such as gpt-4o"
            raise invalid("scope.value", message)
        if EACH in value:
            message = "scope.value of kind 'model' is one model or '*'; for several use kind 'cel', as in"
            raise invalid("scope.value", f'{message} model.startsWith("gpt-4")')
    elif kind == "key" and value.startswith(KEY_PREFIX):
        raise invalid("scope.value", "scope.value of kind 'key' is a key's id, such as key_01JD..., never the key")
    else:
        check_name("scope.value", value)


def _is_vendor(name: str) -> bool:
    return name == SANDBOX or is_vendor_name(name)


def _is_billing_class(text: str) -> bool:
    try:
        return _is_vendor(split_class(text)[1])
    except ValueError:
        return False


def expression_of(request: SetBudget, known: str | None, expressions: Expressions) -> str:
    """The expression of a scope of kind ``cel``, `known` where its name has one already. Raises a 400."""
    wanted = None if request.scope is None else request.scope.expression
    text = known if wanted is None else wanted
    if text is None:
        message = 'scope.expression is required for kind \'cel\', such as: team == "ml" && vendor == "openai"'
        raise invalid("scope.expression", message)
    try:
        expressions.compile(text)
    except ExpressionError as error:
        raise invalid("scope.expression", f"scope.expression is no condition: {error}") from error
    return text


def window_of(request: SetBudget) -> Window:
    """The window asked for. Raises `WindowError`."""
    options = {name: getattr(request, name) for name in _WINDOW_OPTIONS}
    return WindowText(request.window, **options).parse()


def changed_window(request: ChangeBudget, window: Window) -> Window:
    """`window` as the request wants it: another one, or this one with other options. Raises `WindowError`."""
    options = {name: getattr(request, name) for name in _WINDOW_OPTIONS if name in request.model_fields_set}
    if request.window is not None:
        return WindowText(request.window, **options).parse()
    return replace(window_text(window), **options).parse() if options else window


def with_options(budget: Budget, request: BudgetOptions) -> Budget:
    """`budget` with what the request says of its options. Raises a 400 for those that contradict each other.

    An option that another one needs goes with it: without a parent there is no fallback, and without a downgrade no
    model for it.
    """
    wanted: dict[str, Any] = {
        name: value
        for name in ("estimate", "extend", "child_mode", "enforcement", "when_full", "downgrade_to", "parent_id")
        if (value := getattr(request, name)) is not None
    }
    if request.thresholds is not None:
        wanted["thresholds"] = _thresholds(request.thresholds)
    given = request.model_fields_set
    if "parent_id" in given and request.parent_id is None:
        wanted = {"child_mode": "isolated", **wanted, "parent_id": None}
    if "downgrade_to" in given and request.downgrade_to is None:
        wanted["downgrade_to"] = None
    elif wanted.get("when_full", "downgrade") != "downgrade":
        wanted = {"downgrade_to": None, **wanted}
    changed = replace(budget, **wanted)
    check_budget(changed)
    return changed


def check_budget(budget: Budget) -> None:
    """Raises a 400 for a budget that contradicts itself."""
    if budget.when_full == "downgrade" and budget.downgrade_to is None:
        message = (
            "downgrade_to is required for when_full downgrade: a cheaper model of the same vendor, such as gpt-4o-mini"
        )
        raise invalid("downgrade_to", message)
    if budget.when_full != "downgrade" and budget.downgrade_to is not None:
        message = f"downgrade_to goes with when_full downgrade, not {budget.when_full}; leave it out, or set when_full"
        raise invalid("downgrade_to", message)
    if budget.child_mode == "fallback" and budget.parent_id is None:
        raise invalid("child_mode", "child_mode fallback lets the parent pay; name one by parent_id, or use isolated")
    if budget.child_mode == "fallback" and budget.when_full == "downgrade":
        message = "when_full downgrade is never reached with child_mode fallback, where the parent pays; drop either"
        raise invalid("when_full", message)
    if budget.scope_value == EACH and isinstance(budget.window, LifetimeWindow):
        message = (
            "window lifetime would keep figures of every value of '*' for ever; use a window that ends, or one value"
        )
        raise invalid("window", message)
    if budget.downgrade_to is not None and _MODEL.fullmatch(budget.downgrade_to) is None:
        raise invalid("downgrade_to", "downgrade_to must be a model's name, such as gpt-4o-mini")


def _thresholds(percents: Sequence[int]) -> tuple[int, ...]:
    if len(percents) > MAX_THRESHOLDS:
        raise invalid("thresholds", f"thresholds names {len(percents)} percents; at most {MAX_THRESHOLDS} are kept")
    if any(not 1 <= each <= 100 for each in percents):
        raise invalid("thresholds", "thresholds must be whole percents from 1 to 100")
    if any(later <= earlier for earlier, later in pairwise(percents)):
        raise invalid("thresholds", "thresholds must ascend, each percent once, such as [60, 85, 100]")
    return tuple(percents)
