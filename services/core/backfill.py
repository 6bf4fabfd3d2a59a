"""What a budget has spent before it counted: the calls of its window that were admitted before it was made (BU-8).

A call carries a charge for every budget of the configuration it was admitted under. A budget that is new, or has
another window, since configuration `Budget.since_version` is charged by the calls of earlier configurations as well,
as if it had always been there: their charge is *implied*. It is decided from an event's own facts, in the span that
held the instant of the call's admission, so that everyone who decides it decides the same: the backfill for what is
folded already, the fold for what comes later, and a rebuild for all of it.

While a call is under way its hold is held against what it implies, by its facts as they are then. Its ending alone
says what is spent.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Any, Final

from services.core.budgets import Budget, Charge, owner_id
from services.core.events import CallFacts, Event, Expiry, HoldResized, Reservation, Settlement
from services.core.hotstate import (
    CLOCK_MARGIN_MS,
    SESSION_IDLE_MS,
    WINDOW_GRACE_MS,
    is_forgotten,
)
from services.core.matching import (
    Applicable,
    BudgetIndex,
    ExpressionError,
    Expressions,
    TooManyBudgetsError,
)
from services.core.parts import ROUTE as PART_ROUTE
from services.core.windows import (
    ROLLING_BUCKETS,
    CalendarSpan,
    CalendarWindow,
    IntervalWindow,
    LifetimeSpan,
    RollingSpan,
    RollingWindow,
    SessionSpan,
    SessionWindow,
    Span,
    Window,
    parse_span,
    span_at,
)

# Every zone's offset from UTC is a multiple of this, so no calendar window begins within one.
ZONE_GRAIN_MS: Final = 900_000
DAY_MS: Final = 86_400_000
_ULID: Final = re.compile(r"[A-Za-z]{1,16}_([0-7][0-9A-HJKMNP-TV-Z]{9})[0-9A-HJKMNP-TV-Z]{16}", re.ASCII)
_BASE32: Final = {letter: value for value, letter in enumerate("0123456789ABCDEFGHJKMNPQRSTVWXYZ")}

BudgetWindow = tuple[str, str]


@dataclass(frozen=True, slots=True)
class CallQuery:
    """Which ended calls a ledger sums up: those of configurations below `before_version`, admitted at `since_ms` or
    later, as far as they are told of below the offsets `below` of each partition of the settlements.

    Calls are summed by their facts and by spans of `grain_ms` from the Unix epoch. Their charges to `budget_ids` (the
    ids of budgets, those of one value of them included) are kept.
    """

    before_version: int
    since_ms: int
    grain_ms: int
    budget_ids: tuple[str, ...]
    below: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class CallSum:
    """What calls with equal facts did cost, all admitted within one grain from `admitted_at_ms` on.

    `charged` are their charges that were asked for. `last_ms` is the time of the last ending.
    """

    facts: CallFacts
    admitted_at_ms: int
    charged: tuple[BudgetWindow, ...]
    amount_nano: int
    last_ms: int


def query_fields(query: CallQuery) -> dict[str, Any]:
    """The question as the ledger is asked it, in JSON."""
    return {
        "before_version": query.before_version,
        "since_ms": query.since_ms,
        "grain_ms": query.grain_ms,
        "budget_ids": list(query.budget_ids),
        "below": {str(partition): offset for partition, offset in query.below.items()},
    }


class ImpliedBudgets:
    """Budgets of one org that calls of earlier configurations are charged to without saying so.

    Those with a `since_version` of 0 are left out: every call says it. `unusable` are those whose expressions can't be
    compiled, with the reason: nothing is known of them.
    """

    def __init__(self, budgets: Iterable[Budget], expressions: Expressions | None = None) -> None:
        self.unusable: dict[str, str] = {}
        self._expressions = expressions
        # A child's ancestors are charged by their own matches, never through it: so none has a parent here.
        usable = [replace(each, parent_id=None) for each in budgets if each.since_version > 0]
        self._budgets = {each.budget_id: each for each in usable if self._is_usable(each)}
        self._index = BudgetIndex(self._budgets.values(), expressions)
        self._single: dict[str, BudgetIndex] = {}
        self.horizon = max((each.since_version for each in self._budgets.values()), default=0)

    @property
    def since(self) -> dict[str, int]:
        """The `since_version` of each budget by id: the marks to set once they are backfilled."""
        return {each.budget_id: each.since_version for each in self._budgets.values()}

    def charges(self, facts: CallFacts, admitted_at_ms: int, charged: Collection[BudgetWindow]) -> tuple[Charge, ...]:
        """The implied charges of a call that was admitted at that instant and says `charged`.

        A call that names no session is in no window of one. What was charged to a budget in the window that it had
        then is charged to it in its present one, whether it matches or was charged as a child's. The end of a part
        (`core.parts`) is no call: what it tells the cost of are calls, which are charged themselves.
        """
        if facts.config_version >= self.horizon or facts.route == PART_ROUTE:
            return ()
        found = []
        session = facts.identity.session
        for each in (*(matching := self._matching(facts)), *self._charged_before(charged, matching)):
            window = each.budget.window
            if facts.config_version >= each.budget.since_version or (
                session is None and isinstance(window, SessionWindow)
            ):
                continue
            if not _carries(each, charged):
                found.append(Charge(each.budget_id, each.scope, span_at(window, admitted_at_ms, session).key()))
        return tuple(found)

    def charges_of(self, event: Event, admitted: int | None = None) -> tuple[Charge, ...]:
        """The implied charges of an event. `admitted` is when the call was, for a change of a hold, which does not say.

        Such a change of a hold that nobody knows (None) implies nothing, and neither does a denial.
        """
        match event:
            case Settlement() | Expiry():
                at_ms: int | None = admitted_at_ms(event)
            case Reservation():
                at_ms = event.time_ms
            case HoldResized():
                at_ms = admitted
            case _:
                return ()
        if at_ms is None or event.facts.config_version >= self.horizon:
            return ()
        return self.charges(event.facts, at_ms, {(each.budget_id, each.window) for each in event.charges})

    def spent_nano(self, query: CallQuery, sums: Iterable[CallSum], now_ms: int) -> dict[BudgetWindow, int]:
        """What the calls that answer `query` have spent by implied charges to its budgets.

        Windows that the hot state has let go by `now_ms` are left out.
        """
        asked = frozenset(query.budget_ids)
        spent: dict[BudgetWindow, int] = {}
        last_ms: dict[BudgetWindow, int] = {}
        for each in sums:
            for charge in self.charges(each.facts, each.admitted_at_ms, each.charged):
                if owner_id(charge.budget_id) in asked:
                    slot = charge.budget_id, charge.window
                    spent[slot] = spent.get(slot, 0) + each.amount_nano
                    last_ms[slot] = max(last_ms.get(slot, 0), each.last_ms)
        return {slot: nano for slot, nano in spent.items() if _is_kept(parse_span(slot[1]), last_ms[slot], now_ms)}

    def queries(self, now_ms: int, below: Mapping[int, int]) -> tuple[CallQuery, ...]:
        """What to ask a ledger for, for `spent_nano`: one query for the budgets of one grain."""
        grains: dict[int, list[Budget]] = {}
        for each in self._budgets.values():
            grains.setdefault(grain_ms(each.window), []).append(each)
        return tuple(
            CallQuery(
                max(each.since_version for each in alike),
                min(looks_back_to_ms(each.window, now_ms) for each in alike),
                grain,
                tuple(each.budget_id for each in alike),
                below,
            )
            for grain, alike in grains.items()
        )

    def has(self, budget_id: str, window: str) -> bool:
        """Whether the key of a window, as it is in charges, is one of these budgets' present windows."""
        budget = self._budgets.get(owner_id(budget_id))
        return budget is not None and is_span_of(budget, parse_span(window))

    def _charged_before(self, charged: Iterable[BudgetWindow], matching: Sequence[Applicable]) -> Iterable[Applicable]:
        """Those that a call is charged to and does not match: it was a child's, and its parent's window was another."""
        known = {each.budget_id for each in matching}
        for budget_id in dict.fromkeys(budget_id for budget_id, _ in charged):
            budget = self._budgets.get(budget_id)
            if budget is not None and budget_id not in known:
                yield Applicable(budget, budget_id, budget.scope)

    def _matching(self, facts: CallFacts) -> Sequence[Applicable]:
        try:
            return self._index.matching(facts).applicable
        except TooManyBudgetsError:
            # The limit is of what one call can be held against. This one's money is spent, whatever it falls under.
            return self._matching_one_by_one(facts)

    def _matching_one_by_one(self, facts: CallFacts) -> list[Applicable]:
        found: list[Applicable] = []
        for budget in self._budgets.values():
            index = self._single.get(budget.budget_id)
            if index is None:
                index = self._single[budget.budget_id] = BudgetIndex([budget], self._expressions)
            found.extend(index.matching(facts).applicable)
        return found

    def _is_usable(self, budget: Budget) -> bool:
        if budget.scope_kind != "cel":
            return True
        try:
            BudgetIndex([budget], self._expressions)
        except ExpressionError as error:
            self.unusable[budget.budget_id] = str(error)
            return False
        return True


def _carries(match: Applicable, charged: Iterable[BudgetWindow]) -> bool:
    # In whatever span: a hold that was changed under a later configuration may carry the one of that moment.
    return any(
        budget_id == match.budget_id and is_span_of(match.budget, parse_span(window)) for budget_id, window in charged
    )


def _is_kept(span: Span, last_ms: int, now_ms: int) -> bool:
    if isinstance(span, SessionSpan):
        return now_ms < last_ms + SESSION_IDLE_MS
    return not is_forgotten(span, now_ms)


def is_span_of(budget: Budget, span: Span) -> bool:
    """Whether a span is one of the budget's window as it is now, and not of one that it once had."""
    match span:
        case CalendarSpan():
            instant_ms, session = span.start_ms, None
        case RollingSpan():
            instant_ms, session = span.bucket * span.bucket_ms, None
        case SessionSpan():
            instant_ms, session = 0, span.session
        case LifetimeSpan():
            instant_ms, session = 0, None
    try:
        return span_at(budget.window, instant_ms, session) == span
    except ValueError:
        return False


def admitted_at_ms(event: Settlement | Expiry) -> int:
    """When an ending's call was admitted: as the event says, else as its ULID was made, else when it ended."""
    if event.admitted_at_ms > 0:
        return event.admitted_at_ms
    match = _ULID.fullmatch(event.transaction_id)
    if match is None:
        return event.time_ms
    made_ms = 0
    for letter in match[1]:
        made_ms = made_ms * 32 + _BASE32[letter]
    return made_ms


def grain_ms(window: Window) -> int:
    """The longest span, counted from the Unix epoch, that no two spans of this window ever share."""
    match window:
        case CalendarWindow():
            return ZONE_GRAIN_MS
        case RollingWindow():
            return window.bucket_ms
        case IntervalWindow():
            return gcd(window.length_ms, window.anchor_ms)
        case _:
            return DAY_MS


def looks_back_to_ms(window: Window, now_ms: int) -> int:
    """An instant before which no admission can count in a span that the hot state still keeps; 0 where any can."""
    match window:
        case RollingWindow():
            return max(0, (now_ms // window.bucket_ms - ROLLING_BUCKETS) * window.bucket_ms - CLOCK_MARGIN_MS)
        case CalendarWindow() | IntervalWindow():
            kept = span_at(window, max(0, now_ms - WINDOW_GRACE_MS - CLOCK_MARGIN_MS))
            return max(0, getattr(kept, "start_ms", 0))
        case _:
            return 0
