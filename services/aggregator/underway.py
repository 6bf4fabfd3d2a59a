"""What is on the log and still to be folded: endings, not to be published again, and calls of parts that are over."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from services.core.events import Reservation, Settlement
from services.core.hotstate import CLAIM_MS, DueHold
from services.core.ports import EventLog, HotState, TopicPartition

MAX_KEPT: Final = 200_000
# A hold that is still due is claimed again each `CLAIM_MS`; one that was not for this long has ended.
KEPT_MS: Final = 20 * CLAIM_MS
_PAUSE_S: Final = 0.05

_Key = tuple[str, str]
_Offsets = Mapping[TopicPartition, int]


class Underway:
    """What this process has published of holds that were due.

    Another process knows nothing of it, and publishes once for itself: that one reaper died is made up for. Nor does
    this one trust its own for ever: a hold that is still due when the fold has passed what was published of it, because
    the log has lost that, say, is published again.
    """

    def __init__(self, log: EventLog, hot: HotState) -> None:
        self._log = log
        self._hot = hot
        # Of each ending when it was last looked at, and where the log ended once it was on it; None: not asked yet.
        self._known: dict[_Key, tuple[int, _Offsets | None]] = {}

    def add(self, org: str, names: Iterable[str], now_ms: int) -> None:
        """The endings of these holds are on the log."""
        for name in names:
            self._keep((org, name), now_ms, None)
        while self._known and (len(self._known) > MAX_KEPT or self._oldest_ms() < now_ms - KEPT_MS):
            del self._known[next(iter(self._known))]

    async def without(self, org: str, due: Sequence[DueHold], now_ms: int) -> list[DueHold]:
        """Those of the holds whose ending is to be published. Raises `UnavailableError`."""
        if not any((org, hold.reservation_id) in self._known for hold in due):
            return list(due)
        topic = Settlement.TOPIC
        places = [TopicPartition(topic, number) for number in range(await self._log.partitions(topic))]
        fences = await self._hot.fold_fences(places)
        ends = await self._log.end_offsets(places)
        left = []
        for hold in due:
            key = org, hold.reservation_id
            if key in self._known:
                until = self._known[key][1] or ends
                # A log that ends before that has lost it.
                if any((fences[each] or 0) < min(until[each], ends[each]) for each in places):
                    self._keep(key, now_ms, until)
                    continue
            left.append(hold)
        return left

    def _keep(self, key: _Key, now_ms: int, until: _Offsets | None) -> None:
        self._known.pop(key, None)
        self._known[key] = now_ms, until

    def _oldest_ms(self) -> int:
        return next(iter(self._known.values()))[0]


class Unfolded:
    """What the log had of a part's calls when that was first looked at after its end.

    Calls that have passed without a hold (GW-9) are in no figures before their events are folded: a part that ended
    then would be settled without them, and what it was carved from would never be charged.
    """

    def __init__(self, log: EventLog, hot: HotState) -> None:
        self._log = log
        self._hot = hot
        # Of each part the log's ends when it was first asked for.
        self._until: dict[_Key, _Offsets] = {}

    async def without(self, org: str, names: Sequence[str], patience_ends_s: float) -> set[str]:
        """Those of the parts whose calls have all been folded, as far as the log knew. Raises `UnavailableError`.

        A fold that keeps up is some milliseconds behind: it is waited for until `patience_ends_s` of the loop's clock.
        """
        topics = (Reservation.TOPIC, Settlement.TOPIC)
        places = [TopicPartition(each, number) for each in topics for number in range(await self._log.partitions(each))]
        ends = await self._log.end_offsets(places)  # before the fences: what comes meanwhile need not be in them
        until = {name: self._until.pop((org, name), ends) for name in names}
        loop = asyncio.get_running_loop()
        while True:
            fences = await self._hot.fold_fences(places)
            # A log that ends before that has lost it.
            folded = {
                name
                for name, upto in until.items()
                if all((fences[each] or 0) >= min(upto.get(each, 0), ends[each]) for each in places)
            }
            if len(folded) == len(until) or loop.time() >= patience_ends_s:
                break
            await asyncio.sleep(_PAUSE_S)
        self._until |= {(org, name): upto for name, upto in until.items() if name not in folded}
        while len(self._until) > MAX_KEPT:
            del self._until[next(iter(self._until))]
        return folded
