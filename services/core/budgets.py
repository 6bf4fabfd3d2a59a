"""Budgets and which of them a call falls under (BU-1)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from services.core.identity import Identity
from services.core.windows import Span, Window, resets_at_ms, span_at

ScopeKind = Literal["org", "team", "agent"]
EstimateMode = Literal["strict", "calibrated"]

ESTIMATE_MODES: Final[tuple[EstimateMode, ...]] = ("strict", "calibrated")
SCOPE_KINDS: Final[tuple[ScopeKind, ...]] = ("org", "team", "agent")
MAX_BUDGETS_PER_CALL: Final = 64


@dataclass(frozen=True, slots=True)
class Budget:
    """A cap of `limit_nano` nano-dollars on what `scope_kind` `scope_value` may spend in one window.

    `estimate` is what it holds for a call: the most it can cost, or what such calls have been seen to cost (PR-5).
    """

    budget_id: str
    scope_kind: ScopeKind
    scope_value: str
    window: Window
    limit_nano: int
    estimate: EstimateMode = "strict"

    @property
    def scope(self) -> str:
        """The scope as written in events and answers: ``team:ml``."""
        return f"{self.scope_kind}:{self.scope_value}"


@dataclass(frozen=True, slots=True)
class Charge:
    """That a call counts against a budget, in one span of its window. The window is never decided again."""

    budget_id: str
    scope: str
    window: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """A budget and the span a gateway believes to be current; the hot state's own clock confirms or refuses it."""

    budget_id: str
    scope: str
    span: Span
    limit_nano: int

    def charge(self) -> Charge:
        """This proposal, once admitted."""
        return Charge(self.budget_id, self.scope, self.span.key())


@dataclass(frozen=True, slots=True)
class Standing:
    """What a budget's current window has spent and holds."""

    budget_id: str
    scope: str
    limit_nano: int
    spent_nano: int
    held_nano: int
    resets_at_ms: int

    @property
    def remaining_nano(self) -> int:
        """What a new call may still hold (negative when a settlement came out above its hold)."""
        return self.limit_nano - self.spent_nano - self.held_nano


class BudgetIndex:
    """The budgets of one org, found by scope value."""

    def __init__(self, budgets: Iterable[Budget]) -> None:
        self._by_scope: dict[tuple[str, str], list[Budget]] = {}
        for budget in budgets:
            self._by_scope.setdefault((budget.scope_kind, budget.scope_value), []).append(budget)

    def matching(self, identity: Identity) -> Iterator[Budget]:
        """Every budget the identity falls under, widest scope first."""
        for kind, value in (("org", identity.org), ("team", identity.team), ("agent", identity.agent)):
            if value is not None:
                yield from self._by_scope.get((kind, value), ())


def propose(budgets: Iterable[Budget], now_ms: int) -> tuple[Proposal, ...]:
    """One proposal a budget, for the spans that hold `now_ms`."""
    return tuple(
        Proposal(each.budget_id, each.scope, span_at(each.window, now_ms), each.limit_nano) for each in budgets
    )


def standing(proposal: Proposal, spent_nano: int, held_nano: int) -> Standing:
    """The standing of a proposal's budget with the given figures."""
    return Standing(
        proposal.budget_id, proposal.scope, proposal.limit_nano, spent_nano, held_nano, resets_at_ms(proposal.span)
    )


def tightest(standings: Iterable[Standing]) -> Standing | None:
    """The budget with the least left; of equals, the one that comes first by id, so that the answer never wavers."""
    return min(standings, key=lambda each: (each.remaining_nano, each.budget_id), default=None)
