"""What clients of the reservation API and of delegations set out to do, drawn from a seed beside its calls."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from services.core.budgets import Budget
from tests.support.simulation.plan import CALL_NANO, MODEL, SESSIONS, USERS, Plan

NANO = 1_000_000_000
LEAST_PART_NANO, LEAST_PART_S = 1_000_000, 60
# How many seeds in a hundred have clients of each kind.
RESERVING, DELEGATING = 25, 15
# A part is not small: where any are made, budgets are so much larger.
LARGER = 16


@dataclass(frozen=True)
class Deed:
    """What is done to a reservation next: ``extend``, ``settle`` or ``release``, and how often it is asked again.

    `tries`: how often its client asks until it is told; None: as often as others do.
    """

    kind: str
    after_s: float
    body: dict[str, Any]
    key: str | None = None
    repeats: int = 0
    tries: int | None = None


@dataclass(frozen=True)
class Errand:
    """One reservation from beginning to end; without a deed that ends it, it is left to expire.

    `others_body` is what somebody asks for under the same idempotency key.
    """

    name: str
    at_s: float
    user: str
    session: str
    key: str | None
    body: dict[str, Any]
    deeds: tuple[Deed, ...]
    repeats: int
    others_body: dict[str, Any] | None = None


@dataclass(frozen=True)
class Carving:
    """One part of a budget: how much of it, for how long, the calls made by its key, and what is handed on of it.

    `ends_after_s`: somebody ends it, by its own key or its maker's; None: it is left to expire.
    """

    name: str
    at_s: float
    user: str
    session: str
    budget_id: str
    amount_nano: int
    lasts_s: int
    calls: tuple[tuple[float, int, bool], ...]
    inner: "Carving | None" = None
    errand: Errand | None = None
    ends_after_s: float | None = None
    ends_by_itself: bool = False
    key: str | None = None
    repeats: int = 0


@dataclass
class Errands:
    """What a seed's clients do. `afterwards_s`: how long after all is at rest everything is asked once more."""

    reserving: list[Errand] = field(default_factory=list)
    carving: list[Carving] = field(default_factory=list)
    afterwards_s: int = 0

    def __bool__(self) -> bool:
        return bool(self.reserving or self.carving)


def add_errands(plan: Plan, lasts_s: float = 4.0) -> Errands:
    """The errands of a seed, often none. Where parts are handed on, its plan is changed so that some fit."""
    rng = Random(f"errands:{plan.seed}")
    errands = Errands(afterwards_s=rng.choice((0, 0, 90, 1_800, 40 * 3_600, 4 * 86_400)))
    if rng.randrange(100) < RESERVING:
        for number in range(rng.randint(2, 5)):
            errands.reserving.append(new_errand(rng, f"order-{number}", lasts_s, CALL_NANO))
    rng = Random(f"carvings:{plan.seed}")
    if rng.randrange(100) < DELEGATING:
        plan.budgets = [(at_s, tuple(_larger(each) for each in budgets)) for at_s, budgets in plan.budgets]
        # Of a vendor's or a model's budget nothing can be handed on.
        wholes = [each for each in plan.budgets[0][1] if each.scope_kind in ("org", "team", "user")]
        for number in range(rng.randint(1, 3)):
            errands.carving.append(_carving(rng, f"run-{number}", lasts_s, _whole(rng, wholes or plan.budgets[0][1])))
        for _ in range(rng.choice((0, 0, 1, 2))):
            begin = rng.uniform(0, lasts_s)
            plan.weather.cuts.append(("", "control", begin, begin + rng.uniform(0, 3)))
    return errands


def _whole(rng: Random, budgets: Sequence[Budget]) -> tuple[str, int]:
    whole = rng.choice(budgets)
    return whole.budget_id, whole.limit_nano


def _larger(budget: Budget) -> Budget:
    return replace(budget, limit_nano=budget.limit_nano * LARGER)


def usd(nano: int) -> str:
    """Dollars, as the API has them."""
    return f"{nano // NANO}.{nano % NANO:09d}"


def new_errand(rng: Random, name: str, lasts_s: float, unit_nano: int) -> Errand:
    """One that begins within `lasts_s` and reserves some halves of `unit_nano`."""
    amount_nano = unit_nano * rng.choice((1, 2, 4, 8)) // 2
    body: dict[str, Any] = {"amount_usd": usd(amount_nano), "vendor": "tavily"}
    is_priced = rng.random() < 0.3
    if is_priced:
        usage = {"input_tokens": rng.choice((0, 100)), "output_tokens": rng.choice((100, 300))}
        body = {"usage": usage, "vendor": "openai", "model": MODEL}
        amount_nano = usage["input_tokens"] * 150 + usage["output_tokens"] * 600
    if (hold_s := rng.choice((None, None, 1, 3, 20, 900))) is not None:
        body["hold_seconds"] = hold_s
    key = name if rng.random() < 0.85 else None
    others_body = None
    if key is not None and rng.random() < 0.4:
        others_body = {**body, "hold_seconds": 7}
    deeds = [_extension(rng, number, amount_nano) for number in range(rng.choice((0, 0, 1, 2)))]
    if rng.random() < 0.8:
        deeds.append(_end(rng, amount_nano, is_priced))
    return Errand(
        name,
        rng.uniform(0, lasts_s),
        rng.choice(USERS),
        rng.choice(SESSIONS),
        key,
        body,
        tuple(deeds),
        rng.choice((0, 1, 2, 3)),
        others_body,
    )


def _extension(rng: Random, number: int, amount_nano: int) -> Deed:
    body: dict[str, Any] = {}
    if rng.random() < 0.8:
        body["amount_usd"] = usd(amount_nano * rng.choice((1, 2, 3, 6)) // 2)
    if not body or rng.random() < 0.5:
        body["hold_seconds"] = rng.choice((1, 5, 30))
    key = f"more-{number}" if rng.random() < 0.6 else None
    return Deed("extend", rng.uniform(0, 1.5), body, key, rng.choice((0, 0, 1, 2)))


def _end(rng: Random, amount_nano: int, is_priced: bool) -> Deed:
    after_s, repeats = rng.choice((0.0, 0.4, 2.5)) * rng.random(), rng.choice((0, 1, 2, 3))
    if rng.random() < 0.25:
        return Deed("release", after_s, {}, None, repeats)
    body: dict[str, Any] = {"cost_usd": usd(amount_nano * rng.choice((0, 1, 2, 4, 4, 5)) // 4)}
    if is_priced and rng.random() < 0.5:
        body = {"usage": {"output_tokens": rng.choice((0, 50, 100))}}
    if rng.random() < 0.2:
        body["outcome"] = "partial"
    return Deed("settle", after_s, body, None, repeats)


def _carving(rng: Random, name: str, lasts_s: float, whole: tuple[str, int], depth: int = 0) -> Carving:
    budget_id, limit_nano = whole
    amount_nano = max(LEAST_PART_NANO, limit_nano * rng.choice((1, 2, 3, 4)) // 4)
    inner = errand = None
    if depth < 2 and rng.random() < 0.4:
        inner = _carving(rng, f"{name}-sub", lasts_s, (budget_id, amount_nano), depth + 1)
    if rng.random() < 0.3:
        errand = new_errand(rng, f"{name}-order", 1.0, amount_nano // 3)
    return Carving(
        name,
        rng.uniform(0, lasts_s * 0.7),
        rng.choice(USERS),
        rng.choice(SESSIONS),
        budget_id,
        amount_nano,
        rng.choice((LEAST_PART_S, 75, 600)),
        tuple(
            (rng.uniform(0, 2.0), rng.choice((100, 300, 1_500)), rng.random() < 0.3) for _ in range(rng.randint(1, 8))
        ),
        inner,
        errand,
        rng.uniform(0.2, 4.0) if rng.random() < 0.6 else None,
        rng.random() < 0.5,
        name if rng.random() < 0.6 else None,
        rng.choice((0, 1, 2)),
    )
