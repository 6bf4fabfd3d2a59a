"""Holds that outlived their time end by an event, so that hot state and ledger learn of it in the same way."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from services.aggregator.alarms import Alarms
from services.aggregator.observe import Observer
from services.aggregator.snapshots import Snapshots, UnreadableSnapshotError
from services.aggregator.underway import Underway, Unfolded
from services.core.budgets import Proposal
from services.core.codec import decode_facts, to_message
from services.core.codec_fields import UnreadableEventError
from services.core.events import CallFacts, Expiry, Stamped
from services.core.hotstate import CLAIM_MS, EXPIRY_PRODUCER, DueHold
from services.core.parts import part_of, settled, spent_by
from services.core.ports import Directory, EventLog, HotState, Outgoing, UnavailableError

_log = structlog.get_logger("farthing.aggregator")

CLAIMED_AT_ONCE: Final = 500
# How long all parts of one look may wait for the fold: where that stands still, the holds of other orgs are due, too.
_PATIENCE_S: Final = 0.5
# One that can't be read is claimed again and again until it is settled. Not for this long: it was.
UNREADABLE_MS: Final = 4 * CLAIM_MS


class Reaper:
    """Claims due holds and publishes their expiry. What fails is claimed again once the claim lapses."""

    def __init__(
        self,
        log: EventLog,
        hot: HotState,
        directory: Directory,
        observer: Observer,
        snapshots: Snapshots | None = None,
    ) -> None:
        self._event_log = log
        self._hot = hot
        self._directory = directory
        self._observer = observer
        self._snapshots = snapshots or Snapshots(directory)
        self._underway = Underway(log, hot)
        self._unfolded = Unfolded(log, hot)
        self._alarms = Alarms(hot, observer, "unreadable_hold")
        # Of each org with holds that can't be read, which these are, and when one of them was last due.
        self._unreadable: dict[str, tuple[int, set[str]]] = {}

    async def reap(self) -> None:
        """Ends what is due now, in every published org. Raises `UnavailableError`; nothing is lost by it.

        The holds of an org whose snapshot can't be read are left until it can: nobody knows whether to book them.
        """
        failure: UnavailableError | None = None
        patience_ends_s = asyncio.get_running_loop().time() + _PATIENCE_S
        for org, version in (await self._directory.published_versions()).items():
            try:
                due = await self._hot.claim_due(org, CLAIMED_AT_ONCE)
                found = await self._look_at(org, version, due) if due else _NOTHING
            except UnreadableSnapshotError as error:
                _log.debug("expiries_wait", org=org, reason=str(error))  # which has an alarm of its own
                continue
            except UnavailableError as error:  # of a cluster one server may be away: the orgs of the others go on
                failure = error
                continue
            await self._publish(org, found.expiries, found.now_ms)
            try:
                ended = await self._ended_parts(org, found, patience_ends_s) if found.parts else {}
            except UnavailableError as error:
                failure = error
                continue
            await self._publish(org, ended, found.now_ms)
        await self._look_for_ended()
        if failure is not None:
            raise failure

    async def _look_at(self, org: str, version: int, due: Sequence[DueHold]) -> "_Found":
        snapshot = await self._snapshots.at(org, version)
        if snapshot is None:
            return _NOTHING  # control is about to publish it again; until then nobody knows whether to book these holds
        found = _Found(await self._hot.now_ms(), {}, [])
        for hold in await self._underway.without(org, due, found.now_ms):
            try:
                facts = decode_facts(hold.context)
            except UnreadableEventError as error:
                await self._tell_unreadable(org, hold, str(error), found.now_ms)
                continue
            part = part_of(facts)
            if part is None:
                expiry = expiry_of(hold, facts, snapshot.book_expired, found.now_ms)
                found.expiries[hold.reservation_id] = to_message(expiry)
            else:
                found.parts.append((hold, facts, part))
        return found

    async def _publish(self, org: str, endings: Mapping[str, Outgoing], now_ms: int) -> None:
        """Publishes the endings of holds, by their names."""
        if endings:
            await self._event_log.publish(list(endings.values()))
            self._underway.add(org, endings, now_ms)
            self._observer.expired(len(endings))

    async def _tell_unreadable(self, org: str, hold: DueHold, reason: str, now_ms: int) -> None:
        """Says of a hold that can't be ended that it is there: once each hold, and by an alarm while there are any."""
        _, names = self._unreadable.get(org, (0, set()))
        if hold.reservation_id not in names:
            _log.error("unreadable_hold", org=org, transaction_id=hold.reservation_id, reason=reason)
        self._unreadable[org] = now_ms, names | {hold.reservation_id}
        text = f"hold {hold.reservation_id} is over its time and can't be read: {reason}"
        # Another process, which was never handed it, may have cleared it. Where alarms can't be kept right now no other
        # org waits for that: this hold is handed out again when its claim lapses.
        with contextlib.suppress(UnavailableError):
            await self._alarms.set(org, text, again=True)

    async def _look_for_ended(self) -> None:
        """Clears the alarm of holds that are due no more, those of an earlier process as well."""
        orgs = await self._alarms.raised()
        if not orgs:
            return
        now_ms = await self._hot.now_ms()
        for org in sorted(orgs):
            seen_ms, _ = self._unreadable.setdefault(org, (now_ms, set()))
            if seen_ms < now_ms - UNREADABLE_MS:
                del self._unreadable[org]
                await self._alarms.set(org, None)

    async def _ended_parts(self, org: str, found: "_Found", patience_ends_s: float) -> dict[str, Outgoing]:
        """The settlements of parts that are over, by their holds.

        One with open calls, or with some that may still have to be folded, is looked at again when its claim lapses.
        """
        folded = await self._unfolded.without(org, [hold.reservation_id for hold, _, _ in found.parts], patience_ends_s)
        parts = [each for each in found.parts if each[0].reservation_id in folded]
        standings = await self._hot.peek(org, [part for _, _, part in parts])
        if standings is None:
            return {}
        ended = {}
        for (hold, facts, part), standing in zip(parts, standings, strict=True):
            spent_nano = spent_by(part, standing, hold.amount_nano, found.now_ms)
            if spent_nano is not None:
                settlement = settled(hold, facts, spent_nano, found.now_ms)
                ended[hold.reservation_id] = to_message(
                    Stamped(settlement, f"{EXPIRY_PRODUCER}{hold.reservation_id}", 1)
                )
        return ended


@dataclass(frozen=True, slots=True)
class _Found:
    """What is due in an org: expiries by the names of their holds, and the holds of parts that may be over."""

    now_ms: int
    expiries: dict[str, Outgoing]
    parts: list[tuple[DueHold, CallFacts, Proposal]]


_NOTHING: Final = _Found(0, {}, [])


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
