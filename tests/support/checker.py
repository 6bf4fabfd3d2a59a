"""An independent model of what the log means. It imports nothing of Farthing: JSON and integers only.

It reads the raw messages of the log and says what every budget window must have spent and must still hold, which
transactions exist and how each ended, so that hot state and ledger can be compared with something that shares no code
with either.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
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
    def charges(self) -> list[dict[str, str]]:
        """What it holds against: by its reservation, or as changed last."""
        assert self.reservation is not None
        latest = max(self.resized, key=lambda each: each["time"], default=self.reservation)
        charges: list[dict[str, str]] = latest["charges"]
        return charges

    @property
    def org(self) -> str:
        """Whose it is: any of its events says so."""
        known = self.reservation or self.settlement or self.expiry or self.denial or self.resized[0]
        return str(known["identity"]["org"])

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
    unreadable: int = 0
    # Reservations that another gateway has recorded again, word for word.
    repeated: int = 0

    def of_org(self, org: str) -> "Verdict":
        """What it says of one org's calls."""
        return Verdict({name: each for name, each in self.transactions.items() if each.org == org})

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
                for charge in each.charges:
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
        event = readable(message)
        if event is None:
            verdict.unreadable += 1
            continue
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
        before = getattr(transaction, kind)
        if before is not None and _is_told_again(kind, before, event):
            verdict.repeated += 1
            continue
        assert before is None, f"{event['transaction_id']} has two {kind} events"
        setattr(transaction, kind, event)
    for name, each in verdict.transactions.items():
        if each.settlement is not None and each.reservation is not None:
            if is_within_hold(each.settlement):
                assert nano(each.settlement["cost_usd"]) <= each.held_nano, f"{name} cost more than it held"
            assert each.settlement["charges"] == each.charges, f"{name} was charged elsewhere than held"
    return verdict


def is_within_hold(settlement: Mapping[str, Any]) -> bool:
    """Whether a call may never cost more than it held: one held at its bound, or a stream of steps that ended early."""
    mode, outcome = settlement.get("estimate_mode", "strict"), settlement.get("outcome")
    return bool(mode == "strict" or (mode == "stepped" and outcome in ("cut_off", "partial")))


def _is_told_again(kind: str, before: Mapping[str, Any], event: Mapping[str, Any]) -> bool:
    """Whether a second event is of a deed that was asked for again, by its key, after its gateway had died.

    A reservation is then found as it was, and its refusal, too; that of a part is decided anew.
    """
    if kind not in ("reservation", "denial"):
        return False
    if kind == "denial" and event["transaction_id"].startswith("dlg_"):
        return True
    of_the_outbox = {"producer", "sequence", "would_block", "parent_charged"}
    same = {name: value for name, value in event.items() if name not in of_the_outbox}
    return event["transaction_id"].startswith(("rsv_", "dlg_")) and same.items() <= before.items()


# ---- promises, one by one -------------------------------------------------------------------------------------------

# By (topic, partition): the offset below which everything is known.
Known = Mapping[tuple[str, int], int]
Slots = tuple[tuple[str, str], ...]  # what a call is charged to: (budget, window)


def slot_of(charge: Mapping[str, str]) -> tuple[tuple[str, str], int | None]:
    """What a charge counts against, and in which bucket of it when it is a ring."""
    window = charge["window"]
    if window.startswith("r:"):
        ring, _, bucket = window.rpartition(":")
        return (charge["budget_id"], ring), int(bucket)
    return (charge["budget_id"], window), None


def readable(message: Message) -> dict[str, Any] | None:
    """The event of a message, which is not to be changed; None for what is none."""
    return _parsed(message.value)


@lru_cache(maxsize=4096)
def _parsed(value: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(value)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "transaction_id" in event else None


def milliseconds(text: str) -> int:
    """Unix milliseconds of an RFC 3339 time in UTC."""
    return round(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1000)


def check_answers(repeats: Iterable[tuple[str, object, object]]) -> list[str]:
    """P2: whoever asked again for the same reservation, by its first and its second answer, was told the same."""
    return [f"{name}: {first} first, then {second}" for name, first, second in repeats if first != second]


def check_endings(verdict: Verdict, recorded: Iterable[str]) -> list[str]:
    """P3 and P4, once all is at rest: each recorded call is in the log, each has its ending, and the sums agree."""
    known = verdict.transactions
    findings = [f"{name} was recorded, and the log does not have it" for name in recorded if name not in known]
    for name, each in known.items():
        if each.is_open:
            findings.append(f"{name} has no ending")
        if each.settlement is not None and each.reservation is None and not _is_unknown_part(each.settlement):
            findings.append(f"{name} was settled, and never reserved")
    calls = [each for each in known.values() if each.reservation is not None]
    reserved = sum(each.held_nano for each in calls)
    settled = sum(each.held_nano for each in calls if each.settlement is not None)
    expired = sum(each.held_nano for each in calls if each.settlement is None and each.expiry is not None)
    still_open = sum(each.held_nano for each in calls if each.is_open)
    if reserved != settled + expired + still_open:
        findings.append(f"reserved {reserved} is not settled {settled} + expired {expired} + open {still_open}")
    total = sum(each.spent_nano for each in known.values())
    for dimension in ("team", "key_id", "user"):
        if sum(verdict.spent_by(dimension).values()) != total:
            findings.append(f"the sums by {dimension} are not the org's {total}")
    return findings


def _is_unknown_part(event: Mapping[str, Any]) -> bool:
    """Whether this ends a part that nobody was told of, as its gateway died before it was recorded."""
    return event.get("route") == "delegation" and nano(event["cost_usd"]) == 0


def check_parents(
    verdict: Verdict,
    parents: Mapping[int, Mapping[str, str | None]],
    covers: Mapping[int, Mapping[str, Collection[str]]] = MappingProxyType({}),
) -> list[str]:
    """BU-3: whoever is charged to a budget is charged to all above it; what was left out is named, and its parent pays.

    `parents` are the budgets' parents by configuration version, and `covers` what holds the whole of a part of a budget
    (BU-9): its calls are not charged there again.
    """
    findings = []
    for name, each in verdict.transactions.items():
        for event in (each.reservation, each.settlement):
            if event is None or (each.reservation is None and _is_unknown_part(event)):
                continue  # of such a part nobody knows what it had left out
            above, held = parents[event["config_version"]], covers.get(event["config_version"], {})
            charged = [charge["budget_id"].partition("@")[0] for charge in event["charges"]]
            says = event
            if event.get("route") == "delegation" and each.reservation is not None:
                says = each.reservation  # the end of a part does not say it again
            left_out = {budget_id.partition("@")[0] for budget_id in says["parent_charged"]}
            if len({charge["budget_id"] for charge in event["charges"]}) < len(charged):
                findings.append(f"{name} is charged to a budget twice")
            covered = {name for budget_id in charged for name in held.get(budget_id, ())}
            for budget_id in {*charged, *left_out}:
                parent = above.get(budget_id)
                if parent is not None and parent not in {*charged, *left_out, *covered}:
                    findings.append(f"{name} counts against {budget_id}, and not against its parent {parent}")
            if left_out & set(charged):
                findings.append(f"{name} left out {sorted(left_out & set(charged))}, and is charged to it")
    return findings


def check_windows(
    verdict: Verdict,
    admitted: Mapping[str, tuple[int, Slots]] | None = None,
    changed: Mapping[str, Container[Slots]] = MappingProxyType({}),
) -> list[str]:
    """P9: each call counts in the windows that held the hot state's own time when it was admitted, whatever else any
    clock said. `admitted` is what the hot state was seen to answer: when, and against which (budget, window); `changed`
    are its answers to changes of holds. An expiry tells of its hold as it was changed last, whether the gateway lived
    to record that or not."""
    findings = []
    for name, each in verdict.transactions.items():
        for event in (each.reservation, each.settlement, each.expiry):
            if event is None:
                continue
            charges = tuple((charge["budget_id"], charge["window"]) for charge in event["charges"])
            is_changed = bool(each.resized) or (event is each.expiry and charges in changed.get(name, ()))
            now_ms = milliseconds(event["time"] if event is each.reservation else event["admitted_at"])
            # One that was let through while the hot state was away has no answer of it.
            if admitted is not None and "fail_open" not in event["flags"]:
                now_ms, seen = admitted[name]
                if seen != charges and not is_changed:
                    findings.append(f"{name} counts in {charges}, and was admitted to {seen}")
            for budget_id, window in charges:
                if not _holds(window, now_ms) and not is_changed:
                    findings.append(f"{name} of {now_ms} counts in {window} of {budget_id}")
    return findings


def _holds(window: str, now_ms: int) -> bool:
    kind, *numbers = window.split(":")
    if kind == "c":
        return int(numbers[0]) <= now_ms < int(numbers[1])
    return now_ms // int(numbers[0]) == int(numbers[2]) if kind == "r" else True


def check_offsets(messages: Iterable[Message], letters: Iterable[tuple[str, int, int]], folded: Known) -> list[str]:
    """P10: every offset is folded past, and what can't be read lies among the dead letters, and nothing else does."""
    ends: dict[tuple[str, int], int] = {}
    unreadable: set[tuple[str, int, int]] = set()
    for each in messages:
        place = (each.topic, each.partition)
        ends[place] = max(ends.get(place, 0), each.offset + 1)
        if readable(each) is None:
            unreadable.add((*place, each.offset))
    findings = [
        f"{place} is folded to {folded.get(place)} of {end}" for place, end in ends.items() if folded.get(place) != end
    ]
    if unreadable != (found := set(letters)):
        findings.append(f"unreadable are {sorted(unreadable)}, and the dead letters are {sorted(found)}")
    return findings


def check_fences(messages: Iterable[Message], fences: Known) -> list[str]:
    """P10: an org whose calls are all there is in these partitions has its own fences past the last of its events."""
    lasts: dict[tuple[str, int], int] = {}
    for each in messages:
        if readable(each) is not None:
            lasts[each.topic, each.partition] = each.offset
    return [
        f"the org's fence of {place} is at {fences.get(place, 0)}, and its last event at {last}"
        for place, last in lasts.items()
        if fences.get(place, 0) <= last
    ]


def check_figures(
    verdict: Verdict,
    spent: Mapping[tuple[str, str], int],
    held: Mapping[tuple[str, str], int],
    now_ms: int,
    implied: Mapping[tuple[str, str], int] = MappingProxyType({}),
    counts: Callable[[tuple[str, str]], bool] = lambda _: True,
) -> list[str]:
    """P4 and P5: a hot state's figures by (budget, window), rings bucket by bucket, are those that the log means.

    `implied` is spent beside what the events say (`checker_budgets`). Only slots that `counts` says so of are compared.
    """
    findings = []
    said = verdict.spent()
    meant = {slot: said.get(slot, 0) + implied.get(slot, 0) for slot in said.keys() | implied.keys() if counts(slot)}
    for slot in sorted(meant.keys() | spent.keys()):
        if not is_past(slot[1], now_ms) and meant.get(slot, 0) != spent.get(slot, 0):
            findings.append(f"{slot} has spent {spent.get(slot, 0)}, and the log says {meant.get(slot, 0)}")
    open_holds: dict[tuple[str, str], int] = defaultdict(int)
    for (budget_id, window), amount in verdict.held().items():
        slot, _ = slot_of({"budget_id": budget_id, "window": window})
        open_holds[slot] += amount
    for slot in sorted(open_holds.keys() | held.keys()):
        if held.get(slot, 0) != open_holds.get(slot, 0):
            findings.append(f"{slot} holds {held.get(slot, 0)}, and the log says {open_holds.get(slot, 0)}")
    return findings


def is_past(window: str, now_ms: int) -> bool:
    """Whether a window has been let go, a ring's bucket by bucket: what settles into it later is nobody's any more."""
    kind, *numbers = window.split(":")
    if kind == "c":
        return now_ms >= int(numbers[1]) + 24 * 3_600_000
    return kind == "r" and int(numbers[2]) < now_ms // int(numbers[0]) - int(numbers[1])
