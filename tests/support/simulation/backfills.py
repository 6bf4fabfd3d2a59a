"""Plans in which budgets are made in the midst of calls, so that most of the run is about their past (BU-8)."""

from dataclasses import replace
from random import Random

from services.core.budgets import Budget
from services.core.windows import CalendarWindow, LifetimeWindow, RollingWindow
from tests.support.simulation.plan import CALL_NANO, EXPRESSION, MODEL, ORG, SESSIONS, USERS, Call, Plan

_MADE = 3
_WINDOWS = (CalendarWindow("day", "Asia/Kolkata"), RollingWindow(60_000), LifetimeWindow())
_SCOPES = (("org", ORG), ("team", "ml"), ("user", "ada"), ("user", "*"), ("model", MODEL), ("cel", "ada"))


def add_new_budgets(plan: Plan) -> None:
    """Has a plan make small budgets, one after another, each among calls before and after it.

    By chance of its own. What there was at first stays, with room for all of these; its changes and calls go.
    """
    rng = Random(f"backfills:{plan.seed}")
    at_s, budgets = plan.budgets[0]
    budgets = tuple(replace(each, limit_nano=each.limit_nano * 100) for each in budgets)
    plan.budgets, plan.calls, plan.fail_open = [(at_s, budgets)], [], False
    for number in range(2, 2 + _MADE):
        at_s += rng.uniform(0.6, 1.2)
        budgets = (*budgets, _new(rng, number))
        plan.budgets.append((at_s, budgets))
        # Until a past is found out, which the ledger's silence delays, calls must wait.
        plan.weather.cuts.append(("", "ledger", at_s, at_s + rng.choice((0.0, 0.5, 1.5)) * rng.random()))
        plan.calls += [_call(rng, plan, at_s - 0.6, at_s) for _ in range(rng.randint(2, 4))]
        plan.calls += [_call(rng, plan, at_s, at_s + 2.0) for _ in range(rng.randint(4, 7))]
    plan.weather.slow_folds_s = rng.choice((0.0, 0.3))
    plan.calls.sort(key=lambda each: each.at_s)


def _new(rng: Random, number: int) -> Budget:
    kind, value = rng.choice(_SCOPES)
    return Budget(
        f"bud_new{number}",
        kind,  # type: ignore[arg-type]
        value,
        rng.choice(_WINDOWS),
        CALL_NANO * rng.choice((2, 4, 6)) + rng.randint(0, 20_000),
        expression=EXPRESSION if kind == "cel" else None,
        since_version=number,
    )


def _call(rng: Random, plan: Plan, since_s: float, until_s: float) -> Call:
    return Call(
        at_s=max(0.0, rng.uniform(since_s, until_s)),
        org=ORG,
        gateway=rng.randrange(plan.gateways),
        session=rng.choice(SESSIONS),
        user=rng.choice(USERS),
        max_tokens=rng.choice((100, 300)),
        stream=rng.random() < 0.5,
        hangs_up_s=None,
    )
