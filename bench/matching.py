"""How long it takes to find the budgets that a call falls under: ``python -m bench.matching``.

An org of ten budgets and one of many, whose call falls under about as many in both: by scope value, of each user, with
parents; and, apart, one of expressions, for calls of a context that has been seen and for calls of new ones.
"""

import argparse
import time
from dataclasses import replace
from typing import Final

from services.adapters.cel import Cel
from services.core.budgets import EACH, Budget, ScopeKind
from services.core.events import CallFacts
from services.core.identity import Identity
from services.core.matching import BudgetIndex
from services.core.windows import CalendarWindow

_DAY: Final = CalendarWindow("day", "UTC")
_KINDS: Final[tuple[ScopeKind, ...]] = (
    "team", "user", "agent", "project", "environment", "tag", "key", "model", "vendor", "session",
)  # fmt: skip
_CALLS: Final = 5_000
_CALL: Final = CallFacts(
    identity=Identity(
        "acme", "key0", "team0", "agent0", "user0", "project0", "session0", "environment0", ("tag0", "tag1", "tag2")
    ),
    vendor="vendor0",
    route="chat.completions",
    model_requested="model0",
    model_priced="model0",
    match="exact",
    catalog_version="v1",
    config_version=1,
)


def by_value(many: int) -> list[Budget]:
    """An org's budget, one of each user, and the rest by scope value, all of them children of the org's."""
    budgets = [Budget("bud_org", "org", "acme", _DAY, 1), Budget("bud_users", "user", EACH, _DAY, 1)]
    for number in range(many - len(budgets)):
        kind = _KINDS[number % len(_KINDS)]
        name = f"{kind}{number // len(_KINDS)}"
        budgets.append(Budget(f"bud_{number:06}", kind, name, _DAY, 1, parent_id="bud_org"))
    return budgets


def by_expression(many: int) -> list[Budget]:
    """Expressions, of which one is true."""
    return [
        Budget(f"bud_{number}", "cel", f"cel{number}", _DAY, 1, expression=f'team == "team{number}"')
        for number in range(many)
    ]


def microseconds(index: BudgetIndex, calls: list[CallFacts]) -> float:
    """What one call takes, the best of five runs."""
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        for facts in calls:
            index.matching(facts)
        best = min(best, time.perf_counter() - begin)
    return best / len(calls) * 1e6


def main() -> None:
    """Prints microseconds a call."""
    parser = argparse.ArgumentParser(description="Benchmark the matching of calls with budgets.")
    parser.add_argument("--budgets", type=int, default=10_000)
    parser.add_argument("--expressions", type=int, default=10)
    arguments = parser.parse_args()
    calls = [_CALL] * _CALLS
    few = microseconds(BudgetIndex(by_value(10)), calls)
    begin = time.perf_counter()
    index = BudgetIndex(by_value(arguments.budgets))
    built_s = time.perf_counter() - begin
    many = microseconds(index, calls)
    found = len(index.matching(_CALL).applicable)
    print(f"{10:>7} budgets: {few:7.2f} µs a call, {len(BudgetIndex(by_value(10)).matching(_CALL).applicable)} found")
    print(f"{arguments.budgets:>7} budgets: {many:7.2f} µs a call, {found} found; {many / few:.2f} times as long")
    print(f"{arguments.budgets:>7} budgets: {built_s * 1e3:7.1f} ms to index")
    expressions = BudgetIndex(by_expression(arguments.expressions), Cel())
    sessions = [replace(_CALL, identity=replace(_CALL.identity, session=f"ses{number}")) for number in range(_CALLS)]
    print(f"{arguments.expressions:>7} expressions: {microseconds(expressions, calls):7.2f} µs a call like one before")
    print(f"{arguments.expressions:>7} expressions: {microseconds(expressions, sessions):7.2f} µs a call unlike any")


if __name__ == "__main__":
    main()
