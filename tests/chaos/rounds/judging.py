"""P1 over a long log, batch by batch: no budget is ever admitted past the limit that its call was decided under.

It imports nothing of Farthing: raw JSON and integers only, like `tests.support.checker`, whose event-by-event check
this is at a scale where that would take hours. What a budget comes to is told by the log alone: a call counts with its
hold from when the hot state admitted it, with another from when the hot state changed that, and with its cost from when
its ending is in the log. The fold comes after, so this never counts more than the hot state did.
"""

import itertools
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.support.checker import milliseconds, nano

RESERVATION: Final = "spend.reservation.created.v1"
RESIZED: Final = "spend.hold.resized.v1"
SETTLEMENT: Final = "spend.settlement.recorded.v1"
EXPIRY: Final = "spend.hold.expired.v1"
# Of events that took effect in the same millisecond, what makes room counts first.
_ENDING, _CHANGE = 0, 1

Event = Mapping[str, Any]
Slot = tuple[str, str]


class Limits:
    """Every budget's limit in nano-dollars by version of the configuration, read off the audit as it grows."""

    def __init__(self, watching: Collection[str] = ()) -> None:
        self._watching = watching
        self._history: dict[str, list[tuple[int, int]]] = {}
        self._published: list[tuple[int, int]] = []
        # Parts of budgets that nobody has ended yet.
        self.open_parts: set[str] = set()

    def take(self, entry: Event) -> None:
        """The next entry of the audit. What is taken away keeps its limit: nothing may be charged to it any more."""
        version, action, after = entry["config_version"], entry["action"], entry["after"]
        self._published.append((milliseconds(entry["at"]), version))
        if action in ("budget.create", "budget.update"):
            self._set(entry["target"], version, nano(after["limit_usd"]))
        elif action == "budget.delegate":
            self._set(entry["target"], version, after["limit_nano"])
            self.open_parts.add(entry["target"])
        elif action == "budget.delegation_end":
            self.open_parts.discard(entry["target"])
        elif action == "cap_policy.update":
            for billing_class, cell in after["caps"].items():
                for period, limit in cell.items():
                    if limit is not None:
                        name = "per_session" if period == "perSession" else period
                        self._set(f"cap_{name}_{billing_class}_{version}", version, nano(limit))

    def _set(self, budget_id: str, version: int, limit: int) -> None:
        self._history.setdefault(budget_id, []).append((version, limit))

    def of(self, event: Event, budget_id: str) -> int | None:
        """What a call was decided under; None for a budget that only watches.

        Limits are of the moment: a hold that was changed, was changed under any that there was since its call came in.
        Raises `KeyError` for a budget that the call's configuration did not have.
        """
        name = budget_id.partition("@")[0]
        if name in self._watching:
            return None
        since = until = event["config_version"]
        if event["type"] == RESIZED:
            known = bisect_right(self._published, (milliseconds(event["time"]), 2**63))
            until = max(since, self._published[known - 1][1])
        history = self._history[name]
        first = bisect_right(history, (since, 2**63)) - 1
        if first < 0:
            raise KeyError(name)
        return max(limit for version, limit in history[first:] if version <= until)


@dataclass(frozen=True, slots=True)
class Overshoot:
    """A call that was admitted past a limit, in nano-dollars."""

    transaction_id: str
    slot: Slot
    total: int
    limit: int


@dataclass(slots=True)
class _Counted:
    """What a call counts with, and against what."""

    amount: int
    slots: Sequence[Slot]
    has_ended: bool = False
    is_settled: bool = False


@dataclass
class CapBook:
    """P1, batch by batch; each batch is all that came since the last, and nothing was under way at its end.

    Windows are taken as a whole: what has left a rolling one still counts here, so runs have to be shorter than these.
    Of calls that were admitted in the same millisecond nobody knows which was first: each is checked as if it had been,
    and all of them together against the largest of their limits.
    """

    limits: Limits
    found: list[Overshoot] = field(default_factory=list)
    checked: int = 0
    _totals: dict[Slot, int] = field(default_factory=lambda: defaultdict(int))
    _calls: dict[str, _Counted] = field(default_factory=dict)

    @property
    def most(self) -> int:
        """The largest overshoot, in nano-dollars."""
        return max((each.total - each.limit for each in self.found), default=0)

    def take(self, events: Iterable[tuple[int, Event]]) -> None:
        """Checks a batch of events, each with when the log took it (ms)."""
        moments = sorted((_moment(at_ms, event) for at_ms, event in events), key=lambda each: each[:2])
        for _, together in itertools.groupby(moments, key=lambda each: each[:2]):
            self._take_together([event for *_, event in together])
        # What has been settled stays so. What expired may be settled yet.
        self._calls = {name: each for name, each in self._calls.items() if not each.is_settled}

    def _take_together(self, events: Sequence[Event]) -> None:
        before: dict[Slot, int] = {}
        grown = []
        for event in events:
            for slot, added in self._count(event):
                before.setdefault(slot, self._totals[slot])
                self._totals[slot] += added
                if added > 0 and event["type"] in (RESERVATION, RESIZED):
                    grown.append((event, slot, added))
        most: dict[Slot, int] = {}
        already = len(self.found)
        for event, slot, added in grown:
            self.checked += 1
            limit = self._limit(event, slot)
            if limit is None:
                continue
            most[slot] = max(limit, most.get(slot, 0))
            if before[slot] + added > limit:
                self.found.append(Overshoot(event["transaction_id"], slot, before[slot] + added, limit))
        told = {each.slot for each in self.found[already:]}
        for slot, limit in most.items():
            if self._totals[slot] > limit and slot not in told:
                self.found.append(Overshoot("several", slot, self._totals[slot], limit))

    def _limit(self, event: Event, slot: Slot) -> int | None:
        try:
            return self.limits.of(event, slot[0])
        except KeyError:
            return 0  # charged to what was not there: all of it is too much

    def _count(self, event: Event) -> list[tuple[Slot, int]]:
        """Makes a call count with what an event says; what that adds to each slot."""
        name, kind = event["transaction_id"], event["type"]
        known = self._calls.get(name)
        amount = _amount(event)
        if amount is None or (known is not None and not _comes_after(known, kind)):
            return []
        slots = [_slot(charge) for charge in event["charges"]]
        ended = kind in (SETTLEMENT, EXPIRY)
        self._calls[name] = _Counted(amount, slots, ended, kind == SETTLEMENT)
        added: dict[Slot, int] = defaultdict(int)
        for slot in () if known is None else known.slots:
            added[slot] -= known.amount if known is not None else 0
        for slot in slots:
            added[slot] += amount
        return list(added.items())


def _comes_after(known: _Counted, kind: str) -> bool:
    """Whether an event says more of a call than what is known: a settlement has the last word, an expiry the next."""
    if kind == RESERVATION or known.is_settled:
        return False
    return kind == SETTLEMENT or not known.has_ended


def _moment(at_ms: int, event: Event) -> tuple[int, int, Event]:
    """When an event took effect: a change of holds at the hot state's time, an ending when the log had it."""
    if event["type"] in (RESERVATION, RESIZED):
        return milliseconds(event["time"]), _CHANGE, event
    return at_ms, _ENDING, event


def _amount(event: Event) -> int | None:
    for name in ("cost_usd", "booked_usd", "held_usd"):
        if name in event:
            return nano(event[name])
    return None


def _slot(charge: Mapping[str, str]) -> Slot:
    window = charge["window"]
    return charge["budget_id"], window.rpartition(":")[0] if window.startswith("r:") else window
