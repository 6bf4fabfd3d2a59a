"""Giving new budgets what their windows already hold (BU-8), while the fold goes on.

What a budget has spent is put together as a rebuild would: the ledger's sums, then the log's tail up to where the org
is folded. What it holds is put together from the holds that are open. Both are written in one step that is refused when
the org has been folded further meanwhile. From that step on every fold has to know that the budget is backfilled
(`Marks.token`), and goes on with what calls imply. So no call is left out, and none counts twice, whichever process
does what.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Final, Literal

import structlog

from services.aggregator.alarms import Alarms
from services.aggregator.configs import Configs, OrgConfig
from services.aggregator.folder import Folder
from services.aggregator.observe import Observer
from services.aggregator.patience import Patience
from services.aggregator.rebuild import Rebuilder, Replay, implied_nano
from services.aggregator.snapshots import UnreadableSnapshotError
from services.aggregator.thresholds import Thresholds
from services.core.events import Settlement
from services.core.fold import OffsetGapError
from services.core.hotstate import Backfill, HeldBackfill
from services.core.implied import HeldBackfills
from services.core.ports import HotState, LedgerView, TopicPartition, UnavailableError

_log = structlog.get_logger("farthing.aggregator")

CHECK_MARKS_S: Final = 30.0
# The fold is at most this far behind the ledger, or something else is wrong.
FOLD_PATIENCE_S: Final = 10.0
PAUSE_S: Final = 0.02
HELD_AT_ONCE: Final = 128
_ALARM: Final = "backfill"
_UNREADABLE: Final = "unreadable_snapshot"


class Backfiller:
    """Sees to the budgets of every published org that are not backfilled yet, and tells of orgs that can't be read."""

    def __init__(
        self,
        hot: HotState,
        ledger: LedgerView,
        configs: Configs,
        folder: Folder,
        rebuilder: Rebuilder,
        thresholds: Thresholds,
        places: Sequence[TopicPartition],
        observer: Observer,
        patience: Patience,
        new_token: Callable[[], str],
    ) -> None:
        self._hot = hot
        self._ledger = ledger
        self._configs = configs
        self._folder = folder
        self._rebuilder = rebuilder
        self._thresholds = thresholds
        self._places = [each for each in places if each.topic == Settlement.TOPIC]
        self._all_places = list(places)
        self._alarms = Alarms(hot, observer, _ALARM)
        self._unreadable = Alarms(hot, observer, _UNREADABLE)
        self._patience = patience
        self._new_token = new_token
        self._waiting: set[str] = set()
        self._versions: dict[str, int] = {}
        self._checked_s = time.monotonic()

    async def backfill(self) -> None:
        """Looks for changes, and does what there is to do. Raises `UnavailableError`; it is tried again then."""
        versions = await self._configs.refresh()
        if versions is not None:
            self._waiting |= {org for org, version in versions.items() if self._versions.get(org) != version}
            self._versions = dict(versions)
        if time.monotonic() - self._checked_s > CHECK_MARKS_S:
            self._waiting |= set(await self._configs.check_marks())
            self._checked_s = time.monotonic()
        failure: UnavailableError | None = None
        for org in sorted(self._waiting):
            try:
                await self._see_to(org)
            except UnavailableError as error:
                failure = error
        if failure is not None:
            raise failure

    async def _see_to(self, org: str) -> None:
        try:
            config = await self._configs.of(org)
        except UnreadableSnapshotError as error:
            await self._unreadable.set(org, str(error))
            return  # the next publication is the next try
        await self._unreadable.set(org, None)
        if config.version < self._versions.get(org, 0):
            # Read before the change that it waits for, and kept by whoever was slow to compile it.
            self._configs.forget(org)
            return
        if config.pending.since and (await self._hot.epochs([org]))[org] is None:
            return  # its rebuild does it
        try:
            if config.pending.since and not await self.fill(org, config):
                return
            await self._alarm(org, _unusable(config))
        except UnavailableError as error:
            await self._alarm(org, f"what new budgets already have spent can't be found out yet: {error}")
            raise
        await self._thresholds.look_at_current(org)
        self._waiting.discard(org)

    async def fill(self, org: str, config: OrgConfig) -> bool:
        """Backfills the org's pending budgets. Raises `UnavailableError`, nothing changed.

        False, and nothing is changed, when another process has changed the marks since `config` was read: it may have
        backfilled budgets that are not in it. All is to be read anew.
        """
        began_s = time.monotonic()
        now_ms = await self._hot.now_ms()
        known = await self._ledger.org_image(org)
        spent = await implied_nano(self._ledger, org, known, config.pending, now_ms)
        replay, held = Replay(known, now_ms, config.pending, spent), HeldBackfills(config.pending)
        await self._prepare(org, held, config)
        # First while the fold goes on, over all of the tail; then, if it has gone on, over the rest, while it stands.
        standing: contextlib.AbstractAsyncContextManager[object] = contextlib.nullcontext()
        deadline_s = time.monotonic() + FOLD_PATIENCE_S
        while True:
            async with standing:
                outcome = await self._write(org, replay, held, config)
            if outcome != "again":
                break
            if time.monotonic() > deadline_s:
                raise UnavailableError("the fold is behind the ledger")
            await self._patience.pause(PAUSE_S)
            standing = self._folder.turn
        self._configs.forget(org)
        if outcome == "overtaken":
            return False
        _log.info("backfilled", org=org, budgets=len(config.pending.since), took_s=round(time.monotonic() - began_s, 3))
        return True

    async def _prepare(self, org: str, held: HeldBackfills, config: OrgConfig) -> None:
        """Has open holds held already, some at a time: no reservation waits for long, and the last step is short."""
        missing = list((await self._missing(org, held)).items())
        for first in range(0, len(missing), HELD_AT_ONCE):
            some = dict(missing[first : first + HELD_AT_ONCE])
            fill = Backfill({}, {}, config.pending.since, "", holds=some, known=config.token)
            await self._hot.backfill(org, fill)

    async def _missing(self, org: str, held: HeldBackfills) -> dict[str, HeldBackfill]:
        holds = list((await self._hot.open_holds(org)).items())
        missing: dict[str, HeldBackfill] = {}
        for first in range(0, len(holds), HELD_AT_ONCE):
            missing |= held.of(dict(holds[first : first + HELD_AT_ONCE]))
            await asyncio.sleep(0)  # deciding is computing: the fold must have its turn
        return missing

    async def _write(
        self, org: str, replay: Replay, held: HeldBackfills, config: OrgConfig
    ) -> Literal["done", "again", "overtaken"]:
        # In this order: all that a partition's fence has passed is in the org, so the org's own fence, read later, is
        # either beyond it or has nothing of the org between.
        passed = await self._hot.fold_fences(self._places)
        marks = await self._hot.marks(org, self._all_places)
        again = await self._hot.fold_fences(self._places)
        if marks.token != config.token:
            return "overtaken"
        if any((again[each] or 0) < (passed[each] or 0) for each in self._places):
            return "again"  # the server has lost its last writes in between: the two are not of one state
        fences, pending = marks.fences, config.pending
        ends = {each: max(passed[each] or 0, fences[each.topic, each.partition]) for each in self._places}
        if any(replay.start(place) > end for place, end in ends.items()):
            return "again"
        try:
            await self._rebuilder.fold_tail({org: replay}, ends)
        except OffsetGapError as error:  # the fold itself may well go on
            raise UnavailableError(str(error)) from error
        replay.reach(ends)
        spent = {slot: nano for slot, nano in replay.image(ends).spent_nano.items() if pending.has(*slot)}
        gone = tuple(marks.filled.keys() - config.budgets.keys())
        # A hold that is made or changed from here on has an event that is folded after this, or the fences have moved.
        holds = await self._missing(org, held)
        fill = Backfill(fences, spent, pending.since, self._new_token(), gone, holds, known=config.token)
        return "done" if await self._hot.backfill(org, fill) else "again"

    async def _alarm(self, org: str, text: str | None) -> None:
        if await self._alarms.set(org, text) and text is not None:
            _log.warning("backfill_waits", org=org, reason=text)


def _unusable(config: OrgConfig) -> str | None:
    found = config.pending.unusable | config.implied.unusable
    return "; ".join(f"budget {budget_id}: {reason}" for budget_id, reason in sorted(found.items())) or None
