"""Plans of children that are nearly full and fall back, with holds that grow past them while other calls come in."""

from dataclasses import replace
from random import Random

from services.core.budgets import Budget
from services.core.windows import CalendarWindow, LifetimeWindow, RollingWindow
from tests.support.simulation.errands import Deed, Errand, Errands, new_errand, usd
from tests.support.simulation.plan import ORG, SESSIONS, Call, Plan

# In how many seeds in a hundred.
GROWING = 10
# About what a stream without a limit of its own holds at first: a step.
_STEP_NANO = 4_200_000
_WINDOWS = (CalendarWindow("day", "Asia/Kolkata"), RollingWindow(60_000), LifetimeWindow())


def add_growing_children(plan: Plan) -> Errands | None:
    """Makes a plan about one such child, and says what its clients do with the reservation API; None: it is as it was.

    By chance of its own. Whatever goes wrong goes wrong all the same; answers to changes are lost more often.
    """
    rng = Random(f"leaving:{plan.seed}")
    if rng.randrange(100) >= GROWING:
        return None
    limit_nano = _STEP_NANO * rng.choice((10, 12, 15, 19, 25)) // 10 + rng.randint(0, 20_000)
    window, kind = rng.choice(_WINDOWS), rng.choice((("user", "ada"), ("user", "*"), ("team", "ml")))
    plan.budgets = [
        (
            0.0,
            (
                Budget("bud_all", "org", ORG, window, _STEP_NANO * rng.choice((6, 12, 40)), extend=True),
                Budget(
                    "bud_child",
                    kind[0],  # type: ignore[arg-type]
                    kind[1],
                    window,
                    limit_nano,
                    parent_id="bud_all",
                    child_mode="fallback",
                    extend=True,
                ),
            ),
        )
    ]
    plan.fail_open = False
    plan.weather.lost_changes_per_mille = rng.choice((0, 100, 300))
    plan.weather.late_per_mille = max(plan.weather.late_per_mille, rng.choice((0, 0, 30)))
    plan.calls = sorted((_call(rng, plan) for _ in range(rng.randint(8, 14))), key=lambda each: each.at_s)
    errands = Errands(afterwards_s=rng.choice((0, 0, 1_800)))
    for number in range(rng.choice((0, 1, 2, 3))):
        errands.reserving.append(new_errand(rng, f"growing-{number}", 2.0, limit_nano // 3))
    for number in range(rng.choice((0, 0, 1, 2))):
        errands.reserving.append(_shrinking(rng, new_errand(rng, f"shrinking-{number}", 2.0, limit_nano), limit_nano))
    return errands


def _shrinking(rng: Random, errand: Errand, limit_nano: int) -> Errand:
    """A reservation of much of the child that is made smaller by a client that asks once, and costs all it was told."""
    amount_nano = limit_nano * rng.choice((5, 7, 9)) // 10
    smaller = Deed("extend", rng.uniform(0, 0.3), {"amount_usd": usd(amount_nano // 8)}, tries=1)
    settles = Deed("settle", rng.uniform(0.2, 1.0), {"cost_usd": usd(amount_nano)}, repeats=1)
    body = {"amount_usd": usd(amount_nano), "vendor": "tavily"}
    return replace(errand, user="ada", body=body, others_body=None, deeds=(smaller, settles))


def _call(rng: Random, plan: Plan) -> Call:
    return Call(
        at_s=rng.uniform(0, 3.0),
        org=ORG,
        gateway=rng.randrange(plan.gateways),
        session=rng.choice(SESSIONS),
        user="ada" if rng.randrange(5) else "bob",
        max_tokens=rng.choice((None, None, None, 100, 2_000)),
        stream=rng.random() < 0.9,
        hangs_up_s=rng.uniform(0, 0.5) if rng.random() < 0.1 else None,
    )
