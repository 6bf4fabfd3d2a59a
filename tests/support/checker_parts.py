"""BU-9 by the independent model: a part of a budget gives back what it has not spent, once, and never spends more.

Like `checker`, it imports nothing of Farthing.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.support.checker import Transaction, Verdict, nano


@dataclass(frozen=True)
class Part:
    """A part: the reservation that holds it, and every call that was charged to it."""

    budget_id: str
    name: str
    hold: Transaction
    calls: Mapping[str, Transaction]


def parts_of(verdict: Verdict) -> Iterator[Part]:
    """Every part that was ever held.

    One that had to be carved anew has several holds; its calls are of the last one, and the others were given back.
    """
    charged: dict[str, dict[str, Transaction]] = {}
    for name, each in verdict.transactions.items():
        event = each.settlement or each.expiry or each.reservation
        for charge in () if event is None else event.get("charges", ()):
            charged.setdefault(charge["budget_id"], {})[name] = each
    holds: dict[str, list[tuple[str, str]]] = {}
    for name, each in verdict.transactions.items():
        if each.reservation is not None and each.reservation["route"] == "delegation":
            told = dict(flag.partition(":")[::2] for flag in each.reservation["flags"])
            holds.setdefault(told["part"], []).append((each.reservation["time"], name))
    for part, held in holds.items():
        *given_back, (_, last) = sorted(held)
        for _, name in given_back:
            yield Part(part, name, verdict.transactions[name], {})
        yield Part(part, last, verdict.transactions[last], charged.get(part, {}))


def check_parts(
    verdict: Verdict, limits: Mapping[int, Mapping[str, int | None]], unheld: Collection[str] = ()
) -> list[str]:
    """A part ends once, at what its calls have spent, which nobody else is charged for; it has no room for more than is
    held for it.

    `limits` are those of all budgets by configuration version. `unheld` are calls that the hot state did not know of
    all the time: a part may end before them. What a call has spent may be corrected after the part has ended.
    """
    findings = []
    for part in parts_of(verdict):
        hold, ending = part.hold, part.hold.settlement
        assert hold.reservation is not None, "it has one"
        held_nano = nano(hold.reservation["held_usd"])
        known = {budgets[part.budget_id] for budgets in limits.values() if part.budget_id in budgets}
        if known - {held_nano}:
            findings.append(f"{part.budget_id} may spend {known}, and {held_nano} is held for it")
        carved = {charge["budget_id"] for charge in hold.charges}
        for name, each in part.calls.items():
            event = each.settlement or each.expiry or each.reservation
            if event is not None and (twice := carved & {charge["budget_id"] for charge in event["charges"]}):
                findings.append(f"{name} is charged to {part.budget_id}, and again to {sorted(twice)}, which holds it")
        if hold.expiry is not None:
            findings.append(f"{part.name} holds a part, and was expired like a call")
        if part.name in unheld or ending is None:
            continue  # without an ending it is open, which is found elsewhere
        cost_nano = nano(ending["cost_usd"])
        if not any(name in unheld for name in part.calls):
            low, high = (sum(pick(_amounts(each)) for each in part.calls.values()) for pick in (min, max))
            if not low <= cost_nano <= high:
                findings.append(f"{part.budget_id} has spent {low} to {high}, and {part.name} ended at {cost_nano}")
        overdrawn = any(_is_overdrawn(each) for each in part.calls.values())
        if cost_nano > held_nano and not overdrawn:
            findings.append(f"{part.name} ended at {cost_nano} of {held_nano}")
    return findings


def _amounts(call: Transaction) -> list[int]:
    """What a call has put into spend at one time or another."""
    amounts = []
    if call.settlement is not None:
        amounts.append(nano(call.settlement["cost_usd"]))
    if call.expiry is not None:
        amounts.append(nano(call.expiry["booked_usd"]))
    return amounts or [0]


def _is_overdrawn(call: Transaction) -> bool:
    """Whether it did cost more than it held: a stream that could not be ended in time, or as somebody has said."""
    event: Any = call.settlement
    return event is not None and nano(event["cost_usd"]) > nano(event["held_usd"])
