"""What the log means for all calls of a run, batch by batch, and whether hot state and ledger say the same.

Like `tests.support.checker` it reads raw JSON and shares no code with the fold, the scripts or the ledger. Of a call
only its figures are kept, so that hundreds of rounds fit into memory and none of them is read twice.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from tests.chaos.rounds.judging import EXPIRY, RESERVATION, RESIZED, SETTLEMENT, CapBook, Event
from tests.support.checker import (
    Transaction,
    Verdict,
    check_parents,
    check_windows,
    milliseconds,
    nano,
)

DENIAL: Final = "spend.decision.denied.v1"
_KINDS: Final = {RESERVATION: "reservation", SETTLEMENT: "settlement", EXPIRY: "expiry", DENIAL: "denial"}


class LoggedMessage(Protocol):
    """What is needed of a message of the log."""

    @property
    def topic(self) -> str:
        """Where it lies."""

    @property
    def partition(self) -> int:
        """In which part of that."""

    @property
    def offset(self) -> int:
        """At which place."""

    @property
    def value(self) -> bytes:
        """The event."""

    @property
    def timestamp_ms(self) -> int:
        """When it was published."""


@dataclass(slots=True)
class Call:
    """What the log says of a call, in nano-dollars; None for what has not happened. `opened`: by what, and until when
    its hold was to last."""

    opened: tuple[object, ...] | None = None
    held: int = 0
    held_ms: int = 0
    cost: int | None = None
    booked: int | None = None
    is_denied: bool = False
    # What it has put into `spent`, and of which budgets.
    slots: tuple[str, ...] = ()
    counted: int = 0

    @property
    def has_ended(self) -> bool:
        """Whether it holds nothing any more."""
        return self.cost is not None or self.booked is not None


@dataclass
class Books:
    """All calls of a run. `doubled`: what the log has twice and may not; `wrong`: whatever else may not be."""

    caps: CapBook
    parents: Mapping[str, str | None]
    calls: dict[str, Call] = field(default_factory=dict)
    spent: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    spent_by: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))
    kinds: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    offsets: dict[tuple[str, int], int] = field(default_factory=dict)
    _sequences: dict[tuple[str, int, str], int] = field(default_factory=dict)

    def take(self, messages: Iterable[LoggedMessage]) -> None:
        """All that came since the last batch. Asserts that no offset is missing."""
        timed: list[tuple[int, Event]] = []
        batch: dict[str, Transaction] = defaultdict(Transaction)
        for message in sorted(messages, key=lambda each: (each.topic, each.partition, each.offset)):
            event = self._readable(message)
            if event is None or not self._enter(event):
                continue
            each = batch[event["transaction_id"]]
            if event["type"] == RESIZED:
                each.resized.append(event)
            else:
                setattr(each, _KINDS[event["type"]], event)
            if event["type"] != DENIAL:
                timed.append((message.timestamp_ms, event))
        self.caps.take(timed)
        self.wrong += check_windows(Verdict(batch))
        # What all of a part is held against counts its calls when the part ends, not one by one.
        others = {name: each for name, each in batch.items() if not _is_by_part(each)}
        self.wrong += check_parents(Verdict(others), defaultdict(lambda: _Parents(self.parents)))
        for name, each in batch.items():
            self._check_settled(name, each)

    def open(self) -> list[str]:
        """The calls that hold something."""
        return [name for name, each in self.calls.items() if each.opened is not None and not each.has_ended]

    def total(self) -> int:
        """Nano-dollars that all calls have spent."""
        return sum(each.counted for each in self.calls.values())

    def _readable(self, message: LoggedMessage) -> dict[str, Any] | None:
        """The event of a message that was not there before."""
        place = (message.topic, message.partition)
        assert message.offset == self.offsets.get(place, 0), f"{place} skips to {message.offset}"
        self.offsets[place] = message.offset + 1
        try:
            event: dict[str, Any] = json.loads(message.value)
        except ValueError:
            self.wrong.append(f"{place} has what can't be read at {message.offset}")
            return None
        producer = (*place, event["producer"])
        if event["sequence"] <= self._sequences.get(producer, 0):
            self.seen["published twice"] += 1
            return None
        self._sequences[producer] = event["sequence"]
        return event

    def _enter(self, event: Event) -> bool:
        """Takes an event into its call; False for one that says again what is known."""
        name, kind = event["transaction_id"], event["type"]
        call = self.calls.setdefault(name, Call())
        self._notice(event)
        if kind == RESIZED:
            if milliseconds(event["time"]) >= call.held_ms:
                call.held, call.held_ms = nano(event["held_usd"]), milliseconds(event["time"])
            return True
        if self._is_repeated(call, event):
            return False
        self.kinds[_KINDS[kind]] += 1
        if kind == RESERVATION:
            call.opened = _opening(event)
            if not call.held_ms:
                call.held, call.held_ms = nano(event["held_usd"]), milliseconds(event["time"])
        elif kind == DENIAL:
            call.is_denied = True
        else:
            self._end(call, event)
        return True

    def _is_repeated(self, call: Call, event: Event) -> bool:
        """Whether a call has an event of that kind already; if it says anything else, that may not be."""
        name, kind = event["transaction_id"], event["type"]
        if kind == RESERVATION and call.opened is not None:
            # A gateway died before it answered, and the next one that was asked found the hold and told of it again.
            if name.startswith("rsv_") and call.opened == _opening(event):
                self.seen["told again by another gateway"] += 1
            else:
                self.doubled.append(f"{name} is reserved twice")
            return True
        if kind == DENIAL and call.is_denied and name.startswith("rsv_"):
            self.seen["told again by another gateway"] += 1
            return True
        known = {SETTLEMENT: call.cost is not None, EXPIRY: call.booked is not None, DENIAL: call.is_denied}
        if known.get(kind, False):
            self.doubled.append(f"{name} has two {_KINDS[kind]} events")
            return True
        if (kind == DENIAL and call.opened is not None) or (kind == RESERVATION and call.is_denied):
            self.doubled.append(f"{name} is both reserved and refused")
        return False

    def _end(self, call: Call, event: Event) -> None:
        """A settlement has the last word, whichever the log has first."""
        if event["type"] == SETTLEMENT:
            call.cost = nano(event["cost_usd"])
        else:
            call.booked = nano(event["booked_usd"])
            if call.cost is not None:
                return
        self._count(call, event, -1)
        call.slots = tuple(charge["budget_id"] for charge in event["charges"])
        call.counted = nano(event["cost_usd" if event["type"] == SETTLEMENT else "booked_usd"])
        self._count(call, event, 1)

    def _count(self, call: Call, event: Event, sign: int) -> None:
        for budget_id in call.slots:
            self.spent[budget_id] += sign * call.counted
        for dimension in ("org", "team", "agent"):
            self.spent_by[dimension][str(event["identity"][dimension])] += sign * call.counted

    def _check_settled(self, name: str, each: Transaction) -> None:
        event = each.settlement
        if event is None or each.reservation is None:
            return
        if nano(event["cost_usd"]) > each.held_nano:
            self.wrong.append(f"{name} cost more than it held")
        if event["charges"] != each.charges:
            self.wrong.append(f"{name} was charged elsewhere than held")

    def _notice(self, event: Event) -> None:
        """What the traffic has brought about, for whoever reads the report."""
        kind = event["type"]
        if kind == RESERVATION:
            self.seen["estimate " + event["estimate"]["mode"]] += 1
            self.seen.update(name for name in ("parent_charged", "would_block") if event.get(name))
            self.seen.update(flag for flag in event["flags"] if flag == "downgraded")
            self.seen["billing class " + event["billing_class"]] += 1
            self.seen["without a session"] += event["identity"]["session"] is None
        elif kind == SETTLEMENT:
            self.seen["outcome " + event["outcome"]] += 1
            self.seen["route " + event["route"]] += 1
            call = self.calls[event["transaction_id"]]
            self.seen["settled after it had expired"] += call.booked is not None
        elif kind == RESIZED:
            self.seen["resized"] += 1
        elif kind == DENIAL:
            self.seen["refused by " + event["code"]] += 1


class _Parents(dict[str, str | None]):
    """Parts and caps have none."""

    def __missing__(self, budget_id: str) -> None:
        return None


def _is_by_part(each: Transaction) -> bool:
    event = each.reservation or each.settlement
    return event is not None and str(event["identity"].get("key_id")).startswith("key_sub_")


def _opening(event: Event) -> tuple[object, ...]:
    charges = tuple((charge["budget_id"], charge["window"]) for charge in event["charges"])
    return event["held_usd"], event["expires_at"], event["time"], charges
