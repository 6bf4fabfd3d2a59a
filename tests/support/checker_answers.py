"""P2 by the independent model: what was answered once is answered so for ever, and the log says the same.

Like `checker`, it imports nothing of Farthing.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.support.checker import Transaction, Verdict, milliseconds, nano

# What decides a request of each kind; anything else is decided by the next try.
_DECIDED = {
    "reserve": (201, 402),
    "extend": (200, 402),
    "settle": (200,),
    "release": (200,),
    "delegate": (201,),
    "end": (200,),
}
_ENDS = ("settle", "release")
# The key of a part of a budget comes into force a little later than it is told, and goes with the part.
_NOTHING_DECIDED, _CONFLICT = (503, 401), 409


@dataclass(frozen=True)
class Asked:
    """A request: about which errand (`name`), of which kind, and its idempotency key, if it has one."""

    name: str
    kind: str
    path: str
    body: str
    key: str | None

    @property
    def is_repeatable(self) -> bool:
        """Whether it is known again: by its key, and the end of a reservation without one."""
        return self.kind in _ENDS or (self.key is not None and self.kind in ("reserve", "extend", "delegate"))


@dataclass(frozen=True)
class Told:
    """An answer to a request."""

    asked: Asked
    status: int
    fields: Mapping[str, Any]

    @property
    def is_decided(self) -> bool:
        """Whether this is the answer for ever."""
        return self.status in _DECIDED[self.asked.kind]


def check_told(every: Iterable[Told]) -> list[str]:
    """P2, in the order of the answers: once a request is decided, it is answered alike, and another body is refused."""
    findings = []
    decided: dict[tuple[str, ...], Told] = {}
    for told in every:
        asked = told.asked
        if not asked.is_repeatable:
            continue
        slot = (asked.name, "end") if asked.kind in _ENDS else (asked.name, asked.kind, str(asked.key))
        first = decided.get(slot)
        if first is None:
            if told.is_decided:
                decided[slot] = told
        elif told.status not in _NOTHING_DECIDED:
            is_same = (asked.kind, asked.body) == (first.asked.kind, first.asked.body)
            if is_same and (told.status, told.fields) != (first.status, first.fields):
                findings.append(
                    f"{asked.name} {asked.kind}: {first.status} {first.fields}, then {told.status} {told.fields}"
                )
            if not is_same and told.status != _CONFLICT and not _is_alike(first, told):
                findings.append(f"{asked.name} {asked.kind}: {first.asked} was decided, then {told}")
    return findings


def _is_alike(first: Told, told: Told) -> bool:
    """To settle at nothing, as cancelled, is to release."""
    return first.asked.kind in _ENDS and (told.status, told.fields) == (first.status, first.fields)


def check_recorded(verdict: Verdict, every: Iterable[Told]) -> list[str]:
    """P2 and P3: whatever a caller was told is in the log, and the log says no other."""
    findings = []
    for told in every:
        if told.is_decided and told.asked.kind in ("reserve", "extend", *_ENDS):
            name = told.fields["reservation_id"]
            known = verdict.transactions.get(name, Transaction())
            findings += [f"{name} was told {told.fields}, and {why}" for why in _contradictions(known, told)]
    return findings


def _contradictions(known: Transaction, told: Told) -> Iterator[str]:
    fields, kind = told.fields, told.asked.kind
    if told.status == 402:
        if kind == "reserve" and known.denial is None:
            yield "the log has no denial of it"
    elif kind in _ENDS:
        if known.settlement is None:
            yield "the log has no end of it"
        elif (known.settlement["cost_usd"], known.settlement["outcome"]) != (fields["cost_usd"], fields["outcome"]):
            yield "the log has another end of it"
    else:
        events = known.resized if kind == "extend" else [known.reservation] if known.reservation else []
        if not any(
            nano(each["held_usd"]) == nano(fields["held_usd"])
            and milliseconds(each["expires_at"]) == milliseconds(fields["expires_at"])
            for each in events
        ):
            yield "the log does not have it held like that"
