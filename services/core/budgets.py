"""Budgets, what a call may be charged to, and where a budget stands (BU-1 to BU-4)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from services.core.windows import Span, Window, resets_at_ms, span_at

ScopeKind = Literal[
    "org", "team", "agent", "user", "project", "session", "environment", "key", "vendor", "model", "tag",
    "billing_class", "cel",
]  # fmt: skip
EstimateMode = Literal["strict", "calibrated"]
Enforcement = Literal["enforce", "monitor"]
WhenFull = Literal["block", "downgrade", "alert"]
ChildMode = Literal["isolated", "fallback"]
# What becomes of a call that a budget has no room for: it is refused; its parent pays in its place; it is tried with
# the next option, and refused without one; it is charged all the same.
FullRule = Literal["block", "parent", "downgrade", "pass"]

ESTIMATE_MODES: Final[tuple[EstimateMode, ...]] = ("strict", "calibrated")
# From the widest to the narrowest: the order in which a call's budgets are written everywhere.
SCOPE_KINDS: Final[tuple[ScopeKind, ...]] = (
    "org", "environment", "billing_class", "vendor", "model", "tag", "team", "project", "user", "agent", "key",
    "session", "cel",
)  # fmt: skip
# The scope value that stands for each value: every user, say, has figures of their own.
EACH: Final = "*"
DEFAULT_THRESHOLDS: Final = (60, 85, 100)
MAX_BUDGETS_PER_CALL: Final = 64
MAX_BUDGETS_PER_ORG: Final = 100_000
MAX_DEPTH: Final = 8


@dataclass(frozen=True, slots=True)
class Budget:
    """A cap of `limit_nano` nano-dollars on what its scope may spend in one window.

    `scope_value` is a name, or `EACH`. A budget of kind ``cel`` caps the calls that its `expression` is true for, and
    its scope value is the name it goes by. `estimate` is what it holds for a call: the most it can cost, or what such
    calls have been seen to cost (PR-5); with `extend`, a stream that names no limit of its own is held a step at a
    time (BU-6). A child (`parent_id`) that is full refuses the call, or lets its parent pay, as `child_mode` says.
    A full budget that is enforced does as `when_full` says; ``downgrade`` has the call answered by `downgrade_to`, a
    model of the same vendor. `thresholds` are the percents of the limit at which it tells (BU-4). `since_version` is
    the configuration it has counted since in this window: what was admitted under an earlier one is backfilled (BU-8).
    `is_cap` marks a cell of the cap matrix (BU-7).

    A part that was carved from other budgets (BU-9) names in `covers` those that its whole limit is held against
    already, by their ids in charges: its calls are not charged to these again. It takes nothing from `ends_at_ms` on.
    """

    budget_id: str
    scope_kind: ScopeKind
    scope_value: str
    window: Window
    limit_nano: int
    estimate: EstimateMode = "strict"
    expression: str | None = None
    parent_id: str | None = None
    child_mode: ChildMode = "isolated"
    enforcement: Enforcement = "enforce"
    when_full: WhenFull = "block"
    downgrade_to: str | None = None
    thresholds: tuple[int, ...] = DEFAULT_THRESHOLDS
    extend: bool = False
    since_version: int = 0
    is_cap: bool = False
    covers: tuple[str, ...] = ()
    ends_at_ms: int | None = None

    @property
    def scope(self) -> str:
        """The scope as written in events and answers: ``team:ml``."""
        return f"{self.scope_kind}:{self.scope_value}"

    @property
    def full_rule(self) -> FullRule:
        """What becomes of a call that there is no room for."""
        if self.enforcement == "monitor" or self.when_full == "alert":
            return "pass"
        if self.parent_id is not None and self.child_mode == "fallback":
            return "parent"
        return "downgrade" if self.when_full == "downgrade" else "block"


@dataclass(frozen=True, slots=True)
class Charge:
    """That a call counts against a budget, in one span of its window. The window is never decided again."""

    budget_id: str
    scope: str
    window: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """A budget and the span a gateway believes to be current; the hot state's own clock confirms or refuses it.

    A span that `is_fixed` was confirmed when the call was admitted, and is never decided again.
    """

    budget_id: str
    scope: str
    span: Span
    limit_nano: int
    full_rule: FullRule = "block"
    is_fixed: bool = False

    def charge(self) -> Charge:
        """This proposal, once admitted."""
        return Charge(self.budget_id, self.scope, self.span.key())


@dataclass(frozen=True, slots=True)
class Standing:
    """What a budget's current window has spent and holds.

    `resets_at_ms` is when all that is spent by now has left the window, in a refusal (`hotstate.Refused`) when enough
    has. None for one that has no end, and in a refusal by a rolling window that waiting brings no room in.
    """

    budget_id: str
    scope: str
    limit_nano: int
    spent_nano: int
    held_nano: int
    resets_at_ms: int | None

    @property
    def remaining_nano(self) -> int:
        """What a new call may still hold (negative when a settlement came out above its hold)."""
        return self.limit_nano - self.spent_nano - self.held_nano


def owner_id(budget_id: str) -> str:
    """The budget that an id in charges is of: that of one value (`core.matching.instance_id`) is its budget's own."""
    return budget_id.partition("@")[0]


def propose(budgets: Iterable[Budget], now_ms: int) -> tuple[Proposal, ...]:
    """One proposal a budget, for the spans that hold `now_ms`; raises `ValueError` for one whose window is a session.

    What a call falls under is proposed by `matching.proposals_for`.
    """
    return tuple(
        Proposal(each.budget_id, each.scope, span_at(each.window, now_ms), each.limit_nano, each.full_rule)
        for each in budgets
    )


def standing(proposal: Proposal, spent_nano: int, held_nano: int) -> Standing:
    """The standing of a proposal's budget with the given figures."""
    return Standing(
        proposal.budget_id, proposal.scope, proposal.limit_nano, spent_nano, held_nano, resets_at_ms(proposal.span)
    )


def tightest(standings: Iterable[Standing]) -> Standing | None:
    """The budget with the least left; of equals, the one that comes first by id, so that the answer never wavers."""
    return min(standings, key=lambda each: (each.remaining_nano, each.budget_id), default=None)
