"""What a seed means: the org, the load, and what goes wrong when."""

from dataclasses import dataclass, field, replace
from random import Random

from services.core.budgets import Budget
from services.core.snapshot import Target
from services.core.windows import CalendarWindow, IntervalWindow, LifetimeWindow, RollingWindow, SessionWindow, Window
from tests.support.simulation.network import Weather

# Two orgs on one log: what befalls one must not touch the other.
ORG, NEIGHBOUR = "acme", "beta"
USERS, SESSIONS = ("ada", "bob"), ("s-1", "s-2")
EXPRESSION = 'user == "ada"'
MODEL, CHEAPER, DEARER = "gpt-4o-mini", "gpt-4.1-nano", "gpt-4.1-mini"
FALLBACKS = (Target("other", CHEAPER), Target("other", DEARER), Target("openai", CHEAPER))
CALL_NANO = 125_000  # about what one call of the usual size holds
# In how many seeds in a hundred budgets get another parent.
REPARENTING = 20


@dataclass(frozen=True)
class Call:
    """One call: when, by which org through which gateway, as whom, how large, and when its client hangs up."""

    at_s: float
    org: str
    gateway: int
    session: str | None
    user: str
    max_tokens: int | None
    stream: bool
    hangs_up_s: float | None


@dataclass
class Plan:
    """A run. Times are virtual seconds from its start."""

    seed: int
    gateways: int
    aggregators: int
    folding: int
    partitions: int
    hold_ms: int
    outbox_limit: int
    hot_start_ms: int
    skews_ms: list[int]
    repeats_per_mille: int
    moods: dict[str, int]
    weather: Weather
    deaths: list[int]
    wipes_s: list[float]
    # When the hot state falls back to what it was a while before, as a replica does that takes over.
    rollbacks: list[tuple[float, float]]
    book_expired: bool
    fail_open: bool
    # Whether streams may be held a step at a time, and some name no limit of their own.
    extends: bool
    fallbacks: tuple[Target, ...]
    # Each change of configuration: when, and the budgets from then on. The first is there from the start.
    budgets: list[tuple[float, tuple[Budget, ...]]] = field(default_factory=list)
    # The neighbour's, which never change.
    neighbours_budgets: tuple[Budget, ...] = ()
    calls: list[Call] = field(default_factory=list)
    poison_s: list[float] = field(default_factory=list)
    ledger_every_s: float = 1.0


def draw(seed: int, *, with_rollbacks: bool = False, is_plain: bool = False) -> Plan:
    """The plan of a seed. With rollbacks, the hot state may lose its last writes, too, as when a replica takes over.

    A plain one, and one with rollbacks, has no budgets that get another parent.
    """
    rng = Random(f"plan:{seed}")
    gateways, aggregators = rng.choice((1, 2, 2, 3)), rng.choice((1, 1, 2))
    lasts_s = rng.uniform(1.0, 6.0)
    is_stormy = rng.random() < 0.75
    plan = Plan(
        seed=seed,
        gateways=gateways,
        aggregators=aggregators,
        folding=rng.randint(1, aggregators),
        partitions=rng.choice((1, 2)),
        hold_ms=rng.choice((900, 2_500, 6_000, 9_000)),
        outbox_limit=rng.choice((6, 1000, 1000, 1000)),
        hot_start_ms=-rng.choice((0, 500, 1_500, 3_000, 100_000)),
        skews_ms=[rng.randint(-3_600_000, 3_600_000) if rng.random() < 0.7 else 0 for _ in range(8)],
        repeats_per_mille=rng.choice((0, 100)),
        moods=_moods(rng),
        weather=_weather(rng, lasts_s) if is_stormy else Weather(),
        deaths=sorted((rng.randint(1, 2_000) for _ in range(rng.randint(0, 4))), reverse=True) if is_stormy else [],
        wipes_s=[rng.uniform(0.1, lasts_s)] if rng.random() < 0.25 else [],
        rollbacks=_rollbacks(rng, lasts_s) if with_rollbacks else [],
        book_expired=rng.random() < 0.9,
        fail_open=rng.random() < 0.15,
        extends=rng.random() < 0.12,
        fallbacks=tuple(rng.sample(FALLBACKS, rng.choice((0, 0, 1, 2)))),
        ledger_every_s=rng.choice((0.1, 0.7, 5.0)),
    )
    plan.budgets = _budgets(rng, lasts_s)
    plan.neighbours_budgets = (Budget("bud_0", "org", NEIGHBOUR, _window(rng), CALL_NANO * rng.choice((2, 5))),)
    if plan.extends:
        plan.budgets = [(at_s, tuple(_extending(each) for each in budgets)) for at_s, budgets in plan.budgets]
    plan.poison_s = [rng.uniform(0, lasts_s) for _ in range(rng.choice((0, 0, 0, 1, 2)))]
    for _ in range(rng.randint(6, 26)):
        plan.calls.append(_call(rng, gateways, lasts_s))
    if plan.extends:
        plan.calls = [replace(each, max_tokens=None) if each.stream else each for each in plan.calls]
    plan.calls.sort(key=lambda each: each.at_s)
    if not (with_rollbacks or is_plain):
        plan.budgets = _reparented(Random(f"parents:{seed}"), plan.budgets, lasts_s)
    return plan


def _extending(budget: Budget) -> Budget:
    return replace(budget, extend=True, limit_nano=budget.limit_nano * 20)


def _rollbacks(rng: Random, lasts_s: float) -> list[tuple[float, float]]:
    since_s = rng.uniform(0.1, lasts_s)
    return [(since_s, since_s + rng.uniform(0.01, 1.0))]


def _moods(rng: Random) -> dict[str, int]:
    kinds = ("unsent", "timeout", "hangs_up", "error", "breaks_off")
    return {kind: rng.choice((0, 0, 5, 15)) for kind in kinds}


def _weather(rng: Random, lasts_s: float) -> Weather:
    weather = Weather(
        longest_s=rng.choice((0.002, 0.01, 0.06)),
        slow_per_mille=rng.choice((0, 10, 60)),
        slow_s=rng.choice((0.2, 1.5)),
        lost_per_mille=rng.choice((0, 5, 30)),
        late_per_mille=rng.choice((0, 5, 20)),
        slow_folds_s=rng.choice((0.0, 0.0, 0.5)),
    )
    for _ in range(rng.randint(0, 3)):
        begin = rng.uniform(0, lasts_s)
        who = rng.choice(("", "gateway0", "gateway1", "aggregator0", "aggregator1", "reaper"))
        system = rng.choice(("hot", "hot", "log", "log", "ledger"))
        weather.cuts.append((who, system, begin, begin + rng.choice((0.3, 3.0, 12.0)) * rng.random()))
    return weather


def _window(rng: Random) -> Window:
    return rng.choice(
        (
            CalendarWindow("hour", "UTC"),
            CalendarWindow("day", "Asia/Kolkata"),
            RollingWindow(60_000),
            RollingWindow(60_000),
            IntervalWindow(rng.choice((1_000, 4_000)), 0),
            LifetimeWindow(),
        )
    )


def _budget(rng: Random, number: int, others: list[Budget]) -> Budget:
    kind, value = rng.choice(
        (
            ("org", "acme"),
            ("team", "ml"),
            ("user", "ada"),
            ("user", "*"),
            ("vendor", "openai"),
            ("model", MODEL),
            ("cel", "ada"),
        )
    )
    limit_nano = CALL_NANO * rng.choice((1, 2, 4, 9, 30)) + rng.randint(0, 20_000)
    when_full = rng.choice(("block", "block", "block", "downgrade", "alert"))
    parents = [each for each in others if each.scope_value != "*"]
    parent = rng.choice(parents) if parents and rng.random() < 0.35 else None
    return Budget(
        f"bud_{number}",
        kind,  # type: ignore[arg-type]
        value,
        SessionWindow() if rng.random() < 0.1 else _window(rng),
        limit_nano,
        expression=EXPRESSION if kind == "cel" else None,
        parent_id=None if parent is None else parent.budget_id,
        child_mode=rng.choice(("isolated", "fallback")),
        enforcement="monitor" if rng.random() < 0.1 else "enforce",
        when_full=when_full,
        downgrade_to=CHEAPER if when_full == "downgrade" else None,
    )


def _budgets(rng: Random, lasts_s: float) -> list[tuple[float, tuple[Budget, ...]]]:
    current: list[Budget] = []
    for number in range(rng.randint(1, 4)):
        current.append(_budget(rng, number, current))
    made = len(current)
    versions = [(0.0, tuple(current))]
    for at_s in sorted(rng.uniform(0.2, lasts_s) for _ in range(rng.choice((0, 0, 1, 2)))):
        kind = rng.choice(("limit", "limit", "add", "add", "remove", "window"))
        # Control numbers what it publishes from 1 on. Some budgets are backfilled, some count from now on.
        since_version = rng.choice((0, len(versions) + 1))
        parents = {each.parent_id for each in current}
        childless = [each for each in current if each.budget_id not in parents]
        if kind == "add" or not current:
            current.append(replace(_budget(rng, made, current), since_version=since_version))
            made += 1
        elif kind == "remove":
            current.remove(rng.choice(childless))
        elif kind == "window":
            place = rng.randrange(len(current))
            current[place] = replace(current[place], window=_window(rng), since_version=len(versions) + 1)
        else:
            place = rng.randrange(len(current))
            old = current[place]
            current[place] = replace(old, limit_nano=old.limit_nano * rng.choice((1, 3)) // 2)
        versions.append((at_s, tuple(current)))
    return versions


def _reparented(
    rng: Random, versions: list[tuple[float, tuple[Budget, ...]]], lasts_s: float
) -> list[tuple[float, tuple[Budget, ...]]]:
    """The changes, and in some seeds one or two more after them: a budget gets another parent, its first one, or none.

    By chance of its own: the rest of a seed is what it would be without.
    """
    if rng.randrange(100) >= REPARENTING:
        return versions
    changed = list(versions)
    for _ in range(rng.choice((1, 1, 2))):
        at_s, current = changed[-1]
        if not current:
            break
        by_id = {each.budget_id: each for each in current}
        child = rng.choice(current)
        others = [each for each in current if each.scope_value != "*" and child.budget_id not in _line(each, by_id)]
        parent = rng.choice(others).budget_id if others and rng.random() < 0.9 else None
        mode = rng.choice(("isolated", "fallback", "fallback"))
        moved = replace(child, parent_id=parent, child_mode=mode)
        now = tuple(moved if each is child else each for each in current)
        changed.append((rng.uniform(at_s, max(at_s, lasts_s)), now))
    return changed


def _line(budget: Budget, by_id: dict[str, Budget]) -> list[str]:
    """A budget and all above it."""
    above = [] if budget.parent_id is None else _line(by_id[budget.parent_id], by_id)
    return [budget.budget_id, *above]


def _call(rng: Random, gateways: int, lasts_s: float) -> Call:
    return Call(
        at_s=rng.uniform(0, lasts_s) if rng.randrange(3) else rng.choice((0.1, 0.5)),
        org=ORG if rng.randrange(5) else NEIGHBOUR,
        gateway=rng.randrange(gateways),
        session=rng.choice((*SESSIONS, *SESSIONS, *SESSIONS, None)),
        user=rng.choice(USERS),
        max_tokens=rng.choice((10, 100, 100, 300)),
        stream=rng.random() < 0.4,
        hangs_up_s=rng.uniform(0, 0.5) if rng.random() < 0.15 else None,
    )
