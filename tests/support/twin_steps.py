"""What the twins are put through: each operation with what it is done to, drawn by hypothesis or by a seeded walk."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Literal, Protocol, TypeVar

from services.core.budgets import Charge, FullRule, Proposal
from services.core.hotstate import (
    CLOCK_MARGIN_MS,
    EXPIRY_PRODUCER,
    MAX_FIGURE,
    SESSION_IDLE_MS,
    TOMBSTONE_MS,
    Backfill,
    FoldStep,
    HeldBackfill,
    HoldOption,
    HoldRequest,
)
from services.core.ports import TopicPartition
from services.core.reserve import peek as peek_at
from services.core.windows import (
    CalendarWindow,
    IntervalWindow,
    LifetimeWindow,
    RollingWindow,
    SessionWindow,
    Window,
    parse_span,
    span_at,
)
from tests.support.twins import ORG, Twins

T = TypeVar("T")

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
WINDOWS: Final[tuple[tuple[str, Window], ...]] = (
    ("bud_org_day", CalendarWindow("day", "Europe/Berlin")),
    ("bud_team_hour", CalendarWindow("hour", "UTC")),
    ("bud_team_1m", RollingWindow(60_000)),
    ("bud_agent_30d", RollingWindow(30 * DAY_MS)),
    ("bud_session", SessionWindow()),
    ("bud_ever@u-1", LifetimeWindow()),
    ("bud_every_7m", IntervalWindow(7 * 60_000, 1)),
)
SESSIONS: Final = ("s1", "run:7/a")
LIMITS: Final = (0, 100, *(300, 600, 1_000) * 3, 10**15 - 1, 10**15, 2**53 + 1, 9 * 10**18, 2**63 - 1)
LARGE: Final = (10**9 - 1, 10**15 - 1, 2**53 - 1, 2**53, 2**53 + 1, 10**18, 9 * 10**18)
RULES: Final[tuple[FullRule, ...]] = ("block", "block", "block", "downgrade", "downgrade", "parent", "pass")
TURNS_MS: Final = (1, 999, 1_000, 30_000, 59_999, 900_000, -1_500, HOUR_MS, DAY_MS, 2 * DAY_MS, SESSION_IDLE_MS)
KINDS: Final[tuple[Literal["settle", "expire", "restore", "resize"], ...]] = ("settle", "expire", "restore", "resize")


class Draw(Protocol):
    """Where chance comes from."""

    def one_of(self, choices: Sequence[T]) -> T:
        """One of them."""

    def number(self, low: int, high: int) -> int:
        """One of these, both included."""


class Seeded:
    """Chance that repeats."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def one_of(self, choices: Sequence[T]) -> T:
        return choices[int(self._random.random() * len(choices))]

    def number(self, low: int, high: int) -> int:
        return low + int(self._random.random() * (high - low + 1))


def _amount(twins: Twins, draw: Draw) -> int:
    if twins.has_large_amounts and draw.number(0, 3) == 0:
        return draw.one_of(LARGE)
    return draw.number(0, 300)


def _windows(twins: Twins, draw: Draw, at_most: int = 5) -> list[tuple[str, Window]]:
    left = [(budget_id, twins.windows.get(budget_id, window)) for budget_id, window in WINDOWS]
    return [left.pop(draw.number(0, len(left) - 1)) for _ in range(draw.number(0, at_most))]


def proposals_at(twins: Twins, draw: Draw, at_ms: int, at_most: int = 5) -> tuple[Proposal, ...]:
    return tuple(
        Proposal(
            budget_id,
            "team:ml",
            span_at(window, at_ms, draw.one_of(SESSIONS)),
            draw.one_of(LIMITS),
            draw.one_of(RULES),
        )
        for budget_id, window in _windows(twins, draw, at_most)
    )


def at_the_brim(
    twins: Twins, draw: Draw, amount_nano: int, proposals: tuple[Proposal, ...], own_nano: int = 0
) -> tuple[Proposal, ...]:
    """Now and then, a limit that has room for just the amount, or one nano-dollar more or less."""
    standings = peek_at(twins.state, proposals, twins.now_ms)
    if standings is None or draw.number(0, 2):
        return proposals
    brims = [each.spent_nano + each.held_nano - own_nano + amount_nano for each in standings]
    return tuple(
        replace(each, limit_nano=brim + draw.number(-1, 1)) if 0 < brim < MAX_FIGURE else each
        for each, brim in zip(proposals, brims, strict=True)
    )


def _request(twins: Twins, draw: Draw, name: str, at_ms: int) -> HoldRequest:
    first, *others = [_option(twins, draw, at_ms, number) for number in range(draw.one_of((1, 1, 2, 3)))]
    hold_ms = draw.one_of((1, 1_000, 60_000, 900_000))
    return HoldRequest(ORG, name, first.amount_nano, first.proposals, hold_ms, first.context, tuple(others))


def _option(twins: Twins, draw: Draw, at_ms: int, number: int) -> HoldOption:
    amount_nano = _amount(twins, draw)
    proposals = at_the_brim(twins, draw, amount_nano, proposals_at(twins, draw, at_ms))
    return HoldOption(amount_nano, proposals, f'{{"option":{number}}}')


def _charges(twins: Twins, draw: Draw, name: str) -> tuple[Charge, ...]:
    """Those of its hold, as an honest event has them; or others, as that of a call that was changed or is unknown."""
    hold = twins.state.holds.get(name)
    if hold is not None and draw.number(0, 4):
        return hold.charges
    at_ms = twins.now_ms + draw.one_of((0, -30_000, -HOUR_MS, -DAY_MS, -3 * DAY_MS, 5_000))
    return tuple(proposal.charge() for proposal in proposals_at(twins, draw, at_ms))


# ---- admission ----


async def admit(twins: Twins, draw: Draw) -> None:
    await twins.reserve(_request(twins, draw, twins.new_name(), twins.now_ms))


async def admit_for_another_instant(twins: Twins, draw: Draw) -> None:
    at_ms = twins.now_ms - draw.one_of((1, 60_000, HOUR_MS, DAY_MS))
    await twins.reserve(_request(twins, draw, twins.new_name(), at_ms))


async def admit_again(twins: Twins, draw: Draw) -> None:
    await twins.reserve(_request(twins, draw, draw.one_of(twins.recent()), twins.now_ms))


async def resize(twins: Twins, draw: Draw) -> None:
    """Some of the hold's charges, their spans fixed or decided again, and others."""
    name = draw.one_of(twins.recent())
    hold = twins.state.holds.get(name)
    proposals: dict[str, Proposal] = {}
    for charge in () if hold is None else (*hold.charges, *(each for each, _ in hold.left)):
        if draw.number(0, 5):
            span = parse_span(charge.window)
            is_fixed = draw.number(0, 5) > 0
            rule = draw.one_of(RULES)
            limit_nano = draw.one_of(LIMITS)
            proposals[charge.budget_id] = Proposal(charge.budget_id, charge.scope, span, limit_nano, rule, is_fixed)
    for proposal in proposals_at(twins, draw, twins.now_ms, draw.one_of((0, 0, 2))):
        proposals.setdefault(proposal.budget_id, proposal)
    amount_nano, hold_ms = _amount(twins, draw), draw.one_of((1, 60_000, 900_000))
    context = f'{{"now":"{amount_nano}"}}'
    own_nano = 0 if hold is None else hold.amount_nano
    asked = at_the_brim(twins, draw, amount_nano, tuple(proposals.values()), own_nano)
    await twins.resize(HoldRequest(ORG, name, amount_nano, asked, hold_ms, context))


async def leave(twins: Twins, draw: Draw) -> None:
    """A hold grows, and some of the budgets it is charged to have no room and let their parents pay."""
    open_holds = {name: hold for name in twins.recent() if (hold := twins.state.holds.get(name)) and hold.charges}
    if not open_holds:
        return
    reservation_id = draw.one_of(sorted(open_holds))
    hold, more_nano = open_holds[reservation_id], draw.number(1, 300)
    charges = {each.budget_id: each for each in (*(each for each, _ in hold.left), *hold.charges)}
    rules = {each.budget_id: draw.one_of(("parent", "pass")) for each in hold.charges}
    proposals = tuple(
        Proposal(name, each.scope, parse_span(each.window), draw.one_of((0, 100, 600)), rules.get(name, "parent"), True)
        for name, each in charges.items()
    )
    amount_nano = min(hold.amount_nano + more_nano, MAX_FIGURE)
    asked = at_the_brim(twins, draw, amount_nano, proposals, hold.amount_nano)
    await twins.resize(HoldRequest(ORG, reservation_id, amount_nano, asked, 900_000, "{}"))


async def release(twins: Twins, draw: Draw) -> None:
    await twins.release(draw.one_of(twins.recent()))


async def claim(twins: Twins, draw: Draw) -> None:
    await twins.claim(draw.number(0, 3))


async def peek(twins: Twins, draw: Draw) -> None:
    await twins.peek(proposals_at(twins, draw, twins.now_ms + draw.one_of((0, -HOUR_MS, -DAY_MS))))


# ---- the log ----


def _step(twins: Twins, draw: Draw, offset: int) -> FoldStep:
    name = draw.one_of([*twins.recent(), f"txn_unseen_{offset % 2}"])
    kind = draw.one_of(KINDS)
    producer = EXPIRY_PRODUCER + name if kind == "expire" else draw.one_of(("gw_1", "gw_2"))
    sequence = 1 if kind == "expire" else twins.sequences.get(producer, 0) + 1
    twins.sequences[producer] = sequence
    implies = draw.number(0, 2) == 0
    return FoldStep(
        kind,
        offset,
        producer,
        sequence,
        name,
        _amount(twins, draw),
        _charges(twins, draw, name),
        "{}",
        twins.now_ms + draw.one_of((-1_000, 0, 60_000)),
        twins.now_ms + draw.one_of((0, 0, -1)),
        tuple(each.charge() for each in proposals_at(twins, draw, twins.now_ms, 2)) if implies else (),
    )


def _place(twins: Twins, draw: Draw) -> TopicPartition:
    return draw.one_of(sorted(twins.ends))


async def fold_new(twins: Twins, draw: Draw) -> None:
    place = _place(twins, draw)
    first, count = twins.ends[place] + draw.one_of((0, 0, 1)), draw.number(0, 4)
    steps = tuple(_step(twins, draw, first + number) for number in range(count))
    await twins.apply(place, steps, first + count, draw.one_of((None, None, twins.state.marks, "others")))


async def fold_late_reservation(twins: Twins, draw: Draw) -> None:
    """Of a call admitted about when the org was loaded, folded about when its ended hold would be forgotten."""
    if twins.state.loaded_at_ms is None:
        return
    admitted_ms = twins.state.loaded_at_ms + CLOCK_MARGIN_MS + draw.number(-1, 1)
    forgotten_ms = admitted_ms - CLOCK_MARGIN_MS + TOMBSTONE_MS + draw.number(-1, 1)
    await twins.turn(max(twins.now_ms, forgotten_ms))
    place = _place(twins, draw)
    offset = twins.ends[place]
    sequence = twins.sequences["gw_1"] = twins.sequences.get("gw_1", 0) + 1
    charges = tuple(proposal.charge() for proposal in proposals_at(twins, draw, twins.now_ms))
    told = (twins.new_name(), 7, charges, "{}", twins.now_ms, admitted_ms)
    await twins.apply(place, (FoldStep("restore", offset, "gw_1", sequence, *told),), offset + 1)


async def backfill(twins: Twins, draw: Draw) -> None:
    """Sets what some windows have spent, if the fences are known as they are, and marks their budgets."""
    at_ms = twins.now_ms - draw.one_of((0, 30_000, HOUR_MS, 2 * DAY_MS))
    charges = [each.charge() for each in proposals_at(twins, draw, at_ms)]
    places = [(each.topic, each.partition) for each in sorted(twins.ends)]
    fences = {place: twins.state.fences.get(place, 0) for place in places}
    if draw.number(0, 4) == 0:
        fences[draw.one_of(places)] += 1
    version = draw.number(1, 9)
    spent_nano = {(each.budget_id, each.window): _amount(twins, draw) for each in charges}
    filled = {each.budget_id.partition("@")[0]: version for each in charges}
    holds = {
        draw.one_of([*twins.recent(), "txn_unseen_0"]): charges[draw.number(0, 1) :] for _ in range(draw.number(0, 2))
    }
    held = {name: HeldBackfill(_changed_at(twins, draw, name), tuple(some)) for name, some in holds.items()}
    known = draw.one_of([None, twins.state.marks, twins.state.marks, "token-1"])
    if draw.number(0, 3) == 0:  # only prepares
        await twins.backfill(Backfill({}, {}, filled, "", holds=held, known=known))
        return
    await twins.backfill(Backfill(fences, spent_nano, filled, f"token-{version}", holds=held, known=known))


def _changed_at(twins: Twins, draw: Draw, name: str) -> int:
    """When a hold was last changed; now and then it has been changed since."""
    hold = twins.state.holds.get(name)
    return 0 if hold is None else hold.changed_at_ms - (draw.number(0, 5) == 0)


async def fold_again(twins: Twins, draw: Draw) -> None:
    if twins.batches:
        await twins.apply(*draw.one_of(twins.batches[-20:]))


async def fold_published_twice(twins: Twins, draw: Draw) -> None:
    if twins.batches:
        place, steps, _ = draw.one_of(twins.batches[-20:])
        end = twins.ends[place]
        moved = tuple(replace(step, offset=end + number) for number, step in enumerate(steps))
        await twins.apply(place, moved, end + len(moved))


# ---- time and loss ----


async def turn_clock(twins: Twins, draw: Draw) -> None:
    await twins.turn(twins.now_ms + draw.one_of(TURNS_MS))


async def turn_clock_to_an_edge(twins: Twins, draw: Draw) -> None:
    """To an instant at which something changes."""
    ahead = twins.edges()
    if ahead:
        await twins.turn(draw.one_of(ahead[:6]) + draw.number(-1, 1))


async def let_keys_expire(twins: Twins, draw: Draw) -> None:
    await twins.let_keys_expire()


async def go_cold(twins: Twins, draw: Draw) -> None:
    await twins.go_cold()


async def rebuild(twins: Twins, draw: Draw) -> None:
    await twins.rebuild(knows_when=draw.number(0, 1) == 1)
