"""Upkeep: what the hot state keeps without an end gets one when its owner is gone (`core.upkeep`).

Nothing waits for it. It goes through all keys now and then, a page at a time with pauses in between, one process for
all. What fails is left to the next round; `kill -9` is safe at any instant, because nothing is known but what the hot
state itself says.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import structlog

from services.aggregator.configs import Configs
from services.aggregator.patience import Patience
from services.core.budgets import Budget
from services.core.hotstate import Backfill
from services.core.ports import HotState, UnavailableError
from services.core.upkeep import Endless, Page, Upkeep
from services.core.windows import LifetimeWindow

_log = structlog.get_logger("farthing.aggregator")

ROUND_MS: Final = 6 * 3_600_000
# A page keeps a server busy for less than a millisecond, so it has the rest of this for all others.
PAUSE_S: Final = 0.1


class Caretaker:
    """Goes its rounds. One that was cut short goes on where it was; in another process, from the beginning."""

    def __init__(
        self,
        upkeep: Upkeep,
        hot: HotState,
        configs: Configs,
        patience: Patience,
        new_token: Callable[[], str],
    ) -> None:
        self._upkeep = upkeep
        self._hot = hot
        self._configs = configs
        self._patience = patience
        self._new_token = new_token
        # What is left of the round: servers, each with the cursor of its next page.
        self._left: list[tuple[str, str]] = []

    async def go_round(self) -> None:
        """Goes through all keys, if it is time and this process's turn. Raises `UnavailableError`; it goes on then."""
        if not self._left:
            if not await self._upkeep.take_turn(ROUND_MS):
                return
            self._left = [(server, "") for server in await self._upkeep.servers()]
        while self._left:
            server, cursor = self._left[0]
            page = await self._upkeep.look(server, cursor)
            await self._see_to(page)
            if page.cursor is None:
                del self._left[0]
            else:
                self._left[0] = server, page.cursor
            await self._patience.pause(PAUSE_S)

    async def _see_to(self, page: Page) -> None:
        # An org that can't be seen to, as one that control has yet to publish again, is left to the next round.
        for org, place in page.producers:
            with contextlib.suppress(UnavailableError):
                cursor: str | None = ""
                while cursor is not None:
                    cursor = await self._upkeep.forget_silent(org, place, cursor)
                    if cursor is not None:
                        await self._patience.pause(PAUSE_S)
        for org in page.marked:
            with contextlib.suppress(UnavailableError):
                await self._drop_marks(org)
        for org in dict.fromkeys(each.org for each in page.endless):
            with contextlib.suppress(UnavailableError):
                await self._see_to_endless(org, [each for each in page.endless if each.org == org])

    async def _drop_marks(self, org: str) -> None:
        marks = await self._hot.marks(org, ())
        config = await self._configs.of(org)
        gone = sorted(marks.filled.keys() - config.budgets.keys())
        # A configuration that was read with other marks may be older than these: then a budget is not gone, but new.
        if not gone or not config.version or config.token != marks.token:
            return
        # The token is another one then, as after every change of the marks, and whoever folds by them reads them again.
        fill = Backfill({}, {}, {}, self._new_token(), tuple(gone), known=marks.token)
        if await self._hot.backfill(org, fill):
            _log.info("marks_dropped", org=org, budgets=len(gone))
        self._configs.forget(org)

    async def _see_to_endless(self, org: str, keys: Sequence[Endless]) -> None:
        lasting = _lasting((await self._configs.of(org)).budgets.values())
        gone = [each for each in keys if not each.has_end and each.budget_id not in lasting]
        if gone or any(each.has_end and each.budget_id in lasting for each in keys):
            # What is kept of it may be older than the keys. A budget is published before anything is charged to it, so
            # one that is not in the snapshot now is gone, or for all time no longer.
            snapshot = await self._configs.snapshots.latest(org)
            if snapshot is None:
                return
            lasting = _lasting(snapshot.budgets)
            await self._upkeep.end_soon([each for each in gone if each.budget_id not in lasting])
            await self._upkeep.keep([each for each in keys if each.has_end and each.budget_id in lasting])


def _lasting(budgets: Iterable[Budget]) -> frozenset[str]:
    return frozenset(each.budget_id for each in budgets if isinstance(each.window, LifetimeWindow))
