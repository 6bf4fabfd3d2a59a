"""P1 by the independent model: no budget comes to more than its limit, at any prefix of the log.

Like `checker`, it imports nothing of Farthing.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from tests.support.checker import Known, Message, is_within_hold, milliseconds, nano, readable, slot_of

Limits = Mapping[int, Mapping[str, int | None]]
Slot = tuple[str, str]
# What an event counts against without saying so, given when its call was admitted (RFC 3339): (budget id, window), and
# the version from which on it does.
Implied = Callable[[Mapping[str, Any], str], Iterable[tuple[str, str, int]]]
# By (topic, partition, offset), when (ms) the hot state folded that message.
Folds = Mapping[tuple[str, int, int], Sequence[int]]
MAX_MS = 2**63


@dataclass
class _Counted:
    """A call as it counts against one budget's window."""

    name: str
    admitted_ms: int
    place: tuple[str, int]
    offset: int
    bucket: int | None
    # What it has held, from which instant on.
    held: list[tuple[int, int]]
    limit_nano: int
    spent_nano: int | None = None
    # Of what is implied: the version of the configuration that made the budget count it, and the events that say so,
    # by (topic, partition, offset), with the instants that they tell of.
    since_version: int = 0
    told: list[tuple[tuple[str, int, int], int]] = field(default_factory=list)
    # Whether it was implied before it was charged, so that it never asked for room.
    is_unasked: bool = False

    def amount(self, now_ms: int, lost: Sequence[tuple[int, int]], changes: Sequence["Change"], slot: Slot) -> int:
        """What it counts at an instant: its cost once that is known, else what it held then.

        Of a change that the hot state lost again, or that comes later in the log or never, whatever is less.
        """
        is_lost, (_, amount) = False, self.held[0]
        for since_ms, changed_nano in self.held[1:]:
            if since_ms <= now_ms:
                is_lost = any(begin_ms <= since_ms <= end_ms <= now_ms for begin_ms, end_ms in lost)
                amount = min(amount, changed_nano) if is_lost else changed_nano
        if self.spent_nano is not None and self.held[-1][0] <= now_ms:  # what is changed later had not ended then
            # Not folded yet, it counts as what it holds, which is no less but for one that has lost what it grew by.
            return min(amount, self.spent_nano) if is_lost else self.spent_nano
        later = (each for each in changes if self.held[-1][0] < each.since_ms <= now_ms)
        return min((amount, *(each.least_nano(slot, amount) for each in later)))


@dataclass(frozen=True)
class Change:
    """A change of what a call holds, against what from then on, as long as the log does not tell of it.

    `left` are full children that let their parents pay from then on. They hold what they held until the log tells.
    """

    since_ms: int
    held_nano: int
    slots: frozenset[Slot]
    left: frozenset[Slot] = frozenset()

    def least_nano(self, slot: Slot, before_nano: int) -> int:
        """What a slot holds at least by it, that held `before_nano`."""
        if slot in self.left:
            return before_nano
        return min(before_nano, self.held_nano) if slot in self.slots else 0


class CapChecker:
    """P1, event by event in the order in which the log took them: settled and held never pass an enforced limit.

    `limits` are the limits in nano-dollars by configuration version and budget, None for one that only watches. Each
    call is judged by the limit it was admitted under. `loads` are when (ms) a lost hot state was loaded anew, with what
    it knew of the log: a call admitted before that, whose reservation the log did not have yet, is in no one's sums.
    Nor is one that was admitted within `lost`, spans of time (ms) whose writes a hot state lost at their end. `seen`
    are changes of holds by call, as the hot state was seen to make them, whether the log tells of them or not: where it
    does not, a call counts as the log has it, or as it was changed, whatever is less.

    A call that was decided under a configuration that knows a budget counts what calls of earlier ones imply for it
    (BU-8), from when the hot state has folded an event that says so: `implied` and `folds`. Nothing refuses those.
    """

    def __init__(
        self,
        limits: Limits,
        loads: Sequence[tuple[int, Known]] = (),
        lost: Sequence[tuple[int, int]] = (),
        seen: Mapping[str, Sequence[Change]] = MappingProxyType({}),
        implied: Implied = lambda _event, _admitted: (),
        folds: Folds = MappingProxyType({}),
    ) -> None:
        self._limits = limits
        self._loads = loads
        self._lost = lost
        self._implied_by = implied
        self._folds = folds
        self._implied: dict[Slot, dict[str, _Counted]] = defaultdict(dict)
        self._implied_of: dict[str, list[Slot]] = {}
        # When calls were admitted, as their reservations spell it.
        self._admitted: dict[str, str] = {}
        self._slots: dict[tuple[str, str], dict[str, _Counted]] = defaultdict(dict)
        self._slots_of: dict[str, list[tuple[str, str]]] = defaultdict(list)
        self._seen: dict[tuple[str, int, str], int] = {}
        self._ended: dict[str, int] = {}
        # What expired calls held.
        self._expired: dict[str, int] = {}
        self._changes: dict[str, list[Change]] = defaultdict(list, {name: list(each) for name, each in seen.items()})
        # When a call was changed last, as far as the log has told by now.
        self._told: dict[str, int] = {}
        # Held at less than they may cost, or not at all.
        self._loose: set[str] = set()
        # Let go of unspent by the org's own wish, so that there is no room for what they turn out to have cost.
        self._unbooked: set[str] = set()
        self.findings: list[str] = []

    def foresee(self, message: Message) -> None:
        """Any message of the log, before all are taken: what a hold was changed by is in the hot state before it is in
        the log, and another call that was admitted in between may be in the log before it."""
        event = readable(message)
        if event is None:
            return
        name = event["transaction_id"]
        if event["type"] == "spend.reservation.created.v1":
            self._admitted.setdefault(name, event["time"])
        elif event["type"] == "spend.hold.resized.v1":
            slots = {slot_of(charge)[0] for charge in event["charges"]} | {slot for slot, _, _ in self._implies(event)}
            self._foresee_change(name, Change(milliseconds(event["time"]), nano(event["held_usd"]), frozenset(slots)))

    def _foresee_change(self, name: str, change: Change) -> None:
        changes = self._changes[name]
        for number, each in enumerate(changes):
            if (each.since_ms, each.held_nano) == (change.since_ms, change.held_nano):
                changes[number] = replace(change, left=each.left)
                return
        changes.append(change)

    def take(self, message: Message) -> None:
        """The next message of the log."""
        event = readable(message)
        if event is None or "charges" not in event:
            return
        producer = (message.topic, message.partition, event["producer"])
        if event["sequence"] <= self._seen.get(producer, 0):
            return
        self._seen[producer] = event["sequence"]
        name, kind = event["transaction_id"], event["type"]
        if "fail_open" in event.get("flags", ()) or not _is_bound(event):
            self._loose.add(name)
        if name in self._loose:
            return
        if kind == "spend.reservation.created.v1":
            self._admit(message, event, milliseconds(event["time"]))
        elif kind == "spend.hold.resized.v1":
            if milliseconds(event["time"]) < self._told.get(name, 0):
                return  # a later change was in the log before it
            self._resize(message, event, milliseconds(event["time"]))
        else:
            is_settlement = kind == "spend.settlement.recorded.v1"
            amount = nano(event["cost_usd"] if is_settlement else event["booked_usd"])
            if not is_settlement:
                self._expired[name] = nano(event["held_usd"])
            held_nano = nano(event["held_usd"])
            if is_settlement and amount > min(held_nano, self._expired.get(name, held_nano)):
                if amount > held_nano and is_within_hold(event):
                    self.findings.append(f"{name} was ended early at {amount}, and held {event['held_usd']}")
                # A stream that was held step by step, and thought faster than can be seen; or what somebody has
                # reserved, and says to have cost more, or that expired when it had been made smaller.
                self._loose.add(name)
                for slot in self._slots_of.pop(name, []):
                    del self._slots[slot][name]
                for slot in self._implied_of.pop(name, []):
                    del self._implied[slot][name]
                return
            if is_settlement or name not in self._ended:
                self._ended[name] = amount
            if not is_settlement and amount < nano(event["held_usd"]):
                self._unbooked.add(name)
            untold = self._untold(name, event)
            if name not in self._slots_of:
                self._enter(message, event, milliseconds(event["admitted_at"]), is_later=untold is not None)
                self._told[name] = 0 if untold is None else untold.since_ms
            elif untold is not None:
                self._resize(message, event, untold.since_ms)
            for slot in self._slots_of[name]:
                self._slots[slot][name].spent_nano = self._ended[name]
            self._imply(message, event, MAX_MS)
        self._check_prefix(name)

    def strays(self) -> set[str]:
        """The calls that a hot state did not know of for a while, and those that held too little."""
        every = [each for slot in self._slots.values() for each in slot.values()]
        return {*self._loose, *(each.name for each in every if self._is_stray(each, MAX_MS))}

    def _enter(self, message: Message, event: dict[str, Any], admitted_ms: int, *, is_later: bool = False) -> None:
        name = event["transaction_id"]
        limits = self._limits[event["config_version"]]
        slots = self._slots_of[name]  # from here on it is known, whether anything limits it or not
        for charge in event["charges"]:
            budget = charge["budget_id"].partition("@")[0]
            if budget not in limits and not is_later:
                self.findings.append(f"{name} is charged to {budget}, which version {event['config_version']} has not")
                continue
            limit_nano = self._largest(budget, event["config_version"]) if is_later else limits.get(budget)
            slot, bucket = slot_of(charge)
            held = [(admitted_ms, nano(event["held_usd"]))]
            place = (message.topic, message.partition)
            if limit_nano is not None:
                counted = _Counted(name, admitted_ms, place, message.offset, bucket, held, limit_nano)
                self._slots[slot][name] = counted
                slots.append(slot)

    def _largest(self, budget: str, since_version: int) -> int | None:
        """The largest limit since a version: a hold that is changed later is judged by a later configuration."""
        if budget.startswith("sub_"):  # a part of a budget, whose limit never changes
            return next((known[budget] for known in self._limits.values() if budget in known), None)
        # What is made later counts from then on: a reservation that grows is charged to it, too.
        known_since = min((version for version, known in self._limits.items() if budget in known), default=0)
        since_version = max(since_version, known_since)
        limits = [known.get(budget) for version, known in self._limits.items() if version >= since_version]
        # One that is gone, or only watches by then, refuses nothing.
        return None if None in limits else max(each for each in limits if each is not None)

    def _admit(self, message: Message, event: dict[str, Any], now_ms: int) -> None:
        name = event["transaction_id"]
        if name not in self._slots_of:
            self._enter(message, event, now_ms)
            if name not in self._ended:
                self._imply(message, event, now_ms)
        charged = {slot_of(charge)[0] for charge in event["charges"]}
        for slot in self._slots_of[name]:
            if slot in charged:  # what has ended already may be charged elsewhere by then
                self._check_own(slot, event, now_ms)
            if name in self._ended:
                self._slots[slot][name].spent_nano = self._ended[name]

    def _untold(self, name: str, ending: Mapping[str, Any]) -> Change | None:
        """The last change of a call's hold, if the log has not told of it before this ending, which knows of it.

        An expiry tells of its hold as the hot state has it, a settlement as its gateway has heard.
        """
        last = max(self._changes.get(name, ()), key=lambda each: each.since_ms, default=None)
        if last is None or last.since_ms <= self._told.get(name, 0):
            return None
        charged = {slot_of(charge)[0] for charge in ending["charges"]}
        return last if charged <= last.slots else None

    def _resize(self, message: Message, event: dict[str, Any], now_ms: int) -> None:
        name, amount = event["transaction_id"], nano(event["held_usd"])
        admitted_ms, self._told[name] = now_ms, now_ms
        before = {slot: self._slots[slot].pop(name) for slot in self._slots_of.pop(name, [])}
        if before:
            admitted_ms = min(each.admitted_ms for each in before.values())
        self._enter(message, event, admitted_ms, is_later=True)
        implied = {slot: self._implied[slot][name] for slot in self._implied_of.get(name, [])}
        if name not in self._ended:
            self._imply(message, event, now_ms)
        for slot in self._slots_of.get(name, []):
            counted, old = self._slots[slot][name], before.get(slot)
            # Against what it is charged to from now on it has held nothing until now.
            counted.held = [*(old.held if old else [(admitted_ms, 0)] if before else []), (now_ms, amount)]
            counted.spent_nano = self._ended.get(name)
            had = old or implied.get(slot)
            if had is None or amount > had.held[-1][1]:
                self._check_own(slot, event, now_ms)
            else:  # it asks for no room that it has not had
                counted.limit_nano = max(counted.limit_nano, had.limit_nano)
                counted.is_unasked = old is None or old.is_unasked

    def _implies(self, event: Mapping[str, Any]) -> Iterator[tuple[Slot, int | None, int]]:
        """What an event counts against without saying so, in which buckets, and from which version on."""
        admitted = event.get("admitted_at") or self._admitted.get(event["transaction_id"])
        for budget_id, window, since_version in () if admitted is None else self._implied_by(event, admitted):
            yield (*slot_of({"budget_id": budget_id, "window": window}), since_version)

    def _imply(self, message: Message, event: dict[str, Any], now_ms: int) -> None:
        """Takes in what an event implies, in the place of what the call's event before it did."""
        name, amount = event["transaction_id"], nano(event["held_usd"])
        before = {slot: self._implied[slot].pop(name) for slot in self._implied_of.pop(name, [])}
        place = (message.topic, message.partition)
        for slot, bucket, since_version in self._implies(event):
            counted = before.get(slot)
            if counted is None:
                admitted_ms = milliseconds(event.get("admitted_at") or self._admitted[name])
                held = [(admitted_ms if now_ms == MAX_MS else now_ms, amount)]
                counted = _Counted(name, admitted_ms, place, message.offset, bucket, held, 0)
            elif now_ms != MAX_MS:
                counted.held.append((now_ms, amount))
            counted.told.append(((*place, message.offset), now_ms))
            counted.since_version, counted.spent_nano = since_version, self._ended.get(name)
            self._implied[slot][name] = counted
            self._implied_of.setdefault(name, []).append(slot)

    def _is_known(self, each: _Counted, now_ms: int) -> bool:
        """Whether the hot state has folded by then, and not lost again, that a call counts without saying so.

        An event whose hold was changed before it was folded does not tell: that of the change does.
        """
        changes = self._changes.get(each.name, ())
        return any(
            folded_ms < now_ms
            and not any(begin_ms <= folded_ms <= end_ms <= now_ms for begin_ms, end_ms in self._lost)
            and not any(told_ms < change.since_ms <= folded_ms for change in changes)
            for place, told_ms in each.told
            for folded_ms in self._folded_ms(place)
        )

    def _folded_ms(self, place: tuple[str, int, int]) -> Iterator[int]:
        yield from self._folds.get(place, ())
        yield from (at_ms for at_ms, known in self._loads if place[2] < known.get(place[:2], 0))

    def _check_own(self, slot: Slot, event: Mapping[str, Any], now_ms: int) -> None:
        """That there was room for a call when it was admitted, or grew, among those that were there before it."""
        name, amount = event["transaction_id"], nano(event["held_usd"])
        own = self._slots[slot][name]
        others = [
            each
            for each in self._slots[slot].values()
            if each.name != name and each.admitted_ms < now_ms and not self._is_stray(each, now_ms)
        ]
        for each in self._implied[slot].values():
            counts = each.name != name and each.since_version <= event["config_version"]
            if counts and not self._is_stray(each, now_ms) and self._is_known(each, now_ms):
                others.append(each)
        total = amount + sum(self._amount(each, slot, now_ms) for each in others if not _has_left(each, slot, now_ms))
        if total > own.limit_nano:
            self.findings.append(f"{name} came to {total} of {own.limit_nano} nano-dollars in {slot}")

    def _check_prefix(self, name: str) -> None:
        """That this prefix of the log comes to no more than the largest limit that anything in it was admitted to."""
        for slot in self._slots_of.get(name, []):
            counted = list(self._slots[slot].values())
            now_ms = max(each.held[-1][0] for each in counted)
            asked = [each for each in counted if not each.is_unasked and not self._is_stray(each, now_ms)]
            known = [each for each in asked if not _has_left(each, slot, now_ms)]
            total = sum(self._amount(each, slot, now_ms) for each in known)
            most = max((each.limit_nano for each in counted), default=0)
            if known and total > most:
                self.findings.append(f"the log, at {name}, comes to {total} of {most} nano-dollars in {slot}")

    def _amount(self, each: _Counted, slot: Slot, now_ms: int) -> int:
        return each.amount(now_ms, self._lost, self._changes.get(each.name, ()), slot)

    def _is_stray(self, each: _Counted, now_ms: int) -> bool:
        if each.name in self._unbooked or any(
            since_ms <= each.admitted_ms <= at_ms <= now_ms for since_ms, at_ms in self._lost
        ):
            return True
        return any(
            each.admitted_ms <= at_ms <= now_ms and each.offset >= known.get(each.place, 0)
            for at_ms, known in self._loads
        )


def _is_bound(event: Mapping[str, Any]) -> bool:
    """Whether what a call holds bounds what it may cost: at once, as it is extended, or as somebody says."""
    mode: str = event.get("estimate_mode") or event.get("estimate", {}).get("mode", "strict")
    return mode in ("strict", "stepped", "stated")


def _has_left(each: _Counted, slot: tuple[str, str], now_ms: int) -> bool:
    """Whether what a call has spent is no longer in a rolling window. What is held counts until it ends."""
    if each.bucket is None or each.spent_nano is None:
        return False
    _, bucket_ms, count = slot[1].split(":")
    return each.bucket < now_ms // int(bucket_ms) - int(count)
