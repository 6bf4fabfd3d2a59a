"""What was told once: from beside the hot state for two days, from the ledger for as long as that keeps it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, cast

from services.core.answers import ANSWER_MS, CLAIM_MS, Answer, Answers
from services.core.codec import charges_from_fields, event_fields, event_from_fields, facts_from_fields
from services.core.codec_fields import parse_time, usd_in
from services.core.events import Denial, Event, HoldResized, Reservation, Settlement
from services.core.ports import UnavailableError

_SIZE: Final = "/size"
_END: Final = "/end"
_EXTEND: Final = "/extend/"
_HELD: Final = "/held"
# An answer's status: an end that is decided and may not be recorded yet, and what was done. How a hold was changed is
# kept with the time of that as its status: the last one stays.
_DECIDED: Final = 2
_DONE: Final = 3
# What a change is kept with that may not be recorded yet, in the place of its request's hash.
_UNRECORDED: Final = "unrecorded"


@dataclass(frozen=True, slots=True)
class Past:
    """A reservation: the event that opened or refused it, how its hold was changed last, and what ended it.

    `change` numbers that change among those kept beside the hot state: 0 where none is; `is_unrecorded`, when it is not
    known whether the log has it. `decided` tells the end that counts, of which it is not known whether it was recorded.
    `has_expired`: its hold has outlived its time, and may be settled all the same. `is_recorded`: the ledger says so.
    `has_lapsed`: the ledger knows of its expiry alone, so nobody has recorded it in its time; then `first` is as the
    expiry has it, from the time of that.
    """

    first: Reservation | Denial
    resized: HoldResized | None = None
    settlement: Settlement | None = None
    has_expired: bool = False
    is_recorded: bool = False
    change: int = 0
    is_unrecorded: bool = False
    decided: Answer | None = None
    has_lapsed: bool = False


class Ledger(Protocol):
    """The ledger's transactions, as a caller may see them."""

    async def transaction(self, reservation_id: str, credentials: Mapping[str, str]) -> Mapping[str, Any] | None:
        """The JSON of ``GET /v1/transactions/{id}``; None when there is none. Raises `UnavailableError`."""


class History:
    """Reads and writes what is known of reservations.

    Beside the hot state each is kept under its id: how it was opened, then how it was changed last and how it ended.
    These two are kept longer than the first, so that whoever finds that finds them.
    """

    def __init__(self, answers: Answers, ledger: Ledger) -> None:
        self._answers = answers
        self._ledger = ledger

    async def claim(self, org: str, reservation_id: str, request_hash: str) -> Answer | None:
        """None when this request is the first under its id that is known beside the hot state, else what is there."""
        return await self._answers.claim(org, reservation_id, request_hash, CLAIM_MS)

    async def drop(self, org: str, reservation_id: str, request_hash: str) -> None:
        """Takes that request's claim back: nothing was done and nothing was told."""
        await self._answers.drop(org, reservation_id, request_hash)

    async def opened(self, first: Reservation | Denial) -> Reservation | Denial | None:
        """Keeps how a reservation was answered, for two days longer than its hold.

        What is kept of the same request: the answer of another try where that was told already. None where another
        request has taken its name.
        """
        return _told_of(await self._keep(first, first, "", first.facts.request_hash), first)

    async def refusing(self, denial: Denial) -> Denial | Reservation | None:
        """Keeps a refusal before it is recorded: no other counts from now on. What is kept, as of `opened`."""
        kept = await self._keep(denial, denial, "", denial.facts.request_hash, _DECIDED)
        return _told_of(kept, denial)

    async def claim_turn(self, org: str, reservation_id: str, name: str) -> Answer | None:
        """As `claim`, for whatever changes or ends a reservation: one at a time. `name` is that deed's own.

        An end that is decided takes its claim's place: what is there already is another's claim, or the end.
        """
        return await self._answers.claim(org, reservation_id + _END, name, CLAIM_MS)

    async def drop_turn(self, org: str, reservation_id: str, name: str) -> None:
        """Lets the next change, or the end, begin."""
        await self._answers.drop(org, reservation_id + _END, name)

    async def resizing(self, first: Reservation, event: HoldResized, after: int) -> int:
        """Keeps how a hold was changed before that is recorded, and numbers it: see `resized`."""
        return await self._keep_size(first, event, after, _UNRECORDED)

    async def resized(self, first: Reservation, event: HoldResized, after: int = 0) -> None:
        """Keeps how a hold was changed last: `after` the change of that number, be it within the same millisecond."""
        await self._keep_size(first, event, after, "")

    async def _keep_size(self, first: Reservation, event: HoldResized, after: int, request_hash: str) -> int:
        number, left_ms = max(event.time_ms, after + 1), event.expires_at_ms - event.time_ms
        await self._keep(first, event, _SIZE, request_hash, number, left_ms)
        return number

    async def extended_before(self, org: str, reservation_id: str, key: str) -> Answer | None:
        """How a change under a key of its own was answered."""
        return await self._answers.find(org, reservation_id + _EXTEND + key)

    async def extended(
        self, first: Reservation, event: HoldResized | Denial, key: str, request_hash: str, left_ms: int
    ) -> HoldResized | Denial | None:
        """Keeps how a change under a key was answered, for longer than the `left_ms` that the hold has by now.

        What is kept, as of `opened`.
        """
        kept = await self._keep(first, event, _EXTEND + key, request_hash, left_ms=left_ms)
        told = event_of(kept)
        return told if kept.request_hash == request_hash and isinstance(told, HoldResized | Denial) else None

    async def decided(self, first: Reservation, settlement: Settlement, request_hash: str) -> Settlement:
        """Keeps how a reservation is about to end, before that is recorded: no other end counts from now on.

        The end that counts: another one where that was decided before.
        """
        kept = event_of(await self._keep(first, settlement, _END, request_hash, _DECIDED))
        return kept if isinstance(kept, Settlement) else settlement

    async def ended(self, first: Reservation, settlement: Settlement, request_hash: str) -> None:
        """Keeps how a reservation ended."""
        await self._keep(first, settlement, _END, request_hash)

    async def carved(self, part_id: str, held: Reservation) -> None:
        """Keeps what is held for a part of which it is not known whether control has made it."""
        # The last one stays.
        kept = Answer(held.facts.request_hash, held.time_ms, json.dumps(event_fields(held)))
        await self._answers.finish(held.facts.identity.org, part_id + _HELD, kept, held.expires_at_ms - held.time_ms)

    async def carved_in_vain(self, part_id: str, held: Reservation, ending: Settlement) -> None:
        """Keeps that no part is made of that hold any more: `carved_before` does not find it, but one made after it."""
        over = Answer(held.facts.request_hash, held.time_ms + 1, json.dumps(event_fields(ending)))
        await self._answers.finish(held.facts.identity.org, part_id + _HELD, over, held.expires_at_ms - held.time_ms)

    async def carved_before(self, org: str, part_id: str) -> Reservation | None:
        """What is held for such a part."""
        held = event_of(await self._answers.find(org, part_id + _HELD))
        return held if isinstance(held, Reservation) else None

    async def find(self, org: str, reservation_id: str, credentials: Mapping[str, str]) -> Past | None:
        """All that is known of a reservation; None when there is none that the caller may see.

        Raises `UnavailableError`.
        """
        first, past = event_of(await self._answers.find(org, reservation_id)), None
        if isinstance(first, Reservation | Denial):
            past = Past(first)
        else:
            past = await self.recorded(org, reservation_id, credentials)
        if past is None or isinstance(past.first, Denial):
            return past
        # What came after is kept longer than the beginning, and the ledger may not have read it yet.
        past = await self.latest(org, past)
        end = await self._answers.find(org, reservation_id + _END)
        if isinstance(ending := event_of(end), Settlement):
            past = replace(past, settlement=ending) if has_happened(end) else replace(past, decided=end)
        return past

    async def latest(self, org: str, past: Past) -> Past:
        """The same, with how its hold was changed last as that is kept by now. Raises `UnavailableError`."""
        size = await self._answers.find(org, past.first.transaction_id + _SIZE)
        if size is None or not isinstance(resized := event_of(size), HoldResized):
            return past
        return replace(past, resized=resized, change=size.status, is_unrecorded=size.request_hash == _UNRECORDED)

    async def recorded(self, org: str, reservation_id: str, credentials: Mapping[str, str]) -> Past | None:
        """What the ledger knows of it. Raises `UnavailableError`, also while the ledger knows its end alone."""
        fields = await self._ledger.transaction(reservation_id, credentials)
        return None if fields is None else _past_of(dict(fields))

    async def _keep(
        self,
        first: Reservation | Denial,
        event: Event,
        part: str,
        request_hash: str,
        status: int = _DONE,
        left_ms: int = 0,
    ) -> Answer:
        hold_ms = first.expires_at_ms - first.time_ms if isinstance(first, Reservation) else 0
        kept = Answer(request_hash, status, json.dumps(event_fields(event)))
        name = first.transaction_id + part
        return await self._answers.finish(first.facts.identity.org, name, kept, ANSWER_MS + max(hold_ms, left_ms))


def _told_of(kept: Answer, first: Reservation | Denial) -> Reservation | Denial | None:
    event = event_of(kept)
    is_same = kept.request_hash == first.facts.request_hash
    return event if is_same and isinstance(event, Reservation | Denial) else None


def has_happened(answer: Answer | None) -> bool:
    """Whether what an answer tells of was done, and not only claimed or decided."""
    return answer is not None and answer.status == _DONE


def event_of(answer: Answer | None) -> Event | None:
    """The event that an answer was given for; None while it is only claimed."""
    return None if answer is None or not answer.status else event_from_fields(json.loads(answer.body))


def _past_of(fields: dict[str, Any]) -> Past:
    """A transaction of the ledger's, as the events it was made of."""
    opened, denial = fields["opened"], fields["denial"]
    if opened is None and denial is not None:
        whole = {**fields, **denial, "type": Denial.TYPE, "time": fields["created_at"]}
        return Past(cast(Denial, event_from_fields(whole)), is_recorded=True)
    if opened is None and fields["expiry"] is not None and fields["expires_at"] is None and not fields["settled_at"]:
        return _lapsed(fields)
    if opened is None:
        raise UnavailableError("the ledger has not read its reservation yet")
    estimate = fields["estimate"]
    first = Reservation(
        transaction_id=fields["transaction_id"],
        time_ms=parse_time(fields["created_at"]),
        facts=facts_from_fields(fields),
        estimate_mode=estimate["mode"],
        input_tokens_bound=estimate["input_tokens"],
        output_tokens_bound=estimate["output_tokens"],
        held_nano=usd_in(opened, "held_usd"),
        charges=charges_from_fields(opened),
        expires_at_ms=parse_time(opened["expires_at"]),
        parent_charged=tuple(opened["parent_charged"]),
    )
    resized = HoldResized(
        transaction_id=first.transaction_id,
        time_ms=first.time_ms,
        facts=first.facts,
        held_nano=usd_in(fields, "held_usd"),
        charges=charges_from_fields(fields),
        expires_at_ms=parse_time(fields["expires_at"]),
    )
    settlement = None
    if fields["settled_at"] is not None:
        whole = {**fields, "type": Settlement.TYPE, "time": fields["settled_at"]}
        settlement = cast(Settlement, event_from_fields(whole))
    return Past(first, resized, settlement, has_expired=fields["expiry"] is not None, is_recorded=True)


def _lapsed(fields: dict[str, Any]) -> Past:
    """A hold of which the ledger knows the expiry alone: whoever had made it was gone before it was recorded."""
    expired_at_ms = parse_time(fields["expiry"]["time"])
    first = Reservation(
        transaction_id=fields["transaction_id"],
        time_ms=expired_at_ms,
        facts=facts_from_fields(fields),
        estimate_mode="",
        input_tokens_bound=0,
        output_tokens_bound=0,
        held_nano=usd_in(fields, "held_usd"),
        charges=charges_from_fields(fields),
        expires_at_ms=expired_at_ms,
    )
    return Past(first, has_expired=True, is_recorded=True, has_lapsed=True)
