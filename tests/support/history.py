"""Histories of calls for tests of the fold: events as gateways publish them, and what a ledger would say of them.

`ledger_image` is a model of its own: it looks at whole transactions and never folds, so it can judge what does.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from services.core.budgets import Charge
from services.core.codec import decode, encode_facts, to_message
from services.core.codec_fields import UnreadableEventError
from services.core.events import CallFacts, Denial, Expiry, HoldResized, Reservation, Settlement, Stamped
from services.core.hotstate import (
    CORRECTION_MS,
    EXPIRY_PRODUCER,
    TOLD_AGAIN_MS,
    TOMBSTONE_MS,
    Hold,
    OrgImage,
    counts_until_ms,
)
from services.core.identity import Identity
from services.core.ports import Incoming, LedgerImage, Outgoing, TopicPartition
from services.core.windows import CalendarSpan, RollingSpan, parse_span

TOPICS = (Reservation.TOPIC, Settlement.TOPIC)
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def charges_at(now_ms: int) -> tuple[Charge, ...]:
    """A calendar day's budget and a rolling hour's, as a call admitted at `now_ms` is charged to."""
    day = CalendarSpan(now_ms - now_ms % DAY_MS, now_ms - now_ms % DAY_MS + DAY_MS)
    hour = RollingSpan(HOUR_MS // 60, 60, now_ms // (HOUR_MS // 60))
    return Charge("bud_day", "org:default", day.key()), Charge("bud_hour", "team:ml", hour.key())


@dataclass
class Caller:
    """Publishes the events of an org's calls in order, as one gateway's outbox does."""

    now_ms: int
    org: str = "default"
    producer: str = "gw_1"
    sequences: dict[str, int] = field(default_factory=dict)

    @property
    def facts(self) -> CallFacts:
        """What every event of these calls repeats."""
        identity = Identity(org=self.org, key_id="key_1", team="ml", agent="ada")
        return CallFacts(identity, "sandbox", "/v1/chat/completions", "m", "m", "exact", "v1", 1)

    def reservation(self, transaction: str, held_nano: int = 1000, hold_ms: int = 900_000) -> Outgoing:
        """The call was admitted."""
        now_ms = self.now_ms
        charges = charges_at(now_ms)
        return self._message(
            Reservation(transaction, now_ms, self.facts, "strict", 10, 10, held_nano, charges, now_ms + hold_ms)
        )

    def resize(self, transaction: str, held_nano: int, later_ms: int = 0) -> Outgoing:
        """The call's hold was changed, so many milliseconds later."""
        time_ms = self.now_ms + later_ms
        facts = replace(self.facts, vendor="other")
        return self._message(
            HoldResized(transaction, time_ms, facts, held_nano, charges_at(self.now_ms), time_ms + 900_000)
        )

    def settlement(self, transaction: str, cost_nano: int = 400, held_nano: int = 1000) -> Outgoing:
        """The call has cost this."""
        event = Settlement(
            transaction_id=transaction,
            time_ms=self.now_ms,
            facts=self.facts,
            outcome="completed",
            usage_source="reported",
            usage={},
            components=(),
            cost_nano=cost_nano,
            held_nano=held_nano,
            charges=charges_at(self.now_ms),
            http_status=200,
            retry_count=0,
        )
        return self._message(event)

    def expiry(self, transaction: str, booked_nano: int = 1000) -> Outgoing:
        """The call's hold outlived its time."""
        event = Expiry(transaction, self.now_ms, self.facts, booked_nano, booked_nano, charges_at(self.now_ms))
        return to_message(Stamped(event, f"{EXPIRY_PRODUCER}{transaction}", 1))

    def _message(self, event: Reservation | HoldResized | Settlement) -> Outgoing:
        sequence = self.sequences.get(self.producer, 0) + 1
        self.sequences[self.producer] = sequence
        return to_message(Stamped(event, self.producer, sequence))


@dataclass
class _Call:
    reservation: Reservation | None = None
    resized: HoldResized | None = None
    settlement: Settlement | None = None
    expiry: Expiry | None = None
    windows: set[str] = field(default_factory=set)
    may_end_again: bool = False


def ledger_image(org: str, messages: Iterable[Incoming], taken: Mapping[TopicPartition, int]) -> LedgerImage:
    """What a ledger says of an org that has taken the messages below `taken` of each partition."""
    calls: dict[str, _Call] = {}
    producers: dict[tuple[str, int, str], int] = {}
    for message in sorted(messages, key=lambda each: (each.place, each.offset)):
        stamped = _readable(message)
        if stamped is None or message.offset >= taken.get(message.place, 0):
            continue
        event = stamped.event
        producer = (message.topic, message.partition, stamped.producer)
        if event.facts.identity.org != org or stamped.sequence <= producers.get(producer, 0):
            continue
        if not stamped.producer.startswith(EXPIRY_PRODUCER):
            producers[producer] = stamped.sequence
        call = calls.setdefault(event.transaction_id, _Call())
        call.may_end_again |= stamped.producer.startswith(EXPIRY_PRODUCER)
        if not isinstance(event, Denial):
            call.windows.update(each.window for each in event.charges)
        if isinstance(event, Reservation):
            call.reservation = call.reservation or event
        elif isinstance(event, HoldResized):
            if call.resized is None or call.resized.time_ms <= event.time_ms:
                call.resized = event
        elif isinstance(event, Settlement):
            call.settlement = call.settlement or event
        elif isinstance(event, Expiry):
            call.expiry = call.expiry or event
    fences = {(place.topic, place.partition): offset for place, offset in taken.items()}
    return LedgerImage(dict(taken), OrgImage(_spent_nano(calls), _holds(calls), fences, producers))


# `decode` for those who read the same log again and again.
decode_once = lru_cache(maxsize=4096)(decode)


def _readable(message: Incoming) -> Stamped | None:
    try:
        return decode_once(message.value)
    except UnreadableEventError:
        return None


def _spent_nano(calls: Mapping[str, _Call]) -> dict[tuple[str, str], int]:
    spent: dict[tuple[str, str], int] = {}
    for call in calls.values():
        ending = call.settlement or call.expiry
        if ending is not None:
            amount = ending.cost_nano if isinstance(ending, Settlement) else ending.booked_nano
            for charge in ending.charges:
                slot = charge.budget_id, charge.window
                spent[slot] = spent.get(slot, 0) + amount
    return spent


def _holds(calls: Mapping[str, _Call]) -> dict[str, Hold]:
    holds = {}
    for name, call in calls.items():
        first = call.reservation
        sized = call.resized or first
        ending = call.settlement or call.expiry
        known = sized or ending
        assert known is not None
        holds[name] = Hold(
            amount_nano=sized.held_nano if sized else 0,
            charges=(ending or known).charges,
            context=encode_facts(known.facts),
            expires_at_ms=sized.expires_at_ms if sized else 0,
            phase="held" if ending is None else "settled" if call.settlement else "expired",
            booked_nano=call.settlement.cost_nano if call.settlement else call.expiry.booked_nano if call.expiry else 0,
            admitted_at_ms=first.time_ms if first else 0,
            resized_at_ms=call.resized.time_ms if call.resized else 0,
            forget_at_ms=None if ending is None or not call.may_end_again else _forget_at_ms(call, ending.time_ms),
        )
    return holds


def _forget_at_ms(call: _Call, ended_at_ms: int) -> int:
    """When a call may be forgotten that may be told an ending of again; hosts' clocks are off by up to an hour."""
    until_ms = (counts_until_ms(parse_span(each), ended_at_ms) for each in call.windows)
    least_ms = TOLD_AGAIN_MS if call.settlement else CORRECTION_MS
    return max((ended_at_ms + least_ms + TOMBSTONE_MS, *until_ms))
