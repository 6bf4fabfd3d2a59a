"""The hot state of one org: what its budgets have spent and hold, and how far the log has been folded into it.

This is the pure twin of what the Lua scripts keep in Valkey: `reserve` decides and writes holds, `fold` applies events.
One property test drives both and compares states. Money is nano-dollars, instants Unix milliseconds on the hot state's
own clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from services.core.budgets import Charge, Proposal, Standing
from services.core.windows import CalendarSpan, LifetimeSpan, RollingSpan, SessionSpan, Span, resets_at_ms

HoldPhase = Literal["held", "settled", "expired"]

# A window's figures outlive its end by this much, so that calls admitted in its last moment still settle into it.
WINDOW_GRACE_MS: Final = 24 * 3_600_000
# A session's figures go this long after they last changed, if they hold nothing: a session that is taken up again
# later starts anew.
SESSION_IDLE_MS: Final = 30 * 86_400_000
# A hold that ended in time is remembered this long, so that a late reservation or a repeated settlement finds it ended.
TOMBSTONE_MS: Final = 3_600_000
# One that expired is remembered at least this long, whatever it was charged to: a settlement that comes late takes back
# what the expiry has booked, from budgets that were made in between, too.
CORRECTION_MS: Final = 30 * 86_400_000
# And so long one whose ending a producer of one event may publish again: a gateway that died when it had published and
# not yet forgotten comes back after days. Budgets that were made since have the first time in their past.
TOLD_AGAIN_MS: Final = 7 * 86_400_000
# An expired hold handed to one reaper is handed to another only after this long without its expiry being folded.
CLAIM_MS: Final = 30_000
# Two servers' clocks may be this far apart, where a replica takes over and carries on with what the other has written.
CLOCK_MARGIN_MS: Final = 60_000
# Figures are 64-bit integers. What would pass them stays at the bound, where every budget is full: the safe side.
MAX_FIGURE: Final = 2**63 - 1
# An expiry is published by a producer of its own, this prefix and the reservation's id, with the one sequence 1. No
# sequence is kept of such producers (they would grow for ever): a hold ends once, whoever repeats it. Settlements of
# parts, and those by the reservation API, have such producers, too.
EXPIRY_PRODUCER: Final = "expiry:"

WindowSlot = tuple[str, str]
RingSlot = tuple[str, int, int]


@dataclass(slots=True)
class Hold:
    """A reservation's hold. `booked_nano` is what it has put into `spent` so far (0 while held).

    An ended hold keeps all but its context until `forget_at_ms`, so that its reservation id is answered as it was; its
    `charges` are then those that were booked. `resized_at_ms` is when it was last changed, 0 when it never was: what
    the log tells of an earlier change is then known to be past. `option` is the one it was admitted by.

    `implied` are charges of budgets that were made after the call was admitted (`core.backfill`): an open hold is held
    against them as well. What it is spent on at its end is said by its ending alone; an ended hold has none.

    `left` is what a change of the hold would have freed: what budgets have held that let their parents pay since
    (BU-3), and what a smaller hold holds less. It stays held until that change, or the call's ending, is folded:
    whoever asked for the change may never hear of it, and the call may then cost what was held before, where it was.
    """

    amount_nano: int
    charges: tuple[Charge, ...]
    context: str
    expires_at_ms: int
    phase: HoldPhase = "held"
    booked_nano: int = 0
    admitted_at_ms: int = 0
    forget_at_ms: int | None = None
    resized_at_ms: int = 0
    option: int = 0
    implied: tuple[Charge, ...] = ()
    left: tuple[tuple[Charge, int], ...] = ()

    @property
    def changed_at_ms(self) -> int:
        """When it was last changed, or made."""
        return self.resized_at_ms or self.admitted_at_ms

    def amounts(self) -> tuple[tuple[Charge, int], ...]:
        """All that an open hold is held against, each charge with what it holds."""
        return (*((each, self.amount_nano) for each in (*self.charges, *self.implied)), *self.left)


@dataclass(slots=True)
class Figures:
    """The figures of a window that is no ring.

    `forget_at_ms` is when a session's are forgotten: it moves on with each change, and is None while the session holds
    anything, so that what is held is never forgotten. Those for all time have one once their budget is gone
    (`core.upkeep`). None for all others.
    """

    spent_nano: int = 0
    held_nano: int = 0
    forget_at_ms: int | None = None


@dataclass(slots=True)
class Ring:
    """A rolling budget's ring: `buckets` maps bucket number to what was spent in it; `total_nano` is their sum.

    Every bucket below `low` has left the window and takes nothing any more. Holds are not bucketed: a hold counts until
    it ends.
    """

    low: int
    total_nano: int = 0
    held_nano: int = 0
    buckets: dict[int, int] = field(default_factory=dict)

    def spent_at(self, low: int) -> int:
        """What the ring has spent once every bucket below `low` has left it."""
        return self.total_nano - sum(spent_nano for bucket, spent_nano in self.buckets.items() if bucket < low)

    def advance(self, low: int) -> None:
        """Drops every bucket below `low`. The ring never turns back."""
        if low <= self.low:
            return
        for bucket in [number for number in self.buckets if number < low]:
            self.total_nano = plus(self.total_nano, -self.buckets.pop(bucket))
        self.low = low


@dataclass(slots=True)
class OrgState:
    """Everything the hot state knows of one org. `epoch` None means cold: the figures below can't be trusted.

    `loaded_at_ms` is when it was loaded with its epoch; None for a state that was made otherwise. `filled` and `marks`
    are those of `Marks`. `crossed` are the percents already told of each budget's window or ring (`core.alerts`), until
    `crossed_until_ms` where there is an end to it. `silent` are the days (since 1970) when producers were first seen to
    have been silent (`core.upkeep`).
    """

    epoch: str | None = None
    loaded_at_ms: int | None = None
    config_version: int = 0
    windows: dict[WindowSlot, Figures] = field(default_factory=dict)
    rings: dict[RingSlot, Ring] = field(default_factory=dict)
    holds: dict[str, Hold] = field(default_factory=dict)
    due: dict[str, int] = field(default_factory=dict)
    fences: dict[tuple[str, int], int] = field(default_factory=dict)
    producers: dict[tuple[str, int, str], int] = field(default_factory=dict)
    silent: dict[tuple[str, int, str], int] = field(default_factory=dict)
    filled: dict[str, int] = field(default_factory=dict)
    marks: str = ""
    crossed: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    crossed_until_ms: dict[tuple[str, str], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HoldOption:
    """One way to make a call: what to hold, against what. `context` is opaque to the hot state."""

    amount_nano: int
    proposals: tuple[Proposal, ...]
    context: str


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """Hold `amount_nano` against every proposal, all or none, for `hold_ms`. `context` is opaque to the hot state.

    A budget without room does as its proposal's `full_rule` says: ``block`` refuses; ``parent`` is left out, so that
    its ancestors, which are among the proposals, pay; ``pass`` is charged all the same; ``downgrade`` refuses, too, but
    when no other rule does, the `alternatives` are tried in order, each as a whole and by the same rules. No budget is
    proposed twice in one option. A change of a hold (`resize`) knows no alternatives.
    """

    org: str
    reservation_id: str
    amount_nano: int
    proposals: tuple[Proposal, ...]
    hold_ms: int
    context: str
    alternatives: tuple[HoldOption, ...] = ()


@dataclass(frozen=True, slots=True)
class FoundHold:
    """What was held under a reservation id before it was asked for again; the context is empty once that has ended."""

    amount_nano: int
    context: str


@dataclass(frozen=True, slots=True)
class Admitted:
    """Held, by the alternative of number `option` (0: as asked, 1: the first alternative).

    `charges` carry the windows as decided; `standings` are those of the charges, in order, this hold included. What was
    left out so that its parent pays is in the proposals and not in the charges. `found` is the hold that a reserve has
    found under its id: all else tells of that one.
    """

    config_version: int
    now_ms: int
    charges: tuple[Charge, ...]
    standings: tuple[Standing, ...]
    expires_at_ms: int
    option: int = 0
    found: FoundHold | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was held; `exhausted` are the budgets that lack room for what was asked first, tightest first.

    Those whose rule is ``parent`` or ``pass`` are not among them. `room_at_ms` is when all of them have room, if
    nothing more is spent and what others hold comes free, which may be any time; None when waiting brings no room. A
    rolling window's `resets_at_ms` is when it has room in the same sense.
    """

    config_version: int
    now_ms: int
    exhausted: tuple[Standing, ...]
    room_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class StaleWindow:
    """A proposed calendar span does not hold the hot state's `now_ms`; propose again for that instant."""

    config_version: int
    now_ms: int


@dataclass(frozen=True, slots=True)
class Cold:
    """The org has no epoch: its figures are being rebuilt, and nothing may be held."""


ReserveAnswer = Admitted | Refused | StaleWindow | Cold


@dataclass(frozen=True, slots=True)
class FoldStep:
    """One event as the fold sees it: what it does to a hold, and its place in the log and in its producer's order.

    ``settle``: hold out, `amount_nano` spent against `charges`, and what an expiry had booked taken back from where it
    was booked. ``expire``: hold out, `amount_nano` booked, unless the hold has ended. ``restore``: a reservation whose
    hold is unknown comes back (after a rebuild, or when the server lost its last writes), expiring at `expires_at_ms`;
    unless it was admitted at a `time_ms` since when its hold may have ended in this state and been forgotten.
    ``resize``: an open hold gets another amount, time and charges, unless a later change has come first.

    `implied` are charges that an event does not carry because its call was admitted before their budgets were made
    (`core.backfill`). Those of an ending are spent like the others; all endings of a call imply the same. Those of a
    restore or a resize are held: they take the place of what the open hold has of them.
    """

    kind: Literal["settle", "expire", "restore", "resize"]
    offset: int
    producer: str
    sequence: int
    reservation_id: str
    amount_nano: int
    charges: tuple[Charge, ...]
    context: str = ""
    expires_at_ms: int = 0
    time_ms: int = 0
    implied: tuple[Charge, ...] = ()


@dataclass(frozen=True, slots=True)
class Applied:
    """How a batch went: `applied` changed something or found their hold ended; `duplicates` were seen before."""

    applied: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class Outdated:
    """The caller does not know which budgets are backfilled: nothing was folded. Read the marks again, and repeat."""


@dataclass(frozen=True, slots=True)
class Behind:
    """The org's fence stands lower than the caller has seen it: the server has lost writes, and nothing was folded."""


ApplyAnswer = Applied | Cold | Outdated | Behind


@dataclass(frozen=True, slots=True)
class Marks:
    """Which budgets of an org are backfilled, each with the `Budget.since_version` that it was backfilled for.

    `token` is another one after every change, and empty while nothing is marked. `fences` are the org's own.
    """

    token: str
    filled: Mapping[str, int]
    fences: Mapping[tuple[str, int], int]


@dataclass(frozen=True, slots=True)
class OpenHold:
    """An open hold, as far as its implied charges are decided by it."""

    charges: tuple[Charge, ...]
    context: str
    admitted_at_ms: int
    changed_at_ms: int
    implied: tuple[Charge, ...]


@dataclass(frozen=True, slots=True)
class HeldBackfill:
    """What an open hold is held against as well, if it was last changed at `changed_at_ms`.

    A change that came later has an event that is still to be folded, and brings its own.
    """

    changed_at_ms: int
    charges: tuple[Charge, ...]


@dataclass(frozen=True, slots=True)
class Backfill:
    """All that the windows of some budgets have spent, as of the org's `fences`, keyed by (budget id, window key).

    `holds` are the open holds that these budgets hold as well, by reservation id: whatever was implied of these
    budgets before gives way to it. `filled` are the marks to set, `token` their new token; `gone` are the marks of
    budgets that are no more. Without a token it only prepares: nothing is marked, and nothing is done when one of
    `filled` is marked already. To hold too much for a while is the safe side.

    `known` is the token of the marks that all this was decided by: once they are others, another process knows of
    budgets that this one may not, and nothing is done. None: nobody asks.
    """

    fences: Mapping[tuple[str, int], int]
    spent_nano: Mapping[tuple[str, str], int]
    filled: Mapping[str, int]
    token: str
    gone: tuple[str, ...] = ()
    holds: Mapping[str, HeldBackfill] = field(default_factory=dict)
    known: str | None = None


@dataclass(frozen=True, slots=True)
class DueHold:
    """A hold past its time, handed to one reaper to be ended by an event."""

    reservation_id: str
    amount_nano: int
    charges: tuple[Charge, ...]
    context: str
    admitted_at_ms: int


@dataclass(frozen=True, slots=True)
class OrgImage:
    """A complete org state as rebuilt from ledger and log, to be loaded in one step together with a new epoch.

    `spent_nano` is keyed by (budget id, window key); `holds` by reservation id; `fences` and `producers` by
    (topic, partition) and (topic, partition, producer). `filled` are the marks of what is backfilled in it (`Marks`).
    """

    spent_nano: Mapping[tuple[str, str], int]
    holds: Mapping[str, Hold]
    fences: Mapping[tuple[str, int], int]
    producers: Mapping[tuple[str, int, str], int]
    filled: Mapping[str, int] = field(default_factory=dict)


def plus(figure: int, delta_nano: int) -> int:
    """A figure and what is added to it: at most `MAX_FIGURE`; what would fall below 64 bits is not taken off."""
    total = figure + delta_nano
    if total > MAX_FIGURE:
        return MAX_FIGURE
    return total if total >= -MAX_FIGURE - 1 else figure


def window_slot(budget_id: str, span: CalendarSpan | SessionSpan | LifetimeSpan) -> WindowSlot:
    """Key of a window's figures in `OrgState.windows`: the budget and the span's `key()`."""
    return budget_id, span.key()


def ring_slot(budget_id: str, span: RollingSpan) -> RingSlot:
    """Key of a rolling budget's ring in `OrgState.rings`; a re-windowed budget gets a ring of its own."""
    return budget_id, span.bucket_ms, span.count


def ring_low(span: RollingSpan, now_ms: int) -> int:
    """The first bucket that a ring still counts at `now_ms`."""
    return now_ms // span.bucket_ms - span.count


def is_forgotten(span: Span, now_ms: int) -> bool:
    """Whether a calendar window is so long past that the hot state has let it go (rings let go bucket by bucket)."""
    return isinstance(span, CalendarSpan) and now_ms >= counts_until_ms(span, now_ms)


def counts_until_ms(span: Span, now_ms: int) -> int:
    """When a charge in this span can no longer change any figure of `spent`; for spans without an end, long enough."""
    if isinstance(span, CalendarSpan):
        return span.end_ms + WINDOW_GRACE_MS
    until_ms = resets_at_ms(span)
    return now_ms + SESSION_IDLE_MS if until_ms is None else until_ms
