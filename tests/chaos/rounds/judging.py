"""P1 over a long log, in one pass: no budget is ever admitted past the limit that its call was decided under.

It imports nothing of Farthing: raw JSON and integers only, like `tests.support.checker`, whose event-by-event check
this is at a scale where that would take hours. What a budget comes to is told by the log alone: a call counts with its
hold from when the hot state admitted it, and with its cost from when its ending is in the log. The fold comes after, so
this never counts more than the hot state did.
"""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from tests.support.checker import milliseconds, nano

RESERVATION: Final = "spend.reservation.created.v1"
Limits = Mapping[int, Mapping[str, int | None]]


class Message(Protocol):
    """What is needed of a message of the log."""

    topic: str
    timestamp_ms: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Overshoot:
    """A call that was admitted past a limit, in nano-dollars."""

    transaction_id: str
    slot: tuple[str, str]
    total: int
    limit: int


@dataclass
class Overshoots:
    """Every overshoot, and what the largest came to."""

    found: list[Overshoot] = field(default_factory=list)
    checked: int = 0

    @property
    def most(self) -> int:
        """The largest, in nano-dollars."""
        return max((each.total - each.limit for each in self.found), default=0)


def overshoots(messages: Iterable[Message], limits: Limits) -> Overshoots:
    """Checks each admission. `limits` by configuration version and budget; None for one that only watches.

    Windows are taken as a whole: what has left a rolling one still counts here, so runs have to be shorter than these.
    Of calls that were admitted in the same millisecond nobody knows which was first: each is checked as if it had been,
    and all of them together against the largest of their limits.
    """
    verdict = Overshoots()
    book = _Book()
    for _, together in itertools.groupby(
        sorted(_moments(messages), key=lambda each: each[:2]), key=lambda each: each[:2]
    ):
        events = [event for *_, event in together]
        admitted = [
            event for event in events if event["type"] == RESERVATION and event["transaction_id"] not in book.slots
        ]
        before = {slot: book.totals[slot] for event in admitted for slot in _slots(event)}
        most: dict[tuple[str, str], int] = {}
        for event in events:
            book.take(event)
        for event in admitted:
            amount = nano(event["held_usd"])
            for slot in _slots(event):
                limit = limits[event["config_version"]].get(slot[0].partition("@")[0])
                verdict.checked += 1
                if limit is None:
                    continue
                most[slot] = max(limit, most.get(slot, 0))
                if before[slot] + amount > limit:
                    verdict.found.append(Overshoot(event["transaction_id"], slot, before[slot] + amount, limit))
        for slot, limit in most.items():
            if book.totals[slot] > limit:
                verdict.found.append(Overshoot("several", slot, book.totals[slot], limit))
    return verdict


class _Book:
    """What each budget's window comes to so far."""

    def __init__(self) -> None:
        self.totals: dict[tuple[str, str], int] = defaultdict(int)
        self.slots: dict[str, Sequence[tuple[str, str]]] = {}
        self._counted: dict[str, int] = {}

    def take(self, event: Mapping[str, Any]) -> None:
        """A call counts with its hold, then with its ending."""
        name = event["transaction_id"]
        amount = _amount(event)
        if amount is None or (name in self._counted and event["type"] == RESERVATION):
            return
        slots = self.slots.setdefault(name, _slots(event))
        for slot in slots:
            self.totals[slot] += amount - self._counted.get(name, 0)
        self._counted[name] = amount


def _moments(messages: Iterable[Message]) -> Iterable[tuple[int, int, dict[str, Any]]]:
    """Each event with when it took effect: an admission at the hot state's time, an ending when the log had it."""
    settled: set[str] = set()
    for message in messages:
        event = json.loads(message.value)
        if event["type"] == RESERVATION:
            yield milliseconds(event["time"]), 1, event
        elif event["type"] == "spend.settlement.recorded.v1":
            settled.add(event["transaction_id"])
            yield message.timestamp_ms, 0, event
        elif event["type"] == "spend.hold.expired.v1" and event["transaction_id"] not in settled:
            yield message.timestamp_ms, 0, event


def _amount(event: Mapping[str, Any]) -> int | None:
    for name in ("cost_usd", "booked_usd", "held_usd"):
        if name in event:
            return nano(event[name])
    return None


def _slots(event: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [_slot(charge) for charge in event["charges"]]


def _slot(charge: Mapping[str, str]) -> tuple[str, str]:
    window = charge["window"]
    return charge["budget_id"], window.rpartition(":")[0] if window.startswith("r:") else window
