"""Holds that outlived their time end by an event, so that hot state and ledger learn of it in the same way."""

from collections.abc import Sequence
from typing import Final

import structlog

from services.aggregator.observe import Observer
from services.core.codec import decode_facts, to_message
from services.core.codec_fields import UnreadableEventError
from services.core.events import Expiry, Stamped
from services.core.hotstate import EXPIRY_PRODUCER, DueHold
from services.core.ports import Directory, EventLog, HotState
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
        for org in await self._directory.orgs():
            due = await self._hot.claim_due(org, CLAIMED_AT_ONCE)
            if due:
                await self._expire(org, due)

    async def _expire(self, org: str, due: Sequence[DueHold]) -> None:
        snapshot = await self._directory.snapshot(org)
        if snapshot is None:
            return  # control is about to publish it again; until then nobody knows whether to book these holds
        is_booked = decode_snapshot(snapshot).book_expired
        now_ms = await self._hot.now_ms()
        messages = []
        for hold in due:
            try:
                expiry = expiry_of(hold, is_booked, now_ms)
            except UnreadableEventError as error:
                _log.error("unreadable_hold", org=org, transaction_id=hold.reservation_id, reason=str(error))
                continue
            messages.append(to_message(expiry))
        if messages:
            await self._event_log.publish(messages)
            self._observer.expired(len(messages))


def expiry_of(hold: DueHold, is_booked: bool, now_ms: int) -> Stamped:
    """The one expiry a hold can have: a producer of its own, so that whoever publishes it again publishes a duplicate.

    Raises `UnreadableEventError` when the hold's context does not tell the call.
    """
    expiry = Expiry(
        transaction_id=hold.reservation_id,
        time_ms=now_ms,
        facts=decode_facts(hold.context),
        held_nano=hold.amount_nano,
        booked_nano=hold.amount_nano if is_booked else 0,
        charges=hold.charges,
    )
    return Stamped(expiry, f"{EXPIRY_PRODUCER}{hold.reservation_id}", 1)
