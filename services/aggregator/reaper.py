"""Holds that outlived their time end by an event, so that hot state and ledger learn of it in the same way."""

from collections.abc import Sequence
from typing import Final

import structlog

from services.aggregator.observe import Observer
from services.core.budgets import Proposal
from services.core.codec import decode_facts, to_message
from services.core.codec_fields import UnreadableEventError
from services.core.events import CallFacts, Expiry, Stamped
from services.core.hotstate import EXPIRY_PRODUCER, DueHold
from services.core.parts import part_of, settled, spent_by
from services.core.ports import Directory, EventLog, HotState, Outgoing, UnavailableError
from services.core.snapshot import decode_snapshot

_log = structlog.get_logger("farthing.aggregator")

CLAIMED_AT_ONCE: Final = 500


class Reaper:
    """Claims due holds and publishes their expiry. What fails is claimed again once the claim lapses."""

    def __init__(self, log: EventLog, hot: HotState, directory: Directory, observer: Observer) -> None:
        self._event_log = log
        self._hot = hot
        self._directory = directory
        self._observer = observer

    async def reap(self) -> None:
        """Ends what is due now, in every published org. Raises `UnavailableError`; nothing is lost by it."""
        failure: UnavailableError | None = None
        for org in await self._directory.orgs():
            try:
                due = await self._hot.claim_due(org, CLAIMED_AT_ONCE)
            except UnavailableError as error:  # of a cluster one server may be away: the orgs of the others go on
                failure = error
                continue
            if due:
                await self._expire(org, due)
        if failure is not None:
            raise failure

    async def _expire(self, org: str, due: Sequence[DueHold]) -> None:
        snapshot = await self._directory.snapshot(org)
        if snapshot is None:
            return  # control is about to publish it again; until then nobody knows whether to book these holds
        is_booked = decode_snapshot(snapshot).book_expired
        now_ms = await self._hot.now_ms()
        messages = []
        parts: list[tuple[DueHold, CallFacts, Proposal]] = []
        for hold in due:
            try:
                facts = decode_facts(hold.context)
            except UnreadableEventError as error:
                _log.error("unreadable_hold", org=org, transaction_id=hold.reservation_id, reason=str(error))
                continue
            part = part_of(facts)
            if part is None:
                messages.append(to_message(expiry_of(hold, facts, is_booked, now_ms)))
            else:
                parts.append((hold, facts, part))
        if parts:
            messages += await self._ended_parts(org, parts, now_ms)
        if messages:
            await self._event_log.publish(messages)
            self._observer.expired(len(messages))

    async def _ended_parts(
        self, org: str, parts: Sequence[tuple[DueHold, CallFacts, Proposal]], now_ms: int
    ) -> list[Outgoing]:
        """The settlements of parts that are over. One with open calls is looked at again when its claim lapses."""
        standings = await self._hot.peek(org, [part for _, _, part in parts])
        if standings is None:
            return []
        ended = []
        for (hold, facts, part), standing in zip(parts, standings, strict=True):
            spent_nano = spent_by(part, standing, hold.amount_nano, now_ms)
            if spent_nano is not None:
                settlement = settled(hold, facts, spent_nano, now_ms)
                ended.append(to_message(Stamped(settlement, f"{EXPIRY_PRODUCER}{hold.reservation_id}", 1)))
        return ended


def expiry_of(hold: DueHold, facts: CallFacts, is_booked: bool, now_ms: int) -> Stamped:
    """The one expiry a hold can have, of a producer of its own: whoever publishes it again publishes a duplicate."""
    expiry = Expiry(
        transaction_id=hold.reservation_id,
        time_ms=now_ms,
        facts=facts,
        held_nano=hold.amount_nano,
        booked_nano=hold.amount_nano if is_booked else 0,
        charges=hold.charges,
        admitted_at_ms=hold.admitted_at_ms,
    )
    return Stamped(expiry, f"{EXPIRY_PRODUCER}{hold.reservation_id}", 1)
