"""An independent model of what the log means. It imports nothing of Farthing: JSON and integers only.

It reads the raw messages of the log and says what every budget window must have spent and must still hold, which
transactions exist and how each ended, so that hot state and ledger can be compared with something that shares no code
with either.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

NANO = 1_000_000_000


class Message(Protocol):
    """What the checker needs of a message of the log."""

    topic: str
    partition: int
    offset: int
    value: bytes


def nano(text: str) -> int:
    """Nano-dollars of a nine-decimal string."""
    whole, _, fraction = text.partition(".")
    assert len(fraction) == 9, f"{text!r} does not have nine decimals"
    sign = -1 if whole.startswith("-") else 1
    return sign * (abs(int(whole)) * NANO + int(fraction))


@dataclass
class Transaction:
    """Everything the log says of one call."""

    reservation: dict[str, Any] | None = None
    resized: list[dict[str, Any]] = field(default_factory=list)
    settlement: dict[str, Any] | None = None
    expiry: dict[str, Any] | None = None
    denial: dict[str, Any] | None = None

    @property
    def spent_nano(self) -> int:
        """What it has put into `spent`: its settlement's cost, else what its expiry booked."""
        if self.settlement is not None:
            return nano(self.settlement["cost_usd"])
        return nano(self.expiry["booked_usd"]) if self.expiry is not None else 0

    @property
    def held_nano(self) -> int:
        """What it holds: by its reservation, or as changed last."""
        assert self.reservation is not None
        latest = max(self.resized, key=lambda each: each["time"], default=self.reservation)
        return nano(latest["held_usd"])

    @property
    def is_open(self) -> bool:
        """Held and not ended."""
        return self.reservation is not None and self.settlement is None and self.expiry is None


@dataclass
class Verdict:
    """The log's meaning."""

    transactions: dict[str, Transaction] = field(default_factory=dict)
    duplicates: int = 0
    events: int = 0

    def spent(self) -> dict[tuple[str, str], int]:
        """Nano-dollars spent by (budget id, window key); a rolling window's buckets are one key each."""
        totals: dict[tuple[str, str], int] = defaultdict(int)
        for each in self.transactions.values():
            ending = each.settlement or each.expiry
            if ending is not None:
                for charge in ending["charges"]:
                    totals[charge["budget_id"], charge["window"]] += each.spent_nano
        return dict(totals)

    def held(self) -> dict[tuple[str, str], int]:
        """Nano-dollars held by (budget id, window key)."""
        totals: dict[tuple[str, str], int] = defaultdict(int)
        for each in self.transactions.values():
            if each.is_open:
                assert each.reservation is not None
                for charge in each.reservation["charges"]:
                    totals[charge["budget_id"], charge["window"]] += each.held_nano
        return dict(totals)

    def spent_of_budget(self, budget_id: str) -> int:
        """Nano-dollars a budget has spent over all windows."""
        return sum(amount for (budget, _), amount in self.spent().items() if budget == budget_id)

    def spent_by(self, dimension: str) -> dict[str, int]:
        """Nano-dollars by an identity dimension or vendor or model."""
        totals: dict[str, int] = defaultdict(int)
        for each in self.transactions.values():
            ending = each.settlement or each.expiry
            if ending is not None:
                value = ending["identity"].get(dimension) if dimension in ending["identity"] else ending.get(dimension)
                totals[str(value)] += each.spent_nano
        return dict(totals)

    def kinds(self) -> dict[str, int]:
        """How many reservations, settlements, expiries and denials there are."""
        return {
            kind: sum(getattr(each, kind) is not None for each in self.transactions.values())
            for kind in ("reservation", "settlement", "expiry", "denial")
        }


_KINDS = {
    "spend.reservation.created.v1": "reservation",
    "spend.settlement.recorded.v1": "settlement",
    "spend.hold.expired.v1": "expiry",
    "spend.decision.denied.v1": "denial",
}


def judge(messages: Iterable[Message]) -> Verdict:
    """What the messages mean; asserts that offsets are contiguous and that no call has two endings of one kind."""
    verdict = Verdict()
    seen: dict[tuple[str, int, str], int] = {}
    offsets: dict[tuple[str, int], int] = {}
    for message in sorted(messages, key=lambda each: (each.topic, each.partition, each.offset)):
        place = (message.topic, message.partition)
        assert message.offset == offsets.get(place, message.offset), f"{place} skips to {message.offset}"
        offsets[place] = message.offset + 1
        event = json.loads(message.value)
        producer = (*place, event["producer"])
        if event["sequence"] <= seen.get(producer, 0):
            verdict.duplicates += 1
            continue
        seen[producer] = event["sequence"]
        verdict.events += 1
        transaction = verdict.transactions.setdefault(event["transaction_id"], Transaction())
        if event["type"] == "spend.hold.resized.v1":
            transaction.resized.append(event)
            continue
        kind = _KINDS[event["type"]]
        assert getattr(transaction, kind) is None, f"{event['transaction_id']} has two {kind} events"
        setattr(transaction, kind, event)
    for name, each in verdict.transactions.items():
        if each.settlement is not None and each.reservation is not None:
            # Only a hold that was sized by what such calls usually cost may turn out too small.
            if each.settlement.get("estimate_mode", "strict") == "strict":
                assert nano(each.settlement["cost_usd"]) <= each.held_nano, f"{name} cost more than it held"
            assert each.settlement["charges"] == each.reservation["charges"], f"{name} was charged elsewhere than held"
    return verdict
